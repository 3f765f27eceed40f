/* vfork, clone, posix_spawn and exec: what a child does to descriptors does nothing to its parent's. */
#include "report.h"
#include <sched.h>

static const char *self;
extern char **environ;

static void exchange(const char *label, int from, int to) {
    char text[100] = "";
    ssize_t sent = write(from, "exchange", 8);
    if (sent != 8) return report(label, sent);
    wait_for(to, POLLIN);
    ssize_t got = read(to, text, sizeof text);
    say("%s: %zd %.*s", label, got, got > 0 ? (int)got : 0, text);
}

static void all_work(const char *label, int pair[2], int stream[2]) {
    say("%s", label);
    exchange("datagrams", pair[0], pair[1]);
    exchange("stream", stream[0], stream[1]);
    exchange("stream back", stream[1], stream[0]);
    say("bound: %d", port_of(pair[1]) > 0);
}

static void vforks(void) {
    int pair[2], stream[2];
    datagrams(pair);
    connected(stream);
    say("-- vfork");
    volatile int seen = 0;
    pid_t child = vfork();
    if (child == 0) {
        seen = 1;
        close(pair[0]), close(pair[1]), close(stream[0]), close(stream[1]);
        _exit(5);
    }
    say("child: %d, shared memory: %d", child_status(child), seen);
    all_work("after a child that closed them", pair, stream);

    child = vfork();
    if (child == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, pair[1]), dup2(null, stream[1]), dup2(null, pair[0]), dup2(null, stream[0]);
        closefrom(3);
        execl("/nowhere/at/all", "all", NULL);
        seen = errno;
        _exit(6);
    }
    say("child: %d, its error: %s", child_status(child), strerrorname_np(seen));
    all_work("after a child that replaced them", pair, stream);

    child = vfork();
    if (child == 0) {
        dup2(stream[1], 0);
        close(stream[1]), close(stream[0]), close(pair[0]), close(pair[1]);
        execl(self, self, "answer", NULL);
        _exit(7);
    }
    char text[100] = "";
    MUST(write(stream[0], "to fd 0", 7));
    wait_for(stream[0], POLLIN);
    say("%zd %s", read(stream[0], text, 100), text);
    say("child: %d", child_status(child));
    all_work("after a child that was another program", pair, stream);

    /* An environment of its own, many times: what the child maps for it must go. */
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    char *empty[] = {NULL}, *arguments[] = {(char *)self, "nothing", NULL};
    int failed = 0;
    for (int turn = 0; turn < 300; turn++) {
        child = vfork();
        if (child == 0) {
            execve(self, arguments, empty);
            _exit(7);
        }
        failed += child_status(child) != 0;
    }
    char line[256];
    int mappings = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps)) mappings++;
    fclose(maps);
    say("300 programs, failed %d, few mappings: %d", failed, mappings < 150);

    child = vfork();
    if (child == 0) {
        pid_t grandchild = vfork();
        if (grandchild == 0) {
            close(pair[0]);
            _exit(0);
        }
        close(pair[1]);
        _exit(child_status(grandchild));
    }
    say("child: %d", child_status(child));
    all_work("after a grandchild", pair, stream);
    close(pair[0]), close(pair[1]), close(stream[0]), close(stream[1]);
}

static void *spawner(void *argument) {
    int *stop = argument;
    while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {
        pid_t child = vfork();
        if (child == 0) {
            for (int fd = 3; fd < 64; fd++) close(fd);
            _exit(0);
        }
        child_status(child);
    }
    return NULL;
}

static void threads(void) {
    say("-- vfork in one thread, sockets in another");
    int stop = 0, wrong = 0;
    pthread_t thread;
    pthread_create(&thread, NULL, spawner, &stop);
    for (int turn = 0; turn < 200; turn++) {
        int pair[2];
        char text[20];
        datagrams(pair);
        if (send(pair[0], "turn", 4, 0) != 4 || !wait_for(pair[1], POLLIN) || read(pair[1], text, 20) != 4) wrong++;
        if (close(pair[0]) || close(pair[1])) wrong++;
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    say("wrong: %d", wrong);
}

static int cloned(void *argument) {
    int *fds = argument;
    close(fds[0]), close(fds[1]);
    return 3;
}

static void clones(void) {
    say("-- clone");
    int pair[2], stream[2];
    datagrams(pair);
    connected(stream);
    char *stack = malloc(1 << 18);
    pid_t child = clone(cloned, stack + (1 << 18), SIGCHLD, pair);
    say("child: %d", child_status(child));
    all_work("after clone like fork", pair, stream);
    child = clone(cloned, stack + (1 << 18), CLONE_VM | CLONE_VFORK | SIGCHLD, pair);
    say("child: %d", child_status(child));
    all_work("after clone like vfork", pair, stream);
    child = clone(cloned, stack + (1 << 18), CLONE_VM | SIGCHLD, stream);
    say("child: %d", child_status(child));
    all_work("after clone with the memory", pair, stream);
    child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) {
        int own[2];
        datagrams(own);
        exchange("in a child by the system call", own[0], own[1]);
        exchange("and what it inherited", pair[0], pair[1]);
        _exit(0);
    }
    say("child: %d", child_status(child));
    child = _Fork();
    if (child == 0) {
        int own[2];
        datagrams(own);
        exchange("in a child by _Fork", own[0], own[1]);
        _exit(0);
    }
    say("child: %d", child_status(child));
    all_work("after all of them", pair, stream);
    close(pair[0]), close(pair[1]), close(stream[0]), close(stream[1]);
}

static void spawns(void) {
    say("-- posix_spawn");
    int pair[2], stream[2];
    datagrams(pair);
    connected(stream);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, stream[1], 0);
    posix_spawn_file_actions_addclose(&actions, stream[0]);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    char *arguments[] = {(char *)self, "answer", NULL}, *empty[] = {NULL};
    for (int turn = 0; turn < 2; turn++) {
        pid_t child;
        say("spawn: %d", posix_spawn(&child, self, &actions, NULL, arguments, turn ? empty : environ));
        char text[100] = "";
        MUST(write(stream[0], "to fd 0", 7));
        wait_for(stream[0], POLLIN);
        say("%zd %s", read(stream[0], text, 100), text);
        say("child: %d", child_status(child));
    }
    all_work("after both", pair, stream);
    pid_t child;
    say("no such file: %s", strerrorname_np(posix_spawnp(&child, "no-such-program", NULL, NULL, arguments, environ)));
    char command[200];
    snprintf(command, sizeof command, "%s nothing", self);
    say("system: %d", system(command));
    FILE *stream_of = popen(command, "r");
    say("popen: %d", pclose(stream_of));
    close(pair[0]), close(pair[1]), close(stream[0]), close(stream[1]);
}

static void execs(void) {
    say("-- exec");
    char *arguments[] = {(char *)self, "nothing", NULL}, *empty[] = {NULL};
    for (int way = 0; way < 9; way++) {
        pid_t child = fork();
        if (child == 0) {
            int image;
            switch (way) {
            case 0: execv(self, arguments); break;
            case 1: execve(self, arguments, empty); break;
            case 2: execvp(self, arguments); break;
            case 3: execvpe(self, arguments, empty); break;
            case 4: execl(self, self, "nothing", NULL); break;
            case 5: execlp(self, self, "nothing", NULL); break;
            case 6: execle(self, self, "nothing", NULL, empty); break;
            case 7: image = open(self, O_RDONLY | O_CLOEXEC); fexecve(image, arguments, empty); break;
            case 8: image = open(self, O_PATH | O_CLOEXEC); execveat(image, "", arguments, empty, AT_EMPTY_PATH); break;
            }
            _exit(50 + way);
        }
        say("way %d: %d", way, child_status(child));
    }
    errno = 0;
    REPORT(execv("/nowhere", arguments));
    REPORT(fexecve(-1, arguments, empty));
}

int main(int count, char **arguments) {
    self = arguments[0];
    if (count > 1 && strcmp(arguments[1], "answer") == 0) {
        char text[100];
        ssize_t got = read(0, text, sizeof text);
        struct sockaddr_in name = {0};
        socklen_t length = sizeof name;
        char answer[200];
        int size = snprintf(answer, sizeof answer, "got %.*s from family %d", got > 0 ? (int)got : 0, text,
                            getpeername(0, (struct sockaddr *)&name, &length) == 0 ? name.sin_family : -errno);
        return write(0, answer, (size_t)size) == size ? 0 : 1;
    }
    if (count > 1) {
        /* A program that has the stack: its sockets work. */
        int pair[2];
        char text[10];
        datagrams(pair);
        return send(pair[0], "x", 1, 0) == 1 && wait_for(pair[1], POLLIN) && recv(pair[1], text, 10, 0) == 1 ? 0 : 1;
    }
    vforks();
    threads();
    clones();
    spawns();
    execs();
    return 0;
}
