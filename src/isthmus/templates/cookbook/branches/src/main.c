/*
 * branches: forks its answer while it writes it, has the branches judged, and goes on with the best.
 *
 * A step: the running answer is forked `n` ways, and each branch writes up to `step` tokens. A fork
 * of each branch then reads a question about its own text, and the score is the digit that the model
 * expects as the answer, read from the logits. The best branch is the running answer of the next
 * step. Every token, of branches and of judges, is decoded for all of them in one pass. Options: n=8,
 * step=16, max_tokens=128, report=1 tells passes and scores.
 */
#include <math.h>

#include "conversation.h"

#define MOST 16
#define N_DIGITS 10
#define QUESTION "\nScore of this answer so far, from 0 to 9: "

static agent_session_t sessions[MOST], judges[MOST];
static agent_text_t texts[MOST]; /* what each branch writes in a step */
static isthmus_sampler_t sampler = AGENT_SAMPLER_DEFAULTS;
static int64_t n = 8, step = 16, max_tokens = 128, report;
static int32_t digits[N_DIGITS], *question;
static uint32_t n_question;

/* Counts, and sums over the steps. */
static struct {
    uint32_t n_steps, n_passes, n_tokens;
    double best, mean;
} figure;

/* Finds the tokens of the question, and of the digits that answer it. */
static int32_t prepare_judge(int32_t model)
{
    AGENT_SET(n_question, agent_tokenize(model, QUESTION, sizeof QUESTION - 1, 0, &question));
    for (int32_t i = 0; i < N_DIGITS; i++) {
        AGENT_FREED int32_t *ids = NULL;
        char digit = (char)('0' + i);
        int32_t n_ids;
        AGENT_SET(n_ids, agent_tokenize(model, &digit, 1, 0, &ids));
        if (n_ids == 0)
            return -ISTHMUS_ENOTSUP; /* a vocabulary without digits */
        digits[i] = ids[n_ids - 1];
    }
    return 0;
}

/* Reads the options and opens the sessions; a failure leaves the rest for the next message. */
static int32_t start(void)
{
    static int32_t started;
    if (started)
        return 0;
    int32_t model;
    AGENT_TRY(agent_option_int("n", 1, MOST, &n));
    AGENT_TRY(agent_option_int("step", 1, 4096, &step));
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_TRY(agent_option_int("report", 0, 1, &report));
    AGENT_TRY(agent_sampler_options(&sampler));
    AGENT_SET(model, agent_model_open());
    for (int64_t i = 0; i < n; i++) {
        if (!sessions[i].handle)
            AGENT_TRY(agent_session_open_by_option(&sessions[i], model));
        if (!judges[i].handle)
            AGENT_TRY(agent_session_open_by_option(&judges[i], model));
    }
    AGENT_TRY(prepare_judge(model));
    started = 1;
    return 0;
}

/* Has the first branch hold what a user says. */
static int32_t ask(const char *text, uint32_t nbytes)
{
    AGENT_FREED int32_t *tokens = NULL;
    agent_chat_t chat = AGENT_EMPTY;
    int32_t status = agent_chat_say(&chat, "user", text, nbytes);
    if (status == 0)
        status = agent_chat_tokens(sessions[0].model, &chat, &tokens);
    agent_chat_free(&chat);
    AGENT_TRY(status);
    return agent_session_become(&sessions[0], tokens, (uint32_t)status);
}

/* Forks the running answer into all branches, each of which draws for itself and writes. */
static int32_t write_all(int32_t running, int64_t most)
{
    isthmus_sampler_t samplers[MOST];
    uint32_t n_before = sessions[running].n_tokens, n_passes = 0;
    for (int32_t i = 0; i < n; i++) {
        agent_text_clear(&texts[i]);
        samplers[i] = sampler;
        samplers[i].rng_state = agent_random_next(&sampler.rng_state);
        if (i != running)
            AGENT_TRY(agent_session_copy(&sessions[i], &sessions[running], n_before));
    }
    AGENT_TRY(agent_generate_many(sessions, samplers, texts, (uint32_t)n, most));
    for (int32_t i = 0; i < n; i++) {
        uint32_t n_tokens = sessions[i].n_tokens - n_before;
        n_passes = n_tokens > n_passes ? n_tokens : n_passes;
        figure.n_tokens += n_tokens;
    }
    figure.n_passes += n_passes;
    return 0;
}

/* Sets `*digit` to the one that a judge expects: their mean, by their probabilities. */
static int32_t expected_digit(agent_session_t *judge, double *digit)
{
    float *logits;
    double most = -INFINITY, sum = 0, weighed = 0;
    AGENT_TRY(agent_logits(judge, &logits));
    for (int32_t i = 0; i < N_DIGITS; i++)
        most = fmax(most, logits[digits[i]]);
    for (int32_t i = 0; i < N_DIGITS; i++) {
        double weight = exp(logits[digits[i]] - most);
        sum += weight;
        weighed += i * weight;
    }
    *digit = weighed / sum;
    return 0;
}

/* Scores all branches. Returns which is the best. */
static int32_t judge_all(void)
{
    agent_session_t *asked[MOST];
    int32_t tokens[MOST], best = 0;
    double score, best_score = -1, sum = 0;
    for (int32_t i = 0; i < n; i++) {
        AGENT_TRY(agent_session_copy(&judges[i], &sessions[i], sessions[i].n_tokens));
        asked[i] = &judges[i];
    }
    for (uint32_t j = 0; j < n_question; j++, figure.n_passes++) {
        for (int32_t i = 0; i < n; i++)
            tokens[i] = question[j];
        AGENT_TRY(agent_decode_batch(asked, tokens, (uint32_t)n));
    }
    for (int32_t i = 0; i < n; i++) {
        AGENT_TRY(expected_digit(&judges[i], &score));
        sum += score;
        best = score > best_score ? i : best;
        best_score = fmax(score, best_score);
    }
    figure.n_steps++;
    figure.best += best_score;
    figure.mean += sum / (double)n;
    return best;
}

/* Emits an answer, step by step. */
static int32_t answer(void)
{
    int32_t running = 0, ended = 0;
    for (int64_t left = max_tokens; left > 0 && !ended; left -= step) {
        int64_t most = left < step ? left : step;
        uint32_t n_before = sessions[running].n_tokens;
        if (n_before + most + n_question > sessions[running].n_ctx)
            return figure.n_steps ? 0 : -ISTHMUS_ECONTEXT;
        AGENT_TRY(write_all(running, most));
        AGENT_SET(running, judge_all());
        ended = sessions[running].n_tokens < n_before + most;
        if (texts[running].nbytes)
            AGENT_TRY(isthmus_emit(texts[running].bytes, texts[running].nbytes));
    }
    return 0;
}

/* Emits the figure, for instance `8 branches, 4 steps, 116 passes, 512 tokens: 4.91, of 4.63`. */
static int32_t emit_figure(void)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    agent_text_append_string(&text, "\n");
    agent_text_append_int(&text, n);
    agent_text_append_string(&text, " branches, ");
    agent_text_append_int(&text, figure.n_steps);
    agent_text_append_string(&text, " steps, ");
    agent_text_append_int(&text, figure.n_passes);
    agent_text_append_string(&text, " passes, ");
    agent_text_append_int(&text, figure.n_tokens);
    agent_text_append_string(&text, " tokens: ");
    agent_text_append_float(&text, figure.best / figure.n_steps);
    agent_text_append_string(&text, ", of ");
    AGENT_TRY(agent_text_append_float(&text, figure.mean / figure.n_steps));
    return isthmus_emit(text.bytes, text.nbytes);
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TRY(agent_message(nbytes, &message));
    AGENT_TRY(start());
    memset(&figure, 0, sizeof figure);
    AGENT_TRY(ask(message, (uint32_t)nbytes));
    int32_t status = answer();
    if (status == 0 && report)
        status = emit_figure();
    return status == -ISTHMUS_ECANCELED ? 0 : status;
}
