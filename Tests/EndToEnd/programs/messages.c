/* sendmmsg and recvmmsg, and the flags of send and recv. */
#include "report.h"

enum { most = 8, room = 64 };
static char buffers[most][room];
static struct iovec parts[most];
static struct mmsghdr messages[most];

static void prepare(int count, size_t size) {
    memset(messages, 0, sizeof messages);
    for (int each = 0; each < count; each++) {
        parts[each] = (struct iovec){buffers[each], size};
        messages[each].msg_hdr.msg_iov = &parts[each];
        messages[each].msg_hdr.msg_iovlen = 1;
    }
}

static void several(void) {
    int pair[2];
    datagrams(pair);
    say("-- sendmmsg");
    prepare(5, 10);
    for (int each = 0; each < 5; each++) memset(buffers[each], 'a' + each, room), parts[each].iov_len = (size_t)each;
    REPORT(sendmmsg(pair[0], messages, 5, 0));
    for (int each = 0; each < 5; each++) say("message %d: %u", each, messages[each].msg_len);
    REPORT(sendmmsg(pair[1], messages, 2, 0));
    REPORT(sendmmsg(pair[0], messages, 0, 0));

    say("-- recvmmsg");
    wait_for(pair[1], POLLIN);
    prepare(3, room);
    struct sockaddr_in from = {0};
    messages[0].msg_hdr.msg_name = &from;
    messages[0].msg_hdr.msg_namelen = sizeof from;
    REPORT(recvmmsg(pair[1], messages, 3, 0, NULL));
    for (int each = 0; each < 3; each++) say("message %d: %u %.*s", each, messages[each].msg_len, messages[each].msg_len, buffers[each]);
    say("from us: %d, name length %u", ntohs(from.sin_port) == port_of(pair[0]), messages[0].msg_hdr.msg_namelen);
    prepare(5, room);
    REPORT(recvmmsg(pair[1], messages, 5, MSG_WAITFORONE, NULL));
    REPORT(recvmmsg(pair[1], messages, 5, MSG_DONTWAIT, NULL));
    struct timespec limit = {0, 50000000};
    prepare(5, room);
    send(pair[0], "x", 1, 0);
    wait_for(pair[1], POLLIN);
    set_timeout(pair[1], SO_RCVTIMEO, 200);
    REPORT(recvmmsg(pair[1], messages, 5, 0, &limit));
    REPORT(recvmmsg(pair[1], messages, 5, 0, &limit));
    limit = (struct timespec){-1, 0};
    REPORT(recvmmsg(pair[1], messages, 5, 0, &limit));
    limit = (struct timespec){0, 2000000000};
    REPORT(recvmmsg(pair[1], messages, 5, 0, &limit));
    limit = (struct timespec){3, 0};
    for (int each = 0; each < 5; each++) send(pair[0], "full", 4, 0);
    sleep_ms(50);
    REPORT(recvmmsg(pair[1], messages, 5, 0, &limit));
    say("time left: %d", limit.tv_sec == 2);

    say("-- partial results");
    for (int each = 0; each < 2; each++) send(pair[0], "long message", 12, 0);
    sleep_ms(50);
    prepare(4, 4);
    REPORT(recvmmsg(pair[1], messages, 4, 0, NULL));
    say("lengths %u %u, flags %d %d", messages[0].msg_len, messages[1].msg_len, messages[0].msg_hdr.msg_flags == MSG_TRUNC,
        messages[1].msg_hdr.msg_flags == MSG_TRUNC);
    prepare(3, 10);
    parts[1].iov_base = (void *)16;
    REPORT(sendmmsg(pair[0], messages, 3, 0));
    prepare(3, 10);
    static char huge[70000];
    parts[2] = (struct iovec){huge, sizeof huge};
    REPORT(sendmmsg(pair[0], messages, 3, 0));
    messages[0] = messages[2];
    REPORT(sendmmsg(pair[0], messages, 3, 0));

    say("-- on a stream");
    int stream[2];
    connected(stream);
    prepare(3, 10);
    REPORT(sendmmsg(stream[0], messages, 3, 0));
    sleep_ms(50);
    prepare(3, 15);
    REPORT(recvmmsg(stream[1], messages, 3, MSG_WAITFORONE, NULL));
    say("lengths %u %u", messages[0].msg_len, messages[1].msg_len);
}

static void of_datagrams(void) {
    int pair[2];
    char text[64];
    datagrams(pair);
    set_timeout(pair[1], SO_RCVTIMEO, 100);
    say("-- flags, datagrams");
    MUST(send(pair[0], "twelve bytes", 12, MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CONFIRM));
    wait_for(pair[1], POLLIN);
    REPORT(recv(pair[1], text, 5, MSG_PEEK));
    REPORT(recv(pair[1], text, 5, MSG_PEEK | MSG_TRUNC));
    REPORT(recv(pair[1], NULL, 0, MSG_PEEK | MSG_TRUNC));
    REPORT(recv(pair[1], text, 64, MSG_WAITALL));
    REPORT(recv(pair[1], text, 64, MSG_DONTWAIT));
    REPORT(recv(pair[1], text, 64, 0));
    REPORT(recv(pair[1], text, 64, MSG_OOB));
    REPORT(send(pair[0], "x", 1, MSG_OOB));
    REPORT(recv(pair[1], text, 64, MSG_ERRQUEUE));
    REPORT(recv(pair[0], text, 64, MSG_ERRQUEUE));
    say("-- empty datagrams");
    REPORT(send(pair[0], "", 0, 0));
    REPORT(recv(pair[1], text, 64, 0));
    struct sockaddr_in name = loopback(port_of(pair[0]));
    REPORT(sendto(pair[1], "", 0, 0, (struct sockaddr *)&name, sizeof name));
    wait_for(pair[0], POLLIN);
    REPORT(recv(pair[0], text, 64, MSG_PEEK));
    REPORT(recv(pair[0], text, 64, 0));
    REPORT(recv(pair[0], text, 64, MSG_DONTWAIT));
    say("-- corked");
    REPORT(send(pair[0], "one ", 4, MSG_MORE));
    REPORT(send(pair[0], "two ", 4, MSG_MORE));
    REPORT(recv(pair[1], text, 64, MSG_DONTWAIT));
    REPORT(send(pair[0], "three", 5, 0));
    wait_for(pair[1], POLLIN);
    ssize_t got = recv(pair[1], text, 64, 0);
    say("%zd %.*s", got, (int)got, text);
    int on = 1;
    REPORT(setsockopt(pair[0], IPPROTO_UDP, UDP_CORK, &on, 4));
    REPORT(send(pair[0], "four ", 5, 0));
    REPORT(send(pair[0], "five", 4, 0));
    REPORT(recv(pair[1], text, 64, MSG_DONTWAIT));
    on = 0;
    REPORT(setsockopt(pair[0], IPPROTO_UDP, UDP_CORK, &on, 4));
    wait_for(pair[1], POLLIN);
    got = recv(pair[1], text, 64, 0);
    say("%zd %.*s", got, (int)got, text);
    say("-- addresses");
    struct sockaddr_in third = loopback(port_of(pair[1]));
    REPORT(sendto(pair[0], "peer", 4, 0, (struct sockaddr *)&third, sizeof third));
    REPORT(recv(pair[1], text, 64, 0));
    int another = bound(SOCK_DGRAM);
    third = loopback(port_of(another));
    REPORT(sendto(pair[0], "another", 7, 0, (struct sockaddr *)&third, sizeof third));
    wait_for(another, POLLIN);
    REPORT(recv(another, text, 64, MSG_DONTWAIT));
    REPORT(sendto(pair[1], "x", 1, 0, NULL, 0));
    REPORT(sendto(pair[1], "x", 1, 0, (struct sockaddr *)&third, 4));
    third.sin_port = 0;
    REPORT(sendto(pair[1], "x", 1, 0, (struct sockaddr *)&third, sizeof third));
    third.sin_family = AF_INET6;
    REPORT(sendto(pair[1], "x", 1, 0, (struct sockaddr *)&third, sizeof third));
    struct sockaddr_in from;
    socklen_t length = 6;
    MUST(send(pair[0], "x", 1, 0));
    REPORT(recvfrom(pair[1], text, 64, 0, (struct sockaddr *)&from, &length));
    say("name length %u", length);
    REPORT(ioctl(pair[1], FIONREAD, &length));
}

static void of_streams(void) {
    int pair[2];
    char text[64];
    connected(pair);
    say("-- flags, streams");
    MUST(send(pair[0], "twelve bytes", 12, MSG_MORE));
    MUST(send(pair[0], "", 0, 0));
    wait_for(pair[1], POLLIN);
    REPORT(recv(pair[1], text, 5, MSG_PEEK));
    REPORT(recv(pair[1], text, 5, MSG_PEEK | MSG_TRUNC));
    REPORT(recv(pair[1], text, 5, MSG_WAITALL));
    REPORT(recv(pair[1], text, 64, MSG_DONTWAIT));
    REPORT(recv(pair[1], text, 64, MSG_DONTWAIT));
    REPORT(recv(pair[1], text, 64, MSG_OOB));
    REPORT(recv(pair[1], text, 64, MSG_ERRQUEUE));
    MUST(send(pair[0], "dropped", 7, 0));
    wait_for(pair[1], POLLIN);
    REPORT(recv(pair[1], NULL, 7, MSG_TRUNC));
    REPORT(recv(pair[1], text, 64, MSG_DONTWAIT));
    REPORT(recv(pair[1], text, 0, MSG_DONTWAIT));
    set_timeout(pair[1], SO_RCVTIMEO, 50);
    MUST(send(pair[0], "part", 4, 0));
    REPORT(recv(pair[1], text, 10, MSG_WAITALL));
    REPORT(recv(pair[1], text, 10, MSG_WAITALL));
    struct sockaddr_in name = loopback(9);
    REPORT(sendto(pair[0], "x", 1, 0, (struct sockaddr *)&name, sizeof name));
    socklen_t length = sizeof name;
    memset(&name, 7, sizeof name);
    REPORT(recvfrom(pair[1], text, 64, 0, (struct sockaddr *)&name, &length));
    say("name length %u, family %x", length, name.sin_family);
    say("-- urgent data");
    MUST(send(pair[0], "abc", 3, MSG_OOB));
    sleep_ms(50);
    REPORT(sockatmark(pair[1]));
    REPORT(recv(pair[1], text, 64, 0));
    REPORT(sockatmark(pair[1]));
    REPORT(recv(pair[1], text, 64, MSG_OOB | MSG_PEEK));
    REPORT(recv(pair[1], text, 64, MSG_OOB));
    REPORT(recv(pair[1], text, 64, MSG_OOB));
    say("-- fast open");
    int listening_one = listening(), early = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    name = loopback(port_of(listening_one));
    REPORT(sendto(early, "early", 5, MSG_FASTOPEN, (struct sockaddr *)&name, sizeof name));
    int accepted = (int)MUST(accept(listening_one, NULL, NULL));
    wait_for(accepted, POLLIN);
    REPORT(recv(accepted, text, 64, 0));
    say("-- not connected");
    signal(SIGPIPE, SIG_IGN);
    int fresh = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    REPORT(send(fresh, "x", 1, 0));
    REPORT(recv(fresh, text, 1, 0));
    REPORT(recv(fresh, text, 1, MSG_OOB));
    REPORT(sendto(fresh, "x", 1, 0, (struct sockaddr *)&name, sizeof name));
    REPORT(write(fresh, "x", 1));
    REPORT(read(fresh, text, 1));
    int listener = listening();
    REPORT(send(listener, "x", 1, 0));
    REPORT(recv(listener, text, 1, 0));
    int value = 5;
    REPORT(ioctl(listener, FIONREAD, &value));
    REPORT(ioctl(listener, TIOCOUTQ, &value));
    REPORT(ioctl(fresh, FIONREAD, &value));
    say("value %d", value);
    REPORT(ioctl(fresh, TIOCOUTQ, &value));
    say("value %d", value);
    REPORT(sockatmark(1));
    REPORT(recv(1, text, 1, 0));
    REPORT(recv(999, text, 1, 0));
}

int main(void) {
    several();
    of_datagrams();
    of_streams();
    return 0;
}
