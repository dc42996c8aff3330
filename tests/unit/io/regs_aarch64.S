/* SPDX-License-Identifier: MIT
 *
 * regs_aarch64.S -- u32 regs_across_call(void (*fn)(void *arg), void *arg, u64 seed)
 *
 * As regs_x86_64.S; of v8 to v15 a callee keeps the low halves. x29 is checked with the stack
 * pointer, which it is a copy of.
 */
    .text
    .globl regs_across_call
    .type regs_across_call, %function
    .p2align 4
regs_across_call:
    .cfi_startproc
    stp x29, x30, [sp, #-176]!
    .cfi_adjust_cfa_offset 176
    .cfi_offset x29, -176
    .cfi_offset x30, -168
    mov x29, sp
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    str x2, [sp, #160]
    .irp n, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28
    add x\n, x2, #\n
    .endr
    .irp n, 8, 9, 10, 11, 12, 13, 14, 15
    add x9, x2, #(100 + \n)
    fmov d\n, x9
    .endr
    mov x9, x0
    mov x0, x1
    blr x9

    mov w0, #0
    ldr x2, [sp, #160]
    .irp n, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28
    add x9, x2, #\n
    cmp x9, x\n
    cinc w0, w0, ne
    .endr
    .irp n, 8, 9, 10, 11, 12, 13, 14, 15
    add x9, x2, #(100 + \n)
    fmov x10, d\n
    cmp x9, x10
    cinc w0, w0, ne
    .endr
    mov x9, sp
    cmp x9, x29
    cinc w0, w0, ne

    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x29, x30, [sp], #176
    .cfi_adjust_cfa_offset -176
    ret
    .cfi_endproc
    .size regs_across_call, . - regs_across_call

    .section .note.GNU-stack, "", %progbits
