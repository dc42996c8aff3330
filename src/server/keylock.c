/* SPDX-License-Identifier: MIT
 *
 * keylock.c -- see keylock.h. A lock is handed over by freeing it and waking the first waiter; a
 * newcomer could slip in between, so a lock with waiters is passed on: the table keeps the entry
 * of the holder, and the one who is woken finds it gone and takes it. Newcomers run on fibers,
 * too, and whoever becomes ready first goes first; a try in the receive path sees a free lock
 * only when nobody holds it, and then is atomic anyway.
 */
#include "server/keylock.h"

#include "base/fault.h"

/* After so many locks taken or given back one asks whether its turn is over. */
#define LOCKS_PER_LOOK 64u

void
keylock_table_init(struct keylock_table *table)
{
    for (u32 i = 0; i < KEYLOCK_TREES; i++)
        table->roots[i] = NULL;
    table->held = 0;
    table->waits = 0;
    table->all_held = false;
    table->all_wanted = 0;
    table->passing = 0;
    fiber_queue_init(&table->all_queue);
    fiber_queue_init(&table->gate);
}

/* ---- the trees ---- */

static struct keylock *
find(const struct keylock_table *table, u64 hash)
{
    struct keylock *lock = table->roots[hash % KEYLOCK_TREES];
    for (u64 bits = hash / KEYLOCK_TREES; lock != NULL && lock->hash != hash; bits /= 2)
        lock = lock->children[bits % 2];
    return lock;
}

/* Of a hash that is not there. */
static void
put_in(struct keylock_table *table, struct keylock *lock, u64 hash)
{
    struct keylock *parent = NULL, **place = &table->roots[hash % KEYLOCK_TREES];
    for (u64 bits = hash / KEYLOCK_TREES; *place != NULL; bits /= 2) {
        parent = *place;
        place = &parent->children[bits % 2];
    }
    *lock = (struct keylock){.parent = parent, .hash = hash};
    fiber_queue_init(&lock->waiters);
    *place = lock;
}

/* Where it hangs. */
static struct keylock **
place_of(struct keylock_table *table, const struct keylock *lock)
{
    struct keylock *parent = lock->parent;
    if (parent == NULL) return &table->roots[lock->hash % KEYLOCK_TREES];
    return &parent->children[parent->children[1] == lock];
}

static struct keylock *
leaf_below(struct keylock *lock)
{
    while (lock->children[0] != NULL || lock->children[1] != NULL)
        lock = lock->children[lock->children[0] == NULL];
    return lock;
}

/* A leaf below it fits where it was: the bits up to there are those of all below. */
static void
take_out(struct keylock_table *table, struct keylock *lock)
{
    struct keylock *leaf = leaf_below(lock);
    *place_of(table, leaf) = NULL;
    if (leaf == lock) return;
    *place_of(table, lock) = leaf;
    leaf->parent = lock->parent;
    for (u32 i = 0; i < 2; i++) {
        leaf->children[i] = lock->children[i];
        if (leaf->children[i] != NULL) leaf->children[i]->parent = leaf;
    }
}

/* The one behind it, a parent before its children; NULL: it was the last of its tree. */
static const struct keylock *
next_of(const struct keylock *lock)
{
    if (lock->children[0] != NULL) return lock->children[0];
    if (lock->children[1] != NULL) return lock->children[1];
    const struct keylock *parent = lock->parent;
    while (parent != NULL && (parent->children[1] == lock || parent->children[1] == NULL)) {
        lock = parent;
        parent = lock->parent;
    }
    return parent == NULL ? NULL : parent->children[1];
}

/* ---- locks of keys ---- */

bool
keylock_find(const struct keylock_table *table, u64 hash)
{
    return table->all_held || find(table, hash) != NULL;
}

bool
keylock_check(const struct keylock_table *table)
{
    u64 held = table->all_held ? 1 : 0;
    for (u32 i = 0; i < KEYLOCK_TREES; i++) {
        for (const struct keylock *lock = table->roots[i]; lock != NULL; lock = next_of(lock)) {
            if (find(table, lock->hash) != lock) return false;
            held++;
        }
    }
    return held == table->held && (!table->all_held || held == 1);
}

/* Those at the gate go on; they are counted until they run, so that nobody slips in before them. */
static void
gate_open(struct keylock_table *table)
{
    table->passing += fiber_queue_wake_all(&table->gate);
}

MAY_YIELD static void
gate_pass(struct keylock_table *table)
{
    if (LIKELY(!table->all_held && table->all_wanted == 0)) return;
    table->waits++;
    status st = fiber_queue_wait(&table->gate, FIBER_FOREVER);
    CHECK(ok(st) && table->passing > 0 && !table->all_held);
    table->passing--;
}

MAY_YIELD static void
make_room(u32 done)
{
    if (done % LOCKS_PER_LOOK == LOCKS_PER_LOOK - 1 && fiber_should_yield()) fiber_yield();
}

MAY_YIELD void
keylock_acquire(struct keylock_table *table, const u64 *hashes, struct keylock *locks, u32 count)
{
    CHECK(count > 0);
    gate_pass(table);
    table->passing++; /* until it holds something: who wants all must not slip in between */
    for (u32 i = 0; i < count; i++) {
        CHECK(i == 0 || hashes[i - 1] < hashes[i]);
        make_room(i);
        struct keylock *holder;
        while ((holder = find(table, hashes[i])) != NULL) {
            table->waits++;
            status st = fiber_queue_wait(&holder->waiters, FIBER_FOREVER);
            CHECK(ok(st));
        }
        put_in(table, &locks[i], hashes[i]);
        table->held++;
    }
    table->passing--;
    AUDIT("server.keylock.acquired", keylock_check(table));
}

MAY_YIELD void
keylock_release(struct keylock_table *table, struct keylock *locks, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        make_room(i);
        CHECK(table->held > 0);
        take_out(table, &locks[i]);
        table->held--;
        /* All of them: each looks again, the first to run takes the lock, the others queue behind
         * it in the same order. */
        (void)fiber_queue_wake_all(&locks[i].waiters);
    }
    if (table->held == 0) (void)fiber_queue_wake_one(&table->all_queue);
    AUDIT("server.keylock.released", keylock_check(table));
}

/* ---- all keys ---- */

MAY_YIELD status
keylock_acquire_all(struct keylock_table *table, u64 deadline_ns)
{
    table->all_wanted++;
    status st = ST_OK;
    while (ok(st) && (table->held > 0 || table->passing > 0)) {
        table->waits++;
        st = fiber_queue_wait(&table->all_queue, deadline_ns);
    }
    table->all_wanted--;
    if (ok(st)) {
        table->all_held = true;
        table->held++;
    } else if (table->all_wanted == 0 && !table->all_held) {
        gate_open(table);
    }
    return st;
}

void
keylock_release_all(struct keylock_table *table)
{
    CHECK(table->all_held && table->held == 1);
    table->all_held = false;
    table->held = 0;
    gate_open(table);
    if (table->passing == 0) (void)fiber_queue_wake_one(&table->all_queue);
}
