"""Where a session's logits and KV cache lie in the bytes that its guest handed over.

::

    span (4,096-aligned)
    │ logits f32 [n_vocab] │ pad │ K of layer 0 │ V of layer 0 │ K of layer 1 │ …
                                  ▲ at `remainder` modulo `modulus`

Layer by layer, not token by token: rows of one layer lie next to each other, [n_ctx][n_embd_kv].
The place of the first row modulo 64 decides the speed of the processor's attention kernels by up
to 25 %; each device says which it wants (`Device.kv_alignment`), and a session keeps what it was
opened with. Every K and V begins at the same remainder, since n_ctx is a multiple of 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.device.graph import TensorContext
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
    n_layer: int
    n_vocab: int
    dtype: GgmlType
    row_nbytes: int
    """One token's keys of one layer; the same for its values."""
    kv_offset: int

    @staticmethod
    def make(
        library: Library,
        *,
        n_ctx: int,
        n_layer: int,
        n_vocab: int,
        n_embd_kv: int,
        kv_type: str,
        kv_alignment: tuple[int, int],
    ) -> KvLayout:
        """The layout for at least `n_ctx` tokens, its KV cache aligned as the device wants it."""
        dtype = KV_TYPES[kv_type]
        modulus, remainder = kv_alignment
        return KvLayout(
            n_ctx=align_up(n_ctx, N_CTX_MULTIPLE),
            n_layer=n_layer,
            n_vocab=n_vocab,
            dtype=dtype,
            row_nbytes=library.ggml_row_size(dtype, n_embd_kv),
            kv_offset=align_up(4 * n_vocab, modulus) + remainder,
        )

    @property
    def nbytes(self) -> int:
        """The whole span, a multiple of 4,096."""
        return align_up(self.kv_offset + self.kv_nbytes, SPAN_ALIGNMENT)

    @property
    def kv_nbytes(self) -> int:
        """The KV cache alone."""
        return 2 * self.n_layer * self.plane_nbytes

    @property
    def plane_nbytes(self) -> int:
        """The keys of one layer; the same for its values."""
        return self.n_ctx * self.row_nbytes

    @property
    def token_nbytes(self) -> int:
        """What one token takes in the KV cache, all layers together."""
        return 2 * self.n_layer * self.row_nbytes

    def record(self) -> dict[str, Any]:
        """What a snapshot says of it, beside what it says of every session."""
        return {"n_layer": self.n_layer, "row_nbytes": self.row_nbytes}

    def k_offset(self, layer: int) -> int:
        """The first row of a layer's keys."""
        return self.kv_offset + 2 * layer * self.plane_nbytes

    def v_offset(self, layer: int) -> int:
        """The first row of a layer's values."""
        return self.k_offset(layer) + self.plane_nbytes

    def rows(self, first: int, n: int) -> list[tuple[int, int]]:
        """(offset, nbytes) of `n` rows of each plane, from row `first` on."""
        planes = [
            place(layer)
            for layer in range(self.n_layer)
            for place in (self.k_offset, self.v_offset)
        ]
        return [(at + first * self.row_nbytes, n * self.row_nbytes) for at in planes if n]


class KvCache:
    """The tensors of one session's KV cache: K and V of each layer, [n_embd_kv, n_ctx].

    Owns the descriptions only; the bytes are the guest's.
    """

    def __init__(
        self, device: Device, binding: Binding, base: HostAddr, layout: KvLayout, n_embd_kv: int
    ) -> None:
        self.layout = layout
        self._context = TensorContext(device.library, 2 * layout.n_layer)

        def place(offset: int) -> int:
            tensor = self._context.tensor(layout.dtype, n_embd_kv, layout.n_ctx)
            binding.place(tensor, HostAddr(base + offset))
            return tensor

        layers = range(layout.n_layer)
        self.k = tuple(place(layout.k_offset(layer)) for layer in layers)
        self.v = tuple(place(layout.v_offset(layer)) for layer in layers)

    def close(self) -> None:
        """Frees the descriptions; graphs that use them must not run again."""
        self._context.close()
