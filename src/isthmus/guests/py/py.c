/*
 * py: an agent written in Python. The option `script` is its source, which `isthmus run agent.py`
 * sets; each message calls the script's function on_message(text), and a str that it returns is the
 * answer. The interpreter is MicroPython, and all of it lies in this memory: objects, functions and
 * sessions are forked and saved as they are.
 *
 * What scripts see is written in prelude.py, over the functions of natives.h; isthmus.pyi describes
 * it. An error of the host is an OSError whose text names the errno; a script's error goes to the log
 * with its line, and the caller gets EINVAL.
 */
#include "natives.h"
#include "prelude.h"
#include "py/compile.h"
#include "py/cstack.h"
#include "py/gc.h"
#include "py/objmodule.h"
#include "py/pystack.h"
#include <unistd.h>

#define HEAP_NBYTES (128 << 10)   /* at first; it doubles whenever it is full */
#define FRAMES_NBYTES (128 << 10) /* for frames of Python: some thousand */
#define STACK_NBYTES (128 << 10)  /* for what nests in C: printed lists, generators in generators */

static mp_obj_t module; /* the script's, or 0 until it has run */

/* ------------------------------------------------------------------------------------- memory */

void *py_outermost;
int py_collection_is_due;

/*
 * Frees what is not reachable from Python's frames and modules: no function of C may hold an object. The
 * next time is due before the heap is full, unless it is so full that it had better grow.
 */
void py_collect(void)
{
    gc_info_t info;
    py_collection_is_due = 0;
    gc_collect_start();
    gc_collect_root((void **)&module, 1);
    gc_collect_end();
    gc_info(&info);
    size_t n_free = info.free / 4 * 3, n_least = info.total / 4;
    MP_STATE_MEM(gc_alloc_threshold) = (n_free > n_least ? n_free : n_least) / MICROPY_BYTES_PER_GC_BLOCK;
}

/* The interpreter's wish to collect: granted at the next branch of the outermost Python. The heap
 * grows until then, if it must. */
void gc_collect(void)
{
    py_collection_is_due = 1;
}

size_t gc_get_max_new_split(void)
{
    return 256 << 20;
}

/* In the place of MicroPython's own, whose error does not say what a newcomer would search for. */
void *mp_pystack_alloc(size_t nbytes)
{
    uint8_t *frame = MP_STATE_THREAD(pystack_cur);
    nbytes = (nbytes + MICROPY_PYSTACK_ALIGN - 1) & ~(size_t)(MICROPY_PYSTACK_ALIGN - 1);
    if (nbytes > (size_t)(MP_STATE_THREAD(pystack_end) - frame))
        mp_raise_recursion_depth();
    MP_STATE_THREAD(pystack_cur) += nbytes;
    return frame;
}

void mp_cstack_init_with_sp_here(size_t stack_nbytes)
{
    MP_STATE_THREAD(stack_top) = __builtin_frame_address(0);
    MP_STATE_THREAD(stack_limit) = stack_nbytes;
}

mp_uint_t mp_cstack_usage(void)
{
    return (mp_uint_t)(MP_STATE_THREAD(stack_top) - (char *)__builtin_frame_address(0));
}

void py_check_stack(volatile char *mark)
{
    if ((mp_uint_t)(MP_STATE_THREAD(stack_top) - (char *)mark) >= MP_STATE_THREAD(stack_limit))
        mp_raise_recursion_depth();
}

/* -------------------------------------------------------------------------------------- log */

/* What scripts print is a line of the log. */
void py_print(const char *bytes, size_t nbytes)
{
    static agent_text_t line;
    for (size_t i = 0; i < nbytes; i++) {
        if (bytes[i] != '\n') {
            agent_text_append(&line, bytes + i, 1);
            continue;
        }
        isthmus_log(ISTHMUS_LOG_INFO, line.bytes ? line.bytes : "", line.nbytes);
        agent_text_clear(&line);
    }
}

static void append(void *text, const char *bytes, size_t nbytes)
{
    agent_text_append(text, bytes, (uint32_t)nbytes);
}

/* Writes an exception to the log, with the line of the script that it comes from. */
static int32_t log_exception(mp_obj_t error, const char *script)
{
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    mp_print_t print = {&text, append};
    size_t n, *places, at = 0;
    mp_obj_print_helper(&print, error, PRINT_EXC);
    mp_obj_exception_get_traceback(error, &n, &places); /* file, line, function: innermost first */
    if (text.nbytes > 2 && memcmp(text.bytes + text.nbytes - 2, ": ", 2) == 0)
        text.nbytes -= 2; /* an exception without a text */
    while (at < n && strcmp(qstr_str(places[at]), script) != 0)
        at += 3;
    if (at < n)
        mp_printf(&print, ", at %s:%d", script, (int)places[at + 1]);
    for (uint32_t i = 0; i < text.nbytes; i++)
        if (text.bytes[i] == '\n')
            text.bytes[i] = ' ';
    if (agent_text_status(&text) == 0)
        isthmus_log(ISTHMUS_LOG_ERROR, text.bytes, text.nbytes);
    return -ISTHMUS_EINVAL;
}

/* The tag of the exceptions that longjmp throws, which projects/unwinding.py turns into returns. */
__asm__(".globl __c_longjmp\n.tagtype __c_longjmp i32\n__c_longjmp:\n");

void nlr_jump_fail(void *error)
{
    (void)error;
    agent_log(ISTHMUS_LOG_ERROR, "an exception that nothing catches");
    __builtin_trap();
}

static mp_obj_t py_open(size_t n_args, const mp_obj_t *args, mp_map_t *options)
{
    (void)n_args, (void)args, (void)options;
    mp_raise_msg(&mp_type_OSError, MP_ERROR_TEXT("an agent has no files"));
}
MP_DEFINE_CONST_FUN_OBJ_KW(mp_builtin_open_obj, 0, py_open);

uint32_t py_seed(void)
{
    uint32_t seed = 0;
    getentropy(&seed, sizeof seed);
    return seed;
}

/* ------------------------------------------------------------------------------------ script */

static const char *script_name = "script.py";

/* Runs `what` with an argument where exceptions are caught, and sets `*result` to what it gives. */
static int32_t guarded(mp_obj_t (*what)(const void *), const void *argument, mp_obj_t *result)
{
    nlr_buf_t nlr;
    py_outermost = NULL;
    if (nlr_push(&nlr) == 0) {
        *result = what(argument);
        nlr_pop();
        return 0;
    }
    return log_exception(MP_OBJ_FROM_PTR(nlr.ret_val), script_name);
}

typedef struct {
    qstr module;
    const char *name, *source;
} source_t;

/* Runs a source as a module of its own, which it gives. */
static mp_obj_t run_source(const void *argument)
{
    const source_t *given = argument;
    mp_obj_t made = mp_obj_new_module(given->module);
    mp_obj_dict_t *globals = mp_obj_module_get_globals(made);
    mp_globals_set(globals);
    mp_locals_set(globals);
    mp_lexer_t *lexer = mp_lexer_new_from_str_len(qstr_from_str(given->name), given->source,
                                                  strlen(given->source), 0);
    mp_parse_tree_t tree = mp_parse(lexer, MP_PARSE_FILE_INPUT);
    mp_call_function_0(mp_compile(&tree, qstr_from_str(given->name), false));
    return made;
}

typedef struct {
    qstr name;
    const char *bytes; /* a text for the function, or NULL */
    size_t nbytes;
} call_t;

/* Calls a function of the script, if it is there; on_message must be. A text that it gives is emitted. */
static mp_obj_t call_script(const void *argument)
{
    const call_t *given = argument;
    mp_obj_dict_t *globals = mp_obj_module_get_globals(module);
    mp_map_elem_t *found = mp_map_lookup(&globals->map, MP_OBJ_NEW_QSTR(given->name), MP_MAP_LOOKUP);
    if (!given->bytes)
        return found ? mp_call_function_0(found->value) : mp_const_none;
    if (!found)
        mp_raise_TypeError(MP_ERROR_TEXT("the script defines no function on_message(text)"));
    mp_obj_t answer = mp_call_function_1(found->value, text_of(given->bytes, (uint32_t)given->nbytes));
    if (mp_obj_is_str(answer))
        native_emit(answer);
    return mp_const_none;
}

/* Begins the interpreter and runs the script; a failure leaves both for the next message. */
static int32_t start(void)
{
    static uint64_t frames[FRAMES_NBYTES / 8];
    static void *heap;
    const char *script = NULL;
    mp_obj_t made;
    AGENT_TRY(agent_option("script", &script));
    AGENT_TRY(agent_option("script_name", &script_name));
    if (!script)
        return agent_option_refused("script", "", "the source of an agent: isthmus run agent.py");
    AGENT_TRY(agent_sampler_options(&sampler));
    if (!heap)
        heap = malloc(HEAP_NBYTES);
    if (!heap)
        return -ISTHMUS_ENOMEM;
    gc_init(heap, (char *)heap + HEAP_NBYTES);
    MP_STATE_THREAD(pystack_start) = MP_STATE_THREAD(pystack_cur) = (uint8_t *)frames;
    MP_STATE_THREAD(pystack_end) = (uint8_t *)frames + sizeof frames;
    mp_init();
    MP_STATE_MEM(gc_alloc_threshold) = HEAP_NBYTES / 2 / MICROPY_BYTES_PER_GC_BLOCK;
    source_t prelude = {MP_QSTR_isthmus, "prelude.py", PRELUDE};
    source_t given = {MP_QSTR___main__, script_name, script};
    AGENT_TRY(guarded(run_source, &prelude, &made));
    AGENT_TRY(guarded(run_source, &given, &made));
    module = made;
    return 0;
}

/* Runs `call` and collects what it left, now that no function of C holds an object. */
static int32_t call(qstr name, const char *bytes, size_t nbytes)
{
    call_t given = {name, bytes, nbytes};
    mp_obj_t result;
    int32_t status = guarded(call_script, &given, &result);
    if (py_collection_is_due)
        py_collect();
    hold(NULL);
    return status;
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    mp_cstack_init_with_sp_here(STACK_NBYTES);
    AGENT_TRY(agent_message(nbytes, &message));
    if (!module)
        AGENT_TRY(start());
    return call(MP_QSTR_on_message, message, (size_t)nbytes);
}

/* Another model: sessions are empty, and the script hears of it if it has a function for that. */
AGENT_EXPORT("on_replay") int32_t on_replay(void)
{
    mp_cstack_init_with_sp_here(STACK_NBYTES);
    for (uint32_t i = 0; i < MOST_SESSIONS; i++)
        if (sessions[i].handle)
            AGENT_TRY(agent_session_reopen(&sessions[i]));
    return module ? call(MP_QSTR_on_replay, NULL, 0) : 0;
}
