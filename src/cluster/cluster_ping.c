/* SPDX-License-Identifier: MIT
 *
 * cluster_ping.c -- who lives: each member's shard 0 is asked, near ones at every tick
 * (CLUSTER_PING_MS), the others at every tenth (liveness.h). So what a ping carries is up to a
 * second old, of a far member. Whoever must not wait for so long makes members near (is_near):
 *
 *   partners             who holds, or is about to hold, a partition that we do: what we coordinate
 *                        goes to them, and we agree with them who runs a command
 *   whom a request waits for   what goes to others is forwarded; one that is not answered at once
 *                        shows whom to look after. (Not all to whom requests go: with clients that
 *                        know no slots, these are all.)
 *   who must be told     that we are drained, or not any more, until they have answered
 *   who is behind        the present epoch, where we lead group0 or fetch: a barrier waits for it
 *   who comes or goes    where we lead group0: plans depend on them
 *   voters               where we lead group0: one of them takes the lead when we stop
 *
 * With fewer than about twenty members all of them are partners.
 *
 * The body of PEER_PING and of its answer, 32 bytes: the oldest epoch that the sender works with
 * (8), its wall clock in milliseconds (8), flags (1; bit 0: it is ill; bit 1: it is drained, or
 * passes on what it would coordinate;
 * bit 2: its shards have ports for clients; bits 3 and 4: CLUSTER_ILL_STUCK and _CLOCK; bit 5: it
 * knows sloppy keyspaces, format 2 of a topology; bit 6: it keeps hints for others, and is to be
 * waited for when it leaves; bit 7: it knows members that lost a part, format 3), what
 * else it knows (1; bit 0: TOPOLOGY_PLAN), 0 (6), and the lowest version that it may yet send to
 * anybody (8; 0: not known).
 *
 * What is wrong with ourselves is found out here, too (ill_look): operators are told, load
 * balancers by /readyz, and the other members, who show it.
 *
 * liveness.h judges by the answers. Two pings in a row that could not even connect are enough to
 * send nothing more there: then its process is gone, and waiting would find out the same later.
 */
#include "cluster/cluster.h"

#include "base/log.h"
#include "io/io.h"
#include "proto/peer.h"

#define PING_BYTES      32u
#define PING_TIMEOUT_NS (400 * NS_PER_MS)
#define SILENT_NS       NS_PER_S
#define SILENT_FAR_NS   LIVENESS_FAR_SUSPECT_NS
#define WAITED_NS       (3 * NS_PER_S)
#define REFUSALS_MAX    2u
#define FLAG_ILL        1u
#define FLAG_DRAINED    2u
#define FLAG_PORTS      4u
#define FLAG_ILL_SHIFT  3u /* CLUSTER_ILL_STUCK and _CLOCK */
#define FLAG_SLOPPY     32u
#define FLAG_KEEPS      64u
#define FLAG_LOST       128u
#define KNOWS_PLAN      1u
#define KNOWS_STAY      2u
#define ILL_TOLD        (CLUSTER_ILL_STUCK | CLUSTER_ILL_CLOCK)
#define CLOCK_MS_MAX    250
/* A clock that was wrong is right again when it is no further off. */
#define CLOCK_MS_RIGHT 200

static struct cluster_ping *
find(const struct cluster_shard *shard, u32 member)
{
    return liveness_arg(&shard->liveness, member);
}

const struct cluster_ping *
cluster_ping_of(const struct cluster_shard *shard, u32 member)
{
    return find(shard, member);
}

static bool
is_alive(const struct cluster_ping *ping)
{
    return ping->refusals < REFUSALS_MAX &&
           liveness_state(&ping->shard->liveness, ping->member) == LIVENESS_ALIVE;
}

/* It may have ended, and be another process by now. */
static void
doubt(const struct cluster_ping *ping)
{
    struct cluster *cluster = ping->shard->cluster;
    atomic_fetch_add(&cluster->doubts[ping->member % CLUSTER_ALIVE_SLOTS], 1);
    atomic_fetch_add(&cluster->doubt_count, 1);
}

/* What the shards go by. Ill members count as alive: where a machine is short of processors all of
 * them are ill now and then, and to ask nobody any more would be worse than to wait. */
static void
publish(const struct cluster_ping *ping)
{
    const struct cluster_shard *shard = ping->shard;
    u8 state = (is_alive(ping) ? CLUSTER_IS_ALIVE : 0) | (ping->drained ? CLUSTER_IS_DRAINED : 0) |
               (ping->shard_ports ? CLUSTER_HAS_PORTS : 0) |
               ((ping->ill & CLUSTER_ILL_STUCK) != 0 ? CLUSTER_IS_STUCK : 0);
    _Atomic u8 *known = &shard->cluster->alive[ping->member % CLUSTER_ALIVE_SLOTS];
    u8 before = atomic_load(known);
    if (before == state) return;
    cluster_runners_change(shard->cluster);
    atomic_store(known, state);
    if ((before & ~state & CLUSTER_IS_ALIVE) != 0) doubt(ping);
}

static void
report_changes(struct cluster_shard *shard)
{
    static const char *const names[] = {"alive", "suspect", "dead"};
    struct liveness_change change;
    while (liveness_change(&shard->liveness, &change)) {
        log_info("cluster", "member %s member=%u before=%s", names[change.to], change.number,
                 names[change.from]);
        const struct cluster_ping *ping = find(shard, change.number);
        if (ping != NULL) publish(ping);
    }
}

static void
flags_take(struct cluster_ping *ping, struct bytes body)
{
    u8 flags = body.data[16];
    ping->drained = (flags & FLAG_DRAINED) != 0;
    ping->shard_ports = (flags & FLAG_PORTS) != 0;
    ping->keeps = (flags & FLAG_KEEPS) != 0;
    ping->knows_sloppy = (flags & FLAG_SLOPPY) != 0;
    ping->knows_lost = (flags & FLAG_LOST) != 0;
    ping->knows_plan = (body.data[17] & KNOWS_PLAN) != 0;
    ping->knows_stay = (body.data[17] & KNOWS_STAY) != 0;
    u8 ill = flags >> FLAG_ILL_SHIFT & ILL_TOLD;
    if ((ill & ~ping->ill & CLUSTER_ILL_STUCK) != 0)
        log_warning("cluster", "a member takes no writes member=%u", ping->member);
    if ((ill & ~ping->ill & CLUSTER_ILL_CLOCK) != 0)
        log_warning("cluster", "the clock of a member is wrong member=%u", ping->member);
    ping->ill = ill;
}

/* By how much another clock is ahead of ours, which it was told by one of its at a moment between
 * began_ns and now: the least that this can mean, since answers may be under way for long, and wait
 * in a loop that stands still. Negative: behind. */
static i64
clock_before_ours_ms(u64 told_ms, u64 began_ns)
{
    i64 least = (i64)(told_ms - io_wall_ms());
    i64 most = least + (i64)((io_now_ns() - began_ns) / NS_PER_MS);
    if (least > 0) return least;
    return MIN(most, 0);
}

static void
heard(struct cluster_ping *ping, struct bytes body)
{
    i64 clock_ms = clock_before_ours_ms(load_u64(body.data + 8), ping->began_ns);
    bool off = clock_ms > CLOCK_MS_MAX || clock_ms < -CLOCK_MS_MAX;
    bool was_off = ping->clock_ms > CLOCK_MS_MAX || ping->clock_ms < -CLOCK_MS_MAX;
    if (off && !was_off)
        log_warning("cluster", "the clock of a member differs member=%u ms=%lld", ping->member,
                    (long long)clock_ms);
    ping->clock_ms = clock_ms;
    ping->refusals = 0;
    flags_take(ping, body);
    ping->oldest = load_u64(body.data + 24);
    ping->heard_ns = io_now_ns();
    liveness_heard(&ping->shard->liveness, ping->member, (body.data[16] & FLAG_ILL) != 0,
                   ping->heard_ns);
    report_changes(ping->shard);
    publish(ping);
}

static void
answered(struct peer_call *call, status st, const struct native_header *header, struct bytes body)
{
    struct cluster_ping *ping = CONTAINER_OF(call, struct cluster_ping, call);
    ping->calling = false;
    if (ok(st) && header->status == NATIVE_ST_OK && body.size >= PING_BYTES) {
        ping->rtt_ns = io_now_ns() - ping->began_ns;
        ping->told_ns = ping->began_ns;
        ping->epoch = load_u64(body.data);
        heard(ping, body);
        return;
    }
    bool closed = !ok(st) && status_is(st, ST_CLOSED);
    if (closed) doubt(ping); /* one that is back at once has not even missed a ping */
    bool refused = closed && !call->maybe_sent;
    ping->refusals = refused ? ping->refusals + 1 : 0;
    if (ping->refusals == REFUSALS_MAX)
        log_info("cluster", "member does not listen member=%u", ping->member);
    publish(ping);
}

static bool
own_keeps(const struct cluster *cluster)
{
    return atomic_load(&cluster->shards_keeping) != 0 && !atomic_load(&cluster->leaves_at_once);
}

static void
fill(const struct cluster_shard *shard, u8 body[PING_BYTES])
{
    memset(body, 0, PING_BYTES);
    u64 epoch = cluster_own_epoch(shard->cluster);
    store_u64(body, epoch);
    store_u64(body + 8, io_wall_ms());
    body[16] = liveness_self_ill(&shard->liveness, io_now_ns()) ? FLAG_ILL : 0;
    body[16] |= FLAG_SLOPPY | FLAG_LOST;
    if (own_keeps(shard->cluster)) body[16] |= FLAG_KEEPS; /* of the epoch, or later */
    if (cluster_drained(shard->cluster, cluster_member(shard->cluster))) body[16] |= FLAG_DRAINED;
    if (shard->cluster->options.shard_ports) body[16] |= FLAG_PORTS;
    body[16] |= (u8)((atomic_load(&shard->cluster->ill) & ILL_TOLD) << FLAG_ILL_SHIFT);
    body[17] = KNOWS_PLAN | KNOWS_STAY;
    store_u64(body + 24, cluster_own_oldest(shard->cluster));
}

static void
asked(void *arg, struct peer_request *request, const struct peer_identity *from,
      const struct native_header *header, struct bytes body)
{
    struct cluster_shard *shard = arg;
    (void)header;
    struct cluster_ping *ping = find(shard, from->member);
    /* Its epoch counts whoever hears of it; that we reach it, only an answer shows. */
    if (ping != NULL && body.size >= PING_BYTES) {
        ping->epoch = load_u64(body.data);
        flags_take(ping, body);
        publish(ping);
        ping->oldest = load_u64(body.data + 24);
    }
    if (request == NULL) return;
    u8 answer[PING_BYTES];
    fill(shard, answer);
    struct bytes part = BYTES(answer, sizeof(answer));
    u64 epoch = shard->topology == NULL ? 0 : shard->topology->epoch;
    peer_reply(request, NATIVE_ST_OK, epoch, &part, 1);
}

/* Not known while one is silent, or works with an earlier stage: it may hold what others do not
 * know of. (What a member has said stays true of it, so that a far one's is old does no harm.) */
static void
publish_oldest(struct cluster_shard *shard)
{
    const struct topology *topology = shard->topology;
    if (topology == NULL) return;
    u64 now = io_now_ns(), stage = topology->stage_epoch;
    bool behind = cluster_own_epoch(shard->cluster) < stage;
    u64 oldest = behind ? 0 : cluster_own_oldest(shard->cluster);
    for (u32 i = 0; i < shard->liveness.count; i++) {
        const struct cluster_ping *ping = cluster_ping_at(shard, i);
        u64 silent_ns = ping->partner ? SILENT_NS : SILENT_FAR_NS;
        bool silent = ping->heard_ns == 0 || now - ping->heard_ns > silent_ns || !is_alive(ping);
        oldest = MIN(oldest, silent || ping->epoch < stage ? 0 : ping->oldest);
    }
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 member = topology->members[i].number;
        if (member != cluster_member(shard->cluster) && find(shard, member) == NULL) oldest = 0;
    }
    struct cluster *cluster = shard->cluster;
    if (atomic_load(&cluster->oldest_stage) != stage) atomic_store(&cluster->oldest, 0);
    atomic_store(&cluster->oldest_stage, stage);
    atomic_store(&cluster->oldest, oldest);
}

u64
cluster_oldest(const struct cluster *cluster, u64 stage_epoch)
{
    /* Shard 0 may change both in between: first to nothing, then to another stage. */
    u64 oldest = atomic_load(&cluster->oldest);
    return atomic_load(&cluster->oldest_stage) == stage_epoch ? oldest : 0;
}

/* ---- what is wrong with us ---- */

/* How far what any shard of ours stamps is ahead of most others' clocks, if by so much that they
 * refuse it; else 0. Others who are as far ahead take it: so two halves with different clocks may
 * both go on. */
static u64
clock_ahead_ms(const struct cluster_shard *shard, i64 limit_ms)
{
    i64 own = 0, least = INT64_MAX;
    u32 others = 0, refuse = 0;
    for (u32 i = 0; i < shard->cluster->options.shard_count; i++)
        own = MAX(own, (i64)atomic_load(&shard->cluster->shard_ahead_ms[i]));
    for (u32 i = 0; i < shard->liveness.count; i++) {
        const struct cluster_ping *ping = cluster_ping_at(shard, i);
        if (ping->heard_ns == 0 || !is_alive(ping)) continue;
        others++;
        i64 ahead = own - ping->clock_ms;
        if (ahead <= limit_ms) continue;
        refuse++;
        least = MIN(least, ahead);
    }
    return refuse * 2 > others ? (u64)least : 0;
}

/* How far our wall clock is ahead of most others' (behind: negative), 0 when less than the limit.
 * Where half are ahead of the other half nobody knows who is right: those who are ahead step back,
 * as it is their stamps that are refused, and the others have to go on. */
static i64
clock_off_ms(const struct cluster_shard *shard, i64 limit_ms)
{
    u32 others = 0, before = 0, behind = 0;
    i64 least_before = INT64_MAX, least_behind = INT64_MAX;
    for (u32 i = 0; i < shard->liveness.count; i++) {
        const struct cluster_ping *ping = cluster_ping_at(shard, i);
        if (ping->heard_ns == 0 || !is_alive(ping)) continue;
        others++;
        if (ping->clock_ms > limit_ms) {
            before++;
            least_before = MIN(least_before, ping->clock_ms);
        } else if (ping->clock_ms < -limit_ms) {
            behind++;
            least_behind = MIN(least_behind, -ping->clock_ms);
        }
    }
    if (before * 2 > others + 1) return -least_before;
    return behind * 2 > others ? least_behind : 0;
}

static void
clock_log(u64 ahead_ms, i64 off_ms)
{
    if (ahead_ms != 0)
        log_warning("cluster",
                    "this node's clock is ahead of most others': they refuse its writes, and "
                    "coordinate what it would ahead_ms=%llu",
                    (unsigned long long)ahead_ms);
    else if (off_ms < 0)
        log_warning("cluster",
                    "this node's clock is behind most others': it refuses their writes, and they "
                    "coordinate what it would behind_ms=%lld",
                    (long long)-off_ms);
    else
        log_info("cluster", "this node's clock agrees with the others' again");
}

static void
ill_log(u8 now, u8 before, u8 bit, const char *begins, const char *ends)
{
    if ((now & ~before & bit) != 0) log_warning("cluster", "%s", begins);
    if ((before & ~now & bit) != 0) log_info("cluster", "%s", ends);
}

static void
ill_look(struct cluster_shard *shard)
{
    struct cluster *cluster = shard->cluster;
    u32 alive = 1, heard = 1, count = shard->topology == NULL ? 1 : shard->topology->member_count;
    for (u32 i = 0; i < shard->liveness.count; i++) {
        const struct cluster_ping *ping = cluster_ping_at(shard, i);
        alive += is_alive(ping);
        heard += is_alive(ping) && ping->heard_ns != 0;
    }
    bool majority = alive * 2 > count;
    shard->majority_seen |= heard * 2 > count;
    /* One that is just at the limit does not come and go. */
    bool was_wrong = (atomic_load(&cluster->ill) & CLUSTER_ILL_CLOCK) != 0;
    i64 limit_ms = was_wrong ? CLOCK_MS_RIGHT : CLOCK_MS_MAX;
    u64 ahead = clock_ahead_ms(shard, limit_ms);
    u8 ill = 0, before = atomic_load(&cluster->ill);
    if (atomic_load(&cluster->shards_stuck) != 0) ill |= CLUSTER_ILL_STUCK;
    i64 off = clock_off_ms(shard, limit_ms);
    if (ahead != 0 || off < 0) ill |= CLUSTER_ILL_CLOCK;
    if (!majority && shard->majority_seen) ill |= CLUSTER_ILL_ALONE;
    atomic_store(&cluster->clock_ahead_ms, ahead);
    atomic_store(&cluster->clock_off_ms, off);
    if (ill == before) return;
    if (((ill ^ before) & ILL_TOLD) != 0) cluster_runners_change(cluster);
    atomic_store(&cluster->ill, ill);
    if (((ill ^ before) & CLUSTER_ILL_CLOCK) != 0) clock_log(ahead, off);
    ill_log(
        ill, before, CLUSTER_ILL_STUCK,
        "this node takes no writes: its disk is full, slow, or has failed, or its memory is full",
        "this node takes writes again");
    ill_log(ill, before, CLUSTER_ILL_ALONE, "most members do not answer this node",
            "most members answer this node again");
}

/* ---- who is near ---- */

/* What does not depend on the member, looked at once in a tick. */
struct nearness {
    u64 now_ns;
    bool leads, fetches;
    u32 voters[GROUP0_VOTERS_BOTH];
    u32 voter_count; /* 0: we do not lead */
};

static struct nearness
nearness_of(const struct cluster_shard *shard, u64 now_ns)
{
    struct nearness out = {
        .now_ns = now_ns, .leads = group0_leads(shard->group0), .fetches = shard->fetch_runs};
    if (out.leads) out.voter_count = group0_voters(shard->group0, out.voters);
    return out;
}

static bool
is_near(struct cluster_ping *ping, const struct nearness *of)
{
    const struct cluster_shard *shard = ping->shard;
    if (ping->partner || of->now_ns < ping->waited_ns || ping->told_ns < shard->said_ns)
        return true;
    if ((of->leads || of->fetches) && ping->epoch < shard->topology->epoch) return true;
    for (u32 i = 0; i < of->voter_count; i++)
        if (of->voters[i] == ping->member) return true;
    if (!of->leads) return false;
    const struct topology_member *member = topology_member(shard->topology, ping->member);
    return member != NULL && member->state != PLACEMENT_NORMAL;
}

static void
near_look(struct cluster_shard *shard, u64 now_ns)
{
    struct cluster *cluster = shard->cluster;
    bool drained = cluster_drained(cluster, cluster_member(cluster));
    if (drained != shard->said_drained) {
        shard->said_drained = drained;
        shard->said_ns = now_ns;
    }
    if (shard->topology == NULL) return;
    struct nearness of = nearness_of(shard, now_ns);
    for (u32 i = 0; i < shard->liveness.count; i++) {
        struct cluster_ping *ping = cluster_ping_at(shard, i);
        _Atomic bool *waited_for = &cluster->waited_for[ping->member % CLUSTER_ALIVE_SLOTS];
        if (atomic_load_explicit(waited_for, memory_order_relaxed)) {
            atomic_store_explicit(waited_for, false, memory_order_relaxed);
            ping->waited_ns = now_ns + WAITED_NS;
        }
        bool near = is_near(ping, &of);
        if (near == ping->near) continue;
        ping->near = near;
        liveness_near_set(&shard->liveness, ping->member, near, now_ns);
    }
}

/* In either placement; keyspaces with fewer replicas use a part of the row. */
static void
partners_mark(struct cluster_shard *shard, const struct placement *placement)
{
    u32 self = cluster_member(shard->cluster);
    for (u32 partition = 0; placement->ids != NULL && partition < placement->partition_count;
         partition++) {
        const u32 *row = placement_row(placement, partition);
        bool ours = false;
        for (u32 i = 0; i < placement->width; i++)
            ours = ours || row[i] == self;
        for (u32 i = 0; i < placement->width && ours; i++) {
            struct cluster_ping *ping = find(shard, row[i]);
            if (ping != NULL) ping->partner = true;
        }
    }
}

static void
partners_look(struct cluster_shard *shard)
{
    for (u32 i = 0; i < shard->liveness.count; i++)
        cluster_ping_at(shard, i)->partner = false;
    partners_mark(shard, &shard->topology->current);
    partners_mark(shard, &shard->topology->next);
}

/* ---- asking ---- */

void
cluster_pings_send(struct cluster_shard *shard)
{
    u64 now = io_now_ns();
    publish_oldest(shard);
    ill_look(shard);
    near_look(shard, now);
    if (atomic_load(&shard->cluster->shards_stuck) != 0)
        liveness_self_stalled(&shard->liveness, now);
    liveness_tick(&shard->liveness, now);
    report_changes(shard);
    u8 body[PING_BYTES];
    fill(shard, body);
    struct bytes part = BYTES(body, sizeof(body));
    struct native_header header = {.opcode = PEER_PING};
    if (shard->topology != NULL) header.epoch = shard->topology->epoch;
    u32 member;
    while (!shard->is_out && liveness_ping(&shard->liveness, &member)) {
        struct cluster_ping *ping = find(shard, member);
        if (ping == NULL || ping->calling) continue;
        ping->calling = true;
        ping->began_ns = now;
        peer_call_init(&ping->call, answered);
        peer_call_start(shard->peers, &ping->call, ping->member, 0, &header, &part, 1,
                        now + PING_TIMEOUT_NS);
    }
}

/* False: no memory. */
static bool
ping_add(struct cluster_shard *shard, u32 member)
{
    struct cluster_ping *ping = mem_alloc_zero(&shard->budget, sizeof(*ping));
    if (ping == NULL) return false;
    if (!liveness_add(&shard->liveness, member, ping, io_now_ns())) {
        mem_free(&shard->budget, ping, sizeof(*ping));
        return false;
    }
    ping->shard = shard;
    ping->member = member;
    ping->near = true;
    publish(ping);
    return true;
}

/* Of one that liveness does not know any more. */
static void
ping_free(struct cluster_ping *ping)
{
    struct cluster_shard *shard = ping->shard;
    if (ping->calling) peer_call_cancel(shard->peers, &ping->call);
    mem_free(&shard->budget, ping, sizeof(*ping));
}

void
cluster_pings_follow(struct cluster_shard *shard)
{
    const struct topology *topology = shard->topology;
    u32 self = cluster_member(shard->cluster);
    bool lacked = shard->pings_lacked;
    shard->pings_lacked = false;
    for (u32 i = 0; i < shard->liveness.count;) {
        struct cluster_ping *ping = cluster_ping_at(shard, i);
        if (topology_member(topology, ping->member) != NULL) {
            i++;
            continue;
        }
        liveness_remove(&shard->liveness, ping->member);
        publish(ping);
        ping_free(ping);
    }
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 member = topology->members[i].number;
        if (member == self || find(shard, member) != NULL) continue;
        if (ping_add(shard, member)) continue;
        shard->pings_lacked = true; /* the tick tries again */
        if (!lacked) log_error("cluster", "no memory to ask a member member=%u", member);
    }
    partners_look(shard);
}

void
cluster_pings_open(struct cluster_shard *shard)
{
    peers_handler_set(shard->peers, PEER_PING, asked, shard);
}

void
cluster_pings_close(struct cluster_shard *shard)
{
    while (shard->liveness.count > 0) {
        struct cluster_ping *ping = cluster_ping_at(shard, shard->liveness.count - 1);
        liveness_remove(&shard->liveness, ping->member);
        ping_free(ping);
    }
}

bool
cluster_ping_is_alive(const struct cluster_ping *ping)
{
    return is_alive(ping);
}

bool
cluster_is_alive(void *arg, u32 member)
{
    const struct cluster_shard *shard = arg;
    if (member == cluster_member(shard->cluster)) return true;
    const struct cluster_ping *ping = find(shard, member);
    return ping != NULL && is_alive(ping);
}

u64
cluster_epoch_of(void *arg, u32 member)
{
    const struct cluster_shard *shard = arg;
    if (member == cluster_member(shard->cluster)) return cluster_own_epoch(shard->cluster);
    const struct cluster_ping *ping = find(shard, member);
    return ping == NULL ? 0 : ping->epoch;
}

bool
cluster_keeps(void *arg, u32 member)
{
    const struct cluster_shard *shard = arg;
    if (member == cluster_member(shard->cluster)) return own_keeps(shard->cluster);
    const struct cluster_ping *ping = find(shard, member);
    return ping != NULL && ping->keeps;
}

bool
cluster_is_stuck(void *arg, u32 member)
{
    return cluster_stuck(((const struct cluster_shard *)arg)->cluster, member);
}

bool
cluster_knows_plan(void *arg, u32 member)
{
    const struct cluster_shard *shard = arg;
    if (member == cluster_member(shard->cluster)) return true;
    const struct cluster_ping *ping = find(shard, member);
    return ping != NULL && ping->knows_plan;
}
