"""Models whose graph libllama writes down and computes: see the package."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn, cast

from isthmus.device.buffer import Binding
from isthmus.errors import DeviceUnavailable, ModelUnsupported, SettingsError
from isthmus.memory import Region
from isthmus.model.adopted.context import Contexts
from isthmus.model.adopted.embedder import AdoptedEmbedder
from isthmus.model.adopted.executor import AdoptedExecutor
from isthmus.model.adopted.layout import AdoptedLayout
from isthmus.model.adopted.library_model import LibraryModel
from isthmus.model.adopted.session import AdoptedSession
from isthmus.model.adopted.shape import AdoptedShape, shape_of_file
from isthmus.model.files.opening import require_embeddings
from isthmus.model.layout import Layout
from isthmus.model.model import Model
from isthmus.model.own.adapter import Adapter
from isthmus.model.probes.widths import SINGLE, Width, Widths
from isthmus.units import GuestPtr


class AdoptedModel(Model):
    """See the module. Every pass is of one session, on the processor."""

    hparams: AdoptedShape
    executor: AdoptedExecutor
    contexts: Contexts
    """Opens contexts, and knows how they are laid out."""

    @property
    def graph(self) -> str:
        library = self.device.library
        return f"libllama {library.llama_version}, ggml {library.version}"

    @property
    def lacks(self) -> tuple[str, ...]:
        found = ["a device other than the cpu"]
        if self.generates:
            found += ["a pass with others: agents decode one after the other", "LoRA adapters"]
        if not self.truncates:
            found.append("taking tokens back: its sessions can only be emptied")
        return tuple(found)

    @property
    def truncates(self) -> bool:
        return not self._model.keeps_state

    @cached_property
    def row_width(self) -> int:
        if not self.generates:
            raise ModelUnsupported(f"{self.name} makes embeddings and no text: it takes none")
        require_embeddings(self.device.library, self.path, self._hashes)
        return self._model.row_width

    @property
    def has_axes(self) -> bool:
        return self._model.has_axes

    @property
    def width(self) -> Width:
        return SINGLE

    @property
    def widths(self) -> Widths:
        return Widths()

    @property
    def width_name(self) -> str:
        return ""

    @property
    def exact_cuts(self) -> bool:
        return False

    @property
    def rows_at_once(self) -> int:
        return 1

    @property
    def packs(self) -> bool:
        return False

    def packing(self, n_tokens: int) -> Width | None:
        return None

    @property
    def prompts_at_once(self) -> int:
        return 1

    def load_adapter(self, path: Path) -> Adapter:
        self._refuse_adapters()

    def adapted(self, adapters: Mapping[Adapter, float]) -> Model:
        self._refuse_adapters()

    def _require_intact(self) -> None:
        super()._require_intact()
        self._model.require_intact()

    def _refuse_adapters(self) -> NoReturn:
        self._require_open()
        raise ModelUnsupported(
            f"libllama computes the graph of {self.name}, to which no adapter is added here: merge "
            "the adapter into the model's file"
        )

    # ------------------------------------------------------------------ parts

    def _open(self, stack: contextlib.ExitStack) -> None:
        self._require_able()
        device, settings = self.device, self.settings
        self.weights = self._new_weights(stack)
        self._model = LibraryModel(device.library, self.file, settings)
        stack.callback(self._model.close)
        self.n_vocab = self._model.n_vocab
        self._use_tokenizer(self._new_tokenizer(stack, self._model))
        self.file.require_unchanged()
        self.contexts = Contexts(device, self._model, settings)
        self.hparams = shape_of_file(self.file, generates=self.contexts.has_memory)
        chunk, intact = settings.prefill_chunk, self._require_intact
        self.executor = AdoptedExecutor(device, self.contexts, chunk, intact)
        stack.callback(self.executor.close)
        self._embedder = AdoptedEmbedder(
            device, self._model, self.hparams, settings, self.name, intact
        )
        stack.callback(self._embedder.close)

    def _loaded(self, _stack: contextlib.ExitStack) -> LibraryModel:
        return self._model

    def _require_able(self) -> None:
        """What this way does not have, and the settings or the device ask for."""
        if not self.device.adopts:
            raise DeviceUnavailable(
                f"libllama's own graphs run over agents' memory on the cpu alone, and the device "
                f"is {self.device.name}: open the runtime with device='cpu' (--device cpu)"
            )
        if self.settings.deterministic:
            raise SettingsError(
                "deterministic is for graphs that Isthmus writes down (graph='own'): those of "
                "libllama have no such mode"
            )

    def _layout(self, n_ctx: int) -> AdoptedLayout:
        return self.contexts.layout(n_ctx)

    def _require_layout(self, layout: Layout) -> None:
        """A session's memories stay where they are, though this processor would have them
        elsewhere."""
        if not isinstance(layout, AdoptedLayout):
            raise SettingsError(f"the session's layout is of another kind than {self.name} has")
        wanted = cast("AdoptedLayout", self.layout(layout.n_ctx))
        if replace(layout, remainder=wanted.remainder) != wanted:
            raise SettingsError(
                f"the session's layout is not that of {self.name} with llama.cpp "
                f"{self.device.library.llama_version}: {layout} is not {wanted}"
            )
        self.contexts.require_remainder(layout.remainder)

    def _new_session(
        self, region: Region, binding: Binding, ptr: GuestPtr, layout: Layout
    ) -> AdoptedSession:
        kv, states = cast("AdoptedLayout", layout), self.contexts.states
        return AdoptedSession(self, region, binding, ptr, kv, states)
