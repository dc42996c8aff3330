/* SPDX-License-Identifier: MIT
 *
 * cli_commands.c -- the plain commands of distkv-client.
 */
#include "client/cli.h"

#include "base/histogram.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH_WORDS_MAX 8
#define BATCH_LINE_MAX  (4u << 20)

/* A word of the command line as bytes. false: a bad escape, after a message. */
static bool
word_bytes(struct cli *cli, char *word, size_t *size)
{
    *size = strlen(word);
    if (!cli->set.escapes || text_unescape(word, size)) return true;
    cli_error(cli, "a backslash that begins none of \\t \\n \\r \\\\ \\\" \\' \\xHH");
    return false;
}

/* What is shown to people: exactly the bytes when they go to a file or a pipe, and escaped where a
 * terminal would act on them. */
static void
write_value(const struct cli *cli, const void *data, size_t size)
{
    if (cli->prompt || isatty(STDOUT_FILENO)) {
        text_write_escaped(stdout, data, size);
        putchar('\n');
    } else {
        fwrite(data, 1, size, stdout);
    }
}

static int
write_options(struct cli *cli, struct distkv_write *write)
{
    const struct cli_settings *set = &cli->set;
    if ((set->if_absent != 0) + (set->if_present != 0) + (set->if_version != 0) > 1)
        return cli_usage(cli, "only one of if-absent, if-present and if-version can be given");
    *write = (struct distkv_write){0};
    if (set->if_absent) write->condition = DISTKV_IF_ABSENT;
    if (set->if_present) write->condition = DISTKV_IF_PRESENT;
    if (set->if_version != 0) {
        write->condition = DISTKV_IF_VERSION;
        write->version = set->if_version;
    }
    if (set->ttl_ms != 0) {
        write->expiry = DISTKV_EXPIRE_AFTER;
        write->expiry_ms = set->ttl_ms;
    }
    return EXIT_OK;
}

/* ---- siblings ---- */

#define CONTEXT_BYTES_MAX 8192u

static int
hex_digit(int c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The text behind --context, or the first line of the file that it names: what get --siblings
 * printed, or the context of it. NULL: after a message. */
static char *
context_text(struct cli *cli)
{
    if (cli->set.context[0] != '@') return strdup(cli->set.context);
    FILE *file = fopen(cli->set.context + 1, "re");
    char *text = calloc(1, 2 * CONTEXT_BYTES_MAX + 2);
    size_t size = 0;
    if (file != NULL && text != NULL) size = fread(text, 1, 2 * CONTEXT_BYTES_MAX + 1, file);
    if (file != NULL) fclose(file);
    if (file == NULL) cli_error(cli, "cannot read %s", cli->set.context + 1);
    if (file == NULL) {
        free(text);
        return NULL;
    }
    if (text == NULL) return NULL;
    text[size] = 0;
    text[strcspn(text, "\r\n")] = 0;
    return text;
}

/* Into *out, which is to be freed; NULL when none was given. */
static int
context_read(struct cli *cli, u8 **out, size_t *size_out)
{
    *out = NULL;
    *size_out = 0;
    if (cli->set.context[0] == 0) return EXIT_OK;
    char *text = context_text(cli);
    if (text == NULL) return EXIT_USAGE;
    size_t size = strlen(text);
    u8 *bytes = malloc(size / 2 + 1);
    bool good = bytes != NULL && size % 2 == 0 && size <= 2 * CONTEXT_BYTES_MAX;
    for (size_t i = 0; good && i < size; i += 2) {
        int high = hex_digit(text[i]), low = hex_digit(text[i + 1]);
        good = high >= 0 && low >= 0;
        if (good) bytes[i / 2] = (u8)(high << 4 | low);
    }
    free(text);
    if (!good) {
        free(bytes);
        return cli_usage(cli, "the context is not one that get --siblings gave");
    }
    *out = bytes;
    *size_out = size / 2;
    return EXIT_OK;
}

static void
context_write(const struct distkv_siblings *siblings)
{
    const u8 *bytes = siblings->context;
    for (size_t i = 0; i < siblings->context_size; i++)
        printf("%02x", bytes[i]);
}

/* The context in the first line, then a value in each. */
static int
get_siblings(struct cli *cli, const char *key, size_t key_size)
{
    struct distkv_siblings siblings;
    int code = distkv_get_siblings(cli->kv, key, key_size, &siblings);
    if (code != DISTKV_OK) return cli_fail(cli, code, "get");
    if (cli->set.json) {
        putchar('{');
        text_write_json_field(stdout, "key", key, key_size);
        printf(",\"context\":\"");
        context_write(&siblings);
        printf("\",\"values\":[");
        for (size_t i = 0; i < siblings.count; i++) {
            printf(i == 0 ? "{" : ",{");
            text_write_json_field(stdout, "value", siblings.values[i].data,
                                  siblings.values[i].size);
            printf(",\"version\":%" PRIu64 "}", siblings.values[i].version);
        }
        puts("]}");
    } else {
        context_write(&siblings);
        putchar('\n');
        for (size_t i = 0; i < siblings.count; i++) {
            text_write_escaped(stdout, siblings.values[i].data, siblings.values[i].size);
            putchar('\n');
        }
    }
    distkv_siblings_free(&siblings);
    return cli_finish_output(cli, EXIT_OK);
}

/* With conditions and times nothing of this goes together. */
static int
siblings_alone(struct cli *cli)
{
    const struct cli_settings *set = &cli->set;
    if (set->if_absent || set->if_present || set->if_version != 0 || set->ttl_ms != 0)
        return cli_usage(cli, "context and siblings go with no condition and no ttl");
    return EXIT_OK;
}

static bool
with_siblings(const struct cli *cli)
{
    return cli->set.siblings || cli->set.context[0] != 0;
}

/* ---- keys ---- */

/* Standard input, up to the largest value and one byte. NULL: no memory, or it cannot be read. */
static char *
read_stdin(size_t *size_out)
{
    char *data = malloc(DISTKV_VALUE_BYTES_MAX + 1);
    if (data == NULL) return NULL;
    *size_out = fread(data, 1, DISTKV_VALUE_BYTES_MAX + 1, stdin);
    if (!ferror(stdin)) return data;
    free(data);
    return NULL;
}

int
cmd_put(struct cli *cli, int count, char **words)
{
    (void)count;
    struct distkv_write write;
    int exit_code = write_options(cli, &write);
    if (exit_code != EXIT_OK) return exit_code;
    char *value = words[1];
    char *input = NULL;
    size_t key_size, value_size;
    if (!word_bytes(cli, words[0], &key_size)) return EXIT_USAGE;
    if (strcmp(value, "-") == 0 && !cli->prompt) {
        value = input = read_stdin(&value_size);
        if (input == NULL) {
            cli_error(cli, "cannot read standard input");
            return EXIT_SERVER;
        }
    } else if (!word_bytes(cli, value, &value_size)) {
        return EXIT_USAGE;
    }
    uint64_t version = 0;
    u8 *context = NULL;
    size_t context_size = 0;
    if (with_siblings(cli)) exit_code = siblings_alone(cli);
    if (exit_code == EXIT_OK) exit_code = context_read(cli, &context, &context_size);
    if (exit_code == EXIT_OK) exit_code = cli_connect(cli);
    if (exit_code == EXIT_OK) {
        int code =
            with_siblings(cli)
                ? distkv_put_siblings(cli->kv, words[0], key_size, value, value_size, context,
                                      context_size, &version)
                : distkv_put(cli->kv, words[0], key_size, value, value_size, &write, &version);
        if (code != DISTKV_OK)
            exit_code = cli_fail(cli, code, "put");
        else if (cli->set.json)
            printf("{\"ok\":true,\"version\":%" PRIu64 "}\n", version);
        else
            printf("ok\n");
    }
    free(context);
    free(input);
    return cli_finish_output(cli, exit_code);
}

int
cmd_get(struct cli *cli, int count, char **words)
{
    (void)count;
    size_t key_size;
    if (!word_bytes(cli, words[0], &key_size)) return EXIT_USAGE;
    int exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) return exit_code;
    if (cli->set.siblings) return get_siblings(cli, words[0], key_size);
    struct distkv_value value;
    int code = distkv_get(cli->kv, words[0], key_size, &value);
    if (code != DISTKV_OK) return cli_fail(cli, code, "get");
    if (cli->set.json) {
        putchar('{');
        text_write_json_field(stdout, "key", words[0], key_size);
        putchar(',');
        text_write_json_field(stdout, "value", value.data, value.size);
        printf(",\"version\":%" PRIu64, value.version);
        if (value.expire_ms != 0) printf(",\"expire_ms\":%" PRIu64, value.expire_ms);
        puts("}");
    } else {
        write_value(cli, value.data, value.size);
    }
    distkv_value_free(&value);
    return cli_finish_output(cli, EXIT_OK);
}

int
cmd_delete(struct cli *cli, int count, char **words)
{
    struct distkv_write write;
    int exit_code = write_options(cli, &write);
    u8 *context = NULL;
    size_t context_size = 0;
    if (exit_code == EXIT_OK && with_siblings(cli)) {
        exit_code = siblings_alone(cli);
        if (exit_code == EXIT_OK && count != 1)
            exit_code = cli_usage(cli, "a context is of one key");
    }
    if (exit_code == EXIT_OK) exit_code = context_read(cli, &context, &context_size);
    if (exit_code == EXIT_OK) exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) {
        free(context);
        return exit_code;
    }
    int deleted = 0;
    for (int i = 0; i < count; i++) {
        size_t key_size;
        if (!word_bytes(cli, words[i], &key_size)) {
            free(context);
            return EXIT_USAGE;
        }
        int code = with_siblings(cli)
                       ? distkv_delete_siblings(cli->kv, words[i], key_size, context, context_size)
                       : distkv_delete(cli->kv, words[i], key_size, &write);
        if (code == DISTKV_OK)
            deleted++;
        else
            exit_code = cli_fail(cli, code, words[i]);
    }
    free(context);
    if (cli->set.json)
        printf("{\"ok\":%s,\"deleted\":%d}\n", deleted == count ? "true" : "false", deleted);
    else if (deleted == count)
        printf("ok\n");
    return cli_finish_output(cli, exit_code);
}

/* ---- batch ---- */

static int
batch_line(struct cli *cli, distkv_batch *batch, char *line, const char *where)
{
    char *words[BATCH_WORDS_MAX];
    size_t sizes[BATCH_WORDS_MAX];
    int count = text_split(line, words, sizes, BATCH_WORDS_MAX);
    if (count == 0 || (count > 0 && words[0][0] == '#')) return EXIT_OK;
    if (count == -1) return cli_usage(cli, "%s: unbalanced quotes", where);
    int code = DISTKV_INVALID;
    if ((count == 3 || count == 4) && strcmp(words[0], "put") == 0) {
        struct distkv_write write = {0};
        u64 ttl_ns = 0;
        if (count == 4 && (!option_parse_duration_ns(words[3], &ttl_ns) || ttl_ns < NS_PER_MS))
            return cli_usage(cli, "%s: '%s' is not a duration such as 10s", where, words[3]);
        if (ttl_ns > 0) {
            write.expiry = DISTKV_EXPIRE_AFTER;
            write.expiry_ms = ttl_ns / NS_PER_MS;
        }
        code = distkv_batch_put(batch, words[1], sizes[1], words[2], sizes[2], &write);
    } else if (count == 2 && strcmp(words[0], "delete") == 0) {
        code = distkv_batch_delete(batch, words[1], sizes[1], NULL);
    } else {
        return cli_usage(cli, "%s: neither \"put KEY VALUE [TTL]\" nor \"delete KEY\"", where);
    }
    if (code == DISTKV_OK) return EXIT_OK;
    if (code != DISTKV_NO_MEMORY) return cli_usage(cli, "%s: %s", where, distkv_code_text(code));
    cli_error(cli, "%s: %s", where, distkv_code_text(code));
    return EXIT_SERVER;
}

static int
batch_read(struct cli *cli, distkv_batch *batch, int count, char **words)
{
    char where[32];
    for (int i = 0; i < count; i++) {
        snprintf(where, sizeof(where), "operation %d", i + 1);
        if (strcmp(words[i], "put") == 0 || strcmp(words[i], "delete") == 0)
            return cli_usage(cli,
                             "%s: an operation is one word in quotes: batch 'put KEY VALUE' "
                             "'delete KEY'",
                             where);
        int code = batch_line(cli, batch, words[i], where);
        if (code != EXIT_OK) return code;
    }
    if (count > 0) return EXIT_OK;
    char *line = NULL;
    size_t capacity = 0;
    int exit_code = EXIT_OK;
    unsigned number = 0;
    ssize_t size;
    while (exit_code == EXIT_OK && (size = getline(&line, &capacity, stdin)) >= 0) {
        snprintf(where, sizeof(where), "line %u", ++number);
        if (size > (ssize_t)BATCH_LINE_MAX)
            exit_code = cli_usage(cli, "%s is longer than 4 MiB", where);
        else if (memchr(line, '\0', (size_t)size) != NULL)
            exit_code = cli_usage(cli, "%s holds a zero byte; write \"\\x00\"", where);
        else
            exit_code = batch_line(cli, batch, line, where);
    }
    if (exit_code == EXIT_OK && ferror(stdin)) {
        cli_error(cli, "cannot read standard input");
        exit_code = EXIT_SERVER;
    }
    free(line);
    return exit_code;
}

int
cmd_batch(struct cli *cli, int count, char **words)
{
    distkv_batch *batch = distkv_batch_new();
    if (batch == NULL) return cli_fail(cli, DISTKV_NO_MEMORY, "batch");
    int exit_code = batch_read(cli, batch, count, words);
    size_t ops = distkv_batch_count(batch);
    size_t slots = distkv_batch_slots(batch);
    if (exit_code == EXIT_OK && ops == 0) exit_code = cli_usage(cli, "the batch is empty");
    if (exit_code == EXIT_OK && slots > 1 && cli->set.atomic)
        exit_code =
            cli_usage(cli,
                      "the keys fall into %zu slots, so the batch cannot be atomic; let them "
                      "share a hash tag, as in {tag}key",
                      slots);
    if (exit_code == EXIT_OK) exit_code = cli_connect(cli);
    size_t done = 0;
    if (exit_code == EXIT_OK) {
        if (slots > 1)
            cli_warn(cli,
                     "the keys fall into %zu slots: done in %zu parts, each of them atomic, the "
                     "whole is not",
                     slots, slots);
        int code = slots > 1 ? distkv_batch_commit_parts(cli->kv, batch, &done)
                             : distkv_batch_commit(cli->kv, batch);
        if (code == DISTKV_OK)
            done = ops;
        else
            exit_code = cli_fail(cli, code, "batch");
        if (cli->set.json)
            printf("{\"ok\":%s,\"operations\":%zu,\"done\":%zu,\"slots\":%zu,\"atomic\":%s}\n",
                   code == DISTKV_OK ? "true" : "false", ops, done, slots,
                   slots == 1 ? "true" : "false");
        else if (code == DISTKV_OK)
            printf("ok: %zu operations%s\n", ops, slots == 1 ? ", atomic" : "");
        else if (slots > 1)
            fprintf(stderr, "%zu of %zu operations were done for certain\n", done, ops);
    }
    distkv_batch_free(batch);
    return cli_finish_output(cli, exit_code);
}

/* ---- scan ---- */

static void
scan_entry_write(const struct cli *cli, const struct distkv_entry *entry)
{
    if (cli->set.json) {
        putchar('{');
        text_write_json_field(stdout, "key", entry->key, entry->key_size);
        if (!cli->set.keys_only) {
            putchar(',');
            text_write_json_field(stdout, "value", entry->value, entry->value_size);
        }
        printf(",\"version\":%" PRIu64, entry->version);
        if (entry->expire_ms != 0) printf(",\"expire_ms\":%" PRIu64, entry->expire_ms);
        puts("}");
        return;
    }
    if (cli->color) fputs("\033[1m", stdout);
    text_write_escaped(stdout, entry->key, entry->key_size);
    if (cli->color) fputs("\033[0m", stdout);
    if (!cli->set.keys_only) {
        putchar('\t');
        text_write_escaped(stdout, entry->value, entry->value_size);
    }
    putchar('\n');
}

int
cmd_scan(struct cli *cli, int count, char **words)
{
    (void)count;
    (void)words;
    const struct cli_settings *set = &cli->set;
    if (set->prefix[0] != '\0' && set->match[0] != '\0')
        return cli_usage(cli, "only one of prefix and match can be given");
    int exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) return exit_code;
    struct distkv_scan_options options = {
        .prefix = set->prefix[0] != '\0' ? set->prefix : NULL,
        .prefix_size = strlen(set->prefix),
        .match = set->match[0] != '\0' ? set->match : NULL,
        .keys_only = set->keys_only != 0,
        .snapshot = set->snapshot != 0,
        .limit = set->limit,
    };
    distkv_scan *scan;
    int code = distkv_scan_open(cli->kv, &options, &scan);
    if (code != DISTKV_OK) return cli_fail(cli, code, "scan");
    struct distkv_entry entry;
    while ((code = distkv_scan_next(scan, &entry)) == DISTKV_OK && !ferror(stdout))
        scan_entry_write(cli, &entry);
    if (code != DISTKV_END && code != DISTKV_OK) exit_code = cli_fail(cli, code, "scan");
    distkv_scan_close(scan);
    return cli_finish_output(cli, exit_code);
}

/* ---- times, counts, state ---- */

int
cmd_ttl(struct cli *cli, int count, char **words)
{
    (void)count;
    size_t key_size;
    if (!word_bytes(cli, words[0], &key_size)) return EXIT_USAGE;
    int exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) return exit_code;
    int64_t ms;
    int code = distkv_ttl(cli->kv, words[0], key_size, &ms);
    if (code != DISTKV_OK) return cli_fail(cli, code, "ttl");
    if (cli->set.json && ms < 0)
        puts("{\"ttl_ms\":null}");
    else if (cli->set.json)
        printf("{\"ttl_ms\":%" PRId64 "}\n", ms);
    else if (ms < 0)
        puts("never expires");
    else
        printf("%" PRId64 ".%03" PRId64 " s\n", ms / 1000, ms % 1000);
    return cli_finish_output(cli, EXIT_OK);
}

int
cmd_expire(struct cli *cli, int count, char **words)
{
    (void)count;
    size_t key_size;
    u64 ns = 0;
    bool never = strcmp(words[1], "never") == 0;
    if (!never && (!option_parse_duration_ns(words[1], &ns) || ns < NS_PER_MS))
        return cli_usage(cli, "'%s' is not a duration such as 10s, nor the word never", words[1]);
    if (!word_bytes(cli, words[0], &key_size)) return EXIT_USAGE;
    int exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) return exit_code;
    int code = distkv_expire(cli->kv, words[0], key_size,
                             never ? DISTKV_EXPIRE_NEVER : DISTKV_EXPIRE_AFTER, ns / NS_PER_MS);
    if (code != DISTKV_OK) return cli_fail(cli, code, "expire");
    puts(cli->set.json ? "{\"ok\":true}" : "ok");
    return cli_finish_output(cli, EXIT_OK);
}

int
cmd_count(struct cli *cli, int count, char **words)
{
    (void)count;
    (void)words;
    int exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) return exit_code;
    uint64_t keys;
    int code = distkv_count(cli->kv, cli->set.exact != 0, &keys);
    if (code != DISTKV_OK) return cli_fail(cli, code, "count");
    if (cli->set.json)
        printf("{\"count\":%" PRIu64 ",\"exact\":%s}\n", keys, cli->set.exact ? "true" : "false");
    else
        printf("%s%" PRIu64 "\n", cli->set.exact ? "" : "about ", keys);
    return cli_finish_output(cli, EXIT_OK);
}

static void
status_lines(const json_t *object, int depth)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, name, value)
    {
        printf("%*s%-*s ", depth * 2, "", 24 - depth * 2, name);
        if (json_is_object(value)) {
            putchar('\n');
            status_lines(value, depth + 1);
        } else if (json_is_array(value)) {
            size_t index;
            json_t *element;
            putchar('\n');
            json_array_foreach(value, index, element)
            {
                if (json_is_object(element)) {
                    printf("%*s- %zu\n", depth * 2 + 2, "", index);
                    status_lines(element, depth + 2);
                }
            }
        } else if (json_is_string(value)) {
            text_write_escaped(stdout, json_string_value(value), json_string_length(value));
            putchar('\n');
        } else {
            char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
            puts(text != NULL ? text : "?");
            free(text);
        }
    }
}

int
cmd_status(struct cli *cli, int count, char **words)
{
    (void)count;
    (void)words;
    int exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) return exit_code;
    char *text;
    int code = distkv_status(cli->kv, &text);
    if (code != DISTKV_OK) return cli_fail(cli, code, "status");
    json_t *root = cli->set.json ? NULL : json_loads(text, 0, NULL);
    if (json_is_object(root))
        status_lines(root, 0);
    else
        puts(text);
    json_decref(root);
    distkv_free(text);
    return cli_finish_output(cli, EXIT_OK);
}

/* ---- bench-ping ---- */

struct bench {
    struct cli *cli;
    struct histogram *histogram;
    u64 left; /* to be started */
    u64 failed;
    int code; /* of the first failure */
};

struct ping {
    struct bench *bench;
    u64 start_ns;
};

static void ping_done(void *arg, const struct distkv_result *result);

static void
ping_start(struct ping *ping)
{
    struct bench *bench = ping->bench;
    if (bench->left == 0) return;
    bench->left--;
    ping->start_ns = cli_now_ns();
    int code = distkv_ping_async(bench->cli->kv, ping_done, ping);
    if (code == DISTKV_OK) return;
    bench->failed += bench->left + 1;
    bench->left = 0;
    if (bench->code == DISTKV_OK) bench->code = code;
}

static void
ping_done(void *arg, const struct distkv_result *result)
{
    struct ping *ping = arg;
    if (result->code == DISTKV_OK) {
        histogram_record(ping->bench->histogram, cli_now_ns() - ping->start_ns);
    } else {
        ping->bench->failed++;
        if (ping->bench->code == DISTKV_OK) ping->bench->code = result->code;
    }
    ping_start(ping);
}

static void
bench_report(const struct cli *cli, const struct bench *bench, double seconds)
{
    static const u32 ppm[] = {500000, 900000, 990000, 999000};
    static const char *const names[] = {"p50", "p90", "p99", "p999"};
    const struct histogram *h = bench->histogram;
    double mean = h->count > 0 ? (double)h->sum / (double)h->count / 1e3 : 0;
    if (cli->set.json) {
        printf("{\"pings\":%" PRIu64 ",\"failed\":%" PRIu64 ",\"seconds\":%.3f,\"per_second\":%.0f,"
               "\"latency_min_us\":%.1f,\"latency_mean_us\":%.1f",
               h->count, bench->failed, seconds, (double)h->count / seconds, (double)h->min / 1e3,
               mean);
        for (size_t i = 0; i < ARRAY_COUNT(ppm); i++)
            printf(",\"latency_%s_us\":%.1f", names[i],
                   (double)histogram_percentile(h, ppm[i]) / 1e3);
        printf(",\"latency_max_us\":%.1f}\n", (double)h->max / 1e3);
        return;
    }
    printf("%" PRIu64 " pings in %.2f s, %.0f/s, %" PRIu64 " failed\n", h->count, seconds,
           (double)h->count / seconds, bench->failed);
    printf("latency in us: min %.1f  mean %.1f", (double)h->min / 1e3, mean);
    for (size_t i = 0; i < ARRAY_COUNT(ppm); i++)
        printf("  %s %.1f", names[i], (double)histogram_percentile(h, ppm[i]) / 1e3);
    printf("  max %.1f\n", (double)h->max / 1e3);
}

int
cmd_bench_ping(struct cli *cli, int count, char **words)
{
    (void)count;
    (void)words;
    int exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) return exit_code;
    u32 in_flight = (u32)MIN(cli->set.in_flight, cli->set.count);
    struct bench bench = {.cli = cli, .left = cli->set.count};
    struct ping *pings = calloc(in_flight, sizeof(*pings));
    bench.histogram = calloc(1, sizeof(*bench.histogram));
    if (pings == NULL || bench.histogram == NULL) {
        exit_code = cli_fail(cli, DISTKV_NO_MEMORY, "bench-ping");
    } else {
        u64 start = cli_now_ns();
        for (u32 i = 0; i < in_flight; i++) {
            pings[i].bench = &bench;
            ping_start(&pings[i]);
        }
        while (distkv_pending(cli->kv) > 0)
            distkv_process(cli->kv, -1);
        bench_report(cli, &bench, (double)(cli_now_ns() - start) / 1e9);
        if (bench.code != DISTKV_OK) {
            cli_error(cli, "%" PRIu64 " pings failed: %s", bench.failed,
                      distkv_code_text(bench.code));
            exit_code = EXIT_SERVER;
        }
    }
    free(bench.histogram);
    free(pings);
    return cli_finish_output(cli, exit_code);
}
