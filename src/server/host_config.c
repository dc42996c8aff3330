/* SPDX-License-Identifier: MIT
 *
 * host_config.c -- see host_config.h.
 *
 * The order of reading is the order of weakness: defaults, file, variables, flags; each later
 * source overwrites. The name of the file itself comes from the flags or a variable, so those are
 * searched for it first.
 *
 * Files are read by inih. It cuts lines at INI_MAX_LINE bytes and would take the rest for another
 * line, so longer ones are refused before it sees them, as are sections and zero bytes. It also cuts
 * a value at a blank and ';', a password as well, and takes '#' for a part of it: a comment behind a
 * value is refused, so that nothing is guessed.
 */
#include "server/host_config.h"

#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- file ---- */

#define LINE_BYTES_MAX 190u /* inih's own buffer holds 200 */

struct file_context {
    struct server_config *config;
    const char *file_name;
    const char *cursor; /* inih does not tell the handler its line: it is found again here */
    u32 line;
    char *error;
    size_t error_size;
    bool failed;
};

/* The line of the next occurrence of name at a line's start: handler calls come in file order. */
static void
find_line(struct file_context *context, const char *name)
{
    size_t size = strlen(name);
    while (*context->cursor != '\0') {
        const char *line = context->cursor;
        const char *end = strchrnul(line, '\n');
        context->cursor = *end == '\0' ? end : end + 1;
        context->line++;
        if (context->line == 1 && strncmp(line, "\xEF\xBB\xBF", 3) == 0) line += 3;
        while (*line == ' ' || *line == '\t')
            line++;
        if (strncmp(line, name, size) == 0) return;
    }
}

static int
file_pair(void *user, const char *section, const char *name, const char *value)
{
    struct file_context *context = user;
    if (context->failed) return 0;
    find_line(context, name);
    char reason[OPTION_ERROR_BYTES] = "";
    const struct option *option = option_find(&config_table, name, strlen(name));
    if (option == NULL || (option->flags & OPTION_COMMAND) != 0 ||
        option->offset == offsetof(struct server_config, config_file)) {
        if (option == NULL) {
            option_unknown(&config_table, name, strlen(name), reason, sizeof(reason));
        } else {
            snprintf(reason, sizeof(reason), "'%s' belongs on the command line", option->name);
        }
    } else {
        size_t index = (size_t)(option - config_table.options);
        if (context->config->origins[index] == CONFIG_ORIGIN_FILE) {
            snprintf(reason, sizeof(reason), "'%s' was set in line %u already", option->name,
                     context->config->origin_lines[index]);
        } else if (ok(config_assign(context->config, option, value, CONFIG_ORIGIN_FILE,
                                    context->line, reason, sizeof(reason)))) {
            return 1;
        }
    }
    snprintf(context->error, context->error_size, "%s:%u: %s", context->file_name, context->line,
             reason);
    context->failed = true;
    return 0;
}

static bool
is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Whether a person may have meant a comment: '#' or ';' as the first character of a value, or behind
 * a blank. */
static bool
holds_comment(const char *value, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if ((value[i] == '#' || value[i] == ';') && (i == 0 || is_blank(value[i - 1]))) return true;
    return false;
}

/* Of a line that is no comment itself. */
static bool
line_holds_comment(const char *line, size_t size)
{
    size_t value = 0;
    while (value < size && line[value] != '=' && line[value] != ':')
        value++;
    if (value < size) value++;
    return holds_comment(line, value) || holds_comment(line + value, size - value);
}

/* What inih would pass over or misread. */
static status
check_lines(const char *file_name, const char *text, size_t size, char *error, size_t error_size)
{
    u32 number = 1;
    if (size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) { /* a mark of byte order */
        text += 3;
        size -= 3;
    }
    for (size_t at = 0; at < size; number++) {
        const char *line = text + at;
        const char *newline = memchr(line, '\n', size - at);
        size_t length = newline != NULL ? (size_t)(newline - line) : size - at;
        if (memchr(line, '\0', length) != NULL) {
            snprintf(error, error_size, "%s:%u: a zero byte: not a config file", file_name, number);
            return ST_INVALID;
        }
        if (length > LINE_BYTES_MAX) {
            snprintf(error, error_size, "%s:%u: longer than %u bytes", file_name, number,
                     LINE_BYTES_MAX);
            return ST_INVALID;
        }
        size_t blank = 0;
        while (blank < length && (line[blank] == ' ' || line[blank] == '\t'))
            blank++;
        bool comment = blank < length && (line[blank] == '#' || line[blank] == ';');
        if (!comment && line_holds_comment(line, length)) {
            snprintf(error, error_size,
                     "%s:%u: a comment has a line of its own; a value with '#' or ';' at its start "
                     "or behind a blank must be given as a flag or a variable",
                     file_name, number);
            return ST_INVALID;
        }
        if (blank < length && line[blank] == '[') {
            snprintf(error, error_size, "%s:%u: there are no sections", file_name, number);
            return ST_INVALID;
        }
        if (blank > 0 && blank < length && line[blank] != '#' && line[blank] != ';' &&
            line[blank] != '\r') {
            /* inih takes an indented line for a continuation of the value above. */
            snprintf(error, error_size, "%s:%u: a line must not begin with a space", file_name,
                     number);
            return ST_INVALID;
        }
        at += length + 1;
    }
    return ST_OK;
}

status
host_config_parse(struct server_config *config, const char *file_name, struct bytes text,
                  char *error, size_t error_size)
{
    status st = check_lines(file_name, (const char *)text.data, text.size, error, error_size);
    if (!ok(st)) return st;
    char *copy = malloc(text.size + 1);
    if (copy == NULL) {
        snprintf(error, error_size, "%s: no memory", file_name);
        return ST_NO_MEMORY;
    }
    if (text.size > 0) memcpy(copy, text.data, text.size);
    copy[text.size] = '\0';
    struct file_context context = {
        .config = config,
        .file_name = file_name,
        .cursor = copy,
        .error = error,
        .error_size = error_size,
    };
    int line = ini_parse_string(copy, file_pair, &context);
    free(copy);
    if (line == 0) return ST_OK;
    if (!context.failed) {
        snprintf(error, error_size, "%s:%d: not of the form 'name = value'", file_name,
                 line > 0 ? line : 0);
    }
    return ST_INVALID;
}

static status
read_file(struct server_config *config, const char *file_name, char *error, size_t error_size)
{
    status st = ST_INVALID;
    char *text = NULL;
    int fd = open(file_name, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        snprintf(error, error_size, "config file %s: %s", file_name, strerror(errno));
        return ST_INVALID;
    }
    text = malloc(HOST_CONFIG_FILE_BYTES + 1);
    if (text == NULL) {
        snprintf(error, error_size, "config file %s: no memory", file_name);
        goto out;
    }
    size_t size = 0;
    while (size <= HOST_CONFIG_FILE_BYTES) {
        ssize_t count = read(fd, text + size, HOST_CONFIG_FILE_BYTES + 1 - size);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) {
            snprintf(error, error_size, "config file %s: %s", file_name, strerror(errno));
            goto out;
        }
        if (count == 0) break;
        size += (size_t)count;
    }
    if (size > HOST_CONFIG_FILE_BYTES) {
        snprintf(error, error_size, "config file %s: larger than %u bytes", file_name,
                 HOST_CONFIG_FILE_BYTES);
        goto out;
    }
    st = host_config_parse(config, file_name, BYTES(text, size), error, error_size);
out:
    free(text);
    close(fd);
    return st;
}

/* ---- environment ---- */

/* Variables of the same prefix that belong to the other programs. */
static const char *const foreign_variables[] = {
    "SERVER", "CLIENT",   "HISTFILE", "JSON",     "BENCH",      "TEST",
    "BUILD",  "KEYSPACE", "USER",     "PASSWORD", "NO_ROUTING",
};

static bool
is_foreign(const char *name, size_t size)
{
    for (u32 i = 0; i < ARRAY_COUNT(foreign_variables); i++) {
        size_t prefix = strlen(foreign_variables[i]);
        if (size < prefix || memcmp(name, foreign_variables[i], prefix) != 0) continue;
        if (size == prefix || name[prefix] == '_') return true;
    }
    return false;
}

status
host_config_environment(struct server_config *config, const char *const *environment, char *error,
                        size_t error_size)
{
    size_t prefix = strlen(config_table.variable_prefix);
    for (; *environment != NULL; environment++) {
        const char *entry = *environment;
        if (strncmp(entry, config_table.variable_prefix, prefix) != 0) continue;
        const char *equals = strchr(entry, '=');
        if (equals == NULL) continue;
        const char *name = entry + prefix;
        size_t size = (size_t)(equals - name);
        char reason[OPTION_ERROR_BYTES];
        const struct option *option = option_find(&config_table, name, size);
        /* An option first: client-output-limit begins as the client's variables do. */
        if (option == NULL && is_foreign(name, size)) continue;
        if (option == NULL || (option->flags & OPTION_COMMAND) != 0) {
            option_unknown(&config_table, name, size, reason, sizeof(reason));
            snprintf(error, error_size, "variable %.*s: %s", (int)MIN(equals - entry, 80), entry,
                     reason);
            return ST_INVALID;
        }
        status st = config_assign(config, option, equals + 1, CONFIG_ORIGIN_VARIABLE, 0, reason,
                                  sizeof(reason));
        if (!ok(st)) {
            snprintf(error, error_size, "variable %.*s: %s", (int)(equals - entry), entry, reason);
            return st;
        }
    }
    return ST_OK;
}

/* ---- flags ---- */

status
host_config_flags(struct server_config *config, int argc, const char *const *argv, char *error,
                  size_t error_size)
{
    int index = 1;
    while (index < argc) {
        const struct option *option;
        const char *value;
        status st =
            option_next_flag(&config_table, argc, argv, &index, &option, &value, error, error_size);
        if (status_is(st, ST_END)) {
            if (index < argc) {
                snprintf(error, error_size, "unexpected argument '%.64s'", argv[index]);
                return ST_INVALID;
            }
            return ST_OK;
        }
        if (!ok(st)) return st;
        st = config_assign(config, option, value, CONFIG_ORIGIN_FLAG, 0, error, error_size);
        if (!ok(st)) return st;
    }
    return ST_OK;
}

/* ---- the machine ---- */

static u32
machine_cores(u32 *out, u32 capacity)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    u32 count = 0;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        for (u32 core = 0; core < CPU_SETSIZE && count < capacity; core++) {
            if (CPU_ISSET(core, &set)) out[count++] = core;
        }
    }
    if (count == 0) out[count++] = 0;
    return count;
}

/* The number in a file, UINT64_MAX for "max" or when there is none. */
static u64
limit_in_file(const char *path)
{
    char text[64] = "";
    FILE *file = fopen(path, "re");
    if (file == NULL) return UINT64_MAX;
    bool read = fgets(text, sizeof(text), file) != NULL;
    fclose(file);
    text[strcspn(text, "\n")] = '\0';
    u64 value;
    return read && option_parse_number(text, &value) ? value : UINT64_MAX;
}

/* The least memory.max of this process's control group and its parents (cgroup v2), or the v1
 * limit as a container sees it. */
static u64
control_group_memory(void)
{
    u64 least = limit_in_file("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file == NULL) return least;
    char line[1024];
    while (fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, "0::", 3) != 0) continue;
        char *path = line + 3;
        path[strcspn(path, "\n")] = '\0';
        for (;;) {
            char name[sizeof(line) + 64];
            snprintf(name, sizeof(name), "/sys/fs/cgroup%s/memory.max", path);
            least = MIN(least, limit_in_file(name));
            char *slash = strrchr(path, '/');
            if (slash == NULL) break;
            *slash = '\0';
        }
    }
    fclose(file);
    return least;
}

static u64
machine_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    u64 bytes = pages > 0 && page > 0 ? (u64)pages * (u64)page : GIB(1);
    return MIN(bytes, control_group_memory());
}

void
host_config_machine(struct host_machine *machine)
{
    machine->core_count = machine_cores(machine->cores, LIMIT_SHARDS);
    machine->memory_bytes = machine_memory();
}

static void
mark_derived(struct server_config *config, size_t offset)
{
    for (u32 i = 0; i < config_table.count; i++) {
        if (config_table.options[i].offset == offset) config->origins[i] = CONFIG_ORIGIN_DERIVED;
    }
}

static void
derive_cores(struct server_config *config, const struct host_machine *machine)
{
    u32 count = machine->core_count;
    if (config->memory_bytes == 0) {
        u64 enough = MAX(machine->memory_bytes / 2 / CONFIG_MEMORY_MIN, 1u);
        count = (u32)MIN(count, enough);
    }
    memcpy(config->core_list, machine->cores, count * sizeof(config->core_list[0]));
    config->core_count = count;
    config->cores_left = machine->core_count - count;
    size_t used = 0;
    for (u32 i = 0; i < count; i++) {
        used += (size_t)snprintf(config->cores + used, sizeof(config->cores) - used, "%s%u",
                                 i == 0 ? "" : ",", machine->cores[i]);
    }
    mark_derived(config, offsetof(struct server_config, cores));
}

static status
derive_memory(struct server_config *config, const struct host_machine *machine, char *error,
              size_t error_size)
{
    u64 bytes = MIN(machine->memory_bytes / 2, GIB(1));
    bytes = align_down(MAX(bytes, CONFIG_MEMORY_MIN * config->core_count), MIB(1));
    if (bytes > machine->memory_bytes) {
        char need[32], has[32];
        option_format_bytes(bytes, need, sizeof(need));
        option_format_bytes(align_down(machine->memory_bytes, MIB(1)), has, sizeof(has));
        snprintf(error, error_size, "cores: %u cores need %s, and this process may use %s",
                 config->core_count, need, has);
        return ST_INVALID;
    }
    config->memory_bytes = bytes;
    mark_derived(config, offsetof(struct server_config, memory_bytes));
    return ST_OK;
}

status
host_config_derive(struct server_config *config, const struct host_machine *machine, char *error,
                   size_t error_size)
{
    if (config->cores[0] == '\0') {
        derive_cores(config, machine);
    } else if (!config_parse_cores(config->cores, config->core_list, LIMIT_SHARDS,
                                   &config->core_count)) {
        snprintf(error, error_size, "cores: '%.48s' is not a list of cores", config->cores);
        return ST_INVALID;
    }
    if (config->memory_bytes != 0) return ST_OK;
    return derive_memory(config, machine, error, error_size);
}

static status
check_affinity(const struct server_config *config, char *error, size_t error_size)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return ST_OK;
    for (u32 i = 0; i < config->core_count; i++) {
        if (config->core_list[i] < CPU_SETSIZE && CPU_ISSET(config->core_list[i], &set)) continue;
        snprintf(error, error_size, "cores: this process may not use core %u (it may use %u cores)",
                 config->core_list[i], (u32)CPU_COUNT(&set));
        return ST_INVALID;
    }
    return ST_OK;
}

static void
derive_admin_address(struct server_config *config)
{
    if (config->admin_address[0] != '\0') return;
    if (config->admin_endpoint.port == 0) {
        memcpy(config->admin_address, "off", sizeof("off"));
    } else {
        snprintf(config->admin_address, sizeof(config->admin_address), "%s:%u",
                 config->admin_endpoint.host, config->admin_endpoint.port);
    }
    mark_derived(config, offsetof(struct server_config, admin_address));
}

static void
derive_peer_address(struct server_config *config)
{
    if (!config->clustered || config->peer_address[0] != '\0') return;
    bool v6 = strchr(config->peer_endpoint.host, ':') != NULL;
    snprintf(config->peer_address, sizeof(config->peer_address), "%s%s%s:%u", v6 ? "[" : "",
             config->peer_endpoint.host, v6 ? "]" : "", config->peer_endpoint.port);
    mark_derived(config, offsetof(struct server_config, peer_address));
}

/* Its first line, without blanks around it. */
static status
read_secret(struct server_config *config, char *error, size_t error_size)
{
    if (config->cluster_secret_file[0] == '\0') return ST_OK;
    FILE *file = fopen(config->cluster_secret_file, "re");
    char line[OPTION_TEXT_BYTES] = "";
    bool read = file != NULL && fgets(line, sizeof(line), file) != NULL;
    if (file != NULL) fclose(file);
    size_t size = strcspn(line, "\r\n");
    while (size > 0 && line[size - 1] == ' ')
        size--;
    line[size] = '\0';
    if (!read || size < CONFIG_SECRET_BYTES_MIN) {
        snprintf(error, error_size,
                 read ? "cluster-secret-file: the secret in '%.128s' is shorter than 16 characters"
                      : "cluster-secret-file: cannot read '%.128s'",
                 config->cluster_secret_file);
        return ST_INVALID;
    }
    memcpy(config->cluster_secret, line, size + 1);
    return ST_OK;
}

status
host_config_load(struct server_config *config, int argc, const char *const *argv,
                 const char *const *environment, char *error, size_t error_size)
{
    /* First for the name of the file alone; what is wrong with the rest shows below as well. */
    config_init(config);
    status st = host_config_environment(config, environment, error, error_size);
    if (!ok(st)) return st;
    st = host_config_flags(config, argc, argv, error, error_size);
    if (!ok(st)) return st;
    if (config->help || config->version || config->help_markdown || config->help_man) return ST_OK;

    char file_name[OPTION_TEXT_BYTES];
    memcpy(file_name, config->config_file, sizeof(file_name));
    if (file_name[0] != '\0') {
        config_init(config);
        st = read_file(config, file_name, error, error_size);
        if (!ok(st)) return st;
        st = host_config_environment(config, environment, error, error_size);
        if (!ok(st)) return st;
        st = host_config_flags(config, argc, argv, error, error_size);
        if (!ok(st)) return st;
    }
    struct host_machine machine;
    host_config_machine(&machine);
    st = host_config_derive(config, &machine, error, error_size);
    if (!ok(st)) return st;
    st = check_affinity(config, error, error_size);
    if (!ok(st)) return st;
    st = config_resolve(config, error, error_size);
    if (!ok(st)) return st;
    derive_admin_address(config);
    derive_peer_address(config);
    return read_secret(config, error, error_size);
}

/* ---- printing ---- */

void
host_config_print(const struct server_config *config)
{
    static const char *const origins[] = {"default", "", "variable", "flag", "this machine"};
    for (u32 i = 0; i < config_table.count; i++) {
        const struct option *option = &config_table.options[i];
        if ((option->flags & OPTION_COMMAND) != 0) continue;
        char value[OPTION_TEXT_BYTES];
        option_get(option, config, value, sizeof(value));
        if ((option->flags & OPTION_SECRET) != 0 && value[0] != '\0')
            snprintf(value, sizeof(value), "(not shown)");
        if (config->origins[i] == CONFIG_ORIGIN_FILE) {
            printf("# %s:%u\n", config->config_file, config->origin_lines[i]);
        } else {
            printf("# %s\n", origins[config->origins[i]]);
        }
        /* A line of a config file cannot say "empty", nor what looks like a comment, nor name the
         * file itself: comments. */
        bool comment = value[0] == '\0' || holds_comment(value, strlen(value)) ||
                       (option->flags & OPTION_SECRET) != 0 ||
                       option->offset == offsetof(struct server_config, config_file);
        printf("%s%s = %s\n", comment ? "# " : "", option->name, value);
    }
}
