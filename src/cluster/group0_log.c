/* SPDX-License-Identifier: MIT
 *
 * group0_log.c -- the log of group0. All of it that is behind the last snapshot is in memory (some
 * hundreds of entries of some hundreds of bytes), so raft's questions are answered at once; the
 * store has the same, or is about to: what is appended here goes into the batch `next` in the same
 * call (G1).
 */
#include "cluster/group0_internal.h"

#include "base/log.h"

/* ---- in memory ---- */

struct group0_item *
group0_log_at(struct group0 *group0, u64 index)
{
    if (index <= group0->base_index || index > group0_log_last(group0)) return NULL;
    return &group0->items[index - group0->base_index - 1];
}

static void
item_free(struct group0 *group0, struct group0_item *item)
{
    mem_free(group0->options.budget, item->data, item->size);
    group0->item_bytes -= item->size;
    *item = (struct group0_item){0};
}

/* Of the last ones: from the count on. */
static void
items_cut(struct group0 *group0, u32 count)
{
    while (group0->item_count > count)
        item_free(group0, &group0->items[--group0->item_count]);
}

void
group0_log_trim(struct group0 *group0, u64 index)
{
    CHECK(index >= group0->base_index && index <= group0_log_last(group0));
    u32 count = (u32)(index - group0->base_index);
    for (u32 i = 0; i < count; i++)
        item_free(group0, &group0->items[i]);
    group0->item_count -= count;
    if (group0->item_count > 0)
        memmove(group0->items, group0->items + count, group0->item_count * sizeof(*group0->items));
    group0->base_index = index;
}

void
group0_log_clear(struct group0 *group0)
{
    items_cut(group0, 0);
}

static bool
items_reserve(struct group0 *group0, u32 count)
{
    if (count <= group0->item_capacity) return true;
    u32 capacity = MAX(count, MAX(64u, group0->item_capacity * 2));
    void *items = mem_realloc(group0->options.budget, group0->items,
                              group0->item_capacity * sizeof(*group0->items),
                              capacity * sizeof(*group0->items));
    if (items == NULL) return false;
    group0->items = items;
    group0->item_capacity = capacity;
    return true;
}

static bool
item_add(struct group0 *group0, u64 term, u8 kind, struct bytes data)
{
    if (!items_reserve(group0, group0->item_count + 1)) return false;
    struct group0_item item = {.term = term, .kind = kind, .size = (u32)data.size};
    if (data.size > 0) {
        item.data = mem_alloc(group0->options.budget, data.size);
        if (item.data == NULL) return false;
        memcpy(item.data, data.data, data.size);
    }
    group0->items[group0->item_count++] = item;
    group0->item_bytes += item.size;
    return true;
}

/* ---- what raft asks ---- */

static u64
storage_first_index(void *context)
{
    const struct group0 *group0 = context;
    return group0->base_index + 1;
}

static u64
storage_last_index(void *context)
{
    return group0_log_last(context);
}

static status
storage_term(void *context, u64 index, u64 *term_out)
{
    struct group0 *group0 = context;
    if (index == group0->base_index) {
        *term_out = group0->base_term;
        return ST_OK;
    }
    const struct group0_item *item = group0_log_at(group0, index);
    if (item == NULL) return ST_NOT_FOUND;
    *term_out = item->term;
    return ST_OK;
}

static status
storage_entries(void *context, u64 first, u64 bytes_max, u32 count_max,
                struct raft_entry *entries_out, u32 *count_out)
{
    struct group0 *group0 = context;
    if (first <= group0->base_index) return ST_NOT_FOUND;
    u64 bytes = 0;
    u32 count = 0;
    for (u64 index = first; index <= group0_log_last(group0) && count < count_max; index++) {
        const struct group0_item *item = group0_log_at(group0, index);
        bytes += item->size;
        if (count > 0 && bytes > bytes_max) break;
        entries_out[count++] = (struct raft_entry){.index = index,
                                                   .term = item->term,
                                                   .kind = item->kind,
                                                   .data = BYTES(item->data, item->size)};
    }
    *count_out = count;
    return ST_OK;
}

/* Entries, and what they void, into the batch. The value is built in place of the last one. */
static bool
batch_entries(struct group0 *group0, const struct raft_entry *entries, u32 count)
{
    u64 last = entries[count - 1].index;
    struct buf value;
    buf_init(&value, group0->options.budget);
    bool done = true;
    for (u32 i = 0; i < count && done; i++) {
        u8 header[GROUP0_LOG_HEADER];
        group0_log_encode(entries[i].term, entries[i].kind, header);
        value.size = 0;
        done =
            buf_reserve(&value, sizeof(header) + entries[i].data.size) &&
            buf_append(&value, header, sizeof(header)) &&
            buf_append(&value, entries[i].data.data, entries[i].data.size) &&
            group0_put(group0, group0_key(GROUP0_KEY_LOG, entries[i].index, 0), buf_bytes(&value));
    }
    for (u64 index = last + 1; index <= group0->disk_last && done; index++)
        done = group0_delete(group0, group0_key(GROUP0_KEY_LOG, index, 0));
    buf_deinit(&value);
    return done;
}

static status
storage_append(void *context, const struct raft_entry *entries, u32 count)
{
    struct group0 *group0 = context;
    if (group0->next.ops.size > GROUP0_BATCH_BYTES_MAX) return ST_OVERLOADED;
    /* First all that can be refused, behind what is there already. */
    u32 there = (u32)(entries[0].index - group0->base_index - 1), old = group0->item_count;
    size_t ops_size = group0->next.ops.size;
    u32 ops_count = group0->next.count;
    bool done = items_reserve(group0, old + count);
    for (u32 i = 0; i < count && done; i++)
        done = item_add(group0, entries[i].term, entries[i].kind, entries[i].data);
    done = done && batch_entries(group0, entries, count) && group0_write_reserve(group0);
    if (!done) {
        items_cut(group0, old);
        group0->next.ops.size = ops_size;
        group0->next.count = ops_count;
        return ST_NO_MEMORY;
    }
    if (there < old) {
        for (u32 i = there; i < old; i++)
            item_free(group0, &group0->items[i]);
        memmove(group0->items + there, group0->items + old, count * sizeof(*group0->items));
        group0->item_count = there + count;
    }
    group0->disk_first = MIN(group0->disk_first, entries[0].index);
    group0->disk_last = entries[count - 1].index;
    return ST_OK;
}

static status
storage_snapshot(void *context, struct raft_snapshot *snapshot_out)
{
    const struct group0 *group0 = context;
    if (group0->base_blob == NULL) return ST_WOULD_WAIT;
    *snapshot_out = (struct raft_snapshot){.index = group0->base_index,
                                           .term = group0->base_term,
                                           .config = buf_bytes(&group0->base_config)};
    return ST_OK;
}

const struct raft_storage group0_storage = {
    .first_index = storage_first_index,
    .last_index = storage_last_index,
    .term = storage_term,
    .entries = storage_entries,
    .append = storage_append,
    .snapshot = storage_snapshot,
};

/* ---- loading ---- */

struct loading {
    struct group0 *group0;
    struct raft_hard_state hard;
    struct buf *topology;
    struct buf chunks; /* of the base, or of what may be left of another one */
    struct group0_base base;
    u64 chunk_index;
    struct lsm_batch left; /* what nothing refers to any more */
};

static status
corrupt(const char *what, u64 index)
{
    log_error("group0", "stored state does not read what=%s index=%llu", what,
              (unsigned long long)index);
    return ST_CORRUPT;
}

/* Keys come in the order of their kinds: base, commit, hard, identity, log, starts, chunks. */
static status
load_log(struct loading *loading, u64 index, struct bytes value)
{
    struct group0 *group0 = loading->group0;
    u64 term;
    u8 kind;
    struct bytes data;
    status st = group0_log_decode(value, &term, &kind, &data);
    if (!ok(st)) return corrupt("entry", index);
    u64 before =
        group0->item_count > 0 ? group0->items[group0->item_count - 1].term : group0->base_term;
    if (index != group0_log_last(group0) + 1 || term < before) return corrupt("entry", index);
    if (!item_add(group0, term, kind, data)) return ST_NO_MEMORY;
    return ST_OK;
}

static status
load_chunk(struct loading *loading, u64 index, u32 number, struct bytes key, struct bytes value)
{
    struct group0 *group0 = loading->group0;
    if (index != group0->base_index) /* of a snapshot that did not come about */
        return lsm_batch_delete(&loading->left, KEYSPACE_SYSTEM, group0->token, key) ? ST_OK
                                                                                     : ST_NO_MEMORY;
    if ((u64)number * GROUP0_CHUNK_BYTES != loading->topology->size) return corrupt("chunk", index);
    return buf_append(loading->topology, value.data, value.size) ? ST_OK : ST_NO_MEMORY;
}

static status
load_base(struct loading *loading, struct bytes value)
{
    struct group0 *group0 = loading->group0;
    struct group0_base base;
    if (!ok(group0_base_decode(value, &base))) return corrupt("base", 0);
    group0->base_index = base.index;
    group0->base_term = base.term;
    group0->base_chunks = base.chunk_count;
    loading->base = base;
    return buf_append(&group0->base_config, base.config.data, base.config.size) ? ST_OK
                                                                                : ST_NO_MEMORY;
}

static status
load_one(struct loading *loading, struct bytes key, struct bytes value)
{
    struct group0 *group0 = loading->group0;
    u8 kind;
    u64 index;
    u32 number;
    if (!group0_key_parse(key, &kind, &index, &number)) return ST_OK; /* somebody else's */
    switch ((enum group0_key_kind)kind) {
    case GROUP0_KEY_IDENTITY:
        return ok(group0_identity_decode(value, &group0->identity)) ? ST_OK
                                                                    : corrupt("identity", 0);
    case GROUP0_KEY_STARTS: {
        status st = group0_starts_load(group0, number, value);
        return status_is(st, ST_CORRUPT) ? corrupt("starts", number) : st;
    }
    case GROUP0_KEY_HARD:
        return ok(group0_hard_decode(value, &loading->hard)) ? ST_OK : corrupt("hard state", 0);
    case GROUP0_KEY_COMMIT:
        return ok(group0_commit_decode(value, &group0->commit_mark)) ? ST_OK
                                                                     : corrupt("commit mark", 0);
    case GROUP0_KEY_BASE:
        return load_base(loading, value);
    case GROUP0_KEY_LOG:
        return load_log(loading, index, value);
    case GROUP0_KEY_CHUNK:
        return load_chunk(loading, index, number, key, value);
    }
    return corrupt("key", kind);
}

/* Calls one for each of our keys. */
static MAY_YIELD status
scan_keys(struct group0 *group0, bool want_value,
          status (*one)(struct loading *loading, struct bytes key, struct bytes value),
          struct loading *loading)
{
    struct lsm_scan *scan;
    status st = lsm_scan_open(group0->options.lsm, NULL, KEYSPACE_SYSTEM, group0->token,
                              BYTES_LITERAL(GROUP0_TAG), group0->token, &scan);
    if (!ok(st)) return st;
    for (;;) {
        u64 token;
        struct bytes key;
        struct lsm_value value;
        st = lsm_scan_next(scan, want_value, &token, &key, &value);
        if (!ok(st)) break;
        st = one(loading, key, value.value);
        if (!ok(st)) break;
    }
    lsm_scan_close(scan);
    return status_is(st, ST_END) ? ST_OK : st;
}

/* What was written of it without a base is not ours: only a base makes it so. */
static MAY_YIELD status
write_left(struct group0 *group0, struct lsm_batch *left)
{
    u64 seq;
    if (left->count == 0) return ST_OK;
    status st = lsm_write(group0->options.lsm, left, &seq);
    return ok(st) ? lsm_wait_durable(group0->options.lsm, seq) : st;
}

status
group0_load(struct group0 *group0, struct raft_hard_state *hard_out, struct buf *topology_out)
{
    struct loading loading = {.group0 = group0, .topology = topology_out};
    lsm_batch_init(&loading.left, group0->options.budget);
    status st = scan_keys(group0, true, load_one, &loading);
    if (ok(st) && group0->base_index > 0 && topology_out->size != loading.base.bytes)
        st = corrupt("snapshot", group0->base_index);
    if (ok(st) && group0->commit_mark > group0_log_last(group0))
        st = corrupt("commit mark", group0->commit_mark);
    if (ok(st)) st = write_left(group0, &loading.left);
    lsm_batch_deinit(&loading.left);
    if (!ok(st)) return st;
    group0->commit_mark = MAX(group0->commit_mark, group0->base_index);
    group0->disk_first = group0->base_index + 1;
    group0->disk_last = group0_log_last(group0);
    *hard_out = loading.hard;
    return ST_OK;
}

static status
delete_one(struct loading *loading, struct bytes key, struct bytes value)
{
    return lsm_batch_delete(&loading->left, KEYSPACE_SYSTEM, loading->group0->token, key)
               ? ST_OK
               : ST_NO_MEMORY;
}

status
group0_wipe(struct group0 *group0)
{
    struct loading loading = {.group0 = group0};
    lsm_batch_init(&loading.left, group0->options.budget);
    status st = scan_keys(group0, false, delete_one, &loading);
    if (ok(st)) st = write_left(group0, &loading.left);
    lsm_batch_deinit(&loading.left);
    return st;
}
