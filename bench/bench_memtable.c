/* SPDX-License-Identifier: MIT
 *
 * bench_memtable.c -- question: what do the newest entries cost a SET, a GET and a flush? Keys of
 * 16 bytes in random places, values of 100 bytes, in memtables of a thousand entries up to the
 * quarter million of a large one.
 *
 *   insert     a new key into a memtable that fills from empty to that size, memory included; each
 *              begins when the one before is over, here and below, as of the only client
 *   insert.16  the same as the write path does it: sixteen at once, each asked for beforehand
 *   overwrite  a key that is there, its older version let go
 *   get.hit    a key that is there
 *   get.16     the same, sixteen at once, each asked for beforehand
 *   get.miss   a key that is not there
 *   cursor     a step of the walk in order that a flush makes
 *   load       a random line of the same memory, each known only when the last is there
 *
 * Compare get.hit with load: the way leads over the root, a leaf and the record, so it is three to
 * four of them where nothing is in the core's caches. get.16 is to be well below that. A record of
 * the next step of the cursor lies anywhere, too, but is known long before.
 *
 *     bench_memtable [--only TEXT] [--rounds N] [--round-us N] [--small] [--format json]
 */
#include <stdio.h>

#include "lsm/memtable.h"
#include "micro.h"

#define VALUE_BYTES 100u
#define TOGETHER    16u
#define ENTRY_BYTES 400u /* more than an entry needs */

struct rig {
    u32 count;
    u32 at; /* the next key to be looked up */
    u64 seq;
    const struct micro_key *keys, *shuffled, *absent;
    struct memtable *memtable;
    struct memtable_pages pages;
    struct budget budget;
    struct cursor *cursor;
    u8 value[VALUE_BYTES];
};

static struct entry
entry_of(struct rig *rig, const struct micro_key *key)
{
    rig->seq++;
    return (struct entry){.token = key->token,
                          .key = micro_key_bytes(key),
                          .value = BYTES(rig->value, VALUE_BYTES),
                          .version = rig->seq,
                          .seq = rig->seq,
                          .kind = ENTRY_PUT};
}

static void
memtable_make(struct rig *rig)
{
    rig->memtable =
        memtable_new(&rig->budget, 0, UINT64_MAX, MIB(4) + (u64)rig->count * ENTRY_BYTES);
    MICRO_CHECK(rig->memtable != NULL);
    memtable_pages_use(rig->memtable, &rig->pages);
}

/* As a store does after a flush: the next memtable takes over the last one's large pages. */
static void
memtable_anew(void *arg, u64 count)
{
    struct rig *rig = arg;
    memtable_unref(rig->memtable);
    memtable_make(rig);
}

static void
insert_run(void *arg, u64 count)
{
    struct rig *rig = arg;
    for (u64 i = 0; i < count; i++) {
        struct entry entry = entry_of(rig, &rig->keys[i]);
        MICRO_CHECK(memtable_fits(rig->memtable, entry.key.size + VALUE_BYTES, 1));
        memtable_insert(rig->memtable, &entry, false);
        micro_wait();
    }
}

static void
insert_together_run(void *arg, u64 count)
{
    struct rig *rig = arg;
    const struct micro_key *keys = rig->keys;
    for (u64 i = 0; i + TOGETHER <= count; i += TOGETHER) {
        const struct leaf *leaves[TOGETHER];
        for (u32 j = 0; j < TOGETHER; j++)
            memtable_prefetch_root(rig->memtable, keys[i + j].token);
        for (u32 j = 0; j < TOGETHER; j++)
            leaves[j] = memtable_prefetch_leaf(rig->memtable, keys[i + j].token);
        for (u32 j = 0; j < TOGETHER; j++)
            (void)memtable_prefetch_record(leaves[j], keys[i + j].token, true);
        MICRO_CHECK(
            memtable_fits(rig->memtable, (MICRO_KEY_BYTES + VALUE_BYTES) * TOGETHER, TOGETHER));
        for (u32 j = 0; j < TOGETHER; j++) {
            struct entry entry = entry_of(rig, &keys[i + j]);
            memtable_insert_near(rig->memtable, &entry, false, leaves[j]);
        }
    }
}

/* One round through all, so that what is let go does not fill the memtable in the next one. */
static void
overwrite_prepare(void *arg, u64 count)
{
    memtable_anew(arg, count);
    insert_run(arg, ((struct rig *)arg)->count);
}

static void
overwrite_run(void *arg, u64 count)
{
    struct rig *rig = arg;
    for (u64 i = 0; i < count; i++) {
        struct entry entry = entry_of(rig, &rig->shuffled[i]);
        MICRO_CHECK(memtable_fits(rig->memtable, entry.key.size + VALUE_BYTES, 1));
        memtable_insert(rig->memtable, &entry, false);
        micro_wait();
    }
}

static void
get_run(struct rig *rig, const struct micro_key *keys, u64 count, bool there)
{
    struct entry got = {0};
    u32 at = rig->at;
    for (u64 i = 0; i < count; i++) {
        const struct micro_key *key = &keys[at];
        bool found =
            memtable_get(rig->memtable, key->token, micro_key_bytes(key), UINT64_MAX, &got);
        MICRO_CHECK(found == there);
        if (there) micro_keep(got.value.data[0]);
        micro_wait();
        if (++at >= rig->count) at = 0;
    }
    rig->at = at;
}

static void
hit_run(void *arg, u64 count)
{
    struct rig *rig = arg;
    get_run(rig, rig->shuffled, count, true);
}

static void
miss_run(void *arg, u64 count)
{
    struct rig *rig = arg;
    get_run(rig, rig->absent, count, false);
}

static void
hit_together_run(void *arg, u64 count)
{
    struct rig *rig = arg;
    for (u64 i = 0; i < count; i += TOGETHER) {
        if (rig->at + TOGETHER > rig->count) rig->at = 0;
        const struct micro_key *keys = &rig->shuffled[rig->at];
        rig->at += TOGETHER;
        const struct leaf *leaves[TOGETHER];
        const struct record *records[TOGETHER];
        for (u32 j = 0; j < TOGETHER; j++)
            memtable_prefetch_root(rig->memtable, keys[j].token);
        for (u32 j = 0; j < TOGETHER; j++)
            leaves[j] = memtable_prefetch_leaf(rig->memtable, keys[j].token);
        for (u32 j = 0; j < TOGETHER; j++)
            records[j] = memtable_prefetch_record(leaves[j], keys[j].token, false);
        for (u32 j = 0; j < TOGETHER; j++) {
            struct entry got;
            bool found = memtable_get_found(records[j], micro_key_bytes(&keys[j]), &got) ||
                         memtable_get(rig->memtable, keys[j].token, micro_key_bytes(&keys[j]),
                                      UINT64_MAX, &got);
            MICRO_CHECK(found);
            micro_keep(got.value.data[0]);
        }
    }
}

MAY_YIELD static void
cursor_run(void *arg, u64 count)
{
    struct rig *rig = arg;
    struct cursor *cursor = rig->cursor;
    for (u64 i = 0; i < count; i++) {
        if (!cursor->valid)
            micro_must(cursor->ops->seek(cursor, 0, BYTES(NULL, 0)), "seek");
        else
            micro_must(cursor->ops->next(cursor), "next");
        if (cursor->valid) micro_keep(cursor->entry.value.data[0]);
    }
}

MAY_YIELD static void
measure(struct rig *rig, const char *what, const char *size, void (*run)(void *, u64),
        void (*prepare)(void *, u64), u64 count)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.%s", what, size);
    micro_measure(&(struct micro_case){.name = name,
                                       .run = run,
                                       .prepare = prepare,
                                       .arg = rig,
                                       .count = count,
                                       .count_unit = TOGETHER});
}

MAY_YIELD static void
measure_size(u32 count, const char *size)
{
    static struct rig rig;
    rig = (struct rig){.count = count, .keys = micro_keys(0, count)};
    rig.shuffled = micro_keys_shuffled(rig.keys, count, count);
    rig.absent = micro_keys(count, count);
    micro_text(rig.value, VALUE_BYTES, 1);
    budget_init(&rig.budget, "bench", GIB(2), NULL);
    memtable_pages_init(&rig.pages, &rig.budget);
    memtable_make(&rig);

    u64 whole = count - count % TOGETHER;
    measure(&rig, "insert", size, insert_run, memtable_anew, whole);
    measure(&rig, "insert.16", size, insert_together_run, memtable_anew, whole);
    measure(&rig, "overwrite", size, overwrite_run, overwrite_prepare, whole);
    memtable_anew(&rig, 0);
    insert_run(&rig, count);
    measure(&rig, "get.hit", size, hit_run, NULL, 0);
    measure(&rig, "get.16", size, hit_together_run, NULL, 0);
    measure(&rig, "get.miss", size, miss_run, NULL, 0);
    rig.cursor = memtable_cursor_open(rig.memtable, &rig.budget);
    MICRO_CHECK(rig.cursor != NULL);
    measure(&rig, "cursor", size, cursor_run, NULL, 0);
    rig.cursor->ops->close(rig.cursor);
    char name[64];
    snprintf(name, sizeof(name), "load.%s", size);
    micro_measure_loads(name, memtable_used_bytes(rig.memtable));
    memtable_unref(rig.memtable);
    memtable_pages_drop(&rig.pages);
}

int
main(int argc, char **argv)
{
    micro_begin(argc, argv);
    measure_size(1000, "1k");
    if (!micro_small()) {
        measure_size(30000, "30k");
        measure_size(250000, "250k");
    }
    return micro_end();
}
