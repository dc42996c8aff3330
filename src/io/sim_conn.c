/* SPDX-License-Identifier: MIT
 *
 * sim_conn.c -- connections of the simulated link. The world has none yet: what the rest of the
 * link asks about them is answered here.
 */
#include "io/sim_internal.h"

void
sim_net_drop(struct sim_node *node, bool reset)
{
    (void)node;
    (void)reset;
}

bool
sim_net_busy(const struct sim_shard *shard)
{
    (void)shard;
    return false;
}

void
sim_net_init(struct sim *sim)
{
    (void)sim;
}

void
sim_net_free(struct sim *sim)
{
    (void)sim;
}
