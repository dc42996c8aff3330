/* SPDX-License-Identifier: MIT
 *
 * scan.c -- live entries in (token, key) order, and what is counted or picked by scanning.
 *
 * A scan merges cursors of the memtables and of all runs and resolves, key by key, what its
 * snapshot sees: of the versions with seq <= snapshot the first one (entry order is newest first),
 * unless a deleted range covers it, it is a tombstone, or it has expired.
 *
 * Where a scan is. `place` holds the last key that was decided on (returned or passed over), or
 * where to start. The cursors are only a way to get on from there: they may be closed at any moment
 * between two keys (lsm_scan_detach, an error, the change from short to long) and are opened anew
 * at the place. Everything returned is a copy, so it does not depend on them either.
 *
 * Short and long. A scan begins block by block through the cache; after SCAN_LONG_BYTES, or at once
 * when it is told so, it reads ahead past the cache in large pieces, to the end of its tokens and
 * not beyond. Long stretches without a live key yield.
 *
 * Dead keys. There may be any number of them between two live ones. A call that is bounded answers
 * ST_PAUSED at the last one that it has passed over; that is a place like any other. It has decided
 * on two keys at least, for the first one may be where a scan before it has stopped.
 *
 * Damage ends a scan, unless it was told to pass over it: then a damaged block is a gap (see
 * gap_list.h), and a value kept apart that is damaged is left out with its key.
 */
#include "io/io.h"
#include "lsm/lsm_internal.h"
#include "lsm/merge.h"

#include "base/fault.h"

#define SCAN_LONG_BYTES KIB(64)

struct lsm_scan {
    struct lsm *lsm;
    struct list link; /* lsm->scans */
    struct lsm_snapshot *snapshot;
    bool own_snapshot;
    bool frozen_clock; /* expiry by the snapshot's moment */
    bool whole;        /* tombstones and what has expired, too */
    bool passes;       /* over damage */
    u16 keyspace;
    u64 token_last;
    u64 step; /* entries between two pauses; 0: it does not pause */

    /* state */
    struct cursor *merge;  /* NULL: to be opened at the place */
    struct levels_pin pin; /* while there are cursors: deleted ranges stay as long as they matter */
    bool in_call, detach_wanted, ended;
    bool long_scan;
    bool place_done; /* the key at the place is decided: skip its versions */
    u64 bytes;       /* passed over so far */
    u64 entries;     /* the same, since the last pause */
    u64 keys;        /* decided, since then */
    u64 expired_ms;  /* the latest time of what it passed over as expired; 0: of nothing */
    u64 place_token;
    u32 place_key_size;
    u8 place_key[LIMIT_KEY_BYTES];
    struct gap_list gaps;

    /* what the last call returned */
    bool deleted;
    struct buf value;
    void *blob_buffer;
    size_t blob_buffer_size;
};

static void
cursors_close(struct lsm_scan *scan)
{
    if (scan->merge == NULL) return;
    scan->merge->ops->close(scan->merge);
    scan->merge = NULL;
    levels_unpin(&scan->pin);
}

static void
blob_release(struct lsm_scan *scan)
{
    mem_free(&scan->lsm->budget, scan->blob_buffer, scan->blob_buffer_size);
    scan->blob_buffer = NULL;
    scan->blob_buffer_size = 0;
}

MAY_YIELD static status
sources_open(struct lsm_scan *scan, struct cursor **sources, u32 *count)
{
    struct lsm *lsm = scan->lsm;
    struct lsm_keyspace *keyspace = &lsm->keyspaces[scan->keyspace];
    struct memtable *memtables[2] = {keyspace->active, keyspace->flushing};
    *count = 0;
    status st = ST_OK;
    /* No yield before the run set is taken: see lsm_internal.h. */
    for (u32 i = 0; i < 2; i++) {
        if (memtables[i] == NULL) continue;
        sources[*count] = memtable_cursor_open(memtables[i], &lsm->budget);
        if (sources[*count] == NULL) {
            st = ST_NO_MEMORY;
            break;
        }
        (*count)++;
    }
    u32 runs = 0;
    if (ok(st))
        st = levels_cursors_open(lsm->levels, scan->keyspace, scan->token_last, scan->long_scan,
                                 scan->passes ? &scan->gaps : NULL, sources + *count,
                                 MERGE_SOURCES_MAX - *count, &runs);
    if (!ok(st)) {
        MARK("lsm.scan.sources_dropped");
        while (*count > 0) {
            (*count)--;
            sources[*count]->ops->close(sources[*count]);
        }
        return st;
    }
    *count += runs;
    return ST_OK;
}

MAY_YIELD static status
cursors_open_as(struct lsm_scan *scan)
{
    struct budget *budget = &scan->lsm->budget;
    struct cursor **sources = mem_alloc(budget, MERGE_SOURCES_MAX * sizeof(*sources));
    if (sources == NULL) return MARKED("lsm.scan.sources_no_memory", ST_NO_MEMORY);
    u32 count;
    struct cursor *merge = NULL;
    levels_pin_runs(scan->lsm->levels, &scan->pin);
    status st = sources_open(scan, sources, &count);
    if (ok(st)) st = merge_cursor_open(sources, count, budget, &merge);
    mem_free(budget, sources, MERGE_SOURCES_MAX * sizeof(*sources));
    if (!ok(st)) {
        levels_unpin(&scan->pin);
        return st;
    }
    st = merge->ops->seek(merge, scan->place_token, BYTES(scan->place_key, scan->place_key_size));
    if (!ok(st)) {
        merge->ops->close(merge);
        levels_unpin(&scan->pin);
        return st;
    }
    scan->merge = merge;
    return ST_OK;
}

/* Without the memory of reading ahead, for as many bytes as make a scan long. */
static void
read_less_ahead(struct lsm_scan *scan)
{
    scan->long_scan = false;
    scan->bytes = 0;
}

MAY_YIELD static status
cursors_open(struct lsm_scan *scan)
{
    scan->detach_wanted = false;
    status st = cursors_open_as(scan);
    if (status_is(st, ST_NO_MEMORY) && scan->long_scan) {
        MARK("lsm.scan.no_memory_to_read_ahead");
        read_less_ahead(scan);
        st = cursors_open_as(scan);
    }
    return st;
}

static bool
at_place(const struct lsm_scan *scan)
{
    const struct entry *entry = &scan->merge->entry;
    return entry->token == scan->place_token &&
           bytes_equal(entry->key, BYTES(scan->place_key, scan->place_key_size));
}

static void
place_set(struct lsm_scan *scan, const struct entry *entry)
{
    CHECK(entry->key.size <= LIMIT_KEY_BYTES);
    scan->place_token = entry->token;
    scan->place_key_size = (u32)entry->key.size;
    memcpy(scan->place_key, entry->key.data, entry->key.size);
}

/* Of the key at the cursor: *live_out true with *out inside the cursor's entry when the snapshot
 * sees a value. Otherwise the cursor is somewhere in or behind the key. */
MAY_YIELD static status
resolve(struct lsm_scan *scan, bool *live_out, const struct entry **out)
{
    struct cursor *merge = scan->merge;
    u64 seq = scan->snapshot->seq;
    u64 wall_ms = scan->frozen_clock ? scan->snapshot->wall_ms : io_wall_ms();
    *live_out = false;
    place_set(scan, &merge->entry);
    gap_list_forget(&scan->gaps, scan->place_token);
    scan->place_done = true;
    scan->keys++;
    while (merge->valid && at_place(scan)) {
        const struct entry *entry = &merge->entry;
        scan->entries++;
        scan->bytes += entry->key.size + 32 + (entry->flags & ENTRY_BLOB ? 0 : entry->value.size);
        if (entry->seq > seq) {
            status st = merge->ops->next(merge);
            if (!ok(st)) {
                MARK("lsm.scan.not_decided");
                scan->place_done = false; /* not decided: a further call looks at it again */
                return st;
            }
            /* A counter may have thousands of versions while a snapshot is open. */
            if (fiber_should_yield()) fiber_yield();
            continue;
        }
        bool expired = entry_expired(entry, wall_ms);
        if (expired) scan->expired_ms = MAX(scan->expired_ms, entry->expire_ms);
        bool shown = entry->kind == ENTRY_PUT && !expired;
        *live_out = (shown || scan->whole) && !gap_list_has(&scan->gaps, scan->place_token) &&
                    !levels_range_covers(scan->lsm->levels, scan->keyspace, entry->token,
                                         entry->version, entry->seq, seq);
        *out = entry;
        return ST_OK;
    }
    return ST_OK;
}

/* After a dead key. */
static bool
pauses(struct lsm_scan *scan)
{
    bool due = scan->step != 0 && scan->entries >= scan->step && scan->keys >= 2;
    if (due) {
        MARK("lsm.scan.paused");
        scan->entries = 0;
        scan->keys = 0;
    }
    return due;
}

/* To the next live entry, which *out shows until the cursors move. ST_END, ST_PAUSED. */
MAY_YIELD static status
advance(struct lsm_scan *scan, const struct entry **out)
{
    if (scan->ended) return ST_END;
    for (;;) {
        /* Nobody waits for the rest of a store. */
        if (scan->lsm->gate.closed) return MARKED("lsm.scan.closed_meanwhile", ST_CLOSED);
        if (!scan->long_scan && scan->bytes >= SCAN_LONG_BYTES) {
            scan->long_scan = true;
            cursors_close(scan);
        }
        if (scan->detach_wanted) {
            MARK("lsm.scan.detached");
            cursors_close(scan);
        }
        if (scan->merge == NULL) {
            status st = cursors_open(scan);
            if (!ok(st)) return st;
        }
        struct cursor *merge = scan->merge;
        status st = ST_OK;
        while (ok(st) && merge->valid && scan->place_done && at_place(scan)) {
            scan->entries++;
            st = merge->ops->next(merge);
            if (fiber_should_yield()) fiber_yield();
        }
        bool live = false;
        if (ok(st) && (!merge->valid || merge->entry.token > scan->token_last)) {
            scan->ended = true;
            return ST_END;
        }
        if (ok(st)) st = resolve(scan, &live, out);
        if (!ok(st)) {
            cursors_close(scan); /* dead after an error; a further call tries again */
            /* At the next table of a run, say: memory that was there at first may be a merge's now.
             */
            if (status_is(st, ST_NO_MEMORY) && scan->long_scan) {
                MARK("lsm.scan.no_memory_ahead");
                read_less_ahead(scan);
                continue;
            }
            MARK("lsm.scan.failed");
            return st;
        }
        if (live) return ST_OK;
        if (pauses(scan)) return ST_PAUSED;
        if (fiber_should_yield()) fiber_yield();
    }
}

/* ---- the interface ---- */

MAY_YIELD status
lsm_scan_open(struct lsm *lsm, struct lsm_snapshot *snapshot, u16 keyspace, u64 token,
              struct bytes key, u64 token_last, struct lsm_scan **out)
{
    if (keyspace >= LIMIT_KEYSPACES) return MARKED("lsm.scan.bad_keyspace", ST_INVALID);
    if (key.size > LIMIT_KEY_BYTES) return MARKED("lsm.scan.key_too_large", ST_TOO_LARGE);
    if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.scan.not_opened", ST_CLOSED);
    fiber_gate_leave(&lsm->gate); /* nothing below waits */
    struct lsm_scan *scan = mem_alloc_zero(&lsm->budget, sizeof(*scan));
    if (scan == NULL) return MARKED("lsm.scan.no_memory", ST_NO_MEMORY);
    scan->lsm = lsm;
    scan->keyspace = keyspace;
    scan->token_last = token_last;
    scan->long_scan = BUGGIFY("lsm.scan.long_at_once");
    scan->place_token = token;
    scan->place_key_size = (u32)key.size;
    if (key.size > 0) memcpy(scan->place_key, key.data, key.size);
    buf_init(&scan->value, &lsm->budget);
    scan->snapshot = snapshot;
    if (snapshot == NULL) {
        scan->snapshot = lsm_snapshot_open(lsm);
        scan->own_snapshot = true;
        if (scan->snapshot == NULL) {
            MARK("lsm.scan.no_snapshot");
            mem_free(&lsm->budget, scan, sizeof(*scan));
            return ST_NO_MEMORY;
        }
    }
    list_push_back(&lsm->scans, &scan->link);
    *out = scan;
    return ST_OK;
}

void
lsm_scan_freeze_clock(struct lsm_scan *scan)
{
    scan->frozen_clock = true;
}

void
lsm_scan_whole(struct lsm_scan *scan)
{
    scan->whole = true;
}

void
lsm_scan_much(struct lsm_scan *scan)
{
    scan->long_scan = true;
}

void
lsm_scan_step(struct lsm_scan *scan, u64 entries)
{
    scan->step = entries;
}

void
lsm_scan_pass_damage(struct lsm_scan *scan)
{
    scan->passes = true;
}

u64
lsm_scan_damage(const struct lsm_scan *scan)
{
    return scan->gaps.met;
}

bool
lsm_scan_deleted(const struct lsm_scan *scan)
{
    return scan->deleted;
}

/* Copies out what entry holds. After a wait for a blob the cursors are as they were: nobody else
 * moves them, and lsm_scan_detach only notes its wish during a call. */
MAY_YIELD static status
value_out(struct lsm_scan *scan, const struct entry *entry, bool want_value,
          struct lsm_value *value)
{
    value->version = entry->version;
    value->seq = entry->seq;
    value->expire_ms = entry->expire_ms;
    value->pin[0] = value->pin[1] = NULL;
    scan->deleted = entry->kind != ENTRY_PUT;
    if (entry->flags & ENTRY_BLOB) {
        CHECK(entry->value.size == sizeof(struct blob_pointer)); /* table_block_entry */
        value->value = BYTES(NULL, entry_value_size(entry));
        if (!want_value) return ST_OK;
        status st = levels_blob_read(scan->lsm->levels, entry, &scan->blob_buffer,
                                     &scan->blob_buffer_size, &value->value);
        if (!ok(st)) {
            MARK("lsm.scan.blob_failed");
            scan->blob_buffer = NULL;
            scan->blob_buffer_size = 0;
        } else {
            scan->bytes += value->value.size;
        }
        return st;
    }
    buf_clear(&scan->value, KIB(64));
    if (entry->value.size > 0 && !buf_append(&scan->value, entry->value.data, entry->value.size))
        return MARKED("lsm.scan.value_no_memory", ST_NO_MEMORY);
    value->value = buf_bytes(&scan->value);
    return ST_OK;
}

/* The next entry that can be shown; the key is at the place. */
MAY_YIELD static status
next_out(struct lsm_scan *scan, bool want_value, struct lsm_value *value)
{
    for (;;) {
        const struct entry *entry;
        status st = advance(scan, &entry);
        if (!ok(st)) return st;
        st = value_out(scan, entry, want_value, value);
        if (ok(st)) return st;
        if (!scan->passes || !status_is(st, ST_CORRUPT)) {
            MARK("lsm.scan.same_again");
            scan->place_done = false; /* the same entry again, next time */
            cursors_close(scan);
            return st;
        }
        MARK("lsm.scan.value_passed_over");
        scan->gaps.met++;
    }
}

MAY_YIELD status
lsm_scan_next(struct lsm_scan *scan, bool want_value, u64 *token_out, struct bytes *key_out,
              struct lsm_value *value_out_arg)
{
    struct lsm *lsm = scan->lsm;
    CHECK(!scan->in_call);
    if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.scan.closed", ST_CLOSED);
    scan->in_call = true;
    blob_release(scan);
    status st = next_out(scan, want_value, value_out_arg);
    if (ok(st) || status_is(st, ST_PAUSED)) {
        *token_out = scan->place_token;
        *key_out = BYTES(scan->place_key, scan->place_key_size);
    }
    scan->in_call = false;
    if (BUGGIFY("lsm.scan.detached_early")) scan->detach_wanted = true;
    if (scan->detach_wanted || scan->ended) cursors_close(scan);
    fiber_gate_leave(&lsm->gate);
    return st;
}

void
lsm_scan_close(struct lsm_scan *scan)
{
    if (scan == NULL) return;
    CHECK(!scan->in_call);
    struct lsm *lsm = scan->lsm;
    list_del(&scan->link);
    cursors_close(scan);
    blob_release(scan);
    buf_deinit(&scan->value);
    if (scan->own_snapshot) lsm_snapshot_close(scan->snapshot);
    mem_free(&lsm->budget, scan, sizeof(*scan));
}

void
lsm_scan_detach(struct lsm_scan *scan)
{
    scan->detach_wanted = true;
    if (!scan->in_call) cursors_close(scan);
}

void
lsm_scans_detach(struct lsm *lsm)
{
    list_for_each (link, &lsm->scans) {
        lsm_scan_detach(list_entry(link, struct lsm_scan, link));
    }
}

/* ---- counting and picking ---- */

MAY_YIELD status
lsm_count_exact(struct lsm *lsm, u16 keyspace, u64 *count_out)
{
    if (keyspace >= LIMIT_KEYSPACES) return MARKED("lsm.count.bad_keyspace", ST_INVALID);
    if (lsm->count_known[keyspace].valid && lsm->count_known[keyspace].seq == lsm->seq_last &&
        lsm->count_known[keyspace].expired_ms <= io_wall_ms()) {
        *count_out = lsm->count_known[keyspace].count;
        return ST_OK;
    }
    if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.count.closed", ST_CLOSED);
    struct lsm_scan *scan;
    status st = lsm_scan_open(lsm, NULL, keyspace, 0, BYTES(NULL, 0), UINT64_MAX, &scan);
    if (!ok(st)) {
        fiber_gate_leave(&lsm->gate);
        return st;
    }
    scan->long_scan = true;
    scan->in_call = true;
    u64 count = 0;
    bool expires = false;
    for (;;) {
        const struct entry *entry;
        st = advance(scan, &entry);
        if (!ok(st)) break;
        count++;
        expires |= entry->expire_ms != 0;
        if (fiber_should_yield()) fiber_yield();
    }
    scan->in_call = false;
    if (status_is(st, ST_END)) {
        st = ST_OK;
        *count_out = count;
        /* A key that will expire changes the count without a write, and one that has, when the
         * clock is set back. */
        lsm->count_known[keyspace].valid = !expires;
        lsm->count_known[keyspace].expired_ms = scan->expired_ms;
        lsm->count_known[keyspace].seq = scan->snapshot->seq;
        lsm->count_known[keyspace].count = count;
    }
    lsm_scan_close(scan);
    fiber_gate_leave(&lsm->gate);
    return st;
}

MAY_YIELD status
lsm_random_key(struct lsm *lsm, u16 keyspace, u64 random, u64 entries, u8 *key_out,
               size_t *key_size_out, u64 *seq_out)
{
    u64 span = lsm->token_last - lsm->token_first;
    u64 token = span == UINT64_MAX ? random : lsm->token_first + random % (span + 1);
    status st = ST_END;
    /* From the token on, then, when nothing lies behind it, from the beginning. */
    for (u32 i = 0; i < 2 && status_is(st, ST_END); i++) {
        struct lsm_scan *scan;
        st = lsm_scan_open(lsm, NULL, keyspace, i == 0 ? token : 0, BYTES(NULL, 0), UINT64_MAX,
                           &scan);
        if (!ok(st)) return st;
        lsm_scan_step(scan, entries);
        u64 found;
        struct bytes key;
        struct lsm_value value;
        st = lsm_scan_next(scan, false, &found, &key, &value);
        if (ok(st)) {
            memcpy(key_out, key.data, key.size);
            *key_size_out = key.size;
            *seq_out = value.seq;
        }
        lsm_scan_close(scan);
    }
    return status_is(st, ST_END) ? ST_NOT_FOUND : st;
}
