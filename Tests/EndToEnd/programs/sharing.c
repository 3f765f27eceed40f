/* Sockets, listeners and epoll instances that several processes use at once, and processes that allow themselves only a
 * few system calls. */
#include "report.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

static void epoll_instances(void) {
    say("-- epoll");
    int stream[2], second[2], set = epoll_create1(0), outer = epoll_create1(0);
    connected(stream);
    connected(second);
    struct epoll_event event = {EPOLLIN, {.fd = 1}}, got[4];
    pid_t child = fork();
    if (child == 0) {
        /* A child adds what its parent waits for. */
        MUST(epoll_ctl(set, EPOLL_CTL_ADD, stream[0], &event));
        _exit(0);
    }
    say("child: %d", child_status(child));
    MUST(write(stream[1], "x", 1));
    int count = epoll_wait(set, got, 4, 5000);
    say("events %d, data %d", count, got[0].data.fd);
    /* An instance in another one, and in poll. */
    event.data.fd = 2;
    MUST(epoll_ctl(outer, EPOLL_CTL_ADD, set, &event));
    count = epoll_wait(outer, got, 4, 5000);
    say("outer: events %d, data %d", count, got[0].data.fd);
    say("poll: %d", wait_for(outer, POLLIN) == POLLIN);
    char text[10];
    MUST(read(stream[0], text, 10));
    say("read: %d", epoll_wait(outer, got, 4, 0));
    /* A socket whose descriptor is closed here and open elsewhere is still watched. */
    event.data.fd = 3;
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, second[0], &event));
    if ((child = fork()) == 0) {
        struct pollfd none;
        poll(&none, 0, 400);
        _exit(0);
    }
    close(second[0]);
    MUST(write(second[1], "y", 1));
    count = epoll_wait(set, got, 4, 5000);
    say("closed here: events %d, data %d", count, got[0].data.fd);
    child_status(child);
    MUST(fcntl(stream[0], F_SETFL, 0));
    if ((child = fork()) == 0) _exit(fcntl(stream[0], F_SETFL, O_NONBLOCK) != 0);
    child_status(child);
    say("not waiting, as a child has set: %d", recv(stream[0], text, 1, 0) < 0 && errno == EAGAIN);
    close(set), close(outer), close(stream[0]), close(stream[1]), close(second[1]);
}

/* Four workers take 40 connections, each once; one worker is killed while it waits. */
static void workers(int with_epoll) {
    say("-- workers, %s", with_epoll ? "EPOLLEXCLUSIVE" : "accept");
    int listener = listening(), port = port_of(listener), told[2];
    MUST(pipe(told));
    if (with_epoll) fcntl(listener, F_SETFL, O_NONBLOCK);
    pid_t all[4];
    for (int worker = 0; worker < 4; worker++) {
        if ((all[worker] = fork()) != 0) continue;
        int set = epoll_create1(0);
        struct epoll_event event = {EPOLLIN | EPOLLEXCLUSIVE, {.fd = listener}};
        MUST(epoll_ctl(set, EPOLL_CTL_ADD, listener, &event));
        for (;;) {
            if (with_epoll && epoll_wait(set, &event, 1, -1) != 1) continue;
            int fd = accept(listener, NULL, NULL);
            if (fd < 0) continue;
            char text;
            MUST(read(fd, &text, 1));
            MUST(write(told[1], &text, 1));
            MUST(write(fd, "done", 4));
            close(fd);
        }
    }
    sleep_ms(100);
    kill(all[0], SIGKILL);
    child_status(all[0]);
    int seen[40] = {0}, answered = 0;
    for (int each = 0; each < 40; each++) {
        char number = (char)each, text[4];
        int fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        connect_to(fd, port);
        MUST(write(fd, &number, 1));
        answered += read_all(fd, text, 4) == 4;
        MUST(read(told[0], &number, 1));
        seen[(int)number]++;
        close(fd);
    }
    int once = 0;
    for (int each = 0; each < 40; each++) once += seen[each] == 1;
    say("answered %d, each once %d", answered, once);
    for (int worker = 1; worker < 4; worker++) {
        kill(all[worker], SIGKILL);
        child_status(all[worker]);
    }
    close(listener), close(told[0]), close(told[1]);
}

#define ALLOW(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* From here on every other system call kills. */
static void confine(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_recvfrom), ALLOW(SYS_sendto), ALLOW(SYS_recvmsg), ALLOW(SYS_sendmsg),
        ALLOW(SYS_readv), ALLOW(SYS_writev), ALLOW(SYS_ppoll), ALLOW(SYS_close), ALLOW(SYS_shutdown), ALLOW(SYS_exit_group),
#ifdef SYS_poll
        ALLOW(SYS_poll),
#endif
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void confined(void) {
    say("-- confined");
    int stream[2], other[2], third[2];
    connected(stream);
    connected(other);
    connected(third);
    struct linger time = {1, 5};
    MUST(setsockopt(stream[0], SOL_SOCKET, SO_LINGER, &time, sizeof time));
    pid_t child = fork();
    if (child == 0) {
        char text[20];
        close(stream[1]), close(other[1]), close(third[1]);
        confine();
        struct iovec part = {text, 5};
        struct pollfd wait = {stream[0], POLLIN, 0};
        int good = write(stream[0], "write", 5) == 5 && send(stream[0], "-send", 5, 0) == 5;
        good += poll(&wait, 1, 5000) == 1 && read(stream[0], text, 5) == 5 && recv(stream[0], text, 5, MSG_WAITALL) == 5;
        good += readv(stream[0], &part, 1) == 5 && shutdown(stream[0], SHUT_WR) == 0 && read(stream[0], text, 5) == 0;
        /* What has failed is told without asking anybody. */
        ssize_t reset = read(other[0], text, 5);
        good += reset < 0 && errno == ECONNRESET;
        good += close(stream[0]) == 0 && close(other[0]) == 0;
        close(third[0]);
        _exit(good);
    }
    close(stream[0]), close(other[0]), close(third[0]);
    char text[20];
    say("%zu %.10s", read_all(stream[1], text, 10), text);
    MUST(write(stream[1], "one-two-three--", 15));
    say("end: %zu", read_all(stream[1], text, 10));
    time.l_linger = 0;
    MUST(setsockopt(other[1], SOL_SOCKET, SO_LINGER, &time, sizeof time));
    close(other[1]), close(stream[1]);
    say("child: %d", child_status(child));
    say("third: %zd", read(third[1], text, 1));
    close(third[1]);
}

int main(void) {
    epoll_instances();
    workers(0);
    workers(1);
    confined();
}
