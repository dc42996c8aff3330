/* SPDX-License-Identifier: MIT
 *
 * lsm_read.c -- point reads: memtables, row cache, tables, in this order (lsm_internal.h says why).
 * lsm_get_aimed, which goes by what costs fewer misses, looks at the row cache first: a row is the
 * newest there is of its key, so it may be looked at any time.
 *
 * A memtable's version is the newest unless a table holds a higher one, which with one writer never
 * happens and with replicas may: levels_get is asked with that version as the floor, and answers
 * without a look at any run that cannot hold a higher one.
 *
 * A row read from a table goes to the row cache unless its key was written, or a range deleted,
 * while the read waited: the write found no row that it could have written, and the older one would
 * stay.
 *
 * What a memtable answers gets no row. When it is flushed, what was read in it gets one: else the
 * next read of each such key would go to the disk. That is done before its run is installed: as
 * long as the memtable counts, no run holds what it does, and no deleted range that covers something
 * in it is forgotten.
 */
#include "base/fault.h"
#include "base/hash.h"
#include "io/io.h"
#include "lsm/lsm_internal.h"

/* What keeps a value, told by the low bits of pin[0]. */
enum pin_kind {
    PIN_BLOCK = 0,    /* pin[] is a struct levels_pin */
    PIN_MEMTABLE = 1, /* a referenced struct memtable */
    PIN_BUFFER = 2,   /* a struct buffer_pin */
};
#define PIN_MASK ((uintptr_t)3)

struct buffer_pin {
    struct budget *budget;
    void *buffer;
    size_t buffer_size;
};

static void *
pin_tag(void *p, enum pin_kind kind)
{
    CHECK(((uintptr_t)p & PIN_MASK) == 0);
    return (void *)((uintptr_t)p | kind);
}

void
lsm_value_release(struct lsm_value *value)
{
    uintptr_t tagged = (uintptr_t)value->pin[0];
    void *p = (void *)(tagged & ~PIN_MASK);
    switch ((enum pin_kind)(tagged & PIN_MASK)) {
    case PIN_BLOCK:
        if (value->pin[0] != NULL || value->pin[1] != NULL) {
            struct levels_pin pin = {.block = value->pin[0], .runs = value->pin[1]};
            levels_unpin(&pin);
        }
        break;
    case PIN_MEMTABLE:
        memtable_unref(p);
        break;
    case PIN_BUFFER: {
        struct buffer_pin *pin = p;
        mem_free(pin->budget, pin->buffer, pin->buffer_size);
        mem_free(pin->budget, pin, sizeof(*pin));
        break;
    }
    }
    value->pin[0] = value->pin[1] = NULL;
    value->value = BYTES(NULL, 0);
}

bool
lsm_value_pin_buffer(struct lsm_value *value, struct budget *budget, void *buffer,
                     size_t buffer_size)
{
    struct buffer_pin *pin = mem_alloc(budget, sizeof(*pin));
    if (pin == NULL) {
        MARK("lsm.get.pin_no_memory");
        mem_free(budget, buffer, buffer_size);
        return false;
    }
    *pin = (struct buffer_pin){.budget = budget, .buffer = buffer, .buffer_size = buffer_size};
    value->pin[0] = pin_tag(pin, PIN_BUFFER);
    value->pin[1] = NULL;
    return true;
}

/* The newest version in memory, and where it lives. */
static bool
memory_get(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key, u64 seq_max,
           struct entry *out, struct memtable **memtable_out)
{
    struct memtable *tables[] = {lsm->keyspaces[keyspace].active,
                                 lsm->keyspaces[keyspace].flushing};
    bool found = false;
    for (u32 i = 0; i < ARRAY_COUNT(tables); i++) {
        struct entry entry;
        if (tables[i] == NULL || !memtable_get(tables[i], token, key, seq_max, &entry)) continue;
        if (found && (entry.version < out->version ||
                      (entry.version == out->version && entry.seq < out->seq)))
            continue;
        *out = entry;
        *memtable_out = tables[i];
        found = true;
    }
    return found;
}

/* A range that deletes a memtable's version makes a tombstone of it, with the range's number: who
 * is told that nothing is there waits until the deletion is durable. (Tables' come with this
 * done.) */
static void
range_apply(const struct lsm *lsm, u16 keyspace, u64 seq_max, struct entry *entry)
{
    if (entry->kind != ENTRY_PUT) return;
    u64 key_seq = entry->seq;
    if (!levels_range_find(lsm->levels, keyspace, entry->token, &entry->version, &entry->seq,
                           seq_max))
        return;
    entry->kind = ENTRY_DELETE;
    entry->flags = ENTRY_BY_RANGE;
    entry->key_seq = key_seq;
}

static bool
entry_is_live(const struct entry *entry)
{
    return entry->kind == ENTRY_PUT && !entry_expired(entry, io_wall_ms());
}

/* Whether the caller of get_inside wants it as a value. */
static bool
entry_is_shown(const struct entry *entry, bool whole)
{
    return whole ? entry->kind == ENTRY_PUT : entry_is_live(entry);
}

/* Everything but the value's bytes. */
static void
value_describe(struct lsm_value *value, const struct entry *entry)
{
    bool by_range = entry->flags & ENTRY_BY_RANGE;
    *value = (struct lsm_value){
        .version = entry->version,
        .seq = entry->seq,
        .key_seq = by_range ? entry->key_seq : entry->seq,
        .expire_ms = entry->kind == ENTRY_DELETE ? 0 : entry->expire_ms,
    };
}

static status
not_found(struct lsm *lsm, const struct entry *entry, struct lsm_value *out)
{
    lsm->stats.gets_not_found++;
    value_describe(out, entry);
    return ST_NOT_FOUND;
}

/* A row is the newest there is of its key, wherever older ones lie: each write of the key writes it,
 * or takes it out (op_apply), and so do ranges. False: there is none. */
static bool
row_answer(struct lsm *lsm, u16 keyspace, u64 key_hash, struct bytes key, struct lsm_value *out,
           status *st_out)
{
    struct entry entry;
    if (!row_cache_get(lsm->row_cache, keyspace, key_hash, key, &entry)) return false;
    lsm->stats.gets++;
    lsm->stats.gets_row_cache++;
    *st_out = ST_OK;
    if (entry_is_live(&entry)) {
        value_describe(out, &entry);
        out->value = entry.value;
    } else {
        *st_out = not_found(lsm, &entry, out);
    }
    return true;
}

static status
get_try(struct lsm *lsm, u16 keyspace, u64 token, u64 key_hash, struct bytes key,
        struct lsm_value *out)
{
    struct entry entry = {.token = token, .key = key, .kind = ENTRY_DELETE};
    struct memtable *memtable = NULL;
    status st;
    bool found = memory_get(lsm, keyspace, token, key, UINT64_MAX, &entry, &memtable);
    if (found) {
        memtable_read_note(&entry);
        range_apply(lsm, keyspace, UINT64_MAX, &entry);
    } else if (row_answer(lsm, keyspace, key_hash, key, out, &st)) {
        return st;
    }

    struct entry table_entry;
    struct levels_pin pin = {0};
    st = levels_get_try(lsm->levels, keyspace, token, key, key_hash, found ? entry.version : 0,
                        &table_entry, &pin);
    if (!ok(st) && !status_is(st, ST_NOT_FOUND)) return st;
    bool from_table = ok(st);
    if (from_table) entry = table_entry;
    bool live = entry_is_live(&entry);
    if (live && (entry.flags & ENTRY_BLOB || (from_table && entry.value.size > LSM_TRY_BYTES))) {
        if (from_table) levels_unpin(&pin);
        return ST_WOULD_WAIT;
    }
    lsm->stats.gets++;
    if (!from_table && found) lsm->stats.gets_memory++;
    if (from_table || !found) row_cache_put(lsm->row_cache, keyspace, key_hash, &entry);
    if (live) {
        value_describe(out, &entry);
        out->value = entry.value;
    }
    if (live && from_table) {
        /* The block may go as soon as it is let go of. */
        if (entry.value.size > 0) memcpy(lsm->try_buffer, entry.value.data, entry.value.size);
        out->value = BYTES(lsm->try_buffer, entry.value.size);
    }
    if (!live) st = not_found(lsm, &entry, out);
    if (from_table) levels_unpin(&pin);
    return live ? ST_OK : st;
}

status
lsm_get_try(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key, struct lsm_value *out)
{
    CHECK(keyspace < LIMIT_KEYSPACES);
    return get_try(lsm, keyspace, token, hash_key(key, 0), key, out);
}

void
lsm_aim_1(const struct lsm *lsm, struct lsm_aim *aim)
{
    const struct lsm_keyspace *ks = &lsm->keyspaces[aim->keyspace];
    if (ks->active != NULL) memtable_prefetch_root(ks->active, aim->token);
    aim->bucket = row_cache_prefetch_bucket(lsm->row_cache, aim->keyspace, aim->key_hash);
}

void
lsm_aim_2(const struct lsm *lsm, struct lsm_aim *aim, bool write)
{
    const struct lsm_keyspace *ks = &lsm->keyspaces[aim->keyspace];
    aim->cached = row_cache_prefetch_row(aim->bucket, aim->keyspace, aim->key_hash);
    bool memory = ks->active != NULL && (write || !aim->cached);
    aim->leaf = memory ? memtable_prefetch_leaf(ks->active, aim->token) : NULL;
}

void
lsm_aim_3(struct lsm_aim *aim, bool write)
{
    aim->found = memtable_prefetch_record(aim->leaf, aim->token, write);
}

/* The active memtable's version is the answer when nothing else can hold a higher one: no older
 * memtable, no run, no deleted range. That is nearly always so for what was written lately. */
status
lsm_get_aimed(struct lsm *lsm, const struct lsm_aim *aim, struct bytes key, struct lsm_value *out)
{
    const struct lsm_keyspace *ks = &lsm->keyspaces[aim->keyspace];
    status st;
    if (aim->cached && row_answer(lsm, aim->keyspace, aim->key_hash, key, out, &st)) return st;
    struct entry entry;
    if (aim->found == NULL || ks->flushing != NULL ||
        !memtable_get_found(aim->found, key, &entry) || entry.flags & ENTRY_BLOB ||
        levels_may_hold_above(lsm->levels, aim->keyspace, entry.version))
        return get_try(lsm, aim->keyspace, aim->token, aim->key_hash, key, out);
    lsm->stats.gets++;
    lsm->stats.gets_memory++;
    if (!entry_is_live(&entry)) return not_found(lsm, &entry, out);
    value_describe(out, &entry);
    out->value = entry.value;
    return ST_OK;
}

u64
lsm_dropped_seq(const struct lsm *lsm, u16 keyspace, struct bytes key)
{
    return levels_dropped_seq(lsm->levels, keyspace, key);
}

/* The highest version of a key so far, above the floor at the beginning, and its number. */
struct newest {
    u64 version, seq;
};

static void
newest_raise(struct newest *newest, u64 version, u64 seq)
{
    if (version > newest->version) *newest = (struct newest){version, seq};
}

/* In memory, of ranges and in the row cache. False: a run may hold a higher one of this key. */
static bool
memory_newest(struct lsm *lsm, u16 keyspace, u64 token, u64 key_hash, struct bytes key,
              struct newest *newest)
{
    u64 version = newest->version, seq = 0;
    if (levels_range_find(lsm->levels, keyspace, token, &version, &seq, UINT64_MAX))
        newest_raise(newest, version, seq);
    struct entry entry;
    struct memtable *memtable;
    if (memory_get(lsm, keyspace, token, key, UINT64_MAX, &entry, &memtable))
        newest_raise(newest, entry.version, entry.seq);
    /* Runs first: the cache is asked only when its answer matters. */
    if (!levels_runs_hold_above(lsm->levels, keyspace, newest->version)) return true;
    if (!row_cache_get(lsm->row_cache, keyspace, key_hash, key, &entry)) return false;
    newest_raise(newest, entry.version, entry.seq);
    return true;
}

static status
newest_answer(const struct newest *newest, u64 floor, u64 *version_out, u64 *seq_out)
{
    if (newest->version <= floor) return ST_NOT_FOUND;
    *version_out = newest->version;
    *seq_out = newest->seq;
    return ST_OK;
}

status
lsm_newest_try(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key, u64 floor,
               u64 *version_out, u64 *seq_out)
{
    CHECK(keyspace < LIMIT_KEYSPACES);
    u64 key_hash = hash_key(key, 0);
    struct newest newest = {floor, 0};
    if (!memory_newest(lsm, keyspace, token, key_hash, key, &newest)) {
        struct entry entry;
        struct levels_pin pin = {0};
        status st = levels_get_try(lsm->levels, keyspace, token, key, key_hash, newest.version,
                                   &entry, &pin);
        if (!ok(st) && !status_is(st, ST_NOT_FOUND)) return st;
        if (ok(st)) newest_raise(&newest, entry.version, entry.seq);
        if (ok(st)) levels_unpin(&pin);
    }
    return newest_answer(&newest, floor, version_out, seq_out);
}

MAY_YIELD status
lsm_newest(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key, u64 floor, u64 *version_out,
           u64 *seq_out)
{
    CHECK(keyspace < LIMIT_KEYSPACES);
    if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.newest.closed", ST_CLOSED);
    u64 key_hash = hash_key(key, 0);
    struct newest newest = {floor, 0};
    status st = ST_OK;
    if (!memory_newest(lsm, keyspace, token, key_hash, key, &newest)) {
        struct entry entry;
        struct levels_pin pin = {0};
        st = levels_get(lsm->levels, keyspace, token, key, key_hash, UINT64_MAX, newest.version,
                        &entry, &pin);
        if (ok(st)) newest_raise(&newest, entry.version, entry.seq);
        if (ok(st)) levels_unpin(&pin);
    }
    fiber_gate_leave(&lsm->gate);
    if (!ok(st) && !status_is(st, ST_NOT_FOUND)) return st;
    return newest_answer(&newest, floor, version_out, seq_out);
}

void
lsm_tokens(const struct lsm *lsm, u64 *first_out, u64 *last_out)
{
    *first_out = lsm->token_first;
    *last_out = lsm->token_last;
}

u64
lsm_version_last(const struct lsm *lsm)
{
    return lsm->version_last;
}

u64
lsm_seq_last(const struct lsm *lsm)
{
    return lsm->seq_last;
}

/* A copy of bytes that live in the row cache only until the next call. */
static status
value_copy(struct lsm *lsm, const struct entry *entry, struct lsm_value *out)
{
    struct lsm_value value;
    value_describe(&value, entry);
    if (entry->value.size > 0) {
        void *copy = mem_alloc(&lsm->budget, entry->value.size);
        if (copy == NULL) return MARKED("lsm.get.copy_no_memory", ST_NO_MEMORY);
        memcpy(copy, entry->value.data, entry->value.size);
        value.value = BYTES(copy, entry->value.size);
        if (!lsm_value_pin_buffer(&value, &lsm->budget, copy, entry->value.size))
            return ST_NO_MEMORY;
    }
    *out = value;
    return ST_OK;
}

/* The value of a table's entry; takes over the pin, on failure, too. */
static MAY_YIELD status
value_from_table(struct lsm *lsm, const struct entry *entry, struct levels_pin *pin,
                 struct lsm_value *out)
{
    struct lsm_value value;
    value_describe(&value, entry);
    if (!(entry->flags & ENTRY_BLOB)) {
        value.value = entry->value;
        value.pin[0] = pin->block;
        value.pin[1] = pin->runs;
        *out = value;
        return ST_OK;
    }
    void *buffer;
    size_t buffer_size;
    status st = levels_blob_read(lsm->levels, entry, &buffer, &buffer_size, &value.value);
    levels_unpin(pin);
    if (!ok(st)) return st;
    if (!lsm_value_pin_buffer(&value, &lsm->budget, buffer, buffer_size)) return ST_NO_MEMORY;
    *out = value;
    return ST_OK;
}

/* What tells whether a key may have been written since. */
struct write_marks {
    u32 key, ranges;
};

static struct write_marks
write_marks_of(const struct lsm *lsm, u64 key_hash)
{
    return (struct write_marks){.key = lsm->write_marks[key_hash % LSM_WRITE_MARKS],
                                .ranges = lsm->range_marks};
}

/* The newest of a key when the marks were taken goes to the row cache if it still is. */
static void
row_keep(struct lsm *lsm, const struct write_marks *marks, u16 keyspace, u64 key_hash,
         const struct entry *entry)
{
    struct write_marks now = write_marks_of(lsm, key_hash);
    if (marks->key == now.key && marks->ranges == now.ranges)
        row_cache_put(lsm->row_cache, keyspace, key_hash, entry);
    else
        MARK("lsm.get.written_meanwhile");
}

/* A row for what a reader found in a memtable that goes, if it is the newest there is: what a get
 * would look at is looked at, without a wait before the row is there, so that each write from then
 * on meets it. */
static void
row_inherit(struct lsm *lsm, u16 keyspace, const struct entry *entry)
{
    struct entry newest;
    struct memtable *memtable;
    if (!memory_get(lsm, keyspace, entry->token, entry->key, UINT64_MAX, &newest, &memtable))
        return;
    if (newest.version != entry->version || newest.seq != entry->seq) {
        memtable_read_note(&newest); /* whoever asks again is told of that one */
        return;
    }
    range_apply(lsm, keyspace, UINT64_MAX, &newest);
    if (!entry_is_live(&newest)) return;
    if (levels_runs_hold_above(lsm->levels, keyspace, newest.version)) return;
    row_cache_put(lsm->row_cache, keyspace, hash_key(newest.key, 0), &newest);
}

MAY_YIELD void
lsm_rows_inherit(void *arg, u16 keyspace, struct memtable *memtable)
{
    struct lsm *lsm = arg;
    if (lsm->replaying || lsm->stopping) return; /* nobody has read, or will */
    struct cursor *cursor = memtable_cursor_open(memtable, &lsm->budget);
    if (cursor == NULL) return;
    status st = cursor->ops->seek(cursor, 0, BYTES(NULL, 0));
    while (ok(st) && cursor->valid && !lsm->stopping) {
        if (memtable_was_read(&cursor->entry)) row_inherit(lsm, keyspace, &cursor->entry);
        st = cursor->ops->next(cursor);
        if (fiber_should_yield()) fiber_yield();
    }
    cursor->ops->close(cursor);
}

enum get_how {
    GET_LIVE,
    GET_WHOLE,     /* as it is stored, whatever the clock says */
    GET_WHOLE_TRY, /* ST_WOULD_WAIT where a file has to be read; of the newest only */
};

/* What needs a file was not done. */
static status
get_would_wait(struct lsm *lsm, struct memtable *memtable)
{
    lsm->stats.gets--;
    if (memtable != NULL) memtable_unref(memtable);
    return ST_WOULD_WAIT;
}

static MAY_YIELD status
get_inside(struct lsm *lsm, u64 seq_max, enum get_how how, u16 keyspace, u64 token,
           struct bytes key, struct lsm_value *out)
{
    bool newest = seq_max == UINT64_MAX, whole = how != GET_LIVE, wait = how != GET_WHOLE_TRY;
    u64 key_hash = hash_key(key, 0);
    struct entry entry = {.token = token, .key = key, .kind = ENTRY_DELETE};
    struct memtable *memtable = NULL;
    bool found = memory_get(lsm, keyspace, token, key, seq_max, &entry, &memtable);
    lsm->stats.gets++;
    if (!found && newest && row_cache_get(lsm->row_cache, keyspace, key_hash, key, &entry)) {
        lsm->stats.gets_row_cache++;
        if (!entry_is_shown(&entry, whole)) return not_found(lsm, &entry, out);
        return value_copy(lsm, &entry, out);
    }
    if (found) {
        memtable_read_note(&entry);
        range_apply(lsm, keyspace, seq_max, &entry);
        memtable_ref(memtable); /* levels_get may wait */
    }

    struct write_marks marks = write_marks_of(lsm, key_hash);
    struct entry table_entry;
    struct levels_pin pin = {0};
    u64 floor = found ? entry.version : 0;
    status st = wait ? levels_get(lsm->levels, keyspace, token, key, key_hash, seq_max, floor,
                                  &table_entry, &pin)
                     : levels_get_try(lsm->levels, keyspace, token, key, key_hash, floor,
                                      &table_entry, &pin);
    if (!wait && status_is(st, ST_WOULD_WAIT)) return get_would_wait(lsm, memtable);
    if (!ok(st) && !status_is(st, ST_NOT_FOUND)) {
        MARK("lsm.get.failed");
        if (found) memtable_unref(memtable);
        return st;
    }
    bool from_table = ok(st);
    if (from_table) entry = table_entry;
    if (!wait && from_table && entry.kind == ENTRY_PUT && entry.flags & ENTRY_BLOB) {
        levels_unpin(&pin);
        return get_would_wait(lsm, memtable);
    }
    if (newest && (from_table || !found)) row_keep(lsm, &marks, keyspace, key_hash, &entry);
    if (!entry_is_shown(&entry, whole)) {
        st = not_found(lsm, &entry, out);
        if (from_table) levels_unpin(&pin);
        if (found) memtable_unref(memtable);
        return st;
    }
    if (from_table) {
        if (found) memtable_unref(memtable);
        return value_from_table(lsm, &entry, &pin, out);
    }
    lsm->stats.gets_memory++;
    value_describe(out, &entry);
    out->value = entry.value;
    out->pin[0] = pin_tag(memtable, PIN_MEMTABLE);
    return ST_OK;
}

static MAY_YIELD status
get(struct lsm *lsm, u64 seq_max, enum get_how how, u16 keyspace, u64 token, struct bytes key,
    struct lsm_value *out)
{
    CHECK(keyspace < LIMIT_KEYSPACES);
    if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.get.closed", ST_CLOSED);
    status st = get_inside(lsm, seq_max, how, keyspace, token, key, out);
    fiber_gate_leave(&lsm->gate);
    return st;
}

MAY_YIELD status
lsm_get(struct lsm *lsm, const struct lsm_snapshot *snapshot, u16 keyspace, u64 token,
        struct bytes key, struct lsm_value *out)
{
    return get(lsm, snapshot != NULL ? snapshot->seq : UINT64_MAX, GET_LIVE, keyspace, token, key,
               out);
}

MAY_YIELD status
lsm_get_whole(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key, struct lsm_value *out)
{
    return get(lsm, UINT64_MAX, GET_WHOLE, keyspace, token, key, out);
}

status
lsm_get_whole_try(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key, struct lsm_value *out)
{
    /* no yield: it gives up before the first read of a file. */
    return get(lsm, UINT64_MAX, GET_WHOLE_TRY, keyspace, token, key, out);
}

/* ---- without a fiber ---- */

struct lsm_read {
    struct lsm *lsm;
    void (*done)(void *arg, status st, struct lsm_value *value);
    void *arg;
    struct write_marks marks;
    struct levels_read levels;
};

/* What the runs have becomes what lsm_get returns. */
static status
read_answer(struct lsm_read *read, struct lsm_value *out)
{
    struct lsm *lsm = read->lsm;
    struct levels_read *levels = &read->levels;
    const struct levels_get *get = &levels->get;
    status st = levels->result;
    bool from_table = ok(st);
    if (!from_table && !status_is(st, ST_NOT_FOUND)) return MARKED("lsm.read.failed", st);
    struct entry entry = {.token = get->token, .key = get->key, .kind = ENTRY_DELETE};
    if (from_table) entry = levels->entry;
    bool live = entry_is_live(&entry);
    if (live && entry.flags & ENTRY_BLOB) {
        levels_unpin(&levels->pin);
        return MARKED("lsm.read.value_apart", ST_WOULD_WAIT);
    }
    lsm->stats.gets++;
    row_keep(lsm, &read->marks, get->keyspace, get->key_hash, &entry);
    if (!live) {
        st = not_found(lsm, &entry, out);
        if (from_table) levels_unpin(&levels->pin);
        return st;
    }
    value_describe(out, &entry);
    out->value = entry.value;
    out->pin[0] = levels->pin.block;
    out->pin[1] = levels->pin.runs;
    return ST_OK;
}

static void
read_done(struct levels_read *levels)
{
    struct lsm_read *read = CONTAINER_OF(levels, struct lsm_read, levels);
    struct lsm *lsm = read->lsm;
    struct lsm_value value = {.seq = 0};
    status st = read_answer(read, &value);
    void (*done)(void *arg, status st, struct lsm_value *value) = read->done;
    void *arg = read->arg;
    mem_free(&lsm->budget, read, sizeof(*read));
    done(arg, st, &value);
    fiber_gate_leave(&lsm->gate);
}

bool
lsm_read_start(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key,
               void (*done)(void *arg, status st, struct lsm_value *value), void *arg)
{
    CHECK(keyspace < LIMIT_KEYSPACES);
    if (BUGGIFY("lsm.read.not_started")) return false;
    u64 key_hash = hash_key(key, 0);
    struct entry entry;
    struct memtable *memtable;
    if (memory_get(lsm, keyspace, token, key, UINT64_MAX, &entry, &memtable) ||
        row_cache_get(lsm->row_cache, keyspace, key_hash, key, &entry))
        return MARKED("lsm.read.in_memory", false);
    if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.read.closed", false);
    struct lsm_read *read = mem_alloc(&lsm->budget, sizeof(*read));
    if (read != NULL) {
        read->lsm = lsm;
        read->done = done;
        read->arg = arg;
        read->marks = write_marks_of(lsm, key_hash);
        read->levels.done = read_done;
        if (levels_read_start(lsm->levels, &read->levels, keyspace, token, key, key_hash))
            return true;
    }
    mem_free(&lsm->budget, read, sizeof(*read));
    fiber_gate_leave(&lsm->gate);
    return MARKED("lsm.read.no_start", false);
}
