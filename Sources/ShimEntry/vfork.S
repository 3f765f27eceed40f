// vfork: parent and child return on the same stack, the child first, so the return address must not lie on it meanwhile.

#if defined(__x86_64__)
    .text
    .globl vfork
    .type vfork, @function
    .globl __vfork
    .type __vfork, @function
vfork:
__vfork:
    .cfi_startproc
    endbr64
    subq $8, %rsp
    .cfi_adjust_cfa_offset 8
    call alps_shim_vfork_begin
    addq $8, %rsp
    .cfi_adjust_cfa_offset -8
    // The kernel keeps every register but rax, rcx and r11.
    popq %rdi
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rdi
    movl $58, %eax
    syscall
    pushq %rdi
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rip, 0
    testq %rax, %rax
    jz 1f
    movq %rax, %rdi
    // Its result is ours, its return address the caller's.
    jmp alps_shim_vfork_end
1:  ret
    .cfi_endproc
    .size vfork, . - vfork
    .size __vfork, . - __vfork

#elif defined(__aarch64__)
    .text
    .globl vfork
    .type vfork, %function
    .globl __vfork
    .type __vfork, %function
vfork:
__vfork:
    .cfi_startproc
    stp x29, x30, [sp, -16]!
    .cfi_adjust_cfa_offset 16
    bl alps_shim_vfork_begin
    ldp x29, x30, [sp], 16
    .cfi_adjust_cfa_offset -16
    // CLONE_VM | CLONE_VFORK | SIGCHLD
    mov x0, 0x4111
    mov x1, 0
    mov x2, 0
    mov x3, 0
    mov x4, 0
    mov x8, 220
    svc 0
    cbz x0, 1f
    b alps_shim_vfork_end
1:  ret
    .cfi_endproc
    .size vfork, . - vfork
    .size __vfork, . - __vfork
#endif
    .section .note.GNU-stack, "", %progbits
