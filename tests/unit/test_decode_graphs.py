"""Graphs of single tokens: when one is used again, moved, or built anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from isthmus.config import DeviceSettings, ModelSettings
from isthmus.device import open_device
from isthmus.memory import Region
from isthmus.model import Model, Session, open_model
from isthmus.model.passes.decode_graphs import DecodeGraphs
from isthmus.native.loader import Library
from isthmus.units import GIB, MIB, GuestPtr
from tests.tiny_gguf import TinyLlama


class Room:
    """A model on a device that computes nothing, sessions of it, and graphs of their own."""

    def __init__(self, model: Model, stack: ExitStack) -> None:
        self.model = model
        self._stack = stack
        self.graphs = DecodeGraphs(model.executor.builder)
        stack.callback(self.graphs.close)

    def open(self, n_ctx: int = 512) -> Session:
        region = Region.reserve(1 * GIB, nbytes=16 * MIB)
        self._stack.callback(region.close)
        binding = self.model.device.bind(region)
        self._stack.callback(binding.close)
        layout = self.model.layout(n_ctx)
        session = self.model.open_session(region, binding, GuestPtr(4096), layout)
        self._stack.callback(session.close)
        self._stack.callback(self.graphs.forget, session)  # first
        return session

    @property
    def n_built(self) -> int:
        return int(self.model.executor.builder.counters.graphs_built)


@pytest.fixture
def room(library: Library, tmp_path: Path) -> Iterator[Room]:
    with ExitStack() as stack:
        device = open_device("null", library, DeviceSettings(threads=1))
        stack.callback(device.close)
        path = TinyLlama(quantisation="F32").write(tmp_path / "tiny.gguf")
        model = open_model(device, path, ModelSettings())
        stack.callback(model.close)
        yield Room(model, stack)


def seen(room: Room, session: Session) -> list[int]:
    """Positions that the mask shows to the token for which a graph was written last."""
    graph = room.graphs.of(session, 7)
    mask = graph.inputs.masks[0]._elements[: graph.n_kv]
    return np.flatnonzero(mask == 0).tolist()


def test_a_session_uses_its_graph_again(room: Room) -> None:
    one, other = room.open(), room.open()
    graph = room.graphs.of(one, 5)
    other_graph = room.graphs.of(other, 5)
    n_built = room.n_built
    for token in range(3):
        assert room.graphs.of(one, token) is graph
        assert room.graphs.of(other, token) is other_graph
        one.tokens.append(token)
        other.tokens.append(token)
    assert room.n_built == n_built


def test_a_token_sees_what_came_before_it(room: Room) -> None:
    one, other = room.open(), room.open()
    for n in range(4):
        assert seen(room, one) == [*range(n + 1)]
        one.tokens.append(7)
    assert seen(room, other) == [0]
    assert seen(room, one) == [*range(5)]
    del one.tokens[2:]
    assert seen(room, one) == [0, 1, 2]


def test_a_graph_is_moved_to_more_rows(room: Room) -> None:
    session = room.open()
    graph = room.graphs.of(session, 5)
    n_kv, n_built = graph.n_kv, room.n_built
    session.tokens.extend([5] * n_kv)
    assert seen(room, session) == [*range(n_kv + 1)]
    assert room.graphs.of(session, 5) is graph
    assert graph.n_kv == 2 * n_kv
    assert room.n_built == n_built


def test_larger_inputs_free_the_graphs_that_read_the_old_ones(room: Room) -> None:
    small, large = room.open(256), room.open(1024)
    graph = room.graphs.of(small, 5)
    large_graph = room.graphs.of(large, 5)
    assert graph.closed
    assert not large_graph.closed
    again = room.graphs.of(small, 5)
    assert again.inputs is large_graph.inputs


def test_a_session_that_closes_leaves_no_graph(room: Room) -> None:
    one, other = room.open(), room.open()
    graph, other_graph = room.graphs.of(one, 5), room.graphs.of(other, 5)
    room.graphs.forget(one)
    assert graph.closed
    assert room.graphs.of(other, 6) is other_graph
