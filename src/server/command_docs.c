/* SPDX-License-Identifier: MIT
 *
 * command_docs.c -- what COMMAND INFO and COMMAND DOCS say of a command, made from its row.
 *
 * The arguments are kept as one line of syntax:
 *
 *   key                    a name: its type follows from the word
 *   EX seconds             a token in capitals and what it introduces
 *   GET                    a token alone
 *   [ ... ]  ( ... )       optional, a group
 *   a|b                    one of them
 *   x...                   once or more
 *
 * parsed here into nodes of a fixed pool; no line in the table has more.
 */
#include "server/command_table.h"

#include <ctype.h>

#include "proto/resp.h"
#include "server/number.h"

enum node_kind { NODE_WORD, NODE_TOKEN, NODE_BLOCK, NODE_ONE_OF };

struct node {
    enum node_kind kind;
    const char *name;
    u32 name_size;
    const char *token; /* in front of a word */
    u32 token_size;
    bool optional, multiple;
    u8 children[12]; /* indices */
    u32 child_count;
};

#define NODES_MAX 48u
#define DEPTH_MAX 6u

struct parse {
    const char *at;
    struct node nodes[NODES_MAX];
    u32 count;
    u32 depth;
};

static bool
word_char(char c)
{
    return isalnum((unsigned char)c) || c == '-' || c == ':' || c == '/' || c == '_';
}

static u32
new_node(struct parse *p, enum node_kind kind)
{
    CHECK(p->count < NODES_MAX);
    p->nodes[p->count] = (struct node){.kind = kind};
    return p->count++;
}

static void
add_child(struct parse *p, u32 parent, u32 child)
{
    struct node *node = &p->nodes[parent];
    CHECK(node->child_count < ARRAY_COUNT(node->children));
    node->children[node->child_count++] = (u8)child;
}

static u32 parse_choice(struct parse *p);

/* One word, token with its word, or group. */
static u32
parse_item(struct parse *p)
{
    u32 index;
    if (*p->at == '[' || *p->at == '(') {
        bool optional = *p->at == '[';
        p->at++;
        index = parse_choice(p);
        p->at++; /* the bracket that closes */
        p->nodes[index].optional |= optional;
    } else {
        const char *start = p->at;
        while (word_char(*p->at))
            p->at++;
        bool token = isupper((unsigned char)*start) != 0;
        index = new_node(p, token ? NODE_TOKEN : NODE_WORD);
        p->nodes[index].name = start;
        p->nodes[index].name_size = (u32)(p->at - start);
        bool introduces =
            token && p->at[0] == ' ' && (islower((unsigned char)p->at[1]) || p->at[1] == '(');
        if (introduces) {
            p->at++;
            u32 what = parse_item(p);
            p->nodes[what].token = start;
            p->nodes[what].token_size = p->nodes[index].name_size;
            return what;
        }
    }
    if (strncmp(p->at, "...", 3) == 0) {
        p->nodes[index].multiple = true;
        p->at += 3;
    }
    return index;
}

/* Items up to the end of the group or the next bar. */
static u32
parse_sequence(struct parse *p)
{
    u32 first = parse_item(p);
    if (*p->at != ' ') return first;
    u32 block = new_node(p, NODE_BLOCK);
    add_child(p, block, first);
    while (*p->at == ' ') {
        p->at++;
        add_child(p, block, parse_item(p));
    }
    return block;
}

static u32
parse_choice(struct parse *p)
{
    CHECK(++p->depth < DEPTH_MAX);
    u32 first = parse_sequence(p);
    u32 result = first;
    if (*p->at == '|') {
        result = new_node(p, NODE_ONE_OF);
        add_child(p, result, first);
        while (*p->at == '|') {
            p->at++;
            add_child(p, result, parse_sequence(p));
        }
    }
    p->depth--;
    return result;
}

static const char *
type_of(const struct node *node)
{
    static const struct {
        const char *word, *type;
    } types[] = {
        {"key", "key"},
        {"newkey", "key"},
        {"source", "key"},
        {"destination", "key"},
        {"seconds", "integer"},
        {"milliseconds", "integer"},
        {"count", "integer"},
        {"offset", "integer"},
        {"start", "integer"},
        {"end", "integer"},
        {"increment", "integer"},
        {"decrement", "integer"},
        {"index", "integer"},
        {"cursor", "integer"},
        {"destination-db", "integer"},
        {"client-id", "integer"},
        {"protover", "integer"},
        {"numreplicas", "integer"},
        {"timeout", "integer"},
        {"pattern", "pattern"},
        {"unix-time-seconds", "unix-time"},
        {"unix-time-milliseconds", "unix-time"},
    };
    switch (node->kind) {
    case NODE_TOKEN:
        return "pure-token";
    case NODE_BLOCK:
        return "block";
    case NODE_ONE_OF:
        return "oneof";
    case NODE_WORD:
        break;
    }
    for (u32 i = 0; i < ARRAY_COUNT(types); i++)
        if (strlen(types[i].word) == node->name_size &&
            memcmp(types[i].word, node->name, node->name_size) == 0)
            return types[i].type;
    return "string";
}

static void
reply_lower(struct resp_writer *w, const char *text, u32 size)
{
    char lower[64];
    size = (u32)MIN(size, sizeof(lower));
    for (u32 i = 0; i < size; i++)
        lower[i] = (char)tolower((unsigned char)text[i]);
    resp_bulk(w, BYTES(lower, size));
}

/* The name of a group is that of its first named member. */
static const struct node *
named(const struct parse *p, const struct node *node)
{
    for (u32 i = 0; node->name == NULL && i < DEPTH_MAX; i++)
        node = &p->nodes[node->children[0]];
    return node;
}

static void
reply_argument(struct resp_writer *w, const struct parse *p, const struct node *node)
{
    const char *type = type_of(node);
    bool has_token = node->kind == NODE_TOKEN || node->token != NULL;
    bool is_key = strcmp(type, "key") == 0;
    bool flags = node->optional || node->multiple;
    resp_map(w, 2u + has_token + is_key + flags + (node->child_count != 0));
    const struct node *source = named(p, node);
    resp_bulk_text(w, "name");
    reply_lower(w, source->name, source->name_size);
    resp_bulk_text(w, "type");
    resp_bulk_text(w, type);
    if (is_key) {
        resp_bulk_text(w, "key_spec_index");
        bool second = (node->name_size == 6 && memcmp(node->name, "newkey", 6) == 0) ||
                      (node->name_size == 11 && memcmp(node->name, "destination", 11) == 0);
        resp_integer(w, second);
    }
    if (has_token) {
        resp_bulk_text(w, "token");
        if (node->kind == NODE_TOKEN)
            resp_bulk(w, BYTES(node->name, node->name_size));
        else
            resp_bulk(w, BYTES(node->token, node->token_size));
    }
    if (flags) {
        resp_bulk_text(w, "flags");
        resp_set(w, (u32)node->optional + node->multiple);
        if (node->optional) resp_simple(w, "optional");
        if (node->multiple) resp_simple(w, "multiple");
    }
    if (node->child_count == 0) return;
    resp_bulk_text(w, "arguments");
    resp_array(w, node->child_count);
    for (u32 i = 0; i < node->child_count; i++)
        reply_argument(w, p, &p->nodes[node->children[i]]);
}

static const char *const group_names[] = {
    [GROUP_STRING] = "string",
    [GROUP_GENERIC] = "generic",
    [GROUP_CONNECTION] = "connection",
    [GROUP_SERVER] = "server",
    [GROUP_TRANSACTIONS] = "transactions",
    [GROUP_CLUSTER] = "cluster",
    [GROUP_NATIVE] = "native",
};

void
command_reply_docs(struct resp_writer *w, const struct command *command)
{
    struct parse p;
    memset(&p, 0, sizeof(p));
    u32 subs = command_sub_count(command);
    bool arguments = command->syntax[0] != '\0';
    u32 root = 0;
    if (arguments) {
        p.at = command->syntax;
        root = parse_choice(&p);
        CHECK(*p.at == '\0');
    }
    resp_bulk_text(w, command->name);
    resp_map(w, 4u + arguments + (subs != 0));
    resp_bulk_text(w, "summary");
    resp_bulk_text(w, command->summary);
    resp_bulk_text(w, "since");
    resp_bulk_text(w, command->since);
    resp_bulk_text(w, "group");
    resp_bulk_text(w, group_names[command->group]);
    resp_bulk_text(w, "complexity");
    resp_bulk_text(w, command->complexity);
    if (arguments) {
        const struct node *node = &p.nodes[root];
        bool spread = node->kind == NODE_BLOCK && !node->optional && !node->multiple;
        resp_bulk_text(w, "arguments");
        resp_array(w, spread ? node->child_count : 1);
        if (!spread) reply_argument(w, &p, node);
        for (u32 i = 0; spread && i < node->child_count; i++)
            reply_argument(w, &p, &p.nodes[node->children[i]]);
    }
    if (subs == 0) return;
    resp_bulk_text(w, "subcommands");
    resp_map(w, subs);
    for (u32 i = 1; i <= subs; i++)
        command_reply_docs(w, command + i);
}

/* ---- COMMAND INFO ---- */

static const struct {
    u32 flag;
    const char *name;
} flag_names[] = {
    {COMMAND_WRITE, "write"},       {COMMAND_READONLY, "readonly"},
    {COMMAND_DENYOOM, "denyoom"},   {COMMAND_ADMIN, "admin"},
    {COMMAND_NOSCRIPT, "noscript"}, {COMMAND_LOADING, "loading"},
    {COMMAND_STALE, "stale"},       {COMMAND_SKIP_SLOWLOG, "skip_slowlog"},
    {COMMAND_FAST, "fast"},         {COMMAND_NO_AUTH, "no_auth"},
    {COMMAND_NO_MULTI, "no_multi"}, {COMMAND_ALLOW_BUSY, "allow_busy"},
};

#define CATEGORIES_MAX 8u

static u32
categories(const struct command *command, const char **out)
{
    u32 count = 0;
    bool all_keys = command->group == GROUP_SERVER && command->place == PLACE_FIBER &&
                    (command->flags & (COMMAND_READONLY | COMMAND_WRITE)) != 0;
    if (all_keys || (command->group == GROUP_GENERIC && command->place != PLACE_CONTAINER &&
                     !(command->flags & COMMAND_NOSCRIPT)))
        out[count++] = "keyspace";
    if (command->flags & COMMAND_READONLY) out[count++] = "read";
    if (command->flags & COMMAND_WRITE) out[count++] = "write";
    if (command->group == GROUP_STRING) out[count++] = "string";
    const u32 admin = COMMAND_ADMIN | COMMAND_ADMIN_CATEGORY;
    if (command->flags & admin) out[count++] = "admin";
    out[count++] = command->flags & COMMAND_FAST ? "fast" : "slow";
    if (command->flags & (admin | COMMAND_DANGEROUS)) out[count++] = "dangerous";
    if (command->flags & COMMAND_CONNECTION ||
        (command->group == GROUP_CONNECTION && command->place != PLACE_CONTAINER))
        out[count++] = "connection";
    if (command->group == GROUP_TRANSACTIONS) out[count++] = "transaction";
    CHECK(count <= CATEGORIES_MAX);
    return count;
}

bool
command_in_category(const struct command *command, struct bytes category)
{
    const char *names[CATEGORIES_MAX];
    u32 count = categories(command, names);
    for (u32 i = 0; i < count; i++)
        if (text_is(category, names[i])) return true;
    return false;
}

/* Calls for every word of text between separators. */
static u32
split(const char *text, char separator, struct bytes *out, u32 max)
{
    u32 count = 0;
    while (*text != '\0' && count < max) {
        const char *end = strchr(text, separator);
        size_t size = end == NULL ? strlen(text) : (size_t)(end - text);
        out[count++] = BYTES(text, size);
        text += size + (end != NULL);
    }
    return count;
}

static void
reply_words(struct resp_writer *w, struct bytes words, bool simple)
{
    struct bytes parts[8];
    char text[128];
    CHECK(words.size < sizeof(text));
    memcpy(text, words.data, words.size);
    text[words.size] = '\0';
    u32 count = split(text, ' ', parts, ARRAY_COUNT(parts));
    resp_set(w, count);
    for (u32 i = 0; i < count; i++) {
        if (!simple) {
            resp_bulk(w, parts[i]);
            continue;
        }
        char flag[32];
        memcpy(flag, parts[i].data, MIN(parts[i].size, sizeof(flag) - 1));
        flag[MIN(parts[i].size, sizeof(flag) - 1)] = '\0';
        resp_simple(w, flag);
    }
}

static void
reply_key_spec(struct resp_writer *w, const struct command *command, struct bytes flags, u32 index,
               u32 count)
{
    resp_map(w, 3);
    resp_bulk_text(w, "flags");
    reply_words(w, flags, true);
    resp_bulk_text(w, "begin_search");
    resp_map(w, 2);
    resp_bulk_text(w, "type");
    resp_bulk_text(w, "index");
    resp_bulk_text(w, "spec");
    resp_map(w, 1);
    resp_bulk_text(w, "index");
    resp_integer(w, command->first + (i32)index);
    resp_bulk_text(w, "find_keys");
    resp_map(w, 2);
    resp_bulk_text(w, "type");
    resp_bulk_text(w, "range");
    resp_bulk_text(w, "spec");
    resp_map(w, 3);
    resp_bulk_text(w, "lastkey");
    resp_integer(w, count > 1 || command->last >= 0 ? 0 : command->last);
    resp_bulk_text(w, "keystep");
    resp_integer(w, command->step);
    resp_bulk_text(w, "limit");
    resp_integer(w, 0);
}

void
command_reply_info(struct resp_writer *w, const struct command *command)
{
    resp_array(w, 10);
    resp_bulk_text(w, command->name);
    resp_integer(w, command->arity);
    u32 count = 0;
    for (u32 i = 0; i < ARRAY_COUNT(flag_names); i++)
        count += (command->flags & flag_names[i].flag) != 0;
    resp_set(w, count);
    for (u32 i = 0; i < ARRAY_COUNT(flag_names); i++)
        if (command->flags & flag_names[i].flag) resp_simple(w, flag_names[i].name);
    resp_integer(w, command->first);
    resp_integer(w, command->last);
    resp_integer(w, command->step);
    const char *names[CATEGORIES_MAX];
    count = categories(command, names);
    resp_set(w, count);
    for (u32 i = 0; i < count; i++) {
        char name[32] = "@";
        memcpy(name + 1, names[i], strlen(names[i]) + 1);
        resp_simple(w, name);
    }
    reply_words(w, BYTES(command->tips, strlen(command->tips)), false);
    struct bytes specs[2];
    u32 spec_count = split(command->key_flags, '|', specs, ARRAY_COUNT(specs));
    resp_set(w, spec_count);
    for (u32 i = 0; i < spec_count; i++)
        reply_key_spec(w, command, specs[i], i, spec_count);
    u32 subs = command_sub_count(command);
    if (subs == 0)
        resp_set(w, 0);
    else
        resp_array(w, subs);
    for (u32 i = 1; i <= subs; i++)
        command_reply_info(w, command + i);
}
