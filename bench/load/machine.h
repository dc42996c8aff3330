/* SPDX-License-Identifier: MIT
 *
 * machine.h -- where a run took place and who answered: for the report.
 */
#ifndef DISTKV_BENCH_MACHINE_H
#define DISTKV_BENCH_MACHINE_H

#include "load/settings.h"

struct machine {
    char kernel[128];
    char cpu[128];
    u32 cores; /* that this process may use */
    u64 memory_bytes;
    char time[32]; /* UTC */
};

/* As INFO says; empty where it says nothing. */
struct server_info {
    char name[32]; /* distkv, redis, valkey */
    char version[64];
    char redis_version[64]; /* that it says to be compatible with */
    char mode[32];
    u64 pid; /* 0: not known, or on another machine */
};

void machine_read(struct machine *machine);
/* Numeric address of a name; false: error says why. */
MUST_CHECK bool machine_resolve(const char *name, char *out, size_t size, char *error,
                                size_t error_size);
/* A socket that waits for 5 s at most; -1: it cannot connect. */
int machine_connect(const char *host, u16 port);
/* Asks over RESP (which DistKV speaks on the same port as the native protocol). Whatever fails
 * leaves the fields empty; false: no connection. */
MUST_CHECK bool server_info_read(const struct settings *settings, const char *host, u16 port,
                                 struct server_info *out);
/* User and system time of a process so far; false: it cannot be read. */
MUST_CHECK bool process_cpu_ns(u64 pid, u64 *out);
/* Of this process, and of an ordinary clock. */
u64 own_cpu_ns(void);
u64 clock_now_ns(void);
/* A directory with all that is below it, as far as it goes. */
void remove_tree(const char *path);

/* For tests: the fields of an INFO reply. */
void server_info_parse(const char *text, struct server_info *out);

#endif
