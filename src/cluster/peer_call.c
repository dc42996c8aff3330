/* SPDX-License-Identifier: MIT
 *
 * peer_call.c -- links: connections that this shard makes to shards of other nodes, and the calls
 * that are under way on them. Invariants in peer_internal.h.
 *
 *   state        calls                          leaves by
 *   IDLE         none                           a call or a post -> CONNECTING, or DELAYED
 *   DELAYED      in `waiting`                   the timer -> CONNECTING
 *   CONNECTING   in `waiting`                   opened -> GREETING; a failure -> IDLE
 *   GREETING     in `waiting`                   the other's hello and proof -> PROVING
 *   PROVING      in `waiting`                   its answer -> OPEN
 *   OPEN         in the output, or answered     any fault, silence, drop -> CLOSING
 *   CLOSING      new ones in `waiting`          closed -> IDLE, or DELAYED if calls wait
 *
 * When a connection is given up all calls on it end at once: those whose frames were in its output
 * may have been seen by the peer, those in `waiting` were certainly not.
 */
#include "cluster/peer_internal.h"

#include "base/fault.h"
#include "io/io.h"

/* ---- the ends of calls ---- */

static void
call_timer_remove(struct peers *peers, struct peer_call *call)
{
    if (call->deadline_ns != UINT64_MAX) heap_remove(&peers->deadlines, &call->timer);
}

/* done is due; call is on no link. */
static void
call_end_later(struct peers *peers, struct peer_call *call, status st)
{
    call->st = st;
    list_push_back(&peers->ended, &call->link);
    io_task_post(&peers->ended_task);
}

static void
call_tell(struct peers *peers, struct peer_call *call, status st,
          const struct native_header *header, struct bytes body)
{
    if (!ok(st)) peers->stats.calls_failed++;
    if (status_is(st, ST_TIMED_OUT)) peers->stats.calls_timed_out++;
    call->done(call, st, header, body);
}

void
peer_calls_ended_run(struct io_task *task)
{
    struct peers *peers = CONTAINER_OF(task, struct peers, ended_task);
    /* What ends anew meanwhile is for the next turn. */
    list_splice_back(&peers->running, &peers->ended);
    struct list *pos;
    while ((pos = list_pop_front(&peers->running)) != NULL) {
        struct peer_call *call = list_entry(pos, struct peer_call, link);
        call_tell(peers, call, call->st, NULL, BYTES(NULL, 0));
    }
    peers_ended(peers);
}

/* ---- slots ---- */

static struct peer_slot *
slot_of(const struct peer_link *link, u64 request_id)
{
    u32 number = (u32)request_id, turn = (u32)(request_id >> 32);
    if (number == 0 || number > link->slot_count || turn == 0) return NULL;
    struct peer_slot *slot = &link->slots[number - 1];
    return slot->turn == turn ? slot : NULL;
}

static bool
slots_grow(struct peer_link *link)
{
    u32 count = MAX(2 * link->slot_count, PEER_SLOTS_MIN);
    if (count > PEER_SLOTS_MAX) return false;
    struct peer_slot *grown =
        mem_realloc(link->peers->options.budget, link->slots, link->slot_count * sizeof(*grown),
                    count * sizeof(*grown));
    if (grown == NULL) return false;
    for (u32 i = count; i-- > link->slot_count;) {
        grown[i] = (struct peer_slot){.next_free = link->slot_free};
        link->slot_free = i + 1;
    }
    link->slots = grown;
    link->slot_count = count;
    return true;
}

/* A peer that is asked for more than it may be is busy, not dead: some places are for pings alone. */
static u32
slots_for(const struct peer_link *link, u8 opcode)
{
    if (opcode == PEER_PING) return link->requests_max;
    return link->requests_max - link->requests_max / PEER_PINGS_PART;
}

static bool
slot_take(struct peer_link *link, struct peer_call *call, u8 opcode)
{
    if (link->slots_used >= slots_for(link, opcode)) return false;
    if (link->slot_free == 0 && !slots_grow(link)) return false;
    u32 number = link->slot_free;
    struct peer_slot *slot = &link->slots[number - 1];
    link->slot_free = slot->next_free;
    if (++link->turn == 0) link->turn = 1;
    *slot = (struct peer_slot){.call = call, .turn = link->turn};
    link->slots_used++;
    link->idle_ticks = 0;
    call->owner = link;
    call->request_id = (u64)slot->turn << 32 | number;
    return true;
}

static void
slot_free(struct peer_link *link, struct peer_slot *slot)
{
    *slot = (struct peer_slot){.next_free = link->slot_free};
    link->slot_free = (u32)(slot - link->slots) + 1;
    link->slots_used--;
}

/* The call is the caller's again; the slot waits for the answer (L2). */
static void
call_detach(struct peer_call *call)
{
    struct peer_link *link = call->owner;
    struct peer_slot *slot = slot_of(link, call->request_id);
    CHECK(slot != NULL && slot->call == call);
    slot->call = NULL;
    call_timer_remove(link->peers, call);
    call->owner = NULL;
}

/* All calls of the link end, and no answer is owed any more. */
static void
slots_end(struct peer_link *link, status why)
{
    for (u32 i = 0; i < link->slot_count && link->slots_used > 0; i++) {
        struct peer_slot *slot = &link->slots[i];
        if (slot->turn == 0) continue;
        struct peer_call *call = slot->call;
        if (call != NULL) {
            call_detach(call);
            call_end_later(link->peers, call, why);
        }
        slot_free(link, slot);
    }
    CHECK(link->slots_used == 0);
    buf_clear(&link->waiting, 0);
}

/* ---- links ---- */

static void
link_free(struct peer_link *link)
{
    struct peers *peers = link->peers;
    CHECK(link->slots_used == 0 && link->conn == NULL);
    io_timer_cancel(&link->timer);
    if (link->member == 0) peers->seeds--;
    list_del(&link->link);
    buf_deinit(&link->waiting);
    mem_free(peers->options.budget, link->slots, link->slot_count * sizeof(*link->slots));
    mem_free(peers->options.budget, link, sizeof(*link));
    peers_ended(peers);
}

static void
link_count(struct peer_link *link, bool open)
{
    if (open)
        link->peers->stats.connections++;
    else if (link->state == LINK_OPEN)
        link->peers->stats.connections--;
}

/* Gives the connection up; its calls end. */
static void
link_close(struct peer_link *link, status why, enum io_close_mode mode)
{
    link_count(link, false);
    link->state = LINK_CLOSING;
    slots_end(link, why);
    io_conn_close(link->conn, mode);
}

/* A link that no table has goes when nothing is left of it. */
static void
link_check_end(struct peer_link *link)
{
    if (!link->retired || link->slots_used > 0) return;
    switch (link->state) {
    case LINK_IDLE:
    case LINK_DELAYED:
        link_free(link);
        break;
    case LINK_GREETING:
    case LINK_PROVING:
    case LINK_OPEN:
        link_close(link, ST_CLOSED, IO_CLOSE_ABORT);
        break;
    case LINK_CONNECTING: /* the fiber's end, */
    case LINK_CLOSING:    /* closed: both come here again */
        break;
    }
}

static void
link_retire(struct peer_link *link)
{
    link->retired = true;
    link_check_end(link);
}

void
peer_link_drop(struct peer_link *link, status why)
{
    slots_end(link, why);
    link_retire(link);
}

/* The next attempt is not made at once: after twice as long as the last time, within these. */
static void
link_delay(struct peer_link *link, u64 min_ns, u64 max_ns)
{
    link->delay_ns = CLAMP(2 * link->delay_ns, min_ns, max_ns);
    /* A little apart: a node that comes back is not met by all shards in one moment. */
    link->retry_at_ns = io_now_ns() + link->delay_ns - io_random() % (link->delay_ns / 4);
}

/* No connection came about. */
static void
link_failed(struct peer_link *link, status why)
{
    link->state = LINK_IDLE;
    bool denied = status_is(why, ST_DENIED);
    link_delay(link, denied ? PEER_DELAY_NS_MAX : PEER_DELAY_NS_MIN, PEER_DELAY_NS_MAX);
    slots_end(link, why);
    link_check_end(link);
}

static bool
somebody_waits(const struct peer_link *link)
{
    for (u32 i = 0; i < link->slot_count; i++)
        if (link->slots[i].turn != 0 && link->slots[i].call != NULL) return true;
    return false;
}

/* This node lacks what a connection takes, which tells nothing of the peer: calls that end as those
 * to somebody who is not there would have others decide beside a peer that lives. They wait, until
 * their own time is over; then what they left here goes, too. */
static void
link_lacks(struct peer_link *link)
{
    if (!somebody_waits(link)) {
        link_failed(link, ST_CLOSED);
        return;
    }
    MARK("cluster.peer.no_attempt");
    link_delay(link, PEER_DELAY_NS_MIN, PEER_LACK_NS_MAX);
    link->state = LINK_DELAYED;
    io_timer_arm(&link->timer, link->retry_at_ns);
}

static MAY_YIELD void
link_connect(void *arg)
{
    struct peer_link *link = arg;
    struct peers *peers = link->peers;
    struct io_conn *conn;
    status st = ST_CLOSED;
    u16 port = (u16)(link->address.port + link->shard);
    if (!link->retired)
        st = io_connect(link->address.host, port, &peer_link_events, link,
                        io_now_ns() + PEER_CONNECT_NS, &conn);
    peers->connecting--;
    /* After ok the link is the events': it may be gone. */
    if (ok(st)) return;
    if (status_is(st, ST_NO_MEMORY) && !link->retired)
        link_lacks(link);
    else
        link_failed(link, ST_CLOSED);
}

static void
link_connect_start(struct peer_link *link)
{
    io_timer_cancel(&link->timer);
    link->state = LINK_CONNECTING;
    link->peers->connecting++;
    status st = fiber_spawn(FIBER_FOREGROUND, "peer connect", link_connect, link);
    if (ok(st)) return;
    link->peers->connecting--;
    link_lacks(link);
}

static void
link_timer_fire(struct io_timer *timer)
{
    struct peer_link *link = CONTAINER_OF(timer, struct peer_link, timer);
    if (link->state == LINK_DELAYED) link_connect_start(link);
}

/* Calls wait: there has to be a connection soon. */
static void
link_begin(struct peer_link *link)
{
    if (link->state != LINK_IDLE) return;
    if (io_now_ns() >= link->retry_at_ns) {
        link_connect_start(link);
        return;
    }
    link->state = LINK_DELAYED;
    io_timer_arm(&link->timer, link->retry_at_ns);
}

static struct peer_link *
link_new(struct peers *peers, u32 member, const struct peer_address *address, u32 shard)
{
    struct peer_link *link = mem_alloc_zero(peers->options.budget, sizeof(*link));
    if (link == NULL) return NULL;
    link->peers = peers;
    link->address = *address;
    link->address.host[PEER_HOST_BYTES - 1] = '\0';
    link->member = member;
    link->shard = shard;
    link->requests_max = PEER_REQUESTS_MAX_DEFAULT;
    buf_init(&link->waiting, peers->options.budget);
    io_timer_init(&link->timer, link_timer_fire);
    list_push_back(&peers->links, &link->link);
    if (member == 0) peers->seeds++;
    peers_tick_arm(peers);
    return link;
}

/* HELLO was sent as somebody that this node is no more. */
static bool
link_is_outdated(const struct peer_link *link)
{
    bool told =
        link->state == LINK_GREETING || link->state == LINK_PROVING || link->state == LINK_OPEN;
    return told && link->identity_turn != link->peers->identity_turn;
}

static status
link_of_member(struct peers *peers, u32 number, u32 shard, struct peer_link **out)
{
    struct peer_member *member = peers_member_find(peers, number);
    if (member == NULL || shard >= member->address.shard_count) return ST_NOT_FOUND;
    struct peer_link *link = member->links[shard];
    if (link != NULL && link_is_outdated(link)) {
        member->links[shard] = NULL;
        link_retire(link);
        link = NULL;
    }
    if (link == NULL) {
        link = link_new(peers, number, &member->address, shard);
        if (link == NULL) return ST_OVERLOADED;
        member->links[shard] = link;
    }
    *out = link;
    return ST_OK;
}

static status
link_of_seed(struct peers *peers, const struct peer_address *address, u32 shard,
             struct peer_link **out)
{
    list_for_each_safe (pos, &peers->links) {
        struct peer_link *link = list_entry(pos, struct peer_link, link);
        if (link->member != 0 || link->retired || link->shard != shard) continue;
        if (link->address.port != address->port || strcmp(link->address.host, address->host) != 0)
            continue;
        if (link_is_outdated(link)) {
            link_retire(link);
            continue;
        }
        *out = link;
        return ST_OK;
    }
    if (peers->seeds >= PEER_SEEDS_MAX) return ST_OVERLOADED;
    struct peer_link *link = link_new(peers, 0, address, shard);
    if (link == NULL) return ST_OVERLOADED;
    *out = link;
    return ST_OK;
}

/* ---- calls ---- */

static u32
timeout_ms(u64 deadline_ns)
{
    if (deadline_ns == UINT64_MAX) return 0;
    u64 now_ns = io_now_ns();
    u64 ms = deadline_ns > now_ns ? (deadline_ns - now_ns + NS_PER_MS - 1) / NS_PER_MS : 1;
    return (u32)MIN(ms, (u64)UINT32_MAX);
}

/* Whether what goes out, or will, has no room for another frame. */
static bool
link_is_full(const struct peer_link *link)
{
    return link->state == LINK_OPEN ? io_conn_output_full(link->conn)
                                    : link->waiting.size > PEER_WAITING_BYTES;
}

/* Puts the frame where it goes out, or will. */
static status
link_put(struct peer_link *link, struct peer_call *call, const struct native_header *header,
         const struct bytes *parts, u32 part_count)
{
    struct native_header sent = *header;
    sent.flags = 0;
    sent.status = NATIVE_ST_OK;
    sent.request_id = call->request_id;
    sent.timeout_ms = timeout_ms(call->deadline_ns);
    /* Not pings, which are short: who does not answer those is taken for dead. */
    if (sent.opcode != PEER_PING && (link_is_full(link) || BUGGIFY("cluster.peer.no_room")))
        return ST_OVERLOADED;
    if (link->state == LINK_OPEN) {
        if (!peer_frame_send(link->peers, link->conn, &sent, parts, part_count))
            return ST_OVERLOADED;
        call->maybe_sent = true;
        return ST_OK;
    }
    size_t size = link->waiting.size;
    if (peer_frame_append(&link->waiting, &sent, parts, part_count)) return ST_OK;
    link->waiting.size = size;
    return ST_OVERLOADED;
}

static status
call_put(struct peers *peers, struct peer_link *link, struct peer_call *call,
         const struct native_header *header, const struct bytes *parts, u32 part_count)
{
    if (peer_parts_bytes(parts, part_count) > PEER_BODY_BYTES_MAX) return ST_TOO_LARGE;
    if (call->deadline_ns <= io_now_ns()) return ST_TIMED_OUT;
    if (!slot_take(link, call, header->opcode)) return ST_OVERLOADED;
    status st = link_put(link, call, header, parts, part_count);
    if (!ok(st)) {
        slot_free(link, slot_of(link, call->request_id));
        call->owner = NULL;
        return st;
    }
    if (call->deadline_ns == UINT64_MAX) return ST_OK;
    call->order = peers->call_order++;
    heap_insert(&peers->deadlines, &call->timer);
    if (heap_first(&peers->deadlines) == &call->timer)
        io_timer_arm(&peers->deadline_timer, call->deadline_ns);
    return ST_OK;
}

bool
peer_calls_full(struct peers *peers, u32 member, u32 shard)
{
    struct peer_link *link;
    if (peers->closing || !ok(link_of_member(peers, member, shard, &link))) return false;
    return link->slots_used >= slots_for(link, PEER_FORWARD) || link_is_full(link);
}

MAY_YIELD void
peer_room_await(struct peers *peers, u64 until_ns)
{
    (void)!ok(fiber_queue_wait(&peers->room, MIN(until_ns, io_now_ns() + PEER_ROOM_NS)));
}

static void
call_start(struct peers *peers, struct peer_link *link, status st, struct peer_call *call,
           const struct native_header *header, const struct bytes *parts, u32 part_count,
           u64 deadline_ns)
{
    CHECK(call->owner == NULL && !list_linked(&call->link));
    CHECK(header->opcode >= PEER_OPCODE_MIN);
    peers->stats.calls++;
    call->maybe_sent = false;
    call->deadline_ns = deadline_ns;
    if (ok(st)) st = call_put(peers, link, call, header, parts, part_count);
    if (ok(st))
        link_begin(link);
    else
        call_end_later(peers, call, st);
}

void
peer_call_start(struct peers *peers, struct peer_call *call, u32 member, u32 shard,
                const struct native_header *header, const struct bytes *parts, u32 part_count,
                u64 deadline_ns)
{
    struct peer_link *link = NULL;
    status st = peers->closing ? ST_CLOSED : link_of_member(peers, member, shard, &link);
    call_start(peers, link, st, call, header, parts, part_count, deadline_ns);
}

void
peer_call_start_at(struct peers *peers, struct peer_call *call, const struct peer_address *address,
                   u32 shard, const struct native_header *header, const struct bytes *parts,
                   u32 part_count, u64 deadline_ns)
{
    struct peer_link *link = NULL;
    status st = peers->closing ? ST_CLOSED : link_of_seed(peers, address, shard, &link);
    call_start(peers, link, st, call, header, parts, part_count, deadline_ns);
}

/* A slot whose frame was never sent is not waited for: link_flush frees it. */
void
peer_call_cancel(struct peers *peers, struct peer_call *call)
{
    if (call->owner != NULL) {
        call_detach(call);
    } else if (list_linked(&call->link)) {
        list_del(&call->link);
        peers_ended(peers);
    }
}

void
peer_calls_expire(struct io_timer *timer)
{
    struct peers *peers = CONTAINER_OF(timer, struct peers, deadline_timer);
    struct heap_node *first;
    while ((first = heap_first(&peers->deadlines)) != NULL) {
        struct peer_call *call = CONTAINER_OF(first, struct peer_call, timer);
        if (call->deadline_ns > io_now_ns()) {
            io_timer_arm(timer, call->deadline_ns);
            return;
        }
        if (call->owner->state == LINK_OPEN) call->owner->timeouts++;
        call_detach(call);
        call_tell(peers, call, ST_TIMED_OUT, NULL, BYTES(NULL, 0));
    }
}

void
peer_post(struct peers *peers, u32 member, u32 shard, const struct native_header *header,
          const struct bytes *parts, u32 part_count)
{
    CHECK(header->opcode >= PEER_OPCODE_MIN);
    struct peer_link *link;
    peers->stats.posts++;
    bool sent = false;
    if (!peers->closing && ok(link_of_member(peers, member, shard, &link)) &&
        peer_parts_bytes(parts, part_count) <= PEER_BODY_BYTES_MAX) {
        struct native_header posted = *header;
        posted.flags = 0;
        posted.status = NATIVE_ST_OK;
        posted.request_id = 0;
        posted.timeout_ms = 0;
        sent = link->state == LINK_OPEN && !io_conn_output_full(link->conn) &&
               peer_frame_send(peers, link->conn, &posted, parts, part_count);
        if (sent) {
            link->posted = true;
        } else if (link->state == LINK_IDLE && io_now_ns() >= link->retry_at_ns) {
            link_begin(link);
        }
    }
    if (!sent) peers->stats.posts_dropped++;
}

/* ---- calls of fibers ---- */

struct call_wait {
    struct peer_call call;
    struct fiber_queue queue;
    bool ended;
    status st;
    struct native_header *answer;
    struct buf *out;
};

static void
call_wait_done(struct peer_call *call, status st, const struct native_header *header,
               struct bytes body)
{
    struct call_wait *wait = CONTAINER_OF(call, struct call_wait, call);
    if (ok(st)) {
        *wait->answer = *header;
        if (body.size > 0 && !buf_append(wait->out, body.data, body.size)) st = ST_NO_MEMORY;
    }
    wait->st = st;
    wait->ended = true;
    fiber_queue_wake_all(&wait->queue);
}

MAY_YIELD status
peer_call_wait(struct peers *peers, u32 member, u32 shard, const struct native_header *header,
               const struct bytes *parts, u32 part_count, u64 deadline_ns,
               struct native_header *answer, struct buf *out, bool *maybe_sent)
{
    struct call_wait wait = {.answer = answer, .out = out};
    peer_call_init(&wait.call, call_wait_done);
    fiber_queue_init(&wait.queue);
    peer_call_start(peers, &wait.call, member, shard, header, parts, part_count, deadline_ns);
    while (!wait.ended)
        (void)!ok(fiber_queue_wait(&wait.queue, FIBER_FOREVER));
    *maybe_sent = wait.call.maybe_sent;
    return wait.st;
}

/* ---- the handshake ---- */

static status
link_opened(struct io_conn *conn, void *arg)
{
    struct peer_link *link = arg;
    if (link->retired && link->slots_used == 0) return ST_CANCELED;
    link->hello_size = peers_hello(link->peers, link->shard, 0, link->hello);
    struct native_header header = {.opcode = PEER_HELLO, .request_id = 1};
    struct bytes body = BYTES(link->hello, link->hello_size);
    if (!peer_frame_send(link->peers, conn, &header, &body, 1)) return ST_NO_MEMORY;
    io_conn_user_set(conn, link);
    link->conn = conn;
    link->identity_turn = link->peers->identity_turn;
    link->state = LINK_GREETING;
    link->ticks = link->idle_ticks = link->timeouts = 0;
    link->arrived = link->sent = 0;
    link->posted = link->pinged = link->was_behind = false;
    return ST_OK;
}

/* No connection to who this is. */
static void
link_give_up(struct peer_link *link)
{
    link_delay(link, PEER_DELAY_NS_MAX, PEER_DELAY_NS_MAX);
    link_close(link, ST_DENIED, IO_CLOSE_ABORT);
}

static void
link_refuse(struct peer_link *link, const char *why)
{
    peers_refused(link->peers, link->conn, why);
    link_give_up(link);
}

/* The same, and the other end learns why, so that its operator does: by a PROOF without a proof. */
static void
link_refuse_secret(struct peer_link *link)
{
    struct native_header header = {.opcode = PEER_PROOF, .request_id = 2};
    bool told = peer_frame_send(link->peers, link->conn, &header, NULL, 0);
    peers_refused(link->peers, link->conn, "does not know the secret");
    link_delay(link, PEER_DELAY_NS_MAX, PEER_DELAY_NS_MAX);
    link_close(link, ST_DENIED, told ? IO_CLOSE_FLUSH : IO_CLOSE_ABORT);
}

/* What is said for a status of the handshake's replies; NULL: a fault of the bytes. */
static const char *
refusal_text(u16 native_status)
{
    switch (native_status) {
    case NATIVE_ST_UNAUTHENTICATED:
        return "does not take our proof of the secret";
    case NATIVE_ST_CONFLICT:
        return "says that we are of another cluster, or not who we say";
    case NATIVE_ST_NOT_FOUND:
        return "says that this node was taken out of the cluster";
    case NATIVE_ST_UNSUPPORTED:
        return "speaks no version that we speak";
    default:
        return "refuses us";
    }
}

static void
link_greeted(struct peer_link *link, const struct native_header *header, struct bytes body)
{
    struct peers *peers = link->peers;
    if (header->opcode != PEER_HELLO || header->request_id != 1) {
        link_refuse(link, "does not speak as a node");
        return;
    }
    if (header->status != NATIVE_ST_OK) {
        link_refuse(link, refusal_text(header->status));
        return;
    }
    struct peer_hello theirs, ours;
    struct peer_identity identity;
    const char *why;
    size_t size;
    u8 proof[HMAC_BYTES];
    struct bytes hello = BYTES(link->hello, link->hello_size);
    bool reads = ok(peer_hello_decode(hello, &ours, &size));
    CHECK(reads && size == hello.size);
    if (!ok(peer_hello_decode(body, &theirs, &size)) || body.size - size != HMAC_BYTES ||
        theirs.requests_max == 0) {
        link_refuse(link, "does not speak as a node");
        return;
    }
    struct bytes answer = BYTES(body.data, size);
    peer_proof(peers_secret(peers), PEER_LISTENS, hello, answer, proof);
    if (!hmac_equal(proof, body.data + size)) {
        link_refuse_secret(link);
        return;
    }
    if (peer_version_choose(&ours, &theirs) == 0) {
        link_refuse(link, refusal_text(NATIVE_ST_UNSUPPORTED));
        return;
    }
    if (ours.cluster_id != 0 && theirs.cluster_id == 0) {
        peers_refused_new(peers, link->conn);
        link_give_up(link);
        return;
    }
    bool other = ours.cluster_id != 0 && theirs.cluster_id != ours.cluster_id;
    if (other || (link->member != 0 && theirs.member != link->member)) {
        link_refuse(link, other ? "is of another cluster" : "is another member than it should be");
        return;
    }
    if (!ok(peers_admits(peers, &theirs, &identity, &why))) {
        link_refuse(link, why);
        return;
    }
    link->requests_max = MIN(theirs.requests_max, PEER_SLOTS_MAX);
    peer_proof(peers_secret(peers), PEER_CONNECTS, hello, answer, proof);
    struct native_header next = {.opcode = PEER_PROOF, .request_id = 2};
    struct bytes part = BYTES(proof, sizeof(proof));
    link->state = LINK_PROVING;
    link->ticks = 0;
    if (!peer_frame_send(peers, link->conn, &next, &part, 1))
        link_close(link, ST_CLOSED, IO_CLOSE_ABORT);
}

/* What has waited for the connection goes out. */
static void
link_flush(struct peer_link *link)
{
    struct peers *peers = link->peers;
    u32 sent = 0;
    for (size_t at = 0; at < link->waiting.size;) {
        u8 *frame = link->waiting.data + at;
        struct native_header header;
        status st = native_header_decode(BYTES(frame, link->waiting.size - at), &header);
        CHECK(ok(st)); /* written by link_put */
        size_t size = NATIVE_HEADER_BYTES + header.body_size;
        at += size;
        struct peer_slot *slot = slot_of(link, header.request_id);
        CHECK(slot != NULL);
        struct peer_call *call = slot->call;
        if (call == NULL) {
            slot_free(link, slot); /* cancelled, or out of time */
            continue;
        }
        native_frame_patch(frame, header.epoch, timeout_ms(call->deadline_ns), header.age_ms);
        if (sent < link->requests_max && io_conn_write(link->conn, frame, size)) {
            sent++;
            peers->stats.sent_bytes += size;
            call->maybe_sent = true;
            continue;
        }
        call_detach(call);
        slot_free(link, slot);
        call_end_later(peers, call, ST_OVERLOADED);
    }
    buf_clear(&link->waiting, 0);
}

static void
link_proved(struct peer_link *link, const struct native_header *header, struct bytes body)
{
    bool answers = header->opcode == PEER_PROOF && header->request_id == 2 && body.size == 0;
    if (!answers) {
        link_refuse(link, "does not speak as a node");
        return;
    }
    if (header->status != NATIVE_ST_OK) {
        /* It has proved to know the secret, and to be of our cluster. */
        if (header->status == NATIVE_ST_NOT_FOUND && link->peers->options.self.member != 0)
            link->peers->taken_out = true;
        link_refuse(link, refusal_text(header->status));
        return;
    }
    link->state = LINK_OPEN;
    link_count(link, true);
    link->opened_ns = io_now_ns();
    link->ticks = 0;
    link_flush(link);
    link_check_end(link);
}

/* ---- answers ---- */

/* The peer says what it may not: nothing after it can be trusted. */
static void
link_fault(struct peer_link *link, const char *why)
{
    if (link->state == LINK_OPEN) {
        peers_refused(link->peers, link->conn, why);
        link_close(link, ST_CLOSED, IO_CLOSE_ABORT);
    } else {
        link_refuse(link, why);
    }
}

static void
link_answered(struct peer_link *link, const struct native_header *header, struct bytes body)
{
    if (header->request_id == PEER_KEEPALIVE_ID) {
        link->pinged = false;
        return;
    }
    struct peer_slot *slot = slot_of(link, header->request_id);
    if (slot == NULL) {
        link_fault(link, "answers what was not asked");
        return;
    }
    struct peer_call *call = slot->call;
    if (call != NULL) call_detach(call);
    slot_free(link, slot);
    /* Before done, which may do anything to the link but free it: it has its connection yet. */
    if (call != NULL) call_tell(link->peers, call, ST_OK, header, body);
}

static void
link_frame(struct peer_link *link, const struct native_header *header, struct bytes body)
{
    if ((header->flags & NATIVE_FLAG_REPLY) == 0) {
        link_fault(link, "asks where it should answer");
        return;
    }
    switch (link->state) {
    case LINK_GREETING:
        link_greeted(link, header, body);
        break;
    case LINK_PROVING:
        link_proved(link, header, body);
        break;
    case LINK_OPEN:
        link_answered(link, header, body);
        break;
    case LINK_IDLE:
    case LINK_DELAYED:
    case LINK_CONNECTING:
    case LINK_CLOSING:
        break;
    }
}

static size_t
link_received(struct io_conn *conn, struct bytes data)
{
    struct peer_link *link = io_conn_user(conn);
    if (link->state == LINK_OPEN) link->ticks = link->timeouts = 0;
    link->idle_ticks = 0;
    link->posted = false;
    size_t at = 0;
    while (link->state != LINK_CLOSING && at < data.size) {
        if (at > 0 && fiber_should_yield()) {
            io_conn_again(conn);
            break;
        }
        struct native_header header;
        struct bytes body;
        size_t consumed = 0, wanted = 0;
        struct bytes rest = BYTES(data.data + at, data.size - at);
        status st = native_frame_decode(rest, &header, &body, &consumed, &wanted);
        if (status_is(st, ST_INCOMPLETE)) {
            bool too_large =
                wanted > (link->state == LINK_OPEN ? CONN_INPUT_MAX_BYTES : PEER_HANDSHAKE_SPAN);
            if (too_large)
                link_fault(link, "sends a frame that is too large");
            else
                io_conn_want(conn, wanted);
            break;
        }
        if (!ok(st)) {
            link_fault(link, "sends a frame that does not read");
            break;
        }
        at += consumed;
        link->peers->stats.received_bytes += consumed;
        link_frame(link, &header, body);
    }
    if (link->state == LINK_OPEN) link_check_end(link);
    return at;
}

/* ---- the end ---- */

static void
link_drained(struct io_conn *conn)
{
    struct peer_link *link = io_conn_user(conn);
    fiber_queue_wake_all(&link->peers->room);
}

static void
link_closed(struct io_conn *conn, status why)
{
    (void)why;
    struct peer_link *link = io_conn_user(conn);
    if (link->state != LINK_CLOSING) { /* the peer's doing */
        link_count(link, false);
        slots_end(link, ST_CLOSED);
        link->state = LINK_CLOSING;
    }
    link->conn = NULL;
    link->requests_max = PEER_REQUESTS_MAX_DEFAULT;
    u64 now_ns = io_now_ns();
    bool lasted = link->opened_ns != 0 && now_ns - link->opened_ns >= PEER_DELAY_NS_MAX;
    if (lasted) link->delay_ns = 0;
    link->opened_ns = 0;
    if (link->retry_at_ns <= now_ns) link_delay(link, PEER_DELAY_NS_MIN, PEER_DELAY_NS_MAX);
    link->state = LINK_IDLE;
    fiber_queue_wake_all(&link->peers->room);
    if (link->slots_used > 0) link_begin(link);
    link_check_end(link);
}

const struct io_conn_events peer_link_events = {
    .opened = link_opened,
    .received = link_received,
    .drained = link_drained,
    .closed = link_closed,
    .first = true,
};

/* ---- keepalive ---- */

static void
link_ping(struct peer_link *link)
{
    if (link->pinged) return;
    struct native_header header = {.opcode = PEER_PING, .request_id = PEER_KEEPALIVE_ID};
    link->pinged = peer_frame_send(link->peers, link->conn, &header, NULL, 0);
}

/* A part of something large has come, or gone, or waits here: the peer's machine is there. */
static bool
link_moved(struct peer_link *link)
{
    u64 arrived = io_conn_arrived(link->conn);
    u64 pending = io_conn_pending(link->conn);
    u64 sent = io_conn_written(link->conn) - pending;
    bool moved = arrived > link->arrived || (link->was_behind && sent > link->sent);
    link->arrived = arrived;
    link->sent = sent;
    /* What goes out at once may only have gone into a buffer of this machine. */
    link->was_behind = pending > 0;
    return moved || io_conn_waits_for_room(link->conn);
}

static void
link_open_tick(struct peer_link *link)
{
    bool owed = link->slots_used > 0 || link->posted || link->pinged;
    if (!owed) {
        link->ticks = 0;
        if (++link->idle_ticks >= PEER_TICKS_IDLE) link_ping(link);
        return;
    }
    /* The kernel is asked only while there is silence; the first tick is what the next compare
     * with. */
    bool moved = link_moved(link);
    link->ticks = moved ? 1 : link->ticks + 1;
    bool suspect = link->ticks >= PEER_TICKS_SUSPECT && link->timeouts >= PEER_TIMEOUTS_SUSPECT;
    if (link->ticks >= PEER_TICKS_SILENT || suspect) {
        MARK("cluster.peer.silent");
        link_close(link, ST_CLOSED, IO_CLOSE_ABORT);
    } else if (link->ticks >= PEER_TICKS_PING) {
        link_ping(link);
    }
}

void
peer_link_doubt(struct peer_link *link)
{
    bool owed = link->slots_used > 0 || link->posted || link->pinged;
    if (link->state != LINK_OPEN || owed) return;
    MARK("cluster.peer.doubted");
    link_close(link, ST_CLOSED, IO_CLOSE_ABORT);
}

void
peer_link_tick(struct peer_link *link)
{
    switch (link->state) {
    case LINK_OPEN:
        link_open_tick(link);
        break;
    case LINK_GREETING:
    case LINK_PROVING:
        if (++link->ticks >= PEER_TICKS_HANDSHAKE) link_close(link, ST_CLOSED, IO_CLOSE_ABORT);
        break;
    case LINK_IDLE:
        link->idle_ticks++;
        break;
    case LINK_DELAYED:
    case LINK_CONNECTING:
    case LINK_CLOSING:
        break;
    }
    bool idle = link->slots_used == 0 && (link->state == LINK_OPEN || link->state == LINK_IDLE);
    if (link->member == 0 && !link->retired && idle && link->idle_ticks >= PEER_TICKS_SEED)
        link_retire(link);
}
