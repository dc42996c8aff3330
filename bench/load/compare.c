/* SPDX-License-Identifier: MIT
 *
 * compare.c -- runs of the same name in two files: figures, their ratio, and whether it is for the
 * better. What was asked for differently is said first, because then the ratio means little.
 */
#include "load/compare.h"

#include "load/report.h"

enum better { MORE, LESS };

struct figure {
    const char *name;
    const char *path[3]; /* of objects in a run; the last is a number */
    enum better better;
};

static const struct figure FIGURES[] = {
    {"requests/s", {"rate"}, MORE},
    {"mean us", {"latency_us", "total", "mean"}, LESS},
    {"p50 us", {"latency_us", "total", "p50"}, LESS},
    {"p99 us", {"latency_us", "total", "p99"}, LESS},
    {"p99.9 us", {"latency_us", "total", "p99.9"}, LESS},
    {"p99.99 us", {"latency_us", "total", "p99.99"}, LESS},
    {"max us", {"latency_us", "total", "max"}, LESS},
    {"server CPU us", {"server_cpu_us_per_op"}, LESS},
    {"client CPU us", {"client_cpu_us_per_op"}, LESS},
    {"errors", {"error_count"}, LESS},
    {"wrong", {"wrong_count"}, LESS},
};

static const json_t *
at_path(const json_t *object, const char *const path[3])
{
    for (u32 i = 0; i < 3 && path[i] != NULL; i++)
        object = json_object_get(object, path[i]);
    return object;
}

static const char *
text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "?";
}

static const json_t *
find_run(const json_t *runs, const char *name)
{
    size_t i;
    json_t *run;
    json_array_foreach(runs, i, run) if (strcmp(text_of(run, "name"), name) == 0) return run;
    return NULL;
}

static void
print_value(const json_t *value, FILE *out)
{
    char *text = value == NULL ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    fprintf(out, "%s", text != NULL ? text : "nothing");
    free(text);
}

static void
print_differences(const json_t *before, const json_t *after, FILE *out)
{
    const json_t *a = json_object_get(before, "options"), *b = json_object_get(after, "options");
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)a, name, value)
    {
        const json_t *other = json_object_get(b, name);
        if (json_equal(value, other) || strcmp(name, "server") == 0) continue;
        fprintf(out, "  differs: --%s ", name);
        print_value(value, out);
        fprintf(out, ", then ");
        print_value(other, out);
        fprintf(out, "\n");
    }
}

static void
print_figure(const struct figure *figure, const json_t *before, const json_t *after, FILE *out)
{
    const json_t *a = at_path(before, figure->path), *b = at_path(after, figure->path);
    if (!json_is_number(a) || !json_is_number(b)) return;
    double old = json_number_value(a), new = json_number_value(b);
    fprintf(out, "  %-14s %16.3f %16.3f", figure->name, old, new);
    if (old == new) {
        fprintf(out, "      same\n");
    } else if (old == 0) {
        fprintf(out, "         -   %s\n",
                (new > old) == (figure->better == MORE) ? "better" : "worse");
    } else {
        bool better = (new > old) == (figure->better == MORE);
        fprintf(out, "  %+7.1f %%   %s\n", (new / old - 1) * 100, better ? "better" : "worse");
    }
}

static void
print_who(const char *which, const json_t *file, FILE *out)
{
    const json_t *server = json_object_get(file, "server"),
                 *machine = json_object_get(file, "machine"),
                 *head = json_object_get(file, "distkv_bench");
    fprintf(out, "%s: %s %s, %s, %s, %s\n", which, text_of(server, "name"),
            text_of(server, "version"), text_of(machine, "cpu"), text_of(machine, "kernel"),
            text_of(head, "time"));
}

static bool
is_result(const json_t *file)
{
    const json_t *head = json_object_get(file, "distkv_bench");
    return json_integer_value(json_object_get(head, "format")) == REPORT_FORMAT &&
           json_is_array(json_object_get(file, "runs"));
}

bool
compare_print(const json_t *before, const json_t *after, FILE *out, char *error, size_t error_size)
{
    if (!is_result(before) || !is_result(after)) {
        snprintf(error, error_size, "the %s file is no result of this program",
                 is_result(before) ? "second" : "first");
        return false;
    }
    print_who("before", before, out);
    print_who("after ", after, out);
    const json_t *runs = json_object_get(before, "runs"), *others = json_object_get(after, "runs");
    size_t i;
    json_t *run;
    u32 compared = 0;
    json_array_foreach(runs, i, run)
    {
        const json_t *other = find_run(others, text_of(run, "name"));
        if (other == NULL) continue;
        compared++;
        fprintf(out, "\n%s\n", text_of(run, "name"));
        print_differences(run, other, out);
        fprintf(out, "  %-14s %16s %16s\n", "", "before", "after");
        for (u32 f = 0; f < ARRAY_COUNT(FIGURES); f++)
            print_figure(&FIGURES[f], run, other, out);
    }
    if (compared > 0) return true;
    snprintf(error, error_size, "the files have no run of the same name");
    return false;
}

bool
compare_files(const char *before, const char *after, FILE *out, char *error, size_t error_size)
{
    const char *const names[2] = {before, after};
    json_t *files[2] = {NULL, NULL};
    bool done = true;
    for (u32 i = 0; i < 2 && done; i++) {
        json_error_t problem;
        files[i] = json_load_file(names[i], 0, &problem);
        if (files[i] != NULL) continue;
        snprintf(error, error_size, "%s: %s", names[i], problem.text);
        done = false;
    }
    done = done && compare_print(files[0], files[1], out, error, error_size);
    json_decref(files[0]);
    json_decref(files[1]);
    return done;
}
