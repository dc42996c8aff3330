/* SPDX-License-Identifier: MIT
 *
 * test_cli.c -- the distkv-client program, as a person or a script calls it, against a server in
 * this process: results, messages, exit codes.
 */
#include "fake_server.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static struct fake_server *server;
static char directory[64];
static char output[1 << 16]; /* standard output, then standard error */
static size_t output_size;

static int
setup(void **state)
{
    (void)state;
    server = fake_server_start(0);
    snprintf(directory, sizeof(directory), "/tmp/distkv_test_cli.XXXXXX");
    if (mkdtemp(directory) == NULL) return -1;
    setenv("DISTKV_SERVER", server->address, 1);
    unsetenv("DISTKV_TIMEOUT");
    return chdir(directory);
}

static int
teardown(void **state)
{
    (void)state;
    fake_server_stop(server);
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return chdir("/") == 0 && system(command) == 0 ? 0 : -1;
}

/* Runs a shell line in which "kv" is the program: its exit code, or -1. */
static int
run(const char *line)
{
    static char command[1 << 16];
    snprintf(command, sizeof(command), "kv() { \"%s\" \"$@\"; }; { %s; } 2>&1",
             DISTKV_CLIENT_PROGRAM, line);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    output_size = fread(output, 1, sizeof(output) - 1, pipe);
    output[output_size] = '\0';
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define assert_run(line, code)                                                                     \
    do {                                                                                           \
        int got = run(line);                                                                       \
        if (got != (code)) fail_msg("%s: exit %d, output: %s", line, got, output);                 \
    } while (0)
#define assert_says(line, code, text)                                                              \
    do {                                                                                           \
        assert_run(line, code);                                                                    \
        if (strstr(output, text) == NULL) fail_msg("%s: says: %s", line, output);                  \
    } while (0)
#define assert_output(line, text)                                                                  \
    do {                                                                                           \
        assert_run(line, 0);                                                                       \
        assert_string_equal(output, text);                                                         \
    } while (0)

static void
values_are_put_got_and_deleted(void **state)
{
    (void)state;
    assert_output("kv put k 'a value'", "ok\n");
    assert_output("kv get k", "a value");
    assert_output("kv --json get k", "{\"key\":\"k\",\"value\":\"a value\",\"version\":1}\n");
    assert_says("kv put k w --json", 0, "{\"ok\":true,\"version\":2}\n");
    assert_output("kv delete k other", "ok\n");
    assert_says("kv get k", 1, "there is no such key");
    assert_says("kv delete --if-present k", 1, "condition");
    assert_output("printf 'a\\000b' | kv put bin -; kv get bin | od -An -c | tr -d ' '",
                  "ok\na\\0b\n");
    assert_output("kv put --escapes 'x\\x00\\xff' 'y\\n'; kv get --escapes 'x\\x00\\xff'",
                  "ok\ny\n");
    assert_says("kv --json get --escapes 'x\\x00\\xff'", 0, "\"key_b64\":\"eAD/\"");
    assert_says("kv put --escapes 'x\\q' y", 2, "backslash");
    assert_output("kv put -- -dash 1; kv get -- -dash", "ok\n1");
}

static void
conditions_and_times_can_be_given(void **state)
{
    (void)state;
    assert_run("kv put --if-present k v", 1);
    assert_run("kv put --if-absent k v", 0);
    assert_says("kv put -if-absent k v", 1, "condition");
    assert_run("kv put --if-version=1 k w", 0);
    assert_run("kv put --if-version 1 k w", 1);
    assert_says("kv put --if-absent --if-present k w", 2, "only one");
    /* No key has it: who has none of a version at hand does not write without a condition. */
    assert_says("kv put k x --if-version 0", 2, "if-version");
    assert_says("kv delete k --if-version 0", 2, "if-version");
    assert_output("kv get k", "w");
    assert_output("kv ttl k", "never expires\n");
    assert_output("kv expire k 5s; kv ttl k", "ok\n5.000 s\n");
    assert_output("kv ttl k --json", "{\"ttl_ms\":5000}\n");
    assert_output("kv expire k never; kv ttl --json k", "ok\n{\"ttl_ms\":null}\n");
    assert_output("kv put --ttl 1500ms k v; kv ttl k", "ok\n1.500 s\n");
    assert_says("kv expire k soon", 2, "duration");
}

/* As other tools do; but where its caller ignores the signal it is an error. */
static void
whoever_reads_no_more_ends_it_without_a_word(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(dup2(ends[1], 9), 9);
    close(ends[0]);
    close(ends[1]);
    void (*before)(int) = signal(SIGPIPE, SIG_DFL);
    assert_output("kv put k v; kv get k >&9; echo $?; kv scan >&9; echo $?; kv export >&9; echo $?",
                  "ok\n141\n141\n141\n");
    assert_says("trap '' PIPE; kv get k >&9", 1, "cannot write the output");
    assert_says("kv get k >/dev/full", 1, "cannot write the output");
    signal(SIGPIPE, before);
    close(9);
}

/* A server's variables stop no client; and the other way round: test_config.c. */
static void
variables_of_the_server_are_none_of_the_client(void **state)
{
    (void)state;
    assert_says("kv put a 1", 0, "");
    assert_says("DISTKV_TIMEOUT=300 DISTKV_MEMORY=1GiB kv get a", 0, "1");
    assert_says("DISTKV_TIMEOUT=0 DISTKV_CLIENT_TIMEOUT=5s kv get a", 0, "1");
    assert_says("DISTKV_TIMEOUT=x DISTKV_CLIENT_TIMEOUT=5s DISTKV_CLIENT_NO_ROUTING=1 kv get a", 0,
                "1");
}

static void
usage_errors_end_with_2(void **state)
{
    (void)state;
    assert_says("kv frobnicate", 2, "there is no command 'frobnicate'");
    assert_says("kv get", 2, "usage: distkv-client get KEY");
    assert_says("kv get a b", 2, "usage");
    assert_says("kv --sever x get a", 2, "server");
    assert_says("kv get --timeout never a", 2, "timeout");
    assert_says("kv get --keyspace 16 a", 2, "keyspace");
    assert_says("kv get --server", 2, "needs a value");
    assert_says("DISTKV_TIMEOUT=x kv get a", 2, "DISTKV_TIMEOUT");
    assert_says("DISTKV_CLIENT_TIMEOUT=7 kv get a", 2, "DISTKV_CLIENT_TIMEOUT: timeout: '7'");
    assert_says("kv --server 'x:y' get a", 2, "host:port");
    assert_says("kv get ''", 2, "key is empty");
    assert_says("kv get $(printf '%01025d' 0)", 2, "longer than 1024");
    assert_says("kv batch 'put a'", 2, "operation 1");
    assert_says("kv batch 'put \"a b'", 2, "unbalanced");
    assert_says("kv batch put x 1", 2, "operation 1: an operation is one word in quotes");
    assert_says("kv batch 'put x 1' delete x", 2, "operation 2: an operation is one word");
    assert_says("kv import /nowhere", 2, "No such file");
    assert_int_equal(server->writes_done, 0);
}

/* With --json an error is an object as well, on standard error: nothing else is on standard output.
 */
static void
errors_are_json_where_results_are(void **state)
{
    (void)state;
    assert_run("kv --json get k 2>/dev/null", 1);
    assert_string_equal(output, "");
    assert_run("kv get k --json", 1);
    assert_string_equal(
        output, "{\"error\":{\"code\":\"NOT_FOUND\",\"message\":\"get: there is no such key\"}}\n");
    assert_says("DISTKV_JSON=yes kv --sever x get a", 2, "{\"error\":{\"code\":\"INVALID\",");
    assert_says("kv --json frobnicate", 2, "{\"error\":{\"code\":\"INVALID\",");
    assert_says("kv get --json a b", 2, "{\"error\":{\"code\":\"INVALID\",\"message\":\"usage: ");
    assert_says("kv --json get --json=no a b", 2, "distkv-client: error: usage: ");
    assert_says("kv --json --server 127.0.0.1:1 --timeout 100ms get a", 3,
                "{\"error\":{\"code\":\"UNREACHABLE\",");
    assert_says("kv --json import /nowhere", 2, "{\"error\":{\"code\":\"ERROR\",");
    assert_says("kv --json put --escapes 'x\\q\"' y", 2, "\\\\t");
    assert_says("printf 'get k\\nget\\n' | kv --json", 2, "}}\n{\"error\":{\"code\":\"INVALID\",");
    assert_says("kv batch --json 'put a 1' 'put b 1'", 0,
                "{\"warning\":{\"message\":\"the keys fall");
}

static void
a_password_can_be_given_in_each_way(void **state)
{
    (void)state;
    server->password = "a secret";
    assert_says("kv get k", 1, "wrong user or password (none was given; see --password-file");
    assert_says("kv --password x get k", 1, "wrong user or password\n");
    assert_says("kv --user other --password 'a secret' get k", 1, "wrong user or password");
    assert_says("kv doctor", 1, "wrong user or password");
    assert_says("echo 'put k v' | kv", 1, "wrong user or password");
    assert_int_equal(server->writes_done, 0);
    assert_output("kv put k v --password 'a secret'", "ok\n");
    assert_output("kv --user default --password='a secret' get k", "v");
    assert_output("DISTKV_PASSWORD='a secret' kv get k", "v");
    assert_output("DISTKV_USER=default DISTKV_PASSWORD='a secret' kv get k", "v");
    assert_output("printf 'a secret' > pw; kv --password-file pw get k", "v");
    assert_output("printf 'a secret\r\nmore\n' > pw; kv get k --password-file pw", "v");
    assert_output("DISTKV_PASSWORD_FILE=pw kv get k", "v");
    assert_output("export DISTKV_PASSWORD='a secret'; echo 'get k' | kv; kv export -quiet; "
                  "kv count --exact; kv bench-ping --count 1 > /dev/null; echo $?",
                  "v\n{\"key\":\"k\",\"value\":\"v\"}\n1\n0\n");
    /* The last one that is given, flags behind variables. */
    assert_output("DISTKV_PASSWORD=x kv --password-file pw get k", "v");
    assert_output("DISTKV_PASSWORD_FILE=/nowhere kv --password 'a secret' get k", "v");
    assert_output("kv --password x get k --password-file pw", "v");
    assert_output("kv --password-file /nowhere get k --password 'a secret'", "v");
    assert_says("kv --password-file /nowhere get k", 2, "/nowhere: No such file");
    assert_says("kv --password-file . get k", 2, "Is a directory");
    assert_says("kv --password-file /dev/null get k", 2, "the first line is empty");
    assert_says("printf '%0600d' 0 > long; kv --password-file long get k", 2, "too long");
    assert_says("kv --password $(printf '%0300d' 0) get k", 2, "255 bytes");
    assert_says("echo 'get k --password x' | kv --password-file pw", 2, "cannot be changed");
    server->password = NULL;
    assert_output("kv --password anything get k", "v"); /* as the server does */
}

static void
nobody_there_ends_with_3(void **state)
{
    (void)state;
    struct fake_server *gone = fake_server_start(0);
    char line[128];
    snprintf(line, sizeof(line), "kv -server=%s get a", gone->address);
    fake_server_stop(gone);
    assert_says(line, 3, "refused");
    strcpy(line + strlen(line) - 5, "doctor");
    assert_says(line, 3, "refused");
}

static void
help_and_version_are_shown(void **state)
{
    (void)state;
    assert_says("kv --version", 0, "distkv-client 0.");
    assert_says("kv --help", 0, "bench-ping");
    assert_says("kv help", 0, "Exit status");
    assert_says("kv help import", 0, "value_b64");
    assert_says("kv scan -help", 0, "--keys-only");
    assert_says("kv help nothing", 2, "there is no command");
    assert_says("kv --help-man", 0, ".SS \"import [FILE]\"");
    assert_int_equal(server->connections, 0);
}

static void
a_batch_says_whether_it_is_atomic(void **state)
{
    (void)state;
    assert_says("kv batch 'put {t}a 1' 'put {t}b \"2 3\" 10s' 'delete {t}c'", 0,
                "ok: 3 operations, atomic");
    assert_output("kv get {t}b; kv ttl {t}b", "2 310.000 s\n");
    assert_says("kv batch 'put a 1' 'put b 1'", 0, "the whole is not");
    assert_says("kv batch --atomic 'put a 2' 'put b 2'", 2, "hash tag");
    assert_output("kv get a", "1");
    assert_says(
        "printf 'put {t}x \"a\\\\x00\\\\n\"\\n# note\\n\\ndelete {t}a\\n' | kv batch --json", 0,
        "\"operations\":2,\"done\":2,\"slots\":1,\"atomic\":true");
    assert_output("kv get {t}x | od -An -c | tr -d ' '", "a\\0\\n\n");
    assert_says("kv batch </dev/null", 2, "empty");
}

static void
a_scan_lists_what_is_asked_for(void **state)
{
    (void)state;
    assert_run("for i in 1 2 3 4 5; do kv put a$i v$i; done; kv put b x", 0);
    assert_output("kv scan | sort", "a1\tv1\na2\tv2\na3\tv3\na4\tv4\na5\tv5\nb\tx\n");
    assert_output("kv scan --prefix b --keys-only", "b\n");
    assert_output("kv scan --limit 2 | wc -l | tr -d ' '", "2\n");
    assert_output("kv scan --prefix b --json", "{\"key\":\"b\",\"value\":\"x\",\"version\":6}\n");
    assert_says("kv scan --prefix a --match b", 2, "only one");
    assert_output("kv count --exact", "6\n");
    assert_output("kv count --json", "{\"count\":6,\"exact\":false}\n");
}

static void
what_is_exported_imports_the_same(void **state)
{
    (void)state;
    assert_run(
        "kv put --escapes 'k\\x00\\xff' '\\x80\\t\\n'; kv put plain 'a \"quoted\" \\ \xc3\xa9';"
        "kv put empty ''; kv put --ttl 1h timed v; kv put --escapes 'tab\\tnl\\n' '\\x00'",
        0);
    static const char *const formats[] = {"json", "tsv"};
    for (size_t i = 0; i < 2; i++) {
        char line[512];
        snprintf(line, sizeof(line), "kv export --quiet --format %s >first && cat first",
                 formats[i]);
        assert_run(line, 0);
        u32 before = server->count;
        assert_run("kv delete plain empty timed; kv delete --escapes 'k\\x00\\xff' 'tab\\tnl\\n'",
                   0);
        assert_int_equal(server->count, 0);
        snprintf(line, sizeof(line),
                 "kv import first && kv export second.%s && cmp first second.%s", formats[i],
                 formats[i]);
        assert_says(line, 0, "imported 5 records, 0 skipped, 0 failed");
        assert_int_equal(server->count, before);
    }
    assert_run("test ! -e second.json.part", 0);
    /* The first line alone says which format it is, and hash tags begin as JSON lines do. */
    assert_run("kv delete plain empty timed; kv delete --escapes 'k\\x00\\xff' 'tab\\tnl\\n'", 0);
    assert_run("kv put '{t}k' '{v}'; kv export --quiet tagged.tsv; kv delete '{t}k'", 0);
    assert_output("cat tagged.tsv", "\\x7bt}k\t{v}\n");
    assert_says("kv import tagged.tsv && kv get '{t}k'", 0, "{v}");
}

static void
import_reports_each_line_that_fails(void **state)
{
    (void)state;
    static const char lines[] = "{\"key\":\"a\",\"value\":\"1\"}\n"
                                "{\"key\":\"b\"}\n"
                                "not json\n"
                                "\n"
                                "{\"key\":\"c\",\"value\":\"1\",\"ttl_ms\":-5}\n"
                                "{\"key\":\"\",\"value\":\"1\"}\n"
                                "{\"key\":\"d\",\"value_b64\":\"AA==\",\"ttl_ms\":1000}\n"
                                "{\"key\":\"e\",\"value_b64\":\"A\"}\n"
                                "{\"key\":\"f\",\"value\":\"1\",\"colour\":1}\n"
                                "{\"key\":\"g\",\"value\":\"1\",\"ttl_ms\":1,\"expire_ms\":1}\n";
    FILE *file = fopen("lines", "w");
    assert_non_null(file);
    fputs(lines, file);
    fclose(file);
    assert_says("kv import lines", 1, "imported 2 records, 0 skipped, 7 failed");
    static const char *const says[] = {"line 2: needs one string of value",
                                       "line 3: not a JSON object",
                                       "line 5: ttl_ms",
                                       "line 6: key is empty",
                                       "line 8: needs one",
                                       "line 9: unknown field \"colour\"",
                                       "line 10: ttl_ms"};
    for (size_t i = 0; i < ARRAY_COUNT(says); i++)
        if (strstr(output, says[i]) == NULL) fail_msg("not said: %s in %s", says[i], output);
    assert_says(
        "printf 'a\\tb\\nnotab\\nx\\\\q\\ty\\nz\\tw\\tsoon\\nlast\\tline' | kv import --json -", 1,
        "\"imported\":2,\"skipped\":0,\"failed\":3");
    assert_output("kv get last", "line");
    assert_says("printf 'a\\tother\\nnew\\t1\\n' | kv import --if-absent", 0,
                "1 records, 1 skipped");
    assert_output("kv get a", "b");
}

static void
the_last_line_of_a_key_wins(void **state)
{
    (void)state;
    assert_says("for i in $(seq 2000); do printf 'k%d\\t%d\\n' $((i % 7)) $i; done | kv import", 0,
                "imported 2000 records");
    assert_output("kv get k5", "2000");
    assert_output("kv get k0", "1995");
}

static void
import_survives_lost_connections(void **state)
{
    (void)state;
    server->drop_after_writes = 2;
    server->overload = 50;
    assert_says(
        "for i in $(seq 900); do printf 'key%d\\t%d\\n' $i $i; done | kv import --connections 2", 0,
        "imported 900 records, 0 skipped, 0 failed");
    assert_int_equal(server->count, 900);
    assert_output("kv get key900", "900");
}

static void
the_state_is_shown_and_judged(void **state)
{
    (void)state;
    assert_says("kv status", 0, "version");
    assert_output("kv --json status", "{\"version\":\"0.0.1\",\"state\":\"ok\"}\n");
    int code = run("kv doctor --count 5 --json");
    assert_true(code == 0 || code == 5); /* the kernel of this machine may be an old one */
    assert_non_null(strstr(output, "\"check\":\"write\",\"result\":\"ok\""));
    assert_says("kv bench-ping --count 100 --in-flight 8", 0, "100 pings in");
    assert_says("kv bench-ping --count 10 --json", 0, "\"latency_p99_us\":");
    server->silent = 1;
    assert_says("kv bench-ping --count 2 --timeout 500ms", 1, "failed");
    assert_says("kv doctor --count 2 --timeout 500ms", 5, "failure");
}

static void
a_server_that_does_not_answer_ends_with_1(void **state)
{
    (void)state;
    server->silent = 1;
    assert_says("kv get k --timeout 500ms", 1, "deadline");
    assert_says("kv put k v --timeout 500ms", 1, "deadline");
}

static void
lines_of_a_pipe_are_run_like_the_prompt(void **state)
{
    (void)state;
    assert_output("printf 'put \"a b\" c\\n\\n# note\\nget \"a b\"\\nquit\\nget x\\n' | kv",
                  "ok\nc\n");
    assert_says("printf 'get none\\nput k v\\n' | kv", 1, "ok\n");
    assert_says("printf 'help put\\n' | kv", 0, "--if-absent");
    assert_says("printf 'get \"x\\n' | kv", 2, "unbalanced");
}

/* What is typed waits for so many prompts, for ten seconds at most. script gives the program a
 * terminal. exec: a shell that waited for it would be interrupted, too, and dash would end by that.
 * libedit itself never frees the names of added functions. */
static void
at_the_prompt(const char *typed)
{
    char line[2048];
    snprintf(line, sizeof(line),
             "export DISTKV_HISTFILE=%s/hist TERM=xterm ASAN_OPTIONS=detect_leaks=0; rm -f screen; "
             "prompts() { n=0; until [ \"$(grep -ao '[0-9]> ' screen | wc -l)\" -ge $1 ] || "
             "[ $n -ge 200 ]; do sleep 0.05; n=$((n + 1)); done; }; "
             "(%s; sleep 0.2) | script -qfec \"exec %s\" screen",
             directory, typed, DISTKV_CLIENT_PROGRAM);
    assert_run(line, 0);
}

static void
the_prompt_completes_and_remembers(void **state)
{
    (void)state;
    if (run("script -qec true /dev/null </dev/null") != 0) skip(); /* no script, no terminals */
    at_the_prompt("prompts 1; printf 'pu\\tterm 1\\n'; prompts 2; printf 'sca\\t\\n'; prompts 3;"
                  " printf 'quit\\n'");
    assert_says("kv get term", 0, "1");
    assert_says("cat hist", 0, "put");
}

static void
the_prompt_gives_help(void **state)
{
    (void)state;
    if (run("script -qec true /dev/null </dev/null") != 0) skip(); /* no script, no terminals */
    at_the_prompt("prompts 1; printf 'help put\\n'; prompts 2; printf 'quit\\n'");
    assert_says("cat screen", 0, "--if-absent");
    at_the_prompt("prompts 1; printf 'help\\n'; prompts 2; printf 'quit\\n'");
    assert_says("cat screen", 0, "explain a command");
    at_the_prompt("prompts 1; printf 'hel\\texpor\\t\\n'; prompts 2; printf 'quit\\n'");
    assert_says("cat screen", 0, "as import reads it");
}

static void
an_interrupt_clears_the_line_at_the_prompt(void **state)
{
    (void)state;
    if (run("script -qec true /dev/null </dev/null") != 0) skip(); /* no script, no terminals */
    at_the_prompt("prompts 1; printf 'put int 1\\n'; prompts 2; printf 'put int 2\003'; prompts 3;"
                  " printf 'put after 3\\n'; prompts 4; printf 'quit\\n'");
    assert_says("kv get int", 0, "1");
    assert_says("kv get after", 0, "3");
    assert_says("cat hist", 0, "put\\040int\\0401");
}

static void
an_export_writes_through_what_is_no_file(void **state)
{
    (void)state;
    assert_run("kv put through 1", 0);
    assert_run("mkfifo fifo; (cat fifo > got &) ; kv export fifo --quiet && test -p fifo", 0);
    assert_says("sleep 0.1; cat got", 0, "through");
    assert_run("echo old > target; ln -s target link; kv export link --quiet && test -L link", 0);
    assert_says("cat target", 0, "through");
    assert_says("kv export /dev/stdout --quiet | cat", 0, "through");
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(values_are_put_got_and_deleted),
        T(conditions_and_times_can_be_given),
        T(whoever_reads_no_more_ends_it_without_a_word),
        T(variables_of_the_server_are_none_of_the_client),
        T(usage_errors_end_with_2),
        T(errors_are_json_where_results_are),
        T(a_password_can_be_given_in_each_way),
        T(nobody_there_ends_with_3),
        T(help_and_version_are_shown),
        T(a_batch_says_whether_it_is_atomic),
        T(a_scan_lists_what_is_asked_for),
        T(what_is_exported_imports_the_same),
        T(import_reports_each_line_that_fails),
        T(the_last_line_of_a_key_wins),
        T(import_survives_lost_connections),
        T(the_state_is_shown_and_judged),
        T(a_server_that_does_not_answer_ends_with_1),
        T(lines_of_a_pipe_are_run_like_the_prompt),
        T(the_prompt_completes_and_remembers),
        T(the_prompt_gives_help),
        T(an_interrupt_clears_the_line_at_the_prompt),
        T(an_export_writes_through_what_is_no_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
