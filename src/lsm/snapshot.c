/* SPDX-License-Identifier: MIT
 *
 * snapshot.c -- frozen views: a sequence number that flushes and compactions respect while it is in
 * the list. Opened in the order of time, so the list ascends by itself.
 *
 * Levels ask for the numbers as an array. It must not fail in the middle of a compaction, so its
 * memory grows when a snapshot is opened.
 */
#include "io/io.h"
#include "lsm/lsm_internal.h"

#include "base/fault.h"

struct lsm_snapshot *
lsm_snapshot_open(struct lsm *lsm)
{
    /* While the store closes its parts may be gone already. */
    if (!fiber_gate_enter(&lsm->gate)) return MARKED("lsm.snapshot.closed", NULL);
    fiber_gate_leave(&lsm->gate); /* nothing below waits */
    if (lsm->snapshot_count == lsm->snapshot_capacity) {
        u32 capacity = MAX(16u, lsm->snapshot_capacity * 2);
        u64 *seqs = mem_realloc(&lsm->budget, lsm->snapshot_seqs,
                                lsm->snapshot_capacity * sizeof(u64), capacity * sizeof(u64));
        if (seqs == NULL) return MARKED("lsm.snapshot.list_no_memory", NULL);
        lsm->snapshot_seqs = seqs;
        lsm->snapshot_capacity = capacity;
    }
    struct lsm_snapshot *snapshot = mem_alloc(&lsm->budget, sizeof(*snapshot));
    if (snapshot == NULL) return MARKED("lsm.snapshot.no_memory", NULL);
    snapshot->lsm = lsm;
    snapshot->seq = lsm->seq_last;
    /* A merge under way does not know of it: what that drops by a clock that was set back meanwhile
     * must not be there at first. */
    snapshot->wall_ms = MAX(io_wall_ms(), levels_expired_ms(lsm->levels));
    list_push_back(&lsm->snapshots, &snapshot->link);
    lsm->snapshot_seqs[lsm->snapshot_count++] = snapshot->seq;
    return snapshot;
}

void
lsm_snapshot_close(struct lsm_snapshot *snapshot)
{
    if (snapshot == NULL) return;
    struct lsm *lsm = snapshot->lsm;
    list_del(&snapshot->link);
    CHECK(lsm->snapshot_count > 0);
    lsm->snapshot_count--;
    lsm->snapshot_seqs_stale = true;
    mem_free(&lsm->budget, snapshot, sizeof(*snapshot));
}

u64
lsm_snapshot_seq(const struct lsm_snapshot *snapshot)
{
    return snapshot->seq;
}

const u64 *
lsm_snapshot_seqs(void *arg, u32 *count_out)
{
    struct lsm *lsm = arg;
    if (lsm->snapshot_seqs_stale) {
        u32 count = 0;
        list_for_each (link, &lsm->snapshots) {
            lsm->snapshot_seqs[count++] = list_entry(link, struct lsm_snapshot, link)->seq;
        }
        CHECK(count == lsm->snapshot_count);
        lsm->snapshot_seqs_stale = false;
    }
    *count_out = lsm->snapshot_count;
    return lsm->snapshot_seqs;
}
