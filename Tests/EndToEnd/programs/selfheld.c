/* Passes the program's own ends of pairs into those very pairs, past the shim, and ends. */
#include "raw.h"
#include "report.h"

static int pass_into(int pair, int fd) {
    char byte = 'x', control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    // A listener's pair is full: it gets room first.
    int size = 1 << 20;
    raw(SYS_setsockopt, pair, SOL_SOCKET, SO_SNDBUF, (long)&size, sizeof size);
    return raw(SYS_sendmsg, pair, (long)&message, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0) == 1;
}

int main(int count, char **arguments) {
    int fds[6], stream[2], passed = 0;
    fds[0] = listening();
    fds[1] = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    connected(stream);
    fds[2] = stream[0], fds[3] = stream[1];
    fds[4] = bound(SOCK_DGRAM);
    fds[5] = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    // Each into itself, or each into its neighbour.
    int step = atoi(arguments[1]);
    for (int i = 0; i < 6; i++) passed += pass_into(fds[i], fds[(i + step) % 6]);
    // The host may have ended one meanwhile, and its peer with it.
    say("passed: %d", passed >= 4);
}
