/* SPDX-License-Identifier: MIT
 *
 * group0_apply.c -- what was decided becomes the topology. One fiber does all that changes what
 * the log begins behind, what is applied and what is shown (G3):
 *
 *   committed entries    the commit mark is made durable first (G2), then they are applied in order
 *   enough log           the topology goes to the store as a snapshot, and the log before it goes
 *   a leader's snapshot  replaces all that was there
 *
 * A command is the same everywhere: applied, or refused for a reason that lies in the state. Only
 * running out of memory is not, and is waited out; and a command that this program does not know,
 * or a snapshot of another format, since members of a later version have made it, ends this
 * member's part: whatever it took for the topology from then on might be another one than theirs.
 */
#include "cluster/group0_internal.h"

#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"

/* ---- bytes that are shared ---- */

struct group0_blob *
group0_blob_new(struct group0 *group0, u64 size)
{
    struct group0_blob *blob = mem_alloc(group0->options.budget, sizeof(*blob) + size);
    if (blob == NULL) return NULL;
    blob->references = 1;
    blob->size = size;
    return blob;
}

void
group0_blob_release(struct group0 *group0, struct group0_blob *blob)
{
    if (blob != NULL && --blob->references == 0)
        mem_free(group0->options.budget, blob, sizeof(*blob) + blob->size);
}

/* ---- entries ---- */

void
group0_pause(void)
{
    if (fiber_should_yield()) fiber_yield();
}

/* The outcome of one command; *next_out: the new topology, or NULL. ST_UNSUPPORTED: see above. Who
 * serves already (show) is not held up by a plan. */
static MAY_YIELD status
command_apply(struct group0 *group0, struct bytes data, bool show, struct topology **next_out,
              struct group0_outcome *outcome)
{
    struct topology_command command;
    *next_out = NULL;
    *outcome = (struct group0_outcome){.result = GROUP0_REFUSED};
    status st = topology_command_decode(data, &command);
    if (!ok(st)) {
        MARK("cluster.group0.unknown_command");
        group0_outdated(group0);
        return ST_UNSUPPORTED;
    }
    const struct topology *present = group0->topology;
    st = topology_apply(present, &command, show ? group0_pause : NULL, next_out, outcome->reason);
    CHECK(group0->topology == present); /* nobody changes it but this fiber */
    if (status_is(st, ST_NO_MEMORY)) return st;
    if (ok(st) || status_is(st, ST_EXISTS))
        outcome->result = GROUP0_DONE;
    else if (status_is(st, ST_CONFLICT))
        outcome->result = GROUP0_CONFLICT;
    return ST_OK;
}

/* The entry behind `applied`. ST_NO_MEMORY, ST_UNSUPPORTED: nothing has changed. */
static MAY_YIELD status
entry_apply(struct group0 *group0, bool show)
{
    u64 index = group0->applied + 1;
    struct group0_item *item = group0_log_at(group0, index);
    CHECK(item != NULL); /* committed: nobody takes it away but this fiber */
    struct group0_outcome outcome = {.result = GROUP0_DONE, .index = index};
    struct topology *next = NULL;
    u64 term = item->term;
    if (item->kind == RAFT_ENTRY_CONFIG) {
        if (!buf_reserve(&group0->applied_config, item->size)) return ST_NO_MEMORY;
        group0->applied_config.size = 0;
        if (!buf_append(&group0->applied_config, item->data, item->size)) return ST_NO_MEMORY;
    } else if (item->kind == RAFT_ENTRY_DATA && group0->topology != NULL) {
        status st = command_apply(group0, BYTES(item->data, item->size), show, &next, &outcome);
        if (!ok(st)) return st;
        outcome.index = index;
    }
    group0->applied = index;
    if (next != NULL && show) {
        group0_publish(group0, next);
    } else if (next != NULL) {
        topology_release(group0->topology);
        group0->topology = next;
        group0_quorums_follow(group0);
    }
    group0_proposals_applied(group0, index, term, &outcome);
    return ST_OK;
}

status
group0_apply_stored(struct group0 *group0)
{
    while (group0->applied < group0->commit_mark) {
        status st = entry_apply(group0, false);
        if (!ok(st)) return st;
    }
    return ST_OK;
}

/* G2 */
static MAY_YIELD status
mark_write(struct group0 *group0, u64 index)
{
    u8 value[GROUP0_COMMIT_BYTES];
    group0_commit_encode(index, value);
    if (!group0_put(group0, group0_key(GROUP0_KEY_COMMIT, 0, 0), BYTES(value, sizeof(value))))
        return ST_NO_MEMORY;
    status st = group0_write_wait(group0, group0_write_post(group0));
    if (ok(st)) group0->commit_mark = MAX(group0->commit_mark, index);
    return st;
}

static MAY_YIELD status
apply_all(struct group0 *group0)
{
    u64 target = group0->apply_target;
    if (target > group0->commit_mark) {
        status st = mark_write(group0, target);
        if (!ok(st)) return st;
    }
    while (group0->applied < target && group0_works(group0)) {
        status st = entry_apply(group0, true);
        if (!ok(st)) return st;
        if (fiber_should_yield()) fiber_yield();
    }
    fiber_queue_wake_all(&group0->applied_queue);
    return ST_OK;
}

/* ---- snapshots of our own ---- */

/* Into `next`: base instead of what the log began behind, and nothing of what is before it. */
static MUST_CHECK bool
base_put(struct group0 *group0, const struct group0_base *base, u64 log_last)
{
    size_t size = group0->next.ops.size;
    u32 count = group0->next.count;
    struct buf value;
    u8 mark[GROUP0_COMMIT_BYTES];
    buf_init(&value, group0->options.budget);
    group0_commit_encode(MAX(group0->commit_mark, base->index), mark);
    bool done = group0_base_encode(base, &value) &&
                group0_put(group0, group0_key(GROUP0_KEY_BASE, 0, 0), buf_bytes(&value)) &&
                group0_put(group0, group0_key(GROUP0_KEY_COMMIT, 0, 0), BYTES(mark, sizeof(mark)));
    buf_deinit(&value);
    for (u64 index = group0->disk_first; index <= log_last && done; index++)
        done = group0_delete(group0, group0_key(GROUP0_KEY_LOG, index, 0));
    for (u32 i = 0; i < group0->base_chunks && done; i++)
        done = group0_delete(group0, group0_key(GROUP0_KEY_CHUNK, group0->base_index, i));
    if (done && group0_write_reserve(group0)) return true;
    group0->next.ops.size = size;
    group0->next.count = count;
    return false;
}

static bool
wants_snapshot(const struct group0 *group0)
{
    if (group0->topology == NULL || group0->applied == group0->base_index) return false;
    if (group0->install.wanted || io_now_ns() < group0->snapshot_retry_ns) return false;
    u32 entries = group0->options.snapshot_entries;
    if (entries == 0) entries = GROUP0_SNAPSHOT_ENTRIES;
    return group0->applied - group0->base_index >= entries ||
           group0->item_bytes >= GROUP0_SNAPSHOT_BYTES;
}

static MAY_YIELD status
snapshot_write(struct group0 *group0, struct bytes topology, u64 index, u64 term)
{
    struct group0_base base = {.index = index,
                               .term = term,
                               .bytes = topology.size,
                               .config = buf_bytes(&group0->applied_config)};
    status st = group0_write_chunks(group0, index, topology, &base.chunk_count);
    if (!ok(st)) return st;
    struct group0_blob *blob = group0_blob_new(group0, topology.size);
    if (blob == NULL) return ST_NO_MEMORY;
    memcpy(blob->data, topology.data, topology.size);
    struct buf config;
    buf_init(&config, group0->options.budget);
    if (buf_append(&config, base.config.data, base.config.size) && base_put(group0, &base, index))
        st = group0_write_wait(group0, group0_write_post(group0));
    else
        st = ST_NO_MEMORY;
    if (!ok(st)) {
        group0_blob_release(group0, blob);
        buf_deinit(&config);
        return st;
    }
    /* No yield from here on: raft sees the one or the other. */
    group0_log_trim(group0, index);
    group0->base_term = term;
    group0->base_chunks = base.chunk_count;
    group0->disk_first = index + 1;
    buf_deinit(&group0->base_config);
    group0->base_config = config;
    group0_blob_release(group0, group0->base_blob);
    group0->base_blob = blob;
    group0->snapshots++;
    return ST_OK;
}

static MAY_YIELD status
snapshot_take(struct group0 *group0)
{
    u64 index = group0->applied;
    u64 term = group0_log_at(group0, index)->term;
    struct buf bytes;
    buf_init(&bytes, group0->options.budget);
    status st = ST_NO_MEMORY;
    if (topology_encode(group0->topology, &bytes))
        st = snapshot_write(group0, buf_bytes(&bytes), index, term);
    buf_deinit(&bytes);
    return st;
}

/* ---- a leader's snapshot ---- */

static MAY_YIELD status
install_write(struct group0 *group0)
{
    struct bytes bytes = buf_bytes(&group0->install.data);
    struct group0_base base = {.index = group0->install.index,
                               .term = group0->install.term,
                               .bytes = bytes.size,
                               .config = buf_bytes(&group0->install.config)};
    status st = group0_write_chunks(group0, base.index, bytes, &base.chunk_count);
    if (!ok(st)) return st;
    struct group0_blob *blob = group0_blob_new(group0, bytes.size);
    if (blob == NULL) return ST_NO_MEMORY;
    memcpy(blob->data, bytes.data, bytes.size);
    bool done = buf_reserve(&group0->base_config, base.config.size) &&
                buf_reserve(&group0->applied_config, base.config.size) &&
                base_put(group0, &base, group0->disk_last);
    if (done) st = group0_write_wait(group0, group0_write_post(group0));
    /* What raft says to it must not be refused then. */
    while (done && ok(st) && !group0_write_reserve(group0)) {
        fiber_sleep_ns(GROUP0_RETRY_NS);
        if (!group0_works(group0)) st = ST_CLOSED;
    }
    if (!done || !ok(st)) {
        group0_blob_release(group0, blob);
        return done ? st : ST_NO_MEMORY;
    }
    /* No yield from here until raft knows. */
    group0_log_clear(group0);
    group0->base_index = base.index;
    group0->base_term = base.term;
    group0->base_chunks = base.chunk_count;
    group0->commit_mark = MAX(group0->commit_mark, base.index);
    group0->disk_first = base.index + 1;
    group0->disk_last = base.index;
    struct buf *configs[] = {&group0->base_config, &group0->applied_config};
    for (u32 i = 0; i < 2; i++) {
        configs[i]->size = 0;
        bool reserved = buf_append(configs[i], base.config.data, base.config.size);
        CHECK(reserved);
    }
    group0_blob_release(group0, group0->base_blob);
    group0->base_blob = blob;
    group0->applied = group0->apply_target = base.index;
    return ST_OK;
}

/* True when raft was told. */
static bool
install_tell(struct group0 *group0, bool done)
{
    struct raft_snapshot snapshot = {.index = group0->install.index,
                                     .term = group0->install.term,
                                     .config = buf_bytes(&group0->install.config)};
    if (!group0_input_begin(group0)) return false;
    group0->install.wanted = false;
    status st = raft_snapshot_installed(&group0->raft, &snapshot, done, &group0->ready);
    if (ok(st))
        group0_input_end(group0);
    else if (done)
        group0_fail(group0, st, "a snapshot that raft did not take");
    buf_deinit(&group0->install.data);
    return true;
}

static MAY_YIELD status
install(struct group0 *group0)
{
    struct topology *topology = NULL;
    status st = ST_CORRUPT;
    if (group0->install.config.size > 0)
        st = topology_decode(buf_bytes(&group0->install.data), group0->options.budget, &topology);
    if (status_is(st, ST_NO_MEMORY)) return st;
    if (status_is(st, ST_UNSUPPORTED)) { /* not damage: it will not come in other bytes */
        MARK("cluster.group0.unknown_format");
        group0_outdated(group0);
        return st;
    }
    if (ok(st)) st = install_write(group0);
    if (!ok(st)) {
        if (topology != NULL) topology_release(topology);
        if (!status_is(st, ST_CORRUPT)) return st;
        log_warning("group0", "a snapshot does not read index=%llu",
                    (unsigned long long)group0->install.index);
        return install_tell(group0, false) ? ST_OK : ST_NO_MEMORY;
    }
    if (!install_tell(group0, true)) {
        topology_release(topology);
        return ST_CLOSED; /* room was there */
    }
    group0->snapshots++;
    group0_proposals_fail(group0, GROUP0_UNKNOWN);
    /* They may have changed there and back. */
    memset(group0->quorums, 0, sizeof(group0->quorums));
    group0_publish(group0, topology);
    fiber_queue_wake_all(&group0->applied_queue);
    return ST_OK;
}

/* ---- the fiber ---- */

static MAY_YIELD status
work(struct group0 *group0)
{
    if (group0->install.wanted) return install(group0);
    if (group0->applied < group0->apply_target) return apply_all(group0);
    status st = snapshot_take(group0);
    /* Nothing depends on it: later. */
    if (!ok(st)) group0->snapshot_retry_ns = io_now_ns() + 10 * NS_PER_S;
    return ST_OK;
}

void
group0_applier_main(void *arg)
{
    struct group0 *group0 = arg;
    while (!group0->closing && ok(group0->failed)) {
        bool busy = group0->install.wanted || group0->applied < group0->apply_target ||
                    wants_snapshot(group0);
        if (!busy) {
            (void)fiber_queue_wait(&group0->apply_queue, FIBER_FOREVER);
            continue;
        }
        status st = work(group0);
        if (!ok(st) && group0_works(group0)) fiber_sleep_ns(GROUP0_RETRY_NS);
    }
    fiber_gate_leave(&group0->gate);
}
