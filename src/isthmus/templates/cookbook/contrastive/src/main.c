/*
 * contrastive: says what a good model finds probable and a poor one does not.
 *
 * Both read the same tokens, each in a session of its own. Of the tokens that the good model gives at
 * least `alpha` times the probability of its best one, the next is the one whose logit exceeds
 * `beta` times the poor model's by most. Options: amateur=amateur (the poor model's name), alpha=0.1,
 * beta=0.5, max_tokens=64.
 */
#include <math.h>

#include "conversation.h"

static agent_session_t expert, amateur;
static int64_t max_tokens = 64;
static float alpha = 0.1f, beta = 0.5f;

static int32_t start(void)
{
    const char *name = "amateur";
    int32_t model;
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_TRY(agent_option_float("alpha", 0.000001, 1, &alpha));
    AGENT_TRY(agent_option_float("beta", 0, 10, &beta));
    AGENT_TRY(agent_option("amateur", &name));
    if (!expert.handle) {
        AGENT_SET(model, agent_model_open());
        AGENT_TRY(agent_session_open_by_option(&expert, model));
    }
    if (!amateur.handle) {
        AGENT_SET(model, isthmus_model_open(name, strlen(name)));
        AGENT_TRY(agent_session_open_by_option(&amateur, model));
    }
    if (expert.n_vocab == amateur.n_vocab)
        return 0;
    agent_log(ISTHMUS_LOG_ERROR, "the two models have different vocabularies");
    return -ISTHMUS_EINVAL;
}

/* The next token. The logits of both lie in this memory, and are compared where they are. */
static int32_t next_token(void)
{
    float *good, *poor, best_score = -INFINITY;
    int32_t best = -ISTHMUS_EINVAL;
    AGENT_TRY(agent_logits(&expert, &good));
    AGENT_TRY(agent_logits(&amateur, &poor));
    int32_t top;
    AGENT_SET(top, agent_argmax(good, expert.n_vocab));
    float least = good[top] + logf(alpha);
    for (uint32_t i = 0; i < expert.n_vocab; i++) {
        float score = good[i] - beta * poor[i];
        if (good[i] < least || score <= best_score)
            continue;
        best_score = score;
        best = (int32_t)i;
    }
    return best;
}

static int32_t answer(void)
{
    for (int64_t i = 0; i < max_tokens; i++) {
        AGENT_TEXT_FREED agent_text_t piece = AGENT_EMPTY;
        int32_t token, flags;
        AGENT_SET(token, next_token());
        AGENT_SET(flags, isthmus_token_flags(expert.model, token));
        if (flags & ISTHMUS_TOKEN_EOG)
            return 0;
        AGENT_TRY(agent_detokenize(expert.model, &token, 1, 0, &piece));
        AGENT_TRY(isthmus_emit(piece.bytes, piece.nbytes));
        AGENT_TRY(agent_decode(&expert, token));
        AGENT_TRY(agent_decode(&amateur, token));
    }
    return 0;
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_FREED int32_t *tokens = NULL;
    agent_chat_t chat = AGENT_EMPTY;
    AGENT_TRY(agent_message(nbytes, &message));
    AGENT_TRY(start());
    int32_t status = agent_chat_say(&chat, "user", message, (uint32_t)nbytes);
    if (status == 0)
        status = agent_chat_tokens(expert.model, &chat, &tokens);
    agent_chat_free(&chat);
    AGENT_TRY(status);
    AGENT_TRY(agent_session_become(&expert, tokens, (uint32_t)status));
    AGENT_TRY(agent_session_become(&amateur, tokens, (uint32_t)status));
    return answer();
}
