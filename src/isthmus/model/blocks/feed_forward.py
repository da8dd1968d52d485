"""Feed-forward networks, plain and gated; `experts.py` has those of which a token takes some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isthmus.device.graph import Graph
from isthmus.model.blocks.products import Linear
from isthmus.model.passes.forward import Pass


def squared_relu(g: Graph, x: int) -> int:
    """x² where x is positive, 0 elsewhere."""
    positive = g.clamp(x, 0.0, float("inf"))
    return g.mul(positive, positive)


@dataclass(frozen=True)
class Plain:
    """down · activation(up · x)."""

    up: Linear
    down: Linear
    activate: Callable[[Graph, int], int] = Graph.gelu

    def __call__(self, g: Pass, x: int) -> int:
        return self.down(g, self.activate(g, self.up(g, x)))


@dataclass(frozen=True)
class Gated:
    """down · (activation(gate · x) * (up · x))."""

    gate: Linear
    up: Linear
    down: Linear
    activate: Callable[[Graph, int, int], int] = Graph.swiglu
    """(graph, gate · x, up · x) -> their product, the first one activated."""

    def __call__(self, g: Pass, x: int) -> int:
        up = self.up(g, x)
        return self.down(g, self.activate(g, self.gate(g, x), up))


@dataclass(frozen=True)
class FusedGated:
    """As `Gated` with silu, gate and up one below the other in one matrix."""

    gate_up: Linear
    down: Linear

    def __call__(self, g: Pass, x: int) -> int:
        return self.down(g, g.swiglu_halves(self.gate_up(g, x)))
