/* SPDX-License-Identifier: MIT
 *
 * number.h -- numbers in commands and values, read and written exactly as Redis does.
 */
#ifndef DISTKV_SERVER_NUMBER_H
#define DISTKV_SERVER_NUMBER_H

#include "base/types.h"

/* Only the one canonical way to write an i64: no space, no '+', no leading zero. */
MUST_CHECK bool number_parse_i64(struct bytes text, i64 *out);
/* Digits only. */
MUST_CHECK bool number_parse_u64(struct bytes text, u64 *out);
/* A cursor as strtoul reads it for Redis: after a sign, up to a zero byte, and nothing at all is
 * 0. */
MUST_CHECK bool number_parse_cursor(struct bytes text, u64 *out);
/* Writes at most 21 bytes; returns how many. */
size_t number_format_i64(i64 value, char *out);

MUST_CHECK bool number_parse_float(struct bytes text, long double *out);
/* 17 digits behind the point without trailing zeros; out holds NUMBER_FLOAT_BYTES. */
#define NUMBER_FLOAT_BYTES 5120u
size_t number_format_float(long double value, char *out);

bool text_is(struct bytes text, const char *word); /* ignores case */

#endif
