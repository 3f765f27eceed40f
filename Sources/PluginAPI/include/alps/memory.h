/// "alps.memory/1": memory of an instance. Counted; what is left at `destroy` is reported as a leak.
#ifndef ALPS_MEMORY_H
#define ALPS_MEMORY_H

#include "base.h"

ALPS_BEGIN

typedef struct alps_memory_ops {
    uint32_t size;
    uint32_t reserved;
    /// [net] `bytes` of zeroed memory, 16-byte aligned, or NULL when the instance's limit is reached.
    /// Size-classed free lists: cheap enough for a connection, not meant for a packet. [returns-owned]
    void *_Nullable (*_Nonnull alloc)(void *self, size_t bytes);
    /// [net] Gives back memory from `alloc`; `bytes` as asked for. [consumes]
    void (*free)(void *self, void *memory, size_t bytes);
} alps_memory_ops;

ALPS_END
#endif
