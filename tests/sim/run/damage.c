/* SPDX-License-Identifier: MIT
 *
 * damage.c -- see damage.h. Records are few, so each question goes through all of them.
 *
 * A file belongs to the store whose directory it is in, /data/p0000-2047.3/, and that names the
 * partitions of its keys. One with several names, or with none, may belong to any.
 */
#include "damage.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "files.h"

#define LOSSES_MAX     256u
#define RECOVERIES_MAX 1024u

/* Tokens whose log was damaged when a process ended. */
static struct loss {
    u32 first, last; /* partitions */
    u64 since_ns;
} losses[LOSSES_MAX];
static u32 loss_count;

static struct recovery {
    u64 begun_ns, ended_ns; /* UINT64_MAX: not yet */
} recoveries[RECOVERIES_MAX];
static u32 recovery_count;

struct place {
    u32 first, last; /* partitions; all of them when it is no store's, or of several */
    char kind;       /* of file: l, t, b, m; 0: another */
    u64 file_id;     /* of t and b */
};

static struct place
place_of(const struct sim_damage *damage)
{
    struct place place = {.first = 0, .last = PARTITION_COUNT_DEFAULT - 1};
    const char *path = damage->path[0] == '/' ? damage->path : damage->path_then;
    const char *name = strrchr(path, '/');
    if (name == NULL) return place;
    place.kind = strchr("ltbm", name[1]) != NULL ? name[1] : '\0';
    if (place.kind == 't' || place.kind == 'b') place.file_id = strtoull(name + 2, NULL, 16);
    u32 first, last;
    bool named = path == damage->path || place.kind == 'l'; /* logs have one name */
    if (!damage->shared && named && sscanf(path, "/data/p%u-%u.", &first, &last) == 2) {
        place.first = first;
        place.last = last;
    }
    return place;
}

static bool
place_has(const struct place *place, u64 token)
{
    u32 partition = token_partition(token, PARTITION_COUNT_DEFAULT);
    return partition >= place->first && partition <= place->last;
}

/* ---- what may be lost ---- */

void
damage_init(void)
{
    loss_count = recovery_count = 0;
}

void
damage_recovery_begin(void)
{
    CHECK(recovery_count < RECOVERIES_MAX);
    recoveries[recovery_count++] = (struct recovery){sim_now_ns(run->sim), UINT64_MAX};
}

void
damage_recovery_end(void)
{
    recoveries[recovery_count - 1].ended_ns = sim_now_ns(run->sim);
}

static bool
recovering_at(u64 time_ns)
{
    for (u32 i = 0; i < recovery_count; i++)
        if (time_ns >= recoveries[i].begun_ns && time_ns <= recoveries[i].ended_ns) return true;
    return false;
}

static void
loss_note(void *arg, const struct sim_damage *damage)
{
    (void)arg;
    struct place place = place_of(damage);
    const struct recovery *last = recovery_count > 0 ? &recoveries[recovery_count - 1] : NULL;
    bool met = last != NULL && last->ended_ns == UINT64_MAX && damage->time_ns >= last->begun_ns;
    if (place.kind != 'l' || !(damage->there || met)) return;
    u64 since_ns = damage->stale && !recovering_at(damage->time_ns) ? damage->time_ns : 0;
    for (u32 i = 0; i < loss_count; i++) {
        struct loss *loss = &losses[i];
        if (loss->first != place.first || loss->last != place.last) continue;
        loss->since_ns = MIN(loss->since_ns, since_ns);
        return;
    }
    CHECK(loss_count < LOSSES_MAX);
    losses[loss_count++] = (struct loss){place.first, place.last, since_ns};
}

void
damage_note(void)
{
    sim_damage_each(run->sim, loss_note, NULL);
}

void
damage_forget(void)
{
    loss_count = 0;
}

bool
damage_may_lose(u64 token, u64 *since_ns)
{
    bool loses = false;
    *since_ns = UINT64_MAX;
    for (u32 i = 0; i < loss_count; i++) {
        struct place place = {.first = losses[i].first, .last = losses[i].last};
        if (!place_has(&place, token)) continue;
        *since_ns = MIN(*since_ns, losses[i].since_ns);
        loses = true;
    }
    return loses;
}

/* ---- what may be refused ---- */

struct search {
    bool any, reads;
    u16 keyspace;
    u64 token;
    const char *path;
    bool found;
};

static void
search_one(void *arg, const struct sim_damage *damage)
{
    struct search *search = arg;
    if (!damage->there || search->found) return;
    struct place place = place_of(damage);
    if (search->path != NULL) {
        /* Segments of a log name each other, and so do a manifest and its tables. */
        const char *name = strrchr(search->path, '/');
        search->found = damage->shared || strcmp(damage->path, search->path) == 0 ||
                        (name != NULL && (place.kind == 'l' || place.kind == 'm') &&
                         strncmp(damage->path, search->path, (size_t)(name - search->path)) == 0);
        return;
    }
    if (search->any) {
        search->found = true;
    } else if (!search->reads) {
        search->found = place_has(&place, search->token);
    } else if (place.kind == 't' || place.kind == 'b') {
        search->found =
            run->server == NULL || file_serves(run->server, place.kind == 'b', place.file_id,
                                               search->keyspace, search->token);
    }
}

bool
damage_ever(void)
{
    const struct sim *sim = run->sim;
    return sim_fault_count(sim, SIM_FAULT_BIT_ROT) + sim_fault_count(sim, SIM_FAULT_LATENT) +
               sim_fault_count(sim, SIM_FAULT_MISDIRECTED) +
               sim_fault_count(sim, SIM_FAULT_LOST_WRITE) >
           0;
}

bool
damage_anywhere(void)
{
    struct search search = {.any = true};
    sim_damage_each(run->sim, search_one, &search);
    return search.found;
}

bool
damage_in_store(u64 token)
{
    struct search search = {.token = token};
    sim_damage_each(run->sim, search_one, &search);
    return search.found;
}

bool
damage_in_reach(u16 keyspace, u64 token)
{
    struct search search = {.reads = true, .keyspace = keyspace, .token = token};
    sim_damage_each(run->sim, search_one, &search);
    return search.found;
}

bool
damage_in_file(const char *path)
{
    struct search search = {.path = path};
    sim_damage_each(run->sim, search_one, &search);
    return search.found;
}
