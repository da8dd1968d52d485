"""Models whose graphs Isthmus writes down: see `architectures`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast
from weakref import WeakSet

from isthmus.config import MAX_CHECKPOINTS, ModelSettings
from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.errors import ModelBusy, ModelUnsupported, SettingsError
from isthmus.file_hash import FileHashes
from isthmus.memory import Region
from isthmus.model.adopted.library_model import LibraryModel
from isthmus.model.architectures import hparams_of, load_architecture
from isthmus.model.files.gguf import GgufFile
from isthmus.model.layout import Layout
from isthmus.model.model import Model
from isthmus.model.own.adapter import Adaptation, Adapter
from isthmus.model.own.embedder import OwnEmbedder
from isthmus.model.own.executor import OwnExecutor
from isthmus.model.own.kv_cache import KV_ALIGNMENT, KV_TYPES, SPAN_ALIGNMENT, KvLayout
from isthmus.model.own.session import OwnSession
from isthmus.model.own.sharing import SharingModel
from isthmus.model.own.stateful_session import StatefulSession
from isthmus.model.probes.exactness import Exactness, ask_anew
from isthmus.model.shape.hparams import Hparams
from isthmus.units import GuestPtr, HostAddr


class OwnModel(SharingModel, Model):
    """See the module."""

    hparams: Hparams
    executor: OwnExecutor
    base: OwnModel | None

    def __init__(
        self,
        device: Device,
        file: GgufFile,
        settings: ModelSettings,
        hashes: FileHashes | None = None,
        *,
        base: OwnModel | None = None,
        adaptation: Adaptation | None = None,
    ) -> None:
        """As `Model`. With `base`, a model over its weights, changed by `adaptation`: see
        `adapted`."""
        self.base = base
        self._adapted: WeakSet[Model] = WeakSet()
        self._adapters: set[Adapter] = set()
        super().__init__(device, file, settings, hashes, adaptation)

    @property
    def graph(self) -> str:
        return ""

    @property
    def lacks(self) -> tuple[str, ...]:
        if self.truncates:
            return ()
        return (
            "it takes no token back: a session can be truncated to 0 tokens, and to one of "
            f"{self.settings.checkpoints} checkpoints",
        )

    @property
    def truncates(self) -> bool:
        return not self.hparams.states

    @property
    def row_width(self) -> int:
        if not self.generates:
            raise ModelUnsupported(f"{self.name} makes embeddings and no text: it takes none")
        if self.file.metadata.get(f"{self.hparams.architecture}.n_deepstack_layers"):
            raise ModelUnsupported(
                f"{self.name} adds parts of a picture to several layers, as libllama's graph does: "
                "load it with graph='adopted' (--graph adopted)"
            )
        return self.hparams.n_embd

    @property
    def has_axes(self) -> bool:
        return False

    # ------------------------------------------------------------------ adapters

    def load_adapter(self, path: Path) -> Adapter:
        self._require_open()
        if self.base is not None:
            return self.base.load_adapter(path)
        if not self.generates:
            raise ModelUnsupported(f"{self.name} makes embeddings and no text: it takes no adapter")
        adapter = Adapter(self.device, path, self.weights, self.hparams, self._hashes)
        self._stack.callback(adapter.close)
        self._adapters.add(adapter)
        return adapter

    def adapted(self, adapters: Mapping[Adapter, float]) -> OwnModel:
        self._require_open()
        if self.base is not None:
            raise SettingsError(f"{self.name} has adapters: adapt its base, with all of them")
        wrong = [it for it in adapters if not isinstance(it, Adapter)]
        if wrong or not isinstance(adapters, Mapping):
            raise SettingsError(
                f"adapters are {adapters!r}: give a mapping of what load_adapter gave to scales"
            )
        foreign = [it.path.name for it in adapters if it not in self._adapters]
        if foreign:
            raise SettingsError(
                f"the adapter {foreign[0]} was not loaded for {self.name}: load it by its "
                "load_adapter"
            )
        model = OwnModel(
            self.device,
            self.file,
            self.settings,
            self._hashes,
            base=self,
            adaptation=Adaptation(adapters),
        )
        self._adapted.add(model)
        return model

    # ------------------------------------------------------------------ parts

    def _layout(self, n_ctx: int) -> KvLayout:
        return KvLayout.make(
            self.device.library,
            self.hparams,
            self.settings,
            n_ctx=n_ctx,
            n_vocab=self.n_vocab,
            kv_alignment=self.device.kv_alignment,
        )

    def _new_session(
        self, region: Region, binding: Binding, ptr: GuestPtr, layout: Layout
    ) -> OwnSession:
        kind = StatefulSession if self.hparams.states else OwnSession
        return kind(self, region, binding, ptr, cast("KvLayout", layout), self.hparams)

    @contextmanager
    def _settled(self, binding: Binding, base: HostAddr, layout: Layout) -> Iterator[None]:
        kv = cast("KvLayout", layout)
        places = [(kv.kv_offset, kv.plane_nbytes)]
        if kv.states_nbytes:
            places.append((kv.states_offset, (kv.states_nbytes,) * (1 + kv.n_checkpoints)))
        with contextlib.ExitStack() as stack:
            for offset, planes in places:
                at = HostAddr(base + offset)
                binding.settle(at, planes)  # may close others' sessions
                stack.callback(binding.unsettle, at)
            yield
            stack.pop_all()

    def _require_unused(self) -> None:
        if any(not it.closed for it in self._adapted):
            raise ModelBusy(f"models with adapters of {self.name} are open: close them first")

    def _require_layout(self, layout: Layout) -> None:
        """A session's KV cache stays where it is, though another device would put it elsewhere."""
        if not isinstance(layout, KvLayout):
            raise SettingsError(f"the session's layout is of another kind than {self.name} has")
        wanted = self._layout(min(layout.n_ctx, self.hparams.n_ctx_train))  # as it was asked for
        gap = layout.kv_offset - layout.words_offset - 8 * layout.n_words
        moved = replace(layout, kv_offset=wanted.kv_offset, n_checkpoints=wanted.n_checkpoints)
        if moved != wanted or not 0 <= layout.n_checkpoints <= MAX_CHECKPOINTS:
            raise SettingsError(f"the session's layout is not that of {self.name}")
        if not 0 <= gap < SPAN_ALIGNMENT or layout.kv_offset % KV_ALIGNMENT:
            raise SettingsError("the session's KV cache does not begin where one can")

    def _open(self, stack: contextlib.ExitStack) -> None:
        n_adapters = len(self.adaptation.applied)
        self.hparams = replace(hparams_of(self.file), n_adapters=n_adapters)
        self._require_kv_type()
        device, settings, base = self.device, self.settings, self.base
        self.weights = base.weights if base else self._new_weights(stack)
        repack = settings.repack and base is None  # otherwise they are
        architecture = load_architecture(
            self.file, self.hparams, self.weights, repack, self.adaptation
        )
        self.n_vocab = architecture.n_vocab
        self._use_tokenizer(base._tokenizer if base else self._new_tokenizer(stack))
        self.file.require_unchanged()
        executor = self.executor = OwnExecutor(device, architecture, settings, self._require_intact)
        stack.callback(executor.close)
        adapters = [it.adapter.weights for it in self.adaptation.applied]
        builder, recall = executor.builder, self._recall if device.sharing != "none" else ask_anew
        self._exactness = Exactness(builder, executor.kv_type, self.weights, adapters, recall)
        self._embedder = OwnEmbedder(
            device, architecture, settings, self.name, self._require_intact
        )
        stack.callback(self._embedder.close)
        if self.generates:
            self._take_class()

    def _open_projector(self, stack: contextlib.ExitStack) -> None:
        if self.base is not None:
            self._projector = self.base._projector
        else:
            super()._open_projector(stack)

    def _loaded(self, stack: contextlib.ExitStack) -> LibraryModel:
        """Its weights are mapped once more: the pages are the same, and nothing computes with
        them."""
        model = LibraryModel(self.device.library, self.file, self.settings)
        stack.callback(model.close)
        return model

    def _require_kv_type(self) -> None:
        kv_type = self.settings.kv_type
        block = self.device.library.ggml_blck_size(KV_TYPES[kv_type])
        dims = {dim for it in self.hparams.heads.values() for dim in (it.dim, it.value_dim)}
        wrong = sorted(dim for dim in dims if dim % block)
        if self.generates and wrong:
            raise ModelUnsupported(
                f"a KV cache of type {kv_type} needs a head size that is a multiple of {block}; "
                f"{self.path} has {wrong[0]}: use f16"
            )
