/*
 * agent.h: a thin layer over isthmus.h for agents written in C or C++.
 *
 * With pages.h beside it; all of it is static inline, and what a guest does not call costs nothing. It needs
 * wasi-libc's stdint.h, stdlib.h and string.h; for wasm64, which has no libc, those in wasm64/. Everything follows the ABI's habit: a function
 * returns a value >= 0, or a negative errno such as -ISTHMUS_ENOMEM; AGENT_TRY passes that on.
 *
 *   texts      agent_text_*      a growable buffer; append text, numbers, tokens, JSON strings
 *   words      agent_word, agent_parse_*
 *   options    agent_option_*    the strings `key=value` that the actor was spawned with
 *   messages   agent_message, agent_emit, agent_reply, agent_log
 *   models     agent_model_open, agent_tokenize, agent_detokenize, agent_chat_template
 *   tools      agent_tool_call, agent_prompt_tokens, agent_answer_*: what models call, and when
 *   sessions   agent_session_*   memory, handle and token ids of one sequence
 *   grammars   agent_grammar_*   what a text must follow, and who ends it
 *   sampling   agent_sampler_*, agent_sample, agent_argmax: in the guest, from logits in place,
 *              or from the device's candidates (agent_session_top_k)
 */
#ifndef ISTHMUS_AGENT_H
#define ISTHMUS_AGENT_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __wasm_simd128__
#include <wasm_simd128.h>
#endif

#include "isthmus.h"
#include "pages.h"

#define AGENT_API static inline __attribute__((unused))

/* An empty agent_text_t or agent_session_t: agent_text_t text = AGENT_EMPTY; */
#ifdef __cplusplus
#define AGENT_EMPTY {}
#else
#define AGENT_EMPTY {0}
#endif

/* Before a function that the host calls: AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes) */
#ifdef __cplusplus
#define AGENT_EXPORT(name) extern "C" __attribute__((export_name(name)))
#else
#define AGENT_EXPORT(name) __attribute__((export_name(name)))
#endif

/* Returns from the calling function with the negative errno that `call` gave, if it gave one. */
#define AGENT_TRY(call)                         \
    do {                                        \
        int64_t agent_result_ = (call);         \
        if (agent_result_ < 0)                  \
            return (int32_t)agent_result_;      \
    } while (0)

/* The same for a call whose result is wanted: AGENT_SET(n, agent_tokenize(...)). */
#define AGENT_SET(variable, call)               \
    do {                                        \
        int64_t agent_result_ = (call);         \
        if (agent_result_ < 0)                  \
            return (int32_t)agent_result_;      \
        (variable) = agent_result_;             \
    } while (0)

/* Marks a local pointer from malloc, so that every way out of its block frees it. */
#define AGENT_FREED __attribute__((cleanup(agent_free_)))

AGENT_API void agent_free_(void *pointer)
{
    free(*(void **)pointer);
}

/* ------------------------------------------------------------------------------------ texts */

/*
 * A growable text that owns its bytes; {0} is an empty one. `bytes` is NULL or ends with a NUL
 * that `nbytes` does not count. When memory runs out, appending does nothing and goes on doing
 * nothing, so a long text needs only one look at the end: agent_text_status.
 */
typedef struct {
    char *bytes;
    uint32_t nbytes;
    uint32_t cap;
    int32_t status;
} agent_text_t;

/* Marks a local agent_text_t, so that every way out of its block frees it. */
#define AGENT_TEXT_FREED __attribute__((cleanup(agent_text_free)))

AGENT_API void agent_text_free(agent_text_t *text)
{
    free(text->bytes);
    *text = (agent_text_t)AGENT_EMPTY;
}

/* Empties the text and keeps its room. */
AGENT_API void agent_text_clear(agent_text_t *text)
{
    text->nbytes = 0;
    text->status = 0;
}

/* 0, or -ISTHMUS_ENOMEM when some append found no memory. */
AGENT_API int32_t agent_text_status(const agent_text_t *text)
{
    return text->status;
}

/* Makes room for `nbytes` more bytes and the NUL after them. */
AGENT_API int32_t agent_text_reserve(agent_text_t *text, uint32_t nbytes)
{
    uint64_t need = (uint64_t)text->nbytes + nbytes + 1;
    if (text->status < 0 || need <= text->cap)
        return text->status;
    uint64_t cap = need + need / 2 + 64;
    char *bytes = (char *)(cap < INT32_MAX ? realloc(text->bytes, (size_t)cap) : NULL);
    if (!bytes)
        return text->status = -ISTHMUS_ENOMEM;
    text->bytes = bytes;
    text->cap = (uint32_t)cap;
    return 0;
}

AGENT_API int32_t agent_text_append(agent_text_t *text, const void *bytes, uint32_t nbytes)
{
    AGENT_TRY(agent_text_reserve(text, nbytes));
    if (nbytes)
        memcpy(text->bytes + text->nbytes, bytes, nbytes);
    text->nbytes += nbytes;
    text->bytes[text->nbytes] = 0;
    return 0;
}

AGENT_API int32_t agent_text_append_string(agent_text_t *text, const char *string)
{
    return agent_text_append(text, string, (uint32_t)strlen(string));
}

AGENT_API int32_t agent_text_append_int(agent_text_t *text, int64_t value)
{
    char digits[20];
    uint32_t at = sizeof digits;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do
        digits[--at] = (char)('0' + rest % 10);
    while (rest /= 10);
    if (value < 0)
        digits[--at] = '-';
    return agent_text_append(text, digits + at, sizeof digits - at);
}

/* Up to six significant digits: `0.05`, `100`, `2.38419e-07`; `null` (JSON) if not finite. */
AGENT_API int32_t agent_text_append_float(agent_text_t *text, double value)
{
    char digits[6];
    int32_t exponent = 0, n = sizeof digits;
    if (value - value != 0)
        return agent_text_append_string(text, "null");
    double rest = value < 0 ? -value : value;
    for (; rest >= 10; exponent++)
        rest /= 10;
    for (; rest > 0 && rest < 1; exponent--)
        rest *= 10;
    int32_t scaled = (int32_t)(rest * 1e5 + 0.5);
    if (scaled > 999999) {
        scaled /= 10;
        exponent++;
    }
    for (int32_t i = n; i-- > 0; scaled /= 10)
        digits[i] = (char)('0' + scaled % 10);
    int32_t plain = exponent >= -4 && exponent < n; /* without an exponent */
    int32_t whole = plain ? exponent + 1 : 1;       /* digits before the point */
    while (n > 1 && n > whole && digits[n - 1] == '0')
        n--;
    if (value < 0)
        agent_text_append(text, "-", 1);
    agent_text_append(text, whole > 0 ? digits : "0", whole > 0 ? (uint32_t)whole : 1);
    if (n > whole) {
        agent_text_append(text, ".", 1);
        agent_text_append(text, "000", whole < 0 ? (uint32_t)-whole : 0);
        int32_t from = whole > 0 ? whole : 0;
        agent_text_append(text, digits + from, (uint32_t)(n - from));
    }
    if (plain)
        return agent_text_status(text);
    agent_text_append(text, exponent < 0 ? "e-" : "e+", 2);
    exponent = exponent < 0 ? -exponent : exponent;
    agent_text_append(text, "0", exponent < 10);
    return agent_text_append_int(text, exponent);
}

/* Length in bytes of the UTF-8 character at `bytes`, or 0 if none begins there (RFC 3629). */
AGENT_API uint32_t agent_utf8_nbytes(const void *bytes, uint32_t nbytes)
{
    const uint8_t *b = (const uint8_t *)bytes;
    uint8_t low = 0x80, high = 0xbf;
    uint32_t n = 0;
    if (nbytes && b[0] < 0x80)
        return 1;
    if (nbytes && b[0] >= 0xc2 && b[0] <= 0xf4)
        n = b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : 4;
    if (n == 0 || n > nbytes)
        return 0;
    if (b[0] == 0xe0 || b[0] == 0xf0)
        low = b[0] == 0xe0 ? 0xa0 : 0x90;
    if (b[0] == 0xed || b[0] == 0xf4)
        high = b[0] == 0xed ? 0x9f : 0x8f;
    if (b[1] < low || b[1] > high)
        return 0;
    for (uint32_t i = 2; i < n; i++)
        if ((b[i] & 0xc0) != 0x80)
            return 0;
    return n;
}

/* Appends the text with U+FFFD for each byte that is not UTF-8, such as a cut-off character. */
AGENT_API int32_t agent_text_append_utf8(agent_text_t *text, const char *bytes, uint32_t nbytes)
{
    while (nbytes) {
        uint32_t n = agent_utf8_nbytes(bytes, nbytes);
        AGENT_TRY(agent_text_append(text, n ? bytes : "\xef\xbf\xbd", n ? n : 3));
        bytes += n ? n : 1;
        nbytes -= n ? n : 1;
    }
    return 0;
}

/* Appends bytes as a JSON string, with its quotes; U+FFFD for each byte that is not UTF-8. */
AGENT_API int32_t agent_text_append_json(agent_text_t *text, const char *bytes, uint32_t nbytes)
{
    AGENT_TRY(agent_text_append(text, "\"", 1));
    while (nbytes) {
        uint8_t c = (uint8_t)*bytes;
        uint32_t n = agent_utf8_nbytes(bytes, nbytes);
        char escape[] = {'\\', (char)c, '0', '0', "0123456789abcdef"[c >> 4 & 15],
                         "0123456789abcdef"[c & 15]};
        if (c < ' ') {
            escape[1] = 'u';
            AGENT_TRY(agent_text_append(text, escape, sizeof escape));
        } else if (c == '"' || c == '\\') {
            AGENT_TRY(agent_text_append(text, escape, 2));
        } else {
            AGENT_TRY(agent_text_append(text, n ? bytes : "\xef\xbf\xbd", n ? n : 3));
        }
        bytes += n ? n : 1;
        nbytes -= n ? n : 1;
    }
    return agent_text_append(text, "\"", 1);
}

/* ------------------------------------------------------------------------------------ words */

AGENT_API int32_t agent_is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The next word of a NUL-terminated text and its length; 0 at the end. Moves `*cursor` past it. */
AGENT_API uint32_t agent_word(const char **cursor, const char **word)
{
    while (agent_is_space(**cursor))
        ++*cursor;
    *word = *cursor;
    while (**cursor && !agent_is_space(**cursor))
        ++*cursor;
    return (uint32_t)(*cursor - *word);
}

/* Whether the `nbytes` bytes are exactly `string`. */
AGENT_API int32_t agent_equals(const char *bytes, uint32_t nbytes, const char *string)
{
    return nbytes == strlen(string) && memcmp(bytes, string, nbytes) == 0;
}

/* Reads a decimal integer from low to high; all bytes must belong to it. */
AGENT_API int32_t agent_parse_int(const char *bytes, uint32_t nbytes, int64_t low, int64_t high,
                                  int64_t *value)
{
    uint32_t negative = nbytes && bytes[0] == '-';
    int64_t result = 0;
    if (nbytes == negative)
        return -ISTHMUS_EINVAL;
    for (uint32_t i = negative; i < nbytes; i++) {
        int32_t digit = bytes[i] - '0';
        if (digit < 0 || digit > 9 || __builtin_mul_overflow(result, 10, &result)
            || __builtin_add_overflow(result, negative ? -digit : digit, &result))
            return -ISTHMUS_EINVAL;
    }
    if (result < low || result > high)
        return -ISTHMUS_EINVAL;
    *value = result;
    return 0;
}

/* Reads a number such as `0.7`, `2` or `1e-05` from low to high; all bytes must belong to it. */
AGENT_API int32_t agent_parse_float(const char *bytes, uint32_t nbytes, double low, double high,
                                    double *value)
{
    uint32_t negative = nbytes && bytes[0] == '-', n_digits = 0, at = negative;
    double mantissa = 0, divisor = 1;
    int64_t exponent = 0;
    int32_t fraction = 0;
    for (; at < nbytes && bytes[at] != 'e' && bytes[at] != 'E'; at++) {
        if (bytes[at] == '.' && !fraction) {
            fraction = 1;
            continue;
        }
        if (bytes[at] < '0' || bytes[at] > '9')
            return -ISTHMUS_EINVAL;
        mantissa = mantissa * 10 + (bytes[at] - '0');
        divisor = fraction ? divisor * 10 : divisor;
        n_digits++;
    }
    if (at < nbytes) {
        at += at + 1 < nbytes && bytes[at + 1] == '+' ? 2 : 1;
        AGENT_TRY(agent_parse_int(bytes + at, nbytes - at, -300, 300, &exponent));
    }
    double result = negative ? -mantissa / divisor : mantissa / divisor;
    for (; exponent > 0; exponent--)
        result *= 10;
    for (; exponent < 0; exponent++)
        result /= 10;
    if (n_digits == 0 || !(result >= low && result <= high))
        return -ISTHMUS_EINVAL;
    *value = result;
    return 0;
}

/* --------------------------------------------------------------------------------- messages */

/* Streams a string to the caller. */
AGENT_API int32_t agent_emit(const char *string)
{
    return isthmus_emit(string, (uint32_t)strlen(string));
}

/* Sets the answer, in place of all that was emitted. */
AGENT_API int32_t agent_reply(const char *string)
{
    return isthmus_reply(string, (uint32_t)strlen(string));
}

/* Sets the answer to a text, unless memory ran out while it was written. */
AGENT_API int32_t agent_reply_text(const agent_text_t *text)
{
    AGENT_TRY(agent_text_status(text));
    return isthmus_reply(text->bytes, text->nbytes);
}

/* Writes a line to the log; `level` is one of ISTHMUS_LOG_... */
AGENT_API int32_t agent_log(uint32_t level, const char *string)
{
    return isthmus_log(level, string, (uint32_t)strlen(string));
}

/*
 * Reads the message, of the length that on_message was given, into `*message`: from malloc, to be
 * freed by the caller, with a NUL after it. Returns its length; it may hold NULs of its own.
 */
AGENT_API int32_t agent_message(int32_t nbytes, char **message)
{
    *message = (char *)malloc((size_t)nbytes + 1);
    if (!*message)
        return -ISTHMUS_ENOMEM;
    (*message)[nbytes] = 0;
    return isthmus_message_read(*message, (uint32_t)nbytes);
}

/* ---------------------------------------------------------------------------------- options */

/*
 * WASI's own two functions, declared here because each wasi-libc names them differently.
 * https://github.com/WebAssembly/WASI/blob/wasi-0.1/preview1/docs.md#functions
 */
__attribute__((import_module("wasi_snapshot_preview1"), import_name("args_sizes_get"))) extern
int32_t agent_wasi_args_sizes_get(size_t *n_args, size_t *nbytes);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("args_get"))) extern
int32_t agent_wasi_args_get(char **args, char *bytes);

static char **agent_args; /* NULL until they are read */

/* Has the next option be read from WASI again: a fork may have been given others. Values that were
 * read before are freed. */
AGENT_API void agent_options_renew(void)
{
    free(agent_args);
    agent_args = NULL;
}

/*
 * Sets `*value` to the value of the argument `key=value`, or leaves it alone if there is none. The
 * arguments are read from WASI at the first call, and stay in memory until agent_options_renew.
 */
AGENT_API int32_t agent_option(const char *key, const char **value)
{
    static size_t n_args;
    size_t nbytes;
    if (!agent_args) {
        if (agent_wasi_args_sizes_get(&n_args, &nbytes))
            return -ISTHMUS_EIO;
        char **room = (char **)malloc(n_args * sizeof *room + nbytes + 1);
        if (!room)
            return -ISTHMUS_ENOMEM;
        if (agent_wasi_args_get(room, (char *)(room + n_args)))
            return free(room), -ISTHMUS_EIO;
        agent_args = room;
    }
    size_t key_nbytes = strlen(key);
    for (size_t i = 0; i < n_args; i++)
        if (strncmp(agent_args[i], key, key_nbytes) == 0 && agent_args[i][key_nbytes] == '=')
            *value = agent_args[i] + key_nbytes + 1;
    return 0;
}

/* Logs what is wrong with an option, and is the errno for it. */
AGENT_API int32_t agent_option_refused(const char *key, const char *value, const char *wanted)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    const char *parts[] = {"option ", key, " is '", value, "': give ", wanted};
    for (uint32_t i = 0; i < sizeof parts / sizeof *parts; i++)
        agent_text_append_string(&text, parts[i]);
    if (agent_text_status(&text) == 0)
        isthmus_log(ISTHMUS_LOG_ERROR, text.bytes, text.nbytes);
    return -ISTHMUS_EINVAL;
}

/* An integer option from low to high. `*value` is its default, and stays so if it is not given. */
AGENT_API int32_t agent_option_int(const char *key, int64_t low, int64_t high, int64_t *value)
{
    const char *string = NULL;
    AGENT_TRY(agent_option(key, &string));
    if (!string || agent_parse_int(string, (uint32_t)strlen(string), low, high, value) == 0)
        return 0;
    AGENT_TEXT_FREED agent_text_t wanted = AGENT_EMPTY;
    agent_text_append_string(&wanted, "a whole number from ");
    agent_text_append_int(&wanted, low);
    agent_text_append_string(&wanted, " to ");
    AGENT_TRY(agent_text_append_int(&wanted, high));
    return agent_option_refused(key, string, wanted.bytes);
}

/* A number option from low to high. `*value` is its default, and stays so if it is not given. */
AGENT_API int32_t agent_option_float(const char *key, double low, double high, float *value)
{
    const char *string = NULL;
    double number = 0;
    AGENT_TRY(agent_option(key, &string));
    if (!string)
        return 0;
    if (agent_parse_float(string, (uint32_t)strlen(string), low, high, &number) == 0)
        return *value = (float)number, 0;
    AGENT_TEXT_FREED agent_text_t wanted = AGENT_EMPTY;
    agent_text_append_string(&wanted, "a number from ");
    agent_text_append_float(&wanted, low);
    agent_text_append_string(&wanted, " to ");
    AGENT_TRY(agent_text_append_float(&wanted, high));
    return agent_option_refused(key, string, wanted.bytes);
}

/* ----------------------------------------------------------------------------------- models */

/* Opens the model that the option `model` names, by default the one called "default". */
AGENT_API int32_t agent_model_open(void)
{
    const char *name = "default";
    AGENT_TRY(agent_option("model", &name));
    return isthmus_model_open(name, (uint32_t)strlen(name));
}

/*
 * Turns text into token ids, in `*tokens`: from malloc, to be freed by the caller, NULL on an
 * error. Returns how many. Set ISTHMUS_TOKENIZE_PARSE_SPECIAL only for text of your own.
 */
AGENT_API int32_t agent_tokenize(int32_t model, const char *text, uint32_t nbytes, uint32_t flags,
                                 int32_t **tokens)
{
    int32_t cap = (int32_t)(nbytes / 2) + 16; /* English has a token for 4 bytes */
    for (*tokens = NULL;;) {
        int32_t *room = (int32_t *)realloc(*tokens, (size_t)cap * sizeof *room);
        int32_t n = room ? isthmus_tokenize(model, text, nbytes, flags, room, (uint32_t)cap)
                         : -ISTHMUS_ENOMEM;
        *tokens = room ? room : *tokens;
        if (n >= 0 && n <= cap)
            return n;
        cap = n;
        if (n < 0) {
            free(*tokens);
            *tokens = NULL;
            return n;
        }
    }
}

/* Appends the text of tokens; the bytes of one may end inside a UTF-8 character. */
AGENT_API int32_t agent_detokenize(int32_t model, const int32_t *tokens, uint32_t n_tokens,
                                   uint32_t flags, agent_text_t *text)
{
    uint32_t need = 8 * n_tokens;
    for (;;) {
        AGENT_TRY(agent_text_reserve(text, need));
        uint32_t room = text->cap - text->nbytes - 1;
        char *end = text->bytes + text->nbytes;
        AGENT_SET(need, isthmus_detokenize(model, tokens, n_tokens, flags, end, room));
        if (need <= room) {
            text->nbytes += need;
            text->bytes[text->nbytes] = 0;
            return 0;
        }
    }
}

/* One turn of a conversation; the strings must outlive it. */
AGENT_API isthmus_chat_message_t agent_chat_message(const char *role, const char *content,
                                                    uint32_t content_nbytes)
{
    return (isthmus_chat_message_t){
        ISTHMUS_PTR(role), (uint32_t)strlen(role), ISTHMUS_PTR(content), content_nbytes};
}

/* Sets `text` to a conversation as the model's chat template writes it. */
AGENT_API int32_t agent_chat_template(int32_t model, const isthmus_chat_message_t *messages,
                                      uint32_t n_messages, uint32_t flags, agent_text_t *text)
{
    uint32_t need = 1024;
    for (uint32_t i = 0; i < n_messages; i++)
        need += (uint32_t)messages[i].content_nbytes + 64;
    for (agent_text_clear(text);;) {
        AGENT_TRY(agent_text_reserve(text, need));
        uint32_t room = text->cap - 1;
        AGENT_SET(need, isthmus_chat_template(model, messages, n_messages, flags, text->bytes,
                                              room));
        if (need <= room) {
            text->nbytes = need;
            text->bytes[need] = 0;
            return 0;
        }
    }
}

/* ------------------------------------------------------------------------------------ tools */

/*
 * Calls a tool, and appends its result. Returns 0; or -ISTHMUS_EIO if it failed, or -ISTHMUS_ENOENT
 * if there is none, and then what was appended says why.
 */
AGENT_API int32_t agent_tool_call(const agent_text_t *name, const agent_text_t *arguments,
                                  agent_text_t *result)
{
    int32_t status = isthmus_tool_call(name->bytes, name->nbytes, arguments->bytes,
                                       arguments->nbytes);
    if (status < 0 && status != -ISTHMUS_EIO && status != -ISTHMUS_ENOENT)
        return status;
    uint32_t n;
    AGENT_SET(n, isthmus_tool_result(NULL, 0));
    AGENT_TRY(agent_text_reserve(result, n));
    AGENT_TRY(isthmus_tool_result(result->bytes + result->nbytes, n));
    result->nbytes += n;
    result->bytes[result->nbytes] = 0;
    return status < 0 ? status : 0;
}

/*
 * Writes a conversation, a JSON array, as token ids in `*tokens`: from malloc, to be freed by the
 * caller, NULL on an error. Begins to read the answer. Returns how many tokens there are.
 */
AGENT_API int32_t agent_prompt_tokens(int32_t model, const agent_text_t *messages, uint32_t flags,
                                    int32_t **tokens)
{
    int32_t cap = (int32_t)(messages->nbytes / 2) + 1024; /* the template's own words, and tools */
    for (*tokens = NULL;;) {
        int32_t *room = (int32_t *)realloc(*tokens, (size_t)cap * sizeof *room);
        int32_t n = room ? isthmus_chat_tokens(model, messages->bytes, messages->nbytes, flags,
                                               room, (uint32_t)cap)
                         : -ISTHMUS_ENOMEM;
        *tokens = room ? room : *tokens;
        if (n >= 0 && n <= cap)
            return n;
        cap = n;
        if (n < 0) {
            free(*tokens);
            *tokens = NULL;
            return n;
        }
    }
}

/* Appends a part of the answer that is read. */
AGENT_API int32_t agent_answer_read(uint32_t part, uint32_t index, agent_text_t *text)
{
    uint32_t need = 64;
    for (;;) {
        AGENT_TRY(agent_text_reserve(text, need));
        uint32_t room = text->cap - text->nbytes - 1;
        AGENT_SET(need, isthmus_answer_read(part, index, text->bytes + text->nbytes, room));
        if (need <= room) {
            text->nbytes += need;
            text->bytes[text->nbytes] = 0;
            return 0;
        }
    }
}

/* Opens a grammar by which the answer calls a tool. */
AGENT_API int32_t agent_answer_grammar_open(int32_t model)
{
    AGENT_TEXT_FREED agent_text_t source = AGENT_EMPTY;
    uint32_t n;
    AGENT_SET(n, isthmus_answer_grammar(NULL, 0));
    AGENT_TRY(agent_text_reserve(&source, n));
    AGENT_TRY(isthmus_answer_grammar(source.bytes, n));
    return isthmus_grammar_open(model, ISTHMUS_GRAMMAR_KIND_LARK, source.bytes, n);
}

/* --------------------------------------------------------------------------------- sessions */

/*
 * One sequence of tokens. It owns `bytes`, where the session's logits and KV cache lie, and
 * `tokens`, the ids that it holds. {0} is a closed one.
 */
typedef struct {
    int32_t model;
    int32_t handle;
    void *bytes;
    size_t nbytes;
    int32_t *tokens; /* i32[n_tokens], room for n_ctx */
    uint32_t n_tokens;
    uint32_t n_ctx;   /* tokens that it can hold */
    uint32_t n_vocab; /* number of logits */
    float *logits;    /* where they lie; NULL where the host must be asked whether there are any */
    int32_t edited;   /* whether logits were changed since the last pass, by a grammar for instance */
    uint32_t n_top;   /* candidates that the device finds in each pass; 0: it was not asked */
    isthmus_candidate_t *top;
    void *top_room; /* from malloc: what `top` lies in */
} agent_session_t;

/* To be called before a pass. Returns where the logits lie, which is known again after it. */
AGENT_API float *agent_begin_pass_(agent_session_t *session)
{
    float *logits = session->logits;
    session->logits = NULL;
    session->edited = 0;
    return logits;
}

/* Closes the session and frees its memory. */
AGENT_API int32_t agent_session_close(agent_session_t *session)
{
    if (session->handle)
        AGENT_TRY(isthmus_session_close(session->handle));
    pages_give(session->bytes, session->nbytes);
    free(session->tokens);
    free(session->top_room);
    *session = (agent_session_t)AGENT_EMPTY;
    return 0;
}

/* Allocates a session of n_ctx tokens and opens it. */
AGENT_API int32_t agent_session_open(agent_session_t *session, int32_t model, uint32_t n_ctx)
{
    isthmus_model_info_t info;
    int64_t nbytes;
    AGENT_TRY(isthmus_model_info(model, &info));
    AGENT_SET(nbytes, isthmus_session_nbytes(model, n_ctx));
    if ((uint64_t)nbytes > SIZE_MAX - 65535)
        return -ISTHMUS_ENOMEM;
    *session = (agent_session_t)AGENT_EMPTY;
    session->model = model;
    session->n_vocab = info.n_vocab;
    session->n_ctx = (n_ctx + 255) / 256 * 256; /* as session_nbytes rounds */
    session->tokens = (int32_t *)malloc(session->n_ctx * sizeof *session->tokens);
    session->bytes = pages_take((size_t)nbytes);
    session->nbytes = (size_t)nbytes;
    int32_t handle = -ISTHMUS_ENOMEM;
    if (session->bytes && session->tokens)
        handle = isthmus_session_open(model, n_ctx, session->bytes, (size_t)nbytes);
    if (handle < 0)
        agent_session_close(session);
    else
        session->handle = handle;
    return handle < 0 ? handle : 0;
}

/* For on_replay: opens a session anew, empty, that the host closed because its model changed. */
AGENT_API int32_t agent_session_reopen(agent_session_t *session)
{
    isthmus_model_info_t info;
    int32_t model = session->model;
    uint32_t n_ctx = session->n_ctx;
    AGENT_TRY(isthmus_model_info(model, &info));
    session->handle = 0; /* and what it asked the device for is forgotten */
    AGENT_TRY(agent_session_close(session));
    return agent_session_open(session, model,
                              n_ctx < (uint32_t)info.n_ctx_train ? n_ctx
                                                                 : (uint32_t)info.n_ctx_train);
}

/* Opens a session of the option n_ctx tokens; by default what the model knows, up to 2,048. */
AGENT_API int32_t agent_session_open_by_option(agent_session_t *session, int32_t model)
{
    isthmus_model_info_t info;
    AGENT_TRY(isthmus_model_info(model, &info));
    int64_t n_ctx = info.n_ctx_train < 2048 ? info.n_ctx_train : 2048;
    AGENT_TRY(agent_option_int("n_ctx", 1, info.n_ctx_train, &n_ctx));
    return agent_session_open(session, model, (uint32_t)n_ctx);
}

/* Appends tokens, many at a time. On an error the session is as it was. */
AGENT_API int32_t agent_prefill(agent_session_t *session, const int32_t *tokens, uint32_t n_tokens)
{
    if (n_tokens > session->n_ctx - session->n_tokens)
        return -ISTHMUS_ECONTEXT;
    float *logits = agent_begin_pass_(session);
    AGENT_TRY(isthmus_prefill(session->handle, tokens, n_tokens));
    session->logits = logits;
    memcpy(session->tokens + session->n_tokens, tokens, n_tokens * sizeof *tokens);
    session->n_tokens += n_tokens;
    return 0;
}

/* Appends one token. On an error the session is as it was. */
AGENT_API int32_t agent_decode(agent_session_t *session, int32_t token)
{
    if (session->n_tokens == session->n_ctx)
        return -ISTHMUS_ECONTEXT;
    float *logits = agent_begin_pass_(session);
    AGENT_TRY(isthmus_decode(session->handle, token));
    session->logits = logits;
    session->tokens[session->n_tokens++] = token;
    return 0;
}

/*
 * Streams the text of a token to the caller, and appends it to `text` and the token to the session.
 * Returns 1, or 0 if the token ends the generation: then nothing happened. On an error the session
 * and `text` are as they were; with ECONTEXT or ELIMIT the caller may have the text already.
 */
AGENT_API int32_t agent_emit_token(agent_session_t *session, int32_t token, agent_text_t *text)
{
    uint32_t room, need = 8;
    float *logits = agent_begin_pass_(session);
    do {
        AGENT_TRY(agent_text_reserve(text, need));
        char *end = text->bytes + text->nbytes;
        room = text->cap - text->nbytes - 1;
        int32_t found = isthmus_emit_token(session->handle, token, end, room);
        if (found < 0 || found == ISTHMUS_EMIT_END)
            end[0] = 0;
        AGENT_TRY(found);
        need = (uint32_t)found;
    } while (need > room && need != ISTHMUS_EMIT_END);
    session->logits = logits;
    if (need == ISTHMUS_EMIT_END)
        return 0;
    text->nbytes += need;
    text->bytes[text->nbytes] = 0;
    session->tokens[session->n_tokens++] = token;
    return 1;
}

/*
 * Appends up to 32 tokens, with the bits of as many agent_decode. The logits after each but the last
 * go to `logits`, f32[n_tokens - 1][n_vocab]. On an error the session holds what it held.
 */
AGENT_API int32_t agent_decode_many(agent_session_t *session, const int32_t *tokens,
                                    uint32_t n_tokens, float *logits)
{
    if (n_tokens > session->n_ctx - session->n_tokens)
        return -ISTHMUS_ECONTEXT;
    agent_begin_pass_(session);
    AGENT_TRY(isthmus_decode_many(session->handle, tokens, n_tokens, logits));
    memcpy(session->tokens + session->n_tokens, tokens, n_tokens * sizeof *tokens);
    session->n_tokens += n_tokens;
    return 0;
}

/*
 * Appends a token to each of up to 32 sessions of one model, with the bits of agent_decode for each,
 * in one pass where the model allows that. On an error the sessions hold what they held.
 */
AGENT_API int32_t agent_decode_batch(agent_session_t *const *sessions, const int32_t *tokens,
                                     uint32_t n_sessions)
{
    isthmus_step_t steps[32];
    if (n_sessions > sizeof steps / sizeof *steps)
        return -ISTHMUS_EINVAL;
    for (uint32_t i = 0; i < n_sessions; i++) {
        if (sessions[i]->n_tokens == sessions[i]->n_ctx)
            return -ISTHMUS_ECONTEXT;
        steps[i] = (isthmus_step_t){(uint32_t)sessions[i]->handle, tokens[i]};
    }
    for (uint32_t i = 0; i < n_sessions; i++)
        agent_begin_pass_(sessions[i]);
    AGENT_TRY(isthmus_decode_batch(steps, n_sessions));
    for (uint32_t i = 0; i < n_sessions; i++)
        sessions[i]->tokens[sessions[i]->n_tokens++] = tokens[i];
    return 0;
}

/* Makes a session hold the first n_tokens of another one of its model, and nothing else. */
AGENT_API int32_t agent_session_copy(agent_session_t *session, const agent_session_t *source,
                                     uint32_t n_tokens)
{
    if (n_tokens > session->n_ctx)
        return -ISTHMUS_ECONTEXT;
    agent_begin_pass_(session);
    session->n_tokens = 0; /* so it is if the copy is given up */
    AGENT_TRY(isthmus_session_copy(session->handle, source->handle, n_tokens));
    memcpy(session->tokens, source->tokens, n_tokens * sizeof *session->tokens);
    session->n_tokens = n_tokens;
    return 0;
}

/* Forgets all tokens after the first n_tokens. */
AGENT_API int32_t agent_truncate(agent_session_t *session, uint32_t n_tokens)
{
    session->logits = NULL;
    AGENT_TRY(isthmus_truncate(session->handle, n_tokens));
    session->n_tokens = n_tokens;
    return 0;
}

/*
 * Forgets all tokens after the first n_tokens, or some of those as well: a model that keeps a state
 * which each token rewrites goes back to a checkpoint. Returns how many are left.
 */
AGENT_API int32_t agent_keep(agent_session_t *session, uint32_t n_tokens)
{
    int32_t n_left;
    AGENT_SET(n_left, isthmus_session_reach(session->handle, n_tokens));
    AGENT_TRY(agent_truncate(session, (uint32_t)n_left));
    return n_left;
}

/*
 * Has agent_keep be able to come back to the tokens that the session holds now. Needed of models
 * that keep a state alone; returns 0 if the session has no room for that.
 */
AGENT_API int32_t agent_checkpoint(agent_session_t *session)
{
    return isthmus_session_checkpoint(session->handle);
}

#define AGENT_LAST_WORDS 16

/*
 * As agent_prefill; a model that keeps a state gets a checkpoint some tokens before the end. For
 * conversations that are written anew for each turn: what comes then mostly begins as what there
 * was, but for its last words, which open the answer.
 */
AGENT_API int32_t agent_prefill_turn(agent_session_t *session, const int32_t *tokens,
                                     uint32_t n_tokens)
{
    isthmus_model_info_t info;
    AGENT_TRY(isthmus_model_info(session->model, &info));
    if (!(info.flags & ISTHMUS_MODEL_STATE) || n_tokens <= AGENT_LAST_WORDS)
        return agent_prefill(session, tokens, n_tokens);
    uint32_t n_first = n_tokens - AGENT_LAST_WORDS;
    AGENT_TRY(agent_prefill(session, tokens, n_first));
    AGENT_TRY(agent_checkpoint(session));
    return agent_prefill(session, tokens + n_first, AGENT_LAST_WORDS);
}

/*
 * Sets `*logits` to where the session's logits lie: f32[n_vocab], read in place. They stay there, so
 * the host is asked only where there may be none.
 */
AGENT_API int32_t agent_logits(agent_session_t *session, float **logits)
{
    int64_t address = (int64_t)(uintptr_t)session->logits;
    if (!address)
        AGENT_SET(address, isthmus_logits(session->handle));
    *logits = session->logits = (float *)(uintptr_t)address;
    return 0;
}

#define AGENT_MOST_TOP 256

/*
 * Has the device find the k most probable tokens in each pass from now on, if it does that sooner
 * than a scan of the logits; 0 ends it. agent_session_sample then needs no logits in most cases.
 * Whoever changes logits in place sets `edited` of the session, until the next pass.
 */
AGENT_API int32_t agent_session_top_k(agent_session_t *session, uint32_t k)
{
    int32_t finds = 0;
    if (k == session->n_top)
        return 0;
    isthmus_candidate_t *top = NULL;
    void *room = k ? malloc(k * sizeof *top + 31) : NULL;
    if (k && !room)
        return -ISTHMUS_ENOMEM;
    if (room) {
        top = (isthmus_candidate_t *)(((uintptr_t)room + 31) & ~(uintptr_t)31);
        finds = isthmus_session_top_k(session->handle, k, top);
    }
    if (finds == 0)
        finds = isthmus_session_top_k(session->handle, k = 0, NULL);
    if (finds < 0 || k == 0) {
        free(room);
        AGENT_TRY(finds);
        room = top = NULL;
    }
    free(session->top_room);
    session->top_room = room;
    session->top = top;
    session->n_top = k;
    return 0;
}

/* --------------------------------------------------------------------------------- grammars */

/* A grammar's handle, or 0 for none, which closes itself: AGENT_GRAMMAR_CLOSED int32_t g = 0; */
#define AGENT_GRAMMAR_CLOSED __attribute__((cleanup(agent_grammar_close_)))

AGENT_API void agent_grammar_close_(int32_t *grammar)
{
    if (*grammar > 0)
        isthmus_grammar_close(*grammar);
}

/* Opens what the options json_schema, grammar (GBNF), regex or lark say. Returns 0 without one. */
AGENT_API int32_t agent_grammar_open_by_option(int32_t model)
{
    static const char *const keys[] = {"json_schema", "grammar", "regex", "lark"};
    static const uint32_t kinds[] = {
        ISTHMUS_GRAMMAR_KIND_JSON_SCHEMA,
        ISTHMUS_GRAMMAR_KIND_GBNF,
        ISTHMUS_GRAMMAR_KIND_REGEX,
        ISTHMUS_GRAMMAR_KIND_LARK,
    };
    const char *source = NULL;
    uint32_t kind = 0;
    for (uint32_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *given = NULL;
        AGENT_TRY(agent_option(keys[i], &given));
        if (given && source)
            return agent_option_refused(keys[i], given, "one grammar only");
        source = given ? given : source;
        kind = given ? kinds[i] : kind;
    }
    return source ? isthmus_grammar_open(model, kind, source, (uint32_t)strlen(source)) : 0;
}

/*
 * Masks the session's logits, where there is a grammar. Returns 1, or 0 where the text is complete:
 * it may only end.
 */
AGENT_API int32_t agent_grammar_mask(int32_t grammar, agent_session_t *session)
{
    int32_t n;
    if (!grammar)
        return 1;
    session->edited = 1;
    AGENT_SET(n, isthmus_grammar_mask(grammar, session->handle));
    return n > 0;
}

/* Goes on behind a token, where there is a grammar. */
AGENT_API int32_t agent_grammar_accept(int32_t grammar, int32_t token)
{
    return grammar ? isthmus_grammar_accept(grammar, token) : 0;
}

/* --------------------------------------------------------------------------------- sampling */

/* The next 64 random bits; SplitMix64, https://prng.di.unimi.it/splitmix64.c */
AGENT_API uint64_t agent_random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

/* The next random number in [0, 1). */
AGENT_API double agent_random_float(uint64_t *state)
{
    return (double)(agent_random_next(state) >> 11) * 0x1p-53;
}

/* e to the power of x <= 0, to double precision; here so that no libm is linked. */
AGENT_API double agent_exp(double x)
{
    if (!(x > -700))
        return 0;
    double scale = __builtin_floor(x * 1.4426950408889634 + 0.5);
    double r = x - scale * 0x1.62e42fee00000p-1 - scale * 0x1.a39ef35793c76p-33;
    double sum = 1;
    for (int32_t i = 13; i > 0; i--) /* Taylor; |r| <= ln(2) / 2 makes 13 terms enough */
        sum = 1 + sum * r / i;
    uint64_t bits = (uint64_t)(1023 + (int64_t)scale) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

/* The first place from `at` on whose value is greater than the threshold, or n. Skips NaN. */
AGENT_API uint32_t agent_find_greater(const float *values, uint32_t at, uint32_t n,
                                      float threshold)
{
#ifdef __wasm_simd128__
    v128_t limit = wasm_f32x4_splat(threshold);
    for (; at + 16 <= n; at += 16) {
        v128_t any = wasm_f32x4_gt(wasm_v128_load(values + at), limit);
        for (uint32_t i = 4; i < 16; i += 4)
            any = wasm_v128_or(any, wasm_f32x4_gt(wasm_v128_load(values + at + i), limit));
        if (wasm_v128_any_true(any))
            break;
    }
#endif
    while (at < n && !(values[at] > threshold))
        at++;
    return at;
}

#ifdef __wasm_simd128__
/* Whether any of 16 values is greater than its limit, or any of 16 others than theirs. */
AGENT_API int32_t agent_any_above_(const float *values, v128_t limit, const float *others,
                                   v128_t other_limit)
{
    v128_t any = wasm_f32x4_gt(wasm_v128_load(values), limit);
    any = wasm_v128_or(any, wasm_f32x4_gt(wasm_v128_load(others), other_limit));
    for (uint32_t i = 4; i < 16; i += 4) {
        any = wasm_v128_or(any, wasm_f32x4_gt(wasm_v128_load(values + i), limit));
        any = wasm_v128_or(any, wasm_f32x4_gt(wasm_v128_load(others + i), other_limit));
    }
    return wasm_v128_any_true(any);
}
#endif

/*
 * Where the greatest of n values is, the first one if there are several; EINVAL without one. Both
 * halves are looked through side by side: logits come from memory, which gives two places sooner
 * than one.
 */
AGENT_API int32_t agent_argmax(const float *values, uint32_t n)
{
    int32_t low = -ISTHMUS_EINVAL, high = low;
    float most_low = -__builtin_inff(), most_high = most_low;
    uint32_t half = 0;
#ifdef __wasm_simd128__
    half = n / 32 * 16;
    const float *upper = values + half;
    v128_t limit_low = wasm_f32x4_splat(most_low), limit_high = limit_low;
    for (uint32_t at = 0; at < half; at += 16) {
        if (!agent_any_above_(values + at, limit_low, upper + at, limit_high))
            continue;
        for (uint32_t i = at; i < at + 16; i++) {
            if (values[i] > most_low)
                most_low = values[i], low = (int32_t)i;
            if (upper[i] > most_high)
                most_high = upper[i], high = (int32_t)(half + i);
        }
        limit_low = wasm_f32x4_splat(most_low);
        limit_high = wasm_f32x4_splat(most_high);
    }
#endif
    for (uint32_t i = 2 * half; i < n; i++)
        if (values[i] > most_high)
            most_high = values[i], high = (int32_t)i;
    return most_high > most_low ? high : low;
}

typedef isthmus_candidate_t agent_candidate_t;

/* Whether a candidate ranks behind another: less probable, or equal and of a higher id. */
AGENT_API int32_t agent_ranks_behind(agent_candidate_t a, agent_candidate_t b)
{
    return a.logit < b.logit || (a.logit == b.logit && a.token > b.token);
}

/* Restores the heap (the lowest rank on top) below place `at`. */
AGENT_API void agent_heap_sink(agent_candidate_t *heap, uint32_t n, uint32_t at)
{
    agent_candidate_t moved = heap[at];
    for (uint32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && agent_ranks_behind(heap[child + 1], heap[child]))
            child++;
        if (!agent_ranks_behind(heap[child], moved))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/*
 * The k greatest of n values, most probable first. Once k are found, the scan stops only at values
 * above the least of them, so for a small k it costs one pass over the vocabulary. Returns how
 * many were found: fewer than k where values are NaN or -infinity.
 */
AGENT_API uint32_t agent_top_k(const float *values, uint32_t n, agent_candidate_t *top, uint32_t k)
{
    float threshold = -__builtin_inff();
    uint32_t n_top = 0;
    for (uint32_t at = 0; (at = agent_find_greater(values, at, n, threshold)) < n; at++) {
        if (n_top < k) {
            top[n_top++] = (agent_candidate_t){values[at], (int32_t)at};
            for (uint32_t i = n_top == k ? k / 2 : 0; i-- > 0;)
                agent_heap_sink(top, k, i);
        } else {
            top[0] = (agent_candidate_t){values[at], (int32_t)at};
            agent_heap_sink(top, k, 0);
        }
        threshold = n_top == k ? top[0].logit : threshold;
    }
    for (uint32_t i = n_top < k ? n_top / 2 : 0; i-- > 0;)
        agent_heap_sink(top, n_top, i);
    for (uint32_t i = n_top; i-- > 1;) { /* heap sort: the lowest rank goes to the end */
        agent_candidate_t last = top[i];
        top[i] = top[0];
        top[0] = last;
        agent_heap_sink(top, i, 0);
    }
    return n_top;
}

/* Draws one of n candidates, most probable first, after temperature, top-p and min-p. */
AGENT_API int32_t agent_draw(const agent_candidate_t *top, uint32_t n, isthmus_sampler_t *sampler,
                             double *weights)
{
    double total = 0, kept = 0;
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        weights[i] = agent_exp(((double)top[i].logit - top[0].logit) / sampler->temperature);
        total += weights[i];
    }
    while (n_kept < n && (n_kept == 0 || kept < sampler->top_p * total))
        kept += weights[n_kept++];
    while (n_kept > 1 && weights[n_kept - 1] < sampler->min_p * weights[0])
        kept -= weights[--n_kept];
    double left = agent_random_float(&sampler->rng_state) * kept;
    uint32_t at = 0;
    while (at + 1 < n_kept && (left -= weights[at]) >= 0)
        at++;
    return top[at].token;
}

/* Draws from the logits as they are: agent_sample without the repetition penalty. */
AGENT_API int32_t agent_sample_logits(const float *logits, uint32_t n_vocab,
                                      isthmus_sampler_t *sampler)
{
    if (sampler->temperature == 0)
        return agent_argmax(logits, n_vocab);
    uint32_t k = sampler->top_k && sampler->top_k < n_vocab ? sampler->top_k : n_vocab;
    AGENT_FREED double *weights = (double *)malloc(k * sizeof *weights);
    AGENT_FREED agent_candidate_t *top = (agent_candidate_t *)malloc(k * sizeof *top);
    if (!weights || !top)
        return -ISTHMUS_ENOMEM;
    uint32_t n = agent_top_k(logits, n_vocab, top, k);
    if (n == 0 || top[0].logit > __FLT_MAX__)
        return -ISTHMUS_EINVAL;
    return agent_draw(top, n, sampler, weights);
}

/*
 * Draws the next token from logits in place, in the guest: repetition penalty for the `n_recent`
 * recent tokens, top-k, temperature, top-p, min-p, with the settings that isthmus_sample takes. A
 * temperature of 0 takes the most probable token. The penalty is taken back afterwards: the
 * logits stay what the model said.
 */
AGENT_API int32_t agent_sample(float *logits, uint32_t n_vocab, const int32_t *recent,
                               uint32_t n_recent, isthmus_sampler_t *sampler)
{
    float penalty = sampler->repeat_penalty;
    if (penalty == 1 || n_recent == 0)
        return agent_sample_logits(logits, n_vocab, sampler);
    AGENT_FREED float *before = (float *)malloc(n_recent * sizeof *before);
    if (!before)
        return -ISTHMUS_ENOMEM;
    for (uint32_t i = 0; i < n_recent; i++)
        before[i] = logits[recent[i]];
    for (uint32_t i = 0; i < n_recent; i++) /* from `before`: a token is punished only once */
        logits[recent[i]] = before[i] > 0 ? before[i] / penalty : before[i] * penalty;
    int32_t token = agent_sample_logits(logits, n_vocab, sampler);
    for (uint32_t i = 0; i < n_recent; i++)
        logits[recent[i]] = before[i];
    return token;
}

/*
 * How many candidates of the device decide what the sampler draws, for agent_session_top_k; 0 if no
 * number of them does. One more than are drawn from: those that equal the last one decide nothing.
 */
AGENT_API uint32_t agent_sampler_top_k(const isthmus_sampler_t *sampler, uint32_t n_vocab)
{
    uint64_t k = sampler->temperature == 0 ? 1 : sampler->top_k;
    if (k == 0 || !(sampler->repeat_penalty >= 1))
        return 0; /* all tokens are drawn from, or a token that is no candidate may become one */
    k += 1 + (sampler->repeat_penalty > 1 ? (uint64_t)sampler->repeat_last_n : 0);
    k = k < n_vocab ? k : n_vocab;
    return k <= AGENT_MOST_TOP ? (uint32_t)k : 0;
}

/*
 * The session's candidates after the repetition penalty that surely rank before all other tokens, in
 * the order of agent_top_k. A penalty of 1 or more makes no other token exceed the last candidate.
 * Returns how many; 0 if there are none, or one is not a number.
 */
AGENT_API uint32_t agent_sure_candidates(const agent_session_t *session, const int32_t *recent,
                                         uint32_t n_recent, float penalty, agent_candidate_t *top)
{
    uint32_t n = 0, n_top = session->n_top;
    if (n_top == 0 || session->edited || session->top[0].token < 0)
        return 0;
    float least = n_top == session->n_vocab ? -__builtin_inff() : session->top[n_top - 1].logit;
    for (uint32_t i = 0; i < n_top; i++) {
        agent_candidate_t it = session->top[i];
        uint32_t at = 0;
        if (it.logit != it.logit)
            return 0;
        while (at < n_recent && recent[at] != it.token)
            at++;
        if (at < n_recent)
            it.logit = it.logit > 0 ? it.logit / penalty : it.logit * penalty;
        if (!(it.logit > least))
            continue;
        for (at = n++; at > 0 && agent_ranks_behind(top[at - 1], it); at--)
            top[at] = top[at - 1];
        top[at] = it;
    }
    return n;
}

/*
 * Draws from the device's candidates if that gives the token that all logits would give. Returns 1
 * with the token in `*token`, or 0: then the logits have to be read.
 */
AGENT_API int32_t agent_sample_top(const agent_session_t *session, const int32_t *recent,
                                   uint32_t n_recent, isthmus_sampler_t *sampler, int32_t *token)
{
    agent_candidate_t top[AGENT_MOST_TOP];
    double weights[AGENT_MOST_TOP];
    uint32_t k = sampler->temperature == 0 ? 1 : sampler->top_k;
    k = k < session->n_vocab ? k : session->n_vocab;
    if (k == 0 || k > session->n_top || !(sampler->repeat_penalty >= 1))
        return 0;
    if (sampler->repeat_penalty == 1)
        n_recent = 0;
    if (agent_sure_candidates(session, recent, n_recent, sampler->repeat_penalty, top) < k)
        return 0;
    if (sampler->temperature == 0)
        return *token = top[0].token, 1;
    if (top[0].logit > __FLT_MAX__)
        return -ISTHMUS_EINVAL;
    *token = agent_draw(top, k, sampler, weights);
    return 1;
}

/* Draws a session's next token in the guest. Does not append it. */
AGENT_API int32_t agent_session_sample(agent_session_t *session, isthmus_sampler_t *sampler)
{
    float *logits;
    int32_t token, drawn;
    AGENT_TRY(agent_logits(session, &logits));
    uint32_t n_recent = sampler->repeat_last_n;
    if (n_recent > session->n_tokens)
        n_recent = session->n_tokens;
    const int32_t *recent = session->tokens + session->n_tokens - n_recent;
    AGENT_SET(drawn, agent_sample_top(session, recent, n_recent, sampler, &token));
    return drawn ? token : agent_sample(logits, session->n_vocab, recent, n_recent, sampler);
}

/*
 * Reads the options temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n and seed into
 * a sampler that holds their defaults. Without a seed the actor's own chance decides.
 */
AGENT_API int32_t agent_sampler_options(isthmus_sampler_t *sampler)
{
    int64_t top_k = sampler->top_k, last_n = sampler->repeat_last_n, seed = 0;
    AGENT_TRY(agent_option_float("temperature", 0, 100, &sampler->temperature));
    AGENT_TRY(agent_option_int("top_k", 0, INT32_MAX, &top_k));
    AGENT_TRY(agent_option_float("top_p", 0, 1, &sampler->top_p));
    AGENT_TRY(agent_option_float("min_p", 0, 1, &sampler->min_p));
    AGENT_TRY(agent_option_float("repeat_penalty", 0.01, 100, &sampler->repeat_penalty));
    AGENT_TRY(agent_option_int("repeat_last_n", 0, INT32_MAX, &last_n));
    AGENT_TRY(isthmus_random(&seed, sizeof seed));
    AGENT_TRY(agent_option_int("seed", INT64_MIN, INT64_MAX, &seed));
    sampler->top_k = (uint32_t)top_k;
    sampler->repeat_last_n = (uint32_t)last_n;
    sampler->rng_state = (uint64_t)seed;
    return 0;
}

#endif
