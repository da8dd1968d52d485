"""How fast are many agents on one model? Against libllama's own batches of several sequences.

Every agent is a sandbox of its own, with its own caller and its own KV cache; each
token is sampled in the guest and delivered to the caller. Guests ask for the most probable token,
which a card finds; elsewhere they look for it. libllama decodes the same tokens as sequences of one
context (`n_seq_max`), and the largest logit is found with numpy.

`identical` compares every agent with its solo run: the ids, and a hash over the bits of all logits
on the way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

from isthmus.actor import Actor, Reply
from isthmus.benchmarks.record import (
    Plan,
    Record,
    describe_run,
    median_ratio,
    room_for,
    take_turns,
)
from isthmus.benchmarks.rival import Libllama
from isthmus.errors import VerificationFailed
from isthmus.model import Model
from isthmus.runtime import Runtime

COUNTS = (1, 2, 4, 8, 16, 32)
_N_TOKENS = 200
STEPS = 56
"""Tokens of each agent in a turn."""
_N_CTX = 512


def bench_agents(
    runtime: Runtime, model: Model, plan: Plan, progress: Callable[[], None]
) -> Record:
    """Tokens per second of all agents together, and the time between tokens of one."""
    n_rows = model.rows_at_once  # tried out now, and not in the first batch
    solo = [answer_alone(runtime, model, seed) for seed in range(max(plan.sizes))]
    results = []
    for n in plan.sizes:
        with Crowd(runtime, model, n) as crowd:
            runs = {"ours": crowd.ours, "llama.cpp": crowd.rival_decodes}
            samples = take_turns(runs, plan.repeats, progress)
            results.append(
                {
                    "agents": n,
                    "ours_tokens_per_s": n * STEPS / float(np.median(samples["ours"])),
                    "llama_cpp_tokens_per_s": n * STEPS / float(np.median(samples["llama.cpp"])),
                    "ratio": median_ratio(samples["llama.cpp"], samples["ours"]),
                    **_between("ours", crowd.gaps_s),
                    **_between("llama_cpp", crowd.rival_gaps_s),
                    "mean_batch": crowd.mean_batch,
                    "identical": crowd.answers() == solo[:n],
                    "samples_s": samples,
                }
            )
    return {
        **describe_run(runtime.device.info),
        "model": model.path.name,
        "exact": model.settings.exact,
        "width": str(model.width) if model.settings.exact else "none",
        "widths": str(model.widths),
        "rows_at_once": n_rows,
        "results": results,
    }


def require_as_alone(report: Record) -> None:
    """Raises VerificationFailed where an agent got other bits than alone, if it must not."""
    if report["exact"] and not all(it["identical"] for it in report["results"]):
        raise VerificationFailed("an agent's logits are not those of its solo run")


def _between(whose: str, gaps_s: list[float]) -> Record:
    """Percentiles of the time between two tokens of one agent, in milliseconds."""
    p50, p99 = np.percentile(gaps_s, [50, 99])
    return {f"{whose}_p50_ms": 1e3 * float(p50), f"{whose}_p99_ms": 1e3 * float(p99)}


def _spawn(runtime: Runtime, model: Model, seed: int) -> Actor:
    limits = room_for(model, _N_CTX)
    args = [f"n_ctx={_N_CTX}", "ask=1"]  # as the bundled guests do
    actor = runtime.spawn("bench", models={"default": model}, args=args, seed=0, limits=limits)
    actor.send(f"prefill {_N_TOKENS - 1} {seed}")
    actor.send(f"tokens {actor.sessions[0].tokens[0]}")
    return actor


def answer_alone(runtime: Runtime, model: Model, seed: int) -> str:
    """What an agent answers that is alone."""
    with _spawn(runtime, model, seed) as actor:
        _rewind(actor, seed, actor.sessions[0].tokens.tolist(), _goes_back(model))
        return actor.send(f"hash {STEPS}").text


def _goes_back(model: Model) -> bool:
    """Whether its sessions can go back to where their first prefill ended."""
    return model.truncates or (model.graph == "" and model.settings.checkpoints > 0)


def _rewind(actor: Actor, seed: int, tokens: list[int], goes_back: bool) -> None:
    """Back to the first tokens, the last of which is decoded, as libllama's is."""
    actor.send(f"truncate {_N_TOKENS - 1 if goes_back else 0}")
    if not goes_back:
        actor.send(f"prefill {_N_TOKENS - 1} {seed}")
    actor.send(f"tokens {tokens[_N_TOKENS - 1]}")


class Crowd:
    """`n` agents, and libllama with `n` sequences of the same tokens."""

    def __init__(
        self, runtime: Runtime, model: Model, n: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`clock` tells the seconds of `ours` and `rival_decodes`."""
        self._clock = clock
        self._device = runtime.device
        self._n_vocab = model.n_vocab
        self._truncates, self._goes_back = model.truncates, _goes_back(model)
        self._actors = [_spawn(runtime, model, seed) for seed in range(n)]
        self._tokens = [actor.sessions[0].tokens.tolist() for actor in self._actors]
        self._rival = Libllama(runtime.device, model.path, _N_CTX, model.settings, n)
        for sequence, tokens in enumerate(self._tokens):
            self._native(lambda s=sequence, t=tokens: self._rival.prefill_one(s, t))  # type: ignore[misc]
        self.gaps_s: list[float] = []
        self.rival_gaps_s: list[float] = []
        self._counts: list[int] = []

    @property
    def mean_batch(self) -> float:
        """Tokens in one submission, over all runs."""
        return len(self._actors) * STEPS * len(self._counts) / sum(self._counts)

    def ours(self) -> float:
        """Seconds until every agent has streamed its tokens to its caller."""
        self._rewind()
        submissions = self._device.counters.submissions
        start = self._clock()
        times = _stream_all(self._actors, f"sequence {STEPS}")
        seconds = self._clock() - start
        self._counts.append(self._device.counters.submissions - submissions)
        self.gaps_s += [b - a for came in times for a, b in pairwise(came)]
        return seconds

    def rival_decodes(self) -> float:
        """Seconds that libllama takes for the same tokens."""
        self._native(self._rewind_rival)
        last = [tokens[_N_TOKENS - 1] for tokens in self._tokens]
        self._native(lambda: self._rival.decode_all(last, _N_TOKENS - 1))
        start = self._clock()
        self._native(self._decode)
        return self._clock() - start

    def answers(self) -> list[str]:
        """What all agents say when they run together, as `answer_alone` has it."""
        self._rewind()
        streams = [actor.stream(f"hash {STEPS}") for actor in self._actors]
        for stream in streams:
            list(stream)
        return [stream.reply.text for stream in streams]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exc: object) -> None:
        self._rival.close()
        for actor in self._actors:
            actor.close()

    def _rewind(self) -> None:
        for seed, (actor, tokens) in enumerate(zip(self._actors, self._tokens, strict=True)):
            _rewind(actor, seed, tokens, self._goes_back)

    def _rewind_rival(self) -> None:
        """As `_rewind`; a state that libllama cannot take back is computed again."""
        for sequence, tokens in enumerate(self._tokens):
            if self._truncates:
                self._rival.truncate(_N_TOKENS - 1, sequence)
            else:
                self._rival.truncate(0, sequence)
                self._rival.prefill_one(sequence, tokens[: _N_TOKENS - 1])

    def _decode(self) -> None:
        came = time.perf_counter()
        for position in range(_N_TOKENS, _N_TOKENS + STEPS):
            best = [int(np.argmax(self._rival.logits_of(i))) for i in range(len(self._actors))]
            self._rival.decode_all(best, position)
            assert self._rival.logits_of(0) is not None  # waits for the result, as ours does
            before, came = came, time.perf_counter()
            self.rival_gaps_s.append(came - before)

    def _native(self, work: Callable[[], None]) -> None:
        """Runs libllama on the thread that has the device's workers."""
        self._device.compute_thread.run(work)


def _stream_all(actors: list[Actor], message: str) -> list[list[float]]:
    """When each piece came, for each agent, delivered as a server takes them."""
    times: list[list[float]] = [[] for _ in actors]
    ended = [threading.Event() for _ in actors]
    failures: list[BaseException] = []

    def deliver(index: int, piece: str | Reply | BaseException) -> None:
        if isinstance(piece, str):
            times[index].append(time.perf_counter())
            return
        if isinstance(piece, BaseException):
            failures.append(piece)
        ended[index].set()

    streams = [actor.stream(message, deliver=partial(deliver, i)) for i, actor in enumerate(actors)]
    for event in ended:
        event.wait()
    assert all(stream.ended for stream in streams)  # one that is dropped before has its guest stop
    if failures:
        raise failures[0]
    return times
