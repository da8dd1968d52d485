/*
 * An agent with a tool and state. Before it answers, it looks the message up with the host's tool
 * `lookup`, if it was given that; it counts its answers, and tells their number when asked: count.
 */
#include "conversation.h"

static agent_session_t session;
static isthmus_sampler_t sampler = AGENT_SAMPLER_DEFAULTS;
static int64_t max_tokens = 256, n_answers;

/* Reads the options and opens the session, before the first message. */
static int32_t start(void)
{
    int32_t model;
    AGENT_TRY(agent_sampler_options(&sampler));
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_SET(model, agent_model_open());
    return agent_session_open_by_option(&session, model);
}

/* Sets `question` to the message, after what the tool knows about it. */
static int32_t ask(const char *message, uint32_t nbytes, agent_text_t *question)
{
    int32_t n_facts = isthmus_tool_call("lookup", 6, message, nbytes);
    if (n_facts == -ISTHMUS_ENOENT)
        return agent_text_append(question, message, nbytes);
    AGENT_TRY(n_facts);
    AGENT_FREED char *facts = (char *)malloc((size_t)n_facts + 1);
    if (!facts)
        return -ISTHMUS_ENOMEM;
    AGENT_TRY(isthmus_tool_result(facts, (size_t)n_facts));
    agent_text_append_string(question, "Facts: ");
    agent_text_append(question, facts, (uint32_t)n_facts);
    agent_text_append_string(question, "\n\n");
    return agent_text_append(question, message, nbytes);
}

/* Streams the model's answer to a question. */
static int32_t answer(agent_chat_t *chat, const agent_text_t *question)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    AGENT_FREED int32_t *tokens = NULL;
    int32_t n_tokens;
    AGENT_TRY(agent_chat_say(chat, "user", question->bytes, question->nbytes));
    AGENT_SET(n_tokens, agent_chat_tokens(session.model, chat, &tokens));
    AGENT_TRY(agent_session_become(&session, tokens, (uint32_t)n_tokens));
    return agent_generate(&session, &sampler, max_tokens, &text);
}

/* Tells how many answers were given. */
static int32_t count(void)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    agent_text_append_int(&text, n_answers);
    AGENT_TRY(agent_text_append_string(&text, " answers"));
    return isthmus_emit(text.bytes, text.nbytes);
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TEXT_FREED agent_text_t question = AGENT_EMPTY;
    AGENT_TRY(agent_message(nbytes, &message));
    if (agent_equals(message, (uint32_t)nbytes, "count"))
        return count();
    if (!session.handle)
        AGENT_TRY(start());
    AGENT_TRY(ask(message, (uint32_t)nbytes, &question));
    agent_chat_t chat = AGENT_EMPTY;
    int32_t status = answer(&chat, &question);
    agent_chat_free(&chat);
    n_answers += status == 0;
    return status;
}

/* Another model: the next message reads all that was said. */
AGENT_EXPORT("on_replay") int32_t on_replay(void)
{
    return session.handle ? agent_session_reopen(&session) : 0;
}
