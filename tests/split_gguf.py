"""Splits a GGUF file into shards, as `llama-gguf-split` does; shards may lie about themselves."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT16, _INT32, _STRING, _ARRAY = 2, 5, 8, 9
_ALIGNMENT = 32
Place = tuple[int, int]
"""Where bytes begin and end."""


class Split:
    """A whole file's parts, from which shards are written."""

    def __init__(self, source: Path) -> None:
        self.data = source.read_bytes()
        self._at = 8
        n_tensors, n_kv = self._number("Q"), self._number("Q")
        begin = self._at
        for _ in range(n_kv):
            self._skip_string()
            self._skip_value(self._number("I"))
        self.metadata = self.data[begin : self._at]
        self.n_kv = n_kv
        heads = [self._tensor() for _ in range(n_tensors)]
        start = _aligned(self._at)
        ends = [offset for _, offset in heads[1:]] + [len(self.data) - start]
        self.tensors = [
            (head, (start + offset, start + end))
            for (head, offset), end in zip(heads, ends, strict=True)
        ]

    def write(
        self, folder: Path, stem: str, count: int, lies: Mapping[int, Mapping[str, int]] = {}
    ) -> list[Path]:
        """Writes `count` shards; `lies` are fields `no`, `count` and `tensors.count` by shard."""
        groups = [self.tensors[n * len(self.tensors) // count :] for n in range(count + 1)]
        paths = []
        for n in range(count):
            mine = groups[n][: len(groups[n]) - len(groups[n + 1])]
            said = {"no": n, "count": count, "tensors.count": len(self.tensors), **lies.get(n, {})}
            path = folder / f"{stem}-{n + 1:05d}-of-{count:05d}.gguf"
            path.write_bytes(self._shard(mine, said, first=n == 0))
            paths.append(path)
        return paths

    def _shard(
        self, tensors: list[tuple[bytes, Place]], said: Mapping[str, int], *, first: bool
    ) -> bytes:
        own = [
            _text(f"split.{name}") + struct.pack("<I" + letter, kind, said[name])
            for name, kind, letter in (
                ("no", _UINT16, "H"),
                ("count", _UINT16, "H"),
                ("tensors.count", _INT32, "i"),
            )
        ]
        n_kv = len(own) + (self.n_kv if first else 0)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), n_kv)
        head += (self.metadata if first else b"") + b"".join(own)
        body = b""
        for info, (begin, end) in tensors:
            head += info + struct.pack("<Q", len(body))
            body += self.data[begin:end].ljust(_aligned(end - begin), b"\0")
        return head.ljust(_aligned(len(head)), b"\0") + body

    def _tensor(self) -> tuple[bytes, int]:
        """What is said of a tensor but for its offset, and that."""
        begin = self._at
        self._skip_string()
        n_dims = self._number("I")
        self._at += 8 * n_dims + 4
        return self.data[begin : self._at], self._number("Q")

    def _number(self, letter: str) -> int:
        (value,) = struct.unpack_from(f"<{letter}", self.data, self._at)
        self._at += struct.calcsize(f"<{letter}")
        return int(value)

    def _skip_string(self) -> None:
        nbytes = self._number("Q")
        self._at += nbytes

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip_string()
        elif kind == _ARRAY:
            element, n = self._number("I"), self._number("Q")
            if element == _STRING:
                for _ in range(n):
                    self._skip_string()
            else:
                self._at += n * _SIZES[element]
        else:
            self._at += _SIZES[kind]


def split(source: Path, folder: Path, stem: str = "split", count: int = 4) -> list[Path]:
    """The shards of a file, in order."""
    return Split(source).write(folder, stem, count)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
