/// "alps.sleep/1": BSD's tsleep and wakeup, for user requests that must wait.
#ifndef ALPS_SLEEP_H
#define ALPS_SLEEP_H

#include "base.h"

ALPS_BEGIN

typedef struct alps_sleep_ops {
    uint32_t size;
    uint32_t reserved;
    /// [blocking] Sleeps on `channel` (any address) until wakeup, at most `timeout` ns (0 = no limit). `wmesg` is
    /// shown by `alps ps` (at most 15 bytes). Returns 0, EAGAIN after the time-out, EINTR if the caller was cancelled
    /// or died, ERESTART if the request must be dispatched again after a swap, ENOSYS if not called on a fiber.
    int32_t (*tsleep)(void *self, const void *channel, const char *wmesg, uint64_t timeout);
    /// [net] Makes every fiber that sleeps on `channel` runnable. They run later in this turn or in the next.
    void (*wakeup)(void *self, const void *channel);
    /// [net] The same for the fiber that has slept longest.
    void (*wakeup_one)(void *self, const void *channel);
} alps_sleep_ops;

ALPS_END
#endif
