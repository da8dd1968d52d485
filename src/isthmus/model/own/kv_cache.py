"""Where a session's logits and KV cache lie in the bytes that its guest handed over.

::

    span (4,096-aligned)
    │ logits f32 [n_vocab] │ pad │ K of layer 0 │ V of layer 0 │ K of layer 1 │ …
                                  ▲ at `remainder` modulo `modulus`

If some layers keep a state instead of keys and values, the span has more:

::

    │ logits │ lost i64 │ lengths i64 [n_checkpoints] │ pad │ K, V │ pad │ states │ checkpoint 0 │ …

A checkpoint is a copy of the states after a number of tokens, which is its length; 0: it is free.
`lost` is 1 if the states are of no tokens. All of it lies in the guest's memory as well, so a fork
or a snapshot has it. A guest that changes it gets states of other tokens, as one that changes its
KV cache does, and nothing worse.

Plane by plane, not token by token: rows of one plane lie next to each other, [n_ctx][its width].
Mostly each layer has a plane of keys and one of values, all alike; see `Heads` for the others.
The place of the first row modulo 64 decides the speed of the processor's attention kernels by up
to 25 %; each device says which it wants (`Device.kv_alignment`), and a session keeps what it was
opened with. Every plane begins at the same remainder, since n_ctx is a multiple of 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from isthmus.config import ModelSettings
from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.device.graph import TensorContext
from isthmus.model.shape.hparams import STATE_ALIGNMENT, Hparams
from isthmus.native._ggml import GgmlType
from isthmus.native.loader import Library
from isthmus.units import HostAddr, align_up

SPAN_ALIGNMENT = 4096
KV_ALIGNMENT = 32
"""What every kernel needs; a device wants more."""
N_CTX_MULTIPLE = 256
"""Attention reads the cache in steps of this many rows, as libllama does."""

KV_TYPES = {
    "f16": GgmlType.F16,
    "f32": GgmlType.F32,
    "q8_0": GgmlType.Q8_0,
    "q4_0": GgmlType.Q4_0,
}


def rows_read(n_ctx: int, n_tokens: int) -> int:
    """Rows that attention reads where `n_tokens` are to be seen, of a cache that has `n_ctx`."""
    return min(align_up(n_tokens, N_CTX_MULTIPLE), n_ctx)


@dataclass(frozen=True)
class KvLayout:
    """Places, in bytes from the beginning of a session's span."""

    n_ctx: int
    n_vocab: int
    dtype: GgmlType
    row_nbytes: tuple[int, ...]
    """One token's row of each plane."""
    plain: bool
    """Whether planes are keys and values of each layer, all of one width."""
    kv_offset: int
    states_nbytes: int = 0
    """All states together; 0: the model keeps none."""
    n_checkpoints: int = 0

    @staticmethod
    def make(
        library: Library,
        h: Hparams,
        settings: ModelSettings,
        *,
        n_ctx: int,
        n_vocab: int,
        kv_alignment: tuple[int, int],
    ) -> KvLayout:
        """The layout for at least `n_ctx` tokens, its KV cache aligned as the device wants it."""
        dtype = KV_TYPES[settings.kv_type]
        modulus, remainder = kv_alignment
        n_checkpoints = settings.checkpoints if h.states else 0
        return KvLayout(
            n_ctx=align_up(n_ctx, N_CTX_MULTIPLE),
            n_vocab=n_vocab,
            dtype=dtype,
            row_nbytes=tuple(library.ggml_row_size(dtype, width) for width in h.planes),
            plain=h.has_plain_cache,
            kv_offset=align_up(_words_end(n_vocab, h, n_checkpoints), modulus) + remainder,
            states_nbytes=h.states_nbytes,
            n_checkpoints=n_checkpoints,
        )

    @property
    def nbytes(self) -> int:
        """The whole span, a multiple of 4,096."""
        return align_up(self.kv_offset + self.kv_nbytes, SPAN_ALIGNMENT)

    @property
    def kv_nbytes(self) -> int:
        """From the KV cache's beginning to the end: checkpoints as well."""
        if not self.states_nbytes:
            return self.cache_nbytes
        return self.states_offset + self.all_states_nbytes - self.kv_offset

    @property
    def cache_nbytes(self) -> int:
        """The KV cache alone."""
        return self.n_ctx * self.token_nbytes

    @property
    def plane_nbytes(self) -> tuple[int, ...]:
        """Each plane."""
        return tuple(self.n_ctx * nbytes for nbytes in self.row_nbytes)

    @property
    def plane_offsets(self) -> tuple[int, ...]:
        """The first row of each plane."""
        return (*accumulate(self.plane_nbytes[:-1], initial=self.kv_offset),)

    @property
    def states_offset(self) -> int:
        """Where the states begin."""
        return align_up(self.kv_offset + self.cache_nbytes, STATE_ALIGNMENT)

    @property
    def all_states_nbytes(self) -> int:
        """The states, and all checkpoints of them."""
        return (1 + self.n_checkpoints) * self.states_nbytes

    @property
    def words_offset(self) -> int:
        """Where `lost` and the lengths of checkpoints begin."""
        return align_up(4 * self.n_vocab, 8)

    @property
    def n_words(self) -> int:
        """How many numbers these are."""
        return 1 + self.n_checkpoints if self.states_nbytes else 0

    def checkpoint_offset(self, number: int) -> int:
        """Where a checkpoint begins."""
        return self.states_offset + (1 + number) * self.states_nbytes

    @property
    def token_nbytes(self) -> int:
        """What one token takes in the KV cache, all planes together."""
        return sum(self.row_nbytes)

    def record(self) -> dict[str, Any]:
        """What a snapshot says of it, beside what it says of every session."""
        planes: dict[str, Any] = {"n_layer": 0, "row_nbytes": 0, "rows": self.row_nbytes}
        if self.plain:
            n_layer, row_nbytes = len(self.row_nbytes) // 2, self.row_nbytes[0]
            planes = {"n_layer": n_layer, "row_nbytes": row_nbytes}
        return {**planes, "states_nbytes": self.states_nbytes, "n_checkpoints": self.n_checkpoints}

    def rows(self, first: int, n: int) -> list[tuple[int, int]]:
        """(offset, nbytes) of `n` rows of each plane, from row `first` on."""
        planes = zip(self.plane_offsets, self.row_nbytes, strict=True)
        return [(at + first * nbytes, n * nbytes) for at, nbytes in planes if n]


def _words_end(n_vocab: int, h: Hparams, n_checkpoints: int) -> int:
    """Where logits end, and what a session says of its states and checkpoints."""
    return align_up(4 * n_vocab, 8) + 8 * (1 + n_checkpoints if h.states else 0)


class KvCache:
    """The tensors of one session's KV cache, a plane each: [its width, n_ctx]; and its states.

    Owns the descriptions only; the bytes are the guest's.
    """

    def __init__(
        self, device: Device, binding: Binding, base: HostAddr, layout: KvLayout, h: Hparams
    ) -> None:
        self._context = TensorContext(device.library, len(h.planes) + len(h.states))

        def place(offset: int, dtype: GgmlType, *shape: int) -> int:
            tensor = self._context.tensor(dtype, *shape)
            binding.place(tensor, HostAddr(base + offset))
            return tensor

        planes = zip(layout.plane_offsets, h.planes, strict=True)
        self.planes = tuple(place(at, layout.dtype, width, layout.n_ctx) for at, width in planes)
        self.states = tuple(
            place(layout.states_offset + offset, GgmlType.F32, *state.shape)
            for offset, state in zip(h.state_offsets, h.states, strict=True)
        )

    def close(self) -> None:
        """Frees the descriptions; graphs that use them must not run again."""
        self._context.close()
