/* SPDX-License-Identifier: MIT
 *
 * cli_export.c -- distkv-client export: all records of one snapshot, streamed.
 *
 * A file appears under its name only when it is whole: it is written as NAME.part, synced and
 * renamed; a link is followed first. What is no regular file (a device, a pipe) is written to as it
 * is. Expiry is written as a point in time, so that a later import does not lengthen lives.
 *
 * A cluster has no snapshots. There each page is of its own moment, and read from a quorum: what
 * was acknowledged before the export began, and did not change since, is in it as it is.
 */
#include "client/cli.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT_REPORT_NS (100 * NS_PER_MS)

struct export
{
    struct cli *cli;
    FILE *out;
    bool tsv;
    bool progress;
    u64 records, bytes;
    u64 start_ns, report_ns;
};

/* What begins with { import takes for JSON lines. */
static void
write_tsv_key(FILE *out, const u8 *key, size_t size)
{
    bool brace = size > 0 && key[0] == '{';
    if (brace) fputs("\\x7b", out);
    text_write_escaped(out, key + brace, size - brace);
}

static void
export_entry(struct export *export, const struct distkv_entry *entry)
{
    FILE *out = export->out;
    if (export->tsv) {
        write_tsv_key(out, entry->key, entry->key_size);
        putc('\t', out);
        text_write_escaped(out, entry->value, entry->value_size);
        if (entry->expire_ms != 0) fprintf(out, "\t%" PRIu64, entry->expire_ms);
        putc('\n', out);
    } else {
        putc('{', out);
        text_write_json_field(out, "key", entry->key, entry->key_size);
        putc(',', out);
        text_write_json_field(out, "value", entry->value, entry->value_size);
        if (entry->expire_ms != 0) fprintf(out, ",\"expire_ms\":%" PRIu64, entry->expire_ms);
        fputs("}\n", out);
    }
    export->records++;
    export->bytes += entry->key_size + entry->value_size;
    if (!export->progress || export->records % 256 != 0) return;
    u64 now = cli_now_ns();
    if (now - export->report_ns < EXPORT_REPORT_NS) return;
    export->report_ns = now;
    fprintf(stderr, "\r%" PRIu64 " records, %.1f MB\033[K", export->records,
            (double)export->bytes / 1e6);
}

static int
export_run(struct export *export)
{
    struct cli *cli = export->cli;
    struct distkv_scan_options options = {
        .prefix = cli->set.prefix[0] != '\0' ? cli->set.prefix : NULL,
        .prefix_size = strlen(cli->set.prefix),
        .snapshot = 1,
    };
    distkv_scan *scan;
    int code = distkv_scan_open(cli->kv, &options, &scan);
    if (code == DISTKV_UNSUPPORTED) {
        options.snapshot = 0;
        code = distkv_scan_open(cli->kv, &options, &scan);
        if (code == DISTKV_OK && !cli->set.quiet)
            cli_warn(cli, "a cluster has no snapshots: this export is of no one moment");
    }
    if (code != DISTKV_OK) return cli_fail(cli, code, "export");
    struct distkv_entry entry;
    while ((code = distkv_scan_next(scan, &entry)) == DISTKV_OK && !ferror(export->out))
        export_entry(export, &entry);
    if (export->progress) fputs("\r\033[K", stderr);
    int exit_code = EXIT_OK;
    if (code != DISTKV_OK && code != DISTKV_END) exit_code = cli_fail(cli, code, "export");
    distkv_scan_close(scan);
    return exit_code;
}

static void
export_summary(const struct export *export)
{
    if (export->cli->set.quiet) return;
    double seconds = MAX((double)(cli_now_ns() - export->start_ns) / 1e9, 1e-9);
    fprintf(stderr, "exported %" PRIu64 " records in %.2f s: %.0f records/s, %.1f MB/s\n",
            export->records, seconds, (double)export->records / seconds,
            (double)export->bytes / 1e6 / seconds);
}

static bool
ends_with(const char *text, const char *end)
{
    size_t size = strlen(text), end_size = strlen(end);
    return size >= end_size && strcmp(text + size - end_size, end) == 0;
}

/* Writes name, which is there under this name at once. A file that can be synced is. */
static int
export_write(struct export *export, const char *name)
{
    struct cli *cli = export->cli;
    export->out = fopen(name, "wb");
    if (export->out == NULL) {
        cli_error(cli, "%s: %s", name, strerror(errno));
        return EXIT_USAGE;
    }
    int exit_code = export_run(export);
    int error = 0;
    if (ferror(export->out) || fflush(export->out) != 0) error = errno != 0 ? errno : EIO;
    if (error == 0 && fsync(fileno(export->out)) != 0 && errno != EINVAL && errno != EROFS)
        error = errno;
    if (fclose(export->out) != 0 && error == 0) error = errno;
    if (error == 0) return exit_code;
    cli_error(cli, "%s: %s", name, strerror(error));
    return EXIT_SERVER;
}

static int
export_whole(struct export *export, const char *name)
{
    struct cli *cli = export->cli;
    size_t part_size = strlen(name) + sizeof(".part");
    char *part = malloc(part_size);
    if (part == NULL) return cli_fail(cli, DISTKV_NO_MEMORY, "export");
    snprintf(part, part_size, "%s.part", name);
    int exit_code = export_write(export, part);
    if (exit_code == EXIT_OK && rename(part, name) != 0) {
        cli_error(cli, "%s: %s", name, strerror(errno));
        exit_code = EXIT_SERVER;
    }
    if (exit_code != EXIT_OK) unlink(part);
    free(part);
    return exit_code;
}

static int
export_to_file(struct export *export, const char *name)
{
    /* Of a link, the file that it names is replaced, not the link. */
    char *target = realpath(name, NULL);
    struct stat there;
    bool exists = lstat(target != NULL ? target : name, &there) == 0;
    int exit_code = exists && !S_ISREG(there.st_mode)
                        ? export_write(export, name)
                        : export_whole(export, target != NULL ? target : name);
    free(target);
    if (exit_code == EXIT_OK) export_summary(export);
    return exit_code;
}

int
cmd_export(struct cli *cli, int count, char **words)
{
    const char *name = count == 1 ? words[0] : "-";
    struct export export = {.cli = cli, .start_ns = cli_now_ns()};
    export.tsv = cli->set.format == FORMAT_TSV ||
                 (cli->set.format == FORMAT_AUTO && ends_with(name, ".tsv"));
    int exit_code = cli_connect(cli);
    if (exit_code != EXIT_OK) return exit_code;
    if (strcmp(name, "-") != 0) {
        export.progress = isatty(STDERR_FILENO) && !cli->set.quiet;
        return export_to_file(&export, name);
    }
    export.out = stdout;
    export.progress = isatty(STDERR_FILENO) && !isatty(STDOUT_FILENO) && !cli->set.quiet;
    exit_code = cli_finish_output(cli, export_run(&export));
    if (exit_code == EXIT_OK && !isatty(STDOUT_FILENO)) export_summary(&export);
    return exit_code;
}
