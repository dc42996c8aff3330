/* SPDX-License-Identifier: MIT
 *
 * settings.h -- what was asked for: the options, and what follows from them. Pure but for reading
 * the password file.
 */
#ifndef DISTKV_BENCH_SETTINGS_H
#define DISTKV_BENCH_SETTINGS_H

#include "base/limits.h"
#include "base/option.h"
#include "load/keys.h"

#define TEXT_BYTES 256u
/* Numbers in keys are as wide as redis-benchmark's. */
#define KEY_DIGITS      12u
#define KEY_PREFIX_MAX  64u
#define KEY_COUNT_MAX   1000000000000ull
#define VALUE_BYTES_MAX (8u << 20) /* a frame must fit into what src/io receives whole */
#define CONNECTIONS_MAX 100000u
#define DEPTH_MAX       65536u

/* Kinds of requests; RMW stands for a read and the write that follows it, and is not sent itself.
 */
enum op {
    OP_PING,
    OP_GET,
    OP_SET,
    OP_INSERT,
    OP_DELETE,
    OP_INCR,
    OP_SCAN,
    OP_RMW,
    OP_COUNT,
};
extern const char *const op_names[OP_COUNT];

enum protocol { PROTOCOL_RESP, PROTOCOL_NATIVE };
enum verify { VERIFY_NO, VERIFY_VALUES, VERIFY_STRICT };
enum format { FORMAT_TEXT, FORMAT_JSON, FORMAT_CSV };

struct settings {
    /* options, in the order of --help; numbers of every kind are u64 (see option.h) */
    char server[TEXT_BYTES];
    u64 protocol;
    char user[TEXT_BYTES];
    char password[TEXT_BYTES];
    char password_file[TEXT_BYTES];
    u64 database;
    u64 timeout_ms;
    u64 routing;

    u64 workload;
    char reads[16];
    u64 load;
    u64 key_count;
    char key_prefix[KEY_PREFIX_MAX + 1];
    char value_size[32];
    char compressible[16];
    u64 distribution;
    char theta[16];
    u64 scan_length;
    u64 ttl_ms;
    u64 verify;
    u64 seed;

    u64 connections;
    u64 pipeline;
    u64 threads;
    char cores[TEXT_BYTES];
    u64 rate;

    u64 duration_ms;
    u64 count;
    u64 warmup_ms;

    u64 format;
    char output[OPTION_TEXT_BYTES];
    u64 interval_ms;
    u64 server_pid;
    u64 standard;
    u64 ceiling;
    u64 compare;
    u64 help;
    u64 version;

    /* what follows; set by settings_finish */
    const char *name;  /* of the run */
    u32 mix[OP_COUNT]; /* per 65536, ascending: the first above a random number is taken */
    u32 value_min, value_max;
    u32 compressible_percent;
    u32 reads_percent;
    double zipf_theta;
    enum key_order order;
    u32 core_list[LIMIT_SHARDS];
    u32 core_count; /* 0: not pinned */
    u32 depth;      /* requests under way on one connection */
    bool server_given, depth_given, interval_given;
};

extern const struct option_table settings_table;
extern const char *const workload_names[];

void settings_defaults(struct settings *settings);
/* Reads the flags; words that are no options are left in words_out (at most word_max). False:
 * error says why. */
MUST_CHECK bool settings_parse(struct settings *settings, int argc, const char *const *argv,
                               const char **words_out, u32 word_max, u32 *word_count_out,
                               char *error, size_t error_size);
/* Derives the rest and refuses what does not go together. */
MUST_CHECK bool settings_finish(struct settings *settings, char *error, size_t error_size);
/* host:port, [v6]:port, :port, port; the port may be left out. */
MUST_CHECK bool settings_server(const char *text, char *host, size_t host_size, u16 *port_out);

/* Whether kinds of this sort can come up. */
bool settings_has(const struct settings *settings, enum op op);
/* The kind that a number below 65536 stands for. */
static inline enum op
settings_pick(const struct settings *settings, u32 random)
{
    for (u32 op = 0; op < OP_COUNT - 1; op++)
        if (random < settings->mix[op]) return (enum op)op;
    return OP_RMW;
}

#endif
