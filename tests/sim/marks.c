/* SPDX-License-Identifier: MIT
 *
 * marks.c -- part of every program of the simulated link: with SIM_MARKS_DIR=DIR, leaves a file
 * there at the end of the process, PROGRAM.PID, which tells how often each of the program's MARK
 * and BUGGIFY sites was passed:
 *
 *     lsm.log.rotated mark 17
 *
 * tools/sim-marks puts the files of many programs together.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "io/sim.h"

static void
site_write(void *arg, const char *name, bool is_mark, u64 passed)
{
    fprintf(arg, "%s %s %llu\n", name, is_mark ? "mark" : "buggify", (unsigned long long)passed);
}

__attribute__((destructor)) static void
marks_write(void)
{
    const char *dir = getenv("SIM_MARKS_DIR");
    char path[4096];
    if (dir == NULL) return;
    int size = snprintf(path, sizeof(path), "%s/%s.%ld", dir, program_invocation_short_name,
                        (long)getpid());
    FILE *file = size < (int)sizeof(path) ? fopen(path, "we") : NULL;
    if (file == NULL) {
        fprintf(stderr, "no marks are written to %s\n", path);
        return;
    }
    sim_site_each_ever(site_write, file);
    if (fclose(file) != 0) fprintf(stderr, "not all marks are in %s\n", path);
}
