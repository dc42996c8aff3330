/* SPDX-License-Identifier: MIT
 *
 * fuzz_group0.c -- any bytes as what group0 stores and hears: the first byte chooses which. What
 * decodes encodes to the same bytes, but for texts, where what is not printable is replaced.
 */
#include "cluster/group0_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
same(struct bytes a, struct bytes b)
{
    CHECK(bytes_equal(a, b));
}

static void
values(u8 which, struct bytes bytes, struct buf *buf)
{
    struct group0_identity identity;
    struct raft_hard_state hard;
    struct group0_base base;
    struct bytes rest;
    u64 number;
    u8 kind, out[GROUP0_IDENTITY_BYTES];
    if (which == 0 && ok(group0_identity_decode(bytes, &identity))) {
        group0_identity_encode(&identity, out); /* bytes behind the name's end may differ */
        CHECK(memcmp(out, bytes.data, 24) == 0);
    } else if (which == 1 && ok(group0_hard_decode(bytes, &hard))) {
        group0_hard_encode(hard, out);
        CHECK(memcmp(out + 8, bytes.data + 8, 16) == 0);
    } else if (which == 2 && ok(group0_commit_decode(bytes, &number))) {
        group0_commit_encode(number, out);
        CHECK(memcmp(out + 8, bytes.data + 8, 8) == 0);
    } else if (which == 3 && ok(group0_base_decode(bytes, &base))) {
        CHECK(group0_base_encode(&base, buf));
        same(buf_bytes(buf), bytes);
    } else if (which == 4 && ok(group0_log_decode(bytes, &number, &kind, &rest))) {
        group0_log_encode(number, kind, out);
        CHECK(out[4] == bytes.data[4] && rest.size == bytes.size - GROUP0_LOG_HEADER);
    }
}

static void
bodies(u8 which, struct bytes bytes, struct buf *buf)
{
    struct group0_outcome outcome;
    struct group0_welcome welcome;
    struct group0_chunk chunk;
    struct peer_address address;
    struct bytes rest;
    u8 out[GROUP0_ENVELOPE_BYTES_MAX];
    if (which == 5 && ok(group0_outcome_decode(bytes, &outcome))) {
        CHECK(group0_outcome_encode(&outcome, buf));
        CHECK(ok(group0_outcome_decode(buf_bytes(buf), &outcome)));
    } else if (which == 6 && ok(group0_welcome_decode(bytes, &welcome))) {
        CHECK(group0_welcome_encode(&welcome, buf));
        CHECK(ok(group0_welcome_decode(buf_bytes(buf), &welcome)));
    } else if (which == 7 && ok(group0_chunk_decode(bytes, &chunk))) {
        CHECK(group0_chunk_encode(&chunk, buf));
        CHECK(buf_append(buf, chunk.data.data, chunk.data.size));
        same(buf_bytes(buf), bytes);
    } else if (which == 8 && ok(group0_envelope_decode(bytes, &address, &rest))) {
        u32 size = group0_envelope_encode(&address, out);
        same(BYTES(out, size), BYTES(bytes.data, bytes.size - rest.size));
    }
}

static void
starts_of(u8 which, struct bytes bytes)
{
    struct starts starts;
    struct starts_told told;
    enum starts_verdict verdict;
    size_t size;
    u8 out[STARTS_TOLD_BYTES_MAX];
    if (which == 9 && ok(starts_decode(bytes, &starts, &size))) {
        same(BYTES(out, starts_encode(&starts, out)), BYTES(bytes.data, size));
    } else if (which == 10 && ok(starts_told_decode(bytes, &told))) {
        same(BYTES(out, starts_told_encode(&told, out)), bytes);
        (void)starts_judge(&told.yours, &told.own);
    } else if (which == 11 && ok(starts_answer_decode(bytes, &verdict))) {
        starts_answer_encode(verdict, out);
        same(BYTES(out, STARTS_ANSWER_BYTES), bytes);
    }
}

static void
addresses(u8 which, struct bytes bytes, struct buf *buf)
{
    struct group0_told told;
    struct group0_place place;
    if (which == 12 && ok(group0_told_decode(bytes, &told))) {
        CHECK(group0_told_encode(&told, buf));
        same(buf_bytes(buf), BYTES(bytes.data, bytes.size - told.others.size));
    } else if (which == 13) {
        struct bytes rest = bytes;
        while (ok(group0_place_take(&rest, &place)))
            CHECK(group0_place_put(&place, buf));
        same(buf_bytes(buf), BYTES(bytes.data, bytes.size - rest.size));
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct budget budget;
    struct buf buf;
    if (size == 0) return 0;
    struct bytes bytes = BYTES(data + 1, size - 1);
    budget_init(&budget, "fuzz", MIB(64), NULL);
    buf_init(&buf, &budget);
    values(data[0], bytes, &buf);
    bodies(data[0], bytes, &buf);
    starts_of(data[0], bytes);
    addresses(data[0], bytes, &buf);
    u8 kind;
    u64 index;
    u32 number;
    if (group0_key_parse(BYTES(data, size), &kind, &index, &number)) {
        struct group0_key key = group0_key(kind, index, number);
        same(BYTES(key.bytes, key.size), BYTES(data, size));
    }
    buf_deinit(&buf);
    CHECK(budget.used_bytes == 0);
    return 0;
}
