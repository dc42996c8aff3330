/* SPDX-License-Identifier: MIT
 *
 * fuzz_peer_forward.c -- any bytes as what one node has another one run, or as the answer to its
 * WATCH. The first byte chooses which; what decodes encodes to the same bytes.
 */
#include <stdlib.h>

#include "proto/peer_forward.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define WATCHED_MAX 4u

static void
encode(struct buf *out, const struct peer_forward *forward)
{
    CHECK(peer_forward_begin(out, forward));
    for (u32 i = 0; i < forward->watch_count; i++) {
        struct peer_watch watch = peer_forward_watch_at(forward, i);
        CHECK(peer_forward_watch(out, &watch));
    }
    for (u32 i = 0; i < forward->command_count; i++)
        CHECK(peer_forward_count(out, peer_forward_count_at(forward, i)));
    struct bytes *args = malloc(forward->arg_count * sizeof(*args));
    CHECK(args != NULL);
    peer_forward_args(forward, args);
    for (u32 i = 0; i < forward->arg_count; i++)
        CHECK(peer_forward_arg(out, args[i]));
    free(args);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    struct bytes body = BYTES(data + 1, size - 1);
    struct budget budget;
    struct buf out;
    budget_init(&budget, "fuzz", MIB(8), NULL);
    buf_init(&out, &budget);
    if (data[0] % 2 == 0) {
        struct peer_forward forward;
        if (!ok(peer_forward_decode(body, &forward))) return 0;
        encode(&out, &forward);
    } else {
        u32 count = data[0] / 2 % (WATCHED_MAX + 1);
        if (!ok(peer_watched_check(body, count))) return 0;
        CHECK(buf_append(&out, "+OK\r\n", 5));
        for (u32 i = 0; i < count; i++) {
            struct peer_watch watch = peer_watched_at(body, i);
            CHECK(peer_watched_encode(&out, &watch));
        }
    }
    CHECK(bytes_equal(buf_bytes(&out), body));
    buf_deinit(&out);
    CHECK(budget.used_bytes == 0);
    return 0;
}
