"""Makes embeddings: each text is a pass of its own, so its bits do not depend on any other.

The last operation's result is placed where it is wanted, such as in a guest's memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from isthmus.config import ModelSettings
from isthmus.counters import Counters
from isthmus.device.base import Backend, Device
from isthmus.device.buffer import Binding, InputBuffer
from isthmus.device.graph import GraphAllocator
from isthmus.errors import ContextFull, ModelUnsupported, SettingsError, TokenError
from isthmus.model.architectures import Architecture
from isthmus.model.encoding import Encoding, Places
from isthmus.model.hparams import Pooling
from isthmus.model.parts import Jobs, finish
from isthmus.units import HostAddr

_MOST_TOKENS = 32_768
_MOST_CAUSAL_TOKENS = 4096
"""Of a decoder, whose mask grows with the square of them."""


class Embedder:
    """Owns a backend and the memory of its passes, which it takes when the first one comes."""

    def __init__(
        self,
        device: Device,
        architecture: Architecture,
        settings: ModelSettings,
        name: str,
        require_intact: Callable[[], None],
    ) -> None:
        """`name` is the model's, for errors. `require_intact` is called around each pass, and
        raises if weights were lost."""
        self._require_intact = require_intact
        self._device = device
        self._architecture = architecture
        self._name = name
        self._deterministic = settings.deterministic
        self._backend: Backend | None = None
        self._memory: GraphAllocator | None = None
        self._inputs: InputBuffer | None = None
        self._flash: dict[bool, bool] = {}
        """Whether attention is one operation, by whether there are several tokens, once known."""
        self._jobs = Jobs()
        self._lock = threading.Lock()
        """One pass at a time: they share all of the above."""
        self.counters = Counters()

    def shape(self, n_tokens: int) -> tuple[int, int]:
        """See `Model.embedding_shape`."""
        h = self._architecture.hparams
        most = min(h.n_ctx_train, _MOST_TOKENS if h.encoder else _MOST_CAUSAL_TOKENS)
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
        return (n_tokens if h.pooling is Pooling.NONE else 1), h.n_embd

    @property
    def is_embedding(self) -> bool:
        """Whether a pass is under way, so that `jobs` has to wait."""
        return self._lock.locked()

    def jobs(
        self, tokens: Sequence[int], binding: Binding, address: HostAddr, normalised: bool
    ) -> Generator[None, None, None]:
        """See `Model.embedding_jobs`; for tokens that are `checked`."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "an embedding cannot begin while another one is under way: wait until is_embedding "
                "is false"
            )
        try:
            yield from self._into(tokens, binding, address, normalised)
        finally:
            self._lock.release()

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
        found = []
        largest = max(4 * rows * n_embd for rows, n_embd in shapes)
        with self._device.allocate_inputs(largest) as buffer:

            def place(result: int) -> None:
                buffer.place(result, buffer.base)

            for tokens, shape in zip(texts, shapes, strict=True):
                with self._locked():
                    finish(self._device.compute_thread, self._compute(tokens, place, normalised))
                count = shape[0] * shape[1]
                buffer.pull(0, 4 * count)
                found.append(np.frombuffer(buffer.stage, np.float32, count).reshape(shape).copy())
        pooled = self._architecture.hparams.pooling is not Pooling.NONE
        return [it[0] for it in found] if pooled else found

    def checked(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Their embedding's shape, once every id is known to be in the vocabulary."""
        shape, n_vocab = self.shape(len(tokens)), self._architecture.n_vocab
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

    def _into(
        self, tokens: Sequence[int], binding: Binding, address: HostAddr, normalised: bool
    ) -> Generator[None, None, None]:
        def place(result: int) -> None:
            binding.place(result, address)

        rows, n_embd = self.shape(len(tokens))
        yield from self._compute(tokens, place, normalised, binding)
        binding.fetch(address, 4 * rows * n_embd)

    def _compute(
        self,
        tokens: Sequence[int],
        place: Callable[[int], None],
        normalised: bool,
        *memories: Binding,
    ) -> Generator[None, None, None]:
        """Computes checked tokens' embedding into the tensor that `place` puts somewhere.

        On an error the bytes at that place are undefined.
        """
        self._require_intact()
        backend, memory = self._opened()
        with self._build(tokens, place, normalised) as graph:
            memory.allocate(graph)
            yield from self._jobs.compute(backend, graph, len(tokens), graph.cuts, *memories)
        self._require_intact()
        self.counters.graphs_built += 1
        self.counters.tokens_prefilled += len(tokens)

    def close(self) -> None:
        """Frees everything."""
        for owned in (self._inputs, self._memory, self._backend):
            if owned is not None:
                owned.close()

    def _opened(self) -> tuple[Backend, GraphAllocator]:
        if self._backend is None:
            self._backend = self._device.new_backend(self._deterministic)
        if self._memory is None:
            self._memory = GraphAllocator(self._device.library, self._device.buffer_type)
        return self._backend, self._memory

    def _inputs_for(self, n: int) -> InputBuffer:
        """Large enough for a pass over `n` tokens."""
        nbytes = Places(self._architecture.hparams, n).nbytes
        if self._inputs is not None and self._inputs.nbytes < nbytes:
            self._inputs.close()
            self._inputs = None
        if self._inputs is None:
            self._inputs = self._device.allocate_inputs(nbytes)
        return self._inputs

    def _build(
        self, tokens: Sequence[int], place: Callable[[int], None], normalised: bool
    ) -> Encoding:
        """The graph that the device has kernels for; ModelUnsupported where there is none."""
        inputs = self._inputs_for(len(tokens))
        hparams, missing = self._architecture.hparams, ""
        several = len(tokens) > 1
        known = self._flash.get(several)
        for flash in (True, False) if known is None else (known,):
            graph = Encoding(self._device, hparams, tokens, inputs, flash=flash)
            result = graph.embedding(self._architecture, normalised)
            place(result)
            graph.output(result)
            if known is not None or not (missing := self._device.refuses(graph)):
                self._flash[several] = flash
                return graph
            graph.close()
        raise ModelUnsupported(
            f"the device {self._device.name} has no kernel for {missing} with this model's types "
            "and shapes; use another quantisation or device"
        )
