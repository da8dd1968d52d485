"""Makes embeddings: each text is a pass of its own, so its bits do not depend on any other."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from isthmus.counters import Counters
from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.errors import ContextFull, ModelUnsupported, SettingsError, TokenError
from isthmus.model.jobs import finish
from isthmus.model.media.medium import Part
from isthmus.model.shape.hparams import Pooling, Shape
from isthmus.units import HostAddr

Project = Callable[[Part, HostAddr], Generator[None, None, None]]
"""Jobs that leave the rows of a medium's part at an address."""
_UNDER_WAY = (
    "an embedding cannot begin while another one is under way: wait until is_embedding is false"
)
_MAX_TOKENS = 32_768
_MAX_CAUSAL_TOKENS = 4096
"""Of a decoder, whose mask grows with the square of them."""


class Embedder(ABC):
    """See the module. One pass is under way at a time."""

    def __init__(self, device: Device, shape: Shape, n_vocab: int, name: str) -> None:
        """`name` is the model's, for errors."""
        self._device = device
        self._shape = shape
        self._n_vocab = n_vocab
        self._name = name
        self._lock = threading.Lock()
        """Held while a pass is under way: passes share memory."""
        self.counters = Counters()

    def shape(self, n_tokens: int) -> tuple[int, int]:
        """See `Model.embedding_shape`. Raises ModelUnsupported, SettingsError for no tokens, and
        ContextFull for too many."""
        h = self._shape
        most = min(h.n_ctx_train, _MAX_TOKENS if h.encoder else _MAX_CAUSAL_TOKENS)
        if h.pooling is None:
            raise ModelUnsupported(
                f"the model {self._name} makes no embeddings: give an encoder such as bert, or a "
                f"file that says {h.architecture}.pooling_type"
            )
        if n_tokens < 1:
            raise SettingsError("there are no tokens to embed")
        if n_tokens > most:
            raise ContextFull(
                f"the text has {n_tokens} tokens; {self._name} embeds at most {most} at once: cut "
                "it into parts"
            )
        return (n_tokens if h.pooling is Pooling.NONE else 1), h.n_pooled

    @property
    def is_embedding(self) -> bool:
        """Whether a pass is under way, so that `jobs` has to wait."""
        return self._lock.locked()

    def jobs(
        self, tokens: Sequence[int], binding: Binding, address: HostAddr, normalised: bool
    ) -> Generator[None, None, None]:
        """See `Model.embedding_jobs`; for tokens that are `checked`. Raises RuntimeError if another
        text is under way."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(_UNDER_WAY)
        try:
            yield from self._into(tokens, binding, address, normalised)
        finally:
            self._lock.release()

    def media_jobs(
        self, parts: Sequence[Part], project: Project, address: HostAddr, normalised: bool
    ) -> Generator[None, None, None]:
        """See `Model.media_embedding_jobs`; for parts that are checked. Raises RuntimeError if
        another text is under way."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(_UNDER_WAY)
        try:
            yield from self._of_parts(parts, project, address, normalised)
        finally:
            self._lock.release()

    def require_media(self) -> None:
        """ModelUnsupported unless it takes pictures and sounds."""
        raise ModelUnsupported(
            f"the graph of {self._name} makes embeddings of text alone: load the model with "
            "graph='adopted' (--graph adopted) and its projector (--mmproj)"
        )

    def _of_parts(
        self, parts: Sequence[Part], project: Project, address: HostAddr, normalised: bool
    ) -> Generator[None, None, None]:
        """Jobs that compute the embedding of parts and leave it at `address`."""
        raise AssertionError("require_media comes first")

    def into(
        self, tokens: Sequence[int], binding: Binding, address: HostAddr, normalised: bool
    ) -> None:
        """See `Model.embed_into`; for tokens that are `checked`."""
        with self._locked():
            finish(self._device.compute_thread, self._into(tokens, binding, address, normalised))

    def arrays(
        self, texts: Sequence[Sequence[int]], normalised: bool
    ) -> list[npt.NDArray[np.float32]]:
        """See `Model.embed`."""
        shapes = [self.checked(tokens) for tokens in texts]
        if not texts:
            return []
        found = self._arrays(texts, shapes, normalised)
        pooled = self._shape.pooling is not Pooling.NONE
        return [it[0] for it in found] if pooled else found

    def checked(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Their embedding's shape, once every id is known to be in the vocabulary. Raises
        TokenError if one is not."""
        shape, n_vocab = self.shape(len(tokens)), self._n_vocab
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < n_vocab:
                raise TokenError(f"token {token} is not in the vocabulary of {n_vocab}")
        return shape

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Waits for the pass that is under way, in the calling thread."""
        if not self._lock.acquire(blocking=False):
            if self._device.compute_thread.is_current:
                raise RuntimeError(
                    "an embedding was asked for on the device's thread while another one is under "
                    "way there: compute the rest of its jobs, or close it, first"
                )
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    @abstractmethod
    def _into(
        self, tokens: Sequence[int], binding: Binding, address: HostAddr, normalised: bool
    ) -> Generator[None, None, None]:
        """Jobs that compute checked tokens' embedding and leave it at `address`.

        On an error the bytes at that place are undefined.
        """

    @abstractmethod
    def _arrays(
        self, texts: Sequence[Sequence[int]], shapes: Sequence[tuple[int, int]], normalised: bool
    ) -> list[npt.NDArray[np.float32]]:
        """The embedding of each of several texts that were checked: f32 of its shape."""

    @abstractmethod
    def close(self) -> None:
        """Frees everything."""
