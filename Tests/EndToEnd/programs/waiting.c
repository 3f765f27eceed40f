/* What poll, select and epoll say of a socket in each state, and the calls with signal masks. */
#include "report.h"

static const char *events_text(int events) {
    static char text[100];
    text[0] = 0;
    if (events & POLLIN) strcat(text, " IN");
    if (events & POLLPRI) strcat(text, " PRI");
    if (events & POLLOUT) strcat(text, " OUT");
    if (events & POLLERR) strcat(text, " ERR");
    if (events & POLLHUP) strcat(text, " HUP");
    if (events & POLLRDHUP) strcat(text, " RDHUP");
    return text;
}

static void state(const char *label, int fd) {
    struct pollfd entry = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    sleep_ms(30);
    poll(&entry, 1, 0);
    say("%s:%s", label, events_text(entry.revents));
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP, .data.fd = fd};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    int count = epoll_wait(set, &event, 1, 0);
    int same = count == (entry.revents != 0) && (count == 0 || (int)event.events == entry.revents);
    fd_set reading, writing;
    FD_ZERO(&reading);
    FD_ZERO(&writing);
    FD_SET(fd, &reading);
    FD_SET(fd, &writing);
    select(fd + 1, &reading, &writing, NULL, &(struct timeval){0, 0});
    say("    epoll agrees %d, select%s%s", same, FD_ISSET(fd, &reading) ? " readable" : "",
        FD_ISSET(fd, &writing) ? " writable" : "");
    close(set);
}

static void streams(void) {
    int stream[2];
    char text[100];
    int listener = listening();
    state("listening", listener);
    int client = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    connect_to(client, port_of(listener));
    state("listening, one waits", listener);
    int accepted = (int)MUST(accept(listener, NULL, NULL));
    state("listening, accepted", listener);
    close(client), close(accepted);

    connected(stream);
    state("connected", stream[0]);
    MUST(write(stream[1], "data", 4));
    state("data", stream[0]);
    MUST(read(stream[0], text, 4));
    state("read", stream[0]);
    MUST(write(stream[1], "last", 4));
    MUST(shutdown(stream[1], SHUT_WR));
    state("data and end", stream[0]);
    MUST(read(stream[0], text, 4));
    state("end", stream[0]);
    state("the other side", stream[1]);
    MUST(shutdown(stream[0], SHUT_WR));
    state("both ended", stream[0]);
    state("both ended, the other side", stream[1]);
    close(stream[0]), close(stream[1]);

    connected(stream);
    MUST(shutdown(stream[0], SHUT_RD));
    state("reads no more", stream[0]);
    close(stream[0]), close(stream[1]);

    connected(stream);
    struct linger reset = {1, 0};
    MUST(setsockopt(stream[1], SOL_SOCKET, SO_LINGER, &reset, sizeof reset));
    close(stream[1]);
    state("reset", stream[0]);
    int error;
    socklen_t length = 4;
    MUST(getsockopt(stream[0], SOL_SOCKET, SO_ERROR, &error, &length));
    say("error %s", strerrorname_np(error));
    close(stream[0]);

    int fd = (int)MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    int other = listening();
    struct sockaddr_in nowhere = loopback(port_of(other));
    close(other);
    int result = connect(fd, (struct sockaddr *)&nowhere, sizeof nowhere);
    say("connect: %s", result == 0 || errno == EINPROGRESS || errno == ECONNREFUSED ? "as it may" : strerrorname_np(errno));
    if (result < 0 && errno == EINPROGRESS) {
        state("refused", fd);
        MUST(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
        say("error %s", strerrorname_np(error));
    }
    close(fd);

    connected(stream);
    fcntl(stream[0], F_SETFL, O_NONBLOCK);
    static char big[1 << 16];
    long total = 0, sent;
    for (int round = 0; round < 20; round++) {
        while ((sent = send(stream[0], big, sizeof big, 0)) > 0) total += sent;
        sleep_ms(10);
    }
    state("full", stream[0]);
    fcntl(stream[1], F_SETFL, O_NONBLOCK);
    for (int round = 0; total > 0 && round < 1000; round++) {
        while ((sent = read(stream[1], big, sizeof big)) > 0) total -= sent;
        sleep_ms(5);
    }
    say("all arrived: %d", total == 0);
    state("emptied", stream[0]);
    close(stream[0]), close(stream[1]);
}

static void datagram_states(void) {
    int pair[2];
    char text[100];
    datagrams(pair);
    state("datagram socket", pair[1]);
    MUST(send(pair[0], "x", 1, 0));
    state("a datagram", pair[1]);
    MUST(send(pair[0], "", 0, 0));
    MUST(read(pair[1], text, 100));
    state("an empty one", pair[1]);
    REPORT(read(pair[1], text, 100));
    state("read", pair[1]);
    MUST(shutdown(pair[0], SHUT_RD));
    state("reads no more", pair[0]);
    REPORT(read(pair[0], text, 100));
    close(pair[0]), close(pair[1]);
}

static void edges(void) {
    say("-- edges");
    int stream[2];
    char text[100];
    connected(stream);
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, stream[0], &event));
    REPORT(epoll_wait(set, &event, 1, 0));
    MUST(write(stream[1], "one", 3));
    REPORT(epoll_wait(set, &event, 1, 2000));
    REPORT(epoll_wait(set, &event, 1, 50));
    MUST(write(stream[1], "two", 3));
    REPORT(epoll_wait(set, &event, 1, 2000));
    REPORT(read(stream[0], text, 100));
    REPORT(epoll_wait(set, &event, 1, 50));
    event.events = EPOLLIN | EPOLLONESHOT;
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, stream[0], &event));
    MUST(write(stream[1], "three", 5));
    REPORT(epoll_wait(set, &event, 1, 2000));
    MUST(write(stream[1], "four", 4));
    REPORT(epoll_wait(set, &event, 1, 50));
    event.events = EPOLLIN | EPOLLONESHOT;
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, stream[0], &event));
    REPORT(epoll_wait(set, &event, 1, 2000));
    int outer = epoll_create1(0);
    event.events = EPOLLIN;
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, stream[0], &event));
    MUST(epoll_ctl(outer, EPOLL_CTL_ADD, set, &event));
    REPORT(epoll_wait(outer, &event, 1, 2000));
    MUST(read(stream[0], text, 100));
    REPORT(epoll_wait(outer, &event, 1, 50));
    close(stream[0]);
    REPORT(epoll_ctl(set, EPOLL_CTL_DEL, stream[0], NULL));
    close(stream[1]), close(set), close(outer);
}

static volatile sig_atomic_t handled;
static void handle(int number) { handled++; }

static void masks(void) {
    say("-- masks");
    int pair[2];
    datagrams(pair);
    struct sigaction action = {.sa_handler = handle};
    sigaction(SIGUSR1, &action, NULL);
    sigset_t blocked, open;
    sigemptyset(&open);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    raise(SIGUSR1);
    struct pollfd entry = {.fd = pair[1], .events = POLLIN};
    struct timespec limit = {0, 50000000};
    REPORT(ppoll(&entry, 1, &limit, NULL));
    say("handled %d", (int)handled);
    REPORT(ppoll(&entry, 1, &limit, &open));
    say("handled %d", (int)handled);
    raise(SIGUSR1);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pair[1], &set);
    REPORT(pselect(pair[1] + 1, &set, NULL, NULL, &limit, &open));
    say("handled %d", (int)handled);
    int queue = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    MUST(epoll_ctl(queue, EPOLL_CTL_ADD, pair[1], &event));
    raise(SIGUSR1);
    REPORT(epoll_pwait(queue, &event, 1, 50, &open));
    say("handled %d", (int)handled);
    raise(SIGUSR1);
    REPORT(epoll_pwait2(queue, &event, 1, &limit, &open));
    say("handled %d", (int)handled);
    MUST(send(pair[0], "x", 1, 0));
    REPORT(epoll_pwait2(queue, &event, 1, &(struct timespec){2, 0}, NULL));
    REPORT(ppoll(&entry, 1, NULL, &blocked));
    sigprocmask(SIG_UNBLOCK, &blocked, NULL);
    close(queue), close(pair[0]), close(pair[1]);

    say("-- asynchronous");
    int stream[2];
    connected(stream);
    action.sa_handler = handle;
    sigaction(SIGIO, &action, NULL);
    handled = 0;
    REPORT(fcntl(stream[0], F_SETOWN, getpid()));
    REPORT(fcntl(stream[0], F_SETFL, O_ASYNC | O_NONBLOCK));
    MUST(write(stream[1], "x", 1));
    for (int turn = 0; turn < 100 && !handled; turn++) usleep(10000);
    say("SIGIO: %d", handled > 0);
    REPORT(fcntl(stream[0], F_GETOWN) == getpid());
    REPORT(ioctl(stream[0], FIOASYNC, &(int){0}));
    REPORT(ioctl(stream[0], FIONBIO, &(int){0}));
    say("flags %x", fcntl(stream[0], F_GETFL) & (O_NONBLOCK | O_ASYNC));
    int value;
    REPORT(ioctl(stream[0], FIONREAD, &value));
    say("%d to read", value);
}

/// A stream that is connected again after a refusal is still registered with epoll.
static void again(void) {
    say("-- connected again");
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    MUST(bind(listener, (struct sockaddr *)&name, sizeof name));
    MUST(getsockname(listener, (struct sockaddr *)&name, &length));
    REPORT(connect(fd, (struct sockaddr *)&name, sizeof name));
    int queue = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLOUT, .data.u64 = 42};
    MUST(epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event));
    sleep_ms(30);
    MUST(listen(listener, 1));
    REPORT(connect(fd, (struct sockaddr *)&name, sizeof name));
    REPORT(connect(fd, (struct sockaddr *)&name, sizeof name));
    event.data.u64 = 0;
    REPORT(epoll_wait(queue, &event, 1, 2000));
    say("%d writable %d", (int)event.data.u64, event.events == EPOLLOUT);
    REPORT(connect(fd, (struct sockaddr *)&name, sizeof name));
    REPORT(epoll_ctl(queue, EPOLL_CTL_DEL, fd, &event));
    close(queue), close(fd), close(listener);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    streams();
    again();
    datagram_states();
    edges();
    masks();
    return 0;
}
