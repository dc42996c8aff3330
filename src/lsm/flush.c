/* SPDX-License-Identifier: MIT
 *
 * flush.c -- memtables become runs.
 *
 * The memtables are frozen and hold every operation up to state->seq_flushed that is not in tables
 * yet, so ranges deleted up to there become persistent with this manifest and may already drop what
 * they cover. So may those behind them that the log surely keeps: a crash brings them back. (A full
 * disk has no room for what was deleted as a whole since the memtables were frozen.) Snapshots
 * opened meanwhile lie above all of it.
 *
 * Before the runs are installed the owner is told of each memtable (levels_config.written): as long
 * as it counts, what readers find in it is what there is, and every range that hides something of it
 * is known.
 *
 * A tombstone is always kept: what it deletes lies below. All keyspaces of one flush are installed
 * by one manifest, because the log before it is given back as a whole.
 */
#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/levels_internal.h"

MAY_YIELD static status
write_memtable(struct output *output, struct memtable *memtable)
{
    struct levels *levels = output->config.levels;
    struct cursor *cursor = memtable_cursor_open(memtable, levels->budget);
    if (cursor == NULL) return ST_NO_MEMORY;
    status st = cursor->ops->seek(cursor, 0, BYTES(NULL, 0));
    while (ok(st) && cursor->valid) {
        CHECK(cursor->entry.seq > levels->state.seq_flushed);
        st = output_add(output, &cursor->entry);
        if (ok(st)) st = cursor->ops->next(cursor);
        if (fiber_should_yield()) fiber_yield();
    }
    cursor->ops->close(cursor);
    if (BUGGIFY("lsm.flush.slow")) fiber_sleep_ns(20 * NS_PER_MS);
    CHECK(!ok(st) || output->entries_in == memtable_entry_count(memtable));
    return ok(st) ? output_finish(output) : st;
}

/* The run of one keyspace; *out NULL when nothing of the memtable is needed. */
MAY_YIELD static status
flush_one(struct levels *levels, const struct levels_flush *input, const struct levels_state *state,
          u64 ranges_seq, struct run **out)
{
    *out = NULL;
    struct output_config config = {
        .levels = levels,
        .keyspace = input->keyspace,
        .codec = levels->config.options.codec_upper,
        .filter_bits = FILTER_BITS_TIER,
        .io_class = IO_CLASS_COMPACTION,
        .entry_count_max = memtable_entry_count(input->memtable),
        .blob_span_max = UINT64_MAX,
        .table_bytes_max = levels->table_bytes_max,
    };
    if (BUGGIFY("lsm.flush.many_tables")) config.table_bytes_max = KIB(8);
    struct output output;
    status st = output_init(&output, &config);
    if (!ok(st)) return st;
    output.retain.range_seq_limit = MAX(ranges_seq, state->seq_flushed);
    st = write_memtable(&output, input->memtable);
    if (ok(st) && output.table_count > 0) {
        struct run *run = run_new(levels, input->keyspace, 0, output.table_count);
        if (run == NULL) st = ST_NO_MEMORY;
        for (u32 i = 0; run != NULL && i < output.table_count; i++) {
            const struct table_meta *meta = &output.tables[i]->table->meta;
            CHECK(meta->seq_max <= state->seq_flushed);
            run_add(run, output.tables[i], meta->token_first, meta->token_last);
        }
        *out = run;
    }
    if (ok(st)) levels->flush_bytes += output.bytes_written;
    output_deinit(&output);
    return st;
}

/* A run that was not installed: its files go, too. */
static void
discard_run(struct levels *levels, struct run *run)
{
    MARK("lsm.flush.run_discarded");
    for (u32 i = 0; i < run->count; i++)
        levels_forget_table(levels, run->slots[i].file);
    run_unref(run, levels);
}

MAY_YIELD status
levels_state_set(struct levels *levels, const struct levels_state *state)
{
    return levels_commit(levels, NULL, 0, state);
}

MAY_YIELD status
levels_flush(struct levels *levels, const struct levels_flush *inputs, u32 count,
             const struct levels_state *state, u64 ranges_seq)
{
    CHECK(count <= LIMIT_KEYSPACES);
    CHECK(state->seq_flushed >= levels->state.seq_flushed);
    CHECK(state->log_segment_first >= levels->state.log_segment_first);
    struct run_change changes[LIMIT_KEYSPACES] = {0};
    u32 made = 0;
    status st = levels->failed ? MARKED("lsm.flush.levels_failed", ST_IO_ERROR) : ST_OK;
    for (u32 i = 0; i < count && ok(st); i++) {
        if (memtable_entry_count(inputs[i].memtable) == 0) continue;
        struct run *run;
        st = flush_one(levels, &inputs[i], state, ranges_seq, &run);
        if (ok(st) && run != NULL) changes[made++] = (struct run_change){.replacement = run};
    }
    for (u32 i = 0; i < count && ok(st) && levels->config.written != NULL; i++)
        levels->config.written(levels->config.arg, inputs[i].keyspace, inputs[i].memtable);
    if (ok(st)) st = levels_commit(levels, changes, made, state);
    for (u32 i = 0; i < made; i++) {
        if (ok(st))
            run_unref(changes[i].replacement, levels);
        else
            discard_run(levels, changes[i].replacement);
    }
    if (!ok(st)) {
        MARK("lsm.levels.flush_failed");
        levels->flush_failures++; /* it is tried again soon, perhaps for long */
        if (log_seldom(&levels->flush_told_ns, io_now_ns()))
            log_warning("lsm", "flush failed dir=%s why=%s failures=%llu", levels->dir,
                        status_text(st), (unsigned long long)levels->flush_failures);
        return st;
    }
    levels->flushes++;
    fiber_queue_wake_all(&levels->wake);
    return ST_OK;
}
