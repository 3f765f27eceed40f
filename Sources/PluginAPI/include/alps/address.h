/// Addresses, neutral to families.
#ifndef ALPS_ADDRESS_H
#define ALPS_ADDRESS_H

#include "base.h"

ALPS_BEGIN

#define ALPS_AF_UNSPEC 0
#define ALPS_AF_INET 2
#define ALPS_AF_INET6 10

/// A network address: network byte order, left-aligned, the rest zero.
typedef struct alps_addr {
    uint8_t bytes[16];
} alps_addr;
ALPS_LAYOUT_SIZE(alps_addr, 16);

/// A transport address.
typedef struct alps_sockaddr {
    uint16_t family;  ///< ALPS_AF_*
    uint16_t port;    ///< host byte order; for raw sockets the protocol
    uint32_t scope;   ///< interface index for scoped addresses, else 0
    alps_addr addr;
} alps_sockaddr;
ALPS_LAYOUT_SIZE(alps_sockaddr, 24);

#define ALPS_ADDR_UNICAST 1u      ///< somebody else's
#define ALPS_ADDR_LOCAL 2u        ///< one of this stack's
#define ALPS_ADDR_BROADCAST 3u    ///< limited or directed
#define ALPS_ADDR_MULTICAST 4u
#define ALPS_ADDR_UNSPECIFIED 5u
#define ALPS_ADDR_INVALID 6u      ///< never valid on the wire (class E, 0/8, ...)

ALPS_END
#endif
