/* SPDX-License-Identifier: MIT
 *
 * settings.c -- the options of distkv-bench and the workloads.
 */
#include "load/settings.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "load/value.h"

const char *const op_names[OP_COUNT] = {
    [OP_PING] = "ping",     [OP_GET] = "get",   [OP_SET] = "set",   [OP_INSERT] = "insert",
    [OP_DELETE] = "delete", [OP_INCR] = "incr", [OP_SCAN] = "scan", [OP_RMW] = "rmw",
};

/* ---- workloads ---- */

/* Percent of each kind, as "Benchmarking Cloud Serving Systems with YCSB" (2010) has them. */
struct workload {
    const char *name;
    u8 percent[OP_COUNT];
    enum key_order order;
};

static const struct workload WORKLOADS[] = {
    {"get", {[OP_GET] = 100}, KEYS_UNIFORM},
    {"set", {[OP_SET] = 100}, KEYS_UNIFORM},
    {"mixed", {0}, KEYS_UNIFORM}, /* --reads */
    {"incr", {[OP_INCR] = 100}, KEYS_UNIFORM},
    {"delete", {[OP_DELETE] = 100}, KEYS_UNIFORM},
    {"ping", {[OP_PING] = 100}, KEYS_UNIFORM},
    {"ycsb-a", {[OP_GET] = 50, [OP_SET] = 50}, KEYS_ZIPF},
    {"ycsb-b", {[OP_GET] = 95, [OP_SET] = 5}, KEYS_ZIPF},
    {"ycsb-c", {[OP_GET] = 100}, KEYS_ZIPF},
    {"ycsb-d", {[OP_GET] = 95, [OP_INSERT] = 5}, KEYS_LATEST},
    {"ycsb-e", {[OP_SCAN] = 95, [OP_INSERT] = 5}, KEYS_ZIPF},
    {"ycsb-f", {[OP_GET] = 50, [OP_RMW] = 50}, KEYS_ZIPF},
};
#define WORKLOAD_MIXED 2u

const char *const workload_names[] = {"get",    "set",    "mixed",  "incr",   "delete",
                                      "ping",   "ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d",
                                      "ycsb-e", "ycsb-f", NULL};
static_assert(ARRAY_COUNT(workload_names) == ARRAY_COUNT(WORKLOADS) + 1, "one name each");

/* ---- the table ---- */

static const char *const PROTOCOLS[] = {"resp", "native", NULL};
static const char *const VERIFYS[] = {"no", "values", "strict", NULL};
static const char *const FORMATS[] = {"text", "json", "csv", NULL};
static const char *const DISTRIBUTIONS[] = {"workload", "uniform",    "zipf",
                                            "latest",   "sequential", NULL};

static bool
check_percent(const char *text, char *error, size_t error_size)
{
    char digits[8];
    size_t size = strlen(text);
    if (size > 0 && text[size - 1] == '%') size--;
    u64 percent;
    if (size > 0 && size < sizeof(digits)) {
        memcpy(digits, text, size);
        digits[size] = '\0';
        if (option_parse_number(digits, &percent) && percent <= 100) return true;
    }
    snprintf(error, error_size, "'%s' is no percentage from 0%% to 100%%", text);
    return false;
}

/* What check_percent has accepted. */
static u32
percent_of(const char *text)
{
    return (u32)strtoul(text, NULL, 10);
}

static bool
parse_sizes(const char *text, u32 *min_out, u32 *max_out)
{
    char first[32];
    const char *dash = strchr(text, '-');
    size_t size = dash != NULL ? (size_t)(dash - text) : strlen(text);
    if (size == 0 || size >= sizeof(first)) return false;
    memcpy(first, text, size);
    first[size] = '\0';
    u64 min, max;
    if (!option_parse_bytes(first, &min)) return false;
    max = min;
    if (dash != NULL && !option_parse_bytes(dash + 1, &max)) return false;
    if (min > max || max > VALUE_BYTES_MAX) return false;
    *min_out = (u32)min;
    *max_out = (u32)max;
    return true;
}

static bool
check_sizes(const char *text, char *error, size_t error_size)
{
    u32 min, max;
    if (parse_sizes(text, &min, &max)) return true;
    snprintf(error, error_size, "'%s' is no size as 100, 4KiB or 10-1000", text);
    return false;
}

/* 0, 0,2 or 0-3,6 */
static bool
parse_cores(const char *text, u32 *cores, u32 *count_out)
{
    u32 count = 0;
    const char *at = text;
    while (*at != '\0') {
        char *end;
        errno = 0;
        unsigned long first = strtoul(at, &end, 10), last = first;
        if (end == at || *at < '0' || *at > '9' || errno != 0) return false;
        if (*end == '-') {
            at = end + 1;
            last = strtoul(at, &end, 10);
            if (end == at || *at < '0' || *at > '9' || last < first) return false;
        }
        if (last >= 4096 || last - first >= LIMIT_SHARDS) return false;
        for (unsigned long core = first; core <= last; core++) {
            if (count == LIMIT_SHARDS) return false;
            cores[count++] = (u32)core;
        }
        at = end;
        if (*at == ',' && at[1] != '\0')
            at++;
        else if (*at != '\0')
            return false;
    }
    *count_out = count;
    return true;
}

static bool
check_cores(const char *text, char *error, size_t error_size)
{
    u32 cores[LIMIT_SHARDS], count;
    if (parse_cores(text, cores, &count)) return true;
    snprintf(error, error_size, "'%s' is no list of cores as 1 or 0,2-3 (at most %u)", text,
             LIMIT_SHARDS);
    return false;
}

static bool
check_theta(const char *text, char *error, size_t error_size)
{
    char *end;
    double theta = strtod(text, &end);
    if (end != text && *end == '\0' && theta >= 0.01 && theta <= 0.999) return true;
    snprintf(error, error_size, "'%s' is no number from 0.01 to 0.999", text);
    return false;
}

static bool
check_server(const char *text, char *error, size_t error_size)
{
    char host[TEXT_BYTES];
    u16 port;
    if (settings_server(text, host, sizeof(host), &port)) return true;
    snprintf(error, error_size, "'%s' is no HOST:PORT", text);
    return false;
}

#define FIELD(field) .offset = offsetof(struct settings, field)
#define TEXT_FIELD(field)                                                                          \
    .offset = offsetof(struct settings, field), .size = sizeof(((struct settings *)0)->field)

#define BOOL(option_name, field, text)                                                             \
    {                                                                                              \
        .name = option_name, .kind = OPTION_BOOL, .flags = OPTION_COMMAND, FIELD(field),           \
        .fallback = "no", .help = text                                                             \
    }
#define NUMBER(option_name, field, least, most, standard, text)                                    \
    {                                                                                              \
        .name = option_name, .kind = OPTION_NUMBER, FIELD(field), .min = (least), .max = (most),   \
        .fallback = standard, .value_name = "N", .help = text                                      \
    }
#define DURATION(option_name, field, standard, text)                                               \
    {                                                                                              \
        .name = option_name, .kind = OPTION_DURATION, FIELD(field), .unit = NS_PER_MS,             \
        .max = 366ull * 86400000, .fallback = standard, .value_name = "DURATION", .help = text     \
    }
#define CHOICE(option_name, field, names, standard, value, text)                                   \
    {                                                                                              \
        .name = option_name, .kind = OPTION_CHOICE, FIELD(field), .choices = names,                \
        .fallback = standard, .value_name = value, .help = text                                    \
    }
#define TEXT(option_name, field, standard, value, checker, text)                                   \
    {                                                                                              \
        .name = option_name, .kind = OPTION_STRING, TEXT_FIELD(field), .fallback = standard,       \
        .value_name = value, .check = checker, .help = text                                        \
    }

static const struct option OPTIONS[] = {
    {.name = "server",
     .kind = OPTION_STRING,
     TEXT_FIELD(server),
     .fallback = "127.0.0.1:8080",
     .value_name = "HOST:PORT",
     .section = "Whom to ask",
     .check = check_server,
     .help = "Where the server listens."},
    CHOICE("protocol", protocol, PROTOCOLS, "resp", "NAME",
           "RESP reaches Redis, Valkey and DistKV alike; native reaches DistKV."),
    TEXT("user", user, "", "NAME", NULL, "The user's name."),
    TEXT("password", password, "", "TEXT", NULL,
         "The password. Others on this machine can see it: a file is better."),
    TEXT("password-file", password_file, "", "FILE", NULL,
         "A file whose first line is the password."),
    NUMBER("database", database, 0, 65535, "0", "SELECT this database (native: the keyspace)."),
    DURATION("timeout", timeout_ms, "10s",
             "A request without a reply for so long is an error; its connection is made anew."),
    {.name = "routing",
     .kind = OPTION_BOOL,
     FIELD(routing),
     .fallback = "yes",
     .help =
         "native, in a cluster (or with ports for cores), and with two connections or more for "
         "each place: each goes straight to one node or core, and draws keys that lie there. "
         "Not for workloads in key order, nor while filling. With no: all go to the server that "
         "is given."},

    {.name = "workload",
     .kind = OPTION_CHOICE,
     FIELD(workload),
     .choices = workload_names,
     .fallback = "mixed",
     .value_name = "NAME",
     .section = "What to do",
     .help = "Which requests are sent. ycsb-e scans, which only the native protocol does in "
             "order; incr is RESP's alone."},
    TEXT("reads", reads, "50%", "PERCENT", check_percent,
         "Of the workload mixed: this part is GET, the rest SET."),
    BOOL("load", load, "First write each key once; with incr a number, not --value-size bytes."),
    NUMBER("keys", key_count, 1, KEY_COUNT_MAX, "1000000", "How many keys there are."),
    TEXT("key-prefix", key_prefix, "key:", "TEXT", NULL,
         "What stands before the twelve digits of a key."),
    TEXT("value-size", value_size, "100", "SIZE", check_sizes,
         "Bytes of a value, as 100, or between two, as 10-1000, evenly."),
    TEXT("compressible", compressible, "0%", "PERCENT", check_percent,
         "The part of each value that a server can compress away."),
    CHOICE("distribution", distribution, DISTRIBUTIONS, "workload", "NAME",
           "Which keys are asked for; workload: zipf for ycsb-a, b, c, e and f, latest for ycsb-d, "
           "else uniform."),
    TEXT("theta", theta, "0.99", "NUMBER", check_theta, "How steep zipf and latest are."),
    NUMBER("scan-length", scan_length, 1, 10000, "100", "A scan asks for 1 to N entries, evenly."),
    DURATION("ttl", ttl_ms, "0", "What is written expires after this time; 0: never."),
    CHOICE("verify", verify, VERIFYS, "no", "HOW",
           "Judge what is read. values (also --verify alone): it belongs to its key and is whole. "
           "strict: and it is not older than what was acknowledged before; a key is then written "
           "by one connection only."),
    NUMBER("seed", seed, 0, UINT64_MAX, "1", "The same seed asks for the same keys."),

    {.name = "connections",
     .kind = OPTION_NUMBER,
     FIELD(connections),
     .min = 1,
     .max = CONNECTIONS_MAX,
     .fallback = "50",
     .value_name = "N",
     .section = "How hard",
     .help = "Connections in all."},
    NUMBER("pipeline", pipeline, 0, DEPTH_MAX, "0",
           "Closed loop: requests that a connection sends at once, before it waits for all their "
           "replies; 0: 1. Open loop: the most under way on one connection; 0: 128."),
    NUMBER("threads", threads, 1, LIMIT_SHARDS, "1", "Threads of this client."),
    TEXT("cores", cores, "", "LIST", check_cores,
         "Pin a thread to each of these cores, as 1 or 0,2-3; instead of --threads."),
    NUMBER("rate", rate, 0, 100000000, "0",
           "Open loop: this many requests a second in all, each at its time, whatever becomes of "
           "the others; latency counts from that time. 0: closed loop."),

    {.name = "duration",
     .kind = OPTION_DURATION,
     FIELD(duration_ms),
     .unit = NS_PER_MS,
     .min = 1,
     .max = 366ull * 86400000,
     .fallback = "10s",
     .value_name = "DURATION",
     .section = "How long",
     .help = "How long to measure."},
    NUMBER("count", count, 0, UINT64_MAX / 2, "0",
           "Measure so many requests instead; 0: by --duration."),
    DURATION("warmup", warmup_ms, "1s", "Requests before that are not counted."),

    {.name = "format",
     .kind = OPTION_CHOICE,
     FIELD(format),
     .choices = FORMATS,
     .fallback = "text",
     .value_name = "NAME",
     .section = "What to say",
     .help = "The form of the result."},
    TEXT("output", output, "", "FILE", NULL,
         "Write the result there instead of standard output, where text is then shown as well."),
    DURATION("interval", interval_ms, "1s",
             "A line of progress so often on standard error; if not given, on a terminal only. 0: "
             "none."),
    NUMBER("server-pid", server_pid, 0, 4194304, "0",
           "The server's process, to measure its CPU time; 0: as its INFO says, if it is on this "
           "machine."),
    {.name = "standard",
     .kind = OPTION_BOOL,
     .flags = OPTION_COMMAND,
     FIELD(standard),
     .fallback = "no",
     .section = "Other things to do",
     .help = "Measure the standard set; against a node of its own unless --server is given. The "
             "same as no option at all."},
    BOOL("ceiling", ceiling,
         "Measure this client itself, against a process that answers everything with the same "
         "bytes."),
    BOOL("compare", compare, "Compare two results in JSON: --compare A.json B.json."),
    BOOL("help", help, "Show this help."),
    BOOL("version", version, "Show the version."),
};

const struct option_table settings_table = {
    .options = OPTIONS,
    .count = ARRAY_COUNT(OPTIONS),
    .program = "distkv-bench",
    .summary = "measure a server that speaks RESP or DistKV's native protocol",
    .usage = "[--name value]...",
    .variable_prefix = "DISTKV_",
    .epilogue =
        "Examples:\n"
        "  distkv-bench                                     a node of its own, the standard set\n"
        "  distkv-bench --workload get --load --pipeline 16\n"
        "  distkv-bench --workload ycsb-a --load --format json --output a.json\n"
        "  distkv-bench --rate 100000 --duration 24h --load --verify strict\n"
        "  distkv-bench --compare before.json after.json\n"
        "\n"
        "Exit status: 0 ok; 1 requests failed, or what was read is wrong; 2 wrong usage;\n"
        "3 the server cannot be reached.\n",
};

/* ---- reading them ---- */

void
settings_defaults(struct settings *settings)
{
    memset(settings, 0, sizeof(*settings));
    option_set_defaults(&settings_table, settings);
}

/* --verify needs no value. */
static bool
verify_alone(int argc, const char *const *argv, int index)
{
    const char *word = argv[index];
    if (strcmp(word, "--verify") != 0 && strcmp(word, "-verify") != 0) return false;
    if (index + 1 == argc) return true;
    for (u32 i = 0; VERIFYS[i] != NULL; i++)
        if (strcmp(argv[index + 1], VERIFYS[i]) == 0) return false;
    return true;
}

bool
settings_parse(struct settings *settings, int argc, const char *const *argv, const char **words_out,
               u32 word_max, u32 *word_count_out, char *error, size_t error_size)
{
    u32 words = 0;
    bool options_ended = false;
    for (int index = 1; index < argc;) {
        if (!options_ended && verify_alone(argc, argv, index)) {
            settings->verify = VERIFY_VALUES;
            index++;
            continue;
        }
        const struct option *option;
        const char *value;
        bool dashes = strcmp(argv[index], "--") == 0;
        status st = options_ended ? ST_END
                                  : option_next_flag(&settings_table, argc, argv, &index, &option,
                                                     &value, error, error_size);
        if (status_is(st, ST_END)) {
            if (dashes && !options_ended) {
                options_ended = true;
                continue;
            }
            if (words == word_max) {
                snprintf(error, error_size, "unexpected word '%s'", argv[index]);
                return false;
            }
            words_out[words++] = argv[index++];
            continue;
        }
        if (!ok(st) || !ok(option_set(option, settings, value, error, error_size))) return false;
        if (strcmp(option->name, "server") == 0) settings->server_given = true;
        if (strcmp(option->name, "pipeline") == 0) settings->depth_given = true;
        if (strcmp(option->name, "interval") == 0) settings->interval_given = true;
    }
    *word_count_out = words;
    return true;
}

bool
settings_server(const char *text, char *host, size_t host_size, u16 *port_out)
{
    size_t size = strlen(text);
    const char *begin = text, *end = text + size, *port = NULL;
    if (text[0] == '[') {
        begin = text + 1;
        end = strchr(text, ']');
        if (end == NULL) return false;
        if (end[1] == ':')
            port = end + 2;
        else if (end[1] != '\0')
            return false;
    } else if (strchr(text, ':') != NULL) {
        end = strchr(text, ':');
        port = end + 1;
    } else if (size > 0 && strspn(text, "0123456789") == size) {
        end = text;
        port = text;
    }
    u64 number = 8080;
    if (port != NULL && (!option_parse_number(port, &number) || number == 0 || number > 65535))
        return false;
    size_t length = (size_t)(end - begin);
    if (length >= host_size) return false;
    if (length == 0) {
        snprintf(host, host_size, "127.0.0.1");
    } else {
        memcpy(host, begin, length);
        host[length] = '\0';
    }
    *port_out = (u16)number;
    return true;
}

bool
settings_has(const struct settings *settings, enum op op)
{
    u32 below = op == 0 ? 0 : settings->mix[op - 1];
    return settings->mix[op] > below;
}

static bool
read_password(struct settings *settings, char *error, size_t error_size)
{
    if (settings->password_file[0] == '\0') return true;
    FILE *file = fopen(settings->password_file, "re");
    if (file == NULL) {
        snprintf(error, error_size, "%s: %s", settings->password_file, strerror(errno));
        return false;
    }
    if (fgets(settings->password, sizeof(settings->password), file) == NULL)
        settings->password[0] = '\0';
    fclose(file);
    settings->password[strcspn(settings->password, "\r\n")] = '\0';
    if (settings->password[0] != '\0') return true;
    snprintf(error, error_size, "%s holds no password", settings->password_file);
    return false;
}

static void
mix_set(struct settings *settings, const struct workload *workload)
{
    u8 percent[OP_COUNT];
    memcpy(percent, workload->percent, sizeof(percent));
    if (settings->workload == WORKLOAD_MIXED) {
        percent[OP_GET] = (u8)settings->reads_percent;
        percent[OP_SET] = (u8)(100 - settings->reads_percent);
    }
    u32 sum = 0;
    for (u32 op = 0; op < OP_COUNT; op++) {
        sum += percent[op];
        settings->mix[op] = sum * 65536 / 100;
    }
}

bool
settings_finish(struct settings *settings, char *error, size_t error_size)
{
    const struct workload *workload = &WORKLOADS[settings->workload];
    settings->name = workload->name;
    settings->reads_percent = percent_of(settings->reads);
    settings->compressible_percent = percent_of(settings->compressible);
    settings->zipf_theta = strtod(settings->theta, NULL);
    CHECK(parse_sizes(settings->value_size, &settings->value_min, &settings->value_max));
    CHECK(parse_cores(settings->cores, settings->core_list, &settings->core_count));
    if (settings->core_count > 0) settings->threads = settings->core_count;
    settings->order = settings->distribution == 0 ? workload->order
                                                  : (enum key_order)(settings->distribution - 1);
    settings->depth = (u32)settings->pipeline;
    if (settings->depth == 0) settings->depth = settings->rate > 0 ? 128 : 1;
    mix_set(settings, workload);
    if (!read_password(settings, error, error_size)) return false;

    bool resp = settings->protocol == PROTOCOL_RESP;
    const char *why = NULL;
    if (resp && settings_has(settings, OP_SCAN))
        why = "ycsb-e scans keys in order, which RESP cannot do: use --protocol native";
    else if (!resp && settings_has(settings, OP_INCR))
        why = "the native protocol has no INCR: use --protocol resp";
    else if (!resp && settings->database >= LIMIT_KEYSPACES_CLIENT)
        why = "the native protocol knows the keyspaces 0 to 15";
    else if (!resp && settings->value_max > LIMIT_VALUE_BYTES)
        why = "the native protocol takes values up to 1 MiB";
    else if (settings->verify != VERIFY_NO && settings->value_min < VALUE_HEAD_BYTES)
        why = "--verify needs values of at least 24 bytes";
    else if (settings->verify == VERIFY_STRICT &&
             (settings->ttl_ms > 0 || settings_has(settings, OP_DELETE)))
        why = "--verify strict and keys that vanish (--ttl, delete) do not go together";
    else if (settings->verify == VERIFY_STRICT && settings->key_count < settings->connections)
        why = "--verify strict needs at least as many keys as connections";
    else if (settings->verify == VERIFY_STRICT && settings->key_count > 1000000000)
        why = "--verify strict remembers 8 bytes of each key: at most 1000000000 keys";
    else if (settings->connections < settings->threads)
        why = "there are fewer connections than threads";
    else if (settings->user[0] != '\0' && settings->password[0] == '\0')
        why = "a user needs a password";
    else if (settings->timeout_ms == 0)
        why = "--timeout must be above 0";
    else if (settings->connections * settings->depth > 16u << 20)
        why = "connections times pipeline must be at most 16777216";
    if (why == NULL) return true;
    snprintf(error, error_size, "%s", why);
    return false;
}
