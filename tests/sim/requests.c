/* SPDX-License-Identifier: MIT
 *
 * requests.c -- a node of one shard that serves so many GETs or SETs of keys in memory, sixteen
 * pipelined: what tests/sim/count_instructions runs under callgrind. The simulated link does the same
 * each time, so the count is the same each time.
 *
 *     sim_requests get|set COUNT
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node_rig.h"

#define KEYS     1000u
#define PIPELINE 16u

static bool sets;
static u64 count;

MAY_YIELD static void
send_set(struct rig_client *client, u64 i)
{
    char value[101];
    memset(value, 'v', 100);
    value[100] = '\0';
    rig_send(client, "SET key:%012llu %s", (unsigned long long)(i * 7919 % KEYS), value);
}

MAY_YIELD static void
story(struct rig *rig)
{
    sim_audits_set(rig->sim, 0); /* a server has none */
    struct rig_client client;
    rig_connect(rig, &client);
    for (u64 i = 0; i < KEYS; i++) {
        send_set(&client, i);
        CHECK(rig_is(rig_read(&client), "+OK\r\n"));
    }
    for (u64 i = 0; i < count; i += PIPELINE) {
        for (u64 k = i; k < i + PIPELINE; k++) {
            if (sets)
                send_set(&client, k);
            else
                rig_send(&client, "GET key:%012llu", (unsigned long long)(k * 7919 % KEYS));
        }
        for (u64 k = i; k < i + PIPELINE; k++)
            CHECK(rig_read(&client).size > 4);
    }
    rig_disconnect(&client);
}

int
main(int argc, char **argv)
{
    if (argc != 3 || (strcmp(argv[1], "get") != 0 && strcmp(argv[1], "set") != 0)) return 2;
    sets = strcmp(argv[1], "set") == 0;
    count = strtoull(argv[2], NULL, 10);
    struct rig rig = {.shard_count = 1, .story = story};
    sim_options_default(&rig.options, 1);
    rig_run(&rig);
    return 0;
}
