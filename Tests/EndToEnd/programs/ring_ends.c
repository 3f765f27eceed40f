/* A stream with bulk data on it meets what is not plain reading and writing: ends, resets, urgent bytes, low-water marks,
   counts of what is unread, calls that go past the shim, and several threads. ring_ends TEST */
#include "ring_peer.h"

#define UNREAD 300000  /* more than a pair holds */

static void ends_well(void) {
    stage("over");
    bulk(near);
    load(near);
    unload(near);
    MUST(close(near));
    ask('e', 1, 0);
    if (answer() != 0) say("no end");
    part();
}

static void shut_reading(void) {
    meet_in_bulk();
    load(near);
    eventually(near, FIONREAD, SOME);
    MUST(shutdown(near, SHUT_RD));
    unload(near);
    char byte;
    say("at the end: %zd", read(near, &byte, 1));
    give(near, BULK, BIG);
    MUST(close(near));
    ask('e', 1, 0);
    say("the peer: %llu", (unsigned long long)answer());
    part();
}

static void shut_writing(void) {
    meet_in_bulk();
    load(near);
    MUST(shutdown(near, SHUT_WR));
    char byte;
    say("write: %zd %s", write(near, &byte, 1), strerrorname_np(errno));
    unload(near);
    ask('e', 1, 0);
    say("the peer: %llu", (unsigned long long)answer());
    take(near, BULK, BIG);
    take(near, BULK, 3000);
    ask('w', 0, 0);
    answer();
    say("end: %zd", read(near, &byte, 1));
    MUST(close(near));
    part();
}

/* The peer ends while much is unread, and the end comes behind it. */
static void peer_ends(void) {
    meet_in_bulk();
    ask('f', 0, BIG);
    uint64_t left = answer();
    ask('w', 0, 0);
    answer();
    in = receive_sequence("here", near, BACK + in, left, BIG) - BACK;
    char byte;
    say("end: %zd %zd", read(near, &byte, 1), read(near, &byte, 1));
    give(near, BULK, BIG);
    MUST(close(near));
    part();
}

/* The peer closes while much is unread here. */
static void peer_closes(void) {
    meet_in_bulk();
    ask('f', 0, BIG);
    uint64_t left = answer();
    ask('c', 0, 0);
    answer();
    usleep(200000);
    in = receive_sequence("here", near, BACK + in, left, BIG) - BACK;
    char byte;
    say("end: %zd", read(near, &byte, 1));
    MUST(close(near));
    part();
}

static void reset_by_peer(void) {
    meet_in_bulk();
    load(near);
    fill(near, out, BIG);
    ask('l', 0, 0);
    answer();
    while (!(wait_for(near, 0) & POLLHUP)) usleep(1000);
    // What is left may be read or not, but nothing else, and then the error.
    static unsigned char bytes[BIG];
    ssize_t got;
    while ((got = read(near, bytes, BIG)) > 0) {
        if (differs("here", bytes, BACK + in, (size_t)got)) _exit(99);
        in += (uint64_t)got;
    }
    report("read", got);
    report("read", read(near, bytes, 1));
    report("write", write(near, bytes, 1));
    MUST(close(near));
    part();
}

static void close_unread(void) {
    meet_in_bulk();
    load(near);
    eventually(near, FIONREAD, SOME);
    MUST(close(near));
    stage("over");
    ask('R', 0, 0);
    say("the peer: %s", strerrorname_np((int)answer()));
    part();
}

/* All that was written comes, whichever way the writer goes: its process has the connection alone. */
static void close_unsent(void) {
    static const char *ways[] = {"close", "exit", "killed", "small calls"};
    for (int way = 0; way < 4; way++) {
        int told[2];
        uint64_t written = 0;
        open_pipes();
        MUST(pipe(told));
        pid_t child = fork();
        if (child == 0) {
            meet_over_pipes();
            bulk(near);
            out += fill(near, out, way == 3 ? 3000 : BIG);
            MUST(write(told[1], &out, sizeof out));
            if (way == 1) _exit(0);
            if (way == 2) kill(getpid(), SIGKILL);
            MUST(close(near));
            _exit(0);
        }
        close(orders[0]), close(answers[1]);
        child_status(child);
        MUST(read(told[0], &written, sizeof written));
        ask('R', 0, 0);
        uint64_t error = answer();
        ask('p', 0, 0);
        say("%s: error %llu, missing %lld", ways[way], (unsigned long long)error, (long long)(written - answer()));
        close(to_peer), close(from_peer);
    }
}

static volatile sig_atomic_t urgent;
static void on_urgent(int number) { urgent++; }

static void take_urgent(void) {
    char byte = 0;
    ssize_t got = recv(near, &byte, 1, MSG_OOB);
    say("urgent: %zd %c", got, byte);
}

static void await_urgent(void) {
    struct pollfd entry = {near, POLLPRI, 0};
    if (poll(&entry, 1, 10000) != 1 || !(entry.revents & POLLPRI)) say("no POLLPRI");
}

/* `early`: the program asks for urgent data before there are rings. */
static void urgent_bytes(int early) {
    signal(SIGURG, on_urgent);
    meet();
    if (early) MUST(fcntl(near, F_SETOWN, getpid()));
    bulk(near);
    stage("promoted");
    if (!early) MUST(fcntl(near, F_SETOWN, getpid()));
    for (int turn = 0; turn < 3; turn++) {
        ask('s', 1000, BIG);
        ask('o', 0, 0);
        ask('s', 1000, BIG);
        answer(), answer(), answer();
        await_urgent();
        at_least(near, FIONREAD, 1000);
        int mark = sockatmark(near);
        in = receive_sequence("here", near, BACK + in, 1000, 1000) - BACK;
        say("mark: %d, then %d", mark, sockatmark(near));
        take_urgent();
        in = receive_sequence("here", near, BACK + in, 1000, 1000) - BACK;
        say("mark: %d, signals: %d", sockatmark(near), urgent);
        urgent = 0;
        // An urgent byte behind a lot.
        load(near);
        ask('o', 0, 0);
        answer();
        unload(near);
        await_urgent();
        take_urgent();
        bulk(near);
        urgent = 0;
    }
    // The other way, behind what may lie in a ring.
    ask('r', 3 * SOME, BIG);
    out = send_sequence(near, out, 2 * SOME, BIG);
    MUST(send(near, "?", 1, MSG_OOB));
    out = send_sequence(near, out, SOME, BIG);
    answer();
    ends_well();
}
static void urgent_early(void) { urgent_bytes(1); }
static void urgent_late(void) { urgent_bytes(0); }

static void in_line(void) {
    meet_in_bulk();
    int on = 1;
    MUST(setsockopt(near, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
    char in_line_byte;
    for (int turn = 0; turn < 3; turn++) {
        ask('s', SOME, BIG);
        ask('o', 0, 0);
        ask('s', SOME, BIG);
        in = receive_sequence("here", near, BACK + in, SOME, 1000) - BACK;
        in_line_byte = 0;
        ssize_t got = read(near, &in_line_byte, 1);
        say("in line: %zd %c", got, in_line_byte);
        in = receive_sequence("here", near, BACK + in, SOME, BIG) - BACK;
        answer(), answer(), answer();
        bulk(near);
    }
    ends_well();
}

static void low_water(void) {
    static unsigned char bytes[BIG];
    const int low = 5000, none = 1;
    meet_in_bulk();
    for (int turn = 0; turn < 5; turn++) {
        MUST(setsockopt(near, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low));
        ask('s', 1000, BIG);
        answer();
        eventually(near, FIONREAD, 1000);
        set_timeout(near, SO_RCVTIMEO, 0);
        pid_t child = fork();
        if (child == 0) {
            usleep(100000);
            // Twice the mark, and none below: Linux wakes a call that has taken a part only for as much as the mark again.
            ask('s', 10000, BIG);
            answer();
            _exit(0);
        }
        ssize_t got = recv(near, bytes, BIG, 0);
        say("at least the mark: %d", got >= 5000);
        if (differs("here", bytes, BACK + in, (size_t)got)) _exit(99);
        in += (uint64_t)got;
        child_status(child);
        MUST(setsockopt(near, SOL_SOCKET, SO_RCVLOWAT, &none, sizeof none));
        in = receive_sequence("here", near, BACK + in, (size_t)(11000 - got), 11000 - (size_t)got) - BACK;
        bulk(near);
    }
    ends_well();
}

/* Writes that do not wait, to a peer that reads everything, before, while and after the ring comes: none is cut short. */
static void first_writes(void) {
    static const size_t sizes[] = {65536, 777, 40000, 1};
    int cut = 0, on = 1;
    for (int turn = 0; turn < 10; turn++) {
        meet();
        fcntl(near, F_SETFL, O_NONBLOCK);
        MUST(setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
        for (int each = 0; each < 100; each++) {
            size_t count = sizes[each % 4];
            ssize_t sent;
            if (turn % 2) {
                off_t offset = (off_t)(out % PERIOD);
                sent = MUST(sendfile(near, sequence_file, &offset, count));
            } else {
                sent = MUST(write(near, bytes_at(out), count));
            }
            cut += (size_t)sent != count;
            out += (uint64_t)sent;
            ask('r', (uint64_t)sent, BIG), answer();
        }
        MUST(close(near));
        part();
    }
    say("cut short: %d", cut);
}

/* What is unread, here and there, and what is not acknowledged. */
static void counts(void) {
    meet_in_bulk();
    for (int turn = 0; turn < 5; turn++) {
        load(near);
        say("unread %ld", eventually(near, FIONREAD, SOME));
        in = receive_sequence("here", near, BACK + in, 30000, 7000) - BACK;
        say("then %ld", eventually(near, FIONREAD, SOME - 30000));
        in = receive_sequence("here", near, BACK + in, SOME - 30000, BIG) - BACK;
        say("then %ld", eventually(near, FIONREAD, 0));
        ask('q', SOME, 0);
        say("the peer's %llu, not acknowledged %ld", (unsigned long long)answer(), eventually(near, SIOCOUTQ, 0));
        ask('r', SOME, BIG);
        answer();
        bulk(near);
    }
    uint64_t left = fill(near, out, BIG);
    ask('n', 0, 0);
    int queued = -1, unread = (int)answer();
    MUST(ioctl(near, SIOCOUTQ, &queued));
    say("some are unread: %d, some are queued: %d", unread > 0 && unread < (long)left, queued > 0 && queued <= (long)left);
    ask('r', left, BIG);
    answer();
    out += left;
    say("not acknowledged %ld", eventually(near, SIOCOUTQ, 0));
    ends_well();
}

/* A call that goes by way of the pair, which has no room for all that is unread. The host (HOST_PID) brings no more. */
static void counted_before(int urgent) {
    static unsigned char bytes[UNREAD];
    int tube[2], unread = 0;
    pid_t host = atoi(getenv("HOST_PID"));
    meet_in_bulk();
    uint64_t filled = 0;
    // The kernel's buffer grows with what it has carried.
    for (int turn = 0; turn < 20 && unread < UNREAD; turn++) {
        in = receive_sequence("here", near, BACK + in, filled, BIG) - BACK;
        bulk(near);
        ask('f', 0, BIG);
        filled = answer();
        MUST(ioctl(near, FIONREAD, &unread));
    }
    say("enough is unread: %d", unread >= UNREAD);
    if (urgent) {
        MUST(send(near, "!", 1, MSG_OOB));
    } else {
        MUST(pipe(tube));
        MUST(write(tube[1], bytes_at(out), BIG));
        say("spliced %zd", splice(tube[0], NULL, near, NULL, BIG, 0));
        out += BIG;
    }
    if (host > 0) kill(host, SIGSTOP), usleep(50000);
    ssize_t got = recv(near, bytes, UNREAD, MSG_DONTWAIT);
    if (host > 0) kill(host, SIGCONT);
    say("read %zd", got);
    if (got != UNREAD || differs("here", bytes, BACK + in, UNREAD)) _exit(99);
    in = receive_sequence("here", near, BACK + in + UNREAD, filled - UNREAD, BIG) - BACK;
    if (!urgent) {
        ask('r', BIG, BIG);
        answer();
    }
    ends_well();
}
static void counted_spliced(void) { counted_before(0); }
static void counted_urgent(void) { counted_before(1); }

/* Instructions of the program's own among calls that the shim sees. */
static void past_the_shim(int reading, int writing, int by_function) {
    static unsigned char bytes[BIG];
    struct rng rng = {99};
    meet_in_bulk();
    for (int turn = 0; turn < 8; turn++) {
        ask('r', MIB, BIG);
        for (uint64_t end = out + MIB; out < end;) {
            size_t count = 1 + below(&rng, one_in(&rng, 3) ? 200 : 40000);
            if (count > end - out) count = end - out;
            long sent;
            if (writing && one_in(&rng, 3))
                sent = by_function ? syscall(SYS_write, near, bytes_at(out), count) : raw(SYS_write, near, (long)bytes_at(out), (long)count, 0, 0, 0);
            else sent = write(near, bytes_at(out), count);
            if (sent < 0) say("write: %ld", sent), _exit(99);
            out += (uint64_t)sent;
        }
        answer();
        ask('s', MIB, BIG);
        for (uint64_t end = in + MIB; in < end;) {
            size_t count = 1 + below(&rng, one_in(&rng, 3) ? 200 : 40000);
            if (count > end - in) count = end - in;
            long got;
            if (reading && one_in(&rng, 3))
                got = by_function ? syscall(SYS_read, near, bytes, count) : raw(SYS_read, near, (long)bytes, (long)count, 0, 0, 0);
            else got = read(near, bytes, count);
            if (got <= 0) say("read: %ld", got), _exit(99);
            if (differs("here", bytes, BACK + in, (size_t)got)) _exit(99);
            in += (uint64_t)got;
        }
        answer();
    }
    ends_well();
}
static void by_number(void) { past_the_shim(1, 1, 1); }
static void raw_reads(void) { past_the_shim(1, 0, 0); }

/* The number is closed past the shim, and is a file's then. */
static void stale_number(void) {
    for (int turn = 0; turn < 4; turn++) {
        meet_in_bulk();
        char text[20] = "";
        FILE *file = tmpfile();
        raw(SYS_dup3, fileno(file), near, 0, 0, 0, 0);
        if (turn % 2) usleep(100000);
        ssize_t sent = write(near, "text of a file", 14);
        pread(fileno(file), text, 14, 0);
        say("written %zd: %s", sent, text);
        lseek(near, 0, SEEK_SET);
        say("read %zd", read(near, text, 20));
        fclose(file);
        MUST(close(near));
        part();
    }
}

/* Several threads read one socket: each byte comes to one of them, once. */
#define THREADS 4
static unsigned char *seen;
static uint64_t base, odd_bytes;
static size_t wanted;
static int overlaps;

static void *reader(void *argument) {
    struct rng rng = {(uint64_t)(size_t)argument};
    unsigned char *bytes = malloc(MIB);
    for (;;) {
        ssize_t got = read(near, bytes, 16 + below(&rng, one_in(&rng, 4) ? 2000 : 100000));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        if (got < 8) {
            // Too short to tell where it belongs.
            __atomic_add_fetch(&odd_bytes, (uint64_t)got, __ATOMIC_RELAXED);
            continue;
        }
        const unsigned char *place = memmem(bytes_at(base), wanted + 8, bytes, got < 24 ? (size_t)got : 24);
        if (place == NULL || differs("thread", bytes, (uint64_t)(place - sequence), (size_t)got)) {
            say("bytes of nowhere: %zd", got);
            _exit(99);
        }
        size_t first = (size_t)(place - bytes_at(base));
        for (ssize_t each = 0; each < got; each++)
            if (__atomic_exchange_n(seen + first + (size_t)each, 1, __ATOMIC_RELAXED)) __atomic_add_fetch(&overlaps, 1, __ATOMIC_RELAXED);
    }
    free(bytes);
    return NULL;
}

static void threads_read(void) {
    for (int turn = 0; turn < 6; turn++) {
        meet_in_bulk();
        wanted = MIB - 70000;
        base = BACK + in, odd_bytes = 0, overlaps = 0;
        seen = calloc(2, MIB);
        pthread_t all[THREADS];
        for (size_t each = 0; each < THREADS; each++) pthread_create(all + each, NULL, reader, (void *)(each + 1 + (size_t)turn * 10));
        ask('s', wanted, 50000);
        answer();
        ask('w', 0, 0);
        answer();
        for (int each = 0; each < THREADS; each++) pthread_join(all[each], NULL);
        size_t count = 0;
        for (size_t each = 0; each < wanted; each++) count += seen[each];
        say("twice %d, missing %lld", overlaps, (long long)(wanted - count - odd_bytes));
        free(seen);
        MUST(close(near));
        part();
    }
}

/* Several threads write: each one's bytes come in its order. The top two bits of a byte say whose it is. */
#define EACH 700000ul
static unsigned char thread_byte(unsigned thread, uint64_t position) {
    uint64_t mixed = (position + 1) * 0x9e3779b97f4a7c15;
    return (unsigned char)(thread << 6 | (mixed >> 40 & 63));
}

static void *writer(void *argument) {
    unsigned number = (unsigned)(size_t)argument;
    struct rng rng = {number + 100};
    unsigned char *bytes = malloc(EACH);
    for (uint64_t each = 0; each < EACH; each++) bytes[each] = thread_byte(number, each);
    for (uint64_t at = 0; at < EACH;) {
        uint64_t count = 1 + below(&rng, one_in(&rng, 4) ? 3000 : 200000);
        ssize_t sent = write(near, bytes + at, count < EACH - at ? count : EACH - at);
        MUST(sent);
        at += (uint64_t)sent;
    }
    free(bytes);
    return NULL;
}

static void threads_write_once(void) {
    int pair[2];
    connected(pair);
    near = pair[0];
    pthread_t all[THREADS];
    for (size_t each = 0; each < THREADS; each++) pthread_create(all + each, NULL, writer, (void *)each);
    uint64_t positions[THREADS] = {0}, total = 0;
    unsigned char *bytes = malloc(MIB);
    while (total < THREADS * EACH) {
        ssize_t got = MUST(read(pair[1], bytes, 100000));
        for (ssize_t each = 0; each < got; each++) {
            unsigned whose = bytes[each] >> 6;
            if (bytes[each] != thread_byte(whose, positions[whose])) {
                say("thread %u, %llu: another byte", whose, (unsigned long long)positions[whose]);
                _exit(99);
            }
            positions[whose]++;
        }
        total += (uint64_t)got;
    }
    for (int each = 0; each < THREADS; each++) pthread_join(all[each], NULL);
    MUST(close(near));
    if (read(pair[1], bytes, 1) != 0) say("no end");
    MUST(close(pair[1]));
    free(bytes);
}
/* Often, since it is when the ring comes that one may overtake another. */
static void threads_write(void) {
    for (int turn = 0; turn < 40; turn++) threads_write_once();
}

/* A thread that waits in read and one that waits in write are woken by shutdown in a third. */
static void *wait_to_read(void *argument) {
    unsigned char byte;
    return (void *)read(near, &byte, 1);
}
static void *wait_to_write(void *argument) {
    fill(near, out, BIG);
    ssize_t sent = write(near, bytes_at(out), MIB);
    return (void *)(long)(sent < 0 ? -errno : 1);
}
static void woken_by_shutdown(void) {
    meet_in_bulk();
    pthread_t reads, writes;
    void *got, *sent;
    pthread_create(&reads, NULL, wait_to_read, NULL);
    pthread_create(&writes, NULL, wait_to_write, NULL);
    usleep(1000000);
    MUST(shutdown(near, SHUT_RD));
    pthread_join(reads, &got);
    say("read: %ld", (long)got);
    MUST(shutdown(near, SHUT_WR));
    pthread_join(writes, &sent);
    say("write: %s", (long)sent == 1 || (long)sent == -EPIPE ? "ended" : strerrorname_np((int)-(long)sent));
    part();
}

static unsigned char *long_sequence(size_t count) {
    unsigned char *bytes = malloc(PERIOD + count);
    for (size_t p = 0; p < PERIOD + count; p++) bytes[p] = sequence[p % PERIOD];
    return bytes;
}

#define MUCH (32 * MIB)
static void let_peer_read(int number) { ask('r', MUCH, BIG); }

/* A write that has to wait, and succeeds, leaves errno alone. */
static void errno_left_alone(void) {
    meet_in_bulk();
    struct sigaction action = {.sa_handler = let_peer_read, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGALRM, &action, NULL));
    unsigned char *bytes = long_sequence(MUCH);
    for (int turn = 0; turn < 3; turn++) {
        struct itimerval timer = {.it_value = {0, 100000}};
        MUST(setitimer(ITIMER_REAL, &timer, NULL));
        for (size_t left = MUCH; left > 0;) {
            errno = 0;
            ssize_t sent = write(near, bytes + out % PERIOD, left);
            MUST(sent);
            if (errno != 0) say("%zd, and %s", sent, strerrorname_np(errno));
            out += (uint64_t)sent, left -= (size_t)sent;
        }
        answer();
    }
    free(bytes);
    stage("over");
    MUST(close(near));
    part();
}

/* An alarm, whenever it comes in a write that has to wait, ends it. The second one is for those that come while the shim makes
   the very call that waits, which is some microseconds. */
static void interrupted(void) {
    meet_in_bulk();
    struct sigaction action = {.sa_handler = on_urgent};
    MUST(sigaction(SIGALRM, &action, NULL));
    unsigned char *bytes = long_sequence(MUCH);
    int late = 0;
    for (int turn = 1; turn <= 60; turn++) {
        struct itimerval timer = {.it_value = {0, turn * 150}, .it_interval = {0, 500000}}, none = {0};
        long start = now();
        MUST(setitimer(ITIMER_REAL, &timer, NULL));
        ssize_t sent = write(near, bytes + out % PERIOD, MUCH);
        if (sent < 0 && errno == EINTR) sent = 0;
        MUST(sent);
        MUST(setitimer(ITIMER_REAL, &none, NULL));
        if (now() - start > 400) late++;
        if ((size_t)sent == MUCH) say("all of it");
        out += (uint64_t)sent;
        ask('r', (uint64_t)sent, BIG);
        answer();
    }
    free(bytes);
    if (late > 3) say("late: %d", late);
    stage("over");
    MUST(close(near));
    part();
}

/* The same for a read, whenever the alarm comes. */
static void interrupted_reads(void) {
    meet_in_bulk();
    struct sigaction action = {.sa_handler = on_urgent};
    MUST(sigaction(SIGALRM, &action, NULL));
    int late = 0;
    for (int turn = 0; turn < 300; turn++) {
        struct itimerval timer = {.it_value = {0, 15 + turn % 30}, .it_interval = {0, 100000}}, none = {0};
        char byte;
        long start = now();
        MUST(setitimer(ITIMER_REAL, &timer, NULL));
        ssize_t got = read(near, &byte, 1);
        int error = errno;
        MUST(setitimer(ITIMER_REAL, &none, NULL));
        if (got != -1 || error != EINTR) say("%zd %s", got, strerrorname_np(error));
        if (now() - start > 80) late++;
    }
    if (late > 25) say("late: %d", late);
    stage("over");
    MUST(close(near));
    part();
}

/* Buffers at every distance from the ring's bytes that are copied to or from them in a way of its own, and at a few others. */
static void shifted(void) {
    enum { COUNT = 70000 };
    meet_in_bulk();
    unsigned char *buffer = aligned_alloc(4096, MIB);
    for (uint64_t shift = 0; shift <= 17; shift++) {
        unsigned char *place = buffer + (out - shift) % 4096;
        memcpy(place, bytes_at(out), COUNT);
        ask('r', COUNT, BIG);
        for (size_t done = 0; done < COUNT;) done += (size_t)MUST(write(near, place + done, COUNT - done));
        out += COUNT;
        answer();
        place = buffer + (in + shift) % 4096;
        ask('s', COUNT, BIG);
        for (size_t done = 0; done < COUNT;) done += (size_t)MUST(read(near, place + done, COUNT - done));
        if (differs("here", place, BACK + in, COUNT)) _exit(99);
        in += COUNT;
        answer();
    }
    free(buffer);
    MUST(close(near));
    part();
}

static const struct test tests[] = {
    {"shut-reading", shut_reading}, {"shut-writing", shut_writing}, {"peer-ends", peer_ends}, {"peer-closes", peer_closes},
    {"reset-by-peer", reset_by_peer}, {"close-unread", close_unread}, {"close-unsent", close_unsent},
    {"urgent-early", urgent_early}, {"urgent-late", urgent_late}, {"in-line", in_line}, {"low-water", low_water},
    {"counts", counts}, {"counted-spliced", counted_spliced}, {"counted-urgent", counted_urgent},
    {"first-writes", first_writes}, {"by-number", by_number}, {"raw-reads", raw_reads}, {"stale-number", stale_number},
    {"threads-read", threads_read}, {"threads-write", threads_write}, {"woken-by-shutdown", woken_by_shutdown},
    {"interrupted", interrupted}, {"errno-left-alone", errno_left_alone}, {"shifted", shifted},
    {"interrupted-reads", interrupted_reads}, {NULL, NULL}};

int main(int count, char **arguments) { return run_named(tests, arguments[1]); }
