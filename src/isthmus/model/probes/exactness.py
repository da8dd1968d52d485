"""Which ways of computing tokens together change no bit, for one model on one device.

Each question is answered by trying it out when it is first asked; see the probes. Answers that take
long are kept in the cache folder for this file, library and device. A probe that fails answers that
nothing may be computed together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import TypeVar

from isthmus.errors import DeviceFailed, ModelUnsupported
from isthmus.model.files.weights import Weights
from isthmus.model.passes.forward import Scores
from isthmus.model.passes.graph_builder import GraphBuilder
from isthmus.model.passes.joining import Joining
from isthmus.model.probes.attention_probe import Kernel, try_joining
from isthmus.model.probes.cut_probe import adapter_cuts_exactly, cuts_exactly
from isthmus.model.probes.pack_probe import packs_exactly
from isthmus.model.probes.width_probe import matrices, widths_of
from isthmus.model.probes.widths import MAX_ON_HOST, MAX_ROWS, Width, Widths
from isthmus.model.shape.hparams import Heads
from isthmus.native._ggml import GgmlType

_log = logging.getLogger("isthmus")
_Answer = TypeVar("_Answer")
_NONE = "none"
_SAID = ("no", "yes")
"""Answers of probes that are kept, by their truth."""
Recall = Callable[[str, Callable[[], str], Callable[[str], bool]], str]
"""(question, answer it, is this an answer) -> the answer that is kept, or a new one."""


def ask_anew(_question: str, answer: Callable[[], str], _accept: Callable[[str], bool]) -> str:
    """Keeps nothing."""
    return answer()


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
        recall: Recall = ask_anew,
    ) -> None:
        self._device, self._backend = builder.device, builder.backend
        self._architecture = builder.architecture
        self._kv_type = kv_type
        self._weights, self._adapters = weights, adapters
        self._recall = recall
        self._known: dict[str, bool] = {}

    @cached_property
    def widths(self) -> Widths:
        """The classes of decode steps: see `widths.py`."""
        return Widths() if self._chooses_by_address else self._classes("steps", with_routers=False)

    @cached_property
    def prompt_widths(self) -> Widths:
        """The classes of prompts' columns, which routers are multiplied with as well.

        Adapters are multiplied with prompts in another way than with steps, of which nobody asks:
        with one, each prompt goes alone.
        """
        if self._adapters or self._chooses_by_address:
            return Widths()
        has_routers = bool(self._weights.routers)
        return self._classes("prompts", with_routers=True) if has_routers else self.widths

    @property
    def _chooses_by_address(self) -> bool:
        """Whether the choice of experts may have other bits in a pass of another shape.

        ggml's cards choose by one kernel if no result overlaps what that kernel reads, and by
        several otherwise. Which it is depends on where the graph's memory was found, so a probe of
        products cannot tell.
        """
        return bool(self._weights.routers) and self._device.has_own_memory

    @cached_property
    def joining(self) -> Joining | None:
        """How sessions may share a kernel of attention in passes of several; None: they may not."""
        if not self._device.joins_sequences:
            return None
        if self._computes_nothing:
            return Joining()
        text = self._answer("joining", lambda: str(self._joining() or _NONE), _is_joining)
        return Joining.try_parse(text or _NONE)

    @property
    def batching(self) -> bool:
        """Whether a decode step in any batch has the bits of a step alone."""
        return self.widths == Widths((Width(1, self._most),))

    @property
    def cuts(self) -> bool:
        """Whether a prompt has the same bits in any chunks of 2 to 63 tokens."""
        return self.batching and self._try_out("cuts", self._cuts)

    @property
    def packing(self) -> bool:
        """Whether a prompt in one pass with any others has the bits of one alone."""
        return self.batching and self._try_out("packs", self._packs)

    @property
    def _computes_nothing(self) -> bool:
        """Whether there are no bits that could be others."""
        return self._device.sharing == "none"

    @property
    def _most(self) -> int:
        return MAX_ROWS if self._device.has_own_memory else MAX_ON_HOST

    def _try_out(self, question: str, probe: Callable[[], bool]) -> bool:
        """What a probe says. It is kept for the file, since agents of other models wait while it
        runs; but not if it depends on adapters, which are files of their own."""
        if question not in self._known:
            run = partial(self._device.compute_thread.run, probe)
            self._known[question] = run() if self._adapters else self._kept(question, run)
        return self._known[question]

    def _kept(self, question: str, probe: Callable[[], bool]) -> bool:
        try:
            text = self._recall(question, lambda: _SAID[probe()], lambda it: it in _SAID)
        except OSError:  # the file is gone, and its weights are mapped
            return probe()
        return text == _SAID[True]

    def _answer(
        self, question: str, ask: Callable[[], str], accept: Callable[[str], bool]
    ) -> str | None:
        """An answer that is kept, or what a probe says now; None if the probe fails."""
        run = self._device.compute_thread.run
        try:
            return self._recall(question, lambda: run(ask), accept)
        except (DeviceFailed, ModelUnsupported, OSError) as error:
            _log.warning("agents are computed one by one, since a probe failed: %s", error)
            return None

    def _classes(self, question: str, *, with_routers: bool) -> Widths:
        if self._device.everywhere is None:
            return Widths()
        most = self._most
        if self._computes_nothing:
            return Widths((Width(1, most),))
        n_used = self._architecture.hparams.n_expert_used
        asked = matrices(self._weights, n_used, with_routers=with_routers)
        text = self._answer(
            question,
            lambda: str(widths_of(self._device, self._backend, asked, most)),
            lambda text: Widths.try_parse(text) is not None,
        )
        widths = Widths.try_parse(text or "") or Widths()
        return self._with_adapters(widths, most) if self._adapters else widths

    def _with_adapters(self, widths: Widths, most: int) -> Widths:
        """An adapter's matrices are multiplied as `Pass.separately` has a batch do it."""
        n_used = self._architecture.hparams.n_expert_used
        asked = [matrices(it, n_used, with_vectors=True, apart=True) for it in self._adapters]
        text = self._answer_anew(
            lambda: str(widths_of(self._device, self._backend, chain(*asked), most))
        )
        return widths.common(Widths.try_parse(text or "") or Widths())

    def _answer_anew(self, ask: Callable[[], str]) -> str | None:
        try:
            return self._device.compute_thread.run(ask)
        except (DeviceFailed, ModelUnsupported) as error:
            _log.warning("agents are computed one by one, since a probe failed: %s", error)
            return None

    def _joining(self) -> Joining | None:
        n_ctx = self._architecture.hparams.n_ctx_train
        return try_joining(self._device, self._backend, self._kernels(), n_ctx, self._most)

    def _kernels(self) -> list[Kernel]:
        """One kernel of attention of each kind that the architecture has."""
        kinds = {
            (_shape(it.heads), it.scale, it.soft_cap, it.sinks > 0): replace(it, windowed=False)
            for it in _scores_in(self._architecture)
        }
        return [Kernel(self._kv_type, kinds[kind]) for kind in sorted(kinds)]

    def _cuts(self) -> bool:
        device, backend = self._device, self._backend
        return cuts_exactly(device, backend, self._weights, self._kernels()) and all(
            adapter_cuts_exactly(device, backend, it) for it in self._adapters
        )

    def _packs(self) -> bool:
        device, backend, n_vocab = self._device, self._backend, self._architecture.n_vocab
        return packs_exactly(device, backend, self._weights, n_vocab) and all(
            packs_exactly(device, backend, it, n_vocab, with_vectors=True) for it in self._adapters
        )


def _is_joining(text: str) -> bool:
    return text == _NONE or Joining.try_parse(text) is not None


def _shape(heads: Heads) -> tuple[int, ...]:
    """What decides which kernel computes attention of such heads."""
    return heads.n, heads.n_kv, heads.dim, heads.value_dim, heads.keys == heads.values


def _scores_in(part: object) -> Iterator[Scores]:
    """How the attention of each layer of an architecture weighs."""
    if isinstance(part, Scores):
        yield part
    elif isinstance(part, tuple):
        for it in part:
            yield from _scores_in(it)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _scores_in(getattr(part, field.name))
