/* SPDX-License-Identifier: MIT
 *
 * buf.h -- a growable run of bytes that counts against a budget. Growth is by doubling up to a
 * limit, from there on by a quarter; a failed reserve leaves the content as it was and sets
 * nothing.
 */
#ifndef DISTKV_BASE_BUF_H
#define DISTKV_BASE_BUF_H

#include "base/mem.h"

struct buf {
    struct budget *budget;
    u8 *data;
    size_t size;     /* bytes of content */
    size_t capacity; /* bytes allocated */
};

void buf_init(struct buf *buf, struct budget *budget);
void buf_deinit(struct buf *buf);
/* Makes room for extra more bytes; false when the budget refuses. */
MUST_CHECK bool buf_reserve(struct buf *buf, size_t extra);
/* The same, with no more to spare than the next few bytes want: for what has its size. */
MUST_CHECK bool buf_reserve_close(struct buf *buf, size_t extra);
/* Gives back what is above the content and extra bytes more, if that is much of it. */
void buf_trim(struct buf *buf, size_t extra);
MUST_CHECK bool buf_append(struct buf *buf, const void *data, size_t size);
/* Drops the first count bytes. */
void buf_consume(struct buf *buf, size_t count);
/* What it holds counts against a child of its budget from now on; false: that refuses. */
MUST_CHECK bool buf_move(struct buf *buf, struct budget *child);
/* Keeps the memory if it is at most keep_bytes, else frees it. */
void buf_clear(struct buf *buf, size_t keep_bytes);

static inline struct bytes
buf_bytes(const struct buf *buf)
{
    return BYTES(buf->data, buf->size);
}

#endif
