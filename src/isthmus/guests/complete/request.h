/*
 * A message, read: the words of its first line, token ids of a prompt, files, and the source of a
 * grammar.
 */
#ifndef COMPLETE_REQUEST_H
#define COMPLETE_REQUEST_H

#include "agent.h"
#include "session.h"
#include "words.h"

#define MOST_IDS 32 /* in each list of tokens about thoughts */

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
    const char *media; /* files, as the message has them */
    const char *source; /* of the grammar */
} request_t;

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

/* The file of the prompt before this one that has these bytes and is held; NULL if there is none. */
static agent_file_t *held_file(const void *bytes, uint32_t nbytes)
{
    for (uint32_t i = 0; i < files.n; i++) {
        agent_file_t *file = files.each + i;
        if (file->n_rows && file->nbytes == nbytes && memcmp(file->bytes, bytes, nbytes) == 0)
            return file;
    }
    return NULL;
}

/* Copies the request's files to `taken`. */
static int32_t copy_files(const request_t *request, agent_files_t *taken)
{
    uint32_t nbytes;
    for (const char *at = request->media; request->source - at >= 4;
         at += 4 + (((size_t)nbytes + 3) & ~(size_t)3)) {
        memcpy(&nbytes, at, 4);
        if (nbytes > (size_t)(request->source - at) - 4)
            return -ISTHMUS_EINVAL;
        AGENT_TRY(agent_files_add(taken, at + 4, nbytes));
    }
    return 0;
}

/* Has `files` be the request's; those that the session holds lie where they lay. */
static int32_t take_files(const request_t *request)
{
    AGENT_FILES_FREED agent_files_t taken = {0};
    AGENT_TRY(copy_files(request, &taken));
    for (uint32_t i = 0; i < taken.n; i++) {
        agent_file_t *file = taken.each + i, *held = held_file(file->bytes, file->nbytes);
        if (held) {
            file->row = held->row;
            file->n_rows = held->n_rows;
            held->n_rows = 0; /* a picture that is there twice lies in two places */
        }
    }
    agent_files_t before = files;
    files = taken;
    taken = before;
    return 0;
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
    uint32_t media_nbytes = (uint32_t)request->words.media_nbytes;
    if (source_nbytes > nbytes - head || media_nbytes > nbytes - head - source_nbytes)
        return -ISTHMUS_EINVAL;
    uint32_t ids_nbytes = nbytes - head - source_nbytes - media_nbytes;
    request->ids = (const int32_t *)(const void *)(message + head);
    request->n_ids = ids_nbytes / (uint32_t)sizeof *request->ids;
    request->media = message + head + ids_nbytes;
    request->source = request->media + media_nbytes;
    return request->n_ids == 0 || ids_nbytes % sizeof *request->ids ? -ISTHMUS_EINVAL : 0;
}

#endif
