"""The functions and structs of libmtmd that Isthmus uses: projectors of pictures and sounds.

Header: `mtmd.h` and `mtmd-helper.h` of llama.cpp 0.6-dev. They promise little from release to
release, so `mtmd` tries their structs out before it relies on them.
"""

from __future__ import annotations

import ctypes as c
from typing import Any

from isthmus.native._llama import LOG_CALLBACK

_P = c.c_void_p
_SLACK = 128

TEXT, IMAGE, AUDIO = range(3)
"""`enum mtmd_input_chunk_type`."""


class ContextParams(c.Structure):
    """`struct mtmd_context_params`, with slack at its end, as it is passed by value."""

    _fields_ = [
        ("use_gpu", c.c_bool),
        ("device", _P),
        ("print_timings", c.c_bool),
        ("n_threads", c.c_int),
        ("image_marker", c.c_char_p),
        ("media_marker", c.c_char_p),
        ("flash_attn_type", c.c_int),
        ("warmup", c.c_bool),
        ("image_min_tokens", c.c_int),
        ("image_max_tokens", c.c_int),
        ("cb_eval", _P),
        ("cb_eval_user_data", _P),
        ("batch_max_tokens", c.c_int32),
        ("progress_callback", _P),
        ("progress_callback_user_data", _P),
        ("_slack", c.c_uint8 * _SLACK),
    ]


class InputText(c.Structure):
    """`struct mtmd_input_text`."""

    _fields_ = [
        ("text", c.c_char_p),
        ("text_len", c.c_size_t),
        ("add_special", c.c_bool),
        ("parse_special", c.c_bool),
    ]


class Position(c.Structure):
    """`struct mtmd_decoder_pos`: time, width, height, and what is always 0."""

    _fields_ = [(name, c.c_uint32) for name in ("t", "x", "y", "z")]


_FLAG, _I32, _SIZE = c.c_bool, c.c_int32, c.c_size_t
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "mtmd_default_marker": (c.c_char_p, []),
    "mtmd_log_set": (None, [LOG_CALLBACK, _P]),
    "mtmd_context_params_default": (ContextParams, []),
    "mtmd_init_from_file": (_P, [c.c_char_p, _P, ContextParams]),
    "mtmd_free": (None, [_P]),
    "mtmd_decode_use_non_causal": (_FLAG, [_P, _P]),
    "mtmd_decode_use_mrope": (_FLAG, [_P]),
    "mtmd_support_vision": (_FLAG, [_P]),
    "mtmd_support_audio": (_FLAG, [_P]),
    "mtmd_get_audio_sample_rate": (c.c_int, [_P]),
    "mtmd_bitmap_init": (_P, [c.c_uint32, c.c_uint32, _P]),
    "mtmd_bitmap_init_from_audio": (_P, [_SIZE, _P]),
    "mtmd_bitmap_free": (None, [_P]),
    "mtmd_input_chunks_init": (_P, []),
    "mtmd_input_chunks_size": (_SIZE, [_P]),
    "mtmd_input_chunks_get": (_P, [_P, _SIZE]),
    "mtmd_input_chunks_free": (None, [_P]),
    "mtmd_input_chunk_get_type": (c.c_int, [_P]),
    "mtmd_input_chunk_get_tokens_text": (_P, [_P, _P]),
    "mtmd_input_chunk_get_tokens_image": (_P, [_P]),
    "mtmd_input_chunk_get_n_tokens": (_SIZE, [_P]),
    "mtmd_input_chunk_get_n_pos": (_I32, [_P]),
    "mtmd_helper_image_get_decoder_pos": (None, [_P, _I32, _P]),
    "mtmd_tokenize": (_I32, [_P, _P, _P, _P, _SIZE]),
    "mtmd_encode_chunk": (_I32, [_P, _P]),
    "mtmd_get_output_embd": (_P, [_P]),
    "mtmd_test_create_input_chunks": (_P, []),
}
