/* SPDX-License-Identifier: MIT
 *
 * types.h -- integer names, byte spans, checks and the few attributes that the whole tree uses.
 *
 * CHECK stays on in release builds: it guards data and costs a predictable branch. DCHECK may walk
 * a structure; it is compiled always (so that it cannot rot) and evaluated when DISTKV_DCHECK is 1.
 * Neither may depend on bytes that came from a peer or from disk: those are outcomes, not bugs.
 */
#ifndef DISTKV_BASE_TYPES_H
#define DISTKV_BASE_TYPES_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;

static_assert(sizeof(size_t) == 8, "64-bit hosts only: offsets and sizes share one width");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the formats are little-endian");

/* A borrowed run of bytes. Never owns; data may be NULL when size is 0. */
struct bytes {
    const u8 *data;
    size_t size;
};

#define BYTES(ptr, len)     ((struct bytes){.data = (const u8 *)(ptr), .size = (len)})
#define BYTES_LITERAL(text) BYTES((text), sizeof(text) - 1)

/* Marks a function that may suspend the calling fiber: everything read before the call is stale
 * after it. Written on declaration and definition; tools/tidy checks that callers carry it too. */
#define MAY_YIELD
/* Marks a struct whose bytes are stored or sent as they are. */
#define ONDISK                      __attribute__((packed))
#define MUST_CHECK                  __attribute__((warn_unused_result))
#define PRINTF_LIKE(pattern, first) __attribute__((format(printf, pattern, first)))
#define NORETURN                    __attribute__((noreturn))
#define ALIGNED(n)                  __attribute__((aligned(n)))
#define LIKELY(x)                   __builtin_expect(!!(x), 1)
#define UNLIKELY(x)                 __builtin_expect(!!(x), 0)
#define UNUSED                      __attribute__((unused))

#define CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define ARRAY_COUNT(array)              (sizeof(array) / sizeof((array)[0]))
#define MIN(a, b)                       ((a) < (b) ? (a) : (b))
#define MAX(a, b)                       ((a) > (b) ? (a) : (b))
#define CLAMP(x, lo, hi)                ((x) < (lo) ? (lo) : (x) > (hi) ? (hi) : (x))

#define KIB(n)    ((u64)(n) << 10)
#define MIB(n)    ((u64)(n) << 20)
#define GIB(n)    ((u64)(n) << 30)
#define NS_PER_US 1000ull
#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

/* Prints the failed condition with the place and a backtrace, then aborts. */
NORETURN void check_failed(const char *condition, const char *file, int line);

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (UNLIKELY(!(cond))) check_failed(#cond, __FILE__, __LINE__);                            \
    } while (0)

#ifndef DISTKV_DCHECK
#define DISTKV_DCHECK 0
#endif
#define DCHECK(cond)                                                                               \
    do {                                                                                           \
        if (DISTKV_DCHECK && UNLIKELY(!(cond))) check_failed(#cond, __FILE__, __LINE__);           \
    } while (0)

static inline u64
align_up(u64 value, u64 alignment)
{
    return (value + alignment - 1) & ~(alignment - 1);
}

static inline u64
align_down(u64 value, u64 alignment)
{
    return value & ~(alignment - 1);
}

static inline bool
is_power_of_two(u64 value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

/* Lexicographic order of unsigned bytes, shorter first on a tie: the order of keys. */
static inline int
bytes_compare(struct bytes a, struct bytes b)
{
    size_t shared = MIN(a.size, b.size);
    int order = shared == 0 ? 0 : memcmp(a.data, b.data, shared);
    if (order != 0) return order;
    return a.size < b.size ? -1 : a.size > b.size;
}

static inline bool
bytes_equal(struct bytes a, struct bytes b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

/* Unaligned little-endian access, without breaking the aliasing rules. */
static inline u16
load_u16(const void *p)
{
    u16 v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline u32
load_u32(const void *p)
{
    u32 v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline u64
load_u64(const void *p)
{
    u64 v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void
store_u16(void *p, u16 v)
{
    memcpy(p, &v, sizeof(v));
}

static inline void
store_u32(void *p, u32 v)
{
    memcpy(p, &v, sizeof(v));
}

static inline void
store_u64(void *p, u64 v)
{
    memcpy(p, &v, sizeof(v));
}

#endif
