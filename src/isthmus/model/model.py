"""A model: a GGUF file, its tokenizer and chat template, and whatever runs it.

There are two ways to run one. An `OwnModel` computes graphs that Isthmus writes down, one short
file for each architecture: agents share a pass, on every device. An `AdoptedModel` has libllama
build and run the graph, for every architecture that libllama knows: each agent by itself, on the
processor. `open_model` chooses. Whoever has a model asks it what it can do, and not which it is.
"""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import cast
from weakref import WeakSet

from isthmus.config import ModelSettings
from isthmus.counters import Counters
from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.errors import (
    ModelBusy,
    ModelClosed,
    ModelUnsupported,
    SettingsError,
)
from isthmus.file_hash import FileHashes
from isthmus.memory import Region
from isthmus.model.embedding import EmbeddingModel
from isthmus.model.executor import Executor
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.header import metadata_sha256
from isthmus.model.files.weights import Weights
from isthmus.model.layout import Layout
from isthmus.model.media.model import MediaModel
from isthmus.model.own.adapter import Adaptation, Adapter
from isthmus.model.probes.widths import Width, Widths
from isthmus.model.sampling.grammar import Grammars
from isthmus.model.session import Session, SessionOwner
from isthmus.model.shape.hparams import Shape
from isthmus.model.spans import NO_TOKEN, Span, are_spans_of
from isthmus.model.taking import EmbeddingsTaker
from isthmus.model.text import TextModel
from isthmus.model.tokens.tokenizer import Tokenizer
from isthmus.native.owned import Owned
from isthmus.printable import printable
from isthmus.shards import model_name
from isthmus.units import GuestPtr, HostAddr


class Model(TextModel, EmbeddingModel, EmbeddingsTaker, MediaModel, SessionOwner):
    """An opened model. Shared by all actors that were given it; safe to use from several threads.

    Owns the mapped weights, the tokenizer and the executor. Sessions must be closed before it.
    """

    hparams: Shape
    weights: Weights
    executor: Executor
    base: Model | None = None
    """The model whose weights it computes with; None where they are its own."""

    def __init__(
        self,
        device: Device,
        file: GgufFile,
        settings: ModelSettings,
        hashes: FileHashes | None = None,
        adaptation: Adaptation | None = None,
    ) -> None:
        """`hashes` keeps those of files from process to process. `adaptation`: adapters that are
        added."""
        super().__init__()
        self.adaptation = adaptation or Adaptation()
        self._hashes = hashes or FileHashes()
        self._lock = threading.Lock()
        """Held while a session is added, or the model is found to have none and closed."""
        self._sessions: WeakSet[Session] = WeakSet()
        self._closed = False
        self.grammars = Grammars(self)
        """Of constrained decoding, over this model's vocabulary."""
        self.device = device
        self.path: Path = file.path
        self.settings = settings
        self.file = file
        self._label = ""
        with contextlib.ExitStack() as stack:
            self._open(stack)
            self._open_projector(stack)
            self._stack = stack.pop_all()

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.hparams.architecture}, {self.n_vocab} tokens>"

    @property
    def name(self) -> str:
        """What the file calls itself, or the file's name; and those of its adapters' files."""
        own = self._text("general.name") or printable(model_name(self.path))
        return "+".join([own, *(it.adapter.path.stem for it in self.adaptation.applied)])

    @property
    def label(self) -> str:
        """Its name in metrics: what it was loaded as, otherwise `name`."""
        return self._label or self.name

    def call_it(self, label: str) -> None:
        """Sets `label`, before it computes anything."""
        self._label = label

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the GGUF file, or of its shards as `FileHashes.sha256` has it.

        The files are read when this is first asked for. ModelFileError if one of them was replaced
        since it was opened.
        """
        self.file.require_unchanged()
        return self._hashes.sha256(self.file.files)

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

    # ------------------------------------------------------------------ what it can do

    @property
    @abstractmethod
    def graph(self) -> str:
        """What writes its graphs down, as a snapshot says it: empty for Isthmus, else the
        library and its versions, on which the bytes of sessions depend."""

    @property
    @abstractmethod
    def lacks(self) -> tuple[str, ...]:
        """Sentences about what it cannot do and other models can."""

    @property
    @abstractmethod
    def truncates(self) -> bool:
        """Whether a session can take back its last tokens."""

    @property
    @abstractmethod
    def width(self) -> Width:
        """The class that all its steps are in: see `ModelSettings.width`."""

    @property
    @abstractmethod
    def widths(self) -> Widths:
        """The classes of width that it has here, which are tried out when this is first asked."""

    @property
    @abstractmethod
    def width_name(self) -> str:
        """What its bits depend on: its class, such as 9-128; empty if they are those of a step by
        itself, or of no class since it is not exact."""

    @property
    @abstractmethod
    def exact_cuts(self) -> bool:
        """Whether a prompt has the same bits in any chunks of 2 to 63 tokens: tried out."""

    @property
    @abstractmethod
    def rows_at_once(self) -> int:
        """The most tokens that one step takes, of all sessions together: see `ModelSettings.exact`.

        Tried out when this is first asked.
        """

    @property
    def batches(self) -> bool:
        """Whether decode steps of several sessions run as one: see `ModelSettings.exact`."""
        return self.rows_at_once > 1

    @property
    @abstractmethod
    def packs(self) -> bool:
        """Whether prompts of several sessions run as one pass, of some lengths at least."""

    @abstractmethod
    def packing(self, n_tokens: int) -> Width | None:
        """The class of a prompt: those of one class can be one pass, which has as many tokens.

        None if such a prompt is computed alone.
        """

    @property
    @abstractmethod
    def prompts_at_once(self) -> int:
        """The most prompts that one pass takes: behind the last attention, each is one row."""

    # ------------------------------------------------------------------ adapters

    @abstractmethod
    def load_adapter(self, path: Path) -> Adapter:
        """Opens a LoRA adapter for this model, which frees it when it is closed.

        Its matrices are mapped or copied as the model's. Raises ModelNotFound, ModelFileError,
        ModelUnsupported.
        """

    @abstractmethod
    def adapted(self, adapters: Mapping[Adapter, float]) -> Model:
        """A model over the same weights, to whose products adapters add, each by its scale.

        Its sessions, batches and graphs are its own. Close it before this one. Raises
        SettingsError, for adapters of another model as well.
        """

    # ------------------------------------------------------------------ sessions

    @property
    def generates(self) -> bool:
        """Whether it makes text, in sessions."""
        return not self.hparams.encoder

    def layout(self, n_ctx: int) -> Layout:
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
        return self._layout(n_ctx)

    def open_session(
        self, region: Region, binding: Binding, ptr: GuestPtr, layout: Layout
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
        layout: Layout,
        tokens: Sequence[int],
        *,
        has_logits: bool,
        spans: Sequence[Span] = (),
    ) -> Session:
        """Opens a session whose bytes are those of one that held `tokens`; nothing is cleared.

        `spans`: which of them came of embeddings. SettingsError where `layout` is none of this
        model's or the spans are not those of the tokens, TokenError, ContextFull, Overloaded.
        """
        self._require_open()
        self._require_layout(layout)
        self.require_tokens([it for it in tokens if it != NO_TOKEN] if spans else tokens)
        if spans and not are_spans_of(spans, tokens, layout.n_ctx):
            raise SettingsError("the session's embeddings are not where its tokens leave room")
        session = self._session(region, binding, ptr, layout)
        try:
            session.require_room(len(tokens))
            binding.fill(session.rows(len(tokens)))
        except BaseException:
            session.close()
            raise
        session.tokens.extend(tokens)
        session.spans.extend(spans)
        session.has_logits = has_logits
        return session

    def prefill(self, session: Session, tokens: Sequence[int]) -> None:
        """As `Executor.prefill`; TokenError for an id outside the vocabulary."""
        self.require_tokens(tokens)
        self.executor.prefill(session, tokens)

    def decode(self, session: Session, token: int) -> None:
        """Appends one token to a session; TokenError for an id outside the vocabulary."""
        self.require_token(token)
        self.executor.decode(session, token)

    @staticmethod
    def of(session: Session) -> Model:
        """The model that opened a session."""
        return cast("Model", session.owner)  # nothing else opens sessions

    @property
    def finds_top(self) -> bool:
        return self.executor.finds_top

    def forget(self, session: Session) -> None:
        self.executor.forget(session)

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
            self._require_unused()
            self._closed = True
        self._stack.close()

    # ------------------------------------------------------------------ parts

    @abstractmethod
    def _open(self, stack: contextlib.ExitStack) -> None:
        """Opens what the file has; `stack` closes it."""

    @abstractmethod
    def _layout(self, n_ctx: int) -> Layout:
        """As `layout`, of what was checked."""

    @abstractmethod
    def _require_layout(self, layout: Layout) -> None:
        """SettingsError unless sessions of this model can have the layout."""

    @abstractmethod
    def _new_session(
        self, region: Region, binding: Binding, ptr: GuestPtr, layout: Layout
    ) -> Session:
        """A session without tokens, over bytes as they are."""

    def _require_unused(self) -> None:
        """ModelBusy while others compute with what is its own."""

    def _session(self, region: Region, binding: Binding, ptr: GuestPtr, layout: Layout) -> Session:
        with self._settled(binding, region.address(ptr, layout.nbytes), layout), self._lock:
            self._require_open()  # it may have been closed while the bytes were cleared
            session = self._new_session(region, binding, ptr, layout)
            self._sessions.add(session)
        return session

    def _settled(
        self, _binding: Binding, _base: HostAddr, _layout: Layout
    ) -> AbstractContextManager[None]:
        """Has what a session at `_base` keeps live where the device reads it fastest, unless
        opening the session fails inside. Raises Overloaded."""
        return nullcontext()

    def _require_open(self) -> None:
        if self._closed:
            raise ModelClosed(f"the model {self.name} is closed")

    def _require_intact(self) -> None:
        """ModelFileError if weights were lost, of the model's file or an adapter's."""
        self.weights.require_intact()
        for it in self.adaptation.applied:
            it.adapter.weights.require_intact()

    def _new_weights(self, stack: contextlib.ExitStack) -> Weights:
        weights = Weights(self.device, self.file)
        stack.callback(weights.close)
        return weights

    def _new_tokenizer(
        self, stack: contextlib.ExitStack, loaded: Owned | None = None
    ) -> Tokenizer | None:
        """`loaded`: libllama's model of the file, if there is one already."""
        tokenizer = Tokenizer.try_open(self.device.library, self.file, loaded)
        if tokenizer:
            stack.callback(tokenizer.close)
        return tokenizer

    def _text(self, key: str) -> str:
        value = self.file.metadata.get(key, "")
        return value if isinstance(value, str) else ""
