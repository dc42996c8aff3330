/* SPDX-License-Identifier: MIT
 *
 * fiber_switch_x86_64.S -- void fiber_switch(void **save, void *load)
 *
 * Saves the callee-saved registers on the current stack, its pointer in *save, and continues at
 * load. mxcsr and the x87 control word are not saved: nobody here changes them. The last step is
 * pop and jmp instead of ret: the processor's return stack knows nothing of our stacks, and a ret
 * that it predicts wrongly costs five times as much as the whole switch.
 *
 *     load ->  r15 | r14 | r13 | r12 | rbx | rbp | return address
 */
    .text
    .globl fiber_switch
    .hidden fiber_switch
    .type fiber_switch, @function
    .p2align 4
fiber_switch:
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
    movq %rsp, (%rdi)
    movq %rsi, %rsp
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
    popq %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rcx
    jmpq *%rcx
    .cfi_endproc
    .size fiber_switch, . - fiber_switch

/* Where a new fiber begins: r12 holds the function, rbx its argument. Unwinding ends here. */
    .globl fiber_trampoline
    .hidden fiber_trampoline
    .type fiber_trampoline, @function
    .p2align 4
fiber_trampoline:
    .cfi_startproc
    .cfi_undefined %rip
    xorl %ebp, %ebp
    movq %rbx, %rdi
    callq *%r12
    ud2
    .cfi_endproc
    .size fiber_trampoline, . - fiber_trampoline

    .section .note.GNU-stack, "", @progbits
