/* SPDX-License-Identifier: MIT
 *
 * compare.h -- two results side by side.
 */
#ifndef DISTKV_BENCH_COMPARE_H
#define DISTKV_BENCH_COMPARE_H

#include <jansson.h>
#include <stdio.h>

#include "base/types.h"

/* False: error says what is wrong with one of them. */
MUST_CHECK bool compare_print(const json_t *before, const json_t *after, FILE *out, char *error,
                              size_t error_size);
MUST_CHECK bool compare_files(const char *before, const char *after, FILE *out, char *error,
                              size_t error_size);

#endif
