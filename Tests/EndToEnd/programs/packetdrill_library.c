/* Plays packetdrill's part towards libalps-packetdrill.so: LIBRARY CASE [FLAGS]. Prints what came of it. */
#include "report.h"
#include <dlfcn.h>
#include <packetdrill_interface.h>

static struct packetdrill_interface table;
#define CALL(name, ...) table.name(table.userdata, ##__VA_ARGS__)
#define TRY(name, ...) report(#name, (long)CALL(name, ##__VA_ARGS__))

enum { LOCAL = 0xc0a80001, REMOTE = 0xc0000201, PORT = 8080, PEER_PORT = 40000 };
enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

static long long now_us(void) {
    struct timeval time;
    CALL(gettimeofday, &time, NULL);
    return time.tv_sec * 1000000LL + time.tv_usec;
}

/* --- packets */

static unsigned sum(const unsigned char *bytes, size_t count, unsigned start) {
    for (size_t at = 0; at < count; at++) start += at % 2 ? bytes[at] : bytes[at] << 8;
    while (start >> 16) start = (start & 0xffff) + (start >> 16);
    return start;
}

static void put(unsigned char *to, unsigned value, int count) {
    for (int each = count - 1; each >= 0; each--, value >>= 8) to[each] = (unsigned char)value;
}

static unsigned get(const unsigned char *from, int count) {
    unsigned value = 0;
    for (int each = 0; each < count; each++) value = value << 8 | from[each];
    return value;
}

static int local_port = PORT, remote_port = PEER_PORT;

/* What `protocol` puts behind an IPv4 header from the other side, `count` bytes of it with a checksum at `at`. */
static int inject(int protocol, const unsigned char *content, size_t count, size_t at) {
    unsigned char packet[2000] = {0x45, 0};
    put(packet + 2, (unsigned)(20 + count), 2);
    packet[8] = 64;
    packet[9] = (unsigned char)protocol;
    put(packet + 12, REMOTE, 4);
    put(packet + 16, LOCAL, 4);
    put(packet + 10, ~sum(packet, 20, 0) & 0xffff, 2);
    memcpy(packet + 20, content, count);
    put(packet + 20 + at, ~sum(packet + 20, count, sum(packet + 12, 8, (unsigned)protocol + (unsigned)count)) & 0xffff, 2);
    return CALL(netdev_send, packet, 20 + count);
}

/* A segment of the other side. A SYN carries MSS 1000. */
static void segment(int flags, unsigned sequence, unsigned acknowledgment, size_t payload) {
    unsigned char bytes[1600] = {0};
    size_t header = flags & SYN ? 24 : 20;
    put(bytes, (unsigned)remote_port, 2);
    put(bytes + 2, (unsigned)local_port, 2);
    put(bytes + 4, sequence, 4);
    put(bytes + 8, acknowledgment, 4);
    bytes[12] = (unsigned char)(header / 4 << 4);
    bytes[13] = (unsigned char)flags;
    put(bytes + 14, 32792, 2);
    if (flags & SYN) put(bytes + 20, 0x020403e8, 4);
    for (size_t each = 0; each < payload; each++) bytes[header + each] = (unsigned char)('a' + each % 26);
    if (inject(6, bytes, header + payload, 16) != 0) say("netdev_send failed");
}

static unsigned char taken[65536];
static unsigned isn;
static size_t taken_count;
static long long taken_at;

/* Takes a packet of the stack's and prints it: flags, numbers from the initial ones on, payload, options of a SYN. */
static void take(const char *label, long long since) {
    char flags[8] = "", options[200] = "";
    taken_count = sizeof taken;
    int status = CALL(netdev_receive, taken, &taken_count, &taken_at);
    if (status != 0 || taken_count == 0) {
        say("%s: status %d, %zu bytes after %lld s", label, status, taken_count, (now_us() - since) / 1000000);
        return;
    }
    const unsigned char *tcp = taken + 20;
    size_t header = tcp[12] >> 4 << 2, total = get(taken + 2, 2);
    const char *names = "FSRP.UEW";
    for (int bit = 0; bit < 8; bit++)
        if (tcp[13] >> bit & 1) strncat(flags, names + bit, 1);
    if (tcp[13] & SYN) isn = get(tcp + 4, 4);
    for (size_t at = 20; at < header && tcp[13] & SYN; at += tcp[at] < 2 ? 1 : tcp[at + 1]) {
        char text[20];
        snprintf(text, sizeof text, tcp[at] == 2 ? " %d:%u" : " %d", tcp[at], get(tcp + at + 2, 2));
        strcat(options, text);
    }
    int right = sum(taken, 20, 0) == 0xffff && sum(tcp, total - 20, sum(taken + 12, 8, 6 + (unsigned)total - 20)) == 0xffff;
    say("%s: %s %u(%zu) ack %u%s, checksums %s, at %+lld ms", label, flags, get(tcp + 4, 4) - isn, total - 20 - header,
        get(tcp + 8, 4), options, right ? "right" : "wrong", (taken_at - since) / 1000);
}

/* --- the second thread */

static struct {
    pthread_mutex_t lock;
    pthread_t thread;
    long (*call)(int);
    int fd, error;
    volatile pid_t id;
    volatile long result;
    volatile long long ended;
    volatile int done;
} second = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *run_second(void *unused) {
    second.id = gettid();
    long result = second.call(second.fd);
    second.ended = now_us();
    second.error = errno;
    /* As in packetdrill, the end of the call waits for the lock that the first thread has. */
    pthread_mutex_lock(&second.lock);
    second.result = result;
    second.done = 1;
    pthread_mutex_unlock(&second.lock);
    return NULL;
}

static char state_of(pid_t id) {
    char path[100], text[512] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", id);
    int file = open(path, O_RDONLY);
    ssize_t count = read(file, text, sizeof text - 1);
    close(file);
    char *end = count > 0 ? strrchr(text, ')') : NULL;
    return end ? end[2] : '?';
}

/* Starts a call that is to block, and looks at its thread as packetdrill does until it sleeps. */
static void begin(const char *label, long (*call)(int), int fd) {
    second.call = call;
    second.fd = fd;
    second.id = 0;
    second.done = 0;
    MUST(-pthread_create(&second.thread, NULL, run_second, NULL));
    while (second.id == 0) sched_yield();
    char state = '?';
    for (long end = now() + 10000; now() < end && !second.done && state != 'S'; sched_yield()) state = state_of(second.id);
    say("%s: state %c, %s", label, state, second.done ? "has returned" : "blocks");
    pthread_mutex_lock(&second.lock);
}

static void end(const char *label, long long since) {
    pthread_mutex_unlock(&second.lock);
    pthread_join(second.thread, NULL);
    errno = second.error;
    say("%s returned %ld%s%s at %+lld ms", label, second.result, second.result < 0 ? " " : "",
        second.result < 0 ? strerrorname_np(second.error) : "", (second.ended - since) / 1000);
}

/* --- calls */

static char buffer[100000];
static struct sockaddr_in peer;

static struct sockaddr_in name_of(unsigned address, int port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    name.sin_addr.s_addr = htonl(address);
    return name;
}

static long do_accept(int fd) {
    socklen_t length = sizeof peer;
    return CALL(accept, fd, (struct sockaddr *)&peer, &length);
}
static long do_connect(int fd) {
    remote_port = 8080;
    struct sockaddr_in name = name_of(REMOTE, 8080);
    return CALL(connect, fd, (struct sockaddr *)&name, sizeof name);
}
static long do_read(int fd) { return CALL(read, fd, buffer, sizeof buffer); }
static long do_write(int fd) { return CALL(write, fd, buffer, sizeof buffer); }
static long do_poll(int fd) {
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    return CALL(poll, &entry, 1, 500);
}
static long do_epoll_wait(int fd) {
    struct epoll_event event;
    long count = CALL(epoll_wait, fd, &event, 1, -1);
    return count < 1 ? count : (long)event.data.u64 * 100000 + event.events;
}

static int open_socket(int type) { return (int)MUST(CALL(socket, AF_INET, type, 0)); }

static int open_listener(void) {
    struct sockaddr_in name = name_of(LOCAL, PORT);
    int fd = open_socket(SOCK_STREAM);
    MUST(CALL(bind, fd, (struct sockaddr *)&name, sizeof name));
    MUST(CALL(listen, fd, 1));
    return fd;
}

/* A connection of the other side's: its next byte is 1, ours too. */
static int open_connection(void) {
    int listener = open_listener();
    segment(SYN, 0, 0, 0);
    take("SYN, ACK", now_us());
    segment(ACK, 1, isn + 1, 0);
    int fd = (int)MUST(do_accept(listener));
    MUST(CALL(close, listener));
    return fd;
}

/* --- cases */

static void passive(void) {
    int listener = open_listener();
    begin("accept", do_accept, listener);
    segment(SYN, 0, 0, 0);
    long long start = now_us();
    take("SYN, ACK", start);
    CALL(usleep, 100000);
    segment(ACK, 1, isn + 1, 0);
    CALL(usleep, 3000000);
    end("accept", start);
    int fd = (int)second.result;
    say("peer %x port %d", ntohl(peer.sin_addr.s_addr), ntohs(peer.sin_port));
    say("a descriptor of the process: %s", fcntl(fd, F_GETFD) >= 0 ? "yes" : "no");

    begin("read", do_read, fd);
    start = now_us();
    CALL(usleep, 10000);
    segment(ACK | PSH, 1, isn + 1, 100);
    CALL(usleep, 5000000);
    end("read", start);
    say("read %.5s", buffer);
    take("ACK", start);

    start = now_us();
    TRY(write, fd, buffer, 1500);
    take("data", start);
    take("data", start);
    take("again", start);
    segment(ACK, 101, isn + 1501, 0);

    unsigned char info[1024];
    socklen_t length = sizeof info;
    memset(info, 0xff, sizeof info);
    TRY(getsockopt, fd, IPPROTO_TCP, TCP_INFO, info, &length);
    say("TCP_INFO: %u bytes, state %d, last %d", length, info[0], info[length - 1]);
    segment(FIN | ACK, 101, isn + 1501, 0);
    TRY(read, fd, buffer, 100);
    TRY(close, fd);
    take("ACK of FIN", now_us());
    take("FIN", now_us());
    say("a descriptor of the process: %s", fcntl(fd, F_GETFD) >= 0 ? "yes" : "no");
}

static void active(void) {
    int fd = open_socket(SOCK_STREAM);
    long long start = now_us();
    begin("connect", do_connect, fd);
    take("SYN", start);
    local_port = (int)get(taken + 20, 2);
    take("SYN again", start);
    segment(SYN | ACK, 0, isn + 1, 0);
    CALL(usleep, 60000000);
    end("connect", start);
    take("ACK", start);
    /* The stack's send buffer is filled: the rest waits for acknowledgments. */
    int size = 20000;
    MUST(CALL(setsockopt, fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    start = now_us();
    begin("write", do_write, fd);
    unsigned at = 0;
    while (at < sizeof buffer) {
        taken_count = sizeof taken;
        MUST(CALL(netdev_receive, taken, &taken_count, &taken_at));
        if (taken_count == 0) break;
        at = get(taken + 24, 4) - isn - 1 + (unsigned)get(taken + 2, 2) - 40;
        CALL(usleep, 1000);
        segment(ACK, 1, isn + 1 + at, 0);
    }
    pthread_mutex_unlock(&second.lock);
    pthread_join(second.thread, NULL);
    say("write returned %ld, bytes on the wire %u", second.result, at);
}

static void refused(void) {
    int fd = open_socket(SOCK_STREAM);
    begin("connect", do_connect, fd);
    long long start = now_us();
    take("SYN", start);
    local_port = (int)get(taken + 20, 2);
    segment(RST | ACK, 0, isn + 1, 0);
    end("connect", start);
}

/* What packetdrill would wait for without an end. */
static void missing(void) {
    int fd = open_connection();
    long long start = now_us();
    take("missing", start);
    start = now_us();
    report("a read of the first thread", do_read(fd));
    say("after %lld s", (now_us() - start) / 1000000);
}

static void clock_case(void) {
    long long start = now_us();
    CALL(usleep, 1000000);
    say("usleep: %lld us", now_us() - start);
    /* packetdrill sleeps until 20 us before an event, and spins for the rest. */
    long turns = 0;
    start = now_us();
    long long goal = start + 250;
    while (now_us() < goal && turns < 1000000) turns++;
    say("spin: %s, %lld us late", turns < 1000 ? "ends" : "does not end", now_us() > goal + 10 ? now_us() - goal : 0);
    errno = EPIPE;
    now_us();
    say("errno is %s", errno == EPIPE ? "kept" : "lost");

    int fd = open_connection();
    struct timeval limit = {.tv_usec = 300000};
    MUST(CALL(setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    start = now_us();
    begin("read", do_read, fd);
    CALL(usleep, 1000000);
    end("read", start);
    start = now_us();
    begin("poll", do_poll, fd);
    CALL(usleep, 1000000);
    end("poll", start);
    /* The first thread waits for the second, as at the end of a script: time passes all the same. */
    start = now_us();
    begin("poll", do_poll, fd);
    end("poll", start);
    start = now_us();
    report("poll of the first thread", do_poll(fd));
    say("after %lld ms", (now_us() - start) / 1000);
}

static void calls(void) {
    int fd = open_connection(), ends[2], number = 1;
    struct iovec pieces[2] = {{buffer, 10}, {buffer + 100, 20}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
    struct pollfd entries[2] = {{.fd = fd, .events = POLLIN | POLLOUT}, {.fd = -1}};

    TRY(read, 999, buffer, 1);
    TRY(bind, 999, (struct sockaddr *)&peer, sizeof peer);
    TRY(connect, fd, NULL, 0);
    TRY(bind, fd, (struct sockaddr *)&peer, 3);
    TRY(socket, AF_UNIX, SOCK_STREAM, 0);
    TRY(socket, AF_INET, 77, 0);
    TRY(fcntl, fd, F_SETFL, O_NONBLOCK);
    say("F_GETFL: %s", CALL(fcntl, fd, F_GETFL, 0) & O_NONBLOCK ? "non-blocking" : "blocking");
    TRY(read, fd, buffer, 1);
    TRY(accept, fd, NULL, NULL);
    TRY(recv, fd, buffer, 1, MSG_ERRQUEUE);

    int epoll = (int)MUST(CALL(epoll_create, 1));
    TRY(epoll_ctl, epoll, EPOLL_CTL_ADD, fd, &event);
    TRY(epoll_ctl, epoll, EPOLL_CTL_ADD, fd, &event);
    TRY(epoll_wait, epoll, &event, 1, 0);
    TRY(read, epoll, buffer, 1);
    long long start = now_us();
    begin("epoll_wait", do_epoll_wait, epoll);
    CALL(usleep, 2000);
    segment(ACK | PSH, 1, isn + 1, 60);
    end("epoll_wait", start);
    TRY(poll, entries, 2, 1000);
    say("revents %d %d", entries[0].revents, entries[1].revents);
    TRY(read, fd, NULL, 1);
    TRY(ioctl, fd, FIONREAD, &number);
    say("FIONREAD %d", number);
    TRY(ioctl, fd, 0x1234, &number);
    TRY(recv, fd, buffer, 5, MSG_PEEK);
    say("peeked %.5s", buffer);
    TRY(readv, fd, pieces, 2);
    say("read %.10s %.20s", buffer, buffer + 100);
    TRY(recvmsg, fd, &message, 0);
    say("read %.10s %.20s", buffer, buffer + 100);
    take("ACK", now_us());

    TRY(writev, fd, pieces, 2);
    take("writev", now_us());
    segment(ACK, 61, isn + 31, 0);
    TRY(sendmsg, fd, &message, 0);
    take("sendmsg", now_us());
    segment(ACK, 61, isn + 61, 0);
    TRY(pipe, ends);
    TRY(write, ends[1], "pipe", 4);
    TRY(splice, ends[0], NULL, fd, NULL, 100, 0);
    take("splice", now_us());
    say("payload %.4s", taken + 40);
    TRY(send, fd, buffer, 10, MSG_OOB);
    take("urgent", now_us());
    TRY(shutdown, fd, SHUT_WR);
    take("FIN", now_us());
    TRY(write, fd, buffer, 1);
    unsigned char other[40] = {0x60};
    TRY(netdev_send, other, sizeof other);
}

static void datagrams_case(void) {
    struct sockaddr_in name = name_of(LOCAL, PORT), to = name_of(REMOTE, 9000);
    int fd = open_socket(SOCK_DGRAM);
    TRY(bind, fd, (struct sockaddr *)&name, sizeof name);
    TRY(sendto, fd, "hello", 5, 0, (struct sockaddr *)&to, sizeof to);
    size_t count = sizeof taken;
    long long time;
    TRY(netdev_receive, taken, &count, &time);
    say("%zu bytes to port %u: %.5s", count, get(taken + 22, 2), taken + 28);
    unsigned char datagram[18] = {0x9c, 0x40, 0x1f, 0x90, 0, 18, 0, 0, 'd', 'a', 't', 'a', 'g', 'r', 'a', 'm', '0', '1'};
    inject(17, datagram, sizeof datagram, 6);
    inject(17, datagram, sizeof datagram, 6);
    socklen_t length = sizeof peer;
    TRY(recvfrom, fd, buffer, 100, MSG_PEEK, (struct sockaddr *)&peer, &length);
    memset(&peer, 0, sizeof peer);
    TRY(recvfrom, fd, buffer, 100, 0, (struct sockaddr *)&peer, &length);
    say("%.10s from %x port %d, %u bytes of name", buffer, ntohl(peer.sin_addr.s_addr), ntohs(peer.sin_port), length);
    struct iovec piece = {buffer, 4};
    struct msghdr message = {.msg_name = &peer, .msg_namelen = sizeof peer, .msg_iov = &piece, .msg_iovlen = 1};
    TRY(recvmsg, fd, &message, 0);
    say("flags %x, %u bytes of name", message.msg_flags, message.msg_namelen);
    TRY(recv, fd, buffer, 1, MSG_DONTWAIT);
    TRY(close, fd);
}

/* What flags change. */
static void settings(void) {
    open_socket(SOCK_STREAM);
    int fd = open_socket(SOCK_STREAM | SOCK_NONBLOCK), size = 0;
    socklen_t length = sizeof size;
    TRY(connect, fd, (struct sockaddr *)&(struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(80), .sin_addr.s_addr = htonl(REMOTE)}, sizeof peer);
    take("SYN", now_us());
    say("from %x", get(taken + 12, 4));
    MUST(CALL(getsockopt, fd, SOL_SOCKET, SO_RCVBUF, &size, &length));
    say("SO_RCVBUF %d", size);
}

int main(int count, char **arguments) {
    static const struct { const char *name; void (*run)(void); } cases[] = {
        {"passive", passive}, {"active", active}, {"refused", refused}, {"missing", missing}, {"clock", clock_case},
        {"calls", calls}, {"datagrams", datagrams_case}, {"settings", settings},
    };
    /* As packetdrill does, where it may. */
    mlockall(MCL_CURRENT | MCL_FUTURE);
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE | RTLD_DEEPBIND);
    if (!library) return say("%s", dlerror()), 99;
    void (*entry)(const char *, struct packetdrill_interface *) = dlsym(library, "packetdrill_interface_init");
    if (!entry) return say("%s", dlerror()), 99;
    memset(&table, 0, sizeof table);
    entry(count > 3 ? arguments[3] : NULL, &table);
    for (size_t each = 0; each < sizeof table / sizeof(void *); each++)
        if (!((void **)&table)[each]) say("member %zu is null", each);
    signal(SIGPIPE, SIG_IGN);
    for (size_t each = 0; each < sizeof cases / sizeof *cases; each++)
        if (strcmp(cases[each].name, arguments[2]) == 0) cases[each].run();
    table.free(table.userdata);
    dlclose(library);
    return 0;
}
