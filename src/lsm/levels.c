/* SPDX-License-Identifier: MIT
 *
 * levels.c -- opening and closing what lies in files, and its figures. levels_internal.h tells
 * which file does the rest.
 *
 * File ids: | generation: 18 | first slot of the store: 14 | counter: 32 |. An id names a file and
 * seeds its checksums. Stores of one generation of a data directory have different first slots, and
 * levels_split makes a store of the next generation, so files of several stores never share an id
 * when they meet in one directory.
 *
 * Opening trusts nothing that is not durable: it syncs the directory first, because the manifest it
 * reads may have been renamed by a process that died before its own sync, and removing what that
 * manifest does not name would then destroy what an older one, back after a power cut, does name.
 */
#include <stdio.h>

#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/prng.h"
#include "io/io.h"
#include "lsm/levels_internal.h"
#include "lsm/table_internal.h"

/* Writes are slow then; refused are only those to itself, at LEVELS_RUNS_MAX. */
#define WAITING_PRESSURE_MAX  800u
#define TABLES_OPENED_AT_ONCE 4u

/* ---- small things ---- */

u64
levels_file_id_new(struct levels *levels)
{
    u64 counter_max = ((u64)1 << FILE_ID_COUNTER_BITS) - 1 - FILE_ID_SLACK;
    if ((levels->file_id_next & (((u64)1 << FILE_ID_COUNTER_BITS) - 1)) >= counter_max)
        return MARKED("lsm.levels.file_ids_used_up", 0);
    return levels->file_id_next++;
}

const u64 *
levels_snapshots(const struct levels *levels, u32 *count_out)
{
    *count_out = 0;
    if (levels->config.snapshots == NULL) return NULL;
    return levels->config.snapshots(levels->config.arg, count_out);
}

u32
levels_drop_mark(u16 keyspace, struct bytes key)
{
    return (u32)(hash_key(key, keyspace) % LEVELS_DROP_MARKS);
}

u64
levels_dropped_seq(const struct levels *levels, u16 keyspace, struct bytes key)
{
    return MAX(levels->dropped_seq_tables[keyspace],
               levels->dropped_seqs[levels_drop_mark(keyspace, key)]);
}

u64
levels_expiry_begin(struct levels *levels)
{
    CHECK(levels->expired_ms == 0);
    levels->expired_ms = io_wall_ms();
    return levels->expired_ms;
}

void
levels_expiry_end(struct levels *levels)
{
    levels->expired_ms = 0;
}

u64
levels_expired_ms(const struct levels *levels)
{
    return levels->expired_ms;
}

void
levels_report_corrupt(struct levels *levels, const char *where, char letter, u64 file_id)
{
    levels->corruptions++;
    MARK("lsm.levels.corrupt_file");
    if (log_seldom(&levels->corrupt_told_ns, io_now_ns()))
        log_error("lsm", "damaged file met dir=%s file=%c%016llx while=%s times=%llu", levels->dir,
                  letter, (unsigned long long)file_id, where,
                  (unsigned long long)levels->corruptions);
}

bool
levels_parse_name(const char *name, bool *is_blob_out, u64 *file_id_out)
{
    if (strlen(name) != 17 || (name[0] != 't' && name[0] != 'b')) return false;
    u64 id = 0;
    for (u32 i = 1; i < 17; i++) {
        char c = name[i];
        if (c >= '0' && c <= '9')
            id = id << 4 | (u64)(c - '0');
        else if (c >= 'a' && c <= 'f')
            id = id << 4 | (u64)(c - 'a' + 10);
        else
            return false;
    }
    *is_blob_out = name[0] == 'b';
    *file_id_out = id;
    return true;
}

void
levels_pick_tree(struct levels *levels, u16 keyspace, struct pick_tree *tree, struct pick_run *runs,
                 struct pick_sweep *sweeps, u32 runs_max)
{
    const struct run_set *set = levels->current;
    *tree = (struct pick_tree){
        .runs = runs, .sweeps = sweeps, .fanout = levels->fanout, .tier_bytes = levels->tier_bytes};
    u32 count = run_set_tree_count(set, keyspace);
    u32 skip = 0;
    struct run *last = run_set_last(set, keyspace);
    if (last != NULL) {
        tree->last_bytes = last->bytes;
        count--;
    }
    if (count > runs_max) skip = count - runs_max; /* the newest wait */
    for (u32 i = skip; i < count; i++) {
        const struct run *run = run_set_tree_run(set, keyspace, i);
        runs[tree->run_count++] =
            (struct pick_run){.bytes = run->bytes, .tier = run->tier, .owner = run->owner};
    }
    for (u32 i = 0; i < PICK_SWEEPS_MAX; i++) {
        const struct sweep *sweep = &levels->trees[keyspace].sweeps[i];
        sweeps[i] = (struct pick_sweep){sweep->active, sweep->into_last, sweep->tier_in};
    }
}

void
levels_shape_update(struct levels *levels)
{
    struct pick_run runs[SWEEP_RUNS_MAX];
    struct pick_sweep sweeps[PICK_SWEEPS_MAX];
    u32 pressure = 0, full = 0;
    u64 debt = 0, runs_max = 0;
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES; keyspace++) {
        u32 count = run_set_tree_count(levels->current, keyspace);
        if (count == 0) continue;
        runs_max = MAX(runs_max, count);
        if (count >= LEVELS_RUNS_MAX) full |= 1u << keyspace;
        struct pick_tree tree;
        levels_pick_tree(levels, keyspace, &tree, runs, sweeps, SWEEP_RUNS_MAX);
        u32 of_tree = compaction_pressure(&tree);
        /* Whoever mends it has to write in this store before it can be merged again. */
        if (levels->trees[keyspace].waits) of_tree = MIN(of_tree, WAITING_PRESSURE_MAX);
        pressure = MAX(pressure, of_tree);
        debt += compaction_debt(&tree);
    }
    if (BUGGIFY("lsm.levels.pressure")) pressure = MAX(pressure, 900u);
    levels->runs_max = runs_max;
    levels->pressure = pressure;
    levels->full = full;
    levels->debt_bytes = debt;
}

/* ---- opening ---- */

struct listing {
    struct levels *levels;
    const struct manifest *manifest; /* NULL: none was found */
    u64 *orphans;                    /* table ids */
    u32 orphan_count, orphan_capacity;
    bool blobs; /* looking for orphaned blob files, else for tables */
    bool any;   /* some file of a store is there */
    bool no_memory;
};

static int
order_ids(u64 a, u64 b)
{
    return a < b ? -1 : a > b;
}

/* In place, no memory: the lists of ids are short and sorted once an opening. */
static void
sort_ids(u64 *ids, u32 count)
{
    for (u32 start = count / 2; start-- > 0;) {
        for (u32 at = start, child; (child = 2 * at + 1) < count; at = child) {
            if (child + 1 < count && order_ids(ids[child], ids[child + 1]) < 0) child++;
            if (order_ids(ids[at], ids[child]) >= 0) break;
            u64 swap = ids[at];
            ids[at] = ids[child];
            ids[child] = swap;
        }
    }
    for (u32 end = count; end-- > 1;) {
        u64 top = ids[0];
        ids[0] = ids[end];
        ids[end] = top;
        for (u32 at = 0, child; (child = 2 * at + 1) < end; at = child) {
            if (child + 1 < end && order_ids(ids[child], ids[child + 1]) < 0) child++;
            if (order_ids(ids[at], ids[child]) >= 0) break;
            u64 swap = ids[at];
            ids[at] = ids[child];
            ids[child] = swap;
        }
    }
}

static bool
id_listed(const u64 *ids, u32 count, u64 id)
{
    u32 low = 0, high = count;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && ids[low] == id;
}

static void
list_file(void *arg, const char *name)
{
    struct listing *listing = arg;
    bool is_blob;
    u64 id;
    if (strcmp(name, "manifest.old") == 0) listing->any = true;
    if (!levels_parse_name(name, &is_blob, &id)) return;
    listing->any = true;
    struct levels *levels = listing->levels;
    if (id >> FILE_ID_COUNTER_BITS == levels->id_prefix)
        levels->file_id_next = MAX(levels->file_id_next, id + 1);
    if (is_blob != listing->blobs) return;
    if (listing->orphan_count == listing->orphan_capacity) {
        u32 capacity = MAX(64u, listing->orphan_capacity * 2);
        u64 *grown = mem_realloc(levels->budget, listing->orphans,
                                 listing->orphan_capacity * sizeof(u64), capacity * sizeof(u64));
        if (grown == NULL) {
            MARK("lsm.levels.listing_no_memory");
            listing->no_memory = true;
            return;
        }
        listing->orphans = grown;
        listing->orphan_capacity = capacity;
    }
    listing->orphans[listing->orphan_count++] = id;
}

/* Removes table files (blob files) that are in the directory and not in use. */
MAY_YIELD static status
remove_orphans(struct levels *levels, bool blobs)
{
    struct listing listing = {.levels = levels, .blobs = blobs};
    status st = io_dir_list(levels->dir, list_file, &listing);
    u64 *used = NULL;
    u32 used_count = 0, used_capacity = 0;
    if (ok(st) && listing.no_memory) st = ST_NO_MEMORY;
    if (!ok(st) || listing.orphan_count == 0) goto done;

    const struct run_set *set = levels->current;
    for (u32 i = 0; i < set->run_count; i++)
        used_capacity += set->runs[i]->count;
    if (blobs) used_capacity = levels->blob_count;
    if (used_capacity > 0) {
        used = mem_alloc(levels->budget, used_capacity * sizeof(u64));
        if (used == NULL) {
            MARK("lsm.levels.orphans_no_memory");
            st = ST_NO_MEMORY;
            goto done;
        }
    }
    for (u32 i = 0; blobs && i < levels->blob_count; i++)
        used[used_count++] = levels->blobs[i]->file_id;
    for (u32 i = 0; !blobs && i < set->run_count; i++) {
        for (u32 j = 0; j < set->runs[i]->count; j++)
            used[used_count++] = set->runs[i]->slots[j].file->table->meta.file_id;
    }
    sort_ids(used, used_count);
    for (u32 i = 0; i < listing.orphan_count; i++) {
        if (id_listed(used, used_count, listing.orphans[i])) continue;
        char path[LSM_PATH_BYTES];
        if (blobs)
            blob_path(path, levels->dir, listing.orphans[i]);
        else
            table_path(path, levels->dir, listing.orphans[i]);
        MARK("lsm.levels.orphan_removed");
        status removed = io_file_unlink(path);
        if (ok(removed)) continue;
        MARK("lsm.levels.orphan_stays");
        log_warning("lsm", "orphan stays file=%s why=%s", path, status_text(removed));
    }

done:
    mem_free(levels->budget, listing.orphans, listing.orphan_capacity * sizeof(u64));
    mem_free(levels->budget, used, used_capacity * sizeof(u64));
    return st;
}

MAY_YIELD void
levels_collect_orphans(struct levels *levels)
{
    /* A flush during the replay may have left open which manifest holds, and the other names what
     * looks like orphans here. */
    if (levels->failed) {
        MARK("lsm.levels.orphans_left");
        return;
    }
    status st = remove_orphans(levels, true);
    if (!ok(st)) {
        MARK("lsm.levels.orphan_blobs_stay");
        log_warning("lsm", "orphaned blob files stay dir=%s why=%s", levels->dir, status_text(st));
    }
}

MAY_YIELD static status
open_blobs(struct levels *levels, const struct manifest *manifest)
{
    for (u32 i = 0; i < manifest->blob_count; i++) {
        const struct manifest_blob *named = &manifest->blobs[i];
        struct blob_file *file;
        status st =
            blob_open(levels->dir, named->file_id, named->file_bytes, levels->budget, &file);
        if (!ok(st)) {
            MARK("lsm.levels.blob_unusable");
            log_error("lsm",
                      "blob file of the manifest cannot be opened dir=%s file=b%016llx why=%s",
                      levels->dir, (unsigned long long)named->file_id, status_text(st));
            return status_is(st, ST_NOT_FOUND) ? MARKED("lsm.levels.blob_missing", ST_CORRUPT) : st;
        }
        if (level_blob_new(levels, file, named->token_first, named->token_last) == NULL)
            return MARKED("lsm.levels.blob_no_memory", ST_NO_MEMORY);
    }
    return ST_OK;
}

/* Opened tables by id, so that a table in several slots is opened once. */
struct opened {
    struct level_table **places; /* open addressing, power of two */
    u32 capacity;
};

static struct level_table **
opened_place(struct opened *opened, u64 file_id)
{
    u64 seed = file_id;
    u32 at = (u32)(splitmix64(&seed) & (opened->capacity - 1));
    while (opened->places[at] != NULL && opened->places[at]->table->meta.file_id != file_id)
        at = (at + 1) & (opened->capacity - 1);
    return &opened->places[at];
}

/* The table is in `opened` afterwards. Others may open tables meanwhile, this one, too. */
MAY_YIELD static status
open_table(struct levels *levels, const struct table_meta *meta, struct opened *opened)
{
    struct level_table **place = opened_place(opened, meta->file_id);
    if (*place != NULL) {
        if ((*place)->table->meta.file_hash != meta->file_hash) {
            MARK("lsm.levels.table_differs");
            log_error("lsm", "manifest names two tables by one number dir=%s file=t%016llx",
                      levels->dir, (unsigned long long)meta->file_id);
            return ST_CORRUPT;
        }
        return ST_OK;
    }
    struct table *table;
    status st = table_open(levels->dir, meta, levels->budget, &levels->table_stats, &table);
    if (!ok(st)) {
        MARK("lsm.levels.table_unusable");
        log_error("lsm", "table of the manifest cannot be opened dir=%s file=t%016llx why=%s",
                  levels->dir, (unsigned long long)meta->file_id, status_text(st));
        if (!status_is(st, ST_NOT_FOUND)) return st;
        return MARKED("lsm.levels.table_missing", ST_CORRUPT);
    }
    place = opened_place(opened, meta->file_id);
    if (*place != NULL) {
        MARK("lsm.levels.table_opened_twice");
        table_unref(table);
        return open_table(levels, meta, opened);
    }
    st = level_table_new(levels, table, place);
    if (!ok(st)) {
        MARK("lsm.levels.table_not_listed");
        *place = NULL;
    }
    return st;
}

MAY_YIELD static status
load_filter(struct levels *levels, struct level_table *file)
{
    status st = table_filter_load(file->table);
    if (ok(st)) return st;
    MARK("lsm.levels.filter_unusable");
    log_error("lsm", "filter of a table cannot be read dir=%s file=t%016llx why=%s", levels->dir,
              (unsigned long long)file->table->meta.file_id, status_text(st));
    return st;
}

static bool
in_store(const struct levels *levels, const struct manifest_table *slot)
{
    return slot->view_first <= levels->config.token_last &&
           slot->view_last >= levels->config.token_first;
}

/* Each table takes some reads of the disk one after the other, so a few are opened at a time: a node
 * with thousands of tables is to answer soon after its start. */
struct opening {
    struct levels *levels;
    const struct manifest *manifest;
    struct opened *opened;
    bool filters; /* the tables are open, and get theirs */
    u32 next;     /* table of the manifest */
    u32 working;
    status st; /* the first failure */
    struct fiber_queue idle;
};

MAY_YIELD static void
opening_main(void *arg)
{
    struct opening *opening = arg;
    while (ok(opening->st) && opening->next < opening->manifest->table_count) {
        const struct manifest_table *slot = &opening->manifest->tables[opening->next++];
        if (!in_store(opening->levels, slot)) continue;
        status st =
            opening->filters
                ? load_filter(opening->levels, *opened_place(opening->opened, slot->meta->file_id))
                : open_table(opening->levels, slot->meta, opening->opened);
        if (!ok(st) && ok(opening->st)) opening->st = st; /* and all of them end */
    }
    if (--opening->working == 0) fiber_queue_wake_all(&opening->idle);
}

MAY_YIELD static status
opening_run(struct opening *opening, u32 fibers)
{
    opening->next = 0;
    opening->working = 1;
    opening->st = ST_OK;
    while (opening->working < MIN(fibers, opening->manifest->table_count) &&
           ok(fiber_spawn(FIBER_FOREGROUND, "open", opening_main, opening)))
        opening->working++;
    opening_main(opening);
    while (opening->working > 0)
        (void)fiber_queue_wait(&opening->idle, FIBER_FOREVER);
    return opening->st;
}

/* How much memory would do. Whoever reads it wants to know that, and not that some table found
 * none. */
MAY_YIELD static void
indexes_tell(struct levels *levels, const struct manifest *manifest)
{
    u64 bytes = 0;
    struct table_footer *footer = mem_alloc(levels->budget, sizeof(*footer));
    for (u32 i = 0; footer != NULL && i < manifest->table_count; i++) {
        const struct table_meta *meta = manifest->tables[i].meta;
        /* One of several slots is enough. */
        bool again = false;
        for (u32 j = 0; j < i && !again; j++)
            again = manifest->tables[j].meta == meta;
        if (again || !in_store(levels, &manifest->tables[i])) continue;
        char path[LSM_PATH_BYTES];
        table_path(path, levels->dir, meta->file_id);
        struct io_file *file;
        const char *what;
        status st = io_file_open(path, IO_OPEN_READ, &file);
        if (!ok(st)) continue;
        st =
            table_footer_read(file, meta->file_id, meta->file_bytes, levels->budget, footer, &what);
        if (ok(st)) bytes += footer->index_bytes;
        io_file_close(file);
    }
    mem_free(levels->budget, footer, sizeof(*footer));
    MARK("lsm.levels.indexes_too_large");
    log_error(
        "lsm",
        "the indexes of a store's tables do not fit into its memory dir=%s index_bytes=%llu "
        "memory_bytes=%llu do=\"start with more memory, %llu times as much takes writes "
        "again, too; or with fewer cores, which have more each\"",
        levels->dir, (unsigned long long)bytes, (unsigned long long)levels->budget->limit_bytes,
        (unsigned long long)(bytes * 8 / LSM_INDEX_EIGHTHS / levels->budget->limit_bytes + 1));
}

MAY_YIELD static status
open_tables(struct levels *levels, const struct manifest *manifest, struct opened *opened)
{
    struct opening opening = {.levels = levels, .manifest = manifest, .opened = opened};
    fiber_queue_init(&opening.idle);
    /* Indexes have to be there. A filter before them might take what the last one needs. */
    levels->table_stats.filters_later = true;
    status st = opening_run(&opening, TABLES_OPENED_AT_ONCE);
    if (status_is(st, ST_NO_MEMORY)) {
        MARK("lsm.levels.opened_one_by_one"); /* each needs more than it keeps */
        st = opening_run(&opening, 1);
    }
    levels->table_stats.filters_later = false;
    if (status_is(st, ST_NO_MEMORY)) indexes_tell(levels, manifest);
    if (!ok(st)) return st;
    opening.filters = true;
    return opening_run(&opening, TABLES_OPENED_AT_ONCE);
}

/* One run of the manifest, clipped to the store; its tables were opened. *out NULL: nothing of it
 * lies here. */
static status
open_run(struct levels *levels, const struct manifest_run *named,
         const struct manifest_table *slots, struct opened *opened, struct run **out)
{
    u64 first = levels->config.token_first, last = levels->config.token_last;
    u32 count = 0;
    *out = NULL;
    for (u32 i = 0; i < named->table_count; i++)
        count += in_store(levels, &slots[i]);
    if (count == 0) return ST_OK;
    struct run *run = run_new(levels, named->keyspace, named->tier, count);
    if (run == NULL) return ST_NO_MEMORY;
    for (u32 i = 0; i < named->table_count; i++) {
        if (!in_store(levels, &slots[i])) continue;
        run_add(run, *opened_place(opened, slots[i].meta->file_id), MAX(first, slots[i].view_first),
                MIN(last, slots[i].view_last));
    }
    *out = run;
    return ST_OK;
}

MAY_YIELD static status
open_trees(struct levels *levels, const struct manifest *manifest)
{
    status st = open_blobs(levels, manifest);
    struct opened opened = {.capacity = 64};
    while (opened.capacity < 2 * manifest->table_count)
        opened.capacity *= 2;
    opened.places = mem_alloc_zero(levels->budget, opened.capacity * sizeof(*opened.places));
    if (ok(st) && opened.places == NULL) {
        MARK("lsm.levels.opened_no_memory");
        st = ST_NO_MEMORY;
    }
    struct run_set *set = NULL;
    if (ok(st)) {
        set = mem_alloc_zero(levels->budget,
                             sizeof(*set) + manifest->run_count * sizeof(set->runs[0]));
        if (set == NULL) {
            MARK("lsm.levels.runs_no_memory");
            st = ST_NO_MEMORY;
        }
    }
    if (ok(st)) st = open_tables(levels, manifest, &opened);
    u32 table = 0, runs = 0;
    for (u32 i = 0; i < manifest->run_count && ok(st); i++) {
        struct run *run;
        st = open_run(levels, &manifest->runs[i], &manifest->tables[table], &opened, &run);
        table += manifest->runs[i].table_count;
        if (ok(st) && run != NULL) set->runs[runs++] = run;
    }
    /* The runs hold what they use; the list's own references go. */
    for (u32 i = 0; opened.places != NULL && i < opened.capacity; i++) {
        if (opened.places[i] != NULL) level_table_unref(opened.places[i]);
    }
    mem_free(levels->budget, opened.places, opened.capacity * sizeof(*opened.places));
    struct run_set *fit = NULL;
    if (ok(st)) {
        fit = mem_alloc_zero(levels->budget, sizeof(*fit) + runs * sizeof(fit->runs[0]));
        if (fit == NULL) {
            MARK("lsm.levels.first_set_no_memory");
            st = ST_NO_MEMORY;
        }
    }
    if (ok(st)) {
        fit->levels = levels;
        fit->ref_count = 1;
        levels->sets_alive++;
        fit->run_count = runs;
        u32 at = 0;
        for (u32 keyspace = 0; keyspace <= LIMIT_KEYSPACES; keyspace++) {
            fit->tree_first[keyspace] = at;
            while (at < runs && set->runs[at]->keyspace == keyspace)
                at++;
        }
        memcpy(fit->runs, set->runs, runs * sizeof(set->runs[0]));
        levels_install_first(levels, fit);
    } else if (set != NULL) {
        MARK("lsm.levels.runs_dropped");
        for (u32 i = 0; i < runs; i++)
            run_unref(set->runs[i], levels);
    }
    if (set != NULL)
        mem_free(levels->budget, set, sizeof(*set) + manifest->run_count * sizeof(set->runs[0]));
    /* The same for blob files; one that no table here refers to goes when orphans do. */
    for (u32 i = levels->blob_count; i-- > 0;)
        level_blob_unref(levels->blobs[i]);
    return st;
}

MAY_YIELD static status
open_ranges(struct levels *levels, const struct manifest *manifest)
{
    for (u32 i = 0; i < manifest->range_count; i++) {
        status st = range_list_add(&levels->ranges, &manifest->ranges[i], NULL, 0);
        if (!ok(st)) return st;
    }
    if (!levels->config.options.outside_versions)
        levels->ranges.merge_seq_min = manifest->state.seq_flushed + 1;
    return ST_OK;
}

/* Forgets what the last commit forgot after it had written the manifest: else the ranges that were
 * accepted since then and come from the log now might find no room. */
static void
ranges_reduce(struct levels *levels)
{
    u64 seq = levels->state.seq_flushed;
    (void)range_list_expire(&levels->ranges, seq, levels_range_may_cover, levels);
    (void)range_list_coalesce(&levels->ranges, seq, NULL, 0);
}

/* A store that does not exist yet gets its first manifest before anything else, so that from then
 * on tables without a manifest mean damage. Those of a data directory have theirs when they are
 * opened first (store.c): without one they do not come here. */
MAY_YIELD static status
create_store(struct levels *levels)
{
    struct listing listing = {.levels = levels};
    status st = io_dir_list(levels->dir, list_file, &listing);
    mem_free(levels->budget, listing.orphans, listing.orphan_capacity * sizeof(u64));
    if (!ok(st)) return st;
    if (listing.any) {
        MARK("lsm.levels.manifest_missing");
        log_error(
            "lsm",
            "tables without a manifest dir=%s: it was lost or removed; restore from a replica "
            "or a backup, or try manifest.old in its place, on a copy of the directory",
            levels->dir);
        return ST_CORRUPT;
    }
    struct run_set *set = run_set_edit(levels, NULL, NULL, 0);
    if (set == NULL) return ST_NO_MEMORY;
    levels_install_first(levels, set);
    return levels_commit(levels, NULL, 0, NULL);
}

static void
configure(struct levels *levels, const struct levels_config *config)
{
    levels->config = *config;
    int length = snprintf(levels->dir, sizeof(levels->dir), "%s", config->dir);
    CHECK(length > 0 && length < (int)sizeof(levels->dir));
    levels->config.dir = levels->dir;
    levels->budget = config->budget;
    levels_unreadable_init(levels);
    u64 memory = levels->budget->limit_bytes;
    levels->table_stats.filter_limit_bytes = memory / LEVELS_FILTER_PART;
    levels->index_bytes_max = memory / LEVELS_INDEX_PART;
    levels->id_prefix = 1u << SLOT_BITS | token_slot(config->token_first);
    levels->file_id_next = ((u64)levels->id_prefix << FILE_ID_COUNTER_BITS) + 1;
    levels->run_id_next = 1;
    levels->slice_bytes = LEVELS_SLICE_BYTES;
    levels->fanout = PICK_FANOUT;
    u64 memtable = config->options.memtable_bytes;
    if (memtable == 0) memtable = MAX(config->options.memory_bytes / 8, MIB(1));
    levels->tier_bytes = memtable;
    /* Tests with tiny memtables get tiny slices, so that small data has the shape of large. */
    if (memtable < MIB(4)) levels->slice_bytes = MAX(memtable * 4, KIB(64));
    if (config->in_memory) {
        levels->slice_bytes =
            CLAMP(memtable / MEMORY_SLICES_IN_MEMTABLE, MEMORY_SLICE_BYTES_MIN, LEVELS_SLICE_BYTES);
        levels->table_bytes_max = levels->slice_bytes / MEMORY_TABLES_IN_SLICE;
    }
    if (BUGGIFY("lsm.levels.tiny_slices")) levels->slice_bytes = KIB(16);
    if (BUGGIFY("lsm.levels.early_compaction")) levels->fanout = 2;
    levels->scrub_bytes_per_s = config->options.scrub_bytes_per_s;
    levels->credit_ns = io_now_ns();
    range_list_init(&levels->ranges, levels->budget);
    levels->ranges.limit = RANGE_LIST_MAX; /* until levels_start: the log's are accepted already */
    bool outside = config->options.outside_versions;
    if (outside) levels->ranges.merge_seq_min = UINT64_MAX;
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++)
        levels->purge_below[i] = levels->expire_below_ms[i] =
            outside && i < LIMIT_KEYSPACES_CLIENT ? 0 : UINT64_MAX;
    fiber_mutex_init(&levels->commit_mutex);
    fiber_mutex_init(&levels->compact_mutex);
    fiber_queue_init(&levels->wake);
    fiber_queue_init(&levels->scrub_wake);
    fiber_queue_init(&levels->stopped);
}

static void
free_levels(struct levels *levels)
{
    if (levels->current != NULL) {
        struct run_set *set = levels->current;
        CHECK(set->ref_count == 1); /* every pin and cursor is gone */
        levels->current = NULL;
        for (u32 i = 0; i < set->run_count; i++) {
            for (u32 j = 0; j < set->runs[i]->count; j++) {
                struct level_table *file = set->runs[i]->slots[j].file;
                file->slot_count = 0;
                for (u32 k = 0; k < file->blob_count; k++)
                    file->blobs[k]->live_tables = 0;
            }
        }
        run_set_unref(set);
    }
    CHECK(levels->blob_count == 0);
    struct budget *budget = levels->budget;
    mem_free(budget, levels->blobs, levels->blob_capacity * sizeof(*levels->blobs));
    range_list_deinit(&levels->ranges);
    mem_free(budget, levels, sizeof(*levels));
}

MAY_YIELD static status
open_existing(struct levels *levels, const struct manifest *manifest)
{
    if (manifest->token_first != levels->config.token_first ||
        manifest->token_last != levels->config.token_last) {
        MARK("lsm.levels.other_partitions");
        log_error("lsm", "store of other partitions dir=%s", levels->dir);
        return ST_INVALID;
    }
    levels->state = manifest->state;
    levels->generation = manifest->generation;
    levels->id_prefix = (u32)(manifest->file_id_next >> FILE_ID_COUNTER_BITS);
    levels->file_id_next = manifest->file_id_next;
    status st = open_ranges(levels, manifest);
    if (ok(st)) st = open_trees(levels, manifest);
    if (ok(st)) ranges_reduce(levels);
    if (ok(st)) st = remove_orphans(levels, false);
    return st;
}

MAY_YIELD status
levels_open(const struct levels_config *config, struct levels **out, struct levels_state *state_out)
{
    struct levels *levels = mem_alloc_zero(config->budget, sizeof(*levels));
    if (levels == NULL) return MARKED("lsm.levels.no_memory", ST_NO_MEMORY);
    configure(levels, config);

    struct manifest manifest = {.budget = levels->budget};
    u64 offset;
    const char *what;
    status st = io_dir_sync(levels->dir);
    if (ok(st)) st = manifest_read(levels->dir, levels->budget, &manifest, &offset, &what);
    if (status_is(st, ST_NOT_FOUND)) {
        st = create_store(levels);
    } else if (ok(st)) {
        st = open_existing(levels, &manifest);
        manifest_free(&manifest);
    } else if (status_is(st, ST_CORRUPT) || status_is(st, ST_UNSUPPORTED)) {
        MARK("lsm.levels.manifest_damaged");
        log_error(
            "lsm",
            "manifest is damaged file=%s/manifest offset=%llu what=%s: restore from a replica "
            "or a backup, or try manifest.old in its place, on a copy of the directory",
            levels->dir, (unsigned long long)offset, what);
    }
    if (!ok(st)) {
        free_levels(levels);
        return st;
    }
    DCHECK(levels_check(levels));
    *state_out = levels->state;
    *out = levels;
    return ST_OK;
}

MAY_YIELD void
levels_close(struct levels *levels)
{
    CHECK(!levels->started);
    free_levels(levels);
}

/* ---- background ---- */

void
levels_fiber_ended(struct levels *levels)
{
    CHECK(levels->fibers > 0);
    if (--levels->fibers == 0) fiber_queue_wake_all(&levels->stopped);
}

void
levels_start(struct levels *levels)
{
    CHECK(!levels->started);
    levels->started = true;
    levels->stopping = false;
    levels->ranges.limit = BUGGIFY("lsm.ranges.few") ? 4 : LEVELS_RANGES_MAX;
    levels->credit_ns = io_now_ns();
    /* Without a fiber the store works on; its pressure says when that becomes a problem. */
    if (ok(fiber_spawn(FIBER_BACKGROUND, "compaction", levels_compaction_main, levels)))
        levels->fibers++;
    else
        log_error("lsm", "no fiber for compaction dir=%s",
                  MARKED("lsm.levels.no_compaction_fiber", levels->dir));
    if (ok(fiber_spawn(FIBER_BACKGROUND, "scrub", levels_scrub_main, levels)))
        levels->fibers++;
    else
        log_warning("lsm", "no fiber for scrubbing dir=%s",
                    MARKED("lsm.levels.no_scrub_fiber", levels->dir));
}

void
levels_stop_begin(struct levels *levels)
{
    levels->stopping = true;
    fiber_queue_wake_all(&levels->wake);
    fiber_queue_wake_all(&levels->scrub_wake);
}

MAY_YIELD void
levels_stop(struct levels *levels)
{
    levels_stop_begin(levels);
    while (levels->fibers > 0)
        (void)!ok(fiber_queue_wait(&levels->stopped, FIBER_FOREVER));
    levels->started = false;
}

/* ---- deleted ranges ---- */

status
levels_range_delete(struct levels *levels, u16 keyspace, u64 token_first, u64 token_last,
                    u64 version, u64 seq)
{
    CHECK(keyspace < LIMIT_KEYSPACES);
    u32 count;
    const u64 *snapshots = levels_snapshots(levels, &count);
    struct range_delete range = {.token_first = token_first,
                                 .token_last = token_last,
                                 .version = version,
                                 .seq = seq,
                                 .keyspace = keyspace};
    return range_list_add(&levels->ranges, &range, snapshots, count);
}

void
levels_drop_set(struct levels *levels, u16 keyspace, const u64 *bits, u32 shift, u64 seq_last)
{
    levels->drops[keyspace] =
        (struct drop_bits){.bits = bits, .token_first = levels->config.token_first, .shift = shift};
    u64 span = levels->config.token_last - levels->config.token_first;
    u64 hash =
        bits == NULL ? 0 : hash_bytes(bits, ((span >> shift) / 64 + 1) * sizeof(*bits), shift);
    /* Who asks again for the same has written nothing of it since: what came meanwhile is of other
     * tokens, and its versions hold up nothing. */
    if (bits == NULL || hash != levels->drop_hashes[keyspace])
        levels->drop_seq[keyspace] = seq_last;
    levels->drop_hashes[keyspace] = hash;
    levels->trees[keyspace].clean_due = levels->trees[keyspace].drop_due = bits != NULL;
    fiber_queue_wake_all(&levels->wake);
}

void
levels_clean(struct levels *levels)
{
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++)
        levels->trees[i].clean_due = true;
    fiber_queue_wake_all(&levels->wake);
}

bool
levels_cleaning(const struct levels *levels)
{
    for (u32 i = 0; i < LIMIT_KEYSPACES; i++) {
        const struct level_tree *tree = &levels->trees[i];
        if (tree->clean_due) return true;
        for (u32 j = 0; j < PICK_SWEEPS_MAX; j++)
            if (tree->sweeps[j].active && tree->sweeps[j].into_last) return true;
    }
    return false;
}

void
levels_purge_allow(struct levels *levels, u16 keyspace, u64 version_below, u64 expire_below_ms)
{
    levels->purge_below[keyspace] = version_below;
    levels->expire_below_ms[keyspace] = expire_below_ms;
}

u32
levels_range_count(const struct levels *levels, u64 seq_above)
{
    return range_list_count_above(&levels->ranges, seq_above);
}

bool
levels_range_covers(const struct levels *levels, u16 keyspace, u64 token, u64 version, u64 seq,
                    u64 seq_max)
{
    if (levels->ranges.active_count == 0) return false;
    return range_list_find(&levels->ranges, keyspace, token, version, seq, seq_max) != NULL;
}

bool
levels_range_find(const struct levels *levels, u16 keyspace, u64 token, u64 *version, u64 *seq,
                  u64 seq_max)
{
    if (levels->ranges.active_count == 0) return false;
    const struct range_delete *range =
        range_list_find(&levels->ranges, keyspace, token, *version, *seq, seq_max);
    if (range == NULL) return false;
    *version = range->version;
    *seq = range->seq;
    return true;
}

/* ---- figures ---- */

u32
levels_pressure(const struct levels *levels)
{
    return MAX(levels->pressure, levels->space_pressure);
}

u32
levels_full(const struct levels *levels)
{
    return levels->full;
}

void
levels_space_set(struct levels *levels, u32 pressure)
{
    CHECK(pressure <= LEVELS_SPACE_FULL);
    bool rises = pressure > levels->space_pressure;
    levels->space_pressure = pressure;
    if (rises) fiber_queue_wake_all(&levels->wake);
}

bool
levels_merges_ahead(const struct levels *levels)
{
    if (levels->failed || io_now_ns() < levels->retry_ns) return false;
    const struct run_set *set = levels->current;
    for (u32 i = 0; i < set->run_count; i++) {
        const struct run *run = set->runs[i];
        if (levels->trees[run->keyspace].broken) continue;
        if (run->tier != RUN_TIER_LAST || levels_run_has_garbage(run)) return true;
    }
    return false;
}

u64
levels_merge_bytes(const struct levels *levels)
{
    return levels->slice_bytes + MEMORY_SWEEP_TABLES * levels->table_bytes_max + MIB(1);
}

void
levels_scrub_rate_set(struct levels *levels, u64 bytes_per_s)
{
    levels->scrub_bytes_per_s = bytes_per_s;
    fiber_queue_wake_all(&levels->scrub_wake);
}

u64
levels_count_new(const struct levels *levels, u16 keyspace, u64 puts)
{
    const struct level_tree *tree = &levels->trees[keyspace];
    const struct run_set *set = levels->current;
    if (tree->merged_puts == 0 || run_set_last(set, keyspace) == NULL) return puts;
    return (u64)((unsigned __int128)puts * tree->merged_new / tree->merged_puts);
}

u64
levels_count_estimate(const struct levels *levels, u16 keyspace)
{
    const struct run_set *set = levels->current;
    u64 last = 0, above = 0, deletes = 0;
    for (u32 i = 0; i < run_set_tree_count(set, keyspace); i++) {
        const struct run *run = run_set_tree_run(set, keyspace, i);
        for (u32 j = 0; j < run->count; j++) {
            const struct run_slot *slot = &run->slots[j];
            const struct table_meta *meta = &slot->file->table->meta;
            const struct range_delete *range =
                range_list_find(&levels->ranges, keyspace, slot->token_first, meta->version_max,
                                meta->seq_max, UINT64_MAX);
            if (range != NULL && range->token_last >= slot->token_last) continue;
            *(run->tier == RUN_TIER_LAST ? &last : &above) +=
                meta->entry_count - meta->delete_count;
            deletes += meta->delete_count;
        }
    }
    u64 puts = last + levels_count_new(levels, keyspace, above);
    return puts > deletes ? puts - deletes : 0;
}

u64
levels_index_bytes(const struct levels *levels)
{
    return levels->table_stats.index_bytes;
}

void
levels_filters_fit(struct levels *levels)
{
    const struct table_stats *stats = &levels->table_stats;
    const struct run_set *set = levels->current;
    /* The oldest run of a tree is its largest, and its filters are asked last. */
    for (u32 i = set->run_count; i-- > 0;) {
        for (u32 j = 0; j < set->runs[i]->count; j++) {
            bool fit = stats->index_bytes + stats->filter_bytes <= stats->filter_limit_bytes;
            if (fit || stats->filter_bytes == 0) return;
            MARK("lsm.levels.filter_dropped");
            table_filter_drop(set->runs[i]->slots[j].file->table);
        }
    }
}

void
levels_stats(const struct levels *levels, struct lsm_stats *out)
{
    out->tables = levels->tables;
    out->table_bytes = levels->table_bytes;
    out->table_entries = levels->table_entries;
    out->blob_files = levels->blob_count;
    out->blob_bytes = levels->blob_bytes;
    out->blob_live_bytes = levels->blob_live_bytes;
    out->runs_max = levels->runs_max;
    out->flushes = levels->flushes;
    out->flush_bytes = levels->flush_bytes;
    out->index_bytes = levels->table_stats.index_bytes;
    out->filter_bytes = levels->table_stats.filter_bytes;
    out->filter_probes = levels->table_stats.filter_probes;
    out->filter_negatives = levels->table_stats.filter_negatives;
    out->filter_false_positives = levels->table_stats.filter_false_positives;
    out->table_reads = levels->table_stats.reads;
    out->blob_reads = levels->blob_reads;
    out->compactions = levels->compactions;
    out->compactions_active = 0;
    for (u32 keyspace = 0; keyspace < LIMIT_KEYSPACES; keyspace++)
        for (u32 i = 0; i < PICK_SWEEPS_MAX; i++)
            out->compactions_active += levels->trees[keyspace].sweeps[i].active;
    out->compaction_read_bytes = levels->compaction_read_bytes;
    out->compaction_written_bytes = levels->compaction_written_bytes;
    out->compaction_debt_bytes = levels->debt_bytes;
    out->compaction_dropped_overwritten = levels->dropped[RETAIN_DROP_OVERWRITTEN];
    out->compaction_dropped_deleted = levels->dropped[RETAIN_DROP_DELETED];
    out->compaction_dropped_expired = levels->dropped[RETAIN_DROP_EXPIRED];
    out->scrub_bytes = levels->scrub_bytes;
    out->scrub_passes = levels->scrub_passes;
    out->corruptions = levels->corruptions;
    out->damaged_files = levels->table_stats.damaged + levels->damaged_blobs;
}

bool
levels_check(const struct levels *levels)
{
    if (!run_set_check(levels->current) || !range_list_check(&levels->ranges)) return false;
    u64 tables = 0, slots = 0, counted = 0;
    for (u32 i = 0; i < levels->current->run_count; i++) {
        const struct run *run = levels->current->runs[i];
        if (run->owner > PICK_SWEEPS_MAX) return false;
        for (u32 j = 0; j < run->count; j++) {
            const struct level_table *file = run->slots[j].file;
            slots++;
            if (file->slot_count == 0 || file->table->unlink_on_close) return false;
            if (file->slot_count == 1) tables++;
            counted += file->slot_count == 1 ? 1 : 0;
            for (u32 k = 0; k < file->blob_count; k++) {
                const struct level_blob *blob = file->blobs[k];
                if (blob->live_tables == 0 || blob->file->unlink_on_close) return false;
            }
        }
    }
    if (tables > levels->tables || slots < levels->tables) return false;
    for (u32 i = 0; i + 1 < levels->blob_count; i++) {
        if (levels->blobs[i]->file_id >= levels->blobs[i + 1]->file_id) return false;
    }
    return counted == tables;
}
