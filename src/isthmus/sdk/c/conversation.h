/*
 * conversation.h: what an agent that talks with a model needs, over agent.h.
 *
 *   conversations  agent_chat_say, agent_chat_take_back, agent_chat_tokens, agent_chat_free
 *   sessions       agent_session_become: compute only what is new
 *   answers        agent_generate: sample, emit, decode, until the model ends its turn;
 *                  agent_generate_many: the same for sessions side by side
 */
#ifndef ISTHMUS_CONVERSATION_H
#define ISTHMUS_CONVERSATION_H

#include "agent.h"

/* What was said so far. It owns the contents; the roles are the caller's. AGENT_EMPTY is a new one. */
typedef struct {
    isthmus_chat_message_t *turns;
    uint32_t n_turns;
} agent_chat_t;

/* Forgets the last turn. */
AGENT_API void agent_chat_take_back(agent_chat_t *chat)
{
    if (chat->n_turns)
        free((void *)chat->turns[--chat->n_turns].content_ptr);
}

/* Forgets everything, and frees it. */
AGENT_API void agent_chat_free(agent_chat_t *chat)
{
    while (chat->n_turns)
        agent_chat_take_back(chat);
    free(chat->turns);
    *chat = (agent_chat_t)AGENT_EMPTY;
}

/* Adds a turn. Bytes that are not UTF-8 become U+FFFD. `role` must outlive the conversation. */
AGENT_API int32_t agent_chat_say(agent_chat_t *chat, const char *role, const char *bytes,
                                 uint32_t nbytes)
{
    agent_text_t content = AGENT_EMPTY;
    void *room = realloc(chat->turns, (chat->n_turns + 1) * sizeof *chat->turns);
    if (!room)
        return -ISTHMUS_ENOMEM;
    chat->turns = (isthmus_chat_message_t *)room;
    agent_text_reserve(&content, nbytes);
    agent_text_append_utf8(&content, bytes, nbytes);
    if (agent_text_status(&content) < 0)
        return agent_text_free(&content), -ISTHMUS_ENOMEM;
    chat->turns[chat->n_turns++] = agent_chat_message(role, content.bytes, content.nbytes);
    return 0;
}

/* Whether a text holds control tokens of the model: with it, somebody could forge a turn. */
AGENT_API int32_t agent_has_control_tokens(int32_t model, const char *text, uint32_t nbytes)
{
    AGENT_FREED int32_t *plain = NULL, *parsed = NULL;
    int32_t n, n_parsed;
    AGENT_SET(n, agent_tokenize(model, text, nbytes, 0, &plain));
    AGENT_SET(n_parsed, agent_tokenize(model, text, nbytes, ISTHMUS_TOKENIZE_PARSE_SPECIAL,
                                       &parsed));
    return n != n_parsed || memcmp(plain, parsed, (size_t)n * sizeof *plain) != 0;
}

/* Sets `text` to the contents, one after the other: what a model without a chat template gets. */
AGENT_API int32_t agent_chat_document_(const agent_chat_t *chat, agent_text_t *text)
{
    for (uint32_t i = 0; i < chat->n_turns; i++)
        AGENT_TRY(agent_text_append(text, (const void *)chat->turns[i].content_ptr,
                                    (uint32_t)chat->turns[i].content_nbytes));
    return agent_text_reserve(text, 0);
}

/*
 * Turns the conversation into tokens, up to where the assistant's turn begins, in `*tokens`: from
 * malloc, to be freed by the caller. Returns how many. A content with control tokens is refused
 * with EINVAL, and the log says so.
 */
AGENT_API int32_t agent_chat_tokens(int32_t model, const agent_chat_t *chat, int32_t **tokens)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    isthmus_model_info_t info;
    int32_t n, forged;
    AGENT_TRY(isthmus_model_info(model, &info));
    uint32_t is_chat = info.flags & ISTHMUS_MODEL_CHAT_TEMPLATE;
    for (uint32_t i = 0; is_chat && i < chat->n_turns; i++) {
        const isthmus_chat_message_t *turn = &chat->turns[i];
        AGENT_SET(forged, agent_has_control_tokens(model, (const char *)turn->content_ptr,
                                                   (uint32_t)turn->content_nbytes));
        if (!forged)
            continue;
        agent_log(ISTHMUS_LOG_ERROR, "a message holds control tokens of the model");
        return -ISTHMUS_EINVAL;
    }
    if (is_chat)
        AGENT_TRY(agent_chat_template(model, chat->turns, chat->n_turns,
                                      ISTHMUS_CHAT_ADD_GENERATION_PROMPT, &text));
    else
        AGENT_TRY(agent_chat_document_(chat, &text));
    uint32_t flags = ISTHMUS_TOKENIZE_ADD_SPECIAL;
    flags |= is_chat ? ISTHMUS_TOKENIZE_PARSE_SPECIAL : 0;
    AGENT_SET(n, agent_tokenize(model, text.bytes, text.nbytes, flags, tokens));
    int32_t *ids = *tokens; /* some templates write the token that ADD_SPECIAL adds */
    if (n > 1 && ids[0] == info.token_bos && ids[1] == ids[0])
        memmove(ids, ids + 1, (size_t)--n * sizeof *ids);
    return n;
}

/*
 * Makes the session hold exactly these tokens, with logits after them. Computes only what follows
 * the tokens that both have in common.
 */
AGENT_API int32_t agent_session_become(agent_session_t *session, const int32_t *tokens,
                                       uint32_t n_tokens)
{
    uint32_t n = 0;
    if (n_tokens > session->n_ctx)
        return -ISTHMUS_ECONTEXT; /* before anything is lost */
    while (n < session->n_tokens && n + 1 < n_tokens && session->tokens[n] == tokens[n])
        n++;
    AGENT_SET(n, agent_keep(session, n));
    return agent_prefill(session, tokens + n, n_tokens - n);
}

/*
 * Samples, emits and appends up to max_tokens tokens, until the model ends its turn or the caller
 * wants no more. Appends the text to `answer`.
 */
AGENT_API int32_t agent_generate(agent_session_t *session, isthmus_sampler_t *sampler,
                                 int64_t max_tokens, agent_text_t *answer)
{
    for (int64_t i = 0; i < max_tokens; i++) {
        int32_t token;
        AGENT_SET(token, isthmus_sample(session->handle, sampler));
        int32_t more = agent_emit_token(session, token, answer);
        if (more == -ISTHMUS_ECANCELED)
            return 0;
        AGENT_TRY(more);
        if (!more)
            return 0;
    }
    return 0;
}

/*
 * The same for several sessions of one model, up to 32, in one pass for each round of tokens: for
 * answers that are compared with each other. Each session has its own sampler and answer; nothing
 * is emitted. A caller who wants no more has the answers as far as they are.
 */
AGENT_API int32_t agent_generate_many(agent_session_t *sessions, isthmus_sampler_t *samplers,
                                      agent_text_t *answers, uint32_t n_sessions,
                                      int64_t max_tokens)
{
    uint32_t ended = 0; /* a bit for each session */
    for (int64_t i = 0; i < max_tokens; i++) {
        agent_session_t *going[32];
        int32_t tokens[32], token, flags;
        uint32_t n = 0;
        for (uint32_t j = 0; j < n_sessions; j++) {
            if (ended >> j & 1)
                continue;
            AGENT_SET(token, isthmus_sample(sessions[j].handle, &samplers[j]));
            AGENT_SET(flags, isthmus_token_flags(sessions[j].model, token));
            if (flags & ISTHMUS_TOKEN_EOG) {
                ended |= 1u << j;
                continue;
            }
            AGENT_TRY(agent_detokenize(sessions[j].model, &token, 1, 0, &answers[j]));
            tokens[n] = token;
            going[n++] = &sessions[j];
        }
        if (n == 0)
            return 0;
        int32_t status = agent_decode_batch(going, tokens, n);
        if (status == -ISTHMUS_ECANCELED)
            return 0;
        AGENT_TRY(status);
    }
    return 0;
}

/* The settings that most models talk well with, for agent_sampler_options to change. */
#define AGENT_SAMPLER_DEFAULTS                                                   \
    {0.7f /* temperature */, 40 /* top_k */, 0.95f /* top_p */, 0.05f /* min_p */, \
     1.1f /* repeat_penalty */, 64 /* repeat_last_n */, 0 /* rng_state */}

#endif
