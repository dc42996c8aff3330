/* SPDX-License-Identifier: MIT
 *
 * log_change.c -- from one segment to the next.
 *
 * The next one (log_cut) begins with a header that names the end of the one before. If the header
 * became durable before that end did, a power cut in between would look like damage. So the header
 * is written when everything before it is durable. What follows it is under way beside it: without
 * the header nobody reads it, and acknowledgements go in the order of the log. (Its blocks attest
 * nothing until the header is durable, so that a header that a power cut has taken is none that was
 * damaged.)
 *
 * PERIODIC would wait for a sync there, and everybody for that, for some milliseconds at each
 * flush. So the change begins before it is made (log_change_begin), and meanwhile records go on to
 * the old segment, where they survive the process as ever:
 *
 *   segment 7   | ... synced first ... | written meanwhile |
 *                                      ^ change_end: predecessor_end of 8
 *   segment 8   | header | copies of them | new records ...
 *
 * What is done in 7 is written to 8 as well, before the header: copies attest nothing, and without
 * the header nobody reads them. When all before change_end is synced and nothing is under way, the
 * header is written (log_change_finish), and from then on nobody reads what 7 holds behind
 * change_end. Segment 8 has surely begun when it was synced, too.
 *
 * Nothing in this file yields.
 */
#include "base/crc.h"
#include "base/fault.h"
#include "io/io.h"
#include "lsm/log_internal.h"

/* current ended at end, with the record seq. */
static void
segment_end(struct log *log, u64 end, u64 seq)
{
    log->current->end = end;
    log->tail_number = log->current->number;
    log->tail_end = end;
    log->tail_seq = log->seq_base = seq;
    list_push_back(&log->old, &log->current->link);
}

/* Makes current of ready; write: for its header. */
static void
segment_begin(struct log *log, struct log_write *write)
{
    struct log_segment *segment = log->ready;
    log->ready = NULL;
    log->current = segment;
    log_write_begin(log, write, segment);
    struct log_block *block = log_write_block_add(log, write, LOG_BLOCK_HEADER);
    segment->end = MAX(segment->end, segment->written_offset); /* behind what was copied there */
    struct log_segment_header header = {
        .magic = LOG_MAGIC,
        .format = LOG_FORMAT,
        .block_bytes = LOG_BLOCK_BYTES,
        .segment = segment->number,
        .predecessor = log->tail_number,
        .predecessor_end = log->tail_end,
        .predecessor_seq = log->tail_seq,
        .seq_base = log->seq_base,
        .segment_bytes = log->config.segment_bytes,
        .created_ms = io_wall_ms(),
    };
    memcpy((u8 *)block + sizeof(*block), &header, sizeof(header));
    write->block_used = sizeof(header);
    write->header = true;
    log_write_block_end(write);
    fiber_queue_wake_all(&log->make_wake); /* the next one is wanted */
    io_task_post(&log->pump_task);
}

status
log_cut(struct log *log)
{
    CHECK(log->ready != NULL && !log->changing);
    struct log_write *write = log_write_acquire(log);
    if (write == NULL) return MARKED("lsm.log.cut_no_memory", ST_NO_MEMORY);
    MARK("lsm.log.cut");
    if (log->fill != NULL) log_fill_end(log);
    if (log->current != NULL) segment_end(log, log->current->end, log->seq_last);
    segment_begin(log, write);
    list_push_back(&log->queued, &write->link);
    return ST_OK;
}

bool
log_change_begin(struct log *log)
{
    if (log->config.durability != LSM_DURABILITY_PERIODIC) return false;
    if (log->ready == NULL || log->current == NULL || !log->current->begun) return false;
    CHECK(log->ready->written_offset == 0);
    log->change_header = log_write_acquire(log);
    if (log->change_header == NULL) return MARKED("lsm.log.change_no_memory", false);
    MARK("lsm.log.change");
    if (log->fill != NULL) log_fill_end(log);
    log->changing = true;
    log->change_end = log->current->end;
    log->change_seq = log->seq_last;
    log->ready->end = LOG_BLOCK_BYTES;
    fiber_queue_wake_all(&log->sync_wake);
    io_task_post(&log->pump_task);
    return true;
}

bool
log_change_is_near(const struct log *log)
{
    if (log->config.durability != LSM_DURABILITY_PERIODIC || log->changing) return false;
    if (BUGGIFY("lsm.log.change_early")) return true;
    u64 bytes = log->config.segment_bytes;
    return log->current->end + bytes / LOG_CHANGE_EARLY > bytes;
}

void
log_change_finish(struct log *log)
{
    struct log_write *header = log->change_header;
    log->changing = false;
    log->change_header = NULL;
    segment_end(log, log->change_end, log->change_seq);
    log->ready->end = 0;
    segment_begin(log, header); /* and the copies are behind it */
    list_for_each (link, &log->queued)
        log_write_move(list_entry(link, struct log_write, link), log->current);
    if (log->fill != NULL) log_write_move(log->fill, log->current);
    list_push_front(&log->queued, &header->link);
    fiber_queue_wake_all(&log->room_wake);
    fiber_queue_wake_all(&log->state_wake);
}

static void
copy_done(struct io_op *op)
{
    struct log_write *write = CONTAINER_OF(op, struct log_write, op);
    struct log *log = write->log;
    log->copies_in_flight--;
    if (!ok(op->result)) {
        MARK("lsm.log.copy_failed");
        log_fail(log, op->result, "write");
    }
    struct log_segment *segment = write->segment;
    segment->written_offset = MAX(segment->written_offset, write->offset + write->size);
    log_write_release(log, write);
    fiber_queue_wake_all(&log->state_wake);
    io_task_post(&log->pump_task);
}

bool
log_change_copies(struct log *log, struct log_write *write)
{
    if (!log->changing || log->failed || write->offset < log->change_end) return false;
    MARK("lsm.log.change_copies");
    log_write_move(write, log->ready);
    for (u32 at = 0; at < write->size; at += LOG_BLOCK_BYTES) {
        struct log_block *block = (struct log_block *)(void *)(write->buffer + at);
        block->durable_offset = 0;
        block->durable_seq = 0;
        block->crc = log_block_crc(block, block->segment, write->offset + at);
    }
    log->stats.writes++;
    log->stats.bytes += write->size;
    log->copies_in_flight++;
    write->op = (struct io_op){.done = copy_done};
    io_file_write_cached_start(write->segment->file, &write->op, IO_CLASS_LOG, write->buffer,
                               write->size, write->offset);
    return true;
}
