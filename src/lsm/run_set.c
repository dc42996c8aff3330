/* SPDX-License-Identifier: MIT
 *
 * run_set.c -- see run_set.h.
 */
#include "lsm/levels_internal.h"

#include "base/fault.h"
#include "base/log.h"

/* ---- blob files ---- */

static u32
blob_index(const struct levels *levels, u64 file_id)
{
    u32 low = 0, high = levels->blob_count;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (levels->blobs[middle]->file_id < file_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct level_blob *
level_blob_find(struct levels *levels, u64 file_id)
{
    u32 at = blob_index(levels, file_id);
    if (at == levels->blob_count || levels->blobs[at]->file_id != file_id) return NULL;
    return levels->blobs[at];
}

struct level_blob *
level_blob_new(struct levels *levels, struct blob_file *file, u64 token_first, u64 token_last)
{
    struct level_blob *blob = NULL;
    if (levels->blob_count == levels->blob_capacity) {
        u32 capacity = MAX(16u, levels->blob_capacity * 2);
        struct level_blob **grown =
            mem_realloc(levels->budget, levels->blobs,
                        levels->blob_capacity * sizeof(*levels->blobs), capacity * sizeof(*grown));
        if (grown == NULL) goto no_memory;
        levels->blobs = grown;
        levels->blob_capacity = capacity;
    }
    blob = mem_alloc_zero(levels->budget, sizeof(*blob));
    if (blob == NULL) goto no_memory;
    blob->levels = levels;
    blob->file = file;
    blob->file_id = file->file_id;
    blob->file_bytes = file->file_bytes;
    blob->token_first = token_first;
    blob->token_last = token_last;
    blob->ref_count = 1;
    u32 at = blob_index(levels, blob->file_id);
    CHECK(at == levels->blob_count || levels->blobs[at]->file_id != blob->file_id);
    memmove(levels->blobs + at + 1, levels->blobs + at,
            (levels->blob_count - at) * sizeof(*levels->blobs));
    levels->blobs[at] = blob;
    levels->blob_count++;
    return blob;

no_memory:
    MARK("lsm.run_set.blob_no_memory");
    blob_unref(file);
    return NULL;
}

void
level_blob_unref(struct level_blob *blob)
{
    CHECK(blob->ref_count > 0);
    if (--blob->ref_count > 0) return;
    CHECK(blob->live_tables == 0);
    struct levels *levels = blob->levels;
    u32 at = blob_index(levels, blob->file_id);
    CHECK(at < levels->blob_count && levels->blobs[at] == blob);
    memmove(levels->blobs + at, levels->blobs + at + 1,
            (levels->blob_count - at - 1) * sizeof(*levels->blobs));
    levels->blob_count--;
    if (blob->damaged.count > 0) levels->damaged_blobs--;
    blob_unref(blob->file);
    mem_free(levels->budget, blob, sizeof(*blob));
}

void
level_blob_damaged(struct level_blob *blob, u64 token_first, u64 token_last)
{
    bool is_first = blob->damaged.count == 0;
    if (!gap_list_note(&blob->damaged, token_first, token_last)) return;
    MARK("lsm.run_set.blob_damaged");
    blob->levels->table_stats.damage_epoch++;
    blob->levels->damaged_blobs += is_first;
}

/* ---- tables ---- */

static size_t
level_table_size(u32 blob_count)
{
    return sizeof(struct level_table) + blob_count * sizeof(struct level_blob *);
}

status
level_table_new(struct levels *levels, struct table *table, struct level_table **out)
{
    u32 count = table->meta.blob_ref_count;
    struct level_table *file = mem_alloc_zero(levels->budget, level_table_size(count));
    if (file == NULL) {
        MARK("lsm.run_set.table_no_memory");
        table_unref(table);
        return ST_NO_MEMORY;
    }
    file->levels = levels;
    file->table = table;
    file->ref_count = 1;
    file->blob_count = count;
    for (u32 i = 0; i < count; i++) {
        struct level_blob *blob = level_blob_find(levels, table->meta.blob_refs[i].file_id);
        if (blob == NULL) {
            MARK("lsm.run_set.blob_lost");
            log_error("lsm",
                      "table refers to a blob file that the manifest does not name dir=%s "
                      "file=t%016llx",
                      levels->dir, (unsigned long long)table->meta.file_id);
            file->blob_count = i;
            for (u32 j = 0; j < i; j++)
                level_blob_unref(file->blobs[j]);
            mem_free(levels->budget, file, level_table_size(count));
            table_unref(table);
            return ST_CORRUPT;
        }
        blob->ref_count++;
        file->blobs[i] = blob;
    }
    *out = file;
    return ST_OK;
}

void
level_table_unref(struct level_table *file)
{
    CHECK(file->ref_count > 0);
    if (--file->ref_count > 0) return;
    CHECK(file->slot_count == 0);
    struct levels *levels = file->levels;
    for (u32 i = 0; i < file->blob_count; i++)
        level_blob_unref(file->blobs[i]);
    table_unref(file->table);
    mem_free(levels->budget, file, level_table_size(file->blob_count));
}

u64
level_table_part(const struct level_table *file, u64 bytes, u64 token_first, u64 token_last)
{
    const struct table_meta *meta = &file->table->meta;
    u64 first = MAX(token_first, meta->token_first);
    u64 last = MIN(token_last, meta->token_last);
    if (first > last) return 0;
    u64 span = meta->token_last - meta->token_first;
    if (span == 0 || last - first == span) return bytes;
    return MAX(1u, (u64)((unsigned __int128)bytes * (last - first) / span));
}

u64
level_table_bytes_in(const struct level_table *file, u64 token_first, u64 token_last)
{
    const struct table_meta *meta = &file->table->meta;
    u64 bytes = meta->file_bytes;
    for (u32 i = 0; i < meta->blob_ref_count; i++)
        bytes += meta->blob_refs[i].bytes;
    return level_table_part(file, bytes, token_first, token_last);
}

/* ---- runs ---- */

static size_t
run_size(u32 capacity)
{
    return sizeof(struct run) + capacity * sizeof(struct run_slot);
}

/* A run is freed with the size of its slots, so its maker fills it to the capacity. */
struct run *
run_new(struct levels *levels, u16 keyspace, u8 tier, u32 capacity)
{
    struct run *run = mem_alloc_zero(levels->budget, run_size(capacity));
    if (run == NULL) return MARKED("lsm.run_set.run_no_memory", NULL);
    run->id = levels->run_id_next++;
    run->ref_count = 1;
    run->keyspace = keyspace;
    run->tier = tier;
    return run;
}

void
run_add(struct run *run, struct level_table *file, u64 token_first, u64 token_last)
{
    const struct table_meta *meta = &file->table->meta;
    CHECK(token_first <= token_last);
    CHECK(token_first >= meta->token_first && token_last <= meta->token_last);
    CHECK(run->count == 0 || run->slots[run->count - 1].token_last < token_first);
    run->slots[run->count++] = (struct run_slot){file, token_first, token_last};
    file->ref_count++;
    run->bytes += level_table_bytes_in(file, token_first, token_last);
    run->version_max = MAX(run->version_max, meta->version_max);
}

void
run_unref(struct run *run, struct levels *levels)
{
    CHECK(run->ref_count > 0);
    if (--run->ref_count > 0) return;
    for (u32 i = 0; i < run->count; i++)
        level_table_unref(run->slots[i].file);
    mem_free(levels->budget, run, run_size(run->count));
}

u32
run_slot_from(const struct run *run, u64 token)
{
    u32 low = 0, high = run->count;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (run->slots[middle].token_last < token)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct run_slot *
run_find(const struct run *run, u64 token)
{
    u32 at = run_slot_from(run, token);
    if (at == run->count || run->slots[at].token_first > token) return NULL;
    return &run->slots[at];
}

bool
run_overlaps(const struct run *run, u64 token_first, u64 token_last)
{
    u32 at = run_slot_from(run, token_first);
    return at < run->count && run->slots[at].token_first <= token_last;
}

status
run_splice(const struct run *run, struct levels *levels, u16 keyspace, u8 tier, u64 token_first,
           u64 token_last, const struct run_slot *add, u32 add_count, struct run **out)
{
    u32 old_count = run == NULL ? 0 : run->count;
    u32 count = add_count;
    for (u32 i = 0; i < old_count; i++) {
        count += run->slots[i].token_first < token_first;
        count += run->slots[i].token_last > token_last;
    }
    *out = NULL;
    if (count == 0) return ST_OK;
    struct run *made = run_new(levels, keyspace, tier, count);
    if (made == NULL) return ST_NO_MEMORY;
    if (run != NULL) {
        made->id = run->id;
        made->owner = run->owner;
        made->tier = run->tier;
    }
    for (u32 i = 0; i < old_count; i++) {
        const struct run_slot *slot = &run->slots[i];
        if (slot->token_first < token_first)
            run_add(made, slot->file, slot->token_first, MIN(slot->token_last, token_first - 1));
    }
    for (u32 i = 0; i < add_count; i++)
        run_add(made, add[i].file, add[i].token_first, add[i].token_last);
    for (u32 i = 0; i < old_count; i++) {
        const struct run_slot *slot = &run->slots[i];
        if (slot->token_last > token_last)
            run_add(made, slot->file, MAX(slot->token_first, token_last + 1), slot->token_last);
    }
    CHECK(made->count == count);
    *out = made;
    return ST_OK;
}

/* ---- sets ---- */

static size_t
run_set_size(u32 run_count)
{
    return sizeof(struct run_set) + run_count * sizeof(struct run *);
}

static void
set_append(struct run_set *set, struct run *run)
{
    if (run == NULL) return;
    run->ref_count++;
    set->runs[set->run_count++] = run;
}

static const struct run_change *
change_of(const struct run_change *changes, u32 count, const struct run *run)
{
    for (u32 i = 0; i < count; i++) {
        if (changes[i].old == run) return &changes[i];
    }
    return NULL;
}

static void
append_insertions(struct run_set *set, const struct run_change *changes, u32 count, u16 keyspace,
                  bool last)
{
    for (u32 i = 0; i < count; i++) {
        struct run *run = changes[i].replacement;
        if (changes[i].old == NULL && run->keyspace == keyspace &&
            (run->tier == RUN_TIER_LAST) == last)
            set_append(set, run);
    }
}

struct run_set *
run_set_edit(struct levels *levels, const struct run_set *base, const struct run_change *changes,
             u32 count)
{
    u32 base_count = base == NULL ? 0 : base->run_count;
    u32 capacity = base_count + 2 * count;
    struct run_set *set = mem_alloc_zero(levels->budget, run_set_size(capacity));
    if (set == NULL) return MARKED("lsm.run_set.no_memory", NULL);
    set->levels = levels;
    set->ref_count = 1;
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES; keyspace++) {
        set->tree_first[keyspace] = set->run_count;
        append_insertions(set, changes, count, keyspace, false);
        u32 runs = base == NULL ? 0 : run_set_tree_count(base, keyspace);
        for (u32 i = 0; i < runs; i++) {
            struct run *run = run_set_tree_run(base, keyspace, i);
            const struct run_change *change = change_of(changes, count, run);
            set_append(set, change == NULL ? run : change->replacement);
            if (change != NULL) set_append(set, change->after);
        }
        append_insertions(set, changes, count, keyspace, true);
    }
    set->tree_first[LIMIT_KEYSPACES] = set->run_count;
    CHECK(set->run_count <= capacity);
    /* Give back what the estimate had too much; shrinking does not fail, and if it did, the block
     * would have to be freed with its first size. */
    if (set->run_count < capacity) {
        struct run_set *fit = mem_alloc(levels->budget, run_set_size(set->run_count));
        if (fit == NULL) {
            MARK("lsm.run_set.fit_no_memory");
            for (u32 i = 0; i < set->run_count; i++)
                run_unref(set->runs[i], levels);
            mem_free(levels->budget, set, run_set_size(capacity));
            return NULL;
        }
        memcpy(fit, set, run_set_size(set->run_count));
        mem_free(levels->budget, set, run_set_size(capacity));
        set = fit;
    }
    levels->sets_alive++;
    return set;
}

void
run_set_ref(struct run_set *set)
{
    set->ref_count++;
}

void
run_set_unref(struct run_set *set)
{
    CHECK(set->ref_count > 0);
    if (--set->ref_count > 0) return;
    struct levels *levels = set->levels;
    CHECK(levels->sets_alive > 0);
    levels->sets_alive--;
    for (u32 i = 0; i < set->run_count; i++)
        run_unref(set->runs[i], levels);
    mem_free(levels->budget, set, run_set_size(set->run_count));
}

struct run *
run_set_find(const struct run_set *set, u64 run_id)
{
    for (u32 i = 0; i < set->run_count; i++) {
        if (set->runs[i]->id == run_id) return set->runs[i];
    }
    return NULL;
}

struct run *
run_set_last(const struct run_set *set, u16 keyspace)
{
    u32 count = run_set_tree_count(set, keyspace);
    if (count == 0) return NULL;
    struct run *run = run_set_tree_run(set, keyspace, count - 1);
    return run->tier == RUN_TIER_LAST ? run : NULL;
}

/* No slot of newer lies wholly below a slot of older that shares a token with it. More cannot be
 * told from tables alone: a merge of tiers may begin while a slice of one of its inputs is in the
 * last level already, and its output then spans that slice with numbers from other slices. Those
 * may even be lower than all that the last level has there, so it is left out. */
static bool
runs_ordered(const struct run *newer, const struct run *older)
{
    if (older->tier == RUN_TIER_LAST) return true;
    for (u32 i = 0; i < newer->count; i++) {
        const struct run_slot *slot = &newer->slots[i];
        u64 seq_max = slot->file->table->meta.seq_max;
        for (u32 j = run_slot_from(older, slot->token_first);
             j < older->count && older->slots[j].token_first <= slot->token_last; j++) {
            if (seq_max < older->slots[j].file->table->meta.seq_min) return false;
        }
    }
    return true;
}

bool
run_set_check(const struct run_set *set)
{
    if (set->ref_count == 0) return false;
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES; keyspace++) {
        u32 count = run_set_tree_count(set, keyspace);
        for (u32 i = 0; i < count; i++) {
            const struct run *run = run_set_tree_run(set, keyspace, i);
            if (run->keyspace != keyspace || run->ref_count == 0 || run->count == 0) return false;
            if (run->tier > RUN_TIER_MAX && run->tier != RUN_TIER_LAST) return false;
            if (run->tier == RUN_TIER_LAST && i + 1 != count) return false;
            if (i > 0 && run_set_tree_run(set, keyspace, i - 1)->tier > run->tier) return false;
            for (u32 j = 0; j < run->count; j++) {
                const struct run_slot *slot = &run->slots[j];
                if (slot->token_first > slot->token_last || slot->file->ref_count == 0)
                    return false;
                if (j > 0 && run->slots[j - 1].token_last >= slot->token_first) return false;
            }
            for (u32 j = i + 1; j < count; j++) {
                if (!runs_ordered(run, run_set_tree_run(set, keyspace, j))) return false;
            }
        }
    }
    return true;
}
