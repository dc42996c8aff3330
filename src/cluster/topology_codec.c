/* SPDX-License-Identifier: MIT
 *
 * topology_codec.c -- the bytes of commands and of whole topologies. Little-endian, nothing padded;
 * a name is its length (one byte) and its characters. What decodes encodes to the same bytes.
 *
 *   command    | format 1 | kind | state before 8 | state after 8 | what the kind needs |
 *     member     | number 4 | stamp 2 | state 1 | fetched 1 | weight 4 | incarnation 8
 *                | client port 2 | peer port 2 | shards 4 | replaces 4
 *                | node_id | host | rack | datacenter |
 *                in a topology of format 3: mending 1, behind fetched
 *     keyspace   | used 1 | conflict 1 | N 1 | W 1 | R 1 | from format 2 on: sloppy 1 | name |
 *     partitions | first 4 | count 4 |
 *
 *   topology   | format 1 | stage 1 | next stamp 2 | cluster 8 | state 8 | epoch 8
 *              | stage epoch 8 | the one before 8 | session 8 | partitions 4 | replicas 4
 *              | next number 4 | 16 keyspaces (the first byte alone: not used) | members 4
 *              | members | current | next, when there is a stage |
 *     placement  | width 4 | rows: 4 each place |
 *
 * Another format is refused as such (ST_UNSUPPORTED), so that nobody takes what a later version
 * wrote for damage; whoever raises it reads both until no member writes the old one.
 *
 * Format 2 is written where a keyspace is sloppy, and only there. So versions that know no such
 * keyspaces go on with the others as long as nobody makes one, and stop when somebody does. So it
 * is with format 3: where a member is mending, or there, and marked as gone in a row.
 */
#include "cluster/topology.h"
#include "cluster/topology_internal.h"

enum { FORMAT = 1, FORMAT_SLOPPY = 2, FORMAT_LOST = 3 };

/* ---- what a kind of command carries, in this order ---- */

enum {
    HAS_CLUSTER = 1, /* id, partitions, replicas */
    HAS_MEMBER = 2,
    HAS_SESSION = 4,
    HAS_KEYSPACE = 8, /* its number */
    HAS_OPTIONS = 16,
    HAS_PARTITIONS = 32,
};

/* 0: there is no such kind. */
static u32
parts_of(u8 kind)
{
    switch ((enum topology_command_kind)kind) {
    case TOPOLOGY_FOUND:
        return HAS_CLUSTER | HAS_MEMBER | HAS_OPTIONS;
    case TOPOLOGY_MEMBER_ADD:
    case TOPOLOGY_MEMBER_SET:
    case TOPOLOGY_MEMBER_LEAVE:
    case TOPOLOGY_MEMBER_STAY:
    case TOPOLOGY_MEMBER_FORGET:
    case TOPOLOGY_WEIGHT_SET:
    case TOPOLOGY_MENDED:
        return HAS_MEMBER;
    case TOPOLOGY_LOST:
        return HAS_MEMBER | HAS_PARTITIONS;
    case TOPOLOGY_KEYSPACE_SET:
        return HAS_KEYSPACE | HAS_OPTIONS;
    case TOPOLOGY_FETCHED:
        return HAS_MEMBER | HAS_SESSION;
    case TOPOLOGY_PLAN_IN_ORDER:
    case TOPOLOGY_PLAN_SCATTERED:
    case TOPOLOGY_PLAN:
    case TOPOLOGY_ADVANCE:
    case TOPOLOGY_ABANDON:
    case TOPOLOGY_FENCE:
        return HAS_SESSION;
    }
    return 0;
}

/* ---- encoding ---- */

struct writer {
    struct buf *out;
    u8 format;
    bool failed; /* what comes after is left out */
};

static void
put(struct writer *writer, const void *data, size_t size)
{
    if (size > 0 && !writer->failed && !buf_append(writer->out, data, size)) writer->failed = true;
}

static void
put_u8(struct writer *writer, u8 value)
{
    put(writer, &value, sizeof(value));
}

static void
put_u16(struct writer *writer, u16 value)
{
    put(writer, &value, sizeof(value));
}

static void
put_u32(struct writer *writer, u32 value)
{
    put(writer, &value, sizeof(value));
}

static void
put_u64(struct writer *writer, u64 value)
{
    put(writer, &value, sizeof(value));
}

static void
put_name(struct writer *writer, const char name[TOPOLOGY_NAME_BYTES])
{
    if (!topology_name_ok(name)) {
        writer->failed = true;
        return;
    }
    size_t size = strlen(name);
    put_u8(writer, (u8)size);
    put(writer, name, size);
}

static void
put_member(struct writer *writer, const struct topology_member *member)
{
    put_u32(writer, member->number);
    put_u16(writer, member->stamp);
    put_u8(writer, member->state);
    put_u8(writer, member->fetched);
    if (writer->format == FORMAT_LOST) put_u8(writer, member->mending);
    put_u32(writer, member->weight);
    put_u64(writer, member->incarnation);
    put_u16(writer, member->client_port);
    put_u16(writer, member->peer_port);
    put_u32(writer, member->shard_count);
    put_u32(writer, member->replaces);
    put_name(writer, member->node_id);
    put_name(writer, member->host);
    put_name(writer, member->rack);
    put_name(writer, member->datacenter);
}

static void
put_options(struct writer *writer, const struct topology_keyspace *keyspace)
{
    put_u8(writer, keyspace->used);
    put_u8(writer, keyspace->conflict);
    put_u8(writer, keyspace->replicas);
    put_u8(writer, keyspace->write_quorum);
    put_u8(writer, keyspace->read_quorum);
    if (writer->format >= FORMAT_SLOPPY) put_u8(writer, keyspace->sloppy);
    put_name(writer, keyspace->name);
}

static void
put_placement(struct writer *writer, const struct placement *placement)
{
    put_u32(writer, placement->width);
    put(writer, placement->ids, topology_ids_bytes(placement));
}

static bool
finish(struct writer *writer, size_t size_before)
{
    if (writer->failed) writer->out->size = size_before;
    return !writer->failed;
}

bool
topology_command_encode(const struct topology_command *command, struct buf *out)
{
    struct writer writer = {.out = out};
    size_t size = out->size;
    u32 parts = parts_of(command->kind);
    if (parts == 0) return false;
    bool sloppy = (parts & HAS_OPTIONS) != 0 && command->options.sloppy;
    writer.format = sloppy ? FORMAT_SLOPPY : FORMAT;
    put_u8(&writer, writer.format);
    put_u8(&writer, command->kind);
    put_u64(&writer, command->state_before);
    put_u64(&writer, command->state_after);
    if ((parts & HAS_CLUSTER) != 0) {
        put_u64(&writer, command->cluster_id);
        put_u32(&writer, command->partition_count);
        put_u32(&writer, command->replicas);
    }
    if ((parts & HAS_MEMBER) != 0) put_member(&writer, &command->member);
    if ((parts & HAS_SESSION) != 0) put_u64(&writer, command->session);
    if ((parts & HAS_KEYSPACE) != 0) put_u32(&writer, command->keyspace);
    if ((parts & HAS_OPTIONS) != 0) put_options(&writer, &command->options);
    if ((parts & HAS_PARTITIONS) != 0) {
        put_u32(&writer, command->partition_first);
        put_u32(&writer, command->partition_count);
    }
    return finish(&writer, size);
}

static bool
any_sloppy(const struct topology *topology)
{
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        if (topology->keyspaces[k].used && topology->keyspaces[k].sloppy) return true;
    return false;
}

static bool
any_lost(const struct topology *topology)
{
    if (topology_mending(topology) != 0) return true;
    const struct placement *current = &topology->current;
    if (current->ids == NULL) return false;
    size_t count = (size_t)current->partition_count * current->width;
    for (size_t i = 0; i < count; i++)
        if ((current->ids[i] & TOPOLOGY_GONE) != 0 &&
            topology_member(topology, current->ids[i] & ~TOPOLOGY_GONE) != NULL)
            return true;
    return false;
}

static u8
format_of(const struct topology *topology)
{
    if (any_lost(topology)) return FORMAT_LOST;
    return any_sloppy(topology) ? FORMAT_SLOPPY : FORMAT;
}

bool
topology_encode(const struct topology *topology, struct buf *out)
{
    struct writer writer = {.out = out, .format = format_of(topology)};
    size_t size = out->size;
    put_u8(&writer, writer.format);
    put_u8(&writer, topology->stage);
    put_u16(&writer, topology->next_stamp);
    put_u64(&writer, topology->cluster_id);
    put_u64(&writer, topology->state_id);
    put_u64(&writer, topology->epoch);
    put_u64(&writer, topology->stage_epoch);
    put_u64(&writer, topology->stage_epoch_before);
    put_u64(&writer, topology->session);
    put_u32(&writer, topology->partition_count);
    put_u32(&writer, topology->replicas);
    put_u32(&writer, topology->next_number);
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
        if (topology->keyspaces[k].used)
            put_options(&writer, &topology->keyspaces[k]);
        else
            put_u8(&writer, 0);
    }
    put_u32(&writer, topology->member_count);
    for (u32 i = 0; i < topology->member_count; i++)
        put_member(&writer, &topology->members[i]);
    if (topology->cluster_id != 0) put_placement(&writer, &topology->current);
    if (topology->stage != STAGE_NONE) put_placement(&writer, &topology->next);
    return finish(&writer, size);
}

/* ---- decoding ---- */

struct reader {
    struct bytes rest;
    u8 format;
    bool failed; /* what comes after is zero */
};

static void
take(struct reader *reader, void *out, size_t size)
{
    if (reader->failed || reader->rest.size < size) {
        reader->failed = true;
        memset(out, 0, size);
        return;
    }
    if (size == 0) return;
    memcpy(out, reader->rest.data, size);
    reader->rest.data += size;
    reader->rest.size -= size;
}

static u8
take_u8(struct reader *reader)
{
    u8 value;
    take(reader, &value, sizeof(value));
    return value;
}

static bool
take_bool(struct reader *reader)
{
    u8 value = take_u8(reader);
    if (value > 1) reader->failed = true;
    return value == 1;
}

static u16
take_u16(struct reader *reader)
{
    u16 value;
    take(reader, &value, sizeof(value));
    return value;
}

static u32
take_u32(struct reader *reader)
{
    u32 value;
    take(reader, &value, sizeof(value));
    return value;
}

static u64
take_u64(struct reader *reader)
{
    u64 value;
    take(reader, &value, sizeof(value));
    return value;
}

/* A zero among the characters would end it early: it is not printable, so it is refused, too. */
static void
take_name(struct reader *reader, char out[TOPOLOGY_NAME_BYTES])
{
    memset(out, 0, TOPOLOGY_NAME_BYTES);
    size_t size = take_u8(reader);
    if (size >= TOPOLOGY_NAME_BYTES) {
        reader->failed = true;
        return;
    }
    take(reader, out, size);
    if (!topology_name_ok(out) || strlen(out) != size) reader->failed = true;
}

static void
take_member(struct reader *reader, struct topology_member *out)
{
    *out = (struct topology_member){0};
    out->number = take_u32(reader);
    out->stamp = take_u16(reader);
    out->state = take_u8(reader);
    out->fetched = take_bool(reader);
    out->mending = reader->format == FORMAT_LOST && take_bool(reader);
    out->weight = take_u32(reader);
    out->incarnation = take_u64(reader);
    out->client_port = take_u16(reader);
    out->peer_port = take_u16(reader);
    out->shard_count = take_u32(reader);
    out->replaces = take_u32(reader);
    take_name(reader, out->node_id);
    take_name(reader, out->host);
    take_name(reader, out->rack);
    take_name(reader, out->datacenter);
}

static void
take_options(struct reader *reader, struct topology_keyspace *out)
{
    out->conflict = take_u8(reader);
    out->replicas = take_u8(reader);
    out->write_quorum = take_u8(reader);
    out->read_quorum = take_u8(reader);
    out->sloppy = reader->format >= FORMAT_SLOPPY && take_bool(reader);
    take_name(reader, out->name);
}

status
topology_command_decode(struct bytes bytes, struct topology_command *out)
{
    struct reader reader = {.rest = bytes};
    struct topology_command command = {0};
    reader.format = take_u8(&reader);
    if (reader.format != FORMAT && reader.format != FORMAT_SLOPPY) return ST_CORRUPT;
    command.kind = take_u8(&reader);
    command.state_before = take_u64(&reader);
    command.state_after = take_u64(&reader);
    u32 parts = parts_of(command.kind);
    if (parts == 0) return ST_CORRUPT;
    if ((parts & HAS_CLUSTER) != 0) {
        command.cluster_id = take_u64(&reader);
        command.partition_count = take_u32(&reader);
        command.replicas = take_u32(&reader);
    }
    if ((parts & HAS_MEMBER) != 0) take_member(&reader, &command.member);
    if ((parts & HAS_SESSION) != 0) command.session = take_u64(&reader);
    if ((parts & HAS_KEYSPACE) != 0) command.keyspace = take_u32(&reader);
    if ((parts & HAS_OPTIONS) != 0) {
        command.options.used = take_bool(&reader);
        take_options(&reader, &command.options);
    }
    if ((parts & HAS_PARTITIONS) != 0) {
        command.partition_first = take_u32(&reader);
        command.partition_count = take_u32(&reader);
    }
    bool sloppy = reader.format == FORMAT_SLOPPY;
    if (reader.failed || reader.rest.size > 0 || sloppy != command.options.sloppy)
        return ST_CORRUPT;
    *out = command;
    return ST_OK;
}

/* Nothing is allocated for what is not there: each count is held against the bytes that are left.
 */
static status
take_members(struct reader *reader, struct topology *topology)
{
    u32 count = take_u32(reader);
    /* Without their names, which are a byte each at least. */
    const size_t bytes_min = 4 + 2 + 1 + 1 + 4 + 8 + 2 + 2 + 4 + 4 + 4;
    if (reader->failed || count > LIMIT_PLACEMENT_NODES || count * bytes_min > reader->rest.size)
        return ST_CORRUPT;
    if (count == 0) return ST_OK;
    if (!topology_members_reserve(topology, count)) return ST_NO_MEMORY;
    for (u32 i = 0; i < count; i++)
        take_member(reader, &topology->members[i]);
    topology->member_count = count;
    return reader->failed ? ST_CORRUPT : ST_OK;
}

static status
take_placement(struct reader *reader, struct topology *topology, struct placement *out)
{
    u32 width = take_u32(reader);
    if (reader->failed || width == 0 || width > LIMIT_PLACEMENT_REPLICAS) return ST_CORRUPT;
    if (topology->partition_count == 0 || topology->partition_count > SLOT_COUNT) return ST_CORRUPT;
    size_t bytes = (size_t)topology->partition_count * width * sizeof(u32);
    if (bytes > reader->rest.size) return ST_CORRUPT;
    if (!topology_placement_init(topology, width, out)) return ST_NO_MEMORY;
    take(reader, out->ids, bytes);
    return ST_OK;
}

static status
take_topology(struct reader *reader, struct topology *out)
{
    u8 format = reader->format = take_u8(reader);
    if (reader->failed || format == 0) return ST_CORRUPT;
    if (format > FORMAT_LOST) return ST_UNSUPPORTED;
    out->stage = take_u8(reader);
    out->next_stamp = take_u16(reader);
    out->cluster_id = take_u64(reader);
    out->state_id = take_u64(reader);
    out->epoch = take_u64(reader);
    out->stage_epoch = take_u64(reader);
    out->stage_epoch_before = take_u64(reader);
    out->session = take_u64(reader);
    out->partition_count = take_u32(reader);
    out->replicas = take_u32(reader);
    out->next_number = take_u32(reader);
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
        out->keyspaces[k].used = take_bool(reader);
        if (out->keyspaces[k].used) take_options(reader, &out->keyspaces[k]);
    }
    status st = take_members(reader, out);
    if (ok(st) && out->cluster_id != 0) st = take_placement(reader, out, &out->current);
    if (ok(st) && out->stage != STAGE_NONE) st = take_placement(reader, out, &out->next);
    if (!ok(st)) return st;
    if (reader->failed || reader->rest.size > 0) return ST_CORRUPT;
    return topology_check(out) && format_of(out) == format ? ST_OK : ST_CORRUPT;
}

status
topology_decode(struct bytes bytes, struct budget *budget, struct topology **out)
{
    struct topology *topology = topology_new(budget);
    if (topology == NULL) return ST_NO_MEMORY;
    struct reader reader = {.rest = bytes};
    status st = take_topology(&reader, topology);
    if (ok(st))
        *out = topology;
    else
        topology_release(topology);
    return st;
}
