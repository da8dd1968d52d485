"""Tiny models of every architecture: what the library makes of the recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from isthmus.cli import main
from isthmus.errors import ModelUnsupported
from isthmus.model.architectures import architectures
from isthmus.native.loader import Library
from isthmus.survey.known_models import KNOWN_MODELS
from isthmus.survey.row import Findings, Row
from isthmus.survey.survey import examine
from isthmus.survey.tiny import tiny_model


def test_a_model_has_the_same_bytes_each_time(library: Library) -> None:
    once, again = (tiny_model(library, "qwen35") for _ in range(2))
    assert once == again
    assert once[:4] == b"GGUF"
    assert tiny_model(library, "qwen35", seed=1) != once


def test_what_the_library_makes_no_model_of_is_refused_with_its_words(library: Library) -> None:
    with pytest.raises(ModelUnsupported, match="CLIP cannot be used as main model"):
        tiny_model(library, "clip")
    with pytest.raises(ModelUnsupported, match="GGML_ASSERT"):
        tiny_model(library, "gemma4-assistant")
    with pytest.raises(ModelUnsupported, match="unknown model architecture: 'none-such'"):
        tiny_model(library, "none-such")


def test_the_library_tells_its_architectures(library: Library) -> None:
    names = library.architectures()
    assert {"llama", "qwen35", "gemma4", "gpt-oss", "lfm2"} <= set(names)
    assert len(set(names)) == len(names)


def test_every_architecture_of_the_library_is_on_record(library: Library) -> None:
    """A new release's architectures are found here: run `make architectures`."""
    rows = recorded()
    assert [row.name for row in rows] == library.architectures()
    assert sum(row.holds for row in rows) >= 120
    assert not [row.name for row in rows if row.way != "refused" and not row.holds]
    assert {row.name for row in rows if row.way == "own"} == set(architectures())
    assert set(KNOWN_MODELS) <= {row.name for row in rows}


def test_a_row_is_what_its_record_says() -> None:
    row = Row("x", "adopted", "X 1", ("cpu",), Findings("text", True, True, True, None))
    record = json.loads(json.dumps(row.as_json()))
    assert record["holds"]
    assert Row.from_json(record) == row
    assert row.cells() == ("x", "adopted", "text", "exact", "exact", "exact", "no", "cpu", "X 1")


@pytest.mark.parametrize(
    ("findings", "holds"),
    [
        (Findings("text", True, True, True, True), True),
        (Findings("text", True, True, True, False), False),
        (Findings("text", True, True, False, True), False),
        (Findings("text", True, None, True, True), False),
        (Findings("embeddings", True), True),
        (Findings("embeddings", False), False),
        (Findings(problem="it has none"), False),
    ],
)
def test_what_holds(findings: Findings, holds: bool) -> None:
    assert findings.holds is holds


@pytest.mark.slow
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["architectures", "--only", "mamba,clip", "--json"]) == 0
    mamba, clip = (Row.from_json(it) for it in json.loads(capsys.readouterr().out)["rows"])
    assert mamba.holds
    assert mamba.devices == ("cpu",)
    assert (mamba.way, mamba.findings.truncate) == ("adopted", None)
    assert (clip.way, clip.holds) == ("refused", False)
    assert main(["architectures", "--only", "qwen-35"]) == 2
    assert "no architecture 'qwen-35': did you mean qwen35?" in capsys.readouterr().err
    assert main(["architectures", "--only", " ,"]) == 2
    assert "--only is empty: give one name or more" in capsys.readouterr().err
    assert main(["architectures", "--only", "clip", "--device", "cpu, tpu"]) == 2
    assert "there is no device 'tpu'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_ends_its_process_is_a_refused_row(library: Library) -> None:
    row = examine(library, "plm", ["cpu"])
    assert row.way == "refused"
    assert "GGML_ASSERT" in row.findings.problem


def recorded() -> list[Row]:
    record = Path(__file__).parents[2] / "benchmarks" / "results" / "architectures.json"
    return [Row.from_json(it) for it in json.loads(record.read_text())["rows"]]
