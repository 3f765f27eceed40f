/// "alps.counter/1": event counters, shown by `alps netstat -s`.
#ifndef ALPS_COUNTER_H
#define ALPS_COUNTER_H

#include "base.h"

ALPS_BEGIN

#define ALPS_COUNTER_GAUGE 1u  ///< goes up and down (e.g. entries in a cache)

/// One counter. The plugin increments `*value` itself; the host only reads.
typedef struct alps_counter {
    uint32_t size;
    uint32_t flags;     ///< ALPS_COUNTER_GAUGE
    const char *name;   ///< e.g. "rexmit_segments"; shown below the instance's name
    const char *doc;    ///< as netstat prints it, e.g. "data segments retransmitted"
    const uint64_t *value;
} alps_counter;

typedef struct alps_counter_ops {
    uint32_t size;
    uint32_t reserved;
    /// [control] Registers `count` counters; the array may be temporary, the rest may not.
    int32_t (*add)(void *self, const alps_counter *counters, uint32_t count);
} alps_counter_ops;

ALPS_END
#endif
