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
 * Most of what is written is zeros, to new files that are to be written in place later. Where they
 * cover a whole piece that has nothing, one version, a fill, stands for those of all its pages
 * until something else than a read or a sync meets one of them.
 *
 * A crash picks for every sector of every page with versions one of them or the durable one. To
 * give runs a character, each file first draws how (enum crash_mode). The size of the file is drawn
 * apart from its content.
 *
 * Invariants
 *   D1  Versions of a page are in the order in which their writes ended.
 *   D2  inode->dirty holds exactly the versions that the next sync covers, in that order. Versions
 *       outside it (after a failed sync or durable write) are read, but never become durable by a
 *       sync.
 *   D3  disk->used_pages counts the allocated pages of files that have a current name or are open.
 *   D4  A piece with a fill has no pages, and its fill is in inode->dirty.
 */
#include "io/sim_disk_internal.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "io/file.h"
#include "io/sim_internal.h"

#define SLAB_BYTES MIB(2)

static const u8 zero_page[SIM_PAGE_BYTES];

void *
sim_alloc(size_t size)
{
    void *block = calloc(1, size);
    CHECK(block != NULL);
    return block;
}

/* Blocks of one size that wait for their next use: what there are most of is taken and given back
 * all the time. New ones are cut from large pages, for to get small ones from the kernel is most of
 * what a short run costs. */
struct free_block {
    struct free_block *next;
};
static struct free_block *free_contents[SIM_PAGE_SECTORS + 1]; /* by sectors */
static struct free_block *free_versions, *free_pieces;
static u8 *slab; /* what is left of it */
static size_t slab_left;

static void *
slab_cut(size_t size)
{
    size = align_up(size, 64);
    if (slab_left < size) {
        slab = aligned_alloc(SLAB_BYTES, SLAB_BYTES);
        CHECK(slab != NULL);
        (void)madvise(slab, SLAB_BYTES, MADV_HUGEPAGE); /* without, it is slower */
        slab_left = SLAB_BYTES;
    }
    void *block = slab;
    slab += size;
    slab_left -= size;
    return block;
}

static void *
block_alloc(struct free_block **blocks, size_t size)
{
    struct free_block *block = *blocks;
    if (block == NULL) return slab_cut(size);
    *blocks = block->next;
    return block;
}

static void
block_free(struct free_block **blocks, void *data)
{
    struct free_block *block = data;
    block->next = *blocks;
    *blocks = block;
}

/* ---- contents ---- */

static size_t
content_bytes(u32 sectors)
{
    return sizeof(struct sim_content) + sectors * SIM_SECTOR_BYTES;
}

static struct sim_content *
content_alloc(u32 sectors)
{
    struct sim_content *content = block_alloc(&free_contents[sectors], content_bytes(sectors));
    content->sectors = sectors;
    return content;
}

static void
content_free(struct sim_content *content)
{
    if (content != NULL) block_free(&free_contents[content->sectors], content);
}

static bool
sector_zero(const u8 *data)
{
    u64 any = 0, word;
    for (u32 i = 0; i < SIM_SECTOR_BYTES; i += sizeof(word)) {
        memcpy(&word, data + i, sizeof(word));
        any |= word;
    }
    return any == 0;
}

static struct sim_content *
content_new(const u8 *data)
{
    u32 sectors = data == zero_page ? 0 : SIM_PAGE_SECTORS;
    while (sectors > 0 && sector_zero(data + (sectors - 1) * SIM_SECTOR_BYTES))
        sectors--;
    if (sectors == 0) return NULL;
    struct sim_content *content = content_alloc(sectors);
    memcpy(content->data, data, sectors * SIM_SECTOR_BYTES);
    return content;
}

/* size bytes of it, which all lie in the page. */
static void
content_read(const struct sim_content *content, u64 skip, u8 *target, u64 size)
{
    u64 stored = content != NULL ? content->sectors * SIM_SECTOR_BYTES : 0;
    u64 part = skip < stored ? MIN(size, stored - skip) : 0;
    if (part > 0) memcpy(target, content->data + skip, part);
    memset(target + part, 0, size - part);
}

static const u8 *
content_sector(const struct sim_content *content, u32 sector)
{
    if (content == NULL || sector >= content->sectors) return zero_page;
    return content->data + sector * SIM_SECTOR_BYTES;
}

u8 *
sim_content_whole(struct sim_content **content)
{
    if (*content == NULL || (*content)->sectors < SIM_PAGE_SECTORS) {
        struct sim_content *whole = content_alloc(SIM_PAGE_SECTORS);
        content_read(*content, 0, whole->data, SIM_PAGE_BYTES);
        content_free(*content);
        *content = whole;
    }
    return (*content)->data;
}

const struct sim_content *
sim_page_current(const struct sim_page *page)
{
    if (page == NULL) return NULL;
    return page->newest != NULL ? page->newest->content : page->durable;
}

const u8 *
sim_page_bytes(const struct sim_page *page, u8 buffer[static SIM_PAGE_BYTES])
{
    const struct sim_content *content = sim_page_current(page);
    if (content == NULL) return zero_page;
    if (content->sectors == SIM_PAGE_SECTORS) return content->data;
    content_read(content, 0, buffer, SIM_PAGE_BYTES);
    return buffer;
}

u8
sim_page_spoiled(const struct sim_page *page)
{
    if (page == NULL) return 0;
    return page->newest != NULL ? page->newest->spoiled : page->durable_spoiled;
}

static void
version_free(struct sim_version *version)
{
    list_del(&version->dirty_link);
    content_free(version->content);
    block_free(&free_versions, version);
}

/* ---- pages ---- */

static void *
array_grow(void *array, u64 count, u64 more, size_t size)
{
    u8 *grown = realloc(array, more * size);
    CHECK(grown != NULL);
    memset(grown + count * size, 0, (more - count) * size);
    return grown;
}

void
sim_pages_reserve(struct sim_inode *inode, u64 size)
{
    u64 needed = align_up(size, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
    if (needed <= inode->page_count) return;
    u64 before = sim_piece_count(inode);
    inode->page_count = MAX(needed, inode->page_count * 2);
    u64 after = sim_piece_count(inode);
    if (after == before) return;
    inode->pieces = array_grow(inode->pieces, before, after, sizeof(*inode->pieces));
    inode->fills = array_grow(inode->fills, before, after, sizeof(*inode->fills));
    inode->allocated = array_grow(inode->allocated, before, after, sizeof(*inode->allocated));
}

static struct sim_version *
version_new(u64 page, u64 order)
{
    struct sim_version *version = block_alloc(&free_versions, sizeof(*version));
    *version = (struct sim_version){.page = page, .order = order};
    return version;
}

/* The piece's pages get the versions that its fill stands for, where it is among the dirty ones. */
static void
fill_part(struct sim_inode *inode, struct sim_piece *piece, u64 index)
{
    struct sim_version *fill = inode->fills[index];
    inode->fills[index] = NULL;
    for (u32 i = 0; i < SIM_PIECE_PAGES; i++) {
        struct sim_version *version = version_new(fill->page + i, fill->order + i);
        list_push_back(&fill->dirty_link, &version->dirty_link);
        piece->pages[i].newest = version;
    }
    version_free(fill);
}

static struct sim_piece *
piece_make(struct sim_inode *inode, u64 index)
{
    struct sim_piece **piece = &inode->pieces[index];
    if (*piece != NULL) return *piece;
    *piece = block_alloc(&free_pieces, sizeof(**piece));
    **piece = (struct sim_piece){0};
    if (inode->fills[index] != NULL) fill_part(inode, *piece, index);
    return *piece;
}

/* Before versions are looked at one by one. */
static void
inode_fills_part(struct sim_inode *inode)
{
    for (u64 i = 0; i < sim_piece_count(inode); i++)
        if (inode->fills[i] != NULL) (void)piece_make(inode, i);
}

/* Zeros are written to all pages of a piece. False: to these one by one. */
static bool
fill_push(struct sim_inode *inode, u64 page)
{
    u64 index = page / SIM_PIECE_PAGES;
    if (inode->pieces[index] != NULL || inode->fills[index] != NULL) return false;
    struct sim_version *fill = version_new(page, inode->disk->order + 1);
    fill->fill = true;
    inode->disk->order += SIM_PIECE_PAGES;
    inode->fills[index] = fill;
    list_push_back(&inode->dirty, &fill->dirty_link);
    return true;
}

/* Its zeros reach the platter, which has nothing else. */
static void
fill_make_durable(struct sim_inode *inode, struct sim_version *fill)
{
    inode->fills[fill->page / SIM_PIECE_PAGES] = NULL;
    version_free(fill);
}

struct sim_page *
sim_page_make(struct sim_inode *inode, u64 page)
{
    CHECK(page < inode->page_count);
    return &piece_make(inode, page / SIM_PIECE_PAGES)->pages[page % SIM_PIECE_PAGES];
}

/* The first page at or behind this one that may have something; page_count: none has. */
static u64
page_next(const struct sim_inode *inode, u64 page)
{
    while (page < inode->page_count && sim_page_find(inode, page) == NULL)
        page = align_down(page, SIM_PIECE_PAGES) + SIM_PIECE_PAGES;
    return MIN(page, inode->page_count);
}

/* Counts those of [first, last) that have no place; take: they get it. */
static u64
pages_missing(struct sim_inode *inode, u64 first, u64 last, bool take)
{
    u64 missing = 0;
    for (u64 i = first; i < last; i = align_down(i, SIM_PIECE_PAGES) + SIM_PIECE_PAGES) {
        u64 *bits = &inode->allocated[i / SIM_PIECE_PAGES];
        u64 end = MIN(last, align_down(i, SIM_PIECE_PAGES) + SIM_PIECE_PAGES);
        u64 mask = UINT64_MAX >> (SIM_PIECE_PAGES - (end - i)) << i % SIM_PIECE_PAGES;
        missing += (u64)__builtin_popcountll(mask & ~*bits);
        if (take) *bits |= mask;
    }
    return missing;
}

/* Those from first on give their places back. Returns how many. */
static u64
pages_give_back(struct sim_inode *inode, u64 first)
{
    u64 count = 0;
    for (u64 i = first; i < inode->page_count;
         i = align_down(i, SIM_PIECE_PAGES) + SIM_PIECE_PAGES) {
        u64 *bits = &inode->allocated[i / SIM_PIECE_PAGES];
        u64 mask = UINT64_MAX << i % SIM_PIECE_PAGES;
        count += (u64)__builtin_popcountll(mask & *bits);
        *bits &= ~mask;
    }
    return count;
}

struct sim_version *
sim_page_push(struct sim_inode *inode, u64 page, const u8 *data)
{
    struct sim_version *version = version_new(page, ++inode->disk->order);
    version->content = content_new(data);
    struct sim_page *of = sim_page_make(inode, page);
    version->older = of->newest;
    of->newest = version;
    list_push_back(&inode->dirty, &version->dirty_link);
    return version;
}

/* version, one of the page's, reaches the platter. */
void
sim_page_make_durable(struct sim_page *page, struct sim_version *version)
{
    struct sim_version **at = &page->newest;
    while (*at != version)
        at = &(*at)->older;
    *at = NULL;
    content_free(page->durable);
    page->durable = version->content;
    page->durable_spoiled = version->spoiled;
    version->content = NULL;
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
    inode->number = ++disk->inode_last;
    list_init(&inode->dirty);
    list_init(&inode->latent);
    list_init(&inode->writes);
    list_push_back(&disk->inodes, &inode->link);
    return inode;
}

static u64
inode_allocated(const struct sim_inode *inode)
{
    u64 count = 0;
    for (u64 i = 0; i < sim_piece_count(inode); i++)
        count += (u64)__builtin_popcountll(inode->allocated[i]);
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
    for (u64 i = page_next(inode, 0); i < inode->page_count; i = page_next(inode, i + 1)) {
        struct sim_page *page = sim_page_find(inode, i);
        page_drop_versions(page);
        content_free(page->durable);
    }
    for (u64 i = 0; i < sim_piece_count(inode); i++) {
        if (inode->pieces[i] != NULL) block_free(&free_pieces, inode->pieces[i]);
        if (inode->fills[i] != NULL) version_free(inode->fills[i]);
    }
    CHECK(list_empty(&inode->writes));
    sim_latent_clear(inode, 0, UINT64_MAX);
    list_del(&inode->link);
    free(inode->pieces);
    free(inode->fills);
    free(inode->allocated);
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
    sim_pages_reserve(inode, end);
    u64 first = offset / SIM_PAGE_BYTES;
    u64 last = align_up(end, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
    u64 missing = pages_missing(inode, first, last, false);
    u64 capacity = disk->capacity_bytes / SIM_PAGE_BYTES;
    if (missing > 0 && disk->used_pages + missing > capacity) return ST_NO_SPACE;
    disk->used_pages += pages_missing(inode, first, last, true);
    return ST_OK;
}

/* ---- reading and writing ---- */

/* What no sync will make durable (D2) is not marked as dirty in the cache either: it may go at any
 * moment, and then the platter shows. Nobody can tell when it went but by a read, so each read
 * draws anew, and the end of a process, too. */
static void
page_evict_maybe(struct sim_disk *disk, struct sim_page *page)
{
    if (page == NULL || page->newest == NULL || list_linked(&page->newest->dirty_link)) return;
    if (!prng_chance(&disk->prng, disk->options.evict_chance, 64)) return;
    while (page->newest != NULL && !list_linked(&page->newest->dirty_link)) {
        struct sim_version *older = page->newest->older;
        version_free(page->newest);
        page->newest = older;
    }
}

status
sim_inode_read(struct sim_inode *inode, void *buffer, u32 size, u64 offset)
{
    if (offset > inode->size || size > inode->size - offset) return ST_END;
    u8 *target = buffer;
    for (u64 at = offset, end = offset + size; at < end;) {
        u64 skip = at % SIM_PAGE_BYTES, part = MIN(SIM_PAGE_BYTES - skip, end - at);
        struct sim_page *page = sim_page_find(inode, at / SIM_PAGE_BYTES);
        if (inode->disk->failed) page_evict_maybe(inode->disk, page);
        content_read(sim_page_current(page), skip, target, part);
        target += part;
        at += part;
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
    if (buffer != NULL && prng_chance(&inode->disk->prng, 1, 2)) {
        write->copy = malloc(size);
        CHECK(write->copy != NULL);
        memcpy(write->copy, buffer, size);
    }
    list_push_back(&inode->writes, &write->link);
    inode->write_count++;
    sim_inode_ref(inode);
    return ST_OK;
}

const u8 *
sim_write_data(const struct sim_write *write, u64 done)
{
    if (write->buffer == NULL) return zero_page;
    return (write->copy != NULL ? write->copy : write->buffer) + done;
}

void
sim_inode_write_outlive(struct sim_write *write, struct sim_write *late)
{
    list_del(&write->link);
    *late = *write;
    list_init(&late->link);
    if (late->copy == NULL && late->buffer != NULL) {
        late->copy = malloc(late->size);
        CHECK(late->copy != NULL);
        memcpy(late->copy, late->buffer, late->size);
    }
    *write = (struct sim_write){0};
}

void
sim_inode_write_close(struct sim_write *write, bool extend, bool durable)
{
    struct sim_inode *inode = write->inode;
    u64 end = write->offset + write->size;
    if (extend) inode->size = MAX(inode->size, end);
    if (extend && durable) {
        inode->durable_size = MAX(inode->durable_size, end);
        inode->durable_order = inode->disk->order;
    }
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
    sim_pages_reserve(inode, write->offset + write->size); /* a truncate may have come between */
    bool fills = write->buffer == NULL && !durable;
    for (u64 done = 0; done < write->size; done += SIM_PAGE_BYTES) {
        u64 page = (write->offset + done) / SIM_PAGE_BYTES;
        if (fills && page % SIM_PIECE_PAGES == 0 &&
            write->size - done >= SIM_PIECE_PAGES * SIM_PAGE_BYTES && fill_push(inode, page)) {
            done += (SIM_PIECE_PAGES - 1) * SIM_PAGE_BYTES;
            continue;
        }
        struct sim_version *version = sim_page_push(inode, page, sim_write_data(write, done));
        if (durable) sim_page_make_durable(sim_page_find(inode, page), version);
    }
    sim_latent_clear(inode, write->offset, write->size);
    sim_inode_write_close(write, true, durable);
}

void
sim_inode_write_cut(struct sim_write *write, u32 size)
{
    CHECK(size > 0 && size % SIM_PAGE_BYTES == 0 && size <= write->size);
    write->size = size;
}

/* A page that holds for each sector the new data or what was there. Returns the sectors that were.
 */
static u8
page_mix(struct sim_disk *disk, const u8 *new, const u8 *old, u8 *mixed)
{
    u8 kept = 0;
    for (u32 s = 0; s < SIM_PAGE_SECTORS; s++) {
        bool is_new = prng_chance(&disk->prng, 1, 2);
        memcpy(mixed + s * SIM_SECTOR_BYTES, (is_new ? new : old) + s * SIM_SECTOR_BYTES,
               SIM_SECTOR_BYTES);
        if (!is_new) kept |= (u8)(1u << s);
    }
    return kept;
}

static void
write_apply_some(struct sim_write *write)
{
    struct sim_inode *inode = write->inode;
    u8 mixed[SIM_PAGE_BYTES], before[SIM_PAGE_BYTES];
    sim_pages_reserve(inode, write->offset + write->size);
    for (u64 done = 0; done < write->size; done += SIM_PAGE_BYTES) {
        u64 page = (write->offset + done) / SIM_PAGE_BYTES;
        const struct sim_page *old = sim_page_find(inode, page);
        u8 kept =
            page_mix(inode->disk, sim_write_data(write, done), sim_page_bytes(old, before), mixed);
        u8 spoiled = kept & sim_page_spoiled(old);
        sim_page_push(inode, page, mixed)->spoiled = spoiled;
    }
}

void
sim_inode_write_fail(struct sim_write *write, bool durable)
{
    struct sim_inode *inode = write->inode;
    if (!durable || prng_chance(&inode->disk->prng, 1, 2)) {
        write_apply_some(write);
        sim_inode_write_close(write, false, false);
        return;
    }
    u64 before = inode->disk->order;
    inode->disk->failed = true;
    sim_inode_write_end(write, false);
    inode_fills_part(inode);
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
        if (version->fill)
            fill_make_durable(inode, version);
        else
            sim_page_make_durable(sim_page_find(inode, version->page), version);
    }
    /* A durable write that ended after this sync began may have made it longer. */
    bool later = inode->durable_order > sync.order;
    inode->durable_size = later ? MAX(inode->durable_size, sync.size) : sync.size;
}

void
sim_inode_sync_fail(struct sim_inode *inode, struct sim_sync sync)
{
    inode->disk->failed = true;
    inode_fills_part(inode);
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

u64
sim_inode_write_count(const struct sim_inode *inode)
{
    return inode->write_count;
}

u64
sim_inode_number(const struct sim_inode *inode)
{
    return inode->number;
}

bool
sim_inode_nameless(const struct sim_inode *inode)
{
    return inode->use_count == inode->open_count;
}

status
sim_inode_truncate(struct sim_inode *inode, u64 size)
{
    if (size > (u64)1 << 44) return ST_NO_SPACE;
    u64 kept = align_up(size, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
    if (size % SIM_PAGE_BYTES != 0 && size < inode->size && kept <= inode->page_count) {
        u8 part[SIM_PAGE_BYTES];
        content_read(sim_page_current(sim_page_find(inode, kept - 1)), 0, part, SIM_PAGE_BYTES);
        memset(part + size % SIM_PAGE_BYTES, 0, SIM_PAGE_BYTES - size % SIM_PAGE_BYTES);
        u8 spoiled = sim_page_spoiled(sim_page_find(inode, kept - 1));
        u64 left = align_up(size % SIM_PAGE_BYTES, SIM_SECTOR_BYTES) / SIM_SECTOR_BYTES;
        sim_page_push(inode, kept - 1, part)->spoiled = spoiled & (u8)((1u << left) - 1);
    }
    for (u64 i = page_next(inode, kept); i < inode->page_count; i = page_next(inode, i + 1))
        if (sim_page_current(sim_page_find(inode, i)) != NULL) sim_page_push(inode, i, zero_page);
    inode->disk->used_pages -= pages_give_back(inode, kept);
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

enum crash_mode {
    CRASH_OLD,
    CRASH_NEW,
    CRASH_PAGES,   /* page by page */
    CRASH_SECTORS, /* sector by sector */
    CRASH_PREFIX,  /* the first sectors of a page are new, the rest is old */
    CRASH_ORDER,   /* what was written before one moment is there */
    CRASH_MODE_COUNT
};

/* How one file comes out of a power cut. */
struct crash {
    struct sim_disk *disk;
    struct sim_inode *inode;
    enum crash_mode mode;
    u64 cut; /* CRASH_ORDER: the moment */
    struct prng torn;
    bool torn_asked, torn_happens;
};

/* The depth-th candidate: 0 is the durable content, 1 the oldest version. */
static const struct sim_content *
page_candidate(const struct sim_page *page, u32 version_count, u32 depth, u8 *spoiled_out)
{
    const struct sim_content *content = page->durable;
    *spoiled_out = page->durable_spoiled;
    if (depth > 0) {
        const struct sim_version *version = page->newest;
        for (u32 i = version_count; i > depth; i--)
            version = version->older;
        content = version->content;
        *spoiled_out = version->spoiled;
    }
    return content;
}

/* Whether the sector is garbage. All torn sectors of a file in a crash are one fault. */
static bool
sector_torn(struct crash *crash)
{
    struct sim_disk *disk = crash->disk;
    if (!sim_ppm(&crash->torn, disk->options.torn_ppm)) return false;
    if (!crash->torn_asked) {
        crash->torn_asked = true;
        crash->torn_happens =
            disk->sim == NULL || sim_fault_take(disk->sim, SIM_FAULT_TORN, "%s %s", disk->host,
                                                sim_inode_path(crash->inode));
    }
    return crash->torn_happens;
}

static u32
sector_depth(struct crash *crash, u32 version_count, u32 page_depth, bool in_prefix, u32 cut_depth)
{
    switch (crash->mode) {
    case CRASH_OLD:
    case CRASH_MODE_COUNT:
        return 0;
    case CRASH_NEW:
        return version_count;
    case CRASH_PAGES:
        return page_depth;
    case CRASH_SECTORS:
        return (u32)prng_below(&crash->disk->prng, version_count + 1);
    case CRASH_PREFIX:
        return in_prefix ? version_count : page_depth == version_count ? 0 : page_depth;
    case CRASH_ORDER:
        return cut_depth;
    }
    CHECK(false);
    return 0;
}

/* What only the cache has is gone. */
static void
page_drop_phantoms(struct sim_page *page)
{
    for (struct sim_version **at = &page->newest; *at != NULL;) {
        struct sim_version *version = *at;
        if (!version->phantom) {
            at = &version->older;
            continue;
        }
        *at = version->older;
        version_free(version);
    }
}

static void
page_crash(struct crash *crash, struct sim_page *page)
{
    struct sim_disk *disk = crash->disk;
    page_drop_phantoms(page);
    u32 version_count = 0, cut_depth = 0;
    bool astray = false;
    for (const struct sim_version *v = page->newest; v != NULL; v = v->older) {
        version_count++;
        cut_depth += v->order <= crash->cut;
        astray |= v->astray;
    }
    if (version_count == 0) return;

    u8 result[SIM_PAGE_BYTES], result_spoiled = 0;
    u32 page_depth = (u32)prng_below(&disk->prng, version_count + 1);
    u32 prefix = (u32)prng_below(&disk->prng, SIM_PAGE_BYTES / SIM_SECTOR_BYTES + 1);
    for (u32 s = 0; s < SIM_PAGE_BYTES; s += SIM_SECTOR_BYTES) {
        bool in_prefix = s / SIM_SECTOR_BYTES < prefix;
        u32 depth = sector_depth(crash, version_count, page_depth, in_prefix, cut_depth);
        u8 spoiled;
        const struct sim_content *candidate = page_candidate(page, version_count, depth, &spoiled);
        memcpy(result + s, content_sector(candidate, s / SIM_SECTOR_BYTES), SIM_SECTOR_BYTES);
        u8 sector = (u8)(1u << s / SIM_SECTOR_BYTES);
        if (!sector_torn(crash)) {
            result_spoiled |= spoiled & sector;
            continue;
        }
        if (astray) result_spoiled |= sector;
        for (u32 i = 0; i < SIM_SECTOR_BYTES; i += 8)
            store_u64(result + s + i, prng_u64(&crash->torn));
    }
    page_drop_versions(page);
    content_free(page->durable);
    page->durable = content_new(result);
    page->durable_spoiled = result_spoiled;
}

static void
inode_crash(struct sim_disk *disk, struct sim_inode *inode, u64 cut)
{
    struct crash crash = {
        .disk = disk,
        .inode = inode,
        .mode = (enum crash_mode)prng_below(&disk->prng, CRASH_MODE_COUNT),
        .cut = cut,
    };
    prng_init(&crash.torn,
              sim_seed(disk->seed, "torn", (u64)disk->crash_count << 32 | inode->number));
    inode_fills_part(inode);
    for (u64 i = page_next(inode, 0); i < inode->page_count; i = page_next(inode, i + 1))
        page_crash(&crash, sim_page_find(inode, i));
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
        u64 kept = align_up(size, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
        for (u64 i = page_next(inode, kept); i < inode->page_count; i = page_next(inode, i + 1)) {
            struct sim_page *page = sim_page_find(inode, i);
            content_free(page->durable);
            page->durable = NULL;
            page->durable_spoiled = 0;
        }
        (void)pages_give_back(inode, kept);
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
        for (u64 i = page_next(inode, 0); disk->failed && i < inode->page_count;
             i = page_next(inode, i + 1))
            page_evict_maybe(disk, sim_page_find(inode, i));
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
            sim_inode_write_close(write, false, false); /* its opening still holds the inode */
        }
    }
    disk_forget_process(disk);
    if (disk->options.crash_keeps_all) return;
    sim_names_crash(disk);
    disk->crash_count++;
    u64 cut = disk->order - prng_below(&disk->prng, MIN(disk->order, 4096) + 1);
    disk->used_pages = 0;
    list_for_each (pos, &disk->inodes) {
        struct sim_inode *inode = list_entry(pos, struct sim_inode, link);
        inode_crash(disk, inode, cut);
        if (inode->use_count > 0) disk->used_pages += inode_allocated(inode);
    }
}

void
sim_disk_crash_keeps_all_set(struct sim_disk *disk, bool keeps_all)
{
    disk->options.crash_keeps_all = keeps_all;
}

void
sim_disk_faults_end(struct sim_disk *disk)
{
    disk->options.torn_ppm = 0;
    sim_disk_space_give(disk);
    disk->capacity_bytes = MAX(disk->capacity_bytes, disk->options.capacity_bytes);
}

/* ---- making ---- */

struct sim_disk *
sim_disk_new(const struct sim_disk_options *options, u64 seed)
{
    struct sim_disk *disk = sim_alloc(sizeof(*disk));
    disk->options = *options;
    disk->capacity_bytes = options->capacity_bytes;
    prng_init(&disk->prng, seed);
    disk->seed = seed;
    list_init(&disk->inodes);
    list_init(&disk->locks);
    list_init(&disk->damages);
    sim_names_init(disk);
    return disk;
}

void
sim_disk_books_set(struct sim_disk *disk, struct sim *sim, const char *host)
{
    disk->sim = sim;
    disk->host = host;
}

void
sim_disk_free(struct sim_disk *disk)
{
    disk_forget_process(disk);
    sim_damages_free(disk);
    sim_names_deinit(disk);
    CHECK(list_empty(&disk->inodes));
    free(disk);
}

/* ---- copies ---- */

struct sim_inode *
sim_inode_copy(const struct sim_inode *from, struct sim_disk *to)
{
    CHECK(list_empty(&from->writes));
    struct sim_inode *inode = sim_inode_new(to);
    sim_pages_reserve(inode, from->page_count * SIM_PAGE_BYTES);
    for (u64 i = page_next(from, 0); i < from->page_count; i = page_next(from, i + 1)) {
        const struct sim_page *old = sim_page_find(from, i);
        if (old->durable == NULL && old->newest == NULL) continue;
        u8 bytes[SIM_PAGE_BYTES];
        struct sim_page *page = sim_page_make(inode, i);
        page->durable = content_new(sim_page_bytes(old, bytes));
        page->durable_spoiled = sim_page_spoiled(old);
    }
    for (u64 i = 0; i < sim_piece_count(from); i++)
        inode->allocated[i] = from->allocated[i];
    inode->size = inode->durable_size = from->size;
    return inode;
}

struct sim_disk *
sim_disk_copy_new(const struct sim_disk *disk)
{
    struct sim_disk *copy = sim_disk_new(&disk->options, disk->seed);
    sim_names_copy(disk, copy);
    return copy;
}

void
sim_disk_copy_put(const struct sim_disk *copy, struct sim_disk *disk)
{
    sim_names_copy(copy, disk);
}

void
sim_disk_copy_free(struct sim_disk *copy)
{
    sim_disk_free(copy);
}

/* ---- from outside ---- */

void
sim_disk_capacity_set(struct sim_disk *disk, u64 bytes)
{
    disk->capacity_bytes = bytes;
    disk->capacity_taken = 0;
}

void
sim_disk_space_take(struct sim_disk *disk)
{
    u64 used = sim_disk_used_bytes(disk);
    if (disk->capacity_bytes <= used) return;
    disk->capacity_taken = disk->capacity_bytes - used;
    disk->capacity_bytes = used;
}

void
sim_disk_space_give(struct sim_disk *disk)
{
    disk->capacity_bytes += disk->capacity_taken;
    disk->capacity_taken = 0;
}

u64
sim_disk_used_bytes(const struct sim_disk *disk)
{
    return disk->used_pages * SIM_PAGE_BYTES;
}

void
sim_disk_space(const struct sim_disk *disk, u64 *free_out, u64 *total_out)
{
    u64 used = sim_disk_used_bytes(disk);
    u64 total = disk->capacity_bytes;
    *free_out = total > used ? total - used : 0;
    *total_out = total;
}

status
sim_disk_file_size(const struct sim_disk *disk, const char *path, u64 *size_out)
{
    const struct sim_inode *inode = sim_names_find(disk, path);
    if (inode == NULL) return ST_NOT_FOUND;
    *size_out = inode->size;
    return ST_OK;
}

status
sim_disk_file_number(const struct sim_disk *disk, const char *path, u64 *number_out)
{
    const struct sim_inode *inode = sim_names_find(disk, path);
    if (inode == NULL) return ST_NOT_FOUND;
    *number_out = sim_inode_number(inode);
    return ST_OK;
}

bool
sim_disk_file_named(const struct sim_disk *disk, u64 number)
{
    list_for_each (pos, &disk->inodes) {
        const struct sim_inode *inode = list_entry(pos, struct sim_inode, link);
        if (sim_inode_number(inode) == number) return !sim_inode_nameless(inode);
    }
    return false;
}
