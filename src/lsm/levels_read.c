/* SPDX-License-Identifier: MIT
 *
 * levels_read.c -- reading what lies in files: one key, values that are kept apart, cursors.
 *
 * A read takes a reference to the current run set before it can yield, and everything that it
 * hands out lives as long as that reference (struct levels_pin): a commit meanwhile installs a new
 * set and changes nothing here.
 *
 * A key's versions are looked for in the newest run first, but the newest run need not hold the
 * highest version: each version found becomes the floor, and runs that cannot hold a higher one
 * are not read. Deleted ranges are applied to what was found at the end, not run by run.
 */
#include "base/fault.h"
#include "io/io.h"
#include "lsm/levels_internal.h"

/* Tables that may hold the key, newest run first. A store never has this many runs: writers are
 * refused long before; what would not fit is looked at in further rounds. */
#define GET_CANDIDATES 64u

static u32
collect(const struct levels_get *get, const struct run_set *set, u32 *run,
        struct table **candidates)
{
    u32 count = 0;
    u32 end = set->tree_first[get->keyspace + 1];
    for (; *run < end && count < GET_CANDIDATES; (*run)++) {
        const struct run_slot *slot = run_find(set->runs[*run], get->token);
        if (slot == NULL) continue;
        const struct table_meta *meta = &slot->file->table->meta;
        if (meta->seq_min > get->seq_max) continue;
        if (get->has_floor && meta->version_max <= get->floor) continue;
        struct table *table = slot->file->table;
        table_prefetch_filter(table, get->key_hash);
        candidates[count++] = table;
    }
    /* The oldest run has nearly all of the keys that are cold enough to come here. */
    if (count != 0) table_prefetch_index(candidates[count - 1], get->token);
    /* All filters first: their cache misses overlap. */
    u32 kept = 0;
    for (u32 i = 0; i < count; i++) {
        if (table_may_contain(candidates[i], get->token, get->key_hash))
            candidates[kept++] = candidates[i];
    }
    return kept;
}

/* Older runs that cannot hold a newer version are not read. */
static bool
is_below(const struct levels_get *get, const struct table *table)
{
    return get->has_floor && table->meta.version_max <= get->floor;
}

/* st: of looking for the key in this table. */
static status
take(struct levels_get *get, const struct table *table, status st, const struct entry *entry,
     struct block *pin)
{
    if (status_is(st, ST_NOT_FOUND)) return ST_OK;
    if (!ok(st)) {
        if (status_is(st, ST_CORRUPT))
            levels_report_corrupt(get->levels, "reading", 't', table->meta.file_id);
        return st;
    }
    if (get->has_floor && entry->version <= get->floor) {
        if (pin != NULL) block_cache_unpin(pin);
        return ST_OK;
    }
    if (get->pin != NULL) block_cache_unpin(get->pin);
    get->pin = pin;
    get->best = *entry;
    get->found = true;
    get->has_floor = true;
    get->floor = entry->version;
    return ST_OK;
}

/* Nothing was found before candidates[0], and the block of that is not in the cache. */
static void
waited_note(struct levels_get *get, const struct run_set *set, struct table *const *candidates,
            u32 count)
{
    struct levels_waited *waited = &get->levels->waited;
    waited->set = NULL;
    if (get->has_floor || count > LEVELS_READ_CANDIDATES) return;
    waited->set = set;
    waited->token = get->token;
    waited->key_hash = get->key_hash;
    waited->keyspace = get->keyspace;
    waited->count = count;
    memcpy(waited->candidates, candidates, count * sizeof(candidates[0]));
}

static bool
waited_fits(const struct levels_get *get, const struct run_set *set)
{
    const struct levels_waited *waited = &get->levels->waited;
    return waited->set == set && waited->token == get->token && waited->key_hash == get->key_hash &&
           waited->keyspace == get->keyspace;
}

MAY_YIELD static status
get_from(struct levels_get *get, struct run_set *set, bool wait)
{
    struct table *candidates[GET_CANDIDATES];
    struct block_cache *cache = get->levels->config.block_cache;
    u32 run = set->tree_first[get->keyspace];
    u32 end = set->tree_first[get->keyspace + 1];
    while (run < end) {
        u32 count = collect(get, set, &run, candidates);
        for (u32 i = 0; i < count; i++) {
            if (is_below(get, candidates[i])) continue;
            struct entry entry;
            struct block *pin = NULL;
            if (!wait && BUGGIFY("lsm.levels.get_waits")) return ST_WOULD_WAIT;
            status st = wait ? table_get(candidates[i], cache, get->token, get->key, get->seq_max,
                                         true, &entry, &pin)
                             : table_get_try(candidates[i], cache, get->token, get->key,
                                             get->seq_max, &entry, &pin);
            st = take(get, candidates[i], st, &entry, pin);
            if (!wait && status_is(st, ST_WOULD_WAIT) && run == end)
                waited_note(get, set, &candidates[i], count - i);
            if (!ok(st)) return st;
        }
    }
    return ST_OK;
}

bool
levels_runs_hold_above(const struct levels *levels, u16 keyspace, u64 version)
{
    const struct run_set *set = levels->current;
    u32 end = set->tree_first[keyspace + 1];
    for (u32 i = set->tree_first[keyspace]; i < end; i++)
        if (set->runs[i]->version_max > version) return true;
    return false;
}

bool
levels_may_hold_above(const struct levels *levels, u16 keyspace, u64 version)
{
    return levels_runs_hold_above(levels, keyspace, version) || levels->ranges.active_count != 0;
}

/* The end of a look at set: what it has found, with the ranges that are deleted by now. */
static status
get_finish(struct levels_get *get, struct run_set *set, status st, struct entry *out,
           struct levels_pin *pin)
{
    const struct levels *levels = get->levels;
    if (ok(st) && !get->found) st = ST_NOT_FOUND;
    if (!ok(st)) {
        if (get->pin != NULL) block_cache_unpin(get->pin);
        run_set_unref(set);
        return st;
    }
    struct entry *best = &get->best;
    const struct range_delete *range =
        levels->ranges.active_count == 0
            ? NULL
            : range_list_find(&levels->ranges, get->keyspace, get->token, best->version, best->seq,
                              get->seq_max);
    if (range != NULL) {
        best->kind = ENTRY_DELETE;
        best->flags = ENTRY_BY_RANGE;
        best->value = BYTES(NULL, 0);
        best->version = range->version;
        best->key_seq = best->seq;
        best->seq = range->seq;
    }
    *out = *best;
    *pin = (struct levels_pin){.block = get->pin, .runs = set};
    return ST_OK;
}

MAY_YIELD static status
levels_get_any(struct levels_get *get, u64 version_floor, bool wait, struct entry *out,
               struct levels_pin *pin)
{
    struct levels *levels = get->levels;
    CHECK(get->keyspace < LIMIT_KEYSPACES);
    get->has_floor = version_floor != 0;
    get->floor = version_floor;
    struct run_set *set = levels->current;
    if (run_set_tree_count(set, get->keyspace) == 0) return ST_NOT_FOUND;
    run_set_ref(set);
    status st = get_from(get, set, wait);
    return get_finish(get, set, st, out, pin);
}

static struct levels_get
get_of(struct levels *levels, u16 keyspace, u64 token, struct bytes key, u64 key_hash, u64 seq_max)
{
    return (struct levels_get){.levels = levels,
                               .keyspace = keyspace,
                               .token = token,
                               .key = key,
                               .key_hash = key_hash,
                               .seq_max = seq_max};
}

status
levels_get_try(struct levels *levels, u16 keyspace, u64 token, struct bytes key, u64 key_hash,
               u64 version_floor, struct entry *out, struct levels_pin *pin)
{
    struct levels_get get = get_of(levels, keyspace, token, key, key_hash, UINT64_MAX);
    /* no yield: asked not to wait, it gives up before the first read of a file. */
    return levels_get_any(&get, version_floor, false, out, pin);
}

MAY_YIELD status
levels_get(struct levels *levels, u16 keyspace, u64 token, struct bytes key, u64 key_hash,
           u64 seq_max, u64 version_floor, struct entry *out, struct levels_pin *pin)
{
    struct levels_get get = get_of(levels, keyspace, token, key, key_hash, seq_max);
    return levels_get_any(&get, version_floor, true, out, pin);
}

/* ---- without a fiber ---- */

/* Looks into tables until one has to be read; that is next - 1 then. */
static status
read_on(struct levels_read *read)
{
    struct levels_get *get = &read->get;
    struct block_cache *cache = get->levels->config.block_cache;
    while (read->next < read->count) {
        struct table *table = read->candidates[read->next++];
        if (is_below(get, table)) continue;
        struct entry entry;
        struct block *pin = NULL;
        status st = table_get_try(table, cache, get->token, get->key, get->seq_max, &entry, &pin);
        st = take(get, table, st, &entry, pin);
        if (!ok(st)) return st;
    }
    return ST_OK;
}

static void
read_arrived(struct table_read *table_read)
{
    struct levels_read *read = CONTAINER_OF(table_read, struct levels_read, table_read);
    struct levels_get *get = &read->get;
    struct entry entry;
    struct block *pin = NULL;
    status st = table_read_take(table_read, get->token, get->key, &entry, &pin);
    st = take(get, read->candidates[read->next - 1], st, &entry, pin);
    if (ok(st)) st = read_on(read);
    if (status_is(st, ST_WOULD_WAIT)) MARK("lsm.levels.read_second");
    read->result = get_finish(get, read->set, st, &read->entry, &read->pin);
    read->done(read);
}

bool
levels_read_start(struct levels *levels, struct levels_read *read, u16 keyspace, u64 token,
                  struct bytes key, u64 key_hash)
{
    struct run_set *set = levels->current;
    struct table *candidates[GET_CANDIDATES];
    read->get = get_of(levels, keyspace, token, key, key_hash, UINT64_MAX);
    read->set = set;
    read->table_read.done = read_arrived;
    status st = ST_WOULD_WAIT;
    if (waited_fits(&read->get, set)) {
        const struct levels_waited *waited = &levels->waited;
        read->count = waited->count;
        read->next = 1;
        memcpy(read->candidates, waited->candidates, waited->count * sizeof(candidates[0]));
        run_set_ref(set);
    } else {
        u32 run = set->tree_first[keyspace], end = set->tree_first[keyspace + 1];
        read->next = 0;
        read->count = collect(&read->get, set, &run, candidates);
        if (run < end || read->count > LEVELS_READ_CANDIDATES)
            return MARKED("lsm.levels.read_many_runs", false);
        if (read->count != 0)
            memcpy(read->candidates, candidates, read->count * sizeof(candidates[0]));
        run_set_ref(set);
        st = read_on(read);
    }
    if (status_is(st, ST_WOULD_WAIT) &&
        table_read_start(&read->table_read, read->candidates[read->next - 1],
                         levels->config.block_cache, token, key))
        return true;
    if (read->get.pin != NULL) block_cache_unpin(read->get.pin);
    run_set_unref(set);
    return false;
}

void
levels_unpin(struct levels_pin *pin)
{
    if (pin->block != NULL) block_cache_unpin(pin->block);
    if (pin->runs != NULL) run_set_unref(pin->runs);
    *pin = (struct levels_pin){0};
}

void
levels_pin_runs(struct levels *levels, struct levels_pin *pin)
{
    run_set_ref(levels->current);
    *pin = (struct levels_pin){.runs = levels->current};
}

MAY_YIELD status
levels_blob_read(struct levels *levels, const struct entry *entry, void **buffer_out,
                 size_t *buffer_size_out, struct bytes *value_out)
{
    CHECK(entry->flags & ENTRY_BLOB);
    struct blob_pointer pointer;
    CHECK(entry->value.size == sizeof(pointer)); /* table_block_entry */
    memcpy(&pointer, entry->value.data, sizeof(pointer));
    struct level_blob *blob = level_blob_find(levels, pointer.file_id);
    if (blob == NULL) {
        MARK("lsm.levels.pointer_lost");
        levels_report_corrupt(levels, "following a pointer", 'b', pointer.file_id);
        return ST_CORRUPT;
    }
    levels->blob_reads++;
    blob->ref_count++; /* the caller's pin holds it, too; this one does not depend on that */
    status st = blob_read(blob->file, IO_CLASS_READ, &pointer, entry->token, entry->key,
                          levels->budget, buffer_out, buffer_size_out, value_out);
    if (status_is(st, ST_IO_ERROR)) st = level_value_unreadable(blob, &pointer, entry);
    if (status_is(st, ST_CORRUPT)) {
        level_blob_damaged(blob, entry->token, entry->token);
        levels_report_corrupt(levels, "reading", 'b', pointer.file_id);
    }
    level_blob_unref(blob);
    return st;
}

MAY_YIELD status
levels_cursors_open(struct levels *levels, u16 keyspace, u64 token_last, bool long_scan,
                    struct gap_list *gaps, struct cursor **cursors, u32 max, u32 *count_out)
{
    struct run_set *set = levels->current;
    u32 count = run_set_tree_count(set, keyspace);
    if (count > max) return MARKED("lsm.levels.too_many_runs", ST_OVERLOADED);
    for (u32 i = 0; i < count; i++) {
        cursors[i] = run_cursor_open(
            levels, set, run_set_tree_run(set, keyspace, i), levels->config.token_first,
            MIN(token_last, levels->config.token_last), long_scan ? IO_CLASS_STREAM : IO_CLASS_READ,
            long_scan ? COMPACTION_READ_AHEAD_BYTES : 0);
        if (cursors[i] != NULL && gaps != NULL) run_cursor_pass_damage(cursors[i], gaps);
        if (cursors[i] != NULL) continue;
        MARK("lsm.levels.cursors_dropped");
        while (i-- > 0)
            cursors[i]->ops->close(cursors[i]);
        return ST_NO_MEMORY;
    }
    *count_out = count;
    return ST_OK;
}
