/* SPDX-License-Identifier: MIT
 *
 * buf.c -- see buf.h. Grows by doubling while small, so that many small appends stay cheap, and
 * by a quarter when large, where doubling would take from the budget what nobody needs.
 */
#include "base/buf.h"

#define BUF_CAPACITY_MIN 256u
/* From here on not doubled, but a quarter more than is needed: a value of 1 MiB with its head would
 * take 2 MiB. */
#define BUF_DOUBLED_MAX (64u << 10)
#define BUF_CAPACITY_OF 4096u
#define BUF_SPARE_BYTES 1024u

void
buf_init(struct buf *buf, struct budget *budget)
{
    *buf = (struct buf){.budget = budget};
}

void
buf_deinit(struct buf *buf)
{
    mem_free(buf->budget, buf->data, buf->capacity);
    buf_init(buf, buf->budget);
}

static bool
buf_resize(struct buf *buf, size_t capacity)
{
    u8 *data = mem_realloc(buf->budget, buf->data, buf->capacity, capacity);
    if (data == NULL) return false;
    buf->data = data;
    buf->capacity = capacity;
    return true;
}

bool
buf_reserve(struct buf *buf, size_t extra)
{
    if (extra <= buf->capacity - buf->size) return true;
    if (extra > SIZE_MAX / 4 - buf->size) return false;
    size_t need = buf->size + extra;
    size_t capacity = MAX(buf->capacity, BUF_CAPACITY_MIN);
    while (capacity < need && capacity < BUF_DOUBLED_MAX)
        capacity *= 2;
    if (capacity < need) capacity = (size_t)align_up(need + need / 4, BUF_CAPACITY_OF);
    return buf_resize(buf, capacity);
}

bool
buf_reserve_close(struct buf *buf, size_t extra)
{
    if (extra <= buf->capacity - buf->size) return true;
    if (extra > SIZE_MAX / 4 - buf->size) return false;
    size_t need = buf->size + extra + BUF_SPARE_BYTES;
    return buf_resize(buf, (size_t)align_up(need, BUF_CAPACITY_OF));
}

void
buf_trim(struct buf *buf, size_t extra)
{
    size_t capacity = (size_t)align_up(buf->size + extra + BUF_SPARE_BYTES, BUF_CAPACITY_OF);
    /* Who finds no memory for less keeps it as it is. */
    if (capacity <= buf->capacity / 2) (void)!buf_resize(buf, capacity);
}

bool
buf_append(struct buf *buf, const void *data, size_t size)
{
    if (!buf_reserve(buf, size)) return false;
    if (size > 0) memcpy(buf->data + buf->size, data, size);
    buf->size += size;
    return true;
}

void
buf_consume(struct buf *buf, size_t count)
{
    CHECK(count <= buf->size);
    buf->size -= count;
    if (buf->size > 0 && count > 0) memmove(buf->data, buf->data + count, buf->size);
}

bool
buf_move(struct buf *buf, struct budget *child)
{
    CHECK(child->parent == buf->budget);
    if (!budget_take_over(child, buf->capacity)) return false;
    buf->budget = child;
    return true;
}

void
buf_clear(struct buf *buf, size_t keep_bytes)
{
    buf->size = 0;
    if (buf->capacity > keep_bytes) buf_deinit(buf);
}
