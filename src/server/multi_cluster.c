/* SPDX-License-Identifier: MIT
 *
 * multi_cluster.c -- transactions in a cluster.
 *
 * The session's shard queues the commands, as ever. EXEC takes all of them, and the watched keys
 * with what was seen of them, to where commands run that read before they write: the first living
 * replica (route.h). There it runs as it does on a node by itself, under the locks of all its keys,
 * with reads of a quorum; its writes become one batch, which each replica takes as a whole.
 *
 * WATCH. A version names one write in the whole cluster, so what a quorum has read of a key, be it
 * through any node, can be compared with what a quorum reads later, through any other: EXEC reads
 * each watched key once more, under its lock, and a version that is not the one of before is a
 * change. Neither the node that answered WATCH nor the one that runs EXEC need be the same as any
 * before. (A connection whose level is ONE reads these by the keyspace's R all the same.)
 *
 * A key that was absent has the version of its tombstone, or none once that was collected, or is
 * collected on one replica and not on another. What is collected was below what all have settled,
 * and allowed to be for TREES_GRACE_NS: so of a watch that is younger than that a lower version, or
 * none, says that nothing was written since. An older one of an absent key counts as changed,
 * unless the same tombstone is there still.
 *
 * What is not seen: a plain write (SET) that is under way at the same moment through another
 * replica. It takes no lock, as with INCR; one of the two has the higher stamp.
 *
 * One batch is of one database, so commands that lead elsewhere are not queued; and none in a
 * keyspace that keeps siblings, where a batch is a key.
 */
#include "server/multi.h"

#include "base/fault.h"
#include "proto/peer.h"
#include "server/route.h"

/* With the deadline of a request and clocks that go wrong below the grace. */
#define WATCH_ABSENT_NS (60 * NS_PER_S)
static_assert(WATCH_ABSENT_NS + 30 * NS_PER_S < TREES_GRACE_NS,
              "what an absent key had since a watch is there until the watch is old");

/* ---- what may be queued ---- */

static bool
has_keys(const struct command *command, u32 arg_count)
{
    u32 first, last, step;
    command_key_range(command, arg_count, &first, &last, &step);
    return last >= first;
}

static bool
selects_another(const struct session *s, const struct command *command, const struct bytes *args)
{
    i64 db;
    return command->handler == cmd_select && number_parse_i64(args[1], &db) && db != s->keyspace;
}

static bool
copies_elsewhere(const struct command *command, const struct bytes *args, u32 arg_count)
{
    if (command->handler != cmd_copy) return false;
    for (u32 i = 3; i < arg_count; i++)
        if (text_is(args[i], "db")) return true;
    return false;
}

static bool
is_of_siblings(const struct command *command)
{
    return command->handler == cmd_distkv_get || command->handler == cmd_distkv_put ||
           command->handler == cmd_distkv_del;
}

bool
multi_may_queue(const struct session *s, const struct command *command, const struct bytes *args,
                u32 arg_count, struct resp_writer *w)
{
    const struct shard *shard = s->shard;
    if (shard->server->cluster == NULL) return true;
    const char *words = NULL;
    if (selects_another(s, command, args))
        words = "SELECT is not possible inside a transaction in a cluster";
    else if (copies_elsewhere(command, args, arg_count))
        words = "COPY to another database is not possible inside a transaction in a cluster";
    else if (is_of_siblings(command) ||
             (has_keys(command, arg_count) && shard->cluster != NULL &&
              replicate_siblings(shard->cluster->replicator, s->keyspace)))
        words = "keys that keep siblings take no part in transactions";
    if (words != NULL) resp_error(w, "ERR %s", words);
    return words == NULL;
}

/* ---- watching ---- */

/* Not by less than what the keyspace's own reads are. */
MAY_YIELD static enum exec_found
look(struct exec *x, const struct watch *watch, struct exec_value *out)
{
    u8 level = x->level;
    if (level == REPLICATE_ONE) x->level = REPLICATE_DEFAULT;
    enum exec_found found = exec_get_in(x, watch->keyspace, watch->key, false, out);
    x->level = level;
    return found;
}

MAY_YIELD bool
multi_watch_here(struct exec *x, struct watch *watch)
{
    struct exec_value value;
    enum exec_found found = look(x, watch, &value);
    if (found == EXEC_STOP) return false;
    watch->present = found == EXEC_FOUND;
    watch->mark = value.version;
    return true;
}

static bool
is_old(const struct watch *watch)
{
    return watch->old || (watch->since_ns != 0 && io_now_ns() - watch->since_ns > WATCH_ABSENT_NS);
}

MAY_YIELD bool
multi_unchanged(struct exec *x, const struct watch *watch)
{
    struct exec_value value;
    enum exec_found found = look(x, watch, &value);
    if (found == EXEC_STOP) return false;
    if (found == EXEC_FOUND) return watch->present && value.version == watch->mark;
    if (watch->present) return false;
    if (value.version != 0 && value.version == watch->mark) return true;
    if (is_old(watch)) return MARKED("server.multi.watch_too_old", false);
    u64 settled = x->shard->cluster == NULL ? 0 : lsm_purge_below(x->shard->lsm, watch->keyspace);
    return value.version <= watch->mark || value.version < settled;
}

bool
multi_reply_fits(struct exec *x)
{
    if (x->shard->server->cluster == NULL || x->reply->out->size <= PEER_BODY_BYTES_MAX)
        return true;
    exec_fail(x, ST_TOO_LARGE);
    return false;
}

/* ---- to another node ---- */

static bool
encode_args(struct buf *out, const struct transaction *tx, bool watches)
{
    list_for_each (node, &tx->watches) {
        const struct watch *watch = list_entry(node, struct watch, link);
        if (watches && watch->filled) continue;
        if (!peer_forward_arg(out, watch->key)) return false;
    }
    list_for_each (node, &tx->queue) {
        const struct queued *queued = list_entry(node, struct queued, link);
        if (watches || queued->at_home) continue;
        for (u32 i = 0; i < queued->arg_count; i++)
            if (!peer_forward_arg(out, queued->args[i])) return false;
    }
    return true;
}

bool
multi_encode(struct buf *out, struct peer_forward *forward, const struct transaction *tx,
             bool watches)
{
    forward->kind = watches ? PEER_FORWARD_WATCH : PEER_FORWARD_EXEC;
    forward->watch_count = forward->command_count = 0;
    list_for_each (node, &tx->watches)
        forward->watch_count += !(watches && list_entry(node, struct watch, link)->filled);
    forward->arg_count = forward->watch_count;
    list_for_each (node, &tx->queue) {
        const struct queued *queued = list_entry(node, struct queued, link);
        if (watches || queued->at_home) continue;
        forward->command_count++;
        forward->arg_count += queued->arg_count;
    }
    if (!peer_forward_begin(out, forward)) return false;
    list_for_each (node, &tx->watches) {
        const struct watch *watch = list_entry(node, struct watch, link);
        if (watches && watch->filled) continue;
        struct peer_watch seen = {.version = watch->mark,
                                  .keyspace = watch->keyspace,
                                  .flags = (u8)((watch->present ? PEER_WATCH_PRESENT : 0) |
                                                (is_old(watch) ? PEER_WATCH_OLD : 0))};
        if (!peer_forward_watch(out, &seen)) return false;
    }
    list_for_each (node, &tx->queue) {
        const struct queued *queued = list_entry(node, struct queued, link);
        if (watches || queued->at_home) continue;
        if (!peer_forward_count(out, queued->arg_count)) return false;
    }
    return encode_args(out, tx, watches);
}

/* ---- from another node ---- */

static bool
key_fits(struct bytes key)
{
    return key.size != 0 && key.size <= LIMIT_KEY_BYTES;
}

static const struct command *
command_of(const struct bytes *args, u32 arg_count)
{
    const struct command *command = command_find(args[0]);
    if (command != NULL && command->place == PLACE_CONTAINER && arg_count > 1)
        command = command_find_sub(command, args[1]);
    if (command == NULL || command->place > PLACE_SPLIT_ARRAY ||
        command->flags & COMMAND_NO_MULTI || !command_arity_fits(command, arg_count) ||
        copies_elsewhere(command, args, arg_count) || is_of_siblings(command))
        return NULL;
    u32 first, last, step;
    command_key_range(command, arg_count, &first, &last, &step);
    if (last < first) return NULL;
    for (u32 i = first; i <= last; i += step)
        if (!key_fits(args[i])) return NULL;
    return command;
}

bool
multi_check(const struct peer_forward *forward, const struct bytes *args, u64 *token_out,
            u32 *keys_out)
{
    struct transaction probe = {.slot_known = false};
    if (forward->watch_count > MULTI_WATCHES_MAX || forward->command_count > MULTI_COMMANDS_MAX)
        return false;
    const struct command *watch = command_find(BYTES_LITERAL("watch"));
    for (u32 i = 0; i < forward->watch_count; i++) {
        const struct bytes pair[] = {BYTES_LITERAL("watch"), args[i]};
        if (!key_fits(args[i]) || !transaction_slot_fits(&probe, watch, pair, 2) ||
            peer_forward_watch_at(forward, i).keyspace >= LIMIT_KEYSPACES_CLIENT)
            return false;
    }
    args += forward->watch_count;
    for (u32 i = 0; i < forward->command_count; i++) {
        u32 count = peer_forward_count_at(forward, i);
        const struct command *command = command_of(args, count);
        if (command == NULL || !transaction_slot_fits(&probe, command, args, count)) return false;
        args += count;
    }
    *token_out = transaction_token(&probe);
    *keys_out = probe.keys;
    return probe.slot_known;
}

struct transaction *
multi_decode(struct budget *budget, const struct peer_forward *forward, const struct bytes *args,
             u16 keyspace)
{
    size_t memory = sizeof(struct transaction) + forward->watch_count * sizeof(struct watch) +
                    forward->command_count * sizeof(struct queued);
    struct transaction *tx = mem_alloc_zero(budget, memory);
    if (tx == NULL) return NULL;
    list_init(&tx->queue);
    list_init(&tx->watches);
    tx->memory = memory;
    tx->keyspace = keyspace;
    tx->watch_count = forward->watch_count;
    tx->count = forward->command_count;
    struct watch *watches = (struct watch *)(tx + 1);
    for (u32 i = 0; i < forward->watch_count; i++) {
        struct peer_watch seen = peer_forward_watch_at(forward, i);
        watches[i] = (struct watch){.mark = seen.version,
                                    .keyspace = seen.keyspace,
                                    .present = (seen.flags & PEER_WATCH_PRESENT) != 0,
                                    .old = (seen.flags & PEER_WATCH_OLD) != 0,
                                    .key = args[i]};
        list_push_back(&tx->watches, &watches[i].link);
    }
    args += forward->watch_count;
    struct queued *queued = (struct queued *)(watches + forward->watch_count);
    for (u32 i = 0; i < forward->command_count; i++, queued++) {
        queued->arg_count = peer_forward_count_at(forward, i);
        queued->args = args;
        queued->command = command_of(args, queued->arg_count);
        queued->keyspace = keyspace;
        CHECK(queued->command != NULL); /* it was checked */
        list_push_back(&tx->queue, &queued->link);
        args += queued->arg_count;
    }
    return tx;
}

void
multi_decoded_free(struct budget *budget, struct transaction *tx)
{
    if (tx != NULL) mem_free(budget, tx, tx->memory);
}

/* ---- what WATCH answers ---- */

bool
multi_watched_encode(struct buf *out, const struct transaction *tx)
{
    list_for_each (node, &tx->watches) {
        const struct watch *watch = list_entry(node, struct watch, link);
        struct peer_watch seen = {.version = watch->mark,
                                  .flags = watch->present ? PEER_WATCH_PRESENT : 0};
        if (!peer_watched_encode(out, &seen)) return false;
    }
    return true;
}

status
multi_watched_take(struct transaction *tx, struct bytes reply)
{
    u32 count = 0;
    list_for_each (node, &tx->watches)
        count += !list_entry(node, struct watch, link)->filled;
    status st = peer_watched_check(reply, count);
    if (!ok(st)) return st;
    u32 i = 0;
    list_for_each (node, &tx->watches) {
        struct watch *watch = list_entry(node, struct watch, link);
        if (watch->filled) continue;
        struct peer_watch seen = peer_watched_at(reply, i++);
        watch->mark = seen.version;
        watch->present = (seen.flags & PEER_WATCH_PRESENT) != 0;
        watch->filled = true;
    }
    return ST_OK;
}
