/* SPDX-License-Identifier: MIT
 *
 * engine_forge.h -- changes a file of a store and makes its checksums right again: what a wrong
 * writer would have written. Nobody can tell that it is not the truth, so it may be refused or
 * believed; but nothing may be asserted on it, overrun or leaked.
 */
#ifndef DISTKV_TESTS_SIM_ENGINE_FORGE_H
#define DISTKV_TESTS_SIM_ENGINE_FORGE_H

#include "base/prng.h"
#include "base/status.h"

/* On a fiber. A table, a blob file, a segment of a log, a manifest or NODE; others are left alone.
 */
status forge(const char *path, struct prng *prng);

#endif
