#define _GNU_SOURCE
// The client's side of short-lived connections, of connections that only stay, and of requests over many of them.
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

struct slot { int socket, asked; double begin; };

static unsigned long errors, opened;
static char byte = 'x';

static void begin_connection(const struct options *options, int poll, struct slot *slots, int index) {
    struct slot *slot = &slots[index];
    slot->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (slot->socket < 0) fail("socket");
    struct sockaddr_in address = address_of(options->host, ECHO_PORT + (int)(opened++ % ECHO_PORTS));
    slot->asked = 0;
    slot->begin = now();
    if (connect(slot->socket, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS) {
        if (++errors > 10000) fail("connect");
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.u32 = (uint32_t)index};
    epoll_ctl(poll, EPOLL_CTL_ADD, slot->socket, &event);
}

static void end_connection(const struct options *options, int poll, struct slot *slots, int index, int failed) {
    errors += (unsigned long)failed;
    if (errors > 10000) fail("requests");
    close(slots[index].socket);
    begin_connection(options, poll, slots, index);
}

// True if the request is answered.
static int advance(const struct options *options, int poll, struct slot *slots, int index, uint32_t events) {
    struct slot *slot = &slots[index];
    if (events & EPOLLERR) {
        end_connection(options, poll, slots, index, 1);
    } else if (!slot->asked) {
        if (write(slot->socket, &byte, 1) != 1) {
            end_connection(options, poll, slots, index, 1);
            return 0;
        }
        slot->asked = 1;
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)index};
        epoll_ctl(poll, EPOLL_CTL_MOD, slot->socket, &event);
    } else {
        ssize_t length = read(slot->socket, &byte, 1);
        if (length < 0 && errno == EAGAIN) return 0;
        if (length == 1) return 1;
        end_connection(options, poll, slots, index, 1);
    }
    return 0;
}

static int one_request(const struct options *options) {
    int connection = open_connection(options->host, ECHO_PORT + (int)(opened++ % ECHO_PORTS));
    int good = connection >= 0 && write(connection, &byte, 1) == 1 && read(connection, &byte, 1) == 1;
    if (!good && ++errors > 10000) fail("request");
    if (connection >= 0) close(connection);
    return good;
}

int connections(const struct options *options) {
    struct samples samples = {0};
    struct account begin = {0};
    int measuring = 0, poll = epoll_create1(0);
    struct slot *slots = calloc((size_t)options->at_once, sizeof *slots);
    if (!slots) fail("memory");
    double measured = now() + options->warm_up, stop = measured + options->seconds;
    if (options->at_once > 1)
        for (int i = 0; i < options->at_once; i++) begin_connection(options, poll, slots, i);
    for (double time; (time = now()) < stop;) {
        if (!measuring && time >= measured) {
            measuring = 1;
            begin = take_account(options);
        }
        if (options->at_once == 1) {
            if (one_request(options) && measuring) add_sample(&samples, now() - time);
            continue;
        }
        struct epoll_event events[64];
        int count = epoll_wait(poll, events, 64, 100);
        for (int i = 0; i < count; i++) {
            int index = (int)events[i].data.u32;
            if (!advance(options, poll, slots, index, events[i].events)) continue;
            if (measuring) add_sample(&samples, now() - slots[index].begin);
            end_connection(options, poll, slots, index, 0);
        }
    }
    struct account end = take_account(options);
    printf("{\"rate\": %.1f, \"errors\": %lu, ", (double)samples.count / (end.time - begin.time), errors);
    print_samples(&samples);
    printf(", ");
    print_account(&begin, &end);
    puts("}");
    return samples.count ? 0 : 1;
}

// Opens up to `count` connections, with one byte forth and back on each. The first that is not answered is the end.
static int open_many(const struct options *options, int *sockets) {
    struct timeval patience = {.tv_sec = 10};
    int open = 0;
    while (open < options->count) {
        int connection = open_connection(options->host, ECHO_PORT + open % ECHO_PORTS);
        if (connection < 0) break;
        setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (write(connection, &byte, 1) != 1 || read(connection, &byte, 1) != 1) {
            close(connection);
            break;
        }
        sockets[open++] = connection;
    }
    return open;
}

int hold(const struct options *options) {
    int *sockets = calloc((size_t)options->count, sizeof *sockets);
    if (!sockets) fail("memory");
    printf("{\"open\": %d}\n", open_many(options, sockets));
    fflush(stdout);
    while (read(0, &byte, 1) > 0) {}
    return 0;
}

enum { MESSAGE = 64 };

int spread(const struct options *options) {
    static char message[MESSAGE];
    int *sockets = calloc((size_t)options->count, sizeof *sockets), poll = epoll_create1(0);
    if (!sockets) fail("memory");
    int open = open_many(options, sockets);
    if (open < options->count) {
        fprintf(stderr, "load: only %d connections opened\n", open);
        return 1;
    }
    // In an order that no cache foresees, the same in each run.
    uint32_t random = 12345;
    for (int i = open - 1; i > 0; i--) {
        random = random * 1664525 + 1013904223;
        int other = (int)(random % (uint32_t)(i + 1)), held = sockets[i];
        sockets[i] = sockets[other];
        sockets[other] = held;
    }
    for (int i = 0; i < open; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        epoll_ctl(poll, EPOLL_CTL_ADD, sockets[i], &event);
    }
    // With few connections several requests are under way on one; a reply is then counted by its bytes.
    int next = 0, at_once = options->at_once, measuring = 0;
    unsigned long long bytes = 0, before = 0;
    for (int i = 0; i < at_once; i++, next = (next + 1) % open)
        if (write(sockets[next], message, MESSAGE) != MESSAGE) fail("write");
    struct account begin = {0};
    double measured = now() + options->warm_up, stop = measured + options->seconds;
    unsigned long long requested = (unsigned long long)at_once;
    for (double time; (time = now()) < stop;) {
        if (!measuring && time >= measured) {
            measuring = 1;
            before = bytes;
            begin = take_account(options);
        }
        struct epoll_event events[64];
        int count = epoll_wait(poll, events, 64, 1000);
        for (int i = 0; i < count; i++) {
            static char reply[65536];
            ssize_t length = read(sockets[events[i].data.u32], reply, sizeof reply);
            if (length <= 0) fail("read");
            bytes += (unsigned long long)length;
        }
        for (; requested < bytes / MESSAGE + (unsigned long long)at_once; requested++, next = (next + 1) % open)
            if (write(sockets[next], message, MESSAGE) != MESSAGE) fail("write");
    }
    struct account end = take_account(options);
    unsigned long long messages = (bytes - before) / MESSAGE;
    printf("{\"messages\": %llu, \"rate\": %.1f, ", messages, (double)messages / (end.time - begin.time));
    print_account(&begin, &end);
    puts("}");
    return messages ? 0 : 1;
}
