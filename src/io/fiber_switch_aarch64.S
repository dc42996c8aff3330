/* SPDX-License-Identifier: MIT
 *
 * fiber_switch_aarch64.S -- void fiber_switch(void **save, void *load)
 *
 * As fiber_switch_x86_64.S: x19 to x30 and d8 to d15 are saved below the stack pointer; the jump
 * goes through x9 so that the return predictor is left alone.
 *
 *     load ->  x19..x28 | x29 x30 | d8..d15        160 bytes
 */
    .text
    .globl fiber_switch
    .hidden fiber_switch
    .type fiber_switch, %function
    .p2align 4
fiber_switch:
    .cfi_startproc
    sub sp, sp, #160
    .cfi_adjust_cfa_offset 160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    .cfi_adjust_cfa_offset -160
    mov x9, x30
    br x9
    .cfi_endproc
    .size fiber_switch, . - fiber_switch

/* Where a new fiber begins: x20 holds the function, x19 its argument. Unwinding ends here. */
    .globl fiber_trampoline
    .hidden fiber_trampoline
    .type fiber_trampoline, %function
    .p2align 4
fiber_trampoline:
    .cfi_startproc
    .cfi_undefined x30
    mov x29, #0
    mov x0, x19
    blr x20
    brk #1
    .cfi_endproc
    .size fiber_trampoline, . - fiber_trampoline

    .section .note.GNU-stack, "", %progbits
