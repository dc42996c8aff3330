/* SPDX-License-Identifier: MIT
 *
 * hints_key.c -- keys of hints. See hints_internal.h. Pure.
 *
 * A tag for each partition: numbers are tried from 0 on until every partition has one. CRC16 deals
 * decimal numbers evenly: 4,096 partitions of four slots each have theirs below 20,000, and the
 * search takes a millisecond. The same numbers everywhere and always, or hints would be lost.
 */
#include "base/hash.h"
#include "cluster/hints_internal.h"

#define TAG_NUMBERS_MAX 1000000u

static_assert(HINT_TAG_BYTES - 1 >= 6, "the largest number that is tried");

static void
tag_of_number(u32 number, struct hint_tag *out)
{
    char digits[10];
    u8 count = 0;
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    *out = (struct hint_tag){.size = count};
    for (u8 i = 0; i < count; i++)
        out->text[i] = digits[count - 1 - i];
}

void
hint_tags_find(u32 first, u32 count, struct hint_tag *out)
{
    memset(out, 0, count * sizeof(*out));
    u32 left = count;
    for (u32 number = 0; left > 0 && number < TAG_NUMBERS_MAX; number++) {
        struct hint_tag tag;
        tag_of_number(number, &tag);
        u32 slot = hash_slot(BYTES(tag.text, tag.size));
        u32 partition = slot / (SLOT_COUNT / PARTITION_COUNT_DEFAULT);
        if (partition < first || partition - first >= count || out[partition - first].size > 0)
            continue;
        out[partition - first] = tag;
        left--;
    }
    CHECK(left == 0);
}

static u8 *
put_big(u8 *p, u64 value, u32 bytes)
{
    for (u32 i = 0; i < bytes; i++)
        p[i] = (u8)(value >> (8 * (bytes - 1 - i)));
    return p + bytes;
}

static const u8 *
get_big(const u8 *p, u64 *value_out, u32 bytes)
{
    u64 value = 0;
    for (u32 i = 0; i < bytes; i++)
        value = value << 8 | p[i];
    *value_out = value;
    return p + bytes;
}

u32
hint_key_run(const struct hint_tag *tag, u32 target, u8 *out)
{
    u8 *p = out;
    *p++ = '{';
    memcpy(p, tag->text, tag->size);
    p += tag->size;
    *p++ = '}';
    p = put_big(p, target, 4);
    return (u32)(p - out);
}

u32
hint_key_encode(const struct hint_tag *tag, const struct hint_key *key, u8 *out)
{
    u8 *p = out + hint_key_run(tag, key->target, out);
    *p++ = key->kind;
    if (key->kind == HINT_KIND_WRITE) {
        p = put_big(p, key->version, 8);
        p = put_big(p, key->keyspace, 2);
        p = put_big(p, key->count, 4);
        p = put_big(p, key->part, 2);
        p = put_big(p, key->parts, 2);
    }
    return (u32)(p - out);
}

bool
hint_key_decode(const struct hint_tag *tag, struct bytes bytes, struct hint_key *out)
{
    size_t head = 2u + tag->size;
    if (bytes.size < head + 5 || bytes.data[0] != '{' || bytes.data[head - 1] != '}' ||
        memcmp(bytes.data + 1, tag->text, tag->size) != 0)
        return false;
    const u8 *p = bytes.data + head;
    u64 target, version, keyspace, count, part, parts;
    p = get_big(p, &target, 4);
    *out = (struct hint_key){.target = (u32)target, .kind = *p++};
    if (out->kind == HINT_KIND_MARKER) return bytes.size == head + 5;
    if (out->kind != HINT_KIND_WRITE || bytes.size != head + 5 + 18) return false;
    p = get_big(p, &version, 8);
    p = get_big(p, &keyspace, 2);
    p = get_big(p, &count, 4);
    p = get_big(p, &part, 2);
    (void)get_big(p, &parts, 2);
    out->version = version;
    out->keyspace = (u16)keyspace;
    out->count = (u32)count;
    out->part = (u16)part;
    out->parts = (u16)parts;
    return target != 0 && version != 0 && keyspace < LIMIT_KEYSPACES_CLIENT && count > 0 &&
           count <= LIMIT_BATCH_OPS && part < parts && parts <= HINT_PARTS_MAX;
}
