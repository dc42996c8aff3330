/* SPDX-License-Identifier: MIT
 *
 * option.c -- see option.h. Parsing is by hand: strtoull takes signs, spaces and wraps around, and
 * a size or a duration from a config file must be refused when it does not fit.
 */
#include "base/option.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

/* ---- characters ---- */

static char
lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool
equal_ignoring_case(const char *a, const char *b)
{
    for (; *a != '\0' && *b != '\0'; a++, b++) {
        if (lower(*a) != lower(*b)) return false;
    }
    return *a == *b;
}

static char
name_char(char c)
{
    return c == '_' ? '-' : lower(c);
}

/* ---- texts that change while they are read ----
 *
 * A sequence lock whose data are atomic words, so that there is no race in the language's sense. */

void
option_text_load(const struct option_text *text, char *out)
{
    u64 words[OPTION_TEXT_WORDS];
    for (;;) {
        u64 before = atomic_load_explicit(&text->version, memory_order_acquire);
        for (u32 i = 0; i < OPTION_TEXT_WORDS; i++) {
            words[i] = atomic_load_explicit(&text->words[i], memory_order_acquire);
        }
        u64 after = atomic_load_explicit(&text->version, memory_order_relaxed);
        if (before == after && (before & 1) == 0) break;
    }
    memcpy(out, words, sizeof(words));
    out[OPTION_TEXT_BYTES - 1] = '\0';
}

void
option_text_store(struct option_text *text, const char *value)
{
    u64 words[OPTION_TEXT_WORDS] = {0};
    size_t size = strlen(value);
    memcpy(words, value, MIN(size, OPTION_TEXT_BYTES - 1));

    u64 version;
    do {
        version = atomic_load_explicit(&text->version, memory_order_relaxed) & ~1ull;
    } while (!atomic_compare_exchange_weak_explicit(&text->version, &version, version + 1,
                                                    memory_order_acquire, memory_order_relaxed));
    for (u32 i = 0; i < OPTION_TEXT_WORDS; i++) {
        atomic_store_explicit(&text->words[i], words[i], memory_order_release);
    }
    atomic_store_explicit(&text->version, version + 2, memory_order_release);
}

bool
option_text_is_set(const struct option_text *text)
{
    return (atomic_load_explicit(&text->words[0], memory_order_relaxed) & 0xff) != 0;
}

/* ---- finding ---- */

const struct option *
option_find(const struct option_table *table, const char *name, size_t size)
{
    for (u32 i = 0; i < table->count; i++) {
        const char *candidate = table->options[i].name;
        size_t at = 0;
        while (at < size && candidate[at] != '\0' && name_char(name[at]) == candidate[at])
            at++;
        if (at == size && candidate[at] == '\0') return &table->options[i];
    }
    return NULL;
}

#define SUGGEST_NAME_BYTES 48u

/* Edit distance that counts a swap of neighbours as one step, after Damerau. */
static u32
edit_distance(const char *a, size_t a_size, const char *b, size_t b_size)
{
    u32 rows[3][SUGGEST_NAME_BYTES + 1];
    for (size_t j = 0; j <= b_size; j++)
        rows[1][j] = (u32)j;
    for (size_t i = 1; i <= a_size; i++) {
        /* Row i lives at (i + 1) % 3; only the two before it are needed. */
        const u32 *two = rows[(i + 2) % 3], *one = rows[i % 3];
        u32 *now = rows[(i + 1) % 3];
        now[0] = (u32)i;
        for (size_t j = 1; j <= b_size; j++) {
            bool same = name_char(a[i - 1]) == b[j - 1];
            u32 best = MIN(MIN(one[j] + 1, now[j - 1] + 1), one[j - 1] + (same ? 0 : 1));
            if (i > 1 && j > 1 && name_char(a[i - 1]) == b[j - 2] &&
                name_char(a[i - 2]) == b[j - 1]) {
                best = MIN(best, two[j - 2] + 1);
            }
            now[j] = best;
        }
    }
    return rows[(a_size + 1) % 3][b_size];
}

const char *
option_suggest(const struct option_table *table, const char *name, size_t size)
{
    if (size == 0 || size > SUGGEST_NAME_BYTES) return NULL;
    const char *nearest = NULL;
    u32 nearest_distance = UINT32_MAX;
    for (u32 i = 0; i < table->count; i++) {
        const char *candidate = table->options[i].name;
        size_t candidate_size = strlen(candidate);
        if (candidate_size > SUGGEST_NAME_BYTES) continue;
        u32 distance = edit_distance(name, size, candidate, candidate_size);
        if (distance < nearest_distance) {
            nearest_distance = distance;
            nearest = candidate;
        }
    }
    /* A third of the letters may be wrong; more than that is another word. */
    return nearest_distance <= MAX(1, size / 3) ? nearest : NULL;
}

void
option_unknown(const struct option_table *table, const char *name, size_t size, char *error,
               size_t error_size)
{
    const char *suggestion = option_suggest(table, name, size);
    int shown = (int)MIN(size, 64);
    if (suggestion != NULL) {
        snprintf(error, error_size, "unknown option '%.*s', did you mean '%s'?", shown, name,
                 suggestion);
    } else {
        snprintf(error, error_size, "unknown option '%.*s'", shown, name);
    }
}

void
option_variable_name(const struct option_table *table, const struct option *option, char *out,
                     size_t size)
{
    int length = snprintf(out, size, "%s%s", table->variable_prefix, option->name);
    CHECK(length > 0 && (size_t)length < size);
    for (char *c = out + strlen(table->variable_prefix); *c != '\0'; c++) {
        if (*c == '-') *c = '_';
        if (*c >= 'a' && *c <= 'z') *c = (char)(*c - 'a' + 'A');
    }
}

/* ---- parsing numbers ---- */

/* Digits at *text; false when there are none or they do not fit. */
static bool
parse_digits(const char **text, u64 *out)
{
    const char *c = *text;
    if (!is_digit(*c)) return false;
    u64 value = 0;
    for (; is_digit(*c); c++) {
        if (__builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (u64)(*c - '0'), &value)) {
            return false;
        }
    }
    *text = c;
    *out = value;
    return true;
}

bool
option_parse_number(const char *text, u64 *out)
{
    u64 value;
    if (!parse_digits(&text, &value) || *text != '\0') return false;
    *out = value;
    return true;
}

bool
option_parse_signed(const char *text, i64 *out)
{
    bool negative = *text == '-';
    u64 value;
    if (!option_parse_number(text + (negative ? 1 : 0), &value)) return false;
    if (value > (u64)INT64_MAX) return false;
    *out = negative ? -(i64)value : (i64)value;
    return true;
}

bool
option_parse_bool(const char *text, bool *out)
{
    static const char *const words[] = {"no", "yes", "false", "true", "off", "on", "0", "1"};
    for (u32 i = 0; i < ARRAY_COUNT(words); i++) {
        if (!equal_ignoring_case(text, words[i])) continue;
        *out = i % 2 == 1;
        return true;
    }
    return false;
}

bool
option_parse_bytes(const char *text, u64 *out)
{
    u64 value;
    if (!parse_digits(&text, &value)) return false;
    while (*text == ' ')
        text++;
    static const char letters[] = "kmgt";
    for (u32 i = 0; i < 4; i++) {
        if (lower(*text) != letters[i]) continue;
        u64 unit = 1ull << (10 * (i + 1));
        if (__builtin_mul_overflow(value, unit, &value)) return false;
        text++;
        if (lower(*text) == 'i') {
            text++;
            if (lower(*text) != 'b') return false;
        }
        break;
    }
    if (lower(*text) == 'b') text++;
    if (*text != '\0') return false;
    *out = value;
    return true;
}

static const struct {
    const char *name;
    u64 ns;
} duration_units[] = {
    {"ns", 1},
    {"us", NS_PER_US},
    {"ms", NS_PER_MS},
    {"s", NS_PER_S},
    {"m", 60 * NS_PER_S},
    {"h", 3600 * NS_PER_S},
    {"d", 86400 * NS_PER_S},
};

bool
option_parse_duration_ns(const char *text, u64 *out)
{
    u64 value;
    if (!parse_digits(&text, &value)) return false;
    while (*text == ' ')
        text++;
    if (*text == '\0') {
        if (value != 0) return false;
        *out = 0;
        return true;
    }
    for (u32 i = 0; i < ARRAY_COUNT(duration_units); i++) {
        if (!equal_ignoring_case(text, duration_units[i].name)) continue;
        if (__builtin_mul_overflow(value, duration_units[i].ns, &value)) return false;
        *out = value;
        return true;
    }
    return false;
}

/* ---- formatting ---- */

static size_t
length_of(int printed, size_t size)
{
    CHECK(printed >= 0);
    return MIN((size_t)printed, size == 0 ? 0 : size - 1);
}

size_t
option_format_bytes(u64 bytes, char *out, size_t size)
{
    static const char *const names[] = {"", "KiB", "MiB", "GiB", "TiB"};
    u32 unit = 0;
    while (bytes != 0 && bytes % 1024 == 0 && unit + 1 < ARRAY_COUNT(names)) {
        bytes /= 1024;
        unit++;
    }
    return length_of(snprintf(out, size, "%llu%s", (unsigned long long)bytes, names[unit]), size);
}

size_t
option_format_duration(u64 duration_ns, char *out, size_t size)
{
    if (duration_ns == 0) return length_of(snprintf(out, size, "0"), size);
    u32 unit = 0;
    for (u32 i = 0; i < ARRAY_COUNT(duration_units); i++) {
        if (duration_ns % duration_units[i].ns == 0) unit = i;
    }
    return length_of(snprintf(out, size, "%llu%s",
                              (unsigned long long)(duration_ns / duration_units[unit].ns),
                              duration_units[unit].name),
                     size);
}

/* ---- values ---- */

static _Atomic u64 *
number_at(const struct option *option, const void *values)
{
    return (_Atomic u64 *)(uintptr_t)((const char *)values + option->offset);
}

static void
explain_range(const struct option *option, char *error, size_t error_size)
{
    char low[32], high[32];
    switch (option->kind) {
    case OPTION_BYTES:
    case OPTION_RATE:
        option_format_bytes(option->min, low, sizeof(low));
        option_format_bytes(option->max, high, sizeof(high));
        break;
    case OPTION_DURATION:
        option_format_duration(option->min * option->unit, low, sizeof(low));
        option_format_duration(option->max * option->unit, high, sizeof(high));
        break;
    case OPTION_SIGNED:
        snprintf(low, sizeof(low), "%lld", (long long)option->min);
        snprintf(high, sizeof(high), "%lld", (long long)option->max);
        break;
    case OPTION_BOOL:
    case OPTION_NUMBER:
    case OPTION_CHOICE:
    case OPTION_STRING:
        snprintf(low, sizeof(low), "%llu", (unsigned long long)option->min);
        snprintf(high, sizeof(high), "%llu", (unsigned long long)option->max);
        break;
    }
    snprintf(error, error_size, "%s must be between %s and %s", option->name, low, high);
}

static status
refuse(const struct option *option, const char *text, const char *wanted, char *error,
       size_t error_size)
{
    snprintf(error, error_size, "%s: '%.48s' is not %s", option->name, text, wanted);
    return ST_INVALID;
}

static status
choice_index(const struct option *option, const char *text, u64 *out, char *error,
             size_t error_size)
{
    char all[128];
    size_t used = 0;
    all[0] = '\0';
    for (u32 i = 0; option->choices[i] != NULL; i++) {
        if (equal_ignoring_case(text, option->choices[i])) {
            *out = i;
            return ST_OK;
        }
        used += length_of(snprintf(all + used, sizeof(all) - used, "%s%s", i == 0 ? "" : ", ",
                                   option->choices[i]),
                          sizeof(all) - used);
    }
    snprintf(error, error_size, "%s: '%.48s' is not one of %s", option->name, text, all);
    return ST_INVALID;
}

static status
set_string(const struct option *option, void *values, const char *text, char *error,
           size_t error_size)
{
    size_t size = strlen(text);
    size_t room = (option->flags & OPTION_RUNTIME) != 0 ? OPTION_TEXT_BYTES : option->size;
    if (size >= room) {
        snprintf(error, error_size, "%s: longer than %zu bytes", option->name, room - 1);
        return ST_INVALID;
    }
    for (size_t i = 0; i < size; i++) {
        if ((u8)text[i] < 0x20 || text[i] == 0x7f) {
            snprintf(error, error_size, "%s: contains a control character", option->name);
            return ST_INVALID;
        }
    }
    if (option->check != NULL && size > 0) {
        char reason[OPTION_ERROR_BYTES / 2] = "";
        if (!option->check(text, reason, sizeof(reason))) {
            snprintf(error, error_size, "%s: %s", option->name, reason);
            return ST_INVALID;
        }
    }
    char *place = (char *)values + option->offset;
    if ((option->flags & OPTION_RUNTIME) != 0) {
        option_text_store((struct option_text *)(void *)place, text);
    } else {
        memcpy(place, text, size + 1);
    }
    return ST_OK;
}

status
option_set(const struct option *option, void *values, const char *text, char *error,
           size_t error_size)
{
    u64 value = 0;
    switch (option->kind) {
    case OPTION_STRING:
        return set_string(option, values, text, error, error_size);
    case OPTION_BOOL: {
        bool yes;
        if (!option_parse_bool(text, &yes)) {
            return refuse(option, text, "yes or no", error, error_size);
        }
        value = yes;
        break;
    }
    case OPTION_NUMBER:
        if (!option_parse_number(text, &value)) {
            return refuse(option, text, "a whole number", error, error_size);
        }
        break;
    case OPTION_SIGNED: {
        i64 number;
        if (!option_parse_signed(text, &number)) {
            return refuse(option, text, "a whole number", error, error_size);
        }
        if (number < (i64)option->min || number > (i64)option->max) {
            explain_range(option, error, error_size);
            return ST_INVALID;
        }
        value = (u64)number;
        break;
    }
    case OPTION_RATE:
    case OPTION_BYTES: {
        char copy[48];
        size_t size = strlen(text);
        bool rate = option->kind == OPTION_RATE && size > 2 && strcmp(text + size - 2, "/s") == 0;
        if (rate) size -= 2;
        bool parsed = size < sizeof(copy);
        if (parsed) {
            memcpy(copy, text, size);
            copy[size] = '\0';
            parsed = option_parse_bytes(copy, &value);
        }
        if (!parsed) {
            return refuse(option, text, "a size such as 4096, 64KiB or 2GiB", error, error_size);
        }
        break;
    }
    case OPTION_DURATION:
        if (!option_parse_duration_ns(text, &value)) {
            return refuse(option, text, "a duration such as 20us, 10ms or 5s", error, error_size);
        }
        if (value % option->unit != 0) {
            char unit[32];
            option_format_duration(option->unit, unit, sizeof(unit));
            snprintf(error, error_size, "%s: must be a multiple of %s", option->name, unit);
            return ST_INVALID;
        }
        value /= option->unit;
        break;
    case OPTION_CHOICE: {
        status st = choice_index(option, text, &value, error, error_size);
        if (!ok(st)) return st;
        break;
    }
    }
    bool ranged = option->kind != OPTION_BOOL && option->kind != OPTION_CHOICE &&
                  option->kind != OPTION_SIGNED;
    if (ranged && (value < option->min || value > option->max)) {
        explain_range(option, error, error_size);
        return ST_INVALID;
    }
    atomic_store_explicit(number_at(option, values), value, memory_order_relaxed);
    return ST_OK;
}

size_t
option_get(const struct option *option, const void *values, char *out, size_t size)
{
    const char *place = (const char *)values + option->offset;
    if (option->kind == OPTION_STRING) {
        if ((option->flags & OPTION_RUNTIME) == 0) {
            return length_of(snprintf(out, size, "%s", place), size);
        }
        char text[OPTION_TEXT_BYTES];
        option_text_load((const struct option_text *)(const void *)place, text);
        return length_of(snprintf(out, size, "%s", text), size);
    }
    u64 value = atomic_load_explicit(number_at(option, values), memory_order_relaxed);
    switch (option->kind) {
    case OPTION_BOOL:
        return length_of(snprintf(out, size, "%s", value != 0 ? "yes" : "no"), size);
    case OPTION_SIGNED:
        return length_of(snprintf(out, size, "%lld", (long long)value), size);
    case OPTION_BYTES:
    case OPTION_RATE:
        return option_format_bytes(value, out, size);
    case OPTION_DURATION:
        return option_format_duration(value * option->unit, out, size);
    case OPTION_CHOICE:
        return length_of(snprintf(out, size, "%s", option->choices[value]), size);
    case OPTION_NUMBER:
    case OPTION_STRING:
        break;
    }
    return length_of(snprintf(out, size, "%llu", (unsigned long long)value), size);
}

void
option_set_defaults(const struct option_table *table, void *values)
{
    for (u32 i = 0; i < table->count; i++) {
        const struct option *option = &table->options[i];
        const char *text = option->fallback;
        if (text == NULL) {
            if (option->kind != OPTION_STRING) {
                atomic_store_explicit(number_at(option, values), 0, memory_order_relaxed);
                continue;
            }
            text = "";
        }
        char error[OPTION_ERROR_BYTES];
        status st = option_set(option, values, text, error, sizeof(error));
        CHECK(ok(st)); /* a default that its own table refuses */
    }
}

/* ---- flags ---- */

status
option_next_flag(const struct option_table *table, int argc, const char *const *argv, int *index,
                 const struct option **option_out, const char **value_out, char *error,
                 size_t error_size)
{
    const char *word = argv[*index];
    if (word[0] != '-' || word[1] == '\0') return ST_END;
    if (strcmp(word, "--") == 0) {
        (*index)++;
        return ST_END;
    }
    const char *name = word + (word[1] == '-' ? 2 : 1);
    const char *equals = strchr(name, '=');
    size_t name_size = equals != NULL ? (size_t)(equals - name) : strlen(name);
    const struct option *option = option_find(table, name, name_size);
    if (option == NULL && name_size == 1 && (name[0] == 'h' || name[0] == '?')) {
        option = option_find(table, "help", 4);
    }
    if (option == NULL) {
        option_unknown(table, name, name_size, error, error_size);
        return ST_INVALID;
    }
    const char *value = equals != NULL ? equals + 1 : NULL;
    int next = *index + 1;
    if (value == NULL && option->kind == OPTION_BOOL) value = "yes";
    if (value == NULL) {
        if (next >= argc) {
            snprintf(error, error_size, "option '%s' needs a value", option->name);
            return ST_INVALID;
        }
        value = argv[next++];
    }
    *index = next;
    *option_out = option;
    *value_out = value;
    return ST_OK;
}

/* ---- writing about them ---- */

/* Appends to a buffer that may be too small and counts what the whole text needs. */
struct writer {
    char *out;
    size_t size;
    size_t length;
};

static void PRINTF_LIKE(2, 3) put(struct writer *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    bool room = w->length < w->size;
    int printed =
        vsnprintf(room ? w->out + w->length : NULL, room ? w->size - w->length : 0, format, args);
    va_end(args);
    CHECK(printed >= 0);
    w->length += (size_t)printed;
}

/* Breaks text at spaces into lines of at most width, each after the first indented. */
static void
put_wrapped(struct writer *w, const char *text, u32 indent, u32 width)
{
    u32 column = indent;
    while (*text != '\0') {
        size_t word = strcspn(text, " ");
        if (column > indent && column + 1 + word > width) {
            put(w, "\n%*s", (int)indent, "");
            column = indent;
        } else if (column > indent) {
            put(w, " ");
            column++;
        }
        put(w, "%.*s", (int)word, text);
        column += (u32)word;
        text += word;
        while (*text == ' ')
            text++;
    }
    put(w, "\n");
}

static const char *
value_name(const struct option *option)
{
    if (option->value_name != NULL) return option->value_name;
    switch (option->kind) {
    case OPTION_BOOL:
        return "YES|NO";
    case OPTION_NUMBER:
    case OPTION_SIGNED:
        return "N";
    case OPTION_BYTES:
        return "SIZE";
    case OPTION_RATE:
        return "SIZE/s";
    case OPTION_DURATION:
        return "TIME";
    case OPTION_CHOICE:
        return "WORD";
    case OPTION_STRING:
        break;
    }
    return "TEXT";
}

static bool
takes_value(const struct option *option)
{
    return option->kind != OPTION_BOOL || (option->flags & OPTION_COMMAND) == 0;
}

static void
put_choices(struct writer *w, const struct option *option, const char *quote)
{
    for (u32 i = 0; option->choices[i] != NULL; i++) {
        put(w, "%s%s%s%s", i == 0 ? "" : ", ", quote, option->choices[i], quote);
    }
}

static const char *
default_of(const struct option *option)
{
    if (option->fallback != NULL && option->fallback[0] != '\0') return option->fallback;
    if (option->derived != NULL) return option->derived;
    return NULL;
}

/* The help with choices and default behind it, in one line. */
static void
describe(const struct option *option, char *out, size_t size)
{
    struct writer w = {.out = out, .size = size};
    put(&w, "%s", option->help);
    if (option->kind == OPTION_CHOICE) {
        put(&w, " One of ");
        put_choices(&w, option, "");
        put(&w, ".");
    }
    if ((option->flags & OPTION_COMMAND) == 0 && default_of(option) != NULL) {
        put(&w, " [%s]", default_of(option));
    }
}

/* Tables that are put together from pieces repeat the section in each piece. */
static bool
new_section(const struct option_table *table, u32 index)
{
    const char *section = table->options[index].section;
    if (section == NULL) return false;
    for (u32 i = index; i-- > 0;) {
        const char *before = table->options[i].section;
        if (before != NULL) return strcmp(before, section) != 0;
    }
    return true;
}

size_t
option_help_text(const struct option_table *table, char *out, size_t size)
{
    struct writer w = {.out = out, .size = size};
    put(&w, "%s -- %s\n\nUsage: %s %s\n", table->program, table->summary, table->program,
        table->usage);
    for (u32 i = 0; i < table->count; i++) {
        const struct option *option = &table->options[i];
        if (new_section(table, i)) put(&w, "\n%s:\n", option->section);
        size_t before = w.length;
        put(&w, "  --%s%s%s", option->name, takes_value(option) ? " " : "",
            takes_value(option) ? value_name(option) : "");
        size_t used = w.length - before;
        if (used < 32) {
            put(&w, "%*s", (int)(32 - used), "");
        } else {
            put(&w, "\n%32s", "");
        }
        char text[1024];
        describe(option, text, sizeof(text));
        put_wrapped(&w, text, 32, 100);
    }
    if (table->epilogue != NULL) put(&w, "\n%s", table->epilogue);
    return w.length;
}

size_t
option_help_markdown(const struct option_table *table, char *out, size_t size)
{
    struct writer w = {.out = out, .size = size};
    for (u32 i = 0; i < table->count; i++) {
        const struct option *option = &table->options[i];
        if (new_section(table, i)) {
            put(&w, "%s## %s\n\n", i == 0 ? "" : "\n", option->section);
            put(&w, "| option | default | meaning |\n| --- | --- | --- |\n");
        }
        put(&w, "| `--%s%s%s` | ", option->name, takes_value(option) ? " " : "",
            takes_value(option) ? value_name(option) : "");
        if (option->fallback != NULL && option->fallback[0] != '\0' &&
            (option->flags & OPTION_COMMAND) == 0) {
            put(&w, "`%s`", option->fallback);
        } else if (option->derived != NULL) {
            put(&w, "%s", option->derived);
        }
        put(&w, " | ");
        for (const char *c = option->help; *c != '\0'; c++) {
            put(&w, "%s%c", *c == '|' ? "\\" : "", *c);
        }
        if (option->kind == OPTION_CHOICE) {
            put(&w, " One of ");
            put_choices(&w, option, "`");
            put(&w, ".");
        }
        if ((option->flags & OPTION_RUNTIME) != 0) put(&w, " *Changeable while running.*");
        put(&w, " |\n");
    }
    return w.length;
}

/* roff takes a leading dot or quote for a request and a bare dash for a hyphen. */
static void
put_roff(struct writer *w, const char *text)
{
    bool line_start = true;
    for (const char *c = text; *c != '\0'; c++) {
        if (line_start && (*c == '.' || *c == '\'')) put(w, "\\&");
        if (*c == '-') {
            put(w, "\\-");
        } else if (*c == '\\') {
            put(w, "\\e");
        } else {
            put(w, "%c", *c);
        }
        line_start = *c == '\n';
    }
}

size_t
option_help_man(const struct option_table *table, const char *version, char *out, size_t size)
{
    struct writer w = {.out = out, .size = size};
    put(&w, ".TH \"%s\" 8 \"\" \"DistKV %s\" \"System administration\"\n.SH NAME\n", table->program,
        version);
    put_roff(&w, table->program);
    put(&w, " \\- ");
    put_roff(&w, table->summary);
    put(&w, "\n.SH SYNOPSIS\n.B ");
    put_roff(&w, table->program);
    put(&w, "\n");
    put_roff(&w, table->usage);
    put(&w, "\n.SH OPTIONS\n"
            "Each option may be given as a flag with one dash or two, as a variable of the\n"
            "environment, or as a line of the config file. The first of these wins.\n");
    for (u32 i = 0; i < table->count; i++) {
        const struct option *option = &table->options[i];
        if (new_section(table, i)) {
            put(&w, ".SS \"");
            put_roff(&w, option->section);
            put(&w, "\"\n");
        }
        put(&w, ".TP\n.B \\-\\-");
        put_roff(&w, option->name);
        if (takes_value(option)) {
            put(&w, " \\fI");
            put_roff(&w, value_name(option));
            put(&w, "\\fR");
        }
        put(&w, "\n");
        char text[1024];
        describe(option, text, sizeof(text));
        put_roff(&w, text);
        put(&w, "\n");
    }
    if (table->epilogue != NULL) {
        put(&w, ".SH NOTES\n.nf\n");
        put_roff(&w, table->epilogue);
        put(&w, ".fi\n");
    }
    return w.length;
}
