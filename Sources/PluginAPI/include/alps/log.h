/// "alps.log/1": messages for people. The host prefixes the instance's name and drops repeats above a rate.
#ifndef ALPS_LOG_H
#define ALPS_LOG_H

#include "base.h"

ALPS_BEGIN

#define ALPS_LOG_ERROR 0u
#define ALPS_LOG_WARNING 1u
#define ALPS_LOG_NOTICE 2u
#define ALPS_LOG_DEBUG 3u

typedef struct alps_log_ops {
    uint32_t size;
    uint32_t level;  ///< messages above this level are not wanted; test it before you format
    /// [any] `length` bytes of UTF-8 without a newline. [borrows]
    void (*write)(void *self, uint32_t level, const char *text, size_t length);
} alps_log_ops;

ALPS_END
#endif
