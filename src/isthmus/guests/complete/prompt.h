/*
 * The prompt: prefilled into the session, or scored token by token. What comes after the first
 * picture or sound of a prompt is not remembered for other ones.
 */
#ifndef COMPLETE_PROMPT_H
#define COMPLETE_PROMPT_H

#include "agent.h"
#include "line.h"
#include "media/media.h"
#include "request.h"
#include "session.h"

#define MOST_SCORED 32           /* tokens of the prompt that are scored in one pass */
#define SCORES_NBYTES (8u << 20) /* of their logits, where as many fit */

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* How many of `n` tokens that a prompt of `n_ids` has in common with the session may be kept. */
static uint32_t keep(uint32_t n, uint32_t n_ids)
{
    uint32_t end = min_u32(n_ids, n_fine);
    n = min_u32(n, min_u32(n_prefilled, n_ids - 1));
    if (n >= n_fine)
        return n - (n - n_fine) % BLOCK;
    return n > 0 && n == end - 1 ? n - 1 : n; /* a single token is computed in another way */
}

/* Tokens of the chunk that begins at token `at`; never the last but one of the small ones. */
static uint32_t chunk_at(uint32_t at, uint32_t n_ids)
{
    if (at >= n_fine)
        return min_u32(BLOCK, n_ids - at);
    uint32_t left = min_u32(n_ids, n_fine) - at;
    return left == SMALL + 1 ? SMALL - 1 : min_u32(SMALL, left);
}

/* How many ids are tokens, from `at` on, before a file's id or the end. */
static uint32_t run_at(const request_t *request, uint32_t at)
{
    uint32_t n = 0;
    while (at + n < request->n_ids && request->ids[at + n] >= 0)
        n++;
    return n;
}

/* Tells that a file of the prompt cannot be taken, and why. Returns a negative errno. */
static int32_t refuse_file(int32_t id, int32_t status)
{
    AGENT_TEXT_FREED agent_text_t line = {0};
    if (status == -ISTHMUS_ECANCELED)
        return status;
    agent_text_append_string(&line, "refused ");
    agent_text_append_int(&line, -2 - id);
    agent_text_append_string(&line, " ");
    agent_text_append_int(&line, -status);
    AGENT_TRY(agent_text_append_string(&line, "\n"));
    AGENT_TRY(agent_emit(line.bytes));
    return status;
}

/* Appends what comes after the first `at` ids: files, and tokens between them. */
static int32_t prefill_rest(const request_t *request, uint32_t at)
{
    while (at < request->n_ids) {
        uint32_t n = run_at(request, at), nbytes;
        AGENT_TRY(n ? agent_prefill(&session, request->ids + at, n) : 0);
        at += n;
        if (at == request->n_ids)
            break;
        const char *file = file_of(request, request->ids[at], &nbytes);
        int32_t status = file ? agent_append_file(&session, file, nbytes) : -ISTHMUS_EINVAL;
        if (status < 0)
            return refuse_file(request->ids[at], status);
        at++;
    }
    return 0;
}

/* Truncates the session to at most `n` tokens that may be kept. Returns how many those are. */
static int32_t keep_fitting(uint32_t n, uint32_t n_ids)
{
    uint32_t fitting = keep(n, n_ids);
    do {
        n = fitting;
        AGENT_SET(n, isthmus_session_reach(session.handle, n));
        fitting = keep(n, n_ids);
    } while (fitting != n);
    return agent_keep(&session, n);
}

/* Makes the session hold the prompt. Returns how many of its tokens were there. */
static int32_t prefill_prompt(const request_t *request)
{
    uint32_t n_common = 0, n_ids = run_at(request, 0), n;
    if (n_ids > session.n_ctx)
        return -ISTHMUS_ECONTEXT;
    while (n_common < min_u32(n_prefilled, n_ids)
           && session.tokens[n_common] == request->ids[n_common])
        n_common++;
    AGENT_SET(n_common, n_ids ? keep_fitting(n_common, n_ids) : agent_keep(&session, 0));
    n_prefilled = n_common;
    for (uint32_t at = n_common; at < n_ids; at += n) {
        n = chunk_at(at, n_ids);
        if (at + n == n_ids)
            AGENT_TRY(agent_checkpoint(&session));
        AGENT_TRY(agent_prefill(&session, request->ids + at, n));
        if (at < n_fine ? n > 1 : n == BLOCK)
            n_prefilled += n;
    }
    AGENT_TRY(prefill_rest(request, n_ids));
    return (int32_t)n_common;
}

/* Empties the session. */
static int32_t forget(void)
{
    n_prefilled = 0;
    return agent_truncate(&session, 0);
}

/* Emits the line of the prompt's first token, which nothing foretold. */
static int32_t emit_first(int32_t token)
{
    AGENT_TEXT_FREED agent_text_t line = {0};
    agent_text_append_string(&line, "prompt ");
    agent_text_append_int(&line, token);
    AGENT_TRY(agent_text_append_string(&line, " null\n"));
    return agent_emit(line.bytes);
}

/* Emits the prompt's tokens. Leaves the session empty. */
static int32_t score_prompt(const request_t *request)
{
    uint32_t row = session.n_vocab, most = SCORES_NBYTES / (uint32_t)sizeof(float) / row + 1, n;
    most = min_u32(MOST_SCORED, most < 2 ? 2 : most);
    AGENT_FREED float *rows = malloc((most - 1) * (size_t)row * sizeof *rows);
    if (!rows)
        return -ISTHMUS_ENOMEM;
    if (request->n_ids > session.n_ctx)
        return -ISTHMUS_ECONTEXT;
    AGENT_TRY(forget());
    AGENT_TRY(emit_first(request->ids[0]));
    for (uint32_t at = 0; at + 1 < request->n_ids; at += n) {
        float *last;
        n = min_u32(most, request->n_ids - 1 - at);
        AGENT_TRY(agent_decode_many(&session, request->ids + at, n, rows));
        AGENT_TRY(agent_logits(&session, &last));
        for (uint32_t i = 0; i < n; i++)
            AGENT_TRY(emit_line(request, "prompt ", i + 1 < n ? rows + (size_t)i * row : last,
                                request->ids[at + i + 1]));
    }
    return forget();
}

#endif
