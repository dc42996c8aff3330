/* SPDX-License-Identifier: MIT
 *
 * ring_fixture.h -- runs a function as shard_main of a real node, in tests of the ring backend.
 * cmocka's assertions jump and must not be used on a fiber: there, EXPECT counts a failure, and
 * ring_run_main reports the count to the test's own thread.
 */
#ifndef DISTKV_TESTS_RING_FIXTURE_H
#define DISTKV_TESTS_RING_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "io/io.h"

static _Atomic u32 ring_failures;

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition);               \
            atomic_fetch_add(&ring_failures, 1);                                                   \
        }                                                                                          \
    } while (0)

static inline struct io_node_config
ring_config(u32 shard_count, status (*fn)(void *arg), void *arg)
{
    return (struct io_node_config){.shard_count = shard_count,
                                   .memory_bytes = MIB(64) * shard_count,
                                   .spin_us = 20,
                                   .stall_ms = 0,
                                   .shard_main = fn,
                                   .arg = arg};
}

static inline status
ring_run_config(const struct io_node_config *config)
{
    atomic_store(&ring_failures, 0);
    struct io_node *node;
    status st = io_node_start(config, &node);
    if (!ok(st)) return st;
    st = io_node_join(node);
    assert_int_equal(atomic_load(&ring_failures), 0);
    return st;
}

static inline void
ring_run_main(u32 shard_count, status (*fn)(void *arg), void *arg)
{
    struct io_node_config config = ring_config(shard_count, fn, arg);
    status st = ring_run_config(&config);
    assert_int_equal(st.code, SC_OK);
}

#endif
