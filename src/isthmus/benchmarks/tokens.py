"""Is a model as fast through the sandbox as libllama called natively? Decode and prefill.

Both sides use the same library, file, threads and flash attention, and see the same tokens; the
logits must be the same bytes. Ours is timed from the host's message to the guest's answer, so the
sandbox, the ABI and the guest's own reading of the logits are in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import numpy as np

from isthmus.actor import Actor
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
from isthmus.model.adopted.layout import AdoptedLayout
from isthmus.model.adopted.model import AdoptedModel
from isthmus.runtime import Runtime
from isthmus.units import align_up

CONTEXTS = (32, 512, 2000)
_STEPS = 24
_STEPS_ON_A_CARD = 128
"""A message's way and a new graph's first run are then as rare as they are in an answer."""
_ROOM = 256
_GREEDY_TOKENS = 200
"""How many are compared."""


def bench_decode(
    runtime: Runtime, model: Model, plan: Plan, progress: Callable[[], None]
) -> Record:
    """Tokens per second of greedy decoding at several lengths of context; see `lengths`."""
    results = []
    with Pair(runtime, model, plan) as pair:
        for n_tokens in lengths(model, plan):
            pair.begin(n_tokens)
            runs = {
                "ours": lambda n=n_tokens: pair.ours_decodes(n),
                "llama.cpp": lambda n=n_tokens: pair.rival_decodes(n),
            }
            samples = take_turns(runs, plan.repeats, progress)  # type: ignore[arg-type]
            token_s = _median(samples["ours"]) / pair.n_steps
            outside_s = pair.host_outside_kernels_ns / pair.n_decoded / 1e9
            results.append(
                {
                    "context": n_tokens,
                    "ours_tokens_per_s": 1 / token_s,
                    "llama_cpp_tokens_per_s": pair.n_steps / _median(samples["llama.cpp"]),
                    "ratio": median_ratio(samples["llama.cpp"], samples["ours"]),
                    "identical": pair.identical,
                    "logits_relative_error": pair.error,
                    "equal_greedy_tokens": pair.equal_greedy_tokens(n_tokens),
                    "bytes_copied": runtime.counters().bytes_copied,
                    "host_outside_kernels": outside_s / token_s,
                    "samples_s": samples,
                }
            )
    return {**describe_run(runtime.device.info), "model": str(model.path.name), "results": results}


def bench_prefill(
    runtime: Runtime, model: Model, plan: Plan, progress: Callable[[], None]
) -> Record:
    """Tokens per second of prefill, from an empty session; no more than the model's context has."""
    results = []
    with Pair(runtime, model, plan) as pair:
        for n_tokens in lengths(model, plan, room=0):
            pair.begin(n_tokens)
            runs = {
                "ours": lambda n=n_tokens: pair.ours_prefills(n),
                "llama.cpp": lambda n=n_tokens: pair.rival_prefills(n),
            }
            samples = take_turns(runs, plan.repeats, progress)  # type: ignore[arg-type]
            results.append(
                {
                    "tokens": n_tokens,
                    "ours_tokens_per_s": n_tokens / _median(samples["ours"]),
                    "llama_cpp_tokens_per_s": n_tokens / _median(samples["llama.cpp"]),
                    "ratio": median_ratio(samples["llama.cpp"], samples["ours"]),
                    "identical": pair.identical,
                    "logits_relative_error": pair.error,
                    "samples_s": samples,
                }
            )
    return {**describe_run(runtime.device.info), "model": str(model.path.name), "results": results}


def lengths(model: Model, plan: Plan, room: int = _ROOM) -> list[int]:
    """Lengths of context: a size that leaves no `room` for what is decoded is shortened."""
    most = max(1, model.hparams.n_ctx_train - room)
    return list(dict.fromkeys(min(size, most) for size in plan.sizes))


class Pair:
    """Our actor and libllama, brought to the same tokens."""

    def __init__(self, runtime: Runtime, model: Model, plan: Plan) -> None:
        n_ctx = min(align_up(max(plan.sizes) + _ROOM, 256), model.hparams.n_ctx_train)
        self.actor: Actor = runtime.spawn(
            "bench",
            models={"default": model},
            args=[f"n_ctx={n_ctx}"],
            seed=0,
            limits=room_for(model, n_ctx),
        )
        self._device = runtime.device
        self._truncates = model.truncates
        self.n_steps = _STEPS_ON_A_CARD if runtime.device.has_own_memory else _STEPS
        self._rival = Libllama(runtime.device, model.path, n_ctx, model.settings)
        self._tokens: list[int] = []
        self.identical = True
        self.error = 0.0
        self.n_decoded = 0
        self.host_outside_kernels_ns = 0

    def begin(self, n_tokens: int) -> None:
        """Both hold the same `n_tokens` tokens."""
        self._prefill(n_tokens)
        self._tokens = self.actor.sessions[0].tokens.tolist()
        self._prefill_rival()
        self.identical, self.error = True, 0.0
        self.n_decoded = self.host_outside_kernels_ns = 0
        self._compare()

    def ours_decodes(self, n_tokens: int) -> float:
        self._go_back(n_tokens)
        before = self._outside_kernels_ns()
        seconds = self._timed(lambda: self.actor.send(f"decode {self.n_steps}"))
        self.host_outside_kernels_ns += self._outside_kernels_ns() - before
        self.n_decoded += self.n_steps
        return seconds

    def rival_decodes(self, n_tokens: int) -> float:
        self._take_rival_back(n_tokens)

        def decode() -> None:
            for _ in range(self.n_steps):
                self._rival.decode(int(np.argmax(self._rival.logits)))
            assert self._rival.logits is not None  # waits for the last result, as ours does

        seconds = self._native(decode)
        self._compare()
        return seconds

    def open_rival(self) -> float:
        """Seconds in which libllama opens a context by itself."""
        return self._native(self._rival.open_context)

    def open_context(self) -> float:
        """Seconds in which a context of libllama opens over the agent's session."""
        (session,) = self.actor.sessions
        contexts = cast("AdoptedModel", session.owner).contexts
        layout = cast("AdoptedLayout", session.layout)
        start = time.perf_counter()
        context = contexts.open(session.base, layout)
        seconds = time.perf_counter() - start
        context.close()
        return seconds

    def equal_greedy_tokens(self, n_tokens: int) -> int:
        """How many greedy tokens are the same before the first that differs."""
        self._go_back(n_tokens)
        ours = [int(text) for text in self.actor.send(f"sequence {_GREEDY_TOKENS}").text.split()]
        theirs: list[int] = []
        self._take_rival_back(n_tokens)

        def decode() -> None:
            for _ in range(_GREEDY_TOKENS):
                theirs.append(int(np.argmax(self._rival.logits)))
                self._rival.decode(theirs[-1])

        self._native(decode)
        same = [a == b for a, b in zip(ours, theirs, strict=True)]
        return same.index(False) if False in same else len(same)

    def ours_prefills(self, n_tokens: int) -> float:
        self.actor.send("truncate 0")
        return self._timed(lambda: self.actor.send(f"prefill {n_tokens} 1"))

    def rival_prefills(self, _n_tokens: int) -> float:
        self._rival.truncate(0)

        def prefill() -> None:
            self._rival.prefill(self._tokens)
            assert self._rival.logits is not None  # waits for the result, as ours does

        seconds = self._native(prefill)
        self._compare()
        return seconds

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *exc: object) -> None:
        self._rival.close()
        self.actor.close()

    def _go_back(self, n_tokens: int) -> None:
        """Ours holds these tokens again, and the logits of the last of them."""
        if self._truncates:
            self.actor.send(f"truncate {n_tokens - 1}")
            self.actor.send(f"tokens {self._tokens[n_tokens - 1]}")
        else:
            self._prefill(n_tokens)

    def _take_rival_back(self, n_tokens: int) -> None:
        """The same for libllama."""
        if self._truncates:
            self._rival.truncate(n_tokens - 1)
            self._native(lambda: self._rival.decode(self._tokens[n_tokens - 1]))
        else:
            self._prefill_rival()

    def _prefill(self, n_tokens: int) -> None:
        if self.actor.sessions:
            self.actor.send("truncate 0")
        self.actor.send(f"prefill {n_tokens} 1")

    def _prefill_rival(self) -> None:
        self._rival.truncate(0)
        self._native(lambda: self._rival.prefill(self._tokens))

    def _compare(self) -> None:
        """Whether both ended with the same logits, when both hold the same number of tokens."""
        ours = self.actor.sessions[0].logits
        theirs = self._rival.logits
        self.identical = self.identical and bool(np.array_equal(ours, theirs))
        error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        self.error = max(self.error, error)

    def _outside_kernels_ns(self) -> int:
        return self.actor.counters.host_ns - self._device.counters.kernel_ns

    def _native(self, work: Callable[[], None]) -> float:
        """Seconds that libllama takes, on the thread that has the device's workers."""
        return self._device.compute_thread.run(lambda: self._timed(work))

    @staticmethod
    def _timed(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start


def require_identical(report: Record) -> None:
    """Raises VerificationFailed where logits differed."""
    if not all(result["identical"] for result in report["results"]):
        raise VerificationFailed("the logits are not those of libllama")


def _median(samples: list[float]) -> float:
    return float(np.median(samples))
