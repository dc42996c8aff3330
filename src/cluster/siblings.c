/* SPDX-License-Identifier: MIT
 *
 * siblings.c -- see siblings.h.
 */
#include "cluster/siblings.h"

#include "base/hash.h"

u32
siblings_partition(u64 token)
{
    return token_partition(token, PARTITION_COUNT_DEFAULT);
}

bool
siblings_forgot(const struct dvv_vector *own, const struct dvv_vector *other, u64 incarnation,
                u32 *generation_out)
{
    bool forgot = false;
    for (u32 i = 0; i < other->count; i++) {
        const struct dvv_entry *entry = &other->entries[i];
        if (entry->actor.incarnation != incarnation ||
            entry->counter <= dvv_vector_counter(own, entry->actor))
            continue;
        u32 generation = entry->actor.partition >> SIBLINGS_GENERATION_SHIFT;
        *generation_out = forgot ? MAX(*generation_out, generation) : generation;
        forgot = true;
    }
    return forgot;
}

/* A value from the time when the keyspace was lww; or nothing at all. */
static status
bytes_of_other(const struct siblings_entry *entry, u64 token, struct buf *out)
{
    struct dvvset set;
    dvvset_init(&set, out->budget);
    struct dvv_value value = {.actor = {.partition = siblings_partition(token)},
                              .counter = entry->version,
                              .version = entry->version,
                              .data = entry->value};
    status st = !entry->found || entry->version == 0 ? ST_OK : dvvset_update(&set, NULL, &value);
    if (ok(st)) st = dvvset_encode(&set, out);
    dvvset_deinit(&set);
    return st;
}

status
siblings_bytes(const struct siblings_entry *entry, u64 token, struct buf *out)
{
    if (entry->found && entry->value.size > LIMIT_VALUE_BYTES) return ST_CORRUPT;
    if (entry->found) {
        struct dvvset set;
        dvvset_init(&set, out->budget);
        status st = dvvset_decode(entry->value, &set);
        dvvset_deinit(&set);
        if (ok(st))
            return buf_append(out, entry->value.data, entry->value.size) ? ST_OK : ST_NO_MEMORY;
        if (!status_is(st, ST_CORRUPT)) return st;
    }
    return bytes_of_other(entry, token, out);
}

status
siblings_union(struct bytes a, struct bytes b, struct buf *out)
{
    struct dvvset left, right, both;
    dvvset_init(&left, out->budget);
    dvvset_init(&right, out->budget);
    dvvset_init(&both, out->budget);
    status st = dvvset_decode(a, &left);
    if (ok(st)) st = dvvset_decode(b, &right);
    if (ok(st)) st = dvvset_sync(&left, &right, &both);
    if (ok(st)) st = dvvset_encode(&both, out);
    if (ok(st) && out->size > LIMIT_VALUE_BYTES) st = ST_TOO_LARGE;
    dvvset_deinit(&both);
    dvvset_deinit(&right);
    dvvset_deinit(&left);
    return st;
}

enum siblings_version
siblings_version_of(struct bytes own, u64 own_version, struct bytes other, u64 other_version,
                    struct bytes both)
{
    bool is_own = bytes_equal(own, both), is_other = bytes_equal(other, both);
    if (is_own && is_other) return other_version > own_version ? SIBLINGS_TAKE : SIBLINGS_KEEP;
    if (is_own && own_version > other_version) return SIBLINGS_KEEP;
    if (is_other && other_version > own_version) return SIBLINGS_TAKE;
    return SIBLINGS_STAMP;
}
