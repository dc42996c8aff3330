/* SPDX-License-Identifier: MIT
 *
 * room_wait.c -- see room_wait.h.
 */
#include "server/room_wait.h"

#include "cluster/cluster.h"
#include "cluster/peer.h"
#include "server/shard.h"

/* How often it is asked whether there is room before others again. */
#define ROOM_LOOK_NS (2 * NS_PER_MS)
/* Links that were found full in one look; what is beyond is asked for anew. */
#define ROOM_FULL_MAX 16u

static u32 *
room_count(struct room_line *line, u32 member)
{
    return &line->of[member % ARRAY_COUNT(line->of)];
}

void
room_wait_init(struct room_wait *wait)
{
    list_init(&wait->link);
    wait->has_turn = false;
}

void
room_leave(struct shard *shard, struct room_wait *wait)
{
    struct room_line *line = &shard->room;
    list_del(&wait->link);
    *room_count(line, wait->member) -= 1;
    if (list_empty(&line->waiting)) io_timer_cancel(&line->timer);
}

void
room_await(struct shard *shard, struct room_wait *wait, u32 member, u32 there)
{
    struct room_line *line = &shard->room;
    wait->member = member;
    wait->there = there;
    list_push_back(&line->waiting, &wait->link);
    *room_count(line, member) += 1;
    if (!line->timer.armed) io_timer_arm(&line->timer, io_now_ns() + ROOM_LOOK_NS);
}

bool
room_lacks(struct shard *shard, const struct room_wait *wait, u32 member, u32 there)
{
    if (*room_count(&shard->room, member) != 0 && !wait->has_turn) return true;
    return peer_calls_full(shard->cluster->peers, member, there);
}

struct room_full {
    u32 members[ROOM_FULL_MAX], shards[ROOM_FULL_MAX];
    u32 count;
};

/* Links that are full stay so for the rest of the look: who comes behind does not pass. */
static bool
room_is_there(const struct shard *shard, const struct room_wait *wait, struct room_full *full)
{
    if (!cluster_alive(shard->server->cluster, wait->member)) return true; /* or somebody else is */
    for (u32 i = 0; i < full->count; i++)
        if (full->members[i] == wait->member && full->shards[i] == wait->there) return false;
    if (!peer_calls_full(shard->cluster->peers, wait->member, wait->there)) return true;
    if (full->count < ROOM_FULL_MAX) {
        full->members[full->count] = wait->member;
        full->shards[full->count++] = wait->there;
    }
    return false;
}

static void
room_look(struct io_timer *timer)
{
    struct room_line *line = CONTAINER_OF(timer, struct room_line, timer);
    struct shard *shard = CONTAINER_OF(line, struct shard, room);
    struct room_full full = {.count = 0};
    list_for_each_safe (pos, &line->waiting) {
        struct room_wait *wait = list_entry(pos, struct room_wait, link);
        if (!shard->draining && !room_is_there(shard, wait, &full)) continue;
        room_leave(shard, wait);
        wait->has_turn = true;
        line->go(wait);
    }
    if (!list_empty(&line->waiting) && !timer->armed)
        io_timer_arm(timer, io_now_ns() + ROOM_LOOK_NS);
}

void
room_line_open(struct room_line *line, void (*go)(struct room_wait *wait))
{
    list_init(&line->waiting);
    io_timer_init(&line->timer, room_look);
    line->go = go;
}
