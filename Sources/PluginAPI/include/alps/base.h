/// Building blocks of the plugin ABI: sizes, growth, cells.
#ifndef ALPS_BASE_H
#define ALPS_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__clang__)
#define ALPS_BEGIN _Pragma("clang assume_nonnull begin")
#define ALPS_END _Pragma("clang assume_nonnull end")
#else
#define ALPS_BEGIN
#define ALPS_END
#ifndef _Nullable
#define _Nullable
#endif
#ifndef _Nonnull
#define _Nonnull
#endif
#endif

/// True if the structure behind `p` was written by a producer that knew member `m`.
#define ALPS_HAS(p, m) ((p)->size >= offsetof(__typeof__(*(p)), m) + sizeof((p)->m))

/// Layout checks: a change of a published offset or size does not compile.
#if defined(__cplusplus)
#define _Static_assert static_assert
#endif
#define ALPS_LAYOUT_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "layout of " #type " changed")
#define ALPS_LAYOUT_AT(type, member, offset) \
    _Static_assert(offsetof(type, member) == (offset), "offset of " #type "." #member " changed")

ALPS_BEGIN

/// One interface as seen by its users: a host-owned box that never moves. Frozen layout.
///
/// Call through it each time: `((const alps_time_ops *)cell->ops)->now(cell->self)`. A swap rewrites the box between
/// loop turns, so no plugin ever keeps another's code address. `ops` is NULL while nobody provides the interface.
typedef struct alps_cell {
    const void *_Nullable ops;  ///< table of the interface, begins with its `uint32_t size`
    void *_Nullable self;       ///< first argument of every function in the table
    uint64_t generation;        ///< counts the rewrites
} alps_cell;
ALPS_LAYOUT_SIZE(alps_cell, 24);

/// Has the cache line at `address` fetched while other work goes on; harmless for any address. Swift has no word for it.
static inline void alps_prefetch(const void *_Nullable address) { __builtin_prefetch(address, 1); }

/// A function pointer of any type; cast to the type its signature names before calling.
typedef void (*alps_function)(void);

ALPS_END
#endif
