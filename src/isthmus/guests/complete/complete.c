/*
 * complete: continues a list of tokens, one request after another; for servers.
 *
 * A message is a line of `key=value` words, the prompt's ids after it, as 32-bit numbers, and the
 * source of a grammar where there is one:
 *
 *   max_tokens=64 temperature=0.7 top_k=0 top_p=1 min_p=0 repeat_penalty=1 seed=7 logprobs=5
 *   grammar=1 grammar_nbytes=17 ignore_eos=0 bias=ID:NUMBER,ID:NUMBER\n
 *   [ids][source]
 *
 * Each token is emitted as a line: `ID`, or with logprobs=N `ID LOGPROB` and the N most probable
 * ones as `ID:LOGPROB`. The last line is `end REASON CACHED`: stop (the model or the grammar ended
 * it) or length (max_tokens, the context or a limit), and how many tokens of the prompt were not
 * computed again. Only max_tokens has no default. Biases are added to the logits
 * of their tokens; with ignore_eos=1 a token that ends the text is one like all others.
 *
 * The session keeps the tokens that a prompt has in common with the one before, as far as every bit
 * of the answer stays the same whatever was there before. How a prompt is cut into chunks changes
 * bits; so it is prefilled in blocks of BLOCK, counted from its beginning, and only whole blocks
 * that were prefilled are kept. Where the host knows that the cut changes nothing in chunks of up
 * to SMALL tokens, it says with fine=N that the first N tokens are to be prefilled in those: they
 * are kept token by token. Beyond that small chunks would be slower.
 *
 * With grammar=KIND, a grammar_kind of the ABI, the answer follows the grammar.
 * Options: model, n_ctx, fine=0, a multiple of BLOCK.
 */
#include "agent.h"

#define BLOCK 128
#define SMALL 63
#define MOST_LOGPROBS 20

static agent_session_t session;
static uint32_t n_prefilled; /* tokens at the beginning of the session that may be kept */
static char *bias_text;      /* of the last request that had any */
static uint32_t n_fine;      /* tokens at the beginning of a prompt, prefilled in small chunks */

typedef struct {
    isthmus_sampler_t sampler;
    int64_t max_tokens, logprobs, grammar, grammar_nbytes, ignore_eos;
    const char *bias; /* ID:NUMBER,ID:NUMBER, or NULL */
    const int32_t *ids;
    uint32_t n_ids;
    const char *source; /* of the grammar */
} request_t;

/* ---------------------------------------------------------------------------------- request */

static int32_t set_number(const char *word, uint32_t nbytes, const char *key, double low,
                          double high, float *value)
{
    uint32_t n = (uint32_t)strlen(key);
    double number;
    if (nbytes <= n || memcmp(word, key, n) != 0)
        return 0;
    AGENT_TRY(agent_parse_float(word + n, nbytes - n, low, high, &number));
    *value = (float)number;
    return 1;
}

static int32_t set_integer(const char *word, uint32_t nbytes, const char *key, int64_t low,
                           int64_t high, int64_t *value)
{
    uint32_t n = (uint32_t)strlen(key);
    if (nbytes <= n || memcmp(word, key, n) != 0)
        return 0;
    AGENT_TRY(agent_parse_int(word + n, nbytes - n, low, high, value));
    return 1;
}

/* Copies the biases: the ids are moved to where they were. */
static int32_t keep_bias(const char *text, uint32_t nbytes)
{
    free(bias_text);
    if (!(bias_text = malloc(nbytes + 1)))
        return -ISTHMUS_ENOMEM;
    memcpy(bias_text, text, nbytes);
    bias_text[nbytes] = '\0';
    return 0;
}

/* Reads one `key=value`. Returns 1, or a negative errno. */
static int32_t read_word(const char *word, uint32_t nbytes, request_t *request)
{
    isthmus_sampler_t *sampler = &request->sampler;
    int64_t top_k = sampler->top_k, last_n = sampler->repeat_last_n, seed = 0;
    int32_t found;
    AGENT_SET(found, set_integer(word, nbytes, "seed=", INT64_MIN, INT64_MAX, &seed));
    if (found)
        sampler->rng_state = (uint64_t)seed;
    if (!found)
        AGENT_SET(found, set_integer(word, nbytes, "top_k=", 0, INT32_MAX, &top_k));
    if (!found)
        AGENT_SET(found, set_integer(word, nbytes, "repeat_last_n=", 0, INT32_MAX, &last_n));
    sampler->top_k = (uint32_t)top_k;
    sampler->repeat_last_n = (uint32_t)last_n;
    if (!found)
        AGENT_SET(found, set_integer(word, nbytes, "max_tokens=", 0, INT32_MAX,
                                     &request->max_tokens));
    if (!found)
        AGENT_SET(found, set_integer(word, nbytes, "logprobs=", 0, MOST_LOGPROBS,
                                     &request->logprobs));
    if (!found)
        AGENT_SET(found, set_integer(word, nbytes, "grammar=", 0, INT32_MAX, &request->grammar));
    if (!found)
        AGENT_SET(found, set_integer(word, nbytes, "grammar_nbytes=", 0, INT32_MAX,
                                     &request->grammar_nbytes));
    if (!found)
        AGENT_SET(found, set_integer(word, nbytes, "ignore_eos=", 0, 1, &request->ignore_eos));
    if (!found && nbytes > 5 && memcmp(word, "bias=", 5) == 0) {
        AGENT_TRY(keep_bias(word + 5, nbytes - 5));
        request->bias = bias_text;
        found = 1;
    }
    if (!found)
        AGENT_SET(found, set_number(word, nbytes, "temperature=", 0, 100, &sampler->temperature));
    if (!found)
        AGENT_SET(found, set_number(word, nbytes, "top_p=", 0, 1, &sampler->top_p));
    if (!found)
        AGENT_SET(found, set_number(word, nbytes, "min_p=", 0, 1, &sampler->min_p));
    if (!found)
        AGENT_SET(found, set_number(word, nbytes, "repeat_penalty=", 0.01, 100,
                                    &sampler->repeat_penalty));
    return found ? found : -ISTHMUS_EINVAL;
}

/* Reads the message; the ids stay where they are, moved to where an int32_t may lie. */
static int32_t read_request(char *message, uint32_t nbytes, request_t *request)
{
    char *end = memchr(message, '\n', nbytes);
    const char *cursor = message, *word;
    uint32_t word_nbytes;
    if (!end)
        return -ISTHMUS_EINVAL;
    *end = '\0';
    *request = (request_t){.sampler = {.top_p = 1, .repeat_penalty = 1, .repeat_last_n = 64},
                           .logprobs = -1};
    AGENT_TRY(isthmus_random(&request->sampler.rng_state, sizeof request->sampler.rng_state));
    while ((word_nbytes = agent_word(&cursor, &word)) > 0)
        AGENT_TRY(read_word(word, word_nbytes, request));
    uint32_t head = (uint32_t)(end + 1 - message);
    memmove(message, message + head, nbytes - head);
    if (request->grammar_nbytes > nbytes - head)
        return -ISTHMUS_EINVAL;
    uint32_t ids_nbytes = nbytes - head - (uint32_t)request->grammar_nbytes;
    request->ids = (const int32_t *)(const void *)message;
    request->n_ids = ids_nbytes / (uint32_t)sizeof *request->ids;
    request->source = message + ids_nbytes;
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
    n_prefilled = n_common = keep(n_common, n_ids);
    AGENT_TRY(agent_truncate(&session, n_common));
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

/* Writes a token's line; with the most probable ones as the model has them, before any mask. */
static int32_t write_line(const request_t *request, const float *logits, int32_t token,
                          agent_text_t *line)
{
    agent_candidate_t top[MOST_LOGPROBS];
    agent_text_append_int(line, token);
    if (request->logprobs >= 0) {
        double all = log_sum(logits);
        uint32_t n = request->logprobs
            ? agent_top_k(logits, session.n_vocab, top, (uint32_t)request->logprobs)
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

/* Emits tokens until there is a reason to end, which it returns in `*reason`. */
static int32_t generate(request_t *request, int32_t grammar, const char **reason)
{
    int32_t token, flags, more, status;
    for (int64_t i = 0; i < request->max_tokens && session.n_tokens < session.n_ctx; i++) {
        AGENT_TEXT_FREED agent_text_t line = {0};
        float *logits;
        AGENT_TRY(agent_logits(&session, &logits));
        AGENT_TRY(apply_bias(logits, request->bias));
        AGENT_SET(more, agent_grammar_mask(grammar, &session));
        *reason = "stop";
        if (!more)
            return 0;
        AGENT_SET(token, agent_session_sample(&session, &request->sampler));
        AGENT_SET(flags, isthmus_token_flags(session.model, token));
        if (flags & ISTHMUS_TOKEN_EOG && !request->ignore_eos)
            return 0;
        AGENT_TRY(agent_grammar_accept(grammar, token));
        AGENT_TRY(write_line(request, logits, token, &line));
        *reason = "length";
        status = agent_emit(line.bytes);
        if (status == 0 && i + 1 < request->max_tokens)
            status = agent_decode(&session, token);
        if (status == -ISTHMUS_ECANCELED || status == -ISTHMUS_ELIMIT)
            return 0;
        AGENT_TRY(status);
    }
    *reason = "length";
    return 0;
}

static int32_t answer(request_t *request)
{
    const char *reason = "length";
    int32_t n_cached;
    AGENT_TEXT_FREED agent_text_t line = {0};
    AGENT_GRAMMAR_CLOSED int32_t grammar = 0;
    if (request->grammar)
        AGENT_SET(grammar, isthmus_grammar_open(session.model, (uint32_t)request->grammar,
                                                request->source,
                                                (uint32_t)request->grammar_nbytes));
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
    if (status < 0)
        n_prefilled = min_u32(n_prefilled, session.n_tokens);
    return status;
}
