"""The benchmark of the host: which rows it has, and that it finds wrong answers."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from isthmus.benchmarks import host
from isthmus.benchmarks.host import Case, HostPlan, bench_host, bench_runaway
from isthmus.benchmarks.null_model import token_text, write_null_model
from isthmus.benchmarks.resident import resident_outside
from isthmus.errors import VerificationFailed
from isthmus.machine import n_threads
from isthmus.memory import Region
from isthmus.runtime import Runtime
from isthmus.units import MIB

PLAN = HostPlan(
    repeats=1,
    sizes=(2,),
    steps_ms=(0.0, 0.1),
    emits=(True, False),
    vocabularies=(512,),
    founds=(False,),
    n_tokens=3,
)
KEYS = {
    *("agents", "step_ms", "emit", "n_vocab", "found", "host_us", "mean_batch", "p50_ms", "p99_ms"),
    *("threads", "message_kib", "samples_host_us"),
}
_NBYTES = 64 * MIB


def test_rows_and_answers() -> None:
    advanced: list[None] = []
    report = bench_host(PLAN, lambda: advanced.append(None))
    cases = [(it["agents"], it["step_ms"], it["emit"]) for it in report["results"]]
    assert cases == [(2, 0.1, True), (2, 0.0, True), (2, 0.0, False), (2, 0.1, False)]
    assert len(advanced) == PLAN.n_runs == 4
    for row in report["results"]:
        assert row.keys() == KEYS
        assert row["host_us"] > 0
        assert 1 <= row["mean_batch"] <= 2
        assert row["p50_ms"] >= row["step_ms"]
        assert row["threads"] >= 1
        assert len(row["samples_host_us"]) == 1


def test_where_the_device_finds_the_tokens() -> None:
    report = bench_host(replace(PLAN, steps_ms=(0.0,), founds=(True,)), lambda: None)
    assert [(it["found"], it["emit"]) for it in report["results"]] == [(True, True), (True, False)]


def test_candidates_are_what_agents_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "argmax", lambda _logits: 7)  # of candidates only
    report = bench_host(replace(PLAN, steps_ms=(0.0,), founds=(True,)), lambda: None)
    assert len(report["results"]) == 2
    with pytest.raises(VerificationFailed, match="decode token 7"):
        bench_host(replace(PLAN, founds=(False,)), lambda: None)


def test_a_wrong_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "token_text", lambda token: f"v{token} ")
    with pytest.raises(VerificationFailed, match="decode token"):
        bench_host(PLAN, lambda: None)


def test_runaway() -> None:
    report = bench_runaway(PLAN, lambda: None)
    assert [it["runaway"] for it in report["results"]] == [False, True]
    for row in report["results"]:
        assert row.keys() == {"agents", "step_ms", "runaway", "p50_ms", "p99_ms", "worst_ms"}
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["worst_ms"]


def test_which_rows() -> None:
    plan = HostPlan(sizes=(8, 64), steps_ms=(0.0, 5.0), emits=(True,), vocabularies=(10, 20))
    plan = replace(plan, founds=(True,))
    assert plan.cases() == [
        Case(8, 5.0, True, 10, True),
        Case(64, 5.0, True, 10, True),
        Case(64, 0.0, True, 10, True),
        Case(64, 0.0, True, 20, True),
        Case(64, 5.0, True, 20, True),
    ]
    every = HostPlan(sizes=(8, 64), steps_ms=(0.0, 5.0), vocabularies=(10, 20), every=True)
    assert len({*every.cases()}) == 32
    assert HostPlan(repeats=7).repeats_of(Case(1000, 5.0, True, 10)) == 2
    assert HostPlan(repeats=1).repeats_of(Case(1000, 5.0, True, 10)) == 1


def test_the_model_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = write_null_model(tmp_path / "null.gguf", 512)
    reader = gguf.GGUFReader(path)
    shapes = {str(it.name): [int(n) for n in it.shape] for it in reader.tensors}
    assert shapes["token_embd.weight"] == [32, 512]
    assert sum(name.endswith("attn_q.weight") for name in shapes) == 16
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert len(tokens.data) == 512
    with Runtime(device="null", threads=1) as runtime:
        model = runtime.load_model(path)
        assert model.tokenizer is not None
        assert model.tokenizer.decode([7, 511]).decode() == token_text(7) + token_text(511)


@pytest.fixture
def touched() -> Iterator[Region]:
    with Region.reserve(_NBYTES, 0) as region:
        region.grow(_NBYTES)
        with region.view(0, _NBYTES) as view:
            view.memory[:] = bytes(_NBYTES)
        yield region


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it of each mapping")
def test_resident_memory_outside_of_guests(touched: Region) -> None:
    found = [resident_outside([]) - resident_outside([touched]) for _ in range(5)]
    inside = statistics.median(found)  # what earlier tests left may be freed between two looks
    assert 0.8 * _NBYTES <= inside <= 1.2 * _NBYTES  # the heap moves by a few megabytes
    assert n_threads() >= 1
