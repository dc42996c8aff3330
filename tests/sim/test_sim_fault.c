/* SPDX-License-Identifier: MIT
 *
 * test_sim_fault.c -- the books of faults: numbers by family, what is switched off or left out,
 * what the test injects itself; and the machine's clocks, stalls and memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "io/fiber.h"
#include "io/file.h"
#include "io/net.h"
#include "io/sim.h"

#define WRITES 400u

/* ---- a process that writes and tells which writes failed ---- */

struct writes {
    bool failed[WRITES];
    bool synced[WRITES];
    bool no_sync;
    u8 last; /* byte of the last block */
};

static status
writes_main(void *arg)
{
    struct writes *writes = arg;
    struct io_file *file;
    status st = io_file_open("/a", IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (!ok(st)) return st;
    u8 *buffer = mem_alloc_aligned(io_budget(), 4096, IO_ALIGNMENT);
    if (buffer == NULL) return ST_NO_MEMORY;
    memset(buffer, 5, 4096);
    for (u64 i = 0; i < WRITES; i++) {
        if (i == WRITES - 1) buffer[4095] = writes->last;
        writes->failed[i] = !ok(io_file_write(file, IO_CLASS_LOG, buffer, 4096, i * 4096, false));
        writes->synced[i] = !writes->no_sync && ok(io_file_sync(file));
    }
    mem_free(io_budget(), buffer, 4096);
    io_file_close(file);
    return ST_OK;
}

static u32
count(const bool *set)
{
    u32 n = 0;
    for (u32 i = 0; i < WRITES; i++)
        n += set[i];
    return n;
}

struct listed {
    struct sim_fault_id ids[2 * WRITES];
    u64 times[2 * WRITES];
    u32 count;
};

static void
list_one(void *arg, struct sim_fault_id id, u64 time_ns, const char *detail)
{
    struct listed *listed = arg;
    assert_true(strlen(detail) > 0);
    assert_true(listed->count < ARRAY_COUNT(listed->ids));
    listed->ids[listed->count] = id;
    listed->times[listed->count++] = time_ns;
}

static struct writes
writes_run(const struct sim_options *options, struct listed *listed)
{
    static struct writes writes;
    memset(&writes, 0, sizeof(writes));
    struct sim *sim = sim_new(options);
    assert_true(ok(sim_run(sim, 1, writes_main, &writes)));
    *listed = (struct listed){.count = 0};
    sim_fault_each(sim, list_one, listed);
    u64 injected = 0;
    for (u32 family = 0; family < SIM_FAULT_COUNT; family++)
        injected += sim_fault_count(sim, (enum sim_fault)family);
    assert_int_equal(injected, listed->count);
    sim_free(sim);
    return writes;
}

static struct sim_options
failing_options(u64 seed)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    options.disk.write_error_ppm = 50000;
    options.disk.sync_error_ppm = 50000;
    return options;
}

static void
faults_are_numbered_by_family_in_the_order_of_their_time(void **state)
{
    (void)state;
    struct sim_options options = failing_options(1);
    struct listed listed;
    struct writes writes = writes_run(&options, &listed);
    u32 next[SIM_FAULT_COUNT] = {0};
    for (u32 i = 0; i < listed.count; i++) {
        assert_int_equal(listed.ids[i].number, next[listed.ids[i].family]++);
        if (i > 0) assert_true(listed.times[i - 1] <= listed.times[i]);
    }
    assert_true(next[SIM_FAULT_WRITE_ERROR] > 5 && next[SIM_FAULT_SYNC_ERROR] > 5);
    assert_int_equal(next[SIM_FAULT_WRITE_ERROR], count(writes.failed));
    assert_int_equal(next[SIM_FAULT_SYNC_ERROR], WRITES - count(writes.synced));
}

static void
a_family_that_is_off_does_not_move_the_others(void **state)
{
    (void)state;
    struct sim_options options = failing_options(2);
    struct listed listed;
    struct writes all = writes_run(&options, &listed);
    options.faults_off = (u64)1 << SIM_FAULT_SYNC_ERROR;
    struct writes some = writes_run(&options, &listed);
    assert_memory_equal(all.failed, some.failed, sizeof(all.failed));
    assert_int_equal(count(some.synced), WRITES);
}

static void
one_fault_can_be_left_out_and_the_rest_keeps_its_numbers(void **state)
{
    (void)state;
    struct sim_options options = failing_options(3);
    struct listed listed;
    struct writes all = writes_run(&options, &listed);
    const struct sim_fault_id skip[] = {{SIM_FAULT_WRITE_ERROR, 3}, {SIM_FAULT_SYNC_ERROR, 1}};
    options.faults_skip = skip;
    options.faults_skip_count = 2;
    struct listed rest;
    struct writes some = writes_run(&options, &rest);
    assert_int_equal(rest.count, listed.count - 2);
    u32 at = 0, writes_seen = 0;
    for (u32 i = 0; i < listed.count; i++) {
        struct sim_fault_id id = listed.ids[i];
        if (id.family == skip[0].family && id.number == skip[0].number) continue;
        if (id.family == skip[1].family && id.number == skip[1].number) continue;
        assert_true(rest.ids[at].family == id.family && rest.ids[at].number == id.number);
        at++;
    }
    /* The same writes fail but for the fourth of them. */
    for (u32 i = 0; i < WRITES; i++) {
        bool left_out = all.failed[i] && writes_seen == skip[0].number;
        assert_int_equal(some.failed[i], all.failed[i] && !left_out);
        writes_seen += all.failed[i];
    }
}

static void
faults_behind_the_first_few_can_be_left_out(void **state)
{
    (void)state;
    struct sim_options options = failing_options(3);
    struct listed listed, first;
    (void)writes_run(&options, &listed);
    assert_true(listed.count > 5);
    options.faults_max = 5;
    (void)writes_run(&options, &first);
    assert_int_equal(first.count, 5);
    assert_memory_equal(first.ids, listed.ids, 5 * sizeof(first.ids[0]));
}

static void
what_the_test_does_itself_is_numbered_too(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    const struct sim_fault_id skip[] = {{SIM_FAULT_POWER_CUT, 1}};
    options.faults_skip = skip;
    options.faults_skip_count = 1;
    options.faults_off = (u64)1 << SIM_FAULT_KILL;
    struct sim *sim = sim_new(&options);
    assert_true(sim_fault_inject(sim, SIM_FAULT_POWER_CUT));
    assert_false(sim_fault_inject(sim, SIM_FAULT_POWER_CUT)); /* left out */
    assert_true(sim_fault_inject(sim, SIM_FAULT_POWER_CUT));
    assert_false(sim_fault_inject(sim, SIM_FAULT_KILL)); /* off */
    assert_int_equal(sim_fault_count(sim, SIM_FAULT_POWER_CUT), 2);
    assert_int_equal(sim_fault_count(sim, SIM_FAULT_KILL), 0);
    struct listed listed = {.count = 0};
    sim_fault_each(sim, list_one, &listed);
    assert_int_equal(listed.count, 2);
    assert_int_equal(listed.ids[1].number, 2);
    sim_free(sim);
}

static void
every_family_has_a_name_of_its_own(void **state)
{
    (void)state;
    assert_string_equal(sim_fault_name(SIM_FAULT_SYNC_ERROR), "sync-error");
    for (u32 i = 0; i < SIM_FAULT_COUNT; i++) {
        assert_true(strlen(sim_fault_name((enum sim_fault)i)) > 1);
        for (u32 j = 0; j < i; j++)
            assert_string_not_equal(sim_fault_name((enum sim_fault)i),
                                    sim_fault_name((enum sim_fault)j));
    }
}

/* ---- disks ---- */

struct file_use {
    u64 longest_ns;   /* of one request */
    u32 refused;      /* writes: no space */
    u32 last_refused; /* the last write that was */
    u32 read_errors, mismatches;
    bool reads;
};

static MAY_YIELD void
file_use_one(struct file_use *use, struct io_file *file, u8 *buffer, u64 i)
{
    u64 start_ns = io_now_ns();
    memset(buffer, (int)(i % 251), 4096);
    status st = io_file_write(file, IO_CLASS_LOG, buffer, 4096, i * 4096, true);
    use->longest_ns = MAX(use->longest_ns, io_now_ns() - start_ns);
    if (status_is(st, ST_NO_SPACE)) {
        use->refused++;
        fiber_sleep_ns(50 * NS_PER_MS);
        return;
    }
    if (!use->reads) return;
    for (u32 again = 0; again < 2; again++) {
        st = io_file_read(file, IO_CLASS_READ, buffer, 4096, i * 4096);
        use->read_errors += !ok(st);
        bool same = ok(st);
        for (u32 at = 0; same && at < 4096; at++)
            same = buffer[at] == (u8)(i % 251);
        use->mismatches += ok(st) && !same;
    }
}

static status
file_use_main(void *arg)
{
    struct file_use *use = arg;
    struct io_file *file;
    status st = io_file_open("/a", IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (!ok(st)) return st;
    u8 *buffer = mem_alloc_aligned(io_budget(), 4096, IO_ALIGNMENT);
    if (buffer == NULL) return ST_NO_MEMORY;
    for (u64 i = 0; i < WRITES; i++)
        file_use_one(use, file, buffer, i);
    mem_free(io_budget(), buffer, 4096);
    io_file_close(file);
    return ST_OK;
}

static void
some_requests_stall_for_seconds(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    options.disk.stall_ppm = 50000;
    options.disk.stall_ns = 30 * NS_PER_S;
    struct sim *sim = sim_new(&options);
    struct file_use use = {.reads = true};
    assert_true(ok(sim_run(sim, 1, file_use_main, &use)));
    assert_true(sim_fault_count(sim, SIM_FAULT_DISK_STALL) > 20);
    assert_in_range(use.longest_ns, 15 * NS_PER_S, 31 * NS_PER_S);
    assert_int_equal(use.mismatches + use.read_errors, 0);
    sim_free(sim);
}

static void
space_runs_out_by_chance_and_comes_back(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    options.disk.no_space_ppm = 20000;
    options.disk.no_space_ns_max = NS_PER_S;
    struct sim *sim = sim_new(&options);
    struct file_use use = {.refused = 0};
    assert_true(ok(sim_run(sim, 1, file_use_main, &use)));
    assert_true(sim_fault_count(sim, SIM_FAULT_NO_SPACE) > 2);
    assert_true(use.refused > 5 && use.refused < WRITES);
    sim_free(sim);
}

struct damage_count {
    u32 count[SIM_FAULT_COUNT];
    u32 there;
};

static void
damage_count_one(void *arg, const struct sim_damage *damage)
{
    struct damage_count *seen = arg;
    assert_string_equal(damage->path, "/a");
    assert_non_null(damage->node);
    seen->count[damage->id.family]++;
    seen->there += damage->there;
}

static void
damage_comes_by_chance_shows_in_every_read_and_is_in_the_books(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim_disk_options *disk = &options.disk;
    disk->bit_rot_ppm = disk->latent_ppm = 20000;
    disk->lost_write_ppm = disk->misdirected_ppm = 30000;
    struct sim *sim = sim_new(&options);
    struct file_use use = {.reads = true};
    assert_true(ok(sim_run(sim, 1, file_use_main, &use)));
    struct damage_count seen = {.there = 0};
    sim_damage_each(sim, damage_count_one, &seen);
    u64 rot = sim_fault_count(sim, SIM_FAULT_BIT_ROT);
    u64 latent = sim_fault_count(sim, SIM_FAULT_LATENT);
    assert_true(rot > 4 && latent > 4);
    assert_int_equal(seen.count[SIM_FAULT_BIT_ROT], rot);
    assert_int_equal(seen.count[SIM_FAULT_LATENT], latent);
    assert_int_equal(seen.count[SIM_FAULT_LOST_WRITE], sim_fault_count(sim, SIM_FAULT_LOST_WRITE));
    assert_int_equal(seen.count[SIM_FAULT_MISDIRECTED],
                     2 * sim_fault_count(sim, SIM_FAULT_MISDIRECTED)); /* right and wrong place */
    assert_true(seen.count[SIM_FAULT_LOST_WRITE] > 4 && seen.count[SIM_FAULT_MISDIRECTED] > 4);
    assert_true(use.read_errors >= latent && use.mismatches > 10 && seen.there > 20);
    sim_free(sim);
}

static void
what_is_stored_is_spoiled_while_nobody_asks(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1"); /* the one that sim_run takes */
    assert_false(sim_node_spoil(node, SIM_FAULT_BIT_ROT)); /* nothing is stored */
    struct file_use use = {.reads = true};
    assert_true(ok(sim_run(sim, 1, file_use_main, &use)));
    assert_int_equal(use.mismatches + use.read_errors, 0);
    assert_true(sim_node_spoil(node, SIM_FAULT_BIT_ROT));
    assert_true(sim_node_spoil(node, SIM_FAULT_LATENT));
    struct damage_count seen = {.there = 0};
    sim_damage_each(sim, damage_count_one, &seen);
    assert_int_equal(seen.there, 2);
    assert_true(seen.count[SIM_FAULT_BIT_ROT] == 1 && seen.count[SIM_FAULT_LATENT] == 1);
    assert_int_equal(sim_fault_count(sim, SIM_FAULT_BIT_ROT), 1);
    sim_free(sim);

    options.faults_off = 1ull << SIM_FAULT_LATENT;
    sim = sim_new(&options);
    node = sim_node_new(sim, "10.0.0.1");
    assert_true(ok(sim_run(sim, 1, file_use_main, &use)));
    assert_false(sim_node_spoil(node, SIM_FAULT_LATENT));
    assert_int_equal(sim_fault_count(sim, SIM_FAULT_LATENT), 0);
    sim_free(sim);
}

static status
nothing_main(void *arg)
{
    (void)arg;
    return ST_OK;
}

static bool
torn_run(u64 off, u64 seed)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    options.disk.torn_ppm = 300000;
    options.faults_off = off;
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, nothing_main, NULL)));
    sim_crash_at(sim, SIM_POINT_WRITE, 50);
    struct file_use use = {.refused = 0};
    assert_true(status_is(sim_run(sim, 1, file_use_main, &use), ST_CANCELED));
    u64 torn = sim_fault_count(sim, SIM_FAULT_TORN);
    assert_true(torn <= 1); /* one file, one power cut */
    sim_free(sim);
    return torn > 0;
}

static void
sectors_under_way_at_a_power_cut_are_torn_unless_that_is_off(void **state)
{
    (void)state;
    u32 torn = 0;
    for (u64 seed = 1; seed <= 20; seed++) {
        torn += torn_run(0, seed);
        assert_false(torn_run((u64)1 << SIM_FAULT_TORN, seed));
    }
    assert_true(torn > 5);
}

/* ---- listings, sizes, free space ---- */

struct looks {
    u32 whole, ended_early, names, told, not_told, space_told, space_not_told;
};

static void
count_name(void *arg, const char *name)
{
    (void)name;
    ++*(u32 *)arg;
}

static MAY_YIELD status
looks_main(void *arg)
{
    struct looks *looks = arg;
    CHECK(ok(io_dir_make("/data")));
    struct io_file *file = NULL;
    for (u32 i = 0; i < 6; i++) {
        char path[32];
        snprintf(path, sizeof(path), "/data/%u", i);
        if (file != NULL) io_file_close(file);
        CHECK(ok(io_file_open(path, IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    }
    for (u32 i = 0; i < 400; i++) {
        u32 names = 0;
        status st = io_dir_list("/data", count_name, &names);
        CHECK(ok(st) ? names == 6 : status_is(st, ST_IO_ERROR) && names <= 6);
        looks->whole += ok(st);
        looks->ended_early += !ok(st) && names > 0 && names < 6;
        u64 size = 1, disk_free, total;
        st = io_file_size(file, &size);
        CHECK(ok(st) ? size == 0 : status_is(st, ST_IO_ERROR));
        *(ok(st) ? &looks->told : &looks->not_told) += 1;
        st = io_disk_free("/data", &disk_free, &total);
        *(ok(st) ? &looks->space_told : &looks->space_not_told) += 1;
    }
    io_file_close(file);
    return ST_OK;
}

static void
listings_sizes_and_free_space_fail_by_chance(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 4);
    options.disk.look_error_ppm = 100000;
    struct looks looks = {.whole = 0};
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, looks_main, &looks)));
    u64 failed = 400 - looks.whole + looks.not_told + looks.space_not_told;
    assert_int_equal(sim_fault_count(sim, SIM_FAULT_LOOK_ERROR), failed);
    sim_free(sim);
    assert_true(looks.whole > 300 && looks.told > 300 && looks.space_told > 300);
    assert_true(looks.ended_early > 5 && looks.not_told > 10 && looks.space_not_told > 10);
}

/* ---- names ---- */

struct names {
    u32 done, refused, done_though;
};

struct sought {
    const char *name;
    bool there;
};

static void
seek_name(void *arg, const char *name)
{
    struct sought *sought = arg;
    if (strcmp(name, sought->name) == 0) sought->there = true;
}

static MAY_YIELD bool
name_there(const char *name)
{
    struct sought sought = {.name = name};
    CHECK(ok(io_dir_list("/", seek_name, &sought)));
    return sought.there;
}

/* A request that said st: whether its effect can be seen may be open only when it failed. */
static void
name_note(struct names *names, status st, bool seen)
{
    CHECK(ok(st) ? seen : status_is(st, ST_IO_ERROR));
    names->done += ok(st);
    names->refused += !ok(st) && !seen;
    names->done_though += !ok(st) && seen;
}

static MAY_YIELD status
names_main(void *arg)
{
    struct names *names = arg; /* of making, linking, renaming, removing */
    for (u32 i = 0; i < 1000; i++) {
        char made[16], linked[16], renamed[16];
        snprintf(made, sizeof(made), "/a%u", i);
        snprintf(linked, sizeof(linked), "/b%u", i);
        snprintf(renamed, sizeof(renamed), "/c%u", i);
        struct io_file *file = NULL;
        status st = io_file_open(made, IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
        CHECK(ok(st) == (file != NULL));
        name_note(&names[0], st, name_there(made + 1));
        io_file_close(file);
        if (!name_there(made + 1)) continue;
        st = io_file_link(made, linked);
        name_note(&names[1], st, name_there(linked + 1));
        st = io_file_rename(made, renamed);
        name_note(&names[2], st, !name_there(made + 1));
        CHECK(name_there(renamed + 1) != name_there(made + 1));
        const char *left = name_there(made + 1) ? made : renamed;
        st = io_file_unlink(left);
        name_note(&names[3], st, !name_there(left + 1));
        for (const char *path = "abc"; *path != '\0'; path++) {
            char rest[16];
            snprintf(rest, sizeof(rest), "/%c%u", *path, i);
            while (name_there(rest + 1))
                (void)!ok(io_file_unlink(rest));
        }
    }
    return ST_OK;
}

static void
names_are_not_made_renamed_or_removed_by_chance_or_are_though_it_was_refused(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 5);
    options.disk.name_error_ppm = 200000;
    struct names names[4] = {{0}};
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, names_main, names)));
    u64 failed = 0;
    for (u32 i = 0; i < ARRAY_COUNT(names); i++) {
        failed += names[i].refused + names[i].done_though;
        assert_true(names[i].done > 500);
        assert_in_range(names[i].refused, 2 * names[i].done_though, 6 * names[i].done_though);
    }
    assert_true(sim_fault_count(sim, SIM_FAULT_NAME_ERROR) >= failed);
    sim_free(sim);

    /* None of it when the faults have ended, or when the family is off. */
    for (u32 i = 0; i < 2; i++) {
        struct names none[4] = {{0}};
        if (i == 1) options.faults_off = (u64)1 << SIM_FAULT_NAME_ERROR;
        sim = sim_new(&options);
        if (i == 0) sim_faults_end(sim);
        assert_true(ok(sim_run(sim, 1, names_main, none)));
        for (u32 k = 0; k < ARRAY_COUNT(none); k++)
            assert_int_equal(none[k].done, 1000);
        sim_free(sim);
    }
}

/* ---- transfers that stop short ---- */

#define SHORT_BYTES (64u << 10)

static status
short_main(void *arg)
{
    u32 *refused = arg;
    struct io_file *file;
    status st = io_file_open("/a", IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (!ok(st)) return st;
    u8 *in = mem_alloc_aligned(io_budget(), SHORT_BYTES, IO_ALIGNMENT);
    u8 *out = mem_alloc_aligned(io_budget(), SHORT_BYTES, IO_ALIGNMENT);
    CHECK(in != NULL && out != NULL);
    for (u32 i = 0; i < 200; i++) {
        for (u32 k = 0; k < SHORT_BYTES; k++)
            in[k] = (u8)(k * 7 + k / 253 + i);
        st = io_file_write(file, IO_CLASS_LOG, in, SHORT_BYTES, 0, i % 2 == 0);
        if (!ok(st)) {
            refused[0]++;
            continue;
        }
        memset(out, 0, SHORT_BYTES);
        st = io_file_read(file, IO_CLASS_READ, out, SHORT_BYTES, 0);
        if (!ok(st))
            refused[1]++;
        else
            CHECK(memcmp(in, out, SHORT_BYTES) == 0);
    }
    /* What ends within the file, and what does not. */
    CHECK(status_is(io_file_read(file, IO_CLASS_READ, out, SHORT_BYTES, 4096), ST_END));
    mem_free(io_budget(), in, SHORT_BYTES);
    mem_free(io_budget(), out, SHORT_BYTES);
    io_file_close(file);
    return ST_OK;
}

static void
transfers_stop_short_by_chance_and_go_on_where_they_stopped(void **state)
{
    (void)state;
    struct sim_options options;
    for (u64 seed = 4; seed < 6; seed++) { /* reads of whole pages, and of sectors */
        sim_options_default(&options, seed);
        options.disk.short_ppm = 500000;
        u32 refused[2] = {0};
        struct sim *sim = sim_new(&options);
        assert_true(ok(sim_run(sim, 1, short_main, refused)));
        assert_int_equal(refused[0] + refused[1], 0);
        assert_true(sim_fault_count(sim, SIM_FAULT_SHORT) > 200);
        assert_true(sim_mark_count(sim, "io.core_op.part") > 200);
        assert_true(sim_mark_count(sim, "io.core_op.block_again") > 50);
        sim_free(sim);
    }

    /* The rest may fail: more often than a request that is done at once. */
    options.disk.read_error_ppm = options.disk.write_error_ppm = 20000;
    u32 some[2] = {0}, whole[2] = {0};
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, short_main, some)));
    sim_free(sim);
    options.faults_off = (u64)1 << SIM_FAULT_SHORT;
    sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, short_main, whole)));
    assert_int_equal(sim_fault_count(sim, SIM_FAULT_SHORT), 0);
    sim_free(sim);
    assert_true(whole[0] > 0 && whole[1] > 0);
    assert_true(some[0] > whole[0] && some[1] > whole[1]);
}

/* One write of many blocks; or a look at what is there. */
static status
short_write_main(void *arg)
{
    u8 *data = arg;
    struct io_file *file;
    status st = io_file_open("/a", IO_OPEN_WRITE, &file);
    if (status_is(st, ST_NOT_FOUND)) st = io_file_open("/a", IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (ok(st)) st = io_dir_sync("/");
    CHECK(ok(st));
    CHECK(ok(io_file_write(file, IO_CLASS_LOG, data, SHORT_BYTES, 0, true)));
    io_file_close(file);
    return ST_OK;
}

static status
short_read_main(void *arg)
{
    struct io_file *file;
    CHECK(ok(io_file_open("/a", IO_OPEN_READ, &file)));
    CHECK(ok(io_file_read(file, IO_CLASS_READ, arg, SHORT_BYTES, 0)));
    io_file_close(file);
    return ST_OK;
}

static void
a_power_cut_between_the_parts_of_a_write_leaves_the_first(void **state)
{
    (void)state;
    static ALIGNED(IO_ALIGNMENT) u8 data[SHORT_BYTES];
    u32 part = 0;
    for (u64 seed = 1; seed <= 60; seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        options.disk.short_ppm = 1000000;
        struct sim *sim = sim_new(&options);
        memset(data, 1, SHORT_BYTES);
        assert_true(ok(sim_run(sim, 1, short_write_main, data)));
        memset(data, 2, SHORT_BYTES);
        sim_crash_at(sim, SIM_POINT_WRITE, 1); /* when the second part begins */
        assert_false(ok(sim_run(sim, 1, short_write_main, data)));
        sim_faults_end(sim);
        assert_true(ok(sim_run(sim, 1, short_read_main, data)));
        sim_free(sim);
        for (u32 i = 0; i < SHORT_BYTES; i++)
            assert_true(i < IO_ALIGNMENT ? data[i] == 2 : data[i] == 1 || data[i] == 2);
        if (memchr(data, 1, SHORT_BYTES) != NULL) part++;
    }
    assert_true(part > 30);
}

/* ---- writes that outlive their process ---- */

static bool late_written; /* the next process writes to the file, too */

/* What is there now, and what is there when the disk has done all. */
static status
late_read_main(void *arg)
{
    u8 *data = arg;
    static const ALIGNED(IO_ALIGNMENT) u8 zeros[SHORT_BYTES];
    if (late_written) {
        struct io_file *file;
        CHECK(ok(io_file_open("/a", IO_OPEN_WRITE, &file)));
        CHECK(ok(io_file_write(file, IO_CLASS_LOG, zeros, SHORT_BYTES, SHORT_BYTES, true)));
        io_file_close(file);
    }
    CHECK(ok(short_read_main(data)));
    fiber_sleep_ns(6 * NS_PER_S);
    return short_read_main(data + SHORT_BYTES);
}

static bool
all_are(const u8 *data, u8 byte)
{
    return data[0] == byte && memcmp(data, data + 1, SHORT_BYTES - 1) == 0;
}

static void
what_a_killed_process_wrote_may_land_in_the_life_of_the_next(void **state)
{
    (void)state;
    static ALIGNED(IO_ALIGNMENT) u8 data[2 * SHORT_BYTES];
    enum { LATE, UNTOUCHED, AT_ONCE, CUT, CALM, CASES };
    for (u64 seed = 1; seed <= 5 * CASES; seed++) {
        u32 which = (u32)(seed % CASES);
        struct sim_options options;
        sim_options_default(&options, seed);
        options.disk.late_ppm = 1000000;
        if (which == AT_ONCE) options.faults_off = 1ull << SIM_FAULT_LATE_WRITE;
        struct sim *sim = sim_new(&options);
        memset(data, 1, SHORT_BYTES);
        assert_true(ok(sim_run(sim, 1, short_write_main, data)));
        memset(data, 2, SHORT_BYTES);
        sim_crash_keeps_all_set(sim, true);
        sim_crash_at(sim, SIM_POINT_WRITE, 0);
        assert_false(ok(sim_run(sim, 1, short_write_main, data)));
        assert_true(sim_crashed(sim));
        sim_faults_clear(sim);
        memset(data, 3, SHORT_BYTES); /* that memory is somebody else's by now */
        if (which == CUT) {           /* before anything else is read or written */
            sim_crash_keeps_all_set(sim, false);
            sim_crash_at(sim, SIM_POINT_EVENT, 0);
            assert_false(ok(sim_run(sim, 1, late_read_main, data)));
            sim_faults_clear(sim);
        }
        if (which == CALM) {
            sim_faults_end(sim);
            sim_run_until_ns(sim, sim_now_ns(sim) + options.disk.latency_ns_max);
        }
        late_written = which == LATE;
        assert_true(ok(sim_run(sim, 1, late_read_main, data)));
        late_written = false;
        assert_int_equal(sim_fault_count(sim, SIM_FAULT_LATE_WRITE), which != AT_ONCE);
        sim_free(sim);
        if (which == AT_ONCE) {
            assert_true(memchr(data, 1, SHORT_BYTES) != NULL);
            assert_true(memchr(data, 2, SHORT_BYTES) != NULL);
            assert_memory_equal(data, data + SHORT_BYTES, SHORT_BYTES);
        } else {
            assert_true(all_are(data, 1));
            assert_true(all_are(data + SHORT_BYTES, which == LATE ? 2 : 1));
        }
    }
    /* One that is under way at the end of all is forgotten. */
    struct sim_options options;
    sim_options_default(&options, 1);
    options.disk.late_ppm = 1000000;
    struct sim *sim = sim_new(&options);
    sim_crash_keeps_all_set(sim, true);
    sim_crash_at(sim, SIM_POINT_WRITE, 0);
    assert_false(ok(sim_run(sim, 1, short_write_main, data)));
    sim_free(sim);
}

/* ---- what seeds draw ---- */

static void
seeds_draw_honest_faults_and_no_damage_unless_asked(void **state)
{
    (void)state;
    u32 space = 0, alloc = 0, stall = 0, half_open = 0, single = 0, shorts = 0, damage = 0;
    for (u64 seed = 1; seed <= 1000; seed++) {
        struct sim_options options;
        sim_options_swarm(&options, seed);
        struct sim_disk_options *disk = &options.disk;
        assert_int_equal(disk->bit_rot_ppm + disk->latent_ppm, 0);
        assert_int_equal(disk->misdirected_ppm + disk->lost_write_ppm, 0);
        space += disk->no_space_ppm > 0;
        alloc += options.alloc_ppm > 0;
        stall += options.shard_stall_ppm > 0;
        half_open += options.net.half_open_ppm > 0;
        single += options.net.single_bytes;
        shorts += disk->short_ppm > 0;
        sim_options_beyond(&options, seed);
        u32 families = (disk->bit_rot_ppm > 0) + (disk->latent_ppm > 0) +
                       (disk->misdirected_ppm > 0) + (disk->lost_write_ppm > 0);
        assert_true(families > 0);
        damage += families;
    }
    assert_true(space > 50 && alloc > 50 && stall > 50 && half_open > 50 && single > 5);
    assert_in_range(shorts, 200, 300);
    assert_in_range(damage, 1500, 2500);
}

/* ---- machines ---- */

struct clocks {
    u64 wall_ms, now_ns;
    u64 turns;
    bool stop;
};

static status
clock_main(void *arg)
{
    struct clocks *clocks = arg;
    while (!io_stopping()) {
        clocks->wall_ms = io_wall_ms();
        clocks->now_ns = io_now_ns();
        clocks->turns++;
        fiber_sleep_ns(NS_PER_MS);
    }
    return ST_OK;
}

static struct sim_node *
clock_start(struct sim *sim, struct clocks *clocks)
{
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    struct io_node_config config = {
        .shard_count = 1, .memory_bytes = MIB(16), .shard_main = clock_main, .arg = clocks};
    assert_true(ok(sim_node_start(node, &config)));
    return node;
}

static void
pass(struct sim *sim, u64 ns)
{
    sim_run_until_ns(sim, sim_now_ns(sim) + ns);
}

static void
the_wall_clock_steps_both_ways_and_drifts_but_time_itself_does_not(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    struct clocks clocks = {0};
    struct sim_node *node = clock_start(sim, &clocks);
    pass(sim, NS_PER_S);
    struct clocks first = clocks;
    sim_node_clock_step(node, -3600 * 1000);
    pass(sim, NS_PER_S);
    struct clocks second = clocks;
    assert_in_range(first.wall_ms - second.wall_ms, 3600 * 1000 - 1010, 3600 * 1000 - 990);
    assert_in_range(second.now_ns - first.now_ns, 990 * NS_PER_MS, 1010 * NS_PER_MS);
    sim_node_clock_step(node, 60 * 1000);
    pass(sim, NS_PER_S);
    struct clocks third = clocks;
    assert_in_range(third.wall_ms - second.wall_ms, 61 * 1000 - 10, 61 * 1000 + 10);
    sim_node_clock_drift_set(node, 100000); /* fast by a tenth */
    pass(sim, 100 * NS_PER_S);
    struct clocks fourth = clocks;
    assert_in_range(fourth.wall_ms - third.wall_ms, 110 * 1000 - 20, 110 * 1000 + 20);
    sim_node_clock_drift_set(node, -100000);
    pass(sim, 100 * NS_PER_S);
    assert_in_range(clocks.wall_ms - fourth.wall_ms, 90 * 1000 - 20, 90 * 1000 + 20);
    assert_in_range(clocks.now_ns - fourth.now_ns, 100 * NS_PER_S - 10 * NS_PER_MS,
                    100 * NS_PER_S + 10 * NS_PER_MS);
    sim_free(sim);
}

static void
a_stalled_shard_does_nothing_until_the_stall_ends(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    struct clocks clocks = {0};
    struct sim_node *node = clock_start(sim, &clocks);
    pass(sim, 10 * NS_PER_MS);
    sim_node_shard_stall(node, 0, NS_PER_S);
    u64 turns = clocks.turns;
    pass(sim, NS_PER_S - NS_PER_MS);
    assert_int_equal(clocks.turns, turns);
    pass(sim, 10 * NS_PER_MS);
    assert_true(clocks.turns > turns);
    sim_node_shard_stall(node, 0, 100 * NS_PER_S);
    turns = clocks.turns;
    pass(sim, NS_PER_S);
    assert_int_equal(clocks.turns, turns);
    sim_faults_end(sim);
    pass(sim, 10 * NS_PER_MS);
    assert_true(clocks.turns > turns);
    sim_free(sim);
}

static void
shards_stall_by_chance(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    options.shard_stall_ppm = 20000;
    options.shard_stall_ns_max = 2 * NS_PER_S;
    struct sim *sim = sim_new(&options);
    struct clocks clocks = {0};
    clock_start(sim, &clocks);
    pass(sim, 100 * NS_PER_S);
    u64 stalls = sim_fault_count(sim, SIM_FAULT_SHARD_STALL);
    assert_true(stalls > 20);
    assert_true(clocks.turns < 20000); /* about a second each: most of the time is gone */
    sim_faults_end(sim);
    u64 turns = clocks.turns;
    pass(sim, 10 * NS_PER_S);
    assert_int_equal(sim_fault_count(sim, SIM_FAULT_SHARD_STALL), stalls);
    assert_true(clocks.turns > turns + 8000);
    sim_free(sim);
}

/* ---- memory ---- */

struct allocations {
    u32 before, after; /* refused */
    u64 bytes, used, peak;
    struct sim_node *node;
};

static u32
allocate_some(void)
{
    u32 refused = 0;
    for (u32 i = 0; i < 1000; i++) {
        void *block = mem_alloc(io_budget(), 100);
        refused += block == NULL;
        mem_free(io_budget(), block, 100);
    }
    return refused;
}

static status
never_opened(struct io_conn *conn, void *arg)
{
    (void)conn;
    (void)arg;
    return ST_UNSUPPORTED;
}

static status
allocate_main(void *arg)
{
    struct allocations *seen = arg;
    seen->before = allocate_some();
    static const struct io_conn_events events = {.opened = never_opened};
    struct io_listener *listener;
    status st = io_listen("10.0.0.1", 7000, &events, NULL, &listener);
    if (!ok(st)) return st;
    seen->after = allocate_some();
    u8 *block = NULL;
    for (u32 i = 0; block == NULL && i < 100; i++)
        block = mem_alloc(io_budget(), 100000);
    seen->bytes = sim_node_memory_bytes(seen->node);
    sim_node_shard_memory(seen->node, 0, &seen->used, &seen->peak);
    mem_free(io_budget(), block, 100000);
    io_listener_close(listener);
    return ST_OK;
}

static void
allocations_are_refused_by_chance_but_not_before_the_node_listens(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    options.alloc_ppm = 100000;
    struct sim *sim = sim_new(&options);
    struct allocations seen = {.node = sim_node_new(sim, "10.0.0.1")};
    assert_true(ok(sim_run(sim, 1, allocate_main, &seen)));
    assert_int_equal(seen.before, 0);
    assert_in_range(seen.after, 50, 150);
    assert_true(sim_fault_count(sim, SIM_FAULT_ALLOC) >= seen.after);
    assert_true(seen.bytes >= 100000 && seen.used >= 100000 && seen.peak >= seen.used);
    assert_int_equal(sim_node_memory_bytes(seen.node), 0);
    sim_node_shard_memory(seen.node, 0, &seen.used, &seen.peak);
    assert_int_equal(seen.used, 0);
    sim_free(sim);
}

static status
kept_main(void *arg)
{
    status *seen = arg;
    struct io_file *file;
    status st = io_file_open("/a", IO_OPEN_READ, &file);
    if (!ok(st)) return st;
    u8 *buffer = mem_alloc_aligned(io_budget(), 4096, IO_ALIGNMENT);
    if (buffer == NULL) return ST_NO_MEMORY;
    *seen = io_file_read(file, IO_CLASS_READ, buffer, 4096, 0);
    if (ok(*seen) && buffer[17] != 5) *seen = ST_CORRUPT;
    mem_free(io_budget(), buffer, 4096);
    io_file_close(file);
    return ST_OK;
}

static void
a_process_that_cannot_start_for_want_of_memory_leaves_the_disk_alone(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 20; seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        struct sim *sim = sim_new(&options);
        static struct writes writes = {.no_sync = true}; /* nothing is durable */
        assert_true(ok(sim_run(sim, 1, writes_main, &writes)));
        sim_fail_at(sim, SIM_POINT_ALLOC, 0, 1, ST_NO_MEMORY);
        status seen = ST_INVALID;
        assert_true(status_is(sim_run(sim, 1, kept_main, &seen), ST_NO_MEMORY));
        assert_true(ok(sim_run(sim, 1, kept_main, &seen)));
        assert_true(ok(seen));
        sim_free(sim);
    }
}

/* ---- the trace ---- */

static u64
hash_run(u64 seed, u8 last)
{
    struct sim_options options;
    sim_options_swarm(&options, seed);
    struct sim *sim = sim_new(&options);
    static struct writes writes;
    writes = (struct writes){.last = last};
    assert_true(ok(sim_run(sim, 1, writes_main, &writes)));
    u64 hash = sim_trace_hash(sim);
    sim_free(sim);
    return hash;
}

static void
the_trace_tells_seeds_and_single_bytes_on_the_disk_apart(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 20; seed++) {
        u64 hash = hash_run(seed, 5);
        assert_true(hash == hash_run(seed, 5));
        assert_false(hash == hash_run(seed, 6));
        assert_false(hash == hash_run(seed + 1, 5));
    }
}

static void
the_last_events_can_be_printed(void **state)
{
    (void)state;
    char path[] = "/tmp/test_sim_fault.XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    fflush(stderr);
    int kept = dup(2);
    assert_true(kept >= 0 && dup2(file, 2) == 2);

    struct sim_options options = failing_options(5);
    struct sim *sim = sim_new(&options);
    static struct writes writes;
    status st = sim_run(sim, 1, writes_main, &writes);
    sim_trace_dump(sim);
    sim_trace_print_set(sim, true);
    status again = sim_run(sim, 1, writes_main, &writes);
    sim_free(sim);

    fflush(stderr);
    assert_true(dup2(kept, 2) == 2);
    close(kept);
    static char text[1 << 20];
    ssize_t size = pread(file, text, sizeof(text) - 1, 0);
    close(file);
    unlink(path);
    assert_true(ok(st) && status_is(again, ST_EXISTS) && size > 0);
    text[size] = '\0';
    assert_non_null(strstr(text, " 0/0 turn\n"));
    assert_non_null(strstr(text, " 0/0 disk write "));
    assert_non_null(strstr(text, "fault write-error "));
    assert_non_null(strstr(text, " 0/0 disk failed create ")); /* of the second run */
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(faults_are_numbered_by_family_in_the_order_of_their_time),
        cmocka_unit_test(a_family_that_is_off_does_not_move_the_others),
        cmocka_unit_test(one_fault_can_be_left_out_and_the_rest_keeps_its_numbers),
        cmocka_unit_test(faults_behind_the_first_few_can_be_left_out),
        cmocka_unit_test(what_the_test_does_itself_is_numbered_too),
        cmocka_unit_test(every_family_has_a_name_of_its_own),
        cmocka_unit_test(transfers_stop_short_by_chance_and_go_on_where_they_stopped),
        cmocka_unit_test(a_power_cut_between_the_parts_of_a_write_leaves_the_first),
        cmocka_unit_test(what_a_killed_process_wrote_may_land_in_the_life_of_the_next),
        cmocka_unit_test(seeds_draw_honest_faults_and_no_damage_unless_asked),
        cmocka_unit_test(some_requests_stall_for_seconds),
        cmocka_unit_test(space_runs_out_by_chance_and_comes_back),
        cmocka_unit_test(damage_comes_by_chance_shows_in_every_read_and_is_in_the_books),
        cmocka_unit_test(what_is_stored_is_spoiled_while_nobody_asks),
        cmocka_unit_test(sectors_under_way_at_a_power_cut_are_torn_unless_that_is_off),
        cmocka_unit_test(listings_sizes_and_free_space_fail_by_chance),
        cmocka_unit_test(
            names_are_not_made_renamed_or_removed_by_chance_or_are_though_it_was_refused),
        cmocka_unit_test(the_wall_clock_steps_both_ways_and_drifts_but_time_itself_does_not),
        cmocka_unit_test(a_stalled_shard_does_nothing_until_the_stall_ends),
        cmocka_unit_test(shards_stall_by_chance),
        cmocka_unit_test(allocations_are_refused_by_chance_but_not_before_the_node_listens),
        cmocka_unit_test(a_process_that_cannot_start_for_want_of_memory_leaves_the_disk_alone),
        cmocka_unit_test(the_trace_tells_seeds_and_single_bytes_on_the_disk_apart),
        cmocka_unit_test(the_last_events_can_be_printed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
