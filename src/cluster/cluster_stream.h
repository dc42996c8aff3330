/* SPDX-License-Identifier: MIT
 *
 * cluster_stream.h -- what who serves pages of its store (cluster_stream.c) and who gains
 * partitions by them (cluster_fetch.c) have to agree about. Nobody else includes it.
 */
#ifndef DISTKV_CLUSTER_CLUSTER_STREAM_H
#define DISTKV_CLUSTER_CLUSTER_STREAM_H

#include "cluster/cluster.h"

#define STREAM_PAGE_MIN     (1u << 10)
#define STREAM_PAGE_LONG    (64u << 10)       /* from so many bytes on, a source reads far ahead */
#define STREAM_PAGE_NS      (10 * NS_PER_S)   /* who asks for a page waits for so long */
#define STREAM_IDLE_NS      (100 * NS_PER_MS) /* << patience: a scan is kept for the next page */
#define STREAM_PATIENCE_MAX 5u /* a kept scan holds back what merges would free: 3.2 s */
#define STREAM_PACE_LOOK_NS (100 * NS_PER_MS) /* who rests looks at the rate so often */

/* In the first byte of a page. */
enum stream_bit { STREAM_MORE = 1, STREAM_DAMAGE = 2 };

static inline u64
cluster_move_rate(const struct cluster_shard *shard)
{
    return atomic_load_explicit(&shard->cluster->move_bytes_per_s, memory_order_relaxed);
}

#endif
