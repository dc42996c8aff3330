/* SPDX-License-Identifier: MIT
 *
 * core_op.c -- what of a transfer is left after a request that the kernel or the disk stopped
 * short. Both backends ask here, so the simulator's seeds meet what the server does.
 */
#include "base/fault.h"
#include "io/core.h"
#include "io/file.h"

bool
core_op_advance(struct io_op *op, u32 moved, u32 unit)
{
    CHECK(moved <= op->size - op->transferred);
    u32 before = op->transferred;
    op->transferred += moved;
    if (op->transferred < op->size) {
        if (moved % unit != 0) MARK("io.core_op.block_again");
        op->transferred = (u32)align_down(op->transferred, unit);
    }
    if (op->transferred < op->size && op->transferred > before) MARK("io.core_op.part");
    return op->transferred > before;
}
