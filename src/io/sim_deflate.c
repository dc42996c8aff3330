/* SPDX-License-Identifier: MIT
 *
 * sim_deflate.c -- one deflate on every machine. isa-l picks its code by the processor, and what it
 * picks finds other matches: blocks are of other sizes, other requests follow, and a seed would be
 * another history elsewhere. Its shared library asks for the parts of level 1 (lsm/codec.c) by
 * name, and a program's own definition of a name comes first; so these lead to the portable ones,
 * which are the same compiled C everywhere. Only the simulated link has this file.
 *
 * What is inflated is the same whatever code does it, so that is left to isa-l.
 */
#include "base/types.h"

/* Of isa-l, which exports them and declares them nowhere. */
void isal_deflate_icf_body_hash_hist_base(void *stream);
void isal_deflate_icf_finish_hash_hist_base(void *stream);
void *encode_deflate_icf_base(void *next, void *end, void *bits, void *tables);

#define INSTEAD __attribute__((visibility("default"), used))

INSTEAD void isal_deflate_icf_body_lvl1(void *stream);
INSTEAD void isal_deflate_icf_finish_lvl1(void *stream);
INSTEAD void *encode_deflate_icf(void *next, void *end, void *bits, void *tables);

void
isal_deflate_icf_body_lvl1(void *stream)
{
    isal_deflate_icf_body_hash_hist_base(stream);
}

void
isal_deflate_icf_finish_lvl1(void *stream)
{
    isal_deflate_icf_finish_hash_hist_base(stream);
}

void *
encode_deflate_icf(void *next, void *end, void *bits, void *tables)
{
    return encode_deflate_icf_base(next, end, bits, tables);
}
