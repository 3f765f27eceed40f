// What poll, select, epoll and SIGURG tell of urgent data and of errors of datagrams, and how these are taken.
#include "report.h"

#include <linux/errqueue.h>

static int events(int fd, int wanted) {
    struct pollfd entry = {.fd = fd, .events = wanted};
    return poll(&entry, 1, 2000) == 1 ? entry.revents : 0;
}

// In the order that Linux sees on a loopback, whatever the way of the bytes.
static int await(int fd, int wanted, int all) {
    for (int turn = 0; turn < 400; turn++) {
        struct pollfd entry = {.fd = fd, .events = wanted};
        if (poll(&entry, 1, 0) == 1 && (entry.revents & all) == all) return entry.revents;
        usleep(5000);
    }
    return -1;
}

static volatile int urgent;
static void on_urgent(int number) { urgent++; }

static void streams(void) {
    int pair[2];
    char text[64];
    // One that has been reset says nothing about what the others can.
    connected(pair);
    struct linger now = {1, 0};
    MUST(setsockopt(pair[0], SOL_SOCKET, SO_LINGER, &now, sizeof now));
    close(pair[0]);
    MUST(await(pair[1], 0, POLLHUP));
    events(pair[1], POLLPRI);
    close(pair[1]);
    connected(pair);
    say("-- urgent data alone");
    REPORT(events(pair[1], POLLPRI | POLLOUT));
    MUST(send(pair[0], "!", 1, MSG_OOB));
    REPORT(await(pair[1], POLLIN | POLLPRI, POLLPRI));
    fd_set readable, exceptional;
    FD_ZERO(&readable);
    FD_ZERO(&exceptional);
    FD_SET(pair[1], &readable);
    FD_SET(pair[1], &exceptional);
    REPORT(select(pair[1] + 1, &readable, NULL, &exceptional, NULL));
    REPORT(FD_ISSET(pair[1], &readable));
    REPORT(FD_ISSET(pair[1], &exceptional));
    REPORT(recv(pair[1], text, 64, MSG_OOB));
    REPORT(text[0]);
    REPORT(recv(pair[1], text, 64, MSG_OOB));
    REPORT(recv(pair[1], text, 64, MSG_DONTWAIT));

    say("-- between other data");
    MUST(send(pair[0], "abc", 3, 0));
    MUST(send(pair[0], "d", 1, MSG_OOB));
    MUST(send(pair[0], "ef", 2, 0));
    REPORT(await(pair[1], POLLIN | POLLPRI, POLLIN | POLLPRI));
    usleep(100000);
    REPORT(recv(pair[1], text, 64, 0));
    REPORT(sockatmark(pair[1]));
    REPORT(recv(pair[1], text, 64, MSG_OOB));
    REPORT(text[0]);
    REPORT(recv(pair[1], text, 64, 0));
    REPORT(text[0]);

    say("-- in line");
    int on = 1;
    MUST(setsockopt(pair[1], SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
    MUST(send(pair[0], "abc", 3, 0));
    MUST(send(pair[0], "d", 1, MSG_OOB));
    REPORT(await(pair[1], POLLIN | POLLPRI, POLLIN | POLLPRI));
    REPORT(recv(pair[1], text, 64, 0));
    REPORT(sockatmark(pair[1]));
    REPORT(recv(pair[1], text, 64, MSG_OOB));
    REPORT(recv(pair[1], text, 64, 0));
    REPORT(text[0]);

    say("-- a signal");
    connected(pair);
    signal(SIGURG, on_urgent);
    MUST(fcntl(pair[1], F_SETOWN, getpid()));
    MUST(send(pair[0], "!", 1, MSG_OOB));
    for (int turn = 0; turn < 400 && !urgent; turn++) usleep(5000);
    REPORT(urgent);

    say("-- epoll");
    connected(pair);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLPRI};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, pair[1], &event));
    MUST(send(pair[0], "!", 1, MSG_OOB));
    REPORT(epoll_wait(epoll, &event, 1, 2000));
    REPORT(event.events);
}

static void errors_and_queues(void) {
    say("-- errors of datagrams");
    int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1;
    struct sockaddr_in nobody = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    MUST(setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof on));
    char text[64], control[256];
    struct sockaddr_in name;
    struct iovec part = {text, sizeof text};
    struct msghdr message = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = control, .msg_controllen = sizeof control};
    REPORT(recvmsg(fd, &message, MSG_ERRQUEUE));
    MUST(sendto(fd, "nobody there", 12, 0, (struct sockaddr *)&nobody, sizeof nobody));
    REPORT(events(fd, POLLIN));
    message.msg_namelen = sizeof name;
    message.msg_controllen = sizeof control;
    REPORT(recvmsg(fd, &message, MSG_ERRQUEUE));
    REPORT(memcmp(text, "nobody there", 12));
    REPORT(message.msg_flags);
    REPORT(ntohs(name.sin_port));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    REPORT(header ? (long)header->cmsg_len : -1);
    if (header) {
        struct sock_extended_err *error = (struct sock_extended_err *)CMSG_DATA(header);
        REPORT(header->cmsg_level);
        REPORT(header->cmsg_type);
        REPORT(error->ee_errno);
        REPORT(error->ee_origin);
        REPORT(error->ee_type);
        REPORT(error->ee_code);
        REPORT(((struct sockaddr_in *)SO_EE_OFFENDER(error))->sin_addr.s_addr == nobody.sin_addr.s_addr);
    }
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    REPORT(poll(&entry, 1, 0));
    REPORT(recvmsg(fd, &message, MSG_ERRQUEUE));
    REPORT(recv(fd, text, 64, MSG_DONTWAIT));

    say("-- what waits when a datagram socket is connected, and when it is not any more");
    int server = socket(AF_INET, SOCK_DGRAM, 0), client = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, from;
    socklen_t length = sizeof at;
    MUST(bind(server, (struct sockaddr *)&at, sizeof at));
    MUST(getsockname(server, (struct sockaddr *)&at, &length));
    MUST(connect(client, (struct sockaddr *)&at, sizeof at));
    MUST(send(client, "one", 3, 0));
    MUST(send(client, "two!", 4, 0));
    REPORT(events(server, POLLIN));
    usleep(100000);
    length = sizeof from;
    REPORT(recvfrom(server, text, 64, MSG_PEEK, (struct sockaddr *)&from, &length));
    MUST(connect(server, (struct sockaddr *)&from, sizeof from));
    REPORT(recv(server, text, 64, 0));
    from.sin_family = AF_UNSPEC;
    MUST(connect(server, (struct sockaddr *)&from, sizeof from));
    from.sin_port = 0;
    REPORT(recvfrom(server, text, 64, MSG_DONTWAIT, (struct sockaddr *)&from, &length));
    REPORT(from.sin_port != 0);
}

int main(void) {
    streams();
    errors_and_queues();
    return 0;
}
