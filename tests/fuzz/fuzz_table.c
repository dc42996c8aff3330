/* SPDX-License-Identifier: MIT
 *
 * fuzz_table.c -- the decoders of table files. The first byte says which part the rest is; the
 * checksums are put right before decoding, because what stands behind them must be safe, too.
 */
#include "lsm/codec.h"
#include "lsm/table_format.h"

#include <stdlib.h>

#define FILE_ID 1u

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

/* Every byte that an entry points to is read, so that a sanitizer sees a pointer that is wrong. */
static status
entry_touch(void *arg, const struct entry *entry)
{
    u64 *sum = arg;
    for (size_t i = 0; i < entry->key.size; i++)
        *sum += entry->key.data[i];
    for (size_t i = 0; i < entry->value.size; i++)
        *sum += entry->value.data[i];
    *sum += entry_value_size(entry);
    return ST_OK;
}

static void
raw_block(struct bytes raw)
{
    struct table_block block;
    if (!ok(table_block_open(raw, &block))) return;
    volatile u64 sum_kept;
    u64 sum = 0;
    bool whole = ok(table_block_iterate(&block, entry_touch, &sum));
    for (u32 i = 0; i < block.count; i++) {
        struct entry entry;
        if (!ok(table_block_entry(&block, i, &entry, NULL))) continue;
        CHECK(ok(entry_touch(&sum, &entry)));
        u32 index;
        status st = table_block_seek(&block, entry.token, entry.key, &index);
        if (ok(st)) CHECK(index <= block.count);
        /* In a block that is in order, a key leads to its newest version. */
        if (whole) {
            struct entry found;
            CHECK(ok(st) && index <= i);
            CHECK(ok(table_block_entry(&block, index, &found, NULL)));
            CHECK(found.token == entry.token && bytes_equal(found.key, entry.key));
        }
    }
    sum_kept = sum;
    (void)sum_kept;
}

static void
stored_block(u8 *stored, size_t size)
{
    struct table_block_header header;
    if (size < sizeof(header)) return;
    store_u32(stored + offsetof(struct table_block_header, stored_size),
              (u32)(size - sizeof(header)));
    store_u32(stored, crc32c(table_place_seed(FILE_ID, 0), stored + 4, size - 4));
    if (!ok(table_block_check(BYTES(stored, size), FILE_ID, 0, &header))) return;
    struct budget budget;
    budget_init(&budget, "fuzz", MIB(16), NULL);
    u8 *raw = mem_alloc(&budget, header.raw_size);
    CHECK(raw != NULL);
    status st =
        codec_decompress((enum lsm_codec)header.codec, &budget,
                         BYTES(stored + sizeof(header), header.stored_size), raw, header.raw_size);
    if (ok(st)) raw_block(BYTES(raw, header.raw_size));
    mem_free(&budget, raw, header.raw_size);
    CHECK(budget.used_bytes == 0);
}

static void
index_section(struct bytes section)
{
    if (section.size < 8) return;
    u64 block_bytes = load_u64(section.data + section.size - 8) & ((1ull << 40) - 1);
    struct table_index index;
    section.size -= 8;
    if (!ok(table_index_decode(section, block_bytes, &index))) return;
    u64 packed_bytes = table_index_packed_bytes(&index);
    u8 *memory = packed_bytes == 0 ? NULL : malloc(packed_bytes);
    struct table_index packed = index;
    if (memory != NULL) table_index_pack(&index, memory, &packed);
    u8 key[16];
    for (u32 i = 0; i < index.block_count; i++) {
        CHECK(table_index_offset(&packed, i + 1) == table_index_offset(&index, i + 1));
        for (u32 round = 0; round < 3; round++) {
            memset(key, (int)(i * 85 + round), sizeof(key));
            u64 token = index.tokens[i] + round - 1;
            u32 block = table_index_find(&index, token, BYTES(key, round * 8));
            CHECK(block < index.block_count);
            CHECK(table_index_find(&packed, token, BYTES(key, round * 8)) == block);
        }
    }
    free(memory);
}

static void
footer_page(u8 *page, size_t size)
{
    struct table_footer *footer = malloc(sizeof(*footer));
    const char *what = NULL;
    CHECK(!ok(table_footer_decode(BYTES(page, size), FILE_ID, 8192, footer, &what)) ||
          what == NULL);
    if (size == TABLE_FOOTER_BYTES) {
        u64 file_bytes = load_u64(page + offsetof(struct table_footer, file_bytes));
        if (file_bytes >= TABLE_FOOTER_BYTES) {
            u32 crc = crc32c(table_place_seed(FILE_ID, file_bytes - TABLE_FOOTER_BYTES), page,
                             TABLE_FOOTER_BYTES - 4);
            store_u32(page + TABLE_FOOTER_BYTES - 4, crc);
            if (ok(table_footer_decode(BYTES(page, size), FILE_ID, file_bytes, footer, &what))) {
                struct table_meta *meta = malloc(sizeof(*meta));
                table_footer_to_meta(footer, meta);
                CHECK(table_footer_matches(footer, meta));
                free(meta);
            }
        }
    }
    free(footer);
}

int
LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    if (size < 2) return 0;
    u8 part = data[0];
    size--;
    u8 *copy = NULL; /* aligned as a section is, and exactly as long */
    if (posix_memalign((void **)&copy, 64, size) != 0) return 0;
    memcpy(copy, data + 1, size);
    switch (part % 4) {
    case 0:
        raw_block(BYTES(copy, size));
        break;
    case 1:
        stored_block(copy, size);
        break;
    case 2:
        index_section(BYTES(copy, size));
        break;
    case 3:
        footer_page(copy, size);
        break;
    }
    free(copy);
    return 0;
}
