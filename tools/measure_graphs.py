"""Eight agents of each architecture with a graph of ours, beside libllama's batches of eight
sequences and the same file adopted: `make bench-graphs`.

The files are small models with random weights, made by the tests' generator. The three take turns
on one thread, and what is compared is processor time, so that other work on the machine changes
little. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))


from isthmus.benchmarks.agents import STEPS, Crowd, answer_alone
from isthmus.benchmarks.record import median_ratio, take_turns
from isthmus.runtime import Runtime

ARCHITECTURES = (
    "gpt-oss gemma4 qwen35 qwen35moe lfm2 lfm2moe glm4moe deepseek2 mistral3 smollm3 olmo2 "
    "seed_oss granitehybrid nemotron_h nemotron_h_moe qwen3vl"
)
_AGENTS = 8
_WIDTH = "feed_forward_length"
_SHAPES: dict[str, dict[str, int]] = {
    "gemma4": {"n_embd": 2048, "n_ff": 96, "n_ff_expert": 64},
    "glm4moe": {"n_embd": 2048, "n_ff_expert": 64},
    "lfm2": {"head_dim": 256},
    "olmo2": {"head_dim": 256},
    "lfm2moe": {"head_dim": 256},
    "granitehybrid": {"n_embd": 64, "n_ff": 65_536},
    "nemotron_h": {"n_ff": 9216},
    "nemotron_h_moe": {"n_ff": 9216, "n_ff_expert": 4096},
} | {it: {"n_ff": 9216} for it in ("mistral3", "qwen3vl", "seed_oss")}
"""What makes files of about 50 MB."""
_WIDTHS_GIVEN = ("gemma4",)
"""Those whose recipe has all widths."""


def main() -> int:
    """Measures; 1 if an agent got other logits than alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=ARCHITECTURES, help="architectures, between blanks")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    print("| architecture | step of 8, ms | own / libllama's batches | own / adopted | exact |")
    print("| --- | --- | --- | --- | --- |")
    exact = True
    for name in arguments.only.split():
        with tempfile.TemporaryDirectory() as folder, Runtime(device="cpu", threads=1) as runtime:
            exact &= _measure(runtime, name, Path(folder), arguments.repeats)
    return 0 if exact else 1


def _measure(runtime: Runtime, name: str, folder: Path, repeats: int) -> bool:
    _write(name, file := folder / f"{name}.gguf")
    model = runtime.load_model(file, width="many")
    libllamas = runtime.load_model(file, graph="adopted")
    with (
        Crowd(runtime, model, _AGENTS, time.process_time) as own,
        Crowd(runtime, libllamas, _AGENTS, time.process_time) as adopted,
    ):
        runs = {"own": own.ours, "adopted": adopted.ours, "llama.cpp": own.rival_decodes}
        samples = take_turns(runs, repeats, lambda: None)
        alone = [answer_alone(runtime, model, seed) for seed in range(_AGENTS)]
        exact = own.answers() == alone == adopted.answers()
    step_ms = 1e3 * float(np.median(samples["own"])) / STEPS
    ratios = (median_ratio(samples[it], samples["own"]) for it in ("llama.cpp", "adopted"))
    figures = " | ".join(f"{it:.2f}" for it in ratios)
    print(f"| `{name}` | {step_ms:.1f} | {figures} | {'yes' if exact else 'NO'} |", flush=True)
    return exact


def _write(name: str, path: Path) -> None:
    """A model of which a step takes longer than what is around it."""
    from tests.tiny_gguf import RECIPES, TinyModel  # noqa: PLC0415 - of this repository

    usual = {"n_embd": 1024, "n_ff": 3072, "n_ff_expert": 1024}
    shape: dict[str, Any] = usual | _SHAPES.get(name, {})
    said = {key: value for key, value in RECIPES[name].metadata.items() if _WIDTH in key}
    wider = {TinyModel.n_ff: shape["n_ff"], TinyModel.n_ff_expert: shape["n_ff_expert"]}
    overrides = {
        key: [wider.get(it, it) for it in value] if isinstance(value, list) else wider[value]
        for key, value in said.items()
        if name not in _WIDTHS_GIVEN
    }
    model = TinyModel(name, quantisation="Q8_0", with_tokenizer=True, overrides=overrides, **shape)
    model.write(path)


if __name__ == "__main__":
    sys.exit(main())
