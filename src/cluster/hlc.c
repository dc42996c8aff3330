/* SPDX-License-Identifier: MIT
 *
 * hlc.c -- see hlc.h.
 */
#include "cluster/hlc.h"

u64
hlc_version_at(u64 wall_ms)
{
    return (CLAMP(wall_ms, HLC_EPOCH_MS, HLC_WALL_MS_MAX) - HLC_EPOCH_MS) << HLC_MS_SHIFT;
}

void
hlc_init(struct hlc *hlc, u64 floor, u16 stamp)
{
    CHECK(stamp < HLC_STAMPS);
    hlc->last = floor;
    hlc->stamp = stamp;
}

u64
hlc_next(struct hlc *hlc, u64 wall_ms)
{
    /* The next one above the stamp: of a version of a peer that has a lower stamp than ours the
     * same (millisecond, counter) would do as well, but one rule is easier to trust than two. */
    u64 tick = (hlc->last >> HLC_STAMP_BITS) + 1;
    CHECK(tick < (u64)1 << (64 - HLC_STAMP_BITS)); /* HLC_WALL_MS_MAX, hlc_observe */
    hlc->last = MAX(tick << HLC_STAMP_BITS, hlc_version_at(wall_ms)) | hlc->stamp;
    return hlc->last;
}

status
hlc_observe(struct hlc *hlc, u64 version, u64 wall_ms)
{
    /* Against the wall clock, not against ourselves: else peers could push each other on by turns
     * (H3). What we have passed already cannot move us, whatever our wall clock says now. */
    if (version <= hlc->last) return ST_OK;
    u64 now = CLAMP(wall_ms, HLC_EPOCH_MS, HLC_WALL_MS_MAX);
    u64 ms = hlc_wall_ms(version);
    if (ms > now && ms - now > HLC_AHEAD_MS_MAX) return ST_INVALID;
    hlc->last = version;
    return ST_OK;
}

u64
hlc_ahead_ms(const struct hlc *hlc, u64 wall_ms)
{
    u64 ms = hlc_wall_ms(hlc->last);
    return hlc->last != 0 && ms > wall_ms ? ms - wall_ms : 0;
}
