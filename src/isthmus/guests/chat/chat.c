/*
 * chat: a conversation that stays in its session. Each message is what the user says next; the
 * answer is streamed as it is decoded.
 *
 * What it owns:
 *   turns     the conversation, as the chat template takes it
 *   session   its tokens, and their KV cache in this guest's memory
 *   said      the text that those tokens stand for, where it is known
 *
 * A turn:
 *   1. The template writes the whole conversation. Usually that text begins with exactly `said`,
 *      and only what follows is tokenized and prefilled. Where the template rewrote what was said
 *      (some trim answers, or drop thoughts), all of it is tokenized, and the session is
 *      truncated to the tokens and files that both have in common, or to a checkpoint before that.
 *   2. Sample, emit, decode, until the model ends its turn.
 *   3. If anything fails, a message for which the context has no room included, the turn is taken
 *      back: the session is truncated to where it was and the user's message is forgotten. The
 *      conversation can go on.
 *
 * Nobody can forge a turn. The template's own words are tokenized with PARSE_SPECIAL, so that its
 * control tokens are tokens. A content in which PARSE_SPECIAL finds control tokens is not given
 * to the template: a random placeholder is, and where that appears the content is tokenized by
 * itself, as plain text. Every other content is written where it belongs, so that ordinary text
 * has the tokens that the model was trained on, those at its edges included.
 *
 * A message that begins with a zero byte has files before its text, pictures and sounds: each with its
 * length before it, 32 bits, and a length of zero at their end. They are decoded here (media.h).
 *
 * A model without a chat template continues the text: messages and answers are one document.
 *
 * If the agent was given tools, and the model has a chat template, conversations are those of
 * tools.h, from the first message on: the model may call tools, and goes on with what they say.
 *
 * An empty message has the last answer go on where it ended, for instance at max_tokens; not in
 * conversations with tools.
 *
 * Options are read with each message: a fork may have been given others. n_ctx, model and what is
 * said of tools hold from the first on, and so does the system prompt of conversations with tools.
 *
 * Options: model, n_ctx, max_tokens=512, system, sampler=guest|host, temperature=0.7, top_k=40,
 * top_p=0.95, min_p=0.05, repeat_penalty=1.1, repeat_last_n=64, seed; and one of json_schema,
 * grammar (GBNF), regex and lark, which each answer then follows from its first token to its last.
 * With tools: tools=auto|none|required, tool_rounds=8, tool_nbytes=16384.
 */
#include "held.h"

static isthmus_sampler_t sampler;
static int64_t sampler_seed; /* the option that its random state began with */
static int32_t sample_on_host, started;
static int64_t max_tokens;

static agent_text_t messages; /* the conversation in JSON, if there are tools; see tools.h */

/* What a turn that fails goes back to. */
static struct {
    uint32_t n_turns, n_files, n_tokens, said_nbytes, n_messages_bytes;
    int32_t said_known;
} mark;

static int32_t set_mark(void)
{
    mark.n_turns = n_turns;
    mark.n_files = files.n;
    mark.n_tokens = session.n_tokens;
    mark.said_nbytes = said.nbytes;
    mark.said_known = said_known;
    mark.n_messages_bytes = messages.nbytes;
    return agent_checkpoint(&session);
}

static int32_t take_back_to_mark(void)
{
    while (n_turns > mark.n_turns)
        drop_last_turn();
    agent_files_drop(&files, mark.n_files);
    said.nbytes = mark.said_nbytes;
    said.status = 0;
    said_known = mark.said_known;
    messages.nbytes = mark.n_messages_bytes;
    messages.status = 0;
    uint32_t n_left;
    AGENT_SET(n_left, keep_rows(mark.n_tokens));
    if (n_left < mark.n_tokens)
        said_known = 0; /* the next turn prefills all of it */
    return 0;
}

/* Whether the script begins with what was said, and goes on with a whole character. */
static int32_t continues(const agent_text_t *text)
{
    if (!said_known || text->nbytes < said.nbytes)
        return 0;
    if (said.nbytes && memcmp(text->bytes, said.bytes, said.nbytes) != 0)
        return 0;
    return (text->bytes[said.nbytes] & 0xc0) != 0x80; /* its NUL, at the end */
}

/* Truncates the session to what it has in common with the tokens. Returns how many ids those are. */
static int32_t keep_common(const tokens_t *tokens)
{
    agent_common_t common;
    if (tokens->n > session.n_ctx)
        return -ISTHMUS_ECONTEXT; /* before anything is lost */
    AGENT_TRY(reach_common(tokens, &common));
    AGENT_TRY(keep_rows(common.n_rows));
    mark.n_tokens = common.n_rows < mark.n_tokens ? common.n_rows : mark.n_tokens;
    mark.said_nbytes = 0;
    mark.said_known = mark.n_tokens == 0;
    said_known = 0;
    return (int32_t)common.n_ids;
}

/* Makes the session hold exactly the script, with logits after it. */
static int32_t prefill_script(const script_t *script)
{
    __attribute__((cleanup(tokens_free))) tokens_t tokens = {0};
    const agent_text_t *text = &script->text;
    int32_t append = continues(text);
    uint32_t n_common = 0;
    AGENT_TRY(agent_text_reserve(&said, text->nbytes));
    AGENT_TRY(tokenize_script(script, append ? said.nbytes : 0, &tokens));
    if (!append)
        AGENT_SET(n_common, keep_common(&tokens));
    AGENT_TRY(prefill_tokens(&tokens, n_common));
    agent_text_clear(&said);
    said_known = 1;
    return agent_text_append(&said, text->bytes, text->nbytes);
}

/* --------------------------------------------------------------------------------- messages */

static int32_t next_token(void)
{
    return sample_on_host ? isthmus_sample(session.handle, &sampler)
                          : agent_session_sample(&session, &sampler);
}

/* Whether what is said until now is the answer: its caller wants no more, or a limit or a full
 * context ends it. */
static int32_t ends_answer(int32_t status, int64_t n_said)
{
    if (status == -ISTHMUS_ECANCELED)
        return 1;
    return n_said > 0 && (status == -ISTHMUS_ELIMIT || status == -ISTHMUS_ECONTEXT);
}

/* Streams the answer, and appends it to `said`. */
static int32_t generate(int32_t grammar)
{
    for (int64_t i = 0; i < max_tokens; i++) {
        int32_t token, more;
        AGENT_SET(more, agent_grammar_mask(grammar, &session));
        if (!more)
            return 0;
        AGENT_SET(token, next_token());
        more = agent_emit_token(&session, token, &said);
        if (more == 0 || ends_answer(more, i))
            return 0;
        AGENT_TRY(more);
        AGENT_TRY(agent_grammar_accept(grammar, token));
    }
    return 0;
}

#include "tools.h"

static int32_t answer(const char *message, uint32_t nbytes)
{
    __attribute__((cleanup(script_free))) script_t script = {0};
    AGENT_GRAMMAR_CLOSED int32_t grammar = agent_grammar_open_by_option(session.model);
    AGENT_TRY(grammar); /* before anything is computed */
    AGENT_TRY(add_asked(message, nbytes));
    AGENT_TRY(write_script(&script));
    uint32_t k = grammar || sample_on_host ? 0 : agent_sampler_top_k(&sampler, session.n_vocab);
    AGENT_TRY(agent_session_top_k(&session, k));
    AGENT_TRY(prefill_script(&script));
    AGENT_TRY(generate(grammar));
    uint32_t prompt = script.text.nbytes;
    return add_turn("assistant", said.bytes + prompt, said.nbytes - prompt);
}

/* Whether an answer is the last thing that the session holds, and no grammar is in its middle. */
static int32_t can_go_on(void)
{
    const char *form = NULL;
    const char *forms[] = {"json_schema", "grammar", "regex", "lark"};
    for (uint32_t i = 0; i < 4; i++)
        if (agent_option(forms[i], &form) < 0 || form)
            return 0;
    return said_known && session.n_tokens && n_turns
        && strcmp(turns[n_turns - 1].role, "assistant") == 0;
}

/* Has the last answer go on where it ended. */
static int32_t go_on(void)
{
    uint32_t before = said.nbytes;
    AGENT_TRY(generate(0));
    turn_t *last = &turns[n_turns - 1];
    AGENT_TRY(agent_text_reserve(&last->content, said.nbytes - before));
    AGENT_TRY(agent_text_append_utf8(&last->content, said.bytes + before, said.nbytes - before));
    return guard(last);
}

/* Reads the sampler's options. Its random state goes on, unless the seed is another than before. */
static int32_t read_sampler(void)
{
    isthmus_sampler_t asked = {
        .temperature = 0.7f,
        .top_k = 40,
        .top_p = 0.95f,
        .min_p = 0.05f,
        .repeat_penalty = 1.1f,
        .repeat_last_n = 64,
    };
    const char *where = "guest";
    int64_t seed = 0;
    AGENT_TRY(agent_sampler_options(&asked));
    AGENT_TRY(agent_option_int("seed", INT64_MIN, INT64_MAX, &seed));
    AGENT_TRY(agent_option("sampler", &where));
    sample_on_host = strcmp(where, "host") == 0;
    if (!sample_on_host && strcmp(where, "guest") != 0)
        return agent_option_refused("sampler", where, "guest or host");
    if (started && seed == sampler_seed)
        asked.rng_state = sampler.rng_state;
    sampler = asked;
    sampler_seed = seed;
    return 0;
}

/* Has the conversation begin with the system prompt of the options, if that is another one. */
static int32_t read_system(void)
{
    const char *system = NULL;
    if (has_tools)
        return 0; /* it is in `messages` */
    AGENT_TRY(agent_option("system", &system));
    turn_t *first = n_turns && strcmp(turns[0].role, "system") == 0 ? &turns[0] : NULL;
    uint32_t nbytes = system ? (uint32_t)strlen(system) : 0;
    if (first && system && first->content.nbytes == nbytes
        && memcmp(first->content.bytes, system, nbytes) == 0)
        return 0;
    if (first) {
        agent_text_free(&first->content);
        memmove(turns, turns + 1, --n_turns * sizeof *turns);
    }
    if (first || (system && n_turns))
        said_known = 0; /* the next turn tokenizes all of it */
    if (!system)
        return 0;
    AGENT_TRY(add_turn("system", system, nbytes));
    turn_t added = turns[n_turns - 1];
    memmove(turns + 1, turns, (n_turns - 1) * sizeof *turns);
    turns[0] = added;
    return 0;
}

/* Reads the options, since a fork may have been given others. */
static int32_t read_options(void)
{
    agent_options_renew();
    max_tokens = 512;
    AGENT_TRY(read_sampler());
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    return started ? read_system() : 0;
}

/* Opens the session; a failure leaves the rest for the next message. */
static int32_t start(void)
{
    static int32_t model;
    if (!model)
        AGENT_SET(model, agent_model_open());
    AGENT_TRY(isthmus_model_info(model, &info));
    if (!session.handle)
        AGENT_TRY(agent_session_open_by_option(&session, model));
    AGENT_TRY(tools_start());
    AGENT_TRY(read_system());
    started = 1;
    return 0;
}

__attribute__((export_name("on_message"))) int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TRY(agent_message(nbytes, &message));
    AGENT_TRY(read_options());
    if (!started)
        AGENT_TRY(start());
    AGENT_TRY(set_mark());
    int32_t status = has_tools                 ? answer_with_tools(message, (uint32_t)nbytes)
        : nbytes == 0 && can_go_on() ? go_on() : answer(message, (uint32_t)nbytes);
    if (status < 0)
        take_back_to_mark();
    return status;
}

/* Other options in the middle of an answer: what is sampled from here on follows them. */
__attribute__((export_name("on_options"))) int32_t on_options(void)
{
    agent_options_renew();
    return read_sampler();
}

/* Another model: the conversation is known as text, and the next message tokenizes all of it. */
__attribute__((export_name("on_replay"))) int32_t on_replay(void)
{
    if (!started)
        return 0;
    AGENT_TRY(isthmus_model_info(session.model, &info));
    AGENT_TRY(agent_session_reopen(&session));
    said_known = 0;
    agent_files_forget(&files, 0);
    for (uint32_t i = 0; i < n_turns; i++) {
        turns[i].placeholder[0] = '\0';
        AGENT_TRY(guard(&turns[i]));
    }
    return 0;
}
