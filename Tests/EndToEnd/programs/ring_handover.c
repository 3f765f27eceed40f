/* A stream with bulk data on it is given to code that knows nothing of rings, in mid-stream: stdio, other programs, other
   processes. Every byte comes, once. ring_handover TEST [OTHER PROGRAM]; ring_handover stranger FD OUT IN COUNT */
#include "ring_peer.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

static const char *other;
extern char **environ;

/* Another program: it writes that much, and reads that much, from where the one before it has stopped. */
static int be_stranger(char **arguments) {
    int fd = atoi(arguments[0]);
    uint64_t count = strtoull(arguments[3], NULL, 10);
    if (fd < 0) {
        // It comes as SCM_RIGHTS by number 0.
        char byte, control[CMSG_SPACE(sizeof fd)];
        struct iovec part = {&byte, 1};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        MUST(recvmsg(0, &message, 0));
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    }
    make_sequence();
    send_sequence(fd, strtoull(arguments[1], NULL, 10), count, BIG);
    receive_sequence("stranger", fd, strtoull(arguments[2], NULL, 10), count, 3000);
    return 0;
}

#define STRANGERS_SHARE 300000ul

/* What the other program is called with, and what the peer does meanwhile. */
static char **prepare(int fd, char text[4][30]) {
    static char *arguments[7];
    snprintf(text[0], 30, "%d", fd);
    snprintf(text[1], 30, "%llu", (unsigned long long)out);
    snprintf(text[2], 30, "%llu", (unsigned long long)(BACK + in));
    snprintf(text[3], 30, "%lu", STRANGERS_SHARE);
    char *list[] = {(char *)other, "stranger", text[0], text[1], text[2], text[3], NULL};
    memcpy(arguments, list, sizeof list);
    ask('r', SOME + STRANGERS_SHARE, BIG);
    ask('s', STRANGERS_SHARE - SOME, BIG);
    return arguments;
}

static void settle(int status) {
    if (status != 0) {
        say("the other program ended with %d", status);
        _exit(99);
    }
    answer(), answer();
    out += STRANGERS_SHARE, in += STRANGERS_SHARE;
}

static void finish(void) {
    stage("over");
    bulk(near);
    load(near);
    unload(near);
    MUST(close(near));
    ask('e', 1, 0);
    if (answer() != 0) say("no end");
    part();
}

/* `start` starts the other program, and returns what it ended with. The first time the stream has bulk data on it; then bulk
   data come again before it. */
static void given_by(int (*start)(char **arguments), int fd) {
    char text[4][30];
    meet_in_bulk();
    for (int turn = 0; turn < 2; turn++) {
        load(near);
        settle(start(prepare(fd < 0 ? near : fd, text)));
        bulk(near);
    }
    finish();
}

static int by_fork(char **arguments) {
    pid_t child = fork();
    if (child == 0) execv(other, arguments), _exit(98);
    return child_status(child);
}
static void exec_after_fork(void) { given_by(by_fork, -1); }

static int by_vfork(char **arguments) {
    pid_t child = vfork();
    if (child == 0) execv(other, arguments), _exit(98);
    return child_status(child);
}
static void exec_after_vfork(void) { given_by(by_vfork, -1); }

/* As a server of inetd's kind does it: as number 0, the other numbers closed on exec. */
static int by_fork_as_0(char **arguments) {
    fcntl(near, F_SETFD, FD_CLOEXEC);
    pid_t child = fork();
    if (child == 0) {
        dup2(near, 0);
        execv(other, arguments);
        _exit(98);
    }
    return child_status(child);
}
static void exec_as_0(void) { given_by(by_fork_as_0, 0); }

static int by_vfork_as_0(char **arguments) {
    fcntl(near, F_SETFD, FD_CLOEXEC);
    pid_t child = vfork();
    if (child == 0) {
        dup2(near, 0);
        execv(other, arguments);
        _exit(98);
    }
    return child_status(child);
}
static void vfork_as_0(void) { given_by(by_vfork_as_0, 0); }

static int by_spawn(char **arguments) {
    pid_t child;
    MUST(-posix_spawn(&child, other, NULL, NULL, arguments, environ));
    return child_status(child);
}
static void spawned(void) { given_by(by_spawn, -1); }

static int by_spawn_as_0(char **arguments) {
    pid_t child;
    posix_spawn_file_actions_t actions;
    fcntl(near, F_SETFD, FD_CLOEXEC);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, near, 0);
    MUST(-posix_spawn(&child, other, &actions, NULL, arguments, environ));
    return child_status(child);
}
static void spawned_as_0(void) { given_by(by_spawn_as_0, 0); }

/* dup2 of a number to itself takes its FD_CLOEXEC away, in posix_spawn. */
static int by_spawn_as_itself(char **arguments) {
    pid_t child;
    posix_spawn_file_actions_t actions;
    fcntl(near, F_SETFD, FD_CLOEXEC);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, near, near);
    MUST(-posix_spawn(&child, other, &actions, NULL, arguments, environ));
    return child_status(child);
}
static void spawned_as_itself(void) { given_by(by_spawn_as_itself, -1); }

static const char *command(char **arguments) {
    static char text[4096];
    snprintf(text, sizeof text, "exec %s %s %s %s %s %s", other, arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
    return text;
}
static int by_system(char **arguments) { return system(command(arguments)); }
static void with_system(void) { given_by(by_system, -1); }
static int by_popen(char **arguments) { return pclose(popen(command(arguments), "w")); }
static void with_popen(void) { given_by(by_popen, -1); }

/* The program itself becomes another, with what it has not read. */
static void exec_itself(void) {
    char text[4][30];
    meet_in_bulk();
    load(near);
    fcntl(to_peer, F_SETFD, 0);
    fcntl(from_peer, F_SETFD, 0);
    say("done");
    execv(other, prepare(near, text));
    _exit(98);
}

static void rights(void) {
    char text[4][30];
    meet_in_bulk();
    for (int turn = 0; turn < 2; turn++) {
        int pair[2];
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
        load(near);
        char **arguments = prepare(-1, text), byte = 'x', control[CMSG_SPACE(sizeof near)] = {0};
        fcntl(near, F_SETFD, FD_CLOEXEC);
        pid_t child = fork();
        if (child == 0) {
            dup2(pair[1], 0);
            execv(other, arguments);
            _exit(98);
        }
        struct iovec part = {&byte, 1};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof near);
        memcpy(CMSG_DATA(header), &near, sizeof near);
        MUST(sendmsg(pair[0], &message, 0));
        settle(child_status(child));
        close(pair[0]), close(pair[1]);
        bulk(near);
    }
    finish();
}

static void by_stdio(void) {
    static char bytes[SOME];
    meet_in_bulk();
    load(near);
    FILE *stream = fdopen(near, "r+");
    setvbuf(stream, NULL, _IOFBF, 7000);
    if (fread(bytes, 1, SOME, stream) != SOME || differs("fread", (unsigned char *)bytes, BACK + in, SOME)) _exit(99);
    in += SOME;
    stage("over");
    if (fwrite(bytes_at(out), 1, SOME, stream) != SOME || fflush(stream) != 0) _exit(99);
    out += SOME;
    ask('r', 2 * SOME, BIG);
    answer();
    for (int turn = 0; turn < 3; turn++) {
        // Through the descriptor and the stream by turns.
        bulk(near);
        ask('s', SOME, BIG);
        if (fread(bytes, 1, SOME, stream) != SOME || differs("fread", (unsigned char *)bytes, BACK + in, SOME)) _exit(99);
        answer();
        in += SOME;
    }
    load(near);
    unload(near);
    fclose(stream);
    ask('e', 1, 0);
    if (answer() != 0) say("no end");
    part();
}

static void by_dprintf(void) {
    meet_in_bulk();
    for (int turn = 0; turn < 3; turn++) {
        load(near);
        uint64_t end = out + 20000;
        while (out < end) {
            const char *text = (const char *)bytes_at(out);
            size_t length = strnlen(text, end - out);
            if (length > 0) MUST(dprintf(near, "%.*s", (int)length, text));
            else MUST(dprintf(near, "%c", 0)), length = 1;
            out += length;
        }
        out = send_sequence(near, out, SOME, BIG);
        ask('r', 20000 + SOME, BIG);
        answer();
        unload(near);
        bulk(near);
    }
    finish();
}

#define ALLOW(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* Only what a program needs that reads, writes and waits: any other call ends it. */
static void confined(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_recvfrom), ALLOW(SYS_sendto), ALLOW(SYS_readv), ALLOW(SYS_writev),
        ALLOW(SYS_ppoll), ALLOW(SYS_close), ALLOW(SYS_exit_group), ALLOW(SYS_wait4),
#ifdef SYS_poll
        ALLOW(SYS_poll),
#endif
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    meet_in_bulk();
    load(near);
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    stage("over");
    unload(near);
    bulk(near);
    load(near);
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    unload(near);
    bulk(near);
    bulk(near);
    load(near);
    unload(near);
    MUST(close(near));
    ask('e', 1, 0);
    if (answer() != 0) say("no end");
    part();
}

/* Parent and child by turns, each with all that is to be done. `before`: fork first, bulk later. */
static void by_turns(int before) {
    int baton[2][2];
    meet();
    MUST(pipe(baton[0]));
    MUST(pipe(baton[1]));
    if (!before) {
        bulk(near);
        stage("promoted");
        load(near);
        unload(near);
        load(near);
    }
    pid_t child = fork();
    int mine = child == 0;
    uint64_t hand[2] = {out, in};
    for (int turn = 0; turn < 24; turn++) {
        if (turn % 2 != mine) continue;
        if (turn > 0 && read_all(baton[mine][0], hand, sizeof hand) != sizeof hand) _exit(97);
        out = hand[0], in = hand[1];
        if (turn == 0 && !before) unload(near);
        if (turn % 3 == 0) bulk(near);
        give(near, SOME, 1000);
        take(near, SOME, 1000);
        bulk(near);
        hand[0] = out, hand[1] = in;
        MUST(write(baton[!mine][1], hand, sizeof hand));
    }
    if (child == 0) _exit(0);
    if (child_status(child) != 0) _exit(99);
    if (read_all(baton[0][0], hand, sizeof hand) != sizeof hand) _exit(97);
    out = hand[0], in = hand[1];
    finish();
}
static void fork_after(void) { by_turns(0); }
static void fork_before(void) { by_turns(1); }

/* The usual pair of processes: one reads, the other writes, at the same time. */
static void fork_apart(void) {
    meet_in_bulk();
    load(near);
    pid_t child = fork();
    if (child == 0) {
        receive_sequence("child", near, BACK + in, SOME + 4 * BULK, BIG);
        _exit(0);
    }
    ask('r', SOME + BULK, BIG);
    ask('s', 4 * BULK, BIG);
    ask('r', 3 * BULK, BIG);
    out = send_sequence(near, out, 4 * BULK, BIG);
    answer(), answer(), answer();
    if (child_status(child) != 0) _exit(99);
    in += SOME + 4 * BULK;
    finish();
}

/* Several numbers for one socket, that come and go. */
static void duplicates(void) {
    meet_in_bulk();
    load(near);
    int second = (int)MUST(dup(near));
    unload(second);
    bulk(second);
    bulk(near);
    load(near);
    MUST(close(near));
    unload(second);
    bulk(second);
    load(second);
    MUST(dup2(second, 200));
    MUST(close(second));
    unload(200);
    bulk(200);
    near = (int)MUST(fcntl(200, F_DUPFD, 300));
    load(near);
    MUST(close(200));
    unload(near);
    bulk(near);
    // Something else under the old number, and the socket under the number of something else.
    int pipes[2];
    MUST(pipe(pipes));
    int copy = (int)MUST(dup(near));
    MUST(dup2(pipes[1], near));
    MUST(write(near, "pipe", 4));
    char text[8];
    if (read(pipes[0], text, 8) != 4) say("the pipe has other bytes");
    load(copy);
    unload(copy);
    MUST(dup2(copy, pipes[0]));
    bulk(pipes[0]);
    MUST(close(copy));
    near = pipes[0];
    finish();
}

/* Two numbers from the beginning, the bulk comes by one of them: then both, by turns. */
static void duplicate_before(void) {
    static unsigned char bytes[BIG];
    struct rng rng = {3};
    meet();
    int numbers[2] = {near, (int)MUST(dup(near))};
    bulk(near);
    stage("promoted");
    for (int turn = 0; turn < 20; turn++) {
        ask('r', SOME, BIG);
        for (uint64_t end = out + SOME; out < end;) {
            size_t count = 1 + below(&rng, one_in(&rng, 2) ? 300 : 20000);
            out += (uint64_t)MUST(write(numbers[below(&rng, 2)], bytes_at(out), count < end - out ? count : end - out));
        }
        answer();
        ask('s', SOME, BIG);
        for (uint64_t end = in + SOME; in < end;) {
            size_t count = 1 + below(&rng, one_in(&rng, 2) ? 300 : 20000);
            ssize_t got = MUST(read(numbers[below(&rng, 2)], bytes, count < end - in ? count : end - in));
            if (differs("here", bytes, BACK + in, (size_t)got)) _exit(99);
            in += (uint64_t)got;
        }
        answer();
        bulk(numbers[turn % 2]);
    }
    // One of them goes to stdio: the other must not bring the ring back.
    FILE *stream = fdopen(numbers[1], "r");
    bulk(numbers[0]);
    ask('s', SOME, BIG);
    static unsigned char all[SOME];
    if (fread(all, 1, SOME, stream) != SOME || differs("fread", all, BACK + in, SOME)) _exit(99);
    in += SOME;
    answer();
    fclose(stream);
    finish();
}

/* The last descriptor is replaced while the peer has not read. */
static void replaced(void) {
    meet_in_bulk();
    uint64_t left = fill(near, out, BIG);
    int null = open("/dev/null", O_RDWR);
    MUST(dup2(null, near));
    MUST(write(near, "nothing", 7));
    stage("over");
    ask('r', left, BIG);
    answer();
    ask('e', 1, 0);
    if (answer() != 0) say("no end");
    part();
}

static const struct test tests[] = {
    {"exec", exec_after_fork}, {"vfork", exec_after_vfork}, {"exec-0", exec_as_0}, {"vfork-0", vfork_as_0},
    {"spawn", spawned}, {"spawn-0", spawned_as_0}, {"spawn-itself", spawned_as_itself}, {"system", with_system},
    {"popen", with_popen}, {"exec-itself", exec_itself}, {"rights", rights}, {"stdio", by_stdio}, {"dprintf", by_dprintf},
    {"confined", confined}, {"fork-after", fork_after}, {"fork-before", fork_before}, {"fork-apart", fork_apart},
    {"dup", duplicates}, {"dup-before", duplicate_before}, {"replaced", replaced}, {NULL, NULL}};

int main(int count, char **arguments) {
    other = count > 2 ? arguments[2] : arguments[0];
    if (strcmp(arguments[1], "stranger") == 0) return be_stranger(arguments + 2);
    return run_named(tests, arguments[1]);
}
