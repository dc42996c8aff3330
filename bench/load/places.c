/* SPDX-License-Identifier: MIT
 *
 * places.c -- see places.h. Every key is drawn as before; a connection passes over those that lie
 * elsewhere. That keeps the shares of a uniform distribution, since each place has connections in
 * proportion to its keys. Of an uneven one it keeps the order within each place.
 */
#include "load/places.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/hash.h"
#include "load/machine.h"
#include "load/wire.h"

/* With fewer for each place, some keys would hardly be asked for. */
#define CONNECTIONS_EACH 2u
#define REPLY_BYTES_MAX  (1u << 20)

static bool
add_node(struct places *out, const struct native_node *node, const char *host)
{
    u32 count = node->shard_port == 0 ? 1 : node->shard_count;
    char name[TEXT_BYTES], error[TEXT_BYTES];
    if (out->count + count > PLACES_MAX) return false;
    snprintf(name, sizeof(name), "%.*s", (int)node->host.size, (const char *)node->host.data);
    for (u32 i = 0; i < count; i++) {
        struct place *place = &out->list[out->count++];
        *place = (struct place){.port = node->shard_port == 0 ? node->port
                                                              : (u16)(node->shard_port + i)};
        snprintf(place->host, sizeof(place->host), "%s", host);
        if (name[0] != '\0' &&
            !machine_resolve(name, place->host, sizeof(place->host), error, sizeof(error)))
            return false;
    }
    return true;
}

bool
places_take(struct places *out, const struct native_topology_reply *reply, const char *host)
{
    u32 first[NATIVE_NODES_MAX], shards[NATIVE_NODES_MAX];
    *out = (struct places){.partition_count = reply->partition_count};
    out->list = calloc(PLACES_MAX, sizeof(*out->list));
    out->owners = calloc(reply->partition_count, sizeof(*out->owners));
    bool fine = out->list != NULL && out->owners != NULL;
    struct bytes nodes = reply->nodes;
    struct native_node node;
    for (u32 i = 0; fine && native_hello_next_node(&nodes, &node); i++) {
        first[i] = out->count;
        fine = add_node(out, &node, host);
        shards[i] = out->count - first[i];
    }
    for (u32 p = 0; fine && p < reply->partition_count; p++) {
        u32 there = native_topology_node(reply, p, 0);
        fine = there != NATIVE_TOPOLOGY_NOBODY;
        if (!fine) break;
        u32 owner = first[there] + partition_shard(p, shards[there], reply->partition_count);
        out->owners[p] = (u16)owner;
        out->list[owner].share++;
    }
    if (!fine) places_free(out);
    return fine;
}

void
places_free(struct places *places)
{
    free(places->list);
    free(places->owners);
    *places = (struct places){0};
}

u32
places_home(const struct places *places, u32 number, u32 count)
{
    u32 used = 0;
    for (u32 i = 0; i < places->count; i++)
        used += places->list[i].share > 0;
    if (used < 2 || count < used * CONNECTIONS_EACH) return PLACE_NOWHERE;
    u64 at = ((u64)number * 2 + 1) * places->partition_count / (2 * (u64)count);
    u32 place = 0;
    for (u64 passed = places->list[0].share; passed <= at; passed += places->list[place].share)
        place++;
    return place;
}

/* ---- asking ---- */

/* The next frame; data grows. */
static bool
frame_read(int fd, u8 *data, size_t *size, struct native_header *header, struct bytes *body,
           size_t *consumed)
{
    while (true) {
        size_t wanted;
        status st = native_frame_decode(BYTES(data, *size), header, body, consumed, &wanted);
        if (ok(st)) return true;
        if (!status_is(st, ST_INCOMPLETE) || *size == REPLY_BYTES_MAX) return false;
        ssize_t got = recv(fd, data + *size, REPLY_BYTES_MAX - *size, 0);
        if (got <= 0) return false;
        *size += (size_t)got;
    }
}

static bool
ask(int fd, const struct settings *settings, struct places *out, const char *host, u8 *data)
{
    u8 words[WIRE_HELLO_BYTES];
    size_t size = wire_hello_topology(settings, words);
    if (send(fd, words, size, MSG_NOSIGNAL) != (ssize_t)size) return false;
    size_t have = 0, consumed;
    struct native_header header;
    struct bytes body;
    struct native_reply reply;
    if (!frame_read(fd, data, &have, &header, &body, &consumed)) return false;
    if (header.status != NATIVE_ST_OK || !ok(native_reply_decode(&header, body, &reply)) ||
        header.opcode != NATIVE_HELLO || (reply.hello.features & NATIVE_FEATURE_PLACES) == 0)
        return false;
    memmove(data, data + consumed, have - consumed);
    have -= consumed;
    struct native_request request = {.header = {.opcode = NATIVE_TOPOLOGY, .request_id = 2}};
    struct buf buf = {.data = words, .capacity = sizeof(words)};
    CHECK(native_request_encode(&buf, &request) && buf.data == words);
    if (send(fd, words, buf.size, MSG_NOSIGNAL) != (ssize_t)buf.size) return false;
    if (!frame_read(fd, data, &have, &header, &body, &consumed)) return false;
    if (header.status != NATIVE_ST_OK || !ok(native_reply_decode(&header, body, &reply)) ||
        header.opcode != NATIVE_TOPOLOGY || reply.topology.node_count == 0)
        return false;
    return places_take(out, &reply.topology, host);
}

void
places_read(struct places *out, const struct settings *settings, const char *host, u16 port)
{
    *out = (struct places){0};
    int fd = machine_connect(host, port);
    u8 *data = malloc(REPLY_BYTES_MAX);
    bool known = fd >= 0 && data != NULL && ask(fd, settings, out, host, data);
    if (!known) places_free(out);
    free(data);
    if (fd >= 0) close(fd);
}
