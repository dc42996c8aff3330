/* SPDX-License-Identifier: MIT
 *
 * cut.c -- see cut.h. Who touches what: a cut is its home's until it is sent, then shard 0's, and
 * during a round every shard reads the list of the round and writes its own places in each cut;
 * mails come and go between these, so nothing is shared at any moment.
 */
#include "server/cut.h"

#include "base/fault.h"

/* From shard 0 to one shard and back, twice a round. */
struct errand {
    struct io_mail mail;
    struct cuts *from; /* shard 0's */
    bool lapsed;       /* the shard no longer held its writes */
};

struct cuts {
    struct shard *shard;
    /* every shard's */
    bool holds;
    struct io_timer lapse; /* C2 */
    /* shard 0's */
    struct list waiting; /* struct cut.link */
    struct list round;   /* of the round under way */
    bool running;
    bool lapsed; /* the round has failed */
    u32 away;    /* errands that are not back */
    u64 begun_ns;
    u64 rest_until_ns; /* C3 */
    struct io_timer rest;
    struct errand errands[LIMIT_SHARDS];
};

/* ---- on every shard ---- */

static void
hold_end(struct cuts *cuts)
{
    io_timer_cancel(&cuts->lapse);
    cuts->holds = false;
    lsm_writes_release(cuts->shard->lsm);
}

static void
hold_lapses(struct io_timer *timer)
{
    MARK("server.cut.lapsed");
    hold_end(CONTAINER_OF(timer, struct cuts, lapse));
}

static void deliver_held(struct io_mail *mail);
static void deliver_taken(struct io_mail *mail);

static void
deliver_hold(struct io_mail *mail)
{
    struct cuts *cuts = shard_self()->cuts;
    CHECK(!cuts->holds);
    cuts->holds = true;
    lsm_writes_hold(cuts->shard->lsm);
    io_timer_arm(&cuts->lapse, io_now_ns() + CUT_HOLD_NS_MAX);
    mail->deliver = deliver_held;
    io_mail_send(mail->source, mail);
}

static void
deliver_take(struct io_mail *mail)
{
    struct errand *errand = CONTAINER_OF(mail, struct errand, mail);
    struct shard *shard = shard_self();
    errand->lapsed = !shard->cuts->holds; /* C1 */
    if (!errand->lapsed) {
        list_for_each (node, &errand->from->round) {
            struct cut *cut = list_entry(node, struct cut, link);
            struct lsm_snapshot *snapshot = lsm_snapshot_open(shard->lsm);
            cut->snapshots[shard->index] = snapshot;
            cut->of_shard[shard->index] = snapshot == NULL ? ST_NO_MEMORY : ST_OK;
        }
        hold_end(shard->cuts);
    }
    mail->deliver = deliver_taken;
    io_mail_send(mail->source, mail);
}

/* ---- rounds, on shard 0 ---- */

static void
errands_send(struct cuts *cuts, void (*deliver)(struct io_mail *mail))
{
    u32 count = cuts->shard->server->shard_count;
    cuts->away = count;
    for (u32 i = 0; i < count; i++) {
        cuts->errands[i].from = cuts;
        cuts->errands[i].mail.deliver = deliver;
        io_mail_send(i, &cuts->errands[i].mail);
    }
}

static void
round_begin(struct cuts *cuts)
{
    if (cuts->running || list_empty(&cuts->waiting)) return;
    if (cuts->rest_until_ns > io_clock_ns()) {
        io_timer_arm(&cuts->rest, cuts->rest_until_ns);
        return;
    }
    struct list *node;
    for (u32 i = 0; i < CUT_ROUND_MAX && (node = list_pop_front(&cuts->waiting)) != NULL; i++) {
        if (i == 1) MARK("server.cut.shared");
        list_push_back(&cuts->round, node);
    }
    cuts->running = true;
    cuts->lapsed = false;
    cuts->begun_ns = io_clock_ns();
    errands_send(cuts, deliver_hold);
}

static void
rest_is_over(struct io_timer *timer)
{
    round_begin(CONTAINER_OF(timer, struct cuts, rest));
}

static void
deliver_held(struct io_mail *mail)
{
    struct cuts *cuts = CONTAINER_OF(mail, struct errand, mail)->from;
    if (--cuts->away == 0) errands_send(cuts, deliver_take);
}

static void deliver_back(struct io_mail *mail);

static void
cut_finished(struct cuts *cuts, struct cut *cut)
{
    cut->st = cuts->lapsed ? ST_TIMED_OUT : ST_OK;
    for (u32 i = 0; i < cuts->shard->server->shard_count && ok(cut->st); i++)
        cut->st = cut->of_shard[i];
    cut->mail.deliver = deliver_back;
    io_mail_send(cut->home, &cut->mail);
}

static void
deliver_taken(struct io_mail *mail)
{
    struct errand *errand = CONTAINER_OF(mail, struct errand, mail);
    struct cuts *cuts = errand->from;
    if (errand->lapsed) cuts->lapsed = true;
    if (--cuts->away > 0) return;
    struct list *node;
    while ((node = list_pop_front(&cuts->round)) != NULL)
        cut_finished(cuts, list_entry(node, struct cut, link));
    u64 now = io_clock_ns();
    cuts->running = false;
    cuts->rest_until_ns = now + CUT_REST * (now - cuts->begun_ns);
    round_begin(cuts);
}

static void
deliver_wanted(struct io_mail *mail)
{
    struct cuts *cuts = shard_self()->cuts;
    list_push_back(&cuts->waiting, &CONTAINER_OF(mail, struct cut, mail)->link);
    round_begin(cuts);
}

/* ---- from shard to shard, one after the other ---- */

static void
walk_on(struct cut *cut)
{
    bool over = ++cut->at == shard_self()->server->shard_count;
    if (over) cut->mail.deliver = deliver_back;
    io_mail_send(over ? cut->home : cut->at, &cut->mail);
}

static void
is_durable(struct durable_wait *wait, bool failed)
{
    struct cut *cut = CONTAINER_OF(wait, struct cut, durable);
    if (failed) cut->st = ST_UNKNOWN_OUTCOME;
    walk_on(cut);
}

static void
deliver_wait_durable(struct io_mail *mail)
{
    struct cut *cut = CONTAINER_OF(mail, struct cut, mail);
    struct shard *shard = shard_self();
    u64 seq = lsm_snapshot_seq(cut->snapshots[shard->index]);
    if (durable_lost(shard, seq))
        cut->st = ST_UNKNOWN_OUTCOME;
    else if (durable_wait_start(shard, &cut->durable, seq))
        return;
    walk_on(cut);
}

static void
deliver_close(struct io_mail *mail)
{
    struct cut *cut = CONTAINER_OF(mail, struct cut, mail);
    u32 index = shard_self()->index;
    lsm_snapshot_close(cut->snapshots[index]);
    cut->snapshots[index] = NULL;
    walk_on(cut);
}

/* ---- at home ---- */

static void
deliver_back(struct io_mail *mail)
{
    struct cut *cut = CONTAINER_OF(mail, struct cut, mail);
    cut->back = true;
    fiber_queue_wake_all(&cut->queue);
}

/* Sends it off to shard 0 and waits until it is back. */
MAY_YIELD static void
travel(struct cut *cut, void (*deliver)(struct io_mail *mail))
{
    cut->back = false;
    cut->at = 0;
    cut->mail.deliver = deliver;
    io_mail_send(0, &cut->mail);
    while (!cut->back) {
        status st = fiber_queue_wait(&cut->queue, FIBER_FOREVER);
        CHECK(ok(st));
    }
}

MAY_YIELD status
cut_open(struct shard *shard, struct cut *cut)
{
    memset(cut, 0, sizeof(*cut));
    list_init(&cut->mail.link);
    list_init(&cut->link);
    list_init(&cut->durable.link);
    fiber_queue_init(&cut->queue);
    cut->durable.fn = is_durable;
    cut->home = shard->index;
    if (shard->server->shard_count == 1) {
        cut->snapshots[0] = lsm_snapshot_open(shard->lsm);
        if (cut->snapshots[0] == NULL) return ST_NO_MEMORY;
    } else {
        travel(cut, deliver_wanted);
        for (u32 tries = 1; status_is(cut->st, ST_TIMED_OUT) && tries < CUT_TRIES; tries++) {
            cut_close(cut);
            travel(cut, deliver_wanted);
        }
    }
    status st = cut->st;
    if (status_is(st, ST_TIMED_OUT)) {
        MARK("server.cut.refused");
        st = ST_OVERLOADED;
    }
    if (ok(st)) {
        /* What is sent to a client must not be taken back by a power cut. */
        travel(cut, deliver_wait_durable);
        st = cut->st;
    }
    if (!ok(st)) cut_close(cut);
    return st;
}

MAY_YIELD void
cut_close(struct cut *cut)
{
    travel(cut, deliver_close);
}

bool
cuts_init(struct shard *shard)
{
    struct cuts *cuts = mem_alloc_zero(io_budget(), sizeof(*cuts));
    if (cuts == NULL) return false;
    cuts->shard = shard;
    list_init(&cuts->waiting);
    list_init(&cuts->round);
    io_timer_init(&cuts->lapse, hold_lapses);
    io_timer_init(&cuts->rest, rest_is_over);
    shard->cuts = cuts;
    return true;
}

void
cuts_deinit(struct shard *shard)
{
    struct cuts *cuts = shard->cuts;
    if (cuts == NULL) return;
    CHECK(!cuts->holds && !cuts->running && list_empty(&cuts->waiting));
    mem_free(io_budget(), cuts, sizeof(*cuts));
    shard->cuts = NULL;
}
