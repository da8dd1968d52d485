/*
 * The conversation as the chat template writes it, and its tokens.
 */
#ifndef CHAT_SCRIPT_H
#define CHAT_SCRIPT_H

#include "turns.h"

#define FILE_BYTE "\001" /* stands for a file in a script */

/* The whole conversation as text, and the bytes of it that may not give control tokens. */
typedef struct {
    agent_text_t text;
    struct {
        uint32_t begin, end;
        int32_t file; /* the file's number, or -1 for a content */
    } *plain; /* in order, without overlap */
    uint32_t n_plain;
} script_t;

/* Ids; -2 - i stands for file number i. */
typedef struct {
    int32_t *ids;
    uint32_t n;
} tokens_t;

static agent_text_t said;
static int32_t said_known = 1;

static void script_free(script_t *script)
{
    agent_text_free(&script->text);
    free(script->plain);
}

/* Marks what was written since `begin` as plain text, or as a file. */
static int32_t mark_plain(script_t *script, uint32_t begin, int32_t file)
{
    void *room = realloc(script->plain, (script->n_plain + 1) * sizeof *script->plain);
    if (!room)
        return -ISTHMUS_ENOMEM;
    script->plain = room;
    script->plain[script->n_plain].begin = begin;
    script->plain[script->n_plain].end = script->text.nbytes;
    script->plain[script->n_plain++].file = file;
    return 0;
}

/* The turn whose placeholder begins here, if one does. */
static const turn_t *placeholder_at(const char *bytes, uint32_t nbytes)
{
    for (uint32_t i = 0; nbytes >= PLACEHOLDER_NBYTES && i < n_turns; i++)
        if (turns[i].placeholder[0]
            && memcmp(bytes, turns[i].placeholder, PLACEHOLDER_NBYTES) == 0)
            return &turns[i];
    return NULL;
}

/* Writes a turn's files, and then its content. */
static int32_t write_turn(const turn_t *turn, script_t *script)
{
    for (uint32_t i = 0; i < turn->n_files; i++) {
        AGENT_TRY(agent_text_append(&script->text, FILE_BYTE, 1));
        AGENT_TRY(mark_plain(script, script->text.nbytes - 1, (int32_t)(turn->first_file + i)));
    }
    uint32_t begin = script->text.nbytes;
    AGENT_TRY(agent_text_append(&script->text, turn->content.bytes, turn->content.nbytes));
    return turn->content.nbytes ? mark_plain(script, begin, -1) : 0;
}

/* Writes the contents where their placeholders are. */
static int32_t replace_placeholders(const agent_text_t *written, script_t *script)
{
    for (uint32_t at = 0; at < written->nbytes;) {
        const char *bytes = written->bytes + at;
        const turn_t *turn = placeholder_at(bytes, written->nbytes - at);
        if (turn)
            AGENT_TRY(write_turn(turn, script));
        else
            AGENT_TRY(agent_text_append(&script->text, bytes, 1));
        at += turn ? PLACEHOLDER_NBYTES : 1;
    }
    return 0;
}

static int32_t write_script(script_t *script)
{
    AGENT_TRY(agent_text_append(&script->text, "", 0));
    if (!(info.flags & ISTHMUS_MODEL_CHAT_TEMPLATE)) {
        const agent_text_t *message = &turns[n_turns - 1].content;
        AGENT_TRY(agent_text_append(&script->text, said.bytes, said.nbytes));
        AGENT_TRY(agent_text_append(&script->text, message->bytes, message->nbytes));
        return mark_plain(script, 0, -1);
    }
    AGENT_TEXT_FREED agent_text_t written = {0};
    AGENT_FREED isthmus_chat_message_t *messages = malloc(n_turns * sizeof *messages);
    if (!messages)
        return -ISTHMUS_ENOMEM;
    for (uint32_t i = 0; i < n_turns; i++) {
        const turn_t *turn = &turns[i];
        messages[i] = turn->placeholder[0]
            ? agent_chat_message(turn->role, turn->placeholder, PLACEHOLDER_NBYTES)
            : agent_chat_message(turn->role, turn->content.bytes, turn->content.nbytes);
    }
    AGENT_TRY(agent_chat_template(session.model, messages, n_turns,
                                  ISTHMUS_CHAT_ADD_GENERATION_PROMPT, &written));
    return replace_placeholders(&written, script);
}

static void tokens_free(tokens_t *tokens)
{
    free(tokens->ids);
}

static int32_t append_file(tokens_t *tokens, int32_t file)
{
    int32_t *room = realloc(tokens->ids, (tokens->n + 1) * sizeof *room);
    if (!room)
        return -ISTHMUS_ENOMEM;
    tokens->ids = room;
    room[tokens->n++] = -2 - file;
    return 0;
}

static int32_t append_tokens(tokens_t *tokens, const char *bytes, uint32_t nbytes, uint32_t flags)
{
    AGENT_FREED int32_t *ids = NULL;
    uint32_t n, skipped = 0;
    AGENT_SET(n, agent_tokenize(session.model, bytes, nbytes, flags, &ids));
    /* Some templates write the BOS token that ADD_SPECIAL adds: one is enough. */
    if ((flags & ISTHMUS_TOKENIZE_ADD_SPECIAL) && n > 1 && ids[0] == info.token_bos)
        skipped = ids[1] == ids[0];
    int32_t *room = realloc(tokens->ids, (tokens->n + n + 1) * sizeof *room);
    if (!room)
        return -ISTHMUS_ENOMEM;
    tokens->ids = room;
    memcpy(room + tokens->n, ids + skipped, (n - skipped) * sizeof *room);
    tokens->n += n - skipped;
    return 0;
}

/* Tokenizes what the script says after its first `at` bytes. */
static int32_t tokenize_script(const script_t *script, uint32_t at, tokens_t *tokens)
{
    uint32_t i = 0;
    do {
        while (i < script->n_plain && script->plain[i].end <= at)
            i++;
        uint32_t end = script->text.nbytes;
        uint32_t flags = at == 0 ? ISTHMUS_TOKENIZE_ADD_SPECIAL : 0;
        if (i < script->n_plain && script->plain[i].begin <= at) {
            end = script->plain[i].end;
            if (script->plain[i].file >= 0) {
                AGENT_TRY(append_file(tokens, script->plain[i].file));
                at = end;
                continue;
            }
        } else {
            end = i < script->n_plain ? script->plain[i].begin : end;
            flags |= ISTHMUS_TOKENIZE_PARSE_SPECIAL;
        }
        AGENT_TRY(append_tokens(tokens, script->text.bytes + at, end - at, flags));
        at = end;
    } while (at < script->text.nbytes);
    return 0;
}

#endif
