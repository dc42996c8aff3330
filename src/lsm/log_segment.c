/* SPDX-License-Identifier: MIT
 *
 * log_segment.c -- where segments come from and go to.
 *
 *   l.new --fill, rename--> ready --log_cut--> current --log_cut--> old --log_release--> recycle
 *                             ^                                                             |
 *                             +----------------------------- rename to a new number -------+
 *
 *   what an opening finds --> old or nothing --> removed
 *
 * Writing into blocks that were never written makes the file system convert extents, at several
 * times the cost of an overwrite, so segments are filled once and then used again and again. That
 * happens ahead of need in a fiber of its own: when the log wants the next segment it is there,
 * under its name, with the directory synced.
 *
 * A recycled file gets a number that was never used, which is what makes its old blocks invalid.
 *
 * Invariant
 *   F1  A process writes only to files that it has made. A write of a killed one that the block
 *       layer holds (a stalled disk, a command that comes again) keeps neither the process from
 *       ending nor its lock: it lands when it lands, perhaps in the life of a successor. Its file
 *       must not hold anything new by then. One without a name is safe: the kernel keeps its
 *       blocks until the write is done.
 *
 * The first segment of a process also takes what the last one may have left half safe: log_carry.c.
 */
#include "base/crc.h"
#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/log_internal.h"

/* ---- names ---- */

u32
log_block_crc(const void *block, u64 segment, u64 offset)
{
    u8 place[16];
    store_u64(place, segment);
    store_u64(place + 8, offset);
    u32 seed = crc32c(0, place, sizeof(place));
    return crc32c(seed, (const u8 *)block + sizeof(u32), LOG_BLOCK_BYTES - sizeof(u32));
}

static void
path_join(char *path, const char *dir, const char *name)
{
    size_t dir_size = strlen(dir);
    size_t name_size = strlen(name);
    CHECK(dir_size + 1 + name_size < LSM_PATH_BYTES);
    memcpy(path, dir, dir_size);
    path[dir_size] = '/';
    memcpy(path + dir_size + 1, name, name_size + 1);
}

void
log_path(char *path, const char *dir, u64 segment)
{
    static const char digits[] = "0123456789abcdef";
    char name[LOG_NAME_BYTES + 1];
    name[0] = 'l';
    for (u32 i = 0; i < 16; i++)
        name[1 + i] = digits[segment >> (60 - 4 * i) & 15];
    name[LOG_NAME_BYTES] = '\0';
    path_join(path, dir, name);
}

bool
log_name_parse(const char *name, u64 *segment_out)
{
    if (strlen(name) != LOG_NAME_BYTES || name[0] != 'l') return false;
    u64 segment = 0;
    for (u32 i = 1; i < LOG_NAME_BYTES; i++) {
        char c = name[i];
        u64 digit;
        if (c >= '0' && c <= '9')
            digit = (u64)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (u64)(c - 'a') + 10;
        else
            return false;
        segment = segment << 4 | digit;
    }
    if (segment == 0) return false;
    *segment_out = segment;
    return true;
}

/* ---- segments in memory ---- */

struct log_segment *
log_segment_new(struct log *log, u64 number)
{
    struct log_segment *segment = mem_alloc_zero(log->config.budget, sizeof(*segment));
    if (segment == NULL) return MARKED("lsm.log.segment_no_memory", NULL);
    segment->number = number;
    list_init(&segment->link);
    return segment;
}

MAY_YIELD void
log_segment_free(struct log *log, struct log_segment *segment)
{
    io_file_close(segment->file);
    mem_free(log->config.budget, segment, sizeof(*segment));
}

/* Whether the file can serve again: this process has made it (F1), and it has the right size. */
static MAY_YIELD bool
segment_serves_again(struct log *log, struct log_segment *segment)
{
    u64 size = 0;
    if (segment->file == NULL) return MARKED("lsm.log.found_not_reused", false);
    if (ok(io_file_size(segment->file, &size)) && size == log->config.segment_bytes) return true;
    return MARKED("lsm.log.other_size_not_reused", false);
}

MAY_YIELD static void
remove_fiber(void *arg)
{
    io_file_close_removed(arg);
    io_shard_release();
}

/* The name goes now; the blocks go little by little, on a fiber of their own. A flush may set many
 * segments free at once, since small groups leave most of a block empty, and a disk that is told of
 * them all keeps the log's writes waiting meanwhile. Only of what recovery does not read any more:
 * a file system without a journal may lose the removal of the name in a power cut, and keep that of
 * blocks; one that was replaced, or not begun, would then come back as one that was cut short. */
MAY_YIELD status
log_segment_remove(struct log *log, struct log_segment *segment)
{
    char path[LSM_PATH_BYTES];
    log_path(path, log->dir, segment->number);
    if (segment->released && segment->file == NULL &&
        !ok(io_file_open(path, IO_OPEN_WRITE, &segment->file))) {
        MARK("lsm.log.remove_not_opened"); /* its blocks go with its name */
        segment->file = NULL;
    }
    status st = io_file_unlink(path);
    if (status_is(st, ST_NOT_FOUND)) st = ST_OK;
    if (!ok(st)) {
        MARK("lsm.log.unlink_failed"); /* removed at the next open: it is below segment_first */
        log_warning("lsm", "old log segment not removed file=%s error=\"%s\"", path,
                    status_text(st));
    } else if (segment->released && segment->file != NULL) {
        io_shard_hold();
        if (ok(fiber_spawn(FIBER_BACKGROUND, "log.remove", remove_fiber, segment->file))) {
            segment->file = NULL;
        } else {
            MARK("lsm.log.removed_at_once");
            io_shard_release();
        }
    }
    log_segment_free(log, segment);
    return st;
}

MAY_YIELD void
log_segment_retire(struct log *log, struct log_segment *segment)
{
    if (!log->failed && log->recycle_count < log->config.recycle_max &&
        segment_serves_again(log, segment) && log->recycle_count < log->config.recycle_max) {
        segment->end = 0;
        segment->begun = false;
        segment->written_offset = segment->synced_offset = 0;
        list_push_back(&log->recycle, &segment->link);
        log->recycle_count++;
        return;
    }
    (void)ok(log_segment_remove(log, segment));
}

MAY_YIELD void
log_recycled_remove(struct log *log, u32 kept)
{
    while (log->recycle_count > kept) {
        MARK("lsm.log.recycled_removed");
        log->recycle_count--;
        struct list *link = list_pop_front(&log->recycle);
        (void)ok(log_segment_remove(log, list_entry(link, struct log_segment, link)));
    }
}

MAY_YIELD void
log_replaced_retire(struct log *log)
{
    while (!list_empty(&log->replaced)) {
        struct log_segment *segment =
            list_entry(list_first(&log->replaced), struct log_segment, link);
        if (log->failed || log->started <= segment->number) {
            MARK("lsm.log.replaced_stays");
            return;
        }
        list_del(&segment->link);
        log_segment_retire(log, segment);
    }
}

MAY_YIELD void
log_release(struct log *log, u64 segment_first)
{
    for (;;) {
        struct list *link = list_first(&log->old);
        if (link == NULL) break;
        struct log_segment *segment = list_entry(link, struct log_segment, link);
        if (segment->number >= segment_first) break;
        /* Requests to it may still be under way when the caller flushed without rotating. */
        bool busy = segment == log->writing;
        list_for_each (in_flight, &log->in_flight) {
            busy = busy || list_entry(in_flight, struct log_write, link)->segment == segment;
        }
        list_for_each (queued, &log->queued) {
            busy = busy || list_entry(queued, struct log_write, link)->segment == segment;
        }
        if (busy) {
            MARK("lsm.log.release_busy");
            break;
        }
        list_del(link);
        segment->released = true;
        log_segment_retire(log, segment);
    }
    fiber_queue_wake_all(&log->make_wake);
}

/* ---- making one ---- */

/* A new file under a temporary name, written once from end to end. */
static MAY_YIELD status
file_make(struct log *log, const char *path, u64 bytes, struct io_file **out)
{
    status st = io_file_unlink(path); /* of an earlier attempt */
    if (!ok(st) && !status_is(st, ST_NOT_FOUND)) return st;
    struct io_file *file;
    st = io_file_open(path, IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (!ok(st)) return st;
    st = io_file_fill(file, bytes);
    if (ok(st)) {
        *out = file;
        return ST_OK;
    }
    MARK("lsm.log.fill_failed");
    io_file_close(file);
    status removed = io_file_unlink(path);
    if (!ok(removed))
        log_warning("lsm", "unfinished log segment not removed file=%s error=\"%s\"", path,
                    MARKED("lsm.log.unfinished_stays", status_text(removed)));
    return st;
}

/* What is carried came from one segment and fits into one of the size that those had. */
static bool
recycled_serves(const struct log *log)
{
    return !list_empty(&log->recycle) && log->carry.end <= log->config.segment_bytes;
}

MAY_YIELD status
log_segment_make(struct log *log)
{
    CHECK(log->ready == NULL);
    char from[LSM_PATH_BYTES], to[LSM_PATH_BYTES];
    u64 number = log->number_next++; /* spent, whatever comes */
    log_path(to, log->dir, number);

    struct log_segment *segment = NULL;
    status st = ST_OK;
    if (recycled_serves(log)) {
        MARK("lsm.log.recycled");
        log->recycle_count--;
        segment = list_entry(list_pop_front(&log->recycle), struct log_segment, link);
        segment->released = false;
        log_path(from, log->dir, segment->number);
        segment->number = number;
    } else {
        MARK("lsm.log.made");
        segment = log_segment_new(log, number);
        if (segment == NULL) return ST_NO_MEMORY;
        path_join(from, log->dir, LOG_TEMPORARY);
        u64 bytes = MAX(log->config.segment_bytes, log->carry.end);
        st = file_make(log, from, bytes, &segment->file);
    }
    if (ok(st)) {
        st = io_file_rename(from, to);
        if (ok(st)) st = io_dir_sync(log->dir);
        if (!ok(st)) MARK("lsm.log.rename_failed");
        if (ok(st) && log->carry.number != 0) {
            st = log_carry_copy(log, segment);
            if (!ok(st)) MARK("lsm.log.carry_failed");
        }
        if (!ok(st)) {
            /* Which name it has is not known: let go of both. What lies under a number that was
             * never begun is ignored by recovery. */
            io_file_close(segment->file);
            segment->file = NULL;
            (void)ok(io_file_unlink(from));
            (void)ok(io_file_unlink(to));
        }
    }
    if (!ok(st)) {
        log_segment_free(log, segment);
        return st;
    }
    log->ready = segment;
    return ST_OK;
}

static void
fiber_end(struct log *log)
{
    log->fibers--;
    fiber_queue_wake_all(&log->fibers_wake);
}

/* Keeps one segment ready. */
MAY_YIELD void
log_make_fiber(void *arg)
{
    struct log *log = arg;
    while (!log->closing && !log->failed) {
        log_replaced_retire(log);
        u64 now = io_now_ns();
        if (log->ready != NULL) {
            (void)fiber_queue_wait(&log->make_wake, FIBER_FOREVER);
            continue;
        }
        if (!ok(log->make_status) && now < log->make_retry_ns && !recycled_serves(log)) {
            (void)fiber_queue_wait(&log->make_wake, log->make_retry_ns);
            continue;
        }
        if (BUGGIFY("lsm.log.slow_make")) fiber_sleep_ns(5 * NS_PER_MS);
        status st = log_segment_make(log);
        if (!ok(st)) {
            MARK("lsm.log.make_failed");
            if (ok(log->make_status))
                log_warning("lsm",
                            "no new log segment, trying again each second dir=%s "
                            "error=\"%s\"",
                            log->dir, status_text(st));
            log->make_retry_ns = io_now_ns() + LOG_RETRY_NS;
        } else if (!ok(log->make_status)) {
            MARK("lsm.log.space_returned");
            log_info("lsm", "log segments can be made again dir=%s", log->dir);
        }
        log->make_status = st;
        fiber_queue_wake_all(&log->room_wake);
        fiber_queue_wake_all(&log->state_wake);
    }
    fiber_end(log);
}

/* Whether a change of segments waits for a sync, or a segment that was begun may yet be lost. */
static bool
sync_is_urgent(const struct log *log)
{
    const struct log_segment *segment = log->writing;
    if (segment == NULL || !segment->begun) return false;
    if (log->started < segment->number) return true;
    u64 end = log->changing ? log->change_end : segment == log->current ? 0 : segment->end;
    return segment->written_offset >= end && segment->synced_offset < end;
}

/* What a sync of segment that begins now makes durable: what a change copies, or moves, is safe
 * with the next one. */
static u64
sync_seq(const struct log *log, const struct log_segment *segment)
{
    if (log->changing) return MIN(log->durable_seq, log->change_seq);
    return segment == log->current ? log->durable_seq : MIN(log->durable_seq, log->tail_seq);
}

/* PERIODIC: syncs each interval, and at once when a change of segments waits for it. */
MAY_YIELD void
log_sync_fiber(void *arg)
{
    struct log *log = arg;
    while (!log->closing && !log->failed) {
        u64 interval = (u64)MAX(log->config.sync_interval_ms, 1u) * NS_PER_MS;
        if (!sync_is_urgent(log)) (void)fiber_queue_wait(&log->sync_wake, io_now_ns() + interval);
        struct log_segment *segment = log->writing;
        if (log->closing || log->failed || segment == NULL || !segment->begun ||
            segment->synced_offset >= segment->written_offset)
            continue;
        u64 offset = segment->written_offset;
        u64 seq = sync_seq(log, segment);
        status st = io_file_sync(segment->file);
        if (!ok(st)) {
            MARK("lsm.log.sync_failed");
            log_fail(log, st, "sync");
            break;
        }
        /* It may have ended meanwhile, but it stays: none after it has begun for sure. */
        segment->synced_offset = offset;
        log->synced_seq = MAX(log->synced_seq, seq);
        if (log->started < segment->number) {
            log->started = segment->number;
            fiber_queue_wake_all(&log->state_wake);
        }
        log_pump(log);
        if (!log->closing) io_timer_arm(&log->seal_timer, io_now_ns() + LOG_SEAL_AFTER_NS);
    }
    fiber_end(log);
}
