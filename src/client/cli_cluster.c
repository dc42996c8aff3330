/* SPDX-License-Identifier: MIT
 *
 * cli_cluster.c -- distkv-client cluster: what the node that is asked knows of its cluster, and
 * what operators have done to it. Any node can be asked; dead ones are asked nothing.
 *
 *   status, health, ring, keyspaces                     are shown, and keyspaces made: here
 *   add-node, remove-node, replace-node, rebalance,     are waited for until all is in its place:
 *   repair, drain                                       cli_cluster_change.c
 */
#include "client/cli_cluster.h"

#include <inttypes.h>
#include <stdlib.h>

#define NAME_BYTES_MAX 63u

/* ---- what the server says ---- */

const json_t *
cli_cluster_member(const json_t *cluster, const char *field, const char *text)
{
    size_t index;
    json_t *member;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        if (strcmp(text_of(member, field), text) == 0) return member;
    }
    return NULL;
}

const json_t *
cli_cluster_member_by_number(const json_t *cluster, long long number)
{
    size_t index;
    json_t *member;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        if (number_of(member, "number") == number) return member;
    }
    return NULL;
}

/* *root_out: NULL unless the reply is an object. */
static int
ask(struct cli *cli, const struct distkv_cluster_request *request, json_t **root_out)
{
    char *text;
    *root_out = NULL;
    int code = distkv_cluster(cli->kv, request, &text, NULL);
    if (code != DISTKV_OK) return code;
    json_t *root = json_loads(text, 0, NULL);
    distkv_free(text);
    if (json_is_object(root))
        *root_out = root;
    else
        json_decref(root);
    return DISTKV_OK;
}

/* An id of a node or a name of a keyspace, or none. */
static bool
name_fits(const char *name)
{
    return name == NULL || (name[0] != 0 && strlen(name) <= NAME_BYTES_MAX);
}

/* What the library does not even send is wrong usage; what else is found invalid was refused. */
int
cli_cluster_fail(struct cli *cli, const struct distkv_cluster_request *request, int code,
                 const char *what)
{
    int exit_code = cli_fail(cli, code, what);
    bool is_sent = name_fits(request->node) && name_fits(request->name);
    return exit_code == EXIT_USAGE && is_sent ? EXIT_SERVER : exit_code;
}

json_t *
cli_cluster_ask(struct cli *cli, const struct distkv_cluster_request *request, const char *what,
                int *exit_out)
{
    json_t *root;
    int code = ask(cli, request, &root);
    if (root != NULL) return root;
    *exit_out = EXIT_SERVER;
    if (code != DISTKV_OK)
        *exit_out = cli_cluster_fail(cli, request, code, what);
    else
        cli_error(cli, "%s: the reply cannot be read", what);
    return NULL;
}

json_t *
cli_cluster_try_status(struct cli *cli)
{
    const struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_STATUS};
    json_t *root;
    (void)ask(cli, &request, &root);
    return root;
}

json_t *
cli_cluster_ask_status(struct cli *cli, int *exit_out)
{
    const struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_STATUS};
    return cli_cluster_ask(cli, &request, "cluster", exit_out);
}

void
cli_cluster_print(const json_t *object)
{
    char *out = json_dumps(object, JSON_COMPACT);
    puts(out == NULL ? "null" : out);
    free(out);
}

void
cli_cluster_bytes_text(double bytes, char *out, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    u32 unit = 0;
    for (; bytes >= 1024 && unit + 1 < ARRAY_COUNT(units); unit++)
        bytes /= 1024;
    snprintf(out, size, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

void
cli_cluster_ms_text(double ms, char *out, size_t size)
{
    if (ms < 1000)
        snprintf(out, size, "%.0f ms", ms);
    else if (ms < 120e3)
        snprintf(out, size, "%.1f s", ms / 1e3);
    else if (ms < 7200e3)
        snprintf(out, size, "%.0f min", ms / 60e3);
    else
        snprintf(out, size, "%.1f h", ms / 3600e3);
}

/* ---- status ---- */

/* Those of which the field is true. */
static long long
members_with(const json_t *cluster, const char *field)
{
    long long count = 0;
    size_t index;
    json_t *member;
    json_t *members = json_object_get(cluster, "members");
    json_array_foreach(members, index, member) count += is_true(member, field);
    return count;
}

/* Those of which the figure is known, and not 0. */
static long long
members_with_number(const json_t *cluster, const char *field)
{
    long long count = 0;
    size_t index;
    json_t *member;
    json_t *members = json_object_get(cluster, "members");
    json_array_foreach(members, index, member) count += number_of(member, field) != 0;
    return count;
}

/* Ill alone says that a node was late; where a machine is short of processors all of them are, now
 * and then. */
static const char *
health_of(const json_t *cluster)
{
    if (is_true(cluster, "left")) return "left";
    if (number_of(cluster, "partitions_unavailable") != 0) return "unavailable";
    if (number_of(cluster, "members_alive") < number_of(cluster, "members_count") ||
        members_with(cluster, "stuck") != 0 || members_with(cluster, "clock_wrong") != 0 ||
        members_with_number(cluster, "fetch_failed_from") != 0 ||
        members_with_number(cluster, "damaged_files") != 0 ||
        number_of(cluster, "partitions_degraded") != 0)
        return "degraded";
    return "healthy";
}

static const char *
state_of(const json_t *member)
{
    if (!is_true(member, "alive")) return "dead";
    if (is_true(member, "stuck")) return "stuck";
    if (is_true(member, "clock_wrong")) return "clock";
    if (is_true(member, "drained")) return "drained";
    return is_true(member, "ill") ? "ill" : "alive";
}

static void
show_member(struct cli *cli, const json_t *member, long long self)
{
    char address[96], seen[32] = "never", data[32] = "?", load[32] = "?";
    snprintf(address, sizeof(address), "%s:%lld", text_of(member, "host"),
             number_of(member, "port"));
    if (number_of(member, "number") == self) {
        snprintf(seen, sizeof(seen), "here");
    } else if (has(member, "last_seen_ms")) {
        char ago[24];
        cli_cluster_ms_text((double)number_of(member, "last_seen_ms"), ago, sizeof(ago));
        snprintf(seen, sizeof(seen), "%s ago", ago);
    }
    bool known = has(member, "version");
    if (known) {
        cli_cluster_bytes_text((double)number_of(member, "data_bytes"), data, sizeof(data));
        snprintf(load, sizeof(load), "%lld/s", number_of(member, "commands_per_s"));
    }
    printf("%-4lld %-16s %-21s %-8s ", number_of(member, "number"), text_of(member, "node_id"),
           address, text_of(member, "state"));
    bool good =
        is_true(member, "alive") && !is_true(member, "stuck") && !is_true(member, "clock_wrong");
    if (cli->color) printf("\033[%sm", good ? "32" : "31");
    printf("%-7s", state_of(member));
    if (cli->color) printf("\033[0m");
    printf(" %-12s %-8s %-8s %10s %10lld %9s  %s\n", seen, text_of(member, "datacenter"),
           text_of(member, "rack"), data, number_of(member, "partitions"), load,
           known ? text_of(member, "version") : "?");
}

/* Its name, or its number where it is no member any more. */
static const char *
name_of(const json_t *cluster, long long number, char out[32])
{
    const json_t *member = cli_cluster_member_by_number(cluster, number);
    if (member != NULL) return text_of(member, "node_id");
    snprintf(out, 32, "member %lld", number);
    return out;
}

/* Partitions of keyspaces that cannot be used, and for want of whom. */
static void
show_keyspaces_ills(const json_t *cluster)
{
    size_t index, at;
    json_t *keyspace, *missing;
    char name[32];
    json_array_foreach(json_object_get(cluster, "keyspaces"), index, keyspace)
    {
        if (number_of(keyspace, "partitions_unavailable") == 0) continue;
        printf("data    keyspace %s (%lld): %lld of %lld partitions unavailable",
               text_of(keyspace, "name"), number_of(keyspace, "number"),
               number_of(keyspace, "partitions_unavailable"),
               number_of(cluster, "partition_count"));
        json_array_foreach(json_object_get(keyspace, "missing"), at, missing) printf(
            "%s %s (%lld)", at == 0 ? ", for want of" : ",",
            name_of(cluster, number_of(missing, "node"), name), number_of(missing, "partitions"));
        if (number_of(keyspace, "partitions_lost") != 0)
            printf(", %lld lost with who was given up: they begin empty when the move ends",
                   number_of(keyspace, "partitions_lost"));
        printf("\n");
    }
}

/* What an operator has to do something about. */
static void
show_ills(const json_t *cluster)
{
    size_t index;
    char name[32];
    json_t *member;
    if (is_true(cluster, "left"))
        printf("left    this node is no member of the cluster any more, and hears nothing of it: "
               "ask another one, and stop this one\n");
    else if (is_true(cluster, "proving"))
        printf("waits   until %lld of the other nodes answer this one: before, nobody says whether "
               "its directory is the one that it had, and it serves nothing\n",
               number_of(cluster, "members_count") / 2);
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        if (is_true(member, "stuck"))
            printf("stuck   %s takes no writes: its disk is full, slow, or has failed, or its "
                   "memory is full\n",
                   text_of(member, "node_id"));
        if (is_true(member, "clock_wrong"))
            printf("clock   that of %s differs from most others' by more than 250 ms: set it\n",
                   text_of(member, "node_id"));
        if (number_of(member, "damaged_files") != 0)
            printf("damage  %s has met damaged blocks in %lld of its files: its log names them\n",
                   text_of(member, "node_id"), number_of(member, "damaged_files"));
        if (number_of(member, "mending") != 0)
            printf("damage  %s has given up %lld damaged partitions, to fetch them from the other "
                   "nodes\n",
                   text_of(member, "node_id"), number_of(member, "mending"));
        if (number_of(member, "fetch_failed_from") != 0)
            printf("move    %s gets nothing from %s: its log says why\n",
                   text_of(member, "node_id"),
                   name_of(cluster, number_of(member, "fetch_failed_from"), name));
    }
    show_keyspaces_ills(cluster);
}

void
cli_cluster_waits_for(const json_t *cluster, char *out, size_t size)
{
    long long number = number_of(cluster, "plan_waits_for");
    const json_t *member = cli_cluster_member_by_number(cluster, number);
    char name[32];
    out[0] = 0;
    if (number == 0) return;
    if (member == NULL)
        snprintf(out, size, "waits for %s", name_of(cluster, number, name));
    else if (number_of(member, "mending") != 0 && is_true(member, "alive"))
        snprintf(out, size, "waits for %s, which removes partitions that were damaged",
                 text_of(member, "node_id"));
    else if (strcmp(text_of(member, "state"), "leaving") == 0 && is_true(member, "alive"))
        snprintf(out, size, "waits for %s, which has %lld hints for others to deliver first",
                 text_of(member, "node_id"), number_of(member, "hints_waiting"));
    else if (is_true(member, "stuck") && is_true(member, "alive"))
        snprintf(out, size, "waits for %s, which takes no writes", text_of(member, "node_id"));
    else if (is_true(member, "alive"))
        snprintf(out, size, "waits for %s, which has yet to follow", text_of(member, "node_id"));
    else
        snprintf(out, size, "waits for %s, which does not answer", text_of(member, "node_id"));
}

/* What cannot be fetched from anybody who answers. */
static void
show_waits(const json_t *cluster, const json_t *move)
{
    size_t index;
    json_t *wait;
    char name[32];
    json_array_foreach(json_object_get(move, "waits"), index, wait)
        printf("move    waits for %s, which does not answer: %lld partitions of keyspace %s (%lld) "
               "cannot be fetched without it; bring it back, or remove it as dead\n",
               name_of(cluster, number_of(wait, "node"), name), number_of(wait, "partitions"),
               text_of(wait, "name"), number_of(wait, "keyspace"));
}

static void
show_move(const json_t *cluster)
{
    const json_t *move = json_object_get(cluster, "move");
    char waits_for[160];
    cli_cluster_waits_for(cluster, waits_for, sizeof(waits_for));
    if (waits_for[0] != 0) printf("move    %s\n", waits_for);
    if (!json_is_object(move)) return;
    char bytes[32], left[32] = "?";
    show_waits(cluster, move);
    cli_cluster_bytes_text((double)number_of(move, "bytes"), bytes, sizeof(bytes));
    if (has(move, "left_ms"))
        cli_cluster_ms_text((double)number_of(move, "left_ms"), left, sizeof(left));
    printf("move    %s: %lld of %lld nodes ready, %lld of %lld partitions, %s fetched, %s left\n",
           text_of(move, "stage"), number_of(move, "gainers_ready"), number_of(move, "gainers"),
           number_of(move, "partitions_done"), number_of(move, "partitions"), bytes, left);
}

static void
show_work(const json_t *cluster)
{
    long long hints = 0, hint_bytes = 0, repairing = 0, commands = 0, errors = 0;
    size_t index;
    json_t *member;
    json_t *members = json_object_get(cluster, "members");
    json_array_foreach(members, index, member)
    {
        hints += number_of(member, "hints_waiting");
        hint_bytes += number_of(member, "hints_bytes");
        repairing += number_of(member, "repair_running") != 0;
        commands += number_of(member, "commands");
        errors += number_of(member, "errors");
    }
    char bytes[32];
    cli_cluster_bytes_text((double)hint_bytes, bytes, sizeof(bytes));
    printf("hints   %lld waiting (%s)   repair %s   requests %lld, %lld errors\n", hints, bytes,
           repairing != 0 ? "runs" : "does not run", commands, errors);
}

static void
show_latencies(const json_t *cluster)
{
    printf("\n%-4s %-16s %12s %9s %9s %12s %9s %9s %9s %9s\n", "NO", "NODE", "READS", "P50", "P99",
           "WRITES", "P50", "P99", "HINTS", "UPTIME");
    size_t index;
    json_t *member;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        if (!has(member, "version")) continue;
        char uptime[24];
        cli_cluster_ms_text((double)number_of(member, "uptime_ms"), uptime, sizeof(uptime));
        printf("%-4lld %-16s %12lld %6lld us %6lld us %12lld %6lld us %6lld us %9lld %9s\n",
               number_of(member, "number"), text_of(member, "node_id"), number_of(member, "reads"),
               number_of(member, "read_p50_us"), number_of(member, "read_p99_us"),
               number_of(member, "writes"), number_of(member, "write_p50_us"),
               number_of(member, "write_p99_us"), number_of(member, "hints_waiting"), uptime);
    }
}

static void
show(struct cli *cli, const json_t *cluster)
{
    long long self = number_of(cluster, "self");
    const json_t *leader = cli_cluster_member_by_number(cluster, number_of(cluster, "leader"));
    printf("cluster %s   %s   epoch %lld   leader %s   N=%lld W=%lld R=%lld\n",
           text_of(cluster, "cluster_id"), health_of(cluster), number_of(cluster, "epoch"),
           leader == NULL ? "none" : text_of(leader, "node_id"), number_of(cluster, "replicas"),
           number_of(cluster, "write_quorum"), number_of(cluster, "read_quorum"));
    printf("nodes   %lld of %lld alive   partitions %lld: %lld unavailable, %lld with too few "
           "copies\n",
           number_of(cluster, "members_alive"), number_of(cluster, "members_count"),
           number_of(cluster, "partition_count"), number_of(cluster, "partitions_unavailable"),
           number_of(cluster, "partitions_degraded"));
    show_ills(cluster);
    show_move(cluster);
    show_work(cluster);
    printf("\n%-4s %-16s %-21s %-8s %-7s %-12s %-8s %-8s %10s %10s %9s  %s\n", "NO", "NODE",
           "ADDRESS", "STATE", "LIVE", "SEEN", "DC", "RACK", "DATA", "PARTITIONS", "LOAD",
           "VERSION");
    size_t index;
    json_t *member;
    json_t *members = json_object_get(cluster, "members");
    json_array_foreach(members, index, member) show_member(cli, member, self);
    show_latencies(cluster);
}

static int
run_status(struct cli *cli, const char *name)
{
    (void)name;
    int exit_code = EXIT_OK;
    json_t *cluster = cli_cluster_ask_status(cli, &exit_code);
    if (cluster == NULL) return exit_code;
    if (cli->set.json)
        cli_cluster_print(cluster);
    else
        show(cli, cluster);
    json_decref(cluster);
    return EXIT_OK;
}

static int
run_health(struct cli *cli, const char *name)
{
    (void)name;
    int exit_code = EXIT_OK;
    json_t *cluster = cli_cluster_ask_status(cli, &exit_code);
    if (cluster == NULL) return exit_code;
    if (cli->set.json)
        printf("{\"health\":\"%s\",\"members_alive\":%lld,\"members_count\":%lld,"
               "\"members_ill\":%lld,\"members_stuck\":%lld,\"members_clock_wrong\":%lld,"
               "\"members_damaged\":%lld,\"partitions_unavailable\":%lld,"
               "\"partitions_degraded\":%lld}\n",
               health_of(cluster), number_of(cluster, "members_alive"),
               number_of(cluster, "members_count"), members_with(cluster, "ill"),
               members_with(cluster, "stuck"), members_with(cluster, "clock_wrong"),
               members_with_number(cluster, "damaged_files"),
               number_of(cluster, "partitions_unavailable"),
               number_of(cluster, "partitions_degraded"));
    else
        printf("%s: %lld of %lld nodes alive, %lld partitions unavailable\n", health_of(cluster),
               number_of(cluster, "members_alive"), number_of(cluster, "members_count"),
               number_of(cluster, "partitions_unavailable"));
    if (!cli->set.json) show_ills(cluster);
    bool good = strcmp(health_of(cluster), "healthy") == 0;
    json_decref(cluster);
    return good ? EXIT_OK : EXIT_UNHEALTHY;
}

/* ---- ring ---- */

static void
show_numbers(const json_t *ring, const json_t *numbers)
{
    size_t index;
    json_t *number;
    json_array_foreach(numbers, index, number)
    {
        const json_t *member =
            cli_cluster_member_by_number(ring, (long long)json_integer_value(number));
        printf("%s%s", index == 0 ? "" : " ", member == NULL ? "?" : text_of(member, "node_id"));
    }
}

static void
show_ring(const json_t *ring)
{
    double partitions = (double)number_of(ring, "partition_count");
    printf("%lld partitions, %lld replicas of each, epoch %lld\n\n",
           number_of(ring, "partition_count"), number_of(ring, "replicas"),
           number_of(ring, "epoch"));
    printf("%-4s %-16s %-8s %-8s %8s %10s %8s %8s\n", "NO", "NODE", "DC", "RACK", "WEIGHT",
           "PARTITIONS", "SHARE", "FIRST OF");
    size_t index;
    json_t *entry;
    json_array_foreach(json_object_get(ring, "members"), index, entry)
    {
        printf("%-4lld %-16s %-8s %-8s %8lld %10lld %6.1f %% %8lld\n", number_of(entry, "number"),
               text_of(entry, "node_id"), text_of(entry, "datacenter"), text_of(entry, "rack"),
               number_of(entry, "virtual_nodes"), number_of(entry, "partitions"),
               100 * (double)number_of(entry, "partitions") / (partitions < 1 ? 1 : partitions),
               number_of(entry, "first_of"));
    }
    printf("\n%-13s %-15s %s\n", "PARTITIONS", "SLOTS", "REPLICAS");
    json_array_foreach(json_object_get(ring, "ranges"), index, entry)
    {
        char range[48], slots[48];
        snprintf(range, sizeof(range), "%lld-%lld", number_of(entry, "first"),
                 number_of(entry, "last"));
        snprintf(slots, sizeof(slots), "%lld-%lld", number_of(entry, "slot_first"),
                 number_of(entry, "slot_last"));
        printf("%-13s %-15s ", range, slots);
        show_numbers(ring, json_object_get(entry, "members"));
        if (has(entry, "next")) {
            printf(" -> ");
            show_numbers(ring, json_object_get(entry, "next"));
        }
        printf("\n");
    }
}

static int
run_ring(struct cli *cli, const char *name)
{
    (void)name;
    int exit_code = EXIT_OK;
    const struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_RING};
    json_t *ring = cli_cluster_ask(cli, &request, "cluster ring", &exit_code);
    if (ring == NULL) return exit_code;
    if (cli->set.json)
        cli_cluster_print(ring);
    else
        show_ring(ring);
    json_decref(ring);
    return EXIT_OK;
}

/* ---- keyspaces ---- */

static int
list_keyspaces(struct cli *cli)
{
    int exit_code = EXIT_OK;
    const struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_KEYSPACES};
    json_t *root = cli_cluster_ask(cli, &request, "keyspaces", &exit_code);
    if (root == NULL) return exit_code;
    if (cli->set.json) {
        cli_cluster_print(json_object_get(root, "keyspaces"));
        json_decref(root);
        return EXIT_OK;
    }
    printf("%-4s %-24s %8s %12s %11s  %-8s  %s\n", "NO", "NAME", "REPLICAS", "WRITE-QUORUM",
           "READ-QUORUM", "CONFLICT", "SLOPPY");
    size_t index;
    json_t *keyspace;
    json_array_foreach(json_object_get(root, "keyspaces"), index, keyspace)
    {
        printf("%-4lld %-24s %8lld %12lld %11lld  %-8s  %s\n", number_of(keyspace, "number"),
               text_of(keyspace, "name"), number_of(keyspace, "replicas"),
               number_of(keyspace, "write_quorum"), number_of(keyspace, "read_quorum"),
               text_of(keyspace, "conflict"), is_true(keyspace, "sloppy") ? "on" : "off");
    }
    json_decref(root);
    return EXIT_OK;
}

static int
run_keyspaces(struct cli *cli, int count, char **words)
{
    if (count == 0) return list_keyspaces(cli);
    bool create = strcmp(words[0], "create") == 0;
    if (count != 2 || (!create && strcmp(words[0], "set") != 0))
        return cli_usage(cli, "keyspaces: nothing, create NAME or set NAME");
    if (!create && (cli->set.number != DISTKV_KEYSPACE_ANY || cli->set.conflict != 0))
        return cli_usage(cli, "keyspaces set: number and conflict stay as they are");
    const struct distkv_cluster_request request = {
        .function = DISTKV_CLUSTER_KEYSPACE_SET,
        .name = words[1],
        .create = create,
        .keyspace = create ? (u32)cli->set.number : 0,
        .replicas = (u32)cli->set.replicas,
        .write_quorum = (u32)cli->set.write_quorum,
        .read_quorum = (u32)cli->set.read_quorum,
        .siblings = cli->set.conflict != 0,
        .sloppy = cli->set.sloppy == 2 ? -1 : (int)cli->set.sloppy,
    };
    uint64_t number = 0;
    int exit_code = cli_cluster_change(cli, &request, "keyspaces", &number);
    if (exit_code != EXIT_OK) return exit_code;
    if (cli->set.json)
        printf("{\"ok\":true,\"number\":%" PRIu64 "}\n", number);
    else
        printf("%s is keyspace %" PRIu64 "\n", words[1], number);
    return EXIT_OK;
}

/* ---- all ---- */

static const struct {
    const char *name;
    int words_min, words_max; /* behind the name */
    int (*one)(struct cli *cli, const char *name);
    int (*many)(struct cli *cli, int count, char **words);
} functions[] = {
    {"status", 0, 0, run_status, NULL},
    {"health", 0, 0, run_health, NULL},
    {"ring", 0, 0, run_ring, NULL},
    {"add-node", 1, 1, cli_cluster_add_node, NULL},
    {"remove-node", 1, 1, cli_cluster_remove_node, NULL},
    {"replace-node", 1, 1, cli_cluster_replace_node, NULL},
    {"rebalance", 0, 64, NULL, cli_cluster_rebalance},
    {"repair", 0, 1, cli_cluster_repair, NULL},
    {"drain", 1, 1, cli_cluster_drain, NULL},
    {"keyspaces", 0, 2, NULL, run_keyspaces},
};

const char *
cli_cluster_function(u32 index)
{
    return index < ARRAY_COUNT(functions) ? functions[index].name : NULL;
}

int
cmd_cluster(struct cli *cli, int count, char **words)
{
    for (u32 i = 0; i < ARRAY_COUNT(functions); i++) {
        if (strcmp(words[0], functions[i].name) != 0) continue;
        int given = count - 1;
        if (given < functions[i].words_min || given > functions[i].words_max)
            return cli_usage(cli, "cluster %s: see distkv-client help cluster", words[0]);
        int exit_code = cli_connect(cli);
        if (exit_code != EXIT_OK) return exit_code;
        exit_code = functions[i].many != NULL ? functions[i].many(cli, given, words + 1)
                                              : functions[i].one(cli, given == 0 ? NULL : words[1]);
        return cli_finish_output(cli, exit_code);
    }
    return cli_usage(cli, "cluster %s: see distkv-client help cluster", words[0]);
}
