/* SPDX-License-Identifier: MIT
 *
 * marks.h -- what a sweep of many seeds has passed, of all MARK and BUGGIFY sites of the program.
 *
 * A mark that no seed of a sweep has passed is a hole in the sweep, unless a line of marks.txt says
 * why it cannot be reached and which test covers it:
 *
 *     NAME  SWEEP  REASON (TEST)
 *
 * SWEEP engine: not by test_engine, but by distkv-sim; all: by neither; seldom: test_engine passes
 * it in some thousands of seeds and not in others. A line for a mark that was passed is wrong as
 * well, unless it says seldom. tools/tidy sees to it that names and tests are there.
 */
#ifndef DISTKV_TESTS_SIM_MARKS_H
#define DISTKV_TESTS_SIM_MARKS_H

#include "base/types.h"

/* Adds what was passed since sim_new; before sim_free. */
void marks_collect(void);
/* Every site with its count, to stdout; never_only: those that are 0. */
void marks_print(bool never_only);
/* Complaints on stderr, and how many; after test_engine's sweep. */
u32 marks_check(const char *path);
u64 marks_passed(const char *name);

#endif
