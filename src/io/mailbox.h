/* SPDX-License-Identifier: MIT
 *
 * mailbox.h -- messages between the shards of a node.
 *
 * A mail is memory of its sender that is lent to the target until it is sent back, so nothing is
 * copied or allocated: a request travels there, its deliver function runs as a callback on the
 * target, which answers by setting deliver and sending the same mail back to mail->source.
 *
 * Between every ordered pair of shards lies one bounded single-producer single-consumer ring. When
 * it is full the mail waits in the sender's outbox, in order; a sender's mails come from its own
 * bounded pools, so that is the back-pressure: nothing is lost, nothing grows, nothing locks.
 */
#ifndef DISTKV_IO_MAILBOX_H
#define DISTKV_IO_MAILBOX_H

#include "base/list.h"
#include "base/status.h"
#include "io/fiber.h"

struct io_mail {
    struct list link; /* in an outbox while the ring is full; private */
    u32 source;       /* set by io_mail_send: the shard that sent it last */
    void (*deliver)(struct io_mail *mail);
};

/* Delivers on the target in a later turn. Mails of one shard to another arrive in order. The mail
 * must stay in place until it is delivered. Sending to oneself is allowed. */
void io_mail_send(u32 target, struct io_mail *mail);

/* Runs fn(arg) on a fiber of the target and waits until it has returned: for control paths. */
MAY_YIELD status io_shard_call(u32 target, enum fiber_class class, void (*fn)(void *arg),
                               void *arg);

#endif
