/* SPDX-License-Identifier: MIT
 *
 * bench_table.c -- question: what does a table cost besides the disk: a GET that goes past the
 * memtables, a flush, a scan? Entries have keys of 16 bytes and values of 100, half of them noise;
 * files live in the memory of the shard (":memory:"), so that an operation on them is a copy.
 *
 *   bloom.add.*     one key into a filter of 12 bits a key, as flushes and merges build it
 *   bloom.hit.*     a probe for a key that is in it, and for one that is not, each begun when the
 *   bloom.miss.*    one before is over; compare with load.bloom.*, of which each is one
 *   index.find.*    the block of a token, in the packed index of 1,000 and of a million blocks; its
 *                   search guesses, so that it looks at few lines: compare with load.index.*
 *   block.check     header and checksum of a block that was read; compare with block.copy
 *   block.seek      from a checked block to the entry of a key
 *   block.walk      each entry of a block, strictly, as verification does: per block
 *   get.cached      table_get_try of a key whose block is in the block cache
 *   get.read        table_get of one whose block is not, and is not kept: what a cold GET costs
 *                   besides the disk, the copy out of the file included
 *   get.absent      table_may_contain of a key that is not there
 *   cursor          a step of a cursor that reads ahead, blocks checked
 *   write.none      table_writer from open to finish, per entry: what a flush pays besides the disk
 *   write.lz4       the same with blocks compressed, as on the last level
 *   lz4.*           a unit of 16 KiB compressed, and decompressed; compare with unit.copy
 *   deflate.*
 *   load.*          a random line of as much memory, each known only when the last is there
 *   block.copy      memcpy of a block
 *   unit.copy       memcpy of a unit
 *
 *     bench_table [--only TEXT] [--rounds N] [--round-us N] [--small] [--format json]
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "base/prng.h"
#include "io/file.h"
#include "io/io.h"
#include "lsm/bloom.h"
#include "lsm/codec.h"
#include "lsm/table_internal.h"
#include "micro.h"

#define DIR           ":memory:/t"
#define VALUE_BYTES   100u
#define FILTER_BITS   12u
#define WRITE_ENTRIES 4000u
#define WRITE_FILE    100u
#define READ_AHEAD    KIB(256)
#define ENTRIES       100000u
#define ENTRIES_SMALL 2000u

static struct micro_key *keys, *shuffled, *absent; /* keys are in the order of a table */
static u32 key_count;
static u8 values[KIB(64)]; /* values begin all over it */

/* ---- filters ---- */

struct filter {
    u8 *lines;
    u64 line_count;
    u32 probes;
    u64 hash; /* of the next key */
    u64 keys;
};

/* Keys are numbers here; those that are in it are below keys. */
static u64
filter_hash(u64 key)
{
    u64 state = key;
    return splitmix64(&state);
}

static void
bloom_add_run(void *arg, u64 count)
{
    struct filter *filter = arg;
    for (u64 i = 0; i < count; i++) {
        if (++filter->hash >= filter->keys) filter->hash = 0;
        bloom_add(filter->lines, filter->line_count, filter->probes, filter_hash(filter->hash));
    }
}

static void
bloom_probe(struct filter *filter, u64 count, u64 first)
{
    u64 found = 0;
    for (u64 i = 0; i < count; i++) {
        if (++filter->hash >= filter->keys) filter->hash = 0;
        found += bloom_may_contain(filter->lines, filter->line_count, filter->probes,
                                   filter_hash(first + filter->hash));
        micro_wait();
    }
    micro_keep(found);
    if (first == 0) MICRO_CHECK(found == count);
}

static void
bloom_hit_run(void *arg, u64 count)
{
    bloom_probe(arg, count, 0);
}

static void
bloom_miss_run(void *arg, u64 count)
{
    bloom_probe(arg, count, 1ull << 40);
}

MAY_YIELD static void
measure_sized(const char *what, const char *size, void (*run)(void *, u64), void *arg)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.%s", what, size);
    micro_measure(&(struct micro_case){.name = name, .run = run, .arg = arg});
}

MAY_YIELD static void
measure_bloom(u64 count, const char *size)
{
    struct filter filter = {.line_count = bloom_line_count(count, FILTER_BITS),
                            .probes = bloom_probe_count(FILTER_BITS),
                            .keys = count};
    size_t bytes = filter.line_count * BLOOM_LINE_BYTES;
    filter.lines = mem_alloc_aligned(io_budget(), bytes, BLOOM_LINE_BYTES);
    MICRO_CHECK(filter.lines != NULL);
    memset(filter.lines, 0, bytes);
    bloom_add_run(&filter, count);
    measure_sized("bloom.add", size, bloom_add_run, &filter);
    measure_sized("bloom.hit", size, bloom_hit_run, &filter);
    measure_sized("bloom.miss", size, bloom_miss_run, &filter);
    mem_free(io_budget(), filter.lines, bytes);
    char name[64];
    snprintf(name, sizeof(name), "load.bloom.%s", size);
    micro_measure_loads(name, bytes);
}

/* ---- indexes ---- */

struct index_case {
    struct table_index index;
    u64 tokens[4096]; /* to be looked for */
    u32 at;
};

static void
index_run(void *arg, u64 count)
{
    struct index_case *c = arg;
    for (u64 i = 0; i < count; i++) {
        micro_keep(table_index_find(&c->index, c->tokens[c->at], BYTES("k", 1)));
        micro_wait();
        if (++c->at == ARRAY_COUNT(c->tokens)) c->at = 0;
    }
}

static int
compare_tokens(const void *a, const void *b)
{
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? -1 : x > y;
}

/* Of blocks of 4,000 bytes with tokens as hashes have them. */
MAY_YIELD static void
measure_index(u32 blocks, const char *size)
{
    static struct index_case c;
    struct prng prng;
    prng_init(&prng, blocks);
    u64 section_bytes = table_index_bytes(blocks, 0, 0);
    u8 *section = malloc(section_bytes);
    MICRO_CHECK(section != NULL);
    struct table_index_header header = {.block_count = blocks};
    memcpy(section, &header, sizeof(header));
    u64 *tokens = (u64 *)(void *)(section + sizeof(header));
    for (u32 i = 0; i < blocks; i++)
        tokens[i] = prng_u64(&prng);
    qsort(tokens, blocks, sizeof(tokens[0]), compare_tokens);
    u8 *low = section + sizeof(header) + 8ull * blocks, *high = low + 4ull * (blocks + 1);
    for (u32 i = 0; i <= blocks; i++) {
        u64 offset = (u64)i * 4000;
        store_u32(low + 4ull * i, (u32)offset);
        high[i] = (u8)(offset >> 32);
    }
    struct table_index decoded;
    micro_must(table_index_decode(BYTES(section, section_bytes), blocks * 4000ull, &decoded),
               "index");
    u64 packed_bytes = table_index_packed_bytes(&decoded);
    MICRO_CHECK(packed_bytes > 0);
    u8 *packed = malloc(packed_bytes);
    MICRO_CHECK(packed != NULL);
    table_index_pack(&decoded, packed, &c.index);
    free(section);
    for (u32 i = 0; i < ARRAY_COUNT(c.tokens); i++)
        c.tokens[i] = prng_u64(&prng);
    measure_sized("index.find", size, index_run, &c);
    free(packed);
    char name[64];
    snprintf(name, sizeof(name), "load.index.%s", size);
    micro_measure_loads(name, packed_bytes);
}

/* ---- tables ---- */

static struct entry
entry_of(u32 i)
{
    u32 at = i * 7919u % (u32)(sizeof(values) - VALUE_BYTES);
    return (struct entry){.token = keys[i].token,
                          .key = micro_key_bytes(&keys[i]),
                          .value = BYTES(values + at, VALUE_BYTES),
                          .version = 1000000 + i,
                          .seq = 1 + i,
                          .kind = ENTRY_PUT};
}

MAY_YIELD static void
table_write(u64 file_id, enum lsm_codec codec, u32 count, struct table_meta *meta)
{
    struct table_writer_options options = {.dir = DIR,
                                           .file_id = file_id,
                                           .codec = codec,
                                           .filter_bits = FILTER_BITS,
                                           .entry_count_max = count,
                                           .io_class = IO_CLASS_COMPACTION,
                                           .budget = io_budget()};
    struct table_writer *writer;
    micro_must(table_writer_open(&options, &writer), "table_writer_open");
    for (u32 i = 0; i < count; i++) {
        struct entry entry = entry_of(i);
        micro_must(table_writer_add(writer, &entry), "table_writer_add");
    }
    micro_must(table_writer_finish(writer, meta), "table_writer_finish");
}

/* Each time WRITE_ENTRIES of them. */
MAY_YIELD static void
write_run(void *arg, u64 count)
{
    enum lsm_codec codec = *(const enum lsm_codec *)arg;
    char path[LSM_PATH_BYTES];
    table_path(path, DIR, WRITE_FILE);
    for (u64 i = 0; i < count; i += WRITE_ENTRIES) {
        static struct table_meta meta;
        table_write(WRITE_FILE, codec, MIN(WRITE_ENTRIES, key_count), &meta);
        micro_stop();
        micro_must(io_file_unlink(path), "unlink");
        micro_go();
    }
}

struct reads {
    struct table *table;
    struct block_cache *cache; /* NULL: none */
    struct cursor *cursor;
    u32 at;
};

static void
get_cached_run(void *arg, u64 count)
{
    struct reads *reads = arg;
    for (u64 i = 0; i < count; i++) {
        const struct micro_key *key = &shuffled[reads->at];
        struct entry got;
        struct block *pin;
        micro_must(table_get_try(reads->table, reads->cache, key->token, micro_key_bytes(key),
                                 UINT64_MAX, &got, &pin),
                   "table_get_try");
        micro_keep(got.value.data[0]);
        block_cache_unpin(pin);
        micro_wait();
        if (++reads->at == key_count) reads->at = 0;
    }
}

MAY_YIELD static void
get_read_run(void *arg, u64 count)
{
    struct reads *reads = arg;
    for (u64 i = 0; i < count; i++) {
        const struct micro_key *key = &shuffled[reads->at];
        struct entry got;
        struct block *pin;
        micro_must(table_get(reads->table, NULL, key->token, micro_key_bytes(key), UINT64_MAX,
                             false, &got, &pin),
                   "table_get");
        micro_keep(got.value.data[0]);
        block_cache_unpin(pin);
        if (++reads->at == key_count) reads->at = 0;
    }
}

static void
get_absent_run(void *arg, u64 count)
{
    struct reads *reads = arg;
    u64 found = 0;
    for (u64 i = 0; i < count; i++) {
        const struct micro_key *key = &absent[reads->at];
        found += table_may_contain(reads->table, key->token, key->hash);
        micro_wait();
        if (++reads->at == key_count) reads->at = 0;
    }
    micro_keep(found);
}

MAY_YIELD static void
cursor_run(void *arg, u64 count)
{
    struct cursor *cursor = ((struct reads *)arg)->cursor;
    for (u64 i = 0; i < count; i++) {
        if (cursor->valid)
            micro_must(cursor->ops->next(cursor), "next");
        else
            micro_must(cursor->ops->seek(cursor, 0, BYTES(NULL, 0)), "seek");
        if (cursor->valid) micro_keep(cursor->entry.value.data[0]);
    }
}

/* ---- one block ---- */

struct one_block {
    const u8 *stored; /* as it is in the file */
    u32 stored_bytes;
    u64 file_id, offset;
    struct bytes raw;
    u32 first, count; /* keys in it */
};

static void
check_run(void *arg, u64 count)
{
    const struct one_block *block = arg;
    for (u64 i = 0; i < count; i++) {
        struct table_block_header header;
        micro_must(table_block_check(BYTES(block->stored, block->stored_bytes), block->file_id,
                                     block->offset, &header),
                   "table_block_check");
        micro_keep(header.raw_size);
    }
}

static void
seek_run(void *arg, u64 count)
{
    const struct one_block *block = arg;
    for (u64 i = 0; i < count; i++) {
        /* Not in order: the branches of a search are not to be foreseen. */
        const struct micro_key *key = &keys[block->first + (u32)(i * 0x9e3779b1u % block->count)];
        struct table_block view;
        struct entry got;
        u32 at;
        micro_must(table_block_open(block->raw, &view), "table_block_open");
        micro_must(table_block_seek(&view, key->token, micro_key_bytes(key), &at), "seek");
        micro_must(table_block_entry(&view, at, &got, NULL), "entry");
        micro_keep(got.value.data[0]);
        micro_wait();
    }
}

static void
walk_run(void *arg, u64 count)
{
    const struct one_block *block = arg;
    for (u64 i = 0; i < count; i++) {
        struct table_block view;
        micro_must(table_block_open(block->raw, &view), "table_block_open");
        micro_must(table_block_iterate(&view, NULL, NULL), "table_block_iterate");
    }
}

MAY_YIELD static void
measure_block(struct table *table)
{
    u32 middle = table->index->block_count / 2;
    struct one_block block = {.file_id = table->meta.file_id,
                              .offset = table_index_offset(table->index, middle)};
    block.stored_bytes = (u32)(table_index_offset(table->index, middle + 1) - block.offset);
    u64 from = align_down(block.offset, IO_ALIGNMENT);
    u32 span = (u32)(align_up(block.offset + block.stored_bytes, IO_ALIGNMENT) - from);
    u8 *buffer = mem_alloc_aligned(io_budget(), span, IO_ALIGNMENT);
    MICRO_CHECK(buffer != NULL);
    micro_must(io_file_read(table->file, IO_CLASS_READ, buffer, span, from), "read");
    block.stored = buffer + (block.offset - from);
    block.raw = BYTES(block.stored + sizeof(struct table_block_header),
                      block.stored_bytes - sizeof(struct table_block_header));
    struct table_block view;
    micro_must(table_block_open(block.raw, &view), "table_block_open");
    block.count = view.count;
    while (keys[block.first].token != view.token_base)
        block.first++;
    micro_measure(&(struct micro_case){
        .name = "block.check", .run = check_run, .arg = &block, .bytes = block.stored_bytes});
    micro_measure_copy("block.copy", block.stored_bytes);
    micro_measure(&(struct micro_case){.name = "block.seek", .run = seek_run, .arg = &block});
    micro_measure(&(struct micro_case){
        .name = "block.walk", .run = walk_run, .arg = &block, .bytes = (u32)block.raw.size});
    mem_free(io_budget(), buffer, span);
}

static int
compare_keys(const void *a, const void *b)
{
    const struct micro_key *x = a, *y = b;
    return entry_compare_key(x->token, micro_key_bytes(x), y->token, micro_key_bytes(y));
}

MAY_YIELD static void
measure_table(void)
{
    key_count = micro_small() ? ENTRIES_SMALL : ENTRIES;
    keys = micro_keys(0, key_count);
    qsort(keys, key_count, sizeof(keys[0]), compare_keys);
    shuffled = micro_keys_shuffled(keys, key_count, 1);
    absent = micro_keys(key_count, key_count);
    micro_text(values, sizeof(values), 2);
    micro_must(io_dir_make(DIR), "directory");
    static struct table_meta meta;
    table_write(1, LSM_CODEC_NONE, key_count, &meta);
    static struct table_stats stats;
    struct reads reads = {0};
    micro_must(table_open(DIR, &meta, io_budget(), &stats, &reads.table), "table_open");
    reads.cache = block_cache_new(io_budget(), meta.file_bytes * 2 + KIB(256));
    MICRO_CHECK(reads.cache != NULL);

    measure_block(reads.table);
    for (u32 i = 0; i < key_count; i++) { /* into the cache */
        struct entry got;
        struct block *pin;
        micro_must(table_get(reads.table, reads.cache, keys[i].token, micro_key_bytes(&keys[i]),
                             UINT64_MAX, true, &got, &pin),
                   "table_get");
        block_cache_unpin(pin);
    }
    micro_measure(&(struct micro_case){.name = "get.cached", .run = get_cached_run, .arg = &reads});
    micro_measure(&(struct micro_case){.name = "get.read", .run = get_read_run, .arg = &reads});
    micro_measure(&(struct micro_case){.name = "get.absent", .run = get_absent_run, .arg = &reads});
    micro_must(table_cursor_open(reads.table, NULL, UINT64_MAX, IO_CLASS_COMPACTION, READ_AHEAD,
                                 io_budget(), &reads.cursor),
               "table_cursor_open");
    micro_measure(&(struct micro_case){.name = "cursor",
                                       .run = cursor_run,
                                       .arg = &reads,
                                       .bytes = MICRO_KEY_BYTES + VALUE_BYTES});
    reads.cursor->ops->close(reads.cursor);
    block_cache_free(reads.cache);
    table_unref(reads.table);

    enum lsm_codec none = LSM_CODEC_NONE, lz4 = LSM_CODEC_LZ4;
    u64 unit = MIN(WRITE_ENTRIES, key_count);
    micro_measure(&(struct micro_case){.name = "write.none",
                                       .run = write_run,
                                       .arg = &none,
                                       .count = unit,
                                       .bytes = MICRO_KEY_BYTES + VALUE_BYTES});
    micro_measure(&(struct micro_case){.name = "write.lz4",
                                       .run = write_run,
                                       .arg = &lz4,
                                       .count = unit,
                                       .bytes = MICRO_KEY_BYTES + VALUE_BYTES});
}

/* ---- codecs ---- */

struct codec_case {
    enum lsm_codec codec;
    void *state;
    u8 raw[TABLE_UNIT_BYTES], stored[TABLE_UNIT_BYTES], again[TABLE_UNIT_BYTES];
    u32 stored_bytes;
};

static void
compress_run(void *arg, u64 count)
{
    struct codec_case *c = arg;
    for (u64 i = 0; i < count; i++) {
        c->stored_bytes = codec_compress(c->codec, c->state, c->raw, sizeof(c->raw), c->stored,
                                         sizeof(c->stored));
        MICRO_CHECK(c->stored_bytes > 0);
    }
}

static void
decompress_run(void *arg, u64 count)
{
    struct codec_case *c = arg;
    for (u64 i = 0; i < count; i++)
        micro_must(codec_decompress(c->codec, io_budget(), BYTES(c->stored, c->stored_bytes),
                                    c->again, sizeof(c->again)),
                   "decompress");
    MICRO_CHECK(memcmp(c->raw, c->again, sizeof(c->raw)) == 0);
}

MAY_YIELD static void
measure_codec(enum lsm_codec codec)
{
    static struct codec_case c;
    c.codec = codec;
    c.state = mem_alloc(io_budget(), codec_state_bytes(codec));
    MICRO_CHECK(c.state != NULL);
    micro_text(c.raw, sizeof(c.raw), 3);
    compress_run(&c, 1);
    char name[64];
    snprintf(name, sizeof(name), "%s.compress", codec_name(codec));
    micro_measure(
        &(struct micro_case){.name = name, .run = compress_run, .arg = &c, .bytes = sizeof(c.raw)});
    snprintf(name, sizeof(name), "%s.decompress", codec_name(codec));
    micro_measure(&(struct micro_case){
        .name = name, .run = decompress_run, .arg = &c, .bytes = sizeof(c.raw)});
    mem_free(io_budget(), c.state, codec_state_bytes(codec));
}

MAY_YIELD static void
measure_all(void)
{
    measure_bloom(1000, "1k");
    if (!micro_small()) measure_bloom(4000000, "4m");
    measure_index(1000, "1k");
    if (!micro_small()) measure_index(1000000, "1m");
    measure_table();
    measure_codec(LSM_CODEC_LZ4);
    measure_codec(LSM_CODEC_DEFLATE);
    micro_measure_copy("unit.copy", TABLE_UNIT_BYTES);
}

int
main(int argc, char **argv)
{
    micro_begin(argc, argv);
    micro_on_shard(1, measure_all);
    return micro_end();
}
