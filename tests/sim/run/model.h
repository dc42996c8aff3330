/* SPDX-License-Identifier: MIT
 *
 * model.h -- what the keys of a node may hold, given who asked for what and what was answered.
 * Pure: no simulator, no chance; it has its own unit test (test_run_model.c).
 *
 * Object. Up to MODEL_KEYS_MAX keys of one hash tag and keyspace, which commands may touch together
 * and atomically; a key that nothing touches together with others is an object of its own. Objects
 * are independent of each other, so each is judged alone (after Horn and Kroening; porcupine).
 *
 * Operation. Everything that one request does to one object, atomically: a list of steps with what
 * each is known to have answered. It was invoked at some position in the run's order of events, and
 * returned at another; one without an answer may have taken effect at any time after its
 * invocation and before the end of the server's process, or never.
 *
 * Epoch. The life of one process of the server. At its end the operations of an object are judged:
 *
 *   states  what the object may hold now: a set, because of unknown outcomes
 *   open    operations that were invoked and have not returned
 *   config  a state, and which of the open operations have taken effect in it
 *
 * The positions are gone through in order (just-in-time linearization, after Lowe). When an
 * operation returns, every config is led on by taking effect of open operations, in any order and
 * only with the answers that they have given, until the returning one has; configs that cannot be
 * led there are dropped. None left: no order of atomic steps explains what was answered.
 *
 * Four rules keep the sets small. An operation whose answer says that it has changed nothing takes
 * effect as soon as that fits. Of two configs that differ only in operations of unknown outcome the
 * one with fewer of them done is kept: it can still do all that the other can. Writes of one RESP
 * connection to one key take effect in their order. And the workload keeps the number of open
 * operations of an object small. Sets that grow over a limit give up: the object is not judged any
 * more, and counted.
 *
 * Ends. After an orderly end, or a crash that durability promises to survive, an object holds what
 * it held, the open operations done or not. Otherwise it may hold anything that it held since some
 * moment: `past` remembers every state that was possible, and until when.
 *
 * Time. A value that expires does so by the wall clock, at a moment that is known up to what the
 * clock showed while its operation took effect (model_clock_set; else the clock is that of the
 * run). From the first to the last such moment a read may find it or not; after it was found absent
 * it stays so. When the clock steps back (time_back) the value may be found again, as long as
 * nothing has dropped it: it must be absent while the clock is behind the last moment, it may be
 * once the clock, since the value was written, has been at the first, and it must be there before.
 */
#ifndef DISTKV_TESTS_SIM_RUN_MODEL_H
#define DISTKV_TESTS_SIM_RUN_MODEL_H

#include "values.h"

#define MODEL_KEYS_MAX  4u
#define MODEL_OPEN_MAX  256u
#define MODEL_STEPS_MAX 16u
#define MODEL_NEVER     UINT64_MAX
#define MODEL_FAILED    INT64_MIN /* a result: the command answered an error that is its own */
#define MODEL_TTL_NONE  (-1)
#define MODEL_TTL_GONE  (-2)

enum model_kind {
    MODEL_GET,      /* value; number: 1 there, 0 absent */
    MODEL_PUT,      /* number: 1 done, 0 not; value with MODEL_GET_OLD: what was there before */
    MODEL_DELETE,   /* number: 1 it was there */
    MODEL_GETDEL,   /* value */
    MODEL_APPEND,   /* number: the new size */
    MODEL_INCR,     /* number: the new number, or MODEL_FAILED */
    MODEL_STRLEN,   /* number */
    MODEL_EXPIRE,   /* number: 1 done, 0 absent */
    MODEL_PERSIST,  /* number: 1 done */
    MODEL_TTL,      /* number: ms, MODEL_TTL_* */
    MODEL_RENAME,   /* key to key2; number: 1 done, MODEL_FAILED absent */
    MODEL_RENAMENX, /* number: 1 done, 0 key2 is there, MODEL_FAILED absent */
    MODEL_COPY,     /* number: 1 done, 0 not */
    MODEL_EXPECT,   /* the key holds exactly value: otherwise the operation cannot have been done */
    MODEL_CLEAR,    /* all keys */
};

enum model_flags {
    MODEL_IF_ABSENT = 1 << 0,
    MODEL_IF_PRESENT = 1 << 1,
    MODEL_IF_VERSION = 1 << 2,
    MODEL_GET_OLD = 1 << 3,
    MODEL_KEEP_TTL = 1 << 4,
    MODEL_REPLACE = 1 << 5,
};

/* What is known of a step's results. */
enum model_known {
    MODEL_KNOWS_VALUE = 1 << 0,
    MODEL_KNOWS_NUMBER = 1 << 1,
    MODEL_KNOWS_VERSION = 1 << 2, /* of the key behind the step */
};

struct model_step {
    u8 kind, key, key2;
    u8 flags;
    u32 value;   /* argument */
    i64 number;  /* argument of INCR */
    u64 ttl_ms;  /* from then on; 0: none */
    u64 version; /* for IF_VERSION */
    /* the answer */
    u8 known;
    u32 result_value;
    i64 result_number;
    u64 result_version;
};

enum model_outcome {
    MODEL_OPEN,    /* not yet answered */
    MODEL_DONE,    /* answered */
    MODEL_REFUSED, /* had no effect */
    MODEL_UNKNOWN, /* never will be answered */
};
/* Of operations that are done wholly or, when a condition of a step does not hold, not at all. */
enum model_all { MODEL_ALL_NOT, MODEL_ALL_ANY, MODEL_ALL_DONE, MODEL_ALL_UNDONE };

struct model_op {
    u64 invoked, returned; /* positions; MODEL_NEVER */
    u64 invoked_ns, returned_ns;
    u64 shown_ns;   /* what it saw was told up to then, by the clock of then; 0: as it returned */
    u32 connection; /* operations of one connection keep their order by key; 0: no order */
    u32 object;     /* the caller's */
    u32 client;     /* for a person, like number */
    u64 number;
    u8 outcome;
    u8 all;     /* enum model_all */
    u8 changes; /* it may change something */
    u8 step_count;
    i16 slot; /* while it is judged; -1 */
    struct model_step steps[];
};

struct model_cell {
    u32 value; /* VALUE_ABSENT */
    u32 pad;
    u64 version;                    /* 0: not known */
    u64 expire_lo_ns, expire_hi_ns; /* by the wall clock; both 0: never */
    u64 expire_set_ns;              /* when that began to be so; not before */
};

struct model_state {
    struct model_cell cells[MODEL_KEYS_MAX];
};

struct model_past {
    struct model_state state;
    u64 until_ns; /* it was possible until then at least */
};

struct model_object {
    u32 key_count;
    struct model_state *states;
    u32 state_count, state_capacity;
    struct model_op **ops; /* of this epoch, by invocation */
    u32 op_count, op_capacity;
    struct model_past *past;
    u32 past_count, past_capacity;
    u32 open_count; /* invoked, not returned (unknown ones, too), that may change something */
    bool gave_up;
};

enum model_end {
    MODEL_END_KEEPS, /* what was acknowledged is there */
    MODEL_END_LOSES, /* something that was possible at since_ns or later */
};

struct model; /* scratch memory, values, figures */

struct model *model_new(struct values *values);
void model_free(struct model *model);
/* The wall clock: the least and the most that it showed between two moments of the run. */
void model_clock_set(struct model *model, u64 (*least)(u64 from_ns, u64 to_ns),
                     u64 (*most)(u64 from_ns, u64 to_ns));
void model_time_back_set(struct model *model); /* it may step back */
/* What an object held in an epoch may come back at the end of any later one. */
void model_past_kept_set(struct model *model);

void model_object_init(struct model_object *object, u32 key_count);
void model_object_deinit(struct model_object *object);
/* The memory is the model's from now on, freed when it was judged. */
struct model_op *model_op_new(u32 step_count);
void model_invoke(struct model_object *object, struct model_op *op, u64 position, u64 now_ns);
void model_return(struct model_object *object, struct model_op *op, u64 position, u64 now_ns);
void model_refuse(struct model_object *object, struct model_op *op);
void model_forget(struct model_object *object, struct model_op *op); /* its outcome is unknown */

/* Judges the epoch's operations. weak: keep the past. false: they cannot be explained; *failed is
 * the operation that could not have answered so (it stays until the next call). */
MUST_CHECK bool model_judge(struct model *model, struct model_object *object, enum model_end end,
                            bool weak, u64 since_ns, u64 now_ns, const struct model_op **failed);
/* Prints operations and states: what a person needs to see a failure. */
void model_print(const struct model *model, const struct model_object *object,
                 const struct model_op *failed);
void model_step_describe(const struct model *model, const struct model_step *step, char *out,
                         size_t size);

struct model_stats {
    u64 judged, operations, configs, configs_max, gave_up, unknown;
};
const struct model_stats *model_stats(const struct model *model);

#endif
