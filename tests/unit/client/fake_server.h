/* SPDX-License-Identifier: MIT
 *
 * fake_server.h -- a server in a thread of the test: keeps keys in memory, speaks the native
 * protocol through the production codec, and misbehaves on demand.
 */
#ifndef TESTS_FAKE_SERVER_H
#define TESTS_FAKE_SERVER_H

#include "base/types.h"

#include <pthread.h>
#include <stdatomic.h>

#define FAKE_ENTRIES_MAX 4096
#define FAKE_IDS         8192

struct fake_entry {
    u8 key[64];
    size_t key_size;
    u8 *value;
    size_t value_size;
    u64 version;
    u64 expire_ms;
    u64 token;
};

struct fake_server;

/* Servers that say that they are one cluster: of partition p server p % count is the first. */
struct fake_cluster {
    u32 count;
    struct fake_server *members[8];
    atomic_uint epoch;
    u64 id; /* 0: HELLO does not tell it */
};

struct fake_server {
    pthread_t thread;
    int listen_fd;
    int wake_fd;
    int port;
    char address[32]; /* "127.0.0.1:port" */
    /* how it is to misbehave; set at any time */
    atomic_int drop_before_writes; /* close instead of doing the next n writes */
    atomic_int drop_after_writes;  /* do the next n writes, then close without a reply; changes of
                                    * the cluster are some */
    atomic_int drop_gets;          /* close instead of answering the next n GETs */
    atomic_int overload;           /* refuse the next n requests */
    atomic_int no_room;            /* refuse the next n writes, for indexes fill its memory */
    atomic_int close_writes;       /* ask for another connection at the next n writes */
    atomic_int silent;             /* answer nothing but HELLO */
    atomic_int mute;               /* not even that */
    atomic_int full;               /* refuse the next n connections, as above maxclients */
    atomic_int stands;             /* do nothing at all: what comes lies in the sockets */
    atomic_int slow_us;            /* before each 64 KiB that it reads of a connection made since */
    atomic_int hold_replies;    /* keep replies back until n are there, then send them reversed */
    atomic_int damage;          /* flip a bit in the next n replies */
    atomic_int protocol, flags; /* not 0: of its frames, and flags that they have besides */
    atomic_uint idempotency_ms; /* as told at HELLO */
    atomic_ullong run_id;
    _Atomic(const char *) password; /* NULL: none is asked for; the user is "default" or none */
    atomic_int pages;               /* entries of a scan's page at most; 0: as asked */
    /* NULL: as a server that knows no TOPOLOGY */
    _Atomic(struct fake_cluster *) cluster;
    u32 member;         /* its index there */
    atomic_uint claims; /* an epoch that its replies name and TOPOLOGY does not have */
    atomic_uint shards; /* that TOPOLOGY says each member has, with a port each; 0: none do */
    /* what it has seen */
    atomic_int topologies, keyed, elsewhere; /* elsewhere: whose key another one is first of */
    atomic_int ended;                        /* connections, by their clients or by it */
    atomic_int connections, hellos, writes_done, writes_replayed, cluster_changes, requests;
    atomic_uint last_timeout_ms, last_write_age_ms, last_level;
    /* the thread's own */
    struct fake_entry entries[FAKE_ENTRIES_MAX];
    u32 count;
    u64 version;
    u64 ids[FAKE_IDS][2]; /* the latest */
    u64 id_versions[FAKE_IDS];
    u32 id_count; /* of all there were */
};

/* port 0: any. Crashes the test when it cannot. */
struct fake_server *fake_server_start(int port);
void fake_server_stop(struct fake_server *server);

#endif
