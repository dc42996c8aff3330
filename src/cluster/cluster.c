/* SPDX-License-Identifier: MIT
 *
 * cluster.c -- see cluster.h: opening and closing, and topologies on their way to the shards.
 */
#include <stdio.h>

#include "cluster/cluster.h"

#include "base/log.h"
#include "io/io.h"
#include "io/net.h"

/* Of a shard's memory: what peers are sent and have sent, topologies, pages of streams. At least
 * what one of the largest values takes: twice, as it comes and as it is written, with what buffers
 * have to spare, beside a MiB that is taken always. */
#define SHARE_BUDGET  16u
#define BUDGET_MIN    (4u * (u64)(LIMIT_VALUE_BYTES + LIMIT_KEY_BYTES + 4096u))
#define LOOK_NS       (5 * NS_PER_MS)
#define JOIN_NS       (5 * NS_PER_S)
#define JOIN_PAUSE_NS (500 * NS_PER_MS)
#define UPGRADE       "members of a later version have written it: upgrade this node"
#define WIPE_IT       "wipe this node and replace it"

void
cluster_secret_make(struct bytes text, u8 out[PEER_SECRET_BYTES])
{
    static_assert(PEER_SECRET_BYTES == HMAC_BYTES, "it is one");
    hmac_sha256(BYTES_LITERAL("distkv cluster secret"), &text, 1, out);
}

struct cluster *
cluster_new(const struct cluster_options *options)
{
    CHECK(options->shard_count > 0 && options->shard_count <= LIMIT_SHARDS);
    struct cluster *cluster = mem_alloc_aligned(io_budget(), sizeof(*cluster), 64);
    if (cluster == NULL) return NULL;
    memset(cluster, 0, sizeof(*cluster));
    cluster->options = *options;
    cluster->move_bytes_per_s = options->move_bytes_per_s;
    cluster->passing = CLUSTER_PASSING_STARTS;
    for (u32 i = 0; i < LIMIT_SHARDS; i++) {
        cluster->mails[i].cluster = cluster;
        cluster->mails[i].shard = i;
    }
    return cluster;
}

void
cluster_free(struct cluster *cluster)
{
    if (cluster == NULL) return;
    hmac_forget(cluster->options.secret, sizeof(cluster->options.secret));
    mem_free(io_budget(), cluster, sizeof(*cluster));
}

u64
cluster_own_epoch(const struct cluster *cluster)
{
    u64 least = UINT64_MAX;
    for (u32 i = 0; i < cluster->options.shard_count; i++)
        least = MIN(least, atomic_load_explicit(&cluster->shard_epochs[i], memory_order_acquire));
    return least;
}

u64
cluster_own_oldest(const struct cluster *cluster)
{
    u64 least = UINT64_MAX;
    for (u32 i = 0; i < cluster->options.shard_count; i++)
        least = MIN(least, atomic_load_explicit(&cluster->shard_oldest[i], memory_order_relaxed));
    return least;
}

static void
note_keeping(const struct cluster_shard *shard)
{
    _Atomic u64 *keeping = &shard->cluster->shards_keeping;
    u64 bit = (u64)1 << shard->index;
    bool before = (atomic_load(keeping) & bit) != 0, keeps = hints_wait_for_others(shard->hints);
    if (keeps && !before) atomic_fetch_or(keeping, bit);
    if (!keeps && before) atomic_fetch_and(keeping, ~bit);
}

static void
note_epoch(struct cluster_shard *shard)
{
    u64 epoch = 0;
    if (shard->topology != NULL)
        epoch = MIN(shard->topology->epoch, replicator_epoch(shard->replicator));
    /* First what goes with it: who sees the epoch sees nothing of the stage before. */
    u64 oldest = trees_are_clean(shard) ? replicator_oldest_to_come(shard->replicator) : 0;
    atomic_store_explicit(&shard->cluster->shard_oldest[shard->index], oldest,
                          memory_order_relaxed);
    note_keeping(shard);
    atomic_store_explicit(&shard->cluster->shard_epochs[shard->index], epoch, memory_order_release);
}

/* ---- topologies ---- */

static void
follow_addresses(struct cluster_shard *shard, const struct topology *before)
{
    const struct topology *topology = shard->topology;
    u32 self = cluster_member(shard->cluster);
    bool lacked = shard->addresses_lacked;
    shard->addresses_lacked = false;
    /* Shard 0 has them from group0, which knows more of those that have moved. */
    for (u32 i = 0; shard->index != 0 && i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->number == self) continue;
        struct peer_address address = {.port = member->peer_port,
                                       .shard_count = member->shard_count};
        snprintf(address.host, sizeof(address.host), "%s", member->host);
        if (peers_member_set(shard->peers, member->number, &address)) continue;
        shard->addresses_lacked = true; /* the tick tries again */
        if (!lacked)
            log_error("cluster", "no memory for the address of a member member=%u", member->number);
    }
    for (u32 i = 0; before != NULL && i < before->member_count; i++) {
        u32 number = before->members[i].number;
        if (number != self && topology_member(topology, number) == NULL)
            peers_member_remove(shard->peers, number);
    }
}

/* On shard 0, of each topology: who stays for a moment stays, and what it keeps is waited for if it
 * is told to leave another time. It may have stayed in one that was not seen: a snapshot has the
 * last one alone. */
static void
note_leaving(struct cluster_shard *shard, bool all_seen)
{
    struct cluster *cluster = shard->cluster;
    const struct topology_member *self = topology_member(shard->topology, cluster_member(cluster));
    if (self == NULL) return;
    shard->leaves = self->state == PLACEMENT_LEAVING;
    if (!shard->leaves || !all_seen) atomic_store(&cluster->leaves_at_once, false);
}

/* Takes over the reference. */
static void
adopt(struct cluster_shard *shard, struct topology *taken)
{
    struct topology *before = shard->topology;
    if (before != NULL && taken->epoch <= before->epoch) {
        topology_release(taken);
        return;
    }
    trees_topology_comes(shard, before, taken);
    cluster_runners_change(shard->cluster);
    shard->topology = taken;
    follow_addresses(shard, before);
    /* Not before: who answers pings is asked for what it holds. */
    if (shard->index == 0 && before == NULL) cluster_pings_open(shard);
    replicator_topology_set(shard->replicator, taken, cluster_member(shard->cluster));
    note_epoch(shard);
    bool next = before == NULL || taken->epoch == before->epoch + 1;
    topology_release(before);
    if (shard->index == 0) {
        note_leaving(shard, next);
        cluster_pings_follow(shard);
        fiber_queue_wake_all(&shard->changed);
    }
}

static void send_topology(struct cluster_mail *to);

static void
deliver_back(struct io_mail *mail)
{
    struct cluster_mail *to = CONTAINER_OF(mail, struct cluster_mail, mail);
    bool taken = to->topology == NULL;
    topology_release(to->topology);
    to->topology = NULL;
    to->away = false;
    if (taken)
        send_topology(to);
    else
        to->epoch = 0; /* it was not open: the tick tries again */
}

static void
deliver_topology(struct io_mail *mail)
{
    struct cluster_mail *to = CONTAINER_OF(mail, struct cluster_mail, mail);
    struct cluster_shard *shard = to->cluster->shards[to->shard];
    if (shard != NULL) {
        adopt(shard, to->topology);
        to->topology = NULL;
    }
    mail->deliver = deliver_back;
    io_mail_send(0, mail);
}

/* On shard 0: when the mail is here and the shard does not have the newest. */
static void
send_topology(struct cluster_mail *to)
{
    const struct cluster_shard *shard = to->cluster->shards[0];
    if (shard == NULL || shard->topology == NULL || to->away) return;
    if (to->epoch == shard->topology->epoch) return;
    topology_hold(shard->topology);
    to->topology = shard->topology;
    to->epoch = shard->topology->epoch;
    to->away = true;
    to->mail.deliver = deliver_topology;
    io_mail_send(to->shard, &to->mail);
}

static void
send_topologies(struct cluster *cluster)
{
    for (u32 i = 1; i < cluster->options.shard_count; i++)
        send_topology(&cluster->mails[i]);
}

/* From group0. */
static void
changed(void *arg, struct topology *topology)
{
    struct cluster_shard *shard = arg;
    /* Not in it yet: what there is then is taken by enter, which knows who we are. Or not any more:
     * the last ones come while this is closed, and nobody would take back what follows from them.
     */
    if (cluster_member(shard->cluster) == 0 || atomic_load(&shard->cluster->refusing)) return;
    topology_hold(topology);
    adopt(shard, topology);
    atomic_store(&shard->cluster->proving, false);
    send_topologies(shard->cluster);
}

/* ---- who may talk to us ---- */

static status
admit(void *arg, const struct peer_identity *peer)
{
    const struct cluster_shard *shard = arg;
    const struct topology *topology = shard->topology;
    if (peer->member == 0 || topology == NULL) return ST_OK;
    /* One that has joined since the topology that we know. */
    if (peer->member >= topology->next_number) return ST_OK;
    const struct topology_member *member = topology_member(topology, peer->member);
    if (member == NULL) return ST_NOT_FOUND; /* it was taken out */
    if (member->incarnation != peer->incarnation) return ST_DENIED;
    return strcmp(member->node_id, peer->node_id) == 0 ? ST_OK : ST_DENIED;
}

/* ---- opening ---- */

/* Whose process seems to have ended: the next one resets what is connected to it by now. */
static void
doubt_the_dead(struct cluster_shard *shard)
{
    const struct topology *topology = shard->topology;
    u64 count = atomic_load(&shard->cluster->doubt_count);
    if (count == shard->doubt_count || topology == NULL) return;
    shard->doubt_count = count;
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 number = topology->members[i].number, slot = number % CLUSTER_ALIVE_SLOTS;
        u8 doubts = atomic_load(&shard->cluster->doubts[slot]);
        if (doubts == shard->doubts[slot]) continue;
        shard->doubts[slot] = doubts;
        peers_member_doubt(shard->peers, number);
    }
}

/* What goes on by a topology that is not the others' any more might do anything. */
static void
stop_if_outdated(struct cluster_shard *shard)
{
    struct cluster *cluster = shard->cluster;
    if (!group0_is_outdated(shard->group0) || atomic_load(&cluster->outdated)) return;
    atomic_store(&cluster->outdated, true);
    io_stop();
}

static status
rolled_back(struct cluster *cluster)
{
    snprintf(cluster->reason, sizeof(cluster->reason), "%s", GROUP0_ROLLED_BACK);
    return ST_DENIED;
}

/* Only those know of the later start who came when this node was serving already. */
static void
stop_if_rolled_back(struct cluster_shard *shard)
{
    struct cluster *cluster = shard->cluster;
    if (!group0_is_rolled_back(shard->group0) || atomic_load(&cluster->rolled_back)) return;
    (void)!ok(rolled_back(cluster));
    atomic_store(&cluster->rolled_back, true);
    io_stop();
}

/* A node takes part before it may stamp: its store is as good as any. What would have to wait for
 * its stamps is better done by others, who can. That it may is said by shard 0 just before a ping:
 * as long as the others do not know, two run what reads before it writes. */
static void
note_stamping(struct cluster_shard *shard)
{
    struct cluster *cluster = shard->cluster;
    u64 bit = (u64)1 << shard->index, all = UINT64_MAX >> (64 - cluster->options.shard_count);
    if ((atomic_load(&cluster->shards_stamping) & bit) == 0 &&
        replicator_may_stamp(shard->replicator))
        atomic_fetch_or(&cluster->shards_stamping, bit);
    if (shard->index != 0 || atomic_load(&cluster->passing) != CLUSTER_PASSING_STARTS ||
        atomic_load(&cluster->shards_stamping) != all)
        return;
    cluster_runners_change(cluster);
    u8 starts = CLUSTER_PASSING_STARTS;
    (void)atomic_compare_exchange_strong(&cluster->passing, &starts, CLUSTER_PASSING_NOTHING);
}

static status
taken_out(struct cluster *cluster)
{
    snprintf(cluster->reason, sizeof(cluster->reason),
             "this node was taken out of the cluster; start it with an empty directory to join "
             "again");
    return ST_DENIED;
}

/* Who has left as it was asked to hears so, and is stopped by whoever asked. Whoever takes itself
 * for a member, and was taken out meanwhile (while it joined; as dead, while nobody reached it),
 * would go on with what the others do not keep up to date any more. */
static void
stop_if_taken_out(struct cluster_shard *shard)
{
    struct cluster *cluster = shard->cluster;
    const struct topology_member *self =
        shard->topology == NULL ? NULL : topology_member(shard->topology, cluster_member(cluster));
    bool out = (shard->topology != NULL && self == NULL) || peers_taken_out(shard->peers);
    if (!out || shard->is_out) return;
    shard->is_out = true;
    if (shard->leaves) {
        log_info("cluster", "this node has left the cluster: it can be stopped");
        return;
    }
    (void)!ok(taken_out(cluster));
    atomic_store(&cluster->taken_out, true);
    io_stop();
}

static void
tick_fired(struct io_timer *timer)
{
    struct cluster_shard *shard = CONTAINER_OF(timer, struct cluster_shard, tick);
    u64 now = io_now_ns();
    note_epoch(shard);
    doubt_the_dead(shard);
    note_stamping(shard);
    if (shard->addresses_lacked) follow_addresses(shard, NULL);
    atomic_store(&shard->cluster->shard_ahead_ms[shard->index],
                 replicator_ahead_ms(shard->replicator, io_wall_ms()));
    u64 bit = (u64)1 << shard->index;
    if (lsm_is_stuck(shard->lsm))
        atomic_fetch_or(&shard->cluster->shards_stuck, bit);
    else if ((atomic_load(&shard->cluster->shards_stuck) & bit) != 0)
        atomic_fetch_and(&shard->cluster->shards_stuck, ~bit);
    if (shard->index == 0) {
        stop_if_outdated(shard);
        stop_if_rolled_back(shard);
        stop_if_taken_out(shard);
        send_topologies(shard->cluster);
        if (shard->pings_lacked) cluster_pings_follow(shard);
        cluster_pings_send(shard);
    }
    io_timer_arm(timer, now + CLUSTER_PING_MS * NS_PER_MS);
}

MAY_YIELD static status
open_peers(struct cluster_shard *shard, char reason[TOPOLOGY_REASON_BYTES])
{
    const struct cluster_options *options = &shard->cluster->options;
    struct peers_options peers = {
        .listen = {.port = options->peer_port, .shard_count = options->shard_count},
        .self = shard->cluster->identity,
        .admit = admit,
        .arg = shard,
        .budget = &shard->budget,
    };
    memcpy(peers.secret, options->secret, sizeof(peers.secret));
    memcpy(peers.listen.host, options->host, sizeof(peers.listen.host));
    status st = peers_open(&peers, &shard->peers);
    if (!ok(st))
        snprintf(reason, TOPOLOGY_REASON_BYTES, "cannot listen on %s:%u for peers: %s",
                 options->host, options->peer_port + shard->index, io_listen_why(st));
    return st;
}

static bool
alive_for_replicator(void *arg, u32 member)
{
    return cluster_alive(arg, member);
}

static void
waits_for(void *arg, u32 member)
{
    cluster_waits_for(arg, member);
}

static bool
clock_is_ahead(void *arg)
{
    const struct cluster *cluster = arg;
    return atomic_load(&cluster->clock_ahead_ms) != 0;
}

MAY_YIELD static status
open_replicator(struct cluster_shard *shard)
{
    const struct hints_options hints = {
        .lsm = shard->lsm,
        .peers = shard->peers,
        .budget = &shard->budget,
        .shard = shard->index,
        .alive = alive_for_replicator,
        .arg = shard->cluster,
        .disk_bytes_max = shard->cluster->options.hints_disk_bytes,
    };
    status st = hints_open(&hints, &shard->hints);
    if (!ok(st)) return st;
    const struct replicator_options options = {
        .lsm = shard->lsm,
        .peers = shard->peers,
        .budget = &shard->budget,
        .shard = shard->index,
        .alive = alive_for_replicator,
        .waits_for = waits_for,
        .clock_is_ahead = clock_is_ahead,
        .arg = shard->cluster,
        .hints = shard->hints,
    };
    st = replicator_open(&options, &shard->replicator);
    if (ok(st)) st = trees_open(shard);
    if (ok(st)) cluster_streams_open(shard);
    return st;
}

static struct cluster_shard *
shard_new(struct cluster *cluster, struct lsm *lsm)
{
    struct cluster_shard *shard = mem_alloc_zero(io_budget(), sizeof(*shard));
    if (shard == NULL) return NULL;
    shard->cluster = cluster;
    shard->index = io_shard_index();
    shard->lsm = lsm;
    u64 bytes = MAX(io_budget()->limit_bytes / SHARE_BUDGET, BUDGET_MIN);
    budget_init(&shard->budget, "cluster", bytes, io_budget());
    retry_init(&shard->retries);
    liveness_init(&shard->liveness, &shard->budget, io_now_ns());
    io_timer_init(&shard->tick, tick_fired);
    fiber_queue_init(&shard->ended);
    fiber_queue_init(&shard->changed);
    return shard;
}

static void
shard_free(struct cluster_shard *shard)
{
    topology_release(shard->topology);
    liveness_deinit(&shard->liveness);
    cluster_fetched_free(shard);
    mem_free(io_budget(), shard, sizeof(*shard));
}

void
cluster_describe(const struct cluster_options *options, struct topology_member *out)
{
    out->client_port = options->client_port;
    out->peer_port = options->peer_port;
    out->shard_count = options->shard_count;
    snprintf(out->host, sizeof(out->host), "%s", options->host);
    snprintf(out->rack, sizeof(out->rack), "%s", options->rack);
}

static void
self_describe(const struct cluster_options *options, u64 incarnation, struct topology_member *out)
{
    *out = (struct topology_member){.weight = options->weight, .incarnation = incarnation};
    memcpy(out->node_id, options->node_id, sizeof(out->node_id));
    memcpy(out->datacenter, options->datacenter, sizeof(out->datacenter));
    cluster_describe(options, out);
}

MAY_YIELD static status
found(struct cluster_shard *shard)
{
    const struct cluster_options *options = &shard->cluster->options;
    struct topology_command command = {
        .kind = TOPOLOGY_FOUND,
        .partition_count = options->partition_count,
        .replicas = options->replicas,
        .options = {.replicas = (u8)options->replicas,
                    .write_quorum = (u8)options->write_quorum,
                    .read_quorum = (u8)options->read_quorum},
    };
    self_describe(options, group0_incarnation(shard->group0), &command.member);
    command.cluster_id = io_entropy_id(0);
    status st = group0_found(shard->group0, &command);
    if (ok(st)) log_info("cluster", "founded node_id=%s", options->node_id);
    return st;
}

/* Until it is in, or the node stops: the seeds may start after us. */
MAY_YIELD static status
join(struct cluster_shard *shard)
{
    const struct cluster_options *options = &shard->cluster->options;
    char last[TOPOLOGY_REASON_BYTES] = "";
    struct topology_member self;
    self_describe(options, group0_incarnation(shard->group0), &self);
    self.replaces = options->member_replaced;
    for (;;) {
        char *reason = shard->cluster->reason;
        status st = group0_join(shard->group0, &self, options->seeds, options->seed_count,
                                io_now_ns() + JOIN_NS, reason);
        if (ok(st)) break;
        if (io_stopping()) return ST_CANCELED; /* whatever has failed: nobody waits for it */
        if (group0_is_outdated(shard->group0)) {
            snprintf(reason, sizeof(shard->cluster->reason), "%s", UPGRADE);
            return ST_UNSUPPORTED;
        }
        if (group0_is_rolled_back(shard->group0)) return rolled_back(shard->cluster);
        /* ST_CONFLICT: it was taken in, and taken out before it heard of it. */
        if (status_is(st, ST_CONFLICT) || peers_taken_out(shard->peers))
            return taken_out(shard->cluster);
        if (status_is(st, ST_INVALID) || status_is(st, ST_DENIED)) return st;
        /* It asks nobody any more; whoever supervises the process starts it again. */
        if (status_is(st, ST_CLOSED)) return st;
        if (strcmp(last, reason) != 0)
            log_warning("cluster", "not in the cluster yet: %s (%s)", status_text(st), reason);
        memcpy(last, reason, sizeof(last));
        fiber_sleep_ns(JOIN_PAUSE_NS);
        if (io_stopping()) return ST_CANCELED;
    }
    log_info("cluster", "joined node_id=%s member=%u", options->node_id,
             group0_member(shard->group0));
    return ST_OK;
}

MAY_YIELD static status
enter(struct cluster_shard *shard, bool empty)
{
    struct cluster *cluster = shard->cluster;
    struct group0_options options = {
        .lsm = shard->lsm,
        .peers = shard->peers,
        .budget = &shard->budget,
        .changed = changed,
        .alive = cluster_is_alive,
        .epoch_of = cluster_epoch_of,
        .keeps = cluster_keeps,
        .stuck = cluster_is_stuck,
        .knows_plan = cluster_knows_plan,
        .arg = shard,
        .address = {.port = cluster->options.peer_port,
                    .shard_count = cluster->options.shard_count},
        .seeds = cluster->options.seeds,
        .seed_count = cluster->options.seed_count,
    };
    memcpy(options.address.host, cluster->options.host, sizeof(options.address.host));
    status st = group0_open(&options, &shard->group0);
    if (status_is(st, ST_DENIED)) return rolled_back(cluster);
    if (status_is(st, ST_NOT_FOUND)) return taken_out(cluster);
    if (!ok(st)) {
        snprintf(cluster->reason, sizeof(cluster->reason), "the record of the cluster: %s",
                 status_is(st, ST_UNSUPPORTED) ? UPGRADE
                 : status_is(st, ST_CORRUPT)   ? "damaged; " WIPE_IT
                                               : status_text(st));
        return st;
    }
    if (group0_member(shard->group0) == 0) {
        /* The record without this node: it has left, or others have removed it. */
        if (!empty && group0_topology(shard->group0) != NULL) return taken_out(cluster);
        if (!empty) {
            snprintf(cluster->reason, sizeof(cluster->reason),
                     "this directory holds data of a node by itself; a node of a cluster begins "
                     "with an empty one");
            return ST_INVALID;
        }
        st = cluster->options.seed_count == 0 ? found(shard) : join(shard);
        if (!ok(st)) return st;
    }
    struct topology *topology = group0_topology(shard->group0);
    u32 self = group0_member(shard->group0);
    const struct topology_member *member =
        topology == NULL ? NULL : topology_member(topology, self);
    if (topology == NULL) {
        snprintf(cluster->reason, sizeof(cluster->reason),
                 "the record of the cluster is empty; " WIPE_IT);
        return ST_CORRUPT;
    }
    if (member == NULL) return taken_out(cluster);
    if (strcmp(member->datacenter, cluster->options.datacenter) != 0)
        log_warning(
            "cluster",
            "a member stays in its data center, whatever it is started with; to move, remove "
            "it, and let it join again with an empty directory datacenter=%s asked=%s",
            member->datacenter, cluster->options.datacenter);
    cluster->identity.cluster_id = topology->cluster_id;
    cluster->identity.member = self;
    cluster->identity.incarnation = member->incarnation;
    peers_identity_set(shard->peers, &cluster->identity);
    atomic_store(&cluster->alive[self % CLUSTER_ALIVE_SLOTS], CLUSTER_IS_ALIVE);
    bool proving = group0_is_proving(shard->group0);
    atomic_store(&cluster->proving, proving);
    atomic_store(&cluster->member, self);
    if (proving) return ST_OK; /* `changed` brings it */
    topology_hold(topology);
    adopt(shard, topology);
    return ST_OK;
}

/* Topologies on their way to other shards, and the memory that they are in: it is the cluster's.
 * Behind group0, which sends more as long as it is open. */
static MAY_YIELD void
await_mails(const struct cluster *cluster)
{
    for (u32 i = 1; i < cluster->options.shard_count; i++)
        while (cluster->mails[i].away)
            fiber_sleep_ns(LOOK_NS);
}

static MAY_YIELD void
undo_start(struct cluster_shard *shard)
{
    trees_close(shard);
    if (shard->group0 != NULL) group0_close(shard->group0);
    if (shard->index == 0) await_mails(shard->cluster);
    if (shard->replicator != NULL) replicator_close(shard->replicator);
    hints_close(shard->hints);
    if (shard->peers != NULL) peers_close(shard->peers);
}

MAY_YIELD status
cluster_start(struct cluster *cluster, struct lsm *lsm, bool empty, struct cluster_shard **out)
{
    struct cluster_shard *shard = shard_new(cluster, lsm);
    if (shard == NULL) {
        atomic_store(&cluster->failed, true);
        return ST_NO_MEMORY;
    }
    memcpy(cluster->identity.node_id, cluster->options.node_id, sizeof(cluster->identity.node_id));
    status st = open_peers(shard, cluster->reason);
    if (ok(st)) {
        cluster->shards[0] = shard;
        st = open_replicator(shard);
    }
    if (ok(st)) st = enter(shard, empty);
    if (ok(st)) {
        shard->steward_runs = true;
        st = fiber_spawn(FIBER_BACKGROUND, "cluster steward", cluster_steward, shard);
        if (!ok(st)) shard->steward_runs = false;
    }
    if (!ok(st)) {
        cluster->shards[0] = NULL;
        atomic_store(&cluster->refusing, true);
        undo_start(shard);
        shard_free(shard);
        atomic_store(&cluster->member, 0);
        atomic_store(&cluster->failed, true);
        return st;
    }
    io_timer_arm(&shard->tick, io_now_ns());
    *out = shard;
    return ST_OK;
}

MAY_YIELD status
cluster_shard_open(struct cluster *cluster, struct lsm *lsm, struct cluster_shard **out,
                   char reason[TOPOLOGY_REASON_BYTES])
{
    reason[0] = '\0';
    /* A control path that runs once: looking now and then is plainer than one more mail. */
    while (atomic_load(&cluster->member) == 0) { /* before it the rest was written */
        if (atomic_load(&cluster->failed) || io_stopping()) return ST_CANCELED;
        fiber_sleep_ns(LOOK_NS);
    }
    struct cluster_shard *shard = shard_new(cluster, lsm);
    if (shard == NULL) return ST_NO_MEMORY;
    status st = open_peers(shard, reason);
    if (ok(st)) st = open_replicator(shard);
    if (!ok(st)) {
        undo_start(shard);
        shard_free(shard);
        return st;
    }
    atomic_fetch_add(&cluster->open_shards, 1);
    cluster->shards[shard->index] = shard; /* the next tick of shard 0 brings the topology */
    while (shard->topology == NULL && !atomic_load(&cluster->proving) && !io_stopping())
        fiber_sleep_ns(LOOK_NS);
    io_timer_arm(&shard->tick, io_now_ns());
    *out = shard;
    return ST_OK;
}

MAY_YIELD void
cluster_shard_close(struct cluster_shard *shard)
{
    struct cluster *cluster = shard->cluster;
    atomic_store(&cluster->refusing, true);
    io_timer_cancel(&shard->tick);
    while (shard->mends)
        (void)!ok(fiber_queue_wait(&shard->ended, io_now_ns() + LOOK_NS));
    trees_close(shard);
    if (shard->index == 0) {
        /* The others' topologies come from here, and group0 ends with its peers. */
        while (atomic_load(&cluster->open_shards) != 0)
            fiber_sleep_ns(LOOK_NS);
        cluster_pings_close(shard);
        fiber_queue_wake_all(&shard->changed);
        while (shard->steward_runs || shard->fetch_runs || shard->drain_runs || shard->mend_runs)
            (void)!ok(fiber_queue_wait(&shard->changed, io_now_ns() + LOOK_NS));
        group0_close(shard->group0);
        await_mails(cluster);
    }
    cluster_streams_close(shard);
    while (shard->streams != 0)
        (void)!ok(fiber_queue_wait(&shard->ended, io_now_ns() + LOOK_NS));
    bool first = shard->index == 0;
    cluster->shards[shard->index] = NULL;
    replicator_close(shard->replicator);
    hints_close(shard->hints);
    peers_close(shard->peers);
    shard_free(shard);
    if (!first) atomic_fetch_sub(&cluster->open_shards, 1);
}
