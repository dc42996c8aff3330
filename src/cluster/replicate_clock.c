/* SPDX-License-Identifier: MIT
 *
 * replicate_clock.c -- the clock that a shard stamps by, and what is kept of it. See hlc.h,
 * replicate_internal.h.
 *
 * The clock after an opening. The highest version in the store is not always the highest that was
 * stamped: what was sent to others may never have become durable here. Stamped again, such a number
 * would name two writes. So nothing is stamped for REPLICATE_QUIET_MS after an opening, which is
 * more than a clock may be ahead of the wall clock, and the floor lies REPLICATE_FLOOR_MS above the
 * store's, for a wall clock that was set back meanwhile; the wall clock is waited for to reach it,
 * so that peers take what we stamp, but not for ever.
 *
 * Marks. A shard that nobody writes to has old versions only, and what it has said of its clock is
 * worth no more than its store after an opening: others have collected tombstones because it would
 * not stamp below them any more (replicator_oldest_to_come). So once in MARK_MS it writes an entry
 * of its own with the clock's present version, and tells of no more than the last one that is
 * durable. In KEYSPACE_SYSTEM, under a hash tag of the shard's first partition:
 *
 *   key    {tag}clock
 *   value  version 1 (1); its version is what counts
 *
 * Nothing reads it: the store remembers the highest version that it was given, with the entry and
 * without it, and whatever becomes of the number of cores.
 */
#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "cluster/hints_internal.h"
#include "cluster/replicate_internal.h"
#include "cluster/siblings.h"
#include "io/io.h"
#include "lsm/batch.h"

#define CLOCK_LOG_NS (10 * NS_PER_S)
#define MARK_MS      30000u
#define MARK_LOOK_NS NS_PER_S

static_assert(REPLICATE_QUIET_MS > HLC_AHEAD_MS_MAX, "else a number might be given twice");

/* ---- marks ---- */

static struct bytes
mark_key(const struct replicator *r, u8 out[2 + HINT_TAG_BYTES + 5])
{
    struct hint_tag tag;
    hint_tags_find(siblings_partition(r->token_first), 1, &tag);
    out[0] = '{';
    memcpy(out + 1, tag.text, tag.size);
    out[1 + tag.size] = '}';
    memcpy(out + 2 + tag.size, "clock", 5);
    return BYTES(out, 2u + tag.size + 5u);
}

static MAY_YIELD status
mark_write(struct replicator *r, u64 version)
{
    u8 key[2 + HINT_TAG_BYTES + 5];
    struct bytes name = mark_key(r, key);
    struct lsm_batch batch;
    lsm_batch_init(&batch, r->options.budget);
    batch.version = version;
    batch.of_reserve = true; /* nothing deleted is collected anywhere before it */
    u64 seq;
    status st = ST_NO_MEMORY;
    if (lsm_batch_put(&batch, KEYSPACE_SYSTEM, hash_token(name), name, BYTES_LITERAL("\1"), 0))
        st = lsm_write(r->options.lsm, &batch, &seq);
    lsm_batch_deinit(&batch);
    return ok(st) ? lsm_wait_durable(r->options.lsm, seq) : st;
}

/* Not before this member has a stamp of its own. */
static bool
mark_is_due(const struct replicator *r)
{
    if (r->options.clock_is_ahead != NULL && r->options.clock_is_ahead(r->options.arg))
        return false;
    u64 now = MAX(r->hlc.last, hlc_version_at(io_wall_ms()));
    return r->topology != NULL && now - r->clock_marked >= (u64)MARK_MS << HLC_MS_SHIFT;
}

static MAY_YIELD void
clock_main(void *arg)
{
    struct replicator *r = arg;
    while (!r->closing) {
        if (mark_is_due(r) && stamp_await(r, io_now_ns() + MARK_LOOK_NS)) {
            u64 version = hlc_next(&r->hlc, io_wall_ms());
            if (ok(mark_write(r, version))) r->clock_marked = version;
        }
        u64 until_ns = io_now_ns() + MARK_LOOK_NS;
        while (!r->closing && io_now_ns() < until_ns)
            (void)fiber_queue_wait(&r->clock_wake, until_ns);
    }
    r->clock_runs = false;
    fiber_queue_wake_all(&r->idle);
}

void
clock_open(struct replicator *r)
{
    u64 floor = lsm_version_last(r->options.lsm);
    r->open_ns = io_now_ns();
    fiber_queue_init(&r->clock_wake);
    r->clock_marked = floor; /* an opening again would begin above it */
    r->promised = floor;     /* no more was told before */
    if (floor != 0) floor += (u64)REPLICATE_FLOOR_MS << HLC_MS_SHIFT;
    hlc_init(&r->hlc, floor, 0);
    /* Without it less is told of this shard, and so nothing is collected for long. */
    r->clock_runs = ok(fiber_spawn(FIBER_BACKGROUND, "replica-clock", clock_main, r));
}

/* ---- the clock ---- */

bool
version_observe(struct replicator *r, u64 version, const char *what, u32 member)
{
    u64 wall_ms = io_wall_ms();
    if (ok(hlc_observe(&r->hlc, version, wall_ms))) return true;
    MARK("cluster.replicate.clock_refused");
    r->stats.clocks_refused++;
    u64 now = io_now_ns();
    if (r->clock_log_ns == 0 || now - r->clock_log_ns >= CLOCK_LOG_NS) {
        r->clock_log_ns = now;
        log_warning("cluster",
                    "a version from the future is refused: check the clocks ahead_ms=%llu "
                    "member=%u what=%s refused=%llu",
                    (unsigned long long)(hlc_wall_ms(version) - wall_ms), member, what,
                    (unsigned long long)r->stats.clocks_refused);
    }
    return false;
}

bool
clock_observe_hint(void *arg, u64 version)
{
    struct replicator *r = arg;
    return version_observe(r, version, "hint", r->self);
}

bool
replicator_observe(struct replicator *r, u64 version, u32 member)
{
    return version_observe(r, version, "moved", member);
}

u64
replicator_ahead_ms(const struct replicator *r, u64 wall_ms)
{
    return hlc_ahead_ms(&r->hlc, wall_ms);
}

/* How long this shard must not stamp yet. */
static u64
quiet_ns(const struct replicator *r)
{
    u64 since = io_now_ns() - r->open_ns;
    if (since < REPLICATE_QUIET_MS * NS_PER_MS) return REPLICATE_QUIET_MS * NS_PER_MS - since;
    if (since >= REPLICATE_QUIET_MS_MAX * NS_PER_MS) return 0;
    u64 ahead_ns = hlc_ahead_ms(&r->hlc, io_wall_ms()) * NS_PER_MS;
    /* Once writes of others were observed, the clock is ahead for other reasons. */
    u64 left = REPLICATE_QUIET_MS_MAX * NS_PER_MS - since;
    return ahead_ns > (HLC_AHEAD_MS_MAX / 2) * NS_PER_MS ? MIN(ahead_ns, left) : 0;
}

bool
replicator_may_stamp(const struct replicator *r)
{
    return quiet_ns(r) == 0;
}

MAY_YIELD bool
stamp_await(struct replicator *r, u64 deadline_ns)
{
    for (;;) {
        u64 wait = quiet_ns(r);
        u64 now = io_now_ns();
        if (wait == 0) return true;
        if (r->closing || now >= deadline_ns) return false;
        (void)fiber_queue_wait(&r->changed, MIN(deadline_ns, now + wait));
    }
}
