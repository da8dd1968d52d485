"""Runs graphs that Isthmus writes down: prefill in chunks, decode with a graph that is used again.

There are three kinds of graphs: of a session's next token (`DecodeGraphs`), of tokens of several
sessions (`Batches`), and of prompts (`PrefillGraphs`). All steps run on the device's thread, so the
graphs of a kind share memory and inputs without a lock.

A chunk of prefill has memory of its own and is computed in jobs, between which others decode.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from isthmus.config import ModelSettings
from isthmus.device.base import Device
from isthmus.model.architectures import Architecture
from isthmus.model.checks import nothing
from isthmus.model.executor import Executor
from isthmus.model.jobs import Jobs
from isthmus.model.own.kv_cache import KV_TYPES
from isthmus.model.own.session import own
from isthmus.model.passes.batches import Batches
from isthmus.model.passes.decode_graphs import DecodeGraphs
from isthmus.model.passes.graph_builder import GraphBuilder
from isthmus.model.passes.joining import Joining
from isthmus.model.passes.prefill_graphs import PrefillGraphs
from isthmus.model.passes.standing import Standing
from isthmus.model.probes.widths import Width
from isthmus.model.session import Session
from isthmus.model.step import Chunk, Step
from isthmus.units import HostAddr


class OwnExecutor(Executor):
    """Owns a backend, and the memory that its graphs share."""

    def __init__(
        self,
        device: Device,
        architecture: Architecture,
        settings: ModelSettings,
        require_intact: Callable[[], None] = nothing,
    ) -> None:
        """`require_intact` is called around each pass, and raises if weights were lost."""
        super().__init__(device, settings.prefill_chunk)
        self._require_intact = require_intact
        self._backend = device.new_backend(settings.deterministic)
        self.builder = GraphBuilder(device, architecture, self._backend)
        self.counters = self.builder.counters
        self._batches = Batches(self.builder)
        self.kv_type = KV_TYPES[settings.kv_type]
        self.always_batches = False
        """Whether a single token is a batch as well; see `use`."""
        self._decode_graphs = DecodeGraphs(self.builder)
        self._prefill_graphs = PrefillGraphs(self.builder, self._n_chunk)
        self._jobs = Jobs()
        self._in_pass: tuple[Session, ...] = ()
        """The sessions of that pass."""

    def use(self, width: Width, joining: Joining | None, *, single_steps: bool) -> None:
        """Has every pass from now on be of a class, and says how sessions share attention.

        `single_steps`: a single token of a session that is alone is computed without both. Before
        the first pass, or while every pass has had the bits of such a token.
        """
        self._batches.width, self._batches.joining = width, joining
        self.builder.n_outputs = 1 if single_steps else width.least
        self.always_batches = not single_steps

    # ------------------------------------------------------------------ prefill

    def _append(self, chunks: Sequence[Chunk]) -> Generator[None, None, None]:
        self._require_intact()
        for chunk in chunks:
            chunk.session.require_whole()
            if chunk.last or len(chunk.tokens) == 1:  # otherwise the old logits stay
                chunk.session.has_logits = False
                self.builder.expire_top(chunk.session)
        self._in_pass = tuple(chunk.session for chunk in chunks)
        try:
            if len(chunks) > 1:
                yield from self._append_packed(chunks)
            else:
                yield from self._append_one(chunks[0])
            self._require_intact()
        except BaseException:
            for chunk in chunks:
                chunk.session.lose()
            raise
        finally:
            self._in_pass = ()
        for chunk in chunks:
            chunk.append()
            self.counters.tokens_prefilled += len(chunk.tokens)

    def _append_one(self, chunk: Chunk) -> Generator[None, None, None]:
        session, n = chunk.session, len(chunk.tokens)
        if chunk.embeddings is not None:
            yield from self._append_embedded(chunk)
            return
        if n == 1:
            if self.always_batches:
                self._compute_batch([Step(session, chunk.tokens.tolist())])
            else:
                self._decode(session, int(chunk.tokens[0]))
            return
        graph = self._prefill_graphs.of(chunk)
        yield from self._jobs.compute(self._backend, graph, n, graph.cuts, session.binding)
        own(session).fetch(session.n_tokens, n, with_logits=chunk.last)

    def _append_embedded(self, chunk: Chunk) -> Generator[None, None, None]:
        session, n = chunk.session, len(chunk.tokens)
        with self._prefill_graphs.embedded(chunk) as graph:
            yield from self._jobs.compute(self._backend, graph, n, graph.cuts, session.binding)
        own(session).fetch(session.n_tokens, n, with_logits=chunk.last)

    def _append_packed(self, chunks: Sequence[Chunk]) -> Generator[None, None, None]:
        memories = dict.fromkeys(chunk.session.binding for chunk in chunks)
        with self._prefill_graphs.packed(chunks) as graph:
            yield from self._jobs.compute(self._backend, graph, graph.n, graph.cuts, *memories)
        for chunk in chunks:
            own(chunk.session).fetch(chunk.session.n_tokens, len(chunk.tokens), with_logits=True)

    # ------------------------------------------------------------------ decode

    def decode(self, session: Session, token: int) -> None:
        if self.always_batches:
            self._run(lambda: self._decode_batch([Step(session, [token])]))
            return
        session.require_ready(1)
        self._require_intact()
        session.has_logits = False
        self.builder.expire_top(session)
        try:
            self._run(lambda: self._decode(session, token))
            self._require_intact()
        except BaseException:
            session.lose()
            raise
        session.tokens.append(token)
        session.has_logits = True
        self.counters.tokens_decoded += 1

    def decode_batch(self, steps: Sequence[Step]) -> None:
        """Appends tokens to each of several different sessions, in one pass, or in several if the
        class has no room for all (`use`).

        Afterwards each session has its next logits, or, on an error, none of them has, and each has
        the tokens that it had. The bits are those of single tokens, one after the other, in the
        same class. A call costs least if it has the sessions of the call before, in the same order,
        and a token for each. Raises ContextFull before anything is computed.
        """
        if len(steps) == 1 and len(steps[0].tokens) == 1:
            self.decode(steps[0].session, steps[0].tokens[0])
        else:
            self._run(lambda: self._decode_batch(steps))

    @property
    def can_batch(self) -> bool:
        return self._device.everywhere is not None

    def batch_key(self, session: Session) -> object:
        return self.builder.batch_key(session)

    @property
    def finds_top(self) -> bool:
        return self.builder.finder.can_find

    def close(self) -> None:
        self._batches.close()
        self._decode_graphs.close()
        self._prefill_graphs.close()
        self.builder.finder.close()
        self._backend.close()

    def _forget(self, session: Session) -> None:
        if session in self._in_pass:
            raise RuntimeError(
                "a session cannot close while a pass of prefill over it is under way: end the pass"
            )
        self._prefill_graphs.forget(session)
        self._decode_graphs.forget(session)
        self._batches.forget(session)

    def _decode_batch(self, steps: Sequence[Step]) -> None:
        self._require_intact()
        standing = self._compute_batch(steps)
        if standing is None:
            self._decode_in_halves(steps)
            return
        standing.append(steps)
        self.counters.tokens_decoded += standing.n_tokens

    def _compute_batch(self, steps: Sequence[Step]) -> Standing | None:
        """Computes one pass; None if it has no room for these steps. Appends no token."""
        standing = self._batches.begin(steps)
        if standing is None:
            return None
        try:
            standing.batch.inputs.buffer.flush()
            self._backend.compute(standing.batch.pointer, *standing.memories)
            self._require_intact()
        except BaseException:
            for step in steps:
                step.session.has_logits = False
                step.session.lose()
            raise
        return standing

    def _decode_in_halves(self, steps: Sequence[Step]) -> None:
        """As `_decode_batch`, in two passes or more."""
        n_before = [step.session.n_tokens for step in steps]
        try:
            if len(steps) > 1:
                middle = len(steps) // 2
                self._decode_batch(steps[:middle])
                self._decode_batch(steps[middle:])
            else:
                self._decode_step_in_halves(steps[0])
        except BaseException:
            for step, n_tokens in zip(steps, n_before, strict=True):
                step.session.roll_back(n_tokens)
                step.session.has_logits = False
            raise

    def _decode_step_in_halves(self, step: Step) -> None:
        session, middle = step.session, len(step.tokens) // 2
        self._decode_batch([Step(session, step.tokens[:middle], step.logits)])
        row_nbytes = 4 * session.layout.n_vocab
        session.copy_logits(HostAddr(step.logits + (middle - 1) * row_nbytes))
        self._decode_batch([Step(session, step.tokens[middle:], step.logits + middle * row_nbytes)])

    def _decode(self, session: Session, token: int) -> None:
        graph = self._decode_graphs.of(session, token)
        self._backend.compute(graph.pointer, session.binding)
        own(session).fetch(len(session.tokens), 1, with_logits=True)
