/* SPDX-License-Identifier: MIT
 *
 * monitor.c -- MONITOR: every shard knows which shards have monitors and sends each of them a line
 * per command. Lines in flight are bounded; what does not fit is dropped and counted, because a
 * debugging aid must not slow the node down.
 */
#include <stdio.h>

#include "base/fault.h"
#include "server/cmd.h"
#include "server/redact.h"
#include "server/session.h"

#define MONITOR_MAILS_MAX 256u
#define MONITOR_HEAD_MAX  160u /* time, database, address: 110 at most; then the quoted words */

struct monitor_line {
    struct io_mail mail;
    u32 home;
    u32 targets_left;
    u64 shards; /* still to visit */
    u64 vain;   /* bit of the shard that it comes from, where nobody monitors */
    size_t memory;
    u32 size;
    char text[];
};

static void visit_next(struct monitor_line *line);

static void
deliver_back(struct io_mail *mail)
{
    struct monitor_line *line = CONTAINER_OF(mail, struct monitor_line, mail);
    struct shard *shard = shard_self();
    /* A MONITOR that has begun there since is told by a mail behind this one. */
    shard->monitor_shards &= ~line->vain;
    line->vain = 0;
    if (line->shards != 0) {
        visit_next(line);
        return;
    }
    shard->monitor_mails--;
    mem_free(&shard->kept_budget, line, line->memory);
}

/* Lines come unasked, so that not to read from who does not take them bounds nothing. They have no
 * more of the memory for output than leaves as much again to the long replies of others. */
static bool
takes(const struct session *s, u32 size)
{
    if (s->conn == NULL) return false;
    if (!io_conn_output_full(s->conn) && io_conn_piece_fits(s->conn, 2 * (size_t)size)) return true;
    MARK("server.monitor.not_taken");
    return false;
}

static void
deliver_line(struct io_mail *mail)
{
    struct monitor_line *line = CONTAINER_OF(mail, struct monitor_line, mail);
    struct shard *shard = shard_self();
    if (list_empty(&shard->monitors)) line->vain = 1ull << shard->index;
    list_for_each_safe (node, &shard->monitors) {
        struct session *s = list_entry(node, struct session, monitor_link);
        if (s->pending_count != 0) continue; /* not before the reply to MONITOR itself */
        if (takes(s, line->size))
            session_write(s, BYTES(line->text, line->size), 0);
        else
            shard->stats->monitor_dropped++;
    }
    line->mail.deliver = deliver_back;
    io_mail_send(line->home, &line->mail);
}

static void
visit_next(struct monitor_line *line)
{
    u32 target = (u32)__builtin_ctzll(line->shards);
    line->shards &= line->shards - 1;
    line->mail.deliver = deliver_line;
    io_mail_send(target, &line->mail);
}

/* "text" with what cannot be printed as \xNN. Returns the end. */
static char *
quote(char *at, struct bytes text)
{
    *at++ = '"';
    for (size_t i = 0; i < text.size; i++) {
        u8 c = text.data[i];
        const char *short_form = NULL;
        switch (c) {
        case '\\':
            short_form = "\\\\";
            break;
        case '"':
            short_form = "\\\"";
            break;
        case '\n':
            short_form = "\\n";
            break;
        case '\r':
            short_form = "\\r";
            break;
        case '\t':
            short_form = "\\t";
            break;
        case '\a':
            short_form = "\\a";
            break;
        case '\b':
            short_form = "\\b";
            break;
        default:
            break;
        }
        if (short_form != NULL) {
            *at++ = short_form[0];
            *at++ = short_form[1];
        } else if (c < 32 || c > 126) {
            *at++ = '\\'; /* not by snprintf: a value has up to a million of them */
            *at++ = 'x';
            *at++ = "0123456789abcdef"[c >> 4];
            *at++ = "0123456789abcdef"[c & 15];
        } else {
            *at++ = (char)c;
        }
    }
    *at++ = '"';
    return at;
}

void
monitor_feed(struct shard *shard, const struct session *s, u16 keyspace,
             const struct command *command, const struct bytes *args, u32 arg_count)
{
    size_t room = MONITOR_HEAD_MAX;
    struct redactor redactor = {.command = command};
    for (u32 i = 0; i < arg_count; i++)
        room += redact_next(&redactor, args[i]).size * 4 + 3;
    struct monitor_line *line = NULL;
    if (shard->monitor_mails < MONITOR_MAILS_MAX && room < MIB(4))
        line = mem_alloc(&shard->kept_budget, sizeof(*line) + room);
    if (line == NULL) {
        shard->stats->monitor_dropped++;
        return;
    }
    memset(line, 0, sizeof(*line));
    line->memory = sizeof(*line) + room;
    line->home = shard->index;
    line->shards = shard->monitor_shards;
    list_init(&line->mail.link);
    char peer[64];
    session_peer(s, peer, sizeof(peer));
    u64 ms = io_wall_ms();
    char *at = line->text;
    at += snprintf(at, MONITOR_HEAD_MAX, "+%llu.%06llu [%u %s]", (unsigned long long)(ms / 1000),
                   (unsigned long long)(ms % 1000 * 1000), keyspace, peer);
    redactor = (struct redactor){.command = command};
    for (u32 i = 0; i < arg_count; i++) {
        *at++ = ' ';
        at = quote(at, redact_next(&redactor, args[i]));
    }
    *at++ = '\r';
    *at++ = '\n';
    line->size = (u32)(at - line->text);
    shard->monitor_mails++;
    visit_next(line);
}

/* ---- who monitors ---- */

struct announcement {
    u64 bit;
    bool on;
};

static void
note(void *arg)
{
    const struct announcement *announcement = arg;
    struct shard *shard = shard_self();
    if (announcement->on)
        shard->monitor_shards |= announcement->bit;
    else
        shard->monitor_shards &= ~announcement->bit;
}

MAY_YIELD void
monitor_start(struct session *s)
{
    if (s->monitor || s->conn == NULL) return;
    s->monitor = true;
    list_push_back(&s->shard->monitors, &s->monitor_link);
    struct announcement announcement = {.bit = 1ull << s->shard->index, .on = true};
    shard_for_all_possible(s->shard, note, &announcement);
}

/* A fiber tells the other shards. Where there is none for it, or a shard could not be told, the next
 * line that is sent here in vain comes back with that (deliver_line). */
MAY_YIELD static void
announce_end(void *arg)
{
    struct shard *shard = arg;
    struct announcement announcement = {.bit = 1ull << shard->index, .on = false};
    if (!list_empty(&shard->monitors)) announcement.on = true;
    shard_for_all_possible(shard, note, &announcement);
    /* A MONITOR that has begun meanwhile may have been overtaken, where a call was refused. */
    if (!announcement.on && !list_empty(&shard->monitors)) {
        announcement.on = true;
        shard_for_all_possible(shard, note, &announcement);
    }
    shard->workers.fibers--;
    if (shard->workers.fibers == 0) fiber_queue_wake_all(&shard->workers.idle);
}

void
monitor_stop(struct session *s)
{
    if (!s->monitor) return;
    s->monitor = false;
    list_del(&s->monitor_link);
    if (!list_empty(&s->shard->monitors) || s->shard->draining) return;
    if (BUGGIFY("server.monitor.end_not_told")) return;
    status st = fiber_spawn(FIBER_FOREGROUND, "monitor_end", announce_end, s->shard);
    if (ok(st)) s->shard->workers.fibers++;
}

MAY_YIELD void
cmd_monitor(struct exec *x)
{
    if (x->session->monitor) return; /* no reply, as in Redis */
    resp_ok(x->reply);
    monitor_start(x->session);
}
