/* What poll, select and epoll tell of a stream with bulk data on it, in all of its states. ring_readiness TEST */
#include "ring_peer.h"
#include <linux/userfaultfd.h>

static void describe(char *text, unsigned mask) {
    static const struct { unsigned bit; const char *name; } bits[] = {
        {POLLIN, "in"}, {POLLOUT, "out"}, {POLLPRI, "pri"}, {POLLERR, "err"}, {POLLHUP, "hup"}, {POLLRDHUP, "rdhup"},
        {POLLRDNORM, "rdnorm"}, {POLLWRNORM, "wrnorm"}};
    *text = 0;
    for (size_t each = 0; each < sizeof bits / sizeof *bits; each++) {
        if (mask & bits[each].bit) strcat(strcat(text, *text ? " " : ""), bits[each].name);
    }
}

static int set;  /* an epoll instance that the socket is in all the time */

static unsigned now_ready(int way) {
    unsigned all = POLLIN | POLLOUT | POLLPRI | POLLRDHUP;
    struct pollfd entry = {near, (short)(all | POLLRDNORM | POLLWRNORM), 0};
    struct epoll_event event = {0};
    struct timeval none = {0, 0};
    fd_set in, out_set, except;
    switch (way) {
    case 0:
        MUST(poll(&entry, 1, 0));
        return (unsigned short)entry.revents;
    case 1:
        FD_ZERO(&in);
        FD_ZERO(&out_set);
        FD_ZERO(&except);
        FD_SET(near, &in);
        FD_SET(near, &out_set);
        FD_SET(near, &except);
        MUST(select(near + 1, &in, &out_set, &except, &none));
        return (FD_ISSET(near, &in) ? POLLIN : 0) | (FD_ISSET(near, &out_set) ? POLLOUT : 0) | (FD_ISSET(near, &except) ? POLLPRI : 0);
    default:
        MUST(epoll_wait(set, &event, 1, 0));
        return event.events;
    }
}

/* As soon as nothing changes any more. */
static void tell(const char *state) {
    static const char *ways[] = {"poll", "select", "epoll"};
    char text[100];
    for (int way = 0; way < 3; way++) {
        unsigned seen = now_ready(way);
        for (int same = 0; same < 20; same++) {
            usleep(5000);
            unsigned again = now_ready(way);
            if (again != seen) same = 0;
            seen = again;
        }
        describe(text, seen);
        say("%s, %s: %s", state, ways[way], text);
    }
}

static void watch(unsigned events) {
    struct epoll_event event = {.events = events};
    set = (int)MUST(epoll_create1(0));
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, near, &event));
}

static void read_here(size_t count) { in = receive_sequence("here", near, BACK + in, count, 5000) - BACK; }

static void masks(void) {
    meet_in_bulk();
    watch(EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP);
    char byte;
    for (int turn = 0; turn < 2; turn++) {
        tell("nothing there");
        ask('s', 1, 1), answer();
        tell("one byte");
        read_here(1);
        tell("read");
        ask('s', SOME, BIG), answer();
        tell("much there");
        read_here(SOME - 1);
        tell("all but one byte read");
        read_here(1);
        tell("all read");
        uint64_t left = fill(near, out, BIG);
        out += left;
        tell("full");
        ask('s', SOME, BIG), answer();
        tell("full, and much there");
        ask('r', left, BIG), answer();
        tell("room, and much there");
        read_here(SOME);
        tell("room");
        ask('f', 0, BIG);
        uint64_t come = answer();
        tell("full of what came");
        read_here(come / 2);
        tell("half of it read");
        read_here(come - come / 2);
        tell("all of it read");
        bulk(near);
    }
    uint64_t left = fill(near, out, BIG);
    ask('s', SOME, BIG), answer();
    ask('w', 0, 0), answer();
    tell("the peer's end, much there, and full");
    ask('r', left, BIG), answer();
    out += left;
    tell("the peer's end, much there");
    read_here(SOME);
    tell("the peer's end");
    say("end: %zd", read(near, &byte, 1));
    tell("the end is read");
    give(near, BULK, BIG);
    MUST(shutdown(near, SHUT_WR));
    tell("both ended");
    MUST(close(near));
    part();

    meet_in_bulk();
    watch(EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP);
    MUST(shutdown(near, SHUT_WR));
    tell("ended here");
    ask('s', SOME, BIG), answer();
    tell("ended here, much there");
    read_here(SOME);
    tell("ended here, all read");
    MUST(close(near));
    part();

    for (int much = 0; much < 2; much++) {
        meet_in_bulk();
        watch(EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP);
        if (much) load(near), fill(near, out, BIG);
        ask('l', 0, 0), answer();
        tell(much ? "reset, with much there" : "reset");
        MUST(close(near));
        part();
    }
}

/* Level-triggered, a little at a time: never asleep while there is something. */
static void little_by_little(void) {
    meet_in_bulk();
    fcntl(near, F_SETFL, O_NONBLOCK);
    watch(EPOLLIN);
    long longest = 0;
    int idle = 0, waits = 0;
    for (int turn = 0; turn < 20; turn++) {
        load(near);
        eventually(near, FIONREAD, SOME);
        for (uint64_t end = in + SOME; in < end;) {
            static unsigned char bytes[1000];
            struct epoll_event event;
            if (turn % 2) waits++, idle += now_ready(2) == 0;
            long before = now();
            if (MUST(epoll_wait(set, &event, 1, 10000)) != 1) say("asleep with %llu bytes there", (unsigned long long)(end - in)), _exit(99);
            if (now() - before > longest) longest = now() - before;
            ssize_t got = read(near, bytes, sizeof bytes);
            if (got != 1000 && got != (ssize_t)(end - in)) say("read %zd", got), MUST(got);
            if (differs("here", bytes, BACK + in, (size_t)got)) _exit(99);
            in += (uint64_t)got;
        }
        struct pollfd entry = {near, POLLIN, 0};
        if (poll(&entry, 1, 0) != 0) say("something there that is not");
        ask('r', SOME, BIG), answer();
    }
    if (longest > 500) say("asleep for %ld ms", longest);
    if (getenv("RING_FIGURES")) say("idle %d of %d, longest %ld ms", idle, waits, longest);
    MUST(close(near));
    part();
}

/* Every time that it is told of room, a write succeeds. */
static void told_of_room(void) {
    meet_in_bulk();
    fcntl(near, F_SETFL, O_NONBLOCK);
    watch(EPOLLOUT);
    uint64_t share = 16 * MIB;
    ask('r', share, 3000);
    int refused = 0, turns = 0;
    for (uint64_t end = out + share; out < end; turns++) {
        struct epoll_event event;
        struct pollfd entry = {near, POLLOUT, 0};
        fd_set room;
        FD_ZERO(&room);
        FD_SET(near, &room);
        struct timeval limit = {10, 0};
        int told = turns % 3 == 0 ? epoll_wait(set, &event, 1, 10000) : turns % 3 == 1 ? poll(&entry, 1, 10000) : select(near + 1, NULL, &room, NULL, &limit);
        if (told != 1) say("no room for 10 s"), _exit(99);
        size_t count = end - out < BIG ? end - out : BIG;
        ssize_t sent = write(near, bytes_at(out), count);
        if (sent < 0) refused++;
        else out += (uint64_t)sent;
        if (turns % 5 != 0) continue;
        while ((sent = write(near, bytes_at(out), end - out < 500 ? end - out : 500)) > 0) out += (uint64_t)sent;
    }
    answer();
    say("refused: %d", refused);
    MUST(close(near));
    part();
}

/* Edge-triggered from some time on: no edge is missed by one that reads and writes until it is told to wait. */
static void edges(unsigned flags) {
    meet_in_bulk();
    load(near);
    fcntl(near, F_SETFL, O_NONBLOCK);
    watch(EPOLLIN);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | flags};
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, near, &event));
    struct rng rng = {5};
    static unsigned char bytes[BIG];
    uint64_t end_in = in + SOME, end_out = out;
    for (int turn = 0; turn < 150; turn++) {
        uint64_t come = 1 + below(&rng, one_in(&rng, 3) ? 500000 : 3000), go = 1 + below(&rng, one_in(&rng, 3) ? 500000 : 3000);
        if (turn == 0) ask('r', SOME, BIG), answer();
        ask('s', come, 1 + below(&rng, BIG)), end_in += come;
        ask('r', go, 1 + below(&rng, BIG)), end_out += go;
        while (in < end_in || out < end_out) {
            if (flags & EPOLLONESHOT) MUST(epoll_ctl(set, EPOLL_CTL_MOD, near, &event));
            struct epoll_event told;
            if (in == end_in) goto writing;
            if (MUST(epoll_wait(set, &told, 1, 10000)) != 1) say("turn %d: no edge, %llu to come, %llu to go", turn, (unsigned long long)(end_in - in), (unsigned long long)(end_out - out)), _exit(99);
            for (;;) {
                ssize_t got = read(near, bytes, 1 + below(&rng, BIG));
                if (got < 0 && errno == EAGAIN) break;
                MUST(got);
                if (differs("here", bytes, BACK + in, (size_t)got)) _exit(99);
                in += (uint64_t)got;
            }
        writing:
            while (out < end_out) {
                ssize_t sent = write(near, bytes_at(out), end_out - out < MIB ? end_out - out : MIB);
                if (sent < 0 && errno == EAGAIN) {
                    if (flags & EPOLLONESHOT) MUST(epoll_ctl(set, EPOLL_CTL_MOD, near, &event));
                    if (in == end_in && epoll_wait(set, &told, 1, 10000) != 1) say("turn %d: no edge for room", turn), _exit(99);
                    break;
                }
                out += (uint64_t)MUST(sent);
            }
        }
        answer(), answer();
    }
    MUST(close(near));
    part();
}
static void late_edges(void) { edges(EPOLLET); }
static void one_shot(void) { edges(EPOLLONESHOT); }
static void one_shot_edges(void) { edges(EPOLLONESHOT | EPOLLET); }

/* Several at once in one instance, in another instance, in poll with other things. */
static void nested(void) {
    meet_in_bulk();
    watch(EPOLLIN);
    int outer = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    MUST(epoll_ctl(outer, EPOLL_CTL_ADD, set, &event));
    for (int turn = 0; turn < 20; turn++) {
        if (epoll_wait(outer, &event, 1, 0) != 0) say("something there that is not");
        ask('s', SOME, BIG), answer();
        if (epoll_wait(outer, &event, 1, 10000) != 1) say("nothing told");
        read_here(SOME);
    }
    MUST(close(near));
    part();
}

/* Connected, much has gone over it, and now nothing happens. */
static void idle(void) {
    meet_in_bulk();
    watch(EPOLLIN);
    struct rusage before, after;
    stage("quiet");
    getrusage(RUSAGE_SELF, &before);
    struct epoll_event event;
    if (epoll_wait(set, &event, 1, 2000) != 0) say("something there that is not");
    getrusage(RUSAGE_SELF, &after);
    long used = (after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1000000 + after.ru_utime.tv_usec - before.ru_utime.tv_usec +
                (after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1000000 + after.ru_stime.tv_usec - before.ru_stime.tv_usec;
    if (used > 20000) say("used %ld us", used);
    stage("still quiet");
    load(near);
    stage("with unread bytes");
    usleep(2000000);
    stage("still with unread bytes");
    unload(near);
    uint64_t left = fill(near, out, BIG);
    stage("full");
    usleep(2000000);
    stage("still full");
    ask('r', left, BIG), answer();
    MUST(close(near));
    part();
}

/* Read in part while the host (HOST_PID) stands still: poll and select find the rest all the same. */
static void partly(void) {
    pid_t host = atoi(getenv("HOST_PID"));
    meet_in_bulk();
    load(near);
    at_least(near, FIONREAD, SOME);
    MUST(kill(host, SIGSTOP));
    usleep(50000);
    in = receive_sequence("here", near, BACK + in, 5000, 5000) - BACK;
    struct pollfd entry = {near, POLLIN, 0};
    struct timeval none = {0, 0};
    struct timespec nothing = {0, 0};
    fd_set readable, writable;
    for (int turn = 0; turn < 2; turn++) {
        int polled = poll(&entry, 1, 0);
        say("poll %d %x", polled, entry.revents);
        polled = ppoll(&entry, 1, &nothing, NULL);
        say("ppoll %d %x", polled, entry.revents);
        FD_ZERO(&readable);
        FD_ZERO(&writable);
        FD_SET(near, &readable);
        FD_SET(orders[1], &writable);
        int selected = select(FD_SETSIZE, &readable, &writable, NULL, &none);
        say("select %d %d %d", selected, FD_ISSET(near, &readable) != 0, FD_ISSET(orders[1], &writable) != 0);
        FD_ZERO(&readable);
        FD_SET(near, &readable);
        selected = pselect(near + 1, &readable, NULL, NULL, &nothing, NULL);
        say("pselect %d %d", selected, FD_ISSET(near, &readable) != 0);
        if (turn == 0) in = receive_sequence("here", near, BACK + in, SOME - 5000, SOME) - BACK;
    }
    MUST(kill(host, SIGCONT));
    ask('r', SOME, BIG), answer();
    MUST(close(near));
    part();
}

/* The host appends while a reader is in the middle of its copy, and sleeps before the reader has come to an end. */
static unsigned char *slow_page;
static int faults;
static void *append_at_fault(void *unused) {
    struct uffd_msg message;
    MUST(read(faults, &message, sizeof message));
    ask('s', SOME, BIG), answer();
    usleep(200000);
    struct uffdio_zeropage page = {.range = {(uintptr_t)slow_page, 4096}};
    MUST(ioctl(faults, UFFDIO_ZEROPAGE, &page));
    return unused;
}
static void appended(void) {
    meet_in_bulk();
    watch(EPOLLIN);
    ask('s', SOME, BIG), answer();
    at_least(near, FIONREAD, SOME);
    unsigned char *bytes = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    slow_page = bytes + 65536;
    memset(bytes, 1, 65536);
    faults = (int)MUST(syscall(SYS_userfaultfd, O_CLOEXEC));
    struct uffdio_api api = {.api = UFFD_API};
    MUST(ioctl(faults, UFFDIO_API, &api));
    struct uffdio_register slow = {.range = {(uintptr_t)slow_page, 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    MUST(ioctl(faults, UFFDIO_REGISTER, &slow));
    pthread_t appender;
    pthread_create(&appender, NULL, append_at_fault, NULL);
    ssize_t got = MUST(read(near, bytes, MIB));
    if (differs("here", bytes, BACK + in, (size_t)got)) _exit(99);
    in += (uint64_t)got;
    pthread_join(appender, NULL);
    struct epoll_event event;
    say("%zd, then told %d", got, epoll_wait(set, &event, 1, 5000));
    read_here(SOME);
    MUST(close(near));
    part();
}

static const struct test tests[] = {{"masks", masks}, {"little-by-little", little_by_little}, {"told-of-room", told_of_room},
                                    {"late-edges", late_edges}, {"one-shot", one_shot}, {"one-shot-edges", one_shot_edges},
                                    {"nested", nested}, {"idle", idle}, {"partly", partly}, {"appended", appended},
                                    {NULL, NULL}};

int main(int count, char **arguments) { return run_named(tests, arguments[1]); }
