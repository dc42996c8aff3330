/* SPDX-License-Identifier: MIT
 *
 * config.h -- the options of distkv-server: their table, their values, and CONFIG GET and SET.
 *
 * One struct server_config per node. The host fills it before the shards start (host_config.c:
 * defaults, then file, variables, flags); from then on shards read it as they like. What CONFIG SET
 * may change is atomic and is read anew at each use; everything else is constant while the node
 * runs. A shard that must act on a change (a new scrub rate) compares config_generation now and
 * then.
 *
 * To add an option: a field here, a line in config.c, and `make docs`.
 */
#ifndef DISTKV_SERVER_CONFIG_H
#define DISTKV_SERVER_CONFIG_H

#include "base/limits.h"
#include "base/option.h"

#define CONFIG_NODE_ID_BYTES 64u
#define CONFIG_HOST_BYTES    64u
#define CONFIG_OPTIONS_MAX   64u
#define CONFIG_NAME_BYTES    64u
#define CONFIG_SEEDS_MAX     16u
/* The peer port when none is given, as the bus of Redis Cluster: so far above the data port. */
#define CONFIG_PEER_PORT_OFFSET 10000u
#define CONFIG_SECRET_BYTES_MIN 16u
#define CONFIG_MEMORY_MIN       MIB(32)

enum config_origin {
    CONFIG_ORIGIN_DEFAULT,
    CONFIG_ORIGIN_FILE,
    CONFIG_ORIGIN_VARIABLE,
    CONFIG_ORIGIN_FLAG,
    CONFIG_ORIGIN_DERIVED, /* computed at start from the machine or from other options */
};

/* A host and a port; host without brackets. */
struct config_endpoint {
    char host[CONFIG_HOST_BYTES];
    u16 port;
};

/* A node to ask for a place in its cluster. */
struct config_seed {
    char host[CONFIG_HOST_BYTES];
    u16 peer_port;
};

/* What CLUSTER tells Redis Cluster clients. */
enum config_resp_cluster {
    CONFIG_RESP_CLUSTER_OFF,   /* cluster_enabled:0 */
    CONFIG_RESP_CLUSTER_NODE,  /* nodes */
    CONFIG_RESP_CLUSTER_CORES, /* shards, each of which has a port of its own */
};

enum config_log_format {
    CONFIG_LOG_AUTO,
    CONFIG_LOG_HUMAN,
    CONFIG_LOG_LOGFMT,
    CONFIG_LOG_JSON,
    CONFIG_LOG_JOURNAL,
};

/* Fields named like their option. u64 throughout: the option table stores all numbers so. */
struct server_config {
    /* ---- constant while the node runs ---- */
    char node_id[CONFIG_NODE_ID_BYTES]; /* "": what the data directory says, or made up */
    char address[CONFIG_HOST_BYTES + 8];
    char admin_address[CONFIG_HOST_BYTES + 8]; /* "": none is served (option value "off") */
    char data_dir[OPTION_TEXT_BYTES];
    char cores[OPTION_TEXT_BYTES];
    char pid_file[OPTION_TEXT_BYTES];
    _Atomic u64 memory_bytes;     /* of the whole process */
    _Atomic u64 durability;       /* enum lsm_durability */
    _Atomic u64 sync_interval_ms; /* for periodic */
    _Atomic u64 codec;            /* enum lsm_codec: tables of the tiers */
    _Atomic u64 codec_last;       /* enum lsm_codec: tables of the last level */
    _Atomic u64 blob_threshold_bytes;
    _Atomic u64 disk_reserve_bytes;
    _Atomic u64 spin_us;
    _Atomic u64 stall_ms;
    _Atomic u64 log_format; /* enum config_log_format */
    _Atomic u64 shutdown_timeout_ms;
    _Atomic u64 admin_connections;               /* at once */
    char cluster_secret_file[OPTION_TEXT_BYTES]; /* "": a node by itself */
    char seed_nodes[OPTION_TEXT_BYTES];
    char peer_address[CONFIG_HOST_BYTES + 8];
    _Atomic u64 replicas, write_quorum, read_quorum; /* of a cluster that this node founds */
    _Atomic u64 replaces;
    _Atomic u64 virtual_nodes;
    _Atomic u64 resp_cluster; /* enum config_resp_cluster */
    char rack[CONFIG_NAME_BYTES];
    char datacenter[CONFIG_NAME_BYTES];

    /* ---- changeable: CONFIG SET ---- */
    _Atomic u64 scrub_rate_bytes; /* a second, whole node; 0: off */
    _Atomic u64 move_rate_bytes;  /* a second, whole node; 0: without limit */
    _Atomic u64 log_level;        /* enum log_level */
    _Atomic u64 maxclients;
    _Atomic u64 timeout_s;                  /* idle connections are closed after this; 0: never */
    _Atomic u64 request_timeout_ms;         /* so are those with half a request; 0: never */
    _Atomic u64 client_output_limit_bytes;  /* a connection with more unsent output is closed */
    _Atomic u64 slowlog_log_slower_than_us; /* an i64: -1 off, 0 everything */
    _Atomic u64 slowlog_max_len;
    _Atomic u64 latency_monitor_threshold_ms; /* 0: off */
    _Atomic u64 cluster_timeout_ms;
    struct option_text requirepass; /* see config_password */

    /* ---- actions of the command line ---- */
    char config_file[OPTION_TEXT_BYTES];
    _Atomic u64 help, version, print_config, check_config, verify, help_markdown, help_man;

    /* ---- derived before the shards start (config_resolve, host_config.c) ---- */
    struct config_endpoint endpoint;
    struct config_endpoint admin_endpoint; /* port 0: off */
    u32 core_list[LIMIT_SHARDS];           /* sorted, each once */
    u32 core_count;                        /* = number of shards */
    u32 cores_left;                        /* unused, as memory is short and nobody said how many */
    bool in_memory;                        /* data_dir is ":memory:" */
    bool clustered;                        /* there is a secret */
    struct config_endpoint peer_endpoint;  /* of shard 0 */
    u16 shard_port;                        /* shard 0's own for clients, the others follow; or 0 */
    u64 clients_possible;                  /* as descriptors allow; 0: not known */
    struct config_seed seeds[CONFIG_SEEDS_MAX];
    u32 seed_count;
    char cluster_secret[OPTION_TEXT_BYTES]; /* what the file says; the host reads it */

    /* ---- bookkeeping ---- */
    u8 origins[CONFIG_OPTIONS_MAX];       /* enum config_origin, by index in the table */
    u32 origin_lines[CONFIG_OPTIONS_MAX]; /* in the config file */
    _Atomic u64 generation;               /* grows with every CONFIG SET */
};

extern const struct option_table config_table;

/* All options at their defaults; nothing derived yet. */
void config_init(struct server_config *config);
/* Sets one option by name and remembers where it came from. */
MUST_CHECK status config_assign(struct server_config *config, const struct option *option,
                                const char *text, enum config_origin origin, u32 line, char *error,
                                size_t error_size);
/* Fills endpoints and in_memory from the texts; checks what concerns several options. The core
 * list must be there. Pure: the machine's figures come from the host. */
MUST_CHECK status config_resolve(struct server_config *config, char *error, size_t error_size);
/* "0,2-5" into out (sorted, each once). */
MUST_CHECK bool config_parse_cores(const char *text, u32 *out, u32 capacity, u32 *count_out);
/* What HELLO and INFO call this: "standalone" or "cluster". */
const char *config_redis_mode(const struct server_config *config);
MUST_CHECK bool config_parse_endpoint(const char *text, struct config_endpoint *out);
/* "host:port,host:port@peerport" */
MUST_CHECK bool config_parse_seeds(const char *text, struct config_seed *out, u32 capacity,
                                   u32 *count_out);
/* A configuration for tests and the simulator: one shard, given data directory, 64 MiB. */
void config_init_for_test(struct server_config *config, const char *data_dir, u32 shard_count);

/* ---- CONFIG GET, CONFIG SET: from any shard ---- */

/* Calls each(arg, name, value) for every option whose name matches the glob pattern, Redis' own
 * names that clients ask for among them (save, appendonly, maxmemory, databases...). A pattern
 * without * ? [ is a name, and told as it was given. */
void config_list(const struct server_config *config, const char *pattern,
                 void (*each)(void *arg, const char *name, const char *value), void *arg);
/* False when there is no such name. */
MUST_CHECK bool config_get(const struct server_config *config, const char *name, char *out,
                           size_t size);
/* As the table spells the name, one pointer for all spellings; NULL when there is no such name. */
const char *config_name(const char *name);
/* error: the text behind "ERR CONFIG SET failed (...) - ", in Redis' words where Redis has such a
 * mistake; ST_NOT_FOUND (without a text), ST_INVALID, or ST_UNSUPPORTED for what cannot change
 * while the node runs. */
MUST_CHECK status config_set(struct server_config *config, const char *name, const char *value,
                             char *error, size_t error_size);
/* Checks as config_set does but changes nothing: CONFIG SET of several is all or nothing. The first
 * looks at the name alone. */
MUST_CHECK status config_set_check_name(const char *name, char *error, size_t error_size);
MUST_CHECK status config_set_check(const struct server_config *config, const char *name,
                                   const char *value, char *error, size_t error_size);

static inline u64
config_generation(const struct server_config *config)
{
    return config->generation;
}

/* Whether clients must authenticate; a plain load. */
static inline bool
config_has_password(const struct server_config *config)
{
    return option_text_is_set(&config->requirepass);
}

/* Compares in a time that does not depend on the content. */
bool config_password_matches(const struct server_config *config, struct bytes password);

static inline i64
config_slowlog_us(const struct server_config *config)
{
    return (i64)config->slowlog_log_slower_than_us;
}

#endif
