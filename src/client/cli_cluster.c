/* SPDX-License-Identifier: MIT
 *
 * cli_cluster.c -- distkv-client cluster: what the node that is asked knows of its cluster, and
 * what operators have done to it. Any node can be asked; dead ones are asked nothing.
 *
 *   status, health, ring, keyspaces                     are shown
 *   add-node, remove-node, replace-node, rebalance,     are waited for until all is in its place,
 *   repair, drain                                       with a bar, unless --no-wait
 *
 * To wait is to look at the status again and again: so it can be broken off and begun again at any
 * time, and nothing that was begun depends on it.
 */
#include "client/cli.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS   (250 * NS_PER_MS)
#define BAR_WIDTH 30
/* Of a member that lives and does not tell its figures: 10 s. */
#define SILENT_LOOKS 40u

/* ---- JSON ---- */

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
has(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return value != NULL && !json_is_null(value);
}

static bool
is_true(const json_t *object, const char *name)
{
    return json_is_true(json_object_get(object, name));
}

static const json_t *
member_by(const json_t *cluster, const char *field, const char *text)
{
    size_t index;
    json_t *member;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        if (strcmp(text_of(member, field), text) == 0) return member;
    }
    return NULL;
}

static const json_t *
member_by_number(const json_t *cluster, long long number)
{
    size_t index;
    json_t *member;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        if (number_of(member, "number") == number) return member;
    }
    return NULL;
}

/* The reply to a request as an object, to be given back; NULL after a message, with *exit_out. */
static json_t *
ask(struct cli *cli, const struct distkv_cluster_request *request, const char *what, int *exit_out)
{
    char *text;
    int code = distkv_cluster(cli->kv, request, &text, NULL);
    if (code != DISTKV_OK) {
        *exit_out = cli_fail(cli, code, what);
        return NULL;
    }
    json_t *root = json_loads(text, 0, NULL);
    distkv_free(text);
    if (json_is_object(root)) return root;
    json_decref(root);
    cli_error(cli, "%s: the reply cannot be read", what);
    *exit_out = EXIT_SERVER;
    return NULL;
}

static json_t *
ask_status(struct cli *cli, int *exit_out)
{
    const struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_STATUS};
    return ask(cli, &request, "cluster", exit_out);
}

static void
print_json(const json_t *object)
{
    char *out = json_dumps(object, JSON_COMPACT);
    puts(out == NULL ? "null" : out);
    free(out);
}

static void
human_bytes(double bytes, char *out, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    u32 unit = 0;
    for (; bytes >= 1024 && unit + 1 < ARRAY_COUNT(units); unit++)
        bytes /= 1024;
    snprintf(out, size, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

static void
human_ms(double ms, char *out, size_t size)
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
    if (number_of(cluster, "partitions_unavailable") != 0) return "unavailable";
    if (number_of(cluster, "members_alive") < number_of(cluster, "members_count") ||
        members_with(cluster, "stuck") != 0 || members_with(cluster, "clock_ahead") != 0 ||
        members_with_number(cluster, "fetch_failed_from") != 0 ||
        number_of(cluster, "partitions_degraded") != 0)
        return "degraded";
    return "healthy";
}

static const char *
state_of(const json_t *member)
{
    if (!is_true(member, "alive")) return "dead";
    if (is_true(member, "stuck")) return "stuck";
    if (is_true(member, "clock_ahead")) return "clock";
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
        human_ms((double)number_of(member, "last_seen_ms"), ago, sizeof(ago));
        snprintf(seen, sizeof(seen), "%s ago", ago);
    }
    bool known = has(member, "version");
    if (known) {
        human_bytes((double)number_of(member, "data_bytes"), data, sizeof(data));
        snprintf(load, sizeof(load), "%lld/s", number_of(member, "commands_per_s"));
    }
    printf("%-4lld %-16s %-21s %-8s ", number_of(member, "number"), text_of(member, "node_id"),
           address, text_of(member, "state"));
    bool good =
        is_true(member, "alive") && !is_true(member, "stuck") && !is_true(member, "clock_ahead");
    if (cli->color) printf("\033[%sm", good ? "32" : "31");
    printf("%-7s", state_of(member));
    if (cli->color) printf("\033[0m");
    printf(" %-12s %-8s %-8s %10s %10lld %9s  %s\n", seen, text_of(member, "datacenter"),
           text_of(member, "rack"), data, number_of(member, "partitions"), load,
           known ? text_of(member, "version") : "?");
}

/* What an operator has to do something about. */
static void
show_ills(const json_t *cluster)
{
    size_t index;
    json_t *member;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        if (is_true(member, "stuck"))
            printf("stuck   %s takes no writes: its disk is full, slow, or has failed\n",
                   text_of(member, "node_id"));
        if (is_true(member, "clock_ahead"))
            printf("clock   %s is ahead of most others, which refuse its writes: set its clock\n",
                   text_of(member, "node_id"));
        if (number_of(member, "corruptions") != 0)
            printf("damage  %s has met damaged blocks %lld times: its log names the files\n",
                   text_of(member, "node_id"), number_of(member, "corruptions"));
        if (number_of(member, "fetch_failed_from") != 0)
            printf("move    %s gets nothing from %s: its log says why\n",
                   text_of(member, "node_id"),
                   text_of(member_by_number(cluster, number_of(member, "fetch_failed_from")),
                           "node_id"));
    }
}

/* Whom a plan waits for, and why; "": nobody. */
static void
waits_for_of(const json_t *cluster, char *out, size_t size)
{
    long long number = number_of(cluster, "plan_waits_for");
    const json_t *member = member_by_number(cluster, number);
    out[0] = 0;
    if (number == 0) return;
    if (strcmp(text_of(member, "state"), "leaving") == 0 && is_true(member, "alive"))
        snprintf(out, size, "waits for %s, which has %lld hints for others to deliver first",
                 text_of(member, "node_id"), number_of(member, "hints_waiting"));
    else
        snprintf(out, size, "waits for %s, which does not answer", text_of(member, "node_id"));
}

static void
show_move(const json_t *cluster)
{
    const json_t *move = json_object_get(cluster, "move");
    char waits_for[160];
    waits_for_of(cluster, waits_for, sizeof(waits_for));
    if (waits_for[0] != 0) printf("move    %s\n", waits_for);
    if (!json_is_object(move)) return;
    char bytes[32], left[32] = "?";
    human_bytes((double)number_of(move, "bytes"), bytes, sizeof(bytes));
    if (has(move, "left_ms")) human_ms((double)number_of(move, "left_ms"), left, sizeof(left));
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
    human_bytes((double)hint_bytes, bytes, sizeof(bytes));
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
        human_ms((double)number_of(member, "uptime_ms"), uptime, sizeof(uptime));
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
    const json_t *leader = member_by_number(cluster, number_of(cluster, "leader"));
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
    json_t *cluster = ask_status(cli, &exit_code);
    if (cluster == NULL) return exit_code;
    if (cli->set.json)
        print_json(cluster);
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
    json_t *cluster = ask_status(cli, &exit_code);
    if (cluster == NULL) return exit_code;
    if (cli->set.json)
        printf("{\"health\":\"%s\",\"members_alive\":%lld,\"members_count\":%lld,"
               "\"members_ill\":%lld,\"members_stuck\":%lld,\"members_clock_ahead\":%lld}\n",
               health_of(cluster), number_of(cluster, "members_alive"),
               number_of(cluster, "members_count"), members_with(cluster, "ill"),
               members_with(cluster, "stuck"), members_with(cluster, "clock_ahead"));
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
        const json_t *member = member_by_number(ring, (long long)json_integer_value(number));
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
    json_t *ring = ask(cli, &request, "cluster ring", &exit_code);
    if (ring == NULL) return exit_code;
    if (cli->set.json)
        print_json(ring);
    else
        show_ring(ring);
    json_decref(ring);
    return EXIT_OK;
}

/* ---- waiting ---- */

struct wait {
    struct cli *cli;
    bool bar; /* standard error takes one */
    bool drawn;
    u64 until_ns; /* 0: as long as it takes */
    u64 began_ns;
};

static struct wait
wait_begin(struct cli *cli)
{
    u64 now = cli_now_ns();
    return (struct wait){.cli = cli,
                         .bar = isatty(STDERR_FILENO) && !cli->set.quiet,
                         .until_ns = cli->set.wait_ms == 0 ? 0 : now + cli->set.wait_ms * NS_PER_MS,
                         .began_ns = now};
}

static void
wait_clear(struct wait *wait)
{
    if (wait->drawn) fputs("\r\033[K", stderr);
    wait->drawn = false;
}

/* done of total; total 0: not known, only the text. */
static void PRINTF_LIKE(4, 5)
    wait_draw(struct wait *wait, long long done, long long total, const char *format, ...)
{
    if (!wait->bar) return;
    fputs("\r\033[K", stderr);
    if (total > 0) {
        int full = (int)(done * BAR_WIDTH / total);
        fputc('[', stderr);
        for (int i = 0; i < BAR_WIDTH; i++)
            fputc(i < full ? '#' : '.', stderr);
        fprintf(stderr, "] %3lld %%  ", done * 100 / total);
    }
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fflush(stderr);
    wait->drawn = true;
}

/* false: it has taken too long, after a message. */
static bool
wait_pause(struct wait *wait)
{
    if (wait->until_ns != 0 && cli_now_ns() >= wait->until_ns) {
        wait_clear(wait);
        cli_error(wait->cli, "not done yet; it goes on, and \"cluster status\" shows it");
        return false;
    }
    struct timespec pause = {.tv_nsec = LOOK_NS};
    nanosleep(&pause, NULL);
    return true;
}

static void
wait_draw_move(struct wait *wait, const json_t *cluster)
{
    const json_t *move = json_object_get(cluster, "move");
    char waits_for[160];
    waits_for_of(cluster, waits_for, sizeof(waits_for));
    if (waits_for[0] != 0) {
        wait_draw(wait, 0, 0, "%s", waits_for);
        return;
    }
    if (!json_is_object(move)) {
        wait_draw(wait, 0, 0, "waits for a plan");
        return;
    }
    char bytes[32], left[48] = "";
    human_bytes((double)number_of(move, "bytes"), bytes, sizeof(bytes));
    if (has(move, "left_ms")) {
        char time[32];
        human_ms((double)number_of(move, "left_ms"), time, sizeof(time));
        snprintf(left, sizeof(left), ", %s left", time);
    }
    wait_draw(wait, number_of(move, "partitions_done"), number_of(move, "partitions"),
              "%s: %lld of %lld partitions, %s%s", text_of(move, "stage"),
              number_of(move, "partitions_done"), number_of(move, "partitions"), bytes, left);
}

/* Looks at the status until `done` says so, or a plan has come to rest without it: 1, which is no
 * failure of the server. draws: NULL for the move. A node that is asked may be gone for a moment,
 * and the library finds another one. */
static int
wait_until(struct cli *cli, bool (*done)(const json_t *cluster, void *arg), void *arg,
           void (*draws)(struct wait *wait, const json_t *cluster, void *arg))
{
    struct wait wait = wait_begin(cli);
    for (;;) {
        int exit_code = EXIT_OK;
        json_t *cluster = ask_status(cli, &exit_code);
        if (cluster == NULL) {
            wait_clear(&wait);
            return exit_code;
        }
        bool is_done = done(cluster, arg);
        if (!is_done && draws == NULL) wait_draw_move(&wait, cluster);
        if (!is_done && draws != NULL) draws(&wait, cluster, arg);
        json_decref(cluster);
        if (is_done) break;
        if (!wait_pause(&wait)) return EXIT_SERVER;
    }
    wait_clear(&wait);
    return EXIT_OK;
}

/* ---- members ---- */

static int
say(struct cli *cli, const char *json_field, const char *node, const char *text)
{
    if (cli->set.json)
        printf("{\"ok\":true,\"%s\":\"%s\"}\n", json_field, node);
    else
        printf("%s %s\n", node, text);
    return EXIT_OK;
}

struct node_wait {
    const char *name; /* id, or host:port */
    bool is_address;
};

static const json_t *
find_node(const json_t *cluster, const struct node_wait *wanted)
{
    if (!wanted->is_address) return member_by(cluster, "node_id", wanted->name);
    size_t index;
    json_t *member;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        char address[128];
        snprintf(address, sizeof(address), "%s:%lld", text_of(member, "host"),
                 number_of(member, "port"));
        if (strcmp(address, wanted->name) == 0) return member;
    }
    return NULL;
}

static bool
node_is_in(const json_t *cluster, void *arg)
{
    const json_t *member = find_node(cluster, arg);
    return member != NULL && strcmp(text_of(member, "state"), "normal") == 0 &&
           is_true(member, "alive") && is_true(cluster, "settled");
}

static bool
node_is_out(const json_t *cluster, void *arg)
{
    return find_node(cluster, arg) == NULL && !json_is_object(json_object_get(cluster, "move"));
}

static bool
all_is_settled(const json_t *cluster, void *arg)
{
    (void)arg;
    return is_true(cluster, "settled");
}

static void
draw_join(struct wait *wait, const json_t *cluster, void *arg)
{
    const struct node_wait *wanted = arg;
    if (find_node(cluster, wanted) == NULL)
        wait_draw(wait, 0, 0, "waits for %s to join", wanted->name);
    else
        wait_draw_move(wait, cluster);
}

/* Where a node that joins finds the others. */
static void
print_seeds(FILE *out, const json_t *cluster)
{
    size_t index, shown = 0;
    json_t *member;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        if (!is_true(member, "alive") || shown == 3) continue;
        fprintf(out, "%s%s:%lld", shown++ == 0 ? "" : ",", text_of(member, "host"),
                number_of(member, "port"));
    }
}

static void
print_command(const json_t *cluster, const char *node_id, const char *address, long long replaces)
{
    fprintf(stderr, "On the machine of the new node, with an empty directory:\n\n");
    fprintf(stderr,
            "    distkv-server --node-id %s --address %s --data-dir DIRECTORY \\\n"
            "        --cluster-secret-file FILE --seed-nodes ",
            node_id, address);
    print_seeds(stderr, cluster);
    if (replaces != 0) fprintf(stderr, " --replaces %lld", replaces);
    fprintf(stderr, "\n\n");
}

/* A node joins by itself, since it must know the secret: what to run is said, and waited for. */
static int
run_add_node(struct cli *cli, const char *name)
{
    struct node_wait wanted = {.name = name, .is_address = strchr(name, ':') != NULL};
    int exit_code = EXIT_OK;
    json_t *cluster = ask_status(cli, &exit_code);
    if (cluster == NULL) return exit_code;
    if (find_node(cluster, &wanted) == NULL)
        print_command(cluster, wanted.is_address ? "NAME" : name,
                      wanted.is_address ? name : "HOST:PORT", 0);
    json_decref(cluster);
    if (cli->set.no_wait) return EXIT_OK;
    exit_code = wait_until(cli, node_is_in, &wanted, draw_join);
    return exit_code != EXIT_OK ? exit_code : say(cli, "added", name, "is in, with its data");
}

static int
propose(struct cli *cli, const struct distkv_cluster_request *request, const char *what)
{
    int code = distkv_cluster(cli->kv, request, NULL, NULL);
    return code == DISTKV_OK ? EXIT_OK : cli_fail(cli, code, what);
}

static int
run_remove_node(struct cli *cli, const char *name)
{
    struct node_wait wanted = {.name = name};
    const struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_REMOVE,
                                                   .node = name,
                                                   .dead = cli->set.dead != 0,
                                                   .force = cli->set.force != 0};
    int exit_code = propose(cli, &request, "remove-node");
    if (exit_code != EXIT_OK) return exit_code;
    if (!cli->set.no_wait) exit_code = wait_until(cli, node_is_out, &wanted, NULL);
    if (exit_code != EXIT_OK) return exit_code;
    if (cli->set.no_wait) return say(cli, "removed", name, "gives its data away");
    json_t *cluster = ask_status(cli, &exit_code);
    if (cluster == NULL) return exit_code;
    size_t left = json_array_size(json_object_get(cluster, "members"));
    bool few = (long long)left < number_of(cluster, "replicas");
    if (few)
        cli_warn(cli, "nodes left: %zu, replicas a key should have: %lld; add a node", left,
                 number_of(cluster, "replicas"));
    json_decref(cluster);
    const char *dead = few ? "is out" : "is out, its places were taken over";
    return say(cli, "removed", name, cli->set.dead ? dead : "is out: it can be stopped");
}

static int
run_replace_node(struct cli *cli, const char *name)
{
    const char *with = cli->set.with[0] != 0 ? cli->set.with : name;
    struct node_wait wanted = {.name = with};
    int exit_code = EXIT_OK;
    json_t *cluster = ask_status(cli, &exit_code);
    if (cluster == NULL) return exit_code;
    const json_t *old = member_by(cluster, "node_id", name);
    const json_t *new = strcmp(with, name) == 0 ? NULL : member_by(cluster, "node_id", with);
    if (old == NULL) {
        cli_error(cli, "replace-node: no member is called %s", name);
        exit_code = EXIT_SERVER;
    } else if (is_true(old, "alive")) {
        cli_error(cli, "replace-node: %s is alive; stop it first, or use add-node and remove-node",
                  name);
        exit_code = EXIT_SERVER;
    } else if (new != NULL) {
        /* It has its share already: others, and it, take over the rest. */
        const struct distkv_cluster_request request = {
            .function = DISTKV_CLUSTER_REMOVE, .node = name, .dead = 1};
        exit_code = propose(cli, &request, "replace-node");
    } else {
        print_command(cluster, with, "HOST:PORT",
                      strcmp(with, name) == 0 ? 0 : number_of(old, "number"));
    }
    json_decref(cluster);
    if (exit_code != EXIT_OK || cli->set.no_wait) return exit_code;
    exit_code = wait_until(cli, node_is_in, &wanted, draw_join);
    return exit_code != EXIT_OK ? exit_code : say(cli, "replaced", with, "has taken the place");
}

/* NODE=N. */
static int
set_weight(struct cli *cli, char *word)
{
    char *equals = strrchr(word, '=');
    u64 weight = 0;
    if (equals == NULL || equals == word || !option_parse_number(equals + 1, &weight) ||
        weight == 0 || weight > UINT16_MAX)
        return cli_usage(cli, "rebalance: %s is not NODE=VIRTUAL-NODES", word);
    *equals = 0;
    const struct distkv_cluster_request request = {
        .function = DISTKV_CLUSTER_WEIGHT, .node = word, .weight = (u32)weight};
    return propose(cli, &request, "rebalance");
}

/* A plan is made by whoever leads as soon as there is something to move: to rebalance is to change
 * weights, and to see the data get there. */
static int
run_rebalance(struct cli *cli, int count, char **words)
{
    int exit_code = EXIT_OK;
    for (int i = 0; i < count && exit_code == EXIT_OK; i++)
        exit_code = set_weight(cli, words[i]);
    if (exit_code == EXIT_OK && !cli->set.no_wait)
        exit_code = wait_until(cli, all_is_settled, NULL, NULL);
    if (exit_code == EXIT_OK)
        puts(cli->set.json      ? "{\"ok\":true}"
             : cli->set.no_wait ? "begun"
                                : "everything is in its place");
    return exit_code;
}

/* ---- repair ---- */

struct repair_wait {
    const char *node; /* NULL: all */
    json_t *absent;   /* names of members that hold replicas and were away at some moment of it */
    long long missed; /* comparisons that did not take place, or not to the end */
    u32 silent;       /* looks in a row at which a member that lives has not told how far it is */
};

static void
repair_note_absent(struct repair_wait *wanted, const json_t *member)
{
    const char *name = text_of(member, "node_id");
    size_t index;
    json_t *known;
    json_array_foreach(wanted->absent, index, known)
    {
        if (strcmp(json_string_value(known), name) == 0) return;
    }
    (void)json_array_append_new(wanted->absent, json_string(name));
}

/* A member that was started anew meanwhile knows of no repair. */
static bool
is_repaired(const json_t *cluster, void *arg)
{
    struct repair_wait *wanted = arg;
    bool running = false, silent = false;
    size_t index;
    json_t *member;
    wanted->missed = 0;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        bool holds = number_of(member, "partitions") != 0;
        bool asked = wanted->node == NULL || strcmp(text_of(member, "node_id"), wanted->node) == 0;
        bool told = has(member, "version");
        if (!is_true(member, "alive")) {
            if (holds || asked) repair_note_absent(wanted, member);
        } else if (asked && !told) {
            silent = true;
            if (wanted->silent >= SILENT_LOOKS) repair_note_absent(wanted, member);
        } else if (asked) {
            running = running || number_of(member, "repair_running") != 0;
            wanted->missed += number_of(member, "repair_missed");
            if (holds && number_of(member, "repair_partitions") == 0)
                repair_note_absent(wanted, member);
        }
    }
    wanted->silent = silent ? wanted->silent + 1 : 0;
    return !running && (!silent || wanted->silent > SILENT_LOOKS);
}

static void
draw_repair(struct wait *wait, const json_t *cluster, void *arg)
{
    long long done = 0, total = 0, keys = 0;
    size_t index;
    json_t *member;
    (void)arg;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        if (number_of(member, "repair_running") == 0) continue;
        done += number_of(member, "repair_done");
        total += number_of(member, "repair_partitions");
        keys += number_of(member, "repair_keys");
    }
    wait_draw(wait, done, total, "%lld of %lld partitions compared, %lld keys brought", done, total,
              keys);
}

/* Of a repair that has ended. */
static int
repair_result(struct cli *cli, const struct repair_wait *wanted)
{
    char away[512] = "", missed[96] = "";
    size_t index, used = 0;
    json_t *name;
    json_array_foreach(wanted->absent, index, name)
    {
        int n = snprintf(away + used, sizeof(away) - used, "%s%s", index == 0 ? "" : ", ",
                         json_string_value(name));
        used = MIN(used + (size_t)n, sizeof(away) - 1);
    }
    if (wanted->missed != 0)
        snprintf(missed, sizeof(missed), "%s%lld comparisons did not take place or failed",
                 used == 0 ? "" : "; ", wanted->missed);
    bool whole = used == 0 && wanted->missed == 0;
    if (cli->set.json) {
        json_t *out = json_pack("{s:b,s:O,s:I}", "ok", whole, "absent", wanted->absent, "missed",
                                (json_int_t)wanted->missed);
        print_json(out);
        json_decref(out);
    } else if (whole) {
        puts("replicas were compared and mended");
    }
    if (whole) return EXIT_OK;
    cli_error(cli, "not all replicas were compared: %s%s%s; run it again when all are up", away,
              used == 0 ? "" : " did not take part", missed);
    return EXIT_UNHEALTHY;
}

static int
run_repair(struct cli *cli, const char *name)
{
    const struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_REPAIR, .node = name};
    int exit_code = propose(cli, &request, "repair");
    if (exit_code != EXIT_OK) return exit_code;
    if (cli->set.no_wait) {
        puts(cli->set.json ? "{\"ok\":true}" : "begun");
        return EXIT_OK;
    }
    struct repair_wait wanted = {.node = name, .absent = json_array()};
    exit_code = wait_until(cli, is_repaired, &wanted, draw_repair);
    if (exit_code == EXIT_OK) exit_code = repair_result(cli, &wanted);
    json_decref(wanted.absent);
    return exit_code;
}

/* ---- drain ---- */

/* Why it is not safe to stop the node yet; "": it is. */
static void
unsafe_of(const json_t *cluster, const char *name, char *out, size_t size)
{
    const json_t *member = member_by(cluster, "node_id", name);
    out[0] = 0;
    if (member == NULL)
        snprintf(out, size, "no member is called %s", name);
    else if (!is_true(member, "alive"))
        snprintf(out, size, "it does not answer");
    else if (!is_true(member, "drained"))
        snprintf(out, size, "requests end");
    else if (number_of(cluster, "leader") == number_of(member, "number"))
        snprintf(out, size, "gives the lead away");
    else if (json_is_object(json_object_get(cluster, "move")))
        snprintf(out, size, "a move is under way");
    else if (number_of(member, "hints_waiting") != 0 &&
             number_of(cluster, "members_alive") == number_of(cluster, "members_count"))
        snprintf(out, size, "%lld hints are handed on", number_of(member, "hints_waiting"));
}

struct drain_wait {
    const char *node;
    long long at_risk; /* out */
};

static bool
is_drained(const json_t *cluster, void *arg)
{
    struct drain_wait *wanted = arg;
    char why[128];
    unsafe_of(cluster, wanted->node, why, sizeof(why));
    wanted->at_risk = number_of(member_by(cluster, "node_id", wanted->node), "partitions_at_risk");
    return why[0] == 0;
}

static void
draw_drain(struct wait *wait, const json_t *cluster, void *arg)
{
    const struct drain_wait *wanted = arg;
    char why[128];
    unsafe_of(cluster, wanted->node, why, sizeof(why));
    wait_draw(wait, 0, 0, "%s: %s", wanted->node, why);
}

static int
run_drain(struct cli *cli, const char *name)
{
    const struct distkv_cluster_request request = {
        .function = DISTKV_CLUSTER_DRAIN, .node = name, .undo = cli->set.undo != 0};
    struct drain_wait wanted = {.node = name};
    int exit_code = propose(cli, &request, "drain");
    if (exit_code != EXIT_OK) return exit_code;
    if (cli->set.undo) return say(cli, "undone", name, "takes requests again");
    if (cli->set.no_wait) return say(cli, "draining", name, "hands over what it does");
    exit_code = wait_until(cli, is_drained, &wanted, draw_drain);
    if (exit_code != EXIT_OK) return exit_code;
    if (wanted.at_risk == 0) return say(cli, "safe", name, "can be stopped: nothing waits for it");
    /* No waiting helps: others have to come back first, or the keyspace has no replica to spare. */
    cli_error(cli, "%s is drained, but %lld partitions would have no quorum without it", name,
              wanted.at_risk);
    return EXIT_UNHEALTHY;
}

/* ---- keyspaces ---- */

static int
list_keyspaces(struct cli *cli)
{
    int exit_code = EXIT_OK;
    const struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_KEYSPACES};
    json_t *root = ask(cli, &request, "keyspaces", &exit_code);
    if (root == NULL) return exit_code;
    if (cli->set.json) {
        print_json(json_object_get(root, "keyspaces"));
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
    int code = distkv_cluster(cli->kv, &request, NULL, &number);
    if (code != DISTKV_OK) return cli_fail(cli, code, "keyspaces");
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
    {"add-node", 1, 1, run_add_node, NULL},
    {"remove-node", 1, 1, run_remove_node, NULL},
    {"replace-node", 1, 1, run_replace_node, NULL},
    {"rebalance", 0, 64, NULL, run_rebalance},
    {"repair", 0, 1, run_repair, NULL},
    {"drain", 1, 1, run_drain, NULL},
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
