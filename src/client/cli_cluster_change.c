/* SPDX-License-Identifier: MIT
 *
 * cli_cluster_change.c -- what takes long: members that come and go, weights, repair, drain. Each
 * is begun at the server, and waited for until all is in its place, with a bar, unless --no-wait.
 *
 * To wait is to look at the status again and again: so it can be broken off and begun again at any
 * time, and nothing that was begun depends on it.
 */
#include "client/cli_cluster.h"

#include <stdarg.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS   (250 * NS_PER_MS)
#define BAR_WIDTH 30
/* Of a member that does not answer, or lives and does not tell its figures: 10 s. */
#define SILENT_LOOKS 40u
/* For so long no status at all is waited through. */
#define SILENT_NS (30 * NS_PER_S)
/* For so long a change is asked for again. */
#define CHANGE_NS (30 * NS_PER_S)

/* ---- changes ---- */

/* Whom a change takes out: the only one that cannot be asked for twice without more ado, as who is
 * out is no member that could be, and under its name there may be another one by then. */
struct leaver {
    const char *name;
    long long number; /* 0: not known */
    long long epoch;  /* at which it was a member */
};

static struct leaver
leaver_find(struct cli *cli, const struct distkv_cluster_request *request)
{
    struct leaver leaver = {.name = request->node};
    if (request->function != DISTKV_CLUSTER_REMOVE || request->undo) return leaver;
    json_t *cluster = cli_cluster_try_status(cli);
    leaver.number = number_of(cli_cluster_member(cluster, "node_id", leaver.name), "number");
    leaver.epoch = number_of(cluster, "epoch");
    json_decref(cluster);
    return leaver;
}

/* A node that knows less than was seen before has no say. */
static bool
leaver_is_out(struct cli *cli, const struct leaver *leaver)
{
    if (leaver->number == 0) return false;
    json_t *cluster = cli_cluster_try_status(cli);
    bool out = cluster != NULL && number_of(cluster, "epoch") > leaver->epoch &&
               cli_cluster_member_by_number(cluster, leaver->number) == NULL;
    json_decref(cluster);
    return out;
}

/* Whether it may be done, or can be in a moment: nobody led, or who did was late. again: it was
 * asked for before. */
static bool
is_passing(int code, const struct leaver *leaver, bool again)
{
    switch (code) {
    case DISTKV_UNKNOWN_OUTCOME:
    case DISTKV_TIMED_OUT:
    case DISTKV_OVERLOADED:
        return true;
    case DISTKV_UNREACHABLE:
        return again; /* others are tried, and it may come back */
    case DISTKV_NOT_FOUND:
        return again && leaver->number != 0; /* it is out: the status is about to say so */
    default:
        return false;
    }
}

/* What is there already is no refusal: the node that is asked looks at the newest state, and says
 * that it is done. So whatever became of the earlier attempts, the answer to the last one is true.
 */
int
cli_cluster_change(struct cli *cli, const struct distkv_cluster_request *request, const char *what,
                   uint64_t *number_out)
{
    u64 wait_ns = cli->set.wait_ms == 0 ? CHANGE_NS : cli->set.wait_ms * NS_PER_MS;
    u64 until_ns = cli_now_ns() + MIN(wait_ns, CHANGE_NS);
    const struct leaver leaver = leaver_find(cli, request);
    for (bool again = false;; again = true) {
        if (again && leaver_is_out(cli, &leaver)) return EXIT_OK;
        int code = distkv_cluster(cli->kv, request, NULL, number_out);
        if (code == DISTKV_OK) return EXIT_OK;
        if (!is_passing(code, &leaver, again) || cli_now_ns() >= until_ns)
            return cli_cluster_fail(cli, request, code, what);
        if (!again) cli_warn(cli, "%s: %s; it is asked for again", what, distkv_error(cli->kv));
        struct timespec pause = {.tv_nsec = LOOK_NS};
        nanosleep(&pause, NULL);
    }
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
    cli_cluster_waits_for(cluster, waits_for, sizeof(waits_for));
    if (waits_for[0] != 0) {
        wait_draw(wait, 0, 0, "%s", waits_for);
        return;
    }
    if (!json_is_object(move)) {
        wait_draw(wait, 0, 0, "waits for a plan");
        return;
    }
    const json_t *missing = json_array_get(json_object_get(move, "waits"), 0);
    if (missing != NULL) {
        wait_draw(wait, 0, 0, "waits for a node that does not answer: see \"cluster status\"");
        return;
    }
    char bytes[32], left[48] = "";
    cli_cluster_bytes_text((double)number_of(move, "bytes"), bytes, sizeof(bytes));
    if (has(move, "left_ms")) {
        char time[32];
        cli_cluster_ms_text((double)number_of(move, "left_ms"), time, sizeof(time));
        snprintf(left, sizeof(left), ", %s left", time);
    }
    wait_draw(wait, number_of(move, "partitions_done"), number_of(move, "partitions"),
              "%s: %lld of %lld partitions, %s%s", text_of(move, "stage"),
              number_of(move, "partitions_done"), number_of(move, "partitions"), bytes, left);
}

/* Looks at the status until `done` says so. draws: NULL for the move. A node that is asked may be
 * gone for a moment, and the library finds another one; or none answers in time, as when nodes are
 * busy with what is waited for: that is given up after a while, and goes on all the same. */
static int
wait_until(struct cli *cli, bool (*done)(const json_t *cluster, void *arg), void *arg,
           void (*draws)(struct wait *wait, const json_t *cluster, void *arg))
{
    struct wait wait = wait_begin(cli);
    u64 answered_ns = wait.began_ns;
    for (;;) {
        int exit_code = EXIT_OK;
        bool last = cli_now_ns() - answered_ns > SILENT_NS;
        json_t *cluster =
            last ? cli_cluster_ask_status(cli, &exit_code) : cli_cluster_try_status(cli);
        if (cluster == NULL && last) {
            wait_clear(&wait);
            cli_warn(cli, "what was begun goes on; \"cluster status\" shows it");
            return exit_code;
        }
        if (cluster == NULL) {
            wait_draw(&wait, 0, 0, "no node answers");
            if (!wait_pause(&wait)) return EXIT_SERVER;
            continue;
        }
        answered_ns = cli_now_ns();
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
    if (!wanted->is_address) return cli_cluster_member(cluster, "node_id", wanted->name);
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

/* A plan is begun only some time after the member is out, and until it has ended there is a copy
 * less. */
static bool
node_is_made_up_for(const json_t *cluster, void *arg)
{
    return find_node(cluster, arg) == NULL && is_true(cluster, "settled");
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
int
cli_cluster_add_node(struct cli *cli, const char *name)
{
    struct node_wait wanted = {.name = name, .is_address = strchr(name, ':') != NULL};
    int exit_code = EXIT_OK;
    json_t *cluster = cli_cluster_ask_status(cli, &exit_code);
    if (cluster == NULL) return exit_code;
    const json_t *member = find_node(cluster, &wanted);
    if (member == NULL)
        print_command(cluster, wanted.is_address ? "NAME" : name,
                      wanted.is_address ? name : "HOST:PORT", 0);
    else if (!is_true(member, "alive"))
        cli_warn(cli, "%s is a member, and does not answer: start it again, or replace-node", name);
    json_decref(cluster);
    if (cli->set.no_wait) return EXIT_OK;
    exit_code = wait_until(cli, node_is_in, &wanted, draw_join);
    return exit_code != EXIT_OK ? exit_code : say(cli, "added", name, "is in, with its data");
}

/* Whether fewer nodes are left than replicas are wanted; that is said, too. */
static int
warn_of_few(struct cli *cli, bool *few)
{
    int exit_code = EXIT_OK;
    json_t *cluster = cli_cluster_ask_status(cli, &exit_code);
    if (cluster == NULL) return exit_code;
    size_t left = json_array_size(json_object_get(cluster, "members"));
    *few = (long long)left < number_of(cluster, "replicas");
    if (*few)
        cli_warn(cli, "nodes left: %zu, replicas a key should have: %lld; add a node", left,
                 number_of(cluster, "replicas"));
    json_decref(cluster);
    return EXIT_OK;
}

int
cli_cluster_remove_node(struct cli *cli, const char *name)
{
    struct node_wait wanted = {.name = name};
    const struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_REMOVE,
                                                   .node = name,
                                                   .dead = cli->set.dead != 0,
                                                   .force = cli->set.force != 0,
                                                   .undo = cli->set.undo != 0};
    if (request.undo && (request.dead || request.force))
        return cli_usage(cli, "remove-node: --undo takes back that a node leaves as it was asked "
                              "to, and goes with no other");
    int exit_code = cli_cluster_change(cli, &request, "remove-node", NULL);
    if (exit_code != EXIT_OK) return exit_code;
    if (request.undo) return say(cli, "undone", name, "stays");
    if (cli->set.no_wait)
        return say(cli, "removed", name,
                   cli->set.dead ? "is out, the others take over" : "gives its data away");
    exit_code = wait_until(cli, cli->set.dead ? node_is_made_up_for : node_is_out, &wanted, NULL);
    if (exit_code != EXIT_OK) return exit_code;
    bool few;
    exit_code = warn_of_few(cli, &few);
    if (exit_code != EXIT_OK) return exit_code;
    const char *dead = few ? "is out" : "is out, its places were taken over";
    return say(cli, "removed", name, cli->set.dead ? dead : "is out: it can be stopped");
}

int
cli_cluster_replace_node(struct cli *cli, const char *name)
{
    const char *with = cli->set.with[0] != 0 ? cli->set.with : name;
    struct node_wait wanted = {.name = with};
    int exit_code = EXIT_OK;
    json_t *cluster = cli_cluster_ask_status(cli, &exit_code);
    if (cluster == NULL) return exit_code;
    const json_t *old = cli_cluster_member(cluster, "node_id", name);
    const json_t *new =
        strcmp(with, name) == 0 ? NULL : cli_cluster_member(cluster, "node_id", with);
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
        exit_code = cli_cluster_change(cli, &request, "replace-node", NULL);
    } else {
        print_command(cluster, with, "HOST:PORT",
                      strcmp(with, name) == 0 ? 0 : number_of(old, "number"));
    }
    bool was_in = new != NULL, few = false;
    json_decref(cluster);
    if (exit_code != EXIT_OK || cli->set.no_wait) return exit_code;
    exit_code = wait_until(cli, node_is_in, &wanted, draw_join);
    if (exit_code == EXIT_OK && was_in) exit_code = warn_of_few(cli, &few);
    if (exit_code != EXIT_OK) return exit_code;
    return say(cli, "replaced", with, few ? "goes on without it" : "has taken the place");
}

/* NODE=N. */
static bool
weight_parse(const char *word, u32 *weight_out)
{
    const char *equals = strrchr(word, '=');
    u64 weight = 0;
    if (equals == NULL || equals == word || !option_parse_number(equals + 1, &weight) ||
        weight == 0 || weight > UINT16_MAX)
        return false;
    *weight_out = (u32)weight;
    return true;
}

static int
set_weight(struct cli *cli, char *word)
{
    u32 weight = 0;
    CHECK(weight_parse(word, &weight));
    *strrchr(word, '=') = 0;
    const struct distkv_cluster_request request = {
        .function = DISTKV_CLUSTER_WEIGHT, .node = word, .weight = weight};
    return cli_cluster_change(cli, &request, "rebalance", NULL);
}

/* A plan is made by whoever leads as soon as there is something to move: to rebalance is to change
 * weights, and to see the data get there. */
int
cli_cluster_rebalance(struct cli *cli, int count, char **words)
{
    int exit_code = EXIT_OK;
    u32 weight;
    for (int i = 0; i < count; i++) /* all, before anything is done */
        if (!weight_parse(words[i], &weight))
            return cli_usage(cli, "rebalance: %s is not NODE=VIRTUAL-NODES", words[i]);
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

/* Of what nodes do, not the cluster: who does not answer is named, and that is no matter of
 * waiting. */
static int
have_done(struct cli *cli, const struct distkv_cluster_request *request, const char *what)
{
    int code = distkv_cluster(cli->kv, request, NULL, NULL);
    return code == DISTKV_OK ? EXIT_OK : cli_cluster_fail(cli, request, code, what);
}

struct repair_wait {
    const char *node;  /* NULL: all */
    json_t *absent;    /* names of members that hold replicas and were away at some moment of it */
    long long missed;  /* comparisons that did not take place, or not to the end */
    long long damaged; /* ... and those that damage of a node prevents */
    json_t *harmed;    /* names of members that have it */
    u32 silent;        /* looks in a row at which a member that lives has not told how far it is */
};

static void
note_name(json_t *names, const json_t *member)
{
    const char *name = text_of(member, "node_id");
    size_t index;
    json_t *known;
    json_array_foreach(names, index, known)
    {
        if (strcmp(json_string_value(known), name) == 0) return;
    }
    (void)json_array_append_new(names, json_string(name));
}

static void
repair_note_absent(struct repair_wait *wanted, const json_t *member)
{
    note_name(wanted->absent, member);
}

static void
names_text(const json_t *names, char *out, size_t size)
{
    size_t index, used = 0;
    json_t *name;
    out[0] = 0;
    json_array_foreach(names, index, name)
    {
        int n = snprintf(out + used, size - used, "%s%s", index == 0 ? "" : ", ",
                         json_string_value(name));
        used = MIN(used + (size_t)n, size - 1);
    }
}

/* A member that was started anew meanwhile knows of no repair. */
static bool
is_repaired(const json_t *cluster, void *arg)
{
    struct repair_wait *wanted = arg;
    bool running = false, silent = false;
    size_t index;
    json_t *member;
    wanted->missed = wanted->damaged = 0;
    json_array_foreach(json_object_get(cluster, "members"), index, member)
    {
        bool holds = number_of(member, "partitions") != 0;
        bool asked = wanted->node == NULL || strcmp(text_of(member, "node_id"), wanted->node) == 0;
        bool told = has(member, "version");
        if (number_of(member, "damaged_files") != 0) note_name(wanted->harmed, member);
        if (!is_true(member, "alive")) {
            if (holds || asked) repair_note_absent(wanted, member);
        } else if (asked && !told) {
            silent = true;
            if (wanted->silent >= SILENT_LOOKS) repair_note_absent(wanted, member);
        } else if (asked) {
            running = running || number_of(member, "repair_running") != 0;
            wanted->missed += number_of(member, "repair_missed");
            wanted->damaged += number_of(member, "repair_damaged");
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
    char away[512], harmed[512], missed[96] = "";
    names_text(wanted->absent, away, sizeof(away));
    names_text(wanted->harmed, harmed, sizeof(harmed));
    if (wanted->missed != 0)
        snprintf(missed, sizeof(missed), "%s%lld comparisons did not take place or failed",
                 away[0] == 0 ? "" : "; ", wanted->missed);
    bool complete = away[0] == 0 && wanted->missed == 0, whole = complete && wanted->damaged == 0;
    if (cli->set.json) {
        json_t *out = json_pack("{s:b,s:O,s:I,s:I,s:O}", "ok", whole, "absent", wanted->absent,
                                "missed", (json_int_t)wanted->missed, "damaged",
                                (json_int_t)wanted->damaged, "damaged_nodes", wanted->harmed);
        cli_cluster_print(out);
        json_decref(out);
    } else if (whole) {
        puts("replicas were compared and mended");
    }
    if (whole) return EXIT_OK;
    if (wanted->damaged != 0)
        cli_error(cli,
                  "damaged blocks (of %s) prevent %lld comparisons of partitions: nothing of them "
                  "is settled until the damage is gone; all else was compared",
                  harmed[0] == 0 ? "a node, whose log names the file" : harmed, wanted->damaged);
    if (!complete)
        cli_error(cli, "not all replicas were compared: %s%s%s; run it again when all are up", away,
                  away[0] == 0 ? "" : " did not take part", missed);
    return EXIT_UNHEALTHY;
}

int
cli_cluster_repair(struct cli *cli, const char *name)
{
    const struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_REPAIR, .node = name};
    int exit_code = have_done(cli, &request, "repair");
    if (exit_code != EXIT_OK) return exit_code;
    if (cli->set.no_wait) {
        puts(cli->set.json ? "{\"ok\":true}" : "begun");
        return EXIT_OK;
    }
    struct repair_wait wanted = {.node = name, .absent = json_array(), .harmed = json_array()};
    exit_code = wait_until(cli, is_repaired, &wanted, draw_repair);
    if (exit_code == EXIT_OK) exit_code = repair_result(cli, &wanted);
    json_decref(wanted.absent);
    json_decref(wanted.harmed);
    return exit_code;
}

/* ---- drain ---- */

/* Why it is not safe to stop the node yet; "": it is. */
static void
unsafe_of(const json_t *cluster, const char *name, char *out, size_t size)
{
    const json_t *member = cli_cluster_member(cluster, "node_id", name);
    out[0] = 0;
    if (member == NULL)
        snprintf(out, size, "no member is called %s", name);
    else if (!is_true(member, "alive"))
        snprintf(out, size, "it does not answer");
    else if (!is_true(member, "drained") && !is_true(member, "clock_wrong"))
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
    u32 missed;        /* looks in a row that found it dead, or no member */
    long long at_risk; /* out */
};

static bool
is_drained(const json_t *cluster, void *arg)
{
    struct drain_wait *wanted = arg;
    char why[128];
    const json_t *member = cli_cluster_member(cluster, "node_id", wanted->node);
    unsafe_of(cluster, wanted->node, why, sizeof(why));
    wanted->at_risk = number_of(member, "partitions_at_risk");
    /* Who dies meanwhile, or is taken out, is never safe to stop. */
    wanted->missed = is_true(member, "alive") ? 0 : wanted->missed + 1;
    return why[0] == 0 || wanted->missed >= SILENT_LOOKS;
}

static void
draw_drain(struct wait *wait, const json_t *cluster, void *arg)
{
    const struct drain_wait *wanted = arg;
    char why[128];
    unsafe_of(cluster, wanted->node, why, sizeof(why));
    wait_draw(wait, 0, 0, "%s: %s", wanted->node, why);
}

int
cli_cluster_drain(struct cli *cli, const char *name)
{
    const struct distkv_cluster_request request = {
        .function = DISTKV_CLUSTER_DRAIN, .node = name, .undo = cli->set.undo != 0};
    struct drain_wait wanted = {.node = name};
    int exit_code = have_done(cli, &request, "drain");
    if (exit_code != EXIT_OK) return exit_code;
    if (cli->set.undo) return say(cli, "undone", name, "takes requests again");
    if (cli->set.no_wait) return say(cli, "draining", name, "hands over what it does");
    exit_code = wait_until(cli, is_drained, &wanted, draw_drain);
    if (exit_code != EXIT_OK) return exit_code;
    if (wanted.missed != 0) {
        cli_error(cli, "%s does not answer any more, or is no member: its drain has not ended",
                  name);
        return EXIT_SERVER;
    }
    if (wanted.at_risk == 0) return say(cli, "safe", name, "can be stopped: nothing waits for it");
    /* No waiting helps: others have to come back first, or the keyspace has no replica to spare. */
    cli_error(cli, "%s is drained, but %lld partitions would have no quorum without it", name,
              wanted.at_risk);
    return EXIT_UNHEALTHY;
}
