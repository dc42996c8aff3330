/* SPDX-License-Identifier: MIT
 *
 * log.c -- appending records and getting them to the disk. (Requests and their blocks: log_write.c;
 * one segment after the other: log_change.c.)
 *
 *   log_append -> fill (blocks being laid out) -> queued -> in_flight (up to 4)
 *              -> durable, in order
 *
 * What one turn of the loop brings is a group (pump_task). Where others are sure to come soon it stays
 * for them, for about as long as a write takes (log_pace.h); a client alone, or clients who all wait
 * already, are held up by nothing. Else it leaves at once when nothing is under way. Beside others, at
 * most LOG_WRITES_IN_FLIGHT in all, it leaves when it is at least half as large as the largest of them;
 * else it grows until it is, or until one of them is done. With nothing under way, half of what usually
 * is leaves before the turn is over (group_leaves_early). So the group grows by itself with the load. A
 * disk that overlaps durable writes is kept busy, and one that flushes a volatile cache for each of
 * them, one after the other, is not given many small ones, of which each waits for the flushes of those
 * before it. Places in the segment are given when blocks are laid out, so order in memory is order on
 * disk.
 *
 * PERIODIC promises that records survive the process: they go to the kernel's cache, which waits
 * for no disk, and log_sync_fiber syncs them (log_segment.c). Only the first header is a durable
 * write.
 *
 * After the log has been idle for LOG_SEAL_AFTER_NS, a block without records attests the last
 * durable offset: from then on, damage to what was acknowledged last is provable, too.
 *
 * Finished requests are handled in callbacks; nothing in this file yields but log_open, log_close,
 * log_drain, log_rotate and log_wait_room.
 */
#include "base/crc.h"
#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/log_internal.h"

/* ---- writing ---- */

void
log_fail(struct log *log, status why, const char *what)
{
    if (log->failed) return;
    MARK("lsm.log.failed");
    log->failed = true; /* W4 */
    log_error("lsm", "log failed, this store takes no more writes reason=\"%s: %s\" dir=%s", what,
              status_text(why), log->dir);
    fiber_queue_wake_all(&log->room_wake);
    fiber_queue_wake_all(&log->state_wake);
    fiber_queue_wake_all(&log->make_wake);
    fiber_queue_wake_all(&log->sync_wake);
    log->config.durable(log->config.arg, log->durable_seq, true);
}

static void write_done(struct io_op *op);

static u64
write_payload_bytes(const struct log_write *write)
{
    return write->size - LOG_BLOCK_BYTES + write->block_used; /* about */
}

/* How much is under way at once: the most of late. */
static void
load_note(struct log *log)
{
    u64 bytes = 0;
    list_for_each (link, &log->in_flight)
        bytes += write_payload_bytes(list_entry(link, struct log_write, link));
    log->load_bytes = MAX(bytes, log->load_bytes - log->load_bytes / LOG_LOAD_FADES);
}

/* How long fill stays for others, as far as the disk is concerned; 0: it leaves. */
static u64
pace_wait_ns(const struct log *log)
{
    if (log->config.durability == LSM_DURABILITY_PERIODIC) return 0;
    return log_pace_wait_ns(&log->pace, io_now_ns(), write_payload_bytes(log->fill));
}

/* Whether the group leaves before the turn has brought all that it brings. Those who wait for one
 * large group all go on at once, and fill the next one: the disk waits for the core then, and the
 * core for the disk. Half of it sets the two working at the same time, and from then on groups take
 * turns. Not less than a block, of which small groups would write more. */
static bool
group_leaves_early(const struct log *log)
{
    if (log->config.durability == LSM_DURABILITY_PERIODIC || log->in_flight_count > 0) return false;
    if (!list_empty(&log->queued)) return true;
    return write_payload_bytes(log->fill) >= MAX(log->load_bytes / 2, LOG_BLOCK_PAYLOAD_BYTES) &&
           pace_wait_ns(log) == 0;
}

static void
write_submit(struct log *log, struct log_write *write)
{
    bool group = log->config.durability == LSM_DURABILITY_GROUP;
    u64 offset = group ? write->segment->written_offset : write->segment->synced_offset;
    u64 seq = group ? log->durable_seq : log->synced_seq;
    /* What was carried there is durable by now, but attested by the header alone. */
    if (!write->header && !write->segment->begun) offset = 0;
    for (u32 i = 0; i < write->size; i += LOG_BLOCK_BYTES) {
        struct log_block *block = (struct log_block *)(void *)(write->buffer + i);
        block->durable_offset = offset;
        block->durable_seq = seq;
        block->crc = log_block_crc(block, block->segment, write->offset + i);
    }
    log->attested_offset = offset;
    log->attested_segment = write->segment->number;
    list_push_back(&log->in_flight, &write->link);
    log->in_flight_count++;
    load_note(log);
    log_pace_begun(&log->pace, io_now_ns());
    log->stats.writes++;
    log->stats.bytes += write->size;
    write->op = (struct io_op){.done = write_done};
    if (write->durable)
        io_file_write_start(write->segment->file, &write->op, IO_CLASS_LOG, write->buffer,
                            write->size, write->offset, true);
    else
        io_file_write_cached_start(write->segment->file, &write->op, IO_CLASS_LOG, write->buffer,
                                   write->size, write->offset);
}

/* Whether the barrier before a segment's header is passed. */
static bool
segment_is_settled(struct log *log, const struct log_segment *segment)
{
    if (log->config.durability == LSM_DURABILITY_GROUP) return true; /* nothing is in flight */
    if (segment->synced_offset >= segment->end) return true;
    MARK("lsm.log.header_waits_for_sync");
    fiber_queue_wake_all(&log->sync_wake); /* pumps again when it is done */
    return false;
}

/* Whether another write is worth its while beside those under way. */
static bool
group_is_large(const struct log *log)
{
    if (!list_empty(&log->queued) || log->fill == NULL) return true;
    if (BUGGIFY("lsm.log.small_groups")) return true;
    u64 largest = 0;
    list_for_each (link, &log->in_flight)
        largest = MAX(largest, write_payload_bytes(list_entry(link, struct log_write, link)));
    return write_payload_bytes(log->fill) >= largest / 2;
}

void
log_pump(struct log *log)
{
    if (log->changing && !log->failed && log->current->synced_offset >= log->change_end) {
        if (log->in_flight_count + log->copies_in_flight > 0) return; /* comes again then */
        log_change_finish(log);
    }
    while (!log->failed && log->in_flight_count < LOG_WRITES_IN_FLIGHT) {
        if (log->in_flight_count > 0) {
            if (!group_is_large(log)) return;
            if (BUGGIFY("lsm.log.one_in_flight")) return;
        }
        if (list_empty(&log->queued)) {
            if (log->fill == NULL) return;
            u64 wait_ns = pace_wait_ns(log);
            if (wait_ns > 0 && !BUGGIFY("lsm.log.unpaced")) {
                MARK("lsm.log.paced");
                io_timer_arm(&log->pace_timer, io_now_ns() + wait_ns);
                return;
            }
            log_fill_end(log);
        }
        struct log_write *write = list_entry(list_first(&log->queued), struct log_write, link);
        if (write->header) {
            if (log->in_flight_count > 0) return; /* comes again then */
            if (log->writing != NULL && !segment_is_settled(log, log->writing)) return;
            if (log->writing == NULL) write->durable = true;
            log->writing = write->segment;
        }
        CHECK(write->segment == log->writing);
        list_del(&write->link);
        write_submit(log, write);
    }
}

static void
pace_fire(struct io_timer *timer)
{
    log_pump(CONTAINER_OF(timer, struct log, pace_timer));
}

static void
pump_run(struct io_task *task)
{
    log_pump(CONTAINER_OF(task, struct log, pump_task));
}

static void
seal_arm(struct log *log)
{
    if (log->failed || log->closing || log->in_flight_count > 0 || log->fill != NULL ||
        !list_empty(&log->queued))
        return;
    u64 after_ns = BUGGIFY("lsm.log.seal_at_once") ? 0 : LOG_SEAL_AFTER_NS;
    io_timer_arm(&log->seal_timer, io_now_ns() + after_ns);
}

/* Whether something is durable that no block says so of. */
static bool
seal_wanted(const struct log *log)
{
    const struct log_segment *s = log->writing;
    if (s == NULL || log->failed || log->changing || s != log->current) return false;
    if (log->in_flight_count > 0 || log->fill != NULL || !list_empty(&log->queued)) return false;
    if (s->end + LOG_BLOCK_BYTES > log->config.segment_bytes) return false;
    u64 durable =
        log->config.durability == LSM_DURABILITY_GROUP ? s->written_offset : s->synced_offset;
    if (durable <= LOG_BLOCK_BYTES) return false; /* the header alone */
    return log->attested_segment != s->number || log->attested_offset < durable;
}

static void
seal_write(struct log *log)
{
    struct log_write *write = log_write_acquire(log);
    if (write == NULL) {
        MARK("lsm.log.seal_skipped"); /* the next idle moment will do */
        return;
    }
    MARK("lsm.log.sealed");
    log_write_begin(log, write, log->current);
    log_write_block_add(log, write, LOG_BLOCK_SEAL);
    log_write_block_end(write);
    list_push_back(&log->queued, &write->link);
    log_pump(log);
    /* It attests what came before it; that it is durable itself needs no witness. */
    log->attested_offset = log->current->end;
    log->attested_segment = log->current->number;
}

static void
seal_fire(struct io_timer *timer)
{
    struct log *log = CONTAINER_OF(timer, struct log, seal_timer);
    if (!log->closing && seal_wanted(log)) seal_write(log);
}

static void
header_retire(struct log *log, const struct log_write *write)
{
    struct log_segment *segment = write->segment;
    segment->begun = true;
    if (write->durable) {
        segment->synced_offset = segment->written_offset;
        log->started = segment->number;
    }
    fiber_queue_wake_all(&log->sync_wake);
}

/* Takes finished requests off the front: acknowledgements follow the order of the log (W2). */
static void
writes_retire(struct log *log)
{
    u64 durable_before = log->durable_seq;
    while (!list_empty(&log->in_flight)) {
        struct log_write *write = list_entry(list_first(&log->in_flight), struct log_write, link);
        if (!write->finished) break;
        list_del(&write->link);
        log->in_flight_count--;
        log->queued_bytes -= write->size;
        if (!log->failed) {
            write->segment->written_offset =
                MAX(write->segment->written_offset, write->offset + write->size);
            if (write->header) header_retire(log, write);
            if (write->seq_last != 0) log->durable_seq = write->seq_last;
        }
        if (!log_change_copies(log, write)) log_write_release(log, write);
    }
    if (log->changing && log->current->written_offset >= log->change_end)
        fiber_queue_wake_all(&log->sync_wake);
    AUDIT("lsm.log.retired", log_check(log));
    fiber_queue_wake_all(&log->state_wake);
    fiber_queue_wake_all(&log->room_wake);
    if (log->durable_seq != durable_before)
        log->config.durable(log->config.arg, log->durable_seq, false);
}

static void
write_done(struct io_op *op)
{
    struct log_write *write = CONTAINER_OF(op, struct log_write, op);
    struct log *log = write->log;
    write->finished = true;
    u64 took_ns = io_now_ns() - op->start_ns;
    histogram_record(&log->stats.write_ns, took_ns);
    log_pace_ended(&log->pace, took_ns, write->records);
    if (!ok(op->result)) {
        MARK("lsm.log.write_failed");
        log_fail(log, op->result, "write");
    }
    writes_retire(log);
    io_task_post(&log->pump_task);
    if (log->config.durability == LSM_DURABILITY_GROUP) seal_arm(log);
}

/* ---- appending ---- */

/* Copies a piece of the record stream; spare holds the writes that it may need. */
static void
stream_put(struct log *log, struct list *spare, const void *data, size_t size, bool record_first)
{
    const u8 *p = data;
    while (size > 0) {
        struct log_write *write = log->fill;
        if (write == NULL || write->block_used == LOG_BLOCK_PAYLOAD_BYTES) {
            if (write != NULL && write->size == write->capacity) {
                log_fill_end(log);
                write = NULL;
            } else if (write != NULL) {
                log_write_block_end(write);
            }
            if (write == NULL) {
                struct list *link = list_pop_front(spare);
                CHECK(link != NULL); /* blocks_needed counted them */
                log->fill = write = list_entry(link, struct log_write, link);
                log_write_begin(log, write, log->current);
            }
            log_write_block_add(log, write, LOG_BLOCK_RECORDS);
        }
        struct log_block *block = log_write_block(write);
        if (record_first && block->record_first == LOG_NO_RECORD)
            block->record_first = (u16)write->block_used;
        record_first = false;
        size_t part = MIN(size, (size_t)(LOG_BLOCK_PAYLOAD_BYTES - write->block_used));
        memcpy((u8 *)block + sizeof(*block) + write->block_used, p, part);
        write->block_used += (u32)part;
        p += part;
        size -= part;
    }
}

static u64
blocks_needed(const struct log *log, u64 record_bytes)
{
    u64 open = log->fill != NULL ? LOG_BLOCK_PAYLOAD_BYTES - log->fill->block_used : 0;
    if (record_bytes <= open) return 0;
    return (record_bytes - open + LOG_BLOCK_PAYLOAD_BYTES - 1) / LOG_BLOCK_PAYLOAD_BYTES;
}

u64
log_payload_bytes_max(const struct log *log)
{
    u64 blocks = log->config.segment_bytes / LOG_BLOCK_BYTES - 2; /* header, one seal */
    return blocks * LOG_BLOCK_PAYLOAD_BYTES - sizeof(struct log_record);
}

/* Whether a record needs the next segment. */
static bool
needs_cut(const struct log *log, u64 record_bytes)
{
    if (log->current == NULL) return true;
    u64 blocks = blocks_needed(log, record_bytes) + 1; /* the last one is kept for a seal */
    return log->current->end + blocks * LOG_BLOCK_BYTES > log->config.segment_bytes;
}

static status
append_check(struct log *log, size_t payload_bytes)
{
    if (log->failed) return MARKED("lsm.log.read_only", ST_READ_ONLY);
    if (payload_bytes > log_payload_bytes_max(log))
        return MARKED("lsm.log.record_too_large", ST_TOO_LARGE);
    if (log->current == NULL && log->ready != NULL) {
        /* There was no space before. What was carried may have left it little room, as when an
         * opening finds space: the record goes to it, or to the next. */
        status st = log_cut(log);
        if (!ok(st)) return st;
    }
    u64 size = sizeof(struct log_record) + payload_bytes;
    if (log->queued_bytes > 0 && log->queued_bytes + size > log->queue_bytes_max) {
        MARK("lsm.log.queue_full");
        return ST_WOULD_WAIT;
    }
    if (needs_cut(log, size) && log->ready == NULL) {
        fiber_queue_wake_all(&log->make_wake);
        if (ok(log->make_status)) return MARKED("lsm.log.segment_awaited", ST_WOULD_WAIT);
        MARK("lsm.log.no_segment");
        return status_is(log->make_status, ST_NO_SPACE) ? ST_NO_SPACE : ST_OVERLOADED;
    }
    if (log->changing && needs_cut(log, size))
        return MARKED("lsm.log.change_awaited", ST_WOULD_WAIT);
    return ST_OK;
}

bool
log_queue_is_short(const struct log *log, size_t payload_bytes)
{
    return payload_bytes > log->queue_bytes_max / 4 && log->queued_bytes > 0 &&
           log->queued_bytes + sizeof(struct log_record) + payload_bytes > log->queue_bytes_max;
}

/* Whether the record would end in the last part of the last segment that there is. What is open of a
 * block counts for the record only: it goes to the disk with it. */
static bool
takes_last_room(const struct log *log, size_t payload_bytes)
{
    if (log->ready != NULL || log->current == NULL) return false;
    u64 kept = MAX(log->config.segment_bytes / LOG_FREES_SHARE, LOG_BLOCK_BYTES);
    u64 end = log->current->end;
    end += blocks_needed(log, sizeof(struct log_record) + payload_bytes) * LOG_BLOCK_BYTES;
    return end + kept + LOG_BLOCK_BYTES > log->config.segment_bytes; /* a seal */
}

status
log_append_check(struct log *log, size_t payload_bytes, bool frees)
{
    if (log->queued_bytes > 0 && BUGGIFY("lsm.log.buffers_full")) return ST_WOULD_WAIT;
    status st = append_check(log, payload_bytes);
    if (!ok(st) || frees || LIKELY(!takes_last_room(log, payload_bytes))) return st;
    if (log_no_space(log)) return MARKED("lsm.log.last_room_kept", ST_NO_SPACE);
    if (!ok(log->make_status)) return ST_OK;
    /* The next one is being made: only then is it known whether this is the last. */
    fiber_queue_wake_all(&log->make_wake);
    return MARKED("lsm.log.last_room_awaits", ST_WOULD_WAIT);
}

/* Collects the writes that the record needs beyond fill. */
static bool
spare_collect(struct log *log, struct list *spare, u64 blocks)
{
    u64 inside = log->fill == NULL ? 0 : (log->fill->capacity - log->fill->size) / LOG_BLOCK_BYTES;
    while (inside < blocks) {
        struct log_write *write = log_write_acquire(log);
        if (write == NULL) return false;
        list_push_back(spare, &write->link);
        inside += write->capacity / LOG_BLOCK_BYTES;
    }
    return true;
}

static void
spare_release(struct log *log, struct list *spare)
{
    while (!list_empty(spare))
        log_write_release(log, list_entry(list_pop_front(spare), struct log_write, link));
}

status
log_reserve(struct log *log, size_t payload_bytes)
{
    u64 size = sizeof(struct log_record) + payload_bytes;
    CHECK(size <= LOG_BLOCK_PAYLOAD_BYTES);
    status st = append_check(log, payload_bytes);
    if (!ok(st)) return st;
    /* One for the record, one for the header of a segment; both stay in the free list. */
    struct list spare;
    list_init(&spare);
    struct log_write *first = log_write_acquire(log);
    if (first != NULL) list_push_back(&spare, &first->link);
    struct log_write *second = first != NULL ? log_write_acquire(log) : NULL;
    if (second != NULL) list_push_back(&spare, &second->link);
    spare_release(log, &spare);
    if (second != NULL) return ST_OK;
    return MARKED("lsm.log.reserve_no_memory",
                  log->queued_bytes > 0 ? ST_WOULD_WAIT : ST_NO_MEMORY);
}

status
log_append(struct log *log, const struct log_record *header, struct bytes payload)
{
    status st = append_check(log, payload.size);
    if (!ok(st)) return st;
    u64 size = sizeof(*header) + payload.size;
    CHECK(header->count > 0);
    CHECK(header->seq_first == log->seq_last + 1); /* W1, no gaps */

    if (needs_cut(log, size) ||
        (log->ready != NULL && !log->changing && log->current->end > 2 * LOG_BLOCK_BYTES &&
         BUGGIFY("lsm.log.rotate_early"))) {
        st = log_cut(log);
        if (!ok(st)) return st;
        CHECK(!needs_cut(log, size)); /* log_payload_bytes_max */
    }
    struct list spare;
    list_init(&spare);
    if (!spare_collect(log, &spare, blocks_needed(log, size))) {
        MARK("lsm.log.no_memory");
        spare_release(log, &spare);
        return log->queued_bytes > 0 ? ST_WOULD_WAIT : ST_NO_MEMORY;
    }

    struct log_record record = *header;
    record.size = (u32)size;
    u32 crc = crc32c((u32)record.seq_first, (const u8 *)&record + sizeof(record.crc),
                     sizeof(record) - sizeof(record.crc));
    record.crc = crc32c(crc, payload.data, payload.size);
    stream_put(log, &spare, &record, sizeof(record), true);
    stream_put(log, &spare, payload.data, payload.size, false);
    CHECK(list_empty(&spare));
    log->seq_last = record.seq_first + record.count - 1;
    log->fill->seq_last = log->seq_last;
    log->fill->records++;
    log_pace_appended(&log->pace);
    if (group_leaves_early(log))
        log_pump(log);
    else
        io_task_post(&log->pump_task);
    if (log_change_is_near(log)) (void)log_change_begin(log);
    return ST_OK;
}

MAY_YIELD void
log_wait_room(struct log *log)
{
    if (log->queued_bytes == 0 && log->ready != NULL && !log->changing) {
        fiber_yield();
        return;
    }
    /* Whoever makes room wakes us; the deadline is for a maker that waits for a full disk. */
    (void)fiber_queue_wait(&log->room_wake, io_now_ns() + 10 * NS_PER_MS);
}

MAY_YIELD status
log_rotate_wait(struct log *log, u64 segment)
{
    while (!log->failed && log->started < segment)
        (void)fiber_queue_wait(&log->state_wake, FIBER_FOREVER);
    return log->started < segment ? MARKED("lsm.log.header_failed", ST_READ_ONLY) : ST_OK;
}

MAY_YIELD status
log_rotate(struct log *log, u64 *segment_out)
{
    for (;;) {
        if (log->failed) return MARKED("lsm.log.rotate_failed", ST_READ_ONLY);
        if (log->current != NULL && log->seq_base == log->seq_last) break; /* no record in it */
        if (log->changing || log_change_begin(log)) {
            *segment_out = log->ready->number;
            return ST_OK;
        }
        if (log->ready != NULL && ok(log_cut(log))) break;
        if (log->ready == NULL) {
            fiber_queue_wake_all(&log->make_wake);
            if (!ok(log->make_status)) return MARKED("lsm.log.rotate_no_space", ST_NO_SPACE);
        }
        MARK("lsm.log.rotate_waits");
        (void)fiber_queue_wait(&log->state_wake, io_now_ns() + 10 * NS_PER_MS);
    }
    *segment_out = log->current->number;
    return ST_OK;
}

u64
log_segment_started(const struct log *log)
{
    return log->started;
}

u64
log_segment_oldest(const struct log *log)
{
    if (log->started == 0 || list_empty(&log->old)) return log->started;
    return list_entry(list_first(&log->old), struct log_segment, link)->number;
}

u64
log_durable_seq(const struct log *log)
{
    return log->durable_seq;
}

u64
log_kept_seq(const struct log *log)
{
    return log->config.durability == LSM_DURABILITY_PERIODIC ? log->synced_seq : log->durable_seq;
}

bool
log_failed(const struct log *log)
{
    return log->failed;
}

u64
log_busy_ns(const struct log *log)
{
    if (list_empty(&log->in_flight)) return 0;
    const struct log_write *first = list_entry(log->in_flight.next, struct log_write, link);
    return io_now_ns() - first->op.start_ns;
}

bool
log_no_space(const struct log *log)
{
    return log->ready == NULL && status_is(log->make_status, ST_NO_SPACE);
}

MAY_YIELD void
log_drain(struct log *log)
{
    while (!log->failed && (log->queued_bytes > 0 || log->durable_seq < log->seq_last)) {
        log_pump(log);
        (void)fiber_queue_wait(&log->state_wake, FIBER_FOREVER);
    }
}

void
log_stats(const struct log *log, struct log_stats *out)
{
    *out = log->stats;
    out->segments = (log->current != NULL) + (log->ready != NULL) + log->recycle_count;
    list_for_each (link, &log->old)
        out->segments++;
    out->bytes_to_replay = log_bytes_to_replay(log);
}

u64
log_bytes_to_replay(const struct log *log)
{
    u64 bytes = log->current == NULL ? 0 : log->current->end;
    list_for_each (link, &log->old)
        bytes += list_entry(link, struct log_segment, link)->end;
    return bytes;
}

u64
log_bytes_kept(const struct log *log)
{
    u64 bytes = 0;
    list_for_each (link, &log->old)
        bytes += log->config.segment_bytes;
    return bytes;
}

/* ---- opening and closing ---- */

static void
log_free(struct log *log)
{
    while (!list_empty(&log->free_writes))
        log_write_free(log, list_entry(list_pop_front(&log->free_writes), struct log_write, link));
    while (!list_empty(&log->queued))
        log_write_free(log, list_entry(list_pop_front(&log->queued), struct log_write, link));
    if (log->fill != NULL) log_write_free(log, log->fill);
    if (log->change_header != NULL) log_write_free(log, log->change_header);
    mem_free(log->config.budget, log, sizeof(*log));
}

static struct log *
log_new(const struct log_config *config)
{
    struct log *log = mem_alloc_zero(config->budget, sizeof(*log));
    if (log == NULL) return MARKED("lsm.log.self_no_memory", NULL);
    log->config = *config;
    log->config.segment_bytes =
        MAX(align_down(config->segment_bytes, LOG_BLOCK_BYTES), LOG_SEGMENT_BYTES_MIN);
    log->config.recycle_max = MAX(config->recycle_max, LOG_RECYCLE_LEAST);
    size_t dir_size = strlen(config->dir);
    CHECK(dir_size < sizeof(log->dir) - LOG_NAME_BYTES - 2);
    memcpy(log->dir, config->dir, dir_size + 1);
    log->config.dir = log->dir;
    log->group_bytes = (u32)CLAMP(align_down(config->segment_bytes / 16, LOG_BLOCK_BYTES),
                                  LOG_BLOCK_BYTES, LOG_GROUP_BYTES_MAX);
    /* A small store has small groups: six of them take at most a sixteenth of its memory. */
    u64 share = align_down(config->budget->limit_bytes / 96, LOG_BLOCK_BYTES);
    if (share < log->group_bytes) log->group_bytes = (u32)MAX(share, 4 * LOG_BLOCK_BYTES);
    if (BUGGIFY("lsm.log.group_short")) log->group_bytes = 2 * LOG_BLOCK_BYTES;
    log->queue_bytes_max = (LOG_WRITES_IN_FLIGHT + 2) * (u64)log->group_bytes;
    list_init(&log->old);
    list_init(&log->replaced);
    list_init(&log->recycle);
    list_init(&log->queued);
    list_init(&log->in_flight);
    list_init(&log->free_writes);
    io_task_init(&log->pump_task, pump_run);
    io_timer_init(&log->seal_timer, seal_fire);
    io_timer_init(&log->pace_timer, pace_fire);
    fiber_queue_init(&log->fibers_wake);
    fiber_queue_init(&log->make_wake);
    fiber_queue_init(&log->sync_wake);
    fiber_queue_init(&log->room_wake);
    fiber_queue_init(&log->state_wake);
    return log;
}

/* What is to be saved of the newest segment that recovery found, and what the next one follows. */
static void
tail_adopt(struct log *log, const struct log_recovered *found)
{
    const struct log_segment_header *header = &found->tail_header;
    bool replace = found->tail_doubtful;
    bool in_tables = found->tail_seq <= log->config.seq_flushed;
    u64 from = replace ? LOG_BLOCK_BYTES : found->tail_attested;
    if (replace) MARK("lsm.log.tail_doubtful");
    if (in_tables) MARK("lsm.log.tail_in_tables");
    /* Also when all of it is in tables: the next segment must not follow what may yet be lost. */
    if (found->tail_end > from && !(replace && in_tables)) {
        log->carry = (struct log_carry){.number = found->tail_number,
                                        .from = from,
                                        .end = found->tail_end,
                                        .seq_base = header->seq_base,
                                        .seq_last = found->tail_seq,
                                        .replace = replace,
                                        .in_tables = in_tables};
    }
    log->tail_number = replace ? header->predecessor : found->tail_number;
    log->tail_end = replace ? header->predecessor_end : found->tail_end;
    log->tail_seq = replace ? header->predecessor_seq : found->tail_seq;
    log->seq_base = MAX(MAX(found->tail_seq, found->seq_base), log->config.seq_flushed);
}

/* Removes what recovery found to hold nothing (F1 of log_segment.c). */
static MAY_YIELD status
unstarted_remove(struct log *log, const struct log_recovered *found, u64 segment_first)
{
    for (u32 i = 0; i < found->unstarted_count; i++) {
        struct log_segment *segment = log_segment_new(log, found->unstarted[i]);
        if (segment == NULL) return ST_NO_MEMORY;
        segment->released = segment->number < segment_first;
        bool released = segment->released;
        status st = log_segment_remove(log, segment);
        /* The header of one that was not begun may be under way yet: should it land under its name,
         * the log would have two ends. */
        if (!ok(st) && !released) return MARKED("lsm.log.unstarted_stays", st);
    }
    return ST_OK;
}

/* Turns what recovery found into lists of segments. */
static MAY_YIELD status
segments_adopt(struct log *log, const struct log_recovered *found, u64 segment_first)
{
    for (u32 i = 0; i < found->segment_count + found->replaced_count; i++) {
        bool replaced = i >= found->segment_count;
        struct log_segment *segment = log_segment_new(
            log, replaced ? found->replaced[i - found->segment_count] : found->segments[i]);
        if (segment == NULL) return ST_NO_MEMORY;
        if (!replaced) segment->end = found->ends[i];
        if (replaced || (found->tail_doubtful && segment->number == found->tail_number)) {
            list_push_back(&log->replaced, &segment->link);
            continue;
        }
        list_push_back(&log->old, &segment->link);
        log->started = segment->number;
    }
    status st = unstarted_remove(log, found, segment_first);
    if (!ok(st)) return st;
    log->number_next = found->number_max + 1;
    tail_adopt(log, found);
    log->seq_last = log->durable_seq = log->synced_seq = log->seq_base;
    log->stats.recovery_records = found->records;
    log->stats.recovery_bytes = found->bytes;
    return ST_OK;
}

static status
fiber_start(struct log *log, const char *name, void (*fn)(void *arg))
{
    status st = fiber_spawn(FIBER_BACKGROUND, name, fn, log);
    if (ok(st)) log->fibers++;
    return st;
}

static MAY_YIELD void
segments_free(struct log *log)
{
    while (!list_empty(&log->old))
        log_segment_free(log, list_entry(list_pop_front(&log->old), struct log_segment, link));
    while (!list_empty(&log->replaced))
        log_segment_free(log, list_entry(list_pop_front(&log->replaced), struct log_segment, link));
    while (!list_empty(&log->recycle))
        log_segment_free(log, list_entry(list_pop_front(&log->recycle), struct log_segment, link));
    if (log->ready != NULL) log_segment_free(log, log->ready);
    if (log->current != NULL) log_segment_free(log, log->current);
    log->ready = log->current = log->writing = NULL;
}

/* Ends the fibers and waits for requests under way; afterwards nothing refers to the log. */
static MAY_YIELD void
log_shut(struct log *log)
{
    log->closing = true;
    fiber_queue_wake_all(&log->make_wake);
    fiber_queue_wake_all(&log->sync_wake);
    while (log->fibers > 0)
        (void)fiber_queue_wait(&log->fibers_wake, FIBER_FOREVER);
    while (log->in_flight_count + log->copies_in_flight > 0)
        (void)fiber_queue_wait(&log->state_wake, FIBER_FOREVER);
    io_timer_cancel(&log->seal_timer);
    io_timer_cancel(&log->pace_timer);
    io_task_cancel(&log->pump_task);
    segments_free(log);
    log_free(log);
}

MAY_YIELD status
log_open(const struct log_config *config, u64 segment_first,
         status (*replay)(void *arg, const struct log_record *record, struct bytes payload),
         struct log **out)
{
    CHECK(config->durability != LSM_DURABILITY_NONE);
    struct log *log = log_new(config);
    if (log == NULL) return ST_NO_MEMORY;
    struct log_recovered found = {0};
    status st = log_recover(log->dir, segment_first, true, config->budget, replay, config->arg,
                            NULL, &found);
    if (ok(st)) st = segments_adopt(log, &found, segment_first);
    log_recovered_deinit(&found, config->budget);
    if (!ok(st)) goto fail;

    /* A segment of our own: what the last owner left unfinished stays behind its end for ever. */
    st = log_segment_make(log);
    if (ok(st)) st = log_cut(log);
    if (ok(st)) {
        st = log_rotate_wait(log, log->current->number);
        if (!ok(st)) {
            MARK("lsm.log.open_header_failed");
            st = ST_IO_ERROR;
        }
        log_replaced_retire(log);
    } else if (status_is(st, ST_NO_SPACE)) {
        MARK("lsm.log.open_without_space"); /* reads go on; the maker keeps trying */
        st = ST_OK;
    }
    if (ok(st)) st = fiber_start(log, "log.make", log_make_fiber);
    if (ok(st) && config->durability == LSM_DURABILITY_PERIODIC)
        st = fiber_start(log, "log.sync", log_sync_fiber);
    if (!ok(st)) goto fail;
    *out = log;
    return ST_OK;

fail:
    MARK("lsm.log.open_failed");
    log_shut(log);
    return st;
}

MAY_YIELD void
log_close(struct log *log)
{
    if (log == NULL) return;
    log_drain(log);
    log->changing = false; /* as if it had never begun */
    io_timer_cancel(&log->seal_timer);
    io_timer_cancel(&log->pace_timer);
    if (!log->failed && log->config.durability == LSM_DURABILITY_PERIODIC && log->writing != NULL) {
        status st = io_file_sync(log->writing->file);
        if (!ok(st)) {
            MARK("lsm.log.close_sync_failed");
            log_fail(log, st, "sync at close");
        } else {
            log->writing->synced_offset = log->writing->written_offset;
            log->synced_seq = log->durable_seq;
        }
    }
    if (seal_wanted(log)) {
        seal_write(log);
        while (log->in_flight_count > 0)
            (void)fiber_queue_wait(&log->state_wake, FIBER_FOREVER);
    }
    log_shut(log);
}

bool
log_check(const struct log *log)
{
    u64 bytes = log->fill != NULL ? log->fill->size : 0;
    u32 in_flight = 0;
    list_for_each (link, &log->queued)
        bytes += list_entry(link, struct log_write, link)->size;
    list_for_each (link, &log->in_flight) {
        bytes += list_entry(link, struct log_write, link)->size;
        in_flight++;
    }
    if (bytes != log->queued_bytes || in_flight != log->in_flight_count) return false;
    if (log->durable_seq > log->seq_last || log->seq_base > log->seq_last) return false;
    u64 previous = 0;
    list_for_each (link, &log->old) {
        u64 number = list_entry(link, struct log_segment, link)->number;
        if (number <= previous) return false;
        previous = number;
    }
    return log->current == NULL || log->current->number > previous;
}
