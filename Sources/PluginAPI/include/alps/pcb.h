/// "alps.pcb/1": the connection table. The host's, blind to families; entries live in the transports' memory.
#ifndef ALPS_PCB_H
#define ALPS_PCB_H

#include "address.h"
#include "base.h"
#include "socket.h"

ALPS_BEGIN

#define ALPS_CONN_FULL 1u       ///< both addresses and ports
#define ALPS_CONN_EMBRYONIC 2u  ///< SYN cache: both, no socket yet
#define ALPS_CONN_TIMEWAIT 3u   ///< both, socket gone
#define ALPS_CONN_LISTENER 4u   ///< local port, maybe local address; accepts connections
#define ALPS_CONN_BOUND 5u      ///< local port, maybe local address; datagrams, or a stream not connected

/// One entry, in the transport's zone memory; zeroed before first use. It must not move while it is in the table.
/// Several kinds with one tuple may not coexist, except LISTENER/BOUND groups with REUSEPORT.
typedef struct alps_conn {
    struct alps_conn *_Nullable hash_next;  ///< host
    struct alps_conn *_Nullable hash_prev;  ///< host
    void *_Nullable owner;                  ///< host: the instance that inserted it
    void *_Nullable port_record;            ///< host: port accounting
    uint16_t family;
    uint16_t local_port;
    uint16_t remote_port;
    uint8_t protocol;
    uint8_t kind;                           ///< ALPS_CONN_*
    alps_addr local;                        ///< zero = any
    alps_addr remote;                       ///< zero = any
    uint32_t hash;                          ///< host
    uint32_t flags;                         ///< host
    alps_socket *_Nullable socket;          ///< NULL for EMBRYONIC and TIMEWAIT
    void *_Nullable cookie;                 ///< the transport's own (its pcb, SYN-cache entry, ...)
    uint32_t bound_ifindex;                 ///< matches only packets of this interface, 0 = any
    uint32_t state;                         ///< for tools: transport's own state number (TCP: CLOSED = 0, LISTEN 1, SYN-SENT 2, SYN-RECEIVED 3, ESTABLISHED 4, FIN-WAIT-1 5, FIN-WAIT-2 6, CLOSE-WAIT 7, CLOSING 8, LAST-ACK 9, TIME-WAIT 10)
    uint64_t reserved;
} alps_conn;
ALPS_LAYOUT_SIZE(alps_conn, 112);

typedef struct alps_pcb_ops {
    uint32_t size;
    uint32_t reserved;
    /// [net] Reserves a local port for `conn` (family, protocol, local, local_port; 0 = pick an ephemeral one at
    /// random, RFC 6056) by Linux's rules for SO_REUSEADDR and SO_REUSEPORT (taken from conn->socket), and inserts
    /// it with kind BOUND. conn->local_port is set. EADDRINUSE, EACCES (never for root), EADDRNOTAVAIL (range full).
    int32_t (*bind)(void *self, alps_conn *conn);
    /// [net] Inserts, or moves after a change of kind, addresses or ports (call `remove` first, then change, then
    /// insert). FULL, EMBRYONIC, TIMEWAIT: EADDRINUSE if the tuple exists. LISTENER: EADDRINUSE by Linux's rules.
    /// The entry shares the reservation of its local port. With kind FULL and local_port 0, an ephemeral port is
    /// picked that is free for this very remote end.
    int32_t (*insert)(void *self, alps_conn *conn);
    /// [net] Takes it out; the port is free when its last entry is out. Harmless if not in the table.
    void (*remove)(void *self, alps_conn *conn);
    /// [net] The best entry for a packet with this tuple as seen by the receiver: exact, then listener or bound with
    /// local address, then without. NULL if none.
    alps_conn *_Nullable (*_Nonnull lookup)(void *self, uint16_t family, uint8_t protocol, const alps_addr *local,
                                   uint16_t local_port, const alps_addr *remote, uint16_t remote_port,
                                   uint32_t ifindex);
    /// [net] Calls `each` for every entry of a protocol that a multicast or broadcast datagram to `local`:`local_port`
    /// matches. `each` must not change the table.
    void (*match_all)(void *self, uint16_t family, uint8_t protocol, const alps_addr *local, uint16_t local_port,
                      const alps_addr *remote, uint16_t remote_port, uint32_t ifindex, void *_Nullable context,
                      void (*each)(void *_Nullable context, alps_conn *conn));
} alps_pcb_ops;

ALPS_END
#endif
