/* Numbers of descriptors: duplicates, reuse after every way of closing, passing to another process, exec. */
#include "raw.h"
#include "report.h"

static const char *kind(int fd) {
    static char text[100];
    struct sockaddr_storage name;
    socklen_t length = sizeof name, size = 4;
    int type = 0;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) return strerrorname_np(errno);
    if (getsockname(fd, (struct sockaddr *)&name, &length) != 0) return strerrorname_np(errno);
    snprintf(text, sizeof text, "family %d type %d", name.ss_family, type);
    return text;
}

/* Bytes or a datagram from `from` arrive at `to`. */
static void exchange(const char *label, int from, int to) {
    char text[100] = "";
    ssize_t sent = write(from, "exchange", 8);
    if (sent != 8) return report(label, sent);
    wait_for(to, POLLIN);
    ssize_t got = read(to, text, sizeof text);
    say("%s: %zd %.*s", label, got, got > 0 ? (int)got : 0, text);
}

static void duplicates(void) {
    int pair[2], stream[2];
    say("-- duplicates");
    datagrams(pair);
    connected(stream);
    int copy = dup(pair[1]);
    exchange("dup", pair[0], copy);
    REPORT(dup2(pair[1], 100));
    exchange("dup2", pair[0], 100);
    REPORT(dup2(pair[1], pair[1]) == pair[1]);
    REPORT(dup3(pair[1], 101, O_CLOEXEC));
    REPORT(fcntl(101, F_GETFD));
    exchange("dup3", pair[0], 101);
    REPORT(dup3(pair[1], pair[1], 0));
    REPORT(fcntl(pair[1], F_DUPFD, 102));
    exchange("F_DUPFD", pair[0], 102);
    REPORT(fcntl(pair[1], F_DUPFD_CLOEXEC, 103));
    REPORT(fcntl(103, F_GETFD));
    exchange("F_DUPFD_CLOEXEC", pair[0], 103);
    REPORT(fcntl(stream[1], F_DUPFD, 104));
    exchange("stream", stream[0], 104);
    exchange("stream back", 104, stream[0]);
    REPORT(dup2(stream[0], pair[0]) == pair[0]);
    exchange("a stream where a datagram socket was", pair[0], 104);
    REPORT(dup2(999, 105));
    REPORT(dup(-1));
    REPORT(close(pair[1]));
    REPORT(close(copy));
    say("still there: %s", kind(100));
    REPORT(fcntl(104, F_SETFL, O_NONBLOCK));
    say("one description: %d", (fcntl(stream[1], F_GETFL) & O_NONBLOCK) != 0);
    REPORT(shutdown(stream[0], SHUT_WR));
    wait_for(104, POLLIN);
    char byte;
    REPORT(read(104, &byte, 1));
    for (int fd = 100; fd < 106; fd++) close(fd);
    close(stream[0]);
    REPORT(read(stream[1], &byte, 1));
}

static void reuse(void) {
    say("-- reuse");
    char text[100] = "";
    int tube[2];

    int fd = bound(SOCK_DGRAM);
    REPORT(close_range((unsigned)fd, (unsigned)fd, 0));
    say("closed: %s", kind(fd));
    MUST(pipe(tube));
    say("same number: %d", tube[0] == fd);
    MUST(write(tube[1], "tube", 4));
    say("pipe: %zd %s", read(tube[0], text, 100), text);
    close(tube[0]), close(tube[1]);

    fd = bound(SOCK_DGRAM);
    say("raw close: %ld", raw(SYS_close, fd, 0, 0));
    MUST(pipe(tube));
    say("same number: %d", tube[0] == fd);
    MUST(write(tube[1], "tube", 4));
    say("pipe: %zd %.4s", read(tube[0], text, 100), text);
    close(tube[0]), close(tube[1]);

    fd = bound(SOCK_DGRAM);
    raw(SYS_close, fd, 0, 0);
    int raw_pair[2];
    say("raw pipe: %ld", raw(SYS_pipe2, (long)raw_pair, 0, 0));
    say("same number: %d", raw_pair[0] == fd);
    MUST(write(raw_pair[1], "tube", 4));
    say("pipe: %zd %.4s", read(raw_pair[0], text, 100), text);
    struct iovec part = {text, 100};
    MUST(write(raw_pair[1], "again", 5));
    say("pipe: %zd %.5s", readv(raw_pair[0], &part, 1), text);
    close(raw_pair[0]), close(raw_pair[1]);

    fd = bound(SOCK_DGRAM);
    int second = bound(SOCK_DGRAM);
    raw(SYS_close, fd, 0, 0), raw(SYS_close, second, 0, 0);
    raw(SYS_pipe2, (long)raw_pair, 0, 0);
    say("same numbers: %d", raw_pair[0] == fd && raw_pair[1] == second);
    say("write: %zd", write(raw_pair[1], "tube", 4));
    say("pipe: %zd %.4s", read(raw_pair[0], text, 100), text);
    close(raw_pair[0]), close(raw_pair[1]);

    fd = bound(SOCK_DGRAM);
    raw(SYS_close, fd, 0, 0);
    raw(SYS_pipe2, (long)raw_pair, 0, 0);
    REPORT(send(fd, "x", 1, 0));
    REPORT(recv(fd, text, 1, MSG_DONTWAIT));
    close(raw_pair[0]), close(raw_pair[1]);

    fd = bound(SOCK_DGRAM);
    raw(SYS_close, fd, 0, 0);
    fd = (int)MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    say("unix: %s", kind(fd));
    close(fd);

    fd = bound(SOCK_DGRAM);
    syscall(SYS_close, fd);
    int unix_pair[2];
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, unix_pair));
    say("same number: %d", unix_pair[0] == fd);
    exchange("unix pair", unix_pair[0], unix_pair[1]);
    exchange("unix pair", unix_pair[1], unix_pair[0]);
    close(unix_pair[0]), close(unix_pair[1]);

    FILE *stream = fdopen(bound(SOCK_DGRAM), "r");
    fd = fileno(stream);
    REPORT(fclose(stream));
    say("closed: %s", kind(fd));
    int pair[2];
    datagrams(pair);
    say("same number: %d", pair[1] == fd);
    exchange("datagrams", pair[0], pair[1]);
    close(pair[0]), close(pair[1]);

    stream = fdopen((int)MUST(socket(AF_INET, SOCK_STREAM, 0)), "r");
    fd = fileno(stream);
    fclose(stream);
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, unix_pair));
    say("same number: %d", unix_pair[0] == fd);
    exchange("unix pair", unix_pair[0], unix_pair[1]);
    say("peer: %s", kind(unix_pair[0]));
    close(unix_pair[0]), close(unix_pair[1]);

    fd = (int)MUST(open("/dev/null", O_RDWR));
    raw(SYS_close, fd, 0, 0);
    int socket_again = bound(SOCK_DGRAM);
    say("same number: %d, %s", socket_again == fd, kind(socket_again));
    raw(SYS_close, socket_again, 0, 0);
    say("closed: %s", kind(socket_again));
    REPORT(close(socket_again));
    REPORT(send(socket_again, "x", 1, 0));
    REPORT(recv(socket_again, text, 1, 0));
}

static void closing_all(void) {
    say("-- close_range and closefrom");
    int low = fcntl(bound(SOCK_DGRAM), F_DUPFD, 200), high = fcntl(bound(SOCK_DGRAM), F_DUPFD, 210);
    REPORT(close_range(200, 205, CLOSE_RANGE_CLOEXEC));
    REPORT(fcntl(low, F_GETFD));
    REPORT(fcntl(high, F_GETFD));
    REPORT(close_range(205, 200, 0));
    REPORT(close_range(200, 205, 64));
    REPORT(close_range(200, ~0u, 0));
    say("%s", kind(low));
    say("%s", kind(high));
    closefrom(3);
    say("%s", kind(3));
    int pair[2];
    datagrams(pair);
    say("numbers %d %d", pair[0], pair[1]);
    exchange("a new pair", pair[0], pair[1]);
    for (int fd = 3; fd < 2000; fd++) close(fd);
    datagrams(pair);
    exchange("another", pair[0], pair[1]);
    close(pair[0]), close(pair[1]);
}

static void pass(int over, int fd) {
    char byte = 'd', control[CMSG_SPACE(sizeof fd)] = "";
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    MUST(sendmsg(over, &message, 0));
}

static int take(int over) {
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {&byte, 1};
    struct mmsghdr message = {.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control}};
    MUST(recvmmsg(over, &message, 1, 0, NULL));
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message.msg_hdr)), sizeof fd);
    return fd;
}

static void passing(const char *self) {
    say("-- passing");
    int pair[2], stream[2], way[2];
    datagrams(pair);
    connected(stream);
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, way));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        close(pair[0]), close(pair[1]), close(stream[0]), close(stream[1]), close(way[0]);
        int got = take(way[1]);
        say("received: %s, bound as before: %d", kind(got), port_of(got) > 0);
        char text[100] = "";
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t count = recvfrom(got, text, 100, 0, (struct sockaddr *)&from, &length);
        say("%zd %s", count, text);
        /* The parent prints from here on. */
        MUST(sendto(got, "answer", 6, 0, (struct sockaddr *)&from, length));
        int other = take(way[1]);
        exchange("through the stream", other, other);
        say("received: %s", kind(other));
        _exit(0);
    }
    close(way[1]);
    pass(way[0], pair[1]);
    MUST(send(pair[0], "to the child", 12, 0));
    char text[100] = "";
    wait_for(pair[0], POLLIN);
    say("answer: %zd %s", read(pair[0], text, 100), text);
    pass(way[0], stream[1]);
    close(stream[1]);
    read_all(stream[0], text, 8);
    MUST(write(stream[0], "exchange", 8));
    say("child: %d", child_status(child));
    close(way[0]), close(pair[0]), close(pair[1]), close(stream[0]);

    say("-- exec");
    datagrams(pair);
    connected(stream);
    int listener = listening();
    child = fork();
    if (child == 0) {
        char numbers[5][12];
        snprintf(numbers[0], 12, "%d", pair[0]), snprintf(numbers[1], 12, "%d", pair[1]);
        snprintf(numbers[2], 12, "%d", stream[0]), snprintf(numbers[3], 12, "%d", stream[1]);
        snprintf(numbers[4], 12, "%d", listener);
        execl(self, self, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], NULL);
        _exit(97);
    }
    say("child: %d", child_status(child));
    child = fork();
    if (child == 0) {
        char *empty[] = {NULL};
        char numbers[5][12];
        snprintf(numbers[0], 12, "%d", pair[0]), snprintf(numbers[1], 12, "%d", pair[1]);
        snprintf(numbers[2], 12, "%d", stream[0]), snprintf(numbers[3], 12, "%d", stream[1]);
        snprintf(numbers[4], 12, "%d", listener);
        char *arguments[] = {(char *)self, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], NULL};
        int image = open(self, O_RDONLY);
        fexecve(image, arguments, empty);
        _exit(97);
    }
    say("child: %d", child_status(child));
}

static int after_exec(char **arguments) {
    int fds[5];
    for (int each = 0; each < 5; each++) fds[each] = atoi(arguments[each]);
    say("%s", kind(fds[0]));
    say("%s", kind(fds[2]));
    exchange("datagrams", fds[0], fds[1]);
    exchange("stream", fds[2], fds[3]);
    int one = 1;
    REPORT(setsockopt(fds[2], IPPROTO_TCP, TCP_NODELAY, &one, 4));
    REPORT(connect(fds[2], (struct sockaddr *)&(struct sockaddr_in){.sin_family = AF_INET, .sin_port = 9}, 16));
    int client = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    connect_to(client, port_of(fds[4]));
    int accepted = (int)MUST(accept(fds[4], NULL, NULL));
    exchange("accepted", client, accepted);
    return 0;
}

static void ports(void) {
    say("-- a port is free when its socket has been closed");
    int in_use = 0, connected_to_nobody = 0;
    for (int turn = 0; turn < 300; turn++) {
        int listener = listening(), port = port_of(listener);
        struct sockaddr_in name = loopback(port);
        close(listener);
        int fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        /* To itself it may connect, if it happens to get that port. */
        int result = connect(fd, (struct sockaddr *)&name, sizeof name);
        if (result == 0 ? port_of(fd) != port : errno != ECONNREFUSED) connected_to_nobody++;
        close(fd);
        fd = bound(SOCK_DGRAM), port = port_of(fd), name = loopback(port);
        close(fd);
        fd = (int)MUST(socket(AF_INET, SOCK_DGRAM, 0));
        if (bind(fd, (struct sockaddr *)&name, sizeof name) != 0) in_use++;
        close(fd);
        listener = listening(), port = port_of(listener), name = loopback(port);
        close(listener);
        listener = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        if (bind(listener, (struct sockaddr *)&name, sizeof name) != 0) in_use++;
        close(listener);
    }
    say("in use %d, connected to nobody %d", in_use, connected_to_nobody);
}

int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    if (count > 1) return after_exec(arguments + 1);
    duplicates();
    reuse();
    closing_all();
    passing(arguments[0]);
    ports();
    return 0;
}
