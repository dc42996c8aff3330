/* SPDX-License-Identifier: MIT
 *
 * test_raft_codec.c -- messages as bytes: what goes in comes out, and what nobody makes is refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/prng.h"
#include "raft/raft_codec.h"

static void
expect_same(const struct raft_message *a, const struct raft_message *b)
{
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->reject, b->reject);
    assert_int_equal(a->force, b->force);
    assert_int_equal(a->quiesce, b->quiesce);
    assert_true(a->from == b->from && a->to == b->to && a->term == b->term);
    assert_true(a->index == b->index && a->log_term == b->log_term && a->commit == b->commit);
    assert_true(a->hint == b->hint && a->round == b->round);
    assert_true(bytes_equal(a->config, b->config));
    assert_int_equal(a->entry_count, b->entry_count);
    for (u32 i = 0; i < a->entry_count; i++) {
        assert_true(a->entries[i].index == b->entries[i].index);
        assert_true(a->entries[i].term == b->entries[i].term);
        assert_int_equal(a->entries[i].kind, b->entries[i].kind);
        assert_true(bytes_equal(a->entries[i].data, b->entries[i].data));
    }
}

#define ENTRIES 8
static u8 payload[64];

static void
draw(struct prng *prng, struct raft_message *message, struct raft_entry *entries)
{
    *message = (struct raft_message){
        .type = (u8)prng_range(prng, RAFT_PRE_VOTE, RAFT_READ_REPLY),
        .reject = prng_chance(prng, 1, 2),
        .force = prng_chance(prng, 1, 2),
        .quiesce = prng_chance(prng, 1, 2),
        .from = prng_u64(prng),
        .to = prng_u64(prng),
        .term = prng_u64(prng),
        .index = prng_u64(prng) >> 1,
        .log_term = prng_u64(prng),
        .commit = prng_u64(prng),
        .hint = prng_u64(prng),
        .round = prng_u64(prng),
        .entries = entries,
    };
    if (message->type == RAFT_SNAPSHOT) message->config = BYTES(payload, prng_below(prng, 64));
    if (message->type != RAFT_APPEND) return;
    message->entry_count = (u32)prng_below(prng, ENTRIES + 1);
    for (u32 i = 0; i < message->entry_count; i++)
        entries[i] = (struct raft_entry){message->index + 1 + i, prng_u64(prng),
                                         (u8)prng_below(prng, RAFT_ENTRY_KIND_COUNT),
                                         BYTES(payload, prng_below(prng, 64))};
}

static void
what_goes_in_comes_out_and_nothing_shorter_or_longer(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "test", MIB(1), NULL);
    struct prng prng;
    prng_init(&prng, 1);
    for (u32 i = 0; i < sizeof(payload); i++)
        payload[i] = (u8)prng_u64(&prng);
    for (u32 round = 0; round < 2000; round++) {
        struct raft_message message, back;
        struct raft_entry entries[ENTRIES], list[ENTRIES];
        draw(&prng, &message, entries);
        struct buf buf;
        buf_init(&buf, &budget);
        assert_true(raft_message_encode(&message, &buf));
        assert_true(ok(raft_message_decode(buf_bytes(&buf), list, ENTRIES, &back)));
        expect_same(&message, &back);
        for (size_t size = 0; size < buf.size; size++)
            assert_false(ok(raft_message_decode(BYTES(buf.data, size), list, ENTRIES, &back)));
        assert_true(buf_append(&buf, "", 1));
        assert_false(ok(raft_message_decode(buf_bytes(&buf), list, ENTRIES, &back)));
        buf_deinit(&buf);
    }
    assert_int_equal(budget.used_bytes, 0);
}

static void
every_byte_that_has_one_meaning_only_is_checked(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "test", MIB(1), NULL);
    struct raft_entry entry = {8, 3, RAFT_ENTRY_DATA, BYTES_LITERAL("data")}, list[2];
    struct raft_message back, message = {.type = RAFT_APPEND,
                                         .from = 1,
                                         .to = 2,
                                         .term = 3,
                                         .index = 7,
                                         .log_term = 3,
                                         .entries = &entry,
                                         .entry_count = 1};
    struct buf buf;
    buf_init(&buf, &budget);
    assert_true(raft_message_encode(&message, &buf));
    static const struct {
        u32 at;
        u8 value;
    } bad[] = {{0, 0}, {0, 2}, {1, 0},  {1, 13}, {2, 8},
               {3, 1}, {4, 2}, {80, 3}, {81, 1}, {84, 5} /* the entry's size */};
    for (u32 i = 0; i < ARRAY_COUNT(bad); i++) {
        u8 kept = buf.data[bad[i].at];
        buf.data[bad[i].at] = bad[i].value;
        assert_true(status_is(raft_message_decode(buf_bytes(&buf), list, 2, &back), ST_CORRUPT));
        buf.data[bad[i].at] = kept;
    }
    assert_true(status_is(raft_message_decode(buf_bytes(&buf), list, 0, &back), ST_TOO_LARGE));
    store_u64(buf.data + 32, UINT64_MAX); /* indexes would begin again at 0 */
    assert_true(status_is(raft_message_decode(buf_bytes(&buf), list, 2, &back), ST_CORRUPT));
    buf_deinit(&buf);
}

static void
a_budget_that_is_used_up_leaves_the_buffer_as_it_was(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "test", 64, NULL);
    struct raft_message message = {.type = RAFT_HEARTBEAT, .from = 1, .to = 2, .term = 1};
    struct buf buf;
    buf_init(&buf, &budget);
    assert_false(raft_message_encode(&message, &buf));
    assert_int_equal(buf.size, 0);
    buf_deinit(&buf);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_goes_in_comes_out_and_nothing_shorter_or_longer),
        cmocka_unit_test(every_byte_that_has_one_meaning_only_is_checked),
        cmocka_unit_test(a_budget_that_is_used_up_leaves_the_buffer_as_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
