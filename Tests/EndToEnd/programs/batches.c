/* An error message between datagrams that one recvmmsg could take: every datagram once, and the error once. */
#include "report.h"

enum { most = 16, room = 64 };
static char buffers[most][room];
static struct iovec parts[most];
static struct mmsghdr messages[most];

static int bound_to(int port) {
    int made = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(made, (struct sockaddr *)&name, sizeof name) != 0) say("bind: %d", errno);
    return made;
}

static int receive(int made, int flags) {
    memset(messages, 0, sizeof messages);
    for (int each = 0; each < most; each++) {
        parts[each] = (struct iovec){buffers[each], room};
        messages[each].msg_hdr.msg_iov = &parts[each];
        messages[each].msg_hdr.msg_iovlen = 1;
    }
    return recvmmsg(made, messages, most, flags, NULL);
}

int main(void) {
    int here = bound_to(7000), there = bound_to(7001);
    connect_to(here, 7001);
    connect_to(there, 7000);
    send(there, "1", 1, 0);
    send(there, "", 0, 0);
    send(there, "2", 1, 0);
    sleep_ms(50);
    close(there);
    send(here, "x", 1, 0);
    sleep_ms(50);
    there = bound_to(7001);
    connect_to(there, 7000);
    send(there, "3", 1, 0);
    send(there, "", 0, 0);
    send(there, "4", 1, 0);
    sleep_ms(50);

    int seen[256] = {0}, empty = 0, refused = 0;
    for (int round = 0; round < 50; round++) {
        int got = receive(here, MSG_DONTWAIT);
        if (got < 0 && errno == ECONNREFUSED) refused++;
        else if (got < 0 && errno != EAGAIN) say("recvmmsg: %d", errno);
        for (int each = 0; each < got; each++) {
            if (messages[each].msg_len == 0) empty++;
            else seen[(unsigned char)buffers[each][0]]++;
        }
        sleep_ms(5);
    }
    say("datagrams %d %d %d %d, empty %d, refused %d", seen['1'], seen['2'], seen['3'], seen['4'], empty, refused);
    /* Nothing is announced that is not there any more. */
    struct pollfd entry = {.fd = here, .events = POLLIN};
    say("poll: %d", poll(&entry, 1, 100));
    send(there, "5", 1, 0);
    int got = receive(here, MSG_WAITFORONE);
    say("recvmmsg that waits for one: %d %u", got, messages[0].msg_len);
    return 0;
}
