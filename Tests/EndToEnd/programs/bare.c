// Linked statically, so that the shim cannot be in front of its libc: what `alps run --strict` is for.
// usage: bare connect ADDRESS PORT | serve PORT | udp ADDRESS PORT | udp-serve PORT | interfaces | ring | timeout PORT
//             | packet INTERFACE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int failed(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    return 1;
}

static struct sockaddr_in place(const char *address, const char *port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    inet_pton(AF_INET, address, &name.sin_addr);
    return name;
}

static void print_name(const char *what, int fd, int (*ask)(int, struct sockaddr *, socklen_t *)) {
    struct sockaddr_in name = {0};
    socklen_t length = sizeof name;
    if (ask(fd, (struct sockaddr *)&name, &length) != 0) { failed(what); return; }
    printf("%s %d %s %u\n", what, name.sin_family, inet_ntoa(name.sin_addr), length);
}

/// Connects without blocking, looks at all there is to see, and echoes a line of the peer's back.
static int connect_to(const char *address, const char *port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return failed("socket");
    struct sockaddr_in name = place(address, port);
    if (connect(fd, (struct sockaddr *)&name, sizeof name) == 0 || errno != EINPROGRESS) return failed("connect");
    struct pollfd ready = {.fd = fd, .events = POLLOUT};
    if (poll(&ready, 1, 5000) != 1) return failed("poll");
    int error = -1, on = 1;
    socklen_t length = sizeof error;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) return failed("getsockopt");
    printf("connected %d %u\n", error, length);
    if (error != 0) return 0;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) return failed("setsockopt");
    print_name("mine", fd, getsockname);
    print_name("peer", fd, getpeername);
    printf("close-on-exec %d\n", fcntl(fd, F_GETFD) & FD_CLOEXEC);
    fcntl(fd, F_SETFL, 0);
    char line[100];
    ssize_t got = read(fd, line, sizeof line);
    if (got <= 0 || write(fd, line, (size_t)got) != got) return failed("read and write");
    shutdown(fd, SHUT_WR);
    printf("end %zd\n", read(fd, line, sizeof line));
    return 0;
}

/// Accepts two connections, each served by a child that says where it comes from.
static int serve(const char *port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in name = place("0.0.0.0", port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&name, sizeof name) != 0) return failed("bind");
    if (listen(fd, 8) != 0) return failed("listen");
    for (int turn = 0; turn < 2; turn++) {
        struct sockaddr_in from = {0};
        socklen_t length = sizeof from;
        int peer = accept(fd, (struct sockaddr *)&from, &length);
        if (peer < 0) return failed("accept");
        if (fork() == 0) {
            char text[100];
            int count = snprintf(text, sizeof text, "you are %s\n", inet_ntoa(from.sin_addr));
            _exit(write(peer, text, (size_t)count) != count);
        }
        close(peer);
    }
    int status;
    while (wait(&status) > 0) printf("child %d\n", status);
    return 0;
}

/// Sends a datagram of two pieces with sendmsg, takes the answer with recvmsg and with recvfrom.
static int datagrams(const char *address, const char *port) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in name = place(address, port), from = {0};
    struct iovec parts[2] = {{"one ", 4}, {"two", 3}};
    struct msghdr message = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = parts, .msg_iovlen = 2};
    if (sendmsg(fd, &message, 0) != 7) return failed("sendmsg");
    char first[4], second[100];
    struct iovec room[2] = {{first, 4}, {second, sizeof second}};
    struct msghdr answer = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = room, .msg_iovlen = 2};
    ssize_t got = recvmsg(fd, &answer, 0);
    if (got < 4) return failed("recvmsg");
    printf("%.4s%.*s from %s\n", first, (int)got - 4, second, inet_ntoa(from.sin_addr));
    if (sendto(fd, "three", 5, 0, (struct sockaddr *)&name, sizeof name) != 5) return failed("sendto");
    socklen_t length = sizeof from;
    got = recvfrom(fd, second, sizeof second, 0, (struct sockaddr *)&from, &length);
    printf("%.*s from %s\n", (int)got, second, inet_ntoa(from.sin_addr));
    // Connected: its messages are bare.
    if (connect(fd, (struct sockaddr *)&name, sizeof name) != 0) return failed("connect");
    if (write(fd, "four", 4) != 4) return failed("write");
    got = read(fd, second, sizeof second);
    printf("%.*s\n", (int)got, second);
    got = recv(fd, second, sizeof second, MSG_DONTWAIT);
    printf("no wait: %zd %s\n", got, strerror(errno));
    return 0;
}

static int serve_datagrams(const char *port) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in name = place("0.0.0.0", port), from = {0};
    if (bind(fd, (struct sockaddr *)&name, sizeof name) != 0) return failed("bind");
    char text[2000];
    for (int turn = 0; turn < 3; turn++) {
        socklen_t length = sizeof from;
        ssize_t got = recvfrom(fd, text, sizeof text, 0, (struct sockaddr *)&from, &length);
        if (got < 0 || sendto(fd, text, (size_t)got, 0, (struct sockaddr *)&from, length) != got) return failed("echo");
    }
    return 0;
}

static int interfaces(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq list[8], one;
    struct ifconf all = {.ifc_len = sizeof list, .ifc_req = list};
    if (ioctl(fd, SIOCGIFCONF, &all) != 0) return failed("SIOCGIFCONF");
    for (int index = 0; index < all.ifc_len / (int)sizeof list[0]; index++) {
        memset(&one, 0, sizeof one);
        strcpy(one.ifr_name, list[index].ifr_name);
        if (ioctl(fd, SIOCGIFMTU, &one) != 0) return failed("SIOCGIFMTU");
        printf("%s %s mtu %d\n", list[index].ifr_name,
               inet_ntoa(((struct sockaddr_in *)&list[index].ifr_addr)->sin_addr), one.ifr_mtu);
    }
    return 0;
}

/// Frames of a type of its own through packet sockets: one sends, the other sees, with a filter; there are no rings.
static int packets(const char *interface) {
    int sender = socket(AF_PACKET, SOCK_RAW, 0), watcher = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));
    if (sender < 0 || watcher < 0) return failed("socket");
    struct ifreq request = {0};
    strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
    if (ioctl(sender, SIOCGIFINDEX, &request) != 0) return failed("SIOCGIFINDEX");
    struct sockaddr_ll name = {.sll_family = AF_PACKET, .sll_ifindex = request.ifr_ifindex, .sll_protocol = htons(ETH_P_ALL)};
    struct sock_filter code[] = {{0x28, 0, 0, 12}, {0x15, 0, 1, 0x88b5}, {6, 0, 0, 20}, {6, 0, 0, 0}};
    struct sock_fprog program = {4, code};
    if (setsockopt(watcher, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0) return failed("SO_ATTACH_FILTER");
    if (bind(watcher, (struct sockaddr *)&name, sizeof name) != 0) return failed("bind");
    unsigned char frame[60] = {2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 8, 0x88, 0xb5, 'b', 'a', 'r', 'e'}, got[100];
    name.sll_protocol = htons(0x88b5);
    printf("sent %zd\n", sendto(sender, frame, sizeof frame, 0, (struct sockaddr *)&name, sizeof name));
    struct pollfd ready = {.fd = watcher, .events = POLLIN};
    printf("ready %d\n", poll(&ready, 1, 10000));
    socklen_t length = sizeof name;
    ssize_t count = recvfrom(watcher, got, sizeof got, 0, (struct sockaddr *)&name, &length);
    printf("received %zd %.4s kind %d length %u\n", count, got + 14, name.sll_pkttype, length);
    struct tpacket_req rings = {4096, 1, 2048, 2};
    int status = setsockopt(watcher, SOL_PACKET, PACKET_RX_RING, &rings, sizeof rings);
    printf("ring %d %s\n", status, strerror(errno));
    return 0;
}

static void nothing(int number) { (void)number; }

/// A wait that a time-out, and one that a signal ends.
static int waits(const char *port) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in name = place("0.0.0.0", port);
    struct timeval limit = {0, 200000};
    char byte;
    if (bind(fd, (struct sockaddr *)&name, sizeof name) != 0) return failed("bind");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ssize_t got = recv(fd, &byte, 1, 0);
    printf("time-out: %zd %s\n", got, strerror(errno));
    limit.tv_usec = 0;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGALRM, &action, NULL);
    alarm(1);
    got = recv(fd, &byte, 1, 0);
    printf("signal: %zd %s\n", got, strerror(errno));
    return 0;
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *what = count > 1 ? words[1] : "";
    if (!strcmp(what, "connect") && count == 4) return connect_to(words[2], words[3]);
    if (!strcmp(what, "serve") && count == 3) return serve(words[2]);
    if (!strcmp(what, "udp") && count == 4) return datagrams(words[2], words[3]);
    if (!strcmp(what, "udp-serve") && count == 3) return serve_datagrams(words[2]);
    if (!strcmp(what, "interfaces")) return interfaces();
    if (!strcmp(what, "packet") && count == 3) return packets(words[2]);
    if (!strcmp(what, "timeout") && count == 3) return waits(words[2]);
    if (!strcmp(what, "ring")) {
        char space[200] = {0};
        long ring = syscall(SYS_io_uring_setup, 1, space);
        printf("io_uring %ld %s\n", ring, strerror(errno));
        int six = socket(AF_INET6, SOCK_STREAM, 0);
        printf("IPv6 %d %s\n", six < 0 ? -1 : 0, strerror(errno));
        return 0;
    }
    return 2;
}
