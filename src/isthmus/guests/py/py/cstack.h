/*
 * cstack.h: how deep the interpreter's C may nest, in the place of MicroPython's own file.
 * mpconfigport.h has mp_cstack_check.
 */
#ifndef PY_CSTACK_H
#define PY_CSTACK_H

#include "py/mpstate.h"

void mp_cstack_init_with_sp_here(size_t stack_nbytes);
mp_uint_t mp_cstack_usage(void);

#endif
