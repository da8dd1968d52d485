"""`isthmus bench agents`: each agent has the bits of its solo run, however its model goes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.benchmarks.agents import bench_agents, require_as_alone
from isthmus.benchmarks.record import Plan
from isthmus.runtime import Runtime
from tests.tiny_gguf import TinyModel


@pytest.mark.parametrize(
    "how",
    [{}, {"checkpoints": 0}, {"graph": "adopted"}],
    ids=["checkpoints", "emptied", "adopted"],
)
def test_agents_of_a_model_with_states_begin_each_turn_anew(
    how: dict[str, object], tmp_path: Path
) -> None:
    """A session without checkpoints is emptied, and prefilled again."""
    path = TinyModel("lfm2", quantisation="Q8_0", with_tokenizer=True).write(tmp_path / "x.gguf")
    turns: list[None] = []
    with Runtime(device="cpu", threads=1) as runtime:
        model = runtime.load_model(path, **how)  # type: ignore[arg-type]
        report = bench_agents(runtime, model, Plan(1, (2,)), lambda: turns.append(None))
    (result,) = report["results"]
    assert result["identical"]
    assert len(turns) == 1
    require_as_alone(report)
