"""Has libllama make embeddings, in a context of its own memory: no token of a text is kept."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.config import ModelSettings
from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.errors import DeviceFailed, ModelUnsupported
from isthmus.model.adopted.feed import Feed, feed_of_rows
from isthmus.model.adopted.library_model import LibraryModel
from isthmus.model.adopted.parted import computed_in_jobs
from isthmus.model.embedder import Embedder, Project
from isthmus.model.jobs import Jobs, finish
from isthmus.model.media.medium import Part
from isthmus.model.own.kv_cache import KV_TYPES, N_CTX_MULTIPLE
from isthmus.model.shape.hparams import Pooling, Shape
from isthmus.model.spans import Embeddings
from isthmus.native.owned import Owned
from isthmus.native.placing import placing_of
from isthmus.units import HostAddr, align_up

_FLASH_ATTENTION_ON = 1


class AdoptedEmbedder(Embedder):
    """Owns the context, which grows with the longest text.

    The embedding is copied to where it is wanted: it is a few kilobytes.
    """

    def __init__(
        self,
        device: Device,
        model: LibraryModel,
        shape: Shape,
        settings: ModelSettings,
        name: str,
        require_intact: Callable[[], None],
    ) -> None:
        """`name` is the model's, for errors. `require_intact` is called around each pass, and
        raises if weights were lost."""
        super().__init__(device, shape, model.n_vocab, name)
        self._model = model
        self._settings = settings
        self._require_intact = require_intact
        self._context: Owned | None = None
        self._n_ctx = 0
        self._placing = placing_of(device.library)
        self._backends: list[int] = []
        self._jobs = Jobs()

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None

    def require_media(self) -> None:
        if self._shape.pooling is not Pooling.LAST or self._shape.encoder:
            raise ModelUnsupported(
                f"{self._name} makes embeddings of text alone: pictures and sounds are embedded by "
                "decoders whose file says pooling_type 3 (last)"
            )

    def _of_parts(
        self, parts: Sequence[Part], project: Project, address: HostAddr, normalised: bool
    ) -> Generator[None, None, None]:
        self._require_intact()
        n_rows = sum(it.n_rows for it in parts)
        context, first = self._emptied(n_rows), 0
        for part in parts:
            feed, after, rows = self._feed_of(part, first)
            if part.ids is None:
                yield from project(part, HostAddr(rows.ctypes.data))
            yield from self._fed(context, feed)
            first = after
        found = self._rows(context, n_rows)
        self._require_intact()
        self.counters.tokens_prefilled += n_rows
        found = _normalised(found) if normalised else found
        ctypes.memmove(address, found.ctypes.data, found.nbytes)

    def _feed_of(self, part: Part, first: int) -> tuple[Feed, int, npt.NDArray[Any]]:
        """What gives a part to libllama, at `first`; the position after it, and its memory."""
        after = first + part.n_rows
        if part.ids is not None:
            ids = np.array(part.ids, dtype=np.int32)
            return Feed.of_tokens(ids, np.arange(first, after, dtype=np.int32)), after, ids
        rows = np.empty((part.n_rows, part.width), dtype=np.float32)
        positions = None
        if part.positions is not None:
            positions = part.positions + np.int32(first)
            after = int(positions.max()) + 1
        address = HostAddr(rows.ctypes.data)
        given = Embeddings(address, part.n_rows, part.width, positions, not part.whole)
        return feed_of_rows(given, first, self._model.has_axes), after, rows

    def _into(
        self, tokens: Sequence[int], _binding: Binding, address: HostAddr, normalised: bool
    ) -> Generator[None, None, None]:
        found = yield from self._computed(tokens, normalised)
        ctypes.memmove(address, found.ctypes.data, found.nbytes)

    def _arrays(
        self, texts: Sequence[Sequence[int]], shapes: Sequence[tuple[int, int]], normalised: bool
    ) -> list[npt.NDArray[np.float32]]:
        found: list[npt.NDArray[np.float32]] = []

        def jobs(tokens: Sequence[int]) -> Generator[None, None, None]:
            found.append((yield from self._computed(tokens, normalised)))

        for tokens in texts:
            with self._locked():
                finish(self._device.compute_thread, jobs(tokens))
        return [it.reshape(shape) for it, shape in zip(found, shapes, strict=True)]

    def _computed(
        self, tokens: Sequence[int], normalised: bool
    ) -> Generator[None, None, npt.NDArray[np.float32]]:
        """The embedding of checked tokens, f32 of its shape, copied."""
        self._require_intact()
        context = self._emptied(len(tokens))
        ids = np.asarray(tokens, dtype=np.int32)
        yield from self._fed(context, Feed.of_tokens(ids))
        found = self._rows(context, len(ids))
        self._require_intact()
        self.counters.tokens_prefilled += len(ids)
        return _normalised(found) if normalised else found

    def _emptied(self, n_tokens: int) -> int:
        """A context for so many tokens, which holds none."""
        context, library = self._context_for(n_tokens), self._model.library
        if memory := library.llama_get_memory(context):
            library.llama_memory_clear(memory, False)
        return context

    def _fed(self, context: int, feed: Feed) -> Generator[None, None, None]:
        """Jobs of one pass."""
        library, batch = self._model.library, feed.batch(None)
        if not feed.causal:
            library.llama_set_causal_attn(context, False)
        try:
            status = yield from computed_in_jobs(
                self._device,
                self._placing,
                self._backends,
                self._jobs,
                feed.n,
                lambda: library.llama_decode(context, batch),
            )
        finally:
            if not feed.causal:
                library.llama_set_causal_attn(context, True)
        if status != 0:
            raise DeviceFailed(f"libllama failed on {self._model.path} with status {status}")

    def _rows(self, context: int, n_tokens: int) -> npt.NDArray[np.float32]:
        """The embedding that the last pass left."""
        library, n_embd = self._model.library, self._shape.n_pooled
        pooled = self._shape.pooling is not Pooling.NONE
        rows = 1 if pooled else n_tokens
        address = (
            library.llama_get_embeddings_seq(context, 0)
            if pooled
            else library.llama_get_embeddings(context)
        )
        if not address:
            raise DeviceFailed(f"libllama left no embedding of {self._model.path}")
        values = (ctypes.c_float * (rows * n_embd)).from_address(address)
        return np.ctypeslib.as_array(values).reshape(rows, n_embd).copy()

    def _context_for(self, n_tokens: int) -> int:
        """A context for so many tokens in one pass."""
        if self._context is None or self._n_ctx < n_tokens:
            self.close()
            n_ctx = align_up(n_tokens, N_CTX_MULTIPLE)
            self._context = Owned(self._new(n_ctx), self._model.library.llama_free)
            self._n_ctx = n_ctx
        return self._context.handle

    def _new(self, n_ctx: int) -> int:
        library = self._model.library
        params = library.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.embeddings = True
        params.pooling_type = self._shape.pooling or Pooling.NONE
        params.n_threads = params.n_threads_batch = self._device.settings.n_threads
        params.flash_attn_type = _FLASH_ATTENTION_ON
        params.type_k = params.type_v = KV_TYPES[self._settings.kv_type]
        with (
            library.errors() as complaints,
            self._placing.open(lambda _number, _nbytes: None) as placed,
        ):
            handle = library.llama_init_from_model(self._model.handle, params)
        if not handle:
            raise DeviceFailed(
                f"libllama opens no context for {self._model.path}: {'; '.join(complaints)}"
            )
        self._backends = placed.backends
        if self._device.threadpool:
            pool = self._device.threadpool
            library.llama_attach_threadpool(handle, pool, pool)
        return int(handle)


def _normalised(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each row of length 1."""
    lengths = np.sqrt(np.sum(rows.astype(np.float64) ** 2, axis=1, keepdims=True))
    result: npt.NDArray[np.float32] = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return result
