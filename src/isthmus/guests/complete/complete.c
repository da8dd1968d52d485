/*
 * complete: continues a list of tokens, one request after another; for servers.
 *
 * A message is a line of `word=value`, the prompt's token ids, and the source of a grammar if there
 * is one. abi/complete.toml describes the words; words.h is generated from it.
 *
 * Each token is emitted as a line: `ID`, or with logprobs=N `ID LOGPROB` and the N most probable
 * ones as `ID:LOGPROB`. These are the model's own: biases, penalties, grammars and the sampler
 * change what is drawn, and not what is told. The last line is `end REASON CACHED`: stop (the model
 * or the grammar ended it) or length (max_tokens, the context or a limit), and how many tokens of
 * the prompt were not computed again. Biases are added to the logits of their tokens; presence and
 * frequency penalties are for the tokens of the answer; with ignore_eos=1 a token that ends the
 * text is one like all others.
 *
 * Where a token ended the answer, it is told with logprobs as `eog ID LOGPROB` and so on.
 *
 * With score_prompt=1 the prompt's tokens come first, as `prompt ID LOGPROB` and so on; the first
 * one has the logprob `null`. They are decoded for it, in a session that is emptied before and
 * after, so the answer has the bits that it has without.
 *
 * The session keeps the tokens that a prompt has in common with the one before, as far as every bit
 * of the answer stays the same whatever was there before. How a prompt is cut into chunks changes
 * bits; so it is prefilled in blocks of BLOCK, counted from its beginning, and only whole blocks
 * that were prefilled are kept. Where the host knows that the cut changes nothing in chunks of up
 * to SMALL tokens, it says with fine=N that the first N tokens are to be prefilled in those: they
 * are kept token by token. Beyond that small chunks would be slower.
 *
 * With grammar=KIND, a grammar_kind of the ABI, the answer follows the grammar. With thinking=N a
 * thought of N tokens is closed: the answer gets the tokens `close`, and goes on from there.
 *
 * Options: model, n_ctx, fine=0, a multiple of BLOCK.
 */
#include "agent.h"
#include "words.h"

#define BLOCK 128
#define SMALL 63
#define MOST_LOGPROBS 20
#define MOST_SCORED 32             /* tokens of the prompt that are scored in one pass */
#define SCORES_NBYTES (8u << 20)   /* of their logits, where as many fit */
#define MOST_IDS 32 /* in each list of tokens about thoughts */

static agent_session_t session;
static uint32_t n_prefilled; /* tokens at the beginning of the session that may be kept */
static uint32_t n_fine;      /* tokens at the beginning of a prompt, prefilled in small chunks */

typedef struct {
    int32_t ids[MOST_IDS];
    uint32_t n;
} ids_t;

/* Whether the answer is inside a thought, and what is to be done about it. */
typedef struct {
    ids_t opens, closes, close;
    int64_t most, n; /* tokens that a thought may have, or -1; tokens that it has */
    int32_t is_open;
    uint32_t n_closing; /* tokens of `close` that are still to come */
} thought_t;

/* How often the answer has each of its tokens. */
typedef struct {
    struct {
        int32_t token;
        uint32_t n;
    } *each; /* from malloc; NULL where nobody wants to know */
    uint32_t n, cap;
} tally_t;

typedef struct {
    complete_words_t words;
    isthmus_sampler_t sampler;
    thought_t thought;
    tally_t tally;
    const int32_t *ids;
    uint32_t n_ids;
    const char *source; /* of the grammar */
} request_t;

/* ---------------------------------------------------------------------------------- request */

/* Reads one `word=value` into its place. Returns 0, or -ISTHMUS_EINVAL. */
static int32_t read_word(const char *text, uint32_t nbytes, complete_words_t *words)
{
    uint32_t n_name = (uint32_t)strcspn(text, "="), n_value = nbytes - n_name - 1;
    if (n_name >= nbytes)
        return -ISTHMUS_EINVAL;
    const char *value = text + n_name + 1;
    for (uint32_t i = 0; i < sizeof COMPLETE_WORDS / sizeof *COMPLETE_WORDS; i++) {
        const word_t *word = COMPLETE_WORDS + i;
        void *place = (char *)words + word->offset;
        if (strlen(word->name) != n_name || memcmp(word->name, text, n_name) != 0)
            continue;
        if (word->kind == WORD_INT)
            return agent_parse_int(value, n_value, word->low, word->high, place);
        if (word->kind == WORD_FLOAT)
            return agent_parse_float(value, n_value, word->least, word->most, place);
        *(const char **)place = value;
        return 0;
    }
    return -ISTHMUS_EINVAL;
}

/* Reads ids, separated by commas, until a space. No text gives none. */
static int32_t read_ids(const char *text, ids_t *ids)
{
    while (text && *text > ' ') {
        int64_t token;
        uint32_t nbytes = (uint32_t)strcspn(text, ", ");
        if (ids->n == MOST_IDS)
            return -ISTHMUS_EINVAL;
        AGENT_TRY(agent_parse_int(text, nbytes, 0, session.n_vocab - 1, &token));
        ids->ids[ids->n++] = (int32_t)token;
        text += nbytes + (text[nbytes] == ',');
    }
    return 0;
}

static int32_t read_thought(const complete_words_t *words, thought_t *thought)
{
    AGENT_TRY(read_ids(words->opens, &thought->opens));
    AGENT_TRY(read_ids(words->closes, &thought->closes));
    AGENT_TRY(read_ids(words->close, &thought->close));
    thought->most = thought->close.n ? words->thinking : -1;
    thought->is_open = (int32_t)words->in_thought;
    return 0;
}

static isthmus_sampler_t sampler_of(const complete_words_t *words)
{
    return (isthmus_sampler_t){
        .temperature = (float)words->temperature,
        .top_k = (uint32_t)words->top_k,
        .top_p = (float)words->top_p,
        .min_p = (float)words->min_p,
        .repeat_penalty = (float)words->repeat_penalty,
        .repeat_last_n = (uint32_t)words->repeat_last_n,
        .rng_state = (uint64_t)words->seed,
    };
}

/* Reads the message, which stays where it is. */
static int32_t read_request(char *message, uint32_t nbytes, request_t *request)
{
    char *end = memchr(message, '\n', nbytes);
    const char *cursor = message, *word;
    uint32_t word_nbytes, head;
    if (!end || (head = (uint32_t)(end + 1 - message)) % sizeof *request->ids != 0)
        return -ISTHMUS_EINVAL;
    *end = '\0';
    *request = (request_t){.words = COMPLETE_DEFAULTS};
    while ((word_nbytes = agent_word(&cursor, &word)) > 0)
        AGENT_TRY(read_word(word, word_nbytes, &request->words));
    AGENT_TRY(read_thought(&request->words, &request->thought));
    request->sampler = sampler_of(&request->words);
    uint32_t source_nbytes = (uint32_t)request->words.grammar_nbytes;
    if (source_nbytes > nbytes - head)
        return -ISTHMUS_EINVAL;
    uint32_t ids_nbytes = nbytes - head - source_nbytes;
    request->ids = (const int32_t *)(const void *)(message + head);
    request->n_ids = ids_nbytes / (uint32_t)sizeof *request->ids;
    request->source = message + head + ids_nbytes;
    return request->n_ids == 0 || ids_nbytes % sizeof *request->ids ? -ISTHMUS_EINVAL : 0;
}

/* ----------------------------------------------------------------------------------- prompt */

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* How many of `n` tokens that a prompt of `n_ids` has in common with the session may be kept. */
static uint32_t keep(uint32_t n, uint32_t n_ids)
{
    uint32_t end = min_u32(n_ids, n_fine);
    n = min_u32(n, min_u32(n_prefilled, n_ids - 1));
    if (n >= n_fine)
        return n - (n - n_fine) % BLOCK;
    return n > 0 && n == end - 1 ? n - 1 : n; /* a single token is computed in another way */
}

/* Tokens of the chunk that begins at token `at`; never the last but one of the small ones. */
static uint32_t chunk_at(uint32_t at, uint32_t n_ids)
{
    if (at >= n_fine)
        return min_u32(BLOCK, n_ids - at);
    uint32_t left = min_u32(n_ids, n_fine) - at;
    return left == SMALL + 1 ? SMALL - 1 : min_u32(SMALL, left);
}

/* Makes the session hold the prompt. Returns how many of its tokens were there. */
static int32_t prefill_prompt(const request_t *request)
{
    uint32_t n_common = 0, n_ids = request->n_ids, n;
    if (n_ids > session.n_ctx)
        return -ISTHMUS_ECONTEXT;
    while (n_common < min_u32(n_prefilled, n_ids)
           && session.tokens[n_common] == request->ids[n_common])
        n_common++;
    AGENT_SET(n_common, agent_keep(&session, keep(n_common, n_ids)));
    n_prefilled = n_common;
    for (uint32_t at = n_common; at < n_ids; at += n) {
        n = chunk_at(at, n_ids);
        AGENT_TRY(agent_prefill(&session, request->ids + at, n));
        if (at < n_fine ? n > 1 : n == BLOCK)
            n_prefilled += n;
    }
    return (int32_t)n_common;
}

/* ----------------------------------------------------------------------------------- tokens */

/* Adds the biases. Returns 0; or -ISTHMUS_EINVAL where they cannot be read or name no token. */
static int32_t apply_bias(float *logits, const char *bias)
{
    while (bias && *bias > ' ') {
        int64_t token;
        double number;
        uint32_t n_id = (uint32_t)strcspn(bias, ": "), n_number;
        AGENT_TRY(agent_parse_int(bias, n_id, 0, session.n_vocab - 1, &token));
        bias += n_id + (bias[n_id] == ':');
        n_number = (uint32_t)strcspn(bias, ", ");
        AGENT_TRY(agent_parse_float(bias, n_number, -100, 100, &number));
        logits[token] += (float)number;
        session.edited = 1;
        bias += n_number + (bias[n_number] == ',');
    }
    return 0;
}

/* Natural logarithm of x > 0: the exponent, and a series in (m - 1) / (m + 1) of the mantissa. */
static double logarithm(double x)
{
    union {
        double value;
        uint64_t bits;
    } u = {x};
    int32_t exponent = (int32_t)(u.bits >> 52 & 0x7ff) - 1023;
    u.bits = (u.bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
    double t = (u.value - 1) / (u.value + 1), square = t * t, sum = 0, power = t;
    for (int32_t i = 1; i < 40; i += 2, power *= square)
        sum += power / i;
    return 2 * sum + exponent * 0.69314718055994531;
}

/* The logarithm of the sum of all exponentials, and the largest logit. */
static double log_sum(const float *logits)
{
    double sum = 0;
    float most = logits[agent_argmax(logits, session.n_vocab)];
    for (uint32_t i = 0; i < session.n_vocab; i++)
        sum += logits[i] - most < -80 ? 0 : agent_exp(logits[i] - most);
    return most + logarithm(sum);
}

/* Writes a token's line; with the model's own logits, if they are told. */
static int32_t write_line(const request_t *request, const float *logits, int32_t token,
                          agent_text_t *line)
{
    agent_candidate_t top[MOST_LOGPROBS];
    agent_text_append_int(line, token);
    if (logits) {
        double all = log_sum(logits);
        uint32_t n = request->words.logprobs
            ? agent_top_k(logits, session.n_vocab, top, (uint32_t)request->words.logprobs)
            : 0;
        agent_text_append_string(line, " ");
        agent_text_append_float(line, logits[token] - all);
        for (uint32_t i = 0; i < n; i++) {
            agent_text_append_string(line, " ");
            agent_text_append_int(line, top[i].token);
            agent_text_append_string(line, ":");
            agent_text_append_float(line, top[i].logit - all);
        }
    }
    return agent_text_append_string(line, "\n");
}

/* --------------------------------------------------------------------------------- penalties */

/* Whether the answer's own tokens change what is drawn. */
static int32_t penalises(const complete_words_t *words)
{
    return words->presence_penalty != 0 || words->frequency_penalty != 0;
}

/* Notes a token of the answer. */
static int32_t count(tally_t *tally, int32_t token)
{
    uint32_t at = 0;
    while (at < tally->n && tally->each[at].token != token)
        at++;
    if (at == tally->n) {
        if (tally->n == tally->cap) {
            uint32_t cap = 2 * tally->cap + 64;
            void *each = realloc(tally->each, cap * sizeof *tally->each);
            if (!each)
                return -ISTHMUS_ENOMEM;
            tally->each = each;
            tally->cap = cap;
        }
        tally->n++;
        tally->each[at].token = token;
        tally->each[at].n = 0;
    }
    tally->each[at].n++;
    return 0;
}

/* Subtracts the penalties of tokens that the answer has. */
static void apply_penalties(const request_t *request, float *logits)
{
    const tally_t *tally = &request->tally;
    for (uint32_t i = 0; i < tally->n; i++)
        logits[tally->each[i].token] -= (float)(request->words.presence_penalty
                                                + tally->each[i].n
                                                      * request->words.frequency_penalty);
    session.edited |= tally->n > 0;
}

/* ----------------------------------------------------------------------------------- answer */

/* Whether a token, after those that the session has, completes the list. */
static int32_t completes(const ids_t *ids, int32_t token)
{
    uint32_t before = ids->n - 1;
    return ids->n > 0 && ids->ids[before] == token && session.n_tokens >= before
        && memcmp(session.tokens + session.n_tokens - before, ids->ids,
                  before * sizeof *ids->ids) == 0;
}

/* Notes a token of the answer, before the session has it. */
static void think(thought_t *thought, int32_t token)
{
    if (thought->is_open && completes(&thought->closes, token)) {
        thought->is_open = 0;
    } else if (!thought->is_open && completes(&thought->opens, token)) {
        thought->is_open = 1;
        thought->n = 0;
    } else if (thought->is_open) {
        thought->n++;
    }
}

/* Whether the next token is one that closes a thought; then it is in `*token`. */
static int32_t closing(thought_t *thought, int32_t *token)
{
    if (!thought->n_closing) {
        if (!thought->is_open || thought->most < 0 || thought->n < thought->most)
            return 0;
        thought->n_closing = thought->close.n;
        thought->is_open = 0;
    }
    *token = thought->close.ids[thought->close.n - thought->n_closing--];
    return 1;
}

/* Chooses the next token. Returns 1, or 0 if the answer ends here: with `*token`, if it is set. */
static int32_t choose(request_t *request, int32_t grammar, float *logits, int32_t *token)
{
    int32_t more, flags;
    if (closing(&request->thought, token)) {
        AGENT_TRY(agent_grammar_accept(grammar, *token));
        return 1;
    }
    apply_penalties(request, logits);
    AGENT_TRY(apply_bias(logits, request->words.bias));
    AGENT_SET(more, agent_grammar_mask(grammar, &session));
    if (!more)
        return 0;
    AGENT_SET(*token, agent_session_sample(&session, &request->sampler));
    AGENT_SET(flags, isthmus_token_flags(session.model, *token));
    if (flags & ISTHMUS_TOKEN_EOG && !request->words.ignore_eos)
        return 0;
    AGENT_TRY(agent_grammar_accept(grammar, *token));
    think(&request->thought, *token);
    return 1;
}

/* Emits a token's line after what kind of token it is. */
static int32_t emit_line(const request_t *request, const char *kind, const float *logits,
                         int32_t token)
{
    AGENT_TEXT_FREED agent_text_t line = {0};
    agent_text_append_string(&line, kind);
    AGENT_TRY(write_line(request, logits, token, &line));
    return agent_emit(line.bytes);
}

/* Emits tokens until there is a reason to end, which it returns in `*reason`. */
static int32_t generate(request_t *request, int32_t grammar, const char **reason)
{
    int32_t token, more, status;
    int64_t most = request->words.max_tokens;
    size_t nbytes = request->words.logprobs < 0 ? 0 : session.n_vocab * sizeof(float);
    AGENT_FREED float *own = nbytes ? malloc(nbytes) : NULL; /* logits as the model has them */
    if (nbytes && !own)
        return -ISTHMUS_ENOMEM;
    for (int64_t i = 0; i < most && session.n_tokens < session.n_ctx; i++) {
        AGENT_TEXT_FREED agent_text_t line = {0};
        float *logits;
        token = -1;
        AGENT_TRY(agent_logits(&session, &logits));
        if (own)
            memcpy(own, logits, nbytes);
        *reason = "stop";
        AGENT_SET(more, choose(request, grammar, logits, &token));
        if (!more)
            return own && token >= 0 ? emit_line(request, "eog ", own, token) : 0;
        if (penalises(&request->words))
            AGENT_TRY(count(&request->tally, token));
        AGENT_TRY(write_line(request, own, token, &line));
        *reason = "length";
        status = agent_emit(line.bytes);
        if (status == 0 && i + 1 < most)
            status = agent_decode(&session, token);
        if (status == -ISTHMUS_ECANCELED || status == -ISTHMUS_ELIMIT)
            return 0;
        AGENT_TRY(status);
    }
    *reason = "length";
    return 0;
}

static int32_t forget(void)
{
    n_prefilled = 0;
    return agent_truncate(&session, 0);
}

/* Emits the line of the prompt's first token, which nothing foretold. */
static int32_t emit_first(int32_t token)
{
    AGENT_TEXT_FREED agent_text_t line = {0};
    agent_text_append_string(&line, "prompt ");
    agent_text_append_int(&line, token);
    AGENT_TRY(agent_text_append_string(&line, " null\n"));
    return agent_emit(line.bytes);
}

/* Emits the prompt's tokens. Leaves the session empty. */
static int32_t score_prompt(const request_t *request)
{
    uint32_t row = session.n_vocab, most = SCORES_NBYTES / (uint32_t)sizeof(float) / row + 1, n;
    most = min_u32(MOST_SCORED, most < 2 ? 2 : most);
    AGENT_FREED float *rows = malloc((most - 1) * (size_t)row * sizeof *rows);
    if (!rows)
        return -ISTHMUS_ENOMEM;
    if (request->n_ids > session.n_ctx)
        return -ISTHMUS_ECONTEXT;
    AGENT_TRY(forget());
    AGENT_TRY(emit_first(request->ids[0]));
    for (uint32_t at = 0; at + 1 < request->n_ids; at += n) {
        float *last;
        n = min_u32(most, request->n_ids - 1 - at);
        AGENT_TRY(agent_decode_many(&session, request->ids + at, n, rows));
        AGENT_TRY(agent_logits(&session, &last));
        for (uint32_t i = 0; i < n; i++)
            AGENT_TRY(emit_line(request, "prompt ", i + 1 < n ? rows + (size_t)i * row : last,
                                request->ids[at + i + 1]));
    }
    return forget();
}

static int32_t answer(request_t *request)
{
    const char *reason = "length";
    int32_t n_cached = 0;
    AGENT_TEXT_FREED agent_text_t line = {0};
    AGENT_GRAMMAR_CLOSED int32_t grammar = 0;
    if (request->words.grammar)
        AGENT_SET(grammar, isthmus_grammar_open(session.model, (uint32_t)request->words.grammar,
                                                request->source,
                                                (uint32_t)request->words.grammar_nbytes));
    uint32_t k = agent_sampler_top_k(&request->sampler, session.n_vocab);
    int32_t edits = grammar || request->words.bias || penalises(&request->words);
    AGENT_TRY(agent_session_top_k(&session, edits ? 0 : k));
    if (request->words.score_prompt)
        AGENT_TRY(score_prompt(request));
    if (request->words.max_tokens > 0 || !request->words.score_prompt)
        AGENT_SET(n_cached, prefill_prompt(request));
    AGENT_TRY(generate(request, grammar, &reason));
    agent_text_append_string(&line, "end ");
    agent_text_append_string(&line, reason);
    agent_text_append_string(&line, " ");
    agent_text_append_int(&line, n_cached);
    AGENT_TRY(agent_text_append_string(&line, "\n"));
    int32_t status = agent_emit(line.bytes);
    return status == -ISTHMUS_ECANCELED ? 0 : status;
}

__attribute__((export_name("on_message"))) int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    request_t request;
    AGENT_TRY(agent_message(nbytes, &message));
    if (!session.handle) {
        int32_t model;
        int64_t fine = 0;
        AGENT_SET(model, agent_model_open());
        AGENT_TRY(agent_option_int("fine", 0, INT32_MAX / BLOCK * BLOCK, &fine));
        n_fine = (uint32_t)fine - (uint32_t)fine % BLOCK;
        AGENT_TRY(agent_session_open_by_option(&session, model));
    }
    AGENT_TRY(read_request(message, (uint32_t)nbytes, &request));
    int32_t status = answer(&request);
    free(request.tally.each);
    if (status < 0)
        n_prefilled = min_u32(n_prefilled, session.n_tokens);
    return status;
}
