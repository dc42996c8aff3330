/* SPDX-License-Identifier: MIT
 *
 * prefix.h -- what a crash took is the end of a log: no write is missing that came surely before
 * one that is there.
 *
 * The model judges each object by itself, and where durability promises little, a crash may take an
 * object back to what it held a while ago. But the objects of one shard share a log, and its writes
 * are in the order in which they were done. So once a process recovers from a crash that may have
 * lost something, and before any client comes, a fiber of each shard reads every key, and of each
 * log of the process before:
 *
 *   survivor   a value of that process that is there; written no sooner than it was asked for
 *   missing    a write that was acknowledged before that, though what its key holds is surely older
 *
 * Sure is: of two operations the later was invoked after the earlier had returned. What has an
 * unknown outcome, runs at the same time, expires or moves between keys proves nothing, and what
 * cannot be read is left out. An end of which nothing survived may have lost all.
 *
 * prefix.c is pure; its own test is test_run_prefix.c. prefix_look.c reads the keys and applies it.
 */
#ifndef DISTKV_TESTS_SIM_RUN_PREFIX_H
#define DISTKV_TESTS_SIM_RUN_PREFIX_H

#include "model.h"

enum prefix_found { PREFIX_UNREAD, PREFIX_ABSENT, PREFIX_VALUE };

/* What a key of an object holds after the end of the process whose operations the object has. */
struct prefix_seen {
    enum prefix_found found;
    u32 value;
};

/* The position at which the write that the key shows was asked for at the earliest; 0: it was not
 * written by this process, or that is not sure. */
u64 prefix_survivor(const struct model_object *object, const struct prefix_seen *seen);
/* A write of key, acknowledged before that position, that is surely missing; NULL: none. expires:
 * values of the object may. */
const struct model_op *prefix_missing(const struct model_object *object, u32 key, bool expires,
                                      const struct prefix_seen *seen, u64 before);

/* ---- prefix_look.c ---- */

struct store_layout;

/* A process has ended that served clients, with these stores. */
void prefix_ended(const struct store_layout *layout);
/* A fiber of each shard. */
MAY_YIELD void prefix_look_main(void *arg);
/* The keys are to be read by the process that runs; whether each has been. */
void prefix_look_begin(void);
bool prefix_look_done(void);
/* There is no fiber for that shard: its keys stay unread. */
void prefix_look_skip(u32 shard);
/* Rule prefix, by what was read. */
void prefix_check(void);
void prefix_free(void);

#endif
