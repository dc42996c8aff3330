/* SPDX-License-Identifier: MIT
 *
 * fuzz_log.c -- any bytes as the segments of a log, read by recovery and by verification.
 *
 * An input is a list of blocks, so that it stays small and the fuzzer can move them:
 *
 *   flags: 1 | segment_first: 1 | blocks ...
 *   block:  segment 1 | kind 1 | used 2 | record_first 2 | durable_offset 1 | durable_seq 1 | bytes
 *
 * Blocks are appended to the segment (1 to 3) that they name. By the flags checksums, magics and
 * the places of records are made right, because the fuzzer would hardly ever find them. Whatever
 * comes, recovery ends with a status, what it replays is without gaps, verification agrees, and
 * reading twice is reading the same. Opened as a log, it gives the same records, and when it was
 * closed again a next opening finds just these.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/crc.h"
#include "io/file.h"
#include "io/sim.h"
#include "lsm/log_internal.h"
#include "lsm/lsm_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define DIR_PATH     "/log"
#define SEGMENTS     3u
#define BLOCKS_MAX   24u
#define STREAM_MAX   (BLOCKS_MAX * LOG_BLOCK_BYTES)
#define FLAG_BLOCKS  0x01u /* block checksums are right */
#define FLAG_RECORDS 0x02u /* record checksums are right */
#define FLAG_HEADER  0x04u /* magics and numbers in headers are right */
#define FLAG_FIRST   0x08u /* record_first is right */
#define FLAG_SEQS    0x10u /* record numbers follow each other */
#define FLAG_REPAIR  0x20u
#define FLAG_CHAIN   0x40u /* each header names the segment before */
#define FLAG_OPEN    0x80u

struct segment {
    u32 blocks;
    u8 data[BLOCKS_MAX * LOG_BLOCK_BYTES];
};

static struct {
    u32 flags;
    u64 segment_first;
    struct segment segments[SEGMENTS];
    u8 stream[STREAM_MAX];
    u64 replayed, seq_next;
    bool damaged;
} input;

/* ---- making segments of an input ---- */

static void
blocks_take(const u8 *data, size_t size)
{
    while (size >= 8) {
        struct segment *segment = &input.segments[data[0] % SEGMENTS];
        struct log_block block = {
            .kind = data[1],
            .used = (u16)(load_u16(data + 2) % (LOG_BLOCK_PAYLOAD_BYTES + 2)),
            .record_first = load_u16(data + 4),
            .durable_offset = (u64)data[6] * LOG_BLOCK_BYTES,
            .durable_seq = data[7],
        };
        data += 8;
        size -= 8;
        u32 take = (u32)MIN((size_t)MIN((u32)block.used, LOG_BLOCK_PAYLOAD_BYTES), size);
        if (segment->blocks < BLOCKS_MAX) {
            u8 *to = segment->data + segment->blocks * LOG_BLOCK_BYTES;
            block.segment = (u64)(segment - input.segments) + 1;
            block.index = segment->blocks++;
            memset(to, 0, LOG_BLOCK_BYTES);
            memcpy(to, &block, sizeof(block));
            memcpy(to + sizeof(block), data, take);
        }
        data += take;
        size -= take;
    }
}

static u32
block_used(const u8 *block)
{
    return MIN((u32)load_u16(block + offsetof(struct log_block, used)), LOG_BLOCK_PAYLOAD_BYTES);
}

/* Walks the record stream as recovery does, and makes right what the flags say. */
static void
records_seal(struct segment *segment, u64 seq)
{
    u32 size = 0;
    for (u32 i = 1; i < segment->blocks; i++) {
        const u8 *block = segment->data + i * LOG_BLOCK_BYTES;
        memcpy(input.stream + size, block + sizeof(struct log_block), block_used(block));
        size += block_used(block);
    }
    static u8 starts[STREAM_MAX];
    memset(starts, 0, sizeof(starts));
    for (u32 at = 0; size - at >= sizeof(struct log_record);) {
        struct log_record record;
        memcpy(&record, input.stream + at, sizeof(record));
        starts[at] = 1;
        if (record.size < sizeof(record) || record.size > size - at) break;
        if (input.flags & FLAG_SEQS) {
            record.seq_first = seq + 1;
            seq += record.count;
        }
        memcpy(input.stream + at, &record, sizeof(record));
        if (input.flags & FLAG_RECORDS) {
            record.crc = crc32c((u32)record.seq_first, input.stream + at + sizeof(record.crc),
                                record.size - sizeof(record.crc));
            memcpy(input.stream + at, &record, sizeof(record));
        }
        at += record.size;
        if (at < size) starts[at] = 1;
    }
    u32 at = 0;
    for (u32 i = 1; i < segment->blocks; i++) {
        u8 *data = segment->data + i * LOG_BLOCK_BYTES;
        u32 used = block_used(data);
        memcpy(data + sizeof(struct log_block), input.stream + at, used);
        u16 first = LOG_NO_RECORD;
        for (u32 j = 0; j < used && first == LOG_NO_RECORD; j++)
            if (starts[at + j]) first = (u16)j;
        if (input.flags & FLAG_FIRST)
            memcpy(data + offsetof(struct log_block, record_first), &first, sizeof(first));
        at += used;
    }
}

static void
segment_seal(u32 index)
{
    struct segment *segment = &input.segments[index];
    if (segment->blocks == 0) return;
    struct log_block block;
    struct log_segment_header header;
    memcpy(&block, segment->data, sizeof(block));
    memcpy(&header, segment->data + sizeof(block), sizeof(header));
    if (input.flags & FLAG_HEADER) {
        block.kind = LOG_BLOCK_HEADER;
        block.used = sizeof(header);
        memcpy(header.magic, LOG_MAGIC, sizeof(header.magic));
        header.format = LOG_FORMAT;
        header.block_bytes = LOG_BLOCK_BYTES;
        header.segment = index + 1;
    }
    if (input.flags & FLAG_CHAIN) {
        const struct segment *before = index > 0 ? &input.segments[index - 1] : NULL;
        header.predecessor = before != NULL && before->blocks > 0 ? index : 0;
        if (header.predecessor != 0) header.predecessor_end = (u64)before->blocks * LOG_BLOCK_BYTES;
    }
    memcpy(segment->data, &block, sizeof(block));
    memcpy(segment->data + sizeof(block), &header, sizeof(header));
    if (input.flags & (FLAG_RECORDS | FLAG_FIRST | FLAG_SEQS))
        records_seal(segment, header.seq_base);
    for (u32 i = 0; i < segment->blocks && (input.flags & FLAG_BLOCKS); i++) {
        u8 *data = segment->data + i * LOG_BLOCK_BYTES;
        u32 crc = log_block_crc(data, index + 1, (u64)i * LOG_BLOCK_BYTES);
        memcpy(data, &crc, sizeof(crc));
    }
}

/* ---- reading them ---- */

static status
on_record(void *arg, const struct log_record *record, struct bytes payload)
{
    (void)arg;
    CHECK(record->count > 0 && record->kind == LOG_RECORD_BATCH);
    struct lsm_op op;
    bool bad;
    u32 count = 0;
    while (lsm_op_next(&payload, &op, &bad)) {
        CHECK(op.key.size <= LIMIT_KEY_BYTES && op.value.size <= LIMIT_VALUE_BYTES);
        count++;
    }
    if (bad || count != record->count) return ST_CORRUPT;
    input.replayed++;
    return ST_OK;
}

static void
on_damage(void *arg, const char *file, u64 offset, const char *what)
{
    (void)arg;
    (void)offset;
    CHECK(file != NULL && what != NULL);
    input.damaged = true;
}

static MAY_YIELD status
recover(bool repair, struct log_recovered *out)
{
    *out = (struct log_recovered){0};
    struct log_reader_report to = {.fn = on_damage};
    input.replayed = 0;
    input.damaged = false;
    status st = log_recover(DIR_PATH, input.segment_first, repair, io_budget(), on_record, NULL,
                            repair ? NULL : &to, out);
    CHECK(ok(st) || status_is(st, ST_CORRUPT) || status_is(st, ST_UNSUPPORTED));
    if (ok(st)) {
        CHECK(out->records == input.replayed);
        CHECK(out->segment_count == out->end_count);
        for (u32 i = 0; i < out->segment_count; i++) {
            u64 number = out->segments[i];
            CHECK(number >= 1 && number <= SEGMENTS && number >= input.segment_first);
            CHECK(out->ends[i] <= (u64)input.segments[number - 1].blocks * LOG_BLOCK_BYTES);
            CHECK(i == 0 || number > out->segments[i - 1]);
        }
    }
    if (status_is(st, ST_CORRUPT)) CHECK(repair || input.damaged);
    return st;
}

static void
on_durable(void *arg, u64 seq, bool failed)
{
    (void)arg;
    (void)seq;
    CHECK(!failed);
}

/* Opens and closes the log: what is not attested moves to another segment on the way. */
static MAY_YIELD void
reopen(u64 records)
{
    struct log_config config = {
        .dir = DIR_PATH,
        .durability = LSM_DURABILITY_GROUP,
        .segment_bytes = LOG_SEGMENT_BYTES_MIN,
        .budget = io_budget(),
        .durable = on_durable,
    };
    for (u32 i = 0; i < 2; i++) {
        struct log *log;
        input.replayed = 0;
        CHECK(ok(log_open(&config, input.segment_first, on_record, &log)));
        CHECK(input.replayed == records && log_check(log));
        log_close(log);
    }
}

static status
fuzz_main(void *arg)
{
    (void)arg;
    CHECK(ok(io_dir_make(DIR_PATH)));
    for (u32 i = 0; i < SEGMENTS; i++) {
        struct segment *segment = &input.segments[i];
        if (segment->blocks == 0) continue;
        char path[LSM_PATH_BYTES];
        log_path(path, DIR_PATH, i + 1);
        u32 bytes = segment->blocks * LOG_BLOCK_BYTES;
        u8 *buffer = mem_alloc_aligned(io_budget(), bytes, IO_ALIGNMENT);
        CHECK(buffer != NULL);
        memcpy(buffer, segment->data, bytes);
        struct io_file *file;
        CHECK(ok(io_file_open(path, IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
        CHECK(ok(io_file_write(file, IO_CLASS_LOG, buffer, bytes, 0, true)));
        io_file_close(file);
        mem_free(io_budget(), buffer, bytes);
    }
    struct log_recovered first, again;
    status st = recover(false, &first);
    status st_again = recover((input.flags & FLAG_REPAIR) != 0, &again);
    CHECK(st.code == st_again.code);
    if (ok(st)) {
        CHECK(first.records == again.records && first.tail_seq == again.tail_seq);
        CHECK(first.tail_end == again.tail_end && first.tail_number == again.tail_number);
    }
    log_recovered_deinit(&first, io_budget());
    log_recovered_deinit(&again, io_budget());
    u64 files = 0, bytes = 0;
    status verified = log_verify(DIR_PATH, input.segment_first, on_damage, NULL, &files, &bytes);
    CHECK(verified.code == st.code);
    if (ok(st) && (input.flags & FLAG_OPEN)) reopen(input.replayed);
    return ST_OK;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    input.flags = data[0];
    input.segment_first = data[1] % (SEGMENTS + 1);
    for (u32 i = 0; i < SEGMENTS; i++)
        input.segments[i].blocks = 0;
    blocks_take(data + 2, size - 2);
    for (u32 i = 0; i < SEGMENTS; i++)
        segment_seal(i);
    CHECK(ok(sim_run_main(1, 1, fuzz_main, NULL)));
    return 0;
}
