/* SPDX-License-Identifier: MIT
 *
 * replicate_read.c -- coordinating reads. See replicate.h.
 *
 *   gather    own store, and digests of R - 1 others; one more for each that fails, and one more
 *             when an answer is late
 *   agree?    all have the same version: the own value is the answer
 *   fetch     else the value of the highest version, from somebody who has it, if we do not; while
 *             that one is late, others are asked as well: what comes first will do
 *   confirm   (while a plan is under way) do those of the other set have it, too?
 *   mend      until so many have it that every read by a quorum meets it, and two at least where W
 *             is: what was read once is read again, though a disk is lost. Those who were behind and
 *             are not needed for that are sent it, too
 *
 * A version names one write (hlc.h), so two answers with the same version are the same value and a
 * digest needs no more than that. What has expired is read and brought as the value that it is, for
 * others' clocks may see it yet; in the end our clock says what is told.
 *
 * Calls live on the fiber's stack: what is under way at the end is canceled, for nobody misses a
 * read.
 *
 * The own store is one of those who are asked. What it has in memory is there at once. What it has
 * to read from the disk is read on a fiber of its own, so that a disk that is late, or hangs, is
 * hedged as a replica is, and ends no deadline. Such a read cannot be canceled: its state (struct
 * disk_read) is on the heap, and the fiber's. It ends when the disk answers, and until then closing
 * waits for it, as the store's does. Nobody is told what it finds, so it holds no topology: what
 * waits for those who coordinate (replicator_epoch) need not wait for it.
 */
#include "base/fault.h"
#include "base/hash.h"
#include "cluster/replicate_internal.h"
#include "cluster/siblings.h"
#include "io/io.h"

/* So much worse is it to ask somebody who is in one set only. */
#define OTHER_SET_LOAD 1000u
/* How long one replica may take to send a value before the next is asked. That ends no read: what
 * is late may come. */
#define FETCH_NS_MIN (100 * NS_PER_MS)
/* For so long a read waits for room before those whom it has to ask. */
#define READ_ROOM_NS (50 * NS_PER_MS)
/* How long others may take to say whether they have it, before it is brought to them. */
#define CONFIRM_NS_MIN (20 * NS_PER_MS)

struct read;

/* What the own store has on the disk. Made by a read, freed by its fiber. */
struct disk_read {
    struct replicator *r;
    struct read *read; /* NULL: it has gone on without */
    u64 start_ns;
    u64 token;
    u16 keyspace;
    u32 key_size;
    u8 key[];
};

struct read_call {
    struct peer_call call;
    struct read *read;
    u32 member;
    u32 index; /* of the member in the quorum; of one that is confirmed, in confirms */
    u64 start_ns;
    bool under_way;
    bool fetches; /* the value of a version that the member has said it has */
};

/* On the coordinator's stack. */
struct read {
    struct replicator *r;
    enum replicate_level level;
    u16 keyspace;
    u64 token;
    struct bytes key;
    u64 deadline_ns;

    /* one attempt */
    u64 epoch;
    u64 wall_ms; /* when it began: what has expired by then is gone */
    u32 partition;
    struct topology_row row;
    struct quorum quorum;
    u32 need;
    u32 need_least; /* who asks fewer is promised nothing of what others have read */
    u64 versions[LIMIT_PLACEMENT_REPLICAS]; /* of who said yes */
    bool asked[LIMIT_PLACEMENT_REPLICAS];
    bool wrong_epoch;
    u32 overloaded;    /* answers that said so, and in whose place nobody was asked yet */
    u32 busy;          /* who has refused for that, by index: lost_why */
    u32 no_room;       /* of these, to whom it was not even sent */
    u64 room_until_ns; /* so long it waits for that; 0: not yet */
    u64 epoch_seen;
    struct own_read own; /* when self said yes */
    bool own_held;
    struct disk_read *disk_read;  /* that self waits for; or NULL */
    struct durable_wait own_wait; /* for what it has to be durable */
    u32 self;                     /* index in the quorum */
    struct fiber_queue wake;
    struct read_call calls[LIMIT_PLACEMENT_REPLICAS];
    /* of a key that keeps siblings: encoded sets of who said yes, and their union */
    bool siblings;
    struct buf sets[LIMIT_PLACEMENT_REPLICAS];

    /* confirming */
    struct read_call confirms[QUORUM_MEMBERS_MAX];
    bool confirmed[QUORUM_MEMBERS_MAX]; /* it has answered, with: */
    u64 confirm_versions[QUORUM_MEMBERS_MAX];
    u32 confirm_count;

    /* fetching */
    bool fetched; /* found and copy are the newest that has come */
    struct peer_found found;
    struct buf copy;
};

static bool
is_self(const struct read *read, u32 index)
{
    return read->quorum.members[index] == read->r->self;
}

static u32
under_way(const struct read *read, bool fetches)
{
    u32 count = 0;
    for (u32 i = 0; i < read->quorum.count; i++)
        count += read->calls[i].under_way && read->calls[i].fetches == fetches;
    return count;
}

/* Answers that are to come. */
static u32
pending(const struct read *read)
{
    return under_way(read, false) + list_linked(&read->own_wait.link) + (read->disk_read != NULL);
}

/* ---- digests ---- */

static void
answer_time(struct replicator *r, u64 ns)
{
    histogram_record(&r->answer_ns, ns);
    if (r->answer_ns.count % HEDGE_SAMPLES != 0) return;
    r->hedge_ns = MAX(HEDGE_NS_MIN, histogram_percentile(&r->answer_ns, 990000));
    /* What was long ago says little. */
    if (r->answer_ns.count >= 64 * HEDGE_SAMPLES) r->answer_ns = (struct histogram){0};
}

/* A refusal, or ok with *found set. */
static bool
answer_decode(struct read *read, const struct native_header *header, struct bytes body,
              struct peer_found *found)
{
    if (header->status == NATIVE_ST_WRONG_EPOCH) {
        MARK("cluster.replicate.read_wrong_epoch");
        read->wrong_epoch = true;
        read->epoch_seen = MAX(read->epoch_seen, header->epoch);
        return false;
    }
    return header->status == NATIVE_ST_OK && ok(peer_found_decode(body, found));
}

/* There is no memory here for an answer, which says nothing of whose it is. */
static void
lack_note(struct read *read, u32 index)
{
    MARK("cluster.replicate.read_lacks");
    if (!read->r->closing) read->busy |= 1u << index;
}

/* Of a key that keeps siblings. */
static bool
set_keep(struct read *read, u32 index, const struct peer_found *found)
{
    struct siblings_entry entry = {
        .found = found->found, .version = found->version, .value = found->value};
    read->sets[index].size = 0;
    status st = siblings_bytes(&entry, read->token, &read->sets[index]);
    if (status_is(st, ST_NO_MEMORY)) lack_note(read, index);
    return ok(st);
}

static void
busy_note(struct read *read, const struct read_call *call, status st,
          const struct native_header *header)
{
    /* A read has done nothing: it is the answer that found no memory there. */
    bool no_memory = ok(st) && header->status == NATIVE_ST_UNKNOWN_OUTCOME;
    if (!no_memory && !is_busy(&call->call, st, header)) return;
    read->busy |= 1u << call->index;
    if (!ok(st)) read->no_room |= 1u << call->index;
}

static void
digest_done(struct peer_call *peer_call, status st, const struct native_header *header,
            struct bytes body)
{
    struct read_call *call = CONTAINER_OF(peer_call, struct read_call, call);
    struct read *read = call->read;
    struct replicator *r = read->r;
    u32 member = call->member;
    call->under_way = false;
    *load_of(r, member) -= 1;
    struct peer_found found;
    bool yes = ok(st) && answer_decode(read, header, body, &found);
    read->overloaded += ok(st) && header->status == NATIVE_ST_OVERLOADED;
    busy_note(read, call, st, header);
    /* A version from a clock that runs ahead must not win over everything for so long: whoever
     * says it counts as one that has failed. */
    if (yes && found.version != 0) yes = version_observe(r, found.version, "read", member);
    if (yes && read->siblings) yes = set_keep(read, call->index, &found);
    if (yes) {
        answer_time(r, io_now_ns() - call->start_ns);
        read->versions[call->index] = found.version;
    }
    (void)quorum_answer(&read->quorum, member, yes ? QUORUM_YES : QUORUM_NO);
    fiber_queue_wake_all(&read->wake);
}

static void
call_send(struct read *read, struct read_call *call, u32 member, u32 index, enum peer_want want,
          void (*done)(struct peer_call *call, status st, const struct native_header *header,
                       struct bytes body),
          u64 deadline_ns)
{
    struct replicator *r = read->r;
    u32 shard;
    if (!replicate_shard(r->topology, member, read->token, &shard)) {
        (void)quorum_answer(&read->quorum, member, QUORUM_NO);
        return;
    }
    u8 head[PEER_REPLICA_HEAD_BYTES];
    struct peer_read ask = {.partition = read->partition, .want = (u8)want};
    struct bytes parts[] = {BYTES(head, peer_read_head(&ask, head)), read->key};
    struct native_header header = {
        .opcode = PEER_READ, .epoch = read->epoch, .keyspace = read->keyspace};
    *call = (struct read_call){
        .read = read, .member = member, .index = index, .start_ns = io_now_ns(), .under_way = true};
    *load_of(r, member) += 1;
    peer_call_init(&call->call, done);
    peer_call_start(r->options.peers, &call->call, member, shard, &header, parts,
                    ARRAY_COUNT(parts), deadline_ns);
}

static void
call_cancel(struct read *read, struct read_call *call)
{
    if (!call->under_way) return;
    peer_call_cancel(read->r->options.peers, &call->call);
    call->under_way = false;
    *load_of(read->r, call->member) -= 1;
}

static bool
in_both(const struct read *read, u32 index)
{
    u32 member = read->quorum.members[index];
    bool current = false, next = false;
    for (u32 i = 0; i < read->row.count; i++)
        current = current || read->row.write[i] == member;
    for (u32 i = 0; i < read->row.next_count; i++)
        next = next || read->row.write_next[i] == member;
    return current && next;
}

/* The one with the fewest calls under way, of those who were not asked; in the row's order. While a
 * plan is under way, who is in both sets first: what they have needs no mending (see agreed).
 * False: nobody is left. */
static bool
ask_one(struct read *read)
{
    u32 best = LIMIT_PLACEMENT_REPLICAS, best_load = 0;
    for (u32 i = 0; i < read->quorum.count; i++) {
        if (read->asked[i] || is_self(read, i) || read->quorum.answers[i] != QUORUM_PENDING)
            continue;
        u32 load = *load_of(read->r, read->quorum.members[i]);
        if (read->row.next_count > 0 && !in_both(read, i)) load += OTHER_SET_LOAD;
        if (best == LIMIT_PLACEMENT_REPLICAS || load < best_load) {
            best = i;
            best_load = load;
        }
    }
    if (best == LIMIT_PLACEMENT_REPLICAS) return false;
    read->asked[best] = true;
    read->r->stats.digests++;
    call_send(read, &read->calls[best], read->quorum.members[best], best,
              read->siblings ? PEER_WANT_VALUE : PEER_WANT_DIGEST, digest_done, read->deadline_ns);
    return true;
}

static bool
disk_stands(const struct replicator *r)
{
    return r->disk_reads > 0 && io_now_ns() - r->disk_moved_ns >= DISK_STANDS_NS;
}

/* One of them does not answer any more. */
static bool
waits_for_dead(const struct read *read)
{
    if (read->disk_read != NULL && disk_stands(read->r)) return true;
    for (u32 i = 0; i < read->quorum.count; i++)
        if (read->calls[i].under_way && !is_alive(read->r, read->quorum.members[i])) return true;
    return false;
}

/* One more, beside those under way or for one that was overloaded: what adds to the load of those
 * who work. Who takes the place of a dead one does not. False: nobody is left, or too many reads
 * have asked more than they needed. */
static bool
ask_one_more(struct read *read)
{
    struct replicator *r = read->r;
    bool left = false;
    for (u32 i = 0; i < read->quorum.count; i++)
        left = left ||
               (!read->asked[i] && !is_self(read, i) && read->quorum.answers[i] == QUORUM_PENDING);
    if (!left || (!waits_for_dead(read) && !retry_take(&r->retries))) return false;
    return ask_one(read);
}

/* ---- the own store ---- */

static void
own_durable(struct durable_wait *wait, bool durable)
{
    struct read *read = CONTAINER_OF(wait, struct read, own_wait);
    (void)quorum_answer(&read->quorum, read->r->self, durable ? QUORUM_YES : QUORUM_NO);
    fiber_queue_wake_all(&read->wake);
}

/* What came of reading it; read->own. */
static void
own_answer(struct read *read, status st)
{
    if (!ok(st)) {
        if (own_is_busy(read->r, st)) read->busy |= 1u << read->self;
        (void)quorum_answer(&read->quorum, read->r->self, QUORUM_NO);
        return;
    }
    read->own_held = read->own.found;
    read->versions[read->self] = read->own.version;
    struct peer_found own = {.found = read->own.found,
                             .version = read->own.version,
                             .value = read->own.found ? read->own.value.value : BYTES(NULL, 0)};
    if (read->siblings && !set_keep(read, read->self, &own)) {
        (void)quorum_answer(&read->quorum, read->r->self, QUORUM_NO);
        return;
    }
    read->own_wait.done = own_durable;
    durable_await(read->r, &read->own_wait, read->own.seq); /* R1 */
}

static size_t
disk_read_bytes(u32 key_size)
{
    return sizeof(struct disk_read) + key_size;
}

static MAY_YIELD void
disk_read_main(void *arg)
{
    struct disk_read *disk_read = arg;
    struct replicator *r = disk_read->r;
    struct own_read own;
    status st = own_read(r, disk_read->keyspace, disk_read->token,
                         BYTES(disk_read->key, disk_read->key_size), &own);
    r->disk_reads--;
    r->disk_moved_ns = io_now_ns();
    struct read *read = disk_read->read;
    if (read == NULL) {
        r->disk_reads_left--;
        if (ok(st) && own.found) lsm_value_release(&own.value);
    } else {
        read->disk_read = NULL;
        if (ok(st)) {
            answer_time(r, r->disk_moved_ns - disk_read->start_ns);
            read->own = own;
        }
        own_answer(read, st);
        fiber_queue_wake_all(&read->wake);
    }
    mem_free(r->options.budget, disk_read, disk_read_bytes(disk_read->key_size));
    fiber_gate_leave(&r->gate);
}

static status
disk_read_start(struct read *read)
{
    struct replicator *r = read->r;
    if (r->disk_reads_left >= DISK_READS_LEFT_MAX)
        return MARKED("cluster.replicate.disk_left_alone", ST_OVERLOADED);
    if (!fiber_gate_enter(&r->gate)) return ST_CLOSED;
    u32 key_size = (u32)read->key.size;
    struct disk_read *disk_read = mem_alloc(r->options.budget, disk_read_bytes(key_size));
    status st = ST_NO_MEMORY;
    if (disk_read != NULL) {
        *disk_read = (struct disk_read){.r = r,
                                        .read = read,
                                        .start_ns = io_now_ns(),
                                        .token = read->token,
                                        .keyspace = read->keyspace,
                                        .key_size = key_size};
        memcpy(disk_read->key, read->key.data, key_size);
        st = fiber_spawn(fiber_class_self(), "disk-read", disk_read_main, disk_read);
    }
    if (!ok(st)) {
        MARK("cluster.replicate.disk_read_refused");
        if (disk_read != NULL) mem_free(r->options.budget, disk_read, disk_read_bytes(key_size));
        fiber_gate_leave(&r->gate);
        return st;
    }
    if (r->disk_reads++ == 0) r->disk_moved_ns = disk_read->start_ns;
    read->disk_read = disk_read;
    return ST_OK;
}

/* Whether the others are enough. */
static bool
others_do(const struct read *read)
{
    struct quorum others = read->quorum;
    (void)quorum_answer(&others, read->r->self, QUORUM_NO);
    return quorum_state(&others) != QUORUM_LOST;
}

/* No yield. */
static void
ask_self(struct read *read)
{
    struct replicator *r = read->r;
    read->asked[read->self] = true;
    status st = own_read_try(r, read->keyspace, read->token, read->key, &read->own);
    if (status_is(st, ST_WOULD_WAIT)) {
        if (disk_stands(r) && others_do(read))
            st = MARKED("cluster.replicate.disk_stands", ST_TIMED_OUT);
        else
            st = disk_read_start(read);
        if (ok(st)) return;
    }
    own_answer(read, st);
}

/* Too few are left, and before some there was no room: they may be asked once more, a little later.
 * False: it has waited long enough, or nobody is. */
static MAY_YIELD bool
room_await(struct read *read)
{
    struct replicator *r = read->r;
    u64 now = io_now_ns();
    if (read->no_room == 0) return false;
    if (read->room_until_ns == 0) read->room_until_ns = MIN(now + READ_ROOM_NS, read->deadline_ns);
    if (r->closing || now >= read->room_until_ns) return false;
    MARK("cluster.replicate.read_awaits_room");
    peer_room_await(r->options.peers, read->room_until_ns);
    for (u32 i = 0; i < read->quorum.count; i++) {
        if ((read->no_room >> i & 1) == 0) continue;
        read->quorum.answers[i] = QUORUM_PENDING;
        read->asked[i] = false;
    }
    read->busy &= ~read->no_room;
    read->no_room = 0;
    return true;
}

/* Until enough have answered, or cannot. */
static MAY_YIELD status
gather(struct read *read)
{
    u64 hedge_ns = io_now_ns() + read->r->hedge_ns;
    for (;;) {
        u32 yes = quorum_count(&read->quorum, QUORUM_YES);
        if (yes >= read->need) return ST_OK;
        while (yes + pending(read) < read->need) {
            bool overloaded = read->overloaded != 0;
            if (!(overloaded ? ask_one_more(read) : ask_one(read))) break;
            read->overloaded -= overloaded;
        }
        if (yes + pending(read) < read->need) {
            if (room_await(read)) continue;
            /* Who is late with a value is not counted on, and may send it yet. */
            if (yes + pending(read) + under_way(read, true) < read->need)
                return lost_why(&read->quorum, read->busy, 0);
        }
        u64 now = io_now_ns();
        if (read->r->closing) return ST_CLOSED;
        if (now >= read->deadline_ns) return ST_UNAVAILABLE;
        if (now >= hedge_ns) {
            if (ask_one_more(read)) read->r->stats.hedged++;
            hedge_ns = now + read->r->hedge_ns;
        }
        (void)fiber_queue_wait(&read->wake, MIN(hedge_ns, read->deadline_ns));
    }
}

/* ---- the newest value ---- */

static u64
highest(const struct read *read)
{
    u64 version = 0;
    for (u32 i = 0; i < read->quorum.count; i++)
        if (read->quorum.answers[i] == QUORUM_YES) version = MAX(version, read->versions[i]);
    return version;
}

static bool
all_have(const struct read *read, u64 version)
{
    for (u32 i = 0; i < read->quorum.count; i++)
        if (read->quorum.answers[i] == QUORUM_YES && read->versions[i] != version) return false;
    return true;
}

static bool
has_fetched(const struct read *read, u64 version)
{
    return read->fetched && read->found.version >= version;
}

/* Of several the newest. */
static bool
value_keep(struct read *read, u32 index, const struct peer_found *found)
{
    if (read->fetched && read->found.version >= found->version) return true;
    buf_clear(&read->copy, 0);
    read->fetched = buf_append(&read->copy, found->value.data, found->value.size);
    if (!read->fetched) {
        lack_note(read, index);
        return false;
    }
    read->found = *found;
    /* Once all of it is there, the value stands at the copy's beginning. */
    read->found.value = buf_bytes(&read->copy);
    return true;
}

static void
fetch_done(struct peer_call *peer_call, status st, const struct native_header *header,
           struct bytes body)
{
    struct read_call *call = CONTAINER_OF(peer_call, struct read_call, call);
    struct read *read = call->read;
    u32 member = call->member, index = call->index;
    call->under_way = false;
    *load_of(read->r, member) -= 1;
    struct peer_found found;
    busy_note(read, call, st, header);
    bool yes = ok(st) && answer_decode(read, header, body, &found) &&
               found.version >= read->versions[index] &&
               (found.version == 0 || version_observe(read->r, found.version, "value", member)) &&
               value_keep(read, index, &found);
    if (yes) read->versions[index] = found.version;
    read->quorum.answers[index] = yes ? QUORUM_YES : QUORUM_NO;
    fiber_queue_wake_all(&read->wake);
}

/* From one of those who have the version. Who does not send it has failed; who is late is counted
 * on no more, unless it sends it after all (gather). */
static MAY_YIELD bool
fetch(struct read *read, u64 version)
{
    struct replicator *r = read->r;
    for (u32 i = 0; i < read->quorum.count && !has_fetched(read, version); i++) {
        if (read->quorum.answers[i] != QUORUM_YES || read->versions[i] != version ||
            is_self(read, i))
            continue;
        struct read_call *call = &read->calls[i];
        u64 until = MIN(read->deadline_ns, io_now_ns() + MAX(FETCH_NS_MIN, 4 * r->hedge_ns));
        call_send(read, call, read->quorum.members[i], i, PEER_WANT_VALUE, fetch_done,
                  read->deadline_ns);
        call->fetches = true;
        while (call->under_way && !has_fetched(read, version) && !r->closing && io_now_ns() < until)
            (void)fiber_queue_wait(&read->wake, until);
        if (has_fetched(read, version)) break;
        if (call->under_way)
            MARK("cluster.replicate.fetch_late");
        else
            MARK("cluster.replicate.fetch_failed");
        read->quorum.answers[i] = call->under_way ? QUORUM_PENDING : QUORUM_NO;
    }
    return has_fetched(read, version);
}

/* What is late is missed by nobody once there is an answer. */
static void
fetches_cancel(struct read *read)
{
    for (u32 i = 0; i < read->quorum.count; i++)
        if (read->calls[i].fetches) call_cancel(read, &read->calls[i]);
}

/* ---- an attempt ---- */

static void
answer_own(struct read *read, struct replicate_value *out)
{
    out->found = read->own.found;
    out->version = read->own.version;
    out->expire_ms = read->own.expire_ms;
    out->own = read->own.value;
    out->value = read->own.value.value;
    read->own_held = false;
}

static void
answer_fetched(struct read *read, struct replicate_value *out)
{
    out->found = read->found.found;
    out->version = read->found.version;
    out->expire_ms = read->found.expire_ms;
    out->copy = read->copy;
    out->value = buf_bytes(&out->copy);
    buf_init(&read->copy, read->r->options.budget);
}

static struct mend
mend_of(const struct read *read, const struct replicate_value *value)
{
    struct mend mend = {
        .keyspace = read->keyspace,
        .token = read->token,
        .key = read->key,
        /* What has expired is a value for who is behind: a put with its time. */
        .found = value->found,
        .version = value->version,
        .expire_ms = value->expire_ms,
        .value = value->value,
        .merges = read->siblings,
    };
    for (u32 i = 0; i < read->quorum.count; i++) {
        if (read->quorum.answers[i] != QUORUM_YES) continue;
        if (read->versions[i] >= value->version)
            mend.have[mend.have_count++] = read->quorum.members[i];
        else
            mend.lack[mend.lack_count++] = read->quorum.members[i];
    }
    /* Who was confirmed was not asked before: nobody is named twice. */
    for (u32 i = 0; i < read->confirm_count; i++) {
        if (!read->confirmed[i]) continue;
        bool has = read->confirm_versions[i] >= value->version;
        if (has && mend.have_count < ARRAY_COUNT(mend.have))
            mend.have[mend.have_count++] = read->confirms[i].member;
        else if (!has && mend.lack_count < ARRAY_COUNT(mend.lack))
            mend.lack[mend.lack_count++] = read->confirms[i].member;
    }
    return mend;
}

/* Brings the others what was read. */
static MAY_YIELD status
mend(struct read *read, const struct replicate_value *value)
{
    struct mend mend = mend_of(read, value);
    status st =
        replicate_mend(read->r, &read->row, read->partition, read->epoch, &mend, read->deadline_ns);
    bool promised = read->need >= read->need_least;
    bool failed = status_is(st, ST_UNAVAILABLE) || status_is(st, ST_OVERLOADED) ||
                  status_is(st, ST_NO_MEMORY);
    return failed && !promised && !read->r->closing ? ST_OK : st;
}

/* What expires only while others are asked, or brought it, is told: others may have written since
 * the beginning, and the key was never absent. */
static bool
is_gone(const struct read *read, const struct replicate_value *value)
{
    return !value->found || (value->expire_ms != 0 && value->expire_ms <= read->wall_ms);
}

/* Whether all that were asked have the same. While a plan is under way that says nothing of the
 * other set, where others read: what both have not, a write may have brought to the one only, and
 * it must not be gone again after the switch. */
static bool
agreed(const struct read *read, const struct replicate_value *value)
{
    /* What was deleted before all replicas had settled (trees.h) is gone where it was collected
     * and a tombstone where it was not yet; nothing older is left. */
    if (is_gone(read, value) &&
        value->version < lsm_purge_below(read->r->options.lsm, read->keyspace))
        return true;
    if (!all_have(read, value->version)) return false;
    if (read->row.next_count == 0 || value->version == 0 || read->need < read->need_least)
        return true;
    struct mend mend = mend_of(read, value);
    return replicate_held(read->r, &read->row, &mend);
}

static void
confirm_done(struct peer_call *peer_call, status st, const struct native_header *header,
             struct bytes body)
{
    struct read_call *call = CONTAINER_OF(peer_call, struct read_call, call);
    struct read *read = call->read;
    call->under_way = false;
    *load_of(read->r, call->member) -= 1;
    struct peer_found found;
    bool yes = ok(st) && header->status == NATIVE_ST_OK && ok(peer_found_decode(body, &found));
    if (yes && found.version != 0)
        yes = version_observe(read->r, found.version, "read", call->member);
    read->confirmed[call->index] = yes;
    if (yes) read->confirm_versions[call->index] = found.version;
    fiber_queue_wake_all(&read->wake);
}

static void
confirm_ask(struct read *read, const u32 *members, u32 count)
{
    for (u32 i = 0; i < count && read->confirm_count < QUORUM_MEMBERS_MAX; i++) {
        u32 at = quorum_find(&read->quorum, members[i]);
        bool asked = at != QUORUM_MEMBERS_MAX && read->asked[at];
        for (u32 j = 0; j < read->confirm_count; j++)
            asked = asked || read->confirms[j].member == members[i];
        if (asked || members[i] == read->r->self || !is_alive(read->r, members[i])) continue;
        u32 index = read->confirm_count++;
        read->confirms[index] = (struct read_call){.member = members[i]};
        read->confirmed[index] = false; /* of the attempt before, it may be another one's */
        read->r->stats.digests++;
        call_send(read, &read->confirms[index], members[i], index, PEER_WANT_DIGEST, confirm_done,
                  read->deadline_ns);
    }
}

/* Those who were asked agree, and too few of one set are among them to be sure of it. Mostly the
 * others of that set have it, too: a gainer has fetched it, or was written to. To ask costs less
 * than to bring it to them once more, and to wait for their disks. */
static MAY_YIELD bool
confirm(struct read *read, const struct replicate_value *value)
{
    struct replicator *r = read->r;
    u64 until = MIN(read->deadline_ns, io_now_ns() + MAX(CONFIRM_NS_MIN, 2 * r->hedge_ns));
    confirm_ask(read, read->row.write, read->row.count);
    confirm_ask(read, read->row.write_next, read->row.next_count);
    for (;;) {
        if (agreed(read, value)) return true;
        bool waits = false;
        for (u32 i = 0; i < read->confirm_count; i++)
            waits = waits || read->confirms[i].under_way;
        if (!waits || r->closing || io_now_ns() >= until) return false;
        (void)fiber_queue_wait(&read->wake, until);
    }
}

/* Enough have answered, and not the same. */
static MAY_YIELD status
resolve(struct read *read, struct replicate_value *out)
{
    for (;;) {
        u64 version = highest(read);
        bool own_newest = read->self != QUORUM_MEMBERS_MAX &&
                          read->quorum.answers[read->self] == QUORUM_YES &&
                          read->versions[read->self] == version;
        if (!own_newest && !fetch(read, version)) {
            /* Those who were the newest are gone: perhaps others know. */
            status st = gather(read);
            if (!ok(st)) return st;
            continue;
        }
        fetches_cancel(read);
        if (own_newest)
            answer_own(read, out);
        else
            answer_fetched(read, out);
        if (agreed(read, out)) return ST_OK;
        if (all_have(read, out->version) && confirm(read, out)) return ST_OK;
        read->r->stats.digest_mismatches++;
        return mend(read, out);
    }
}

/* ---- siblings ---- */

/* The union of all sets that have come. */
static status
unite(struct read *read, struct buf *out)
{
    for (u32 i = 0; i < read->quorum.count; i++) {
        if (read->quorum.answers[i] != QUORUM_YES) continue;
        struct bytes set = buf_bytes(&read->sets[i]);
        if (out->size != 0 && bytes_equal(buf_bytes(out), set)) continue;
        struct buf both;
        buf_init(&both, out->budget);
        status st = ST_OK;
        if (out->size != 0)
            st = siblings_union(buf_bytes(out), set, &both);
        else if (!buf_append(&both, set.data, set.size))
            st = ST_NO_MEMORY;
        buf_deinit(out);
        *out = both;
        if (!ok(st)) return st;
    }
    return ST_OK;
}

/* What the union's version is: as siblings.h has it, for all of them at once. 0: a new one. */
static u64
united_version(const struct read *read, struct bytes both)
{
    u64 of_equal = 0, highest_of = highest(read);
    for (u32 i = 0; i < read->quorum.count; i++)
        if (read->quorum.answers[i] == QUORUM_YES && bytes_equal(buf_bytes(&read->sets[i]), both))
            of_equal = MAX(of_equal, read->versions[i]);
    return of_equal == highest_of ? of_equal : 0;
}

/* Enough have answered: with sets. Who lacks any of what is answered is brought it, as a value's
 * version is. */
static MAY_YIELD status
resolve_siblings(struct read *read, struct replicate_value *out)
{
    struct replicator *r = read->r;
    status st = unite(read, &out->copy);
    if (!ok(st)) return st;
    out->value = buf_bytes(&out->copy);
    out->found = out->siblings = true;
    out->version = united_version(read, out->value);
    if (siblings_empty(out->value)) return ST_OK;
    if (out->version == 0) {
        if (!stamp_await(r, read->deadline_ns)) return r->closing ? ST_CLOSED : ST_UNAVAILABLE;
        r->stats.unions++;
        out->version = hlc_next(&r->hlc, io_wall_ms());
    }
    if (agreed(read, out)) return ST_OK;
    r->stats.digest_mismatches++;
    return mend(read, out);
}

static MAY_YIELD status
read_attempt(struct read *read, struct replicate_value *out)
{
    struct replicator *r = read->r;
    read->epoch = r->topology == NULL ? 0 : r->topology->epoch;
    read->wall_ms = io_wall_ms();
    if (!replicate_row(r, read->keyspace, read->token, &read->partition, &read->row))
        return ST_CANCELED;
    if (!topology_holds(r->topology, r->self, read->partition)) return ST_CANCELED;
    const struct topology_keyspace *keyspace = &r->topology->keyspaces[read->keyspace];
    u32 count;
    const u32 *members = topology_row_read(&read->row, &count);
    u32 places = read->row.read_next ? read->row.next_places : read->row.places;
    read->need =
        replicate_need(read->level, keyspace->read_quorum, keyspace->replicas, places, count);
    read->need_least = replicate_need(REPLICATE_QUORUM, 0, keyspace->replicas, places, count);
    quorum_init(&read->quorum);
    quorum_set_add(&read->quorum, members, count, read->need);
    memset(read->asked, 0, sizeof(read->asked));
    memset(read->versions, 0, sizeof(read->versions));
    memset(read->calls, 0, sizeof(read->calls));
    read->wrong_epoch = false;
    read->overloaded = read->busy = read->no_room = 0;
    read->room_until_ns = 0;
    read->epoch_seen = 0;
    read->fetched = false;
    read->siblings = keyspace->conflict == CONFLICT_SIBLINGS;
    for (u32 i = 0; i < read->quorum.count; i++)
        if (!is_alive(r, members[i])) read->quorum.answers[i] = QUORUM_NO;
    if (quorum_state(&read->quorum) == QUORUM_LOST) return ST_UNAVAILABLE;

    read->self = quorum_find(&read->quorum, r->self);
    bool own = read->self != QUORUM_MEMBERS_MAX;
    /* No yield from the look at the topology to these calls. */
    for (u32 asked = own; asked < read->need && ask_one(read); asked++)
        retry_earn(&r->retries);
    if (own) ask_self(read);
    status st = gather(read);
    if (ok(st) && own && read->need == 1 && read->quorum.answers[read->self] == QUORUM_YES)
        r->stats.reads_local++;
    if (ok(st)) st = read->siblings ? resolve_siblings(read, out) : resolve(read, out);
    return st;
}

/* Whatever the attempt has left. */
static void
attempt_end(struct read *read)
{
    for (u32 i = 0; i < read->quorum.count; i++)
        call_cancel(read, &read->calls[i]);
    for (u32 i = 0; i < read->confirm_count; i++)
        call_cancel(read, &read->confirms[i]);
    read->confirm_count = 0;
    if (read->disk_read != NULL) {
        MARK("cluster.replicate.disk_read_left");
        read->disk_read->read = NULL;
        read->disk_read = NULL;
        read->r->disk_reads_left++;
    }
    if (list_linked(&read->own_wait.link)) list_del(&read->own_wait.link);
    if (read->own_held) lsm_value_release(&read->own.value);
    read->own_held = false;
    for (u32 i = 0; i < ARRAY_COUNT(read->sets); i++)
        buf_clear(&read->sets[i], 0);
}

static MAY_YIELD status
read_until(struct read *read, struct coordinated *c, struct replicate_value *out)
{
    struct replicator *r = read->r;
    for (;;) {
        status st = read_attempt(read, out);
        attempt_end(read);
        if (ok(st)) return st;
        replicate_value_release(out);
        bool behind = read->epoch_seen > read->epoch;
        /* Who was asked by a topology that is over may have left. */
        bool old = r->topology != NULL && r->topology->epoch != read->epoch;
        bool again = status_is(st, ST_WOULD_WAIT) ||
                     ((status_is(st, ST_UNAVAILABLE) || status_is(st, ST_OVERLOADED)) &&
                      (read->wrong_epoch || old));
        if (!again) return st;
        if (!topology_await(r, read->epoch, behind, read->deadline_ns))
            return r->closing ? ST_CLOSED : ST_UNAVAILABLE;
        coordinated_end(c);
        coordinated_begin(r, c);
    }
}

MAY_YIELD status
replicate_read(struct replicator *r, enum replicate_level level, u16 keyspace, u64 token,
               struct bytes key, u64 deadline_ns, struct replicate_value *out)
{
    *out = (struct replicate_value){0};
    buf_init(&out->copy, r->options.budget);
    if (!fiber_gate_enter(&r->gate)) return ST_CLOSED;
    r->stats.reads++;
    struct read read = {.r = r,
                        .level = level,
                        .keyspace = keyspace,
                        .token = token,
                        .key = key,
                        .deadline_ns = deadline_ns};
    fiber_queue_init(&read.wake);
    list_init(&read.own_wait.link);
    buf_init(&read.copy, r->options.budget);
    for (u32 i = 0; i < ARRAY_COUNT(read.sets); i++)
        buf_init(&read.sets[i], r->options.budget);
    struct coordinated c;
    coordinated_begin(r, &c);
    status st = read_until(&read, &c, out);
    coordinated_end(&c);
    buf_deinit(&read.copy);
    /* One clock has the last word, wherever the value came from. */
    if (ok(st) && !out->siblings && is_gone(&read, out)) {
        out->found = false;
        out->expire_ms = 0;
        out->value = BYTES(NULL, 0);
    }
    fiber_gate_leave(&r->gate);
    if (status_is(st, ST_CANCELED)) st = ST_WOULD_WAIT;
    if (status_is(st, ST_UNAVAILABLE)) r->stats.unavailable++;
    return st;
}

void
replicate_value_release(struct replicate_value *value)
{
    struct budget *budget = value->copy.budget;
    lsm_value_release(&value->own);
    buf_deinit(&value->copy);
    *value = (struct replicate_value){0};
    buf_init(&value->copy, budget);
}
