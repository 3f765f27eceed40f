/// "alps.time/1": the clock and callouts.
#ifndef ALPS_TIME_H
#define ALPS_TIME_H

#include "base.h"

ALPS_BEGIN

#define ALPS_NSEC_PER_SEC 1000000000ull
#define ALPS_NSEC_PER_MSEC 1000000ull

/// A timer in the plugin's own memory (zeroed before first use). Frozen layout. Only `deadline` may be read by the
/// plugin, and only while armed. It must not move or be freed while armed.
typedef struct alps_callout {
    struct alps_callout *_Nullable next;  ///< host
    struct alps_callout *_Nullable prev;  ///< host
    uint64_t deadline;                    ///< ns on the kernel's clock
    void *_Nullable owner;                ///< host: the instance that gets the call
    void *_Nullable argument;
    uint32_t function;
    uint16_t flags;  ///< ALPS_CALLOUT_*
    uint16_t slot;   ///< host
} alps_callout;
ALPS_LAYOUT_SIZE(alps_callout, 48);

#define ALPS_CALLOUT_ARMED 1u

typedef struct alps_time_ops {
    uint32_t size;
    uint32_t reserved;
    /// [any] Nanoseconds of a clock that never goes back; constant within one loop turn. Starts above 0.
    uint64_t (*now)(void *self);
    /// [net] Arms (or re-arms) a callout to fire `delay` ns from now: the instance's `callout` function gets
    /// `function` and `argument`. A delay of 0 fires in the next turn, never within this call.
    void (*callout_reset)(void *self, alps_callout *callout, uint64_t delay, uint32_t function,
                          void *_Nullable argument);
    /// [net] Disarms; harmless if not armed. Returns 1 if it was armed.
    int32_t (*callout_stop)(void *self, alps_callout *callout);
    /// [control] Wall clock in ns since 1970 for protocols that carry it (ICMP timestamp); virtual in the lab.
    uint64_t (*wall)(void *self);
} alps_time_ops;

ALPS_END
#endif
