/* SPDX-License-Identifier: MIT
 *
 * raft_rig.c -- see raft_rig.h.
 */
#include "raft_rig.h"

#include <stdarg.h>
#include <stdio.h>

void
rig_fail(struct rig *rig, const char *pattern, ...)
{
    if (rig->failure[0] != 0) return;
    va_list list;
    va_start(list, pattern);
    vsnprintf(rig->failure, sizeof(rig->failure), pattern, list);
    va_end(list);
}

static void PRINTF_LIKE(2, 3) tell(struct rig *rig, const char *pattern, ...)
{
    if (!rig->telling) return;
    va_list list;
    va_start(list, pattern);
    /* Of a long story the second half is kept. */
    u32 half = sizeof(rig->trace) / 2;
    if (rig->trace_size > sizeof(rig->trace) - 256) {
        memmove(rig->trace, rig->trace + rig->trace_size - half, half);
        rig->trace_size = half;
    }
    size_t left = sizeof(rig->trace) - rig->trace_size;
    int size = vsnprintf(rig->trace + rig->trace_size, left, pattern, list);
    va_end(list);
    rig->trace_size += (u32)MIN((size_t)size, left - 1);
}

static bool
chance(struct rig *rig, u32 of_1000)
{
    return of_1000 > 0 && prng_chance(&rig->prng, of_1000, 1000);
}

static u64
mix(u64 hash, u64 value)
{
    u64 state = hash ^ (value * 0x9e3779b97f4a7c15ull);
    return splitmix64(&state);
}

static u64
item_hash(const struct item *item)
{
    u64 hash = mix(item->term, item->kind);
    for (u32 i = 0; i < item->size; i++)
        hash = mix(hash, item->data[i]);
    return hash;
}

/* A clock is as fast as its ticks. */
static u64
clock_of(const struct node *node)
{
    return node->rig->now * UNIT_TICK / node->tick_units;
}

u64
rig_clock(const struct rig *rig, u64 id)
{
    return clock_of(&rig->nodes[id]);
}

static bool
runs(const struct node *node)
{
    return node->up && node->stopped_until <= node->rig->now;
}

/* ---- the log of a replica ---- */

static u64
log_last(const struct disk *log)
{
    return log->first + log->count - 1;
}

static struct item *
log_at(struct disk *log, u64 index)
{
    return index >= log->first && index <= log_last(log) ? &log->items[index - log->first] : NULL;
}

static u64
log_term(struct disk *log, u64 index)
{
    if (index == log->first - 1) return log->snapshot_term;
    struct item *item = log_at(log, index);
    return item == NULL ? 0 : item->term;
}

static void
log_put(struct rig *rig, struct disk *log, const struct item *item)
{
    if (item->index < log->first) return;
    u64 at = item->index - log->first;
    if (at > log->count || at >= LOG_MAX) {
        rig_fail(rig, "rig: entry %llu leaves a gap", (unsigned long long)item->index);
        return;
    }
    log->items[at] = *item;
    log->count = (u32)at + 1;
}

static void
log_to_snapshot(struct disk *log, u64 index, u64 term, struct machine machine, struct bytes config)
{
    log->first = index + 1;
    log->count = 0;
    log->snapshot_term = term;
    log->machine = machine;
    log->config_size = (u8)config.size;
    memcpy(log->config, config.data, config.size);
}

static u64
storage_first(void *context)
{
    return ((struct node *)context)->memory.first;
}

static u64
storage_last(void *context)
{
    return log_last(&((struct node *)context)->memory);
}

static status
storage_term(void *context, u64 index, u64 *term_out)
{
    struct disk *log = &((struct node *)context)->memory;
    if (index + 1 < log->first || index > log_last(log)) return ST_NOT_FOUND;
    *term_out = log_term(log, index);
    return ST_OK;
}

static status
storage_entries(void *context, u64 first, u64 bytes_max, u32 count_max,
                struct raft_entry *entries_out, u32 *count_out)
{
    struct node *node = context;
    struct disk *log = &node->memory;
    if (first < log->first) return ST_NOT_FOUND;
    if (node->up && chance(node->rig, node->rig->wait)) return ST_WOULD_WAIT;
    u64 bytes = 0;
    u32 count = 0;
    for (u64 index = first; index <= log_last(log) && count < count_max; index++) {
        struct item *item = log_at(log, index);
        bytes += item->size + 4u; /* so that CARRY_MAX entries are enough */
        if (count > 0 && bytes > bytes_max) break;
        entries_out[count++] =
            (struct raft_entry){index, item->term, item->kind, BYTES(item->data, item->size)};
    }
    *count_out = count;
    return ST_OK;
}

/* "matching": by induction, each entry and its predecessor. */
static void
judge_entry(struct rig *rig, struct node *node, const struct item *item)
{
    for (u64 id = 1; id <= NODES; id++) {
        struct disk *other = &rig->nodes[id].memory;
        if (id == node->id || log_term(other, item->index) != item->term) continue;
        struct item *same = log_at(other, item->index);
        if (same == NULL) continue;
        u64 before = log_term(&node->memory, item->index - 1);
        u64 other_before = log_term(other, item->index - 1);
        bool compacted = before == 0 || other_before == 0;
        if (item_hash(same) != item_hash(item) || (!compacted && before != other_before))
            rig_fail(rig, "matching: n%llu and n%llu differ at %llu of term %llu (%llu, %llu)",
                     (unsigned long long)node->id, (unsigned long long)id,
                     (unsigned long long)item->index, (unsigned long long)item->term,
                     (unsigned long long)before, (unsigned long long)other_before);
    }
}

static status
storage_append(void *context, const struct raft_entry *entries, u32 count)
{
    struct node *node = context;
    if (chance(node->rig, node->rig->refuse)) return ST_NO_MEMORY;
    if (entries[0].index - node->memory.first + count > LOG_MAX) return ST_NO_MEMORY;
    for (u32 i = 0; i < count; i++) {
        struct item item = {.index = entries[i].index,
                            .term = entries[i].term,
                            .kind = entries[i].kind,
                            .size = (u8)entries[i].data.size};
        if (item.size > 0) memcpy(item.data, entries[i].data.data, item.size);
        log_put(node->rig, &node->memory, &item);
        judge_entry(node->rig, node, &item);
    }
    return ST_OK;
}

static status
storage_snapshot(void *context, struct raft_snapshot *snapshot_out)
{
    struct node *node = context;
    struct disk *log = &node->memory;
    if (log->config_size == 0 || chance(node->rig, node->rig->wait)) return ST_WOULD_WAIT;
    *snapshot_out = (struct raft_snapshot){log->first - 1, log->snapshot_term,
                                           BYTES(log->config, log->config_size)};
    return ST_OK;
}

static const struct raft_storage STORAGE = {storage_first,   storage_last,   storage_term,
                                            storage_entries, storage_append, storage_snapshot};

/* ---- the network ---- */

static const char *
message_name(u8 type)
{
    static const char *const names[] = {
        "?",         "pre-vote?",  "pre-vote", "vote?",    "vote",  "append", "appended",
        "heartbeat", "heartbeat!", "snapshot", "campaign", "read?", "read"};
    return names[type <= RAFT_READ_REPLY ? type : 0];
}

static void
parcel_pack(struct node *node, struct parcel *parcel, const struct raft_message *message)
{
    CHECK(message->entry_count <= CARRY_MAX);
    parcel->message = *message;
    parcel->life = node->life;
    for (u32 i = 0; i < message->entry_count; i++) {
        const struct raft_entry *entry = &message->entries[i];
        parcel->items[i].size = (u8)entry->data.size;
        if (entry->data.size > 0) memcpy(parcel->items[i].data, entry->data.data, entry->data.size);
        parcel->entries[i] = *entry;
    }
    if (message->type == RAFT_SNAPSHOT) {
        memcpy(parcel->config, message->config.data, message->config.size);
        parcel->machine = node->memory.machine;
    }
}

/* Pointers into itself, after it was moved. */
static void
parcel_fix(struct parcel *parcel)
{
    parcel->message.entries = parcel->entries;
    for (u32 i = 0; i < parcel->message.entry_count; i++)
        parcel->entries[i].data.data = parcel->items[i].data;
    parcel->message.config.data = parcel->config;
}

static void
wire_put(struct rig *rig, const struct parcel *parcel)
{
    const struct raft_message *m = &parcel->message;
    if (rig->telling && m->type != RAFT_HEARTBEAT && m->type != RAFT_HEARTBEAT_REPLY)
        tell(rig, "%4llu n%llu->n%llu %s term %llu index %llu+%u%s\n", (unsigned long long)rig->now,
             (unsigned long long)m->from, (unsigned long long)m->to, message_name(m->type),
             (unsigned long long)m->term, (unsigned long long)m->index, m->entry_count,
             m->reject ? " no" : "");
    u32 copies = chance(rig, rig->twice) ? 2 : 1;
    for (u32 i = 0; i < copies && rig->wire_count < WIRE_MAX; i++) {
        struct parcel *slot = &rig->wire[rig->wire_order[rig->wire_count++]];
        *slot = *parcel;
        slot->due =
            rig->now + 1 + (rig->delay_most > 0 ? prng_below(&rig->prng, rig->delay_most) : 0);
    }
}

/* ---- effects ---- */

#define MESSAGES 96
#define ENTRIES  128

struct outcome {
    struct raft_ready ready;
    struct raft_message messages[MESSAGES];
    struct raft_entry entries[ENTRIES];
    struct raft_read_state reads[READS_MAX];
};

static void
outcome_init(struct outcome *outcome)
{
    outcome->ready = (struct raft_ready){.messages = outcome->messages,
                                         .messages_max = MESSAGES,
                                         .entries = outcome->entries,
                                         .entries_max = ENTRIES,
                                         .reads = outcome->reads,
                                         .reads_max = READS_MAX};
}

static void
apply(struct node *node, u64 index)
{
    struct rig *rig = node->rig;
    struct item *item = log_at(&node->memory, index);
    if (item == NULL || index != node->machine.index + 1) {
        rig_fail(rig, "machine: n%llu applies %llu after %llu", (unsigned long long)node->id,
                 (unsigned long long)index, (unsigned long long)node->machine.index);
        return;
    }
    node->machine.index = index;
    node->machine.hash = mix(node->machine.hash, item_hash(item));
    if (index >= LOG_MAX * 2) return;
    if (rig->applied[index].term == 0) {
        rig->applied[index].term = item->term;
        rig->applied[index].decided = node->raft.term;
        rig->applied[index].hash = node->machine.hash;
        rig->applied_max = MAX(rig->applied_max, index);
    } else if (rig->applied[index].hash != node->machine.hash) {
        rig_fail(rig, "machine: n%llu applies another entry at %llu", (unsigned long long)node->id,
                 (unsigned long long)index);
    }
}

/* Who stood still may come to lead late, by votes of long ago: what a later leader has committed
 * meanwhile, of whatever term, it need not have. */
static void
judge_leader(struct node *node)
{
    struct rig *rig = node->rig;
    struct raft *raft = &node->raft;
    if (raft->term < TERMS_MAX) {
        u64 *leader = &rig->leader_of[raft->term];
        if (*leader != 0 && *leader != node->id)
            rig_fail(rig, "election: n%llu and n%llu lead in term %llu",
                     (unsigned long long)*leader, (unsigned long long)node->id,
                     (unsigned long long)raft->term);
        *leader = node->id;
    }
    for (u64 index = node->memory.first; index <= rig->applied_max; index++)
        if (rig->applied[index].decided < raft->term &&
            log_term(&node->memory, index) != rig->applied[index].term)
            rig_fail(rig, "completeness: n%llu leads term %llu without %llu",
                     (unsigned long long)node->id, (unsigned long long)raft->term,
                     (unsigned long long)index);
}

static void
serve_reads(struct node *node)
{
    for (u32 i = 0; i < ARRAY_COUNT(node->reads); i++) {
        struct waiting_read *read = &node->reads[i];
        if (!read->used || !read->answered || node->machine.index < read->index) continue;
        if (node->machine.index < read->floor)
            rig_fail(node->rig, "read: n%llu saw %llu, applied before it was %llu",
                     (unsigned long long)node->id, (unsigned long long)node->machine.index,
                     (unsigned long long)read->floor);
        node->rig->reads_done++;
        read->used = false;
    }
}

static void
take(struct node *node, struct outcome *outcome)
{
    struct rig *rig = node->rig;
    struct raft *raft = &node->raft;
    struct raft_ready *ready = &outcome->ready;
    if (raft->role == RAFT_LEADER &&
        (node->seen_role != RAFT_LEADER || node->seen_term != raft->term)) {
        rig->elections++;
        judge_leader(node);
    }
    if (raft->role != node->seen_role || raft->term != node->seen_term)
        tell(rig, "%4llu n%llu %s, term %llu\n", (unsigned long long)rig->now,
             (unsigned long long)node->id, raft_role_name(raft->role),
             (unsigned long long)raft->term);
    node->seen_role = raft->role;
    node->seen_term = raft->term;
    if (!raft_check(raft)) rig_fail(rig, "check: n%llu", (unsigned long long)node->id);
    /* A new leader does not know yet how much is committed. */
    if (raft->role == RAFT_LEADER && raft->previous_index > raft->commit &&
        log_term(&node->memory, raft->commit) == raft->term)
        rig_fail(rig, "config: n%llu has two uncommitted", (unsigned long long)node->id);

    if (ready->sequence != 0 || ready->install) {
        if (node->op_count == OPS_MAX) {
            rig_fail(rig, "rig: too many writes");
            return;
        }
        struct op *op = &node->ops[node->op_count++];
        op->sequence = ready->sequence;
        op->persist_index = ready->persist_index;
        op->hard_changed = ready->hard_changed;
        op->hard = ready->hard;
        op->install = ready->install;
        op->first = ready->append_first;
        op->count = 0;
        CHECK(ready->append_last - ready->append_first < ARRAY_COUNT(op->items));
        for (u64 i = ready->append_first; ready->append_first != 0 && i <= ready->append_last; i++)
            op->items[op->count++] = *log_at(&node->memory, i);
        if (ready->install) {
            op->snapshot = ready->snapshot;
            memcpy(op->config, ready->snapshot.config.data, ready->snapshot.config.size);
            op->snapshot.config.data = op->config;
            op->machine = node->taking->machine;
        }
        /* Many at once, but done in order. */
        u64 due = rig->now + (rig->disk_most > 0 ? prng_below(&rig->prng, rig->disk_most) : 0);
        node->disk_free_at = MAX(node->disk_free_at, due);
        op->due = node->disk_free_at;
    }
    for (u32 i = 0; i < ready->message_count; i++) {
        struct parcel parcel;
        parcel_pack(node, &parcel, &ready->messages[i]);
        if (parcel.message.after <= raft->sequence_persisted)
            wire_put(rig, &parcel);
        else if (node->held_count < HELD_MAX)
            node->held[node->held_count++] = parcel;
    }
    for (u64 i = ready->apply_first; ready->apply_first != 0 && i <= ready->apply_last; i++)
        apply(node, i);
    for (u32 i = 0; i < ready->read_count; i++)
        for (u32 k = 0; k < ARRAY_COUNT(node->reads); k++) {
            struct waiting_read *read = &node->reads[k];
            if (!read->used || read->id != ready->reads[i].id) continue;
            if (!ok(ready->reads[i].result)) read->used = false;
            read->answered = true;
            read->index = ready->reads[i].index;
        }
    serve_reads(node);
}

/* ---- disk, crash, start ---- */

static void
op_to_disk(struct node *node, const struct op *op, u32 items)
{
    struct disk *disk = &node->durable;
    if (op->hard_changed) disk->hard = op->hard;
    if (op->install) {
        log_to_snapshot(disk, op->snapshot.index, op->snapshot.term, op->machine,
                        BYTES(op->config, op->snapshot.config.size));
        return;
    }
    for (u32 i = 0; i < items; i++)
        log_put(node->rig, disk, &op->items[i]);
}

static void
op_done(struct node *node)
{
    struct outcome outcome;
    struct op op = node->ops[0];
    memmove(node->ops, node->ops + 1, --node->op_count * sizeof(op));
    op_to_disk(node, &op, op.count);
    if (op.sequence != 0) {
        outcome_init(&outcome);
        raft_persisted(&node->raft, op.sequence, op.persist_index, &outcome.ready);
        u32 left = 0;
        for (u32 i = 0; i < node->held_count; i++) {
            if (node->held[i].message.after <= op.sequence)
                wire_put(node->rig, &node->held[i]);
            else
                node->held[left++] = node->held[i];
        }
        node->held_count = left;
        take(node, &outcome);
    }
    if (op.install) {
        op.snapshot.config.data = op.config;
        log_to_snapshot(&node->memory, op.snapshot.index, op.snapshot.term, op.machine,
                        op.snapshot.config);
        node->machine = op.machine;
        outcome_init(&outcome);
        status st = raft_snapshot_installed(&node->raft, &op.snapshot, true, &outcome.ready);
        if (!ok(st)) rig_fail(node->rig, "installed: %s", status_text(st));
        node->rig->snapshots_done++;
        if (node->rig->applied[op.snapshot.index].hash != op.machine.hash)
            rig_fail(node->rig, "machine: a snapshot of something else");
        take(node, &outcome);
    }
}

static void
node_start(struct node *node)
{
    struct rig *rig = node->rig;
    node->memory = node->durable;
    node->machine = node->durable.machine;
    struct raft_options options = {
        .id = node->id,
        .storage = &STORAGE,
        .storage_context = node,
        .seed = prng_u64(&rig->prng),
        .lease_ns = rig->lease_units,
        .election_ticks = TICKS_VOTE,
        .heartbeat_ticks = TICKS_BEAT,
        .peers_max = PEERS_MAX,
        .reads_max = READS_MAX,
        .inflight_max = rig->inflight_max,
        .inflight_bytes = 256,
        .message_bytes = rig->message_bytes,
        .entry_bytes_max = 64,
        .uncommitted_bytes = rig->uncommitted_bytes,
    };
    CHECK(raft_memory_bytes(&options) <= sizeof(node->block));
    struct raft_restored restored = {
        .hard = node->durable.hard,
        .snapshot = {node->durable.first - 1, node->durable.snapshot_term,
                     BYTES(node->durable.config, node->durable.config_size)},
        .applied = node->durable.first - 1,
    };
    status st = raft_init(&node->raft, &options, node->block, &restored);
    if (!ok(st)) rig_fail(rig, "start: n%llu: %s", (unsigned long long)node->id, status_text(st));
    node->up = true;
    node->life++;
    node->op_count = node->held_count = 0;
    node->disk_free_at = 0;
    node->seen_role = RAFT_FOLLOWER;
    node->seen_term = node->raft.term;
    node->tick_at = rig->now + 1 + prng_below(&rig->prng, UNIT_TICK);
    memset(node->reads, 0, sizeof(node->reads));
}

void
rig_crash(struct rig *rig, u64 id, u64 down_units)
{
    struct node *node = &rig->nodes[id];
    if (!node->up) return;
    rig->crashes++;
    /* A part of what was on its way may have arrived, in order, the last write torn. */
    for (u32 i = 0; i < node->op_count && chance(rig, rig->torn); i++) {
        const struct op *op = &node->ops[i];
        u32 items = op->count;
        bool whole = chance(rig, 500);
        if (!whole && !op->install && op->count > 1)
            items = 1 + (u32)prng_below(&rig->prng, op->count);
        op_to_disk(node, op, items);
        if (!whole) break;
    }
    node->up = false;
    node->stopped_until = 0;
    node->up_at = rig->now + down_units;
}

void
rig_stop(struct rig *rig, u64 id, u64 units)
{
    struct node *node = &rig->nodes[id];
    if (!runs(node)) return;
    rig->stops++;
    node->stopped_until = rig->now + units;
}

void
rig_compact(struct rig *rig, u64 id)
{
    struct node *node = &rig->nodes[id];
    /* What is applied is durable; the snapshot is, too, when it is used. */
    u64 index = node->machine.index;
    if (!node->up || index < node->memory.first || node->raft.installing) return;
    u64 term = log_term(&node->memory, index);
    u8 config[ENTRY_MAX];
    struct bytes bytes = BYTES(node->memory.config, node->memory.config_size);
    for (u64 i = node->memory.first; i <= index; i++) {
        struct item *item = log_at(&node->memory, i);
        if (item->kind == RAFT_ENTRY_CONFIG) bytes = BYTES(item->data, item->size);
    }
    size_t size = bytes.size;
    if (size == 0) return;
    memcpy(config, bytes.data, size);
    struct disk *both[2] = {&node->memory, &node->durable};
    for (u32 k = 0; k < 2; k++) {
        struct disk *log = both[k];
        u64 drop = index + 1 - log->first;
        if (drop > log->count) {
            rig_fail(rig, "machine: n%llu applied what is not durable", (unsigned long long)id);
            return;
        }
        memmove(log->items, log->items + drop, (log->count - drop) * sizeof(struct item));
        u32 left = log->count - (u32)drop;
        log_to_snapshot(log, index, term, node->machine, BYTES(config, size));
        log->count = left;
    }
}

/* ---- requests ---- */

struct node *
rig_leader(struct rig *rig)
{
    struct node *found = NULL;
    for (u64 id = 1; id <= NODES; id++) {
        struct node *node = &rig->nodes[id];
        if (!node->up || node->raft.role != RAFT_LEADER) continue;
        if (found == NULL || node->raft.term > found->raft.term) found = node;
    }
    return found;
}

status
rig_propose(struct rig *rig, u64 id)
{
    struct node *node = &rig->nodes[id];
    struct outcome outcome;
    u64 value = ++rig->next_value;
    struct raft_entry entry = {.kind = RAFT_ENTRY_DATA, .data = BYTES(&value, sizeof(value))};
    if (!runs(node)) return ST_CLOSED;
    outcome_init(&outcome);
    status st = raft_propose(&node->raft, &entry, 1, &outcome.ready);
    if (ok(st)) take(node, &outcome);
    return st;
}

status
rig_changes(struct rig *rig, u64 id, const struct raft_change *changes, u32 count)
{
    struct node *node = &rig->nodes[id];
    struct outcome outcome;
    if (!runs(node)) return ST_CLOSED;
    outcome_init(&outcome);
    status st = raft_propose_config(&node->raft, changes, count, &outcome.ready);
    if (!ok(st)) return st;
    rig->changes_done++;
    take(node, &outcome);
    return st;
}

status
rig_change(struct rig *rig, u64 id, enum raft_change_kind kind, u64 member)
{
    struct raft_change change = {kind, member};
    return rig_changes(rig, id, &change, 1);
}

status
rig_read(struct rig *rig, u64 id)
{
    struct node *node = &rig->nodes[id];
    struct outcome outcome;
    if (!runs(node)) return ST_CLOSED;
    for (u32 i = 0; i < ARRAY_COUNT(node->reads); i++) {
        struct waiting_read *read = &node->reads[i];
        if (read->used && rig->now - read->since < 300) continue;
        *read = (struct waiting_read){
            .used = true, .id = ++rig->next_read, .floor = rig->applied_max, .since = rig->now};
        outcome_init(&outcome);
        status st = raft_read(&node->raft, read->id, clock_of(node), &outcome.ready);
        if (ok(st))
            take(node, &outcome);
        else
            read->used = false;
        return st;
    }
    return ST_OVERLOADED;
}

void
rig_lease_read(struct rig *rig, u64 id)
{
    struct node *node = &rig->nodes[id];
    if (!runs(node) || !raft_lease_valid(&node->raft, clock_of(node))) return;
    if (node->raft.commit < rig->applied_max)
        rig_fail(rig, "lease: n%llu has %llu, applied elsewhere is %llu", (unsigned long long)id,
                 (unsigned long long)node->raft.commit, (unsigned long long)rig->applied_max);
    rig->leases_done++;
}

status
rig_transfer(struct rig *rig, u64 id, u64 target)
{
    struct node *node = &rig->nodes[id];
    struct outcome outcome;
    if (!runs(node)) return ST_CLOSED;
    outcome_init(&outcome);
    status st = raft_transfer(&node->raft, target, &outcome.ready);
    if (!ok(st)) return st;
    rig->transfers_done++;
    take(node, &outcome);
    return st;
}

void
rig_quiesce(struct rig *rig, u64 id)
{
    struct outcome outcome;
    if (!runs(&rig->nodes[id])) return;
    outcome_init(&outcome);
    if (raft_quiesce(&rig->nodes[id].raft, &outcome.ready)) take(&rig->nodes[id], &outcome);
}

void
rig_wake(struct rig *rig, u64 id, bool leader_dead)
{
    struct outcome outcome;
    if (!runs(&rig->nodes[id])) return;
    outcome_init(&outcome);
    raft_wake(&rig->nodes[id].raft, leader_dead, &outcome.ready);
    take(&rig->nodes[id], &outcome);
}

void
rig_cut(struct rig *rig, u64 from, u64 to, bool cut)
{
    rig->blocked[from][to] = cut;
}

void
rig_cut_both(struct rig *rig, u64 a, u64 b, bool cut)
{
    rig_cut(rig, a, b, cut);
    rig_cut(rig, b, a, cut);
}

/* ---- time ---- */

static void
deliver(struct rig *rig, struct parcel *parcel)
{
    const struct raft_message *message = &parcel->message;
    struct node *node = &rig->nodes[message->to], *sender = &rig->nodes[message->from];
    struct outcome outcome;
    bool lost = !node->up || rig->blocked[message->from][message->to] || chance(rig, rig->loss);
    if (!lost) {
        outcome_init(&outcome);
        parcel_fix(parcel);
        node->taking = parcel;
        status st = raft_step(&node->raft, message, clock_of(node), &outcome.ready);
        if (status_is(st, ST_CORRUPT) || status_is(st, ST_INVALID))
            rig_fail(rig, "step: n%llu finds %s of n%llu %s", (unsigned long long)node->id,
                     message_name(message->type), (unsigned long long)message->from,
                     status_text(st));
        take(node, &outcome);
    }
    if (message->type == RAFT_SNAPSHOT && sender->up && sender->life == parcel->life) {
        outcome_init(&outcome);
        raft_snapshot_sent(&sender->raft, message->to, !lost, &outcome.ready);
        take(sender, &outcome);
    }
}

/* Whoever stood still goes on where it was, before it hears of anything: a read, say, for which it
 * had found that its lease is valid. Its timer fires once. */
static void
go_on(struct rig *rig)
{
    for (u64 id = 1; id <= NODES; id++) {
        struct node *node = &rig->nodes[id];
        if (!node->up || node->stopped_until != rig->now) continue;
        node->tick_at = MAX(node->tick_at, rig->now);
        rig_lease_read(rig, id);
    }
}

void
rig_run(struct rig *rig, u64 units)
{
    static struct parcel parcel; /* too large for the stack; one rig at a time */
    for (u64 end = rig->now + units; rig->now < end && rig->failure[0] == 0;) {
        rig->now++;
        go_on(rig);
        for (u32 i = 0; i < rig->wire_count;) {
            u16 slot = rig->wire_order[i];
            struct node *target = &rig->nodes[rig->wire[slot].message.to];
            if (rig->wire[slot].due > rig->now || target->stopped_until > rig->now) {
                i++;
                continue;
            }
            parcel = rig->wire[slot];
            /* The order stays as it was where nothing is to be reordered. */
            memmove(&rig->wire_order[i], &rig->wire_order[i + 1],
                    (--rig->wire_count - i) * sizeof(slot));
            rig->wire_order[rig->wire_count] = slot;
            deliver(rig, &parcel);
        }
        for (u64 id = 1; id <= NODES; id++) {
            struct node *node = &rig->nodes[id];
            if (!node->up) {
                if (node->up_at != 0 && node->up_at <= rig->now) node_start(node);
                continue;
            }
            if (!runs(node)) continue;
            while (node->op_count > 0 && node->ops[0].due <= rig->now)
                op_done(node);
            if (node->tick_at <= rig->now) {
                struct outcome outcome;
                outcome_init(&outcome);
                node->tick_at += node->tick_units;
                raft_tick(&node->raft, clock_of(node), &outcome.ready);
                take(node, &outcome);
                while (node->op_count > 0 && node->ops[0].due <= rig->now)
                    op_done(node);
            }
        }
    }
}

void
rig_init(struct rig *rig, u64 seed)
{
    memset(rig, 0, offsetof(struct rig, nodes));
    memset(&rig->wire_count, 0, sizeof(*rig) - offsetof(struct rig, wire_count));
    prng_init(&rig->prng, seed);
    for (u32 i = 0; i < WIRE_MAX; i++)
        rig->wire_order[i] = (u16)i;
    rig->torn = 500;
    rig->uncommitted_bytes = 1024;
    rig->message_bytes = 64;
    rig->inflight_max = 4;
    /* Nine of a follower's ticks, if its clock runs 10 % too fast, and the leader's 10 % too slow.
     */
    rig->lease_units = (TICKS_VOTE - 1) * (UNIT_TICK - 1) * UNIT_TICK / (UNIT_TICK + 1) - 1;
}

void
rig_start(struct rig *rig, u32 voters)
{
    struct raft_member members[NODES];
    u32 count = 0;
    for (u64 id = 1; id <= NODES; id++)
        if (voters & (1u << id)) members[count++] = (struct raft_member){id, RAFT_VOTER};
    u8 buffer[ENTRY_MAX];
    struct bytes config = raft_config_encode(members, count, buffer);
    struct machine machine = {1, 77};
    rig->applied[1].term = 1;
    rig->applied[1].hash = machine.hash;
    rig->applied_max = 1;
    for (u64 id = 1; id <= NODES; id++) {
        struct node *node = &rig->nodes[id];
        node->rig = rig;
        node->id = id;
        node->life = 0;
        node->up_at = 0;
        node->stopped_until = 0;
        node->tick_units = UNIT_TICK;
        struct disk *disk = &node->durable;
        disk->first = 1;
        disk->count = 0;
        disk->machine = (struct machine){0};
        disk->snapshot_term = 0;
        disk->config_size = 0;
        disk->hard = (struct raft_hard_state){0};
        if (voters & (1u << id)) {
            log_to_snapshot(disk, 1, 1, machine, config);
            disk->hard.term = 1;
        }
        node_start(node);
    }
}

static bool
all_equal(struct rig *rig, struct node *leader)
{
    struct raft_member members[PEERS_MAX], others[PEERS_MAX];
    u32 count = raft_members(&leader->raft, members);
    if (raft_config_is_joint(&leader->raft)) return false;
    for (u32 i = 0; i < count; i++) {
        struct node *node = &rig->nodes[members[i].id];
        if (!node->up || node->machine.index != leader->raft.last_index) return false;
        if (node->machine.hash != leader->machine.hash) return false;
        if (raft_members(&node->raft, others) != count) return false;
        for (u32 k = 0; k < count; k++)
            if (others[k].id != members[k].id || others[k].roles != members[k].roles) return false;
    }
    return true;
}

void
rig_calm(struct rig *rig)
{
    rig->loss = rig->twice = rig->refuse = rig->wait = 0;
    rig->delay_most = rig->disk_most = 3;
    memset(rig->blocked, 0, sizeof(rig->blocked));
    for (u64 id = 1; id <= NODES; id++) {
        if (!rig->nodes[id].up) rig->nodes[id].up_at = rig->now + 1;
        if (!runs(&rig->nodes[id])) rig->nodes[id].stopped_until = rig->now;
        rig_wake(rig, id, false);
    }
    /* Some elections' worth of time for all of it: a leader, an acknowledged write, a read. */
    u64 end = rig->now + 300 * UNIT_TICK;
    bool written = false;
    u64 reads = rig->reads_done;
    while (rig->now < end && rig->failure[0] == 0) {
        rig_run(rig, 50);
        struct node *leader = rig_leader(rig);
        if (leader == NULL) continue;
        if (!written) {
            written = ok(rig_propose(rig, leader->id));
            continue;
        }
        if (!all_equal(rig, leader)) continue;
        if (reads != rig->reads_done) return;
        status st = rig_read(rig, leader->id);
        (void)st; /* again 50 units later */
    }
    for (u64 id = 1; id <= NODES && rig->telling; id++) {
        const struct raft *raft = &rig->nodes[id].raft;
        tell(rig, "n%llu %s term %llu last %llu/%llu persisted %llu commit %llu config %llu:",
             (unsigned long long)id, raft_role_name(raft->role), (unsigned long long)raft->term,
             (unsigned long long)raft->last_index, (unsigned long long)raft->last_term,
             (unsigned long long)raft->persisted, (unsigned long long)raft->commit,
             (unsigned long long)raft->config_index);
        for (u32 i = 0; i < raft->peer_count; i++)
            tell(rig, " n%llu roles %u state %u match %llu", (unsigned long long)raft->peers[i].id,
                 raft->peers[i].roles, raft->peers[i].state,
                 (unsigned long long)raft->peers[i].match);
        tell(rig, "%s\n", raft->installing ? " installing" : "");
    }
    struct node *leader = rig_leader(rig);
    rig_fail(rig, "progress: leader n%llu, written %d, equal %d, read %d",
             leader == NULL ? 0ull : (unsigned long long)leader->id, written,
             leader != NULL && all_equal(rig, leader), reads != rig->reads_done);
}
