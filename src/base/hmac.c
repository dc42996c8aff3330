/* SPDX-License-Identifier: MIT
 *
 * hmac.c -- see hmac.h. sodium_init is not needed: it picks among implementations and opens the
 * source of randomness; SHA-256 has one implementation and needs no randomness.
 */
#include "base/hmac.h"

#include <sodium/crypto_auth_hmacsha256.h>
#include <sodium/utils.h>

static_assert(HMAC_BYTES == crypto_auth_hmacsha256_BYTES, "the same function");

void
hmac_sha256(struct bytes key, const struct bytes *parts, u32 part_count, u8 out[HMAC_BYTES])
{
    static const u8 none[1];
    crypto_auth_hmacsha256_state state;
    crypto_auth_hmacsha256_init(&state, key.size > 0 ? key.data : none, key.size);
    for (u32 i = 0; i < part_count; i++)
        if (parts[i].size > 0) crypto_auth_hmacsha256_update(&state, parts[i].data, parts[i].size);
    crypto_auth_hmacsha256_final(&state, out);
    sodium_memzero(&state, sizeof(state));
}

bool
hmac_equal(const u8 a[HMAC_BYTES], const u8 b[HMAC_BYTES])
{
    return sodium_memcmp(a, b, HMAC_BYTES) == 0;
}

void
hmac_forget(void *secret, size_t size)
{
    sodium_memzero(secret, size);
}
