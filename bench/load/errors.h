/* SPDX-License-Identifier: MIT
 *
 * errors.h -- counts by name: of errors, and of reads that are wrong, with an example of each.
 */
#ifndef DISTKV_BENCH_ERRORS_H
#define DISTKV_BENCH_ERRORS_H

#include "base/types.h"

#define ERROR_KINDS_MAX 24u /* what comes after counts as "other" */
#define ERROR_NAME_MAX  32u
#define ERROR_TEXT_MAX  120u

struct error_count {
    u64 count;
    char name[ERROR_NAME_MAX];
    char text[ERROR_TEXT_MAX]; /* the first one's */
};

struct errors {
    u64 total;
    u32 kinds;
    struct error_count kind[ERROR_KINDS_MAX];
};

/* Bytes that are no printable ASCII are shown as dots. */
void errors_add(struct errors *errors, u64 count, struct bytes name, struct bytes text);
void errors_merge(struct errors *target, const struct errors *source);

#endif
