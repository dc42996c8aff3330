/* SPDX-License-Identifier: MIT
 *
 * regs_x86_64.S -- u32 regs_across_call(void (*fn)(void *arg), void *arg, u64 seed)
 *
 * Calls fn(arg) with values that follow from seed in all registers that a callee must keep, and
 * returns how many of them it has not kept.
 */
    .text
    .globl regs_across_call
    .type regs_across_call, @function
    .p2align 4
regs_across_call:
    .cfi_startproc
    .irp reg, rbp, rbx, r12, r13, r14, r15
    pushq %\reg
    .cfi_adjust_cfa_offset 8
    .endr
    subq $24, %rsp
    .cfi_adjust_cfa_offset 24
    movq %rdx, 0(%rsp)
    movq %rsp, 8(%rsp)
    movq %rdi, %rax
    movq %rsi, %rdi
    leaq 1(%rdx), %rbp
    leaq 2(%rdx), %rbx
    leaq 3(%rdx), %r12
    leaq 4(%rdx), %r13
    leaq 5(%rdx), %r14
    leaq 6(%rdx), %r15
    callq *%rax

    xorl %eax, %eax
    movq 0(%rsp), %rdx
    .macro expect reg, offset
    leaq \offset(%rdx), %rcx
    cmpq %rcx, %\reg
    setne %cl
    movzbl %cl, %ecx
    addl %ecx, %eax
    .endm
    expect rbp, 1
    expect rbx, 2
    expect r12, 3
    expect r13, 4
    expect r14, 5
    expect r15, 6
    cmpq %rsp, 8(%rsp)
    setne %cl
    movzbl %cl, %ecx
    addl %ecx, %eax

    addq $24, %rsp
    .cfi_adjust_cfa_offset -24
    .irp reg, r15, r14, r13, r12, rbx, rbp
    popq %\reg
    .cfi_adjust_cfa_offset -8
    .endr
    retq
    .cfi_endproc
    .size regs_across_call, . - regs_across_call

    .section .note.GNU-stack, "", @progbits
