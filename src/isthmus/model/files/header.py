"""The header of one GGUF file: metadata and the places of tensors. The library reads it.

1. magic `GGUF`, version (2 or 3), number of tensors, number of metadata pairs
2. metadata pairs: key, type, value
3. tensor descriptions: name, shape, type, offset in the data section
4. padding to `general.alignment` (32 unless given)
5. the data section

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isthmus.errors import ModelFileError, ModelNotFound, ModelUnsupported
from isthmus.file_hash import file_identity
from isthmus.native import _ggml
from isthmus.native._ggml import GgmlType, GgufType
from isthmus.native.loader import Library
from isthmus.native.owned import Owned

Value = bool | int | float | str | tuple[int | float | bool, ...] | list[str]

_C_TYPES: dict[GgufType, type[ctypes._SimpleCData]] = {  # type: ignore[type-arg]
    GgufType.UINT8: ctypes.c_uint8,
    GgufType.INT8: ctypes.c_int8,
    GgufType.UINT16: ctypes.c_uint16,
    GgufType.INT16: ctypes.c_int16,
    GgufType.UINT32: ctypes.c_uint32,
    GgufType.INT32: ctypes.c_int32,
    GgufType.FLOAT32: ctypes.c_float,
    GgufType.BOOL: ctypes.c_bool,
    GgufType.UINT64: ctypes.c_uint64,
    GgufType.INT64: ctypes.c_int64,
    GgufType.FLOAT64: ctypes.c_double,
}
_MIN_ALIGNMENT = 32
TOKENS_KEY = "tokenizer.ggml.tokens"
"""The only array of strings that is read: the others are the tokenizer library's business."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in its file and what it is."""

    name: str
    shard: int
    """The file that has it, as its place among the model's files."""
    dtype: GgmlType
    shape: tuple[int, ...]
    """Elements in each dimension, contiguous dimension first, without trailing ones."""
    offset: int
    """Bytes from the beginning of the file."""
    nbytes: int


@dataclass(frozen=True)
class ArrayInfo:
    """What an array of the metadata holds, and how many of them."""

    element: GgufType
    count: int


class Header:
    """What one file says before its data; holds nothing open. `shard` counts from 0."""

    def __init__(self, library: Library, path: Path, shard: int = 0) -> None:
        self.path = path
        found = file_status(path)
        self.identity = file_identity(found)
        with _open(library, path) as header:
            self.version = int(library.gguf_get_version(header.handle))
            self.metadata: Mapping[str, Value] = dict(_metadata(library, header.handle))
            self.arrays: Mapping[str, ArrayInfo] = dict(_arrays(library, header.handle))
            self.tensors: Sequence[TensorInfo] = [
                _tensor(library, header.handle, path, shard, index)
                for index in range(library.gguf_get_n_tensors(header.handle))
            ]
        self._require_inside(found.st_size)

    def _require_inside(self, file_nbytes: int) -> None:
        for info in self.tensors:
            if info.offset + info.nbytes > file_nbytes:
                raise ModelFileError(
                    f"{self.path} is truncated: tensor {info.name} ends at byte "
                    f"{info.offset + info.nbytes} of {file_nbytes}"
                )
            if info.offset % _MIN_ALIGNMENT:
                raise ModelFileError(
                    f"{self.path}: tensor {info.name} is not aligned to {_MIN_ALIGNMENT} bytes"
                )


def metadata_sha256(library: Library, path: Path, prefix: str) -> str:
    """The SHA-256 of all metadata whose keys begin with `prefix`, arrays of text included."""
    total = hashlib.sha256()
    with _open(library, path) as header:
        for index in range(library.gguf_get_n_kv(header.handle)):
            key = library.gguf_get_key(header.handle, index)
            if key.decode(errors="replace").startswith(prefix):
                value = repr(_value(library, header.handle, index)).encode()
                total.update(b"%d %s %d " % (len(key), key, len(value)) + value)
    return total.hexdigest()


def file_status(path: Path) -> os.stat_result:
    """A regular file's status; ModelNotFound for everything else."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ModelNotFound(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise ModelNotFound(f"cannot read {path}: {error}") from None
    if stat.S_ISDIR(found.st_mode):
        raise ModelNotFound(f"{path} is a folder; give a .gguf file")
    if not stat.S_ISREG(found.st_mode):
        raise ModelNotFound(f"{path} is a pipe or a device; give a .gguf file")
    return found


def _open(library: Library, path: Path) -> Owned:
    with library.errors() as complaints:
        handle = library.gguf_init_from_file(os.fsencode(path), _ggml.GgufInitParams(True, None))
    if not handle:
        reason = complaints[0].partition(": ")[2] if complaints else "the header cannot be read"
        raise ModelFileError(f"{path} is not a usable GGUF file: {reason}")
    return Owned(handle, library.gguf_free)


def _arrays(library: Library, header: int) -> Iterator[tuple[str, ArrayInfo]]:
    for index in range(library.gguf_get_n_kv(header)):
        if GgufType(library.gguf_get_kv_type(header, index)) is GgufType.ARRAY:
            element = GgufType(library.gguf_get_arr_type(header, index))
            count = int(library.gguf_get_arr_n(header, index))
            yield (
                library.gguf_get_key(header, index).decode(errors="replace"),
                ArrayInfo(element, count),
            )


def _metadata(library: Library, header: int) -> Iterator[tuple[str, Value]]:
    for index in range(library.gguf_get_n_kv(header)):
        key = library.gguf_get_key(header, index).decode(errors="replace")
        texts = GgufType(library.gguf_get_kv_type(header, index)) is GgufType.ARRAY and (
            GgufType(library.gguf_get_arr_type(header, index)) is GgufType.STRING
        )
        if not texts or key == TOKENS_KEY:
            value = _value(library, header, index)
            if value is not None:
                yield key, value


def _value(library: Library, header: int, index: int) -> Value | None:
    kind = GgufType(library.gguf_get_kv_type(header, index))
    if kind is GgufType.STRING:
        return _text(library.gguf_get_val_str(header, index))
    if kind is not GgufType.ARRAY:
        number: int | float | bool = (
            _C_TYPES[kind].from_address(library.gguf_get_val_data(header, index)).value
        )
        return number
    element = GgufType(library.gguf_get_arr_type(header, index))
    if element in _C_TYPES:
        return _array(library, header, index, element)
    return _strings(library, header, index) if element is GgufType.STRING else None


def _array(library: Library, header: int, index: int, element: GgufType) -> tuple[int, ...]:
    count = library.gguf_get_arr_n(header, index)
    if count == 0:
        return ()
    return tuple((_C_TYPES[element] * count).from_address(library.gguf_get_arr_data(header, index)))


def _strings(library: Library, header: int, index: int) -> list[str]:
    count = library.gguf_get_arr_n(header, index)
    return [_text(library.gguf_get_arr_str(header, index, i)) for i in range(count)]


def _text(pointer: int) -> str:
    return ctypes.string_at(pointer).decode(errors="replace")


def _tensor(library: Library, header: int, path: Path, shard: int, index: int) -> TensorInfo:
    name = library.gguf_get_tensor_name(header, index).decode(errors="replace")
    number = library.gguf_get_tensor_type(header, index)
    if number not in iter(GgmlType):
        kind = library.ggml_type_name(number)
        raise ModelUnsupported(
            f"{path}: tensor {name} is of type {(kind or b'').decode() or number}, "
            "which this release does not compute with"
        )
    ne = library.gguf_get_tensor_ne(header, index)
    data = library.gguf_get_data_offset(header)
    return TensorInfo(
        name=name,
        shard=shard,
        dtype=GgmlType(number),
        shape=_shape([ne[i] for i in range(_ggml.MAX_DIMS)]),
        offset=data + library.gguf_get_tensor_offset(header, index),
        nbytes=library.gguf_get_tensor_size(header, index),
    )


def _shape(ne: list[int]) -> tuple[int, ...]:
    while len(ne) > 1 and ne[-1] == 1:
        ne.pop()
    return tuple(ne)
