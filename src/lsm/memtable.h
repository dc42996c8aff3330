/* SPDX-License-Identifier: MIT
 *
 * memtable.h -- the newest entries of one keyspace, sorted, in one arena. Single writer; readers
 * are fibers of the same shard.
 *
 * Shape: a radix root on the top token bits inside the store's range, whose slots hold small
 * B+trees of 8-byte tokens; a leaf element leads to the versions of its keys, newest first. An
 * older version stays reachable only while a snapshot may need it. Memory is taken from the budget
 * in chunks up to the capacity; an insert that was admitted by memtable_fits cannot fail.
 */
#ifndef DISTKV_LSM_MEMTABLE_H
#define DISTKV_LSM_MEMTABLE_H

#include "base/mem.h"
#include "lsm/entry.h"
#include "lsm/memtable_memory.h"

struct memtable;
struct leaf; /* of a memtable */
struct record;

/* NULL: no memory. capacity_bytes: of everything it may ever take. */
MUST_CHECK struct memtable *memtable_new(struct budget *budget, u64 token_first, u64 token_last,
                                         u64 capacity_bytes);
/* Readers hold a reference across yields. */
void memtable_ref(struct memtable *memtable);
void memtable_unref(struct memtable *memtable);

/* Right after memtable_new. pages must outlive the memtable. */
void memtable_pages_use(struct memtable *memtable, struct memtable_pages *pages);

/* Makes room for entries of these sizes (key and value bytes in all, and their count), so that
 * inserting them cannot fail; false when capacity or budget do not allow it. */
MUST_CHECK bool memtable_fits(struct memtable *memtable, u64 bytes, u32 count);
/* Copies the bytes. keep_older: a snapshot may be open, so the versions that this one covers stay;
 * else they are let go. A version that comes after a higher one is left out: nobody can see it. */
void memtable_insert(struct memtable *memtable, const struct entry *entry, bool keep_older);
/* hint: what memtable_prefetch_leaf said of this token, be it before other inserts; or NULL. */
void memtable_insert_near(struct memtable *memtable, const struct entry *entry, bool keep_older,
                          const struct leaf *hint);
/* The newest version with seq <= seq_max; false when there is none. The bytes live as long as the
 * memtable. */
bool memtable_get(const struct memtable *memtable, u64 token, struct bytes key, u64 seq_max,
                  struct entry *out);
/* Of what memtable_get or a cursor has returned: notes that a reader was told of it, and tells
 * whether any was, of this version or, here, of one before it. */
void memtable_read_note(const struct entry *entry);
bool memtable_was_read(const struct entry *entry);
/* Hints for memtable_get and inserts, each of which asks for what the next one reads: the root of
 * the token's tree, then a leaf, then the record. What they return is for the next one and for
 * memtable_get_found, may be NULL, and is valid until the next insert (a leaf for
 * memtable_insert_near as long as the memtable is). */
void memtable_prefetch_root(const struct memtable *memtable, u64 token);
const struct leaf *memtable_prefetch_leaf(const struct memtable *memtable, u64 token);
/* insert: an insert follows. */
const struct record *memtable_prefetch_record(const struct leaf *leaf, u64 token, bool insert);
/* True, and the newest version, when that is the key's; memtable_read_note is done. */
bool memtable_get_found(const struct record *record, struct bytes key, struct entry *out);
/* A cursor (never yields); it refs the memtable. Insertions while it is open are allowed; it may or
 * may not see them. NULL: no memory. */
MUST_CHECK struct cursor *memtable_cursor_open(struct memtable *memtable, struct budget *budget);

u64 memtable_used_bytes(const struct memtable *memtable); /* memory taken */
u64 memtable_entry_count(const struct memtable *memtable);
/* A range delete hides all that is in it: only what comes from now on is counted here. */
void memtable_cover(struct memtable *memtable);
u64 memtable_uncovered_count(const struct memtable *memtable);
u64 memtable_seq_min(const struct memtable *memtable); /* UINT64_MAX when empty */
u64 memtable_seq_max(const struct memtable *memtable); /* 0 when empty */
u64 memtable_version_max(const struct memtable *memtable);
/* Walks everything; true when every invariant holds. */
bool memtable_check(const struct memtable *memtable);

#endif
