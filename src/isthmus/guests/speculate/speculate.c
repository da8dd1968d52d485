/*
 * speculate: a small model guesses, a large one checks: the large one's own answer, in fewer passes.
 *
 * What it owns: a session of the target model and one of the draft model. The draft's tokens are
 * always the first of the target's. Each message is a prompt of its own.
 *
 *   target  [ prompt | answer so far                    ]
 *   draft   [ prompt | answer so far, but for a token   ]
 *
 * A round, of which `token` was said last and is in neither session:
 *   1. The draft appends it and says greedily what may follow: d1 ... dk.
 *   2. The target appends token, d1 ... dk in one pass (decode_many), which gives the logits after
 *      each of them, with the bits that decoding them one by one would have.
 *   3. From the logits after `token` the next one is taken, exactly as without a draft. If it is
 *      d1, then from those after d1, and so on. The first that was not guessed is said, and is the
 *      next round's token; both sessions are truncated to what was right.
 *
 * So every token is taken from the same logits, by the same sampler with the same random state, as
 * if there were no draft (n_draft=0). How many are guessed is how many were right the last time,
 * and one more.
 *
 * Options: model, draft=draft (the model's name), n_draft=8 (the most that is guessed; 0: plain
 * decoding), n_ctx, max_tokens=256, temperature=0, top_k=40, top_p=0.95, min_p=0.05,
 * repeat_penalty=1, repeat_last_n=64, seed, answer=text|report. A report is `passes=P drafted=D
 * accepted=A tokens=T1 T2 ... TN` and comes at the end.
 */
#include "agent.h"

/* Where the prompt goes in what the template writes; no template has reason to write it itself. */
#define PLACEHOLDER "isthmus-text-goes-here"
#define MOST_DRAFTED 31
#define VOCABULARY_BLOCK 1024

static agent_session_t target, draft;
static isthmus_model_info_t info;
static float *rows; /* f32[n_draft][n_vocab]: the target's logits after all tokens but the last */
static int64_t n_draft = 8, max_tokens = 256;
static int32_t started, report;
static isthmus_sampler_t sampler = {
    .temperature = 0,
    .top_k = 40,
    .top_p = 0.95f,
    .min_p = 0.05f,
    .repeat_penalty = 1,
    .repeat_last_n = 64,
};

/* Of the message: what was said and counted, and how many tokens to guess next. */
static struct {
    agent_text_t ids;
    int64_t n_said, n_passes, n_drafted, n_accepted;
    uint32_t n_guesses;
    int32_t finished;
} answer;

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ------------------------------------------------------------------------------------ start */

/* Refuses a draft whose ids mean other texts than the target's. */
static int32_t require_same_vocabulary(void)
{
    AGENT_TEXT_FREED agent_text_t ours = {0}, theirs = {0};
    int32_t tokens[VOCABULARY_BLOCK];
    uint32_t n_common = min_u32(target.n_vocab, draft.n_vocab), n;
    for (uint32_t at = 0; at < n_common; at += n) {
        n = min_u32(VOCABULARY_BLOCK, n_common - at);
        for (uint32_t i = 0; i < n; i++)
            tokens[i] = (int32_t)(at + i);
        agent_text_clear(&ours);
        agent_text_clear(&theirs);
        AGENT_TRY(agent_detokenize(target.model, tokens, n, ISTHMUS_DETOKENIZE_RENDER_SPECIAL,
                                   &ours));
        AGENT_TRY(agent_detokenize(draft.model, tokens, n, ISTHMUS_DETOKENIZE_RENDER_SPECIAL,
                                   &theirs));
        if (ours.nbytes == theirs.nbytes && memcmp(ours.bytes, theirs.bytes, ours.nbytes) == 0)
            continue;
        agent_log(ISTHMUS_LOG_ERROR, "the draft model has another vocabulary than the target:"
                                     " give two models of one family");
        return -ISTHMUS_EINVAL;
    }
    return 0;
}

/* Opens the draft's session, as long as the target's where the model knows so much. */
static int32_t open_draft(void)
{
    isthmus_model_info_t its;
    const char *name = "draft";
    static int32_t model;
    AGENT_TRY(agent_option("draft", &name));
    if (!model)
        AGENT_SET(model, isthmus_model_open(name, (uint32_t)strlen(name)));
    AGENT_TRY(isthmus_model_info(model, &its));
    AGENT_TRY(agent_session_open(&draft, model, min_u32(target.n_ctx, its.n_ctx_train)));
    /* Also what the draft's logits after the first of two tokens go to, which nobody reads. */
    size_t n_floats = (size_t)n_draft * target.n_vocab;
    rows = malloc((n_floats > draft.n_vocab ? n_floats : draft.n_vocab) * sizeof *rows);
    if (!rows)
        return -ISTHMUS_ENOMEM;
    return require_same_vocabulary();
}

/* Closes a session. One that the host has closed is only forgotten. */
static int32_t close_session(agent_session_t *session)
{
    if (session->handle && isthmus_session_length(session->handle) < 0)
        session->handle = 0;
    return agent_session_close(session);
}

/* Has the next message begin from nothing. */
static int32_t stop(void)
{
    started = 0;
    free(rows);
    rows = NULL;
    AGENT_TRY(close_session(&draft));
    return close_session(&target);
}

/* Reads the options and opens the sessions; a failure leaves none open. */
static int32_t start(void)
{
    const char *what = "text";
    static int32_t model;
    int32_t status = 0;
    AGENT_TRY(agent_sampler_options(&sampler));
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_TRY(agent_option_int("n_draft", 0, MOST_DRAFTED, &n_draft));
    AGENT_TRY(agent_option("answer", &what));
    report = strcmp(what, "report") == 0;
    if (!report && strcmp(what, "text") != 0)
        return agent_option_refused("answer", what, "text or report");
    if (!model)
        AGENT_SET(model, agent_model_open());
    AGENT_TRY(isthmus_model_info(model, &info));
    AGENT_TRY(agent_session_open_by_option(&target, model));
    if (n_draft > 0)
        status = open_draft();
    if (status < 0)
        AGENT_TRY(stop());
    started = status == 0;
    return status;
}

/* ----------------------------------------------------------------------------------- prompt */

/* Appends the tokens of a text to `*tokens`. */
static int32_t append_tokens(const char *text, uint32_t nbytes, uint32_t flags, int32_t **tokens,
                             uint32_t *n_tokens)
{
    AGENT_FREED int32_t *more = NULL;
    uint32_t n;
    AGENT_SET(n, agent_tokenize(target.model, text, nbytes, flags, &more));
    int32_t *room = realloc(*tokens, (*n_tokens + n + 1) * sizeof *room);
    if (!room)
        return -ISTHMUS_ENOMEM;
    memcpy(room + *n_tokens, more, n * sizeof *room);
    *tokens = room;
    *n_tokens += n;
    return 0;
}

/* The message as the model wants it. Control tokens are the template's only. */
static int32_t tokenize_prompt(const agent_text_t *text, int32_t **tokens, uint32_t *n_tokens)
{
    AGENT_TEXT_FREED agent_text_t prompt = {0};
    const uint32_t special = ISTHMUS_TOKENIZE_PARSE_SPECIAL;
    if (!(info.flags & ISTHMUS_MODEL_CHAT_TEMPLATE))
        return append_tokens(text->bytes, text->nbytes, ISTHMUS_TOKENIZE_ADD_SPECIAL, tokens,
                             n_tokens);
    isthmus_chat_message_t turn = agent_chat_message("user", PLACEHOLDER, sizeof PLACEHOLDER - 1);
    AGENT_TRY(agent_chat_template(target.model, &turn, 1, ISTHMUS_CHAT_ADD_GENERATION_PROMPT,
                                  &prompt));
    const char *place = strstr(prompt.bytes, PLACEHOLDER);
    if (!place)
        return -ISTHMUS_EINVAL;
    const char *after = place + sizeof PLACEHOLDER - 1;
    AGENT_TRY(append_tokens(prompt.bytes, (uint32_t)(place - prompt.bytes),
                            special | ISTHMUS_TOKENIZE_ADD_SPECIAL, tokens, n_tokens));
    /* Some templates write the BOS token that ADD_SPECIAL adds: one is enough. */
    if (*n_tokens > 1 && (*tokens)[0] == info.token_bos && (*tokens)[1] == info.token_bos)
        memmove(*tokens, *tokens + 1, --*n_tokens * sizeof **tokens);
    AGENT_TRY(append_tokens(text->bytes, text->nbytes, 0, tokens, n_tokens));
    return append_tokens(after, (uint32_t)strlen(after), special, tokens, n_tokens);
}

/* A token of the target as the draft knows it. It may guess worse for it, and no more than that. */
static int32_t for_draft(int32_t token)
{
    return (uint32_t)token < draft.n_vocab ? token : 0;
}

/* Makes both sessions hold the prompt. A draft whose context it does not fit into is not used. */
static int32_t prefill_prompt(const agent_text_t *text)
{
    AGENT_FREED int32_t *tokens = NULL;
    uint32_t n = 0;
    AGENT_TRY(tokenize_prompt(text, &tokens, &n));
    if (n == 0)
        return -ISTHMUS_EINVAL;
    AGENT_TRY(agent_truncate(&target, 0));
    AGENT_TRY(agent_prefill(&target, tokens, n));
    if (!draft.handle)
        return 0;
    AGENT_TRY(agent_truncate(&draft, 0));
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = for_draft(tokens[i]);
    return n < draft.n_ctx ? agent_prefill(&draft, tokens, n) : 0;
}

/* ----------------------------------------------------------------------------------- tokens */

/* Says the token that follows the target's first n_tokens, unless it ends the answer. */
static int32_t say(int32_t token, uint32_t n_tokens)
{
    AGENT_TEXT_FREED agent_text_t text = {0};
    int32_t flags;
    AGENT_SET(flags, isthmus_token_flags(target.model, token));
    answer.finished = flags & ISTHMUS_TOKEN_EOG;
    if (answer.finished)
        return 0;
    answer.finished = ++answer.n_said == max_tokens || n_tokens == target.n_ctx;
    agent_text_append(&answer.ids, " ", answer.n_said > 1);
    AGENT_TRY(agent_text_append_int(&answer.ids, token));
    if (report)
        return 0;
    AGENT_TRY(agent_detokenize(target.model, &token, 1, 0, &text));
    return isthmus_emit(text.bytes, text.nbytes);
}

/* The token that follows the target's first n_tokens, of which these are the logits. */
static int32_t next_token(float *logits, uint32_t n_tokens)
{
    uint32_t n_recent = min_u32(sampler.repeat_last_n, n_tokens);
    return agent_sample(logits, target.n_vocab, target.tokens + n_tokens - n_recent, n_recent,
                        &sampler);
}

/* Has the draft hold all that the target holds, and `token`. */
static int32_t catch_up(int32_t token)
{
    int32_t last[2] = {0, for_draft(token)};
    while (draft.n_tokens + 1 < target.n_tokens)
        AGENT_TRY(agent_decode(&draft, for_draft(target.tokens[draft.n_tokens])));
    if (draft.n_tokens == target.n_tokens)
        return agent_decode(&draft, last[1]);
    last[0] = for_draft(target.tokens[draft.n_tokens]);
    return agent_decode_many(&draft, last, 2, rows);
}

/* Fills `guesses` with up to n tokens that may follow `token`. Returns how many. */
static int32_t guess(int32_t token, int32_t *guesses, uint32_t n)
{
    float *logits;
    if (!draft.handle || n == 0 || target.n_tokens + n >= draft.n_ctx)
        return 0;
    AGENT_TRY(catch_up(token));
    for (uint32_t i = 0;; i++) {
        int32_t flags;
        AGENT_TRY(agent_logits(&draft, &logits));
        AGENT_SET(guesses[i], agent_argmax(logits, min_u32(draft.n_vocab, target.n_vocab)));
        AGENT_SET(flags, isthmus_token_flags(target.model, guesses[i]));
        if (flags & ISTHMUS_TOKEN_EOG || i + 1 == n)
            return (int32_t)i + 1;
        AGENT_TRY(agent_decode(&draft, guesses[i]));
    }
}

/* One round. Says the guesses that were right; returns the token that follows them, not yet said. */
static int32_t advance(int32_t token)
{
    int32_t tokens[1 + MOST_DRAFTED] = {token}, next;
    uint32_t base = target.n_tokens, n, right = 0;
    int64_t room = target.n_ctx - base, left = max_tokens - answer.n_said;
    n = min_u32(answer.n_guesses, (uint32_t)(left < room ? left : room) - 1);
    AGENT_SET(n, guess(token, tokens + 1, n));
    AGENT_TRY(agent_decode_many(&target, tokens, n + 1, rows));
    answer.n_passes++;
    answer.n_drafted += n;
    for (;; right++) {
        float *logits = rows + (size_t)right * target.n_vocab;
        if (right == n)
            AGENT_TRY(agent_logits(&target, &logits));
        AGENT_SET(next, next_token(logits, base + right + 1));
        if (right == n || next != tokens[right + 1])
            break;
        answer.n_accepted++;
        AGENT_TRY(say(next, base + right + 1));
        if (answer.finished)
            return next;
    }
    answer.n_guesses = min_u32((uint32_t)n_draft, right + 1);
    if (right < n)
        AGENT_TRY(agent_truncate(&target, base + right + 1));
    if (draft.n_tokens > base + right + 1)
        AGENT_TRY(agent_truncate(&draft, base + right + 1));
    return next;
}

static int32_t generate(void)
{
    float *logits;
    int32_t token;
    AGENT_TRY(agent_logits(&target, &logits));
    AGENT_SET(token, next_token(logits, target.n_tokens));
    for (;;) {
        AGENT_TRY(say(token, target.n_tokens));
        if (answer.finished)
            return 0;
        AGENT_SET(token, advance(token));
        if (answer.finished)
            return 0;
    }
}

/* Whatever was counted, as a report or for the log. */
static int32_t tell(void)
{
    AGENT_TEXT_FREED agent_text_t text = {0};
    agent_text_append_string(&text, "passes=");
    agent_text_append_int(&text, answer.n_passes);
    agent_text_append_string(&text, " drafted=");
    agent_text_append_int(&text, answer.n_drafted);
    agent_text_append_string(&text, " accepted=");
    agent_text_append_int(&text, answer.n_accepted);
    if (!report && agent_text_status(&text) == 0)
        return isthmus_log(ISTHMUS_LOG_INFO, text.bytes, text.nbytes);
    agent_text_append_string(&text, " tokens=");
    agent_text_append(&text, answer.ids.bytes, answer.ids.nbytes);
    return agent_reply_text(&text);
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
    agent_text_clear(&answer.ids);
    answer.n_said = answer.n_passes = answer.n_drafted = answer.n_accepted = 0;
    answer.n_guesses = min_u32((uint32_t)n_draft, 4);
    AGENT_TRY(prefill_prompt(&text));
    int32_t status = generate();
    if (status < 0 && status != -ISTHMUS_ECANCELED && status != -ISTHMUS_ELIMIT)
        return status;
    status = tell(); /* who wants no more, or may have no more, has what was said */
    return status == -ISTHMUS_ECANCELED || status == -ISTHMUS_ELIMIT ? 0 : status;
}

/* Another model: the next message begins with it. */
__attribute__((export_name("on_replay"))) int32_t on_replay(void)
{
    return stop();
}
