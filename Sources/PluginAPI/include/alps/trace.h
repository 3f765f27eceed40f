/// "alps.trace/1": typed events for tools; nearly free while nobody listens.
#ifndef ALPS_TRACE_H
#define ALPS_TRACE_H

#include "base.h"

ALPS_BEGIN

typedef struct alps_trace_ops {
    uint32_t size;
    uint32_t reserved;
    /// [control] Names an event and its fields ("cwnd:u32,ssthresh:u32"); returns its id (> 0), or 0 if the table is
    /// full.
    uint32_t (*define)(void *self, const char *name, const char *fields);
    /// [any] Nonzero while somebody records; read before you build an event.
    const uint32_t *_Nonnull (*_Nonnull enabled)(void *self);
    /// [net] Appends an event of at most 256 bytes, fields packed in order, little endian. [borrows]
    void (*emit)(void *self, uint32_t event, const void *fields, uint32_t length);
} alps_trace_ops;

ALPS_END
#endif
