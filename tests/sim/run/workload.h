/* SPDX-License-Identifier: MIT
 *
 * workload.h -- the actions that a run weighs.
 */
#ifndef DISTKV_TESTS_SIM_RUN_WORKLOAD_H
#define DISTKV_TESTS_SIM_RUN_WORKLOAD_H

#include <stdio.h>

#include "client.h"

enum action {
    ACTION_GET,
    ACTION_PUT,
    ACTION_PUT_IF,
    ACTION_DELETE,
    ACTION_GETDEL,
    ACTION_GROW,
    ACTION_EXPIRE,
    ACTION_MGET,
    ACTION_MSET,
    ACTION_DEL_N,
    ACTION_MSETNX,
    ACTION_MOVE,
    ACTION_EXEC,
    ACTION_SWAP,
    ACTION_SCAN,
    ACTION_KEYS,
    ACTION_COUNT_KEYS,
    ACTION_FLUSH,
    ACTION_CONFIG,
    ACTION_OTHER,
    ACTION_BATCH,
    ACTION_SNAPSHOT,
    ACTION_COUNT
};
extern const char *const action_names[ACTION_COUNT];

#endif
