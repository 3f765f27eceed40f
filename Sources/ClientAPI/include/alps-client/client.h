/// The contract between the host and its clients: frames on the control socket, and what travels in a socket's pair.
///
/// Both ends run on one machine: integers are in native byte order unless said otherwise, structures have fixed
/// layouts. The host treats every byte from a client as hostile.
///
/// 1. Sessions. A process has one session: a connected AF_UNIX stream socket. The first process of a tree connects to
///    the stack's socket path. Others come through the *doorway*: a connected AF_UNIX SOCK_SEQPACKET socket inherited
///    at a high descriptor number (environment ALPS_DOORWAY=FD): the child makes a stream socketpair and sends one end
///    as SCM_RIGHTS with a 1-byte message; the host takes it for a new session. So chroot and changed directories do
///    not cut anybody off. Without a doorway a process connects to the path in ALPS_SOCKET.
///    A doorway is opened thus: connect to the stack's path and, instead of a hello, send the single byte
///    ALPS_DOORWAY_BYTE with one end of a SOCK_SEQPACKET socketpair as SCM_RIGHTS, then close the connection.
/// 2. Requests are a frame header and `length` bytes of payload. Replies carry the request id; any request may complete
///    later than the next. Request ids are chosen by the client, never reused in a session.
/// 3. Sockets. AF_INET, AF_NETLINK and AF_PACKET sockets are one end of a socketpair made by the host and passed with SCM_RIGHTS
///    beside the reply: SOCK_STREAM for streams and listeners, SOCK_SEQPACKET for all others. The client's end
///    has SO_MAX_PACING_RATE set (8 bytes), which is without effect on such a socket, to ALPS_MARK ^ handle: that tells any
///    holder what it has. Whoever changes it hurts himself only, as the host looks at SO_COOKIE. (It is no name, since the
///    kernel compares a new name with one in 256 of all there are: with 10,000 sockets that took 9 us.)
///    The end of file on the host's side means that the last reference is gone.
///    The client's end of a stream has SO_SNDBUF 212992 or more set (425984 in force) before it is passed: the byte that
///    the host leaves unread keeps a whole buffer of the kernel, up to 70 kB when written by sendfile, and the end is
///    writable only while a quarter of its send buffer is in use at most.
///    An accepted stream comes with O_NONBLOCK set: whoever accepts it to block clears that.
///    A time set with SO_LINGER is also set on the client's end, where it is without effect: all holders find it there.
/// 4. Before a request about a socket is executed, the host drains that socket's pair, so write-then-shutdown keeps its
///    order.
/// 5. Payload travels in the pair (in-band), until a process that sees bulk asks for rings in shared memory
///    (stream-ring.h), for one direction or both. What is in the pair is payload even then, and comes before what is in the
///    ring: code that knows nothing of rings never reads or writes anything else than the stream's next bytes. It would not
///    get at what is in the rings, though: a socket comes back to the pair where code without the shim gets at it. Those
///    places are marked "in-band for good" in the sources: stdio (fdopen), the start of a program that may lack the shim
///    (exec, spawn: all that it inherits), a descriptor that was inherited or received and is met for the first time, a
///    descriptor that is passed on (SCM_RIGHTS), a process that confines its own system calls (seccomp, no_new_privs), and
///    a socket that the supervisor of `alps run --strict` makes.
#ifndef ALPS_CLIENT_H
#define ALPS_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#define ALPS_CLIENT_VERSION 3u
#define ALPS_FRAME_MAGIC 0x46504c41u  ///< "ALPF"
#define ALPS_FRAME_MAX_PAYLOAD 65536u ///< from a client; replies may be up to 16 MiB (ALPS_OP_QUERY)

#define ALPS_ENV_SOCKET "ALPS_SOCKET"    ///< path of the stack's control socket
#define ALPS_ENV_DOORWAY "ALPS_DOORWAY"  ///< descriptor number of the doorway
#define ALPS_ENV_BYPASS "ALPS_BYPASS"    ///< comma-separated CIDRs that belong to the kernel
#define ALPS_ENV_STRICT "ALPS_STRICT"    ///< hexadecimal token of the seccomp filter of `alps run --strict`
#define ALPS_ENV_TCP "ALPS_TCP"          ///< variant of TCP for this process ("other" for "tcp/other")
#define ALPS_ENV_UDP "ALPS_UDP"          ///< the same for UDP
#define ALPS_ENV_RING_AFTER "ALPS_RING_AFTER"  ///< bytes until a stream gets a ring (stream-ring.h), decimal
#define ALPS_DOORWAY_BYTE 0x44u  ///< 'D'
#define ALPS_MARK 0xa000000000000000ull  ///< a handle's first byte is 1, so a mark begins with a1, which no rate of bytes a second does

// frame kinds
#define ALPS_FRAME_REQUEST 1u
#define ALPS_FRAME_REPLY 2u
#define ALPS_FRAME_NOTE 4u    ///< a request whose outcome nobody waits for: it gets no reply
#define ALPS_FRAME_CANCEL 3u  ///< request_id names a request of this session that is to end with EINTR; no reply of its own

// operations. Payloads: request -> reply. "-" is empty.
#define ALPS_OP_HELLO 1u        ///< alps_hello -> alps_hello_reply, then alps_protocol_triple[triples]
#define ALPS_OP_SOCKET 2u       ///< alps_socket_request -> alps_socket_info, one descriptor
#define ALPS_OP_BIND 3u         ///< alps_client_sockaddr -> alps_client_sockaddr (the name it has now)
#define ALPS_OP_LISTEN 4u       ///< int32 backlog -> -
#define ALPS_OP_CONNECT 5u      ///< alps_connect_request -> alps_client_sockaddr (local name). error EINPROGRESS if not waiting.
                                ///< A descriptor beside the frame is closed by the host behind its reply
#define ALPS_OP_SHUTDOWN 6u     ///< int32 how -> -
#define ALPS_OP_GETSOCKOPT 7u   ///< alps_sockopt_request -> value bytes
#define ALPS_OP_SETSOCKOPT 8u   ///< alps_sockopt_request, value bytes -> -
#define ALPS_OP_GETSOCKNAME 9u  ///< - -> alps_client_sockaddr
#define ALPS_OP_GETPEERNAME 10u ///< - -> alps_client_sockaddr
#define ALPS_OP_IOCTL 11u       ///< alps_ioctl_request, data -> data. Linux SIOC* numbers and structures; SIOCADDRT and
                                ///< SIOCDELRT: struct rtentry with rt_dev 0, then the device's name in 16 bytes ("" = none)
#define ALPS_OP_ATTACH 12u      ///< - (frame.socket = handle from the mark) -> alps_socket_info. The client's end comes
                                ///< as SCM_RIGHTS beside the frame: the proof (by SO_COOKIE) that a process of another user,
                                ///< which gave up its privileges, holds the socket. The host closes it at once
#define ALPS_OP_FORGET 13u      ///< - -> -: a dead socket (host end closed) will not be asked about any more
#define ALPS_OP_TAKE_EVENT 14u  ///< - -> alps_datagram_event: what a zero-length message stood for
#define ALPS_OP_SEND_OOB 15u    ///< 1 byte -> -: urgent byte after all that was written
#define ALPS_OP_RECV_OOB 16u    ///< uint32 flags (MSG_PEEK) -> 1 byte; EINVAL none, EAGAIN not here yet
#define ALPS_OP_INTERFACES 17u  ///< - -> alps_interface_record[] (one an address, at least one an interface)
#define ALPS_OP_CALL 18u        ///< alps_call_request, name, arguments -> int32 result, out-bytes: a plugin's user request by name
#define ALPS_OP_QUERY 19u       ///< JSON object {"command": "...", ...} -> JSON. For tools (alps netstat, ...)
#define ALPS_OP_UNCONNECT 20u   ///< datagram socket: forget the peer -> -
#define ALPS_OP_LINGER 22u      ///< - -> -: close(2) of a stream with SO_LINGER, asked after the descriptor has been closed. Answered
                                ///< when all that was written, and the end, is acknowledged, or SO_LINGER's time is over; at once
                                ///< if somebody else holds the socket. A descriptor beside the frame is as with ALPS_OP_CONNECT
#define ALPS_OP_SEND_DATAGRAM 40u ///< alps_datagram_header, payload -> -. For a connected datagram socket, whose messages have
                                ///< no header: another destination (family 0: the peer), TTL, TOS, source
#define ALPS_OP_TAKE_ERROR 41u  ///< - -> alps_socket_error, quoted bytes: the oldest error message (MSG_ERRQUEUE); EAGAIN none
#define ALPS_OP_PEEK_EVENT 42u  ///< - -> alps_datagram_event: what TAKE_EVENT would give, left where it is; EAGAIN nothing
#define ALPS_OP_REQUEUE 43u     ///< alps_datagram_header, payload -> -. A message that was read from a datagram socket's pair before
                                ///< connect() or its undoing changed the form of messages: it is put into the pair again
#define ALPS_OP_WATCH_URGENT 44u ///< - -> -: from now on urgent bytes of this stream go into the pair as its own; EOPNOTSUPP
                                ///< if no pair can have such here, ENOTCONN if this one has ended
#define ALPS_OP_ANNOUNCE_EVENT 45u ///< - -> -: the message of no bytes that stands for the oldest event was read among others and
                                ///< is to be in the pair again
#define ALPS_OP_RING 50u        ///< - -> alps_ring_info, one descriptor: the memory of a packet socket's rings. EINVAL without any
#define ALPS_OP_STREAM_RING 51u ///< uint32 directions -> alps_stream_ring_info, one descriptor: see stream-ring.h. EAGAIN: not now;
                                ///< EOPNOTSUPP: never for this socket
#define ALPS_OP_STREAM_PAIR 52u ///< uint32 directions -> -. They are in-band again. The asker holds their locks
#define ALPS_OP_STREAM_BELL 53u ///< - (a note): look at the ring of this socket
#define ALPS_OP_CORK_WORDS 54u  ///< - -> uint32 count, one descriptor: the alps_cork_word[count] of this session
#define ALPS_OP_CORK_WORD 55u   ///< uint32 index -> -: from now on TCP_CORK of this socket is what that word says
#define ALPS_OP_OPTION_WORDS 56u ///< - (about a listener) -> uint32 count, one descriptor: its alps_option_word[count]
#define ALPS_OP_PROC_NET 21u    ///< name of a file of /proc/net ("dev", "route", "arp", "tcp", ...) -> its text as Linux has it; ENOENT

/// In front of everything on a session. 40 bytes.
typedef struct alps_frame {
    uint32_t magic;            ///< ALPS_FRAME_MAGIC
    uint32_t length;           ///< bytes of payload behind
    uint16_t kind;             ///< ALPS_FRAME_*
    uint16_t op;               ///< ALPS_OP_*; a reply repeats it
    int32_t error;             ///< reply: 0 or errno
    uint64_t request_id;
    uint64_t socket;           ///< handle, 0 if none
    uint64_t stream_position;  ///< bytes this process knows to have been written to the socket, 0 = all there is now
} alps_frame;

/// A socket's handle: stack in bits 56-63, shard 48-55, generation 24-47, index 0-23. Never 0.
typedef uint64_t alps_handle;

typedef struct alps_hello {
    uint32_t size;
    uint32_t version;         ///< ALPS_CLIENT_VERSION
    uint32_t pid;
    uint32_t flags;           ///< ALPS_HELLO_*
    uint64_t resume_instance; ///< 0, or what an earlier hello got
    uint64_t resume_token;
    char program[32];         ///< NUL-padded, for `alps ps`
    char tcp_variant[32];     ///< "" or the variant after "tcp/"
    char udp_variant[32];
} alps_hello;

#define ALPS_HELLO_TOOL 1u  ///< a command, not an application

typedef struct alps_hello_reply {
    uint32_t size;
    uint32_t version;
    uint64_t instance;      ///< of this host process: changes at a restart
    uint64_t epoch;         ///< counts what a client must notice (variants swapped, resume)
    uint64_t resume_token;
    uint32_t session;       ///< number, for `alps ps`
    uint32_t triples;       ///< alps_protocol_triple records that follow
    char stack[32];
} alps_hello_reply;

/// A (domain, type, protocol) that sockets can be made of. Protocol 65535 = any (raw).
typedef struct alps_protocol_triple {
    uint16_t domain, type, protocol, flags;
} alps_protocol_triple;

typedef struct alps_socket_request {
    int32_t domain, type, protocol;  ///< type without SOCK_NONBLOCK and SOCK_CLOEXEC
    uint32_t flags;                  ///< 0
} alps_socket_request;

/// What a client knows of a socket. Also the 64-byte message that announces an accepted connection on a listener's
/// pair, with the new descriptor beside it (`local`, `remote` are set then).
typedef struct alps_client_sockaddr {
    uint16_t family;  ///< AF_*, 0 = none
    uint16_t port;    ///< network byte order
    uint32_t scope;
    uint8_t addr[16]; ///< network byte order, left-aligned. AF_NETLINK: port and mask of groups, four bytes each, native.
                      ///< AF_PACKET, with the protocol in `port` and the interface in `scope`: ARPHRD_* in two bytes, native,
                      ///< PACKET_* and the address' length in one each, the address
} alps_client_sockaddr;

typedef struct alps_socket_info {
    uint64_t handle;
    uint16_t domain, type, protocol;
    uint16_t flags;  ///< ALPS_INFO_*. The bits from ALPS_INFO_WORD_SHIFT on, of an accepted stream: 1 more than the index of its
                     ///< alps_option_word, 0 if it has none
    alps_client_sockaddr local, remote;
} alps_socket_info;
_Static_assert(sizeof(alps_socket_info) == 64, "accept messages are 64 bytes");

#define ALPS_INFO_LISTENING 1u
#define ALPS_INFO_CONNECTED 2u  ///< datagram sockets: messages in the pair have no header
#define ALPS_INFO_PKTINFO 4u
#define ALPS_INFO_WORD_SHIFT 4u

typedef struct alps_connect_request {
    alps_client_sockaddr address;
    uint32_t flags;       ///< ALPS_CONNECT_*
    uint32_t plug_bytes;  ///< bytes the client has put into the pair to make it unwritable; the host removes them
                          ///< when the connection is there
} alps_connect_request;

#define ALPS_CONNECT_NOWAIT 1u  ///< O_NONBLOCK: reply EINPROGRESS at once

typedef struct alps_sockopt_request {
    int32_t level, name;
    uint32_t length;  ///< get: capacity; set: bytes that follow
    uint32_t reserved;
} alps_sockopt_request;

/// TCP_CORK of a stream without a message for each change, for servers that set and clear it around each answer. The host looks
/// at `wanted` when it takes what was written, so what was held back and released in the meantime costs nothing. A client
/// changes `wanted`, and looks at `applied` afterwards (with a full fence between): if it has released what the host may be
/// holding back, it sends ALPS_OP_STREAM_BELL. The host believes nothing that stands here.
typedef struct alps_cork_word {
    uint32_t wanted;   ///< client: bit 0: hold back. In the others a number that grows with every release, and when holding back
                       ///< begins after something was written without: what is in the pair may go then
    uint32_t applied;  ///< host: 1: it holds back. ALPS_CORK_LEFT: only ALPS_OP_SETSOCKOPT counts
    uint32_t plain;    ///< the client's own: something was written while bit 0 was clear
    uint32_t reserved;
} alps_cork_word;
_Static_assert(sizeof(alps_cork_word) == 16, "layout");

#define ALPS_CORK_LEFT 2u

/// TCP_NODELAY of a stream that has just been accepted, without a message: of whoever accepts from the listener. Until the host
/// has taken something from the stream, its word holds the stream's handle; a client that finds it there puts
/// ALPS_OPTION_NODELAY beside it, by an atomic exchange that fails if it is not there any more. Then, and for everything else,
/// a message has to say it. The host believes nothing else that stands here.
typedef struct alps_option_word {
    uint64_t value;
} alps_option_word;

#define ALPS_OPTION_NODELAY (1ull << 63)  ///< a handle's first byte is 1

typedef struct alps_ioctl_request {
    uint64_t command;
    uint32_t length;  ///< bytes of data that follow (and capacity of the answer)
    uint32_t reserved;
} alps_ioctl_request;

/// Stands in front of every datagram in the pair of a socket that is not connected, both ways. A connected socket's
/// messages are the bare payload. A zero-length message towards the client, in both cases, stands for an event to be
/// fetched with ALPS_OP_TAKE_EVENT: a pending error, or an empty datagram of a connected socket.
/// Netlink sockets always have the header towards the client (`ifindex`: the multicast group); requests go by
/// ALPS_OP_SEND_DATAGRAM, and what is written into the pair itself, with a header or bare, may look at the stack only.
typedef struct alps_datagram_header {
    uint32_t magic;    ///< ALPS_DATAGRAM_MAGIC
    uint32_t ifindex;
    alps_client_sockaddr address;      ///< to the host: destination; to the client: source
    alps_client_sockaddr destination;  ///< to the client: where it was sent to (IP_PKTINFO)
    uint8_t ttl, tos;
    uint16_t flags;
    uint32_t reserved;
    uint64_t timestamp;  ///< wall clock, ns
} alps_datagram_header;
_Static_assert(sizeof(alps_datagram_header) == 72, "layout");
#define ALPS_DATAGRAM_MAGIC 0x44504c41u  ///< "ALPD"


/// Packet sockets always have the header towards the client: `address` as sockaddr_ll, `ttl` 0, in `destination.addr` what
/// PACKET_AUXDATA tells: TP_STATUS_* bits and the frame's length, four bytes each. Frames to be sent go by
/// ALPS_OP_SEND_DATAGRAM, whose reply is a uint32: bytes sent; what is written into the pair, with a header or bare, is sent
/// too, and nobody hears of errors. ALPS_OP_SETSOCKOPT with SO_ATTACH_FILTER carries the instructions themselves.
///
/// Rings. A socket with a receive ring gets no frames in its pair, but a *token* makes it readable: a header with
/// ALPS_DATAGRAM_TOKEN, at most one. The host puts it there when a frame or block becomes available and none is out. The
/// client takes it away before it waits while the ring is empty, and says so by a message of the one byte ALPS_TOKEN_TAKEN;
/// the host then puts a new one there if the ring is not empty after all. So no wake-up is lost, and no poll spins.
#define ALPS_DATAGRAM_TOKEN 1u
#define ALPS_TOKEN_TAKEN 0x54u

typedef struct alps_ring_info {
    uint64_t bytes;    ///< of the rings, the receive ring first: what mmap(2) has to ask for
    uint64_t control;  ///< offset of an alps_ring_control behind them, of the host's for the client
} alps_ring_info;

typedef struct alps_ring_control {
    uint32_t last_status;  ///< offset / 4 of the status word of what was filled last: the ring is readable while that is not 0
    uint32_t filled;       ///< counts what was filled; 0: `last_status` is void
} alps_ring_control;

typedef struct alps_datagram_event {
    int32_t error;     ///< errno, or 0: an empty datagram
    uint32_t reserved;
    alps_client_sockaddr address;
} alps_datagram_event;

/// An error message about something a socket has sent (IP_RECVERR).
typedef struct alps_socket_error {
    int32_t error;
    uint8_t origin, type, code, reserved;  ///< as in Linux' sock_extended_err
    uint32_t info;                         ///< with EMSGSIZE: the largest packet that would have passed
    uint32_t left;                         ///< error messages that still wait
    alps_client_sockaddr offender;         ///< who sent the message; family 0: the stack itself
    alps_client_sockaddr destination;      ///< where the packet was going
    uint64_t timestamp;                    ///< wall clock, ns
} alps_socket_error;
_Static_assert(sizeof(alps_socket_error) == 72, "layout");
typedef struct alps_interface_record {
    char name[16];
    uint32_t index, flags, mtu, prefix_length;
    uint8_t hardware[8];
    uint32_t hardware_length;
    uint32_t reserved;
    alps_client_sockaddr address, broadcast;  ///< family 0: the interface has no address
} alps_interface_record;

/// ALPS_OP_CALL. Arguments follow the name, each by its signature letter: integers as 8 bytes; `a` alps_client_sockaddr;
/// `b` uint32 length, bytes; `B` uint32 capacity, uint32 length, bytes; `S` and `A` take nothing.
typedef struct alps_call_request {
    uint32_t name_length;  ///< "tcp.dump"
    uint32_t arguments_length;
} alps_call_request;

#endif
