/* SPDX-License-Identifier: MIT
 *
 * smart_load.c -- a load through libdistkv, whose requests go straight to the nodes that have the
 * keys.
 *
 *   smart_load SERVERS HANDLES DEPTH [PREFIX [no-routing]]
 *
 * Each handle keeps DEPTH requests under way, reads and plain writes of 5,000 keys by turns. Lines
 * on standard input, each answered by one of JSON: `report` (what ended since the last one, by
 * code), `quit`.
 */
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "distkv.h"

#define HANDLES_MAX 256
#define DEPTH_MAX   64
#define KEYS        5000u
#define CODES       18
#define ROUND_NS    1000000

struct call {
    struct handle *handle;
    uint64_t started_us;
};

struct handle {
    distkv *kv;
    struct call calls[DEPTH_MAX];
};

static struct handle handles[HANDLES_MAX];
static uint64_t ended[CODES], slowest_us, random_state = 88172645463325252u;
static char last_error[200];
static const char *prefix = "k";
static bool stopping;

static uint64_t
now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

static uint64_t
random_below(uint64_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

static void start(struct call *call);

static void
on_end(void *arg, const struct distkv_result *result)
{
    struct call *call = arg;
    uint64_t took_us = now_us() - call->started_us;
    if (took_us > slowest_us) slowest_us = took_us;
    ended[result->code]++;
    if (result->code != DISTKV_OK && result->code != DISTKV_NOT_FOUND)
        snprintf(last_error, sizeof(last_error), "%s", result->error);
    if (!stopping) start(call);
}

static void
start(struct call *call)
{
    char key[64], value[100];
    int size = snprintf(key, sizeof(key), "%s%u", prefix, (unsigned)random_below(KEYS));
    memset(value, 'v', sizeof(value));
    call->started_us = now_us();
    int code = random_below(2) == 0
                   ? distkv_get_async(call->handle->kv, key, (size_t)size, on_end, call)
                   : distkv_put_async(call->handle->kv, key, (size_t)size, value, sizeof(value),
                                      NULL, on_end, call);
    if (code == DISTKV_OK) return;
    fprintf(stderr, "cannot start: %s\n", distkv_error(call->handle->kv));
    exit(1);
}

static void
report(void)
{
    printf("{\"slowest_ms\":%llu,\"error\":\"%s\"", (unsigned long long)(slowest_us / 1000),
           last_error);
    for (int code = 0; code < CODES; code++)
        if (ended[code] != 0)
            printf(",\"%s\":%llu", distkv_code_name(code), (unsigned long long)ended[code]);
    printf("}\n");
    fflush(stdout);
    memset(ended, 0, sizeof(ended));
    slowest_us = 0;
    last_error[0] = '\0';
}

/* false: quit. */
static bool
heed(void)
{
    char text[256];
    ssize_t got = read(0, text, sizeof(text) - 1);
    if (got <= 0) return false;
    text[got] = '\0';
    if (strncmp(text, "report", 6) != 0) return false;
    report();
    return true;
}

int
main(int argc, char **argv)
{
    if (argc < 4) return 2;
    int count = atoi(argv[2]), depth = atoi(argv[3]);
    if (count < 1 || count > HANDLES_MAX || depth < 1 || depth > DEPTH_MAX) return 2;
    if (argc > 4) prefix = argv[4];
    struct distkv_options options;
    distkv_options_init(&options);
    options.timeout_ms = 10000;
    options.no_routing = argc > 5;
    for (int i = 0; i < count; i++) {
        char error[DISTKV_ERROR_BYTES];
        if (distkv_connect(argv[1], &options, &handles[i].kv, error) != DISTKV_OK) {
            fprintf(stderr, "%s\n", error);
            return 1;
        }
        for (int k = 0; k < depth; k++) {
            handles[i].calls[k].handle = &handles[i];
            start(&handles[i].calls[k]);
        }
        distkv_flush(handles[i].kv);
    }
    struct pollfd fds[HANDLES_MAX + 1];
    fds[0] = (struct pollfd){.fd = 0, .events = POLLIN};
    for (int i = 0; i < count; i++)
        fds[i + 1] = (struct pollfd){.fd = distkv_fd(handles[i].kv), .events = POLLIN};
    while (true) {
        poll(fds, (nfds_t)count + 1, -1);
        for (int i = 0; i < count; i++) {
            if (fds[i + 1].revents == 0) continue;
            distkv_process(handles[i].kv, 0);
            distkv_flush(handles[i].kv);
        }
        if (fds[0].revents != 0 && !heed()) break;
        /* It shows what becomes of requests, not how many there may be. */
        nanosleep(&(struct timespec){.tv_nsec = ROUND_NS}, NULL);
    }
    stopping = true;
    for (int i = 0; i < count; i++)
        distkv_close(handles[i].kv);
    return 0;
}
