/* natives.h: the functions that prelude.js is written over, one for each call of the host. */
#ifndef JS_NATIVES_H
#define JS_NATIVES_H

#include "conversation.h"
#include "quickjs.h"

#define MOST_SESSIONS 32

static agent_session_t sessions[MOST_SESSIONS];
static isthmus_sampler_t sampler = AGENT_SAMPLER_DEFAULTS;

static const char *const ERRNO_NAMES[] = {
    "",       "EINVAL",   "EFAULT", "EALIGN", "EBADF",   "ENOENT", "ENOMEM",
    "EBUSY",  "ECONTEXT", "ETOKEN", "ELIMIT", "ENOTSUP", "EIO",    "ECANCELED",
};

/* Throws an Error that names the errno that a call gave. */
static JSValue thrown(JSContext *c, const char *what, int32_t status)
{
    uint32_t code = (uint32_t)-status;
    uint32_t n = sizeof ERRNO_NAMES / sizeof *ERRNO_NAMES;
    return JS_ThrowInternalError(c, "%s: %s", what, ERRNO_NAMES[code < n ? code : 0]);
}

#define THROWN_IF(call, what)                    \
    do {                                         \
        int32_t status_ = (int32_t)(call);       \
        if (status_ < 0)                         \
            return thrown(c, what, status_);     \
    } while (0)

static JSValue native_emit(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    size_t nbytes;
    const char *text = JS_ToCStringLen(c, &nbytes, args[0]);
    if (!text)
        return JS_EXCEPTION;
    int32_t status = isthmus_emit(text, nbytes);
    JS_FreeCString(c, text);
    THROWN_IF(status, "emit");
    return JS_UNDEFINED;
}

static JSValue native_log(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    uint32_t level;
    if (JS_ToUint32(c, &level, args[0]))
        return JS_EXCEPTION;
    const char *text = JS_ToCString(c, args[1]);
    if (!text)
        return JS_EXCEPTION;
    int32_t status = agent_log(level, text);
    JS_FreeCString(c, text);
    THROWN_IF(status, "log");
    return JS_UNDEFINED;
}

static JSValue native_option(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    const char *value = NULL, *key = JS_ToCString(c, args[0]);
    if (!key)
        return JS_EXCEPTION;
    int32_t status = agent_option(key, &value);
    JS_FreeCString(c, key);
    THROWN_IF(status, "option");
    return value ? JS_NewString(c, value) : JS_UNDEFINED;
}

/* tool(name, args): its result, or undefined if this agent was not given it. */
static JSValue native_tool(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    size_t name_nbytes, nbytes;
    const char *name = JS_ToCStringLen(c, &name_nbytes, args[0]);
    const char *given = name ? JS_ToCStringLen(c, &nbytes, args[1]) : NULL;
    int32_t status = given ? isthmus_tool_call(name, name_nbytes, given, nbytes) : 0;
    JS_FreeCString(c, name);
    JS_FreeCString(c, given);
    if (!given)
        return JS_EXCEPTION;
    if (status == -ISTHMUS_ENOENT)
        return JS_UNDEFINED;
    THROWN_IF(status, "tool");
    AGENT_FREED char *result = malloc((size_t)status + 1);
    if (!result)
        return JS_ThrowOutOfMemory(c);
    THROWN_IF(isthmus_tool_result(result, (size_t)status), "tool");
    return JS_NewStringLen(c, result, (size_t)status);
}

static JSValue native_open_model(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    size_t nbytes;
    const char *name = JS_ToCStringLen(c, &nbytes, args[0]);
    if (!name)
        return JS_EXCEPTION;
    int32_t handle = isthmus_model_open(name, nbytes);
    JS_FreeCString(c, name);
    THROWN_IF(handle, "openModel");
    return JS_NewInt32(c, handle);
}

static JSValue array_of(JSContext *c, const int32_t *ids, int32_t n)
{
    JSValue array = JS_NewArray(c);
    for (int32_t i = 0; i < n; i++)
        JS_SetPropertyUint32(c, array, (uint32_t)i, JS_NewInt32(c, ids[i]));
    return array;
}

/* Sets `*ids` to an array's numbers, from malloc. Returns how many, or -1 after an exception. */
static int32_t ids_of(JSContext *c, JSValueConst array, int32_t **ids)
{
    int64_t n;
    *ids = NULL;
    if (JS_GetLength(c, array, &n) || n > INT32_MAX / 4)
        return -1;
    *ids = malloc((size_t)n * sizeof **ids + 1);
    for (int64_t i = 0; *ids && i < n; i++) {
        JSValue item = JS_GetPropertyUint32(c, array, (uint32_t)i);
        int32_t failed = JS_ToInt32(c, *ids + i, item);
        JS_FreeValue(c, item);
        if (failed)
            return -1;
    }
    return *ids ? (int32_t)n : (JS_ThrowOutOfMemory(c), -1);
}

/* chatTokens(model, [role, content, role, content, …]) */
static JSValue native_chat_tokens(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    AGENT_FREED int32_t *tokens = NULL;
    agent_chat_t chat = AGENT_EMPTY;
    int32_t model, status = 0;
    int64_t n_texts;
    if (JS_ToInt32(c, &model, args[0]) || JS_GetLength(c, args[1], &n_texts))
        return JS_EXCEPTION;
    for (int64_t i = 0; status >= 0 && i + 1 < n_texts; i += 2) {
        static const char *const roles[] = {"system", "user", "assistant"};
        JSValue role = JS_GetPropertyUint32(c, args[1], (uint32_t)i);
        JSValue content = JS_GetPropertyUint32(c, args[1], (uint32_t)i + 1);
        uint32_t which;
        size_t nbytes;
        const char *text = JS_ToUint32(c, &which, role) ? NULL : JS_ToCStringLen(c, &nbytes, content);
        status = text ? agent_chat_say(&chat, roles[which % 3], text, (uint32_t)nbytes) : -ISTHMUS_EINVAL;
        JS_FreeCString(c, text);
        JS_FreeValue(c, role);
        JS_FreeValue(c, content);
    }
    if (status >= 0)
        status = agent_chat_tokens(model, &chat, &tokens);
    agent_chat_free(&chat);
    THROWN_IF(status, "chatTokens");
    return array_of(c, tokens, status);
}

static JSValue native_tokenize(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    AGENT_FREED int32_t *tokens = NULL;
    int32_t model, flags;
    size_t nbytes;
    if (JS_ToInt32(c, &model, args[0]) || JS_ToInt32(c, &flags, args[2]))
        return JS_EXCEPTION;
    const char *text = JS_ToCStringLen(c, &nbytes, args[1]);
    if (!text)
        return JS_EXCEPTION;
    int32_t found = agent_tokenize(model, text, (uint32_t)nbytes, (uint32_t)flags, &tokens);
    JS_FreeCString(c, text);
    THROWN_IF(found, "tokenize");
    return array_of(c, tokens, found);
}

static JSValue native_detokenize(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    AGENT_FREED int32_t *tokens = NULL;
    int32_t model;
    if (JS_ToInt32(c, &model, args[0]))
        return JS_EXCEPTION;
    int32_t n_tokens = ids_of(c, args[1], &tokens);
    if (n_tokens < 0)
        return JS_EXCEPTION;
    THROWN_IF(agent_detokenize(model, tokens, (uint32_t)n_tokens, 0, &text), "detokenize");
    return JS_NewStringLen(c, text.bytes ? text.bytes : "", text.nbytes);
}

static JSValue native_is_end(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    int32_t model, token;
    if (JS_ToInt32(c, &model, args[0]) || JS_ToInt32(c, &token, args[1]))
        return JS_EXCEPTION;
    int32_t flags = isthmus_token_flags(model, token);
    THROWN_IF(flags, "isEnd");
    return JS_NewBool(c, flags & ISTHMUS_TOKEN_EOG);
}

/* ---------------------------------------------------------------------------------- sessions */

/* The open session of a number, or NULL after an exception. */
static agent_session_t *session_of(JSContext *c, JSValueConst number)
{
    uint32_t at;
    if (JS_ToUint32(c, &at, number))
        return NULL;
    if (at < MOST_SESSIONS && sessions[at].handle)
        return &sessions[at];
    JS_ThrowReferenceError(c, "the session is closed");
    return NULL;
}

/* openSession(model, nCtx): the number of a session; nCtx 0 takes what the options say. */
static JSValue native_open_session(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    int32_t model;
    uint32_t n_ctx, at = 0;
    if (JS_ToInt32(c, &model, args[0]) || JS_ToUint32(c, &n_ctx, args[1]))
        return JS_EXCEPTION;
    while (at < MOST_SESSIONS && sessions[at].handle)
        at++;
    if (at == MOST_SESSIONS)
        return thrown(c, "openSession", -ISTHMUS_ELIMIT);
    THROWN_IF(n_ctx ? agent_session_open(&sessions[at], model, n_ctx)
                    : agent_session_open_by_option(&sessions[at], model), "openSession");
    return JS_NewUint32(c, at);
}

/* call(session, what, value): the calls that take a number and give one. */
static JSValue native_call(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    agent_session_t *session = session_of(c, args[0]);
    int32_t what, value, status = -ISTHMUS_EINVAL;
    if (!session || JS_ToInt32(c, &what, args[1]) || JS_ToInt32(c, &value, args[2]))
        return JS_EXCEPTION;
    switch (what) {
    case 0:
        status = (int32_t)session->n_tokens;
        break;
    case 1:
        status = agent_decode(session, value);
        break;
    case 2:
        status = agent_keep(session, (uint32_t)value);
        break;
    case 3:
        status = isthmus_sample(session->handle, &sampler);
        break;
    case 4:
        status = agent_session_close(session);
        break;
    }
    THROWN_IF(status, "a call of a session");
    return JS_NewInt32(c, status);
}

static JSValue native_become(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    AGENT_FREED int32_t *tokens = NULL;
    agent_session_t *session = session_of(c, args[0]);
    int32_t n_tokens = session ? ids_of(c, args[1], &tokens) : -1;
    if (n_tokens < 0)
        return JS_EXCEPTION;
    THROWN_IF(agent_session_become(session, tokens, (uint32_t)n_tokens), "become");
    return JS_UNDEFINED;
}

static JSValue native_copy(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    agent_session_t *to = session_of(c, args[0]), *from = to ? session_of(c, args[1]) : NULL;
    if (!from)
        return JS_EXCEPTION;
    THROWN_IF(agent_session_copy(to, from, from->n_tokens), "copyFrom");
    return JS_UNDEFINED;
}

/* The logits, in place. The array must not be used once the session is closed. */
static JSValue native_logits(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    float *logits;
    agent_session_t *session = session_of(c, args[0]);
    if (!session)
        return JS_EXCEPTION;
    THROWN_IF(agent_logits(session, &logits), "logits");
    session->edited = 1;
    return JS_NewArrayBuffer(c, (uint8_t *)logits, session->n_vocab * sizeof *logits, 0, NULL, NULL, 0);
}

/* generate(session, maxTokens): streams an answer, and gives its text. */
static JSValue native_generate(JSContext *c, JSValueConst self, int n, JSValueConst *args)
{
    (void)self, (void)n;
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    agent_session_t *session = session_of(c, args[0]);
    int64_t max_tokens;
    if (!session || JS_ToInt64(c, &max_tokens, args[1]))
        return JS_EXCEPTION;
    THROWN_IF(agent_generate(session, &sampler, max_tokens, &text), "generate");
    return JS_NewStringLen(c, text.bytes ? text.bytes : "", text.nbytes);
}

static const JSCFunctionListEntry natives[] = {
    JS_CFUNC_DEF("emit", 1, native_emit),
    JS_CFUNC_DEF("log", 2, native_log),
    JS_CFUNC_DEF("option", 1, native_option),
    JS_CFUNC_DEF("tool", 2, native_tool),
    JS_CFUNC_DEF("openModel", 1, native_open_model),
    JS_CFUNC_DEF("chatTokens", 2, native_chat_tokens),
    JS_CFUNC_DEF("tokenize", 3, native_tokenize),
    JS_CFUNC_DEF("detokenize", 2, native_detokenize),
    JS_CFUNC_DEF("isEnd", 2, native_is_end),
    JS_CFUNC_DEF("openSession", 2, native_open_session),
    JS_CFUNC_DEF("call", 3, native_call),
    JS_CFUNC_DEF("become", 2, native_become),
    JS_CFUNC_DEF("copy", 2, native_copy),
    JS_CFUNC_DEF("logits", 1, native_logits),
    JS_CFUNC_DEF("generate", 2, native_generate),
};

#endif
