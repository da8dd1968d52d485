/*
 * The prompt: counted, prefilled into the session, or scored token by token.
 */
#ifndef COMPLETE_PROMPT_H
#define COMPLETE_PROMPT_H

#include "agent.h"
#include "line.h"
#include "request.h"
#include "session.h"

#define MOST_SCORED 32           /* tokens of the prompt that are scored in one pass */
#define SCORES_NBYTES (8u << 20) /* of their logits, where as many fit */

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* How many of `n` tokens that a prompt has in common with the session, in its first run of `n_run`
 * tokens, may be kept. */
static uint32_t keep_of_first_run(uint32_t n, uint32_t n_run)
{
    uint32_t end = min_u32(n_run, n_fine);
    if (n >= n_fine)
        return n - (n - n_fine) % BLOCK;
    return n > 0 && n == end - 1 ? n - 1 : n; /* a single token is computed in another way */
}

/* What may be kept of what a prompt has in common with the session's first `most` rows. */
static agent_common_t keepable(const request_t *request, uint32_t most)
{
    agent_common_t common = agent_common(&session, &files, request->ids, request->n_ids,
                                         min_u32(most, n_prefilled));
    uint32_t n = common.n_ids - common.run_ids, n_run = agent_run(request->ids, request->n_ids, 0);
    n = common.run_ids ? n - n % BLOCK : keep_of_first_run(n, n_run);
    common.n_ids = common.run_ids + n;
    common.n_rows = common.run_rows + n;
    return common;
}

/* Tokens of the chunk that begins at token `at` of a run up to `end`; of the first run never the last
 * but one of the small ones. */
static uint32_t chunk_at(uint32_t at, uint32_t end, int32_t is_first)
{
    if (!is_first || at >= n_fine)
        return min_u32(BLOCK, end - at);
    uint32_t left = min_u32(end, n_fine) - at;
    return left == SMALL + 1 ? SMALL - 1 : min_u32(SMALL, left);
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

/* Sets `*n` to the tokens that the prompt takes. Nothing is computed. */
static int32_t count_prompt(const request_t *request, uint32_t *n)
{
    AGENT_FILES_FREED agent_files_t counted = {0};
    AGENT_TRY(copy_files(request, &counted));
    *n = 0;
    for (uint32_t i = 0; i < request->n_ids; i++) {
        const agent_file_t *file = agent_files_find(&counted, request->ids[i]);
        int32_t n_rows = request->ids[i] < 0 ? -ISTHMUS_EINVAL : 1;
        if (file) {
            const agent_file_t *held = held_file(file->bytes, file->nbytes);
            n_rows = held ? (int32_t)held->n_rows
                          : agent_count_file(session.model, file->bytes, file->nbytes);
        }
        if (n_rows < 0)
            return refuse_file(request->ids[i], n_rows);
        *n += (uint32_t)n_rows;
    }
    return 0;
}

/* Truncates the session to what may be kept of it for the prompt, and sets `*kept` to that. */
static int32_t keep_fitting(const request_t *request, agent_common_t *kept)
{
    uint32_t reached = session.n_tokens;
    do {
        *kept = keepable(request, reached);
        AGENT_SET(reached, isthmus_session_reach(session.handle, kept->n_rows));
    } while (reached < kept->n_rows);
    return agent_files_keep(&files, &session, kept->n_rows);
}

/* Appends the tokens of a run, from id `at` to `end`. */
static int32_t prefill_run(const request_t *request, uint32_t at, uint32_t end, int32_t is_first)
{
    for (uint32_t n; at < end; at += n) {
        n = chunk_at(at, end, is_first);
        if (at + n == request->n_ids)
            AGENT_TRY(agent_checkpoint(&session));
        AGENT_TRY(agent_prefill(&session, request->ids + at, n));
        if (is_first && at < n_fine ? n > 1 : n == BLOCK)
            n_prefilled += n;
    }
    return 0;
}

/* Makes the session hold the prompt. Returns how many of its rows were there. */
static int32_t prefill_prompt(const request_t *request)
{
    agent_common_t kept;
    uint32_t n_ids = request->n_ids;
    if (n_ids > session.n_ctx)
        return -ISTHMUS_ECONTEXT;
    AGENT_TRY(take_files(request));
    AGENT_TRY(keep_fitting(request, &kept));
    n_prefilled = kept.n_rows;
    int32_t is_first = kept.run_ids == 0;
    for (uint32_t at = kept.n_ids; at < n_ids; at++) {
        uint32_t end = at + agent_run(request->ids, n_ids, at);
        AGENT_TRY(prefill_run(request, at, end, is_first));
        if ((at = end) == n_ids)
            break;
        agent_file_t *file = agent_files_find(&files, request->ids[at]);
        int32_t status = file ? agent_append_held(&session, file) : -ISTHMUS_EINVAL;
        if (status < 0)
            return refuse_file(request->ids[at], status);
        n_prefilled = session.n_tokens;
        is_first = 0;
    }
    return (int32_t)kept.n_rows;
}

/* Empties the session. */
static int32_t forget(void)
{
    n_prefilled = 0;
    return agent_files_keep(&files, &session, 0);
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
