/*
 * What is told of a token: its id, and with logprobs the logarithms of probabilities that the model
 * itself has for it and for the most probable ones.
 */
#ifndef COMPLETE_LINE_H
#define COMPLETE_LINE_H

#include "agent.h"
#include "request.h"
#include "session.h"

#define MOST_LOGPROBS 20

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

/* Emits a token's line after what kind of token it is. */
static int32_t emit_line(const request_t *request, const char *kind, const float *logits,
                         int32_t token)
{
    AGENT_TEXT_FREED agent_text_t line = {0};
    agent_text_append_string(&line, kind);
    AGENT_TRY(write_line(request, logits, token, &line));
    return agent_emit(line.bytes);
}

#endif
