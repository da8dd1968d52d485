"""A guest, what it is given, and what it answers to each of many inputs.

Each input gets a fresh agent, whose random numbers begin with a seed made of the job's seed and the
input's index, and whose clock begins at the job's time. So an output depends on the job, the index
and the input alone: not on what is computed beside it, on which machine of one kind, or after how
many tries.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from isthmus.actor import Actor
from isthmus.config import Limits
from isthmus.errors import (
    Cancelled,
    ContextFull,
    DeadlineExceeded,
    GrammarError,
    GuestError,
    GuestInvalid,
    IsthmusError,
    SettingsError,
    TemplateError,
    TokenError,
)
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.runtime.arguments import options_of, require_range
from isthmus.wasm import Guest

_CERTAIN = (GuestError, ContextFull, GrammarError, TemplateError, TokenError)
"""Errors that an input has by itself: with the same seed it would have them again."""
_AHEAD = 4
"""Inputs for each one that is computed, of which later ones may be done while an earlier is not."""


@dataclass(frozen=True)
class Mapped:
    """What came of one input."""

    index: int
    """The input's number, from 0 on."""
    output: str | None
    """The guest's answer; None if it failed."""
    n_tokens: int = 0
    error: str | None = None
    """The kind of the error and what it says, such as `GuestTrapped: …`."""


@dataclass(frozen=True)
class Job:
    """What is done with each input."""

    guest: str | Path | bytes | Guest
    models: Mapping[str, Model | str] = field(default_factory=dict)
    """Models by the guest's names for them: loaded ones, or what `Runtime.load_model` takes."""
    args: Sequence[str] | Mapping[str, object] = ()
    """Options for the guest; see `Runtime.spawn`."""
    limits: Limits = field(default_factory=Limits)
    """Limits of each agent."""
    seed: int = 0
    clock_ns: int = 0
    """Where each agent's clock begins, in nanoseconds since 1970."""


class Mapper:
    """See the module. May be used by several threads. The runtime is its caller's, and so are
    models that were loaded already; others stay with the runtime."""

    def __init__(self, runtime: Runtime, job: Job) -> None:
        """GuestInvalid, SettingsError, and what `Runtime.load_model` raises."""
        self._runtime = runtime
        guest = job.guest
        self._guest = guest if isinstance(guest, Guest) else runtime.load_guest(guest)
        self._models = {
            name: it if isinstance(it, Model) else runtime.load_model(it)
            for name, it in job.models.items()
        }
        self._job, self._args = job, options_of(job.args)
        self._running: set[Actor] = set()
        self._ended = threading.Event()
        self.key = self._key()
        """Changes with whatever decides outputs but the inputs: 64 hexadecimal digits."""

    def _key(self) -> str:
        models = {
            name: [it.weights_sha256, it.tokenizer_sha256, asdict(it.settings)]
            for name, it in sorted(self._models.items())
        }
        job = self._job
        given = [self._guest.sha256, models, self._args, asdict(job.limits), job.seed, job.clock_ns]
        said = json.dumps(given, default=str)
        return hashlib.sha256(said.encode()).hexdigest()

    def map(
        self, inputs: Iterable[str], *, parallel: int = 8, retries: int = 2, first: int = 0
    ) -> Iterator[Mapped]:
        """What comes of each input, in order. `parallel` are computed at a time; `retries` are
        further tries of one that failed by no fault of its own; `first` is the first one's index.

        An input that fails by itself (a trap, a limit, a full context) has an error as its result.
        Whatever else fails, a device for instance, is tried again and then raised: the results
        until then are there, and the same call with the inputs from then on goes on.
        """
        require_range("parallel", parallel, 1, 4097)
        require_range("retries", retries, 0, 1001)
        waiting: deque[Future[Mapped]] = deque()
        numbered = enumerate(inputs, first)
        pool = ThreadPoolExecutor(parallel, "isthmus-map")
        try:
            while True:
                for index, text in itertools.islice(numbered, _AHEAD * parallel - len(waiting)):
                    waiting.append(pool.submit(self.run, index, text, retries))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            self._end()
            pool.shutdown(cancel_futures=True)
            self._ended.clear()

    def run(self, index: int, text: str, retries: int = 2) -> Mapped:
        """What comes of one input. Raises what is no fault of the input's own."""
        for left in range(retries, -1, -1):
            try:
                return self._try(index, text)
            except (GuestInvalid, SettingsError):
                raise
            except _CERTAIN as error:
                if not isinstance(error, DeadlineExceeded) or not left:
                    return Mapped(index, None, error=f"{type(error).__name__}: {error}")
            except IsthmusError:
                if not left or self._ended.is_set():
                    raise
        raise AssertionError("unreachable")

    def _try(self, index: int, text: str) -> Mapped:
        actor = self._runtime.spawn(
            self._guest,
            models=self._models,
            args=self._args,
            limits=self._job.limits,
            seed=seed_of(self._job.seed, index),
            clock_ns=self._job.clock_ns,
            label=f"input {index}",
        )
        with actor:
            self._running.add(actor)
            try:
                if self._ended.is_set():
                    raise Cancelled("nobody waits for the rest")
                reply = actor.send(text)
            finally:
                self._running.discard(actor)
        return Mapped(index, reply.text, reply.n_tokens)

    def _end(self) -> None:
        """Cuts off what nobody waits for any more."""
        self._ended.set()
        for actor in list(self._running):
            actor.cancel()


def map_inputs(
    runtime: Runtime, job: Job, inputs: Iterable[str], *, parallel: int = 8, retries: int = 2
) -> Iterator[Mapped]:
    """What comes of each input, in order: see `Job` and `Mapper.map`.

    ::

        job = isthmus.Job("summarise", models={"default": "smollm2"})
        with isthmus.Runtime() as rt:
            for it in isthmus.map(rt, job, texts):
                print(it.index, it.output or it.error)
    """
    return Mapper(runtime, job).map(inputs, parallel=parallel, retries=retries)


def seed_of(seed: int, index: int) -> int:
    """The seed of an input's agent: 63 bits."""
    said = hashlib.sha256(f"{seed} {index}".encode()).digest()
    return int.from_bytes(said[:8], "little") >> 1
