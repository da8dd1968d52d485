"""Does a model predict a text as well through the sandbox as in libllama?

As llama.cpp's perplexity tool does it: the text is cut into windows of n_ctx tokens, and of each
the second half counts, each of its tokens predicted from all before it in the window. Ours goes
through the guest `bench`, which prefills the first half and then gets one token after the other.

Libllama does the same, and then what its tool does: a window as one batch. A batch rounds otherwise
than single tokens, so that figure is near, and not equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from isthmus.actor import Actor
from isthmus.benchmarks.record import Plan, Record, describe_run
from isthmus.benchmarks.rival import Libllama
from isthmus.errors import SettingsError, VerificationFailed
from isthmus.model import Model
from isthmus.runtime import Runtime

_MIN_WINDOW = 8
_ALLOWED = 1e-4
"""Relative difference of the two perplexities."""


def bench_perplexity(
    runtime: Runtime, model: Model, plan: Plan, progress: Callable[[], None]
) -> Record:
    """Perplexities of `plan.text`; SettingsError where there is none, or too little of it."""
    windows = _windows(model, plan)
    ours, theirs, whole = _Mean(), _Mean(), _Mean()
    identical = True
    with (
        runtime.spawn("bench", models={"default": model}, args=[f"n_ctx={plan.n_ctx}"]) as actor,
        Libllama(runtime.device, model.path, plan.n_ctx, model.settings) as rival,
    ):
        on_device = runtime.device.compute_thread.run
        for window in windows:
            _begin(actor, rival)
            for tokens, following in _steps(window):
                actor.send("tokens " + " ".join(map(str, tokens)))
                mine = actor.sessions[0].logits
                other = on_device(partial(rival.append, tokens))
                identical = identical and bool(np.array_equal(mine, other))
                ours.add(mine, following)
                theirs.add(other, following)
            rows = on_device(partial(rival.logits_of_all, window))
            for place in range(len(window) // 2, len(window) - 1):
                whole.add(rows[place], window[place + 1])
            progress()
    result = {
        "windows": len(windows),
        "tokens": ours.n,
        "ours": ours.perplexity,
        "llama_cpp": theirs.perplexity,
        "difference": abs(ours.perplexity / theirs.perplexity - 1),
        "identical": identical,
        "llama_cpp_in_batches": whole.perplexity,
        "difference_to_batches": abs(ours.perplexity / whole.perplexity - 1),
    }
    about = {"model": model.path.name, "text": str(plan.text), "n_ctx": plan.n_ctx}
    return {**describe_run(runtime.device.info), **about, "results": [result]}


def require_same_perplexity(report: Record) -> None:
    """Raises VerificationFailed where ours is not libllama's."""
    for result in report["results"]:
        if not result["difference"] <= _ALLOWED:
            raise VerificationFailed(
                f"the perplexity is {result['ours']:.6g}, libllama's {result['llama_cpp']:.6g}"
            )


class _Mean:
    """The mean of how unlikely tokens were, in nats."""

    def __init__(self) -> None:
        self.n = 0
        self._sum = 0.0

    def add(self, logits: npt.NDArray[np.float32], token: int) -> None:
        """Counts the token that came after these logits."""
        shifted = logits.astype(np.float64) - float(logits.max())
        self._sum += math.log(float(np.exp(shifted).sum())) - float(shifted[token])
        self.n += 1

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the model chose, so to speak."""
        return math.exp(self._sum / self.n)


def _begin(actor: Actor, rival: Libllama) -> None:
    """Both hold nothing."""
    if actor.sessions:
        actor.send("truncate 0")
    rival.truncate(0)


def _steps(window: Sequence[int]) -> Iterator[tuple[Sequence[int], int]]:
    """What is appended, and the token that comes then: the first half at once, then one by one."""
    first = len(window) // 2
    yield window[: first + 1], window[first + 1]
    for place in range(first + 1, len(window) - 1):
        yield window[place : place + 1], window[place + 1]


def _windows(model: Model, plan: Plan) -> list[list[int]]:
    """The text's tokens, `n_ctx` each; where the model wants a first token, each begins with it."""
    n_ctx, tokenizer = plan.n_ctx, model.tokenizer
    if plan.text is None:
        raise SettingsError("perplexity of what? give a text: --text FILE")
    if not _MIN_WINDOW <= n_ctx <= model.hparams.n_ctx_train:
        raise SettingsError(
            f"n_ctx is {n_ctx}; {model.name} takes {_MIN_WINDOW} to {model.hparams.n_ctx_train}"
        )
    try:
        text = plan.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {plan.text} as UTF-8 text: {error}") from None
    tokens = tokenizer.encode(text, add_special=True)
    windows = [tokens[at : at + n_ctx] for at in range(0, len(tokens) - n_ctx + 1, n_ctx)]
    if not windows:
        raise SettingsError(
            f"{plan.text} has {len(tokens)} tokens; a window takes {n_ctx}: give more text, or a "
            "smaller --n-ctx"
        )
    if tokenizer.adds_bos:
        windows = [[tokenizer.bos, *window[1:]] for window in windows]
    return windows
