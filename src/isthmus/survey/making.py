"""Makes the file of a tiny model with random weights, in a process of its own: see `tiny`.

The library says itself which tensors an architecture has, and in which shapes: it makes a model of
metadata alone and asks for each tensor's values. The metadata and those values are the file.

This file is what that process runs. The library ends the process on much of what can be wrong with
metadata.
"""

from __future__ import annotations

import ctypes
import json
import zlib
from collections.abc import Mapping

import numpy as np

from isthmus.errors import ModelUnsupported
from isthmus.native import _llama
from isthmus.native._ggml import GgmlType, GgufType, Tensor, tensor_at
from isthmus.native.child import open_told, reason
from isthmus.native.loader import Library
from isthmus.native.owned import Owned
from isthmus.survey.recipes import I32, U64, Value, has_tensor, metadata

_ALIGNMENT = 32
_opened: list[Library] = []
"""The library, once `prepare` has opened it."""


def prepare(library: str) -> None:
    """Opens the library that `native.child` told of."""
    _opened.append(open_told(library))


def make(job: bytes) -> bytes:
    """The file of {"name", "seed"} as JSON, after the byte 1; or the byte 0 and why there is none.

    What the library does not survive ends the process.
    """
    asked = json.loads(job)
    try:
        return b"\1" + tiny_file(_opened[0], asked["name"], asked["seed"])
    except ModelUnsupported as error:
        return b"\0" + str(error).encode()


def tiny_file(library: Library, name: str, seed: int) -> bytes:
    """The bytes of a GGUF file. Raises ModelUnsupported with the library's reason."""
    values = metadata(name)
    tensors: dict[str, bytes] = {}
    odd: list[str] = []
    with _header(library, values) as asked, _header(library, values) as written:

        def fill(pointer: int, _user_data: int | None) -> None:
            """Takes down a tensor that the library has made; it may make one for two purposes."""
            tensor = tensor_at(pointer)
            text = tensor.name.decode()
            if tensor.type != GgmlType.F32:
                odd.append(text)
                return
            data = _random(tensor, seed)
            ctypes.memmove(tensor.data, data, len(data))
            if text not in tensors and has_tensor(name, text):
                tensors[text] = data
                library.gguf_add_tensor(written.handle, pointer)

        with _model(library, asked.handle, _llama.SET_TENSOR_DATA(fill)):
            head = ctypes.create_string_buffer(library.gguf_get_meta_size(written.handle))
            library.gguf_get_meta_data(written.handle, head)
    if odd:
        raise ModelUnsupported(f"the recipe gives no values to {odd[0]}, which is not of floats")
    return head.raw + b"".join(data + bytes(-len(data) % _ALIGNMENT) for data in tensors.values())


def _model(library: Library, header: int, fill: ctypes._CFunctionType) -> Owned:
    params = library.llama_model_default_params()
    params.n_gpu_layers = 0
    library.llama_backend_init()
    with library.errors() as complaints:
        handle = library.llama_model_init_from_user(header, fill, None, params)
    if not handle:
        raise ModelUnsupported(reason(complaints, "the library makes no such model"))
    return Owned(handle, library.llama_model_free)


def _header(library: Library, values: Mapping[str, Value]) -> Owned:
    """Metadata without tensors."""
    header = library.gguf_init_empty()
    for key, value in values.items():
        _set(library, header, key.encode(), value)
    return Owned(header, library.gguf_free)


def _set(library: Library, header: int, key: bytes, value: Value) -> None:
    if isinstance(value, str):
        library.gguf_set_val_str(header, key, value.encode())
    elif isinstance(value, bool):
        library.gguf_set_val_bool(header, key, value)
    elif isinstance(value, int):
        library.gguf_set_val_u32(header, key, value)
    elif isinstance(value, float):
        library.gguf_set_val_f32(header, key, value)
    elif isinstance(value[0], str):
        texts = [str(it).encode() for it in value]
        library.gguf_set_arr_str(header, key, (ctypes.c_char_p * len(texts))(*texts), len(texts))
    else:
        kind, dtype = _element(value)
        data = np.array(value, dtype)
        library.gguf_set_arr_data(header, key, kind, data.ctypes.data, data.size)


def _element(array: tuple[object, ...]) -> tuple[GgufType, type[np.generic]]:
    """The type of an array's elements, in the file and in memory."""
    if isinstance(array, I32):
        return GgufType.INT32, np.int32
    if isinstance(array, U64):
        return GgufType.UINT64, np.uint64
    if isinstance(array[0], bool):
        return GgufType.BOOL, np.bool_
    if isinstance(array[0], float):
        return GgufType.FLOAT32, np.float32
    return GgufType.UINT32, np.uint32


def _random(tensor: Tensor, seed: int) -> bytes:
    """A tensor's values, f32 of its shape, which depend on its name and the seed alone."""
    name = tensor.name.decode()
    shape = [int(it) for it in tensor.ne]
    values = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape[::-1])
    if "ssm_a" in name:  # how fast a state decays: a positive one would grow
        values = -abs(values)
    elif shape[1] == 1:
        values = float("norm" in name) + 0.1 * values
    else:
        values *= shape[0] ** -0.5
    return values.astype(np.float32).tobytes()
