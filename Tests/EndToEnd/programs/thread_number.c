// What the shim takes for the number of a thread, beside what the system says, in all kinds of children. Contains the shim's
// own file: the function is not exported.
#include "ShimEntry/processes.c"

#include <sys/wait.h>

// What that file takes from others, and nothing here calls.
void alps_shim_ready(void) {}
void alps_shim_before_fork(void) {}
void alps_shim_starts_program(void) {}
void alps_shim_in_band(int descriptor) {}
void *alps_shim_next(const char *name) { return NULL; }
int alps_shim_execve(const char *path, char *const *arguments, char *const *environment) { return -1; }
int alps_shim_execvpe(const char *name, char *const *arguments, char *const *environment) { return -1; }

static int differs(const char *where) {
    // Twice: the second answer is one that was kept.
    for (int turn = 0; turn < 2; turn++) {
        unsigned number = alps_shim_thread(), right = (unsigned)syscall(SYS_gettid);
        if (number == right) continue;
        fprintf(stderr, "%s: %u instead of %u\n", where, number, right);
        return 1;
    }
    return 0;
}

static int in_child(int child, const char *where, int finds_out) {
    if (child == 0) {
        int bad = differs(where);
        if (finds_out) bad |= !alps_shim_is_new_process() | differs(where);
        _exit(bad);
    }
    int status = -1;
    return waitpid(child, &status, 0) != child || status != 0;
}

static int clone_without_libc(int flags) { return (int)syscall(SYS_clone, SIGCHLD | flags, 0, 0, 0, 0); }

static void *check(void *where) {
    int bad = differs(where);
    bad |= in_child(fork(), "fork", 1);
    bad |= in_child(clone_without_libc(0), "clone without libc", 0);
    bad |= in_child(clone_without_libc(0), "clone without libc, found out", 1);
    // Its process has the number of its parent's if both are the first of their namespaces.
    bad |= in_child(clone_without_libc(CLONE_NEWPID), "clone with a namespace", 1);
    process->sharers++;   // as the shim's vfork does
    bad |= in_child(vfork(), "vfork", 0);
    process->sharers--;
    bad |= differs(where);
    return (void *)(long)bad;
}

int main(void) {
    int bad = differs("before the shim's start");
    alps_shim_process_begin();
    bad |= check("first thread") != NULL;
    pthread_t thread;
    void *result = NULL;
    pthread_create(&thread, NULL, check, "second thread");
    pthread_join(thread, &result);
    return bad | (result != NULL);
}
