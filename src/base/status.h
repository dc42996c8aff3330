/* SPDX-License-Identifier: MIT
 *
 * status.h -- what a function that can fail returns: a struct, so that an int cannot pose as one.
 *
 * Three kinds are never mixed: operating errors and bad bytes are returned as one of these;
 * a programmer's error is a CHECK. Out-parameters are set only when the status is ok (functions
 * that depart from this say so).
 */
#ifndef DISTKV_BASE_STATUS_H
#define DISTKV_BASE_STATUS_H

#include "base/types.h"

/* One list gives the code and its text. The order is stable: codes appear in logs. */
#define STATUS_LIST(X)                                                                             \
    X(OK, "ok")                                                                                    \
    X(NOT_FOUND, "not found")                                                                      \
    X(WOULD_WAIT, "cannot be answered without waiting")                                            \
    X(END, "no more entries")                                                                      \
    X(INCOMPLETE, "more bytes are needed")                                                         \
    X(CORRUPT, "bad checksum or format")                                                           \
    X(IO_ERROR, "input or output failed")                                                          \
    X(NO_SPACE, "no space left")                                                                   \
    X(NO_MEMORY, "memory budget exhausted")                                                        \
    X(OVERLOADED, "overloaded, try again later")                                                   \
    X(TIMED_OUT, "deadline passed")                                                                \
    X(CANCELED, "canceled")                                                                        \
    X(CLOSED, "closed")                                                                            \
    X(READ_ONLY, "the store has failed and takes no more writes")                                  \
    X(EXISTS, "already exists")                                                                    \
    X(CONFLICT, "condition not met")                                                               \
    X(INVALID, "invalid argument")                                                                 \
    X(TOO_LARGE, "over a size limit")                                                              \
    X(LOCKED, "in use by another process")                                                         \
    X(UNSUPPORTED, "not supported here")                                                           \
    X(UNKNOWN_OUTCOME, "it is not known whether the write took effect")                            \
    X(DENIED, "permission denied")                                                                 \
    X(MOUNTED_READ_ONLY, "the file system is mounted read-only")                                   \
    X(NOT_DIRECTORY, "a part of the path is no directory")                                         \
    X(UNAVAILABLE, "too few replicas can be reached")                                              \
    X(PAUSED, "not at the end yet, and may go on")                                                 \
    X(FULL, "indexes fill the memory: nothing but deletes is taken")

enum status_code {
#define X(name, text) SC_##name,
    STATUS_LIST(X)
#undef X
        STATUS_CODE_COUNT
};

typedef struct {
    i32 code; /* enum status_code */
} status;

#define X(name, text) static const status UNUSED ST_##name = {SC_##name};
STATUS_LIST(X)
#undef X

static inline bool
ok(status st)
{
    return st.code == SC_OK;
}

static inline bool
status_is(status st, status other)
{
    return st.code == other.code;
}

/* Whether the disk or the file system refused, for another reason than want of room. */
static inline bool
status_is_io(status st)
{
    return st.code == SC_IO_ERROR || st.code == SC_DENIED || st.code == SC_MOUNTED_READ_ONLY;
}

/* The text from STATUS_LIST; static storage. */
const char *status_text(status st);
/* The identifier, for example "CORRUPT"; static storage. */
const char *status_name(status st);

#endif
