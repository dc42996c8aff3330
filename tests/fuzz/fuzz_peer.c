/* SPDX-License-Identifier: MIT
 *
 * fuzz_peer.c -- any bytes as what a connection between nodes brings: a stream of frames, taken
 * apart as the transport does it, and the hello in each body. What reads as a hello is the same
 * bytes when it is written again, and a proof over it differs by direction.
 */
#include <stdlib.h>

#include "proto/peer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
hello(struct bytes body)
{
    struct peer_hello hello, again;
    size_t size, size_again;
    if (!ok(peer_hello_decode(body, &hello, &size))) return;
    CHECK(size <= body.size && size <= PEER_HELLO_BYTES_MAX);
    u8 bytes[PEER_HELLO_BYTES_MAX];
    CHECK(peer_hello_encode(&hello, bytes) == size);
    CHECK(bytes_equal(BYTES(bytes, size), BYTES(body.data, size)));
    CHECK(ok(peer_hello_decode(BYTES(bytes, size), &again, &size_again)) && size_again == size);
    CHECK(memcmp(&hello, &again, sizeof(hello)) == 0);
    u8 version = peer_version_choose(&hello, &again);
    CHECK(version == hello.version_max);
    u8 connects[HMAC_BYTES], listens[HMAC_BYTES];
    struct bytes part = BYTES(bytes, size), rest = BYTES(body.data + size, body.size - size);
    peer_proof(BYTES_LITERAL("secret"), PEER_CONNECTS, part, rest, connects);
    peer_proof(BYTES_LITERAL("secret"), PEER_LISTENS, part, rest, listens);
    CHECK(!hmac_equal(connects, listens));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes rest = BYTES(data, size);
    hello(rest);
    while (rest.size > 0) {
        struct native_header header;
        struct bytes body;
        size_t consumed = 0, wanted = 0;
        status st = native_frame_decode(rest, &header, &body, &consumed, &wanted);
        if (status_is(st, ST_INCOMPLETE)) {
            CHECK(wanted > rest.size && wanted <= NATIVE_FRAME_BYTES_MAX);
            return 0;
        }
        if (!ok(st)) return 0;
        CHECK(consumed == NATIVE_HEADER_BYTES + body.size && consumed <= rest.size);
        (void)peer_opcode_name(header.opcode);
        struct native_request request;
        const char *error;
        if (header.opcode >= PEER_OPCODE_MIN)
            CHECK(!ok(native_request_decode(&header, body, &request, &error)));
        hello(body);
        rest = BYTES(rest.data + consumed, rest.size - consumed);
    }
    return 0;
}
