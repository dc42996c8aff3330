/* SPDX-License-Identifier: MIT
 *
 * cmd_server.c -- commands about the node: COMMAND, CONFIG, SLOWLOG, LATENCY, TIME, ROLE, WAIT,
 * SHUTDOWN, and the HELP of every container.
 */
#include <ctype.h>
#include <stdio.h>

#include "base/log.h"
#include "cluster/cluster.h"
#include "server/cmd.h"
#include "server/glob.h"
#include "server/session.h"

/* ---- COMMAND ---- */

static bool
shown(const struct command *command)
{
    return !command_is_sub(command) && !(command->flags & COMMAND_NATIVE);
}

static u32
shown_count(void)
{
    u32 count = 0;
    for (u32 i = 0; i < command_table_count(); i++)
        count += shown(&command_table[i]);
    return count;
}

/* "get" or "client|list". */
static const struct command *
find_named(struct bytes name)
{
    const u8 *bar = name.size == 0 ? NULL : memchr(name.data, '|', name.size);
    if (bar == NULL) return command_find(name);
    const struct command *container = command_find(BYTES(name.data, (size_t)(bar - name.data)));
    if (container == NULL) return NULL;
    return command_find_sub(container, BYTES(bar + 1, name.size - (size_t)(bar - name.data) - 1));
}

void
cmd_command(struct exec *x)
{
    resp_array(x->reply, shown_count());
    for (u32 i = 0; i < command_table_count(); i++)
        if (shown(&command_table[i])) command_reply_info(x->reply, &command_table[i]);
}

void
cmd_command_count(struct exec *x)
{
    resp_integer(x->reply, shown_count());
}

/* Between two of up to a million names. */
MAY_YIELD static bool
goes_on(struct exec *x)
{
    if (x->reply->failed) exec_fail(x, ST_NO_MEMORY);
    return !exec_reply_too_large(x) && exec_turn(x);
}

MAY_YIELD void
cmd_command_info(struct exec *x)
{
    if (x->arg_count == 2) {
        cmd_command(x);
        return;
    }
    resp_array(x->reply, x->arg_count - 2);
    for (u32 i = 2; i < x->arg_count; i++) {
        if (!goes_on(x)) return;
        const struct command *command = find_named(x->args[i]);
        if (command == NULL)
            resp_null(x->reply);
        else
            command_reply_info(x->reply, command);
    }
}

MAY_YIELD void
cmd_command_docs(struct exec *x)
{
    if (x->arg_count == 2) {
        resp_map(x->reply, shown_count());
        for (u32 i = 0; i < command_table_count(); i++)
            if (shown(&command_table[i])) command_reply_docs(x->reply, &command_table[i]);
        return;
    }
    u32 count = 0;
    for (u32 i = 2; i < x->arg_count; i++) {
        if (!goes_on(x)) return;
        count += find_named(x->args[i]) != NULL;
    }
    resp_map(x->reply, count);
    for (u32 i = 2; i < x->arg_count; i++) {
        if (!goes_on(x)) return;
        const struct command *command = find_named(x->args[i]);
        if (command != NULL) command_reply_docs(x->reply, command);
    }
}

MAY_YIELD void
cmd_command_getkeys(struct exec *x)
{
    const struct command *command = command_find(x->args[2]);
    if (command != NULL && command->place == PLACE_CONTAINER && x->arg_count > 3)
        command = command_find_sub(command, x->args[3]);
    if (command == NULL) {
        resp_error(x->reply, "ERR Invalid command specified");
        return;
    }
    if (command->first == 0) {
        resp_error(x->reply, "ERR The command has no key arguments");
        return;
    }
    u32 first, last, step, count = x->arg_count - 2;
    if (!command_arity_fits(command, count)) {
        resp_error(x->reply, "ERR Invalid number of arguments specified for command");
        return;
    }
    command_key_range(command, count, &first, &last, &step);
    resp_array(x->reply, (last - first) / step + 1);
    for (u32 i = first; i <= last && goes_on(x); i += step)
        resp_bulk(x->reply, x->args[2 + i]);
}

void
cmd_command_list(struct exec *x)
{
    struct bytes pattern = BYTES(NULL, 0), category = BYTES(NULL, 0);
    bool module = false;
    if (x->arg_count == 5 && cmd_arg_is(x, 2, "filterby")) {
        if (cmd_arg_is(x, 3, "pattern"))
            pattern = x->args[4];
        else if (cmd_arg_is(x, 3, "aclcat"))
            category = x->args[4];
        else if (cmd_arg_is(x, 3, "module"))
            module = true;
        else {
            resp_error(x->reply, CMD_SYNTAX);
            return;
        }
    } else if (x->arg_count != 2) {
        resp_error(x->reply, CMD_SYNTAX);
        return;
    }
    if (!cmd_pattern_fits(x, pattern)) return;
    for (u32 pass = 0, count = 0; pass < 2; pass++) {
        if (pass == 1) resp_array(x->reply, count);
        for (u32 i = 0; i < command_table_count() && !module; i++) {
            const struct command *command = &command_table[i];
            if (command->flags & COMMAND_NATIVE) continue;
            if (pattern.data == NULL && category.data == NULL && command_is_sub(command)) continue;
            if (pattern.data != NULL &&
                !glob_match(pattern, BYTES(command->name, strlen(command->name)), true))
                continue;
            if (category.data != NULL && !command_in_category(command, category)) continue;
            if (pass == 1)
                resp_bulk_text(x->reply, command->name);
            else
                count++;
        }
    }
}

/* ---- HELP ---- */

static void
upper(const char *text, char *out, size_t size)
{
    size_t i = 0;
    for (; text[i] != '\0' && i + 1 < size; i++)
        out[i] = (char)toupper((unsigned char)text[i]);
    out[i] = '\0';
}

/* One line with the syntax and one with the summary for each subcommand. */
static void
help(struct exec *x, const char *container)
{
    size_t prefix = strlen(container);
    u32 subs = 0;
    for (u32 i = 0; i < command_table_count(); i++) {
        const char *name = command_table[i].name;
        subs += strncmp(name, container, prefix) == 0 && name[prefix] == '|';
    }
    char name[32], line[320];
    upper(container, name, sizeof(name));
    resp_array(x->reply, 1 + 2 * subs);
    snprintf(line, sizeof(line),
             "%s <subcommand> [<arg> [value] [opt] ...]. Subcommands are:", name);
    resp_simple(x->reply, line);
    for (u32 i = 0; i < command_table_count(); i++) {
        const struct command *command = &command_table[i];
        if (strncmp(command->name, container, prefix) != 0 || command->name[prefix] != '|')
            continue;
        upper(command->name + prefix + 1, name, sizeof(name));
        snprintf(line, sizeof(line), "%s %s", name, command->syntax);
        size_t size = strlen(line);
        if (line[size - 1] == ' ') line[size - 1] = '\0';
        resp_simple(x->reply, line);
        snprintf(line, sizeof(line), "    %s", command->summary);
        resp_simple(x->reply, line);
    }
}

void
cmd_command_help(struct exec *x)
{
    help(x, "command");
}
void
cmd_client_help(struct exec *x)
{
    help(x, "client");
}
void
cmd_config_help(struct exec *x)
{
    help(x, "config");
}
void
cmd_slowlog_help(struct exec *x)
{
    help(x, "slowlog");
}
void
cmd_latency_help(struct exec *x)
{
    help(x, "latency");
}
void
cmd_memory_help(struct exec *x)
{
    help(x, "memory");
}
void
cmd_object_help(struct exec *x)
{
    help(x, "object");
}
void
cmd_acl_help(struct exec *x)
{
    help(x, "acl");
}
void
cmd_cluster_help(struct exec *x)
{
    help(x, "cluster");
}

/* ---- CONFIG ---- */

#define CONFIG_TEXT_BYTES 1024u
/* Of CONFIG GET, which looks at all names for each of them without a pause. */
#define CONFIG_PATTERNS_MAX 256u

static bool
arg_text(const struct exec *x, u32 i, char *out, size_t size)
{
    if (x->args[i].size >= size || memchr(x->args[i].data, 0, x->args[i].size) != NULL)
        return false;
    memcpy(out, x->args[i].data, x->args[i].size);
    out[x->args[i].size] = '\0';
    return true;
}

struct config_reply {
    struct buf pairs; /* u16 size, bytes, again and again: name, value, name, value */
    u32 count;
    bool failed;
};

static bool
pair_is_there(const struct config_reply *reply, const char *name)
{
    size_t size = strlen(name);
    bool is_name = true;
    for (size_t at = 0; at < reply->pairs.size; is_name = !is_name) {
        size_t length = load_u16(reply->pairs.data + at);
        if (is_name && length == size && text_is(BYTES(reply->pairs.data + at + 2, length), name))
            return true;
        at += 2 + length;
    }
    return false;
}

static void
put_text(struct config_reply *reply, const char *text)
{
    u16 size = (u16)MIN(strlen(text), CONFIG_TEXT_BYTES);
    if (!buf_append(&reply->pairs, &size, sizeof(size)) || !buf_append(&reply->pairs, text, size))
        reply->failed = true;
}

static void
add_pair(void *arg, const char *name, const char *value)
{
    struct config_reply *reply = arg;
    if (pair_is_there(reply, name)) return; /* two patterns may match one name */
    put_text(reply, name);
    put_text(reply, value);
    reply->count++;
}

void
cmd_config_get(struct exec *x)
{
    if (x->arg_count - 2 > CONFIG_PATTERNS_MAX) {
        resp_error(x->reply, "ERR too many patterns: CONFIG GET takes at most %u patterns",
                   CONFIG_PATTERNS_MAX);
        return;
    }
    struct config_reply reply = {.failed = false};
    buf_init(&reply.pairs, &x->shard->budget);
    char pattern[256];
    for (u32 i = 2; i < x->arg_count; i++)
        if (arg_text(x, i, pattern, sizeof(pattern)))
            config_list(x->shard->config, pattern, add_pair, &reply);
    if (reply.failed) {
        exec_fail(x, ST_NO_MEMORY);
    } else {
        resp_map(x->reply, reply.count);
        for (size_t at = 0; at < reply.pairs.size;) {
            size_t length = load_u16(reply.pairs.data + at);
            resp_bulk(x->reply, BYTES(reply.pairs.data + at + 2, length));
            at += 2 + length;
        }
    }
    buf_deinit(&reply.pairs);
}

static void
config_set_failed(struct exec *x, struct bytes name, const char *why)
{
    resp_error(x->reply, "ERR CONFIG SET failed (possibly related to argument '%.*s') - %s",
               (int)MIN(name.size, 128u), (const char *)name.data, why);
}

/* Tells the first of the names that is unknown, cannot change, or stands there twice. */
static bool
config_set_names(struct exec *x, char *text)
{
    const char *seen[2 * CONFIG_OPTIONS_MAX];
    u32 seen_count = 0;
    for (u32 i = 2; i < x->arg_count; i += 2) {
        char error[OPTION_ERROR_BYTES];
        status st = ST_NOT_FOUND;
        if (arg_text(x, i, text, CONFIG_TEXT_BYTES))
            st = config_set_check_name(text, error, sizeof(error));
        if (status_is(st, ST_NOT_FOUND)) {
            resp_error(x->reply,
                       "ERR Unknown option or number of arguments for CONFIG SET - '%.*s'",
                       (int)MIN(x->args[i].size, 128u), (const char *)x->args[i].data);
            return false;
        }
        if (!ok(st)) {
            config_set_failed(x, x->args[i], error);
            return false;
        }
        const char *name = config_name(text);
        for (u32 j = 0; j < seen_count; j++) {
            if (seen[j] != name) continue;
            config_set_failed(x, x->args[i], "duplicate parameter");
            return false;
        }
        CHECK(seen_count < ARRAY_COUNT(seen)); /* there are not so many names */
        seen[seen_count++] = name;
    }
    return true;
}

/* Checks or sets all values; the names are good. */
static bool
config_set_values(struct exec *x, char *text, char *value, bool set)
{
    struct server_config *config = x->shard->config;
    for (u32 i = 2; i < x->arg_count; i += 2) {
        char error[OPTION_ERROR_BYTES];
        bool there = arg_text(x, i, text, CONFIG_TEXT_BYTES);
        CHECK(there);
        const char *name = config_name(text);
        status st = ST_INVALID;
        if (!arg_text(x, i + 1, value, CONFIG_TEXT_BYTES))
            snprintf(error, sizeof(error), "argument is too long or has a zero byte");
        else if (set)
            st = config_set(config, name, value, error, sizeof(error));
        else
            st = config_set_check(config, name, value, error, sizeof(error));
        if (ok(st)) continue;
        config_set_failed(x, BYTES(name, strlen(name)), error);
        return false;
    }
    return true;
}

/* All or nothing, as in Redis: all names are checked first, then all values, then they are set. */
void
cmd_config_set(struct exec *x)
{
    if (x->arg_count % 2 != 0) {
        resp_error(x->reply, CMD_SYNTAX);
        return;
    }
    char *name = (char *)exec_alloc(x, 2 * CONFIG_TEXT_BYTES);
    if (name == NULL) return;
    char *value = name + CONFIG_TEXT_BYTES;
    if (!config_set_names(x, name)) return;
    if (!config_set_values(x, name, value, false)) return;
    if (!config_set_values(x, name, value, true)) return;
    shard_config_look(x->shard); /* the others soon */
    resp_ok(x->reply);
}

static void
reset_here(void *arg)
{
    (void)arg;
    shard_stats_reset(shard_self());
}

MAY_YIELD void
cmd_config_resetstat(struct exec *x)
{
    shard_for_all_possible(x->shard, reset_here, NULL);
    resp_ok(x->reply);
}

/* ---- SLOWLOG ---- */

/* The newest entries of all shards are merged: each shard gives its newest below an id on request.
 * By a number from the newest it would give some twice, while others are being added. */
struct slow_call {
    u64 below;
    bool there;
    struct slowlog_entry *entry; /* room for the largest */
    size_t room;
};

#define SLOW_ENTRY_ROOM                                                                            \
    (sizeof(struct slowlog_entry) + SLOWLOG_ARGS_MAX * (4 + SLOWLOG_ARG_BYTES_MAX + 48))

static void
slow_here(void *arg)
{
    struct slow_call *call = arg;
    const struct slowlog_entry *entry = slowlog_below(&shard_self()->slowlog, call->below);
    call->there = entry != NULL;
    if (entry == NULL) return;
    CHECK(entry->size <= call->room);
    memcpy(call->entry, entry, entry->size);
}

static void
reply_slow(struct exec *x, const struct slowlog_entry *entry)
{
    resp_array(x->reply, 6);
    resp_integer(x->reply, (i64)entry->id);
    resp_integer(x->reply, (i64)entry->time_s);
    resp_integer(x->reply, (i64)entry->duration_us);
    resp_array(x->reply, entry->arg_count);
    const u8 *at = (const u8 *)(entry + 1);
    for (u32 i = 0; i < entry->arg_count; i++) {
        u32 size = load_u32(at);
        resp_bulk(x->reply, BYTES(at + 4, size));
        at += 4 + size;
    }
    resp_bulk_text(x->reply, entry->client);
    resp_bulk_text(x->reply, entry->client_name);
}

struct slow_count {
    u64 count;
};

static void
slow_count_here(void *arg)
{
    ((struct slow_count *)arg)->count += shard_self()->slowlog.count;
}

/* Of all shards as many as one is told to keep. */
MAY_YIELD static u64
slow_count(struct exec *x)
{
    struct slow_count call = {0};
    shard_for_all_possible(x->shard, slow_count_here, &call);
    return MIN(call.count, x->shard->config->slowlog_max_len);
}

MAY_YIELD void
cmd_slowlog_len(struct exec *x)
{
    resp_integer(x->reply, (i64)slow_count(x));
}

MAY_YIELD void
cmd_slowlog_get(struct exec *x)
{
    i64 limit = 10;
    if (x->arg_count > 3) {
        resp_error(x->reply,
                   "ERR unknown subcommand or wrong number of arguments for '%.*s'. "
                   "Try SLOWLOG HELP.",
                   (int)MIN(x->args[1].size, 128u), (const char *)x->args[1].data);
        return;
    }
    if (x->arg_count == 3) {
        if (!number_parse_i64(x->args[2], &limit) || limit < -1) {
            resp_error(x->reply, "ERR count should be greater than or equal to -1");
            return;
        }
    }
    u32 shards = x->shard->server->shard_count;
    u64 wanted = slow_count(x);
    if (limit >= 0) wanted = MIN((u64)limit, wanted);

    struct slow_call *heads = (struct slow_call *)(void *)exec_alloc(
        x, shards * sizeof(*heads) + shards * align_up(SLOW_ENTRY_ROOM, 16));
    if (heads == NULL) return;
    u8 *room = (u8 *)(heads + shards);
    for (u32 i = 0; i < shards; i++) {
        heads[i] = (struct slow_call){
            .below = UINT64_MAX,
            .entry = (struct slowlog_entry *)(void *)(room + i * align_up(SLOW_ENTRY_ROOM, 16)),
            .room = SLOW_ENTRY_ROOM};
        status st = io_shard_call(i, FIBER_FOREGROUND, slow_here, &heads[i]);
        if (!ok(st)) heads[i].there = false;
    }
    struct buf entries; /* the replies, before their number is known */
    struct resp_writer outer = *x->reply;
    buf_init(&entries, &x->shard->budget);
    x->reply->out = &entries;
    u32 count = 0;
    while (count < wanted) {
        u32 newest = shards;
        for (u32 i = 0; i < shards; i++)
            if (heads[i].there &&
                (newest == shards || heads[i].entry->time_s > heads[newest].entry->time_s ||
                 (heads[i].entry->time_s == heads[newest].entry->time_s &&
                  heads[i].entry->id > heads[newest].entry->id)))
                newest = i;
        if (newest == shards) break;
        reply_slow(x, heads[newest].entry);
        count++;
        heads[newest].below = heads[newest].entry->id;
        status st = io_shard_call(newest, FIBER_FOREGROUND, slow_here, &heads[newest]);
        if (!ok(st)) heads[newest].there = false;
    }
    outer.failed = x->reply->failed;
    *x->reply = outer;
    resp_array(x->reply, count);
    if (!buf_append(x->reply->out, entries.data, entries.size)) x->reply->failed = true;
    buf_deinit(&entries);
}

static void
slow_reset_here(void *arg)
{
    (void)arg;
    slowlog_reset(&shard_self()->slowlog);
}

MAY_YIELD void
cmd_slowlog_reset(struct exec *x)
{
    shard_for_all_possible(x->shard, slow_reset_here, NULL);
    resp_ok(x->reply);
}

/* ---- LATENCY ---- */

struct latency_call {
    struct latency_series total; /* of one event over the shards, newest last */
    u32 event;
    bool reset;
    u32 dropped;
};

static void
latency_here(void *arg)
{
    struct latency_call *call = arg;
    struct latency_series *series = &shard_self()->latency.series[call->event];
    if (call->reset) {
        call->dropped |= series->count != 0;
        memset(series, 0, sizeof(*series));
        return;
    }
    struct latency_series merged = {.max_ms = MAX(call->total.max_ms, series->max_ms)};
    u32 a = 0, b = 0;
    while (a < call->total.count || b < series->count) {
        u32 ia = latency_sample_at(&call->total, a), ib = latency_sample_at(series, b);
        bool take_a =
            b >= series->count ||
            (a < call->total.count && call->total.samples[ia].time_s <= series->samples[ib].time_s);
        merged.samples[merged.next] = take_a ? call->total.samples[ia] : series->samples[ib];
        merged.next = (merged.next + 1) % LATENCY_SAMPLES;
        merged.count = MIN(merged.count + 1, LATENCY_SAMPLES);
        if (take_a)
            a++;
        else
            b++;
    }
    call->total = merged;
}

MAY_YIELD static struct latency_call *
latency_of(struct exec *x, u32 event, bool reset)
{
    struct latency_call *call = (struct latency_call *)(void *)exec_alloc(x, sizeof(*call));
    if (call == NULL) return NULL;
    memset(call, 0, sizeof(*call));
    call->event = event;
    call->reset = reset;
    shard_for_all_possible(x->shard, latency_here, call);
    return call;
}

MAY_YIELD void
cmd_latency_latest(struct exec *x)
{
    struct latency_call *calls[LATENCY_EVENTS];
    u32 count = 0;
    for (u32 event = 0; event < LATENCY_EVENTS; event++) {
        calls[event] = latency_of(x, event, false);
        if (calls[event] == NULL) return;
        count += calls[event]->total.count != 0;
    }
    resp_array(x->reply, count);
    for (u32 event = 0; event < LATENCY_EVENTS; event++) {
        const struct latency_series *series = &calls[event]->total;
        if (series->count == 0) continue;
        u32 last = latency_sample_at(series, series->count - 1);
        resp_array(x->reply, 4);
        resp_bulk_text(x->reply, latency_event_name(event));
        resp_integer(x->reply, (i64)series->samples[last].time_s);
        resp_integer(x->reply, (i64)series->samples[last].ms);
        resp_integer(x->reply, (i64)series->max_ms);
    }
}

MAY_YIELD void
cmd_latency_history(struct exec *x)
{
    u32 event = 0;
    while (event < LATENCY_EVENTS && !cmd_arg_is(x, 2, latency_event_name(event)))
        event++;
    if (event == LATENCY_EVENTS) {
        resp_array(x->reply, 0);
        return;
    }
    const struct latency_call *call = latency_of(x, event, false);
    if (call == NULL) return;
    resp_array(x->reply, call->total.count);
    for (u32 i = 0; i < call->total.count; i++) {
        u32 at = latency_sample_at(&call->total, i);
        resp_array(x->reply, 2);
        resp_integer(x->reply, (i64)call->total.samples[at].time_s);
        resp_integer(x->reply, (i64)call->total.samples[at].ms);
    }
}

MAY_YIELD void
cmd_latency_graph(struct exec *x)
{
    u32 event = 0;
    while (event < LATENCY_EVENTS && !cmd_arg_is(x, 2, latency_event_name(event)))
        event++;
    const struct latency_call *call = NULL;
    if (event < LATENCY_EVENTS) {
        call = latency_of(x, event, false);
        if (call == NULL) return;
    }
    if (call == NULL || call->total.count == 0) {
        resp_error(x->reply, "ERR No samples available for event '%.*s'",
                   (int)MIN(x->args[2].size, 128u), (const char *)x->args[2].data);
        return;
    }
    struct buf out;
    buf_init(&out, &x->shard->budget);
    if (latency_graph(&out, latency_event_name(event), &call->total, io_wall_ms() / 1000))
        resp_verbatim(x->reply, "txt", buf_bytes(&out));
    else
        exec_fail(x, ST_NO_MEMORY);
    buf_deinit(&out);
}

MAY_YIELD void
cmd_latency_reset(struct exec *x)
{
    i64 reset = 0;
    for (u32 event = 0; event < LATENCY_EVENTS; event++) {
        bool wanted = x->arg_count == 2;
        for (u32 i = 2; i < x->arg_count; i++) {
            if (!exec_turn(x)) return;
            if (cmd_arg_is(x, i, latency_event_name(event))) wanted = true;
        }
        if (!wanted) continue;
        const struct latency_call *call = latency_of(x, event, true);
        if (call == NULL) return;
        reset += call->dropped;
    }
    resp_integer(x->reply, reset);
}

MAY_YIELD void
cmd_latency_doctor(struct exec *x)
{
    u64 threshold = x->shard->config->latency_monitor_threshold_ms;
    struct buf out;
    buf_init(&out, &x->shard->budget);
    if (threshold == 0) {
        cmd_text(&out, "Latency monitoring is off: set latency-monitor-threshold to the "
                       "milliseconds from which on a command counts as slow.\n");
    } else {
        for (u32 event = 0; event < LATENCY_EVENTS; event++) {
            const struct latency_call *call = latency_of(x, event, false);
            if (call == NULL) break;
            if (call->total.count != 0)
                cmd_text(&out,
                         "%s: %u seconds had commands of %llu ms or more, the worst %llu ms.\n",
                         latency_event_name(event), call->total.count,
                         (unsigned long long)threshold, (unsigned long long)call->total.max_ms);
        }
        if (out.size == 0)
            cmd_text(&out, "No command took %llu ms or more.\n", (unsigned long long)threshold);
    }
    if (!x->stopped) resp_verbatim(x->reply, "txt", buf_bytes(&out));
    buf_deinit(&out);
}

/* ---- the rest ---- */

void
cmd_time(struct exec *x)
{
    u64 ms = io_wall_ms();
    char text[24];
    resp_array(x->reply, 2);
    resp_bulk(x->reply, BYTES(text, number_format_i64((i64)(ms / 1000), text)));
    resp_bulk(x->reply, BYTES(text, number_format_i64((i64)(ms % 1000 * 1000), text)));
}

void
cmd_role(struct exec *x)
{
    resp_array(x->reply, 3);
    resp_bulk_text(x->reply, "master");
    resp_integer(x->reply, 0);
    resp_array(x->reply, 0);
}

/* There are no replicas to wait for: a reply is only sent when the write is as durable as was
 * asked. With a number of replicas it waits in vain, as long as it was told: without a place among
 * those that work, or not at all. Nor in EXEC, as in Redis. */
MAY_YIELD void
cmd_wait(struct exec *x)
{
    i64 replicas, timeout_ms;
    if (!cmd_arg_i64(x, 1, &replicas)) return;
    if (!number_parse_i64(x->args[2], &timeout_ms)) {
        resp_error(x->reply, "ERR timeout is not an integer or out of range");
        return;
    }
    if (timeout_ms < 0) {
        resp_error(x->reply, "ERR timeout is negative");
        return;
    }
    u64 deadline = io_now_ns() + (u64)MIN(timeout_ms, (i64)(24 * 3600 * 1000)) * NS_PER_MS;
    bool waits =
        replicas > 0 && x->work != NULL && work_leave(&x->shard->workers, x->work, WORK_AWAY_TIME);
    while (waits && !x->shard->draining &&
           io_now_ns() < atomic_load(&x->session->wanted_until_ns) &&
           (timeout_ms == 0 || io_clock_ns() < deadline))
        fiber_sleep_ns(MIN(10 * NS_PER_MS, timeout_ms == 0
                                               ? 10 * NS_PER_MS
                                               : deadline - MIN(deadline, io_clock_ns()) + 1));
    if (waits) work_return(&x->shard->workers, x->work);
    resp_integer(x->reply, 0);
}

void
cmd_shutdown(struct exec *x)
{
    bool save = false, no_save = false, abort = false;
    for (u32 i = 1; i < x->arg_count; i++) {
        if (cmd_arg_is(x, i, "nosave")) {
            no_save = true;
        } else if (cmd_arg_is(x, i, "save")) {
            save = true;
        } else if (cmd_arg_is(x, i, "abort")) {
            abort = true;
        } else if (!cmd_arg_is(x, i, "now") && !cmd_arg_is(x, i, "force")) {
            resp_error(x->reply, CMD_SYNTAX);
            return;
        }
    }
    if ((abort && x->arg_count > 2) || (save && no_save)) {
        resp_error(x->reply, CMD_SYNTAX);
        return;
    }
    if (abort) {
        resp_error(x->reply, "ERR No shutdown in progress.");
        return;
    }
    x->shard->server->shutdown_wanted = no_save ? 2 : 1;
    log_info("server", "shutdown asked for by a client");
    io_stop(); /* the connection closes without a reply, as Redis does */
    x->session->close_after = true;
}
