/* SPDX-License-Identifier: MIT
 *
 * test_run_rot.c -- what has rotted is there until no store can read it any more (rot.h), however
 * often a node changes its number of shards. Found by cluster-swarm 40000586.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "io/file.h"
#include "io/io.h"
#include "lsm/store.h"
#include "rot.h"

/* CHECK, because cmocka's jumps do not leave fibers well. */
#define EXPECT(cond) CHECK(cond)
#define DIR          "/data"
#define KEYS         200u
#define SHARDS       2u
#define PATHS_MAX    8u

static struct sim_disk *disk;
static struct lsm_options options;
static struct store_layout layout; /* large for a fiber's stack */

static MAY_YIELD void
prepare(u32 shards)
{
    char error[256];
    EXPECT(ok(store_prepare(DIR, "n", shards, &options, &layout, error, sizeof(error))));
}

static MAY_YIELD struct lsm *
open_shard(u32 shard)
{
    struct lsm_place place = {.dir = layout.shards[shard].dir,
                              .token_first = layout.shards[shard].token_first,
                              .token_last = layout.shards[shard].token_last};
    struct lsm *lsm;
    EXPECT(ok(lsm_open(&place, &options, &lsm)));
    return lsm;
}

static MAY_YIELD void
fill(struct lsm *lsm)
{
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    for (u32 i = 0; i < KEYS; i++) {
        char text[32];
        struct bytes key = BYTES(text, (size_t)snprintf(text, sizeof(text), "key-%u", i));
        EXPECT(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES_LITERAL("value"), 0));
    }
    u64 seq;
    EXPECT(ok(lsm_write(lsm, &batch, &seq)) && ok(lsm_flush(lsm)));
    lsm_batch_deinit(&batch);
}

/* ---- the tables that the disk has names for ---- */

struct tables {
    u32 count;
    char paths[PATHS_MAX][LSM_PATH_BYTES];
};

static struct tables before, after;

static void
table_note(void *arg, const char *path)
{
    struct tables *tables = arg;
    if (strrchr(path, '/')[1] != 't') return;
    EXPECT(tables->count < PATHS_MAX);
    snprintf(tables->paths[tables->count++], LSM_PATH_BYTES, "%s", path);
}

static void
tables_look(struct tables *out)
{
    out->count = 0;
    sim_disk_each_file(disk, table_note, out);
}

static status
change_body(void *arg)
{
    struct rot *rot = arg;
    struct prng prng;
    prng_init(&prng, 1);
    EXPECT(!rot_is_there(rot));
    prepare(1);
    struct lsm *lsm = open_shard(0);
    EXPECT(!rot_table(lsm, disk, &prng, rot) && !rot_is_there(rot));
    fill(lsm);
    EXPECT(rot_table(lsm, disk, &prng, rot) && rot_is_there(rot));
    EXPECT(ok(lsm_close(lsm)));
    store_release(DIR);
    tables_look(&before);
    EXPECT(before.count == 1);

    prepare(SHARDS);
    for (u32 i = 0; i < SHARDS; i++)
        EXPECT(ok(lsm_close(open_shard(i))));
    store_release(DIR);
    tables_look(&after);
    EXPECT(after.count == SHARDS); /* of one file, and the old name is none of them */
    for (u32 i = 0; i < SHARDS; i++) {
        EXPECT(strcmp(after.paths[i], before.paths[0]) != 0);
        EXPECT(rot_is_there(rot));
        EXPECT(ok(io_file_unlink(after.paths[i])));
    }
    EXPECT(!rot_is_there(rot));
    return ST_OK;
}

static void
what_has_rotted_is_followed_over_a_change_of_shards(void **state)
{
    (void)state;
    struct sim_options sim_options;
    sim_options_default(&sim_options, 1);
    struct sim *sim = sim_new(&sim_options);
    disk = sim_node_disk(sim_node_new(sim, "10.0.0.1"));
    lsm_options_default(&options);
    options.memory_bytes = MIB(24);
    options.memtable_bytes = KIB(256);
    options.log_segment_bytes = KIB(256);
    options.disk_reserve_bytes = 0;
    options.scrub_bytes_per_s = 0;
    struct rot rot = {0};
    assert_true(ok(sim_run(sim, 1, change_body, &rot)));
    sim_free(sim);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_has_rotted_is_followed_over_a_change_of_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
