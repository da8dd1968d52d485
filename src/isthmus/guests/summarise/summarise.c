/*
 * summarise: a text of any length in a few sentences. Each message is a text.
 *
 * What it owns: a session that always begins with the instruction. The instruction is prefilled
 * once; truncating the session to it, between two texts, is all that starting again costs. A model
 * that keeps a state goes back to a checkpoint there.
 *
 *   [ instruction | text or part of it | cue | summary ]
 *   ^             ^ n_instruction: every part begins here
 *
 * A text that does not fit is cut into parts, at the end of a line or sentence where there is one
 * near. Each part is summarised, then the summaries, until one summary is left: that is streamed.
 * The text is tokenized without PARSE_SPECIAL, so it cannot contain turns of its own.
 *
 * Options: model, n_ctx, max_tokens=128 (of each summary), system (the instruction),
 * sampler=guest|host, temperature=0.2, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.1,
 * repeat_last_n=64, seed.
 */
#include "agent.h"

/* Where the text goes in what the template writes; no template has reason to write it itself. */
#define PLACEHOLDER "isthmus-text-goes-here"
#define INSTRUCTION "Summarise the text that the user gives you in a few short sentences."
#define PLAIN_PROMPT INSTRUCTION "\n\nText:\n" PLACEHOLDER "\n\nSummary:\n"

static isthmus_sampler_t sampler = {
    .temperature = 0.2f,
    .top_k = 40,
    .top_p = 0.95f,
    .min_p = 0.05f,
    .repeat_penalty = 1.1f,
    .repeat_last_n = 64,
};
static isthmus_model_info_t info;
static int32_t sample_on_host, started;
static int64_t max_tokens = 128;

static agent_session_t session;
static uint32_t n_instruction; /* tokens */
static int32_t *cue;           /* the tokens between a text and its summary */
static uint32_t n_cue;

/* ------------------------------------------------------------------------------------ start */

/* Sets `prompt` to the instruction, the placeholder and the cue. */
static int32_t write_prompt(agent_text_t *prompt)
{
    const char *system = INSTRUCTION;
    if (!(info.flags & ISTHMUS_MODEL_CHAT_TEMPLATE))
        return agent_text_append_string(prompt, PLAIN_PROMPT);
    AGENT_TRY(agent_option("system", &system));
    isthmus_chat_message_t messages[] = {
        agent_chat_message("system", system, (uint32_t)strlen(system)),
        agent_chat_message("user", PLACEHOLDER, sizeof PLACEHOLDER - 1),
    };
    return agent_chat_template(session.model, messages, 2, ISTHMUS_CHAT_ADD_GENERATION_PROMPT,
                               prompt);
}

/* Prefills the instruction and remembers the cue. */
static int32_t prefill_instruction(void)
{
    AGENT_TEXT_FREED agent_text_t prompt = {0};
    AGENT_FREED int32_t *tokens = NULL;
    uint32_t n;
    AGENT_TRY(write_prompt(&prompt));
    const char *place = strstr(prompt.bytes, PLACEHOLDER);
    if (!place)
        return -ISTHMUS_EINVAL;
    const char *after = place + sizeof PLACEHOLDER - 1;
    free(cue);
    AGENT_SET(n_cue, agent_tokenize(session.model, after, (uint32_t)strlen(after),
                                    ISTHMUS_TOKENIZE_PARSE_SPECIAL, &cue));
    AGENT_SET(n, agent_tokenize(session.model, prompt.bytes, (uint32_t)(place - prompt.bytes),
                                ISTHMUS_TOKENIZE_PARSE_SPECIAL | ISTHMUS_TOKENIZE_ADD_SPECIAL,
                                &tokens));
    /* Some templates write the BOS token that ADD_SPECIAL adds: one is enough. */
    uint32_t twice = n > 1 && tokens[0] == info.token_bos && tokens[1] == info.token_bos;
    AGENT_TRY(agent_prefill(&session, tokens + twice, n - twice));
    n_instruction = session.n_tokens;
    AGENT_TRY(agent_checkpoint(&session));
    return 0;
}

/* Reads the options and opens the session; a failure leaves the rest for the next message. */
static int32_t start(void)
{
    static int32_t model;
    const char *where = "guest";
    AGENT_TRY(agent_sampler_options(&sampler));
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_TRY(agent_option("sampler", &where));
    sample_on_host = strcmp(where, "host") == 0;
    if (!sample_on_host && strcmp(where, "guest") != 0)
        return agent_option_refused("sampler", where, "guest or host");
    if (!model)
        AGENT_SET(model, agent_model_open());
    AGENT_TRY(isthmus_model_info(model, &info));
    if (!session.handle)
        AGENT_TRY(agent_session_open_by_option(&session, model));
    uint32_t k = sample_on_host ? 0 : agent_sampler_top_k(&sampler, session.n_vocab);
    AGENT_TRY(agent_session_top_k(&session, k));
    AGENT_TRY(prefill_instruction());
    started = 1;
    return 0;
}

/* ---------------------------------------------------------------------------------- summary */

static int32_t next_token(void)
{
    return sample_on_host ? isthmus_sample(session.handle, &sampler)
                          : agent_session_sample(&session, &sampler);
}

/* Summarises one part. Appends the summary to `summary`, and streams it if it is the last. */
static int32_t summarise_part(const int32_t *tokens, uint32_t n_tokens, int32_t is_last,
                              agent_text_t *summary)
{
    uint32_t n_left;
    AGENT_SET(n_left, agent_keep(&session, n_instruction));
    if (n_left < n_instruction) /* the session has no room for a checkpoint */
        AGENT_TRY(prefill_instruction());
    AGENT_TRY(agent_prefill(&session, tokens, n_tokens));
    AGENT_TRY(agent_prefill(&session, cue, n_cue));
    for (int64_t i = 0; i < max_tokens; i++) {
        int32_t token, flags, more;
        AGENT_SET(token, next_token());
        if (is_last) {
            AGENT_SET(more, agent_emit_token(&session, token, summary));
            if (!more)
                return 0;
            continue;
        }
        AGENT_SET(flags, isthmus_token_flags(session.model, token));
        if (flags & ISTHMUS_TOKEN_EOG)
            return 0;
        AGENT_TRY(agent_detokenize(session.model, &token, 1, 0, summary));
        AGENT_TRY(agent_decode(&session, token));
    }
    return 0;
}

/* Whether a token's text ends a line or a sentence. */
static int32_t ends_sentence(int32_t token)
{
    char text[64];
    int32_t n = isthmus_detokenize(session.model, &token, 1, 0, text, sizeof text);
    return n > 0 && n <= (int32_t)sizeof text && memchr("\n.!?", text[n - 1], 4) != NULL;
}

/* How many of the tokens make the next part: up to `room`, by a quarter fewer to end a sentence. */
static uint32_t cut(const int32_t *tokens, uint32_t n_tokens, uint32_t room)
{
    if (n_tokens <= room)
        return n_tokens;
    for (uint32_t n = room; n > room - room / 4; n--)
        if (ends_sentence(tokens[n - 1]))
            return n;
    return room;
}

/* Summarises a text, part by part. Returns how many parts it had. */
static int32_t summarise_text(const agent_text_t *text, uint32_t room, agent_text_t *summaries)
{
    AGENT_TEXT_FREED agent_text_t summary = {0};
    AGENT_FREED int32_t *tokens = NULL;
    uint32_t n, n_parts = 0;
    AGENT_SET(n, agent_tokenize(session.model, text->bytes, text->nbytes, 0, &tokens));
    if (n == 0)
        return -ISTHMUS_EINVAL;
    for (uint32_t at = 0, step; at < n; at += step, n_parts++) {
        step = cut(tokens + at, n - at, room);
        agent_text_clear(&summary);
        AGENT_TRY(summarise_part(tokens + at, step, step == n, &summary));
        AGENT_TRY(agent_text_append_utf8(summaries, summary.bytes, summary.nbytes));
        AGENT_TRY(agent_text_append_string(summaries, "\n\n"));
    }
    return (int32_t)n_parts;
}

__attribute__((export_name("on_message"))) int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TEXT_FREED agent_text_t text = {0};
    AGENT_TRY(agent_message(nbytes, &message));
    AGENT_TRY(agent_text_reserve(&text, (uint32_t)nbytes));
    AGENT_TRY(agent_text_append_utf8(&text, message, (uint32_t)nbytes));
    if (!started)
        AGENT_TRY(start());
    int64_t room = (int64_t)session.n_ctx - n_instruction - n_cue - max_tokens;
    if (room < 2 * max_tokens) { /* or summaries of summaries might not become fewer */
        agent_log(ISTHMUS_LOG_ERROR, "n_ctx has no room for texts and summaries: give a greater"
                                     " n_ctx or smaller max_tokens");
        return -ISTHMUS_ECONTEXT;
    }
    for (int32_t n_parts = INT32_MAX;;) {
        AGENT_TEXT_FREED agent_text_t summaries = {0};
        int32_t n;
        AGENT_SET(n, summarise_text(&text, (uint32_t)room, &summaries));
        if (n == 1)
            return 0;
        if (n >= n_parts)
            return -ISTHMUS_ELIMIT; /* the model does not shorten: it would never end */
        n_parts = n;
        agent_text_t longer = text;
        text = summaries;
        summaries = longer;
    }
}

/* Another model: the instruction is prefilled again. */
__attribute__((export_name("on_replay"))) int32_t on_replay(void)
{
    if (!started)
        return 0;
    AGENT_TRY(isthmus_model_info(session.model, &info));
    AGENT_TRY(agent_session_reopen(&session));
    return prefill_instruction();
}
