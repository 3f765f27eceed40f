// The limit of the design on this machine: a host that does as little as a TCP can (it answers a handshake, acknowledges,
// keeps inside the window), on a tap, with the application in another process behind shared rings. No congestion control,
// no retransmission, no reassembly, no sockets: what is lost is lost for good, so it is a bound and not a stack.
//
// Connections to port 5001 (the application takes all) and to port 5002 (it sends for ever), eight of each at a time. Each has a
// ring and an application of its own.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/futex.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "ring_limit: %s: %s\n", what, strerror(errno));
    exit(1);
}

// MARK: Rings

enum { RING = 4 << 20, CALL = 65536, SPINS = 200, FLOWS = 8 };

// Positions run freely; each word that two sides write has a cache line of its own.
struct ring {
    _Alignas(64) atomic_uint head;
    _Alignas(64) atomic_uint tail;
    _Alignas(64) atomic_uint waiting, word;   // the application sleeps, and what it sleeps on
    _Alignas(4096) uint8_t data[RING];
};

static atomic_uint *host_asleep;
static int doorbell;

static void ring_doorbell(void) {
    uint64_t one = 1;
    if (!atomic_load(host_asleep)) return;
    atomic_store(host_asleep, 0);
    if (write(doorbell, &one, sizeof one) < 0) fail("doorbell");
}

static void wake(struct ring *ring) {
    if (!atomic_load(&ring->waiting)) return;
    atomic_store(&ring->waiting, 0);
    atomic_fetch_add(&ring->word, 1);
    syscall(SYS_futex, &ring->word, FUTEX_WAKE, 1, 0, 0, 0);
}

static unsigned filled(struct ring *ring) { return atomic_load(&ring->head) - atomic_load(&ring->tail); }

// Spins a little, then sleeps, until the ring has as much as is wanted: of bytes, or of room.
static void await(struct ring *ring, int room) {
    for (int spins = 0;;) {
        if (room ? RING - filled(ring) >= CALL : filled(ring) > 0) return;
        if (spins++ < SPINS) {
            __builtin_ia32_pause();
            continue;
        }
        unsigned word = atomic_load(&ring->word);
        atomic_store(&ring->waiting, 1);
        if (room ? RING - filled(ring) >= CALL : filled(ring) > 0) return;
        syscall(SYS_futex, &ring->word, FUTEX_WAIT, word, 0, 0, 0);
        spins = 0;
    }
}

static void produce(struct ring *ring) {
    static uint8_t buffer[CALL];
    for (;;) {
        await(ring, 1);
        unsigned head = atomic_load_explicit(&ring->head, memory_order_relaxed);
        memcpy(ring->data + head % RING, buffer, CALL);
        atomic_store(&ring->head, head + CALL);
        ring_doorbell();
    }
}

static void consume(struct ring *ring) {
    static uint8_t buffer[CALL];
    for (;;) {
        await(ring, 0);
        unsigned tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
        unsigned length = atomic_load(&ring->head) - tail, offset = tail % RING;
        if (length > CALL) length = CALL;
        if (offset + length > RING) length = RING - offset;
        memcpy(buffer, ring->data + offset, length);
        atomic_store(&ring->tail, tail + length);
        // The host waits for room when the window has closed.
        if (filled(ring) >= RING / 2) ring_doorbell();
    }
}

static void begin_application(void (*run)(struct ring *), struct ring *ring, int cpu) {
    if (fork() != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set) != 0) fail("CPU of the application");
    }
    run(ring);
}

// MARK: Frames

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };
enum { MSS = 1460, WINDOW_SHIFT = 10, SEGMENT = 44 * MSS, BATCH = 64, LARGEST = 66000 };

struct __attribute__((packed)) header {
    uint8_t to[6], from[6];
    uint16_t type;
    uint8_t version, tos;
    uint16_t length, identification, fragment;
    uint8_t ttl, protocol;
    uint16_t header_checksum;
    uint32_t source, destination;
    uint16_t source_port, destination_port;
    uint32_t sequence, acknowledged;
    uint8_t data_offset, flags;
    uint16_t window, checksum, urgent;
    uint8_t options[40];
};
enum { FIXED = offsetof(struct header, options) };

// All connections have the same peer; a new SYN takes the place of one that has ended.
struct connection {
    struct ring *ring;
    int open, peer_shift, unacknowledged, window_closed;
    uint16_t port, peer_port;
    uint32_t first, acknowledged, next, window, expected;
};

static struct connection sinks[FLOWS], sources[FLOWS];
static struct connection *last;   // sink that payload has come for
static uint8_t own_hardware[6] = {2, 0, 0, 9, 9, 2}, peer_hardware[6];
static uint32_t own_address, peer_address;
static int tap, offload = 1;
static unsigned virtio;          // bytes of the header in front of a frame

static uint64_t sum(const void *data, size_t length, uint64_t value) {
    const uint8_t *bytes = data;
    for (; length >= 4; bytes += 4, length -= 4) {
        uint32_t word;
        memcpy(&word, bytes, 4);
        value += word;
    }
    uint32_t rest = 0;
    memcpy(&rest, bytes, length);
    return value + rest;
}

static uint16_t folded(uint64_t value) {
    while (value >> 16) value = (value & 0xffff) + (value >> 16);
    return (uint16_t)value;
}

static int is_sink(const struct connection *connection) { return connection >= sinks && connection < sinks + FLOWS; }

static uint32_t receive_window(const struct connection *connection) {
    long room = (long)RING - (long)filled(connection->ring) - 70000;
    // The tap queues 1000 frames and drops the next; small frames must stay below.
    long most = offload ? RING : 700 * MSS;
    if (room < 0) room = 0;
    return (uint32_t)(room < most ? room : most) >> WINDOW_SHIFT;
}

static void send_segment(struct connection *connection, uint8_t flags, uint32_t sequence, const void *data, unsigned length) {
    static uint16_t identification;
    struct virtio_net_hdr offloads = {0};
    struct header header = {
        .type = htons(ETH_P_IP), .version = 0x45, .identification = htons(identification++), .fragment = htons(0x4000),
        .ttl = 64, .protocol = IPPROTO_TCP, .source = own_address, .destination = peer_address,
        .source_port = htons(connection->port), .destination_port = htons(connection->peer_port),
        .sequence = htonl(sequence), .acknowledged = htonl(connection->expected), .flags = flags,
    };
    memcpy(header.to, peer_hardware, 6);
    memcpy(header.from, own_hardware, 6);
    unsigned options = 0;
    uint32_t window = receive_window(connection);
    if (flags & SYN) {
        static const uint8_t offered[] = {2, 4, MSS >> 8, MSS & 255, 1, 3, 3, WINDOW_SHIFT};
        memcpy(header.options, offered, options = sizeof offered);
        window = 65535;
    }
    connection->window_closed = window < 200000 >> WINDOW_SHIFT;
    header.window = htons((uint16_t)(window < 65535 ? window : 65535));
    header.length = htons((uint16_t)(40 + options + length));
    header.data_offset = (uint8_t)((5 + options / 4) << 4);
    header.header_checksum = (uint16_t)~folded(sum(&header.version, 20, 0));
    uint64_t pseudo = sum(&header.source, 8, 0) + htons(IPPROTO_TCP) + htons((uint16_t)(20 + options + length));
    if (offload) {
        header.checksum = folded(pseudo);
        offloads.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        offloads.csum_start = 34;
        offloads.csum_offset = 16;
        if (length > MSS) {
            offloads.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
            offloads.gso_size = MSS;
            offloads.hdr_len = FIXED;
        }
    } else {
        header.checksum = (uint16_t)~folded(sum(data, length, sum(&header.source_port, 20 + options, pseudo)));
    }
    struct iovec parts[3] = {{&offloads, virtio}, {&header, FIXED + options}, {(void *)data, length}};
    int skip = virtio == 0;
    while (writev(tap, parts + skip, 3 - skip - (length == 0)) < 0)
        if (errno != EAGAIN && errno != ENOBUFS) fail("write to the tap");
}

static void answer_arp(const struct header *frame) {
    struct __attribute__((packed)) arp {
        uint8_t to[6], from[6], type[2], kinds[6], operation[2], sender[6];
        uint32_t sender_address;
        uint8_t target[6];
        uint32_t target_address;
    } answer;
    const struct arp *question = (const void *)frame;
    uint8_t out[sizeof(struct virtio_net_hdr) + sizeof answer] = {0};
    answer = *question;
    if (question->operation[1] != 1 || question->target_address != own_address) return;
    memcpy(peer_hardware, question->sender, 6);
    memcpy(answer.to, question->sender, 6);
    memcpy(answer.from, own_hardware, 6);
    answer.operation[1] = 2;
    memcpy(answer.sender, own_hardware, 6);
    answer.sender_address = own_address;
    memcpy(answer.target, question->sender, 6);
    answer.target_address = question->sender_address;
    memcpy(out + virtio, &answer, sizeof answer);
    if (write(tap, out, virtio + sizeof answer) < 0) fail("write to the tap");
}

// MARK: The host

static void accept_connection(struct connection *connection, const struct header *frame) {
    connection->open = 1;
    connection->peer_shift = connection->unacknowledged = 0;
    connection->peer_port = ntohs(frame->source_port);
    connection->expected = ntohl(frame->sequence) + 1;
    connection->first = connection->acknowledged = connection->next = 1000000;
    connection->window = ntohs(frame->window);
    peer_address = frame->source;
    memcpy(peer_hardware, frame->from, 6);
    unsigned end = (frame->data_offset >> 4) * 4u - 20;
    for (unsigned at = 0; at + 1 < end && frame->options[at] != 0;) {
        if (frame->options[at] == 1) {
            at++;
            continue;
        }
        if (frame->options[at] == 3 && at + 2 < end) connection->peer_shift = frame->options[at + 2];
        if (frame->options[at + 1] < 2) break;
        at += frame->options[at + 1];
    }
    send_segment(connection, SYN | ACK, connection->next++, 0, 0);
}

static void take_acknowledgment(struct connection *connection, const struct header *frame) {
    uint32_t acknowledged = ntohl(frame->acknowledged);
    connection->window = (uint32_t)ntohs(frame->window) << connection->peer_shift;
    if ((int32_t)(acknowledged - connection->acknowledged) <= 0) return;
    if (connection->acknowledged == connection->first) connection->acknowledged++;   // the SYN is no byte of the ring
    uint32_t freed = acknowledged - connection->acknowledged;
    connection->acknowledged = acknowledged;
    if (is_sink(connection)) return;
    atomic_fetch_add(&connection->ring->tail, freed);
    if (RING - filled(connection->ring) >= RING / 4) wake(connection->ring);
}

// `placed`: the payload is at the ring's head already.
static void take_payload(struct connection *connection, const uint8_t *payload, unsigned length, int placed) {
    connection->expected += length;
    connection->unacknowledged = 1;
    if (!is_sink(connection)) return;
    struct ring *ring = connection->ring;
    unsigned head = atomic_load_explicit(&ring->head, memory_order_relaxed), offset = head % RING;
    if (!placed) {
        unsigned first = offset + length > RING ? RING - offset : length;
        memcpy(ring->data + offset, payload, first);
        memcpy(ring->data, payload + first, length - first);
    }
    atomic_store(&ring->head, head + length);
    wake(ring);
    last = connection;
}

// The open connection that a frame belongs to, or one that has ended.
static struct connection *find(const struct header *frame, int open) {
    struct connection *all = ntohs(frame->destination_port) == sinks->port ? sinks : sources;
    for (struct connection *each = all; each < all + FLOWS; each++) {
        if (each->port != ntohs(frame->destination_port) || each->open != open) continue;
        if (!open || each->peer_port == ntohs(frame->source_port)) return each;
    }
    return 0;
}

static void take_segment(const struct header *frame, size_t length, const uint8_t *payload_elsewhere) {
    struct connection *connection = find(frame, 1);
    if (!connection && frame->flags & SYN && (connection = find(frame, 0))) {
        accept_connection(connection, frame);
        return;
    }
    if (!connection) return;
    if (frame->flags & RST) {
        connection->open = 0;
        return;
    }
    if (frame->flags & ACK) take_acknowledgment(connection, frame);
    unsigned header = (frame->data_offset >> 4) * 4u, size = ntohs(frame->length) - 20u - header;
    if (size > length) return;
    if (size > 0) {
        if (ntohl(frame->sequence) != connection->expected) {
            send_segment(connection, ACK, connection->next, 0, 0);
            return;
        }
        const uint8_t *payload = payload_elsewhere ? payload_elsewhere : (const uint8_t *)frame + 34 + header;
        take_payload(connection, payload, size, payload_elsewhere != 0);
    }
    if (frame->flags & FIN && ntohl(frame->sequence) + size == connection->expected) {
        connection->expected++;
        send_segment(connection, ACK | FIN, connection->next++, 0, 0);
        connection->open = 0;
    }
}

// Reads a frame. What is predicted is the next bytes of the same sink: their payload lands in the ring at once.
static int read_frame(void) {
    static uint8_t frame[LARGEST + 64];
    struct ring *ring = last->ring;
    unsigned head = atomic_load_explicit(&ring->head, memory_order_relaxed) % RING, prefix = virtio + FIXED;
    int predicted = last->open && RING - head >= LARGEST && RING - filled(ring) >= LARGEST;
    uint8_t *place = ring->data + head;
    struct iovec parts[2] = {{frame, predicted ? prefix : sizeof frame}, {place, LARGEST}};
    ssize_t length = readv(tap, parts, predicted ? 2 : 1);
    if (length < 0) {
        if (errno == EAGAIN) return 0;
        fail("read from the tap");
    }
    struct header *header = (void *)(frame + virtio);
    int in_ring = predicted && length > (ssize_t)prefix;
    if (in_ring && (header->type != htons(ETH_P_IP) || header->protocol != IPPROTO_TCP || header->data_offset >> 4 != 5 ||
                    header->destination_port != htons(last->port) || header->source_port != htons(last->peer_port) ||
                    header->flags & SYN)) {
        memcpy(frame + prefix, place, (size_t)length - prefix);
        in_ring = 0;
    }
    if (header->type == htons(ETH_P_ARP)) answer_arp(header);
    if (header->type == htons(ETH_P_IP) && header->protocol == IPPROTO_TCP && header->destination == own_address)
        take_segment(header, (size_t)length, in_ring ? place : 0);
    return 1;
}

// Sends what the window allows from ring memory, a few segments at a time. True if it sent anything.
static int send_ring(struct connection *source) {
    unsigned tail = atomic_load(&source->ring->tail), head = atomic_load(&source->ring->head), most = offload ? SEGMENT : MSS;
    int sent = 0;
    for (; sent < 8; sent++) {
        unsigned flying = source->next - source->acknowledged - (source->acknowledged == source->first);
        unsigned left = head - tail - flying, offset = (tail + flying) % RING, length = left < most ? left : most;
        if (offset + length > RING) length = RING - offset;
        if (length == 0 || flying + length > source->window) break;
        // A short segment only where the ring wraps or nothing is under way.
        if (length < most && flying && offset + length != RING) break;
        send_segment(source, ACK, source->next, source->ring->data + offset, length);
        source->next += length;
    }
    return sent > 0;
}

static int can_send(const struct connection *source) {
    unsigned flying = source->next - source->acknowledged;
    return source->open && filled(source->ring) - flying >= SEGMENT && flying + SEGMENT <= source->window;
}

static _Noreturn void run(void) {
    for (;;) {
        int frames = 0, sent = 0, can = 0;
        while (frames < BATCH && read_frame()) frames++;
        for (struct connection *each = sinks; each < sinks + FLOWS; each++) {
            int has_room = each->window_closed && RING - filled(each->ring) > RING / 4;
            if (!each->open || !(each->unacknowledged || has_room)) continue;
            each->unacknowledged = 0;
            send_segment(each, ACK, each->next, 0, 0);
        }
        for (struct connection *each = sources; each < sources + FLOWS; each++)
            if (each->open) sent |= send_ring(each);
        if (sent || frames) continue;
        atomic_store(host_asleep, 1);
        for (struct connection *each = sources; each < sources + FLOWS; each++) can |= can_send(each);
        if (!can) {
            struct pollfd wait[2] = {{tap, POLLIN, 0}, {doorbell, POLLIN, 0}};
            uint64_t rings;
            poll(wait, 2, -1);
            if (wait[1].revents && read(doorbell, &rings, sizeof rings) < 0) fail("doorbell");
        }
        atomic_store(host_asleep, 0);
    }
}

static void open_tap(const char *name) {
    struct ifreq request = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | (offload ? IFF_VNET_HDR : 0))};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tap < 0 || ioctl(tap, TUNSETIFF, &request) != 0) fail("tap");
    if (offload && ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) != 0) fail("offloads of the tap");
    virtio = offload ? sizeof(struct virtio_net_hdr) : 0;
}

static void *shared(size_t size) {
    void *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) fail("memory");
    return memory;
}

int main(int argc, char **argv) {
    static const struct option names[] = {
        {"no-offload", 0, 0, 'n'}, {"application-cpu", 1, 0, 'c'}, {"address", 1, 0, 'a'}, {0, 0, 0, 0},
    };
    int cpu = -1;
    own_address = inet_addr("10.11.12.13");
    for (int option; (option = getopt_long(argc, argv, "", names, 0)) != -1;) {
        switch (option) {
        case 'n': offload = 0; break;
        case 'c': cpu = atoi(optarg); break;
        case 'a': own_address = inet_addr(optarg); break;
        default: fputs("usage: ring_limit [--no-offload] [--application-cpu N] [--address A]\n", stderr); return 2;
        }
    }
    open_tap("tap0");
    host_asleep = shared(64);
    doorbell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    last = sinks;
    for (int flow = 0; flow < FLOWS; flow++) {
        sinks[flow] = (struct connection){.ring = shared(sizeof(struct ring)), .port = 5001};
        sources[flow] = (struct connection){.ring = shared(sizeof(struct ring)), .port = 5002};
        begin_application(produce, sources[flow].ring, cpu);
        begin_application(consume, sinks[flow].ring, cpu);
    }
    puts("ready");
    fflush(stdout);
    run();
}
