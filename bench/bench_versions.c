/* SPDX-License-Identifier: MIT
 *
 * bench_versions.c -- question: what do versions cost a write in a cluster: the hybrid logical clock
 * of every write, and the sets of siblings of those keyspaces that keep them? Values of 100 bytes.
 *
 *   hlc.next      the version of a write that happens now
 *   hlc.observe   a version that came from a peer
 *   write.N       a write with the context of all that is there, into a set that N actors have
 *                 written to: decode, update, encode, as the coordinator of one does
 *   decode.N      of a set with N actors and N siblings, and encoding it
 *   encode.N
 *   sync.same.N   two replicas that know the same, which is what read repair finds nearly always
 *   sync.N        of which one knows of one more write
 *
 *   copy.N        the bound: memcpy of an encoded set
 *
 *     bench_versions [--only TEXT] [--rounds N] [--round-us N] [--small] [--format json]
 */
#include <stdio.h>

#include "cluster/dvvset.h"
#include "cluster/hlc.h"
#include "micro.h"

#define VALUE_BYTES 100u
#define WALL_MS     (HLC_EPOCH_MS + 200000000000ull)

static struct budget budget;
static u8 bytes[VALUE_BYTES];

/* ---- the clock ---- */

static void
next_run(void *arg, u64 count)
{
    struct hlc *hlc = arg;
    for (u64 i = 0; i < count; i++)
        micro_keep(hlc_next(hlc, WALL_MS + i / 64));
}

static void
observe_run(void *arg, u64 count)
{
    struct hlc *hlc = arg;
    u64 version = hlc_version_at(WALL_MS);
    for (u64 i = 0; i < count; i++)
        micro_must(hlc_observe(hlc, version + (i << HLC_STAMP_BITS) % 1024, WALL_MS), "observe");
    micro_keep(hlc->last);
}

/* ---- sets ---- */

struct sets {
    struct dvvset set, same, newer;
    struct buf encoded, single; /* of set; of one with the same actors and one value */
    struct buf out;
};

static struct dvv_value
value_of(u32 actor, u64 counter)
{
    return (struct dvv_value){.actor = {.incarnation = 1000 + actor, .partition = 7},
                              .counter = counter,
                              .version = counter,
                              .data = BYTES(bytes, VALUE_BYTES)};
}

/* A write of each actor that knows nothing of the others. */
static void
fill(struct dvvset *set, u32 actors)
{
    dvvset_init(set, &budget);
    for (u32 i = 0; i < actors; i++) {
        struct dvv_value value = value_of(i, 10);
        micro_must(dvvset_update(set, NULL, &value), "dvvset_update");
    }
}

static void
decode_run(void *arg, u64 count)
{
    const struct sets *sets = arg;
    for (u64 i = 0; i < count; i++) {
        struct dvvset set;
        dvvset_init(&set, &budget);
        micro_must(dvvset_decode(buf_bytes(&sets->encoded), &set), "dvvset_decode");
        micro_keep(set.count);
        dvvset_deinit(&set);
    }
}

static void
encode_run(void *arg, u64 count)
{
    struct sets *sets = arg;
    for (u64 i = 0; i < count; i++) {
        sets->out.size = 0;
        micro_must(dvvset_encode(&sets->set, &sets->out), "dvvset_encode");
        micro_keep_all(sets->out.data);
    }
}

static void
write_run(void *arg, u64 count)
{
    struct sets *sets = arg;
    for (u64 i = 0; i < count; i++) {
        struct dvvset set;
        dvvset_init(&set, &budget);
        micro_must(dvvset_decode(buf_bytes(&sets->single), &set), "dvvset_decode");
        struct dvv_value value = value_of(0, 100);
        micro_must(dvvset_update(&set, dvvset_context(&set), &value), "dvvset_update");
        sets->out.size = 0;
        micro_must(dvvset_encode(&set, &sets->out), "dvvset_encode");
        micro_keep_all(sets->out.data);
        dvvset_deinit(&set);
    }
}

static void
sync_two(const struct dvvset *a, const struct dvvset *b, u64 count)
{
    for (u64 i = 0; i < count; i++) {
        struct dvvset both;
        dvvset_init(&both, &budget);
        micro_must(dvvset_sync(a, b, &both), "dvvset_sync");
        micro_keep(both.count);
        dvvset_deinit(&both);
    }
}

static void
sync_same_run(void *arg, u64 count)
{
    const struct sets *sets = arg;
    sync_two(&sets->set, &sets->same, count);
}

static void
sync_run(void *arg, u64 count)
{
    const struct sets *sets = arg;
    sync_two(&sets->set, &sets->newer, count);
}

static void
measure(const char *what, u32 actors, void (*run)(void *, u64), struct sets *sets)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.%u", what, actors);
    micro_measure(&(struct micro_case){.name = name, .run = run, .arg = sets});
}

static void
measure_sets(u32 actors)
{
    struct sets sets;
    fill(&sets.set, actors);
    fill(&sets.same, actors);
    fill(&sets.newer, actors);
    struct dvv_value value = value_of(0, 50);
    micro_must(dvvset_update(&sets.newer, dvvset_context(&sets.newer), &value), "dvvset_update");
    buf_init(&sets.encoded, &budget);
    buf_init(&sets.single, &budget);
    buf_init(&sets.out, &budget);
    micro_must(dvvset_encode(&sets.set, &sets.encoded), "dvvset_encode");
    micro_must(dvvset_encode(&sets.newer, &sets.single), "dvvset_encode");

    measure("write", actors, write_run, &sets);
    measure("decode", actors, decode_run, &sets);
    measure("encode", actors, encode_run, &sets);
    measure("sync.same", actors, sync_same_run, &sets);
    measure("sync", actors, sync_run, &sets);
    char name[64];
    snprintf(name, sizeof(name), "copy.%u", actors);
    micro_measure_copy(name, (u32)sets.encoded.size);
    buf_deinit(&sets.encoded);
    buf_deinit(&sets.single);
    buf_deinit(&sets.out);
    dvvset_deinit(&sets.set);
    dvvset_deinit(&sets.same);
    dvvset_deinit(&sets.newer);
}

int
main(int argc, char **argv)
{
    micro_begin(argc, argv);
    budget_init(&budget, "bench", MIB(64), NULL);
    micro_text(bytes, sizeof(bytes), 1);
    struct hlc hlc;
    hlc_init(&hlc, 0, 3);
    micro_measure(&(struct micro_case){.name = "hlc.next", .run = next_run, .arg = &hlc});
    hlc_init(&hlc, 0, 3);
    micro_measure(&(struct micro_case){.name = "hlc.observe", .run = observe_run, .arg = &hlc});
    measure_sets(1);
    measure_sets(3);
    if (!micro_small()) measure_sets(16);
    return micro_end();
}
