// The stack switch for AArch64, AAPCS64. Preserved: x19-x28, frame pointer, link register, d8-d15.
#if defined(__aarch64__)
    .text

// void alps_fiber_jump(void **save, void *target)
    .globl alps_fiber_jump
    .hidden alps_fiber_jump
    .type alps_fiber_jump, %function
    .p2align 4
alps_fiber_jump:
    .cfi_startproc
    sub sp, sp, #160
    .cfi_def_cfa_offset 160
    stp d8, d9, [sp, #0]
    stp d10, d11, [sp, #16]
    stp d12, d13, [sp, #32]
    stp d14, d15, [sp, #48]
    stp x19, x20, [sp, #64]
    stp x21, x22, [sp, #80]
    stp x23, x24, [sp, #96]
    stp x25, x26, [sp, #112]
    stp x27, x28, [sp, #128]
    stp x29, x30, [sp, #144]
    .cfi_offset x29, -16
    .cfi_offset x30, -8
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp d8, d9, [sp, #0]
    ldp d10, d11, [sp, #16]
    ldp d12, d13, [sp, #32]
    ldp d14, d15, [sp, #48]
    ldp x19, x20, [sp, #64]
    ldp x21, x22, [sp, #80]
    ldp x23, x24, [sp, #96]
    ldp x25, x26, [sp, #112]
    ldp x27, x28, [sp, #128]
    ldp x29, x30, [sp, #144]
    add sp, sp, #160
    .cfi_def_cfa_offset 0
    ret
    .cfi_endproc
    .size alps_fiber_jump, . - alps_fiber_jump

// First code on a new stack: entry in x19, argument in x20. The return address is unknown, which ends a backtrace.
    .globl alps_fiber_start
    .hidden alps_fiber_start
    .type alps_fiber_start, %function
    .p2align 4
alps_fiber_start:
    .cfi_startproc
    .cfi_undefined x30
    mov x29, xzr
    mov x0, x20
    blr x19
    brk #1
    .cfi_endproc
    .size alps_fiber_start, . - alps_fiber_start
#endif
    .section .note.GNU-stack, "", %progbits
