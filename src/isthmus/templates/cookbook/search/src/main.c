/*
 * search: looks for the most probable answer as a whole, and not token by token.
 *
 * It keeps the `width` best beginnings. In each round every one of them goes on in its `width` most
 * probable ways; the best of all these become the next beginnings: forks of their parents' sessions,
 * decoded in one pass. Options: width=4, max_tokens=32, report=1 tells the log-probability.
 */
#include <math.h>

#include "conversation.h"

#define MOST 8

/* A beginning of an answer, in a session of its own. */
typedef struct {
    agent_session_t session;
    agent_text_t text;
    double logprob;
} beam_t;

/* A way on: a beginning and its next token. */
typedef struct {
    uint32_t parent;
    int32_t token;
    double logprob;
} way_t;

static beam_t room[2 * MOST], *beams = room, *next_beams = room + MOST;
static uint32_t n_beams;
static agent_text_t best_text;
static double best_logprob;
static int64_t width = 4, max_tokens = 32, report;

/* Reads the options and opens the sessions; a failure leaves the rest for the next message. */
static int32_t start(void)
{
    static int32_t started;
    if (started)
        return 0;
    int32_t model;
    AGENT_TRY(agent_option_int("width", 1, MOST, &width));
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_TRY(agent_option_int("report", 0, 1, &report));
    AGENT_SET(model, agent_model_open());
    for (int64_t i = 0; i < 2 * MOST; i++)
        if (i % MOST < width && !room[i].session.handle)
            AGENT_TRY(agent_session_open_by_option(&room[i].session, model));
    started = 1;
    return 0;
}

/* The logarithm of the sum of the exponentials of all logits. */
static double log_sum(const float *logits, uint32_t n_vocab)
{
    double sum = 0, most = logits[agent_argmax(logits, n_vocab)];
    for (uint32_t i = 0; i < n_vocab; i++)
        sum += exp(logits[i] - most);
    return most + log(sum);
}

/* Puts a way among the best ones, which are in order. */
static void keep_best(way_t *ways, uint32_t *n_ways, way_t found)
{
    uint32_t at = *n_ways;
    if (at == (uint32_t)width && ways[at - 1].logprob >= found.logprob)
        return;
    at -= at == (uint32_t)width;
    for (*n_ways = at + 1; at > 0 && ways[at - 1].logprob < found.logprob; at--)
        ways[at] = ways[at - 1];
    ways[at] = found;
}

/* The best ways on from all beginnings. An answer that ends is remembered if it is the best. */
static int32_t find_ways(way_t *ways)
{
    uint32_t n_ways = 0;
    for (uint32_t i = 0; i < n_beams; i++) {
        agent_candidate_t top[MOST];
        float *logits;
        int32_t flags;
        AGENT_TRY(agent_logits(&beams[i].session, &logits));
        double all = log_sum(logits, beams[i].session.n_vocab);
        uint32_t n_top = agent_top_k(logits, beams[i].session.n_vocab, top, (uint32_t)width);
        for (uint32_t j = 0; j < n_top; j++) {
            way_t way = {i, top[j].token, beams[i].logprob + top[j].logit - all};
            AGENT_SET(flags, isthmus_token_flags(beams[i].session.model, way.token));
            if (!(flags & ISTHMUS_TOKEN_EOG)) {
                keep_best(ways, &n_ways, way);
            } else if (way.logprob > best_logprob) {
                best_logprob = way.logprob;
                agent_text_clear(&best_text);
                AGENT_TRY(agent_text_append(&best_text, beams[i].text.bytes, beams[i].text.nbytes));
            }
        }
    }
    return (int32_t)n_ways;
}

/* Goes on in these ways: each forks its parent. */
static int32_t take_ways(const way_t *ways, uint32_t n_ways)
{
    agent_session_t *sessions[MOST];
    int32_t tokens[MOST];
    for (uint32_t i = 0; i < n_ways; i++) {
        beam_t *parent = &beams[ways[i].parent], *child = &next_beams[i];
        AGENT_TRY(agent_session_copy(&child->session, &parent->session, parent->session.n_tokens));
        agent_text_clear(&child->text);
        AGENT_TRY(agent_text_append(&child->text, parent->text.bytes, parent->text.nbytes));
        AGENT_TRY(agent_detokenize(child->session.model, &ways[i].token, 1, 0, &child->text));
        child->logprob = ways[i].logprob;
        sessions[i] = &child->session;
        tokens[i] = ways[i].token;
    }
    beam_t *before = beams;
    beams = next_beams;
    next_beams = before;
    n_beams = n_ways;
    return agent_decode_batch(sessions, tokens, n_ways);
}

static int32_t search(const char *message, uint32_t nbytes)
{
    AGENT_FREED int32_t *tokens = NULL;
    agent_chat_t chat = AGENT_EMPTY;
    int32_t status = agent_chat_say(&chat, "user", message, nbytes);
    if (status == 0)
        status = agent_chat_tokens(beams[0].session.model, &chat, &tokens);
    agent_chat_free(&chat);
    AGENT_TRY(status);
    AGENT_TRY(agent_session_become(&beams[0].session, tokens, (uint32_t)status));
    agent_text_clear(&beams[0].text);
    beams[0].logprob = 0;
    n_beams = 1;
    best_logprob = -INFINITY;
    for (int64_t i = 0; i < max_tokens; i++) {
        way_t ways[MOST];
        int32_t n_ways;
        AGENT_SET(n_ways, find_ways(ways));
        if (n_ways == 0 || ways[0].logprob < best_logprob)
            return 0; /* whatever follows is less probable still */
        AGENT_TRY(take_ways(ways, (uint32_t)n_ways));
    }
    if (beams[0].logprob <= best_logprob)
        return 0;
    best_logprob = beams[0].logprob; /* no answer has ended yet: the best beginning */
    agent_text_clear(&best_text);
    return agent_text_append(&best_text, beams[0].text.bytes, beams[0].text.nbytes);
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    AGENT_TRY(agent_message(nbytes, &message));
    AGENT_TRY(start());
    AGENT_TRY(search(message, (uint32_t)nbytes));
    if (report) {
        agent_text_append_float(&text, best_logprob);
        agent_text_append_string(&text, ": ");
    }
    agent_text_append(&text, best_text.bytes, best_text.nbytes);
    return agent_reply_text(&text);
}
