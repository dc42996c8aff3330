/* SPDX-License-Identifier: MIT
 *
 * option.h -- one table of options drives everything that knows an option's name: flags, variables
 * of the environment, the config file, CONFIG GET and SET, --help, the man page and the reference.
 *
 *   static const struct option table[] = {
 *       {.name = "sync-interval", .kind = OPTION_DURATION, .unit = NS_PER_MS,
 *        .offset = offsetof(struct config, sync_interval_ms), .fallback = "100ms", ...},
 *   };
 *
 * A value lives at `offset` in a struct of the caller: numbers of every kind in a u64 (an _Atomic
 * u64 where OPTION_RUNTIME is set: any thread may read it while another sets it), texts in a char
 * array of `size` bytes, runtime texts in a struct option_text.
 *
 * Everything here is pure: text in, values out, or values in, text out. Reading files and
 * variables is the caller's.
 */
#ifndef DISTKV_BASE_OPTION_H
#define DISTKV_BASE_OPTION_H

#include "base/status.h"

#define OPTION_TEXT_BYTES  512u /* the longest text value with its end */
#define OPTION_ERROR_BYTES 256u /* enough for every error sentence */

enum option_kind {
    OPTION_BOOL,     /* yes, no, true, false, on, off, 1, 0 */
    OPTION_NUMBER,   /* a u64 */
    OPTION_SIGNED,   /* an i64, kept in the u64; min and max are i64, too */
    OPTION_BYTES,    /* 4096, 64KiB, 2GiB; k, kb and KiB all mean 1024 */
    OPTION_RATE,     /* bytes a second: as above, "/s" may follow */
    OPTION_DURATION, /* 20us, 10ms, 5s, 2m; a bare number only for 0; kept in `unit` nanoseconds */
    OPTION_CHOICE,   /* one word of `choices`; the value is its index */
    OPTION_STRING,
};

enum option_flags {
    OPTION_RUNTIME = 1 << 0, /* CONFIG SET may change it */
    OPTION_COMMAND = 1 << 1, /* an action, such as --help: no variable, no line in the file */
    OPTION_SECRET = 1 << 2,  /* not shown by --print-config */
};

struct option {
    const char *name; /* lower case with dashes */
    enum option_kind kind;
    u32 flags;  /* enum option_flags */
    u32 offset; /* in the struct of values */
    u32 size;   /* of a text, with its end */
    u64 unit;   /* nanoseconds per unit of a duration; at least 1 */
    u64 min, max;
    const char *fallback;       /* the default, as text; NULL or "": see `derived` */
    const char *derived;        /* how the default comes about when it is computed at start */
    const char *const *choices; /* ends with NULL */
    const char *value_name;     /* for --help: HOST:PORT */
    const char *section;        /* heading in --help; NULL: as the one before */
    const char *help;           /* one or more full sentences */
    /* Refuses a text; may be NULL. error receives the reason. */
    bool (*check)(const char *text, char *error, size_t error_size);
};

struct option_table {
    const struct option *options;
    u32 count;
    const char *program;         /* distkv-server */
    const char *summary;         /* one line */
    const char *usage;           /* [--name value]... */
    const char *variable_prefix; /* DISTKV_ */
    const char *epilogue;        /* examples, exit status; plain text */
};

/* A text that may change while others read it. */
#define OPTION_TEXT_WORDS (OPTION_TEXT_BYTES / 8)
struct option_text {
    _Atomic u64 version; /* odd: being written */
    _Atomic u64 words[OPTION_TEXT_WORDS];
};

/* out holds OPTION_TEXT_BYTES. Any thread. */
void option_text_load(const struct option_text *text, char *out);
/* One writer at a time is let in; others wait the few nanoseconds. Any thread. */
void option_text_store(struct option_text *text, const char *value);
/* Whether it is not "", without copying it. */
bool option_text_is_set(const struct option_text *text);

/* ---- finding ---- */

/* NULL when there is none. Underscores count as dashes; case is ignored. */
const struct option *option_find(const struct option_table *table, const char *name, size_t size);
/* The name nearest to a mistyped one, or NULL when none is near. */
const char *option_suggest(const struct option_table *table, const char *name, size_t size);
/* "unknown option 'adress', did you mean 'address'?" */
void option_unknown(const struct option_table *table, const char *name, size_t size, char *error,
                    size_t error_size);
/* DISTKV_DATA_DIR for data-dir. */
void option_variable_name(const struct option_table *table, const struct option *option, char *out,
                          size_t size);

/* ---- values ---- */

/* Parses and stores; on ST_INVALID nothing has changed and error says why. */
MUST_CHECK status option_set(const struct option *option, void *values, const char *text,
                             char *error, size_t error_size);
/* The value as text that option_set would take. Returns its length; out is always ended. */
size_t option_get(const struct option *option, const void *values, char *out, size_t size);
void option_set_defaults(const struct option_table *table, void *values);

MUST_CHECK bool option_parse_bytes(const char *text, u64 *out);
MUST_CHECK bool option_parse_duration_ns(const char *text, u64 *out);
MUST_CHECK bool option_parse_number(const char *text, u64 *out);
MUST_CHECK bool option_parse_signed(const char *text, i64 *out);
MUST_CHECK bool option_parse_bool(const char *text, bool *out);
/* 2GiB, 1536KiB, 17 */
size_t option_format_bytes(u64 bytes, char *out, size_t size);
/* 20us, 5s, 0 */
size_t option_format_duration(u64 duration_ns, char *out, size_t size);

/* ---- flags ---- */

/* Reads argv[*index] as --name value, --name=value, -name value or -name=value and moves *index
 * behind it. OPTION_BOOL needs no value; one given after '=' counts, a following word does not.
 * ST_END: not an option (a word, or "--" which is passed over). ST_INVALID: error says why. */
MUST_CHECK status option_next_flag(const struct option_table *table, int argc,
                                   const char *const *argv, int *index,
                                   const struct option **option_out, const char **value_out,
                                   char *error, size_t error_size);

/* ---- writing about them; each returns the length that the whole text has, as snprintf ---- */

size_t option_help_text(const struct option_table *table, char *out, size_t size);
size_t option_help_markdown(const struct option_table *table, char *out, size_t size);
size_t option_help_man(const struct option_table *table, const char *version, char *out,
                       size_t size);

#endif
