/* SPDX-License-Identifier: MIT
 *
 * utf8.h -- bytes that others chose, such as names of files, as text for JSON.
 */
#ifndef DISTKV_BASE_UTF8_H
#define DISTKV_BASE_UTF8_H

#include "base/types.h"

/* The length of the UTF-8 sequence at p, or 0: overlong forms, surrogates and code points above
 * U+10FFFF are not UTF-8 (RFC 3629). left: at least 1. */
size_t utf8_sequence(const u8 *p, size_t left);
/* The text with \xHH in place of each byte that is no UTF-8; what does not fit is left out. */
void utf8_escape(const char *text, char *out, size_t size);

#endif
