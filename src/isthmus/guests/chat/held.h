/*
 * What the session holds of a script.
 */
#ifndef CHAT_HELD_H
#define CHAT_HELD_H

#include "script.h"

/* As agent_keep. */
static int32_t keep_rows(uint32_t n_rows)
{
    return agent_files_keep(&files, &session, n_rows);
}

/* Sets `*common` to what agent_keep can keep of the tokens. */
static int32_t reach_common(const tokens_t *tokens, agent_common_t *common)
{
    uint32_t reached = session.n_tokens;
    do {
        *common = agent_common(&session, &files, tokens->ids, tokens->n, reached);
        AGENT_SET(reached, isthmus_session_reach(session.handle, common->n_rows));
    } while (reached < common->n_rows);
    return 0;
}

/* Appends tokens and files, from the first `at` ids on. */
static int32_t prefill_tokens(const tokens_t *tokens, uint32_t at)
{
    while (at < tokens->n) {
        uint32_t n = agent_run(tokens->ids, tokens->n, at);
        if (at + n == tokens->n)
            return agent_prefill_turn(&session, tokens->ids + at, n);
        AGENT_TRY(n ? agent_prefill(&session, tokens->ids + at, n) : 0);
        at += n;
        AGENT_TRY(agent_append_held(&session, agent_files_find(&files, tokens->ids[at++])));
    }
    return 0;
}

#endif
