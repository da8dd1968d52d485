/*
 * mpconfigport.h: how MicroPython is set up as the inside of a guest.
 *
 * WebAssembly hides local variables from the collector. So Python's frames lie on a stack of their own
 * (pystack), where the collector sees them, calls of Python functions by each other are no calls of C
 * (stackless), and the collector runs only between two instructions of the outermost frame of C, or
 * between two messages: py.c says how.
 */
#include <alloca.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define MICROPY_CONFIG_ROM_LEVEL (MICROPY_CONFIG_ROM_LEVEL_EXTRA_FEATURES)

#define MICROPY_ENABLE_COMPILER (1)
#define MICROPY_ENABLE_GC (1)
#define MICROPY_GC_SPLIT_HEAP (1)
#define MICROPY_GC_SPLIT_HEAP_AUTO (1)
#define MICROPY_ENABLE_PYSTACK (1)
#define MICROPY_STACKLESS (1)
#define MICROPY_STACKLESS_STRICT (1)
#define MICROPY_STACK_CHECK (1)
#define MICROPY_NLR_SETJMP (1)
#define MICROPY_ENABLE_FINALISER (0)
#define MICROPY_ENABLE_SCHEDULER (0)
#define MICROPY_ENABLE_SOURCE_LINE (1)
#define MICROPY_ENABLE_EXTERNAL_IMPORT (0)
#define MICROPY_ERROR_REPORTING (MICROPY_ERROR_REPORTING_DETAILED)
#define MICROPY_FLOAT_IMPL (MICROPY_FLOAT_IMPL_DOUBLE)
#define MICROPY_LONGINT_IMPL (MICROPY_LONGINT_IMPL_MPZ)
#define MICROPY_HELPER_REPL (0)
#define MICROPY_KBD_EXCEPTION (0)
#define MICROPY_PY_BUILTINS_EXECFILE (0)
#define MICROPY_PY_BUILTINS_HELP (0)
#define MICROPY_PY_BUILTINS_INPUT (0)
#define MICROPY_PY_SYS_STDFILES (0)
#define MICROPY_PY_SYS_STDIO_BUFFER (0)
#define MICROPY_PY_ASYNCIO (0)
#define MICROPY_PY_CRYPTOLIB (0)
#define MICROPY_PY_DEFLATE (0)
#define MICROPY_PY_FRAMEBUF (0)
#define MICROPY_PY_HASHLIB (0)
#define MICROPY_PY_MACHINE (0)
#define MICROPY_PY_OS (0)
#define MICROPY_PY_PLATFORM (0)
#define MICROPY_PY_SELECT (0)
#define MICROPY_PY_TIME (0)
#define MICROPY_PY_UCTYPES (0)
#define MICROPY_PY_VFS (0)
#define MICROPY_VFS (0)

#define MP_PLAT_ALLOC_HEAP(nbytes) malloc(nbytes)
#define MP_PLAT_FREE_HEAP(heap) free(heap)
#define MP_PLAT_PRINT_STRN(bytes, nbytes) py_print(bytes, nbytes)
void py_print(const char *bytes, size_t nbytes);

/* The frame of C in which the outermost Python runs; see gc_collect in py.c. */
extern void *py_outermost;
extern int py_collection_is_due;
void py_collect(void);
#define MICROPY_VM_HOOK_INIT                         \
    if (!py_outermost)                               \
        py_outermost = __builtin_frame_address(0);
#define MICROPY_VM_HOOK_LOOP                                                \
    if (py_collection_is_due && py_outermost == __builtin_frame_address(0)) \
        py_collect();

/* The native stack on which WebAssembly runs cannot be measured, and functions without arrays take none
 * of the stack that can. So each function that checks how deep it is puts a mark there. */
#define PY_MARK_NBYTES 128
#define mp_cstack_check()                      \
    do {                                       \
        volatile char py_mark[PY_MARK_NBYTES]; \
        py_check_stack(py_mark);               \
    } while (0)
void py_check_stack(volatile char *mark);

uint32_t py_seed(void);
#define MICROPY_PY_RANDOM_SEED_INIT_FUNC (py_seed())

#define MICROPY_HW_BOARD_NAME "guest"
#define MICROPY_HW_MCU_NAME "wasm32"

typedef int32_t mp_int_t;
typedef uint32_t mp_uint_t;
typedef long mp_off_t;
