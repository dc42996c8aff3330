/* SPDX-License-Identifier: MIT
 *
 * group0_net.c -- what group0 says and hears.
 *
 *   PEER_RAFT           posted: a message (raft/raft_codec.h) behind an envelope. May be lost; raft
 *                       asks again
 *   PEER_RAFT_SNAPSHOT  called, a part after the other: the topology behind which the log begins.
 *                       The answer to the last part says that the other side has taken it
 *   PEER_PROPOSE        called: a command for the leader. Answer: struct group0_outcome
 *   PEER_JOIN           called, at any member: group0_change.c
 *
 * A message that depends on a write is encoded at once and held until the write is durable.
 */
#include "cluster/group0_internal.h"

#include "base/log.h"
#include "io/io.h"
#include "proto/peer.h"
#include "raft/raft_codec.h"

static struct native_header
header_of(const struct group0 *group0, u8 opcode)
{
    return (struct native_header){.opcode = opcode,
                                  .epoch = group0->topology != NULL ? group0->topology->epoch : 0};
}

static u64
epoch_of(const struct group0 *group0)
{
    return group0->topology != NULL ? group0->topology->epoch : 0;
}

/* ---- messages that go ---- */

static void
post(struct group0 *group0, u64 to, struct bytes bytes)
{
    struct native_header header = header_of(group0, PEER_RAFT);
    struct bytes parts[2] = {BYTES(group0->envelope, group0->envelope_size), bytes};
    peer_post(group0->options.peers, (u32)to, 0, &header, parts, 2);
}

static void
hold(struct group0 *group0, u64 to, u64 after, struct bytes bytes)
{
    if (group0->held_bytes + bytes.size > GROUP0_HELD_BYTES_MAX) return; /* as lost */
    struct group0_held *held = mem_alloc(group0->options.budget, sizeof(*held) + bytes.size);
    if (held == NULL) return;
    held->to = to;
    held->after = after;
    held->size = (u32)bytes.size;
    memcpy(held->bytes, bytes.data, bytes.size);
    list_push_back(&group0->held, &held->link);
    group0->held_bytes += bytes.size;
}

static void
held_free(struct group0 *group0, struct group0_held *held)
{
    list_del(&held->link);
    group0->held_bytes -= held->size;
    mem_free(group0->options.budget, held, sizeof(*held) + held->size);
}

void
group0_held_send(struct group0 *group0)
{
    list_for_each_safe (link, &group0->held) {
        struct group0_held *held = list_entry(link, struct group0_held, link);
        if (held->after > group0->raft.sequence_persisted) continue;
        post(group0, held->to, BYTES(held->bytes, held->size));
        held_free(group0, held);
    }
}

void
group0_held_drop(struct group0 *group0)
{
    list_for_each_safe (link, &group0->held)
        held_free(group0, list_entry(link, struct group0_held, link));
}

/* ---- snapshots that go ---- */

static MAY_YIELD bool
send_part(struct group0_send *send, u64 offset)
{
    struct group0 *group0 = send->group0;
    u64 size = MIN((u64)GROUP0_CHUNK_BYTES, send->blob->size - offset);
    struct group0_chunk chunk = {.from = group0->identity.member,
                                 .to = send->to,
                                 .term = send->term,
                                 .index = send->index,
                                 .log_term = send->log_term,
                                 .total = send->blob->size,
                                 .offset = offset,
                                 .config = buf_bytes(&send->config)};
    struct buf head, answer;
    buf_init(&head, group0->options.budget);
    buf_init(&answer, group0->options.budget);
    bool done = false, maybe_sent;
    if (group0_chunk_encode(&chunk, &head)) {
        struct bytes parts[2] = {buf_bytes(&head), BYTES(send->blob->data + offset, size)};
        struct native_header header = header_of(group0, PEER_RAFT_SNAPSHOT), reply;
        status st = peer_call_wait(group0->options.peers, (u32)send->to, 0, &header, parts, 2,
                                   io_now_ns() + 10 * NS_PER_S, &reply, &answer, &maybe_sent);
        done = ok(st) && reply.status == NATIVE_ST_OK;
    }
    buf_deinit(&head);
    buf_deinit(&answer);
    return done;
}

static MAY_YIELD void
send_main(void *arg)
{
    struct group0_send *send = arg;
    struct group0 *group0 = send->group0;
    bool done = true;
    for (u64 at = 0; at < send->blob->size && done; at += GROUP0_CHUNK_BYTES)
        done = group0_works(group0) && send_part(send, at);
    group0_blob_release(group0, send->blob);
    buf_deinit(&send->config);
    send->used = false;
    if (group0_input_begin(group0)) {
        raft_snapshot_sent(&group0->raft, send->to, done, &group0->ready);
        group0_input_end(group0);
    }
    fiber_gate_leave(&group0->gate);
}

/* What cannot be begun now is noticed by the next tick. */
static void
send_start(struct group0 *group0, const struct raft_message *message)
{
    struct group0_send *send = NULL;
    for (u32 i = 0; i < GROUP0_SENDS_MAX; i++)
        if (!group0->sends[i].used) send = &group0->sends[i];
    if (send == NULL || group0->base_blob == NULL || message->after != 0) return;
    if (!fiber_gate_enter(&group0->gate)) return;
    send->group0 = group0;
    send->to = message->to;
    send->term = message->term;
    send->index = message->index;
    send->log_term = message->log_term;
    buf_clear(&send->config, 0);
    if (buf_append(&send->config, message->config.data, message->config.size) &&
        ok(fiber_spawn(FIBER_BACKGROUND, "group0-send", send_main, send))) {
        send->used = true;
        send->blob = group0->base_blob;
        send->blob->references++;
        return;
    }
    buf_deinit(&send->config);
    fiber_gate_leave(&group0->gate);
}

void
group0_sends_check(struct group0 *group0)
{
    const struct raft *raft = &group0->raft;
    if (raft->role != RAFT_LEADER) return;
    for (u32 i = 0; i < raft->peer_count; i++) {
        if (raft->peers[i].state != RAFT_PEER_SNAPSHOT) continue;
        bool under_way = false;
        for (u32 k = 0; k < GROUP0_SENDS_MAX; k++)
            under_way |= group0->sends[k].used && group0->sends[k].to == raft->peers[i].id;
        if (under_way || !group0_input_begin(group0)) continue;
        raft_snapshot_sent(&group0->raft, raft->peers[i].id, false, &group0->ready);
        group0_input_end(group0);
        return; /* the peers may be others now; the next tick looks again */
    }
}

void
group0_messages_send(struct group0 *group0)
{
    struct buf bytes;
    buf_init(&bytes, group0->options.budget);
    for (u32 i = 0; i < group0->ready.message_count; i++) {
        const struct raft_message *message = &group0->ready.messages[i];
        if (message->type == RAFT_SNAPSHOT) {
            send_start(group0, message);
            continue;
        }
        bytes.size = 0;
        if (!raft_message_encode(message, &bytes)) continue; /* as lost */
        if (message->after <= group0->raft.sequence_persisted)
            post(group0, message->to, buf_bytes(&bytes));
        else
            hold(group0, message->to, message->after, buf_bytes(&bytes));
    }
    buf_deinit(&bytes);
}

/* ---- what comes ---- */

/* A message has effects though it is refused: entries for which there is no memory may be the first
 * that is heard of a later term, and that term is to be written before anything of it is. */
static status
step(struct group0 *group0, const struct raft_message *message)
{
    status st = raft_step(&group0->raft, message, io_now_ns(), &group0->ready);
    group0_input_end(group0);
    return st;
}

static void
raft_came(void *arg, struct peer_request *request, const struct peer_identity *from,
          const struct native_header *header, struct bytes body)
{
    struct group0 *group0 = arg;
    struct raft_message message;
    struct peer_address address;
    struct bytes bytes;
    if (request != NULL) { /* only posted ones are right */
        peer_reply(request, NATIVE_ST_INVALID, epoch_of(group0), NULL, 0);
        return;
    }
    if (!ok(group0_envelope_decode(body, &address, &bytes))) return;
    group0_address_heard(group0, from->member, header->epoch, &address);
    group0_starts_heard(group0, from->member);
    if (!group0_input_begin(group0)) return;
    status st = raft_message_decode(bytes, group0->entries_in, GROUP0_ENTRIES_IN, &message);
    /* Its own number, and nothing that comes in parts. */
    if (!ok(st) || message.from != from->member || message.type == RAFT_SNAPSHOT) return;
    /* That it speaks is not enough: whom nothing reaches asks for votes for ever. */
    if (message.type == RAFT_APPEND_REPLY || message.type == RAFT_HEARTBEAT_REPLY)
        group0_member_heard(group0, from->member, io_now_ns());
    (void)step(group0, &message); /* the peer tries again */
}

static void
staging_reset(struct group0 *group0)
{
    buf_deinit(&group0->staging.data);
    group0->staging.from = 0;
}

static enum native_status
chunk_take(struct group0 *group0, const struct group0_chunk *chunk)
{
    if (chunk->offset == 0) {
        staging_reset(group0);
        group0->staging.from = chunk->from;
        group0->staging.term = chunk->term;
        group0->staging.index = chunk->index;
        group0->staging.log_term = chunk->log_term;
        group0->staging.total = chunk->total;
    }
    if (group0->staging.from != chunk->from || group0->staging.term != chunk->term ||
        group0->staging.index != chunk->index || group0->staging.log_term != chunk->log_term ||
        group0->staging.total != chunk->total || group0->staging.data.size != chunk->offset)
        return NATIVE_ST_INVALID;
    if (!buf_append(&group0->staging.data, chunk->data.data, chunk->data.size))
        return NATIVE_ST_NO_MEMORY;
    if (group0->staging.data.size < chunk->total) return NATIVE_ST_OK;

    if (!group0_input_begin(group0)) return NATIVE_ST_NO_MEMORY;
    struct raft_message message = {.type = RAFT_SNAPSHOT,
                                   .from = chunk->from,
                                   .to = chunk->to,
                                   .term = chunk->term,
                                   .index = chunk->index,
                                   .log_term = chunk->log_term,
                                   .config = chunk->config};
    status st = step(group0, &message); /* which takes the data if it is wanted */
    staging_reset(group0);
    return ok(st) ? NATIVE_ST_OK : native_status_of(st);
}

static void
snapshot_came(void *arg, struct peer_request *request, const struct peer_identity *from,
              const struct native_header *header, struct bytes body)
{
    struct group0 *group0 = arg;
    struct group0_chunk chunk;
    if (request == NULL) return;
    enum native_status answer = NATIVE_ST_UNAVAILABLE;
    if (group0_works(group0)) {
        bool right = ok(group0_chunk_decode(body, &chunk)) && chunk.from == from->member &&
                     chunk.to == group0->identity.member;
        answer = right ? chunk_take(group0, &chunk) : NATIVE_ST_INVALID;
        if (answer != NATIVE_ST_OK) staging_reset(group0);
    }
    peer_reply(request, answer, epoch_of(group0), NULL, 0);
}

/* ---- proposals of other members ---- */

struct asked { /* under way here for somebody else */
    struct group0_proposal proposal;
    struct peer_request *request;
};

static void
outcome_reply(struct group0 *group0, struct peer_request *request,
              const struct group0_outcome *outcome)
{
    struct buf body;
    buf_init(&body, group0->options.budget);
    bool done = group0_outcome_encode(outcome, &body);
    struct bytes part = buf_bytes(&body);
    /* Without an answer that can be read, what became of it is not known there. */
    peer_reply(request, done ? NATIVE_ST_OK : NATIVE_ST_NO_MEMORY, epoch_of(group0), &part,
               done ? 1 : 0);
    buf_deinit(&body);
}

static void
asked_done(struct group0 *group0, struct group0_proposal *proposal,
           const struct group0_outcome *outcome)
{
    struct asked *asked = CONTAINER_OF(proposal, struct asked, proposal);
    outcome_reply(group0, asked->request, outcome);
    mem_free(group0->options.budget, asked, sizeof(*asked));
}

static void
propose_came(void *arg, struct peer_request *request, const struct peer_identity *from,
             const struct native_header *header, struct bytes body)
{
    struct group0 *group0 = arg;
    struct topology_command command;
    struct group0_outcome outcome = {.result = GROUP0_BUSY};
    if (request == NULL) return;
    if (!ok(topology_command_decode(body, &command))) {
        peer_reply(request, NATIVE_ST_INVALID, epoch_of(group0), NULL, 0);
        return;
    }
    struct asked *asked = mem_alloc(group0->options.budget, sizeof(*asked));
    if (asked != NULL) {
        *asked = (struct asked){.proposal.done = asked_done, .request = request};
        if (group0_propose(group0, &command, body, &asked->proposal, &outcome)) return;
        mem_free(group0->options.budget, asked, sizeof(*asked));
    }
    outcome_reply(group0, request, &outcome);
}

static void
join_came(void *arg, struct peer_request *request, const struct peer_identity *from,
          const struct native_header *header, struct bytes body)
{
    if (request != NULL) group0_join_asked(arg, request, from, body);
}

void
group0_handlers_set(struct group0 *group0, bool there)
{
    static const struct {
        u8 opcode;
        peer_handler fn;
    } handlers[] = {{PEER_RAFT, raft_came},
                    {PEER_RAFT_SNAPSHOT, snapshot_came},
                    {PEER_PROPOSE, propose_came},
                    {PEER_JOIN, join_came}};
    for (u32 i = 0; i < ARRAY_COUNT(handlers); i++)
        peers_handler_set(group0->options.peers, handlers[i].opcode, there ? handlers[i].fn : NULL,
                          there ? group0 : NULL);
}
