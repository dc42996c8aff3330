/* SPDX-License-Identifier: MIT
 *
 * cli.h -- distkv-client: what its files share.
 *
 * cli_main.c reads flags and runs a command; cli_commands.c, cli_cluster.c with
 * cli_cluster_change.c, cli_doctor.c, cli_import.c and cli_export.c are the commands; cli_prompt.c
 * is the prompt; cli_text.c knows how bytes are written as text; cli_man.c writes the man page.
 */
#ifndef DISTKV_CLIENT_CLI_H
#define DISTKV_CLIENT_CLI_H

#include "distkv.h"

#include "base/option.h"
#include "base/types.h"

#include <stdio.h>

enum cli_exit {
    EXIT_OK = 0,
    EXIT_SERVER =
        1, /* the server answered with an error, there is no such key, some records failed */
    EXIT_USAGE = 2,
    EXIT_CONNECT = 3,
    EXIT_UNHEALTHY = 5,
};

enum cli_format { FORMAT_AUTO, FORMAT_JSON, FORMAT_TSV };

/* Values of all options: of every command and of each one. */
struct cli_settings {
    char server[OPTION_TEXT_BYTES];
    u64 timeout_ms;
    char keyspace[OPTION_TEXT_BYTES]; /* number or name */
    u64 no_routing;
    u64 json;
    char user[OPTION_TEXT_BYTES];
    char password[OPTION_TEXT_BYTES]; /* of these two at most one is given */
    char password_file[OPTION_TEXT_BYTES];
    u64 help, version;
    /* of commands */
    u64 ttl_ms;
    u64 if_absent, if_present;
    u64 if_version; /* 0: not given */
    u64 escapes;
    u64 siblings;
    char context[OPTION_TEXT_BYTES]; /* hexadecimal, or @FILE */
    u64 atomic;
    char prefix[OPTION_TEXT_BYTES];
    char match[OPTION_TEXT_BYTES];
    u64 limit;
    u64 keys_only, snapshot;
    u64 format; /* enum cli_format */
    u64 in_flight;
    u64 connections;
    u64 count;
    u64 exact;
    u64 quiet;
    u64 consistency; /* enum distkv_consistency */
    /* of cluster */
    u64 no_wait, wait_ms;
    u64 dead, force, undo;
    char with[OPTION_TEXT_BYTES];
    u64 replicas, write_quorum, read_quorum;
    u64 conflict; /* 0 lww, 1 siblings */
    u64 sloppy;   /* 0 same, 1 on, 2 off */
    u64 number;
};

struct cli {
    struct cli_settings global; /* from the command line and the environment */
    struct cli_settings set;    /* of the command that runs */
    distkv *kv;                 /* NULL until cli_connect */
    bool color;                 /* standard output takes colours */
    bool color_error;
    bool options_ended;   /* "--" came before the command: only words follow */
    bool prompt;          /* commands come from the prompt */
    bool ends_by_sigpipe; /* who called us does not ignore the signal */
    bool in_command;      /* set holds what is meant, and not global alone */
};

struct cli_command {
    const char *name;
    const char *arguments; /* "KEY VALUE" */
    const char *summary;
    const struct option *options;
    u32 option_count;
    int words_min, words_max; /* -1: any number */
    int (*run)(struct cli *cli, int count, char **words);
    const char *epilogue;
};

extern const struct cli_command cli_commands[];
extern const u32 cli_command_count;

/* ---- cli_main.c ---- */

const struct cli_command *cli_command_find(const char *name);
/* Reads the command's options and runs it: an exit code. */
int cli_run(struct cli *cli, int argc, char **argv);
void cli_help(const struct cli_command *command, FILE *out); /* NULL: of the program */
/* EXIT_OK, or a message and EXIT_CONNECT. */
int cli_connect(struct cli *cli);
/* A message on standard error; the exit code for a code of the library. */
int cli_fail(struct cli *cli, int code, const char *what);
PRINTF_LIKE(2, 3) void cli_error(struct cli *cli, const char *format, ...);
PRINTF_LIKE(2, 3) void cli_warn(struct cli *cli, const char *format, ...);
PRINTF_LIKE(2, 3) int cli_usage(struct cli *cli, const char *format, ...);

/* ---- cli_man.c ---- */

/* Every command's options begin with the global ones. */
void cli_man(const struct option *global, u32 global_count, const char *epilogue);

/* ---- the prompt ---- */

int cli_prompt(struct cli *cli);

/* ---- cli_text.c ---- */

bool text_is_utf8(const void *data, size_t size);
/* Backslash escapes: \t \n \r \\ \" and \xHH for whatever is not printable. */
void text_write_escaped(FILE *out, const void *data, size_t size);
/* In place; false: a bad escape. */
bool text_unescape(char *text, size_t *size);
/* "text" as a JSON string; false when it is not UTF-8 (nothing is written then). */
bool text_write_json(FILE *out, const void *data, size_t size);
/* "name":"text" or "name_b64":"...". */
void text_write_json_field(FILE *out, const char *name, const void *data, size_t size);
void text_write_base64(FILE *out, const void *data, size_t size);
/* out holds size / 4 * 3 + 3 bytes; false: not base64. */
bool text_read_base64(const char *text, size_t size, u8 *out, size_t *out_size);
/* Splits a line into words: "..." with escapes, '...' without. The words point into line, which is
 * changed; sizes_out may hold zero bytes inside. -1: unbalanced quotes; -2: more than max. */
int text_split(char *line, char **words, size_t *sizes, int max);

/* ---- commands ---- */

int cmd_put(struct cli *cli, int count, char **words);
int cmd_get(struct cli *cli, int count, char **words);
int cmd_delete(struct cli *cli, int count, char **words);
int cmd_batch(struct cli *cli, int count, char **words);
int cmd_scan(struct cli *cli, int count, char **words);
int cmd_ttl(struct cli *cli, int count, char **words);
int cmd_expire(struct cli *cli, int count, char **words);
int cmd_count(struct cli *cli, int count, char **words);
int cmd_status(struct cli *cli, int count, char **words);
int cmd_bench_ping(struct cli *cli, int count, char **words);
int cmd_cluster(struct cli *cli, int count, char **words);
int cmd_doctor(struct cli *cli, int count, char **words);
int cmd_import(struct cli *cli, int count, char **words);
int cmd_export(struct cli *cli, int count, char **words);
int cmd_help(struct cli *cli, int count, char **words);

/* Functions of cluster, for completion; NULL behind the last. */
const char *cli_cluster_function(u32 index);
u64 cli_now_ns(void);
/* stdout: flushed and checked; EXIT_SERVER with a message when it cannot be written. Where whoever
 * reads it has gone, as head does, the process ends by SIGPIPE. */
int cli_finish_output(struct cli *cli, int code);

#endif
