/* SPDX-License-Identifier: MIT
 *
 * fault_other.c -- the second object of test_fault.c.
 */
#include "fault_shared.h"

void
other_pass(bool never)
{
    shared_pass();
    if (never) MARK("test.other.never");
}
