/* SPDX-License-Identifier: MIT
 *
 * store.c -- the data directory: NODE, the stores that it names, and changing their number.
 *
 *   store_prepare:  lock  ->  read NODE  ->  remove what it does not name
 *                     |  none: make stores, each with its first manifest; write NODE
 *                     |  another number of shards:
 *                     |     open and close each old store (recovers, flushes)
 *                     |     for each new one: make its directory, levels_split
 *                     |     write NODE   <- the commit point
 *                     |     remove the old directories
 *                     v
 *                  describe
 *
 * A store's manifest is durable, and so is its directory, before a NODE that names it is there. So
 * a store that NODE names and that has no manifest was new once, and has lost its files since: it
 * is refused, not made anew. The other way round, stores without NODE that have nothing but a first
 * manifest are what a first start left that died, and are made again.
 *
 * NODE is one block, written as NODE.tmp, synced, renamed, and the directory synced. Before the
 * rename is durable the old generation is whole and named; after it the new one is. The other
 * directories are removed by whoever opens next, so a crash anywhere leaves one whole generation.
 *
 *   | struct node_header: 128 | struct node_store: 16 | ... | zeros to 4096 |
 */
#include <stdio.h>

#include "base/buf.h"
#include "base/crc.h"
#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "io/file.h"
#include "io/io.h"
#include "lsm/levels.h"
#include "lsm/manifest.h"
#include "lsm/store.h"

#define NODE_BYTES  IO_ALIGNMENT
#define NODE_MAGIC  "DKVNODE\n"
#define NODE_FORMAT 1u

struct ONDISK node_header {
    u8 magic[8];
    u32 crc; /* CRC32C of the block with this field zero */
    u32 format;
    u32 partition_count;
    u32 store_count;
    u64 generation;
    u8 node_id[NODE_ID_BYTES]; /* ends with a zero */
    u8 reserved[32];
};
static_assert(sizeof(struct node_header) == 128, "stored as it is");

struct ONDISK node_store {
    u32 partition_first, partition_last; /* included */
    u64 generation;                      /* part of its name */
};
static_assert(sizeof(struct node_header) + LIMIT_SHARDS * sizeof(struct node_store) <= NODE_BYTES,
              "NODE is one block");

struct node {
    struct node_header header;
    struct node_store stores[LIMIT_SHARDS];
};

/* One call of store_prepare or store_verify. Too large for a fiber's stack. */
struct work {
    const char *dir;
    struct node node; /* as stored */
    struct node next; /* as it will be */
    char path[LSM_PATH_BYTES], other[LSM_PATH_BYTES];
    char sources[LIMIT_SHARDS][STORE_DIR_BYTES];
    const char *source_list[LIMIT_SHARDS];
    struct buf names; /* of a listed directory, each with its zero */
    bool no_memory;
    bool foreign; /* the listed directory holds something that is not ours */
    char *error;
    size_t error_size;
};

/* ---- small things ---- */

#define NODE_ADVICE "restore it from a copy, it says how the directories beside it belong together"

#define WORK_FAIL(work, st, ...) (snprintf((work)->error, (work)->error_size, __VA_ARGS__), (st))

static struct work *
work_new(const char *dir, char *error, size_t error_size)
{
    struct work *work = mem_alloc_zero(io_budget(), sizeof(*work));
    if (work == NULL) return MARKED("lsm.store.no_memory", NULL);
    work->dir = dir;
    work->error = error;
    work->error_size = error_size;
    buf_init(&work->names, io_budget());
    return work;
}

static void
work_free(struct work *work)
{
    buf_deinit(&work->names);
    mem_free(io_budget(), work, sizeof(*work));
}

static bool
is_in_memory(const char *dir)
{
    return strncmp(dir, ":memory:", 8) == 0;
}

static void
store_path(char *path, size_t size, const char *dir, const struct node_store *store)
{
    int length = snprintf(path, size, "%s/p%04u-%04u.%llu", dir, store->partition_first,
                          store->partition_last, (unsigned long long)store->generation);
    CHECK(length > 0 && (size_t)length < size);
}

static void
file_path(struct work *work, char *path, const char *name)
{
    int length = snprintf(path, LSM_PATH_BYTES, "%s/%s", work->dir, name);
    CHECK(length > 0 && length < (int)LSM_PATH_BYTES);
}

static bool
digits_skip(const char **p)
{
    const char *start = *p;
    while (**p >= '0' && **p <= '9')
        (*p)++;
    return *p > start;
}

/* p0000-2047.3 */
static bool
is_store_name(const char *name)
{
    const char *p = name;
    if (*p++ != 'p' || !digits_skip(&p) || *p++ != '-' || !digits_skip(&p) || *p++ != '.')
        return false;
    return digits_skip(&p) && *p == '\0';
}

static void
name_collect(void *arg, const char *name)
{
    struct work *work = arg;
    if (!buf_append(&work->names, name, strlen(name) + 1)) {
        MARK("lsm.store.names_no_memory");
        work->no_memory = true;
    }
}

/* A place that we may take: empty, or with what a first start that died has left. */
static void
name_judge(void *arg, const char *name)
{
    struct work *work = arg;
    if (strcmp(name, "LOCK") != 0 && strcmp(name, "NODE.tmp") != 0 &&
        strcmp(name, "lost+found") != 0 && name[0] != '.' && !is_store_name(name))
        work->foreign = true;
}

/* Whatever is there, is it one of our directories? */
static void
name_recognize(void *arg, const char *name)
{
    struct work *work = arg;
    if (strcmp(name, "NODE") == 0 || is_store_name(name)) work->foreign = false;
}

static MAY_YIELD status
names_list(struct work *work, const char *path)
{
    work->names.size = 0;
    work->no_memory = false;
    status st = io_dir_list(path, name_collect, work);
    return ok(st) && work->no_memory ? ST_NO_MEMORY : st;
}

/* ---- NODE ---- */

static MAY_YIELD status
node_write(struct work *work)
{
    u8 *block = mem_alloc_aligned(io_budget(), NODE_BYTES, IO_ALIGNMENT);
    if (block == NULL) return MARKED("lsm.store.node_no_memory", ST_NO_MEMORY);
    memset(block, 0, NODE_BYTES);
    work->next.header.crc = 0;
    memcpy(block, &work->next, sizeof(work->next));
    u32 crc = crc32c(0, block, NODE_BYTES);
    store_u32(block + offsetof(struct node_header, crc), crc);

    file_path(work, work->path, "NODE.tmp");
    file_path(work, work->other, "NODE");
    struct io_file *file = NULL;
    status st = io_file_unlink(work->path);
    if (status_is(st, ST_NOT_FOUND)) st = ST_OK;
    if (ok(st)) st = io_file_open(work->path, IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (ok(st)) st = io_file_allocate(file, NODE_BYTES);
    if (ok(st)) st = io_file_write(file, IO_CLASS_LOG, block, NODE_BYTES, 0, true);
    if (ok(st)) st = io_file_sync(file);
    io_file_close(file);
    if (ok(st)) st = io_file_rename(work->path, work->other);
    if (ok(st)) st = io_dir_sync(work->dir);
    mem_free(io_budget(), block, NODE_BYTES);
    if (!ok(st))
        return MARKED("lsm.store.node_not_written",
                      WORK_FAIL(work, st, "cannot write %s: %s", work->other, status_text(st)));
    work->node = work->next;
    return ST_OK;
}

/* Whether what the checksum vouches for makes sense: stores without a gap, in order. */
static bool
node_is_sound(const struct node *node)
{
    const struct node_header *h = &node->header;
    if (!is_power_of_two(h->partition_count) || h->partition_count > SLOT_COUNT) return false;
    if (h->store_count == 0 || h->store_count > LIMIT_SHARDS) return false;
    if (h->node_id[NODE_ID_BYTES - 1] != 0) return false;
    u32 next = 0;
    for (u32 i = 0; i < h->store_count; i++) {
        if (node->stores[i].partition_first != next ||
            node->stores[i].partition_last < node->stores[i].partition_first)
            return false;
        next = node->stores[i].partition_last + 1;
    }
    return next == h->partition_count;
}

/* ST_NOT_FOUND: there is none. */
static MAY_YIELD status
node_read(struct work *work)
{
    file_path(work, work->path, "NODE");
    struct io_file *file;
    status st = io_file_open(work->path, IO_OPEN_READ, &file);
    if (status_is(st, ST_NOT_FOUND)) return st;
    if (!ok(st))
        return MARKED("lsm.store.node_not_opened",
                      WORK_FAIL(work, st, "cannot open %s: %s", work->path, status_text(st)));
    u64 size = 0;
    u8 *block = mem_alloc_aligned(io_budget(), NODE_BYTES, IO_ALIGNMENT);
    st = block == NULL ? MARKED("lsm.store.node_read_no_memory", ST_NO_MEMORY)
                       : io_file_size(file, &size);
    if (ok(st) && size != NODE_BYTES) {
        MARK("lsm.store.node_size");
        st = WORK_FAIL(work, ST_CORRUPT, "%s has %llu bytes instead of %u; " NODE_ADVICE,
                       work->path, (unsigned long long)size, NODE_BYTES);
    } else if (ok(st)) {
        st = io_file_read(file, IO_CLASS_READ, block, NODE_BYTES, 0);
        if (!ok(st)) {
            MARK("lsm.store.node_unreadable");
            st = WORK_FAIL(work, st, "cannot read %s: %s", work->path, status_text(st));
        }
    }
    io_file_close(file);
    if (!ok(st)) goto out;

    memcpy(&work->node, block, sizeof(work->node));
    struct node_header *h = &work->node.header;
    store_u32(block + offsetof(struct node_header, crc), 0);
    if (memcmp(h->magic, NODE_MAGIC, sizeof(h->magic)) != 0) {
        MARK("lsm.store.node_foreign");
        st = WORK_FAIL(work, ST_INVALID, "%s is not of a data directory of this program",
                       work->path);
    } else if (crc32c(0, block, NODE_BYTES) != h->crc) {
        MARK("lsm.store.node_damaged");
        st = WORK_FAIL(work, ST_CORRUPT, "%s is damaged (checksum); " NODE_ADVICE, work->path);
    } else if (h->format != NODE_FORMAT) {
        MARK("lsm.store.node_format");
        st = WORK_FAIL(work, ST_INVALID, "%s has format %u, this version knows %u", work->path,
                       h->format, NODE_FORMAT);
    } else if (!node_is_sound(&work->node)) {
        MARK("lsm.store.node_contradicts");
        st = WORK_FAIL(work, ST_CORRUPT, "%s contradicts itself; " NODE_ADVICE, work->path);
    }
out:
    mem_free(io_budget(), block, NODE_BYTES);
    return st;
}

/* ---- directories ---- */

/* The directory and those above it, each made durable in its parent. */
static MAY_YIELD status
dirs_make(struct work *work)
{
    size_t size = strlen(work->dir);
    char *path = work->path;
    for (size_t i = 1; i <= size; i++) {
        if (i < size && work->dir[i] != '/') continue;
        if (work->dir[i - 1] == '/') continue;
        memcpy(path, work->dir, i);
        path[i] = '\0';
        status st = io_dir_make(path);
        /* One that is there may be of a start that died before it had synced the parent, and must
         * not go with a power cut now. */
        bool exists = status_is(st, ST_EXISTS);
        if (!ok(st) && !exists)
            return MARKED("lsm.store.dir_not_made",
                          WORK_FAIL(work, st, "cannot make %s: %s", path, status_text(st)));
        size_t parent = i;
        while (parent > 0 && path[parent - 1] != '/')
            parent--;
        if (parent == 0) {
            memcpy(path, ".", 2);
        } else {
            path[parent > 1 ? parent - 1 : 1] = '\0';
        }
        st = io_dir_sync(path);
        if (!ok(st) && exists) {
            MARK("lsm.store.parent_not_synced"); /* which we may not be allowed to open */
            continue;
        }
        if (!ok(st))
            return MARKED("lsm.store.parent_sync_failed",
                          WORK_FAIL(work, st, "cannot sync %s: %s", path, status_text(st)));
    }
    return ST_OK;
}

/* A store's directory with all its files; stores have no directories inside. */
static MAY_YIELD status
dir_remove(struct work *work, const char *dir)
{
    status st = names_list(work, dir);
    if (status_is(st, ST_NOT_FOUND)) return ST_OK;
    for (size_t at = 0; ok(st) && at < work->names.size;) {
        const char *name = (const char *)work->names.data + at;
        int length = snprintf(work->path, sizeof(work->path), "%s/%s", dir, name);
        if (length <= 0 || length >= (int)sizeof(work->path))
            return MARKED("lsm.store.file_path_too_long", ST_INVALID);
        st = io_file_unlink(work->path);
        /* A store that was just closed may still be removing files of its own. */
        if (status_is(st, ST_NOT_FOUND)) {
            MARK("lsm.store.file_gone_already");
            st = ST_OK;
        }
        at += strlen(name) + 1;
    }
    if (ok(st)) st = io_dir_remove(dir);
    return st;
}

static bool
node_names(const struct work *work, const char *dir, char *scratch)
{
    for (u32 i = 0; i < work->node.header.store_count; i++) {
        store_path(scratch, LSM_PATH_BYTES, work->dir, &work->node.stores[i]);
        if (strcmp(scratch, dir) == 0) return true;
    }
    return false;
}

/* Removes the stores that NODE does not name: those of a change that was cut short, or the old
 * ones of a change that was not. */
static MAY_YIELD status
dirs_clean(struct work *work)
{
    status st = names_list(work, work->dir);
    if (!ok(st))
        return MARKED("lsm.store.not_listed",
                      WORK_FAIL(work, st, "cannot list %s: %s", work->dir, status_text(st)));
    struct buf names = work->names; /* dir_remove lists, too */
    buf_init(&work->names, io_budget());
    for (size_t at = 0; ok(st) && at < names.size;) {
        const char *name = (const char *)names.data + at;
        at += strlen(name) + 1;
        if (!is_store_name(name)) continue;
        char dir[STORE_DIR_BYTES];
        int length = snprintf(dir, sizeof(dir), "%s/%s", work->dir, name);
        if (length <= 0 || length >= (int)sizeof(dir)) {
            MARK("lsm.store.dir_path_too_long");
            continue;
        }
        if (node_names(work, dir, work->other)) continue;
        MARK("lsm.store.leftover_removed");
        log_info("lsm", "removing a store that the node does not name dir=%s", dir);
        st = dir_remove(work, dir);
        if (!ok(st)) {
            MARK("lsm.store.leftover_stays");
            st = WORK_FAIL(work, st, "cannot remove %s: %s", dir, status_text(st));
        }
    }
    buf_deinit(&names);
    return st;
}

/* More than a store has that was never opened. */
static void
name_seen(void *arg, const char *name)
{
    if (strcmp(name, "manifest") != 0 && strcmp(name, "manifest.new") != 0) *(bool *)arg = true;
}

/* Whether a store has something in it, or its manifest says that it had. */
static MAY_YIELD status
store_used(const char *dir, bool *out)
{
    status st = io_dir_list(dir, name_seen, out);
    if (!ok(st) || *out) return st;
    struct manifest manifest = {.budget = io_budget()};
    u64 offset;
    const char *what;
    st = manifest_read(dir, io_budget(), &manifest, &offset, &what);
    if (status_is(st, ST_NOT_FOUND)) return ST_OK;
    if (status_is(st, ST_CORRUPT) || status_is(st, ST_UNSUPPORTED)) {
        *out = true; /* a first start leaves none that is not whole */
        return MARKED("lsm.store.orphan_unreadable", ST_OK);
    }
    if (!ok(st)) return st;
    *out = manifest.state.seq_flushed != 0 || manifest.state.log_segment_first != 0;
    manifest_free(&manifest);
    return ST_OK;
}

/* Without NODE: whether some store has been used. A first start makes its stores, then NODE, and
 * only then opens them: so there was a NODE once, and it was lost. */
static MAY_YIELD status
stores_orphaned(struct work *work, bool *out)
{
    *out = false;
    status st = names_list(work, work->dir);
    for (size_t at = 0; ok(st) && !*out && at < work->names.size;) {
        const char *name = (const char *)work->names.data + at;
        at += strlen(name) + 1;
        if (!is_store_name(name)) continue;
        int length = snprintf(work->path, sizeof(work->path), "%s/%s", work->dir, name);
        if (length > 0 && length < (int)sizeof(work->path)) st = store_used(work->path, out);
    }
    return st;
}

/* With NODE: whether every store that it names has its manifest. What is in it, who opens the
 * store judges. */
static MAY_YIELD status
stores_check(struct work *work)
{
    for (u32 i = 0; i < work->node.header.store_count; i++) {
        const char *dir = work->sources[0];
        store_path(work->sources[0], STORE_DIR_BYTES, work->dir, &work->node.stores[i]);
        int length = snprintf(work->path, sizeof(work->path), "%s/manifest", dir);
        CHECK(length > 0 && length < (int)sizeof(work->path)); /* store_prepare has seen to it */
        struct io_file *file;
        status st = io_file_open(work->path, IO_OPEN_READ, &file);
        if (ok(st)) {
            io_file_close(file);
        } else if (status_is(st, ST_NOT_FOUND)) {
            MARK("lsm.store.manifest_missing");
            return WORK_FAIL(work, ST_CORRUPT,
                             "%s has no manifest, so its files were lost: restore that directory "
                             "from a copy, or in a cluster wipe this node and replace it",
                             dir);
        } else {
            return MARKED("lsm.store.manifest_not_asked_for",
                          WORK_FAIL(work, st, "cannot open %s: %s", work->path, status_text(st)));
        }
    }
    return ST_OK;
}

/* ---- making and changing stores ---- */

static void
next_describe(struct work *work, const char *node_id, u32 shard_count, u32 partition_count,
              u64 generation)
{
    struct node_header *h = &work->next.header;
    work->next = (struct node){0};
    memcpy(h->magic, NODE_MAGIC, sizeof(h->magic));
    h->format = NODE_FORMAT;
    h->partition_count = partition_count;
    h->store_count = shard_count;
    h->generation = generation;
    memcpy(h->node_id, node_id, strlen(node_id));
    for (u32 i = 0; i < shard_count; i++)
        work->next.stores[i] = (struct node_store){
            .partition_first = shard_partition_first(i, shard_count, partition_count),
            .partition_last = shard_partition_first(i + 1, shard_count, partition_count) - 1,
            .generation = generation,
        };
}

/* One of the next NODE's stores, of those in source_list that overlap it: its directory, where
 * dirs_clean has removed whatever was left, and its first manifest. Durable but for the name of the
 * directory. */
static MAY_YIELD status
store_make(struct work *work, const struct node_store *target, u32 source_count)
{
    u32 partitions = work->next.header.partition_count;
    store_path(work->other, LSM_PATH_BYTES, work->dir, target);
    status st = io_dir_make(work->other);
    if (!ok(st))
        return MARKED("lsm.store.store_dir_not_made",
                      WORK_FAIL(work, st, "cannot make %s: %s", work->other, status_text(st)));
    st = levels_split(work->source_list, source_count, work->other,
                      partition_token_first(target->partition_first, partitions),
                      partition_token_last(target->partition_last, partitions));
    if (!ok(st))
        return MARKED("lsm.store.not_split",
                      WORK_FAIL(work, st, "cannot fill %s: %s%s", work->other, status_text(st),
                                status_is(st, ST_CORRUPT) ? "; " LSM_DAMAGE_ADVICE : ""));
    return ST_OK;
}

static MAY_YIELD status
stores_create(struct work *work, const char *node_id, u32 shard_count)
{
    char made_up[32];
    if (node_id == NULL || node_id[0] == '\0') {
        u32 random;
        io_entropy(&random, sizeof(random));
        snprintf(made_up, sizeof(made_up), "node-%08x", random);
        node_id = made_up;
    }
    bool orphaned;
    status st = stores_orphaned(work, &orphaned);
    if (!ok(st))
        return MARKED("lsm.store.stores_not_listed",
                      WORK_FAIL(work, st, "cannot list %s: %s", work->dir, status_text(st)));
    if (orphaned) {
        MARK("lsm.store.node_lost");
        return WORK_FAIL(work, ST_CORRUPT,
                         "%s holds stores but no NODE, which was lost; " NODE_ADVICE, work->dir);
    }
    work->node = (struct node){0};
    st = dirs_clean(work);
    if (!ok(st)) return st;
    next_describe(work, node_id, shard_count, PARTITION_COUNT_DEFAULT, 1);
    for (u32 i = 0; ok(st) && i < shard_count; i++)
        st = store_make(work, &work->next.stores[i], 0);
    if (ok(st)) {
        st = io_dir_sync(work->dir); /* what NODE names must be there before it */
        if (!ok(st))
            return MARKED("lsm.store.create_not_synced",
                          WORK_FAIL(work, st, "cannot sync %s: %s", work->dir, status_text(st)));
    }
    return ok(st) ? node_write(work) : st;
}

/* What an old store may have: where there are to be more stores than there are, each has less
 * memory than an old one had, whose indexes may need that. No new one is open yet, and only one old
 * one at a time, so what all new ones together will have is there. */
static u64
settle_bytes(const struct node *node, u32 shard_count, u64 memory_bytes)
{
    u32 old = node->header.store_count;
    u64 bytes = memory_bytes / old * shard_count + memory_bytes % old * shard_count / old;
    return MAX(bytes, memory_bytes);
}

/* Recovers each old store and flushes it, so that it is tables and blob files only. */
static MAY_YIELD status
stores_settle(struct work *work, u32 shard_count, const struct lsm_options *options)
{
    const struct node *node = &work->node;
    /* Closing waits for the scrub to end its file, which takes a minute at its slow pace. */
    struct lsm_options quiet = *options;
    quiet.scrub_bytes_per_s = 0;
    quiet.memory_bytes = settle_bytes(node, shard_count, options->memory_bytes);
    u64 lent_bytes = quiet.memory_bytes - options->memory_bytes; /* by the other shards */
    io_budget()->limit_bytes += lent_bytes;
    status settled = ST_OK;
    for (u32 i = 0; ok(settled) && i < node->header.store_count; i++) {
        store_path(work->sources[i], STORE_DIR_BYTES, work->dir, &node->stores[i]);
        struct lsm_place place = {
            .dir = work->sources[i],
            .token_first = partition_token_first(node->stores[i].partition_first,
                                                 node->header.partition_count),
            .token_last =
                partition_token_last(node->stores[i].partition_last, node->header.partition_count),
        };
        struct lsm *lsm;
        status st = lsm_open(&place, &quiet, &lsm);
        if (ok(st)) st = lsm_close(lsm);
        if (!ok(st))
            settled =
                MARKED("lsm.store.not_settled",
                       WORK_FAIL(work, st, "cannot recover %s: %s; %s", place.dir, status_text(st),
                                 status_is(st, ST_NO_MEMORY)
                                     ? "start with more memory, or as many cores as before"
                                     : "the log says more"));
    }
    io_budget()->limit_bytes -= lent_bytes;
    return settled;
}

static MAY_YIELD status
stores_reshard(struct work *work, u32 shard_count, const struct lsm_options *options)
{
    const struct node *node = &work->node;
    u32 partitions = node->header.partition_count;
    log_info("lsm", "changing the number of stores dir=%s from=%u to=%u", work->dir,
             node->header.store_count, shard_count);
    status st = stores_settle(work, shard_count, options);
    if (!ok(st)) return st;
    char node_id[NODE_ID_BYTES];
    memcpy(node_id, node->header.node_id, sizeof(node_id));
    next_describe(work, node_id, shard_count, partitions, node->header.generation + 1);
    for (u32 i = 0; i < shard_count; i++) {
        const struct node_store *target = &work->next.stores[i];
        u32 count = 0;
        for (u32 j = 0; j < node->header.store_count; j++)
            if (node->stores[j].partition_first <= target->partition_last &&
                node->stores[j].partition_last >= target->partition_first)
                work->source_list[count++] = work->sources[j];
        st = store_make(work, target, count);
        if (!ok(st)) return st;
    }
    st = io_dir_sync(work->dir);
    if (!ok(st))
        return MARKED("lsm.store.reshard_not_synced",
                      WORK_FAIL(work, st, "cannot sync %s: %s", work->dir, status_text(st)));
    st = node_write(work);
    if (!ok(st)) return st;
    MARK("lsm.store.resharded");
    return dirs_clean(work);
}

/* ---- the interface ---- */

static void
layout_describe(const struct work *work, struct store_layout *out)
{
    const struct node *node = &work->node;
    *out = (struct store_layout){
        .partition_count = node->header.partition_count,
        .shard_count = node->header.store_count,
        .generation = node->header.generation,
    };
    memcpy(out->node_id, node->header.node_id, NODE_ID_BYTES);
    for (u32 i = 0; i < node->header.store_count; i++) {
        const struct node_store *store = &node->stores[i];
        if (is_in_memory(work->dir))
            snprintf(out->shards[i].dir, STORE_DIR_BYTES, ":memory:"); /* each shard has its own */
        else
            store_path(out->shards[i].dir, STORE_DIR_BYTES, work->dir, store);
        out->shards[i].partition_first = store->partition_first;
        out->shards[i].partition_last = store->partition_last;
        out->shards[i].token_first =
            partition_token_first(store->partition_first, node->header.partition_count);
        out->shards[i].token_last =
            partition_token_last(store->partition_last, node->header.partition_count);
    }
}

/* Before the lock, which leaves a file behind: what is not ours stays as it is. A directory with a
 * NODE is ours, or is refused for what is in it; only another one is listed. */
static MAY_YIELD status
place_judge(struct work *work)
{
    file_path(work, work->path, "NODE");
    struct io_file *file;
    status st = io_file_open(work->path, IO_OPEN_READ, &file);
    if (ok(st)) {
        io_file_close(file);
        return ST_OK;
    }
    if (status_is(st, ST_NOT_DIRECTORY))
        return MARKED("lsm.store.no_directory",
                      WORK_FAIL(work, st, "%s is no directory", work->dir));
    if (!status_is(st, ST_NOT_FOUND))
        return MARKED("lsm.store.node_not_asked_for",
                      WORK_FAIL(work, st, "cannot open %s: %s", work->path, status_text(st)));
    work->foreign = false;
    st = io_dir_list(work->dir, name_judge, work);
    if (!ok(st))
        return MARKED("lsm.store.create_not_listed",
                      WORK_FAIL(work, st, "cannot list %s: %s", work->dir, status_text(st)));
    if (work->foreign) {
        MARK("lsm.store.foreign");
        return WORK_FAIL(work, ST_INVALID,
                         "%s holds files but no NODE: not a data directory of this program; "
                         "choose an empty one",
                         work->dir);
    }
    return ST_OK;
}

static MAY_YIELD status
prepare_locked(struct work *work, const char *node_id, u32 shard_count,
               const struct lsm_options *options)
{
    status st = node_read(work);
    if (status_is(st, ST_NOT_FOUND)) return stores_create(work, node_id, shard_count);
    if (!ok(st)) return st;
    const char *stored = (const char *)work->node.header.node_id;
    if (node_id != NULL && node_id[0] != '\0' && strcmp(node_id, stored) != 0) {
        MARK("lsm.store.other_node");
        return WORK_FAIL(work, ST_INVALID, "%s belongs to the node %s, not to %s", work->dir,
                         stored, node_id);
    }
    if (shard_count > work->node.header.partition_count)
        return MARKED("lsm.store.too_many_shards",
                      WORK_FAIL(work, ST_INVALID, "more shards (%u) than partitions (%u)",
                                shard_count, work->node.header.partition_count));
    st = stores_check(work); /* before anything is removed: it may be all that there is */
    if (!ok(st)) return st;
    /* A process that died after the rename and before the sync may have left a NODE that is not
     * durable: it must be before anything that it does not name is removed. */
    st = io_dir_sync(work->dir);
    if (!ok(st))
        return MARKED("lsm.store.prepare_not_synced",
                      WORK_FAIL(work, st, "cannot sync %s: %s", work->dir, status_text(st)));
    st = dirs_clean(work);
    if (ok(st) && shard_count != work->node.header.store_count)
        st = stores_reshard(work, shard_count, options);
    return st;
}

MAY_YIELD status
store_prepare(const char *data_dir, const char *node_id, u32 shard_count,
              const struct lsm_options *options, struct store_layout *out, char *error,
              size_t error_size)
{
    CHECK(shard_count > 0 && shard_count <= LIMIT_SHARDS);
    CHECK(error_size > 0);
    error[0] = '\0';
    struct work *work = work_new(data_dir, error, error_size);
    if (work == NULL) return ST_NO_MEMORY;
    status st = ST_OK;
    bool locked = false;
    /* Room for "/p0000-4095.18446744073709551615" and a file's name behind it. */
    if (strlen(data_dir) == 0 || strlen(data_dir) + 64 > STORE_DIR_BYTES) {
        MARK("lsm.store.path_bad");
        st = WORK_FAIL(work, ST_INVALID, "the path of the data directory is empty or too long");
        goto out;
    }
    if (node_id != NULL && strlen(node_id) >= NODE_ID_BYTES) {
        MARK("lsm.store.node_id_too_long");
        st = WORK_FAIL(work, ST_INVALID, "the node id is longer than %u bytes", NODE_ID_BYTES - 1);
        goto out;
    }
    if (is_in_memory(data_dir)) {
        const char *id = node_id != NULL && node_id[0] != '\0' ? node_id : "memory";
        next_describe(work, id, shard_count, PARTITION_COUNT_DEFAULT, 1);
        work->node = work->next;
        layout_describe(work, out);
        goto out;
    }
    st = dirs_make(work);
    if (ok(st)) st = place_judge(work);
    if (!ok(st)) goto out;
    st = io_dir_lock(data_dir);
    locked = ok(st);
    if (status_is(st, ST_LOCKED))
        st = MARKED("lsm.store.locked",
                    WORK_FAIL(work, st,
                              "another server runs on %s, or what a killed one has asked of the "
                              "disk is not done yet",
                              data_dir));
    else if (!ok(st))
        st = MARKED("lsm.store.lock_failed",
                    WORK_FAIL(work, st, "cannot lock %s: %s", data_dir, status_text(st)));
    if (ok(st)) st = prepare_locked(work, node_id, shard_count, options);
    if (ok(st)) layout_describe(work, out);
out:
    if (!ok(st)) {
        MARK("lsm.store.refused");
        if (error[0] == '\0') snprintf(error, error_size, "%s: %s", data_dir, status_text(st));
        if (locked) io_dir_unlock(data_dir);
    }
    work_free(work);
    return st;
}

void
store_release(const char *data_dir)
{
    if (!is_in_memory(data_dir)) io_dir_unlock(data_dir);
}

/* Whether the manifest is that of the store's partitions. What cannot be read is told by who reads
 * it all. */
static MAY_YIELD bool
store_is_in_place(const struct node *node, const struct node_store *store, const char *dir)
{
    struct manifest manifest = {.budget = io_budget()};
    u64 offset;
    const char *what;
    if (!ok(manifest_read(dir, io_budget(), &manifest, &offset, &what))) return true;
    u32 partitions = node->header.partition_count;
    bool same = manifest.token_first == partition_token_first(store->partition_first, partitions) &&
                manifest.token_last == partition_token_last(store->partition_last, partitions);
    manifest_free(&manifest);
    return same;
}

MAY_YIELD status
store_verify(const char *data_dir,
             void (*report)(void *arg, const char *file, u64 offset, const char *what), void *arg,
             u64 *files_out, u64 *bytes_out)
{
    *files_out = *bytes_out = 0;
    char error[256] = "";
    struct work *work = work_new(data_dir, error, sizeof(error));
    if (work == NULL) return ST_NO_MEMORY;
    work->foreign = true;
    status st = io_dir_list(data_dir, name_recognize, work);
    if (ok(st) && work->foreign) st = MARKED("lsm.store.verify_foreign", ST_NOT_FOUND);
    if (ok(st)) st = io_dir_lock(data_dir);
    bool locked = ok(st);
    if (ok(st)) st = node_read(work);
    if (!ok(st) && locked) {
        MARK("lsm.store.verify_node");
        const char *what = status_is(st, ST_NOT_FOUND) ? "file is missing" : status_text(st);
        char text[352];
        snprintf(text, sizeof(text), "%s; the stores that it names were not checked",
                 error[0] != '\0' ? error : what);
        report(arg, work->path, 0, text);
    } else if (ok(st)) {
        *files_out = 1;
        *bytes_out = NODE_BYTES;
    }
    for (u32 i = 0; locked && ok(st) && i < work->node.header.store_count; i++)
        store_path(work->sources[i], STORE_DIR_BYTES, data_dir, &work->node.stores[i]);
    status worst = st;
    for (u32 i = 0; ok(st) && i < work->node.header.store_count; i++) {
        u64 files = 0, bytes = 0;
        const char *dir = work->sources[i];
        status one;
        if (store_is_in_place(&work->node, &work->node.stores[i], dir)) {
            one = lsm_verify(dir, report, arg, &files, &bytes);
        } else {
            MARK("lsm.store.verify_elsewhere");
            report(arg, dir, 0,
                   "manifest of other partitions than the directory's name says; its files were "
                   "not checked");
            one = ST_CORRUPT;
        }
        if (status_is(one, ST_NOT_FOUND)) {
            MARK("lsm.store.verify_dir_missing");
            report(arg, dir, 0, "directory is missing");
            one = ST_CORRUPT;
        }
        *files_out += files;
        *bytes_out += bytes;
        if (!ok(one) && !status_is(worst, ST_CORRUPT)) worst = one;
    }
    if (locked) io_dir_unlock(data_dir);
    work_free(work);
    return worst;
}
