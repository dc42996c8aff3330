/* SPDX-License-Identifier: MIT
 *
 * fault_none.c -- production: no fault is ever injected and marks are not counted.
 */
#include "base/fault.h"

bool
fault_buggify(const char *site)
{
    (void)site;
    return false;
}

void
fault_mark(const char *mark)
{
    (void)mark;
}
