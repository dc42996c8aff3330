/* SPDX-License-Identifier: MIT
 *
 * fuzz_peer_replica.c -- any bytes as a body between coordinators and replicas. The first byte
 * chooses which; what decodes encodes to the same bytes. Operations of a write are walked as a
 * replica does.
 */
#include <stdlib.h>

#include "lsm/batch.h"
#include "proto/peer_replica.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
same(const u8 *head, size_t head_size, struct bytes rest, struct bytes body)
{
    CHECK(body.size == head_size + rest.size);
    CHECK(memcmp(head, body.data, head_size) == 0);
    CHECK(rest.size == 0 || rest.data == body.data + head_size);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    struct bytes body = BYTES(data + 1, size - 1);
    u8 head[PEER_REPLICA_HEAD_BYTES];
    struct peer_write write;
    struct peer_wrote wrote;
    struct peer_read read;
    struct peer_found found;
    switch (data[0] % 4) {
    case 0:
        if (!ok(peer_write_decode(body, &write))) break;
        same(head, peer_write_head(&write, head), write.ops, body);
        u32 partition = write.partition % PARTITION_COUNT_DEFAULT;
        (void)!ok(lsm_ops_check(write.ops, write.count, 0,
                                partition_token_first(partition, PARTITION_COUNT_DEFAULT),
                                partition_token_last(partition, PARTITION_COUNT_DEFAULT)));
        break;
    case 1:
        if (ok(peer_wrote_decode(body, &wrote)))
            same(head, peer_wrote_encode(&wrote, head), BYTES(NULL, 0), body);
        break;
    case 2:
        if (ok(peer_read_decode(body, &read)))
            same(head, peer_read_head(&read, head), read.key, body);
        break;
    case 3:
        if (ok(peer_found_decode(body, &found)))
            same(head, peer_found_head(&found, head), found.value, body);
        break;
    }
    return 0;
}
