"""What does everything but the device cost? Many agents on a device that only sleeps.

Each step of the null device takes so many milliseconds and computes nothing, with the interpreter's
lock released, as a card does. All agents decode greedily at the same time, from random logits of
their own. Each guest looks through its logits; or the device finds the most probable tokens
(`Case.found`), which then lie where a card would leave them, and finding takes no time. What a
token takes beyond the device's step is the host's: guests, host calls, scheduling, writing the
batch and delivering text.

Agents are forks of one that has a session, so that none has handled a message before. The check:
each says the tokens that its logits ask for, as many as it was asked for.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from isthmus.actor import Actor, Reply
from isthmus.benchmarks.null_model import N_LAYER, token_text, write_null_model
from isthmus.benchmarks.record import Record, describe_run, room_for
from isthmus.benchmarks.resident import resident_outside
from isthmus.config import Capacity
from isthmus.device.null import NullDevice
from isthmus.errors import VerificationFailed
from isthmus.machine import n_threads
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.units import KIB

SIZES = (1, 8, 32, 64, 256, 1000)
RUNAWAY_SIZES = (64,)
STEPS_MS = (0.0, 1.0, 5.0)
VOCABULARIES = (49_152, 128_256)
"""SmolLM2's and Llama 3's."""
N_TOKENS = 32
"""Tokens of one message. Its beginning and end are a thirtieth of a token's cost or less."""
MAX_TOKENS = 200
_N_CTX = 256
_MIDDLE = 64
"""Agents of the rows that vary all else."""
_MAX_MESSAGES = 2000
"""Messages that the repeats of one row come to: a thousand agents are measured twice."""
_HOLD_S = 0.1
_HELD_TOKENS = 32
"""Seconds of a step, and tokens of a message, while memory is looked at: none ends meanwhile."""
_POLL_S = 0.002
_RUNAWAY_DEADLINE_S = 120.0


@dataclass(frozen=True)
class Case:
    """One row: how many agents decode, and how."""

    agents: int
    step_ms: float
    """Milliseconds that each step of the device takes."""
    emit: bool
    """Whether each token's text is emitted to the caller."""
    n_vocab: int
    found: bool = False
    """Whether the device finds the most probable tokens, so that no guest looks through logits."""


@dataclass(frozen=True)
class HostPlan:
    """What a user may choose of this benchmark."""

    repeats: int = 7
    sizes: tuple[int, ...] = SIZES
    """Numbers of agents."""
    steps_ms: tuple[float, ...] = STEPS_MS
    emits: tuple[bool, ...] = (True, False)
    vocabularies: tuple[int, ...] = VOCABULARIES
    founds: tuple[bool, ...] = (False, True)
    every: bool = False
    """Whether every combination is a row. Otherwise sizes vary with the longest step, the first of
    `emits` and `founds` and the first vocabulary, and everything else varies with 64 agents."""
    n_tokens: int = N_TOKENS

    def cases(self) -> list[Case]:
        """The rows, in order."""
        rest = [(step, emit, n, found) for found, n, emit, step in self._rest()]
        if self.every:
            return [Case(agents, *it) for agents, it in product(self.sizes, rest)]
        usual = (max(self.steps_ms), self.emits[0], self.vocabularies[0], self.founds[0])
        middle = _MIDDLE if _MIDDLE in self.sizes else self.sizes[0]
        cases = [Case(agents, *usual) for agents in self.sizes]
        return cases + [Case(middle, *it) for it in rest if it != usual]

    def repeats_of(self, case: Case) -> int:
        """How often a row is measured."""
        return min(self.repeats, max(2, _MAX_MESSAGES // case.agents))

    @property
    def n_runs(self) -> int:
        """How often the benchmark advances."""
        return sum(map(self.repeats_of, self.cases()))

    def _rest(self) -> Iterator[tuple[bool, int, bool, float]]:
        return product(self.founds, self.vocabularies, self.emits, self.steps_ms)


def bench_host(plan: HostPlan, progress: Callable[[], None]) -> Record:
    """Microseconds that a token costs an agent beyond the device's step, threads and memory."""
    cases = plan.cases()
    with _null_runtime(max(plan.sizes)) as (runtime, models):
        results = []
        for case in cases:
            with _Crew(runtime, models(case.n_vocab), case, plan.n_tokens) as crew:
                results.append(_measure(crew, plan.repeats_of(case), progress))
        return _report(runtime, results)


def bench_runaway(plan: HostPlan, progress: Callable[[], None]) -> Record:
    """The time between two tokens of one agent, while another computes in an endless loop or not.

    One row pair for each number of agents, at the longest step.
    """
    with _null_runtime(max(plan.sizes)) as (runtime, models):
        results = []
        for agents in plan.sizes:
            case = Case(agents, max(plan.steps_ms), True, plan.vocabularies[0])
            with _Crew(runtime, models(case.n_vocab), case, plan.n_tokens) as crew:
                results += _beside_runaway(crew, plan.repeats, progress)
        return _report(runtime, results)


def _report(runtime: Runtime, results: list[Record]) -> Record:
    return {**describe_run(runtime.device.info), "n_layer": N_LAYER, "results": results}


@contextmanager
def _null_runtime(agents: int) -> Iterator[tuple[Runtime, Callable[[int], Model]]]:
    """A runtime for so many agents, and what gives its model with a vocabulary of so many."""
    capacity = Capacity(running=min(4096, max(64, agents + 1)), waiting=agents + 1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isthmus-bench-")))
        runtime = stack.enter_context(Runtime(device="null", threads=1, capacity=capacity))
        loaded: dict[int, Model] = {}

        def model(n_vocab: int) -> Model:
            if n_vocab not in loaded:
                path = write_null_model(folder / f"{n_vocab}.gguf", n_vocab)
                loaded[n_vocab] = runtime.load_model(path, exact=False)
            return loaded[n_vocab]

        yield runtime, model


def _measure(crew: _Crew, repeats: int, progress: Callable[[], None]) -> Record:
    """One row. A first run warms up and is not counted."""
    crew.run()
    samples: list[float] = []
    gaps_ns: list[int] = []
    batches: list[float] = []
    for _ in range(repeats):
        run = crew.run()
        samples.append(1e6 * run.host_s / crew.n_tokens)
        gaps_ns += run.gaps_ns
        batches.append(crew.n_tokens / run.steps)
        progress()
    suspended = crew.suspend_fresh()
    p50, p99 = np.percentile(gaps_ns, [50, 99]) / 1e6
    return {
        "agents": crew.case.agents,
        "step_ms": crew.case.step_ms,
        "emit": crew.case.emit,
        "n_vocab": crew.case.n_vocab,
        "found": crew.case.found,
        "host_us": statistics.median(samples),
        "mean_batch": statistics.mean(batches),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "threads": suspended.threads,
        "message_kib": suspended.nbytes / KIB / crew.case.agents,
        "samples_host_us": samples,
    }


def _beside_runaway(crew: _Crew, repeats: int, progress: Callable[[], None]) -> list[Record]:
    """Two rows: without a runaway, and with one, in turns."""
    crew.run()
    gaps_s: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(repeats):
        for runaway in (False, True) if turn % 2 else (True, False):
            gaps_s[runaway] += crew.gaps_s(runaway=runaway)
        progress()
    rows = []
    for runaway, gaps in gaps_s.items():
        p50, p99 = 1e3 * np.percentile(gaps, [50, 99])
        rows.append(
            {
                "agents": crew.case.agents,
                "step_ms": crew.case.step_ms,
                "runaway": runaway,
                "p50_ms": float(p50),
                "p99_ms": float(p99),
                "worst_ms": 1e3 * max(gaps),
            }
        )
    return rows


@dataclass(frozen=True)
class _Run:
    """What was seen while every agent handled one message."""

    host_s: float
    """Seconds beyond those in which the device slept."""
    steps: int
    gaps_ns: list[int]
    """Nanoseconds from the beginning of each step of the device to the next."""


@dataclass(frozen=True)
class _Suspended:
    """What was seen while every agent was in the middle of a message."""

    threads: int
    nbytes: int
    """Resident memory outside of guests that the messages take together."""


class _Crew:
    """The agents of one row."""

    def __init__(self, runtime: Runtime, model: Model, case: Case, n_tokens: int) -> None:
        assert isinstance(runtime.device, NullDevice)
        self.case = case
        self.n_tokens = case.agents * n_tokens
        """Tokens of one run, of all agents."""
        self._device = runtime.device
        self._runtime = runtime
        self._each = n_tokens
        limits = room_for(model, _N_CTX)
        args = [f"n_ctx={_N_CTX}", f"ask={case.found:d}"]
        self._seed = runtime.spawn(
            "bench", models={"default": model}, args=args, seed=0, limits=limits
        )
        self._seed.send("tokens 1")
        self._logits = np.random.default_rng(0).random(case.n_vocab, np.float32)
        self._seed_best = self._put_logits(self._seed, 0)
        self._actors = self._seed.fork(case.agents)
        self._best = [self._put_logits(it, i) for i, it in enumerate(self._actors)]

    def run(self) -> _Run:
        """Has all agents decode at the same time."""
        device = self._device
        counters = device.counters
        self._rewind()
        device.step_s = self.case.step_ms / 1e3
        device.began_ns.clear()
        steps, slept_ns = counters.submissions, counters.kernel_ns
        start = time.perf_counter_ns()
        replies = self._ask(self._actors, self._each).wait()
        wall_ns = time.perf_counter_ns() - start
        slept_ns = counters.kernel_ns - slept_ns
        self._check(self._actors, self._best, self._each, replies)
        return _Run(
            host_s=(wall_ns - slept_ns) / 1e9,
            steps=counters.submissions - steps,
            gaps_ns=[b - a for a, b in pairwise(device.began_ns)],
        )

    def gaps_s(self, *, runaway: bool) -> list[float]:
        """Seconds between two tokens of one agent, those of all agents."""
        self._rewind()
        self._device.step_s = self.case.step_ms / 1e3
        with ExitStack() as stack:
            answers = self._ask(self._actors, self._each)
            stream = None
            if runaway:
                spinning = stack.enter_context(self._runtime.spawn("bench", seed=0))
                stream = spinning.stream("spin", deadline_s=_RUNAWAY_DEADLINE_S)
                stack.callback(spinning.cancel)
            self._check(self._actors, self._best, self._each, answers.wait())
            if stream is not None and stream.ended:
                raise VerificationFailed("the runaway ended before the agents did")
        return [b - a for came in answers.times for a, b in pairwise(came)]

    def suspend_fresh(self) -> _Suspended:
        """Has as many fresh agents handle their first message, and looks at them in the middle."""
        device = self._device
        fresh = self._seed.fork(self.case.agents)
        regions = [it.region for it in (*fresh, *self._actors, self._seed)]
        device.step_s = _HOLD_S
        before = [resident_outside(regions) for _ in range(2)][-1]
        answers = self._ask(fresh, _HELD_TOKENS)
        while not all(it.sessions[0].n_tokens > 1 for it in fresh):
            time.sleep(_POLL_S)
        threads, nbytes = n_threads(), resident_outside(regions)
        if any(it.ended for it in answers.streams):
            raise VerificationFailed(
                "a message ended before the memory of all was looked at; is the machine busy?"
            )
        device.step_s = 0.0
        best = [self._seed_best] * len(fresh)
        self._check(fresh, best, _HELD_TOKENS, answers.wait())
        for actor in fresh:
            actor.close()
        return _Suspended(threads, nbytes - before)

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        self._device.step_s = 0.0
        for actor in (*self._actors, self._seed):
            actor.close()

    def _rewind(self) -> None:
        """Back to one token. The null device leaves the logits as they were."""
        self._device.step_s = 0.0
        for actor in self._actors:
            actor.send("truncate 0")
            actor.send("tokens 1")

    def _put_logits(self, actor: Actor, turn: int) -> int:
        """Writes random logits into an agent's memory, other ones for each turn, and the candidates
        that a device would find. Returns their argmax."""
        logits = np.roll(self._logits, 1 + turn * 977)
        logits[0] = 0.0  # it would end the model's turn
        session = actor.sessions[0]
        with actor.region.view(session.logits_ptr, logits.nbytes) as view:
            np.frombuffer(view.memory, np.float32)[:] = logits
        best = int(np.argmax(logits))
        if self.case.found:
            top = session.top
            assert top is not None, "the guest asks for candidates"
            with actor.region.view(top.ptr, top.nbytes) as view:
                pairs = np.frombuffer(view.memory, [("logit", "<f4"), ("token", "<i4")])
                pairs["logit"] = logits[best] - np.arange(top.k)
                pairs["token"] = (best + np.arange(top.k)) % len(logits)
        return best

    def _ask(self, actors: list[Actor], n_tokens: int) -> _Answers:
        """Has agents decode so many tokens each, from now on."""
        return _Answers(actors, f"{'emit' if self.case.emit else 'decode'} {n_tokens}")

    def _check(
        self, actors: list[Actor], best: list[int], n_tokens: int, replies: Sequence[Reply]
    ) -> None:
        """Raises VerificationFailed if an agent did not do what its logits ask for."""
        for actor, token, reply in zip(actors, best, replies, strict=True):
            tokens = actor.sessions[0].tokens.tolist()
            said = token_text(token) * n_tokens if self.case.emit else f"length={n_tokens + 1}"
            if tokens != [1] + [token] * n_tokens or reply.text != said:
                raise VerificationFailed(
                    f"an agent was to decode token {token} {n_tokens} times; it holds "
                    f"{tokens[:8]}… and said {reply.text[:40]!r}"
                )


class _Answers:
    """One message to each of several agents, delivered as a server takes the answers."""

    def __init__(self, actors: list[Actor], message: str) -> None:
        self.times: list[list[float]] = [[] for _ in actors]
        """When each piece came, in seconds, for each agent."""
        self._outcomes: list[Reply | BaseException | None] = [None] * len(actors)
        self._ended = threading.Semaphore(0)
        self.streams = [
            actor.stream(message, deliver=partial(self._deliver, i, self.times[i].append))
            for i, actor in enumerate(actors)
        ]

    def wait(self) -> list[Reply]:
        """The answers once all have ended. Raises what went wrong first."""
        for _ in self.streams:
            self._ended.acquire()
        replies = [it for it in self._outcomes if isinstance(it, Reply)]
        for outcome in self._outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return replies

    def _deliver(
        self, index: int, came: Callable[[float], None], piece: str | Reply | BaseException
    ) -> None:
        if isinstance(piece, str):
            came(time.perf_counter())
            return
        self._outcomes[index] = piece
        self._ended.release()
