/* SPDX-License-Identifier: MIT
 *
 * test_batch.c -- encoding of operations, and that the decoder refuses whatever is not one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"
#include "lsm/lsm_internal.h"

static struct budget budget;

static void
operations_come_back_as_they_went_in(void **state)
{
    (void)state;
    budget_init(&budget, "test", MIB(1), NULL);
    struct lsm_batch batch;
    lsm_batch_init(&batch, &budget);
    struct bytes a = BYTES_LITERAL("a"), b = BYTES_LITERAL("b\0b");
    assert_true(lsm_batch_put(&batch, 3, hash_token(a), a, BYTES_LITERAL("value"), 77));
    assert_true(lsm_batch_put(&batch, 0, hash_token(b), b, BYTES(NULL, 0), 0));
    assert_true(lsm_batch_delete(&batch, 15, hash_token(a), a));
    assert_int_equal(batch.count, 3);
    struct bytes rest = buf_bytes(&batch.ops);
    struct lsm_op op;
    bool bad;
    assert_true(lsm_op_next(&rest, &op, &bad));
    assert_int_equal(op.header.kind, ENTRY_PUT);
    assert_int_equal(op.header.keyspace, 3);
    assert_int_equal(op.header.expire_ms, 77);
    assert_true(bytes_equal(op.key, a));
    assert_true(bytes_equal(op.value, BYTES_LITERAL("value")));
    assert_true(lsm_op_next(&rest, &op, &bad));
    assert_true(bytes_equal(op.key, b));
    assert_int_equal(op.value.size, 0);
    assert_true(lsm_op_next(&rest, &op, &bad));
    assert_int_equal(op.header.kind, ENTRY_DELETE);
    assert_int_equal(op.header.keyspace, 15);
    assert_false(lsm_op_next(&rest, &op, &bad));
    assert_false(bad);
    lsm_batch_clear(&batch);
    assert_true(lsm_batch_delete_range(&batch, 1, 5, 9));
    rest = buf_bytes(&batch.ops);
    assert_true(lsm_op_next(&rest, &op, &bad));
    assert_int_equal(op.header.kind, ENTRY_DELETE_RANGE);
    assert_int_equal(op.header.token, 5);
    assert_int_equal(load_u64(op.value.data), 9);
    lsm_batch_deinit(&batch);
    assert_int_equal(budget.used_bytes, 0);
}

static void
a_batch_without_memory_stays_as_it_was(void **state)
{
    (void)state;
    budget_init(&budget, "test", 1024, NULL);
    struct lsm_batch batch;
    lsm_batch_init(&batch, &budget);
    static const u8 value[4096];
    struct bytes key = BYTES_LITERAL("k");
    assert_true(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, 10), 0));
    size_t size = batch.ops.size;
    assert_false(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, 4096), 0));
    assert_int_equal(batch.ops.size, size);
    assert_int_equal(batch.count, 1);
    lsm_batch_deinit(&batch);
}

/* Whatever the bytes are, the decoder stays inside them and says bad or gives a sound operation. */
static void
garbage_is_refused(void **state)
{
    (void)state;
    budget_init(&budget, "test", MIB(4), NULL);
    struct prng prng;
    prng_init(&prng, 1);
    struct bytes key = BYTES_LITERAL("key");
    for (u32 round = 0; round < 20000; round++) {
        struct lsm_batch batch;
        lsm_batch_init(&batch, &budget);
        assert_true(lsm_batch_put(&batch, 1, hash_token(key), key, BYTES_LITERAL("0123456789"), 5));
        assert_true(lsm_batch_delete(&batch, 1, hash_token(key), key));
        u32 flips = (u32)prng_range(&prng, 1, 3);
        for (u32 i = 0; i < flips; i++)
            batch.ops.data[prng_below(&prng, batch.ops.size)] ^= (u8)(1u << prng_below(&prng, 8));
        struct bytes rest = BYTES(batch.ops.data, prng_below(&prng, batch.ops.size + 1));
        const u8 *end = rest.data + rest.size;
        struct lsm_op op;
        bool bad;
        u32 count = 0;
        while (lsm_op_next(&rest, &op, &bad)) {
            assert_true(op.key.data + op.key.size <= end);
            assert_true(op.value.data + op.value.size <= end);
            assert_true(op.header.keyspace < LIMIT_KEYSPACES);
            assert_true(op.key.size <= LIMIT_KEY_BYTES && op.value.size <= LIMIT_VALUE_BYTES);
            assert_true(++count < 10);
        }
        lsm_batch_deinit(&batch);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operations_come_back_as_they_went_in),
        cmocka_unit_test(a_batch_without_memory_stays_as_it_was),
        cmocka_unit_test(garbage_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
