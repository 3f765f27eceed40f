/// "alps.random/1": the only source of randomness a plugin has. Seeded per instance in virtual time, the system's
/// generator in a live host.
#ifndef ALPS_RANDOM_H
#define ALPS_RANDOM_H

#include "base.h"

ALPS_BEGIN

typedef struct alps_random_ops {
    uint32_t size;
    uint32_t reserved;
    uint64_t (*next)(void *self);                            ///< [any] 64 random bits
    void (*fill)(void *self, void *bytes, size_t length);    ///< [any] `length` random bytes, e.g. a secret
} alps_random_ops;

ALPS_END
#endif
