"""Makes embeddings by graphs that Isthmus writes down.

The last operation's result is placed where it is wanted, such as in a guest's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import numpy.typing as npt

from isthmus.config import ModelSettings
from isthmus.device.base import Backend, Device
from isthmus.device.buffer import Binding, InputBuffer
from isthmus.device.graph_allocator import GraphAllocator
from isthmus.errors import ModelUnsupported
from isthmus.model.architectures import Architecture
from isthmus.model.embedder import Embedder
from isthmus.model.jobs import Jobs, finish
from isthmus.model.passes.encoding import Encoding, EncodingLayout
from isthmus.units import HostAddr


class OwnEmbedder(Embedder):
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
        super().__init__(device, architecture.hparams, architecture.n_vocab, name)
        self._require_intact = require_intact
        self._architecture = architecture
        self._deterministic = settings.deterministic
        self._backend: Backend | None = None
        self._memory: GraphAllocator | None = None
        self._inputs: InputBuffer | None = None
        self._flash: dict[bool, bool] = {}
        """Whether attention is one operation, by whether there are several tokens, once known."""
        self._jobs = Jobs()

    def _arrays(
        self, texts: Sequence[Sequence[int]], shapes: Sequence[tuple[int, int]], normalised: bool
    ) -> list[npt.NDArray[np.float32]]:
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
        return found

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
        nbytes = EncodingLayout(self._architecture.hparams, n).nbytes
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
