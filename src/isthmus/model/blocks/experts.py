"""Experts: feed-forward networks of which each token takes some, and how they are chosen.

The order of operations is libllama's (`build_moe_ffn` in `src/llama-graph.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from isthmus.device.graph import Graph
from isthmus.model.blocks import Part
from isthmus.model.blocks.products import Linear, Router, Stack
from isthmus.model.passes.forward import Pass
from isthmus.model.shape.hparams import Gating, inverse_sqrt

_MIN_SUM = 6.103515625e-5
"""Of the weights of a token's experts, which are divided by it: the smallest normal F16."""
_BEST_OF_GROUP = 2
"""Experts by whose scores a group is judged."""


@dataclass(frozen=True)
class Groups:
    """Experts in groups of which a token takes some: those whose two best experts score most."""

    n: int
    n_used: int

    def masked(self, g: Pass, scores: int) -> int:
        """f32 [n_expert, n], minus infinity in other groups."""
        n_expert, n = g.describe(scores).ne[0], g.columns_of(scores)
        groups = g.reshape(scores, n_expert // self.n, self.n, n)
        best = g.top_k(groups, _BEST_OF_GROUP)
        best = g.get_rows(g.reshape(scores, 1, n_expert // self.n, self.n, n), best)
        sums = g.sum_rows(g.reshape(best, _BEST_OF_GROUP, self.n, n))
        taken = g.top_k(g.reshape(sums, self.n, n), self.n_used)
        others = g.filled(groups, float("-inf"))
        return g.reshape(g.set_rows(others, g.get_rows(groups, taken), taken), n_expert, n)


@dataclass(frozen=True)
class Routing:
    """Which experts a token takes, and what each of them weighs."""

    router: Part
    gating: Gating
    normalised: bool = False
    """Whether weights are divided by their sum."""
    scale: float = 1.0
    """A factor of all weights."""
    bias: int = 0
    """F32 [n_expert]: what is added to choose, and to no weight; 0: nothing."""
    groups: Groups | None = None

    def __call__(self, g: Pass, x: int) -> tuple[int, int]:
        """I32 [n_used, n]: which experts; f32 [1, n_used, n]: their weights."""
        n_used, n = g.hparams.n_expert_used, g.columns_of(x)
        scores = self._scores(g, self.router(g, x))
        judged = g.add(scores, self.bias) if self.bias else scores
        judged = self.groups.masked(g, judged) if self.groups else judged
        chosen = g.top_k(judged, n_used)
        weights = g.get_rows(g.reshape(scores, 1, g.hparams.n_expert, n), chosen)
        if self.normalised or self.gating is Gating.CHOSEN:
            weights = self._rescaled(g, g.reshape(weights, n_used, n))
            weights = g.reshape(weights, 1, n_used, n)
        if self.scale != 1.0:
            weights = g.scale(weights, self.scale)
        g.expand(weights)
        return chosen, weights

    def _scores(self, g: Pass, products: int) -> int:
        if self.gating is Gating.CHOSEN:
            return products
        return g.softmax(products) if self.gating is Gating.SOFTMAX else g.sigmoid(products)

    def _rescaled(self, g: Pass, weights: int) -> int:
        """f32 [n_used, n], of which each column adds up to 1."""
        if self.gating is Gating.CHOSEN:
            weights = g.softmax(weights)
        if not self.normalised:
            return weights
        return g.div(weights, g.clamp(g.sum_rows(weights), _MIN_SUM, float("inf")))


class Gates(Protocol):
    """What makes gate · x and up · x of the experts taken."""

    def __call__(self, g: Pass, x: int, chosen: int) -> tuple[int, int]:
        """Both, [n_ff, n_used, n], from x [n_embd, 1, n]."""


@dataclass(frozen=True)
class SeparateGates:
    """Gates and ups in a stack each, [n_embd, n_ff, n_expert]."""

    gate: Stack
    up: Stack

    def __call__(self, g: Pass, x: int, chosen: int) -> tuple[int, int]:
        up = self.up(g, x, chosen)
        return self.gate(g, x, chosen), up


@dataclass(frozen=True)
class MergedGates:
    """Gates and ups one below the other in one stack, [n_embd, 2 * n_ff, n_expert]."""

    gate_up: Stack

    def __call__(self, g: Pass, x: int, chosen: int) -> tuple[int, int]:
        whole = g.describe(both := self.gate_up(g, x, chosen))
        n_ff, (_, n_used, n, _) = whole.ne[0] // 2, whole.ne
        shape, strides = (n_ff, n_used, n), (whole.nb[1], whole.nb[2])
        return g.view_3d(both, shape, strides, 0), g.view_3d(both, shape, strides, 4 * n_ff)


@dataclass(frozen=True)
class OnlyUps:
    """Ups without gates, in a stack [n_embd, n_ff, n_expert]: both results are up · x."""

    up: Stack

    def __call__(self, g: Pass, x: int, chosen: int) -> tuple[int, int]:
        up = self.up(g, x, chosen)
        return up, up


@dataclass(frozen=True)
class Experts:
    """The sum of the gated networks that a token takes, weighted."""

    routing: Routing
    gates: Gates
    down: Stack
    """[n_ff, n_embd, n_expert]"""
    activate: Callable[[Graph, int, int], int] = Graph.swiglu
    """As in `Gated`."""

    def __call__(self, g: Pass, x: int) -> int:
        return self.weighted(g, x, *self.routing(g, x))

    def weighted(self, g: Pass, x: int, chosen: int, weights: int) -> int:
        """As a call, of experts that were chosen already."""
        columns = g.reshape(x, g.describe(x).ne[0], 1, g.columns_of(x))
        gate, up = self.gates(g, columns, chosen)
        each = self.down(g, self.activate(g, gate, up), chosen)
        return self._sum(g, g.mul(each, weights))

    def _sum(self, g: Pass, each: int) -> int:
        """f32 [n_embd, n] from [n_embd, n_used, n]."""
        n_embd, n_used, n, _ = g.describe(each).ne
        _, expert, column, _ = g.describe(each).nb
        g.expand(each)
        parts = [g.view_2d(each, (n_embd, n), column, i * expert) for i in range(n_used)]
        for part in parts:
            g.expand(part)
        total = parts[0] if n_used > 1 else g.copied(parts[0])
        for part in parts[1:]:
            total = g.add(total, part)
            g.expand(total)
        return total


@dataclass(frozen=True)
class LatentExperts:
    """up · experts(down · x), experts being chosen by x itself."""

    down: Linear
    experts: Experts
    up: Linear

    def __call__(self, g: Pass, x: int) -> int:
        chosen = self.experts.routing(g, x)
        return self.up(g, self.experts.weighted(g, self.down(g, x), *chosen))


@dataclass(frozen=True)
class SharedExpert:
    """others(x) + shared(x): one network that every token takes, times sigmoid(gate · x) if there
    is a gate."""

    others: Part
    shared: Part
    gate: Router | None = None
    by_silu: bool = False
    """Whether the sigmoid is computed as silu(product) / product, which has other bits."""

    def __call__(self, g: Pass, x: int) -> int:
        others = self.others(g, x)
        if self.gate is None:
            return g.add(others, self.shared(g, x))
        product = self.gate(g, x)
        share = g.div(g.silu(product), product) if self.by_silu else g.sigmoid(product)
        return g.add(others, g.mul(self.shared(g, x), share))


@dataclass(frozen=True)
class ScaledRouter:
    """router · (norm(x) / sqrt(n_embd) * scale)."""

    router: Part
    scale: int

    def __call__(self, g: Pass, x: int) -> int:
        x = g.scale(g.rms_norm(x, g.hparams.norm_epsilon), inverse_sqrt(g.hparams.n_embd))
        return self.router(g, g.mul(x, self.scale))


@dataclass(frozen=True)
class ExpertsBeside:
    """norm(dense(norm(x))) + norm(experts(norm(x))), experts being chosen by x itself."""

    norm: Part
    dense: Part
    post_norm: Part
    experts_norm: Part
    experts: Experts
    experts_post_norm: Part

    def __call__(self, g: Pass, x: int) -> int:
        dense = self.post_norm(g, self.dense(g, self.norm(g, x)))
        chosen = self.experts.routing(g, x)
        each = self.experts.weighted(g, self.experts_norm(g, x), *chosen)
        return g.add(dense, self.experts_post_norm(g, each))
