/* SPDX-License-Identifier: MIT
 *
 * config.c -- the table of options, and CONFIG GET and SET over it.
 *
 * Redis' clients, exporters and test suites read and set a number of Redis' own names. Those that
 * say the same thing as an option of ours are its other name (`maxmemory`); the rest are constants
 * that describe how this server behaves. Setting such a name to the value it has succeeds.
 */
#include "server/config.h"

#include "base/log.h"
#include "lsm/lsm.h"
#include "server/glob.h"
#include "server/number.h"

#include <stdio.h>

static const char *const durability_words[] = {"group", "periodic", "none", NULL};
static const char *const codec_words[] = {"none", "lz4", "deflate", NULL};
static const char *const resp_cluster_words[] = {"off", "node", "cores", NULL};
static const char *const log_format_words[] = {"auto", "human", "logfmt", "json", "journal", NULL};
static const char *const log_level_words[] = {"error", "warning", "info", "debug", NULL};

static_assert(LSM_DURABILITY_GROUP == 0 && LSM_DURABILITY_PERIODIC == 1 && LSM_DURABILITY_NONE == 2,
              "durability_words follows the enum");
static_assert(LSM_CODEC_NONE == 0 && LSM_CODEC_LZ4 == 1 && LSM_CODEC_DEFLATE == 2,
              "codec_words follows the enum");
static_assert(LOG_LEVEL_ERROR == 0 && LOG_LEVEL_WARNING == 1 && LOG_LEVEL_INFO == 2 &&
                  LOG_LEVEL_DEBUG == 3,
              "log_level_words follows the enum");
static_assert(CONFIG_RESP_CLUSTER_OFF == 0 && CONFIG_RESP_CLUSTER_CORES == 2,
              "resp_cluster_words follows the enum");
static_assert(CONFIG_LOG_AUTO == 0 && CONFIG_LOG_JOURNAL == 4, "log_format_words follows the enum");

/* ---- checks ---- */

bool
config_parse_endpoint(const char *text, struct config_endpoint *out)
{
    const char *colon = strrchr(text, ':');
    if (colon == NULL) return false;
    u64 port;
    if (!option_parse_number(colon + 1, &port) || port > UINT16_MAX) return false;

    const char *host = text;
    size_t size = (size_t)(colon - text);
    if (size >= 2 && host[0] == '[' && host[size - 1] == ']') {
        host++;
        size -= 2;
    } else if (memchr(host, ':', size) != NULL) {
        return false; /* an IPv6 address needs brackets, or its end would pass for the port */
    }
    if (size >= sizeof(out->host)) return false;
    if (size == 0) {
        memcpy(out->host, "0.0.0.0", sizeof("0.0.0.0"));
    } else if (size == 9 && memcmp(host, "localhost", 9) == 0) {
        memcpy(out->host, "127.0.0.1", sizeof("127.0.0.1"));
    } else {
        memcpy(out->host, host, size);
        out->host[size] = '\0';
    }
    out->port = (u16)port;
    return true;
}

static bool
check_endpoint(const char *text, char *error, size_t error_size)
{
    struct config_endpoint endpoint;
    if (config_parse_endpoint(text, &endpoint)) return true;
    snprintf(error, error_size,
             "'%.64s' is not host:port, for example 127.0.0.1:8080 or [::1]:8080", text);
    return false;
}

static bool
check_admin_endpoint(const char *text, char *error, size_t error_size)
{
    struct config_endpoint endpoint;
    if (strcmp(text, "off") == 0) return true;
    if (!check_endpoint(text, error, error_size)) return false;
    if (!config_parse_endpoint(text, &endpoint) || endpoint.port != 0) return true;
    snprintf(error, error_size, "port 0 would serve nobody: give a port, or 'off'");
    return false;
}

/* One of them, ended. */
static bool
parse_seed(char *text, struct config_seed *out)
{
    u64 peer_port = 0;
    char *at = strrchr(text, '@');
    if (at != NULL) {
        *at = '\0';
        if (!option_parse_number(at + 1, &peer_port) || peer_port == 0) return false;
    }
    struct config_endpoint endpoint;
    if (text[0] == ':' || !config_parse_endpoint(text, &endpoint) || endpoint.port == 0)
        return false;
    if (at == NULL) peer_port = endpoint.port + CONFIG_PEER_PORT_OFFSET;
    if (peer_port > UINT16_MAX) return false;
    memcpy(out->host, endpoint.host, sizeof(out->host));
    out->peer_port = (u16)peer_port;
    return true;
}

bool
config_parse_seeds(const char *text, struct config_seed *out, u32 capacity, u32 *count_out)
{
    u32 count = 0;
    for (;;) {
        char part[CONFIG_HOST_BYTES + 32];
        while (*text == ' ')
            text++;
        size_t size = strcspn(text, ",");
        size_t used = size;
        while (used > 0 && text[used - 1] == ' ')
            used--;
        if (used == 0 || used >= sizeof(part) || count == capacity) return false;
        memcpy(part, text, used);
        part[used] = '\0';
        if (!parse_seed(part, &out[count++])) return false;
        text += size;
        if (*text == '\0') break;
        text++;
    }
    *count_out = count;
    return true;
}

static bool
check_seeds(const char *text, char *error, size_t error_size)
{
    struct config_seed seeds[CONFIG_SEEDS_MAX];
    u32 count;
    if (text[0] == '\0' || config_parse_seeds(text, seeds, CONFIG_SEEDS_MAX, &count)) return true;
    snprintf(error, error_size,
             "'%.64s' is not a list of at most %u host:port (or host:port@peerport), parted by "
             "commas",
             text, CONFIG_SEEDS_MAX);
    return false;
}

bool
config_parse_cores(const char *text, u32 *out, u32 capacity, u32 *count_out)
{
    /* Core numbers above 4095 do not exist on any Linux build. */
    enum { CORE_MAX = 4095 };
    u8 seen[CORE_MAX / 8 + 1] = {0};
    for (;;) {
        char part[16];
        size_t size = strcspn(text, ",");
        if (size == 0 || size >= sizeof(part)) return false;
        memcpy(part, text, size);
        part[size] = '\0';
        char *dash = strchr(part, '-');
        if (dash != NULL) *dash = '\0';
        u64 first, last;
        if (!option_parse_number(part, &first)) return false;
        last = first;
        if (dash != NULL && !option_parse_number(dash + 1, &last)) return false;
        if (first > last || last > CORE_MAX) return false;
        for (u64 core = first; core <= last; core++) {
            u8 bit = (u8)(1u << (core % 8));
            if (seen[core / 8] & bit) return false; /* one shard, where two were asked for */
            seen[core / 8] |= bit;
        }
        text += size;
        if (*text == '\0') break;
        text++;
    }
    u32 count = 0;
    for (u32 core = 0; core <= CORE_MAX; core++) {
        if ((seen[core / 8] & (1u << (core % 8))) == 0) continue;
        if (count == capacity) return false;
        out[count++] = core;
    }
    *count_out = count;
    return true;
}

static bool
check_cores(const char *text, char *error, size_t error_size)
{
    u32 cores[LIMIT_SHARDS], count;
    if (config_parse_cores(text, cores, LIMIT_SHARDS, &count)) return true;
    snprintf(error, error_size,
             "'%.48s' is not a list of at most %u cores, each named once, for example 0,1 or 0-3",
             text, LIMIT_SHARDS);
    return false;
}

static bool
check_node_id(const char *text, char *error, size_t error_size)
{
    for (const char *c = text; *c != '\0'; c++) {
        bool letter = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z');
        bool other = (*c >= '0' && *c <= '9') || *c == '-' || *c == '_' || *c == '.';
        if (letter || other) continue;
        snprintf(error, error_size, "only letters, digits, '-', '_' and '.' are allowed");
        return false;
    }
    return true;
}

/* ---- the table ---- */

#define FIELD(name)   .offset = offsetof(struct server_config, name)
#define TEXT(name)    FIELD(name), .size = sizeof(((struct server_config *)0)->name)
#define ACTION(field) .kind = OPTION_BOOL, .flags = OPTION_COMMAND, FIELD(field), .max = 1

static const struct option options[] = {
    /* clang-format off */
    {.name = "node-id", .kind = OPTION_STRING, TEXT(node_id), .section = "Node",
     .value_name = "NAME", .check = check_node_id,
     .derived = "the data directory's; made up for a new one",
     .help = "Name of this node, at most 63 letters, digits, '-', '_' and '.'. A data directory "
             "belongs to one node and refuses another name."},
    {.name = "address", .kind = OPTION_STRING, TEXT(address), .fallback = "127.0.0.1:8080",
     .value_name = "HOST:PORT", .check = check_endpoint,
     .help = "Where clients connect: Redis protocol and native protocol on one port. Port 0 picks "
             "a free one."},
    {.name = "admin-address", .kind = OPTION_STRING, TEXT(admin_address),
     .value_name = "HOST:PORT", .check = check_admin_endpoint,
     .derived = "127.0.0.1, 1000 above the data port; 'off' when that is 0",
     .help = "Where /metrics, /livez, /readyz and /status are served over HTTP, or 'off'."},
    {.name = "data-dir", .kind = OPTION_STRING, TEXT(data_dir), .fallback = "./distkv-data",
     .value_name = "DIR",
     .help = "Where the data lives; made when it is not there. ':memory:' keeps everything in "
             "memory, for caches and tests."},
    {.name = "config", .kind = OPTION_STRING, TEXT(config_file), .value_name = "FILE",
     .help = "Reads options from FILE: one 'name = value' a line; a line that begins with '#' or ';' "
             "is a comment."},
    {.name = "pid-file", .kind = OPTION_STRING, TEXT(pid_file), .value_name = "FILE",
     .help = "Writes the process id into FILE once the node is ready, and removes it at the end."},

    {.name = "cores", .kind = OPTION_STRING, TEXT(cores), .section = "Resources",
     .value_name = "LIST", .check = check_cores,
     .derived = "all that the process may use; fewer where half of the memory is less than 32 MiB "
                "for each",
     .help = "Cores to run on, for example 0,1 or 0-3: one shard a core, pinned. Data written "
             "with one number of cores opens with another."},
    {.name = "memory", .kind = OPTION_BYTES, FIELD(memory_bytes),
     .derived = "half of the machine's or the control group's memory, at most 1GiB, or 32 MiB a "
                "core where that is more",
     .min = CONFIG_MEMORY_MIN, .max = GIB(1) * 16384,
     .help = "Bound of the process: memtables, caches, connections and everything else share it. "
             "At least 32 MiB a core."},
    {.name = "maxclients", .kind = OPTION_NUMBER, .flags = OPTION_RUNTIME, FIELD(maxclients),
     .fallback = "10000", .min = 1, .max = 1000000,
     .help = "Most client connections at once; more are refused with an error. At most as "
             "many as the limit of descriptors, as found at the start, leaves for them."},
    {.name = "timeout", .kind = OPTION_NUMBER, .flags = OPTION_RUNTIME, FIELD(timeout_s),
     .fallback = "0", .max = INT32_MAX, .value_name = "SECONDS",
     .help = "Closes connections that were idle for so many seconds; 0 never does."},
    {.name = "request-timeout", .kind = OPTION_DURATION, .unit = NS_PER_MS,
     .flags = OPTION_RUNTIME, FIELD(request_timeout_ms), .fallback = "1m", .max = 3600000,
     .help = "Closes connections that leave a request unfinished: in each such time enough of it "
             "must come, at a rate of a sixteenth of the request, or 1 KiB, a minute. 0 never "
             "does. Connections that send nothing between requests are none of these. Time "
             "that a large request waits for memory does not count. While others wait for it, "
             "or an eighth of a core's memory is all that is left, who "
             "has memory for one must send a sixteenth of it in 3 s, whatever this says."},
    {.name = "client-output-limit", .kind = OPTION_BYTES, .flags = OPTION_RUNTIME,
     FIELD(client_output_limit_bytes), .fallback = "32MiB", .min = MIB(1), .max = GIB(4),
     .help = "Closes a connection whose unread replies exceed this."},
    {.name = "spin", .kind = OPTION_DURATION, .unit = NS_PER_US, FIELD(spin_us),
     .fallback = "20us", .max = 10000,
     .help = "How long an idle shard polls before it sleeps, while at least one of four such "
             "times something comes within it. More lowers latency and costs processor time; 0 "
             "sleeps at once."},
    {.name = "stall", .kind = OPTION_DURATION, .unit = NS_PER_MS, FIELD(stall_ms),
     .fallback = "25ms", .max = 60000,
     .help = "Turns of a shard's loop that take longer are logged with a backtrace; 0 is off."},

    {.name = "durability", .kind = OPTION_CHOICE, .choices = durability_words, FIELD(durability),
     .fallback = "group", .section = "Storage",
     .help = "What an acknowledged write survives. group: power loss. periodic: a crash of the "
             "process, and power loss but for the last sync-interval. none: nothing."},
    {.name = "sync-interval", .kind = OPTION_DURATION, .unit = NS_PER_MS, FIELD(sync_interval_ms),
     .fallback = "100ms", .min = 1, .max = 60000,
     .help = "How often the log is synced under periodic durability."},
    {.name = "codec", .kind = OPTION_CHOICE, .choices = codec_words, FIELD(codec),
     .fallback = "none", .help = "Compression of young tables."},
    {.name = "codec-last", .kind = OPTION_CHOICE, .choices = codec_words, FIELD(codec_last),
     .fallback = "lz4", .help = "Compression of the last level, where most data is."},
    {.name = "blob-threshold", .kind = OPTION_BYTES, FIELD(blob_threshold_bytes),
     .fallback = "4KiB", .min = 512, .max = MIB(2),
     .help = "Values from this size on are kept apart, so that compaction does not copy them."},
    {.name = "scrub-rate", .kind = OPTION_RATE, .flags = OPTION_RUNTIME, FIELD(scrub_rate_bytes),
     .fallback = "1MiB", .max = GIB(1024),
     .help = "Speed at which a running node verifies its files again and again; 0 is off."},
    {.name = "move-rate", .kind = OPTION_RATE, .flags = OPTION_RUNTIME, FIELD(move_rate_bytes),
     .fallback = "16MiB", .max = GIB(1024),
     .help = "Speed at which a node fetches what it gains, and at which it serves what others gain, "
             "when nodes join, leave or are rebuilt; 0 is as fast as it can, at the expense of "
             "requests."},
    {.name = "disk-reserve", .kind = OPTION_BYTES, FIELD(disk_reserve_bytes), .fallback = "256MiB",
     .max = GIB(1024),
     .help = "Writes are refused while less is free on the disk; reads go on."},

    {.name = "requirepass", .kind = OPTION_STRING, .flags = OPTION_RUNTIME | OPTION_SECRET,
     FIELD(requirepass), .value_name = "PASSWORD", .section = "Clients",
     .help = "Clients must authenticate with this password. Better given in the config file or "
             "the variable than as a flag, which other users of the machine can read."},
    {.name = "slowlog-log-slower-than", .kind = OPTION_SIGNED, .flags = OPTION_RUNTIME,
     FIELD(slowlog_log_slower_than_us), .fallback = "10000", .min = (u64)-1, .max = INT64_MAX,
     .value_name = "MICROSECONDS",
     .help = "Requests that take longer are kept for SLOWLOG GET; 0 keeps all, -1 none."},
    {.name = "slowlog-max-len", .kind = OPTION_NUMBER, .flags = OPTION_RUNTIME,
     FIELD(slowlog_max_len), .fallback = "128", .max = 1024,
     .help = "How many slow requests are kept."},
    {.name = "latency-monitor-threshold", .kind = OPTION_NUMBER, .flags = OPTION_RUNTIME,
     FIELD(latency_monitor_threshold_ms), .fallback = "0", .max = 1000000,
     .value_name = "MILLISECONDS",
     .help = "Events that take longer are kept for LATENCY LATEST; 0 is off."},

    {.name = "cluster-secret-file", .kind = OPTION_STRING, TEXT(cluster_secret_file),
     .value_name = "FILE", .section = "Cluster",
     .help = "Makes this node one of a cluster. FILE holds the cluster's secret, a line of at "
             "least 16 characters, the same on all nodes; it is never sent. Without it the node "
             "is alone."},
    {.name = "seed-nodes", .kind = OPTION_STRING, TEXT(seed_nodes), .value_name = "HOST:PORT,...",
     .check = check_seeds,
     .help = "Nodes of the cluster to join, by their data ports; HOST:PORT@PEERPORT where the peer "
             "port is another than 10000 above. A new node without any founds a cluster. Not "
             "looked at by a node that belongs to one."},
    {.name = "peer-address", .kind = OPTION_STRING, TEXT(peer_address), .value_name = "HOST:PORT",
     .check = check_endpoint, .derived = "the host of address, 10000 above its port",
     .help = "Where the other nodes reach this one. Each shard has a port of its own, from this "
             "one on upwards."},
    {.name = "replicas", .kind = OPTION_NUMBER, FIELD(replicas), .fallback = "3", .min = 1,
     .max = 7,
     .help = "On how many nodes each key is kept. Counts on the node that founds the cluster, as "
             "do the next two."},
    {.name = "write-quorum", .kind = OPTION_NUMBER, FIELD(write_quorum), .fallback = "2",
     .min = 1, .max = 7,
     .help = "A write is acknowledged when so many replicas have it on disk."},
    {.name = "read-quorum", .kind = OPTION_NUMBER, FIELD(read_quorum), .fallback = "2", .min = 1,
     .max = 7,
     .help = "A read asks so many replicas, and answers with the newest. With write-quorum more "
             "than replicas: it sees every acknowledged write."},
    {.name = "replaces", .kind = OPTION_NUMBER, FIELD(replaces), .fallback = "0",
     .max = UINT32_MAX,
     .help = "Number of a dead node whose place this one takes when it joins; 0: nobody's, or its "
             "own under the same node id."},
    {.name = "virtual-nodes", .kind = OPTION_NUMBER, FIELD(virtual_nodes), .fallback = "150",
     .min = 1, .max = 65535,
     .help = "Weight of this node: its share of the data is in proportion."},
    {.name = "resp-cluster", .kind = OPTION_CHOICE, .choices = resp_cluster_words,
     FIELD(resp_cluster), .fallback = "off",
     .help = "What Redis Cluster clients are told, so that they go straight to whoever has a key. "
             "off: nothing, there is no cluster for them. node: the nodes. cores: the shards; "
             "each listens at a port of its own as well, from the data port + 1 on. Needed by no "
             "client: every port takes every request."},
    {.name = "rack", .kind = OPTION_STRING, TEXT(rack), .value_name = "NAME",
     .fallback = "r1", .check = check_node_id,
     .help = "Replicas of a key are kept on different racks where there are enough."},
    {.name = "datacenter", .kind = OPTION_STRING, TEXT(datacenter), .value_name = "NAME",
     .fallback = "dc1", .check = check_node_id,
     .help = "Each data center has all replicas of its own."},
    {.name = "cluster-timeout", .kind = OPTION_DURATION, .unit = NS_PER_MS,
     .flags = OPTION_RUNTIME, FIELD(cluster_timeout_ms), .fallback = "5s", .min = 50,
     .max = 600000,
     .help = "How long a request may wait for other nodes."},

    {.name = "log-format", .kind = OPTION_CHOICE, .choices = log_format_words, FIELD(log_format),
     .fallback = "auto", .section = "Operation",
     .help = "Form of the log on standard error. auto: journal under systemd, human on a terminal, "
             "else logfmt."},
    {.name = "log-level", .kind = OPTION_CHOICE, .flags = OPTION_RUNTIME,
     .choices = log_level_words, FIELD(log_level), .fallback = "info",
     .help = "Least important messages that are logged."},
    {.name = "admin-connections", .kind = OPTION_NUMBER, FIELD(admin_connections),
     .fallback = "32", .min = 1, .max = 1024,
     .help = "Most connections to the admin address at once; with three quarters of them taken a new "
             "one ends the oldest."},
    {.name = "shutdown-timeout", .kind = OPTION_DURATION, .unit = NS_PER_MS,
     FIELD(shutdown_timeout_ms), .fallback = "5s", .min = 100, .max = 3600000,
     .help = "After SIGTERM or SIGINT the node drains and writes out what is in memory, so that "
             "nothing is left to replay; it ends anyway after this time."},

    {.name = "check-config", ACTION(check_config), .section = "Actions",
     .help = "Checks the configuration and ends: exit status 0 or 2."},
    {.name = "print-config", ACTION(print_config),
     .help = "Prints every option with its value and where that comes from, and ends."},
    {.name = "verify", ACTION(verify),
     .help = "Reads every file of a data directory that no server uses, prints each damaged file "
             "and offset, and ends: exit status 0, or 1 when something is damaged."},
    {.name = "version", ACTION(version), .help = "Prints the version and ends."},
    {.name = "help", ACTION(help), .help = "Prints this and ends."},
    {.name = "help-markdown", ACTION(help_markdown),
     .help = "Prints the option reference for docs/configuration.md."},
    {.name = "help-man", ACTION(help_man), .help = "Prints the manual page."},
    /* clang-format on */
};

static_assert(ARRAY_COUNT(options) <= CONFIG_OPTIONS_MAX, "origins has a place for each");

const struct option_table config_table = {
    .options = options,
    .count = ARRAY_COUNT(options),
    .program = "distkv-server",
    .summary = "a node of the DistKV key-value store",
    .usage = "[--OPTION VALUE]...",
    .variable_prefix = "DISTKV_",
    .epilogue =
        "One dash or two; --name value or --name=value. Each option is also a variable\n"
        "(DISTKV_DATA_DIR) and a line of the config file (data-dir = ./data).\n"
        "A flag wins over a variable, a variable over the file, the file over the default.\n"
        "\n"
        "Exit status: 0 stopped as asked, 1 server error, 2 wrong usage or configuration,\n"
        "5 ended with data damaged or unsaved.\n"
        "\n"
        "Examples:\n"
        "  distkv-server\n"
        "  distkv-server --address 0.0.0.0:8080 --data-dir /var/lib/distkv --memory 4GiB\n"
        "  distkv-server --data-dir :memory: --cores 0\n",
};

/* ---- filling ---- */

void
config_init(struct server_config *config)
{
    memset(config, 0, sizeof(*config));
    option_set_defaults(&config_table, config);
}

status
config_assign(struct server_config *config, const struct option *option, const char *text,
              enum config_origin origin, u32 line, char *error, size_t error_size)
{
    status st = option_set(option, config, text, error, error_size);
    if (!ok(st)) return st;
    size_t index = (size_t)(option - options);
    config->origins[index] = (u8)origin;
    config->origin_lines[index] = line;
    return ST_OK;
}

const char *
config_redis_mode(const struct server_config *config)
{
    return config->resp_cluster == CONFIG_RESP_CLUSTER_OFF ? "standalone" : "cluster";
}

/* What concerns nodes of a cluster. */
static status
resolve_cluster(struct server_config *config, char *error, size_t error_size)
{
    config->clustered = config->cluster_secret_file[0] != '\0' || config->cluster_secret[0] != '\0';
    config->seed_count = 0;
    if (!config->clustered) {
        if (config->seed_nodes[0] == '\0') return ST_OK;
        snprintf(error, error_size, "seed-nodes: needs cluster-secret-file");
        return ST_INVALID;
    }
    if (config->seed_nodes[0] != '\0' &&
        !config_parse_seeds(config->seed_nodes, config->seeds, CONFIG_SEEDS_MAX,
                            &config->seed_count)) {
        snprintf(error, error_size, "seed-nodes: not a list of host:port");
        return ST_INVALID;
    }
    if (config->endpoint.port == 0) {
        snprintf(error, error_size, "address: a node of a cluster needs a port that stays");
        return ST_INVALID;
    }
    u32 port = config->endpoint.port + CONFIG_PEER_PORT_OFFSET;
    config->peer_endpoint = config->endpoint;
    if (config->peer_address[0] != '\0') {
        if (!config_parse_endpoint(config->peer_address, &config->peer_endpoint)) {
            snprintf(error, error_size, "peer-address: not host:port");
            return ST_INVALID;
        }
        port = config->peer_endpoint.port;
    }
    if (port == 0 || port + config->core_count - 1 > UINT16_MAX) {
        snprintf(error, error_size,
                 "peer-address: %u shards need as many ports from %u on; give another one",
                 config->core_count, port);
        return ST_INVALID;
    }
    config->peer_endpoint.port = (u16)port;
    const char *host = config->peer_endpoint.host;
    if (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0) {
        snprintf(error, error_size,
                 "peer-address: give the address by which the other nodes reach this one");
        return ST_INVALID;
    }
    if (config->write_quorum > config->replicas || config->read_quorum > config->replicas) {
        snprintf(error, error_size, "write-quorum, read-quorum: cannot be more than replicas");
        return ST_INVALID;
    }
    if (config->in_memory || config->durability != LSM_DURABILITY_GROUP) {
        snprintf(error, error_size,
                 "%s: a node of a cluster must not forget what it has acknowledged",
                 config->in_memory ? "data-dir" : "durability");
        return ST_INVALID;
    }
    return ST_OK;
}

status
config_resolve(struct server_config *config, char *error, size_t error_size)
{
    CHECK(config->core_count > 0 && config->core_count <= LIMIT_SHARDS);
    if (!config_parse_endpoint(config->address, &config->endpoint)) {
        snprintf(error, error_size, "address: '' is not host:port");
        return ST_INVALID;
    }
    config->admin_endpoint = (struct config_endpoint){.host = "127.0.0.1"};
    if (strcmp(config->admin_address, "off") == 0) {
        config->admin_endpoint.port = 0;
    } else if (config->admin_address[0] != '\0') {
        if (!config_parse_endpoint(config->admin_address, &config->admin_endpoint)) {
            snprintf(error, error_size, "admin-address: not host:port");
            return ST_INVALID;
        }
    } else {
        u32 port = config->endpoint.port + 1000u;
        if (config->endpoint.port != 0 && port > UINT16_MAX) {
            snprintf(error, error_size,
                     "admin-address: the data port plus 1000 is no port; give one, or 'off'");
            return ST_INVALID;
        }
        config->admin_endpoint.port = config->endpoint.port == 0 ? 0 : (u16)port;
    }
    if (config->admin_endpoint.port != 0 && config->admin_endpoint.port == config->endpoint.port &&
        strcmp(config->admin_endpoint.host, config->endpoint.host) == 0) {
        snprintf(error, error_size,
                 "admin-address: %s is the address for clients; give another one",
                 config->admin_address);
        return ST_INVALID;
    }
    if (config->data_dir[0] == '\0') {
        snprintf(error, error_size, "data-dir: must not be empty");
        return ST_INVALID;
    }
    config->in_memory = strncmp(config->data_dir, ":memory:", 8) == 0;
    config->shard_port = 0;
    if (config->resp_cluster == CONFIG_RESP_CLUSTER_CORES) {
        u32 port = config->endpoint.port + 1u;
        if (config->endpoint.port == 0 || port + config->core_count - 1 > UINT16_MAX) {
            snprintf(error, error_size,
                     "resp-cluster: %u shards need as many ports above that of address",
                     config->core_count);
            return ST_INVALID;
        }
        config->shard_port = (u16)port;
    }

    /* A shard needs room for a memtable, its rings and a batch. */
    u64 least = CONFIG_MEMORY_MIN * config->core_count;
    if (config->memory_bytes < least) {
        char need[32], has[32];
        option_format_bytes(least, need, sizeof(need));
        option_format_bytes(config->memory_bytes, has, sizeof(has));
        snprintf(error, error_size, "memory: %s is too little for %u cores, they need %s", has,
                 config->core_count, need);
        return ST_INVALID;
    }
    return resolve_cluster(config, error, error_size);
}

void
config_init_for_test(struct server_config *config, const char *data_dir, u32 shard_count)
{
    CHECK(shard_count > 0 && shard_count <= LIMIT_SHARDS);
    config_init(config);
    int length = snprintf(config->data_dir, sizeof(config->data_dir), "%s", data_dir);
    CHECK(length > 0 && (size_t)length < sizeof(config->data_dir));
    config->memory_bytes = MIB(64) * shard_count;
    for (u32 i = 0; i < shard_count; i++)
        config->core_list[i] = i;
    config->core_count = shard_count;
    char error[OPTION_ERROR_BYTES];
    status st = config_resolve(config, error, sizeof(error));
    CHECK(ok(st));
}

/* ---- CONFIG GET and SET ---- */

/* Redis' names for what an option of ours says; the value is in Redis' form. */
enum redis_value {
    REDIS_FIXED,
    REDIS_MEMORY,
    REDIS_PORT,
    REDIS_HOST,
    REDIS_DIR,
    REDIS_APPENDFSYNC,
    REDIS_OUTPUT_LIMIT,
    REDIS_LOGLEVEL,
    REDIS_IO_THREADS,
    REDIS_CLUSTER,
};

static const struct {
    const char *name;
    enum redis_value value;
    const char *fixed;
} redis_names[] = {
    {"activerehashing", REDIS_FIXED, "yes"},
    {"appendfsync", REDIS_APPENDFSYNC, NULL},
    {"appendonly", REDIS_FIXED, "yes"}, /* every write is logged */
    {"bind", REDIS_HOST, NULL},
    {"client-output-buffer-limit", REDIS_OUTPUT_LIMIT, NULL},
    {"cluster-enabled", REDIS_CLUSTER, NULL},
    {"databases", REDIS_FIXED, "16"},
    {"dbfilename", REDIS_FIXED, ""},
    {"dir", REDIS_DIR, NULL},
    {"io-threads", REDIS_IO_THREADS, NULL},
    {"lazyfree-lazy-user-del", REDIS_FIXED, "yes"},
    {"loglevel", REDIS_LOGLEVEL, NULL},
    {"maxmemory", REDIS_MEMORY, NULL},
    {"maxmemory-policy", REDIS_FIXED, "noeviction"},
    {"notify-keyspace-events", REDIS_FIXED, ""},
    {"port", REDIS_PORT, NULL},
    {"proto-max-bulk-len", REDIS_FIXED, "1048576"},
    {"protected-mode", REDIS_FIXED, "no"},
    {"replica-read-only", REDIS_FIXED, "yes"},
    {"repl-diskless-load", REDIS_FIXED, "disabled"},
    {"save", REDIS_FIXED, ""}, /* no snapshots: the engine is always on disk */
    {"tcp-keepalive", REDIS_FIXED, "300"},
    {"tls-port", REDIS_FIXED, "0"},
};

static_assert(LIMIT_KEYSPACES_CLIENT == 16, "databases above");
static_assert(LIMIT_VALUE_BYTES == 1048576, "proto-max-bulk-len above");

static void
redis_value_text(const struct server_config *config, u32 index, char *out, size_t size)
{
    static const char *const fsync_words[] = {"always", "everysec", "no"};
    static const char *const level_words[] = {"warning", "warning", "notice", "debug"};
    switch (redis_names[index].value) {
    case REDIS_FIXED:
        snprintf(out, size, "%s", redis_names[index].fixed);
        return;
    case REDIS_MEMORY:
        snprintf(out, size, "%llu", (unsigned long long)config->memory_bytes);
        return;
    case REDIS_PORT:
        snprintf(out, size, "%u", config->endpoint.port);
        return;
    case REDIS_HOST:
        snprintf(out, size, "%s", config->endpoint.host);
        return;
    case REDIS_DIR:
        snprintf(out, size, "%s", config->data_dir);
        return;
    case REDIS_APPENDFSYNC:
        snprintf(out, size, "%s", fsync_words[config->durability]);
        return;
    case REDIS_OUTPUT_LIMIT:
        snprintf(out, size, "normal %llu 0 0",
                 (unsigned long long)config->client_output_limit_bytes);
        return;
    case REDIS_LOGLEVEL:
        snprintf(out, size, "%s", level_words[config->log_level]);
        return;
    case REDIS_IO_THREADS:
        snprintf(out, size, "%u", config->core_count);
        return;
    case REDIS_CLUSTER:
        snprintf(out, size, "%s", config->resp_cluster == CONFIG_RESP_CLUSTER_OFF ? "no" : "yes");
        return;
    }
}

static const u32 redis_name_none = UINT32_MAX;

/* Whether text is the name, case apart: names are in lower case. */
static bool
is_name(const char *text, const char *name)
{
    while (*name != '\0' && *name == (*text >= 'A' && *text <= 'Z' ? *text - 'A' + 'a' : *text))
        name++, text++;
    return *name == '\0' && *text == '\0';
}

static u32
redis_name_find(const char *name)
{
    for (u32 i = 0; i < ARRAY_COUNT(redis_names); i++)
        if (is_name(name, redis_names[i].name)) return i;
    return redis_name_none;
}

/* A name in full is matched as it is and shown as it was asked for, as in Redis; a backslash in it
 * means nothing. */
static bool
name_matches(const char *pattern, bool literal, const char *name)
{
    if (literal) return is_name(pattern, name);
    return glob_match(BYTES(pattern, strlen(pattern)), BYTES(name, strlen(name)), true);
}

void
config_list(const struct server_config *config, const char *pattern,
            void (*each)(void *arg, const char *name, const char *value), void *arg)
{
    char value[OPTION_TEXT_BYTES];
    bool literal = strpbrk(pattern, "*?[") == NULL;
    for (u32 i = 0; i < config_table.count; i++) {
        if ((options[i].flags & OPTION_COMMAND) != 0) continue;
        if (!name_matches(pattern, literal, options[i].name)) continue;
        option_get(&options[i], config, value, sizeof(value));
        each(arg, literal ? pattern : options[i].name, value);
    }
    for (u32 i = 0; i < ARRAY_COUNT(redis_names); i++) {
        if (!name_matches(pattern, literal, redis_names[i].name)) continue;
        redis_value_text(config, i, value, sizeof(value));
        each(arg, literal ? pattern : redis_names[i].name, value);
    }
}

bool
config_get(const struct server_config *config, const char *name, char *out, size_t size)
{
    const struct option *option = option_find(&config_table, name, strlen(name));
    if (option != NULL && (option->flags & OPTION_COMMAND) == 0) {
        option_get(option, config, out, size);
        return true;
    }
    u32 redis = redis_name_find(name);
    if (redis == redis_name_none) return false;
    redis_value_text(config, redis, out, size);
    return true;
}

const char *
config_name(const char *name)
{
    const struct option *option = option_find(&config_table, name, strlen(name));
    if (option != NULL && (option->flags & OPTION_COMMAND) == 0) return option->name;
    u32 redis = redis_name_find(name);
    return redis == redis_name_none ? NULL : redis_names[redis].name;
}

status
config_set_check_name(const char *name, char *error, size_t error_size)
{
    const struct option *option = option_find(&config_table, name, strlen(name));
    if (option != NULL && (option->flags & OPTION_COMMAND) == 0) {
        if ((option->flags & OPTION_RUNTIME) != 0) return ST_OK;
        snprintf(error, error_size, "can't set immutable config");
        return ST_UNSUPPORTED;
    }
    return redis_name_find(name) == redis_name_none ? ST_NOT_FOUND : ST_OK;
}

/* A value of one of Redis' constants: it may only be set to what it is. */
static status
check_constant(const struct server_config *config, const char *name, const char *value, char *error,
               size_t error_size)
{
    char current[OPTION_TEXT_BYTES];
    redis_value_text(config, redis_name_find(name), current, sizeof(current));
    if (strcmp(current, value) == 0) return ST_OK;
    snprintf(error, error_size, "can't set immutable config");
    return ST_UNSUPPORTED;
}

static status
check_number(const struct server_config *config, const struct option *option, const char *value,
             char *error, size_t error_size)
{
    i64 number;
    if (!number_parse_i64(BYTES(value, strlen(value)), &number)) {
        snprintf(error, error_size, "argument couldn't be parsed into an integer");
        return ST_INVALID;
    }
    if (number < (i64)option->min || number > (i64)option->max) {
        snprintf(error, error_size, "argument must be between %lld and %lld inclusive",
                 (long long)option->min, (long long)option->max);
        return ST_INVALID;
    }
    bool clients = option->offset == offsetof(struct server_config, maxclients);
    if (clients && config->clients_possible != 0 && (u64)number > config->clients_possible) {
        snprintf(error, error_size,
                 "The operating system is not able to handle the specified number of clients, try "
                 "with %llu",
                 (unsigned long long)config->clients_possible);
        return ST_INVALID;
    }
    return ST_OK;
}

static status
check_choice(const struct option *option, const char *value, char *error, size_t error_size)
{
    for (u32 i = 0; option->choices[i] != NULL; i++)
        if (is_name(value, option->choices[i])) return ST_OK;
    int used = snprintf(error, error_size, "argument(s) must be one of the following: ");
    for (u32 i = 0; option->choices[i] != NULL; i++) {
        CHECK(used >= 0 && (size_t)used < error_size);
        used += snprintf(error + used, error_size - (size_t)used, "%s%s", i == 0 ? "" : ", ",
                         option->choices[i]);
    }
    return ST_INVALID;
}

status
config_set_check(const struct server_config *config, const char *name, const char *value,
                 char *error, size_t error_size)
{
    status st = config_set_check_name(name, error, error_size);
    if (!ok(st)) return st;
    const struct option *option = option_find(&config_table, name, strlen(name));
    if (option == NULL) return check_constant(config, name, value, error, error_size);
    /* Kinds that Redis has, too, are refused in its words. */
    if (option->kind == OPTION_NUMBER || option->kind == OPTION_SIGNED)
        return check_number(config, option, value, error, error_size);
    if (option->kind == OPTION_CHOICE) return check_choice(option, value, error, error_size);
    /* The longest value of the table is a text; it lands here instead of in the config. */
    struct option_text scratch;
    memset(&scratch, 0, sizeof(scratch));
    struct option trial = *option;
    trial.offset = 0;
    return option_set(&trial, &scratch, value, error, error_size);
}

status
config_set(struct server_config *config, const char *name, const char *value, char *error,
           size_t error_size)
{
    status st = config_set_check(config, name, value, error, error_size);
    const struct option *option = option_find(&config_table, name, strlen(name));
    if (!ok(st) || option == NULL) return st;
    st = option_set(option, config, value, error, error_size);
    if (!ok(st)) return st;
    config->generation++;
    return ST_OK;
}

bool
config_password_matches(const struct server_config *config, struct bytes password)
{
    char expected[OPTION_TEXT_BYTES] = {0};
    option_text_load(&config->requirepass, expected);
    size_t size = strlen(expected);
    u8 difference = size == password.size ? 0 : 1;
    for (size_t i = 0; i < password.size; i++) {
        difference |= (u8)(password.data[i] ^ (u8)expected[i % OPTION_TEXT_BYTES]);
    }
    return difference == 0;
}
