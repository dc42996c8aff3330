/* SPDX-License-Identifier: MIT
 *
 * machine.c -- see machine.h. What cannot be found out stays empty or 0: a report without the name
 * of the processor is still one. The rest is about processes and servers: their CPU time, what INFO
 * says of them, names and connections.
 */
#include "load/machine.h"

#include <arpa/inet.h>
#include <ftw.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "load/wire.h"

#define INFO_BYTES_MAX (64u << 10)

u64
clock_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * NS_PER_S + (u64)now.tv_nsec;
}

u64
own_cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (u64)now.tv_sec * NS_PER_S + (u64)now.tv_nsec;
}

static int
remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)remove(path);
    return 0;
}

void
remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

bool
process_cpu_ns(u64 pid, u64 *out)
{
    char path[64], line[1024];
    snprintf(path, sizeof(path), "/proc/%llu/stat", (unsigned long long)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) return false;
    size_t size = fread(line, 1, sizeof(line) - 1, file);
    fclose(file);
    line[size] = '\0';
    /* The name may hold anything; the fields go on behind its last parenthesis. */
    const char *at = strrchr(line, ')');
    if (at == NULL) return false;
    unsigned long long user, system;
    if (sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system) !=
        2)
        return false;
    long ticks = sysconf(_SC_CLK_TCK);
    if (ticks <= 0) return false;
    *out = (user + system) * (NS_PER_S / (u64)ticks);
    return true;
}

void
machine_read(struct machine *machine)
{
    *machine = (struct machine){0};
    struct utsname name;
    if (uname(&name) == 0)
        snprintf(machine->kernel, sizeof(machine->kernel), "%.20s %.60s %.20s", name.sysname,
                 name.release, name.machine);
    FILE *file = fopen("/proc/cpuinfo", "re");
    char line[256];
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(machine->cpu, sizeof(machine->cpu), "%.120s", colon + (colon[1] == ' ' ? 2 : 1));
        break;
    }
    if (file != NULL) fclose(file);
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof(cores), &cores) == 0) machine->cores = (u32)CPU_COUNT(&cores);
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) machine->memory_bytes = (u64)pages * (u64)page;
    time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc) != NULL)
        strftime(machine->time, sizeof(machine->time), "%Y-%m-%dT%H:%M:%SZ", &utc);
}

bool
machine_resolve(const char *name, char *out, size_t size, char *error, size_t error_size)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int result = getaddrinfo(name, NULL, &hints, &found);
    if (result != 0) {
        snprintf(error, error_size, "'%s' is not known: %s", name, gai_strerror(result));
        return false;
    }
    bool done = getnameinfo(found->ai_addr, found->ai_addrlen, out, (socklen_t)size, NULL, 0,
                            NI_NUMERICHOST) == 0;
    freeaddrinfo(found);
    if (!done) snprintf(error, error_size, "'%s' has no address", name);
    return done;
}

/* ---- INFO ---- */

static bool
field(const char *text, const char *name, char *out, size_t size)
{
    size_t length = strlen(name);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (strncmp(line, name, length) != 0 || line[length] != ':') continue;
        const char *value = line + length + 1;
        snprintf(out, size, "%.*s", (int)strcspn(value, "\r\n"), value);
        return true;
    }
    return false;
}

void
server_info_parse(const char *text, struct server_info *out)
{
    char number[32], version[64];
    *out = (struct server_info){0};
    field(text, "redis_version", out->redis_version, sizeof(out->redis_version));
    field(text, "redis_mode", out->mode, sizeof(out->mode));
    if (field(text, "distkv_version", version, sizeof(version))) {
        snprintf(out->name, sizeof(out->name), "distkv");
    } else if (field(text, "valkey_version", version, sizeof(version))) {
        snprintf(out->name, sizeof(out->name), "valkey");
    } else if (out->redis_version[0] != '\0') {
        snprintf(out->name, sizeof(out->name), "redis");
        snprintf(version, sizeof(version), "%s", out->redis_version);
    } else {
        version[0] = '\0';
    }
    snprintf(out->version, sizeof(out->version), "%s", version);
    if (field(text, "process_id", number, sizeof(number)) &&
        !option_parse_number(number, &out->pid))
        out->pid = 0;
}

int
machine_connect(const char *host, u16 port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *found;
    char service[8];
    snprintf(service, sizeof(service), "%u", port);
    if (getaddrinfo(host, service, &hints, &found) != 0) return -1;
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval patience = {.tv_sec = 5};
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    }
    if (fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) != 0) {
        close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    return fd;
}

/* Whether replies and a bulk string behind them are all there; *text_out is the string. */
static bool
info_complete(struct wire *wire, struct bytes data, u32 replies, struct bytes *text_out)
{
    for (;;) {
        struct reply reply = {0};
        size_t consumed, wanted;
        status st = wire_reply(wire, data, &reply, &consumed, &wanted);
        if (!ok(st)) return !status_is(st, ST_INCOMPLETE);
        if (replies-- == 0) {
            if (reply.kind == REPLY_VALUE) *text_out = reply.value;
            return true;
        }
        data = BYTES(data.data + consumed, data.size - consumed);
    }
}

bool
server_info_read(const struct settings *settings, const char *host, u16 port,
                 struct server_info *out)
{
    *out = (struct server_info){0};
    int fd = machine_connect(host, port);
    if (fd < 0) return false;
    struct wire wire = {.protocol = PROTOCOL_RESP};
    u8 words[WIRE_HELLO_BYTES + 64];
    u32 replies;
    size_t size = wire_hello(&wire, settings, words, &replies);
    static const char info[] = "*1\r\n$4\r\nINFO\r\n";
    memcpy(words + size, info, sizeof(info) - 1);
    size += sizeof(info) - 1;
    u8 *data = malloc(INFO_BYTES_MAX + 1);
    size_t got = 0;
    struct bytes text = BYTES(NULL, 0);
    if (data != NULL && send(fd, words, size, MSG_NOSIGNAL) == (ssize_t)size) {
        while (got < INFO_BYTES_MAX) {
            ssize_t n = recv(fd, data + got, INFO_BYTES_MAX - got, 0);
            if (n <= 0) break;
            got += (size_t)n;
            if (info_complete(&wire, BYTES(data, got), replies, &text)) break;
        }
    }
    close(fd);
    if (text.data != NULL) {
        u8 *end = data + (text.data - data) + text.size;
        *end = '\0';
        server_info_parse((const char *)text.data, out);
    }
    free(data);
    bool local = strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
    if (!local) out->pid = 0;
    if (settings->server_pid > 0) out->pid = settings->server_pid;
    return true;
}
