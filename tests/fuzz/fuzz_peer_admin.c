/* SPDX-License-Identifier: MIT
 *
 * fuzz_peer_admin.c -- any bytes as what nodes tell each other for operators. The first byte
 * chooses which; what decodes encodes to the same bytes.
 */
#include <stdlib.h>

#include "proto/peer_admin.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    struct bytes body = BYTES(data + 1, size - 1);
    if (data[0] % 2 == 0) {
        enum peer_admin_function function;
        u8 again[PEER_ADMIN_BYTES];
        if (!ok(peer_admin_decode(body, &function))) return 0;
        peer_admin_encode(function, again);
        CHECK(bytes_equal(BYTES(again, sizeof(again)), body));
        return 0;
    }
    struct peer_figures figures;
    if (!ok(peer_figures_decode(body, &figures))) return 0;
    struct budget budget;
    struct buf out;
    budget_init(&budget, "fuzz", MIB(1), NULL);
    buf_init(&out, &budget);
    CHECK(peer_figures_encode(&figures, &out));
    CHECK(bytes_equal(buf_bytes(&out), body));
    buf_deinit(&out);
    CHECK(budget.used_bytes == 0);
    return 0;
}
