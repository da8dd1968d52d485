/*
 * embed: the embedding of a text. Each message is a text, or its token ids; the answer its numbers.
 *
 * The device writes them to `values`, in this memory, where they stay until the next message. A
 * model that pools nothing makes n_embd numbers for each token, one token after the other.
 *
 * A text that begins with a zero byte has files before it, pictures and sounds: each
 * with its length before it, 32 bits, and a length of zero at their end. They are decoded here, and
 * come after the token with which the model's texts begin, if there is one. Messages of ids have no
 * files.
 *
 * A reranker makes scores of a query and a document, whose ids the message has; the first one tells
 * how well they go together. They are never normalised.
 *
 * Options: model, input=text|ids (ids are 32-bit numbers, with the special tokens among them),
 * output=json|f32 (an array, of arrays where nothing is pooled; or 32-bit numbers), normalise=1
 * (0: as long as the model makes them).
 */
#include "media/files.h"

#define MOST_FILES 64 /* of a message; the host allows fewer at once */

static int32_t model, reads_ids, writes_f32;
static isthmus_model_info_t info;
static uint32_t flags;

static float *values; /* the last embedding */
static uint32_t n_values, cap_values;

/* Sets `*second` to whether the option is the second of two words, by default the first. */
static int32_t choose(const char *key, const char *first, const char *other, int32_t *second)
{
    const char *value = first;
    AGENT_TRY(agent_option(key, &value));
    *second = strcmp(value, other) == 0;
    if (*second || strcmp(value, first) == 0)
        return 0;
    AGENT_TEXT_FREED agent_text_t wanted = {0};
    agent_text_append_string(&wanted, first);
    agent_text_append_string(&wanted, " or ");
    AGENT_TRY(agent_text_append_string(&wanted, other));
    return agent_option_refused(key, value, wanted.bytes);
}

/* Reads the options and opens the model, which is done again where it failed. */
static int32_t start(void)
{
    int64_t normalise = 1;
    AGENT_TRY(choose("input", "text", "ids", &reads_ids));
    AGENT_TRY(choose("output", "json", "f32", &writes_f32));
    AGENT_TRY(agent_option_int("normalise", 0, 1, &normalise));
    int32_t opened;
    AGENT_SET(opened, agent_model_open());
    AGENT_TRY(isthmus_model_info(opened, &info));
    flags = normalise && !(info.flags & ISTHMUS_MODEL_RANK) ? ISTHMUS_EMBED_NORMALISE : 0;
    model = opened;
    return 0;
}

/* Ids of the files of a message, -2 - h for the medium with the handle h. */
static int32_t media[MOST_FILES];
static uint32_t n_media;

/* Opens the files before a text, which `*bytes` is set to. */
static int32_t open_files(const char **bytes, uint32_t *nbytes)
{
    const char *file;
    uint32_t size;
    int32_t more, medium;
    if (!*nbytes || **bytes)
        return 0;
    ++*bytes;
    --*nbytes;
    for (;;) {
        AGENT_SET(more, agent_next_file(bytes, nbytes, &file, &size));
        if (!more)
            return 0;
        if (n_media == MOST_FILES)
            return -ISTHMUS_ELIMIT;
        AGENT_SET(medium, agent_open_file(model, file, size));
        media[n_media++] = -2 - medium;
    }
}

static void close_files(void)
{
    while (n_media)
        isthmus_media_close(-2 - media[--n_media]);
}

/* Puts the files' ids into `*tokens`, which is from malloc. Returns how many ids there are. */
static int32_t insert_files(int32_t **tokens, uint32_t n_tokens)
{
    int32_t *room = realloc(*tokens, (n_tokens + n_media + 1) * sizeof *room);
    if (!room)
        return -ISTHMUS_ENOMEM;
    *tokens = room;
    uint32_t at = n_tokens && room[0] == info.token_bos;
    memmove(room + at + n_media, room + at, (n_tokens - at) * sizeof *room);
    memcpy(room + at, media, n_media * sizeof *room);
    return (int32_t)(n_tokens + n_media);
}

/* Sets `*tokens` to the message's ids, to be freed. Returns how many. */
static int32_t read_tokens(int32_t nbytes, int32_t **tokens)
{
    AGENT_FREED char *message = NULL;
    int32_t n;
    AGENT_TRY(agent_message(nbytes, &message));
    if (reads_ids) {
        *tokens = (int32_t *)(void *)message;
        message = NULL;
        return nbytes % 4 ? -ISTHMUS_EINVAL : nbytes / 4;
    }
    AGENT_TEXT_FREED agent_text_t text = {0};
    const char *bytes = message;
    uint32_t n_text = (uint32_t)nbytes;
    AGENT_TRY(open_files(&bytes, &n_text));
    AGENT_TRY(agent_text_append(&text, "", 0));
    AGENT_TRY(agent_text_append_utf8(&text, bytes, n_text));
    AGENT_SET(n, agent_tokenize(model, text.bytes, text.nbytes, ISTHMUS_TOKENIZE_ADD_SPECIAL,
                                tokens));
    return n_media ? insert_files(tokens, (uint32_t)n) : n;
}

/* Has the embedding written to `values`, with more room where it does not fit. */
static int32_t embed(const int32_t *tokens, uint32_t n_tokens)
{
    for (;;) {
        AGENT_SET(n_values, isthmus_embed(model, tokens, n_tokens, flags, values, cap_values));
        if (n_values <= cap_values)
            return 0;
        free(values);
        cap_values = 0;
        values = aligned_alloc(32, ((size_t)n_values * sizeof *values + 31) / 32 * 32);
        if (!values)
            return -ISTHMUS_ENOMEM;
        cap_values = n_values;
    }
}

static int32_t append_row(agent_text_t *text, const float *row, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        agent_text_append_string(text, i ? "," : "[");
        agent_text_append_float(text, (double)row[i]);
    }
    return agent_text_append_string(text, "]");
}

static int32_t reply_json(void)
{
    AGENT_TEXT_FREED agent_text_t text = {0};
    if (!(info.flags & ISTHMUS_MODEL_EMBED_TOKENS)) {
        append_row(&text, values, n_values);
        return agent_reply_text(&text);
    }
    for (uint32_t at = 0; at < n_values; at += info.n_embd) {
        agent_text_append_string(&text, at ? "," : "[");
        append_row(&text, values + at, info.n_embd);
    }
    agent_text_append_string(&text, "]");
    return agent_reply_text(&text);
}

__attribute__((export_name("on_message"))) int32_t on_message(int32_t nbytes)
{
    AGENT_FREED int32_t *tokens = NULL;
    uint32_t n;
    if (!model)
        AGENT_TRY(start());
    n_media = 0; /* those of a message that failed were closed by the host */
    AGENT_SET(n, read_tokens(nbytes, &tokens));
    AGENT_TRY(embed(tokens, n));
    close_files();
    return writes_f32 ? isthmus_reply(values, n_values * (uint32_t)sizeof *values) : reply_json();
}

/* Another model: its embeddings have another width, and nothing else of it is kept. */
__attribute__((export_name("on_replay"))) int32_t on_replay(void)
{
    return model ? isthmus_model_info(model, &info) : 0;
}
