/* SPDX-License-Identifier: MIT
 *
 * log_internal.h -- struct log, for log.c (appending and writing), log_write.c (the requests),
 * log_change.c (from one segment to the next), log_segment.c (making, recycling and removing
 * segments), log_reader.c, log_recover.c (reading) and log_carry.c (saving what may be lost yet)
 * and their tests.
 */
#ifndef DISTKV_LSM_LOG_INTERNAL_H
#define DISTKV_LSM_LOG_INTERNAL_H

#include "base/buf.h"
#include "io/file.h"
#include "io/task.h"
#include "io/timer.h"
#include "lsm/log.h"
#include "lsm/log_format.h"
#include "lsm/log_pace.h"
#include "lsm/table.h"

#define LOG_GROUP_BYTES_MAX   KIB(256) /* of one write */
#define LOG_LOAD_FADES        16u      /* load_bytes falls by this part with each write */
#define LOG_SEAL_AFTER_NS     NS_PER_MS
#define LOG_CHANGE_EARLY      8u /* this part of a segment is free when it is to change */
#define LOG_RETRY_NS          NS_PER_S
#define LOG_FREES_SHARE       16u /* this part of a segment, at its end: see log_append_check */
#define LOG_SEGMENT_BYTES_MIN (8u * LOG_BLOCK_BYTES)

struct log_segment {
    u64 number;
    struct io_file *file; /* NULL: an opening found it, and it is only read (F1) */
    u64 end;              /* offset behind the last block that was laid out */
    u64 written_offset;   /* everything before this was written (GROUP: and is durable) */
    u64 synced_offset;    /* PERIODIC: everything before this survives power loss */
    bool begun;           /* its header was written */
    bool released;        /* recovery does not read it: the manifest says so, for good */
    struct list link;     /* log->old, log->replaced or log->recycle */
};

/* The end of what the last process wrote: readable, but nothing attests that it is durable. */
struct log_carry {
    u64 number; /* of its segment; 0: there is nothing to carry */
    u64 from;   /* of its records those that do not end before this offset ... */
    u64 end;    /* ... and end before this one */
    u64 seq_base;
    u64 seq_last;   /* of the last of them */
    bool replace;   /* the segment as a whole */
    bool in_tables; /* all of it: only where the next segment is to follow is looked up */
};

/* One group: contiguous blocks, one request to the disk. Fixed in memory while it is under way. */
struct log_write {
    struct io_op op;
    struct log *log;
    struct log_segment *segment;
    u8 *buffer; /* capacity bytes, aligned */
    u32 capacity;
    u32 size;       /* whole blocks */
    u32 block_used; /* payload bytes in the last block */
    u64 offset;
    u64 seq_last; /* of the last record that ends in it; 0: none does */
    u32 records;  /* that end in it */
    bool header;
    bool durable; /* when it is done, it survives power loss */
    bool finished;
    struct list link; /* queued, in_flight or free_writes */
};

struct log {
    struct log_config config;
    char dir[LSM_PATH_BYTES];
    u32 group_bytes;
    u64 queue_bytes_max;

    /* segments */
    struct log_segment *current; /* appended to; NULL: none could be made yet */
    struct log_segment *writing; /* the one that requests go to: current or one before it */
    struct log_segment *ready;   /* named, durable, empty but for what was carried: the next one */
    struct list old;             /* live ones before current, ascending */
    struct list replaced;        /* go when a segment after them has begun for sure */
    struct list recycle;         /* released ones whose files wait for a new life */
    u32 recycle_count;
    u64 number_next;
    status make_status; /* of the last attempt to make one */
    u64 make_retry_ns;
    u64 started; /* log_segment_started */
    /* the end of what the next segment follows */
    u64 tail_number, tail_end, tail_seq;
    u64 seq_base;           /* of the next segment's records: at least tail_seq */
    struct log_carry carry; /* into the first segment that is made */

    /* PERIODIC: a change of segments that waits for a sync, and nobody for it (log_change.c) */
    bool changing;
    u32 copies_in_flight;            /* to ready, of what current got since */
    u64 change_end, change_seq;      /* where current will have ended; the last number before it */
    struct log_write *change_header; /* for the header of ready */

    /* writes */
    struct log_write *fill; /* being filled, in current; NULL: none */
    struct list queued;     /* full or ended ones that wait for their turn */
    struct list in_flight;  /* in the order of submission */
    u32 in_flight_count;
    u64 load_bytes; /* payload under way at once: the most of late */
    struct list free_writes;
    u32 free_count;
    u64 queued_bytes;    /* in fill, queued and in_flight */
    u64 attested_offset; /* the highest durable_offset in a block of writing */
    u64 attested_segment;
    u64 seq_last; /* of the last record appended */
    u64 durable_seq;
    u64 synced_seq; /* PERIODIC */
    bool failed;
    bool closing;
    struct io_task pump_task; /* log_pump, for all that a turn brings */
    struct log_pace pace;
    struct io_timer pace_timer; /* log_pump, for who waited for others */
    struct io_timer seal_timer;

    /* fibers */
    u32 fibers;
    struct fiber_queue fibers_wake;
    struct fiber_queue make_wake;  /* the maker of segments sleeps here */
    struct fiber_queue sync_wake;  /* the periodic syncer */
    struct fiber_queue room_wake;  /* log_wait_room */
    struct fiber_queue state_wake; /* log_rotate, log_drain: any progress */

    struct log_stats stats;
};

/* ---- log.c ---- */
void log_fail(struct log *log, status why, const char *what);
void log_pump(struct log *log);

/* ---- log_write.c ---- */
/* Each belongs to who has acquired it, until it is released or put into a list of the log. NULL: no
 * memory. */
MUST_CHECK struct log_write *log_write_acquire(struct log *log);
void log_write_release(struct log *log, struct log_write *write);
void log_write_free(struct log *log, struct log_write *write);
/* Its first block is to stand at the end of segment. */
void log_write_begin(struct log *log, struct log_write *write, struct log_segment *segment);
/* Opens the next block of a write that has room for it. */
struct log_block *log_write_block_add(struct log *log, struct log_write *write,
                                      enum log_block_kind kind);
/* The unused rest of the last block becomes zeros: nothing of old memory reaches the disk. */
void log_write_block_end(struct log_write *write);
/* Gives blocks that were laid out for other places those at the end of segment. */
void log_write_move(struct log_write *write, struct log_segment *segment);
/* fill, which is not NULL, is as large as it gets. */
void log_fill_end(struct log *log);

/* The last one. */
static inline struct log_block *
log_write_block(const struct log_write *write)
{
    return (struct log_block *)(void *)(write->buffer + write->size - LOG_BLOCK_BYTES);
}

/* ---- log_change.c ---- */
/* Ends current and goes on in ready. ST_NO_MEMORY: no buffer for the header. */
MUST_CHECK status log_cut(struct log *log);
/* Begins a change for which nobody waits, when that is possible. */
bool log_change_begin(struct log *log);
/* Before the end of a segment, so that the change is made when it is there. */
bool log_change_is_near(const struct log *log);
/* What was written to current while it changes goes to ready as well; takes the write then. */
bool log_change_copies(struct log *log, struct log_write *write);
/* Ends current at change_end. Nothing is in flight: who was acknowledged since is in the copies,
 * who was not is in queued and fill. */
void log_change_finish(struct log *log);

/* ---- log_segment.c ---- */
void log_segment_free(struct log *log, struct log_segment *segment);
MUST_CHECK struct log_segment *log_segment_new(struct log *log, u64 number);
/* Puts a segment into log->ready. */
MAY_YIELD MUST_CHECK status log_segment_make(struct log *log);
void log_make_fiber(void *arg);
void log_sync_fiber(void *arg);
/* The name goes, and the blocks with it or after it; takes the segment. A failure was told. */
MAY_YIELD MUST_CHECK status log_segment_remove(struct log *log, struct log_segment *segment);
/* Keeps the file for a new life or removes it; takes the segment. */
MAY_YIELD void log_segment_retire(struct log *log, struct log_segment *segment);
/* Lets go of log->replaced, once a segment after them has begun. */
MAY_YIELD void log_replaced_retire(struct log *log);

/* ---- log_reader.c ---- */
#define LOG_READ_PIECES 16u

struct log_piece {
    struct io_op op;
    u8 *buffer;
    u64 offset;
    u32 size; /* 0: nothing */
    bool reading;
};

/* One segment at a time, from front to back: while one piece is looked at, the next ones are being
 * read. */
struct log_reader {
    const char *dir;
    struct budget *budget;
    char path[LSM_PATH_BYTES]; /* of the segment that was opened last */
    struct io_file *file;      /* NULL: none is open */
    u64 number;
    u64 file_bytes; /* whole blocks */
    u64 ahead;      /* where the next piece begins */
    u64 ahead_end;  /* no piece goes beyond this; a block beyond it moves it to the end */
    struct log_piece pieces[LOG_READ_PIECES]; /* a ring: front holds what is asked for */
    u32 piece_bytes, piece_count, piece_max, front;
};
MUST_CHECK status log_reader_init(struct log_reader *reader, const char *dir,
                                  struct budget *budget);
MAY_YIELD void log_reader_deinit(struct log_reader *reader);
/* sync: the file is synced before it is read. */
MAY_YIELD MUST_CHECK status log_reader_open(struct log_reader *reader, u64 number, bool sync);
/* After opening: only what is before offset will be wanted. */
void log_reader_limit(struct log_reader *reader, u64 offset);
MAY_YIELD void log_reader_close(struct log_reader *reader);
/* The block at offset, or NULL beyond the file. It stays until the next call. */
MAY_YIELD MUST_CHECK status log_reader_block(struct log_reader *reader, u64 offset, const u8 **out);
/* data may be NULL. *out is set whatever is returned, if it is not. */
bool log_block_is_valid(const u8 *data, u64 segment, u64 offset, struct log_block *out);

/* A record that is whole and sound, and follows the one before. */
typedef status log_take_fn(void *arg, const struct log_record *record, struct bytes payload);

/* The record stream of one segment. */
struct log_stream {
    log_take_fn *take; /* may be NULL */
    void *arg;
    struct buf partial; /* the beginning of a record */
    u64 size_max;       /* no record is larger */
    u64 seq_last;
    bool seq_any;       /* the next record may have any number */
    u64 records, bytes; /* taken since log_stream_init */
    const char *damage; /* what a function that returns ST_CORRUPT found */
};
void log_stream_init(struct log_stream *stream, struct budget *budget, log_take_fn *take,
                     void *arg);
void log_stream_deinit(struct log_stream *stream);
/* Before the first block of a segment, whose records have the numbers after seq_last. */
void log_stream_begin(struct log_stream *stream, u64 seq_last, u64 size_max);
/* A valid block. Checks that records begin where it says. */
MAY_YIELD MUST_CHECK status log_stream_block(struct log_stream *stream, const u8 *data,
                                             const struct log_block *block);

/* ---- log_carry.c ---- */
/* Copies log->carry into segment, from its second block on, and syncs it; then the segment may
 * become ready. Sets where the predecessor ends and the numbers begin. */
MAY_YIELD MUST_CHECK status log_carry_copy(struct log *log, struct log_segment *segment);

/* ---- log_recover.c ---- */
struct log_reader_report {
    void (*fn)(void *arg, const char *file, u64 offset, const char *what);
    void *arg;
};
struct log_recovered {
    u64 *segments; /* started ones, ascending */
    u32 segment_count, segment_capacity;
    u64 *ends; /* of each */
    u32 end_count, end_capacity;
    u64 *unstarted; /* files that hold nothing, or nothing that is read any more: to be removed */
    u32 unstarted_count, unstarted_capacity;
    u64 *replaced; /* copied to a later segment; to stay until one after that has begun */
    u32 replaced_count, replaced_capacity;
    u64 number_max;
    /* of the newest segment */
    u64 tail_number, tail_end, tail_seq, seq_base;
    u64 tail_attested;  /* what is before this offset was durable once */
    bool tail_doubtful; /* nothing says so even of its header */
    struct log_segment_header tail_header;
    u64 records, bytes;
    u64 files, file_bytes;
};
/* repair: files are synced before they are read. replay may be NULL. */
MAY_YIELD MUST_CHECK status log_recover(const char *dir, u64 segment_first, bool repair,
                                        struct budget *budget, log_take_fn *replay, void *arg,
                                        const struct log_reader_report *report,
                                        struct log_recovered *out);
void log_recovered_deinit(struct log_recovered *recovered, struct budget *budget);

#endif
