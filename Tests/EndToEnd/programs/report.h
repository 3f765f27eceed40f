/* What the programs of test_shim_programs.py have in common: they print what calls did, the same on any stack. */
#ifndef REPORT_H
#define REPORT_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* "label: value" or "label: -1 ENAME". Through write(2) in one piece: order holds across processes. */
static void say(const char *format, ...) {
    char text[4096];
    va_list list;
    va_start(list, format);
    int length = vsnprintf(text, sizeof text - 1, format, list);
    va_end(list);
    text[length++] = '\n';
    if (write(1, text, (size_t)length) != length) _exit(98);
}

static void report(const char *label, long value) {
    if (value == -1) say("%s: -1 %s", label, strerrorname_np(errno));
    else say("%s: %ld", label, value);
}

#define REPORT(call) report(#call, (long)(call))

static long must_(long value, const char *call, int line) {
    if (value < 0) {
        say("line %d: %s failed: %s", line, call, strerrorname_np(errno));
        _exit(99);
    }
    return value;
}
#define MUST(call) must_((long)(call), #call, __LINE__)

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return name;
}

static int port_of(int fd) {
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    MUST(getsockname(fd, (struct sockaddr *)&name, &length));
    return ntohs(name.sin_port);
}

/* A socket on the loopback with a port of its own. */
static int bound(int type) {
    int fd = (int)MUST(socket(AF_INET, type, 0));
    struct sockaddr_in name = loopback(0);
    MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    return fd;
}

static int listening(void) {
    int fd = bound(SOCK_STREAM);
    MUST(listen(fd, 16));
    return fd;
}

static void connect_to(int fd, int port) {
    struct sockaddr_in name = loopback(port);
    MUST(connect(fd, (struct sockaddr *)&name, sizeof name));
}

/* A connection; the accepted end is second. */
static void connected(int pair[2]) {
    int listener = listening();
    pair[0] = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    connect_to(pair[0], port_of(listener));
    pair[1] = (int)MUST(accept(listener, NULL, NULL));
    close(listener);
}

/* Datagram sockets: the first is connected to the second, which is not connected. */
static void datagrams(int pair[2]) {
    pair[1] = bound(SOCK_DGRAM);
    pair[0] = bound(SOCK_DGRAM);
    connect_to(pair[0], port_of(pair[1]));
}

static void set_timeout(int fd, int which, int milliseconds) {
    struct timeval time = {milliseconds / 1000, milliseconds % 1000 * 1000};
    MUST(setsockopt(fd, SOL_SOCKET, which, &time, sizeof time));
}

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void sleep_ms(int milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    while (nanosleep(&time, &time) != 0) {
    }
}

static int wait_for(int fd, short events) {
    struct pollfd entry = {.fd = fd, .events = events};
    return poll(&entry, 1, 5000) > 0 ? entry.revents : 0;
}

/* Reads exactly that many bytes of a stream, or to its end. */
static size_t read_all(int fd, void *bytes, size_t count) {
    size_t done = 0;
    while (done < count) {
        ssize_t got = read(fd, (char *)bytes + done, count - done);
        if (got <= 0) break;
        done += (size_t)got;
    }
    return done;
}

/* A file of that many bytes, read from its start. */
static int file_of(size_t count) {
    int fd = memfd_create("file", MFD_CLOEXEC);
    for (size_t at = 0; at < count; at += 4096) {
        unsigned char page[4096];
        for (size_t each = 0; each < 4096; each++) page[each] = (unsigned char)((at + each) * 7 + (at + each) / 251);
        MUST(write(fd, page, count - at < 4096 ? count - at : 4096));
    }
    lseek(fd, 0, SEEK_SET);
    return fd;
}

static unsigned sum_of(const void *bytes, size_t count) {
    unsigned sum = 2166136261u;
    for (size_t at = 0; at < count; at++) sum = (sum ^ ((const unsigned char *)bytes)[at]) * 16777619u;
    return sum;
}

static int child_status(pid_t child) {
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

#endif
