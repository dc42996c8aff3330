/* SPDX-License-Identifier: MIT
 *
 * scan_page.c -- see scan_page.h.
 */
#include "server/scan_page.h"

#include "base/hash.h"
#include "server/glob.h"

/* Cursors outlive processes and travel between nodes: this is never changed. Another seed than
 * those of tokens: keys of one bucket have much of that hash in common. */
#define RANK_SEED 0x5343414eu
#define KEY_BYTES 20u /* of a key in data, about */

static_assert(SCAN_BUCKET_BITS + SCAN_RANK_BITS + 1 == 53, "a double holds it");
static_assert(SCAN_BUCKET_BITS >= SLOT_BITS, "a bucket lies in one slot, so on one shard");

u32
scan_rank(struct bytes key)
{
    return (u32)(hash_key(key, RANK_SEED) >> (64 - SCAN_RANK_BITS));
}

/* The bucket and the rank, as one number. Of a cursor that is none of ours the beginning, which
 * leaves nothing out. */
static u64
place_of(u64 cursor)
{
    u64 place = cursor >> 1;
    bool ours = cursor % 2 == 1 && place >> (SCAN_BUCKET_BITS + SCAN_RANK_BITS) == 0;
    return ours ? place : 0;
}

u32
scan_page_size(u64 cursor, u64 looked_max)
{
    /* Who is within a bucket has a long one before him. */
    if (place_of(cursor) % SCAN_RANKS != 0) return SCAN_PAGE_BYTES_MAX;
    return (u32)CLAMP(looked_max * KEY_BYTES, SCAN_PAGE_BYTES_MIN, SCAN_PAGE_BYTES_MAX);
}

void
scan_page_init(struct scan_page *page, u64 cursor, u64 looked_max, u8 *data, u32 size)
{
    CHECK(size >= SCAN_PAGE_BYTES_LEAST);
    u64 place = place_of(cursor);
    *page = (struct scan_page){.data = data,
                               .size = size,
                               .looked_max = looked_max,
                               .first = place >> SCAN_RANK_BITS,
                               .bucket = place >> SCAN_RANK_BITS,
                               .from = (u32)(place % SCAN_RANKS),
                               .till = SCAN_RANKS};
}

static struct bytes
key_at(const struct scan_page *page, u32 at)
{
    return BYTES(page->data + at + sizeof(u16), load_u16(page->data + at));
}

/* Gives up the upper half of the bucket's ranks. */
static void
halve(struct scan_page *page)
{
    page->till = page->from + (page->till - page->from) / 2;
    u32 kept = page->bucket_at, keys = 0;
    for (u32 at = page->bucket_at; at < page->used;) {
        struct bytes key = key_at(page, at);
        u32 size = (u32)(sizeof(u16) + key.size);
        if (scan_rank(key) < page->till) {
            memmove(page->data + kept, page->data + at, size);
            kept += size;
            keys++;
        }
        at += size;
    }
    page->used = kept;
    page->keys -= page->bucket_keys - keys;
    page->bucket_keys = keys;
}

static bool
too_many(const struct scan_page *page)
{
    return page->bucket_keys > MAX(2 * page->looked_max, SCAN_KEYS_MIN) &&
           page->bucket_keys > page->bucket_seen / 4 && page->till - page->from > 1;
}

static bool
stop(struct scan_page *page)
{
    page->stopped = true;
    return false;
}

static bool
enters(struct scan_page *page, u64 bucket)
{
    DCHECK(bucket > page->bucket);
    if (scan_page_is_full(page)) return false;
    page->bucket = bucket;
    page->from = 0;
    page->bucket_at = page->used;
    page->bucket_keys = 0;
    page->bucket_seen = 0;
    return true;
}

bool
scan_page_take(struct scan_page *page, u64 token, struct bytes key)
{
    if (page->stopped) return false;
    if (scan_bucket(token) != page->bucket && !enters(page, scan_bucket(token))) return stop(page);
    u32 rank = scan_rank(key);
    if (rank < page->from) return true;
    page->looked++;
    if (page->none || (page->pattern.data != NULL && !glob_match(page->pattern, key, false)))
        return true;
    page->bucket_seen++;
    u32 size = (u32)(sizeof(u16) + key.size);
    while (rank < page->till && page->size - page->used < size) {
        if (page->bucket_at != 0) return stop(page);
        if (page->till - page->from == 1) {
            page->too_small = true;
            return stop(page);
        }
        halve(page);
    }
    if (rank >= page->till) return true;
    store_u16(page->data + page->used, (u16)key.size);
    memcpy(page->data + page->used + sizeof(u16), key.data, key.size);
    page->used += size;
    page->keys++;
    page->bucket_keys++;
    if (too_many(page)) halve(page);
    return true;
}

u64
scan_page_end(struct scan_page *page, u64 bucket)
{
    CHECK(scan_page_may_end(page, bucket));
    if (page->bucket < bucket && page->till < SCAN_RANKS)
        return scan_cursor(page->bucket, page->till);
    if (page->bucket == bucket) { /* may have been read in part */
        page->used = page->bucket_at;
        page->keys -= page->bucket_keys;
        page->bucket_keys = 0;
        page->till = SCAN_RANKS;
    }
    return bucket == SCAN_BUCKETS ? 0 : scan_cursor(bucket, 0);
}
