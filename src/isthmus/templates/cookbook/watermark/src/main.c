/*
 * watermark: answers so that who knows the key can tell that this model wrote the text.
 *
 * The token before and the key divide the vocabulary into two halves. Tokens of the one half get
 * `delta` added to their logits, in place, before the next one is drawn; so more of the text comes
 * from it than chance explains. The message `detect` asks how far the last answer is from chance, in
 * standard deviations: 4 and more is hardly an accident. Options: key=1, delta=2, max_tokens=128.
 */
#include <math.h>

#include "conversation.h"

static agent_session_t session;
static isthmus_sampler_t sampler = AGENT_SAMPLER_DEFAULTS;
static uint32_t n_prompt; /* tokens before the last answer */
static int64_t max_tokens = 128, key = 1;
static float delta = 2;

static int32_t start(void)
{
    int32_t model;
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_TRY(agent_option_int("key", 0, INT64_MAX, &key));
    AGENT_TRY(agent_option_float("delta", 0, 100, &delta));
    AGENT_TRY(agent_sampler_options(&sampler));
    AGENT_SET(model, agent_model_open());
    return agent_session_open_by_option(&session, model);
}

/* Whether a token is in the marked half after another one. */
static int32_t is_marked(int32_t before, int32_t token)
{
    uint64_t state = (uint64_t)key ^ ((uint64_t)before << 32 | (uint32_t)token);
    return agent_random_next(&state) >> 63;
}

static int32_t mark_logits(void)
{
    float *logits;
    int32_t before = session.tokens[session.n_tokens - 1];
    AGENT_TRY(agent_logits(&session, &logits));
    session.edited = 1;
    for (uint32_t i = 0; i < session.n_vocab; i++)
        logits[i] += is_marked(before, (int32_t)i) ? delta : 0;
    return 0;
}

static int32_t answer(const char *message, uint32_t nbytes)
{
    AGENT_FREED int32_t *tokens = NULL;
    agent_chat_t chat = AGENT_EMPTY;
    int32_t status = agent_chat_say(&chat, "user", message, nbytes);
    if (status == 0)
        status = agent_chat_tokens(session.model, &chat, &tokens);
    agent_chat_free(&chat);
    AGENT_TRY(status);
    AGENT_TRY(agent_session_become(&session, tokens, (uint32_t)status));
    n_prompt = session.n_tokens;
    for (int64_t i = 0; i < max_tokens; i++) {
        AGENT_TEXT_FREED agent_text_t piece = AGENT_EMPTY;
        int32_t token, flags;
        AGENT_TRY(mark_logits());
        AGENT_SET(token, isthmus_sample(session.handle, &sampler));
        AGENT_SET(flags, isthmus_token_flags(session.model, token));
        if (flags & ISTHMUS_TOKEN_EOG)
            return 0;
        AGENT_TRY(agent_detokenize(session.model, &token, 1, 0, &piece));
        AGENT_TRY(isthmus_emit(piece.bytes, piece.nbytes));
        AGENT_TRY(agent_decode(&session, token));
    }
    return 0;
}

/* Tells how many standard deviations more marked tokens the last answer has than chance gives. */
static int32_t detect(void)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    double n = session.n_tokens - n_prompt, n_marked = 0;
    if (n == 0)
        return -ISTHMUS_EINVAL; /* nothing was said yet */
    for (uint32_t i = n_prompt; i < session.n_tokens; i++)
        n_marked += is_marked(session.tokens[i - 1], session.tokens[i]);
    AGENT_TRY(agent_text_append_float(&text, (n_marked - n / 2) / sqrt(n / 4)));
    return agent_reply_text(&text);
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TRY(agent_message(nbytes, &message));
    if (!session.handle)
        AGENT_TRY(start());
    if (agent_equals(message, (uint32_t)nbytes, "detect"))
        return detect();
    return answer(message, (uint32_t)nbytes);
}
