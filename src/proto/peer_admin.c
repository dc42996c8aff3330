/* SPDX-License-Identifier: MIT
 *
 * peer_admin.c -- see peer_admin.h.
 */
#include "proto/peer_admin.h"

#include "proto/native_codec.h"

#define FIGURES_VERSION 3u

void
peer_admin_encode(enum peer_admin_function function, u8 out[PEER_ADMIN_BYTES])
{
    memset(out, 0, PEER_ADMIN_BYTES);
    out[0] = (u8)function;
}

status
peer_admin_decode(struct bytes body, enum peer_admin_function *out)
{
    struct reader r = reader_of(body);
    u8 function = read_u8(&r);
    read_zeros(&r, 7);
    if (!reader_done(&r) || function == 0) return ST_INVALID;
    if (function > PEER_ADMIN_LEAVE) return ST_UNSUPPORTED;
    *out = (enum peer_admin_function)function;
    return ST_OK;
}

bool
peer_figures_encode(const struct peer_figures *figures, struct buf *out)
{
    CHECK(figures->version.size <= PEER_ADMIN_VERSION_BYTES);
    size_t start = out->size;
    struct writer w = {.out = out};
    write_u8(&w, FIGURES_VERSION);
    write_u8(&w, (u8)figures->version.size);
    write_zeros(&w, 6);
#define X(name) write_u64(&w, figures->name);
    PEER_FIGURES_LIST(X)
#undef X
    write_span(&w, figures->version);
    if (w.failed) out->size = start;
    return !w.failed;
}

/* Shown to people, in JSON. */
static bool
is_printable(struct bytes text)
{
    for (size_t i = 0; i < text.size; i++)
        if (text.data[i] <= ' ' || text.data[i] >= 127 || text.data[i] == '"' ||
            text.data[i] == '\\')
            return false;
    return true;
}

status
peer_figures_decode(struct bytes body, struct peer_figures *out)
{
    struct reader r = reader_of(body);
    struct peer_figures figures;
    u8 version = read_u8(&r);
    u8 size = read_u8(&r);
    read_zeros(&r, 6);
#define X(name) figures.name = read_u64(&r);
    PEER_FIGURES_LIST(X)
#undef X
    figures.version = read_bytes(&r, size);
    if (!reader_done(&r) || version != FIGURES_VERSION || size > PEER_ADMIN_VERSION_BYTES ||
        !is_printable(figures.version))
        return ST_INVALID;
    *out = figures;
    return ST_OK;
}
