/* SPDX-License-Identifier: MIT
 *
 * bench_mailbox.c -- question: what does it cost a request to be run by another core? Two shards,
 * each on a core of its own, which poll and never sleep here.
 *
 *   round.N    a mail that goes there and comes back, N of them under way: per round
 *   self       a mail to the own shard, 32 under way: what delivery costs without another core
 *   call       io_shard_call: a mail that starts a fiber there, and another back
 *   lines      the bound of round.1: two threads that hand a cache line to each other, per round
 *
 * round.1 is that and half a turn of each loop, which looks at the kernel's ring as well. With many
 * under way one look fetches all that has come; a round is then the work of both cores on it, about
 * which the line says nothing.
 *
 * With fewer than two cores nothing but self is measured: there, taking turns is what costs.
 *
 *     bench_mailbox [--only TEXT] [--rounds N] [--round-us N] [--small] [--format json]
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "io/io.h"
#include "io/mailbox.h"
#include "micro.h"

#define MAILS_MAX  256u
#define LINE_BYTES 64u
#define OTHER      1u

struct rounds {
    u32 under_way_max; /* how many mails */
    u32 target;
    u32 under_way;
    u64 left; /* to be sent */
    struct fiber_queue done;
    struct travelling {
        struct io_mail mail;
        struct rounds *rounds;
    } ALIGNED(LINE_BYTES) mails[MAILS_MAX];
};

static void mail_there(struct io_mail *mail);

/* At home again: it leaves once more. */
static void
mail_back(struct io_mail *mail)
{
    struct rounds *rounds = CONTAINER_OF(mail, struct travelling, mail)->rounds;
    if (rounds->left > 0) {
        rounds->left--;
        mail->deliver = mail_there;
        io_mail_send(rounds->target, mail);
    } else if (--rounds->under_way == 0) {
        fiber_queue_wake_one(&rounds->done);
    }
}

static void
mail_there(struct io_mail *mail)
{
    mail->deliver = mail_back;
    io_mail_send(mail->source, mail);
}

MAY_YIELD static void
rounds_run(void *arg, u64 count)
{
    struct rounds *rounds = arg;
    rounds->left = count - rounds->under_way_max;
    rounds->under_way = rounds->under_way_max;
    for (u32 i = 0; i < rounds->under_way_max; i++) {
        struct travelling *travelling = &rounds->mails[i];
        travelling->rounds = rounds;
        travelling->mail.deliver = mail_there;
        io_mail_send(rounds->target, &travelling->mail);
    }
    while (rounds->under_way > 0)
        (void)fiber_queue_wait(&rounds->done, FIBER_FOREVER);
}

MAY_YIELD static void
measure_rounds(const char *name, u32 target, u32 under_way)
{
    static struct rounds rounds;
    rounds = (struct rounds){.under_way_max = under_way, .target = target};
    fiber_queue_init(&rounds.done);
    micro_measure(&(struct micro_case){
        .name = name, .run = rounds_run, .arg = &rounds, .count_unit = under_way});
}

static void
called(void *arg)
{
    ++*(u64 *)arg;
}

MAY_YIELD static void
call_run(void *arg, u64 count)
{
    u64 calls = 0;
    for (u64 i = 0; i < count; i++)
        micro_must(io_shard_call(OTHER, FIBER_FOREGROUND, called, &calls), "call");
    MICRO_CHECK(calls == count);
}

/* ---- a line alone ---- */

/* Odd: the other thread's turn. */
static struct {
    _Atomic u64 turn ALIGNED(LINE_BYTES);
    _Atomic bool ending ALIGNED(LINE_BYTES);
} line;

static void *
line_other(void *arg)
{
    micro_pin(OTHER);
    while (!atomic_load_explicit(&line.ending, memory_order_relaxed)) {
        u64 turn = atomic_load_explicit(&line.turn, memory_order_acquire);
        if (turn % 2 == 1) atomic_store_explicit(&line.turn, turn + 1, memory_order_release);
    }
    return NULL;
}

static void
line_run(void *arg, u64 count)
{
    for (u64 i = 0; i < count; i++) {
        u64 turn = atomic_load_explicit(&line.turn, memory_order_relaxed) + 1;
        atomic_store_explicit(&line.turn, turn, memory_order_release);
        while (atomic_load_explicit(&line.turn, memory_order_acquire) == turn)
            continue;
    }
}

static void
measure_line(void)
{
    pthread_t other;
    MICRO_CHECK(pthread_create(&other, NULL, line_other, NULL) == 0);
    micro_pin(0);
    micro_measure(&(struct micro_case){.name = "lines", .run = line_run});
    atomic_store(&line.ending, true);
    pthread_join(other, NULL);
}

MAY_YIELD static void
measure_self(void)
{
    measure_rounds("self", 0, 32);
}

MAY_YIELD static void
measure_two(void)
{
    measure_rounds("round.1", OTHER, 1);
    measure_rounds("round.32", OTHER, 32);
    measure_rounds("round.256", OTHER, 256);
    micro_measure(&(struct micro_case){.name = "call", .run = call_run});
}

int
main(int argc, char **argv)
{
    micro_begin(argc, argv);
    micro_on_shard(1, measure_self);
    if (micro_cores_suffice(2)) {
        micro_on_shard(2, measure_two);
        measure_line();
    }
    return micro_end();
}
