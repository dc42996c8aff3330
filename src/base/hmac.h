/* SPDX-License-Identifier: MIT
 *
 * hmac.h -- HMAC-SHA256 (RFC 2104, FIPS 180-4), and a comparison that takes as long for wrong bytes
 * as for right ones. The work is libsodium's: it has no global state and allocates nothing, so it
 * runs on a shard, and on the simulated link, as any other arithmetic.
 */
#ifndef DISTKV_BASE_HMAC_H
#define DISTKV_BASE_HMAC_H

#include "base/types.h"

#define HMAC_BYTES 32u

/* Over the parts, one behind the other. */
void hmac_sha256(struct bytes key, const struct bytes *parts, u32 part_count, u8 out[HMAC_BYTES]);
/* Whether they are the same, in a time that does not depend on where they differ. */
MUST_CHECK bool hmac_equal(const u8 a[HMAC_BYTES], const u8 b[HMAC_BYTES]);
/* Overwrites what must not stay in memory; not left out by the compiler. */
void hmac_forget(void *secret, size_t size);

#endif
