/* SPDX-License-Identifier: MIT
 *
 * starts.h -- the starts of a member, by which others notice that its directory was replaced by an
 * older copy. Pure.
 *
 * Each start of a member has the number of the one before and one more, and a random id. The member
 * keeps the last ones, the others keep the newest one that they were told. A directory that was put
 * back ends in an earlier start than the others know; or, started again and again since, in starts
 * of other ids. One that was only copied, or that was never told how far it came before the power
 * failed, ends where they know it to be, or later by starts that follow from there.
 *
 *     known to others      the member's own           judged
 *     (none)               anything                   STARTS_FINE: never heard of it
 *     5:e                  5:e, 4:d, 3:c              STARTS_FINE
 *     5:e                  7:g, 6:f, 5:e, 4:d         STARTS_FINE
 *     5:e                  4:d, 3:c                   STARTS_ROLLED_BACK
 *     5:e                  5:x, 4:d  or  6:y, 5:x     STARTS_ROLLED_BACK: the two have parted at 4
 *     5:e                  40:p, 39:o ... 25:a        STARTS_UNRELATED: nobody can tell
 */
#ifndef DISTKV_CLUSTER_STARTS_H
#define DISTKV_CLUSTER_STARTS_H

#include "base/types.h"
#include "base/status.h"

#define STARTS_IDS_MAX      16u
#define STARTS_HEADER_BYTES 16u
#define STARTS_BYTES_MAX    (STARTS_HEADER_BYTES + 8u * STARTS_IDS_MAX)

struct starts {
    u64 count; /* number of the newest one; 0: none is known */
    u32 id_count;
    u64 ids[STARTS_IDS_MAX]; /* of count, count - 1 ... */
};

enum starts_verdict { STARTS_FINE, STARTS_ROLLED_BACK, STARTS_UNRELATED, STARTS_VERDICT_COUNT };

/* own: what a member says of itself. known: what somebody else was told last; of it only the newest
 * counts. */
enum starts_verdict starts_judge(const struct starts *known, const struct starts *own);
/* One more. */
void starts_add(struct starts *starts, u64 id);
/* The newest one alone. */
struct starts starts_newest(const struct starts *starts);

/* As it is stored and sent: version 1, count of ids : u8 each, zero x 6 | count : u64 | ids : u64
 * each. The size. */
u32 starts_encode(const struct starts *starts, u8 out[STARTS_BYTES_MAX]);
/* *size_out: of what was read. */
MUST_CHECK status starts_decode(struct bytes bytes, struct starts *out, size_t *size_out);

/* ---- PEER_STARTED ---- */

/* What a member says to another one. */
struct starts_told {
    bool remember;       /* most others have found it fine: the other one is to keep it, durably */
    struct starts yours; /* the newest start of the other one that the sender knows */
    struct starts own;
};
#define STARTS_TOLD_BYTES_MAX (8u + 2 * STARTS_BYTES_MAX)
#define STARTS_ANSWER_BYTES   8u

/* version 1, remember : u8 each, zero x 6 | yours | own. The size. */
u32 starts_told_encode(const struct starts_told *told, u8 out[STARTS_TOLD_BYTES_MAX]);
MUST_CHECK status starts_told_decode(struct bytes bytes, struct starts_told *out);
/* version 1, verdict : u8 each, zero x 6 */
void starts_answer_encode(enum starts_verdict verdict, u8 out[STARTS_ANSWER_BYTES]);
MUST_CHECK status starts_answer_decode(struct bytes bytes, enum starts_verdict *out);

#endif
