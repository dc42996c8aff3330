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

void
keylock_table_init(struct keylock_table *table)
{
    for (u32 i = 0; i < KEYLOCK_BUCKETS; i++)
        list_init(&table->buckets[i]);
    table->held = 0;
    table->waits = 0;
    table->all_held = false;
    table->all_wanted = 0;
    table->passing = 0;
    fiber_queue_init(&table->all_queue);
    fiber_queue_init(&table->gate);
}

static struct keylock *
find(const struct keylock_table *table, u64 hash)
{
    const struct list *bucket = &table->buckets[hash % KEYLOCK_BUCKETS];
    list_for_each (node, bucket) {
        struct keylock *lock = list_entry(node, struct keylock, link);
        if (lock->hash == hash) return lock;
    }
    return NULL;
}

bool
keylock_find(const struct keylock_table *table, u64 hash)
{
    return table->all_held || find(table, hash) != NULL;
}

bool
keylock_check(const struct keylock_table *table)
{
    u64 held = table->all_held ? 1 : 0;
    for (u32 i = 0; i < KEYLOCK_BUCKETS; i++) {
        list_for_each (node, &table->buckets[i]) {
            const struct keylock *lock = list_entry(node, struct keylock, link);
            if (lock->hash % KEYLOCK_BUCKETS != i || find(table, lock->hash) != lock) return false;
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

MAY_YIELD void
keylock_acquire(struct keylock_table *table, const u64 *hashes, struct keylock *locks, u32 count)
{
    CHECK(count > 0);
    gate_pass(table);
    table->passing++; /* until it holds something: who wants all must not slip in between */
    for (u32 i = 0; i < count; i++) {
        CHECK(i == 0 || hashes[i - 1] < hashes[i]);
        struct keylock *holder;
        while ((holder = find(table, hashes[i])) != NULL) {
            table->waits++;
            status st = fiber_queue_wait(&holder->waiters, FIBER_FOREVER);
            CHECK(ok(st));
        }
        locks[i].hash = hashes[i];
        fiber_queue_init(&locks[i].waiters);
        list_push_back(&table->buckets[hashes[i] % KEYLOCK_BUCKETS], &locks[i].link);
        table->held++;
    }
    table->passing--;
    AUDIT("server.keylock.acquired", keylock_check(table));
}

void
keylock_release(struct keylock_table *table, struct keylock *locks, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        list_del(&locks[i].link);
        CHECK(table->held > 0);
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
