/* SPDX-License-Identifier: MIT
 *
 * table_reader.c -- open tables and point reads.
 *
 *   get:  index (in memory) -> block cache -> one aligned read -> search in the block
 *
 * What a point read waits for is one request of 4 to 8 KiB (more for a large entry or a compressed
 * unit); a second block is only looked at when the versions of the key go on in it. A block is
 * verified when it is read, so what the cache holds was verified once; its arrays are proved again
 * each time, which costs a few compares.
 */
#include "lsm/table_internal.h"

#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/bloom.h"
#include "lsm/codec.h"
#include "lsm/piece_io.h"

/* Where the filter lies in the file. */
struct filter_place {
    u64 offset, bytes; /* 0 bytes: there is none */
    u32 crc, probes;
};

/* struct table and what nobody else may see. */
struct table_open {
    struct table table;
    struct table_index index;
    struct table_filter filter;
    struct filter_place filter_place;
    struct file_closer *closer;
};

/* The block in which the offset is, which lies before the end of the last one. */
static u32
block_at(const struct table_index *index, u64 offset)
{
    u32 low = 0, high = index->block_count;
    while (high - low > 1) {
        u32 middle = low + (high - low) / 2;
        if (table_index_offset(index, middle) <= offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static bool
is_in_block(const struct table *table, u64 offset)
{
    return table->index != NULL && offset < table->index->block_bytes;
}

/* Of what may lie at the offset: of the block, or of all. */
static struct gap
tokens_at(const struct table *table, u64 offset)
{
    if (!is_in_block(table, offset))
        return (struct gap){table->meta.token_first, table->meta.token_last};
    u32 block = block_at(table->index, offset);
    return (struct gap){table->index->tokens[block], table_block_token_last(table, block)};
}

bool
table_damaged(struct table *table, u64 offset)
{
    struct gap tokens = tokens_at(table, offset);
    bool is_new = gap_list_note(&table->damaged, tokens.token_first, tokens.token_last);
    if (table->stats != NULL) {
        table->stats->damaged += table->damage_met == 0;
        table->stats->damage_epoch += is_new;
    }
    table->damage_met++;
    return log_seldom(&table->damage_told_ns, io_now_ns());
}

status
table_corrupt(struct table *table, u64 offset, const char *what)
{
    char path[LSM_PATH_BYTES];
    table_path(path, table->dir, table->meta.file_id);
    MARK("lsm.table.corrupt");
    if (table->stats != NULL) table->stats->corruptions++;
    if (table_damaged(table, offset))
        log_error("lsm", "table is damaged file=%s offset=%llu what=\"%s\" met=%llu", path,
                  (unsigned long long)offset, what, (unsigned long long)table->damage_met);
    return ST_CORRUPT;
}

status
table_unreadable(struct table *table, u64 offset)
{
    struct gap tokens = tokens_at(table, offset);
    if (gap_list_covers(&table->damaged, tokens.token_first, tokens.token_last))
        return MARKED("lsm.table.unreadable_known", table_corrupt(table, offset, "cannot be read"));
    if (table->stats != NULL && table->stats->unreadable != NULL)
        table->stats->unreadable(table->stats->arg, table, offset);
    return MARKED("lsm.table.unreadable", ST_IO_ERROR);
}

/* ---- sections ---- */

MAY_YIELD status
table_footer_read(struct io_file *file, u64 file_id, u64 file_bytes, struct budget *budget,
                  struct table_footer *out, const char **what_out)
{
    *what_out = "file size";
    if (file_bytes % IO_ALIGNMENT != 0 || file_bytes < 2 * TABLE_FOOTER_BYTES)
        return MARKED("lsm.table.size_impossible", ST_CORRUPT);
    u64 size;
    status st = io_file_size(file, &size);
    if (!ok(st)) return st;
    if (size != file_bytes) return MARKED("lsm.table.size_differs", ST_CORRUPT);
    u8 *page = mem_alloc_aligned(budget, TABLE_FOOTER_BYTES, IO_ALIGNMENT);
    if (page == NULL) return MARKED("lsm.table.footer_no_memory", ST_NO_MEMORY);
    st = io_file_read(file, IO_CLASS_READ, page, TABLE_FOOTER_BYTES,
                      file_bytes - TABLE_FOOTER_BYTES);
    if (status_is(st, ST_END)) {
        MARK("lsm.table.footer_cut_off");
        st = ST_CORRUPT;
    }
    if (ok(st))
        st = table_footer_decode(BYTES(page, TABLE_FOOTER_BYTES), file_id, file_bytes, out,
                                 what_out);
    mem_free(budget, page, TABLE_FOOTER_BYTES);
    return st;
}

/* A section of its own aligned memory, checked. */
MAY_YIELD static status
section_read(struct io_file *file, u64 file_id, u64 file_bytes, u64 offset, u64 size, u32 crc,
             struct budget *budget, u8 **out)
{
    u8 *section = mem_alloc_aligned(budget, size, 64);
    if (section == NULL) return MARKED("lsm.table.section_no_memory", ST_NO_MEMORY);
    status st = piece_read(file, file_bytes, IO_CLASS_READ, budget, section, offset, size);
    if (ok(st) && crc32c(table_place_seed(file_id, offset), section, size) != crc)
        st = MARKED("lsm.table.section_checksum", ST_CORRUPT);
    if (!ok(st)) {
        mem_free(budget, section, size);
        return st;
    }
    *out = section;
    return ST_OK;
}

MAY_YIELD status
table_index_read(struct io_file *file, const struct table_footer *footer, struct budget *budget,
                 struct table_index *out)
{
    if (footer->index_bytes < sizeof(struct table_index_header))
        return MARKED("lsm.table.index_short", ST_CORRUPT);
    u8 *section;
    status st = section_read(file, footer->file_id, footer->file_bytes, footer->block_bytes,
                             footer->index_bytes, footer->index_crc, budget, &section);
    if (!ok(st)) return st;
    st = table_index_decode(BYTES(section, footer->index_bytes), footer->block_bytes, out);
    if (ok(st) &&
        (out->block_count != footer->block_count || out->tokens[0] != footer->token_first ||
         out->tokens[out->block_count - 1] > footer->token_last))
        st = MARKED("lsm.table.index_differs", ST_CORRUPT);
    if (!ok(st)) {
        mem_free(budget, section, footer->index_bytes);
        return st;
    }
    out->section = section;
    return ST_OK;
}

void
table_index_free(struct table_index *index, struct budget *budget)
{
    mem_free(budget, index->section, index->section_bytes);
    index->section = NULL;
}

static struct filter_place
filter_place_of(const struct table_footer *footer)
{
    return (struct filter_place){
        .offset = footer->block_bytes + footer->index_bytes,
        .bytes = footer->filter_bytes,
        .crc = footer->filter_crc,
        .probes = footer->filter_probes,
    };
}

MAY_YIELD static status
filter_read(struct io_file *file, u64 file_id, u64 file_bytes, const struct filter_place *place,
            struct budget *budget, struct table_filter *out)
{
    u8 *lines;
    status st = section_read(file, file_id, file_bytes, place->offset, place->bytes, place->crc,
                             budget, &lines);
    if (!ok(st)) return st;
    *out = (struct table_filter){
        .lines = lines,
        .line_count = place->bytes / BLOOM_LINE_BYTES,
        .probes = place->probes,
    };
    return ST_OK;
}

MAY_YIELD status
table_filter_read(struct io_file *file, const struct table_footer *footer, struct budget *budget,
                  struct table_filter *out)
{
    struct filter_place place = filter_place_of(footer);
    return filter_read(file, footer->file_id, footer->file_bytes, &place, budget, out);
}

void
table_filter_free(struct table_filter *filter, struct budget *budget)
{
    mem_free(budget, filter->lines, filter->line_count * BLOOM_LINE_BYTES);
    *filter = (struct table_filter){0};
}

/* ---- opening and closing ---- */

/* The index stays in memory as long as the table is open: in fewer bytes where it can be. */
static void
index_pack(struct table_open *open)
{
    u64 bytes = table_index_packed_bytes(&open->index);
    if (bytes == 0) {
        MARK("lsm.table.index_not_packed");
        return;
    }
    u8 *packed = mem_alloc_aligned(open->table.budget, bytes, 64);
    if (packed == NULL) {
        MARK("lsm.table.index_pack_no_memory"); /* it stays as it is */
        return;
    }
    struct table_index index;
    table_index_pack(&open->index, packed, &index);
    table_index_free(&open->index, open->table.budget);
    open->index = index;
}

static bool
filter_has_room(const struct table_open *open)
{
    const struct table_stats *stats = open->table.stats;
    if (stats == NULL || stats->filter_limit_bytes == 0) return true;
    u64 bytes = stats->index_bytes + stats->filter_bytes + open->filter_place.bytes;
    return bytes <= stats->filter_limit_bytes;
}

MAY_YIELD status
table_filter_load(struct table *table)
{
    struct table_open *open = CONTAINER_OF(table, struct table_open, table);
    const struct filter_place *place = &open->filter_place;
    if (table->filter != NULL || place->bytes == 0) return ST_OK;
    /* Reads get slower without it, not wrong. */
    if (!filter_has_room(open)) return MARKED("lsm.table.filter_no_room", ST_OK);
    struct table_filter filter;
    status st = filter_read(table->file, table->meta.file_id, table->meta.file_bytes, place,
                            table->budget, &filter);
    if (status_is(st, ST_NO_MEMORY)) return MARKED("lsm.table.filter_no_memory", ST_OK);
    if (status_is(st, ST_CORRUPT))
        return MARKED("lsm.table.filter_damaged", table_corrupt(table, place->offset, "filter"));
    if (!ok(st)) return st;
    if (table->filter != NULL) { /* by somebody else meanwhile */
        MARK("lsm.table.filter_loaded_twice");
        table_filter_free(&filter, table->budget);
        return ST_OK;
    }
    open->filter = filter;
    table->filter = &open->filter;
    if (table->stats != NULL) table->stats->filter_bytes += place->bytes;
    return ST_OK;
}

void
table_filter_drop(struct table *table)
{
    struct table_open *open = CONTAINER_OF(table, struct table_open, table);
    if (table->filter == NULL) return;
    if (table->stats != NULL)
        table->stats->filter_bytes -= open->filter.line_count * BLOOM_LINE_BYTES;
    table->filter = NULL;
    table_filter_free(&open->filter, table->budget);
}

MAY_YIELD static status
sections_load(struct table_open *open, struct table_footer *footer)
{
    struct table *table = &open->table;
    const char *what = "footer";
    u64 footer_offset = table->meta.file_bytes - TABLE_FOOTER_BYTES;
    status st = table_footer_read(table->file, table->meta.file_id, table->meta.file_bytes,
                                  table->budget, footer, &what);
    if (status_is(st, ST_CORRUPT))
        return MARKED("lsm.table.footer_damaged", table_corrupt(table, footer_offset, what));
    if (!ok(st)) return st;
    if (!table_footer_matches(footer, &table->meta))
        return MARKED("lsm.table.footer_differs",
                      table_corrupt(table, footer_offset, "footer does not match the manifest"));

    st = table_index_read(table->file, footer, table->budget, &open->index);
    if (status_is(st, ST_CORRUPT))
        return MARKED("lsm.table.index_damaged",
                      table_corrupt(table, footer->block_bytes, "index"));
    if (!ok(st)) return st;
    index_pack(open);
    table->index = &open->index;
    if (table->stats != NULL) table->stats->index_bytes += open->index.section_bytes;
    open->filter_place = filter_place_of(footer);
    if (table->stats != NULL && table->stats->filters_later) return ST_OK;
    return table_filter_load(table);
}

/* Frees everything but the file. */
static void
table_memory_free(struct table_open *open)
{
    struct table *table = &open->table;
    if (table->damage_met != 0 && table->stats != NULL) table->stats->damaged--;
    table_filter_drop(table);
    if (table->index != NULL && table->stats != NULL)
        table->stats->index_bytes -= open->index.section_bytes;
    table_index_free(&open->index, table->budget);
    mem_free(table->budget, open, sizeof(*open));
}

MAY_YIELD status
table_open(const char *dir, const struct table_meta *meta, struct budget *budget,
           struct table_stats *stats, struct table **out)
{
    char path[LSM_PATH_BYTES];
    table_path(path, dir, meta->file_id);
    struct table_open *open = mem_alloc_zero(budget, sizeof(*open));
    if (open == NULL) return MARKED("lsm.table.no_memory", ST_NO_MEMORY);
    struct table *table = &open->table;
    table->meta = *meta;
    table->ref_count = 1;
    memcpy(table->dir, dir, strlen(dir) + 1); /* table_path has checked the length */
    table->budget = budget;
    table->stats = stats;

    struct table_footer *footer = mem_alloc(budget, sizeof(*footer));
    open->closer = file_closer_new(path);
    status st = ST_OK;
    if (footer == NULL || open->closer == NULL)
        st = MARKED("lsm.table.open_no_memory", ST_NO_MEMORY);
    if (ok(st)) st = io_file_open(path, IO_OPEN_READ, &table->file);
    if (ok(st)) st = sections_load(open, footer);
    mem_free(budget, footer, sizeof(*footer));
    if (!ok(st)) {
        MARK("lsm.table.open_failed");
        io_file_close(table->file);
        if (open->closer != NULL) file_closer_free(open->closer);
        table_memory_free(open);
        return st;
    }
    *out = table;
    return ST_OK;
}

void
table_ref(struct table *table)
{
    CHECK(table->ref_count > 0);
    table->ref_count++;
}

void
table_unref(struct table *table)
{
    if (table == NULL) return;
    CHECK(table->ref_count > 0);
    if (--table->ref_count > 0) return;
    struct table_open *open = CONTAINER_OF(table, struct table_open, table);
    file_closer_close(open->closer, table->file, table->unlink_on_close);
    table_memory_free(open); /* now: the budget may be gone when the file is closed */
}

/* ---- blocks ---- */

status
table_block_unpack(const struct table_block_header *header, const u8 *payload,
                   struct budget *budget, u8 *target, struct table_block *out)
{
    status st = codec_decompress((enum lsm_codec)header->codec, budget,
                                 BYTES(payload, header->stored_size), target, header->raw_size);
    if (!ok(st)) return st;
    return table_block_open(BYTES(target, header->raw_size), out);
}

/* Where a block lies in what is read from the disk, which knows units only. */
struct block_span {
    u64 offset; /* of the block */
    u64 first;
    u32 size; /* of the block */
    u32 bytes;
};

static struct block_span
block_span_of(const struct table *table, u32 index)
{
    u64 offset = table_index_offset(table->index, index);
    u64 size = table_index_offset(table->index, index + 1) - offset; /* bounded by decode */
    u32 unit = io_file_read_unit(table->file);
    u64 first = align_down(offset, unit);
    return (struct block_span){
        .offset = offset,
        .first = first,
        .size = (u32)size,
        .bytes = (u32)(align_up(offset + size, unit) - first),
    };
}

void
table_span_at(const struct table *table, u64 offset, u64 *first_out, u64 *bytes_out)
{
    if (is_in_block(table, offset)) {
        struct block_span span = block_span_of(table, block_at(table->index, offset));
        *first_out = span.first;
        *bytes_out = span.bytes;
        return;
    }
    *first_out = align_down(offset, io_file_read_unit(table->file));
    *bytes_out = table->meta.file_bytes - *first_out;
}

/* What was read, or why it was not, becomes a checked block; the buffer is freed. */
static status
block_finish(struct table *table, const struct block_span *span, u8 *buffer, status st,
             struct block **out)
{
    u64 offset = span->offset;
    if (table->stats != NULL) {
        table->stats->reads++;
        table->stats->read_bytes += span->bytes;
    }
    if (status_is(st, ST_END))
        st = MARKED("lsm.table.block_cut_off", table_corrupt(table, offset, "file is cut off"));
    if (status_is(st, ST_IO_ERROR)) st = table_unreadable(table, offset);
    struct block *block = NULL;
    struct table_block_header header;
    const u8 *stored = buffer + (offset - span->first);
    if (ok(st) &&
        !ok(table_block_check(BYTES(stored, span->size), table->meta.file_id, offset, &header)))
        st = MARKED("lsm.table.block_checksum", table_corrupt(table, offset, "block checksum"));
    if (ok(st)) {
        block = block_new(table->budget, table->meta.file_id, offset, header.raw_size);
        if (block == NULL) st = ST_NO_MEMORY;
    }
    if (ok(st)) {
        struct table_block view;
        st =
            table_block_unpack(&header, stored + sizeof(header), table->budget, block->data, &view);
        if (status_is(st, ST_CORRUPT))
            st = MARKED("lsm.table.block_content", table_corrupt(table, offset, "block content"));
    }
    mem_free(table->budget, buffer, span->bytes);
    if (!ok(st)) {
        block_cache_unpin(block);
        return st;
    }
    *out = block;
    return ST_OK;
}

MAY_YIELD static status
block_read(struct table *table, enum io_class io_class, u32 index, struct block **out)
{
    struct block_span span = block_span_of(table, index);
    u8 *buffer = mem_alloc_aligned(table->budget, span.bytes, IO_ALIGNMENT);
    if (buffer == NULL) return MARKED("lsm.table.block_no_memory", ST_NO_MEMORY);
    status st = ST_OK;
    for (u32 done = 0; ok(st) && done < span.bytes;) {
        u32 part = MIN(span.bytes - done, LIMIT_IO_BYTES);
        st = io_file_read(table->file, io_class, buffer + done, part, span.first + done);
        done += part;
    }
    return block_finish(table, &span, buffer, st, out);
}

/* A table that leaves the tree was dropped from the cache already. */
static void
block_keep(const struct table *table, struct block_cache *cache, struct block *block)
{
    if (cache != NULL && !table->unlink_on_close) block_cache_insert(cache, block);
}

static struct block *
block_cached(struct table *table, struct block_cache *cache, u32 index)
{
    if (cache == NULL) return NULL;
    return block_cache_get(cache, table->meta.file_id, table_index_offset(table->index, index));
}

MAY_YIELD status
table_block_fetch(struct table *table, struct block_cache *cache, enum io_class io_class, u32 index,
                  bool fill_cache, struct block **out)
{
    struct block *block = block_cached(table, cache, index);
    if (block != NULL) {
        *out = block;
        return ST_OK;
    }
    table_ref(table); /* a compaction may drop it meanwhile */
    status st = block_read(table, io_class, index, out);
    if (ok(st) && fill_cache) block_keep(table, cache, *out);
    table_unref(table);
    return st;
}

/* ---- point reads ---- */

void
table_prefetch_filter(const struct table *table, u64 key_hash)
{
    const struct table_filter *filter = table->filter;
    if (filter != NULL) bloom_prefetch(filter->lines, filter->line_count, key_hash);
}

void
table_prefetch_index(const struct table *table, u64 token)
{
    const struct table_meta *meta = &table->meta;
    if (token < meta->token_first || token > meta->token_last) return;
    table_index_prefetch(table->index, meta->token_first, meta->token_last, token);
}

bool
table_may_contain(struct table *table, u64 token, u64 key_hash)
{
    if (token < table->meta.token_first || token > table->meta.token_last) return false;
    const struct table_filter *filter = table->filter;
    if (filter == NULL) return true;
    bool may = bloom_may_contain(filter->lines, filter->line_count, filter->probes, key_hash);
    if (table->stats != NULL) {
        table->stats->filter_probes++;
        if (!may) table->stats->filter_negatives++;
    }
    return may;
}

enum search { SEARCH_FOUND, SEARCH_ABSENT, SEARCH_OTHER_VERSIONS, SEARCH_NEXT_BLOCK, SEARCH_BAD };

/* Looks in one block. first: the block that the index gave, else one that may go on with versions
 * of the key. */
static enum search
block_search(const struct block *block, bool first, u64 token, struct bytes key, u64 seq_max,
             struct entry *out)
{
    struct table_block view;
    u32 at = 0;
    if (!ok(table_block_open(BYTES(block->data, block->size), &view))) return SEARCH_BAD;
    if (first && !ok(table_block_seek(&view, token, key, &at))) return SEARCH_BAD;
    bool seen = !first;
    for (; at < view.count; at++) {
        struct entry entry;
        if (!ok(table_block_entry(&view, at, &entry, NULL))) return SEARCH_BAD;
        if (entry.token != token || !bytes_equal(entry.key, key))
            return seen ? SEARCH_OTHER_VERSIONS : SEARCH_ABSENT;
        seen = true;
        if (entry.seq > seq_max) continue;
        *out = entry;
        return SEARCH_FOUND;
    }
    return seen ? SEARCH_NEXT_BLOCK : SEARCH_ABSENT;
}

static status
not_found(struct table *table, bool absent)
{
    /* Who asks here was told by the filter that the key may be in this table. */
    if (absent && table->filter != NULL && table->stats != NULL)
        table->stats->filter_false_positives++;
    return ST_NOT_FOUND;
}

/* index: of the block that was searched. True: *st is the answer. */
static bool
search_ends(struct table *table, enum search result, u32 index, u64 token, status *st)
{
    switch (result) {
    case SEARCH_FOUND:
        *st = ST_OK;
        return true;
    case SEARCH_ABSENT:
    case SEARCH_OTHER_VERSIONS:
        *st = not_found(table, result == SEARCH_ABSENT);
        return true;
    case SEARCH_BAD:
        MARK("lsm.table.search_content");
        *st = table_corrupt(table, table_index_offset(table->index, index), "block content");
        return true;
    case SEARCH_NEXT_BLOCK:
        *st = ST_NOT_FOUND;
        return index + 1 == table->index->block_count || table->index->tokens[index + 1] != token;
    }
    return true;
}

status
table_get_try(struct table *table, struct block_cache *cache, u64 token, struct bytes key,
              u64 seq_max, struct entry *out, struct block **pin)
{
    if (token < table->meta.token_first || token > table->meta.token_last) return ST_NOT_FOUND;
    u32 first = table_index_find(table->index, token, key);
    for (u32 index = first;; index++) {
        struct block *block = block_cached(table, cache, index);
        if (block == NULL) return ST_WOULD_WAIT;
        status st;
        if (search_ends(table, block_search(block, index == first, token, key, seq_max, out), index,
                        token, &st)) {
            if (ok(st))
                *pin = block;
            else
                block_cache_unpin(block);
            return st;
        }
        block_cache_unpin(block);
    }
}

MAY_YIELD status
table_get(struct table *table, struct block_cache *cache, u64 token, struct bytes key, u64 seq_max,
          bool fill_cache, struct entry *out, struct block **pin)
{
    if (token < table->meta.token_first || token > table->meta.token_last) return ST_NOT_FOUND;
    table_ref(table);
    u32 first = table_index_find(table->index, token, key);
    status st;
    for (u32 index = first;; index++) {
        struct block *block;
        st = table_block_fetch(table, cache, IO_CLASS_READ, index, fill_cache, &block);
        if (!ok(st)) break;
        if (search_ends(table, block_search(block, index == first, token, key, seq_max, out), index,
                        token, &st)) {
            if (ok(st))
                *pin = block;
            else
                block_cache_unpin(block);
            break;
        }
        block_cache_unpin(block);
    }
    table_unref(table);
    return st;
}

/* ---- the same without a fiber ---- */

static void
read_done(struct io_op *op)
{
    struct table_read *read = CONTAINER_OF(op, struct table_read, op);
    struct table *table = read->table;
    struct block_span span = block_span_of(table, read->index);
    struct block *block = NULL;
    read->result = block_finish(table, &span, read->buffer, op->result, &block);
    if (ok(read->result)) block_keep(table, read->cache, block);
    read->block = block;
    read->done(read);
}

bool
table_read_start(struct table_read *read, struct table *table, struct block_cache *cache, u64 token,
                 struct bytes key)
{
    read->index = table_index_find(table->index, token, key);
    struct block_span span = block_span_of(table, read->index);
    if (span.bytes > TABLE_READ_BYTES_MAX) return MARKED("lsm.table.read_large", false);
    read->buffer = mem_alloc_aligned(table->budget, span.bytes, IO_ALIGNMENT);
    if (read->buffer == NULL) return MARKED("lsm.table.read_no_memory", false);
    table_ref(table); /* a compaction may drop it meanwhile */
    read->table = table;
    read->cache = cache;
    read->op.done = read_done;
    io_file_read_start(table->file, &read->op, IO_CLASS_READ, read->buffer, span.bytes, span.first);
    return true;
}

status
table_read_take(struct table_read *read, u64 token, struct bytes key, struct entry *out,
                struct block **pin)
{
    struct table *table = read->table;
    status st = read->result;
    if (ok(st)) {
        /* Of the newest the first that is there is the one: no need to look into another block. */
        enum search found = block_search(read->block, true, token, key, UINT64_MAX, out);
        CHECK(search_ends(table, found, read->index, token, &st));
        if (ok(st))
            *pin = read->block;
        else
            block_cache_unpin(read->block);
    }
    read->block = NULL;
    read->table = NULL;
    table_unref(table);
    return st;
}
