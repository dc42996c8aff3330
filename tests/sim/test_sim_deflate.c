/* SPDX-License-Identifier: MIT
 *
 * test_sim_deflate.c -- deflate gives the same bytes on every machine (sim_deflate.c). The hash
 * below is what the portable code makes; isa-l's code for any processor with SSE4.2 makes others.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"
#include "io/sim.h"
#include "lsm/codec.h"

#define RAW_BYTES   32768u
#define PACKED_HASH 0xf4a3578f68841dddull

static u64 packed_hash;
static u32 packed_bytes;

/* Texts with matches near and far, and some noise. */
static void
raw_fill(u8 *raw)
{
    struct prng prng;
    prng_init(&prng, 11);
    for (u32 i = 0; i < RAW_BYTES;) {
        u32 size = (u32)MIN(prng_range(&prng, 1, 40), (u64)RAW_BYTES - i);
        u32 back = (u32)prng_range(&prng, 1, 5000);
        bool copies = back < i && prng_chance(&prng, 3, 4);
        for (u32 n = 0; n < size; n++, i++)
            raw[i] = copies ? raw[i - back] : (u8)(prng_below(&prng, 90) + 32);
    }
}

static status
compress_main(void *arg)
{
    (void)arg;
    size_t state_bytes = codec_state_bytes(LSM_CODEC_DEFLATE);
    void *state = mem_alloc(io_budget(), state_bytes);
    u8 *raw = malloc(RAW_BYTES), *packed = malloc(RAW_BYTES), *again = malloc(RAW_BYTES);
    CHECK(state != NULL && raw != NULL && packed != NULL && again != NULL);
    raw_fill(raw);
    packed_bytes = codec_compress(LSM_CODEC_DEFLATE, state, raw, RAW_BYTES, packed, RAW_BYTES);
    packed_hash = hash_bytes(packed, packed_bytes, 0);
    status st = codec_decompress(LSM_CODEC_DEFLATE, io_budget(), BYTES(packed, packed_bytes), again,
                                 RAW_BYTES);
    if (ok(st) && memcmp(raw, again, RAW_BYTES) != 0) st = ST_CORRUPT;
    free(raw);
    free(packed);
    free(again);
    mem_free(io_budget(), state, state_bytes);
    return st;
}

static void
deflate_makes_the_same_bytes_on_every_machine(void **state)
{
    (void)state;
    assert_true(ok(sim_run_main(1, 1, compress_main, NULL)));
    assert_in_range(packed_bytes, 1000, RAW_BYTES - 1);
    if (packed_hash != PACKED_HASH)
        print_error("%u bytes, hash %#llx\n", packed_bytes, (unsigned long long)packed_hash);
    assert_true(packed_hash == PACKED_HASH);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deflate_makes_the_same_bytes_on_every_machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
