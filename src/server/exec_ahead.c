/* SPDX-License-Identifier: MIT
 *
 * exec_ahead.c -- reads ahead of a handler that goes through many keys in their order (MGET,
 * EXISTS, DEL ...): EXEC_AHEAD_MAX cold keys at a time, where one after the other would leave the
 * disk idle.
 *
 *   arguments   k0  k1  k2  k3  k4  k5 ...
 *   reader 0    k0          k3              each reader has one slot: it fills it with its next key
 *   reader 1        k1          k4          and waits until the handler has taken that
 *   reader 2            k2          k5
 *
 * The handler takes the slots in order; so at most EXEC_AHEAD_MAX values are held, each pinned as
 * by lsm_get. Readers are fibers of the class of the one they read for, and are gone when the run
 * ends. Where there are no fibers, or a read failed, the handler reads for itself.
 *
 * A value that is large keeps memory: after the first one nothing more is read ahead.
 */
#include "server/exec.h"

#include "base/fault.h"

#include "server/command_table.h"

#define EXEC_AHEAD_MAX         8u
#define EXEC_AHEAD_KEYS_MIN    4u
#define EXEC_AHEAD_VALUE_BYTES (64u << 10)

static_assert(EXEC_AHEAD_MAX <= WORK_UNITS_MAX, "a unit for each read");

struct slot {
    struct exec_ahead *ahead;
    u32 first; /* argument */
    u32 index; /* of the argument whose value it holds */
    bool full;
    bool ended; /* its reader has: it is not filled any more */
    status st;
    struct lsm_value value;
};

struct exec_ahead {
    struct shard *shard;
    struct budget *budget;
    const struct bytes *args;
    u32 arg_count;
    u16 keyspace;
    u32 next;    /* argument that the handler is expected to want */
    u32 readers; /* slots that are in use */
    u32 running;
    bool stop;
    struct fiber_queue filled, taken;
    struct slot slots[EXEC_AHEAD_MAX];
};

MAY_YIELD static void
reader(void *arg)
{
    struct slot *slot = arg;
    struct exec_ahead *ahead = slot->ahead;
    for (u32 i = slot->first; i < ahead->arg_count && !ahead->stop; i += ahead->readers) {
        struct bytes key = ahead->args[i];
        memset(&slot->value, 0, sizeof(slot->value));
        slot->st =
            lsm_get(ahead->shard->lsm, NULL, ahead->keyspace, hash_token(key), key, &slot->value);
        slot->index = i;
        slot->full = true;
        if (ok(slot->st) && slot->value.value.size > EXEC_AHEAD_VALUE_BYTES) ahead->stop = true;
        fiber_queue_wake_all(&ahead->filled);
        while (slot->full && !ahead->stop) {
            status st = fiber_queue_wait(&ahead->taken, FIBER_FOREVER);
            CHECK(ok(st));
        }
    }
    slot->ended = true;
    ahead->running--;
    fiber_queue_wake_all(&ahead->filled);
}

void
exec_ahead_start(struct exec *x)
{
    enum command_place place = x->command->place;
    if (place != PLACE_SPLIT_ARRAY && place != PLACE_SPLIT_SUM) return;
    if (x->arg_count <= EXEC_AHEAD_KEYS_MIN) return;
    struct exec_ahead *ahead = mem_alloc_zero(x->budget, sizeof(*ahead));
    if (ahead == NULL) return;
    ahead->shard = x->shard;
    ahead->budget = x->budget;
    ahead->args = x->args;
    ahead->arg_count = x->arg_count;
    ahead->keyspace = x->keyspace;
    ahead->next = 1; /* the table has their keys from the first argument on */
    fiber_queue_init(&ahead->filled);
    fiber_queue_init(&ahead->taken);
    u32 wanted = MIN(EXEC_AHEAD_MAX, x->arg_count - 1);
    for (u32 i = 0; i < wanted; i++) {
        struct slot *slot = &ahead->slots[i];
        slot->ahead = ahead;
        slot->first = 1 + i;
        status st = fiber_spawn(fiber_class_self(), "read ahead", reader, slot);
        if (!ok(st)) break;
        ahead->readers++; /* none has begun yet: all see the same number */
        ahead->running++;
    }
    x->ahead = ahead;
}

/* The slot of an argument, once it is known what becomes of it. */
MAY_YIELD static struct slot *
settled(struct exec_ahead *ahead, u32 index)
{
    struct slot *slot = &ahead->slots[(index - 1) % ahead->readers];
    while (!slot->full && !slot->ended) {
        status st = fiber_queue_wait(&ahead->filled, FIBER_FOREVER);
        CHECK(ok(st));
    }
    return slot->full && slot->index == index ? slot : NULL;
}

static void
slot_free(struct slot *slot)
{
    slot->full = false;
    fiber_queue_wake_all(&slot->ahead->taken);
}

MAY_YIELD bool
exec_ahead_take(struct exec *x, u16 keyspace, struct bytes key, struct lsm_value *out,
                status *st_out)
{
    struct exec_ahead *ahead = x->ahead;
    if (ahead == NULL || ahead->readers == 0 || keyspace != ahead->keyspace) return false;
    u32 index = ahead->next;
    while (index < ahead->arg_count && ahead->args[index].data != key.data)
        index++;
    if (index == ahead->arg_count) return false;
    struct slot *slot;
    /* Those that the handler has no need to read: it has written them itself. */
    for (; ahead->next < index; ahead->next++) {
        slot = settled(ahead, ahead->next);
        if (slot == NULL) continue;
        if (ok(slot->st)) lsm_value_release(&slot->value);
        slot_free(slot);
    }
    ahead->next++;
    slot = settled(ahead, index);
    if (slot == NULL) return false;
    *st_out = slot->st;
    *out = slot->value;
    slot_free(slot);
    if (ok(*st_out) || status_is(*st_out, ST_NOT_FOUND)) return true;
    MARK("server.exec.ahead_failed"); /* memory, perhaps: one alone may have it */
    return false;
}

MAY_YIELD void
exec_ahead_stop(struct exec *x)
{
    struct exec_ahead *ahead = x->ahead;
    if (ahead == NULL) return;
    x->ahead = NULL;
    ahead->stop = true;
    fiber_queue_wake_all(&ahead->taken);
    while (ahead->running > 0) {
        status st = fiber_queue_wait(&ahead->filled, FIBER_FOREVER);
        CHECK(ok(st));
    }
    for (u32 i = 0; i < ahead->readers; i++) {
        struct slot *slot = &ahead->slots[i];
        if (slot->full && ok(slot->st)) lsm_value_release(&slot->value);
    }
    mem_free(ahead->budget, ahead, sizeof(*ahead));
}
