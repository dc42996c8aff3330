/* SPDX-License-Identifier: MIT
 *
 * micro.h -- what the micro-benchmarks of single structures share: rounds, their figures, inputs.
 *
 *   int main(argc, argv):  micro_begin(...)  micro_measure(...) for each case  return micro_end()
 *
 * A case is run once to warm up and to find how many operations fill a round, then in rounds; its
 * figure is the median of the rounds, with the tenth and the ninetieth percentile beside it: what
 * else runs on the machine makes rounds longer, never shorter. Time is that of the wall. Ticks are
 * of the time stamp counter, which has the same pace at each clock of the core.
 *
 * Inputs come from fixed seeds. Only how often they are gone through depends on the machine.
 *
 * Options of all programs:
 *   --only TEXT      cases with TEXT in their names
 *   --rounds N       of each case; a case of long rounds has fewer, MICRO_ROUNDS_LEAST at least
 *   --round-us N     how long a round is to be, about
 *   --small          the smallest sizes, a moment each: whether it runs at all
 *   --format json    a line with an object for each case, instead of the table
 */
#ifndef DISTKV_BENCH_MICRO_H
#define DISTKV_BENCH_MICRO_H

#include "base/mem.h"
#include "base/status.h"

#define MICRO_ROUNDS_LEAST 5u
#define MICRO_CASE_NS_MAX  (NS_PER_S / 5) /* of all rounds of a case, where those are more */

struct micro_case {
    const char *name;
    /* Does the operation count times. May yield when it is measured on a fiber. */
    void (*run)(void *arg, u64 count);
    void *arg;
    /* Before each round, not timed; or NULL. */
    void (*prepare)(void *arg, u64 count);
    u64 count;      /* of one round; 0: as many as fill it */
    u64 count_unit; /* count is a multiple of it; 0: of 1 */
    u32 bytes;      /* that an operation goes through, for the rate; 0: no rate */
};

/* Reads the options; ends the process for those that are wrong, and for --help. */
void micro_begin(int argc, char **argv);
/* The exit status: 1 when no case has the name that was asked for. */
int micro_end(void);
bool micro_small(void);
MAY_YIELD void micro_measure(const struct micro_case *micro_case);

/* In run: what is between the two does not count. A stop costs about 50 ns. */
void micro_stop(void);
void micro_go(void);

/* Ends the process: what a benchmark does not expect has no figure. */
NORETURN void micro_die(const char *what, status st);
#define MICRO_CHECK(condition)                                                                     \
    do {                                                                                           \
        if (UNLIKELY(!(condition))) micro_die(#condition, ST_OK);                                  \
    } while (0)
static inline void
micro_must(status st, const char *what)
{
    if (UNLIKELY(!ok(st))) micro_die(what, st);
}

/* The compiler must believe that somebody reads it. */
static inline void
micro_keep(u64 value)
{
    __asm__ volatile("" : : "r"(value) : "memory");
}

static inline void
micro_keep_all(const void *p)
{
    __asm__ volatile("" : : "r"(p) : "memory");
}

/* The next operation begins when this one is over, as the only request of a turn would, instead of
 * overlapping it. Costs a few nanoseconds itself (the case `wait` of bench_base). */
static inline void
micro_wait(void)
{
#if defined(__x86_64__)
    __asm__ volatile("lfence" : : : "memory");
#elif defined(__aarch64__)
    __asm__ volatile("dsb nshld\n\tisb" : : : "memory");
#endif
}

/* ---- inputs ---- */

/* "key:000000000123" with what is known of it when it gets to the engine. */
#define MICRO_KEY_BYTES 16u
struct micro_key {
    u64 token, hash;
    u8 bytes[MICRO_KEY_BYTES];
};

/* The keys of the numbers from first on, in that order; freed with the process. */
struct micro_key *micro_keys(u32 first, u32 count);
/* The same, in an order that no prefetcher knows. */
struct micro_key *micro_keys_shuffled(const struct micro_key *keys, u32 count, u64 seed);
/* So many bytes of which about half are noise and the rest repeats. */
void micro_text(u8 *out, size_t size, u64 seed);

static inline struct bytes
micro_key_bytes(const struct micro_key *key)
{
    return BYTES(key->bytes, MICRO_KEY_BYTES);
}

/* The bound of everything that looks for something: one load from a random line of that much
 * memory, each of which must be there before the next is known. */
MAY_YIELD void micro_measure_loads(const char *name, u64 bytes);
/* The bound of everything that goes through bytes. */
MAY_YIELD void micro_measure_copy(const char *name, u32 bytes);

/* ---- for what needs a shard ---- */

/* Runs fn on the first fiber of shard 0 and ends the node when it has returned. */
void micro_on_shard(u32 shard_count, void (*fn)(void));
/* Whether each of its shards has a core. */
bool micro_cores_suffice(u32 shard_count);
/* The calling thread stays where that shard would be. */
void micro_pin(u32 shard);

#endif
