/* SPDX-License-Identifier: MIT
 *
 * cli_prompt.c -- the prompt of distkv-client: editing, history, completion (libedit).
 *
 * The history is kept in ~/.distkv_history (DISTKV_HISTFILE names another file; empty: none), which
 * only its owner may read; it is saved with each line, so that nothing ends it early. Ctrl-C clears
 * the line at hand; while a command runs it ends the program. Tab completes commands, and the
 * options of a command. When standard input is no terminal, lines are read and run the same way,
 * without a prompt; then the exit status is that of the last command that failed.
 */
#include "client/cli.h"

#include <errno.h>
#include <histedit.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PROMPT_WORDS_MAX   256
#define PROMPT_HISTORY_MAX 1000

/* libedit's callbacks carry no pointer of ours. */
static char prompt_text[OPTION_TEXT_BYTES + 16];

static char *
prompt_of(EditLine *edit)
{
    (void)edit;
    return prompt_text;
}

/* ---- completion ---- */

/* Inserts what all candidates share behind the word; shows them when there are several. */
static unsigned char
complete_from(EditLine *edit, const char *word, size_t word_size, const char *const *names,
              u32 count)
{
    size_t shared = 0;
    const char *first = NULL;
    u32 found = 0;
    for (u32 i = 0; i < count; i++) {
        if (strncmp(names[i], word, word_size) != 0) continue;
        if (found++ == 0) {
            first = names[i];
            shared = strlen(first);
        }
        size_t same = 0;
        while (same < shared && names[i][same] == first[same])
            same++;
        shared = same;
    }
    if (found == 0) return CC_REFRESH_BEEP;
    char insert[128];
    snprintf(insert, sizeof(insert), "%.*s%s", (int)(shared - word_size), first + word_size,
             found == 1 ? " " : "");
    if (insert[0] != '\0') return el_insertstr(edit, insert) == 0 ? CC_REFRESH : CC_ERROR;
    putchar('\n');
    for (u32 i = 0; i < count; i++)
        if (strncmp(names[i], word, word_size) == 0) printf("%s  ", names[i]);
    putchar('\n');
    return CC_REDISPLAY;
}

static unsigned char
on_tab(EditLine *edit, int c)
{
    (void)c;
    const LineInfo *line = el_line(edit);
    const char *word = line->cursor;
    while (word > line->buffer && word[-1] != ' ')
        word--;
    size_t word_size = (size_t)(line->cursor - word);
    const char *names[64];
    u32 count = 0;
    const char *start = line->buffer;
    while (start < word && *start == ' ')
        start++;
    size_t first_size = strcspn(start, " ");
    bool help = first_size == 4 && strncmp(start, "help", 4) == 0;
    if (start == word || (help && word_size > 0 && word[0] != '-') || (help && word_size == 0)) {
        for (u32 i = 0; i < cli_command_count && count < ARRAY_COUNT(names); i++)
            names[count++] = cli_commands[i].name;
        if (!help) {
            names[count++] = "quit";
            names[count++] = "exit";
        }
        return complete_from(edit, word, word_size, names, count);
    }
    const char *second = start + first_size + strspn(start + first_size, " ");
    if (first_size == 7 && strncmp(start, "cluster", 7) == 0 && second >= word) {
        for (u32 i = 0; count < ARRAY_COUNT(names) && cli_cluster_function(i) != NULL; i++)
            names[count++] = cli_cluster_function(i);
        return complete_from(edit, word, word_size, names, count);
    }
    if (word_size == 0 || word[0] != '-') return CC_REFRESH_BEEP;
    char name[32];
    snprintf(name, sizeof(name), "%.*s", (int)MIN(first_size, sizeof(name) - 1), start);
    const struct cli_command *command = cli_command_find(name);
    if (command == NULL) return CC_REFRESH_BEEP;
    u32 dashes = word_size > 1 && word[1] == '-' ? 2 : 1;
    for (u32 i = 0; i < command->option_count && count < ARRAY_COUNT(names); i++)
        names[count++] = command->options[i].name;
    return complete_from(edit, word + dashes, word_size - dashes, names, count);
}

/* ---- running lines ---- */

/* False: quit. */
static bool
run_line(struct cli *cli, char *line, int *exit_code)
{
    char *words[PROMPT_WORDS_MAX];
    size_t sizes[PROMPT_WORDS_MAX];
    int count = text_split(line, words, sizes, PROMPT_WORDS_MAX);
    if (count == 0 || (count > 0 && words[0][0] == '#')) return true;
    if (count < 0) {
        *exit_code = cli_usage(cli, count == -1 ? "unbalanced quotes" : "too many words");
        return true;
    }
    for (int i = 0; i < count; i++) {
        if (strlen(words[i]) == sizes[i]) continue;
        *exit_code = cli_usage(cli, "a zero byte in a word: give --escapes and write \\\\x00");
        return true;
    }
    if (strcmp(words[0], "quit") == 0 || strcmp(words[0], "exit") == 0) return false;
    int code = cli_run(cli, count, words);
    if (code != EXIT_OK) *exit_code = code;
    return true;
}

static int
run_lines(struct cli *cli)
{
    char *line = NULL;
    size_t capacity = 0;
    int exit_code = EXIT_OK;
    ssize_t size;
    while ((size = getline(&line, &capacity, stdin)) >= 0) {
        if (memchr(line, '\0', (size_t)size) != NULL)
            exit_code =
                cli_usage(cli, "a line holds a zero byte: give --escapes and write \\\\x00");
        else if (!run_line(cli, line, &exit_code))
            break;
    }
    if (ferror(stdin)) {
        cli_error(cli, "cannot read standard input");
        exit_code = EXIT_SERVER;
    }
    free(line);
    return exit_code;
}

static void
history_path(char *out, size_t size)
{
    const char *named = getenv("DISTKV_HISTFILE");
    const char *home = getenv("HOME");
    out[0] = '\0';
    if (named != NULL)
        snprintf(out, size, "%s", named);
    else if (home != NULL && home[0] != '\0')
        snprintf(out, size, "%s/.distkv_history", home);
}

static void
history_save(History *past, const char *path)
{
    if (path[0] == '\0') return;
    HistEvent event;
    mode_t mask = umask(0077);
    history(past, &event, H_SAVE, path);
    umask(mask);
}

static volatile sig_atomic_t interrupted;

static void
on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

/* The next line, or NULL at the end. libedit gives the terminal back and raises the signal again
 * for us; its read then fails, and the line starts anew. */
static const char *
prompt_line(EditLine *edit, int *size)
{
    struct sigaction clear = {.sa_handler = on_interrupt}, before;
    sigemptyset(&clear.sa_mask);
    sigaction(SIGINT, &clear, &before);
    const char *line;
    do {
        interrupted = 0;
        line = el_gets(edit, size);
        if (line == NULL && interrupted) putchar('\n');
    } while (line == NULL && interrupted);
    sigaction(SIGINT, &before, NULL);
    return *size > 0 ? line : NULL;
}

static int
run_prompt(struct cli *cli)
{
    char path[4096];
    HistEvent event;
    history_path(path, sizeof(path));
    EditLine *edit = el_init("distkv-client", stdin, stdout, stderr);
    History *past = history_init();
    if (edit == NULL || past == NULL) {
        cli_error(cli, "cannot open the prompt");
        if (edit != NULL) el_end(edit);
        if (past != NULL) history_end(past);
        return EXIT_SERVER;
    }
    history(past, &event, H_SETSIZE, PROMPT_HISTORY_MAX);
    history(past, &event, H_SETUNIQUE, 1);
    if (path[0] != '\0') history(past, &event, H_LOAD, path);
    el_set(edit, EL_PROMPT, prompt_of);
    el_set(edit, EL_SIGNAL, 1);
    el_set(edit, EL_EDITOR, "emacs");
    el_set(edit, EL_HIST, history, past);
    el_set(edit, EL_ADDFN, "distkv-complete", "complete a command or an option", on_tab);
    el_set(edit, EL_BIND, "^I", "distkv-complete", NULL);
    el_set(edit, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_source(edit, NULL);

    int ignored = EXIT_OK;
    int size;
    const char *line;
    while ((line = prompt_line(edit, &size)) != NULL) {
        if (strspn(line, " \t\n") != (size_t)size) {
            history(past, &event, H_ENTER, line);
            history_save(past, path);
        }
        char *copy = strdup(line);
        bool more = copy != NULL && run_line(cli, copy, &ignored);
        free(copy);
        fflush(stdout);
        if (!more) break;
    }
    if (line == NULL) putchar('\n');
    history_end(past);
    el_end(edit);
    return EXIT_OK;
}

int
cli_prompt(struct cli *cli)
{
    cli->prompt = true;
    if (!isatty(STDIN_FILENO)) return run_lines(cli);
    cli->set = cli->global;
    int code = cli_connect(cli);
    if (code != EXIT_OK) return code;
    struct distkv_server_info info;
    if (distkv_server(cli->kv, &info) == DISTKV_OK)
        printf("DistKV %s, node %s. \"help\" lists the commands, Tab completes them.\n",
               info.version, info.node_id);
    snprintf(prompt_text, sizeof(prompt_text), "distkv %.200s> ", cli->global.server);
    return run_prompt(cli);
}
