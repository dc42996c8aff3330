/* SPDX-License-Identifier: MIT
 *
 * mailbox.c -- the half of mailboxes that needs no thread: order, outboxes, calls. How a mail
 * crosses from one shard to another is the backend's (backend_mail_push).
 */
#include "io/core.h"

#include "base/fault.h"

void
core_mails_init(struct io_shard *shard)
{
    list_init(&shard->mails_self);
    for (u32 i = 0; i < LIMIT_SHARDS; i++)
        list_init(&shard->outboxes[i]);
    shard->outbox_mails = 0;
}

void
io_mail_send(u32 target, struct io_mail *mail)
{
    struct io_shard *shard = io_current;
    CHECK(target < shard->count);
    CHECK(mail->deliver != NULL);
    mail->source = shard->index;
    shard->stats.mails_sent++;
    if (target == shard->index) {
        list_push_back(&shard->mails_self, &mail->link);
        return;
    }
    /* Behind those that already wait: mails arrive in order. */
    if (list_empty(&shard->outboxes[target]) && backend_mail_push(shard, target, mail)) return;
    MARK("io.mailbox.outbox_used");
    list_push_back(&shard->outboxes[target], &mail->link);
    shard->outbox_mails++;
}

void
core_deliver(struct io_shard *shard, struct io_mail *mail)
{
    shard->stats.mails_received++;
    shard->turn_had_foreground = true;
    mail->deliver(mail);
}

u32
core_run_mails(struct io_shard *shard)
{
    u32 count = 0;
    if (!list_empty(&shard->mails_self)) {
        struct list batch; /* what a delivery sends to itself comes in the next turn */
        list_init(&batch);
        list_splice_back(&batch, &shard->mails_self);
        struct list *link;
        while ((link = list_pop_front(&batch)) != NULL) {
            core_deliver(shard, list_entry(link, struct io_mail, link));
            count++;
        }
    }
    for (u32 target = 0; shard->outbox_mails > 0 && target < shard->count; target++) {
        struct list *outbox = &shard->outboxes[target];
        struct list *link;
        while ((link = list_pop_front(outbox)) != NULL) {
            if (!backend_mail_push(shard, target, list_entry(link, struct io_mail, link))) {
                MARK("io.mailbox.outbox_stays");
                list_push_front(outbox, link);
                break;
            }
            shard->outbox_mails--;
            count++;
        }
    }
    return count;
}

/* ---- calls ---- */

/* On the caller's stack, who waits until it is back. */
struct shard_call {
    struct io_mail mail;
    void (*fn)(void *arg);
    void *arg;
    enum fiber_class class;
    status result;
    bool returned;
    struct fiber_queue queue;
};

static void
shard_call_return(struct io_mail *mail)
{
    struct shard_call *call = CONTAINER_OF(mail, struct shard_call, mail);
    call->returned = true;
    fiber_queue_wake_one(&call->queue);
}

static void
shard_call_send_back(struct shard_call *call, status result)
{
    call->result = result;
    call->mail.deliver = shard_call_return;
    io_mail_send(call->mail.source, &call->mail);
}

static void
shard_call_fiber(void *arg)
{
    struct shard_call *call = arg;
    call->fn(call->arg);
    shard_call_send_back(call, ST_OK);
}

static void
shard_call_arrive(struct io_mail *mail)
{
    struct shard_call *call = CONTAINER_OF(mail, struct shard_call, mail);
    status st = fiber_spawn(call->class, "shard call", shard_call_fiber, call);
    if (!ok(st)) {
        MARK("io.mailbox.call_refused");
        shard_call_send_back(call, st);
    }
}

MAY_YIELD status
io_shard_call(u32 target, enum fiber_class class, void (*fn)(void *arg), void *arg)
{
    struct shard_call call = {
        .mail.deliver = shard_call_arrive, .fn = fn, .arg = arg, .class = class};
    fiber_queue_init(&call.queue);
    list_init(&call.mail.link);
    io_mail_send(target, &call.mail);
    while (!call.returned)
        (void)fiber_queue_wait(&call.queue, FIBER_FOREVER);
    return call.result;
}
