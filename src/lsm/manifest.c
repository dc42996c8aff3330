/* SPDX-License-Identifier: MIT
 *
 * manifest.c -- the pure half of manifest.h: sizes, encoding, the checks that hold for a manifest
 * however it was made, decoding. manifest_file.c reads and writes the file.
 */
#include "lsm/manifest.h"

#include "base/crc.h"
#include "base/fault.h"

static const u8 manifest_magic[8] = {'D', 'K', 'V', 'M', 'A', 'N', 'I', 'F'};

/* ---- encoding ---- */

static u64
tables_size(const struct manifest *manifest)
{
    u64 size = (u64)manifest->table_count * sizeof(struct manifest_table_record);
    for (u32 i = 0; i < manifest->table_count; i++)
        size += manifest->tables[i].meta->blob_ref_count * sizeof(struct manifest_blob_ref_record);
    return size;
}

u64
manifest_encoded_size(const struct manifest *manifest)
{
    return sizeof(struct manifest_header) + MANIFEST_PART_COUNT * sizeof(struct manifest_part) +
           sizeof(struct manifest_state_record) +
           (u64)manifest->run_count * sizeof(struct manifest_run_record) + tables_size(manifest) +
           (u64)manifest->blob_count * sizeof(struct manifest_blob_record) +
           (u64)manifest->range_count * sizeof(struct manifest_range_record);
}

static u8 *
part_end(u8 *part, u32 kind, u32 count, u8 *end)
{
    struct manifest_part header = {.kind = kind, .count = count};
    header.size = (u32)(end - part - sizeof(header));
    header.crc = crc32c(kind, part + sizeof(header), header.size);
    memcpy(part, &header, sizeof(header));
    return end;
}

static u8 *
put(u8 *at, const void *record, size_t size)
{
    memcpy(at, record, size);
    return at + size;
}

static u8 *
encode_table(u8 *at, const struct manifest_table *table)
{
    const struct table_meta *meta = table->meta;
    struct manifest_table_record record = {
        .file_id = meta->file_id,
        .file_bytes = meta->file_bytes,
        .file_hash = meta->file_hash,
        .token_first = meta->token_first,
        .token_last = meta->token_last,
        .seq_min = meta->seq_min,
        .seq_max = meta->seq_max,
        .version_min = meta->version_min,
        .version_max = meta->version_max,
        .expire_min_ms = meta->expire_min_ms,
        .expire_max_ms = meta->expire_max_ms,
        .entry_count = meta->entry_count,
        .delete_count = meta->delete_count,
        .expiring_count = meta->expiring_count,
        .data_bytes = meta->data_bytes,
        .view_first = table->view_first,
        .view_last = table->view_last,
        .keyspace = meta->keyspace,
        .codec = meta->codec,
        .filter_bits = meta->filter_bits,
        .entries_all_expire = meta->entries_all_expire,
        .blob_ref_count = (u16)meta->blob_ref_count,
    };
    at = put(at, &record, sizeof(record));
    for (u32 i = 0; i < meta->blob_ref_count; i++) {
        struct manifest_blob_ref_record ref = {meta->blob_refs[i].file_id,
                                               meta->blob_refs[i].bytes};
        at = put(at, &ref, sizeof(ref));
    }
    return at;
}

void
manifest_encode(const struct manifest *manifest, u8 *target)
{
    u8 *part = target + sizeof(struct manifest_header);
    u8 *at = part + sizeof(struct manifest_part);
    struct manifest_state_record state = {
        .log_segment_first = manifest->state.log_segment_first,
        .seq_flushed = manifest->state.seq_flushed,
        .version_max = manifest->state.version_max,
        .file_id_next = manifest->file_id_next,
        .token_first = manifest->token_first,
        .token_last = manifest->token_last,
    };
    at = put(at, &state, sizeof(state));
    part = part_end(part, MANIFEST_PART_STATE, 1, at);

    at = part + sizeof(struct manifest_part);
    for (u32 i = 0; i < manifest->run_count; i++) {
        struct manifest_run_record record = {.keyspace = manifest->runs[i].keyspace,
                                             .tier = manifest->runs[i].tier,
                                             .table_count = manifest->runs[i].table_count};
        at = put(at, &record, sizeof(record));
    }
    part = part_end(part, MANIFEST_PART_RUNS, manifest->run_count, at);

    at = part + sizeof(struct manifest_part);
    for (u32 i = 0; i < manifest->table_count; i++)
        at = encode_table(at, &manifest->tables[i]);
    part = part_end(part, MANIFEST_PART_TABLES, manifest->table_count, at);

    at = part + sizeof(struct manifest_part);
    for (u32 i = 0; i < manifest->blob_count; i++) {
        const struct manifest_blob *blob = &manifest->blobs[i];
        struct manifest_blob_record record = {blob->file_id, blob->file_bytes, blob->token_first,
                                              blob->token_last};
        at = put(at, &record, sizeof(record));
    }
    part = part_end(part, MANIFEST_PART_BLOBS, manifest->blob_count, at);

    at = part + sizeof(struct manifest_part);
    for (u32 i = 0; i < manifest->range_count; i++) {
        const struct range_delete *range = &manifest->ranges[i];
        struct manifest_range_record record = {.token_first = range->token_first,
                                               .token_last = range->token_last,
                                               .version = range->version,
                                               .seq = range->seq,
                                               .keyspace = range->keyspace};
        at = put(at, &record, sizeof(record));
    }
    part = part_end(part, MANIFEST_PART_RANGES, manifest->range_count, at);

    struct manifest_header header = {.format = MANIFEST_FORMAT,
                                     .part_count = MANIFEST_PART_COUNT,
                                     .size = (u64)(part - target),
                                     .generation = manifest->generation};
    memcpy(header.magic, manifest_magic, sizeof(header.magic));
    header.content_crc = crc32c(0, target + sizeof(header), header.size - sizeof(header));
    header.header_crc = crc32c(0, &header, offsetof(struct manifest_header, header_crc));
    memcpy(target, &header, sizeof(header));
    CHECK(header.size == manifest_encoded_size(manifest));
}

/* ---- what holds for every manifest ---- */

static bool
blob_known(const struct manifest *manifest, u64 file_id)
{
    u32 low = 0, high = manifest->blob_count;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (manifest->blobs[middle].file_id < file_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < manifest->blob_count && manifest->blobs[low].file_id == file_id;
}

static const char *
check_table(const struct manifest *manifest, const struct manifest_table *table, u16 keyspace)
{
    const struct table_meta *meta = table->meta;
    if (meta->keyspace != keyspace) return "table of another keyspace in a run";
    if (meta->token_first > meta->token_last) return "table with its tokens reversed";
    if (table->view_first > table->view_last) return "table with an empty view";
    if (table->view_first < meta->token_first || table->view_last > meta->token_last)
        return "table viewed outside its tokens";
    if (meta->seq_min > meta->seq_max) return "table with its sequence numbers reversed";
    if (meta->version_min > meta->version_max) return "table with its versions reversed";
    if (meta->seq_max > manifest->state.seq_flushed) return "table newer than the state";
    if (meta->codec >= LSM_CODEC_COUNT) return "table with an unknown codec";
    if (meta->entry_count == 0) return "table without entries";
    if (meta->delete_count > meta->entry_count || meta->expiring_count > meta->entry_count)
        return "table with impossible counts";
    if (meta->expire_min_ms > meta->expire_max_ms) return "table with its expiry reversed";
    if (meta->blob_ref_count > TABLE_BLOB_REFS_MAX) return "table with too many blob files";
    for (u32 i = 0; i < meta->blob_ref_count; i++) {
        if (!blob_known(manifest, meta->blob_refs[i].file_id)) return "blob file is not listed";
    }
    return NULL;
}

const char *
manifest_check(const struct manifest *manifest, u32 *index_out)
{
    *index_out = 0;
    if (manifest->token_first > manifest->token_last) return "store with its tokens reversed";
    for (u32 i = 0; i + 1 < manifest->blob_count; i++) {
        if (manifest->blobs[i].file_id >= manifest->blobs[i + 1].file_id)
            return "blob files out of order";
    }
    for (u32 i = 0; i < manifest->blob_count; i++) {
        if (manifest->blobs[i].token_first > manifest->blobs[i].token_last)
            return "blob file with its tokens reversed";
    }
    if (manifest->range_count > RANGE_LIST_MAX) return "too many deleted ranges";
    for (u32 i = 0; i < manifest->range_count; i++) {
        const struct range_delete *range = &manifest->ranges[i];
        if (range->keyspace >= LIMIT_KEYSPACES) return "deleted range of an unknown keyspace";
        if (range->token_first > range->token_last) return "deleted range with its tokens reversed";
        if (range->seq > manifest->state.seq_flushed) return "deleted range newer than the state";
        if (i > 0 && range->seq < manifest->ranges[i - 1].seq) return "deleted ranges out of order";
    }
    u64 table = 0;
    for (u32 i = 0; i < manifest->run_count; i++) {
        const struct manifest_run *run = &manifest->runs[i];
        *index_out = (u32)table;
        if (run->keyspace >= LIMIT_KEYSPACES) return "run of an unknown keyspace";
        if (run->tier > RUN_TIER_MAX && run->tier != RUN_TIER_LAST) return "run of an unknown tier";
        if (run->table_count == 0) return "run without tables";
        if (run->table_count > manifest->table_count - table) return "run with missing tables";
        if (i > 0) {
            const struct manifest_run *before = run - 1;
            if (before->keyspace > run->keyspace) return "keyspaces out of order";
            if (before->keyspace == run->keyspace &&
                (before->tier > run->tier || before->tier == RUN_TIER_LAST))
                return "tiers out of order";
        }
        for (u32 j = 0; j < run->table_count; j++, table++) {
            *index_out = (u32)table;
            const struct manifest_table *slot = &manifest->tables[table];
            const char *what = check_table(manifest, slot, run->keyspace);
            if (what != NULL) return what;
            if (j > 0 && slot[-1].view_last >= slot->view_first) return "tables of a run overlap";
        }
    }
    *index_out = (u32)table;
    return table == manifest->table_count ? NULL : "table without a run";
}

/* ---- decoding ---- */

struct decoder {
    const u8 *data;
    u64 size; /* of the whole */
    u64 at;
    struct bytes rest; /* of the part's records */
    u32 count;
};

static const char *
decode_header(struct bytes data, struct manifest_header *header)
{
    if (data.size < sizeof(*header)) return "shorter than its header";
    memcpy(header, data.data, sizeof(*header));
    if (memcmp(header->magic, manifest_magic, sizeof(manifest_magic)) != 0) return "not a manifest";
    if (crc32c(0, header, offsetof(struct manifest_header, header_crc)) != header->header_crc)
        return MARKED("lsm.manifest.header_checksum", "bad header checksum");
    if (header->format != MANIFEST_FORMAT) return NULL; /* the caller says unsupported */
    for (u32 i = 0; i < sizeof(header->reserved); i++) {
        if (header->reserved[i] != 0) return "reserved bytes are set";
    }
    if (header->part_count != MANIFEST_PART_COUNT) return "unknown parts";
    if (header->size < sizeof(*header) || header->size > data.size ||
        header->size > MANIFEST_BYTES_MAX)
        return "cut short";
    if (crc32c(0, data.data + sizeof(*header), header->size - sizeof(*header)) !=
        header->content_crc)
        return MARKED("lsm.manifest.content_checksum", "bad content checksum");
    return NULL;
}

/* Moves to the next part, which must be of this kind. */
static const char *
part_begin(struct decoder *decoder, u32 kind, size_t record_size)
{
    struct manifest_part part;
    if (decoder->size - decoder->at < sizeof(part)) return "part header is cut short";
    memcpy(&part, decoder->data + decoder->at, sizeof(part));
    if (part.kind != kind) return "parts out of order";
    if (part.size > decoder->size - decoder->at - sizeof(part)) return "part is cut short";
    const u8 *records = decoder->data + decoder->at + sizeof(part);
    if (crc32c(kind, records, part.size) != part.crc) return "bad part checksum";
    /* Divides, so that a count from outside cannot overflow. */
    if (part.count > part.size / record_size) return "part with too few records";
    bool fixed = kind != MANIFEST_PART_TABLES;
    if (fixed && part.size != (u64)part.count * record_size) return "part with a partial record";
    decoder->at += sizeof(part) + part.size;
    decoder->rest = BYTES(records, part.size);
    decoder->count = part.count;
    return NULL;
}

static const char *
take(struct decoder *decoder, void *record, size_t size)
{
    if (decoder->rest.size < size) return "record is cut short";
    memcpy(record, decoder->rest.data, size);
    decoder->rest.data += size;
    decoder->rest.size -= size;
    return NULL;
}

static bool
all_zero(const u8 *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (data[i] != 0) return false;
    }
    return true;
}

static const char *
decode_table(struct decoder *decoder, struct table_meta *meta, struct manifest_table *table)
{
    struct manifest_table_record record;
    const char *what = take(decoder, &record, sizeof(record));
    if (what != NULL) return what;
    if (record.reserved != 0 || record.entries_all_expire > 1) return "reserved bytes are set";
    if (record.blob_ref_count > TABLE_BLOB_REFS_MAX) return "table with too many blob files";
    *meta = (struct table_meta){
        .file_id = record.file_id,
        .file_bytes = record.file_bytes,
        .file_hash = record.file_hash,
        .token_first = record.token_first,
        .token_last = record.token_last,
        .seq_min = record.seq_min,
        .seq_max = record.seq_max,
        .version_min = record.version_min,
        .version_max = record.version_max,
        .expire_min_ms = record.expire_min_ms,
        .expire_max_ms = record.expire_max_ms,
        .entry_count = record.entry_count,
        .delete_count = record.delete_count,
        .expiring_count = record.expiring_count,
        .data_bytes = record.data_bytes,
        .keyspace = record.keyspace,
        .codec = record.codec,
        .filter_bits = record.filter_bits,
        .entries_all_expire = record.entries_all_expire != 0,
        .blob_ref_count = record.blob_ref_count,
    };
    for (u32 i = 0; i < record.blob_ref_count; i++) {
        struct manifest_blob_ref_record ref;
        what = take(decoder, &ref, sizeof(ref));
        if (what != NULL) return what;
        meta->blob_refs[i] = (struct table_blob_ref){ref.file_id, ref.bytes};
    }
    *table = (struct manifest_table){meta, record.view_first, record.view_last};
    return NULL;
}

/* *memory_out: the budget had no room, which says nothing about the bytes. */
static const char *
decode_parts(struct decoder *decoder, struct manifest *out, bool *no_memory_out)
{
    struct budget *budget = out->budget;
    *no_memory_out = true;

    struct manifest_state_record state;
    const char *what = part_begin(decoder, MANIFEST_PART_STATE, sizeof(state));
    if (what != NULL) return what;
    if (decoder->count != 1) return "more than one state";
    what = take(decoder, &state, sizeof(state));
    if (what != NULL) return what;
    if (!all_zero(state.reserved, sizeof(state.reserved))) return "reserved bytes are set";
    out->state = (struct levels_state){.log_segment_first = state.log_segment_first,
                                       .seq_flushed = state.seq_flushed,
                                       .version_max = state.version_max};
    out->file_id_next = state.file_id_next;
    out->token_first = state.token_first;
    out->token_last = state.token_last;

    what = part_begin(decoder, MANIFEST_PART_RUNS, sizeof(struct manifest_run_record));
    if (what != NULL) return what;
    if (decoder->count > 0) {
        out->runs = mem_alloc_zero(budget, decoder->count * sizeof(*out->runs));
        if (out->runs == NULL) return NULL;
        out->run_count = decoder->count;
    }
    for (u32 i = 0; i < out->run_count; i++) {
        struct manifest_run_record record;
        what = take(decoder, &record, sizeof(record));
        if (what != NULL) return what;
        if (record.reserved != 0) return "reserved bytes are set";
        out->runs[i] = (struct manifest_run){record.keyspace, record.tier, record.table_count};
    }

    what = part_begin(decoder, MANIFEST_PART_TABLES, sizeof(struct manifest_table_record));
    if (what != NULL) return what;
    if (decoder->count > 0) {
        u32 count = decoder->count;
        out->metas = mem_alloc(budget, count * sizeof(*out->metas));
        if (out->metas == NULL) return NULL;
        out->tables = mem_alloc_zero(budget, count * sizeof(*out->tables));
        if (out->tables == NULL) {
            mem_free(budget, out->metas, count * sizeof(*out->metas));
            out->metas = NULL;
            return NULL;
        }
        out->table_count = count;
    }
    for (u32 i = 0; i < out->table_count; i++) {
        what = decode_table(decoder, &out->metas[i], &out->tables[i]);
        if (what != NULL) return what;
    }
    if (decoder->rest.size != 0) return "part with a partial record";

    what = part_begin(decoder, MANIFEST_PART_BLOBS, sizeof(struct manifest_blob_record));
    if (what != NULL) return what;
    if (decoder->count > 0) {
        out->blobs = mem_alloc_zero(budget, decoder->count * sizeof(*out->blobs));
        if (out->blobs == NULL) return NULL;
        out->blob_count = decoder->count;
    }
    for (u32 i = 0; i < out->blob_count; i++) {
        struct manifest_blob_record record;
        what = take(decoder, &record, sizeof(record));
        if (what != NULL) return what;
        out->blobs[i] = (struct manifest_blob){record.file_id, record.file_bytes,
                                               record.token_first, record.token_last};
    }

    what = part_begin(decoder, MANIFEST_PART_RANGES, sizeof(struct manifest_range_record));
    if (what != NULL) return what;
    if (decoder->count > 0) {
        out->ranges = mem_alloc_zero(budget, decoder->count * sizeof(*out->ranges));
        if (out->ranges == NULL) return NULL;
        out->range_count = decoder->count;
    }
    for (u32 i = 0; i < out->range_count; i++) {
        struct manifest_range_record record;
        what = take(decoder, &record, sizeof(record));
        if (what != NULL) return what;
        if (!all_zero(record.reserved, sizeof(record.reserved))) return "reserved bytes are set";
        out->ranges[i] = (struct range_delete){.token_first = record.token_first,
                                               .token_last = record.token_last,
                                               .version = record.version,
                                               .seq = record.seq,
                                               .keyspace = record.keyspace};
    }
    if (decoder->at != decoder->size) return "bytes after the last part";
    *no_memory_out = false;
    return NULL;
}

status
manifest_decode(struct bytes data, struct budget *budget, struct manifest *out, u64 *offset_out,
                const char **what_out)
{
    *offset_out = 0;
    struct manifest_header header;
    const char *what = decode_header(data, &header);
    if (what != NULL) {
        MARK("lsm.manifest.header_refused");
        *what_out = what;
        return ST_CORRUPT;
    }
    if (header.format != MANIFEST_FORMAT) {
        MARK("lsm.manifest.newer_format");
        *what_out = "format of a newer version";
        return ST_UNSUPPORTED;
    }
    if (!all_zero(data.data + header.size, data.size - header.size)) { /* no checksum has them */
        *offset_out = header.size;
        MARK("lsm.manifest.tail_set");
        *what_out = "bytes after the end are set";
        return ST_CORRUPT;
    }
    struct manifest manifest = {.budget = budget, .generation = header.generation};
    struct decoder decoder = {.data = data.data, .size = header.size, .at = sizeof(header)};
    bool no_memory;
    what = decode_parts(&decoder, &manifest, &no_memory);
    if (what == NULL && no_memory) {
        MARK("lsm.manifest.decode_no_memory");
        manifest_free(&manifest);
        *what_out = "no memory to hold it";
        return ST_NO_MEMORY;
    }
    if (what == NULL) {
        u32 index;
        what = manifest_check(&manifest, &index);
    }
    if (what != NULL) {
        MARK("lsm.manifest.contradiction");
        *offset_out = decoder.at;
        *what_out = what;
        manifest_free(&manifest);
        return ST_CORRUPT;
    }
    *out = manifest;
    return ST_OK;
}

void
manifest_free(struct manifest *manifest)
{
    struct budget *budget = manifest->budget;
    mem_free(budget, manifest->runs, manifest->run_count * sizeof(*manifest->runs));
    mem_free(budget, manifest->tables, manifest->table_count * sizeof(*manifest->tables));
    mem_free(budget, manifest->metas, manifest->table_count * sizeof(*manifest->metas));
    mem_free(budget, manifest->blobs, manifest->blob_count * sizeof(*manifest->blobs));
    mem_free(budget, manifest->ranges, manifest->range_count * sizeof(*manifest->ranges));
    *manifest = (struct manifest){.budget = budget};
}
