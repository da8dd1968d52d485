"""The normalisation map of a unigram tokenizer: which texts libllama replaces by which.

1. u32: bytes of the trie, then the trie, then the replacements
2. the trie: a compressed double array of u32, as in SentencePiece
3. the replacements: texts that end with a zero byte

libllama walks it with every text (`llm_tokenizer_ugm_session::normalize_prefix` in llama.cpp's
`src/llama-vocab.cpp`), and ends the process if that leads outside.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_BYTES = np.arange(1, 256, dtype=np.int64)
_CHECK = (1 << 31) | 0xFF
_LEAF = 1 << 8
_VALUE = (1 << 31) - 1

Units = npt.NDArray[np.int64]


def is_sound_charsmap(data: bytes) -> bool:
    """Whether no text leads outside of the map: every way through the trie is followed."""
    if len(data) < 4:
        return False
    nbytes = int.from_bytes(data[:4], "little")
    if nbytes == 0 or nbytes % 4 or 4 + nbytes >= len(data) or data[-1] != 0:
        return False
    units = np.frombuffer(data, "<u4", nbytes // 4, 4).astype(np.int64)
    n_replacements = len(data) - 4 - nbytes
    start = int(_base(units[:1])[0])
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop()
        if not 0 <= state < len(units) or int((state ^ _BYTES).max()) >= len(units):
            return False
        for following, is_leaf in _following(units, state):
            if not 0 <= following < len(units):
                return False
            if is_leaf and (int(units[following]) & _VALUE) >= n_replacements:
                return False
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return True


def _following(units: Units, state: int) -> Iterator[tuple[int, bool]]:
    """Each state after one more byte, and whether a replacement is there."""
    nodes = state ^ _BYTES
    children = nodes[(units[nodes] & _CHECK) == _BYTES]
    for child, base in zip(children.tolist(), _base(units[children]).tolist(), strict=True):
        yield child ^ base, bool(int(units[child]) & _LEAF)


def _base(units: Units) -> Units:
    return (units >> 10) << ((units & (1 << 9)) >> 6)
