/* SPDX-License-Identifier: MIT
 *
 * lsm_write.c -- batches into log and memtables, admission, and the flush.
 *
 * lsm_write_try asks everything that could fail before it changes anything: state, log, memory,
 * compaction's pressure, the range list. From the append on nothing fails and nothing yields, so a
 * batch is visible as a whole, its numbers follow each other, and log and memtables agree.
 *
 * A full disk. A batch that only deletes is taken as long as log and memtables have room: the disk
 * reserve pays for it, and the log keeps the end of its last segment for it. It is merged soon, and
 * a range is flushed at once, so that whole tables go. A manifest has room where the copy of the
 * one before lies (manifest_file.c).
 *
 * Memory. Indexes of tables stay in memory as long as the tables are there. When they have much
 * of it (lsm.c), or a flush has found none, the same batches are taken as on a full disk, and
 * merged soon: what gives room back must not need what there is none of. A range needs none in
 * memtables, and a flush that is tried again goes by it. What is of the reserve is taken as long as
 * flushes go. What is refused for the indexes' sake is ST_FULL: nobody's end brings that memory back,
 * so it is not waited for. ST_NO_MEMORY may be another status a moment later.
 *
 * Of the reserve. What is little and others wait for (lsm_batch.of_reserve) is taken, too, but only
 * while nothing has really failed to find room. Raft's log: a member that does not follow it holds
 * up every plan, also the one that would take data away from here. A mark of the clock each half
 * minute: until then no member collects what was deleted, and tombstones are as many entries as the
 * keys had. Markers of hints: what was delivered is not deleted before. Each takes a block of
 * the log or two, whatever it holds. When they have taken RESERVE_PART of the reserve they wait for
 * a flush, which sets those segments free again; the first half of that asks for it. So with those
 * that come while it runs they never have more than a quarter of the reserve, in whole segments,
 * and the rest is for deletes and merges. (In memory, where there is no log: a quarter of what is
 * set aside there.) Nothing else of KEYSPACE_SYSTEM is taken: leases for what clients write bring a
 * full member no further, and there is no end to them.
 *
 * Admission. Memtables full: a flush is under way, wait. Compaction behind: the rate at which bytes
 * may enter falls with its pressure, smoothly from 1 GiB/s at half to 1 MiB/s at the end, where
 * writes are refused. Whoever would wait longer than ADMIT_WAIT_NS is refused at once: an early
 * answer is worth more to a client than a late one. Of a keyspace that waits to be mended they are
 * never refused for that, since who mends it has to write to others of the store; only to the
 * keyspace itself, when its runs could not be scanned any more.
 *
 * Holding. lsm_writes_hold makes write_inside say ST_WOULD_WAIT before anything else. It is asked
 * anew after each wait, so what waited for room when the hold began does not slip through it.
 *
 * A flush takes all keyspaces at once. It first rotates the log (so the segments before hold what
 * is flushed), then makes the active memtables the flushing ones and notes the last number. Records
 * that came between the two lie in the new segment and in the flushed memtables; recovery leaves
 * out what is not above seq_flushed. When the disk is too full for another segment the flush goes
 * on without rotating: the segments that it sets free are what is needed.
 */
#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/lsm_internal.h"
#include "lsm/range_list.h"

#define PRESSURE_FREE   500u  /* below this nobody is slowed down */
#define PRESSURE_END    1000u /* levels_pressure: refuse */
#define ADMIT_RATE_MAX  GIB(1)
#define ADMIT_HALVINGS  10u /* from the highest to the lowest rate */
#define ADMIT_BURST_NS  (5 * NS_PER_MS)
#define ADMIT_WAIT_NS   (200 * NS_PER_MS)
#define FLUSH_EARLY     8u   /* this part of a memtable is still free when its flush begins */
#define FLUSH_SHARE     800u /* of the shard's time, at most, beyond what background work has */
#define FLUSH_RETRY_NS  NS_PER_S
#define MEMORY_RETRY_NS (20 * NS_PER_MS)
#define RESERVE_PART    8u /* of the disk reserve, between two flushes */

/* ---- admission ---- */

/* Bytes a second at this pressure: halved ADMIT_HALVINGS times, linear in between. */
static u64
admit_rate(u32 pressure)
{
    u32 above = MIN(pressure, PRESSURE_END) - PRESSURE_FREE;
    u32 step = (PRESSURE_END - PRESSURE_FREE) / ADMIT_HALVINGS;
    u64 rate = ADMIT_RATE_MAX >> (above / step);
    return rate - rate / 2 * (above % step) / step;
}

static status
admit_pressure(struct lsm *lsm, u64 bytes)
{
    u32 pressure = levels_pressure(lsm->levels);
    if (pressure < PRESSURE_FREE) return ST_OK;
    if (pressure >= PRESSURE_END) {
        MARK("lsm.write.overloaded");
        return ST_OVERLOADED;
    }
    u64 now = io_now_ns();
    if (lsm->admit_ns > now + ADMIT_WAIT_NS)
        return MARKED("lsm.write.wait_too_long", ST_OVERLOADED);
    if (lsm->admit_ns > now) {
        MARK("lsm.write.slowed");
        return ST_WOULD_WAIT;
    }
    u64 start = MAX(lsm->admit_ns, now > ADMIT_BURST_NS ? now - ADMIT_BURST_NS : 0);
    lsm->admit_ns = start + bytes * (NS_PER_S / 1024) / (admit_rate(pressure) / 1024);
    return ST_OK;
}

static status
admit_state(const struct lsm *lsm)
{
    switch (lsm->state) {
    case LSM_STATE_OK:
        if (lsm->no_memory_flush)
            return MARKED("lsm.write.flush_no_memory",
                          lsm_index_is_full(lsm) ? ST_FULL : ST_NO_MEMORY);
        return lsm_index_is_full(lsm) ? MARKED("lsm.write.index_full", ST_FULL) : ST_OK;
    case LSM_STATE_NO_SPACE:
        return MARKED("lsm.write.no_space", ST_NO_SPACE);
    case LSM_STATE_FAILED:
        return MARKED("lsm.write.read_only", ST_READ_ONLY);
    }
    return ST_READ_ONLY;
}

/* ---- room in the memtables ---- */

void
lsm_flush_request(struct lsm *lsm)
{
    lsm->flush_wanted = true;
    fiber_queue_wake_all(&lsm->flush_wake);
}

/* Writers that are faster than the flush wait for it in the end, all of them and for all that is
 * left of it. So the fuller the memtable is that they fill meanwhile, the more time it gets. */
static void
flush_pace(struct lsm *lsm, u64 active)
{
    if (!lsm->flush_running) return;
    u64 limit = lsm->memtable_limit_bytes;
    io_background_share_set(IO_BACKGROUND_SHARE + (u32)(FLUSH_SHARE * MIN(active, limit) / limit));
}

struct need {
    u64 bytes;
    u32 count;
};

static u64
active_bytes(const struct lsm *lsm)
{
    u64 bytes = 0;
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++)
        if (lsm->keyspaces[i].active != NULL)
            bytes += memtable_used_bytes(lsm->keyspaces[i].active);
    return bytes;
}

static bool
active_is_empty(const struct lsm *lsm)
{
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++)
        if (lsm->keyspaces[i].active != NULL && memtable_entry_count(lsm->keyspaces[i].active) > 0)
            return false;
    return true;
}

static bool
is_flushing(const struct lsm *lsm)
{
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++)
        if (lsm->keyspaces[i].flushing != NULL) return true;
    return lsm->flush_running;
}

/* Lets go of active memtables that hold nothing: a reservation that did not succeed. */
static void
active_drop_empty(struct lsm *lsm)
{
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++) {
        struct memtable **active = &lsm->keyspaces[i].active;
        if (*active == NULL || memtable_entry_count(*active) > 0) continue;
        memtable_unref(*active);
        *active = NULL;
    }
}

static struct memtable *
active_new(struct lsm *lsm)
{
    struct memtable *memtable = memtable_new(&lsm->memtable_budget, lsm->token_first,
                                             lsm->token_last, lsm->memtable_limit_bytes);
    if (memtable == NULL && lsm->memtable_pages.count > 0) {
        memtable_pages_drop(&lsm->memtable_pages);
        memtable = memtable_new(&lsm->memtable_budget, lsm->token_first, lsm->token_last,
                                lsm->memtable_limit_bytes);
    }
    if (memtable != NULL) memtable_pages_use(memtable, &lsm->memtable_pages);
    return memtable;
}

static bool
memtables_fit(struct lsm *lsm, const struct need *needs)
{
    u64 active = active_bytes(lsm);
    if (active >= lsm->memtable_limit_bytes && !active_is_empty(lsm)) return false;
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++) {
        if (needs[i].count == 0) continue;
        struct lsm_keyspace *ks = &lsm->keyspaces[i];
        if (ks->active == NULL) {
            ks->active = active_new(lsm);
            if (ks->active == NULL) return false;
        }
        if (!memtable_fits(ks->active, needs[i].bytes, needs[i].count)) return false;
    }
    return true;
}

/* Room for these entries, or why not: ST_WOULD_WAIT when a flush will make it. */
static status
memtables_reserve(struct lsm *lsm, const struct need *needs)
{
    if (memtables_fit(lsm, needs)) return ST_OK;
    bool empty = active_is_empty(lsm);
    if (!empty || is_flushing(lsm)) {
        MARK("lsm.write.memtable_full");
        if (empty) active_drop_empty(lsm);
        lsm_flush_request(lsm);
        return ST_WOULD_WAIT;
    }
    active_drop_empty(lsm);
    memtable_pages_drop(&lsm->memtable_pages);
    if (lsm->memtable_budget.used_bytes == 0) {
        /* Nothing else is there: it never fits, or the store as a whole is out of memory. */
        if (budget_available(&lsm->budget) < lsm->memtable_limit_bytes)
            return MARKED("lsm.write.no_memory", ST_NO_MEMORY);
        return MARKED("lsm.write.never_fits", ST_TOO_LARGE);
    }
    MARK("lsm.write.memtables_held"); /* flushed ones by readers */
    lsm_scans_detach(lsm);
    status st = memtables_fit(lsm, needs) ? ST_OK : ST_NO_MEMORY;
    if (!ok(st)) {
        MARK("lsm.write.held_for_good");
        active_drop_empty(lsm);
    }
    return st;
}

static void
need_add(struct need *needs, const struct lsm_op *op)
{
    if (op->header.kind == ENTRY_DELETE_RANGE) return;
    struct need *need = &needs[op->header.keyspace];
    need->bytes += op->key.size + op->value.size;
    need->count++;
}

/* ---- applying ---- */

/* aim: of its key, or NULL. */
static void
op_apply(struct lsm *lsm, const struct lsm_op *op, const struct lsm_aim *aim, u64 seq, u64 version)
{
    struct lsm_keyspace *ks = &lsm->keyspaces[op->header.keyspace];
    struct entry entry = {
        .token = op->header.token,
        .key = op->key,
        .value = op->value,
        .version = version,
        .seq = seq,
        .expire_ms = op->header.expire_ms,
        .kind = op->header.kind,
        .flags = op->header.flags,
    };
    memtable_insert_near(ks->active, &entry, lsm->snapshot_count > 0,
                         aim != NULL ? aim->leaf : NULL);
    if (entry.kind == ENTRY_DELETE) ks->delete_count++;
    if (UNLIKELY(ks->marks != NULL)) {
        u64 place = (entry.token - lsm->token_first) >> ks->marks_shift;
        ks->marks[place / 64] |= (u64)1 << place % 64;
    }
    if (lsm->replaying) return; /* nobody has read yet: nothing is cached */
    u64 key_hash = aim != NULL ? aim->key_hash : hash_key(op->key, 0);
    lsm->write_marks[key_hash % LSM_WRITE_MARKS]++;
    row_cache_write(lsm->row_cache, op->header.keyspace, key_hash, &entry);
}

/* Ranges take no room in memtables, so nothing else would ask for the flush that lets go of them:
 * early, so that whoever deletes again and again does not meet the end, but not for each one when
 * there are many that are still needed. */
static void
ranges_flush_request(struct lsm *lsm, bool refused)
{
    u32 fresh = levels_range_count(lsm->levels, lsm->seq_flushed);
    if (fresh < (refused ? 1 : LEVELS_RANGES_MAX / 8)) return;
    MARK("lsm.write.many_ranges");
    lsm_flush_request(lsm);
}

static status
range_apply(struct lsm *lsm, const struct lsm_op *op, u64 seq, u64 version)
{
    u64 first = MAX(op->header.token, lsm->token_first);
    u64 last = MIN(load_u64(op->value.data), lsm->token_last);
    if (first > last) return MARKED("lsm.write.range_elsewhere", ST_OK);
    status st = levels_range_delete(lsm->levels, op->header.keyspace, first, last, version, seq);
    if (!lsm->replaying) ranges_flush_request(lsm, !ok(st));
    if (!ok(st)) return st;
    if (first == lsm->token_first && last == lsm->token_last) {
        struct lsm_keyspace *ks = &lsm->keyspaces[op->header.keyspace];
        if (ks->active != NULL) memtable_cover(ks->active);
        if (ks->flushing != NULL) memtable_cover(ks->flushing);
        ks->delete_count = 0;
    }
    const struct lsm_keyspace *marked = &lsm->keyspaces[op->header.keyspace];
    if (marked->marks != NULL) {
        u64 from = (first - lsm->token_first) >> marked->marks_shift;
        u64 to = (last - lsm->token_first) >> marked->marks_shift;
        for (u64 place = from; place <= to; place++)
            marked->marks[place / 64] |= (u64)1 << place % 64;
    }
    lsm->range_marks++;
    row_cache_clear(lsm->row_cache);
    return ST_OK;
}

static u64
clock_next(const struct lsm *lsm)
{
    return MAX(lsm->version_last + 1, io_wall_ms() << 16);
}

struct batch_shape {
    struct need needs[LIMIT_KEYSPACES];
    struct lsm_op first;
    u16 keyspace;  /* LOG_KEYSPACE_MIXED when they differ */
    u32 partition; /* LOG_PARTITION_MIXED when they differ */
    bool range;
};

/* What we encoded ourselves must decode: anything else is a programmer's error. */
static void
batch_measure(const struct lsm *lsm, const struct lsm_batch *batch, struct batch_shape *out)
{
    *out = (struct batch_shape){0};
    struct bytes rest = buf_bytes(&batch->ops);
    u32 count = 0;
    struct lsm_op op;
    bool bad;
    while (lsm_op_next(&rest, &op, &bad)) {
        u32 partition = token_partition(op.header.token, PARTITION_COUNT_DEFAULT);
        if (count++ == 0) {
            out->first = op;
            out->keyspace = op.header.keyspace;
            out->partition = partition;
        }
        if (op.header.keyspace != out->keyspace) out->keyspace = LOG_KEYSPACE_MIXED;
        if (partition != out->partition) out->partition = LOG_PARTITION_MIXED;
        if (op.header.kind == ENTRY_DELETE_RANGE) {
            out->range = true;
            out->partition = LOG_PARTITION_MIXED;
        } else {
            CHECK(op.header.token >= lsm->token_first && op.header.token <= lsm->token_last);
        }
        need_add(out->needs, &op);
    }
    CHECK(!bad && count == batch->count);
    CHECK(!out->range || count == 1);
}

/* The operation at p, of a batch that batch_measure has checked; returns where the next one is. */
static const u8 *
op_again(const u8 *p, struct lsm_op *out)
{
    memcpy(&out->header, p, sizeof(out->header));
    out->key = BYTES(p + sizeof(out->header), out->header.key_size);
    out->value = BYTES(out->key.data + out->key.size, out->header.value_size);
    return out->value.data + out->value.size;
}

/* Then it is taken on a full disk, and without memory, too: it is how there is room again. */
static bool
only_deletes(const struct lsm_batch *batch)
{
    const u8 *next = batch->ops.data;
    for (u32 i = 0; i < batch->count; i++) {
        struct lsm_op op;
        next = op_again(next, &op);
        if (op.header.kind != ENTRY_DELETE && op.header.kind != ENTRY_DELETE_RANGE) return false;
    }
    return true;
}

static u64
reserve_part(const struct lsm *lsm)
{
    u64 reserve = lsm_in_memory(lsm) ? lsm->memory_reserve : lsm->options.disk_reserve_bytes;
    return reserve / RESERVE_PART;
}

bool
lsm_gives_reserve(const struct lsm *lsm)
{
    bool no_room =
        lsm->no_space_levels || lsm->no_space_flush || (lsm->log != NULL && log_no_space(lsm->log));
    return lsm->state == LSM_STATE_NO_SPACE && !no_room && lsm->reserve_taken < reserve_part(lsm);
}

static void
reserve_take(struct lsm *lsm, u64 bytes)
{
    MARK("lsm.write.of_reserve");
    lsm->reserve_taken += bytes + 2 * IO_ALIGNMENT; /* both blocks in part, at most */
    if (lsm->reserve_taken >= reserve_part(lsm) / 2) lsm_flush_request(lsm);
}

/* *full: the disk is, and the batch only deletes. */
static status
admit_log(struct lsm *lsm, const struct lsm_batch *batch, bool *full)
{
    if (lsm->log == NULL) return ST_OK;
    status st = log_append_check(lsm->log, batch->ops.size, *full);
    if (!status_is(st, ST_NO_SPACE) || *full || !only_deletes(batch)) return st;
    *full = true;
    return log_append_check(lsm->log, batch->ops.size, true);
}

/* What is to become of deletes that were taken on a full disk, or without memory. A range needs only to be in the
 * manifest for its tables to go, keys have to be merged: lsm.c. */
static void
deletes_taken(struct lsm *lsm, bool range)
{
    MARK("lsm.write.deletes_when_full");
    lsm->deletes_full_seq = lsm->seq_last;
    if (range) lsm_flush_request(lsm);
}

static status
admit_runs(const struct lsm *lsm, const struct need *needs)
{
    u32 full = levels_full(lsm->levels);
    for (u32 i = 0; full != 0 && i < LIMIT_KEYSPACES; i++)
        if (full >> i & 1 && needs[i].count > 0)
            return MARKED("lsm.write.too_many_runs", ST_OVERLOADED);
    return ST_OK;
}

/* Whether deletes of keys are taken though memory is short. st: of memtables_reserve. */
static bool
scarce_takes(const struct lsm *lsm, status st)
{
    bool waits_for_flush = lsm->no_memory_flush && status_is(st, ST_WOULD_WAIT);
    return !waits_for_flush && lsm_index_takes_deletes(lsm);
}

/* aims: NULL, or of the keys of all operations. */
static status
write_inside(struct lsm *lsm, const struct lsm_batch *batch, const struct lsm_aim *aims,
             u64 *seq_out)
{
    if (batch->count == 0) {
        *seq_out = lsm->seq_last;
        return ST_OK;
    }
    if (UNLIKELY(batch->until_ms != 0) && io_wall_ms() >= batch->until_ms) return ST_CONFLICT;
    if (batch->count > LIMIT_BATCH_OPS || batch->ops.size > LIMIT_BATCH_BYTES)
        return MARKED("lsm.write.batch_too_large", ST_TOO_LARGE);
    if (UNLIKELY(lsm->merge_awaited)) {
        lsm_memory_check(lsm);
        if (lsm->merge_awaited) return MARKED("lsm.write.merge_awaited", ST_WOULD_WAIT);
    }
    status st = admit_state(lsm), lacking = st;
    bool no_memory = status_is(st, ST_NO_MEMORY) || status_is(st, ST_FULL);
    bool full = status_is(st, ST_NO_SPACE) && only_deletes(batch);
    bool scarce = no_memory && only_deletes(batch);
    bool of_reserve =
        status_is(st, ST_NO_SPACE) && !full && batch->of_reserve && lsm_gives_reserve(lsm);
    bool little = no_memory && batch->of_reserve && !lsm->no_memory_flush;
    if (!ok(st) && !full && !scarce && !of_reserve && !little) return st;
    if (UNLIKELY(lsm->writes_held > 0)) {
        MARK("lsm.write.held");
        return ST_WOULD_WAIT;
    }
    if (UNLIKELY(lsm->large != NULL && lsm->large != batch))
        return MARKED("lsm.write.large_first", ST_WOULD_WAIT);
    st = admit_log(lsm, batch, &full);
    if (!ok(st)) return st;
    struct batch_shape shape;
    batch_measure(lsm, batch, &shape);
    /* A range needs nothing of them, so a flush that finds no room does not hold it up. */
    st = shape.range ? ST_OK : memtables_reserve(lsm, shape.needs);
    if (full && lsm->no_space_flush && status_is(st, ST_WOULD_WAIT))
        return MARKED("lsm.write.no_space_to_flush", ST_NO_SPACE);
    if (scarce && !shape.range && !scarce_takes(lsm, st))
        return MARKED("lsm.write.no_memory_to_delete", lacking);
    /* A range takes nothing of what pressure is about, and tables with it. */
    if (ok(st)) st = admit_runs(lsm, shape.needs);
    if (ok(st) && !((full || scarce) && shape.range)) st = admit_pressure(lsm, batch->ops.size);
    if (!ok(st)) return st;

    u64 version = batch->version != 0 ? batch->version : clock_next(lsm);
    u64 seq_first = lsm->seq_last + 1;
    if (shape.range) {
        /* What the list of ranges refuses must not be in the log, and the other way round. */
        if (lsm->log != NULL) st = log_reserve(lsm->log, batch->ops.size);
        if (ok(st)) st = range_apply(lsm, &shape.first, seq_first, version);
        if (!ok(st)) return st;
    }
    if (lsm->log != NULL) {
        struct log_record record = {
            .kind = LOG_RECORD_BATCH,
            .keyspace = shape.keyspace,
            .partition = shape.partition,
            .seq_first = seq_first,
            .version = version,
            .count = batch->count,
        };
        st = log_append(lsm->log, &record, buf_bytes(&batch->ops));
        CHECK(ok(st) || !shape.range); /* log_reserve */
        if (!ok(st)) return st;
    }
    lsm->seq_last += batch->count;
    lsm->version_last = MAX(lsm->version_last, version);

    const u8 *next = batch->ops.data;
    for (u32 i = 0; !shape.range && i < batch->count; i++) {
        struct lsm_op op;
        next = op_again(next, &op);
        op_apply(lsm, &op, aims != NULL ? &aims[i] : NULL, seq_first + i, version);
    }
    lsm->stats.writes++;
    lsm->stats.write_bytes += batch->ops.size;
    levels_user_bytes(lsm->levels, batch->ops.size);
    /* Early, so that nobody waits for room while the log changes its segment. */
    u64 active = active_bytes(lsm);
    if (active >= lsm->memtable_limit_bytes - lsm->memtable_limit_bytes / FLUSH_EARLY)
        lsm_flush_request(lsm);
    flush_pace(lsm, active);
    if (UNLIKELY(full || scarce)) deletes_taken(lsm, shape.range);
    if (UNLIKELY(of_reserve)) reserve_take(lsm, batch->ops.size);
    *seq_out = lsm->seq_last;
    AUDIT("lsm.write.done", lsm_check(lsm));
    return ST_OK;
}

status
lsm_write_aimed(struct lsm *lsm, const struct lsm_batch *batch, const struct lsm_aim *aims,
                u64 *seq_out)
{
    if (lsm->gate.closed) return MARKED("lsm.write.try_closed", ST_CLOSED);
    status st = write_inside(lsm, batch, aims, seq_out);
    if (!ok(st) && !status_is(st, ST_WOULD_WAIT)) lsm->stats.writes_refused++;
    return st;
}

status
lsm_write_try(struct lsm *lsm, const struct lsm_batch *batch, u64 *seq_out)
{
    return lsm_write_aimed(lsm, batch, NULL, seq_out);
}

/* Waits for what made the last attempt say ST_WOULD_WAIT. Whatever it was, the next attempt tells;
 * deadlines only guard against a wake-up that belongs to somebody else. Never for all that others
 * owe for the pressure of compaction: perhaps this one waits for a memtable. */
static MAY_YIELD void
write_wait(struct lsm *lsm, size_t bytes, u64 deadline_ns)
{
    u64 now = io_now_ns();
    u64 until = MIN(now + 10 * NS_PER_MS, deadline_ns);
    if (lsm->writes_held > 0) {
        (void)fiber_queue_wait(&lsm->room_wake, until);
        return;
    }
    if (lsm->log != NULL && !ok(log_append_check(lsm->log, bytes, false))) {
        log_wait_room(lsm->log);
        return;
    }
    if (lsm->admit_ns > now) until = MIN(until, lsm->admit_ns);
    (void)fiber_queue_wait(&lsm->room_wake, until);
}

void
lsm_turn_leave(struct lsm *lsm, const struct lsm_batch *batch)
{
    if (lsm->large != batch) return;
    lsm->large = NULL;
    fiber_queue_wake_all(&lsm->room_wake);
}

/* A batch that needs much of the log's buffers has nobody go past it until it has them, for as long
 * as what is under way takes; else it would wait for as long as others write. */
void
lsm_turn_take(struct lsm *lsm, const struct lsm_batch *batch)
{
    if (lsm->log == NULL || !log_queue_is_short(lsm->log, batch->ops.size)) {
        lsm_turn_leave(lsm, batch);
    } else if (lsm->large == NULL) {
        MARK("lsm.write.large_in_turn");
        lsm->large = batch;
    }
}

MAY_YIELD status
lsm_write_until(struct lsm *lsm, const struct lsm_batch *batch, u64 deadline_ns, u64 *seq_out)
{
    if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.write.closed", ST_CLOSED);
    status st = write_inside(lsm, batch, NULL, seq_out);
    while (status_is(st, ST_WOULD_WAIT)) {
        if (lsm->gate.closed) {
            MARK("lsm.write.closed_waiting");
            st = ST_CLOSED;
            break;
        }
        if (io_now_ns() >= deadline_ns) {
            MARK("lsm.write.too_late");
            st = ST_TIMED_OUT;
            break;
        }
        lsm_turn_take(lsm, batch);
        write_wait(lsm, batch->ops.size, deadline_ns);
        st = io_now_ns() < deadline_ns ? write_inside(lsm, batch, NULL, seq_out) : st;
    }
    lsm_turn_leave(lsm, batch);
    if (!ok(st)) lsm->stats.writes_refused++;
    fiber_gate_leave(&lsm->gate);
    return st;
}

MAY_YIELD status
lsm_write(struct lsm *lsm, const struct lsm_batch *batch, u64 *seq_out)
{
    return lsm_write_until(lsm, batch, FIBER_FOREVER, seq_out);
}

void
lsm_writes_hold(struct lsm *lsm)
{
    if (lsm->writes_held++ == 0) lsm->writes_held_ns = io_clock_ns();
}

void
lsm_writes_release(struct lsm *lsm)
{
    CHECK(lsm->writes_held > 0);
    if (--lsm->writes_held > 0) return;
    histogram_record(&lsm->stats.writes_held_ns, io_clock_ns() - lsm->writes_held_ns);
    fiber_queue_wake_all(&lsm->room_wake);
}

/* ---- flushing ---- */

/* Where recovery must begin once what is in the memtables now has been flushed. */
static MAY_YIELD status
log_boundary(struct lsm *lsm, u64 *segment_out)
{
    *segment_out = lsm->flush_state.log_segment_first;
    if (lsm->log == NULL) return ST_OK;
    status st = log_rotate(lsm->log, segment_out);
    if (!status_is(st, ST_NO_SPACE)) return st;
    MARK("lsm.flush.without_rotation");
    *segment_out = MAX(log_segment_started(lsm->log), lsm->flush_state.log_segment_first);
    return ST_OK;
}

/* The active memtables become the flushing ones. No yield: the number and the set agree. */
static void
memtables_switch(struct lsm *lsm, u64 log_segment_first)
{
    CHECK(!lsm->flushing);
    active_drop_empty(lsm);
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++) {
        CHECK(lsm->keyspaces[i].flushing == NULL);
        lsm->keyspaces[i].flushing = lsm->keyspaces[i].active;
        lsm->keyspaces[i].active = NULL;
        lsm->keyspaces[i].delete_count = 0;
    }
    lsm->flushing = true;
    lsm->flush_wanted = false; /* whoever asked until now gets this one */
    lsm->reserve_taken = 0;
    lsm->flushing_state = (struct levels_state){
        .log_segment_first = log_segment_first,
        .seq_flushed = lsm->seq_last,
        .version_max = lsm->version_last,
    };
    fiber_queue_wake_all(&lsm->room_wake);
}

static u32
flushing_inputs(const struct lsm *lsm, struct levels_flush *inputs, u64 *bytes_out)
{
    u32 count = 0;
    u64 bytes = 0;
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++) {
        struct memtable *memtable = lsm->keyspaces[i].flushing;
        if (memtable == NULL) continue;
        inputs[count++] = (struct levels_flush){.keyspace = (u16)i, .memtable = memtable};
        bytes += memtable_used_bytes(memtable);
    }
    *bytes_out = bytes;
    return count;
}

/* An older version that lies in a memtable is not looked for when something that hides it is
 * merged, so what waits begins when those have become runs. */
static void
purge_begin(struct lsm *lsm, u16 keyspace)
{
    struct lsm_keyspace *ks = &lsm->keyspaces[keyspace];
    if (ks->purge_below == 0 || ks->purge_seq > lsm->seq_flushed) return;
    levels_purge_allow(lsm->levels, keyspace, ks->purge_below, ks->purge_expire_ms);
    ks->purge_below = 0;
}

static void
flushing_done(struct lsm *lsm)
{
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++) {
        memtable_unref(lsm->keyspaces[i].flushing);
        lsm->keyspaces[i].flushing = NULL;
    }
    lsm->flushing = false;
    lsm->flush_state = lsm->flushing_state;
    lsm->seq_flushed = lsm->flush_state.seq_flushed;
    lsm->stats.flushes++;
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++)
        purge_begin(lsm, (u16)i);
}

void
lsm_purge_allow(struct lsm *lsm, u16 keyspace, u64 version_below, u64 expire_below_ms)
{
    CHECK(keyspace < LIMIT_KEYSPACES_CLIENT && lsm->options.outside_versions);
    struct lsm_keyspace *ks = &lsm->keyspaces[keyspace];
    if (version_below <= ks->purge_allowed) return;
    /* One that waits already is put off by this; callers are minutes apart. */
    ks->purge_below = ks->purge_allowed = version_below;
    ks->purge_expire_ms = expire_below_ms;
    ks->purge_seq = lsm->seq_last;
    purge_begin(lsm, keyspace);
}

void
lsm_purge_forget(struct lsm *lsm)
{
    CHECK(lsm->options.outside_versions);
    for (u32 i = 0; i < LIMIT_KEYSPACES_CLIENT; i++) {
        lsm->keyspaces[i].purge_below = lsm->keyspaces[i].purge_allowed = 0;
        levels_purge_allow(lsm->levels, (u16)i, 0, 0);
    }
}

void
lsm_drop_set(struct lsm *lsm, u16 keyspace, const u64 *bits, u32 shift)
{
    CHECK(keyspace < LIMIT_KEYSPACES && shift < 64);
    levels_drop_set(lsm->levels, keyspace, bits, shift, lsm->seq_last);
    /* What goes without a trace must not come back from a cache, nor get there late. */
    lsm->range_marks++;
    row_cache_clear(lsm->row_cache);
}

void
lsm_mends_set(struct lsm *lsm, u16 keyspace, bool mends)
{
    CHECK(keyspace < LIMIT_KEYSPACES);
    levels_mends_set(lsm->levels, keyspace, mends);
}

void
lsm_marks_set(struct lsm *lsm, u16 keyspace, u64 *marks, u32 shift)
{
    CHECK(keyspace < LIMIT_KEYSPACES && shift < 64);
    lsm->keyspaces[keyspace].marks = marks;
    lsm->keyspaces[keyspace].marks_shift = shift;
}

u64
lsm_purge_below(const struct lsm *lsm, u16 keyspace)
{
    CHECK(keyspace < LIMIT_KEYSPACES);
    return lsm->keyspaces[keyspace].purge_allowed;
}

/* Sleeps before another attempt; false: the store is being closed. */
static MAY_YIELD bool
flush_retry(struct lsm *lsm, u64 after_ns)
{
    if (lsm->stopping) return MARKED("lsm.flush.not_retried", false);
    (void)fiber_queue_wait(&lsm->stop_wake, io_now_ns() + after_ns);
    return !lsm->stopping;
}

/* Ranges deleted up to this are there after a crash, when what they cover is not. Without a log
 * that is only so for those of the flush itself; memory survives no crash. */
static u64
ranges_kept_seq(const struct lsm *lsm)
{
    if (lsm_in_memory(lsm)) return lsm->seq_last;
    return lsm->log == NULL || lsm->replaying ? 0 : log_kept_seq(lsm->log);
}

static MAY_YIELD status
levels_flush_retried(struct lsm *lsm, const struct levels_flush *inputs, u32 count,
                     const struct levels_state *state, bool wait)
{
    u32 kept = LOG_RECYCLE_LEAST;
    for (;;) {
        status st = levels_flush(lsm->levels, inputs, count, state, ranges_kept_seq(lsm));
        bool no_space = status_is(st, ST_NO_SPACE);
        bool no_memory = status_is(st, ST_NO_MEMORY);
        lsm->no_space_flush = no_space;
        lsm->no_memory_flush = no_memory;
        lsm_state_update(lsm);
        if (!no_space && !no_memory) return st;
        fiber_queue_wake_all(&lsm->flushed_wake); /* lsm_flush says why */
        fiber_queue_wake_all(&lsm->room_wake);
        if (no_space) {
            MARK("lsm.flush.no_space");
            if (lsm->log != NULL && !lsm->replaying) log_recycled_remove(lsm->log, kept);
            kept = 0; /* the flush sets others free */
        }
        if (no_memory) {
            MARK("lsm.flush.no_memory");
            memtable_pages_drop(&lsm->memtable_pages);
            lsm_caches_trim(lsm);
        }
        if (!wait || !flush_retry(lsm, no_space ? FLUSH_RETRY_NS : MEMORY_RETRY_NS)) return st;
    }
}

MAY_YIELD status
lsm_flush_now(struct lsm *lsm, bool wait)
{
    CHECK(!lsm->flush_running);
    /* With nothing to flush the segments go all the same, once the manifest says that they may. */
    if (lsm->seq_last == lsm->seq_flushed && !lsm_log_is_long(lsm)) return ST_OK;
    lsm->flush_running = true;
    status st = ST_OK;
    /* A set whose flush was given up for want of space comes first, with the state of its time. */
    if (!lsm->flushing) {
        u64 segment = lsm->flush_state.log_segment_first;
        /* While the log is replayed it cannot be written: all its segments stay needed. */
        if (!lsm->replaying) st = log_boundary(lsm, &segment);
        if (BUGGIFY("lsm.flush.late_switch")) fiber_sleep_ns(5 * NS_PER_MS);
        if (ok(st)) memtables_switch(lsm, segment);
    } else {
        MARK("lsm.flush.resumed");
    }
    /* The manifest must not name a segment that is not there for sure. */
    if (ok(st) && lsm->log != NULL && !lsm->replaying)
        st = log_rotate_wait(lsm->log, lsm->flushing_state.log_segment_first);
    if (ok(st)) {
        struct levels_flush inputs[LIMIT_KEYSPACES];
        u64 bytes;
        u32 count = flushing_inputs(lsm, inputs, &bytes);
        st = levels_flush_retried(lsm, inputs, count, &lsm->flushing_state, wait);
        if (ok(st)) {
            flushing_done(lsm);
            lsm_state_update(lsm);
            lsm->stats.flush_bytes += bytes;
            if (lsm_in_memory(lsm)) lsm_memory_check(lsm);
        }
    }
    lsm->flush_running = false;
    io_background_share_set(IO_BACKGROUND_SHARE);
    if (ok(st)) {
        if (lsm->log != NULL && !lsm->replaying)
            log_release(lsm->log, lsm->flush_state.log_segment_first);
        lsm_scans_detach(lsm);
    } else if (!status_is(st, ST_NO_SPACE) && !status_is(st, ST_NO_MEMORY)) {
        MARK("lsm.flush.failed");
        lsm_fail(lsm, st, "flush");
    }
    fiber_queue_wake_all(&lsm->room_wake);
    fiber_queue_wake_all(&lsm->flushed_wake);
    fiber_queue_wake_all(&lsm->durable_wake);
    return st;
}

MAY_YIELD void
lsm_flush_fiber(void *arg)
{
    struct lsm *lsm = arg;
    while (!lsm->stopping && ok(lsm->failure)) {
        if (!lsm->flush_wanted) {
            (void)fiber_queue_wait(&lsm->flush_wake, FIBER_FOREVER);
            continue;
        }
        lsm->flush_wanted = false;
        status st = lsm_flush_now(lsm, true);
        if (!ok(st)) MARK("lsm.flush.given_up"); /* told by state; or closing */
    }
}

void
lsm_memtables_free(struct lsm *lsm)
{
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++) {
        memtable_unref(lsm->keyspaces[i].active);
        memtable_unref(lsm->keyspaces[i].flushing);
        lsm->keyspaces[i].active = lsm->keyspaces[i].flushing = NULL;
    }
    memtable_pages_drop(&lsm->memtable_pages);
}

/* ---- replaying ---- */

static bool
op_belongs(const struct lsm *lsm, const struct lsm_op *op)
{
    if (op->header.kind == ENTRY_DELETE_RANGE) return true;
    return op->header.token >= lsm->token_first && op->header.token <= lsm->token_last;
}

/* Makes room for these entries. ST_TOO_LARGE: they do not fit even into empty memtables. */
static MAY_YIELD status
replay_reserve(struct lsm *lsm, const struct need *needs)
{
    while (!memtables_fit(lsm, needs)) {
        if (active_is_empty(lsm)) return MARKED("lsm.replay.no_memory", ST_TOO_LARGE);
        MARK("lsm.replay.flush");
        status st = lsm_flush_now(lsm, false);
        /* A full disk keeps nobody from reading, nor do indexes that have all memory: what is not
         * flushed stays the flushing set, as it was before the restart, and there is a second
         * memtable. */
        bool no_room = status_is(st, ST_NO_SPACE) || status_is(st, ST_NO_MEMORY);
        if (no_room && memtables_fit(lsm, needs)) {
            MARK("lsm.replay.no_space");
            break;
        }
        if (!ok(st)) return st;
    }
    return ST_OK;
}

/* Room for a record as a whole, so that tables hold all of a batch or nothing: what is replayed may
 * not be durable, and a power cut would leave half of it. Only where memtables have become too
 * small for it (ST_TOO_LARGE) its operations are taken one by one. */
static MAY_YIELD status
replay_reserve_record(struct lsm *lsm, const struct log_record *record, struct bytes payload)
{
    struct need needs[LIMIT_KEYSPACES] = {0};
    struct lsm_op op;
    bool bad;
    for (u64 seq = record->seq_first; lsm_op_next(&payload, &op, &bad); seq++)
        if (seq > lsm->seq_flushed) need_add(needs, &op);
    return replay_reserve(lsm, needs);
}

static MAY_YIELD status
replay_op(struct lsm *lsm, const struct lsm_op *op, u64 seq, u64 version, bool reserved)
{
    if (op->header.kind == ENTRY_DELETE_RANGE) return range_apply(lsm, op, seq, version);
    if (!reserved) {
        struct need needs[LIMIT_KEYSPACES] = {0};
        need_add(needs, op);
        status st = replay_reserve(lsm, needs);
        if (status_is(st, ST_TOO_LARGE)) return ST_NO_MEMORY;
        if (!ok(st)) return st;
    }
    op_apply(lsm, op, NULL, seq, version);
    return ST_OK;
}

MAY_YIELD status
lsm_replay(void *arg, const struct log_record *record, struct bytes payload)
{
    struct lsm *lsm = arg;
    struct lsm_op op;
    bool bad;
    u32 count = 0;
    u64 seq = record->seq_first;
    status st = ST_OK;
    if (seq % 16 == 0 && !active_is_empty(lsm) && BUGGIFY("lsm.replay.early_flush")) {
        st = lsm_flush_now(lsm, false);
        if (!ok(st) && !status_is(st, ST_NO_SPACE) && !status_is(st, ST_NO_MEMORY)) return st;
    }
    st = replay_reserve_record(lsm, record, payload);
    bool reserved = ok(st);
    if (status_is(st, ST_TOO_LARGE)) MARK("lsm.replay.one_by_one");
    if (!reserved && !status_is(st, ST_TOO_LARGE)) return st;
    for (; lsm_op_next(&payload, &op, &bad); seq++, count++) {
        if (count == record->count || !op_belongs(lsm, &op))
            return MARKED("lsm.replay.foreign_operation", ST_CORRUPT);
        if (seq <= lsm->seq_flushed) {
            MARK("lsm.replay.flushed_already");
            continue;
        }
        /* Before the operation: a flush to make room for it takes what came so far. */
        st = replay_op(lsm, &op, seq, record->version, reserved);
        if (!ok(st)) return st;
        lsm->seq_last = seq;
        lsm->version_last = MAX(lsm->version_last, record->version);
    }
    if (!bad && count == record->count) return ST_OK;
    return MARKED("lsm.replay.bad_record", ST_CORRUPT);
}
