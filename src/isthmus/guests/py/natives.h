/* natives.h: the functions that prelude.py is written over, one for each call of the host. */
#ifndef PY_NATIVES_H
#define PY_NATIVES_H

#include "conversation.h"
#include "py/runtime.h"
#include "py/unicode.h"

#define MOST_SESSIONS 32

static agent_session_t sessions[MOST_SESSIONS];
static isthmus_sampler_t sampler = AGENT_SAMPLER_DEFAULTS;

static const char *const ERRNO_NAMES[] = {
    "",       "EINVAL",   "EFAULT", "EALIGN", "EBADF",   "ENOENT", "ENOMEM",
    "EBUSY",  "ECONTEXT", "ETOKEN", "ELIMIT", "ENOTSUP", "EIO",    "ECANCELED",
};

/* Memory from malloc, freed when the next is held: raising an exception leaves functions at once. */
static void *held;

static void *hold(void *memory)
{
    free(held);
    held = memory;
    return memory;
}

static void *hold_new(size_t nbytes)
{
    void *memory = hold(malloc(nbytes ? nbytes : 1));
    if (!memory)
        m_malloc_fail(nbytes);
    return memory;
}

/* Raises OSError, which names the errno that a call gave. */
static int32_t required(int32_t status, const char *what)
{
    uint32_t code = status < 0 ? (uint32_t)-status : 0, n = sizeof ERRNO_NAMES / sizeof *ERRNO_NAMES;
    if (code)
        mp_raise_msg_varg(&mp_type_OSError, MP_ERROR_TEXT("%s: %s"), what, ERRNO_NAMES[code < n ? code : 0]);
    return status;
}

/* A str; each byte that is not UTF-8 becomes U+FFFD. */
static mp_obj_t text_of(const char *bytes, uint32_t nbytes)
{
    if (utf8_check((const byte *)bytes, nbytes))
        return mp_obj_new_str(bytes, nbytes);
    agent_text_t text = AGENT_EMPTY;
    agent_text_append_utf8(&text, bytes, nbytes);
    hold(text.bytes);
    required(agent_text_status(&text), "a text");
    return mp_obj_new_str(text.bytes, text.nbytes);
}

static mp_obj_t list_of(const int32_t *ids, int32_t n)
{
    mp_obj_t list = mp_obj_new_list((size_t)n, NULL), *items;
    size_t n_items;
    mp_obj_get_array(list, &n_items, &items);
    for (int32_t i = 0; i < n; i++)
        items[i] = mp_obj_new_int(ids[i]);
    return list;
}

/* The numbers of a list or tuple, held. */
static int32_t *ids_of(mp_obj_t list, uint32_t *n)
{
    mp_obj_t *items;
    size_t n_items;
    mp_obj_get_array(list, &n_items, &items);
    int32_t *ids = hold_new(n_items * sizeof *ids);
    for (size_t i = 0; i < n_items; i++)
        ids[i] = mp_obj_get_int(items[i]);
    *n = (uint32_t)n_items;
    return ids;
}

static mp_obj_t native_emit(mp_obj_t text)
{
    size_t nbytes;
    const char *bytes = mp_obj_str_get_data(text, &nbytes);
    required(isthmus_emit(bytes, nbytes), "emit");
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_1(native_emit_obj, native_emit);

static mp_obj_t native_log(mp_obj_t level, mp_obj_t text)
{
    size_t nbytes;
    const char *bytes = mp_obj_str_get_data(text, &nbytes);
    required(isthmus_log((uint32_t)mp_obj_get_int(level), bytes, nbytes), "log");
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_log_obj, native_log);

static mp_obj_t native_option(mp_obj_t key)
{
    const char *value = NULL;
    required(agent_option(mp_obj_str_get_str(key), &value), "option");
    return value ? text_of(value, (uint32_t)strlen(value)) : mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_1(native_option_obj, native_option);

/* tool(name, args): its result, or None if this agent was not given it. */
static mp_obj_t native_tool(mp_obj_t name, mp_obj_t args)
{
    size_t name_nbytes, nbytes;
    const char *name_bytes = mp_obj_str_get_data(name, &name_nbytes);
    const char *bytes = mp_obj_str_get_data(args, &nbytes);
    int32_t status = isthmus_tool_call(name_bytes, name_nbytes, bytes, nbytes);
    if (status == -ISTHMUS_ENOENT)
        return mp_const_none;
    required(status, "tool");
    vstr_t result;
    vstr_init_len(&result, (size_t)status);
    required(isthmus_tool_result(result.buf, (size_t)status), "tool");
    return text_of(result.buf, (uint32_t)status);
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_tool_obj, native_tool);

static mp_obj_t native_open_model(mp_obj_t name)
{
    size_t nbytes;
    const char *bytes = mp_obj_str_get_data(name, &nbytes);
    return mp_obj_new_int(required(isthmus_model_open(bytes, nbytes), "open_model"));
}
static MP_DEFINE_CONST_FUN_OBJ_1(native_open_model_obj, native_open_model);

/* chat_tokens(model, [role, content, role, content, …]) */
static mp_obj_t native_chat_tokens(mp_obj_t model, mp_obj_t texts)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    int32_t handle = mp_obj_get_int(model), status = 0, *tokens = NULL;
    agent_chat_t chat = AGENT_EMPTY;
    mp_obj_t *items;
    size_t n_items, nbytes;
    mp_obj_get_array(texts, &n_items, &items);
    for (size_t i = 1; i < n_items; i += 2)
        mp_obj_str_get_data(items[i], &nbytes); /* raises before anything is to be freed */
    for (size_t i = 0; status >= 0 && i + 1 < n_items; i += 2) {
        const char *bytes = mp_obj_str_get_data(items[i + 1], &nbytes);
        status = agent_chat_say(&chat, roles[MP_OBJ_SMALL_INT_VALUE(items[i]) % 3], bytes, (uint32_t)nbytes);
    }
    if (status >= 0)
        status = agent_chat_tokens(handle, &chat, &tokens);
    agent_chat_free(&chat);
    hold(tokens);
    return list_of(tokens, required(status, "chat_tokens"));
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_chat_tokens_obj, native_chat_tokens);

static mp_obj_t native_tokenize(mp_obj_t model, mp_obj_t text, mp_obj_t flags)
{
    int32_t *tokens = NULL;
    size_t nbytes;
    const char *bytes = mp_obj_str_get_data(text, &nbytes);
    int32_t handle = mp_obj_get_int(model), bits = mp_obj_get_int(flags);
    int32_t n = agent_tokenize(handle, bytes, (uint32_t)nbytes, (uint32_t)bits, &tokens);
    hold(tokens);
    return list_of(tokens, required(n, "tokenize"));
}
static MP_DEFINE_CONST_FUN_OBJ_3(native_tokenize_obj, native_tokenize);

static mp_obj_t native_detokenize(mp_obj_t model, mp_obj_t list)
{
    agent_text_t text = AGENT_EMPTY;
    uint32_t n;
    int32_t handle = mp_obj_get_int(model), *ids = ids_of(list, &n);
    int32_t status = agent_detokenize(handle, ids, n, 0, &text);
    hold(text.bytes);
    required(status, "detokenize");
    mp_obj_t result = text_of(text.bytes ? text.bytes : "", text.nbytes);
    return result;
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_detokenize_obj, native_detokenize);

static mp_obj_t native_is_end(mp_obj_t model, mp_obj_t token)
{
    int32_t flags = isthmus_token_flags(mp_obj_get_int(model), mp_obj_get_int(token));
    return mp_obj_new_bool(required(flags, "is_end") & ISTHMUS_TOKEN_EOG);
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_is_end_obj, native_is_end);

/* ---------------------------------------------------------------------------------- sessions */

/* The open session of a number. */
static agent_session_t *session_of(mp_obj_t number)
{
    mp_int_t at = mp_obj_get_int(number);
    if (at < 0 || at >= MOST_SESSIONS || !sessions[at].handle)
        mp_raise_ValueError(MP_ERROR_TEXT("the session is closed"));
    return &sessions[at];
}

/* open_session(model, n_ctx): the number of a session; n_ctx 0 takes what the options say. */
static mp_obj_t native_open_session(mp_obj_t model, mp_obj_t n_ctx)
{
    int32_t handle = mp_obj_get_int(model), n = mp_obj_get_int(n_ctx);
    int32_t at = 0;
    while (at < MOST_SESSIONS && sessions[at].handle)
        at++;
    required(at == MOST_SESSIONS ? -ISTHMUS_ELIMIT
             : n                 ? agent_session_open(&sessions[at], handle, (uint32_t)n)
                                 : agent_session_open_by_option(&sessions[at], handle), "open_session");
    return mp_obj_new_int(at);
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_open_session_obj, native_open_session);

static mp_obj_t native_length(mp_obj_t session)
{
    return mp_obj_new_int_from_uint(session_of(session)->n_tokens);
}
static MP_DEFINE_CONST_FUN_OBJ_1(native_length_obj, native_length);

static mp_obj_t native_decode(mp_obj_t session, mp_obj_t token)
{
    required(agent_decode(session_of(session), mp_obj_get_int(token)), "decode");
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_decode_obj, native_decode);

static mp_obj_t native_keep(mp_obj_t session, mp_obj_t n_tokens)
{
    int32_t n = mp_obj_get_int(n_tokens);
    return mp_obj_new_int(required(agent_keep(session_of(session), (uint32_t)n), "keep"));
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_keep_obj, native_keep);

static mp_obj_t native_sample(mp_obj_t session)
{
    return mp_obj_new_int(required(isthmus_sample(session_of(session)->handle, &sampler), "sample"));
}
static MP_DEFINE_CONST_FUN_OBJ_1(native_sample_obj, native_sample);

static mp_obj_t native_close(mp_obj_t session)
{
    required(agent_session_close(session_of(session)), "close");
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_1(native_close_obj, native_close);

static mp_obj_t native_become(mp_obj_t session, mp_obj_t list)
{
    uint32_t n;
    agent_session_t *which = session_of(session);
    const int32_t *ids = ids_of(list, &n);
    required(agent_session_become(which, ids, n), "become");
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_become_obj, native_become);

static mp_obj_t native_copy(mp_obj_t session, mp_obj_t other)
{
    agent_session_t *to = session_of(session), *from = session_of(other);
    required(agent_session_copy(to, from, from->n_tokens), "copy_from");
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_copy_obj, native_copy);

/* The logits, in place. The view must not be used once the session is closed. */
static mp_obj_t native_logits(mp_obj_t session)
{
    float *logits;
    agent_session_t *which = session_of(session);
    required(agent_logits(which, &logits), "logits");
    which->edited = 1;
    return mp_obj_new_memoryview('f' | 0x80, which->n_vocab, logits); /* 0x80: it can be written to */
}
static MP_DEFINE_CONST_FUN_OBJ_1(native_logits_obj, native_logits);

/* generate(session, max_tokens): streams an answer, and gives its text. */
static mp_obj_t native_generate(mp_obj_t session, mp_obj_t max_tokens)
{
    agent_text_t text = AGENT_EMPTY;
    agent_session_t *which = session_of(session);
    int32_t status = agent_generate(which, &sampler, mp_obj_get_int(max_tokens), &text);
    hold(text.bytes);
    required(status, "generate");
    return text_of(text.bytes ? text.bytes : "", text.nbytes);
}
static MP_DEFINE_CONST_FUN_OBJ_2(native_generate_obj, native_generate);

#define NATIVE(name) {MP_ROM_QSTR(MP_QSTR_##name), MP_ROM_PTR(&native_##name##_obj)}
static const mp_rom_map_elem_t natives_table[] = {
    {MP_ROM_QSTR(MP_QSTR___name__), MP_ROM_QSTR(MP_QSTR__isthmus)},
    NATIVE(emit), NATIVE(log), NATIVE(option), NATIVE(tool), NATIVE(open_model), NATIVE(chat_tokens),
    NATIVE(tokenize), NATIVE(detokenize), NATIVE(is_end), NATIVE(open_session), NATIVE(length),
    NATIVE(decode), NATIVE(keep), NATIVE(sample), NATIVE(close), NATIVE(become), NATIVE(copy),
    NATIVE(logits), NATIVE(generate),
};
static MP_DEFINE_CONST_DICT(natives_dict, natives_table);
const mp_obj_module_t natives_module = {.base = {&mp_type_module}, .globals = (mp_obj_dict_t *)&natives_dict};
MP_REGISTER_MODULE(MP_QSTR__isthmus, natives_module);

#endif
