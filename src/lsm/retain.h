/* SPDX-License-Identifier: MIT
 *
 * retain.h -- which versions of a key survive a flush or a compaction. Pure.
 *
 * Entries arrive in entry order (newest version first within a key); for each one the answer is
 * keep, drop (and why), or *pend*: a tombstone, or an expired value, that goes if nothing older of
 * its key is kept, and must come before it otherwise.
 *
 * The rule. A reader is an open snapshot, or the newest state (seq infinity). An entry is needed
 * when some reader sees it (entry.seq <= reader) and sees no newer version of the key. Ranges that
 * were deleted count as newer versions of what they cover. With m the lowest seq of all newer
 * versions: needed means that a reader lies in [entry.seq, m). The list of snapshots is frozen by
 * the caller; those opened later lie above every entry that is merged, so they see the first
 * version, which is kept, and those closed meanwhile only kept more than necessary.
 *
 * A tombstone or an expired value that is needed may still go, when the output is the bottom
 * (nothing older exists for its tokens in any run that is not merged), nothing outside may hold an
 * older version, and none is kept after it.
 */
#ifndef DISTKV_LSM_RETAIN_H
#define DISTKV_LSM_RETAIN_H

#include "lsm/entry.h"
#include "lsm/range_list.h"

/* Stretches of tokens that nobody wants any more: lsm_drop_set. */
struct drop_bits {
    const u64 *bits; /* NULL: none. Read for each key anew */
    u64 token_first; /* of bit 0 */
    u32 shift;
};

static inline bool
drop_bits_has(const struct drop_bits *drop, u64 token)
{
    if (drop->bits == NULL) return false;
    u64 place = (token - drop->token_first) >> drop->shift;
    return drop->bits[place / 64] >> place % 64 & 1;
}

/* Of each token from first to last; of none, when first is higher. */
static inline bool
drop_bits_has_all(const struct drop_bits *drop, u64 first, u64 last)
{
    if (first > last) return true;
    if (drop->bits == NULL) return false;
    u64 end = (last - drop->token_first) >> drop->shift;
    for (u64 at = (first - drop->token_first) >> drop->shift; at <= end; at++)
        if (!(drop->bits[at / 64] >> at % 64 & 1)) return false;
    return true;
}

enum retain_answer {
    RETAIN_KEEP,
    RETAIN_PEND, /* hold a copy until the next answer; see retain_next */
    RETAIN_DROP_OVERWRITTEN,
    RETAIN_DROP_DELETED, /* by a deleted range, or a tombstone at the bottom */
    RETAIN_DROP_EXPIRED,
    RETAIN_DROP_FOREIGN, /* outside the store's tokens */
    RETAIN_ANSWER_COUNT
};

struct retain {
    /* configuration */
    u16 keyspace;
    u64 token_first, token_last; /* of the store */
    const u64 *snapshots;        /* ascending */
    u32 snapshot_count;
    const struct range_list *ranges;
    u64 range_seq_limit;   /* ranges up to this survive a crash */
    bool bottom;           /* nothing older lies in a run that is not merged */
    u64 version_outside;   /* the lowest version in newer runs that are not merged, or to come */
    u64 version_elsewhere; /* the former alone */
    u64 expire_below_ms;   /* what expires later stays, expired or not: lsm_purge_allow */
    u64 wall_ms;
    const struct drop_bits *drop; /* NULL: none */

    /* state: of the current key */
    bool has_key;
    bool dropping; /* it is one that nobody wants */
    u64 token;
    u8 key[LIMIT_KEY_BYTES];
    u32 key_size;
    u64 seq_newer_min; /* m above, without ranges */
};

/* Judges the next entry. *key_changed_out: it is of another key than the one before, so a pending
 * entry is dropped for good. When the answer is KEEP and the key is the same, a pending one must be
 * written first. A second PEND replaces the first: the older tombstone tells the same story. */
enum retain_answer retain_next(struct retain *retain, const struct entry *entry,
                               bool *key_changed_out);

#endif
