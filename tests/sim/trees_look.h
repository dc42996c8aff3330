/* SPDX-License-Identifier: MIT
 *
 * trees_look.h -- how a test looks at a hash tree of a node that may be stopped meanwhile.
 */
#ifndef DISTKV_TESTS_TREES_LOOK_H
#define DISTKV_TESTS_TREES_LOOK_H

#include "cluster/trees_internal.h"

/* False: they are being closed. A look may wait, for a scan; who closes them waits until nobody
 * looks any more. */
MAY_YIELD static inline bool
trees_look(struct trees *t, u16 keyspace, struct tree_view *view)
{
    if (t->closing) return false;
    t->serving++;
    trees_view(t, keyspace, view, 1);
    t->serving--;
    fiber_queue_wake_all(&t->idle);
    return true;
}

#endif
