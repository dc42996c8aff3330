/* SPDX-License-Identifier: MIT
 *
 * redact.c -- see redact.h.
 */
#include "server/redact.h"

#include "server/command_table.h"
#include "server/number.h"

/* Redis' options that hold secrets. Most are unknown here, and the attempt to set one is logged
 * all the same. */
static bool
names_secret(struct bytes name)
{
    static const char *const names[] = {"requirepass", "masterauth", "masteruser",
                                        "tls-key-file-pass", "tls-client-key-file-pass"};
    for (u32 i = 0; i < ARRAY_COUNT(names); i++)
        if (text_is(name, names[i])) return true;
    return false;
}

struct bytes
redact_next(struct redactor *redactor, struct bytes arg)
{
    void (*handler)(struct exec * x) = redactor->command->handler;
    u32 i = redactor->index++;
    if (redactor->secrets > 0) {
        redactor->secrets--;
        return BYTES_LITERAL("(redacted)");
    }
    if (redactor->plain) {
        redactor->plain = false;
    } else if (handler == cmd_auth) { /* AUTH [user] password */
        redactor->secrets = UINT32_MAX;
    } else if (handler == cmd_hello && i >= 2) { /* HELLO version [AUTH user password] ... */
        redactor->secrets = text_is(arg, "auth") ? 2 : 0;
        redactor->plain = text_is(arg, "setname");
    } else if (handler == cmd_config_set && i >= 2) { /* CONFIG SET name value ... */
        redactor->secrets = names_secret(arg);
        redactor->plain = !redactor->secrets;
    }
    return arg;
}
