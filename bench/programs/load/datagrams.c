// UDP in batches, both sides.
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BATCH = 32, LARGEST = 2048 };

struct batch {
    struct mmsghdr messages[BATCH];
    struct iovec vectors[BATCH];
    char data[BATCH][LARGEST];
};

static struct batch *make_batch(size_t size) {
    struct batch *batch = calloc(1, sizeof *batch);
    if (!batch) fail("memory");
    for (int i = 0; i < BATCH; i++) {
        batch->vectors[i] = (struct iovec){batch->data[i], size};
        batch->messages[i].msg_hdr.msg_iov = &batch->vectors[i];
        batch->messages[i].msg_hdr.msg_iovlen = 1;
    }
    return batch;
}

int send_datagrams(const struct options *options) {
    if (options->size > LARGEST) {
        fprintf(stderr, "load: datagrams have up to %d bytes\n", LARGEST);
        return 2;
    }
    int connection = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = address_of(options->host, options->port);
    if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof address) != 0) fail("connect");
    struct batch *batch = make_batch(options->size);
    unsigned long long count = 0;
    double begin = now(), stop = begin + options->seconds, time;
    while ((time = now()) < stop) {
        int sent = sendmmsg(connection, batch->messages, BATCH, 0);
        // A full queue is not an end, nor is a receiver that has not yet begun.
        if (sent < 0 && errno != ENOBUFS && errno != EAGAIN && errno != ECONNREFUSED && errno != EINTR) fail("send");
        if (sent > 0) count += (unsigned long long)sent;
    }
    printf("{\"count\": %llu, \"rate\": %.1f}\n", count, (double)count / (time - begin));
    return 0;
}

static unsigned receive_some(int socket, struct batch *batch) {
    int count = recvmmsg(socket, batch->messages, BATCH, MSG_DONTWAIT, 0);
    if (count < 0 && errno != EAGAIN && errno != EINTR) fail("receive");
    if (count > 0) return (unsigned)count;
    struct pollfd wait = {.fd = socket, .events = POLLIN};
    poll(&wait, 1, 100);
    return 0;
}

int receive_datagrams(const struct options *options) {
    int receiver = socket(AF_INET, SOCK_DGRAM, 0), buffer = 4 << 20;
    struct sockaddr_in address = address_of("0.0.0.0", options->port);
    if (receiver < 0 || bind(receiver, (struct sockaddr *)&address, sizeof address) != 0) fail("bind");
    setsockopt(receiver, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    struct batch *batch = make_batch(LARGEST);
    puts("ready");
    fflush(stdout);
    while (receive_some(receiver, batch) == 0) {}
    for (double end = now() + options->warm_up; now() < end;) receive_some(receiver, batch);
    struct account begin = take_account(options);
    unsigned long long count = 0;
    for (double end = now() + options->seconds; now() < end;) count += receive_some(receiver, batch);
    struct account end = take_account(options);
    printf("{\"count\": %llu, \"rate\": %.1f, ", count, (double)count / (end.time - begin.time));
    print_account(&begin, &end);
    puts("}");
    return 0;
}
