/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/log.h"
#include "server/host_config.h"

static struct server_config config;
static char error[HOST_CONFIG_ERROR_BYTES];
static const char *const nothing[] = {NULL};

static status
parse(const char *text)
{
    config_init(&config);
    return host_config_parse(&config, "f", BYTES(text, strlen(text)), error, sizeof(error));
}

static void
no_argument_at_all_works(void **state)
{
    const char *argv[] = {"distkv-server", NULL};
    assert_true(ok(host_config_load(&config, 1, argv, nothing, error, sizeof(error))));
    assert_string_equal(config.endpoint.host, "127.0.0.1");
    assert_int_equal(config.endpoint.port, 8080);
    assert_int_equal(config.admin_endpoint.port, 9080);
    assert_true(config.core_count >= 1);
    assert_true(config.memory_bytes >= CONFIG_MEMORY_MIN && config.memory_bytes <= GIB(64));
    assert_string_equal(config.data_dir, "./distkv-data");
    assert_false(config.in_memory);
}

static void
a_flag_wins_over_a_variable_and_that_over_the_file(void **state)
{
    char path[] = "/tmp/distkv-test-config-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    const char *text = "spin = 1us\nstall = 1ms\ntimeout = 1\n";
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    char variable[64];
    snprintf(variable, sizeof(variable), "DISTKV_CONFIG=%s", path);
    const char *environment[] = {variable, "DISTKV_STALL=2ms", "DISTKV_TIMEOUT=2", "OTHER=3", NULL};
    const char *argv[] = {"distkv-server", "--timeout=3", NULL};
    status st = host_config_load(&config, 2, argv, environment, error, sizeof(error));
    unlink(path);
    assert_true(ok(st));
    assert_int_equal(config.spin_us, 1);
    assert_int_equal(config.stall_ms, 2);
    assert_int_equal(config.timeout_s, 3);
}

static void
mistakes_in_the_file_are_named_with_their_line(void **state)
{
    static const struct {
        const char *text, *error;
    } cases[] = {
        {"spin = 1us\n\n# x\nmemroy = 1GiB\n",
         "f:4: unknown option 'memroy', did you mean 'memory'?"},
        {"spin = 1\n", "f:1: spin: '1' is not a duration such as 20us, 10ms or 5s"},
        {"spin = 1us\nspin = 2us\n", "f:2: 'spin' was set in line 1 already"},
        {"[section]\n", "f:1: there are no sections"},
        {"spin = 1us\n  stall = 1ms\n", "f:2: a line must not begin with a space"},
        {"spin\n", "f:1: not of the form 'name = value'"},
        {"help = yes\n", "f:1: 'help' belongs on the command line"},
        {"config = x\n", "f:1: 'config' belongs on the command line"},
    };
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++) {
        assert_false(ok(parse(cases[i].text)));
        assert_string_equal(error, cases[i].error);
    }
    char line[300];
    memset(line, 'x', sizeof(line));
    config_init(&config);
    assert_false(
        ok(host_config_parse(&config, "f", BYTES(line, sizeof(line)), error, sizeof(error))));
    assert_false(ok(host_config_parse(&config, "f", BYTES("a\0b = 1\n", 8), error, sizeof(error))));
}

static void
files_may_hold_comments_blank_lines_and_other_line_ends(void **state)
{
    assert_true(ok(parse("")));
    assert_true(ok(parse(
        "\xEF\xBB\xBF# mark of byte order ; x\r\nspin = 7us\r\n\r\n; x ; y\n # z\nstall=9ms")));
    assert_int_equal(config.spin_us, 7);
    assert_int_equal(config.stall_ms, 9);
    assert_true(ok(parse("slowlog_max_len : 5\n")));
    assert_int_equal(config.slowlog_max_len, 5);
}

/* A value is taken as it stands, or not at all. */
static void
what_may_be_a_comment_behind_a_value_is_refused(void **state)
{
    static const char *const bad[] = {
        "spin = 7us ; why\n",   "spin = 7us # why\n", "requirepass = ;a\n",
        "requirepass=#a\n",     "requirepass:;a\n",   "requirepass = a\t;b\n",
        "data-dir = /d #1\r\n", "spin ;x = 7us\n",    "\xEF\xBB\xBFspin = 7us ;\n",
    };
    for (u32 i = 0; i < ARRAY_COUNT(bad); i++) {
        if (ok(parse(bad[i])) || strstr(error, "f:1: a comment has a line of its own") == NULL)
            fail_msg("'%s': %s", bad[i], error);
    }
    assert_true(ok(parse("requirepass = a;b#c=;d:#\ndata-dir = /d;e\n")));
    assert_true(config_password_matches(&config, BYTES_LITERAL("a;b#c=;d:#")));
    assert_string_equal(config.data_dir, "/d;e");
}

static void
unknown_variables_are_refused_but_not_those_of_other_programs(void **state)
{
    const char *bad[] = {"DISTKV_MEMROY=1GiB", NULL};
    config_init(&config);
    assert_false(ok(host_config_environment(&config, bad, error, sizeof(error))));
    assert_string_equal(error,
                        "variable DISTKV_MEMROY: unknown option 'MEMROY', did you mean 'memory'?");
    const char *other[] = {
        "DISTKV_SERVER=h:1",   "DISTKV_CLIENT_TIMEOUT=5s", "DISTKV_CLIENT_NO_ROUTING=1",
        "DISTKV_NO_ROUTING=1", "DISTKV_KEYSPACE=1",        "DISTKV_USER=u",
        "DISTKV_PASSWORD=p",   "DISTKV_PASSWORD_FILE=f",   NULL};
    assert_true(ok(host_config_environment(&config, other, error, sizeof(error))));
    const char *ours[] = {"DISTKV_CLIENT_OUTPUT_LIMIT=123MiB", NULL}; /* begins as theirs do */
    assert_true(ok(host_config_environment(&config, ours, error, sizeof(error))));
    assert_int_equal(config.client_output_limit_bytes, MIB(123));
}

static void
cores_are_lists_and_ranges(void **state)
{
    u32 cores[4], count = 0;
    assert_true(config_parse_cores("3,0-1", cores, 4, &count));
    assert_int_equal(count, 3);
    assert_int_equal(cores[0], 0);
    assert_int_equal(cores[2], 3);
    static const char *const bad[] = {"",    ",",    "1,", "1-", "-1",   "2-1",
                                      "x",   "0-9",  "1 ", "--", "4096", "99999999999999999999",
                                      "0,0", "0-1,1"};
    for (u32 i = 0; i < ARRAY_COUNT(bad); i++) {
        if (config_parse_cores(bad[i], cores, 4, &count)) fail_msg("'%s'", bad[i]);
    }
}

static void
addresses_are_host_and_port(void **state)
{
    struct config_endpoint endpoint;
    assert_true(config_parse_endpoint("[::1]:80", &endpoint));
    assert_string_equal(endpoint.host, "::1");
    assert_int_equal(endpoint.port, 80);
    assert_true(config_parse_endpoint(":1", &endpoint));
    assert_string_equal(endpoint.host, "0.0.0.0");
    assert_true(config_parse_endpoint("localhost:0", &endpoint));
    assert_string_equal(endpoint.host, "127.0.0.1");
    static const char *const bad[] = {"",       "1.2.3.4", "1.2.3.4:", "1.2.3.4:65536",
                                      "::1:80", "a:-1",    "a:1x"};
    for (u32 i = 0; i < ARRAY_COUNT(bad); i++) {
        if (config_parse_endpoint(bad[i], &endpoint)) fail_msg("'%s'", bad[i]);
    }
}

static void
too_little_memory_for_the_cores_is_refused(void **state)
{
    const char *argv[] = {"distkv-server", "--memory=32MiB", "--cores=0", NULL};
    assert_true(ok(host_config_load(&config, 3, argv, nothing, error, sizeof(error))));
    config.core_count = 2;
    assert_false(ok(config_resolve(&config, error, sizeof(error))));
    assert_string_equal(error, "memory: 32MiB is too little for 2 cores, they need 64MiB");
}

static struct host_machine
machine_of(u32 core_count, u64 memory_bytes)
{
    struct host_machine machine = {.core_count = core_count, .memory_bytes = memory_bytes};
    for (u32 i = 0; i < core_count; i++)
        machine.cores[i] = i;
    return machine;
}

/* 0: refused. */
static u32
derived(u32 machine_cores, u64 machine_memory, const char *cores)
{
    config_init(&config);
    snprintf(config.cores, sizeof(config.cores), "%s", cores);
    struct host_machine machine = machine_of(machine_cores, machine_memory);
    if (!ok(host_config_derive(&config, &machine, error, sizeof(error)))) return 0;
    assert_true(ok(config_resolve(&config, error, sizeof(error))));
    assert_true(config.memory_bytes <= machine_memory);
    return config.core_count;
}

static void
cores_and_memory_of_a_machine_fit_each_other(void **state)
{
    assert_int_equal(derived(2, GIB(64), ""), 2);
    assert_int_equal(config.memory_bytes, GIB(1));
    assert_int_equal(derived(2, MIB(600), ""), 2);
    assert_int_equal(config.memory_bytes, MIB(300));
    assert_int_equal(config.cores_left, 0);
    assert_int_equal(derived(64, GIB(64), ""), 64);
    assert_int_equal(config.memory_bytes, GIB(2));
    /* A container with a share of the processors, on a large host. */
    assert_int_equal(derived(64, MIB(512), ""), 8);
    assert_int_equal(config.memory_bytes, MIB(256));
    assert_string_equal(config.cores, "0,1,2,3,4,5,6,7");
    assert_int_equal(config.cores_left, 56);
    assert_int_equal(derived(4, MIB(40), ""), 1);
    assert_int_equal(config.memory_bytes, MIB(32));
    /* What is given counts. */
    assert_int_equal(derived(64, MIB(512), "0-9"), 10);
    assert_int_equal(config.memory_bytes, MIB(320));
    assert_int_equal(derived(64, MIB(512), "0-31"), 0);
    assert_string_equal(error, "cores: 32 cores need 1GiB, and this process may use 512MiB");
    assert_int_equal(derived(1, MIB(16), ""), 0);
    config_init(&config);
    config.memory_bytes = GIB(2);
    struct host_machine machine = machine_of(64, MIB(512));
    assert_true(ok(host_config_derive(&config, &machine, error, sizeof(error))));
    assert_int_equal(config.core_count, 64);
    assert_int_equal(config.memory_bytes, GIB(2));
}

static u32 listed;

static void
count_listed(void *arg, const char *name, const char *value)
{
    listed++;
}

static void
config_get_knows_our_names_and_those_of_redis(void **state)
{
    config_init_for_test(&config, ":memory:", 2);
    char value[OPTION_TEXT_BYTES];
    assert_true(config_get(&config, "maxmemory", value, sizeof(value)));
    assert_string_equal(value, "134217728");
    assert_true(config_get(&config, "SAVE", value, sizeof(value)));
    assert_string_equal(value, "");
    assert_true(config_get(&config, "appendfsync", value, sizeof(value)));
    assert_string_equal(value, "always");
    assert_true(config_get(&config, "memory", value, sizeof(value)));
    assert_string_equal(value, "128MiB");
    assert_false(config_get(&config, "help", value, sizeof(value)));
    assert_false(config_get(&config, "nothing", value, sizeof(value)));
    listed = 0;
    config_list(&config, "slowlog*", count_listed, NULL);
    assert_int_equal(listed, 2);
    listed = 0;
    config_list(&config, "*", count_listed, NULL);
    assert_true(listed > 40);
    listed = 0;
    config_list(&config, "[Mm]emory", count_listed, NULL);
    assert_int_equal(listed, 1);
    listed = 0;
    config_list(&config, "memory\\", count_listed, NULL);
    config_list(&config, "\\memory", count_listed, NULL);
    assert_int_equal(listed, 0);
    config_list(&config, "MEMORY", count_listed, NULL);
    assert_int_equal(listed, 1);
    listed = 0;
    config_list(&config, "maxmemory?policy", count_listed, NULL);
    assert_int_equal(listed, 1);
}

static void
config_set_changes_what_may_change_and_nothing_else(void **state)
{
    config_init_for_test(&config, ":memory:", 1);
    u64 generation = config_generation(&config);
    assert_true(ok(config_set(&config, "Slowlog-Max-Len", "7", error, sizeof(error))));
    assert_int_equal(config.slowlog_max_len, 7);
    assert_true(config_generation(&config) > generation);
    assert_true(
        status_is(config_set(&config, "memory", "1GiB", error, sizeof(error)), ST_UNSUPPORTED));
    assert_true(
        status_is(config_set(&config, "save", "1 1", error, sizeof(error)), ST_UNSUPPORTED));
    assert_true(ok(config_set(&config, "save", "", error, sizeof(error))));
    assert_true(status_is(config_set(&config, "nope", "1", error, sizeof(error)), ST_NOT_FOUND));
    assert_true(
        status_is(config_set(&config, "timeout", "soon", error, sizeof(error)), ST_INVALID));
    assert_true(ok(config_set_check(&config, "timeout", "9", error, sizeof(error))));
    assert_int_equal(config.timeout_s, 0);
}

static void
a_bad_value_is_refused_in_the_words_of_redis(void **state)
{
    static const struct {
        const char *name, *value, *error;
    } cases[] = {
        {"maxclients", "abc", "argument couldn't be parsed into an integer"},
        {"maxclients", "010", "argument couldn't be parsed into an integer"},
        {"maxclients", "0", "argument must be between 1 and 1000000 inclusive"},
        {"maxclients", "-9", "argument must be between 1 and 1000000 inclusive"},
        {"maxclients", "1000001", "argument must be between 1 and 1000000 inclusive"},
        {"timeout", "2147483648", "argument must be between 0 and 2147483647 inclusive"},
        {"slowlog-log-slower-than", "-2",
         "argument must be between -1 and 9223372036854775807 inclusive"},
        {"log-level", "loud",
         "argument(s) must be one of the following: error, warning, info, debug"},
        {"scrub-rate", "x", "scrub-rate: 'x' is not a size such as 4096, 64KiB or 2GiB"},
        {"appendonly", "no", "can't set immutable config"},
        {"cores", "0", "can't set immutable config"},
    };
    config_init_for_test(&config, ":memory:", 1);
    u64 generation = config_generation(&config);
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++) {
        assert_false(
            ok(config_set_check(&config, cases[i].name, cases[i].value, error, sizeof(error))));
        assert_string_equal(error, cases[i].error);
        assert_false(ok(config_set(&config, cases[i].name, cases[i].value, error, sizeof(error))));
        assert_string_equal(error, cases[i].error);
    }
    assert_true(config_generation(&config) == generation);
    assert_int_equal(config.maxclients, 10000);
    assert_true(ok(config_set(&config, "LOG-LEVEL", "DEBUG", error, sizeof(error))));
    assert_int_equal(config.log_level, LOG_LEVEL_DEBUG);
    assert_string_equal(config_name("Slowlog_Max-Len"), "slowlog-max-len");
    assert_string_equal(config_name("DIR"), "dir");
    assert_null(config_name("nope"));
    assert_null(config_name("help"));
}

static void
the_password_is_compared_whole(void **state)
{
    config_init_for_test(&config, ":memory:", 1);
    assert_false(config_has_password(&config));
    assert_true(ok(config_set(&config, "requirepass", "s3cret", error, sizeof(error))));
    assert_true(config_has_password(&config));
    assert_true(config_password_matches(&config, BYTES_LITERAL("s3cret")));
    assert_false(config_password_matches(&config, BYTES_LITERAL("s3cre")));
    assert_false(config_password_matches(&config, BYTES_LITERAL("s3cretx")));
    assert_false(config_password_matches(&config, BYTES_LITERAL("s3cret\0")));
    assert_false(config_password_matches(&config, BYTES_LITERAL("")));
}

static bool
resolves(const char *seeds, const char *secret, const char *peer_address)
{
    config_init_for_test(&config, "/data", 2);
    snprintf(config.cluster_secret, sizeof(config.cluster_secret), "%s", secret);
    snprintf(config.seed_nodes, sizeof(config.seed_nodes), "%s", seeds);
    snprintf(config.peer_address, sizeof(config.peer_address), "%s", peer_address);
    return ok(config_resolve(&config, error, sizeof(error)));
}

static void
a_node_with_a_secret_is_one_of_a_cluster(void **state)
{
    assert_true(resolves("", "", ""));
    assert_false(config.clustered);
    assert_false(resolves("10.0.0.1:8080", "", "")); /* seeds, and no secret */
    assert_non_null(strstr(error, "cluster-secret-file"));
    assert_true(resolves("", "0123456789abcdef", ""));
    assert_true(config.clustered && config.seed_count == 0);
    assert_int_equal(config.peer_endpoint.port, 18080);
    assert_true(
        resolves("10.0.0.1:8080, [::1]:70@71,localhost:9", "0123456789abcdef", "10.1.1.1:99"));
    assert_int_equal(config.seed_count, 3);
    assert_string_equal(config.seeds[0].host, "10.0.0.1");
    assert_int_equal(config.seeds[0].peer_port, 18080);
    assert_string_equal(config.seeds[1].host, "::1");
    assert_int_equal(config.seeds[1].peer_port, 71);
    assert_string_equal(config.seeds[2].host, "127.0.0.1");
    assert_int_equal(config.peer_endpoint.port, 99);
    assert_string_equal(config.peer_endpoint.host, "10.1.1.1");
    static const char *const bad[] = {"10.0.0.1",       "10.0.0.1:0", "10.0.0.1:8080,", ",",
                                      "10.0.0.1:60000", "a:1@0",      ":8080",          "a:1@x"};
    for (u32 i = 0; i < ARRAY_COUNT(bad); i++)
        assert_false(resolves(bad[i], "0123456789abcdef", ""));
    assert_false(resolves("", "0123456789abcdef", "10.0.0.1:65535")); /* two shards, one port */
    assert_false(resolves("", "0123456789abcdef", "0.0.0.0:9000"));
    config_init_for_test(&config, "/data", 2);
    snprintf(config.cluster_secret, sizeof(config.cluster_secret), "0123456789abcdef");
    config.read_quorum = 4;
    assert_false(ok(config_resolve(&config, error, sizeof(error))));
    config_init_for_test(&config, ":memory:", 1);
    snprintf(config.cluster_secret, sizeof(config.cluster_secret), "0123456789abcdef");
    assert_false(ok(config_resolve(&config, error, sizeof(error))));
}

static void
clients_and_scrapers_have_addresses_of_their_own(void **state)
{
    (void)state;
    config_init_for_test(&config, "/data", 1);
    snprintf(config.address, sizeof(config.address), "127.0.0.1:8080");
    snprintf(config.admin_address, sizeof(config.admin_address), "127.0.0.1:8080");
    assert_false(ok(config_resolve(&config, error, sizeof(error))));
    assert_non_null(strstr(error, "admin-address: 127.0.0.1:8080 is the address for clients"));
    snprintf(config.admin_address, sizeof(config.admin_address), "127.0.0.1:8081");
    assert_true(ok(config_resolve(&config, error, sizeof(error))));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_argument_at_all_works),
        cmocka_unit_test(a_flag_wins_over_a_variable_and_that_over_the_file),
        cmocka_unit_test(mistakes_in_the_file_are_named_with_their_line),
        cmocka_unit_test(files_may_hold_comments_blank_lines_and_other_line_ends),
        cmocka_unit_test(what_may_be_a_comment_behind_a_value_is_refused),
        cmocka_unit_test(unknown_variables_are_refused_but_not_those_of_other_programs),
        cmocka_unit_test(cores_are_lists_and_ranges),
        cmocka_unit_test(addresses_are_host_and_port),
        cmocka_unit_test(too_little_memory_for_the_cores_is_refused),
        cmocka_unit_test(cores_and_memory_of_a_machine_fit_each_other),
        cmocka_unit_test(config_get_knows_our_names_and_those_of_redis),
        cmocka_unit_test(config_set_changes_what_may_change_and_nothing_else),
        cmocka_unit_test(a_bad_value_is_refused_in_the_words_of_redis),
        cmocka_unit_test(the_password_is_compared_whole),
        cmocka_unit_test(a_node_with_a_secret_is_one_of_a_cluster),
        cmocka_unit_test(clients_and_scrapers_have_addresses_of_their_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
