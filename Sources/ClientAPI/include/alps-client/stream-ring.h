/// Rings of a stream socket in shared memory: the way of bulk data between a client and the host.
///
/// The file has a control page and two rings. A ring holds byte p of its stream at [p & (capacity - 1)], where for the send ring
/// that is send_size, not more than send_capacity: the host may change it, and moves what is in the ring. Positions count from
/// the host's beginning of the stream and never wrap. The file belongs to one socket: who holds the socket may map it,
/// nobody else does. The host believes nothing that stands in it. A process has a session of its own before it touches the
/// file, a child of fork too: by the session's end the host knows that it may have died in the middle of something.
///
/// To the application. Byte p comes in the pair if p < receive_inband, else it is in the ring, up to receive_tail. A reader
/// takes `read_lock`, takes what lies in the pair first, then what lies in the ring, and says so in receive_head. While the
/// ring is not empty the host keeps its next byte in the pair, as it were a token: so the pair is readable, for whoever waits
/// on it in whatever way, exactly when the socket is. To put it there the host takes `read_lock`, too, and moves
/// receive_inband. A reader that finds nothing in the pair although receive_head < receive_inband sets receive_head to
/// receive_inband: somebody has read the pair without it.
///
/// From the application. A writer takes `write_lock`, writes at send_tail, as far as send_head + send_limit allows, and moves
/// send_tail. When the ring is full, a writer that may block first waits some milliseconds for a third of it to be free: on
/// room_turn (futex), with room_waited set. The host then clears that and counts room_turn, which is never 0. Else the writer
/// writes into the pair instead, until that is full, too: so blocking, time-outs and signals are the kernel's, and the pair is
/// writable when the socket is. In messages of ALPS_RING_PAIR_CHUNK bytes, so that the byte that the host leaves there does
/// not keep much of the pair's memory, and counting pair_started before and pair_finished after the call.
/// The host appends what is in the pair to the stream when a third of the ring is free, with `write_lock` taken, and then
/// sets pair_drained to the pair_finished that it had seen before. While the two differ nobody writes into the ring. That
/// is soon over once a third of the ring is free, so it is worth waiting for then: on pair_drained (futex), with pair_waited set.
///
/// Locks are words: 0 is free, else the holder's thread id, ALPS_RING_HOST or ALPS_RING_OPENING, with ALPS_RING_WAITED set
/// when somebody waits (futex). The host never waits for one: it tries again later. A lock whose thread has died may be taken
/// over. ALPS_RING_OPENING: the client that asked first, and got `isFirst`, sets receive_head to receive_inband less what
/// lies unread in the pair (FIONREAD), and frees the lock.
///
/// Bells. The host watches the rings while it is awake. Before it sleeps it sets the bells, and looks once more. Whoever moves
/// send_tail and finds write_bell set, or moves receive_head and finds read_bell 2, or 1 while something is left in the ring,
/// sets it to 0 and sends ALPS_OP_STREAM_BELL, after freeing the lock. What is left is to be looked at last: receive_tail may
/// have moved before the bell was set.
///
/// Closing. A direction that is in-band again has its bit in `closed`: the host puts all of the rest into the pair, and takes
/// nothing but what comes in it. The host closes a direction, with its lock taken, where only the pair shows what happens:
/// urgent data, the end of the stream, a reset. Rings that are asked for anew go on in the same file.
#ifndef ALPS_STREAM_RING_H
#define ALPS_STREAM_RING_H

#include <stdint.h>

#define ALPS_RING_MAGIC 0x32504c41u  ///< "ALP2"
#define ALPS_RING_RECEIVE 1u         ///< directions: to the application
#define ALPS_RING_SEND 2u
#define ALPS_RING_NEVER_AGAIN 4u     ///< with ALPS_OP_STREAM_PAIR: no process gets rings of these directions any more

#define ALPS_RING_WAITED 0x80000000u
#define ALPS_RING_HOST 0x7fffffffu
#define ALPS_RING_OPENING 0x7ffffffeu

#define ALPS_RING_PAIR_CHUNK 2240u       ///< bytes; one buffer of 4 KiB in the kernel
#define ALPS_RING_PAIR_SNDBUF 16384      ///< SO_SNDBUF that a client sets on its end while the send ring is in use
#define ALPS_RING_PAIR_SNDBUF_INBAND 212992

/// The control page. Who writes a word stands beside it.
typedef struct alps_stream_ring {
    uint32_t magic, size;      ///< host
    uint32_t receive_capacity, send_capacity;  ///< host: bytes, powers of two, 0 without that ring
    uint64_t receive_offset, send_offset;      ///< host: in the file
    uint8_t reserved0[32];
    // host
    uint64_t receive_tail;     ///< end of what can be read
    uint64_t receive_inband;   ///< what lies before has been put into the pair. Under read_lock
    uint64_t send_head;        ///< acknowledged up to here
    uint32_t send_limit;       ///< bytes of the ring that may be used
    uint32_t closed;           ///< ALPS_RING_* that are in-band; at first both
    uint32_t pair_drained;
    uint32_t pair_waited;      ///< a writer sets, host clears
    uint32_t room_turn;
    uint32_t room_waited;      ///< a writer sets, host clears
    uint32_t send_size;        ///< bytes of the send ring's memory that are a ring, a power of two. Under write_lock
    uint8_t reserved1[12];
    // readers
    uint32_t read_lock;
    uint32_t read_bell;        ///< host sets, reader clears
    uint64_t receive_head;     ///< read up to here
    uint8_t reserved2[48];
    // writers
    uint32_t write_lock;
    uint32_t write_bell;
    uint64_t send_tail;        ///< written up to here
    uint32_t pair_started, pair_finished;
    uint8_t reserved3[40];
} alps_stream_ring;
_Static_assert(sizeof(alps_stream_ring) == 256, "layout");

typedef struct alps_stream_ring_info {
    uint64_t bytes;       ///< of the file
    uint32_t directions;  ///< ALPS_RING_* in force
    uint32_t is_first;    ///< ALPS_RING_* that the asker has to open, see above
} alps_stream_ring_info;

#endif
