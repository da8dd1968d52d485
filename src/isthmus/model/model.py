"""A model: a GGUF file mapped, its tokenizer and chat template, and whatever runs it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from weakref import WeakSet

import numpy as np

from isthmus.config import ModelSettings
from isthmus.counters import Counters
from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.errors import (
    ModelBusy,
    ModelClosed,
    ModelUnsupported,
    SettingsError,
    TokenError,
)
from isthmus.file_hash import FileHashes
from isthmus.memory import Region
from isthmus.model.adapter import Adaptation, Adapter
from isthmus.model.architectures import hparams_of, load_architecture
from isthmus.model.embedder import Embedder
from isthmus.model.embedding import EmbeddingModel
from isthmus.model.exactness import Exactness, ask_anew
from isthmus.model.executor import Executor
from isthmus.model.gguf import GgufFile, metadata_sha256
from isthmus.model.grammar import Grammars
from isthmus.model.hparams import Hparams
from isthmus.model.kv_cache import KV_ALIGNMENT, KV_TYPES, SPAN_ALIGNMENT, KvLayout
from isthmus.model.opening import open_gguf
from isthmus.model.session import Session
from isthmus.model.sharing import SharingModel
from isthmus.model.text import TextModel
from isthmus.model.tokenizer import Tokenizer
from isthmus.model.weights import Weights
from isthmus.units import GuestPtr, HostAddr


class Model(TextModel, EmbeddingModel, SharingModel):
    """An opened model. Shared by all actors that were given it; safe to use from several threads.

    Owns the mapped weights, the tokenizer and the executor. Sessions must be closed before it.
    """

    def __init__(
        self,
        device: Device,
        path: Path,
        settings: ModelSettings,
        hashes: FileHashes | None = None,
        *,
        base: Model | None = None,
        adaptation: Adaptation | None = None,
    ) -> None:
        """`hashes` keeps those of files from process to process. With `base`, a model over its
        weights, changed by `adaptation`: see `adapted`."""
        super().__init__()
        self.base = base
        """The model whose weights it computes with; None where they are its own."""
        self.adaptation = adaptation or Adaptation()
        self._hashes = hashes or FileHashes()
        self._lock = threading.Lock()
        """Held while a session is added, or the model is found to have none and closed."""
        self._sessions: WeakSet[Session] = WeakSet()
        self._adapted: WeakSet[Model] = WeakSet()
        self._adapters: set[Adapter] = set()
        self._closed = False
        self.grammars = Grammars(self)
        """Of constrained decoding, over this model's vocabulary."""
        self.device = device
        self.path = path
        self.settings = settings
        self.file: GgufFile = base.file if base else open_gguf(device.library, path, self._hashes)
        n_adapters = len(self.adaptation.applied)
        self.hparams: Hparams = replace(hparams_of(self.file), n_adapters=n_adapters)
        self._require_kv_type()
        with contextlib.ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.hparams.architecture}, {self.n_vocab} tokens>"

    @property
    def name(self) -> str:
        """What the file calls itself, or the file's name; and those of its adapters' files."""
        own = self._text("general.name") or self.path.stem
        return "+".join([own, *(it.adapter.path.stem for it in self.adaptation.applied)])

    @cached_property
    def weights_sha256(self) -> str:
        """Of the whole GGUF file, which is read when this is first asked for. ModelFileError where
        it was replaced since it was opened."""
        self.file.require_unchanged()
        return self._hashes.sha256(self.path)

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Of the metadata that makes the tokenizer and the chat template. Raises as
        `weights_sha256`."""
        self.file.require_unchanged()
        library = self.device.library
        return self._hashes.get(
            self.path, "tokenizer", lambda path: metadata_sha256(library, path, "tokenizer.")
        )

    @property
    def counters(self) -> Counters:
        """Counts of all its passes."""
        return Counters.total([self.executor.counters, self._embedder.counters])

    # ------------------------------------------------------------------ adapters

    def load_adapter(self, path: Path) -> Adapter:
        """Opens a LoRA adapter for this model, which frees it when it is closed.

        Its matrices are mapped or copied as the model's. Raises ModelNotFound, ModelFileError,
        ModelUnsupported.
        """
        self._require_open()
        if self.base is not None:
            return self.base.load_adapter(path)
        if not self.generates:
            raise ModelUnsupported(f"{self.name} makes embeddings and no text: it takes no adapter")
        adapter = Adapter(self.device, path, self.weights, self.hparams, self._hashes)
        self._stack.callback(adapter.close)
        self._adapters.add(adapter)
        return adapter

    def adapted(self, adapters: Mapping[Adapter, float]) -> Model:
        """A model over the same weights, to whose products adapters add, each by its scale.

        Its sessions, batches and graphs are its own. Close it before this one. Raises
        SettingsError, for adapters of another model as well.
        """
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
        model = Model(
            self.device,
            self.path,
            self.settings,
            self._hashes,
            base=self,
            adaptation=Adaptation(adapters),
        )
        self._adapted.add(model)
        return model

    # ------------------------------------------------------------------ sessions

    @property
    def generates(self) -> bool:
        """Whether it makes text, in sessions."""
        return not self.hparams.encoder

    def layout(self, n_ctx: int) -> KvLayout:
        """Where a session of at least `n_ctx` tokens keeps what.

        SettingsError out of range, ModelUnsupported where the model makes no text.
        """
        if not self.generates:
            raise ModelUnsupported(
                f"the model {self.name} makes embeddings and no text; it has no sessions: embed it"
            )
        if not 1 <= n_ctx <= self.hparams.n_ctx_train:
            raise SettingsError(
                f"n_ctx is {n_ctx}; {self.name} takes 1 to {self.hparams.n_ctx_train}"
            )
        return KvLayout.make(
            self.device.library,
            n_ctx=n_ctx,
            n_layer=self.hparams.n_layer,
            n_vocab=self.n_vocab,
            n_embd_kv=self.hparams.n_embd_kv,
            kv_type=self.settings.kv_type,
            kv_alignment=self.device.kv_alignment,
        )

    def open_session(
        self, region: Region, binding: Binding, ptr: GuestPtr, layout: KvLayout
    ) -> Session:
        """Opens a session in `layout.nbytes` of `region` at `ptr`, a multiple of 4,096.

        The bytes are cleared. `binding` is the device's view of the region. Overloaded if the
        device has no room for the KV cache.
        """
        self._require_open()
        binding.clear(region.address(ptr, layout.nbytes), layout.nbytes)
        return self._session(region, binding, ptr, layout)

    def resume_session(
        self,
        region: Region,
        binding: Binding,
        ptr: GuestPtr,
        layout: KvLayout,
        tokens: Sequence[int],
        *,
        has_logits: bool,
    ) -> Session:
        """Opens a session whose bytes are those of one that held `tokens`; nothing is cleared.

        SettingsError where `layout` is none of this model's, TokenError, ContextFull, Overloaded.
        """
        self._require_open()
        self._require_layout(layout)
        self.require_tokens(tokens)
        session = self._session(region, binding, ptr, layout)
        try:
            session.require_room(len(tokens))
            binding.fill(session.rows(len(tokens)))
        except BaseException:
            session.close()
            raise
        session.tokens.extend(tokens)
        session.has_logits = has_logits
        return session

    def _session(
        self, region: Region, binding: Binding, ptr: GuestPtr, layout: KvLayout
    ) -> Session:
        kv_base = HostAddr(region.address(ptr, layout.nbytes) + layout.kv_offset)
        binding.settle(kv_base, layout.kv_nbytes, layout.plane_nbytes)  # may close others' sessions
        try:
            with self._lock:
                self._require_open()  # it may have been closed while the bytes were cleared
                session = Session(self, region, binding, ptr, layout)
                self._sessions.add(session)
        except BaseException:
            binding.unsettle(kv_base)
            raise
        return session

    def _require_open(self) -> None:
        if self._closed:
            raise ModelClosed(f"the model {self.name} is closed")

    def _require_layout(self, layout: KvLayout) -> None:
        """A session's KV cache stays where it is, though another device would put it elsewhere."""
        wanted = self.layout(layout.n_ctx)
        gap = layout.kv_offset - 4 * layout.n_vocab
        if replace(layout, kv_offset=wanted.kv_offset) != wanted:
            raise SettingsError(f"the session's layout is not that of {self.name}")
        if not 0 <= gap < SPAN_ALIGNMENT or layout.kv_offset % KV_ALIGNMENT:
            raise SettingsError("the session's KV cache does not begin where one can")

    def prefill(self, session: Session, tokens: Sequence[int]) -> None:
        """As `Executor.prefill`; TokenError for an id outside the vocabulary."""
        self.require_tokens(tokens)
        self.executor.prefill(session, tokens)

    def decode(self, session: Session, token: int) -> None:
        """Appends one token to a session; TokenError for an id outside the vocabulary."""
        self.require_token(token)
        self.executor.decode(session, token)

    def require_token(self, token: int) -> None:
        """Raises TokenError for an id outside the vocabulary: kernels use it as an address."""
        if not 0 <= token < self.n_vocab:
            raise TokenError(f"token {token} is not in the vocabulary of {self.n_vocab}")

    def require_tokens(self, tokens: Sequence[int]) -> None:
        """As `require_token`, of all tokens; the error names the first bad one."""
        ids = np.asarray(tokens)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.n_vocab:
            for token in tokens:
                self.require_token(token)

    @property
    def closed(self) -> bool:
        """Whether its memory is given back."""
        return self._closed

    def close(self) -> None:
        """Frees everything; a second call does nothing. ModelBusy while sessions of it are open."""
        with self._lock:
            n_open = sum(not session.closed for session in self._sessions)
            if n_open:
                raise ModelBusy(
                    f"{n_open} sessions of the model {self.name} are open: close the actors that "
                    "have them first"
                )
            if any(not it._closed for it in self._adapted):
                raise ModelBusy(f"models with adapters of {self.name} are open: close them first")
            self._closed = True
        self._stack.close()

    def _require_intact(self) -> None:
        """ModelFileError if weights were lost, of the model's file or an adapter's."""
        self.weights.require_intact()
        for it in self.adaptation.applied:
            it.adapter.weights.require_intact()

    def _open(self, stack: contextlib.ExitStack) -> None:
        """Opens what the file has; `stack` closes it."""
        device, settings, base = self.device, self.settings, self.base
        self.weights: Weights = base.weights if base else self._own_weights(stack)
        repack = settings.repack and base is None  # otherwise they are
        architecture = load_architecture(
            self.file, self.hparams, self.weights, repack, self.adaptation
        )
        self.n_vocab: int = architecture.n_vocab
        self._use_tokenizer(base._tokenizer if base else self._own_tokenizer(stack))
        self.file.require_unchanged()
        executor = self.executor = Executor(device, architecture, settings, self._require_intact)
        stack.callback(executor.close)
        adapters = [it.adapter.weights for it in self.adaptation.applied]
        builder, recall = executor.builder, self._recall if device.sharing != "none" else ask_anew
        self._exactness = Exactness(builder, executor.kv_type, self.weights, adapters, recall)
        self._embedder = Embedder(device, architecture, settings, self.name, self._require_intact)
        stack.callback(self._embedder.close)
        if self.generates:
            self._take_class()

    def _own_weights(self, stack: contextlib.ExitStack) -> Weights:
        weights = Weights(self.device, self.file)
        stack.callback(weights.close)
        return weights

    def _own_tokenizer(self, stack: contextlib.ExitStack) -> Tokenizer | None:
        tokenizer = Tokenizer.try_open(self.device.library, self.file)
        if tokenizer:
            stack.callback(tokenizer.close)
        return tokenizer

    def _require_kv_type(self) -> None:
        kv_type, head_dim = self.settings.kv_type, self.hparams.head_dim
        block = self.device.library.ggml_blck_size(KV_TYPES[kv_type])
        if self.generates and head_dim % block:
            raise ModelUnsupported(
                f"a KV cache of type {kv_type} needs a head size that is a multiple of {block}; "
                f"{self.path} has {head_dim}: use f16"
            )

    def _text(self, key: str) -> str:
        value = self.file.metadata.get(key, "")
        return value if isinstance(value, str) else ""
