/* SPDX-License-Identifier: MIT
 *
 * cli_import.c -- distkv-client import: records from JSON lines or TSV, hundreds under way at the
 * same time.
 *
 * A line that cannot be read, or whose write the server refuses, is reported by its number (the
 * first twenty of them) and counted; the import goes on. It stops when no server can be reached or
 * when the server takes no more writes, because then every line would fail.
 *
 * Lines may come slowly, or stop coming, and each write has its deadline from when it was started: so
 * nothing is read that may not be there yet while writes wait to be sent or answers to be read
 * (source_fill).
 *
 * Two lines of one key that are under way together would race. The later one waits until the
 * earlier has ended: the last line wins, as in the file.
 *
 * Progress goes to stderr when that is a terminal, and not with --quiet: a bar when the size of the
 * input is known, else (a pipe) records, bytes and their rate (report).
 */
#include "client/cli.h"

#include "base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A value of 1 MiB in which each byte is written \u00XX, its key, and room for the names. */
#define IMPORT_LINE_MAX     (8u << 20)
#define IMPORT_FAILURES_MAX 20u
#define IMPORT_READ_BYTES   (64u << 10)
#define IMPORT_REPORT_NS    (100 * NS_PER_MS)
/* Counts of keys under way by hash; a collision costs a needless wait. */
#define IMPORT_BUSY_BITS 14u

struct import {
    struct cli *cli;
    int fd;
    u8 *read; /* what was read of it, IMPORT_READ_BYTES */
    size_t read_at, read_end;
    bool ended; /* nothing more is to be read */
    const char *name;
    u64 file_bytes; /* 0: unknown */
    bool tsv;
    struct record *idle; /* free list */
    u16 busy[1u << IMPORT_BUSY_BITS];
    u64 lines, bytes, done, skipped, failed;
    bool stopped;     /* going on makes no sense */
    bool unreachable; /* stopped for want of a server */
    bool progress;
    u64 start_ns, report_ns;
};

/* One line under way. */
struct record {
    struct import *import;
    struct record *next;
    u64 line;
    u32 busy_index;
};

/* What a line says. The pointers live until the next line. */
struct parsed {
    const void *key;
    size_t key_size;
    const void *value;
    size_t value_size;
    struct distkv_write write;
};

static void
line_failed(struct import *import, u64 line, const char *why)
{
    import->failed++;
    if (import->failed > IMPORT_FAILURES_MAX + 1) return;
    if (import->progress) fputs("\r\033[K", stderr);
    if (import->failed <= IMPORT_FAILURES_MAX)
        cli_error(import->cli, "%s line %" PRIu64 ": %s", import->name, line, why);
    else
        cli_warn(import->cli, "further lines that fail are counted only");
}

static void report(struct import *import);

/* ---- reading lines ---- */

/* Returns once the source has something to read, or its end; the writes under way go on meanwhile.
 * False: the import has stopped, and nothing is to be waited for. */
static bool
source_wait(struct import *import)
{
    distkv *kv = import->cli->kv;
    /* A file is always ready, and poll is for the others. */
    struct pollfd polls[2] = {{.fd = import->fd, .events = POLLIN}, {.fd = -1, .events = POLLIN}};
    for (;;) {
        if (kv != NULL) {
            distkv_flush(kv);
            polls[1].fd = distkv_fd(kv);
        }
        int count = poll(polls, 2, import->progress ? (int)(IMPORT_REPORT_NS / NS_PER_MS) : -1);
        if (count < 0 && errno != EINTR) return true; /* the read says why, or waits */
        if (count > 0 && polls[1].revents != 0) distkv_process(kv, 0);
        if (import->stopped) return false;
        if (count > 0 && polls[0].revents != 0) return true;
        report(import);
    }
}

/* 1: there are bytes, 0: the end, -1: cannot be read. */
static int
source_fill(struct import *import)
{
    while (!import->ended) {
        if (!source_wait(import)) return 0;
        ssize_t got = read(import->fd, import->read, IMPORT_READ_BYTES);
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        import->read_at = 0;
        import->read_end = got > 0 ? (size_t)got : 0;
        import->ended = got <= 0;
        return got > 0 ? 1 : (int)got;
    }
    return 0;
}

static bool
line_reserve(char **buffer, size_t *capacity, size_t size)
{
    if (size < *capacity) return true;
    size_t larger = MAX(*capacity, 4096u);
    while (larger <= size)
        larger *= 2;
    char *grown = realloc(*buffer, larger);
    if (grown == NULL) return false;
    *buffer = grown;
    *capacity = larger;
    return true;
}

/* The next line without its end, in a buffer of the reader's. 1: a line, 0: the end, -1: cannot
 * be read, -2: over the limit (and passed over). */
static int
read_line(struct import *import, char **buffer, size_t *capacity, size_t *size_out)
{
    size_t size = 0;
    bool over = false, begun = false, ended = false;
    while (!ended) {
        if (import->read_at == import->read_end) {
            int got = source_fill(import);
            if (got < 0) return -1;
            if (got == 0) break;
        }
        const u8 *from = import->read + import->read_at;
        size_t there = import->read_end - import->read_at;
        const u8 *newline = memchr(from, '\n', there);
        size_t part = newline != NULL ? (size_t)(newline - from) : there;
        size_t taken = part + (newline != NULL);
        import->read_at += taken;
        import->bytes += taken;
        begun = true;
        ended = newline != NULL;
        over = over || size + part > IMPORT_LINE_MAX;
        if (over) continue;
        if (!line_reserve(buffer, capacity, size + part)) {
            errno = ENOMEM;
            return -1;
        }
        memcpy(*buffer + size, from, part);
        size += part;
        (*buffer)[size] = '\0';
    }
    if (!begun || import->stopped) return 0;
    import->lines++;
    *size_out = size;
    return over ? -2 : 1;
}

/* ---- TSV ---- */

static bool
parse_tsv(char *line, size_t size, struct parsed *out, const char **why)
{
    if (size > 0 && line[size - 1] == '\r') line[--size] = '\0';
    char *tab = memchr(line, '\t', size);
    if (tab == NULL) {
        *why = "no tab between key and value";
        return false;
    }
    char *value = tab + 1;
    size_t key_size = (size_t)(tab - line);
    size_t value_size = size - key_size - 1;
    char *second = memchr(value, '\t', value_size);
    if (second != NULL) {
        value_size = (size_t)(second - value);
        u64 at;
        if (!option_parse_number(second + 1, &at)) {
            *why = "the third column is not a Unix time in milliseconds";
            return false;
        }
        if (at != 0) {
            out->write.expiry = DISTKV_EXPIRE_AT;
            out->write.expiry_ms = at;
        }
    }
    if (!text_unescape(line, &key_size) || !text_unescape(value, &value_size)) {
        *why = "a backslash that begins none of \\t \\n \\r \\\\ \\xHH";
        return false;
    }
    out->key = line;
    out->key_size = key_size;
    out->value = value;
    out->value_size = value_size;
    return true;
}

/* ---- JSON ---- */

/* "name" or "name_b64" of object; decoded base64 goes to *owned. */
static bool
json_bytes(const json_t *object, const char *name, const char *name_b64, const void **data,
           size_t *size, void **owned)
{
    const json_t *plain = json_object_get(object, name);
    const json_t *coded = json_object_get(object, name_b64);
    if ((plain == NULL) == (coded == NULL)) return false;
    if (plain != NULL) {
        if (!json_is_string(plain)) return false;
        *data = json_string_value(plain);
        *size = json_string_length(plain);
        return true;
    }
    if (!json_is_string(coded)) return false;
    *owned = malloc(json_string_length(coded) / 4 * 3 + 3);
    *data = *owned;
    return *owned != NULL &&
           text_read_base64(json_string_value(coded), json_string_length(coded), *owned, size);
}

static bool
json_expiry(const json_t *object, struct distkv_write *write, const char **why)
{
    const json_t *ttl = json_object_get(object, "ttl_ms");
    const json_t *at = json_object_get(object, "expire_ms");
    const json_t *given = at != NULL ? at : ttl;
    if (given == NULL || json_is_null(given)) return true;
    *why = "ttl_ms or expire_ms is not a whole number above 0, or both are given";
    if ((ttl != NULL && at != NULL) || !json_is_integer(given) || json_integer_value(given) <= 0)
        return false;
    write->expiry = at != NULL ? DISTKV_EXPIRE_AT : DISTKV_EXPIRE_AFTER;
    write->expiry_ms = (u64)json_integer_value(given);
    return true;
}

/* *object and owned[] are to be freed once the record is sent. */
static bool
parse_json(const char *line, size_t size, struct parsed *out, json_t **object, void *owned[2],
           char *why_buffer, size_t why_size, const char **why)
{
    json_error_t error;
    *object = json_loadb(line, size, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(*object)) {
        snprintf(why_buffer, why_size, "not a JSON object: %.120s",
                 *object == NULL ? error.text : "another value");
        *why = why_buffer;
        return false;
    }
    const char *name;
    json_t *value;
    json_object_foreach(*object, name, value)
    {
        static const char *const known[] = {"key",       "key_b64", "value",  "value_b64",
                                            "expire_ms", "ttl_ms",  "version"};
        bool found = false;
        for (size_t i = 0; i < ARRAY_COUNT(known); i++)
            found = found || strcmp(name, known[i]) == 0;
        if (found) continue;
        snprintf(why_buffer, why_size, "unknown field \"%.40s\"", name);
        *why = why_buffer;
        return false;
    }
    *why = "needs one string of key and key_b64 (base64)";
    if (!json_bytes(*object, "key", "key_b64", &out->key, &out->key_size, &owned[0])) return false;
    *why = "needs one string of value and value_b64 (base64)";
    if (!json_bytes(*object, "value", "value_b64", &out->value, &out->value_size, &owned[1]))
        return false;
    return json_expiry(*object, &out->write, why);
}

/* ---- sending ---- */

static void
record_done(void *arg, const struct distkv_result *result)
{
    struct record *record = arg;
    struct import *import = record->import;
    import->busy[record->busy_index]--;
    switch (result->code) {
    case DISTKV_OK:
        import->done++;
        break;
    case DISTKV_CONFLICT:
        import->skipped++; /* if-absent is the only condition */
        break;
    case DISTKV_UNREACHABLE:
    case DISTKV_READ_ONLY:
    case DISTKV_NO_SPACE:
    case DISTKV_FULL:
        import->stopped = true;
        import->unreachable |= result->code == DISTKV_UNREACHABLE;
        line_failed(import, record->line, result->error);
        break;
    default:
        line_failed(import, record->line, result->error);
    }
    record->next = import->idle;
    import->idle = record;
}

static void
record_start(struct import *import, const struct parsed *parsed)
{
    distkv *kv = import->cli->kv;
    u32 busy_index = (u32)(hash_bytes(parsed->key, parsed->key_size, 0) >> (64 - IMPORT_BUSY_BITS));
    while (import->idle == NULL || import->busy[busy_index] > 0)
        distkv_process(kv, -1);
    struct record *record = import->idle;
    int code;
    /* Large values fill the handle's memory before the number in flight is reached: then wait. */
    while ((code = distkv_put_async(kv, parsed->key, parsed->key_size, parsed->value,
                                    parsed->value_size, &parsed->write, record_done, record)) ==
               DISTKV_NO_MEMORY &&
           distkv_pending(kv) > 0)
        distkv_process(kv, -1);
    if (code != DISTKV_OK) {
        line_failed(import, import->lines, distkv_error(kv));
        return;
    }
    import->idle = record->next;
    record->line = import->lines;
    record->busy_index = busy_index;
    import->busy[busy_index]++;
}

static void
import_line(struct import *import, char *line, size_t size)
{
    struct parsed parsed = {0};
    json_t *object = NULL;
    void *owned[2] = {NULL, NULL};
    char why_buffer[200];
    const char *why = "malformed";
    if (import->cli->set.if_absent) parsed.write.condition = DISTKV_IF_ABSENT;
    bool fine = import->tsv ? parse_tsv(line, size, &parsed, &why)
                            : parse_json(line, size, &parsed, &object, owned, why_buffer,
                                         sizeof(why_buffer), &why);
    if (fine)
        record_start(import, &parsed);
    else
        line_failed(import, import->lines, why);
    json_decref(object);
    free(owned[0]);
    free(owned[1]);
}

/* ---- progress ---- */

static void
report(struct import *import)
{
    u64 now = cli_now_ns();
    if (!import->progress || now - import->report_ns < IMPORT_REPORT_NS) return;
    import->report_ns = now;
    double seconds = (double)(now - import->start_ns) / 1e9;
    double rate = (double)import->done / seconds;
    if (import->file_bytes > 0) {
        u32 filled = (u32)(MIN(import->bytes, import->file_bytes) * 30 / import->file_bytes);
        fprintf(stderr, "\r[%.*s%*s] %3u%%  %" PRIu64 " records, %.0f/s\033[K", (int)filled,
                "##############################", (int)(30 - filled), "",
                (unsigned)(MIN(import->bytes, import->file_bytes) * 100 / import->file_bytes),
                import->done, rate);
    } else {
        fprintf(stderr, "\r%" PRIu64 " records, %.1f MB, %.0f/s\033[K", import->done,
                (double)import->bytes / 1e6, rate);
    }
}

static void
summary(const struct import *import)
{
    double seconds = MAX((double)(cli_now_ns() - import->start_ns) / 1e9, 1e-9);
    if (import->cli->set.json)
        printf("{\"imported\":%" PRIu64 ",\"skipped\":%" PRIu64 ",\"failed\":%" PRIu64
               ",\"bytes\":%" PRIu64 ",\"seconds\":%.3f,\"per_second\":%.0f}\n",
               import->done, import->skipped, import->failed, import->bytes, seconds,
               (double)import->done / seconds);
    else if (!import->cli->set.quiet)
        fprintf(stderr,
                "imported %" PRIu64 " records, %" PRIu64 " skipped, %" PRIu64
                " failed, in %.2f s: %.0f records/s, %.1f MB/s\n",
                import->done, import->skipped, import->failed, seconds,
                (double)import->done / seconds, (double)import->bytes / 1e6 / seconds);
}

/* ---- the whole ---- */

static int
import_open(struct import *import, int count, char **words)
{
    import->name = count == 1 ? words[0] : "-";
    bool given = strcmp(import->name, "-") == 0;
    if (given) import->name = "standard input";
    import->fd = given ? STDIN_FILENO : open(words[0], O_RDONLY | O_CLOEXEC);
    struct stat st = {0};
    if (import->fd < 0 || fstat(import->fd, &st) != 0) {
        cli_error(import->cli, "%s: %s", import->name, strerror(errno));
        return EXIT_USAGE;
    }
    if (S_ISDIR(st.st_mode)) {
        cli_error(import->cli, "%s: %s", import->name, strerror(EISDIR));
        return EXIT_USAGE;
    }
    if (S_ISREG(st.st_mode)) import->file_bytes = (u64)st.st_size;
    int got = source_fill(import);
    if (got < 0) {
        cli_error(import->cli, "%s: %s", import->name, strerror(errno));
        return EXIT_SERVER;
    }
    import->tsv = import->cli->set.format == FORMAT_TSV ||
                  (import->cli->set.format == FORMAT_AUTO && (got == 0 || import->read[0] != '{'));
    return EXIT_OK;
}

static int
import_run(struct import *import)
{
    char *buffer = NULL;
    size_t capacity = 0, size = 0;
    int got = 0;
    while (!import->stopped && (got = read_line(import, &buffer, &capacity, &size)) != 0) {
        if (got == -1) {
            cli_error(import->cli, "%s: %s", import->name, strerror(errno));
            break;
        }
        if (got == -2)
            line_failed(import, import->lines, "longer than 8 MiB");
        else if (size > 0 && !(size == 1 && buffer[0] == '\r'))
            import_line(import, buffer, size);
        if (import->lines % 64 == 0) report(import);
    }
    free(buffer);
    while (distkv_pending(import->cli->kv) > 0) {
        distkv_process(import->cli->kv, 100);
        report(import);
    }
    if (import->progress) fputs("\r\033[K", stderr);
    summary(import);
    if (import->stopped) cli_error(import->cli, "stopped before the end: %s", "see above");
    if (import->unreachable) return EXIT_CONNECT;
    return got == -1 || import->failed > 0 || import->stopped ? EXIT_SERVER : EXIT_OK;
}

int
cmd_import(struct cli *cli, int count, char **words)
{
    struct import *import = calloc(1, sizeof(*import));
    struct record *records = calloc(cli->set.in_flight, sizeof(*records));
    int exit_code = EXIT_SERVER;
    if (import != NULL) import->fd = -1;
    if (import != NULL) import->read = malloc(IMPORT_READ_BYTES);
    if (import == NULL || import->read == NULL || records == NULL) {
        cli_fail(cli, DISTKV_NO_MEMORY, "import");
    } else {
        import->cli = cli;
        exit_code = import_open(import, count, words);
    }
    if (exit_code == EXIT_OK) exit_code = cli_connect(cli);
    if (exit_code == EXIT_OK) {
        for (u64 i = 0; i < cli->set.in_flight; i++) {
            records[i] = (struct record){.import = import, .next = import->idle};
            import->idle = &records[i];
        }
        import->progress = isatty(STDERR_FILENO) && !cli->set.quiet;
        import->start_ns = cli_now_ns();
        exit_code = import_run(import);
    }
    if (import != NULL && import->fd > STDIN_FILENO) close(import->fd);
    if (import != NULL) free(import->read);
    free(records);
    free(import);
    return cli_finish_output(cli, exit_code);
}
