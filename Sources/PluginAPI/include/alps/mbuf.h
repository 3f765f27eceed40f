/// "alps.mbuf/1": packet memory, BSD's mbuf in a frozen layout.
///
/// A packet is a chain of mbufs joined by `next`; a list of packets is joined by `nextpkt` of their first mbufs. The
/// first mbuf of a packet has ALPS_M_PKTHDR and a valid `pkt`. Bytes lie in the mbuf's own `inline_storage` or in
/// external storage with a reference count (clusters, ring memory of a socket).
#ifndef ALPS_MBUF_H
#define ALPS_MBUF_H

#include "address.h"
#include "base.h"

ALPS_BEGIN

#define ALPS_MBUF_SIZE 512u      ///< bytes of an mbuf
#define ALPS_MBUF_INLINE 320u    ///< bytes of inline storage
#define ALPS_MBUF_HEADROOM 64u   ///< free bytes the host wants in front of the network header on output
#define ALPS_CLUSTER_SIZE 2048u  ///< small cluster
#define ALPS_BIG_CLUSTER_SIZE 69632u  ///< holds a 64 KiB segment with all headers

// alps_mbuf.flags
#define ALPS_M_PKTHDR 0x0001u
#define ALPS_M_EXT 0x0002u        ///< storage is `ext`
#define ALPS_M_RING 0x0004u       ///< external storage is socket ring memory: stable only within this turn
#define ALPS_M_RDONLY 0x0008u     ///< shared: do not write into it

// alps_pkthdr.flags
#define ALPS_PKT_BROADCAST 0x0001u  ///< arrived as link-layer broadcast
#define ALPS_PKT_MULTICAST 0x0002u  ///< arrived as link-layer multicast
#define ALPS_PKT_LOOPBACK 0x0004u   ///< came over lo0
#define ALPS_PKT_FRAGMENT 0x0008u   ///< is, or was put together from, fragments
#define ALPS_PKT_ECT 0x0020u        ///< output: the network header says ECN-capable, ECT(0) (RFC 3168)
#define ALPS_PKT_NETBROADCAST 0x0010u  ///< network destination is a broadcast or multicast address

// alps_pkthdr.csum
#define ALPS_CSUM_NONE 0u     ///< in: must be verified; out: complete
#define ALPS_CSUM_VALID 1u    ///< in: verified by device or trusted path (lo0)
#define ALPS_CSUM_PARTIAL 2u  ///< sum from csum_start to the end is to be stored at csum_start + csum_offset; the field
                              ///< holds the folded, not inverted pseudo-header sum. Input may carry it too: trust it

// alps_pkthdr.gso_type
#define ALPS_GSO_NONE 0u
#define ALPS_GSO_TCP4 1u  ///< TCP over IPv4, cut into gso_size bytes of payload
#define ALPS_GSO_TCP6 4u
#define ALPS_GSO_UDP 5u
#define ALPS_GSO_ECN 0x80u  ///< or-ed: CWR is set, and belongs to the first segment (RFC 3168)
#define ALPS_GSO_ACE 0x40u  ///< or-ed: CWR is set, and belongs to every segment (RFC 9768); no device can do that

struct alps_conn;
struct alps_mbuf;

/// External storage with a reference count. Frozen layout. The count is changed by the mbuf functions only.
typedef struct alps_ext {
    uint8_t *base;
    uint32_t length;      ///< bytes at `base`
    int32_t references;
    void (*_Nullable release)(struct alps_ext *ext);  ///< called at zero
    void *_Nullable context;                          ///< for `release`
} alps_ext;
ALPS_LAYOUT_SIZE(alps_ext, 32);

/// What is known about a whole packet. Frozen layout.
typedef struct alps_pkthdr {
    uint32_t length;        ///< bytes in the chain
    uint32_t ifindex;       ///< interface it came in on; on output 0 or the interface it must leave by
    uint64_t timestamp;     ///< ns of arrival
    uint16_t flags;         ///< ALPS_PKT_*
    uint8_t csum;           ///< ALPS_CSUM_*
    uint8_t gso_type;       ///< ALPS_GSO_*
    uint16_t csum_start;    ///< ALPS_CSUM_PARTIAL: bytes from `data` of the first mbuf
    uint16_t csum_offset;   ///< from csum_start
    uint16_t gso_size;      ///< payload bytes a segment (in: what the sender cut, out: what to cut)
    uint16_t gso_segments;  ///< number of segments, 1 if not segmented
    uint16_t ethertype;     ///< host byte order, as received or to be sent
    uint16_t l2_length;     ///< bytes of link header that stood in front (still readable on input)
    uint16_t l3_length;     ///< bytes of network header: on transport input it stands right in front of `data`
    uint8_t protocol;       ///< transport protocol number
    uint8_t tos;            ///< DSCP and ECN of the network header
    uint8_t ttl;
    uint8_t shard;
    uint16_t family;        ///< ALPS_AF_* of the addresses below
    uint32_t flow_hash;
    uint32_t truesize;      ///< bytes of memory the packet pins
    alps_addr source;       ///< set by the network plugin on input
    alps_addr destination;
    struct alps_conn *_Nullable conn;  ///< connection-table entry found for it, on transport input
    uint64_t scratch;  ///< for whoever has the packet now; nothing survives a call
} alps_pkthdr;
ALPS_LAYOUT_SIZE(alps_pkthdr, 96);

/// One buffer. Frozen layout.
typedef struct alps_mbuf {
    struct alps_mbuf *_Nullable next;     ///< next buffer of this packet (m_next)
    struct alps_mbuf *_Nullable nextpkt;  ///< next packet of the list (m_nextpkt)
    uint8_t *data;                        ///< first valid byte (m_data)
    uint32_t length;                      ///< valid bytes here (m_len)
    uint32_t flags;                       ///< ALPS_M_*
    uint8_t *storage;                     ///< start of the storage `data` points into
    uint32_t storage_size;
    uint32_t reserved;
    alps_ext *_Nullable ext;              ///< with ALPS_M_EXT
    void *_Nullable owner;                ///< host: pool
    uint8_t reserved2[32];
    alps_pkthdr pkt;                      ///< valid with ALPS_M_PKTHDR
    uint8_t inline_storage[ALPS_MBUF_INLINE];
} alps_mbuf;
ALPS_LAYOUT_SIZE(alps_mbuf, ALPS_MBUF_SIZE);
ALPS_LAYOUT_AT(alps_mbuf, pkt, 96);
ALPS_LAYOUT_AT(alps_mbuf, inline_storage, 192);

/// All functions [net]. Failing allocations return NULL; what was passed with [consumes] is freed all the same.
typedef struct alps_mbuf_ops {
    uint32_t size;
    uint32_t reserved;
    /// A packet of one mbuf, length 0, pkt zeroed, `headroom` (<= 256) bytes free in front of `data`. [returns-owned]
    alps_mbuf *_Nullable (*_Nonnull packet)(void *self, uint32_t headroom);
    /// A packet of one mbuf with one contiguous external cluster of at least `capacity` bytes behind `headroom`.
    alps_mbuf *_Nullable (*_Nonnull cluster)(void *self, uint32_t headroom, uint32_t capacity);
    /// A non-header mbuf that refers to `length` bytes at `bytes` inside `ext`, taking one reference. `flags`: 0 or
    /// ALPS_M_RING. Read-only.
    alps_mbuf *_Nullable (*_Nonnull refer)(void *self, alps_ext *ext, uint8_t *bytes, uint32_t length, uint32_t flags);
    /// Frees all packets of a list. [consumes]
    void (*free)(void *self, alps_mbuf *_Nullable list);
    /// Frees one packet (all buffers of the chain, not nextpkt). [consumes]
    void (*free_packet)(void *self, alps_mbuf *packet);
    /// Room for `bytes` (<= 256) more in front of the packet, contiguous and writable: moves `data` back if the first
    /// mbuf allows, else prepends an mbuf. `pkt.length` grows, csum_start too. [consumes] [returns-owned]
    alps_mbuf *_Nullable (*_Nonnull prepend)(void *self, alps_mbuf *packet, uint32_t bytes);
    /// Makes the first `bytes` (<= pkt.length, <= 2048) of the packet contiguous and writable. NULL if too short or no
    /// memory (then freed). [consumes] [returns-owned]
    alps_mbuf *_Nullable (*_Nonnull pullup)(void *self, alps_mbuf *packet, uint32_t bytes);
    /// Removes `front` bytes at the beginning and `back` bytes at the end; pkt.length follows.
    void (*adjust)(void *self, alps_mbuf *packet, uint32_t front, uint32_t back);
    /// Copies `length` bytes from `offset` on to `to`. The packet must be that long.
    void (*copy_out)(void *self, const alps_mbuf *packet, uint32_t offset, uint32_t length, void *to);
    /// Overwrites `length` bytes from `offset` on; the buffers touched must be writable.
    void (*copy_in)(void *self, alps_mbuf *packet, uint32_t offset, uint32_t length, const void *from);
    /// A second packet over the same bytes (`length` from `offset` on, clamped to the end), sharing external storage;
    /// inline bytes are copied. The packet header is copied. ALPS_M_RING parts are copied. [borrows] [returns-owned]
    alps_mbuf *_Nullable (*_Nonnull copy)(void *self, const alps_mbuf *packet, uint32_t offset, uint32_t length);
    /// Appends `length` bytes at the end, allocating as needed; ENOBUFS leaves the packet as it was.
    int32_t (*append)(void *self, alps_mbuf *packet, const void *bytes, uint32_t length);
    /// Joins `tail` behind `head`; head's pkt.length grows. [consumes tail]
    void (*concatenate)(void *self, alps_mbuf *head, alps_mbuf *tail);
    /// Cuts the packet at `at`: the packet keeps the front, the rest is returned as a packet of its own.
    alps_mbuf *_Nullable (*_Nonnull split)(void *self, alps_mbuf *packet, uint32_t at);
    /// For whoever keeps a packet past this turn: copies ring memory and over-large storage ("a tiny fragment never
    /// pins a 64 KiB cluster"). [consumes] [returns-owned]
    alps_mbuf *_Nullable (*_Nonnull hold)(void *self, alps_mbuf *packet);
    /// The Internet checksum's running sum (not inverted, folded to 16 bits) over a part of the packet.
    uint32_t (*sum)(void *self, const alps_mbuf *packet, uint32_t offset, uint32_t length);
    /// Completes ALPS_CSUM_PARTIAL: csum becomes ALPS_CSUM_NONE. [consumes] [returns-owned]
    alps_mbuf *_Nullable (*_Nonnull finish_checksum)(void *self, alps_mbuf *packet);
    /// Cuts a packet with gso_type into real segments with correct headers (IPv4 id, lengths, TCP sequence, flags) and
    /// complete checksums; `data` must be at the network header. [consumes] [returns-owned list]
    alps_mbuf *_Nullable (*_Nonnull segment)(void *self, alps_mbuf *packet);
} alps_mbuf_ops;

ALPS_END
#endif
