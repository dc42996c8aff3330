/* SPDX-License-Identifier: MIT
 *
 * piece_io.c -- see piece_io.h.
 *
 * Invariants
 *   P1  a buffer is not touched while its op is in flight (busy); buffers and ops lie in heap
 *       objects, never on a fiber's stack, and are not freed before the op has ended.
 *   P2  the first failure of a writer sticks: nothing is written after it, and the file goes.
 */
#include "lsm/piece_io.h"

#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "io/timer.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

/* The file is enlarged ahead of writing, by a share of what it has, so that neither small files
 * waste space nor large ones are enlarged often. */
#define ALLOCATE_STEP_MIN KIB(512)
#define ALLOCATE_STEP_MAX MIB(16)
#define CLOSE_RETRY_NS    (10 * NS_PER_MS)

#define PIECE_WINDOWS_MIN 2u
/* Of a stream. So many that the disk is busy while what came with the last turn is used up. */
#define PIECE_WINDOWS_MAX 8u
/* This part of the budget stays for others. */
#define GROW_LEAVES_PART 16u

/* ---- hash ---- */

struct piece_hash {
    XXH3_state_t state;
};

struct piece_hash *
piece_hash_new(struct budget *budget)
{
    struct piece_hash *hash = mem_alloc_aligned(budget, sizeof(*hash), 64);
    if (hash == NULL) return MARKED("lsm.piece_hash.no_memory", NULL);
    memset(hash, 0, sizeof(*hash));
    XXH3_64bits_reset(&hash->state);
    return hash;
}

void
piece_hash_free(struct piece_hash *hash, struct budget *budget)
{
    mem_free(budget, hash, sizeof(*hash));
}

void
piece_hash_add(struct piece_hash *hash, struct bytes bytes)
{
    if (bytes.size > 0) XXH3_64bits_update(&hash->state, bytes.data, bytes.size);
}

u64
piece_hash_value(const struct piece_hash *hash)
{
    return XXH3_64bits_digest(&hash->state);
}

/* ---- writing ---- */

static void
writer_free(struct piece_writer *writer)
{
    for (u32 i = 0; i < 2; i++) {
        CHECK(!writer->pieces[i].busy); /* P1 */
        mem_free(writer->budget, writer->pieces[i].data, writer->piece_bytes);
        writer->pieces[i].data = NULL;
    }
    piece_hash_free(writer->hash, writer->budget);
    writer->hash = NULL;
}

static bool
writer_buffers(struct piece_writer *writer)
{
    writer->hash = piece_hash_new(writer->budget);
    if (writer->hash == NULL) return false;
    writer->piece_bytes = BUGGIFY("lsm.piece_writer.tiny") ? IO_ALIGNMENT : PIECE_BYTES;
    for (;;) {
        writer->pieces[0].data =
            mem_alloc_aligned(writer->budget, writer->piece_bytes, IO_ALIGNMENT);
        writer->pieces[1].data =
            mem_alloc_aligned(writer->budget, writer->piece_bytes, IO_ALIGNMENT);
        if (writer->pieces[0].data != NULL && writer->pieces[1].data != NULL) return true;
        for (u32 i = 0; i < 2; i++) {
            mem_free(writer->budget, writer->pieces[i].data, writer->piece_bytes);
            writer->pieces[i].data = NULL;
        }
        MARK("lsm.piece_writer.no_memory");
        if (writer->piece_bytes <= PIECE_BYTES_MIN) break;
        writer->piece_bytes /= 4;
    }
    writer_free(writer);
    return false;
}

MAY_YIELD status
piece_writer_open(struct piece_writer *writer, const char *path, enum io_class io_class,
                  struct budget *budget)
{
    *writer = (struct piece_writer){.budget = budget, .io_class = io_class, .failed = ST_OK};
    size_t size = strlen(path) + 1;
    CHECK(size <= sizeof(writer->path));
    memcpy(writer->path, path, size);
    if (!writer_buffers(writer)) return ST_NO_MEMORY;
    status st = io_file_open(path, IO_OPEN_WRITE | IO_OPEN_CREATE, &writer->file);
    if (!ok(st)) {
        MARK("lsm.piece_writer.open_failed");
        writer_free(writer);
    }
    return st;
}

MAY_YIELD static status
piece_wait(struct piece_writer *writer, u32 piece)
{
    if (!writer->pieces[piece].busy) return writer->failed;
    status st = io_op_wait(&writer->pieces[piece].op);
    writer->pieces[piece].busy = false;
    if (!ok(st) && ok(writer->failed)) {
        MARK("lsm.piece_writer.write_failed");
        writer->failed = st; /* P2 */
    }
    return writer->failed;
}

/* Starts writing size bytes of the current piece and makes the other one current. last: the file
 * ends with them. */
MAY_YIELD static status
piece_submit(struct piece_writer *writer, u32 size, bool last)
{
    CHECK(size > 0 && size % IO_ALIGNMENT == 0);
    if (!ok(writer->failed)) return writer->failed;
    u64 end = writer->offset + size;
    if (end > writer->allocated_bytes) {
        u64 step = CLAMP(writer->offset / 2, ALLOCATE_STEP_MIN, ALLOCATE_STEP_MAX);
        u64 target = last ? end : align_up(end + step, IO_ALIGNMENT);
        status st = io_file_allocate(writer->file, target);
        if (!ok(st)) {
            MARK("lsm.piece_writer.allocate_failed");
            writer->failed = st;
            return st;
        }
        writer->allocated_bytes = target;
    }
    u32 piece = writer->current;
    memset(&writer->pieces[piece].op, 0, sizeof(writer->pieces[piece].op));
    writer->pieces[piece].busy = true;
    io_file_write_start(writer->file, &writer->pieces[piece].op, writer->io_class,
                        writer->pieces[piece].data, size, writer->offset, false);
    writer->offset = end;
    writer->current = 1 - piece;
    writer->fill = 0;
    return piece_wait(writer, writer->current);
}

MAY_YIELD status
piece_writer_append(struct piece_writer *writer, struct bytes bytes)
{
    if (!ok(writer->failed)) return writer->failed;
    piece_hash_add(writer->hash, bytes);
    while (bytes.size > 0) {
        u32 part = (u32)MIN(bytes.size, writer->piece_bytes - writer->fill);
        memcpy(writer->pieces[writer->current].data + writer->fill, bytes.data, part);
        writer->fill += part;
        bytes = BYTES(bytes.data + part, bytes.size - part);
        if (writer->fill < writer->piece_bytes) break;
        status st = piece_submit(writer, writer->fill, false);
        if (!ok(st)) return st;
    }
    return ST_OK;
}

MAY_YIELD status
piece_writer_zeros(struct piece_writer *writer, u64 count)
{
    static const u8 zeros[256];
    while (count > 0) {
        u64 part = MIN(count, sizeof(zeros));
        status st = piece_writer_append(writer, BYTES(zeros, part));
        if (!ok(st)) return st;
        count -= part;
    }
    return ST_OK;
}

u64
piece_writer_hash(const struct piece_writer *writer)
{
    return piece_hash_value(writer->hash);
}

MAY_YIELD static void
writer_remove(struct piece_writer *writer)
{
    for (u32 i = 0; i < 2; i++)
        (void)!ok(piece_wait(writer, i));
    io_file_close(writer->file);
    status st = io_file_unlink(writer->path);
    /* It is an orphan that nobody names: the next open collects it. */
    if (!ok(st)) {
        MARK("lsm.piece_writer.file_stays");
        log_warning("lsm", "unfinished file stays file=%s error=%s", writer->path, status_name(st));
    }
    writer_free(writer);
}

MAY_YIELD status
piece_writer_finish(struct piece_writer *writer)
{
    u64 size = piece_writer_offset(writer);
    CHECK(!ok(writer->failed) || size % IO_ALIGNMENT == 0);
    status st = writer->failed;
    if (ok(st) && writer->fill > 0) st = piece_submit(writer, writer->fill, true);
    for (u32 i = 0; i < 2; i++) {
        status waited = piece_wait(writer, i);
        if (ok(st)) st = waited;
    }
    if (ok(st) && writer->allocated_bytes != size) st = io_file_truncate(writer->file, size);
    if (ok(st)) st = io_file_sync(writer->file);
    if (!ok(st)) {
        MARK("lsm.piece_writer.finish_failed");
        writer_remove(writer);
        return st;
    }
    io_file_close(writer->file);
    writer_free(writer);
    return ST_OK;
}

MAY_YIELD void
piece_writer_abort(struct piece_writer *writer)
{
    writer_remove(writer);
}

/* ---- reading ---- */

struct window {
    struct piece_reader *reader;
    u8 *data;
    u64 offset;
    u32 size; /* 0: nothing in it */
    bool busy;
    status result;
    struct io_op op;
};

struct piece_reader {
    struct io_file *file;
    u64 file_bytes;
    struct budget *budget;
    enum io_class io_class;
    u32 window_bytes;
    u32 window_count; /* that have memory */
    u32 window_count_max;
    u32 busy_count;
    struct window windows[PIECE_WINDOWS_MAX];
    struct window *at;          /* read, and the caller looks at it; NULL: none */
    u64 alone_first, alone_end; /* a window that could not be read: what lies in it is read alone */
    u8 *joint;                  /* ranges that span windows are put together here */
    u32 joint_bytes;
    struct fiber_queue wake;
    bool closed;
};

static void
reader_free(struct piece_reader *reader)
{
    CHECK(reader->busy_count == 0); /* P1 */
    for (u32 i = 0; i < reader->window_count; i++)
        mem_free(reader->budget, reader->windows[i].data, reader->window_bytes);
    mem_free(reader->budget, reader->joint, reader->joint_bytes);
    mem_free(reader->budget, reader, sizeof(*reader));
}

static void
window_done(struct io_op *op)
{
    struct window *window = CONTAINER_OF(op, struct window, op);
    struct piece_reader *reader = window->reader;
    window->busy = false;
    window->result = op->result;
    reader->busy_count--;
    if (!reader->closed)
        fiber_queue_wake_all(&reader->wake);
    else if (reader->busy_count == 0)
        reader_free(reader);
}

static void
window_start(struct piece_reader *reader, struct window *window, u64 offset)
{
    CHECK(!window->busy && offset % IO_ALIGNMENT == 0);
    window->offset = offset;
    window->size = (u32)MIN(reader->window_bytes, reader->file_bytes - offset);
    memset(&window->op, 0, sizeof(window->op));
    window->op.done = window_done;
    window->busy = true;
    reader->busy_count++;
    io_file_read_start(reader->file, &window->op, reader->io_class, window->data, window->size,
                       offset);
}

MAY_YIELD static status
window_wait(struct window *window)
{
    while (window->busy)
        (void)!ok(fiber_queue_wait(&window->reader->wake, FIBER_FOREVER));
    if (ok(window->result)) return ST_OK;
    MARK("lsm.piece_reader.read_failed");
    window->reader->alone_first = window->offset;
    window->reader->alone_end = window->offset + window->size;
    window->size = 0;
    /* The manifest promised more bytes than there are. */
    if (!status_is(window->result, ST_END)) return window->result;
    return MARKED("lsm.piece_reader.cut_off", ST_CORRUPT);
}

static bool
window_add(struct piece_reader *reader)
{
    struct window *window = &reader->windows[reader->window_count];
    window->reader = reader;
    window->data = mem_alloc_aligned(reader->budget, reader->window_bytes, IO_ALIGNMENT);
    if (window->data == NULL) return MARKED("lsm.piece_reader.window_no_memory", false);
    reader->window_count++;
    return true;
}

status
piece_reader_open(struct io_file *file, u64 file_bytes, enum io_class io_class, u32 window_bytes,
                  struct budget *budget, struct piece_reader **out)
{
    CHECK(file_bytes % IO_ALIGNMENT == 0);
    window_bytes =
        (u32)CLAMP(align_up(window_bytes, IO_ALIGNMENT), PIECE_BYTES_MIN, LIMIT_IO_BYTES);
    window_bytes = (u32)MIN(window_bytes, MAX(file_bytes, IO_ALIGNMENT));
    if (BUGGIFY("lsm.piece_reader.tiny_windows")) window_bytes = IO_ALIGNMENT;
    struct piece_reader *reader = mem_alloc_zero(budget, sizeof(*reader));
    if (reader == NULL) return MARKED("lsm.piece_reader.self_no_memory", ST_NO_MEMORY);
    reader->file = file;
    reader->file_bytes = file_bytes;
    reader->budget = budget;
    reader->io_class = io_class;
    reader->window_bytes = window_bytes;
    reader->window_count_max = io_class == IO_CLASS_STREAM ? PIECE_WINDOWS_MAX : PIECE_WINDOWS_MIN;
    fiber_queue_init(&reader->wake);
    while (reader->window_count < PIECE_WINDOWS_MIN) {
        if (window_add(reader)) continue;
        MARK("lsm.piece_reader.no_memory");
        reader_free(reader);
        return ST_NO_MEMORY;
    }
    *out = reader;
    return ST_OK;
}

/* One window more for who goes on and on, while memory is not short. */
static void
reader_grow(struct piece_reader *reader)
{
    if (reader->window_count == reader->window_count_max) return;
    const struct budget *budget = reader->budget;
    bool scarce = budget_available(budget) < budget->limit_bytes / GROW_LEAVES_PART ||
                  BUGGIFY("lsm.piece_reader.stays_small");
    if (scarce || !window_add(reader)) {
        MARK("lsm.piece_reader.not_grown");
        reader->window_count_max = reader->window_count;
    }
}

static bool
window_holds(const struct window *window, u64 offset)
{
    return window->size > 0 && offset >= window->offset && offset - window->offset < window->size;
}

/* Reads on from where the windows that follow reader->at end. */
static void
read_ahead(struct piece_reader *reader)
{
    u64 next = reader->at->offset + reader->at->size;
    bool kept[PIECE_WINDOWS_MAX] = {false};
    kept[reader->at - reader->windows] = true;
    for (u32 i = 0; i < reader->window_count;) {
        const struct window *window = &reader->windows[i];
        if (kept[i] || window->size == 0 || window->offset != next) {
            i++;
            continue;
        }
        kept[i] = true;
        next += window->size;
        i = 0;
    }
    for (u32 i = 0; i < reader->window_count && next < reader->file_bytes; i++) {
        if (kept[i] || reader->windows[i].busy) continue;
        window_start(reader, &reader->windows[i], next);
        next += reader->windows[i].size;
    }
}

/* Some window that nothing is read into. */
MAY_YIELD static struct window *
window_idle(struct piece_reader *reader)
{
    for (;;) {
        for (u32 i = 0; i < reader->window_count; i++)
            if (!reader->windows[i].busy) return &reader->windows[i];
        (void)!ok(fiber_queue_wait(&reader->wake, FIBER_FOREVER));
    }
}

/* The window that holds offset, read; those after it are on their way then. */
MAY_YIELD static status
window_get(struct piece_reader *reader, u64 offset, struct window **out)
{
    if (reader->at != NULL && window_holds(reader->at, offset)) {
        *out = reader->at;
        return ST_OK;
    }
    struct window *hit = NULL;
    for (u32 i = 0; i < reader->window_count && hit == NULL; i++)
        if (window_holds(&reader->windows[i], offset)) hit = &reader->windows[i];
    bool jump = hit == NULL;
    reader->at = NULL;
    if (jump) {
        hit = window_idle(reader);
        window_start(reader, hit, align_down(offset, IO_ALIGNMENT));
    }
    status st = window_wait(hit);
    if (!ok(st)) return st;
    reader->at = hit;
    if (!jump) reader_grow(reader);
    read_ahead(reader);
    *out = hit;
    return ST_OK;
}

static status
joint_reserve(struct piece_reader *reader, u32 size)
{
    if (size <= reader->joint_bytes) return ST_OK;
    u32 bytes = (u32)align_up(size, IO_ALIGNMENT);
    u8 *joint = mem_alloc_aligned(reader->budget, bytes, IO_ALIGNMENT);
    if (joint == NULL) return MARKED("lsm.piece_reader.joint_no_memory", ST_NO_MEMORY);
    mem_free(reader->budget, reader->joint, reader->joint_bytes);
    reader->joint = joint;
    reader->joint_bytes = bytes;
    return ST_OK;
}

MAY_YIELD static status
windows_get(struct piece_reader *reader, u64 offset, u32 size, const u8 **out)
{
    struct window *window;
    status st = window_get(reader, offset, &window);
    if (!ok(st)) return st;
    u64 skip = offset - window->offset;
    if (size <= window->size - skip) {
        *out = window->data + skip;
        return ST_OK;
    }
    st = joint_reserve(reader, size);
    if (!ok(st)) return st;
    for (u32 copied = 0;;) {
        u32 part = (u32)MIN(size - copied, window->size - skip);
        memcpy(reader->joint + copied, window->data + skip, part);
        copied += part;
        if (copied == size) break;
        st = window_get(reader, offset + copied, &window);
        if (!ok(st)) return st;
        skip = offset + copied - window->offset;
    }
    *out = reader->joint;
    return ST_OK;
}

/* No more than what is wanted: one sector that cannot be read is not to take what lies around it
 * along. Slow, since nothing is read ahead; and the disk may need seconds for each time that it
 * fails, so who was here once does not try that window again. */
MAY_YIELD static status
alone_get(struct piece_reader *reader, u64 offset, u32 size, const u8 **out)
{
    u32 unit = io_file_read_unit(reader->file);
    u64 first = align_down(offset, unit), end = align_up(offset + size, unit);
    status st = joint_reserve(reader, (u32)(end - first));
    for (u64 at = first; ok(st) && at < end;) {
        u32 part = (u32)MIN(end - at, LIMIT_IO_BYTES);
        st = io_file_read(reader->file, reader->io_class, reader->joint + (at - first), part, at);
        at += part;
    }
    if (status_is(st, ST_END)) return MARKED("lsm.piece_reader.alone_cut_off", ST_CORRUPT);
    if (!ok(st)) return MARKED("lsm.piece_reader.alone_failed", st);
    *out = reader->joint + (offset - first);
    return ST_OK;
}

MAY_YIELD status
piece_reader_get(struct piece_reader *reader, u64 offset, u32 size, const u8 **out)
{
    CHECK(size > 0);
    if (offset > reader->file_bytes || size > reader->file_bytes - offset)
        return MARKED("lsm.piece_reader.outside", ST_CORRUPT);
    bool alone = offset >= reader->alone_first && offset < reader->alone_end;
    if (!alone) {
        status st = windows_get(reader, offset, size, out);
        if (!status_is(st, ST_IO_ERROR)) return st;
    }
    return alone_get(reader, offset, size, out);
}

/* Counts size in the shard's budget instead of in budget. */
static void
budget_move(struct budget *budget, struct budget **target, u64 size)
{
    budget_give(budget, size);
    if (*target != NULL && !budget_take(*target, size)) {
        MARK("lsm.piece_reader.not_counted");
        *target = NULL;
    }
}

void
piece_reader_close(struct piece_reader *reader)
{
    reader->closed = true;
    if (reader->busy_count == 0) {
        reader_free(reader);
        return;
    }
    MARK("lsm.piece_reader.closed_in_flight");
    struct budget *target = io_budget();
    u64 size =
        sizeof(*reader) + (u64)reader->window_count * reader->window_bytes + reader->joint_bytes;
    budget_move(reader->budget, &target, size);
    reader->budget = target;
}

MAY_YIELD status
piece_read(struct io_file *file, u64 file_bytes, enum io_class io_class, struct budget *budget,
           u8 *target, u64 offset, u64 size)
{
    if (offset > file_bytes || size > file_bytes - offset)
        return MARKED("lsm.piece_read.outside", ST_CORRUPT);
    u32 unit = io_file_read_unit(file);
    u64 first = align_down(offset, unit);
    u64 end = align_up(offset + size, unit);
    u32 buffer_bytes = (u32)MIN(end - first, PIECE_BYTES);
    u8 *buffer = mem_alloc_aligned(budget, buffer_bytes, IO_ALIGNMENT);
    if (buffer == NULL) return MARKED("lsm.piece_read.no_memory", ST_NO_MEMORY);
    status st = ST_OK;
    for (u64 at = first; at < end;) {
        u32 part = (u32)MIN(end - at, buffer_bytes);
        st = io_file_read(file, io_class, buffer, part, at);
        if (!ok(st)) break;
        u64 from = MAX(at, offset), to = MIN(at + part, offset + size);
        memcpy(target + (from - offset), buffer + (from - at), to - from);
        at += part;
    }
    mem_free(budget, buffer, buffer_bytes);
    return status_is(st, ST_END) ? MARKED("lsm.piece_read.cut_off", ST_CORRUPT) : st;
}

/* ---- pace ---- */

#define PACE_SLEEP_MIN_NS (1 * NS_PER_MS)
#define PACE_SLEEP_MAX_NS (100 * NS_PER_MS)

void
pace_init(struct pace *pace, u64 bytes_per_s)
{
    *pace = (struct pace){.bytes_per_s = bytes_per_s, .start_ns = io_now_ns()};
}

MAY_YIELD status
pace_add(struct pace *pace, u64 bytes)
{
    pace->bytes += bytes;
    if (fiber_should_yield()) fiber_yield();
    if (pace->bytes_per_s == 0)
        return io_stopping() ? MARKED("lsm.pace.canceled", ST_CANCELED) : ST_OK;
    for (;;) {
        if (io_stopping()) return MARKED("lsm.pace.canceled_waiting", ST_CANCELED);
        u64 due_ns =
            pace->start_ns + (u64)((unsigned __int128)pace->bytes * NS_PER_S / pace->bytes_per_s);
        u64 now_ns = io_now_ns();
        if (now_ns + PACE_SLEEP_MIN_NS >= due_ns) return ST_OK;
        /* In short naps, so that a stop is noticed. */
        fiber_sleep_ns(MIN(due_ns - now_ns, PACE_SLEEP_MAX_NS));
    }
}

/* ---- files that are closed later ---- */

struct file_closer {
    struct io_file *file;
    bool unlink;
    struct io_timer retry;
    char path[600];
};

struct file_closer *
file_closer_new(const char *path)
{
    struct file_closer *closer = mem_alloc_zero(io_budget(), sizeof(*closer));
    if (closer == NULL) return MARKED("lsm.file_closer.no_memory", NULL);
    size_t size = strlen(path) + 1;
    CHECK(size <= sizeof(closer->path));
    memcpy(closer->path, path, size);
    return closer;
}

void
file_closer_free(struct file_closer *closer)
{
    mem_free(io_budget(), closer, sizeof(*closer));
}

MAY_YIELD static void
closer_fiber(void *arg)
{
    struct file_closer *closer = arg;
    io_file_close(closer->file);
    if (closer->unlink) {
        struct io_file *file = NULL; /* to write: what is in it goes little by little */
        status st = io_file_open(closer->path, IO_OPEN_WRITE, &file);
        if (!ok(st)) {
            MARK("lsm.file_closer.not_opened");
            file = NULL;
        }
        st = io_file_unlink(closer->path);
        if (!ok(st) && !status_is(st, ST_NOT_FOUND)) {
            MARK("lsm.file_closer.file_stays");
            log_warning("lsm", "obsolete file stays file=%s error=%s", closer->path,
                        status_name(st));
        }
        if (ok(st) && file != NULL)
            io_file_close_removed(file);
        else
            io_file_close(file);
    }
    file_closer_free(closer);
    io_shard_release();
}

static void
closer_start(struct file_closer *closer)
{
    if (ok(fiber_spawn(FIBER_BACKGROUND, "close", closer_fiber, closer))) return;
    MARK("lsm.file_closer.no_fiber");
    io_timer_arm(&closer->retry, io_now_ns() + CLOSE_RETRY_NS);
}

static void
closer_retry(struct io_timer *timer)
{
    closer_start(CONTAINER_OF(timer, struct file_closer, retry));
}

void
file_closer_close(struct file_closer *closer, struct io_file *file, bool unlink)
{
    closer->file = file;
    closer->unlink = unlink;
    io_timer_init(&closer->retry, closer_retry);
    io_shard_hold(); /* while it waits for a fiber there is only its timer */
    closer_start(closer);
}
