"""Products in panels: a pass of many rows with the bits of few."""

from __future__ import annotations

import ctypes
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.device.cpu import CpuDevice
from isthmus.model.passes.joining import Joining
from isthmus.model.probes import exactness, width_probe
from isthmus.model.probes.width_probe import matrices, widths_of
from isthmus.model.probes.widths import SINGLE, Width, Widths
from isthmus.native._ggml import tensor_at
from tests.model.test_architectures import several
from tests.model.test_widths import (
    OF_A_CARD,
    Lying,
    by_count,
    halves,
    hashes_of,
    quantised,
    require_same_in_any_company,
)

__all__ = ["halves", "quantised"]  # fixtures


def test_names_of_classes_in_panels() -> None:
    in_panels = Width(1, 4).in_panels(128)
    assert in_panels == Width.try_parse("1-128/4")
    assert [in_panels.filled(n) for n in (1, 4, 5, 128)] == [1, 4, 8, 128]
    assert Width(9, 128).in_panels(128) is None
    widths = Widths(OF_A_CARD.classes, (in_panels,))
    assert Widths.try_parse("1-4, 5-8, 9-128, 1-128/4") == widths
    assert widths.few == in_panels
    assert widths.many == Width(9, 128)
    assert widths.named("1-128/4") == widths.reaching(widths.alone) == in_panels
    assert widths.named("alone") == widths.named("1-4") == Width(1, 4)


@pytest.mark.parametrize("text", ["1-128/4", "1-4, 1-128/8", "1-4, 1-7/4", "1-4, 1-4/4"])
def test_what_names_no_classes_in_panels(text: str) -> None:
    assert Widths.try_parse(text) is None


IN_PANELS = Widths((SINGLE, Width(2, 32)), (Width(1, 32, 1),))


def test_panels_have_the_bits_of_their_own_class(device: Device, halves: Path) -> None:
    """As a card is asked: the processor's products of one column are those of panels of one."""
    with several(device, halves, 1) as (model, _), closing(device.new_backend()) as backend:
        for matrix in matrices(model.weights):
            with width_probe._Probe(device, backend, matrix, matrix.tensors[0], 32) as probe:
                assert probe.holds_in_panels(Width(1, 32, 1))
                assert probe.holds_in_panels(Width(2, 32, 8))


class InPanels(Lying):
    """One that lies about each panel by itself, and not about all columns."""

    def compute(self, graph: int) -> None:
        library = self._device.library
        self._backend.compute(graph)
        struct = tensor_at(library.ggml_graph_node(graph, library.ggml_graph_n_nodes(graph) - 1))
        n, n_columns, n_panels, _ = struct.ne
        raw = (ctypes.c_float * (n * n_columns * n_panels)).from_address(struct.data)
        for panel in np.frombuffer(raw, np.float32).reshape(n_panels, n_columns, n):
            self._lie(panel)


CLASSES = {InPanels: "1-5, 6-32, 1-30/5", Lying: "1-5, 6-32"}


@pytest.mark.parametrize("kind", CLASSES)
def test_panels_are_a_class_only_where_each_has_the_bits_of_its_own(
    kind: type[Lying],
    device: Device,
    quantised: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A card with other kernels from 6 columns on: of a matrix, or of all panels together."""
    monkeypatch.setattr(CpuDevice, "has_own_memory", True)
    with several(device, quantised, 0) as (model, _), closing(kind(device, by_count)) as backend:
        assert str(widths_of(device, backend, matrices(model.weights), 32)) == CLASSES[kind]


class Fusing(InPanels):
    """One that computes a product of one column and what follows it by a kernel of its own."""

    def compute(self, graph: int) -> None:
        library = self._device.library
        super().compute(graph)
        n_nodes = library.ggml_graph_n_nodes(graph)
        struct = tensor_at(library.ggml_graph_node(graph, n_nodes - 1))
        if n_nodes > 1 and struct.ne[1] == 1:
            raw = (ctypes.c_float * struct.ne[0]).from_address(struct.data)
            np.frombuffer(raw, np.float32)[0] += 1


def test_a_column_that_is_fused_with_what_follows_is_of_no_class_with_others(
    device: Device, quantised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuDevice, "has_own_memory", True)
    with (
        several(device, quantised, 0) as (model, _),
        closing(Fusing(device, lambda _: None)) as fusing,
        closing(Fusing(device, by_count)) as other,
    ):
        asked = matrices(model.weights)
        assert str(widths_of(device, fusing, asked, 32)) == "1, 2-32"  # and none in panels of 1
        assert str(widths_of(device, other, asked, 32)) == "1, 2-5, 6-32, 2-30/5"


@pytest.mark.parametrize(("width", "joins"), [("many", True), ("1-32/1", False), ("alone", True)])
def test_a_pass_in_panels_has_the_bits_of_a_step_alone(
    width: str, joins: bool, device: Device, halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactness, "widths_of", lambda *_: IN_PANELS)
    monkeypatch.setattr(Widths, "many", IN_PANELS.panelled[0])
    monkeypatch.setattr(CpuDevice, "joins_sequences", joins)
    monkeypatch.setattr(exactness, "try_joining", lambda *_: Joining((4, 8, 12, 16), 256, 256))
    with several(device, halves, 7, ModelSettings(width=width)) as (model, sessions):
        assert (model.width, model.rows_at_once) == (Width(1, 32, 1), 32)
        assert model.width_name == ("1-32/1" if joins and width != "alone" else "")
        require_same_in_any_company(model, sessions)
        shapes = [shape for shape, *_ in model.executor._batches._cache.keys]
        assert any(it.unseen == 3 and it.n == 1 for it in shapes) == (joins and width != "alone")
        together = [session.logits.tobytes() for session in sessions]
        histories = [session.tokens[:] for session in sessions]
    monkeypatch.undo()
    with several(device, halves, 7) as (model, sessions):
        assert model.rows_at_once == 1
        solo = hashes_of(model, sessions, lambda _: 1)
        assert solo
        assert [session.tokens[:] for session in sessions] == histories
        assert [session.logits.tobytes() for session in sessions] == together
