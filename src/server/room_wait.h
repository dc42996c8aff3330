/* SPDX-License-Identifier: MIT
 *
 * room_wait.h -- in a node of a cluster: a shard's line of those who wait for room before the shard
 * of another member that is to run something of theirs: its connection is full.
 *
 * In order, and nobody who comes later passes (room_lacks). Who waits has nothing but its place:
 * there is no fiber, and nothing is allocated. Each look takes those from the line for whom there is
 * room, or whose member does not live any more, or all when the shard drains. Only on the shard's
 * own thread; nothing here waits.
 */
#ifndef DISTKV_SERVER_ROOM_WAIT_H
#define DISTKV_SERVER_ROOM_WAIT_H

#include "base/list.h"
#include "io/timer.h"

struct shard;

/* Embedded; zero and room_wait_init before its first use. */
struct room_wait {
    struct list link;
    u32 member, there; /* before whom, and which shard of it */
    bool has_turn;     /* it has waited, and may pass those who wait: whoever uses it clears it */
};

struct room_line {
    struct list waiting; /* struct room_wait */
    struct io_timer timer;
    /* Of each member; those who share a number share a place, and wait a little longer. */
    u32 of[64];
    void (*go)(struct room_wait *wait);
};

/* go: is called for who has left the line, to try again; has_turn is set. */
void room_line_open(struct room_line *line, void (*go)(struct room_wait *wait));
void room_wait_init(struct room_wait *wait);
static inline bool
room_waits(const struct room_wait *wait)
{
    return list_linked(&wait->link);
}
/* Whether it would have to wait before that shard of the member. */
bool room_lacks(struct shard *shard, const struct room_wait *wait, u32 member, u32 there);
void room_await(struct shard *shard, struct room_wait *wait, u32 member, u32 there);
/* Before its turn. */
void room_leave(struct shard *shard, struct room_wait *wait);

#endif
