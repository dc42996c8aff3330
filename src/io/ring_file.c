/* SPDX-License-Identifier: MIT
 *
 * ring_file.c -- files of the real backend.
 *
 * An operation waits in the queue of its class, takes a place, goes to the ring in pieces of at
 * most LIMIT_IO_BYTES one after the other, and gives the place back:
 *
 *     queued -> in flight -> (piece done: queued again) -> (durable: sync) -> finished
 *
 * Places. A device gets at most LIMIT_IO_IN_FLIGHT requests from all shards, since the kernel puts
 * the submitting thread to sleep above nr_requests. Half of the places belong to the shards in
 * equal parts, at least one each, so a shard that waits for a place always has a completion of its
 * own coming; the other half is common, one atomic counter.
 *
 * Shares. Start-time fair queueing over the classes: each dispatched piece advances its class's
 * virtual time by its cost over the class's share, and the class that is furthest behind is next.
 * A class that was idle starts at the present, so idleness is not saved up. Compaction and streams
 * are also capped in number, because a disk that is full of large writes answers a small read late,
 * and so is bulk: all shards together leave half of the places to small reads and the log.
 *
 * Extents. A direct write that spans two extents of a file cannot be done without waiting and falls
 * to a kernel worker, so pieces of a write end where an extent of the file does. Where that is, is
 * asked after each allocation and when a file is opened for writing.
 *
 * Names of paths in ":memory:" are in the shard's memfs; their operations are finished at once and
 * reported in the next turn. So are writes to the kernel's cache: ring_cached.c.
 */
#include "io/ring_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"

#define FILL_PIECE_BYTES (256u << 10)
/* What a request costs beside its bytes. */
#define REQUEST_COST_BYTES (16u << 10)

enum op_kind { OP_READ, OP_WRITE, OP_WRITE_SYNC, OP_WRITE_CACHED };

/* A larger read is bulk. */
#define READ_SMALL_BYTES (64u << 10)

/* So many reads do not wait for the end of the turn, which may be half a millisecond away: the disk
 * would have nothing to do meanwhile, and then everything at once. Fewer when it has little to do:
 * as many as are under way. A disk that answers all of a batch together has nothing under way then,
 * so the first read leaves alone, and the disk is at work again while the rest is made ready. */
#define READS_AT_ONCE 8u
#define READ_UNIT_MIN 512u

static const struct {
    u32 share;
    u32 in_flight_max;
} classes[IO_CLASS_COUNT] = {
    [IO_CLASS_LOG] = {1000, LIMIT_IO_IN_FLIGHT},
    [IO_CLASS_READ] = {800, LIMIT_IO_IN_FLIGHT},
    [IO_CLASS_BULK] = {400, LIMIT_IO_IN_FLIGHT / 2},
    [IO_CLASS_COMPACTION] = {200, 32},
    [IO_CLASS_STREAM] = {100, 16},
};
/* Bulk is bounded over all shards, in requests and in bytes. */
#define BULK_IN_FLIGHT_MIN 2u
#define BULK_BYTES_MAX     (4u << 20)

static ALIGNED(IO_ALIGNMENT) const u8 fill_zeros[FILL_PIECE_BYTES];

status
ring_errno_status(int error)
{
    switch (error) {
    case 0:
        return ST_OK;
    case ENOENT:
        return ST_NOT_FOUND;
    case EEXIST:
    case ENOTEMPTY:
        return ST_EXISTS;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return ST_NO_SPACE;
    case ENOMEM:
    case EMFILE: /* descriptors, too, come back when others are done with them: no fault of the disk */
    case ENFILE:
        return ST_NO_MEMORY;
    case EACCES:
    case EPERM:
        return ST_DENIED;
    case EROFS:
        return ST_MOUNTED_READ_ONLY;
    case ENOTDIR:
        return ST_NOT_DIRECTORY;
    case EINVAL:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case EXDEV:
        return ST_INVALID;
    default:
        return ST_IO_ERROR;
    }
}

/* ---- places ---- */

static u32
places_own(const struct ring_shard *shard)
{
    return MAX(1u, LIMIT_IO_IN_FLIGHT / (2 * shard->core.count));
}

static bool
place_take(struct ring_shard *shard)
{
    u32 own = places_own(shard);
    if (shard->disk_in_flight - shard->disk_shared < own) {
        shard->disk_in_flight++;
        return true;
    }
    u32 common = LIMIT_IO_IN_FLIGHT - MIN(LIMIT_IO_IN_FLIGHT, own * shard->core.count);
    _Atomic u32 *taken = &shard->host->disk_common;
    if (atomic_fetch_add_explicit(taken, 1, memory_order_relaxed) >= common) {
        MARK("io.ring_file.no_place");
        atomic_fetch_sub_explicit(taken, 1, memory_order_relaxed);
        return false;
    }
    shard->disk_in_flight++;
    shard->disk_shared++;
    return true;
}

static void
place_give(struct ring_shard *shard)
{
    shard->disk_in_flight--;
    if (shard->disk_shared == 0) return;
    shard->disk_shared--;
    atomic_fetch_sub_explicit(&shard->host->disk_common, 1, memory_order_relaxed);
}

/* ---- queueing ---- */

static void
op_enqueue(struct ring_shard *shard, struct io_op *op, bool first)
{
    struct ring_disk_class *class = &shard->disk[op->class];
    if (list_empty(&class->queue) && class->virtual_time < shard->disk_virtual_time)
        class->virtual_time = shard->disk_virtual_time;
    if (first)
        list_push_front(&class->queue, &op->link);
    else
        list_push_back(&class->queue, &op->link);
    shard->disk_queued++;
}

static bool
class_full(const struct ring_shard *shard, u32 index)
{
    const struct ring_disk_class *class = &shard->disk[index];
    if (index != IO_CLASS_BULK) return class->in_flight >= classes[index].in_flight_max;
    u32 share = classes[index].in_flight_max / shard->core.count;
    return class->in_flight >= MAX(share, BULK_IN_FLIGHT_MIN) ||
           class->read_bytes >= BULK_BYTES_MAX / shard->core.count;
}

static struct ring_disk_class *
class_next(struct ring_shard *shard, u32 *index_out)
{
    struct ring_disk_class *best = NULL;
    for (u32 i = 0; i < IO_CLASS_COUNT; i++) {
        struct ring_disk_class *class = &shard->disk[i];
        if (list_empty(&class->queue) || class_full(shard, i)) continue;
        if (best != NULL && best->virtual_time <= class->virtual_time) continue;
        best = class;
        *index_out = i;
    }
    return best;
}

static u32
op_piece(const struct io_op *op)
{
    u32 piece = MIN(op->size - op->transferred, LIMIT_IO_BYTES);
    if (op->kind != OP_WRITE) return piece;
    const struct io_file *file = op->file;
    u64 from = op->offset + op->transferred;
    for (u32 i = 0; i < file->extent_end_count; i++) {
        u64 end = file->extent_ends[i];
        if (end <= from) continue;
        return end - from < piece ? (u32)(end - from) : piece;
    }
    return piece;
}

/* Asks where the file's extents end. What cannot be known only costs a worker's time later. */
static void
file_extents_read(struct io_file *file)
{
    union {
        struct fiemap map;
        u8 bytes[sizeof(struct fiemap) + (RING_FILE_EXTENTS + 1) * sizeof(struct fiemap_extent)];
    } ask = {.map = {.fm_length = FIEMAP_MAX_OFFSET, .fm_extent_count = RING_FILE_EXTENTS + 1}};
    file->extent_end_count = 0;
    if (ioctl(file->fd, FS_IOC_FIEMAP, &ask.map) != 0) {
        MARK("io.ring_file.extents_unknown");
        return;
    }
    const struct fiemap_extent *extents = ask.map.fm_extents;
    for (u32 i = 1; i < ask.map.fm_mapped_extents; i++) {
        u64 at = extents[i].fe_logical;
        /* Of one stretch on the disk, and both written or both not: one extent to the kernel. */
        const struct fiemap_extent *before = &extents[i - 1];
        bool joined = before->fe_logical + before->fe_length == at &&
                      before->fe_physical + before->fe_length == extents[i].fe_physical &&
                      ((before->fe_flags ^ extents[i].fe_flags) & FIEMAP_EXTENT_UNWRITTEN) == 0;
        if (!joined && at % IO_ALIGNMENT == 0) file->extent_ends[file->extent_end_count++] = at;
    }
}

u64
ring_op_user_data(const struct io_op *op)
{
    return (u64)(uintptr_t)op | 1;
}

static void
op_submit(struct ring_shard *shard, struct io_op *op)
{
    struct io_file *file = op->file;
    struct io_uring_sqe *sqe = ring_sqe(shard);
    u8 *data = (u8 *)op->buffer + op->transferred;
    u64 offset = op->offset + op->transferred;
    switch ((enum op_kind)op->kind) {
    case OP_READ:
        io_uring_prep_read(sqe, file->fd, data, op_piece(op), offset);
        break;
    case OP_WRITE:
        io_uring_prep_write(sqe, file->fd, data, op_piece(op), offset);
        if (op->durable && file->dsync) sqe->rw_flags = RWF_DSYNC;
        break;
    case OP_WRITE_SYNC:
        io_uring_prep_fsync(sqe, file->fd, IORING_FSYNC_DATASYNC);
        break;
    case OP_WRITE_CACHED:
        CHECK(!"it does not come to the ring");
    }
    ring_sqe_file(sqe, file->fd, file->slot);
    io_uring_sqe_set_data64(sqe, ring_op_user_data(op));
    shard->requests_active++;
}

void
ring_file_dispatch(struct ring_shard *shard)
{
    while (shard->disk_queued > 0) {
        u32 index = 0;
        struct ring_disk_class *class = class_next(shard, &index);
        if (class == NULL || !place_take(shard)) return;
        struct io_op *op = list_entry(list_pop_front(&class->queue), struct io_op, link);
        shard->disk_queued--;
        class->in_flight++;
        if (op->kind == OP_READ) class->read_bytes += op_piece(op);
        shard->disk_virtual_time = class->virtual_time;
        class->virtual_time +=
            (u64)(op_piece(op) + REQUEST_COST_BYTES) * 1000 / classes[index].share;
        op_submit(shard, op);
    }
}

/* ---- completion ---- */

static void
op_finish(struct io_op *op, status result)
{
    struct io_file *file = op->file;
    struct io_stats *stats = &file->shard->core.stats;
    bool read = op->kind == OP_READ;
    if (ok(result)) {
        if (read) {
            stats->reads++;
            stats->read_bytes += op->size;
        } else {
            stats->writes++;
            stats->write_bytes += op->size;
        }
    } else if (!status_is(result, ST_END)) {
        if (read)
            stats->read_errors++;
        else
            stats->write_errors++;
    }
    op->result = result;
    op->finished = true;
    file->in_flight--;
    if (file->in_flight == 0) fiber_queue_wake_all(&file->idle_queue);
    if (op->done != NULL)
        op->done(op); /* may free op */
    else
        fiber_queue_wake_all(&op->waiters);
}

static status
op_error(const struct io_op *op, int error)
{
    MARK("io.ring_file.failed");
    static const char *const names[] = {"read", "write", "sync"};
    log_error("io", "%s failed path=%s offset=%llu size=%u error=%s", names[op->kind],
              op->file->path, (unsigned long long)op->offset, op->size, strerror(error));
    status st = ring_errno_status(error);
    /* We check alignment ourselves, so whatever else the kernel dislikes is the disk's fault. */
    return status_is(st, ST_NO_SPACE) || status_is(st, ST_NO_MEMORY) ? st : ST_IO_ERROR;
}

/* What the next request of the operation has to begin at a multiple of. */
static u32
op_unit(const struct io_op *op)
{
    if (!op->file->direct) return 1;
    return op->kind == OP_READ ? op->file->read_unit : (u32)IO_ALIGNMENT;
}

/* Half of what was moved: up to the end of a block, or its first byte more, or its last one less.
 */
static i32
stopped_short(const struct io_op *op, i32 moved)
{
    static const u32 beyond[] = {0, 1, IO_ALIGNMENT - 1};
    u32 blocks = MAX(1u, (u32)moved / 2 / (u32)IO_ALIGNMENT);
    u32 which = op->transferred / (u32)IO_ALIGNMENT % ARRAY_COUNT(beyond);
    u32 stop = MIN((u32)moved, blocks * (u32)IO_ALIGNMENT + beyond[which]);
    /* What was read beyond must not be there already when it is asked for again. */
    if (op->kind == OP_READ)
        memset((u8 *)op->buffer + op->transferred + stop, 0xA5, (u32)moved - stop);
    return (i32)stop;
}

void
ring_file_complete(struct ring_shard *shard, struct io_op *op, i32 result)
{
    place_give(shard);
    shard->disk[op->class].in_flight--;
    if (op->kind == OP_READ) shard->disk[op->class].read_bytes -= op_piece(op);
    if (result == -EINTR || result == -EAGAIN) {
        MARK("io.ring_file.again");
        op_enqueue(shard, op, true);
        return;
    }
    if (result > (i32)IO_ALIGNMENT && BUGGIFY("io.ring_file.stopped_short"))
        result = stopped_short(op, result);
    if (result < 0) {
        op_finish(op, op_error(op, -result));
        return;
    }
    if (op->kind == OP_WRITE_SYNC) {
        shard->core.stats.syncs++;
        op_finish(op, ST_OK);
        return;
    }
    if (!core_op_advance(op, (u32)result, op_unit(op))) {
        if (op->kind == OP_READ)
            op_finish(op, MARKED("io.ring_file.read_past_end", ST_END));
        else
            op_finish(op, op_error(op, result == 0 ? EIO : EINVAL));
        return;
    }
    if (op->transferred == op->size) {
        if (op->kind == OP_READ || !op->durable || op->file->dsync) {
            if (op->kind == OP_WRITE && op->durable) shard->core.stats.syncs++;
            op_finish(op, ST_OK);
            return;
        }
        MARK("io.ring_file.synced_apart");
        op->kind = OP_WRITE_SYNC;
    }
    op_enqueue(shard, op, true);
}

/* ---- operations that are finished at once ---- */

static void
done_report(struct io_task *task)
{
    struct ring_shard *shard = CONTAINER_OF(task, struct ring_shard, report_task);
    shard->report_task_posted = false;
    struct list batch;
    list_init(&batch);
    list_splice_back(&batch, &shard->done_ops);
    struct list *link;
    while ((link = list_pop_front(&batch)) != NULL) {
        struct io_op *op = list_entry(link, struct io_op, link);
        op_finish(op, op->result);
    }
}

static void
op_report(struct io_op *op, status result)
{
    struct ring_shard *shard = op->file->shard;
    op->result = result;
    list_push_back(&shard->done_ops, &op->link);
    if (shard->report_task_posted) return;
    shard->report_task_posted = true;
    core_task_post(&shard->core, &shard->report_task);
}

static void
memory_start(struct io_op *op)
{
    struct memfs_file *memory = op->file->memory;
    op_report(op, op->kind == OP_READ ? memfs_read(memory, op->buffer, op->size, op->offset)
                                      : memfs_write(memory, op->buffer, op->size, op->offset));
}

/* False: it goes to the disk like any other. */
static bool
cached_start(struct io_op *op)
{
    int result = ring_cached_write(op->file, op->buffer, op->size, op->offset);
    if (result == -EOPNOTSUPP) return false;
    op_report(op, result == 0 ? ST_OK : op_error(op, -result));
    return true;
}

/* ---- starting ---- */

static bool
reads_leave(const struct ring_shard *shard)
{
    return shard->disk_queued >= CLAMP(shard->disk_in_flight, 1u, READS_AT_ONCE);
}

static void
op_start(struct io_file *file, struct io_op *op, enum op_kind kind, enum io_class class,
         void *buffer, u32 size, u64 offset, bool durable)
{
    CHECK(&file->shard->core == io_current);
    CHECK(!file->closing);
    CHECK(size > 0);
    u32 unit = kind == OP_READ ? file->read_unit : IO_ALIGNMENT;
    CHECK(size % unit == 0 && offset % unit == 0);
    CHECK((uintptr_t)buffer % IO_ALIGNMENT == 0);
    CHECK(offset <= (u64)INT64_MAX - size);
    op->file = file;
    op->buffer = buffer;
    op->offset = offset;
    op->size = size;
    op->transferred = 0;
    op->kind = (u8)(kind == OP_WRITE_CACHED ? OP_WRITE : kind);
    if (class == IO_CLASS_READ && kind == OP_READ &&
        (size > READ_SMALL_BYTES || fiber_class_self() == FIBER_BULK))
        class = IO_CLASS_BULK;
    op->class = (u8) class;
    op->durable = durable;
    op->finished = false;
    op->start_ns = file->shard->core.now_ns;
    fiber_queue_init(&op->waiters);
    file->in_flight++;
    if (file->memory != NULL) {
        memory_start(op);
        return;
    }
    if (kind == OP_WRITE_CACHED && cached_start(op)) return;
    op_enqueue(file->shard, op, false);
    /* All writers wait for the log: not behind the fibers of this turn, nor its replies. */
    bool at_once = class == IO_CLASS_LOG && kind != OP_READ;
    if (at_once || (kind == OP_READ && reads_leave(file->shard))) {
        ring_file_dispatch(file->shard);
        ring_submit_early(file->shard);
    }
}

void
io_file_read_start(struct io_file *file, struct io_op *op, enum io_class class, void *buffer,
                   u32 size, u64 offset)
{
    op_start(file, op, OP_READ, class, buffer, size, offset, false);
}

void
io_file_write_start(struct io_file *file, struct io_op *op, enum io_class class, const void *buffer,
                    u32 size, u64 offset, bool durable)
{
    /* Only read from: the field is shared with reads. */
    op_start(file, op, OP_WRITE, class, (void *)(uintptr_t)buffer, size, offset, durable);
}

void
io_file_write_cached_start(struct io_file *file, struct io_op *op, enum io_class class,
                           const void *buffer, u32 size, u64 offset)
{
    op_start(file, op, OP_WRITE_CACHED, class, (void *)(uintptr_t)buffer, size, offset, false);
}

MAY_YIELD status
io_op_wait(struct io_op *op)
{
    CHECK(op->done == NULL);
    while (!op->finished)
        (void)fiber_queue_wait(&op->waiters, FIBER_FOREVER);
    return op->result;
}

MAY_YIELD status
io_file_read(struct io_file *file, enum io_class class, void *buffer, u32 size, u64 offset)
{
    struct io_op op = {.done = NULL};
    io_file_read_start(file, &op, class, buffer, size, offset);
    return io_op_wait(&op);
}

MAY_YIELD status
io_file_write(struct io_file *file, enum io_class class, const void *buffer, u32 size, u64 offset,
              bool durable)
{
    struct io_op op = {.done = NULL};
    io_file_write_start(file, &op, class, buffer, size, offset, durable);
    return io_op_wait(&op);
}

/* ---- opening and closing ---- */

static struct io_file *
file_new(struct ring_shard *shard, const char *path)
{
    size_t size = sizeof(struct io_file) + strlen(path) + 1;
    struct io_file *file = mem_alloc_zero(&shard->core.budget, size);
    if (file == NULL) return NULL;
    file->shard = shard;
    file->fd = -1;
    file->slot = -1;
    file->cached.fd = -1;
    file->read_unit = READ_UNIT_MIN;
    file->size_bytes = size;
    memcpy(file->path, path, strlen(path) + 1);
    fiber_queue_init(&file->idle_queue);
    list_push_back(&shard->files, &file->link);
    return file;
}

static void
file_free(struct io_file *file)
{
    list_del(&file->link);
    mem_free(&file->shard->core.budget, file, file->size_bytes);
}

/* Returns the descriptor or a negative errno. */
MAY_YIELD i32
ring_open_wait(struct ring_shard *shard, const char *path, int flags)
{
    for (;;) {
        struct ring_wait wait;
        struct io_uring_sqe *sqe = ring_sqe(shard);
        io_uring_prep_openat(sqe, AT_FDCWD, path, flags, 0640);
        ring_wait_arm(shard, sqe, &wait);
        i32 result = ring_wait_for(&wait);
        if (result != -EINTR && result != -EAGAIN) return result;
        fiber_yield();
    }
}

MAY_YIELD void
ring_close_wait(struct ring_shard *shard, int fd)
{
    struct ring_wait wait;
    struct io_uring_sqe *sqe = ring_sqe(shard);
    io_uring_prep_close(sqe, fd);
    /* The last close of a removed file frees its blocks, which takes its time: not here. */
    sqe->flags |= IOSQE_ASYNC;
    ring_wait_arm(shard, sqe, &wait);
    i32 result = ring_wait_for(&wait);
    if (result < 0 && result != -EINTR) {
        MARK("io.ring_file.close_failed");
        log_warning("io", "close failed error=%s", strerror(-result));
    }
}

/* Kernels before 6.1 do not say, and headers may not know how to ask. */
static u32
read_unit_of(int fd)
{
#ifdef STATX_DIOALIGN
    struct statx statx_of;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &statx_of) == 0 &&
        (statx_of.stx_mask & STATX_DIOALIGN) != 0) {
        u32 unit = statx_of.stx_dio_offset_align;
        if (unit != 0 && (unit & (unit - 1)) == 0 && unit <= IO_ALIGNMENT &&
            statx_of.stx_dio_mem_align <= READ_UNIT_MIN)
            return MAX(unit, READ_UNIT_MIN);
    }
#else
    (void)fd;
#endif
    return IO_ALIGNMENT;
}

/* Of others the caller knows what to make, and says so. */
static bool
open_failure_is_told(status st)
{
    static _Thread_local u64 told_ns;
    if (status_is(st, ST_NO_MEMORY)) /* who needs a descriptor asks again and again */
        return log_seldom(&told_ns, io_now_ns());
    return status_is_io(st) || status_is(st, ST_INVALID) || status_is(st, ST_NOT_DIRECTORY);
}

MAY_YIELD static status
file_open_disk(struct io_file *file, u32 flags)
{
    struct ring_shard *shard = file->shard;
    ring_dir_locks_hold(shard);
    int mode = O_CLOEXEC | O_NOCTTY; /* not O_NONBLOCK: the ring would answer EAGAIN */
    mode |= flags & IO_OPEN_WRITE ? O_RDWR : O_RDONLY;
    if (flags & IO_OPEN_CREATE) mode |= O_CREAT | O_EXCL;
    file->direct = true;
    i32 fd = ring_open_wait(shard, file->path, mode | O_DIRECT);
    if (fd == -EINVAL) {
        MARK("io.ring_file.not_direct");
        file->direct = false;
        /* The failed open may have made the name already. */
        fd = ring_open_wait(shard, file->path, mode & ~O_EXCL);
    }
    if (fd < 0) {
        MARK("io.ring_file.not_opened");
        status st = ring_errno_status(-fd);
        if (open_failure_is_told(st))
            log_error("io", "open failed path=%s error=%s", file->path, strerror(-fd));
        return st;
    }
    struct stat stat;
    if (fstat(fd, &stat) != 0 || !S_ISREG(stat.st_mode)) {
        MARK("io.ring_file.no_file");
        ring_close_wait(shard, fd);
        return ST_INVALID;
    }
    static _Atomic bool warned;
    if (!file->direct && !atomic_exchange(&warned, true))
        log_warning("io", "no direct I/O on this file system, using the page cache path=%s",
                    file->path);
    file->fd = fd;
    if (file->direct) file->read_unit = read_unit_of(fd);
    file->slot = ring_slot_take(shard, fd);
    file->dsync = (flags & IO_OPEN_WRITE) && ring_device_dsync(shard, fd, file->path);
    if ((flags & IO_OPEN_WRITE) && stat.st_size > 0) file_extents_read(file);
    return ST_OK;
}

u32
io_file_read_unit(const struct io_file *file)
{
    return file->read_unit;
}

MAY_YIELD status
io_file_open(const char *path, u32 flags, struct io_file **out)
{
    struct ring_shard *shard = ring_current();
    struct io_file *file = file_new(shard, path);
    if (file == NULL) return MARKED("io.ring_file.no_memory", ST_NO_MEMORY);
    status st = memfs_path(path) ? memfs_open(&shard->memfs, path, flags, &file->memory)
                                 : file_open_disk(file, flags);
    if (!ok(st)) {
        file_free(file);
        return st;
    }
    *out = file;
    return ST_OK;
}

MAY_YIELD void
io_file_close(struct io_file *file)
{
    if (file == NULL) return;
    struct ring_shard *shard = file->shard;
    CHECK(&shard->core == io_current);
    CHECK(!file->closing);
    file->closing = true;
    while (file->in_flight > 0)
        (void)fiber_queue_wait(&file->idle_queue, FIBER_FOREVER);
    if (file->memory != NULL) {
        memfs_close(file->memory);
    } else {
        ring_slot_give(shard, file->slot);
        ring_cached_close(file);
        ring_close_wait(shard, file->fd);
    }
    file_free(file);
}

/* ---- the whole file ---- */

MAY_YIELD static status
file_fsync(struct io_file *file, u32 flags)
{
    struct ring_shard *shard = file->shard;
    struct ring_wait wait;
    i32 result;
    file->in_flight++;
    do {
        struct io_uring_sqe *sqe = ring_sqe(shard);
        io_uring_prep_fsync(sqe, file->fd, flags);
        ring_sqe_file(sqe, file->fd, file->slot);
        ring_wait_arm(shard, sqe, &wait);
        result = ring_wait_for(&wait);
        /* EINTR: the sync did not take place. Any other error is final: the kernel tells it once.
         */
    } while (result == -EINTR);
    if (--file->in_flight == 0) fiber_queue_wake_all(&file->idle_queue);
    shard->core.stats.syncs++;
    if (result >= 0) return ST_OK;
    MARK("io.ring_file.sync_failed");
    shard->core.stats.write_errors++;
    log_error("io", "sync failed path=%s error=%s", file->path, strerror(-result));
    status st = ring_errno_status(-result);
    return status_is(st, ST_NO_SPACE) ? st : ST_IO_ERROR;
}

MAY_YIELD status
io_file_sync(struct io_file *file)
{
    if (file->memory != NULL) return ST_OK;
    u64 cached_bytes = file->cached.dirty_bytes, cached_end = file->cached.end;
    status st = file_fsync(file, IORING_FSYNC_DATASYNC);
    if (ok(st) && cached_bytes > 0) ring_cached_synced(file, cached_bytes, cached_end);
    return st;
}

MAY_YIELD status
io_file_size(struct io_file *file, u64 *size_out)
{
    if (file->memory != NULL) {
        *size_out = memfs_size(file->memory);
        return ST_OK;
    }
    struct stat stat;
    if (fstat(file->fd, &stat) != 0)
        return MARKED("io.ring_file.size_unknown", ring_errno_status(errno));
    *size_out = (u64)stat.st_size;
    return ST_OK;
}

MAY_YIELD status
io_file_truncate(struct io_file *file, u64 size)
{
    if (file->memory != NULL) return memfs_truncate(file->memory, size);
    if (size > INT64_MAX) return ST_INVALID;
    struct ring_shard *shard = file->shard;
    struct ring_wait wait;
    i32 result;
    file->in_flight++;
    do {
        struct io_uring_sqe *sqe = ring_sqe(shard);
        io_uring_prep_rw(URING_OP_FTRUNCATE, sqe, file->fd, NULL, 0, size);
        ring_sqe_file(sqe, file->fd, file->slot);
        ring_wait_arm(shard, sqe, &wait);
        result = ring_wait_for(&wait);
    } while (result == -EINTR || result == -EAGAIN);
    /* An older kernel does not know it, and blocks us for a moment. */
    if (result == -EINVAL) {
        MARK("io.ring_file.truncated_apart");
        result = ftruncate(file->fd, (off_t)size) == 0 ? 0 : -errno;
    }
    if (--file->in_flight == 0) fiber_queue_wake_all(&file->idle_queue);
    status st = ring_errno_status(-result);
    if (!ok(st)) MARK("io.ring_file.not_truncated");
    return st;
}

MAY_YIELD status
io_file_allocate(struct io_file *file, u64 size)
{
    if (file->memory != NULL) return memfs_allocate(file->memory, size);
    if (size == 0 || size > INT64_MAX) return ST_INVALID;
    struct ring_shard *shard = file->shard;
    struct ring_wait wait;
    i32 result;
    file->in_flight++;
    do {
        struct io_uring_sqe *sqe = ring_sqe(shard);
        io_uring_prep_fallocate(sqe, file->fd, 0, 0, (off_t)size);
        ring_sqe_file(sqe, file->fd, file->slot);
        ring_wait_arm(shard, sqe, &wait);
        result = ring_wait_for(&wait);
    } while (result == -EINTR || result == -EAGAIN);
    if (--file->in_flight == 0) fiber_queue_wake_all(&file->idle_queue);
    if (result == -EOPNOTSUPP) {
        MARK("io.ring_file.not_allocated");
        u64 now = 0;
        status st = io_file_size(file, &now);
        if (!ok(st)) return st;
        return now >= size ? ST_OK : io_file_truncate(file, size);
    }
    if (result == 0) file_extents_read(file);
    status st = ring_errno_status(-result);
    if (!ok(st)) MARK("io.ring_file.no_room");
    return st;
}

MAY_YIELD status
io_file_fill(struct io_file *file, u64 size)
{
    if (file->memory != NULL) return memfs_fill(file->memory, size);
    CHECK(size % IO_ALIGNMENT == 0);
    status st = io_file_allocate(file, size);
    for (u64 offset = 0; ok(st) && offset < size; offset += FILL_PIECE_BYTES) {
        u32 piece = (u32)MIN(size - offset, FILL_PIECE_BYTES);
        st = io_file_write(file, IO_CLASS_STREAM, fill_zeros, piece, offset, false);
    }
    if (!ok(st)) return st;
    return file_fsync(file, 0); /* sizes and extents, too */
}

/* ---- removed files ---- */

/* A file system that discards tells the disk what was freed when its journal commits, all of it at
 * once: 60 MiB were seen to keep log writes and reads waiting for 100 ms. */
#define VACATE_STEP_BYTES ((u64)MIB(1))
#define VACATE_STEP_NS    (8 * NS_PER_MS)
#define VACATE_NAP_NS     (100 * NS_PER_MS)
/* Each waits on a fiber: what comes beyond these goes at once. */
#define VACATE_FILES_MAX 16u
/* So does everything on a disk with less room than that: somebody may wait for it. */
#define VACATE_FREE_BYTES ((u64)GIB(2))

/* Waits for the next step's turn among all removed files of the shard. False: no time for it. */
MAY_YIELD static bool
vacate_wait(struct ring_shard *shard)
{
    u64 at_ns = MAX(shard->core.now_ns, shard->vacate_ns);
    shard->vacate_ns = at_ns + VACATE_STEP_NS;
    while (!shard->core.stopping && shard->core.now_ns < at_ns)
        fiber_sleep_ns(MIN(at_ns - shard->core.now_ns, VACATE_NAP_NS));
    return !shard->core.stopping;
}

/* How much there is to give back slowly. */
static u64
vacate_size(const struct io_file *file)
{
    struct stat stat;
    struct statvfs disk;
    if (file->memory != NULL) return 0;
    if (file->shard->vacating >= VACATE_FILES_MAX) return MARKED("io.ring_file.many_removed", 0);
    if (fstat(file->fd, &stat) != 0 || fstatvfs(file->fd, &disk) != 0) return 0;
    if (stat.st_nlink > 0) return 0; /* a table that two stores share */
    if ((u64)disk.f_bavail * disk.f_frsize < VACATE_FREE_BYTES) return 0;
    return (u64)stat.st_size;
}

MAY_YIELD void
io_file_close_removed(struct io_file *file)
{
    struct ring_shard *shard = file->shard;
    u64 size = vacate_size(file);
    if (size > VACATE_STEP_BYTES) {
        shard->vacating++;
        while (size > VACATE_STEP_BYTES) {
            size = align_down(size - 1, VACATE_STEP_BYTES);
            if (!vacate_wait(shard) || !ok(io_file_truncate(file, size))) {
                MARK("io.ring_file.removed_at_once");
                break;
            }
        }
        shard->vacating--;
    }
    io_file_close(file);
}

/* ---- the backend ---- */

void
ring_file_init(struct ring_shard *shard)
{
    memfs_init(&shard->memfs, &shard->core.budget, UINT64_MAX);
    list_init(&shard->files);
    list_init(&shard->done_ops);
    shard->report_task.run = done_report;
    for (u32 i = 0; i < IO_CLASS_COUNT; i++)
        list_init(&shard->disk[i].queue);
}

void
ring_file_deinit(struct ring_shard *shard)
{
    struct list *link;
    while ((link = list_first(&shard->files)) != NULL) {
        struct io_file *file = list_entry(link, struct io_file, link);
        MARK("io.ring_file.left_open");
        log_warning("io", "file left open at the end path=%s", file->path);
        if (file->memory != NULL) {
            memfs_close(file->memory);
        } else {
            if (file->cached.fd >= 0) close(file->cached.fd);
            close(file->fd);
        }
        file_free(file);
    }
    memfs_deinit(&shard->memfs);
}
