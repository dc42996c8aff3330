/* SPDX-License-Identifier: MIT
 *
 * cluster_keyspace.c -- making a keyspace that keeps siblings, for an operator.
 *
 * A keyspace that is not used yet, or the last one that nobody has given a name: it still is called
 * by its number, and lww. What lies in it is met as siblings (siblings.h), so it had better be one
 * that nobody writes to.
 */
#include <stdio.h>

#include "cluster/cluster.h"

struct make {
    const char *name;
    u32 number; /* out */
    bool full;
};

static bool
is_free(const struct topology_keyspace *keyspace, u32 number)
{
    char own[TOPOLOGY_NAME_BYTES];
    snprintf(own, sizeof(own), "%u", number);
    return !keyspace->used ||
           (keyspace->conflict == CONFLICT_LWW && strcmp(keyspace->name, own) == 0);
}

static status
fill(void *arg, const struct topology *present, struct topology_command *command)
{
    struct make *make = arg;
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
        const struct topology_keyspace *keyspace = &present->keyspaces[k];
        if (!keyspace->used || strcmp(keyspace->name, make->name) != 0) continue;
        make->number = k;
        if (keyspace->conflict == CONFLICT_SIBLINGS) return ST_EXISTS;
    }
    make->full = true;
    for (u32 k = LIMIT_KEYSPACES_CLIENT - 1; k > 0 && make->full; k--) { /* 0 is everybody's */
        if (!is_free(&present->keyspaces[k], k)) continue;
        make->number = k;
        make->full = false;
    }
    if (make->full) return ST_NOT_FOUND;
    const struct topology_keyspace *like = &present->keyspaces[make->number];
    command->kind = TOPOLOGY_KEYSPACE_SET;
    command->keyspace = make->number;
    command->options = like->used ? *like : present->keyspaces[0];
    command->options.conflict = CONFLICT_SIBLINGS;
    memset(command->options.name, 0, sizeof(command->options.name));
    snprintf(command->options.name, sizeof(command->options.name), "%s", make->name);
    return ST_OK;
}

MAY_YIELD status
cluster_siblings_make(struct cluster_shard *shard, const char *name, u64 deadline_ns,
                      u32 *number_out, char reason[TOPOLOGY_REASON_BYTES])
{
    struct make make = {.name = name};
    reason[0] = 0;
    status st = group0_change(shard->group0, fill, &make, deadline_ns, reason);
    if (make.full) snprintf(reason, TOPOLOGY_REASON_BYTES, "all keyspaces have names");
    if (status_is(st, ST_EXISTS)) st = ST_OK;
    if (ok(st)) *number_out = make.number;
    return st;
}
