/* SPDX-License-Identifier: MIT
 *
 * keylock.h -- exclusive locks on keys for commands that read, wait and then write.
 *
 * A command that never yields is atomic by itself; it asks keylock_held before it writes, which is
 * one branch while nobody waits. One that runs on a fiber takes the locks of all its keys first, in
 * ascending order of their hashes, so that two of them never wait for each other. Waiting is first
 * in, first out. A lock is on a 64-bit hash of (keyspace, key): two keys of one hash share a lock,
 * which costs a little waiting and nothing else.
 *
 * A transaction may lock tens of thousands of keys. So what is held lies in digital search trees:
 * the lowest bits of a hash choose the tree, each further bit left or right. No tree is deeper than
 * a hash has bits, whoever chose the keys, and a lock needs no memory but its holder's. Who takes
 * or gives back many makes room for others in between.
 *
 * All keys can be locked at once, for what touches whole keyspaces. Who wants that waits until
 * nobody holds a lock; whoever comes meanwhile without any lock waits behind it at the gate, while
 * those who have some may take the rest of theirs. When the lock of all is given back, everybody
 * who was at the gate then passes before the next one gets it: neither kind starves the other.
 */
#ifndef DISTKV_SERVER_KEYLOCK_H
#define DISTKV_SERVER_KEYLOCK_H

#include "base/status.h"
#include "io/fiber.h"

#define KEYLOCK_TREES 256u

/* One held lock; the memory is the holder's. */
struct keylock {
    struct keylock *parent, *children[2]; /* in its tree while held */
    u64 hash;
    struct fiber_queue waiters;
};

struct keylock_table {
    struct keylock *roots[KEYLOCK_TREES];
    u64 held;  /* locks now; the one of all keys is one, too */
    u64 waits; /* times that somebody had to wait */
    /* the lock of all keys */
    bool all_held;
    u32 all_wanted; /* fibers in all_queue, or about to leave it */
    u32 passing;    /* fibers let through the gate that have not run yet */
    struct fiber_queue all_queue, gate;
};

void keylock_table_init(struct keylock_table *table);
bool keylock_find(const struct keylock_table *table, u64 hash);
/* Whether a write of the key must wait. */
static inline bool
keylock_held(const struct keylock_table *table, u64 hash)
{
    return UNLIKELY(table->held != 0) && keylock_find(table, hash);
}

/* hashes: ascending, none twice; locks: one for each. */
MAY_YIELD void keylock_acquire(struct keylock_table *table, const u64 *hashes,
                               struct keylock *locks, u32 count);
MAY_YIELD void keylock_release(struct keylock_table *table, struct keylock *locks, u32 count);

/* ST_TIMED_OUT: not got until deadline_ns. */
MAY_YIELD MUST_CHECK status keylock_acquire_all(struct keylock_table *table, u64 deadline_ns);
void keylock_release_all(struct keylock_table *table);

/* Each lock once, where it is looked for, and counted. */
bool keylock_check(const struct keylock_table *table);

#endif
