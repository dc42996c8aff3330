/* SPDX-License-Identifier: MIT
 *
 * host_config.h -- where option values come from: the config file, the environment, the flags, and
 * for what none of them says, the machine. See config.h for the options themselves.
 */
#ifndef DISTKV_SERVER_HOST_CONFIG_H
#define DISTKV_SERVER_HOST_CONFIG_H

#include "server/config.h"

#define HOST_CONFIG_ERROR_BYTES 512u
#define HOST_CONFIG_FILE_BYTES  (1u << 20) /* a larger file is not a config file */

/* Fills config from all sources and derives what is left open. environment ends with NULL.
 * ST_INVALID: error is a sentence for whoever typed it. When an action (config->help...) is asked
 * for, nothing is derived that could fail for another reason. */
MUST_CHECK status host_config_load(struct server_config *config, int argc, const char *const *argv,
                                   const char *const *environment, char *error, size_t error_size);

/* The parts of it, for tests. */
MUST_CHECK status host_config_parse(struct server_config *config, const char *file_name,
                                    struct bytes text, char *error, size_t error_size);
MUST_CHECK status host_config_environment(struct server_config *config,
                                          const char *const *environment, char *error,
                                          size_t error_size);
MUST_CHECK status host_config_flags(struct server_config *config, int argc, const char *const *argv,
                                    char *error, size_t error_size);

/* Cores and memory that the machine (and the control group) gives to this process. */
struct host_machine {
    u32 cores[LIMIT_SHARDS];
    u32 core_count;
    u64 memory_bytes;
};
void host_config_machine(struct host_machine *machine);
/* cores and memory where they are not given. A core needs CONFIG_MEMORY_MIN, and the processor quota
 * of a control group does not show in its number of cores: half of the memory goes round. */
MUST_CHECK status host_config_derive(struct server_config *config,
                                     const struct host_machine *machine, char *error,
                                     size_t error_size);

/* Prints all options with their values and where each comes from, as a config file. */
void host_config_print(const struct server_config *config);

#endif
