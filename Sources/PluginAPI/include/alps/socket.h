/// "alps.socket/1": the socket layer as a transport sees it.
///
/// A sockbuf is a ring of arena memory addressed by 64-bit stream positions: byte p of the stream lies at
/// base[p & (capacity - 1)], capacity being a power of two. The host owns the memory and both sockbufs; a transport
/// reads their fields freely and changes them by the functions below.
#ifndef ALPS_SOCKET_H
#define ALPS_SOCKET_H

#include "address.h"
#include "base.h"
#include "mbuf.h"
#include "network.h"

ALPS_BEGIN

struct alps_ctl_event;  // protosw.h

#define ALPS_SOCK_STREAM 1
#define ALPS_SOCK_DGRAM 2
#define ALPS_SOCK_RAW 3

// alps_socket.options
#define ALPS_SO_REUSEADDR 0x0001u
#define ALPS_SO_REUSEPORT 0x0002u
#define ALPS_SO_KEEPALIVE 0x0004u
#define ALPS_SO_BROADCAST 0x0008u
#define ALPS_SO_OOBINLINE 0x0010u
#define ALPS_SO_DONTROUTE 0x0020u
#define ALPS_SO_TIMESTAMP 0x0040u
#define ALPS_SO_ACCEPTCONN 0x0080u  ///< listening
#define ALPS_SO_PKTINFO 0x0100u     ///< datagrams carry destination and interface
#define ALPS_SO_RECVERR 0x0200u
#define ALPS_SO_RCVBUF_CHOSEN 0x0400u  ///< the receive buffer has the size the application has set, and keeps it

// alps_socket.state
#define ALPS_SS_CONNECTING 0x0001u
#define ALPS_SS_CONNECTED 0x0002u
#define ALPS_SS_DISCONNECTING 0x0004u
#define ALPS_SS_DISCONNECTED 0x0008u
#define ALPS_SS_CANTRCVMORE 0x0010u  ///< peer's end of stream has been placed
#define ALPS_SS_CANTSENDMORE 0x0020u ///< application has shut down writing
#define ALPS_SS_CLOSED 0x0040u       ///< last application reference is gone (SS_NOFDREF)
#define ALPS_SS_OOB 0x0080u          ///< urgent data pending
#define ALPS_SS_NONBLOCK 0x0100u

#define ALPS_SHUT_RD 0
#define ALPS_SHUT_WR 1
#define ALPS_SHUT_RDWR 2

/// One direction of a stream socket's buffer, or the accounting of a datagram socket's queue.
typedef struct alps_sockbuf {
    uint8_t *_Nullable base;  ///< NULL until first use (a listener, an idle or datagram socket)
    uint32_t capacity;        ///< bytes mapped, power of two
    uint32_t limit;           ///< bytes that may be used: SO_SNDBUF / SO_RCVBUF in force
    uint64_t head;            ///< send: first byte not yet acknowledged; receive: first byte not yet taken
    uint64_t tail;            ///< send: end of what the application wrote; receive: end of in-order data
    uint32_t low_water;  ///< receive: SO_RCVLOWAT; send: with so much unsent no more is taken (TCP_NOTSENT_LOWAT), 0: no bound
    uint32_t unsent;     ///< send: bytes that wait for their first transmission, kept by the transport; receive: 0
    alps_ext *_Nullable ext;  ///< reference-counted storage behind `base`
} alps_sockbuf;
ALPS_LAYOUT_SIZE(alps_sockbuf, 48);

/// A socket. Host-owned; a transport keeps the pointer between `attach` and `detached`.
typedef struct alps_socket {
    uint32_t size;
    uint16_t domain;
    uint16_t type;
    uint16_t protocol;
    uint16_t reserved;
    uint32_t options;  ///< ALPS_SO_*
    uint32_t state;    ///< ALPS_SS_*, changed by the functions below
    int32_t error;     ///< pending SO_ERROR
    int32_t linger;    ///< seconds, -1 = off
    uint64_t id;       ///< never reused within one host
    void *_Nullable pcb;       ///< transport attachment, the transport's own
    alps_netpcb *netpcb;       ///< network attachment
    struct alps_socket *_Nullable listener;  ///< for a connection made by a listener, until accepted
    uint32_t backlog;          ///< listeners: limit of connections waiting for accept
    uint32_t queue_length;     ///< listeners: connections waiting
    uint32_t uid;              ///< of the process that made it
    uint32_t reserved2;
    uint64_t oob_mark;         ///< receive position of the urgent mark, with ALPS_SS_OOB
    alps_sockbuf snd;
    alps_sockbuf rcv;
} alps_socket;

/// Facts beside a datagram.
typedef struct alps_datagram_info {
    uint32_t size;
    uint32_t ifindex;
    alps_sockaddr source;
    alps_addr destination;
    uint64_t timestamp;
    uint8_t ttl;
    uint8_t tos;
    uint16_t reserved;
} alps_datagram_info;

typedef struct alps_socket_ops {
    uint32_t size;
    uint32_t reserved;
    /// [net] State changes, as BSD's soisconnecting() and so on. `is_connected` on a child of a listener makes it
    /// ready for accept. `is_disconnected` with so->error set reports an abort (reset), without it a clean end. For a
    /// socket that the application has closed it comes as soon as all of ours, the end included, is acknowledged.
    void (*is_connecting)(void *self, alps_socket *so);
    void (*is_connected)(void *self, alps_socket *so);
    void (*is_disconnecting)(void *self, alps_socket *so);
    void (*is_disconnected)(void *self, alps_socket *so);
    /// [net] End of stream from the peer: all data before it have been placed.
    void (*cant_receive_more)(void *self, alps_socket *so);
    /// [net] Sets so->error and wakes whoever waits. The connection stays.
    void (*set_error)(void *self, alps_socket *so, int32_t error);
    /// [net] Urgent data: the byte in front of stream position `mark` is urgent; `byte` is its value, or -1 if it has
    /// not arrived yet. Without ALPS_SO_OOBINLINE the host leaves it out of the stream it hands on.
    void (*has_oob)(void *self, alps_socket *so, uint64_t mark, int32_t byte);
    /// [net] The transport has let go of the socket: pcb gone, no more calls about it. If the application has closed
    /// it too, it is freed before this returns.
    void (*detached)(void *self, alps_socket *so);
    /// [net] A child of listener `head`, attached to the listener's network, not yet to a transport: the caller sets
    /// pcb, netpcb addresses, and calls is_connected when the handshake is done. NULL: queue or memory full.
    alps_socket *_Nullable (*_Nonnull new_connection)(void *self, alps_socket *head);
    /// [net] Buffers `length` bytes of the send stream from `position` on: a chain of non-header mbufs over ring memory
    /// (ALPS_M_RING), one or two of them. head <= position, position + length <= tail. [returns-owned]
    alps_mbuf *_Nullable (*_Nonnull send_data)(void *self, alps_socket *so, uint64_t position, uint32_t length);
    /// [net] Everything before `position` is acknowledged: forget it, let the writer go on.
    void (*send_drop)(void *self, alps_socket *so, uint64_t position);
    /// [net] Puts `length` payload bytes of `packet` (from `offset` on) at stream position `position`, in or out of
    /// order, inside rcv.head ..< rcv.head + rcv.limit. Returns bytes placed (less at the edge or without memory).
    /// [borrows]
    uint32_t (*receive_place)(void *self, alps_socket *so, uint64_t position, const alps_mbuf *packet,
                              uint32_t offset, uint32_t length);
    /// [net] In-order data now reach to `tail`: rcv.tail moves, the reader is woken at the end of the batch.
    void (*receive_advance)(void *self, alps_socket *so, uint64_t tail);
    /// [net] A datagram for the application; dropped and counted if its queue is full (ENOBUFS). `data` is at the
    /// payload. [consumes]
    int32_t (*receive_datagram)(void *self, alps_socket *so, alps_mbuf *packet, const alps_datagram_info *info);
    /// [net] Free bytes the receive buffer can still promise: limit - (tail - head), never negative.
    uint32_t (*receive_space)(void *self, alps_socket *so);
    /// [net] Lets a buffer of a stream socket hold `bytes`, up to kern.ipc.maxsockbuf: what a transport does that sees
    /// the path take more. A size that the application has set stays. Returns the limit now in force, never less than
    /// before.
    uint32_t (*grow)(void *self, alps_socket *so, int32_t is_send, uint32_t bytes);
    /// [net] As set_error, for an error message about something this socket has sent. With ALPS_SO_RECVERR the message is
    /// kept for the application as well: what it says, and the quoted bytes from `payload` on (counted from
    /// event->quoted->data), which are the application's own. `port`: where the packet went to, 0 if the protocol
    /// has no ports.
    void (*report_error)(void *self, alps_socket *so, const struct alps_ctl_event *event, uint32_t payload, uint16_t port);
} alps_socket_ops;

ALPS_END
#endif
