/* SPDX-License-Identifier: MIT
 *
 * redact.h -- passwords in arguments, as SLOWLOG and MONITOR show them: "(redacted)".
 *
 * The arguments of a call are handed through in order, all of them from the first on. A little
 * more is hidden than Redis hides: it reads the command as far as it is right, so that what stands
 * behind a mistake is shown there, a password as well.
 */
#ifndef DISTKV_SERVER_REDACT_H
#define DISTKV_SERVER_REDACT_H

#include "base/types.h"

struct command;

struct redactor {
    const struct command *command;
    u32 index;   /* of the next argument */
    u32 secrets; /* so many from here on are secret */
    bool plain;  /* the next one is a value, whatever it looks like */
};

/* What is to be shown of the next argument. */
struct bytes redact_next(struct redactor *redactor, struct bytes arg);

#endif
