/* SPDX-License-Identifier: MIT
 *
 * sim_file.c -- file.h of the simulated link. Every request is two moments: it begins (a write may
 * copy its data, a sync fixes what it covers, an armed crash or failure is looked for) and, after a
 * random time, it takes effect on the disk; the shard learns of it in a later turn. So requests
 * finish in any order, and a crash finds them before, under way, or done and not yet known.
 *
 *   begin ----- latency -----> effect -----> arrival, in the shard's next turn: done() or resume
 *
 * At most LIMIT_IO_IN_FLIGHT requests of a node are between begin and effect.
 *
 * A transfer that the disk stops short begins again with what is left of it, as in the ring: that
 * may fail, find the disk full or meet a crash, while its first part is done and durable.
 */
#include "io/sim_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/crc.h"
#include "base/fault.h"
#include "base/hash.h"

#define PLACE_BYTES 96u

enum request_kind {
    REQUEST_READ,
    REQUEST_WRITE,
    REQUEST_SYNC,
    REQUEST_DIR_SYNC,
    REQUEST_OPEN,
    REQUEST_CREATE,
    REQUEST_TRUNCATE,
    REQUEST_ALLOCATE,
    REQUEST_RENAME,
    REQUEST_LINK,
    REQUEST_UNLINK,
    REQUEST_DIR_MAKE,
    REQUEST_DIR_REMOVE,
};

struct io_file {
    struct list link; /* sim_shard.files */
    struct sim_inode *inode;
    struct memfs_file *memory; /* one of the two */
    bool writable;
    u32 read_unit;
    u32 in_flight;
    struct fiber_queue idle;
};

/* What io_file_fill writes; known, so that nobody looks at every byte of it. */
static const u8 ALIGNED(4096) fill_zeros[LIMIT_IO_BYTES];

/* libc's memory, not the node's: it must outlive a crash until it is dropped. */
struct sim_request {
    struct list link; /* sim_node.io_queue or io_requests */
    struct sim_event event;
    struct sim_arrival arrival;
    enum request_kind kind;
    struct sim_shard *shard;
    struct io_file *file;
    struct io_op *op;     /* READ and WRITE */
    struct fiber *waiter; /* the others */
    status result;
    status injected;
    u32 moved;        /* READ and WRITE of a file on the disk: bytes, as the disk says */
    bool done_though; /* of a request that fails: NAME_ERROR */
    const char *path, *path_to;
    u64 size;
    struct sim_inode *inode; /* OPEN and CREATE */
    struct sim_write write;
    struct sim_sync sync;
};

/* ---- begin and effect ---- */

static enum sim_point
request_point(enum request_kind kind)
{
    switch (kind) {
    case REQUEST_READ:
        return SIM_POINT_READ;
    case REQUEST_WRITE:
        return SIM_POINT_WRITE;
    case REQUEST_SYNC:
    case REQUEST_DIR_SYNC:
        return SIM_POINT_SYNC;
    case REQUEST_OPEN:
    case REQUEST_CREATE:
    case REQUEST_TRUNCATE:
    case REQUEST_ALLOCATE:
    case REQUEST_RENAME:
    case REQUEST_LINK:
    case REQUEST_UNLINK:
    case REQUEST_DIR_MAKE:
    case REQUEST_DIR_REMOVE:
        return SIM_POINT_NAME;
    }
    CHECK(false);
    return SIM_POINT_NAME;
}

static const struct {
    const char *name, *done, *failed; /* the last two name the numbers of the trace */
} request_texts[] = {
    [REQUEST_READ] = {"read", "read file,offset,bytes", "failed read file,offset,bytes"},
    [REQUEST_WRITE] = {"write", "write file,offset,bytes", "failed write file,offset,bytes"},
    [REQUEST_SYNC] = {"sync", "sync file", "failed sync file"},
    [REQUEST_DIR_SYNC] = {"dir-sync", "dir-sync", "failed dir-sync"},
    [REQUEST_OPEN] = {"open", "open", "failed open"},
    [REQUEST_CREATE] = {"create", "create", "failed create"},
    [REQUEST_TRUNCATE] = {"truncate", "truncate file", "failed truncate file"},
    [REQUEST_ALLOCATE] = {"allocate", "allocate file", "failed allocate file"},
    [REQUEST_RENAME] = {"rename", "rename", "failed rename"},
    [REQUEST_LINK] = {"link", "link", "failed link"},
    [REQUEST_UNLINK] = {"unlink", "unlink", "failed unlink"},
    [REQUEST_DIR_MAKE] = {"dir-make", "dir-make", "failed dir-make"},
    [REQUEST_DIR_REMOVE] = {"dir-remove", "dir-remove", "failed dir-remove"},
};

/* Of a READ or a WRITE: what is left of the operation. */
static u64
request_offset(const struct sim_request *request)
{
    return request->op->offset + request->op->transferred;
}

static u32
request_size(const struct sim_request *request)
{
    return request->op->size - request->op->transferred;
}

static void *
request_buffer(const struct sim_request *request)
{
    return (u8 *)request->op->buffer + request->op->transferred;
}

/* Where a request goes, for a person. */
static void
request_place(const struct sim_request *request, char text[static PLACE_BYTES])
{
    const char *host = request->shard->node->host;
    const char *path = request->path;
    if (request->file != NULL) path = sim_inode_path(request->file->inode);
    if (request->op != NULL)
        (void)snprintf(text, PLACE_BYTES, "%s %s at %llu, %u bytes", host, path,
                       (unsigned long long)request_offset(request), request_size(request));
    else
        (void)snprintf(text, PLACE_BYTES, "%s %s %s", host, request_texts[request->kind].name,
                       path);
}

/* Whether the request fails by chance. */
static bool
request_fails(struct sim_request *request)
{
    struct sim *sim = request->shard->node->sim;
    const struct sim_disk_options *disk = &sim->options.disk;
    enum sim_fault family = SIM_FAULT_COUNT;
    u32 ppm = 0;
    switch (request_point(request->kind)) {
    case SIM_POINT_READ:
        family = SIM_FAULT_READ_ERROR;
        ppm = disk->read_error_ppm;
        break;
    case SIM_POINT_WRITE:
        family = SIM_FAULT_WRITE_ERROR;
        ppm = disk->write_error_ppm;
        break;
    case SIM_POINT_SYNC:
        family = SIM_FAULT_SYNC_ERROR;
        ppm = disk->sync_error_ppm;
        break;
    case SIM_POINT_NAME:
        family = SIM_FAULT_NAME_ERROR;
        ppm = disk->name_error_ppm;
        break;
    case SIM_POINT_EVENT:
    case SIM_POINT_IO:
    case SIM_POINT_ALLOC:
    case SIM_POINT_COMMIT:
    case SIM_POINT_COUNT:
        return false;
    }
    if (ppm == 0 || !sim_fault_chance(sim, family, ppm)) return false;
    struct prng prng = sim_fault_prng(sim, family);
    bool done_though = family == SIM_FAULT_NAME_ERROR && prng_chance(&prng, 1, 4);
    char place[PLACE_BYTES];
    request_place(request, place);
    if (!sim_fault_take(sim, family, "%s%s", place, done_though ? ", done though" : ""))
        return false;
    request->done_though = done_though;
    return true;
}

/* How much longer it takes than it should. */
static u64
request_stall_ns(struct sim_request *request)
{
    struct sim *sim = request->shard->node->sim;
    const struct sim_disk_options *disk = &sim->options.disk;
    if (!sim_fault_chance(sim, SIM_FAULT_DISK_STALL, disk->stall_ppm)) return 0;
    struct prng prng = sim_fault_prng(sim, SIM_FAULT_DISK_STALL);
    u64 ns = sim_draw(&prng, MIN(NS_PER_S, disk->stall_ns), disk->stall_ns);
    char place[PLACE_BYTES];
    request_place(request, place);
    bool stalls = sim_fault_take(sim, SIM_FAULT_DISK_STALL, "%llu ms: %s %s",
                                 (unsigned long long)(ns / NS_PER_MS),
                                 request_texts[request->kind].name, place);
    return stalls ? ns : 0;
}

static bool
request_needs_space(enum request_kind kind)
{
    return kind == REQUEST_WRITE || kind == REQUEST_ALLOCATE || kind == REQUEST_CREATE;
}

/* Another process of the machine takes what is free, for a while. */
static void
space_shrink_maybe(struct sim_request *request)
{
    struct sim_node *node = request->shard->node;
    struct sim *sim = node->sim;
    const struct sim_disk_options *disk = &sim->options.disk;
    if (disk->no_space_ppm == 0 || !request_needs_space(request->kind)) return;
    if (!sim_fault_chance(sim, SIM_FAULT_NO_SPACE, disk->no_space_ppm)) return;
    if (node->space_returns.scheduled) return; /* it is small already */
    struct prng prng = sim_fault_prng(sim, SIM_FAULT_NO_SPACE);
    u64 ns = sim_draw(&prng, NS_PER_MS, disk->no_space_ns_max);
    if (!sim_fault_take(sim, SIM_FAULT_NO_SPACE, "%s for %llu ms", node->host,
                        (unsigned long long)(ns / NS_PER_MS)))
        return;
    sim_disk_space_take(node->disk);
    sim_event_schedule(sim, &node->space_returns, sim->now_ns + ns);
}

void
sim_space_returns(struct sim_event *event)
{
    struct sim_node *node = CONTAINER_OF(event, struct sim_node, space_returns);
    sim_trace(node->sim, NULL, SIM_KIND_CONTROL, node->index, "space returns to node", node->index,
              0, 0);
    sim_disk_space_give(node->disk);
}

static status
request_disk_begin(struct sim_request *request)
{
    struct sim_disk *disk = request->shard->node->disk;
    switch (request->kind) {
    case REQUEST_WRITE:
        return sim_inode_write_begin(request->file->inode, &request->write,
                                     request->op->buffer == fill_zeros ? NULL
                                                                       : request_buffer(request),
                                     request_size(request), request_offset(request));
    case REQUEST_SYNC:
        request->sync = sim_inode_sync_begin(request->file->inode);
        return ST_OK;
    case REQUEST_DIR_SYNC:
        return sim_disk_dir_sync_begin(disk, request->path, &request->sync.order);
    case REQUEST_READ:
    case REQUEST_OPEN:
    case REQUEST_CREATE:
    case REQUEST_TRUNCATE:
    case REQUEST_ALLOCATE:
    case REQUEST_RENAME:
    case REQUEST_LINK:
    case REQUEST_UNLINK:
    case REQUEST_DIR_MAKE:
    case REQUEST_DIR_REMOVE:
        break;
    }
    return ST_OK;
}

static bool
request_in_memory(const struct sim_request *request)
{
    return request->file != NULL && request->file->memory != NULL;
}

static void
request_begin(struct sim_request *request)
{
    struct sim_shard *shard = request->shard;
    struct sim_node *node = shard->node;
    struct sim *sim = node->sim;
    const struct sim_disk_options *disk = &sim->options.disk;
    u64 latency_ns = sim_draw(&sim->prng_disk, disk->latency_ns_min, disk->latency_ns_max);
    if (request_in_memory(request)) {
        latency_ns = 1;
    } else {
        space_shrink_maybe(request);
        request->injected = sim_point_hit(sim, node, request_point(request->kind));
        if (request->kind == REQUEST_DIR_SYNC && sim_disk_dir_renamed(node->disk, request->path))
            (void)!ok(sim_point_hit(sim, node, SIM_POINT_COMMIT));
        if (ok(request->injected) && request_fails(request)) request->injected = ST_IO_ERROR;
        if (status_is(request->injected, ST_NO_SPACE)) {
            request->result = ST_NO_SPACE; /* refused: nothing happens to the disk */
        } else {
            request->result = request_disk_begin(request);
        }
        latency_ns += request_stall_ns(request) + node->io_slow_ns[request_point(request->kind)];
        u64 until_ns = node->io_stall_until_ns[request_point(request->kind)];
        latency_ns += until_ns - MIN(until_ns, sim->now_ns);
        node->io_in_flight++;
    }
    list_push_back(&node->io_requests, &request->link);
    sim_event_schedule(sim, &request->event, sim->now_ns + shard->spent_ns + latency_ns);
}

static void
request_start(struct sim_request *request)
{
    struct sim_node *node = request->shard->node;
    request->shard->io_in_flight++;
    bool full = node->io_in_flight >= LIMIT_IO_IN_FLIGHT;
    /* After the power cut nothing begins any more. */
    if (!request_in_memory(request) && (full || node->crash_pending)) {
        list_push_back(&node->io_queue, &request->link);
    } else {
        request_begin(request);
    }
}

static status
request_transfer_memory(struct sim_request *request)
{
    struct io_op *op = request->op;
    struct memfs_file *file = request->file->memory;
    return request->kind == REQUEST_READ ? memfs_read(file, op->buffer, op->size, op->offset)
                                         : memfs_write(file, op->buffer, op->size, op->offset);
}

/* ---- damage by chance ---- */

static u64
name_place(const struct sim_request *request, char text[static PLACE_BYTES])
{
    request_place(request, text);
    return request_offset(request);
}

/* What the read finds may have gone bad since it was written. */
static void
read_spoil(struct sim_request *request)
{
    struct sim *sim = request->shard->node->sim;
    const struct sim_disk_options *disk = &sim->options.disk;
    struct sim_inode *inode = request->file->inode;
    u32 size = request_size(request);
    if (request_offset(request) + size > sim_inode_size(inode)) return;
    char place[PLACE_BYTES];
    if (sim_fault_chance(sim, SIM_FAULT_BIT_ROT, disk->bit_rot_ppm)) {
        struct prng prng = sim_fault_prng(sim, SIM_FAULT_BIT_ROT);
        u64 at = name_place(request, place) + prng_below(&prng, size);
        u8 mask = (u8)(1u << prng_below(&prng, 8));
        if (sim_fault_take(sim, SIM_FAULT_BIT_ROT, "%s: bit %#x of byte %llu", place, mask,
                           (unsigned long long)at))
            sim_inode_rot(inode, at, mask, sim_fault_last(sim));
    }
    if (sim_fault_chance(sim, SIM_FAULT_LATENT, disk->latent_ppm)) {
        struct prng prng = sim_fault_prng(sim, SIM_FAULT_LATENT);
        u64 at = name_place(request, place) + prng_below(&prng, size);
        if (sim_fault_take(sim, SIM_FAULT_LATENT, "%s: sector of byte %llu", place,
                           (unsigned long long)at))
            sim_inode_latent_add(inode, at, sim_fault_last(sim));
    }
}

/* What the next request of an operation begins at a multiple of. */
static u32
request_unit(const struct sim_request *request)
{
    return request->kind == REQUEST_READ ? request->file->read_unit : (u32)IO_ALIGNMENT;
}

/* How much the disk moves of what it was asked for: all, or less by chance, but a block. */
static u32
request_moves(struct sim_request *request)
{
    struct sim *sim = request->shard->node->sim;
    u32 asked = request_size(request);
    u32 block = (u32)IO_ALIGNMENT;
    if (asked <= block || !sim_fault_chance(sim, SIM_FAULT_SHORT, sim->options.disk.short_ppm))
        return asked;
    struct prng prng = sim_fault_prng(sim, SIM_FAULT_SHORT);
    u32 moved = (u32)prng_range(&prng, block, asked - 1);
    if (prng_chance(&prng, 1, 2)) moved -= moved % block;
    char place[PLACE_BYTES];
    request_place(request, place);
    return sim_fault_take(sim, SIM_FAULT_SHORT, "%s: %u", place, moved) ? moved : asked;
}

static status
request_read(struct sim_request *request)
{
    struct sim_inode *inode = request->file->inode;
    u8 *buffer = request_buffer(request);
    u64 offset = request_offset(request);
    u32 size = request_size(request);
    status st = request->injected;
    read_spoil(request);
    if (ok(st) && sim_inode_latent(inode, offset, size)) st = ST_IO_ERROR;
    if (!ok(st)) {
        memset(buffer, 0xEE, SIM_SECTOR_BYTES); /* nobody may use what a failed read left */
        return st;
    }
    st = sim_inode_read(inode, buffer, size, offset);
    if (!ok(st)) return st;
    request->moved = request_moves(request);
    /* What was not moved must not be there already. */
    memset(buffer + request->moved, 0xA5, size - request->moved);
    return ST_OK;
}

/* Whether the write, which says ok, went wrong; then it has ended. */
static bool
write_goes_wrong(struct sim_request *request)
{
    struct sim *sim = request->shard->node->sim;
    const struct sim_disk_options *disk = &sim->options.disk;
    struct sim_write *write = &request->write;
    bool durable = request->op->durable;
    char place[PLACE_BYTES];
    if (sim_fault_chance(sim, SIM_FAULT_LOST_WRITE, disk->lost_write_ppm)) {
        struct prng prng = sim_fault_prng(sim, SIM_FAULT_LOST_WRITE);
        bool cached = prng_chance(&prng, 1, 2);
        request_place(request, place);
        if (sim_fault_take(sim, SIM_FAULT_LOST_WRITE, "%s%s", place, cached ? ", cached" : "")) {
            sim_inode_write_lose(write, durable, cached, sim_fault_last(sim));
            return true;
        }
    }
    if (!sim_fault_chance(sim, SIM_FAULT_MISDIRECTED, disk->misdirected_ppm)) return false;
    struct prng prng = sim_fault_prng(sim, SIM_FAULT_MISDIRECTED);
    struct sim_inode *other;
    u64 offset;
    if (!sim_inode_elsewhere(request->file->inode, write->offset, write->size, &prng, &other,
                             &offset))
        return false;
    request_place(request, place);
    if (!sim_fault_take(sim, SIM_FAULT_MISDIRECTED, "%s: to %s at %llu", place,
                        sim_inode_path(other), (unsigned long long)offset))
        return false;
    sim_inode_write_misdirect(write, durable, other, offset, sim_fault_last(sim));
    return true;
}

static status
request_write(struct sim_request *request)
{
    bool durable = request->op->durable;
    struct sim_write *write = &request->write;
    if (!ok(request->injected)) {
        sim_inode_write_fail(write, durable);
        return request->injected;
    }
    request->moved = request_moves(request);
    /* Of a block that was moved in part, as much as of one that failed is known: it comes again. */
    if (request->moved < write->size)
        sim_inode_write_cut(write, (u32)align_down(request->moved, IO_ALIGNMENT));
    if (!write_goes_wrong(request)) sim_inode_write_end(write, durable);
    return ST_OK;
}

/* Of a request of SIM_POINT_NAME. */
static status
name_effect(struct sim_request *request)
{
    struct sim_disk *disk = request->shard->node->disk;
    const char *path = request->path;
    switch (request->kind) {
    case REQUEST_OPEN:
        return sim_disk_open(disk, path, IO_OPEN_READ, &request->inode);
    case REQUEST_CREATE:
        return sim_disk_open(disk, path, IO_OPEN_CREATE, &request->inode);
    case REQUEST_TRUNCATE:
        return sim_inode_truncate(request->file->inode, request->size);
    case REQUEST_ALLOCATE:
        return sim_inode_allocate(request->file->inode, request->size);
    case REQUEST_RENAME:
        return sim_disk_rename(disk, path, request->path_to);
    case REQUEST_LINK:
        return sim_disk_link(disk, path, request->path_to);
    case REQUEST_UNLINK:
        return sim_disk_unlink(disk, path);
    case REQUEST_DIR_MAKE:
        return sim_disk_dir_make(disk, path);
    case REQUEST_DIR_REMOVE:
        return sim_disk_dir_remove(disk, path);
    case REQUEST_READ:
    case REQUEST_WRITE:
    case REQUEST_SYNC:
    case REQUEST_DIR_SYNC:
        break;
    }
    CHECK(false);
    return ST_INVALID;
}

/* What the request does to the disk at its end. */
static status
request_effect(struct sim_request *request)
{
    struct sim_disk *disk = request->shard->node->disk;
    if (request_in_memory(request)) return request_transfer_memory(request);
    if (!ok(request->result)) return request->result; /* it never began */
    bool fails = !ok(request->injected);
    switch (request->kind) {
    case REQUEST_READ:
        return request_read(request);
    case REQUEST_WRITE:
        return request_write(request);
    case REQUEST_SYNC:
        if (fails) {
            sim_inode_sync_fail(request->file->inode, request->sync);
        } else {
            sim_inode_sync_end(request->file->inode, request->sync);
        }
        return request->injected;
    case REQUEST_DIR_SYNC:
        if (!fails) sim_disk_dir_sync_end(disk, request->path, request->sync.order);
        return request->injected;
    case REQUEST_OPEN:
    case REQUEST_CREATE:
    case REQUEST_TRUNCATE:
    case REQUEST_ALLOCATE:
    case REQUEST_RENAME:
    case REQUEST_LINK:
    case REQUEST_UNLINK:
    case REQUEST_DIR_MAKE:
    case REQUEST_DIR_REMOVE:
        if (!fails) return name_effect(request);
        if (request->done_though && ok(name_effect(request)) && request->inode != NULL) {
            sim_disk_close(disk, request->inode);
            request->inode = NULL;
        }
        return request->injected;
    }
    CHECK(false);
    return ST_INVALID;
}

/* What a read returned follows from what was written. */
static void
request_trace(const struct sim_request *request)
{
    const struct io_op *op = request->op;
    u64 file = request->file != NULL && request->file->inode != NULL
                   ? sim_inode_number(request->file->inode)
                   : 0;
    u64 parts[6] = {(u64)request->kind, (u64)(i64)request->result.code, file, 0, 0, 0};
    if (op != NULL) {
        parts[3] = request_offset(request);
        parts[4] = request_size(request);
        if (request->kind == REQUEST_WRITE && op->buffer != fill_zeros)
            parts[5] = crc32c(0, request_buffer(request), request_size(request));
    }
    sim_trace(request->shard->node->sim, request->shard, SIM_KIND_DISK,
              hash_bytes(parts, sizeof(parts), 0),
              ok(request->result) ? request_texts[request->kind].done
                                  : request_texts[request->kind].failed,
              file, parts[3], parts[4]);
}

static void
request_left(struct sim_node *node)
{
    node->io_in_flight--;
    struct list *next = list_pop_front(&node->io_queue);
    if (next != NULL) request_begin(list_entry(next, struct sim_request, link));
}

/* Whether something is left to do of a transfer that stopped short; it is under way then. */
static bool
request_goes_on(struct sim_request *request)
{
    struct sim_node *node = request->shard->node;
    struct io_op *op = request->op;
    if (op == NULL || !ok(request->result) || request_in_memory(request)) return false;
    CHECK(core_op_advance(op, request->moved, request_unit(request)));
    if (op->transferred == op->size) return false;
    list_del(&request->link);
    list_push_front(&node->io_queue, &request->link);
    request_left(node);
    return true;
}

static void
request_fires(struct sim_event *event)
{
    struct sim_request *request = CONTAINER_OF(event, struct sim_request, event);
    struct sim_shard *shard = request->shard;
    struct sim_node *node = shard->node;
    bool disk = !request_in_memory(request);
    /* Memory of files in memory is the node's. */
    struct sim_memory *domain = sim_mem_domain_set(&node->memory);
    request->result = request_effect(request);
    sim_mem_domain_set(domain);

    request_trace(request);
    if (request_goes_on(request)) return;
    sim_arrive(shard, &request->arrival);
    if (disk) request_left(node);
}

/* ---- arrival ---- */

static void
request_free(struct sim_request *request)
{
    list_del(&request->link);
    free(request);
}

static void
op_count(struct io_shard *core, const struct sim_request *request)
{
    struct io_stats *stats = &core->stats;
    if (request->kind == REQUEST_READ) {
        stats->reads++;
        stats->read_bytes += request->op->size;
        stats->read_errors += !ok(request->result);
    } else {
        stats->writes++;
        stats->write_bytes += request->op->size;
        stats->write_errors += !ok(request->result);
    }
}

static void
request_run(struct sim_arrival *arrival)
{
    struct sim_request *request = CONTAINER_OF(arrival, struct sim_request, arrival);
    struct sim_shard *shard = request->shard;
    shard->io_in_flight--;
    if (request->waiter != NULL) {
        fiber_resume(&shard->core, request->waiter); /* it frees the request */
        return;
    }
    struct io_op *op = request->op;
    struct io_file *file = request->file;
    op_count(&shard->core, request);
    op->result = request->result;
    op->finished = true;
    request_free(request);
    if (--file->in_flight == 0) fiber_queue_wake_all(&file->idle);
    if (op->done != NULL) {
        op->done(op); /* the op may be gone after it */
    } else {
        fiber_queue_wake_all(&op->waiters);
    }
}

static struct sim_request *
request_new(enum request_kind kind)
{
    struct sim_request *request = calloc(1, sizeof(*request));
    CHECK(request != NULL);
    request->kind = kind;
    request->shard = sim_shard_current();
    request->injected = ST_OK;
    request->result = ST_OK;
    request->arrival.run = request_run;
    list_init(&request->arrival.link);
    list_init(&request->link);
    request->event.kind = SIM_KIND_DISK;
    request->event.shard = request->shard;
    request->event.fire = request_fires;
    return request;
}

/* Starts a request of a fiber and waits for its end. Frees it. */
static MAY_YIELD status
request_wait(struct sim_request *request, struct sim_inode **inode_out)
{
    request->waiter = fiber_self();
    CHECK(request->waiter != NULL);
    request_start(request);
    fiber_suspend();
    status st = request->result;
    if (ok(st) && inode_out != NULL) *inode_out = request->inode;
    request_free(request);
    return st;
}

/* ---- writes that outlive their process ---- */

/* The block layer holds no process up: what it was asked for it does, whoever is there by then. Only
 * where the next process has written to the file meanwhile, though. Elsewhere a write of unknown outcome
 * would show later than the next process believes, which is no harm, is prevented by the directory's
 * lock, and is nothing that the rules of histories know. */
struct sim_late {
    struct list link; /* sim_node.io_late */
    struct sim_event event;
    struct sim_node *node;
    struct sim_write write;
    u64 inode_writes; /* its inode's, at the end of the process */
    bool durable;
};

static void
late_free(struct sim_late *late)
{
    list_del(&late->link);
    free(late);
}

static void
late_fires(struct sim_event *event)
{
    struct sim_late *late = CONTAINER_OF(event, struct sim_late, event);
    struct sim_write *write = &late->write;
    if (sim_inode_write_count(write->inode) == late->inode_writes) {
        sim_inode_write_close(write, false, false);
        late_free(late);
        return;
    }
    u64 file = sim_inode_number(write->inode);
    u64 parts[4] = {file, write->offset, write->size, 0};
    if (write->copy != NULL) parts[3] = crc32c(0, write->copy, write->size);
    sim_trace(late->node->sim, NULL, SIM_KIND_DISK, hash_bytes(parts, sizeof(parts), 0),
              "late write file,offset,bytes", file, write->offset, write->size);
    sim_inode_write_end(write, late->durable);
    late_free(late);
}

/* Whether the write is with the disk, and stays there; how long. */
static bool
request_outlives(struct sim_request *request, u64 *ns_out)
{
    struct sim *sim = request->shard->node->sim;
    const struct sim_disk_options *disk = &sim->options.disk;
    if (request->kind != REQUEST_WRITE || request->write.inode == NULL) return false;
    if (!ok(request->injected)) return false;
    if (!sim_fault_chance(sim, SIM_FAULT_LATE_WRITE, disk->late_ppm)) return false;
    struct prng prng = sim_fault_prng(sim, SIM_FAULT_LATE_WRITE);
    /* Half of them while the next process starts, or soon after. */
    u64 most_ns = prng_chance(&prng, 1, 2) ? disk->late_ns_max / 50 : disk->late_ns_max;
    *ns_out = sim_draw(&prng, 1, most_ns);
    char place[PLACE_BYTES];
    request_place(request, place);
    return sim_fault_take(sim, SIM_FAULT_LATE_WRITE, "%s: by %llu us", place,
                          (unsigned long long)(*ns_out / NS_PER_US));
}

void
sim_files_outlive(struct sim_node *node)
{
    struct sim *sim = node->sim;
    list_for_each (pos, &node->io_requests) {
        struct sim_request *request = list_entry(pos, struct sim_request, link);
        u64 ns;
        if (!request_outlives(request, &ns)) continue;
        struct sim_late *late = calloc(1, sizeof(*late));
        CHECK(late != NULL);
        late->node = node;
        late->durable = request->op->durable;
        late->inode_writes = sim_inode_write_count(request->write.inode);
        late->event.kind = SIM_KIND_DISK;
        late->event.fire = late_fires;
        sim_inode_write_outlive(&request->write, &late->write);
        list_push_back(&node->io_late, &late->link);
        sim_event_schedule(sim, &late->event, sim->now_ns + ns);
    }
}

void
sim_late_drop(struct sim_node *node)
{
    while (!list_empty(&node->io_late)) {
        struct sim_late *late = list_entry(list_first(&node->io_late), struct sim_late, link);
        sim_event_cancel(node->sim, &late->event);
        sim_inode_write_close(&late->write, false, false);
        late_free(late);
    }
}

/* ---- a node's requests ---- */

void
sim_files_hurry(struct sim_node *node)
{
    struct sim *sim = node->sim;
    u64 latest_ns = sim->now_ns + sim->options.disk.latency_ns_max;
    list_for_each (pos, &node->io_late) {
        struct sim_late *late = list_entry(pos, struct sim_late, link);
        if (late->event.time_ns <= latest_ns) continue;
        sim_event_cancel(sim, &late->event);
        sim_event_schedule(sim, &late->event, latest_ns);
    }
    list_for_each (pos, &node->io_requests) {
        struct sim_request *request = list_entry(pos, struct sim_request, link);
        if (!request->event.scheduled || request->event.time_ns <= latest_ns) continue;
        sim_event_cancel(sim, &request->event);
        sim_event_schedule(sim, &request->event, latest_ns);
    }
}

void
sim_files_drop(struct sim_node *node)
{
    list_splice_back(&node->io_requests, &node->io_queue);
    while (!list_empty(&node->io_requests)) {
        struct sim_request *request =
            list_entry(list_first(&node->io_requests), struct sim_request, link);
        sim_event_cancel(node->sim, &request->event);
        list_del(&request->arrival.link);
        request_free(request);
    }
    node->io_in_flight = 0;
}

/* ---- files ---- */

/* A seed's disks are all of one kind: a quarter reads whole pages only. */
u32
io_file_read_unit(const struct io_file *file)
{
    return file->read_unit;
}

MAY_YIELD status
io_file_open(const char *path, u32 flags, struct io_file **out)
{
    struct sim_shard *shard = sim_shard_current();
    struct io_file *file = mem_alloc_zero(io_budget(), sizeof(*file));
    if (file == NULL) return ST_NO_MEMORY;
    status st;
    if (memfs_path(path)) {
        st = memfs_open(&shard->memfs, path, flags, &file->memory);
    } else {
        bool create = (flags & IO_OPEN_CREATE) != 0;
        struct sim_request *request = request_new(create ? REQUEST_CREATE : REQUEST_OPEN);
        request->path = path;
        st = request_wait(request, &file->inode);
    }
    if (!ok(st)) {
        mem_free(io_budget(), file, sizeof(*file));
        return st;
    }
    bool pages = file->inode != NULL && shard->node->sim->options.seed % 4 == 0;
    file->read_unit = pages ? IO_ALIGNMENT : SIM_SECTOR_BYTES;
    file->writable = (flags & (IO_OPEN_WRITE | IO_OPEN_CREATE)) != 0;
    fiber_queue_init(&file->idle);
    list_push_back(&shard->files, &file->link);
    *out = file;
    return ST_OK;
}

MAY_YIELD void
io_file_close(struct io_file *file)
{
    if (file == NULL) return;
    while (file->in_flight > 0)
        (void)!ok(fiber_queue_wait(&file->idle, FIBER_FOREVER));
    struct sim_shard *shard = sim_shard_current();
    if (file->memory != NULL) {
        memfs_close(file->memory);
    } else {
        sim_disk_close(shard->node->disk, file->inode);
    }
    list_del(&file->link);
    mem_free(io_budget(), file, sizeof(*file));
}

MAY_YIELD void
io_file_close_removed(struct io_file *file)
{
    MARK("io.sim_file.closed_removed");
    while (file->in_flight > 0)
        (void)!ok(fiber_queue_wait(&file->idle, FIBER_FOREVER));
    /* A file system without a journal may lose the removal of the name, and not that of blocks. */
    if (file->memory == NULL && sim_inode_nameless(file->inode))
        CHECK(ok(sim_inode_truncate(file->inode, 0)));
    io_file_close(file);
}

static void
op_start(struct io_file *file, struct io_op *op, enum request_kind kind, enum io_class class,
         void *buffer, u32 size, u64 offset, bool durable)
{
    u32 unit = kind == REQUEST_READ ? io_file_read_unit(file) : IO_ALIGNMENT;
    CHECK(size > 0 && size % unit == 0 && offset % unit == 0);
    CHECK((uintptr_t)buffer % IO_ALIGNMENT == 0);
    op->result = ST_OK;
    op->file = file;
    op->buffer = buffer;
    op->offset = offset;
    op->size = size;
    op->transferred = 0;
    op->kind = (u8)kind;
    op->class = (u8) class;
    op->durable = durable;
    op->finished = false;
    list_init(&op->link);
    fiber_queue_init(&op->waiters);
    op->start_ns = io_now_ns();
    file->in_flight++;
    struct sim_request *request = request_new(kind);
    request->file = file;
    request->op = op;
    request_start(request);
}

void
io_file_read_start(struct io_file *file, struct io_op *op, enum io_class class, void *buffer,
                   u32 size, u64 offset)
{
    op_start(file, op, REQUEST_READ, class, buffer, size, offset, false);
}

void
io_file_write_start(struct io_file *file, struct io_op *op, enum io_class class, const void *buffer,
                    u32 size, u64 offset, bool durable)
{
    CHECK(file->writable);
    void *data = (void *)(uintptr_t)buffer; /* one field serves both; it is only read */
    op_start(file, op, REQUEST_WRITE, class, data, size, offset, durable);
}

/* The simulated disk has a cache for all that is not durable. */
void
io_file_write_cached_start(struct io_file *file, struct io_op *op, enum io_class class,
                           const void *buffer, u32 size, u64 offset)
{
    io_file_write_start(file, op, class, buffer, size, offset, false);
}

MAY_YIELD status
io_op_wait(struct io_op *op)
{
    CHECK(op->done == NULL);
    while (!op->finished)
        (void)!ok(fiber_queue_wait(&op->waiters, FIBER_FOREVER));
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

static MAY_YIELD status
file_request(struct io_file *file, enum request_kind kind, u64 size)
{
    struct sim_request *request = request_new(kind);
    request->file = file;
    request->size = size;
    file->in_flight++;
    status st = request_wait(request, NULL);
    if (--file->in_flight == 0) fiber_queue_wake_all(&file->idle);
    return st;
}

MAY_YIELD status
io_file_sync(struct io_file *file)
{
    io_current->stats.syncs++;
    if (file->memory != NULL) return ST_OK;
    return file_request(file, REQUEST_SYNC, 0);
}

/* Requests that touch no content: they take no time, and may fail. */
static bool
look_fails(struct sim_node *node, const char *what, const char *path)
{
    struct sim *sim = node->sim;
    u32 ppm = sim->options.disk.look_error_ppm;
    return ppm != 0 && sim_fault_chance(sim, SIM_FAULT_LOOK_ERROR, ppm) &&
           sim_fault_take(sim, SIM_FAULT_LOOK_ERROR, "%s %s %s", node->host, what, path);
}

MAY_YIELD status
io_file_size(struct io_file *file, u64 *size_out)
{
    if (file->memory != NULL) {
        *size_out = memfs_size(file->memory);
        return ST_OK;
    }
    if (look_fails(sim_shard_current()->node, "size of", sim_inode_path(file->inode)))
        return ST_IO_ERROR;
    *size_out = sim_inode_size(file->inode);
    return ST_OK;
}

MAY_YIELD status
io_file_truncate(struct io_file *file, u64 size)
{
    CHECK(file->writable);
    if (file->memory != NULL) return memfs_truncate(file->memory, size);
    return file_request(file, REQUEST_TRUNCATE, size);
}

MAY_YIELD status
io_file_allocate(struct io_file *file, u64 size)
{
    CHECK(file->writable);
    if (file->memory != NULL) return memfs_allocate(file->memory, size);
    return file_request(file, REQUEST_ALLOCATE, size);
}

MAY_YIELD status
io_file_fill(struct io_file *file, u64 size)
{
    CHECK(size % IO_ALIGNMENT == 0);
    if (file->memory != NULL) return memfs_fill(file->memory, size);
    status st = io_file_allocate(file, size);
    for (u64 offset = 0; ok(st) && offset < size; offset += LIMIT_IO_BYTES) {
        u32 part = (u32)MIN((u64)LIMIT_IO_BYTES, size - offset);
        st = io_file_write(file, IO_CLASS_COMPACTION, fill_zeros, part, offset, false);
    }
    return ok(st) ? io_file_sync(file) : st;
}

/* ---- names ---- */

static MAY_YIELD status
name_request(enum request_kind kind, const char *path, const char *path_to)
{
    struct sim_request *request = request_new(kind);
    request->path = path;
    request->path_to = path_to;
    return request_wait(request, NULL);
}

MAY_YIELD status
io_file_rename(const char *from, const char *to)
{
    if (memfs_path(from)) return memfs_rename(&sim_shard_current()->memfs, from, to);
    return name_request(REQUEST_RENAME, from, to);
}

MAY_YIELD status
io_file_link(const char *from, const char *to)
{
    if (memfs_path(from)) return memfs_link(&sim_shard_current()->memfs, from, to);
    return name_request(REQUEST_LINK, from, to);
}

MAY_YIELD status
io_file_unlink(const char *path)
{
    if (memfs_path(path)) return memfs_unlink(&sim_shard_current()->memfs, path);
    return name_request(REQUEST_UNLINK, path, NULL);
}

MAY_YIELD status
io_dir_make(const char *path)
{
    if (memfs_path(path)) return memfs_dir_make(&sim_shard_current()->memfs, path);
    return name_request(REQUEST_DIR_MAKE, path, NULL);
}

MAY_YIELD status
io_dir_remove(const char *path)
{
    if (memfs_path(path)) return memfs_dir_remove(&sim_shard_current()->memfs, path);
    return name_request(REQUEST_DIR_REMOVE, path, NULL);
}

MAY_YIELD status
io_dir_sync(const char *path)
{
    io_current->stats.syncs++;
    if (memfs_path(path)) return memfs_dir_sync(&sim_shard_current()->memfs, path);
    return name_request(REQUEST_DIR_SYNC, path, NULL);
}

/* A listing that fails has told some names. */
struct listing {
    void (*each)(void *arg, const char *name);
    void *arg;
    u32 left;
};

static void
list_some(void *arg, const char *name)
{
    struct listing *listing = arg;
    if (listing->left == 0) return;
    listing->left--;
    listing->each(listing->arg, name);
}

MAY_YIELD status
io_dir_list(const char *path, void (*each)(void *arg, const char *name), void *arg)
{
    struct sim_shard *shard = sim_shard_current();
    if (memfs_path(path)) return memfs_dir_list(&shard->memfs, path, each, arg);
    struct sim_node *node = shard->node;
    struct prng prng = sim_fault_prng(node->sim, SIM_FAULT_LOOK_ERROR);
    if (!look_fails(node, "list of", path)) return sim_disk_dir_list(node->disk, path, each, arg);
    struct listing listing = {.each = each, .arg = arg, .left = (u32)prng_below(&prng, 8)};
    status st = sim_disk_dir_list(node->disk, path, list_some, &listing);
    return ok(st) ? ST_IO_ERROR : st;
}

status
io_disk_free(const char *path, u64 *free_out, u64 *total_out)
{
    struct sim_shard *shard = sim_shard_current();
    if (memfs_path(path)) return memfs_disk_free(&shard->memfs, free_out, total_out);
    if (look_fails(shard->node, "free space of", path)) return ST_IO_ERROR;
    sim_disk_space(shard->node->disk, free_out, total_out);
    return ST_OK;
}

MAY_YIELD status
io_dir_lock(const char *path)
{
    struct sim_shard *shard = sim_shard_current();
    if (memfs_path(path)) return memfs_dir_lock(&shard->memfs, path);
    u64 deadline_ns = io_now_ns() + NS_PER_S;
    for (;;) {
        status st = sim_disk_dir_lock(shard->node->disk, path);
        if (!status_is(st, ST_LOCKED) || io_now_ns() >= deadline_ns) return st;
        fiber_sleep_ns(50 * NS_PER_MS);
    }
}

void
io_dir_unlock(const char *path)
{
    if (!memfs_path(path)) sim_disk_dir_unlock(sim_shard_current()->node->disk, path);
}
