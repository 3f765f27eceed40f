/* Calls that are interrupted, time-outs, calls from signal handlers, and threads that are cancelled. */
#include "report.h"
#include <setjmp.h>

static volatile sig_atomic_t handled;
static void count_signal(int number) { handled++; }

static void on_alarm(void (*handler)(int), int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(SIGALRM, &action, NULL);
}

static void alarm_in(int milliseconds) {
    handled = 0;
    struct itimerval timer = {.it_value = {milliseconds / 1000, milliseconds % 1000 * 1000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* The result of a call that an alarm interrupts after 100 ms, and how long it took in units of 100 ms. */
#define INTERRUPTED(call)                                           \
    do {                                                            \
        long start = now();                                         \
        alarm_in(100);                                              \
        long result = (call);                                       \
        int error = errno;                                          \
        long took = (now() - start + 50) / 100;                     \
        errno = error;                                              \
        report(#call, result);                                      \
        say("    after %ld, handled %d", took, (int)handled);       \
    } while (0)

static int stream[2], pair[2], listener, queue_full[2];
static char text[1 << 16];
static struct sockaddr_in nobody;
static char *big;
enum { much = 32 << 20 };

static void *helper(void *argument) {
    /* Lets the calls that restart end after 300 ms. */
    sleep_ms(300);
    ((void (*)(void))argument)();
    return NULL;
}

static void send_to_stream(void) { MUST(write(stream[1], "late", 4)); }
static void send_to_pair(void) { MUST(write(pair[0], "late", 4)); }
static void connect_late(void) {
    int fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    connect_to(fd, port_of(listener));
    close(fd);
}

static void start(pthread_t *thread, void (*late)(void)) {
    /* Signals go to the main thread. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_create(thread, NULL, helper, (void *)late);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

#define RESTARTED(call, late)        \
    do {                             \
        pthread_t thread;            \
        start(&thread, late);        \
        INTERRUPTED(call);           \
        pthread_join(thread, NULL);  \
    } while (0)

static void interruptions(void) {
    struct pollfd entry = {.fd = stream[0], .events = POLLIN};
    struct iovec part = {text, 100};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    say("-- without SA_RESTART");
    on_alarm(count_signal, 0);
    INTERRUPTED(read(stream[0], text, 100));
    INTERRUPTED(recv(stream[0], text, 100, MSG_WAITALL));
    INTERRUPTED(recvmsg(stream[0], &message, 0));
    INTERRUPTED(read(pair[1], text, 100));
    INTERRUPTED(recvfrom(pair[1], text, 100, 0, NULL, NULL));
    INTERRUPTED(recvmsg(pair[1], &message, 0));
    INTERRUPTED(accept(listener, NULL, NULL));
    INTERRUPTED(poll(&entry, 1, 5000));
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pair[1], &set);
    INTERRUPTED(select(pair[1] + 1, &set, NULL, NULL, NULL));
    say("-- with SA_RESTART");
    on_alarm(count_signal, SA_RESTART);
    RESTARTED(read(stream[0], text, 100), send_to_stream);
    RESTARTED(recv(stream[0], text, 4, MSG_WAITALL), send_to_stream);
    RESTARTED(read(pair[1], text, 100), send_to_pair);
    RESTARTED(recvmsg(pair[1], &message, 0), send_to_pair);
    RESTARTED(close(accept(listener, NULL, NULL)), connect_late);
    INTERRUPTED(poll(&entry, 1, 5000));
}

static void timeouts(void) {
    say("-- time-outs");
    struct timeval time;
    socklen_t length = sizeof time;
    set_timeout(stream[0], SO_RCVTIMEO, 200);
    set_timeout(pair[1], SO_RCVTIMEO, 200);
    set_timeout(listener, SO_RCVTIMEO, 200);
    REPORT(getsockopt(stream[0], SOL_SOCKET, SO_RCVTIMEO, &time, &length));
    say("%ld.%06ld", (long)time.tv_sec, (long)time.tv_usec);
#define TIMED(call)                                                    \
    do {                                                               \
        long start = now();                                            \
        long result = (call);                                          \
        int error = errno;                                             \
        long took = now() - start;                                     \
        errno = error;                                                 \
        report(#call, result);                                         \
        say("    in time: %d", took >= 180 && took < 1500);            \
    } while (0)
    TIMED(read(stream[0], text, 100));
    TIMED(recv(stream[0], text, 100, 0));
    TIMED(read(pair[1], text, 100));
    TIMED(recvfrom(pair[1], text, 100, 0, NULL, NULL));
    TIMED(accept(listener, NULL, NULL));
    on_alarm(count_signal, SA_RESTART);
    INTERRUPTED(read(stream[0], text, 100));
    INTERRUPTED(read(pair[1], text, 100));
    INTERRUPTED(accept(listener, NULL, NULL));
    set_timeout(stream[0], SO_SNDTIMEO, 200);
    int small = 4096;
    setsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &small, 4);
    ssize_t sent;
    long before = now();
    sent = send(stream[0], big, much, 0);
    say("a part was sent: %d", sent > 0 && sent < much);
    TIMED(send(stream[0], big, much, 0));
    set_timeout(stream[0], SO_SNDTIMEO, 0);
    on_alarm(count_signal, 0);
    /* A probe of the window may have let a little through. */
#define ENDED_EARLY(result) ((sent = (result)) > 0 && sent < much ? -1 - 0 * (errno = EINTR) : sent)
    INTERRUPTED(ENDED_EARLY(send(stream[0], big, much, 0)));
    INTERRUPTED(ENDED_EARLY(write(stream[0], big, much)));
    on_alarm(count_signal, SA_RESTART);
    while (recv(stream[1], text, sizeof text, MSG_DONTWAIT) > 0 || (sleep_ms(20), recv(stream[1], text, sizeof text, MSG_DONTWAIT)) > 0) {
    }
    set_timeout(stream[0], SO_RCVTIMEO, 0);
    set_timeout(pair[1], SO_RCVTIMEO, 0);
    set_timeout(listener, SO_RCVTIMEO, 0);
}

static void connects(void) {
    say("-- connect");
    int fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    set_timeout(fd, SO_SNDTIMEO, 200);
    TIMED(connect(fd, (struct sockaddr *)&nobody, sizeof nobody));
    REPORT(connect(fd, (struct sockaddr *)&nobody, sizeof nobody));
    close(fd);
    fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    on_alarm(count_signal, 0);
    INTERRUPTED(connect(fd, (struct sockaddr *)&nobody, sizeof nobody));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    REPORT(connect(fd, (struct sockaddr *)&nobody, sizeof nobody));
    close(fd);
}

/* Calls from a handler, while the same and other calls are under way in the program. */
static volatile int wrong, turns;
static int inner[2];
static void handler_that_works(int number) {
    int error = errno;
    char byte;
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    int value = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);
    turns++;
    if (fd < 0 || bind(fd, (struct sockaddr *)&(struct sockaddr_in){.sin_family = AF_INET}, 16) != 0) wrong++;
    if (getsockname(fd, (struct sockaddr *)&name, &length) != 0 || name.sin_family != AF_INET) wrong++;
    if (setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &value, 4) != 0) wrong++;
    if (send(inner[0], "x", 1, 0) != 1 || !wait_for(inner[1], POLLIN) || recv(inner[1], &byte, 1, 0) != 1) wrong++;
    if (fd >= 0 && close(fd) != 0) wrong++;
    errno = error;
}

static void from_handlers(void) {
    say("-- calls from a signal handler");
    datagrams(inner);
    on_alarm(handler_that_works, SA_RESTART);
    struct itimerval often = {{0, 1000}, {0, 1000}}, never = {0};
    setitimer(ITIMER_REAL, &often, NULL);
    int failed = 0;
    long end = now() + 1500;
    while (now() < end) {
        int own[2], value;
        socklen_t length = 4;
        struct sockaddr_in name;
        socklen_t size = sizeof name;
        connected(own);
        if (getsockopt(own[0], SOL_SOCKET, SO_TYPE, &value, &length) != 0 || value != SOCK_STREAM) failed++;
        if (getpeername(own[0], (struct sockaddr *)&name, &size) != 0) failed++;
        if (write(own[0], "turn", 4) != 4 || read_all(own[1], text, 4) != 4) failed++;
        if (close(own[0]) || close(own[1])) failed++;
    }
    setitimer(ITIMER_REAL, &never, NULL);
    say("failed %d, wrong %d, handled many: %d", failed, wrong, turns > 100);
}

static sigjmp_buf out;
static void jump(int number) { siglongjmp(out, 1); }
static void jumps(void) {
    say("-- leaving a call by a jump");
    on_alarm(jump, 0);
    int jumped = 0;
    for (int turn = 0; turn < 20; turn++) {
        int fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        if (sigsetjmp(out, 1) == 0) {
            alarm_in(10);
            connect(fd, (struct sockaddr *)&nobody, sizeof nobody);
        } else {
            jumped++;
        }
        close(fd);
    }
    int own[2];
    connected(own);
    say("jumped %d, sockets work: %d", jumped, write(own[0], "x", 1) == 1 && read(own[1], text, 1) == 1);
    close(own[0]), close(own[1]);
}

static void cleanup(void *argument) { (*(int *)argument)++; }
static int cleaned;
static const char *what;
static void *cancelled(void *argument) {
    pthread_cleanup_push(cleanup, &cleaned);
    ((void (*)(void))argument)();
    pthread_cleanup_pop(0);
    return NULL;
}
static void in_read(void) { read(stream[0], text, 1); }
static void in_recvfrom(void) { recvfrom(pair[1], text, 1, 0, NULL, NULL); }
static void in_recvmsg(void) {
    struct iovec part = {text, 100};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    recvmsg(pair[1], &message, 0);
}
static void in_accept(void) { accept(listener, NULL, NULL); }
static void in_poll(void) {
    struct pollfd entry = {.fd = pair[1], .events = POLLIN};
    poll(&entry, 1, -1);
}
static void in_send(void) {
    while (send(stream[0], big, much, 0) > 0) {
    }
}
static void in_connect(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    connect(fd, (struct sockaddr *)&nobody, sizeof nobody);
}

static void cancellations(void) {
    say("-- cancellation");
    struct {
        const char *name;
        void (*call)(void);
    } calls[] = {{"read", in_read},     {"recvfrom", in_recvfrom}, {"recvmsg", in_recvmsg}, {"accept", in_accept},
                 {"poll", in_poll},     {"connect", in_connect},   {"send", in_send}};
    for (size_t each = 0; each < sizeof calls / sizeof *calls; each++) {
        pthread_t thread;
        void *result;
        cleaned = 0;
        pthread_create(&thread, NULL, cancelled, (void *)calls[each].call);
        sleep_ms(100);
        pthread_cancel(thread);
        struct timespec limit;
        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec += 3;
        if (pthread_timedjoin_np(thread, &result, &limit) != 0) {
            say("%s: not cancelled", calls[each].name);
            continue;
        }
        say("%s: cancelled %d, cleaned up %d", calls[each].name, result == PTHREAD_CANCELED, cleaned);
    }
    int own[2];
    connected(own);
    say("sockets work: %d", write(own[0], "x", 1) == 1 && read(own[1], text, 1) == 1);
}

int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    big = calloc(1, much);
    nobody = loopback(9);
    /* An address where nobody answers, from the caller. */
    inet_pton(AF_INET, arguments[1], &nobody.sin_addr);
    connected(stream);
    datagrams(pair);
    listener = listening();
    interruptions();
    timeouts();
    connects();
    from_handlers();
    jumps();
    cancellations();
    return 0;
}
