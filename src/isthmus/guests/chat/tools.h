/*
 * tools.h: conversations in which the model may call tools. A part of chat.c.
 *
 * What it owns: `messages`, the conversation as OpenAI's API writes it, a JSON array without its end.
 * The host knows the form in which each model writes calls: it writes the prompt, and takes the
 * answer apart while it is sampled here.
 *
 * A message, which joins the conversation, its files as parts of it by their numbers:
 *   1. The host writes the conversation as tokens. The session keeps those that both have in common,
 *      and the rest is prefilled.
 *   2. Sample, have the host read the token, emit the text that it finds, decode.
 *   3. The answer joins the conversation. If it calls tools, each is called here, the results join
 *      the conversation, and it goes on with 1. A tool that fails answers with its error: the model
 *      may try again. After `tool_rounds` such answers the model is told of no tools any more.
 *   4. If anything else fails, all of it is taken back. What tools did stays done.
 *
 * Thoughts are kept in the conversation, as far as the template wants them, and are not emitted.
 */

static int32_t has_tools, must_call;
static int64_t tool_rounds = 8, tool_nbytes = 16384;

/* Begins a message after those before it: its fields and its end are left to be written. */
static int32_t begin_message(const char *role)
{
    AGENT_TRY(agent_text_append_string(&messages, messages.nbytes ? ",{\"role\":\"" : "[{\"role\":\""));
    AGENT_TRY(agent_text_append_string(&messages, role));
    return agent_text_append_string(&messages, "\"");
}

static int32_t add_field(const char *name, const char *bytes, uint32_t nbytes)
{
    AGENT_TRY(agent_text_append_string(&messages, ",\""));
    AGENT_TRY(agent_text_append_string(&messages, name));
    AGENT_TRY(agent_text_append_string(&messages, "\":"));
    return agent_text_append_json(&messages, bytes, nbytes);
}

/* Adds what the user says, and before it the files that the message begins with. */
static int32_t add_asked_with_tools(const char *bytes, uint32_t nbytes)
{
    uint32_t first = files.n, n_files;
    AGENT_SET(n_files, take_files(&bytes, &nbytes));
    AGENT_TRY(begin_message("user"));
    if (!n_files) {
        AGENT_TRY(add_field("content", bytes, nbytes));
        return agent_text_append(&messages, "}", 1);
    }
    AGENT_TRY(agent_text_append_string(&messages, ",\"content\":["));
    for (uint32_t i = 0; i < n_files; i++) {
        AGENT_TRY(agent_text_append_string(&messages, "{\"type\":\"media\",\"number\":"));
        AGENT_TRY(agent_text_append_int(&messages, first + i));
        AGENT_TRY(agent_text_append_string(&messages, "},"));
    }
    AGENT_TRY(agent_text_append_string(&messages, "{\"type\":\"text\""));
    AGENT_TRY(add_field("text", bytes, nbytes));
    return agent_text_append_string(&messages, "}]}");
}

static int32_t add_message(const char *role, const char *bytes, uint32_t nbytes)
{
    AGENT_TRY(begin_message(role));
    AGENT_TRY(add_field("content", bytes, nbytes));
    return agent_text_append(&messages, "}", 1);
}

/* Makes the session hold the prompt of the conversation, with logits after it. */
static int32_t prefill_messages(uint32_t flags)
{
    __attribute__((cleanup(tokens_free))) tokens_t tokens = {0};
    uint32_t n_common;
    AGENT_TRY(agent_text_append(&messages, "]", 1));
    int32_t n = agent_prompt_tokens(session.model, &messages, flags, &tokens.ids);
    messages.bytes[--messages.nbytes] = 0;
    AGENT_SET(tokens.n, n);
    if (tokens.n == 0)
        return -ISTHMUS_EINVAL;
    AGENT_SET(n_common, keep_common(&tokens));
    return prefill_tokens(&tokens, n_common);
}

/* Whether anything was emitted for a message, in this answer or in one before. */
enum { SILENT, SPEAKING, SPOKE_BEFORE };

/* Emits the text that became known, on a new line if an answer before had some. */
static int32_t emit_text(int32_t nbytes, int32_t *speech)
{
    AGENT_TEXT_FREED agent_text_t text = {0};
    if (nbytes == 0)
        return 0;
    if (*speech == SPOKE_BEFORE)
        AGENT_TRY(agent_text_append(&text, "\n", 1));
    *speech = SPEAKING;
    AGENT_TRY(agent_answer_read(ISTHMUS_ANSWER_PART_TEXT, 0, &text));
    return isthmus_emit(text.bytes, text.nbytes);
}

/* Samples one answer. Returns how many calls are in it. */
static int32_t generate_answer(int32_t grammar, int32_t *speech)
{
    for (int64_t i = 0; i < max_tokens; i++) {
        int32_t token, flags, more, nbytes;
        AGENT_SET(more, agent_grammar_mask(grammar, &session));
        if (!more)
            break;
        AGENT_SET(token, next_token());
        AGENT_SET(flags, isthmus_token_flags(session.model, token));
        if (flags & ISTHMUS_TOKEN_EOG)
            break;
        AGENT_TRY(agent_grammar_accept(grammar, token));
        int32_t status = agent_decode(&session, token);
        if (ends_answer(status, i))
            break;
        AGENT_TRY(status);
        AGENT_SET(nbytes, isthmus_answer_feed(token));
        status = emit_text(nbytes, speech);
        if (ends_answer(status, i))
            break;
        AGENT_TRY(status);
    }
    return isthmus_answer_end();
}

/* Emits what was held back of the answer, which joins the conversation. */
static int32_t finish_answer(int32_t *speech)
{
    uint32_t n_left;
    AGENT_SET(n_left, isthmus_answer_read(ISTHMUS_ANSWER_PART_TEXT, 0, NULL, 0));
    int32_t status = emit_text((int32_t)n_left, speech);
    if (status != -ISTHMUS_ECANCELED && status != -ISTHMUS_ELIMIT)
        AGENT_TRY(status);
    AGENT_TRY(agent_text_append(&messages, ",", 1));
    return agent_answer_read(ISTHMUS_ANSWER_PART_MESSAGE, 0, &messages);
}

/* The text that the model gets for a result, of which it gets the beginning. */
static int32_t write_result(int32_t status, const agent_text_t *result, agent_text_t *text)
{
    uint32_t n = result->nbytes < tool_nbytes ? result->nbytes : (uint32_t)tool_nbytes;
    while (n < result->nbytes && n > 0 && (result->bytes[n] & 0xc0) == 0x80)
        n--; /* not within a character */
    if (status < 0)
        AGENT_TRY(agent_text_append_string(text, "error: "));
    AGENT_TRY(agent_text_append(text, result->bytes, n));
    if (n == result->nbytes)
        return 0;
    AGENT_TRY(agent_text_append_string(text, " ... and "));
    AGENT_TRY(agent_text_append_int(text, result->nbytes - n));
    return agent_text_append_string(text, " bytes more");
}

/* Makes one call of the answer; its result joins the conversation. */
static int32_t make_call(uint32_t index)
{
    AGENT_TEXT_FREED agent_text_t name = {0}, id = {0}, arguments = {0}, result = {0}, text = {0};
    AGENT_TRY(agent_answer_read(ISTHMUS_ANSWER_PART_CALL_NAME, index, &name));
    AGENT_TRY(agent_answer_read(ISTHMUS_ANSWER_PART_CALL_ID, index, &id));
    AGENT_TRY(agent_answer_read(ISTHMUS_ANSWER_PART_CALL_ARGUMENTS, index, &arguments));
    int32_t status = agent_tool_call(&name, &arguments, &result);
    if (status != -ISTHMUS_EIO && status != -ISTHMUS_ENOENT)
        AGENT_TRY(status);
    AGENT_TRY(write_result(status, &result, &text));
    AGENT_TRY(begin_message("tool"));
    AGENT_TRY(add_field("tool_call_id", id.bytes, id.nbytes));
    AGENT_TRY(add_field("name", name.bytes, name.nbytes));
    AGENT_TRY(add_field("content", text.bytes, text.nbytes));
    return agent_text_append(&messages, "}", 1);
}

/* Answers once. Returns how many tools were called for it. */
static int32_t answer_once(int64_t round, int32_t *speech)
{
    int32_t n_calls, forced = must_call && round == 0;
    uint32_t flags = round < tool_rounds ? ISTHMUS_ANSWER_TOOLS : 0;
    AGENT_GRAMMAR_CLOSED int32_t grammar = forced ? 0 : agent_grammar_open_by_option(session.model);
    AGENT_TRY(grammar); /* before anything is computed */
    uint32_t k = agent_sampler_top_k(&sampler, session.n_vocab);
    AGENT_TRY(agent_session_top_k(&session, forced || grammar || sample_on_host ? 0 : k));
    AGENT_TRY(prefill_messages(flags | (forced ? ISTHMUS_ANSWER_CALL : 0)));
    if (forced)
        AGENT_SET(grammar, agent_answer_grammar_open(session.model));
    AGENT_SET(n_calls, generate_answer(grammar, speech));
    AGENT_TRY(finish_answer(speech));
    for (int32_t i = 0; i < n_calls; i++)
        AGENT_TRY(make_call((uint32_t)i));
    return n_calls;
}

static int32_t answer_with_tools(const char *message, uint32_t nbytes)
{
    int32_t n_calls = 1, speech = SILENT;
    AGENT_TRY(add_asked_with_tools(message, nbytes));
    for (int64_t round = 0; n_calls; round++) {
        AGENT_SET(n_calls, answer_once(round, &speech));
        speech = speech == SILENT ? SILENT : SPOKE_BEFORE;
    }
    return 0;
}

/* Reads the options, and finds out whether there are tools; if so, the conversation begins. */
static int32_t tools_start(void)
{
    const char *how = "auto", *system = NULL;
    int32_t nbytes;
    AGENT_TRY(agent_option("system", &system));
    AGENT_TRY(agent_option("tools", &how));
    AGENT_TRY(agent_option_int("tool_rounds", 1, 1000, &tool_rounds));
    AGENT_TRY(agent_option_int("tool_nbytes", 1, 1 << 20, &tool_nbytes));
    must_call = strcmp(how, "required") == 0;
    if (!must_call && strcmp(how, "auto") != 0 && strcmp(how, "none") != 0)
        return agent_option_refused("tools", how, "auto, none or required");
    AGENT_SET(nbytes, isthmus_tool_list(NULL, 0));
    int32_t given = nbytes > 2; /* more than [] */
    if (must_call && !given)
        return agent_option_refused("tools", how, "the agent a tool, or auto");
    has_tools = given && strcmp(how, "none") != 0;
    if (has_tools && !(info.flags & ISTHMUS_MODEL_CHAT_TEMPLATE)) {
        has_tools = 0;
        AGENT_TRY(agent_log(ISTHMUS_LOG_WARNING,
                            "the model has no chat template, so it is told of no tools"));
    }
    agent_text_clear(&messages);
    return system && has_tools ? add_message("system", system, (uint32_t)strlen(system)) : 0;
}
