/* SPDX-License-Identifier: MIT
 *
 * level_split.c -- makes a store of some partitions out of clean, closed stores of others, without
 * reading or writing a single entry: hard links, and a manifest whose views clip every table.
 *
 * Sources own disjoint tokens, and a run of a tree only has to be newer than the next one where
 * they share tokens. So the runs of all sources are put side by side, tier by tier, from the
 * oldest: the k-th oldest run of tier t of every source become one run of tier t. Their sequence
 * numbers need not agree; new ones go on above the highest.
 *
 * A file may come from several sources when an earlier change had shared it: it is linked once and
 * stands in several slots. File ids never collide (levels.c tells why).
 */
#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "io/file.h"
#include "io/io.h"
#include "lsm/levels_internal.h"

struct split {
    const char *const *dirs;
    const char *target_dir;
    struct budget *budget;
    u64 token_first, token_last;
    struct manifest *sources; /* by tokens */
    u32 *source_dir;          /* of each source */
    u32 source_count;
    struct manifest target;
    u32 run_capacity, table_capacity, blob_capacity, range_capacity;
};

static void
sort_sources(struct split *split)
{
    for (u32 i = 1; i < split->source_count; i++) {
        for (u32 j = i; j > 0 && split->sources[j - 1].token_first > split->sources[j].token_first;
             j--) {
            struct manifest swap = split->sources[j];
            split->sources[j] = split->sources[j - 1];
            split->sources[j - 1] = swap;
            u32 dir = split->source_dir[j];
            split->source_dir[j] = split->source_dir[j - 1];
            split->source_dir[j - 1] = dir;
        }
    }
}

/* The n-th oldest (from 0) run of a tier of a keyspace; *table_out: the index of its first table.
 */
static const struct manifest_run *
run_of(const struct manifest *source, u16 keyspace, u8 tier, u32 n, u32 *table_out)
{
    const struct manifest_run *found = NULL;
    u32 matches = 0, table = 0;
    for (u32 i = 0; i < source->run_count; i++)
        matches += source->runs[i].keyspace == keyspace && source->runs[i].tier == tier;
    if (n >= matches) return NULL;
    u32 want = matches - 1 - n; /* the list is newest first */
    for (u32 i = 0; i < source->run_count && found == NULL; i++) {
        const struct manifest_run *run = &source->runs[i];
        if (run->keyspace == keyspace && run->tier == tier && want-- == 0) {
            found = run;
            *table_out = table;
        }
        table += run->table_count;
    }
    return found;
}

MAY_YIELD static status
link_file(struct split *split, u32 source, u64 file_id, bool blob)
{
    char from[LSM_PATH_BYTES], to[LSM_PATH_BYTES];
    void (*path)(char *, const char *, u64) = blob ? blob_path : table_path;
    path(from, split->dirs[split->source_dir[source]], file_id);
    path(to, split->target_dir, file_id);
    status st = io_file_link(from, to);
    if (status_is(st, ST_EXISTS)) {
        MARK("lsm.split.shared_file");
        return ST_OK;
    }
    if (!ok(st)) {
        MARK("lsm.split.not_linked");
        log_error("lsm", "file cannot be linked from=%s to=%s why=%s", from, to, status_text(st));
    }
    return st;
}

static void
add_blob(struct split *split, const struct manifest_blob *blob)
{
    struct manifest *target = &split->target;
    u32 at = target->blob_count;
    while (at > 0 && target->blobs[at - 1].file_id > blob->file_id)
        at--;
    if (at > 0 && target->blobs[at - 1].file_id == blob->file_id) return;
    memmove(target->blobs + at + 1, target->blobs + at,
            (target->blob_count - at) * sizeof(*target->blobs));
    target->blobs[at] = *blob;
    target->blob_count++;
}

MAY_YIELD static status
add_table(struct split *split, u32 source, const struct manifest_table *table)
{
    const struct table_meta *meta = table->meta;
    status st = link_file(split, source, meta->file_id, false);
    const struct manifest *from = &split->sources[source];
    for (u32 i = 0; i < meta->blob_ref_count && ok(st); i++) {
        for (u32 j = 0; j < from->blob_count; j++) {
            if (from->blobs[j].file_id != meta->blob_refs[i].file_id) continue;
            st = link_file(split, source, from->blobs[j].file_id, true);
            if (ok(st)) add_blob(split, &from->blobs[j]);
        }
    }
    if (!ok(st)) return st;
    split->target.tables[split->target.table_count++] = (struct manifest_table){
        .meta = meta,
        .view_first = MAX(table->view_first, split->token_first),
        .view_last = MIN(table->view_last, split->token_last),
    };
    return ST_OK;
}

/* The oldest-but-n runs of one tier of all sources, side by side. *any: there was one. */
MAY_YIELD static status
add_run(struct split *split, u16 keyspace, u8 tier, u32 n, bool *any)
{
    struct manifest *target = &split->target;
    u32 before = target->table_count;
    for (u32 i = 0; i < split->source_count; i++) {
        u32 first;
        const struct manifest_run *run = run_of(&split->sources[i], keyspace, tier, n, &first);
        if (run == NULL) continue;
        *any = true;
        for (u32 j = 0; j < run->table_count; j++) {
            const struct manifest_table *table = &split->sources[i].tables[first + j];
            if (table->view_first > split->token_last || table->view_last < split->token_first)
                continue;
            status st = add_table(split, i, table);
            if (!ok(st)) return st;
        }
    }
    if (target->table_count > before)
        target->runs[target->run_count++] =
            (struct manifest_run){keyspace, tier, target->table_count - before};
    return ST_OK;
}

/* One tier, newest first: the groups are counted from the oldest. */
MAY_YIELD static status
add_tier(struct split *split, u16 keyspace, u8 tier)
{
    u32 depth = 0;
    for (u32 i = 0; i < split->source_count; i++) {
        u32 matches = 0;
        for (u32 j = 0; j < split->sources[i].run_count; j++)
            matches += split->sources[i].runs[j].keyspace == keyspace &&
                       split->sources[i].runs[j].tier == tier;
        depth = MAX(depth, matches);
    }
    while (depth-- > 0) {
        bool any = false;
        status st = add_run(split, keyspace, tier, depth, &any);
        if (!ok(st)) return st;
        CHECK(any);
    }
    return ST_OK;
}

/* A newer range of the same store deletes all that this one does; no snapshot outlives a store. */
static bool
range_is_hidden(const struct manifest *source, u32 index)
{
    const struct range_delete *range = &source->ranges[index];
    for (u32 i = source->range_count; i-- > index + 1;) {
        const struct range_delete *newer = &source->ranges[i];
        if (newer->keyspace == range->keyspace && newer->seq > range->seq &&
            newer->version >= range->version && newer->token_first <= range->token_first &&
            newer->token_last >= range->token_last)
            return true;
    }
    return false;
}

static void
add_ranges(struct split *split)
{
    struct manifest *target = &split->target;
    for (u32 i = 0; i < split->source_count; i++) {
        const struct manifest *source = &split->sources[i];
        for (u32 j = 0; j < source->range_count; j++) {
            /* Clipped to its source: elsewhere its version means nothing. */
            struct range_delete range = source->ranges[j];
            if (range_is_hidden(source, j)) {
                MARK("lsm.split.range_hidden");
                continue;
            }
            range.token_first =
                MAX(range.token_first, MAX(source->token_first, split->token_first));
            range.token_last = MIN(range.token_last, MIN(source->token_last, split->token_last));
            if (range.token_first > range.token_last) continue;
            u32 at = target->range_count;
            while (at > 0 && target->ranges[at - 1].seq > range.seq)
                at--;
            memmove(target->ranges + at + 1, target->ranges + at,
                    (target->range_count - at) * sizeof(*target->ranges));
            target->ranges[at] = range;
            target->range_count++;
        }
    }
}

static void
add_state(struct split *split)
{
    u64 generation = 0;
    struct levels_state *state = &split->target.state;
    for (u32 i = 0; i < split->source_count; i++) {
        const struct manifest *source = &split->sources[i];
        state->seq_flushed = MAX(state->seq_flushed, source->state.seq_flushed);
        state->version_max = MAX(state->version_max, source->state.version_max);
        generation = MAX(generation, source->file_id_next >> FILE_ID_COUNTER_BITS >> SLOT_BITS);
    }
    u64 prefix = (generation + 1) << SLOT_BITS | token_slot(split->token_first);
    split->target.file_id_next = (prefix << FILE_ID_COUNTER_BITS) + 1;
    split->target.token_first = split->token_first;
    split->target.token_last = split->token_last;
    split->target.generation = 1;
}

MAY_YIELD static status
read_sources(struct split *split, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        u64 offset;
        const char *what;
        status st = manifest_read(split->dirs[i], split->budget,
                                  &split->sources[split->source_count], &offset, &what);
        if (!ok(st)) {
            MARK("lsm.split.manifest_unusable");
            log_error("lsm", "manifest cannot be used file=%s/manifest offset=%llu what=%s",
                      split->dirs[i], (unsigned long long)offset, what);
            return st;
        }
        split->source_dir[split->source_count++] = i;
        split->run_capacity += split->sources[split->source_count - 1].run_count;
        split->table_capacity += split->sources[split->source_count - 1].table_count;
        split->blob_capacity += split->sources[split->source_count - 1].blob_count;
        split->range_capacity += split->sources[split->source_count - 1].range_count;
    }
    sort_sources(split);
    for (u32 i = 1; i < split->source_count; i++) {
        if (split->sources[i - 1].token_last >= split->sources[i].token_first) {
            MARK("lsm.split.sources_overlap");
            log_error("lsm", "stores with common partitions dir=%s dir=%s",
                      split->dirs[split->source_dir[i - 1]], split->dirs[split->source_dir[i]]);
            return ST_CORRUPT;
        }
    }
    return ST_OK;
}

MAY_YIELD static status
build(struct split *split)
{
    struct manifest *target = &split->target;
    /* One more than needed, so that no size is 0. */
    target->runs = mem_alloc(split->budget, (split->run_capacity + 1) * sizeof(*target->runs));
    target->tables =
        mem_alloc(split->budget, (split->table_capacity + 1) * sizeof(*target->tables));
    target->blobs = mem_alloc(split->budget, (split->blob_capacity + 1) * sizeof(*target->blobs));
    target->ranges =
        mem_alloc(split->budget, (split->range_capacity + 1) * sizeof(*target->ranges));
    if (target->runs == NULL || target->tables == NULL || target->blobs == NULL ||
        target->ranges == NULL)
        return MARKED("lsm.split.no_memory", ST_NO_MEMORY);
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES; keyspace++) {
        for (u32 tier = 0; tier <= RUN_TIER_MAX + 1; tier++) {
            status st = add_tier(split, keyspace, (u8)(tier > RUN_TIER_MAX ? RUN_TIER_LAST : tier));
            if (!ok(st)) return st;
        }
    }
    add_ranges(split);
    if (target->range_count > RANGE_LIST_MAX)
        return MARKED("lsm.split.too_many_ranges", ST_OVERLOADED);
    add_state(split);
    bool known;
    return manifest_write(split->target_dir, target, split->budget, &known);
}

MAY_YIELD status
levels_split(const char *const *source_dirs, u32 source_count, const char *target_dir,
             u64 token_first, u64 token_last)
{
    CHECK(token_first <= token_last);
    struct budget *budget = io_budget();
    struct split split = {.dirs = source_dirs,
                          .target_dir = target_dir,
                          .budget = budget,
                          .token_first = token_first,
                          .token_last = token_last};
    split.sources = mem_alloc_zero(budget, (source_count + 1) * sizeof(*split.sources));
    split.source_dir = mem_alloc_zero(budget, (source_count + 1) * sizeof(*split.source_dir));
    bool room = split.sources != NULL && split.source_dir != NULL;
    status st = room ? read_sources(&split, source_count)
                     : MARKED("lsm.split.sources_no_memory", ST_NO_MEMORY);
    if (ok(st)) st = build(&split);
    struct manifest *target = &split.target;
    mem_free(budget, target->runs, (split.run_capacity + 1) * sizeof(*target->runs));
    mem_free(budget, target->tables, (split.table_capacity + 1) * sizeof(*target->tables));
    mem_free(budget, target->blobs, (split.blob_capacity + 1) * sizeof(*target->blobs));
    mem_free(budget, target->ranges, (split.range_capacity + 1) * sizeof(*target->ranges));
    for (u32 i = 0; i < split.source_count && split.sources != NULL; i++)
        manifest_free(&split.sources[i]);
    mem_free(budget, split.source_dir, (source_count + 1) * sizeof(*split.source_dir));
    mem_free(budget, split.sources, (source_count + 1) * sizeof(*split.sources));
    return st;
}
