/* SPDX-License-Identifier: MIT
 *
 * hammer.c -- loads a server over RESP and says what it felt like.
 *
 *   hammer --port 8080 --connections 50 --depth 16 --seconds 10 --keys 1000000 --size 1000
 *          --mix set:50,get:45,del:5 [--rate 20000] [--order random] [--ttl-ms 1000] [--report]
 *
 * Without --rate each connection keeps `depth` requests under way (closed loop). With it, requests
 * have a time at which they are due, and their latency counts from there, whether they could be
 * sent then or not (open loop): a stall then shows in all the requests that it held up.
 *
 * Values describe themselves ("key:NUMBER#VERSION#" and a pattern), and every GET is compared with
 * its key's; a value of another key or a broken one is a failure. Errors are counted by their text.
 *
 * Prints one JSON object at the end; with --report a line a second on stderr. Exit status 1: wrong
 * values or a lost connection; errors of the server are for the caller to judge.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DEPTH_MAX  4096u
#define ERRORS_MAX 16u
#define KINDS      6u

enum kind { KIND_SET, KIND_GET, KIND_DEL, KIND_INCR, KIND_SETEX, KIND_EXISTS };
static const char *const kind_names[KINDS] = {"set", "get", "del", "incr", "setex", "exists"};

/* Latencies: 64 powers of two, 32 steps each. */
struct latencies {
    uint64_t buckets[64 * 32];
    uint64_t count, max;
};

struct flying {
    uint64_t due_ns;
    uint64_t key;
    enum kind kind;
};

struct connection {
    int fd;
    uint8_t *out;
    size_t out_start, out_end, out_capacity;
    uint8_t *in;
    size_t in_start, in_end, in_capacity;
    struct flying flying[DEPTH_MAX];
    uint32_t flying_first, flying_count;
    bool want_write;
};

static struct {
    int port;
    uint32_t connections, depth;
    uint64_t keys, first_key, size, size_max, seconds, count, rate, ttl_ms, seed;
    uint32_t mix[KINDS];
    uint32_t mix_sum;
    bool sequential, report;
    const char *prefix;
} options = {.port = 8080,
             .connections = 50,
             .depth = 16,
             .keys = 1000000,
             .size = 1000,
             .seconds = 10,
             .ttl_ms = 1000,
             .seed = 1,
             .prefix = "key:"};

static struct latencies latencies[KINDS];
static struct {
    char text[96];
    uint64_t count;
} errors[ERRORS_MAX];
static uint64_t errors_total, wrong_total, misses, replies, second_max_ns, sent_total;
static uint64_t random_state, sequence;
static uint64_t started_ns, next_due_ns;

static void
die(const char *what)
{
    fprintf(stderr, "hammer: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t
mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t
random_u64(void)
{
    return mix64(random_state += 0x9e3779b97f4a7c15u);
}

/* ---- latencies ---- */

static uint32_t
bucket_of(uint64_t ns)
{
    if (ns < 32) return (uint32_t)ns;
    uint32_t top = 63u - (uint32_t)__builtin_clzll(ns);
    return (top - 4) * 32 + (uint32_t)(ns >> (top - 5) & 31);
}

static uint64_t
bucket_value(uint32_t bucket)
{
    if (bucket < 32) return bucket;
    uint32_t top = bucket / 32 + 4;
    return (32u + (uint64_t)(bucket % 32)) << (top - 5);
}

static void
latency_add(enum kind kind, uint64_t ns)
{
    struct latencies *l = &latencies[kind];
    l->buckets[bucket_of(ns)]++;
    l->count++;
    if (ns > l->max) l->max = ns;
    if (ns > second_max_ns) second_max_ns = ns;
}

static double
latency_ms(const struct latencies *l, double part)
{
    uint64_t rank = (uint64_t)((double)l->count * part), seen = 0;
    for (uint32_t i = 0; i < 64 * 32; i++) {
        seen += l->buckets[i];
        if (seen > rank) return (double)bucket_value(i) / 1e6;
    }
    return (double)l->max / 1e6;
}

static void
error_add(const char *text, size_t size)
{
    errors_total++;
    if (size > sizeof(errors[0].text) - 1) size = sizeof(errors[0].text) - 1;
    for (uint32_t i = 0; i < ERRORS_MAX; i++) {
        if (errors[i].count == 0) memcpy(errors[i].text, text, size);
        if (errors[i].count != 0 &&
            (strlen(errors[i].text) != size || memcmp(errors[i].text, text, size) != 0))
            continue;
        errors[i].count++;
        return;
    }
}

/* ---- requests ---- */

static uint64_t
value_size(uint64_t key)
{
    if (options.size_max <= options.size) return options.size;
    return options.size + mix64(key) % (options.size_max - options.size + 1);
}

static size_t
value_head(uint64_t key, char *out, size_t size)
{
    return (size_t)snprintf(out, size, "%s%012" PRIu64 "#", options.prefix, key);
}

/* The head names the key; the rest is noise that follows from it and hardly compresses. */
static void
value_fill(uint64_t key, uint8_t *out, size_t size)
{
    char head[128];
    size_t head_size = value_head(key, head, sizeof(head));
    size_t n = head_size < size ? head_size : size;
    memcpy(out, head, n);
    uint64_t x = key;
    while (n < size) {
        uint64_t word = mix64(x += 0x9e3779b97f4a7c15u);
        size_t part = size - n < 8 ? size - n : 8;
        memcpy(out + n, &word, part);
        n += part;
    }
}

static bool
value_is_right(uint64_t key, const uint8_t *value, size_t size)
{
    static uint8_t wanted[1 << 20];
    if (size != value_size(key) || size > sizeof(wanted)) return false;
    value_fill(key, wanted, size);
    return memcmp(value, wanted, size) == 0;
}

static uint8_t *
out_room(struct connection *c, size_t size)
{
    if (c->out_start == c->out_end) c->out_start = c->out_end = 0;
    if (c->out_end + size > c->out_capacity && c->out_start > 0) {
        memmove(c->out, c->out + c->out_start, c->out_end - c->out_start);
        c->out_end -= c->out_start;
        c->out_start = 0;
    }
    while (c->out_end + size > c->out_capacity) {
        c->out_capacity = c->out_capacity == 0 ? 65536 : c->out_capacity * 2;
        c->out = realloc(c->out, c->out_capacity);
        if (c->out == NULL) die("memory");
    }
    return c->out + c->out_end;
}

static enum kind
pick_kind(void)
{
    uint32_t at = (uint32_t)(random_u64() % options.mix_sum);
    for (uint32_t i = 0; i < KINDS; i++) {
        if (at < options.mix[i]) return (enum kind)i;
        at -= options.mix[i];
    }
    return KIND_GET;
}

static void
request_add(struct connection *c, uint64_t due_ns)
{
    uint64_t at = options.sequential ? sequence++ % options.keys : random_u64() % options.keys;
    uint64_t number = options.first_key + at;
    enum kind kind = pick_kind();
    char key[96];
    int key_size = snprintf(key, sizeof(key), "%s%012" PRIu64, options.prefix, number);
    size_t size = kind == KIND_SET || kind == KIND_SETEX ? value_size(number) : 0;
    char *out = (char *)out_room(c, 256 + (size_t)key_size + size);
    size_t room = 256 + (size_t)key_size, used;
    switch (kind) {
    case KIND_SET:
        used = (size_t)snprintf(out, room, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%zu\r\n", key_size,
                                key, size);
        value_fill(number, (uint8_t *)out + used, size);
        used += size;
        memcpy(out + used, "\r\n", 2);
        used += 2;
        break;
    case KIND_SETEX: {
        char ttl[24];
        int ttl_size = snprintf(ttl, sizeof(ttl), "%" PRIu64, options.ttl_ms);
        used =
            (size_t)snprintf(out, room, "*4\r\n$6\r\nPSETEX\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n$%zu\r\n",
                             key_size, key, ttl_size, ttl, size);
        value_fill(number, (uint8_t *)out + used, size);
        used += size;
        memcpy(out + used, "\r\n", 2);
        used += 2;
        break;
    }
    case KIND_GET:
    case KIND_DEL:
    case KIND_INCR:
    case KIND_EXISTS:
    default: {
        static const char *const words[KINDS] = {[KIND_GET] = "$3\r\nGET",
                                                 [KIND_DEL] = "$3\r\nDEL",
                                                 [KIND_INCR] = "$4\r\nINCR",
                                                 [KIND_EXISTS] = "$6\r\nEXISTS"};
        used = (size_t)snprintf(out, room, "*2\r\n%s\r\n$%d\r\n%s\r\n", words[kind], key_size, key);
        break;
    }
    }
    c->out_end += used;
    uint32_t slot = (c->flying_first + c->flying_count++) % DEPTH_MAX;
    c->flying[slot] = (struct flying){.due_ns = due_ns, .key = number, .kind = kind};
    sent_total++;
}

/* ---- connections ---- */

static void
flush(struct connection *c)
{
    while (c->out_start < c->out_end) {
        ssize_t n = send(c->fd, c->out + c->out_start, c->out_end - c->out_start,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n < 0) die("send");
        c->out_start += (size_t)n;
    }
}

/* One whole reply at data, or 0: not all there yet. Sets *body and *body_size. */
static size_t
reply_parse(const uint8_t *data, size_t size, const uint8_t **body, int64_t *body_size)
{
    const uint8_t *end = memchr(data, '\n', size);
    if (end == NULL) return 0;
    size_t line = (size_t)(end - data) + 1;
    *body = data + 1;
    *body_size = (int64_t)line - 3;
    if (data[0] != '$') return line;
    int64_t length = strtoll((const char *)data + 1, NULL, 10);
    *body_size = length;
    if (length < 0) return line;
    if (size < line + (size_t)length + 2) return 0;
    *body = end + 1;
    return line + (size_t)length + 2;
}

static void
reply_take(struct connection *c, const uint8_t *data, const uint8_t *body, int64_t body_size)
{
    if (c->flying_count == 0) {
        fprintf(stderr, "hammer: a reply that nobody asked for\n");
        exit(1);
    }
    const struct flying *f = &c->flying[c->flying_first];
    c->flying_first = (c->flying_first + 1) % DEPTH_MAX;
    c->flying_count--;
    replies++;
    latency_add(f->kind, now_ns() - f->due_ns);
    if (data[0] == '-') {
        error_add((const char *)body, (size_t)body_size);
        return;
    }
    char wanted = f->kind == KIND_GET                            ? '$'
                  : f->kind == KIND_SET || f->kind == KIND_SETEX ? '+'
                                                                 : ':';
    bool right = data[0] == wanted;
    if (right && f->kind == KIND_GET) {
        if (body_size < 0)
            misses++;
        else
            right = value_is_right(f->key, body, (size_t)body_size);
    }
    if (!right && wrong_total++ < 10)
        fprintf(stderr, "hammer: wrong reply to %s of %" PRIu64 ": %.*s\n", kind_names[f->kind],
                f->key, (int)(body_size < 60 ? body_size : 60), (const char *)body);
}

static void
receive(struct connection *c)
{
    for (;;) {
        if (c->in_capacity - c->in_end < 65536) {
            if (c->in_start > 0) {
                memmove(c->in, c->in + c->in_start, c->in_end - c->in_start);
                c->in_end -= c->in_start;
                c->in_start = 0;
            }
            if (c->in_capacity - c->in_end < 65536) {
                c->in_capacity = c->in_capacity == 0 ? 131072 : c->in_capacity * 2;
                c->in = realloc(c->in, c->in_capacity);
                if (c->in == NULL) die("memory");
            }
        }
        ssize_t n = recv(c->fd, c->in + c->in_end, c->in_capacity - c->in_end, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n < 0) die("recv");
        if (n == 0) {
            fprintf(stderr, "hammer: connection closed with %u replies missing\n", c->flying_count);
            exit(1);
        }
        c->in_end += (size_t)n;
        for (;;) {
            const uint8_t *body;
            int64_t body_size;
            const uint8_t *data = c->in + c->in_start;
            if (c->in_start == c->in_end) break;
            size_t used = reply_parse(data, c->in_end - c->in_start, &body, &body_size);
            if (used == 0) break;
            reply_take(c, data, body, body_size);
            c->in_start += used;
        }
    }
}

static bool
more_wanted(uint64_t now)
{
    if (options.count != 0) return sent_total < options.count;
    return now - started_ns < options.seconds * 1000000000u;
}

static void
fill(struct connection *c, uint64_t now)
{
    while (c->flying_count < options.depth && c->out_end - c->out_start < (4u << 20) &&
           more_wanted(now)) {
        if (options.rate == 0) {
            request_add(c, now);
            continue;
        }
        if (next_due_ns > now) break;
        request_add(c, next_due_ns);
        next_due_ns = started_ns + (uint64_t)((double)sent_total * 1e9 / (double)options.rate);
    }
    flush(c);
}

static void
connect_one(struct connection *c, int epoll)
{
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) die("socket");
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)options.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(c->fd, (struct sockaddr *)&address, sizeof(address)) != 0) die("connect");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) != 0) die("epoll");
}

static void
want_write(struct connection *c, int epoll)
{
    bool wanted = c->out_start < c->out_end;
    if (wanted == c->want_write) return;
    c->want_write = wanted;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event) != 0) die("epoll");
}

/* ---- main ---- */

static void
parse_mix(const char *text)
{
    memset(options.mix, 0, sizeof(options.mix));
    options.mix_sum = 0;
    char copy[256];
    snprintf(copy, sizeof(copy), "%s", text);
    for (char *save, *word = strtok_r(copy, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        char *colon = strchr(word, ':');
        uint32_t weight = 1;
        if (colon != NULL) {
            *colon = '\0';
            weight = (uint32_t)atoi(colon + 1);
        }
        uint32_t i = 0;
        while (i < KINDS && strcmp(kind_names[i], word) != 0)
            i++;
        if (i == KINDS) {
            fprintf(stderr, "hammer: unknown command in --mix: %s\n", word);
            exit(2);
        }
        options.mix[i] += weight;
        options.mix_sum += weight;
    }
}

static void
parse_options(int argc, char **argv)
{
    static const struct option known[] = {{"port", 1, NULL, 'p'},    {"connections", 1, NULL, 'c'},
                                          {"depth", 1, NULL, 'd'},   {"keys", 1, NULL, 'k'},
                                          {"size", 1, NULL, 's'},    {"size-max", 1, NULL, 'S'},
                                          {"seconds", 1, NULL, 't'}, {"count", 1, NULL, 'n'},
                                          {"rate", 1, NULL, 'r'},    {"mix", 1, NULL, 'm'},
                                          {"order", 1, NULL, 'o'},   {"ttl-ms", 1, NULL, 'T'},
                                          {"seed", 1, NULL, 'e'},    {"prefix", 1, NULL, 'x'},
                                          {"report", 0, NULL, 'R'},  {"first-key", 1, NULL, 'f'},
                                          {NULL, 0, NULL, 0}};
    parse_mix("set");
    int c;
    while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
        uint64_t number = optarg == NULL ? 0 : strtoull(optarg, NULL, 10);
        switch (c) {
        case 'p':
            options.port = (int)number;
            break;
        case 'c':
            options.connections = (uint32_t)number;
            break;
        case 'd':
            options.depth = (uint32_t)number;
            break;
        case 'k':
            options.keys = number;
            break;
        case 's':
            options.size = number;
            break;
        case 'S':
            options.size_max = number;
            break;
        case 't':
            options.seconds = number;
            break;
        case 'n':
            options.count = number;
            break;
        case 'r':
            options.rate = number;
            break;
        case 'm':
            parse_mix(optarg);
            break;
        case 'o':
            options.sequential = strcmp(optarg, "sequential") == 0;
            break;
        case 'T':
            options.ttl_ms = number;
            break;
        case 'e':
            options.seed = number;
            break;
        case 'x':
            options.prefix = optarg;
            break;
        case 'R':
            options.report = true;
            break;
        case 'f':
            options.first_key = number;
            break;
        default:
            exit(2);
        }
    }
    if (options.depth == 0 || options.depth > DEPTH_MAX || options.connections == 0 ||
        options.keys == 0 || options.mix_sum == 0 || strlen(options.prefix) > 64) {
        fprintf(stderr, "hammer: bad options\n");
        exit(2);
    }
    random_state = options.seed;
}

static void
print_result(double seconds)
{
    printf("{\"seconds\": %.3f, \"replies\": %" PRIu64
           ", \"per_second\": %.0f, \"errors\": %" PRIu64 ", \"wrong\": %" PRIu64
           ", \"misses\": %" PRIu64,
           seconds, replies, (double)replies / seconds, errors_total, wrong_total, misses);
    for (uint32_t i = 0; i < KINDS; i++) {
        const struct latencies *l = &latencies[i];
        if (l->count == 0) continue;
        printf(",\n \"%s\": {\"count\": %" PRIu64
               ", \"p50_ms\": %.3f, \"p90_ms\": %.3f, \"p99_ms\": %.3f, \"p999_ms\": %.3f, "
               "\"p9999_ms\": %.3f, \"max_ms\": %.3f}",
               kind_names[i], l->count, latency_ms(l, 0.5), latency_ms(l, 0.9), latency_ms(l, 0.99),
               latency_ms(l, 0.999), latency_ms(l, 0.9999), (double)l->max / 1e6);
    }
    printf(",\n \"error_texts\": {");
    for (uint32_t i = 0; i < ERRORS_MAX && errors[i].count > 0; i++)
        printf("%s\"%s\": %" PRIu64, i == 0 ? "" : ", ", errors[i].text, errors[i].count);
    printf("}}\n");
}

int
main(int argc, char **argv)
{
    parse_options(argc, argv);
    int epoll = epoll_create1(0);
    if (epoll < 0) die("epoll");
    struct connection *connections = calloc(options.connections, sizeof(*connections));
    if (connections == NULL) die("memory");
    for (uint32_t i = 0; i < options.connections; i++)
        connect_one(&connections[i], epoll);
    started_ns = next_due_ns = now_ns();
    uint64_t report_ns = started_ns, report_replies = 0, report_errors = 0;
    uint32_t turn = 0;
    for (;;) {
        uint64_t now = now_ns();
        uint32_t flying = 0;
        for (uint32_t i = 0; i < options.connections; i++) {
            struct connection *c = &connections[(i + turn) % options.connections];
            fill(c, now);
            want_write(c, epoll);
            flying += c->flying_count;
        }
        turn++;
        if (flying == 0 && !more_wanted(now)) break;
        if (options.report && now - report_ns >= 1000000000u) {
            double seconds = (double)(now - report_ns) / 1e9;
            fprintf(stderr, "%4.0f s  %8.0f/s  max %8.2f ms  errors %" PRIu64 "\n",
                    (double)(now - started_ns) / 1e9, (double)(replies - report_replies) / seconds,
                    (double)second_max_ns / 1e6, errors_total - report_errors);
            report_ns = now;
            report_replies = replies;
            report_errors = errors_total;
            second_max_ns = 0;
        }
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, options.rate != 0 ? 1 : 100);
        if (n < 0 && errno != EINTR) die("epoll");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
        }
    }
    print_result((double)(now_ns() - started_ns) / 1e9);
    return wrong_total == 0 ? 0 : 1;
}
