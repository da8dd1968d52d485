/*
 * How the next token is chosen: by biases, penalties, a grammar and the sampler, unless a thought has
 * lasted long enough and is closed.
 */
#ifndef COMPLETE_CHOICE_H
#define COMPLETE_CHOICE_H

#include "agent.h"
#include "request.h"
#include "session.h"

/* Adds the biases. Returns 0; or -ISTHMUS_EINVAL where they cannot be read or name no token. */
static int32_t apply_bias(float *logits, const char *bias)
{
    while (bias && *bias > ' ') {
        int64_t token;
        double number;
        uint32_t n_id = (uint32_t)strcspn(bias, ": "), n_number;
        AGENT_TRY(agent_parse_int(bias, n_id, 0, session.n_vocab - 1, &token));
        bias += n_id + (bias[n_id] == ':');
        n_number = (uint32_t)strcspn(bias, ", ");
        AGENT_TRY(agent_parse_float(bias, n_number, -100, 100, &number));
        logits[token] += (float)number;
        session.edited = 1;
        bias += n_number + (bias[n_number] == ',');
    }
    return 0;
}

/* Whether the answer's own tokens change what is drawn. */
static int32_t penalises(const complete_words_t *words)
{
    return words->presence_penalty != 0 || words->frequency_penalty != 0;
}

/* Notes a token of the answer. */
static int32_t count(tally_t *tally, int32_t token)
{
    uint32_t at = 0;
    while (at < tally->n && tally->each[at].token != token)
        at++;
    if (at == tally->n) {
        if (tally->n == tally->cap) {
            uint32_t cap = 2 * tally->cap + 64;
            void *each = realloc(tally->each, cap * sizeof *tally->each);
            if (!each)
                return -ISTHMUS_ENOMEM;
            tally->each = each;
            tally->cap = cap;
        }
        tally->n++;
        tally->each[at].token = token;
        tally->each[at].n = 0;
    }
    tally->each[at].n++;
    return 0;
}

/* Subtracts the penalties of tokens that the answer has. */
static void apply_penalties(const request_t *request, float *logits)
{
    const tally_t *tally = &request->tally;
    for (uint32_t i = 0; i < tally->n; i++)
        logits[tally->each[i].token] -= (float)(request->words.presence_penalty
                                                + tally->each[i].n
                                                      * request->words.frequency_penalty);
    session.edited |= tally->n > 0;
}

/* Whether a token, after those that the session has, completes the list. */
static int32_t completes(const ids_t *ids, int32_t token)
{
    uint32_t before = ids->n - 1;
    return ids->n > 0 && ids->ids[before] == token && session.n_tokens >= before
        && memcmp(session.tokens + session.n_tokens - before, ids->ids,
                  before * sizeof *ids->ids) == 0;
}

/* Notes a token of the answer, before the session has it. */
static void think(thought_t *thought, int32_t token)
{
    if (thought->is_open && completes(&thought->closes, token)) {
        thought->is_open = 0;
    } else if (!thought->is_open && completes(&thought->opens, token)) {
        thought->is_open = 1;
        thought->n = 0;
    } else if (thought->is_open) {
        thought->n++;
    }
}

/* Whether the next token is one that closes a thought; then it is in `*token`. */
static int32_t closing(thought_t *thought, int32_t *token)
{
    if (!thought->n_closing) {
        if (!thought->is_open || thought->most < 0 || thought->n < thought->most)
            return 0;
        thought->n_closing = thought->close.n;
        thought->is_open = 0;
    }
    *token = thought->close.ids[thought->close.n - thought->n_closing--];
    return 1;
}

/* Chooses the next token. Returns 1, or 0 if the answer ends here: with `*token`, if it is set. */
static int32_t choose(request_t *request, int32_t grammar, float *logits, int32_t *token)
{
    int32_t more, flags;
    if (closing(&request->thought, token)) {
        AGENT_TRY(agent_grammar_accept(grammar, *token));
        return 1;
    }
    apply_penalties(request, logits);
    AGENT_TRY(apply_bias(logits, request->words.bias));
    AGENT_SET(more, agent_grammar_mask(grammar, &session));
    if (!more)
        return 0;
    AGENT_SET(*token, agent_session_sample(&session, &request->sampler));
    AGENT_SET(flags, isthmus_token_flags(session.model, *token));
    if (flags & ISTHMUS_TOKEN_EOG && !request->words.ignore_eos)
        return 0;
    AGENT_TRY(agent_grammar_accept(grammar, *token));
    think(&request->thought, *token);
    return 1;
}

#endif
