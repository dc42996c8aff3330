/* SPDX-License-Identifier: MIT
 *
 * sim_damage.c -- what a disk should never do: bits that flip, sectors that cannot be read, writes
 * that land elsewhere or nowhere. The code above need not survive it, but must find it.
 *
 * Sectors that are damage are marked in whatever is stored of their page, and the marks go where
 * the bytes go: under what is written over them, to the platter, back with a power cut, half of a
 * page, too. So a checker can ask later whether reads still show a damage. It may be told so of one
 * that is gone when another one has struck the same sector since.
 */
#include <stdlib.h>

#include "io/sim_disk_internal.h"
#include "io/sim_internal.h"

/* A sector that cannot be read. */
struct sim_latent {
    struct list link; /* sim_inode.latent */
    u64 offset;
};

struct sim_damage_record {
    struct list link; /* sim_disk.damages */
    struct sim_inode *inode;
    struct sim_fault_id id;
    u64 time_ns;
    u64 offset;
    u32 bytes;
    bool stale;
    char *path_then;
    u32 page_count; /* 0: a latent sector */
    u8 pages[];     /* which of their sectors it has spoiled */
};

static_assert(SIM_PAGE_SECTORS == 8, "a page's sectors are the bits of a byte");

/* The sectors in which two pages differ. */
static u8
pages_differ(const u8 *a, const u8 *b)
{
    u8 differ = 0;
    for (u32 s = 0; s < SIM_PAGE_SECTORS; s++)
        if (memcmp(a + s * SIM_SECTOR_BYTES, b + s * SIM_SECTOR_BYTES, SIM_SECTOR_BYTES) != 0)
            differ |= (u8)(1u << s);
    return differ;
}

static struct sim_damage_record *
damage_add(struct sim_inode *inode, struct sim_fault_id id, u64 offset, u32 bytes, u32 page_count)
{
    struct sim_damage_record *record =
        sim_alloc(sizeof(*record) + page_count * sizeof(record->pages[0]));
    record->inode = inode;
    record->id = id;
    record->time_ns = inode->disk->sim != NULL ? inode->disk->sim->now_ns : 0;
    record->offset = offset;
    record->bytes = bytes;
    record->page_count = page_count;
    record->path_then = strdup(sim_inode_path(inode));
    CHECK(record->path_then != NULL);
    list_push_back(&inode->disk->damages, &record->link);
    sim_inode_ref(inode);
    return record;
}

static bool
damage_there(const struct sim_damage_record *record)
{
    const struct sim_inode *inode = record->inode;
    if (inode->use_count == 0) return false;
    if (record->page_count == 0) return sim_inode_latent(inode, record->offset, record->bytes);
    for (u32 i = 0; i < record->page_count; i++) {
        u64 page = record->offset / SIM_PAGE_BYTES + i;
        if (page * SIM_PAGE_BYTES >= inode->size) continue;
        if ((sim_page_spoiled(sim_page_find(inode, page)) & record->pages[i]) != 0) return true;
    }
    return false;
}

void
sim_disk_damage_each(const struct sim_disk *disk, const struct sim_node *node,
                     void (*each)(void *arg, const struct sim_damage *damage), void *arg)
{
    list_for_each (pos, &disk->damages) {
        const struct sim_damage_record *record = list_entry(pos, struct sim_damage_record, link);
        struct sim_damage damage = {
            .id = record->id,
            .time_ns = record->time_ns,
            .node = node,
            .path = sim_inode_path(record->inode),
            .path_then = record->path_then,
            .shared = sim_inode_name_count(record->inode) > 1,
            .stale = record->stale,
            .offset = record->offset,
            .bytes = record->bytes,
            .there = damage_there(record),
        };
        each(arg, &damage);
    }
}

void
sim_damages_free(struct sim_disk *disk)
{
    while (!list_empty(&disk->damages)) {
        struct sim_damage_record *record =
            list_entry(list_first(&disk->damages), struct sim_damage_record, link);
        list_del(&record->link);
        sim_inode_unref(record->inode);
        free(record->path_then);
        free(record);
    }
}

/* ---- bits that flip ---- */

/* The bit of the sector in its page. */
static u8
sector_of(u64 offset)
{
    return (u8)(1u << offset % SIM_PAGE_BYTES / SIM_SECTOR_BYTES);
}

static void
inode_flip(struct sim_inode *inode, u64 offset, u8 mask)
{
    sim_pages_reserve(inode, offset + 1);
    struct sim_page *page = sim_page_make(inode, offset / SIM_PAGE_BYTES);
    u8 sector = sector_of(offset);
    sim_content_whole(&page->durable)[offset % SIM_PAGE_BYTES] ^= mask;
    page->durable_spoiled |= sector;
    for (struct sim_version *v = page->newest; v != NULL; v = v->older) {
        sim_content_whole(&v->content)[offset % SIM_PAGE_BYTES] ^= mask;
        v->spoiled |= sector;
    }
}

status
sim_disk_flip(struct sim_disk *disk, const char *path, u64 offset, u8 mask)
{
    struct sim_inode *inode = sim_names_find(disk, path);
    if (inode == NULL) return ST_NOT_FOUND;
    if (offset >= inode->size) return ST_END;
    inode_flip(inode, offset, mask);
    return ST_OK;
}

void
sim_inode_rot(struct sim_inode *inode, u64 offset, u8 mask, struct sim_fault_id id)
{
    inode_flip(inode, offset, mask);
    struct sim_damage_record *record = damage_add(inode, id, offset, 1, 1);
    record->pages[0] = sector_of(offset);
}

/* ---- sectors that cannot be read ---- */

void
sim_inode_latent_add(struct sim_inode *inode, u64 offset, struct sim_fault_id id)
{
    struct sim_latent *latent = sim_alloc(sizeof(*latent));
    latent->offset = align_down(offset, SIM_SECTOR_BYTES);
    list_push_back(&inode->latent, &latent->link);
    (void)damage_add(inode, id, latent->offset, SIM_SECTOR_BYTES, 0);
}

status
sim_disk_latent(struct sim_disk *disk, const char *path, u64 offset)
{
    struct sim_inode *inode = sim_names_find(disk, path);
    if (inode == NULL) return ST_NOT_FOUND;
    if (offset >= inode->size) return ST_END;
    sim_inode_latent_add(inode, offset, (struct sim_fault_id){SIM_FAULT_LATENT, 0});
    return ST_OK;
}

static bool
latent_within(const struct sim_latent *latent, u64 offset, u64 size)
{
    return latent->offset + SIM_SECTOR_BYTES > offset && latent->offset - offset < size;
}

bool
sim_inode_latent(const struct sim_inode *inode, u64 offset, u64 size)
{
    list_for_each (pos, &inode->latent) {
        if (latent_within(list_entry(pos, struct sim_latent, link), offset, size)) return true;
    }
    return false;
}

void
sim_latent_clear(struct sim_inode *inode, u64 offset, u64 size)
{
    list_for_each_safe (pos, &inode->latent) {
        struct sim_latent *latent = list_entry(pos, struct sim_latent, link);
        if (!latent_within(latent, offset, size)) continue;
        list_del(&latent->link);
        free(latent);
    }
}

/* ---- both, while nobody asks ---- */

static bool
page_stored(const struct sim_inode *inode, u64 page)
{
    const struct sim_page *at = sim_page_find(inode, page);
    if (at == NULL || page * SIM_PAGE_BYTES >= inode->size) return false;
    return sim_page_current(at) != NULL;
}

/* A place in one of the pages of a file that have something, by the same chance each. */
static bool
inode_place(const struct sim_inode *inode, struct prng *prng, u64 *offset_out)
{
    u64 count = 0, chosen = 0;
    for (u64 i = 0; i < inode->page_count; i++)
        if (page_stored(inode, i) && prng_below(prng, ++count) == 0) chosen = i;
    if (count == 0) return false;
    *offset_out = MIN(chosen * SIM_PAGE_BYTES + prng_below(prng, SIM_PAGE_BYTES), inode->size - 1);
    return true;
}

bool
sim_node_spoil(struct sim_node *node, enum sim_fault family)
{
    CHECK(family == SIM_FAULT_BIT_ROT || family == SIM_FAULT_LATENT);
    struct sim *sim = node->sim;
    struct prng prng = sim_fault_prng(sim, family);
    struct sim_inode *inode = NULL;
    u64 count = 0, at = 0, offset;
    list_for_each (pos, &node->disk->inodes) {
        struct sim_inode *candidate = list_entry(pos, struct sim_inode, link);
        if (candidate->use_count == 0 || !inode_place(candidate, &prng, &offset)) continue;
        if (prng_below(&prng, ++count) != 0) continue;
        inode = candidate;
        at = offset;
    }
    u8 mask = (u8)(1u << prng_below(&prng, 8));
    if (inode == NULL || !sim_fault_take(sim, family, "%s %s: byte %llu, at rest", node->host,
                                         sim_inode_path(inode), (unsigned long long)at))
        return false;
    if (family == SIM_FAULT_BIT_ROT)
        sim_inode_rot(inode, at, mask, sim_fault_last(sim));
    else
        sim_inode_latent_add(inode, at, sim_fault_last(sim));
    return true;
}

/* ---- writes that land nowhere or elsewhere ---- */

/* The place keeps what it has. When that is what was to be written, nothing is spoiled. */
static void
damage_stale(const struct sim_write *write, struct sim_fault_id id)
{
    struct sim_inode *inode = write->inode;
    struct sim_damage_record *record =
        damage_add(inode, id, write->offset, write->size, write->size / SIM_PAGE_BYTES);
    record->stale = true;
    sim_pages_reserve(inode, write->offset + write->size); /* a truncate may have come between */
    for (u32 i = 0; i < record->page_count; i++) {
        struct sim_page *page = sim_page_make(inode, write->offset / SIM_PAGE_BYTES + i);
        const u8 *missed = sim_write_data(write, (u64)i * SIM_PAGE_BYTES);
        u8 there[SIM_PAGE_BYTES];
        record->pages[i] = pages_differ(sim_page_bytes(page, there), missed);
        /* What is as it was to be is damage no more. */
        if (page->newest != NULL)
            page->newest->spoiled = record->pages[i];
        else
            page->durable_spoiled = record->pages[i];
    }
}

void
sim_inode_write_lose(struct sim_write *write, bool durable, bool cached, struct sim_fault_id id)
{
    struct sim_inode *inode = write->inode;
    damage_stale(write, id);
    for (u64 done = 0; cached && done < write->size; done += SIM_PAGE_BYTES) {
        struct sim_version *version = sim_page_push(inode, (write->offset + done) / SIM_PAGE_BYTES,
                                                    sim_write_data(write, done));
        list_del(&version->dirty_link);
        version->phantom = true;
    }
    sim_inode_write_close(write, true, durable);
}

static bool
place_fits(const struct sim_inode *inode, u32 size)
{
    return inode->use_count > 0 && inode->size >= size;
}

bool
sim_inode_elsewhere(struct sim_inode *inode, u64 offset, u32 size, struct prng *prng,
                    struct sim_inode **inode_out, u64 *offset_out)
{
    struct sim_inode *other = inode;
    if (prng_chance(prng, 1, 2)) {
        u64 count = 0;
        list_for_each (pos, &inode->disk->inodes) {
            struct sim_inode *candidate = list_entry(pos, struct sim_inode, link);
            if (candidate == inode || !place_fits(candidate, size)) continue;
            if (prng_below(prng, ++count) == 0) other = candidate;
        }
    }
    if (!place_fits(other, size)) return false;
    u64 place = prng_below(prng, (other->size - size) / SIM_PAGE_BYTES + 1) * SIM_PAGE_BYTES;
    if (other == inode && place == offset) return false;
    *inode_out = other;
    *offset_out = place;
    return true;
}

void
sim_inode_write_misdirect(struct sim_write *write, bool durable, struct sim_inode *other,
                          u64 other_offset, struct sim_fault_id id)
{
    damage_stale(write, id);
    struct sim_damage_record *record =
        damage_add(other, id, other_offset, write->size, write->size / SIM_PAGE_BYTES);
    sim_pages_reserve(other, other_offset + write->size);
    for (u32 i = 0; i < record->page_count; i++) {
        u64 page = other_offset / SIM_PAGE_BYTES + i;
        const u8 *from = sim_write_data(write, (u64)i * SIM_PAGE_BYTES);
        const struct sim_page *before = sim_page_find(other, page);
        u8 there[SIM_PAGE_BYTES];
        record->pages[i] = pages_differ(sim_page_bytes(before, there), from);
        u8 spoiled = sim_page_spoiled(before) | record->pages[i];
        struct sim_version *version = sim_page_push(other, page, from);
        version->spoiled = spoiled;
        version->astray = true;
        record->pages[i] = UINT8_MAX; /* a power cut may tear any of them */
        if (durable) sim_page_make_durable(sim_page_find(other, page), version);
    }
    sim_latent_clear(other, other_offset, write->size);
    sim_inode_write_close(write, true, durable);
}
