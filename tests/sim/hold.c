/* SPDX-License-Identifier: MIT
 *
 * hold.c -- see hold.h.
 */
#include "hold.h"

#include "cluster/replicate_internal.h"
#include "io/io.h"

struct hold {
    struct coordinated request;
};

struct hold *
hold_begin(struct replicator *replicator, u64 epoch)
{
    struct hold *hold = mem_alloc_zero(io_budget(), sizeof(*hold));
    CHECK(hold != NULL);
    coordinated_begin_at(replicator, &hold->request, epoch);
    return hold;
}

void
hold_end(struct hold *hold)
{
    coordinated_end(&hold->request);
    mem_free(io_budget(), hold, sizeof(*hold));
}
