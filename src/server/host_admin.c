/* SPDX-License-Identifier: MIT
 *
 * host_admin.c -- see host_admin.h.
 *
 * libmicrohttpd runs one thread that serves all connections, so the cache below needs no lock. A
 * scrape blocks that thread for as long as the slowest shard takes to answer; shards whose
 * heartbeat is old are not asked at all, so a hung shard cannot hang the others' figures.
 *
 * Bounds: connections at once (option admin-connections), 5 s without progress, 16 KiB of headers,
 * and no request body is read. When a quarter of the places is all that is left, whoever comes ends
 * the oldest connection: a supervisor that asks for /livez is not kept out by those that take their
 * time, a byte now and then, on purpose or not.
 */
#include "server/host_admin.h"

#include "base/list.h"
#include "base/log.h"
#include "io/ring_log.h"
#include "server/host_metrics.h"
#include "server/host_notify.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define CACHE_NS           (100 * NS_PER_MS)
#define HEARTBEAT_LIMIT_NS (2 * NS_PER_S) /* four times what an idle shard keeps to */
#define CONNECTION_SECONDS 5u
#define CONNECTION_BYTES   (16u << 10)

struct host_admin {
    struct host_admin_config config;
    struct MHD_Daemon *daemon;
    int listen_fd;
    u32 shard_count;
    struct shard_stats *shards;
    bool known[LIMIT_SHARDS];
    u64 collected_ns;   /* 0: never */
    struct list guests; /* of the daemon's thread: oldest first */
    u32 guest_count, guests_max;
};

/* A connection. */
struct guest {
    struct list link; /* to itself once it was ended */
    int fd;
};

/* ---- figures ---- */

void
host_resident(u64 *now_out, u64 *max_out)
{
    *now_out = 0;
    *max_out = 0;
    FILE *file = fopen("/proc/self/status", "re");
    if (file == NULL) return;
    char line[256];
    unsigned long long kib;
    while (fgets(line, sizeof(line), file) != NULL) {
        if (sscanf(line, "VmRSS: %llu kB", &kib) == 1) *now_out = KIB(kib);
        if (sscanf(line, "VmHWM: %llu kB", &kib) == 1) *max_out = KIB(kib);
    }
    fclose(file);
}

static void
collect(struct host_admin *admin)
{
    u64 now = host_now_ns();
    if (admin->collected_ns != 0 && now < admin->collected_ns + CACHE_NS) return;
    for (u32 shard = 0; shard < admin->shard_count; shard++) {
        admin->known[shard] = false;
        u64 beat = io_node_heartbeat_ns(admin->config.node, shard);
        if (beat + HEARTBEAT_LIMIT_NS < now) continue;
        struct server_collect call = {
            .server = admin->config.server,
            .out = &admin->shards[shard],
        };
        admin->known[shard] = ok(io_node_ask(admin->config.node, shard, server_collect, &call));
    }
    admin->collected_ns = host_now_ns();
}

static void
figures_fill(struct host_admin *admin, struct host_figures *out)
{
    *out = (struct host_figures){
        .config = admin->config.config,
        .ready = server_ready(admin->config.server),
        .uptime_ns = host_now_ns() - admin->config.started_ns,
        .shard_count = admin->shard_count,
        .shards = admin->shards,
        .shard_known = admin->known,
        .log_dropped = ring_log_dropped(),
        .node_id = "",
        .run_id = "",
    };
    host_resident(&out->resident_bytes, &out->resident_bytes_max);
    if (!out->ready) return;
    out->node_id = server_node_id(admin->config.server);
    out->run_id = server_run_id(admin->config.server);
    out->port = server_port(admin->config.server);
    collect(admin);
}

/* ---- answering ---- */

static enum MHD_Result
reply(struct MHD_Connection *connection, unsigned code, const char *type, char *body, size_t size,
      enum MHD_ResponseMemoryMode mode)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(size, body, mode);
    if (response == NULL) {
        if (mode == MHD_RESPMEM_MUST_FREE) free(body);
        return MHD_NO;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    if (code == MHD_HTTP_METHOD_NOT_ALLOWED) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    }
    enum MHD_Result result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result
reply_text(struct MHD_Connection *connection, unsigned code, const char *text)
{
    /* Copied by the library: text may be on the caller's stack. */
    char copy[256];
    size_t size = (size_t)snprintf(copy, sizeof(copy), "%s", text);
    return reply(connection, code, "text/plain; charset=utf-8", copy, MIN(size, sizeof(copy) - 1),
                 MHD_RESPMEM_MUST_COPY);
}

static enum MHD_Result
answer_live(struct host_admin *admin, struct MHD_Connection *connection)
{
    u32 stuck;
    if (host_shards_turn(admin->config.node, admin->shard_count, host_now_ns(), HEARTBEAT_LIMIT_NS,
                         &stuck)) {
        return reply_text(connection, MHD_HTTP_OK, "ok\n");
    }
    char text[64];
    snprintf(text, sizeof(text), "shard %u does not turn\n", stuck);
    return reply_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, text);
}

static enum MHD_Result
answer_ready(struct host_admin *admin, struct MHD_Connection *connection)
{
    const char *reason = server_not_ready(admin->config.server);
    if (reason == NULL) return reply_text(connection, MHD_HTTP_OK, "ok\n");
    char text[128];
    snprintf(text, sizeof(text), "%s\n", reason);
    return reply_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, text);
}

static enum MHD_Result
answer_figures(struct host_admin *admin, struct MHD_Connection *connection, bool json)
{
    struct host_figures figures;
    figures_fill(admin, &figures);
    size_t size = 0;
    char *text = json ? host_status_json(&figures, &size) : host_metrics_text(&figures, &size);
    if (text == NULL) {
        return reply_text(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "no memory\n");
    }
    const char *type = json ? "application/json" : "text/plain; version=0.0.4; charset=utf-8";
    return reply(connection, MHD_HTTP_OK, type, text, size, MHD_RESPMEM_MUST_FREE);
}

static enum MHD_Result
answer(void *arg, struct MHD_Connection *connection, const char *url, const char *method,
       const char *version, const char *upload_data, size_t *upload_data_size, void **state)
{
    struct host_admin *admin = arg;
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0) {
        return reply_text(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    }
    if (strcmp(url, "/livez") == 0) return answer_live(admin, connection);
    if (strcmp(url, "/readyz") == 0) return answer_ready(admin, connection);
    if (strcmp(url, "/metrics") == 0) return answer_figures(admin, connection, false);
    if (strcmp(url, "/status") == 0) return answer_figures(admin, connection, true);
    return reply_text(connection, MHD_HTTP_NOT_FOUND,
                      "there are /metrics, /status, /livez and /readyz\n");
}

/* ---- who comes and goes ---- */

static void
guest_comes(struct host_admin *admin, struct MHD_Connection *connection, void **context)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct guest *guest = calloc(1, sizeof(*guest));
    *context = guest;
    if (guest == NULL || info == NULL) {
        free(guest);
        *context = NULL;
        return; /* its 5 seconds bound it */
    }
    guest->fd = info->connect_fd;
    if (admin->guest_count >= admin->guests_max) {
        struct guest *oldest = CONTAINER_OF(list_pop_front(&admin->guests), struct guest, link);
        list_init(&oldest->link);
        admin->guest_count--;
        shutdown(oldest->fd, SHUT_RDWR); /* the library closes it */
    }
    list_push_back(&admin->guests, &guest->link);
    admin->guest_count++;
}

static void
guest_goes(struct host_admin *admin, struct guest *guest)
{
    if (guest == NULL) return;
    if (list_linked(&guest->link)) {
        list_del(&guest->link);
        admin->guest_count--;
    }
    free(guest);
}

static void
notice_guest(void *arg, struct MHD_Connection *connection, void **context,
             enum MHD_ConnectionNotificationCode what)
{
    struct host_admin *admin = arg;
    if (what == MHD_CONNECTION_NOTIFY_STARTED)
        guest_comes(admin, connection, context);
    else
        guest_goes(admin, *context);
}

/* The library's messages go to the log. */
static void PRINTF_LIKE(2, 0) library_message(void *arg, const char *format, va_list args)
{
    char text[256];
    vsnprintf(text, sizeof(text), format, args);
    text[strcspn(text, "\n")] = '\0';
    log_debug("admin", "%s", text);
}

/* ---- start and stop ---- */

static int
listen_on(const struct config_endpoint *endpoint)
{
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
        errno = EINVAL;
        return -1;
    }
    int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    int on = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
        bind(fd, &address.any, size) != 0 || listen(fd, 64) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

status
host_admin_start(const struct host_admin_config *config, struct host_admin **out, char *error,
                 size_t error_size)
{
    const struct config_endpoint *endpoint = &config->config->admin_endpoint;
    struct host_admin *admin = calloc(1, sizeof(*admin));
    if (admin == NULL) goto no_memory;
    admin->config = *config;
    admin->shard_count = config->config->core_count;
    list_init(&admin->guests);
    u32 places = (u32)config->config->admin_connections;
    admin->guests_max = MAX(places - MAX(places / 4, 1u), 1u);
    admin->shards = calloc(admin->shard_count, sizeof(*admin->shards));
    if (admin->shards == NULL) goto no_memory;
    admin->listen_fd = listen_on(endpoint);
    if (admin->listen_fd < 0) {
        snprintf(error, error_size, "admin-address %s:%u: %s", endpoint->host, endpoint->port,
                 errno == EADDRINUSE ? "in use by another process" : strerror(errno));
        goto fail;
    }
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_EPOLL | MHD_USE_ERROR_LOG;
    admin->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, answer, admin, MHD_OPTION_EXTERNAL_LOGGER, library_message, NULL,
        MHD_OPTION_LISTEN_SOCKET, admin->listen_fd, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)config->config->admin_connections, MHD_OPTION_CONNECTION_TIMEOUT,
        CONNECTION_SECONDS, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES,
        MHD_OPTION_NOTIFY_CONNECTION, notice_guest, admin, MHD_OPTION_END);
    if (admin->daemon == NULL) {
        snprintf(error, error_size, "admin-address %s:%u: the HTTP server does not start",
                 endpoint->host, endpoint->port);
        close(admin->listen_fd);
        goto fail;
    }
    *out = admin;
    return ST_OK;

no_memory:
    snprintf(error, error_size, "admin-address: no memory");
fail:
    if (admin != NULL) free(admin->shards);
    free(admin);
    return ST_INVALID;
}

void
host_admin_stop(struct host_admin *admin)
{
    if (admin == NULL) return;
    MHD_stop_daemon(admin->daemon); /* closes the socket, too */
    free(admin->shards);
    free(admin);
}
