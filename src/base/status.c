/* SPDX-License-Identifier: MIT
 *
 * status.c -- texts and names of statuses, made from the one list in status.h so that they cannot
 * drift apart from the codes.
 */
#include "base/status.h"

static const char *const status_texts[STATUS_CODE_COUNT] = {
#define X(name, text) text,
    STATUS_LIST(X)
#undef X
};

static const char *const status_names[STATUS_CODE_COUNT] = {
#define X(name, text) #name,
    STATUS_LIST(X)
#undef X
};

const char *
status_text(status st)
{
    CHECK(st.code >= 0 && st.code < STATUS_CODE_COUNT);
    return status_texts[st.code];
}

const char *
status_name(status st)
{
    CHECK(st.code >= 0 && st.code < STATUS_CODE_COUNT);
    return status_names[st.code];
}
