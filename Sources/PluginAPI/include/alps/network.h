/// "alps.network/1:FAMILY": what a network plugin (IPv4; IPv6 later) offers to transports. Neutral to families.
#ifndef ALPS_NETWORK_H
#define ALPS_NETWORK_H

#include "address.h"
#include "base.h"
#include "mbuf.h"
#include "route.h"

ALPS_BEGIN

struct alps_socket;

// alps_netpcb.flags
#define ALPS_NETPCB_DF 0x1u            ///< set Don't Fragment; EMSGSIZE instead of fragments
#define ALPS_NETPCB_BROADCAST 0x2u     ///< SO_BROADCAST: may send to broadcast addresses
#define ALPS_NETPCB_HDRINCL 0x4u       ///< raw: the caller builds the network header
#define ALPS_NETPCB_DONTROUTE 0x8u
#define ALPS_NETPCB_FREEBIND 0x10u     ///< local address need not be ours
#define ALPS_NETPCB_PMTU_PROBE 0x20u   ///< DF set but path MTU ignored (IP_PMTUDISC_PROBE)

/// The network attachment of a socket. It may also stand on the caller's stack, zeroed, for a reply without a socket
/// (RST, SYN cache): fill family, protocol, local, remote, ttl (0 = default), tos.
typedef struct alps_netpcb {
    uint32_t size;
    uint16_t family;
    uint8_t protocol;       ///< transport protocol number
    uint8_t flags;          ///< ALPS_NETPCB_*
    uint8_t ttl;            ///< 0 = the network's default
    uint8_t tos;
    uint8_t multicast_ttl;
    uint8_t multicast_loop;
    uint32_t bound_ifindex;      ///< SO_BINDTODEVICE, 0 = none
    uint32_t multicast_ifindex;  ///< IP_MULTICAST_IF, 0 = by route
    uint32_t header_length;      ///< network header with options in force
    alps_addr local;             ///< zero while not chosen
    alps_addr remote;            ///< zero while not connected
    alps_route route;            ///< cached; checked by generation
    void *_Nullable options;     ///< the network plugin's own (IP options, memberships)
} alps_netpcb;

// kinds of errors a transport may ask the network to send back
#define ALPS_NETERR_PORT_UNREACHABLE 1u
#define ALPS_NETERR_PROTOCOL_UNREACHABLE 2u
#define ALPS_NETERR_ADMIN_PROHIBITED 3u

// flags of `output`
#define ALPS_NETOUT_DONTFRAG 1u

typedef struct alps_network_ops {
    uint32_t size;
    uint16_t family;
    uint16_t minimum_mtu;  ///< 68 for IPv4
    /// [control] A socket takes this network: fills the defaults of a zeroed netpcb. `socket` may be NULL.
    int32_t (*attach)(void *instance, alps_netpcb *netpcb, struct alps_socket *_Nullable socket);
    /// [control] Leaves groups, frees options.
    void (*detach)(void *instance, alps_netpcb *netpcb);
    /// [net] Looks up (or refreshes) the cached route to `remote`, and sets `local` if it is zero. ENETUNREACH,
    /// EHOSTUNREACH, EADDRNOTAVAIL, EACCES (broadcast without the flag).
    int32_t (*route)(void *instance, alps_netpcb *netpcb);
    /// [net] Sends a list of transport packets to netpcb->remote: adds the network header (and fragments where
    /// allowed). `data` is at the transport header, pkt.csum_start counts from there. For datagrams to one-off
    /// destinations use a copy of the socket's netpcb with another `remote`. [consumes]
    int32_t (*output)(void *instance, alps_netpcb *netpcb, alps_mbuf *list, uint32_t flags);
    /// [any] Folded sum of the pseudo header, to start a transport checksum with.
    uint32_t (*pseudo_sum)(void *instance, const alps_addr *source, const alps_addr *destination, uint8_t protocol,
                           uint32_t length);
    /// [net] Path MTU in bytes of network packet towards netpcb->remote.
    uint32_t (*path_mtu)(void *instance, alps_netpcb *netpcb);
    /// [net] The transport believes a "too big" report: remember `mtu` (0 = take the next lower plateau below
    /// `packet_length`).
    uint32_t (*lower_mtu)(void *instance, alps_netpcb *netpcb, uint32_t mtu, uint32_t packet_length);
    /// [any] ALPS_ADDR_* of an address, seen from interface `ifindex` (0 = any).
    uint32_t (*classify)(void *instance, const alps_addr *addr, uint32_t ifindex);
    /// [control] Group membership of a socket; reference-counted per interface.
    int32_t (*join)(void *instance, alps_netpcb *netpcb, const alps_addr *group, uint32_t ifindex);
    int32_t (*leave)(void *instance, alps_netpcb *netpcb, const alps_addr *group, uint32_t ifindex);
    /// [net] Is the socket behind `netpcb` to get a datagram for `group` that came in on `ifindex`? 0 or 1.
    int32_t (*member)(void *instance, const alps_netpcb *netpcb, const alps_addr *group, uint32_t ifindex);
    /// [net] Answers a packet (as given to transport input: `data` at the transport header, network header in front)
    /// with an error, if the rules allow one. [consumes]
    void (*error)(void *instance, alps_mbuf *packet, uint32_t kind);
    /// [control] Options of the network's own level (IP_TTL, IP_TOS, IP_OPTIONS, IP_ADD_MEMBERSHIP, ...). Linux names,
    /// numbers and layouts. `set` 1 = setsockopt. `*length` in: bytes at `value`, out: bytes returned.
    int32_t (*ctloutput)(void *instance, alps_netpcb *netpcb, int32_t set, int32_t level, int32_t name, void *value,
                         uint32_t *length);
    /// [any] Text of an address, NUL-terminated within `capacity`. Returns its length.
    uint32_t (*format)(void *instance, const alps_addr *addr, char *text, uint32_t capacity);
    /// [any] EINVAL if `text` is not an address of this family.
    int32_t (*parse)(void *instance, const char *text, alps_addr *addr);
} alps_network_ops;

// --- "alps.neterror/1:FAMILY", provided by the control-message plugin of a family (ICMP) ---------------------------

/// Sends error messages for a network plugin. All rules (rate, never about errors, ...) are kept by the provider.
typedef struct alps_neterror_ops {
    uint32_t size;
    uint32_t reserved;
    /// [net] `packet->data` is at the network header of the offending packet. `type`, `code` as on the wire;
    /// `parameter` is the 32-bit field after the checksum (pointer, next-hop MTU, gateway), host byte order. [consumes]
    void (*send)(void *instance, alps_mbuf *packet, uint8_t type, uint8_t code, uint32_t parameter);
} alps_neterror_ops;

ALPS_END
#endif
