"""A GGUF file in parts: read, changed field by field, and written with whatever lies.

1. `GGUF`, version u32, number of tensors u64, number of pairs u64
2. for each pair: its key, type u32, value
3. for each tensor: its name, number of dimensions u32, dimensions u64, type u32, offset u64
4. padding to 32 bytes, and the tensors' bytes
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from typing import Any

STRING, ARRAY = 8, 9
_SCALARS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}
_LIES = (0, 1, 2, 3, 7, 31, 32, 33, 255, 320, 1000, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
_WIDE_LIES = (*_LIES, 2**32, 2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)
_TEXTS = (b"", b"\xff\xfe", b"\0", b"a" * 70_000, b"[EMPTY_5]", "é".encode(), b"\x1b[2J", b"none")
VOCABULARIES = (b"gpt2", b"llama", b"bert", b"t5", b"rwkv", b"plamo2", b"none", b"no_vocab", b"x")


@dataclass
class Pair:
    """One key and its value; an array is (type of its items, items)."""

    key: bytes
    type: int
    value: Any
    length: int | None = None
    """What it says as its length instead of the true one."""


@dataclass
class Tensor:
    """What a file says of a tensor."""

    name: bytes
    shape: list[int]
    dtype: int
    offset: int
    n_dims: int | None = None


@dataclass
class Parts:
    """The whole file."""

    pairs: list[Pair] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    data: bytes = b""
    version: int = 3
    n_tensors: int | None = None
    n_pairs: int | None = None

    @classmethod
    def read(cls, raw: bytes) -> Parts:
        """The parts of a good file."""
        reader = _Reader(raw)
        parts = cls()
        _, parts.version, n_tensors, n_pairs = reader.unpack("<IIQQ")
        for _ in range(n_pairs):
            key, (kind,) = reader.text(), reader.unpack("<I")
            parts.pairs.append(Pair(key, kind, reader.value(kind)))
        for _ in range(n_tensors):
            name, (n,) = reader.text(), reader.unpack("<I")
            shape = list(reader.unpack(f"<{n}Q"))
            parts.tensors.append(Tensor(name, shape, *reader.unpack("<IQ")))
        parts.data = raw[-(-reader.at // 32) * 32 :]
        return parts

    def write(self) -> bytes:
        """The file's bytes."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        out = [b"GGUF", struct.pack("<IQQ", self.version, n_tensors, n_pairs)]
        for it in self.pairs:
            out += [_text(it.key), struct.pack("<I", it.type), _value(it.type, it.value, it.length)]
        for tensor in self.tensors:
            n_dims = len(tensor.shape) if tensor.n_dims is None else tensor.n_dims
            out += [_text(tensor.name), struct.pack("<I", n_dims)]
            out.append(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape))
            out.append(struct.pack("<IQ", tensor.dtype, tensor.offset))
        head = b"".join(out)
        return head + bytes(-len(head) % 32) + self.data

    def get(self, key: str) -> Pair:
        """The pair of that key; it is added as a u32 of 0 if it is not there."""
        for pair in self.pairs:
            if pair.key == key.encode():
                return pair
        self.pairs.append(Pair(key.encode(), 4, 0))
        return self.pairs[-1]

    def put(self, key: str, kind: int, value: Any) -> None:
        """Sets a key's value."""
        pair = self.get(key)
        pair.type, pair.value = kind, value

    @property
    def tokens(self) -> list[bytes]:
        """The vocabulary's tokens, to be changed in place."""
        found: list[bytes] = self.get("tokenizer.ggml.tokens").value[1]
        return found


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def unpack(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.raw, self.at)
        self.at += struct.calcsize(form)
        return found

    def text(self) -> bytes:
        (n,) = self.unpack("<Q")
        self.at += n
        return self.raw[self.at - n : self.at]

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, n = self.unpack("<IQ")
            return inner, [self.value(inner) for _ in range(n)]
        return self.unpack(f"<{_SCALARS[kind]}")[0]


def _text(data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(data) if length is None else length) + data


def _value(kind: int, value: Any, length: int | None = None) -> bytes:
    if isinstance(value, bytes):
        return _text(value, length)
    if isinstance(value, tuple):
        inner, items = value
        n = len(items) if length is None else length
        return struct.pack("<IQ", inner, n) + b"".join(_value(inner, it) for it in items)
    form = _SCALARS.get(kind, "I")
    if form in "fd":
        return struct.pack(f"<{form}", float(value))
    nbytes = struct.calcsize(f"<{form}")
    return (int(value) & (1 << 8 * nbytes) - 1).to_bytes(nbytes, "little")


# ------------------------------------------------------------------------------------- lies


def lie(parts: Parts, rng: random.Random) -> None:
    """Changes one thing in a file."""
    rng.choice((_lie_number, _lie_number, _lie_array, _lie_tokens, _lie_tensor, _lie_shape))(
        parts, rng
    )


def _lie_number(parts: Parts, rng: random.Random) -> None:
    pair = rng.choice(parts.pairs)
    match rng.randrange(8):
        case 0:
            pair.type = rng.choice([*range(14), 99])
            if pair.type not in (STRING, ARRAY) and not isinstance(pair.value, int | float):
                pair.value = 7
        case 1:
            parts.pairs.remove(pair)
        case 2:
            parts.pairs.append(Pair(pair.key, pair.type, pair.value))
        case 3:
            pair.length = rng.choice(_WIDE_LIES)
        case _:
            if isinstance(pair.value, bytes):
                pair.value = rng.choice((*_TEXTS, *VOCABULARIES))
            elif isinstance(pair.value, float):
                pair.value = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e-45, 3e38])
            elif isinstance(pair.value, int):
                pair.value = rng.choice([*_WIDE_LIES, pair.value + 1, pair.value - 1, -1])


def _lie_array(parts: Parts, rng: random.Random) -> None:
    arrays = [it for it in parts.pairs if isinstance(it.value, tuple)]
    if not arrays:
        return
    pair = rng.choice(arrays)
    inner, items = pair.value
    at = rng.randrange(len(items)) if items else 0
    match rng.randrange(6):
        case 0:
            del items[at:]
        case 1:
            del items[at : at + 1]
        case 2:
            items += items[: rng.choice([1, 2, 1000])]
        case 3:
            pair.length = rng.choice(_WIDE_LIES)
        case 4:
            pair.value = (rng.randrange(14), items if rng.random() < 0.5 else [])
        case _ if items:
            odd = _TEXTS if isinstance(items[at], bytes) else (0, -1, 99, 2**31 - 1)
            items[at] = rng.choice(odd)
        case _:
            pair.value = (inner, [])
    if isinstance(pair.value, tuple) and any(isinstance(it, bytes) for it in pair.value[1]):
        pair.value = (STRING, pair.value[1])


def _lie_tokens(parts: Parts, rng: random.Random) -> None:
    keys = ("bos", "eos", "unknown", "padding", "seperator", "eot", "mask", "fim_pre")
    match rng.randrange(6):
        case 0 | 1:
            key = f"tokenizer.ggml.{rng.choice(keys)}_token_id"
            parts.put(key, 4, rng.choice(_LIES))
        case 2:
            parts.put("tokenizer.ggml.model", STRING, rng.choice(VOCABULARIES))
        case 3:
            from tests.fuzz.prompts import PRE

            parts.put("tokenizer.ggml.pre", STRING, rng.choice(PRE).encode())
        case 4:
            key = rng.choice(["add_bos_token", "add_eos_token", "add_space_prefix"])
            parts.put(f"tokenizer.ggml.{key}", 7, rng.randrange(2))
        case _:
            parts.put("tokenizer.ggml.scores", ARRAY, (6, [0.0] * rng.choice([0, 1, 320])))


def _lie_tensor(parts: Parts, rng: random.Random) -> None:
    if not parts.tensors:
        return
    tensor = rng.choice(parts.tensors)
    match rng.randrange(7):
        case 0:
            tensor.offset = rng.choice([*_WIDE_LIES, tensor.offset + 1, tensor.offset + 32])
        case 1:
            tensor.dtype = rng.choice([*range(45), 2**31, 2**32 - 1])
        case 2:
            tensor.shape[rng.randrange(len(tensor.shape))] = rng.choice(_WIDE_LIES)
        case 3:
            tensor.shape = [*tensor.shape, 1, 1, 1, 1][: rng.randrange(6)]
        case 4:
            tensor.name = rng.choice((*_TEXTS, rng.choice(parts.tensors).name))
        case 5:
            tensor.n_dims = rng.choice(_LIES)
        case _:
            parts.tensors.remove(tensor)


def _lie_shape(parts: Parts, rng: random.Random) -> None:
    match rng.randrange(5):
        case 0:
            parts.n_pairs = rng.choice(_WIDE_LIES)
        case 1:
            parts.n_tensors = rng.choice(_WIDE_LIES)
        case 2:
            parts.version = rng.choice(_LIES)
        case 3:
            parts.data = parts.data[: rng.randrange(len(parts.data) + 1)]
        case _:
            n = rng.choice([1, 2, 7, 30, 64, 2**20, 2**31])
            parts.put("general.alignment", 4, n)


def damage(raw: bytes, rng: random.Random) -> bytes:
    """Changes bytes of the head, where all that says anything is."""
    out = bytearray(raw)
    for _ in range(rng.choice([1, 1, 4, 30])):
        at = rng.randrange(min(len(out), 12_000))
        out[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(out[: rng.randrange(len(out))] if rng.random() < 0.1 else out)
