/* SPDX-License-Identifier: MIT
 *
 * peer.c -- the transport of a shard as a whole: opening and closing it, who has which number, the
 * tick of keepalive, and what calling and serving share. See peer_internal.h.
 */
#include "cluster/peer_internal.h"

#include "base/log.h"
#include "io/fiber.h"
#include "io/io.h"

/* ---- frames ---- */

size_t
peer_parts_bytes(const struct bytes *parts, u32 part_count)
{
    size_t bytes = 0;
    for (u32 i = 0; i < part_count; i++)
        bytes += parts[i].size;
    return bytes;
}

bool
peer_frame_append(struct buf *out, const struct native_header *header, const struct bytes *parts,
                  u32 part_count)
{
    size_t start;
    if (!buf_reserve(out, NATIVE_HEADER_BYTES + peer_parts_bytes(parts, part_count))) return false;
    if (!native_frame_begin(out, header, &start)) return false;
    for (u32 i = 0; i < part_count; i++) {
        if (parts[i].size == 0) continue;
        if (!buf_append(out, parts[i].data, parts[i].size)) return false;
    }
    native_frame_end(out, start);
    return true;
}

bool
peer_frame_send(struct peers *peers, struct io_conn *conn, const struct native_header *header,
                const struct bytes *parts, u32 part_count)
{
    size_t size = NATIVE_HEADER_BYTES + peer_parts_bytes(parts, part_count);
    u8 *room = io_conn_reserve(conn, size);
    if (room == NULL) return false;
    /* Encodes in place: it has exactly the room that it needs, so it never grows. */
    struct buf frame = {.data = room, .capacity = size};
    bool fits = peer_frame_append(&frame, header, parts, part_count);
    CHECK(fits && frame.data == room && frame.size == size);
    io_conn_commit(conn, size);
    peers->stats.sent_bytes += size;
    return true;
}

/* ---- who is who ---- */

struct bytes
peers_secret(const struct peers *peers)
{
    return BYTES(peers->options.secret, PEER_SECRET_BYTES);
}

u32
peers_hello(struct peers *peers, u32 shard, u32 requests_max, u8 out[PEER_HELLO_BYTES_MAX])
{
    const struct peer_identity *self = &peers->options.self;
    struct peer_hello hello = {
        .version_min = PEER_VERSION,
        .version_max = PEER_VERSION,
        .shard = (u16)shard,
        .requests_max = requests_max,
        .member = self->member,
        .cluster_id = self->cluster_id,
        .incarnation = self->incarnation,
    };
    static_assert(sizeof(hello.node_id) == sizeof(self->node_id), "one length of ids");
    memcpy(hello.node_id, self->node_id, sizeof(hello.node_id));
    io_entropy(hello.nonce, sizeof(hello.nonce));
    return (u32)peer_hello_encode(&hello, out);
}

status
peers_admits(struct peers *peers, const struct peer_hello *hello, struct peer_identity *out,
             const char **why)
{
    u64 own = peers->options.self.cluster_id;
    if (own != 0 && hello->cluster_id != 0 && hello->cluster_id != own) {
        *why = "is of another cluster";
        return ST_DENIED;
    }
    struct peer_identity identity = {.cluster_id = hello->cluster_id,
                                     .member = hello->member,
                                     .incarnation = hello->incarnation};
    memcpy(identity.node_id, hello->node_id, sizeof(identity.node_id));
    status st =
        peers->options.admit == NULL ? ST_OK : peers->options.admit(peers->options.arg, &identity);
    if (!ok(st)) {
        *why = status_is(st, ST_NOT_FOUND) ? "was taken out of the cluster"
                                           : "names a number or incarnation that is not its own";
        return status_is(st, ST_NOT_FOUND) ? ST_NOT_FOUND : ST_DENIED;
    }
    *out = identity;
    return ST_OK;
}

static void
refused(struct peers *peers, const struct io_conn *conn, const char *why, u64 *log_at_ns,
        u64 pause_ns)
{
    peers->stats.refused++;
    if (io_now_ns() < *log_at_ns) return;
    *log_at_ns = io_now_ns() + pause_ns;
    char name[96];
    io_conn_peer_name(conn, name, sizeof(name));
    log_warning("peer", "refused a node: it %s address=%s refused=%llu", why, name,
                (unsigned long long)peers->stats.refused);
}

void
peers_refused(struct peers *peers, const struct io_conn *conn, const char *why)
{
    refused(peers, conn, why, &peers->log_at_ns, PEER_LOG_NS);
}

void
peers_refused_new(struct peers *peers, const struct io_conn *conn)
{
    refused(peers, conn, "has no cluster yet", &peers->log_new_at_ns, PEER_LOG_NEW_NS);
}

bool
peers_taken_out(const struct peers *peers)
{
    return peers->taken_out;
}

void
peers_identity_set(struct peers *peers, const struct peer_identity *self)
{
    peers->options.self = *self;
    peers->identity_turn++;
}

/* ---- members ---- */

/* The place of the number in the table, or where it would be. */
static u32
member_place(const struct peers *peers, u32 number)
{
    u32 low = 0, high = peers->member_count;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (peers->members[middle]->number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct peer_member *
peers_member_find(const struct peers *peers, u32 number)
{
    u32 place = member_place(peers, number);
    if (place == peers->member_count || peers->members[place]->number != number) return NULL;
    return peers->members[place];
}

static size_t
member_bytes(const struct peer_member *member)
{
    return sizeof(*member) + member->address.shard_count * sizeof(struct peer_link *);
}

/* Takes the links out of the table first: dropping them calls nobody, but frees some. */
static void
member_links_drop(struct peer_member *member)
{
    for (u32 i = 0; i < member->address.shard_count; i++) {
        struct peer_link *link = member->links[i];
        member->links[i] = NULL;
        if (link != NULL) peer_link_drop(link, ST_CLOSED);
    }
}

static bool
same_address(const struct peer_address *a, const struct peer_address *b)
{
    return a->port == b->port && a->shard_count == b->shard_count && strcmp(a->host, b->host) == 0;
}

bool
peers_member_set(struct peers *peers, u32 number, const struct peer_address *address)
{
    CHECK(number != 0 && address->shard_count >= 1 && address->shard_count <= LIMIT_SHARDS);
    u32 place = member_place(peers, number);
    struct peer_member *old = NULL;
    if (place < peers->member_count && peers->members[place]->number == number)
        old = peers->members[place];
    if (old != NULL && same_address(&old->address, address)) return true;

    size_t bytes = sizeof(*old) + address->shard_count * sizeof(struct peer_link *);
    struct peer_member *member = mem_alloc_zero(peers->options.budget, bytes);
    if (member == NULL) return false;
    member->number = number;
    member->address = *address;
    member->address.host[PEER_HOST_BYTES - 1] = '\0';
    if (old != NULL) {
        member_links_drop(old);
        mem_free(peers->options.budget, old, member_bytes(old));
        peers->members[place] = member;
        return true;
    }
    if (peers->member_count == peers->member_capacity) {
        u32 capacity = MAX(2 * peers->member_capacity, 8u);
        size_t item = sizeof(struct peer_member *);
        void *grown = peers->member_count >= PEER_MEMBERS_MAX
                          ? NULL
                          : mem_realloc(peers->options.budget, peers->members,
                                        peers->member_capacity * item, capacity * item);
        if (grown == NULL) {
            mem_free(peers->options.budget, member, bytes);
            return false;
        }
        peers->members = grown;
        peers->member_capacity = capacity;
    }
    memmove(peers->members + place + 1, peers->members + place,
            (peers->member_count - place) * sizeof(struct peer_member *));
    peers->members[place] = member;
    peers->member_count++;
    return true;
}

void
peers_member_remove(struct peers *peers, u32 number)
{
    u32 place = member_place(peers, number);
    if (place == peers->member_count || peers->members[place]->number != number) return;
    struct peer_member *member = peers->members[place];
    peers->member_count--;
    memmove(peers->members + place, peers->members + place + 1,
            (peers->member_count - place) * sizeof(struct peer_member *));
    member_links_drop(member);
    mem_free(peers->options.budget, member, member_bytes(member));
    /* It is not asked any more, nor may it ask. */
    list_for_each_safe (pos, &peers->guests) {
        struct peer_guest *guest = list_entry(pos, struct peer_guest, link);
        if (guest->state == GUEST_OPEN && guest->from.member == number) peer_guest_close(guest);
    }
}

void
peers_member_doubt(struct peers *peers, u32 number)
{
    struct peer_member *member = peers_member_find(peers, number);
    if (member == NULL) return;
    for (u32 i = 0; i < member->address.shard_count; i++)
        if (member->links[i] != NULL) peer_link_doubt(member->links[i]);
}

const struct peer_address *
peers_member_address(const struct peers *peers, u32 number)
{
    const struct peer_member *member = peers_member_find(peers, number);
    return member == NULL ? NULL : &member->address;
}

/* ---- keepalive ---- */

void
peers_tick_arm(struct peers *peers)
{
    if (!peers->tick_timer.armed) io_timer_arm(&peers->tick_timer, io_now_ns() + PEER_TICK_NS);
}

static void
peers_tick(struct io_timer *timer)
{
    struct peers *peers = CONTAINER_OF(timer, struct peers, tick_timer);
    list_for_each_safe (pos, &peers->links) {
        peer_link_tick(list_entry(pos, struct peer_link, link));
    }
    list_for_each_safe (pos, &peers->guests) {
        peer_guest_tick(list_entry(pos, struct peer_guest, link));
    }
    if (!list_empty(&peers->links) || !list_empty(&peers->guests)) peers_tick_arm(peers);
}

/* ---- life ---- */

static const struct peer_call *
call_of(const struct heap_node *node)
{
    size_t offset = offsetof(struct peer_call, timer);
    return (const struct peer_call *)(const void *)((const char *)node - offset);
}

static bool
deadline_before(const struct heap_node *a, const struct heap_node *b)
{
    const struct peer_call *first = call_of(a), *second = call_of(b);
    if (first->deadline_ns != second->deadline_ns) return first->deadline_ns < second->deadline_ns;
    return first->order < second->order;
}

MAY_YIELD status
peers_open(const struct peers_options *options, struct peers **out)
{
    CHECK(options->listen.port != 0 || io_shard_count() == 1);
    struct peers *peers = mem_alloc_zero(options->budget, sizeof(*peers));
    if (peers == NULL) return ST_NO_MEMORY;
    peers->options = *options;
    if (peers->options.requests_max == 0) peers->options.requests_max = PEER_REQUESTS_MAX_DEFAULT;
    list_init(&peers->links);
    list_init(&peers->guests);
    list_init(&peers->ended);
    list_init(&peers->running);
    list_init(&peers->spare_requests);
    heap_init(&peers->deadlines, deadline_before);
    io_timer_init(&peers->deadline_timer, peer_calls_expire);
    io_timer_init(&peers->tick_timer, peers_tick);
    io_task_init(&peers->ended_task, peer_calls_ended_run);
    fiber_queue_init(&peers->gone);
    fiber_queue_init(&peers->room);
    u16 port = options->listen.port;
    if (port != 0) port = (u16)(port + io_shard_index());
    status st = io_listen(options->listen.host, port, &peer_guest_events, peers, &peers->listener);
    if (!ok(st)) {
        mem_free(options->budget, peers, sizeof(*peers));
        return st;
    }
    *out = peers;
    return ST_OK;
}

u16
peers_port(const struct peers *peers)
{
    return (u16)(io_listener_port(peers->listener) - io_shard_index());
}

void
peers_ended(struct peers *peers)
{
    if (peers->closing) fiber_queue_wake_all(&peers->gone);
}

/* The memory itself goes with the last request that was not answered yet. */
void
peers_check_free(struct peers *peers)
{
    if (!peers->closed || peers->requests_alive > 0) return;
    struct budget *budget = peers->options.budget;
    struct list *pos;
    while ((pos = list_pop_front(&peers->spare_requests)) != NULL)
        mem_free(budget, list_entry(pos, struct peer_request, link), sizeof(struct peer_request));
    hmac_forget(peers->options.secret, PEER_SECRET_BYTES);
    mem_free(budget, peers, sizeof(*peers));
}

MAY_YIELD void
peers_close(struct peers *peers)
{
    peers->closing = true;
    while (peers->member_count > 0)
        peers_member_remove(peers, peers->members[peers->member_count - 1]->number);
    list_for_each_safe (pos, &peers->links) {
        peer_link_drop(list_entry(pos, struct peer_link, link), ST_CLOSED);
    }
    list_for_each_safe (pos, &peers->guests) {
        peer_guest_close(list_entry(pos, struct peer_guest, link));
    }
    io_listener_close(peers->listener);
    while (!list_empty(&peers->links) || !list_empty(&peers->guests) ||
           !list_empty(&peers->ended) || !list_empty(&peers->running))
        (void)!ok(fiber_queue_wait(&peers->gone, FIBER_FOREVER));
    CHECK(heap_first(&peers->deadlines) == NULL && peers->connecting == 0);
    io_timer_cancel(&peers->deadline_timer);
    io_timer_cancel(&peers->tick_timer);
    io_task_cancel(&peers->ended_task);
    mem_free(peers->options.budget, peers->members,
             peers->member_capacity * sizeof(struct peer_member *));
    peers->closed = true;
    peers_check_free(peers);
}

void
peers_handler_set(struct peers *peers, u8 opcode, peer_handler fn, void *arg)
{
    CHECK(opcode >= PEER_OPCODE_MIN && opcode != PEER_HELLO && opcode != PEER_PROOF);
    peers->handlers[opcode] = (struct peer_handler_entry){.fn = fn, .arg = arg};
}

void
peers_stats_get(const struct peers *peers, struct peers_stats *out)
{
    *out = peers->stats;
}
