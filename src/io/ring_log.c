/* SPDX-License-Identifier: MIT
 *
 * ring_log.c -- the operator's log of the real program.
 *
 * Shards and host threads put messages into a bounded queue of fixed slots (D. Vyukov's: every slot
 * has a sequence number that says whose turn it is); one writer thread formats and prints. A full
 * queue drops the message and counts it, and the writer says how many are missing. Nobody waits, but
 * ring_log_stop for a while.
 *
 *   slot.sequence == position             free, for the producer that takes position
 *   slot.sequence == position + 1         filled, for the writer
 *   slot.sequence == position + SLOTS     free again, for the next round
 */
#include "io/ring_log.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/fault.h"

#define LOG_SLOTS      1024u
#define LOG_LINE_BYTES 4096u /* a message in which every byte is escaped, and its frame */

/* So long who stops waits for whoever reads stderr, and looks so often whether all is written. */
#define LOG_STOP_NS      (2 * NS_PER_S)
#define LOG_STOP_LOOK_NS (1 * NS_PER_MS)

static_assert(LOG_LINE_BYTES > LOG_MESSAGE_BYTES * 6 + 256, "an escaped byte takes six");

struct log_slot {
    _Atomic u64 sequence;
    u64 time_ms;
    const char *module; /* static */
    enum log_level level;
    char message[LOG_MESSAGE_BYTES];
};

static struct {
    struct log_slot slots[LOG_SLOTS];
    ALIGNED(64) _Atomic u64 tail; /* producers */
    ALIGNED(64) u64 head;         /* the writer */
    _Atomic u64 dropped;
    u64 dropped_told;
    _Atomic bool running;
    _Atomic bool stopping;
    _Atomic bool unread; /* the writer was left where it stands: stderr takes nothing */
    _Atomic u32 sleeping;
    _Atomic int level;
    enum ring_log_format format;
    sem_t wake;
    pthread_t thread;
} logger = {.level = LOG_LEVEL_INFO, .format = RING_LOG_HUMAN};

static const char *const level_names[] = {"error", "warning", "info", "debug"};
static const int level_priorities[] = {3, 4, 6, 7}; /* of syslog */

/* ---- formatting ---- */

struct line {
    char *data;
    size_t size;
    size_t used;
};

static void
line_char(struct line *line, char c)
{
    if (line->used + 1 < line->size) line->data[line->used++] = c;
}

static void
line_text(struct line *line, const char *text)
{
    while (*text != '\0')
        line_char(line, *text++);
}

/* A control character could forge a line or move the cursor of a terminal. Bytes from 0x80 on are
 * text in some encoding; JSON gets them as Latin-1, so that its readers never see broken UTF-8. */
static void
line_escaped(struct line *line, const char *text, size_t size, bool quotes, bool json)
{
    for (size_t i = 0; i < size; i++) {
        u8 c = (u8)text[i];
        if (quotes && (c == '"' || c == '\\')) {
            line_char(line, '\\');
            line_char(line, (char)c);
        } else if (c < 0x20 || c == 0x7f || (json && c >= 0x80)) {
            char code[8];
            snprintf(code, sizeof(code), json ? "\\u%04x" : "\\x%02x", c);
            line_text(line, code);
        } else {
            line_char(line, (char)c);
        }
    }
}

static bool
is_key_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

/* The length of "key" when text begins with "key=", else 0. */
static size_t
key_length(const char *text)
{
    size_t length = 0;
    while (is_key_char(text[length]))
        length++;
    return text[length] == '=' ? length : 0;
}

/* Where the next " key=" begins (its blank), or the end. */
static const char *
next_pair(const char *text)
{
    for (; *text != '\0'; text++)
        if (*text == ' ' && key_length(text + 1) > 0) break;
    return text;
}

static void
line_time(struct line *line, u64 time_ms, char separator)
{
    time_t seconds = (time_t)(time_ms / 1000);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    char text[64];
    snprintf(text, sizeof(text), "%04d-%02d-%02d%c%02d:%02d:%02d.%03u", tm.tm_year + 1900,
             tm.tm_mon + 1, tm.tm_mday, separator, tm.tm_hour, tm.tm_min, tm.tm_sec,
             (unsigned)(time_ms % 1000));
    line_text(line, text);
    if (separator == 'T') line_char(line, 'Z');
}

static bool
needs_quotes(const char *text, size_t size)
{
    if (size == 0) return true;
    for (size_t i = 0; i < size; i++)
        if (text[i] == ' ' || text[i] == '"' || text[i] == '=' || (u8)text[i] < 0x20) return true;
    return false;
}

static void
line_pair_logfmt(struct line *line, const char *key, size_t key_size, const char *value,
                 size_t value_size)
{
    line_char(line, ' ');
    line_escaped(line, key, key_size, false, false);
    line_char(line, '=');
    bool quotes = needs_quotes(value, value_size);
    if (quotes) line_char(line, '"');
    line_escaped(line, value, value_size, true, false);
    if (quotes) line_char(line, '"');
}

static void
line_pair_json(struct line *line, const char *key, size_t key_size, const char *value,
               size_t value_size)
{
    line_text(line, ",\"");
    line_escaped(line, key, key_size, true, true);
    line_text(line, "\":\"");
    line_escaped(line, value, value_size, true, true);
    line_char(line, '"');
}

static void
line_pairs(struct line *line, const char *message, bool json)
{
    void (*pair)(struct line *, const char *, size_t, const char *, size_t) =
        json ? line_pair_json : line_pair_logfmt;
    const char *end = key_length(message) > 0 ? message : next_pair(message);
    pair(line, "msg", 3, message, (size_t)(end - message));
    while (*end != '\0') {
        const char *key = *end == ' ' ? end + 1 : end;
        size_t key_size = key_length(key);
        const char *value = key + key_size + 1;
        end = next_pair(value);
        size_t value_size = (size_t)(end - value);
        /* Quoted for people: these forms have quotes of their own. */
        if (value_size >= 2 && value[0] == '"' && value[value_size - 1] == '"') {
            value++;
            value_size -= 2;
        }
        pair(line, key, key_size, value, value_size);
    }
}

size_t
ring_log_format_line(char *data, size_t size, enum ring_log_format format, u64 time_ms,
                     enum log_level level, const char *module, const char *message)
{
    CHECK(size > 0);
    struct line line = {.data = data, .size = size};
    switch (format) {
    case RING_LOG_JOURNAL:
        line_char(&line, '<');
        line_char(&line, (char)('0' + level_priorities[level]));
        line_char(&line, '>');
        line_text(&line, module);
        line_text(&line, ": ");
        line_escaped(&line, message, strlen(message), false, false);
        break;
    case RING_LOG_JSON:
        line_text(&line, "{\"time\":\"");
        line_time(&line, time_ms, 'T');
        line_text(&line, "\",\"level\":\"");
        line_text(&line, level_names[level]);
        line_text(&line, "\",\"module\":\"");
        line_text(&line, module);
        line_char(&line, '"');
        line_pairs(&line, message, true);
        line_char(&line, '}');
        break;
    case RING_LOG_LOGFMT:
        line_text(&line, "time=");
        line_time(&line, time_ms, 'T');
        line_text(&line, " level=");
        line_text(&line, level_names[level]);
        line_text(&line, " module=");
        line_text(&line, module);
        line_pairs(&line, message, false);
        break;
    case RING_LOG_AUTO:
    case RING_LOG_HUMAN:
        line_time(&line, time_ms, ' ');
        line_char(&line, ' ');
        line_text(&line, level_names[level]);
        line_char(&line, ' ');
        line_text(&line, module);
        line_text(&line, ": ");
        line_escaped(&line, message, strlen(message), false, false);
        break;
    }
    data[line.used] = '\0';
    return line.used;
}

/* ---- printing ---- */

static u64
wall_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (u64)now.tv_sec * 1000 + (u64)now.tv_nsec / NS_PER_MS;
}

static u64
monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * NS_PER_S + (u64)now.tv_nsec;
}

static void
write_all(const char *data, size_t size)
{
    while (size > 0) {
        ssize_t wrote = write(STDERR_FILENO, data, size);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) { /* nobody reads it; there is nowhere else to say so */
            MARK("io.ring_log.not_written");
            return;
        }
        data += wrote;
        size -= (size_t)wrote;
    }
}

static void
print_line(u64 time_ms, enum log_level level, const char *module, const char *message)
{
    /* Off the stack: fibers print directly only before the start and after the stop. */
    static __thread char line[LOG_LINE_BYTES];
    size_t size = ring_log_format_line(line, sizeof(line) - 1, logger.format, time_ms, level,
                                       module, message);
    line[size++] = '\n';
    write_all(line, size);
}

/* ---- the queue ---- */

/* A slot to fill, or NULL when all are. */
static struct log_slot *
slot_take(u64 *position_out)
{
    u64 position = atomic_load_explicit(&logger.tail, memory_order_relaxed);
    for (;;) {
        struct log_slot *slot = &logger.slots[position % LOG_SLOTS];
        u64 sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
        if (sequence == position) {
            if (atomic_compare_exchange_weak_explicit(&logger.tail, &position, position + 1,
                                                      memory_order_relaxed, memory_order_relaxed)) {
                *position_out = position;
                return slot;
            }
        } else if (sequence < position) {
            return NULL;
        } else {
            position = atomic_load_explicit(&logger.tail, memory_order_relaxed);
        }
    }
}

static bool
queue_print_one(void)
{
    struct log_slot *slot = &logger.slots[logger.head % LOG_SLOTS];
    if (atomic_load_explicit(&slot->sequence, memory_order_acquire) != logger.head + 1)
        return false;
    print_line(slot->time_ms, slot->level, slot->module, slot->message);
    atomic_store_explicit(&slot->sequence, logger.head + LOG_SLOTS, memory_order_release);
    logger.head++;
    return true;
}

static void
queue_print_dropped(void)
{
    u64 dropped = atomic_load_explicit(&logger.dropped, memory_order_relaxed);
    if (dropped == logger.dropped_told) return;
    char message[64];
    snprintf(message, sizeof(message), "messages dropped count=%llu",
             (unsigned long long)(dropped - logger.dropped_told));
    logger.dropped_told = dropped;
    print_line(wall_ms(), LOG_LEVEL_WARNING, "log", message);
}

static void
queue_drain(void)
{
    while (queue_print_one())
        continue;
    queue_print_dropped();
}

static void *
writer_thread(void *arg)
{
    pthread_setname_np(pthread_self(), "log");
    while (!atomic_load(&logger.stopping)) {
        queue_drain();
        atomic_store(&logger.sleeping, 1);
        /* Again, now that producers see the flag (sequentially consistent on both sides). */
        if (queue_print_one() || atomic_load(&logger.stopping)) {
            atomic_store(&logger.sleeping, 0);
            continue;
        }
        while (sem_wait(&logger.wake) != 0 && errno == EINTR)
            continue;
    }
    queue_drain();
    return NULL;
}

static void
writer_wake(void)
{
    if (atomic_load(&logger.sleeping) != 0 && atomic_exchange(&logger.sleeping, 0) != 0)
        sem_post(&logger.wake);
}

/* ---- base/log.h ---- */

bool
log_enabled(enum log_level level)
{
    return (int)level <= atomic_load_explicit(&logger.level, memory_order_relaxed);
}

void
log_emit(enum log_level level, const char *module, const char *format, ...)
{
    if (!log_enabled(level) || atomic_load(&logger.unread)) return;
    va_list arguments;
    va_start(arguments, format);
    if (!atomic_load_explicit(&logger.running, memory_order_acquire)) {
        static __thread char message[LOG_MESSAGE_BYTES];
        vsnprintf(message, sizeof(message), format, arguments);
        print_line(wall_ms(), level, module, message);
        va_end(arguments);
        return;
    }
    u64 position;
    struct log_slot *slot = slot_take(&position);
    if (slot == NULL) {
        MARK("io.ring_log.dropped");
        atomic_fetch_add_explicit(&logger.dropped, 1, memory_order_relaxed);
        va_end(arguments);
        return;
    }
    slot->time_ms = wall_ms();
    slot->level = level;
    slot->module = module;
    vsnprintf(slot->message, sizeof(slot->message), format, arguments);
    va_end(arguments);
    atomic_store(&slot->sequence, position + 1);
    writer_wake();
}

/* ---- control ---- */

static enum ring_log_format
format_resolve(enum ring_log_format format)
{
    if (format != RING_LOG_AUTO) return format;
    if (isatty(STDERR_FILENO)) return RING_LOG_HUMAN;
    return getenv("JOURNAL_STREAM") != NULL ? RING_LOG_JOURNAL : RING_LOG_LOGFMT;
}

status
ring_log_start(enum ring_log_format format, enum log_level level)
{
    CHECK(!atomic_load(&logger.running));
    logger.format = format_resolve(format);
    atomic_store(&logger.level, (int)level);
    for (u32 i = 0; i < LOG_SLOTS; i++)
        atomic_store(&logger.slots[i].sequence, i);
    atomic_store(&logger.tail, 0);
    logger.head = 0;
    atomic_store(&logger.stopping, false);
    atomic_store(&logger.sleeping, 0);
    if (sem_init(&logger.wake, 0, 0) != 0) return MARKED("io.ring_log.no_semaphore", ST_NO_MEMORY);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&logger.thread, NULL, writer_thread, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error != 0) {
        sem_destroy(&logger.wake);
        return MARKED("io.ring_log.no_thread", ST_OVERLOADED);
    }
    atomic_store_explicit(&logger.running, true, memory_order_release);
    return ST_OK;
}

void
ring_log_stop(void)
{
    if (!atomic_load(&logger.running)) return;
    atomic_store(&logger.running, false);
    atomic_store(&logger.stopping, true);
    sem_post(&logger.wake);
    u64 began_ns = monotonic_ns();
    while (pthread_tryjoin_np(logger.thread, NULL) != 0) {
        if (monotonic_ns() - began_ns > LOG_STOP_NS) {
            MARK("io.ring_log.not_joined");
            atomic_store(&logger.unread, true);
            pthread_detach(logger.thread); /* it uses what is static, and ends with the process */
            return;
        }
        nanosleep(&(struct timespec){.tv_nsec = LOG_STOP_LOOK_NS}, NULL);
    }
    sem_destroy(&logger.wake);
}

void
ring_log_level_set(enum log_level level)
{
    atomic_store(&logger.level, (int)level);
}

u64
ring_log_dropped(void)
{
    return atomic_load(&logger.dropped);
}
