/*
 * What was said: turns, with the pictures and sounds that came with them. Files are kept, so that all
 * of it can be prefilled again.
 */
#ifndef CHAT_TURNS_H
#define CHAT_TURNS_H

#include "media/files.h"

#define PLACEHOLDER_NBYTES 32 /* hexadecimal digits of 16 random bytes */

typedef struct {
    const char *role;
    agent_text_t content;
    char placeholder[PLACEHOLDER_NBYTES + 1]; /* what the template gets instead, or empty */
    uint32_t first_file, n_files;             /* before the content */
} turn_t;

static agent_session_t session;
static isthmus_model_info_t info;
static turn_t *turns;
static uint32_t n_turns, turns_cap;
static agent_files_t files; /* those of the whole conversation, in their order */

static void drop_last_turn(void)
{
    turn_t *turn = &turns[--n_turns];
    agent_files_drop(&files, turn->first_file);
    agent_text_free(&turn->content);
}

/* Gives the turn a placeholder if there are control tokens in its content, or files before it. */
static int32_t guard(turn_t *turn)
{
    AGENT_FREED int32_t *plain = NULL, *parsed = NULL;
    const agent_text_t *content = &turn->content;
    int32_t n_plain, n_parsed;
    AGENT_SET(n_plain, agent_tokenize(session.model, content->bytes, content->nbytes, 0, &plain));
    AGENT_SET(n_parsed, agent_tokenize(session.model, content->bytes, content->nbytes,
                                       ISTHMUS_TOKENIZE_PARSE_SPECIAL, &parsed));
    if (!turn->n_files && n_plain == n_parsed
        && memcmp(plain, parsed, (size_t)n_plain * sizeof *plain) == 0)
        return 0;
    uint8_t random[PLACEHOLDER_NBYTES / 2];
    AGENT_TRY(isthmus_random(random, sizeof random));
    for (uint32_t i = 0; i < PLACEHOLDER_NBYTES; i++)
        turn->placeholder[i] = "0123456789abcdef"[random[i / 2] >> i % 2 * 4 & 15];
    return 0;
}

/* Takes the files before a message's text, if it begins with a zero byte: each with its length, 32
 * bits, before it, up to a length of zero. Returns how many there are. */
static int32_t take_files(const char **bytes, uint32_t *nbytes)
{
    const char *file;
    uint32_t size;
    int32_t more;
    if (!*nbytes || **bytes)
        return 0;
    if (!(info.flags & ISTHMUS_MODEL_CHAT_TEMPLATE))
        return -ISTHMUS_ENOTSUP;
    ++*bytes;
    --*nbytes;
    for (int32_t n = 0;; n++) {
        AGENT_SET(more, agent_next_file(bytes, nbytes, &file, &size));
        if (!more)
            return n;
        AGENT_TRY(agent_files_add(&files, file, size));
    }
}

/* Remembers what someone said, with the files before it if it may have any. Bytes that are not UTF-8
 * become U+FFFD. */
static int32_t add_said(const char *role, int32_t has_files, const char *bytes, uint32_t nbytes)
{
    if (n_turns == turns_cap) {
        uint32_t cap = 2 * turns_cap + 8;
        turn_t *room = realloc(turns, cap * sizeof *room);
        if (!room)
            return -ISTHMUS_ENOMEM;
        turns = room;
        turns_cap = cap;
    }
    turn_t *turn = &turns[n_turns++];
    *turn = (turn_t){.role = role, .first_file = files.n};
    if (has_files)
        AGENT_SET(turn->n_files, take_files(&bytes, &nbytes));
    AGENT_TRY(agent_text_reserve(&turn->content, nbytes));
    AGENT_TRY(agent_text_append_utf8(&turn->content, bytes, nbytes));
    return guard(turn);
}

/* Remembers a text of anybody's: the model's may begin with any byte. */
static int32_t add_turn(const char *role, const char *bytes, uint32_t nbytes)
{
    return add_said(role, 0, bytes, nbytes);
}

/* Remembers a message, which may begin with files. */
static int32_t add_asked(const char *bytes, uint32_t nbytes)
{
    return add_said("user", 1, bytes, nbytes);
}

#endif
