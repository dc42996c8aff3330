/* SPDX-License-Identifier: MIT
 *
 * fuzz_raft.c -- any bytes as a message between replicas of a Raft group. What decodes encodes to
 * the same bytes, and a replica that is given it takes it or refuses it, and stays right.
 */
#include <stdlib.h>

#include "base/mem.h"
#include "raft/raft_codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LOG_ENTRIES 64
#define ENTRY_BYTES 256

/* A log of a replica that has only just begun. */
struct log {
    u64 terms[LOG_ENTRIES];
    u8 kinds[LOG_ENTRIES];
    u8 data[LOG_ENTRIES][ENTRY_BYTES];
    size_t sizes[LOG_ENTRIES];
    u64 last;
};

static u64
first_index(void *context)
{
    return 1;
}

static u64
last_index(void *context)
{
    return ((struct log *)context)->last;
}

static status
term(void *context, u64 index, u64 *term_out)
{
    struct log *log = context;
    if (index > log->last) return ST_NOT_FOUND;
    *term_out = index == 0 ? 0 : log->terms[index - 1];
    return ST_OK;
}

static status
entries(void *context, u64 first, u64 bytes_max, u32 count_max, struct raft_entry *entries_out,
        u32 *count_out)
{
    struct log *log = context;
    u32 count = 0;
    for (u64 i = first; i <= log->last && count < count_max; i++)
        entries_out[count++] = (struct raft_entry){i, log->terms[i - 1], log->kinds[i - 1],
                                                   BYTES(log->data[i - 1], log->sizes[i - 1])};
    *count_out = count;
    return ST_OK;
}

static status
append(void *context, const struct raft_entry *list, u32 count)
{
    struct log *log = context;
    if (list[count - 1].index > LOG_ENTRIES) return ST_NO_MEMORY;
    for (u32 i = 0; i < count; i++)
        if (list[i].data.size > ENTRY_BYTES) return ST_NO_MEMORY;
    for (u32 i = 0; i < count; i++) {
        u64 at = list[i].index - 1;
        log->terms[at] = list[i].term;
        log->kinds[at] = list[i].kind;
        log->sizes[at] = list[i].data.size;
        if (list[i].data.size > 0) memcpy(log->data[at], list[i].data.data, list[i].data.size);
    }
    log->last = list[count - 1].index;
    return ST_OK;
}

static status
snapshot(void *context, struct raft_snapshot *snapshot_out)
{
    return ST_WOULD_WAIT;
}

static void
feed(const struct raft_message *message)
{
    static const struct raft_storage storage = {first_index, last_index, term,
                                                entries,     append,     snapshot};
    struct log *log = calloc(1, sizeof(*log));
    struct raft_options options = {
        .id = message->to == 0 ? 1 : message->to,
        .storage = &storage,
        .storage_context = log,
        .election_ticks = 10,
        .heartbeat_ticks = 2,
        .peers_max = 8,
        .reads_max = 4,
        .inflight_max = 4,
        .inflight_bytes = 4096,
        .message_bytes = 1024,
        .entry_bytes_max = ENTRY_BYTES,
        .uncommitted_bytes = 4096,
    };
    void *memory = aligned_alloc(16, raft_memory_bytes(&options));
    struct raft raft;
    struct raft_restored restored = {0};
    CHECK(log != NULL && memory != NULL);
    CHECK(ok(raft_init(&raft, &options, memory, &restored)));
    struct raft_message messages[32];
    struct raft_entry carried[64];
    struct raft_read_state reads[4];
    struct raft_ready ready = {.messages = messages,
                               .messages_max = 32,
                               .entries = carried,
                               .entries_max = 64,
                               .reads = reads,
                               .reads_max = 4};
    for (u32 i = 0; i < 2; i++) { /* and once more: it may come twice */
        status st = raft_step(&raft, message, 0, &ready);
        CHECK(raft_check(&raft));
        if (ok(st) && ready.sequence != 0)
            raft_persisted(&raft, ready.sequence, ready.persist_index, &ready);
        for (u32 k = 0; k < 30; k++) {
            raft_tick(&raft, 0, &ready);
            if (ready.sequence != 0)
                raft_persisted(&raft, ready.sequence, ready.persist_index, &ready);
        }
        CHECK(raft_check(&raft));
    }
    free(memory);
    free(log);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct budget budget;
    budget_init(&budget, "fuzz", MIB(64), NULL);
    struct raft_message message;
    struct raft_entry list[64];
    if (!ok(raft_message_decode(BYTES(data, size), list, 64, &message))) return 0;
    struct buf buf;
    buf_init(&buf, &budget);
    CHECK(raft_message_encode(&message, &buf));
    CHECK(bytes_equal(buf_bytes(&buf), BYTES(data, size)));
    buf_deinit(&buf);
    CHECK(budget.used_bytes == 0);
    feed(&message);
    return 0;
}
