/* SPDX-License-Identifier: MIT
 *
 * test_lib.c -- libdistkv against a server that answers, is late, lies, breaks off and comes back.
 */
#include "base/retry.h"
#include "distkv.h"
#include "fake_server.h"
#include "proto/native.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

static struct fake_server *server;
static distkv *kv;

static void
connect_with(const struct distkv_options *options)
{
    char error[DISTKV_ERROR_BYTES];
    int code = distkv_connect(server->address, options, &kv, error);
    if (code != DISTKV_OK) fail_msg("%s", error);
}

static int
setup(void **state)
{
    (void)state;
    server = fake_server_start(0);
    connect_with(NULL);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    distkv_close(kv);
    kv = NULL;
    fake_server_stop(server);
    return 0;
}

static int
put(const char *key, const char *value)
{
    return distkv_put(kv, key, strlen(key), value, strlen(value), NULL, NULL);
}

static void
assert_value(const char *key, const char *expected)
{
    struct distkv_value value;
    assert_int_equal(distkv_get(kv, key, strlen(key), &value), DISTKV_OK);
    assert_string_equal(value.data, expected);
    assert_int_equal(value.size, strlen(expected));
    distkv_value_free(&value);
}

static u64
now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * 1000 + (u64)now.tv_nsec / 1000000;
}

/* ---- names ---- */

/* "two" has two addresses: 127.0.0.2 first. Everything else is as it is. */
int
getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **out)
{
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    if (strcmp(host, "two") != 0) return real(host, port, hints, out);
    int rc = real("127.0.0.2", port, hints, out);
    return rc != 0 ? rc : real("127.0.0.1", port, hints, &(*out)->ai_next);
}

/* A socket at 127.0.0.2 and the server's port. */
static int
listen_beside(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((u16)server->port)};
    inet_pton(AF_INET, "127.0.0.2", &address.sin_addr);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 16), 0);
    return fd;
}

/* Somebody hangs, or is no server, at a name's first address: the second one is tried then. */
static void
who_does_not_shake_hands_is_passed_over_for_the_next_address(void **state)
{
    (void)state;
    char name[32], error[DISTKV_ERROR_BYTES];
    snprintf(name, sizeof(name), "two:%d", server->port);
    struct distkv_options options;
    distkv_options_init(&options);
    options.connect_timeout_ms = 300;
    int fd = listen_beside(); /* the kernel accepts, nobody answers */
    distkv *other = NULL;
    int code = distkv_connect(name, &options, &other, error);
    if (code != DISTKV_OK) fail_msg("%s", error);
    assert_int_equal(distkv_ping(other), DISTKV_OK);
    distkv_close(other);
    close(fd);
}

/* One server that denies says nothing of another one's addresses. */
static void
who_is_denied_by_one_server_tries_all_addresses_of_another(void **state)
{
    (void)state;
    struct fake_server *denies = fake_server_start(0);
    denies->password = "not ours";
    char names[64], error[DISTKV_ERROR_BYTES];
    snprintf(names, sizeof(names), "%s,two:%d", denies->address, server->port);
    struct distkv_options options;
    distkv_options_init(&options);
    options.connect_timeout_ms = 500;
    int fd = listen_beside(); /* the kernel accepts, nobody answers */
    distkv *other = NULL;
    int code = distkv_connect(names, &options, &other, error);
    if (code != DISTKV_OK) fail_msg("%s", error);
    assert_int_equal(distkv_ping(other), DISTKV_OK);
    distkv_close(other);
    close(fd);
    fake_server_stop(denies);
}

static void
the_level_goes_along_with_whatever_reads_or_writes_a_key(void **state)
{
    (void)state;
    struct distkv_value value;
    struct distkv_siblings siblings;
    int64_t remaining_ms;
    assert_int_equal(distkv_set_consistency(kv, DISTKV_ALL), DISTKV_OK);
    (void)distkv_get(kv, "k", 1, &value);
    assert_int_equal(server->last_level, NATIVE_LEVEL_ALL);
    assert_int_equal(put("k", "v"), DISTKV_OK);
    assert_int_equal(server->last_level, NATIVE_LEVEL_ALL);
    (void)distkv_ttl(kv, "k", 1, &remaining_ms);
    assert_int_equal(server->last_level, NATIVE_LEVEL_ALL);
    assert_int_equal(distkv_ping(kv), DISTKV_OK);
    assert_int_equal(server->last_level, NATIVE_LEVEL_DEFAULT);
    (void)distkv_get_siblings(kv, "k", 1, &siblings);
    assert_int_equal(server->last_level, NATIVE_LEVEL_ALL);
}

/* ---- plain use ---- */

static void
what_is_put_is_got_and_deleted(void **state)
{
    (void)state;
    struct distkv_value value;
    assert_int_equal(distkv_get(kv, "k", 1, &value), DISTKV_NOT_FOUND);
    assert_int_equal(put("k", "v"), DISTKV_OK);
    assert_value("k", "v");
    assert_int_equal(put("k", ""), DISTKV_OK);
    assert_value("k", "");
    assert_int_equal(distkv_delete(kv, "k", 1, NULL), DISTKV_OK);
    assert_int_equal(distkv_get(kv, "k", 1, &value), DISTKV_NOT_FOUND);
    assert_int_equal(distkv_ping(kv), DISTKV_OK);
}

static void
binary_keys_and_large_values_are_kept_exactly(void **state)
{
    (void)state;
    static unsigned char large[DISTKV_VALUE_BYTES_MAX];
    for (size_t i = 0; i < sizeof(large); i++)
        large[i] = (unsigned char)(i * 31 >> 3);
    assert_int_equal(distkv_put(kv, "\0\xff\r\n", 4, large, sizeof(large), NULL, NULL), DISTKV_OK);
    struct distkv_value value;
    assert_int_equal(distkv_get(kv, "\0\xff\r\n", 4, &value), DISTKV_OK);
    assert_int_equal(value.size, sizeof(large));
    assert_memory_equal(value.data, large, sizeof(large));
    distkv_value_free(&value);
}

static void
conditions_decide_and_tell_the_version(void **state)
{
    (void)state;
    struct distkv_write absent = {.condition = DISTKV_IF_ABSENT};
    struct distkv_write present = {.condition = DISTKV_IF_PRESENT};
    uint64_t first = 0, version = 0;
    assert_int_equal(distkv_put(kv, "k", 1, "1", 1, &present, &version), DISTKV_CONFLICT);
    assert_int_equal(version, 0);
    assert_int_equal(distkv_put(kv, "k", 1, "1", 1, &absent, &first), DISTKV_OK);
    assert_int_equal(distkv_put(kv, "k", 1, "2", 1, &absent, &version), DISTKV_CONFLICT);
    assert_int_equal(version, first);
    struct distkv_write exactly = {.condition = DISTKV_IF_VERSION, .version = first};
    assert_int_equal(distkv_put(kv, "k", 1, "3", 1, &exactly, NULL), DISTKV_OK);
    assert_int_equal(distkv_put(kv, "k", 1, "4", 1, &exactly, NULL), DISTKV_CONFLICT);
    assert_value("k", "3");
    assert_int_equal(distkv_delete(kv, "k", 1, &exactly), DISTKV_CONFLICT);
    assert_int_equal(distkv_delete(kv, "k", 1, &present), DISTKV_OK);
    assert_int_equal(distkv_delete(kv, "k", 1, &present), DISTKV_CONFLICT);
}

static void
times_to_live_are_set_and_told(void **state)
{
    (void)state;
    int64_t ms = 0;
    assert_int_equal(distkv_ttl(kv, "k", 1, &ms), DISTKV_NOT_FOUND);
    assert_int_equal(put("k", "v"), DISTKV_OK);
    assert_int_equal(distkv_ttl(kv, "k", 1, &ms), DISTKV_OK);
    assert_int_equal(ms, -1);
    assert_int_equal(distkv_expire(kv, "k", 1, DISTKV_EXPIRE_AFTER, 5000), DISTKV_OK);
    assert_int_equal(distkv_ttl(kv, "k", 1, &ms), DISTKV_OK);
    assert_int_equal(ms, 5000);
    assert_int_equal(distkv_expire(kv, "k", 1, DISTKV_EXPIRE_NEVER, 0), DISTKV_OK);
    assert_int_equal(distkv_ttl(kv, "k", 1, &ms), DISTKV_OK);
    assert_int_equal(ms, -1);
    assert_int_equal(distkv_expire(kv, "k", 1, DISTKV_EXPIRE_AFTER, 0), DISTKV_INVALID);
    assert_int_equal(distkv_expire(kv, "none", 4, DISTKV_EXPIRE_AFTER, 1), DISTKV_NOT_FOUND);
}

static void
bad_arguments_are_refused_here_with_a_sentence(void **state)
{
    (void)state;
    static char large[DISTKV_VALUE_BYTES_MAX + 1];
    struct distkv_value value;
    assert_int_equal(distkv_get(kv, "", 0, &value), DISTKV_INVALID);
    assert_string_equal(distkv_error(kv), "key is empty");
    assert_int_equal(distkv_get(kv, large, 1025, &value), DISTKV_TOO_LARGE);
    assert_int_equal(distkv_put(kv, "k", 1, large, sizeof(large), NULL, NULL), DISTKV_TOO_LARGE);
    assert_string_equal(distkv_error(kv), "value is longer than 1048576 bytes");
    struct distkv_write bad = {.condition = 9};
    assert_int_equal(distkv_put(kv, "k", 1, "v", 1, &bad, NULL), DISTKV_INVALID);
    assert_int_equal(distkv_set_keyspace(kv, 16), DISTKV_INVALID);
    distkv *other;
    char error[DISTKV_ERROR_BYTES];
    static const char *const addresses[] = {"",       ",",    "host:",  "host:0", "host:65536",
                                            "host:x", "[::1", "[::1]x", "::1:80", ":80"};
    for (size_t i = 0; i < ARRAY_COUNT(addresses); i++) {
        assert_int_equal(distkv_connect(addresses[i], NULL, &other, error), DISTKV_INVALID);
        assert_string_not_equal(error, "");
    }
    assert_int_equal(server->requests, 1); /* HELLO */
}

static void
the_server_and_its_state_are_told(void **state)
{
    (void)state;
    struct distkv_server_info info;
    assert_int_equal(distkv_server(kv, &info), DISTKV_OK);
    assert_string_equal(info.node_id, "fake");
    assert_string_equal(info.version, "0.0.1");
    assert_int_equal(info.shards, 1);
    assert_int_equal(info.partitions, 4096);
    char *json;
    assert_int_equal(distkv_status(kv, &json), DISTKV_OK);
    assert_string_equal(json, "{\"version\":\"0.0.1\",\"state\":\"ok\"}");
    distkv_free(json);
    uint64_t count = 0;
    assert_int_equal(put("a", "1"), DISTKV_OK);
    assert_int_equal(distkv_count(kv, 1, &count), DISTKV_OK);
    assert_int_equal(count, 1);
}

/* ---- batches and scans ---- */

static void
a_batch_of_one_hash_tag_is_atomic(void **state)
{
    (void)state;
    distkv_batch *batch = distkv_batch_new();
    assert_non_null(batch);
    assert_int_equal(distkv_batch_commit(kv, batch), DISTKV_INVALID);
    struct distkv_write absent = {.condition = DISTKV_IF_ABSENT};
    assert_int_equal(distkv_batch_put(batch, "{t}a", 4, "1", 1, NULL), DISTKV_OK);
    assert_int_equal(distkv_batch_put(batch, "{t}b", 4, "2", 1, &absent), DISTKV_OK);
    assert_int_equal(distkv_batch_slots(batch), 1);
    assert_int_equal(distkv_batch_commit(kv, batch), DISTKV_OK);
    assert_value("{t}a", "1");
    assert_int_equal(distkv_batch_commit(kv, batch), DISTKV_CONFLICT);
    distkv_batch_clear(batch);
    assert_int_equal(distkv_batch_count(batch), 0);
    assert_int_equal(distkv_batch_delete(batch, "{t}a", 4, NULL), DISTKV_OK);
    assert_int_equal(distkv_batch_put(batch, "", 0, "", 0, NULL), DISTKV_INVALID);
    assert_int_equal(distkv_batch_commit(kv, batch), DISTKV_OK);
    distkv_batch_free(batch);
}

static void
a_batch_over_slots_is_refused_or_done_in_parts(void **state)
{
    (void)state;
    distkv_batch *batch = distkv_batch_new();
    assert_non_null(batch);
    char key[16];
    for (int i = 0; i < 600; i++) {
        int size = snprintf(key, sizeof(key), "key%d", i);
        assert_int_equal(distkv_batch_put(batch, key, (size_t)size, "v", 1, NULL), DISTKV_OK);
    }
    assert_in_range(distkv_batch_slots(batch), 500, 600);
    assert_int_equal(distkv_batch_commit(kv, batch), DISTKV_CROSS_SLOT);
    size_t done = 0;
    assert_int_equal(distkv_batch_commit_parts(kv, batch, &done), DISTKV_OK);
    assert_int_equal(done, 600);
    assert_value("key599", "v");
    distkv_batch_free(batch);
}

/* However many rounds of parts it takes. */
static void
a_batch_in_parts_has_one_deadline(void **state)
{
    (void)state;
    distkv_batch *batch = distkv_batch_new();
    assert_non_null(batch);
    char key[16];
    for (int i = 0; i < 4000; i++) {
        int size = snprintf(key, sizeof(key), "key%d", i);
        assert_int_equal(distkv_batch_put(batch, key, (size_t)size, "v", 1, NULL), DISTKV_OK);
    }
    server->silent = 1;
    distkv_set_timeout(kv, 300);
    size_t done = 1;
    u64 begin = now_ms();
    assert_int_equal(distkv_batch_commit_parts(kv, batch, &done), DISTKV_UNKNOWN_OUTCOME);
    assert_in_range(now_ms() - begin, 299, 2500);
    assert_int_equal(done, 0);
    server->silent = 0;
    distkv_batch_free(batch);
}

static void
a_scan_gives_each_key_once_over_many_pages(void **state)
{
    (void)state;
    char key[16];
    for (int i = 0; i < 100; i++) {
        snprintf(key, sizeof(key), "key%d", i);
        assert_int_equal(put(key, key), DISTKV_OK);
    }
    server->pages = 7;
    struct distkv_scan_options options = {.snapshot = 1};
    distkv_scan *scan;
    assert_int_equal(distkv_scan_open(kv, &options, &scan), DISTKV_OK);
    bool seen[100] = {false};
    struct distkv_entry entry;
    int code, count = 0;
    for (; (code = distkv_scan_next(scan, &entry)) == DISTKV_OK; count++) {
        assert_memory_equal(entry.key, entry.value, entry.value_size);
        int n = atoi((const char *)entry.key + 3);
        assert_false(seen[n]);
        seen[n] = true;
    }
    assert_int_equal(code, DISTKV_END);
    assert_int_equal(distkv_scan_next(scan, &entry), DISTKV_END);
    assert_int_equal(count, 100);
    distkv_scan_close(scan);
}

static int
count_scan(const struct distkv_scan_options *options)
{
    distkv_scan *scan;
    assert_int_equal(distkv_scan_open(kv, options, &scan), DISTKV_OK);
    struct distkv_entry entry;
    int count = 0, code;
    while ((code = distkv_scan_next(scan, &entry)) == DISTKV_OK)
        count++;
    assert_int_equal(code, DISTKV_END);
    distkv_scan_close(scan);
    return count;
}

static void
a_scan_keeps_to_prefix_and_limit(void **state)
{
    (void)state;
    static const char *const keys[] = {"a1", "a2", "b1", "{t}a1", "{t}a2", "{t}b"};
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        assert_int_equal(put(keys[i], "v"), DISTKV_OK);
    struct distkv_scan_options options = {.prefix = "a", .prefix_size = 1, .keys_only = 1};
    assert_int_equal(count_scan(&options), 2);
    options.prefix = "{t}a";
    options.prefix_size = 4;
    assert_int_equal(count_scan(&options), 2);
    options = (struct distkv_scan_options){.limit = 4, .page_entries = 3};
    assert_int_equal(count_scan(&options), 4);
    assert_int_equal(count_scan(NULL), 6);
    distkv_scan *scan;
    assert_int_equal(distkv_scan_open(kv, NULL, &scan), DISTKV_OK);
    distkv_scan_close(scan); /* with a page under way */
    options = (struct distkv_scan_options){.prefix = "a", .prefix_size = 1, .match = "b"};
    assert_int_equal(distkv_scan_open(kv, &options, &scan), DISTKV_INVALID);
}

/* ---- asynchronous ---- */

struct seen {
    int calls;
    int codes[DISTKV_FULL + 1];
    int order[64];
    unsigned attempts;
    int replayed;
};

struct call {
    struct seen *seen;
    int number;
};

static void
note(void *arg, const struct distkv_result *result)
{
    struct call *call = arg;
    struct seen *seen = call->seen;
    if (seen->calls < 64) seen->order[seen->calls] = call->number;
    seen->calls++;
    seen->codes[result->code]++;
    seen->attempts = result->attempts;
    seen->replayed = result->replayed;
    if (result->code == DISTKV_OK) assert_string_equal(result->error, "");
}

static void
replies_may_come_in_any_order(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct call calls[10];
    server->hold_replies = 10;
    char key[16];
    for (int i = 0; i < 10; i++) {
        calls[i] = (struct call){&seen, i};
        snprintf(key, sizeof(key), "{t}%d", i);
        assert_int_equal(distkv_put_async(kv, key, strlen(key), "v", 1, NULL, note, &calls[i]),
                         DISTKV_OK);
    }
    assert_int_equal(seen.calls, 0);
    assert_int_equal(distkv_pending(kv), 10);
    while (distkv_pending(kv) > 0)
        assert_true(distkv_process(kv, 1000) >= 0);
    server->hold_replies = 0;
    assert_int_equal(seen.codes[DISTKV_OK], 10);
    for (int i = 0; i < 10; i++)
        assert_int_equal(seen.order[i], 9 - i);
}

static void
thousands_of_calls_are_pipelined(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct call call = {&seen, 0};
    for (int i = 0; i < 20000; i++)
        assert_int_equal(distkv_get_async(kv, "none", 4, note, &call), DISTKV_OK);
    while (distkv_pending(kv) > 0)
        assert_true(distkv_process(kv, 1000) >= 0);
    assert_int_equal(seen.codes[DISTKV_NOT_FOUND], 20000);
}

static void
the_descriptor_tells_when_to_process(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct call call = {&seen, 0};
    assert_int_equal(distkv_ping_async(kv, note, &call), DISTKV_OK);
    distkv_flush(kv);
    u64 deadline = now_ms() + 60000;
    while (seen.calls == 0 && now_ms() < deadline) {
        struct pollfd fd = {.fd = distkv_fd(kv), .events = POLLIN};
        assert_true(poll(&fd, 1, 60000) == 1);
        assert_true(distkv_process(kv, 0) >= 0);
    }
    assert_int_equal(seen.codes[DISTKV_OK], 1);
    /* deadlines too */
    server->silent = 1;
    distkv_set_timeout(kv, 30);
    assert_int_equal(distkv_ping_async(kv, note, &call), DISTKV_OK);
    distkv_flush(kv);
    deadline = now_ms() + 60000;
    while (seen.calls == 1 && now_ms() < deadline) {
        struct pollfd fd = {.fd = distkv_fd(kv), .events = POLLIN};
        assert_true(poll(&fd, 1, 60000) == 1);
        assert_true(distkv_process(kv, 0) >= 0);
    }
    assert_int_equal(seen.codes[DISTKV_TIMED_OUT], 1);
}

static void
start_another(void *arg, const struct distkv_result *result)
{
    struct call *call = arg;
    struct distkv_value value;
    assert_int_equal(distkv_get(kv, "k", 1, &value), DISTKV_INVALID); /* would block */
    assert_int_equal(distkv_process(kv, 0), -1);
    note(arg, result);
    if (call->number-- > 0) assert_int_equal(distkv_ping_async(kv, start_another, call), DISTKV_OK);
}

static void
a_callback_may_start_calls_but_not_block(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct call call = {&seen, 5};
    assert_int_equal(distkv_ping_async(kv, start_another, &call), DISTKV_OK);
    while (distkv_pending(kv) > 0)
        distkv_process(kv, 1000);
    assert_int_equal(seen.calls, 6);
}

/* A write of which nobody knows whether it was done: its caller goes and looks. */
static void
look_for_it(void *arg, const struct distkv_result *result)
{
    struct call *call = arg;
    note(arg, result);
    assert_int_equal(distkv_get_async(kv, "k", 1, note, call), DISTKV_OK);
}

/* What ends without a reply is told last of all, when the requests at hand have been sent. No timer
 * is to wake anybody meanwhile. */
static void
what_a_callback_starts_is_sent_in_the_same_turn(void **state)
{
    (void)state;
    distkv_close(kv);
    struct distkv_options options;
    distkv_options_init(&options);
    options.timeout_ms = options.connect_timeout_ms = 600000;
    connect_with(&options);
    static struct seen seen;
    static struct call call = {&seen, 0};
    struct distkv_write absent = {.condition = DISTKV_IF_ABSENT};
    server->run_id = 2; /* told to the next connection */
    server->drop_after_writes = 1;
    assert_int_equal(distkv_put_async(kv, "k", 1, "v", 1, &absent, look_for_it, &call), DISTKV_OK);
    distkv_flush(kv);
    while (distkv_pending(kv) > 0) {
        struct pollfd fd = {.fd = distkv_fd(kv), .events = POLLIN};
        assert_true(poll(&fd, 1, 60000) == 1);
        assert_true(distkv_process(kv, 0) >= 0);
    }
    assert_int_equal(seen.codes[DISTKV_UNKNOWN_OUTCOME], 1);
    assert_int_equal(seen.codes[DISTKV_OK], 1);
}

static void
close_scan(void *arg, const struct distkv_result *result)
{
    distkv_scan **scan = arg;
    (void)result;
    distkv_scan_close(*scan);
    *scan = NULL;
}

/* A page is under way, and a callback cannot wait for it. */
static void
a_callback_may_close_a_scan(void **state)
{
    (void)state;
    char key[16];
    for (int i = 0; i < 50; i++) {
        snprintf(key, sizeof(key), "sc%d", i);
        assert_int_equal(put(key, "v"), DISTKV_OK);
    }
    struct distkv_scan_options options = {.page_entries = 10};
    distkv_scan *scan;
    struct distkv_entry entry;
    assert_int_equal(distkv_scan_open(kv, &options, &scan), DISTKV_OK);
    assert_int_equal(distkv_scan_next(scan, &entry), DISTKV_OK);
    alarm(60);
    assert_int_equal(distkv_ping_async(kv, close_scan, &scan), DISTKV_OK);
    while (distkv_pending(kv) > 0)
        assert_true(distkv_process(kv, 1000) >= 0);
    alarm(0);
    assert_null(scan);
    assert_int_equal(distkv_ping(kv), DISTKV_OK);
}

/* The callback runs while scan_next waits for its page: the scan is over, and lives until that has
 * returned. */
static void
a_callback_may_close_the_scan_that_waits(void **state)
{
    (void)state;
    char key[16];
    for (int i = 0; i < 50; i++) {
        snprintf(key, sizeof(key), "sw%d", i);
        assert_int_equal(put(key, "v"), DISTKV_OK);
    }
    struct distkv_scan_options options = {.page_entries = 10};
    /* The callback comes behind the first page, before it, and behind that of a snapshot. */
    for (int round = 0; round < 3; round++) {
        distkv_scan *scan;
        struct distkv_entry entry;
        options.snapshot = round == 2;
        if (round == 1) assert_int_equal(distkv_ping_async(kv, close_scan, &scan), DISTKV_OK);
        assert_int_equal(distkv_scan_open(kv, &options, &scan), DISTKV_OK);
        if (round != 1) assert_int_equal(distkv_ping_async(kv, close_scan, &scan), DISTKV_OK);
        distkv_scan *waits = scan;
        int code = DISTKV_OK;
        alarm(60);
        while (code == DISTKV_OK)
            code = distkv_scan_next(waits, &entry);
        alarm(0);
        assert_int_equal(code, DISTKV_CANCELED);
        assert_null(scan);
        assert_int_equal(distkv_pending(kv), 0);
    }
    assert_int_equal(distkv_ping(kv), DISTKV_OK);
}

static void
keep_result(void *arg, const struct distkv_result *result)
{
    struct distkv_result *kept = arg;
    *kept = *result;
    kept->error = NULL; /* its bytes live until here */
}

static void
settle(void)
{
    while (distkv_pending(kv) > 0)
        assert_true(distkv_process(kv, 1000) >= 0);
}

static void
every_call_has_an_asynchronous_form(void **state)
{
    (void)state;
    struct distkv_result r = {0};
    distkv_batch *batch = distkv_batch_new();
    assert_non_null(batch);
    assert_int_equal(distkv_batch_put(batch, "{t}a", 4, "1", 1, NULL), DISTKV_OK);
    assert_int_equal(distkv_batch_commit_async(kv, batch, keep_result, &r), DISTKV_OK);
    settle();
    assert_int_equal(r.code, DISTKV_OK);
    assert_true(r.version > 0);
    assert_int_equal(distkv_batch_put(batch, "other", 5, "1", 1, NULL), DISTKV_OK);
    assert_int_equal(distkv_batch_commit_async(kv, batch, keep_result, &r), DISTKV_CROSS_SLOT);
    distkv_batch_free(batch);
    assert_int_equal(distkv_expire_async(kv, "{t}a", 4, DISTKV_EXPIRE_AFTER, 700, keep_result, &r),
                     DISTKV_OK);
    settle();
    assert_int_equal(r.code, DISTKV_OK);
    assert_int_equal(distkv_ttl_async(kv, "{t}a", 4, keep_result, &r), DISTKV_OK);
    settle();
    assert_int_equal(r.remaining_ms, 700);
    struct distkv_write absent = {.condition = DISTKV_IF_ABSENT};
    uint64_t version = r.version;
    assert_int_equal(distkv_put_async(kv, "{t}a", 4, "2", 1, &absent, keep_result, &r), DISTKV_OK);
    settle();
    assert_int_equal(r.code, DISTKV_CONFLICT);
    assert_true(r.version >= version);
    assert_int_equal(distkv_delete_async(kv, "{t}a", 4, NULL, keep_result, &r), DISTKV_OK);
    settle();
    assert_int_equal(r.code, DISTKV_OK);
    assert_int_equal(distkv_ttl_async(kv, "{t}a", 4, keep_result, &r), DISTKV_OK);
    settle();
    assert_int_equal(r.code, DISTKV_NOT_FOUND);
    assert_int_equal(distkv_get_async(kv, "k", 1, NULL, NULL), DISTKV_INVALID);
    assert_int_equal(distkv_delete_async(kv, "", 0, NULL, keep_result, &r), DISTKV_INVALID);
    for (int code = -1; code <= DISTKV_FULL + 1; code++)
        assert_non_null(distkv_code_text(code));
}

static void
closing_ends_what_is_pending(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct call call = {&seen, 0};
    server->silent = 1;
    assert_int_equal(distkv_get_async(kv, "k", 1, note, &call), DISTKV_OK);
    assert_int_equal(distkv_put_async(kv, "k", 1, "v", 1, NULL, note, &call), DISTKV_OK);
    distkv_process(kv, 20); /* sent */
    assert_int_equal(distkv_put_async(kv, "k", 1, "v", 1, NULL, note, &call), DISTKV_OK);
    distkv_close(kv);
    assert_int_equal(seen.codes[DISTKV_CANCELED], 2);
    assert_int_equal(seen.codes[DISTKV_UNKNOWN_OUTCOME], 1);
    server->silent = 0;
    connect_with(NULL);
}

/* Of those that wait behind one that is sent in part not a byte has gone out. */
static void
closing_tells_what_was_certainly_not_sent(void **state)
{
    (void)state;
    static char value[DISTKV_VALUE_BYTES_MAX];
    struct seen seen = {0};
    struct call call = {&seen, 0};
    const int puts = 40;
    server->stands = 1;
    for (int i = 0; i < puts; i++)
        assert_int_equal(distkv_put_async(kv, "k", 1, value, sizeof(value), NULL, note, &call),
                         DISTKV_OK);
    for (int i = 0; i < 20; i++)
        (void)distkv_process(kv, 10); /* as much as the sockets take */
    distkv_close(kv);
    server->stands = 0;
    assert_int_equal(seen.codes[DISTKV_CANCELED] + seen.codes[DISTKV_UNKNOWN_OUTCOME], puts);
    assert_true(seen.codes[DISTKV_UNKNOWN_OUTCOME] >= 1);
    assert_in_range(seen.codes[DISTKV_CANCELED], 10, puts);
    connect_with(NULL);
}

static void
memory_is_bounded(void **state)
{
    (void)state;
    distkv_close(kv);
    struct distkv_options options;
    distkv_options_init(&options);
    options.memory_bytes_max = MIB(4);
    connect_with(&options);
    static char value[100000];
    struct seen seen = {0};
    struct call call = {&seen, 0};
    int started = 0;
    while (distkv_put_async(kv, "k", 1, value, sizeof(value), NULL, note, &call) == DISTKV_OK)
        assert_in_range(++started, 1, 100);
    assert_in_range(started, 10, 41);
    while (distkv_pending(kv) > 0)
        distkv_process(kv, 1000);
    assert_int_equal(seen.codes[DISTKV_OK], started);
}

/* 4 MiB, and as many connections that are there. */
static void
connect_many(u32 connections)
{
    distkv_close(kv);
    struct distkv_options options;
    distkv_options_init(&options);
    options.memory_bytes_max = MIB(4);
    options.connections_per_server = connections;
    int before = server->hellos;
    connect_with(&options);
    u64 deadline = now_ms() + 10000;
    while (server->hellos < before + (int)connections && now_ms() < deadline)
        distkv_process(kv, 5);
    distkv_process(kv, 50); /* takes the last replies */
}

/* Each connection keeps a buffer for what comes next: of those that wait for nothing it is the
 * handle's when a call wants it. */
static void
idle_connections_keep_no_memory_from_calls(void **state)
{
    (void)state;
    static char value[1000000];
    connect_many(64);
    assert_int_equal(distkv_put(kv, "k", 1, value, 200000, NULL, NULL), DISTKV_OK);
    struct seen seen = {0};
    struct call call = {&seen, 0};
    char key[16];
    for (int i = 0; i < 500; i++) {
        snprintf(key, sizeof(key), "key%d", i);
        assert_int_equal(distkv_get_async(kv, key, strlen(key), note, &call), DISTKV_OK);
    }
    settle();
    assert_int_equal(seen.codes[DISTKV_NOT_FOUND], 500);

    connect_many(14);
    for (int i = 0; i < 100; i++) {
        struct distkv_value got;
        snprintf(key, sizeof(key), "large%d", i);
        assert_int_equal(distkv_put(kv, key, strlen(key), value, 200000, NULL, NULL), DISTKV_OK);
        assert_int_equal(distkv_get(kv, key, strlen(key), &got), DISTKV_OK);
        distkv_value_free(&got);
    }
    assert_int_equal(distkv_put(kv, "k", 1, value, sizeof(value), NULL, NULL), DISTKV_OK);
    struct distkv_value got;
    assert_int_equal(distkv_get(kv, "k", 1, &got), DISTKV_OK);
    assert_int_equal(got.size, sizeof(value));
    distkv_value_free(&got);
}

/* The puts take all but what a buffer for the reply would need, and end behind it. */
static void
a_reply_that_there_is_no_memory_for_is_told_and_not_asked_for_again(void **state)
{
    (void)state;
    static char value[1000000];
    connect_many(1);
    assert_int_equal(distkv_put(kv, "large", 5, value, sizeof(value), NULL, NULL), DISTKV_OK);
    struct seen puts = {0}, gets = {0};
    struct call put = {&puts, 0}, get = {&gets, 0};
    int before = server->connections;
    server->hold_replies = 4; /* the last one is sent first */
    for (int i = 0; i < 3; i++)
        assert_int_equal(distkv_put_async(kv, "k", 1, value, sizeof(value), NULL, note, &put),
                         DISTKV_OK);
    assert_int_equal(distkv_get_async(kv, "large", 5, note, &get), DISTKV_OK);
    while (gets.calls == 0)
        assert_true(distkv_process(kv, 1000) >= 0);
    server->hold_replies = 0;
    assert_int_equal(gets.codes[DISTKV_NO_MEMORY], 1);
    assert_int_equal(gets.attempts, 1);
    settle();
    assert_int_equal(puts.codes[DISTKV_OK], 3);
    assert_int_equal(server->connections, before + 1);
    struct distkv_value got;
    assert_int_equal(distkv_get(kv, "large", 5, &got), DISTKV_OK);
    distkv_value_free(&got);
}

/* Without waiting, so that the caller's calls always come first. */
static void
a_handle_that_is_kept_full_connects_again(void **state)
{
    (void)state;
    distkv_close(kv);
    struct distkv_options options;
    distkv_options_init(&options);
    options.memory_bytes_max = MIB(4);
    connect_with(&options);
    static const char value[1000];
    static struct seen seen;
    static struct call call = {&seen, 0};
    int before = server->connections, enough = 0;
    server->drop_before_writes = 1;
    while (enough == 0 || seen.calls < enough) {
        while (distkv_put_async(kv, "k", 1, value, sizeof(value), NULL, note, &call) == DISTKV_OK)
            assert_in_range(distkv_pending(kv), 1, 5000);
        if (enough == 0) enough = 2 * (int)distkv_pending(kv);
        distkv_flush(kv);
        struct pollfd fd = {.fd = distkv_fd(kv), .events = POLLIN};
        assert_true(poll(&fd, 1, 60000) == 1);
        assert_true(distkv_process(kv, 0) >= 0);
    }
    settle();
    assert_int_equal(seen.codes[DISTKV_OK], seen.calls);
    assert_int_equal(server->connections, before + 1);
}

/* ---- failures ---- */

static void
a_lost_reply_is_repeated_and_done_once(void **state)
{
    (void)state;
    struct distkv_write absent = {.condition = DISTKV_IF_ABSENT};
    assert_int_equal(put("first", "v"), DISTKV_OK);
    assert_int_equal(server->last_write_age_ms, 0);
    server->drop_after_writes = 1;
    assert_int_equal(distkv_put(kv, "k", 1, "v", 1, &absent, NULL), DISTKV_OK);
    assert_int_equal(server->writes_done, 2);
    assert_int_equal(server->writes_replayed, 1);
    assert_in_range(server->last_write_age_ms, 1, 4000);
    assert_int_equal(server->connections, 2);
    server->drop_before_writes = 3;
    struct seen seen = {0};
    struct call call = {&seen, 0};
    assert_int_equal(distkv_put_async(kv, "k2", 2, "v", 1, &absent, note, &call), DISTKV_OK);
    while (distkv_pending(kv) > 0)
        distkv_process(kv, 1000);
    assert_int_equal(seen.codes[DISTKV_OK], 1);
    assert_int_equal(seen.attempts, 4);
    assert_int_equal(seen.replayed, 0);
    assert_value("k2", "v");
}

/* It shakes hands each time. Pauses that double, to 1 s: some ten in the 2 s. */
static void
who_closes_at_each_request_is_not_stormed(void **state)
{
    (void)state;
    struct distkv_value value;
    int before = server->connections;
    server->drop_gets = 1000000;
    distkv_set_timeout(kv, 2000);
    assert_int_equal(distkv_get(kv, "k", 1, &value), DISTKV_TIMED_OUT);
    assert_in_range(server->connections - before, 3, 15);
    server->drop_gets = 0;
}

static void
who_has_answered_is_connected_again_at_once(void **state)
{
    (void)state;
    distkv_close(kv);
    struct distkv_options options;
    distkv_options_init(&options);
    options.reconnect_min_ms = options.reconnect_max_ms = 500;
    connect_with(&options);
    assert_int_equal(put("k", "v"), DISTKV_OK);
    int before = server->connections;
    u64 begin = now_ms();
    for (int i = 0; i < 20; i++) {
        server->drop_gets = 1;
        assert_value("k", "v");
    }
    assert_int_equal(server->connections, before + 20);
    assert_in_range(now_ms() - begin, 0, 4000); /* 20 pauses are 10 s */
}

static void
a_condition_is_not_repeated_to_a_server_that_has_forgotten(void **state)
{
    (void)state;
    struct distkv_write absent = {.condition = DISTKV_IF_ABSENT};
    server->run_id = 2; /* told to the next connection */
    server->drop_after_writes = 1;
    assert_int_equal(distkv_put(kv, "k", 1, "v", 1, &absent, NULL), DISTKV_UNKNOWN_OUTCOME);
    assert_int_equal(server->writes_done, 1);
    server->idempotency_ms = 0;
    server->drop_after_writes = 1;
    assert_int_equal(put("plain", "v"), DISTKV_OK); /* twice is as good as once */
    assert_int_equal(server->writes_done, 3);
    server->drop_after_writes = 1;
    assert_int_equal(distkv_put(kv, "k3", 2, "v", 1, &absent, NULL), DISTKV_UNKNOWN_OUTCOME);
    assert_int_equal(server->writes_done, 4);
}

static void
without_retry_a_lost_reply_is_told_at_once(void **state)
{
    (void)state;
    distkv_close(kv);
    struct distkv_options options;
    distkv_options_init(&options);
    options.no_write_retry = 1;
    connect_with(&options);
    server->drop_after_writes = 1;
    assert_int_equal(put("k", "v"), DISTKV_UNKNOWN_OUTCOME);
    assert_int_equal(server->writes_done, 1);
    assert_value("k", "v");
}

static int
remove_node(void)
{
    struct distkv_cluster_request request = {
        .function = DISTKV_CLUSTER_REMOVE, .node = "n3", .dead = 1};
    return distkv_cluster(kv, &request, NULL, NULL);
}

/* It has no id by which the server would know it again. */
static void
a_change_of_the_cluster_is_sent_once(void **state)
{
    (void)state;
    assert_int_equal(remove_node(), DISTKV_OK);
    server->drop_after_writes = 1;
    assert_int_equal(remove_node(), DISTKV_UNKNOWN_OUTCOME);
    assert_int_equal(server->cluster_changes, 2);
    assert_int_equal(remove_node(), DISTKV_OK);
    server->silent = 1;
    distkv_set_timeout(kv, 400);
    assert_int_equal(remove_node(), DISTKV_UNKNOWN_OUTCOME);
    struct distkv_cluster_request look = {.function = DISTKV_CLUSTER_STATUS};
    assert_int_equal(distkv_cluster(kv, &look, NULL, NULL), DISTKV_TIMED_OUT);
    server->silent = 0;
}

static void
refusals_are_repeated_until_the_deadline(void **state)
{
    (void)state;
    server->overload = 4;
    assert_int_equal(put("k", "v"), DISTKV_OK);
    assert_value("k", "v");
    server->overload = 1000000;
    /* A machine so busy that nothing is answered in time gets more. */
    int code = DISTKV_TIMED_OUT;
    for (u32 timeout_ms = 400; code == DISTKV_TIMED_OUT && timeout_ms <= 6400; timeout_ms *= 4) {
        distkv_set_timeout(kv, timeout_ms);
        u64 begin = now_ms();
        code = put("k", "w");
        assert_in_range(now_ms() - begin, 0, timeout_ms + 20000);
    }
    assert_int_equal(code, DISTKV_OVERLOADED);
    assert_string_equal(distkv_error(kv), "busy");
    server->overload = 0;
    distkv_set_timeout(kv, 5000);
    assert_value("k", "v");
}

/* It is not done, and would not be the next time. */
static void
a_server_full_of_indexes_is_not_asked_again(void **state)
{
    (void)state;
    server->no_room = 2;
    assert_int_equal(put("k", "v"), DISTKV_FULL);
    assert_string_equal(distkv_error(kv), "full");
    assert_int_equal(server->no_room, 1);
    server->no_room = 0;
    assert_int_equal(put("k", "v"), DISTKV_OK);
}

/* Each request would be sent three times and more. */
static void
who_is_overloaded_gets_no_multiple_of_the_load(void **state)
{
    (void)state;
    const u32 calls = 1000;
    server->overload = 1000000;
    u32 asked = 0;
    /* On a busy machine little is repeated in time: again with more, and a budget as at first. */
    for (u32 timeout_ms = 12; asked < calls + RETRY_BURST / 2 && timeout_ms <= 48;
         timeout_ms *= 2) {
        distkv_close(kv);
        connect_with(NULL);
        distkv_set_timeout(kv, timeout_ms);
        int before = server->requests;
        for (u32 i = 0; i < calls; i++) {
            assert_int_not_equal(put("k", "v"), DISTKV_OK); /* refused, or out of time */
        }
        asked = (u32)(server->requests - before);
        assert_in_range(asked, 0, calls + calls / RETRY_SHARE + RETRY_BURST);
    }
    assert_true(asked >= calls + RETRY_BURST / 2);
    server->overload = 0;
    distkv_set_timeout(kv, 5000);
    assert_int_equal(put("k", "v"), DISTKV_OK);
}

static void
a_connection_that_the_server_does_not_want_is_left_when_all_is_answered(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct call call = {&seen, 0};
    server->close_writes = 3;
    for (int i = 0; i < 8; i++)
        assert_int_equal(distkv_put_async(kv, "k", 1, "v", 1, NULL, note, &call), DISTKV_OK);
    while (distkv_pending(kv) > 0)
        distkv_process(kv, 1000);
    assert_int_equal(seen.codes[DISTKV_OK], 8);
    assert_int_equal(server->connections, 2);
    assert_int_equal(server->writes_done, 8); /* none was in doubt */
    assert_int_equal(server->last_write_age_ms, 0);
}

static void
an_age_counts_from_the_attempt_that_may_have_been_done(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct call call = {&seen, 0};
    server->overload = 1000000;
    u64 begin = now_ms();
    assert_int_equal(distkv_put_async(kv, "k", 1, "v", 1, NULL, note, &call), DISTKV_OK);
    while (now_ms() < begin + 300)
        distkv_process(kv, 10);
    server->drop_after_writes = 1;
    begin = now_ms();
    server->overload = 0;
    while (distkv_pending(kv) > 0)
        distkv_process(kv, 1000);
    assert_int_equal(seen.codes[DISTKV_OK], 1);
    assert_int_equal(server->writes_replayed, 1);
    assert_in_range(server->last_write_age_ms, 1, now_ms() - begin + 1);
}

/* false: the machine was so busy that the write was not sent in time. */
static bool
silence_costs(u32 timeout_ms)
{
    server->silent = 1;
    server->last_timeout_ms = 0;
    distkv_set_timeout(kv, timeout_ms);
    u64 begin = now_ms();
    struct distkv_value value;
    assert_int_equal(distkv_get(kv, "k", 1, &value), DISTKV_TIMED_OUT);
    assert_in_range(now_ms() - begin, timeout_ms - 1, timeout_ms + 20000);
    assert_in_range(server->last_timeout_ms, 0, timeout_ms);
    bool sent = server->last_timeout_ms > 0;
    int code = put("k", "v");
    server->silent = 0;
    return sent && code == DISTKV_UNKNOWN_OUTCOME;
}

static void
a_silent_server_costs_the_deadline_and_no_more(void **state)
{
    (void)state;
    u32 tries = 1;
    for (u32 timeout_ms = 50; !silence_costs(timeout_ms); timeout_ms *= 10, tries++)
        assert_true(timeout_ms < 5000);
    distkv_set_timeout(kv, 60000);
    assert_int_equal(put("k", "v"), DISTKV_OK); /* over a new connection */
    assert_in_range(server->connections, 2, 3 * tries);
}

static void
a_damaged_reply_is_never_believed(void **state)
{
    (void)state;
    assert_int_equal(put("k", "v"), DISTKV_OK);
    server->damage = 1;
    assert_value("k", "v"); /* asked again over a new connection */
    assert_int_equal(server->connections, 2);
}

static void
a_later_protocol_is_not_taken_for_damage(void **state)
{
    (void)state;
    distkv *other;
    char error[DISTKV_ERROR_BYTES];
    server->protocol = 2;
    assert_int_equal(distkv_connect(server->address, NULL, &other, error), DISTKV_UNREACHABLE);
    assert_non_null(strstr(error, "version or flags that this library does not know"));
    server->protocol = 0;
    server->flags = 1 << 15;
    assert_int_equal(distkv_connect(server->address, NULL, &other, error), DISTKV_UNREACHABLE);
    assert_non_null(strstr(error, "version or flags that this library does not know"));
    server->flags = 0;
    assert_int_equal(distkv_connect(server->address, NULL, &other, error), DISTKV_OK);
    distkv_close(other);
}

static void
a_server_that_returns_is_found_again(void **state)
{
    (void)state;
    assert_int_equal(put("k", "v"), DISTKV_OK);
    int port = server->port;
    fake_server_stop(server);
    distkv_process(kv, 20); /* sees that the connection has gone */
    int code = DISTKV_OK;
    bool refused = false;
    /* A busy machine may need longer to be told. */
    for (u32 timeout_ms = 60; !refused && timeout_ms <= 6000; timeout_ms *= 10) {
        distkv_set_timeout(kv, timeout_ms);
        code = put("k", "w");
        refused = code == DISTKV_UNREACHABLE && strstr(distkv_error(kv), "refused") != NULL;
    }
    server = fake_server_start(port);
    assert_int_equal(code, DISTKV_UNREACHABLE);
    assert_true(refused);
    distkv_set_timeout(kv, 5000);
    assert_int_equal(put("k", "w"), DISTKV_OK);
    assert_value("k", "w");
}

static void
nobody_there_is_told_at_once(void **state)
{
    (void)state;
    struct fake_server *gone = fake_server_start(0);
    char address[32];
    snprintf(address, sizeof(address), "%s", gone->address);
    fake_server_stop(gone);
    distkv *other;
    char error[DISTKV_ERROR_BYTES];
    u64 begin = now_ms();
    assert_int_equal(distkv_connect(address, NULL, &other, error), DISTKV_UNREACHABLE);
    assert_in_range(now_ms() - begin, 0, 4000); /* before the deadline of 5 s */
    assert_non_null(strstr(error, address));
    assert_non_null(strstr(error, "refused"));
    /* the second of two answers; "localhost" may be an IPv6 address first */
    char both[96];
    snprintf(both, sizeof(both), "%s, localhost:%d", address, server->port);
    assert_int_equal(distkv_connect(both, NULL, &other, error), DISTKV_OK);
    assert_int_equal(distkv_ping(other), DISTKV_OK);
    distkv_close(other);
}

/* A server without place for a client says so in RESP before it knows what that client speaks. */
static void
a_server_that_is_full_is_told_and_tried_again(void **state)
{
    (void)state;
    distkv *other;
    char error[DISTKV_ERROR_BYTES];
    struct distkv_options options;
    distkv_options_init(&options);
    error[0] = '\0';
    /* A busy machine may need longer to be told. */
    for (u32 timeout_ms = 300; strstr(error, "max number") == NULL && timeout_ms <= 4800;
         timeout_ms *= 4) {
        options.connect_timeout_ms = timeout_ms;
        server->full = 1000;
        assert_int_equal(distkv_connect(server->address, &options, &other, error),
                         DISTKV_UNREACHABLE);
        assert_null(strstr(error, "protocol"));
    }
    assert_non_null(strstr(error, "max number of clients reached"));

    /* A connection that was lost comes back when there is place again. */
    server->full = 0;
    assert_int_equal(put("k", "v"), DISTKV_OK);
    int before = server->connections;
    server->full = 2;
    server->drop_after_writes = 1;
    assert_int_equal(put("k", "w"), DISTKV_OK);
    assert_int_equal(server->connections, before + 3);
    assert_value("k", "w");
}

static void
several_connections_share_the_calls(void **state)
{
    (void)state;
    distkv_close(kv);
    struct distkv_options options;
    distkv_options_init(&options);
    options.connections_per_server = 4;
    connect_with(&options);
    struct seen seen = {0};
    struct call call = {&seen, 0};
    char key[16];
    u64 deadline = now_ms() + 60000;
    while (server->connections < 5 && now_ms() < deadline)
        distkv_process(kv, 5);
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "key%d", i);
        assert_int_equal(distkv_put_async(kv, key, strlen(key), "v", 1, NULL, note, &call),
                         DISTKV_OK);
    }
    server->drop_before_writes = 3;
    while (distkv_pending(kv) > 0)
        distkv_process(kv, 1000);
    assert_int_equal(seen.codes[DISTKV_OK], 1000);
    assert_int_equal(server->count, 1000);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(who_does_not_shake_hands_is_passed_over_for_the_next_address),
        T(who_is_denied_by_one_server_tries_all_addresses_of_another),
        T(the_level_goes_along_with_whatever_reads_or_writes_a_key),
        T(what_is_put_is_got_and_deleted),
        T(binary_keys_and_large_values_are_kept_exactly),
        T(conditions_decide_and_tell_the_version),
        T(times_to_live_are_set_and_told),
        T(bad_arguments_are_refused_here_with_a_sentence),
        T(the_server_and_its_state_are_told),
        T(a_batch_of_one_hash_tag_is_atomic),
        T(a_batch_over_slots_is_refused_or_done_in_parts),
        T(a_batch_in_parts_has_one_deadline),
        T(a_scan_gives_each_key_once_over_many_pages),
        T(a_scan_keeps_to_prefix_and_limit),
        T(replies_may_come_in_any_order),
        T(thousands_of_calls_are_pipelined),
        T(the_descriptor_tells_when_to_process),
        T(a_callback_may_start_calls_but_not_block),
        T(what_a_callback_starts_is_sent_in_the_same_turn),
        T(every_call_has_an_asynchronous_form),
        T(closing_ends_what_is_pending),
        T(a_callback_may_close_a_scan),
        T(a_callback_may_close_the_scan_that_waits),
        T(closing_tells_what_was_certainly_not_sent),
        T(memory_is_bounded),
        T(idle_connections_keep_no_memory_from_calls),
        T(a_reply_that_there_is_no_memory_for_is_told_and_not_asked_for_again),
        T(a_handle_that_is_kept_full_connects_again),
        T(a_lost_reply_is_repeated_and_done_once),
        T(who_closes_at_each_request_is_not_stormed),
        T(who_has_answered_is_connected_again_at_once),
        T(a_condition_is_not_repeated_to_a_server_that_has_forgotten),
        T(without_retry_a_lost_reply_is_told_at_once),
        T(a_change_of_the_cluster_is_sent_once),
        T(refusals_are_repeated_until_the_deadline),
        T(a_server_full_of_indexes_is_not_asked_again),
        T(who_is_overloaded_gets_no_multiple_of_the_load),
        T(a_connection_that_the_server_does_not_want_is_left_when_all_is_answered),
        T(an_age_counts_from_the_attempt_that_may_have_been_done),
        T(a_silent_server_costs_the_deadline_and_no_more),
        T(a_damaged_reply_is_never_believed),
        T(a_later_protocol_is_not_taken_for_damage),
        T(a_server_that_returns_is_found_again),
        T(nobody_there_is_told_at_once),
        T(a_server_that_is_full_is_told_and_tried_again),
        T(several_connections_share_the_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
