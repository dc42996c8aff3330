/* SPDX-License-Identifier: MIT
 *
 * fault_shared.h -- a site in a header, for test_fault.c: each object has a record of its own.
 */
#ifndef DISTKV_TESTS_SIM_FAULT_SHARED_H
#define DISTKV_TESTS_SIM_FAULT_SHARED_H

#include "base/fault.h"

static inline void
shared_pass(void)
{
    MARK("test.shared.passed");
}

void other_pass(bool never);

#endif
