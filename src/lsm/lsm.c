/* SPDX-License-Identifier: MIT
 *
 * lsm.c -- a store from opening to closing: recovery, state, memory, figures, verification.
 *
 *   lsm_open:   levels_open (manifest, tables)  ->  log_open (replay into memtables, flushing when
 *               they are full)  ->  levels_collect_orphans  ->  levels_start, own fibers
 *   lsm_close:  no new users, the old ones leave  ->  own fibers end  ->  levels_stop  ->  flush
 *               ->  levels_close, log_close
 *
 * State has one setter, lsm_state_update:
 *
 *   OK  <-->  NO_SPACE      while a flush, a compaction or the disk reserve wants space; what only
 *                           deletes is taken all the same, and is merged soon, and some of what is
 *                           of the reserve (lsm_write.c). In memory writes wait before that for
 *                           what is still to be merged
 *   OK, NO_SPACE --> FAILED the log or the manifest failed; for good. Reads go on.
 *
 * Memory of a store of M bytes: memtables (active, flushing, and held by readers) at most M / 4;
 * log groups at most M / 16; an eighth is left to what comes and goes (cursors, compaction,
 * flushes); indexes and filters take what they need; the two caches have the rest and shrink when
 * that does. Indexes have to be there as long as their tables: when they have three
 * eighths, what would make more of them is refused (lsm_write.c), so that there is always room for
 * those of what is in memtables, for a flush, which takes some three times what the index of its
 * table does, and for merges. Filters have what indexes leave of a half, and go when those grow:
 * reads get slower without them.
 */
#include "base/fault.h"
#include "base/log.h"
#include "io/file.h"
#include "io/io.h"
#include "lsm/lsm_internal.h"

/* Bytes of log per byte of memtable before a flush is asked for. */
#define OPEN_TRIES           8u /* each finds a page more gone */
#define LOG_TO_REPLAY_FACTOR 4u
/* Bytes of segments kept for a new life per byte of memtable. */
#define LOG_KEPT_FACTOR  2u
#define TEND_INTERVAL_NS (100 * NS_PER_MS)
#define DISK_CHECK_TICKS 10u /* of the above */
/* A disk takes less in a second. With no more free above the reserve each tick looks, or what is
 * left of the reserve by then would not pay for what makes room. */
#define DISK_NEAR_BYTES GIB(4)
/* Of a store's memory, for its files in memory: what comes and goes, and how near the end merges
 * begin to go by the space. */
#define MEMORY_PASSING_PART 16u
#define MEMORY_NEAR_PART    8u
#define MEMTABLE_BYTES_MIN  KIB(128)
#define MEMTABLE_BYTES_MAX  MIB(128)
#define SEGMENT_BYTES_MIN   MIB(16)
#define SEGMENT_BYTES_MAX   MIB(64)
/* Of a store's memory, for indexes, those of tombstones, too. What is left pays for the merge that
 * makes less of both. */
#define INDEX_EIGHTHS_DELETES 4u
#define CACHE_SHARE_WHOLE     1024u
#define CACHE_SHARE_START     768u
#define CACHE_SHARE_STEP      16u
#define CACHE_SHARE_MIN       128u
#define CACHE_SHARE_MAX       960u
#define CACHE_ROOM_PART       16u /* of both: what one that does not use its share may grow by at once */
#define CACHE_HITS_SURE       64u
#define CACHE_BYTES_MIN       KIB(64)

void
lsm_options_default(struct lsm_options *options)
{
    *options = (struct lsm_options){
        .durability = LSM_DURABILITY_GROUP,
        .sync_interval_ms = 1000,
        .memory_bytes = MIB(256),
        .codec_upper = LSM_CODEC_NONE,
        .codec_last = LSM_CODEC_LZ4,
        .blob_threshold_bytes = 4096,
        .scrub_bytes_per_s = MIB(4),
        .disk_reserve_bytes = MIB(256),
    };
}

/* Files of such a directory live in the shard's memory: no log, and the memory fills up. */
static bool
is_in_memory(const char *dir)
{
    static const char prefix[] = ":memory:";
    return strncmp(dir, prefix, sizeof(prefix) - 1) == 0;
}

bool
lsm_in_memory(const struct lsm *lsm)
{
    return is_in_memory(lsm->dir);
}

/* ---- state ---- */

/* Ranges that are to set tables free are in the log alone: writes would be in the way of the flush
 * that makes room for them. */
static bool
ranges_come_first(const struct lsm *lsm)
{
    return lsm->state == LSM_STATE_NO_SPACE &&
           levels_range_count(lsm->levels, lsm->seq_flushed) > 0;
}

void
lsm_state_update(struct lsm *lsm)
{
    enum lsm_state state = LSM_STATE_OK;
    if (!ok(lsm->failure))
        state = LSM_STATE_FAILED;
    else if (lsm->no_space_levels || lsm->no_space_disk || lsm->no_space_flush ||
             ranges_come_first(lsm))
        state = LSM_STATE_NO_SPACE;
    if (state == lsm->state) return;
    CHECK(lsm->state != LSM_STATE_FAILED);
    switch (state) {
    case LSM_STATE_OK:
        MARK("lsm.state.space_returned");
        log_info("lsm", "writes are taken again dir=%s", lsm->dir);
        fiber_queue_wake_all(&lsm->room_wake);
        break;
    case LSM_STATE_NO_SPACE:
        MARK("lsm.state.no_space");
        log_error("lsm", "no space left, writes are refused until it returns dir=%s", lsm->dir);
        fiber_queue_wake_all(&lsm->room_wake);
        break;
    case LSM_STATE_FAILED:
        MARK("lsm.state.failed");
        log_error("lsm", "store failed, it takes no more writes dir=%s reason=\"%s\"", lsm->dir,
                  lsm->failure_text);
        fiber_queue_wake_all(&lsm->room_wake);
        fiber_queue_wake_all(&lsm->flush_wake);
        fiber_queue_wake_all(&lsm->flushed_wake);
        break;
    }
    lsm->state = state;
}

void
lsm_fail(struct lsm *lsm, status why, const char *text)
{
    CHECK(!ok(why));
    if (!ok(lsm->failure)) {
        MARK("lsm.state.failed_again");
        return;
    }
    lsm->failure = why;
    size_t used = 0;
    const char *parts[] = {text, ": ", status_text(why)};
    for (u32 i = 0; i < ARRAY_COUNT(parts); i++) {
        size_t size = MIN(strlen(parts[i]), sizeof(lsm->failure_text) - 1 - used);
        memcpy(lsm->failure_text + used, parts[i], size);
        used += size;
    }
    lsm->failure_text[used] = '\0';
    lsm_state_update(lsm);
}

/* For levels: their errors, and the end of ST_NO_SPACE. */
static void
levels_failed(void *arg, status why, const char *text)
{
    struct lsm *lsm = arg;
    if (ok(why) || status_is(why, ST_NO_SPACE)) {
        lsm->no_space_levels = !ok(why);
        lsm_state_update(lsm);
        return;
    }
    MARK("lsm.state.levels_failed");
    lsm_fail(lsm, why, text);
}

/* For the log: numbers that became durable, or its end. */
static void
log_durable(void *arg, u64 durable_seq, bool failed)
{
    struct lsm *lsm = arg;
    if (failed) {
        MARK("lsm.state.log_failed");
        lsm_fail(lsm, ST_IO_ERROR, "log");
    }
    fiber_queue_wake_all(&lsm->durable_wake);
    if (lsm->durable_fn != NULL)
        lsm->durable_fn(lsm->durable_arg, MAX(durable_seq, lsm->seq_flushed), failed);
}

/* ---- durability ---- */

enum lsm_durability
lsm_durability(const struct lsm *lsm)
{
    return is_in_memory(lsm->dir) ? LSM_DURABILITY_NONE : lsm->options.durability;
}

u64
lsm_durable_seq(const struct lsm *lsm)
{
    if (lsm->log == NULL) return lsm->seq_last;
    return MAX(log_durable_seq(lsm->log), lsm->seq_flushed);
}

MAY_YIELD status
lsm_wait_durable_until(struct lsm *lsm, u64 seq, u64 deadline_ns)
{
    CHECK(seq <= lsm->seq_last);
    while (lsm_durable_seq(lsm) < seq) {
        if (log_failed(lsm->log)) return MARKED("lsm.durable.unknown", ST_UNKNOWN_OUTCOME);
        if (io_now_ns() >= deadline_ns) return MARKED("lsm.durable.too_late", ST_TIMED_OUT);
        if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.durable.closing", ST_UNKNOWN_OUTCOME);
        (void)fiber_queue_wait(&lsm->durable_wake, deadline_ns);
        fiber_gate_leave(&lsm->gate);
    }
    return ST_OK;
}

MAY_YIELD status
lsm_wait_durable(struct lsm *lsm, u64 seq)
{
    return lsm_wait_durable_until(lsm, seq, FIBER_FOREVER);
}

void
lsm_on_durable(struct lsm *lsm, void (*fn)(void *arg, u64 durable_seq, bool failed), void *arg)
{
    lsm->durable_fn = fn;
    lsm->durable_arg = arg;
}

/* ---- memory ---- */

/* Moves the border between the shares. A hit of the one is a miss of the other that nobody saw: as
 * long as one does not use its share, its hits say nothing about what the other is worth, and what
 * fills slowly (a miss brings a row, and a block that is many times as large) must not lose it for
 * that. A row that is there also saves the search for it, hence the weights. (Rows of what memtables
 * still have count as well: they are looked at first.) */
static void
cache_share_update(struct lsm *lsm, u64 left, const struct cache_stats *rows,
                   const struct cache_stats *blocks)
{
    u64 row_hits = rows->hits - lsm->cache_row_hits;
    u64 block_hits = blocks->hits - lsm->cache_block_hits;
    lsm->cache_row_hits = rows->hits;
    lsm->cache_block_hits = blocks->hits;
    u64 row_due = left / CACHE_SHARE_WHOLE * lsm->cache_row_share;
    u64 block_due = left - row_due;
    if (rows->bytes < row_due - row_due / 16 || blocks->bytes < block_due - block_due / 16) return;

    u64 row_gain = row_hits * (blocks->bytes / 1024 + 1) * 5;
    u64 block_gain = block_hits * (rows->bytes / 1024 + 1) * 4;
    u64 more = MAX(row_gain, block_gain), less = MIN(row_gain, block_gain);
    if (more == less) return;
    /* Of a few hits chance decides by how much. */
    bool sure = row_hits + block_hits >= CACHE_HITS_SURE;
    u64 step = sure && more / 4 >= less ? 4 * CACHE_SHARE_STEP : CACHE_SHARE_STEP;
    if (row_gain > block_gain)
        lsm->cache_row_share = MIN(lsm->cache_row_share + step, CACHE_SHARE_MAX);
    else
        lsm->cache_row_share = MAX(lsm->cache_row_share - step, CACHE_SHARE_MIN);
}

/* Sets the limits, which are left together. Each cache has its share. What it does not use now is
 * lent to the other one if that wants more than its own, but for some room to grow: so the borrower
 * gives way as the owner grows, a little with each look. */
static void
cache_limits_set(struct lsm *lsm, u64 left, const struct cache_stats *rows,
                 const struct cache_stats *blocks)
{
    u64 room = left / CACHE_ROOM_PART;
    u64 row_due = left / CACHE_SHARE_WHOLE * lsm->cache_row_share;
    u64 block_due = left - row_due;
    u64 row_wants = rows->bytes + room, block_wants = blocks->bytes + room;
    u64 row_limit = row_due;
    if (row_wants > row_due)
        row_limit = left - MIN(block_wants, block_due);
    else if (block_wants > block_due)
        row_limit = row_wants;
    row_limit = CLAMP(row_limit, CACHE_BYTES_MIN, left - CACHE_BYTES_MIN);
    row_cache_limit_set(lsm->row_cache, row_limit);
    block_cache_limit_set(lsm->block_cache, left - row_limit);
}

bool
lsm_index_is_full(const struct lsm *lsm)
{
    u64 limit = lsm->budget.limit_bytes / 8 * LSM_INDEX_EIGHTHS;
    /* A little hysteresis: while it merges a store has the indexes of what goes and what comes. */
    if (lsm->index_full_told) limit -= limit / 8;
    return levels_index_bytes(lsm->levels) > limit;
}

bool
lsm_index_takes_deletes(const struct lsm *lsm)
{
    return levels_index_bytes(lsm->levels) <= lsm->budget.limit_bytes / 8 * INDEX_EIGHTHS_DELETES;
}

static void
index_tell(struct lsm *lsm)
{
    bool full = lsm_index_is_full(lsm);
    if (full == lsm->index_full_told) return;
    lsm->index_full_told = full;
    if (full) {
        MARK("lsm.state.index_full");
        log_error("lsm",
                  "the indexes of tables take three eighths of the store's memory, writes are "
                  "refused until something is deleted dir=%s index_bytes=%llu memory_bytes=%llu",
                  lsm->dir, (unsigned long long)levels_index_bytes(lsm->levels),
                  (unsigned long long)lsm->budget.limit_bytes);
    } else {
        MARK("lsm.state.index_returned");
        log_info("lsm", "indexes have room again dir=%s", lsm->dir);
    }
}

void
lsm_caches_balance(struct lsm *lsm)
{
    levels_filters_fit(lsm->levels);
    index_tell(lsm);
    struct cache_stats rows, blocks;
    row_cache_stats(lsm->row_cache, &rows);
    block_cache_stats(lsm->block_cache, &blocks);

    /* When the shard's other users leave less than the store's own limit, caches give way. */
    u64 rest = budget_available(&lsm->budget);
    u64 shard_rest = budget_available(io_budget());
    rest = MIN(rest, shard_rest - MIN(shard_rest, lsm->memory_reserve));
    u64 limit = lsm->budget.used_bytes + rest;
    u64 others = lsm->budget.used_bytes - MIN(lsm->budget.used_bytes, rows.bytes + blocks.bytes);
    u64 memtables = lsm->memtable_budget.limit_bytes - lsm->memtable_budget.used_bytes;
    u64 kept = others + memtables + limit / 8;
    if (lsm->no_memory_flush) kept += limit / 8;
    u64 left = MAX(limit > kept ? limit - kept : 0, 2 * CACHE_BYTES_MIN);
    if (BUGGIFY("lsm.caches.tiny")) left = 2 * CACHE_BYTES_MIN;
    cache_share_update(lsm, left, &rows, &blocks);
    cache_limits_set(lsm, left, &rows, &blocks);
}

MAY_YIELD void
lsm_caches_trim(struct lsm *lsm)
{
    lsm_caches_balance(lsm);
    while ((int)row_cache_step(lsm->row_cache) | (int)block_cache_step(lsm->block_cache)) {
        if (lsm->stopping) return;
        if (fiber_should_yield()) fiber_yield();
    }
}

/* ---- room for files in memory ---- */

/* What such files may not take, so that there is always room for what brings room back: the flush
 * of a memtable, a merge, and passing needs. */
static void
memory_reserve_set(struct lsm *lsm)
{
    lsm->memory_reserve = lsm->memtable_limit_bytes + levels_merge_bytes(lsm->levels) +
                          lsm->options.memory_bytes / MEMORY_PASSING_PART;
}

/* What is left to the shard when its caches have given way and memtables are full. */
static u64
memory_spare(const struct lsm *lsm)
{
    struct cache_stats rows, blocks;
    row_cache_stats(lsm->row_cache, &rows);
    block_cache_stats(lsm->block_cache, &blocks);
    u64 spare = budget_available(io_budget()) + rows.bytes + blocks.bytes;
    u64 memtables = lsm->memtable_budget.limit_bytes - lsm->memtable_budget.used_bytes;
    return spare - MIN(spare, memtables);
}

/* Before writes are refused they wait for merges, and before that they are slowed down by them: of
 * what is written again and again a merge leaves one version. Only where nothing is left to be
 * merged, the store is full. */
void
lsm_memory_check(struct lsm *lsm)
{
    u64 spare = memory_spare(lsm), reserve = lsm->memory_reserve;
    u64 near = lsm->options.memory_bytes / MEMORY_NEAR_PART;
    u32 pressure = 0;
    if (spare < reserve + near) {
        u64 lacking = MIN(reserve + near - spare, near);
        pressure =
            LEVELS_SPACE_NEAR + (u32)((LEVELS_SPACE_FULL - LEVELS_SPACE_NEAR) * lacking / near);
    }
    levels_space_set(lsm->levels, pressure);
    /* A little hysteresis, as on disks. */
    bool full = spare < reserve + (lsm->no_space_disk ? reserve / 8 : 0);
    bool awaited = full && !lsm->no_space_disk && levels_merges_ahead(lsm->levels);
    if (awaited) MARK("lsm.memory.merge_awaited");
    bool come = lsm->merge_awaited && !awaited;
    lsm->merge_awaited = awaited;
    if (full && !awaited && !lsm->no_space_disk) {
        MARK("lsm.memory.full");
        /* Perhaps there are deletes in the memtables that would bring room. */
        lsm->deletes_full_seq = lsm->seq_last;
    }
    lsm->no_space_disk = full && !awaited;
    lsm_state_update(lsm);
    if (come) fiber_queue_wake_all(&lsm->room_wake);
}

/* ---- the tending fiber ---- */

static MAY_YIELD void
disk_check(struct lsm *lsm)
{
    u64 disk_free, total;
    if (is_in_memory(lsm->dir)) {
        lsm_memory_check(lsm);
        return;
    }
    if (lsm->options.disk_reserve_bytes == 0) return;
    status st = io_disk_free(lsm->dir, &disk_free, &total);
    if (!ok(st)) {
        MARK("lsm.disk.free_unknown"); /* writing will tell */
        return;
    }
    /* A little hysteresis: what stopped at the reserve goes on an eighth above it. */
    u64 reserve = lsm->options.disk_reserve_bytes;
    if (disk_free < reserve) {
        MARK("lsm.disk.reserve_reached");
        lsm->no_space_disk = true;
        if (lsm->log != NULL) log_recycled_remove(lsm->log, LOG_RECYCLE_LEAST);
    }
    if (disk_free >= reserve + reserve / 8) lsm->no_space_disk = false;
    lsm->disk_near = disk_free < reserve + DISK_NEAR_BYTES;
    lsm_state_update(lsm);
}

static void
fiber_end(struct lsm *lsm)
{
    lsm->fibers--;
    fiber_queue_wake_all(&lsm->fibers_wake);
}

/* A lone small write fills a whole block of the log, or two, and little of a memtable: the log's
 * length, too, asks for a flush, so that neither the disk nor the next start pays for it. So do the
 * files: each start takes a segment of its own, and a process that dies soon leaves it empty. */
bool
lsm_log_is_long(const struct lsm *lsm)
{
    u64 limit =
        LOG_TO_REPLAY_FACTOR * MAX(lsm->memtable_limit_bytes, lsm->options.log_segment_bytes);
    return lsm->log != NULL &&
           (log_bytes_to_replay(lsm->log) > limit || log_bytes_kept(lsm->log) > limit);
}

/* What was deleted on a full disk is to give its room back, though no memtable fills up now and no
 * tier: it is flushed, and then merged down. One after the other, so that flushes of a few
 * tombstones each do not become many runs. */
static void
deletes_merge(struct lsm *lsm)
{
    /* What is flushed sets segments free, and ranges tables. */
    bool log_is_full = lsm->log != NULL && log_no_space(lsm->log);
    if ((log_is_full && lsm->seq_last > lsm->seq_flushed) || ranges_come_first(lsm)) {
        MARK("lsm.state.flushed_for_room");
        lsm_flush_request(lsm);
    }
    if (lsm->deletes_full_seq == 0 || levels_cleaning(lsm->levels)) return;
    if (lsm->deletes_full_seq > lsm->seq_flushed) {
        lsm_flush_request(lsm);
        return;
    }
    MARK("lsm.state.deletes_merged");
    levels_clean(lsm->levels);
    lsm->deletes_full_seq = 0;
}

static MAY_YIELD void
tend_fiber(void *arg)
{
    struct lsm *lsm = arg;
    for (u32 tick = 1; !lsm->stopping; tick++) {
        (void)fiber_queue_wait(&lsm->stop_wake, io_now_ns() + TEND_INTERVAL_NS);
        if (lsm->stopping) break;
        lsm_caches_trim(lsm);
        if (lsm->stopping) break;
        if (lsm_log_is_long(lsm)) {
            MARK("lsm.log.long");
            lsm_flush_request(lsm);
        }
        bool second = tick % DISK_CHECK_TICKS == 0;
        if (second || lsm->disk_near || is_in_memory(lsm->dir)) disk_check(lsm);
        if (second) {
            deletes_merge(lsm);
            memtable_pages_trim(&lsm->memtable_pages);
        }
    }
    fiber_end(lsm);
}

static MAY_YIELD void
flush_fiber(void *arg)
{
    lsm_flush_fiber(arg);
    fiber_end(arg);
}

static status
fiber_start(struct lsm *lsm, const char *name, void (*fn)(void *arg))
{
    status st = fiber_spawn(FIBER_BACKGROUND, name, fn, lsm);
    if (ok(st)) lsm->fibers++;
    return st;
}

static MAY_YIELD void
fibers_stop(struct lsm *lsm)
{
    lsm->stopping = true;
    fiber_queue_wake_all(&lsm->stop_wake);
    fiber_queue_wake_all(&lsm->flush_wake);
    while (lsm->fibers > 0)
        (void)fiber_queue_wait(&lsm->fibers_wake, FIBER_FOREVER);
}

/* ---- opening ---- */

static struct lsm *
lsm_new(const struct lsm_place *place, const struct lsm_options *options)
{
    CHECK(place->token_first <= place->token_last);
    size_t dir_size = strlen(place->dir);
    CHECK(dir_size + 24 < LSM_PATH_BYTES);
    struct lsm *lsm = mem_alloc_zero(io_budget(), sizeof(*lsm));
    if (lsm == NULL) return MARKED("lsm.open.no_memory", NULL);
    memcpy(lsm->dir, place->dir, dir_size + 1);
    lsm->token_first = place->token_first;
    lsm->token_last = place->token_last;
    lsm->options = *options;
    budget_init(&lsm->budget, "lsm", options->memory_bytes, io_budget());

    u64 memtable = options->memtable_bytes;
    if (memtable == 0)
        memtable = CLAMP(options->memory_bytes / 8, MEMTABLE_BYTES_MIN, MEMTABLE_BYTES_MAX);
    if (BUGGIFY("lsm.memtable.tiny")) memtable = MIN(memtable, MIB(2));
    lsm->memtable_limit_bytes = memtable;
    budget_init(&lsm->memtable_budget, "memtables", 2 * memtable + KIB(64), &lsm->budget);
    memtable_pages_init(&lsm->memtable_pages, &lsm->memtable_budget);
    if (lsm->options.log_segment_bytes == 0)
        lsm->options.log_segment_bytes = CLAMP(memtable, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);

    list_init(&lsm->snapshots);
    list_init(&lsm->scans);
    fiber_gate_init(&lsm->gate);
    fiber_queue_init(&lsm->flush_wake);
    fiber_queue_init(&lsm->room_wake);
    fiber_queue_init(&lsm->flushed_wake);
    fiber_queue_init(&lsm->durable_wake);
    fiber_queue_init(&lsm->stop_wake);
    fiber_queue_init(&lsm->fibers_wake);
    lsm->cache_row_share = CACHE_SHARE_START;
    return lsm;
}

static MAY_YIELD void
lsm_free(struct lsm *lsm)
{
    CHECK(lsm->snapshot_count == 0 && list_empty(&lsm->scans));
    lsm_memtables_free(lsm);
    /* What an opening that failed did not reach is NULL. */
    if (lsm->levels != NULL) levels_close(lsm->levels);
    log_close(lsm->log);
    if (lsm->row_cache != NULL) row_cache_free(lsm->row_cache);
    if (lsm->block_cache != NULL) block_cache_free(lsm->block_cache);
    mem_free(&lsm->budget, lsm->snapshot_seqs, lsm->snapshot_capacity * sizeof(u64));
    mem_free(&lsm->budget, lsm->try_buffer, LSM_TRY_BYTES);
    if (lsm->budget.used_bytes != 0) {
        MARK("lsm.close.memory_left");
        log_error("lsm", "memory not returned at close bytes=%llu dir=%s",
                  (unsigned long long)lsm->budget.used_bytes, lsm->dir);
    }
    DCHECK(lsm->budget.used_bytes == 0);
    mem_free(io_budget(), lsm, sizeof(*lsm));
}

static MAY_YIELD status
parts_open(struct lsm *lsm)
{
    u64 caches = lsm->budget.limit_bytes / 4;
    lsm->row_cache = row_cache_new(&lsm->budget, caches);
    lsm->block_cache = block_cache_new(&lsm->budget, caches / 4);
    lsm->try_buffer = mem_alloc(&lsm->budget, LSM_TRY_BYTES);
    if (lsm->row_cache == NULL || lsm->block_cache == NULL || lsm->try_buffer == NULL)
        return MARKED("lsm.open.parts_no_memory", ST_NO_MEMORY);

    struct levels_config config = {
        .dir = lsm->dir,
        .token_first = lsm->token_first,
        .token_last = lsm->token_last,
        .options = lsm->options,
        .budget = &lsm->budget,
        .in_memory = is_in_memory(lsm->dir),
        .row_cache = lsm->row_cache,
        .block_cache = lsm->block_cache,
        .snapshots = lsm_snapshot_seqs,
        .written = lsm_rows_inherit,
        .failed = levels_failed,
        .arg = lsm,
    };
    status st = levels_open(&config, &lsm->levels, &lsm->flush_state);
    if (!ok(st)) return st;
    if (config.in_memory) memory_reserve_set(lsm);
    lsm->seq_last = lsm->seq_flushed = lsm->flush_state.seq_flushed;
    lsm->version_last = lsm->flush_state.version_max;
    return ST_OK;
}

/* What a flush sets free, so that the next memtable's log needs no file that must be filled with
 * zeros first: of small entries in small groups that is twice a memtable. */
static u32
log_recycle_max(const struct lsm *lsm)
{
    return (u32)(LOG_KEPT_FACTOR * lsm->memtable_limit_bytes / lsm->options.log_segment_bytes);
}

/* A store that was never flushed is in its log alone. From here on its manifest says that there is
 * one, so that it is missed when it is gone, before anything is acknowledged. */
static MAY_YIELD status
log_name_first(struct lsm *lsm)
{
    if (lsm->log == NULL || lsm->flush_state.log_segment_first != 0) return ST_OK;
    struct levels_state state = lsm->flush_state;
    state.log_segment_first = log_segment_oldest(lsm->log);
    if (state.log_segment_first == 0) return MARKED("lsm.open.no_segment_to_name", ST_OK);
    status st = levels_state_set(lsm->levels, &state);
    if (status_is(st, ST_NO_SPACE) || status_is(st, ST_NO_MEMORY))
        return MARKED("lsm.open.segment_not_named", ST_OK); /* the first flush does it */
    if (!ok(st)) return st;
    lsm->flush_state = state;
    if (lsm->flushing) lsm->flushing_state.log_segment_first = state.log_segment_first;
    return ST_OK;
}

/* Without durability there is no log, but one that was left must be replayed. Its content goes to
 * tables at once, and what stays of it is an empty segment, where a later log goes on. */
static MAY_YIELD status
log_recover_all(struct lsm *lsm)
{
    if (is_in_memory(lsm->dir)) return ST_OK;
    bool none = lsm->options.durability == LSM_DURABILITY_NONE;
    bool there = false;
    if (none && lsm->flush_state.log_segment_first == 0) {
        status st = log_exists(lsm->dir, &there);
        if (!ok(st)) return st;
        if (!there) return MARKED("lsm.open.no_log_left", ST_OK);
    }
    struct log_config config = {
        .dir = lsm->dir,
        .durability = none ? LSM_DURABILITY_GROUP : lsm->options.durability,
        .sync_interval_ms = lsm->options.sync_interval_ms,
        .segment_bytes = lsm->options.log_segment_bytes,
        .recycle_max = log_recycle_max(lsm),
        .seq_flushed = lsm->seq_flushed,
        .budget = &lsm->budget,
        .durable = log_durable,
        .arg = lsm,
    };
    u64 start_ns = io_clock_ns();
    lsm->replaying = true;
    status st = log_open(&config, lsm->flush_state.log_segment_first, lsm_replay, &lsm->log);
    lsm->replaying = false;
    if (!ok(st)) return st;
    if (log_durable_seq(lsm->log) != lsm->seq_last) {
        /* A segment begins behind numbers that neither the log nor the tables have. */
        MARK("lsm.open.numbers_missing");
        log_error("lsm", "log goes on at %llu, but only %llu operations are there dir=%s",
                  (unsigned long long)log_durable_seq(lsm->log), (unsigned long long)lsm->seq_last,
                  lsm->dir);
        return ST_CORRUPT;
    }
    struct log_stats stats;
    log_stats(lsm->log, &stats);
    lsm->stats.recovery_ns = io_clock_ns() - start_ns;
    lsm->stats.recovery_records = stats.recovery_records;
    lsm->stats.recovery_bytes = stats.recovery_bytes;
    if (stats.recovery_records > 0)
        log_info("lsm", "log replayed dir=%s records=%llu bytes=%llu", lsm->dir,
                 (unsigned long long)stats.recovery_records,
                 (unsigned long long)stats.recovery_bytes);
    if (none) {
        MARK("lsm.log.left_behind");
        st = lsm_flush_now(lsm, false);
        log_close(lsm->log);
        lsm->log = NULL;
    }
    return st;
}

static MAY_YIELD status
open_once(const struct lsm_place *place, const struct lsm_options *options, struct lsm **out)
{
    struct lsm *lsm = lsm_new(place, options);
    if (lsm == NULL) return ST_NO_MEMORY;
    status st = parts_open(lsm);
    if (ok(st)) st = log_recover_all(lsm);
    if (ok(st)) st = log_name_first(lsm);
    if (!ok(st)) goto fail;
    levels_collect_orphans(lsm->levels);
    lsm_caches_balance(lsm);
    disk_check(lsm);
    /* Perhaps the last process took deletes that were not merged. */
    if (lsm->state == LSM_STATE_NO_SPACE) lsm->deletes_full_seq = lsm->seq_last;
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++)
        levels_mends_set(lsm->levels, keyspace, options->mends);
    levels_start(lsm->levels);
    lsm->flush_wanted = lsm->flushing; /* the log was replayed on a full disk */
    st = fiber_start(lsm, "lsm.flush", flush_fiber);
    if (ok(st)) st = fiber_start(lsm, "lsm.tend", tend_fiber);
    if (!ok(st)) {
        MARK("lsm.open.no_fiber");
        fibers_stop(lsm);
        levels_stop(lsm->levels);
        goto fail;
    }
    *out = lsm;
    return ST_OK;

fail:
    MARK("lsm.open.failed");
    /* What is damaged was named by who met it; what to do about it is the same for all. */
    log_error("lsm", "store cannot be opened dir=%s error=\"%s\"%s", lsm->dir, status_text(st),
              status_is(st, ST_CORRUPT) ? " do=\"" LSM_DAMAGE_ADVICE "\"" : "");
    lsm_free(lsm);
    return st;
}

MAY_YIELD status
lsm_open(const struct lsm_place *place, const struct lsm_options *options, struct lsm **out)
{
    status st = open_once(place, options, out);
    /* Of a write that failed the kernel's cache shows the bytes for a while, page by page, and then
     * the disk its own. Nothing of it was acknowledged: either is right, but all of an opening has
     * to go by the same. */
    for (u32 tries = 1; tries < OPEN_TRIES && status_is(st, ST_CONFLICT); tries++) {
        MARK("lsm.open.again");
        st = open_once(place, options, out);
    }
    return status_is(st, ST_CONFLICT) ? MARKED("lsm.open.unsteady", ST_CORRUPT) : st;
}

/* Nobody reads any more. */
static MAY_YIELD void
caches_empty(struct lsm *lsm)
{
    row_cache_limit_set(lsm->row_cache, 0);
    block_cache_limit_set(lsm->block_cache, 0);
    while ((int)row_cache_step(lsm->row_cache) | (int)block_cache_step(lsm->block_cache))
        if (fiber_should_yield()) fiber_yield();
}

MAY_YIELD status
lsm_close(struct lsm *lsm)
{
    if (lsm == NULL) return ST_OK;
    levels_stop_begin(lsm->levels); /* lsm_compact is inside the gate, and may take hours */
    fiber_gate_close(&lsm->gate);
    fibers_stop(lsm);
    levels_stop(lsm->levels);
    status st = lsm->failure;
    bool emptied = false;
    while (ok(st) && lsm->seq_flushed < lsm->seq_last) {
        st = lsm_flush_now(lsm, false);
        if (!status_is(st, ST_NO_MEMORY) || emptied) continue;
        MARK("lsm.close.caches_emptied");
        caches_empty(lsm);
        emptied = true;
        st = ST_OK;
    }
    lsm_free(lsm);
    return st;
}

/* ---- operating ---- */

MAY_YIELD status
lsm_flush(struct lsm *lsm)
{
    if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.flush.closed", ST_CLOSED);
    u64 seq = lsm->seq_last;
    status st = ST_OK;
    while (ok(st) && lsm->seq_flushed < seq) {
        if (!ok(lsm->failure))
            st = MARKED("lsm.flush.told_failed", lsm->failure);
        else if (lsm->no_space_flush)
            st = MARKED("lsm.flush.told_no_space", ST_NO_SPACE);
        else if (lsm->no_memory_flush)
            st = MARKED("lsm.flush.told_no_memory", ST_NO_MEMORY);
        if (!ok(st)) break;
        lsm_flush_request(lsm);
        (void)fiber_queue_wait(&lsm->flushed_wake, FIBER_FOREVER);
    }
    fiber_gate_leave(&lsm->gate);
    return st;
}

MAY_YIELD status
lsm_compact(struct lsm *lsm)
{
    status st = lsm_flush(lsm);
    if (!ok(st)) return st;
    if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.compact.closed", ST_CLOSED);
    st = levels_compact_all(lsm->levels);
    fiber_gate_leave(&lsm->gate);
    return st;
}

bool
lsm_damage_next(const struct lsm *lsm, u16 keyspace, u64 token, u64 *first_out, u64 *last_out)
{
    CHECK(keyspace < LIMIT_KEYSPACES);
    return levels_damage_next(lsm->levels, keyspace, token, first_out, last_out);
}

u64
lsm_damage_epoch(const struct lsm *lsm)
{
    return levels_damage_epoch(lsm->levels);
}

void
lsm_scrub_rate_set(struct lsm *lsm, u64 bytes_per_s)
{
    lsm->options.scrub_bytes_per_s = bytes_per_s;
    levels_scrub_rate_set(lsm->levels, bytes_per_s);
}

u64
lsm_count_estimate(const struct lsm *lsm, u16 keyspace)
{
    CHECK(keyspace < LIMIT_KEYSPACES);
    const struct lsm_keyspace *ks = &lsm->keyspaces[keyspace];
    u64 count = levels_count_estimate(lsm->levels, keyspace);
    u64 entries = 0;
    if (ks->flushing != NULL) entries += memtable_uncovered_count(ks->flushing);
    if (ks->active != NULL) entries += memtable_uncovered_count(ks->active);
    u64 deletes = MIN(entries, ks->delete_count);
    count += levels_count_new(lsm->levels, keyspace, entries - deletes);
    /* A tombstone is an entry that is not live, and probably makes another one so. */
    return count - MIN(count, deletes);
}

static void
log_figures(const struct lsm *lsm, struct lsm_stats *out)
{
    if (lsm->log == NULL) return;
    struct log_stats log;
    log_stats(lsm->log, &log);
    out->log_bytes = log.bytes;
    out->log_writes = log.writes;
    out->log_segments = log.segments;
    out->log_bytes_to_replay = log.bytes_to_replay;
    out->log_write_ns = log.write_ns;
}

static bool
log_is_slow(const struct lsm *lsm)
{
    return lsm->log != NULL && log_busy_ns(lsm->log) > LSM_STUCK_NS;
}

bool
lsm_is_stuck(const struct lsm *lsm)
{
    return lsm->state != LSM_STATE_OK || lsm_index_is_full(lsm) || log_is_slow(lsm);
}

bool
lsm_reserve_is_stuck(const struct lsm *lsm)
{
    return (lsm->state != LSM_STATE_OK && !lsm_gives_reserve(lsm)) || log_is_slow(lsm);
}

void
lsm_stats_get(const struct lsm *lsm, struct lsm_stats *out)
{
    *out = lsm->stats;
    levels_stats(lsm->levels, out);
    log_figures(lsm, out);
    out->state = lsm->state;
    memcpy(out->failure, lsm->failure_text, sizeof(out->failure));
    out->seq_last = lsm->seq_last;
    out->seq_durable = lsm_durable_seq(lsm);
    out->memtable_bytes_limit = lsm->memtable_limit_bytes;
    out->memtable_bytes = lsm->memtable_budget.used_bytes;
    out->keys_estimate = 0;
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++)
        out->keys_estimate += lsm_count_estimate(lsm, (u16)i);
    struct cache_stats rows, blocks;
    row_cache_stats(lsm->row_cache, &rows);
    block_cache_stats(lsm->block_cache, &blocks);
    out->row_cache_bytes = rows.bytes;
    out->row_cache_hits = rows.hits;
    out->row_cache_misses = rows.misses;
    out->block_cache_bytes = blocks.bytes;
    out->block_cache_hits = blocks.hits;
    out->block_cache_misses = blocks.misses;
    out->snapshots_open = lsm->snapshot_count;
    out->memory_bytes = lsm->budget.used_bytes;
    out->memory_limit_bytes = lsm->budget.limit_bytes;
}

MAY_YIELD status
lsm_verify(const char *dir,
           void (*report)(void *arg, const char *file, u64 offset, const char *what), void *arg,
           u64 *files_out, u64 *bytes_out)
{
    u64 files = 0, bytes = 0, log_files = 0, log_bytes = 0;
    struct levels_state state = {0};
    status st = levels_verify(dir, report, arg, &files, &bytes, &state);
    /* Without a manifest it is not known where the log must begin. */
    if (ok(st) || state.log_segment_first != 0) {
        status log_st =
            log_verify(dir, state.log_segment_first, report, arg, &log_files, &log_bytes);
        if (ok(st)) st = log_st;
    }
    *files_out = files + log_files;
    *bytes_out = bytes + log_bytes;
    return st;
}

/* Whether every invariant that can be seen from here holds. */
bool
lsm_check(struct lsm *lsm)
{
    u64 used = (u64)lsm->memtable_pages.count * MEM_PAGE_BYTES;
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++) {
        struct lsm_keyspace *ks = &lsm->keyspaces[i];
        struct memtable *tables[] = {ks->active, ks->flushing};
        for (u32 j = 0; j < ARRAY_COUNT(tables); j++) {
            if (tables[j] == NULL) continue;
            used += memtable_used_bytes(tables[j]);
            if (!memtable_check(tables[j])) return false;
            if (memtable_seq_max(tables[j]) > lsm->seq_last) return false;
            if (memtable_version_max(tables[j]) > lsm->version_last) return false;
        }
        if (ks->active != NULL && ks->flushing != NULL && memtable_seq_max(ks->active) != 0 &&
            memtable_seq_min(ks->active) <= memtable_seq_max(ks->flushing))
            return false;
    }
    u64 previous = 0;
    u32 snapshots = 0;
    list_for_each (link, &lsm->snapshots) {
        u64 seq = list_entry(link, struct lsm_snapshot, link)->seq;
        if (seq < previous || seq > lsm->seq_last) return false;
        previous = seq;
        snapshots++;
    }
    return snapshots == lsm->snapshot_count && used <= lsm->memtable_budget.used_bytes &&
           lsm->seq_flushed <= lsm->seq_last && lsm_durable_seq(lsm) <= lsm->seq_last &&
           levels_check(lsm->levels) && (lsm->log == NULL || log_check(lsm->log));
}
