/*
 * votes: answers the same question several times, side by side, and says what most answers say.
 *
 * The question is prefilled once; every branch begins with a copy of that session, and one pass
 * decodes a token of each. Options: n=5 branches, max_tokens=64, report=1 tells how many agree.
 */
#include "conversation.h"

#define MOST 32

static agent_session_t sessions[MOST];
static isthmus_sampler_t sampler = AGENT_SAMPLER_DEFAULTS;
static int64_t n = 5, max_tokens = 64, report;

/* Reads the options and opens the sessions; a failure leaves the rest for the next message. */
static int32_t start(void)
{
    static int32_t started;
    if (started)
        return 0;
    int32_t model;
    AGENT_TRY(agent_option_int("n", 1, MOST, &n));
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_TRY(agent_option_int("report", 0, 1, &report));
    AGENT_TRY(agent_sampler_options(&sampler));
    AGENT_SET(model, agent_model_open());
    for (int64_t i = 0; i < n; i++)
        if (!sessions[i].handle)
            AGENT_TRY(agent_session_open_by_option(&sessions[i], model));
    started = 1;
    return 0;
}

/* Has every session hold the question. */
static int32_t ask(const char *message, uint32_t nbytes)
{
    AGENT_FREED int32_t *tokens = NULL;
    agent_chat_t chat = AGENT_EMPTY;
    int32_t status = agent_chat_say(&chat, "user", message, nbytes);
    if (status == 0)
        status = agent_chat_tokens(sessions[0].model, &chat, &tokens);
    agent_chat_free(&chat);
    AGENT_TRY(status);
    AGENT_TRY(agent_session_become(&sessions[0], tokens, (uint32_t)status));
    for (int64_t i = 1; i < n; i++)
        AGENT_TRY(agent_session_copy(&sessions[i], &sessions[0], sessions[0].n_tokens));
    return 0;
}

/* How many answers are the same as one of them. */
static uint32_t votes_for(const agent_text_t *answers, int64_t which)
{
    uint32_t votes = 0;
    for (int64_t i = 0; i < n; i++)
        votes += answers[i].nbytes == answers[which].nbytes
            && memcmp(answers[i].bytes, answers[which].bytes, answers[i].nbytes) == 0;
    return votes;
}

static int32_t say_winner(const agent_text_t *answers)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (votes_for(answers, i) > votes_for(answers, best))
            best = i;
    if (report) {
        agent_text_append_int(&text, votes_for(answers, best));
        agent_text_append_string(&text, " of ");
        agent_text_append_int(&text, n);
        agent_text_append_string(&text, ": ");
    }
    agent_text_append(&text, answers[best].bytes, answers[best].nbytes);
    return agent_reply_text(&text);
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    agent_text_t answers[MOST] = AGENT_EMPTY;
    isthmus_sampler_t samplers[MOST];
    AGENT_TRY(agent_message(nbytes, &message));
    AGENT_TRY(start());
    AGENT_TRY(ask(message, (uint32_t)nbytes));
    for (int64_t i = 0; i < n; i++) {
        samplers[i] = sampler;
        samplers[i].rng_state = agent_random_next(&sampler.rng_state); /* each draws for itself */
    }
    int32_t status = agent_generate_many(sessions, samplers, answers, (uint32_t)n, max_tokens);
    if (status == 0)
        status = say_winner(answers);
    for (int64_t i = 0; i < n; i++)
        agent_text_free(&answers[i]);
    return status;
}
