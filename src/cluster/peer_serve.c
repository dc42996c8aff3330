/* SPDX-License-Identifier: MIT
 *
 * peer_serve.c -- guests: connections that other shards made to this one, the requests that come by
 * them, and their answers. Invariants in peer_internal.h.
 *
 *   state      takes                               leaves by
 *   STRANGER   HELLO                               a hello that reads -> GREETED, else CLOSING
 *   GREETED    PROOF                               the right one, of who may -> OPEN, else CLOSING
 *   OPEN       requests, posts                     any fault, 60 s without a word -> CLOSING
 *   CLOSING    nothing                             closed
 *
 * Until OPEN a guest has 5 s and 4 KiB, and there are at most PEER_STRANGERS_MAX of them.
 */
#include "cluster/peer_internal.h"

#include "base/fault.h"
#include "io/io.h"

/* ---- life ---- */

static void
guest_state_set(struct peer_guest *guest, enum peer_guest_state state)
{
    struct peers *peers = guest->peers;
    bool was_strange = guest->state < GUEST_OPEN, is_strange = state < GUEST_OPEN;
    if (was_strange && !is_strange) peers->strangers--;
    if (state == GUEST_OPEN) peers->stats.connections++;
    if (guest->state == GUEST_OPEN && state == GUEST_CLOSING) peers->stats.connections--;
    guest->state = state;
}

/* Answers that come later find nobody. */
static void
guest_forget_requests(struct peer_guest *guest)
{
    struct list *pos;
    while ((pos = list_pop_front(&guest->requests)) != NULL)
        list_entry(pos, struct peer_request, link)->guest = NULL;
    guest->under_way = 0;
}

static void
guest_end(struct peer_guest *guest, enum io_close_mode mode)
{
    if (guest->state == GUEST_CLOSING) return;
    guest_state_set(guest, GUEST_CLOSING);
    guest_forget_requests(guest);
    io_conn_close(guest->conn, mode);
}

void
peer_guest_close(struct peer_guest *guest)
{
    guest_end(guest, IO_CLOSE_ABORT);
}

/* Cut off without a word: what it sends is not the protocol. */
static void
guest_fault(struct peer_guest *guest, const char *why)
{
    peers_refused(guest->peers, guest->conn, why);
    guest_end(guest, IO_CLOSE_ABORT);
}

static status
guest_opened(struct io_conn *conn, void *arg)
{
    struct peers *peers = arg;
    if (peers->closing) return ST_CLOSED;
    if (peers->strangers >= PEER_STRANGERS_MAX) {
        peers_refused(peers, conn, "came while too many have not said who they are");
        return ST_OVERLOADED;
    }
    struct peer_guest *guest = mem_alloc_zero(peers->options.budget, sizeof(*guest));
    if (guest == NULL) return ST_NO_MEMORY;
    guest->peers = peers;
    guest->conn = conn;
    list_init(&guest->requests);
    list_push_back(&peers->guests, &guest->link);
    peers->strangers++;
    io_conn_user_set(conn, guest);
    peers_tick_arm(peers);
    return ST_OK;
}

static void
guest_closed(struct io_conn *conn, status why)
{
    (void)why;
    struct peer_guest *guest = io_conn_user(conn);
    struct peers *peers = guest->peers;
    if (guest->state != GUEST_CLOSING) guest_state_set(guest, GUEST_CLOSING);
    guest_forget_requests(guest);
    list_del(&guest->link);
    mem_free(peers->options.budget, guest, sizeof(*guest));
    peers_ended(peers);
}

static void
guest_drained(struct io_conn *conn)
{
    struct peer_guest *guest = io_conn_user(conn);
    if (!guest->paused || guest->state == GUEST_CLOSING) return;
    guest->paused = false;
    io_conn_resume(conn);
}

void
peer_guest_tick(struct peer_guest *guest)
{
    if (guest->state == GUEST_CLOSING) return;
    guest->ticks++;
    /* Seldom: it asks the kernel. A part of something large may have come. */
    if (guest->state == GUEST_OPEN && guest->ticks % PEER_TICKS_IDLE == 0) {
        u64 arrived = io_conn_arrived(guest->conn);
        if (arrived != guest->arrived) guest->ticks = 0;
        guest->arrived = arrived;
    }
    if (guest->state != GUEST_OPEN && guest->ticks >= PEER_TICKS_STRANGER) {
        guest_fault(guest, "does not say who it is");
    } else if (guest->ticks >= PEER_TICKS_GUEST) {
        MARK("cluster.peer.guest_silent");
        guest_end(guest, IO_CLOSE_ABORT);
    }
}

/* ---- answers ---- */

/* An answer that finds no memory is sent without its body; one that finds none even so ends the
 * connection: whoever asked must not wait for what does not come. What was done does not become
 * NO_MEMORY, after which it would be done again. */
static void
guest_answer(struct peer_guest *guest, const struct native_header *request,
             enum native_status native_status, u64 epoch, const struct bytes *parts, u32 part_count)
{
    struct native_header header = native_reply_header(request, epoch);
    header.status = (u16)native_status;
    if (peer_parts_bytes(parts, part_count) <= PEER_BODY_BYTES_MAX &&
        peer_frame_send(guest->peers, guest->conn, &header, parts, part_count))
        return;
    bool done = native_status == NATIVE_ST_OK;
    header.status = done ? NATIVE_ST_UNKNOWN_OUTCOME : NATIVE_ST_NO_MEMORY;
    if (part_count > 0 && peer_frame_send(guest->peers, guest->conn, &header, NULL, 0)) return;
    MARK("cluster.peer.no_answer");
    guest_end(guest, IO_CLOSE_ABORT);
}

static struct peer_request *
request_take(struct peers *peers)
{
    struct list *spare = list_pop_front(&peers->spare_requests);
    if (spare != NULL) {
        peers->spare_count--;
        return list_entry(spare, struct peer_request, link);
    }
    return mem_alloc(peers->options.budget, sizeof(struct peer_request));
}

static void
request_free(struct peer_request *request)
{
    struct peers *peers = request->peers;
    peers->requests_alive--;
    peers->stats.requests_under_way--;
    if (peers->spare_count < PEER_SPARE_MAX && !peers->closed) {
        peers->spare_count++;
        list_push_front(&peers->spare_requests, &request->link);
    } else {
        mem_free(peers->options.budget, request, sizeof(*request));
    }
    peers_check_free(peers);
}

void
peer_reply(struct peer_request *request, enum native_status native_status, u64 epoch,
           const struct bytes *parts, u32 part_count)
{
    struct peer_guest *guest = request->guest;
    list_del(&request->link);
    if (guest != NULL) {
        guest->under_way--;
        guest_answer(guest, &request->header, native_status, epoch, parts, part_count);
    }
    request_free(request);
}

u64
peer_request_deadline_ns(const struct peer_request *request)
{
    return request->deadline_ns;
}

/* ---- requests ---- */

static void
guest_request(struct peer_guest *guest, const struct native_header *header, struct bytes body)
{
    struct peers *peers = guest->peers;
    u8 opcode = header->opcode;
    if (opcode < PEER_OPCODE_MIN || opcode == PEER_HELLO || opcode == PEER_PROOF) {
        guest_fault(guest, "sends what only a client or a stranger does");
        return;
    }
    if (header->request_id == PEER_KEEPALIVE_ID) {
        guest_answer(guest, header, NATIVE_ST_OK, 0, NULL, 0);
        return;
    }
    const struct peer_handler_entry *handler = &peers->handlers[opcode];
    bool may = guest->from.cluster_id != 0 || opcode == PEER_JOIN;
    if (header->request_id == 0) {
        if (may && handler->fn != NULL) handler->fn(handler->arg, NULL, &guest->from, header, body);
        return;
    }
    peers->stats.requests++;
    if (!may || handler->fn == NULL) {
        enum native_status refusal = !may                  ? NATIVE_ST_UNAUTHENTICATED
                                     : opcode == PEER_PING ? NATIVE_ST_OK
                                                           : NATIVE_ST_UNSUPPORTED;
        guest_answer(guest, header, refusal, 0, NULL, 0);
        return;
    }
    if (guest->under_way >= peers->options.requests_max) {
        guest_fault(guest, "has more requests under way than it may");
        return;
    }
    struct peer_request *request = request_take(peers);
    if (request == NULL) {
        guest_answer(guest, header, NATIVE_ST_OVERLOADED, 0, NULL, 0);
        return;
    }
    *request = (struct peer_request){
        .peers = peers, .guest = guest, .header = *header, .deadline_ns = UINT64_MAX};
    if (header->timeout_ms != 0)
        request->deadline_ns = io_now_ns() + header->timeout_ms * NS_PER_MS;
    list_push_back(&guest->requests, &request->link);
    guest->under_way++;
    peers->requests_alive++;
    peers->stats.requests_under_way++;
    handler->fn(handler->arg, request, &guest->from, header, body);
}

/* ---- the handshake ---- */

static void
guest_refuse(struct peer_guest *guest, const struct native_header *header,
             enum native_status native_status, const char *why)
{
    peers_refused(guest->peers, guest->conn, why);
    guest_answer(guest, header, native_status, 0, NULL, 0);
    guest_end(guest, IO_CLOSE_FLUSH);
}

static void
guest_greets(struct peer_guest *guest, const struct native_header *header, struct bytes body)
{
    struct peers *peers = guest->peers;
    struct peer_hello theirs, ours;
    size_t size;
    if (header->opcode != PEER_HELLO || !ok(peer_hello_decode(body, &theirs, &size)) ||
        size != body.size) {
        guest_fault(guest, "does not speak as a node");
        return;
    }
    guest->hello_size = (u32)size;
    memcpy(guest->hello, body.data, size);
    guest->answer_size =
        peers_hello(peers, io_shard_index(), peers->options.requests_max, guest->answer);
    struct bytes answer = BYTES(guest->answer, guest->answer_size);
    bool reads = ok(peer_hello_decode(answer, &ours, &size));
    CHECK(reads);
    if (peer_version_choose(&ours, &theirs) == 0) {
        guest_refuse(guest, header, NATIVE_ST_UNSUPPORTED, "speaks no version that we speak");
        return;
    }
    if (theirs.shard != io_shard_index()) {
        guest_refuse(guest, header, NATIVE_ST_CONFLICT, "means another shard");
        return;
    }
    u8 proof[HMAC_BYTES];
    peer_proof(peers_secret(peers), PEER_LISTENS, body, answer, proof);
    struct bytes parts[] = {answer, BYTES(proof, sizeof(proof))};
    guest_state_set(guest, GUEST_GREETED);
    guest_answer(guest, header, NATIVE_ST_OK, 0, parts, ARRAY_COUNT(parts));
}

static void
guest_proves(struct peer_guest *guest, const struct native_header *header, struct bytes body)
{
    struct peers *peers = guest->peers;
    if (header->opcode == PEER_PROOF && body.size == 0) {
        guest_fault(guest, "does not take our proof of the secret");
        return;
    }
    if (header->opcode != PEER_PROOF || body.size != HMAC_BYTES) {
        guest_fault(guest, "does not speak as a node");
        return;
    }
    u8 proof[HMAC_BYTES];
    struct bytes hello = BYTES(guest->hello, guest->hello_size);
    peer_proof(peers_secret(peers), PEER_CONNECTS, hello, BYTES(guest->answer, guest->answer_size),
               proof);
    if (!hmac_equal(proof, body.data)) {
        guest_refuse(guest, header, NATIVE_ST_UNAUTHENTICATED, "does not know the secret");
        return;
    }
    struct peer_hello theirs;
    size_t size;
    const char *why = "is of another cluster";
    bool reads = ok(peer_hello_decode(hello, &theirs, &size));
    CHECK(reads);
    /* A node without a cluster has nothing to say to the members of one. */
    bool other = theirs.cluster_id != 0 && theirs.cluster_id != peers->options.self.cluster_id;
    status st = other ? ST_DENIED : peers_admits(peers, &theirs, &guest->from, &why);
    if (!ok(st)) {
        guest_refuse(guest, header,
                     status_is(st, ST_NOT_FOUND) ? NATIVE_ST_NOT_FOUND : NATIVE_ST_CONFLICT, why);
        return;
    }
    guest->ticks = 0;
    guest_state_set(guest, GUEST_OPEN);
    guest_answer(guest, header, NATIVE_ST_OK, 0, NULL, 0);
}

/* ---- receiving ---- */

static void
guest_frame(struct peer_guest *guest, const struct native_header *header, struct bytes body)
{
    if ((header->flags & NATIVE_FLAG_REPLY) != 0) {
        guest_fault(guest, "answers where it should ask");
        return;
    }
    switch (guest->state) {
    case GUEST_STRANGER:
        guest_greets(guest, header, body);
        break;
    case GUEST_GREETED:
        guest_proves(guest, header, body);
        break;
    case GUEST_OPEN:
        guest_request(guest, header, body);
        break;
    case GUEST_CLOSING:
        break;
    }
}

static size_t
guest_received(struct io_conn *conn, struct bytes data)
{
    struct peer_guest *guest = io_conn_user(conn);
    size_t at = 0;
    if (guest->state == GUEST_OPEN) guest->ticks = 0;
    while (guest->state != GUEST_CLOSING && at < data.size) {
        if (at > 0 && fiber_should_yield()) {
            io_conn_again(conn);
            break;
        }
        struct bytes rest = BYTES(data.data + at, data.size - at);
        /* Nobody who has not been let in yet sends ahead of the answers. */
        size_t span = guest->state == GUEST_OPEN ? CONN_INPUT_MAX_BYTES : PEER_HANDSHAKE_SPAN;
        struct native_header header;
        struct bytes body;
        size_t consumed = 0, wanted = 0;
        status st = native_frame_decode(rest, &header, &body, &consumed, &wanted);
        bool incomplete = status_is(st, ST_INCOMPLETE);
        if ((incomplete && wanted > span) || (guest->state != GUEST_OPEN && rest.size > span)) {
            guest_fault(guest, "sends more than it may");
            break;
        }
        if (incomplete) {
            io_conn_want(conn, wanted);
            break;
        }
        if (!ok(st)) {
            guest_fault(guest, "sends a frame that does not read");
            break;
        }
        at += consumed;
        guest->peers->stats.received_bytes += consumed;
        guest_frame(guest, &header, body);
        if (guest->state != GUEST_CLOSING && io_conn_output_full(conn)) {
            guest->paused = true;
            io_conn_pause(conn);
            break;
        }
    }
    return at;
}

const struct io_conn_events peer_guest_events = {
    .opened = guest_opened,
    .received = guest_received,
    .drained = guest_drained,
    .closed = guest_closed,
    .first = true,
};
