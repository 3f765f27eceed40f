// getaddrinfo_a: libc's own threads would look names up over the kernel's network.
#include "ShimEntry.h"

#include "CLibc.h"

/// What was asked for by one call.
struct batch {
    int left, waits;
    struct sigevent event;
};
struct lookup {
    struct gaicb *request;
    struct batch *batch;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void announce(const struct sigevent *event) {
    if (event->sigev_notify == SIGEV_SIGNAL) {
        siginfo_t info = {.si_signo = event->sigev_signo, .si_code = SI_ASYNCNL};
        info.si_pid = getpid();
        info.si_uid = getuid();
        info.si_value = event->sigev_value;
        alps_system_call(SYS_rt_sigqueueinfo, info.si_pid, info.si_signo, (long)&info, 0, 0, 0);
    } else if (event->sigev_notify == SIGEV_THREAD) {
        event->sigev_notify_function(event->sigev_value);
    }
}

static void *look_up(void *argument) {
    struct lookup *lookup = argument;
    struct gaicb *request = lookup->request;
    struct batch *batch = lookup->batch;
    free(lookup);
    int result = getaddrinfo(request->ar_name, request->ar_service, request->ar_request, &request->ar_result);
    pthread_mutex_lock(&lock);
    request->__return = result;
    int last = --batch->left == 0, waits = batch->waits;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    // A caller that waits has it on its stack.
    if (last && !waits) {
        announce(&batch->event);
        free(batch);
    }
    return NULL;
}

static int start(struct gaicb *request, struct batch *batch) {
    struct lookup *lookup = malloc(sizeof *lookup);
    if (!lookup) return 0;
    *lookup = (struct lookup){request, batch};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigset_t mask;
    alps_block_signals(&mask);
    pthread_t thread;
    int error = pthread_create(&thread, &attributes, look_up, lookup);
    alps_restore_signals(&mask);
    pthread_attr_destroy(&attributes);
    if (error) free(lookup);
    return error == 0;
}

int getaddrinfo_a(int mode, struct gaicb *list[], int count, struct sigevent *event) {
    static int (*next)(int, struct gaicb *[], int, struct sigevent *);
    if (!next) next = (int (*)(int, struct gaicb *[], int, struct sigevent *))alps_shim_next("getaddrinfo_a");
    if (!alps_shim_is_active()) return next(mode, list, count, event);
    if (mode != GAI_WAIT && mode != GAI_NOWAIT) {
        errno = EINVAL;
        return EAI_SYSTEM;
    }
    struct batch own = {.left = 1, .waits = mode == GAI_WAIT}, *batch = &own;
    if (mode == GAI_NOWAIT) {
        batch = malloc(sizeof *batch);
        if (!batch) return EAI_MEMORY;
        *batch = own;
        batch->event.sigev_notify = SIGEV_NONE;
        if (event) batch->event = *event;
    }
    int result = 0;
    for (int each = 0; each < count; each++) {
        if (!list[each]) continue;
        pthread_mutex_lock(&lock);
        list[each]->__return = EAI_INPROGRESS;
        batch->left++;
        pthread_mutex_unlock(&lock);
        if (start(list[each], batch)) continue;
        pthread_mutex_lock(&lock);
        list[each]->__return = EAI_AGAIN;
        batch->left--;
        pthread_mutex_unlock(&lock);
        result = EAI_AGAIN;
    }
    pthread_mutex_lock(&lock);
    int last = --batch->left == 0;
    while (mode == GAI_WAIT && batch->left > 0) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    if (mode == GAI_NOWAIT && last) {
        announce(&batch->event);
        free(batch);
    }
    return result;
}

int gai_suspend(const struct gaicb *const list[], int count, const struct timespec *limit) {
    static int (*next)(const struct gaicb *const[], int, const struct timespec *);
    if (!next) next = (int (*)(const struct gaicb *const[], int, const struct timespec *))alps_shim_next("gai_suspend");
    if (!alps_shim_is_active()) return next(list, count, limit);
    struct timespec deadline = {0};
    if (limit) {
        clock_gettime(CLOCK_REALTIME, &deadline);
        deadline.tv_sec += limit->tv_sec;
        deadline.tv_nsec += limit->tv_nsec;
        if (deadline.tv_nsec >= 1000000000) {
            deadline.tv_sec++;
            deadline.tv_nsec -= 1000000000;
        }
    }
    int result = EAI_ALLDONE;
    pthread_mutex_lock(&lock);
    for (int error = 0;;) {
        int running = 0, finished = 0;
        for (int each = 0; each < count; each++) {
            if (!list[each]) continue;
            if (list[each]->__return == EAI_INPROGRESS) running++;
            else finished++;
        }
        result = running == 0 ? EAI_ALLDONE : finished > 0 ? 0 : error == ETIMEDOUT ? EAI_AGAIN : EAI_INPROGRESS;
        if (result != EAI_INPROGRESS) break;
        error = limit ? pthread_cond_timedwait(&changed, &lock, &deadline) : pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int gai_cancel(struct gaicb *request) {
    static int (*next)(struct gaicb *);
    if (!next) next = (int (*)(struct gaicb *))alps_shim_next("gai_cancel");
    if (!alps_shim_is_active()) return next(request);
    pthread_mutex_lock(&lock);
    int result = request->__return == EAI_INPROGRESS ? EAI_NOTCANCELED : EAI_ALLDONE;
    pthread_mutex_unlock(&lock);
    return result;
}

int gai_error(struct gaicb *request) {
    pthread_mutex_lock(&lock);
    int result = request->__return;
    pthread_mutex_unlock(&lock);
    return result;
}
