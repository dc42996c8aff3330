/* SPDX-License-Identifier: MIT
 *
 * group0.c -- the life of group0 on its shard, and the way of every input into raft.
 *
 *     message, tick, proposal, read, write durable      group0_input_begin
 *            |                                          raft_step, raft_tick, ...
 *            v                                          group0_input_end:
 *     hard state, entries  -> batch `next`  -> writer (group0_write.c)
 *     messages             -> peer_post now, or held until the batch is durable
 *     committed entries    -> applier (group0_apply.c)
 *     a snapshot to have   -> applier
 *     answered reads       -> who waits for them
 *
 * Fibers: one writes, one applies, one does what a leader sees to; one for each snapshot that is
 * being sent and for each node that asks to join. All are in `gate`.
 */
#include "cluster/group0_internal.h"

#include <stdio.h>

#include "base/log.h"
#include "io/io.h"

/* ---- inputs and effects ---- */

bool
group0_input_begin(struct group0 *group0)
{
    return group0_works(group0) && group0_write_reserve(group0);
}

static void
reads_answer(struct group0 *group0)
{
    for (u32 i = 0; i < group0->ready.read_count; i++) {
        const struct raft_read_state *state = &group0->ready.reads[i];
        list_for_each (link, &group0->readers) {
            struct group0_reader *reader = list_entry(link, struct group0_reader, link);
            if (reader->id != state->id || reader->answered) continue;
            reader->answered = true;
            reader->index = state->index;
            reader->result = state->result;
            fiber_queue_wake_all(&reader->queue);
        }
    }
}

static void
role_look(struct group0 *group0)
{
    struct raft *raft = &group0->raft;
    if (raft->role == group0->seen_role && raft->leader == group0->seen_leader) return;
    bool led = group0->seen_role == RAFT_LEADER;
    group0->seen_role = raft->role;
    group0->seen_leader = (u32)raft->leader;
    if (raft->leader != 0)
        log_info("group0", "leader member=%llu term=%llu", (unsigned long long)raft->leader,
                 (unsigned long long)raft->term);
    if (led && raft->role != RAFT_LEADER) group0_proposals_fail(group0, GROUP0_UNKNOWN);
    if (led || raft->role != RAFT_LEADER) return;
    group0->leads_since_ns = io_now_ns();
    fiber_queue_wake_all(&group0->lead_queue);
}

static void
write_take(struct group0 *group0)
{
    const struct raft_ready *ready = &group0->ready;
    if (ready->sequence == 0) return;
    if (ready->hard_changed) {
        u8 value[GROUP0_HARD_BYTES];
        group0_hard_encode(ready->hard, value);
        if (!group0_put(group0, group0_key(GROUP0_KEY_HARD, 0, 0), BYTES(value, sizeof(value)))) {
            group0_fail(group0, ST_NO_MEMORY, "no memory for the hard state"); /* was reserved */
            return;
        }
    }
    group0->next_sequence = ready->sequence;
    group0->next_persist_index = ready->persist_index;
    (void)group0_write_post(group0);
}

/* The bytes come apart (group0_net.c): they are in staging. */
static void
install_take(struct group0 *group0)
{
    struct raft_snapshot *snapshot = &group0->ready.snapshot;
    if (!group0->ready.install) return;
    group0->install.wanted = true;
    group0->install.index = snapshot->index;
    group0->install.term = snapshot->term;
    buf_clear(&group0->install.config, 0);
    buf_deinit(&group0->install.data);
    group0->install.data = group0->staging.data;
    buf_init(&group0->staging.data, group0->options.budget);
    /* Without a configuration it is given up: the applier notices. */
    if (!buf_append(&group0->install.config, snapshot->config.data, snapshot->config.size))
        buf_clear(&group0->install.config, 0);
    fiber_queue_wake_one(&group0->apply_queue);
}

void
group0_input_end(struct group0 *group0)
{
    const struct raft_ready *ready = &group0->ready;
    write_take(group0);
    group0_messages_send(group0);
    install_take(group0);
    if (ready->apply_last != 0) {
        group0->apply_target = ready->apply_last;
        fiber_queue_wake_one(&group0->apply_queue);
    }
    reads_answer(group0);
    role_look(group0);
}

void
group0_fail(struct group0 *group0, status st, const char *what)
{
    if (!ok(group0->failed)) return;
    group0->failed = st;
    if (!group0->closing)
        log_error("group0", "this member takes no part any more why=%s status=%s", what,
                  status_name(st));
    io_timer_cancel(&group0->tick);
    group0_held_drop(group0);
    group0_proposals_fail(group0, GROUP0_UNKNOWN);
    fiber_queue_wake_all(&group0->writer_queue);
    fiber_queue_wake_all(&group0->written_queue);
    fiber_queue_wake_all(&group0->apply_queue);
    fiber_queue_wake_all(&group0->applied_queue);
    fiber_queue_wake_all(&group0->lead_queue);
    fiber_queue_wake_all(&group0->starts_queue);
    fiber_queue_wake_all(&group0->address_queue);
}

void
group0_outdated(struct group0 *group0)
{
    group0_fail(group0, ST_UNSUPPORTED,
                "members of a later version have decided what this one does not know: upgrade "
                "this node");
}

static void
tick_fires(struct io_timer *timer)
{
    struct group0 *group0 = CONTAINER_OF(timer, struct group0, tick);
    if (!group0_works(group0)) return;
    io_timer_arm(timer, io_now_ns() + GROUP0_TICK_NS);
    group0_sends_check(group0);
    /* Not by what is of before we were taken in: it does not have all. */
    if (group0_member(group0) != 0) group0_addresses_retry(group0);
    if (!group0_input_begin(group0)) return;
    raft_tick(&group0->raft, io_now_ns(), &group0->ready);
    group0_input_end(group0);
}

/* ---- starting ---- */

static struct raft_options
options_of(struct group0 *group0)
{
    return (struct raft_options){
        .id = group0->identity.member,
        .storage = &group0_storage,
        .storage_context = group0,
        .seed = io_random(),
        .lease_ns = 0, /* reads ask the others: they are few */
        .election_ticks = GROUP0_ELECTION_TICKS,
        .heartbeat_ticks = GROUP0_HEARTBEAT_TICKS,
        .peers_max = RAFT_MEMBERS_MAX,
        .reads_max = GROUP0_READS_MAX,
        .inflight_max = 8,
        .inflight_bytes = MIB(1),
        .message_bytes = GROUP0_MESSAGE_BYTES,
        .entry_bytes_max = GROUP0_ENTRY_BYTES_MAX,
        .uncommitted_bytes = GROUP0_UNCOMMITTED_BYTES,
    };
}

static bool
arrays_make(struct group0 *group0)
{
    struct budget *budget = group0->options.budget;
    struct raft_ready *ready = &group0->ready;
    ready->messages_max = GROUP0_MESSAGES_MAX;
    ready->entries_max = GROUP0_ENTRIES_MAX;
    ready->reads_max = 2 * GROUP0_READS_MAX;
    ready->messages = mem_alloc(budget, GROUP0_MESSAGES_MAX * sizeof(struct raft_message));
    ready->entries = mem_alloc(budget, GROUP0_ENTRIES_MAX * sizeof(struct raft_entry));
    ready->reads = mem_alloc(budget, 2 * GROUP0_READS_MAX * sizeof(struct raft_read_state));
    group0->entries_in = mem_alloc(budget, GROUP0_ENTRIES_IN * sizeof(struct raft_entry));
    return ready->messages != NULL && ready->entries != NULL && ready->reads != NULL &&
           group0->entries_in != NULL;
}

static void
arrays_free(struct group0 *group0)
{
    struct budget *budget = group0->options.budget;
    struct raft_ready *ready = &group0->ready;
    mem_free(budget, ready->messages, GROUP0_MESSAGES_MAX * sizeof(struct raft_message));
    mem_free(budget, ready->entries, GROUP0_ENTRIES_MAX * sizeof(struct raft_entry));
    mem_free(budget, ready->reads, 2 * GROUP0_READS_MAX * sizeof(struct raft_read_state));
    mem_free(budget, group0->entries_in, GROUP0_ENTRIES_IN * sizeof(struct raft_entry));
    mem_free(budget, group0->raft_memory, group0->raft_memory_bytes);
    group0->raft_memory = NULL;
}

/* A group of one needs nobody's vote: it does not wait for a timeout. */
static void
alone_elects_itself(struct group0 *group0)
{
    const struct raft *raft = &group0->raft;
    if (raft->peer_count != 1 || !raft_is_voter(raft)) return;
    for (u32 i = 0; i < 2 * GROUP0_ELECTION_TICKS && raft->role == RAFT_FOLLOWER; i++) {
        if (!group0_input_begin(group0)) return;
        raft_tick(&group0->raft, io_now_ns(), &group0->ready);
        group0_input_end(group0);
    }
}

status
group0_raft_start(struct group0 *group0, struct raft_hard_state hard)
{
    CHECK(!group0->running && group0->identity.member != 0);
    struct raft_options options = options_of(group0);
    group0->raft_memory_bytes = raft_memory_bytes(&options);
    group0->raft_memory = mem_alloc(group0->options.budget, group0->raft_memory_bytes);
    if (group0->raft_memory == NULL || !arrays_make(group0)) return ST_NO_MEMORY;
    struct raft_restored restored = {.hard = hard, .applied = group0->applied};
    if (group0->base_blob != NULL)
        restored.snapshot = (struct raft_snapshot){.index = group0->base_index,
                                                   .term = group0->base_term,
                                                   .config = buf_bytes(&group0->base_config)};
    status st = raft_init(&group0->raft, &options, group0->raft_memory, &restored);
    if (!ok(st)) return st;
    group0->apply_target = group0->applied;
    group0->running = true;
    io_timer_arm(&group0->tick, io_now_ns() + GROUP0_TICK_NS);
    alone_elects_itself(group0);
    return ST_OK;
}

static MAY_YIELD status
fibers_start(struct group0 *group0)
{
    static const struct {
        const char *name;
        void (*fn)(void *arg);
    } fibers[] = {{"group0-write", group0_writer_main},
                  {"group0-apply", group0_applier_main},
                  {"group0-lead", group0_lead_main},
                  {"group0-starts", group0_starts_main},
                  {"group0-address", group0_address_main}};
    for (u32 i = 0; i < ARRAY_COUNT(fibers); i++) {
        bool entered = fiber_gate_enter(&group0->gate);
        CHECK(entered);
        status st = fiber_spawn(FIBER_FOREGROUND, fibers[i].name, fibers[i].fn, group0);
        if (ok(st)) continue;
        fiber_gate_leave(&group0->gate);
        return st;
    }
    return ST_OK;
}

static MAY_YIELD status
write_durable(struct group0 *group0)
{
    return group0_write_wait(group0, group0_write_post(group0));
}

static MUST_CHECK bool
identity_put(struct group0 *group0)
{
    u8 value[GROUP0_IDENTITY_BYTES];
    group0_identity_encode(&group0->identity, value);
    return group0_put(group0, group0_key(GROUP0_KEY_IDENTITY, 0, 0), BYTES(value, sizeof(value)));
}

/* A node that has none yet (or may have lost what it knew): nobody has ever seen this one. */
static MAY_YIELD status
incarnation_make(struct group0 *group0)
{
    if (group0->identity.incarnation == 0) group0->identity.incarnation = io_entropy_id(0);
    if (!identity_put(group0)) return ST_NO_MEMORY;
    return write_durable(group0);
}

static MAY_YIELD status
topology_load(struct group0 *group0, struct bytes bytes)
{
    if (group0->base_index == 0) return ST_OK;
    group0->base_blob = group0_blob_new(group0, bytes.size);
    if (group0->base_blob == NULL) return ST_NO_MEMORY;
    memcpy(group0->base_blob->data, bytes.data, bytes.size);
    status st = topology_decode(bytes, group0->options.budget, &group0->topology);
    if (status_is(st, ST_CORRUPT)) log_error("group0", "stored topology does not read");
    if (status_is(st, ST_UNSUPPORTED))
        log_error("group0", "stored topology is of a later version: upgrade this node");
    if (!ok(st)) return st;
    if (!buf_append(&group0->applied_config, group0->base_config.data, group0->base_config.size))
        return ST_NO_MEMORY;
    group0->applied = group0->base_index;
    group0_quorums_follow(group0);
    return ST_OK;
}

static MAY_YIELD status
restore(struct group0 *group0)
{
    struct raft_hard_state hard = {0};
    struct buf bytes;
    buf_init(&bytes, group0->options.budget);
    status st = group0->forgetful ? group0_wipe(group0) : group0_load(group0, &hard, &bytes);
    if (ok(st)) st = topology_load(group0, buf_bytes(&bytes));
    buf_deinit(&bytes);
    if (ok(st)) st = group0_apply_stored(group0);
    if (!ok(st)) return st;
    if (group0->identity.incarnation == 0) {
        if (group0->base_index != 0 || group0->item_count != 0 || hard.term != 0) {
            log_error("group0", "stored state has no identity");
            return ST_CORRUPT;
        }
        return incarnation_make(group0);
    }
    if (group0->identity.member == 0) return ST_OK;
    group0_identity_tell(group0);
    group0->restored = hard;
    group0_starts_open(group0, true);
    group0_address_open(group0, true);
    /* We are not in it yet, as far as this is known here, or not any more: who takes us in says who
     * the members are (group0_change.c: become). */
    if (group0_member(group0) == 0) return ST_OK;
    group0_addresses_update(group0, group0->topology);
    if (group0_address_is_new(group0)) {
        log_info("group0", "this node is elsewhere than before: the others are told address=%s:%u",
                 group0->options.address.host, group0->options.address.port);
        fiber_queue_wake_all(&group0->address_queue);
    }
    st = group0_starts_check(group0, group0->topology, io_now_ns() + GROUP0_STARTS_OPEN_NS);
    if (status_is(st, ST_TIMED_OUT)) {
        group0->proving = true;
        fiber_queue_wake_all(&group0->starts_queue);
        return ST_OK;
    }
    return ok(st) ? group0_raft_start(group0, group0->restored) : st;
}

static void
init(struct group0 *group0, const struct group0_options *options)
{
    group0->options = *options;
    group0->token = group0_token();
    group0->failed = ST_OK;
    group0->forgetful = lsm_durability(options->lsm) != LSM_DURABILITY_GROUP;
    struct buf *bufs[] = {&group0->base_config,    &group0->applied_config, &group0->staging.data,
                          &group0->install.config, &group0->install.data,   &group0->lead_memory};
    for (u32 i = 0; i < ARRAY_COUNT(bufs); i++)
        buf_init(bufs[i], options->budget);
    for (u32 i = 0; i < GROUP0_SENDS_MAX; i++)
        buf_init(&group0->sends[i].config, options->budget);
    struct fiber_queue *queues[] = {&group0->writer_queue, &group0->written_queue,
                                    &group0->apply_queue,  &group0->applied_queue,
                                    &group0->lead_queue,   &group0->starts_queue,
                                    &group0->address_queue};
    for (u32 i = 0; i < ARRAY_COUNT(queues); i++)
        fiber_queue_init(queues[i]);
    lsm_batch_init(&group0->next, options->budget);
    group0->next_number = 1;
    group0->disk_first = 1;
    group0->envelope_size =
        group0_envelope_encode(&(struct peer_address){.port = 0}, group0->envelope);
    list_init(&group0->held);
    list_init(&group0->proposals);
    list_init(&group0->readers);
    /* Never one that an earlier life may have used: an answer could still come. */
    group0->read_id = io_random();
    fiber_gate_init(&group0->gate);
    io_timer_init(&group0->tick, tick_fires);
}

status
group0_open(const struct group0_options *options, struct group0 **out)
{
    struct group0 *group0 = mem_alloc_zero(options->budget, sizeof(*group0)); /* 40 KiB */
    if (group0 == NULL) return ST_NO_MEMORY;
    init(group0, options);
    if (group0->forgetful)
        log_warning("group0", "the store's log is not synced at each commit: this node is a new "
                              "member after each start");
    status st = fibers_start(group0);
    if (ok(st)) st = restore(group0);
    if (!ok(st)) {
        group0_close(group0);
        return st;
    }
    group0_handlers_set(group0, true);
    group0_starts_open(group0, true);
    group0_address_open(group0, true);
    if (group0->topology != NULL && !group0->proving)
        options->changed(options->arg, group0->topology);
    *out = group0;
    return ST_OK;
}

void
group0_close(struct group0 *group0)
{
    struct budget *budget = group0->options.budget;
    group0->closing = true;
    group0_handlers_set(group0, false);
    group0_starts_open(group0, false);
    group0_address_open(group0, false);
    io_timer_cancel(&group0->tick);
    group0_proposals_fail(group0, GROUP0_UNKNOWN);
    struct fiber_queue *queues[] = {&group0->writer_queue, &group0->written_queue,
                                    &group0->apply_queue,  &group0->applied_queue,
                                    &group0->lead_queue,   &group0->starts_queue,
                                    &group0->address_queue};
    for (u32 i = 0; i < ARRAY_COUNT(queues); i++)
        fiber_queue_wake_all(queues[i]);
    list_for_each (link, &group0->readers)
        fiber_queue_wake_all(&list_entry(link, struct group0_reader, link)->queue);
    fiber_gate_close(&group0->gate);

    group0_held_drop(group0);
    group0_log_clear(group0);
    group0_starts_free(group0);
    group0_addresses_free(group0);
    mem_free(budget, group0->items, group0->item_capacity * sizeof(*group0->items));
    group0_blob_release(group0, group0->base_blob);
    arrays_free(group0);
    lsm_batch_deinit(&group0->next);
    struct buf *bufs[] = {&group0->base_config,    &group0->applied_config, &group0->staging.data,
                          &group0->install.config, &group0->install.data,   &group0->lead_memory};
    for (u32 i = 0; i < ARRAY_COUNT(bufs); i++)
        buf_deinit(bufs[i]);
    for (u32 i = 0; i < GROUP0_SENDS_MAX; i++)
        buf_deinit(&group0->sends[i].config);
    if (group0->topology != NULL) topology_release(group0->topology);
    mem_free(budget, group0, sizeof(*group0));
}

/* ---- founding ---- */

/* The first state: a snapshot at index 1, term 1, as raft.h wants it of a new group. */
static MAY_YIELD status
found_write(struct group0 *group0, struct bytes topology)
{
    struct raft_member self = {.id = group0->identity.member, .roles = RAFT_VOTER};
    u8 config[RAFT_CONFIG_BYTES(1)], hard[GROUP0_HARD_BYTES], mark[GROUP0_COMMIT_BYTES];
    struct group0_base base = {.index = 1,
                               .term = 1,
                               .bytes = topology.size,
                               .config = raft_config_encode(&self, 1, config)};
    status st = group0_write_chunks(group0, base.index, topology, &base.chunk_count);
    if (!ok(st)) return st;
    struct buf value;
    buf_init(&value, group0->options.budget);
    group0_hard_encode((struct raft_hard_state){.term = 1}, hard);
    group0_commit_encode(base.index, mark);
    bool done = group0_base_encode(&base, &value) && identity_put(group0) &&
                group0_put(group0, group0_key(GROUP0_KEY_BASE, 0, 0), buf_bytes(&value)) &&
                group0_put(group0, group0_key(GROUP0_KEY_HARD, 0, 0), BYTES(hard, sizeof(hard))) &&
                group0_put(group0, group0_key(GROUP0_KEY_COMMIT, 0, 0), BYTES(mark, sizeof(mark)));
    buf_deinit(&value);
    if (!done || !buf_append(&group0->base_config, config, sizeof(config))) {
        lsm_batch_clear(&group0->next); /* nobody else writes before raft runs */
        return ST_NO_MEMORY;
    }
    group0->base_index = group0->base_term = group0->commit_mark = 1;
    group0->base_chunks = base.chunk_count;
    group0->disk_first = 2;
    group0->disk_last = 1;
    return write_durable(group0);
}

static MAY_YIELD status
found(struct group0 *group0, const struct topology_command *command)
{
    struct topology *empty = topology_new(group0->options.budget), *first = NULL;
    if (empty == NULL) return ST_NO_MEMORY;
    struct topology_command real = *command;
    char reason[TOPOLOGY_REASON_BYTES] = "";
    real.kind = TOPOLOGY_FOUND;
    real.state_before = empty->state_id;
    real.state_after = io_entropy_id(real.state_before);
    real.member.incarnation = group0->identity.incarnation;
    status st = topology_apply(empty, &real, NULL, &first, reason);
    topology_release(empty);
    if (!ok(st)) {
        log_error("group0", "no cluster can be founded why=%s", reason);
        return st;
    }
    group0->identity.cluster_id = first->cluster_id;
    group0->identity.member = first->members[0].number;
    snprintf(group0->identity.node_id, sizeof(group0->identity.node_id), "%s",
             first->members[0].node_id);
    struct buf bytes;
    buf_init(&bytes, group0->options.budget);
    st = topology_encode(first, &bytes) ? found_write(group0, buf_bytes(&bytes)) : ST_NO_MEMORY;
    topology_release(first);
    if (ok(st)) st = topology_load(group0, buf_bytes(&bytes));
    buf_deinit(&bytes);
    return st;
}

status
group0_found(struct group0 *group0, const struct topology_command *command)
{
    if (!ok(group0->failed)) return group0->failed;
    if (group0->identity.member != 0) return ST_EXISTS;
    if (!fiber_gate_enter(&group0->gate)) return ST_CLOSED;
    status st = found(group0, command);
    if (ok(st)) {
        group0_identity_tell(group0);
        group0_addresses_update(group0, group0->topology);
        st = group0_raft_start(group0, (struct raft_hard_state){.term = 1});
    }
    if (ok(st)) group0->options.changed(group0->options.arg, group0->topology);
    /* Half founded: the next start finds what is durable, this one goes no further. */
    if (!ok(st) && group0->base_index != 0) group0_fail(group0, st, "founding");
    if (!ok(st) && group0->base_index == 0) {
        group0->identity.member = 0;
        group0->identity.cluster_id = 0;
    }
    fiber_gate_leave(&group0->gate);
    return st;
}

/* ---- who knows what ---- */

void
group0_identity_tell(struct group0 *group0)
{
    struct peer_identity self = {.cluster_id = group0->identity.cluster_id,
                                 .member = group0->identity.member,
                                 .incarnation = group0->identity.incarnation};
    static_assert(sizeof(self.node_id) == sizeof(group0->identity.node_id), "the same names");
    memcpy(self.node_id, group0->identity.node_id, sizeof(self.node_id));
    peers_identity_set(group0->options.peers, &self);
}

/* Who has left is told so as long as raft still counts on it. */
static bool
is_still_needed(const struct group0 *group0, const struct topology *topology, u32 member)
{
    return topology_member(topology, member) != NULL ||
           (group0->running && raft_peer_find(&group0->raft, member) != NULL);
}

/* A member of the cluster says where it is. Believed as long as the topology says nothing of it, or
 * is older than what it knows. */
void
group0_address_heard(struct group0 *group0, u32 member, u64 epoch,
                     const struct peer_address *address)
{
    const struct topology *topology = group0->topology;
    if (address->port == 0 || member == 0 || member == group0->identity.member) return;
    if (topology != NULL && epoch <= topology->epoch && topology_member(topology, member) != NULL)
        return;
    if (!group0_address_set(group0, member, address))
        log_debug("group0", "no memory for an address member=%u", member);
}

/* From *at on, which moves: who is added comes by ascending number, as the known stand. */
static void
known_add(struct group0 *group0, u32 member, u32 *at)
{
    u32 count = group0->known_count;
    while (*at < count && group0->known[*at] < member)
        (*at)++;
    bool known = *at < count && group0->known[*at] == member;
    if (known || count == RAFT_MEMBERS_MAX) return;
    memmove(&group0->known[*at + 1], &group0->known[*at], (count - *at) * sizeof(u32));
    group0->known[*at] = member;
    group0->known_count++;
}

void
group0_addresses_update(struct group0 *group0, const struct topology *topology)
{
    struct peers *peers = group0->options.peers;
    u32 at = 0, kept = 0;
    group0->lacked_count = 0;
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->number == group0->identity.member) {
            struct peer_address own = group0->options.address;
            if (own.port == 0) own = group0_address_of(member);
            group0->envelope_size = group0_envelope_encode(&own, group0->envelope);
            continue;
        }
        struct peer_address address = group0_address_present(group0, member);
        if (group0_address_set(group0, member->number, &address))
            known_add(group0, member->number, &at);
    }
    for (u32 i = 0; i < group0->known_count; i++) {
        u32 member = group0->known[i];
        if (is_still_needed(group0, topology, member))
            group0->known[kept++] = member;
        else
            peers_member_remove(peers, member);
    }
    group0->known_count = kept;
}

/* The others stay as they are: what they said of themselves may be newer than our topology. */
void
group0_addresses_retry(struct group0 *group0)
{
    for (u32 i = group0->lacked_count; i-- > 0;) {
        u32 number = group0->lacked[i], at = 0;
        const struct topology_member *member = topology_member(group0->topology, number);
        if (member == NULL) { /* it says so again */
            group0->lacked[i] = group0->lacked[--group0->lacked_count];
            continue;
        }
        struct peer_address address = group0_address_present(group0, member);
        if (group0_address_set(group0, number, &address)) known_add(group0, number, &at);
    }
}

void
group0_publish(struct group0 *group0, struct topology *topology)
{
    struct topology *old = group0->topology;
    group0->topology = topology;
    group0_quorums_follow(group0);
    const struct topology_member *keeper = topology_member(topology, group0->keeps_member);
    if (keeper == NULL || keeper->state != PLACEMENT_LEAVING) group0->keeps_member = 0;
    group0_addresses_update(group0, topology);
    group0->options.changed(group0->options.arg, topology);
    if (old != NULL) topology_release(old);
    fiber_queue_wake_all(&group0->lead_queue);
}

void
group0_quorums_follow(struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
        const struct topology_keyspace *keyspace = &topology->keyspaces[k];
        struct group0_quorums *known = &group0->quorums[k];
        if (known->used == keyspace->used && known->write == keyspace->write_quorum &&
            known->read == keyspace->read_quorum)
            continue;
        *known = (struct group0_quorums){.used = keyspace->used,
                                         .write = keyspace->write_quorum,
                                         .read = keyspace->read_quorum,
                                         .since = topology->epoch};
    }
}

u32
group0_member(const struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    u32 member = group0->identity.member;
    return member != 0 && topology != NULL && topology_member(topology, member) != NULL ? member
                                                                                        : 0;
}

u64
group0_incarnation(const struct group0 *group0)
{
    return group0->identity.incarnation;
}

bool
group0_is_outdated(const struct group0 *group0)
{
    return status_is(group0->failed, ST_UNSUPPORTED);
}

struct topology *
group0_topology(const struct group0 *group0)
{
    return group0->topology;
}

bool
group0_leads(const struct group0 *group0)
{
    return group0->running && group0->raft.role == RAFT_LEADER;
}

u32
group0_voters(const struct group0 *group0, u32 out[GROUP0_VOTERS_BOTH])
{
    const struct raft *raft = &group0->raft;
    u32 count = 0;
    for (u32 i = 0; group0->running && i < raft->peer_count; i++)
        if ((raft->peers[i].roles & (RAFT_VOTER | RAFT_VOTER_OLD)) != 0 &&
            count < GROUP0_VOTERS_BOTH)
            out[count++] = (u32)raft->peers[i].id;
    return count;
}

void
group0_stats_get(const struct group0 *group0, struct group0_stats *out)
{
    *out = (struct group0_stats){
        .applied = group0->applied, .snapshots = group0->snapshots, .failed = !ok(group0->failed)};
    if (!group0->running) return;
    const struct raft *raft = &group0->raft;
    out->term = raft->term;
    out->commit = raft->commit;
    out->log_entries = group0->item_count;
    out->leader = (u32)raft->leader;
    out->leads = raft->role == RAFT_LEADER;
    out->votes = raft_is_voter(raft);
    if (!out->leads || group0->topology == NULL) return;
    /* Who was taken out is waited for by none, though the next look may be some time off. */
    bool member = topology_member(group0->topology, group0->plan_waits_for) != NULL;
    out->plan_waits_for = member ? group0->plan_waits_for : 0;
    out->plan_settled = group0->topology->stage == STAGE_NONE &&
                        group0->plan_nothing_epoch == group0->topology->epoch;
}
