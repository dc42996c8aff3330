/* SPDX-License-Identifier: MIT
 *
 * places.h -- where keys lie in a cluster, so that each connection can go straight to one node (to
 * one core, where cores have ports) and ask for keys that lie there.
 */
#ifndef DISTKV_BENCH_PLACES_H
#define DISTKV_BENCH_PLACES_H

#include "load/settings.h"
#include "proto/native.h"

#define PLACES_MAX    4096u
#define PLACE_NOWHERE UINT32_MAX

struct place {
    char host[TEXT_BYTES]; /* numeric */
    u16 port;
    u32 share; /* partitions */
};

struct places {
    u32 count; /* 0: nothing is known, all goes to the address that was given */
    struct place *list;
    u32 partition_count;
    u16 *owners; /* of each partition: index in list */
};

/* From a decoded reply to TOPOLOGY; host: where it came from. Pure but for malloc; false: no
 * memory, or nobody has some partition. out is then empty. */
MUST_CHECK bool places_take(struct places *out, const struct native_topology_reply *reply,
                            const char *host);
void places_free(struct places *places);
/* Asks the server for them. Where it is one node without more ports, is too old, or does not
 * answer, out is empty. */
void places_read(struct places *out, const struct settings *settings, const char *host, u16 port);

static inline u32
places_of(const struct places *places, u32 slot)
{
    return places->owners[slot / (SLOT_COUNT / places->partition_count)];
}
/* The place of connection `number` of `count`: each has connections in proportion to its share.
 * PLACE_NOWHERE: there are too few connections for that. */
u32 places_home(const struct places *places, u32 number, u32 count);

#endif
