/// "alps.route/1": the host's routing table. Blind to families: keys are bytes.
#ifndef ALPS_ROUTE_H
#define ALPS_ROUTE_H

#include "address.h"
#include "base.h"

ALPS_BEGIN

// alps_route.flags (BSD's RTF_ letters in brackets)
#define ALPS_RTF_UP 0x1u          ///< [U]
#define ALPS_RTF_GATEWAY 0x2u     ///< [G] next hop is `gateway`
#define ALPS_RTF_HOST 0x4u        ///< [H] full-length prefix
#define ALPS_RTF_REJECT 0x8u      ///< [R] answer EHOSTUNREACH
#define ALPS_RTF_DYNAMIC 0x10u    ///< [D] made by a redirect
#define ALPS_RTF_CLONED 0x20u     ///< [W] host route made from a network route to carry metrics
#define ALPS_RTF_STATIC 0x800u    ///< [S] made by hand
#define ALPS_RTF_CONNECTED 0x1000u  ///< [C] an interface's own network
#define ALPS_RTF_LOCAL 0x2000u    ///< [L] an address of this stack: goes to lo0
#define ALPS_RTF_BROADCAST 0x4000u  ///< [b]

/// One route, as a value. Compare `generation` with `*generation()` before you use a kept copy.
typedef struct alps_route {
    uint32_t size;
    uint16_t family;
    uint8_t prefix_length;  ///< bits
    uint8_t reserved;
    uint32_t flags;         ///< ALPS_RTF_*
    uint32_t ifindex;
    uint32_t mtu;           ///< path MTU if lower than the interface's, else the interface's
    uint32_t metric;        ///< lower wins among equal prefixes
    uint64_t generation;    ///< of the table when this was looked up
    uint64_t expires;       ///< ns on the kernel's clock when mtu or the route lapses, 0 never
    alps_addr destination;
    alps_addr gateway;      ///< with ALPS_RTF_GATEWAY
} alps_route;

typedef struct alps_route_ops {
    uint32_t size;
    uint32_t reserved;
    /// [any] Changes whenever any route changes. Read through the pointer.
    const uint64_t *_Nonnull (*_Nonnull generation)(void *self);
    /// [net] Longest prefix for `destination`; among equals the lowest metric. `ifindex` 0, or only routes of that
    /// interface. ENETUNREACH if none, EHOSTUNREACH for a reject route.
    int32_t (*lookup)(void *self, uint16_t family, const alps_addr *destination, uint32_t ifindex, alps_route *route);
    /// [control] EEXIST, ENETUNREACH (gateway not on a connected network), EINVAL.
    int32_t (*add)(void *self, const alps_route *route);
    /// [control] ENOENT. Matches destination, prefix_length and, if nonzero, ifindex and gateway.
    int32_t (*remove)(void *self, const alps_route *route);
    /// [net] Remembers a path MTU for a host (clones a host route) for `lifetime` ns. Only ever lowers it before that.
    int32_t (*update_mtu)(void *self, uint16_t family, const alps_addr *destination, uint32_t mtu, uint64_t lifetime);
    /// [net] A redirect: host route via `gateway`, honoured only if `from` is the current gateway. EPERM otherwise.
    int32_t (*redirect)(void *self, uint16_t family, const alps_addr *destination, const alps_addr *gateway,
                        const alps_addr *from, uint32_t ifindex);
} alps_route_ops;

ALPS_END
#endif
