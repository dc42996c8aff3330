/* SPDX-License-Identifier: MIT
 *
 * raft_codec.c -- see raft_codec.h. Sizes are checked against what is there before they are used;
 * whether the numbers make sense is raft_step's question.
 */
#include "raft/raft_codec.h"

enum { VERSION = 1 };
enum { FLAG_REJECT = 1, FLAG_FORCE = 2, FLAG_QUIESCE = 4 };
#define FLAGS_KNOWN 7u

struct ONDISK message_header {
    u8 version, type, flags, zero;
    u32 count;
    u64 from, to, term, index, log_term, commit, hint, round;
};

struct ONDISK entry_header {
    u64 term;
    u8 kind;
    u8 zero[3];
    u32 size;
};

static_assert(sizeof(struct message_header) == RAFT_CODEC_HEADER_BYTES, "as documented");
static_assert(sizeof(struct entry_header) == RAFT_CODEC_ENTRY_BYTES, "likewise");

static size_t
encoded_bytes(const struct raft_message *message)
{
    size_t size = RAFT_CODEC_HEADER_BYTES;
    if (message->type == RAFT_SNAPSHOT) size += message->config.size;
    if (message->type != RAFT_APPEND) return size;
    for (u32 i = 0; i < message->entry_count; i++)
        size += RAFT_CODEC_ENTRY_BYTES + message->entries[i].data.size;
    return size;
}

static void
put(struct buf *out, const void *data, size_t size)
{
    bool there = buf_append(out, data, size);
    CHECK(there); /* reserved */
}

bool
raft_message_encode(const struct raft_message *message, struct buf *out)
{
    if (!buf_reserve(out, encoded_bytes(message))) return false;
    bool append = message->type == RAFT_APPEND, snapshot = message->type == RAFT_SNAPSHOT;
    CHECK(append || message->entry_count == 0);
    struct message_header header = {
        .version = VERSION,
        .type = message->type,
        .flags = (u8)((message->reject ? FLAG_REJECT : 0) | (message->force ? FLAG_FORCE : 0) |
                      (message->quiesce ? FLAG_QUIESCE : 0)),
        .count = append     ? message->entry_count
                 : snapshot ? (u32)message->config.size
                            : 0,
        .from = message->from,
        .to = message->to,
        .term = message->term,
        .index = message->index,
        .log_term = message->log_term,
        .commit = message->commit,
        .hint = message->hint,
        .round = message->round,
    };
    put(out, &header, sizeof(header));
    for (u32 i = 0; i < message->entry_count; i++) {
        const struct raft_entry *entry = &message->entries[i];
        CHECK(entry->index == message->index + 1 + i);
        struct entry_header bytes = {
            .term = entry->term, .kind = entry->kind, .size = (u32)entry->data.size};
        put(out, &bytes, sizeof(bytes));
        if (entry->data.size > 0) put(out, entry->data.data, entry->data.size);
    }
    if (snapshot && message->config.size > 0) put(out, message->config.data, message->config.size);
    return true;
}

static status
entries_decode(struct bytes rest, u64 index, u32 count, struct raft_entry *entries)
{
    for (u32 i = 0; i < count; i++) {
        struct entry_header header;
        if (rest.size < sizeof(header)) return ST_CORRUPT;
        memcpy(&header, rest.data, sizeof(header));
        rest = BYTES(rest.data + sizeof(header), rest.size - sizeof(header));
        if (header.zero[0] != 0 || header.zero[1] != 0 || header.zero[2] != 0) return ST_CORRUPT;
        if (header.kind >= RAFT_ENTRY_KIND_COUNT || header.size > rest.size) return ST_CORRUPT;
        entries[i] = (struct raft_entry){.index = index + 1 + i,
                                         .term = header.term,
                                         .kind = header.kind,
                                         .data = BYTES(rest.data, header.size)};
        rest = BYTES(rest.data + header.size, rest.size - header.size);
    }
    return rest.size == 0 ? ST_OK : ST_CORRUPT;
}

status
raft_message_decode(struct bytes bytes, struct raft_entry *entries, u32 entries_max,
                    struct raft_message *out)
{
    struct message_header header;
    if (bytes.size < sizeof(header)) return ST_CORRUPT;
    memcpy(&header, bytes.data, sizeof(header));
    struct bytes rest = BYTES(bytes.data + sizeof(header), bytes.size - sizeof(header));
    if (header.version != VERSION || header.zero != 0 || (header.flags & ~FLAGS_KNOWN) != 0)
        return ST_CORRUPT;
    if (header.type < RAFT_PRE_VOTE || header.type > RAFT_READ_REPLY) return ST_CORRUPT;

    u32 entry_count = 0;
    struct bytes config = {0};
    if (header.type == RAFT_APPEND) {
        entry_count = header.count;
        if (entry_count > rest.size / RAFT_CODEC_ENTRY_BYTES) return ST_CORRUPT;
        if (entry_count > entries_max) return ST_TOO_LARGE;
        if (header.index > UINT64_MAX - entry_count - 1) return ST_CORRUPT;
        status st = entries_decode(rest, header.index, entry_count, entries);
        if (!ok(st)) return st;
    } else if (header.type == RAFT_SNAPSHOT) {
        if (header.count != rest.size) return ST_CORRUPT;
        config = rest;
    } else if (header.count != 0 || rest.size != 0) {
        return ST_CORRUPT;
    }
    *out = (struct raft_message){
        .type = header.type,
        .reject = (header.flags & FLAG_REJECT) != 0,
        .force = (header.flags & FLAG_FORCE) != 0,
        .quiesce = (header.flags & FLAG_QUIESCE) != 0,
        .from = header.from,
        .to = header.to,
        .term = header.term,
        .index = header.index,
        .log_term = header.log_term,
        .commit = header.commit,
        .hint = header.hint,
        .round = header.round,
        .entries = entries,
        .entry_count = entry_count,
        .config = config,
    };
    return ST_OK;
}
