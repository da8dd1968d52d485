/*
 * ngram: guesses that a text repeats itself, and checks its guesses several at a time.
 *
 * If the last two tokens were there before, what followed them then may follow now: those tokens
 * are decoded in one pass (decode_many), whose logits tell how many of them are right. The answer is
 * the one that decoding token by token gives, in fewer passes. Options: max_tokens=128, n_guess=8,
 * report=1 tells passes and tokens instead of the answer.
 */
#include "conversation.h"

#define MOST_GUESSED 16

static agent_session_t session;
static float *rows; /* logits after all but the last token of a pass */
static int64_t max_tokens = 128, n_guess = 8, report;
static uint32_t n_passes, n_said;

static int32_t start(void)
{
    int32_t model;
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_TRY(agent_option_int("n_guess", 0, MOST_GUESSED, &n_guess));
    AGENT_TRY(agent_option_int("report", 0, 1, &report));
    AGENT_SET(model, agent_model_open());
    AGENT_TRY(agent_session_open_by_option(&session, model));
    rows = (float *)malloc(MOST_GUESSED * session.n_vocab * sizeof *rows);
    return rows ? 0 : -ISTHMUS_ENOMEM;
}

/* Appends to tokens[0], which follows the session, what followed the same two tokens before. */
static uint32_t guess(int32_t *tokens)
{
    const int32_t *held = session.tokens;
    uint32_t n = session.n_tokens, n_tokens = 1;
    for (uint32_t at = n - 1; at-- > 1 && n_tokens == 1;)
        if (held[at] == tokens[0] && held[at - 1] == held[n - 1])
            while (n_tokens <= n_guess && at + n_tokens < n) {
                tokens[n_tokens] = held[at + n_tokens];
                n_tokens++;
            }
    uint32_t room = session.n_ctx - n;
    return n_tokens < room ? n_tokens : room;
}

static int32_t say(int32_t token)
{
    AGENT_TEXT_FREED agent_text_t piece = AGENT_EMPTY;
    AGENT_TRY(agent_detokenize(session.model, &token, 1, 0, &piece));
    n_said++;
    return report ? 0 : isthmus_emit(piece.bytes, piece.nbytes);
}

/* The most probable token after number i of a pass of n. */
static int32_t token_after(uint32_t i, uint32_t n)
{
    float *logits = rows + (size_t)i * session.n_vocab;
    if (i + 1 == n)
        AGENT_TRY(agent_logits(&session, &logits));
    return agent_argmax(logits, session.n_vocab);
}

/* Decodes a token and guesses after it, and says what is right. Returns the next token. */
static int32_t round_of(int32_t token)
{
    int32_t tokens[MOST_GUESSED + 1] = {token}, next = 0, flags;
    uint32_t n = guess(tokens), before = session.n_tokens, n_right = 0;
    if (n == 0)
        return -ISTHMUS_ECONTEXT;
    AGENT_TRY(agent_decode_many(&session, tokens, n, rows));
    n_passes++;
    for (uint32_t i = 0; i < n; i++) {
        AGENT_SET(next, token_after(i, n));
        AGENT_SET(flags, isthmus_token_flags(session.model, next));
        n_right++;
        if (i + 1 == n || next != tokens[i + 1] || n_said == max_tokens)
            break;
        if (flags & ISTHMUS_TOKEN_EOG)
            break;
        AGENT_TRY(say(next));
    }
    if (n_right < n)
        AGENT_TRY(agent_truncate(&session, before + n_right));
    return next;
}

static int32_t answer(void)
{
    float *logits;
    int32_t token, flags;
    n_passes = n_said = 0;
    AGENT_TRY(agent_logits(&session, &logits));
    AGENT_SET(token, agent_argmax(logits, session.n_vocab));
    while (n_said < max_tokens) {
        AGENT_SET(flags, isthmus_token_flags(session.model, token));
        if (flags & ISTHMUS_TOKEN_EOG)
            return 0;
        AGENT_TRY(say(token));
        AGENT_SET(token, round_of(token));
    }
    return 0;
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_FREED int32_t *tokens = NULL;
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    agent_chat_t chat = AGENT_EMPTY;
    AGENT_TRY(agent_message(nbytes, &message));
    if (!rows)
        AGENT_TRY(start());
    int32_t status = agent_chat_say(&chat, "user", message, (uint32_t)nbytes);
    if (status == 0)
        status = agent_chat_tokens(session.model, &chat, &tokens);
    agent_chat_free(&chat);
    AGENT_TRY(status);
    AGENT_TRY(agent_session_become(&session, tokens, (uint32_t)status));
    AGENT_TRY(answer());
    if (!report)
        return 0;
    agent_text_append_int(&text, n_passes);
    agent_text_append_string(&text, " passes, ");
    agent_text_append_int(&text, n_said);
    agent_text_append_string(&text, " tokens");
    return agent_reply_text(&text);
}
