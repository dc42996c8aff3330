/* SPDX-License-Identifier: MIT
 *
 * main.c -- distkv-sim: whole histories of a node on the simulated link, one for each seed.
 *
 *     distkv-sim --seed 17 --mode swarm            one run; exit status 1 when a rule is violated
 *     distkv-sim --seeds 1..200 --mode lite        many, with a summary
 *     distkv-sim --seed 17 --shrink                less that still fails in the same way
 *     distkv-sim --seed 17 --verify-determinism    the same seed twice: equal traces?
 *
 *     distkv-sim --seed 17 --mode cluster          several nodes: cluster_history.c
 *
 * A machine "server" runs the production code (src/server without host_*, src/lsm, src/proto,
 * src/base: the very objects of distkv-server) on one to four shards; other machines run clients.
 * What is drawn, and what is demanded: knobs.c, check.c, docs/testing.md.
 */
#include "cluster.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#define SLOW 15u
#else
#define SLOW 1u
#endif
/* Real time that a seed may take, against hanging; far above what it takes on a busy machine. */
#define SEED_SECONDS_MAX (120u * SLOW)

#define SITES_MAX 1024u

struct arguments {
    struct run_options options;
    u64 first, last;
    bool twice, shrinks, marks, json, hashes, quiet;
};

static const char usage[] =
    "usage: distkv-sim --seed N | --seeds A..B [--ops N] [--faults N]\n"
    "                  [--mode lite|swarm|liveness|beyond|cluster|cluster-swarm]\n"
    "                  [--off FAMILY,...] [--skip FAMILY:NUMBER,...] [--flaw NAME]\n"
    "                  [--trace] [--log] [--verify-determinism] [--shrink]\n"
    "                  [--marks] [--hashes] [--json]\n";

static void
fail_usage(const char *what)
{
    fprintf(stderr, "distkv-sim: %s\n%s", what, usage);
    exit(2);
}

/* ---- arguments ---- */

static void
print_help(void)
{
    printf("%s\nfault families for --off and --skip:", usage);
    for (u32 i = 0; i < SIM_FAULT_COUNT; i++)
        printf("%s %s", i % 8 == 0 ? "\n   " : "", sim_fault_name((enum sim_fault)i));
    printf("\n--ops: so many requests while things fail, instead of what the seed draws; those of "
           "the calm\n"
           "    and of the last reader, who asks for every key, come on top of it");
    printf("\nmistakes for --flaw, which the judge must notice:");
    for (u32 i = 1; i < RUN_FLAW_COUNT; i++)
        printf(" %s", run_flaw_names[i]);
    printf("\nexit status: 0, 1 when a rule is violated, 2 for wrong options\n");
    exit(0);
}

#define SEEDS_WANTED "seeds are numbers from 1 to 18446744073709551614"
/* So many that no run ends. */
#define OPS_MAX       1000000000u
#define FAULTS_WANTED "--faults wants a number from 1 to 1000000000"
#define OPS_WANTED    "--ops wants a number from 1 to 1000000000"
#define SKIP_WANTED   "--skip wants FAMILY:NUMBER,... with numbers from 0 to 4294967295"

/* All of text must be digits; refused says what is wanted, for a number outside of the range, too.
 */
static u64
number_of(struct bytes text, u64 least, u64 most, const char *refused)
{
    u64 number = 0;
    for (size_t i = 0; i < text.size; i++) {
        u64 digit = (u64)text.data[i] - '0';
        if (digit > 9 || __builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, digit, &number))
            fail_usage(refused);
    }
    if (text.size == 0 || number < least || number > most) fail_usage(refused);
    return number;
}

/* Below the last number that there is, so that counting on ends. */
static u64
seed_of(const char *text, size_t size)
{
    return number_of(BYTES(text, size), 1, UINT64_MAX - 1, SEEDS_WANTED);
}

static u32
name_of(const char *text, size_t size, const char *const *names, u32 count)
{
    for (u32 i = 0; i < count; i++)
        if (strlen(names[i]) == size && strncmp(names[i], text, size) == 0) return i;
    fprintf(stderr, "distkv-sim: unknown name '%.*s'\n", (int)size, text);
    exit(2);
}

static enum sim_fault
family_of(const char *text, size_t size)
{
    for (u32 i = 0; i < SIM_FAULT_COUNT; i++) {
        const char *name = sim_fault_name((enum sim_fault)i);
        if (strlen(name) == size && strncmp(name, text, size) == 0) return (enum sim_fault)i;
    }
    fprintf(stderr, "distkv-sim: unknown family '%.*s'\n", (int)size, text);
    exit(2);
}

static void
off_read(struct run_options *options, const char *text)
{
    while (*text != '\0') {
        size_t size = strcspn(text, ",");
        options->off |= 1ull << family_of(text, size);
        text += size + (text[size] == ',');
    }
}

static int
skip_order(const void *a, const void *b)
{
    const struct sim_fault_id *x = a, *y = b;
    if (x->family != y->family) return x->family < y->family ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* In order, and each once, however often it was named: so it is looked for. */
static void
skips_sort(struct run_options *options)
{
    struct sim_fault_id *skips = options->skips;
    u32 count = 0;
    qsort(skips, options->skip_count, sizeof(skips[0]), skip_order);
    for (u32 i = 0; i < options->skip_count; i++)
        if (count == 0 || skip_order(&skips[count - 1], &skips[i]) != 0) skips[count++] = skips[i];
    options->skip_count = count;
}

static void
skips_read(struct run_options *options, const char *text)
{
    while (*text != '\0') {
        size_t size = strcspn(text, ",");
        const char *colon = memchr(text, ':', size);
        if (colon == NULL) fail_usage(SKIP_WANTED);
        if (options->skip_count == RUN_SKIPS_MAX) fail_usage("too many faults for --skip");
        size_t name = (size_t)(colon - text);
        enum sim_fault family = family_of(text, name);
        struct bytes digits = BYTES(colon + 1, size - name - 1);
        u32 number = (u32)number_of(digits, 0, UINT32_MAX, SKIP_WANTED);
        options->skips[options->skip_count++] = (struct sim_fault_id){family, number};
        text += size + (text[size] == ',');
    }
    skips_sort(options);
}

static void
seeds_read(struct arguments *arguments, const char *text)
{
    const char *dots = strstr(text, "..");
    if (dots == NULL) fail_usage("--seeds wants A..B");
    arguments->first = seed_of(text, (size_t)(dots - text));
    arguments->last = seed_of(dots + 2, strlen(dots + 2));
    if (arguments->last < arguments->first)
        fail_usage("the last of --seeds comes before the first");
}

static bool
flag_read(struct arguments *arguments, const char *name)
{
    struct {
        const char *name;
        bool *to;
    } flags[] = {
        {"--trace", &arguments->options.trace},
        {"--log", &arguments->options.log},
        {"--verify-determinism", &arguments->twice},
        {"--shrink", &arguments->shrinks},
        {"--marks", &arguments->marks},
        {"--json", &arguments->json},
        {"--hashes", &arguments->hashes},
    };
    for (u32 i = 0; i < ARRAY_COUNT(flags); i++) {
        if (strcmp(name, flags[i].name) != 0) continue;
        *flags[i].to = true;
        return true;
    }
    return false;
}

static void
arguments_read(struct arguments *arguments, int argc, char **argv)
{
    struct run_options *options = &arguments->options;
    options->mode = RUN_SWARM;
    for (int i = 1; i < argc; i++) {
        if (flag_read(arguments, argv[i])) continue;
        if (strcmp(argv[i], "--help") == 0) print_help();
        if (i + 1 == argc) fail_usage("unknown option, or a value is missing");
        const char *name = argv[i], *value = argv[++i];
        if (strcmp(name, "--seed") == 0) {
            arguments->first = arguments->last = seed_of(value, strlen(value));
        } else if (strcmp(name, "--seeds") == 0) {
            seeds_read(arguments, value);
        } else if (strcmp(name, "--mode") == 0) {
            options->mode = (enum run_mode)name_of(value, strlen(value), run_mode_names, RUN_MODES);
        } else if (strcmp(name, "--ops") == 0) {
            options->ops = number_of(BYTES(value, strlen(value)), 1, OPS_MAX, OPS_WANTED);
        } else if (strcmp(name, "--faults") == 0) {
            options->faults_max = number_of(BYTES(value, strlen(value)), 1, OPS_MAX, FAULTS_WANTED);
        } else if (strcmp(name, "--off") == 0) {
            off_read(options, value);
        } else if (strcmp(name, "--skip") == 0) {
            skips_read(options, value);
        } else if (strcmp(name, "--flaw") == 0) {
            options->flaw =
                (enum run_flaw)name_of(value, strlen(value), run_flaw_names, RUN_FLAW_COUNT);
        } else {
            fail_usage("unknown option");
        }
    }
    if (arguments->last == 0) fail_usage("--seed or --seeds is needed");
    if (arguments->shrinks && arguments->first != arguments->last)
        fail_usage("--shrink wants one seed");
    if (run_of_cluster(options->mode) && options->flaw != RUN_FLAW_NONE)
        fail_usage("--flaw is made between clients and one node: not in a cluster");
}

/* ---- figures of many seeds ---- */

static struct {
    u64 seeds, failed, gave_up, judged, operations, configs, configs_max;
    u64 faults[SIM_FAULT_COUNT];
    struct run_stats stats;
    double cpu_max;
    u64 cpu_max_seed;
    float *cpu; /* of each seed in turn */
    u64 cpu_count;
    struct site {
        const char *name;
        bool is_mark;
        u64 passed;
    } sites[SITES_MAX];
    u32 site_count;
} totals;

static double
cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* They come in the same order each time. */
static void
site_add(void *arg, const char *name, bool is_mark, u64 passed)
{
    u32 *at = arg;
    CHECK(*at < SITES_MAX);
    struct site *site = &totals.sites[(*at)++];
    site->name = name;
    site->is_mark = is_mark;
    site->passed += passed;
    totals.site_count = MAX(totals.site_count, *at);
}

static void
totals_add(double cpu)
{
    u32 at = 0;
    sim_site_each(site_add, &at);
    totals.seeds++;
    if ((totals.cpu_count & (totals.cpu_count - 1)) == 0) {
        totals.cpu = realloc(totals.cpu, 2 * (totals.cpu_count + 1) * sizeof(*totals.cpu));
        CHECK(totals.cpu != NULL);
    }
    totals.cpu[totals.cpu_count++] = (float)cpu;
    if (cpu > totals.cpu_max) {
        totals.cpu_max = cpu;
        totals.cpu_max_seed = run->options->seed;
    }
    totals.failed += run->rule != NULL;
    if (run->cluster != NULL) {
        totals.gave_up += run->cluster->gave_up;
        totals.judged += run->cluster->judged;
    } else {
        const struct model_stats *model = model_stats(run->model);
        totals.gave_up += model->gave_up;
        totals.judged += model->judged;
        totals.operations += model->operations;
        totals.configs += model->configs;
        totals.configs_max = MAX(totals.configs_max, model->configs_max);
    }
    for (u32 i = 0; i < SIM_FAULT_COUNT; i++)
        totals.faults[i] += sim_fault_count(run->sim, (enum sim_fault)i);
    u64 *to = (u64 *)&totals.stats;
    const u64 *from = (const u64 *)&run->stats;
    for (u32 i = 0; i < sizeof(run->stats) / sizeof(u64); i++)
        to[i] += from[i];
}

static const char *const stat_names[] = {
    "requests",
    "answers",
    "refusals",
    "unknown",
    "connections",
    "connects_failed",
    "resends",
    "replays",
    "starts",
    "starts_failed",
    "power_cuts",
    "kills",
    "stops",
    "resizes",
    "recoveries_cut",
    "scans",
    "scanned_keys",
    "snapshots",
    "execs",
    "execs_aborted",
    "execs_stale",
    "hostile",
    "flushes",
    "compactions",
    "virtual_ns",
    "events",
    "refusals_unharmed",
    "crashes_at_events",
    "recoveries_cut_at_events",
    "recoveries_cut_again",
    "ends_survived",
    "ends_lost",
    "starts_starved",
    "damaged",
};
static_assert(ARRAY_COUNT(stat_names) == sizeof(struct run_stats) / sizeof(u64), "a name each");

static void
totals_print(bool json)
{
    const u64 *stats = (const u64 *)&totals.stats;
    if (!json) {
        printf("%llu seeds, %llu failed, %.1f virtual hours, %llu events, %llu requests, "
               "%llu judged, %llu given up, slowest seed %llu: %.3f s\n",
               (unsigned long long)totals.seeds, (unsigned long long)totals.failed,
               (double)totals.stats.virtual_ns / 3.6e12, (unsigned long long)totals.stats.events,
               (unsigned long long)totals.stats.requests, (unsigned long long)totals.judged,
               (unsigned long long)totals.gave_up, (unsigned long long)totals.cpu_max_seed,
               totals.cpu_max);
        return;
    }
    printf("{\"seeds\":%llu,\"failed\":%llu,\"judged\":%llu,\"gave_up\":%llu,\"operations\":%llu,"
           "\"configs_max\":%llu,\"cpu_max\":%.3f,\"cpu_max_seed\":%llu",
           (unsigned long long)totals.seeds, (unsigned long long)totals.failed,
           (unsigned long long)totals.judged, (unsigned long long)totals.gave_up,
           (unsigned long long)totals.operations, (unsigned long long)totals.configs_max,
           totals.cpu_max, (unsigned long long)totals.cpu_max_seed);
    for (u32 i = 0; i < ARRAY_COUNT(stat_names); i++)
        printf(",\"%s\":%llu", stat_names[i], (unsigned long long)stats[i]);
    printf(",\"faults\":{");
    for (u32 i = 0; i < SIM_FAULT_COUNT; i++)
        printf("%s\"%s\":%llu", i > 0 ? "," : "", sim_fault_name((enum sim_fault)i),
               (unsigned long long)totals.faults[i]);
    printf("},\"cpu\":[");
    for (u64 i = 0; i < totals.cpu_count; i++)
        printf("%s%.3f", i > 0 ? "," : "", (double)totals.cpu[i]);
    printf("],\"sites\":{");
    for (u32 i = 0; i < totals.site_count; i++)
        printf("%s\"%s\":[%s,%llu]", i > 0 ? "," : "", totals.sites[i].name,
               totals.sites[i].is_mark ? "true" : "false",
               (unsigned long long)totals.sites[i].passed);
    printf("}}\n");
}

static void
marks_print(void)
{
    for (u32 i = 0; i < totals.site_count; i++)
        printf("%10llu %s%s\n", (unsigned long long)totals.sites[i].passed, totals.sites[i].name,
               totals.sites[i].is_mark ? "" : " (made common)");
}

/* ---- one seed, many seeds ---- */

/* True: nothing was violated. */
static bool
seed_run(const struct run_options *options, u64 *hash_out)
{
    report_watchdog_start(SEED_SECONDS_MAX);
    double begun = cpu_seconds();
    history_run(options, hash_out);
    bool good = run->rule == NULL;
    if (!good) report_print();
    totals_add(cpu_seconds() - begun);
    history_free();
    report_watchdog_start(0);
    return good;
}

static int
seeds_run(struct arguments *arguments)
{
    bool good = true;
    for (u64 seed = arguments->first; seed <= arguments->last; seed++) {
        u64 hash;
        arguments->options.seed = seed;
        good &= seed_run(&arguments->options, &hash);
        if (arguments->hashes) {
            printf("%llu %016llx\n", (unsigned long long)seed, (unsigned long long)hash);
            fflush(stdout);
        }
    }
    if (arguments->marks && !arguments->json) marks_print();
    if (!arguments->hashes) totals_print(arguments->json);
    return good ? 0 : 1;
}

/* In the child of a fork: this program again, for one seed, with the same other options. */
static NORETURN void
again_exec(char **argv, u64 seed, int to)
{
    static char *args[64], one[] = "--seed", shows[] = "--hashes";
    u32 count = 0;
    char number[24];
    snprintf(number, sizeof(number), "%llu", (unsigned long long)seed);
    for (u32 i = 0; argv[i] != NULL && count < ARRAY_COUNT(args) - 4; i++) {
        bool seeds = strcmp(argv[i], "--seed") == 0 || strcmp(argv[i], "--seeds") == 0;
        if (seeds) i++; /* and its value, which is there */
        if (!seeds && strcmp(argv[i], "--verify-determinism") != 0) args[count++] = argv[i];
    }
    args[count++] = one;
    args[count++] = number;
    args[count++] = shows;
    if (dup2(to, STDOUT_FILENO) >= 0) execv("/proc/self/exe", args);
    _exit(127);
}

/* The trace's hash of a seed in a process of its own, and whether it violated no rule. false: it
 * ended without one. */
static bool
hash_again(char **argv, u64 seed, u64 *hash_out, bool *good_out)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return false;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) again_exec(argv, seed, ends[1]);
    close(ends[1]);
    FILE *from = fdopen(ends[0], "r");
    CHECK(from != NULL);
    unsigned long long told, hash;
    bool found = child > 0 && fscanf(from, "%llu %llx", &told, &hash) == 2 && told == seed;
    fclose(from);
    int ended = -1;
    if (child > 0 && waitpid(child, &ended, 0) != child) ended = -1;
    if (found) *hash_out = hash;
    *good_out = ended == 0;
    return found;
}

/* Each seed in two processes that are started anew: what depends on where things lie differs. */
static int
seeds_run_twice(const struct arguments *arguments, char **argv)
{
    int result = 0;
    for (u64 seed = arguments->first; seed <= arguments->last; seed++) {
        u64 hashes[2] = {0};
        bool good[2] = {false};
        bool told = hash_again(argv, seed, &hashes[0], &good[0]) &&
                    hash_again(argv, seed, &hashes[1], &good[1]);
        bool same = told && hashes[0] == hashes[1];
        if (same && good[0] && good[1]) continue;
        if (same)
            fprintf(stderr, "seed %llu gives the same trace twice, and violates a rule\n",
                    (unsigned long long)seed);
        else if (told)
            fprintf(stderr, "seed %llu is not deterministic: %016llx, then %016llx\n",
                    (unsigned long long)seed, (unsigned long long)hashes[0],
                    (unsigned long long)hashes[1]);
        else
            fprintf(stderr, "seed %llu ends without a trace\n", (unsigned long long)seed);
        result = 1;
    }
    if (result == 0)
        printf("%llu seeds give the same trace twice\n",
               (unsigned long long)(arguments->last - arguments->first + 1));
    return result;
}

int
main(int argc, char **argv)
{
    static struct arguments arguments;
    arguments_read(&arguments, argc, argv);
    report_program_set(argv[0]);
    report_signals_set();
    arguments.options.seed = arguments.first;
    if (arguments.shrinks) return shrink_main(&arguments.options);
    if (arguments.twice) return seeds_run_twice(&arguments, argv);
    return seeds_run(&arguments);
}
