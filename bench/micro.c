/* SPDX-License-Identifier: MIT
 *
 * micro.c -- rounds and their figures; inputs; a node for those that need one.
 */
#include "micro.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/hash.h"
#include "base/prng.h"
#include "io/fiber.h"
#include "io/io.h"

#define ROUNDS_MAX        1001u
#define ROUNDS_SMALL      3u
#define ROUND_SMALL_NS    (20 * NS_PER_US)
#define COUNT_MAX         (1ull << 32)
#define LINE_BYTES        64u
#define NODE_SPIN_US      10000u
#define NODE_MEMORY_BYTES GIB(1) /* of a shard */
#define NODE_FIBERS       4096u

static struct {
    const char *only;
    u32 rounds;
    u64 round_ns;
    bool small, json;
} options = {.rounds = 51, .round_ns = NS_PER_MS};

static u32 cases_measured;

/* ---- time ---- */

static u64
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * NS_PER_S + (u64)now.tv_nsec;
}

static u64
now_ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    u64 ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return 0;
#endif
}

struct moment {
    u64 ns, ticks;
};

static struct moment stopped_at, stopped; /* the last stop of this round; all of them */

static struct moment
now(void)
{
    return (struct moment){.ns = now_ns(), .ticks = now_ticks()};
}

void
micro_stop(void)
{
    stopped_at = now();
}

void
micro_go(void)
{
    struct moment go = now();
    stopped.ns += go.ns - stopped_at.ns;
    stopped.ticks += go.ticks - stopped_at.ticks;
}

/* ---- options ---- */

NORETURN void
micro_die(const char *what, status st)
{
    fprintf(stderr, "%s: %s%s%s\n", program_invocation_short_name, what, ok(st) ? "" : ": ",
            ok(st) ? "" : status_text(st));
    exit(1);
}

NORETURN static void
usage(int exit_status)
{
    fprintf(exit_status == 0 ? stdout : stderr,
            "usage: %s [--only TEXT] [--rounds 1..%u] [--round-us N] [--small] "
            "[--format text|json]\n",
            program_invocation_short_name, ROUNDS_MAX);
    exit(exit_status);
}

static u64
number(const char *text, u64 max)
{
    char *end;
    errno = 0;
    u64 value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value == 0 || value > max) usage(2);
    return value;
}

void
micro_begin(int argc, char **argv)
{
    bool rounds_given = false, round_given = false;
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (strcmp(name, "--help") == 0) usage(0);
        if (strcmp(name, "--small") == 0) {
            options.small = true;
            continue;
        }
        if (++i == argc) usage(2);
        if (strcmp(name, "--only") == 0) {
            options.only = argv[i];
        } else if (strcmp(name, "--rounds") == 0) {
            options.rounds = (u32)number(argv[i], ROUNDS_MAX);
            rounds_given = true;
        } else if (strcmp(name, "--round-us") == 0) {
            options.round_ns = number(argv[i], 1000000) * NS_PER_US;
            round_given = true;
        } else if (strcmp(name, "--format") == 0 &&
                   (strcmp(argv[i], "json") == 0 || strcmp(argv[i], "text") == 0)) {
            options.json = argv[i][0] == 'j';
        } else {
            usage(2);
        }
    }
    if (options.small && !rounds_given) options.rounds = ROUNDS_SMALL;
    if (options.small && !round_given) options.round_ns = ROUND_SMALL_NS;
    if (!options.json)
        printf("%-30s %10s %10s %10s %10s %8s\n", program_invocation_short_name, "ns", "10 %",
               "90 %", "ticks", "GB/s");
}

int
micro_end(void)
{
    if (cases_measured > 0) return 0;
    fprintf(stderr, "%s: no case has '%s' in its name\n", program_invocation_short_name,
            options.only == NULL ? "" : options.only);
    return 1;
}

bool
micro_small(void)
{
    return options.small;
}

/* ---- a case ---- */

/* Wide registers that the last case left in use make every narrow instruction after it wait on some
 * cores (see crc_then_hash of bench_base): no case is to pay for the one before. */
static void
registers_settle(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx")) __asm__ volatile("vzeroupper" : : : "memory");
#endif
}

MAY_YIELD static struct moment
round_run(const struct micro_case *c, u64 count)
{
    if (c->prepare != NULL) c->prepare(c->arg, count);
    registers_settle();
    stopped = (struct moment){0};
    struct moment start = now();
    c->run(c->arg, count);
    struct moment end = now();
    return (struct moment){.ns = end.ns - start.ns - stopped.ns,
                           .ticks = end.ticks - start.ticks - stopped.ticks};
}

/* So many operations as fill a round; they have warmed up what they touch by then. */
MAY_YIELD static u64
count_find(const struct micro_case *c, u64 *round_ns_out)
{
    u64 unit = MAX(c->count_unit, 1);
    if (c->count != 0) {
        CHECK(c->count % unit == 0);
        *round_ns_out = round_run(c, c->count).ns;
        return c->count;
    }
    u64 count = unit;
    for (;;) {
        u64 ns = MAX(round_run(c, count).ns, 1);
        *round_ns_out = ns;
        if (ns >= options.round_ns || count >= COUNT_MAX) return count;
        u64 more = (u64)((double)count * (double)options.round_ns / (double)ns * 1.1);
        count = align_up(CLAMP(more, count + unit, count * 16), 1);
        count = (count + unit - 1) / unit * unit;
    }
}

static int
compare_numbers(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void
show(const struct micro_case *c, const double *ns, double ticks, u32 rounds, u64 count)
{
    double median = ns[rounds / 2], low = ns[rounds / 10], high = ns[rounds - 1 - rounds / 10];
    double rate = median > 0 ? c->bytes / median : 0; /* bytes a ns is GB a second */
    if (options.json) {
        printf("{\"program\": \"%s\", \"case\": \"%s\", \"ns\": %.3f, \"ns_p10\": %.3f, "
               "\"ns_p90\": %.3f, \"ticks\": %.2f, \"bytes\": %u, \"rounds\": %u, "
               "\"operations\": %llu}\n",
               program_invocation_short_name, c->name, median, low, high, ticks, c->bytes, rounds,
               (unsigned long long)count);
    } else {
        printf("%-30s %10.2f %10.2f %10.2f %10.1f", c->name, median, low, high, ticks);
        if (c->bytes > 0) printf(" %8.2f", rate);
        printf("\n");
    }
    fflush(stdout);
}

MAY_YIELD void
micro_measure(const struct micro_case *c)
{
    if (options.only != NULL && strstr(c->name, options.only) == NULL) return;
    cases_measured++;
    u64 round_ns;
    u64 count = count_find(c, &round_ns);
    u32 rounds = options.rounds;
    if (rounds > MICRO_ROUNDS_LEAST)
        rounds = (u32)CLAMP(MICRO_CASE_NS_MAX / MAX(round_ns, 1), MICRO_ROUNDS_LEAST, rounds);
    static double ns[ROUNDS_MAX], ticks[ROUNDS_MAX];
    for (u32 i = 0; i < rounds; i++) {
        struct moment took = round_run(c, count);
        ns[i] = (double)took.ns / (double)count;
        ticks[i] = (double)took.ticks / (double)count;
    }
    qsort(ns, rounds, sizeof(ns[0]), compare_numbers);
    qsort(ticks, rounds, sizeof(ticks[0]), compare_numbers);
    show(c, ns, ticks[rounds / 2], rounds, count);
}

/* ---- inputs ---- */

static void *
memory(size_t size)
{
    void *made = aligned_alloc(LINE_BYTES, align_up(size, LINE_BYTES));
    if (made == NULL) micro_die("memory", ST_NO_MEMORY);
    return made;
}

struct micro_key *
micro_keys(u32 first, u32 count)
{
    struct micro_key *keys = memory(count * sizeof(*keys));
    for (u32 i = 0; i < count; i++) {
        char text[MICRO_KEY_BYTES + 1];
        snprintf(text, sizeof(text), "key:%012u", first + i);
        memcpy(keys[i].bytes, text, MICRO_KEY_BYTES);
        keys[i].token = hash_token_and_key(micro_key_bytes(&keys[i]), &keys[i].hash);
    }
    return keys;
}

struct micro_key *
micro_keys_shuffled(const struct micro_key *keys, u32 count, u64 seed)
{
    struct micro_key *shuffled = memory(count * sizeof(*keys));
    struct prng prng;
    prng_init(&prng, seed);
    for (u32 i = 0; i < count; i++) { /* inside out: Fisher and Yates */
        u32 j = (u32)prng_below(&prng, i + 1);
        shuffled[i] = shuffled[j];
        shuffled[j] = keys[i];
    }
    return shuffled;
}

void
micro_text(u8 *out, size_t size, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed);
    for (size_t i = 0; i < size; i++)
        out[i] = i / 16 % 2 == 0 ? (u8)prng_u64(&prng) : (u8)("repeated content"[i % 16]);
}

/* ---- bounds ---- */

struct loads {
    const u8 *lines;
    u64 at;
};

static void
loads_run(void *arg, u64 count)
{
    struct loads *loads = arg;
    u64 at = loads->at;
    for (u64 i = 0; i < count; i++)
        at = load_u64(loads->lines + at);
    loads->at = at;
    micro_keep(at);
}

MAY_YIELD void
micro_measure_loads(const char *name, u64 bytes)
{
    u32 lines = (u32)(bytes / LINE_BYTES);
    u8 *all = memory(bytes);
    u32 *order = memory(lines * sizeof(order[0]));
    struct prng prng;
    prng_init(&prng, 1);
    for (u32 i = 0; i < lines; i++) {
        u32 j = (u32)prng_below(&prng, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (u32 i = 0; i < lines; i++) /* one circle through all */
        store_u64(all + (u64)order[i] * LINE_BYTES, (u64)order[(i + 1) % lines] * LINE_BYTES);
    struct loads loads = {.lines = all};
    micro_measure(&(struct micro_case){.name = name, .run = loads_run, .arg = &loads});
    free(order);
    free(all);
}

struct copy {
    u8 *source, *target;
    u32 bytes;
};

static void
copy_run(void *arg, u64 count)
{
    const struct copy *copy = arg;
    for (u64 i = 0; i < count; i++) {
        memcpy(copy->target, copy->source, copy->bytes);
        micro_keep_all(copy->target);
    }
}

MAY_YIELD void
micro_measure_copy(const char *name, u32 bytes)
{
    struct copy copy = {.source = memory(bytes), .target = memory(bytes), .bytes = bytes};
    micro_text(copy.source, bytes, 1);
    micro_measure(
        &(struct micro_case){.name = name, .run = copy_run, .arg = &copy, .bytes = bytes});
    free(copy.source);
    free(copy.target);
}

/* ---- a node ---- */

static void (*shard_fn)(void);

MAY_YIELD static status
shard_main(void *arg)
{
    if (io_shard_index() == 0) {
        shard_fn();
        io_stop();
    } else {
        io_wait_stop();
    }
    return ST_OK;
}

/* How many cores this process may use; the first count of them. */
static u32
cores_get(u32 *cores, u32 count)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return 0;
    u32 found = 0;
    for (u32 i = 0; i < CPU_SETSIZE && found < count; i++) {
        if (CPU_ISSET(i, &set)) cores[found++] = i;
    }
    return found;
}

bool
micro_cores_suffice(u32 shard_count)
{
    u32 cores[LIMIT_SHARDS];
    return cores_get(cores, shard_count) == shard_count;
}

void
micro_pin(u32 shard)
{
    u32 cores[LIMIT_SHARDS];
    CHECK(cores_get(cores, shard + 1) == shard + 1);
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cores[shard], &set);
    sched_setaffinity(0, sizeof(set), &set);
}

void
micro_on_shard(u32 shard_count, void (*fn)(void))
{
    u32 cores[LIMIT_SHARDS];
    bool pinned = cores_get(cores, shard_count) == shard_count;
    shard_fn = fn;
    struct io_node_config config = {
        .shard_count = shard_count,
        .cores = pinned ? cores : NULL,
        .memory_bytes = NODE_MEMORY_BYTES * shard_count,
        .spin_us = pinned && shard_count > 1 ? NODE_SPIN_US : 0,
        .fiber_count_max = NODE_FIBERS,
        .shard_main = shard_main,
    };
    struct io_node *node;
    micro_must(io_node_start(&config, &node), "start");
    micro_must(io_node_join(node), "end");
}
