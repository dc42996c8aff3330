/* SPDX-License-Identifier: MIT
 *
 * output.c -- the writing end of flushes and compactions: judges every entry (retain.h), writes
 * what stays to tables that end at token slices, and moves large values to blob files.
 *
 * Each table has at most one blob file of its own, so that the two share tokens and age and are
 * collected together. A pointer to an older blob file is copied as it is, unless that file is
 * mostly garbage, spans far more tokens than this table, or the table would refer to too many
 * files: then the value is read, verified and written again. Nothing is ever read and put back by
 * the write path: that would race with users.
 *
 * Tables end between two tokens, never inside one, because runs tell tables apart by token. One
 * hash tag with very many keys therefore makes one long table; the values of it are kept within
 * the limit of blob files by writing them again.
 *
 * The size of a table's filter is not chosen here: bits per key and the expected number of keys are
 * in output_config, from flush.c and compaction.c, and table_writer.c sizes and folds by them
 * (bloom.h says how).
 */
#include "lsm/levels_internal.h"

#include "base/fault.h"
#include "io/io.h"

status
output_init(struct output *output, const struct output_config *config)
{
    *output = (struct output){.config = *config};
    struct levels *levels = config->levels;
    u32 count;
    const u64 *snapshots = levels_snapshots(levels, &count);
    if (count > 0) {
        output->snapshots = mem_alloc(levels->budget, count * sizeof(u64));
        if (output->snapshots == NULL)
            return MARKED("lsm.output.snapshots_no_memory", ST_NO_MEMORY);
        memcpy(output->snapshots, snapshots, count * sizeof(u64));
        output->snapshot_count = count;
    }
    output->blob_refs_max = BUGGIFY("lsm.output.few_blobs") ? 2 : OUTPUT_BLOB_REFS_MAX;
    output->retain.snapshots = output->snapshots;
    output->retain.snapshot_count = count;
    output->retain.version_outside = levels->purge_below[config->keyspace];
    output->retain.expire_below_ms = levels->expire_below_ms[config->keyspace];
    output->retain.wall_ms = io_wall_ms();
    output->retain.keyspace = config->keyspace;
    output->retain.token_first = levels->config.token_first;
    output->retain.token_last = levels->config.token_last;
    output->retain.ranges = &levels->ranges;
    output->retain.drop = &levels->drops[config->keyspace];
    return ST_OK;
}

/* ---- blob files ---- */

static bool
ref_known(const struct output *output, u64 file_id)
{
    for (u32 i = 0; i < output->ref_count; i++) {
        if (output->ref_ids[i] == file_id) return true;
    }
    return false;
}

static void
ref_note(struct output *output, u64 file_id)
{
    if (ref_known(output, file_id)) return;
    CHECK(output->ref_count < TABLE_BLOB_REFS_MAX);
    output->ref_ids[output->ref_count++] = file_id;
}

/* Why the values of a file are written again. */
enum rewrite {
    REWRITE_NOT,
    REWRITE_WIDE,
    REWRITE_DAMAGED,
    REWRITE_GARBAGE,
};

static enum rewrite
rewrite_of(const struct output_config *config, const struct level_blob *blob)
{
    if (blob->token_last - blob->token_first > config->blob_span_max) return REWRITE_WIDE;
    if (config->leave_damaged && blob->damaged.count > 0) return REWRITE_DAMAGED;
    if (config->collect_blobs && level_blob_is_garbage(blob)) return REWRITE_GARBAGE;
    return REWRITE_NOT;
}

bool
output_rewrites(const struct output_config *config, const struct level_blob *blob)
{
    return rewrite_of(config, blob) != REWRITE_NOT;
}

static bool
rewrite_wanted(const struct output *output, const struct level_blob *blob)
{
    switch (rewrite_of(&output->config, blob)) {
    case REWRITE_WIDE:
        return MARKED("lsm.output.blob_too_wide", true);
    case REWRITE_DAMAGED:
        return MARKED("lsm.output.blob_damaged", true);
    case REWRITE_GARBAGE:
        return MARKED("lsm.output.blob_collected", true);
    case REWRITE_NOT:
        break;
    }
    return output->ref_count >= output->blob_refs_max && !ref_known(output, blob->file_id);
}

MAY_YIELD static status
write_value_apart(struct output *output, const struct entry *entry, struct blob_pointer *pointer)
{
    struct levels *levels = output->config.levels;
    if (output->blob == NULL) {
        u64 id = levels_file_id_new(levels);
        if (id == 0) return ST_TOO_LARGE;
        status st = blob_writer_open(levels->dir, id, output->config.io_class, levels->budget,
                                     &output->blob);
        if (!ok(st)) {
            output->blob = NULL;
            return st;
        }
        output->blob_id = id;
        output->blob_token_first = entry->token;
    }
    output->blob_token_last = entry->token;
    ref_note(output, output->blob_id);
    return blob_writer_add(output->blob, entry->token, entry->key, entry->value, pointer);
}

/* ---- tables ---- */

static struct level_table **
tables_reserve(struct output *output)
{
    if (output->table_count < output->table_capacity) return output->tables;
    u32 capacity = MAX(4u, output->table_capacity * 2);
    struct budget *budget = output->config.levels->budget;
    struct level_table **grown =
        mem_realloc(budget, output->tables, output->table_capacity * sizeof(*output->tables),
                    capacity * sizeof(*grown));
    if (grown == NULL) return MARKED("lsm.output.tables_no_memory", NULL);
    output->tables = grown;
    output->table_capacity = capacity;
    return grown;
}

/* The blob file first, so that it is complete before a table names it. */
MAY_YIELD static status
finish_blob(struct output *output, struct level_blob **out)
{
    *out = NULL;
    if (output->blob == NULL) return ST_OK;
    struct levels *levels = output->config.levels;
    struct blob_writer *writer = output->blob;
    output->blob = NULL;
    u64 bytes;
    status st = blob_writer_finish(writer, &bytes);
    if (!ok(st)) return st;
    output->bytes_written += bytes;
    struct blob_file *file;
    st = blob_open(levels->dir, output->blob_id, bytes, levels->budget, &file);
    if (!ok(st)) {
        MARK("lsm.output.blob_not_opened");
        char path[LSM_PATH_BYTES];
        blob_path(path, levels->dir, output->blob_id);
        (void)!ok(io_file_unlink(path)); /* else an orphan until the next opening */
        return st;
    }
    file->unlink_on_close = true; /* what is not listed nobody names */
    *out = level_blob_new(levels, file, output->blob_token_first, output->blob_token_last);
    if (*out == NULL) return ST_NO_MEMORY;
    file->unlink_on_close = false;
    return ST_OK;
}

MAY_YIELD static status
finish_table(struct output *output)
{
    if (output->table == NULL) return ST_OK;
    struct levels *levels = output->config.levels;
    struct level_blob *blob = NULL;
    status st = tables_reserve(output) == NULL ? ST_NO_MEMORY : finish_blob(output, &blob);
    struct table_writer *writer = output->table;
    output->table = NULL;
    if (!ok(st)) {
        MARK("lsm.output.table_aborted");
        table_writer_abort(writer);
        return st;
    }
    struct table_meta *meta = mem_alloc(levels->budget, sizeof(*meta));
    if (meta == NULL) {
        MARK("lsm.output.meta_no_memory");
        table_writer_abort(writer);
        st = ST_NO_MEMORY;
        goto blob;
    }
    st = table_writer_finish(writer, meta);
    if (!ok(st)) goto meta;
    output->bytes_written += meta->file_bytes;
    CHECK(meta->keyspace == output->config.keyspace);

    struct table *table;
    st = table_open(levels->dir, meta, levels->budget, &levels->table_stats, &table);
    if (!ok(st)) {
        MARK("lsm.output.table_not_opened");
        char path[LSM_PATH_BYTES];
        table_path(path, levels->dir, meta->file_id);
        (void)!ok(io_file_unlink(path));
        goto meta;
    }
    table->unlink_on_close = true; /* until a manifest names it */
    struct level_table *file;
    st = level_table_new(levels, table, &file);
    if (!ok(st)) {
        MARK("lsm.output.table_not_listed");
        goto meta;
    }
    table->unlink_on_close = false;
    output->tables[output->table_count++] = file;
meta:
    mem_free(levels->budget, meta, sizeof(*meta));
blob:
    if (blob != NULL) levels_discard_blob(levels, blob); /* the table holds it, or nobody does */
    return st;
}

/* Whether the table ends before an entry with this token. */
static bool
table_ends(const struct output *output, u64 token)
{
    if (token == output->token_last) return false;
    const struct output_config *config = &output->config;
    if (config->slice_width != 0 &&
        compaction_slice_last(output->token_last, config->slice_width) < token)
        return true;
    if (table_writer_index_bytes(output->table) >= config->levels->index_bytes_max)
        return MARKED("lsm.output.large_index", true);
    u64 bytes = table_writer_bytes(output->table);
    if (output->blob != NULL) bytes += blob_writer_bytes(output->blob);
    if (config->table_bytes_max != 0 && bytes >= config->table_bytes_max) return true;
    return output->ref_count >= output->blob_refs_max;
}

MAY_YIELD static status
table_for(struct output *output, u64 token)
{
    if (output->table != NULL && table_ends(output, token)) {
        status st = finish_table(output);
        if (!ok(st)) return st;
    }
    if (output->table != NULL) return ST_OK;
    struct levels *levels = output->config.levels;
    u64 id = levels_file_id_new(levels);
    if (id == 0) return ST_TOO_LARGE;
    struct table_writer_options options = {
        .dir = levels->dir,
        .file_id = id,
        .keyspace = output->config.keyspace,
        .codec = output->config.codec,
        .filter_bits = output->config.filter_bits,
        .entry_count_max = MAX(output->config.entry_count_max, 1u),
        .io_class = output->config.io_class,
        .budget = levels->budget,
    };
    output->ref_count = 0;
    output->token_last = token;
    status st = table_writer_open(&options, &output->table);
    if (!ok(st)) output->table = NULL;
    return st;
}

MAY_YIELD static status
write_inline_or_apart(struct output *output, const struct entry *entry)
{
    u32 threshold = output->config.levels->config.options.blob_threshold_bytes;
    if (entry->kind != ENTRY_PUT || threshold == 0 || entry->value.size < threshold)
        return table_writer_add(output->table, entry);
    struct blob_pointer pointer;
    status st = write_value_apart(output, entry, &pointer);
    if (!ok(st)) return st;
    struct entry apart = *entry;
    apart.value = BYTES(&pointer, sizeof(pointer));
    apart.flags |= ENTRY_BLOB;
    return table_writer_add(output->table, &apart);
}

MAY_YIELD static status
write_entry(struct output *output, const struct entry *entry)
{
    status st = table_for(output, entry->token);
    if (!ok(st)) return st;
    output->token_last = entry->token;
    output->entries_out++;
    if (!(entry->flags & ENTRY_BLOB)) return write_inline_or_apart(output, entry);

    struct levels *levels = output->config.levels;
    struct blob_pointer pointer;
    CHECK(entry->value.size == sizeof(pointer)); /* table_block_entry */
    memcpy(&pointer, entry->value.data, sizeof(pointer));
    struct level_blob *blob = level_blob_find(levels, pointer.file_id);
    if (blob == NULL) return MARKED("lsm.output.pointer_lost", ST_CORRUPT);
    if (!rewrite_wanted(output, blob)) {
        ref_note(output, pointer.file_id);
        return table_writer_add(output->table, entry);
    }
    void *buffer;
    size_t buffer_size;
    struct entry whole = *entry;
    whole.flags &= (u8)~ENTRY_BLOB;
    /* The inputs of the merge hold the blob file. */
    st = blob_read(blob->file, output->config.io_class, &pointer, entry->token, entry->key,
                   levels->budget, &buffer, &buffer_size, &whole.value);
    if (status_is(st, ST_IO_ERROR)) st = level_value_unreadable(blob, &pointer, entry);
    if (status_is(st, ST_CORRUPT)) {
        MARK("lsm.output.value_damaged");
        level_blob_damaged(blob, entry->token, entry->token);
    }
    if (!ok(st)) return st;
    st = write_inline_or_apart(output, &whole);
    mem_free(levels->budget, buffer, buffer_size);
    return st;
}

/* ---- entries ---- */

static void
pending_drop(struct output *output)
{
    if (!output->pending) return;
    output->pending = false;
    levels_note_dropped(output->config.levels, output->pending_mark, output->pending_seq);
    output->dropped[output->pending_reason]++;
}

MAY_YIELD static status
pending_write(struct output *output, const struct entry *older)
{
    if (!output->pending) return ST_OK;
    output->pending = false;
    MARK("lsm.output.tombstone_kept_over_snapshot");
    /* An expired value has become a tombstone: no snapshot sees it, and it says the same. */
    struct entry tombstone = {.token = older->token,
                              .key = older->key,
                              .version = output->pending_version,
                              .seq = output->pending_seq,
                              .kind = ENTRY_DELETE};
    return write_entry(output, &tombstone);
}

MAY_YIELD status
output_add(struct output *output, const struct entry *entry)
{
    output->entries_in++;
    bool key_changed;
    enum retain_answer answer = retain_next(&output->retain, entry, &key_changed);
    if (key_changed) pending_drop(output);
    switch (answer) {
    case RETAIN_KEEP: {
        status st = pending_write(output, entry);
        return ok(st) ? write_entry(output, entry) : st;
    }
    case RETAIN_PEND:
        pending_drop(output);
        output->pending = true;
        output->pending_reason =
            entry->kind == ENTRY_DELETE ? RETAIN_DROP_DELETED : RETAIN_DROP_EXPIRED;
        output->pending_version = entry->version;
        output->pending_seq = entry->seq;
        output->pending_mark = levels_drop_mark(output->config.keyspace, entry->key);
        return ST_OK;
    case RETAIN_DROP_DELETED: /* by a range, which leaves no trace of the key */
        levels_note_dropped(output->config.levels,
                            levels_drop_mark(output->config.keyspace, entry->key), entry->seq);
        break;
    case RETAIN_DROP_OVERWRITTEN: /* by a version that tells of itself */
    case RETAIN_DROP_EXPIRED:
    case RETAIN_DROP_FOREIGN:
    case RETAIN_ANSWER_COUNT:
        break;
    }
    output->dropped[answer]++;
    return ST_OK;
}

MAY_YIELD status
output_finish(struct output *output)
{
    pending_drop(output);
    status st = finish_table(output);
    if (!ok(st)) return st;
    u64 dropped = 0;
    for (u32 i = 0; i < RETAIN_ANSWER_COUNT; i++)
        dropped += output->dropped[i];
    CHECK(output->entries_in == output->entries_out + dropped);
    u64 in_tables = 0;
    for (u32 i = 0; i < output->table_count; i++)
        in_tables += output->tables[i]->table->meta.entry_count;
    CHECK(in_tables == output->entries_out);
    return ST_OK;
}

MAY_YIELD void
output_deinit(struct output *output)
{
    struct levels *levels = output->config.levels;
    if (output->table != NULL) {
        MARK("lsm.output.table_left");
        table_writer_abort(output->table);
    }
    if (output->blob != NULL) {
        MARK("lsm.output.blob_left");
        blob_writer_abort(output->blob);
    }
    for (u32 i = 0; i < output->table_count; i++) {
        struct level_table *file = output->tables[i];
        if (file->ref_count == 1) {
            MARK("lsm.output.table_forgotten"); /* no run took it */
            levels_forget_table(levels, file);
        }
        level_table_unref(file);
    }
    mem_free(levels->budget, output->tables, output->table_capacity * sizeof(*output->tables));
    mem_free(levels->budget, output->snapshots, output->snapshot_count * sizeof(u64));
    *output = (struct output){.config = output->config};
}
