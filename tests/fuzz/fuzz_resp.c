/* SPDX-License-Identifier: MIT
 *
 * fuzz_resp.c -- any bytes as RESP commands and as RESP replies. Beside not crashing: the same
 * commands (or the same error) must come out when the bytes arrive in pieces.
 *
 * The first byte chooses the piece's size.
 */
#include "base/hash.h"
#include "proto/resp.h"

#include <stdlib.h>
#include <strings.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_ARGS_MAX 1024u

struct outcome {
    enum resp_result result; /* of the last call */
    u32 commands;
    u64 digest; /* of all arguments */
};

/* What the short way takes must be what the long way has found. */
static void
check_plain(const struct resp_parser *parser, struct bytes data, size_t have, size_t consumed)
{
    struct resp_plain plain;
    if (!resp_parse_plain(BYTES(data.data, have), &plain)) return;
    CHECK(plain.size == consumed && parser->arg_count == (plain.set ? 3 : 2));
    struct bytes name = resp_arg(parser, data, 0);
    CHECK(name.size == 3 &&
          strncasecmp((const char *)name.data, plain.set ? "set" : "get", 3) == 0);
    CHECK(bytes_equal(resp_arg(parser, data, 1), plain.key));
    CHECK(!plain.set || bytes_equal(resp_arg(parser, data, 2), plain.value));
    CHECK(plain.key.size > 0 && plain.key.size <= LIMIT_KEY_BYTES);
}

static struct outcome
parse_all(struct bytes data, size_t piece_size)
{
    struct budget budget;
    budget_init(&budget, "fuzz", MIB(64), NULL);
    struct resp_parser parser;
    resp_parser_init(&parser, &budget);
    struct outcome outcome = {.result = RESP_INCOMPLETE};
    size_t have = 0;
    while (true) {
        size_t consumed = 0, wanted = 0;
        outcome.result = resp_parse(&parser, BYTES(data.data, have), FUZZ_ARGS_MAX,
                                    RESP_BULK_BYTES_MAX, &consumed, &wanted);
        if (outcome.result == RESP_COMMAND) {
            CHECK(consumed > 0 && consumed <= have);
            outcome.commands++;
            check_plain(&parser, data, have, consumed);
            for (u32 i = 0; i < parser.arg_count; i++) {
                struct bytes arg = resp_arg(&parser, data, i);
                outcome.digest = hash_bytes(arg.data, arg.size, outcome.digest + 1);
            }
            data = BYTES(data.data + consumed, data.size - consumed);
            have -= consumed;
        } else if (outcome.result == RESP_INCOMPLETE) {
            CHECK(wanted > have);
            if (have == data.size) break;
            have = MIN(data.size, have + piece_size);
        } else {
            break;
        }
    }
    resp_parser_deinit(&parser);
    CHECK(budget.used_bytes == 0);
    return outcome;
}

static void
read_replies(struct bytes data)
{
    while (data.size > 0) {
        struct resp_reply reply;
        size_t consumed = 0;
        if (!ok(resp_read(data, &reply, &consumed))) return;
        CHECK(consumed > 0 && consumed <= data.size);
        data = BYTES(data.data + consumed, data.size - consumed);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    struct bytes bytes = BYTES(data + 1, size - 1);
    struct outcome whole = parse_all(bytes, MAX(bytes.size, 1));
    struct outcome pieces = parse_all(bytes, (size_t)data[0] + 1);
    CHECK(whole.result == pieces.result);
    CHECK(whole.commands == pieces.commands);
    CHECK(whole.digest == pieces.digest);
    read_replies(bytes);
    return 0;
}
