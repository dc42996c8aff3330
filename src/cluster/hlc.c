/* SPDX-License-Identifier: MIT
 *
 * hlc.c -- see hlc.h.
 */
#include "cluster/hlc.h"

void
hlc_init(struct hlc *hlc, u64 floor)
{
    hlc->last = floor;
}

u64
hlc_next(struct hlc *hlc, u64 wall_ms)
{
    /* Year 10889; a version of all ones would leave nothing to give after it. */
    CHECK(wall_ms < HLC_WALL_MS_MAX && hlc->last < UINT64_MAX);
    hlc->last = MAX(hlc->last + 1, wall_ms << HLC_COUNTER_BITS);
    return hlc->last;
}

status
hlc_observe(struct hlc *hlc, u64 version, u64 wall_ms)
{
    /* Against the wall clock, not against ourselves: else peers could push each other on by turns
     * (H3). What we have passed already cannot move us, whatever our wall clock says now. */
    if (version <= hlc->last) return ST_OK;
    u64 ms = hlc_wall_ms(version);
    if (ms > wall_ms && ms - wall_ms > HLC_AHEAD_MS_MAX) return ST_INVALID;
    hlc->last = version;
    return ST_OK;
}

u64
hlc_ahead_ms(const struct hlc *hlc, u64 wall_ms)
{
    u64 ms = hlc_wall_ms(hlc->last);
    return ms > wall_ms ? ms - wall_ms : 0;
}
