/* SPDX-License-Identifier: MIT
 *
 * ledger.c -- a steady load on the nodes of a cluster that remembers what became of each write.
 *
 *   ledger --node 127.0.0.1:8080 --node 127.0.0.1:8081 ... --rate 8500 --mix set:55,get:40,del:5
 *          --keys 20000 --size 1024 --connections 4 --timeout-ms 2000 --late-ms 6000
 *
 * It speaks RESP and repeats nothing, so each failure shows, and with it the node that was asked.
 * Requests have a time at which they are due; latency counts from there (open loop), and belongs to
 * the window of WINDOW_MS in which they were due. A connection whose oldest request is older than
 * SLOW_MS gets no new ones; one that is silent for --timeout-ms is closed, and is used again once
 * it has answered a PING. So it does as a client that looks after its connections, and no more: it
 * closes them as libdistkv does, so that the kernel does not send on what was given up.
 *
 * The ledger. Values are numbered by key; a DEL has a number, too. At most one write of a key is
 * under way. What became of it:
 *
 *   acknowledged   reads that begin later find it, or a later one
 *   refused        (NOREPLICAS, OVERLOADED ...: nothing was done) nobody ever finds it
 *   unsure         (UNKNOWN, a lost connection, silence) it may be found, or not, until a write is
 *                  acknowledged that began --late-ms after it: nothing begins to take effect later
 *                  than that, and what one node alone has got by then is older. A DEL that found
 *                  nothing has written nothing, and ends no doubt: a node that was cut off may have
 *                  what it did not see
 *
 * Each GET is judged by this, during the load and after it. Commands come on standard input, a line
 * each; answers are lines of JSON on standard output:
 *
 *   node HOST:PORT      one more node, for what comes now
 *   start | stop        the load; stop waits for what is under way
 *   rate N              requests a second from now on
 *   time                milliseconds since the start of the program
 *   fill                writes every key once, through all nodes
 *   check LEVEL         reads every key through every node and judges (LEVEL: of
 *                       DISTKV.CONSISTENCY, or DEFAULT); tells how many keys are told differently
 *   keys FILE           writes the keys that are certainly there, and those that may be
 *   report FILE         windows, failures and sums, as JSON
 *   quit
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NODES_MAX       8u
#define CONNECTIONS_MAX 16u /* of a node */
#define DEPTH           512u
#define UNSURE_MAX      6u
#define REFUSED_MAX     2u
#define WINDOW_MS       50u
#define WINDOWS_MAX     24000u
#define BUCKETS         400u /* of latencies: 16 to a power of two, in microseconds */
#define KINDS_MAX       32u
#define FAILURES_MAX    400000u
#define VIOLATIONS_MAX  50u
#define SLOW_MS         250u
#define RECONNECT_MS    50u
#define IN_BYTES        (256u << 10)

enum op { OP_SET, OP_GET, OP_DEL, OP_PING, OP_LEVEL, OPS };
static const char *const op_names[OPS] = {"set", "get", "del", "ping", "level"};

struct unsure {
    uint32_t number; /* 0: none */
    bool deleted;
    uint64_t until_ns; /* what is begun later supersedes it */
    uint64_t gone_ns;  /* when it was superseded; 0: not yet */
};

struct entry {
    uint32_t acked, last, last_delete;
    bool acked_deleted, busy;
    uint32_t refused[REFUSED_MAX];
    uint32_t refused_at;
    struct unsure unsure[UNSURE_MAX];
};

struct flying {
    uint64_t due_ns;
    uint32_t key, number; /* of a GET: what was acknowledged when it began */
    uint8_t op;
    bool acked_deleted;
};

enum state { OFF, CONNECTING, GREETING, OPEN };

struct connection {
    struct node *node;
    int fd;
    enum state state;
    uint64_t retry_ns;
    uint8_t *out;
    size_t out_start, out_end, out_capacity;
    uint8_t *in;
    size_t in_start, in_end, in_capacity;
    struct flying flying[DEPTH];
    uint32_t first, count;
    bool dirty, wants_out;
};

struct node {
    char name[64];
    struct sockaddr_in address;
    struct connection *connections[CONNECTIONS_MAX];
    uint64_t done, failed;
};

struct failure {
    uint32_t ms, latency_ms, key;
    uint8_t node, op, kind;
};

/* ---- the state of the program ---- */

static struct node nodes[NODES_MAX];
static uint32_t node_count, connection_count = 4, next_node;
static struct entry *entries;
static uint32_t key_count = 20000, value_bytes = 1024;
static uint32_t mix[OPS] = {55, 40, 5};
static uint64_t begin_ns, timeout_ns = 2000000000, late_ns = 6000000000;
static double rate = 8500;
static int epoll_fd;
static uint64_t random_state = 88172645463325252u;

static uint32_t (*windows)[NODES_MAX][BUCKETS]; /* [WINDOWS_MAX] */
static uint32_t *windows_unsent;                /* [WINDOWS_MAX] */
static uint32_t window_last;
static char kinds[KINDS_MAX][24];
static uint32_t kind_count;
static struct failure failures[FAILURES_MAX];
static uint64_t failure_count, violation_count, unsent;
static char violations[VIOLATIONS_MAX][160];
static uint64_t done[OPS], failed[OPS];

/* What check sees: for each key and node, the number found (0: absent). */
static uint32_t *seen;
static bool checking;
static uint64_t check_failed, check_left;

static uint64_t
now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(2);
}

static void *
need(void *memory)
{
    if (memory == NULL) die("no memory");
    return memory;
}

static uint64_t
random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* ---- what is counted ---- */

static uint32_t
bucket_of(uint64_t us)
{
    if (us < 16) return (uint32_t)us;
    uint32_t power = 63 - (uint32_t)__builtin_clzll(us);
    uint32_t bucket = 16 * (power - 3) + (uint32_t)(us >> (power - 4) & 15);
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static uint32_t
window_of(uint64_t due_ns)
{
    uint64_t window = (due_ns - begin_ns) / (WINDOW_MS * 1000000ull);
    if (window >= WINDOWS_MAX) die("too long a load");
    if (window > window_last) window_last = (uint32_t)window;
    return (uint32_t)window;
}

static void
count_done(const struct node *node, const struct flying *f)
{
    windows[window_of(f->due_ns)][node - nodes][bucket_of((now_ns() - f->due_ns) / 1000)]++;
    done[f->op]++;
}

static uint8_t
kind_of(const char *word, size_t size)
{
    if (size > sizeof(kinds[0]) - 1) size = sizeof(kinds[0]) - 1;
    for (uint32_t i = 0; i < kind_count; i++)
        if (strlen(kinds[i]) == size && memcmp(kinds[i], word, size) == 0) return (uint8_t)i;
    if (kind_count == KINDS_MAX) return KINDS_MAX - 1;
    memcpy(kinds[kind_count], word, size);
    return (uint8_t)kind_count++;
}

static void
count_failed(struct node *node, const struct flying *f, const char *word, size_t size)
{
    failed[f->op]++;
    node->failed++;
    if (failure_count < FAILURES_MAX)
        failures[failure_count] = (struct failure){
            .ms = (uint32_t)((f->due_ns - begin_ns) / 1000000u),
            .latency_ms = (uint32_t)((now_ns() - f->due_ns) / 1000000u),
            .key = f->key,
            .node = (uint8_t)(node - nodes),
            .op = f->op,
            .kind = kind_of(word, size),
        };
    failure_count++;
}

static void __attribute__((format(printf, 3, 4)))
violation(const struct node *node, const struct flying *f, const char *format, ...)
{
    if (violation_count < VIOLATIONS_MAX) {
        char *text = violations[violation_count];
        int size = snprintf(text, sizeof(violations[0]),
                            "%" PRIu64 " ms, node %u, k%u: ", (f->due_ns - begin_ns) / 1000000u,
                            (unsigned)(node - nodes), f->key);
        va_list args;
        va_start(args, format);
        vsnprintf(text + size, sizeof(violations[0]) - (size_t)size, format, args);
        va_end(args);
    }
    violation_count++;
}

/* ---- the ledger ---- */

static bool
is_live(const struct unsure *u)
{
    return u->number != 0 && u->gone_ns == 0;
}

/* Room for one more that may become unsure. */
static bool
may_write(const struct entry *e)
{
    if (e->busy) return false;
    uint32_t live = 0;
    for (uint32_t i = 0; i < UNSURE_MAX; i++)
        live += is_live(&e->unsure[i]);
    return live < UNSURE_MAX;
}

static void
note_acked(struct entry *e, const struct flying *f, bool written)
{
    e->busy = false;
    e->acked = f->number;
    e->acked_deleted = f->op == OP_DEL;
    if (!written) return;
    uint64_t now = now_ns();
    for (uint32_t i = 0; i < UNSURE_MAX; i++)
        if (is_live(&e->unsure[i]) && e->unsure[i].until_ns <= f->due_ns)
            e->unsure[i].gone_ns = now;
}

static void
note_unsure(struct entry *e, const struct flying *f)
{
    e->busy = false;
    struct unsure *oldest = NULL;
    for (uint32_t i = 0; i < UNSURE_MAX; i++) {
        struct unsure *u = &e->unsure[i];
        if (is_live(u)) continue;
        if (oldest == NULL || u->gone_ns < oldest->gone_ns) oldest = u;
    }
    /* Until when it may begin to take effect: it may have been sent up to now. */
    *oldest = (struct unsure){
        .number = f->number, .deleted = f->op == OP_DEL, .until_ns = now_ns() + late_ns};
}

static void
note_refused(struct entry *e, const struct flying *f)
{
    e->busy = false;
    if (f->op == OP_SET) e->refused[e->refused_at++ % REFUSED_MAX] = f->number;
}

static bool
was_unsure(const struct entry *e, uint64_t since_ns, bool deleted, uint32_t number)
{
    for (uint32_t i = 0; i < UNSURE_MAX; i++) {
        const struct unsure *u = &e->unsure[i];
        if (u->number == 0 || u->deleted != deleted || (!deleted && u->number != number)) continue;
        if (u->gone_ns == 0 || u->gone_ns > since_ns) return true;
    }
    return false;
}

/* number: 0 when the key was not found. */
static void
judge(const struct node *node, const struct flying *f, uint32_t number)
{
    const struct entry *e = &entries[f->key];
    if (number == 0) {
        if (f->acked_deleted || e->last_delete > f->number || was_unsure(e, f->due_ns, true, 0))
            return;
        violation(node, f, "absent, acknowledged was %u", f->number);
        return;
    }
    for (uint32_t i = 0; i < REFUSED_MAX; i++)
        if (e->refused[i] == number) violation(node, f, "found %u, which was refused", number);
    if (number > e->last) violation(node, f, "found %u, which was never written", number);
    if (number >= f->number && !(number == f->number && f->acked_deleted)) return;
    if (was_unsure(e, f->due_ns, false, number)) return;
    violation(node, f, "found %u, acknowledged was %u%s", number, f->number,
              f->acked_deleted ? " (deleted)" : "");
}

/* ---- values ---- */

static void
value_make(uint32_t key, uint32_t number, char *out)
{
    int head = snprintf(out, value_bytes + 1, "%u#%u#", key, number);
    uint64_t x = ((uint64_t)key << 32 | number) * 0x9e3779b97f4a7c15u;
    for (uint32_t i = (uint32_t)head; i < value_bytes; i++) {
        out[i] = (char)('a' + (x >> 60));
        x = x << 7 | x >> 57;
    }
}

/* 0: it is none of the key's. */
static uint32_t
value_number(uint32_t key, const uint8_t *value, size_t size)
{
    static char *made;
    if (made == NULL) made = need(malloc(value_bytes + 1));
    if (size != value_bytes) return 0;
    char head[32];
    memcpy(head, value, size < 31 ? size : 31);
    head[31] = '\0';
    unsigned found_key, number;
    if (sscanf(head, "%u#%u#", &found_key, &number) != 2 || found_key != key) return 0;
    value_make(key, number, made);
    return memcmp(made, value, size) == 0 ? number : 0;
}

/* ---- connections ---- */

static void
reserve(uint8_t **data, size_t *start, size_t *end, size_t *capacity, size_t more)
{
    if (*capacity - *end >= more) return;
    memmove(*data, *data + *start, *end - *start);
    *end -= *start;
    *start = 0;
    if (*capacity - *end >= more) return;
    while (*capacity - *end < more)
        *capacity = *capacity == 0 ? 65536 : *capacity * 2;
    *data = need(realloc(*data, *capacity));
}

static void
end_flying(struct connection *c, const char *why)
{
    while (c->count > 0) {
        struct flying f = c->flying[c->first];
        c->first = (c->first + 1) % DEPTH;
        c->count--;
        if (f.op == OP_PING || f.op == OP_LEVEL) continue;
        if (checking) {
            check_failed++;
            check_left--;
            continue;
        }
        count_failed(c->node, &f, why, strlen(why));
        if (f.op != OP_GET) note_unsure(&entries[f.key], &f);
    }
}

static void
drop(struct connection *c, const char *why)
{
    /* What the kernel has of it goes, too: sent again when a cut link heals, it would be done then.
     */
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    if (c->fd >= 0) {
        (void)setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
        close(c->fd);
    }
    c->fd = -1;
    c->state = OFF;
    c->retry_ns = now_ns() + RECONNECT_MS * 1000000ull;
    c->out_start = c->out_end = c->in_start = c->in_end = 0;
    c->dirty = c->wants_out = false;
    end_flying(c, why);
}

static void
watch(struct connection *c, bool out, int how)
{
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0u), .data.ptr = c};
    if (epoll_ctl(epoll_fd, how, c->fd, &event) != 0) die("epoll_ctl: %s", strerror(errno));
    c->wants_out = out;
}

static void
flush(struct connection *c)
{
    c->dirty = false;
    while (c->out_start < c->out_end) {
        ssize_t n = send(c->fd, c->out + c->out_start, c->out_end - c->out_start, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
        if (n < 0) {
            drop(c, "lost");
            return;
        }
        c->out_start += (size_t)n;
    }
    bool left = c->out_start < c->out_end;
    if (!left) c->out_start = c->out_end = 0;
    if (left != c->wants_out) watch(c, left, EPOLL_CTL_MOD);
}

static void put(struct connection *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void
put(struct connection *c, const char *format, ...)
{
    reserve(&c->out, &c->out_start, &c->out_end, &c->out_capacity, 256);
    va_list args;
    va_start(args, format);
    c->out_end += (size_t)vsnprintf((char *)c->out + c->out_end, 256, format, args);
    va_end(args);
    c->dirty = true;
}

static void
fly(struct connection *c, struct flying f)
{
    c->flying[(c->first + c->count++) % DEPTH] = f;
}

static void
send_request(struct connection *c, struct flying f)
{
    char key[16];
    int size = snprintf(key, sizeof(key), "k%u", f.key);
    switch ((enum op)f.op) {
    case OP_SET:
        put(c, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%u\r\n", size, key, value_bytes);
        reserve(&c->out, &c->out_start, &c->out_end, &c->out_capacity, value_bytes + 3);
        value_make(f.key, f.number, (char *)c->out + c->out_end);
        c->out_end += value_bytes;
        put(c, "\r\n");
        break;
    case OP_GET:
        put(c, "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", size, key);
        break;
    case OP_DEL:
        put(c, "*2\r\n$3\r\nDEL\r\n$%d\r\n%s\r\n", size, key);
        break;
    case OP_PING:
        put(c, "*1\r\n$4\r\nPING\r\n");
        break;
    case OP_LEVEL:
    case OPS:
        die("not sent here");
    }
    fly(c, f);
}

static void
send_level(struct connection *c, const char *level)
{
    put(c, "*2\r\n$18\r\nDISTKV.CONSISTENCY\r\n$%zu\r\n%s\r\n", strlen(level), level);
    fly(c, (struct flying){.op = OP_LEVEL, .due_ns = now_ns()});
}

static void
connect_start(struct connection *c)
{
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket: %s", strerror(errno));
    int one = 1;
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    const struct sockaddr *to = (const struct sockaddr *)&c->node->address;
    if (connect(c->fd, to, sizeof(c->node->address)) != 0 && errno != EINPROGRESS) {
        drop(c, "lost");
        return;
    }
    c->state = CONNECTING;
    c->retry_ns = now_ns() + timeout_ns;
    watch(c, true, EPOLL_CTL_ADD);
}

static void
connected(struct connection *c)
{
    int error = 0;
    socklen_t size = sizeof(error);
    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
        drop(c, "lost");
        return;
    }
    c->state = GREETING;
    send_request(c, (struct flying){.op = OP_PING, .due_ns = now_ns()});
    flush(c);
}

/* ---- answers ---- */

/* Of errors that say that nothing was done. */
static bool
is_refusal(const char *text, size_t size)
{
    return !(size >= 7 && memcmp(text, "UNKNOWN", 7) == 0);
}

static void
answer(struct connection *c, char type, const uint8_t *data, size_t size, bool null)
{
    struct flying f = c->flying[c->first];
    c->first = (c->first + 1) % DEPTH;
    c->count--;
    if (f.op == OP_PING || f.op == OP_LEVEL) {
        if (type == '-') {
            drop(c, "lost");
            return;
        }
        if (c->state == GREETING) c->state = OPEN;
        return;
    }
    struct entry *e = &entries[f.key];
    uint32_t number = 0;
    if (type != '-' && f.op == OP_GET && !null) {
        number = value_number(f.key, data, size);
        if (number == 0) violation(c->node, &f, "found bytes that are not its own");
    }
    if (checking) {
        check_left--;
        if (type == '-') {
            check_failed++;
            return;
        }
        seen[(size_t)f.key * NODES_MAX + (size_t)(c->node - nodes)] = number;
        judge(c->node, &f, number);
        return;
    }
    if (type == '-') {
        const char *text = (const char *)data;
        size_t word = 0;
        while (word < size && text[word] != ' ')
            word++;
        count_failed(c->node, &f, text, word);
        if (f.op == OP_GET) return;
        if (is_refusal(text, size))
            note_refused(e, &f);
        else
            note_unsure(e, &f);
        return;
    }
    c->node->done++;
    count_done(c->node, &f);
    if (f.op == OP_GET)
        judge(c->node, &f, number);
    else
        note_acked(e, &f, f.op != OP_DEL || size != 1 || data[0] != '0');
}

/* One reply; false: not all of it is there. */
static bool
parse(struct connection *c)
{
    uint8_t *at = c->in + c->in_start;
    size_t have = c->in_end - c->in_start;
    uint8_t *end = memchr(at, '\n', have);
    if (end == NULL) return false;
    size_t line = (size_t)(end - at) + 1;
    char type = (char)at[0];
    const uint8_t *data = at + 1;
    size_t size = line - 3, whole = line;
    bool null = false;
    if (type == '$') {
        long length = strtol((char *)at + 1, NULL, 10);
        null = length < 0;
        size = null ? 0 : (size_t)length;
        whole = null ? line : line + size + 2;
        data = at + line;
        if (have < whole) return false;
    }
    if (c->count == 0) die("an answer that nobody has asked for");
    c->in_start += whole;
    answer(c, type, data, size, null);
    return true;
}

static void
readable(struct connection *c)
{
    reserve(&c->in, &c->in_start, &c->in_end, &c->in_capacity, IN_BYTES);
    ssize_t n = recv(c->fd, c->in + c->in_end, c->in_capacity - c->in_end, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        drop(c, "lost");
        return;
    }
    c->in_end += (size_t)n;
    while (c->state >= GREETING && c->in_start < c->in_end && parse(c)) {
    }
}

/* ---- the loop ---- */

static bool
is_usable(const struct connection *c, uint64_t now)
{
    if (c->state != OPEN || c->count >= DEPTH) return false;
    return c->count == 0 || now - c->flying[c->first].due_ns < SLOW_MS * 1000000ull;
}

/* The nodes in turn, and of a node the connection with the least to do. */
static struct connection *
choose(uint64_t now)
{
    for (uint32_t i = 0; i < node_count; i++) {
        struct node *node = &nodes[next_node++ % node_count];
        struct connection *best = NULL;
        for (uint32_t j = 0; j < connection_count; j++) {
            struct connection *c = node->connections[j];
            if (is_usable(c, now) && (best == NULL || c->count < best->count)) best = c;
        }
        if (best != NULL) return best;
    }
    return NULL;
}

static void
issue_write(struct connection *c, uint8_t op, uint32_t key, uint64_t due_ns)
{
    struct entry *e = &entries[key];
    e->busy = true;
    e->last++;
    if (op == OP_DEL) e->last_delete = e->last;
    send_request(c, (struct flying){.op = op, .key = key, .number = e->last, .due_ns = due_ns});
}

static void
issue_read(struct connection *c, uint32_t key, uint64_t due_ns)
{
    const struct entry *e = &entries[key];
    send_request(c, (struct flying){.op = OP_GET,
                                    .key = key,
                                    .number = e->acked,
                                    .acked_deleted = e->acked == 0 || e->acked_deleted,
                                    .due_ns = due_ns});
}

static void
count_unsent(uint64_t due_ns)
{
    windows_unsent[window_of(due_ns)]++;
    unsent++;
}

static void
issue(uint64_t due_ns, uint64_t now)
{
    struct connection *c = choose(now);
    if (c == NULL) {
        count_unsent(due_ns);
        return;
    }
    uint32_t draw = (uint32_t)(random_next() % (mix[OP_SET] + mix[OP_GET] + mix[OP_DEL]));
    uint32_t key = (uint32_t)(random_next() % key_count);
    if (draw < mix[OP_GET]) {
        issue_read(c, key, due_ns);
        return;
    }
    for (uint32_t tries = 0; !may_write(&entries[key]); tries++) {
        if (tries == 100) {
            count_unsent(due_ns);
            return;
        }
        key = (key + 1) % key_count;
    }
    issue_write(c, draw < mix[OP_GET] + mix[OP_DEL] ? OP_DEL : OP_SET, key, due_ns);
}

static void
look_after(uint64_t now)
{
    for (uint32_t i = 0; i < node_count; i++) {
        for (uint32_t j = 0; j < connection_count; j++) {
            struct connection *c = nodes[i].connections[j];
            if (c->state == OFF && now >= c->retry_ns) connect_start(c);
            if (c->state == CONNECTING && now >= c->retry_ns) drop(c, "lost");
            if (c->count > 0 && now - c->flying[c->first].due_ns > timeout_ns && !checking)
                drop(c, "silent");
            if (c->dirty && c->state >= GREETING) flush(c);
        }
    }
}

static void
turn(int timeout_ms)
{
    struct epoll_event events[64];
    int n = epoll_wait(epoll_fd, events, 64, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        if (c == NULL || c->state == OFF) continue;
        if (c->state == CONNECTING) {
            connected(c);
            continue;
        }
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
        if (c->state >= GREETING && (events[i].events & EPOLLOUT)) flush(c);
    }
}

static uint32_t
under_way(void)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < node_count; i++)
        for (uint32_t j = 0; j < connection_count; j++)
            count += nodes[i].connections[j]->count;
    return count;
}

static void
settle(void)
{
    while (under_way() > 0) {
        turn(10);
        look_after(now_ns());
    }
}

/* ---- commands ---- */

static void
node_add(const char *text)
{
    if (node_count == NODES_MAX) die("too many nodes");
    struct node *node = &nodes[node_count];
    snprintf(node->name, sizeof(node->name), "%s", text);
    char host[64];
    snprintf(host, sizeof(host), "%s", text);
    char *colon = strrchr(host, ':');
    if (colon == NULL) die("HOST:PORT, not %s", text);
    *colon = '\0';
    node->address.sin_family = AF_INET;
    node->address.sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, host, &node->address.sin_addr) != 1) die("no address: %s", host);
    for (uint32_t i = 0; i < connection_count; i++) {
        struct connection *c = need(calloc(1, sizeof(*c)));
        c->node = node;
        c->fd = -1;
        node->connections[i] = c;
    }
    node_count++;
}

static void
fill(void)
{
    uint64_t before = done[OP_SET], unsure = failed[OP_SET];
    for (uint32_t key = 0; key < key_count;) {
        uint64_t now = now_ns();
        look_after(now);
        struct connection *c;
        while (key < key_count && (c = choose(now)) != NULL && c->count < 16)
            issue_write(c, OP_SET, key++, now);
        look_after(now);
        turn(1);
    }
    settle();
    printf("{\"filled\": %" PRIu64 ", \"failed\": %" PRIu64 "}\n", done[OP_SET] - before,
           failed[OP_SET] - unsure);
}

/* Through connections of the load, which are the level's meanwhile. */
static void
check(const char *level)
{
    settle();
    if (seen == NULL) seen = need(calloc((size_t)key_count * NODES_MAX, sizeof(*seen)));
    memset(seen, 0xff, (size_t)key_count * NODES_MAX * sizeof(*seen));
    uint64_t before = violation_count;
    checking = true;
    check_failed = check_left = 0;
    uint32_t asked = 0;
    for (uint32_t i = 0; i < node_count; i++) {
        struct connection *c = nodes[i].connections[0];
        if (c->state != OPEN) continue;
        asked++;
        send_level(c, level);
        for (uint32_t key = 0; key < key_count && c->state == OPEN; key++) {
            while (c->state == OPEN && c->count >= 64) {
                look_after(now_ns());
                turn(10);
            }
            check_left++;
            issue_read(c, key, now_ns());
        }
        while (c->state == OPEN && c->count > 0) {
            look_after(now_ns());
            turn(10);
        }
        if (c->state == OPEN) send_level(c, "DEFAULT");
        settle();
    }
    checking = false;
    uint64_t different = 0, there = 0;
    for (uint32_t key = 0; key < key_count; key++) {
        uint32_t first = UINT32_MAX;
        bool differs = false;
        for (uint32_t i = 0; i < node_count; i++) {
            uint32_t number = seen[(size_t)key * NODES_MAX + i];
            if (number == UINT32_MAX) continue;
            if (first != UINT32_MAX && number != first) differs = true;
            first = number;
        }
        different += differs;
        there += first != 0 && first != UINT32_MAX;
    }
    printf("{\"level\": \"%s\", \"nodes\": %u, \"different\": %" PRIu64 ", \"there\": %" PRIu64
           ", \"failed\": %" PRIu64 ", \"violations\": %" PRIu64 "}\n",
           level, asked, different, there, check_failed, violation_count - before);
}

static void
keys(const char *path)
{
    FILE *file = fopen(path, "w");
    if (file == NULL) die("%s: %s", path, strerror(errno));
    uint32_t sure = 0, maybe = 0;
    for (uint32_t key = 0; key < key_count; key++) {
        const struct entry *e = &entries[key];
        bool unsure = e->busy;
        for (uint32_t i = 0; i < UNSURE_MAX; i++)
            unsure = unsure || is_live(&e->unsure[i]);
        bool there = e->acked != 0 && !e->acked_deleted;
        if (!there && !unsure) continue;
        fprintf(file, "%c k%u\n", unsure ? '?' : '+', key);
        sure += !unsure;
        maybe += unsure;
    }
    fclose(file);
    printf("{\"sure\": %u, \"maybe\": %u}\n", sure, maybe);
}

static void
report(const char *path)
{
    FILE *file = fopen(path, "w");
    if (file == NULL) die("%s: %s", path, strerror(errno));
    fprintf(file,
            "{\"window_ms\": %u, \"unsent\": %" PRIu64 ", \"violations\": %" PRIu64
            ", \"failures\": %" PRIu64,
            WINDOW_MS, unsent, violation_count, failure_count);
    for (uint32_t op = 0; op < OP_PING; op++)
        fprintf(file, ", \"%s\": [%" PRIu64 ", %" PRIu64 "]", op_names[op], done[op], failed[op]);
    fprintf(file, ",\n\"violation_texts\": [");
    for (uint32_t i = 0; i < violation_count && i < VIOLATIONS_MAX; i++)
        fprintf(file, "%s\"%s\"", i == 0 ? "" : ",\n", violations[i]);
    fprintf(file, "],\n\"nodes\": [");
    for (uint32_t i = 0; i < node_count; i++)
        fprintf(file, "%s{\"name\": \"%s\", \"done\": %" PRIu64 ", \"failed\": %" PRIu64 "}",
                i == 0 ? "" : ", ", nodes[i].name, nodes[i].done, nodes[i].failed);
    fprintf(file, "],\n\"failure_list\": [");
    for (uint64_t i = 0; i < failure_count && i < FAILURES_MAX; i++) {
        const struct failure *f = &failures[i];
        fprintf(file, "%s[%u, %u, \"%s\", \"%s\", %u, %u]", i == 0 ? "" : ",\n", f->ms, f->node,
                op_names[f->op], kinds[f->kind], f->latency_ms, f->key);
    }
    fprintf(file, "],\n\"unsent_windows\": [");
    bool first = true;
    for (uint32_t w = 0; w <= window_last; w++) {
        if (windows_unsent[w] == 0) continue;
        fprintf(file, "%s[%u, %u]", first ? "" : ", ", w, windows_unsent[w]);
        first = false;
    }
    fprintf(file, "],\n\"windows\": [");
    for (uint32_t w = 0; w <= window_last; w++) {
        fprintf(file, "%s[", w == 0 ? "" : ",\n");
        for (uint32_t i = 0; i < node_count; i++) {
            fprintf(file, "%s[", i == 0 ? "" : ", ");
            bool any = false;
            for (uint32_t b = 0; b < BUCKETS; b++) {
                if (windows[w][i][b] == 0) continue;
                fprintf(file, "%s[%u, %u]", any ? ", " : "", b, windows[w][i][b]);
                any = true;
            }
            fputc(']', file);
        }
        fputc(']', file);
    }
    fprintf(file, "]}\n");
    fclose(file);
    printf("{\"violations\": %" PRIu64 ", \"failures\": %" PRIu64 "}\n", violation_count,
           failure_count);
}

static bool loading, ending;
static uint64_t load_ns; /* when the next is due */

static void
command(char *line)
{
    char *word = strtok(line, " \n"), *rest = strtok(NULL, "\n");
    if (word == NULL) return;
    if (strcmp(word, "node") == 0 && rest != NULL) {
        node_add(rest);
        printf("{\"nodes\": %u}\n", node_count);
    } else if (strcmp(word, "start") == 0) {
        loading = true;
        load_ns = now_ns();
        printf("{\"ms\": %" PRIu64 "}\n", (load_ns - begin_ns) / 1000000u);
    } else if (strcmp(word, "stop") == 0) {
        loading = false;
        settle();
        printf("{\"ms\": %" PRIu64 "}\n", (now_ns() - begin_ns) / 1000000u);
    } else if (strcmp(word, "rate") == 0 && rest != NULL) {
        rate = atof(rest);
        printf("{\"rate\": %g}\n", rate);
    } else if (strcmp(word, "time") == 0) {
        printf("{\"ms\": %" PRIu64 "}\n", (now_ns() - begin_ns) / 1000000u);
    } else if (strcmp(word, "fill") == 0) {
        fill();
    } else if (strcmp(word, "check") == 0 && rest != NULL) {
        check(rest);
    } else if (strcmp(word, "keys") == 0 && rest != NULL) {
        keys(rest);
    } else if (strcmp(word, "report") == 0 && rest != NULL) {
        report(rest);
    } else if (strcmp(word, "quit") == 0) {
        ending = true;
    } else {
        die("no command: %s", word);
    }
    fflush(stdout);
}

static void
read_commands(void)
{
    static char input[4096];
    static size_t size;
    ssize_t n = read(STDIN_FILENO, input + size, sizeof(input) - 1 - size);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        ending = true; /* whoever started it is gone */
        return;
    }
    size += (size_t)n;
    char *end;
    while ((end = memchr(input, '\n', size)) != NULL) {
        char line[4096];
        size_t length = (size_t)(end - input);
        memcpy(line, input, length);
        line[length] = '\0';
        size -= length + 1;
        memmove(input, end + 1, size);
        command(line);
    }
}

static void
parse_mix(char *text)
{
    memset(mix, 0, sizeof(mix));
    for (char *part = strtok(text, ","); part != NULL; part = strtok(NULL, ",")) {
        char *colon = strchr(part, ':');
        if (colon == NULL) die("set:N,get:N,del:N");
        *colon = '\0';
        uint32_t op = 0;
        while (op < OP_PING && strcmp(op_names[op], part) != 0)
            op++;
        if (op == OP_PING) die("no such kind of request: %s", part);
        mix[op] = (uint32_t)atoi(colon + 1);
    }
}

int
main(int argc, char **argv)
{
    static const struct option options[] = {
        {"node", required_argument, NULL, 'n'},       {"rate", required_argument, NULL, 'r'},
        {"mix", required_argument, NULL, 'm'},        {"keys", required_argument, NULL, 'k'},
        {"size", required_argument, NULL, 's'},       {"connections", required_argument, NULL, 'c'},
        {"timeout-ms", required_argument, NULL, 't'}, {"late-ms", required_argument, NULL, 'l'},
        {"seed", required_argument, NULL, 'e'},       {NULL, 0, NULL, 0},
    };
    char *names[NODES_MAX];
    uint32_t named = 0;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'n':
            if (named == NODES_MAX) die("too many nodes");
            names[named++] = optarg;
            break;
        case 'r':
            rate = atof(optarg);
            break;
        case 'm':
            parse_mix(optarg);
            break;
        case 'k':
            key_count = (uint32_t)atoi(optarg);
            break;
        case 's':
            value_bytes = (uint32_t)atoi(optarg);
            break;
        case 'c':
            connection_count = (uint32_t)atoi(optarg);
            break;
        case 't':
            timeout_ns = (uint64_t)atoi(optarg) * 1000000u;
            break;
        case 'l':
            late_ns = (uint64_t)atoi(optarg) * 1000000u;
            break;
        case 'e':
            random_state ^= (uint64_t)atoi(optarg) * 0x9e3779b97f4a7c15u;
            break;
        default:
            return 2;
        }
    }
    if (key_count == 0 || value_bytes < 32 || rate <= 0 || connection_count == 0 ||
        connection_count > CONNECTIONS_MAX)
        die("out of range");
    entries = need(calloc(key_count, sizeof(*entries)));
    windows = need(calloc(WINDOWS_MAX, sizeof(*windows)));
    windows_unsent = need(calloc(WINDOWS_MAX, sizeof(*windows_unsent)));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    begin_ns = now_ns();
    for (uint32_t i = 0; i < named; i++)
        node_add(names[i]);
    if (fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK) != 0) die("stdin: %s", strerror(errno));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event) != 0) die("stdin is no pipe");
    uint64_t commands_ns = 0;
    while (!ending) {
        uint64_t now = now_ns();
        while (loading && load_ns <= now) {
            issue(load_ns, now);
            load_ns += (uint64_t)(1e9 / rate);
        }
        look_after(now);
        turn(loading ? 1 : 10);
        if (now - commands_ns > 5000000u) {
            read_commands();
            commands_ns = now;
        }
    }
    return 0;
}
