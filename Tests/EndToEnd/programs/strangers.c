/* Sockets that go by SCM_RIGHTS to a program which may not have the shim, and back. strangers OTHER: the program that gets
 * them, this one or the same linked statically. */
#include "report.h"

static void pass(int over, int fd) {
    char byte = 'x', control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    MUST(sendmsg(over, &message, 0));
}

static int take(int over) {
    int fd = -1;
    char byte, control[CMSG_SPACE(sizeof fd)];
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    MUST(recvmsg(over, &message, 0));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

/* The other program: reads to the end of what comes, answers, and gives the descriptor back, or dies with it. */
static int stranger(int over) {
    for (;;) {
        char order = 0;
        if (read(over, &order, 1) != 1) return 0;
        int fd = take(over);
        char text[100];
        if (order == 'k') raise(SIGKILL);
        if (order == 'e') {
            ssize_t got;
            struct pollfd wait = {fd, POLLIN, 0};
            poll(&wait, 1, 5000);
            while ((got = read(fd, text, sizeof text)) > 0) {
                for (ssize_t at = 0; at < got; at++) text[at] ^= 32;
                MUST(write(fd, text, (size_t)got));
                FILE *stream = fdopen(dup(fd), "w");
                fprintf(stream, "%zd", got);
                fclose(stream);
                if (got == 4) break;
            }
        }
        pass(over, fd);
        close(fd);
    }
}

static void order(int over, char what, int fd) {
    MUST(write(over, &what, 1));
    pass(over, fd);
}

int main(int count, char **arguments) {
    if (count == 3) return stranger(atoi(arguments[2]));
    int over[2], pair[2];
    char text[100], number[10];
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, over));
    pid_t child = fork();
    if (child == 0) {
        fcntl(over[1], F_SETFD, 0);
        sprintf(number, "%d", over[1]);
        execl(arguments[1], arguments[1], arguments[1], number, NULL);
        _exit(1);
    }
    close(over[1]);

    // A connection that only the stranger holds for a while.
    connected(pair);
    int port = port_of(pair[1]);
    order(over[0], 'e', pair[1]);
    close(pair[1]);
    MUST(write(pair[0], "ABCD", 4));
    say("answer: %zu %.5s", read_all(pair[0], text, 5), text);
    int back = take(over[0]);
    say("the same port: %d", port_of(back) == port);
    MUST(write(back, "back", 4));
    say("back: %zu %.4s", read_all(pair[0], text, 4), text);
    int on = 1;
    REPORT(setsockopt(back, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    REPORT(shutdown(back, SHUT_WR));
    REPORT(read(pair[0], text, 1));
    close(back), close(pair[0]);

    // A listener and a datagram socket go and come back.
    int listener = listening(), datagram = bound(SOCK_DGRAM);
    port = port_of(listener);
    order(over[0], 'r', listener);
    close(listener);
    listener = take(over[0]);
    pair[0] = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    connect_to(pair[0], port);
    pair[1] = (int)MUST(accept(listener, NULL, NULL));
    MUST(write(pair[1], "accepted", 8));
    say("listener: %zu %.8s", read_all(pair[0], text, 8), text);
    struct sockaddr_in name = loopback(port_of(datagram));
    MUST(sendto(datagram, "waits", 5, 0, (struct sockaddr *)&name, sizeof name));
    order(over[0], 'r', datagram);
    close(datagram);
    datagram = take(over[0]);
    wait_for(datagram, POLLIN);
    struct sockaddr_in from = {0};
    socklen_t length = sizeof from;
    ssize_t got = recvfrom(datagram, text, sizeof text, 0, (struct sockaddr *)&from, &length);
    say("datagram: %zd, from itself %d", got, from.sin_port == name.sin_port);

    // The only holder dies, with the descriptor in hand and with it still in a message.
    order(over[0], 'k', pair[1]);
    close(pair[1]);
    say("killed: %d", child_status(child));
    wait_for(pair[0], POLLIN);
    say("end: %zd", read(pair[0], text, 1));
    close(pair[0]);

    connected(pair);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, over));
    MUST(write(pair[0], "x", 1));
    MUST(wait_for(pair[1], POLLIN));
    pass(over[0], pair[1]);
    close(pair[1]);
    close(over[1]), close(over[0]);
    // Nobody has read the byte.
    wait_for(pair[0], POLLIN);
    REPORT(read(pair[0], text, 1));
}
