/* SPDX-License-Identifier: MIT
 *
 * log_write.c -- the requests of the log: their buffers, and the blocks that are laid out in them.
 * Nothing in this file yields.
 */
#include "base/fault.h"
#include "io/io.h"
#include "lsm/log_internal.h"

/* ---- buffers ---- */

struct log_write *
log_write_acquire(struct log *log)
{
    struct list *link = list_pop_front(&log->free_writes);
    if (link != NULL) {
        log->free_count--;
        return list_entry(link, struct log_write, link);
    }
    struct log_write *write = mem_alloc_zero(log->config.budget, sizeof(*write));
    if (write == NULL) return MARKED("lsm.log.write_no_memory", NULL);
    write->buffer = mem_alloc_aligned(log->config.budget, log->group_bytes, IO_ALIGNMENT);
    if (write->buffer == NULL) {
        MARK("lsm.log.buffer_no_memory");
        mem_free(log->config.budget, write, sizeof(*write));
        return NULL;
    }
    write->capacity = log->group_bytes;
    write->log = log;
    list_init(&write->link);
    return write;
}

void
log_write_free(struct log *log, struct log_write *write)
{
    mem_free(log->config.budget, write->buffer, write->capacity);
    mem_free(log->config.budget, write, sizeof(*write));
}

/* A few are kept: those of a record that needed many go back to the budget. */
void
log_write_release(struct log *log, struct log_write *write)
{
    if (log->free_count > LOG_WRITES_IN_FLIGHT) {
        log_write_free(log, write);
        return;
    }
    list_push_back(&log->free_writes, &write->link);
    log->free_count++;
}

void
log_write_begin(struct log *log, struct log_write *write, struct log_segment *segment)
{
    write->segment = segment;
    write->offset = segment->end;
    write->size = 0;
    write->block_used = 0;
    write->seq_last = 0;
    write->records = 0;
    write->header = false;
    write->durable = log->config.durability == LSM_DURABILITY_GROUP;
    write->finished = false;
}

/* ---- laying out blocks ---- */

struct log_block *
log_write_block_add(struct log *log, struct log_write *write, enum log_block_kind kind)
{
    CHECK(write->size + LOG_BLOCK_BYTES <= write->capacity);
    CHECK(write->segment->end == write->offset + write->size);
    CHECK(write->segment->end + LOG_BLOCK_BYTES <= log->config.segment_bytes);
    u64 offset = write->segment->end;
    write->size += LOG_BLOCK_BYTES;
    write->segment->end += LOG_BLOCK_BYTES;
    write->block_used = 0;
    log->queued_bytes += LOG_BLOCK_BYTES;
    struct log_block *block = log_write_block(write);
    *block = (struct log_block){
        .record_first = LOG_NO_RECORD,
        .segment = write->segment->number,
        .index = (u32)(offset / LOG_BLOCK_BYTES),
        .kind = kind,
    };
    return block;
}

void
log_write_block_end(struct log_write *write)
{
    struct log_block *block = log_write_block(write);
    block->used = (u16)write->block_used;
    u32 start = (u32)sizeof(*block) + write->block_used;
    memset((u8 *)block + start, 0, LOG_BLOCK_BYTES - start);
}

void
log_fill_end(struct log *log)
{
    struct log_write *write = log->fill;
    log->fill = NULL;
    log_write_block_end(write);
    list_push_back(&log->queued, &write->link);
}

void
log_write_move(struct log_write *write, struct log_segment *segment)
{
    write->segment = segment;
    write->offset = segment->end;
    segment->end += write->size;
    for (u32 at = 0; at < write->size; at += LOG_BLOCK_BYTES) {
        struct log_block *block = (struct log_block *)(void *)(write->buffer + at);
        block->segment = segment->number;
        block->index = (u32)((write->offset + at) / LOG_BLOCK_BYTES);
    }
}
