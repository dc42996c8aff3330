/* SPDX-License-Identifier: MIT
 *
 * fault_none.c -- production: no fault is ever injected and marks are not counted.
 */
#include "base/fault.h"

bool
fault_buggify(const struct fault_site *site)
{
    (void)site;
    return false;
}

bool
fault_audit(const struct fault_site *site)
{
    (void)site;
    return false;
}

void
fault_mark(const struct fault_site *site)
{
    (void)site;
}
