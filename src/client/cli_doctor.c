/* SPDX-License-Identifier: MIT
 *
 * cli_doctor.c -- distkv-client doctor: what a person would look at first when something is wrong.
 *
 * Each finding is ok, a warning (works, but not as well as it could, or not for long), or a
 * failure. The exit status is 5 when there is a failure, else 0; 3 when nobody answers at all.
 * The kernel and its limits are looked at only when the server is on this machine.
 */
#include "client/cli.h"

#include "base/histogram.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>

/* In a keyspace that keeps siblings. */
#define DOCTOR_SIBLING_KEYS 64u

enum finding { FINDING_OK, FINDING_WARNING, FINDING_FAILURE };

struct doctor {
    struct cli *cli;
    u32 counts[3];
    bool first;
};

PRINTF_LIKE(4, 5)
static void
find(struct doctor *doctor, enum finding finding, const char *check, const char *format, ...)
{
    static const char *const names[] = {"ok", "warning", "failure"};
    static const char *const colors[] = {"32", "33", "31"};
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    doctor->counts[finding]++;
    if (doctor->cli->set.json) {
        printf("%s{\"check\":\"%s\",\"result\":\"%s\",\"text\":", doctor->first ? "" : ",", check,
               names[finding]);
        doctor->first = false;
        if (!text_write_json(stdout, text, strlen(text))) fputs("\"\"", stdout);
        putchar('}');
    } else if (doctor->cli->color) {
        printf("\033[%sm%-8s\033[0m %-12s %s\n", colors[finding], names[finding], check, text);
    } else {
        printf("%-8s %-12s %s\n", names[finding], check, text);
    }
}

/* ---- the server ---- */

static void
check_versions(struct doctor *doctor)
{
    struct distkv_server_info info;
    if (distkv_server(doctor->cli->kv, &info) != DISTKV_OK) return;
    find(doctor, FINDING_OK, "connect", "%s is node %s with %u shards", info.server, info.node_id,
         info.shards);
    if (strcmp(info.version, distkv_version()) == 0)
        find(doctor, FINDING_OK, "version", "server and client are %s", info.version);
    else
        find(doctor, FINDING_WARNING, "version", "the server is %s, this client is %s",
             info.version, distkv_version());
}

static void
check_latency(struct doctor *doctor)
{
    struct histogram *histogram = calloc(1, sizeof(*histogram));
    if (histogram == NULL) return;
    int code = DISTKV_OK;
    for (u64 i = 0; i < doctor->cli->set.count && code == DISTKV_OK; i++) {
        u64 start = cli_now_ns();
        code = distkv_ping(doctor->cli->kv);
        if (code == DISTKV_OK) histogram_record(histogram, cli_now_ns() - start);
    }
    double p50 = (double)histogram_percentile(histogram, 500000) / 1e6;
    double p99 = (double)histogram_percentile(histogram, 990000) / 1e6;
    if (code != DISTKV_OK)
        find(doctor, FINDING_FAILURE, "latency", "a ping failed: %s",
             distkv_error(doctor->cli->kv));
    else
        find(doctor, p99 > 50 ? FINDING_WARNING : FINDING_OK, "latency",
             "round trip p50 %.3f ms, p99 %.3f ms over %" PRIu64 " pings", p50, p99,
             histogram->count);
    free(histogram);
}

static u64
number_of(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_integer(value) || json_integer_value(value) < 0) return 0;
    return (u64)json_integer_value(value);
}

static const char *
text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

/* The node as a whole. */
static void
check_load(struct doctor *doctor, const json_t *root)
{
    u64 limit = number_of(root, "memory_limit_bytes");
    u64 used = MAX(number_of(root, "resident_bytes"), number_of(root, "memory_used_bytes"));
    if (limit > 0 && used > 0)
        find(doctor, used > limit + limit / 10 ? FINDING_FAILURE : FINDING_OK, "memory",
             "%.1f MiB of %.1f MiB", (double)used / (double)MIB(1), (double)limit / (double)MIB(1));
    u64 refused = number_of(root, "writes_refused");
    if (refused > 0)
        find(doctor, FINDING_WARNING, "writes",
             "%" PRIu64 " writes were refused since the start (overload or a full disk)", refused);
    u64 replay = number_of(root, "log_replay_bytes");
    u64 debt = number_of(root, "compaction_debt_bytes");
    find(doctor, replay > GIB(8) ? FINDING_WARNING : FINDING_OK, "log",
         "%.1f MiB to replay after a crash", (double)replay / (double)MIB(1));
    find(doctor, debt > GIB(8) ? FINDING_WARNING : FINDING_OK, "compaction",
         "%.1f MiB are still to be merged", (double)debt / (double)MIB(1));
}

static void
check_shard(struct doctor *doctor, const json_t *shard, size_t index)
{
    const char *state = text_of(shard, "state");
    const char *failure = text_of(shard, "failure");
    if (state[0] != '\0' && strcmp(state, "ok") != 0)
        find(doctor, FINDING_FAILURE, "shard", "shard %zu: %s%s%s", index, state,
             failure[0] == '\0' ? "" : ": ", failure);
    u64 used = number_of(shard, "memory_bytes");
    u64 limit = number_of(shard, "memory_limit_bytes");
    if (limit > 0 && used > limit)
        find(doctor, FINDING_FAILURE, "memory", "shard %zu: %" PRIu64 " bytes of %" PRIu64, index,
             used, limit);
    u64 stalls = number_of(shard, "stalls");
    if (stalls > 0)
        find(doctor, FINDING_WARNING, "stalls",
             "shard %zu: %" PRIu64 " turns of its loop took longer than they should", index,
             stalls);
    u64 debt = number_of(shard, "compaction_debt_bytes");
    if (debt > GIB(4))
        find(doctor, FINDING_WARNING, "compaction", "shard %zu: %.1f GiB are still to be merged",
             index, (double)debt / (double)GIB(1));
    u64 replay = number_of(shard, "log_replay_bytes");
    if (replay > GIB(4))
        find(doctor, FINDING_WARNING, "log", "shard %zu: %.1f GiB to replay after a crash", index,
             (double)replay / (double)GIB(1));
}

static void
check_state(struct doctor *doctor)
{
    char *text;
    int code = distkv_status(doctor->cli->kv, &text);
    if (code != DISTKV_OK) {
        find(doctor, FINDING_FAILURE, "status", "%s", distkv_error(doctor->cli->kv));
        return;
    }
    json_t *root = json_loads(text, 0, NULL);
    distkv_free(text);
    if (!json_is_object(root)) {
        find(doctor, FINDING_FAILURE, "status", "the server's state is not a JSON object");
        json_decref(root);
        return;
    }
    const char *state = text_of(root, "state");
    bool fine = state[0] == '\0' || strcmp(state, "ok") == 0;
    find(doctor, fine ? FINDING_OK : FINDING_FAILURE, "state", "%s",
         fine ? "the server takes reads and writes" : state);
    if (json_is_false(json_object_get(root, "ready")))
        find(doctor, FINDING_FAILURE, "ready", "the server is not ready yet");
    u64 corruptions = number_of(root, "corruptions");
    find(doctor, corruptions > 0 ? FINDING_FAILURE : FINDING_OK, "data",
         corruptions > 0 ? "%" PRIu64 " damaged blocks were found; see the server's log, and "
                           "distkv-server --verify"
                         : "%" PRIu64 " damaged blocks",
         corruptions);
    check_load(doctor, root);
    size_t index;
    json_t *shard;
    json_array_foreach(json_object_get(root, "shards"), index, shard)
        check_shard(doctor, shard, index);
    json_decref(root);
}

/* A write, read and removal of a key that nobody uses. Where siblings are kept nothing expires, and
 * a key that was deleted leaves a trace for good: there it is one of a few. */
static void
check_write(struct doctor *doctor)
{
    distkv *kv = doctor->cli->kv;
    char key[64];
    u64 start = cli_now_ns();
    int size = snprintf(key, sizeof(key), "distkv:doctor:%016" PRIx64, start);
    struct distkv_write write = {
        .condition = DISTKV_IF_ABSENT, .expiry = DISTKV_EXPIRE_AFTER, .expiry_ms = 60000};
    int code = distkv_put(kv, key, (size_t)size, "doctor", 6, &write, NULL);
    if (code == DISTKV_UNSUPPORTED) {
        size = snprintf(key, sizeof(key), "distkv:doctor:%02" PRIx64, start % DOCTOR_SIBLING_KEYS);
        start = cli_now_ns();
        code = distkv_put(kv, key, (size_t)size, "doctor", 6, NULL, NULL);
    }
    double ms = (double)(cli_now_ns() - start) / 1e6;
    if (code != DISTKV_OK) {
        find(doctor, FINDING_FAILURE, "write", "%s", distkv_error(kv));
        return;
    }
    struct distkv_value value;
    code = distkv_get(kv, key, (size_t)size, &value);
    bool same = code == DISTKV_OK && value.size == 6 && memcmp(value.data, "doctor", 6) == 0;
    if (code == DISTKV_OK) distkv_value_free(&value);
    if (!same)
        find(doctor, FINDING_FAILURE, "write", "what was written does not read back");
    else
        find(doctor, ms > 100 ? FINDING_WARNING : FINDING_OK, "write",
             "a durable write took %.3f ms", ms);
    if (distkv_delete(kv, key, (size_t)size, NULL) != DISTKV_OK)
        find(doctor, FINDING_WARNING, "write", "the test key could not be deleted: %s",
             distkv_error(kv));
}

/* ---- this machine ---- */

/* The first line of a file, or "". */
static const char *
first_line(const char *path, char *out, size_t size)
{
    out[0] = '\0';
    FILE *file = fopen(path, "r");
    if (file == NULL) return out;
    if (fgets(out, (int)size, file) == NULL) out[0] = '\0';
    fclose(file);
    out[strcspn(out, "\n")] = '\0';
    return out;
}

/* The number that a file holds; -1 when there is none. */
static long
number_in(const char *path)
{
    char line[32];
    char *end;
    long number = strtol(first_line(path, line, sizeof(line)), &end, 10);
    return end == line ? -1 : number;
}

static void
check_kernel(struct doctor *doctor)
{
    struct utsname name;
    unsigned major = 0, minor = 0;
    if (uname(&name) == 0 && sscanf(name.release, "%u.%u", &major, &minor) == 2) {
        bool fine = major > 6 || (major == 6 && minor >= 1);
        find(doctor, fine ? FINDING_OK : FINDING_FAILURE, "kernel", "Linux %s%s", name.release,
             fine ? "" : ": 6.1 or newer is needed");
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        find(doctor, limit.rlim_max < 65536 ? FINDING_WARNING : FINDING_OK, "files",
             "%llu open files are allowed here%s", (unsigned long long)limit.rlim_max,
             limit.rlim_max < 65536 ? "; a server with many clients needs 65536 or more" : "");
    char line[256];
    if (strstr(first_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof(line)),
               "[always]") != NULL)
        find(doctor, FINDING_WARNING, "pages",
             "transparent huge pages are always on: memory may grow; madvise is better");
    long backlog = number_in("/proc/sys/net/core/somaxconn");
    if (backlog >= 0 && backlog < 1024)
        find(doctor, FINDING_WARNING, "backlog",
             "net.core.somaxconn is %ld: bursts of connections may be refused", backlog);
    long swappiness = number_in("/proc/sys/vm/swappiness");
    if (swappiness > 10) {
        char swaps[256];
        FILE *file = fopen("/proc/swaps", "r");
        bool used = file != NULL && fgets(swaps, sizeof(swaps), file) != NULL &&
                    fgets(swaps, sizeof(swaps), file) != NULL;
        if (file != NULL) fclose(file);
        if (used)
            find(doctor, FINDING_WARNING, "swap",
                 "swap is on with vm.swappiness %ld: latencies may suffer", swappiness);
    }
    if (first_line("/proc/sys/kernel/io_uring_disabled", line, sizeof(line))[0] != '\0' &&
        strcmp(line, "0") != 0)
        find(doctor, FINDING_FAILURE, "io_uring", "kernel.io_uring_disabled is %s", line);
    if (first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", line,
                   sizeof(line))[0] != '\0' &&
        strcmp(line, "performance") != 0)
        find(doctor, FINDING_WARNING, "governor", "the cpu frequency governor is %s", line);
    const char *clock = first_line(
        "/sys/devices/system/clocksource/clocksource0/current_clocksource", line, sizeof(line));
    if (strcmp(clock, "hpet") == 0 || strcmp(clock, "acpi_pm") == 0)
        find(doctor, FINDING_WARNING, "clock", "the clock source is %s, which is slow to read",
             clock);
}

static bool
is_local(const char *server)
{
    return strncmp(server, "127.", 4) == 0 || strncmp(server, "localhost", 9) == 0 ||
           strncmp(server, "[::1]", 5) == 0;
}

int
cmd_doctor(struct cli *cli, int count, char **words)
{
    (void)count;
    (void)words;
    struct doctor doctor = {.cli = cli, .first = true};
    int exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) return exit_code;
    if (cli->set.json) fputs("{\"findings\":[", stdout);
    check_versions(&doctor);
    check_latency(&doctor);
    check_state(&doctor);
    check_write(&doctor);
    if (is_local(cli->set.server)) check_kernel(&doctor);
    exit_code = doctor.counts[FINDING_FAILURE] > 0 ? EXIT_UNHEALTHY : EXIT_OK;
    if (cli->set.json)
        printf("],\"warnings\":%u,\"failures\":%u,\"healthy\":%s}\n",
               doctor.counts[FINDING_WARNING], doctor.counts[FINDING_FAILURE],
               exit_code == EXIT_OK ? "true" : "false");
    else
        printf("%s: %u ok, %u warnings, %u failures\n",
               exit_code == EXIT_OK ? "healthy" : "unhealthy", doctor.counts[FINDING_OK],
               doctor.counts[FINDING_WARNING], doctor.counts[FINDING_FAILURE]);
    return cli_finish_output(cli, exit_code);
}
