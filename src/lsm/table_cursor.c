/* SPDX-License-Identifier: MIT
 *
 * table_cursor.c -- entries of one table in order.
 *
 * Two ways to get blocks. Long reads (compaction, long scans) go past the cache through a
 * piece_reader: large reads, two windows, the next one always on its way; an uncompressed block is
 * used where it lies in the window. Short scans fetch block by block through the cache. In both,
 * every block is verified before its first entry is seen, and its first token is compared with the
 * index, so that a block cannot stand for another one. A damaged block ends the cursor, or, where
 * there is a list of gaps, is written there and passed over. A merge that drops what nobody wants
 * (lsm_drop_set) leaves it out where it can only have held such.
 */
#include "lsm/table_internal.h"

#include "base/fault.h"
#include "lsm/piece_io.h"
#include "lsm/retain.h"

struct table_cursor {
    struct cursor cursor; /* first */
    struct table *table;
    struct block_cache *cache;
    enum io_class io_class;
    u32 read_ahead_bytes; /* 0: through the cache */
    u32 block_end;        /* from here on nothing is wanted */
    struct budget *budget;
    struct gap_list *gaps; /* NULL: damage is an error */
    struct leave_out *leave_out;
    u64 taken_first, taken_last; /* of gaps and leave_out */

    struct piece_reader *reader; /* from the first block that is looked at */
    struct block *pinned;        /* through the cache: what view points into */
    u8 *raw;                     /* by reader: the decompressed block */
    u32 raw_capacity;

    struct table_block view;
    u32 block; /* index of the block in view */
    u32 at;    /* entry in it */
    bool loaded;
};

static struct table_cursor *
cursor_of(struct cursor *cursor)
{
    return CONTAINER_OF(cursor, struct table_cursor, cursor);
}

static status
raw_reserve(struct table_cursor *self, u32 size)
{
    if (size <= self->raw_capacity) return ST_OK;
    u32 capacity = (u32)align_up(size, 4096);
    u8 *raw = mem_alloc(self->budget, capacity);
    if (raw == NULL) return MARKED("lsm.table_cursor.raw_no_memory", ST_NO_MEMORY);
    mem_free(self->budget, self->raw, self->raw_capacity);
    self->raw = raw;
    self->raw_capacity = capacity;
    return ST_OK;
}

/* Its windows are not larger than what is wanted from the block on. */
static status
reader_reserve(struct table_cursor *self, u64 offset)
{
    if (self->reader != NULL) return ST_OK;
    u64 end = align_up(table_index_offset(self->table->index, self->block_end), IO_ALIGNMENT);
    u64 wanted = end - align_down(offset, IO_ALIGNMENT);
    return piece_reader_open(self->table->file, end, self->io_class,
                             (u32)MIN(self->read_ahead_bytes, wanted), self->budget, &self->reader);
}

MAY_YIELD static status
load_by_reader(struct table_cursor *self, u64 offset, u32 size)
{
    status st = reader_reserve(self, offset);
    if (!ok(st)) return st;
    const u8 *stored;
    st = piece_reader_get(self->reader, offset, size, &stored);
    if (status_is(st, ST_CORRUPT))
        return MARKED("lsm.table_cursor.cut_off",
                      table_corrupt(self->table, offset, "file is cut off"));
    if (status_is(st, ST_IO_ERROR)) st = table_unreadable(self->table, offset);
    if (!ok(st)) return st;
    struct table_block_header header;
    if (!ok(table_block_check(BYTES(stored, size), self->table->meta.file_id, offset, &header)))
        return MARKED("lsm.table_cursor.block_checksum",
                      table_corrupt(self->table, offset, "block checksum"));
    const u8 *payload = stored + sizeof(header);
    if (header.codec == LSM_CODEC_NONE) {
        st = table_block_open(BYTES(payload, header.raw_size), &self->view);
    } else {
        st = raw_reserve(self, header.raw_size);
        if (ok(st)) st = table_block_unpack(&header, payload, self->budget, self->raw, &self->view);
    }
    if (status_is(st, ST_CORRUPT))
        return MARKED("lsm.table_cursor.block_content",
                      table_corrupt(self->table, offset, "block content"));
    return st;
}

MAY_YIELD static status
load_by_cache(struct table_cursor *self, u32 index, u64 offset)
{
    block_cache_unpin(self->pinned);
    self->pinned = NULL;
    status st =
        table_block_fetch(self->table, self->cache, self->io_class, index, true, &self->pinned);
    if (!ok(st)) return st;
    if (!ok(table_block_open(BYTES(self->pinned->data, self->pinned->size), &self->view)))
        return MARKED("lsm.table_cursor.cached_content",
                      table_corrupt(self->table, offset, "block content"));
    return ST_OK;
}

MAY_YIELD static status
load(struct table_cursor *self, u32 index)
{
    const struct table_index *blocks = self->table->index;
    u64 offset = table_index_offset(blocks, index);
    u32 size = (u32)(table_index_offset(blocks, index + 1) - offset);
    self->loaded = false;
    status st = self->read_ahead_bytes > 0 ? load_by_reader(self, offset, size)
                                           : load_by_cache(self, index, offset);
    if (!ok(st)) return st;
    if (self->view.token_base != blocks->tokens[index])
        return MARKED("lsm.table_cursor.wrong_block",
                      table_corrupt(self->table, offset, "block is not the one of the index"));
    self->block = index;
    self->loaded = true;
    return ST_OK;
}

/* Goes on behind the block. Damage is an error, unless there is a list of gaps, or what lay there
 * goes anyhow. */
static status
pass_over(struct table_cursor *self, u32 index, status st)
{
    if (!status_is(st, ST_CORRUPT)) return st;
    u64 first = MAX(self->table->index->tokens[index], self->taken_first);
    u64 last = MIN(table_block_token_last(self->table, index), self->taken_last);
    if (self->gaps != NULL) {
        MARK("lsm.table_cursor.passed_over");
        if (first <= last) gap_list_add(self->gaps, first, last);
        return ST_OK;
    }
    struct leave_out *leave_out = self->leave_out;
    if (leave_out == NULL || !drop_bits_has_all(leave_out->drop, first, last)) return st;
    MARK("lsm.table_cursor.left_out");
    leave_out->blocks++;
    leave_out->seq_max = MAX(leave_out->seq_max, self->table->meta.seq_max);
    return ST_OK;
}

/* The first block from this one on that can be read. Ok, and not loaded: none is left. */
MAY_YIELD static status
load_from(struct table_cursor *self, u32 index)
{
    for (; index < self->block_end; index++) {
        status st = load(self, index);
        if (ok(st)) return st;
        st = pass_over(self, index, st);
        if (!ok(st)) return st;
    }
    return ST_OK;
}

/* Sets the entry at (block, at), going to the next block when this one is used up. */
MAY_YIELD static status
settle(struct table_cursor *self)
{
    self->cursor.valid = false;
    for (;;) {
        if (self->at == self->view.count) {
            if (self->block + 1 >= self->block_end) return ST_OK;
            status st = load_from(self, self->block + 1);
            if (!ok(st) || !self->loaded) return st;
            self->at = 0;
        }
        struct entry entry;
        if (ok(table_block_entry(&self->view, self->at, &entry, NULL))) {
            self->cursor.entry = entry;
            self->cursor.valid = true;
            return ST_OK;
        }
        u64 offset = table_index_offset(self->table->index, self->block);
        status st = MARKED("lsm.table_cursor.record", table_corrupt(self->table, offset, "record"));
        st = pass_over(self, self->block, st);
        if (!ok(st)) return st;
        self->at = self->view.count;
    }
}

MAY_YIELD static status
cursor_seek(struct cursor *cursor, u64 token, struct bytes key)
{
    struct table_cursor *self = cursor_of(cursor);
    cursor->valid = false;
    if (token > self->table->meta.token_last) { /* at the end; next stays there */
        self->loaded = false;
        return ST_OK;
    }
    u32 index = table_index_find(self->table->index, token, key);
    if (index >= self->block_end) {
        self->loaded = false;
        return ST_OK;
    }
    if (!self->loaded || self->block != index) {
        status st = load_from(self, index);
        if (!ok(st) || !self->loaded) return st;
    }
    if (self->block != index) {
        self->at = 0; /* behind damage */
    } else if (!ok(table_block_seek(&self->view, token, key, &self->at))) {
        u64 offset = table_index_offset(self->table->index, index);
        status st =
            MARKED("lsm.table_cursor.seek_record", table_corrupt(self->table, offset, "record"));
        st = pass_over(self, index, st);
        if (!ok(st)) return st;
        self->at = self->view.count;
    }
    return settle(self);
}

MAY_YIELD static status
cursor_next(struct cursor *cursor)
{
    struct table_cursor *self = cursor_of(cursor);
    if (!cursor->valid) return ST_OK;
    self->at++;
    return settle(self);
}

static void
cursor_close(struct cursor *cursor)
{
    struct table_cursor *self = cursor_of(cursor);
    block_cache_unpin(self->pinned);
    mem_free(self->budget, self->raw, self->raw_capacity);
    if (self->reader != NULL) piece_reader_close(self->reader);
    table_unref(self->table); /* a read may be under way: closing the file waits for it */
    mem_free(self->budget, self, sizeof(*self));
}

void
table_cursor_pass_damage(struct cursor *cursor, struct gap_list *gaps, u64 token_first,
                         u64 token_last)
{
    struct table_cursor *self = cursor_of(cursor);
    self->gaps = gaps;
    self->taken_first = token_first;
    self->taken_last = token_last;
}

void
table_cursor_leave_out(struct cursor *cursor, struct leave_out *leave_out, u64 token_first,
                       u64 token_last)
{
    struct table_cursor *self = cursor_of(cursor);
    self->leave_out = leave_out;
    self->taken_first = token_first;
    self->taken_last = token_last;
}

static const struct cursor_ops table_cursor_ops = {
    .seek = cursor_seek,
    .next = cursor_next,
    .close = cursor_close,
};

status
table_cursor_open(struct table *table, struct block_cache *cache, u64 token_last,
                  enum io_class io_class, u32 read_ahead_bytes, struct budget *budget,
                  struct cursor **out)
{
    struct table_cursor *self = mem_alloc_zero(budget, sizeof(*self));
    if (self == NULL) return MARKED("lsm.table_cursor.no_memory", ST_NO_MEMORY);
    self->cursor.ops = &table_cursor_ops;
    self->table = table;
    self->cache = cache;
    self->io_class = io_class;
    self->read_ahead_bytes = read_ahead_bytes;
    self->block_end = table_index_upper_bound(table->index, token_last);
    self->budget = budget;
    table_ref(table);
    *out = &self->cursor;
    return ST_OK;
}
