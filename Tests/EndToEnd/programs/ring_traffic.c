/* Streams in both directions at once, by every call there is, in random sizes, ways to wait, with signals and pauses.
   ring_traffic both FIRST COUNT                 both ends here, seeds FIRST ... FIRST + COUNT - 1
   ring_traffic accept PORT FIRST COUNT          one end
   ring_traffic connect ADDRESS PORT FIRST COUNT the other
   A seed alone decides what both ends do. Prints what went wrong, and at last how many bytes were right. */
#include "rings.h"

enum waiting { BLOCKING, TIMED, POLL, PPOLL, SELECT, EPOLL_LEVEL, EPOLL_EDGE, WAITINGS };
static const char *waiting_names[] = {"blocking", "time-outs", "poll", "ppoll", "select", "epoll", "epoll-edge"};

enum result { MOVED, BLOCKED, ENDED, BROKEN, NOTHING };

struct progress { volatile uint64_t seed, position[2][2], total[2]; volatile int way[2], last[2][2]; };
static struct progress *progress;
static volatile uint64_t *bytes_total;

struct end {
    int fd, number, waiting, threads, signals, restarts, slow, splices;
    uint64_t seed, abort_at;  /* the first end resets the connection there */
    int may_break;
};

struct worker {
    struct end *end;
    struct rng rng;
    uint64_t position, total, key;
    int writes, style, left, epoll, tube[2], patient, woken, last;
    size_t piped;
    unsigned char *buffer;
    char who[80];
};

__attribute__((noreturn, format(printf, 2, 3))) static void fail(struct worker *of, const char *format, ...) {
    char text[500];
    va_list list;
    int error = errno;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    say("%s: at %llu of %llu, call %d: %s (%s)", of->who, (unsigned long long)of->position, (unsigned long long)of->total,
        of->last, text, strerrorname_np(error));
    _exit(99);
}

static volatile long alarms;
static void on_alarm(int number) { alarms++; }

/* Sizes come in runs: small calls would take the time away from the large ones. */
static size_t a_size(struct worker *of) {
    if (of->left-- <= 0) {
        of->style = (int)below(&of->rng, 10);
        of->left = 1 + (int)below(&of->rng, of->style == 0 ? 40 : of->style < 3 ? 100 : 50);
    }
    switch (of->style) {
    case 0: return 1 + below(&of->rng, 64);
    case 1: return 1 + below(&of->rng, 4000);
    case 2: case 3: return 1 + below(&of->rng, 65536);
    case 4: return 16384;
    case 5: return 65536;
    case 6: case 7: case 8: return 16384 + below(&of->rng, 256 << 10);
    default: return 1 + below(&of->rng, MIB);
    }
}

static int parts_of(struct rng *rng, unsigned char *bytes, size_t count, struct iovec *parts) {
    int number = 1 + (int)below(rng, 5);
    for (int index = 0; index < number; index++) {
        size_t length = index == number - 1 ? count : one_in(rng, 4) ? 0 : below(rng, count + 1);
        parts[index] = (struct iovec){bytes, length};
        bytes += length, count -= length;
    }
    return number;
}

/* What a call gave, for a call that may wait or not. */
static enum result judge(struct worker *of, ssize_t moved, int never_waits) {
    int nonblocking = of->end->waiting >= POLL;
    if (moved > 0) {
        of->patient = of->woken = 0;
        of->position += (uint64_t)moved;
        progress->position[of->end->number][of->writes] = of->position;
        if (of->position > of->total) fail(of, "more bytes than were sent");
        return MOVED;
    }
    if (moved == 0) {
        if (of->writes) fail(of, "a write of nothing");
        return ENDED;
    }
    if (errno == EINTR) {
        if (!of->end->signals) fail(of, "interrupted by nobody");
        if (of->end->restarts && of->end->waiting != TIMED) fail(of, "not restarted");
        return NOTHING;
    }
    if (errno == EAGAIN) {
        if (!never_waits && !nonblocking && of->end->waiting != TIMED) fail(of, "a blocking call did not wait");
        if (of->woken && of->end->waiting != EPOLL_EDGE) fail(of, "woken for nothing");
        of->patient = 1;
        return BLOCKED;
    }
    if (of->end->may_break && (errno == ECONNRESET || errno == EPIPE)) return BROKEN;
    fail(of, "failed");
}

static enum result check(struct worker *of, ssize_t got, const unsigned char *bytes, int never_waits) {
    uint64_t from = of->position;
    enum result result = judge(of, got, never_waits);
    if (result == MOVED && differs(of->who, bytes, of->key + from, (size_t)got)) fail(of, "wrong bytes");
    return result;
}

static enum result read_once(struct worker *of) {
    struct end *end = of->end;
    int fd = end->fd, flags = !of->patient && one_in(&of->rng, 6) ? MSG_DONTWAIT : 0;
    size_t count = a_size(of);
    struct iovec parts[6];
    unsigned char *bytes = of->buffer;
    of->last = (int)below(&of->rng, 14);
    // The kernel splices from and to pairs only: that ends the ring.
    if (of->last == 11 && !end->splices) of->last = 0;
    progress->last[end->number][0] = of->last;
    switch (of->last) {
    case 0: case 1: case 2: return check(of, read(fd, bytes, count), bytes, 0);
    case 3: {
        int number = parts_of(&of->rng, bytes, count, parts);
        return check(of, readv(fd, parts, number), bytes, 0);
    }
    case 4: return check(of, recv(fd, bytes, count, flags), bytes, flags);
    case 5: {
        struct sockaddr_in name;
        char control[100];
        struct msghdr message = {&name, sizeof name, parts, 0, control, sizeof control, 0};
        message.msg_iovlen = (size_t)parts_of(&of->rng, bytes, count, parts);
        ssize_t got = recvmsg(fd, &message, flags);
        if (got > 0 && (message.msg_controllen != 0 || message.msg_flags & ~MSG_DONTWAIT)) fail(of, "flags %x", message.msg_flags);
        return check(of, got, bytes, flags);
    }
    case 6: {
        uint64_t left = of->total - of->position;
        ssize_t got = recv(fd, bytes, count, flags | MSG_WAITALL);
        if (got > 0 && (size_t)got < count && (uint64_t)got < left && end->waiting == BLOCKING && !flags && !end->signals &&
            !end->may_break)
            fail(of, "MSG_WAITALL: %zd of %zu", got, count);
        return check(of, got, bytes, flags);
    }
    case 7: {
        count = count < 65536 ? count : 65536;
        ssize_t seen = recv(fd, bytes, count, flags | MSG_PEEK);
        if (seen <= 0) return judge(of, seen, flags);
        if (differs(of->who, bytes, of->key + of->position, (size_t)seen)) fail(of, "wrong bytes at a look");
        memset(bytes, 0, (size_t)seen);
        ssize_t got = recv(fd, bytes, count, MSG_DONTWAIT);
        if (got < seen) fail(of, "%zd of %zd bytes that were seen", got, seen);
        return check(of, got, bytes, 1);
    }
    case 8: {
        uint64_t left = of->total - of->position;
        ssize_t got = recv(fd, one_in(&of->rng, 2) ? NULL : bytes, count, flags | MSG_TRUNC);
        if (got > 0 && (uint64_t)got > left) fail(of, "threw away %zd of %llu", got, (unsigned long long)left);
        return judge(of, got, flags);
    }
    case 9: {
        struct mmsghdr messages[2] = {0};
        size_t half = count / 2 + 1;
        parts[0] = (struct iovec){bytes, half};
        parts[1] = (struct iovec){bytes + half, half};
        for (int index = 0; index < 2; index++) messages[index].msg_hdr.msg_iov = parts + index, messages[index].msg_hdr.msg_iovlen = 1;
        int number = recvmmsg(fd, messages, 2, flags | MSG_WAITFORONE, NULL);
        if (number <= 0) return judge(of, number, flags);
        enum result first = check(of, messages[0].msg_len, bytes, flags);
        if (number == 1 || messages[1].msg_len == 0) return first;
        return check(of, messages[1].msg_len, bytes + half, flags);
    }
    case 10: {
        int there = -1;
        if (ioctl(fd, FIONREAD, &there) != 0) return judge(of, -1, 0);
        if (there < 0 || (uint64_t)there > of->total - of->position) fail(of, "FIONREAD: %d", there);
        if (there == 0) return NOTHING;
        size_t wanted = count < (size_t)there ? count : (size_t)there;
        ssize_t got = recv(fd, bytes, wanted, MSG_DONTWAIT);
        if (got != (ssize_t)wanted && !(got < 0 && end->may_break)) fail(of, "FIONREAD %d, read %zd of %zu", there, got, wanted);
        return check(of, got, bytes, 1);
    }
    case 11: {
        ssize_t got = splice(fd, NULL, of->tube[1], NULL, count < 60000 ? count : 60000, flags ? SPLICE_F_NONBLOCK : 0);
        if (got <= 0) return judge(of, got, flags);
        size_t done = read_all(of->tube[0], bytes, (size_t)got);
        return check(of, (ssize_t)done, bytes, 1);
    }
    case 12: {
        int number = parts_of(&of->rng, bytes, count, parts);
        return check(of, preadv2(fd, parts, number, -1, 0), bytes, 0);
    }
    default: return check(of, recvfrom(fd, bytes, count, flags, NULL, NULL), bytes, flags);
    }
}

static enum result write_once(struct worker *of) {
    struct end *end = of->end;
    int fd = end->fd, flags = !of->patient && one_in(&of->rng, 6) ? MSG_DONTWAIT : 0, on = 1;
    int never_short = end->waiting == BLOCKING && !flags && !end->signals && !end->may_break;
    size_t count = a_size(of);
    if (count > of->total - of->position) count = (size_t)(of->total - of->position);
    unsigned char *bytes = (unsigned char *)bytes_at(of->key + of->position);
    struct iovec parts[6];
    ssize_t sent;
    of->last = of->piped ? 9 : (int)below(&of->rng, 13);
    if (of->last == 9 && !end->splices) of->last = 0;
    progress->last[end->number][1] = of->last;
    switch (of->last) {
    case 0: case 1: case 2: sent = write(fd, bytes, count), flags = 0; break;
    case 3: sent = writev(fd, parts, parts_of(&of->rng, bytes, count, parts)), flags = 0; break;
    case 4: sent = send(fd, bytes, count, flags); break;
    case 5: {
        struct msghdr message = {.msg_iov = parts};
        message.msg_iovlen = (size_t)parts_of(&of->rng, bytes, count, parts);
        sent = sendmsg(fd, &message, flags | MSG_NOSIGNAL);
        break;
    }
    case 6: sent = send(fd, bytes, count, flags | MSG_MORE); break;
    case 7: {
        struct mmsghdr messages[2] = {0};
        size_t half = count / 2;
        parts[0] = (struct iovec){bytes, half};
        parts[1] = (struct iovec){bytes + half, count - half};
        for (int index = 0; index < 2; index++) messages[index].msg_hdr.msg_iov = parts + index, messages[index].msg_hdr.msg_iovlen = 1;
        int first = half == 0;
        int number = sendmmsg(fd, messages + first, (unsigned)(2 - first), flags);
        if (number <= 0) return judge(of, number, flags);
        sent = messages[first].msg_len;
        if (number == 2) {
            if (sent != (ssize_t)half) fail(of, "a second message after %zd of %zu", sent, half);
            sent += messages[1].msg_len;
        } else {
            never_short = 0;
        }
        break;
    }
    case 8: {
        off_t offset = (off_t)((of->key + of->position) % PERIOD);
        // The file has one position for all: with the offset beside the call.
        sent = sendfile(fd, sequence_file, &offset, count), flags = 0;
        if (sent > 0 && offset != (off_t)((of->key + of->position) % PERIOD) + sent) fail(of, "offset of sendfile");
        break;
    }
    case 9: {
        if (of->piped == 0) {
            of->piped = count < 60000 ? count : 60000;
            if (write(of->tube[1], bytes, of->piped) != (ssize_t)of->piped) fail(of, "the pipe");
        }
        int quick = flags && of->end->waiting >= POLL ? SPLICE_F_NONBLOCK : 0;
        sent = splice(of->tube[0], NULL, fd, NULL, of->piped, quick);
        if (sent > 0) of->piped -= (size_t)sent;
        never_short = 0, flags = quick;
        break;
    }
    case 10: sent = pwritev2(fd, parts, parts_of(&of->rng, bytes, count, parts), -1, 0), flags = 0; break;
    case 11: {
        setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on);
        sent = write(fd, bytes, count), flags = 0;
        int error = errno;
        on = 0;
        setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on);
        errno = error;
        break;
    }
    default: sent = sendto(fd, bytes, count, flags, NULL, 0);
    }
    if (sent > 0 && sent < (ssize_t)count && never_short) fail(of, "a blocking call wrote %zd of %zu", sent, count);
    return judge(of, sent, flags);
}

/* Waits until the socket is said to be ready for the events wanted. */
static void await(struct worker *of, int events) {
    struct end *end = of->end;
    int told = 0, limit = 20000;
    struct pollfd entry = {end->fd, (short)events, 0};
    struct timespec time = {20, 0};
    switch (end->waiting) {
    case BLOCKING: case TIMED: return;
    case POLL: told = poll(&entry, 1, limit); break;
    case PPOLL: told = ppoll(&entry, 1, &time, NULL); break;
    case SELECT: {
        fd_set in, out;
        FD_ZERO(&in);
        FD_ZERO(&out);
        if (events & POLLIN) FD_SET(end->fd, &in);
        if (events & POLLOUT) FD_SET(end->fd, &out);
        struct timeval limit = {20, 0};
        told = select(end->fd + 1, &in, &out, NULL, &limit);
        break;
    }
    default: {
        struct epoll_event event = {.events = (unsigned)(events | (end->waiting == EPOLL_EDGE ? EPOLLET : 0))};
        if (end->waiting == EPOLL_LEVEL) epoll_ctl(of->epoll, EPOLL_CTL_MOD, end->fd, &event);
        told = epoll_wait(of->epoll, &event, 1, limit);
    }
    }
    if (told == 0) fail(of, "nothing happened for 20 s");
    if (told < 0 && (errno != EINTR || !end->signals)) fail(of, "could not wait");
    // With both events wanted, either may be what it is about.
    of->woken = told > 0 && events != (POLLIN | POLLOUT);
}

static void pause_at_times(struct worker *of) {
    if (one_in(&of->rng, of->end->slow ? 15 : 400)) usleep((useconds_t)below(&of->rng, of->end->slow ? 4000 : 20000));
}

static enum result one_turn(struct worker *of) {
    enum result result = of->writes ? of->position == of->total ? ENDED : write_once(of) : read_once(of);
    if (result == ENDED) {
        // A reset is told once: it may have been the other thread that heard of it.
        if (of->position != of->total && of->end->may_break && of->end->threads) return BROKEN;
        if (of->position != of->total) fail(of, "the end");
        if (of->writes && shutdown(of->end->fd, SHUT_WR) != 0 && !(of->end->may_break && errno == ENOTCONN)) fail(of, "shutdown");
    }
    if (result == BROKEN && of->position == of->total && !of->writes) return ENDED;
    return result;
}

static void *run(void *argument) {
    struct worker *of = argument;
    for (;;) {
        pause_at_times(of);
        switch (one_turn(of)) {
        case ENDED: case BROKEN: return NULL;
        case BLOCKED: await(of, of->writes ? POLLOUT : POLLIN); break;
        default: break;
        }
    }
}

/* Both directions in one thread. */
static void run_both(struct worker *in, struct worker *out) {
    int reading = 1, writing = 1, in_blocked = 0, out_blocked = 0;
    while (reading || writing) {
        struct worker *of = reading && (!writing || out_blocked || (!in_blocked && one_in(&in->rng, 2))) && !(in_blocked && writing && !out_blocked) ? in : out;
        if ((!reading || in_blocked) && (!writing || out_blocked)) {
            await(reading ? in : out, (reading ? POLLIN : 0) | (writing ? POLLOUT : 0));
            in_blocked = out_blocked = 0;
            continue;
        }
        if (in->end->abort_at && out->position >= in->end->abort_at) return;
        pause_at_times(of);
        enum result result = one_turn(of);
        if (result == BROKEN) return;
        if (result == BLOCKED) *(of == in ? &in_blocked : &out_blocked) = 1;
        if (result == ENDED) *(of == in ? &reading : &writing) = 0;
    }
}

static uint64_t total_of(struct rng *from) {
    switch (below(from, 8)) {
    case 0: return below(from, 1000);
    case 1: return below(from, 600000);
    case 2: return 4 * MIB + below(from, 4 * MIB);
    default: return MIB / 2 + below(from, 2 * MIB);
    }
}

static void run_end(int number, int fd, uint64_t seed) {
    struct rng plan = {seed * 77};
    uint64_t totals[2] = {total_of(&plan), total_of(&plan)};
    int resets = one_in(&plan, 12);
    uint64_t abort_at = 1 + below(&plan, totals[0] + 1);
    if (fd < 0) {
        if (!resets) say("seed %llu: reset by nobody", (unsigned long long)seed);
        _exit(resets ? 0 : 99);
    }
    struct end end = {.fd = fd, .number = number, .seed = seed, .may_break = resets};
    for (int each = 0; each <= number; each++) {
        end.waiting = (int)below(&plan, WAITINGS);
        end.threads = (int)below(&plan, 2);
        end.signals = one_in(&plan, 3);
        end.restarts = (int)below(&plan, 2);
        end.slow = one_in(&plan, 6);
        end.splices = one_in(&plan, 4);
    }
    if (resets && number == 0) {
        if (end.waiting < POLL) end.waiting = POLL;
        end.threads = 0, end.abort_at = abort_at;
    }
    if (end.waiting < POLL) end.threads = 1;
    progress->way[number] = end.waiting * 100 + end.threads * 10 + end.signals * (1 + end.restarts);

    struct worker workers[2] = {0};
    for (int writes = 0; writes < 2; writes++) {
        struct worker *of = workers + writes;
        of->end = &end;
        of->rng = (struct rng){seed * 1000 + (uint64_t)(number * 2 + writes)};
        of->writes = writes;
        of->total = totals[writes ? number : !number];
        of->key = seed * 7919 + (uint64_t)((writes ? number : !number) * 500009);
        of->buffer = malloc(2 * MIB);
        MUST(pipe(of->tube));
        of->epoll = end.waiting >= EPOLL_LEVEL ? (int)MUST(epoll_create1(0)) : -1;
        struct epoll_event event = {.events = writes ? EPOLLOUT : EPOLLIN};
        if (end.waiting == EPOLL_EDGE) event.events = EPOLLET | (end.threads ? event.events : EPOLLIN | EPOLLOUT);
        if (of->epoll >= 0) MUST(epoll_ctl(of->epoll, EPOLL_CTL_ADD, fd, &event));
        snprintf(of->who, sizeof of->who, "seed %llu, end %d, %s%s%s, %s", (unsigned long long)seed, number, waiting_names[end.waiting],
                 end.threads ? ", threads" : "", end.signals ? end.restarts ? ", restarted" : ", interrupted" : "",
                 writes ? "writer" : "reader");
        progress->total[number] = totals[number];
    }
    if (end.waiting >= POLL) fcntl(fd, F_SETFL, O_NONBLOCK);
    if (end.waiting == TIMED) {
        set_timeout(fd, SO_RCVTIMEO, 1 + (int)below(&plan, 20));
        set_timeout(fd, SO_SNDTIMEO, 1 + (int)below(&plan, 20));
    }
    if (end.signals) {
        struct sigaction action = {.sa_handler = on_alarm, .sa_flags = end.restarts ? SA_RESTART : 0};
        sigaction(SIGALRM, &action, NULL);
        long every = 300 + (long)below(&plan, 4000);
        struct itimerval timer = {{0, every}, {0, every}};
        setitimer(ITIMER_REAL, &timer, NULL);
    }
    if (end.threads) {
        pthread_t other;
        pthread_create(&other, NULL, run, workers + 1);
        run(workers);
        pthread_join(other, NULL);
    } else {
        run_both(workers, workers + 1);
    }
    if (end.abort_at) {
        struct linger none = {1, 0};
        MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none));
    } else if (!resets && (workers[0].position != workers[0].total || workers[1].position != workers[1].total)) {
        fail(workers, "not all was done");
    }
    MUST(close(fd));
    __atomic_add_fetch(bytes_total, workers[0].position, __ATOMIC_RELAXED);
}

/* The processes of a seed: 0 if all went well. A minute without an end is a failure. */
static int ended_well(pid_t *children, int count) {
    int bad = 0;
    for (long deadline = now() + 60000; count > 0;) {
        int status;
        pid_t child = waitpid(-1, &status, WNOHANG);
        if (child > 0) {
            count--;
            if (status != 0) {
                say("seed %llu: a process ended with %x", (unsigned long long)progress->seed, status);
                bad = 1;
                deadline = now() + 3000;
            }
        } else if (now() > deadline) {
            for (int end = 0; end < 2; end++)
                say("seed %llu: end %d (%d), wrote %llu of %llu (call %d), read %llu (call %d)", (unsigned long long)progress->seed, end,
                    progress->way[end], (unsigned long long)progress->position[end][1], (unsigned long long)progress->total[end],
                    progress->last[end][1], (unsigned long long)progress->position[end][0], progress->last[end][0]);
            if (getenv("RING_TRAFFIC_STAY")) for (;;) pause();
            for (int index = 0; children[index] > 0; index++) kill(children[index], SIGKILL);
            while (waitpid(-1, &status, 0) > 0) {
            }
            return 1;
        } else {
            usleep(500);
        }
    }
    return bad;
}

static struct sockaddr_in place(const char *address, const char *port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    inet_pton(AF_INET, address, &name.sin_addr);
    return name;
}

/* -1 if it was reset before this process got to see it. */
static int connection_to(struct sockaddr_in name) {
    for (long deadline = now() + 15000;;) {
        int fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        if (connect(fd, (struct sockaddr *)&name, sizeof name) == 0) return fd;
        if (errno == ECONNRESET) return -1;
        if (errno != ECONNREFUSED || now() > deadline) MUST(-1);
        close(fd);
        usleep(10000);
    }
}

int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    make_sequence();
    progress = mmap(NULL, sizeof *progress + 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    bytes_total = (uint64_t *)(progress + 1);
    const char *role = arguments[1];
    uint64_t first = strtoull(arguments[count - 2], NULL, 10), last = first + strtoull(arguments[count - 1], NULL, 10);
    int listener = -1, bad = 0;
    struct sockaddr_in name = loopback(0);
    if (*role == 'a') name = place("0.0.0.0", arguments[2]);
    if (*role == 'c') name = place(arguments[2], arguments[3]);
    if (*role != 'c') {
        int on = 1;
        listener = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
        MUST(bind(listener, (struct sockaddr *)&name, sizeof name));
        MUST(listen(listener, 16));
    }
    if (*role == 'b') name.sin_port = htons((unsigned short)port_of(listener));
    for (uint64_t seed = first; seed < last; seed++) {
        pid_t children[3] = {0};
        int number = 0;
        memset(progress, 0, sizeof *progress);
        progress->seed = seed;
        for (int end = 0; end < 2; end++) {
            if (*role == (end == 0 ? 'c' : 'a')) continue;
            if ((children[number++] = fork()) == 0) {
                run_end(end, end == 0 ? (int)MUST(accept(listener, NULL, NULL)) : connection_to(name), seed);
                _exit(0);
            }
        }
        if (ended_well(children, number)) {
            bad++;
            // The two ends would not have the same seed any more.
            if (*role != 'b') break;
        }
    }
    say("%llu bytes, %d bad", (unsigned long long)*bytes_total, bad);
    return bad != 0;
}
