/// "alps.tunable/1": typed, ranged settings, as BSD's sysctl has them.
#ifndef ALPS_TUNABLE_H
#define ALPS_TUNABLE_H

#include "base.h"

ALPS_BEGIN

#define ALPS_TUNABLE_INT 1u     ///< int64_t within [minimum, maximum]
#define ALPS_TUNABLE_BOOL 2u    ///< int64_t, 0 or 1
#define ALPS_TUNABLE_NSEC 3u    ///< int64_t nanoseconds; people write "200ms"
#define ALPS_TUNABLE_BYTES 4u   ///< int64_t bytes; people write "64K"

#define ALPS_TUNABLE_READONLY 1u

/// One setting. The value lives in the instance's memory and is read there directly; the host writes it between
/// turns, always within its range.
typedef struct alps_tunable {
    uint32_t size;
    uint32_t type;      ///< ALPS_TUNABLE_*
    uint32_t flags;     ///< ALPS_TUNABLE_READONLY
    uint32_t reserved;
    const char *name;   ///< full name, e.g. "net.inet.tcp.mssdflt"; a variant gets its own prefix from the host
    const char *doc;    ///< one line, with unit
    int64_t *value;     ///< current value, set to the default by the plugin
    int64_t minimum;
    int64_t maximum;
} alps_tunable;

typedef struct alps_tunable_ops {
    uint32_t size;
    uint32_t reserved;
    /// [control] Registers `count` settings; the array may be temporary, names, docs and values may not. EEXIST if a
    /// name is taken. They vanish with the instance.
    int32_t (*add)(void *self, const alps_tunable *tunables, uint32_t count);
} alps_tunable_ops;

ALPS_END
#endif
