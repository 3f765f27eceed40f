/* What the programs of test_rings.py have in common: a long sequence of bytes in which every place is told by its bytes, so
   that what was lost, doubled or swapped on the way is found, and a generator of random numbers. */
#ifndef RINGS_H
#define RINGS_H
#include "report.h"

#define PERIOD 1048573ul  /* a prime: a shift by the length of any buffer is no multiple of it */
#define MIB (1ul << 20)
#define SEQUENCE_BYTES (2 * PERIOD + MIB)

struct rng { uint64_t state; };

static uint64_t draw(struct rng *from) {
    uint64_t z = from->state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}
static uint64_t below(struct rng *from, uint64_t bound) { return bound ? (draw(from) >> 16) % bound : 0; }
static int one_in(struct rng *from, int bound) { return below(from, (uint64_t)bound) == 0; }

static unsigned char *sequence;
static int sequence_file = -1;

static void make_sequence(void) {
    sequence_file = memfd_create("sequence", MFD_CLOEXEC);
    MUST(ftruncate(sequence_file, SEQUENCE_BYTES));
    sequence = mmap(NULL, SEQUENCE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, sequence_file, 0);
    if (sequence == MAP_FAILED) _exit(97);
    struct rng from = {4711};
    for (size_t p = 0; p < PERIOD; p++) sequence[p] = (unsigned char)(draw(&from) >> 24);
    for (size_t p = PERIOD; p < SEQUENCE_BYTES; p++) sequence[p] = sequence[p - PERIOD];
}

/* The bytes of the sequence from that place on, a mebibyte at least. */
static const unsigned char *bytes_at(uint64_t position) { return sequence + position % PERIOD; }

/* 0 if these are the bytes of that place; else it says what they are. */
static int differs(const char *who, const unsigned char *got, uint64_t position, size_t count) {
    const unsigned char *wanted = bytes_at(position);
    if (memcmp(got, wanted, count) == 0) return 0;
    size_t first = 0;
    while (got[first] == wanted[first]) first++;
    size_t know = count - first < 16 ? count - first : 16;
    const unsigned char *found = memmem(sequence, PERIOD + 16, got + first, know);
    size_t zeros = 0;
    while (first + zeros < count && got[first + zeros] == 0) zeros++;
    say("%s: wrong bytes at %llu (%zu of %zu in this read): %zu zeros, then what belongs to %lld (shift %lld)", who,
        (unsigned long long)(position + first), first, count, zeros, found ? (long long)(found - sequence) : -1ll,
        found ? (long long)(found - sequence) - (long long)((position + first) % PERIOD) : 0ll);
    return 1;
}

/* Writes that much of the sequence in calls of that size, wherever the descriptor blocks. */
static uint64_t send_sequence(int fd, uint64_t position, size_t count, size_t call) {
    while (count > 0) {
        size_t wanted = count < call ? count : call;
        ssize_t sent = write(fd, bytes_at(position), wanted < MIB ? wanted : MIB);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) {
            wait_for(fd, POLLOUT);
            continue;
        }
        MUST(sent);
        position += (uint64_t)sent, count -= (size_t)sent;
    }
    return position;
}

/* Reads that much of it, in calls of that size, and looks at every byte. */
static uint64_t receive_sequence(const char *who, int fd, uint64_t position, size_t count, size_t call) {
    static __thread unsigned char *buffer;
    if (buffer == NULL) buffer = malloc(MIB);
    while (count > 0) {
        size_t wanted = count < call ? count : call;
        ssize_t got = read(fd, buffer, wanted < MIB ? wanted : MIB);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) {
            wait_for(fd, POLLIN);
            continue;
        }
        if (got <= 0) {
            say("%s: %s at %llu, %zu were to come", who, got == 0 ? "end" : strerrorname_np(errno), (unsigned long long)position, count);
            _exit(99);
        }
        if (differs(who, buffer, position, (size_t)got)) _exit(99);
        position += (uint64_t)got, count -= (size_t)got;
    }
    return position;
}

/* A place in the program that the test may look at the counters in: it prints a line, and waits for one. */
static void stage(const char *name) {
    char answer;
    say("-- %s", name);
    while (read(0, &answer, 1) == 1 && answer != '\n') {
    }
}
#endif
