/* SPDX-License-Identifier: MIT
 *
 * scan_place.h -- where a walk over keys, in the order of (token, key), has got to: behind the key of
 * the token, or, with an empty key, before the token's first. It keeps the key's bytes itself.
 */
#ifndef DISTKV_BASE_SCAN_PLACE_H
#define DISTKV_BASE_SCAN_PLACE_H

#include <string.h>

#include "base/limits.h"
#include "base/types.h"

struct scan_place {
    u64 token;
    u16 key_size;
    u8 key[LIMIT_KEY_BYTES];
};

static inline struct bytes
scan_place_key(const struct scan_place *place)
{
    return BYTES(place->key, place->key_size);
}

/* Behind this key, of at most LIMIT_KEY_BYTES; it may not be the place's own. Before the token's first,
 * when it is empty: keys are not. */
static inline void
scan_place_behind(struct scan_place *place, u64 token, struct bytes key)
{
    place->token = token;
    place->key_size = (u16)key.size;
    if (key.size != 0) memcpy(place->key, key.data, key.size);
}

static inline void
scan_place_before(struct scan_place *place, u64 token)
{
    place->token = token;
    place->key_size = 0;
}

/* Whether it stands behind just this key: whoever reads from a place on meets its key first. */
static inline bool
scan_place_is(const struct scan_place *place, u64 token, struct bytes key)
{
    return place->key_size != 0 && place->token == token && bytes_equal(scan_place_key(place), key);
}

#endif
