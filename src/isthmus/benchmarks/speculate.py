"""Does a small model's guessing make a large one faster? The guest `speculate`, with and without.

Both sides are the same guest and the same target model, greedy, from the same prompts: once with a
draft model, and once without (`n_draft=0`), token by token. The ids must be the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np

from isthmus.actor import Actor
from isthmus.benchmarks.record import Plan, Record, describe_run, median_ratio, take_turns
from isthmus.config import Limits
from isthmus.errors import SettingsError, VerificationFailed
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.units import MIB, WASM_PAGE, align_up

DRAFTED = (2, 4, 8)
_N_TOKENS = 96
_N_CTX = 512
_HEAP_NBYTES = 64 * MIB
_PROMPTS = (
    "Write a short story about a lighthouse keeper.",
    "List the numbers from one to forty in words, separated by commas.",
    "Explain to a child how rain is made.",
)
_REPORT = re.compile(r"passes=(\d+) drafted=(\d+) accepted=(\d+) tokens=([\d ]*)")


def bench_speculate(
    runtime: Runtime, models: dict[str, Model], plan: Plan, progress: Callable[[], None]
) -> Record:
    """Tokens per second with a draft and without, and how many guesses are right."""
    target, draft = _pair(models)
    results = []
    plain = _Speaker(runtime, target, draft, 0)
    for n_draft in plan.sizes:
        with _Speaker(runtime, target, draft, n_draft) as guessing:
            samples = take_turns(
                {"draft": guessing.run, "plain": plain.run}, plan.repeats, progress
            )
            results.append(
                {
                    "n_draft": n_draft,
                    "draft_tokens_per_s": plain.n_said / float(np.median(samples["draft"])),
                    "plain_tokens_per_s": plain.n_said / float(np.median(samples["plain"])),
                    "ratio": median_ratio(samples["plain"], samples["draft"]),
                    "acceptance": guessing.n_accepted / max(1, guessing.n_drafted),
                    "tokens_per_pass": guessing.n_said / max(1, guessing.n_passes),
                    "identical": guessing.tokens == plain.tokens,
                    "samples_s": samples,
                }
            )
    plain.actor.close()
    return {
        **describe_run(runtime.device.info),
        "model": target.path.name,
        "draft": draft.path.name,
        "one_pass": target.batches,
        "exact": target.settings.exact,
        "widths": str(target.widths),
        "results": results,
    }


def require_same_tokens(report: Record) -> None:
    """Raises VerificationFailed where a draft changed what is said, if it must not."""
    if report["exact"] and not all(result["identical"] for result in report["results"]):
        raise VerificationFailed("with a draft, other tokens were said than without")


def _pair(models: dict[str, Model]) -> tuple[Model, Model]:
    if not {"default", "draft"} <= models.keys():
        raise SettingsError(
            "this needs two models of one vocabulary: --model default=PATH --model draft=PATH"
        )
    return models["default"], models["draft"]


class _Speaker:
    """An actor that answers all prompts, and what it said the last time."""

    def __init__(self, runtime: Runtime, target: Model, draft: Model, n_draft: int) -> None:
        n_ctx = min(_N_CTX, target.hparams.n_ctx_train)
        nbytes = sum(it.layout(min(n_ctx, it.hparams.n_ctx_train)).nbytes for it in (target, draft))
        rows = 4 * target.n_vocab * (n_draft + 1)
        self.actor: Actor = runtime.spawn(
            "speculate",
            models={"default": target, "draft": draft},
            args={
                "n_ctx": n_ctx,
                "max_tokens": _N_TOKENS,
                "n_draft": n_draft,
                "temperature": 0,
                "answer": "report",
            },
            seed=0,
            limits=Limits(memory_nbytes=align_up(nbytes + rows + _HEAP_NBYTES, WASM_PAGE)),
        )
        self.tokens: list[list[int]] = []
        self.n_passes = self.n_drafted = self.n_accepted = 0

    @property
    def n_said(self) -> int:
        """Tokens of all answers together."""
        return sum(map(len, self.tokens))

    def run(self) -> float:
        """Seconds for all prompts, their prefills included."""
        start = time.perf_counter()
        texts = [self.actor.send(prompt).text for prompt in _PROMPTS]
        seconds = time.perf_counter() - start
        found = [_REPORT.fullmatch(text) for text in texts]
        counts = [[int(it[i]) for i in (1, 2, 3)] for it in found if it is not None]
        self.n_passes, self.n_drafted, self.n_accepted = map(sum, zip(*counts, strict=True))
        self.tokens = [[int(token) for token in it[4].split()] for it in found if it is not None]
        return seconds

    def __enter__(self) -> _Speaker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.actor.close()
