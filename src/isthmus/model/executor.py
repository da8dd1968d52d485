"""What computes the sessions of a model: prefill in chunks, decode token by token.

There are two: `OwnExecutor` runs graphs that Isthmus writes down, and `AdoptedExecutor` those of
libllama. One pass of prefill of a model is under way at a time.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import numpy as np

from isthmus.counters import Counters
from isthmus.device.base import Device
from isthmus.errors import ModelUnsupported
from isthmus.model.jobs import finish
from isthmus.model.session import Session
from isthmus.model.spans import NO_TOKEN, Embeddings
from isthmus.model.step import Chunk, Step

_Result = TypeVar("_Result")
_Given = TypeVar("_Given")


class Executor(ABC):
    """See the module."""

    counters: Counters
    """Counts of all its passes."""

    def __init__(self, device: Device, n_chunk: int) -> None:
        """`n_chunk`: the most tokens of a chunk."""
        self._device = device
        self._n_chunk = n_chunk
        self._prefilling = threading.Lock()
        """Held from the beginning of a pass of prefill to its end."""

    # ------------------------------------------------------------------ prefill

    def chunks(self, session: Session, tokens: Sequence[int]) -> list[Chunk]:
        """The chunks in which a prompt is computed, for `append`. Computes nothing.

        Raises ContextFull if the session has no room for all of them, and as
        `Session.require_whole`.
        """
        session.require_ready(len(tokens))
        ids = np.asarray(tokens, dtype=np.int32)
        n = self._n_chunk
        parts = (ids[start : start + n] for start in range(0, len(ids), n))
        last = (len(ids) - 1) // n
        return [Chunk(session, part, last=i == last) for i, part in enumerate(parts)]

    def embedded_chunks(self, session: Session, embeddings: Embeddings) -> list[Chunk]:
        """As `chunks`, of embeddings; those that see the whole span are one chunk.

        Raises ContextFull, and ModelUnsupported for a longer span than a chunk may be.
        """
        n, n_rows = self._n_chunk, embeddings.n_rows
        session.require_room(n_rows)
        if n_rows > n and not embeddings.causal:
            raise ModelUnsupported(
                f"{n_rows} embeddings see each other and are computed at once, and a chunk has "
                f"{n}: load the model with prefill_chunk={n_rows} or more"
            )
        parts = [embeddings.part(at, n) for at in range(0, n_rows, n)]
        ids = [np.full(it.n_rows, NO_TOKEN, dtype=np.int32) for it in parts]
        pairs = zip(ids, parts, strict=True)
        return [Chunk(session, them, part is parts[-1], part) for them, part in pairs]

    @property
    def is_prefilling(self) -> bool:
        """Whether a pass of prefill is under way, so that `append` has to wait."""
        return self._prefilling.locked()

    def append(self, chunks: Sequence[Chunk]) -> Generator[None, None, None]:
        """Computes chunks in one pass: each next() is one job of about `jobs.JOB_S` seconds.

        When the iterator ends, each session has its chunk's tokens, and the logits after them if
        the chunk is the last one of its prompt. Several chunks must be last ones of different
        sessions, have more than one token, and one `batch_key`; the bits are those of one after the
        other if `Exactness.packing`.

        After an error, or if the iterator is closed early, each session has the tokens that it had.
        The caller takes back earlier chunks of a prompt: `Session.roll_back`. Only on the device's
        thread. Raises RuntimeError if another pass is under way, DeviceFailed.
        """
        if not self._prefilling.acquire(blocking=False):
            raise RuntimeError(
                "a pass of prefill cannot begin while another one is under way: wait until "
                "is_prefilling is false"
            )
        try:
            yield from self._append(chunks)
        finally:
            self._prefilling.release()

    def prefill(self, session: Session, tokens: Sequence[int]) -> None:
        """Appends tokens, all at once; afterwards the session has the logits after the last one.

        On any thread; it waits for a pass that is under way. On an error the session has the tokens
        that it had. Raises ContextFull, DeviceFailed, and RuntimeError on the device's thread if a
        pass is under way, which that thread would have to end.
        """
        self._finish(session, self.chunks, tokens)

    def prefill_embeddings(self, session: Session, embeddings: Embeddings) -> None:
        """As `prefill`, of embeddings. Raises ModelUnsupported too."""
        self._finish(session, self.embedded_chunks, embeddings)

    def _finish(
        self, session: Session, cut: Callable[[Session, _Given], list[Chunk]], given: _Given
    ) -> None:
        """Computes the chunks of what was given."""
        if not self._prefilling.acquire(blocking=False):
            if self._device.compute_thread.is_current:
                raise RuntimeError(
                    "prefill was called on the device's thread while a pass of prefill is under "
                    "way there: compute the rest of its jobs, or close it, first"
                )
            self._prefilling.acquire()
        n_tokens = session.n_tokens
        try:
            with session.restorable():
                try:
                    for chunk in cut(session, given):
                        finish(self._device.compute_thread, self._append([chunk]))
                except BaseException:
                    session.roll_back(n_tokens)
                    raise
        finally:
            self._prefilling.release()

    @abstractmethod
    def _append(self, chunks: Sequence[Chunk]) -> Generator[None, None, None]:
        """As `append`, for a caller that holds the lock."""

    # ------------------------------------------------------------------ decode

    @abstractmethod
    def decode(self, session: Session, token: int) -> None:
        """Appends one token; afterwards the session has the next logits."""

    @abstractmethod
    def decode_batch(self, steps: Sequence[Step]) -> None:
        """Appends tokens to each of several different sessions.

        Afterwards each session has its next logits, or, on an error, none of them has, and each has
        the tokens that it had. Raises ContextFull before anything is computed.
        """

    @property
    @abstractmethod
    def can_batch(self) -> bool:
        """Whether steps of several sessions can be one pass."""

    @abstractmethod
    def batch_key(self, session: Session) -> object:
        """Sessions with the same key can be in one batch."""

    @property
    @abstractmethod
    def finds_top(self) -> bool:
        """Whether passes find the most probable tokens for sessions that ask: `Session.top`."""

    def forget(self, session: Session) -> None:
        """Keeps nothing of a session that is about to close, and frees what was made for it.

        RuntimeError if a pass of prefill over it is under way.
        """
        self._run(lambda: self._forget(session))

    @abstractmethod
    def close(self) -> None:
        """Frees everything; sessions must be closed first."""

    @abstractmethod
    def _forget(self, session: Session) -> None:
        """As `forget`, on the device's thread."""

    def _run(self, job: Callable[[], _Result]) -> _Result:
        return self._device.compute_thread.run(job)
