/* SPDX-License-Identifier: MIT
 *
 * cli_cluster.c -- distkv-client cluster: what the node that is asked sees of its cluster.
 *
 *   status   the cluster, and a row a member
 *   health   one line, and the exit status: 0 healthy, 5 not
 */
#include "client/cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const char *
text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text == NULL ? "?" : text;
}

static long long
number_of(const json_t *object, const char *name)
{
    return (long long)json_integer_value(json_object_get(object, name));
}

static bool
is_true(const json_t *object, const char *name)
{
    return json_is_true(json_object_get(object, name));
}

static const char *
health_of(const json_t *cluster)
{
    if (number_of(cluster, "partitions_unavailable") != 0) return "unavailable";
    if (number_of(cluster, "members_alive") < number_of(cluster, "members_count") ||
        number_of(cluster, "partitions_degraded") != 0)
        return "degraded";
    return "healthy";
}

static void
show_seen(const json_t *member, bool self)
{
    const json_t *seen = json_object_get(member, "last_seen_ms");
    char text[32] = "never";
    if (self)
        snprintf(text, sizeof(text), "here");
    else if (json_is_integer(seen))
        snprintf(text, sizeof(text), "%.1f s ago", (double)json_integer_value(seen) / 1000);
    printf("%-11s", text);
}

static void
show_member(struct cli *cli, const json_t *member, long long self)
{
    bool alive = is_true(member, "alive");
    const char *live = !alive ? "dead" : is_true(member, "ill") ? "ill" : "alive";
    char address[96], state[32];
    snprintf(address, sizeof(address), "%s:%lld", text_of(member, "host"),
             number_of(member, "port"));
    snprintf(state, sizeof(state), "%s", text_of(member, "state"));
    printf("%-4lld %-20s %-22s %-8s ", number_of(member, "number"), text_of(member, "node_id"),
           address, state);
    if (cli->color) printf("\033[%sm", alive ? "32" : "31");
    printf("%-6s", live);
    if (cli->color) printf("\033[0m");
    printf(" ");
    show_seen(member, number_of(member, "number") == self);
    printf(" %-8s %-8s %10lld\n", text_of(member, "datacenter"), text_of(member, "rack"),
           number_of(member, "partitions"));
}

static void
show(struct cli *cli, const json_t *cluster)
{
    long long self = number_of(cluster, "self");
    printf("cluster %s   %s   epoch %lld   leader %lld   N=%lld W=%lld R=%lld\n",
           text_of(cluster, "cluster_id"), health_of(cluster), number_of(cluster, "epoch"),
           number_of(cluster, "leader"), number_of(cluster, "replicas"),
           number_of(cluster, "write_quorum"), number_of(cluster, "read_quorum"));
    printf("nodes   %lld of %lld alive   partitions %lld: %lld unavailable, %lld with too few "
           "copies\n",
           number_of(cluster, "members_alive"), number_of(cluster, "members_count"),
           number_of(cluster, "partition_count"), number_of(cluster, "partitions_unavailable"),
           number_of(cluster, "partitions_degraded"));
    if (strcmp(text_of(cluster, "stage"), "none") != 0)
        printf("move    %s, %lld bytes fetched by this node\n", text_of(cluster, "stage"),
               number_of(cluster, "fetched_bytes"));
    printf("\n%-4s %-20s %-22s %-8s %-6s %-11s %-8s %-8s %10s\n", "NO", "NODE", "ADDRESS", "STATE",
           "LIVE", "SEEN", "DC", "RACK", "PARTITIONS");
    size_t index;
    json_t *member;
    json_t *members = json_object_get(cluster, "members");
    json_array_foreach(members, index, member) show_member(cli, member, self);
}

int
cmd_cluster(struct cli *cli, int count, char **words)
{
    (void)count;
    bool health = strcmp(words[0], "health") == 0;
    if (!health && strcmp(words[0], "status") != 0)
        return cli_usage(cli, "cluster %s: there are status and health", words[0]);
    int exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) return exit_code;
    char *text;
    int code = distkv_status(cli->kv, &text);
    if (code != DISTKV_OK) return cli_fail(cli, code, "cluster");
    json_t *root = json_loads(text, 0, NULL);
    distkv_free(text);
    const json_t *cluster = json_object_get(root, "cluster");
    if (!json_is_object(cluster)) {
        cli_error(cli, "this node is not one of a cluster");
        json_decref(root);
        return EXIT_SERVER;
    }
    bool good = strcmp(health_of(cluster), "healthy") == 0;
    if (cli->set.json && health) {
        printf("{\"health\":\"%s\",\"members_alive\":%lld,\"members_count\":%lld}\n",
               health_of(cluster), number_of(cluster, "members_alive"),
               number_of(cluster, "members_count"));
    } else if (cli->set.json) {
        char *out = json_dumps(cluster, JSON_COMPACT);
        puts(out == NULL ? "null" : out);
        free(out);
    } else if (health) {
        printf("%s: %lld of %lld nodes alive, %lld partitions unavailable\n", health_of(cluster),
               number_of(cluster, "members_alive"), number_of(cluster, "members_count"),
               number_of(cluster, "partitions_unavailable"));
    } else {
        show(cli, cluster);
    }
    json_decref(root);
    return cli_finish_output(cli, health && !good ? EXIT_UNHEALTHY : EXIT_OK);
}
