/* SPDX-License-Identifier: MIT
 *
 * fuzz_manifest.c -- any bytes as a manifest. The checksums are made right first, because the
 * fuzzer would hardly ever find them; what decodes must encode to the same bytes.
 */
#include <stdlib.h>

#include "base/crc.h"
#include "lsm/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
seal(u8 *data, u64 size)
{
    struct manifest_header header;
    memcpy(&header, data, sizeof(header));
    if (header.size < sizeof(header) || header.size > size) header.size = size;
    for (u64 at = sizeof(header); header.size - at >= sizeof(struct manifest_part);) {
        struct manifest_part part;
        memcpy(&part, data + at, sizeof(part));
        if (part.size > header.size - at - sizeof(part)) break;
        part.crc = crc32c(part.kind, data + at + sizeof(part), part.size);
        memcpy(data + at, &part, sizeof(part));
        at += sizeof(part) + part.size;
    }
    header.content_crc = crc32c(0, data + sizeof(header), header.size - sizeof(header));
    header.header_crc = crc32c(0, &header, offsetof(struct manifest_header, header_crc));
    memcpy(data, &header, sizeof(header));
}

static void
decode(const u8 *data, size_t size)
{
    struct budget budget;
    budget_init(&budget, "fuzz", MIB(256), NULL);
    struct manifest manifest;
    u64 offset;
    const char *what = NULL;
    status st = manifest_decode(BYTES(data, size), &budget, &manifest, &offset, &what);
    if (ok(st)) {
        u64 again_size = manifest_encoded_size(&manifest);
        CHECK(again_size <= size);
        u8 *again = malloc(again_size);
        CHECK(again != NULL);
        manifest_encode(&manifest, again);
        CHECK(memcmp(again, data, again_size) == 0);
        free(again);
        manifest_free(&manifest);
    } else {
        CHECK(what != NULL);
    }
    CHECK(budget.used_bytes == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    decode(data, size);
    if (size < sizeof(struct manifest_header)) return 0;
    u8 *copy = malloc(size);
    CHECK(copy != NULL);
    memcpy(copy, data, size);
    seal(copy, size);
    decode(copy, size);
    free(copy);
    return 0;
}
