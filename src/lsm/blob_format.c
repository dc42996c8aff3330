/* SPDX-License-Identifier: MIT
 *
 * blob_format.c -- decoding of blob files, see table_format.h. Pure, and what the fuzzers call.
 */
#include "lsm/table_format.h"

#include "base/fault.h"

static status
bad(const char **what_out, const char *what)
{
    MARK("lsm.blob_format.refused");
    *what_out = what;
    return ST_CORRUPT;
}

static bool
all_zero(const u8 *data, size_t size)
{
    u8 any = 0;
    for (size_t i = 0; i < size; i++)
        any |= data[i];
    return any == 0;
}

status
blob_header_decode(struct bytes page, u64 file_id, const char **what_out)
{
    struct blob_file_header header;
    if (page.size < sizeof(header)) return bad(what_out, "header is cut off");
    memcpy(&header, page.data, sizeof(header));
    if (header.magic != BLOB_MAGIC) return bad(what_out, "no blob file header");
    if (header.crc != crc32c(0, &header, sizeof(header) - sizeof(header.crc)))
        return MARKED("lsm.blob_format.header_checksum", bad(what_out, "header checksum"));
    if (header.format != BLOB_FORMAT) return bad(what_out, "unknown blob file format");
    if (header.file_id != file_id) return bad(what_out, "header of another file");
    if (header.reserved != 0 || !all_zero(header.zeros, sizeof(header.zeros)))
        return bad(what_out, "reserved bytes of the header");
    return ST_OK;
}

status
blob_footer_decode(struct bytes page, u64 file_id, u64 file_bytes, struct blob_footer *out,
                   const char **what_out)
{
    struct blob_footer footer;
    if (page.size < sizeof(footer)) return bad(what_out, "footer is cut off");
    memcpy(&footer, page.data + page.size - sizeof(footer), sizeof(footer));
    if (footer.magic != BLOB_FOOTER_MAGIC) return bad(what_out, "no blob file footer");
    if (footer.crc != crc32c(0, &footer, sizeof(footer) - sizeof(footer.crc)))
        return MARKED("lsm.blob_format.footer_checksum", bad(what_out, "footer checksum"));
    if (footer.file_id != file_id) return bad(what_out, "footer of another file");
    if (footer.file_bytes != file_bytes) return bad(what_out, "file size");
    if (!all_zero(footer.zeros, sizeof(footer.zeros)))
        return bad(what_out, "reserved bytes of the footer");
    if (footer.records_end < sizeof(struct blob_file_header) ||
        footer.records_end % BLOB_ALIGNMENT != 0 || file_bytes < sizeof(footer) ||
        footer.records_end > file_bytes - sizeof(footer) ||
        file_bytes - sizeof(footer) - footer.records_end >= IO_ALIGNMENT)
        return bad(what_out, "end of records");
    *out = footer;
    return ST_OK;
}

status
blob_record_decode(struct bytes bytes, u64 file_id, u64 offset, struct blob_record *out,
                   const char **what_out)
{
    struct blob_record_header header;
    out->bytes = 0;
    if (bytes.size < sizeof(header)) {
        out->bytes = sizeof(header);
        return ST_INCOMPLETE;
    }
    memcpy(&header, bytes.data, sizeof(header));
    if (header.magic != BLOB_RECORD_MAGIC) return bad(what_out, "no record");
    if (header.key_size == 0 || header.key_size > LIMIT_KEY_BYTES ||
        header.value_size > LIMIT_VALUE_BYTES)
        return bad(what_out, "record sizes");
    if (!all_zero(header.reserved, sizeof(header.reserved)))
        return bad(what_out, "reserved bytes of the record");
    u64 size = blob_record_bytes(header.key_size, header.value_size);
    if (bytes.size < size) {
        out->bytes = size;
        return ST_INCOMPLETE;
    }
    const u8 *key = bytes.data + sizeof(header);
    const u8 *value = key + header.key_size;
    u32 crc = crc32c(table_place_seed(file_id, offset), bytes.data + 8, sizeof(header) - 8);
    if (crc32c(crc, key, header.key_size) != header.crc)
        return MARKED("lsm.blob_format.record_checksum", bad(what_out, "record checksum"));
    out->bytes = size;
    if (crc32c(0, value, header.value_size) != header.value_crc)
        return MARKED("lsm.blob_format.value_checksum", bad(what_out, "value checksum"));
    const u8 *end = value + header.value_size;
    if (!all_zero(end, (size_t)(bytes.data + size - end))) return bad(what_out, "record padding");
    *out = (struct blob_record){
        .token = header.token,
        .key = BYTES(key, header.key_size),
        .value = BYTES(value, header.value_size),
        .value_crc = header.value_crc,
        .bytes = size,
    };
    return ST_OK;
}
