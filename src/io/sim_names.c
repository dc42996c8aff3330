/* SPDX-License-Identifier: MIT
 *
 * sim_names.c -- directories of the simulated disk.
 *
 * Paths are kept whole, without repeated and trailing slashes, in two sorted maps: what everybody
 * sees, and what is durable. Between them lie the operations that no io_dir_sync has covered yet.
 * A sync of a directory applies its operations to the durable map in their order; a crash applies
 * any subset of all of them, in their order. A rename is one operation, so it is atomic; it belongs
 * to the directory of the new name.
 *
 * "/" and "." and every prefix of a path above the first directory made here do not exist: a test
 * makes its data directory by io_dir_make("/data") or uses a relative one, io_dir_make("data").
 * Their parents ("/" and ".") are always there.
 */
#include "io/sim_disk_internal.h"

#include <stdlib.h>

#include "io/file.h"

#define PATH_BYTES 512u

enum name_op_kind { NAME_SET, NAME_REMOVE, NAME_MOVE };

struct name_op {
    struct list link; /* sim_disk.name_ops */
    u64 order;
    enum name_op_kind kind;
    char *dir;
    char *path;
    char *from;              /* MOVE */
    struct sim_inode *inode; /* SET and MOVE; NULL: a directory */
};

struct dir_lock {
    struct list link; /* sim_disk.locks */
    char *path;
};

/* ---- paths ---- */

static char *
text_copy(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = sim_alloc(size);
    memcpy(copy, text, size);
    return copy;
}

static bool
path_canonical(const char *path, char canonical[static PATH_BYTES])
{
    size_t size = 0;
    if (path[0] == '.' && path[1] == '/') path += 2;
    for (const char *p = path; *p != '\0'; p++) {
        if (*p == '/' && (p[1] == '/' || (p[1] == '\0' && size > 0))) continue;
        if (size == PATH_BYTES - 1) return false;
        canonical[size++] = *p;
    }
    canonical[size] = '\0';
    return size > 0;
}

static void
path_parent(const char *canonical, char parent[static PATH_BYTES])
{
    const char *slash = strrchr(canonical, '/');
    size_t size = slash == NULL ? 0 : (size_t)(slash - canonical);
    if (slash == NULL) {
        memcpy(parent, ".", 2);
    } else if (size == 0) {
        memcpy(parent, "/", 2);
    } else {
        memcpy(parent, canonical, size);
        parent[size] = '\0';
    }
}

static bool
path_is_root(const char *canonical)
{
    return strcmp(canonical, "/") == 0 || strcmp(canonical, ".") == 0;
}

/* ---- maps ---- */

/* Where path is, or where it would go. */
static u32
map_lower(const struct sim_name_map *map, const char *path)
{
    u32 low = 0, high = map->count;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (strcmp(map->names[middle].path, path) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static struct sim_name *
map_find(const struct sim_name_map *map, const char *path)
{
    u32 at = map_lower(map, path);
    if (at == map->count || strcmp(map->names[at].path, path) != 0) return NULL;
    return &map->names[at];
}

/* counted: of the current map, whose files count in the disk's use. */
static void
map_set(struct sim_name_map *map, const char *path, struct sim_inode *inode, bool counted)
{
    sim_inode_ref(inode);
    if (counted) sim_inode_use(inode);
    struct sim_name *name = map_find(map, path);
    if (name != NULL) {
        if (counted) sim_inode_unuse(name->inode);
        sim_inode_unref(name->inode);
        name->inode = inode;
        return;
    }
    if (map->count == map->capacity) {
        map->capacity = MAX(16u, map->capacity * 2);
        map->names = realloc(map->names, map->capacity * sizeof(*map->names));
        CHECK(map->names != NULL);
    }
    u32 at = map_lower(map, path);
    memmove(map->names + at + 1, map->names + at, (map->count - at) * sizeof(*map->names));
    map->names[at] = (struct sim_name){.path = text_copy(path), .inode = inode};
    map->count++;
}

static void
map_remove_at(struct sim_name_map *map, u32 at, bool counted)
{
    struct sim_name *name = &map->names[at];
    if (counted) sim_inode_unuse(name->inode);
    sim_inode_unref(name->inode);
    free(name->path);
    map->count--;
    memmove(map->names + at, map->names + at + 1, (map->count - at) * sizeof(*map->names));
}

static void
map_remove(struct sim_name_map *map, const char *path, bool counted)
{
    const struct sim_name *name = map_find(map, path);
    if (name != NULL) map_remove_at(map, (u32)(name - map->names), counted);
}

static bool
map_has_dir(const struct sim_name_map *map, const char *canonical)
{
    if (path_is_root(canonical)) return true;
    const struct sim_name *name = map_find(map, canonical);
    return name != NULL && name->inode == NULL;
}

static bool
map_has_parent(const struct sim_name_map *map, const char *canonical)
{
    char parent[PATH_BYTES];
    path_parent(canonical, parent);
    return map_has_dir(map, parent);
}

static void
map_clear(struct sim_name_map *map, bool counted)
{
    while (map->count > 0)
        map_remove_at(map, map->count - 1, counted);
    free(map->names);
    *map = (struct sim_name_map){0};
}

/* ---- operations that are not durable yet ---- */

static void
op_add(struct sim_disk *disk, enum name_op_kind kind, const char *path, const char *from,
       struct sim_inode *inode)
{
    char parent[PATH_BYTES];
    path_parent(path, parent);
    struct name_op *op = sim_alloc(sizeof(*op));
    op->order = ++disk->order;
    op->kind = kind;
    op->dir = text_copy(parent);
    op->path = text_copy(path);
    op->from = from != NULL ? text_copy(from) : NULL;
    op->inode = inode;
    sim_inode_ref(inode);
    list_push_back(&disk->name_ops, &op->link);
}

static void
op_free(struct name_op *op)
{
    list_del(&op->link);
    sim_inode_unref(op->inode);
    free(op->dir);
    free(op->path);
    free(op->from);
    free(op);
}

static void
op_apply(struct sim_disk *disk, const struct name_op *op)
{
    switch (op->kind) {
    case NAME_SET:
        map_set(&disk->durable, op->path, op->inode, false);
        break;
    case NAME_REMOVE:
        map_remove(&disk->durable, op->path, false);
        break;
    case NAME_MOVE:
        map_remove(&disk->durable, op->from, false);
        map_set(&disk->durable, op->path, op->inode, false);
        break;
    }
}

static void
names_drop_orphans(struct sim_name_map *map)
{
    /* Parents come before their entries, so one pass finds all. */
    for (u32 i = 0; i < map->count;) {
        if (map_has_parent(map, map->names[i].path)) {
            i++;
        } else {
            map_remove_at(map, i, false);
        }
    }
}

void
sim_names_crash(struct sim_disk *disk)
{
    enum { KEEP_NONE, KEEP_ALL, KEEP_PREFIX, KEEP_ANY, MODE_COUNT };
    u64 mode = prng_below(&disk->prng, MODE_COUNT);
    bool kept = mode != KEEP_NONE;
    while (!list_empty(&disk->name_ops)) {
        struct name_op *op = list_entry(list_first(&disk->name_ops), struct name_op, link);
        if (mode == KEEP_PREFIX && prng_chance(&disk->prng, 1, 8)) kept = false;
        if (mode == KEEP_ANY) kept = prng_chance(&disk->prng, 1, 2);
        if (kept) op_apply(disk, op);
        op_free(op);
    }
    names_drop_orphans(&disk->durable);
    map_clear(&disk->current, true);
    for (u32 i = 0; i < disk->durable.count; i++)
        map_set(&disk->current, disk->durable.names[i].path, disk->durable.names[i].inode, true);
}

/* ---- files by name ---- */

status
sim_disk_open(struct sim_disk *disk, const char *path, u32 flags, struct sim_inode **out)
{
    char canonical[PATH_BYTES];
    if (!path_canonical(path, canonical) || path_is_root(canonical)) return ST_INVALID;
    const struct sim_name *name = map_find(&disk->current, canonical);
    struct sim_inode *inode;
    if ((flags & IO_OPEN_CREATE) != 0) {
        if (name != NULL) return ST_EXISTS;
        if (!map_has_parent(&disk->current, canonical)) return ST_NOT_FOUND;
        inode = sim_inode_new(disk);
        map_set(&disk->current, canonical, inode, true);
        op_add(disk, NAME_SET, canonical, NULL, inode);
    } else {
        if (name == NULL) return ST_NOT_FOUND;
        if (name->inode == NULL) return ST_INVALID;
        inode = name->inode;
    }
    inode->open_count++;
    sim_inode_ref(inode);
    sim_inode_use(inode);
    *out = inode;
    return ST_OK;
}

void
sim_disk_close(struct sim_disk *disk, struct sim_inode *inode)
{
    (void)disk;
    CHECK(inode->open_count > 0);
    inode->open_count--;
    sim_inode_unuse(inode);
    sim_inode_unref(inode);
}

struct sim_inode *
sim_names_find(const struct sim_disk *disk, const char *path)
{
    char canonical[PATH_BYTES];
    if (!path_canonical(path, canonical)) return NULL;
    const struct sim_name *name = map_find(&disk->current, canonical);
    return name != NULL ? name->inode : NULL;
}

const char *
sim_inode_path(const struct sim_inode *inode)
{
    const struct sim_name_map *map = &inode->disk->current;
    for (u32 i = 0; i < map->count; i++)
        if (map->names[i].inode == inode) return map->names[i].path;
    return "(no name)";
}

u32
sim_inode_name_count(const struct sim_inode *inode)
{
    const struct sim_name_map *map = &inode->disk->current;
    u32 count = 0;
    for (u32 i = 0; i < map->count; i++)
        count += map->names[i].inode == inode;
    return count;
}

status
sim_disk_rename(struct sim_disk *disk, const char *from, const char *to)
{
    char source[PATH_BYTES], target[PATH_BYTES];
    if (!path_canonical(from, source) || !path_canonical(to, target)) return ST_INVALID;
    const struct sim_name *name = map_find(&disk->current, source);
    if (name == NULL) return ST_NOT_FOUND;
    if (name->inode == NULL) return ST_UNSUPPORTED; /* directories keep their names */
    if (strcmp(source, target) == 0) return ST_OK;
    if (!map_has_parent(&disk->current, target)) return ST_NOT_FOUND;
    if (map_has_dir(&disk->current, target)) return ST_INVALID;
    struct sim_inode *inode = name->inode;
    sim_inode_ref(inode);
    map_remove(&disk->current, source, true);
    map_set(&disk->current, target, inode, true);
    op_add(disk, NAME_MOVE, target, source, inode);
    sim_inode_unref(inode);
    return ST_OK;
}

status
sim_disk_link(struct sim_disk *disk, const char *from, const char *to)
{
    char source[PATH_BYTES], target[PATH_BYTES];
    if (!path_canonical(from, source) || !path_canonical(to, target)) return ST_INVALID;
    const struct sim_name *name = map_find(&disk->current, source);
    if (name == NULL) return ST_NOT_FOUND;
    if (name->inode == NULL) return ST_INVALID;
    if (map_find(&disk->current, target) != NULL || path_is_root(target)) return ST_EXISTS;
    if (!map_has_parent(&disk->current, target)) return ST_NOT_FOUND;
    struct sim_inode *inode = name->inode;
    map_set(&disk->current, target, inode, true); /* may move the names */
    op_add(disk, NAME_SET, target, NULL, inode);
    return ST_OK;
}

status
sim_disk_unlink(struct sim_disk *disk, const char *path)
{
    char canonical[PATH_BYTES];
    if (!path_canonical(path, canonical)) return ST_INVALID;
    const struct sim_name *name = map_find(&disk->current, canonical);
    if (name == NULL) return ST_NOT_FOUND;
    if (name->inode == NULL) return ST_INVALID;
    map_remove(&disk->current, canonical, true);
    op_add(disk, NAME_REMOVE, canonical, NULL, NULL);
    return ST_OK;
}

/* ---- directories ---- */

status
sim_disk_dir_make(struct sim_disk *disk, const char *path)
{
    char canonical[PATH_BYTES];
    if (!path_canonical(path, canonical)) return ST_INVALID;
    if (path_is_root(canonical) || map_find(&disk->current, canonical) != NULL) return ST_EXISTS;
    if (!map_has_parent(&disk->current, canonical)) return ST_NOT_FOUND;
    map_set(&disk->current, canonical, NULL, true);
    op_add(disk, NAME_SET, canonical, NULL, NULL);
    return ST_OK;
}

/* Whether name is an entry of directory dir; where its last part begins. */
static bool
name_in_dir(const char *dir, const char *name, const char **entry_out)
{
    char parent[PATH_BYTES];
    path_parent(name, parent);
    if (strcmp(parent, dir) != 0) return false;
    const char *slash = strrchr(name, '/');
    *entry_out = slash != NULL ? slash + 1 : name;
    return true;
}

status
sim_disk_dir_remove(struct sim_disk *disk, const char *path)
{
    char canonical[PATH_BYTES];
    const char *entry;
    if (!path_canonical(path, canonical) || path_is_root(canonical)) return ST_INVALID;
    const struct sim_name *name = map_find(&disk->current, canonical);
    if (name == NULL) return ST_NOT_FOUND;
    if (name->inode != NULL) return ST_INVALID;
    for (u32 i = 0; i < disk->current.count; i++) {
        if (name_in_dir(canonical, disk->current.names[i].path, &entry)) return ST_EXISTS;
    }
    map_remove(&disk->current, canonical, true);
    op_add(disk, NAME_REMOVE, canonical, NULL, NULL);
    return ST_OK;
}

status
sim_disk_dir_sync_begin(struct sim_disk *disk, const char *path, u64 *order_out)
{
    char canonical[PATH_BYTES];
    if (!path_canonical(path, canonical)) return ST_INVALID;
    if (!map_has_dir(&disk->current, canonical)) return ST_NOT_FOUND;
    *order_out = disk->order;
    return ST_OK;
}

void
sim_disk_dir_sync_end(struct sim_disk *disk, const char *path, u64 order)
{
    char canonical[PATH_BYTES];
    CHECK(path_canonical(path, canonical));
    list_for_each_safe (pos, &disk->name_ops) {
        struct name_op *op = list_entry(pos, struct name_op, link);
        if (op->order > order) break;
        if (strcmp(op->dir, canonical) != 0) continue;
        op_apply(disk, op);
        op_free(op);
    }
}

bool
sim_disk_dir_renamed(const struct sim_disk *disk, const char *path)
{
    char canonical[PATH_BYTES];
    if (!path_canonical(path, canonical)) return false;
    list_for_each (pos, &disk->name_ops) {
        const struct name_op *op = list_entry(pos, struct name_op, link);
        if (op->kind == NAME_MOVE && strcmp(op->dir, canonical) == 0) return true;
    }
    return false;
}

status
sim_disk_dir_list(struct sim_disk *disk, const char *path,
                  void (*each)(void *arg, const char *name), void *arg)
{
    char canonical[PATH_BYTES], last[PATH_BYTES];
    const char *entry = NULL;
    if (!path_canonical(path, canonical)) return ST_INVALID;
    if (!map_has_dir(&disk->current, canonical)) return ST_NOT_FOUND;
    /* each may change the names: look again for the first one after the last. */
    last[0] = '\0';
    for (;;) {
        u32 i = map_lower(&disk->current, last);
        while (i < disk->current.count &&
               (strcmp(disk->current.names[i].path, last) == 0 ||
                !name_in_dir(canonical, disk->current.names[i].path, &entry)))
            i++;
        if (i == disk->current.count) return ST_OK;
        const char *found = disk->current.names[i].path;
        size_t skip = (size_t)(entry - found);
        memcpy(last, found, strlen(found) + 1);
        each(arg, last + skip);
    }
}

void
sim_disk_each_file(const struct sim_disk *disk, void (*each)(void *arg, const char *path),
                   void *arg)
{
    for (u32 i = 0; i < disk->current.count; i++) {
        if (disk->current.names[i].inode != NULL) each(arg, disk->current.names[i].path);
    }
}

/* ---- locks ---- */

static struct dir_lock *
lock_find(const struct sim_disk *disk, const char *canonical)
{
    list_for_each (pos, &disk->locks) {
        struct dir_lock *lock = list_entry(pos, struct dir_lock, link);
        if (strcmp(lock->path, canonical) == 0) return lock;
    }
    return NULL;
}

static void
lock_free(struct dir_lock *lock)
{
    list_del(&lock->link);
    free(lock->path);
    free(lock);
}

status
sim_disk_dir_lock(struct sim_disk *disk, const char *path)
{
    char canonical[PATH_BYTES];
    if (!path_canonical(path, canonical)) return ST_INVALID;
    if (!map_has_dir(&disk->current, canonical)) return ST_NOT_FOUND;
    if (lock_find(disk, canonical) != NULL) return ST_LOCKED;
    struct dir_lock *lock = sim_alloc(sizeof(*lock));
    lock->path = text_copy(canonical);
    list_push_back(&disk->locks, &lock->link);
    return ST_OK;
}

void
sim_disk_dir_unlock(struct sim_disk *disk, const char *path)
{
    char canonical[PATH_BYTES];
    if (!path_canonical(path, canonical)) return;
    struct dir_lock *lock = lock_find(disk, canonical);
    if (lock != NULL) lock_free(lock);
}

void
sim_names_unlock_all(struct sim_disk *disk)
{
    while (!list_empty(&disk->locks))
        lock_free(list_entry(list_first(&disk->locks), struct dir_lock, link));
}

/* ---- copies ---- */

/* A file of several names is one file there, too. */
static struct sim_inode *
inode_copied(const struct sim_disk *from, struct sim_disk *to, u32 at)
{
    const struct sim_inode *inode = from->current.names[at].inode;
    if (inode == NULL) return NULL;
    for (u32 i = 0; i < at; i++)
        if (from->current.names[i].inode == inode)
            return map_find(&to->current, from->current.names[i].path)->inode;
    return sim_inode_copy(inode, to);
}

void
sim_names_copy(const struct sim_disk *from, struct sim_disk *to)
{
    CHECK(list_empty(&to->locks));
    sim_names_deinit(to);
    for (u32 i = 0; i < from->current.count; i++) {
        const char *path = from->current.names[i].path;
        struct sim_inode *inode = inode_copied(from, to, i);
        map_set(&to->current, path, inode, true);
        map_set(&to->durable, path, inode, false);
    }
}

/* ---- life ---- */

void
sim_names_init(struct sim_disk *disk)
{
    list_init(&disk->name_ops);
}

void
sim_names_deinit(struct sim_disk *disk)
{
    while (!list_empty(&disk->name_ops))
        op_free(list_entry(list_first(&disk->name_ops), struct name_op, link));
    map_clear(&disk->current, true);
    map_clear(&disk->durable, false);
}
