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
 *      truncated to the tokens that both have in common; to none if the model cannot do that.
 *   2. Sample, emit, decode, until the model ends its turn.
 *   3. If anything fails, a message for which the context has no room included, the turn is taken
 *      back: the session is truncated to
 *      where it was and the user's message is forgotten. The conversation can go on.
 *
 * Nobody can forge a turn. The template's own words are tokenized with PARSE_SPECIAL, so that its
 * control tokens are tokens. A content in which PARSE_SPECIAL finds control tokens is not given
 * to the template: a random placeholder is, and where that appears the content is tokenized by
 * itself, as plain text. Every other content is written where it belongs, so that ordinary text
 * has the tokens that the model was trained on, those at its edges included.
 *
 * A model without a chat template continues the text: messages and answers are one document.
 *
 * An empty message has the last answer go on where it ended, for instance at max_tokens.
 *
 * Options are read with each message: a fork may have been given others. n_ctx and model hold from
 * the first on.
 *
 * Options: model, n_ctx, max_tokens=512, system, sampler=guest|host, temperature=0.7, top_k=40,
 * top_p=0.95, min_p=0.05, repeat_penalty=1.1, repeat_last_n=64, seed; and one of json_schema,
 * grammar (GBNF), regex and lark, which each answer then follows from its first token to its last.
 */
#include "agent.h"

#define PLACEHOLDER_NBYTES 32 /* hexadecimal digits of 16 random bytes */

typedef struct {
    const char *role;
    agent_text_t content;
    char placeholder[PLACEHOLDER_NBYTES + 1]; /* what the template gets instead, or empty */
} turn_t;

/* The whole conversation as text, and the bytes of it that may not give control tokens. */
typedef struct {
    agent_text_t text;
    struct {
        uint32_t begin, end;
    } *plain; /* in order, without overlap */
    uint32_t n_plain;
} script_t;

typedef struct {
    int32_t *ids;
    uint32_t n;
} tokens_t;

static isthmus_model_info_t info;
static isthmus_sampler_t sampler;
static int64_t sampler_seed; /* the option that its random state began with */
static int32_t sample_on_host, started;
static int64_t max_tokens;

static agent_session_t session;
static turn_t *turns;
static uint32_t n_turns, turns_cap;
static agent_text_t said;
static int32_t said_known = 1;

/* What a turn that fails goes back to. */
static struct {
    uint32_t n_turns, n_tokens, said_nbytes;
    int32_t said_known;
} mark;

/* ------------------------------------------------------------------------------------ turns */

/* Gives the turn a placeholder if there are control tokens in its content. */
static int32_t guard(turn_t *turn)
{
    AGENT_FREED int32_t *plain = NULL, *parsed = NULL;
    const agent_text_t *content = &turn->content;
    int32_t n_plain, n_parsed;
    AGENT_SET(n_plain, agent_tokenize(session.model, content->bytes, content->nbytes, 0, &plain));
    AGENT_SET(n_parsed, agent_tokenize(session.model, content->bytes, content->nbytes,
                                       ISTHMUS_TOKENIZE_PARSE_SPECIAL, &parsed));
    if (n_plain == n_parsed && memcmp(plain, parsed, (size_t)n_plain * sizeof *plain) == 0)
        return 0;
    uint8_t random[PLACEHOLDER_NBYTES / 2];
    AGENT_TRY(isthmus_random(random, sizeof random));
    for (uint32_t i = 0; i < PLACEHOLDER_NBYTES; i++)
        turn->placeholder[i] = "0123456789abcdef"[random[i / 2] >> i % 2 * 4 & 15];
    return 0;
}

/* Remembers what someone said. Bytes that are not UTF-8 become U+FFFD. */
static int32_t add_turn(const char *role, const char *bytes, uint32_t nbytes)
{
    if (n_turns == turns_cap) {
        uint32_t cap = 2 * turns_cap + 8;
        turn_t *room = realloc(turns, cap * sizeof *room);
        if (!room)
            return -ISTHMUS_ENOMEM;
        turns = room;
        turns_cap = cap;
    }
    turn_t *turn = &turns[n_turns++];
    *turn = (turn_t){.role = role};
    AGENT_TRY(agent_text_reserve(&turn->content, nbytes));
    AGENT_TRY(agent_text_append_utf8(&turn->content, bytes, nbytes));
    return guard(turn);
}

static void set_mark(void)
{
    mark.n_turns = n_turns;
    mark.n_tokens = session.n_tokens;
    mark.said_nbytes = said.nbytes;
    mark.said_known = said_known;
}

static int32_t take_back_to_mark(void)
{
    while (n_turns > mark.n_turns)
        agent_text_free(&turns[--n_turns].content);
    said.nbytes = mark.said_nbytes;
    said.status = 0;
    said_known = mark.said_known;
    uint32_t n_left;
    AGENT_SET(n_left, agent_keep(&session, mark.n_tokens));
    if (n_left < mark.n_tokens)
        said_known = 0; /* the next turn prefills all of it */
    return 0;
}

/* ----------------------------------------------------------------------------------- script */

static void script_free(script_t *script)
{
    agent_text_free(&script->text);
    free(script->plain);
}

/* Marks what was written since `begin` as plain text. */
static int32_t mark_plain(script_t *script, uint32_t begin)
{
    void *room = realloc(script->plain, (script->n_plain + 1) * sizeof *script->plain);
    if (!room)
        return -ISTHMUS_ENOMEM;
    script->plain = room;
    script->plain[script->n_plain].begin = begin;
    script->plain[script->n_plain++].end = script->text.nbytes;
    return 0;
}

/* The turn whose placeholder begins here, if one does. */
static const turn_t *placeholder_at(const char *bytes, uint32_t nbytes)
{
    for (uint32_t i = 0; nbytes >= PLACEHOLDER_NBYTES && i < n_turns; i++)
        if (turns[i].placeholder[0]
            && memcmp(bytes, turns[i].placeholder, PLACEHOLDER_NBYTES) == 0)
            return &turns[i];
    return NULL;
}

/* Writes the contents where their placeholders are. */
static int32_t replace_placeholders(const agent_text_t *written, script_t *script)
{
    for (uint32_t at = 0; at < written->nbytes;) {
        const char *bytes = written->bytes + at;
        const turn_t *turn = placeholder_at(bytes, written->nbytes - at);
        uint32_t begin = script->text.nbytes;
        if (turn) {
            AGENT_TRY(agent_text_append(&script->text, turn->content.bytes, turn->content.nbytes));
            AGENT_TRY(mark_plain(script, begin));
        } else {
            AGENT_TRY(agent_text_append(&script->text, bytes, 1));
        }
        at += turn ? PLACEHOLDER_NBYTES : 1;
    }
    return 0;
}

static int32_t write_script(script_t *script)
{
    AGENT_TRY(agent_text_append(&script->text, "", 0));
    if (!(info.flags & ISTHMUS_MODEL_CHAT_TEMPLATE)) {
        const agent_text_t *message = &turns[n_turns - 1].content;
        AGENT_TRY(agent_text_append(&script->text, said.bytes, said.nbytes));
        AGENT_TRY(agent_text_append(&script->text, message->bytes, message->nbytes));
        return mark_plain(script, 0);
    }
    AGENT_TEXT_FREED agent_text_t written = {0};
    AGENT_FREED isthmus_chat_message_t *messages = malloc(n_turns * sizeof *messages);
    if (!messages)
        return -ISTHMUS_ENOMEM;
    for (uint32_t i = 0; i < n_turns; i++) {
        const turn_t *turn = &turns[i];
        messages[i] = turn->placeholder[0]
            ? agent_chat_message(turn->role, turn->placeholder, PLACEHOLDER_NBYTES)
            : agent_chat_message(turn->role, turn->content.bytes, turn->content.nbytes);
    }
    AGENT_TRY(agent_chat_template(session.model, messages, n_turns,
                                  ISTHMUS_CHAT_ADD_GENERATION_PROMPT, &written));
    return replace_placeholders(&written, script);
}

/* ----------------------------------------------------------------------------------- tokens */

static void tokens_free(tokens_t *tokens)
{
    free(tokens->ids);
}

static int32_t append_tokens(tokens_t *tokens, const char *bytes, uint32_t nbytes, uint32_t flags)
{
    AGENT_FREED int32_t *ids = NULL;
    uint32_t n, skipped = 0;
    AGENT_SET(n, agent_tokenize(session.model, bytes, nbytes, flags, &ids));
    /* Some templates write the BOS token that ADD_SPECIAL adds: one is enough. */
    if ((flags & ISTHMUS_TOKENIZE_ADD_SPECIAL) && n > 1 && ids[0] == info.token_bos)
        skipped = ids[1] == ids[0];
    int32_t *room = realloc(tokens->ids, (tokens->n + n + 1) * sizeof *room);
    if (!room)
        return -ISTHMUS_ENOMEM;
    tokens->ids = room;
    memcpy(room + tokens->n, ids + skipped, (n - skipped) * sizeof *room);
    tokens->n += n - skipped;
    return 0;
}

/* Tokenizes what the script says after its first `at` bytes. */
static int32_t tokenize_script(const script_t *script, uint32_t at, tokens_t *tokens)
{
    uint32_t i = 0;
    do {
        while (i < script->n_plain && script->plain[i].end <= at)
            i++;
        uint32_t end = script->text.nbytes;
        uint32_t flags = at == 0 ? ISTHMUS_TOKENIZE_ADD_SPECIAL : 0;
        if (i < script->n_plain && script->plain[i].begin <= at) {
            end = script->plain[i].end;
        } else {
            end = i < script->n_plain ? script->plain[i].begin : end;
            flags |= ISTHMUS_TOKENIZE_PARSE_SPECIAL;
        }
        AGENT_TRY(append_tokens(tokens, script->text.bytes + at, end - at, flags));
        at = end;
    } while (at < script->text.nbytes);
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

/* Truncates the session to what it has in common with the tokens. Returns how many those are. */
static int32_t keep_common(const tokens_t *tokens)
{
    uint32_t n = 0;
    if (tokens->n > session.n_ctx)
        return -ISTHMUS_ECONTEXT; /* before anything is lost */
    while (n < session.n_tokens && n + 1 < tokens->n && session.tokens[n] == tokens->ids[n])
        n++;
    AGENT_SET(n, agent_keep(&session, n));
    mark.n_tokens = n < mark.n_tokens ? n : mark.n_tokens;
    mark.said_nbytes = 0;
    mark.said_known = mark.n_tokens == 0;
    said_known = 0;
    return (int32_t)n;
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
    AGENT_TRY(agent_prefill(&session, tokens.ids + n_common, tokens.n - n_common));
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

/* Streams the answer, and appends it to `said`. A caller who wants no more ends it there, and so do
 * a limit and a context that is full: what is said until then is the answer. */
static int32_t generate(int32_t grammar)
{
    for (int64_t i = 0; i < max_tokens; i++) {
        int32_t token, flags, more;
        uint32_t before = said.nbytes;
        AGENT_SET(more, agent_grammar_mask(grammar, &session));
        if (!more)
            return 0;
        AGENT_SET(token, next_token());
        AGENT_SET(flags, isthmus_token_flags(session.model, token));
        if (flags & ISTHMUS_TOKEN_EOG)
            return 0;
        AGENT_TRY(agent_grammar_accept(grammar, token));
        AGENT_TRY(agent_detokenize(session.model, &token, 1, 0, &said));
        int32_t status = isthmus_emit(said.bytes + before, said.nbytes - before);
        if (status == 0)
            status = agent_decode(&session, token);
        int32_t ends = status == -ISTHMUS_ELIMIT || status == -ISTHMUS_ECONTEXT;
        if (status == -ISTHMUS_ECANCELED || (ends && i > 0)) {
            said.nbytes = before; /* the token is not in the session */
            said.bytes[before] = '\0';
            return 0;
        }
        AGENT_TRY(status);
    }
    return 0;
}

static int32_t answer(const char *message, uint32_t nbytes)
{
    __attribute__((cleanup(script_free))) script_t script = {0};
    AGENT_GRAMMAR_CLOSED int32_t grammar = agent_grammar_open_by_option(session.model);
    AGENT_TRY(grammar); /* before anything is computed */
    AGENT_TRY(add_turn("user", message, nbytes));
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
    return session.handle ? read_system() : 0;
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
    set_mark();
    int32_t status = nbytes == 0 && can_go_on() ? go_on() : answer(message, (uint32_t)nbytes);
    if (status < 0)
        take_back_to_mark();
    return status;
}

/* Another model: the conversation is known as text, and the next message tokenizes all of it. */
__attribute__((export_name("on_replay"))) int32_t on_replay(void)
{
    if (!started)
        return 0;
    AGENT_TRY(isthmus_model_info(session.model, &info));
    AGENT_TRY(agent_session_reopen(&session));
    said_known = 0;
    for (uint32_t i = 0; i < n_turns; i++) {
        turns[i].placeholder[0] = '\0';
        AGENT_TRY(guard(&turns[i]));
    }
    return 0;
}
