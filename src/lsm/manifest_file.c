/* SPDX-License-Identifier: MIT
 *
 * manifest_file.c -- reads and writes the manifest of a store.
 *
 * The order of a write, and what a power cut leaves after each step:
 *
 *   1. write and sync manifest.new               old state
 *   2. sync the directory                        old state; tables and blobs have durable names
 *   3. link manifest to manifest.old             old state
 *   4. rename manifest.new to manifest           old or new state
 *   5. sync the directory                        new state
 *
 * When there is no space for 1, manifest.old goes first.
 *
 * Up to 3 a failure leaves the old state for certain; after 4 began nobody knows which holds, so
 * the caller must not remove a file that either names.
 */
#include <stdio.h>

#include "base/fault.h"
#include "io/file.h"
#include "lsm/manifest.h"

static void
manifest_path(char *path, const char *dir, const char *suffix)
{
    int length = snprintf(path, LSM_PATH_BYTES, "%s/manifest%s", dir, suffix);
    CHECK(length > 0 && length < (int)LSM_PATH_BYTES);
}

MAY_YIELD static status
read_file(const char *path, struct budget *budget, struct manifest *out, u64 *offset_out,
          const char **what_out)
{
    *offset_out = 0;
    *what_out = "cannot be read";
    struct io_file *file;
    status st = io_file_open(path, IO_OPEN_READ, &file);
    if (!ok(st)) return st;

    u64 size;
    u8 *buffer = NULL;
    st = io_file_size(file, &size);
    if (!ok(st)) goto close;
    if (size == 0 || size % IO_ALIGNMENT != 0 || size > MANIFEST_BYTES_MAX) {
        MARK("lsm.manifest.impossible_size");
        *what_out = "impossible size";
        st = ST_CORRUPT;
        goto close;
    }
    buffer = mem_alloc_aligned(budget, size, IO_ALIGNMENT);
    if (buffer == NULL) {
        MARK("lsm.manifest.read_no_memory");
        *what_out = "no memory to hold it";
        st = ST_NO_MEMORY;
        goto close;
    }
    for (u64 at = 0; at < size && ok(st); at += LIMIT_IO_BYTES) {
        *offset_out = at;
        st =
            io_file_read(file, IO_CLASS_READ, buffer + at, (u32)MIN(LIMIT_IO_BYTES, size - at), at);
    }
    if (ok(st)) st = manifest_decode(BYTES(buffer, size), budget, out, offset_out, what_out);

close:
    mem_free(budget, buffer, size);
    io_file_close(file);
    return st;
}

MAY_YIELD status
manifest_read(const char *dir, struct budget *budget, struct manifest *out, u64 *offset_out,
              const char **what_out)
{
    char path[LSM_PATH_BYTES];
    manifest_path(path, dir, "");
    return read_file(path, budget, out, offset_out, what_out);
}

MAY_YIELD status
manifest_read_old(const char *dir, struct budget *budget, struct manifest *out, u64 *offset_out,
                  const char **what_out)
{
    char path[LSM_PATH_BYTES];
    manifest_path(path, dir, ".old");
    return read_file(path, budget, out, offset_out, what_out);
}

/* Step 1 of the essay. */
MAY_YIELD static status
write_new_file(const char *path, const struct manifest *manifest, struct budget *budget)
{
    u64 size = align_up(manifest_encoded_size(manifest), IO_ALIGNMENT);
    if (size > MANIFEST_BYTES_MAX) return MARKED("lsm.manifest.too_large", ST_TOO_LARGE);
    u8 *buffer = mem_alloc_aligned(budget, size, IO_ALIGNMENT);
    if (buffer == NULL) return MARKED("lsm.manifest.write_no_memory", ST_NO_MEMORY);
    memset(buffer + size - IO_ALIGNMENT, 0, IO_ALIGNMENT);
    manifest_encode(manifest, buffer);

    struct io_file *file = NULL;
    status st = io_file_unlink(path); /* what a crash left */
    if (ok(st) || status_is(st, ST_NOT_FOUND))
        st = io_file_open(path, IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    /* Allocated first: a write that grows a file falls to a kernel worker. */
    if (ok(st)) st = io_file_allocate(file, size);
    for (u64 at = 0; at < size && ok(st); at += LIMIT_IO_BYTES)
        st = io_file_write(file, IO_CLASS_COMPACTION, buffer + at,
                           (u32)MIN(LIMIT_IO_BYTES, size - at), at, false);
    if (ok(st)) st = io_file_sync(file);
    if (file != NULL) io_file_close(file);
    mem_free(budget, buffer, size);
    return st;
}

MAY_YIELD status
manifest_write(const char *dir, const struct manifest *manifest, struct budget *budget,
               bool *outcome_known_out)
{
    char path[LSM_PATH_BYTES], path_new[LSM_PATH_BYTES], path_old[LSM_PATH_BYTES];
    manifest_path(path, dir, "");
    manifest_path(path_new, dir, ".new");
    manifest_path(path_old, dir, ".old");
    *outcome_known_out = true;
    u32 index;
    DCHECK(manifest_check(manifest, &index) == NULL);

    status st = write_new_file(path_new, manifest, budget);
    if (status_is(st, ST_NO_SPACE)) {
        /* It has the room where the copy lies, which it needs anyway: this may set tables free. */
        MARK("lsm.manifest.old_for_new");
        if (ok(io_file_unlink(path_old))) st = write_new_file(path_new, manifest, budget);
    }
    if (ok(st)) st = io_dir_sync(dir);
    if (!ok(st)) {
        MARK("lsm.manifest.not_written");
        return st;
    }
    /* The copy for the operator is a courtesy: its absence is not a failure. */
    status old = io_file_unlink(path_old);
    if (ok(old) || status_is(old, ST_NOT_FOUND)) old = io_file_link(path, path_old);
    if (!ok(old) && !status_is(old, ST_NOT_FOUND)) MARK("lsm.manifest.no_old_copy");

    *outcome_known_out = false;
    st = io_file_rename(path_new, path);
    if (ok(st)) st = io_dir_sync(dir);
    if (!ok(st)) MARK("lsm.manifest.outcome_unknown");
    return st;
}
