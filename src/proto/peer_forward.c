/* SPDX-License-Identifier: MIT
 *
 * peer_forward.c -- see peer_forward.h.
 */
#include "proto/peer_forward.h"

#include "proto/native_codec.h"

#define FORWARD_VERSION    2u
#define FORWARD_HEAD_BYTES 20u
#define FORWARD_MOVED      128u
#define WATCH_BYTES        12u
#define COUNT_BYTES        4u
#define WATCHED_BYTES      16u
#define WATCHED_REPLY      "+OK\r\n"
#define WATCHED_REPLY_SIZE (sizeof(WATCHED_REPLY) - 1)

static_assert(FORWARD_HEAD_BYTES == 1 + 1 + 1 + 1 + 4 + 8 + 4, "as peer_forward.h draws it");

static bool
is_transaction(const struct peer_forward *forward)
{
    return forward->kind == PEER_FORWARD_EXEC || forward->kind == PEER_FORWARD_WATCH;
}

/* ---- encoding ---- */

bool
peer_forward_begin(struct buf *out, const struct peer_forward *forward)
{
    struct writer w = {.out = out};
    write_u8(&w, FORWARD_VERSION);
    write_u8(&w, forward->resp);
    write_u8(&w, forward->level);
    write_u8(&w, (u8)((u32)forward->kind | (forward->moved ? FORWARD_MOVED : 0)));
    write_u32(&w, forward->age_ms);
    write_u64(&w, forward->until_ms);
    write_u32(&w, forward->arg_count);
    if (is_transaction(forward)) {
        write_u32(&w, forward->watch_count);
        write_u32(&w, forward->command_count);
    }
    return !w.failed;
}

bool
peer_forward_watch(struct buf *out, const struct peer_watch *watch)
{
    struct writer w = {.out = out};
    write_u64(&w, watch->version);
    write_u16(&w, watch->keyspace);
    write_u8(&w, watch->flags);
    write_zeros(&w, 1);
    return !w.failed;
}

bool
peer_forward_count(struct buf *out, u32 arg_count)
{
    struct writer w = {.out = out};
    write_u32(&w, arg_count);
    return !w.failed;
}

bool
peer_forward_arg(struct buf *out, struct bytes arg)
{
    struct writer w = {.out = out};
    write_u32(&w, (u32)arg.size);
    write_span(&w, arg);
    return !w.failed;
}

/* ---- decoding ---- */

static bool
watches_fit(struct bytes watches)
{
    struct reader r = reader_of(watches);
    while (r.size > 0 && !r.failed) {
        (void)read_u64(&r);
        (void)read_u16(&r);
        u8 flags = read_u8(&r);
        read_zeros(&r, 1);
        if (flags > (PEER_WATCH_PRESENT | PEER_WATCH_OLD)) return false;
    }
    return !r.failed;
}

static bool
args_fit(struct bytes args, u32 count)
{
    struct reader r = reader_of(args);
    for (u32 i = 0; i < count && !r.failed; i++)
        (void)read_bytes(&r, read_u32(&r));
    return reader_done(&r);
}

/* The watches and the commands' counts. */
static bool
read_transaction(struct reader *r, struct peer_forward *f)
{
    f->watch_count = read_u32(r);
    f->command_count = read_u32(r);
    if (f->watch_count > f->arg_count || f->command_count > f->arg_count) return false;
    f->watches = read_bytes(r, (size_t)f->watch_count * WATCH_BYTES);
    f->counts = read_bytes(r, (size_t)f->command_count * COUNT_BYTES);
    if (r->failed || !watches_fit(f->watches)) return false;
    u64 args = f->watch_count;
    for (u32 i = 0; i < f->command_count; i++) {
        u32 count = peer_forward_count_at(f, i);
        if (count == 0) return false;
        args += count;
    }
    return args == f->arg_count && (f->kind == PEER_FORWARD_EXEC || f->command_count == 0);
}

status
peer_forward_decode(struct bytes body, struct peer_forward *out)
{
    struct reader r = reader_of(body);
    struct peer_forward f = {0};
    u8 version = read_u8(&r);
    f.resp = read_u8(&r);
    f.level = read_u8(&r);
    u8 kind = read_u8(&r);
    f.moved = (kind & FORWARD_MOVED) != 0;
    kind &= FORWARD_MOVED - 1;
    f.age_ms = read_u32(&r);
    f.until_ms = read_u64(&r);
    f.arg_count = read_u32(&r);
    if (r.failed || version != FORWARD_VERSION || f.resp == 1 || f.resp > 3 ||
        kind > PEER_FORWARD_FLUSH || f.arg_count == 0 || f.arg_count > PEER_FORWARD_ARGS_MAX)
        return ST_INVALID;
    f.kind = (enum peer_forward_kind)kind;
    if (f.kind != PEER_FORWARD_COMMAND && f.resp == 0) return ST_INVALID;
    if (f.moved && f.resp != 0) return ST_INVALID;
    if (is_transaction(&f) && !read_transaction(&r, &f)) return ST_INVALID;
    f.args = read_rest(&r);
    if (!args_fit(f.args, f.arg_count)) return ST_INVALID;
    *out = f;
    return ST_OK;
}

void
peer_forward_args(const struct peer_forward *forward, struct bytes *out)
{
    struct reader r = reader_of(forward->args);
    for (u32 i = 0; i < forward->arg_count; i++)
        out[i] = read_bytes(&r, read_u32(&r));
    CHECK(reader_done(&r));
}

struct peer_watch
peer_forward_watch_at(const struct peer_forward *forward, u32 i)
{
    CHECK(i < forward->watch_count);
    const u8 *at = forward->watches.data + (size_t)i * WATCH_BYTES;
    return (struct peer_watch){
        .version = load_u64(at), .keyspace = load_u16(at + 8), .flags = at[10]};
}

u32
peer_forward_count_at(const struct peer_forward *forward, u32 i)
{
    CHECK(i < forward->command_count);
    return load_u32(forward->counts.data + (size_t)i * COUNT_BYTES);
}

/* ---- the answer of WATCH ---- */

bool
peer_watched_encode(struct buf *out, const struct peer_watch *watch)
{
    struct writer w = {.out = out};
    write_u64(&w, watch->version);
    write_u8(&w, watch->flags);
    write_zeros(&w, 7);
    return !w.failed;
}

status
peer_watched_check(struct bytes reply, u32 count)
{
    struct reader r = reader_of(reply);
    struct bytes words = read_bytes(&r, WATCHED_REPLY_SIZE);
    if (r.failed || memcmp(words.data, WATCHED_REPLY, WATCHED_REPLY_SIZE) != 0) return ST_INVALID;
    for (u32 i = 0; i < count && !r.failed; i++) {
        (void)read_u64(&r);
        if (read_u8(&r) > PEER_WATCH_PRESENT) return ST_INVALID;
        read_zeros(&r, 7);
    }
    return reader_done(&r) ? ST_OK : ST_INVALID;
}

struct peer_watch
peer_watched_at(struct bytes reply, u32 i)
{
    CHECK(reply.size >= WATCHED_REPLY_SIZE + ((size_t)i + 1) * WATCHED_BYTES);
    const u8 *at = reply.data + WATCHED_REPLY_SIZE + (size_t)i * WATCHED_BYTES;
    return (struct peer_watch){.version = load_u64(at), .flags = at[8]};
}
