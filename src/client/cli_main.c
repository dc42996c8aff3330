/* SPDX-License-Identifier: MIT
 *
 * cli_main.c -- distkv-client: flags, the table of commands, help, messages.
 *
 *   distkv-client [OPTION]... COMMAND [OPTION]... [WORD]...
 *
 * Options of the program may stand before and behind the command; those of a command behind it, and
 * a few that belong to a request (OPTIONS_BEFORE) before it, too.
 * Values come from a flag, else from DISTKV_CLIENT_<NAME>, else from DISTKV_<NAME>, else from the
 * default. Results go to standard
 * output, everything else to standard error. "--" ends the options.
 */
#include "client/cli.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FIELD(field) .offset = offsetof(struct cli_settings, field)
#define TEXT_FIELD(field)                                                                          \
    .offset = offsetof(struct cli_settings, field),                                                \
    .size = sizeof(((struct cli_settings *)0)->field)

#define GLOBAL_OPTIONS                                                                             \
    {.name = "server",                                                                             \
     .kind = OPTION_STRING,                                                                        \
     TEXT_FIELD(server),                                                                           \
     .fallback = "127.0.0.1:8080",                                                                 \
     .value_name = "HOST:PORT",                                                                    \
     .section = "Options of every command",                                                        \
     .help = "Where the server listens; several, separated by commas, are tried in turn."},        \
        {.name = "timeout",                                                                        \
         .kind = OPTION_DURATION,                                                                  \
         FIELD(timeout_ms),                                                                        \
         .unit = NS_PER_MS,                                                                        \
         .min = 1,                                                                                 \
         .max = 86400000,                                                                          \
         .fallback = "5s",                                                                         \
         .value_name = "DURATION",                                                                 \
         .help = "How long one call may take, repetitions included."},                             \
        {.name = "keyspace",                                                                       \
         .kind = OPTION_STRING,                                                                    \
         TEXT_FIELD(keyspace),                                                                     \
         .fallback = "0",                                                                          \
         .value_name = "KEYSPACE",                                                                 \
         .help = "The keyspace, 0 to 15 (as SELECT of Redis), or its name in a cluster."},         \
        {.name = "user",                                                                           \
         .kind = OPTION_STRING,                                                                    \
         TEXT_FIELD(user),                                                                         \
         .fallback = "",                                                                           \
         .value_name = "NAME",                                                                     \
         .help = "The user's name; a server knows \"default\" alone, which need not be named."},   \
        {.name = "password",                                                                       \
         .kind = OPTION_STRING,                                                                    \
         TEXT_FIELD(password),                                                                     \
         .fallback = "",                                                                           \
         .value_name = "TEXT",                                                                     \
         .help =                                                                                   \
             "The password. Others on this machine can see it: the two ways below are better."},   \
        {.name = "password-file",                                                                  \
         .kind = OPTION_STRING,                                                                    \
         TEXT_FIELD(password_file),                                                                \
         .fallback = "",                                                                           \
         .value_name = "FILE",                                                                     \
         .help = "A file whose first line is the password; or set DISTKV_PASSWORD."},              \
        {.name = "no-routing",                                                                     \
         .kind = OPTION_BOOL,                                                                      \
         FIELD(no_routing),                                                                        \
         .fallback = "no",                                                                         \
         .help = "In a cluster: ask the named servers only, not those that have the keys."},       \
        {.name = "json",                                                                           \
         .kind = OPTION_BOOL,                                                                      \
         FIELD(json),                                                                              \
         .fallback = "no",                                                                         \
         .help = "Write results as JSON."},                                                        \
        {.name = "help",                                                                           \
         .kind = OPTION_BOOL,                                                                      \
         .flags = OPTION_COMMAND,                                                                  \
         FIELD(help),                                                                              \
         .fallback = "no",                                                                         \
         .help = "Show this help."},                                                               \
    {                                                                                              \
        .name = "version", .kind = OPTION_BOOL, .flags = OPTION_COMMAND, FIELD(version),           \
        .fallback = "no", .help = "Show the version."                                              \
    }

#define SECTION .section = "Options of this command"
#define FLAG(flag_name, field, text)                                                               \
    {                                                                                              \
        .name = flag_name, .kind = OPTION_BOOL, FIELD(field), .fallback = "no", SECTION,           \
        .help = text                                                                               \
    }
#define OPTION_ESCAPES                                                                             \
    FLAG("escapes", escapes, "Read \\t \\n \\r \\\\ and \\xHH in keys and values.")
#define OPTION_VERSION_IS                                                                          \
    {                                                                                              \
        .name = "if-version", .kind = OPTION_NUMBER, FIELD(if_version), .min = 1,                  \
        .max = UINT64_MAX, .value_name = "N", SECTION, .help = "Only if the key has this version." \
    }
#define OPTION_CONTEXT(text)                                                                       \
    {                                                                                              \
        .name = "context", .kind = OPTION_STRING, TEXT_FIELD(context), .fallback = "",             \
        .value_name = "CONTEXT", SECTION, .help = text                                             \
    }
#define OPTION_TTL(text)                                                                           \
    {                                                                                              \
        .name = "ttl", .kind = OPTION_DURATION, FIELD(ttl_ms), .unit = NS_PER_MS,                  \
        .max = UINT64_MAX / NS_PER_MS, .fallback = "0", .value_name = "DURATION", SECTION,         \
        .help = text                                                                               \
    }
#define OPTION_COUNT(fallback_text, text)                                                          \
    {                                                                                              \
        .name = "count", .kind = OPTION_NUMBER, FIELD(count), .min = 1, .max = 100000000,          \
        .fallback = fallback_text, .value_name = "N", SECTION, .help = text                        \
    }
#define OPTION_IN_FLIGHT(fallback_text)                                                            \
    {                                                                                              \
        .name = "in-flight", .kind = OPTION_NUMBER, FIELD(in_flight), .min = 1, .max = 65536,      \
        .fallback = fallback_text, .value_name = "N", SECTION,                                     \
        .help = "Calls that are under way at the same time."                                       \
    }
#define OPTION_CONNECTIONS                                                                         \
    {                                                                                              \
        .name = "connections", .kind = OPTION_NUMBER, FIELD(connections), .min = 1, .max = 64,     \
        .fallback = "1", .value_name = "N", SECTION, .help = "Connections to the server."          \
    }
#define OPTION_QUIET FLAG("quiet", quiet, "No progress and no summary.")

static const char *const CONSISTENCIES[] = {"default", "one", "quorum", "all", NULL};
#define OPTION_CONSISTENCY                                                                         \
    {                                                                                              \
        .name = "consistency", .kind = OPTION_CHOICE, FIELD(consistency),                          \
        .choices = CONSISTENCIES, .fallback = "default", .value_name = "LEVEL", SECTION,           \
        .help =                                                                                    \
            "How many replicas answer, in a cluster: one, quorum, all, or as the keyspace says."   \
    }
#define OPTION_QUORUM(option_name, field, text)                                                    \
    {                                                                                              \
        .name = option_name, .kind = OPTION_NUMBER, FIELD(field), .max = 7, .fallback = "0",       \
        .value_name = "N", SECTION, .help = text                                                   \
    }

static const char *const FORMATS[] = {"auto", "json", "tsv", NULL};
#define OPTION_FORMAT(text)                                                                        \
    {                                                                                              \
        .name = "format", .kind = OPTION_CHOICE, FIELD(format), .choices = FORMATS,                \
        .fallback = "auto", .value_name = "FORMAT", SECTION, .help = text                          \
    }
#define OPTION_PREFIX                                                                              \
    {                                                                                              \
        .name = "prefix", .kind = OPTION_STRING, TEXT_FIELD(prefix), .fallback = "",               \
        .value_name = "TEXT", SECTION,                                                             \
        .help = "Only keys that begin so. A prefix with a whole {tag} reads one place only."       \
    }

static const struct option OPTIONS_GLOBAL[] = {GLOBAL_OPTIONS};
/* What may stand before the command: the others' names are no options of all commands. */
static const struct option OPTIONS_BEFORE[] = {
    GLOBAL_OPTIONS,
    OPTION_CONSISTENCY,
    FLAG("siblings", siblings, ""),
    OPTION_CONTEXT(""),
};
static const struct option OPTIONS_PUT[] = {
    GLOBAL_OPTIONS,
    OPTION_TTL("The key expires after this time; 0: never."),
    FLAG("if-absent", if_absent, "Only if there is no such key."),
    FLAG("if-present", if_present, "Only if the key is there."),
    OPTION_VERSION_IS,
    OPTION_ESCAPES,
    OPTION_CONTEXT("What get --siblings gave, or @FILE with it: replaces exactly that."),
    FLAG("siblings", siblings, "Stands beside the values that are there."),
    OPTION_CONSISTENCY,
};
static const struct option OPTIONS_KEY[] = {GLOBAL_OPTIONS, OPTION_ESCAPES, OPTION_CONSISTENCY};
static const struct option OPTIONS_DELETE[] = {
    GLOBAL_OPTIONS,
    FLAG("if-present", if_present, "Fail if there is no such key."),
    OPTION_VERSION_IS,
    OPTION_ESCAPES,
    OPTION_CONSISTENCY,
    OPTION_CONTEXT("What get --siblings gave, or @FILE with it: deletes exactly that."),
};
static const struct option OPTIONS_GET[] = {
    GLOBAL_OPTIONS,
    OPTION_ESCAPES,
    OPTION_CONSISTENCY,
    FLAG("siblings", siblings, "All values of a key that keeps siblings, and their context."),
};
static const struct option OPTIONS_BATCH[] = {
    GLOBAL_OPTIONS,
    FLAG("atomic", atomic, "Refuse a batch whose keys do not share a slot."),
    OPTION_CONSISTENCY,
};
static const struct option OPTIONS_SCAN[] = {
    GLOBAL_OPTIONS,
    OPTION_PREFIX,
    {.name = "match",
     .kind = OPTION_STRING,
     TEXT_FIELD(match),
     .fallback = "",
     .value_name = "GLOB",
     SECTION,
     .help = "Only keys that match, as MATCH of Redis: * ? [a-z] and backslash."},
    {.name = "limit",
     .kind = OPTION_NUMBER,
     FIELD(limit),
     .max = UINT64_MAX,
     .fallback = "0",
     .value_name = "N",
     SECTION,
     .help = "Entries in all; 0: no limit."},
    FLAG("keys-only", keys_only, "Keys without values."),
    FLAG("snapshot", snapshot, "One state of the whole keyspace."),
};
static const struct option OPTIONS_COUNT_[] = {
    GLOBAL_OPTIONS,
    FLAG("exact", exact, "Count, which may read the whole keyspace, instead of an estimate."),
};
static const struct option OPTIONS_BENCH[] = {
    GLOBAL_OPTIONS,
    OPTION_COUNT("10000", "How many pings."),
    OPTION_IN_FLIGHT("1"),
    OPTION_CONNECTIONS,
};
static const char *const CONFLICTS[] = {"lww", "siblings", NULL};
static const char *const SLOPPY[] = {"same", "on", "off", NULL};
static const struct option OPTIONS_CLUSTER[] = {
    GLOBAL_OPTIONS,
    FLAG("no-wait", no_wait, "Begin it, and do not wait for its end."),
    {.name = "wait",
     .kind = OPTION_DURATION,
     FIELD(wait_ms),
     .unit = NS_PER_MS,
     .max = UINT64_MAX / NS_PER_MS,
     .fallback = "0",
     .value_name = "DURATION",
     SECTION,
     .help = "Wait no longer than this; 0: as long as it takes."},
    FLAG("dead", dead, "remove-node: it is gone for good, and others take over from its replicas."),
    FLAG("force", force,
         "remove-node: though fewer nodes are left than a key has replicas (each key has a copy "
         "less), and though it has hints for others to deliver."),
    {.name = "with",
     .kind = OPTION_STRING,
     TEXT_FIELD(with),
     .fallback = "",
     .value_name = "NODE",
     SECTION,
     .help = "replace-node: a node of another name takes the place."},
    FLAG("undo", undo,
         "drain: the node takes requests again. remove-node: one that leaves is to stay, while "
         "reads "
         "do not use the others' copies yet."),
    OPTION_QUORUM("replicas", replicas, "keyspaces: on how many nodes a key is kept."),
    OPTION_QUORUM("write-quorum", write_quorum, "keyspaces: how many of them a write waits for."),
    OPTION_QUORUM("read-quorum", read_quorum, "keyspaces: how many of them a read asks."),
    {.name = "conflict",
     .kind = OPTION_CHOICE,
     FIELD(conflict),
     .choices = CONFLICTS,
     .fallback = "lww",
     .value_name = "KIND",
     SECTION,
     .help = "keyspaces create: of concurrent writes the last one wins, or all are kept."},
    {.name = "sloppy",
     .kind = OPTION_CHOICE,
     FIELD(sloppy),
     .choices = SLOPPY,
     .fallback = "same",
     .value_name = "KIND",
     SECTION,
     .help =
         "keyspaces: where replicas are gone other nodes take part in writes, and hand on later "
         "what they got."},
    {.name = "number",
     .kind = OPTION_NUMBER,
     FIELD(number),
     .max = DISTKV_KEYSPACE_ANY,
     .fallback = "65535",
     .value_name = "N",
     SECTION,
     .help = "keyspaces create: its number, 0 to 15; 65535: the highest that is free."},
    OPTION_QUIET,
};
static const struct option OPTIONS_DOCTOR[] = {
    GLOBAL_OPTIONS,
    OPTION_COUNT("200", "Pings to measure the latency with."),
};
static const struct option OPTIONS_IMPORT[] = {
    GLOBAL_OPTIONS,
    OPTION_FORMAT("json, tsv, or auto: by the first byte, which is { in JSON lines."),
    OPTION_IN_FLIGHT("512"),
    OPTION_CONNECTIONS,
    FLAG("if-absent", if_absent, "Keep keys that are there already (counted as skipped)."),
    OPTION_QUIET,
};
static const struct option OPTIONS_EXPORT[] = {
    GLOBAL_OPTIONS,
    OPTION_FORMAT("json or tsv; auto: by the file's name, else json."),
    OPTION_PREFIX,
    OPTION_QUIET,
};

#define OPTIONS(table) .options = table, .option_count = ARRAY_COUNT(table)

static const char EPILOGUE_BATCH[] =
    "An operation is one word (quoted for the shell) or one line of standard input:\n"
    "  put KEY VALUE [TTL]\n"
    "  delete KEY\n"
    "Words in it may be quoted: \"...\" with escapes, '...' without. Operations on keys of one "
    "slot,\n"
    "which keys of one {hash tag} share, are done as a whole or not at all. Without --atomic a "
    "batch\n"
    "over several slots is done in one such part for each slot, and that is said.\n";
static const char EPILOGUE_CLUSTER[] =
    "Functions:\n"
    "  status                        nodes, moves, hints, repair, requests and their latencies\n"
    "  health                        one line; exit status 5 when something is wrong\n"
    "  ring                          which node holds which partitions\n"
    "  add-node NODE|HOST:PORT       says what to run there, and waits until it has its data\n"
    "  remove-node NODE [--dead|--force|--undo]\n"
    "                                gives its data to the others\n"
    "  replace-node NODE [--with NEW]\n"
    "                                a dead one's place is taken by an empty one\n"
    "  rebalance [NODE=WEIGHT]...    changes virtual nodes; waits until all is in its place\n"
    "  repair [NODE]                 compares and mends the replicas of all keys\n"
    "  drain NODE [--undo]           hands over what it does, until it can be stopped\n"
    "  keyspaces [create|set NAME]   lists, makes or changes them\n";
static const char EPILOGUE_IMPORT[] =
    "Reads FILE, or standard input when it is missing or -.\n"
    "  JSON lines  {\"key\": \"k\", \"value\": \"v\", \"ttl_ms\": 60000}\n"
    "              key_b64 and value_b64 carry bytes that are not UTF-8; expire_ms is a time in "
    "Unix\n"
    "              milliseconds instead of a time to live.\n"
    "  TSV         key <tab> value [<tab> expire_ms], with \\t \\n \\r \\\\ \\xHH\n"
    "Lines that fail are reported and counted; the exit status is 1 when there were any.\n";
static const char EPILOGUE_EXPORT[] =
    "Writes every key of the keyspace to FILE, or to standard output, as import reads it.\n"
    "Of a single node all of it is of one moment: what is written meanwhile is not seen. Of a\n"
    "cluster each page is of its own moment.\n";

const struct cli_command cli_commands[] = {
    {"put", "KEY VALUE", "store a value (VALUE -: from standard input)", OPTIONS(OPTIONS_PUT), 2, 2,
     cmd_put, NULL},
    {"get", "KEY", "show a value", OPTIONS(OPTIONS_GET), 1, 1, cmd_get, NULL},
    {"delete", "KEY...", "delete keys", OPTIONS(OPTIONS_DELETE), 1, -1, cmd_delete, NULL},
    {"batch", "[OPERATION]...", "several writes at once, atomic within a hash tag",
     OPTIONS(OPTIONS_BATCH), 0, -1, cmd_batch, EPILOGUE_BATCH},
    {"scan", "", "list keys and values", OPTIONS(OPTIONS_SCAN), 0, 0, cmd_scan, NULL},
    {"ttl", "KEY", "show how long a key still lives", OPTIONS(OPTIONS_KEY), 1, 1, cmd_ttl, NULL},
    {"expire", "KEY DURATION", "let a key expire (never: take it back)", OPTIONS(OPTIONS_KEY), 2, 2,
     cmd_expire, NULL},
    {"count", "", "count keys", OPTIONS(OPTIONS_COUNT_), 0, 0, cmd_count, NULL},
    {"status", "", "show the server's state", OPTIONS(OPTIONS_GLOBAL), 0, 0, cmd_status, NULL},
    {"cluster", "FUNCTION [WORD]...", "show and operate the cluster", OPTIONS(OPTIONS_CLUSTER), 1,
     -1, cmd_cluster, EPILOGUE_CLUSTER},
    {"doctor", "", "look for what is wrong", OPTIONS(OPTIONS_DOCTOR), 0, 0, cmd_doctor, NULL},
    {"import", "[FILE]", "load records", OPTIONS(OPTIONS_IMPORT), 0, 1, cmd_import,
     EPILOGUE_IMPORT},
    {"export", "[FILE]", "write all records", OPTIONS(OPTIONS_EXPORT), 0, 1, cmd_export,
     EPILOGUE_EXPORT},
    {"bench-ping", "", "measure round trips", OPTIONS(OPTIONS_BENCH), 0, 0, cmd_bench_ping, NULL},
    {"help", "[COMMAND]", "explain a command", OPTIONS(OPTIONS_GLOBAL), 0, 1, cmd_help, NULL},
};
const u32 cli_command_count = ARRAY_COUNT(cli_commands);

static const char EPILOGUE[] =
    "Without a command, and on a terminal, a prompt opens.\n"
    "\n"
    "Exit status: 0 ok; 1 the server answered with an error, there is no such key, or records\n"
    "failed; 2 wrong usage; 3 no server could be reached; 5 doctor or cluster health found it "
    "unhealthy.\n"
    "\n"
    "Environment: DISTKV_SERVER, DISTKV_CLIENT_TIMEOUT, DISTKV_KEYSPACE, DISTKV_JSON, "
    "DISTKV_USER,\n"
    "DISTKV_PASSWORD, DISTKV_PASSWORD_FILE; NO_COLOR.\n";

/* ---- messages ---- */

/* {"error":{"code":"UNREACHABLE","message":"..."}}: a line of standard error, so that on standard
 * output stands nothing but results. */
static void
message_json(const char *kind, const char *code, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int size = vsnprintf(NULL, 0, format, again);
    va_end(again);
    char *text = size < 0 ? NULL : malloc((size_t)size + 1);
    if (text == NULL) return; /* the exit status still tells */
    vsnprintf(text, (size_t)size + 1, format, args);
    fprintf(stderr, "{\"%s\":{", kind);
    if (code != NULL) fprintf(stderr, "\"code\":\"%s\",", code);
    text_write_json_field(stderr, "message", text, (size_t)size);
    fputs("}}\n", stderr);
    free(text);
}

/* code: NULL for what has none. */
static void
message(struct cli *cli, const char *color, const char *kind, const char *code, const char *format,
        va_list args)
{
    fflush(stdout);
    if (cli->in_command ? cli->set.json : cli->global.json) {
        message_json(kind, code, format, args);
        return;
    }
    if (cli->color_error)
        fprintf(stderr, "\033[%sm%s:\033[0m ", color, kind);
    else
        fprintf(stderr, "%s%s: ", cli->prompt ? "" : "distkv-client: ", kind);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

PRINTF_LIKE(3, 4)
static void
error_of(struct cli *cli, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    message(cli, "31", "error", distkv_code_name(code), format, args);
    va_end(args);
}

void
cli_error(struct cli *cli, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    message(cli, "31", "error", "ERROR", format, args);
    va_end(args);
}

void
cli_warn(struct cli *cli, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    message(cli, "33", "warning", NULL, format, args);
    va_end(args);
}

int
cli_usage(struct cli *cli, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    message(cli, "31", "error", distkv_code_name(DISTKV_INVALID), format, args);
    va_end(args);
    return EXIT_USAGE;
}

int
cli_fail(struct cli *cli, int code, const char *what)
{
    const char *text = cli->kv != NULL ? distkv_error(cli->kv) : "";
    if (text[0] == '\0') text = distkv_code_text(code);
    error_of(cli, code, "%s%s%s", what, what[0] != '\0' ? ": " : "", text);
    switch (code) {
    case DISTKV_INVALID:
    case DISTKV_TOO_LARGE:
        return EXIT_USAGE;
    case DISTKV_UNREACHABLE:
        return EXIT_CONNECT;
    default:
        return EXIT_SERVER;
    }
}

u64
cli_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * NS_PER_S + (u64)now.tv_nsec;
}

static bool
reader_is_gone(void)
{
    struct pollfd look = {.fd = STDOUT_FILENO, .events = POLLOUT};
    return poll(&look, 1, 0) == 1 && (look.revents & POLLERR) != 0;
}

int
cli_finish_output(struct cli *cli, int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    /* It has read as much as it wanted: no error, and nobody is left to tell. */
    if (cli->ends_by_sigpipe && reader_is_gone()) {
        signal(SIGPIPE, SIG_DFL);
        raise(SIGPIPE);
    }
    clearerr(stdout);
    cli_error(cli, "cannot write the output");
    return code == EXIT_OK ? EXIT_SERVER : code;
}

/* ---- help ---- */

static struct option_table
table_of(const struct cli_command *command, char *program, size_t program_size)
{
    snprintf(program, program_size, "distkv-client%s%s", command ? " " : "",
             command ? command->name : "");
    return (struct option_table){
        .options = command ? command->options : OPTIONS_GLOBAL,
        .count = command ? command->option_count : ARRAY_COUNT(OPTIONS_GLOBAL),
        .program = program,
        .summary = command ? command->summary : "talk to a DistKV server",
        .usage = command ? command->arguments : "[OPTION]... [COMMAND [OPTION]... [WORD]...]",
        .variable_prefix = "DISTKV_",
        .epilogue = command ? command->epilogue : EPILOGUE,
    };
}

static void
commands_list(FILE *out)
{
    fputs("\nCommands:\n", out);
    for (u32 i = 0; i < cli_command_count; i++) {
        char usage[48];
        snprintf(usage, sizeof(usage), "%s %s", cli_commands[i].name, cli_commands[i].arguments);
        fprintf(out, "  %-26s %s\n", usage, cli_commands[i].summary);
    }
    fputs("  (help COMMAND, or COMMAND --help, shows a command's own options)\n", out);
}

void
cli_help(const struct cli_command *command, FILE *out)
{
    char program[64];
    struct option_table table = table_of(command, program, sizeof(program));
    size_t size = option_help_text(&table, NULL, 0);
    char *text = malloc(size + 1);
    if (text == NULL) return;
    option_help_text(&table, text, size + 1);
    /* The commands come behind title and usage. */
    const char *rest = strstr(text, "\nUsage: ");
    rest = rest == NULL ? text : rest + 1 + strcspn(rest + 1, "\n");
    if (*rest == '\n') rest++;
    fwrite(text, 1, (size_t)(rest - text), out);
    if (command == NULL) commands_list(out);
    fputs(rest, out);
    free(text);
}

int
cmd_help(struct cli *cli, int count, char **words)
{
    const struct cli_command *command = NULL;
    if (count == 1) {
        command = cli_command_find(words[0]);
        if (command == NULL) return cli_usage(cli, "there is no command '%s'", words[0]);
    }
    cli_help(command, stdout);
    return cli_finish_output(cli, EXIT_OK);
}

/* ---- running ---- */

const struct cli_command *
cli_command_find(const char *name)
{
    for (u32 i = 0; i < cli_command_count; i++)
        if (strcmp(cli_commands[i].name, name) == 0) return &cli_commands[i];
    return NULL;
}

/* The first line of --password-file; false after a message. */
static bool
read_password_file(struct cli *cli, char *out, size_t size)
{
    const char *path = cli->set.password_file;
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        cli_error(cli, "--password-file %s: %s", path, strerror(errno));
        return false;
    }
    errno = 0;
    bool there = fgets(out, (int)size, file) != NULL;
    int failure = errno;
    fclose(file);
    if (!there && failure != 0) {
        cli_error(cli, "--password-file %s: %s", path, strerror(failure));
        return false;
    }
    if (!there) out[0] = '\0';
    size_t length = strcspn(out, "\r\n");
    if (length == 0 || length + 1 == size) {
        cli_error(cli, "--password-file %s: the first line is %s", path,
                  length == 0 ? "empty" : "too long");
        return false;
    }
    out[length] = '\0';
    return true;
}

/* By its number, or by the name that the cluster has for it. */
static int
select_keyspace(struct cli *cli)
{
    const char *text = cli->set.keyspace;
    u64 number = 0;
    uint32_t found = 0;
    int code = DISTKV_OK;
    if (text[0] >= '0' && text[0] <= '9' && option_parse_number(text, &number))
        found = (uint32_t)MIN(number, (u64)UINT32_MAX);
    else
        code = distkv_keyspace_find(cli->kv, text, &found);
    if (code != DISTKV_OK) return cli_fail(cli, code, "keyspace");
    code = distkv_set_keyspace(cli->kv, found);
    return code == DISTKV_OK ? EXIT_OK : cli_fail(cli, code, "");
}

int
cli_connect(struct cli *cli)
{
    if (cli->kv == NULL) {
        char password[OPTION_TEXT_BYTES];
        snprintf(password, sizeof(password), "%s", cli->set.password);
        if (cli->set.password_file[0] != '\0' &&
            !read_password_file(cli, password, sizeof(password)))
            return EXIT_USAGE;
        struct distkv_options options;
        distkv_options_init(&options);
        options.timeout_ms = (u32)cli->set.timeout_ms;
        options.connect_timeout_ms = (u32)MIN(cli->set.timeout_ms, 2000);
        options.client_name = "distkv-client " DISTKV_VERSION;
        options.connections_per_server = (u32)MAX(cli->set.connections, 1);
        options.no_routing = cli->set.no_routing != 0;
        if (cli->set.user[0] != '\0') options.user = cli->set.user;
        if (password[0] != '\0') options.password = password;
        char error[DISTKV_ERROR_BYTES];
        int code = distkv_connect(cli->set.server, &options, &cli->kv, error);
        explicit_bzero(password, sizeof(password));
        if (code == DISTKV_DENIED) {
            error_of(cli, code, "%s%s", error,
                     options.password != NULL
                         ? ""
                         : " (none was given; see --password-file and DISTKV_PASSWORD)");
            return EXIT_SERVER;
        }
        if (code != DISTKV_OK) {
            error_of(cli, code, "%s", error);
            return code == DISTKV_INVALID ? EXIT_USAGE : EXIT_CONNECT;
        }
    }
    distkv_set_timeout(cli->kv, (u32)cli->set.timeout_ms);
    int code = distkv_set_consistency(cli->kv, (u32)cli->set.consistency);
    if (code != DISTKV_OK) return cli_fail(cli, code, "");
    return select_keyspace(cli);
}

/* A value into its place. Of password and password-file the one that was given last is meant, and
 * a flag comes after a variable. */
static status
take_value(const struct option *option, struct cli_settings *values, const char *value, char *error,
           size_t error_size)
{
    status st = option_set(option, values, value, error, error_size);
    if (!ok(st)) return st;
    if (strcmp(option->name, "password") == 0) values->password_file[0] = '\0';
    if (strcmp(option->name, "password-file") == 0) values->password[0] = '\0';
    return ST_OK;
}

/* Options into values; words are moved to the front of argv. The number of words, or -1 after a
 * message. stop_at_word: the command's name ends the program's options. */
static int
read_options(struct cli *cli, const struct option_table *table, struct cli_settings *values,
             int argc, char **argv, bool stop_at_word, int *index)
{
    char error[OPTION_ERROR_BYTES];
    int words = 0;
    while (*index < argc) {
        const struct option *option;
        const char *value;
        if (cli->options_ended && !stop_at_word) {
            argv[words++] = argv[(*index)++];
            continue;
        }
        bool dashes = strcmp(argv[*index], "--") == 0;
        status st = option_next_flag(table, argc, (const char *const *)argv, index, &option, &value,
                                     error, sizeof(error));
        if (status_is(st, ST_END) && !dashes) {
            if (stop_at_word) return 0;
            argv[words++] = argv[(*index)++];
            continue;
        }
        if (status_is(st, ST_END)) {
            if (stop_at_word) {
                cli->options_ended = *index < argc; /* the prompt's commands have options again */
                return 0;
            }
            while (*index < argc)
                argv[words++] = argv[(*index)++];
            return words;
        }
        if (ok(st)) st = take_value(option, values, value, error, sizeof(error));
        if (!ok(st)) {
            (void)cli_usage(cli, "%s", error);
            return -1;
        }
    }
    return words;
}

static bool
option_is_set(const struct option *option, const struct cli_settings *values)
{
    const char *at = (const char *)values + option->offset;
    return option->kind == OPTION_STRING ? at[0] != '\0' : *(const u64 *)(const void *)at != 0;
}

/* What was set before the command, by flags and variables, is set for it. False, after a message:
 * it takes no such option. */
static bool
take_before(struct cli *cli, const struct option_table *table)
{
    for (u32 i = 0; i < ARRAY_COUNT(OPTIONS_BEFORE); i++) {
        const struct option *option = &OPTIONS_BEFORE[i];
        if ((option->flags & OPTION_COMMAND) != 0) continue;
        if (option_find(table, option->name, strlen(option->name)) != NULL) {
            memcpy((char *)&cli->set + option->offset, (const char *)&cli->global + option->offset,
                   option->kind == OPTION_STRING ? option->size : sizeof(u64));
        } else if (option_is_set(option, &cli->global)) {
            (void)cli_usage(cli, "%s takes no --%s", table->program, option->name);
            return false;
        }
    }
    return true;
}

int
cli_run(struct cli *cli, int argc, char **argv)
{
    const struct cli_command *command = cli_command_find(argv[0]);
    cli->in_command = false;
    if (command == NULL)
        return cli_usage(cli, "there is no command '%s'; see distkv-client help", argv[0]);
    char program[64];
    struct option_table table = table_of(command, program, sizeof(program));
    option_set_defaults(&table, &cli->set);
    if (!take_before(cli, &table)) return EXIT_USAGE;
    cli->in_command = true;
    int index = 0;
    int words = read_options(cli, &table, &cli->set, argc - 1, argv + 1, false, &index);
    if (words < 0) return EXIT_USAGE;
    if (cli->set.help) {
        cli_help(command, stdout);
        return cli_finish_output(cli, EXIT_OK);
    }
    if (words < command->words_min || (command->words_max >= 0 && words > command->words_max))
        return cli_usage(cli, "usage: %s%s %s", cli->prompt ? "" : "distkv-client ", command->name,
                         command->arguments);
    if (cli->prompt && strcmp(cli->set.server, cli->global.server) != 0)
        return cli_usage(cli, "the server cannot be changed at the prompt");
    if (cli->prompt && (strcmp(cli->set.user, cli->global.user) != 0 ||
                        strcmp(cli->set.password, cli->global.password) != 0 ||
                        strcmp(cli->set.password_file, cli->global.password_file) != 0))
        return cli_usage(cli, "user and password cannot be changed at the prompt");
    return command->run(cli, words, argv + 1);
}

/* The server reads the variables of its own options, and refuses values that are none for it: so
 * there is a name for each option that is the client's alone. DISTKV_TIMEOUT is read, too, unless it
 * is what the server means by it: a number of seconds. */
static const char *
variable_of(const struct option *option, char *name, size_t name_size)
{
    static const char *const prefixes[] = {"DISTKV_CLIENT_", "DISTKV_"};
    u64 seconds;
    for (u32 i = 0; i < ARRAY_COUNT(prefixes); i++) {
        const struct option_table table = {.variable_prefix = prefixes[i]};
        option_variable_name(&table, option, name, name_size);
        const char *value = getenv(name);
        if (value == NULL || value[0] == '\0') continue;
        if (strcmp(name, "DISTKV_TIMEOUT") == 0 && option_parse_number(value, &seconds)) continue;
        return value;
    }
    return NULL;
}

/* False after a message. */
static bool
read_environment(struct cli *cli)
{
    char program[64];
    struct option_table table = table_of(NULL, program, sizeof(program));
    for (u32 i = 0; i < table.count; i++) {
        if (table.options[i].flags & OPTION_COMMAND) continue;
        char name[64], error[OPTION_ERROR_BYTES];
        const char *value = variable_of(&table.options[i], name, sizeof(name));
        if (value == NULL) continue;
        if (ok(take_value(&table.options[i], &cli->global, value, error, sizeof(error)))) continue;
        (void)cli_usage(cli, "%s: %s", name, error);
        return false;
    }
    return true;
}

int
main(int argc, char **argv)
{
    struct cli cli = {.ends_by_sigpipe = signal(SIGPIPE, SIG_IGN) != SIG_IGN};
    const char *no_color = getenv("NO_COLOR");
    bool colors = no_color == NULL || no_color[0] == '\0';
    cli.color = colors && isatty(STDOUT_FILENO);
    cli.color_error = colors && isatty(STDERR_FILENO);
    char program[64];
    struct option_table table = table_of(NULL, program, sizeof(program));
    table.options = OPTIONS_BEFORE;
    table.count = ARRAY_COUNT(OPTIONS_BEFORE);
    option_set_defaults(&table, &cli.global);
    if (!read_environment(&cli)) return EXIT_USAGE;
    if (argc == 2 && strcmp(argv[1], "--help-man") == 0) {
        cli_man(OPTIONS_GLOBAL, ARRAY_COUNT(OPTIONS_GLOBAL), EPILOGUE);
        return cli_finish_output(&cli, EXIT_OK);
    }
    int index = 0;
    if (read_options(&cli, &table, &cli.global, argc - 1, argv + 1, true, &index) < 0)
        return EXIT_USAGE;
    if (cli.global.help) {
        cli_help(NULL, stdout);
        return cli_finish_output(&cli, EXIT_OK);
    }
    if (cli.global.version) {
        printf("distkv-client %s\n", DISTKV_VERSION);
        return cli_finish_output(&cli, EXIT_OK);
    }
    int code;
    if (index + 1 < argc)
        code = cli_run(&cli, argc - index - 1, argv + index + 1);
    else if (cli.global.consistency != 0 || cli.global.siblings || cli.global.context[0] != '\0')
        code = cli_usage(&cli, "--consistency, --siblings and --context want a command");
    else
        code = cli_prompt(&cli);
    distkv_close(cli.kv);
    return code;
}
