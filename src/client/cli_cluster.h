/* SPDX-License-Identifier: MIT
 *
 * cli_cluster.h -- what the files of "distkv-client cluster" share: cli_cluster.c asks, and shows
 * what there is; cli_cluster_change.c has things done, and waits for them.
 */
#ifndef DISTKV_CLIENT_CLI_CLUSTER_H
#define DISTKV_CLIENT_CLI_CLUSTER_H

#include <jansson.h>
#include <string.h>

#include "client/cli.h"

/* ---- fields of an object: "?", 0 and false where there are none ---- */

static inline const char *
text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text == NULL ? "?" : text;
}

static inline long long
number_of(const json_t *object, const char *name)
{
    return (long long)json_integer_value(json_object_get(object, name));
}

static inline bool
has(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return value != NULL && !json_is_null(value);
}

static inline bool
is_true(const json_t *object, const char *name)
{
    return json_is_true(json_object_get(object, name));
}

/* ---- cli_cluster.c ---- */

/* A message; the exit code for a code of distkv_cluster. */
int cli_cluster_fail(struct cli *cli, const struct distkv_cluster_request *request, int code,
                     const char *what);
/* The reply to a request as an object, to be given back; NULL after a message, with *exit_out. */
json_t *cli_cluster_ask(struct cli *cli, const struct distkv_cluster_request *request,
                        const char *what, int *exit_out);
json_t *cli_cluster_ask_status(struct cli *cli, int *exit_out);
/* NULL without a word. */
json_t *cli_cluster_try_status(struct cli *cli);
/* Of what that says. NULL: there is none. */
const json_t *cli_cluster_member(const json_t *cluster, const char *field, const char *text);
const json_t *cli_cluster_member_by_number(const json_t *cluster, long long number);
/* Whom a plan waits for, and why; "": nobody. */
void cli_cluster_waits_for(const json_t *cluster, char *out, size_t size);

void cli_cluster_print(const json_t *object);
void cli_cluster_bytes_text(double bytes, char *out, size_t size);
void cli_cluster_ms_text(double ms, char *out, size_t size);

/* ---- cli_cluster_change.c: each an exit code ---- */

/* Has the cluster changed. When it does not become known whether that was done, or nobody leads for
 * the moment, it is asked for again, for up to 30 s (--wait: no longer than that). */
int cli_cluster_change(struct cli *cli, const struct distkv_cluster_request *request,
                       const char *what, uint64_t *number_out);
int cli_cluster_add_node(struct cli *cli, const char *name);
int cli_cluster_remove_node(struct cli *cli, const char *name);
int cli_cluster_replace_node(struct cli *cli, const char *name);
int cli_cluster_rebalance(struct cli *cli, int count, char **words);
int cli_cluster_repair(struct cli *cli, const char *name); /* NULL: of all */
int cli_cluster_drain(struct cli *cli, const char *name);

#endif
