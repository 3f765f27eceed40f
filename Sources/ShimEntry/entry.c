#define _GNU_SOURCE
#include "ShimEntry.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

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
void alps_shim_at_fork(void (*child)(void)) { pthread_atfork(NULL, NULL, child); }

// Threads that look a name up, by number. Not a thread-local: that would leave a symbol in the dynamic table.
enum { most_resolving = 64 };
static int resolving[most_resolving];

void alps_shim_resolving_begin(void) {
    int self = (int)syscall(SYS_gettid);
    for (int slot = 0; slot < most_resolving; slot++) {
        int nobody = 0;
        if (__atomic_compare_exchange_n(&resolving[slot], &nobody, self, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
    }
}

void alps_shim_resolving_end(void) {
    int self = (int)syscall(SYS_gettid);
    for (int slot = 0; slot < most_resolving; slot++) {
        int found = self;
        if (__atomic_compare_exchange_n(&resolving[slot], &found, 0, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
    }
}

int alps_shim_resolving(void) {
    int self = (int)syscall(SYS_gettid);
    for (int slot = 0; slot < most_resolving; slot++) {
        if (__atomic_load_n(&resolving[slot], __ATOMIC_RELAXED) == self) return 1;
    }
    return 0;
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

// MARK: vfork

/// A child of vfork would share the shim's tables with its parent while having descriptors of its own. So it gets a
/// copy, as fork's; the parent waits, as vfork's does, until the child executes a program or ends: both close the
/// child's end of a pipe.
pid_t vfork(void) {
    int pair[2];
    if (syscall(SYS_pipe2, pair, O_CLOEXEC) != 0) return fork();
    pid_t child = fork();
    int error = errno;
    if (child == 0) {
        syscall(SYS_close, pair[0]);
        // Out of the way of the numbers that the child is going to arrange.
        long high = syscall(SYS_fcntl, pair[1], F_DUPFD_CLOEXEC, 200);
        if (high >= 0) syscall(SYS_close, pair[1]);
        return 0;
    }
    syscall(SYS_close, pair[1]);
    if (child > 0) {
        char byte;
        while (syscall(SYS_read, pair[0], &byte, 1) < 0 && errno == EINTR) {
        }
    }
    syscall(SYS_close, pair[0]);
    errno = error;
    return child;
}
pid_t __vfork(void) __attribute__((alias("vfork")));

// MARK: exec with arguments in a list

enum { most_arguments = 4096 };

/// Collects the arguments up to NULL; the number with it, or -1 if there are too many.
static int collect(const char *first, va_list list, const char **vector) {
    int count = 0;
    for (const char *each = first;; each = va_arg(list, const char *)) {
        if (count == most_arguments) return -1;
        vector[count++] = each;
        if (each == NULL) return count;
    }
}

static int too_many(void) {
    errno = E2BIG;
    return -1;
}

int execl(const char *path, const char *first, ...) {
    const char *vector[most_arguments];
    va_list list;
    va_start(list, first);
    int count = collect(first, list, vector);
    va_end(list);
    return count < 0 ? too_many() : alps_shim_execve(path, (char *const *)vector, environ);
}

int execlp(const char *file, const char *first, ...) {
    const char *vector[most_arguments];
    va_list list;
    va_start(list, first);
    int count = collect(first, list, vector);
    va_end(list);
    return count < 0 ? too_many() : alps_shim_execvpe(file, (char *const *)vector, environ);
}

int execle(const char *path, const char *first, ...) {
    const char *vector[most_arguments];
    va_list list;
    va_start(list, first);
    int count = collect(first, list, vector);
    char *const *environment = count < 0 ? NULL : va_arg(list, char *const *);
    va_end(list);
    return count < 0 ? too_many() : alps_shim_execve(path, (char *const *)vector, environment);
}
