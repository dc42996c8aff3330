/* SPDX-License-Identifier: MIT
 *
 * sim_disk.c -- content of the simulated disk; sim_names.c holds its names.
 *
 *   page (4 KiB)   durable  <-  version  <-  version  <-  newest
 *                  platter      written, not durable      what reads return
 *
 * A write that ends adds a version to each page it covers; a sync makes those durable that had
 * ended before it began; a durable write makes its own durable. When a version becomes durable,
 * older ones of the page are gone: they can no longer surface. NULL stands for a page of zeros.
 *
 * A crash picks for every sector of every page with versions one of them or the durable one. To
 * give runs a character, each file first draws how: all old, all new, page by page, or sector by
 * sector. The size of the file is drawn apart from its content.
 *
 * Invariants
 *   D1  Versions of a page are in the order in which their writes ended.
 *   D2  inode->dirty holds exactly the versions that the next sync covers, in that order. Versions
 *       outside it (after a failed sync or durable write) are read, but never become durable by a sync.
 *   D3  disk->used_pages counts the allocated pages of files that have a current name or are open.
 */
#include "io/sim_disk_internal.h"

#include <stdlib.h>

#include "io/file.h"

static const u8 zero_page[SIM_PAGE_BYTES];

void *
sim_alloc(size_t size)
{
    void *block = calloc(1, size);
    CHECK(block != NULL);
    return block;
}

static u8 *
page_copy(const u8 *data)
{
    if (memcmp(data, zero_page, SIM_PAGE_BYTES) == 0) return NULL;
    u8 *copy = sim_alloc(SIM_PAGE_BYTES);
    memcpy(copy, data, SIM_PAGE_BYTES);
    return copy;
}

static const u8 *
page_current(const struct sim_page *page)
{
    const u8 *data = page->newest != NULL ? page->newest->data : page->durable;
    return data != NULL ? data : zero_page;
}

static void
version_free(struct sim_version *version)
{
    list_del(&version->dirty_link);
    free(version->data);
    free(version);
}

/* ---- pages ---- */

static void
pages_reserve(struct sim_inode *inode, u64 size)
{
    u64 needed = align_up(size, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
    if (needed <= inode->page_count) return;
    u64 count = MAX(needed, inode->page_count * 2);
    inode->pages = realloc(inode->pages, count * sizeof(*inode->pages));
    CHECK(inode->pages != NULL);
    memset(inode->pages + inode->page_count, 0,
           (count - inode->page_count) * sizeof(*inode->pages));
    inode->page_count = count;
}

static void
page_push(struct sim_inode *inode, u64 page, const u8 *data)
{
    struct sim_version *version = sim_alloc(sizeof(*version));
    version->order = ++inode->disk->order;
    version->page = page;
    version->data = page_copy(data);
    version->older = inode->pages[page].newest;
    inode->pages[page].newest = version;
    list_push_back(&inode->dirty, &version->dirty_link);
}

/* version, one of the page's, reaches the platter. */
static void
page_make_durable(struct sim_page *page, struct sim_version *version)
{
    struct sim_version **at = &page->newest;
    while (*at != version)
        at = &(*at)->older;
    *at = NULL;
    free(page->durable);
    page->durable = version->data;
    version->data = NULL;
    while (version != NULL) {
        struct sim_version *older = version->older;
        version_free(version);
        version = older;
    }
}

static void
page_drop_versions(struct sim_page *page)
{
    while (page->newest != NULL) {
        struct sim_version *older = page->newest->older;
        version_free(page->newest);
        page->newest = older;
    }
}

/* ---- inodes ---- */

struct sim_inode *
sim_inode_new(struct sim_disk *disk)
{
    struct sim_inode *inode = sim_alloc(sizeof(*inode));
    inode->disk = disk;
    list_init(&inode->dirty);
    list_init(&inode->writes);
    list_push_back(&disk->inodes, &inode->link);
    return inode;
}

static u64
inode_allocated(const struct sim_inode *inode)
{
    u64 count = 0;
    for (u64 i = 0; i < inode->page_count; i++)
        count += inode->pages[i].allocated;
    return count;
}

void
sim_inode_ref(struct sim_inode *inode)
{
    if (inode != NULL) inode->ref_count++;
}

void
sim_inode_unref(struct sim_inode *inode)
{
    if (inode == NULL) return;
    CHECK(inode->ref_count > 0);
    if (--inode->ref_count > 0) return;
    for (u64 i = 0; i < inode->page_count; i++) {
        page_drop_versions(&inode->pages[i]);
        free(inode->pages[i].durable);
    }
    CHECK(list_empty(&inode->writes));
    list_del(&inode->link);
    free(inode->pages);
    free(inode);
}

/* Counted in the disk's use while it has a current name or is open. */
void
sim_inode_use(struct sim_inode *inode)
{
    if (inode == NULL) return;
    if (inode->use_count++ == 0) inode->disk->used_pages += inode_allocated(inode);
}

void
sim_inode_unuse(struct sim_inode *inode)
{
    if (inode == NULL) return;
    CHECK(inode->use_count > 0);
    if (--inode->use_count == 0) inode->disk->used_pages -= inode_allocated(inode);
}

/* Gives every page of [offset, end) its place on the disk, or none. */
static status
inode_reserve(struct sim_inode *inode, u64 offset, u64 end)
{
    struct sim_disk *disk = inode->disk;
    if (end > (u64)1 << 44) return ST_NO_SPACE;
    pages_reserve(inode, end);
    u64 first = offset / SIM_PAGE_BYTES;
    u64 last = align_up(end, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
    u64 missing = 0;
    for (u64 i = first; i < last; i++)
        missing += !inode->pages[i].allocated;
    u64 capacity = disk->options.capacity_bytes / SIM_PAGE_BYTES;
    if (missing > 0 && disk->used_pages + missing > capacity) return ST_NO_SPACE;
    for (u64 i = first; i < last; i++)
        inode->pages[i].allocated = true;
    disk->used_pages += missing;
    return ST_OK;
}

/* ---- reading and writing ---- */

status
sim_inode_read(const struct sim_inode *inode, void *buffer, u32 size, u64 offset)
{
    if (offset > inode->size || size > inode->size - offset) return ST_END;
    u8 *target = buffer;
    for (u64 done = 0; done < size; done += SIM_PAGE_BYTES) {
        u64 i = (offset + done) / SIM_PAGE_BYTES;
        const u8 *data = i < inode->page_count ? page_current(&inode->pages[i]) : zero_page;
        memcpy(target + done, data, SIM_PAGE_BYTES);
    }
    return ST_OK;
}

status
sim_inode_write_begin(struct sim_inode *inode, struct sim_write *write, const void *buffer,
                      u32 size, u64 offset)
{
    CHECK(size > 0 && size % SIM_PAGE_BYTES == 0 && offset % SIM_PAGE_BYTES == 0);
    list_for_each (pos, &inode->writes) {
        const struct sim_write *other = list_entry(pos, struct sim_write, link);
        /* Two writes under way to one place: which one wins is anybody's guess. */
        CHECK(other->offset + other->size <= offset || offset + size <= other->offset);
    }
    status st = inode_reserve(inode, offset, offset + size);
    if (!ok(st)) return st;
    *write = (struct sim_write){.inode = inode, .buffer = buffer, .offset = offset, .size = size};
    /* The hardware reads the buffer at a time of its own; a buffer that is changed or reused
     * before the end shows by one or the other. */
    if (prng_chance(&inode->disk->prng, 1, 2)) {
        write->copy = sim_alloc(size);
        memcpy(write->copy, buffer, size);
    }
    list_push_back(&inode->writes, &write->link);
    sim_inode_ref(inode);
    return ST_OK;
}

static void
write_close(struct sim_write *write)
{
    struct sim_inode *inode = write->inode;
    list_del(&write->link);
    free(write->copy);
    write->copy = NULL;
    write->inode = NULL;
    sim_inode_unref(inode);
}

void
sim_inode_write_end(struct sim_write *write, bool durable)
{
    struct sim_inode *inode = write->inode;
    const u8 *data = write->copy != NULL ? write->copy : write->buffer;
    pages_reserve(inode, write->offset + write->size); /* a truncate may have come between */
    for (u64 done = 0; done < write->size; done += SIM_PAGE_BYTES) {
        u64 page = (write->offset + done) / SIM_PAGE_BYTES;
        page_push(inode, page, data + done);
        if (durable) page_make_durable(&inode->pages[page], inode->pages[page].newest);
    }
    u64 end = write->offset + write->size;
    if (end > inode->size) inode->size = end;
    if (durable) {
        inode->durable_size = MAX(inode->durable_size, end);
        inode->durable_order = inode->disk->order;
    }
    write_close(write);
}

/* A page that holds for each sector the new data or what was there. */
static void
page_mix(struct sim_disk *disk, const u8 *new, const u8 *old, u8 *mixed)
{
    for (u32 s = 0; s < SIM_PAGE_BYTES; s += SIM_SECTOR_BYTES)
        memcpy(mixed + s, (prng_chance(&disk->prng, 1, 2) ? new : old) + s, SIM_SECTOR_BYTES);
}

static void
write_apply_some(struct sim_write *write)
{
    struct sim_inode *inode = write->inode;
    const u8 *data = write->copy != NULL ? write->copy : write->buffer;
    u8 mixed[SIM_PAGE_BYTES];
    pages_reserve(inode, write->offset + write->size);
    for (u64 done = 0; done < write->size; done += SIM_PAGE_BYTES) {
        u64 page = (write->offset + done) / SIM_PAGE_BYTES;
        page_mix(inode->disk, data + done, page_current(&inode->pages[page]), mixed);
        page_push(inode, page, mixed);
    }
}

void
sim_inode_write_fail(struct sim_write *write, bool durable)
{
    struct sim_inode *inode = write->inode;
    if (!durable || prng_chance(&inode->disk->prng, 1, 2)) {
        write_apply_some(write);
        write_close(write);
        return;
    }
    u64 before = inode->disk->order;
    sim_inode_write_end(write, false);
    list_for_each_safe (pos, &inode->dirty) {
        struct sim_version *version = list_entry(pos, struct sim_version, dirty_link);
        if (version->order > before) list_del(&version->dirty_link); /* D2 */
    }
}

struct sim_sync
sim_inode_sync_begin(const struct sim_inode *inode)
{
    return (struct sim_sync){.order = inode->disk->order, .size = inode->size};
}

void
sim_inode_sync_end(struct sim_inode *inode, struct sim_sync sync)
{
    while (!list_empty(&inode->dirty)) {
        struct sim_version *version =
            list_entry(list_first(&inode->dirty), struct sim_version, dirty_link);
        if (version->order > sync.order) break; /* D2 */
        page_make_durable(&inode->pages[version->page], version);
    }
    /* A durable write that ended after this sync began may have made it longer. */
    bool later = inode->durable_order > sync.order;
    inode->durable_size = later ? MAX(inode->durable_size, sync.size) : sync.size;
}

void
sim_inode_sync_fail(struct sim_inode *inode, struct sim_sync sync)
{
    list_for_each_safe (pos, &inode->dirty) {
        struct sim_version *version = list_entry(pos, struct sim_version, dirty_link);
        if (version->order > sync.order) break;
        list_del(&version->dirty_link);
    }
}

u64
sim_inode_size(const struct sim_inode *inode)
{
    return inode->size;
}

status
sim_inode_truncate(struct sim_inode *inode, u64 size)
{
    if (size > (u64)1 << 44) return ST_NO_SPACE;
    u64 kept = align_up(size, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
    if (size % SIM_PAGE_BYTES != 0 && size < inode->size && kept <= inode->page_count) {
        u8 part[SIM_PAGE_BYTES];
        memcpy(part, page_current(&inode->pages[kept - 1]), SIM_PAGE_BYTES);
        memset(part + size % SIM_PAGE_BYTES, 0, SIM_PAGE_BYTES - size % SIM_PAGE_BYTES);
        page_push(inode, kept - 1, part);
    }
    for (u64 i = kept; i < inode->page_count; i++) {
        struct sim_page *page = &inode->pages[i];
        if (page_current(page) != zero_page) page_push(inode, i, zero_page);
        if (page->allocated) inode->disk->used_pages--;
        page->allocated = false;
    }
    inode->size = size;
    return ST_OK;
}

status
sim_inode_allocate(struct sim_inode *inode, u64 size)
{
    status st = inode_reserve(inode, 0, size);
    if (!ok(st)) return st;
    if (size > inode->size) inode->size = size;
    return ST_OK;
}

/* ---- losing power ---- */

enum crash_mode { CRASH_OLD, CRASH_NEW, CRASH_PAGES, CRASH_SECTORS, CRASH_MODE_COUNT };

/* The depth-th candidate: 0 is the durable content, 1 the oldest version. */
static const u8 *
page_candidate(const struct sim_page *page, u32 version_count, u32 depth)
{
    const u8 *data = page->durable;
    if (depth > 0) {
        const struct sim_version *version = page->newest;
        for (u32 i = version_count; i > depth; i--)
            version = version->older;
        data = version->data;
    }
    return data != NULL ? data : zero_page;
}

static void
page_crash(struct sim_disk *disk, struct sim_page *page, enum crash_mode mode)
{
    u32 version_count = 0;
    for (const struct sim_version *v = page->newest; v != NULL; v = v->older)
        version_count++;
    if (version_count == 0) return;

    u8 result[SIM_PAGE_BYTES];
    u32 page_depth = (u32)prng_below(&disk->prng, version_count + 1);
    for (u32 s = 0; s < SIM_PAGE_BYTES; s += SIM_SECTOR_BYTES) {
        u32 depth = 0;
        switch (mode) {
        case CRASH_OLD:
        case CRASH_MODE_COUNT:
            depth = 0;
            break;
        case CRASH_NEW:
            depth = version_count;
            break;
        case CRASH_PAGES:
            depth = page_depth;
            break;
        case CRASH_SECTORS:
            depth = (u32)prng_below(&disk->prng, version_count + 1);
            break;
        }
        memcpy(result + s, page_candidate(page, version_count, depth) + s, SIM_SECTOR_BYTES);
        if (prng_chance(&disk->prng, disk->options.torn_ppm, 1000000)) {
            for (u32 i = 0; i < SIM_SECTOR_BYTES; i += 8)
                store_u64(result + s + i, prng_u64(&disk->prng));
        }
    }
    page_drop_versions(page);
    free(page->durable);
    page->durable = page_copy(result);
}

static void
inode_crash(struct sim_disk *disk, struct sim_inode *inode)
{
    enum crash_mode mode = (enum crash_mode)prng_below(&disk->prng, CRASH_MODE_COUNT);
    for (u64 i = 0; i < inode->page_count; i++)
        page_crash(disk, &inode->pages[i], mode);
    CHECK(list_empty(&inode->dirty));

    /* The size: what was durable, the last one, or one on the way between. */
    u64 size = inode->durable_size;
    if (inode->size != inode->durable_size) {
        switch (prng_below(&disk->prng, 3)) {
        case 0:
            break;
        case 1:
            size = inode->size;
            break;
        default:
            size = prng_range(&disk->prng, MIN(inode->durable_size, inode->size),
                              MAX(inode->durable_size, inode->size));
            size = align_down(size, SIM_PAGE_BYTES);
            break;
        }
        /* What lies beyond a lost extension is gone; a later one shows zeros. */
        for (u64 i = align_up(size, SIM_PAGE_BYTES) / SIM_PAGE_BYTES; i < inode->page_count; i++) {
            free(inode->pages[i].durable);
            inode->pages[i].durable = NULL;
            inode->pages[i].allocated = false;
        }
    }
    inode->size = inode->durable_size = size;
}

static void
disk_forget_process(struct sim_disk *disk)
{
    list_for_each_safe (pos, &disk->inodes) {
        struct sim_inode *inode = list_entry(pos, struct sim_inode, link);
        u32 openings = inode->open_count;
        inode->open_count = 0;
        for (u32 i = 0; i < openings; i++) {
            sim_inode_unuse(inode);
            sim_inode_unref(inode);
        }
    }
    sim_names_unlock_all(disk);
}

void
sim_disk_process_ended(struct sim_disk *disk)
{
    disk_forget_process(disk);
}

void
sim_disk_crash(struct sim_disk *disk)
{
    list_for_each (pos, &disk->inodes) {
        struct sim_inode *inode = list_entry(pos, struct sim_inode, link);
        while (!list_empty(&inode->writes)) {
            struct sim_write *write =
                list_entry(list_first(&inode->writes), struct sim_write, link);
            write_apply_some(write);
            if (prng_chance(&disk->prng, 1, 2) && write->offset + write->size > inode->size)
                inode->size = write->offset + write->size;
            write_close(write); /* its opening still holds the inode */
        }
    }
    disk_forget_process(disk);
    if (disk->options.crash_keeps_all) return;
    sim_names_crash(disk);
    disk->used_pages = 0;
    list_for_each (pos, &disk->inodes) {
        struct sim_inode *inode = list_entry(pos, struct sim_inode, link);
        inode_crash(disk, inode);
        if (inode->use_count > 0) disk->used_pages += inode_allocated(inode);
    }
}

void
sim_disk_crash_keeps_all_set(struct sim_disk *disk, bool keeps_all)
{
    disk->options.crash_keeps_all = keeps_all;
}

/* ---- making ---- */

struct sim_disk *
sim_disk_new(const struct sim_disk_options *options, u64 seed)
{
    struct sim_disk *disk = sim_alloc(sizeof(*disk));
    disk->options = *options;
    prng_init(&disk->prng, seed);
    list_init(&disk->inodes);
    list_init(&disk->locks);
    sim_names_init(disk);
    return disk;
}

void
sim_disk_free(struct sim_disk *disk)
{
    disk_forget_process(disk);
    sim_names_deinit(disk);
    CHECK(list_empty(&disk->inodes));
    free(disk);
}

/* ---- from outside ---- */

void
sim_disk_capacity_set(struct sim_disk *disk, u64 bytes)
{
    disk->options.capacity_bytes = bytes;
}

void
sim_disk_space(const struct sim_disk *disk, u64 *free_out, u64 *total_out)
{
    u64 used = disk->used_pages * SIM_PAGE_BYTES;
    u64 total = disk->options.capacity_bytes;
    *free_out = total > used ? total - used : 0;
    *total_out = total;
}

static void
stored_flip(u8 **data, u64 at, u8 mask)
{
    if (*data == NULL) *data = sim_alloc(SIM_PAGE_BYTES);
    (*data)[at] ^= mask;
}

status
sim_disk_flip(struct sim_disk *disk, const char *path, u64 offset, u8 mask)
{
    struct sim_inode *inode = sim_names_find(disk, path);
    if (inode == NULL) return ST_NOT_FOUND;
    if (offset >= inode->size) return ST_END;
    pages_reserve(inode, offset + 1);
    struct sim_page *page = &inode->pages[offset / SIM_PAGE_BYTES];
    stored_flip(&page->durable, offset % SIM_PAGE_BYTES, mask);
    for (struct sim_version *v = page->newest; v != NULL; v = v->older)
        stored_flip(&v->data, offset % SIM_PAGE_BYTES, mask);
    return ST_OK;
}

status
sim_disk_file_size(const struct sim_disk *disk, const char *path, u64 *size_out)
{
    const struct sim_inode *inode = sim_names_find(disk, path);
    if (inode == NULL) return ST_NOT_FOUND;
    *size_out = inode->size;
    return ST_OK;
}
