/* SPDX-License-Identifier: MIT
 *
 * test_sim_disk.c -- the simulated disk keeps what it promised and forgets the rest: sectors,
 * sizes, names, failed syncs, full disks, locks; and what a disk should never do.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include <sys/resource.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "io/file.h"
#include "io/sim_disk.h"

static u8 ones[SIM_PAGE_BYTES], twos[SIM_PAGE_BYTES], page[SIM_PAGE_BYTES];

static u32 torn_ppm;

static struct sim_disk *
disk_new(u64 seed)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    options.disk.capacity_bytes = 64 * SIM_PAGE_BYTES;
    options.disk.evict_chance = seed % 2 * 16;
    options.disk.torn_ppm = torn_ppm;
    memset(ones, 1, sizeof(ones));
    memset(twos, 2, sizeof(twos));
    struct sim_disk *disk = sim_disk_new(&options.disk, seed);
    assert_true(ok(sim_disk_dir_make(disk, "/d")));
    return disk;
}

static void
dir_sync(struct sim_disk *disk, const char *path)
{
    u64 order;
    assert_true(ok(sim_disk_dir_sync_begin(disk, path, &order)));
    sim_disk_dir_sync_end(disk, path, order);
}

static struct sim_inode *
create(struct sim_disk *disk, const char *path)
{
    struct sim_inode *inode;
    assert_true(ok(sim_disk_open(disk, path, IO_OPEN_CREATE, &inode)));
    return inode;
}

static void
put(struct sim_inode *inode, const u8 *data, u64 offset, bool durable)
{
    struct sim_write write;
    assert_true(ok(sim_inode_write_begin(inode, &write, data, SIM_PAGE_BYTES, offset)));
    sim_inode_write_end(&write, durable);
}

static void
file_sync(struct sim_inode *inode)
{
    sim_inode_sync_end(inode, sim_inode_sync_begin(inode));
}

static bool
holds(struct sim_disk *disk, const char *path, u8 value)
{
    struct sim_inode *inode;
    if (!ok(sim_disk_open(disk, path, IO_OPEN_READ, &inode))) return false;
    bool same = ok(sim_inode_read(inode, page, SIM_PAGE_BYTES, 0));
    for (u32 i = 0; same && i < SIM_PAGE_BYTES; i++)
        same = page[i] == value;
    sim_disk_close(disk, inode);
    return same;
}

static void
what_was_made_durable_survives_every_crash(void **state)
{
    (void)state;
    for (u64 seed = 0; seed < 200; seed++) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a"), *b = create(disk, "/d/b");
        put(a, ones, 0, true);
        put(b, ones, 0, false);
        put(b, twos, 0, false);
        file_sync(b);
        dir_sync(disk, "/d");
        sim_disk_crash(disk);
        assert_true(holds(disk, "/d/a", 1));
        assert_true(holds(disk, "/d/b", 2));
        sim_disk_free(disk);
    }
}

static void
what_was_not_may_be_old_or_new_sector_by_sector(void **state)
{
    (void)state;
    u32 old_count = 0, new_count = 0, mixed_count = 0;
    for (u64 seed = 0; seed < 200; seed++) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a");
        put(a, ones, 0, true);
        dir_sync(disk, "/d");
        put(a, twos, 0, false);
        sim_disk_crash(disk);
        if (holds(disk, "/d/a", 1)) {
            old_count++;
        } else if (holds(disk, "/d/a", 2)) {
            new_count++;
        } else {
            mixed_count++;
            for (u32 i = 0; i < SIM_PAGE_BYTES; i++) {
                assert_true(page[i] == 1 || page[i] == 2);
                assert_int_equal(page[i], page[i / SIM_SECTOR_BYTES * SIM_SECTOR_BYTES]);
            }
        }
        sim_disk_free(disk);
    }
    assert_true(old_count > 10 && new_count > 10 && mixed_count > 10);
}

static void
a_write_under_way_at_the_crash_is_one_of_both(void **state)
{
    (void)state;
    u32 changed = 0;
    for (u64 seed = 0; seed < 100; seed++) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a");
        put(a, ones, 0, true);
        dir_sync(disk, "/d");
        struct sim_write write;
        assert_true(ok(sim_inode_write_begin(a, &write, twos, SIM_PAGE_BYTES, 0)));
        sim_disk_crash(disk);
        if (!holds(disk, "/d/a", 1)) changed++;
        for (u32 i = 0; i < SIM_PAGE_BYTES; i++)
            assert_true(page[i] == 1 || page[i] == 2);
        sim_disk_free(disk);
    }
    assert_true(changed > 10 && changed < 100);
}

static void
a_sync_covers_only_what_had_ended_before_it_began(void **state)
{
    (void)state;
    u32 lost = 0;
    for (u64 seed = 0; seed < 100; seed++) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a");
        dir_sync(disk, "/d");
        put(a, ones, 0, false);
        struct sim_sync sync = sim_inode_sync_begin(a);
        put(a, twos, 0, false);
        sim_inode_sync_end(a, sync);
        sim_disk_crash(disk);
        if (holds(disk, "/d/a", 1)) lost++;
        for (u32 i = 0; i < SIM_PAGE_BYTES; i++)
            assert_true(page[i] == 1 || page[i] == 2);
        sim_disk_free(disk);
    }
    assert_true(lost > 10);
}

static void
a_failed_sync_is_told_once_and_its_data_may_be_lost(void **state)
{
    (void)state;
    u32 lost = 0, evicted = 0;
    for (u64 seed = 0; seed < 200; seed++) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a");
        put(a, ones, 0, true);
        dir_sync(disk, "/d");
        put(a, twos, 0, false);
        sim_inode_sync_fail(a, sim_inode_sync_begin(a));
        bool old = false;
        for (u32 i = 0; i < 4; i++) {
            sim_disk_process_ended(disk);
            bool new = holds(disk, "/d/a", 2);
            assert_false(new &&old);
            old = !new;
        }
        evicted += old;
        file_sync(a); /* it says ok */
        sim_disk_crash(disk);
        bool new = holds(disk, "/d/a", 2);
        assert_false(new &&old);
        lost += !new;
        sim_disk_free(disk);
    }
    assert_true(lost > 50);
    assert_in_range(evicted, 40, 140);
}

static void
what_a_failed_sync_lost_reads_as_written_until_any_moment(void **state)
{
    (void)state;
    u32 at_once = 0, later = 0, mixed = 0;
    for (u64 seed = 1; seed < 400; seed += 2) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a");
        dir_sync(disk, "/d");
        for (u64 i = 0; i < 2; i++)
            put(a, ones, i * SIM_PAGE_BYTES, true);
        for (u64 i = 0; i < 2; i++)
            put(a, twos, i * SIM_PAGE_BYTES, false);
        sim_inode_sync_fail(a, sim_inode_sync_begin(a));
        u8 both[2 * SIM_PAGE_BYTES];
        bool gone[2] = {false, false};
        for (u32 reads = 0; reads < 40; reads++) {
            assert_true(ok(sim_inode_read(a, both, sizeof(both), 0)));
            for (u32 i = 0; i < 2; i++) {
                const u8 *seen = both + i * SIM_PAGE_BYTES;
                bool platter = memcmp(seen, ones, SIM_PAGE_BYTES) == 0;
                assert_true(platter || memcmp(seen, twos, SIM_PAGE_BYTES) == 0);
                assert_false(gone[i] && !platter);
                if (platter && !gone[i]) *(reads == 0 ? &at_once : &later) += 1;
                gone[i] = platter;
            }
            mixed += gone[0] != gone[1];
        }
        sim_disk_free(disk);
    }
    assert_true(at_once > 20 && later > 20 && mixed > 20);
}

static void
what_is_written_after_a_failed_sync_is_kept_by_the_next(void **state)
{
    (void)state;
    for (u64 seed = 0; seed < 100; seed++) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a");
        dir_sync(disk, "/d");
        put(a, ones, 0, false);
        sim_inode_sync_fail(a, sim_inode_sync_begin(a));
        put(a, twos, 0, false);
        for (u32 i = 0; i < 10; i++)
            assert_true(holds(disk, "/d/a", 2)); /* a dirty page is not evicted */
        file_sync(a);
        sim_disk_crash(disk);
        assert_true(holds(disk, "/d/a", 2));
        sim_disk_free(disk);
    }
}

static void
a_buffer_that_changes_under_way_shows_now_and_then(void **state)
{
    (void)state;
    u32 changed = 0;
    for (u64 seed = 0; seed < 100; seed++) {
        struct sim_disk *disk = disk_new(seed);
        struct sim_inode *a = create(disk, "/d/a");
        struct sim_write write;
        static u8 buffer[SIM_PAGE_BYTES];
        memset(buffer, 1, sizeof(buffer));
        assert_true(ok(sim_inode_write_begin(a, &write, buffer, SIM_PAGE_BYTES, 0)));
        memset(buffer, 2, sizeof(buffer));
        sim_inode_write_end(&write, false);
        changed += holds(disk, "/d/a", 2);
        sim_disk_free(disk);
    }
    assert_in_range(changed, 30, 70);
}

static void
two_writes_under_way_to_one_place_are_a_bug(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        if (freopen("/dev/null", "w", stderr) == NULL) _exit(1);
        struct rlimit none = {0};
        (void)setrlimit(RLIMIT_CORE, &none);
        (void)signal(SIGABRT, SIG_DFL);
        struct sim_disk *disk = disk_new(1);
        struct sim_inode *a = create(disk, "/d/a");
        struct sim_write first, second;
        (void)ok(sim_inode_write_begin(a, &first, ones, SIM_PAGE_BYTES, 0));
        (void)ok(sim_inode_write_begin(a, &second, twos, SIM_PAGE_BYTES, 0));
        _exit(0);
    }
    int ended;
    assert_true(waitpid(child, &ended, 0) == child);
    assert_true(WIFSIGNALED(ended) && WTERMSIG(ended) == SIGABRT);
}

/* ---- what a disk should never do ---- */

struct damages {
    u32 count, there;
    struct sim_damage last;
};

static void
damage_one(void *arg, const struct sim_damage *damage)
{
    struct damages *damages = arg;
    damages->count++;
    damages->there += damage->there;
    damages->last = *damage;
}

static struct damages
damages_of(const struct sim_disk *disk)
{
    struct damages damages = {.count = 0};
    sim_disk_damage_each(disk, NULL, damage_one, &damages);
    return damages;
}

static struct sim_disk *
disk_with_a_and_b(u64 seed, struct sim_inode **a, struct sim_inode **b)
{
    struct sim_disk *disk = disk_new(seed);
    dir_sync(disk, "/");
    *a = create(disk, "/d/a");
    *b = create(disk, "/d/b");
    put(*a, ones, 0, true);
    put(*b, ones, 0, true);
    dir_sync(disk, "/d");
    return disk;
}

static void
a_rotten_bit_stays_until_it_is_written_over(void **state)
{
    (void)state;
    struct sim_inode *a, *b;
    struct sim_disk *disk = disk_with_a_and_b(1, &a, &b);
    sim_inode_rot(a, 100, 0x10, (struct sim_fault_id){SIM_FAULT_BIT_ROT, 7});
    for (u32 i = 0; i < 3; i++) {
        assert_false(holds(disk, "/d/a", 1));
        assert_int_equal(page[100], 0x11);
    }
    struct damages damages = damages_of(disk);
    assert_int_equal(damages.there, 1);
    assert_string_equal(damages.last.path, "/d/a");
    assert_int_equal(damages.last.offset, 100);
    assert_true(damages.last.id.family == SIM_FAULT_BIT_ROT && damages.last.id.number == 7);
    put(a, twos, 0, false);
    assert_int_equal(damages_of(disk).there, 0);
    sim_disk_crash(disk); /* may bring the old page back */
    assert_int_equal(damages_of(disk).there, !holds(disk, "/d/a", 2) && page[100] == 0x11);
    sim_inode_rot(b, 0, 1, (struct sim_fault_id){SIM_FAULT_BIT_ROT, 8});
    assert_int_equal(damages_of(disk).last.there, 1);
    assert_true(ok(sim_disk_unlink(disk, "/d/b")));
    damages = damages_of(disk);
    assert_int_equal(damages.count, 2);
    assert_false(damages.last.there); /* gone with its file */
    sim_disk_free(disk);
}

static void
a_latent_sector_cannot_be_read_until_it_is_rewritten(void **state)
{
    (void)state;
    struct sim_inode *a, *b;
    struct sim_disk *disk = disk_with_a_and_b(1, &a, &b);
    put(a, twos, SIM_PAGE_BYTES, true);
    sim_inode_latent_add(a, 600, (struct sim_fault_id){SIM_FAULT_LATENT, 0});
    assert_true(sim_inode_latent(a, 0, SIM_PAGE_BYTES));
    assert_false(sim_inode_latent(a, SIM_PAGE_BYTES, SIM_PAGE_BYTES));
    assert_int_equal(damages_of(disk).there, 1);
    sim_disk_crash(disk);
    struct sim_inode *again;
    assert_true(ok(sim_disk_open(disk, "/d/a", IO_OPEN_READ, &again)));
    assert_true(sim_inode_latent(again, 0, 2 * SIM_PAGE_BYTES));
    put(again, twos, SIM_PAGE_BYTES, true);
    assert_true(sim_inode_latent(again, 0, SIM_PAGE_BYTES));
    put(again, twos, 0, false);
    assert_false(sim_inode_latent(again, 0, SIM_PAGE_BYTES));
    assert_int_equal(damages_of(disk).there, 0);
    sim_disk_free(disk);
}

static void
a_lost_write_says_ok_and_shows_the_old_at_once_or_after_the_power_cut(void **state)
{
    (void)state;
    for (u64 seed = 0; seed < 40; seed++) {
        bool cached = seed % 2 == 0;
        struct sim_inode *a, *b;
        struct sim_disk *disk = disk_with_a_and_b(seed, &a, &b);
        struct sim_write write;
        assert_true(ok(sim_inode_write_begin(a, &write, twos, SIM_PAGE_BYTES, 0)));
        sim_inode_write_lose(&write, true, cached, (struct sim_fault_id){SIM_FAULT_LOST_WRITE, 0});
        if (!cached) assert_true(holds(disk, "/d/a", 1));
        assert_int_equal(damages_of(disk).there, holds(disk, "/d/a", 1));
        file_sync(a);
        sim_disk_crash(disk);
        assert_true(holds(disk, "/d/a", 1));
        assert_int_equal(damages_of(disk).there, 1);
        sim_disk_free(disk);
    }
}

static void
a_misdirected_write_spoils_another_place_and_leaves_its_own_stale(void **state)
{
    (void)state;
    u32 same_file = 0, other_file = 0;
    for (u64 seed = 0; seed < 100; seed++) {
        struct sim_inode *a, *b;
        struct sim_disk *disk = disk_with_a_and_b(seed, &a, &b);
        put(a, ones, SIM_PAGE_BYTES, true);
        struct sim_write write;
        assert_true(ok(sim_inode_write_begin(a, &write, twos, SIM_PAGE_BYTES, 0)));
        struct prng prng;
        prng_init(&prng, seed);
        struct sim_inode *other;
        u64 offset;
        if (!sim_inode_elsewhere(a, 0, SIM_PAGE_BYTES, &prng, &other, &offset)) {
            sim_inode_write_end(&write, true);
            sim_disk_free(disk);
            continue;
        }
        assert_false(other == a && offset == 0);
        sim_inode_write_misdirect(&write, true, other, offset,
                                  (struct sim_fault_id){SIM_FAULT_MISDIRECTED, 0});
        assert_int_equal(damages_of(disk).there, 2);
        sim_disk_crash(disk);
        assert_true(holds(disk, "/d/a", 1)); /* its first page */
        assert_int_equal(damages_of(disk).there, 2);
        bool in_b = holds(disk, "/d/b", 2);
        other_file += in_b;
        same_file += !in_b;
        sim_disk_free(disk);
    }
    assert_true(same_file > 10 && other_file > 10);
}

/* A power cut keeps any of its sectors: each of them is damage. The same bytes, written there, are
 * none. */
static void
half_of_a_page_that_went_astray_is_damage_yet(void **state)
{
    (void)state;
    u32 halves = 0;
    for (u64 seed = 0; seed < 100; seed++) {
        struct sim_inode *a, *b;
        struct sim_disk *disk = disk_with_a_and_b(seed, &a, &b);
        struct sim_write write;
        assert_true(ok(sim_inode_write_begin(a, &write, twos, SIM_PAGE_BYTES, 0)));
        sim_inode_write_misdirect(&write, false, b, 0,
                                  (struct sim_fault_id){SIM_FAULT_MISDIRECTED, 0});
        assert_string_equal(damages_of(disk).last.path, "/d/b");
        assert_true(damages_of(disk).last.there);
        sim_disk_crash(disk);
        bool whole = holds(disk, "/d/b", 2), none = holds(disk, "/d/b", 1);
        halves += !whole && !none;
        assert_int_equal(damages_of(disk).last.there, !none);
        assert_true(ok(sim_disk_open(disk, "/d/b", IO_OPEN_WRITE, &b)));
        put(b, twos, 0, true);
        assert_false(damages_of(disk).last.there);
        sim_disk_free(disk);
    }
    assert_true(halves > 10);
}

/* Beyond 6000066: a sector of it that the power cut tears is no better. */
static void
what_is_torn_of_a_page_that_went_astray_is_damage_yet(void **state)
{
    (void)state;
    u32 garbage = 0;
    torn_ppm = 300000;
    for (u64 seed = 0; seed < 100; seed++) {
        struct sim_inode *a, *b;
        struct sim_disk *disk = disk_with_a_and_b(seed, &a, &b);
        struct sim_write write;
        assert_true(ok(sim_inode_write_begin(a, &write, twos, SIM_PAGE_BYTES, 0)));
        sim_inode_write_misdirect(&write, false, b, 0,
                                  (struct sim_fault_id){SIM_FAULT_MISDIRECTED, 0});
        sim_disk_crash(disk);
        bool none = holds(disk, "/d/b", 1), torn = false;
        for (u32 i = 0; i < SIM_PAGE_BYTES; i++)
            torn |= page[i] != 1 && page[i] != 2;
        garbage += torn;
        assert_int_equal(damages_of(disk).last.there, !none);
        sim_disk_free(disk);
    }
    torn_ppm = 0;
    assert_true(garbage > 30);
}

/* Its second half, the flush, is like a sync. */
static void
a_failed_durable_write_may_be_read_and_lost_all_the_same(void **state)
{
    (void)state;
    u32 read = 0, lost = 0;
    for (u64 seed = 0; seed < 200; seed++) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a");
        put(a, ones, 0, true);
        dir_sync(disk, "/d");
        struct sim_write write;
        assert_true(ok(sim_inode_write_begin(a, &write, twos, SIM_PAGE_BYTES, 0)));
        sim_inode_write_fail(&write, true);
        bool whole = holds(disk, "/d/a", 2);
        file_sync(a);
        sim_disk_crash(disk);
        read += whole;
        lost += whole && !holds(disk, "/d/a", 2);
        sim_disk_free(disk);
    }
    assert_true(read > 50 && lost > 10 && lost < read);
}

static void
names_need_a_sync_of_their_directory_and_renames_are_atomic(void **state)
{
    (void)state;
    u32 absent = 0, old_name = 0, new_name = 0;
    for (u64 seed = 0; seed < 200; seed++) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a"), *b = create(disk, "/d/b");
        put(a, ones, 0, true);
        put(b, twos, 0, true);
        struct sim_inode *c = create(disk, "/d/c");
        put(c, twos, 0, true);
        dir_sync(disk, "/d");
        sim_disk_close(disk, create(disk, "/d/new"));
        assert_true(ok(sim_disk_rename(disk, "/d/a", "/d/b")));
        sim_disk_crash(disk);
        assert_true(holds(disk, "/d/c", 2));
        struct sim_inode *inode;
        if (ok(sim_disk_open(disk, "/d/new", IO_OPEN_READ, &inode))) {
            sim_disk_close(disk, inode);
        } else {
            absent++;
        }
        bool before = holds(disk, "/d/a", 1) && holds(disk, "/d/b", 2);
        bool after = !holds(disk, "/d/a", 1) && holds(disk, "/d/b", 1);
        assert_true(before != after);
        old_name += before;
        new_name += after;
        sim_disk_free(disk);
    }
    assert_true(absent > 10 && old_name > 10 && new_name > 10);
}

static void
a_lost_directory_takes_its_files_with_it(void **state)
{
    (void)state;
    u32 lost = 0;
    for (u64 seed = 0; seed < 50; seed++) {
        struct sim_disk *disk = disk_new(seed); /* "/" is not synced */
        put(create(disk, "/d/a"), ones, 0, true);
        dir_sync(disk, "/d");
        sim_disk_crash(disk);
        if (!holds(disk, "/d/a", 1)) lost++;
        sim_disk_free(disk);
    }
    assert_true(lost > 5 && lost < 50);
}

static void
the_size_of_a_file_may_be_lost_but_not_below_a_durable_write(void **state)
{
    (void)state;
    u32 shorter = 0;
    for (u64 seed = 0; seed < 100; seed++) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a");
        dir_sync(disk, "/d");
        struct sim_sync sync = sim_inode_sync_begin(a);
        put(a, ones, 0, true);
        sim_inode_sync_end(a, sync); /* began when the file was empty */
        put(a, twos, 4 * SIM_PAGE_BYTES, false);
        sim_disk_crash(disk);
        u64 size;
        assert_true(ok(sim_disk_file_size(disk, "/d/a", &size)));
        assert_true(size >= SIM_PAGE_BYTES && size <= 5 * SIM_PAGE_BYTES);
        assert_true(holds(disk, "/d/a", 1));
        shorter += size < 5 * SIM_PAGE_BYTES;
        sim_disk_free(disk);
    }
    assert_true(shorter > 10);
}

static void
a_full_disk_refuses_and_an_overwrite_does_not_need_room(void **state)
{
    (void)state;
    struct sim_disk *disk = disk_new(1);
    struct sim_inode *a = create(disk, "/d/a");
    assert_true(ok(sim_inode_allocate(a, 60 * SIM_PAGE_BYTES)));
    assert_true(status_is(sim_inode_allocate(a, 65 * SIM_PAGE_BYTES), ST_NO_SPACE));
    assert_int_equal(sim_inode_size(a), 60 * SIM_PAGE_BYTES);
    struct sim_inode *b = create(disk, "/d/b");
    for (u32 i = 0; i < 4; i++)
        put(b, ones, i * SIM_PAGE_BYTES, false);
    struct sim_write write;
    assert_true(status_is(
        sim_inode_write_begin(b, &write, ones, SIM_PAGE_BYTES, 4 * SIM_PAGE_BYTES), ST_NO_SPACE));
    put(b, twos, 0, false);
    u64 free_bytes, total_bytes;
    sim_disk_space(disk, &free_bytes, &total_bytes);
    assert_int_equal(free_bytes, 0);
    /* Removed, but open: the room comes back with the last opening. */
    assert_true(ok(sim_disk_unlink(disk, "/d/a")));
    sim_disk_space(disk, &free_bytes, &total_bytes);
    assert_int_equal(free_bytes, 0);
    sim_disk_close(disk, a);
    sim_disk_space(disk, &free_bytes, &total_bytes);
    assert_int_equal(free_bytes, 60 * SIM_PAGE_BYTES);
    sim_disk_free(disk);
}

static void
a_lock_holds_until_the_process_ends(void **state)
{
    (void)state;
    struct sim_disk *disk = disk_new(1);
    assert_true(ok(sim_disk_dir_lock(disk, "/d")));
    assert_true(status_is(sim_disk_dir_lock(disk, "/d/"), ST_LOCKED));
    sim_disk_dir_unlock(disk, "/d");
    assert_true(ok(sim_disk_dir_lock(disk, "/d")));
    sim_disk_process_ended(disk);
    assert_true(ok(sim_disk_dir_lock(disk, "/d")));
    assert_true(status_is(sim_disk_dir_lock(disk, "/no"), ST_NOT_FOUND));
    sim_disk_free(disk);
}

static void
damage_shows_in_reads_and_outlives_a_crash(void **state)
{
    (void)state;
    struct sim_disk *disk = disk_new(1);
    dir_sync(disk, "/");
    put(create(disk, "/d/a"), ones, 0, true);
    dir_sync(disk, "/d");
    assert_true(ok(sim_disk_flip(disk, "/d/a", 100, 0x80)));
    assert_true(status_is(sim_disk_flip(disk, "/d/a", SIM_PAGE_BYTES, 1), ST_END));
    assert_true(status_is(sim_disk_flip(disk, "/d/b", 0, 1), ST_NOT_FOUND));
    sim_disk_crash(disk);
    assert_false(holds(disk, "/d/a", 1));
    assert_int_equal(page[100], 0x81);
    sim_disk_free(disk);
}

/* ---- through file.h ---- */

static status
filling_main(void *arg)
{
    (void)arg;
    struct io_file *file;
    status st = io_file_open("/a", IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (!ok(st)) return st;
    st = io_file_fill(file, 4096);
    io_file_close(file);
    return st;
}

static status
failing_main(void *arg)
{
    status *seen = arg;
    struct io_file *file;
    u8 *buffer = mem_alloc_aligned(io_budget(), 4096, IO_ALIGNMENT);
    if (buffer == NULL) return ST_NO_MEMORY;
    memset(buffer, 5, 4096);
    seen[0] = io_file_open("/a", IO_OPEN_WRITE, &file);
    if (ok(seen[0])) {
        seen[1] = io_file_write(file, IO_CLASS_LOG, buffer, 4096, 0, true);
        seen[2] = io_file_sync(file);
        seen[3] = io_file_read(file, IO_CLASS_READ, buffer, 4096, 0);
        seen[4] = io_dir_sync("/");
        io_file_close(file);
    }
    mem_free(io_budget(), buffer, 4096);
    return ST_OK;
}

static void
the_nth_request_fails_and_only_that_one(void **state)
{
    (void)state;
    for (u64 n = 0;; n++) {
        struct sim_options options;
        sim_options_default(&options, n);
        struct sim *sim = sim_new(&options);
        status seen[5] = {ST_OK, ST_OK, ST_OK, ST_OK, ST_OK};
        assert_true(ok(sim_run(sim, 1, filling_main, NULL)));
        sim_fail_at(sim, SIM_POINT_IO, n, 1, ST_IO_ERROR);
        assert_true(ok(sim_run(sim, 1, failing_main, seen)));
        bool failed = sim_failed(sim);
        sim_free(sim);
        for (u64 i = 0; i < 5; i++)
            assert_true(status_is(seen[i], i == n ? ST_IO_ERROR : ST_OK));
        if (!failed) break;
        assert_true(n < 5);
    }
}

static void
what_is_put_back_is_what_was_copied_whatever_came_since(void **state)
{
    struct sim_disk *disk = disk_new(1);
    struct sim_inode *inode = create(disk, "/d/a"), *other;
    put(inode, ones, SIM_PAGE_BYTES, true);
    dir_sync(disk, "/d");
    dir_sync(disk, "/");
    sim_disk_close(disk, inode);
    assert_true(ok(sim_disk_link(disk, "/d/a", "/d/b")));
    struct sim_disk *copy = sim_disk_copy_new(disk);

    assert_true(ok(sim_disk_open(disk, "/d/a", 0, &inode)));
    put(inode, twos, SIM_PAGE_BYTES, true);
    sim_disk_close(disk, inode);
    sim_disk_close(disk, create(disk, "/d/c"));
    assert_true(ok(sim_disk_unlink(disk, "/d/b")));
    for (u32 i = 0; i < 2; i++) { /* as often as one likes */
        sim_disk_copy_put(copy, disk);
        sim_disk_crash(disk); /* all of it is durable */
        assert_true(ok(sim_disk_open(disk, "/d/a", 0, &inode)));
        assert_true(ok(sim_disk_open(disk, "/d/b", 0, &other)));
        assert_ptr_equal(inode, other);
        assert_int_equal(sim_inode_size(inode), 2 * SIM_PAGE_BYTES);
        assert_true(ok(sim_inode_read(inode, page, SIM_PAGE_BYTES, SIM_PAGE_BYTES)));
        assert_memory_equal(page, ones, SIM_PAGE_BYTES);
        put(inode, twos, 0, true);
        sim_disk_close(disk, inode);
        sim_disk_close(disk, other);
        assert_false(ok(sim_disk_open(disk, "/d/c", 0, &other)));
    }
    sim_disk_copy_free(copy);
    sim_disk_free(disk);
}

/* ---- zeros ---- */

#define FILL_PAGES 64u /* of which one version of the disk may stand for all */

/* In one write, or page by page. */
static void
zeros_put(struct sim_inode *inode, u64 first, bool whole)
{
    u32 pages = whole ? FILL_PAGES : 1;
    for (u64 i = first; i < first + FILL_PAGES; i += pages) {
        struct sim_write write;
        assert_true(ok(sim_inode_write_begin(inode, &write, NULL, pages * SIM_PAGE_BYTES,
                                             i * SIM_PAGE_BYTES)));
        sim_inode_write_end(&write, false);
    }
}

struct zeros {
    struct sim_disk *disk;
    struct sim_inode *inode;
    struct sim_sync sync; /* under way */
    bool whole;
};

static struct zeros
zeros_new(u64 seed, bool whole)
{
    struct zeros z = {.disk = disk_new(seed), .whole = whole};
    sim_disk_capacity_set(z.disk, 4ull * FILL_PAGES * SIM_PAGE_BYTES);
    dir_sync(z.disk, "/");
    z.inode = create(z.disk, "/d/a");
    dir_sync(z.disk, "/d");
    z.sync = sim_inode_sync_begin(z.inode);
    return z;
}

static void
zeros_crash(struct zeros *z)
{
    sim_disk_crash(z->disk);
    assert_true(ok(sim_disk_open(z->disk, "/d/a", IO_OPEN_READ | IO_OPEN_WRITE, &z->inode)));
    z->sync = sim_inode_sync_begin(z->inode);
}

static void
zeros_step(struct zeros *z, struct prng prng)
{
    u64 pages = prng_below(&prng, 2 * FILL_PAGES), at = pages * SIM_PAGE_BYTES;
    switch (prng_below(&prng, 16)) {
    case 0:
    case 1:
    case 2:
        zeros_put(z->inode, pages / FILL_PAGES * FILL_PAGES, z->whole);
        break;
    case 3:
        zeros_put(z->inode, pages / 2, z->whole);
        break;
    case 4:
        put(z->inode, ones, at, true);
        break;
    case 5:
        sim_inode_sync_fail(z->inode, z->sync);
        z->sync = sim_inode_sync_begin(z->inode);
        break;
    case 6:
    case 7:
        sim_inode_sync_end(z->inode, z->sync);
        z->sync = sim_inode_sync_begin(z->inode);
        break;
    case 8:
        (void)ok(sim_disk_flip(z->disk, "/d/a", at, 1));
        break;
    case 9:
        assert_true(ok(sim_inode_truncate(z->inode, at + prng_below(&prng, SIM_PAGE_BYTES))));
        break;
    case 10:
        zeros_crash(z);
        break;
    default:
        put(z->inode, ones, at, false);
    }
}

/* What a step leaves: a hash of the content, whose pages are counted that are not zero. */
static u64
content_of(struct sim_disk *disk, struct sim_inode *inode, u32 *written)
{
    u64 hash = sim_inode_size(inode) * 31 + sim_disk_used_bytes(disk);
    for (u64 at = 0; at + SIM_PAGE_BYTES <= sim_inode_size(inode); at += SIM_PAGE_BYTES) {
        assert_true(ok(sim_inode_read(inode, page, SIM_PAGE_BYTES, at)));
        for (u32 i = 0; i < SIM_PAGE_BYTES; i += SIM_SECTOR_BYTES)
            hash = hash * 31 + page[i] + page[i + 1];
        *written += page[0] != 0;
    }
    return hash;
}

static void
zeros_of_many_pages_are_as_those_of_each(void **state)
{
    (void)state;
    u32 written = 0;
    for (u64 seed = 0; seed < 500; seed++) {
        struct zeros whole = zeros_new(seed, true), each = zeros_new(seed, false);
        struct prng prng;
        prng_init(&prng, seed);
        for (u32 step = 0; step < 30; step++) {
            struct prng draws;
            prng_init(&draws, prng_u64(&prng));
            zeros_step(&whole, draws);
            zeros_step(&each, draws);
            assert_int_equal(content_of(whole.disk, whole.inode, &written),
                             content_of(each.disk, each.inode, &written));
        }
        sim_disk_free(whole.disk);
        sim_disk_free(each.disk);
    }
    assert_in_range(written, 10000, 1000000);
}

static void
a_page_that_ends_with_zeros_reads_as_it_was_written(void **state)
{
    (void)state;
    for (u32 seed = 0; seed < 64; seed++) {
        struct sim_disk *disk = disk_new(seed);
        dir_sync(disk, "/");
        struct sim_inode *a = create(disk, "/d/a");
        dir_sync(disk, "/d");
        u8 expected[SIM_PAGE_BYTES] = {0}, part[SIM_PAGE_BYTES];
        u32 written = seed % 9 * SIM_SECTOR_BYTES;
        memset(expected, 1, written);
        put(a, expected, 0, seed % 2 == 0);
        for (u32 from = 0; from < SIM_PAGE_BYTES; from += SIM_SECTOR_BYTES) {
            for (u32 to = from + SIM_SECTOR_BYTES; to <= SIM_PAGE_BYTES; to += SIM_SECTOR_BYTES) {
                memset(part, 2, sizeof(part));
                assert_true(ok(sim_inode_read(a, part, to - from, from)));
                assert_memory_equal(part, expected + from, to - from);
            }
        }
        file_sync(a);
        /* A bit within what was written, or behind it. */
        u32 at = seed * 61;
        assert_true(ok(sim_disk_flip(disk, "/d/a", at, 4)));
        expected[at] ^= 4;
        sim_disk_crash(disk);
        assert_true(ok(sim_disk_open(disk, "/d/a", IO_OPEN_READ | IO_OPEN_WRITE, &a)));
        assert_true(ok(sim_inode_read(a, part, SIM_PAGE_BYTES, 0)));
        assert_memory_equal(part, expected, SIM_PAGE_BYTES);
        sim_disk_free(disk);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_made_durable_survives_every_crash),
        cmocka_unit_test(what_was_not_may_be_old_or_new_sector_by_sector),
        cmocka_unit_test(a_write_under_way_at_the_crash_is_one_of_both),
        cmocka_unit_test(a_sync_covers_only_what_had_ended_before_it_began),
        cmocka_unit_test(a_failed_sync_is_told_once_and_its_data_may_be_lost),
        cmocka_unit_test(what_a_failed_sync_lost_reads_as_written_until_any_moment),
        cmocka_unit_test(a_failed_durable_write_may_be_read_and_lost_all_the_same),
        cmocka_unit_test(what_is_written_after_a_failed_sync_is_kept_by_the_next),
        cmocka_unit_test(a_buffer_that_changes_under_way_shows_now_and_then),
        cmocka_unit_test(two_writes_under_way_to_one_place_are_a_bug),
        cmocka_unit_test(a_rotten_bit_stays_until_it_is_written_over),
        cmocka_unit_test(a_latent_sector_cannot_be_read_until_it_is_rewritten),
        cmocka_unit_test(a_lost_write_says_ok_and_shows_the_old_at_once_or_after_the_power_cut),
        cmocka_unit_test(a_misdirected_write_spoils_another_place_and_leaves_its_own_stale),
        cmocka_unit_test(half_of_a_page_that_went_astray_is_damage_yet),
        cmocka_unit_test(what_is_torn_of_a_page_that_went_astray_is_damage_yet),
        cmocka_unit_test(names_need_a_sync_of_their_directory_and_renames_are_atomic),
        cmocka_unit_test(a_lost_directory_takes_its_files_with_it),
        cmocka_unit_test(the_size_of_a_file_may_be_lost_but_not_below_a_durable_write),
        cmocka_unit_test(a_full_disk_refuses_and_an_overwrite_does_not_need_room),
        cmocka_unit_test(a_lock_holds_until_the_process_ends),
        cmocka_unit_test(damage_shows_in_reads_and_outlives_a_crash),
        cmocka_unit_test(the_nth_request_fails_and_only_that_one),
        cmocka_unit_test(what_is_put_back_is_what_was_copied_whatever_came_since),
        cmocka_unit_test(zeros_of_many_pages_are_as_those_of_each),
        cmocka_unit_test(a_page_that_ends_with_zeros_reads_as_it_was_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
