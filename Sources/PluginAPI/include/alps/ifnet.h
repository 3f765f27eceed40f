/// "alps.ifnet/1": network interfaces, and the link layer below the network plugins.
#ifndef ALPS_IFNET_H
#define ALPS_IFNET_H

#include "address.h"
#include "base.h"
#include "mbuf.h"

ALPS_BEGIN

#define ALPS_IFT_ETHER 1u
#define ALPS_IFT_LOOP 2u

// alps_ifnet.flags (Linux IFF_ values)
#define ALPS_IFF_UP 0x1u
#define ALPS_IFF_BROADCAST 0x2u
#define ALPS_IFF_LOOPBACK 0x8u
#define ALPS_IFF_RUNNING 0x40u
#define ALPS_IFF_NOARP 0x80u
#define ALPS_IFF_PROMISC 0x100u
#define ALPS_IFF_MULTICAST 0x1000u

// alps_ifnet.capabilities: what the device does on output; the host does the rest in software
#define ALPS_IFCAP_TXCSUM 1u
#define ALPS_IFCAP_TSO4 2u

// alps_ifaddr.flags
#define ALPS_IFA_TENTATIVE 1u   ///< being probed (RFC 5227); usable all the same while the optimistic tunable is set
#define ALPS_IFA_DUPLICATE 2u   ///< another host has it: not used as source, not answered for

/// One address of an interface.
typedef struct alps_ifaddr {
    uint32_t size;
    uint16_t family;
    uint8_t prefix_length;
    uint8_t reserved;
    uint32_t flags;  ///< ALPS_IFA_*
    uint32_t ifindex;
    alps_addr addr;
    alps_addr broadcast;  ///< zero if none
} alps_ifaddr;

/// An interface as plugins see it. Host-owned, lives as long as the interface; contents change between turns.
typedef struct alps_ifnet {
    uint32_t size;
    uint32_t index;  ///< 1...
    char name[16];   ///< NUL-padded
    uint32_t type;   ///< ALPS_IFT_*
    uint32_t flags;  ///< ALPS_IFF_*
    uint32_t mtu;    ///< bytes of network packet
    uint32_t capabilities;
    uint8_t hardware[8];
    uint32_t hardware_length;  ///< 6 for Ethernet, 0 for lo0
    uint32_t address_count;
    const alps_ifaddr *_Nullable addresses;
} alps_ifnet;

#define ALPS_IFEVENT_ATTACH 1u
#define ALPS_IFEVENT_DETACH 2u
#define ALPS_IFEVENT_UP 3u
#define ALPS_IFEVENT_DOWN 4u
#define ALPS_IFEVENT_ADDRESS_ADD 5u
#define ALPS_IFEVENT_ADDRESS_DELETE 6u
#define ALPS_IFEVENT_MTU 7u
#define ALPS_IFEVENT_HARDWARE 8u

/// What alps_descriptor.ifnet_event gets. At `start`, a plugin walks the existing interfaces itself.
typedef struct alps_ifnet_event {
    uint32_t size;
    uint32_t kind;  ///< ALPS_IFEVENT_*
    const alps_ifnet *ifnet;
    const alps_ifaddr *_Nullable address;  ///< with ADDRESS_*; for DELETE valid only during the call
} alps_ifnet_event;

/// How packets of one ethertype reach an instance. `packet->data` is at the network header; the link header still
/// stands in front (pkt.l2_length).
typedef struct alps_ethertype {
    uint32_t size;
    uint16_t ethertype;  ///< host byte order
    uint16_t reserved;
    /// [net] A list of packets, in order of arrival. [consumes]
    void (*input)(void *instance, alps_mbuf *list);
} alps_ethertype;

typedef struct alps_ifnet_ops {
    uint32_t size;
    uint32_t reserved;
    /// [any] The interface with this index, or NULL. Indexes run from 1 to `last_index`.
    const alps_ifnet *_Nullable (*_Nonnull get)(void *self, uint32_t index);
    uint32_t (*last_index)(void *self);
    /// [control] This instance takes an ethertype. EEXIST if another instance has it.
    int32_t (*register_ethertype)(void *self, const alps_ethertype *registration);
    /// [net] Sends a list of network packets (all to one next hop): the host finds the link address through the
    /// "alps.neighbor/1:FAMILY" provider, adds the link header and hands them to the device, segmenting and
    /// checksumming in software what the device cannot. `data` is at the network header; pkt.csum_start counts
    /// from there. lo0 queues them for the next batch. Returns an errno (ENETDOWN, EHOSTDOWN, ENOBUFS, EMSGSIZE).
    /// [consumes]
    int32_t (*output)(void *self, uint32_t ifindex, alps_mbuf *list, uint16_t family, const alps_addr *next_hop);
    /// [net] Sends one packet to a given link address without resolving (ARP itself). [consumes]
    int32_t (*output_link)(void *self, uint32_t ifindex, alps_mbuf *packet, uint16_t ethertype,
                           const uint8_t *destination);
    /// [net] Sets flags of an address (ALPS_IFA_*), matched by bytes. ENOENT if there is none.
    int32_t (*address_flags)(void *self, uint32_t ifindex, const alps_addr *addr, uint32_t flags);
} alps_ifnet_ops;

// --- "alps.neighbor/1:FAMILY", provided by a link resolver such as ARP -------------------------------------------

#define ALPS_NEIGHBOR_STATIC 1u
#define ALPS_NEIGHBOR_RESOLVED 2u
#define ALPS_NEIGHBOR_FAILED 4u
#define ALPS_NEIGHBOR_PUBLISHED 8u

typedef struct alps_neighbor {
    uint32_t size;
    uint32_t ifindex;
    uint32_t flags;  ///< ALPS_NEIGHBOR_*
    uint16_t family;
    uint16_t hardware_length;
    alps_addr addr;
    uint8_t hardware[8];
    uint64_t expires;  ///< ns left, 0 if permanent
    uint32_t held;     ///< packets waiting
    uint32_t reserved;
} alps_neighbor;

typedef struct alps_neighbor_ops {
    uint32_t size;
    uint32_t reserved;
    /// [net] Link address of `next_hop`. 0: `hardware` (6 bytes) is filled and `list` still the caller's. Otherwise
    /// the list is consumed: EAGAIN held while a request is out, EHOSTDOWN / EHOSTUNREACH resolution failed lately.
    int32_t (*resolve)(void *instance, uint32_t ifindex, const alps_addr *next_hop, alps_mbuf *list,
                       uint8_t *hardware);
    /// [control] Adds or replaces an entry (flags STATIC and/or PUBLISHED).
    int32_t (*add)(void *instance, const alps_neighbor *neighbor);
    /// [control] ENOENT if there is none.
    int32_t (*remove)(void *instance, uint32_t ifindex, const alps_addr *addr);
    /// [control] Copies at most `capacity` entries from the `start`-th on; returns how many.
    uint32_t (*list)(void *instance, uint32_t start, alps_neighbor *entries, uint32_t capacity);
} alps_neighbor_ops;

ALPS_END
#endif
