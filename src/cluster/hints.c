/* SPDX-License-Identifier: MIT
 *
 * hints.c -- opening, adding and storing hints, and the index of what there is. See hints.h,
 * hints_internal.h.
 *
 *   hints_add --- room in the store? ---> lsm_write_try
 *        |                no
 *        +--------------> queue --- store fiber ---> lsm_write
 *        |
 *        +-- over a bound, or refused: dropped; the run needs repair, a marker says so
 */
#include "base/fault.h"
#include "base/hash.h"
#include "cluster/hints_internal.h"
#include "io/file.h"
#include "io/io.h"
#include "lsm/batch.h"

#define STORE_AGAIN_NS (10 * NS_PER_MS)

/* ---- runs ---- */

bool
hints_own_partition(const struct hints *h, u32 partition)
{
    return partition >= h->partition_first && partition - h->partition_first < h->partition_count;
}

struct hint_run *
hint_run_find(const struct hints *h, u32 partition, u32 target)
{
    struct hint_run *run = h->runs[partition - h->partition_first];
    while (run != NULL && run->target->member != target)
        run = run->next;
    return run;
}

static struct hint_target *
target_find(const struct hints *h, u32 member)
{
    list_for_each (pos, &h->targets) {
        struct hint_target *target = list_entry(pos, struct hint_target, link);
        if (target->member == member) return target;
    }
    return NULL;
}

static struct hint_target *
target_get(struct hints *h, u32 member)
{
    struct hint_target *target = target_find(h, member);
    if (target != NULL) return target;
    target = mem_alloc_zero(h->options.budget, sizeof(*target));
    if (target == NULL) return MARKED("cluster.hints.target_no_memory", NULL);
    target->member = member;
    list_push_back(&h->targets, &target->link);
    if (member == h->self) h->to_self = target;
    return target;
}

static void
target_free(struct hints *h, struct hint_target *target)
{
    if (target->run_count > 0) return;
    if (h->to_self == target) h->to_self = NULL;
    list_del(&target->link);
    mem_free(h->options.budget, target, sizeof(*target));
}

struct hint_run *
hint_run_get(struct hints *h, u32 partition, u32 member)
{
    struct hint_run *run = hint_run_find(h, partition, member);
    if (run != NULL) return run;
    struct hint_target *target = target_get(h, member);
    if (target == NULL) return NULL;
    run = mem_alloc_zero(h->options.budget, sizeof(*run));
    if (run == NULL) {
        MARK("cluster.hints.run_no_memory");
        target_free(h, target);
        return NULL;
    }
    h->run_bytes += sizeof(*run);
    struct hint_run **first = &h->runs[partition - h->partition_first];
    run->next = *first;
    *first = run;
    run->target = target;
    run->partition = partition;
    run->version_oldest = run->pass_oldest = UINT64_MAX;
    target->run_count++;
    return run;
}

void
hint_run_count(struct hints *h, struct hint_run *run, u64 version, u64 bytes)
{
    run->version_oldest = MIN(run->version_oldest, version);
    run->pass_oldest = MIN(run->pass_oldest, version);
    run->waiting++;
    run->target->waiting++;
    h->waiting++;
    run->waiting_bytes += bytes;
    run->target->waiting_bytes += bytes;
    h->waiting_bytes += bytes;
}

static void
bytes_uncount(struct hints *h, struct hint_run *run, u64 bytes)
{
    bytes = MIN(bytes, run->waiting_bytes);
    run->waiting_bytes -= bytes;
    run->target->waiting_bytes -= bytes;
    h->waiting_bytes -= bytes;
}

void
hint_run_uncount(struct hints *h, struct hint_run *run, u64 bytes)
{
    if (run->waiting == 0) return; /* of what could not be read when it was counted */
    run->waiting--;
    run->target->waiting--;
    h->waiting--;
    bytes_uncount(h, run, bytes);
}

void
hint_runs_prune(struct hints *h)
{
    for (u32 i = 0; i < h->partition_count; i++) {
        struct hint_run **at = &h->runs[i];
        while (*at != NULL) {
            struct hint_run *run = *at;
            struct hint_target *target = run->target;
            if (run->waiting > 0 || run->repair || run->marked || run->marking || run->queued > 0) {
                at = &run->next;
                continue;
            }
            *at = run->next;
            mem_free(h->options.budget, run, sizeof(*run));
            h->run_bytes -= sizeof(*run);
            target->run_count--;
            target_free(h, target);
        }
    }
}

void
hint_run_lost(struct hints *h, struct hint_run *run, u64 version)
{
    run->repair_oldest = run->repair ? MIN(run->repair_oldest, version) : version;
    run->repair_newest = run->repair ? MAX(run->repair_newest, version) : version;
    run->repair = true;
    h->markers_due = true;
    fiber_queue_wake_all(&h->wake);
}

/* ---- markers ---- */

static bool
marker_is_right(const struct hint_run *run)
{
    return run->repair ? run->marked && run->marked_version == run->repair_oldest : !run->marked;
}

/* One operation; false: no memory. */
static bool
marker_put(const struct hints *h, struct hint_run *run, struct lsm_batch *batch)
{
    u8 bytes[HINT_KEY_BYTES], version[8];
    struct hint_key key = {.target = run->target == NULL ? 0 : run->target->member,
                           .kind = HINT_KIND_MARKER};
    struct bytes name = BYTES(bytes, hint_key_encode(hint_tag_of(h, run->partition), &key, bytes));
    store_u64(version, run->repair_oldest);
    bool put = run->repair ? lsm_batch_put(batch, KEYSPACE_HINTS, hash_token(name), name,
                                           BYTES(version, sizeof(version)), 0)
                           : lsm_batch_delete(batch, KEYSPACE_HINTS, hash_token(name), name);
    if (!put) return false;
    run->marked = run->repair;
    run->marked_version = run->repair_oldest;
    run->marking = true;
    return true;
}

static void
markers_written(struct hint_run *run, bool written)
{
    if (!run->marking) return;
    run->marking = false;
    if (written) return;
    /* Whatever it should be, it is not so now. */
    run->marked = !run->repair;
    run->marked_version = 0;
}

MAY_YIELD bool
hint_markers_write(struct hints *h)
{
    if (!h->markers_due) return true;
    h->markers_due = false;
    struct lsm_batch batch;
    lsm_batch_init(&batch, h->options.budget);
    batch.of_reserve = true; /* no hint is deleted before it */
    bool whole = true;
    if (!marker_is_right(&h->all)) whole = marker_put(h, &h->all, &batch);
    for (u32 i = 0; i < h->partition_count && whole; i++)
        for (struct hint_run *run = h->runs[i]; run != NULL && whole; run = run->next)
            if (!marker_is_right(run)) {
                whole = batch.count < HINTS_DELETE_OPS && marker_put(h, run, &batch);
                if (!whole) break;
            }
    u64 seq;
    status st = batch.count == 0 ? ST_OK : lsm_write(h->options.lsm, &batch, &seq);
    markers_written(&h->all, ok(st));
    for (u32 i = 0; i < h->partition_count; i++)
        for (struct hint_run *run = h->runs[i]; run != NULL; run = run->next)
            markers_written(run, ok(st));
    lsm_batch_deinit(&batch);
    if (!ok(st)) MARK("cluster.hints.marker_refused");
    h->markers_due = h->markers_due || !whole || !ok(st);
    return whole && ok(st);
}

/* ---- the queue ---- */

u64
hint_queue_oldest(const struct hints *h, const struct hint_run *run)
{
    u64 oldest = UINT64_MAX;
    if (run->queued == 0) return oldest;
    list_for_each (pos, &h->queue) {
        const struct hint_queued *queued = list_entry(pos, struct hint_queued, link);
        if (queued->run == run) oldest = MIN(oldest, queued->key.version);
    }
    return oldest;
}

bool
hint_queue_has(const struct hints *h, const struct hint_run *run, u64 version)
{
    list_for_each (pos, &h->queue) {
        const struct hint_queued *queued = list_entry(pos, struct hint_queued, link);
        if (queued->run == run && queued->key.version == version) return true;
    }
    return false;
}

static u64
hint_bytes(size_t ops_bytes)
{
    return ops_bytes + (u64)hint_parts(ops_bytes) * HINT_ENTRY_BYTES;
}

/* The parts from *part on that one batch takes; moves *part. False: no memory. */
static bool
parts_put(const struct hints *h, u32 partition, struct hint_key *key, struct bytes ops,
          struct lsm_batch *batch)
{
    for (; key->part < key->parts; key->part++) {
        size_t from = (size_t)key->part * LIMIT_VALUE_BYTES;
        struct bytes value = BYTES(ops.data + from, MIN(ops.size - from, LIMIT_VALUE_BYTES));
        u8 bytes[HINT_KEY_BYTES];
        struct bytes name = BYTES(bytes, hint_key_encode(hint_tag_of(h, partition), key, bytes));
        if (batch->count > 0 &&
            batch->ops.size + value.size + sizeof(struct log_op) + name.size > LIMIT_BATCH_BYTES)
            return true;
        if (!lsm_batch_put(batch, KEYSPACE_HINTS, hash_token(name), name, value, 0)) return false;
    }
    return true;
}

/* *parts_out: how many are there, of one that is refused. */
static MAY_YIELD status
queued_store(struct hints *h, struct hint_queued *queued, u32 *parts_out)
{
    struct hint_key key = queued->key;
    *parts_out = 0;
    struct lsm_batch batch;
    lsm_batch_init(&batch, h->options.budget);
    status st = ST_OK;
    while (ok(st) && key.part < key.parts) {
        lsm_batch_clear(&batch);
        u64 seq;
        st = parts_put(h, queued->run->partition, &key, BYTES(queued->ops, queued->size), &batch)
                 ? lsm_write(h->options.lsm, &batch, &seq)
                 : ST_NO_MEMORY;
        while (status_is(st, ST_OVERLOADED) && !h->closing) {
            fiber_sleep_ns(STORE_AGAIN_NS);
            st = lsm_write(h->options.lsm, &batch, &seq);
        }
        if (ok(st)) *parts_out = key.part;
    }
    lsm_batch_deinit(&batch);
    return st;
}

/* Some of its parts may be there: they count until a pass finds that the others are not, and has
 * deleted them. */
static void
queued_lose(struct hints *h, struct hint_queued *queued, u32 parts)
{
    MARK("cluster.hints.queued_refused");
    h->stats.dropped++;
    u64 bytes = hint_bytes(queued->size);
    if (parts == 0)
        hint_run_uncount(h, queued->run, bytes);
    else
        bytes_uncount(h, queued->run, bytes - parts * (LIMIT_VALUE_BYTES + HINT_ENTRY_BYTES));
    hint_run_lost(h, queued->run, queued->key.version);
}

static u64
queued_bytes(size_t ops_bytes)
{
    return sizeof(struct hint_queued) + ops_bytes;
}

static bool
queue_has_room(const struct hints *h, u64 bytes)
{
    u64 limit = h->options.budget->limit_bytes;
    if (h->queue_bytes == 0) return bytes <= MIN(limit / 2, (u64)HINTS_QUEUE_BYTES);
    return h->queue_bytes + bytes <= MIN(limit / 4, (u64)HINTS_QUEUE_BYTES);
}

static void
queued_free(struct hints *h, struct hint_queued *queued)
{
    list_del(&queued->link);
    queued->run->queued--;
    u64 bytes = queued_bytes(queued->size);
    h->queue_bytes -= bytes;
    mem_free(h->options.budget, queued, bytes);
}

static MAY_YIELD void
store_main(void *arg)
{
    struct hints *h = arg;
    struct list *first;
    while ((first = list_first(&h->queue)) != NULL) {
        struct hint_queued *queued = list_entry(first, struct hint_queued, link);
        u32 parts;
        if (!ok(queued_store(h, queued, &parts))) queued_lose(h, queued, parts);
        queued_free(h, queued);
    }
    h->storing = false;
    fiber_queue_wake_all(&h->idle);
    fiber_queue_wake_all(&h->wake);
}

void
hint_store_go_on(struct hints *h)
{
    if (h->storing || list_empty(&h->queue)) return;
    h->storing = ok(fiber_spawn(FIBER_FOREGROUND, "hints-store", store_main, h));
}

static status
hint_queue(struct hints *h, struct hint_run *run, const struct hint_key *key, struct bytes ops)
{
    u64 bytes = queued_bytes(ops.size);
    if (!queue_has_room(h, bytes)) return MARKED("cluster.hints.queue_full", ST_OVERLOADED);
    struct hint_queued *queued = mem_alloc(h->options.budget, bytes);
    if (queued == NULL) return MARKED("cluster.hints.queue_no_memory", ST_NO_MEMORY);
    *queued = (struct hint_queued){.run = run, .key = *key, .size = ops.size};
    memcpy(queued->ops, ops.data, ops.size);
    list_push_back(&h->queue, &queued->link);
    run->queued++;
    h->queue_bytes += bytes;
    hint_store_go_on(h);
    return ST_OK;
}

/* ---- adding ---- */

/* As one batch, or not at all. */
static status
hint_store_try(struct hints *h, const struct hint_run *run, const struct hint_key *key,
               struct bytes ops, u64 *seq_out)
{
    struct hint_key parts = *key;
    struct lsm_batch batch;
    lsm_batch_init(&batch, h->options.budget);
    status st = parts_put(h, run->partition, &parts, ops, &batch) ? ST_OK : ST_NO_MEMORY;
    if (ok(st) && parts.part < parts.parts) st = ST_TOO_LARGE;
    if (ok(st)) st = lsm_write_try(h->options.lsm, &batch, seq_out);
    lsm_batch_deinit(&batch);
    return st;
}

static status
hint_keep(struct hints *h, struct hint_run *run, const struct hint_key *key, struct bytes ops)
{
    u64 bytes = hint_bytes(ops.size);
    if (h->waiting_bytes + bytes > h->options.disk_bytes_max)
        return MARKED("cluster.hints.full", ST_NO_SPACE);
    /* In the order of arrival, and the largest not in somebody's callback. */
    status st = ST_WOULD_WAIT;
    u64 seq;
    if (list_empty(&h->queue) && key->parts == 1) st = hint_store_try(h, run, key, ops, &seq);
    if (status_is(st, ST_WOULD_WAIT) || status_is(st, ST_OVERLOADED))
        st = hint_queue(h, run, key, ops);
    if (!ok(st)) return st;
    hint_run_count(h, run, key->version, bytes);
    return ST_OK;
}

static struct hint_key
hint_key_of(const struct hints *h, u32 member, const struct lsm_batch *batch, u32 *partition_out)
{
    struct bytes rest = buf_bytes(&batch->ops);
    struct lsm_op op;
    bool bad;
    CHECK(member != 0 && batch->version != 0 && lsm_op_next(&rest, &op, &bad));
    u32 partition = token_partition(op.header.token, PARTITION_COUNT_DEFAULT);
    CHECK(hints_own_partition(h, partition));
    *partition_out = partition;
    return (struct hint_key){.target = member,
                             .kind = HINT_KIND_WRITE,
                             .version = batch->version,
                             .keyspace = op.header.keyspace,
                             .count = batch->count,
                             .parts = (u16)hint_parts(batch->ops.size)};
}

/* For one more; what an earlier life left is counted though there are too many. */
static struct hint_run *
run_for_more(struct hints *h, u32 partition, u32 member)
{
    if (hint_run_find(h, partition, member) == NULL &&
        h->run_bytes + sizeof(struct hint_run) > h->options.budget->limit_bytes / 4)
        return MARKED("cluster.hints.runs_full", NULL);
    return hint_run_get(h, partition, member);
}

void
hints_add(struct hints *h, u32 member, const struct lsm_batch *batch)
{
    u32 partition;
    struct hint_key key = hint_key_of(h, member, batch, &partition);
    h->stats.added++;
    struct hint_run *run = run_for_more(h, partition, member);
    status st = run == NULL ? ST_NO_MEMORY : hint_keep(h, run, &key, buf_bytes(&batch->ops));
    if (!ok(st)) {
        h->stats.dropped++;
        hint_run_lost(h, run == NULL ? &h->all : run, batch->version);
        return;
    }
    if (h->waiting == 1) fiber_queue_wake_all(&h->wake);
}

status
hints_keep(struct hints *h, u32 member, const struct lsm_batch *batch, u64 *seq_out)
{
    u32 partition;
    struct hint_key key = hint_key_of(h, member, batch, &partition);
    u64 bytes = hint_bytes(batch->ops.size);
    if (h->waiting_bytes + bytes > h->options.disk_bytes_max)
        return MARKED("cluster.hints.keep_full", ST_NO_SPACE);
    struct hint_run *run = run_for_more(h, partition, member);
    if (run == NULL) return ST_NO_MEMORY;
    status st = hint_store_try(h, run, &key, buf_bytes(&batch->ops), seq_out);
    if (!ok(st)) return st; /* a run of nothing is pruned */
    hint_run_count(h, run, key.version, bytes);
    h->stats.kept++;
    if (h->waiting == 1) fiber_queue_wake_all(&h->wake); /* else it looks by itself */
    return ST_OK;
}

/* ---- opening and closing ---- */

status
hints_disk_bytes(const char *dir, u32 percent, u32 shard_count, u64 *out)
{
    u64 free_bytes, total_bytes;
    status st = io_disk_free(dir, &free_bytes, &total_bytes);
    if (!ok(st)) return st;
    *out = total_bytes / 100 * percent / MAX(shard_count, 1u);
    return ST_OK;
}

static void
hints_free(struct hints *h)
{
    struct budget *budget = h->options.budget;
    mem_free(budget, h->tags, h->partition_count * sizeof(*h->tags));
    mem_free(budget, h->runs, h->partition_count * sizeof(struct hint_run *));
    mem_free(budget, h, sizeof(*h));
}

status
hints_open(const struct hints_options *options, struct hints **out)
{
    struct hints *h = mem_alloc_zero(options->budget, sizeof(*h));
    if (h == NULL) return MARKED("cluster.hints.no_memory", ST_NO_MEMORY);
    h->options = *options;
    if (h->options.window_ms == 0) h->options.window_ms = HINTS_WINDOW_MS;
    if (h->options.replay_bytes_per_s == 0)
        h->options.replay_bytes_per_s = HINTS_REPLAY_BYTES_PER_S;
    u64 first, last;
    lsm_tokens(options->lsm, &first, &last);
    h->partition_first = token_partition(first, PARTITION_COUNT_DEFAULT);
    h->partition_count = token_partition(last, PARTITION_COUNT_DEFAULT) - h->partition_first + 1;
    h->open_seq = lsm_seq_last(options->lsm);
    list_init(&h->targets);
    list_init(&h->queue);
    list_init(&h->flying);
    list_init(&h->ended);
    list_init(&h->deleting);
    fiber_queue_init(&h->wake);
    fiber_queue_init(&h->idle);
    buf_init(&h->joined, options->budget);
    h->all = (struct hint_run){
        .partition = h->partition_first, .version_oldest = UINT64_MAX, .pass_oldest = UINT64_MAX};
    h->tags = mem_alloc(options->budget, h->partition_count * sizeof(*h->tags));
    h->runs = mem_alloc_zero(options->budget, h->partition_count * sizeof(struct hint_run *));
    status st = h->tags == NULL || h->runs == NULL
                    ? ST_NO_MEMORY
                    : fiber_spawn(FIBER_BACKGROUND, "hints", hints_main, h);
    if (!ok(st)) {
        hints_free(h);
        return st;
    }
    hint_tags_find(h->partition_first, h->partition_count, h->tags);
    *out = h;
    return ST_OK;
}

MAY_YIELD void
hints_close(struct hints *h)
{
    if (h == NULL) return;
    h->closing = true;
    fiber_queue_wake_all(&h->wake);
    while (!h->main_ended || h->storing || !list_empty(&h->queue)) {
        hint_store_go_on(h);
        (void)fiber_queue_wait(&h->idle, io_now_ns() + STORE_AGAIN_NS);
    }
    (void)hint_markers_write(h);
    for (u32 i = 0; i < h->partition_count; i++)
        for (struct hint_run *run = h->runs[i]; run != NULL; run = run->next) {
            run->waiting = 0;
            run->repair = run->marked = false;
        }
    hint_runs_prune(h);
    if (h->topology != NULL) topology_release(h->topology);
    buf_deinit(&h->joined);
    hints_free(h);
}

void
hints_own_set(struct hints *h, const struct hints_own *own)
{
    h->own = own == NULL ? (struct hints_own){0} : *own;
}

void
hints_topology_set(struct hints *h, struct topology *topology, u32 self)
{
    topology_hold(topology);
    if (h->topology != NULL) topology_release(h->topology);
    h->topology = topology;
    if (self != h->self) h->to_self = target_find(h, self);
    h->self = self;
    fiber_queue_wake_all(&h->wake);
}

u64
hints_epoch(const struct hints *h)
{
    if (list_empty(&h->flying)) return UINT64_MAX;
    return list_entry(list_first(&h->flying), struct hint_sent, link)->epoch;
}

/* ---- questions ---- */

u64
hints_oldest_version(const struct hints *h)
{
    if (!h->loaded || h->unreadable) return 0;
    u64 oldest = h->all.repair ? h->all.repair_oldest : UINT64_MAX;
    for (u32 i = 0; i < h->partition_count; i++)
        for (const struct hint_run *run = h->runs[i]; run != NULL; run = run->next) {
            if (run->waiting > 0) oldest = MIN(oldest, run->version_oldest);
            if (run->repair) oldest = MIN(oldest, run->repair_oldest);
        }
    return oldest;
}

u64
hints_oldest_waiting(const struct hints *h)
{
    if (!h->loaded || h->unreadable) return 0;
    u64 oldest = UINT64_MAX;
    for (u32 i = 0; i < h->partition_count; i++)
        for (const struct hint_run *run = h->runs[i]; run != NULL; run = run->next)
            if (run->waiting > 0) oldest = MIN(oldest, run->version_oldest);
    return oldest;
}

/* The cursor is one more than (partition << 32 | member) of what was told last; the one of all is
 * the last. */
#define CURSOR_ALL ((u64)HINTS_EVERY << 32)

bool
hints_repair_next(const struct hints *h, u64 *cursor, struct hints_repair *out)
{
    u64 from = MAX(*cursor, (u64)h->partition_first << 32);
    for (u32 i = (u32)(from >> 32) - h->partition_first; i < h->partition_count; i++) {
        u32 partition = h->partition_first + i;
        const struct hint_run *best = NULL;
        for (const struct hint_run *run = h->runs[i]; run != NULL; run = run->next) {
            u64 place = (u64)partition << 32 | run->target->member;
            if (!run->repair || place < from) continue;
            if (best == NULL || run->target->member < best->target->member) best = run;
        }
        if (best == NULL) continue;
        *out = (struct hints_repair){partition, best->target->member, best->repair_oldest};
        *cursor = ((u64)partition << 32 | best->target->member) + 1;
        return true;
    }
    if (!h->all.repair || *cursor > CURSOR_ALL) return false;
    *out = (struct hints_repair){HINTS_EVERY, HINTS_EVERY, h->all.repair_oldest};
    *cursor = CURSOR_ALL + 1;
    return true;
}

static void
run_repaired(struct hints *h, struct hint_run *run, u64 version)
{
    if (!run->repair || run->repair_newest > version) return;
    run->repair = false;
    h->markers_due = true;
    fiber_queue_wake_all(&h->wake);
}

void
hints_repaired(struct hints *h, u32 partition, u32 target, u64 version)
{
    if (target == HINTS_EVERY && partition == HINTS_EVERY) run_repaired(h, &h->all, version);
    if (!hints_own_partition(h, partition)) return;
    for (struct hint_run *run = h->runs[partition - h->partition_first]; run != NULL;
         run = run->next)
        if (target == HINTS_EVERY || run->target->member == target) run_repaired(h, run, version);
}

bool
hints_wait_for_others(const struct hints *h)
{
    u64 for_self = h->to_self == NULL ? 0 : h->to_self->waiting;
    return !h->loaded || h->waiting > for_self;
}

void
hints_stats_get(const struct hints *h, struct hints_stats *out)
{
    *out = h->stats;
    out->waiting = h->waiting;
    out->waiting_bytes = h->waiting_bytes;
    out->queued_bytes = h->queue_bytes;
    out->loaded = h->loaded;
    out->repairs_due = h->all.repair;
    u64 oldest = UINT64_MAX;
    for (u32 i = 0; i < h->partition_count; i++)
        for (const struct hint_run *run = h->runs[i]; run != NULL; run = run->next) {
            if (run->waiting > 0) oldest = MIN(oldest, run->version_oldest);
            out->repairs_due += run->repair;
        }
    out->version_oldest = oldest == UINT64_MAX ? 0 : oldest;
}

bool
hints_target_next(const struct hints *h, u32 after, struct hints_target *out)
{
    const struct hint_target *best = NULL;
    list_for_each (pos, &h->targets) {
        const struct hint_target *target = list_entry(pos, struct hint_target, link);
        if (target->member > after && (best == NULL || target->member < best->member))
            best = target;
    }
    if (best == NULL) return false;
    *out = (struct hints_target){
        .member = best->member, .waiting = best->waiting, .waiting_bytes = best->waiting_bytes};
    u64 oldest = UINT64_MAX;
    for (u32 i = 0; i < h->partition_count; i++) {
        const struct hint_run *run = hint_run_find(h, h->partition_first + i, best->member);
        if (run == NULL) continue;
        if (run->waiting > 0) oldest = MIN(oldest, run->version_oldest);
        out->repairs_due += run->repair;
    }
    out->version_oldest = oldest == UINT64_MAX ? 0 : oldest;
    return true;
}
