"""Graphs that are kept, and what frees them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from isthmus.config import DeviceSettings
from isthmus.device import Device, open_device
from isthmus.device.graph import Graph
from isthmus.errors import DeviceFailed
from isthmus.model.passes.graph_cache import GraphCache
from isthmus.native._ggml import GgmlType
from isthmus.native.loader import Library

Cache = GraphCache[str, Graph]


@pytest.fixture(scope="module")
def device(library: Library) -> Iterator[Device]:
    opened = open_device("null", library, DeviceSettings(threads=1))
    yield opened
    opened.close()


@pytest.fixture
def cache(device: Device) -> Iterator[Cache]:
    made = Cache(device, most=3)
    yield made
    made.close()


def graph_of(device: Device, n_floats: int) -> Graph:
    """A graph that needs memory for so many numbers."""
    graph = Graph(device.library, 8)
    x = graph.tensor(GgmlType.F32, n_floats)
    graph.output(graph.add(x, x))
    return graph


def kept(device: Device, cache: Cache, key: str, n_floats: int = 64) -> Graph:
    graph = graph_of(device, n_floats)
    cache.allocate(graph)
    cache.put(key, graph)
    return graph


def test_a_graph_is_found_by_its_key(device: Device, cache: Cache) -> None:
    a, b = kept(device, cache, "a"), kept(device, cache, "b")
    assert cache.try_get("a") is a
    assert cache.try_get("b") is b
    assert cache.try_get("c") is None
    assert cache.graphs == [a, b]


def test_the_graph_that_was_not_used_for_longest_is_freed(device: Device, cache: Cache) -> None:
    a, b, c = (kept(device, cache, key) for key in "abc")
    cache.try_get("a")
    assert cache.keys == ["b", "c", "a"]
    d = kept(device, cache, "d")
    assert [it.closed for it in (a, b, c, d)] == [False, True, False, False]
    assert cache.keys == ["c", "a", "d"]


def test_memory_that_moves_frees_the_graphs_that_lie_in_it(device: Device, cache: Cache) -> None:
    a, b = kept(device, cache, "a"), kept(device, cache, "b", 32)  # the smaller one fits
    generation = cache.generation
    assert not a.closed
    c = kept(device, cache, "c", 4096)
    assert cache.generation == generation + 1
    assert [it.closed for it in (a, b, c)] == [True, True, False]
    assert cache.keys == ["c"]


def test_a_graph_that_is_computed_once_moves_memory_as_well(device: Device, cache: Cache) -> None:
    a = kept(device, cache, "a")
    with graph_of(device, 4096) as once:
        cache.allocate(once)
        assert a.closed
        assert not once.closed
    assert cache.try_get("a") is None


def test_memory_that_is_refused_frees_the_graphs_that_lay_in_the_old_one(
    device: Device, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, generation = kept(device, cache, "a"), cache.generation
    with graph_of(device, 64) as other, monkeypatch.context() as patch:
        patch.setattr(device.library, "ggml_gallocr_alloc_graph", lambda *_: False)
        with pytest.raises(DeviceFailed, match="no memory"):
            cache.allocate(other)
    assert a.closed
    assert cache.generation == generation + 1
    again = kept(device, cache, "a")
    assert cache.try_get("a") is again


def test_inputs_that_are_replaced_free_all_graphs(device: Device, cache: Cache) -> None:
    graphs, generation = [kept(device, cache, key) for key in "ab"], cache.generation
    cache.outdate()
    assert all(it.closed for it in graphs)
    assert cache.generation == generation + 1
    assert cache.keys == []


def test_graphs_are_freed_by_what_they_are_of(device: Device, cache: Cache) -> None:
    a, b = kept(device, cache, "a"), kept(device, cache, "b")
    generation = cache.generation
    cache.free(lambda key: key == "a")
    assert a.closed
    assert not b.closed
    assert cache.generation == generation


def test_closing_frees_everything(device: Device) -> None:
    cache = Cache(device, most=3)
    a = kept(device, cache, "a")
    cache.close()
    assert a.closed
    assert cache.graphs == []
