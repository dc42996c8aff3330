/* SPDX-License-Identifier: MIT
 *
 * fuzz_peer_tree.c -- any bytes as a body of PEER_TREE, or of an answer to its ROOTS (the first
 * byte chooses). What decodes encodes to the same bytes.
 */
#include <stdlib.h>

#include "proto/peer_tree.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
same(const u8 *encoded, size_t size, const u8 *bytes)
{
    CHECK(memcmp(encoded, bytes, size) == 0);
}

static void
request(struct bytes body)
{
    struct peer_tree tree;
    if (!ok(peer_tree_decode(body, &tree))) return;
    u8 head[PEER_TREE_HEAD_BYTES];
    peer_tree_head(&tree, head);
    same(head, sizeof(head), body.data);
    struct bytes rest = tree.items;
    struct peer_tree_root root;
    struct bytes key;
    u32 partition, count = 0;
    switch ((enum peer_tree_kind)tree.kind) {
    case PEER_TREE_ROOTS:
        for (const u8 *at = rest.data; peer_tree_root_next(&rest, &root); at = rest.data) {
            u8 item[PEER_TREE_ROOT_BYTES];
            peer_tree_root_encode(&root, item);
            same(item, sizeof(item), at);
            count++;
        }
        break;
    case PEER_TREE_ENTRIES:
        while (peer_tree_key_next(&rest, &key))
            count++;
        break;
    case PEER_TREE_SETTLED:
        while (peer_tree_partition_next(&rest, &partition))
            count++;
        break;
    }
    CHECK(count == tree.count && rest.size == 0);
}

static void
answer(struct bytes body)
{
    u32 session;
    struct bytes rest;
    if (!ok(peer_tree_roots_decode(body, &session, &rest))) return;
    struct peer_tree_side side;
    for (const u8 *at = rest.data; ok(peer_tree_side_next(&rest, &side)); at = rest.data) {
        u8 head[PEER_TREE_SIDE_BYTES];
        peer_tree_side_head(&side, head);
        same(head, sizeof(head), at);
        u64 sum = 0;
        for (u32 i = 0; side.leaves != NULL && i < PEER_TREE_LEAVES; i++)
            sum += load_u64(side.leaves + 8 * i);
        (void)sum;
        CHECK((side.leaves != NULL) == (side.state == PEER_TREE_DIFFER));
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    struct bytes body = BYTES(data + 1, size - 1);
    if (data[0] % 2 == 0)
        request(body);
    else
        answer(body);
    return 0;
}
