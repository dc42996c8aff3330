/* SPDX-License-Identifier: MIT
 *
 * memfs.c -- files in a shard's memory.
 *
 *   names (sorted by path)      file                        chunks of 16 KiB
 *   ":memory:"        dir       size, links, openings  -->  [ * ][ - ][ * ]
 *   ":memory:/log"    dir                                     |         |
 *   ":memory:/log/1"  ------------^                          16 KiB    16 KiB
 *
 * A name without a file is a directory. A file lives as long as it has a name or is open. A chunk
 * that is NULL reads as zeros.
 *
 * Invariants
 *   M1  Names are unique and in byte order, so the entries of one directory come out in order.
 *   M2  Bytes of a chunk at or after the file's size are zero, so growing needs no clearing.
 *   M3  budget.used_bytes is exactly what names, files, tables and chunks take.
 */
#include "io/memfs.h"

#include "base/fault.h"
#include "io/file.h"

struct memfs_file {
    struct memfs *fs;
    u64 size;
    u8 **chunks;
    u64 chunk_count; /* entries of chunks; may lie below or above what size needs */
    u32 link_count;
    u32 open_count;
};

struct memfs_name {
    struct list link;
    struct memfs_file *file; /* NULL: a directory */
    u32 path_size;           /* with its end */
    char path[];
};

#define ROOT ":memory:"

/* ---- paths ---- */

/* Copies path without repeated and trailing slashes. */
static bool
path_canonical(const char *path, char canonical[static MEMFS_PATH_BYTES])
{
    if (!memfs_path(path)) return MARKED("io.memfs.path_foreign", false);
    size_t size = 0;
    for (const char *p = path; *p != '\0'; p++) {
        if (*p == '/' && (p[1] == '/' || p[1] == '\0')) continue;
        if (size == MEMFS_PATH_BYTES - 1) return MARKED("io.memfs.path_too_long", false);
        canonical[size++] = *p;
    }
    canonical[size] = '\0';
    size_t root = sizeof(ROOT) - 1;
    return canonical[root] == '\0' || canonical[root] == '/';
}

/* Whether name is an entry of directory dir itself, not of one below. */
static bool
path_is_entry(const char *dir, const char *name)
{
    size_t size = strlen(dir);
    return strncmp(name, dir, size) == 0 && name[size] == '/' &&
           strchr(name + size + 1, '/') == NULL;
}

static struct memfs_name *
name_find(const struct memfs *fs, const char *canonical)
{
    list_for_each (pos, &fs->names) {
        struct memfs_name *name = list_entry(pos, struct memfs_name, link);
        int order = strcmp(name->path, canonical);
        if (order == 0) return name;
        if (order > 0) return NULL;
    }
    return NULL;
}

static bool
dir_exists(const struct memfs *fs, const char *canonical)
{
    if (strcmp(canonical, ROOT) == 0) return true;
    const struct memfs_name *name = name_find(fs, canonical);
    return name != NULL && name->file == NULL;
}

static bool
parent_exists(const struct memfs *fs, const char *canonical)
{
    char parent[MEMFS_PATH_BYTES];
    const char *slash = strrchr(canonical, '/');
    if (slash == NULL) return false;
    size_t size = (size_t)(slash - canonical);
    memcpy(parent, canonical, size);
    parent[size] = '\0';
    return dir_exists(fs, parent);
}

static status
name_add(struct memfs *fs, const char *canonical, struct memfs_file *file)
{
    u32 path_size = (u32)strlen(canonical) + 1;
    struct memfs_name *name = mem_alloc(&fs->budget, sizeof(*name) + path_size);
    if (name == NULL) return MARKED("io.memfs.name_no_memory", ST_NO_SPACE);
    name->file = file;
    name->path_size = path_size;
    memcpy(name->path, canonical, path_size);

    struct list *next = &fs->names;
    list_for_each (pos, &fs->names) {
        if (strcmp(list_entry(pos, struct memfs_name, link)->path, canonical) > 0) {
            next = pos;
            break;
        }
    }
    list_insert_between(&name->link, next->prev, next); /* M1 */
    fs->name_count++;
    if (file != NULL) file->link_count++;
    return ST_OK;
}

/* ---- files ---- */

static void
chunks_free_from(struct memfs_file *file, u64 first)
{
    struct budget *budget = &file->fs->budget;
    for (u64 i = first; i < file->chunk_count; i++) {
        mem_free(budget, file->chunks[i], MEMFS_CHUNK_BYTES);
        file->chunks[i] = NULL;
    }
}

static void
file_free_if_unused(struct memfs_file *file)
{
    if (file->link_count > 0 || file->open_count > 0) return;
    struct budget *budget = &file->fs->budget;
    chunks_free_from(file, 0);
    mem_free(budget, file->chunks, file->chunk_count * sizeof(u8 *));
    mem_free(budget, file, sizeof(*file));
}

static void
name_remove(struct memfs *fs, struct memfs_name *name)
{
    struct memfs_file *file = name->file;
    list_del(&name->link);
    fs->name_count--;
    mem_free(&fs->budget, name, sizeof(*name) + name->path_size);
    if (file == NULL) return;
    file->link_count--;
    file_free_if_unused(file);
}

static u64
chunks_in_size(u64 size)
{
    return size / MEMFS_CHUNK_BYTES + (size % MEMFS_CHUNK_BYTES != 0);
}

/* Gives back what lies beyond the end, taken in vain. */
static void
chunks_trim(struct memfs_file *file)
{
    chunks_free_from(file, chunks_in_size(file->size));
}

/* Makes the table of chunks long enough for size bytes of content. */
static bool
chunks_reserve(struct memfs_file *file, u64 size)
{
    u64 needed = chunks_in_size(size);
    if (needed <= file->chunk_count) return true;
    u64 count = MAX(needed, MAX((u64)4, file->chunk_count * 2));
    if (count > SIZE_MAX / 2 / sizeof(u8 *)) return MARKED("io.memfs.size_too_large", false);
    u8 **chunks = mem_realloc(&file->fs->budget, file->chunks, file->chunk_count * sizeof(u8 *),
                              count * sizeof(u8 *));
    if (chunks == NULL) return MARKED("io.memfs.table_no_memory", false);
    memset(chunks + file->chunk_count, 0, (count - file->chunk_count) * sizeof(u8 *));
    file->chunks = chunks;
    file->chunk_count = count;
    return true;
}

/* Takes the memory of every chunk that [offset, end) touches. What was taken before it ran out
 * stays, as zeros, until chunks_trim. */
static bool
chunks_take(struct memfs_file *file, u64 offset, u64 end)
{
    if (offset >= end) return true;
    if (!chunks_reserve(file, end)) return false;
    for (u64 i = offset / MEMFS_CHUNK_BYTES; i <= (end - 1) / MEMFS_CHUNK_BYTES; i++) {
        if (file->chunks[i] != NULL) continue;
        file->chunks[i] = mem_alloc_zero(&file->fs->budget, MEMFS_CHUNK_BYTES);
        if (file->chunks[i] == NULL) return MARKED("io.memfs.chunk_no_memory", false);
    }
    return true;
}

/* Zeros over [offset, end) wherever there is memory. */
static void
chunks_clear(struct memfs_file *file, u64 offset, u64 end)
{
    while (offset < end) {
        u64 i = offset / MEMFS_CHUNK_BYTES;
        if (i >= file->chunk_count) return;
        u64 start = offset % MEMFS_CHUNK_BYTES;
        u64 size = MIN(MEMFS_CHUNK_BYTES - start, end - offset);
        if (file->chunks[i] != NULL) memset(file->chunks[i] + start, 0, size);
        offset += size;
    }
}

void
memfs_init(struct memfs *fs, struct budget *parent, u64 limit_bytes)
{
    budget_init(&fs->budget, "memfs", limit_bytes, parent);
    list_init(&fs->names);
    fs->open_count = 0;
    fs->name_count = 0;
}

void
memfs_deinit(struct memfs *fs)
{
    CHECK(fs->open_count == 0);
    while (!list_empty(&fs->names))
        name_remove(fs, list_entry(list_first(&fs->names), struct memfs_name, link));
    CHECK(fs->budget.used_bytes == 0); /* M3 */
}

static status
file_create(struct memfs *fs, const char *canonical, struct memfs_file **out)
{
    if (!parent_exists(fs, canonical)) return MARKED("io.memfs.create_no_parent", ST_NOT_FOUND);
    struct memfs_file *file = mem_alloc_zero(&fs->budget, sizeof(*file));
    if (file == NULL) return MARKED("io.memfs.file_no_memory", ST_NO_SPACE);
    file->fs = fs;
    status st = name_add(fs, canonical, file);
    if (!ok(st)) {
        mem_free(&fs->budget, file, sizeof(*file));
        return st;
    }
    *out = file;
    return ST_OK;
}

status
memfs_open(struct memfs *fs, const char *path, u32 flags, struct memfs_file **out)
{
    char canonical[MEMFS_PATH_BYTES];
    if (!path_canonical(path, canonical)) return ST_INVALID;
    if (strcmp(canonical, ROOT) == 0) return ST_INVALID;
    const struct memfs_name *name = name_find(fs, canonical);
    struct memfs_file *file;
    if ((flags & IO_OPEN_CREATE) != 0) {
        if (name != NULL) return MARKED("io.memfs.create_exists", ST_EXISTS);
        status st = file_create(fs, canonical, &file);
        if (!ok(st)) return st;
    } else {
        if (name == NULL) return MARKED("io.memfs.open_not_found", ST_NOT_FOUND);
        if (name->file == NULL) return MARKED("io.memfs.open_directory", ST_INVALID);
        file = name->file;
    }
    file->open_count++;
    fs->open_count++;
    *out = file;
    return ST_OK;
}

void
memfs_close(struct memfs_file *file)
{
    if (file == NULL) return;
    CHECK(file->open_count > 0);
    file->open_count--;
    file->fs->open_count--;
    file_free_if_unused(file);
}

status
memfs_read(const struct memfs_file *file, void *buffer, u32 size, u64 offset)
{
    if (offset > file->size || size > file->size - offset)
        return MARKED("io.memfs.read_past_end", ST_END);
    u8 *target = buffer;
    u64 end = offset + size;
    while (offset < end) {
        u64 i = offset / MEMFS_CHUNK_BYTES;
        u64 start = offset % MEMFS_CHUNK_BYTES;
        u64 part = MIN(MEMFS_CHUNK_BYTES - start, end - offset);
        if (i < file->chunk_count && file->chunks[i] != NULL) {
            memcpy(target, file->chunks[i] + start, part);
        } else {
            memset(target, 0, part);
        }
        target += part;
        offset += part;
    }
    return ST_OK;
}

status
memfs_write(struct memfs_file *file, const void *buffer, u32 size, u64 offset)
{
    if (offset > UINT64_MAX / 2) return MARKED("io.memfs.write_too_far", ST_NO_SPACE);
    u64 end = offset + size;
    if (!chunks_take(file, offset, end)) {
        MARK("io.memfs.write_no_space");
        chunks_trim(file);
        return ST_NO_SPACE;
    }
    const u8 *source = buffer;
    while (offset < end) {
        u64 start = offset % MEMFS_CHUNK_BYTES;
        u64 part = MIN(MEMFS_CHUNK_BYTES - start, end - offset);
        memcpy(file->chunks[offset / MEMFS_CHUNK_BYTES] + start, source, part);
        source += part;
        offset += part;
    }
    file->size = MAX(file->size, end);
    return ST_OK;
}

u64
memfs_size(const struct memfs_file *file)
{
    return file->size;
}

status
memfs_truncate(struct memfs_file *file, u64 size)
{
    if (size < file->size) {
        u64 kept = chunks_in_size(size);
        chunks_free_from(file, kept);
        chunks_clear(file, size, kept * MEMFS_CHUNK_BYTES); /* M2 */
    }
    file->size = size;
    return ST_OK;
}

status
memfs_allocate(struct memfs_file *file, u64 size)
{
    if (size > UINT64_MAX / 2) return MARKED("io.memfs.allocate_too_far", ST_NO_SPACE);
    if (!chunks_take(file, 0, size)) {
        MARK("io.memfs.allocate_no_space");
        chunks_trim(file);
        return ST_NO_SPACE;
    }
    file->size = MAX(file->size, size);
    return ST_OK;
}

status
memfs_fill(struct memfs_file *file, u64 size)
{
    status st = memfs_allocate(file, size);
    if (!ok(st)) return st;
    chunks_clear(file, 0, size);
    return ST_OK;
}

/* ---- names ---- */

/* Adds a second name to file, in place of what stands there. */
static status
name_put(struct memfs *fs, const char *canonical, struct memfs_file *file)
{
    if (!parent_exists(fs, canonical)) return MARKED("io.memfs.name_no_parent", ST_NOT_FOUND);
    struct memfs_name *old = name_find(fs, canonical);
    if (old != NULL && old->file == NULL) return MARKED("io.memfs.name_over_directory", ST_INVALID);
    if (old == NULL) return name_add(fs, canonical, file);
    struct memfs_file *replaced = old->file;
    old->file = file;
    file->link_count++;
    replaced->link_count--;
    file_free_if_unused(replaced);
    return ST_OK;
}

status
memfs_rename(struct memfs *fs, const char *from, const char *to)
{
    char source[MEMFS_PATH_BYTES], target[MEMFS_PATH_BYTES];
    if (!path_canonical(from, source) || !path_canonical(to, target)) return ST_INVALID;
    struct memfs_name *name = name_find(fs, source);
    if (name == NULL) return MARKED("io.memfs.rename_not_found", ST_NOT_FOUND);
    /* Directories keep their names. */
    if (name->file == NULL) return MARKED("io.memfs.rename_directory", ST_UNSUPPORTED);
    if (strcmp(source, target) == 0) return ST_OK;
    status st = name_put(fs, target, name->file);
    if (!ok(st)) return st;
    name_remove(fs, name);
    return ST_OK;
}

status
memfs_link(struct memfs *fs, const char *from, const char *to)
{
    char source[MEMFS_PATH_BYTES], target[MEMFS_PATH_BYTES];
    if (!path_canonical(from, source) || !path_canonical(to, target)) return ST_INVALID;
    struct memfs_name *name = name_find(fs, source);
    if (name == NULL) return MARKED("io.memfs.link_not_found", ST_NOT_FOUND);
    if (name->file == NULL) return MARKED("io.memfs.link_directory", ST_INVALID);
    if (strcmp(target, ROOT) == 0 || name_find(fs, target) != NULL)
        return MARKED("io.memfs.link_exists", ST_EXISTS);
    return name_put(fs, target, name->file);
}

status
memfs_unlink(struct memfs *fs, const char *path)
{
    char canonical[MEMFS_PATH_BYTES];
    if (!path_canonical(path, canonical)) return ST_INVALID;
    struct memfs_name *name = name_find(fs, canonical);
    if (name == NULL) return MARKED("io.memfs.unlink_not_found", ST_NOT_FOUND);
    if (name->file == NULL) return MARKED("io.memfs.unlink_directory", ST_INVALID);
    name_remove(fs, name);
    return ST_OK;
}

status
memfs_dir_make(struct memfs *fs, const char *path)
{
    char canonical[MEMFS_PATH_BYTES];
    if (!path_canonical(path, canonical)) return ST_INVALID;
    if (strcmp(canonical, ROOT) == 0 || name_find(fs, canonical) != NULL)
        return MARKED("io.memfs.dir_exists", ST_EXISTS);
    if (!parent_exists(fs, canonical)) return MARKED("io.memfs.dir_no_parent", ST_NOT_FOUND);
    return name_add(fs, canonical, NULL);
}

status
memfs_dir_remove(struct memfs *fs, const char *path)
{
    char canonical[MEMFS_PATH_BYTES];
    if (!path_canonical(path, canonical)) return ST_INVALID;
    struct memfs_name *name = name_find(fs, canonical);
    if (name == NULL)
        return MARKED("io.memfs.dir_not_found",
                      strcmp(canonical, ROOT) == 0 ? ST_INVALID : ST_NOT_FOUND);
    if (name->file != NULL) return MARKED("io.memfs.dir_is_file", ST_INVALID);
    list_for_each (pos, &fs->names) {
        if (path_is_entry(canonical, list_entry(pos, struct memfs_name, link)->path))
            return MARKED("io.memfs.dir_not_empty", ST_EXISTS); /* as a disk answers */
    }
    name_remove(fs, name);
    return ST_OK;
}

status
memfs_dir_sync(const struct memfs *fs, const char *path)
{
    char canonical[MEMFS_PATH_BYTES];
    if (!path_canonical(path, canonical)) return ST_INVALID;
    return dir_exists(fs, canonical) ? ST_OK : ST_NOT_FOUND;
}

status
memfs_dir_list(const struct memfs *fs, const char *path, void (*each)(void *arg, const char *name),
               void *arg)
{
    char dir[MEMFS_PATH_BYTES], last[MEMFS_PATH_BYTES];
    if (!path_canonical(path, dir)) return ST_INVALID;
    if (!dir_exists(fs, dir)) return MARKED("io.memfs.list_not_found", ST_NOT_FOUND);
    /* each may change the names, so every step looks again for the first one after the last. */
    last[0] = '\0';
    for (;;) {
        const struct memfs_name *found = NULL;
        list_for_each (pos, &fs->names) {
            const struct memfs_name *name = list_entry(pos, struct memfs_name, link);
            if (strcmp(name->path, last) <= 0 || !path_is_entry(dir, name->path)) continue;
            found = name;
            break;
        }
        if (found == NULL) return ST_OK;
        memcpy(last, found->path, found->path_size);
        each(arg, last + strlen(dir) + 1);
    }
}

status
memfs_disk_free(const struct memfs *fs, u64 *free_out, u64 *total_out)
{
    *free_out = budget_available(&fs->budget);
    *total_out = *free_out + fs->budget.used_bytes;
    return ST_OK;
}

status
memfs_dir_lock(const struct memfs *fs, const char *path)
{
    return memfs_dir_sync(fs, path);
}
