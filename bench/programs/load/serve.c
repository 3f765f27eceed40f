#define _GNU_SOURCE
// The server: a thread for each bulk connection, since a blocking loop is what costs least on any stack; one epoll loop for
// all that send back.
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct stream { int socket, sends; size_t size; };

static void *run_stream(void *argument) {
    struct stream stream = *(struct stream *)argument;
    free(argument);
    char *buffer = calloc(1, stream.size);
    if (!buffer) fail("memory");
    for (;;) {
        ssize_t done = stream.sends ? send(stream.socket, buffer, stream.size, MSG_NOSIGNAL)
                                    : read(stream.socket, buffer, stream.size);
        if (done == 0 || (done < 0 && errno != EINTR)) break;
    }
    free(buffer);
    close(stream.socket);
    return 0;
}

struct acceptor { int listener, sends; size_t size; };

static void *accept_streams(void *argument) {
    struct acceptor *acceptor = argument;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int connection = accept(acceptor->listener, 0, 0);
        if (connection < 0) {
            if (errno == EINTR || errno == ECONNABORTED) continue;
            fail("accept");
        }
        struct stream *stream = malloc(sizeof *stream);
        pthread_t thread;
        if (!stream) fail("memory");
        *stream = (struct stream){connection, acceptor->sends, acceptor->size};
        if (pthread_create(&thread, &attributes, run_stream, stream) != 0) fail("thread");
    }
}

static void begin_streams(int port, int sends, size_t size) {
    struct acceptor *acceptor = malloc(sizeof *acceptor);
    pthread_t thread;
    if (!acceptor) fail("memory");
    *acceptor = (struct acceptor){open_listener(port), sends, size};
    if (pthread_create(&thread, 0, accept_streams, acceptor) != 0) fail("thread");
}

static void watch(int poll, int descriptor, uint64_t tag) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = tag | (uint32_t)descriptor};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, descriptor, &event) != 0) fail("epoll");
}

static const uint64_t LISTENER = 1ull << 32;

static void accept_echoes(int poll, int listener) {
    for (int round = 0; round < 64; round++) {
        int connection = accept4(listener, 0, 0, SOCK_NONBLOCK);
        if (connection < 0) return;
        set_no_delay(connection);
        watch(poll, connection, 0);
    }
}

int serve(const struct options *options) {
    static char buffer[65536];
    int poll = epoll_create1(0);
    begin_streams(SINK_PORT, 0, options->size);
    begin_streams(SOURCE_PORT, 1, options->size);
    for (int i = 0; i < ECHO_PORTS; i++) {
        int listener = open_listener(ECHO_PORT + i);
        fcntl(listener, F_SETFL, O_NONBLOCK);
        watch(poll, listener, LISTENER);
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            int descriptor = (int)(uint32_t)events[i].data.u64;
            if (events[i].data.u64 & LISTENER) {
                accept_echoes(poll, descriptor);
                continue;
            }
            ssize_t length = read(descriptor, buffer, sizeof buffer);
            if (length > 0) length = send(descriptor, buffer, (size_t)length, MSG_NOSIGNAL);
            if (length == 0 || (length < 0 && errno != EAGAIN && errno != EINTR)) close(descriptor);
        }
    }
}
