/* SPDX-License-Identifier: MIT
 *
 * fuzz_dvvset.c -- any bytes as the siblings of a key, and as a context. What decodes encodes to
 * the same bytes, and syncs and writes keep the invariants of a set. And as the value of an entry:
 * whatever it is, it is met as a set, and a union of it with itself is the same.
 */
#include <stdlib.h>

#include "cluster/siblings.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
same_bytes(const struct buf *buf, const uint8_t *data, size_t size)
{
    CHECK(bytes_equal(buf_bytes(buf), BYTES(data, size)));
}

/* Syncs the set with itself and with what is left of it after a write that saw all of it. */
static void
use(const struct dvvset *set, struct budget *budget)
{
    struct dvvset twice, after;
    dvvset_init(&twice, budget);
    dvvset_init(&after, budget);
    CHECK(ok(dvvset_sync(set, set, &twice)));
    CHECK(dvvset_check(&twice) && twice.count == set->count);
    CHECK((dvvset_latest(set) == NULL) == (set->count == 0));
    struct dvv_value value = {.actor = {.incarnation = 1}, .counter = 1};
    status st = dvvset_update(&twice, dvvset_context(set), &value);
    CHECK(dvvset_check(&twice));
    CHECK(!ok(st) || twice.count == 1);
    CHECK(ok(dvvset_sync(&twice, set, &after)));
    CHECK(dvvset_check(&after) && after.count == twice.count);
    dvvset_deinit(&twice);
    dvvset_deinit(&after);
}

static void
use_entry(struct bytes value, struct budget *budget)
{
    struct siblings_entry entry = {.found = true, .version = 77, .value = value};
    struct buf bytes, both;
    buf_init(&bytes, budget);
    buf_init(&both, budget);
    CHECK(ok(siblings_bytes(&entry, 5, &bytes)));
    CHECK(ok(siblings_union(buf_bytes(&bytes), buf_bytes(&bytes), &both)));
    CHECK(bytes_equal(buf_bytes(&bytes), buf_bytes(&both)));
    CHECK(siblings_version_of(buf_bytes(&bytes), 5, buf_bytes(&bytes), 6, buf_bytes(&both)) ==
          SIBLINGS_TAKE);
    buf_deinit(&bytes);
    buf_deinit(&both);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct budget budget;
    budget_init(&budget, "fuzz", MIB(64), NULL);
    struct buf buf;
    buf_init(&buf, &budget);
    struct dvvset set;
    dvvset_init(&set, &budget);
    if (ok(dvvset_decode(BYTES(data, size), &set))) {
        CHECK(dvvset_check(&set));
        CHECK(ok(dvvset_encode(&set, &buf)));
        same_bytes(&buf, data, size);
        use(&set, &budget);
    }
    dvvset_deinit(&set);
    buf_clear(&buf, 0);
    struct dvv_vector context;
    dvv_vector_init(&context, &budget);
    if (ok(dvv_vector_decode(BYTES(data, size), &context))) {
        CHECK(ok(dvv_vector_encode(&context, &buf)));
        same_bytes(&buf, data, size);
    }
    dvv_vector_deinit(&context);
    if (size <= 4096) use_entry(BYTES(data, size), &budget);
    buf_deinit(&buf);
    CHECK(budget.used_bytes == 0);
    return 0;
}
