/* SPDX-License-Identifier: MIT
 *
 * test_store.c -- the data directory: making it, refusing what is not ours, and changing the number
 * of stores with a power cut at every request. The content is a few hundred keys that must all be
 * found, each in the store that owns its token, after any history.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "../../fewer.h"
#include "base/crc.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/prng.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/levels.h"
#include "lsm/manifest.h"
#include "lsm/store.h"

#define DIR  "/data/db"
#define KEYS 200u

struct job {
    u32 shards;
    const char *node_id;
    bool write, check, range;
    u32 round;         /* part of the values */
    u32 written_round; /* acknowledged */
    status result;
    char error[256];
    struct store_layout layout;
};

static struct job job;

static void
options_make(struct lsm_options *options)
{
    lsm_options_default(options);
    options->memory_bytes = MIB(24);
    options->memtable_bytes = KIB(256);
    options->log_segment_bytes = KIB(256);
    options->disk_reserve_bytes = 0;
    options->scrub_bytes_per_s = 0;
}

static u32
key_make(u32 i, char *out)
{
    return (u32)sprintf(out, "key-%u", i);
}

static u32
value_make(u32 i, u32 round, u8 *out)
{
    u32 size = i % 10 == 0 ? 6000 : 40;
    for (u32 j = 0; j < size; j++)
        out[j] = (u8)(i + round * 31 + j);
    return size;
}

static status
write_keys(struct job *j, u32 shard, struct lsm *lsm)
{
    static u8 value[8192];
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    status st = ST_OK;
    u64 seq = 0;
    for (u32 i = 0; i < KEYS && ok(st); i++) {
        char key[32];
        struct bytes name = BYTES(key, key_make(i, key));
        u64 token = hash_token(name);
        if (token < j->layout.shards[shard].token_first ||
            token > j->layout.shards[shard].token_last)
            continue;
        lsm_batch_clear(&batch);
        CHECK(
            lsm_batch_put(&batch, 0, token, name, BYTES(value, value_make(i, j->round, value)), 0));
        st = lsm_write(lsm, &batch, &seq);
        if (ok(st) && i % 40 == 39) st = lsm_flush(lsm);
    }
    if (ok(st)) st = lsm_wait_durable(lsm, seq);
    lsm_batch_deinit(&batch);
    return st;
}

static status
check_keys(struct job *j, u32 shard, struct lsm *lsm, u32 *found)
{
    static u8 value[8192];
    for (u32 i = 0; i < KEYS; i++) {
        char key[32];
        struct bytes name = BYTES(key, key_make(i, key));
        u64 token = hash_token(name);
        if (token < j->layout.shards[shard].token_first ||
            token > j->layout.shards[shard].token_last)
            continue;
        struct lsm_value got;
        status st = lsm_get(lsm, NULL, 0, token, name, &got);
        if (status_is(st, ST_IO_ERROR) || status_is(st, ST_CANCELED)) return st;
        CHECK(ok(st));
        (*found)++;
        bool same = false;
        for (u32 round = j->written_round; round <= j->round; round++)
            same = same || bytes_equal(got.value, BYTES(value, value_make(i, round, value)));
        CHECK(same);
        lsm_value_release(&got);
    }
    u64 count = 0;
    status st = lsm_count_exact(lsm, 0, &count);
    CHECK(ok(st));
    return ST_OK;
}

static status
body(void *arg)
{
    struct job *j = arg;
    struct lsm_options options;
    options_make(&options);
    j->result =
        store_prepare(DIR, j->node_id, j->shards, &options, &j->layout, j->error, sizeof(j->error));
    if (!ok(j->result)) return ST_OK;
    CHECK(j->layout.shard_count == j->shards);
    CHECK(j->layout.shards[0].token_first == 0);
    CHECK(j->layout.shards[j->shards - 1].token_last == UINT64_MAX);
    u32 found = 0;
    status st = ST_OK;
    for (u32 i = 0; i < j->shards && ok(st); i++) {
        struct lsm_place place = {.dir = j->layout.shards[i].dir,
                                  .token_first = j->layout.shards[i].token_first,
                                  .token_last = j->layout.shards[i].token_last};
        struct lsm *lsm;
        st = lsm_open(&place, &options, &lsm);
        if (!ok(st)) break;
        if (j->check && j->written_round > 0) st = check_keys(j, i, lsm, &found);
        if (ok(st) && j->write) st = write_keys(j, i, lsm);
        status closed = lsm_close(lsm);
        if (ok(st)) st = closed;
    }
    if (ok(st) && j->check && j->written_round > 0) CHECK(found == KEYS);
    if (ok(st) && j->write) j->written_round = j->round;
    store_release(DIR);
    return st;
}

static status
run(struct sim *sim, u32 shards, bool write)
{
    job.shards = shards;
    job.write = write;
    job.check = true;
    if (write) job.round++;
    return sim_run(sim, 1, body, &job);
}

static struct sim *
sim_make(u64 seed)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    memset(&job, 0, sizeof(job));
    return sim_new(&options);
}

static void
data_opens_with_any_number_of_shards(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    const u32 shards[] = {1, 2, 3, 8, 5, 1, 64, 7, 7, 1};
    for (u32 i = 0; i < ARRAY_COUNT(shards); i++) {
        status st = run(sim, shards[i], i % 3 == 0);
        if (!ok(st) || !ok(job.result)) {
            print_message("%u shards: %s\n", shards[i], job.error);
            sim_log_dump(sim);
        }
        assert_true(ok(st));
        assert_true(ok(job.result));
        assert_int_equal(job.layout.shard_count, shards[i]);
    }
    sim_free(sim);
}

static u64 reports;
static char reported[600];

static void
on_report(void *arg, const char *file, u64 offset, const char *what)
{
    (void)arg;
    (void)offset;
    (void)what;
    snprintf(reported, sizeof(reported), "%s", file);
    reports++;
}

static status
verify_body(void *arg)
{
    u64 *figures = arg;
    return store_verify(DIR, on_report, NULL, &figures[0], &figures[1]);
}

/* Whatever a power cut has left: what NODE names is whole, or there is no NODE yet. */
static void
check_after_cut(struct sim *sim, bool first_start, u64 n)
{
    u64 figures[2];
    reports = 0;
    sim_faults_clear(sim);
    status st = sim_run(sim, 1, verify_body, figures);
    if (ok(st)) return;
    bool no_node =
        status_is(st, ST_NOT_FOUND) && (reports == 0 || strcmp(reported, DIR "/NODE") == 0);
    if (!first_start || !no_node || reports > 1) {
        print_message("cut at %llu: %s, %s\n", (unsigned long long)n, status_name(st),
                      reports > 0 ? reported : "nothing reported");
        sim_log_dump(sim);
    }
    assert_true(first_start && no_node && reports <= 1);
}

static void
power_cuts_while_resharding(u32 from, u32 to, u32 step)
{
    step *= 8 / FEWER(8);
    for (u64 n = 0;; n += step) {
        struct sim *sim = sim_make(n);
        assert_true(ok(run(sim, from, true)));
        sim_crash_at(sim, SIM_POINT_IO, n);
        (void)ok(run(sim, to, false));
        bool cut = sim_crashed(sim);
        check_after_cut(sim, false, n);
        /* A second cut while it is tried again. */
        sim_crash_at(sim, SIM_POINT_IO, n * 7 % 50);
        (void)ok(run(sim, to, false));
        check_after_cut(sim, false, n);
        status st = run(sim, n / step % 2 == 0 ? to : from, false);
        if (!ok(st) || !ok(job.result)) {
            print_message("%u to %u, cut at %llu: %s %s\n", from, to, (unsigned long long)n,
                          status_name(st), job.error);
            sim_log_dump(sim);
        }
        assert_true(ok(st) && ok(job.result));
        assert_true(ok(run(sim, 2, true)));
        assert_true(ok(run(sim, 3, false)));
        sim_free(sim);
        if (!cut) break;
    }
}

/* Of stores without content, which is a short way: cuts at every request, each with several draws
 * of what they take. */
static void
power_cuts_while_resharding_nothing(void)
{
    bool cut = true;
    for (u64 n = 0; cut; n++) {
        cut = false;
        for (u64 seed = 0; seed < FEWER(12); seed++) {
            struct sim *sim = sim_make(n * 16 + seed);
            assert_true(ok(run(sim, 1, false)));
            sim_crash_at(sim, SIM_POINT_IO, n);
            (void)ok(run(sim, 2, false));
            cut = sim_crashed(sim) || cut;
            check_after_cut(sim, false, n);
            assert_true(ok(run(sim, 2, false)) && ok(job.result));
            sim_free(sim);
        }
    }
}

static void
no_power_cut_breaks_a_change_of_the_core_count(void **state)
{
    (void)state;
    power_cuts_while_resharding(1, 3, 3);
    power_cuts_while_resharding(3, 2, 5);
    power_cuts_while_resharding_nothing();
}

/* Returns whether there was a cut at all. What a cut takes is drawn, hence the seeds. */
static bool
power_cut_in_the_first_start(u64 n, u64 seed)
{
    struct sim *sim = sim_make(n * 16 + seed);
    sim_crash_at(sim, SIM_POINT_IO, n);
    (void)ok(run(sim, 2, false));
    bool cut = sim_crashed(sim);
    check_after_cut(sim, true, n);
    /* A second cut while it is tried again, with as many shards or another number. */
    sim_crash_at(sim, SIM_POINT_IO, (n * 7 + seed * 11) % 50);
    (void)ok(run(sim, 2 + seed % 2, false));
    check_after_cut(sim, true, n);
    status st = run(sim, 2, true);
    if (!ok(st) || !ok(job.result)) {
        print_message("cut at %llu: %s %s\n", (unsigned long long)n, status_name(st), job.error);
        sim_log_dump(sim);
    }
    assert_true(ok(st) && ok(job.result));
    assert_true(ok(run(sim, 2, false)));
    sim_free(sim);
    return cut;
}

static void
no_power_cut_breaks_the_first_start(void **state)
{
    (void)state;
    bool cut = true;
    for (u64 n = 0; cut; n++) {
        cut = false;
        for (u64 seed = 0; seed < FEWER(12); seed++)
            cut = power_cut_in_the_first_start(n, seed) || cut;
    }
}

static status
file_body(void *arg)
{
    struct io_file *file;
    status st = io_dir_make("/data");
    if (ok(st)) st = io_dir_make(DIR);
    if (ok(st)) st = io_file_open(arg, IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (ok(st)) io_file_close(file);
    return st;
}

/* The first start is killed at its n-th request: what it has made is there for the second, but a
 * power cut may still take it, unless the second sees to that before it acknowledges anything. */
static void
a_killed_first_start_costs_nothing_later(void **state)
{
    (void)state;
    bool killed = true;
    for (u64 n = 0; killed; n++) {
        for (u64 seed = 0; seed < 5; seed++) {
            struct sim *sim = sim_make(n * 10 + seed);
            sim_crash_keeps_all_set(sim, true);
            sim_crash_at(sim, SIM_POINT_IO, n);
            (void)ok(run(sim, 1, false));
            killed = sim_crashed(sim);
            sim_faults_clear(sim);
            assert_true(ok(run(sim, 1, true)));
            sim_crash_keeps_all_set(sim, false);
            sim_crash_at(sim, SIM_POINT_IO, 0);
            assert_true(status_is(run(sim, 1, false), ST_CANCELED));
            sim_faults_clear(sim);
            assert_true(ok(run(sim, 1, false))); /* finds every key */
            assert_true(ok(job.result));
            sim_free(sim);
        }
    }
}

/* The same, but its n-th requests fail, and it is told so or takes another way; whatever it has
 * left behind, the second start makes a store of it. */
static void
a_first_start_that_meets_errors_can_be_repeated(void **state)
{
    (void)state;
    for (u64 n = 0; n < 80; n++) {
        struct sim *sim = sim_make(n);
        sim_fail_at(sim, n % 2 == 0 ? SIM_POINT_IO : SIM_POINT_READ, n / 2, 1, ST_IO_ERROR);
        job.round = 0;
        (void)ok(run(sim, 1, false));
        sim_faults_clear(sim);
        assert_true(ok(run(sim, 2, true)));
        assert_true(ok(job.result));
        assert_true(ok(run(sim, 2, false)));
        sim_free(sim);
    }
}

static void
foreign_directories_are_refused(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    assert_true(ok(sim_run(sim, 1, file_body, (void *)(uintptr_t)DIR "/precious")));
    assert_true(ok(run(sim, 1, false)));
    assert_true(status_is(job.result, ST_INVALID));
    assert_non_null(strstr(job.error, "NODE"));
    sim_free(sim);
}

static void
another_nodes_directory_is_refused(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    job.node_id = "alpha";
    assert_true(ok(run(sim, 1, true)));
    assert_true(ok(job.result));
    job.node_id = "beta";
    assert_true(ok(run(sim, 1, false)));
    assert_true(status_is(job.result, ST_INVALID));
    assert_non_null(strstr(job.error, "alpha"));
    job.node_id = NULL;
    assert_true(ok(run(sim, 1, false)));
    assert_true(ok(job.result));
    assert_string_equal(job.layout.node_id, "alpha");
    sim_free(sim);
}

static status
misuse_body(void *arg)
{
    (void)arg;
    struct lsm_options options;
    options_make(&options);
    struct store_layout layout;
    char error[256];
    char id[NODE_ID_BYTES + 1];
    memset(id, 'n', sizeof(id));
    id[NODE_ID_BYTES] = '\0';
    status st = store_prepare(DIR, id, 1, &options, &layout, error, sizeof(error));
    CHECK(status_is(st, ST_INVALID) && strstr(error, "node id") != NULL);
    static char path[STORE_DIR_BYTES];
    memset(path, 'd', sizeof(path) - 1);
    st = store_prepare(path, "", 1, &options, &layout, error, sizeof(error));
    CHECK(status_is(st, ST_INVALID) && strstr(error, "path") != NULL);
    st = store_prepare(DIR, "", 1, &options, &layout, error, sizeof(error));
    if (!ok(st)) return st;
    st = store_prepare(DIR, "", 1, &options, &layout, error, sizeof(error));
    CHECK(status_is(st, ST_LOCKED) && strstr(error, "another server") != NULL);
    store_release(DIR);
    return ST_OK;
}

static void
long_names_and_a_directory_in_use_are_refused(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    assert_true(ok(sim_run(sim, 1, misuse_body, NULL)));
    sim_free(sim);
}

static void
a_made_up_id_stays(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    assert_true(ok(run(sim, 1, false)));
    char id[NODE_ID_BYTES];
    memcpy(id, job.layout.node_id, sizeof(id));
    assert_true(strlen(id) > 4);
    assert_true(ok(run(sim, 2, false)));
    assert_string_equal(job.layout.node_id, id);
    sim_free(sim);
}

static void
a_damaged_node_file_is_refused(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    for (u32 at = 0; at < 4096; at += 97) {
        memset(&job, 0, sizeof(job));
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        assert_true(ok(run(sim, 1, false)));
        assert_true(ok(sim_disk_flip(sim_node_disk(node), DIR "/NODE", at, 8)));
        assert_true(ok(run(sim, 1, false)));
        assert_true(status_is(job.result, ST_CORRUPT) || status_is(job.result, ST_INVALID));
        assert_non_null(strstr(job.error, "NODE"));
        sim_free(sim);
    }
}

static status
node_hidden_body(void *arg)
{
    return io_file_rename(arg != NULL ? DIR "/NODE" : "/hidden",
                          arg != NULL ? "/hidden" : DIR "/NODE");
}

/* Stores that have something in them were named by a NODE once: they are not taken for what a
 * first start has left. */
static void
stores_without_their_node_file_are_kept(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    assert_true(ok(run(sim, 2, true)));
    assert_true(ok(job.result));
    assert_true(ok(sim_run(sim, 1, node_hidden_body, &job)));
    assert_true(ok(run(sim, 2, false)));
    assert_true(status_is(job.result, ST_CORRUPT));
    assert_non_null(strstr(job.error, "NODE"));
    assert_true(ok(sim_run(sim, 1, node_hidden_body, NULL)));
    assert_true(ok(run(sim, 2, false))); /* and every key is there */
    assert_true(ok(job.result));
    sim_free(sim);
}

static char victims[32][128];
static u32 victim_count;

static void
name_note(void *arg, const char *name)
{
    if (victim_count < ARRAY_COUNT(victims))
        snprintf(victims[victim_count++], sizeof(victims[0]), "%.60s/%.60s", (const char *)arg,
                 name);
}

static status
keep_manifests_body(void *arg)
{
    (void)arg;
    status st = ST_OK;
    for (u32 shard = 0; shard < job.layout.shard_count && ok(st); shard++) {
        char *dir = job.layout.shards[shard].dir;
        victim_count = 0;
        st = io_dir_list(dir, name_note, dir);
        for (u32 i = 0; ok(st) && i < victim_count; i++)
            if (strcmp(strrchr(victims[i], '/'), "/manifest") != 0) st = io_file_unlink(victims[i]);
    }
    return st;
}

/* Only the manifests are left, as of a first start that died; but they know of what was written. */
static void
manifests_without_node_file_and_tables_are_refused(void **state)
{
    (void)state;
    for (u32 damaged = 0; damaged < 2; damaged++) {
        struct sim_options options;
        sim_options_default(&options, 1);
        memset(&job, 0, sizeof(job));
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        assert_true(ok(run(sim, 2, true)));
        assert_true(ok(sim_run(sim, 1, node_hidden_body, &job)));
        assert_true(ok(sim_run(sim, 1, keep_manifests_body, NULL)));
        if (damaged)
            assert_true(
                ok(sim_disk_flip(sim_node_disk(node), DIR "/p0000-2047.1/manifest", 20, 1)));
        assert_true(ok(run(sim, 2, false)));
        assert_true(status_is(job.result, ST_CORRUPT));
        assert_non_null(strstr(job.error, "NODE"));
        sim_free(sim);
    }
}

static void
victim_each(void *arg, const char *path)
{
    (void)arg;
    const char *base = strrchr(path, '/') + 1;
    if (victim_count < ARRAY_COUNT(victims) &&
        (base[0] == 't' || base[0] == 'b' || strcmp(base, "NODE") == 0 ||
         strcmp(base, "manifest") == 0 || strcmp(base, "manifest.old") == 0))
        snprintf(victims[victim_count++], sizeof(victims[0]), "%s", path);
}

static void
verification_finds_damage_in_every_kind_of_file(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    memset(&job, 0, sizeof(job));
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    assert_true(ok(run(sim, 2, true)));
    u64 figures[2];
    reports = 0;
    assert_true(ok(sim_run(sim, 1, verify_body, figures)));
    assert_true(figures[0] > 4 && figures[1] > 10000);
    victim_count = 0;
    sim_disk_each_file(sim_node_disk(node), victim_each, NULL);
    u32 old_manifests = 0;
    for (u32 i = 0; i < victim_count; i++)
        old_manifests += strcmp(strrchr(victims[i], '/'), "/manifest.old") == 0;
    assert_true(victim_count >= 4 + 2 + 1 && old_manifests > 0);
    for (u32 i = 0; i < victim_count; i++) {
        u64 size;
        assert_true(ok(sim_disk_file_size(sim_node_disk(node), victims[i], &size)));
        assert_true(ok(sim_disk_flip(sim_node_disk(node), victims[i], size / 3, 1)));
        reports = 0;
        status st = sim_run(sim, 1, verify_body, figures);
        if (!status_is(st, ST_CORRUPT)) fail_msg("%s: %s", victims[i], status_text(st));
        assert_true(reports >= 1);
        assert_string_equal(reported, victims[i]);
        assert_true(ok(sim_disk_flip(sim_node_disk(node), victims[i], size / 3, 1)));
    }
    assert_true(ok(sim_run(sim, 1, verify_body, figures)));
    sim_free(sim);
}

static status
memory_body(void *arg)
{
    struct lsm_options options;
    options_make(&options);
    struct job *j = arg;
    status st =
        store_prepare(":memory:", NULL, 2, &options, &j->layout, j->error, sizeof(j->error));
    CHECK(ok(st) && j->layout.shard_count == 2);
    CHECK(strcmp(j->layout.shards[1].dir, ":memory:") == 0);
    st = store_prepare("", NULL, 2, &options, &j->layout, j->error, sizeof(j->error));
    CHECK(status_is(st, ST_INVALID) && j->error[0] != '\0');
    store_release(":memory:");
    return ST_OK;
}

/* Puts a number elsewhere into a header of a file, with the right checksum for it. */
struct forgery {
    const char *path;
    u32 at, number;
    u32 crc_at, crc_bytes; /* of that many bytes, the checksum itself as zero when it is in them */
};

static status
forge_body(void *arg)
{
    const struct forgery *forgery = arg;
    u8 *block = mem_alloc_aligned(io_budget(), IO_ALIGNMENT, IO_ALIGNMENT);
    struct io_file *file;
    CHECK(block != NULL);
    status st = io_file_open(forgery->path, IO_OPEN_WRITE, &file);
    if (ok(st)) st = io_file_read(file, IO_CLASS_READ, block, IO_ALIGNMENT, 0);
    CHECK(ok(st));
    memcpy(block + forgery->at, &forgery->number, 4);
    memset(block + forgery->crc_at, 0, 4);
    u32 crc = crc32c(0, block, forgery->crc_bytes);
    memcpy(block + forgery->crc_at, &crc, 4);
    st = io_file_write(file, IO_CLASS_LOG, block, IO_ALIGNMENT, 0, true);
    io_file_close(file);
    mem_free(io_budget(), block, IO_ALIGNMENT);
    return st;
}

/* Nobody could turn to it when the manifest is lost. */
static void
verification_tells_of_an_old_manifest_of_another_format(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    assert_true(ok(run(sim, 1, true)));
    u64 figures[2];
    assert_true(ok(sim_run(sim, 1, verify_body, figures)));
    struct forgery forgery = {.path = DIR "/p0000-4095.1/manifest.old",
                              .at = offsetof(struct manifest_header, format),
                              .number = MANIFEST_FORMAT + 1,
                              .crc_at = offsetof(struct manifest_header, header_crc),
                              .crc_bytes = offsetof(struct manifest_header, header_crc)};
    assert_true(ok(sim_run(sim, 1, forge_body, &forgery)));
    reports = 0;
    assert_true(status_is(sim_run(sim, 1, verify_body, figures), ST_CORRUPT));
    assert_int_equal(reports, 1);
    assert_string_equal(reported, forgery.path);
    sim_free(sim);
}

/* No server has made such a directory; NODE has the number, and says what it wants. */
static void
more_shards_than_partitions_are_refused(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    assert_true(ok(run(sim, 1, true)));
    /* See docs/data-files.md: the number of partitions, and the last one of the only store. */
    struct forgery forgery = {
        .path = DIR "/NODE", .at = 16, .number = 32, .crc_at = 8, .crc_bytes = IO_ALIGNMENT};
    assert_true(ok(sim_run(sim, 1, forge_body, &forgery)));
    forgery.at = 132;
    forgery.number = 31;
    assert_true(ok(sim_run(sim, 1, forge_body, &forgery)));
    assert_true(ok(run(sim, 33, false)));
    assert_true(status_is(job.result, ST_INVALID));
    assert_non_null(strstr(job.error, "33"));
    assert_int_equal(sim_mark_count(sim, "lsm.store.too_many_shards"), 1);
    sim_free(sim);
}

/* Each sync of a change of the number of shards fails once; what was refused is done next time. */
static void
a_change_of_the_core_count_that_meets_errors_can_be_repeated(void **state)
{
    (void)state;
    u64 not_synced = 0;
    bool failed = true;
    for (u64 n = 0; failed; n++) {
        struct sim *sim = sim_make(n);
        assert_true(ok(run(sim, 1, true)));
        sim_fail_at(sim, SIM_POINT_SYNC, n, 1, ST_IO_ERROR);
        (void)ok(run(sim, 3, false));
        failed = sim_failed(sim);
        sim_faults_clear(sim);
        not_synced += sim_mark_count(sim, "lsm.store.reshard_not_synced");
        assert_true(ok(run(sim, 3, false))); /* finds every key */
        assert_true(ok(job.result));
        sim_free(sim);
    }
    assert_int_equal(not_synced, 1);
}

/* ---- memory ---- */

#define SHARDS_MORE 4u

/* Long keys of a few tokens: much of them is in the indexes. */
static struct bytes
long_key(u32 index, u64 *token_out)
{
    static char text[1001];
    int size = snprintf(text, sizeof(text), "{%u}%0*u", index % 16, 990, index);
    struct bytes key = BYTES(text, (size_t)size);
    *token_out = hash_token(key);
    return key;
}

static status
long_keys(struct lsm *lsm, u64 first, u64 last, u32 count, bool write, u32 *found)
{
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    status st = ST_OK;
    for (u32 i = 0; ok(st) && i < count; i++) {
        u64 token, seq;
        struct bytes key = long_key(i, &token);
        if (token < first || token > last) continue;
        if (write) {
            lsm_batch_clear(&batch);
            CHECK(lsm_batch_put(&batch, 0, token, key, BYTES("v", 1), 0));
            st = lsm_write(lsm, &batch, &seq);
            while (status_is(st, ST_OVERLOADED)) {
                fiber_sleep_ns(10 * NS_PER_MS);
                st = lsm_write(lsm, &batch, &seq);
            }
        } else if (i % 23 == 0) {
            struct lsm_value value;
            st = lsm_get(lsm, NULL, 0, token, key, &value);
            if (ok(st)) lsm_value_release(&value);
            *found += ok(st);
        }
    }
    lsm_batch_deinit(&batch);
    return st;
}

/* As a node with so many cores, which share its memory. */
static status
indexed_body(void *arg)
{
    struct job *j = arg;
    const u32 keys = 14000;
    if (io_shard_index() != 0) return ST_OK;
    struct lsm_options options;
    options_make(&options);
    options.memtable_bytes = options.log_segment_bytes = 0;
    options.codec_last = LSM_CODEC_NONE;
    options.memory_bytes = MIB(12) / j->shards;
    CHECK(options.memory_bytes < io_budget()->limit_bytes);
    u64 limit = io_budget()->limit_bytes;
    j->result =
        store_prepare(DIR, NULL, j->shards, &options, &j->layout, j->error, sizeof(j->error));
    CHECK(io_budget()->limit_bytes == limit);
    if (!ok(j->result)) return ST_OK;
    u32 found = 0;
    for (u32 i = 0; i < j->shards; i++) {
        struct lsm_place place = {.dir = j->layout.shards[i].dir,
                                  .token_first = j->layout.shards[i].token_first,
                                  .token_last = j->layout.shards[i].token_last};
        struct lsm *lsm;
        status st = lsm_open(&place, &options, &lsm);
        if (!ok(st)) return st;
        st = long_keys(lsm, place.token_first, place.token_last, keys, j->write, &found);
        if (ok(st) && j->write) st = lsm_compact(lsm);
        struct lsm_stats stats;
        lsm_stats_get(lsm, &stats);
        if (j->write) CHECK(stats.index_bytes > MIB(12) / SHARDS_MORE);
        status closed = lsm_close(lsm);
        if (!ok(st)) return st;
        if (!ok(closed)) return closed;
    }
    CHECK(j->write || found == (keys + 22) / 23);
    store_release(DIR);
    return ST_OK;
}

/* An old store has more in its indexes than a new one has memory, and all new ones together have
 * as much as the old one had. */
static void
data_opens_with_more_shards_of_less_memory_each(void **state)
{
    (void)state;
    memset(&job, 0, sizeof(job));
    struct sim_options options;
    sim_options_default(&options, 1);
    options.memory_bytes = MIB(20);
    struct sim *sim = sim_new(&options);
    (void)sim_node_new(sim, "10.0.0.1");
    job.shards = 1;
    job.write = true;
    assert_true(ok(sim_run(sim, 1, indexed_body, &job)) && ok(job.result));
    job.write = false;
    for (u32 round = 0; round < 2; round++) {
        job.shards = round == 0 ? SHARDS_MORE : 1;
        assert_true(ok(sim_run(sim, job.shards, indexed_body, &job)));
        if (!ok(job.result)) print_message("%s\n", job.error);
        assert_true(ok(job.result));
    }
    sim_free(sim);
}

/* The manifests of both stores change places. */
static status
swap_body(void *arg)
{
    char paths[2][LSM_PATH_BYTES + 16];
    for (u32 i = 0; i < 2; i++)
        snprintf(paths[i], sizeof(paths[i]), "%s/manifest", job.layout.shards[i].dir);
    status st = io_file_rename(paths[0], DIR "/aside");
    if (ok(st)) st = io_file_rename(paths[1], paths[0]);
    if (ok(st)) st = io_file_rename(DIR "/aside", paths[1]);
    return st;
}

static status
remove_store_body(void *arg)
{
    char *dir = job.layout.shards[1].dir;
    victim_count = 0;
    status st = io_dir_list(dir, name_note, dir);
    for (u32 i = 0; ok(st) && i < victim_count; i++)
        st = io_file_unlink(victims[i]);
    return ok(st) ? io_dir_remove(dir) : st;
}

static void
verification_misses_a_store_and_knows_one_from_another(void **state)
{
    (void)state;
    memset(&job, 0, sizeof(job));
    struct sim *sim = sim_make(1);
    assert_true(ok(run(sim, 2, true)));
    u64 figures[2];
    assert_true(ok(sim_run(sim, 1, swap_body, NULL)));
    reports = 0;
    assert_true(status_is(sim_run(sim, 1, verify_body, figures), ST_CORRUPT));
    assert_int_equal(reports, 2);
    assert_string_equal(reported, job.layout.shards[1].dir);

    assert_true(ok(sim_run(sim, 1, swap_body, NULL)));
    assert_true(ok(sim_run(sim, 1, verify_body, figures)));
    assert_true(ok(sim_run(sim, 1, remove_store_body, NULL)));
    reports = 0;
    assert_true(status_is(sim_run(sim, 1, verify_body, figures), ST_CORRUPT));
    assert_int_equal(reports, 1);
    assert_string_equal(reported, job.layout.shards[1].dir);
    sim_free(sim);
}

/* What the second store has lost, besides its manifest. */
enum loss { LOSS_NOTHING_ELSE, LOSS_FILES, LOSS_DIR, LOSS_KINDS };

static status
lose_body(void *arg)
{
    const enum loss *loss = arg;
    if (*loss == LOSS_DIR) return remove_store_body(NULL);
    char *dir = job.layout.shards[1].dir;
    victim_count = 0;
    status st = io_dir_list(dir, name_note, dir);
    for (u32 i = 0; ok(st) && i < victim_count; i++)
        if (*loss == LOSS_FILES || strcmp(strrchr(victims[i], '/'), "/manifest") == 0)
            st = io_file_unlink(victims[i]);
    return st;
}

static status
count_body(void *arg)
{
    victim_count = 0;
    status st = io_dir_list(job.layout.shards[1].dir, name_note, job.layout.shards[1].dir);
    *(u32 *)arg = victim_count;
    return status_is(st, ST_NOT_FOUND) ? ST_OK : st;
}

/* A store that NODE names had a manifest once: without it, it is not taken for a new one, whatever
 * else is there, and whether or not anything was ever written. Nor is it touched, or resharded. */
static void
a_store_that_was_emptied_is_refused(void **state)
{
    (void)state;
    for (u32 n = 0; n < 2 * LOSS_KINDS; n++) {
        enum loss loss = n % LOSS_KINDS;
        struct sim *sim = sim_make(n);
        assert_true(ok(run(sim, 2, n < LOSS_KINDS)));
        assert_true(ok(job.result));
        assert_true(ok(sim_run(sim, 1, lose_body, &loss)));
        u32 before = 0, after = 0;
        assert_true(ok(sim_run(sim, 1, count_body, &before)));
        assert_true(loss == LOSS_NOTHING_ELSE ? before > 0 : before == 0);
        for (u32 shards = 1; shards <= 3; shards++) {
            assert_true(ok(run(sim, shards, false)));
            assert_true(status_is(job.result, ST_CORRUPT));
            assert_non_null(strstr(job.error, "p2048-4095.1"));
            assert_non_null(strstr(job.error, "manifest"));
        }
        assert_true(ok(sim_run(sim, 1, count_body, &after)));
        assert_int_equal(after, before);

        char missing[sizeof(reported)];
        snprintf(missing, sizeof(missing), "%s%s", DIR "/p2048-4095.1",
                 loss == LOSS_DIR ? "" : "/manifest");
        u64 figures[2];
        reports = 0;
        assert_true(status_is(sim_run(sim, 1, verify_body, figures), ST_CORRUPT));
        assert_int_equal(reports, 1);
        assert_string_equal(reported, missing);
        sim_free(sim);
    }
}

static void
verification_of_a_foreign_directory_finds_nothing_of_ours(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    u64 figures[2];
    reports = 0;
    assert_true(ok(sim_run(sim, 1, file_body, (void *)(uintptr_t)DIR "/precious")));
    assert_true(status_is(sim_run(sim, 1, verify_body, figures), ST_NOT_FOUND));
    assert_int_equal(reports, 0);
    assert_int_equal(figures[0], 0);
    sim_free(sim);
}

static void
memory_needs_no_directory(void **state)
{
    (void)state;
    assert_true(ok(sim_run_main(1, 1, memory_body, &job)));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(data_opens_with_any_number_of_shards),
        cmocka_unit_test(no_power_cut_breaks_the_first_start),
        cmocka_unit_test(a_killed_first_start_costs_nothing_later),
        cmocka_unit_test(a_first_start_that_meets_errors_can_be_repeated),
        cmocka_unit_test(no_power_cut_breaks_a_change_of_the_core_count),
        cmocka_unit_test(foreign_directories_are_refused),
        cmocka_unit_test(another_nodes_directory_is_refused),
        cmocka_unit_test(long_names_and_a_directory_in_use_are_refused),
        cmocka_unit_test(a_made_up_id_stays),
        cmocka_unit_test(a_damaged_node_file_is_refused),
        cmocka_unit_test(stores_without_their_node_file_are_kept),
        cmocka_unit_test(manifests_without_node_file_and_tables_are_refused),
        cmocka_unit_test(data_opens_with_more_shards_of_less_memory_each),
        cmocka_unit_test(a_change_of_the_core_count_that_meets_errors_can_be_repeated),
        cmocka_unit_test(verification_finds_damage_in_every_kind_of_file),
        cmocka_unit_test(more_shards_than_partitions_are_refused),
        cmocka_unit_test(verification_tells_of_an_old_manifest_of_another_format),
        cmocka_unit_test(verification_misses_a_store_and_knows_one_from_another),
        cmocka_unit_test(a_store_that_was_emptied_is_refused),
        cmocka_unit_test(verification_of_a_foreign_directory_finds_nothing_of_ours),
        cmocka_unit_test(memory_needs_no_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
