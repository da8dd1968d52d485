"""The libllama functions and structs that Isthmus uses: tokenizers, models whose graphs it builds,
and the rival in benchmarks.

Header: `llama.h` of llama.cpp 0.5 and 0.6-dev. Its parameter structs grow between releases and are
passed by value, so each has slack at its end, and `loader` checks known defaults before any use.
"""

from __future__ import annotations

import ctypes as c
from typing import Any

_P = c.c_void_p
_SLACK = 128


class ModelParams(c.Structure):
    """`struct llama_model_params`."""

    _fields_ = [
        ("devices", _P),
        ("tensor_buft_overrides", _P),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", _P),
        ("progress_callback", _P),
        ("progress_callback_user_data", _P),
        ("kv_overrides", _P),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
        ("_slack", c.c_uint8 * _SLACK),
    ]


_CONTEXT_HEAD: list[tuple[str, Any]] = [
    *((name, c.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
    *((name, c.c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
    *((name, c.c_int32) for name in ("n_threads", "n_threads_batch")),
    *((name, c.c_int) for name in ("ctx_type", "rope_scaling_type", "pooling_type")),
    *((name, c.c_int) for name in ("attention_type", "flash_attn_type")),
    *((name, c.c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor")),
    *((name, c.c_float) for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
    ("yarn_orig_ctx", c.c_uint32),
    ("defrag_thold", c.c_float),
    ("cb_eval", _P),
    ("cb_eval_user_data", _P),
    ("type_k", c.c_int),
    ("type_v", c.c_int),
    ("abort_callback", _P),
    ("abort_callback_data", _P),
]
_CONTEXT_TAIL: list[tuple[str, Any]] = [
    *((name, c.c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload")),
    *((name, c.c_bool) for name in ("swa_full", "kv_unified")),
    ("samplers", _P),
    ("n_samplers", c.c_size_t),
    ("ctx_other", _P),
    ("_slack", c.c_uint8 * _SLACK),
]


class ContextParams05(c.Structure):
    """`struct llama_context_params` of llama.cpp 0.5."""

    _fields_ = _CONTEXT_HEAD + _CONTEXT_TAIL


class ContextParams06(c.Structure):
    """`struct llama_context_params` of llama.cpp 0.6-dev: 8 bytes more before the flags."""

    _fields_ = [*_CONTEXT_HEAD, ("_new_in_06", _P), *_CONTEXT_TAIL]


class Batch(c.Structure):
    """`struct llama_batch`."""

    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", _P),
        ("embd", _P),
        ("pos", _P),
        ("n_seq_id", _P),
        ("seq_id", _P),
        ("logits", _P),
    ]


M_ROPES = (8, 40)
"""`enum llama_rope_type`: MROPE and IMROPE, which give a row of embeddings four positions."""

LOG_CALLBACK = c.CFUNCTYPE(None, c.c_int, c.c_char_p, _P)
SET_TENSOR_DATA = c.CFUNCTYPE(None, _P, _P)
"""`llama_model_set_tensor_data_t`: fills the tensor that it is given."""


def functions(context_params: type[c.Structure]) -> dict[str, tuple[Any, list[Any]]]:
    """Name to (result, parameters), for a library with that layout of context parameters."""
    i32, text, flag = c.c_int32, c.c_char_p, c.c_bool
    return {
        "llama_backend_init": (None, []),
        "llama_log_set": (None, [LOG_CALLBACK, _P]),
        "llama_model_default_params": (ModelParams, []),
        "llama_model_load_from_file": (_P, [text, ModelParams]),
        "llama_model_init_from_user": (_P, [_P, SET_TENSOR_DATA, _P, ModelParams]),
        "llama_model_free": (None, [_P]),
        "llama_model_has_decoder": (flag, [_P]),
        "llama_model_get_vocab": (_P, [_P]),
        "llama_model_n_embd": (i32, [_P]),
        "llama_model_n_embd_out": (i32, [_P]),
        "llama_model_n_embd_inp": (i32, [_P]),
        "llama_model_rope_type": (c.c_int, [_P]),
        "llama_set_causal_attn": (None, [_P, flag]),
        "llama_model_has_encoder": (flag, [_P]),
        "llama_model_is_recurrent": (flag, [_P]),
        "llama_model_is_hybrid": (flag, [_P]),
        "llama_vocab_n_tokens": (i32, [_P]),
        "llama_vocab_type": (c.c_int, [_P]),
        "llama_vocab_get_attr": (c.c_int, [_P, i32]),
        "llama_vocab_get_text": (text, [_P, i32]),
        "llama_vocab_is_eog": (flag, [_P, i32]),
        "llama_vocab_is_control": (flag, [_P, i32]),
        "llama_vocab_bos": (i32, [_P]),
        "llama_vocab_eos": (i32, [_P]),
        "llama_vocab_eot": (i32, [_P]),
        "llama_vocab_sep": (i32, [_P]),
        "llama_vocab_fim_pre": (i32, [_P]),
        "llama_vocab_fim_suf": (i32, [_P]),
        "llama_vocab_fim_mid": (i32, [_P]),
        "llama_vocab_fim_rep": (i32, [_P]),
        "llama_vocab_fim_sep": (i32, [_P]),
        "llama_vocab_get_add_bos": (flag, [_P]),
        "llama_vocab_get_add_eos": (flag, [_P]),
        "llama_vocab_get_add_sep": (flag, [_P]),
        "llama_model_n_cls_out": (c.c_uint32, [_P]),
        "llama_tokenize": (i32, [_P, text, i32, _P, i32, flag, flag]),
        "llama_token_to_piece": (i32, [_P, i32, _P, i32, i32, flag]),
        "llama_context_default_params": (context_params, []),
        "llama_init_from_model": (_P, [_P, context_params]),
        "llama_free": (None, [_P]),
        "llama_adapter_lora_init": (_P, [_P, text]),
        "llama_adapter_lora_free": (None, [_P]),
        "llama_set_adapters_lora": (i32, [_P, _P, c.c_size_t, _P]),
        "llama_attach_threadpool": (None, [_P, _P, _P]),
        "llama_batch_get_one": (Batch, [_P, i32]),
        "llama_encode": (i32, [_P, Batch]),
        "llama_decode": (i32, [_P, Batch]),
        "llama_get_logits_ith": (_P, [_P, i32]),
        "llama_get_embeddings": (_P, [_P]),
        "llama_get_embeddings_seq": (_P, [_P, i32]),
        "llama_pooling_type": (c.c_int, [_P]),
        "llama_get_memory": (_P, [_P]),
        "llama_memory_clear": (None, [_P, flag]),
        "llama_memory_seq_rm": (flag, [_P, i32, i32, i32]),
        "llama_state_seq_get_size": (c.c_size_t, [_P, i32]),
        "llama_state_seq_get_data": (c.c_size_t, [_P, _P, c.c_size_t, i32]),
        "llama_state_seq_set_data": (c.c_size_t, [_P, _P, c.c_size_t, i32]),
        "llama_state_seq_save_file": (c.c_size_t, [_P, text, i32, _P, c.c_size_t]),
        "llama_state_seq_load_file": (c.c_size_t, [_P, text, i32, _P, c.c_size_t, _P]),
    }
