/* SPDX-License-Identifier: MIT
 *
 * ring_cached.c -- writes that go to the kernel's cache, of files that are otherwise direct.
 *
 *   write -> copied: survives the process
 *         -> pushed: on its way to the disk
 *         -> io_file_sync: durable, and dropped from the cache
 *
 * A log that is synced at intervals promises that much and no more, and a copy takes microseconds
 * where a disk takes a hundred of them, or ten thousand while it is busy with something else. The
 * file is opened a second time, without O_DIRECT; both descriptors see the same bytes.
 *
 * Pushing. A sync that found all of an interval's bytes in the cache would keep its caller, and
 * everybody else on the disk, waiting for them. So each CACHED_PUSH_BYTES are sent on their way by
 * a kernel worker, one at a time.
 *
 * Bounds. Beyond CACHED_DIRTY_BYTES that no sync has taken, writes go to the disk directly: whoever
 * writes faster than the disk does is held up by it, and the kernel, which would hold up the
 * thread, never gets to that. What was synced is dropped, so that the cache stays small, and
 * because a direct access to what it holds would fall to a kernel worker.
 */
#include "io/ring_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"

#define CACHED_PUSH_BYTES  ((u64)KIB(256))
#define CACHED_DIRTY_BYTES ((u64)MIB(32))

static bool
cached_open(struct io_file *file)
{
    struct ring_cached *cached = &file->cached;
    if (cached->fd >= 0) return true;
    if (cached->refused) return false;
    char path[64]; /* by descriptor: the name may have changed */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file->fd);
    cached->fd = open(path, O_RDWR | O_CLOEXEC);
    if (cached->fd >= 0) return true;
    cached->refused = true;
    MARK("io.ring_cached.not_opened");
    log_warning("io", "log is written directly, not through the cache path=%s error=%s", file->path,
                strerror(errno));
    return false;
}

static void cached_push(struct io_file *file);

static void
push_complete(struct ring_req *req, i32 result, u32 flags)
{
    struct io_file *file = CONTAINER_OF(req, struct io_file, cached.push_req);
    /* A failure is for the sync to tell: the kernel keeps it. */
    file->in_flight--;
    if (file->in_flight == 0) fiber_queue_wake_all(&file->idle_queue);
    if (!file->closing) cached_push(file);
}

static void
cached_push(struct io_file *file)
{
    struct ring_cached *cached = &file->cached;
    u64 bytes = cached->push_end - cached->push_from;
    if (cached->push_req.active || bytes < CACHED_PUSH_BYTES) return;
    struct io_uring_sqe *sqe = ring_sqe(file->shard);
    io_uring_prep_sync_file_range(sqe, cached->fd, (unsigned)bytes, cached->push_from,
                                  SYNC_FILE_RANGE_WRITE);
    cached->push_req.complete = push_complete;
    ring_req_arm(file->shard, sqe, &cached->push_req);
    file->in_flight++;
    cached->push_from = cached->push_end;
}

int
ring_cached_write(struct io_file *file, const void *buffer, u32 size, u64 offset)
{
    struct ring_cached *cached = &file->cached;
    if (!file->direct || !cached_open(file)) return -EOPNOTSUPP;
    if (cached->dirty_bytes + size > CACHED_DIRTY_BYTES) {
        MARK("io.ring_cached.full");
        return -EOPNOTSUPP;
    }
    for (u32 done = 0; done < size;) {
        ssize_t part =
            pwrite(cached->fd, (const u8 *)buffer + done, size - done, (off_t)(offset + done));
        if (part < 0 && errno == EINTR) continue;
        if (part <= 0) return part < 0 ? -errno : -EIO;
        done += (u32)part;
    }
    cached->dirty_bytes += size;
    cached->end = MAX(cached->end, offset + size);
    /* A log goes on where it was; what does not is left to the sync. */
    if (offset != cached->push_end) cached->push_from = offset;
    cached->push_end = offset + size;
    cached_push(file);
    return 0;
}

MAY_YIELD void
ring_cached_synced(struct io_file *file, u64 bytes, u64 end)
{
    struct ring_cached *cached = &file->cached;
    cached->dirty_bytes -= bytes;
    struct ring_wait wait;
    struct io_uring_sqe *sqe = ring_sqe(file->shard);
    io_uring_prep_fadvise(sqe, cached->fd, 0, (off_t)end, POSIX_FADV_DONTNEED);
    file->in_flight++;
    ring_wait_arm(file->shard, sqe, &wait);
    (void)ring_wait_for(&wait); /* advice: it may stay undone */
    if (--file->in_flight == 0) fiber_queue_wake_all(&file->idle_queue);
}

MAY_YIELD void
ring_cached_close(struct io_file *file)
{
    if (file->cached.fd >= 0) ring_close_wait(file->shard, file->cached.fd);
    file->cached.fd = -1;
}
