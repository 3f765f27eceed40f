#define _GNU_SOURCE
#include "ShimEntry.h"

#include "CLibc.h"
#include <stdarg.h>

void *alps_shim_next(const char *name) {
    // RTLD_NEXT looks at the caller's address: this must not become a jump out of somebody else's frame.
    void *found = dlsym(RTLD_NEXT, name);
    __asm__ volatile("" : "+r"(found));
    return found;
}

const char *alps_shim_path(void) {
    Dl_info info;
    return dladdr((void *)&alps_shim_path, &info) ? info.dli_fname : NULL;
}

// MARK: lock

static int lock_word;

void alps_shim_lock(void) {
    for (unsigned turns = 0; __atomic_exchange_n(&lock_word, 1, __ATOMIC_ACQUIRE); turns++) {
        while (__atomic_load_n(&lock_word, __ATOMIC_RELAXED)) {
            if (++turns > 64) sched_yield();
        }
    }
}

void alps_shim_unlock(void) { __atomic_store_n(&lock_word, 0, __ATOMIC_RELEASE); }
void alps_shim_lock_reset(void) { __atomic_store_n(&lock_word, 0, __ATOMIC_RELEASE); }
void alps_shim_at_fork(void (*before)(void), void (*child)(void)) { pthread_atfork(before, NULL, child); }

/// Look-ups of names that this thread is at. Initial-exec: the dynamic loader is not called for it, and need not allocate.
static __thread __attribute__((tls_model("initial-exec"))) int resolving;

void alps_shim_resolving_begin(void) { resolving++; }
void alps_shim_resolving_end(void) { resolving--; }
int alps_shim_resolving(void) { return resolving > 0; }

long alps_shim_wait_for_end(int fd, void *pending) {
    static ssize_t (*next)(int, void *, size_t, int);
    if (!next) next = (ssize_t (*)(int, void *, size_t, int))alps_shim_next("recv");
    char byte;
    ssize_t got;
    pthread_cleanup_push(alps_shim_abandon, pending);
    got = next(fd, &byte, 1, 0);
    pthread_cleanup_pop(0);
    return got;
}

// MARK: variadic entry points. Every argument is one register wide.

int ioctl(int fd, unsigned long request, ...) {
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    return alps_shim_ioctl(fd, request, argument);
}

int fcntl(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    long argument = va_arg(list, long);
    va_end(list);
    return alps_shim_fcntl(fd, command, argument);
}
int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));
int __fcntl(int fd, int command, ...) __attribute__((alias("fcntl")));

// Opening a file: /proc/net is the stack's. The mode is passed on, whether or not there is one.

#define OPENING(name, flagged)                                                     \
    int name(const char *path, int flags, ...) {                                   \
        va_list list;                                                              \
        va_start(list, flags);                                                     \
        unsigned mode = va_arg(list, unsigned);                                    \
        va_end(list);                                                              \
        return alps_shim_open(AT_FDCWD, path, flags | (flagged), mode);            \
    }
#define OPENING_AT(name, flagged)                                                  \
    int name(int directory, const char *path, int flags, ...) {                    \
        va_list list;                                                              \
        va_start(list, flags);                                                     \
        unsigned mode = va_arg(list, unsigned);                                    \
        va_end(list);                                                              \
        return alps_shim_open(directory, path, flags | (flagged), mode);           \
    }
OPENING(open, 0)
OPENING(open64, O_LARGEFILE)
int __open(const char *path, int flags, ...) __attribute__((alias("open")));
int __open64(const char *path, int flags, ...) __attribute__((alias("open64")));
OPENING_AT(openat, 0)
OPENING_AT(openat64, O_LARGEFILE)
int __open_2(const char *path, int flags) { return alps_shim_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return alps_shim_open(AT_FDCWD, path, flags | O_LARGEFILE, 0); }
int __openat_2(int directory, const char *path, int flags) { return alps_shim_open(directory, path, flags, 0); }
int __openat64_2(int directory, const char *path, int flags) {
    return alps_shim_open(directory, path, flags | O_LARGEFILE, 0);
}

/// Replaced only to notice that the process is about to confine itself: from then on the shim makes no system call
/// that the program did not ask for.
int prctl(int option, ...) {
    va_list list;
    va_start(list, option);
    unsigned long a = va_arg(list, unsigned long), b = va_arg(list, unsigned long);
    unsigned long c = va_arg(list, unsigned long), d = va_arg(list, unsigned long);
    va_end(list);
    if (option == PR_SET_SECCOMP || option == PR_SET_NO_NEW_PRIVS) alps_shim_confined();
    return (int)syscall(SYS_prctl, option, a, b, c, d);
}
