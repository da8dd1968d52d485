/* An agent that talks with a model. Each message is what the user says next. */
#include "conversation.h"

static agent_chat_t chat;
static agent_session_t session;
static isthmus_sampler_t sampler = AGENT_SAMPLER_DEFAULTS;
static int64_t max_tokens = 256;

/* Reads the options and opens the session, before the first message. */
static int32_t start(void)
{
    int32_t model;
    AGENT_TRY(agent_sampler_options(&sampler));
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_SET(model, agent_model_open());
    return agent_session_open_by_option(&session, model);
}

/* Streams the model's answer to the conversation as it is, and adds it. */
static int32_t answer(void)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    AGENT_FREED int32_t *tokens = NULL;
    int32_t n_tokens;
    AGENT_SET(n_tokens, agent_chat_tokens(session.model, &chat, &tokens));
    AGENT_TRY(agent_session_become(&session, tokens, (uint32_t)n_tokens));
    AGENT_TRY(agent_generate(&session, &sampler, max_tokens, &text));
    return agent_chat_say(&chat, "assistant", text.bytes, text.nbytes);
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TRY(agent_message(nbytes, &message));
    if (!session.handle)
        AGENT_TRY(start());
    AGENT_TRY(agent_chat_say(&chat, "user", message, (uint32_t)nbytes));
    int32_t status = answer();
    if (status < 0)
        agent_chat_take_back(&chat); /* what failed was not said */
    return status;
}

/* Another model: the next message reads all that was said. */
AGENT_EXPORT("on_replay") int32_t on_replay(void)
{
    return session.handle ? agent_session_reopen(&session) : 0;
}
