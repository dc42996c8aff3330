/* SPDX-License-Identifier: MIT
 *
 * route.c -- see route.h.
 *
 * The frames are in proto/peer_forward.h. WRONG_EPOCH, OVERLOADED, NO_MEMORY, CLOSING, UNSUPPORTED,
 * TIMED_OUT, UNAVAILABLE in an answer: nothing was done.
 *
 * Who may decide. A write that reads before it writes keeps its place: while its runner is there
 * for others, a second one would decide from what it read at the same time. So what came of a call
 * that did nothing says what is next:
 *
 *   the runner is not there for it:        the next replica. It does not seem to live; no
 *   it would say so to everybody           connection, or one that breaks (CLOSED, DENIED,
 *                                          NOT_FOUND); CLOSING: it stops, is drained, cannot store;
 *                                          UNSUPPORTED: it has just started; UNAVAILABLE: it does
 *                                          not reach W
 *   it is busy: it runs others' meanwhile  the same one, later: no room before it (the connection's
 *                                          output is full, or its requests are as many as may be);
 *                                          it answers OVERLOADED or NO_MEMORY; TIMED_OUT (it came
 *                                          late)
 *   one of us is behind                    later, whoever it is then: WRONG_EPOCH, NOT_FOUND (this
 *                                          shard has no address of it yet)
 *
 * Who waits for room stands in the shard's line (room_wait.h) with nothing but its request, which
 * has been given memory and a place already. It ends when it may not be begun any more, with
 * OVERLOADED.
 *
 * Until when. The frame's timeout counts from its arrival. A node that was stopped finds what
 * arrived meanwhile when it goes on, a link may hold something for seconds: who sent it has long
 * said that its outcome is unknown, others have written since, and a command done now would be
 * stamped as the newest. So a time of day goes along: until when it may be begun
 * (request.begin_ns). Clocks that are further apart than FORWARD_CLOCK_MS are refused elsewhere.
 */
#include "server/route.h"

#include "base/fault.h"
#include "proto/peer.h"
#include "server/flush_cluster.h"
#include "server/multi.h"
#include "server/native.h"
#include "server/number.h"
#include "server/session.h"

#define FORWARD_CLOCK_MS 250u
static_assert(SESSION_STOOD_NS + NATIVE_BEGIN_NS + 2 * FORWARD_CLOCK_MS * NS_PER_MS <
                  NATIVE_ELSEWHERE_MS * NS_PER_MS,
              "not begun once another node may have done it: see native.h");
#define AGAIN_NS_MIN (20 * NS_PER_MS)
#define AGAIN_NS_MAX (200 * NS_PER_MS)
/* How often it is asked whether the member that has it still answers. */
#define LOOK_NS (50 * NS_PER_MS)

struct route {
    struct peer_call call;
    struct io_timer timer;
    struct request *request;
    u64 token;
    u64 again_ns;
    struct room_wait room;
    u32 asked; /* the member that has it now; 0: it runs here, or nobody has it */
    u32 tried_count;
    u32 tried[LIMIT_PLACEMENT_REPLICAS];
    bool calling;
    bool forwarded; /* once at least */
    bool anywhere;  /* any replica may run it */
    bool busy;      /* who was asked last was, or had no room before it */
    bool too_few;   /* one of those that were tried reaches too few replicas */
    status outcome; /* what the timer ends it with; ok: try again */
    /* of a whole with parts */
    u32 at;       /* argument of the next part's key */
    u32 at_batch; /* of the first of those under way */
    u32 last, step;
    i64 sum;
    bool failed;
};

/* ---- what may run where ---- */

static bool
is_blind_set(const struct request *request)
{
    if (request->arg_count == 3) return true;
    if (request->arg_count != 5) return false;
    static const char *const words[] = {"ex", "px", "exat", "pxat"};
    for (u32 i = 0; i < ARRAY_COUNT(words); i++)
        if (text_is(request->args[3], words[i])) return true;
    return false;
}

static bool
is_blind_native(const struct request *request)
{
    struct native_header header;
    struct native_request native;
    struct bytes frame = request->args[0];
    struct bytes body = BYTES(frame.data + NATIVE_HEADER_BYTES, frame.size - NATIVE_HEADER_BYTES);
    status st = native_header_decode(frame, &header);
    if (ok(st)) st = native_request_decode(&header, body, &native, NULL);
    if (!ok(st)) return false;
    if (header.opcode == NATIVE_GET || header.opcode == NATIVE_TTL ||
        header.opcode == NATIVE_GET_SIBLINGS)
        return true;
    if (header.opcode != NATIVE_PUT && header.opcode != NATIVE_DELETE) return false;
    /* Outcomes of writes with an id are remembered where they ran: they go to one place. */
    return !native_id_given(&native.id) && native.op.condition == NATIVE_IF_ANY &&
           native.op.expiry != NATIVE_EXPIRY_KEEP;
}

/* Whether it reads nothing before it writes, so that any replica may run it. Where siblings are
 * kept writes go to one place as well while nothing fails: writers who have seen each other's
 * values then make none. */
static bool
runs_anywhere(const struct request *request)
{
    const struct command *command = request->command;
    if (request->writes && replicate_siblings(shard_self()->cluster->replicator, request->keyspace))
        return false;
    if (command->flags & COMMAND_NATIVE) return is_blind_native(request);
    if (command->place == PLACE_EXEC) return false;
    if (!(command->flags & COMMAND_WRITE)) return true;
    if (command->handler == cmd_set) return is_blind_set(request);
    return command->handler == cmd_setex || command->handler == cmd_psetex ||
           command->handler == cmd_mset;
}

/* ---- the end of one ---- */

void
route_free(struct request *request)
{
    struct route *route = request->route;
    if (route == NULL) return;
    CHECK(!route->calling && !route->timer.armed && !room_waits(&route->room));
    request->route = NULL;
    mem_free(&shard_self()->budget, route, sizeof(*route));
}

/* One runner decides at a time: see above. */
static bool
keeps_place(const struct route *route)
{
    return route->request->writes && !route->anywhere;
}

static struct route *
route_new(struct request *request)
{
    struct shard *shard = shard_self();
    struct route *route = mem_alloc_zero(&shard->budget, sizeof(*route));
    if (route == NULL) return NULL;
    route->request = request;
    room_wait_init(&route->room);
    route->again_ns = AGAIN_NS_MIN;
    request->route = route;
    if (request->deadline_ns == 0)
        request->deadline_ns = io_now_ns() + shard->config->cluster_timeout_ms * NS_PER_MS;
    if (request->begin_ns == 0 || request->begin_ns > request->deadline_ns)
        request->begin_ns = request->deadline_ns;
    return route;
}

/* The reply is not of a run, but ours. */
static void
end_with(struct request *request, status why)
{
    struct resp_writer w = {.out = &request->reply, .version = request->resp};
    request->reply.size = 0;
    request->inline_size = 0;
    request->failure = why;
    exec_failure_reply(request->command, request->args, &w, why);
    if (w.failed) {
        request->reply.size = 0;
        request->unknown = true; /* not even room for that */
    }
}

static void go(struct route *route);
static void look_after(struct route *route);

/* Why it ends when its time is over. */
static status
too_late(const struct route *route)
{
    return route->busy ? ST_OVERLOADED : ST_UNAVAILABLE;
}

static void
timer_fired(struct io_timer *timer)
{
    struct route *route = CONTAINER_OF(timer, struct route, timer);
    struct request *request = route->request;
    if (route->calling) {
        look_after(route);
        return;
    }
    if (room_waits(&route->room)) {
        MARK("server.route.no_room");
        room_leave(shard_self(), &route->room);
        route->outcome = ST_OVERLOADED;
    }
    if (ok(route->outcome)) {
        go(route);
        return;
    }
    end_with(request, route->outcome);
    request_finish(request);
}

/* Later, because who started it may not be called back from inside. */
static void
end_later(struct route *route, status why)
{
    route->outcome = why;
    io_timer_arm(&route->timer, 0);
}

static void
again_later(struct route *route)
{
    if (shard_self()->draining) {
        end_later(route, ST_CLOSED);
        return;
    }
    u64 at_ns = io_now_ns() + route->again_ns;
    route->again_ns = MIN(route->again_ns * 2, AGAIN_NS_MAX);
    route->tried_count = 0;
    route->outcome = ST_OK;
    if (at_ns >= route->request->begin_ns) {
        end_later(route, too_late(route));
        return;
    }
    io_timer_arm(&route->timer, at_ns);
}

/* ---- room before others ---- */

/* It keeps its place, and its runner takes no more now. */
static void
await_room(struct route *route, struct shard *shard, u32 member, u32 there)
{
    if (shard->draining) {
        end_later(route, ST_CLOSED);
        return;
    }
    MARK("server.route.room_awaited");
    route->busy = true;
    room_await(shard, &route->room, member, there);
    io_timer_arm(&route->timer, route->request->begin_ns);
}

static void
has_room(struct room_wait *wait)
{
    struct route *route = CONTAINER_OF(wait, struct route, room);
    io_timer_cancel(&route->timer);
    go(route);
}

/* ---- running here ---- */

/* Counted as long as it runs. false: this node is about to be drained; nothing was done. */
static bool
coordinates_begin(struct request *request)
{
    struct cluster_shard *cluster = shard_self()->cluster;
    if (cluster->closing) return false;
    cluster->coordinating++;
    request->coordinates = true;
    return true;
}

void
route_coordinates_end(struct request *request)
{
    if (!request->coordinates) return;
    struct cluster_shard *cluster = shard_self()->cluster;
    request->coordinates = false;
    CHECK(cluster->coordinating > 0);
    cluster->coordinating--;
}

/* ---- keyspaces ---- */

MAY_YIELD static void
keyspace_make_here(void *arg)
{
    const u32 *keyspace = arg;
    struct shard *shard = shard_self();
    if (shard->cluster == NULL) return;
    u64 deadline_ns = io_now_ns() + shard->config->cluster_timeout_ms * NS_PER_MS;
    (void)!ok(cluster_keyspace_need(shard->cluster, *keyspace, deadline_ns)); /* it is logged */
}

MAY_YIELD static void
keyspaces_make(void *arg)
{
    struct shard *shard = arg;
    for (u32 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        if ((shard->keyspaces_wanted >> keyspace & 1) == 0) continue;
        status st = io_shard_call(0, FIBER_FOREGROUND, keyspace_make_here, &keyspace);
        (void)!ok(st); /* whoever wants it asks again */
    }
    shard->keyspaces_wanted = 0;
    shard->keyspaces_made = false;
}

/* Nobody waits for it: requests look again. */
static void
keyspace_want(struct shard *shard, u32 keyspace)
{
    shard->keyspaces_wanted |= 1u << keyspace;
    if (shard->keyspaces_made) return;
    shard->keyspaces_made = true;
    status st = fiber_spawn(FIBER_FOREGROUND, "keyspaces", keyspaces_make, shard);
    if (!ok(st)) shard->keyspaces_made = false;
}

/* ---- choosing ---- */

static bool
was_tried(const struct route *route, u32 member)
{
    for (u32 i = 0; i < route->tried_count; i++)
        if (route->tried[i] == member) return true;
    return false;
}

static void
note_tried(struct route *route, u32 member)
{
    if (route->tried_count < ARRAY_COUNT(route->tried)) route->tried[route->tried_count++] = member;
}

/* Whether it must not begin here yet: this node has just started, and what was read by now would
 * wait until it may stamp, while another replica does the same. */
static bool
waits_to_stamp(const struct shard *shard, const struct topology *topology,
               const struct request *request, u64 token)
{
    const struct cluster *cluster = shard->server->cluster;
    if (LIKELY(cluster_may_stamp(cluster, shard_of_token(shard->server, token)))) return false;
    if (!request->writes || runs_anywhere(request)) return false;
    struct topology_row row;
    u32 count, self = cluster_member(cluster);
    topology_row(topology, request->keyspace, token_partition(token, topology->partition_count),
                 &row);
    const u32 *members = topology_row_read(&row, &count);
    for (u32 i = 0; i < count; i++)
        if (members[i] != self && cluster_alive(cluster, members[i])) return true;
    return false;
}

/* Where siblings are kept, who runs a write stores it before anybody gets it. */
static bool
stores_first(const struct shard *shard, u16 keyspace, bool writes)
{
    return writes && replicate_siblings(shard->cluster->replicator, keyspace);
}

/* How much others are to be preferred: not at all; it is drained; its store would refuse. */
static u32
unfitness(const struct cluster *cluster, u32 member, bool stores)
{
    if (stores && cluster_stuck(cluster, member)) return 2;
    return cluster_drained(cluster, member) ? 1 : 0;
}

/* 0: nobody is left. */
static u32
choose(const struct route *route, const struct shard *shard, const struct topology *topology,
       u32 partition)
{
    struct topology_row row;
    u32 count;
    topology_row(topology, route->request->keyspace, partition, &row);
    const u32 *members = topology_row_read(&row, &count);
    u32 self = cluster_member(shard->server->cluster);
    const struct cluster *cluster = shard->server->cluster;
    for (u32 i = 0; i < count && route->anywhere; i++)
        if (members[i] == self && !was_tried(route, self) && !cluster_drained(cluster, self))
            return self;
    bool stores = stores_first(shard, route->request->keyspace, route->request->writes);
    u32 best = 0, best_unfit = UINT32_MAX;
    for (u32 i = 0; i < count && best_unfit != 0; i++) {
        if (!cluster_alive(cluster, members[i]) || was_tried(route, members[i])) continue;
        u32 unfit = unfitness(cluster, members[i], stores);
        if (unfit >= best_unfit) continue;
        best = members[i];
        best_unfit = unfit;
    }
    return best;
}

/* ---- sending ---- */

static bool
encode(struct buf *out, const struct request *request)
{
    bool native = (request->command->flags & COMMAND_NATIVE) != 0;
    enum command_place place = request->command->place;
    u64 now = io_now_ns();
    u64 left_ms = (request->begin_ns - MIN(now, request->begin_ns)) / NS_PER_MS;
    struct peer_forward forward = {
        .resp = native ? 0 : request->resp,
        .level = request->level,
        .age_ms = (u32)MIN((now - MIN(now, request->connected_ns)) / NS_PER_MS, UINT32_MAX),
        .until_ms = cluster_wall_ms(shard_self()->server->cluster) + left_ms,
        .moved = request->moved,
        .arg_count = request->arg_count,
    };
    if (place == PLACE_EXEC || place == PLACE_WATCH)
        return multi_encode(out, &forward, request->extra, place == PLACE_WATCH);
    if (request->blind) forward.kind = PEER_FORWARD_FLUSH;
    if (!peer_forward_begin(out, &forward)) return false;
    for (u32 i = 0; i < request->arg_count; i++)
        if (!peer_forward_arg(out, request->args[i])) return false;
    return true;
}

/* Of what may be sent again without harm. */
static bool
can_repeat(const struct request *request)
{
    return !request->writes;
}

static void
take_reply(struct request *request, struct bytes body)
{
    if (request->command->place == PLACE_WATCH && body.size != 0 && body.data[0] != '-') {
        if (!ok(multi_watched_take(request->extra, body))) {
            end_with(request, ST_UNSUPPORTED); /* another version of the program */
            return;
        }
        body = BYTES_LITERAL("+OK\r\n");
    }
    if (!request_reply_set(request, body))
        request->unknown = true;
    else if (!request_reply_settle(request, shard_self()))
        MARK("server.route.unsettled");
}

static bool
did_nothing(const struct peer_call *call, status st, const struct native_header *header)
{
    if (!ok(st)) return !call->maybe_sent;
    return native_status_retryable(header->status) || header->status == NATIVE_ST_UNSUPPORTED ||
           header->status == NATIVE_ST_TIMED_OUT;
}

/* Of what has done nothing: who was asked lives, and runs what others ask for. */
static bool
is_busy(status st, const struct native_header *header)
{
    if (!ok(st)) return status_is(st, ST_OVERLOADED);
    return header->status == NATIVE_ST_OVERLOADED || header->status == NATIVE_ST_NO_MEMORY ||
           header->status == NATIVE_ST_TIMED_OUT;
}

static void
called(struct peer_call *call, status st, const struct native_header *header, struct bytes body)
{
    struct route *route = CONTAINER_OF(call, struct route, call);
    struct request *request = route->request;
    route->calling = false;
    io_timer_cancel(&route->timer);
    if (!ok(st)) cluster_waits_for(shard_self()->server->cluster, route->asked);
    if (ok(st) && header->status == NATIVE_ST_OK) {
        take_reply(request, body);
        request_finish(request);
        return;
    }
    if (ok(st) && header->status == NATIVE_ST_INVALID) {
        end_with(request, ST_UNSUPPORTED); /* another version of the program */
        request_finish(request);
        return;
    }
    if (!did_nothing(call, st, header) && !can_repeat(request)) {
        end_with(request, ST_UNKNOWN_OUTCOME);
        request_finish(request);
        return;
    }
    route->busy = is_busy(st, header);
    if (io_now_ns() >= request->begin_ns) {
        end_with(request, too_late(route));
        request_finish(request);
        return;
    }
    bool stays = route->busy && keeps_place(route);
    bool overloaded = ok(st) && (header->status == NATIVE_ST_OVERLOADED || stays);
    if (overloaded && !retry_take(&shard_self()->cluster->retries)) {
        MARK("server.route.not_repeated");
        end_with(request, ST_OVERLOADED); /* its own outcome: nothing was done */
        request_finish(request);
        return;
    }
    if (stays) {
        MARK("server.route.runner_is_busy");
        again_later(route);
        return;
    }
    bool no_address = status_is(st, ST_NOT_FOUND) && keeps_place(route);
    if (no_address || (ok(st) && header->status == NATIVE_ST_WRONG_EPOCH)) { /* one is behind */
        MARK("server.route.wrong_epoch");
        again_later(route);
        return;
    }
    if (ok(st) && header->status == NATIVE_ST_UNAVAILABLE) route->too_few = true;
    note_tried(route, route->asked);
    go(route);
}

static void
forward(struct route *route, struct shard *shard, const struct topology *topology, u32 member,
        u32 partition)
{
    struct request *request = route->request;
    const struct topology_member *to = topology_member(topology, member);
    u32 there = 0;
    if (to != NULL) there = partition_shard(partition, to->shard_count, topology->partition_count);
    if (to != NULL && keeps_place(route) && room_lacks(shard, &route->room, member, there)) {
        await_room(route, shard, member, there);
        return;
    }
    route->room.has_turn = false;
    struct buf body;
    buf_init(&body, &shard->budget);
    bool encoded = to != NULL && encode(&body, request);
    if (!encoded || body.size > PEER_BODY_BYTES_MAX) {
        buf_deinit(&body);
        end_later(route, to == NULL ? ST_UNAVAILABLE : encoded ? ST_TOO_LARGE : ST_NO_MEMORY);
        return;
    }
    struct native_header header = {
        .opcode = PEER_FORWARD, .epoch = topology->epoch, .keyspace = request->keyspace};
    struct bytes part = buf_bytes(&body);
    route->asked = member;
    route->calling = true;
    shard->stats->cluster_forwards++;
    if (!route->forwarded) retry_earn(&shard->cluster->retries);
    route->forwarded = true;
    request->owner = shard->index;
    peer_call_init(&route->call, called);
    peer_call_start(shard->cluster->peers, &route->call, member, there, &header, &part, 1,
                    request->deadline_ns);
    buf_deinit(&body);
    io_timer_arm(&route->timer, io_now_ns() + LOOK_NS);
}

/* What is under way to somebody who does not answer any more: a read goes to another one, and so
 * does a write that was not sent yet. Of one that was nobody will learn more by waiting. */
static void
look_after(struct route *route)
{
    struct shard *shard = shard_self();
    struct request *request = route->request;
    if (cluster_alive(shard->server->cluster, route->asked)) {
        cluster_waits_for(shard->server->cluster, route->asked);
        io_timer_arm(&route->timer, io_now_ns() + LOOK_NS);
        return;
    }
    bool done_nothing = !route->call.maybe_sent;
    peer_call_cancel(shard->cluster->peers, &route->call);
    route->calling = false;
    if (!done_nothing && !can_repeat(request)) {
        MARK("server.route.write_unknown");
        end_with(request, ST_UNKNOWN_OUTCOME);
        request_finish(request);
        return;
    }
    MARK("server.route.read_elsewhere");
    route->busy = false;
    note_tried(route, route->asked);
    go(route);
}

static void
go(struct route *route)
{
    struct request *request = route->request;
    struct shard *shard = shard_self();
    if (io_now_ns() >= request->begin_ns) { /* whoever waited may have been stopped meanwhile */
        MARK("server.route.too_late");
        end_later(route, too_late(route));
        return;
    }
    const struct topology *topology = cluster_topology(shard->cluster);
    if (topology == NULL) {
        if (atomic_load(&shard->server->cluster->proving))
            end_later(route, ST_UNAVAILABLE);
        else
            again_later(route);
        return;
    }
    if (UNLIKELY(!topology->keyspaces[request->keyspace].used)) {
        MARK("server.route.keyspace_made");
        keyspace_want(shard, request->keyspace);
        again_later(route);
        return;
    }
    u32 partition = token_partition(route->token, topology->partition_count);
    route->anywhere = runs_anywhere(request); /* not before: it depends on the keyspace */
    u32 member = choose(route, shard, topology, partition);
    if (member == 0) {
        if (route->tried_count != 0 && !route->too_few)
            again_later(route);
        else
            end_later(route, ST_UNAVAILABLE);
        return;
    }
    /* Who was asked first has refused: from now on outcomes are kept in another place, too. */
    if (route->tried_count != 0 && request->writes) cluster_runners_change(shard->server->cluster);
    request->moved = request->first_ns != 0 &&
                     cluster_runners_changed_since(shard->server->cluster, request->first_ns);
    if (member != cluster_member(shard->server->cluster)) {
        forward(route, shard, topology, member, partition);
        return;
    }
    route->asked = 0;
    if (waits_to_stamp(shard, topology, request, route->token) || !coordinates_begin(request)) {
        again_later(route);
        return;
    }
    request->owner = shard_of_token(shard->server, route->token);
    request_start(request);
}

bool
route_start(struct request *request, u64 token)
{
    struct shard *shard = shard_self();
    struct route *route = route_new(request);
    if (route == NULL) return false;
    route->token = token;
    io_timer_init(&route->timer, timer_fired);
    buf_init(&request->reply, request_budget(request, shard));
    go(route);
    return true;
}

bool
route_finished(struct request *request)
{
    struct route *route = request->route;
    route_coordinates_end(request);
    if (route == NULL || route->step != 0) return true;
    /* It ran here and found that this node does not hold the partition, or is behind. */
    if (route->asked != 0 || !status_is(request->failure, ST_WOULD_WAIT)) return true;
    MARK("server.route.not_held_here");
    if (request->owner == request->home) buf_deinit(&request->reply); /* else it came inside */
    request->owner = request->home;
    request->failure = ST_OK;
    request->inline_size = 0;
    request->seq = 0;
    buf_init(&request->reply, request_budget(request, shard_self()));
    again_later(route); /* or, when it is too late, to say so */
    return false;
}

/* ---- parts ---- */

/* Starts the next ones; false: no memory for even one. */
static bool
start_batch(struct request *request)
{
    struct route *route = request->route;
    struct shard *shard = shard_self();
    u32 count = 0;
    route->at_batch = route->at;
    while (count < request->part_count && route->at <= route->last) {
        struct request *part = request_new_part(request, shard->index, 1 + route->step, 1);
        if (part == NULL) break;
        part->parent = request;
        part->deadline_ns = request->deadline_ns;
        part->level = request->level;
        part->writes = request->writes;
        part->args[0] = request->args[0];
        memcpy(&part->args[1], &request->args[route->at], route->step * sizeof(struct bytes));
        request->parts[count] = part;
        if (!route_start(part, hash_token(part->args[1]))) {
            request_free(part);
            request->parts[count] = NULL;
            break;
        }
        count++;
        request->parts_left++;
        route->at += route->step;
    }
    return count != 0;
}

bool
route_start_parts(struct request *request)
{
    struct shard *shard = shard_self();
    struct route *route = route_new(request);
    if (route == NULL) return false;
    io_timer_init(&route->timer, timer_fired);
    command_key_range(request->command, request->arg_count, &route->at, &route->last, &route->step);
    u32 keys = (route->last - route->at) / route->step + 1;
    request->part_count = MIN(keys, ROUTE_PARTS);
    request->parts = mem_alloc_zero(&shard->budget, request->part_count * sizeof(*request->parts));
    if (request->parts == NULL) {
        request->part_count = 0;
        route_free(request);
        return false;
    }
    buf_init(&request->reply, request_budget(request, shard));
    struct resp_writer w = {.out = &request->reply, .version = request->resp};
    if (request->command->place == PLACE_SPLIT_ARRAY) resp_array(&w, keys);
    if (!w.failed && start_batch(request)) return true;
    buf_deinit(&request->reply);
    route_free(request);
    return false;
}

/* Adds the part's reply to the whole's; false: no memory. */
static bool
take_part(struct request *request, const struct request *part)
{
    struct route *route = request->route;
    struct bytes reply = request_reply(part);
    struct resp_reply head;
    size_t consumed;
    status st = resp_read(reply, &head, &consumed);
    if (!ok(st)) return false;
    if (request->command->place == PLACE_SPLIT_ARRAY)
        return head.kind == RESP_REPLY_ARRAY &&
               buf_append(&request->reply, reply.data + consumed, reply.size - consumed);
    if (head.kind == RESP_REPLY_INTEGER) route->sum += head.integer;
    return true;
}

/* A part of a later batch was not even started. */
static void
whole_failed(struct request *request, status why)
{
    request->route->failed = true;
    end_with(request, why);
}

bool
route_parts_done(struct request *request)
{
    struct route *route = request->route;
    for (u32 i = 0; i < request->part_count && !route->failed; i++) {
        const struct request *part = request->parts[i];
        if (part == NULL) continue;
        struct bytes reply = request_reply(part);
        if (part->unknown) {
            request->unknown = true;
            route->failed = true;
        } else if (reply.size == 0 || reply.data[0] == '-') {
            request->reply.size = 0;
            request->failure = part->failure;
            route->failed = true;
            if (!buf_append(&request->reply, reply.data, reply.size)) request->unknown = true;
        } else if (!take_part(request, part)) {
            whole_failed(request, ST_NO_MEMORY);
        }
    }
    request_parts_free(request->parts, request->part_count);
    if (!route->failed && route->at <= route->last) {
        if (start_batch(request)) return false;
        whole_failed(request, ST_NO_MEMORY);
    }
    if (route->failed) return true;
    struct resp_writer w = {.out = &request->reply, .version = request->resp};
    if (request->command->place == PLACE_SPLIT_SUM) resp_integer(&w, route->sum);
    if (request->command->place == PLACE_SPLIT_OK) resp_ok(&w);
    if (w.failed) request->unknown = true;
    return true;
}

/* ---- those that came from a peer ---- */

static void
refuse(struct shard *shard, struct peer_request *peer, enum native_status why)
{
    const struct topology *topology = cluster_topology(shard->cluster);
    peer_reply(peer, why, topology == NULL ? 0 : topology->epoch, NULL, 0);
}

/* The command that the arguments say, with its keys; NULL: not one that is forwarded. */
static const struct command *
command_of(const struct bytes *args, u32 arg_count, bool native, u64 *token_out, u32 *keys_out)
{
    const struct command *command;
    if (native) {
        struct native_header header;
        struct native_request request;
        struct bytes body;
        size_t consumed, wanted;
        if (arg_count != 1) return NULL;
        status st = native_frame_decode(args[0], &header, &body, &consumed, &wanted);
        if (!ok(st) || consumed != args[0].size) return NULL;
        st = native_request_decode(&header, body, &request, NULL);
        if (!ok(st) || header.keyspace >= LIMIT_KEYSPACES_CLIENT) return NULL;
        if (!native_token(&request, token_out, keys_out)) return NULL;
        command = command_native(header.opcode);
        *keys_out = MAX(*keys_out, request_keys(command, 1));
        return command;
    }
    command = command_find(args[0]);
    if (command != NULL && command->place == PLACE_CONTAINER && arg_count > 1)
        command = command_find_sub(command, args[1]);
    if (command == NULL || command->place > PLACE_SPLIT_ARRAY ||
        !command_arity_fits(command, arg_count))
        return NULL;
    u32 first, last, step;
    command_key_range(command, arg_count, &first, &last, &step);
    if (last < first || (step > 1 && (arg_count - first) % step != 0)) return NULL;
    for (u32 i = first; i <= last; i += step) {
        if (args[i].size == 0 || args[i].size > LIMIT_KEY_BYTES) return NULL;
        u64 token = hash_token(args[i]);
        if (i == first) *token_out = token;
        if (token_slot(token) != token_slot(*token_out)) return NULL;
    }
    *keys_out = request_keys(command, arg_count);
    return command;
}

/* Whether somebody else is to run it: we are drained, or cannot store it, and another replica
 * lives. */
static bool
goes_elsewhere(const struct shard *shard, const struct topology *topology,
               const struct command *command, u16 keyspace, u32 partition)
{
    const struct cluster *cluster = shard->server->cluster;
    u32 self = cluster_member(cluster), count;
    bool writes = (command->flags & COMMAND_WRITE) != 0 || command->place == PLACE_EXEC;
    bool stores = stores_first(shard, keyspace, writes);
    u32 unfit = unfitness(cluster, self, stores);
    if (LIKELY(unfit == 0)) return false;
    struct topology_row row;
    topology_row(topology, keyspace, partition, &row);
    const u32 *members = topology_row_read(&row, &count);
    for (u32 i = 0; i < count; i++)
        if (cluster_alive(cluster, members[i]) && unfitness(cluster, members[i], stores) < unfit)
            return true;
    return false;
}

/* Spans into the body, in the shard's scratch. NULL: no memory. */
static const struct bytes *
spread_args(struct shard *shard, const struct peer_forward *forward)
{
    struct buf *args = &shard->args;
    args->size = 0;
    if (!buf_reserve(args, forward->arg_count * sizeof(struct bytes))) return NULL;
    struct bytes *spans = (struct bytes *)(void *)args->data;
    peer_forward_args(forward, spans);
    return spans;
}

/* What FLUSH sends. */
static const struct command *
command_of_flush(const struct shard *shard, const struct peer_forward *forward,
                 const struct bytes *args, u64 *token_out, u32 *keys_out)
{
    u32 partitions = shard->server->layout.partition_count, count = forward->arg_count - 1;
    if (count == 0 || count > FLUSH_KEYS_MAX || !text_is(args[0], "unlink")) return NULL;
    for (u32 i = 1; i <= count; i++) {
        if (args[i].size == 0 || args[i].size > LIMIT_KEY_BYTES) return NULL;
        u64 token = hash_token(args[i]);
        if (i == 1) *token_out = token;
        if (token_partition(token, partitions) != token_partition(*token_out, partitions))
            return NULL;
    }
    *keys_out = count;
    return command_find(args[0]);
}

/* The same of all kinds. */
static const struct command *
command_of_kind(const struct shard *shard, const struct peer_forward *forward,
                const struct bytes *args, u64 *token_out, u32 *keys_out)
{
    if (forward->kind == PEER_FORWARD_FLUSH)
        return command_of_flush(shard, forward, args, token_out, keys_out);
    if (forward->kind == PEER_FORWARD_COMMAND)
        return command_of(args, forward->arg_count, forward->resp == 0, token_out, keys_out);
    if (!multi_check(forward, args, token_out, keys_out)) return NULL;
    *keys_out += forward->watch_count;
    bool exec = forward->kind == PEER_FORWARD_EXEC;
    return command_find(exec ? BYTES_LITERAL("exec") : BYTES_LITERAL("watch"));
}

/* The request of what a peer asks for; NULL: no place or no memory. */
static struct request *
request_of(struct shard *shard, const struct command *command, const struct peer_forward *forward,
           const struct bytes *args, u32 keys, u16 keyspace)
{
    struct request *request = request_new(shard, command, args, forward->arg_count, keys, 0);
    if (request == NULL || forward->kind == PEER_FORWARD_COMMAND) return request;
    request->blind = forward->kind == PEER_FORWARD_FLUSH;
    if (request->blind) return request;
    struct transaction *tx = multi_decode(&shard->budget, forward, request->args, keyspace);
    if (tx == NULL) {
        request_free(request);
        return NULL;
    }
    request->extra = tx;
    request->writes = command->place == PLACE_EXEC && transaction_writes(tx);
    return request;
}

/* Until when it may be begun, by our clock. */
static u64
begin_of(const struct peer_forward *forward, u64 wall_ms, u64 deadline_ns)
{
    u64 now = io_now_ns();
    if (forward->until_ms >= UINT64_MAX - FORWARD_CLOCK_MS) return deadline_ns;
    u64 left_ms = forward->until_ms + FORWARD_CLOCK_MS - wall_ms; /* else it came too late */
    return left_ms >= (deadline_ns - MIN(now, deadline_ns)) / NS_PER_MS ? deadline_ns
                                                                        : now + left_ms * NS_PER_MS;
}

/* Since when, by our clock, the connection is there that the client's request came over. The way
 * here counts, too, or a write that comes again would be younger than it is (native_write.c). It
 * was sent on no sooner than NATIVE_BEGIN_NS before until_ms, by a clock that is as wrong as ours
 * at the most. */
static u64
connected_of(const struct peer_forward *forward, u64 wall_ms)
{
    u64 now = io_now_ns();
    u64 latest_ms = wall_ms + NATIVE_BEGIN_NS / NS_PER_MS + 2 * FORWARD_CLOCK_MS;
    u64 under_way_ms = latest_ms - MIN(latest_ms, forward->until_ms);
    u64 since_ms = (u64)forward->age_ms + 1 + under_way_ms;
    return now - MIN(now, since_ms * NS_PER_MS);
}

static void
asked(void *arg, struct peer_request *peer, const struct peer_identity *from,
      const struct native_header *header, struct bytes body)
{
    struct shard *shard = arg;
    if (peer == NULL) return; /* posted: nothing that we send */
    if (shard->draining) {
        refuse(shard, peer, NATIVE_ST_CLOSING);
        return;
    }
    struct peer_forward forward;
    u32 keys = 0;
    u64 token = 0;
    if (!ok(peer_forward_decode(body, &forward)) || forward.level > REPLICATE_ALL ||
        header->keyspace >= LIMIT_KEYSPACES_CLIENT) {
        refuse(shard, peer, NATIVE_ST_INVALID);
        return;
    }
    const struct bytes *args = spread_args(shard, &forward);
    if (args == NULL) {
        refuse(shard, peer, NATIVE_ST_OVERLOADED);
        return;
    }
    const struct command *command = command_of_kind(shard, &forward, args, &token, &keys);
    if (command == NULL) {
        refuse(shard, peer, NATIVE_ST_INVALID);
        return;
    }
    u64 wall_ms = cluster_wall_ms(shard->server->cluster);
    if (forward.until_ms < UINT64_MAX - FORWARD_CLOCK_MS &&
        wall_ms > forward.until_ms + FORWARD_CLOCK_MS) {
        MARK("server.route.came_too_late");
        refuse(shard, peer, NATIVE_ST_TIMED_OUT);
        return;
    }
    const struct topology *topology = cluster_topology(shard->cluster);
    u32 self = cluster_member(shard->server->cluster);
    u32 partition = token_partition(token, shard->server->layout.partition_count);
    u32 owner = shard_of_token(shard->server, token);
    if (topology == NULL || !topology_holds(topology, self, partition)) {
        refuse(shard, peer, NATIVE_ST_WRONG_EPOCH);
        return;
    }
    if (goes_elsewhere(shard, topology, command, header->keyspace, partition)) {
        refuse(shard, peer, NATIVE_ST_CLOSING);
        return;
    }
    /* Whoever goes by our old number of shards sends to one what is another one's. That one may
     * not be in the cluster yet, and would keep for itself what it acknowledges. */
    if (owner != shard->index && atomic_load(&shard->server->shards_ready) == 0) {
        MARK("server.route.not_entered_yet");
        refuse(shard, peer, NATIVE_ST_CLOSING);
        return;
    }
    if (shard->cluster->closing) { /* in a moment it is known where to */
        refuse(shard, peer, NATIVE_ST_WRONG_EPOCH);
        return;
    }
    struct request *request = request_of(shard, command, &forward, args, keys, header->keyspace);
    if (shard->args.capacity > KIB(256)) buf_clear(&shard->args, 0);
    if (request == NULL) {
        refuse(shard, peer, NATIVE_ST_OVERLOADED);
        return;
    }
    request->keyspace = header->keyspace;
    if (waits_to_stamp(shard, topology, request, token)) { /* or somebody else is to, by then */
        if (command->place > PLACE_SPLIT_ARRAY) multi_decoded_free(&shard->budget, request->extra);
        request_free(request);
        refuse(shard, peer, NATIVE_ST_WRONG_EPOCH);
        return;
    }
    bool begun = coordinates_begin(request);
    CHECK(begun);
    shard->stats->cluster_forwarded++;
    request->peer = peer;
    request->owner = owner;
    request->resp = forward.resp == 0 ? 3 : forward.resp;
    request->level = forward.level;
    request->connected_ns = connected_of(&forward, wall_ms);
    request->moved = forward.moved;
    request->deadline_ns = peer_request_deadline_ns(peer);
    request->begin_ns = begin_of(&forward, wall_ms, request->deadline_ns);
    request->work.flow = from->member;
    request_start(request);
}

void
route_answer(struct request *request)
{
    struct shard *shard = shard_self();
    struct peer_request *peer = request->peer;
    const struct topology *topology = cluster_topology(shard->cluster);
    u64 epoch = topology == NULL ? 0 : topology->epoch;
    struct bytes reply = request_reply(request);
    enum native_status code = NATIVE_ST_OK;
    if (request->unknown)
        code = request->writes ? NATIVE_ST_UNKNOWN_OUTCOME : NATIVE_ST_NO_MEMORY;
    else if (status_is(request->failure, ST_WOULD_WAIT))
        code = NATIVE_ST_WRONG_EPOCH;
    else if (status_is(request->failure, ST_UNAVAILABLE))
        code = NATIVE_ST_UNAVAILABLE; /* who asked may reach a replica that reaches more */
    else if (status_is(request->failure, ST_OVERLOADED) && !request->unrun)
        code = request->writes && !runs_anywhere(request) ? NATIVE_ST_OVERLOADED /* we decide */
                                                          : NATIVE_ST_UNAVAILABLE;
    request->peer = NULL;
    bool is_multi = request->command->place > PLACE_SPLIT_ARRAY;
    struct buf watched;
    buf_init(&watched, &shard->budget);
    if (request->command->place == PLACE_WATCH && code == NATIVE_ST_OK && reply.size != 0 &&
        reply.data[0] == '+' && !multi_watched_encode(&watched, request->extra))
        code = NATIVE_ST_NO_MEMORY;
    struct bytes parts[] = {reply, buf_bytes(&watched)};
    peer_reply(peer, code, epoch, parts, code == NATIVE_ST_OK ? 2 : 0);
    buf_deinit(&watched);
    if (is_multi) multi_decoded_free(&shard->budget, request->extra);
    request_free(request);
}

void
route_open(struct shard *shard)
{
    room_line_open(&shard->room, has_room);
    peers_handler_set(shard->cluster->peers, PEER_FORWARD, asked, shard);
}
