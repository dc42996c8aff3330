/* SPDX-License-Identifier: MIT
 *
 * table_verify.c -- reads a whole table file and believes nothing.
 *
 *   footer and index        checksums, fields against the manifest
 *   every block             checksum, content without gaps, order inside and across blocks, the
 *                           index's token and separator for it
 *   every key               must pass the filter
 *   counts and ranges       recounted, against the manifest
 *   every byte              the hash of the whole file against the manifest
 *
 * The hash alone finds any damage; the rest says where it is, and finds what a wrong writer did.
 *
 * A live node needs the first damaged place only. table_verify_all goes on: the index says where the
 * next block is, and what comes before it is not compared with it. Without footer or index the file
 * is left.
 */
#include "lsm/table_internal.h"

#include "base/fault.h"
#include "base/hash.h"
#include "io/io.h"
#include "lsm/bloom.h"
#include "lsm/piece_io.h"

#define HASH_PIECE_BYTES 65536u

struct verify {
    const struct table_meta *meta;
    struct budget *budget;
    struct io_file *file;
    struct piece_reader *reader;
    struct piece_hash *hash;
    struct pace pace;
    struct table_footer footer;
    struct table_index index;
    struct table_filter filter;
    u8 *raw;
    u32 raw_capacity;

    struct table_meta counted;
    u32 block;
    u32 run;           /* the next separator */
    struct entry last; /* points into the block, or into last_key at a border */
    u8 last_key[LIMIT_KEY_BYTES];
    bool any;

    struct places *places; /* NULL: the first one ends it */
    bool gap;              /* the block before was damaged: last tells nothing */
    bool leave_separators, leave_filter, leave_tail; /* they have been told */

    u64 offset; /* of what is read, or is wrong */
    const char *what;
};

void
places_tell(struct places *places, status st, u64 offset, const char *what)
{
    if (status_is_io(st)) what = "cannot be read";
    if (places->count == PLACES_MAX) {
        MARK("lsm.places.more");
        what = "and more: the file is not read further";
    }
    places->count++;
    places->each(places->arg, offset, what);
}

status
places_end(struct places *places, status st, u64 offset, const char *what)
{
    if (status_is(st, ST_CORRUPT) || status_is_io(st))
        places_tell(places, st, offset, what);
    else if (!ok(st))
        return st;
    return places->count > 0 ? ST_CORRUPT : ST_OK;
}

static status
bad(struct verify *v, u64 offset, const char *what)
{
    v->offset = offset;
    v->what = what;
    return ST_CORRUPT;
}

/* Tells it, if it is damage and there is more to see behind it. */
static status
go_on(struct verify *v, status st)
{
    bool damage = status_is(st, ST_CORRUPT) || status_is_io(st);
    if (!damage || v->places == NULL || v->places->count == PLACES_MAX) return st;
    MARK("lsm.table_verify.go_on");
    places_tell(v->places, st, v->offset, v->what);
    v->what = NULL;
    return ST_OK;
}

/* The separator of the block that begins with entry, if it must have one. */
static status
separator_verify(struct verify *v, const struct entry *entry)
{
    bool has = v->run < v->index.run_count && v->index.run_blocks[v->run] == v->block;
    bool must = v->gap ? has : v->any && v->last.token == entry->token;
    u64 offset = v->footer.block_bytes;
    if (has != must)
        return MARKED("lsm.table_verify.separator_missing", bad(v, offset, "index separators"));
    if (!has) return ST_OK;
    u32 begin = v->run == 0 ? 0 : v->index.run_ends[v->run - 1] & ~TABLE_RUN_SAME_KEY;
    u32 end = v->index.run_ends[v->run] & ~TABLE_RUN_SAME_KEY;
    bool same = v->index.run_ends[v->run] & TABLE_RUN_SAME_KEY;
    struct bytes separator = BYTES(v->index.separators + begin, end - begin);
    v->run++;
    if (!v->gap && same != bytes_equal(v->last.key, entry->key))
        return MARKED("lsm.table_verify.separator_kind", bad(v, offset, "index separators"));
    if (bytes_compare(separator, entry->key) > 0)
        return MARKED("lsm.table_verify.separator_high", bad(v, offset, "index separators"));
    if (v->gap) return ST_OK;
    int before = bytes_compare(v->last.key, separator);
    if (same ? before != 0 : before >= 0)
        return MARKED("lsm.table_verify.separator_low", bad(v, offset, "index separators"));
    return ST_OK;
}

static void
count(struct table_meta *counted, const struct entry *entry)
{
    counted->token_last = entry->token;
    counted->seq_min = MIN(counted->seq_min, entry->seq);
    counted->seq_max = MAX(counted->seq_max, entry->seq);
    counted->version_min = MIN(counted->version_min, entry->version);
    counted->version_max = MAX(counted->version_max, entry->version);
    counted->entry_count++;
    counted->data_bytes += entry->key.size + entry->value.size;
    if (entry->kind == ENTRY_DELETE) counted->delete_count++;
    if (entry->expire_ms == 0) return;
    counted->expiring_count++;
    counted->expire_min_ms = MIN(counted->expire_min_ms, entry->expire_ms);
    counted->expire_max_ms = MAX(counted->expire_max_ms, entry->expire_ms);
}

static status
entry_verify(void *arg, const struct entry *entry)
{
    struct verify *v = arg;
    u64 offset = table_index_offset(&v->index, v->block);
    if (v->any && !v->gap && entry_compare(&v->last, entry) >= 0)
        return MARKED("lsm.table_verify.block_order", bad(v, offset, "order of blocks"));
    const struct table_filter *filter = &v->filter;
    if (filter->lines != NULL && !v->leave_filter &&
        !bloom_may_contain(filter->lines, filter->line_count, filter->probes,
                           hash_key(entry->key, 0)))
        return MARKED("lsm.table_verify.filter_misses",
                      bad(v, v->footer.block_bytes + v->footer.index_bytes, "filter misses a key"));
    if (!v->any) v->counted.token_first = entry->token;
    count(&v->counted, entry);
    v->last = *entry;
    v->any = true;
    v->gap = false;
    return ST_OK;
}

MAY_YIELD static status
block_verify(struct verify *v, u64 offset, u32 size)
{
    const u8 *stored;
    v->offset = offset;
    status st = piece_reader_get(v->reader, offset, size, &stored);
    if (status_is(st, ST_CORRUPT))
        return MARKED("lsm.table_verify.cut_off", bad(v, offset, "file is cut off"));
    if (!ok(st)) return st;
    piece_hash_add(v->hash, BYTES(stored, size));
    struct table_block_header header;
    if (!ok(table_block_check(BYTES(stored, size), v->meta->file_id, offset, &header)))
        return MARKED("lsm.table_verify.block_checksum", bad(v, offset, "block checksum"));
    if (header.raw_size > v->raw_capacity) {
        mem_free(v->budget, v->raw, v->raw_capacity);
        v->raw_capacity = (u32)align_up(header.raw_size, 4096);
        v->raw = mem_alloc(v->budget, v->raw_capacity);
        if (v->raw == NULL) {
            MARK("lsm.table_verify.raw_no_memory");
            v->raw_capacity = 0;
            return ST_NO_MEMORY;
        }
    }
    struct table_block view;
    st = table_block_unpack(&header, stored + sizeof(header), v->budget, v->raw, &view);
    if (status_is(st, ST_CORRUPT))
        return MARKED("lsm.table_verify.block_content", bad(v, offset, "block content"));
    if (!ok(st)) return st;
    if (view.token_base != v->index.tokens[v->block])
        return MARKED("lsm.table_verify.first_token", bad(v, offset, "first token of block"));

    struct entry first;
    if (!ok(table_block_entry(&view, 0, &first, NULL)))
        return MARKED("lsm.table_verify.record", bad(v, offset, "record"));
    if (!v->leave_separators) st = separator_verify(v, &first);
    if (!ok(st)) return st;
    st = table_block_iterate(&view, entry_verify, v);
    if (!ok(st))
        return MARKED("lsm.table_verify.block_entries",
                      v->what != NULL ? st : bad(v, offset, "block content"));
    /* The block's bytes go: keep what the next one is compared with. */
    memcpy(v->last_key, v->last.key.data, v->last.key.size);
    v->last.key.data = v->last_key;
    v->last.value = BYTES(NULL, 0);
    return ST_OK;
}

/* Everything behind the blocks: hashed; zeros where there must be zeros. */
MAY_YIELD static status
tail_verify(struct verify *v)
{
    u64 zeros = v->footer.block_bytes + v->footer.index_bytes + v->footer.filter_bytes;
    u64 zeros_end = v->meta->file_bytes - TABLE_FOOTER_BYTES;
    for (u64 at = v->footer.block_bytes; at < v->meta->file_bytes;) {
        u32 part = (u32)MIN(HASH_PIECE_BYTES, v->meta->file_bytes - at);
        const u8 *data;
        v->offset = at;
        status st = piece_reader_get(v->reader, at, part, &data);
        if (status_is(st, ST_CORRUPT))
            return MARKED("lsm.table_verify.tail_cut_off", bad(v, at, "file is cut off"));
        if (!ok(st)) return st;
        piece_hash_add(v->hash, BYTES(data, part));
        for (u64 i = MAX(at, zeros); i < MIN(at + part, zeros_end); i++)
            if (data[i - at] != 0) return MARKED("lsm.table_verify.padding", bad(v, i, "padding"));
        at += part;
        st = pace_add(&v->pace, part);
        if (!ok(st)) return st;
    }
    return ST_OK;
}

static status
counts_verify(struct verify *v)
{
    struct table_meta *counted = &v->counted;
    const struct table_meta *meta = v->meta;
    if (counted->expiring_count == 0) counted->expire_min_ms = 0;
    u64 offset = meta->file_bytes - TABLE_FOOTER_BYTES;
    if (v->run != v->index.run_count)
        return MARKED("lsm.table_verify.separators_left",
                      bad(v, v->footer.block_bytes, "index separators"));
    if (counted->entry_count != meta->entry_count || counted->delete_count != meta->delete_count ||
        counted->expiring_count != meta->expiring_count ||
        counted->data_bytes != meta->data_bytes ||
        meta->entries_all_expire != (counted->expiring_count == counted->entry_count))
        return MARKED("lsm.table_verify.counts", bad(v, offset, "entry counts"));
    if (counted->token_first != meta->token_first || counted->token_last != meta->token_last ||
        counted->seq_min != meta->seq_min || counted->seq_max != meta->seq_max ||
        counted->version_min != meta->version_min || counted->version_max != meta->version_max ||
        counted->expire_min_ms != meta->expire_min_ms ||
        counted->expire_max_ms != meta->expire_max_ms)
        return MARKED("lsm.table_verify.ranges", bad(v, offset, "ranges of the entries"));
    if (piece_hash_value(v->hash) != meta->file_hash)
        return MARKED("lsm.table_verify.hash", bad(v, offset, "hash of the file"));
    return ST_OK;
}

MAY_YIELD static status
sections_verify(struct verify *v)
{
    u64 footer_offset = v->meta->file_bytes - TABLE_FOOTER_BYTES;
    const char *what = "footer";
    v->offset = footer_offset;
    status st = table_footer_read(v->file, v->meta->file_id, v->meta->file_bytes, v->budget,
                                  &v->footer, &what);
    if (status_is(st, ST_CORRUPT))
        return MARKED("lsm.table_verify.footer", bad(v, footer_offset, what));
    if (!ok(st)) return st;
    if (!table_footer_matches(&v->footer, v->meta))
        return MARKED("lsm.table_verify.footer_differs",
                      bad(v, footer_offset, "footer does not match the manifest"));
    v->offset = v->footer.block_bytes;
    st = table_index_read(v->file, &v->footer, v->budget, &v->index);
    if (status_is(st, ST_CORRUPT))
        return MARKED("lsm.table_verify.index", bad(v, v->footer.block_bytes, "index"));
    if (!ok(st) || v->footer.filter_bytes == 0) return st;
    v->offset = v->footer.block_bytes + v->footer.index_bytes;
    st = table_filter_read(v->file, &v->footer, v->budget, &v->filter);
    if (status_is(st, ST_CORRUPT)) {
        MARK("lsm.table_verify.filter");
        v->what = "filter";
    }
    v->leave_tail = status_is_io(st);
    /* Without memory for it its bytes are still covered by the file's hash. */
    if (status_is(st, ST_NO_MEMORY)) return MARKED("lsm.table_verify.filter_no_memory", ST_OK);
    return go_on(v, st);
}

/* Behind a damaged block; but what is wrong with index or filter is not the block's: it is looked
 * at again without them. */
static status
block_go_on(struct verify *v, status st)
{
    u64 offset = v->offset;
    st = go_on(v, st);
    if (!ok(st)) return st;
    v->gap = true;
    if (offset == v->footer.block_bytes) {
        MARK("lsm.table_verify.leave_separators");
        v->leave_separators = true;
    } else if (offset > v->footer.block_bytes) {
        MARK("lsm.table_verify.leave_filter");
        v->leave_filter = true;
    } else {
        while (v->run < v->index.run_count && v->index.run_blocks[v->run] <= v->block)
            v->run++;
        v->block++;
    }
    return ST_OK;
}

MAY_YIELD static status
verify_run(struct verify *v)
{
    status st = sections_verify(v);
    if (!ok(st)) return st;
    v->hash = piece_hash_new(v->budget);
    if (v->hash == NULL) return MARKED("lsm.table_verify.hash_no_memory", ST_NO_MEMORY);
    st = piece_reader_open(v->file, v->meta->file_bytes, IO_CLASS_COMPACTION, PIECE_BYTES,
                           v->budget, &v->reader);
    if (!ok(st)) return st;
    for (v->block = 0; v->block < v->index.block_count;) {
        u64 offset = table_index_offset(&v->index, v->block);
        u32 size = (u32)(table_index_offset(&v->index, v->block + 1) - offset);
        st = block_verify(v, offset, size);
        if (ok(st))
            v->block++;
        else
            st = block_go_on(v, st);
        if (ok(st)) st = pace_add(&v->pace, size);
        if (!ok(st)) return st;
    }
    if (!v->leave_tail) st = tail_verify(v);
    if (!ok(st) || (v->places != NULL && v->places->count > 0)) return st;
    return counts_verify(v);
}

MAY_YIELD static status
verify_file(const char *dir, const struct table_meta *meta, u64 bytes_per_s, struct budget *budget,
            struct places *places, u64 *offset_out, const char **what_out)
{
    struct verify *v = mem_alloc_zero(budget, sizeof(*v));
    if (v == NULL) return MARKED("lsm.table_verify.no_memory", ST_NO_MEMORY);
    v->meta = meta;
    v->places = places;
    v->budget = budget;
    v->counted.seq_min = v->counted.version_min = v->counted.expire_min_ms = UINT64_MAX;
    pace_init(&v->pace, bytes_per_s);
    char path[LSM_PATH_BYTES];
    table_path(path, dir, meta->file_id);
    status st = io_file_open(path, IO_OPEN_READ, &v->file);
    if (ok(st)) st = verify_run(v);
    if (!ok(st)) *offset_out = v->offset;
    if (status_is(st, ST_CORRUPT)) {
        MARK("lsm.table_verify.corrupt");
        *what_out = v->what;
    }
    mem_free(budget, v->raw, v->raw_capacity);
    table_index_free(&v->index, budget);
    table_filter_free(&v->filter, budget);
    piece_hash_free(v->hash, budget);
    if (v->reader != NULL) piece_reader_close(v->reader);
    io_file_close(v->file); /* waits for a window that is still on its way */
    mem_free(budget, v, sizeof(*v));
    return st;
}

MAY_YIELD status
table_verify(const char *dir, const struct table_meta *meta, u64 bytes_per_s, struct budget *budget,
             u64 *offset_out, const char **what_out)
{
    return verify_file(dir, meta, bytes_per_s, budget, NULL, offset_out, what_out);
}

MAY_YIELD status
table_verify_all(const char *dir, const struct table_meta *meta, struct budget *budget,
                 struct places *places)
{
    u64 offset = 0;
    const char *what = "";
    status st = verify_file(dir, meta, 0, budget, places, &offset, &what);
    return places_end(places, st, offset, what);
}
