/* SPDX-License-Identifier: MIT
 *
 * table_writer.c -- makes a table file out of sorted entries.
 *
 *   add:     entry -> record in the raw block; a full block is compressed, sealed with its
 *            checksum and appended to the file; its first token, place and, inside a run of one
 *            token, its separator are remembered
 *   finish:  last block, index, filter, zeros, footer, sync
 *
 * Invariants
 *   W1  entries come in entry order; a writer that sees another order makes no file.
 *   W2  raw holds a block whose records end at raw_fill; tokens[] and offsets[] have count entries.
 *   W3  after an error nothing but finish or abort is possible, and both remove the file.
 */
#include "lsm/table_format.h"

#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "lsm/bloom.h"
#include "lsm/codec.h"
#include "lsm/piece_io.h"

/* Blocks written without a try at compressing them, at most, before the next try. */
#define PLAIN_WAIT_MAX 32u

/* Bytes that grow by doubling. */
struct growing {
    u8 *data;
    size_t size, capacity;
};

struct table_writer {
    struct table_writer_options options;
    struct piece_writer file;
    struct table_meta meta;
    status failed; /* sticky, W3 */

    /* the block that is being filled */
    u8 *raw;
    u32 raw_capacity, raw_fill, raw_limit;
    u32 count;
    u64 version_base, seq_base;
    u64 tokens[TABLE_BLOCK_ENTRIES];
    u16 offsets[TABLE_BLOCK_ENTRIES];

    /* compression */
    void *codec_state;
    u8 *stored;     /* as large as raw */
    u32 unit_limit; /* raw_limit while compression pays */
    u32 plain_wait; /* of the last time that it did not pay: blocks that were not tried then */
    u32 plain_left; /* of these, still to come */

    /* the entry before: of the order check, and for separators */
    u64 last_token, last_version, last_seq;
    u32 last_key_size; /* 0: there was none */
    u8 last_key[LIMIT_KEY_BYTES];

    /* index, one element a block or a run */
    struct growing index_tokens, index_low, index_high, run_blocks, run_ends, separators;
    u32 block_count, run_count;

    /* filter */
    u8 *filter;
    u64 filter_lines; /* 0: none */
    u64 key_count;
};

static bool
growing_append(struct growing *array, struct budget *budget, const void *data, size_t size)
{
    if (array->capacity - array->size < size) {
        size_t capacity = MAX(array->capacity * 2, 1024);
        while (capacity - array->size < size)
            capacity *= 2;
        u8 *grown = mem_realloc(budget, array->data, array->capacity, capacity);
        if (grown == NULL) return MARKED("lsm.table_writer.array_no_memory", false);
        array->data = grown;
        array->capacity = capacity;
    }
    memcpy(array->data + array->size, data, size);
    array->size += size;
    return true;
}

static void
writer_free(struct table_writer *writer)
{
    struct budget *budget = writer->options.budget;
    struct growing *arrays[] = {&writer->index_tokens, &writer->index_low, &writer->index_high,
                                &writer->run_blocks,   &writer->run_ends,  &writer->separators};
    for (u32 i = 0; i < ARRAY_COUNT(arrays); i++)
        mem_free(budget, arrays[i]->data, arrays[i]->capacity);
    mem_free(budget, writer->filter, writer->filter_lines * BLOOM_LINE_BYTES);
    mem_free(budget, writer->raw, writer->raw_capacity);
    mem_free(budget, writer->stored, writer->raw_capacity);
    mem_free(budget, writer->codec_state, codec_state_bytes(writer->options.codec));
    mem_free(budget, writer, sizeof(*writer));
}

/* Less filter is better than no table: a flush must not fail for it. */
static void
filter_reserve(struct table_writer *writer)
{
    const struct table_writer_options *options = &writer->options;
    u32 bits = MIN(options->filter_bits, 32);
    for (; bits > 0; bits /= 2) {
        u64 lines = bloom_line_count(MIN(options->entry_count_max, 1ull << 40), bits);
        writer->filter = mem_alloc_aligned(options->budget, lines * BLOOM_LINE_BYTES, 64);
        if (writer->filter != NULL) {
            memset(writer->filter, 0, lines * BLOOM_LINE_BYTES);
            writer->filter_lines = lines;
            break;
        }
        MARK("lsm.table_writer.filter_no_memory");
    }
    writer->meta.filter_bits = (u8)bits;
}

MAY_YIELD status
table_writer_open(const struct table_writer_options *options, struct table_writer **out)
{
    struct budget *budget = options->budget;
    struct table_writer *writer = mem_alloc_zero(budget, sizeof(*writer));
    if (writer == NULL) return MARKED("lsm.table_writer.no_memory", ST_NO_MEMORY);
    writer->options = *options;
    writer->failed = ST_OK;
    writer->unit_limit = BUGGIFY("lsm.table_writer.tiny_blocks") ? 256 : TABLE_UNIT_BYTES;
    writer->raw_limit = MIN(writer->unit_limit, TABLE_RAW_BYTES);
    writer->meta = (struct table_meta){
        .file_id = options->file_id,
        .keyspace = options->keyspace,
        .codec = (u8)options->codec,
        .token_first = UINT64_MAX,
        .seq_min = UINT64_MAX,
        .version_min = UINT64_MAX,
        .expire_min_ms = UINT64_MAX,
        .entries_all_expire = true,
    };
    writer->raw_capacity = TABLE_UNIT_BYTES;
    writer->raw = mem_alloc(budget, writer->raw_capacity);
    bool room = writer->raw != NULL;
    if (room && options->codec != LSM_CODEC_NONE) {
        writer->stored = mem_alloc(budget, writer->raw_capacity);
        writer->codec_state = mem_alloc(budget, codec_state_bytes(options->codec));
        room = writer->stored != NULL && writer->codec_state != NULL;
    }
    status st = room ? ST_OK : MARKED("lsm.table_writer.buffers_no_memory", ST_NO_MEMORY);
    char path[LSM_PATH_BYTES];
    table_path(path, options->dir, options->file_id);
    if (ok(st)) st = piece_writer_open(&writer->file, path, options->io_class, budget);
    if (!ok(st)) {
        MARK("lsm.table_writer.open_failed");
        writer_free(writer);
        return st;
    }
    filter_reserve(writer);
    *out = writer;
    return ST_OK;
}

/* ---- blocks ---- */

static u32
token_width(u64 delta)
{
    return delta == 0 ? 0 : (64u - (u32)__builtin_clzll(delta) + 7) / 8;
}

/* Appends the offset and token arrays and the header: raw is whole then. */
static void
raw_seal(struct table_writer *writer)
{
    u64 base = writer->tokens[0];
    u32 width = token_width(writer->tokens[writer->count - 1] - base);
    u8 *p = writer->raw + writer->raw_fill;
    memcpy(p, writer->offsets, 2ull * writer->count);
    p += 2ull * writer->count;
    for (u32 i = 0; i < writer->count; i++) {
        u64 delta = writer->tokens[i] - base;
        memcpy(p, &delta, width); /* little-endian: the low bytes */
        p += width;
    }
    struct table_raw_header header = {
        .token_base = base,
        .version_base = writer->version_base,
        .seq_base = writer->seq_base,
        .count = (u16)writer->count,
        .token_width = (u8)width,
    };
    memcpy(writer->raw, &header, sizeof(header));
    writer->raw_fill = (u32)(p - writer->raw);
    CHECK(writer->raw_fill <= writer->raw_capacity);
}

/* Compresses the sealed block; 0: it is stored as it is. A cold read of a block costs all its
 * bytes, so blocks have a unit's size only as long as compression takes that back. Where it does
 * not, the small blocks that follow are not even tried, but for one now and then. */
static u32
block_compress(struct table_writer *writer)
{
    if (writer->options.codec == LSM_CODEC_NONE) return 0;
    if (writer->plain_left > 0) {
        writer->plain_left--;
        return 0;
    }
    /* Below an eighth of gain, reading the block raw is cheaper than unpacking it. */
    u32 stored =
        codec_compress(writer->options.codec, writer->codec_state, writer->raw, writer->raw_fill,
                       writer->stored, writer->raw_fill - writer->raw_fill / 8);
    writer->plain_wait = stored > 0 ? 0 : CLAMP(2 * writer->plain_wait, 1, PLAIN_WAIT_MAX);
    writer->plain_left = writer->plain_wait;
    writer->raw_limit = stored > 0 ? writer->unit_limit : MIN(writer->unit_limit, TABLE_RAW_BYTES);
    return stored;
}

MAY_YIELD static status
block_finish(struct table_writer *writer)
{
    if (writer->count == 0) return ST_OK;
    raw_seal(writer);
    u64 offset = piece_writer_offset(&writer->file);
    struct table_block_header header = {.raw_size = writer->raw_fill, .codec = LSM_CODEC_NONE};
    const u8 *payload = writer->raw;
    u32 stored = block_compress(writer);
    if (stored > 0) {
        header.codec = (u8)writer->options.codec;
        payload = writer->stored;
    } else {
        stored = writer->raw_fill;
    }
    header.stored_size = stored;
    u32 crc = crc32c(table_place_seed(writer->options.file_id, offset),
                     (const u8 *)&header + sizeof(header.crc), sizeof(header) - sizeof(header.crc));
    header.crc = crc32c(crc, payload, stored);

    u32 low = (u32)offset;
    u8 high = (u8)(offset >> 32);
    if (offset >> 40 != 0 || writer->block_count == UINT32_MAX - 1)
        return MARKED("lsm.table_writer.file_too_large", ST_TOO_LARGE);
    struct budget *budget = writer->options.budget;
    if (!growing_append(&writer->index_tokens, budget, &writer->tokens[0], 8) ||
        !growing_append(&writer->index_low, budget, &low, 4) ||
        !growing_append(&writer->index_high, budget, &high, 1))
        return ST_NO_MEMORY;
    writer->block_count++;
    writer->count = 0;
    status st = piece_writer_append(&writer->file, BYTES(&header, sizeof(header)));
    if (ok(st)) st = piece_writer_append(&writer->file, BYTES(payload, stored));
    if (ok(st) && fiber_self() != NULL && fiber_should_yield()) fiber_yield();
    return st;
}

/* The block that begins with entry lies inside a run of its token: see table_format.h. */
static status
separator_add(struct table_writer *writer, const struct entry *entry)
{
    struct bytes last = BYTES(writer->last_key, writer->last_key_size);
    struct bytes separator = entry->key;
    bool same_key = bytes_equal(last, entry->key);
    if (!same_key) {
        /* The shortest prefix that is still greater than the key before. */
        size_t shared = 0;
        while (shared < last.size && last.data[shared] == entry->key.data[shared])
            shared++;
        separator.size = shared + 1;
    }
    u32 end = (u32)(writer->separators.size + separator.size);
    if (writer->separators.size + separator.size >= TABLE_RUN_SAME_KEY)
        return MARKED("lsm.table_writer.separators_too_large", ST_TOO_LARGE);
    if (same_key) end |= TABLE_RUN_SAME_KEY;
    struct budget *budget = writer->options.budget;
    if (!growing_append(&writer->run_blocks, budget, &writer->block_count, 4) ||
        !growing_append(&writer->run_ends, budget, &end, 4) ||
        !growing_append(&writer->separators, budget, separator.data, separator.size))
        return ST_NO_MEMORY;
    writer->run_count++;
    return ST_OK;
}

MAY_YIELD static status
block_begin(struct table_writer *writer, const struct entry *entry, u64 need)
{
    if (need > writer->raw_capacity) { /* a large entry has a block of its own */
        CHECK(need <= TABLE_RAW_BYTES_MAX);
        struct budget *budget = writer->options.budget;
        u32 capacity = (u32)align_up(need, 4096);
        u8 *raw = mem_alloc(budget, capacity);
        u8 *stored = writer->stored == NULL ? NULL : mem_alloc(budget, capacity);
        if (raw == NULL || (writer->stored != NULL && stored == NULL)) {
            MARK("lsm.table_writer.large_no_memory");
            mem_free(budget, raw, capacity);
            mem_free(budget, stored, capacity);
            return ST_NO_MEMORY;
        }
        mem_free(budget, writer->raw, writer->raw_capacity);
        mem_free(budget, writer->stored, writer->raw_capacity);
        writer->raw = raw;
        writer->stored = stored;
        writer->raw_capacity = capacity;
    }
    if (writer->last_key_size != 0 && writer->last_token == entry->token) {
        status st = separator_add(writer, entry);
        if (!ok(st)) return st;
    }
    writer->raw_fill = sizeof(struct table_raw_header);
    writer->version_base = entry->version;
    writer->seq_base = entry->seq;
    return ST_OK;
}

/* ---- entries ---- */

static status
order_check(struct table_writer *writer, const struct entry *entry)
{
    if (entry->key.size == 0 || entry->key.size > LIMIT_KEY_BYTES ||
        entry->value.size > LIMIT_VALUE_BYTES)
        return ST_TOO_LARGE;
    bool blob = entry->flags & ENTRY_BLOB;
    if (entry->kind != ENTRY_PUT && entry->kind != ENTRY_DELETE) return ST_INVALID;
    if (entry->kind == ENTRY_DELETE && (blob || entry->value.size != 0)) return ST_INVALID;
    if (blob && entry->value.size != sizeof(struct blob_pointer)) return ST_INVALID;
    if (writer->last_key_size == 0) return ST_OK;
    struct entry last = {
        .token = writer->last_token,
        .key = BYTES(writer->last_key, writer->last_key_size),
        .version = writer->last_version,
        .seq = writer->last_seq,
    };
    return entry_compare(&last, entry) < 0 ? ST_OK : ST_INVALID;
}

static status
blob_count(struct table_meta *meta, const struct entry *entry)
{
    if (!(entry->flags & ENTRY_BLOB)) return ST_OK;
    struct blob_pointer pointer;
    memcpy(&pointer, entry->value.data, sizeof(pointer));
    u64 bytes = blob_record_bytes(entry->key.size, pointer.size);
    for (u32 i = 0; i < meta->blob_ref_count; i++) {
        if (meta->blob_refs[i].file_id != pointer.file_id) continue;
        meta->blob_refs[i].bytes += bytes;
        return ST_OK;
    }
    if (meta->blob_ref_count == TABLE_BLOB_REFS_MAX)
        return MARKED("lsm.table_writer.too_many_blobs", ST_TOO_LARGE);
    meta->blob_refs[meta->blob_ref_count++] =
        (struct table_blob_ref){.file_id = pointer.file_id, .bytes = bytes};
    return ST_OK;
}

static void
meta_count(struct table_meta *meta, const struct entry *entry)
{
    meta->token_first = MIN(meta->token_first, entry->token);
    meta->token_last = MAX(meta->token_last, entry->token);
    meta->seq_min = MIN(meta->seq_min, entry->seq);
    meta->seq_max = MAX(meta->seq_max, entry->seq);
    meta->version_min = MIN(meta->version_min, entry->version);
    meta->version_max = MAX(meta->version_max, entry->version);
    if (entry->expire_ms != 0) {
        meta->expire_min_ms = MIN(meta->expire_min_ms, entry->expire_ms);
        meta->expire_max_ms = MAX(meta->expire_max_ms, entry->expire_ms);
        meta->expiring_count++;
    } else {
        meta->entries_all_expire = false;
    }
    meta->entry_count++;
    if (entry->kind == ENTRY_DELETE) meta->delete_count++;
    meta->data_bytes += entry->key.size + entry->value.size;
}

static void
record_append(struct table_writer *writer, const struct entry *entry)
{
    u8 flags = 0;
    if (entry->kind == ENTRY_DELETE) flags |= TABLE_RECORD_DELETE;
    if (entry->flags & ENTRY_BLOB) flags |= TABLE_RECORD_BLOB;
    if (entry->expire_ms != 0) flags |= TABLE_RECORD_EXPIRES;
    writer->tokens[writer->count] = entry->token;
    writer->offsets[writer->count] = (u16)writer->raw_fill;
    writer->count++;

    u8 *p = writer->raw + writer->raw_fill;
    *p++ = flags;
    p = varint_put(p, entry->key.size);
    p = varint_put(p, entry->value.size);
    p = varint_put(p, zigzag_encode(entry->version - writer->version_base));
    p = varint_put(p, zigzag_encode(entry->seq - writer->seq_base));
    if (flags & TABLE_RECORD_EXPIRES) p = varint_put(p, entry->expire_ms);
    memcpy(p, entry->key.data, entry->key.size);
    p += entry->key.size;
    if (entry->value.size > 0) memcpy(p, entry->value.data, entry->value.size);
    p += entry->value.size;
    writer->raw_fill = (u32)(p - writer->raw);
}

MAY_YIELD static status
add(struct table_writer *writer, const struct entry *entry)
{
    status st = order_check(writer, entry);
    if (!ok(st)) {
        MARK("lsm.table_writer.refused_entry");
        log_error("lsm", "table writer was given a bad entry file=t%016llx entry=%llu error=%s",
                  (unsigned long long)writer->options.file_id,
                  (unsigned long long)writer->meta.entry_count, status_name(st));
        return st;
    }
    st = blob_count(&writer->meta, entry);
    if (!ok(st)) return st;

    /* What the block would be with it; its arrays at their widest. */
    u64 record = TABLE_RECORD_BYTES_MAX + entry->key.size + entry->value.size;
    u64 width = writer->count == 0 ? 0 : token_width(entry->token - writer->tokens[0]);
    u64 whole = (writer->count == 0 ? sizeof(struct table_raw_header) : writer->raw_fill) + record +
                (writer->count + 1) * (2 + width);
    if (writer->count > 0 && (whole > writer->raw_limit || writer->count == TABLE_BLOCK_ENTRIES)) {
        st = block_finish(writer);
        if (!ok(st)) return st;
    }
    if (writer->count == 0) {
        st = block_begin(writer, entry, sizeof(struct table_raw_header) + record + 2);
        if (!ok(st)) return st;
    }
    record_append(writer, entry);
    meta_count(&writer->meta, entry);

    struct bytes last = BYTES(writer->last_key, writer->last_key_size);
    if (writer->last_token != entry->token || !bytes_equal(last, entry->key)) {
        writer->key_count++;
        if (writer->filter_lines > 0)
            bloom_add(writer->filter, writer->filter_lines,
                      bloom_probe_count(writer->meta.filter_bits), hash_key(entry->key, 0));
    }
    writer->last_token = entry->token;
    writer->last_version = entry->version;
    writer->last_seq = entry->seq;
    writer->last_key_size = (u32)entry->key.size;
    memcpy(writer->last_key, entry->key.data, entry->key.size);
    return ST_OK;
}

MAY_YIELD status
table_writer_add(struct table_writer *writer, const struct entry *entry)
{
    if (!ok(writer->failed)) return writer->failed;
    writer->failed = add(writer, entry);
    return writer->failed;
}

u64
table_writer_index_bytes(const struct table_writer *writer)
{
    return table_index_bytes(writer->block_count, writer->run_count, writer->separators.size);
}

u64
table_writer_bytes(const struct table_writer *writer)
{
    u64 index = table_writer_index_bytes(writer);
    return piece_writer_offset(&writer->file) + writer->raw_fill + index +
           writer->filter_lines * BLOOM_LINE_BYTES + TABLE_FOOTER_BYTES;
}

u64
table_writer_count(const struct table_writer *writer)
{
    return writer->meta.entry_count;
}

bool
table_writer_blob_refs_full(const struct table_writer *writer)
{
    return writer->meta.blob_ref_count == TABLE_BLOB_REFS_MAX;
}

/* ---- finishing ---- */

MAY_YIELD static status
section_append(struct table_writer *writer, const void *data, size_t size, u32 *crc)
{
    if (size == 0) return ST_OK;
    *crc = crc32c(*crc, data, size);
    return piece_writer_append(&writer->file, BYTES(data, size));
}

MAY_YIELD static status
index_write(struct table_writer *writer, struct table_footer *footer)
{
    u64 end = footer->block_bytes;
    u32 low = (u32)end;
    u8 high = (u8)(end >> 32);
    if (end >> 40 != 0) return MARKED("lsm.table_writer.index_too_far", ST_TOO_LARGE);
    struct budget *budget = writer->options.budget;
    if (!growing_append(&writer->index_low, budget, &low, 4) ||
        !growing_append(&writer->index_high, budget, &high, 1))
        return ST_NO_MEMORY;
    struct table_index_header header = {
        .block_count = writer->block_count,
        .run_count = writer->run_count,
        .separator_bytes = (u32)writer->separators.size,
    };
    const struct bytes parts[] = {
        BYTES(&header, sizeof(header)),
        BYTES(writer->index_tokens.data, writer->index_tokens.size),
        BYTES(writer->index_low.data, writer->index_low.size),
        BYTES(writer->run_blocks.data, writer->run_blocks.size),
        BYTES(writer->run_ends.data, writer->run_ends.size),
        BYTES(writer->index_high.data, writer->index_high.size),
        BYTES(writer->separators.data, writer->separators.size),
    };
    u32 crc = table_place_seed(writer->options.file_id, footer->block_bytes);
    for (u32 i = 0; i < ARRAY_COUNT(parts); i++) {
        status st = section_append(writer, parts[i].data, parts[i].size, &crc);
        if (!ok(st)) return st;
        footer->index_bytes += parts[i].size;
    }
    footer->index_crc = crc;
    CHECK(footer->index_bytes ==
          table_index_bytes(header.block_count, header.run_count, header.separator_bytes));
    return ST_OK;
}

MAY_YIELD static status
filter_write(struct table_writer *writer, struct table_footer *footer)
{
    if (writer->filter_lines == 0) return ST_OK;
    /* Fewer keys than announced: fold to what they deserve, or a little less. A merge that makes
     * two tables of one has announced the keys of both, so about half of its tables hold a few keys
     * more than a half. */
    u64 deserved = bloom_line_count(writer->key_count, writer->meta.filter_bits);
    u64 lines = bloom_fold(writer->filter, writer->filter_lines, deserved - deserved / 16);
    footer->filter_bytes = lines * BLOOM_LINE_BYTES;
    footer->filter_probes = (u8)bloom_probe_count(writer->meta.filter_bits);
    u32 crc = table_place_seed(writer->options.file_id, footer->block_bytes + footer->index_bytes);
    status st = section_append(writer, writer->filter, footer->filter_bytes, &crc);
    footer->filter_crc = crc;
    return st;
}

static void
footer_fill(struct table_footer *footer, const struct table_meta *meta)
{
    footer->magic = TABLE_MAGIC;
    footer->format = TABLE_FORMAT;
    footer->file_id = meta->file_id;
    footer->file_bytes = meta->file_bytes;
    footer->token_first = meta->token_first;
    footer->token_last = meta->token_last;
    footer->seq_min = meta->seq_min;
    footer->seq_max = meta->seq_max;
    footer->version_min = meta->version_min;
    footer->version_max = meta->version_max;
    footer->expire_min_ms = meta->expire_min_ms;
    footer->expire_max_ms = meta->expire_max_ms;
    footer->entry_count = meta->entry_count;
    footer->delete_count = meta->delete_count;
    footer->expiring_count = meta->expiring_count;
    footer->data_bytes = meta->data_bytes;
    footer->keyspace = meta->keyspace;
    footer->codec = meta->codec;
    footer->filter_bits = meta->filter_bits;
    footer->entries_all_expire = meta->entries_all_expire ? 1 : 0;
    footer->blob_ref_count = meta->blob_ref_count;
    memcpy(footer->blob_refs, meta->blob_refs, sizeof(footer->blob_refs));
}

MAY_YIELD static status
tail_write(struct table_writer *writer, struct table_footer *footer)
{
    status st = block_finish(writer);
    if (!ok(st)) return st;
    footer->block_bytes = piece_writer_offset(&writer->file);
    footer->block_count = writer->block_count;
    st = index_write(writer, footer);
    if (ok(st)) st = filter_write(writer, footer);
    if (!ok(st)) return st;
    u64 end = piece_writer_offset(&writer->file);
    st = piece_writer_zeros(&writer->file, align_up(end, IO_ALIGNMENT) - end);
    if (!ok(st)) return st;

    struct table_meta *meta = &writer->meta;
    u64 footer_offset = piece_writer_offset(&writer->file);
    meta->file_bytes = footer_offset + TABLE_FOOTER_BYTES;
    if (meta->expiring_count == 0) meta->expire_min_ms = 0;
    footer_fill(footer, meta);
    footer->crc = crc32c(table_place_seed(meta->file_id, footer_offset), footer,
                         sizeof(*footer) - sizeof(footer->crc));
    st = piece_writer_append(&writer->file, BYTES(footer, sizeof(*footer)));
    if (ok(st)) meta->file_hash = piece_writer_hash(&writer->file);
    return st;
}

MAY_YIELD status
table_writer_finish(struct table_writer *writer, struct table_meta *meta)
{
    struct budget *budget = writer->options.budget;
    status st = writer->failed;
    if (ok(st) && writer->meta.entry_count == 0) {
        MARK("lsm.table_writer.empty");
        st = ST_INVALID;
    }
    struct table_footer *footer = mem_alloc_zero(budget, sizeof(*footer));
    if (ok(st) && footer == NULL) {
        MARK("lsm.table_writer.footer_no_memory");
        st = ST_NO_MEMORY;
    }
    if (ok(st)) st = tail_write(writer, footer);
    mem_free(budget, footer, sizeof(*footer));
    if (ok(st)) {
        st = piece_writer_finish(&writer->file); /* removes the file when it fails */
        if (ok(st)) *meta = writer->meta;
    } else {
        MARK("lsm.table_writer.finish_failed");
        piece_writer_abort(&writer->file);
    }
    writer_free(writer);
    return st;
}

MAY_YIELD void
table_writer_abort(struct table_writer *writer)
{
    if (writer == NULL) return;
    piece_writer_abort(&writer->file);
    writer_free(writer);
}
