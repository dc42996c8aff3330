/* SPDX-License-Identifier: MIT
 *
 * damage.h -- what damage beyond the promise may cost, in `beyond`, by the records that the
 * simulated disk keeps of it.
 *
 * Nothing damaged may be served, so what is answered is judged as in every other mode, with two
 * exceptions, both only for what was damaged:
 *
 *   refused   a key may be refused while a file of its store is damaged; to the auditor, which only
 *             reads, while a table or blob file is that holds its token
 *   lost      the end of a log that is damaged cannot always be told from one that a power cut
 *             interrupted (docs/data-files.md); so where a log is damaged when a process ends, its
 *             store's keys may go back to what they held when the damaged write was made, or, where
 *             a place written at another time was spoiled, or by a recovery, to anything that they
 *             held in any life of the run
 */
#ifndef DISTKV_TESTS_SIM_RUN_DAMAGE_H
#define DISTKV_TESTS_SIM_RUN_DAMAGE_H

#include "run.h"

void damage_init(void);
/* A process begins to recover; it is ready. What it writes meanwhile is what others wrote. */
void damage_recovery_begin(void);
void damage_recovery_end(void);
/* Remembers the logs that are damaged now (in a recovery: that were, since it began), until what
 * they may cost was judged. */
void damage_note(void);
void damage_forget(void);
/* Whether what was acknowledged for the token may be lost, and back to when. */
bool damage_may_lose(u64 token, u64 *since_ns);
/* Whether there was any; whether any file, one of the token's store, or one that a read of the key
 * looks into, is. */
bool damage_ever(void);
bool damage_anywhere(void);
bool damage_in_store(u64 token);
bool damage_in_reach(u16 keyspace, u64 token);
/* Whether verification is right to complain of that file: it, or its log, is damaged. */
bool damage_in_file(const char *path);

#endif
