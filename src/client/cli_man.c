/* SPDX-License-Identifier: MIT
 *
 * cli_man.c -- distkv-client(1) from the tables of commands and options (distkv-client --help-man).
 */
#include "client/cli.h"

#include <string.h>

/* Plain text: backslashes, dashes, and a dot or quote at a line's beginning mean something to roff.
 */
static void
roff_text(const char *text)
{
    bool line_start = true;
    for (; *text != '\0'; text++) {
        if (line_start && (*text == '.' || *text == '\'')) fputs("\\&", stdout);
        if (*text == '\\')
            fputs("\\e", stdout);
        else if (*text == '-')
            fputs("\\-", stdout);
        else
            putchar(*text);
        line_start = *text == '\n';
    }
}

static void
man_option(const struct option *option)
{
    fputs(".TP\n.B \\-\\-", stdout);
    roff_text(option->name);
    if (option->kind != OPTION_BOOL) {
        fputs(" \\fI", stdout);
        roff_text(option->value_name != NULL ? option->value_name : "VALUE");
        fputs("\\fR", stdout);
    }
    putchar('\n');
    roff_text(option->help);
    if (option->kind != OPTION_BOOL && option->fallback != NULL && option->fallback[0] != '\0') {
        fputs("\nDefault: ", stdout);
        roff_text(option->fallback);
        putchar('.');
    }
    putchar('\n');
}

void
cli_man(const struct option *global, u32 global_count, const char *epilogue)
{
    printf(".TH distkv\\-client 1 \"\" \"DistKV %s\" \"User commands\"\n", DISTKV_VERSION);
    fputs(".SH NAME\ndistkv\\-client \\- talk to a DistKV server\n"
          ".SH SYNOPSIS\n.B distkv\\-client\n[OPTION]... [COMMAND [OPTION]... [WORD]...]\n"
          ".SH OPTIONS\nOptions take one dash or two, and \\-\\- ends them. These stand before or\n"
          "behind the command.\n",
          stdout);
    for (u32 i = 0; i < global_count; i++)
        man_option(&global[i]);
    fputs(".SH COMMANDS\n", stdout);
    for (u32 i = 0; i < cli_command_count; i++) {
        const struct cli_command *command = &cli_commands[i];
        fputs(".SS \"", stdout);
        roff_text(command->name);
        if (command->arguments[0] != '\0') putchar(' ');
        roff_text(command->arguments);
        fputs("\"\n", stdout);
        roff_text(command->summary);
        fputs("\n", stdout);
        for (u32 o = global_count; o < command->option_count; o++)
            man_option(&command->options[o]);
        if (command->epilogue == NULL) continue;
        fputs(".PP\n.nf\n", stdout);
        roff_text(command->epilogue);
        fputs(".fi\n", stdout);
    }
    fputs(".SH EXIT STATUS AND ENVIRONMENT\n.nf\n", stdout);
    roff_text(epilogue);
    fputs(".fi\n.SH FILES\n.TP\n~/.distkv_history\nWhat was typed at the prompt; DISTKV_HISTFILE "
          "names another file.\n.SH SEE ALSO\n.BR distkv\\-server (8)\n",
          stdout);
}
