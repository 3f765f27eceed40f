/* A program that shuts itself in: other root, no descriptors, no files; its sockets go on, and new ones can be had. */
#include "report.h"

static const char *works(void) {
    int pair[2];
    char text[10];
    pair[0] = socket(AF_INET, SOCK_DGRAM, 0), pair[1] = socket(AF_INET, SOCK_DGRAM, 0);
    if (pair[0] < 0 || pair[1] < 0) return strerrorname_np(errno);
    struct sockaddr_in name = loopback(0);
    socklen_t length = sizeof name;
    const char *result = "yes";
    if (bind(pair[1], (struct sockaddr *)&name, length) != 0) result = strerrorname_np(errno);
    else if (getsockname(pair[1], (struct sockaddr *)&name, &length) != 0) result = strerrorname_np(errno);
    else if (sendto(pair[0], "x", 1, 0, (struct sockaddr *)&name, length) != 1) result = strerrorname_np(errno);
    else if (!wait_for(pair[1], POLLIN) || recv(pair[1], text, 10, 0) != 1) result = "nothing came";
    close(pair[0]), close(pair[1]);
    return result;
}

static void in_child(const char *label, void (*body)(void)) {
    pid_t child = fork();
    if (child == 0) {
        body();
        _exit(0);
    }
    say("%s: %d", label, child_status(child));
}

static int before[2];

static void report_old(void) {
    char text[10];
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    REPORT(send(before[0], "x", 1, 0));
    wait_for(before[1], POLLIN);
    REPORT(recv(before[1], text, 10, 0));
    REPORT(getsockname(before[1], (struct sockaddr *)&name, &length));
}

static void other_root(void) {
    MUST(chroot("/proc/self"));
    MUST(chdir("/"));
    say("%s", works());
    report_old();
    pid_t child = fork();
    if (child == 0) {
        say("%s", works());
        _exit(0);
    }
    child_status(child);
}

static void no_descriptors(void) {
    closefrom(3);
    say("%s", works());
    MUST(chroot("/proc/self"));
    say("%s", works());
    for (int fd = 3; fd < 70000; fd++) close(fd);
    say("%s", works());
}

static void no_more_descriptors(void) {
    struct rlimit none = {0, 0};
    MUST(setrlimit(RLIMIT_NOFILE, &none));
    REPORT(socket(AF_INET, SOCK_STREAM, 0));
    REPORT(socket(AF_UNIX, SOCK_STREAM, 0));
    report_old();
    int value = 0;
    socklen_t length = 4;
    REPORT(getsockopt(before[0], SOL_SOCKET, SO_TYPE, &value, &length));
    REPORT(setsockopt(before[0], SOL_SOCKET, SO_BROADCAST, &value, 4));
}

static void few_descriptors(void) {
    struct rlimit few = {16, 16};
    MUST(prlimit(0, RLIMIT_NOFILE, &few, NULL));
    int made = 0;
    while (socket(AF_INET, SOCK_STREAM, 0) >= 0) made++;
    say("made some: %d, then %s", made > 2, strerrorname_np(errno));
    REPORT(close(10));
    REPORT(socket(AF_INET, SOCK_STREAM, 0) == 10);
    int listener = 10;
    REPORT(listen(listener, 5));
    REPORT(close(11));
    REPORT(socket(AF_INET, SOCK_STREAM, 0) == 11);
    connect_to(11, port_of(listener));
    fcntl(listener, F_SETFL, O_NONBLOCK);
    wait_for(listener, POLLIN);
    REPORT(accept(listener, NULL, NULL));
    REPORT(close(12));
    REPORT(accept(listener, NULL, NULL) >= 0 || errno == EAGAIN);
}

static void many_descriptors(void) {
    struct rlimit many = {20000, 20000};
    MUST(setrlimit(RLIMIT_NOFILE, &many));
    int fd = bound(SOCK_DGRAM), high = fcntl(fd, F_DUPFD, 15000);
    say("high: %d", high == 15000);
    char text[10];
    struct sockaddr_in name = loopback(port_of(fd));
    REPORT(sendto(high, "x", 1, 0, (struct sockaddr *)&name, sizeof name));
    wait_for(high, POLLIN);
    REPORT(recv(high, text, 10, 0));
}

static void another_user(void) {
    int listener = listening();
    MUST(setgid(65534));
    MUST(setuid(65534));
    say("%s", works());
    report_old();
    int fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    connect_to(fd, port_of(listener));
    int accepted = accept(listener, NULL, NULL);
    say("accepted: %d", accepted >= 0);
    int on = 1;
    REPORT(setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, 4));
    struct sockaddr_in low = loopback(80);
    REPORT(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
}

int main(void) {
    datagrams(before);
    in_child("another root", other_root);
    in_child("no descriptors", no_descriptors);
    in_child("no more descriptors", no_more_descriptors);
    in_child("few descriptors", few_descriptors);
    in_child("many descriptors", many_descriptors);
    in_child("another user", another_user);
    say("%s", works());
    return 0;
}
