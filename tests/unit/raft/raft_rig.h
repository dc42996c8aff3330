/* SPDX-License-Identifier: MIT
 *
 * raft_rig.h -- a group of replicas of src/raft in one process: disks, a network, clocks, and the
 * rules that must hold whatever these do. test_raft.c tells small stories with it, test_raft_sim.c
 * lets chance decide.
 *
 * Time is counted in units; a replica ticks every 10 of them. Its clock may be 10 % off: then it
 * ticks every 9 or 11, and reads its leases' clock as fast. A replica may stand still (SIGSTOP, a
 * machine that is suspended): it does nothing, what is sent to it waits, and its clock goes on. A
 * disk is a queue of writes that are done in order: a crash loses what is queued, but for a part of
 * it at chance. Rules, checked as soon as something happens:
 *   election      two leaders in one term
 *   matching      two entries of one index and term that differ, or whose predecessors do
 *   completeness  a leader lacks an entry that was committed in an earlier term
 *   machine       two replicas apply different entries at one index, or one skips or repeats
 *   read          a read that does not see what had been applied anywhere when it began
 *   lease         the same for a read by lease
 *   config        a second uncommitted configuration at a leader; replicas that differ at the end
 *   progress      after the faults: no leader, a write or a read that is not done, unequal replicas
 */
#ifndef DISTKV_TESTS_RAFT_RIG_H
#define DISTKV_TESTS_RAFT_RIG_H

#include "base/prng.h"
#include "raft/raft.h"

#define NODES      7 /* ids 1..7 */
#define PEERS_MAX  8
#define LOG_MAX    2048
#define WIRE_MAX   4096
#define OPS_MAX    256
#define HELD_MAX   512
#define ENTRY_MAX  96
#define CARRY_MAX  16
#define READS_MAX  8
#define UNIT_TICK  10
#define TICKS_VOTE 10
#define TICKS_BEAT 2
#define TERMS_MAX  8192

struct item {
    u64 index, term;
    u8 kind, size;
    u8 data[ENTRY_MAX];
};

/* What the state machine is: the number of the last entry and a hash of all up to it. */
struct machine {
    u64 index, hash;
};

struct disk {
    u64 first; /* index of items[0] */
    u32 count;
    struct item items[LOG_MAX];
    struct machine machine; /* the snapshot's */
    u64 snapshot_term;
    u8 config_size, config[ENTRY_MAX];
    struct raft_hard_state hard;
};

struct parcel { /* a message and all it refers to */
    struct raft_message message;
    struct raft_entry entries[CARRY_MAX];
    struct item items[CARRY_MAX];
    u8 config[ENTRY_MAX];
    struct machine machine;
    u64 due;
    u64 life; /* of the sender, for what becomes of snapshots */
};

struct op {
    u64 sequence, persist_index, due;
    bool hard_changed, install;
    struct raft_hard_state hard;
    u64 first;
    u32 count;
    struct item items[64];
    struct raft_snapshot snapshot;
    u8 config[ENTRY_MAX];
    struct machine machine;
};

struct waiting_read {
    bool used, answered;
    u64 id, index, floor, since;
};

struct node {
    struct rig *rig;
    u64 id, life;
    bool up;
    u64 up_at, tick_at, tick_units;
    u64 stopped_until; /* it stands still */
    struct raft raft;
    struct disk memory, durable; /* of memory only the log counts; hard is the raft's */
    struct machine machine;
    struct op ops[OPS_MAX];
    u32 op_count;
    u64 disk_free_at;
    struct parcel held[HELD_MAX];
    u32 held_count;
    struct waiting_read reads[READS_MAX * 2];
    enum raft_role seen_role;
    u64 seen_term;
    struct parcel *taking; /* the message being stepped: a snapshot's machine comes with it */
    u8 block[8192] ALIGNED(16);
};

struct rig {
    struct prng prng;
    u64 now;
    struct node nodes[NODES + 1]; /* [0] is not used */
    struct parcel wire[WIRE_MAX];
    u32 wire_count;
    u16 wire_order[WIRE_MAX]; /* slots: first those in use, in order of sending, then the free */
    bool blocked[NODES + 1][NODES + 1]; /* from, to */

    /* chances of 1,000 */
    u32 loss, twice, refuse, wait, torn;
    u32 delay_most, disk_most; /* units */
    u64 lease_units;           /* of the leader's clock */
    u32 uncommitted_bytes, message_bytes, inflight_max;

    /* the judge */
    u64 leader_of[TERMS_MAX];
    struct {
        u64 term, hash;
        u64 decided; /* the term of who was the first to apply it: it was committed by then */
    } applied[LOG_MAX * 2];
    u64 applied_max;
    u64 next_value, next_read;
    u64 reads_done, leases_done, elections, snapshots_done, changes_done, transfers_done, crashes;
    u64 stops;
    char failure[256]; /* "" while all is well */

    /* the story */
    bool telling;
    char trace[16384];
    u32 trace_size;
};

void rig_init(struct rig *rig, u64 seed);
/* voters: a bit for each id. The others are there, empty, and in no configuration. */
void rig_start(struct rig *rig, u32 voters);
void rig_run(struct rig *rig, u64 units);
void rig_crash(struct rig *rig, u64 id, u64 down_units);
void rig_stop(struct rig *rig, u64 id, u64 units);
u64 rig_clock(const struct rig *rig, u64 id); /* what the replica's clock shows */
struct node *rig_leader(struct rig *rig);     /* of the newest term; NULL */
status rig_propose(struct rig *rig, u64 id);
status rig_change(struct rig *rig, u64 id, enum raft_change_kind kind, u64 member);
status rig_changes(struct rig *rig, u64 id, const struct raft_change *changes, u32 count);
status rig_read(struct rig *rig, u64 id);
status rig_transfer(struct rig *rig, u64 id, u64 target);
void rig_quiesce(struct rig *rig, u64 id);
void rig_wake(struct rig *rig, u64 id, bool leader_dead);
void rig_lease_read(struct rig *rig, u64 id);
void rig_compact(struct rig *rig, u64 id);
void rig_cut(struct rig *rig, u64 from, u64 to, bool cut);
void rig_cut_both(struct rig *rig, u64 a, u64 b, bool cut);
void rig_fail(struct rig *rig, const char *pattern, ...) PRINTF_LIKE(2, 3);
/* All faults end; everything must be well again soon. */
void rig_calm(struct rig *rig);

#endif
