/* SPDX-License-Identifier: MIT
 *
 * check.c -- the end of the process after a programmer's error: what failed, where, and the calls
 * that led there, on stderr at once, for nothing else can be trusted any more.
 */
#include "base/types.h"

#include <execinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void
check_failed(const char *condition, const char *file, int line)
{
    void *frames[64];
    fprintf(stderr, "distkv: check failed: %s at %s:%d\n", condition, file, line);
    fflush(stderr);
    backtrace_symbols_fd(frames, backtrace(frames, 64), STDERR_FILENO);
    abort();
}
