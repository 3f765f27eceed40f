// The stack switch for x86-64, System V ABI. Preserved: rbx, rbp, r12-r15, the control bits of MXCSR and x87.
#if defined(__x86_64__)
    .text

// void alps_fiber_jump(void **save, void *target)
    .globl alps_fiber_jump
    .hidden alps_fiber_jump
    .type alps_fiber_jump, @function
    .p2align 4
alps_fiber_jump:
    .cfi_startproc
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    pushq %rbx
    .cfi_adjust_cfa_offset 8
    pushq %r12
    .cfi_adjust_cfa_offset 8
    pushq %r13
    .cfi_adjust_cfa_offset 8
    pushq %r14
    .cfi_adjust_cfa_offset 8
    pushq %r15
    .cfi_adjust_cfa_offset 8
    subq $8, %rsp
    .cfi_adjust_cfa_offset 8
    stmxcsr (%rsp)
    fnstcw 4(%rsp)
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    ldmxcsr (%rsp)
    fldcw 4(%rsp)
    addq $8, %rsp
    .cfi_adjust_cfa_offset -8
    popq %r15
    .cfi_adjust_cfa_offset -8
    popq %r14
    .cfi_adjust_cfa_offset -8
    popq %r13
    .cfi_adjust_cfa_offset -8
    popq %r12
    .cfi_adjust_cfa_offset -8
    popq %rbx
    .cfi_adjust_cfa_offset -8
    popq %rbp
    .cfi_adjust_cfa_offset -8
    ret
    .cfi_endproc
    .size alps_fiber_jump, . - alps_fiber_jump

// First code on a new stack: entry in r12, argument in r13. The return address is unknown, which ends a backtrace.
    .globl alps_fiber_start
    .hidden alps_fiber_start
    .type alps_fiber_start, @function
    .p2align 4
alps_fiber_start:
    .cfi_startproc
    .cfi_undefined rip
    xorl %ebp, %ebp
    movq %r13, %rdi
    callq *%r12
    ud2
    .cfi_endproc
    .size alps_fiber_start, . - alps_fiber_start
#endif
    .section .note.GNU-stack, "", %progbits
