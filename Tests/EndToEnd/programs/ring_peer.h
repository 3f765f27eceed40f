/* A connection between this process and another one that does what it is asked: send and receive the sequence, end, and tell. */
#ifndef RING_PEER_H
#define RING_PEER_H
#include "raw.h"
#include "rings.h"
#include <linux/sockios.h>

#define BACK 500009ul  /* where in the sequence the way to this process begins */
#define BULK (2 * MIB)
#define BIG 65536
#define SOME 100000ul  /* that much is taken without anybody reading */

static int near, to_peer, from_peer;
static pid_t peer;
static uint64_t out, in;  /* positions of this end */

struct order { uint64_t what, count, call; };

static long eventually(int fd, unsigned long request, long wanted) {
    int value = -1;
    for (long deadline = now() + 10000; now() < deadline;) {
        MUST(ioctl(fd, request, &value));
        if (value == wanted) return value;
        usleep(2000);
    }
    return value;
}

static void at_least(int fd, unsigned long request, long wanted) {
    int value = -1;
    for (long deadline = now() + 10000; value < wanted && now() < deadline; usleep(2000)) MUST(ioctl(fd, request, &value));
}

/* Sends until there is no room for a while. */
static uint64_t fill(int fd, uint64_t position, size_t call) {
    uint64_t start = position;
    for (long last = now(); now() < last + 300;) {
        ssize_t sent = send(fd, bytes_at(position), call, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) position += (uint64_t)sent, last = now();
        else if (errno == EAGAIN) usleep(5000);
        else MUST(sent);
    }
    return position - start;
}

static void be_peer(int port, int orders, int answers) {
    int fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    connect_to(fd, port);
    uint64_t position = 0, received = 0;
    struct order order;
    unsigned char *buffer = malloc(MIB);
    while (read(orders, &order, sizeof order) == sizeof order) {
        uint64_t value = 0;
        switch (order.what) {
        case 's': position = send_sequence(fd, BACK + position, order.count, order.call) - BACK; break;
        case 'f': value = fill(fd, BACK + position, order.call), position += value; break;
        case 'r': received = receive_sequence("peer", fd, received, order.count, order.call); break;
        case 'e': MUST(value = (uint64_t)read(fd, buffer, order.count)); break;  /* the end: 0 */
        case 'R': {
            // What comes before the reset is right; how much it is nobody promises.
            ssize_t got;
            while ((got = read(fd, buffer, BIG)) > 0) {
                if (differs("peer", buffer, received, (size_t)got)) _exit(99);
                received += (uint64_t)got;
            }
            value = got < 0 ? (uint64_t)errno : 0;
            break;
        }
        case 'p': value = received; break;
        case 'o': MUST(send(fd, "!", 1, MSG_OOB)); break;
        case 'w': MUST(shutdown(fd, SHUT_WR)); break;
        case 'q': MUST(eventually(fd, FIONREAD, (long)order.count)), value = order.count; break;
        case 'l': {
            struct linger none = {1, 0};
            MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none));
            MUST(close(fd));
            break;
        }
        case 'c': MUST(close(fd)); break;
        case 'n': {
            int value_of = 0;
            MUST(ioctl(fd, FIONREAD, &value_of));
            value = (uint64_t)value_of;
            break;
        }
        }
        if (write(answers, &value, sizeof value) != sizeof value) _exit(0);
    }
    _exit(0);
}

static void ask(int what, uint64_t count, uint64_t call) {
    struct order order = {(uint64_t)what, count, call};
    MUST(write(to_peer, &order, sizeof order));
}

static uint64_t answer(void) {
    uint64_t value;
    if (read_all(from_peer, &value, sizeof value) != sizeof value) {
        say("the peer has ended");
        _exit(99);
    }
    return value;
}

/* From here to the peer, and from the peer to here, while the other side reads. */
static void give(int fd, uint64_t count, size_t call) {
    ask('r', count, BIG);
    out = send_sequence(fd, out, count, call);
    answer();
}
static void take(int fd, uint64_t count, size_t call) {
    ask('s', count, BIG);
    in = receive_sequence("here", fd, BACK + in, count, call) - BACK;
    answer();
}

static void bulk(int fd) {
    give(fd, BULK, BIG);
    take(fd, BULK, BIG);
}

/* Bytes on their way in both directions that nobody has read. `unload` reads them. */
static void load(int fd) {
    ask('s', SOME, BIG);
    answer();
    out = send_sequence(fd, out, SOME, BIG);
}
static void unload(int fd) {
    in = receive_sequence("here", fd, BACK + in, SOME, 5000) - BACK;
    ask('r', SOME, BIG);
    answer();
}

static int orders[2], answers[2];

static void open_pipes(void) {
    MUST(pipe2(orders, O_CLOEXEC));
    MUST(pipe2(answers, O_CLOEXEC));
    to_peer = orders[1], from_peer = answers[0];
}

/* Connects the two. The peer's socket is its own, ours as well: so both may have rings. */
static void meet_over_pipes(void) {
    int listener = listening(), port = port_of(listener);
    if ((peer = fork()) == 0) {
        close(orders[1]), close(answers[0]), close(listener);
        be_peer(port, orders[0], answers[1]);
    }
    close(orders[0]), close(answers[1]);
    near = (int)MUST(accept(listener, NULL, NULL));
    close(listener);
    out = in = 0;
}

static void meet(void) {
    open_pipes();
    meet_over_pipes();
}

static void part(void) {
    close(to_peer), close(from_peer);
    child_status(peer);
}

static void meet_in_bulk(void) {
    meet();
    bulk(near);
    stage("promoted");
}

struct test { const char *name; void (*run)(void); };

static int run_named(const struct test *tests, const char *name) {
    signal(SIGPIPE, SIG_IGN);
    make_sequence();
    for (; tests->name; tests++) {
        if (strcmp(tests->name, name) != 0) continue;
        tests->run();
        say("done");
        return 0;
    }
    say("no such test");
    return 2;
}
#endif
