/* SPDX-License-Identifier: MIT
 *
 * sim_disk_internal.h -- what sim_disk.c (content), sim_names.c (names) and sim_damage.c share.
 */
#ifndef DISTKV_IO_SIM_DISK_INTERNAL_H
#define DISTKV_IO_SIM_DISK_INTERNAL_H

#include "io/sim_disk.h"

/* A page's sectors up to the last that is not all zeros: most pages of logs are short groups. NULL:
 * zeros. */
struct sim_content {
    u32 sectors;
    u8 data[];
};

/* One page's content after one write, not durable yet; or a fill: that of all pages of a piece that
 * had nothing, after a write of zeros. */
struct sim_version {
    struct list dirty_link; /* sim_inode.dirty, in order */
    struct sim_version *older;
    u64 order; /* a fill: of the first page; the others have the next ones */
    u64 page;  /* a fill: the first one */
    struct sim_content *content;
    bool fill;    /* sim_inode.fills has it, and not a page */
    bool phantom; /* only the disk's cache has it: a power cut takes it for sure */
    u8 spoiled;   /* sectors that are damage, a bit each */
    bool astray;  /* nobody wrote it here: a torn sector of it is damage, too */
};

struct sim_page {
    struct sim_content *durable;
    struct sim_version *newest;
    u8 durable_spoiled; /* as a version's */
};

/* Files are mostly reserved for long before they are written, if they ever are: pages come to be by
 * pieces, when something is in one of them. */
#define SIM_PIECE_PAGES 64u
struct sim_piece {
    struct sim_page pages[SIM_PIECE_PAGES];
};

struct sim_inode {
    struct list link; /* sim_disk.inodes, oldest first */
    struct sim_disk *disk;
    u64 number;
    struct sim_piece **pieces;  /* NULL: nothing was ever written there, or a fill */
    struct sim_version **fills; /* by piece; NULL: none (D4) */
    u64 *allocated;             /* by piece, a bit each page: it has its place on the disk */
    u64 page_count;
    u64 size;
    u64 durable_size;
    u64 durable_order; /* of the last durable write */
    struct list dirty;
    struct list latent; /* struct sim_latent.link */
    struct list writes; /* struct sim_write.link */
    u64 write_count;    /* writes that have begun */
    u32 ref_count;      /* names of both maps, operations between them, openings, writes */
    u32 use_count;      /* current names and openings */
    u32 open_count;
};

struct sim_name {
    char *path;
    struct sim_inode *inode; /* NULL: a directory */
};

/* Sorted by path. */
struct sim_name_map {
    struct sim_name *names;
    u32 count;
    u32 capacity;
};

struct sim_disk {
    struct sim_disk_options options;
    struct sim *sim; /* NULL: nobody keeps the books of faults */
    const char *host;
    u64 seed;
    u32 crash_count;
    bool failed;        /* a sync has, or a durable write */
    u64 capacity_bytes; /* now */
    u64 capacity_taken; /* to be given back; 0: nothing */
    u64 inode_last;
    struct prng prng;
    u64 order; /* of versions and of operations on names */
    struct list inodes;
    u64 used_pages;
    struct sim_name_map current;
    struct sim_name_map durable;
    struct list name_ops; /* not durable yet, in order */
    struct list locks;
    struct list damages; /* struct sim_damage_record.link, in the order of time */
};

/* Zeroed; never fails. */
void *sim_alloc(size_t size);

/* All sectors of it, to be changed. */
u8 *sim_content_whole(struct sim_content **content);

struct sim_inode *sim_inode_new(struct sim_disk *disk);
void sim_inode_ref(struct sim_inode *inode);
void sim_inode_unref(struct sim_inode *inode);
void sim_inode_use(struct sim_inode *inode);
void sim_inode_unuse(struct sim_inode *inode);

static inline u64
sim_piece_count(const struct sim_inode *inode)
{
    return (inode->page_count + SIM_PIECE_PAGES - 1) / SIM_PIECE_PAGES;
}

/* NULL: it has nothing but zeros. */
static inline struct sim_page *
sim_page_find(const struct sim_inode *inode, u64 page)
{
    if (page >= inode->page_count) return NULL;
    struct sim_piece *piece = inode->pieces[page / SIM_PIECE_PAGES];
    return piece != NULL ? &piece->pages[page % SIM_PIECE_PAGES] : NULL;
}

/* One of those that sim_pages_reserve has made room for. */
struct sim_page *sim_page_make(struct sim_inode *inode, u64 page);
/* What a read of the page returns. page: NULL for one that is not there. */
const struct sim_content *sim_page_current(const struct sim_page *page);
/* As bytes: in the buffer, or where they are. */
const u8 *sim_page_bytes(const struct sim_page *page, u8 buffer[static SIM_PAGE_BYTES]);
/* Which sectors of that are damage. */
u8 sim_page_spoiled(const struct sim_page *page);
/* Data of one page after a write, not durable yet. */
struct sim_version *sim_page_push(struct sim_inode *inode, u64 page, const u8 *data);
void sim_page_make_durable(struct sim_page *page, struct sim_version *version);
void sim_pages_reserve(struct sim_inode *inode, u64 size);

/* Sectors of the pages were written again. */
void sim_latent_clear(struct sim_inode *inode, u64 offset, u64 size);
void sim_damages_free(struct sim_disk *disk);

void sim_names_init(struct sim_disk *disk);
void sim_names_deinit(struct sim_disk *disk);
/* The names that everybody sees become all names of the other disk, durably. */
void sim_names_copy(const struct sim_disk *from, struct sim_disk *to);
/* Its content, of the other disk. */
struct sim_inode *sim_inode_copy(const struct sim_inode *from, struct sim_disk *to);
/* The durable map with any subset of the operations becomes the current one. */
void sim_names_crash(struct sim_disk *disk);
void sim_names_unlock_all(struct sim_disk *disk);
/* The file of a name; NULL when there is none or it is a directory. */
struct sim_inode *sim_names_find(const struct sim_disk *disk, const char *path);

#endif
