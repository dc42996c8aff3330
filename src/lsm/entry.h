/* SPDX-License-Identifier: MIT
 *
 * entry.h -- one version of one key, the order of entries, and cursors over them: the currency
 * between memtable, tables, merging and scans. Keyspaces are trees of their own, so an entry does
 * not name one.
 *
 * Order: token ascending, key bytes ascending, then newest first: (version, seq) descending.
 */
#ifndef DISTKV_LSM_ENTRY_H
#define DISTKV_LSM_ENTRY_H

#include "base/types.h"
#include "base/status.h"
#include "io/fiber.h"

enum entry_kind {
    ENTRY_PUT = 1,
    ENTRY_DELETE = 2,
    ENTRY_DELETE_RANGE = 3, /* in the log and the range list only, never in a tree */
};

enum entry_flags {
    ENTRY_BLOB = 1 << 0, /* value is a struct blob_pointer */
    /* A delete that a read made of a version which a deleted range covers; in caches, never in a
     * tree. version and seq are the range's. */
    ENTRY_BY_RANGE = 1 << 1,
};

/* Where a value lives that is kept apart. */
struct ONDISK blob_pointer {
    u64 file_id;
    u64 offset; /* of the blob record's header */
    u32 size;   /* of the value */
    u32 crc;    /* CRC32C of the value: checked at both ends */
};

struct entry {
    u64 token;
    struct bytes key;
    struct bytes value; /* empty for a delete */
    u64 version;
    u64 seq;
    union {            /* only one of the two is ever needed, and the row cache keeps it */
        u64 expire_ms; /* 0: never; of a delete, too */
        u64 key_seq;   /* ENTRY_BY_RANGE: of the version that the range has deleted */
    };
    u8 kind;
    u8 flags;
};

static inline int
entry_compare_key(u64 token_a, struct bytes key_a, u64 token_b, struct bytes key_b)
{
    if (token_a != token_b) return token_a < token_b ? -1 : 1;
    return bytes_compare(key_a, key_b);
}

/* Negative when a goes first. Two entries of one store never compare equal. */
static inline int
entry_compare(const struct entry *a, const struct entry *b)
{
    int order = entry_compare_key(a->token, a->key, b->token, b->key);
    if (order != 0) return order;
    if (a->version != b->version) return a->version > b->version ? -1 : 1;
    if (a->seq != b->seq) return a->seq > b->seq ? -1 : 1;
    return 0;
}

static inline bool
entry_expired(const struct entry *entry, u64 wall_ms)
{
    return entry->expire_ms != 0 && entry->expire_ms <= wall_ms;
}

static inline u64
entry_value_size(const struct entry *entry)
{
    if (!(entry->flags & ENTRY_BLOB)) return entry->value.size;
    return load_u32(entry->value.data + offsetof(struct blob_pointer, size));
}

/* A position in a sorted source. valid: entry is set, its bytes live until the next call on this
 * cursor. Not valid after a call that returned ok: the end. After an error the cursor is dead. */
struct cursor;
struct cursor_ops {
    /* To the first entry at or after (token, key), newest version first. */
    MAY_YIELD status (*seek)(struct cursor *cursor, u64 token, struct bytes key);
    MAY_YIELD status (*next)(struct cursor *cursor);
    void (*close)(
        struct cursor *cursor); /* frees what the cursor owns, and itself if it was allocated */
};
struct cursor {
    const struct cursor_ops *ops;
    bool valid;
    struct entry entry;
};

#endif
