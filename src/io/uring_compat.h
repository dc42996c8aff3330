/* SPDX-License-Identifier: MIT
 *
 * uring_compat.h -- constants of kernels newer than liburing 2.3 (Debian 12). Each is used only
 * when the running kernel says that it knows it.
 */
#ifndef DISTKV_IO_URING_COMPAT_H
#define DISTKV_IO_URING_COMPAT_H

#include <liburing.h>

#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17) /* Linux 6.15 */
#endif
#ifndef IORING_ENTER_NO_IOWAIT
#define IORING_ENTER_NO_IOWAIT (1U << 7)
#endif
#define URING_OP_FTRUNCATE 55 /* Linux 6.9; an unknown opcode completes with EINVAL */

#endif
