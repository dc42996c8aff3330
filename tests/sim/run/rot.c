/* SPDX-License-Identifier: MIT
 *
 * rot.c -- see rot.h. Tables of the system's keyspace are left alone: nobody else has what lies
 * there. So are indexes, filters and footers: a store does not open without them.
 */
#include "rot.h"

#include "lsm/levels_internal.h"
#include "lsm/lsm_internal.h"
#include "lsm/table_format.h"

bool
rot_table(struct lsm *lsm, struct sim_disk *disk, struct prng *prng, struct rot *out)
{
    const struct run_set *set = lsm->levels->current;
    const struct table *table = NULL;
    u64 count = 0;
    for (u32 i = 0; i < set->run_count; i++) {
        const struct run *run = set->runs[i];
        for (u32 j = 0; j < run->count && run->keyspace < LIMIT_KEYSPACES_CLIENT; j++)
            if (prng_below(prng, ++count) == 0) table = run->slots[j].file->table;
    }
    if (table == NULL) return false;
    char path[LSM_PATH_BYTES];
    table_path(path, table->dir, table->meta.file_id);
    u64 offset = prng_below(prng, table->index->block_bytes);
    if (!ok(sim_disk_flip(disk, path, offset, (u8)(1u << prng_below(prng, 8))))) return false;
    out->disk = disk;
    status st = sim_disk_file_number(disk, path, &out->file);
    CHECK(ok(st));
    return true;
}

bool
rot_is_there(const struct rot *rot)
{
    return rot->file != 0 && sim_disk_file_named(rot->disk, rot->file);
}
