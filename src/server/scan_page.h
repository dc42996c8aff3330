/* SPDX-License-Identifier: MIT
 *
 * scan_page.h -- SCAN's cursor, and the keys that one call returns.
 *
 *   cursor, 53 bits:  | bucket: 32 bits of the token | rank: 20 bits of a hash of the key | 1 |
 *
 * What a cursor means. Every key has a place, its bucket and its rank, which follows from its bytes
 * alone and never changes. A cursor is a place, and says: all keys at earlier places have been
 * returned. That is the same whoever made it, when, and on which node. Nothing is remembered
 * anywhere, so there is nothing that could be pushed out, be lost in a restart or be taken for
 * somebody else's. A call returns all keys from its cursor's place to the place that it answers
 * with; so a key that is there during the whole scan is returned by the call that passes its place,
 * and since each call answers with a later place than its cursor, a scan ends.
 *
 * Why a hash, where keys of one token are stored in the order of their bytes. A place in that order
 * is a key, up to 1,024 bytes. Any shorter name for it (its number in a table, a short hash of it)
 * sooner or later names another key, further on, and what lies between is left out.
 *
 * Why 53 bits. Redis has cursors of 64 bits without a sign, but theirs are small, and many clients
 * know no others: node-redis 4 keeps them in a double (and asks for ever for what it has rounded),
 * others in 64 bits with a sign.
 *
 * Why the last bit is 1. Versions before this one made cursors whose last bits are 0, but for those
 * within a long tag: tokens, which taken for places would lead far beyond where they stand. They
 * come here when nodes are upgraded one by one under a scan. What has no 1 there begins anew.
 *
 * A bucket is a stretch of 2^32 tokens and lies in one slot. Of 10^9 keys that are spread by their
 * hashes it has a quarter of one; of 10^12, two hundred. A call ends between two buckets where it
 * can, so that the store is read once and in its order. The keys of one hash tag are all in one
 * bucket. When they are too many for one call, the bucket is passed in several, each of which reads
 * it from its beginning and returns the ranks of a stretch: it takes all ranks that are left, and
 * gives up the upper half of them whenever there are too many keys. So that a long tag is not read
 * too often, a call returns the more keys of it the more there are: up to a quarter of those that
 * are left, as far as they fit.
 */
#ifndef DISTKV_SERVER_SCAN_PAGE_H
#define DISTKV_SERVER_SCAN_PAGE_H

#include "base/limits.h"
#include "base/types.h"

#define SCAN_BUCKET_BITS 32u
#define SCAN_RANK_BITS   20u
#define SCAN_RANKS       (1u << SCAN_RANK_BITS)
#define SCAN_BUCKETS     (1ull << SCAN_BUCKET_BITS)
/* So many keys of one bucket a call returns at least, if they fit, before it parts the bucket. */
#define SCAN_KEYS_MIN 2048u
/* Of memory for keys: what any page needs (the largest key is 1 KiB), and what is of use. */
#define SCAN_PAGE_BYTES_MIN (64u << 10)
#define SCAN_PAGE_BYTES_MAX (1u << 20)
/* One key fits. */
#define SCAN_PAGE_BYTES_LEAST (2u + LIMIT_KEY_BYTES)

struct scan_page {
    /* configuration, from scan_page_init on */
    u8 *data; /* keys, each behind its size as a u16 */
    u32 size;
    u64 looked_max;       /* a bucket that begins with so many behind it belongs to the next call */
    struct bytes pattern; /* data NULL: all */
    bool none;            /* no key matches */

    /* state */
    u64 first;      /* bucket: the cursor's */
    u64 bucket;     /* that is being read */
    u32 from, till; /* its ranks that are taken: from <= rank < till */
    u32 used;       /* of data */
    u32 bucket_at;  /* where in data it begins */
    u32 keys;       /* in data */
    u32 bucket_keys;
    u64 bucket_seen; /* that match, from `from` on: taken or left for later */
    u64 looked;
    bool stopped;   /* what comes next is not in the page */
    bool too_small; /* the keys of one rank do not fit */
};

static inline u64
scan_bucket(u64 token)
{
    return token >> (64 - SCAN_BUCKET_BITS);
}

static inline u64
scan_bucket_token(u64 bucket)
{
    return bucket << (64 - SCAN_BUCKET_BITS);
}

u32 scan_rank(struct bytes key);

static inline u64
scan_cursor(u64 bucket, u32 rank)
{
    return (bucket << SCAN_RANK_BITS | rank) << 1 | 1;
}

/* Memory for a page: of a call of this cursor and COUNT, if there is as much. */
u32 scan_page_size(u64 cursor, u64 looked_max);

void scan_page_init(struct scan_page *page, u64 cursor, u64 looked_max, u8 *data, u32 size);
/* Where to begin to read. */
static inline u64
scan_page_token(const struct scan_page *page)
{
    return scan_bucket_token(page->bucket);
}
/* The next live key, in the order of (token, key). false: stop; it has stopped before this one. */
MUST_CHECK bool scan_page_take(struct scan_page *page, u64 token, struct bytes key);
/* Whether nothing more is taken at the end of a bucket. */
static inline bool
scan_page_is_full(const struct scan_page *page)
{
    return page->till < SCAN_RANKS || page->looked >= page->looked_max;
}
/* Whether the page may end when all keys of the buckets before this one have been taken. */
static inline bool
scan_page_may_end(const struct scan_page *page, u64 bucket)
{
    return bucket > page->first;
}
/* The same, and those of the bucket itself have been or not (SCAN_BUCKETS: all there are). The
 * cursor that goes on; 0: there is nothing more. */
u64 scan_page_end(struct scan_page *page, u64 bucket);

#endif
