/* SPDX-License-Identifier: MIT
 *
 * fuzz_config.c -- a config file of any bytes is accepted or refused with a sentence; what was
 * accepted is within its bounds and reads back as it was written.
 */
#include "server/host_config.h"

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

int
LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    static struct server_config config, again;
    char error[HOST_CONFIG_ERROR_BYTES] = "";
    if (size > HOST_CONFIG_FILE_BYTES) return 0;
    config_init(&config);
    status st = host_config_parse(&config, "fuzz", BYTES(data, size), error, sizeof(error));
    if (!ok(st)) {
        CHECK(error[0] != '\0');
        return 0;
    }
    config_init(&again);
    for (u32 i = 0; i < config_table.count; i++) {
        char value[OPTION_TEXT_BYTES];
        const struct option *option = &config_table.options[i];
        size_t length = option_get(option, &config, value, sizeof(value));
        CHECK(length == strlen(value));
        if (config.origins[i] != CONFIG_ORIGIN_FILE) continue;
        CHECK(ok(option_set(option, &again, value, error, sizeof(error))));
        char second[OPTION_TEXT_BYTES];
        option_get(option, &again, second, sizeof(second));
        CHECK(strcmp(value, second) == 0);
    }
    config.core_count = 1;
    if (!ok(config_resolve(&config, error, sizeof(error)))) CHECK(error[0] != '\0');
    return 0;
}
