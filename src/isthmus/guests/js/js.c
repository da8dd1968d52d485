/*
 * js: an agent written in JavaScript. The option `script` is its source, which `isthmus run agent.js`
 * sets; each message calls the script's function onMessage(text), and a string that it returns is
 * the answer. The interpreter is QuickJS-NG, and all of it lies in this memory: objects, functions
 * and sessions are forked and saved as they are.
 *
 * What scripts see is written in prelude.h, over the functions of natives.h; isthmus.d.ts
 * describes it. An error of the host is an Error whose message names the errno; a script's error goes
 * to the log with its line, and the caller gets EINVAL.
 */
#include "natives.h"
#include "prelude.h"

#define STACK_NBYTES (128 << 10) /* how deep calls go: before the native stack, which is not seen, ends */

static JSRuntime *runtime;
static JSContext *context;

/* ------------------------------------------------------------------------------------ script */

/* Writes the exception that is there to the log, with the line that it comes from. */
static int32_t log_exception(void)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    JSValue error = JS_GetException(context), stack = JS_GetPropertyStr(context, error, "stack");
    const char *parts[] = {JS_ToCString(context, error), JS_ToCString(context, stack)};
    agent_text_append_string(&text, parts[0] ? parts[0] : "an error without a text");
    if (JS_IsString(stack) && parts[1]) {
        const char *end = strchr(parts[1], '\n');
        agent_text_append(&text, parts[1], (uint32_t)(end ? end - parts[1] : (int)strlen(parts[1])));
    }
    if (text.bytes)
        agent_log(ISTHMUS_LOG_ERROR, text.bytes);
    JS_FreeCString(context, parts[0]);
    JS_FreeCString(context, parts[1]);
    JS_FreeValue(context, stack);
    JS_FreeValue(context, error);
    return -ISTHMUS_EINVAL;
}

static int32_t evaluate(const char *source, const char *name)
{
    JSValue value = JS_Eval(context, source, strlen(source), name, JS_EVAL_TYPE_GLOBAL);
    int32_t failed = JS_IsException(value);
    JS_FreeValue(context, value);
    return failed ? log_exception() : 0;
}

/* Begins the interpreter and runs the script; a failure leaves both for the next message. */
static int32_t start(void)
{
    const char *script = NULL, *name = "script.js";
    AGENT_TRY(agent_option("script", &script));
    AGENT_TRY(agent_option("script_name", &name));
    if (!script)
        return agent_option_refused("script", "", "the source of an agent: isthmus run agent.js");
    AGENT_TRY(agent_sampler_options(&sampler));
    runtime = JS_NewRuntime();
    context = runtime ? JS_NewContext(runtime) : NULL;
    if (runtime)
        JS_SetMaxStackSize(runtime, STACK_NBYTES);
    if (!context)
        return -ISTHMUS_ENOMEM;
    JSValue global = JS_GetGlobalObject(context), object = JS_NewObject(context);
    JS_SetPropertyFunctionList(context, object, natives, sizeof natives / sizeof *natives);
    JS_SetPropertyStr(context, global, "natives", object);
    JS_FreeValue(context, global);
    int32_t status = evaluate(PRELUDE, "prelude.js");
    if (status == 0)
        status = evaluate(script, name);
    if (status == 0)
        return 0;
    JS_FreeContext(context);
    JS_FreeRuntime(runtime);
    context = NULL;
    return status;
}

/* Runs what promises have left to do. */
static int32_t run_jobs(void)
{
    JSContext *where;
    int32_t status = 1;
    while (status > 0)
        status = JS_ExecutePendingJob(runtime, &where);
    return status < 0 ? log_exception() : 0;
}

/* Calls a function of the prelude with a text, and runs what promises have left to do. */
static int32_t call(const char *name, const char *bytes, size_t nbytes)
{
    JSValue global = JS_GetGlobalObject(context);
    JSValue text = JS_NewStringLen(context, bytes, nbytes);
    JSValue function = JS_GetPropertyStr(context, global, name);
    JSValue result = JS_Call(context, function, global, 1, (JSValueConst *)&text);
    int32_t status = JS_IsException(result) ? log_exception() : run_jobs();
    JS_FreeValue(context, result);
    JS_FreeValue(context, function);
    JS_FreeValue(context, text);
    JS_FreeValue(context, global);
    return status;
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TRY(agent_message(nbytes, &message));
    if (!context)
        AGENT_TRY(start());
    return call("handle", message, (size_t)nbytes);
}

/* Another model: sessions are empty, and the script hears of it if it has a function for that. */
AGENT_EXPORT("on_replay") int32_t on_replay(void)
{
    for (uint32_t i = 0; i < MOST_SESSIONS; i++)
        if (sessions[i].handle)
            AGENT_TRY(agent_session_reopen(&sessions[i]));
    return context ? call("replay", "", 0) : 0;
}
