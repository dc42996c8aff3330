/* SPDX-License-Identifier: MIT
 *
 * host_metrics.h -- figures of all shards as Prometheus text and as JSON. Pure but for memory: the
 * figures come in, text goes out.
 */
#ifndef DISTKV_SERVER_HOST_METRICS_H
#define DISTKV_SERVER_HOST_METRICS_H

#include "server/server.h"

struct host_figures {
    const struct server_config *config;
    const char *node_id;
    const char *run_id;
    u16 port;
    bool ready;
    u64 uptime_ns;
    u64 resident_bytes, resident_bytes_max; /* of the process */
    u64 log_dropped;                        /* messages that the log could not take */
    u32 shard_count;
    const struct shard_stats *shards; /* shard_count of them */
    const bool *shard_known;          /* false: the shard did not answer; its figures are void */
};

/* malloc'ed, ended by a zero byte; NULL without memory. The caller frees. */
char *host_metrics_text(const struct host_figures *figures, size_t *size_out);
char *host_status_json(const struct host_figures *figures, size_t *size_out);

#endif
