/* Bulk streams whose ends are killed, whose host is killed, whose memory is scribbled over, and which get no memory.
   ring_faults serve PORT [anything] | client PORT | siblings PORT SEED ROUNDS | hostile PORT SEED | waiting WAY | stolen | limits TEST */
#include "ring_peer.h"

#define HOSTILE_MAGIC 0x32504c41u

/* One byte of a writer's own sequence; the top two bits say whose it is. */
static unsigned char written_byte(unsigned writer, uint64_t position) {
    uint64_t mixed = (position + 1) * 0x9e3779b97f4a7c15;
    return (unsigned char)(writer << 6 | (mixed >> 40 & 63));
}

#define WRITER_PERIOD 262139ul
static unsigned char *written[4];  /* of each writer; twice, so that any piece of a period is in one piece */

static void make_written(void) {
    for (unsigned each = 0; each < 4; each++) {
        written[each] = malloc(2 * WRITER_PERIOD);
        for (size_t p = 0; p < WRITER_PERIOD; p++) written[each][p] = written[each][p + WRITER_PERIOD] = written_byte(each, p);
    }
}

// MARK: the server: sends the sequence, takes what several writers write

static int believes;  /* what comes may be anything */

static void *serve_out(void *argument) {
    int fd = (int)(long)argument;
    uint64_t position = 0;
    ssize_t sent;
    while ((sent = send(fd, bytes_at(position), BIG, MSG_NOSIGNAL)) > 0) position += (uint64_t)sent;
    return NULL;
}

static void *serve_in(void *argument) {
    int fd = (int)(long)argument;
    unsigned char *bytes = malloc(MIB);
    uint64_t positions[4] = {0};
    pthread_t out_thread;
    pthread_create(&out_thread, NULL, serve_out, argument);
    ssize_t got;
    while ((got = read(fd, bytes, 200000)) > 0) {
        for (ssize_t each = 0; each < got; each++) {
            unsigned whose = bytes[each] >> 6;
            if (!believes && bytes[each] != written[whose][positions[whose] % WRITER_PERIOD]) {
                // All that this writer has there, to tell where it belongs.
                unsigned char own[16];
                size_t count = 0;
                for (ssize_t next = each; next < got && count < sizeof own; next++)
                    if (bytes[next] >> 6 == whose) own[count++] = bytes[next];
                const unsigned char *found = memmem(written[whose], WRITER_PERIOD + 16, own, count);
                say("writer %u at %llu (%zd of %zd in this read): another byte, of %ld (shift %ld)", whose, (unsigned long long)positions[whose], each, got,
                    found ? found - written[whose] : -1l, found ? found - written[whose] - (long)(positions[whose] % WRITER_PERIOD) : 0l);
                _exit(99);
            }
            positions[whose]++;
        }
    }
    if (got < 0 && errno != ECONNRESET) report("server", got);
    shutdown(fd, SHUT_RDWR);
    pthread_join(out_thread, NULL);
    close(fd);
    free(bytes);
    return NULL;
}

static int serve(int port) {
    int fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    MUST(listen(fd, 64));
    for (;;) {
        int accepted = accept(fd, NULL, NULL);
        if (accepted < 0) return 0;
        pthread_t thread;
        pthread_create(&thread, NULL, serve_in, (void *)(long)accepted);
        pthread_detach(thread);
    }
}

// MARK: clients

static struct counted { volatile uint64_t read, written, total; volatile int number; } *counted;
static unsigned writer_number;

static void *client_out(void *argument) {
    struct rng rng = {(uint64_t)getpid()};
    uint64_t position = 0;
    for (;;) {
        ssize_t sent = send(near, written[writer_number] + position % WRITER_PERIOD, 1 + below(&rng, one_in(&rng, 8) ? 3000 : 250000), MSG_NOSIGNAL);
        if (sent < 0) return (void *)(long)errno;
        position += (uint64_t)sent;
        counted[writer_number].written = position;
    }
}

/* What is read is a piece of the sequence, wherever the others have left off. */
static void *client_in(void *argument) {
    struct rng rng = {(uint64_t)getpid() + 1};
    unsigned char *bytes = malloc(MIB);
    uint64_t expected = 0;
    for (;;) {
        ssize_t got = read(near, bytes, 1 + below(&rng, one_in(&rng, 8) ? 3000 : 250000));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return (void *)(long)(got < 0 ? errno : 0);
        if (memcmp(bytes, bytes_at(expected), (size_t)got) != 0 && got >= 24) {
            const unsigned char *place = memmem(sequence, PERIOD + 24, bytes, 24);
            if (place == NULL || differs("client", bytes, (uint64_t)(place - sequence), (size_t)got)) {
                say("client %u: bytes of nowhere", writer_number);
                _exit(99);
            }
            expected = (uint64_t)(place - sequence);
        }
        expected += (uint64_t)got;
        counted[writer_number].read += (uint64_t)got;
    }
}

static void use(void) {
    pthread_t other;
    void *in_error, *out_error;
    pthread_create(&other, NULL, client_out, NULL);
    in_error = client_in(NULL);
    pthread_join(other, &out_error);
    say("read %s, write %s", strerrorname_np((int)(long)in_error), strerrorname_np((int)(long)out_error));
}

static void share_counts(void) {
    counted = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void reach(int port) {
    near = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    connect_to(near, port);
}

/* Two processes with one connection, both reading and writing; one is killed, then the other goes on. */
static int siblings(int port, uint64_t seed, int rounds) {
    struct rng rng = {seed};
    share_counts();
    int bad = 0;
    for (int round = 0; round < rounds; round++) {
        memset(counted, 0, 4096);
        int early = one_in(&rng, 3);
        pid_t first = fork(), second;
        if (first == 0) {
            reach(port);
            if (!early) {
                pthread_t out_thread, in_thread;
                pthread_create(&out_thread, NULL, client_out, NULL);
                pthread_create(&in_thread, NULL, client_in, NULL);
                while (counted[0].written < MIB || counted[0].read < MIB) usleep(1000);
                second = fork();
                if (second == 0) writer_number = 1, use(), _exit(0);
                counted[0].number = second;
                pthread_join(in_thread, NULL);
                pthread_join(out_thread, NULL);
                _exit(0);
            }
            second = fork();
            if (second == 0) writer_number = 1, use(), _exit(0);
            counted[0].number = second;
            use();
            _exit(0);
        }
        long deadline = now() + 20000;
        while ((counted[1].written < 300000 || counted[1].read < 300000) && now() < deadline) usleep(500);
        if (now() >= deadline) say("round %d: the second never got going", round), bad = 1;
        usleep((useconds_t)below(&rng, 30000));
        int which = (int)below(&rng, 2);
        second = counted[0].number;
        kill(which ? second : first, SIGKILL);
        if (!which) child_status(first);
        usleep(2000);
        uint64_t reads = counted[!which].read, writes = counted[!which].written;
        for (deadline = now() + 10000; now() < deadline; usleep(500))
            if (counted[!which].read > reads + MIB && counted[!which].written > writes + MIB) break;
        if (now() >= deadline) {
            say("round %d of seed %llu, %s: the one that is left has stopped, read %llu, wrote %llu since (%s killed)", round, (unsigned long long)seed,
                early ? "early" : "late", (unsigned long long)(counted[!which].read - reads), (unsigned long long)(counted[!which].written - writes),
                which ? "second" : "first");
            bad = 1;
            if (getenv("RING_FAULTS_STAY")) for (;;) pause();
        }
        kill(which ? first : second, SIGKILL);
        if (which) child_status(first);
    }
    say("%d bad", bad);
    return bad;
}

/* Everything that the control page has, written over at random while bytes flow, for as long as they do. */
static volatile unsigned char *pages[64];
static size_t page_bytes[64];

static const size_t offsetof_read_lock = 128;

static int find_rings(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512], rights[8];
    unsigned long start, end;
    int count = 0;
    while (count < 64 && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %7s", &start, &end, rights) != 3 || strcmp(rights, "rw-s") != 0) continue;
        if (end - start < 4096 || *(volatile uint32_t *)start != HOSTILE_MAGIC) continue;
        page_bytes[count] = end - start;
        pages[count++] = (volatile unsigned char *)start;
    }
    fclose(maps);
    return count;
}

/* The file must not become shorter under the host. */
static void change_files(int count) {
    for (int index = 0; index < count; index++) {
        char path[100];
        unsigned long start = (unsigned long)pages[index];
        snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", start, start + page_bytes[index]);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0) continue;
        if (ftruncate(fd, 0) == 0 || ftruncate(fd, 4096) == 0) say("the file can be cut");
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)page_bytes[index]);
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0) say("the file can be sealed");
        close(fd);
    }
}

static int hostile(int port, uint64_t seed) {
    struct rng rng = {seed};
    share_counts();
    make_written();
    pthread_t all[2];
    reach(port);
    pthread_create(all, NULL, client_out, NULL);
    pthread_create(all + 1, NULL, client_in, NULL);
    int count = 0;
    for (long deadline = now() + 10000; count == 0 && now() < deadline; count = find_rings()) usleep(1000);
    usleep((useconds_t)below(&rng, 50000));
    say("rings %d", count);
    change_files(count);
    for (long end = now() + 300 + (long)below(&rng, 500); count > 0 && now() < end;) {
        volatile unsigned char *page = pages[below(&rng, (uint64_t)count)];
        size_t word = below(&rng, 64);
        volatile uint32_t *place = (volatile uint32_t *)page + word;
        volatile uint64_t *wide = (volatile uint64_t *)page + word / 2;
        switch (below(&rng, 10)) {
        case 0: *place = (uint32_t)draw(&rng); break;
        case 1: *wide = draw(&rng); break;
        case 2: *place = 0; break;
        case 3: *place = UINT32_MAX; break;
        case 4: *wide = UINT64_MAX; break;
        case 5: *wide += 1 + below(&rng, 1 << 20); break;
        case 6: *wide -= 1 + below(&rng, 1 << 20); break;
        case 7: *place ^= 1u << below(&rng, 32); break;
        case 8: *wide = (uint64_t)1 << below(&rng, 64); break;
        default: *place = (uint32_t)getpid() | (one_in(&rng, 2) ? 0x80000000u : 0);
        }
        if (one_in(&rng, 4)) usleep((useconds_t)below(&rng, 2000));
    }
    _exit(0);
}

/* The host dies while this waits, in one of many ways. */
static int waiting(const char *way) {
    meet();
    bulk(near);
    if (strcmp(way, "unread") == 0) load(near);
    if (strcmp(way, "write") == 0) fill(near, out, BIG);
    stage("ready");
    if (strcmp(way, "poll") == 0) {
        struct pollfd entry = {near, POLLRDHUP, 0};
        poll(&entry, 1, 20000);
        say("poll: %d", (entry.revents & (POLLERR | POLLHUP)) != 0);
    }
    static unsigned char bytes[BIG];
    if (strcmp(way, "write") == 0) report("write", write(near, bytes, BIG));
    ssize_t got;
    while ((got = read(near, bytes, BIG)) > 0) {
    }
    say("read: %s", got == 0 ? "end" : strerrorname_np(errno));
    ssize_t sent = write(near, bytes, BIG);
    say("write: %zd %s", sent, errno == EPIPE || errno == ECONNRESET ? "over" : strerrorname_np(errno));
    close(near);
    part();
    return 0;
}

/* A child that has used the ring only to read from it, and was never worth a bell to the host, dies in the middle of a read
   while its parent waits for the very byte that it has taken. */
static void thief(pid_t parent, int told) {
    char byte = 0;
    in = receive_sequence("thief", near, BACK + in, 100, 100) - BACK;
    MUST(write(told, &byte, 1));
    usleep(200000);
    kill(parent, SIGSTOP);
    ask('s', 1000, 1000);
    answer();
    eventually(near, FIONREAD, 1000);
    if (find_rings() != 1) say("rings");
    *(volatile uint32_t *)(pages[0] + offsetof_read_lock) = (uint32_t)syscall(SYS_gettid);
    if (syscall(SYS_recvfrom, near, &byte, 1, MSG_DONTWAIT, NULL, NULL) != 1) say("no byte in the pair");
    kill(parent, SIGCONT);
    raise(SIGKILL);
}

static int stolen(void) {
    int told[2];
    char byte;
    meet();
    bulk(near);
    ask('s', 100, 100);
    answer();
    MUST(pipe(told));
    pid_t parent = getpid(), child = fork();
    if (child == 0) thief(parent, told[1]);
    MUST(read(told[0], &byte, 1));
    // What the child has read, and the byte that has gone with it.
    in += 101;
    in = receive_sequence("here", near, BACK + in, 999, 1000) - BACK;
    child_status(child);
    close(near);
    part();
    say("done");
    return 0;
}

// MARK: limits

static void no_memory(void) {
    meet();
    ask('r', 1, 1);
    out = send_sequence(near, out, 1, 1);
    answer();
    // Room for what the program itself has, and for no ring.
    receive_sequence("here", near, BACK, 0, 1);
    free(malloc(2 * MIB));
    char line[256];
    unsigned long pages_now = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    fgets(line, sizeof line, file);
    sscanf(line, "%lu", &pages_now);
    fclose(file);
    struct rlimit limit = {pages_now * 4096 + 16384, RLIM_INFINITY};
    MUST(setrlimit(RLIMIT_AS, &limit));
    ask('s', 1, 1);
    in = receive_sequence("here", near, BACK + in, 1, 1) - BACK;
    answer();
    for (int turn = 0; turn < 5; turn++) {
        bulk(near);
        load(near);
        unload(near);
    }
    stage("limited");
    limit.rlim_cur = RLIM_INFINITY;
    MUST(setrlimit(RLIMIT_AS, &limit));
    bulk(near);
    bulk(near);
    MUST(close(near));
    ask('e', 1, 0);
    if (answer() != 0) say("no end");
    part();
}

static void no_descriptors(void) {
    meet();
    struct rlimit limit = {128, 128};
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    int first = -1, last = -1, fd;
    while ((fd = dup(0)) >= 0) {
        if (first < 0) first = fd;
        last = fd;
    }
    for (int turn = 0; turn < 5; turn++) {
        bulk(near);
        load(near);
        unload(near);
    }
    stage("limited");
    while (last >= first && last >= 0) {
        if (last != near && last != to_peer && last != from_peer) close(last);
        last--;
    }
    bulk(near);
    bulk(near);
    MUST(close(near));
    ask('e', 1, 0);
    if (answer() != 0) say("no end");
    part();
}

static const struct test limits[] = {{"memory", no_memory}, {"descriptors", no_descriptors}, {NULL, NULL}};

int main(int count, char **arguments) {
    const char *role = arguments[1];
    if (strcmp(role, "limits") == 0) return run_named(limits, arguments[2]);
    signal(SIGPIPE, SIG_IGN);
    make_sequence();
    make_written();
    if (strcmp(role, "waiting") == 0) return waiting(arguments[2]);
    if (strcmp(role, "stolen") == 0) return stolen();
    int port = atoi(arguments[2]);
    if (strcmp(role, "serve") == 0) return believes = count > 3, serve(port);
    if (strcmp(role, "client") == 0) return share_counts(), reach(port), use(), 0;
    if (strcmp(role, "siblings") == 0) return siblings(port, strtoull(arguments[3], NULL, 10), atoi(arguments[4]));
    return hostile(port, strtoull(arguments[3], NULL, 10));
}
