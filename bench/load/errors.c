/* SPDX-License-Identifier: MIT
 *
 * errors.c -- see errors.h. Names are compared as they are shown, dots and cut included. There are
 * few, so they are searched one by one; the last place is kept for "other".
 */
#include "load/errors.h"

static void
copy_shown(char *out, size_t out_size, struct bytes text)
{
    size_t size = MIN(text.size, out_size - 1);
    for (size_t i = 0; i < size; i++)
        out[i] = text.data[i] >= ' ' && text.data[i] < 127 ? (char)text.data[i] : '.';
    out[size] = '\0';
}

void
errors_add(struct errors *errors, u64 count, struct bytes name, struct bytes text)
{
    if (count == 0) return;
    char shown[ERROR_NAME_MAX];
    copy_shown(shown, sizeof(shown), name);
    errors->total += count;
    u32 i = 0;
    while (i < errors->kinds && strcmp(errors->kind[i].name, shown) != 0)
        i++;
    if (i == ERROR_KINDS_MAX) i = ERROR_KINDS_MAX - 1;
    struct error_count *kind = &errors->kind[i];
    if (i == errors->kinds) {
        errors->kinds++;
        if (i == ERROR_KINDS_MAX - 1)
            memcpy(kind->name, "other", 6);
        else
            memcpy(kind->name, shown, sizeof(shown));
        copy_shown(kind->text, sizeof(kind->text), text);
    }
    kind->count += count;
}

void
errors_merge(struct errors *target, const struct errors *source)
{
    for (u32 i = 0; i < source->kinds; i++) {
        const struct error_count *kind = &source->kind[i];
        errors_add(target, kind->count, BYTES(kind->name, strlen(kind->name)),
                   BYTES(kind->text, strlen(kind->text)));
    }
}
