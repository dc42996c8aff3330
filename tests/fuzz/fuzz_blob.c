/* SPDX-License-Identifier: MIT
 *
 * fuzz_blob.c -- the decoders of blob files, with checksums as they come and put right.
 */
#include "lsm/table_format.h"

#include <stdlib.h>

#define FILE_ID 1u
#define OFFSET  64u

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

static void
record(const u8 *data, size_t size)
{
    struct blob_record out = {0};
    const char *what = NULL;
    status st = blob_record_decode(BYTES(data, size), FILE_ID, OFFSET, &out, &what);
    if (status_is(st, ST_INCOMPLETE)) CHECK(out.bytes > size);
    if (status_is(st, ST_CORRUPT)) CHECK(what != NULL);
    if (!ok(st)) return;
    CHECK(out.bytes <= size && out.key.size > 0 && out.key.size <= LIMIT_KEY_BYTES);
    CHECK(out.value.size <= LIMIT_VALUE_BYTES);
    CHECK(out.key.data + out.key.size == out.value.data);
    CHECK(out.value.data + out.value.size <= data + size);
}

int
LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    struct blob_footer footer;
    const char *what = NULL;
    (void)!ok(blob_header_decode(BYTES(data, size), FILE_ID, &what));
    (void)!ok(blob_footer_decode(BYTES(data, size), FILE_ID, 4096, &footer, &what));
    if (size == 0) return 0;
    u8 *copy = malloc(size);
    memcpy(copy, data, size);
    record(copy, size);
    struct blob_record_header header;
    if (size >= sizeof(header)) {
        memcpy(&header, copy, sizeof(header));
        size_t rest = size - sizeof(header);
        if (header.key_size <= rest && header.value_size <= rest - header.key_size) {
            header.magic = BLOB_RECORD_MAGIC;
            const u8 *key = copy + sizeof(header);
            header.value_crc = crc32c(0, key + header.key_size, header.value_size);
            u32 crc = crc32c(table_place_seed(FILE_ID, OFFSET), (const u8 *)&header + 8,
                             sizeof(header) - 8);
            header.crc = crc32c(crc, key, header.key_size);
            memcpy(copy, &header, sizeof(header));
            record(copy, size);
        }
    }
    if (size >= sizeof(footer)) {
        u8 *at = copy + size - sizeof(footer);
        store_u32(at + sizeof(footer) - 4, crc32c(0, at, sizeof(footer) - 4));
        u64 file_bytes = load_u64(at + offsetof(struct blob_footer, file_bytes));
        if (ok(blob_footer_decode(BYTES(copy, size), FILE_ID, file_bytes, &footer, &what)))
            CHECK(footer.records_end + sizeof(footer) <= file_bytes);
    }
    free(copy);
    return 0;
}
