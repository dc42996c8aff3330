/* SPDX-License-Identifier: MIT
 *
 * engine_forge.c -- see engine_forge.h.
 */
#include "engine_forge.h"

#include "base/crc.h"
#include "io/file.h"
#include "io/io.h"
#include "lsm/log.h"
#include "lsm/log_format.h"
#include "lsm/manifest.h"
#include "lsm/table_format.h"

/* A little, mostly; or the largest number that there is. */
static void
change(u8 *data, size_t size, struct prng *prng)
{
    if (size == 0) return;
    u8 *at = data + prng_below(prng, size);
    switch (prng_below(prng, 5)) {
    case 4:
        memset(at, 0xff, MIN(size - (size_t)(at - data), 1 + prng_below(prng, 8)));
        break;
    case 0:
        *at = (u8)(*at + 1);
        break;
    case 1:
        *at = (u8)(*at - 1);
        break;
    case 2:
        *at ^= (u8)(1u << prng_below(prng, 8));
        break;
    default:
        *at = (u8)prng_u64(prng);
    }
}

static u64
id_of(const char *path)
{
    u64 id = 0;
    for (const char *p = strrchr(path, '/') + 2; *p != '\0'; p++)
        id = id << 4 | (u64)(*p <= '9' ? *p - '0' : *p - 'a' + 10);
    return id;
}

/* ---- tables ---- */

static void
table_footer_seal(u8 *data, u64 size, u64 id)
{
    struct table_footer *footer = (struct table_footer *)(void *)(data + size - sizeof(*footer));
    footer->crc = crc32c(table_place_seed(id, size - sizeof(*footer)), footer,
                         sizeof(*footer) - sizeof(footer->crc));
}

static void
block_forge(u8 *data, u64 block_bytes, u64 id, struct prng *prng)
{
    u64 wanted = prng_below(prng, block_bytes);
    for (u64 at = 0; at + sizeof(struct table_block_header) <= block_bytes;) {
        struct table_block_header *header = (struct table_block_header *)(void *)(data + at);
        u64 bytes = sizeof(*header) + header->stored_size;
        if (bytes > block_bytes - at) return;
        if (wanted >= at + bytes) {
            at += bytes;
            continue;
        }
        u8 *payload = data + at + sizeof(*header);
        u64 place = prng_below(prng, 8);
        if (place == 0) change((u8 *)header + sizeof(header->crc), sizeof(*header) - 4, prng);
        if (place == 1 || place == 2) change(payload, MIN(bytes - sizeof(*header), 28u), prng);
        if (place > 2) change(payload, bytes - sizeof(*header), prng);
        header->crc = crc32c(table_place_seed(id, at), data + at + 4, bytes - 4);
        return;
    }
}

static void
table_forge(u8 *data, u64 size, u64 id, struct prng *prng)
{
    if (size < 2 * TABLE_FOOTER_BYTES) return;
    struct table_footer *footer = (struct table_footer *)(void *)(data + size - sizeof(*footer));
    u64 sections = footer->block_bytes + footer->index_bytes + footer->filter_bytes;
    if (sections > size - sizeof(*footer)) return;
    /* One that was removed may come back from a power cut without its last blocks. */
    if (footer->block_bytes == 0 || footer->index_bytes == 0 || footer->filter_bytes == 0) return;
    u8 *index = data + footer->block_bytes;
    u8 *filter = index + footer->index_bytes;
    switch (prng_below(prng, 6)) {
    case 0: {
        u64 part = MIN(footer->index_bytes, 48u);
        bool runs = load_u32(index + offsetof(struct table_index_header, run_count)) > 0;
        if (prng_chance(prng, runs ? 3 : 1, 4)) /* the separators lie last */
            change(index + footer->index_bytes - part, part, prng);
        else
            change(index, prng_chance(prng, 1, 3) ? 16 : footer->index_bytes, prng);
        footer->index_crc =
            crc32c(table_place_seed(id, footer->block_bytes), index, footer->index_bytes);
        break;
    }
    case 1:
        change(filter, footer->filter_bytes, prng);
        footer->filter_crc = crc32c(table_place_seed(id, footer->block_bytes + footer->index_bytes),
                                    filter, footer->filter_bytes);
        break;
    case 2:
        change((u8 *)footer, offsetof(struct table_footer, blob_refs), prng);
        break;
    default:
        block_forge(data, footer->block_bytes, id, prng);
        return;
    }
    table_footer_seal(data, size, id);
}

/* ---- blob files ---- */

static void
blob_forge(u8 *data, u64 size, u64 id, struct prng *prng)
{
    struct blob_file_header *head = (struct blob_file_header *)(void *)data;
    struct blob_footer *footer = (struct blob_footer *)(void *)(data + size - sizeof(*footer));
    if (size < 2 * IO_ALIGNMENT && footer->records_end > size) return;
    u64 place = prng_below(prng, 4);
    if (place == 0) {
        change((u8 *)head, sizeof(*head) - 4, prng);
        head->crc = crc32c(0, head, sizeof(*head) - 4);
    } else if (place == 1) {
        change((u8 *)footer, sizeof(*footer) - 4, prng);
        footer->crc = crc32c(0, footer, sizeof(*footer) - 4);
    } else {
        u64 at = sizeof(*head);
        u64 wanted = prng_below(prng, size);
        struct blob_record_header *record;
        u64 bytes;
        for (;;) {
            record = (struct blob_record_header *)(void *)(data + at);
            if (at + sizeof(*record) > footer->records_end) return;
            bytes = blob_record_bytes(record->key_size, record->value_size);
            if (bytes > footer->records_end - at) return;
            if (wanted < at + bytes) break;
            at += bytes;
        }
        change((u8 *)record + 8, prng_chance(prng, 1, 2) ? sizeof(*record) - 8 : bytes - 8, prng);
        u8 *key = (u8 *)(record + 1);
        if (blob_record_bytes(record->key_size, record->value_size) > size - at) return;
        record->value_crc = crc32c(0, key + record->key_size, record->value_size);
        u32 crc = crc32c(table_place_seed(id, at), (u8 *)record + 8, sizeof(*record) - 8);
        record->crc = crc32c(crc, key, record->key_size);
    }
}

/* ---- logs ---- */

static void
log_forge(u8 *data, u64 size, u64 number, struct prng *prng)
{
    u64 used = 0; /* blocks of this segment's present life */
    while ((used + 1) * LOG_BLOCK_BYTES <= size) {
        const struct log_block *block = (const void *)(data + used * LOG_BLOCK_BYTES);
        if (block->segment != number) break;
        used++;
    }
    if (used == 0) return;
    u64 index = prng_chance(prng, 1, 6) ? 0 : prng_below(prng, used);
    struct log_block *block = (struct log_block *)(void *)(data + index * LOG_BLOCK_BYTES);
    u8 *payload = (u8 *)(block + 1);
    u32 first = block->record_first;
    u64 place = prng_below(prng, 8);
    if (index == 0) {
        change(payload, sizeof(struct log_segment_header), prng);
    } else if (place == 0) {
        change((u8 *)block + 4, sizeof(*block) - 4, prng);
    } else if (place == 1) {
        change(payload, block->used <= LOG_BLOCK_PAYLOAD_BYTES ? block->used : 0, prng);
    } else if (first < LOG_BLOCK_PAYLOAD_BYTES - sizeof(struct log_record)) {
        struct log_record *record = (struct log_record *)(void *)(payload + first);
        u32 bytes = record->size;
        if (prng_chance(prng, 1, 6)) change((u8 *)&record->size, sizeof(record->size), prng);
        bool whole = bytes >= sizeof(*record) && first + bytes <= LOG_BLOCK_PAYLOAD_BYTES;
        change((u8 *)record + 4,
               prng_chance(prng, 1, 2) || !whole ? sizeof(*record) - 4 : bytes - 4, prng);
        if (whole && prng_chance(prng, 7, 8)) {
            u32 crc = crc32c((u32)record->seq_first, (u8 *)record + 4, sizeof(*record) - 4);
            record->crc = crc32c(crc, (u8 *)(record + 1), bytes - sizeof(*record));
        }
    }
    block->crc = log_block_crc(block, number, index * LOG_BLOCK_BYTES);
}

/* ---- manifests, NODE ---- */

static void
manifest_forge(u8 *data, u64 size, struct prng *prng)
{
    struct manifest_header *header = (struct manifest_header *)(void *)data;
    if (header->size > size || header->size <= sizeof(*header)) return;
    if (prng_chance(prng, 1, 8)) {
        change(data, offsetof(struct manifest_header, content_crc), prng);
    } else {
        u64 wanted = prng_range(prng, sizeof(*header), header->size - 1);
        for (u64 at = sizeof(*header); at + sizeof(struct manifest_part) <= header->size;) {
            struct manifest_part *part = (struct manifest_part *)(void *)(data + at);
            if (part->size > header->size - at - sizeof(*part)) return;
            u64 end = at + sizeof(*part) + part->size;
            if (wanted < end) {
                if (part->kind == MANIFEST_PART_TABLES && prng_chance(prng, 1, 4) &&
                    part->size >= sizeof(struct manifest_table_record))
                    change((u8 *)(part + 1) + offsetof(struct manifest_table_record, file_hash), 8,
                           prng);
                else if (prng_chance(prng, 1, 8))
                    change((u8 *)part, sizeof(*part), prng);
                else
                    change((u8 *)(part + 1), part->size, prng);
                if (part->size <= header->size - at - sizeof(*part))
                    part->crc = crc32c(part->kind, part + 1, part->size);
                break;
            }
            at = end;
        }
    }
    if (header->size <= size && header->size > sizeof(*header))
        header->content_crc = crc32c(0, header + 1, header->size - sizeof(*header));
    header->header_crc = crc32c(0, header, offsetof(struct manifest_header, header_crc));
}

/* magic, crc, and the rest, see store.c */
static void
node_forge(u8 *data, u64 size, struct prng *prng)
{
    if (size != IO_ALIGNMENT) return;
    change(data + (prng_chance(prng, 1, 8) ? 0 : 12), 200, prng);
    store_u32(data + 8, 0);
    store_u32(data + 8, crc32c(0, data, size));
}

/* ---- files ---- */

static MAY_YIELD status
file_read(const char *path, u8 **out, u64 *size_out)
{
    struct io_file *file;
    status st = io_file_open(path, IO_OPEN_READ, &file);
    if (!ok(st)) return st;
    st = io_file_size(file, size_out);
    *out = NULL;
    if (ok(st) && *size_out > 0 && *size_out % IO_ALIGNMENT == 0) {
        *out = mem_alloc_aligned(io_budget(), *size_out, IO_ALIGNMENT);
        if (*out == NULL) st = ST_NO_MEMORY;
    }
    for (u64 at = 0; ok(st) && *out != NULL && at < *size_out; at += LIMIT_IO_BYTES)
        st = io_file_read(file, IO_CLASS_READ, *out + at, (u32)MIN(LIMIT_IO_BYTES, *size_out - at),
                          at);
    io_file_close(file);
    return st;
}

MAY_YIELD status
forge(const char *path, struct prng *prng)
{
    u8 *data = NULL;
    u64 size = 0;
    status st = file_read(path, &data, &size);
    if (data == NULL) return st;
    const char *name = strrchr(path, '/') + 1;
    if (ok(st) && name[0] == 't') table_forge(data, size, id_of(path), prng);
    if (ok(st) && name[0] == 'b') blob_forge(data, size, id_of(path), prng);
    if (ok(st) && name[0] == 'l' && name[1] != '.') log_forge(data, size, id_of(path), prng);
    if (ok(st) && strcmp(name, "manifest") == 0) manifest_forge(data, size, prng);
    if (ok(st) && strcmp(name, "NODE") == 0) node_forge(data, size, prng);
    struct io_file *file;
    if (ok(st)) st = io_file_open(path, IO_OPEN_WRITE, &file);
    if (ok(st)) {
        for (u64 at = 0; ok(st) && at < size; at += LIMIT_IO_BYTES)
            st = io_file_write(file, IO_CLASS_READ, data + at, (u32)MIN(LIMIT_IO_BYTES, size - at),
                               at, true);
        io_file_close(file);
    }
    mem_free(io_budget(), data, size);
    return st;
}
