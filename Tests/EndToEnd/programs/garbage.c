// A client out of order: garbage SEED ROUNDS. Sockets of every kind; then options, requests of ioctl, addresses and control
// messages of random numbers, lengths and bytes through the shim, and random and nearly right bytes past it into the pairs
// and the session. Nothing is expected but that it comes to its end.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "raw.h"

static uint64_t state;

static uint64_t draw(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}
static unsigned below(unsigned bound) { return (unsigned)(draw() >> 33) % bound; }

static unsigned char bytes[70000];

static unsigned fill(unsigned most) {
    unsigned length = below(8) ? below(most < 64 ? most : 64) : below(most);
    switch (below(4)) {
    case 0: memset(bytes, 0, length); break;
    case 1: memset(bytes, 255, length); break;
    default:
        for (unsigned i = 0; i < length; i++) bytes[i] = (unsigned char)draw();
    }
    return length;
}

static int number(void) {
    static const int edges[] = {0, 1, -1, 2, INT32_MAX, INT32_MIN, 255, 256, 65535, 65536};
    return below(3) ? (int)below(80) : below(2) ? edges[below(10)] : (int)draw();
}

static int level(void) {
    static const int known[] = {SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_RAW, IPPROTO_ICMP, 270, 41, 58};
    return below(8) ? known[below(9)] : number();
}

static void name(struct sockaddr_storage *to) {
    fill(sizeof *to);
    memcpy(to, bytes, sizeof *to);
    if (below(4)) to->ss_family = below(2) ? AF_INET : AF_NETLINK;
    if (below(2)) ((struct sockaddr_in *)to)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
}

static int fds[16];

static int fresh(void) {
    switch (below(7)) {
    case 0: return socket(AF_INET, SOCK_DGRAM, 0);
    case 1: return socket(AF_INET, SOCK_RAW, below(3) ? IPPROTO_ICMP : below(300));
    case 2: return socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
    case 3: return socket(AF_NETLINK, SOCK_RAW, below(4) ? NETLINK_ROUTE : NETLINK_SOCK_DIAG);
    default: return socket(AF_INET, SOCK_STREAM, 0);
    }
}

static void call(int fd) {
    struct sockaddr_storage address;
    socklen_t length = below(sizeof address + 1);
    name(&address);
    switch (below(16)) {
    case 0: case 1: case 2: {
        unsigned count = fill(5000);
        setsockopt(fd, level(), number(), below(30) ? bytes : (void *)draw(), below(30) ? count : (socklen_t)number());
        break;
    }
    case 3: case 4: {
        socklen_t size = below(4) ? fill(300) : fill(sizeof bytes);
        getsockopt(fd, level(), number(), below(30) ? bytes : (void *)draw(), below(30) ? &size : (void *)draw());
        break;
    }
    case 5: case 6: {
        // Requests as Linux's sockets have them, and others.
        unsigned long request = below(3) ? 0x8900 + below(256) : below(2) ? 0x5400 + below(256) : draw();
        fill(4096);
        if (request != FIOASYNC) ioctl(fd, request, bytes);
        break;
    }
    case 7: connect(fd, (struct sockaddr *)&address, length); break;
    case 8: bind(fd, (struct sockaddr *)&address, length); break;
    case 9: listen(fd, number()); break;
    case 10: getsockname(fd, (struct sockaddr *)&address, &length); break;
    case 11: sendto(fd, bytes, fill(2000), MSG_DONTWAIT | MSG_NOSIGNAL | (below(4) ? 0 : number()), (void *)&address, length); break;
    case 12: case 13: {
        // Control messages: right in form with random contents, or not even that.
        unsigned char control[512];
        fill(sizeof control);
        memcpy(control, bytes, sizeof control);
        struct iovec parts[3] = {{bytes, below(3000)}, {bytes, below(10)}, {bytes, 0}};
        struct msghdr message = {&address, length, parts, below(4), control, below(sizeof control), 0};
        if (below(2)) {
            struct cmsghdr *header = (struct cmsghdr *)control;
            header->cmsg_len = below(2) ? CMSG_LEN(below(40)) : draw();
            header->cmsg_level = level();
            header->cmsg_type = number();
        }
        if (below(3)) sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        else recvmsg(fd, &message, MSG_DONTWAIT | (below(3) ? 0 : number() & ~MSG_WAITALL));
        break;
    }
    case 14: recv(fd, bytes, below(sizeof bytes), MSG_DONTWAIT | (below(3) ? 0 : number())); break;
    default: shutdown(fd, number());
    }
}

struct frame {
    uint32_t magic, length;
    uint16_t kind, op;
    int32_t error;
    uint64_t request, socket, position;
};

// Into a pair or the session: bytes, headers, frames, and descriptors beside them.
static void write_past(int fd, uint64_t handle) {
    static unsigned char text[70000];
    unsigned length = fill(3000), whole = length;
    memcpy(text, bytes, length);
    if (below(3) == 0) {
        struct frame frame = {0x46504c41, length, (uint16_t)(below(8) ? 1 : draw()), (uint16_t)(below(8) ? below(56) : draw()),
                              0, draw(), below(4) ? handle : draw(), 0};
        if (below(10) == 0) frame.length = (uint32_t)draw();
        memcpy(text, &frame, sizeof frame);
        memcpy(text + sizeof frame, bytes, length);
        whole = length + sizeof frame;
    } else if (below(2) && length >= 72) {
        memcpy(text, &(uint32_t){0x44504c41}, 4);
    }
    struct iovec part = {text, whole};
    char control[64] = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (below(6) == 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof(int));
        int passed = below(2) ? 0 : fds[below(16)];
        memcpy(CMSG_DATA(header), &passed, sizeof passed);
    }
    raw(SYS_sendmsg, fd, (long)&message, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0, 0);
    if (below(20) == 0) raw(SYS_recvfrom, fd, (long)text, sizeof text, MSG_DONTWAIT, 0, 0);
    if (below(200) == 0) raw(SYS_shutdown, fd, below(3), 0, 0, 0, 0);
}

// The handle in the name of the host's end.
static uint64_t handle_of(int fd) {
    struct sockaddr_storage peer = {0};
    socklen_t length = sizeof peer;
    if (raw(SYS_getpeername, fd, (long)&peer, (long)&length, 0, 0, 0) != 0 || length < 20 || length > sizeof peer) return draw();
    char digits[17] = {0};
    memcpy(digits, (char *)&peer + length - 16, 16);
    return strtoull(digits, NULL, 16);
}

int main(int count, char **arguments) {
    state = strtoull(arguments[1], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < 16; i++) fds[i] = fresh();
    for (int rounds = atoi(arguments[2]); rounds > 0; rounds--) {
        int which = below(16), fd = fds[which];
        if (fd >= 0) fcntl(fd, F_SETFL, O_NONBLOCK);
        if (fd < 0 || below(40) == 0) {
            if (fd >= 0) close(fd);
            fds[which] = fresh();
        } else if (below(3)) {
            struct linger none = {0, 0};
            call(fd);
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
        } else {
            write_past(fd, handle_of(fd));
        }
        if (below(2000) == 0) {
            // The session, wherever it is; whatever else is a socket there is ours as well.
            for (int other = 3; other < 1100; other++) {
                int type = 0;
                socklen_t size = sizeof type;
                if (raw(SYS_getsockopt, other, SOL_SOCKET, SO_TYPE, (long)&type, (long)&size, 0) == 0 && below(2))
                    write_past(other, handle_of(fds[which] < 0 ? other : fds[which]));
            }
        }
    }
    printf("end\n");
}
