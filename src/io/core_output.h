/* SPDX-License-Identifier: MIT
 *
 * core_output.h -- what a connection has to send: chunks of memory and positions. Private to
 * src/io; both backends use it, so that the simulator runs what the server runs.
 *
 *       0 ...... sent ...... sent + sending ...... send_until ...... written
 *        given back  under way             may go              held
 *
 * Bytes keep their place from the moment they are written until they are sent, so a backend may
 * send straight out of a chunk while more is appended to it.
 */
#ifndef DISTKV_IO_CORE_OUTPUT_H
#define DISTKV_IO_CORE_OUTPUT_H

#include <sys/uio.h>

#include "io/core.h"

/* Chunks of the usual size that no connection needs, of a shard: a request that is answered by
 * itself would take one from the allocator and give it back. Taken in the order that finds them in
 * the cache; few, and none when outputs need much of their memory. */
#define OUTPUT_SPARES_MAX 64u
struct core_output_spares {
    struct list chunks; /* struct output_chunk.link */
    u32 count;
};

struct core_output {
    /* configuration */
    struct io_shard *shard;
    struct budget *budget; /* of the outputs of all connections of the shard */
    struct core_output_spares *spares;

    /* state */
    struct list chunks; /* struct output_chunk.link */
    u64 written;
    u64 sent;
    u64 send_until;
    u32 sending;   /* under way */
    bool was_high; /* passed CONN_OUTPUT_HIGH_BYTES; drained is owed */
    bool reserved; /* the last chunk is being filled */
};

void core_output_init(struct core_output *output, struct io_shard *shard, struct budget *budget,
                      struct core_output_spares *spares);
void core_output_deinit(struct core_output *output);

void core_output_spares_init(struct core_output_spares *spares);
/* The last connection is gone. */
void core_output_spares_free(struct core_output_spares *spares, struct budget *budget);

/* As the functions of net.h, but that nobody is told that there is something to send. */
MUST_CHECK u8 *core_output_reserve(struct core_output *output, size_t size);
void core_output_commit(struct core_output *output, size_t size);
MUST_CHECK bool core_output_write(struct core_output *output, const void *data, size_t size);
void core_output_send_until(struct core_output *output, u64 position);
bool core_output_full(struct core_output *output);

static inline u64
core_output_pending(const struct core_output *output)
{
    return output->written - output->sent;
}

/* Bytes that may go and are not under way. */
static inline u64
core_output_sendable(const struct core_output *output)
{
    u64 until = MIN(output->written, output->send_until);
    u64 from = output->sent + output->sending;
    return until > from ? until - from : 0;
}

/* Where the next bytes to send are: at most bytes_max in at most count_max pieces; returns how many
 * pieces there are. Nothing may be under way. */
u32 core_output_gather(const struct core_output *output, u64 bytes_max, struct iovec *pieces,
                       u32 count_max, u32 *bytes_out);
/* They were sent. */
void core_output_advance(struct core_output *output, u32 bytes);
/* True once after it was high, when it is low. */
bool core_output_drained(struct core_output *output);

#endif
