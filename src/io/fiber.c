/* SPDX-License-Identifier: MIT
 *
 * fiber.c -- stacks, switching, spawning.
 *
 *   one stack, 64 KiB:   | guard page | free ........ used | struct fiber | colour |
 *                        low                                                    high
 *
 * Stacks come from mappings of FIBER_CHUNK_STACKS each, which are unmapped only with the shard. An
 * ended fiber's stack goes to the front of a pool and is the first to be used again, while it is
 * still in the cache. The colour, 0 to 7 cache lines by stack number, keeps the tops of many
 * stacks from falling into the same cache sets.
 *
 * Guards are light ones where the kernel has them (6.13): mprotect splits the mapping in two per
 * stack, and vm.max_map_count ends that at about 32,000 stacks.
 *
 * A switch always goes between the loop's stack and a fiber's, never from fiber to fiber. What
 * sanitizers and valgrind must be told lies in the functions around fiber_switch; those are not
 * instrumented for TSan themselves, since they are entered on one stack and left on another.
 */
#include "io/core.h"

#include "base/fault.h"

#include <errno.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define FIBER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FIBER_TSAN 1
#endif
#endif

#ifdef FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/lsan_interface.h>
#endif
#ifdef FIBER_TSAN
#include <sanitizer/tsan_interface.h>
#define NO_TSAN __attribute__((no_sanitize_thread, noinline))
#else
#define NO_TSAN
#endif
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define VALGRIND_STACK_REGISTER(start, end) 0
#define VALGRIND_STACK_DEREGISTER(id)       ((void)(id))
#endif

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* Linux 6.13 */
#endif

#define FIBER_GUARD_BYTES  4096u
#define FIBER_COLOURS      8u
#define FIBER_COLOUR_BYTES 64u
#define FIBER_CHUNK_BYTES  ((size_t)FIBER_CHUNK_STACKS * FIBER_STACK_BYTES)
#define FIBER_PAINT        0xA5

static_assert(sizeof(struct fiber) + FIBER_COLOURS * FIBER_COLOUR_BYTES < 4096,
              "the record and the colour stay within the first page of a stack");

__thread struct io_shard *io_current;

void fiber_switch(void **save, void *load);
void fiber_trampoline(void);

/* ---- stacks ---- */

status
fiber_pool_init(struct io_shard *shard, u32 fiber_count_max)
{
    if (fiber_count_max == 0) fiber_count_max = FIBER_COUNT_MAX_DEFAULT;
    shard->fiber_count_max = fiber_count_max;
    shard->fiber_chunk_max = (fiber_count_max - 1) / FIBER_CHUNK_STACKS + 1;
    list_init(&shard->fiber_pool);
    list_init(&shard->fibers_all);
    size_t bytes = shard->fiber_chunk_max * sizeof(shard->fiber_chunks[0]);
    shard->fiber_chunks = mem_alloc_zero(&shard->budget, bytes);
    return shard->fiber_chunks == NULL ? MARKED("io.fiber.pool_no_memory", ST_NO_MEMORY) : ST_OK;
}

void
fiber_pool_deinit(struct io_shard *shard)
{
    if (shard->fiber_chunks == NULL) return;
    for (u32 i = 0; i < shard->fiber_stacks_used; i++) {
        u8 *stack = shard->fiber_chunks[i / FIBER_CHUNK_STACKS] +
                    (size_t)(i % FIBER_CHUNK_STACKS) * FIBER_STACK_BYTES;
        struct fiber *fiber =
            (struct fiber *)(stack + FIBER_STACK_BYTES - (i % FIBER_COLOURS) * FIBER_COLOUR_BYTES -
                             align_up(sizeof(struct fiber), 64));
        VALGRIND_STACK_DEREGISTER(fiber->valgrind_id);
#ifdef FIBER_TSAN
        __tsan_destroy_fiber(fiber->tsan_fiber);
#endif
        (void)fiber;
    }
    for (u32 i = 0; i < shard->fiber_chunk_count; i++) {
#ifdef FIBER_ASAN
        __lsan_unregister_root_region(shard->fiber_chunks[i], FIBER_CHUNK_BYTES);
        __asan_unpoison_memory_region(shard->fiber_chunks[i], FIBER_CHUNK_BYTES);
#endif
        backend_stacks_unmap(shard->fiber_chunks[i], FIBER_CHUNK_BYTES);
    }
    budget_give(&shard->budget, (u64)shard->fiber_stacks_used * FIBER_STACK_CHARGE_BYTES);
    mem_free(&shard->budget, shard->fiber_chunks,
             shard->fiber_chunk_max * sizeof(shard->fiber_chunks[0]));
    shard->fiber_chunks = NULL;
}

void *
fiber_stacks_map(size_t bytes)
{
    void *stacks = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (stacks == MAP_FAILED) return NULL;
    /* Best effort: without it a first touch may take 2 MiB. */
    (void)madvise(stacks, bytes, MADV_NOHUGEPAGE);
    return stacks;
}

static bool
fiber_chunk_map(struct io_shard *shard)
{
    CHECK(shard->fiber_chunk_count < shard->fiber_chunk_max); /* fiber_create has counted */
    u8 *chunk = backend_stacks_map(FIBER_CHUNK_BYTES);
    if (chunk == NULL) return MARKED("io.fiber.chunk_not_mapped", false);
#ifdef FIBER_ASAN
    /* The leak checker must see pointers that are kept only on a sleeping fiber's stack. */
    __lsan_register_root_region(chunk, FIBER_CHUNK_BYTES);
#endif
    shard->fiber_chunks[shard->fiber_chunk_count++] = chunk;
    return true;
}

static bool
fiber_guard_install(u8 *page)
{
    if (madvise(page, FIBER_GUARD_BYTES, MADV_GUARD_INSTALL) == 0) return true;
    return mprotect(page, FIBER_GUARD_BYTES, PROT_NONE) == 0;
}

/* A stack that was never used before; NULL at a limit. */
static struct fiber *
fiber_create(struct io_shard *shard)
{
    u32 index = shard->fiber_stacks_used;
    if (index >= shard->fiber_count_max) return MARKED("io.fiber.too_many", NULL);
    if (!budget_take(&shard->budget, FIBER_STACK_CHARGE_BYTES))
        return MARKED("io.fiber.no_memory", NULL);
    if (index / FIBER_CHUNK_STACKS == shard->fiber_chunk_count && !fiber_chunk_map(shard))
        goto give;
    u8 *stack = shard->fiber_chunks[index / FIBER_CHUNK_STACKS] +
                (size_t)(index % FIBER_CHUNK_STACKS) * FIBER_STACK_BYTES;
    if (!fiber_guard_install(stack)) {
        MARK("io.fiber.no_guard");
        goto give;
    }

    u8 *bottom = stack + FIBER_GUARD_BYTES;
    u8 *top = stack + FIBER_STACK_BYTES - (index % FIBER_COLOURS) * FIBER_COLOUR_BYTES -
              align_up(sizeof(struct fiber), 64);
    if (DISTKV_DCHECK) {
        memset(bottom, FIBER_PAINT, (size_t)(top - bottom));
    } else {
        /* A fault here costs less than one in the middle of a request. */
        for (u32 offset = 0; offset < FIBER_STACK_TOUCHED_BYTES; offset += 4096)
            *(volatile u8 *)(stack + FIBER_STACK_BYTES - 1 - offset) = 0;
    }
    struct fiber *fiber = (struct fiber *)top;
    memset(fiber, 0, sizeof(*fiber));
    fiber->stack_bottom = bottom;
    fiber->stack_bytes = (size_t)(top - bottom);
    fiber->state = FIBER_STATE_POOLED;
    fiber->valgrind_id = VALGRIND_STACK_REGISTER(bottom, top);
    list_init(&fiber->link);
    list_init(&fiber->all);
#ifdef FIBER_TSAN
    fiber->tsan_fiber = __tsan_create_fiber(0);
#endif
    shard->fiber_stacks_used++;
    return fiber;

give:
    budget_give(&shard->budget, FIBER_STACK_CHARGE_BYTES);
    return NULL;
}

bool
fiber_guard_hit(const struct io_shard *shard, const void *address)
{
    uintptr_t at = (uintptr_t)address;
    for (u32 i = 0; i < shard->fiber_chunk_count; i++) {
        uintptr_t chunk = (uintptr_t)shard->fiber_chunks[i];
        if (at < chunk || at >= chunk + FIBER_CHUNK_BYTES) continue;
        return (at - chunk) % FIBER_STACK_BYTES < FIBER_GUARD_BYTES;
    }
    return false;
}

/* Measures how deep the ended fiber went, by the paint that is left, and paints again. By words: it
 * is done to each fiber's whole stack. (No memset: a sanitizer would find the dead frames in it.)
 */
#ifdef FIBER_ASAN
__attribute__((no_sanitize_address))
#endif
static void
fiber_paint_check(struct io_shard *shard, struct fiber *fiber)
{
    const u64 paint = FIBER_PAINT * 0x0101010101010101ull;
    volatile u64 *word = (volatile u64 *)fiber->stack_bottom; /* a page's begin */
    volatile u64 *end = word + fiber->stack_bytes / sizeof(*word);
    while (word < end && *word == paint)
        word++;
    size_t used = (size_t)(end - word) * sizeof(*word);
    if (used > shard->stack_used_max) shard->stack_used_max = used;
    while (word < end)
        *word++ = paint;
}

/* ---- switching ---- */

/* Loop to fiber; returns when the fiber waits or has ended. */
NO_TSAN static void
fiber_enter(struct io_shard *shard, struct fiber *fiber)
{
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(&shard->loop_fake_stack, fiber->stack_bottom,
                                   fiber->stack_bytes);
#endif
#ifdef FIBER_TSAN
    shard->loop_tsan_fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber->tsan_fiber, 0);
#endif
    fiber_switch(&shard->loop_stack_pointer, fiber->stack_pointer);
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(shard->loop_fake_stack, NULL, NULL);
#endif
}

/* Fiber to loop. dying: this stack will never be continued. */
NO_TSAN static void
fiber_leave(struct io_shard *shard, struct fiber *fiber, bool dying)
{
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(dying ? NULL : &fiber->asan_fake_stack, shard->loop_stack_bottom,
                                   shard->loop_stack_bytes);
#endif
#ifdef FIBER_TSAN
    __tsan_switch_to_fiber(shard->loop_tsan_fiber, 0);
#endif
    fiber_switch(&fiber->stack_pointer, shard->loop_stack_pointer);
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(fiber->asan_fake_stack, &shard->loop_stack_bottom,
                                    &shard->loop_stack_bytes);
#endif
}

/* The body of every fiber. Never instrumented for TSan: a dying fiber does not return from here,
 * and its record in TSan is used again. */
NO_TSAN static void
fiber_main(struct fiber *fiber)
{
    struct io_shard *shard = io_current;
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(NULL, &shard->loop_stack_bottom, &shard->loop_stack_bytes);
#endif
    fiber->fn(fiber->arg);
    CHECK(shard->no_yield_depth == 0);
    fiber->state = FIBER_STATE_POOLED;
    fiber_leave(shard, fiber, true);
    CHECK(false);
}

/* Lays out what fiber_switch expects to load, so that the first switch enters fiber_main. */
static void
fiber_prepare(struct fiber *fiber)
{
#ifdef FIBER_ASAN
    __asan_unpoison_memory_region(fiber->stack_bottom, fiber->stack_bytes);
#endif
    u64 *top = (u64 *)fiber; /* 64-byte aligned */
#if defined(__x86_64__)
    /* After the trampoline's address was popped the stack is aligned to 16, as a call wants it. */
    top -= 2;
    top[0] = 0;
    u64 *frame = top - 7;
    frame[6] = (u64)(uintptr_t)fiber_trampoline;
    frame[5] = 0;                          /* rbp */
    frame[4] = (u64)(uintptr_t)fiber;      /* rbx */
    frame[3] = (u64)(uintptr_t)fiber_main; /* r12 */
    frame[2] = frame[1] = frame[0] = 0;    /* r13 to r15 */
#elif defined(__aarch64__)
    u64 *frame = top - 20;
    memset(frame, 0, 160);
    frame[0] = (u64)(uintptr_t)fiber;             /* x19 */
    frame[1] = (u64)(uintptr_t)fiber_main;        /* x20 */
    frame[11] = (u64)(uintptr_t)fiber_trampoline; /* x30 */
#else
#error "fiber_switch is written for x86-64 and aarch64"
#endif
    fiber->stack_pointer = frame;
}

void
core_run_fiber(struct io_shard *shard, struct fiber *fiber)
{
    CHECK(shard == io_current);
    CHECK(shard->running == NULL);
    CHECK(fiber->state == FIBER_STATE_READY);
    list_del(&fiber->link);
    fiber->state = FIBER_STATE_RUNNING;
    shard->running = fiber;
    shard->stats.fiber_switches++;

    int loop_errno = errno;
    errno = fiber->saved_errno;
    fiber_enter(shard, fiber);
    fiber->saved_errno = errno;
    errno = loop_errno;

    shard->running = NULL;
    if (fiber->state != FIBER_STATE_POOLED) return;
    list_del(&fiber->all);
    if (DISTKV_DCHECK) fiber_paint_check(shard, fiber);
    list_push_front(&shard->fiber_pool, &fiber->link);
    shard->stats.fibers_running--;
    shard->stats.fibers_pooled++;
}

MAY_YIELD void
fiber_suspend(void)
{
    struct io_shard *shard = io_current;
    struct fiber *fiber = shard->running;
    CHECK(fiber != NULL); /* a callback must not wait */
    CHECK(shard->no_yield_depth == 0);
    fiber->state = FIBER_STATE_WAITING;
    fiber_leave(shard, fiber, false);
}

void
fiber_resume(struct io_shard *shard, struct fiber *fiber)
{
    CHECK(fiber->state == FIBER_STATE_WAITING);
    fiber->state = FIBER_STATE_READY;
    list_push_back(&shard->ready[fiber->class], &fiber->link);
}

/* ---- the public part ---- */

status
fiber_spawn(enum fiber_class class, const char *name, void (*fn)(void *arg), void *arg)
{
    struct io_shard *shard = io_current;
    /* Only of requests: without its own fibers a store or a shard does not come up. */
    if (class == FIBER_FOREGROUND && shard->stats.fibers_running > 0 &&
        BUGGIFY("io.fiber.pool_exhausted"))
        return ST_NO_MEMORY;
    struct list *pooled = list_pop_front(&shard->fiber_pool);
    struct fiber *fiber;
    if (pooled != NULL) {
        fiber = list_entry(pooled, struct fiber, link);
        shard->stats.fibers_pooled--;
    } else {
        fiber = fiber_create(shard);
        if (fiber == NULL) return ST_NO_MEMORY;
    }
    fiber->fn = fn;
    fiber->arg = arg;
    fiber->name = name;
    fiber->id = ++shard->fiber_id_last;
    fiber->class = class;
    fiber->saved_errno = 0;
    fiber_prepare(fiber);
    fiber->state = FIBER_STATE_READY;
    list_push_back(&shard->fibers_all, &fiber->all);
    list_push_back(&shard->ready[class], &fiber->link);
    shard->stats.fibers_running++;
    return ST_OK;
}

struct fiber *
fiber_self(void)
{
    return io_current->running;
}

enum fiber_class
fiber_class_self(void)
{
    const struct fiber *fiber = io_current->running;
    return fiber == NULL ? FIBER_FOREGROUND : fiber->class;
}

MAY_YIELD void
fiber_yield(void)
{
    struct io_shard *shard = io_current;
    struct fiber *fiber = shard->running;
    CHECK(fiber != NULL);
    CHECK(shard->no_yield_depth == 0);
    fiber->state = FIBER_STATE_READY;
    list_push_back(&shard->yielded[fiber->class], &fiber->link);
    fiber_leave(shard, fiber, false);
}

bool
fiber_should_yield(void)
{
    return backend_slice_over(io_current);
}

void
fiber_no_yield_begin(void)
{
    io_current->no_yield_depth++;
}

void
fiber_no_yield_end(void)
{
    CHECK(io_current->no_yield_depth > 0);
    io_current->no_yield_depth--;
}
