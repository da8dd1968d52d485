/*
 * bench: does one thing many times, so that the host can time it.
 *
 * Messages, of which the first that needs it opens a session of the option n_ctx tokens:
 *   prefill N [seed]   appends N pseudo-random token ids, and has `truncate` be able to come back
 *                      there                                   answers `length=L`
 *   tokens T1 T2 ...   appends exactly these                   answers `length=L`
 *   decode N           samples and appends N tokens            answers `length=L`
 *   sequence N         the same, emits each id as it comes     answers the ids: `T1 T2 ... TN`
 *   emit N             the same, emits each token's text as `chat` does, until the model ends
 *                      its turn                                answers the text
 *   hash N             the same as decode                      answers `hash=H`, FNV-1a of the
 *                                                              bits of all logits on the way
 *   next 1             the token that decode would append      answers `token=T`
 *   branch N M         goes on in N ways, each from another of the N most probable tokens, with M
 *                      tokens each, all together      answers their ids, a line for each way
 *   truncate N         forgets all tokens after the first N    answers `length=L`
 *   hostcall N         calls session_length N times            answers `calls=N`
 *   trap N             writes N to its memory, then traps
 *   spin               computes until it is cut off, and calls nothing; opens no session
 *
 * Options: model, n_ctx, temperature=0, top_k=0, top_p=1, min_p=0, repeat_penalty=1,
 * repeat_last_n=64, seed; ask=0, or 1: the device is asked for the most probable tokens; ahead=0:
 * bytes of memory, never touched, that the session lies behind. The export nop(i32) -> i32 gives its
 * argument back.
 */
#include "agent.h"

#define MOST_BRANCHES 32

static agent_session_t session;
static isthmus_sampler_t sampler = {.top_p = 1, .repeat_penalty = 1, .repeat_last_n = 64};

static int32_t open_session(void)
{
    int32_t model;
    int64_t ahead = 0, ask = 0;
    if (session.handle)
        return 0;
    AGENT_TRY(agent_sampler_options(&sampler));
    AGENT_TRY(agent_option_int("ask", 0, 1, &ask));
    AGENT_SET(model, agent_model_open());
    AGENT_TRY(agent_option_int("ahead", 0, PTRDIFF_MAX, &ahead));
    if (ahead && !pages_take((size_t)ahead))
        return -ISTHMUS_ENOMEM;
    AGENT_TRY(agent_session_open_by_option(&session, model));
    return ask ? agent_session_top_k(&session, agent_sampler_top_k(&sampler, session.n_vocab)) : 0;
}

static int32_t answer(const char *key, int64_t value)
{
    AGENT_TEXT_FREED agent_text_t text = {0};
    agent_text_append_string(&text, key);
    agent_text_append_int(&text, value);
    return agent_reply_text(&text);
}

static int32_t answer_length(void)
{
    return answer("length=", session.n_tokens);
}

static int32_t prefill(int64_t n_tokens, int64_t seed)
{
    uint64_t random = (uint64_t)seed;
    if (n_tokens > session.n_ctx)
        return -ISTHMUS_ECONTEXT;
    AGENT_FREED int32_t *tokens = malloc((size_t)n_tokens * sizeof *tokens);
    if (!tokens)
        return -ISTHMUS_ENOMEM;
    for (int64_t i = 0; i < n_tokens; i++)
        tokens[i] = (int32_t)(agent_random_next(&random) % session.n_vocab);
    AGENT_TRY(agent_prefill(&session, tokens, (uint32_t)n_tokens));
    AGENT_TRY(agent_checkpoint(&session));
    return answer_length();
}

static int32_t prefill_words(const char *words)
{
    AGENT_FREED int32_t *tokens = malloc((strlen(words) / 2 + 1) * sizeof *tokens);
    const char *word;
    uint32_t nbytes, n_tokens = 0;
    if (!tokens)
        return -ISTHMUS_ENOMEM;
    while ((nbytes = agent_word(&words, &word)) > 0) {
        int64_t token;
        AGENT_TRY(agent_parse_int(word, nbytes, 0, INT32_MAX, &token));
        tokens[n_tokens++] = (int32_t)token;
    }
    AGENT_TRY(agent_prefill(&session, tokens, n_tokens));
    return answer_length();
}

static int32_t decode_next(void)
{
    int32_t token;
    AGENT_SET(token, agent_session_sample(&session, &sampler));
    return agent_decode(&session, token);
}

static int32_t decode(int64_t n_tokens)
{
    for (int64_t i = 0; i < n_tokens; i++)
        AGENT_TRY(decode_next());
    return answer_length();
}

static int32_t sequence(int64_t n_tokens)
{
    for (int64_t i = 0; i < n_tokens; i++) {
        AGENT_TEXT_FREED agent_text_t text = {0};
        AGENT_TRY(decode_next());
        agent_text_append(&text, " ", i > 0);
        agent_text_append_int(&text, session.tokens[session.n_tokens - 1]);
        AGENT_TRY(agent_emit(text.bytes));
    }
    return 0;
}

static int32_t emit(int64_t n_tokens)
{
    AGENT_TEXT_FREED agent_text_t said = {0};
    for (int64_t i = 0; i < n_tokens; i++) {
        int32_t token, more;
        AGENT_SET(token, agent_session_sample(&session, &sampler));
        agent_text_clear(&said);
        AGENT_SET(more, agent_emit_token(&session, token, &said));
        if (!more)
            return 0;
    }
    return 0;
}

static int32_t hash(int64_t n_tokens)
{
    uint64_t value = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < n_tokens; i++) {
        float *logits;
        AGENT_TRY(decode_next());
        AGENT_TRY(agent_logits(&session, &logits));
        for (uint32_t k = 0; k < session.n_vocab; k++) {
            uint32_t bits;
            memcpy(&bits, &logits[k], sizeof bits);
            value = (value ^ bits) * 0x100000001b3u;
        }
    }
    return answer("hash=", (int64_t)(value >> 1));
}

static int32_t next(void)
{
    float *logits;
    AGENT_TRY(agent_logits(&session, &logits));
    return answer("token=", agent_argmax(logits, session.n_vocab));
}

static int32_t open_branches(agent_session_t *branches, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        AGENT_TRY(agent_session_open(&branches[i], session.model, session.n_ctx));
        AGENT_TRY(agent_session_top_k(&branches[i], session.n_top));
        AGENT_TRY(agent_session_copy(&branches[i], &session, session.n_tokens));
    }
    return 0;
}

static int32_t grow_branches(agent_session_t *branches, uint32_t n, int64_t n_tokens)
{
    agent_session_t *sessions[MOST_BRANCHES];
    agent_candidate_t top[MOST_BRANCHES];
    int32_t tokens[MOST_BRANCHES];
    float *logits;
    AGENT_TRY(agent_logits(&session, &logits));
    if (agent_top_k(logits, session.n_vocab, top, n) < n)
        return -ISTHMUS_EINVAL;
    for (int64_t at = 0; at < n_tokens; at++) {
        for (uint32_t i = 0; i < n; i++) {
            sessions[i] = &branches[i];
            tokens[i] = top[i].token;
            if (at > 0)
                AGENT_SET(tokens[i], agent_session_sample(&branches[i], &sampler));
        }
        AGENT_TRY(agent_decode_batch(sessions, tokens, n));
    }
    return 0;
}

static int32_t answer_branches(const agent_session_t *branches, uint32_t n)
{
    AGENT_TEXT_FREED agent_text_t text = {0};
    for (uint32_t i = 0; i < n; i++) {
        agent_text_append(&text, "\n", i > 0);
        for (uint32_t at = session.n_tokens; at < branches[i].n_tokens; at++) {
            agent_text_append(&text, " ", at > session.n_tokens);
            agent_text_append_int(&text, branches[i].tokens[at]);
        }
    }
    return agent_reply_text(&text);
}

static int32_t branch(int64_t n, int64_t n_tokens)
{
    agent_session_t branches[MOST_BRANCHES] = {0};
    if (n < 1 || n > MOST_BRANCHES)
        return -ISTHMUS_EINVAL;
    int32_t status = open_branches(branches, (uint32_t)n);
    if (status == 0)
        status = grow_branches(branches, (uint32_t)n, n_tokens);
    if (status == 0)
        status = answer_branches(branches, (uint32_t)n);
    for (int64_t i = 0; i < n; i++)
        AGENT_TRY(agent_session_close(&branches[i]));
    return status;
}

static int32_t call_host(int64_t n_calls)
{
    for (int64_t i = 0; i < n_calls; i++)
        AGENT_TRY(isthmus_session_length(session.handle));
    return answer("calls=", n_calls);
}

static int32_t spin(void)
{
    static volatile uint32_t turns;
    for (;;)
        turns++;
}

/* The next word as a number; `*value` stays its default at the end of the message. */
static int32_t read_number(const char **cursor, int64_t low, int64_t *value)
{
    const char *word;
    uint32_t nbytes = agent_word(cursor, &word);
    return nbytes ? agent_parse_int(word, nbytes, low, INT32_MAX, value) : 0;
}

__attribute__((export_name("on_message"))) int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TRY(agent_message(nbytes, &message));
    const char *cursor = message, *verb;
    uint32_t verb_nbytes = agent_word(&cursor, &verb);
    if (agent_equals(verb, verb_nbytes, "spin"))
        return spin();
    AGENT_TRY(open_session());
    if (agent_equals(verb, verb_nbytes, "tokens"))
        return prefill_words(cursor);
    int64_t n = -1, seed = 1;
    AGENT_TRY(read_number(&cursor, 0, &n));
    AGENT_TRY(read_number(&cursor, 0, &seed));
    if (n < 0)
        return -ISTHMUS_EINVAL;
    if (agent_equals(verb, verb_nbytes, "prefill"))
        return prefill(n, seed);
    if (agent_equals(verb, verb_nbytes, "decode"))
        return decode(n);
    if (agent_equals(verb, verb_nbytes, "sequence"))
        return sequence(n);
    if (agent_equals(verb, verb_nbytes, "emit"))
        return emit(n);
    if (agent_equals(verb, verb_nbytes, "hash"))
        return hash(n);
    if (agent_equals(verb, verb_nbytes, "next"))
        return next();
    if (agent_equals(verb, verb_nbytes, "branch"))
        return branch(n, seed);
    if (agent_equals(verb, verb_nbytes, "trap")) {
        session.n_tokens = (uint32_t)n;
        __builtin_trap();
    }
    if (agent_equals(verb, verb_nbytes, "hostcall"))
        return call_host(n);
    if (!agent_equals(verb, verb_nbytes, "truncate"))
        return -ISTHMUS_EINVAL;
    AGENT_TRY(agent_truncate(&session, (uint32_t)n));
    return answer_length();
}

__attribute__((export_name("nop"))) int32_t nop(int32_t value)
{
    return value;
}
