/* SPDX-License-Identifier: MIT
 *
 * ring_name.c -- directories and names, and what is found out about a device once.
 *
 * The probe. A durable write is either one write with RWF_DSYNC or a write and an fdatasync, and
 * no rule tells which is faster: on a disk without a volatile cache DSYNC costs nothing, on a cheap
 * NVMe disk its FUA writes take twice as long as a flush. So at the first open for writing on a
 * device a few of both are timed on a nameless file beside it, by the ring, once in the life of the
 * process. Shards that open files on the same device meanwhile wait for the result.
 *
 * The lock of a directory. What a killed process asked the disk for through its rings may be under
 * way when the process is long gone: a stalled disk, a command that comes again. Its writes must not
 * meet a successor's. So each ring of the process has the lock file in its registered table: the
 * kernel lets go of the table, of the open file and so of the lock only when the ring's last request
 * is done. Where a ring has no table, what log_segment.c says (F1) must do.
 */
#include "io/ring_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fault.h"
#include "base/log.h"

#define PROBE_ROUNDS       7u
#define PROBE_BLOCKS       8u
#define LOCK_FILE_NAME     "LOCK"
#define LOCK_RETRY_NS      (20 * NS_PER_MS)
#define LOCK_PATIENCE_NS   NS_PER_S
#define DESCRIPTOR_WAIT_NS (5 * NS_PER_S)
#define DIR_READ_BYTES     (32u << 10)
#define PATH_BYTES_MAX     1024u

/* ---- names ---- */

MAY_YIELD static i32
name_wait(struct ring_shard *shard,
          void (*prepare)(struct io_uring_sqe *sqe, const char *a, const char *b), const char *a,
          const char *b)
{
    for (;;) {
        struct ring_wait wait;
        struct io_uring_sqe *sqe = ring_sqe(shard);
        prepare(sqe, a, b);
        ring_wait_arm(shard, sqe, &wait);
        i32 result = ring_wait_for(&wait);
        if (result != -EINTR && result != -EAGAIN) return result;
        MARK("io.ring_name.again");
        fiber_yield();
    }
}

static void
prepare_rename(struct io_uring_sqe *sqe, const char *from, const char *to)
{
    io_uring_prep_renameat(sqe, AT_FDCWD, from, AT_FDCWD, to, 0);
}

static void
prepare_link(struct io_uring_sqe *sqe, const char *from, const char *to)
{
    io_uring_prep_linkat(sqe, AT_FDCWD, from, AT_FDCWD, to, 0);
}

static void
prepare_unlink(struct io_uring_sqe *sqe, const char *path, const char *none)
{
    io_uring_prep_unlinkat(sqe, AT_FDCWD, path, 0);
}

static void
prepare_dir_make(struct io_uring_sqe *sqe, const char *path, const char *none)
{
    io_uring_prep_mkdirat(sqe, AT_FDCWD, path, 0750);
}

static void
prepare_dir_remove(struct io_uring_sqe *sqe, const char *path, const char *none)
{
    io_uring_prep_unlinkat(sqe, AT_FDCWD, path, AT_REMOVEDIR);
}

static void
prepare_dir_open(struct io_uring_sqe *sqe, const char *path, const char *none)
{
    io_uring_prep_openat(sqe, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
}

static status
name_status(const char *what, const char *path, i32 result)
{
    status st = ring_errno_status(-result);
    if (!ok(st)) MARK("io.ring_name.failed");
    if (status_is_io(st))
        log_error("io", "%s failed path=%s error=%s", what, path, strerror(-result));
    return st;
}

MAY_YIELD status
io_file_rename(const char *from, const char *to)
{
    struct ring_shard *shard = ring_current();
    if (memfs_path(from) != memfs_path(to)) return ST_INVALID;
    if (memfs_path(from)) return memfs_rename(&shard->memfs, from, to);
    return name_status("rename", from, name_wait(shard, prepare_rename, from, to));
}

MAY_YIELD status
io_file_link(const char *from, const char *to)
{
    struct ring_shard *shard = ring_current();
    if (memfs_path(from) != memfs_path(to)) return ST_INVALID;
    if (memfs_path(from)) return memfs_link(&shard->memfs, from, to);
    return name_status("link", from, name_wait(shard, prepare_link, from, to));
}

MAY_YIELD status
io_file_unlink(const char *path)
{
    struct ring_shard *shard = ring_current();
    if (memfs_path(path)) return memfs_unlink(&shard->memfs, path);
    return name_status("unlink", path, name_wait(shard, prepare_unlink, path, NULL));
}

MAY_YIELD status
io_dir_make(const char *path)
{
    struct ring_shard *shard = ring_current();
    if (memfs_path(path)) return memfs_dir_make(&shard->memfs, path);
    return name_status("mkdir", path, name_wait(shard, prepare_dir_make, path, NULL));
}

MAY_YIELD status
io_dir_remove(const char *path)
{
    struct ring_shard *shard = ring_current();
    if (memfs_path(path)) return memfs_dir_remove(&shard->memfs, path);
    return name_status("rmdir", path, name_wait(shard, prepare_dir_remove, path, NULL));
}

MAY_YIELD status
io_dir_sync(const char *path)
{
    struct ring_shard *shard = ring_current();
    if (memfs_path(path)) return memfs_dir_sync(&shard->memfs, path);
    /* Behind a rename nobody can try the whole again: where no descriptor is left it waits for one. */
    i32 fd = name_wait(shard, prepare_dir_open, path, NULL);
    for (u64 until_ns = io_now_ns() + DESCRIPTOR_WAIT_NS;
         (fd == -EMFILE || fd == -ENFILE) && io_now_ns() < until_ns;) {
        MARK("io.ring_name.descriptor_awaited");
        fiber_sleep_ns(10 * NS_PER_MS);
        fd = name_wait(shard, prepare_dir_open, path, NULL);
    }
    if (fd < 0) return name_status("open of directory", path, fd);
    struct ring_wait wait;
    i32 result;
    do {
        struct io_uring_sqe *sqe = ring_sqe(shard);
        io_uring_prep_fsync(sqe, fd, 0);
        ring_wait_arm(shard, sqe, &wait);
        result = ring_wait_for(&wait);
    } while (result == -EINTR);
    ring_close_wait(shard, fd);
    shard->core.stats.syncs++;
    if (result < 0) {
        MARK("io.ring_name.sync_failed");
        shard->core.stats.write_errors++;
    }
    return name_status("sync of directory", path, result);
}

status
io_disk_free(const char *path, u64 *free_out, u64 *total_out)
{
    if (memfs_path(path)) return memfs_disk_free(&ring_current()->memfs, free_out, total_out);
    struct statvfs fs;
    if (statvfs(path, &fs) != 0)
        return MARKED("io.ring_name.free_unknown", ring_errno_status(errno));
    *free_out = (u64)fs.f_bavail * fs.f_frsize;
    *total_out = (u64)fs.f_blocks * fs.f_frsize;
    return ST_OK;
}

/* ---- listing ---- */

struct dir_entry {
    u64 inode;
    i64 offset;
    u16 size;
    u8 type;
    char name[];
};

static bool
dir_name_special(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Appends all names with their ends to names, and where each begins to starts. */
static status
dir_read_names(int fd, void *block, struct buf *names, struct buf *starts)
{
    for (;;) {
        long got = syscall(SYS_getdents64, fd, block, DIR_READ_BYTES);
        if (got == 0) return ST_OK;
        if (got < 0) return MARKED("io.ring_name.not_listed", ring_errno_status(errno));
        for (long at = 0; at < got;) {
            const struct dir_entry *entry =
                (const struct dir_entry *)(const void *)((const u8 *)block + at);
            at += entry->size;
            if (dir_name_special(entry->name)) continue;
            u64 start = names->size;
            if (!buf_append(names, entry->name, strlen(entry->name) + 1) ||
                !buf_append(starts, &start, sizeof(start)))
                return MARKED("io.ring_name.list_no_memory", ST_NO_MEMORY);
        }
    }
}

/* qsort_r would do, but glibc's takes memory from outside the budget for many names. Heap sort. */
static void
names_sift(u64 *starts, size_t root, size_t count, const char *names)
{
    for (;;) {
        size_t child = 2 * root + 1;
        if (child >= count) return;
        if (child + 1 < count && strcmp(names + starts[child], names + starts[child + 1]) < 0)
            child++;
        if (strcmp(names + starts[root], names + starts[child]) >= 0) return;
        u64 swapped = starts[root];
        starts[root] = starts[child];
        starts[child] = swapped;
        root = child;
    }
}

static void
names_sort(u64 *starts, size_t count, const char *names)
{
    for (size_t i = count / 2; i-- > 0;)
        names_sift(starts, i, count, names);
    for (size_t end = count; end > 1; end--) {
        u64 swapped = starts[0];
        starts[0] = starts[end - 1];
        starts[end - 1] = swapped;
        names_sift(starts, 0, end - 1, names);
    }
}

MAY_YIELD status
io_dir_list(const char *path, void (*each)(void *arg, const char *name), void *arg)
{
    struct ring_shard *shard = ring_current();
    struct budget *budget = &shard->core.budget;
    if (memfs_path(path)) return memfs_dir_list(&shard->memfs, path, each, arg);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return name_status("open of directory", path, -errno);
    struct buf names, starts;
    buf_init(&names, budget);
    buf_init(&starts, budget);
    void *block = mem_alloc(budget, DIR_READ_BYTES);
    status st = block != NULL ? dir_read_names(fd, block, &names, &starts)
                              : MARKED("io.ring_name.list_block_no_memory", ST_NO_MEMORY);
    mem_free(budget, block, DIR_READ_BYTES);
    close(fd);
    if (ok(st)) {
        u64 *order = (u64 *)(void *)starts.data;
        size_t count = starts.size / sizeof(u64);
        names_sort(order, count, (const char *)names.data);
        for (size_t i = 0; i < count; i++)
            each(arg, (const char *)names.data + order[i]);
    }
    buf_deinit(&starts);
    buf_deinit(&names);
    return st;
}

/* ---- locks ---- */

static struct ring_dir_lock *
dir_lock_find(struct io_node *node, const char *path)
{
    for (u32 i = 0; i < RING_DIR_LOCKS_MAX; i++) {
        struct ring_dir_lock *lock = &node->dir_locks[i];
        if (lock->fd >= 0 && strcmp(lock->path, path) == 0) return lock;
    }
    return NULL;
}

static struct ring_dir_lock *
dir_lock_unused(struct io_node *node)
{
    for (u32 i = 0; i < RING_DIR_LOCKS_MAX; i++)
        if (node->dir_locks[i].fd < 0) return &node->dir_locks[i];
    return NULL;
}

/* One try. The path is made absolute, so that two spellings are one directory. */
static status
dir_lock_try(struct io_node *node, const char *path)
{
    char *real = realpath(path, NULL);
    if (real == NULL) return MARKED("io.ring_name.lock_no_dir", ring_errno_status(errno));
    status st = ST_LOCKED;
    int fd = -1;
    pthread_mutex_lock(&node->mutex);
    struct ring_dir_lock *lock = dir_lock_find(node, real);
    if (lock != NULL) {
        lock->count++; /* another shard of this node was first */
        st = ST_OK;
        goto out;
    }
    lock = dir_lock_unused(node);
    if (lock == NULL) {
        st = MARKED("io.ring_name.too_many_locks", ST_NO_MEMORY);
        goto out;
    }
    int dir = open(real, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) {
        st = MARKED("io.ring_name.lock_dir_not_opened", ring_errno_status(errno));
        goto out;
    }
    fd = openat(dir, LOCK_FILE_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0640);
    int error = errno;
    close(dir);
    if (fd < 0) {
        st = MARKED("io.ring_name.lock_not_made", ring_errno_status(error));
        goto out;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        MARK("io.ring_name.locked");
        st = errno == EWOULDBLOCK ? ST_LOCKED : ring_errno_status(errno);
        goto out;
    }
    *lock = (struct ring_dir_lock){
        .path = real, .fd = fd, .count = 1, .number = ++node->dir_lock_number};
    atomic_fetch_add(&node->dir_locks_changed, 1);
    real = NULL;
    fd = -1;
    st = ST_OK;
out:
    pthread_mutex_unlock(&node->mutex);
    if (fd >= 0) close(fd);
    free(real);
    return st;
}

MAY_YIELD status
io_dir_lock(const char *path)
{
    struct ring_shard *shard = ring_current();
    if (memfs_path(path)) return memfs_dir_lock(&shard->memfs, path);
    u64 deadline_ns = io_now_ns() + LOCK_PATIENCE_NS;
    for (;;) {
        status st = dir_lock_try(shard->host, path);
        if (!status_is(st, ST_LOCKED) || io_now_ns() >= deadline_ns) return st;
        fiber_sleep_ns(LOCK_RETRY_NS);
    }
}

/* With the node's mutex, but at its end. */
static void
dir_lock_release(struct io_node *node, struct ring_dir_lock *lock)
{
    /* Rings may have the file, and go some time after their process: all requests are done. */
    (void)!flock(lock->fd, LOCK_UN);
    close(lock->fd);
    free(lock->path);
    atomic_fetch_add(&node->dir_locks_changed, 1);
    *lock = (struct ring_dir_lock){.fd = -1};
}

void
io_dir_unlock(const char *path)
{
    if (memfs_path(path)) return;
    struct io_node *node = ring_current()->host;
    char *real = realpath(path, NULL);
    if (real == NULL) return;
    pthread_mutex_lock(&node->mutex);
    struct ring_dir_lock *lock = dir_lock_find(node, real);
    if (lock != NULL && --lock->count == 0) dir_lock_release(node, lock);
    pthread_mutex_unlock(&node->mutex);
    free(real);
}

void
ring_dir_locks_release(struct io_node *node)
{
    for (u32 i = 0; i < RING_DIR_LOCKS_MAX; i++)
        if (node->dir_locks[i].fd >= 0) dir_lock_release(node, &node->dir_locks[i]);
}

void
ring_dir_locks_hold(struct ring_shard *shard)
{
    struct io_node *node = shard->host;
    if (atomic_load(&node->dir_locks_changed) == shard->dir_locks_changed) return;
    pthread_mutex_lock(&node->mutex);
    shard->dir_locks_changed = atomic_load(&node->dir_locks_changed);
    for (u32 i = 0; i < RING_DIR_LOCKS_MAX; i++) {
        const struct ring_dir_lock *lock = &node->dir_locks[i];
        struct ring_held_lock *held = &shard->held_locks[i];
        if (held->number == lock->number) continue;
        if (held->number != 0) ring_slot_give(shard, held->slot);
        *held = (struct ring_held_lock){.number = lock->number, .slot = -1};
        if (lock->number != 0) held->slot = ring_slot_take(shard, lock->fd);
    }
    pthread_mutex_unlock(&node->mutex);
}

/* ---- the probe ---- */

static const ALIGNED(IO_ALIGNMENT) u8 probe_block[IO_ALIGNMENT * PROBE_BLOCKS];

MAY_YIELD static i32
probe_sync(struct ring_shard *shard, int fd, u32 flags)
{
    struct ring_wait wait;
    struct io_uring_sqe *sqe = ring_sqe(shard);
    io_uring_prep_fsync(sqe, fd, flags);
    ring_wait_arm(shard, sqe, &wait);
    return ring_wait_for(&wait);
}

MAY_YIELD static bool
probe_write(struct ring_shard *shard, int fd, u32 size, u64 offset, bool dsync)
{
    struct ring_wait wait;
    struct io_uring_sqe *sqe = ring_sqe(shard);
    io_uring_prep_write(sqe, fd, probe_block, size, offset);
    if (dsync) sqe->rw_flags = RWF_DSYNC;
    ring_wait_arm(shard, sqe, &wait);
    return ring_wait_for(&wait) == (i32)size;
}

/* The shortest of some durable writes, in ns; 0 when one failed. */
MAY_YIELD static u64
probe_time(struct ring_shard *shard, int fd, bool dsync)
{
    u64 best = UINT64_MAX;
    for (u32 i = 0; i < PROBE_ROUNDS; i++) {
        u64 start = ring_clock_ns();
        if (!probe_write(shard, fd, IO_ALIGNMENT, (u64)(i % PROBE_BLOCKS) * IO_ALIGNMENT, dsync))
            return 0;
        if (!dsync && probe_sync(shard, fd, IORING_FSYNC_DATASYNC) < 0) return 0;
        best = MIN(best, ring_clock_ns() - start);
    }
    return best;
}

MAY_YIELD static bool
probe_device(struct ring_shard *shard, const char *path)
{
    char dir[PATH_BYTES_MAX];
    const char *slash = strrchr(path, '/');
    int length = slash == NULL || slash == path ? 1 : (int)(slash - path);
    if (length >= (int)sizeof(dir)) return true;
    snprintf(dir, sizeof(dir), "%.*s", length, slash == NULL ? "." : path);

    i32 fd = ring_open_wait(shard, dir, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC);
    /* A file system without nameless files: what most disks do well. */
    if (fd < 0) return MARKED("io.ring_name.not_probed", true);
    bool dsync = true;
    u64 dsync_ns = 0, flush_ns = 0;
    if (probe_write(shard, fd, sizeof(probe_block), 0, false) && probe_sync(shard, fd, 0) == 0) {
        dsync_ns = probe_time(shard, fd, true);
        flush_ns = probe_time(shard, fd, false);
        /* Two requests instead of one must pay for themselves. */
        if (dsync_ns == 0 || (flush_ns > 0 && flush_ns < dsync_ns * 7 / 10)) {
            MARK("io.ring_name.write_and_flush");
            dsync = false;
        }
    }
    ring_close_wait(shard, fd);
    log_info("io", "durable writes probed path=%s dsync_us=%llu write_and_flush_us=%llu chosen=%s",
             dir, (unsigned long long)(dsync_ns / NS_PER_US),
             (unsigned long long)(flush_ns / NS_PER_US), dsync ? "dsync" : "write_and_flush");
    return dsync;
}

/* The entry of device, new ones undecided; NULL when the table is full. */
static struct ring_device *
device_entry(struct io_node *node, u64 device, bool *new_out)
{
    *new_out = false;
    for (u32 i = 0; i < node->device_count; i++)
        if (node->devices[i].device == device) return &node->devices[i];
    if (node->device_count == RING_DEVICES_MAX)
        return MARKED("io.ring_name.too_many_devices", NULL);
    *new_out = true;
    struct ring_device *entry = &node->devices[node->device_count++];
    *entry = (struct ring_device){.device = device};
    return entry;
}

MAY_YIELD bool
ring_device_dsync(struct ring_shard *shard, int fd, const char *path)
{
    struct io_node *node = shard->host;
    struct stat stat;
    if (fstat(fd, &stat) != 0) return true;
    for (;;) {
        bool new;
        pthread_mutex_lock(&node->mutex);
        struct ring_device *entry = device_entry(node, (u64)stat.st_dev, &new);
        bool decided = entry == NULL || entry->decided;
        bool dsync = entry == NULL || entry->dsync;
        pthread_mutex_unlock(&node->mutex);
        if (decided) return dsync;
        if (new) {
            dsync = probe_device(shard, path);
            pthread_mutex_lock(&node->mutex);
            entry->dsync = dsync;
            entry->decided = true;
            pthread_mutex_unlock(&node->mutex);
            return dsync;
        }
        fiber_sleep_ns(NS_PER_MS);
    }
}
