/* SPDX-License-Identifier: MIT
 *
 * hiredis_client.c -- hiredis_client PORT: the C client through simple calls, pipelines, binary
 * values and a transaction. Built and run by test_clients.py. Prints "ok" lines; exit status 0 when
 * all hold.
 */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static void
strings_and_binary(redisContext *c)
{
    char value[256];
    for (int i = 0; i < 256; i++)
        value[i] = (char)i;
    redisReply *reply = redisCommand(c, "SET %b %b", "k\0\r\n", (size_t)4, value, sizeof(value));
    EXPECT(reply != NULL && reply->type == REDIS_REPLY_STATUS && strcmp(reply->str, "OK") == 0);
    freeReplyObject(reply);
    reply = redisCommand(c, "GET %b", "k\0\r\n", (size_t)4);
    EXPECT(reply != NULL && reply->type == REDIS_REPLY_STRING);
    EXPECT(reply->len == sizeof(value) && memcmp(reply->str, value, sizeof(value)) == 0);
    freeReplyObject(reply);
    reply = redisCommand(c, "GET none");
    EXPECT(reply != NULL && reply->type == REDIS_REPLY_NIL);
    freeReplyObject(reply);
    reply = redisCommand(c, "INCR %b", "k\0\r\n", (size_t)4);
    EXPECT(reply != NULL && reply->type == REDIS_REPLY_ERROR);
    freeReplyObject(reply);
    puts("ok strings");
}

static void
pipeline(redisContext *c)
{
    enum { COUNT = 10000 };
    redisReply *reply;
    for (int i = 0; i < COUNT; i++)
        EXPECT(redisAppendCommand(c, "SET p%d v%d", i, i) == REDIS_OK);
    for (int i = 0; i < COUNT; i++)
        EXPECT(redisAppendCommand(c, "GET p%d", i) == REDIS_OK);
    for (int i = 0; i < COUNT; i++) {
        EXPECT(redisGetReply(c, (void **)&reply) == REDIS_OK);
        EXPECT(reply->type == REDIS_REPLY_STATUS);
        freeReplyObject(reply);
    }
    for (int i = 0; i < COUNT; i++) {
        char expected[16];
        snprintf(expected, sizeof(expected), "v%d", i);
        EXPECT(redisGetReply(c, (void **)&reply) == REDIS_OK);
        EXPECT(reply->type == REDIS_REPLY_STRING && strcmp(reply->str, expected) == 0);
        freeReplyObject(reply);
    }
    puts("ok pipeline");
}

static void
transaction(redisContext *c)
{
    static const char *const commands[] = {"MULTI", "SET {t}a 1", "INCR {t}a", "EXEC"};
    redisReply *reply = NULL;
    for (int i = 0; i < 4; i++) {
        if (reply != NULL) freeReplyObject(reply);
        reply = redisCommand(c, commands[i]);
        EXPECT(reply != NULL && reply->type != REDIS_REPLY_ERROR);
    }
    EXPECT(reply->type == REDIS_REPLY_ARRAY && reply->elements == 2);
    EXPECT(reply->element[1]->type == REDIS_REPLY_INTEGER && reply->element[1]->integer == 2);
    freeReplyObject(reply);
    puts("ok transaction");
}

int
main(int argc, char **argv)
{
    if (argc != 2) return 2;
    struct timeval timeout = {.tv_sec = 20};
    redisContext *c = redisConnectWithTimeout("127.0.0.1", atoi(argv[1]), timeout);
    EXPECT(c != NULL && c->err == 0);
    EXPECT(redisSetTimeout(c, timeout) == REDIS_OK);
    strings_and_binary(c);
    pipeline(c);
    transaction(c);
    redisFree(c);
    return 0;
}
