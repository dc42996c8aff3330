/* SPDX-License-Identifier: MIT
 *
 * cmd_connection.c -- the commands about the connection itself: HELLO, AUTH, SELECT, CLIENT ...
 */
#include <stdio.h>
#include <stdlib.h>

#include "server/cmd.h"
#include "server/session.h"

/* Of a client's name, its library's name and version. */
#define CLIENT_NAME_BYTES_MAX 255u

void
cmd_ping(struct exec *x)
{
    if (x->arg_count > 2)
        resp_error(x->reply, "ERR wrong number of arguments for 'ping' command");
    else if (x->arg_count == 2)
        cmd_echo(x);
    else
        resp_simple(x->reply, "PONG");
}

void
cmd_echo(struct exec *x)
{
    resp_bulk(x->reply, x->args[1]);
    if (x->reply->failed) exec_fail(x, ST_NO_MEMORY);
}

void
cmd_quit(struct exec *x)
{
    x->session->close_after = true;
    resp_ok(x->reply);
}

void
cmd_select(struct exec *x)
{
    if (cmd_arg_db(x, 1, &x->session->keyspace)) resp_ok(x->reply);
}

void
cmd_reset(struct exec *x)
{
    struct session *s = x->session;
    session_multi_free(s);
    monitor_stop(s);
    s->keyspace = 0;
    s->resp = 2;
    s->reply_off = s->reply_skip_next = false; /* what is to be skipped now is this reply */
    s->no_evict = false;
    s->level = REPLICATE_DEFAULT;
    buf_clear(&s->name, 0);
    s->authenticated = !config_has_password(x->shard->config);
    x->reply->version = 2;
    resp_simple(x->reply, "RESET");
}

void
cmd_distkv_consistency(struct exec *x)
{
    static const char *const names[] = {"default", "one", "quorum", "all"};
    static_assert(REPLICATE_DEFAULT == 0 && REPLICATE_ONE == 1 && REPLICATE_QUORUM == 2 &&
                      REPLICATE_ALL == 3,
                  "names follows the enum");
    if (x->arg_count == 1) {
        resp_bulk_text(x->reply, names[x->session->level]);
        return;
    }
    for (u32 i = 0; i < ARRAY_COUNT(names) && x->arg_count == 2; i++) {
        if (!cmd_arg_is(x, 1, names[i])) continue;
        x->session->level = (u8)i;
        resp_ok(x->reply);
        return;
    }
    resp_error(x->reply, CMD_SYNTAX);
}

/* ---- who is there ---- */

static bool
authenticate(struct exec *x, struct bytes user, struct bytes password)
{
    const struct server_config *config = x->shard->config;
    bool known = user.size == 7 && memcmp(user.data, "default", 7) == 0;
    bool right = !config_has_password(config) || config_password_matches(config, password);
    if (known && right) {
        x->session->authenticated = true;
        return true;
    }
    resp_error(x->reply, "WRONGPASS invalid username-password pair or user is disabled.");
    return false;
}

void
cmd_auth(struct exec *x)
{
    if (x->arg_count > 3) {
        resp_error(x->reply, CMD_SYNTAX);
        return;
    }
    if (x->arg_count == 2 && !config_has_password(x->shard->config)) {
        resp_error(x->reply,
                   "ERR AUTH <password> called without any password configured for the default "
                   "user. Are you sure your configuration is correct?");
        return;
    }
    struct bytes user = x->arg_count == 3 ? x->args[1] : BYTES_LITERAL("default");
    if (authenticate(x, user, x->args[x->arg_count - 1])) resp_ok(x->reply);
}

static bool
printable(struct bytes name)
{
    for (size_t i = 0; i < name.size; i++)
        if (name.data[i] < '!' || name.data[i] > '~') return false;
    return true;
}

/* Replies the error itself. */
static bool
name_is_fit(struct exec *x, struct bytes name, const char *refusal)
{
    if (printable(name) && name.size <= CLIENT_NAME_BYTES_MAX) return true;
    resp_error(x->reply, "%s", refusal);
    return false;
}

/* Keeps a name; replies the error itself. */
static bool
keep_name(struct exec *x, struct buf *target, struct bytes name, const char *refusal)
{
    if (!name_is_fit(x, name, refusal)) return false;
    buf_clear(target, CLIENT_NAME_BYTES_MAX);
    if (buf_append(target, name.data, name.size)) return true;
    exec_fail(x, ST_NO_MEMORY);
    return false;
}

#define BAD_CLIENT_NAME "ERR Client names cannot contain spaces, newlines or special characters."

void
cmd_hello(struct exec *x)
{
    struct session *s = x->session;
    i64 version = s->resp;
    if (x->arg_count > 1) {
        if (!number_parse_i64(x->args[1], &version)) {
            resp_error(x->reply, "ERR Protocol version is not an integer or out of range");
            return;
        }
        if (version < 2 || version > 3) {
            resp_error(x->reply, "NOPROTO unsupported protocol version");
            return;
        }
    }
    u32 auth = 0, name = 0;
    for (u32 i = 2; i < x->arg_count; i++) {
        u32 left = x->arg_count - 1 - i;
        if (cmd_arg_is(x, i, "auth") && left >= 2) {
            auth = i + 1;
            i += 2;
        } else if (cmd_arg_is(x, i, "setname") && left >= 1) {
            name = ++i; /* each of several is judged, before it is let in: a refusal does nothing */
            if (!name_is_fit(x, x->args[name], BAD_CLIENT_NAME)) return;
        } else {
            resp_error(x->reply, "ERR Syntax error in HELLO option '%.*s'",
                       (int)MIN(x->args[i].size, 128u), (const char *)x->args[i].data);
            return;
        }
    }
    if (auth != 0 && !authenticate(x, x->args[auth], x->args[auth + 1])) return;
    if (!session_is_let_in(s)) {
        resp_error(x->reply,
                   "NOAUTH HELLO must be called with the client already authenticated, otherwise "
                   "the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the "
                   "client and select the RESP protocol version at the same time");
        return;
    }
    if (name != 0 && !keep_name(x, &s->name, x->args[name], BAD_CLIENT_NAME)) return;

    s->resp = (u8)version;
    x->reply->version = s->resp;
    resp_map(x->reply, 7);
    resp_bulk_text(x->reply, "server");
    resp_bulk_text(x->reply, "redis");
    resp_bulk_text(x->reply, "version");
    resp_bulk_text(x->reply, SERVER_REDIS_VERSION);
    resp_bulk_text(x->reply, "proto");
    resp_integer(x->reply, s->resp);
    resp_bulk_text(x->reply, "id");
    resp_integer(x->reply, (i64)s->id);
    resp_bulk_text(x->reply, "mode");
    resp_bulk_text(x->reply, config_redis_mode(x->shard->config));
    resp_bulk_text(x->reply, "role");
    resp_bulk_text(x->reply, "master");
    resp_bulk_text(x->reply, "modules");
    resp_array(x->reply, 0);
}

void
cmd_acl_whoami(struct exec *x)
{
    resp_bulk_text(x->reply, "default");
}

/* ---- CLIENT ---- */

void
cmd_client_id(struct exec *x)
{
    resp_integer(x->reply, (i64)x->session->id);
}

void
cmd_client_getname(struct exec *x)
{
    if (x->session->name.size == 0)
        resp_null(x->reply);
    else
        resp_bulk(x->reply, buf_bytes(&x->session->name));
}

void
cmd_client_setname(struct exec *x)
{
    if (keep_name(x, &x->session->name, x->args[2], BAD_CLIENT_NAME)) resp_ok(x->reply);
}

void
cmd_client_setinfo(struct exec *x)
{
    struct session *s = x->session;
    bool kept = false;
    if (cmd_arg_is(x, 2, "lib-name") || cmd_arg_is(x, 2, "lib-ver")) {
        char refusal[96]; /* names the option as it was written */
        snprintf(refusal, sizeof(refusal),
                 "ERR %.*s cannot contain spaces, newlines or special characters.",
                 (int)x->args[2].size, (const char *)x->args[2].data);
        bool name = cmd_arg_is(x, 2, "lib-name");
        kept = keep_name(x, name ? &s->lib_name : &s->lib_version, x->args[3], refusal);
    } else {
        resp_error(x->reply, "ERR Unrecognized option '%.*s'", (int)MIN(x->args[2].size, 128u),
                   (const char *)x->args[2].data);
    }
    if (kept) resp_ok(x->reply);
}

void
cmd_client_reply(struct exec *x)
{
    struct session *s = x->session;
    if (cmd_arg_is(x, 2, "on")) {
        s->reply_off = s->reply_skip = false;
        resp_ok(x->reply);
    } else if (cmd_arg_is(x, 2, "off")) {
        s->reply_off = true;
    } else if (cmd_arg_is(x, 2, "skip")) {
        if (!s->reply_off) s->reply_skip_next = true;
    } else {
        resp_error(x->reply, CMD_SYNTAX);
    }
}

void
cmd_client_no_evict(struct exec *x)
{
    bool on = cmd_arg_is(x, 2, "on");
    if (!on && !cmd_arg_is(x, 2, "off")) {
        resp_error(x->reply, CMD_SYNTAX);
        return;
    }
    x->session->no_evict = on;
    resp_ok(x->reply);
}

#define CLIENT_LINE_BYTES 1536u

static void
reply_text(struct exec *x, struct bytes text)
{
    resp_verbatim(x->reply, "txt", text);
}

void
cmd_client_info(struct exec *x)
{
    char *line = (char *)exec_alloc(x, CLIENT_LINE_BYTES);
    if (line == NULL) return;
    size_t size = session_describe(x->session, line, CLIENT_LINE_BYTES - 1);
    line[size++] = '\n';
    reply_text(x, BYTES(line, size));
}

/* A walk over the sessions of a shard in pieces: what fits into text. */
struct list_call {
    char *text;
    size_t size, used;
    u64 after_id;
    const u64 *ids; /* NULL: all */
    u32 id_count;
    bool more;
};

#define LIST_PIECE_BYTES (64u << 10)
/* Each client is compared with each of them, without a pause. */
#define LIST_IDS_MAX 1024u

static void
list_here(void *arg)
{
    struct list_call *call = arg;
    struct shard *shard = shard_self();
    call->used = 0;
    call->more = false;
    list_for_each (node, &shard->sessions) {
        const struct session *s = list_entry(node, struct session, link);
        if (s->id <= call->after_id || s->conn == NULL) continue;
        bool wanted = call->ids == NULL;
        for (u32 i = 0; i < call->id_count; i++)
            if (call->ids[i] == s->id) wanted = true;
        if (!wanted) continue;
        if (call->size - call->used < CLIENT_LINE_BYTES) {
            call->more = true;
            return;
        }
        call->used += session_describe(s, call->text + call->used, CLIENT_LINE_BYTES - 1);
        call->text[call->used++] = '\n';
        call->after_id = s->id;
    }
}

MAY_YIELD void
cmd_client_list(struct exec *x)
{
    u64 *ids = NULL;
    u32 id_count = 0;
    bool none = false;
    if (x->arg_count == 4 && cmd_arg_is(x, 2, "type")) {
        if (cmd_arg_is(x, 3, "master") || cmd_arg_is(x, 3, "replica") ||
            cmd_arg_is(x, 3, "slave") || cmd_arg_is(x, 3, "pubsub")) {
            none = true;
        } else if (!cmd_arg_is(x, 3, "normal")) {
            resp_error(x->reply, "ERR Unknown client type '%.*s'", (int)MIN(x->args[3].size, 128u),
                       (const char *)x->args[3].data);
            return;
        }
    } else if (x->arg_count > 3 && cmd_arg_is(x, 2, "id")) {
        id_count = x->arg_count - 3;
        if (id_count > LIST_IDS_MAX) {
            resp_error(x->reply, "ERR too many client IDs: at most %u", LIST_IDS_MAX);
            return;
        }
        ids = (u64 *)(void *)exec_alloc(x, id_count * sizeof(*ids));
        if (ids == NULL) return;
        for (u32 i = 0; i < id_count; i++) {
            i64 id;
            if (!number_parse_i64(x->args[3 + i], &id)) {
                resp_error(x->reply, "ERR Invalid client ID");
                return;
            }
            ids[i] = (u64)MAX(id, 0); /* nobody has 0 */
        }
    } else if (x->arg_count != 2) {
        resp_error(x->reply, CMD_SYNTAX);
        return;
    }
    struct buf text;
    buf_init(&text, &x->shard->budget);
    char *piece = (char *)exec_alloc(x, LIST_PIECE_BYTES);
    if (piece == NULL) return;
    for (u32 i = 0; i < x->shard->server->shard_count && !none; i++) {
        struct list_call call = {
            .text = piece, .size = LIST_PIECE_BYTES, .ids = ids, .id_count = id_count};
        do {
            call.used = 0;
            call.more = false;
            status st = io_shard_call(i, FIBER_FOREGROUND, list_here, &call);
            if (!ok(st)) break;
            if (!buf_append(&text, piece, call.used)) {
                exec_fail(x, ST_NO_MEMORY);
                call.more = false;
            }
        } while (call.more);
    }
    if (!x->stopped) reply_text(x, buf_bytes(&text));
    buf_deinit(&text);
}

struct kill_call {
    struct bytes addr, laddr, user;
    u64 id; /* 0: any */
    u64 self;
    bool skip_self, none;
    u64 killed;
    bool self_killed;
};

static void
kill_here(void *arg)
{
    struct kill_call *call = arg;
    list_for_each_safe (node, &shard_self()->sessions) {
        struct session *s = list_entry(node, struct session, link);
        char name[64];
        if (s->conn == NULL || s->closing) continue;
        if (call->id != 0 && s->id != call->id) continue;
        io_conn_peer_name(s->conn, name, sizeof(name));
        if (call->addr.data != NULL && !bytes_equal(call->addr, BYTES(name, strlen(name))))
            continue;
        io_conn_local_name(s->conn, name, sizeof(name));
        if (call->laddr.data != NULL && !bytes_equal(call->laddr, BYTES(name, strlen(name))))
            continue;
        if (s->id == call->self) {
            if (call->skip_self) continue;
            call->self_killed = true;
        } else {
            session_abort(s);
        }
        call->killed++;
    }
}

MAY_YIELD void
cmd_client_kill(struct exec *x)
{
    struct session *s = x->session;
    struct kill_call call = {.self = s->id, .skip_self = true};
    bool old_form = x->arg_count == 3;
    if (old_form) {
        call.addr = x->args[2];
        call.skip_self = false;
    } else {
        for (u32 i = 2; i < x->arg_count; i += 2) {
            if (!exec_turn(x)) return;
            if (i + 1 >= x->arg_count) {
                resp_error(x->reply, CMD_SYNTAX);
                return;
            }
            struct bytes value = x->args[i + 1];
            i64 id;
            if (cmd_arg_is(x, i, "id")) {
                if (!number_parse_i64(value, &id) || id < 1) {
                    resp_error(x->reply, "ERR client-id should be greater than 0");
                    return;
                }
                call.id = (u64)id;
            } else if (cmd_arg_is(x, i, "type")) {
                if (text_is(value, "master") || text_is(value, "slave") ||
                    text_is(value, "replica") || text_is(value, "pubsub")) {
                    call.none = true;
                } else if (!text_is(value, "normal")) {
                    resp_error(x->reply, "ERR Unknown client type '%.*s'",
                               (int)MIN(value.size, 128u), (const char *)value.data);
                    return;
                }
            } else if (cmd_arg_is(x, i, "addr")) {
                call.addr = value;
            } else if (cmd_arg_is(x, i, "laddr")) {
                call.laddr = value;
            } else if (cmd_arg_is(x, i, "user")) {
                if (!(value.size == 7 && memcmp(value.data, "default", 7) == 0)) {
                    resp_error(x->reply, "ERR No such user '%.*s'", (int)MIN(value.size, 128u),
                               (const char *)value.data);
                    return;
                }
            } else if (cmd_arg_is(x, i, "skipme")) {
                if (text_is(value, "yes")) {
                    call.skip_self = true;
                } else if (text_is(value, "no")) {
                    call.skip_self = false;
                } else {
                    resp_error(x->reply, CMD_SYNTAX);
                    return;
                }
            } else {
                resp_error(x->reply, CMD_SYNTAX);
                return;
            }
        }
    }
    if (!call.none) shard_for_all_possible(x->shard, kill_here, &call);
    if (call.self_killed) s->close_after = true;
    if (!old_form)
        resp_integer(x->reply, (i64)call.killed);
    else if (call.killed == 0)
        resp_error(x->reply, "ERR No such client");
    else
        resp_ok(x->reply);
}
