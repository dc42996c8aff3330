/* SPDX-License-Identifier: MIT */
#include "fake_server.h"

#include "base/crc.h"
#include "base/hash.h"
#include "proto/native.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define FAKE_CLIENTS_MAX 128

struct client {
    int fd;
    struct buf in;
    struct buf out;
    struct buf held[64];
    int held_count;
    bool closing;
};

static struct fake_entry *
entry_find(struct fake_server *server, struct bytes key)
{
    for (u32 i = 0; i < server->count; i++) {
        struct fake_entry *entry = &server->entries[i];
        if (bytes_equal(BYTES(entry->key, entry->key_size), key)) return entry;
    }
    return NULL;
}

static void
entry_remove(struct fake_server *server, struct fake_entry *entry)
{
    free(entry->value);
    memmove(entry, entry + 1,
            (size_t)(server->entries + server->count - entry - 1) * sizeof(*entry));
    server->count--;
}

/* Keeps entries in (token, key) order. */
static struct fake_entry *
entry_insert(struct fake_server *server, struct bytes key)
{
    CHECK(server->count < FAKE_ENTRIES_MAX && key.size <= 64);
    u64 token = hash_token(key);
    u32 at = 0;
    while (at < server->count) {
        struct fake_entry *e = &server->entries[at];
        if (e->token > token ||
            (e->token == token && bytes_compare(BYTES(e->key, e->key_size), key) > 0))
            break;
        at++;
    }
    memmove(&server->entries[at + 1], &server->entries[at],
            (server->count - at) * sizeof(server->entries[0]));
    server->count++;
    struct fake_entry *entry = &server->entries[at];
    memset(entry, 0, sizeof(*entry));
    memcpy(entry->key, key.data, key.size);
    entry->key_size = key.size;
    entry->token = token;
    return entry;
}

static bool
condition_met(struct fake_server *server, const struct native_op *op, u64 *version)
{
    struct fake_entry *entry = entry_find(server, op->key);
    *version = entry == NULL ? 0 : entry->version;
    switch ((enum native_condition)op->condition) {
    case NATIVE_IF_ANY:
        return true;
    case NATIVE_IF_ABSENT:
        return entry == NULL;
    case NATIVE_IF_PRESENT:
        return entry != NULL;
    case NATIVE_IF_VERSION:
        return entry != NULL && entry->version == op->version;
    }
    return false;
}

#define FAKE_NOW_MS 1000000ull

static void
apply(struct fake_server *server, const struct native_op *op)
{
    struct fake_entry *entry = entry_find(server, op->key);
    server->version++;
    if (op->kind == NATIVE_OP_DELETE) {
        if (entry != NULL) entry_remove(server, entry);
        return;
    }
    if (entry == NULL) entry = entry_insert(server, op->key);
    free(entry->value);
    entry->value = malloc(op->value.size + 1);
    CHECK(entry->value != NULL);
    if (op->value.size > 0) memcpy(entry->value, op->value.data, op->value.size);
    entry->value_size = op->value.size;
    entry->version = server->version;
    if (op->expiry == NATIVE_EXPIRY_NONE) entry->expire_ms = 0;
    if (op->expiry == NATIVE_EXPIRY_AFTER) entry->expire_ms = FAKE_NOW_MS + op->expiry_ms;
    if (op->expiry == NATIVE_EXPIRY_AT) entry->expire_ms = op->expiry_ms;
}

static const char *const member_ids[8] = {"n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7"};

static void
reply_topology(struct fake_server *server, const struct native_request *request,
               struct native_reply *reply, struct buf *nodes, struct buf *rows)
{
    const struct fake_cluster *cluster = server->cluster;
    server->topologies++;
    reply->topology.epoch = cluster->epoch;
    if (request->topology.epoch == cluster->epoch) return;
    reply->topology.node_count = (u16)cluster->count;
    reply->topology.width = (u8)MIN(cluster->count, NATIVE_TOPOLOGY_WIDTH_MAX);
    reply->topology.partition_count = 4096;
    for (u32 i = 0; i < cluster->count; i++) {
        struct native_node node = {.id = BYTES(member_ids[i], 2),
                                   .host = BYTES_LITERAL("127.0.0.1"),
                                   .port = (u16)cluster->members[i]->port,
                                   .shard_count = 1};
        if (server->shards != 0) {
            node.shard_count = (u16)server->shards;
            node.shard_port = 1024;
        }
        CHECK(native_topology_add_node(nodes, &node));
    }
    for (u32 p = 0; p < 4096; p++)
        for (u32 i = 0; i < reply->topology.width; i++)
            CHECK(native_topology_add_place(rows, (u16)((p + i) % cluster->count)));
    reply->topology.nodes = buf_bytes(nodes);
    reply->topology.rows = buf_bytes(rows);
}

static void
reply_hello(struct fake_server *server, struct native_reply *reply, struct buf *nodes,
            struct buf *ranges)
{
    struct native_node node = {
        .id = BYTES_LITERAL("fake"), .port = (u16)server->port, .shard_count = 1};
    struct native_slot_range range = {.slot_first = 0, .slot_last = 16383};
    const struct fake_cluster *cluster = server->cluster;
    u64 features = cluster == NULL ? 0 : NATIVE_FEATURE_TOPOLOGY | NATIVE_FEATURE_PLACES;
    if (cluster != NULL && cluster->id != 0) features |= NATIVE_FEATURE_CLUSTER;
    if (cluster != NULL) node.id = BYTES(member_ids[server->member], 2);
    CHECK(native_hello_add_node(nodes, &node));
    CHECK(native_hello_add_range(ranges, &range));
    reply->hello = (struct native_hello_reply){.version = 1,
                                               .run_id = server->run_id,
                                               .in_flight_max = 512,
                                               .idempotency_ms = server->idempotency_ms,
                                               .keyspaces = 16,
                                               .partition_count = 4096,
                                               .features = features,
                                               .cluster_id = cluster == NULL ? 0 : cluster->id,
                                               .node_id = node.id,
                                               .server_version = BYTES_LITERAL("0.0.1"),
                                               .node_count = 1,
                                               .range_count = 1,
                                               .nodes = buf_bytes(nodes),
                                               .ranges = buf_bytes(ranges)};
    server->hellos++;
}

static void
do_write(struct fake_server *server, const struct native_request *request,
         struct native_reply *reply)
{
    for (u32 i = 0; i < MIN(server->id_count, FAKE_IDS); i++) {
        if (server->ids[i][0] == request->id.word[0] && server->ids[i][1] == request->id.word[1]) {
            reply->header.flags |= NATIVE_FLAG_REPLAYED;
            reply->written.version = server->id_versions[i];
            server->writes_replayed++;
            return;
        }
    }
    struct native_op ops[256];
    u32 count = 0;
    if (request->header.opcode == NATIVE_BATCH) {
        for (struct bytes rest = request->batch.ops; native_batch_next(&rest, &ops[count]);)
            CHECK(++count < 256);
    } else if (request->header.opcode == NATIVE_EXPIRE) {
        struct fake_entry *entry = entry_find(server, request->expire.key);
        if (entry == NULL) {
            reply->header.status = NATIVE_ST_NOT_FOUND;
            return;
        }
        entry->expire_ms = request->expire.expiry == NATIVE_EXPIRY_AFTER
                               ? FAKE_NOW_MS + request->expire.expiry_ms
                               : request->expire.expiry_ms;
    } else {
        ops[count++] = request->op;
    }
    for (u32 i = 0; i < count; i++) {
        u64 version;
        if (!condition_met(server, &ops[i], &version)) {
            reply->header.status = NATIVE_ST_CONFLICT;
            reply->error.detail = version;
            reply->error.text = BYTES_LITERAL("condition not met");
            return;
        }
    }
    for (u32 i = 0; i < count; i++)
        apply(server, &ops[i]);
    reply->written.version = server->version;
    server->writes_done++;
    if (server->idempotency_ms > 0) {
        u32 at = server->id_count++ % FAKE_IDS;
        server->ids[at][0] = request->id.word[0];
        server->ids[at][1] = request->id.word[1];
        server->id_versions[at] = server->version;
    }
}

static void
do_scan(struct fake_server *server, const struct native_request *request,
        struct native_reply *reply, struct buf *entries)
{
    u32 limit = request->scan.entries_max;
    if (server->pages > 0) limit = MIN(limit, (u32)server->pages);
    const struct native_position *after = &request->scan.after;
    for (u32 i = 0; i < server->count; i++) {
        struct fake_entry *e = &server->entries[i];
        struct bytes key = BYTES(e->key, e->key_size);
        if (e->token < request->scan.token_first || e->token > request->scan.token_last) continue;
        if (after->given && (e->token < after->token ||
                             (e->token == after->token && bytes_compare(key, after->key) <= 0)))
            continue;
        struct bytes pattern = request->scan.pattern;
        if (request->scan.match == NATIVE_MATCH_PREFIX &&
            (key.size < pattern.size || memcmp(key.data, pattern.data, pattern.size) != 0))
            continue;
        if (reply->scan.count == limit) {
            reply->scan.more = true;
            return;
        }
        struct native_scan_entry entry = {.version = e->version,
                                          .expire_ms = e->expire_ms,
                                          .key = key,
                                          .value = BYTES(e->value, e->value_size),
                                          .has_value =
                                              !(request->scan.flags & NATIVE_SCAN_KEYS_ONLY)};
        CHECK(native_scan_add(entries, &entry));
        reply->scan.count++;
        reply->scan.next = (struct native_position){.given = true, .token = e->token, .key = key};
    }
}

static bool
welcome(struct fake_server *server, const struct native_request *request)
{
    const char *password = server->password;
    struct bytes user = request->hello.user;
    if (password == NULL) return true;
    if (user.size != 0 && !bytes_equal(user, BYTES_LITERAL("default"))) return false;
    return bytes_equal(request->hello.password, BYTES(password, strlen(password)));
}

static bool
drops_reply(struct fake_server *server, struct client *client)
{
    if (server->drop_after_writes == 0) return false;
    server->drop_after_writes--;
    client->closing = true;
    return true;
}

static void
handle(struct fake_server *server, struct client *client, const struct native_request *request,
       struct buf *out)
{
    struct native_reply reply = {.header = native_reply_header(&request->header, 1)};
    struct buf a, b;
    buf_init(&a, out->budget);
    buf_init(&b, out->budget);
    server->requests++;
    server->last_timeout_ms = request->header.timeout_ms;
    server->last_level = native_level_of(request->header.flags);
    bool write = native_opcode_writes(request->header.opcode);
    const struct fake_cluster *cluster = server->cluster;
    if (cluster != NULL) reply.header.epoch = MAX(cluster->epoch, server->claims);
    struct bytes key = write && request->header.opcode == NATIVE_PUT ? request->op.key
                       : request->header.opcode == NATIVE_GET        ? request->get.key
                                                                     : BYTES(NULL, 0);
    if (key.size != 0) server->keyed++;
    if (key.size != 0 && cluster != NULL &&
        hash_slot(key) / (SLOT_COUNT / 4096) % cluster->count != server->member)
        server->elsewhere++;
    if (write) server->last_write_age_ms = request->header.age_ms;
    if (write && server->drop_before_writes > 0) {
        server->drop_before_writes--;
        client->closing = true;
        return;
    }
    if (request->header.opcode == NATIVE_GET && server->drop_gets > 0) {
        server->drop_gets--;
        client->closing = true;
        return;
    }
    if (request->header.opcode != NATIVE_HELLO && server->overload > 0) {
        server->overload--;
        CHECK(native_reply_error(out, &request->header, NATIVE_ST_OVERLOADED, 1, 1, "busy"));
        return;
    }
    if (write && server->no_room > 0) {
        server->no_room--;
        CHECK(native_reply_error(out, &request->header, NATIVE_ST_FULL, 0, 1, "full"));
        return;
    }
    if (write && server->close_writes > 0) {
        server->close_writes--;
        CHECK(native_reply_error(out, &request->header, NATIVE_ST_CLOSING, 0, 1, "too old"));
        return;
    }
    if (server->mute || (request->header.opcode != NATIVE_HELLO && server->silent)) return;
    struct fake_entry *entry;
    switch ((enum native_opcode)request->header.opcode) {
    case NATIVE_HELLO:
        if (!welcome(server, request)) {
            CHECK(native_reply_error(out, &request->header, NATIVE_ST_UNAUTHENTICATED, 0, 1,
                                     "wrong user or password"));
            return;
        }
        reply_hello(server, &reply, &a, &b);
        break;
    case NATIVE_PING:
        reply.ping.payload = request->ping.payload;
        break;
    case NATIVE_GET:
        entry = entry_find(server, request->get.key);
        if (entry == NULL) {
            reply.header.status = NATIVE_ST_NOT_FOUND;
            break;
        }
        reply.get.version = entry->version;
        reply.get.expire_ms = entry->expire_ms;
        reply.get.value = BYTES(entry->value, entry->value_size);
        break;
    case NATIVE_TTL:
        entry = entry_find(server, request->ttl.key);
        if (entry == NULL) {
            reply.header.status = NATIVE_ST_NOT_FOUND;
            break;
        }
        reply.ttl.expire_ms = entry->expire_ms;
        reply.ttl.remaining_ms = entry->expire_ms == 0 ? 0 : entry->expire_ms - FAKE_NOW_MS;
        break;
    case NATIVE_PUT:
    case NATIVE_DELETE:
    case NATIVE_BATCH:
    case NATIVE_EXPIRE:
        do_write(server, request, &reply);
        if (drops_reply(server, client)) return;
        break;
    case NATIVE_SCAN:
        do_scan(server, request, &reply, &a);
        if (!reply.scan.more) reply.scan.next.given = false;
        reply.scan.entries = buf_bytes(&a);
        break;
    case NATIVE_SNAPSHOT_OPEN:
        reply.snapshot_open.snapshot = 7;
        reply.snapshot_open.lease_ms = request->snapshot_open.lease_ms;
        break;
    case NATIVE_SNAPSHOT_CLOSE:
        break;
    case NATIVE_COUNT:
        reply.count.count = server->count;
        reply.count.exact = true;
        break;
    case NATIVE_STATUS:
        reply.status.json = BYTES_LITERAL("{\"version\":\"0.0.1\",\"state\":\"ok\"}");
        break;
    case NATIVE_GET_SIBLINGS:
    case NATIVE_PUT_SIBLINGS:
        reply.header.status = NATIVE_ST_UNSUPPORTED; /* one node keeps none */
        break;
    case NATIVE_TOPOLOGY:
        CHECK(server->cluster != NULL); /* HELLO did not say that it is known */
        reply_topology(server, request, &reply, &a, &b);
        break;
    case NATIVE_CLUSTER:
        if (request->cluster.function == NATIVE_CLUSTER_REMOVE) {
            server->cluster_changes++;
            if (drops_reply(server, client)) return;
        }
        reply.cluster.number = request->cluster.function == NATIVE_CLUSTER_KEYSPACE_FIND ? 9 : 3;
        reply.cluster.json = BYTES_LITERAL("{}");
        break;
    }
    size_t start = out->size;
    CHECK(native_reply_encode(out, &reply));
    if (server->protocol != 0) out->data[start + 4] = (u8)server->protocol;
    store_u16(out->data + start + 6, (u16)(load_u16(out->data + start + 6) | server->flags));
    store_u32(out->data + start + 44, crc32c(0, out->data + start, 44));
    if (server->damage > 0 && request->header.opcode != NATIVE_HELLO) {
        server->damage--;
        out->data[start + 20] ^= 1;
    }
    buf_deinit(&a);
    buf_deinit(&b);
}

/* False: close. */
static bool
client_send(struct client *client)
{
    size_t sent = 0;
    while (sent < client->out.size) {
        ssize_t n =
            send(client->fd, client->out.data + sent, client->out.size - sent, MSG_NOSIGNAL);
        if (n <= 0) return false;
        sent += (size_t)n;
    }
    client->out.size = 0;
    return true;
}

static void
release_held(struct client *client)
{
    while (client->held_count > 0) {
        struct buf *held = &client->held[--client->held_count];
        CHECK(buf_append(&client->out, held->data, held->size));
        buf_deinit(held);
    }
}

static bool
client_read(struct fake_server *server, struct client *client)
{
    CHECK(buf_reserve(&client->in, 65536));
    if (server->slow_us > 0) usleep((useconds_t)server->slow_us);
    ssize_t got = recv(client->fd, client->in.data + client->in.size, 65536, 0);
    if (got <= 0) return false;
    client->in.size += (size_t)got;
    while (!client->closing) {
        struct native_header header;
        struct bytes body;
        size_t consumed, wanted;
        status st = native_frame_decode(buf_bytes(&client->in), &header, &body, &consumed, &wanted);
        if (status_is(st, ST_INCOMPLETE)) break;
        CHECK(ok(st));
        struct native_request request;
        const char *error = NULL;
        CHECK(ok(native_request_decode(&header, body, &request, &error)));
        int hold = server->hold_replies;
        if (hold > 0 && header.opcode != NATIVE_HELLO) {
            struct buf *held = &client->held[client->held_count++];
            buf_init(held, client->out.budget);
            handle(server, client, &request, held);
            if (client->held_count == hold) release_held(client);
        } else {
            handle(server, client, &request, &client->out);
        }
        buf_consume(&client->in, consumed);
    }
    return client_send(client) && !client->closing;
}

static void
client_close(struct client *client)
{
    close(client->fd);
    client->out.size = 0;
    release_held(client);
    buf_deinit(&client->in);
    buf_deinit(&client->out);
}

static void *
fake_main(void *arg)
{
    struct fake_server *server = arg;
    static _Thread_local struct client clients[FAKE_CLIENTS_MAX];
    struct budget budget;
    budget_init(&budget, "fake", GIB(1), NULL);
    int count = 0;
    while (true) {
        struct pollfd fds[FAKE_CLIENTS_MAX + 2] = {{.fd = server->wake_fd, .events = POLLIN},
                                                   {.fd = server->listen_fd, .events = POLLIN}};
        for (int i = 0; i < count; i++)
            fds[i + 2] = (struct pollfd){.fd = clients[i].fd, .events = POLLIN};
        CHECK(poll(fds, (nfds_t)count + 2, -1) > 0);
        if (fds[0].revents) break;
        if (server->stands) {
            usleep(1000);
            continue;
        }
        for (int i = count - 1; i >= 0; i--) {
            if (!fds[i + 2].revents || client_read(server, &clients[i])) continue;
            client_close(&clients[i]);
            clients[i] = clients[--count];
            server->ended++;
        }
        if (!fds[1].revents) continue;
        int fd = accept(server->listen_fd, NULL, NULL);
        if (fd < 0) continue;
        CHECK(count < FAKE_CLIENTS_MAX);
        server->connections++;
        if (server->full > 0) {
            server->full--;
            static const char refusal[] = "-ERR max number of clients reached\r\n";
            /* A client that was slow has given it up by now. */
            if (send(fd, refusal, sizeof(refusal) - 1, MSG_NOSIGNAL) < 0 ||
                shutdown(fd, SHUT_WR) < 0)
                CHECK(errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN);
            u8 rest[4096]; /* what is unread when it is closed would make it a reset */
            while (recv(fd, rest, sizeof(rest), 0) > 0)
                continue;
            close(fd);
            continue;
        }
        int small = 64 << 10; /* what is on its way is then not yet here */
        if (server->slow_us > 0)
            CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)) == 0);
        memset(&clients[count], 0, sizeof(clients[count]));
        clients[count].fd = fd;
        buf_init(&clients[count].in, &budget);
        buf_init(&clients[count].out, &budget);
        count++;
    }
    while (count > 0)
        client_close(&clients[--count]);
    CHECK(budget.used_bytes == 0);
    return NULL;
}

struct fake_server *
fake_server_start(int port)
{
    struct fake_server *server = calloc(1, sizeof(*server));
    CHECK(server != NULL);
    server->run_id = 1;
    server->idempotency_ms = 60000;
    server->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    server->wake_fd = eventfd(0, EFD_CLOEXEC);
    CHECK(server->listen_fd >= 0 && server->wake_fd >= 0);
    int on = 1;
    CHECK(setsockopt(server->listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((u16)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    CHECK(bind(server->listen_fd, (struct sockaddr *)&address, size) == 0);
    CHECK(listen(server->listen_fd, 64) == 0);
    CHECK(getsockname(server->listen_fd, (struct sockaddr *)&address, &size) == 0);
    server->port = ntohs(address.sin_port);
    snprintf(server->address, sizeof(server->address), "127.0.0.1:%d", server->port);
    CHECK(pthread_create(&server->thread, NULL, fake_main, server) == 0);
    return server;
}

void
fake_server_stop(struct fake_server *server)
{
    u64 one = 1;
    CHECK(write(server->wake_fd, &one, sizeof(one)) == sizeof(one));
    CHECK(pthread_join(server->thread, NULL) == 0);
    close(server->listen_fd);
    close(server->wake_fd);
    while (server->count > 0)
        entry_remove(server, &server->entries[server->count - 1]);
    free(server);
}
