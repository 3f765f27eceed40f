/* Control messages of datagrams: what arrives, and what is said about one that is sent. */
#include "report.h"

static void send_with(int fd, int port, const char *text, int type, const void *value, size_t size) {
    char control[CMSG_SPACE(64)] = "";
    struct iovec part = {(void *)text, strlen(text)};
    struct sockaddr_in name = loopback(port);
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(size)};
    if (port) message.msg_name = &name, message.msg_namelen = sizeof name;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = IPPROTO_IP, header->cmsg_type = type, header->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(header), value, size);
    report(text, sendmsg(fd, &message, 0));
}

static void receive(int fd, size_t room) {
    char control[512], text[100];
    struct iovec part = {text, sizeof text};
    struct sockaddr_in from = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = room,
                             .msg_name = &from, .msg_namelen = sizeof from};
    if (!wait_for(fd, POLLIN)) return say("nothing came");
    ssize_t got = recvmsg(fd, &message, 0);
    if (got < 0) return report("recvmsg", got);
    char address[20];
    say("%.*s from %s flags %x", (int)got, text, inet_ntop(AF_INET, &from.sin_addr, address, sizeof address), message.msg_flags);
    for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each; each = CMSG_NXTHDR(&message, each)) {
        if (each->cmsg_level == IPPROTO_IP && each->cmsg_type == IP_TTL) say("    ttl %d", *(int *)CMSG_DATA(each));
        else if (each->cmsg_level == IPPROTO_IP && each->cmsg_type == IP_TOS) say("    tos %d", *(unsigned char *)CMSG_DATA(each));
        else if (each->cmsg_level == IPPROTO_IP && each->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo *info = (void *)CMSG_DATA(each);
            say("    to %s, an interface: %d", inet_ntop(AF_INET, &info->ipi_addr, address, sizeof address), info->ipi_ifindex > 0);
        } else say("    level %d type %d length %zu", each->cmsg_level, each->cmsg_type, each->cmsg_len);
    }
}

int main(void) {
    int pair[2], on = 1, number;
    unsigned char byte = 0x88;
    int receiver = (int)MUST(socket(AF_INET, SOCK_DGRAM, 0)), sender = (int)MUST(socket(AF_INET, SOCK_DGRAM, 0));
    struct sockaddr_in any = {.sin_family = AF_INET};
    MUST(bind(receiver, (struct sockaddr *)&any, sizeof any));
    int port = port_of(receiver);
    MUST(setsockopt(receiver, IPPROTO_IP, IP_RECVTTL, &on, 4));
    MUST(setsockopt(receiver, IPPROTO_IP, IP_RECVTOS, &on, 4));
    MUST(setsockopt(receiver, IPPROTO_IP, IP_PKTINFO, &on, 4));

    say("-- of a socket that is not connected");
    struct sockaddr_in name = loopback(port);
    REPORT(sendto(sender, "plain", 5, 0, (struct sockaddr *)&name, sizeof name));
    receive(receiver, 512);
    send_with(sender, port, "with a TTL", IP_TTL, (number = 33, &number), 4);
    receive(receiver, 512);
    send_with(sender, port, "with a TOS", IP_TOS, (number = 0x10, &number), 4);
    receive(receiver, 512);
    send_with(sender, port, "with a TOS byte", IP_TOS, &byte, 1);
    receive(receiver, 512);
    struct in_pktinfo info = {.ipi_spec_dst.s_addr = htonl(0x7f000001)};
    send_with(sender, port, "with a source", IP_PKTINFO, &info, sizeof info);
    receive(receiver, 512);
    REPORT(sendto(sender, "plain again", 11, 0, (struct sockaddr *)&name, sizeof name));
    receive(receiver, 512);

    say("-- of a connected one");
    MUST(connect(sender, (struct sockaddr *)&name, sizeof name));
    REPORT(send(sender, "connected", 9, 0));
    receive(receiver, 512);
    send_with(sender, 0, "a TTL, connected", IP_TTL, (number = 44, &number), 4);
    receive(receiver, 512);
    send_with(sender, port, "a TOS, connected", IP_TOS, (number = 0x20, &number), 4);
    receive(receiver, 512);
    REPORT(send(sender, "and plain", 9, 0));
    receive(receiver, 512);
    int third = bound(SOCK_DGRAM);
    send_with(sender, port_of(third), "elsewhere", IP_TTL, (number = 55, &number), 4);
    receive(third, 0);

    say("-- no room for control messages");
    REPORT(send(sender, "one", 3, 0));
    receive(receiver, 30);
    REPORT(send(sender, "two", 3, 0));
    receive(receiver, 0);
    int off = 0;
    MUST(setsockopt(receiver, IPPROTO_IP, IP_PKTINFO, &off, 4));
    MUST(setsockopt(receiver, IPPROTO_IP, IP_RECVTOS, &off, 4));
    REPORT(send(sender, "three", 5, 0));
    receive(receiver, 512);
    say("-- time-stamps");
    MUST(setsockopt(receiver, SOL_SOCKET, SO_TIMESTAMP, &on, 4));
    REPORT(send(sender, "four", 4, 0));
    receive(receiver, 512);
    MUST(setsockopt(receiver, SOL_SOCKET, SO_TIMESTAMPNS, &on, 4));
    REPORT(send(sender, "five", 4, 0));
    receive(receiver, 512);
    MUST(setsockopt(receiver, SOL_SOCKET, SO_TIMESTAMP, &on, 4));
    REPORT(send(sender, "six", 3, 0));
    receive(receiver, 512);
    return 0;
}
