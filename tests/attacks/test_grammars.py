"""Snapshots that lie about their grammars, and older ones that have none."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isthmus import Model, Runtime
from isthmus.errors import SnapshotError
from isthmus.snapshot import open_snapshot
from tests.attacks.test_snapshots import Forgery
from tests.e2e.test_grammar import Writing
from tests.tiny_gguf import TinyLlama

GRAMMAR = 3
"""The handle of the grammar, after the model's and the session's."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(shared: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("grammars") / "tiny.gguf"
    return shared.load_model(TinyLlama(with_tokenizer=True).write(path))


@pytest.fixture(scope="module")
def good(shared: Runtime, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    it = Writing.begun(shared, model, 6)
    path = it.proxy.actor.snapshot(tmp_path_factory.mktemp("good") / "good.safetensors").path
    it.proxy.actor.close()
    return path


def restore(runtime: Runtime, model: Model, path: Path) -> Any:
    return runtime.restore(path, models={"default": model}, tools={"echo": bytes})


def source(it: Forgery, text: bytes, kind: str) -> None:
    it.part(f"grammar.{GRAMMAR}.source", text)
    it.put("grammars.0.kind", kind)


def accepted(it: Forgery, *ids: int) -> None:
    it.part(f"grammar.{GRAMMAR}.tokens", array("i", ids).tobytes())
    it.put("grammars.0.n_tokens", len(ids))


def many(it: Forgery) -> None:
    for handle in range(10, 15):
        it.again("grammars", handle=handle)
        for name in ("source", "tokens"):
            part = next(p for p in it.manifest["parts"] if p["name"] == f"grammar.3.{name}")
            it.manifest["parts"].append({**part, "name": f"grammar.{handle}.{name}"})
            it.parts[f"grammar.{handle}.{name}"] = it.parts[part["name"]]


CHAIN = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(15_000)) + 'r15000: "a"'
LIES: dict[str, tuple[Callable[[Forgery], object], str]] = {
    "kind": (lambda it: it.put("grammars.0.kind", "yaml"), "malformed"),
    "model": (lambda it: it.put("grammars.0.model", "other"), "does not describe"),
    "handle taken": (lambda it: it.put("grammars.0.handle", 2), "a part is missing"),
    "number of tokens": (lambda it: it.put("grammars.0.n_tokens", 7), "another type or shape"),
    "too many tokens": (lambda it: it.put("grammars.0.n_tokens", 2**20), "malformed"),
    "token 320": (lambda it: accepted(it, 320), "not in the vocabulary"),
    "token -1": (lambda it: accepted(it, -1), "not in the vocabulary"),
    "other tokens": (lambda it: accepted(it, 40, 41), "do not follow"),
    "another language": (lambda it: source(it, b"(", "regex"), "regular expression cannot be"),
    "a chain": (lambda it: source(it, CHAIN.encode(), "lark"), "too deeply nested"),
    "no text": (lambda it: source(it, b"\xff", "regex"), "not UTF-8"),
    "a long source": (lambda it: source(it, b"a" * 300_000, "regex"), "293.0 KiB"),
    "several": (many, "6 grammars; 4 are allowed"),
    "an older version": (lambda it: it.put("format_version", 1), "version 1 has no grammars"),
    "not there": (lambda it: it.put("grammars", []), "a part is missing"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies(shared: Runtime, model: Model, good: Path, tmp_path: Path, name: str) -> None:
    change, match = LIES[name]
    forgery = Forgery(good)
    change(forgery)
    with pytest.raises(SnapshotError, match=match):
        restore(shared, model, forgery.write(tmp_path / "lie"))
    assert shared.actors == []
    with restore(shared, model, good) as actor:
        assert actor.state == "idle"


def test_version_1_is_read_and_keeps_its_hash(
    shared: Runtime, model: Model, tmp_path: Path
) -> None:
    with shared.spawn("bench", models={"default": model}, args=["n_ctx=256"], seed=1) as actor:
        actor.send("prefill 20 3")
        forgery = Forgery(actor.snapshot(tmp_path / "new").path)
        answer = actor.send("sequence 2").text
    del forgery.manifest["grammars"], forgery.manifest["actor"]["limits"]["grammars"]
    forgery.put("format_version", 1)
    old = forgery.write(tmp_path / "old")
    text = json.dumps(forgery.manifest, separators=(",", ":"), ensure_ascii=False)
    assert open_snapshot(old).manifest.encode() == text
    with restore(shared, model, old) as again:
        assert again.limits.grammars == 4
        assert again.send("sequence 2").text == answer
