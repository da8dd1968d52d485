/* Generated from abi/complete.toml by tools/generate_abi.py; do not edit. */
#ifndef COMPLETE_WORDS_H
#define COMPLETE_WORDS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    /* most tokens of the answer */
    int64_t max_tokens;
    /* 0 takes the most probable token; otherwise logits are divided by it */
    double temperature;
    /* keep the k most probable tokens; 0 keeps all */
    int64_t top_k;
    /* keep the most probable tokens that together reach p */
    double top_p;
    /* drop tokens less probable than min_p times the most probable */
    double min_p;
    /* divide positive, multiply negative logits of recent tokens by it */
    double repeat_penalty;
    /* how many of the last tokens count as recent */
    int64_t repeat_last_n;
    /* subtracted from the logit of each token that the answer has already */
    double presence_penalty;
    /* subtracted from the logit of a token as often as the answer has it already */
    double frequency_penalty;
    /* of the random numbers of this answer */
    int64_t seed;
    /* most probable tokens that are told beside each; -1 for no logprobs at all */
    int64_t logprobs;
    /* 1 tells the prompt's tokens before those of the answer, with their logprobs */
    int64_t score_prompt;
    /* 1 tells how many tokens the prompt takes, and computes nothing */
    int64_t count_prompt;
    /* 1 takes a token that ends the text for one like all others */
    int64_t ignore_eos;
    /* numbers that are added to the logits of tokens */
    const char *bias;
    /* a grammar_kind of docs/abi.md that the answer follows; 0 for none */
    int64_t grammar;
    /* length of the grammar's source, behind the ids */
    int64_t grammar_nbytes;
    /* length of the files behind the ids, with what is before and between them */
    int64_t media_nbytes;
    /* tokens of a thought, after which it is closed; -1 for no bound */
    int64_t thinking;
    /* 1 if the prompt has opened a thought */
    int64_t in_thought;
    /* tokens that open a thought */
    const char *opens;
    /* tokens that close a thought */
    const char *closes;
    /* tokens that close a thought which has used up its tokens */
    const char *close;
} complete_words_t;

typedef enum { WORD_INT, WORD_FLOAT, WORD_TEXT } word_kind_t;

typedef struct {
    const char *name;
    word_kind_t kind;
    size_t offset;
    int64_t low, high; /* of WORD_INT */
    double least, most; /* of WORD_FLOAT */
} word_t;

static const complete_words_t COMPLETE_DEFAULTS = {
    .max_tokens = 0,
    .temperature = 0.0,
    .top_k = 0,
    .top_p = 1.0,
    .min_p = 0.0,
    .repeat_penalty = 1.0,
    .repeat_last_n = 64,
    .presence_penalty = 0.0,
    .frequency_penalty = 0.0,
    .seed = 0,
    .logprobs = -1,
    .score_prompt = 0,
    .count_prompt = 0,
    .ignore_eos = 0,
    .grammar = 0,
    .grammar_nbytes = 0,
    .media_nbytes = 0,
    .thinking = -1,
    .in_thought = 0,
};

static const word_t COMPLETE_WORDS[] = {
    {.name = "max_tokens", .kind = WORD_INT, .offset = offsetof(complete_words_t, max_tokens), .low = 0, .high = 2147483647},
    {.name = "temperature", .kind = WORD_FLOAT, .offset = offsetof(complete_words_t, temperature), .least = 0.0, .most = 1e+38},
    {.name = "top_k", .kind = WORD_INT, .offset = offsetof(complete_words_t, top_k), .low = 0, .high = 2147483647},
    {.name = "top_p", .kind = WORD_FLOAT, .offset = offsetof(complete_words_t, top_p), .least = 0.0, .most = 1.0},
    {.name = "min_p", .kind = WORD_FLOAT, .offset = offsetof(complete_words_t, min_p), .least = 0.0, .most = 1.0},
    {.name = "repeat_penalty", .kind = WORD_FLOAT, .offset = offsetof(complete_words_t, repeat_penalty), .least = 0.01, .most = 100.0},
    {.name = "repeat_last_n", .kind = WORD_INT, .offset = offsetof(complete_words_t, repeat_last_n), .low = 0, .high = 2147483647},
    {.name = "presence_penalty", .kind = WORD_FLOAT, .offset = offsetof(complete_words_t, presence_penalty), .least = -100.0, .most = 100.0},
    {.name = "frequency_penalty", .kind = WORD_FLOAT, .offset = offsetof(complete_words_t, frequency_penalty), .least = -100.0, .most = 100.0},
    {.name = "seed", .kind = WORD_INT, .offset = offsetof(complete_words_t, seed), .low = INT64_MIN, .high = INT64_MAX},
    {.name = "logprobs", .kind = WORD_INT, .offset = offsetof(complete_words_t, logprobs), .low = -1, .high = 20},
    {.name = "score_prompt", .kind = WORD_INT, .offset = offsetof(complete_words_t, score_prompt), .low = 0, .high = 1},
    {.name = "count_prompt", .kind = WORD_INT, .offset = offsetof(complete_words_t, count_prompt), .low = 0, .high = 1},
    {.name = "ignore_eos", .kind = WORD_INT, .offset = offsetof(complete_words_t, ignore_eos), .low = 0, .high = 1},
    {.name = "bias", .kind = WORD_TEXT, .offset = offsetof(complete_words_t, bias)},
    {.name = "grammar", .kind = WORD_INT, .offset = offsetof(complete_words_t, grammar), .low = 0, .high = 2147483647},
    {.name = "grammar_nbytes", .kind = WORD_INT, .offset = offsetof(complete_words_t, grammar_nbytes), .low = 0, .high = 2147483647},
    {.name = "media_nbytes", .kind = WORD_INT, .offset = offsetof(complete_words_t, media_nbytes), .low = 0, .high = 2147483647},
    {.name = "thinking", .kind = WORD_INT, .offset = offsetof(complete_words_t, thinking), .low = -1, .high = 2147483647},
    {.name = "in_thought", .kind = WORD_INT, .offset = offsetof(complete_words_t, in_thought), .low = 0, .high = 1},
    {.name = "opens", .kind = WORD_TEXT, .offset = offsetof(complete_words_t, opens)},
    {.name = "closes", .kind = WORD_TEXT, .offset = offsetof(complete_words_t, closes)},
    {.name = "close", .kind = WORD_TEXT, .offset = offsetof(complete_words_t, close)},
};

#endif
