/* SPDX-License-Identifier: MIT
 *
 * fuzz_topology.c -- any bytes as a topology, and as a command. What decodes encodes to the same
 * bytes; a command is refused or makes a valid state, of the empty one and of a small cluster; a
 * topology answers questions and takes the commands of a plan, and stays valid.
 */
#include <stdlib.h>

#include "cluster/topology.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
same_bytes(const struct buf *buf, const uint8_t *data, size_t size)
{
    CHECK(bytes_equal(buf_bytes(buf), BYTES(data, size)));
}

/* The state after the command, when it takes it; the old one is released then. */
static struct topology *
then(struct topology *topology, struct topology_command command)
{
    struct topology *next;
    char reason[TOPOLOGY_REASON_BYTES];
    command.state_before = topology->state_id;
    command.state_after = topology->state_id + 1;
    status st = topology_apply(topology, &command, NULL, &next, reason);
    CHECK(ok(st) == (next != NULL));
    if (!ok(st)) {
        CHECK(status_is(st, ST_INVALID) && reason[0] != 0);
        return topology;
    }
    CHECK(topology_check(next));
    topology_release(topology);
    return next;
}

static struct topology_command
of(u8 kind, const struct topology *topology, u32 number)
{
    return (struct topology_command){.kind = kind,
                                     .session = topology->session != 0 ? topology->session : 1,
                                     .member = {.number = number}};
}

static void
ask(const struct topology *topology)
{
    for (u32 p = 0; p <= topology->partition_count; p += 1 + topology->partition_count / 16) {
        struct topology_row row;
        topology_row(topology, 0, p, &row);
        CHECK(row.count <= row.places && row.next_count <= row.next_places);
        CHECK(row.write_quorum > 0 && row.read_quorum > 0);
        for (u32 k = 0; k < row.count; k++)
            CHECK(topology_holds(topology, row.write[k], p) &&
                  topology_member(topology, row.write[k]) != NULL);
    }
}

/* To the end of the plan that there is, and through another one. */
static struct topology *
through_plans(struct topology *topology)
{
    if (topology->member_count > 0)
        topology = then(topology, of(TOPOLOGY_MEMBER_STAY, topology, topology->members[0].number));
    for (u32 round = 0; round < 2; round++) {
        if (topology->member_count > 1)
            topology = then(topology,
                            of(TOPOLOGY_MEMBER_LEAVE, topology, topology->members[round].number));
        topology = then(topology, of(TOPOLOGY_FENCE, topology, 0));
        if (topology->stage == STAGE_NONE)
            topology = then(topology, of(TOPOLOGY_PLAN, topology, 0));
        topology = then(topology, of(TOPOLOGY_FENCE, topology, 0));
        for (u32 number; (number = topology_unfetched(topology)) != 0;) {
            topology = then(topology, of(TOPOLOGY_FETCHED, topology, number));
            if (topology_unfetched(topology) == number) return topology; /* READ_NEXT */
        }
        ask(topology);
        topology = then(topology, of(TOPOLOGY_ADVANCE, topology, 0));
        topology = then(topology, of(TOPOLOGY_FENCE, topology, 0));
        topology = then(topology, of(TOPOLOGY_ADVANCE, topology, 0));
        ask(topology);
    }
    return topology;
}

static struct topology_member
node(char name)
{
    return (struct topology_member){.node_id = {name},
                                    .host = {name},
                                    .weight = 10,
                                    .incarnation = (u64)name,
                                    .shard_count = 1};
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct budget budget;
    budget_init(&budget, "fuzz", MIB(64), NULL);
    struct buf buf;
    buf_init(&buf, &budget);
    struct topology *topology;
    if (ok(topology_decode(BYTES(data, size), &budget, &topology))) {
        CHECK(topology_check(topology));
        CHECK(topology_encode(topology, &buf));
        same_bytes(&buf, data, size);
        ask(topology);
        /* Its numbers and epochs may be used up, and the fuzzer's time is better spent on small
         * ones. */
        bool small = topology->partition_count <= 64 && topology->member_count <= 32;
        if (small && topology->state_id < UINT64_MAX - 1000) topology = through_plans(topology);
        topology_release(topology);
    }
    buf_clear(&buf, 0);
    struct topology_command command;
    if (ok(topology_command_decode(BYTES(data, size), &command))) {
        CHECK(topology_command_encode(&command, &buf));
        same_bytes(&buf, data, size);
        topology = topology_new(&budget);
        CHECK(topology != NULL);
        topology = then(topology, command);
        if (topology->cluster_id == 0) {
            topology = then(topology, (struct topology_command){.kind = TOPOLOGY_FOUND,
                                                                .cluster_id = 1,
                                                                .partition_count = 4,
                                                                .replicas = 2,
                                                                .member = node('a')});
            topology = then(topology, (struct topology_command){.kind = TOPOLOGY_MEMBER_ADD,
                                                                .member = node('b')});
            topology = then(topology, of(TOPOLOGY_PLAN, topology, 0));
            topology = then(topology, command);
        }
        topology_release(topology);
    }
    buf_deinit(&buf);
    CHECK(budget.used_bytes == 0);
    return 0;
}
