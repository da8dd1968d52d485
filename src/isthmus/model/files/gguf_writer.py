"""Writes GGUF files: metadata and F32 tensors.

1. magic, version, number of tensors, number of metadata entries
2. each entry: key, type, value
3. each tensor: name, number of dimensions, dimensions (the contiguous one first), type, offset
4. the tensors' data, each at a multiple of 32 bytes

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from isthmus.native._ggml import GgmlType, GgufType
from isthmus.units import align_up

Value = bool | int | float | str | Sequence[str] | Sequence[int]
"""What an entry says: whole numbers are u32, and i32 in a list; other numbers are f32."""

_VERSION = 3
_ALIGNMENT = 32


def gguf_bytes(
    metadata: Mapping[str, Value], tensors: Mapping[str, npt.NDArray[np.float32]]
) -> bytes:
    """A whole file."""
    head = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    head += [_text(key) + _entry(value) for key, value in metadata.items()]
    offset = 0
    for name, values in tensors.items():
        shape = values.shape[::-1]
        head += [_text(name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        head += [struct.pack("<IQ", GgmlType.F32, offset)]
        offset += align_up(values.nbytes, _ALIGNMENT)
    parts = [b"".join(head), *(values.astype("<f4").tobytes() for values in tensors.values())]
    return b"".join(part + bytes(-len(part) % _ALIGNMENT) for part in parts)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(value: Value) -> bytes:
    """An entry's type and value."""
    if isinstance(value, str):
        return struct.pack("<I", GgufType.STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", GgufType.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", GgufType.UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", GgufType.FLOAT32, value)
    is_text = isinstance(value[0], str)
    kind = GgufType.STRING if is_text else GgufType.INT32
    head = struct.pack("<IIQ", GgufType.ARRAY, kind, len(value))
    items = (_text(str(it)) if is_text else struct.pack("<i", it) for it in value)
    return head + b"".join(items)
