/// Switching between stacks of one thread. Saves what the ABI calls preserved, makes no system call.
#ifndef ALPS_FIBER_SWITCH_H
#define ALPS_FIBER_SWITCH_H

#include <stddef.h>

/// A suspended stack: the one thing to keep is its stack pointer, everything else lies on it.
typedef struct alps_fiber_context {
    void *_Nullable stack_pointer;
    void *_Nullable fake_stack;           ///< AddressSanitizer's, in sanitizer builds
    void *_Nullable tsan_fiber;           ///< ThreadSanitizer's, in sanitizer builds
    const void *_Nullable stack_bottom;   ///< lowest address
    size_t stack_size;
} alps_fiber_context;

/// Lays out a new stack so that the first switch to `context` calls `entry(argument)`. `entry` must never return.
void alps_fiber_prepare(alps_fiber_context *_Nonnull context, void *_Nonnull stack_bottom, size_t stack_size,
                        void (*_Nonnull entry)(void *_Nonnull), void *_Nonnull argument);

/// Suspends the running stack into `from` and goes on with `to`. Returns when somebody switches back to `from`.
/// `last` is 1 if `from` will never be continued.
void alps_fiber_switch(alps_fiber_context *_Nonnull from, alps_fiber_context *_Nonnull to, int last);

/// To be called first on a new stack: tells the sanitizers that the switch has happened. `from` is where it came from.
void alps_fiber_entered(alps_fiber_context *_Nonnull from);

/// Releases what the sanitizers keep about a stack that is not in use any more.
void alps_fiber_dispose(alps_fiber_context *_Nonnull context);

#endif
