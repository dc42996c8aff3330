/* SPDX-License-Identifier: MIT
 *
 * report.c -- see report.h. What is derived (rates, CPU time of an operation, whether the client
 * itself was busy) is computed at the top, once for all formats; each format is one section that
 * only shows it.
 */
#include "load/report.h"

#include <inttypes.h>
#include <stdlib.h>

struct quantile {
    const char *name;
    double part;
};

static const struct quantile QUANTILES[] = {
    {"p50", 0.5},  {"p75", 0.75},    {"p90", 0.9},       {"p95", 0.95},
    {"p99", 0.99}, {"p99.9", 0.999}, {"p99.99", 0.9999}, {"p99.999", 0.99999},
};

/* ---- numbers for people ---- */

const char *
show_count(double count, char out[SHOWN_BYTES])
{
    char digits[SHOWN_BYTES];
    int size = snprintf(digits, sizeof(digits), "%.0f", count);
    size_t used = 0;
    for (int i = 0; i < size && used + 2 < SHOWN_BYTES; i++) {
        if (i > 0 && (size - i) % 3 == 0 && digits[i - 1] != '-') out[used++] = ',';
        out[used++] = digits[i];
    }
    out[used] = '\0';
    return out;
}

const char *
show_time(double ns, char out[SHOWN_BYTES])
{
    static const char *const units[] = {"ns", "us", "ms", "s"};
    u32 unit = 0;
    while (ns >= 1000 && unit < 3) {
        ns /= 1000;
        unit++;
    }
    int digits = unit == 0 ? 0 : ns >= 100 ? 0 : ns >= 10 ? 1 : 2;
    snprintf(out, SHOWN_BYTES, "%.*f %s", digits, ns, units[unit]);
    return out;
}

/* ---- what is computed from a result ---- */

static double
rate_of(const struct result *result)
{
    return result->elapsed_s > 0 ? (double)result->counters.answered / result->elapsed_s : 0;
}

/* Microseconds of CPU for each answered request. */
static double
cpu_us(const struct result *result, double cpu_s)
{
    return result->counters.answered > 0 ? cpu_s * 1e6 / (double)result->counters.answered : 0;
}

/* How much of its threads the client used. */
static double
client_busy(const struct result *result)
{
    double threads = (double)result->settings.threads;
    return result->elapsed_s > 0 ? result->client_cpu_s / (result->elapsed_s * threads) : 0;
}

static bool
is_open(const struct result *result)
{
    return result->settings.rate > 0;
}

/* It did not keep up with the rate asked for: it took notably longer than the time given. */
static bool
fell_behind(const struct result *result)
{
    return is_open(result) && rate_of(result) < 0.99 * (double)result->settings.rate;
}

/* ---- JSON ---- */

static json_t *
json_errors(const struct errors *errors)
{
    json_t *list = json_array();
    for (u32 i = 0; i < errors->kinds; i++) {
        const struct error_count *kind = &errors->kind[i];
        json_array_append_new(list, json_pack("{s:s, s:I, s:s}", "kind", kind->name, "count",
                                              (json_int_t)kind->count, "example", kind->text));
    }
    return list;
}

static json_t *
json_latency(const struct latency *l)
{
    json_t *object = json_object();
    json_object_set_new(object, "count", json_integer((json_int_t)latency_count(l)));
    json_object_set_new(object, "mean", json_real(latency_mean_ns(l) / 1e3));
    for (u32 i = 0; i < ARRAY_COUNT(QUANTILES); i++)
        json_object_set_new(object, QUANTILES[i].name,
                            json_real((double)latency_percentile_ns(l, QUANTILES[i].part) / 1e3));
    json_object_set_new(object, "max", json_real((double)l->max_ns / 1e3));
    json_t *buckets = json_array();
    for (u32 i = 0; i < LATENCY_BUCKETS; i++)
        if (l->buckets[i] > 0)
            json_array_append_new(buckets, json_pack("[I, I]", (json_int_t)latency_bucket_last(i),
                                                     (json_int_t)l->buckets[i]));
    json_object_set_new(object, "buckets_ns", buckets);
    return object;
}

/* Every option but those that say where results go or are secret. */
static json_t *
json_options(const struct settings *settings)
{
    static const char *const left_out[] = {"password", "password-file", "format",    "output",
                                           "interval", "standard",      "ceiling",   "compare",
                                           "help",     "version",       "server-pid"};
    json_t *object = json_object();
    for (u32 i = 0; i < settings_table.count; i++) {
        const struct option *option = &settings_table.options[i];
        bool skip = false;
        for (u32 j = 0; j < ARRAY_COUNT(left_out); j++)
            skip = skip || strcmp(option->name, left_out[j]) == 0;
        if (skip) continue;
        char text[OPTION_TEXT_BYTES];
        option_get(option, settings, text, sizeof(text));
        u64 number;
        bool is_number = option->kind == OPTION_NUMBER && option_parse_number(text, &number);
        json_object_set_new(object, option->name,
                            is_number ? json_integer((json_int_t)number) : json_string(text));
    }
    return object;
}

static json_t *
json_series(const struct result *result)
{
    json_t *list = json_array();
    for (u32 i = 0; i < result->series_count; i++) {
        const struct second *second = &result->series[i];
        json_array_append_new(
            list,
            json_pack("{s:f, s:f, s:f, s:f, s:f, s:I}", "at_s", second->at_s, "rate",
                      second->length_s > 0 ? (double)second->answered / second->length_s : 0.0,
                      "p50_us", (double)second->p50_ns / 1e3, "p99_us",
                      (double)second->p99_ns / 1e3, "max_us", (double)second->max_ns / 1e3,
                      "errors", (json_int_t)second->errors));
    }
    return list;
}

static json_t *
json_result(const struct result *result)
{
    const struct counters *counters = &result->counters;
    json_t *object = json_pack(
        "{s:s, s:o, s:b, s:s, s:f, s:I, s:f, s:I, s:I, s:I, s:I, s:I, s:I}", "name", result->name,
        "options", json_options(&result->settings), "stopped_early", result->stopped, "latency_is",
        is_open(result) ? "from the intended start" : "service time", "seconds", result->elapsed_s,
        "requests", (json_int_t)counters->answered, "rate", rate_of(result), "misses",
        (json_int_t)counters->misses, "scanned_entries", (json_int_t)counters->entries, "verified",
        (json_int_t)counters->verified, "reconnects", (json_int_t)counters->reconnects,
        "sent_bytes", (json_int_t)counters->sent_bytes, "received_bytes",
        (json_int_t)counters->received_bytes);
    if (object == NULL) return NULL;
    if (result->client_cpu_known) {
        json_object_set_new(object, "client_cpu_us_per_op",
                            json_real(cpu_us(result, result->client_cpu_s)));
        json_object_set_new(object, "client_busy", json_real(client_busy(result)));
    }
    if (result->server_cpu_known)
        json_object_set_new(object, "server_cpu_us_per_op",
                            json_real(cpu_us(result, result->server_cpu_s)));
    if (result->settings.load)
        json_object_set_new(object, "load",
                            json_pack("{s:I, s:f}", "requests", (json_int_t)result->load_count,
                                      "seconds", result->load_s));
    json_object_set_new(object, "error_count", json_integer((json_int_t)result->errors.total));
    json_object_set_new(object, "errors", json_errors(&result->errors));
    json_object_set_new(object, "wrong_count", json_integer((json_int_t)result->wrong.total));
    json_object_set_new(object, "wrong", json_errors(&result->wrong));
    json_t *latencies = json_object();
    json_object_set_new(latencies, "total", json_latency(result->total));
    for (u32 op = 0; op < OP_COUNT; op++)
        if (result->latency[op] != NULL)
            json_object_set_new(latencies, op_names[op], json_latency(result->latency[op]));
    json_object_set_new(object, "latency_us", latencies);
    if (is_open(result)) json_object_set_new(object, "client_late_us", json_latency(result->late));
    json_object_set_new(object, "series", json_series(result));
    return object;
}

json_t *
report_json(const struct report *report)
{
    const struct machine *machine = &report->machine;
    const struct server_info *server = &report->server;
    json_t *runs = json_array();
    for (u32 i = 0; i < report->count; i++)
        json_array_append_new(runs, json_result(&report->results[i]));
    return json_pack(
        "{s:{s:i, s:s, s:s}, s:{s:s, s:s, s:i, s:I}, s:{s:s, s:s, s:s, s:s, s:I}, s:o}",
        "distkv_bench", "format", REPORT_FORMAT, "version", DISTKV_VERSION, "time", machine->time,
        "machine", "kernel", machine->kernel, "cpu", machine->cpu, "cores", (int)machine->cores,
        "memory_bytes", (json_int_t)machine->memory_bytes, "server", "name", server->name,
        "version", server->version, "redis_version", server->redis_version, "mode", server->mode,
        "pid", (json_int_t)server->pid, "runs", runs);
}

/* ---- CSV ---- */

static void
write_csv(const struct report *report, FILE *out)
{
    fprintf(out, "run,requests_of,count,rate,seconds,mean_us");
    for (u32 i = 0; i < ARRAY_COUNT(QUANTILES); i++)
        fprintf(out, ",%s_us", QUANTILES[i].name);
    fprintf(out, ",max_us,client_cpu_us_per_op,server_cpu_us_per_op,errors,wrong,misses\n");
    for (u32 i = 0; i < report->count; i++) {
        const struct result *result = &report->results[i];
        for (u32 op = 0; op <= OP_COUNT; op++) {
            bool total = op == OP_COUNT;
            const struct latency *l = total ? result->total : result->latency[op];
            if (l == NULL) continue;
            u64 count = latency_count(l);
            fprintf(out, "%s,%s,%" PRIu64 ",%.1f,%.3f,%.3f", result->name,
                    total ? "total" : op_names[op], count,
                    result->elapsed_s > 0 ? (double)count / result->elapsed_s : 0,
                    result->elapsed_s, latency_mean_ns(l) / 1e3);
            for (u32 j = 0; j < ARRAY_COUNT(QUANTILES); j++)
                fprintf(out, ",%.3f", (double)latency_percentile_ns(l, QUANTILES[j].part) / 1e3);
            fprintf(out, ",%.3f", (double)l->max_ns / 1e3);
            if (total && result->client_cpu_known)
                fprintf(out, ",%.4f", cpu_us(result, result->client_cpu_s));
            else
                fprintf(out, ",");
            if (total && result->server_cpu_known)
                fprintf(out, ",%.4f", cpu_us(result, result->server_cpu_s));
            else
                fprintf(out, ",");
            if (total)
                fprintf(out, ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 "\n", result->errors.total,
                        result->wrong.total, result->counters.misses);
            else
                fprintf(out, ",,,\n");
        }
    }
}

/* ---- text ---- */

static void
text_errors(const char *what, const struct errors *errors, FILE *out)
{
    char shown[SHOWN_BYTES];
    for (u32 i = 0; i < errors->kinds; i++)
        fprintf(out, "  %s: %s x %s, as in: %s\n", what,
                show_count((double)errors->kind[i].count, shown), errors->kind[i].name,
                errors->kind[i].text);
}

static void
text_latency(const char *name, const struct latency *l, double seconds, FILE *out)
{
    static const double parts[] = {0.5, 0.9, 0.99, 0.999, 0.9999};
    char shown[SHOWN_BYTES];
    u64 count = latency_count(l);
    fprintf(out, "  %-8s %12s", name, show_count(seconds > 0 ? (double)count / seconds : 0, shown));
    fprintf(out, " %10s", show_time(latency_mean_ns(l), shown));
    for (u32 i = 0; i < ARRAY_COUNT(parts); i++)
        fprintf(out, " %10s", show_time((double)latency_percentile_ns(l, parts[i]), shown));
    fprintf(out, " %10s\n", show_time((double)l->max_ns, shown));
}

static void
text_setting(const struct result *result, FILE *out)
{
    const struct settings *settings = &result->settings;
    fprintf(out, "%s over %s, %" PRIu64 " connections on %" PRIu64 " thread%s, ", result->name,
            settings->protocol == PROTOCOL_RESP ? "RESP" : "the native protocol",
            settings->connections, settings->threads, settings->threads == 1 ? "" : "s");
    char shown[SHOWN_BYTES];
    if (is_open(result))
        fprintf(out, "open loop at %s/s: latency counts from the intended start\n",
                show_count((double)settings->rate, shown));
    else
        fprintf(out, "%u in the pipeline, closed loop: latency is service time\n", settings->depth);
}

static void
text_result(const struct result *result, FILE *out)
{
    const struct settings *settings = &result->settings;
    char a[SHOWN_BYTES], b[SHOWN_BYTES];
    text_setting(result, out);
    if (settings->load)
        fprintf(
            out, "  filled with %s keys in %.1f s: %s/s\n",
            show_count((double)result->load_count, a), result->load_s,
            show_count(result->load_s > 0 ? (double)result->load_count / result->load_s : 0, b));
    fprintf(out, "\n  %-8s %12s %10s %10s %10s %10s %10s %10s %10s\n", "", "per second", "mean",
            "p50", "p90", "p99", "p99.9", "p99.99", "max");
    u32 kinds = 0;
    for (u32 op = 0; op < OP_COUNT; op++) {
        if (result->latency[op] == NULL) continue;
        kinds++;
        text_latency(op_names[op], result->latency[op], result->elapsed_s, out);
    }
    if (kinds != 1) text_latency("total", result->total, result->elapsed_s, out);
    fprintf(out, "\n  %s requests in %.2f s", show_count((double)result->counters.answered, a),
            result->elapsed_s);
    fprintf(out, "; CPU per request: client %.3f us", cpu_us(result, result->client_cpu_s));
    if (result->server_cpu_known)
        fprintf(out, ", server %.3f us", cpu_us(result, result->server_cpu_s));
    fprintf(out, "\n");
    if (result->counters.misses > 0)
        fprintf(out, "  %s reads found no key%s\n", show_count((double)result->counters.misses, a),
                settings->load ? "" : " (--load writes all of them first)");
    if (settings->verify != VERIFY_NO)
        fprintf(out, "  %s reads verified, %s wrong\n",
                show_count((double)result->counters.verified, a),
                show_count((double)result->wrong.total, b));
    if (is_open(result))
        fprintf(out, "  this client sent late by: p50 %s, p99.9 %s\n",
                show_time((double)latency_percentile_ns(result->late, 0.5), a),
                show_time((double)latency_percentile_ns(result->late, 0.999), b));
    text_errors("wrong", &result->wrong, out);
    text_errors("error", &result->errors, out);
    if (result->stopped) fprintf(out, "  stopped early\n");
    if (fell_behind(result))
        fprintf(out, "  warning: %s/s were asked for and not kept up with\n",
                show_count((double)settings->rate, a));
    if (!is_open(result) && client_busy(result) > 0.9)
        fprintf(out, "  warning: this client used %.0f %% of its threads: it may be the limit\n",
                client_busy(result) * 100);
}

static void
text_head(const struct report *report, FILE *out)
{
    const struct server_info *server = &report->server;
    fprintf(out, "server: %s %s", server->name[0] != '\0' ? server->name : "unknown",
            server->version);
    if (report->count > 0) fprintf(out, " at %s", report->results[0].settings.server);
    fprintf(out, "\nclient: distkv-bench %s, %s, %u cores, %s\n\n", DISTKV_VERSION,
            report->machine.cpu[0] != '\0' ? report->machine.cpu : "unknown CPU",
            report->machine.cores, report->machine.kernel);
}

void
report_table(const struct report *report, FILE *out)
{
    char shown[SHOWN_BYTES];
    text_head(report, out);
    fprintf(out, "%-14s %12s %10s %10s %10s %10s %11s %11s\n", "", "per second", "p50", "p99",
            "p99.9", "max", "server CPU", "client CPU");
    for (u32 i = 0; i < report->count; i++) {
        const struct result *result = &report->results[i];
        if (result->total == NULL) continue;
        const struct latency *l = result->total;
        fprintf(out, "%-14s %12s", result->name, show_count(rate_of(result), shown));
        fprintf(out, " %10s", show_time((double)latency_percentile_ns(l, 0.5), shown));
        fprintf(out, " %10s", show_time((double)latency_percentile_ns(l, 0.99), shown));
        fprintf(out, " %10s", show_time((double)latency_percentile_ns(l, 0.999), shown));
        fprintf(out, " %10s", show_time((double)l->max_ns, shown));
        if (result->server_cpu_known)
            fprintf(out, " %8.3f us", cpu_us(result, result->server_cpu_s));
        else
            fprintf(out, " %11s", "-");
        fprintf(out, " %8.3f us\n", cpu_us(result, result->client_cpu_s));
    }
    fprintf(out,
            "\nClosed loops: latency is service time. CPU: user and system time per request.\n");
    for (u32 i = 0; i < report->count; i++) {
        const struct result *result = &report->results[i];
        if (!result_is_bad(result)) continue;
        fprintf(out, "%s:\n", result->name);
        text_errors("wrong", &result->wrong, out);
        text_errors("error", &result->errors, out);
    }
}

bool
report_write(const struct report *report, enum format format, FILE *out)
{
    switch (format) {
    case FORMAT_TEXT:
        if (report->count > 1) {
            report_table(report, out);
        } else {
            text_head(report, out);
            text_result(&report->results[0], out);
        }
        break;
    case FORMAT_JSON: {
        json_t *json = report_json(report);
        if (json == NULL) return false;
        int result = json_dumpf(json, out, JSON_COMPACT | JSON_REAL_PRECISION(9));
        json_decref(json);
        if (result != 0) return false;
        fputc('\n', out);
        break;
    }
    case FORMAT_CSV:
        write_csv(report, out);
        break;
    }
    return fflush(out) == 0 && !ferror(out);
}
