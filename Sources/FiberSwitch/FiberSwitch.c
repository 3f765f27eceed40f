#include "FiberSwitch.h"

#include <stdint.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ALPS_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define ALPS_TSAN 1
#endif
#endif

#ifdef ALPS_ASAN
void __sanitizer_start_switch_fiber(void **fake_stack_save, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *fake_stack_save, const void **bottom_old, size_t *size_old);
#endif
#ifdef ALPS_TSAN
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
#endif

/// The switch itself and the first code on a new stack: FiberSwitch-<architecture>.S.
void alps_fiber_jump(void **save, void *target);
void alps_fiber_start(void);

/// Words of the frame that alps_fiber_jump leaves on a stack, and where a new stack finds entry and argument in it.
#if defined(__x86_64__)
enum { frame_words = 8, entry_word = 4, argument_word = 3, return_word = 7 };
#elif defined(__aarch64__)
enum { frame_words = 20, entry_word = 8, argument_word = 9, return_word = 19 };
#else
#error "fibers need a switch for this architecture"
#endif

void alps_fiber_prepare(alps_fiber_context *context, void *stack_bottom, size_t stack_size, void (*entry)(void *),
                        void *argument) {
    memset(context, 0, sizeof *context);
    context->stack_bottom = stack_bottom;
    context->stack_size = stack_size;
    // Two words above the frame stay zero: the end of the chain of frames for whoever walks it. Both ABIs want the
    // stack aligned to 16 bytes at a call, which alps_fiber_start makes from here.
    uintptr_t top = ((uintptr_t)stack_bottom + stack_size) & ~(uintptr_t)15;
    void **frame = (void **)(top - 16) - frame_words;
    memset(frame, 0, frame_words * sizeof *frame + 16);
    frame[entry_word] = (void *)entry;
    frame[argument_word] = argument;
    frame[return_word] = (void *)alps_fiber_start;
#if defined(__x86_64__)
    // Default MXCSR and x87 control words (System V ABI, 3.4.1).
    ((uint32_t *)frame)[0] = 0x1f80;
    ((uint32_t *)frame)[1] = 0x037f;
#endif
    context->stack_pointer = frame;
#ifdef ALPS_TSAN
    context->tsan_fiber = __tsan_create_fiber(0);
#endif
}

void alps_fiber_switch(alps_fiber_context *from, alps_fiber_context *to, int last) {
#ifdef ALPS_ASAN
    __sanitizer_start_switch_fiber(last ? NULL : &from->fake_stack, to->stack_bottom, to->stack_size);
#else
    (void)last;
#endif
#ifdef ALPS_TSAN
    if (!from->tsan_fiber) from->tsan_fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to->tsan_fiber, 0);
#endif
    alps_fiber_jump(&from->stack_pointer, to->stack_pointer);
#ifdef ALPS_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}

void alps_fiber_entered(alps_fiber_context *from) {
#ifdef ALPS_ASAN
    __sanitizer_finish_switch_fiber(NULL, &from->stack_bottom, &from->stack_size);
#else
    (void)from;
#endif
}

void alps_fiber_dispose(alps_fiber_context *context) {
#ifdef ALPS_TSAN
    if (context->tsan_fiber) __tsan_destroy_fiber(context->tsan_fiber);
#endif
    memset(context, 0, sizeof *context);
}
