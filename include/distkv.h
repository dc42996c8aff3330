/* SPDX-License-Identifier: MIT
 *
 * distkv.h -- libdistkv, the client library of DistKV.
 *
 *     distkv *kv;
 *     char error[DISTKV_ERROR_BYTES];
 *     if (distkv_connect("127.0.0.1:8080", NULL, &kv, error) != DISTKV_OK) ...
 *     distkv_put(kv, "key", 3, "value", 5, NULL, NULL);
 *     struct distkv_value value;
 *     if (distkv_get(kv, "key", 3, &value) == DISTKV_OK) ... distkv_value_free(&value);
 *     distkv_close(kv);
 *
 * Threads. A handle belongs to one thread at a time: give each thread its own. Handles share
 * nothing. No signal is raised (SIGPIPE is suppressed), no thread is started. A handle is of no
 * use in a child after fork().
 *
 * Deadlines. Every call has one: the handle's timeout, counted from the call. Until then the
 * library reconnects (with growing pauses) and sends again what may be sent again: reads; requests
 * that the server refused as overloaded; and writes whose reply was lost, under the idempotency id
 * of the first attempt, so that the server does them once. After a restart of the server, which
 * forgets these ids, only writes without a condition are sent again (doing them twice leaves the
 * same value). distkv_scan_close() may take twice the timeout, and distkv_scan_next() for each page
 * that it fetches: many are empty where keys were deleted or a pattern leaves them out. The names
 * of servers are resolved by getaddrinfo() with each attempt to connect, and while that waits all
 * calls of the handle do: give numbers where that matters.
 *
 * Outcomes. DISTKV_OK: done, and as durable as the server's durability promises. An error says that
 * the write was not done, except for DISTKV_UNKNOWN_OUTCOME: it may have been done or may yet be.
 *
 * Asynchronous calls: names end in _async. They return at once; when they return DISTKV_OK the
 * callback is called exactly once, from distkv_process() or from a blocking call on the same
 * handle, never from within the asynchronous call itself. Callbacks may start asynchronous calls,
 * but neither blocking ones nor distkv_process() nor distkv_close(). Calls are pipelined; the order
 * in which two pending calls take effect is not promised. Keys and values are copied.
 */
#ifndef DISTKV_H
#define DISTKV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DISTKV_API __attribute__((visibility("default")))
#else
#define DISTKV_API
#endif

#define DISTKV_ERROR_BYTES     256
#define DISTKV_KEY_BYTES_MAX   1024
#define DISTKV_VALUE_BYTES_MAX 1048576
#define DISTKV_KEYSPACES       16

enum distkv_code {
    DISTKV_OK = 0,
    DISTKV_NOT_FOUND = 1,
    DISTKV_CONFLICT = 2,        /* the condition was not met; nothing was written */
    DISTKV_INVALID = 3,         /* an argument is wrong */
    DISTKV_TOO_LARGE = 4,       /* key, value or batch over its limit */
    DISTKV_UNSUPPORTED = 5,     /* the server does not know this request */
    DISTKV_UNREACHABLE = 6,     /* no server could be reached; nothing was sent */
    DISTKV_TIMED_OUT = 7,       /* the deadline passed; nothing was written */
    DISTKV_UNKNOWN_OUTCOME = 8, /* the write may have been done, or may yet be */
    /* Refused until the deadline, or once too many were: docs/client.md; nothing was written. */
    DISTKV_OVERLOADED = 9,
    DISTKV_NO_SPACE = 10,     /* the server's disk is full */
    DISTKV_READ_ONLY = 11,    /* the server has stopped taking writes */
    DISTKV_SERVER_ERROR = 12, /* the server failed; the text says how */
    DISTKV_NO_MEMORY = 13,    /* the call or its reply: over the handle's memory_bytes_max */
    DISTKV_CROSS_SLOT = 14,   /* an atomic batch over several slots */
    DISTKV_CANCELED = 15,     /* the handle or scan was closed, or a snapshot's lease ran out */
    DISTKV_DENIED = 16,       /* not authenticated */
    DISTKV_END = 17,          /* no more entries */
    /* indexes fill the server's memory: it takes nothing but deletes until some were merged */
    DISTKV_FULL = 18
};

/* The name of a code, for example "NOT_FOUND"; and a sentence for it. Static storage. */
DISTKV_API const char *distkv_code_name(int code);
DISTKV_API const char *distkv_code_text(int code);
DISTKV_API const char *distkv_version(void);

/* ---- handles ---- */

typedef struct distkv distkv;

struct distkv_options {
    uint32_t timeout_ms;             /* of each call; 5000 */
    uint32_t connect_timeout_ms;     /* of one attempt to connect; 2000 */
    uint32_t reconnect_min_ms;       /* first pause before the next attempt; 10 */
    uint32_t reconnect_max_ms;       /* pauses double up to this; 1000 */
    uint32_t connections_per_server; /* 1 to 64; 1 */
    uint32_t keyspace;               /* 0 to 15; 0 */
    uint64_t memory_bytes_max;       /* of the handle: pending calls, replies; 256 MiB */
    const char *client_name;         /* shown by the server; "libdistkv" */
    const char *user, *password;     /* NULL: none */
    int no_write_retry;              /* lost writes are reported at once as UNKNOWN_OUTCOME */
    uint32_t consistency;            /* enum distkv_consistency; DISTKV_DEFAULT */
    int no_routing;                  /* requests go to the servers that are named, and no others */
    uint32_t reserved[6];            /* zero */
};

/* How many replicas a read or a write of keys waits for, in a cluster. */
enum distkv_consistency {
    DISTKV_DEFAULT = 0, /* the keyspace's quorums */
    DISTKV_ONE = 1,
    DISTKV_QUORUM = 2, /* more than half */
    DISTKV_ALL = 3
};

/* Sets the defaults. Always begin with it. */
DISTKV_API void distkv_options_init(struct distkv_options *options);

/* Connects to "host:port" or several of them, separated by commas ("[::1]:8080" for IPv6; the port
 * may be left out: 8080). Returns as soon as one answers; DISTKV_UNREACHABLE when each has failed
 * once, DISTKV_DENIED when one of them refused the user or the password. options may be NULL; error
 * (DISTKV_ERROR_BYTES, may be NULL) receives a sentence. */
DISTKV_API int distkv_connect(const char *servers, const struct distkv_options *options,
                              distkv **out, char *error);
/* Pending calls end with DISTKV_CANCELED (writes that were sent: DISTKV_UNKNOWN_OUTCOME). NULL is
 * allowed. */
DISTKV_API void distkv_close(distkv *kv);
/* A sentence about the last blocking call that failed, or about the last asynchronous one that was
 * refused. Valid until the next call on the handle. */
DISTKV_API const char *distkv_error(const distkv *kv);
DISTKV_API void distkv_set_timeout(distkv *kv, uint32_t timeout_ms);
/* DISTKV_INVALID when out of range. */
DISTKV_API int distkv_set_keyspace(distkv *kv, uint32_t keyspace);
/* In a cluster: the number of the keyspace of this name. DISTKV_NOT_FOUND. A blocking call. */
DISTKV_API int distkv_keyspace_find(distkv *kv, const char *name, uint32_t *keyspace_out);
/* Of the calls from now on. DISTKV_INVALID when out of range. */
DISTKV_API int distkv_set_consistency(distkv *kv, uint32_t consistency);

struct distkv_server_info {
    char server[128]; /* the address connected to */
    char node_id[256];
    char version[256];
    uint64_t run_id;
    uint64_t epoch;
    uint32_t shards; /* of this node */
    uint32_t nodes;  /* of the cluster */
    uint32_t partitions;
    uint32_t in_flight_max;
    uint32_t idempotency_ms;
};

/* What a connected server said at the handshake; DISTKV_UNREACHABLE when there is none now. */
DISTKV_API int distkv_server(const distkv *kv, struct distkv_server_info *out);

/* ---- blocking calls ---- */

struct distkv_value {
    void *data; /* distkv_value_free; a zero byte follows the last one */
    size_t size;
    uint64_t version;
    uint64_t expire_ms; /* Unix time in milliseconds; 0: never */
};

DISTKV_API void distkv_value_free(struct distkv_value *value);
DISTKV_API void distkv_free(void *memory);

enum distkv_condition {
    DISTKV_ALWAYS = 0,
    DISTKV_IF_ABSENT = 1,
    DISTKV_IF_PRESENT = 2,
    DISTKV_IF_VERSION = 3 /* the key is there with exactly this version */
};

enum distkv_expiry {
    DISTKV_EXPIRE_NEVER = 0,
    DISTKV_EXPIRE_AFTER = 1, /* milliseconds from now */
    DISTKV_EXPIRE_AT = 2,    /* Unix time in milliseconds */
    DISTKV_EXPIRE_KEEP = 3   /* as the key has it now */
};

/* NULL instead of a pointer to it: always, never. */
struct distkv_write {
    int condition;    /* enum distkv_condition */
    uint64_t version; /* for DISTKV_IF_VERSION */
    int expiry;       /* enum distkv_expiry */
    uint64_t expiry_ms;
};

DISTKV_API int distkv_get(distkv *kv, const void *key, size_t key_size, struct distkv_value *out);
/* version_out may be NULL. On DISTKV_CONFLICT it receives the version that is there (0: no key). */
DISTKV_API int distkv_put(distkv *kv, const void *key, size_t key_size, const void *value,
                          size_t value_size, const struct distkv_write *write,
                          uint64_t *version_out);
/* Deleting a key that is not there is DISTKV_OK; with DISTKV_IF_PRESENT it is DISTKV_CONFLICT.
 * expiry must be 0. */
DISTKV_API int distkv_delete(distkv *kv, const void *key, size_t key_size,
                             const struct distkv_write *write);
/* remaining_ms_out: -1 when the key never expires. */
DISTKV_API int distkv_ttl(distkv *kv, const void *key, size_t key_size, int64_t *remaining_ms_out);
/* expiry: NEVER (takes it away), AFTER or AT. */
DISTKV_API int distkv_expire(distkv *kv, const void *key, size_t key_size, int expiry,
                             uint64_t expiry_ms);
/* Keys of the keyspace; exact may read all of it, else the figure is an estimate. */
DISTKV_API int distkv_count(distkv *kv, int exact, uint64_t *count_out);
/* The server's state as one JSON object; free with distkv_free. */
DISTKV_API int distkv_status(distkv *kv, char **json_out);
DISTKV_API int distkv_ping(distkv *kv);

/* ---- siblings ----
 *
 * In a keyspace of a cluster that keeps siblings concurrent writes of a key are all kept. A read
 * returns them with a context, which is what the reader has seen; a write that brings it back
 * replaces exactly that. Elsewhere: DISTKV_UNSUPPORTED. */

struct distkv_sibling {
    const void *data; /* a zero byte follows the last one */
    size_t size;
    uint64_t version;
};

struct distkv_siblings {
    uint64_t version; /* of all of it; 0: nothing was ever written */
    const void *context;
    size_t context_size;
    struct distkv_sibling *values;
    size_t count; /* 0: the key is absent, or deleted; the context counts all the same */
    void *memory; /* of all of these: distkv_siblings_free */
};

DISTKV_API int distkv_get_siblings(distkv *kv, const void *key, size_t key_size,
                                   struct distkv_siblings *out);
DISTKV_API void distkv_siblings_free(struct distkv_siblings *siblings);
/* context may be NULL with 0: nothing was seen, so the value stands beside what is there. At most
 * 32 siblings, and 128 KiB of all together: DISTKV_TOO_LARGE. version_out may be NULL. */
DISTKV_API int distkv_put_siblings(distkv *kv, const void *key, size_t key_size, const void *value,
                                   size_t value_size, const void *context, size_t context_size,
                                   uint64_t *version_out);
DISTKV_API int distkv_delete_siblings(distkv *kv, const void *key, size_t key_size,
                                      const void *context, size_t context_size);

/* ---- operating a cluster ---- */

enum distkv_cluster_function {
    DISTKV_CLUSTER_STATUS = 1,
    DISTKV_CLUSTER_RING = 2,
    DISTKV_CLUSTER_REMOVE = 3, /* node, dead, force, undo */
    DISTKV_CLUSTER_WEIGHT = 4, /* node, weight */
    DISTKV_CLUSTER_REPAIR = 5, /* node, or NULL for all */
    DISTKV_CLUSTER_KEYSPACES = 6,
    DISTKV_CLUSTER_KEYSPACE_SET = 7, /* name, what it is to be, create */
    DISTKV_CLUSTER_KEYSPACE_FIND = 8,
    DISTKV_CLUSTER_DRAIN = 9 /* node, undo */
};

#define DISTKV_KEYSPACE_ANY 65535

struct distkv_cluster_request {
    int function;     /* enum distkv_cluster_function */
    const char *node; /* id */
    int dead;         /* REMOVE: it is gone for good */
    int undo;         /* DRAIN, REMOVE: it is not to leave any more */
    uint32_t weight;
    /* KEYSPACE_SET; zeros: as it is, or as keyspace 0 is */
    const char *name;
    int create;
    uint32_t keyspace; /* create: its number, or DISTKV_KEYSPACE_ANY */
    uint32_t replicas, write_quorum, read_quorum;
    int siblings; /* create: concurrent writes are kept as siblings */
    int force;    /* REMOVE: though fewer nodes are left than a key has replicas */
    int sloppy; /* KEYSPACE_SET: other nodes stand in for replicas that are gone; -1: they do not */
};

/* json_out (may be NULL): one object, free with distkv_free. number_out (may be NULL): of the
 * keyspace (KEYSPACE_SET, _FIND), else the epoch of the topology. A change whose reply is lost is
 * not sent again: DISTKV_UNKNOWN_OUTCOME. */
DISTKV_API int distkv_cluster(distkv *kv, const struct distkv_cluster_request *request,
                              char **json_out, uint64_t *number_out);

/* ---- batches ---- */

typedef struct distkv_batch distkv_batch;

/* NULL: no memory. */
DISTKV_API distkv_batch *distkv_batch_new(void);
DISTKV_API void distkv_batch_free(distkv_batch *batch);
DISTKV_API void distkv_batch_clear(distkv_batch *batch);
/* DISTKV_OK, DISTKV_INVALID, DISTKV_TOO_LARGE (key, value, or 65,536 operations or 8 MiB in all),
 * DISTKV_NO_MEMORY. */
DISTKV_API int distkv_batch_put(distkv_batch *batch, const void *key, size_t key_size,
                                const void *value, size_t value_size,
                                const struct distkv_write *write);
DISTKV_API int distkv_batch_delete(distkv_batch *batch, const void *key, size_t key_size,
                                   const struct distkv_write *write);
DISTKV_API size_t distkv_batch_count(const distkv_batch *batch);
/* How many slots the keys fall into: with one the batch is atomic. Keys that share a hash tag
 * ("{user7}name", "{user7}mail") share a slot. */
DISTKV_API size_t distkv_batch_slots(const distkv_batch *batch);
/* All operations or none: DISTKV_CROSS_SLOT when the keys fall into several slots. */
DISTKV_API int distkv_batch_commit(distkv *kv, const distkv_batch *batch);
/* One atomic batch for each slot, pipelined: the operations of one slot are done as a whole or not
 * at all. done_out (may be NULL) receives how many operations were done for certain; the code is
 * that of the first part that failed. The call has one deadline for all of them: parts that were not
 * sent by then are not sent any more (DISTKV_TIMED_OUT). */
DISTKV_API int distkv_batch_commit_parts(distkv *kv, const distkv_batch *batch, size_t *done_out);

/* The Redis Cluster slot of a key, 0 to 16383. */
DISTKV_API uint32_t distkv_slot(const void *key, size_t key_size);

/* ---- scans ---- */

typedef struct distkv_scan distkv_scan;

struct distkv_scan_options {
    const void *prefix; /* or NULL; not together with match */
    size_t prefix_size;
    const char *match; /* a glob as Redis' MATCH, or NULL */
    int keys_only;
    int snapshot;          /* one state of the whole keyspace, as of distkv_scan_open */
    uint64_t limit;        /* entries in all; 0: no limit */
    uint32_t page_entries; /* 0: 1000 */
    uint32_t reserved[8];  /* zero */
};

struct distkv_entry {
    const void *key;
    size_t key_size;
    const void *value; /* keys_only: NULL, and the size is the value's */
    size_t value_size;
    uint64_t version;
    uint64_t expire_ms;
};

/* Entries come in the order of their tokens (of their hashes), within a hash tag in byte order. The
 * next page is fetched while the caller works on this one. options may be NULL. */
DISTKV_API int distkv_scan_open(distkv *kv, const struct distkv_scan_options *options,
                                distkv_scan **out);
/* DISTKV_END behind the last. The entry's bytes live until the next call. After an error: close. */
DISTKV_API int distkv_scan_next(distkv_scan *scan, struct distkv_entry *out);
/* Before distkv_close. From within a callback it does not wait; a snapshot's lease ends by itself
 * then. A distkv_scan_next that this callback runs in says DISTKV_CANCELED, and is the last. */
DISTKV_API void distkv_scan_close(distkv_scan *scan);

/* ---- asynchronous calls ---- */

struct distkv_result {
    int code;          /* enum distkv_code */
    const char *error; /* "" when ok */
    uint64_t version;  /* of what was written or read; CONFLICT: of what is there */
    uint64_t expire_ms;
    int64_t remaining_ms; /* ttl: -1 when the key never expires */
    const void *value;    /* get, ping, status; lives until the callback returns */
    size_t value_size;
    unsigned attempts; /* how often it was sent */
    int replayed;      /* the server had done it at an earlier attempt */
};

typedef void (*distkv_callback)(void *arg, const struct distkv_result *result);

DISTKV_API int distkv_get_async(distkv *kv, const void *key, size_t key_size,
                                distkv_callback callback, void *arg);
DISTKV_API int distkv_put_async(distkv *kv, const void *key, size_t key_size, const void *value,
                                size_t value_size, const struct distkv_write *write,
                                distkv_callback callback, void *arg);
DISTKV_API int distkv_delete_async(distkv *kv, const void *key, size_t key_size,
                                   const struct distkv_write *write, distkv_callback callback,
                                   void *arg);
DISTKV_API int distkv_batch_commit_async(distkv *kv, const distkv_batch *batch,
                                         distkv_callback callback, void *arg);
DISTKV_API int distkv_ttl_async(distkv *kv, const void *key, size_t key_size,
                                distkv_callback callback, void *arg);
DISTKV_API int distkv_expire_async(distkv *kv, const void *key, size_t key_size, int expiry,
                                   uint64_t expiry_ms, distkv_callback callback, void *arg);
DISTKV_API int distkv_ping_async(distkv *kv, distkv_callback callback, void *arg);

/* One descriptor for poll, select or epoll: readable means that distkv_process has something to do
 * (deadlines included). It stays the same for the handle's life. */
DISTKV_API int distkv_fd(const distkv *kv);
/* Hands what was started to the kernel. Call it before waiting on distkv_fd elsewhere;
 * distkv_process and blocking calls do it themselves. */
DISTKV_API void distkv_flush(distkv *kv);
/* Sends, receives, runs callbacks; waits for the first event up to timeout_ms (0: not at all,
 * -1: without limit while calls are pending). Returns how many callbacks were run; -1 when called
 * from a callback. */
DISTKV_API int distkv_process(distkv *kv, int timeout_ms);
/* Asynchronous calls whose callback is still to come. */
DISTKV_API size_t distkv_pending(const distkv *kv);

#ifdef __cplusplus
}
#endif

#endif
