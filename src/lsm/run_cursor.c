/* SPDX-License-Identifier: MIT
 *
 * run_cursor.c -- a cursor over one run: its tables one after the other, within a token range.
 *
 * Only one table is open at a time, so a scan over many runs holds one read-ahead buffer a run. A
 * table's view ends the reading of it, not its last entry: what lies beyond belongs to another
 * slot, another run, or another store.
 */
#include "lsm/levels_internal.h"

#include "base/fault.h"

struct run_cursor {
    struct cursor base;
    struct levels *levels;
    struct run_set *set; /* NULL: held by the caller */
    const struct run *run;
    u64 token_first, token_last;
    enum io_class io_class;
    u32 read_ahead_bytes;
    struct gap_list *gaps; /* NULL: damage is an error */
    struct leave_out *leave_out;
    u32 slot;             /* of table */
    struct cursor *table; /* NULL: none open */
};

static void
table_close(struct run_cursor *cursor)
{
    if (cursor->table == NULL) return;
    cursor->table->ops->close(cursor->table);
    cursor->table = NULL;
}

/* table_cursor's seek (from given) or next (NULL), with a report of what it has passed over. */
MAY_YIELD static status
table_move(struct run_cursor *cursor, u64 token, const struct bytes *from)
{
    struct cursor *table = cursor->table;
    u64 met = cursor->gaps == NULL ? 0 : cursor->gaps->met;
    status st = from != NULL ? table->ops->seek(table, token, *from) : table->ops->next(table);
    if (cursor->gaps != NULL && cursor->gaps->met != met)
        levels_report_corrupt(cursor->levels, "scanning", 't',
                              cursor->run->slots[cursor->slot].file->table->meta.file_id);
    return st;
}

/* From slot on, the first entry at or after (token, key) and inside a view and the range. */
MAY_YIELD static status
advance_to(struct run_cursor *cursor, u32 slot, u64 token, struct bytes key)
{
    cursor->base.valid = false;
    for (; slot < cursor->run->count; slot++) {
        const struct run_slot *at = &cursor->run->slots[slot];
        if (at->token_first > cursor->token_last) break;
        if (cursor->table == NULL || cursor->slot != slot) {
            table_close(cursor);
            status st =
                table_cursor_open(at->file->table, cursor->levels->config.block_cache,
                                  MIN(at->token_last, cursor->token_last), cursor->io_class,
                                  cursor->read_ahead_bytes, cursor->levels->budget, &cursor->table);
            if (!ok(st)) {
                cursor->table = NULL;
                return st;
            }
            cursor->slot = slot;
            u64 first = MAX(at->token_first, cursor->token_first);
            u64 last = MIN(at->token_last, cursor->token_last);
            if (cursor->gaps != NULL)
                table_cursor_pass_damage(cursor->table, cursor->gaps, first, last);
            if (cursor->leave_out != NULL)
                table_cursor_leave_out(cursor->table, cursor->leave_out, first, last);
        }
        struct bytes from = at->token_first > token ? BYTES(NULL, 0) : key;
        status st = table_move(cursor, MAX(token, at->token_first), &from);
        if (!ok(st)) return st;
        if (cursor->table->valid &&
            cursor->table->entry.token <= MIN(at->token_last, cursor->token_last)) {
            cursor->base.entry = cursor->table->entry;
            cursor->base.valid = true;
            return ST_OK;
        }
    }
    return ST_OK;
}

MAY_YIELD static status
run_cursor_seek(struct cursor *base, u64 token, struct bytes key)
{
    struct run_cursor *cursor = CONTAINER_OF(base, struct run_cursor, base);
    if (token < cursor->token_first) {
        token = cursor->token_first;
        key = BYTES(NULL, 0);
    }
    return advance_to(cursor, run_slot_from(cursor->run, token), token, key);
}

MAY_YIELD static status
run_cursor_next(struct cursor *base)
{
    struct run_cursor *cursor = CONTAINER_OF(base, struct run_cursor, base);
    CHECK(cursor->base.valid);
    cursor->base.valid = false;
    status st = table_move(cursor, 0, NULL);
    if (!ok(st)) return st;
    const struct run_slot *slot = &cursor->run->slots[cursor->slot];
    if (cursor->table->valid &&
        cursor->table->entry.token <= MIN(slot->token_last, cursor->token_last)) {
        cursor->base.entry = cursor->table->entry;
        cursor->base.valid = true;
        return ST_OK;
    }
    return advance_to(cursor, cursor->slot + 1, 0, BYTES(NULL, 0));
}

static void
run_cursor_close(struct cursor *base)
{
    struct run_cursor *cursor = CONTAINER_OF(base, struct run_cursor, base);
    struct levels *levels = cursor->levels;
    table_close(cursor);
    if (cursor->set != NULL) run_set_unref(cursor->set);
    mem_free(levels->budget, cursor, sizeof(*cursor));
}

void
run_cursor_pass_damage(struct cursor *base, struct gap_list *gaps)
{
    CONTAINER_OF(base, struct run_cursor, base)->gaps = gaps;
}

void
run_cursor_leave_out(struct cursor *base, struct leave_out *leave_out)
{
    CONTAINER_OF(base, struct run_cursor, base)->leave_out = leave_out;
}

static const struct cursor_ops run_cursor_ops = {
    .seek = run_cursor_seek,
    .next = run_cursor_next,
    .close = run_cursor_close,
};

struct cursor *
run_cursor_open(struct levels *levels, struct run_set *set, const struct run *run, u64 token_first,
                u64 token_last, enum io_class io_class, u32 read_ahead_bytes)
{
    struct run_cursor *cursor = mem_alloc_zero(levels->budget, sizeof(*cursor));
    if (cursor == NULL) return MARKED("lsm.run_cursor.no_memory", NULL);
    cursor->base.ops = &run_cursor_ops;
    cursor->levels = levels;
    cursor->set = set;
    cursor->run = run;
    cursor->token_first = token_first;
    cursor->token_last = token_last;
    cursor->io_class = io_class;
    cursor->read_ahead_bytes = read_ahead_bytes;
    if (set != NULL) run_set_ref(set);
    return &cursor->base;
}
