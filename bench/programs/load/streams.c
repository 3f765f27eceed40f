#define _GNU_SOURCE
// The client's side of bulk transfer and of round trips.
#include "load.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

struct flow {
    pthread_t thread;
    int socket, sends;
    size_t size;
    _Alignas(64) atomic_ullong bytes;
};

static void *run_flow(void *argument) {
    struct flow *flow = argument;
    char *buffer = calloc(1, flow->size);
    if (!buffer) fail("memory");
    for (;;) {
        ssize_t done = flow->sends ? send(flow->socket, buffer, flow->size, MSG_NOSIGNAL)
                                   : read(flow->socket, buffer, flow->size);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) fail(flow->sends ? "send" : "read");
        atomic_fetch_add_explicit(&flow->bytes, (unsigned long long)done, memory_order_relaxed);
    }
}

static unsigned long long total(struct flow *flows, int count) {
    unsigned long long sum = 0;
    for (int i = 0; i < count; i++) sum += atomic_load_explicit(&flows[i].bytes, memory_order_relaxed);
    return sum;
}

// Counted between two instants in the middle: buffers are full at both.
int bulk(const struct options *options, int sends) {
    struct flow *flows = calloc((size_t)options->count, sizeof *flows);
    if (!flows) fail("memory");
    for (int i = 0; i < options->count; i++) {
        flows[i].sends = sends;
        flows[i].size = options->size;
        flows[i].socket = open_connection(options->host, sends ? SINK_PORT : SOURCE_PORT);
        if (flows[i].socket < 0) fail("connect");
        if (pthread_create(&flows[i].thread, 0, run_flow, &flows[i]) != 0) fail("thread");
    }
    pause_for(options->warm_up);
    struct account begin = take_account(options);
    unsigned long long before = total(flows, options->count);
    pause_for(options->seconds);
    struct account end = take_account(options);
    unsigned long long bytes = total(flows, options->count) - before;
    printf("{\"bytes\": %llu, \"gbps\": %.4f, ", bytes, (double)bytes * 8 / (end.time - begin.time) / 1e9);
    print_account(&begin, &end);
    puts("}");
    fflush(stdout);
    _exit(bytes ? 0 : 1);
}

int round_trips(const struct options *options) {
    int connection = open_connection(options->host, ECHO_PORT);
    if (connection < 0) fail("connect");
    struct samples samples = {0};
    struct account begin = {0};
    char byte = 'x';
    double start = now(), measured = start + options->warm_up, stop = measured + options->seconds;
    for (int measuring = 0;;) {
        double before = now();
        if (before >= stop) break;
        if (!measuring && before >= measured) {
            measuring = 1;
            begin = take_account(options);
            continue;
        }
        if (write(connection, &byte, 1) != 1 || read(connection, &byte, 1) != 1) fail("round trip");
        if (measuring) add_sample(&samples, now() - before);
    }
    struct account end = take_account(options);
    printf("{");
    print_samples(&samples);
    printf(", ");
    print_account(&begin, &end);
    puts("}");
    return 0;
}
