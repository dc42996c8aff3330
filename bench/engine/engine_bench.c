/* SPDX-License-Identifier: MIT
 *
 * engine_bench.c -- question: what does the storage engine itself do on one core, beside RocksDB in
 * the same process shape, with the same data, memory, durability and number of requests in flight?
 *
 *     engine_bench [--engine distkv|rocksdb|both] [--phases LIST] [--keys N] [--value-size N] ...
 *
 * Each engine runs in a process of its own that is bound, with all its threads, to one core: what
 * its background work takes is taken from its foreground, and is counted. The phases follow each
 * other on one set of data:
 *
 *     fillseq     all keys once, in the order of their names
 *     fillrandom  all keys once, in random order
 *     overwrite   keys drawn uniformly, --overwrite times as many as there are
 *     settle      waits until nothing is left to flush or merge; amplification since the last fill
 *     hotget      gets of --hot-keys keys that lie in memory
 *     coldget     gets of all keys, drawn uniformly
 *     miss        gets of keys that are not there, between those that are
 *     scan        all keys and values once
 *     mixed       gets and puts half and half, keys drawn uniformly
 *
 * A latency is taken from one operation's start to the moment the worker is ready for its next, so
 * it holds the wait for the core behind other fibers, as a thread's does when it loses the core
 * meanwhile.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/option.h"
#include "base/prng.h"

#include "engine.h"
#include "load/machine.h"

#define KEY_BYTES      16u
#define WORKERS_MAX    256u
#define VALUE_MAX      MIB(1)
#define POOL_BYTES     MIB(4)
#define SETTLE_S       900u
#define SETTLE_POLL_MS 200u

struct options {
    u64 engine, format, codec;
    char dir[512], phases[512], output[512];
    u64 keys, value_bytes, memory_bytes, hot_keys, overwrite, workers, core, seconds, seed;
    u64 log, buffered, dynamic_levels, keep, compressible;
};

enum { ENGINE_BOTH, ENGINE_DISTKV, ENGINE_ROCKSDB };
static const char *const engine_names[] = {"both", "distkv", "rocksdb", NULL};
static const char *const format_names[] = {"text", "json", NULL};
static const char *const codec_names[] = {"none", "lz4", NULL};

#define AT(field)   .offset = offsetof(struct options, field)
#define TEXT(field) AT(field), .size = sizeof(((struct options *)0)->field)

static const struct option option_list[] = {
    {.name = "engine",
     .kind = OPTION_CHOICE,
     .choices = engine_names,
     AT(engine),
     .fallback = "both",
     .value_name = "NAME",
     .section = "What",
     .help = "The engines to run, one after the other."},
    {.name = "phases",
     .kind = OPTION_STRING,
     TEXT(phases),
     .fallback = "fillrandom,settle,overwrite,settle,hotget,coldget,miss,scan,mixed",
     .value_name = "LIST",
     .help = "What to do, in this order; see the head of engine_bench.c."},
    {.name = "keys",
     .kind = OPTION_NUMBER,
     AT(keys),
     .min = 1,
     .max = 1ull << 40,
     .fallback = "1000000",
     .value_name = "N",
     .help = "How many keys there are."},
    {.name = "value-size",
     .kind = OPTION_BYTES,
     AT(value_bytes),
     .min = 8,
     .max = VALUE_MAX,
     .fallback = "100",
     .value_name = "BYTES",
     .help = "Bytes of each value."},
    {.name = "compressible",
     .kind = OPTION_NUMBER,
     AT(compressible),
     .max = 100,
     .fallback = "0",
     .value_name = "PERCENT",
     .help = "How much of each value is zeros."},
    {.name = "hot-keys",
     .kind = OPTION_NUMBER,
     AT(hot_keys),
     .min = 1,
     .max = 1ull << 40,
     .fallback = "100000",
     .value_name = "N",
     .help = "How many keys hotget asks for."},
    {.name = "overwrite",
     .kind = OPTION_NUMBER,
     AT(overwrite),
     .max = 1000,
     .fallback = "1",
     .value_name = "TIMES",
     .help = "How often overwrite writes the whole of the data."},
    {.name = "seconds",
     .kind = OPTION_NUMBER,
     AT(seconds),
     .min = 1,
     .max = 86400,
     .fallback = "10",
     .value_name = "S",
     .help = "Length of hotget, coldget, miss and mixed."},
    {.name = "seed",
     .kind = OPTION_NUMBER,
     AT(seed),
     .max = UINT64_MAX,
     .fallback = "1",
     .value_name = "N",
     .help = "Of all random choices."},
    {.name = "memory",
     .kind = OPTION_BYTES,
     AT(memory_bytes),
     .min = MIB(16),
     .max = GIB(1024),
     .fallback = "256MiB",
     .value_name = "BYTES",
     .section = "How",
     .help = "Memtables and caches together."},
    {.name = "workers",
     .kind = OPTION_NUMBER,
     AT(workers),
     .min = 1,
     .max = WORKERS_MAX,
     .fallback = "32",
     .value_name = "N",
     .help = "Fibers, or threads, that do operations at the same time."},
    {.name = "core",
     .kind = OPTION_NUMBER,
     AT(core),
     .max = CPU_SETSIZE - 1,
     .fallback = "0",
     .value_name = "N",
     .help = "The core for everything."},
    {.name = "codec",
     .kind = OPTION_CHOICE,
     .choices = codec_names,
     AT(codec),
     .fallback = "none",
     .value_name = "NAME",
     .help = "Compression of all tables."},
    {.name = "log",
     .kind = OPTION_BOOL,
     AT(log),
     .fallback = "yes",
     .help = "Writes go to a log, which is not synced for each."},
    {.name = "buffered",
     .kind = OPTION_BOOL,
     AT(buffered),
     .fallback = "no",
     .help = "RocksDB reads and writes through the page cache, on top of its memory."},
    {.name = "dynamic-levels",
     .kind = OPTION_BOOL,
     AT(dynamic_levels),
     .fallback = "no",
     .help = "RocksDB's level_compaction_dynamic_level_bytes: its default is no before 8.4."},
    {.name = "dir",
     .kind = OPTION_STRING,
     TEXT(dir),
     .fallback = "engine_bench.data",
     .value_name = "DIR",
     .section = "Where",
     .help = "A directory for the data, on the disk to measure. Each engine has one below."},
    {.name = "keep",
     .kind = OPTION_BOOL,
     AT(keep),
     .fallback = "no",
     .help = "Leave the data there, and begin with what is there."},
    {.name = "format",
     .kind = OPTION_CHOICE,
     .choices = format_names,
     AT(format),
     .fallback = "text",
     .value_name = "NAME",
     .help = "text or json (a line a phase)."},
    {.name = "help", .kind = OPTION_BOOL, .flags = OPTION_COMMAND, .help = "This text."},
};

static const struct option_table table = {
    .options = option_list,
    .count = ARRAY_COUNT(option_list),
    .program = "engine_bench",
    .summary = "The storage engine on one core, beside RocksDB.",
    .usage = "[--name value]...",
    .variable_prefix = "ENGINE_BENCH_",
    .epilogue = "Exit status: 0, 1 when something failed, 2 for wrong options.\n",
};

static struct options opt;
static const struct engine *engine;
static struct engine_config config;
static u8 *pool; /* random bytes that values are cut from */

_Noreturn void
die(const char *what, const char *why)
{
    fprintf(stderr, "engine_bench: %s: %s: %s\n", engine != NULL ? engine->name : "start", what,
            why);
    exit(1);
}

/* ---- keys and values ---- */

/* A bijection on [0, count): a Feistel network over the next even power of two, walked until it
 * falls into the range (Black and Rogaway's cycle walking). */
static u64
shuffled(u64 index, u64 count)
{
    u32 half_bits = 1;
    while ((1ull << (2 * half_bits)) < count)
        half_bits++;
    u64 mask = (1ull << half_bits) - 1;
    do {
        u64 left = index >> half_bits, right = index & mask;
        for (u64 round = 0; round < 4; round++) {
            u64 state = right ^ (opt.seed << 32) ^ (round << 56);
            u64 next = left ^ (splitmix64(&state) & mask);
            left = right;
            right = next;
        }
        index = left << half_bits | right;
    } while (index >= count);
    return index;
}

/* "user" and twelve digits. Keys that are there have even numbers; a miss asks for odd ones. */
static void
make_key(u8 *key, u64 number)
{
    memcpy(key, "user", 4);
    for (u32 i = KEY_BYTES; i-- > 4; number /= 10)
        key[i] = (u8)('0' + number % 10);
}

/* Where the bytes of the key's value come from in the pool; its first eight name the key. */
static const u8 *
value_bytes_of(u64 number, u64 stamp)
{
    u64 state = number * 0x9e3779b97f4a7c15ull + stamp;
    return pool + splitmix64(&state) % (POOL_BYTES - opt.value_bytes);
}

static void
make_value(u8 *value, u64 number, u64 stamp)
{
    u64 random_bytes = opt.value_bytes * (100 - opt.compressible) / 100;
    memcpy(value, value_bytes_of(number, stamp), MAX(random_bytes, 8u));
    memcpy(value, &number, 8);
}

/* ---- one phase ---- */

struct phase {
    const char *name;
    bool gets;       /* else puts */
    bool mixed;      /* half of them gets */
    bool in_order;   /* count operations, the i-th on key i */
    bool shuffle;    /* on a random key each, but on each once */
    bool miss;       /* keys that are not there */
    u64 range;       /* keys drawn from the first so many of the shuffled order; 0: all */
    u64 count;       /* 0: by time */
    u64 sample_mask; /* 0: each operation is timed; 15: one of 16 */
};

struct worker {
    struct prng prng;
    struct histogram gets, puts;
    u64 operations, found, user_bytes;
    u8 *value;
};

static struct worker *all_workers;
static const struct phase *phase;
static u64 phase_end_ns;

static void
do_operation(struct worker *w, u64 at)
{
    u64 index;
    if (phase->in_order)
        index = phase->shuffle ? shuffled(at, opt.keys) : at;
    else if (phase->range != 0)
        index = shuffled(prng_below(&w->prng, phase->range), opt.keys);
    else
        index = prng_below(&w->prng, opt.keys);
    u64 number = index * 2 + phase->miss;
    bool put = !phase->gets && !(phase->mixed && (prng_u64(&w->prng) >> 63) != 0);
    u8 key[KEY_BYTES];
    make_key(key, number);
    if (put) make_value(w->value, number, prng_u64(&w->prng));
    bool timed = (prng_u64(&w->prng) >> 32 & phase->sample_mask) == 0;
    u64 begun_ns = timed ? clock_now_ns() : 0;
    if (put) {
        engine->put(key, KEY_BYTES, w->value, (u32)opt.value_bytes);
        w->user_bytes += KEY_BYTES + opt.value_bytes;
    } else {
        u32 size = 0;
        bool found = engine->get(key, KEY_BYTES, w->value, (u32)opt.value_bytes, &size);
        if (found && (size != opt.value_bytes || memcmp(w->value, &number, 8) != 0))
            die("get", "the value is not the key's");
        w->found += found;
    }
    engine->turn();
    if (timed) histogram_record(put ? &w->puts : &w->gets, clock_now_ns() - begun_ns);
    w->operations++;
}

static void
work(void *arg, u32 index)
{
    (void)arg;
    struct worker *w = &all_workers[index];
    for (u64 at = index, n = 0; phase->count == 0 || at < phase->count; at += opt.workers, n++) {
        if (phase->count == 0 && n % 64 == 0 && clock_now_ns() >= phase_end_ns) break;
        do_operation(w, at);
    }
}

/* ---- figures ---- */

struct usage {
    u64 clock_ns, cpu_ns, read_bytes, written_bytes, reads;
};

static u64
proc_number(const char *path, const char *name)
{
    char text[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0) close(fd);
    text[MAX(n, 0)] = 0;
    const char *at = strstr(text, name);
    return at != NULL ? strtoull(at + strlen(name), NULL, 10) : 0;
}

static void
usage_get(struct usage *out)
{
    struct engine_figures figures = {0};
    engine->figures(&figures);
    *out = (struct usage){
        .clock_ns = clock_now_ns(),
        .cpu_ns = own_cpu_ns(),
        .read_bytes = proc_number("/proc/self/io", "read_bytes:"),
        .written_bytes = proc_number("/proc/self/io", "\nwrite_bytes:"),
        /* Where the engine does not count, each get's read is one system call. */
        .reads = figures.reads != 0 ? figures.reads : proc_number("/proc/self/io", "syscr:"),
    };
}

static u64
dir_bytes(const char *dir)
{
    DIR *d = opendir(dir);
    if (d == NULL) return 0;
    u64 bytes = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[1024];
        struct stat st;
        snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
        if (lstat(path, &st) != 0) continue;
        if (S_ISREG(st.st_mode)) bytes += (u64)st.st_blocks * 512;
        if (S_ISDIR(st.st_mode) && e->d_name[0] != '.') bytes += dir_bytes(path);
    }
    closedir(d);
    return bytes;
}

static double
us(const struct histogram *h, u32 parts_per_million)
{
    return (double)histogram_percentile(h, parts_per_million) / 1e3;
}

static void
print_latencies(const char *what, const struct histogram *h)
{
    if (h->count == 0) return;
    if (opt.format == 1)
        printf(", \"%s_us\": {\"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, \"p99.9\": %.2f, "
               "\"p99.99\": %.2f, \"max\": %.2f}",
               what, us(h, 500000), us(h, 900000), us(h, 990000), us(h, 999000), us(h, 999900),
               (double)h->max / 1e3);
    else
        printf("    %s us: p50 %.2f  p90 %.2f  p99 %.2f  p99.9 %.2f  p99.99 %.2f  max %.2f\n", what,
               us(h, 500000), us(h, 900000), us(h, 990000), us(h, 999000), us(h, 999900),
               (double)h->max / 1e3);
}

static u64 user_bytes_since_fill;
static u64 written_at_fill;

static void
report(const char *name, u64 operations, u64 found, u64 scanned_bytes, const struct usage *before,
       const struct histogram *gets, const struct histogram *puts)
{
    struct usage after;
    usage_get(&after);
    struct engine_figures f = {0};
    engine->figures(&f);
    double s = (double)(after.clock_ns - before->clock_ns) / 1e9;
    double cpu_s = (double)(after.cpu_ns - before->cpu_ns) / 1e9;
    double rate = (double)operations / s;
    double reads = (double)(after.reads - before->reads) / (double)MAX(operations, 1u);
    double live = (double)opt.keys * (double)(KEY_BYTES + opt.value_bytes);
    double space = (double)dir_bytes(config.dir) / live;
    double amplification =
        user_bytes_since_fill == 0
            ? 0
            : (double)(after.written_bytes - written_at_fill) / (double)user_bytes_since_fill;
    u64 rss = proc_number("/proc/self/status", "VmRSS:") / 1024;
    u64 rss_max = proc_number("/proc/self/status", "VmHWM:") / 1024;
    double scan_mb_s = (double)scanned_bytes / 1e6 / s;
    double read_mb = (double)(after.read_bytes - before->read_bytes) / 1e6;
    double written_mb = (double)(after.written_bytes - before->written_bytes) / 1e6;
    double cpu_us = cpu_s * 1e6 / (double)MAX(operations, 1u);
    if (opt.format == 1) {
        printf("{\"engine\": \"%s\", \"version\": \"%s\", \"phase\": \"%s\", \"operations\": %llu, "
               "\"found\": %llu, \"seconds\": %.3f, \"cpu_s\": %.3f, \"rate\": %.0f, "
               "\"cpu_us_per_op\": %.3f, \"reads_per_op\": %.4f, \"read_mb\": %.1f, "
               "\"written_mb\": %.1f, \"scan_mb_s\": %.1f, \"write_amplification\": %.3f, "
               "\"space_amplification\": %.3f, \"rss_mib\": %llu, \"rss_max_mib\": %llu, "
               "\"index_filter_bytes\": %llu, \"runs\": %llu, \"more\": \"%s\"",
               engine->name, engine->version(), name, (unsigned long long)operations,
               (unsigned long long)found, s, cpu_s, rate, cpu_us, reads, read_mb, written_mb,
               scan_mb_s, amplification, space, (unsigned long long)rss,
               (unsigned long long)rss_max, (unsigned long long)f.resident,
               (unsigned long long)f.runs, f.more);
        print_latencies("get", gets);
        print_latencies("put", puts);
        printf("}\n");
    } else {
        printf("%-8s %-10s %9.0f ops/s, %llu operations, %.1f s, CPU %.1f s (%.2f us each)",
               engine->name, name, rate, (unsigned long long)operations, s, cpu_s, cpu_us);
        if (scanned_bytes > 0) printf(", %.0f MB/s", scan_mb_s);
        if (found > 0) printf(", found %llu, reads %.3f each", (unsigned long long)found, reads);
        printf("\n    disk: read %.0f MB, written %.0f MB; since the fill %.2f bytes written a byte"
               "; space %.3f of the data; runs %llu\n    memory: %llu MiB (max %llu), index and "
               "filters %.1f MB; %s\n",
               read_mb, written_mb, amplification, space, (unsigned long long)f.runs,
               (unsigned long long)rss, (unsigned long long)rss_max, (double)f.resident / 1e6,
               f.more);
        print_latencies("get", gets);
        print_latencies("put", puts);
    }
    fflush(stdout);
}

/* ---- the phases ---- */

static void
run_phase(const struct phase *p)
{
    phase = p;
    struct usage before;
    for (u32 i = 0; i < opt.workers; i++) {
        struct worker *w = &all_workers[i];
        u8 *value = w->value;
        memset(w, 0, sizeof(*w));
        w->value = value;
        prng_init(&w->prng, opt.seed * 1000 + i);
    }
    usage_get(&before);
    bool fill = !p->gets && p->in_order;
    if (fill) {
        user_bytes_since_fill = 0;
        written_at_fill = before.written_bytes;
    }
    phase_end_ns = before.clock_ns + opt.seconds * NS_PER_S;
    engine->workers((u32)opt.workers, work, NULL);
    static struct histogram gets, puts;
    memset(&gets, 0, sizeof(gets));
    memset(&puts, 0, sizeof(puts));
    u64 operations = 0, found = 0;
    for (u32 i = 0; i < opt.workers; i++) {
        histogram_merge(&gets, &all_workers[i].gets);
        histogram_merge(&puts, &all_workers[i].puts);
        operations += all_workers[i].operations;
        found += all_workers[i].found;
        user_bytes_since_fill += all_workers[i].user_bytes;
    }
    report(p->name, operations, found, 0, &before, &gets, &puts);
    if (p->miss && found > 0) die("miss", "found what was never written");
    if (p->gets && !p->miss && found != operations) die("get", "a key is missing");
}

static void
settle(void)
{
    struct usage before;
    usage_get(&before);
    engine->flush();
    static const struct histogram none;
    u32 quiet = 0;
    for (u64 end_ns = clock_now_ns() + SETTLE_S * NS_PER_S; quiet < 5;) {
        struct engine_figures f = {0};
        engine->figures(&f);
        quiet = f.settled ? quiet + 1 : 0;
        if (clock_now_ns() > end_ns) die("settle", "the background does not come to an end");
        engine->pause_ms(SETTLE_POLL_MS);
    }
    report("settle", 0, 0, 0, &before, &none, &none);
    user_bytes_since_fill = 0; /* what comes next is counted by itself */
    usage_get(&before);
    written_at_fill = before.written_bytes;
}

static void
scan_all(void)
{
    struct usage before;
    usage_get(&before);
    static const struct histogram none;
    u64 entries;
    u64 bytes = engine->scan(NULL, 0, UINT64_MAX, &entries);
    report("scan", entries, 0, bytes, &before, &none, &none);
    if (entries != opt.keys) die("scan", "it does not show every key once");
}

static void
run_phases(void *arg)
{
    (void)arg;
    struct phase fillseq = {
        .name = "fillseq", .in_order = true, .count = opt.keys, .sample_mask = 3};
    struct phase fillrandom = fillseq;
    fillrandom.name = "fillrandom";
    fillrandom.shuffle = true;
    struct phase overwrite = {
        .name = "overwrite", .count = opt.keys * opt.overwrite, .sample_mask = 3};
    struct phase hotget = {
        .name = "hotget", .gets = true, .range = MIN(opt.hot_keys, opt.keys), .sample_mask = 15};
    struct phase warm = hotget;
    warm.name = "warm";
    warm.count = hotget.range * 5;
    struct phase coldget = {.name = "coldget", .gets = true};
    struct phase miss = {.name = "miss", .gets = true, .miss = true, .sample_mask = 3};
    struct phase mixed = {.name = "mixed", .mixed = true, .sample_mask = 3};
    char list[sizeof(opt.phases)];
    snprintf(list, sizeof(list), "%s", opt.phases);
    char *rest = list;
    for (char *name; (name = strsep(&rest, ",")) != NULL;) {
        if (strcmp(name, "fillseq") == 0) {
            run_phase(&fillseq);
        } else if (strcmp(name, "fillrandom") == 0) {
            run_phase(&fillrandom);
        } else if (strcmp(name, "overwrite") == 0) {
            if (opt.overwrite > 0) run_phase(&overwrite);
        } else if (strcmp(name, "settle") == 0) {
            settle();
        } else if (strcmp(name, "hotget") == 0) {
            run_phase(&warm);
            run_phase(&hotget);
        } else if (strcmp(name, "coldget") == 0) {
            run_phase(&coldget);
        } else if (strcmp(name, "miss") == 0) {
            run_phase(&miss);
        } else if (strcmp(name, "scan") == 0) {
            scan_all();
        } else if (strcmp(name, "mixed") == 0) {
            run_phase(&mixed);
        } else {
            die("no such phase", name);
        }
    }
}

/* ---- processes ---- */

static int
run_engine(const struct engine *e)
{
    engine = e;
    config = (struct engine_config){.memory_bytes = opt.memory_bytes,
                                    .value_bytes = opt.value_bytes,
                                    .codec = opt.codec,
                                    .log = opt.log,
                                    .buffered = opt.buffered,
                                    .dynamic_levels = opt.dynamic_levels,
                                    .workers = opt.workers};
    if (snprintf(config.dir, sizeof(config.dir), "%s/%s", opt.dir, e->name) >=
        (int)sizeof(config.dir))
        die("dir", "the name is too long");
    if (!opt.keep) remove_tree(config.dir);
    if (mkdir(config.dir, 0777) != 0 && errno != EEXIST) die(config.dir, strerror(errno));
    pool = malloc(POOL_BYTES);
    all_workers = calloc(opt.workers, sizeof(*all_workers));
    if (pool == NULL || all_workers == NULL) die("memory", "none");
    struct prng prng;
    prng_init(&prng, opt.seed);
    for (u64 i = 0; i + 8 <= POOL_BYTES; i += 8) {
        u64 random = prng_u64(&prng);
        memcpy(pool + i, &random, 8);
    }
    for (u32 i = 0; i < opt.workers; i++) {
        all_workers[i].value = calloc(1, opt.value_bytes);
        if (all_workers[i].value == NULL) die("memory", "none");
    }
    int code = e->run(&config, run_phases, NULL);
    if (!opt.keep) remove_tree(config.dir);
    return code;
}

static int
usage_error(const char *error)
{
    fprintf(stderr, "engine_bench: %s\n", error);
    return 2;
}

int
main(int argc, char **argv)
{
    static const struct engine *const engines[] = {
        &engine_distkv,
#ifdef ENGINE_BENCH_ROCKSDB
        &engine_rocksdb,
#endif
    };
    option_set_defaults(&table, &opt);
    char error[OPTION_ERROR_BYTES];
    for (int at = 1; at < argc;) {
        const struct option *option;
        const char *value;
        status st = option_next_flag(&table, argc, (const char *const *)argv, &at, &option, &value,
                                     error, sizeof(error));
        if (status_is(st, ST_END)) return usage_error("options begin with --");
        if (!ok(st)) return usage_error(error);
        if (strcmp(option->name, "help") == 0) {
            static char text[16384];
            option_help_text(&table, text, sizeof(text));
            fputs(text, stdout);
            return 0;
        }
        if (!ok(option_set(option, &opt, value, error, sizeof(error)))) return usage_error(error);
    }
#ifndef ENGINE_BENCH_ROCKSDB
    if (opt.engine == ENGINE_ROCKSDB) return usage_error("built without RocksDB");
#endif
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(opt.core, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0) return usage_error("no such core");
    if (mkdir(opt.dir, 0777) != 0 && errno != EEXIST) die(opt.dir, strerror(errno));
    int code = 0;
    for (u32 i = 0; i < ARRAY_COUNT(engines); i++) {
        if (opt.engine != ENGINE_BOTH && strcmp(engine_names[opt.engine], engines[i]->name) != 0)
            continue;
        fflush(stdout);
        pid_t child = fork();
        if (child < 0) die("fork", strerror(errno));
        if (child == 0) exit(run_engine(engines[i]));
        int state;
        if (waitpid(child, &state, 0) != child || state != 0) code = 1;
    }
    if (!opt.keep) rmdir(opt.dir);
    return code;
}
