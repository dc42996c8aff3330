/* SPDX-License-Identifier: MIT
 *
 * level_verify.c -- checks the files of a closed store: the manifest, then every table and blob
 * file that it names, and manifest.old, each byte against its checksums. Goes on after damage, so
 * that one run tells all.
 */
#include <stdio.h>

#include "base/fault.h"
#include "io/file.h"
#include "io/io.h"
#include "lsm/levels_internal.h"

struct verify {
    const char *dir;
    void (*report)(void *arg, const char *file, u64 offset, const char *what);
    void *arg;
    u64 files, bytes;
    bool damaged;
    bool hides; /* what is damaged names the files: without it they are not known */
};

/* The one whose places are told. */
struct place_file {
    struct verify *verify;
    const char *path;
};

static void
damage(struct verify *verify, const char *file, u64 offset, const char *what)
{
    MARK("lsm.verify.damage");
    verify->damaged = true;
    char text[160];
    if (verify->hides) {
        snprintf(text, sizeof(text), "%s; the files that it names and the log were not checked",
                 what);
        what = text;
    }
    if (verify->report != NULL) verify->report(verify->arg, file, offset, what);
}

static void
place_each(void *arg, u64 offset, const char *what)
{
    const struct place_file *file = arg;
    damage(file->verify, file->path, offset, what);
}

/* ok: the next file. Damage is noted and is ok, too; what is not damage ends the verification. */
static status
outcome(struct verify *verify, status st, const char *file, u64 offset, const char *what)
{
    if (status_is(st, ST_CORRUPT)) {
        damage(verify, file, offset, what);
    } else if (status_is(st, ST_NOT_FOUND)) {
        MARK("lsm.verify.file_missing");
        damage(verify, file, 0, "file is missing");
    } else if (status_is_io(st) || status_is(st, ST_END)) {
        MARK("lsm.verify.unreadable");
        damage(verify, file, offset, "cannot be read");
    } else {
        return st;
    }
    return ST_OK;
}

/* As outcome, of a file whose places have been told. */
static status
places_outcome(struct verify *verify, status st, const char *file)
{
    return status_is(st, ST_CORRUPT) ? ST_OK : outcome(verify, st, file, 0, "");
}

/* A table may stand in several slots; it is checked at the first. */
static bool
seen_before(const struct manifest *manifest, u32 index)
{
    const struct manifest_table *table = &manifest->tables[index];
    if (table->view_first == table->meta->token_first &&
        table->view_last == table->meta->token_last)
        return false;
    for (u32 i = 0; i < index; i++) {
        if (manifest->tables[i].meta->file_id == table->meta->file_id) return true;
    }
    return false;
}

MAY_YIELD static status
verify_named(struct verify *verify, const struct manifest *manifest)
{
    char path[LSM_PATH_BYTES];
    struct place_file file = {verify, path};
    for (u32 i = 0; i < manifest->table_count; i++) {
        if (seen_before(manifest, i)) continue;
        const struct table_meta *meta = manifest->tables[i].meta;
        struct places places = {.each = place_each, .arg = &file};
        table_path(path, verify->dir, meta->file_id);
        status st = table_verify_all(verify->dir, meta, io_budget(), &places);
        st = places_outcome(verify, st, path);
        if (!ok(st)) return st;
        verify->files++;
        verify->bytes += meta->file_bytes;
    }
    for (u32 i = 0; i < manifest->blob_count; i++) {
        const struct manifest_blob *blob = &manifest->blobs[i];
        struct places places = {.each = place_each, .arg = &file};
        blob_path(path, verify->dir, blob->file_id);
        status st =
            blob_verify_all(verify->dir, blob->file_id, blob->file_bytes, io_budget(), &places);
        st = places_outcome(verify, st, path);
        if (!ok(st)) return st;
        verify->files++;
        verify->bytes += blob->file_bytes;
    }
    return ST_OK;
}

/* manifest.old is what an operator turns to when the manifest is lost, so its own bytes must be
 * good. The files it names may be gone by now: that is no damage. */
MAY_YIELD static status
verify_old_manifest(struct verify *verify)
{
    char path[LSM_PATH_BYTES];
    struct manifest manifest = {.budget = io_budget()};
    int length = snprintf(path, sizeof(path), "%s/manifest.old", verify->dir);
    CHECK(length > 0 && length < (int)sizeof(path)); /* tables have longer names */
    u64 offset = 0;
    const char *what = "";
    status st = manifest_read_old(verify->dir, io_budget(), &manifest, &offset, &what);
    if (status_is(st, ST_NOT_FOUND)) return ST_OK;
    if (status_is(st, ST_UNSUPPORTED)) { /* nobody can turn to it, whatever its bytes are */
        MARK("lsm.verify.old_unsupported");
        damage(verify, path, offset, what);
        return ST_OK;
    }
    if (!ok(st)) return outcome(verify, st, path, offset, what);
    verify->files++;
    verify->bytes += align_up(manifest_encoded_size(&manifest), IO_ALIGNMENT);
    manifest_free(&manifest);
    return ST_OK;
}

static void
name_ignore(void *arg, const char *name)
{
    (void)arg;
    (void)name;
}

MAY_YIELD status
levels_verify(const char *dir,
              void (*report)(void *arg, const char *file, u64 offset, const char *what), void *arg,
              u64 *files_out, u64 *bytes_out, struct levels_state *state_out)
{
    struct verify verify = {.dir = dir, .report = report, .arg = arg, .hides = true};
    struct manifest manifest = {.budget = io_budget()};
    *state_out = (struct levels_state){0};
    char path[LSM_PATH_BYTES];
    int length = snprintf(path, sizeof(path), "%s/manifest", dir);
    if (length <= 0 || length >= (int)sizeof(path))
        return MARKED("lsm.verify.path_too_long", ST_INVALID);
    u64 offset = 0;
    const char *what = "";
    status st = manifest_read(dir, io_budget(), &manifest, &offset, &what);
    if (status_is(st, ST_NOT_FOUND)) {
        st = io_dir_list(dir, name_ignore, NULL); /* is the directory there? */
        if (ok(st)) {
            MARK("lsm.verify.manifest_missing");
            damage(&verify, path, 0, "file is missing");
        }
    } else if (ok(st)) {
        *state_out = manifest.state;
        verify.hides = false;
        verify.files++;
        verify.bytes += align_up(manifest_encoded_size(&manifest), IO_ALIGNMENT);
        st = verify_named(&verify, &manifest);
        manifest_free(&manifest);
    } else if (status_is(st, ST_UNSUPPORTED)) {
        MARK("lsm.verify.unsupported");
        damage(&verify, path, offset, what);
        st = ST_OK;
    } else {
        st = outcome(&verify, st, path, offset, what);
    }
    verify.hides = false;
    if (ok(st)) st = verify_old_manifest(&verify);
    *files_out = verify.files;
    *bytes_out = verify.bytes;
    return ok(st) && verify.damaged ? ST_CORRUPT : st;
}
