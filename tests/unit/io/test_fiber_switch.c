/* SPDX-License-Identifier: MIT
 *
 * test_fiber_switch.c -- the switch itself, under the real fiber.c: registers that a callee must
 * keep, alignment, deep stacks, errno, unwinding.
 *
 * Without cmocka and with as little as possible below it, so that tools/check-aarch64 can build it
 * for the other processor and run it in an emulator.
 */
#include <errno.h>
#include <execinfo.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <stdlib.h>

#include "io/core.h"

#define FIBERS 300u
#define ROUNDS 40u

/* In regs_*.S. */
u32 regs_across_call(void (*fn)(void *arg), void *arg, u64 seed);

static struct io_shard shard;
static u32 failures;
static const char *test;

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("%s: failed at line %d: %s\n", test, __LINE__, #condition);                     \
            failures++;                                                                            \
        }                                                                                          \
    } while (0)

/* What fiber.c wants of a backend. */
bool
backend_slice_over(struct io_shard *of)
{
    (void)of;
    return false;
}

void *
backend_stacks_map(size_t bytes)
{
    return fiber_stacks_map(bytes);
}

void
backend_stacks_unmap(void *stacks, size_t bytes)
{
    munmap(stacks, bytes);
}

static void
spawn(void (*fn)(void *arg), void *arg)
{
    CHECK(ok(fiber_spawn(FIBER_FOREGROUND, "test", fn, arg)));
}

static void
run_one(void *arg)
{
    core_run_fiber(&shard, arg);
}

/* Runs fibers until none is left; the loop's registers are looked at, too. */
static void
run_all(void)
{
    for (u64 seed = 1;; seed++) {
        struct list *link = list_first(&shard.ready[FIBER_FOREGROUND]);
        if (link == NULL) {
            list_splice_back(&shard.ready[FIBER_FOREGROUND], &shard.yielded[FIBER_FOREGROUND]);
            link = list_first(&shard.ready[FIBER_FOREGROUND]);
        }
        if (link == NULL) break;
        struct fiber *fiber = list_entry(link, struct fiber, link);
        EXPECT(regs_across_call(run_one, fiber, seed * 0x9e3779b97f4a7c15) == 0);
    }
    EXPECT(shard.stats.fibers_running == 0);
}

/* ---- registers ---- */

static u32 bodies_ended;

static void
yield(void *arg)
{
    (void)arg;
    fiber_yield();
}

static void
registers_body(void *arg)
{
    u64 seed = (u64)(uintptr_t)arg;
    for (u32 i = 0; i < ROUNDS; i++)
        EXPECT(regs_across_call(yield, NULL, seed << 32 | i) == 0);
    bodies_ended++;
}

static void
registers_are_kept_across_switches(void)
{
    bodies_ended = 0;
    for (u64 i = 1; i <= FIBERS; i++)
        spawn(registers_body, (void *)(uintptr_t)i);
    run_all();
    EXPECT(bodies_ended == FIBERS);
}

static void
destroy(void *arg)
{
    (void)arg;
#if defined(__x86_64__)
    __asm__ volatile("notq %%r12; notq %%rbx" ::: "memory");
#elif defined(__aarch64__)
    __asm__ volatile("mvn x19, x19; fneg d8, d8" ::: "memory");
#endif
}

static void
the_check_of_registers_can_fail(void)
{
    /* Registers come back as they were; only what is between the two calls is off. */
    EXPECT(regs_across_call(destroy, NULL, 77) == 2);
}

/* ---- stacks ---- */

static void
format(char *out, size_t size, const char *pattern, ...)
{
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(out, size, pattern, arguments);
    va_end(arguments);
}

static void
alignment_body(void *arg)
{
    (void)arg;
    EXPECT((uintptr_t)__builtin_frame_address(0) % 16 == 0);
    _Alignas(16) volatile u8 local[16] = {1};
    EXPECT((uintptr_t)local % 16 == 0);
    /* Floats in variable arguments are where a crooked stack shows first. */
    char text[64];
    double half = 0.5;
    fiber_yield();
    format(text, sizeof(text), "%d %.2f %s", 7, half * 3, "x");
    EXPECT(strcmp(text, "7 1.50 x") == 0);
    bodies_ended++;
}

static void
stacks_are_aligned(void)
{
    bodies_ended = 0;
    for (u32 i = 0; i < FIBERS; i++)
        spawn(alignment_body, NULL);
    run_all();
    EXPECT(bodies_ended == FIBERS);
}

/* Goes down until a few KiB are left, waits there, and finds on its way up what it left. */
static __attribute__((noinline)) u64
descend(u64 seed, u32 depth)
{
    volatile u64 kept[24];
    for (u32 i = 0; i < ARRAY_COUNT(kept); i++)
        kept[i] = seed * 31 + depth * 7 + i;
    u64 deepest = depth;
    size_t left = (size_t)((u8 *)__builtin_frame_address(0) - shard.running->stack_bottom);
    if (left > KIB(12)) {
        deepest = descend(seed, depth + 1);
    } else {
        for (u32 i = 0; i < 3; i++)
            fiber_yield();
    }
    for (u32 i = 0; i < ARRAY_COUNT(kept); i++)
        EXPECT(kept[i] == seed * 31 + depth * 7 + i);
    return deepest;
}

static void
depth_body(void *arg)
{
    EXPECT(descend((u64)(uintptr_t)arg, 0) > 30);
    bodies_ended++;
}

static void
deep_stacks_are_kept(void)
{
    bodies_ended = 0;
    for (u64 i = 1; i <= 70; i++)
        spawn(depth_body, (void *)(uintptr_t)i);
    run_all();
    EXPECT(bodies_ended == 70);
}

/* ---- the rest of a context ---- */

static void
errno_body(void *arg)
{
    int own = (int)(uintptr_t)arg;
    errno = own;
    for (u32 i = 0; i < ROUNDS; i++) {
        fiber_yield();
        EXPECT(errno == own);
    }
}

static void
errno_belongs_to_the_fiber(void)
{
    for (u64 i = 1; i <= 20; i++)
        spawn(errno_body, (void *)(uintptr_t)i);
    errno = 99;
    run_all();
    EXPECT(errno == 99);
}

static void *frames[64];
static int frame_count;

static void
unwind_body(void *arg)
{
    (void)arg;
    fiber_yield();
    frame_count = backtrace(frames, ARRAY_COUNT(frames));
}

static void
unwinding_ends_at_the_fibers_beginning(void)
{
    frame_count = 0;
    spawn(unwind_body, NULL);
    run_all();
    EXPECT(frame_count >= 2 && frame_count < (int)ARRAY_COUNT(frames));
}

static void
ended_stacks_are_used_again(void)
{
    u32 stacks = shard.fiber_stacks_used;
    EXPECT(stacks == FIBERS); /* the most that were alive at once, in all of the above */
    for (u32 i = 0; i < ROUNDS; i++) {
        spawn(alignment_body, NULL);
        run_all();
    }
    EXPECT(shard.fiber_stacks_used == stacks);
}

int
main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    io_current = &shard;
    budget_init(&shard.budget, "shard", MIB(64), NULL);
    for (u32 i = 0; i < 2; i++) {
        list_init(&shard.ready[i]);
        list_init(&shard.yielded[i]);
    }
    CHECK(ok(fiber_pool_init(&shard, FIBERS)));
    const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
        {"registers_are_kept_across_switches", registers_are_kept_across_switches},
        {"the_check_of_registers_can_fail", the_check_of_registers_can_fail},
        {"stacks_are_aligned", stacks_are_aligned},
        {"deep_stacks_are_kept", deep_stacks_are_kept},
        {"errno_belongs_to_the_fiber", errno_belongs_to_the_fiber},
        {"unwinding_ends_at_the_fibers_beginning", unwinding_ends_at_the_fibers_beginning},
        {"ended_stacks_are_used_again", ended_stacks_are_used_again},
    };
    for (u32 i = 0; i < ARRAY_COUNT(tests); i++) {
        u32 before = failures;
        test = tests[i].name;
        tests[i].run();
        printf("%s %s\n", failures == before ? "ok    " : "FAILED", test);
    }
    fiber_pool_deinit(&shard);
    EXPECT(shard.budget.used_bytes == 0);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
