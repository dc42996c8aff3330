/* SPDX-License-Identifier: MIT
 *
 * clock.h -- what the wall clock of the server's machine has shown, and when: what expires does so
 * by it, and it steps and drifts. Pure; times are those of the simulation.
 */
#ifndef DISTKV_TESTS_SIM_RUN_CLOCK_H
#define DISTKV_TESTS_SIM_RUN_CLOCK_H

#include "base/types.h"

/* From now on it shows wall_ns and runs fast by so many millionths. Times never fall. */
void clock_begin(u64 now_ns, u64 wall_ns);
void clock_change(u64 now_ns, u64 wall_ns, i32 ppm);
/* The least and the most that it showed between two moments, both included; a step at one of them
 * may have come before or after. */
u64 clock_least(u64 from_ns, u64 to_ns);
u64 clock_most(u64 from_ns, u64 to_ns);

#endif
