// A client that is busy until it is killed: restless ADDRESS SEED. What kind it is depends on the seed: plain, forked,
// threaded, driven by epoll, passing sockets to another process, a server with workers, datagrams, executing itself, moving
// so much that it is given rings (with a small ALPS_RING_AFTER).
// On port 7000 of ADDRESS there is an echo. Whatever fails is tried again.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_in echo;
static char *self, *address;
static unsigned start;

static unsigned draw(unsigned *state, unsigned bound) { return rand_r(state) % bound; }

static void rest(void) { usleep(5000); }

static int stream(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) {
        rest();
        return -1;
    }
    if (connect(fd, (struct sockaddr *)&echo, sizeof echo) == 0) return fd;
    close(fd);
    rest();
    return -1;
}

// Sends and reads back, at most `rounds` times.
static void talk(int fd, int rounds, unsigned *state) {
    static __thread char data[30000], back[30000];
    while (rounds-- > 0) {
        int length = 1 + draw(state, sizeof data), sent = 0, got = 0;
        memset(data, rounds, length);
        while (got < length) {
            struct pollfd wait = {fd, POLLIN | (sent < length ? POLLOUT : 0), 0};
            if (poll(&wait, 1, 10000) <= 0) return;
            ssize_t n;
            if (sent < length && wait.revents & POLLOUT) {
                n = send(fd, data + sent, length - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
                if (n < 0 && errno != EAGAIN) return;
                if (n > 0) sent += n;
            }
            if (wait.revents & (POLLIN | POLLHUP | POLLERR)) {
                n = recv(fd, back, length - got, MSG_DONTWAIT);
                if (n == 0 || n < 0 && errno != EAGAIN) return;
                if (n > 0) got += n;
            }
        }
    }
}

static void plain(unsigned *state) {
    for (;;) {
        int fd = stream();
        if (fd < 0) continue;
        struct linger on = {1, draw(state, 2)};
        if (draw(state, 4) == 0) setsockopt(fd, SOL_SOCKET, SO_LINGER, &on, sizeof on);
        talk(fd, draw(state, 5), state);
        if (draw(state, 2)) shutdown(fd, SHUT_WR);
        close(fd);
    }
}

// Several processes use one socket, and end at different times.
static void forked(unsigned *state) {
    for (;;) {
        int fd = stream();
        if (fd < 0) continue;
        for (int i = 0; i < 3; i++) {
            if (fork() == 0) {
                unsigned mine = *state + i;
                char data[1000] = {0};
                for (unsigned n = draw(&mine, 200); n > 0; n--) {
                    if (send(fd, data, sizeof data, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN) break;
                    recv(fd, data, sizeof data, MSG_DONTWAIT);
                }
                _exit(0);
            }
        }
        draw(state, 9);
        if (draw(state, 2)) close(fd), fd = -1;
        while (wait(NULL) > 0) {
        }
        if (fd >= 0) close(fd);
    }
}

static void *talker(void *argument) {
    unsigned state = (unsigned)(uintptr_t)argument;
    for (;;) {
        int fd = stream();
        if (fd < 0) continue;
        talk(fd, draw(&state, 20), &state);
        close(fd);
    }
    return NULL;
}

static void threaded(unsigned *state) {
    pthread_t thread;
    for (uintptr_t i = 0; i < 4; i++) pthread_create(&thread, NULL, talker, (void *)(*state + i));
    for (;;) {
        // What a thread is about to use, another one takes away.
        usleep(draw(state, 20000));
        close(3 + draw(state, 6));
    }
}

static void driven(unsigned *state) {
    int epoll = epoll_create1(0), open = 0;
    char data[65536] = {0};
    for (;;) {
        while (open < 8) {
            int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            if (fd < 0) break;
            connect(fd, (struct sockaddr *)&echo, sizeof echo);
            struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.fd = fd}};
            epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
            open++;
        }
        struct epoll_event events[8];
        int count = epoll_wait(epoll, events, 8, 100);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (events[i].events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP) || draw(state, 50) == 0) {
                int error;
                socklen_t length = sizeof error;
                getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
                close(fd);
                open--;
                continue;
            }
            if (events[i].events & EPOLLIN) while (recv(fd, data, sizeof data, 0) > 0) {
            }
            if (events[i].events & EPOLLOUT) send(fd, data, 1 + draw(state, 5000), MSG_NOSIGNAL);
        }
    }
}

static int pass(int channel, int fd) {
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    return sendmsg(channel, &message, MSG_NOSIGNAL) == 1;
}

static int take(int channel) {
    int fd = -1;
    char byte, control[CMSG_SPACE(sizeof fd)];
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(channel, &message, 0) != 1) exit(0);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header) memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

static void passing(unsigned *state) {
    int ends[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ends[0]);
        for (;;) {
            int fd = take(ends[1]);
            talk(fd, draw(state, 3), state);
            close(fd);
        }
    }
    close(ends[1]);
    for (;;) {
        int fd = stream();
        if (fd < 0) continue;
        if (draw(state, 2)) talk(fd, 1, state);
        if (!pass(ends[0], fd)) exit(0);
        close(fd);
    }
}

// Workers that share a listener, some of which die; and their clients.
static void server(unsigned *state) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&name, length) || listen(listener, 8)) exit(1);
    getsockname(listener, (struct sockaddr *)&name, &length);
    for (int i = 0, workers = 0;; i++) {
        int child = workers < 4 ? fork() : -1;
        if (child > 0) workers++;
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            unsigned mine = *state + i;
            for (unsigned n = draw(&mine, 30); n > 0; n--) {
                char data[4096];
                int fd = accept(listener, NULL, NULL);
                ssize_t got;
                if (fd < 0) break;
                while ((got = recv(fd, data, sizeof data, 0)) > 0) send(fd, data, got, MSG_NOSIGNAL);
                if (draw(&mine, 8) == 0) raise(SIGKILL);
                close(fd);
            }
            _exit(0);
        }
        for (unsigned n = 1 + draw(state, 10); n > 0; n--) {
            int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            if (fd < 0) break;
            connect(fd, (struct sockaddr *)&name, sizeof name);
            struct pollfd wait = {fd, POLLOUT, 0};
            poll(&wait, 1, 100);
            send(fd, "data", 4, MSG_NOSIGNAL);
            close(fd);
        }
        while (waitpid(-1, NULL, WNOHANG) > 0) workers--;
    }
}

static void datagrams(unsigned *state) {
    for (;;) {
        int one = socket(AF_INET, SOCK_DGRAM, 0), two = socket(AF_INET, SOCK_DGRAM, 0);
        struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, none = {0};
        socklen_t length = sizeof name;
        char data[3000] = {0};
        bind(one, (struct sockaddr *)&name, sizeof name);
        getsockname(one, (struct sockaddr *)&name, &length);
        for (unsigned n = draw(state, 100); n > 0; n--) {
            switch (draw(state, 6)) {
            case 0: connect(two, (struct sockaddr *)&name, sizeof name); break;
            case 1: connect(two, (struct sockaddr *)&none, sizeof none); break;
            case 2: send(two, data, draw(state, sizeof data), MSG_DONTWAIT); break;
            case 3: sendto(two, data, draw(state, sizeof data), MSG_DONTWAIT, (struct sockaddr *)&name, sizeof name); break;
            case 4: sendto(two, data, 10, MSG_DONTWAIT, (struct sockaddr *)&echo, sizeof echo); break;
            default: recv(one, data, sizeof data, MSG_DONTWAIT);
            }
        }
        close(one);
        close(two);
    }
}

static void executing(unsigned *state) {
    for (;;) {
        int fd = stream();
        if (fd < 0) continue;
        int child = draw(state, 2) ? fork() : vfork();
        if (child == 0) {
            char number[16], seed[16];
            sprintf(number, "%d", fd);
            sprintf(seed, "%u", start);
            execl(self, self, address, seed, number, NULL);
            _exit(1);
        }
        if (draw(state, 2)) talk(fd, 1, state);
        close(fd);
        while (wait(NULL) > 0) {
        }
    }
}

// Alone, or sharing a socket that has rings already.
static void bulk(unsigned *state) {
    for (;;) {
        int fd = stream();
        if (fd < 0) continue;
        talk(fd, 20, state);
        int child = draw(state, 2) ? fork() : -1;
        talk(fd, child == 0 ? 20 : 100, state);
        if (child == 0) _exit(0);
        close(fd);
        if (child > 0) waitpid(child, NULL, 0);
    }
}

int main(int count, char **arguments) {
    static void (*const kinds[])(unsigned *) = {plain, forked, threaded, driven, passing, server, datagrams, executing, bulk};
    self = arguments[0];
    address = arguments[1];
    start = (unsigned)atoi(arguments[2]);
    unsigned state = start;
    signal(SIGPIPE, SIG_IGN);
    echo = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(7000)};
    inet_pton(AF_INET, address, &echo.sin_addr);
    if (count > 3) {
        talk(atoi(arguments[3]), 2, &state);
        return 0;
    }
    kinds[start % (sizeof kinds / sizeof *kinds)](&state);
}
