/* SPDX-License-Identifier: MIT
 *
 * replicate_siblings.c -- keyspaces with `conflict = siblings`: writes with a context, unions in
 * the own store, and the actors that dots are of. See siblings.h, docs/cluster-internals.md.
 *
 *   put     hold the key -> own set + value with a new dot -> own store, durable
 *           -> the whole set to the other replicas -> acknowledged by W
 *   merge   hold the key -> own set + another's -> own store
 *
 * All that writes such a key here is one of the two: coordinators, replicas, hints, streams, read
 * repair.
 *
 * Invariants
 *   B1  A dot leaves this node only when a set that has seen it is durable here. So whatever anyone
 *       knows of our actor, our own set of that key knows: it names as seen only what it has or had
 *       itself, and a new dot hides none that others hold.
 *   B2  A counter is given only when a lease at or above it is durable in this partition. What a
 *       lease covers is not given again after an opening.
 *   B3  Between the reading of a set and the write of what was made of it nobody else writes the
 *       key: holds.
 *   B4  Only who readers may ask, by the present row, makes new dots: a member that has yet to
 *       fetch the partition may lack what an earlier tenure of its own actor has written.
 *   B5  When another store's state has seen more of our actor than our own set of that key has, a
 *       disk was put back from a copy, or the partition is held again after others held it: the
 *       actor is given up for the next generation, before our set is changed.
 *
 * Leases. One for each partition, by clock, so that a busy partition writes one each LEASE_MS, and
 * so that even one which a directory put back from a copy has forgotten lies in the past. In
 * KEYSPACE_SYSTEM under a hash tag of the partition (as hints are), so it goes where the partition
 * goes when the number of cores changes:
 *
 *   key    {tag}actor
 *   value  version 1 (1), zero (3), generation (4), incarnation (8), no counter above this one was
 *          given (8)
 */
#include "base/fault.h"
#include "base/hash.h"
#include "cluster/hints_internal.h"
#include "cluster/replicate_internal.h"
#include "cluster/siblings.h"
#include "io/io.h"
#include "lsm/batch.h"
#include "lsm/entry.h"

#define LEASE_MS        10000u
#define LEASE_BYTES     24u
#define LEASE_VERSION   1u
#define LEASE_KEY_BYTES (2u + HINT_TAG_BYTES + 5u)

bool
replicate_siblings(const struct replicator *r, u16 keyspace)
{
    const struct topology *topology = r->topology;
    return topology != NULL && keyspace < LIMIT_KEYSPACES_CLIENT &&
           topology->keyspaces[keyspace].used &&
           topology->keyspaces[keyspace].conflict == CONFLICT_SIBLINGS;
}

/* ---- holds ---- */

struct key_hold {
    struct list link; /* replicator->holds */
    u64 hash;
};

static struct list *
hold_bucket(struct replicator *r, u64 hash)
{
    return &r->holds[hash % HOLD_BUCKETS];
}

static bool
is_held(struct replicator *r, u64 hash)
{
    list_for_each (pos, hold_bucket(r, hash))
        if (list_entry(pos, struct key_hold, link)->hash == hash) return true;
    return false;
}

/* Whoever holds it waits for its own store, which may take until its own deadline. */
static MAY_YIELD status
hold(struct replicator *r, struct key_hold *hold, u16 keyspace, struct bytes key, u64 deadline_ns)
{
    hold->hash = hash_key(key, keyspace + 1u);
    while (is_held(r, hold->hash)) {
        if (io_now_ns() >= deadline_ns) return MARKED("cluster.siblings.held", ST_TIMED_OUT);
        (void)fiber_queue_wait(&r->hold_freed, deadline_ns);
    }
    list_push_back(hold_bucket(r, hold->hash), &hold->link);
    return ST_OK;
}

static void
let_go(struct replicator *r, struct key_hold *hold)
{
    list_del(&hold->link);
    fiber_queue_wake_all(&r->hold_freed);
}

/* ---- leases ---- */

struct actor_lease {
    bool loaded;
    u32 generation;
    u64 next; /* the lowest counter that may be given */
    u64 end;  /* B2: the highest */
};

static size_t
leases_bytes(const struct replicator *r)
{
    return r->lease_count * sizeof(struct actor_lease);
}

static bool
leases_make(struct replicator *r)
{
    if (r->leases != NULL) return true;
    r->lease_first = siblings_partition(r->token_first);
    r->lease_count = siblings_partition(r->token_last) - r->lease_first + 1;
    r->leases = mem_alloc_zero(r->options.budget, leases_bytes(r));
    return r->leases != NULL;
}

void
siblings_close(struct replicator *r)
{
    if (r->leases == NULL) return;
    mem_free(r->options.budget, r->leases, leases_bytes(r));
    r->leases = NULL;
}

static u32
lease_key(u32 partition, u8 out[LEASE_KEY_BYTES])
{
    struct hint_tag tag;
    hint_tags_find(partition, 1, &tag);
    out[0] = '{';
    memcpy(out + 1, tag.text, tag.size);
    out[1 + tag.size] = '}';
    memcpy(out + 2 + tag.size, "actor", 5);
    return 2u + tag.size + 5u;
}

static MAY_YIELD status
lease_load(struct replicator *r, u32 partition, struct actor_lease *lease)
{
    u8 key[LEASE_KEY_BYTES];
    struct bytes name = BYTES(key, lease_key(partition, key));
    struct lsm_value value;
    status st = lsm_get(r->options.lsm, NULL, KEYSPACE_SYSTEM, hash_token(name), name, &value);
    if (status_is(st, ST_NOT_FOUND)) {
        lease->loaded = true; /* the first of this partition here */
        return ST_OK;
    }
    if (!ok(st)) return st;
    const u8 *data = value.value.data;
    u64 end = 0;
    u32 generation = 0;
    if (value.value.size != LEASE_BYTES || data[0] != LEASE_VERSION) {
        st = ST_CORRUPT;
    } else { /* of another incarnation, too: above it nothing is wrong */
        generation = load_u32(data + 4);
        end = load_u64(data + 16);
    }
    lsm_value_release(&value);
    if (ok(st) && (end == UINT64_MAX || generation > SIBLINGS_GENERATION_MAX)) st = ST_CORRUPT;
    if (!ok(st)) return st;
    lease->generation = generation;
    lease->end = end;
    lease->next = end + 1;
    lease->loaded = true;
    return ST_OK;
}

static MAY_YIELD status
lease_store(struct replicator *r, u32 partition, u64 incarnation, u32 generation, u64 end,
            u64 deadline_ns)
{
    u8 key[LEASE_KEY_BYTES], value[LEASE_BYTES] = {LEASE_VERSION};
    struct bytes name = BYTES(key, lease_key(partition, key));
    store_u32(value + 4, generation);
    store_u64(value + 8, incarnation);
    store_u64(value + 16, end);
    struct lsm_batch batch;
    lsm_batch_init(&batch, r->options.budget);
    u64 seq;
    status st = ST_NO_MEMORY;
    if (lsm_batch_put(&batch, KEYSPACE_SYSTEM, hash_token(name), name, BYTES(value, sizeof(value)),
                      0))
        st = lsm_write_until(r->options.lsm, &batch, deadline_ns, &seq);
    lsm_batch_deinit(&batch);
    return ok(st) ? lsm_wait_durable_until(r->options.lsm, seq, deadline_ns) : st;
}

/* One at a time, so that what is stored last is the highest that anything was given under.
 * generation: at least this one. ST_TIMED_OUT: it may be stored, and nothing is given under it. */
static MAY_YIELD status
lease_extend(struct replicator *r, u32 partition, struct actor_lease *lease, u64 incarnation,
             u64 counter, u32 generation, u64 deadline_ns)
{
    while (r->leasing) {
        if (io_now_ns() >= deadline_ns) return MARKED("cluster.siblings.leasing", ST_TIMED_OUT);
        (void)fiber_queue_wait(&r->lease_done, deadline_ns);
    }
    r->leasing = true;
    status st = lease->loaded ? ST_OK : lease_load(r, partition, lease);
    counter = MAX(counter, lease->next);
    u64 length = (u64)LEASE_MS << HLC_MS_SHIFT;
    if (ok(st) && (counter > lease->end || generation > lease->generation)) {
        generation = MAX(generation, lease->generation);
        u64 end = counter < UINT64_MAX - length ? counter + length : counter;
        if (end == counter) st = ST_CORRUPT; /* no clock comes there */
        end = MAX(end, lease->end);
        if (ok(st)) st = lease_store(r, partition, incarnation, generation, end, deadline_ns);
        if (ok(st)) lease->end = end;
        if (ok(st)) lease->generation = generation;
    }
    r->leasing = false;
    fiber_queue_wake_all(&r->lease_done);
    return st;
}

static u64
own_incarnation(const struct replicator *r)
{
    const struct topology_member *self = topology_member(r->topology, r->self);
    return self == NULL ? 0 : self->incarnation;
}

/* B5. With the hold of the key that own and other are of. */
static MAY_YIELD status
actor_renew(struct replicator *r, u64 token, const struct dvv_vector *own,
            const struct dvv_vector *other, u64 deadline_ns)
{
    u64 incarnation = own_incarnation(r);
    u32 generation, partition = siblings_partition(token);
    if (incarnation == 0 || !siblings_forgot(own, other, incarnation, &generation)) return ST_OK;
    /* No disk is put back so often: a context that was made up has come by way of another node. */
    if (generation >= SIBLINGS_GENERATION_MAX) return ST_OK;
    MARK("cluster.siblings.forgot");
    if (!leases_make(r)) return ST_NO_MEMORY;
    return lease_extend(r, partition, &r->leases[partition - r->lease_first], incarnation, 0,
                        generation + 1, deadline_ns);
}

/* A dot for a write of this moment. The stamp is one that was just given, so counters of a key
 * are in the order of their writes. */
static MAY_YIELD status
dot_next(struct replicator *r, u64 token, u64 stamp, u64 deadline_ns, struct dvv_value *out)
{
    if (!leases_make(r)) return ST_NO_MEMORY;
    u64 incarnation = own_incarnation(r);
    if (incarnation == 0) return ST_CANCELED;
    u32 partition = siblings_partition(token);
    struct actor_lease *lease = &r->leases[partition - r->lease_first];
    while (!lease->loaded || MAX(stamp, lease->next) > lease->end) {
        status st = lease_extend(r, partition, lease, incarnation, stamp, 0, deadline_ns);
        if (!ok(st)) return st;
    }
    out->counter = MAX(stamp, lease->next);
    out->actor = siblings_actor(incarnation, partition, lease->generation);
    lease->next = out->counter + 1;
    return ST_OK;
}

/* ---- states in the own store ---- */

/* A key as it is here, with its hold. */
struct own_set {
    struct buf bytes;
    u64 version, seq;
};

static MAY_YIELD status
own_set_read(struct replicator *r, u16 keyspace, u64 token, struct bytes key, struct own_set *out)
{
    struct own_read own;
    status st = own_read(r, keyspace, token, key, &own);
    if (!ok(st)) return st;
    struct siblings_entry entry = {.found = own.found,
                                   .version = own.version,
                                   .value = own.found ? own.value.value : BYTES(NULL, 0)};
    st = siblings_bytes(&entry, token, &out->bytes);
    if (own.found) lsm_value_release(&own.value);
    out->version = own.version;
    out->seq = own.seq;
    return st;
}

static MAY_YIELD status
own_set_write(struct replicator *r, u16 keyspace, u64 token, struct bytes key, struct bytes bytes,
              u64 version, u64 deadline_ns, u64 *seq_out)
{
    struct lsm_batch batch;
    lsm_batch_init(&batch, r->options.budget);
    batch.version = version;
    status st = ST_NO_MEMORY;
    if (lsm_batch_put(&batch, keyspace, token, key, bytes, 0))
        st = lsm_write_until(r->options.lsm, &batch, deadline_ns, seq_out);
    lsm_batch_deinit(&batch);
    return st;
}

/* B5, of encoded sets. */
static MAY_YIELD status
actor_check(struct replicator *r, u64 token, struct bytes own, struct bytes other, u64 deadline_ns)
{
    struct dvvset a, b;
    dvvset_init(&a, r->options.budget);
    dvvset_init(&b, r->options.budget);
    status st = dvvset_decode(own, &a);
    if (ok(st)) st = dvvset_decode(other, &b);
    if (ok(st)) st = actor_renew(r, token, &a.seen, &b.seen, deadline_ns);
    dvvset_deinit(&b);
    dvvset_deinit(&a);
    return st;
}

/* With the hold. */
static MAY_YIELD status
merge_held(struct replicator *r, const struct replicate_state *state, struct bytes other,
           u64 deadline_ns, u64 *seq_out)
{
    struct own_set own;
    struct buf both;
    buf_init(&own.bytes, r->options.budget);
    buf_init(&both, r->options.budget);
    status st = own_set_read(r, state->keyspace, state->token, state->key, &own);
    if (ok(st)) st = siblings_union(buf_bytes(&own.bytes), other, &both);
    if (ok(st)) {
        u64 version = 0;
        *seq_out = own.seq;
        switch (siblings_version_of(buf_bytes(&own.bytes), own.version, other, state->version,
                                    buf_bytes(&both))) {
        case SIBLINGS_KEEP:
            break;
        case SIBLINGS_TAKE:
            version = state->version;
            break;
        case SIBLINGS_STAMP: /* both were observed */
            r->stats.unions++;
            version = hlc_next(&r->hlc, io_wall_ms());
            break;
        }
        if (version != 0)
            st = actor_check(r, state->token, buf_bytes(&own.bytes), other, deadline_ns);
        if (version != 0 && ok(st))
            st = own_set_write(r, state->keyspace, state->token, state->key, buf_bytes(&both),
                               version, deadline_ns, seq_out);
    }
    buf_deinit(&both);
    buf_deinit(&own.bytes);
    return st;
}

static MAY_YIELD status
merge(struct replicator *r, const struct replicate_state *state, u64 deadline_ns, u64 *seq_out)
{
    if (!stamp_await(r, deadline_ns)) return r->closing ? ST_CLOSED : ST_TIMED_OUT;
    struct siblings_entry entry = {
        .found = state->found, .version = state->version, .value = state->value};
    struct buf other;
    buf_init(&other, r->options.budget);
    status st = siblings_bytes(&entry, state->token, &other);
    if (ok(st) && state->version != 0 && !version_observe(r, state->version, "state", state->from))
        st = ST_UNAVAILABLE;
    *seq_out = 0;
    if (ok(st) && !siblings_empty(buf_bytes(&other))) {
        struct key_hold held;
        st = hold(r, &held, state->keyspace, state->key, deadline_ns);
        if (ok(st)) {
            st = merge_held(r, state, buf_bytes(&other), deadline_ns, seq_out);
            let_go(r, &held);
        }
    }
    buf_deinit(&other);
    return st;
}

MAY_YIELD status
replicate_merge(struct replicator *r, const struct replicate_state *state, u64 deadline_ns,
                u64 *seq_out)
{
    if (!fiber_gate_enter(&r->gate)) return ST_CLOSED;
    status st = merge(r, state, deadline_ns, seq_out);
    fiber_gate_leave(&r->gate);
    return st;
}

MAY_YIELD status
siblings_merge_op(struct replicator *r, const struct lsm_batch *batch, u32 from, u64 deadline_ns,
                  u64 *seq_out)
{
    struct bytes rest = buf_bytes(&batch->ops);
    struct lsm_op op;
    bool bad;
    if (batch->count != 1 || !lsm_op_next(&rest, &op, &bad)) return ST_INVALID;
    struct replicate_state state = {.keyspace = op.header.keyspace,
                                    .token = op.header.token,
                                    .key = op.key,
                                    .found = op.header.kind == ENTRY_PUT,
                                    .version = batch->version,
                                    .value = op.value,
                                    .from = from};
    return merge(r, &state, deadline_ns, seq_out);
}

MAY_YIELD status
siblings_merge_hint(void *arg, const struct lsm_batch *batch, u64 deadline_ns)
{
    struct replicator *r = arg;
    u64 seq;
    if (!fiber_gate_enter(&r->gate)) return ST_CLOSED;
    status st = siblings_merge_op(r, batch, r->self, deadline_ns, &seq);
    if (ok(st)) st = lsm_wait_durable_until(r->options.lsm, seq, deadline_ns);
    fiber_gate_leave(&r->gate);
    return st;
}

/* ---- writes of clients ---- */

/* Whether this member may make dots of the partition (B4), and so many live that it is worth it. */
static status
put_judge(struct replicator *r, enum replicate_level level, const struct replicate_put *put)
{
    struct topology_row row;
    u32 partition, count;
    if (!replicate_row(r, put->keyspace, put->token, &partition, &row)) return ST_CANCELED;
    if (r->topology->keyspaces[put->keyspace].conflict != CONFLICT_SIBLINGS) return ST_INVALID;
    const u32 *members = topology_row_read(&row, &count);
    bool readable = false;
    for (u32 i = 0; i < count; i++)
        readable = readable || members[i] == r->self;
    if (!readable) return ST_CANCELED;
    return write_possible(r, level, put->keyspace, &row) ? ST_OK : ST_UNAVAILABLE;
}

/* Our own set has seen all dots of ours that anybody has. A context that has seen more is made up,
 * or we have forgotten some: then a read, which mends our set, makes that known (B5). A client's
 * word is not enough. */
static status
context_check(const struct replicator *r, const struct replicate_put *put,
              const struct dvv_vector *own)
{
    u32 generation;
    if (put->context == NULL ||
        !siblings_forgot(own, put->context, own_incarnation(r), &generation))
        return ST_OK;
    return MARKED("cluster.siblings.context_ahead", ST_INVALID);
}

/* With the hold: the key's next state, in the own store and in *batch. */
static MAY_YIELD status
put_held(struct replicator *r, const struct replicate_put *put, u64 deadline_ns,
         struct lsm_batch *batch, u64 *seq_out)
{
    struct own_set own;
    struct dvvset set;
    struct buf bytes;
    buf_init(&own.bytes, r->options.budget);
    buf_init(&bytes, r->options.budget);
    dvvset_init(&set, r->options.budget);
    struct dvv_value value = {.version = hlc_next(&r->hlc, io_wall_ms()),
                              .flags = put->deletes ? DVV_DELETED : 0,
                              .data = put->deletes ? BYTES(NULL, 0) : put->value};
    status st = own_set_read(r, put->keyspace, put->token, put->key, &own);
    if (ok(st)) st = dvvset_decode(buf_bytes(&own.bytes), &set);
    if (ok(st)) st = context_check(r, put, &set.seen);
    if (ok(st)) st = dot_next(r, put->token, value.version, deadline_ns, &value);
    if (ok(st)) st = dvvset_update(&set, put->context, &value);
    if (status_is(st, ST_CONFLICT)) st = ST_INVALID; /* the same, of a counter that is far ahead */
    if (ok(st)) dvvset_bury(&set);
    if (ok(st)) st = dvvset_encode(&set, &bytes);
    if (ok(st) && bytes.size > LIMIT_SIBLINGS_WRITE_BYTES) st = ST_TOO_LARGE;
    /* Others may have written here meanwhile, but not this key; the state is newer than what it
     * was made of, also where that was met after the value's stamp was taken. */
    batch->version = hlc_next(&r->hlc, io_wall_ms());
    if (ok(st) && !lsm_batch_put(batch, put->keyspace, put->token, put->key, buf_bytes(&bytes), 0))
        st = ST_NO_MEMORY;
    if (ok(st)) st = lsm_write_until(r->options.lsm, batch, deadline_ns, seq_out);
    dvvset_deinit(&set);
    buf_deinit(&bytes);
    buf_deinit(&own.bytes);
    return st;
}

/* ST_OK: it is durable here, and the others are to get the batch. *maybe_done: even if not ok. */
static MAY_YIELD status
put_here(struct replicator *r, enum replicate_level level, const struct replicate_put *put,
         u64 deadline_ns, struct lsm_batch *batch, bool *maybe_done)
{
    if (!stamp_await(r, deadline_ns)) return r->closing ? ST_CLOSED : ST_TIMED_OUT;
    status st = put_judge(r, level, put);
    if (!ok(st)) return st;
    struct key_hold held;
    u64 seq;
    st = hold(r, &held, put->keyspace, put->key, deadline_ns);
    if (!ok(st)) return st;
    st = io_now_ns() >= deadline_ns ? ST_TIMED_OUT : put_held(r, put, deadline_ns, batch, &seq);
    let_go(r, &held);
    if (!ok(st)) return st;
    *maybe_done = true;
    return lsm_wait_durable_until(r->options.lsm, seq, deadline_ns); /* B1 */
}

MAY_YIELD status
replicate_put(struct replicator *r, enum replicate_level level, const struct replicate_put *put,
              u64 deadline_ns, u64 *version_out)
{
    if (!fiber_gate_enter(&r->gate)) return ST_CLOSED;
    r->stats.writes++;
    struct coordinated c;
    coordinated_begin(r, &c);
    struct lsm_batch batch;
    lsm_batch_init(&batch, r->options.budget);
    bool maybe_done = false;
    status st = put_here(r, level, put, deadline_ns, &batch, &maybe_done);
    if (ok(st)) st = write_spread(r, level, &batch, &c, deadline_ns, version_out);
    lsm_batch_deinit(&batch);
    coordinated_end(&c);
    fiber_gate_leave(&r->gate);
    if (ok(st)) return st;
    if (maybe_done) st = ST_UNKNOWN_OUTCOME;
    if (status_is(st, ST_CANCELED)) st = ST_WOULD_WAIT;
    if (status_is(st, ST_UNKNOWN_OUTCOME)) r->stats.unknown++;
    if (status_is(st, ST_UNAVAILABLE)) r->stats.unavailable++;
    return st;
}
