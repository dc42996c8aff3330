/* SPDX-License-Identifier: MIT
 *
 * host_banner.c -- see host_banner.h. The client is called by its name where the shell finds it
 * by that, and else (make run starts a build that is not installed) by the path of the one beside
 * this program, absolute: the other terminal stands in another directory. An installed server has
 * none beside it (sbin).
 */
#include "server/host_banner.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLIENT_NAME "distkv-client"
/* Quoted, a byte takes at most four. */
#define CLIENT_COMMAND_BYTES (4 * PATH_MAX + 3)

/* The client in the directory of this program, if one is there. */
static bool
client_beside(char *path, size_t size, struct stat *out)
{
    ssize_t end = readlink("/proc/self/exe", path, size - 1);
    if (end < 0) return false;
    path[end] = '\0';
    char *name = strrchr(path, '/');
    if (name == NULL || (size_t)(name + 1 - path) + sizeof(CLIENT_NAME) > size) return false;
    memcpy(name + 1, CLIENT_NAME, sizeof(CLIENT_NAME));
    return stat(path, out) == 0 && S_ISREG(out->st_mode) && access(path, X_OK) == 0;
}

/* Whether a shell takes the name alone for this very file, and not for an older one, say. What PATH
 * names relative to a directory does not count. */
static bool
client_is_found_by_name(const struct stat *client)
{
    const char *next = getenv("PATH");
    while (next != NULL && *next != '\0') {
        int length = (int)strcspn(next, ":");
        char path[PATH_MAX];
        int end = snprintf(path, sizeof(path), "%.*s/" CLIENT_NAME, length, next);
        struct stat found;
        if (*next == '/' && end < (int)sizeof(path) && stat(path, &found) == 0 &&
            S_ISREG(found.st_mode) && access(path, X_OK) == 0) {
            return found.st_dev == client->st_dev && found.st_ino == client->st_ino;
        }
        next += length + (next[length] == ':');
    }
    return false;
}

/* One word of a shell. */
static void
quote(const char *text, char *out)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "/._-+,:@%";
    if (text[strspn(text, plain)] == '\0') {
        memcpy(out, text, strlen(text) + 1);
        return;
    }
    *out++ = '\'';
    for (; *text != '\0'; text++) {
        *out++ = *text;
        if (*text == '\'') {
            memcpy(out - 1, "'\\''", 4);
            out += 3;
        }
    }
    *out++ = '\'';
    *out = '\0';
}

static void
client_command(char out[CLIENT_COMMAND_BYTES])
{
    char path[PATH_MAX];
    struct stat client;
    bool by_path = client_beside(path, sizeof(path), &client) && !client_is_found_by_name(&client);
    quote(by_path ? path : CLIENT_NAME, out);
}

void
host_banner_print(const struct host_banner *banner)
{
    if (!isatty(STDERR_FILENO)) return;
    const struct server_config *config = banner->config;
    const char *name = config->endpoint.host;
    bool usual = strcmp(name, "127.0.0.1") == 0 || strcmp(name, "0.0.0.0") == 0;
    char client[CLIENT_COMMAND_BYTES];
    client_command(client);
    fprintf(stderr,
            "\n"
            "  DistKV %s   node %s\n"
            "  clients    %s   (Redis protocol and native)\n"
            "  admin      %s%s\n"
            "  data       %s\n"
            "  shards     %u on cores %s, memory %s\n"
            "  ready in %llu ms\n"
            "\n"
            "  Try:  redis-cli %s%s%s-p %u set hello world\n"
            "        %s --server %s\n"
            "  Stop with Ctrl-C.\n\n",
            DISTKV_VERSION, banner->node_id, banner->address,
            strcmp(config->admin_address, "off") == 0 ? "" : "http://", config->admin_address,
            config->data_dir, config->core_count, config->cores, banner->memory,
            (unsigned long long)banner->ready_ms, usual ? "" : "-h ", usual ? "" : name,
            usual ? "" : " ", banner->port, client, banner->address);
}
