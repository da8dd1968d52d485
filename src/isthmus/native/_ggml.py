"""The ggml and gguf functions and structs that Isthmus uses, and no others.

Headers: `ggml.h`, `ggml-backend.h`, `ggml-alloc.h`, `ggml-cpu.h`, `gguf.h` of ggml 0.25 and 0.26.
Pointers travel as plain integers: 0 is NULL.
"""

from __future__ import annotations

import ctypes as c
from enum import IntEnum
from typing import Any

POINTER = c.c_void_p
MAX_DIMS = 4
TENSOR_OVERHEAD = 368
"""`ggml_tensor_overhead()` in every library whose layouts these are."""


class GgmlType(IntEnum):
    """`enum ggml_type`: element types of tensors."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I32 = 26
    I64 = 27
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42


class GgufType(IntEnum):
    """`enum gguf_type`: types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


class DeviceType(IntEnum):
    """`enum ggml_backend_dev_type`."""

    CPU = 0
    GPU = 1
    IGPU = 2
    ACCEL = 3


BUFFER_USAGE_WEIGHTS = 1
PRECISION_F32 = 10
"""`GGML_PREC_F32`."""
POOL_MAX = 0
"""`GGML_OP_POOL_MAX`."""
SORT_DESCENDING = 1
"""`GGML_SORT_ORDER_DESC`."""


class Tensor(c.Structure):
    """`struct ggml_tensor`, 336 bytes."""

    _fields_ = [
        ("type", c.c_int),
        ("buffer", POINTER),
        ("ne", c.c_int64 * MAX_DIMS),
        ("nb", c.c_size_t * MAX_DIMS),
        ("op", c.c_int),
        ("op_params", c.c_int32 * 16),
        ("flags", c.c_int32),
        ("src", POINTER * 10),
        ("view_src", POINTER),
        ("view_offs", c.c_size_t),
        ("data", POINTER),
        ("name", c.c_char * 64),
        ("extra", POINTER),
        ("padding", c.c_char * 8),
    ]


class GraphHead(c.Structure):
    """`struct ggml_cgraph`, 96 bytes; the array of nodes lies right behind it."""

    _fields_ = [
        ("size", c.c_int),
        ("n_nodes", c.c_int),
        ("n_leafs", c.c_int),
        ("nodes", POINTER),
        ("grads", POINTER),
        ("grad_accs", POINTER),
        ("leafs", POINTER),
        ("use_counts", POINTER),
        ("visited", c.c_size_t * 3),
        ("order", c.c_int),
        ("uid", c.c_uint64),
    ]


class InitParams(c.Structure):
    """`struct ggml_init_params`."""

    _fields_ = [("mem_size", c.c_size_t), ("mem_buffer", POINTER), ("no_alloc", c.c_bool)]


class GgufInitParams(c.Structure):
    """`struct gguf_init_params`."""

    _fields_ = [("no_alloc", c.c_bool), ("ctx", POINTER)]


class DeviceCaps(c.Structure):
    """`struct ggml_backend_dev_caps`."""

    _fields_ = [
        (name, c.c_bool)
        for name in ("is_async", "host_buffer", "buffer_from_host_ptr", "events", "mmap_support")
    ]


class DeviceProps(c.Structure):
    """`struct ggml_backend_dev_props`."""

    _fields_ = [
        ("name", c.c_char_p),
        ("description", c.c_char_p),
        ("memory_free", c.c_size_t),
        ("memory_total", c.c_size_t),
        ("type", c.c_int),
        ("device_id", c.c_char_p),
        ("caps", DeviceCaps),
        ("_room_for_growth", c.c_char * 64),
    ]


class ThreadpoolParams(c.Structure):
    """`struct ggml_threadpool_params`."""

    _fields_ = [
        ("cpumask", c.c_bool * 512),
        ("n_threads", c.c_int),
        ("prio", c.c_int),
        ("poll", c.c_uint32),
        ("strict_cpu", c.c_bool),
        ("paused", c.c_bool),
    ]


class Feature(c.Structure):
    """`struct ggml_backend_feature`."""

    _fields_ = [("name", c.c_char_p), ("value", c.c_char_p)]


_i32, _i64, _size, _f32, _bool, _str = (
    c.c_int,
    c.c_int64,
    c.c_size_t,
    c.c_float,
    c.c_bool,
    c.c_char_p,
)
_P = POINTER

FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    # library
    "ggml_version": (_str, []),
    "ggml_tensor_overhead": (_size, []),
    "ggml_graph_overhead_custom": (_size, [_size, _bool]),
    "ggml_type_name": (_str, [_i32]),
    "ggml_blck_size": (_i64, [_i32]),
    "ggml_type_size": (_size, [_i32]),
    "ggml_row_size": (_size, [_i32, _i64]),
    # contexts, tensors, graphs
    "ggml_init": (_P, [InitParams]),
    "ggml_free": (None, [_P]),
    "ggml_reset": (None, [_P]),
    "ggml_new_tensor": (_P, [_P, _i32, _i32, c.POINTER(c.c_int64)]),
    "ggml_nbytes": (_size, [_P]),
    "ggml_set_output": (None, [_P]),
    "ggml_new_graph_custom": (_P, [_P, _size, _bool]),
    "ggml_graph_node": (_P, [_P, _i32]),
    "ggml_graph_add_node": (None, [_P, _P]),
    "ggml_build_forward_expand": (None, [_P, _P]),
    "ggml_op_desc": (_str, [_P]),
    "ggml_graph_n_nodes": (_i32, [_P]),
    # operations
    "ggml_get_rows": (_P, [_P, _P, _P]),
    "ggml_set_rows": (_P, [_P, _P, _P, _P]),
    "ggml_rms_norm": (_P, [_P, _P, _f32]),
    "ggml_norm": (_P, [_P, _P, _f32]),
    "ggml_l2_norm": (_P, [_P, _P, _f32]),
    "ggml_mul": (_P, [_P, _P, _P]),
    "ggml_add": (_P, [_P, _P, _P]),
    "ggml_add_id": (_P, [_P, _P, _P, _P]),
    "ggml_scale": (_P, [_P, _P, _f32]),
    "ggml_div": (_P, [_P, _P, _P]),
    "ggml_clamp": (_P, [_P, _P, _f32, _f32]),
    "ggml_sum_rows": (_P, [_P, _P]),
    "ggml_silu": (_P, [_P, _P]),
    "ggml_sigmoid": (_P, [_P, _P]),
    "ggml_fill": (_P, [_P, _P, c.c_float]),
    "ggml_repeat_4d": (_P, [_P, _P, _i64, _i64, _i64, _i64]),
    "ggml_gelu": (_P, [_P, _P]),
    "ggml_tanh": (_P, [_P, _P]),
    "ggml_softplus": (_P, [_P, _P]),
    "ggml_soft_max": (_P, [_P, _P]),
    "ggml_soft_max_ext": (_P, [_P, _P, _P, _f32, _f32]),
    "ggml_argmax": (_P, [_P, _P]),
    "ggml_argsort_top_k": (_P, [_P, _P, _i32]),
    "ggml_top_k": (_P, [_P, _P, _i32]),
    "ggml_argsort": (_P, [_P, _P, _i32]),
    "ggml_pool_2d": (_P, [_P, _P] + [_i32] * 5 + [_f32] * 2),
    "ggml_cast": (_P, [_P, _P, _i32]),
    "ggml_cpy": (_P, [_P, _P, _P]),
    "ggml_cont": (_P, [_P, _P]),
    "ggml_mul_mat": (_P, [_P, _P, _P]),
    "ggml_mul_mat_id": (_P, [_P, _P, _P, _P]),
    "ggml_concat": (_P, [_P, _P, _P, _i32]),
    "ggml_swiglu": (_P, [_P, _P]),
    "ggml_swiglu_split": (_P, [_P, _P, _P]),
    "ggml_swiglu_oai": (_P, [_P, _P, _P, _f32, _f32]),
    "ggml_geglu_split": (_P, [_P, _P, _P]),
    "ggml_reshape_2d": (_P, [_P, _P, _i64, _i64]),
    "ggml_reshape_3d": (_P, [_P, _P, _i64, _i64, _i64]),
    "ggml_reshape_4d": (_P, [_P, _P, _i64, _i64, _i64, _i64]),
    "ggml_view_2d": (_P, [_P, _P, _i64, _i64, _size, _size]),
    "ggml_view_3d": (_P, [_P, _P, _i64, _i64, _i64, _size, _size, _size]),
    "ggml_view_4d": (_P, [_P, _P, _i64, _i64, _i64, _i64, _size, _size, _size, _size]),
    "ggml_permute": (_P, [_P, _P, _i32, _i32, _i32, _i32]),
    "ggml_rope_ext": (_P, [_P, _P, _P, _P, _i32, _i32, _i32] + [_f32] * 6),
    "ggml_flash_attn_ext": (_P, [_P, _P, _P, _P, _P, _f32, _f32, _f32]),
    "ggml_flash_attn_ext_add_sinks": (None, [_P, _P]),
    "ggml_prec_set_acc": (_bool, [_P, _i32]),
    "ggml_ssm_conv": (_P, [_P, _P, _P]),
    "ggml_ssm_scan": (_P, [_P] * 8 + [_i64]),
    "ggml_gated_delta_net": (_P, [_P] * 7 + [_i64]),
    # allocation
    "ggml_gallocr_new": (_P, [_P]),
    "ggml_gallocr_free": (None, [_P]),
    "ggml_gallocr_alloc_graph": (_bool, [_P, _P]),
    "ggml_gallocr_reserve": (_bool, [_P, _P]),
    "ggml_gallocr_get_buffer_size": (_size, [_P, _i32]),
    # devices and backends
    "ggml_backend_load_all_from_path": (None, [_str]),
    "ggml_backend_dev_count": (_size, []),
    "ggml_backend_dev_get": (_P, [_size]),
    "ggml_backend_dev_by_type": (_P, [_i32]),
    "ggml_backend_dev_get_props": (None, [_P, _P]),
    "ggml_backend_dev_backend_reg": (_P, [_P]),
    "ggml_backend_reg_name": (_str, [_P]),
    "ggml_backend_reg_count": (_size, []),
    "ggml_backend_reg_get": (_P, [_size]),
    "ggml_backend_reg_get_proc_address": (_P, [_P, _str]),
    "ggml_backend_dev_init": (_P, [_P, _str]),
    "ggml_backend_free": (None, [_P]),
    "ggml_backend_dev_buffer_type": (_P, [_P]),
    "ggml_backend_dev_buffer_from_host_ptr": (_P, [_P, _P, _size, _size]),
    "ggml_backend_dev_supports_op": (_bool, [_P, _P]),
    "ggml_backend_graph_compute": (_i32, [_P, _P]),
    # buffers
    "ggml_backend_buft_name": (_str, [_P]),
    "ggml_backend_buft_get_alignment": (_size, [_P]),
    "ggml_backend_buft_get_max_size": (_size, [_P]),
    "ggml_backend_buft_get_alloc_size": (_size, [_P, _P]),
    "ggml_backend_buft_alloc_buffer": (_P, [_P, _size]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_P, [_P, _P]),
    "ggml_backend_buffer_free": (None, [_P]),
    "ggml_backend_buffer_get_base": (_P, [_P]),
    "ggml_backend_buffer_get_size": (_size, [_P]),
    "ggml_backend_buffer_get_type": (_P, [_P]),
    "ggml_backend_buffer_is_host": (_bool, [_P]),
    "ggml_backend_buffer_clear": (None, [_P, c.c_uint8]),
    "ggml_backend_buffer_set_usage": (None, [_P, _i32]),
    "ggml_backend_tensor_alloc": (_i32, [_P, _P, _P]),
    "ggml_backend_tensor_set": (None, [_P, _P, _size, _size]),
    "ggml_backend_dev_host_buffer_type": (_P, [_P]),
    "ggml_backend_tensor_set_async": (None, [_P, _P, _P, _size, _size]),
    "ggml_backend_tensor_get": (None, [_P, _P, _size, _size]),
    "ggml_backend_tensor_memset": (None, [_P, c.c_uint8, _size, _size]),
    "ggml_backend_tensor_copy": (None, [_P, _P]),
    "ggml_threadpool_params_init": (None, [_P, _i32]),
    # gguf files
    "gguf_init_from_file": (_P, [_str, GgufInitParams]),
    "gguf_free": (None, [_P]),
    "gguf_get_version": (c.c_uint32, [_P]),
    "gguf_get_data_offset": (_size, [_P]),
    "gguf_get_n_kv": (_i64, [_P]),
    "gguf_get_key": (_str, [_P, _i64]),
    "gguf_get_kv_type": (_i32, [_P, _i64]),
    "gguf_get_arr_type": (_i32, [_P, _i64]),
    "gguf_get_arr_n": (_size, [_P, _i64]),
    "gguf_get_arr_data": (_P, [_P, _i64]),
    "gguf_get_arr_str": (_P, [_P, _i64, _size]),
    "gguf_get_val_data": (_P, [_P, _i64]),
    "gguf_get_val_str": (_P, [_P, _i64]),
    "gguf_get_n_tensors": (_i64, [_P]),
    "gguf_get_tensor_name": (_str, [_P, _i64]),
    "gguf_get_tensor_type": (_i32, [_P, _i64]),
    "gguf_get_tensor_offset": (_size, [_P, _i64]),
    "gguf_get_tensor_size": (_size, [_P, _i64]),
    "gguf_get_tensor_ne": (c.POINTER(c.c_int64), [_P, _i64]),
    "gguf_init_empty": (_P, []),
    "gguf_set_val_u32": (None, [_P, _str, c.c_uint32]),
    "gguf_set_val_f32": (None, [_P, _str, _f32]),
    "gguf_set_val_bool": (None, [_P, _str, _bool]),
    "gguf_set_val_str": (None, [_P, _str, _str]),
    "gguf_set_arr_data": (None, [_P, _str, _i32, _P, _size]),
    "gguf_set_arr_str": (None, [_P, _str, _P, _size]),
    "gguf_add_tensor": (None, [_P, _P]),
    "gguf_get_meta_size": (_size, [_P]),
    "gguf_get_meta_data": (None, [_P, _P]),
}

CPU_PROCEDURES: dict[str, tuple[Any, list[Any]]] = {
    # reached through ggml_backend_reg_get_proc_address: loadable CPU backends export no symbols
    "ggml_backend_set_n_threads": (None, [_P, _i32]),
    "ggml_backend_cpu_set_threadpool": (None, [_P, _P]),
    "ggml_backend_cpu_set_use_ref": (None, [_P, _bool]),
    "ggml_threadpool_new": (_P, [_P]),
    "ggml_threadpool_free": (None, [_P]),
    "ggml_backend_get_features": (c.POINTER(Feature), [_P]),
    "ggml_backend_dev_get_extra_bufts": (c.POINTER(_P), [_P]),
}


def tensor_at(pointer: int) -> Tensor:
    """The `ggml_tensor` at an address, in place."""
    return Tensor.from_address(pointer)
