/* SPDX-License-Identifier: MIT
 *
 * main.c -- distkv-bench: flags, what to run, and what becomes of the results.
 *
 *   no option, --standard   the standard set, against a node of its own or --server
 *   --ceiling               this client against a responder that only counts bytes
 *   --compare A B           two results
 *   else                    one run against --server
 *
 * Results go to standard output, everything else to standard error. SIGINT and SIGTERM end a run
 * early, with its report.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "load/compare.h"
#include "load/node.h"
#include "load/report.h"
#include "load/run.h"

#define RESULTS_MAX 16u

enum exit_code { EXIT_OK = 0, EXIT_BAD = 1, EXIT_USAGE = 2, EXIT_CONNECT = 3 };

static _Atomic bool interrupted_flag;

static void
on_signal(int number)
{
    atomic_store(&interrupted_flag, true);
}

static int
fail(int code, const char *text)
{
    fprintf(stderr, "distkv-bench: %s\n", text);
    return code;
}

/* ---- progress ---- */

struct progress {
    bool terminal;
    u64 interval_ms;
    u64 told_ns;
    const char *name;
};

static void
progress_show(void *arg, const char *phase, const struct second *now, double total_s, u64 errors,
              bool final)
{
    struct progress *progress = arg;
    u64 now_ns = clock_now_ns();
    if (final && progress->terminal) fprintf(stderr, "\r\033[K");
    /* The last line of a run is its report. */
    if (final || now_ns - progress->told_ns < (progress->interval_ms - 50) * NS_PER_MS) return;
    progress->told_ns = now_ns;
    char a[SHOWN_BYTES], b[SHOWN_BYTES], c[SHOWN_BYTES], d[SHOWN_BYTES];
    fprintf(stderr, "%s%s %s %.0f s", progress->terminal ? "\r\033[K" : "", progress->name, phase,
            now->at_s);
    if (total_s > 0) fprintf(stderr, " of %.0f s", total_s);
    if (strcmp(phase, "load") == 0)
        fprintf(stderr, "  %s keys", show_count((double)now->answered, a));
    else
        fprintf(stderr, "  %s/s  p50 %s  p99 %s  max %s",
                show_count(now->length_s > 0 ? (double)now->answered / now->length_s : 0, a),
                show_time((double)now->p50_ns, b), show_time((double)now->p99_ns, c),
                show_time((double)now->max_ns, d));
    if (errors > 0) fprintf(stderr, "  errors %s", show_count((double)errors, a));
    fprintf(stderr, "%s", progress->terminal ? "" : "\n");
    fflush(stderr);
}

/* ---- one run ---- */

struct target {
    char host[TEXT_BYTES];
    u16 port;
    struct server_info info;
    struct places places;
};

static int
target_find(const struct settings *settings, struct target *target)
{
    char name[TEXT_BYTES], error[TEXT_BYTES * 2];
    if (!settings_server(settings->server, name, sizeof(name), &target->port)) return EXIT_USAGE;
    if (!machine_resolve(name, target->host, sizeof(target->host), error, sizeof(error)))
        return fail(EXIT_CONNECT, error);
    if (server_info_read(settings, target->host, target->port, &target->info)) {
        if (settings->protocol == PROTOCOL_NATIVE && settings->routing != 0)
            places_read(&target->places, settings, target->host, target->port);
        return EXIT_OK;
    }
    snprintf(error, sizeof(error), "cannot connect to %s", settings->server);
    return fail(EXIT_CONNECT, error);
}

static int
run_one(const struct settings *settings, const struct target *target, const char *name,
        struct result *out)
{
    char problem[TEXT_BYTES], text[TEXT_BYTES * 3];
    struct progress progress = {
        .terminal = isatty(STDERR_FILENO) == 1, .interval_ms = settings->interval_ms, .name = name};
    bool shown = settings->interval_ms > 0 && (progress.terminal || settings->interval_given);
    struct run_input input = {.settings = settings,
                              .name = name,
                              .host = target->host,
                              .port = target->port,
                              .places = &target->places,
                              .server_pid = target->info.pid,
                              .interrupted = &interrupted_flag,
                              .progress = shown ? progress_show : NULL,
                              .progress_arg = &progress};
    switch (run_measure(&input, out, problem, sizeof(problem))) {
    case RUN_DONE:
        return EXIT_OK;
    case RUN_UNREACHABLE:
        snprintf(text, sizeof(text), "%s: %s", settings->server, problem);
        result_free(out);
        return fail(EXIT_CONNECT, text);
    case RUN_FAILED:
        break;
    }
    result_free(out);
    return fail(EXIT_BAD, problem);
}

/* ---- results ---- */

static bool
write_file(const struct settings *settings, const struct report *report)
{
    FILE *file = fopen(settings->output, "we");
    bool done = file != NULL && report_write(report, (enum format)settings->format, file);
    if (file != NULL && fclose(file) != 0) done = false;
    if (!done) fprintf(stderr, "distkv-bench: %s: %s\n", settings->output, strerror(errno));
    return done;
}

static int
results_tell(const struct settings *settings, struct report *report)
{
    bool written = true;
    if (settings->output[0] != '\0') written = write_file(settings, report);
    enum format format = settings->output[0] != '\0' ? FORMAT_TEXT : (enum format)settings->format;
    written = report_write(report, format, stdout) && written;
    bool bad = !written;
    for (u32 i = 0; i < report->count; i++)
        bad = bad || result_is_bad(&report->results[i]);
    return bad ? EXIT_BAD : EXIT_OK;
}

static void
results_free(struct result *results, u32 count)
{
    for (u32 i = 0; i < count; i++)
        result_free(&results[i]);
}

/* ---- the sets ---- */

/* The cores that this process may use: the first half for a server, the second for the client. One
 * core: nobody is pinned. */
struct halves {
    char server[TEXT_BYTES], client[TEXT_BYTES];
    u32 server_first;
    bool pinned;
};

static void
cores_halve(struct halves *out)
{
    *out = (struct halves){0};
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
    u32 all = (u32)CPU_COUNT(&allowed), seen = 0;
    u32 half = MIN(all / 2, LIMIT_SHARDS);
    if (half == 0) return;
    out->pinned = true;
    for (u32 core = 0; core < CPU_SETSIZE; core++) {
        if (!CPU_ISSET(core, &allowed)) continue;
        if (seen == 0) out->server_first = core;
        bool server = seen < half, client = seen >= all - half;
        seen++;
        char *list = server ? out->server : out->client;
        size_t used = strlen(list);
        if (server || client)
            snprintf(list + used, TEXT_BYTES - used, "%s%u", used > 0 ? "," : "", core);
    }
}

struct entry {
    const char *name, *workload;
    u32 depth;
    bool load;
};

static const struct entry STANDARD[] = {
    {"set-p1", "set", 1, true},     {"set-p16", "set", 16, false},  {"set-p64", "set", 64, false},
    {"get-p1", "get", 1, false},    {"get-p16", "get", 16, false},  {"get-p64", "get", 64, false},
    {"ycsb-a", "ycsb-a", 1, false}, {"ycsb-b", "ycsb-b", 1, false}, {"ycsb-c", "ycsb-c", 1, false},
};

static const struct entry CEILING[] = {
    {"get-p1", "get", 1, false}, {"get-p16", "get", 16, false}, {"get-p64", "get", 64, false},
    {"set-p1", "set", 1, false}, {"set-p16", "set", 16, false}, {"set-p64", "set", 64, false},
};
static_assert(ARRAY_COUNT(STANDARD) <= RESULTS_MAX && ARRAY_COUNT(CEILING) <= RESULTS_MAX,
              "room for all results");

static u64
workload_index(const char *name)
{
    u64 i = 0;
    while (strcmp(workload_names[i], name) != 0)
        i++;
    return i;
}

static int
run_set(const struct settings *base, const struct entry *entries, u32 count,
        const struct target *target)
{
    struct result results[RESULTS_MAX];
    struct report report = {.server = target->info, .results = results};
    machine_read(&report.machine);
    int code = EXIT_OK;
    for (u32 i = 0; i < count && code == EXIT_OK && !atomic_load(&interrupted_flag); i++) {
        struct settings settings = *base;
        char error[OPTION_ERROR_BYTES];
        settings.workload = workload_index(entries[i].workload);
        settings.pipeline = entries[i].depth;
        settings.load = entries[i].load;
        if (!settings_finish(&settings, error, sizeof(error))) {
            code = fail(EXIT_USAGE, error);
            break;
        }
        if (isatty(STDERR_FILENO) != 1)
            fprintf(stderr, "distkv-bench: %s, %u of %u\n", entries[i].name, i + 1, count);
        code = run_one(&settings, target, entries[i].name, &results[report.count]);
        if (code == EXIT_OK) report.count++;
    }
    if (code == EXIT_OK && report.count > 0) code = results_tell(base, &report);
    results_free(results, report.count);
    return code;
}

/* What a set takes as its own where nothing was said. */
static bool
given(int argc, char **argv, const char *name)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i] + strspn(argv[i], "-");
        size_t size = strlen(name);
        if (word != argv[i] && strncmp(word, name, size) == 0 &&
            (word[size] == '\0' || word[size] == '='))
            return true;
    }
    return false;
}

static void
set_defaults(struct settings *settings, int argc, char **argv, const struct halves *halves)
{
    if (!given(argc, argv, "duration")) settings->duration_ms = 5000;
    if (!given(argc, argv, "cores") && !given(argc, argv, "threads") && halves->pinned)
        snprintf(settings->cores, sizeof(settings->cores), "%s", halves->client);
}

static int
standard_set(struct settings *settings, int argc, char **argv)
{
    struct child child = {0};
    struct halves halves;
    struct target target = {0};
    char error[OPTION_ERROR_BYTES];
    cores_halve(&halves);
    set_defaults(settings, argc, argv, &halves);
    if (settings->rate > 0 || settings->count > 0 || settings->protocol != PROTOCOL_RESP)
        return fail(EXIT_USAGE, "the standard set is a closed loop over RESP, by time");
    if (!settings->server_given) {
        if (!node_start(&child, halves.server, &interrupted_flag, error, sizeof(error)))
            return fail(EXIT_BAD, error);
        snprintf(settings->server, sizeof(settings->server), "127.0.0.1:%u", child.port);
    }
    int code = target_find(settings, &target);
    if (code == EXIT_OK) code = run_set(settings, STANDARD, ARRAY_COUNT(STANDARD), &target);
    child_stop(&child);
    return code;
}

static int
ceiling(struct settings *settings, int argc, char **argv)
{
    struct child child;
    struct halves halves;
    char error[OPTION_ERROR_BYTES];
    cores_halve(&halves);
    set_defaults(settings, argc, argv, &halves);
    if (settings->rate > 0 || settings->count > 0 || settings->protocol != PROTOCOL_RESP)
        return fail(EXIT_USAGE, "the ceiling is a closed loop over RESP, by time");
    if (!responder_start(&child, halves.pinned, halves.server_first, error, sizeof(error)))
        return fail(EXIT_BAD, error);
    struct target target = {.host = "127.0.0.1",
                            .port = child.port,
                            .info = {.name = "fixed replies", .pid = (u64)child.pid}};
    snprintf(settings->server, sizeof(settings->server), "127.0.0.1:%u", child.port);
    int code = run_set(settings, CEILING, ARRAY_COUNT(CEILING), &target);
    child_stop(&child);
    return code;
}

static int
single(const struct settings *settings)
{
    struct target target = {0};
    struct result result;
    int code = target_find(settings, &target);
    if (code != EXIT_OK) return code;
    struct report report = {.server = target.info, .results = &result, .count = 1};
    machine_read(&report.machine);
    code = run_one(settings, &target, settings->name, &result);
    places_free(&target.places);
    if (code != EXIT_OK) return code;
    code = results_tell(settings, &report);
    result_free(&result);
    return code;
}

/* A descriptor for each connection, as far as the system lets us. */
static void
descriptors_raise(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

static int
help(void)
{
    size_t size = option_help_text(&settings_table, NULL, 0) + 1;
    char *text = malloc(size);
    if (text == NULL) return EXIT_BAD;
    option_help_text(&settings_table, text, size);
    fputs(text, stdout);
    free(text);
    return fflush(stdout) == 0 ? EXIT_OK : EXIT_BAD;
}

int
main(int argc, char **argv)
{
    struct settings settings;
    const char *words[2];
    u32 word_count = 0;
    char error[OPTION_ERROR_BYTES];
    settings_defaults(&settings);
    if (!settings_parse(&settings, argc, (const char *const *)argv, words, 2, &word_count, error,
                        sizeof(error)))
        return fail(EXIT_USAGE, error);
    if (settings.help) return help();
    if (settings.version) {
        printf("distkv-bench %s\n", DISTKV_VERSION);
        return EXIT_OK;
    }
    if (settings.compare) {
        if (word_count != 2) return fail(EXIT_USAGE, "--compare needs two files");
        bool done = compare_files(words[0], words[1], stdout, error, sizeof(error));
        return done ? EXIT_OK : fail(EXIT_BAD, error);
    }
    if (word_count > 0) return fail(EXIT_USAGE, "unexpected words: see --help");
    if (!settings_finish(&settings, error, sizeof(error))) return fail(EXIT_USAGE, error);

    descriptors_raise();
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (settings.ceiling) return ceiling(&settings, argc, argv);
    if (settings.standard || argc == 1) return standard_set(&settings, argc, argv);
    return single(&settings);
}
