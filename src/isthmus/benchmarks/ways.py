"""What does libllama's graph cost in an agent's memory, beside libllama alone and a graph of ours?

All three have the same file, threads and flash attention, and see the same tokens; the logits must
be the same bytes. A row is one way, at one length of context.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from isthmus.actor import Actor
from isthmus.benchmarks.record import Plan, Record, describe_run, median_ratio, take_turns
from isthmus.benchmarks.resident import resident_outside
from isthmus.benchmarks.tokens import Pair, lengths
from isthmus.errors import ModelUnsupported, VerificationFailed
from isthmus.model import Model
from isthmus.model.architectures import architectures
from isthmus.runtime import Runtime
from isthmus.units import KIB

_AGENTS = 8
"""Restored beside each other, to see what each takes."""
_NOTHING = {"next_token_ms": "-", "agent_kib": "-"}


def bench_ways(runtime: Runtime, model: Model, plan: Plan, progress: Callable[[], None]) -> Record:
    """Decoding, opening and restoring, by graphs of ours and by libllama's own.

    Lengths are those of `lengths`. Raises ModelUnsupported if there is no graph of ours.
    """
    if (name := model.hparams.architecture) not in architectures():
        raise ModelUnsupported(
            f"{model.path} is of architecture {name!r}, for which libllama alone writes a graph: "
            "there are no two ways to compare; try isthmus bench decode"
        )
    given = asdict(model.settings)
    models = {
        way: runtime.load_model(model.path, **given | {"graph": way}) for way in ("own", "adopted")
    }
    results = []
    for n_tokens in lengths(model, plan):
        only = replace(plan, sizes=(n_tokens,))
        with (
            Pair(runtime, models["own"], only) as own,
            Pair(runtime, models["adopted"], only) as it,
        ):
            results += _rows(runtime, {"own": own, "adopted": it}, models, only, progress)
    return {**describe_run(runtime.device.info), "model": model.path.name, "results": results}


def _rows(
    runtime: Runtime,
    pairs: dict[str, Pair],
    models: dict[str, Model],
    plan: Plan,
    progress: Callable[[], None],
) -> list[Record]:
    (n_tokens,) = plan.sizes
    for pair in pairs.values():
        pair.begin(n_tokens)
    alone, adopted = pairs["own"], pairs["adopted"]
    runs = {
        "own": lambda: alone.ours_decodes(n_tokens),
        "adopted": lambda: adopted.ours_decodes(n_tokens),
        "llama.cpp": lambda: alone.rival_decodes(n_tokens),
    }
    samples = take_turns(runs, plan.repeats, progress)
    adopted.rival_decodes(n_tokens)  # which compares
    return [
        {
            "graph": way,
            "context": n_tokens,
            "tokens_per_s": alone.n_steps / float(np.median(samples[way])),
            "ratio": median_ratio(samples["llama.cpp"], samples[way]),
            "identical": way not in pairs or pairs[way].identical,
            "open_ms": _open_ms(way, pairs, plan),
            **(_restored(runtime, pairs[way], models[way], plan) if way in pairs else _NOTHING),
            "samples_s": samples[way],
        }
        for way in runs
    ]


def _open_ms(way: str, pairs: dict[str, Pair], plan: Plan) -> float | str:
    """Milliseconds in which a context of libllama opens."""
    if way == "own":
        return "-"
    open_one = pairs["adopted"].open_context if way == "adopted" else pairs["own"].open_rival
    return 1e3 * float(np.median([open_one() for _ in range(plan.repeats)]))


def _restored(runtime: Runtime, pair: Pair, model: Model, plan: Plan) -> Record:
    """How soon a restored agent has its next token, and what it takes beside its own memory."""
    with tempfile.TemporaryDirectory() as folder:
        saved = pair.actor.snapshot(Path(folder) / "agent.safetensors")

        def restore() -> Actor:
            return runtime.restore(saved, models={"default": model}, verify="lazy")

        seconds = []
        for _ in range(plan.repeats):
            start = time.perf_counter()
            with restore() as actor:
                actor.send("decode 1")
                seconds.append(time.perf_counter() - start)
        before = _outside(runtime)
        agents = [restore() for _ in range(_AGENTS)]
        for it in agents:
            it.send("decode 1")
        kib = (_outside(runtime) - before) / _AGENTS / KIB
        for it in agents:
            it.close()
    return {"next_token_ms": 1e3 * float(np.median(seconds)), "agent_kib": kib}


def _outside(runtime: Runtime) -> int:
    """Resident memory outside of all agents' own."""
    regions = [it.region for it in runtime.actors]
    resident_outside(regions)
    return resident_outside(regions)


def require_same_logits(report: Record) -> None:
    """Raises VerificationFailed if logits differed."""
    if not all(row["identical"] for row in report["results"]):
        raise VerificationFailed("the logits are not those of libllama")
