/* SPDX-License-Identifier: MIT
 *
 * core_output.c -- output of a connection; the first chunk is small, since most replies are.
 */
#include "io/core_output.h"

#include "base/fault.h"
#include "io/net.h"

#define CHUNK_FIRST_BYTES (4u << 10) /* with its header */
#define CHUNK_NEXT_BYTES  (16u << 10)

struct output_chunk {
    struct list link;
    u32 size; /* of data */
    u32 used; /* filled */
    u32 sent; /* acknowledged by the kernel */
    u32 reserved_zero;
    u8 data[];
};

void
core_output_init(struct core_output *output, struct io_shard *shard, struct budget *budget,
                 struct core_output_spares *spares)
{
    *output = (struct core_output){
        .shard = shard, .budget = budget, .spares = spares, .send_until = UINT64_MAX};
    list_init(&output->chunks);
}

void
core_output_spares_init(struct core_output_spares *spares)
{
    list_init(&spares->chunks);
    spares->count = 0;
}

void
core_output_spares_free(struct core_output_spares *spares, struct budget *budget)
{
    struct list *link;
    while ((link = list_pop_front(&spares->chunks)) != NULL)
        mem_free(budget, list_entry(link, struct output_chunk, link), CHUNK_FIRST_BYTES);
    spares->count = 0;
}

/* Memory for a chunk: one that is spare, or new. */
static struct output_chunk *
chunk_alloc(struct core_output *output, size_t bytes)
{
    struct core_output_spares *spares = output->spares;
    struct output_chunk *chunk;
    if (bytes == CHUNK_FIRST_BYTES && spares->count != 0) {
        spares->count--;
        chunk = list_entry(list_pop_front(&spares->chunks), struct output_chunk, link);
    } else {
        chunk = mem_alloc(output->budget, bytes);
    }
    if (chunk == NULL) return NULL;
    *chunk = (struct output_chunk){.size = (u32)(bytes - sizeof(*chunk))};
    output->shard->stats.output_bytes += bytes;
    return chunk;
}

static void
chunk_free(struct core_output *output, struct output_chunk *chunk)
{
    size_t bytes = sizeof(*chunk) + chunk->size;
    struct core_output_spares *spares = output->spares;
    list_del(&chunk->link);
    output->shard->stats.output_bytes -= bytes;
    if (bytes == CHUNK_FIRST_BYTES && spares->count < OUTPUT_SPARES_MAX &&
        output->budget->used_bytes <= output->budget->limit_bytes / 8) {
        list_push_front(&spares->chunks, &chunk->link);
        spares->count++;
        return;
    }
    mem_free(output->budget, chunk, bytes);
}

void
core_output_deinit(struct core_output *output)
{
    while (!list_empty(&output->chunks))
        chunk_free(output, list_entry(output->chunks.next, struct output_chunk, link));
}

/* How much one connection may be owed: as long as there is plenty, much; else its fair share. */
static size_t
output_limit(const struct core_output *output)
{
    u64 limit = output->budget->limit_bytes, used = output->budget->used_bytes;
    if (used <= limit / 4) return CONN_OUTPUT_HIGH_BYTES;
    u64 share = limit / 8 / MAX(output->shard->stats.connections, 1u);
    return (size_t)CLAMP(share, CHUNK_FIRST_BYTES, CONN_OUTPUT_HIGH_BYTES);
}

static struct output_chunk *
chunk_last(const struct core_output *output)
{
    return list_empty(&output->chunks) ? NULL
                                       : list_entry(output->chunks.prev, struct output_chunk, link);
}

u8 *
core_output_reserve(struct core_output *output, size_t size)
{
    struct output_chunk *chunk = chunk_last(output);
    if (chunk == NULL || chunk->size - chunk->used < size) {
        if (size > CONN_INPUT_MAX_BYTES * 2) return MARKED("io.output.too_large", NULL);
        bool roomy = output_limit(output) >= CONN_OUTPUT_LOW_BYTES;
        size_t bytes = chunk == NULL || !roomy ? CHUNK_FIRST_BYTES : CHUNK_NEXT_BYTES;
        if (size > bytes - sizeof(*chunk))
            bytes = (size_t)align_up(size + sizeof(*chunk), CHUNK_FIRST_BYTES);
        /* The last eighth is for small replies: they must not fail because of long ones. */
        const struct budget *budget = output->budget;
        if (bytes > CHUNK_FIRST_BYTES && budget->used_bytes + bytes > budget->limit_bytes / 8 * 7)
            return MARKED("io.output.kept_for_small", NULL);
        /* One more than the first is rarely asked for, and so rarely refused. */
        bool refused = chunk != NULL && BUGGIFY("io.output.no_second");
        chunk = refused ? NULL : chunk_alloc(output, bytes);
        if (chunk == NULL) return MARKED("io.output.no_memory", NULL);
        list_push_back(&output->chunks, &chunk->link);
    }
    output->reserved = true;
    return chunk->data + chunk->used;
}

void
core_output_commit(struct core_output *output, size_t size)
{
    struct output_chunk *chunk = chunk_last(output);
    CHECK(output->reserved && chunk != NULL);
    CHECK(size <= chunk->size - chunk->used);
    output->reserved = false;
    chunk->used += (u32)size;
    output->written += size;
    if (core_output_pending(output) > CONN_OUTPUT_HIGH_BYTES) output->was_high = true;
}

bool
core_output_write(struct core_output *output, const void *data, size_t size)
{
    const u8 *from = data;
    /* What fits goes into the last chunk, the rest into one more. */
    struct output_chunk *chunk = chunk_last(output);
    if (chunk != NULL && chunk->used < chunk->size && chunk->size - chunk->used < size) {
        size_t room = chunk->size - chunk->used;
        /* Nothing is written when there is no memory for the rest. */
        if (core_output_reserve(output, size - room) == NULL) return false;
        struct output_chunk *next = chunk_last(output);
        if (next != chunk) {
            memcpy(chunk->data + chunk->used, from, room);
            chunk->used += (u32)room;
            output->written += room;
            from += room;
            size -= room;
        }
    }
    u8 *to = core_output_reserve(output, size);
    if (to == NULL) {
        /* As for the rest of it above: what is sent of the chunk may go. */
        output->reserved = false;
        return false;
    }
    if (size > 0) memcpy(to, from, size);
    core_output_commit(output, size);
    return true;
}

void
core_output_send_until(struct core_output *output, u64 position)
{
    output->send_until = MAX(position, output->sent + output->sending);
}

bool
core_output_full(struct core_output *output)
{
    if (core_output_pending(output) <= output_limit(output)) return false;
    output->was_high = true;
    return true;
}

u32
core_output_gather(const struct core_output *output, u64 bytes_max, struct iovec *pieces,
                   u32 count_max, u32 *bytes_out)
{
    CHECK(output->sending == 0);
    u64 left = MIN(core_output_sendable(output), bytes_max);
    u32 count = 0;
    u32 total = 0;
    list_for_each (link, &output->chunks) {
        if (total == left || count == count_max) break;
        struct output_chunk *chunk = list_entry(link, struct output_chunk, link);
        u32 bytes = (u32)MIN(left - total, chunk->used - chunk->sent);
        if (bytes == 0) continue;
        pieces[count++] = (struct iovec){.iov_base = chunk->data + chunk->sent, .iov_len = bytes};
        total += bytes;
    }
    *bytes_out = total;
    return count;
}

void
core_output_advance(struct core_output *output, u32 bytes)
{
    output->sent += bytes;
    while (bytes > 0) {
        struct output_chunk *chunk = list_entry(output->chunks.next, struct output_chunk, link);
        u32 moved = MIN(bytes, chunk->used - chunk->sent);
        chunk->sent += moved;
        bytes -= moved;
        if (chunk->sent < chunk->used) break;
        if (chunk == chunk_last(output) && output->reserved) break;
        chunk_free(output, chunk);
    }
}

bool
core_output_drained(struct core_output *output)
{
    if (!output->was_high || core_output_pending(output) >= CONN_OUTPUT_LOW_BYTES) return false;
    output->was_high = false;
    return true;
}
