/* SPDX-License-Identifier: MIT
 *
 * latency_graph.c -- LATENCY GRAPH: an event's samples as a picture of text, as Redis draws it.
 *
 *      #       four rows, three heights in each: _ o #, and | under a top
 *    | o
 *  # | |_
 *   _|#|_||
 *
 *   9875421    how long ago, read downwards: seconds, minutes, hours or days
 *   sssssss
 */
#include <stdio.h>

#include "server/slowlog.h"

#define COLUMNS      80u
#define ROWS         4u
#define STEPS        3u /* heights in a row */
#define LABEL_BYTES  24u
#define MARGIN_LINES 1u

struct column {
    u64 ms;
    char age[LABEL_BYTES];
};

static void
age_text(char *text, u64 seconds)
{
    static const struct {
        u64 seconds;
        char unit;
    } units[] = {{24 * 3600, 'd'}, {3600, 'h'}, {60, 'm'}, {1, 's'}};
    u32 i = 0;
    while (i < ARRAY_COUNT(units) - 1 && seconds < units[i].seconds)
        i++;
    snprintf(text, LABEL_BYTES, "%llu%c", (unsigned long long)(seconds / units[i].seconds),
             units[i].unit);
}

/* What stands in a row, counted from the top, over a sample of this height. */
static char
curve_char(u32 row, u64 height)
{
    static const char tops[] = "_o#";
    u64 below = (ROWS - row - 1) * STEPS;
    if (height < below) return ' ';
    return height - below < STEPS ? tops[height - below] : '|';
}

static bool
columns_draw(struct buf *out, const struct column *columns, u32 count, u64 low, u64 high)
{
    size_t label_bytes = 0;
    for (u32 i = 0; i < count; i++)
        label_bytes = MAX(label_bytes, strlen(columns[i].age));
    u64 range = MAX(high - low, 1u);
    for (u32 row = 0; row < ROWS + MARGIN_LINES + label_bytes; row++) {
        char line[COLUMNS + 1];
        for (u32 i = 0; i < count; i++) {
            u64 height = MIN((columns[i].ms - low) * ROWS * STEPS / range, ROWS * STEPS - 1);
            line[i] = ' ';
            if (row < ROWS)
                line[i] = curve_char(row, height);
            else if (row >= ROWS + MARGIN_LINES &&
                     row - ROWS - MARGIN_LINES < strlen(columns[i].age))
                line[i] = columns[i].age[row - ROWS - MARGIN_LINES];
        }
        line[count] = '\n';
        if (!buf_append(out, line, count + 1)) return false;
    }
    return true;
}

bool
latency_graph(struct buf *out, const char *event, const struct latency_series *series, u64 now_s)
{
    u64 low = UINT64_MAX, high = 0;
    for (u32 i = 0; i < series->count; i++) {
        u64 ms = series->samples[latency_sample_at(series, i)].ms;
        low = MIN(low, ms);
        high = MAX(high, ms);
    }
    char title[160 + COLUMNS];
    int size = snprintf(
        title, sizeof(title), "%s - high %llu ms, low %llu ms (all time high %llu ms)\n", event,
        (unsigned long long)high, (unsigned long long)low, (unsigned long long)series->max_ms);
    memset(title + size, '-', COLUMNS);
    title[(u32)size + COLUMNS] = '\n';
    if (!buf_append(out, title, (u32)size + COLUMNS + 1)) return false;
    for (u32 first = 0; first < series->count; first += COLUMNS) {
        struct column columns[COLUMNS];
        u32 count = MIN(series->count - first, COLUMNS);
        for (u32 i = 0; i < count; i++) {
            u32 at = latency_sample_at(series, first + i);
            u64 time_s = series->samples[at].time_s;
            columns[i].ms = series->samples[at].ms;
            age_text(columns[i].age, now_s > time_s ? now_s - time_s : 0);
        }
        if (first != 0 && !buf_append(out, "\n", 1)) return false;
        if (!columns_draw(out, columns, count, low, high)) return false;
    }
    return true;
}
