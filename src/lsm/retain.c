/* SPDX-License-Identifier: MIT
 *
 * retain.c -- see retain.h.
 */
#include "lsm/retain.h"

static bool
same_key(const struct retain *retain, const struct entry *entry)
{
    return retain->has_key && retain->token == entry->token &&
           bytes_equal(BYTES(retain->key, retain->key_size), entry->key);
}

static bool
snapshot_in(const struct retain *retain, u64 first, u64 end)
{
    return snapshot_between(retain->snapshots, retain->snapshot_count, first, end);
}

enum retain_answer
retain_next(struct retain *retain, const struct entry *entry, bool *key_changed_out)
{
    *key_changed_out = !same_key(retain, entry);
    if (*key_changed_out) {
        CHECK(entry->key.size <= LIMIT_KEY_BYTES);
        retain->has_key = true;
        retain->token = entry->token;
        retain->key_size = (u32)entry->key.size;
        memcpy(retain->key, entry->key.data, entry->key.size);
        retain->seq_newer_min = UINT64_MAX;
        /* All that there is of a key, or nothing: without its tombstone an older version would be
         * back when the tokens are wanted again. So at the bottom only, when no newer run may have
         * one either, and for all its versions. */
        retain->dropping =
            retain->bottom && retain->drop != NULL && entry->token >= retain->token_first &&
            entry->token <= retain->token_last && entry->version < retain->version_elsewhere &&
            drop_bits_has(retain->drop, entry->token);
    }
    if (entry->token < retain->token_first || entry->token > retain->token_last)
        return RETAIN_DROP_FOREIGN;
    if (retain->dropping) return RETAIN_DROP_FOREIGN;

    u64 newer = retain->seq_newer_min;
    u64 deleted = range_list_cover_seq_min(retain->ranges, retain->keyspace, entry->token,
                                           entry->version, entry->seq, retain->range_seq_limit);
    u64 hidden = MIN(newer, deleted);
    /* Infinity is a reader, too: what nothing hides is needed. */
    bool needed = hidden == UINT64_MAX || snapshot_in(retain, entry->seq, hidden);
    if (!needed) {
        return newer != UINT64_MAX && !snapshot_in(retain, entry->seq, newer)
                   ? RETAIN_DROP_OVERWRITTEN
                   : RETAIN_DROP_DELETED;
    }
    bool may_purge = retain->bottom && entry->version < retain->version_outside;
    bool gone =
        entry->kind == ENTRY_DELETE ||
        (entry_expired(entry, retain->wall_ms) && entry->expire_ms < retain->expire_below_ms &&
         /* A snapshot's clock is its own business: what it sees stays. */
         !snapshot_in(retain, entry->seq, hidden));
    retain->seq_newer_min = MIN(newer, entry->seq);
    return may_purge && gone ? RETAIN_PEND : RETAIN_KEEP;
}
