/* SPDX-License-Identifier: MIT
 *
 * files.c -- see files.h.
 */
#include "files.h"

#include "lsm/levels_internal.h"
#include "lsm/lsm_internal.h"
#include "server/shard.h"

static bool
table_is(const struct level_table *file, bool is_blob, u64 file_id)
{
    if (!is_blob) return file->table->meta.file_id == file_id;
    for (u32 i = 0; i < file->blob_count; i++)
        if (file->blobs[i]->file_id == file_id) return true;
    return false;
}

static bool
run_serves(const struct run *of_tables, bool is_blob, u64 file_id, u64 token)
{
    for (u32 i = 0; i < of_tables->count; i++) {
        const struct run_slot *slot = &of_tables->slots[i];
        if (token >= slot->token_first && token <= slot->token_last &&
            table_is(slot->file, is_blob, file_id))
            return true;
    }
    return false;
}

bool
file_serves(const struct server *server, bool is_blob, u64 file_id, u16 keyspace, u64 token)
{
    for (u32 i = 0; i < server->shard_count; i++) {
        const struct shard *shard = server->shards[i];
        if (shard == NULL || shard->lsm == NULL || shard->lsm->levels == NULL) return true;
        const struct run_set *set = shard->lsm->levels->current;
        for (u32 k = 0; k < set->run_count; k++)
            if (set->runs[k]->keyspace == keyspace &&
                run_serves(set->runs[k], is_blob, file_id, token))
                return true;
    }
    return false;
}
