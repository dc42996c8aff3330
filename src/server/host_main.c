/* SPDX-License-Identifier: MIT
 *
 * host_main.c -- the program distkv-server: reads the configuration, starts the shards, watches
 * over them, and ends them.
 *
 *   main thread      everything in this file: signals, systemd, the banner (host_banner.c), the
 *                    watchdog
 *   shard threads    one a core, started by io_node_start
 *   admin thread     host_admin.c
 *   log thread       src/io/ring_log.c
 *
 * Signals are blocked in all threads and read from a descriptor by the main thread:
 *
 *   SIGTERM, SIGINT   drain and stop; another one, not just behind it, ends the process at once
 *   SIGHUP            reads the config file again and applies what may change while running
 *
 * What must not be done by halves is written to the data directory by the shards themselves; this
 * file may end the process at any point without losing an acknowledged write.
 */
#include "base/log.h"
#include "io/ring_log.h"
#include "lsm/store.h"
#include "server/host_admin.h"
#include "server/host_banner.h"
#include "server/host_config.h"
#include "server/host_notify.h"
#include "server/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum exit_code {
    EXIT_STOPPED = 0,
    EXIT_SERVER_ERROR = 1,
    EXIT_USAGE = 2,
    EXIT_UNHEALTHY = 5,
};

#define SUPERVISE_MS          50
#define STARTING_MS           5
#define WATCHDOG_HEARTBEAT_NS (2 * NS_PER_S)
#define STATUS_EVERY_NS       (10 * NS_PER_S)
/* Of --memory, what is not the shards': code, thread stacks, the admin server, the log. */
#define HOST_MEMORY_BYTES MIB(8)

extern char **environ;

struct host {
    int argc; /* as the process began, for reload */
    const char *const *argv;
    const char *const *environment;
    struct server_config config;
    struct server *server;
    struct io_node *node;
    struct host_admin *admin;
    struct host_notify notify;
    int signal_fd;
    u64 started_ns;
    u64 stop_asked_ns;     /* 0: not yet */
    u64 config_generation; /* whose values are in force here */
    bool announced;
    bool reload_wanted; /* SIGHUP came */
};

/* ---- actions that end at once ---- */

/* Of a program that was to print: what it printed has arrived, or it says so. */
static int
printed(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    fprintf(stderr, "distkv-server: standard output: %s\n", strerror(errno));
    return EXIT_SERVER_ERROR;
}

static int
print_text(size_t (*write)(const struct option_table *table, char *out, size_t size))
{
    size_t size = write(&config_table, NULL, 0);
    char *text = malloc(size + 1);
    if (text == NULL) return EXIT_SERVER_ERROR;
    write(&config_table, text, size + 1);
    (void)fputs(text, stdout);
    free(text);
    return printed(EXIT_STOPPED);
}

static size_t
man_page(const struct option_table *table, char *out, size_t size)
{
    return option_help_man(table, DISTKV_VERSION, out, size);
}

/* ---- verify ---- */

struct verify {
    const char *data_dir;
    status result;
    u64 damages, files, bytes;
};

static void
print_damage(void *arg, const char *file, u64 offset, const char *what)
{
    struct verify *verify = arg;
    verify->damages++;
    printf("%s: offset %llu: %s\n", file, (unsigned long long)offset, what);
}

static MAY_YIELD status
verify_shard_main(void *arg)
{
    struct verify *verify = arg;
    verify->result =
        store_verify(verify->data_dir, print_damage, verify, &verify->files, &verify->bytes);
    return ST_OK;
}

static int
run_verify(const struct server_config *config)
{
    if (config->in_memory) {
        fprintf(stderr, "distkv-server: --verify: ':memory:' leaves nothing to verify\n");
        return EXIT_USAGE;
    }
    if (access(config->data_dir, R_OK | X_OK) != 0) {
        fprintf(stderr, "distkv-server: data directory %s: %s\n", config->data_dir,
                strerror(errno));
        return EXIT_SERVER_ERROR;
    }
    struct verify verify = {.data_dir = config->data_dir};
    struct io_node_config node_config = {
        .shard_count = 1,
        .memory_bytes = MAX(config->memory_bytes / 2, CONFIG_MEMORY_MIN),
        .shard_main = verify_shard_main,
        .arg = &verify,
    };
    struct io_node *node;
    status st = io_node_start(&node_config, &node);
    if (ok(st)) st = io_node_join(node);
    if (ok(st)) st = verify.result;
    if (ok(st) && verify.damages == 0) {
        printf("%llu files, %llu bytes: no damage\n", (unsigned long long)verify.files,
               (unsigned long long)verify.bytes);
        return EXIT_STOPPED;
    }
    if (verify.damages > 0) {
        printf("%llu files, %llu bytes: %llu damaged places\n", (unsigned long long)verify.files,
               (unsigned long long)verify.bytes, (unsigned long long)verify.damages);
    } else if (status_is(st, ST_NOT_FOUND)) {
        fprintf(stderr,
                "distkv-server: %s is not a DistKV data directory: it holds neither NODE nor "
                "stores\n",
                config->data_dir);
    } else if (status_is(st, ST_LOCKED)) {
        fprintf(stderr, "distkv-server: data directory %s is in use by another server\n",
                config->data_dir);
    } else {
        fprintf(stderr, "distkv-server: data directory %s: %s\n", config->data_dir,
                status_text(st));
    }
    return EXIT_SERVER_ERROR;
}

/* ---- before the start ---- */

/* Every connection, table and log segment takes a descriptor. Returns how many there may be. */
static u64
raise_descriptors(u64 wanted)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
    if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < wanted) {
        struct rlimit raised = {.rlim_cur = wanted, .rlim_max = wanted};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0) return wanted; /* root may */
    }
    limit.rlim_cur = limit.rlim_max == RLIM_INFINITY ? wanted : limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}

/* At the start and at each reload. */
static void
fit_clients(struct server_config *config, u64 possible)
{
    config->clients_possible = possible;
    if (possible >= config->maxclients) return;
    log_warning("host",
                "fewer clients than asked for: the limit of descriptors is too low "
                "maxclients=%llu asked=%llu",
                (unsigned long long)possible, (unsigned long long)config->maxclients);
    config->maxclients = possible;
}

static void
find_descriptors(struct server_config *config)
{
    u64 limit = raise_descriptors(config->maxclients + 16384);
    fit_clients(config, limit > 2048 ? limit - 1024 : limit / 2);
}

static void
warn_of_memory(const struct server_config *config)
{
    if (config->cores_left != 0)
        log_warning("host",
                    "fewer cores than there are: memory is short; give cores and memory to have "
                    "others cores=%u unused=%u",
                    config->core_count, config->cores_left);
    struct host_machine machine;
    host_config_machine(&machine);
    if (config->memory_bytes <= machine.memory_bytes) return;
    log_warning("host",
                "memory is more than this process may use, the kernel may kill it bytes=%llu "
                "limit=%llu",
                (unsigned long long)config->memory_bytes, (unsigned long long)machine.memory_bytes);
}

/* Shards listen with SO_REUSEPORT, with which a second server of the same user would share the
 * port silently. A plain socket tells whether somebody is there. */
static bool
port_is_free(const char *option, const struct config_endpoint *endpoint)
{
    if (endpoint->port == 0) return true;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address;
    memset(&address, 0, sizeof(address));
    socklen_t size;
    if (inet_pton(AF_INET, endpoint->host, &address.v4.sin_addr) == 1) {
        address.v4.sin_family = AF_INET;
        address.v4.sin_port = htons(endpoint->port);
        size = sizeof(address.v4);
    } else if (inet_pton(AF_INET6, endpoint->host, &address.v6.sin6_addr) == 1) {
        address.v6.sin6_family = AF_INET6;
        address.v6.sin6_port = htons(endpoint->port);
        size = sizeof(address.v6);
    } else {
        log_error("host", "%s: '%s' is neither an IPv4 nor an IPv6 address", option,
                  endpoint->host);
        return false;
    }
    int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        log_error("host", "no socket: %s", strerror(errno));
        return false;
    }
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    /* A server that was killed holds its listening sockets for as long as the kernel needs to take
     * its rings apart: a restart waits as long as it does for the directory, a second. */
    bool free_port = bind(fd, &address.any, size) == 0;
    for (int again = 0; !free_port && errno == EADDRINUSE && again < 50; again++) {
        usleep(20000);
        free_port = bind(fd, &address.any, size) == 0;
    }
    if (!free_port) {
        log_error("host", "%s %s:%u: %s", option, endpoint->host, endpoint->port,
                  errno == EADDRINUSE ? "in use by another process" : strerror(errno));
    }
    close(fd);
    return free_port;
}

static bool
block_signals(struct host *host)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0) return false;
    signal(SIGPIPE, SIG_IGN);
    host->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return host->signal_fd >= 0;
}

static void
start_log(const struct server_config *config)
{
    static const enum ring_log_format formats[] = {
        [CONFIG_LOG_AUTO] = RING_LOG_AUTO,       [CONFIG_LOG_HUMAN] = RING_LOG_HUMAN,
        [CONFIG_LOG_LOGFMT] = RING_LOG_LOGFMT,   [CONFIG_LOG_JSON] = RING_LOG_JSON,
        [CONFIG_LOG_JOURNAL] = RING_LOG_JOURNAL,
    };
    status st = ring_log_start(formats[config->log_format], (enum log_level)config->log_level);
    if (!ok(st))
        fprintf(stderr, "distkv-server: no thread for the log; is the number of threads limited "
                        "(ulimit -u, TasksMax)?\n");
}

/* ---- while it runs ---- */

static void
write_pid_file(const struct server_config *config)
{
    if (config->pid_file[0] == '\0') return;
    FILE *file = fopen(config->pid_file, "we");
    if (file == NULL || fprintf(file, "%d\n", (int)getpid()) < 0 || fclose(file) != 0) {
        log_warning("host", "pid-file %s: %s", config->pid_file, strerror(errno));
    }
}

/* What a person wants to know, once. */
static void
announce(struct host *host)
{
    const struct server_config *config = &host->config;
    host->announced = true;
    u64 ms = (host_now_ns() - host->started_ns) / NS_PER_MS;
    char memory[32], line[256], address[sizeof(config->endpoint.host) + 16];
    option_format_bytes(config->memory_bytes, memory, sizeof(memory));
    u16 port = server_port(host->server);
    const char *name = config->endpoint.host;
    bool v6 = strchr(name, ':') != NULL;
    snprintf(address, sizeof(address), v6 ? "[%s]:%u" : "%s:%u", name, port);
    snprintf(line, sizeof(line), "serving %s with %u shards", address, config->core_count);
    log_info("host",
             "ready version=%s node_id=%s address=%s admin=%s data_dir=%s cores=%s memory=%s "
             "durability=%s pid=%d ms=%llu",
             DISTKV_VERSION, server_node_id(host->server), address, config->admin_address,
             config->data_dir, config->cores, memory,
             config->durability == LSM_DURABILITY_GROUP      ? "group"
             : config->durability == LSM_DURABILITY_PERIODIC ? "periodic"
                                                             : "none",
             (int)getpid(), (unsigned long long)ms);
    struct host_banner banner = {
        .config = config,
        .node_id = server_node_id(host->server),
        .address = address,
        .memory = memory,
        .port = port,
        .ready_ms = ms,
    };
    host_banner_print(&banner);
    write_pid_file(config);
    host_notify_ready(line);
}

static void
begin_stop(struct host *host, const char *why)
{
    if (host->stop_asked_ns != 0) return;
    host->stop_asked_ns = host_now_ns();
    log_info("host", "stopping why=%s", why);
    host_notify_stopping("draining");
    io_node_stop(host->node);
}

/* What the file says anew of one option, or no longer says. */
static void
reload_option(struct host *host, const struct server_config *fresh, u32 index, u32 *changed)
{
    const struct option *option = &config_table.options[index];
    u8 *origin = &host->config.origins[index];
    bool said = fresh->origins[index] == CONFIG_ORIGIN_FILE;
    if (!said && *origin != CONFIG_ORIGIN_FILE) return;
    char value[OPTION_TEXT_BYTES], now[OPTION_TEXT_BYTES], error[HOST_CONFIG_ERROR_BYTES];
    option_get(option, fresh, value, sizeof(value));
    if ((option->flags & OPTION_RUNTIME) == 0) {
        option_get(option, &host->config, now, sizeof(now));
        if (strcmp(now, value) != 0)
            log_warning("host", "needs a restart to change option=%s", option->name);
        return;
    }
    status st = config_set(&host->config, option->name, value, error, sizeof(error));
    if (!ok(st)) {
        log_error("host", "config not reloaded option=%s: %s", option->name, error);
        return;
    }
    if (!said) log_info("host", "as if the file had never named it option=%s", option->name);
    *origin = fresh->origins[index];
    ++*changed;
}

/* SIGHUP: all sources anew, of which only the file can be another; a mistake in it changes nothing.
 * What flags and variables say stays as it is: it is stronger, and options are judged together. */
static void
reload(struct host *host)
{
    if (host->config.config_file[0] == '\0') {
        log_info("host", "nothing to reload: no config file");
        return;
    }
    struct server_config *fresh = calloc(1, sizeof(*fresh));
    if (fresh == NULL) return;
    char error[HOST_CONFIG_ERROR_BYTES];
    status st =
        host_config_load(fresh, host->argc, host->argv, host->environment, error, sizeof(error));
    if (!ok(st)) {
        log_error("host", "config not reloaded: %s", error);
        free(fresh);
        return;
    }
    fit_clients(fresh, host->config.clients_possible);
    u32 changed = 0;
    for (u32 i = 0; i < config_table.count; i++)
        reload_option(host, fresh, i, &changed);
    free(fresh);
    log_info("host", "config reloaded options=%u", changed);
}

/* Who asks a process and its group, as timeout(1) does, asks twice, and means it once. */
#define STOP_TWICE_NS (300 * NS_PER_MS)

static void
read_signals(struct host *host)
{
    struct signalfd_siginfo info;
    while (read(host->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGHUP) {
            host->reload_wanted = true; /* kept until the node has started */
            continue;
        }
        const char *name = info.ssi_signo == SIGINT ? "SIGINT" : "SIGTERM";
        if (host->stop_asked_ns != 0 && host_now_ns() - host->stop_asked_ns < STOP_TWICE_NS)
            continue;
        if (host->stop_asked_ns != 0) {
            log_warning("host", "ending at once why=%s; the log is replayed at the next start",
                        name);
            ring_log_stop();
            _exit(128 + (int)info.ssi_signo);
        }
        begin_stop(host, name);
    }
}

/* The process ends with what is in the log; the next start replays it. */
static void
check_stop_time(struct host *host, u64 now_ns)
{
    if (host->stop_asked_ns == 0) return;
    u64 limit_ns = host->config.shutdown_timeout_ms * NS_PER_MS;
    if (now_ns < host->stop_asked_ns + limit_ns) return;
    log_error("host", "not drained in time, ending; the log is replayed at the next start ms=%llu",
              (unsigned long long)host->config.shutdown_timeout_ms);
    ring_log_stop();
    _exit(EXIT_UNHEALTHY);
}

/* What CONFIG SET changes and the host, not a shard, must act on. */
static void
apply_config(struct host *host)
{
    u64 generation = config_generation(&host->config);
    if (generation == host->config_generation) return;
    host->config_generation = generation;
    ring_log_level_set((enum log_level)host->config.log_level);
}

/* Until all shards have ended. */
static void
supervise(struct host *host)
{
    u64 status_next_ns = 0, resident_next_ns = 0;
    while (!io_node_ended(host->node)) {
        struct pollfd poll_fd = {.fd = host->signal_fd, .events = POLLIN};
        int events = poll(&poll_fd, 1, host->announced ? SUPERVISE_MS : STARTING_MS);
        if (events > 0) read_signals(host);

        u64 now = host_now_ns();
        if (!host->announced && host->stop_asked_ns == 0 && server_ready(host->server)) {
            announce(host);
        }
        if (host->reload_wanted && host->announced) {
            host->reload_wanted = false;
            reload(host);
        }
        if (!host->announced || host->stop_asked_ns != 0) {
            host_notify_extend(&host->notify, now);
        }
        if (server_shutdown_wanted(host->server) != 0) begin_stop(host, "SHUTDOWN");

        u32 stuck = 0;
        bool turning = host_shards_turn(host->node, host->config.core_count, now,
                                        WATCHDOG_HEARTBEAT_NS, &stuck);
        /* While stores open, a shard may be busy for longer than a turn: recovery reads large
         * files. Start-up has its own time limit. */
        host_notify_watchdog(&host->notify, now, turning || !host->announced);
        if (!turning && host->announced && now >= status_next_ns) {
            status_next_ns = now + STATUS_EVERY_NS;
            log_error("host", "a shard does not turn shard=%u", stuck);
        }
        apply_config(host);
        if (now >= resident_next_ns) {
            resident_next_ns = now + NS_PER_S;
            u64 resident, resident_max;
            host_resident(&resident, &resident_max);
            server_resident_set(host->server, resident);
        }
        check_stop_time(host, now);
    }
}

static int
run_server(struct host *host)
{
    struct server_config *config = &host->config;
    find_descriptors(config);
    warn_of_memory(config);
    /* Before the shards start: one that is to end at once would be taken into a cluster. */
    if (!port_is_free("address", &config->endpoint) ||
        !port_is_free("admin-address", &config->admin_endpoint))
        return EXIT_SERVER_ERROR;

    host->server = server_new(config, (u32)getpid());
    if (host->server == NULL) {
        log_error("host", "no memory");
        return EXIT_SERVER_ERROR;
    }
    u64 host_memory = MIN(HOST_MEMORY_BYTES + config->memory_bytes / 64, config->memory_bytes / 4);
    struct io_node_config node_config = {
        .shard_count = config->core_count,
        .cores = config->core_list,
        .memory_bytes = config->memory_bytes - host_memory,
        .spin_us = (u32)config->spin_us,
        .stall_ms = (u32)config->stall_ms,
        .shard_main = server_shard_main,
        .arg = host->server,
    };
    status st = io_node_start(&node_config, &host->node);
    if (!ok(st)) {
        log_error("host", "the shards do not start: %s", status_text(st));
        server_free(host->server);
        return EXIT_SERVER_ERROR;
    }
    int code = EXIT_STOPPED;
    if (config->admin_endpoint.port != 0) {
        struct host_admin_config admin_config = {
            .config = config,
            .server = host->server,
            .node = host->node,
            .started_ns = host->started_ns,
        };
        char error[HOST_CONFIG_ERROR_BYTES];
        st = host_admin_start(&admin_config, &host->admin, error, sizeof(error));
        if (!ok(st)) {
            log_error("host", "%s", error);
            code = EXIT_SERVER_ERROR;
            begin_stop(host, "no admin address");
        }
    }
    supervise(host);
    host_admin_stop(host->admin);
    st = io_node_join(host->node);
    if (!ok(st)) {
        const char *reason = server_failure(host->server);
        log_error("host", "%s", reason[0] != '\0' ? reason : status_text(st));
        code = host->announced ? EXIT_UNHEALTHY : EXIT_SERVER_ERROR;
    } else if (code == EXIT_STOPPED) {
        log_info("host", "stopped ms=%llu",
                 (unsigned long long)((host_now_ns() - host->stop_asked_ns) / NS_PER_MS));
    }
    if (host->announced && config->pid_file[0] != '\0') unlink(config->pid_file);
    server_free(host->server);
    return code;
}

int
main(int argc, char **argv)
{
    static struct host host; /* large */
    host.started_ns = host_now_ns();
    host.argc = argc;
    host.argv = (const char *const *)argv;
    host.environment = (const char *const *)environ;
    char error[HOST_CONFIG_ERROR_BYTES] = "";
    status st =
        host_config_load(&host.config, argc, host.argv, host.environment, error, sizeof(error));
    const struct server_config *config = &host.config;
    if (!ok(st)) {
        fprintf(stderr, "distkv-server: %s\nTry 'distkv-server --help'.\n", error);
        return EXIT_USAGE;
    }
    if (config->help) return print_text(option_help_text);
    if (config->help_markdown) return print_text(option_help_markdown);
    if (config->help_man) return print_text(man_page);
    if (config->version) {
        printf("distkv-server %s\n", DISTKV_VERSION);
        return printed(EXIT_STOPPED);
    }
    if (config->print_config) {
        host_config_print(config);
        return printed(EXIT_STOPPED);
    }
    if (config->check_config) {
        printf("the configuration is good\n");
        return printed(EXIT_STOPPED);
    }

    /* Threads inherit the mask, so this comes before the first of them. */
    bool blocked = config->verify || block_signals(&host);
    start_log(config);
    int code = EXIT_SERVER_ERROR;
    if (!blocked) {
        log_error("host", "no descriptor for signals: %s", strerror(errno));
    } else if (config->verify) {
        code = printed(run_verify(config));
    } else {
        host_notify_init(&host.notify);
        code = run_server(&host);
    }
    ring_log_stop();
    return code;
}
