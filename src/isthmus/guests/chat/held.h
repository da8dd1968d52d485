/*
 * What the session holds of a script. A file takes rows of the session, and one id of a script.
 */
#ifndef CHAT_HELD_H
#define CHAT_HELD_H

#include "script.h"

/* Forgets where files lay that end after the first `n_rows` rows. */
static void forget_files(uint32_t n_rows)
{
    for (uint32_t i = 0; i < n_files; i++)
        if (files[i].row + files[i].n_rows > n_rows)
            files[i].n_rows = 0;
}

/* As agent_keep. */
static int32_t keep_rows(uint32_t n_rows)
{
    int32_t n_left;
    AGENT_SET(n_left, agent_keep(&session, n_rows));
    forget_files((uint32_t)n_left);
    return n_left;
}

/* Rows from `row` on that the session holds of an id; 0 if it holds something else there. */
static uint32_t rows_held(int32_t id, uint32_t row)
{
    if (id >= 0)
        return row < session.n_tokens && session.tokens[row] == id;
    const file_t *file = &files[-2 - id];
    return file->row == row ? file->n_rows : 0;
}

/* How many ids lie in the session's first `most` rows, all but the last of them; `*n_rows` says in
 * how many of these. */
static uint32_t common_ids(const tokens_t *tokens, uint32_t most, uint32_t *n_rows)
{
    uint32_t n = 0, row = 0, held;
    while (n + 1 < tokens->n && (held = rows_held(tokens->ids[n], row)) && row + held <= most) {
        row += held;
        n++;
    }
    *n_rows = row;
    return n;
}

/* As common_ids, for what agent_keep can keep. */
static int32_t reach_common(const tokens_t *tokens, uint32_t *n_rows)
{
    uint32_t n, reached = session.n_tokens;
    do {
        n = common_ids(tokens, reached, n_rows);
        AGENT_SET(reached, isthmus_session_reach(session.handle, *n_rows));
    } while (reached < *n_rows);
    return (int32_t)n;
}

static int32_t append_held_file(file_t *file)
{
    uint32_t row = session.n_tokens;
    AGENT_TRY(agent_append_file(&session, file->bytes, file->nbytes));
    file->row = row;
    file->n_rows = session.n_tokens - row;
    return 0;
}

/* Appends tokens and files, from the first `at` ids on. */
static int32_t prefill_tokens(const tokens_t *tokens, uint32_t at)
{
    while (at < tokens->n) {
        uint32_t n = 0;
        while (at + n < tokens->n && tokens->ids[at + n] >= 0)
            n++;
        if (at + n == tokens->n)
            return agent_prefill_turn(&session, tokens->ids + at, n);
        AGENT_TRY(n ? agent_prefill(&session, tokens->ids + at, n) : 0);
        at += n;
        AGENT_TRY(append_held_file(&files[-2 - tokens->ids[at++]]));
    }
    return 0;
}

#endif
