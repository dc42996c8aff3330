/* SPDX-License-Identifier: MIT
 *
 * memtable.c -- a radix on token bits over small B+trees.
 *
 *   slots:  [ token_first .. ][ .. ][ .. ][ .. token_last ]     2^n equal parts of the range
 *               |               |
 *             inner            leaf -> leaf                     63 or 42 elements each
 *            /     \
 *         leaf --> leaf        an element: token, newest version -> older -> older
 *
 * Tokens are hashes, so the parts fill evenly and nearly every tree is one or two levels high; a
 * long run of one token (a hash tag) only makes its tree higher. The order inside a node is that of
 * (token, key): tokens lie side by side and decide nearly always; only a tie looks at the key.
 *
 * Records and nodes have memory apart (memtable_memory.h). memtable_fits takes the chunks that the
 * worst case needs, so that the inserts that follow cannot fail:
 *
 *   Nodes for n inserts. A leaf splits only when it is full. Those that are full now cannot be more
 *   than there are leaves (or n); a leaf made by a split takes half of its elements more before it
 *   splits again: so min(n, leaves) + n / 31. An empty part needs a first leaf, so min(n, empty
 *   parts). The same counts hold one level up for inner nodes, and each tree may get a new root,
 *   so min(n, parts).
 *
 * Invariants
 *   M1  Elements of a tree ascend by (token, key), no two are equal; leaves are chained in order.
 *   M2  A chain of versions descends by (version, seq), and by seq alone: a version that arrived
 *       after a higher one can be seen by nobody and is left out.
 *   M3  Every key of child i is at or above separator i (i > 0) and below separator i + 1.
 *   M4  Nothing is moved or freed before the last reference is gone; nodes change, records do not
 *       but for RECORD_READ, so the bytes that memtable_get returns stay.
 */
#include "lsm/memtable.h"

#include "base/fault.h"
#include "base/limits.h"

#define LEAF_ELEMENTS    63u
#define INNER_ELEMENTS   42u
#define SMALL_ELEMENTS   4u /* of either, in some runs of the simulator */
#define HEIGHT_MAX       16u
#define SLOTS_MAX        4096u
#define BYTES_PER_SLOT   KIB(64)
#define RECORD_ALIGNMENT 8u
#define CACHE_LINE_BYTES 64u
#define PREFETCH_LINES   9u /* the head and the tokens of a node */
#define RECORD_LINES     3u /* of a record: the head, the key, a small value */
#define CURSOR_AHEAD     4u /* records that a cursor asks for before it comes to them */
/* In a record's flags, beside those of its entry: somebody has read the key while it was here. */
#define RECORD_READ 0x80u

struct record {
    struct record *older; /* next lower version of the key, or NULL */
    u64 token, version, seq, expire_ms;
    u32 value_size;
    u16 key_size;
    u8 kind, flags;
    u8 data[]; /* key, value */
};
static_assert(sizeof(struct record) == 48, "what memtable_fits counts for each entry");

struct node {
    u16 count;
    bool leaf;
    struct node *next; /* of a leaf: to the right in the same tree */
};

struct leaf {
    struct node node;
    u64 tokens[LEAF_ELEMENTS];
    struct record *records[LEAF_ELEMENTS];
};

struct inner {
    struct node node;
    u64 tokens[INNER_ELEMENTS];
    struct record *separators[INNER_ELEMENTS]; /* not above any key of the child */
    struct node *children[INNER_ELEMENTS];
};
static_assert(sizeof(struct leaf) == 1024, "leaves and inner nodes share one size");
static_assert(sizeof(struct inner) == 1024, "leaves and inner nodes share one size");
#define NODE_BYTES 1024u

struct memtable {
    struct memtable_memory memory;
    u64 token_first, token_last;
    u32 ref_count;
    u32 leaf_max, inner_max; /* elements of a node that is full */
    u32 slot_shift;          /* (token - token_first) >> slot_shift is the slot */
    u32 slot_count;
    struct node **slots;
    struct memtable_pool records, nodes;
    u64 generation; /* bumped when an element is added: cursors then look for their place anew */
    u64 leaf_count, inner_count, slots_used;
    u64 entry_count, seq_min, seq_max, version_max;
    u64 covered_count, covered_seq; /* of the entries, those that memtable_cover met; up to here */
};

/* ---- memory ---- */

void
memtable_pages_use(struct memtable *memtable, struct memtable_pages *pages)
{
    CHECK(memtable->memory.budget == pages->budget);
    memtable->memory.pages = pages;
}

static size_t
record_bytes(size_t key_size, size_t value_size)
{
    return (size_t)align_up(sizeof(struct record) + key_size + value_size, RECORD_ALIGNMENT);
}

struct memtable *
memtable_new(struct budget *budget, u64 token_first, u64 token_last, u64 capacity_bytes)
{
    CHECK(token_first <= token_last);
    struct memtable *memtable = mem_alloc_zero(budget, sizeof(*memtable));
    if (memtable == NULL) return MARKED("lsm.memtable.no_memory", NULL);
    bool small = capacity_bytes <= MIB(4) && BUGGIFY("lsm.memtable.small_nodes"); /* high trees */
    u64 slots = 1;
    while (!small && slots < SLOTS_MAX && slots * BYTES_PER_SLOT < capacity_bytes)
        slots *= 2;
    u64 span = token_last - token_first;
    u32 shift = 0;
    while (shift < 63 && span >> shift >= slots)
        shift++;
    *memtable = (struct memtable){
        .memory = memtable_memory_of(budget, capacity_bytes),
        .token_first = token_first,
        .token_last = token_last,
        .ref_count = 1,
        .leaf_max = small ? SMALL_ELEMENTS : LEAF_ELEMENTS,
        .inner_max = small ? SMALL_ELEMENTS : INNER_ELEMENTS,
        .slot_shift = shift,
        .slot_count = (u32)(span >> shift) + 1,
        .seq_min = UINT64_MAX,
    };
    memtable->slots = mem_alloc_zero(budget, memtable->slot_count * sizeof(struct node *));
    if (memtable->slots == NULL) {
        MARK("lsm.memtable.slots_no_memory");
        mem_free(budget, memtable, sizeof(*memtable));
        return NULL;
    }
    memtable->memory.used_bytes = sizeof(*memtable) + memtable->slot_count * sizeof(struct node *);
    return memtable;
}

void
memtable_ref(struct memtable *memtable)
{
    memtable->ref_count++;
}

void
memtable_unref(struct memtable *memtable)
{
    if (memtable == NULL) return;
    CHECK(memtable->ref_count > 0);
    if (--memtable->ref_count > 0) return;
    memtable_pool_free(&memtable->records, &memtable->memory);
    memtable_pool_free(&memtable->nodes, &memtable->memory);
    struct budget *budget = memtable->memory.budget;
    mem_free(budget, memtable->slots, memtable->slot_count * sizeof(struct node *));
    mem_free(budget, memtable, sizeof(*memtable));
}

static u64
nodes_worst(const struct memtable *memtable, u64 count)
{
    u64 empty = memtable->slot_count - memtable->slots_used;
    u64 leaves =
        MIN(count, memtable->leaf_count) + count / (memtable->leaf_max / 2) + MIN(count, empty);
    u64 inners = MIN(leaves, memtable->inner_count) + leaves / (memtable->inner_max / 2 - 1) +
                 MIN(leaves, HEIGHT_MAX);
    u64 roots = MIN(count, memtable->slot_count);
    return leaves + inners + roots;
}

bool
memtable_fits(struct memtable *memtable, u64 bytes, u32 count)
{
    u64 records = bytes + (u64)count * (sizeof(struct record) + RECORD_ALIGNMENT - 1);
    /* A node's memory is one piece with its like: memtable_pool_reserve hands out whole nodes. */
    return memtable_pool_reserve(&memtable->records, &memtable->memory, (size_t)records) &&
           memtable_pool_reserve(&memtable->nodes, &memtable->memory,
                                 (size_t)(nodes_worst(memtable, count) * NODE_BYTES));
}

/* ---- searching ---- */

static u32
slot_of(const struct memtable *memtable, u64 token)
{
    u64 inside = CLAMP(token, memtable->token_first, memtable->token_last);
    return (u32)((inside - memtable->token_first) >> memtable->slot_shift);
}

static struct bytes
record_key(const struct record *record)
{
    return BYTES(record->data, record->key_size);
}

/* The first of count tokens that is not below token; without branches. */
static u32
token_lower_bound(const u64 *tokens, u32 count, u64 token)
{
    if (count == 0) return 0;
    const u64 *base = tokens;
    while (count > 1) {
        u32 half = count / 2;
        base += base[half - 1] < token ? half : 0;
        count -= half;
    }
    return (u32)(base - tokens) + (*base < token);
}

/* The first of count elements that is at or after (token, key). */
static u32
lower_bound(const u64 *tokens, struct record *const *records, u32 count, u64 token,
            struct bytes key)
{
    u32 low = token_lower_bound(tokens, count, token);
    u32 end = low;
    if (low < count && tokens[low] == token) {
        end = low + 1;
        if (end < count && tokens[end] == token) /* one hash tag */
            end = token == UINT64_MAX
                      ? count
                      : end + token_lower_bound(tokens + end, count - end, token + 1);
    }
    while (low < end) {
        u32 middle = (low + end) / 2;
        if (bytes_compare(record_key(records[middle]), key) < 0)
            low = middle + 1;
        else
            end = middle;
    }
    return low;
}

/* The child that may hold (token, key): the last whose separator is at or before it, else the first
 * one, whose separator decides nothing: keys below it may have come since. */
static u32
child_of(const struct inner *inner, u64 token, struct bytes key)
{
    u32 count = inner->node.count;
    u32 i = 1 + lower_bound(inner->tokens + 1, inner->separators + 1, count - 1, token, key);
    if (i < count && inner->tokens[i] == token &&
        bytes_equal(record_key(inner->separators[i]), key))
        return i;
    return i - 1;
}

static struct leaf *
leaf_find(const struct memtable *memtable, u64 token, struct bytes key)
{
    struct node *node = memtable->slots[slot_of(memtable, token)];
    while (node != NULL && !node->leaf) {
        struct inner *inner = CONTAINER_OF(node, struct inner, node);
        node = inner->children[child_of(inner, token, key)];
    }
    return node == NULL ? NULL : CONTAINER_OF(node, struct leaf, node);
}

static bool
leaf_holds(const struct leaf *leaf, u32 i, u64 token, struct bytes key)
{
    return i < leaf->node.count && leaf->tokens[i] == token &&
           bytes_equal(record_key(leaf->records[i]), key);
}

static void
record_entry(const struct record *record, struct entry *out)
{
    *out = (struct entry){
        .token = record->token,
        .key = BYTES(record->data, record->key_size),
        .value = BYTES(record->data + record->key_size, record->value_size),
        .version = record->version,
        .seq = record->seq,
        .expire_ms = record->expire_ms,
        .kind = record->kind,
        .flags = record->flags & (u8)~RECORD_READ,
    };
}

/* No store where it is noted: the line may be read by many, and hot. */
static void
record_note_read(struct record *record)
{
    if (!(record->flags & RECORD_READ)) record->flags |= RECORD_READ;
}

static struct record *
record_of(const struct entry *entry)
{
    return (struct record *)((uintptr_t)entry->key.data - offsetof(struct record, data));
}

void
memtable_read_note(const struct entry *entry)
{
    record_note_read(record_of(entry));
}

bool
memtable_was_read(const struct entry *entry)
{
    return record_of(entry)->flags & RECORD_READ;
}

bool
memtable_get(const struct memtable *memtable, u64 token, struct bytes key, u64 seq_max,
             struct entry *out)
{
    struct leaf *leaf = leaf_find(memtable, token, key);
    if (leaf == NULL) return false;
    u32 i = lower_bound(leaf->tokens, leaf->records, leaf->node.count, token, key);
    if (!leaf_holds(leaf, i, token, key)) return false;
    struct record *record = leaf->records[i];
    while (record != NULL && record->seq > seq_max)
        record = record->older;
    if (record == NULL) return false;
    record_entry(record, out);
    return true;
}

static void
node_prefetch(const struct node *node)
{
    const u8 *line = (const u8 *)node;
    for (u32 i = 0; i < PREFETCH_LINES; i++)
        __builtin_prefetch(line + i * CACHE_LINE_BYTES);
}

static void
record_prefetch(const struct record *record)
{
    for (u32 i = 0; i < RECORD_LINES; i++)
        __builtin_prefetch((const u8 *)record + i * CACHE_LINE_BYTES);
}

void
memtable_prefetch_root(const struct memtable *memtable, u64 token)
{
    const struct node *node = memtable->slots[slot_of(memtable, token)];
    if (node != NULL) node_prefetch(node);
}

const struct leaf *
memtable_prefetch_leaf(const struct memtable *memtable, u64 token)
{
    const struct node *node = memtable->slots[slot_of(memtable, token)];
    if (node != NULL && !node->leaf) {
        const struct inner *inner = (const struct inner *)(const void *)node;
        u32 count = inner->node.count;
        u32 i = 1 + token_lower_bound(inner->tokens + 1, count - 1, token);
        /* Of a run of one token it may be another: that costs a miss, no more. */
        if (i == count || inner->tokens[i] != token) i--;
        node = inner->children[i];
        node_prefetch(node);
    }
    /* Trees of three levels are rare; their leaves are not looked for. It is told later. */
    return (const struct leaf *)(const void *)node;
}

const struct record *
memtable_prefetch_record(const struct leaf *leaf, u64 token, bool insert)
{
    if (leaf == NULL || !leaf->node.leaf) return NULL;
    u32 i = token_lower_bound(leaf->tokens, leaf->node.count, token);
    if (i == leaf->node.count || leaf->tokens[i] != token) {
        /* What a new element moves. */
        const u8 *end = (const u8 *)(leaf->records + leaf->node.count);
        for (const u8 *p = (const u8 *)(leaf->records + i); insert && p <= end;
             p += CACHE_LINE_BYTES)
            __builtin_prefetch(p, 1);
        return NULL;
    }
    record_prefetch(leaf->records[i]);
    return leaf->records[i];
}

bool
memtable_get_found(const struct record *record, struct bytes key, struct entry *out)
{
    if (!bytes_equal(record_key(record), key)) return false;
    record_note_read((struct record *)(uintptr_t)record);
    record_entry(record, out);
    return true;
}

/* ---- inserting ---- */

static void *
node_alloc(struct memtable *memtable)
{
    /* Nothing is left to reserve here after memtable_fits. */
    if (memtable->nodes.open.left < NODE_BYTES)
        CHECK(memtable_pool_reserve(&memtable->nodes, &memtable->memory, NODE_BYTES));
    return memtable_pool_alloc(&memtable->nodes, NODE_BYTES);
}

static struct leaf *
leaf_new(struct memtable *memtable)
{
    struct leaf *leaf = node_alloc(memtable);
    leaf->node.count = 0;
    leaf->node.leaf = true;
    leaf->node.next = NULL;
    memtable->leaf_count++;
    return leaf;
}

static struct inner *
inner_new(struct memtable *memtable)
{
    struct inner *inner = node_alloc(memtable);
    inner->node.count = 0;
    inner->node.leaf = false;
    inner->node.next = NULL;
    memtable->inner_count++;
    return inner;
}

static void
leaf_put(struct leaf *leaf, u32 i, struct record *record)
{
    u32 tail = leaf->node.count - i;
    memmove(leaf->tokens + i + 1, leaf->tokens + i, tail * sizeof(leaf->tokens[0]));
    memmove(leaf->records + i + 1, leaf->records + i, tail * sizeof(leaf->records[0]));
    leaf->tokens[i] = record->token;
    leaf->records[i] = record;
    leaf->node.count++;
}

static void
inner_put(struct inner *inner, u32 i, struct record *separator, struct node *child)
{
    u32 tail = inner->node.count - i;
    memmove(inner->tokens + i + 1, inner->tokens + i, tail * sizeof(inner->tokens[0]));
    memmove(inner->separators + i + 1, inner->separators + i, tail * sizeof(inner->separators[0]));
    memmove(inner->children + i + 1, inner->children + i, tail * sizeof(inner->children[0]));
    inner->tokens[i] = separator->token;
    inner->separators[i] = separator;
    inner->children[i] = child;
    inner->node.count++;
}

/* Puts the upper half of a full leaf into a new one at its right; only what is new goes there when
 * it comes last, so that ascending keys leave full leaves behind. Returns the new leaf, whose first
 * record is its separator. */
static struct leaf *
leaf_split(struct memtable *memtable, struct leaf *leaf, u32 i, struct record *record)
{
    struct leaf *right = leaf_new(memtable);
    u32 full = leaf->node.count;
    u32 keep = i == full ? full : (full + 1) / 2;
    u32 moved = full - keep;
    memcpy(right->tokens, leaf->tokens + keep, moved * sizeof(leaf->tokens[0]));
    memcpy(right->records, leaf->records + keep, moved * sizeof(leaf->records[0]));
    right->node.count = (u16)moved;
    leaf->node.count = (u16)keep;
    right->node.next = leaf->node.next;
    leaf->node.next = &right->node;
    if (i > keep || (i == keep && moved == 0))
        leaf_put(right, i - keep, record);
    else
        leaf_put(leaf, i, record);
    return right;
}

static struct inner *
inner_split(struct memtable *memtable, struct inner *inner, u32 i, struct record *separator,
            struct node *child)
{
    struct inner *right = inner_new(memtable);
    u32 full = inner->node.count;
    u32 keep = i == full ? full : full / 2;
    u32 moved = full - keep;
    memcpy(right->tokens, inner->tokens + keep, moved * sizeof(inner->tokens[0]));
    memcpy(right->separators, inner->separators + keep, moved * sizeof(inner->separators[0]));
    memcpy(right->children, inner->children + keep, moved * sizeof(inner->children[0]));
    right->node.count = (u16)moved;
    inner->node.count = (u16)keep;
    if (i > keep || (i == keep && moved == 0))
        inner_put(right, i - keep, separator, child);
    else
        inner_put(inner, i, separator, child);
    return right;
}

/* A new element in an empty tree or a full leaf; the path from the root says where. */
static void
element_insert(struct memtable *memtable, struct record *record)
{
    struct node **root = &memtable->slots[slot_of(memtable, record->token)];
    struct bytes key = record_key(record);
    memtable->generation++;
    if (*root == NULL) {
        struct leaf *leaf = leaf_new(memtable);
        leaf_put(leaf, 0, record);
        *root = &leaf->node;
        memtable->slots_used++;
        return;
    }

    struct inner *path[HEIGHT_MAX];
    u32 path_child[HEIGHT_MAX];
    u32 depth = 0;
    struct node *node = *root;
    while (!node->leaf) {
        struct inner *inner = CONTAINER_OF(node, struct inner, node);
        CHECK(depth < HEIGHT_MAX);
        path[depth] = inner;
        path_child[depth] = child_of(inner, record->token, key);
        node = inner->children[path_child[depth++]];
    }

    struct leaf *leaf = CONTAINER_OF(node, struct leaf, node);
    CHECK(leaf->node.count == memtable->leaf_max);
    u32 i = lower_bound(leaf->tokens, leaf->records, leaf->node.count, record->token, key);
    struct leaf *leaf_right = leaf_split(memtable, leaf, i, record);
    struct node *right = &leaf_right->node;
    struct record *separator = leaf_right->records[0];
    while (depth > 0) {
        struct inner *inner = path[--depth];
        u32 at = path_child[depth] + 1;
        if (inner->node.count < memtable->inner_max) {
            inner_put(inner, at, separator, right);
            return;
        }
        struct inner *inner_right = inner_split(memtable, inner, at, separator, right);
        right = &inner_right->node;
        separator = inner_right->separators[0];
    }
    /* The root was split. Separator 0 is never compared to decide: any record of the left serves.
     */
    struct inner *top = inner_new(memtable);
    struct record *first = (*root)->leaf ? CONTAINER_OF(*root, struct leaf, node)->records[0]
                                         : CONTAINER_OF(*root, struct inner, node)->separators[0];
    inner_put(top, 0, first, *root);
    inner_put(top, 1, separator, right);
    *root = &top->node;
}

/* The leaf of (token, key), without a look at the tree where the hint is right for sure. Elements
 * only ever leave a leaf for new ones at its right, so what lies between two tokens of it now has
 * its place there. */
static struct leaf *
leaf_near(const struct memtable *memtable, const struct leaf *hint, u64 token, struct bytes key)
{
    if (hint != NULL && hint->node.leaf && hint->tokens[0] < token &&
        token < hint->tokens[hint->node.count - 1])
        return (struct leaf *)(uintptr_t)hint;
    return leaf_find(memtable, token, key);
}

void
memtable_insert(struct memtable *memtable, const struct entry *entry, bool keep_older)
{
    memtable_insert_near(memtable, entry, keep_older, NULL);
}

void
memtable_insert_near(struct memtable *memtable, const struct entry *entry, bool keep_older,
                     const struct leaf *hint)
{
    CHECK(entry->kind == ENTRY_PUT || entry->kind == ENTRY_DELETE);
    CHECK(!(entry->flags & RECORD_READ));
    CHECK(entry->key.size <= LIMIT_KEY_BYTES && entry->value.size <= LIMIT_VALUE_BYTES);
    CHECK(entry->token >= memtable->token_first && entry->token <= memtable->token_last);

    memtable->seq_min = MIN(memtable->seq_min, entry->seq);
    memtable->seq_max = MAX(memtable->seq_max, entry->seq);
    memtable->version_max = MAX(memtable->version_max, entry->version);

    struct leaf *leaf = leaf_near(memtable, hint, entry->token, entry->key);
    u32 i = 0;
    struct record **place = NULL;
    if (leaf != NULL) {
        i = lower_bound(leaf->tokens, leaf->records, leaf->node.count, entry->token, entry->key);
        if (leaf_holds(leaf, i, entry->token, entry->key)) place = &leaf->records[i];
    }
    if (place != NULL) {
        struct record *newest = *place;
        if (newest->version > entry->version ||
            (newest->version == entry->version && newest->seq >= entry->seq)) {
            MARK("lsm.memtable.older_version"); /* M2 */
            return;
        }
        CHECK(newest->seq < entry->seq); /* numbers only grow */
    }

    size_t size = record_bytes(entry->key.size, entry->value.size);
    if (memtable->records.open.left < size)
        CHECK(memtable_pool_reserve(&memtable->records, &memtable->memory, size));
    struct record *record = memtable_pool_alloc(&memtable->records, size);
    u8 read = place != NULL ? (*place)->flags & RECORD_READ : 0;
    *record = (struct record){
        .older = place != NULL && keep_older ? *place : NULL,
        .token = entry->token,
        .version = entry->version,
        .seq = entry->seq,
        .expire_ms = entry->expire_ms,
        .value_size = (u32)entry->value.size,
        .key_size = (u16)entry->key.size,
        .kind = entry->kind,
        .flags = entry->flags | read,
    };
    if (entry->key.size > 0) memcpy(record->data, entry->key.data, entry->key.size);
    if (entry->value.size > 0)
        memcpy(record->data + entry->key.size, entry->value.data, entry->value.size);

    memtable->entry_count++;
    if (place != NULL) {
        if (!keep_older) {
            for (struct record *r = *place; r != NULL; r = r->older) {
                memtable->entry_count--;
                if (r->seq <= memtable->covered_seq) memtable->covered_count--;
            }
        }
        *place = record;
    } else if (leaf != NULL && leaf->node.count < memtable->leaf_max) {
        memtable->generation++;
        leaf_put(leaf, i, record);
    } else {
        element_insert(memtable, record);
    }
    AUDIT("lsm.memtable.inserted", memtable_check(memtable));
}

/* ---- cursors ---- */

struct memtable_cursor {
    struct cursor cursor;
    struct memtable *memtable;
    struct budget *budget;
    u64 generation; /* of the memtable when leaf and index were right */
    struct leaf *leaf;
    u32 index;
    u32 slot;
    struct record *record; /* the version that the entry shows */
};

/* Records lie in the order in which they came, so in the order of keys each is a cache miss: those
 * that come soon are asked for. */
static void
cursor_prefetch(const struct memtable_cursor *c)
{
    const struct leaf *leaf = c->leaf;
    u32 count = leaf->node.count;
    const struct leaf *next =
        leaf->node.next == NULL ? NULL : CONTAINER_OF(leaf->node.next, struct leaf, node);
    if (c->index == 0) {
        if (next != NULL) {
            __builtin_prefetch(next);
            for (u32 i = 0; i < LEAF_ELEMENTS; i += CACHE_LINE_BYTES / sizeof(next->records[0]))
                __builtin_prefetch(&next->records[i]);
        }
        for (u32 i = 1; i < MIN(CURSOR_AHEAD, count); i++)
            record_prefetch(leaf->records[i]);
    }
    u32 ahead = c->index + CURSOR_AHEAD;
    if (ahead < count)
        record_prefetch(leaf->records[ahead]);
    else if (next != NULL && ahead - count < next->node.count)
        record_prefetch(next->records[ahead - count]);
}

/* Shows the element at leaf and index, or the first one after it. */
static void
cursor_settle(struct memtable_cursor *c)
{
    const struct memtable *memtable = c->memtable;
    while (c->leaf == NULL || c->index >= c->leaf->node.count) {
        if (c->leaf != NULL && c->leaf->node.next != NULL) {
            c->leaf = CONTAINER_OF(c->leaf->node.next, struct leaf, node);
            c->index = 0;
            continue;
        }
        do {
            if (++c->slot >= memtable->slot_count) {
                c->cursor.valid = false;
                c->record = NULL;
                c->leaf = NULL;
                return;
            }
        } while (memtable->slots[c->slot] == NULL);
        struct node *node = memtable->slots[c->slot];
        while (!node->leaf)
            node = CONTAINER_OF(node, struct inner, node)->children[0];
        c->leaf = CONTAINER_OF(node, struct leaf, node);
        c->index = 0;
    }
    c->generation = memtable->generation;
    cursor_prefetch(c);
    c->record = c->leaf->records[c->index];
    record_entry(c->record, &c->cursor.entry);
    c->cursor.valid = true;
}

static status
cursor_seek(struct cursor *cursor, u64 token, struct bytes key)
{
    struct memtable_cursor *c = CONTAINER_OF(cursor, struct memtable_cursor, cursor);
    if (token > c->memtable->token_last) {
        cursor->valid = false;
        return ST_OK;
    }
    if (token < c->memtable->token_first) {
        token = c->memtable->token_first;
        key = BYTES(NULL, 0);
    }
    c->slot = slot_of(c->memtable, token);
    c->leaf = leaf_find(c->memtable, token, key);
    c->index = c->leaf == NULL ? 0
                               : lower_bound(c->leaf->tokens, c->leaf->records, c->leaf->node.count,
                                             token, key);
    cursor_settle(c);
    return ST_OK;
}

static status
cursor_next(struct cursor *cursor)
{
    struct memtable_cursor *c = CONTAINER_OF(cursor, struct memtable_cursor, cursor);
    CHECK(cursor->valid);
    if (c->record->older != NULL) {
        c->record = c->record->older;
        record_entry(c->record, &cursor->entry);
        return ST_OK;
    }
    if (c->generation == c->memtable->generation) {
        c->index++;
        cursor_settle(c);
        return ST_OK;
    }
    MARK("lsm.memtable.cursor_moved");
    /* Elements were added and may have moved ours: look for it and step over it. */
    struct bytes key = record_key(c->record);
    u64 token = c->record->token;
    c->leaf = leaf_find(c->memtable, token, key);
    CHECK(c->leaf != NULL);
    c->index = lower_bound(c->leaf->tokens, c->leaf->records, c->leaf->node.count, token, key);
    CHECK(leaf_holds(c->leaf, c->index, token, key));
    c->index++;
    cursor_settle(c);
    return ST_OK;
}

static void
cursor_close(struct cursor *cursor)
{
    struct memtable_cursor *c = CONTAINER_OF(cursor, struct memtable_cursor, cursor);
    memtable_unref(c->memtable);
    mem_free(c->budget, c, sizeof(*c));
}

static const struct cursor_ops memtable_cursor_ops = {
    .seek = cursor_seek,
    .next = cursor_next,
    .close = cursor_close,
};

struct cursor *
memtable_cursor_open(struct memtable *memtable, struct budget *budget)
{
    struct memtable_cursor *c = mem_alloc_zero(budget, sizeof(*c));
    if (c == NULL) return MARKED("lsm.memtable.cursor_no_memory", NULL);
    c->cursor.ops = &memtable_cursor_ops;
    c->memtable = memtable;
    c->budget = budget;
    memtable_ref(memtable);
    return &c->cursor;
}

/* ---- figures and checks ---- */

u64
memtable_used_bytes(const struct memtable *memtable)
{
    return memtable->memory.used_bytes;
}

u64
memtable_entry_count(const struct memtable *memtable)
{
    return memtable->entry_count;
}

void
memtable_cover(struct memtable *memtable)
{
    memtable->covered_count = memtable->entry_count;
    memtable->covered_seq = memtable->seq_max;
}

u64
memtable_uncovered_count(const struct memtable *memtable)
{
    return memtable->entry_count - memtable->covered_count;
}

u64
memtable_seq_min(const struct memtable *memtable)
{
    return memtable->seq_min;
}

u64
memtable_seq_max(const struct memtable *memtable)
{
    return memtable->seq_max;
}

u64
memtable_version_max(const struct memtable *memtable)
{
    return memtable->version_max;
}

struct check_state {
    const struct memtable *memtable;
    const struct record *previous;
    u64 entries, leaves, inners;
};

static bool
leaf_check(struct check_state *state, struct leaf *leaf, u32 slot)
{
    state->leaves++;
    if (leaf->node.count == 0 || leaf->node.count > state->memtable->leaf_max) return false;
    for (u32 i = 0; i < leaf->node.count; i++) {
        const struct record *record = leaf->records[i];
        if (record->token != leaf->tokens[i]) return false;
        if (slot_of(state->memtable, record->token) != slot) return false;
        if (state->previous != NULL &&
            entry_compare_key(state->previous->token, record_key(state->previous), record->token,
                              record_key(record)) >= 0)
            return false; /* M1 */
        state->previous = record;
        for (const struct record *r = record; r != NULL; r = r->older) {
            state->entries++;
            if (r->older == NULL) continue;
            if (r->older->version > r->version || r->older->seq >= r->seq) return false; /* M2 */
            if (!bytes_equal(record_key(r), record_key(r->older))) return false;
        }
    }
    return true;
}

/* Recursion is bounded by the height of a tree. */
static bool
node_check(struct check_state *state, struct node *node, u32 slot, u32 depth)
{
    if (depth > HEIGHT_MAX) return false;
    if (node->leaf) return leaf_check(state, CONTAINER_OF(node, struct leaf, node), slot);
    struct inner *inner = CONTAINER_OF(node, struct inner, node);
    state->inners++;
    if (inner->node.count == 0 || inner->node.count > state->memtable->inner_max) return false;
    for (u32 i = 0; i < inner->node.count; i++) {
        const struct record *separator = inner->separators[i];
        if (separator->token != inner->tokens[i]) return false;
        if (i > 0 && state->previous != NULL &&
            entry_compare_key(state->previous->token, record_key(state->previous), separator->token,
                              record_key(separator)) >= 0)
            return false; /* M3 from the left */
        const struct record *before = state->previous;
        if (!node_check(state, inner->children[i], slot, depth + 1)) return false;
        if (state->previous == before) return false;
    }
    return true;
}

bool
memtable_check(const struct memtable *memtable)
{
    struct check_state state = {.memtable = memtable};
    u64 used = 0;
    for (u32 i = 0; i < memtable->slot_count; i++) {
        if (memtable->slots[i] == NULL) continue;
        used++;
        if (!node_check(&state, memtable->slots[i], i, 0)) return false;
    }
    return used == memtable->slots_used && state.entries == memtable->entry_count &&
           memtable->covered_count <= memtable->entry_count &&
           state.leaves == memtable->leaf_count && state.inners == memtable->inner_count;
}
