"""What a guest has opened by wasi-nn is part of its state: forks, undone messages, snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import wasmtime

from isthmus import Limits
from isthmus.actor.nn.saving import restored, saved
from isthmus.actor.nn.settings import NnSettings
from isthmus.actor.nn.spans import Span, Spans
from isthmus.actor.nn.state import Graph, NnContext, NnState
from isthmus.errors import GuestTrapped, SnapshotInvalid, SnapshotMismatch
from isthmus.model import Model
from isthmus.runtime import Runtime
from tests.nn.guests import Nn
from tests.tiny_gguf import TinyLlama

PAGE = 65_536


def begun(nn: Nn, **config: Any) -> int:
    """A context that is in the middle of an answer."""
    context = nn.open(ctx_size=256, grammar="root ::= [a-z ]+", temp=1, seed=4, **config)
    assert nn.put(context, "the isthmus") == 0
    for _ in range(3):
        assert nn.nn("compute_single", context) == 0
    return context


def go_on(nn: Nn, context: int) -> bytes:
    """The whole answer, three tokens later."""
    for _ in range(3):
        assert nn.nn("compute_single", context) == 0
    return nn.output(context)


def test_forks_and_snapshots_go_on_in_the_middle(
    nn: Nn, runtime: Runtime, model: Model, tmp_path: Path
) -> None:
    context = begun(nn)
    other = nn.open()
    assert nn.nn("finalize_execution_context", other) == 0
    path = nn.actor.snapshot(tmp_path / "a.safetensors").path
    (child,) = nn.actor.fork()
    wanted = go_on(nn, context)
    given: Any = {"models": {"default": model}, "tools": {"echo": bytes}}
    with child, runtime.restore(path, **given) as brought:
        assert brought.restored is not None
        assert brought.restored.level == "exact"
        for actor in (child, brought):
            copy = Nn.of_actor(actor)
            assert go_on(copy, context) == wanted
            assert copy.init(0) == other + 1, "numbers are never used again"
            assert actor.region.nbytes == nn.actor.region.nbytes, "the span was free"


def test_an_evicted_actor_comes_back(nn: Nn, runtime: Runtime) -> None:
    context = begun(nn)
    (child,) = nn.actor.fork()
    with child:
        wanted = go_on(Nn.of_actor(child), context)
    assert nn.actor.evict() > 0
    assert go_on(nn, context) == wanted


def test_an_actor_that_opened_nothing_has_the_format_that_others_read(
    nn: Nn, tmp_path: Path
) -> None:
    from isthmus.snapshot import open_snapshot

    def version() -> int:
        return open_snapshot(nn.actor.snapshot(tmp_path / "a").path).manifest.format_version

    assert version() == 2
    nn.load()
    assert version() == 6


def test_other_weights_go_on_with_the_same_tokens(nn: Nn, runtime: Runtime, tmp_path: Path) -> None:
    context = begun(nn)
    said = nn.output(context)
    path = nn.actor.snapshot(tmp_path / "a").path
    other = TinyLlama(with_tokenizer=True, seed=9, overrides={"pooling_type": 3})
    given: Any = {"models": {"default": runtime.load_model(other.write(tmp_path / "other.gguf"))}}
    given["tools"] = {"echo": bytes}
    with pytest.raises(SnapshotMismatch):
        runtime.restore(path, **given)
    with runtime.restore(path, require="replayed", **given) as brought:
        there = Nn.of_actor(brought)
        assert go_on(there, context).startswith(said)
        assert there.nn("compute", context) in (0, 101)


def state(**changes: Any) -> NnState:
    """One graph, one context with a session in the second page, and a free third page."""
    graph = Graph("default", NnSettings())
    context = NnContext(0, "default", NnSettings(), session=3, span=Span(PAGE, PAGE))
    fields: dict[str, Any] = {
        "graphs": {0: graph},
        "contexts": {0: context},
        "n_graphs": 1,
        "n_contexts": 1,
        "free": (Span(2 * PAGE, PAGE),),
    }
    return NnState(**fields | changes)


def bring(found: NnState, **options: Any) -> NnState:
    return restored(saved(found), 3 * PAGE, {"default"}, **options)


def test_a_state_survives_as_bytes() -> None:
    assert bring(state()) == state()
    assert saved(NnState()) == b""
    assert restored(b"", 0, ()) == NnState()


def test_contexts_of_a_foreign_model_leave_their_memory() -> None:
    found = bring(state(), foreign={"default"})
    assert (found.contexts, found.free) == ({}, (Span(PAGE, 2 * PAGE),))


@pytest.mark.parametrize(
    "changes",
    [
        {"graphs": {0: Graph("another", NnSettings())}},
        {"contexts": {0: NnContext(0, "another", NnSettings())}},
        {"n_graphs": 2**31},
        {"n_contexts": 0},
        {"contexts": {-1: NnContext(0, "default", NnSettings())}},
        {"free": (Span(PAGE, PAGE),)},
        {"free": (Span(3 * PAGE, PAGE),)},
        {"free": (Span(2 * PAGE + 4096, 4096),)},
        {"free": (Span(2 * PAGE, -PAGE),)},
        {"free": (Span(-PAGE, PAGE),)},
        {"free": (Span(2 * PAGE, 2**70),)},
    ],
    ids=str,
)
def test_states_that_contradict_themselves(changes: dict[str, Any]) -> None:
    with pytest.raises(SnapshotInvalid, match="wasi-nn"):
        bring(state(**changes))


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"graphs": 5}', b"\xff", b"[" * 10_000])
def test_states_that_are_none(data: bytes) -> None:
    with pytest.raises(SnapshotInvalid, match="malformed"):
        restored(data, PAGE, ())


def test_tokens_of_a_snapshot_are_checked_before_they_are_addresses(nn: Nn) -> None:
    context = begun(nn)
    found = nn.actor.body._nn._contexts.state.contexts[context]
    for token in (-1, 2**31, 320):
        found.output_ids[-1] = token
        assert nn.nn("compute_single", context) == 5
    found.prompt = [2**40]
    found.is_streaming = False
    assert nn.nn("compute_single", context) == 5
    hostile = msgspec.structs.replace(found.settings, n_ctx=-5, temperature=float("nan"))
    found.settings, found.prompt = hostile, [5]
    assert nn.nn("compute_single", context) == 102


LOADING = """(module
  (import "wasi_ephemeral_nn" "load_by_name" (func $load (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "init_execution_context" (func $init (param i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "default")
  (func (export "on_message") (param $n i32) (result i32)
    (drop (call $load (i32.const 0) (i32.const 7) (i32.const 16)))
    (drop (call $init (i32.load (i32.const 16)) (i32.const 20)))
    (if (i32.gt_u (local.get $n) (i32.const 1)) (then unreachable))
    (i32.const 0)))"""
"""A reactor that opens a context with each message, and fails if that has two bytes."""


def test_an_undone_message_undoes_what_it_opened(runtime: Runtime, model: Model) -> None:
    limits = Limits(on_failure="undo")
    given = {"default": model}
    with runtime.spawn(bytes(wasmtime.wat2wasm(LOADING)), models=given, limits=limits) as actor:
        actor.send("x")
        before, nbytes = actor.body._nn.save(), actor.region.nbytes
        for _ in range(3):
            with pytest.raises(GuestTrapped):
                actor.send("xx")
            assert actor.body._nn.save() == before
            assert (len(actor.sessions), actor.region.nbytes) == (1, nbytes)
        actor.send("x")
        assert len(actor.sessions) == 2


def test_spans_are_joined_and_cut() -> None:
    spans = Spans()
    for ptr in (4, 0, 2):
        spans.give(Span(ptr * PAGE, PAGE))
    assert spans.try_take(2 * PAGE) is None
    spans.give(Span(3 * PAGE, PAGE))
    assert spans.free == (Span(0, PAGE), Span(2 * PAGE, 3 * PAGE))
    assert spans.try_take(PAGE) == Span(0, PAGE)
    assert spans.try_take(2 * PAGE) == Span(2 * PAGE, 2 * PAGE)
    assert spans.free == (Span(4 * PAGE, PAGE),)
