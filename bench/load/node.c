/* SPDX-License-Identifier: MIT
 *
 * node.c -- see node.h. A child has a process group of its own, so that Ctrl+C reaches it through
 * this program only, and the kernel ends it when this program dies. A node gets a free port, a
 * directory made in the working directory, and none of the DISTKV_ variables; the responder tells
 * its port through a pipe.
 */
#include "load/node.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "load/machine.h"
#include "load/responder.h"

#define READY_NS (60 * NS_PER_S)
#define STOP_NS  (20 * NS_PER_S)
#define LOOK_NS  (10 * NS_PER_MS)

static void
pause_ns(u64 ns)
{
    nanosleep(&(struct timespec){.tv_nsec = (long)ns}, NULL);
}

/* In the child, before anything else: signals of the terminal are for the parent, whose end is also
 * the child's. */
static void
child_begin(pid_t parent)
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
}

/* ---- the node ---- */

static bool
server_path(char *out, size_t size)
{
    static const char *const places[] = {"distkv-server", "../sbin/distkv-server"};
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (length <= 0) return false;
    self[length] = '\0';
    char *slash = strrchr(self, '/');
    if (slash == NULL) return false;
    slash[1] = '\0';
    for (u32 i = 0; i < ARRAY_COUNT(places); i++) {
        int used = snprintf(out, size, "%s%s", self, places[i]);
        if (used > 0 && (size_t)used < size && access(out, X_OK) == 0) return true;
    }
    return false;
}

/* Nothing holds it until the server takes it. */
static u16
free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return 0;
    bool done = bind(fd, (struct sockaddr *)&address, size) == 0 &&
                getsockname(fd, (struct sockaddr *)&address, &size) == 0;
    close(fd);
    return done ? ntohs(address.sin_port) : 0;
}

NORETURN static void
node_exec(const struct child *child, const char *path, const char *cores)
{
    char address[32], data[600], log[600];
    snprintf(address, sizeof(address), "127.0.0.1:%u", child->port);
    snprintf(data, sizeof(data), "%s/data", child->directory);
    snprintf(log, sizeof(log), "%s/log", child->directory);
    int log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600),
        null_fd = open("/dev/null", O_RDWR);
    dup2(null_fd, 0);
    dup2(log_fd, 1);
    dup2(log_fd, 2);
    const char *words[16] = {path,  "--address",  address, "--admin-address",
                             "off", "--data-dir", data};
    if (cores[0] != '\0') {
        words[7] = "--cores";
        words[8] = cores;
    }
    /* Its options are ours to choose: no variable of the environment changes them. */
    extern char **environ;
    char **kept = environ;
    for (char **variable = environ; *variable != NULL; variable++)
        if (strncmp(*variable, "DISTKV_", 7) != 0) *kept++ = *variable;
    *kept = NULL;
    execv(path, (char *const *)(uintptr_t)words);
    _exit(127);
}

static bool
node_ready(struct child *child, const _Atomic bool *interrupted, char *error, size_t error_size)
{
    struct settings settings;
    settings_defaults(&settings);
    u64 end_ns = clock_now_ns() + READY_NS;
    for (;;) {
        struct server_info info;
        if (server_info_read(&settings, "127.0.0.1", child->port, &info) &&
            strcmp(info.name, "distkv") == 0)
            return true;
        if (waitpid(child->pid, NULL, WNOHANG) == child->pid) {
            child->pid = 0;
            snprintf(error, error_size, "distkv-server ended at once");
            return false;
        }
        if (atomic_load(interrupted) || clock_now_ns() > end_ns) {
            snprintf(error, error_size, "distkv-server was not ready in time");
            return false;
        }
        pause_ns(LOOK_NS);
    }
}

static void
show_log(const struct child *child)
{
    char path[600], line[512];
    snprintf(path, sizeof(path), "%s/log", child->directory);
    FILE *file = fopen(path, "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        fprintf(stderr, "distkv-server: %s", line);
    if (file != NULL) fclose(file);
}

bool
node_start(struct child *child, const char *cores, const _Atomic bool *interrupted, char *error,
           size_t error_size)
{
    *child = (struct child){.port = free_port()};
    char path[PATH_MAX];
    if (!server_path(path, sizeof(path))) {
        snprintf(error, error_size, "there is no distkv-server beside this program");
        return false;
    }
    char directory[] = "distkv-bench-XXXXXX";
    if (child->port == 0 || mkdtemp(directory) == NULL ||
        realpath(directory, child->directory) == NULL) {
        snprintf(error, error_size, "no temporary directory can be made here: %s", strerror(errno));
        return false;
    }
    pid_t parent = getpid();
    child->pid = fork();
    if (child->pid == 0) {
        child_begin(parent);
        node_exec(child, path, cores);
    }
    if (child->pid > 0) {
        if (node_ready(child, interrupted, error, error_size)) return true;
        show_log(child);
    } else {
        child->pid = 0;
        snprintf(error, error_size, "no process can be started: %s", strerror(errno));
    }
    child_stop(child);
    return false;
}

/* ---- the responder ---- */

static void
tell_port(u16 port, void *arg)
{
    int fd = *(int *)arg;
    if (write(fd, &port, sizeof(port)) != sizeof(port)) _exit(1);
    close(fd);
}

bool
responder_start(struct child *child, bool pinned, u32 core, char *error, size_t error_size)
{
    *child = (struct child){0};
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) {
        snprintf(error, error_size, "no pipe: %s", strerror(errno));
        return false;
    }
    pid_t parent = getpid();
    child->pid = fork();
    if (child->pid == 0) {
        child_begin(parent);
        close(fds[0]);
        struct responder_config config = {
            .pinned = pinned, .core = core, .reply_bytes = 100, .spin_us = 20};
        status st = responder_run(&config, tell_port, &fds[1]);
        _exit(ok(st) ? 0 : 1);
    }
    close(fds[1]);
    bool done = child->pid > 0 &&
                read(fds[0], &child->port, sizeof(child->port)) == (ssize_t)sizeof(child->port);
    close(fds[0]);
    if (done) return true;
    snprintf(error, error_size, "the responder could not be started");
    if (child->pid < 0) child->pid = 0;
    child_stop(child);
    return false;
}

/* ---- the end ---- */

void
child_stop(struct child *child)
{
    if (child->pid > 0) {
        u64 end_ns = clock_now_ns() + STOP_NS;
        kill(child->pid, SIGTERM);
        while (waitpid(child->pid, NULL, WNOHANG) == 0) {
            if (clock_now_ns() > end_ns) {
                kill(child->pid, SIGKILL);
                waitpid(child->pid, NULL, 0);
                break;
            }
            pause_ns(LOOK_NS);
        }
    }
    if (child->directory[0] != '\0') remove_tree(child->directory);
    *child = (struct child){0};
}
