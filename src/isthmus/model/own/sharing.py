"""A model's part that says whose tokens can share a pass, and in which class it computes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property

from isthmus.config import ModelSettings
from isthmus.device.base import Device
from isthmus.file_hash import FileHashes
from isthmus.model.files.gguf import GgufFile
from isthmus.model.own.executor import OwnExecutor
from isthmus.model.passes.joining import Joining
from isthmus.model.probes.exactness import Exactness
from isthmus.model.probes.pack_probe import MAX_PACKED
from isthmus.model.probes.widths import MAX_ON_HOST, MAX_ROWS, Width, Widths

_PROBES_VERSION = 2
"""Of what probes ask: another one has them ask anew."""


class SharingModel:
    """What a model answers before several agents are computed together."""

    device: Device
    file: GgufFile
    settings: ModelSettings
    executor: OwnExecutor
    _exactness: Exactness
    _hashes: FileHashes

    @property
    def widths(self) -> Widths:
        """The classes of width that it has here, which are tried out when this is first asked."""
        return self._exactness.widths

    @cached_property
    def width(self) -> Width:
        """The class that all its steps are in: see `ModelSettings.width`."""
        width = self.widths.named(self.settings.width)
        alone = self.settings.width == "alone" or width == self.widths.alone
        width = self.widths.reaching(width) if alone else width
        joining = None if alone else self._exactness.joining
        self._settle(width, joining, single_steps=1 in width and joining is None)
        return width

    @property
    def exact_cuts(self) -> bool:
        """Whether a prompt has the same bits in any chunks of 2 to 63 tokens: tried out."""
        return self._exactness.cuts

    @property
    def exact_packing(self) -> bool:
        """Whether a prompt in one pass with others has the bits of one alone here: tried out."""
        return self._exactness.packing

    @property
    def width_name(self) -> str:
        """What its bits depend on: its class, such as 9-128; empty if they are those of a step by
        itself, or of no class since it is not exact."""
        return str(self.width) if self.executor.always_batches else ""

    @cached_property
    def rows_at_once(self) -> int:
        """The most tokens that one step takes, of all sessions together: see `ModelSettings.exact`.

        Tried out when this is first asked.
        """
        if not self.executor.can_batch:
            return 1
        if self.settings.exact:
            return self.width.most
        return MAX_ROWS if self.device.joins_sequences and self._has_usual_cache else MAX_ON_HOST

    @property
    def batches(self) -> bool:
        """Whether decode steps of several sessions run as one: see `ModelSettings.exact`."""
        return self.rows_at_once > 1

    @property
    def packs(self) -> bool:
        """Whether prompts of several sessions run as one pass, of some lengths at least."""
        widest = max(self._exactness.prompt_widths.classes, key=lambda it: it.most - it.least)
        return self.packing(widest.most - 1) is not None

    def packing(self, n_tokens: int) -> Width | None:
        """The class of a prompt: those of one class can be one pass, which has as many tokens.

        None if such a prompt is computed alone.
        """
        if not self.executor.can_batch or n_tokens < 2:
            return None
        if not self.settings.exact or self._exactness.packing:
            return Width(2, MAX_PACKED) if n_tokens < MAX_PACKED else None
        return self._exactness.prompt_widths.of(n_tokens)

    @property
    def prompts_at_once(self) -> int:
        """The most prompts that one pass takes: behind the last attention, each is one row."""
        if not self.settings.exact or self._exactness.packing:
            return MAX_ON_HOST
        width = self._exactness.prompt_widths.of(self.executor.builder.n_outputs)
        return min(MAX_ON_HOST, width.most) if width else 1

    def _take_class(self) -> None:
        """Takes the class now where steps depend on it, or where it is quickly found."""
        settings = self.settings
        if not settings.exact:
            joins = self.device.joins_sequences and self._has_usual_cache
            joining = Joining(vector=False) if joins else None
            self._settle(Width(1, MAX_ROWS), joining, single_steps=True)
        elif settings.width != "alone" or self.device.has_own_memory:
            _ = self.width

    def _settle(self, width: Width, joining: Joining | None, *, single_steps: bool) -> None:
        self.device.compute_thread.run(
            lambda: self.executor.use(width, joining, single_steps=single_steps)
        )

    @property
    def _has_usual_cache(self) -> bool:
        """Whether attention's result can be placed: others may add a conversion after it."""
        return self.settings.kv_type == "f16"

    def _recall(
        self, question: str, answer: Callable[[], str], accept: Callable[[str], bool]
    ) -> str:
        """The answer of a probe, as it is kept for this file, library and device."""
        device, settings = self.device, self.settings
        library = device.library.build_sha256(self._hashes)
        about = (
            *(_PROBES_VERSION, library, device.name, device.info.description, device.info.driver),
            *(device.sharing, device.settings.n_threads, settings.kv_type, settings.repack),
            settings.deterministic,
        )
        key = hashlib.sha256(repr(about).encode()).hexdigest()[:32]
        return self._hashes.recall(self.file.files, f"{question}-{key}", lambda _: answer(), accept)
