// Making processes and executing programs: what cannot be written in Swift.
#include "ShimEntry.h"

#include "CLibc.h"
#include <linux/sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>

// MARK: children that share memory

/// What belongs to this process. The child of a fork finds zeros here, a child that shares our memory (vfork) what we see.
struct process {
    int pid;
    /// Children that may be running in our memory with descriptors of their own.
    int sharers;
    /// Another one than its parent's, and never 0.
    unsigned generation;
};

/// Used until there is a page: `sharers` has to be somewhere.
static struct process early;
static struct process *process = &early;
static unsigned generations = 1;

void alps_shim_process_begin(void) {
    struct process *page = alps_map_wiped_by_fork(4096);
    if (page) {
        process = page;
        process->generation = generations;
    }
    process->pid = alps_sys_getpid();
}

int alps_shim_is_new_process(void) {
    if (process != &early ? process->pid != 0 : process->pid == alps_sys_getpid()) return 0;
    process->sharers = 0;
    if (process != &early) process->generation = ++generations;
    process->pid = alps_sys_getpid();
    return 1;
}

int alps_shim_borrows_memory(void) {
    return __atomic_load_n(&process->sharers, __ATOMIC_RELAXED) > 0 && process->pid != 0
        && process->pid != alps_sys_getpid();
}

unsigned alps_shim_thread(void) {
    // Not Swift, which has no variables of a thread without its runtime.
    static __thread __attribute__((tls_model("initial-exec"))) struct {
        unsigned generation;
        unsigned thread;
    } known;
    unsigned generation = process->generation;
    if (generation == 0 || __atomic_load_n(&process->sharers, __ATOMIC_RELAXED) > 0) return alps_sys_thread();
    if (known.generation != generation) {
        known.thread = alps_sys_thread();
        known.generation = generation;
    }
    return known.thread;
}

// Memory that a child mapped for a program's environment before it executed the program: mapped in us. A stack of
// blocks, each beginning with this.
struct kept {
    struct kept *next;
    size_t bytes;
    int owner;
};
static struct kept *kept_blocks;

void alps_shim_keep_mapping(void *memory, size_t bytes) {
    struct kept *block = memory;
    block->bytes = bytes;
    block->owner = alps_sys_getpid();
    block->next = __atomic_load_n(&kept_blocks, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&kept_blocks, &block->next, block, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    }
}

/// Gives back what the child `owner` had mapped; it has executed its program or ended.
static void release_mappings(int owner) {
    struct kept *block = __atomic_exchange_n(&kept_blocks, NULL, __ATOMIC_ACQUIRE);
    while (block) {
        struct kept *next = block->next;
        if (block->owner == owner) {
            munmap(block, block->bytes);
        } else {
            block->next = __atomic_load_n(&kept_blocks, __ATOMIC_RELAXED);
            while (!__atomic_compare_exchange_n(&kept_blocks, &block->next, block, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
            }
        }
        block = next;
    }
}

/// Called by vfork (vfork.S) before the system call.
void alps_shim_vfork_begin(void) {
    alps_shim_ready();
    __atomic_fetch_add(&process->sharers, 1, __ATOMIC_RELAXED);
}

/// Called by vfork in the parent, with the result of the system call.
long alps_shim_vfork_end(long result) {
    __atomic_fetch_sub(&process->sharers, 1, __ATOMIC_RELAXED);
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    if (kept_blocks) {
        int error = errno;
        release_mappings((int)result);
        errno = error;
    }
    return result;
}

/// A child that shares the memory but not the descriptors must not touch the shim's tables. With CLONE_VFORK it is gone
/// when clone returns; without, it may be there for ever.
int clone(int (*function)(void *), void *stack, int flags, void *argument, ...) {
    typedef int real_clone(int (*)(void *), void *, int, void *, ...);
    static real_clone *next;
    va_list list;
    va_start(list, argument);
    void *parent_id = va_arg(list, void *), *tls = va_arg(list, void *), *child_id = va_arg(list, void *);
    va_end(list);
    if (!next) next = (real_clone *)alps_shim_next("clone");
    alps_shim_ready();
    int borrows = (flags & (CLONE_VM | CLONE_FILES)) == CLONE_VM;
    if (borrows) __atomic_fetch_add(&process->sharers, 1, __ATOMIC_RELAXED);
    if (!(flags & CLONE_VM)) alps_shim_before_fork();
    int child = next(function, stack, flags, argument, parent_id, tls, child_id);
    if (borrows && (child < 0 || (flags & CLONE_VFORK))) alps_shim_vfork_end(child < 0 ? 0 : child);
    return child;
}
int __clone(int (*function)(void *), void *stack, int flags, void *argument, ...) __attribute__((alias("clone")));

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

/// fork without its handlers.
pid_t _Fork(void) {
    static pid_t (*next)(void);
    if (!next) next = (pid_t (*)(void))alps_shim_next("_Fork");
    alps_shim_ready();
    alps_shim_before_fork();
    return next ? next() : fork();
}

// MARK: programs that libc starts by itself

// What they inherit has to be in-band (client.h, 5).

int system(const char *command) {
    static int (*next)(const char *);
    if (!next) next = (int (*)(const char *))alps_shim_next("system");
    alps_shim_starts_program();
    return next(command);
}

FILE *popen(const char *command, const char *type) {
    static FILE *(*next)(const char *, const char *);
    if (!next) next = (FILE * (*)(const char *, const char *)) alps_shim_next("popen");
    alps_shim_starts_program();
    return next(command, type);
}

/// The new number is inherited although the old one is closed by exec.
int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *actions, int fd, int new_fd) {
    static int (*next)(posix_spawn_file_actions_t *, int, int);
    if (!next) next = (int (*)(posix_spawn_file_actions_t *, int, int))alps_shim_next("posix_spawn_file_actions_adddup2");
    alps_shim_in_band(fd);
    return next(actions, fd, new_fd);
}
