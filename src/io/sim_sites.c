/* SPDX-License-Identifier: MIT
 *
 * sim_sites.c -- arms the BUGGIFY and AUDIT sites of a test program: each is an instruction that
 * does nothing, and becomes a jump, or that again (base/fault.h). The code of the program is
 * written over in this process' own memory; a server links none of this, and nobody ever writes to
 * its code.
 */
#include "io/sim_sites.h"

#include <sys/mman.h>
#include <unistd.h>

#include "base/fault.h"

#if defined(__x86_64__)
#define CODE_BYTES 5u
#else
#define CODE_BYTES 4u
#endif

/* Weak: a program need not have any. */
extern const struct fault_jump __start_fault_jumps[] __attribute__((weak, visibility("hidden")));
extern const struct fault_jump __stop_fault_jumps[] __attribute__((weak, visibility("hidden")));

static const u8 *
distance_end(const i32 *distance)
{
    return (const u8 *)distance + *distance;
}

static void
code_make(u8 code[static CODE_BYTES], i64 distance, bool jumps)
{
#if defined(__x86_64__)
    static const u8 nothing[CODE_BYTES] = {0x0f, 0x1f, 0x44, 0x00, 0x00};
    i64 behind = distance - CODE_BYTES;
    CHECK(behind == (i32)behind);
    memcpy(code, nothing, CODE_BYTES);
    if (!jumps) return;
    i32 rel = (i32)behind;
    code[0] = 0xe9;
    memcpy(code + 1, &rel, sizeof(rel));
#else
    CHECK(distance % 4 == 0 && distance >= -(1 << 27) && distance < 1 << 27);
    u32 word = jumps ? 0x14000000u | ((u32)(distance / 4) & 0x03ffffffu) : 0xd503201fu;
    memcpy(code, &word, sizeof(word));
#endif
}

static void
pages_protect(const u8 *first, const u8 *end, int protection)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)first / page * page;
    CHECK(mprotect((void *)begin, (uintptr_t)end - begin, protection) == 0);
}

u32
sim_sites_count(void)
{
    return (u32)(__stop_fault_jumps - __start_fault_jumps);
}

void
sim_sites_arm(bool armed)
{
    u32 count = sim_sites_count();
    if (count == 0) return;
    const u8 *first = distance_end(&__start_fault_jumps[0].code), *last = first;
    for (u32 i = 1; i < count; i++) {
        const u8 *at = distance_end(&__start_fault_jumps[i].code);
        if (at < first) first = at;
        if (at > last) last = at;
    }
    /* This function may lie in the same pages: they stay executable. */
    pages_protect(first, last + CODE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC);
    for (u32 i = 0; i < count; i++) {
        const struct fault_jump *jump = &__start_fault_jumps[i];
        const u8 *at = distance_end(&jump->code);
        u8 code[CODE_BYTES], before[CODE_BYTES];
        i64 distance = distance_end(&jump->target) - at;
        code_make(before, distance, !armed);
        code_make(code, distance, armed);
        CHECK(memcmp(at, before, CODE_BYTES) == 0 || memcmp(at, code, CODE_BYTES) == 0);
        memcpy((void *)(uintptr_t)at, code, CODE_BYTES);
    }
    __builtin___clear_cache((char *)(uintptr_t)first, (char *)(uintptr_t)(last + CODE_BYTES));
    pages_protect(first, last + CODE_BYTES, PROT_READ | PROT_EXEC);
}
