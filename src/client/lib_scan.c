/* SPDX-License-Identifier: MIT
 *
 * lib_scan.c -- scans: pages one after another, the next one under way while the caller walks this
 * one.
 *
 * A prefix that holds a whole hash tag ("{user7}na") can only match keys of that tag, which share
 * one token: such a scan reads one place. Any other prefix is a filter on the server.
 */
#include "client/lib_internal.h"

#include "base/hash.h"

#include <stdlib.h>

#define SCAN_PAGE_ENTRIES 1000u
#define SCAN_PAGE_BYTES   (1u << 20)
/* Long enough for a slow reader of a pipe; the server may give less. */
#define SCAN_LEASE_MS (10u * 60 * 1000)

struct distkv_scan {
    struct distkv *kv;
    struct native_request native;
    u8 pattern[NATIVE_PATTERN_BYTES_MAX];
    u8 after_key[LIMIT_KEY_BYTES];
    u64 snapshot; /* 0: none */
    u64 run_id;   /* of the server that keeps it */
    u64 left;     /* entries that may still be given */
    /* the page at hand, and the one under way */
    struct waiter pages[2];
    u32 page;          /* which of the two is at hand */
    bool started;      /* the other one is under way */
    bool ended;        /* nothing comes behind the page at hand */
    bool taking;       /* distkv_scan_next is on the stack, and waits for a page */
    bool closed;       /* meanwhile, by a callback */
    struct bytes rest; /* entries of the page at hand */
    int failed;
};

static bool
holds_whole_tag(struct bytes prefix)
{
    struct bytes tag = hash_tag(prefix);
    return tag.size != prefix.size && tag.size > 0;
}

static int
scan_options_apply(distkv_scan *scan, const struct distkv_scan_options *options)
{
    struct distkv *kv = scan->kv;
    struct native_request *native = &scan->native;
    native->header.opcode = NATIVE_SCAN;
    native->scan.token_last = UINT64_MAX;
    native->scan.entries_max =
        options->page_entries > 0 ? options->page_entries : SCAN_PAGE_ENTRIES;
    native->scan.bytes_max = SCAN_PAGE_BYTES;
    if (options->keys_only) native->scan.flags |= NATIVE_SCAN_KEYS_ONLY;
    scan->left = options->limit > 0 ? options->limit : UINT64_MAX;
    if (options->prefix != NULL && options->match != NULL)
        return lib_fail(kv, DISTKV_INVALID, "a prefix and a pattern at the same time");
    struct bytes pattern = BYTES(options->prefix, options->prefix_size);
    u8 kind = NATIVE_MATCH_PREFIX;
    if (options->match != NULL) {
        pattern = BYTES(options->match, strlen(options->match));
        kind = NATIVE_MATCH_GLOB;
    }
    if (pattern.data == NULL || pattern.size == 0) return DISTKV_OK;
    if (pattern.size > NATIVE_PATTERN_BYTES_MAX)
        return lib_fail(kv, DISTKV_TOO_LARGE, "the pattern is longer than %u bytes",
                        NATIVE_PATTERN_BYTES_MAX);
    memcpy(scan->pattern, pattern.data, pattern.size);
    native->scan.match = kind;
    native->scan.pattern = BYTES(scan->pattern, pattern.size);
    if (kind == NATIVE_MATCH_PREFIX && holds_whole_tag(native->scan.pattern)) {
        native->scan.token_first = hash_token(native->scan.pattern);
        native->scan.token_last = native->scan.token_first;
    }
    return DISTKV_OK;
}

static int
snapshot_open(distkv_scan *scan)
{
    struct native_request native = {.header.opcode = NATIVE_SNAPSHOT_OPEN,
                                    .snapshot_open = {.lease_ms = SCAN_LEASE_MS}};
    struct waiter waiter;
    int code = lib_call(scan->kv, &native, LIB_ANYWHERE, true, &waiter);
    if (code == DISTKV_OK) {
        scan->snapshot = waiter.reply.snapshot_open.snapshot;
        scan->run_id = waiter.run_id;
        scan->native.scan.snapshot = scan->snapshot;
    }
    waiter_deinit(&waiter);
    return code;
}

/* Sends for the page behind `after` into the slot of pages that is not at hand. */
static int
page_start(distkv_scan *scan)
{
    struct native_request native = scan->native;
    if (native.scan.entries_max > scan->left) native.scan.entries_max = (u32)scan->left;
    u32 slot =
        token_slot(native.scan.after.given ? native.scan.after.token : native.scan.token_first);
    struct waiter *waiter = &scan->pages[scan->page ^ 1];
    waiter_deinit(waiter);
    scan->kv->pin_run_id = scan->run_id;
    int code = lib_call_start(scan->kv, &native, slot, true, waiter);
    scan->kv->pin_run_id = 0;
    scan->started = code == DISTKV_OK;
    if (scan->started) distkv_flush(scan->kv);
    return code;
}

/* Waits for the page under way, makes it the one at hand, and sends for the next. */
static int
page_take(distkv_scan *scan)
{
    struct waiter *waiter = &scan->pages[scan->page ^ 1];
    int code = lib_call_wait(scan->kv, waiter);
    scan->started = false;
    if (code == DISTKV_TIMED_OUT && !scan->closed) {
        /* Perhaps it was the caller who took longer than the deadline over the last page. */
        code = page_start(scan);
        if (code == DISTKV_OK) code = lib_call_wait(scan->kv, waiter);
        scan->started = false;
    }
    if (code != DISTKV_OK || scan->closed) return code;
    scan->page ^= 1;
    const struct native_reply *reply = &waiter->reply;
    scan->rest = reply->scan.entries;
    scan->left -= MIN(scan->left, reply->scan.count);
    scan->ended = !reply->scan.more || scan->left == 0;
    if (scan->ended) return DISTKV_OK;
    struct native_position *after = &scan->native.scan.after;
    memcpy(scan->after_key, reply->scan.next.key.data, reply->scan.next.key.size);
    *after = (struct native_position){.given = true,
                                      .token = reply->scan.next.token,
                                      .key = BYTES(scan->after_key, reply->scan.next.key.size)};
    return page_start(scan);
}

int
distkv_scan_open(distkv *kv, const struct distkv_scan_options *options, distkv_scan **out)
{
    static const struct distkv_scan_options plain;
    if (kv->in_process)
        return lib_fail(kv, DISTKV_INVALID, "a blocking call from within a callback");
    distkv_scan *scan = calloc(1, sizeof(*scan));
    if (scan == NULL) return lib_fail(kv, DISTKV_NO_MEMORY, "out of memory");
    scan->kv = kv;
    if (options == NULL) options = &plain;
    int code = scan_options_apply(scan, options);
    if (code == DISTKV_OK && options->snapshot) code = snapshot_open(scan);
    if (code == DISTKV_OK) code = page_start(scan);
    if (code != DISTKV_OK) {
        distkv_scan_close(scan);
        return code;
    }
    *out = scan;
    return DISTKV_OK;
}

/* Whoever closed it could not free what we stand on. */
static int
page_next(distkv_scan *scan)
{
    struct distkv *kv = scan->kv;
    scan->taking = true;
    scan->failed = page_take(scan);
    scan->taking = false;
    if (!scan->closed) return scan->failed;
    distkv_scan_close(scan);
    return lib_fail(kv, DISTKV_CANCELED, "the scan was closed by a callback");
}

int
distkv_scan_next(distkv_scan *scan, struct distkv_entry *out)
{
    if (scan->failed != DISTKV_OK) return scan->failed;
    if (scan->kv->in_process)
        return lib_fail(scan->kv, DISTKV_INVALID, "a blocking call from within a callback");
    struct native_scan_entry entry;
    /* A page may be empty: the server gives one rather than work too long. */
    while (!native_scan_next(&scan->rest, &entry)) {
        if (scan->ended) return DISTKV_END;
        int code = page_next(scan);
        if (code != DISTKV_OK) return code;
    }
    *out = (struct distkv_entry){.key = entry.key.data,
                                 .key_size = entry.key.size,
                                 .value = entry.value.data,
                                 .value_size = entry.value.size,
                                 .version = entry.version,
                                 .expire_ms = entry.expire_ms};
    return DISTKV_OK;
}

static void
scan_free(void *arg)
{
    distkv_scan *scan = arg;
    waiter_deinit(&scan->pages[0]);
    waiter_deinit(&scan->pages[1]);
    free(scan);
}

void
distkv_scan_close(distkv_scan *scan)
{
    if (scan == NULL) return;
    if (scan->taking) {
        scan->closed = true;
        return;
    }
    struct waiter *next = &scan->pages[scan->page ^ 1];
    if (scan->started && !next->finished && scan->kv->in_process) {
        /* A callback cannot wait. The page's end frees the scan; the lease ends a snapshot. */
        next->left = scan_free;
        next->left_arg = scan;
        return;
    }
    if (scan->started) lib_call_wait(scan->kv, next);
    if (scan->snapshot != 0) {
        struct native_request native = {.header.opcode = NATIVE_SNAPSHOT_CLOSE,
                                        .snapshot_close = {.snapshot = scan->snapshot}};
        struct waiter waiter;
        scan->kv->pin_run_id = scan->run_id;
        int code = lib_call(scan->kv, &native, LIB_ANYWHERE, true, &waiter);
        scan->kv->pin_run_id = 0;
        (void)code; /* when it fails, the lease ends it */
        waiter_deinit(&waiter);
    }
    scan_free(scan);
}
