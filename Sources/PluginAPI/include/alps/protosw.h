/// "alps.protosw/1": the protocol switch. A transport registers what it speaks; the socket layer and the network
/// plugins find it here.
#ifndef ALPS_PROTOSW_H
#define ALPS_PROTOSW_H

#include "base.h"
#include "mbuf.h"
#include "pcb.h"
#include "socket.h"

ALPS_BEGIN

// alps_protosw.flags
#define ALPS_PR_CONNREQUIRED 1u  ///< a stream with connections
#define ALPS_PR_ATOMIC 2u        ///< datagrams
#define ALPS_PR_ADDR 4u          ///< datagrams carry addresses
#define ALPS_PR_RAW 8u           ///< raw socket: protocol 0 in the entry matches any number
#define ALPS_PR_NOSOCKET 16u     ///< takes packets only, no sockets (type 0)

// demux classes: where the ports of a transport header lie
#define ALPS_DEMUX_NONE 0u   ///< no ports: `input` gets every packet, pkt.conn NULL
#define ALPS_DEMUX_PORTS 1u  ///< source port at 0, destination port at 2

// flags of `sent`
#define ALPS_SENT_MORE 1u  ///< more is about to come (MSG_MORE): may wait
#define ALPS_SENT_OOB 2u   ///< the last byte is urgent
#define ALPS_SENT_EOR 4u   ///< a record ends here (MSG_EOR): what follows goes in segments of its own

/// A control event: an error message from the network about something this stack sent.
typedef struct alps_ctl_event {
    uint32_t size;
    uint16_t family;
    uint8_t type;          ///< as on the wire
    uint8_t code;
    int32_t error;         ///< errno it stands for
    uint32_t mtu;          ///< with "too big": next-hop MTU, 0 if not told
    uint32_t hard;         ///< 1 = may end a connection, 0 = note it only
    uint32_t transport_offset;  ///< bytes from quoted->data to the quoted transport header
    alps_addr offender;    ///< who sent the message
    alps_addr source;      ///< of the quoted packet: us
    alps_addr destination; ///< of the quoted packet
    alps_mbuf *_Nullable quoted;   ///< the quoted packet, at its network header [borrows]
    alps_conn *_Nullable conn;     ///< entry the quoted tuple belongs to, filled by the host
    uint32_t quoted_length;        ///< total length the quoted network header claims
    uint32_t reserved;
} alps_ctl_event;

// Standard user requests. Their functions have the C type given and the signature in quotes (see below).
#define ALPS_PRU_ATTACH 1u      ///< "S": int32_t (instance, so): make a pcb, set so->pcb
#define ALPS_PRU_BIND 2u        ///< "Sa": (instance, so, const alps_sockaddr *)
#define ALPS_PRU_LISTEN 3u      ///< "Si": (instance, so, int32_t backlog); again with another backlog is allowed
#define ALPS_PRU_CONNECT 4u     ///< "Sa": starts; stream: 0 and is_connecting, later is_connected or error
#define ALPS_PRU_DISCONNECT 5u  ///< "S": datagram: forget the peer (connect to AF_UNSPEC)
#define ALPS_PRU_SHUTDOWN 6u    ///< "Si": ALPS_SHUT_*; for WR all that is in so->snd goes out before the end
#define ALPS_PRU_CLOSE 7u       ///< "S": the last reference is gone: finish in order, then `detached`. SO_LINGER 0 comes
                                ///< as ABORT
#define ALPS_PRU_ABORT 8u       ///< "S": reset now; ends with `detached` within the call
#define ALPS_PRU_CTLOUTPUT 9u   ///< "SiiiB": (so, set, level, name, void *value, uint32_t *length); ENOPROTOOPT if not its own
#define ALPS_PRU_CONTROL 10u    ///< "SuB": ioctl: (so, uint32_t command, void *data, uint32_t *length)
#define ALPS_PRU_SOCKADDR 11u   ///< "SA": (so, alps_sockaddr *)
#define ALPS_PRU_PEERADDR 12u   ///< "SA"
#define ALPS_PRU_REHOME 13u     ///< "S": a listener leaves for another instance: free its pcb without `detached`; its
                                ///< embryonic entries stay and may still make children of `so`
#define ALPS_PRU_ORPHAN 14u     ///< "S": a listener that was re-homed is closing: drop embryonic entries that point to it
#define ALPS_PRU_DESCRIBE 15u   ///< "SB": text for tools about this socket's pcb (JSON object), *length in/out
#define ALPS_PRU_FIRST_PRIVATE 256u  ///< a plugin's own requests start here

/// One request. The function gets the instance first, then the arguments its signature lists, and returns an errno.
///
/// Signature letters: `S` alps_socket *, `i` int32_t, `u` uint32_t, `l` int64_t, `L` uint64_t, `a` const
/// alps_sockaddr *, `A` alps_sockaddr * (out), `b` const void * and uint32_t length (two C arguments), `B` void * and
/// uint32_t * length (two C arguments; in: capacity or bytes given, out: bytes returned). Requests whose names end in
/// "!" may sleep: the host runs them on a fiber.
typedef struct alps_user_request {
    uint32_t size;
    uint32_t id;            ///< ALPS_PRU_* or >= ALPS_PRU_FIRST_PRIVATE
    const char *name;       ///< e.g. "bind"; private ones are called as PROTOCOL.NAME from tools
    const char *signature;
    const char *_Nullable doc;
    alps_function function;
} alps_user_request;

/// One entry of the switch.
typedef struct alps_protosw {
    uint32_t size;
    uint16_t domain;    ///< ALPS_AF_*
    uint16_t type;      ///< ALPS_SOCK_*, 0 with ALPS_PR_NOSOCKET
    uint16_t protocol;  ///< protocol number
    uint8_t demux;      ///< ALPS_DEMUX_*
    uint8_t reserved;
    uint32_t flags;     ///< ALPS_PR_*
    const char *name;     ///< "tcp"
    const char *network;  ///< interface id of the network below, e.g. "alps.network/1:2"
    const alps_user_request *requests;
    uint32_t requests_count;
    uint32_t connection_overhead;  ///< bytes of pcb, for `alps stat`

    /// [net] A list of packets for this protocol. pkt.conn tells the entry found, NULL if none; pkt.source, .destination,
    /// .l3_length are set; `data` is at the transport header. Checksums are the transport's to check. [consumes]
    void (*_Nullable input)(void *instance, alps_mbuf *list);
    /// [net] An error about something this instance sent. [borrows]
    void (*_Nullable ctlinput)(void *instance, const alps_ctl_event *event);
    /// [net] so->snd.tail has moved (stream): send what may be sent. Flags ALPS_SENT_*.
    int32_t (*_Nullable sent)(void *instance, alps_socket *so, uint32_t flags);
    /// [net] so->rcv.head has moved: the reader made room; maybe send a window update.
    void (*_Nullable received)(void *instance, alps_socket *so);
    /// [net] One datagram; `to` NULL means the connected peer. [consumes packet]
    int32_t (*_Nullable send_datagram)(void *instance, alps_socket *so, alps_mbuf *packet,
                                       const alps_sockaddr *_Nullable to);
} alps_protosw;

typedef struct alps_protosw_ops {
    uint32_t size;
    uint32_t reserved;
    /// [control] Registers an entry for the calling instance; the structure and its table stay the plugin's and must
    /// not move. A first instance of (domain, type, protocol) becomes the default; a variant is reached by its name.
    int32_t (*add)(void *self, const alps_protosw *entry);
    /// [net] From a network plugin: a list of packets, all of one protocol number. The host finds their connections and
    /// calls the owners' `input`. EPROTONOSUPPORT and not consumed if nobody speaks it. [consumes]
    int32_t (*deliver)(void *self, uint16_t family, uint8_t protocol, alps_mbuf *list);
    /// [net] From a control-message plugin: finds the owner of the quoted tuple (protocol and ports at
    /// event->transport_offset) and calls its `ctlinput`. ENOENT if the tuple is nobody's.
    int32_t (*control)(void *self, uint8_t protocol, alps_ctl_event *event);
} alps_protosw_ops;

ALPS_END
#endif
