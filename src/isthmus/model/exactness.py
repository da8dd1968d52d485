"""Which ways of computing tokens together change no bit, for one model on one device.

Each question is answered by trying it out when it is first asked; see the probes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isthmus.model.batch_probe import adds_exactly, batches_exactly
from isthmus.model.cut_probe import adapter_cuts_exactly, cuts_exactly
from isthmus.model.graph_builder import GraphBuilder
from isthmus.model.pack_probe import packs_exactly
from isthmus.model.weights import Weights
from isthmus.native._ggml import GgmlType


class Exactness:
    """What the probes say of a model's weights and of those of its adapters.

    Safe to use from several threads. There is no lock: it would be held while a probe waits for the
    device's thread, which may ask the same.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        kv_type: GgmlType,
        weights: Weights,
        adapters: Sequence[Weights],
    ) -> None:
        self._device, self._backend = builder.device, builder.backend
        self._architecture = builder.architecture
        self._kv_type = kv_type
        self._weights, self._adapters = weights, adapters
        self._known: dict[Callable[[], bool], bool] = {}

    @property
    def batching(self) -> bool:
        """Whether a decode step in a batch has the bits of a step alone."""
        return self._device.everywhere is not None and self._try_out(self._batches)

    @property
    def cuts(self) -> bool:
        """Whether a prompt has the same bits in any chunks of 2 to 63 tokens."""
        return self.batching and self._try_out(self._cuts)

    @property
    def packing(self) -> bool:
        """Whether a prompt in one pass with others has the bits of one alone."""
        return self.batching and self._try_out(self._packs)

    def _try_out(self, probe: Callable[[], bool]) -> bool:
        if probe not in self._known:
            self._known[probe] = self._device.compute_thread.run(probe)
        return self._known[probe]

    def _batches(self) -> bool:
        device, backend = self._device, self._backend
        return batches_exactly(device, backend, self._weights) and all(
            adds_exactly(device, backend, it) for it in self._adapters
        )

    def _cuts(self) -> bool:
        device, backend, hparams = self._device, self._backend, self._architecture.hparams
        return cuts_exactly(device, backend, self._weights, hparams, self._kv_type) and all(
            adapter_cuts_exactly(device, backend, it) for it in self._adapters
        )

    def _packs(self) -> bool:
        device, backend, n_vocab = self._device, self._backend, self._architecture.n_vocab
        return packs_exactly(device, backend, self._weights, n_vocab) and all(
            packs_exactly(device, backend, it, n_vocab, with_vectors=True) for it in self._adapters
        )
