/* SPDX-License-Identifier: MIT
 *
 * native.h -- the native protocol: frames, requests and replies. Pure: bytes to structs and back.
 *
 * A connection carries frames in both directions. Each frame is a header of 48 bytes, little-endian
 * as everything here, and a body of at most NATIVE_BODY_BYTES_MAX:
 *
 *   offset size
 *        0    4  magic: D5 44 4B 56. The first byte begins no RESP command and no inline command.
 *        4    1  version: 1
 *        5    1  opcode
 *        6    2  flags
 *        8    8  request id: chosen by the client, comes back in the reply
 *       16    8  topology epoch: the sender's; 0 when it knows none
 *       24    4  timeout: milliseconds that the client still waits, counted from when the frame
 *                arrives (clocks of two machines are never compared); 0 for no deadline
 *       28    4  body size
 *       32    2  keyspace, 0 to 15
 *       34    2  status; 0 in requests
 *       36    4  CRC32C of the body
 *       40    4  age: milliseconds since this write was first sent, at least 1 when it is sent
 *                again; 0 for a first attempt and for everything that is no write
 *       44    4  CRC32C of bytes 0 to 43: the length can be trusted before the body is here
 *
 * Replies carry the request's opcode and id, may come in any order, and exactly one comes for each
 * request. A client pipelines up to the number of requests that the server names at HELLO. An id
 * must not be in flight twice.
 *
 * Three kinds of fault. A frame that fails its check (magic, CRC, size) is ST_CORRUPT: nothing
 * after it can be trusted; the server answers NATIVE_BAD_FRAME with request id 0 and closes. A good
 * frame of a version, opcode or flag that is not known here is ST_UNSUPPORTED and can be skipped. A
 * good frame whose body does not read as its opcode demands is ST_INVALID; both are answered, and
 * the connection goes on.
 *
 * Writes carry an idempotency id of 128 bits (all zero: none). A server that has answered it within
 * native_hello_reply.idempotency_ms gives the same answer again (flag REPLAYED) and does nothing. A
 * server that meets an unknown id with an age, and may have forgotten ids younger than that, must
 * answer NATIVE_ST_UNKNOWN_OUTCOME: it cannot tell whether the first attempt was done. One that
 * meets a first attempt, and may have forgotten that a retry did it, answers NATIVE_ST_CLOSING.
 *
 * docs/native-protocol.md describes each body byte by byte.
 */
#ifndef DISTKV_PROTO_NATIVE_H
#define DISTKV_PROTO_NATIVE_H

#include "base/buf.h"
#include "base/limits.h"
#include "base/status.h"

#define NATIVE_MAGIC        0x564b44d5u /* D5 'D' 'K' 'V' as bytes */
#define NATIVE_FIRST_BYTE   0xd5u
#define NATIVE_VERSION      1u
#define NATIVE_HEADER_BYTES 48u
/* A frame with its header: what decoders take. Frames between nodes (proto/peer.h) may be as large;
 * a request or reply leaves room for what a node puts around it when it sends it on to another. */
#define NATIVE_FRAME_BYTES_MAX (16u << 20)
#define NATIVE_BODY_BYTES_MAX  (NATIVE_FRAME_BYTES_MAX - 4096u - NATIVE_HEADER_BYTES)
/* Names, ids, hosts, credentials in HELLO. */
#define NATIVE_NAME_BYTES_MAX       255u
#define NATIVE_NODES_MAX            1024u
#define NATIVE_PATTERN_BYTES_MAX    LIMIT_KEY_BYTES
#define NATIVE_ERROR_TEXT_BYTES_MAX 512u

static_assert(NATIVE_BODY_BYTES_MAX >= LIMIT_BATCH_BYTES + (1u << 20),
              "a largest batch fits in a frame");
static_assert(NATIVE_BODY_BYTES_MAX >= LIMIT_VALUE_BYTES + LIMIT_KEY_BYTES + 256,
              "a largest entry fits in a frame");
static_assert(NATIVE_BODY_BYTES_MAX == 16773072, "docs/native-protocol.md names it");

/* The numbers are the protocol's. */
#define NATIVE_OPCODE_LIST(X)                                                                      \
    X(HELLO, 1)                                                                                    \
    X(PING, 2)                                                                                     \
    X(GET, 3)                                                                                      \
    X(PUT, 4)                                                                                      \
    X(DELETE, 5)                                                                                   \
    X(BATCH, 6)                                                                                    \
    X(SCAN, 7)                                                                                     \
    X(SNAPSHOT_OPEN, 8)                                                                            \
    X(SNAPSHOT_CLOSE, 9)                                                                           \
    X(TTL, 10)                                                                                     \
    X(EXPIRE, 11)                                                                                  \
    X(COUNT, 12)                                                                                   \
    X(STATUS, 13)                                                                                  \
    X(GET_SIBLINGS, 14)                                                                            \
    X(PUT_SIBLINGS, 15)                                                                            \
    X(CLUSTER, 16)                                                                                 \
    X(TOPOLOGY, 17)

enum native_opcode {
#define X(name, number) NATIVE_##name = number,
    NATIVE_OPCODE_LIST(X)
#undef X
};
#define NATIVE_OPCODE_MAX 17u

enum native_flags {
    NATIVE_FLAG_REPLY = 1 << 0,
    NATIVE_FLAG_REPLAYED = 1 << 1, /* reply: the write was done before, under the same id */
};
/* Bits 2 and 3 of a request: how many replicas it waits for, in a cluster. */
enum native_level {
    NATIVE_LEVEL_DEFAULT = 0, /* the keyspace's W and R */
    NATIVE_LEVEL_ONE = 1,
    NATIVE_LEVEL_QUORUM = 2,
    NATIVE_LEVEL_ALL = 3,
};
/* In a cluster: a write that was sent to one node is not sent to another one sooner. */
#define NATIVE_ELSEWHERE_MS 3000u

#define NATIVE_LEVEL_SHIFT 2u
#define NATIVE_LEVEL_MASK  (3u << NATIVE_LEVEL_SHIFT)
#define NATIVE_FLAGS_KNOWN (NATIVE_FLAG_REPLY | NATIVE_FLAG_REPLAYED | NATIVE_LEVEL_MASK)
static inline enum native_level
native_level_of(u16 flags)
{
    return (enum native_level)((flags & NATIVE_LEVEL_MASK) >> NATIVE_LEVEL_SHIFT);
}

/* Status of a reply. The numbers are the protocol's; the third column is what this process calls
 * it, the fourth whether the same request may be sent again as it is (the write was not done). */
#define NATIVE_STATUS_LIST(X)                                                                      \
    X(OK, 0, OK, false)                                                                            \
    X(NOT_FOUND, 1, NOT_FOUND, false)                                                              \
    X(CONFLICT, 2, CONFLICT, false)       /* detail: the version that is there, 0: no key */       \
    X(INVALID, 3, INVALID, false)         /* the request's fault; the text says what */            \
    X(TOO_LARGE, 4, TOO_LARGE, false)     /* detail: the limit in bytes */                         \
    X(UNSUPPORTED, 5, UNSUPPORTED, false) /* opcode, version or option unknown here */             \
    X(BAD_FRAME, 6, CORRUPT, false)       /* the connection is closed after it */                  \
    X(OVERLOADED, 7, OVERLOADED, true)    /* detail: milliseconds to wait, or 0 */                 \
    X(TIMED_OUT, 8, TIMED_OUT, false)     /* not begun when the deadline passed: not done */       \
    X(NO_SPACE, 9, NO_SPACE, false)                                                                \
    X(NO_MEMORY, 10, NO_MEMORY, true)                                                              \
    X(READ_ONLY, 11, READ_ONLY, false)                                                             \
    X(IO_ERROR, 12, IO_ERROR, false)                                                               \
    X(DAMAGED, 13, CORRUPT, false) /* the stored bytes failed their check */                       \
    X(UNKNOWN_OUTCOME, 14, UNKNOWN_OUTCOME, false)                                                 \
    X(CROSS_SLOT, 15, INVALID, false)     /* an atomic batch over several slots */                 \
    X(CLOSING, 16, CLOSED, true)          /* nothing was done; use another connection */           \
    X(SNAPSHOT_GONE, 17, CANCELED, false) /* its lease ran out, or it never was */                 \
    X(UNAUTHENTICATED, 18, INVALID, false)                                                         \
    X(WRONG_EPOCH, 19, WOULD_WAIT, true)  /* detail: the server's epoch; say HELLO again */        \
    X(UNAVAILABLE, 20, UNAVAILABLE, true) /* too few replicas can be reached; nothing was done */  \
    X(FULL, 21, FULL, false)              /* not done; deletes are, until there is memory again */

enum native_status {
#define X(name, number, code, again) NATIVE_ST_##name = number,
    NATIVE_STATUS_LIST(X)
#undef X
};
#define NATIVE_ST_MAX 21u

bool native_opcode_known(u32 opcode);
const char *native_opcode_name(u32 opcode);        /* "GET"; "?" when unknown */
const char *native_status_name(u32 native_status); /* "NOT_FOUND"; "?" when unknown */
status native_status_to_base(u32 native_status);   /* unknown ones: ST_UNSUPPORTED */
/* For a server: what to send for a status of the layers below. */
enum native_status native_status_of(status st);
/* The server says that nothing was done and the same request may be sent again. */
bool native_status_retryable(u32 native_status);
/* Opcodes that change data: they carry an idempotency id. */
bool native_opcode_writes(u32 opcode);

/* ---- frames ---- */

struct native_header {
    u8 version; /* of a frame that came; what is encoded has NATIVE_VERSION */
    u8 opcode;  /* enum native_opcode once decoded as known */
    u16 flags;
    u64 request_id;
    u64 epoch;
    u32 timeout_ms;
    u32 body_size;
    u16 keyspace;
    u16 status; /* enum native_status */
    u32 body_crc;
    u32 age_ms;
};

/* Reads and checks a header. ST_INCOMPLETE under 48 bytes (ST_CORRUPT as soon as the magic cannot
 * match any more), ST_CORRUPT for magic, CRC, size over the limit, reserved bits. ST_UNSUPPORTED
 * (the header is set: the frame can be skipped and answered): another version, or unknown flags. */
MUST_CHECK status native_header_decode(struct bytes data, struct native_header *out);
/* Reads a whole frame; the body points into data and its CRC is checked. ST_INCOMPLETE: *wanted
 * bytes are needed at least. On ST_OK and ST_UNSUPPORTED *consumed is set. */
MUST_CHECK status native_frame_decode(struct bytes data, struct native_header *header,
                                      struct bytes *body, size_t *consumed, size_t *wanted);
MUST_CHECK bool native_body_check(const struct native_header *header, struct bytes body);

/* Appends a frame: begin, append the body to out, end (which fills in size and CRCs). *start_out is
 * where the frame begins in out. To give up: out->size = start. false: no memory. */
MUST_CHECK bool native_frame_begin(struct buf *out, const struct native_header *header,
                                   size_t *start_out);
void native_frame_end(struct buf *out, size_t start);
/* Changes what a client must bring up to date before it sends a finished frame once more. */
void native_frame_patch(u8 *frame, u64 epoch, u32 timeout_ms, u32 age_ms);

/* ---- parts of requests ---- */

struct native_id {
    u64 word[2]; /* both 0: none */
};

static inline bool
native_id_given(const struct native_id *id)
{
    return (id->word[0] | id->word[1]) != 0;
}

enum native_condition {
    NATIVE_IF_ANY = 0,
    NATIVE_IF_ABSENT = 1,
    NATIVE_IF_PRESENT = 2,
    NATIVE_IF_VERSION = 3, /* the key is there with exactly this version */
};

enum native_expiry {
    NATIVE_EXPIRY_NONE = 0,  /* never expires; EXPIRE: takes an expiry away */
    NATIVE_EXPIRY_AFTER = 1, /* expiry_ms milliseconds from now, at least 1 */
    NATIVE_EXPIRY_AT = 2,    /* Unix time in milliseconds */
    NATIVE_EXPIRY_KEEP = 3,  /* as the key has it (PUT only) */
};

enum native_op_kind { NATIVE_OP_PUT = 1, NATIVE_OP_DELETE = 2 };

/* One write: the body of PUT and DELETE, and each operation of a BATCH. */
struct native_op {
    u8 kind;      /* enum native_op_kind */
    u8 condition; /* enum native_condition; a delete takes ANY, PRESENT, VERSION */
    u8 expiry;    /* enum native_expiry; NONE for a delete */
    u64 version;  /* for IF_VERSION, else 0 */
    u64 expiry_ms;
    struct bytes key;
    struct bytes value; /* empty for a delete */
};

/* A place in a scan: just behind (token, key). In (keyspace, token, key) order. */
struct native_position {
    bool given; /* false: from the first */
    u64 token;
    struct bytes key; /* may be empty: before the first key of the token */
};

enum native_scan_flags {
    NATIVE_SCAN_KEYS_ONLY = 1 << 0,
};
enum native_match { NATIVE_MATCH_ALL = 0, NATIVE_MATCH_PREFIX = 1, NATIVE_MATCH_GLOB = 2 };

/* What HELLO's two sides know. A server says only what the client has said, too, so that an older
 * client reads what it always read. */
enum native_features {
    NATIVE_FEATURE_TOPOLOGY = 1 << 0, /* TOPOLOGY, and the shard in HELLO's reply */
    NATIVE_FEATURE_PLACES = 1 << 1,   /* server: TOPOLOGY tells of more places than this address */
    NATIVE_FEATURE_CLUSTER = 1 << 2,  /* the cluster's id in HELLO's reply */
};

/* ---- CLUSTER: what operators ask ---- */

enum native_cluster_function {
    NATIVE_CLUSTER_STATUS = 1,
    NATIVE_CLUSTER_RING = 2,          /* who holds which partition */
    NATIVE_CLUSTER_REMOVE = 3,        /* node; DEAD, FORCE; or UNDO */
    NATIVE_CLUSTER_WEIGHT = 4,        /* node, weight */
    NATIVE_CLUSTER_REPAIR = 5,        /* node, or all */
    NATIVE_CLUSTER_KEYSPACES = 6,     /* lists them */
    NATIVE_CLUSTER_KEYSPACE_SET = 7,  /* name, what it is to be; CREATE */
    NATIVE_CLUSTER_KEYSPACE_FIND = 8, /* name */
    NATIVE_CLUSTER_DRAIN = 9,         /* node; UNDO */
};
enum native_cluster_flags {
    NATIVE_CLUSTER_DEAD = 1 << 0, /* REMOVE: it is gone for good, and does not give its data away */
    NATIVE_CLUSTER_CREATE = 1 << 1, /* KEYSPACE_SET: there is none of this name yet */
    NATIVE_CLUSTER_UNDO = 1 << 2,   /* DRAIN; REMOVE, without others: it is not to leave any more */
    NATIVE_CLUSTER_FORCE = 1 << 3,  /* REMOVE: though fewer are left than a key has replicas */
    /* KEYSPACE_SET; not both; neither: as it is, or as keyspace 0 is */
    NATIVE_CLUSTER_SLOPPY = 1 << 4,
    NATIVE_CLUSTER_NOT_SLOPPY = 1 << 5,
};
#define NATIVE_CLUSTER_NAME_BYTES_MAX 63u
#define NATIVE_CLUSTER_KEYSPACE_ANY   UINT16_MAX

struct native_cluster {
    u8 function; /* enum native_cluster_function */
    u8 flags;    /* enum native_cluster_flags */
    /* KEYSPACE_SET; N, W, R: 0 for what it has, or (a new one) for what keyspace 0 has */
    u8 conflict; /* 0 lww, 1 siblings */
    u8 replicas, write_quorum, read_quorum;
    u16 keyspace;            /* CREATE: its number, or KEYSPACE_ANY for one that is free */
    u32 weight;              /* WEIGHT */
    struct bytes node, name; /* ids and names; empty where the function takes none */
};

/* What the decoder demands; error may be NULL. */
MUST_CHECK status native_cluster_check(const struct native_cluster *cluster, const char **error);

/* ---- requests ---- */

struct native_request {
    struct native_header header; /* opcode tells which member; size and CRC are filled in */
    struct native_id id;         /* PUT, DELETE, BATCH, EXPIRE, PUT_SIBLINGS */
    union {
        struct {
            u8 version_min, version_max; /* protocol versions that the client speaks */
            u64 features;                /* enum native_features; unknown ones are not used */
            struct bytes client_name;    /* for people: "distkv-client 0.1.0" */
            struct bytes user, password; /* empty: none */
        } hello;
        struct {
            struct bytes payload; /* comes back; at most 4096 bytes */
        } ping;
        struct {
            struct bytes key;
        } get, ttl;          /* and GET_SIBLINGS */
        struct native_op op; /* PUT, DELETE */
        struct {
            u8 kind; /* enum native_op_kind */
            struct bytes key;
            struct bytes context; /* as a reply gave it; empty: nothing was seen */
            struct bytes value;   /* empty for a delete */
        } siblings;               /* PUT_SIBLINGS */
        struct {
            u32 count;        /* 1 to LIMIT_BATCH_OPS */
            struct bytes ops; /* checked whole; read with native_batch_next */
        } batch;
        struct {
            u64 snapshot; /* 0: the newest state, page by page */
            u64 token_first, token_last;
            struct native_position after;
            u32 entries_max; /* of this page, at least 1 */
            u32 bytes_max;   /* of this page's keys and values, about; at least one entry comes */
            u8 flags;        /* enum native_scan_flags */
            u8 match;        /* enum native_match */
            struct bytes pattern;
        } scan;
        struct {
            u32 lease_ms; /* closed when unused for so long; the server may give less */
        } snapshot_open;
        struct {
            u64 snapshot;
        } snapshot_close;
        struct {
            u8 expiry; /* NONE, AFTER, AT */
            u64 expiry_ms;
            struct bytes key;
        } expire;
        struct {
            bool exact;
        } count;
        struct native_cluster cluster;
        struct {
            u64 epoch; /* of what the client knows; 0: nothing */
        } topology;
    };
};

#define NATIVE_PING_BYTES_MAX    4096u
#define NATIVE_CONTEXT_BYTES_MAX 8192u

/* ST_INVALID: the body does not read as the opcode demands (key or value over the limits:
 * ST_TOO_LARGE). ST_UNSUPPORTED: unknown opcode, or unknown flags. Spans point into body. error,
 * when not NULL, receives a static sentence that says what is wrong. */
MUST_CHECK status native_request_decode(const struct native_header *header, struct bytes body,
                                        struct native_request *out, const char **error);
/* Appends the frame; false: no memory. What decode would refuse is a CHECK failure for enums and
 * a programmer's error for sizes: see native_op_check. */
MUST_CHECK bool native_request_encode(struct buf *out, const struct native_request *request);

/* What the decoder demands of an operation: ST_OK, ST_INVALID or ST_TOO_LARGE. */
MUST_CHECK status native_op_check(const struct native_op *op, const char **error);
/* Builds the ops of a batch. */
MUST_CHECK bool native_batch_add(struct buf *ops, const struct native_op *op);
/* Takes the next operation off *ops, which native_request_decode has checked; false at the end. */
bool native_batch_next(struct bytes *ops, struct native_op *out);

/* ---- replies ---- */

struct native_slot_range {
    u16 slot_first, slot_last; /* both included */
    u16 node;                  /* index into the nodes of the reply */
    u16 shard;                 /* of that node */
};

struct native_node {
    struct bytes id;
    struct bytes host; /* as a client can reach it; empty: the one that it has connected to */
    u16 port;
    u16 shard_count;
    u16 shard_port; /* TOPOLOGY: shard i listens at this + i, too; 0: there are no such ports */
};

struct native_hello_reply {
    u8 version; /* of the protocol, from now on */
    u8 shard;   /* that serves this connection, with FEATURE_TOPOLOGY; else 0 */
    u64 features;
    u64 run_id; /* another one after each start of the server: idempotency ids are forgotten */
    u64 connection_id;
    u64 cluster_id; /* with FEATURE_CLUSTER; 0: of none, or not known yet */
    u64 time_ms;    /* the server's wall clock */
    u32 key_bytes_max, value_bytes_max, batch_ops_max, batch_bytes_max, body_bytes_max;
    u32 in_flight_max;  /* requests of one connection; more wait in the socket */
    u32 idempotency_ms; /* how long a write's id is remembered; 0: not at all */
    u16 keyspaces;
    u32 partition_count;
    struct bytes node_id;        /* who answers */
    struct bytes server_version; /* "0.1.0" */
    /* the topology of header.epoch */
    u16 node_count;
    u32 range_count;
    struct bytes nodes;  /* checked; native_hello_node */
    struct bytes ranges; /* checked; native_hello_range; ascending, each slot in one of them */
};

/* Where requests go straight: of each partition the nodes that run its requests, the first that
 * lives before the others. Whoever is asked forwards what it does not run. */
#define NATIVE_TOPOLOGY_WIDTH_MAX 3u
#define NATIVE_TOPOLOGY_NOBODY    UINT16_MAX
struct native_topology_reply {
    u64 epoch;
    u16 node_count; /* 0, like all below: nothing is newer than what the client knows */
    u8 width;       /* nodes of a partition */
    u32 partition_count;
    struct bytes nodes; /* checked; native_hello_next_node */
    struct bytes rows;  /* checked; native_topology_node */
};

struct native_scan_entry {
    u64 version;
    u64 expire_ms; /* Unix time; 0: never */
    struct bytes key;
    struct bytes value; /* KEYS_ONLY: data is NULL, size is the value's */
    bool has_value;
};

struct native_reply {
    struct native_header header; /* status tells whether a member or the error is set */
    struct {
        u64 detail;
        struct bytes text;
    } error; /* status other than OK */
    union {
        struct native_hello_reply hello;
        struct {
            struct bytes payload;
        } ping;
        struct {
            u64 version;
            u64 expire_ms;
            struct bytes value;
        } get;
        struct {
            u64 version; /* of the entry written (BATCH: the last one's; DELETE: the tombstone's) */
            bool existed; /* DELETE: there was a live key. Without a condition a delete may be
                             blind: then false, and NATIVE_ST_OK either way */
        } written;        /* PUT, DELETE, BATCH, EXPIRE, PUT_SIBLINGS */
        struct {
            u64 version;          /* of the key's state; 0: it never was */
            struct bytes context; /* of all that is returned, and of what was deleted */
            u32 count;
            struct bytes values; /* checked whole; read with native_sibling_next */
        } siblings;              /* GET_SIBLINGS */
        struct {
            u64 version;
            u64 expire_ms;    /* Unix time; 0: never */
            u64 remaining_ms; /* by the server's clock; 0 with expire_ms 0 */
        } ttl;
        struct {
            bool more;                   /* there may be more behind next; a page may be empty */
            struct native_position next; /* given exactly when more */
            u32 count;
            struct bytes entries; /* checked whole; read with native_scan_next */
        } scan;
        struct {
            u64 snapshot;
            u32 lease_ms;
            u64 time_ms; /* the server's clock when it was taken */
        } snapshot_open;
        struct {
            u64 count;
            bool exact;
        } count;
        struct {
            struct bytes json; /* one object, UTF-8 */
        } status;
        struct {
            u64 number; /* KEYSPACE_SET, KEYSPACE_FIND: the keyspace's; else the topology's epoch */
            struct bytes json; /* one object, UTF-8 */
        } cluster;
        struct native_topology_reply topology;
    };
};

/* Client side: reads the reply to a request of header->opcode. ST_INVALID, ST_UNSUPPORTED. */
MUST_CHECK status native_reply_decode(const struct native_header *header, struct bytes body,
                                      struct native_reply *out);
/* Server side. For HELLO and TOPOLOGY give what native_hello_add_*, native_topology_add_* built,
 * for SCAN the entries
 * built with native_scan_add. */
MUST_CHECK bool native_reply_encode(struct buf *out, const struct native_reply *reply);
/* The short way to an error reply to request; text is cut at 512 bytes. */
MUST_CHECK bool native_reply_error(struct buf *out, const struct native_header *request,
                                   enum native_status native_status, u64 detail, u64 epoch,
                                   const char *text);
/* The header of the reply to request. */
struct native_header native_reply_header(const struct native_header *request, u64 epoch);

MUST_CHECK bool native_hello_add_node(struct buf *nodes, const struct native_node *node);
MUST_CHECK bool native_hello_add_range(struct buf *ranges, const struct native_slot_range *range);
bool native_hello_next_node(struct bytes *nodes, struct native_node *out);
bool native_hello_next_range(struct bytes *ranges, struct native_slot_range *out);
MUST_CHECK bool native_topology_add_node(struct buf *nodes, const struct native_node *node);
/* Row by row; NATIVE_TOPOLOGY_NOBODY at the end of one that is shorter. */
MUST_CHECK bool native_topology_add_place(struct buf *rows, u16 node);
/* Of a reply that was decoded. */
u16 native_topology_node(const struct native_topology_reply *topology, u32 partition, u32 place);
/* !entry->has_value: only the value's size is sent. */
MUST_CHECK bool native_scan_add(struct buf *entries, const struct native_scan_entry *entry);
bool native_scan_next(struct bytes *entries, struct native_scan_entry *out);

struct native_sibling {
    u64 version;
    struct bytes value;
};
MUST_CHECK bool native_sibling_add(struct buf *values, const struct native_sibling *sibling);
bool native_sibling_next(struct bytes *values, struct native_sibling *out);

/* Bytes that an entry takes in a SCAN page, for the server's account. */
static inline size_t
native_scan_entry_bytes(size_t key_size, size_t value_size)
{
    return 1 + 2 + 4 + 8 + 8 + key_size + value_size;
}

#endif
