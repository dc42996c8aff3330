/* SPDX-License-Identifier: MIT
 *
 * glob.h -- the patterns of KEYS, SCAN MATCH and CONFIG GET: * ? [abc] [^a-z] \x, on bytes.
 */
#ifndef DISTKV_SERVER_GLOB_H
#define DISTKV_SERVER_GLOB_H

#include "base/types.h"

bool glob_match(struct bytes pattern, struct bytes text, bool ignore_case);
/* True when only one text can match: it is then the pattern itself. */
bool glob_is_literal(struct bytes pattern);

#endif
