/* SPDX-License-Identifier: MIT
 *
 * sim_sites.h -- BUGGIFY and AUDIT sites of this program are passed, or asked: base/fault.h.
 */
#ifndef DISTKV_IO_SIM_SITES_H
#define DISTKV_IO_SIM_SITES_H

#include "base/types.h"

/* From now on every site asks fault_buggify or fault_audit, or none does. Not while another thread
 * may pass one. */
void sim_sites_arm(bool armed);
/* How many there are: a site of a function that the compiler has copied is several. */
u32 sim_sites_count(void);

#endif
