/* SPDX-License-Identifier: MIT
 *
 * table_format.c -- decoding of tables: blocks, index, footer, see table_format.h. Pure, and what
 * the fuzzers call.
 */
#include "lsm/table_format.h"

#include "base/fault.h"

#include <stdio.h>

void
table_path(char *path, const char *dir, u64 file_id)
{
    int size = snprintf(path, LSM_PATH_BYTES, "%s/t%016llx", dir, (unsigned long long)file_id);
    CHECK(size > 0 && (u32)size < LSM_PATH_BYTES);
}

void
blob_path(char *path, const char *dir, u64 file_id)
{
    int size = snprintf(path, LSM_PATH_BYTES, "%s/b%016llx", dir, (unsigned long long)file_id);
    CHECK(size > 0 && (u32)size < LSM_PATH_BYTES);
}

static bool
all_zero(const u8 *data, size_t size)
{
    u8 any = 0;
    for (size_t i = 0; i < size; i++)
        any |= data[i];
    return any == 0;
}

/* ---- blocks ---- */

status
table_block_check(struct bytes stored, u64 file_id, u64 offset, struct table_block_header *out)
{
    struct table_block_header header;
    if (stored.size < sizeof(header)) return ST_CORRUPT;
    memcpy(&header, stored.data, sizeof(header));
    if (header.stored_size != stored.size - sizeof(header)) return ST_CORRUPT;
    u32 crc = crc32c(table_place_seed(file_id, offset), stored.data + sizeof(header.crc),
                     stored.size - sizeof(header.crc));
    if (crc != header.crc) return MARKED("lsm.table_format.block_checksum", ST_CORRUPT);
    if (header.codec >= LSM_CODEC_COUNT) return ST_CORRUPT;
    if (!all_zero(header.reserved, sizeof(header.reserved))) return ST_CORRUPT;
    if (header.raw_size <= sizeof(struct table_raw_header)) return ST_CORRUPT;
    if (header.raw_size > TABLE_RAW_BYTES_MAX) return ST_CORRUPT;
    if (header.codec == LSM_CODEC_NONE && header.raw_size != header.stored_size) return ST_CORRUPT;
    *out = header;
    return ST_OK;
}

status
table_block_open(struct bytes raw, struct table_block *out)
{
    struct table_raw_header header;
    if (raw.size <= sizeof(header) || raw.size > TABLE_RAW_BYTES_MAX) return ST_CORRUPT;
    memcpy(&header, raw.data, sizeof(header));
    if (header.count == 0 || header.count > TABLE_BLOCK_ENTRIES) return ST_CORRUPT;
    if (header.token_width > 8 || header.reserved != 0) return ST_CORRUPT;
    size_t arrays = (size_t)header.count * (2u + header.token_width);
    if (arrays > raw.size - sizeof(header)) return ST_CORRUPT;
    size_t records_end = raw.size - arrays;
    *out = (struct table_block){
        .raw = raw.data,
        .offsets = raw.data + records_end,
        .tokens = raw.data + records_end + 2u * header.count,
        .token_base = header.token_base,
        .version_base = header.version_base,
        .seq_base = header.seq_base,
        .records_end = (u32)records_end,
        .count = header.count,
        .token_width = header.token_width,
    };
    return ST_OK;
}

/* Flags and key of a record; *rest_out is at the version. Enough for searching. */
static const u8 *
record_head(const struct table_block *block, u32 index, u8 *flags_out, struct bytes *key_out,
            u64 *value_size_out)
{
    u32 offset = load_u16(block->offsets + 2 * (size_t)index);
    if (offset < sizeof(struct table_raw_header) || offset >= block->records_end) return NULL;
    const u8 *p = block->raw + offset;
    const u8 *end = block->raw + block->records_end;
    *flags_out = *p++;
    u64 key_size;
    p = varint_get(p, end, &key_size);
    if (p == NULL || key_size == 0 || key_size > LIMIT_KEY_BYTES) return NULL;
    p = varint_get(p, end, value_size_out);
    if (p == NULL || *value_size_out > LIMIT_VALUE_BYTES) return NULL;
    key_out->size = key_size;
    return p;
}

status
table_block_entry(const struct table_block *block, u32 index, struct entry *out, u32 *end_out)
{
    const u8 *end = block->raw + block->records_end;
    struct bytes key;
    u64 value_size;
    u8 flags;
    const u8 *p = record_head(block, index, &flags, &key, &value_size);
    if (p == NULL) return ST_CORRUPT;
    if (flags & ~(TABLE_RECORD_DELETE | TABLE_RECORD_BLOB | TABLE_RECORD_EXPIRES))
        return ST_CORRUPT;
    bool is_delete = flags & TABLE_RECORD_DELETE, is_blob = flags & TABLE_RECORD_BLOB;
    if (is_delete && (is_blob || value_size != 0)) return ST_CORRUPT;
    if (is_blob && value_size != sizeof(struct blob_pointer)) return ST_CORRUPT;

    u64 version, seq, expire_ms = 0;
    p = varint_get(p, end, &version);
    if (p == NULL) return ST_CORRUPT;
    p = varint_get(p, end, &seq);
    if (p == NULL) return ST_CORRUPT;
    if (flags & TABLE_RECORD_EXPIRES) {
        p = varint_get(p, end, &expire_ms);
        if (p == NULL || expire_ms == 0) return ST_CORRUPT;
    }
    if (key.size + value_size > (size_t)(end - p)) return ST_CORRUPT;
    *out = (struct entry){
        .token = table_block_token(block, index),
        .key = BYTES(p, key.size),
        .value = BYTES(p + key.size, value_size),
        .version = block->version_base + zigzag_decode(version),
        .seq = block->seq_base + zigzag_decode(seq),
        .expire_ms = expire_ms,
        .kind = is_delete ? ENTRY_DELETE : ENTRY_PUT,
        .flags = is_blob ? ENTRY_BLOB : 0,
    };
    if (end_out != NULL) *end_out = (u32)(p + key.size + value_size - block->raw);
    return ST_OK;
}

/* The first index whose token is >= token. Halving without a branch that could be mispredicted. */
static u32
token_lower_bound(const struct table_block *block, u64 token)
{
    if (token <= block->token_base) return 0;
    u32 first = 0, length = block->count;
    while (length > 0) {
        u32 half = length / 2;
        bool before = table_block_token(block, first + half) < token;
        first = before ? first + half + 1 : first;
        length = before ? length - half - 1 : half;
    }
    return first;
}

status
table_block_seek(const struct table_block *block, u64 token, struct bytes key, u32 *index_out)
{
    u32 first = token_lower_bound(block, token);
    u32 end = first;
    /* Nearly always one entry has this token: look for the end of its run from the near side. */
    while (end < block->count && end - first < 4 && table_block_token(block, end) == token)
        end++;
    if (end - first == 4)
        end = token == UINT64_MAX ? block->count : token_lower_bound(block, token + 1);
    while (first < end) {
        u32 middle = first + (end - first) / 2;
        struct entry entry;
        status st = table_block_entry(block, middle, &entry, NULL);
        if (!ok(st)) return st;
        if (bytes_compare(entry.key, key) < 0)
            first = middle + 1;
        else
            end = middle;
    }
    *index_out = first;
    return ST_OK;
}

status
table_block_iterate(const struct table_block *block,
                    status (*each)(void *arg, const struct entry *entry), void *arg)
{
    u32 expected = sizeof(struct table_raw_header);
    struct entry last = {0};
    for (u32 i = 0; i < block->count; i++) {
        if (load_u16(block->offsets + 2 * (size_t)i) != expected) return ST_CORRUPT;
        struct entry entry;
        status st = table_block_entry(block, i, &entry, &expected);
        if (!ok(st)) return st;
        if (i > 0 && entry_compare(&last, &entry) >= 0) return ST_CORRUPT;
        if (i == 0 && entry.token != block->token_base) return ST_CORRUPT;
        if (each != NULL) {
            st = each(arg, &entry);
            if (!ok(st)) return st;
        }
        last = entry;
    }
    return expected == block->records_end ? ST_OK : ST_CORRUPT;
}

/* ---- index ---- */

status
table_index_decode(struct bytes section, u64 block_bytes, struct table_index *out)
{
    struct table_index_header header;
    if (section.size < sizeof(header)) return ST_CORRUPT;
    CHECK(((uintptr_t)section.data & 7) == 0);
    memcpy(&header, section.data, sizeof(header));
    u64 n = header.block_count, r = header.run_count;
    if (n == 0 || r >= n || header.reserved != 0) return ST_CORRUPT;
    if (table_index_bytes(n, r, header.separator_bytes) != section.size) return ST_CORRUPT;

    const u8 *p = section.data + sizeof(header);
    struct table_index index = {
        .section_bytes = section.size,
        .block_bytes = block_bytes,
        .block_count = header.block_count,
        .run_count = header.run_count,
    };
    index.tokens = (const u64 *)(const void *)p;
    p += n * 8;
    index.offsets_low = (const u32 *)(const void *)p;
    p += (n + 1) * 4;
    index.run_blocks = (const u32 *)(const void *)p;
    p += r * 4;
    index.run_ends = (const u32 *)(const void *)p;
    p += r * 4;
    index.offsets_high = p;
    p += n + 1;
    index.separators = p;

    if (table_index_offset(&index, 0) != 0) return ST_CORRUPT;
    if (table_index_offset(&index, (u32)n) != block_bytes) return ST_CORRUPT;
    for (u32 i = 0; i < n; i++) {
        u64 offset = table_index_offset(&index, i), next = table_index_offset(&index, i + 1);
        if (next <= offset || next - offset <= sizeof(struct table_block_header)) return ST_CORRUPT;
        if (next - offset > sizeof(struct table_block_header) + TABLE_RAW_BYTES_MAX)
            return ST_CORRUPT;
        if (i > 0 && index.tokens[i] < index.tokens[i - 1]) return ST_CORRUPT;
    }
    /* Every block that begins with the token of the one before must have a separator: the search
     * counts on them lying next to each other. */
    u32 end = 0;
    u32 run = 0;
    for (u32 i = 0; i < n; i++) {
        bool has = run < r && index.run_blocks[run] == i;
        if (i == 0 && has) return ST_CORRUPT;
        if (i > 0 && index.tokens[i] == index.tokens[i - 1] && !has) return ST_CORRUPT;
        if (!has) continue;
        u32 next = index.run_ends[run] & ~TABLE_RUN_SAME_KEY;
        if (next <= end || next > header.separator_bytes) return ST_CORRUPT;
        if (next - end > LIMIT_KEY_BYTES) return ST_CORRUPT;
        end = next;
        run++;
    }
    if (run != r || end != header.separator_bytes) return ST_CORRUPT;
    *out = index;
    return ST_OK;
}

u64
table_index_packed_bytes(const struct table_index *index)
{
    u64 n = index->block_count, r = index->run_count;
    for (u32 i = 0; i <= n; i++) {
        u32 first = i - i % TABLE_INDEX_GROUP;
        if (table_index_offset(index, i) - table_index_offset(index, first) > UINT16_MAX) return 0;
    }
    u64 separator_bytes = r == 0 ? 0 : index->run_ends[r - 1] & ~TABLE_RUN_SAME_KEY;
    return n * 8 + (n / TABLE_INDEX_GROUP + 1) * 8 + r * 8 + (n + 1) * 2 + separator_bytes;
}

void
table_index_pack(const struct table_index *index, u8 *packed, struct table_index *out)
{
    u64 bytes = table_index_packed_bytes(index);
    CHECK(bytes > 0 && ((uintptr_t)packed & 7) == 0);
    u64 n = index->block_count, r = index->run_count;
    u64 *tokens = (u64 *)(void *)packed;
    u64 *far = tokens + n;
    u32 *run_blocks = (u32 *)(void *)(far + n / TABLE_INDEX_GROUP + 1);
    u32 *run_ends = run_blocks + r;
    u16 *near = (u16 *)(void *)(run_ends + r);
    u8 *separators = (u8 *)(near + n + 1);

    memcpy(tokens, index->tokens, n * 8);
    for (u32 i = 0; i <= n; i++) {
        u64 offset = table_index_offset(index, i);
        if (i % TABLE_INDEX_GROUP == 0) far[i / TABLE_INDEX_GROUP] = offset;
        near[i] = (u16)(offset - far[i / TABLE_INDEX_GROUP]);
    }
    if (r > 0) {
        memcpy(run_blocks, index->run_blocks, r * 4);
        memcpy(run_ends, index->run_ends, r * 4);
        memcpy(separators, index->separators, run_ends[r - 1] & ~TABLE_RUN_SAME_KEY);
    }
    *out = (struct table_index){
        .section = packed,
        .section_bytes = bytes,
        .block_bytes = index->block_bytes,
        .block_count = index->block_count,
        .run_count = index->run_count,
        .tokens = tokens,
        .run_blocks = run_blocks,
        .run_ends = run_ends,
        .separators = separators,
        .offsets_far = far,
        .offsets_near = near,
    };
}

/* Interpolation first: tokens are hashes, so the guess is off by about the square root of the
 * distance. Each round looks at the guess and, that far away, at the side where the answer must
 * be. What is left after a few rounds (skewed tokens) is halved. */
#define INTERPOLATION_ROUNDS 6u
#define INTERPOLATION_MIN    32u

/* Where among width + 1 tokens from first to last this one is, were they evenly spaced. */
static u32
interpolate(u64 first, u64 last, u32 width, u64 token)
{
    u64 span = last - first; /* > 0 */
    u32 shift = 64u - (u32)__builtin_clzll(span);
    shift = shift > 31 ? shift - 31 : 0; /* the product below fits in 63 bits */
    u32 guess = (u32)(((token - first) >> shift) * width / MAX(span >> shift, 1));
    return MIN(guess, width);
}

/* How far off that usually is: a power of two. */
static u32
interpolation_gap(u32 width)
{
    return 1u << ((32u - (u32)__builtin_clz(width)) / 2);
}

void
table_index_prefetch(const struct table_index *index, u64 token_first, u64 token_last, u64 token)
{
    const u64 *tokens = index->tokens;
    u32 count = index->block_count;
    if (count <= INTERPOLATION_MIN || token_first >= token_last) return;
    u32 guess = interpolate(token_first, token_last, count - 1, token);
    u32 gap = interpolation_gap(count - 1);
    __builtin_prefetch(&tokens[0]);
    __builtin_prefetch(&tokens[count - 1]);
    __builtin_prefetch(&tokens[guess]);
    __builtin_prefetch(&tokens[guess > gap ? guess - gap : 0]);
    __builtin_prefetch(&tokens[MIN(guess + gap, count - 1)]);
}

u32
table_index_upper_bound(const struct table_index *index, u64 token)
{
    const u64 *tokens = index->tokens;
    u32 lo = 0, hi = index->block_count; /* tokens[lo - 1] <= token < tokens[hi] */
    for (u32 round = 0; round < INTERPOLATION_ROUNDS && hi - lo > INTERPOLATION_MIN; round++) {
        u64 first = tokens[lo], last = tokens[hi - 1];
        if (token < first) return lo;
        if (token >= last) return hi;
        u32 width = hi - 1 - lo;
        u32 guess = lo + interpolate(first, last, width, token);
        u32 gap = interpolation_gap(width);
        if (tokens[guess] <= token) {
            lo = guess + 1;
            if (gap < hi - lo && tokens[lo + gap] > token) hi = lo + gap;
        } else {
            hi = guess;
            if (gap < hi - lo && tokens[hi - gap] <= token) lo = hi - gap + 1;
        }
    }
    while (lo < hi) {
        u32 middle = lo + (hi - lo) / 2;
        if (tokens[middle] <= token)
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo;
}

/* Whether the entries wanted may lie in the block of this run or later. */
static bool
run_reached(const struct table_index *index, u32 run, struct bytes key)
{
    u32 begin = run == 0 ? 0 : index->run_ends[run - 1] & ~TABLE_RUN_SAME_KEY;
    u32 end = index->run_ends[run] & ~TABLE_RUN_SAME_KEY;
    int order = bytes_compare(BYTES(index->separators + begin, end - begin), key);
    /* When a key's versions span the border, the newest ones are before it. */
    return index->run_ends[run] & TABLE_RUN_SAME_KEY ? order < 0 : order <= 0;
}

u32
table_index_find(const struct table_index *index, u64 token, struct bytes key)
{
    u32 upper = table_index_upper_bound(index, token);
    if (upper == 0) return 0;
    if (index->tokens[upper - 1] != token || index->run_count == 0) return upper - 1;

    /* Blocks that begin with this token: [lower, upper). All but the first surely have separators,
     * and those of neighbours are neighbours. */
    u32 lo = 0, hi = index->run_count;
    while (lo < hi) { /* runs of blocks <= upper - 1 */
        u32 middle = lo + (hi - lo) / 2;
        if (index->run_blocks[middle] < upper)
            lo = middle + 1;
        else
            hi = middle;
    }
    u32 run_end = lo;
    /* Among them those that begin with this token. */
    lo = 0, hi = run_end;
    while (lo < hi) {
        u32 middle = lo + (hi - lo) / 2;
        if (index->tokens[index->run_blocks[middle]] < token)
            lo = middle + 1;
        else
            hi = middle;
    }
    u32 run_begin = lo;
    if (run_begin == run_end) return upper - 1;
    /* The last one that is reached. */
    hi = run_end;
    while (lo < hi) {
        u32 middle = lo + (hi - lo) / 2;
        if (run_reached(index, middle, key))
            lo = middle + 1;
        else
            hi = middle;
    }
    if (lo > run_begin) return index->run_blocks[lo - 1];
    return index->run_blocks[run_begin] - 1; /* block 0 never has a separator */
}

/* ---- footer ---- */

static status
footer_bad(const char **what_out, const char *what)
{
    MARK("lsm.table_format.footer_refused");
    *what_out = what;
    return ST_CORRUPT;
}

status
table_footer_decode(struct bytes page, u64 file_id, u64 file_bytes, struct table_footer *out,
                    const char **what_out)
{
    if (page.size != TABLE_FOOTER_BYTES) return footer_bad(what_out, "footer is cut off");
    memcpy(out, page.data, sizeof(*out));
    if (out->magic != TABLE_MAGIC) return footer_bad(what_out, "no table footer");
    u32 crc = crc32c(table_place_seed(file_id, file_bytes - TABLE_FOOTER_BYTES), page.data,
                     TABLE_FOOTER_BYTES - sizeof(out->crc));
    if (crc != out->crc)
        return MARKED("lsm.table_format.footer_checksum", footer_bad(what_out, "footer checksum"));
    if (out->format != TABLE_FORMAT) return footer_bad(what_out, "unknown table format");
    if (out->file_id != file_id) return footer_bad(what_out, "footer of another file");
    if (out->file_bytes != file_bytes) return footer_bad(what_out, "file size");
    if (!all_zero(out->zeros, sizeof(out->zeros)) || out->reserved[0] != 0 ||
        out->reserved[1] != 0 || out->reserved2 != 0)
        return footer_bad(what_out, "reserved bytes of the footer");
    u64 rest = file_bytes - TABLE_FOOTER_BYTES;
    if (out->block_bytes > rest) return footer_bad(what_out, "block bytes");
    rest -= out->block_bytes;
    if (out->index_bytes > rest) return footer_bad(what_out, "index bytes");
    rest -= out->index_bytes;
    if (out->filter_bytes > rest) return footer_bad(what_out, "filter bytes");
    rest -= out->filter_bytes;
    if (rest >= IO_ALIGNMENT) return footer_bad(what_out, "padding before the footer");
    if (out->filter_bytes % 64 != 0) return footer_bad(what_out, "filter bytes");
    if (out->filter_bytes > 0 && (out->filter_probes == 0 || out->filter_probes > 16))
        return footer_bad(what_out, "filter probes");
    if (out->codec >= LSM_CODEC_COUNT || out->entries_all_expire > 1 ||
        out->keyspace >= LIMIT_KEYSPACES)
        return footer_bad(what_out, "footer fields");
    if (out->blob_ref_count > TABLE_BLOB_REFS_MAX) return footer_bad(what_out, "blob references");
    if (out->entry_count == 0 || out->block_count == 0 || out->entry_count < out->block_count ||
        out->delete_count > out->entry_count || out->expiring_count > out->entry_count)
        return footer_bad(what_out, "entry counts");
    if (out->token_first > out->token_last || out->seq_min > out->seq_max ||
        out->version_min > out->version_max || out->expire_min_ms > out->expire_max_ms)
        return footer_bad(what_out, "footer ranges");
    return ST_OK;
}

void
table_footer_to_meta(const struct table_footer *footer, struct table_meta *out)
{
    *out = (struct table_meta){
        .file_id = footer->file_id,
        .file_bytes = footer->file_bytes,
        .token_first = footer->token_first,
        .token_last = footer->token_last,
        .seq_min = footer->seq_min,
        .seq_max = footer->seq_max,
        .version_min = footer->version_min,
        .version_max = footer->version_max,
        .expire_min_ms = footer->expire_min_ms,
        .expire_max_ms = footer->expire_max_ms,
        .entry_count = footer->entry_count,
        .delete_count = footer->delete_count,
        .expiring_count = footer->expiring_count,
        .data_bytes = footer->data_bytes,
        .keyspace = footer->keyspace,
        .codec = footer->codec,
        .filter_bits = footer->filter_bits,
        .entries_all_expire = footer->entries_all_expire,
        .blob_ref_count = footer->blob_ref_count,
    };
    memcpy(out->blob_refs, footer->blob_refs, sizeof(out->blob_refs));
}

bool
table_footer_matches(const struct table_footer *footer, const struct table_meta *meta)
{
    if (footer->blob_ref_count != meta->blob_ref_count) return false;
    for (u32 i = 0; i < meta->blob_ref_count; i++) {
        if (footer->blob_refs[i].file_id != meta->blob_refs[i].file_id ||
            footer->blob_refs[i].bytes != meta->blob_refs[i].bytes)
            return false;
    }
    return footer->file_id == meta->file_id && footer->file_bytes == meta->file_bytes &&
           footer->token_first == meta->token_first && footer->token_last == meta->token_last &&
           footer->seq_min == meta->seq_min && footer->seq_max == meta->seq_max &&
           footer->version_min == meta->version_min && footer->version_max == meta->version_max &&
           footer->expire_min_ms == meta->expire_min_ms &&
           footer->expire_max_ms == meta->expire_max_ms &&
           footer->entry_count == meta->entry_count && footer->delete_count == meta->delete_count &&
           footer->expiring_count == meta->expiring_count &&
           footer->data_bytes == meta->data_bytes && footer->keyspace == meta->keyspace &&
           footer->codec == meta->codec && footer->filter_bits == meta->filter_bits &&
           footer->entries_all_expire == (meta->entries_all_expire ? 1 : 0);
}
