/*
 * judge: writes several answers, has a judge give each a score, and says the best one.
 *
 * The judge is a conversation of its own whose answer is held to a JSON schema, so it cannot be
 * anything but a score. Options: n=4 answers, max_tokens=64, judge=default (the judge's model),
 * report=1 tells the score.
 */
#include "conversation.h"

#define MOST 16
#define SCHEMA "{\"type\": \"object\", \"properties\": {\"score\": {\"type\": \"integer\", " \
               "\"minimum\": 0, \"maximum\": 9}}, \"required\": [\"score\"], " \
               "\"additionalProperties\": false}"
#define MOST_JUDGED 24 /* tokens of a judgement: more than the schema leaves room for */

static agent_session_t sessions[MOST], judge;
static isthmus_sampler_t sampler = AGENT_SAMPLER_DEFAULTS;
static isthmus_sampler_t greedy = {0, 0, 1, 0, 1, 0, 0};
static int64_t n = 4, max_tokens = 64, report;

/* Reads the options and opens the sessions; a failure leaves the rest for the next message. */
static int32_t start(void)
{
    static int32_t started;
    if (started)
        return 0;
    const char *name = "default";
    int32_t model;
    AGENT_TRY(agent_option_int("n", 1, MOST, &n));
    AGENT_TRY(agent_option_int("max_tokens", 1, INT32_MAX, &max_tokens));
    AGENT_TRY(agent_option_int("report", 0, 1, &report));
    AGENT_TRY(agent_option("judge", &name));
    AGENT_TRY(agent_sampler_options(&sampler));
    AGENT_SET(model, agent_model_open());
    for (int64_t i = 0; i < n; i++)
        if (!sessions[i].handle)
            AGENT_TRY(agent_session_open_by_option(&sessions[i], model));
    AGENT_SET(model, isthmus_model_open(name, strlen(name)));
    AGENT_TRY(agent_session_open_by_option(&judge, model));
    started = 1;
    return 0;
}

/* Has a session hold what a user says. */
static int32_t ask(agent_session_t *session, const char *text, uint32_t nbytes)
{
    AGENT_FREED int32_t *tokens = NULL;
    agent_chat_t chat = AGENT_EMPTY;
    int32_t status = agent_chat_say(&chat, "user", text, nbytes);
    if (status == 0)
        status = agent_chat_tokens(session->model, &chat, &tokens);
    agent_chat_free(&chat);
    AGENT_TRY(status);
    return agent_session_become(session, tokens, (uint32_t)status);
}

/* Writes the judge's JSON: the most probable one that fits the schema. */
static int32_t write_judgement(agent_text_t *json)
{
    AGENT_GRAMMAR_CLOSED int32_t grammar = isthmus_grammar_open(
        judge.model, ISTHMUS_GRAMMAR_KIND_JSON_SCHEMA, SCHEMA, sizeof SCHEMA - 1);
    AGENT_TRY(grammar);
    for (uint32_t i = 0; i < MOST_JUDGED; i++) {
        int32_t more, token;
        AGENT_SET(more, agent_grammar_mask(grammar, &judge));
        if (!more)
            return 0;
        AGENT_SET(token, isthmus_sample(judge.handle, &greedy));
        AGENT_TRY(agent_grammar_accept(grammar, token));
        AGENT_TRY(agent_detokenize(judge.model, &token, 1, 0, json));
        AGENT_TRY(agent_decode(&judge, token));
    }
    return 0;
}

/* The score of an answer, 0 to 9. */
static int32_t score(const char *message, uint32_t nbytes, const agent_text_t *answer)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY, json = AGENT_EMPTY;
    agent_text_append_string(&text, "Question: ");
    agent_text_append(&text, message, nbytes);
    agent_text_append_string(&text, "\nAnswer: ");
    agent_text_append_utf8(&text, answer->bytes, answer->nbytes);
    AGENT_TRY(agent_text_append_string(&text, "\nHow good is the answer, from 0 to 9?"));
    AGENT_TRY(ask(&judge, text.bytes, text.nbytes));
    AGENT_TRY(write_judgement(&json));
    const char *colon = json.bytes ? strchr(json.bytes, ':') : NULL;
    for (; colon && *colon; colon++)
        if (*colon >= '0' && *colon <= '9')
            return *colon - '0';
    return -ISTHMUS_EIO;
}

static int32_t say_best(const char *message, uint32_t nbytes, const agent_text_t *answers)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    int32_t best_score = -1, found;
    int64_t best = 0;
    for (int64_t i = 0; i < n; i++) {
        AGENT_SET(found, score(message, nbytes, &answers[i]));
        best = found > best_score ? i : best;
        best_score = found > best_score ? found : best_score;
    }
    if (report) {
        agent_text_append_int(&text, best_score);
        agent_text_append_string(&text, ": ");
    }
    agent_text_append(&text, answers[best].bytes, answers[best].nbytes);
    return agent_reply_text(&text);
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    agent_text_t answers[MOST] = AGENT_EMPTY;
    isthmus_sampler_t samplers[MOST];
    AGENT_TRY(agent_message(nbytes, &message));
    AGENT_TRY(start());
    AGENT_TRY(ask(&sessions[0], message, (uint32_t)nbytes));
    for (int64_t i = 0; i < n; i++) {
        samplers[i] = sampler;
        samplers[i].rng_state = agent_random_next(&sampler.rng_state);
        if (i)
            AGENT_TRY(agent_session_copy(&sessions[i], &sessions[0], sessions[0].n_tokens));
    }
    int32_t status = agent_generate_many(sessions, samplers, answers, (uint32_t)n, max_tokens);
    if (status == 0)
        status = say_best(message, (uint32_t)nbytes, answers);
    for (int64_t i = 0; i < n; i++)
        agent_text_free(&answers[i]);
    return status;
}
