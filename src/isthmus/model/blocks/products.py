"""Products with weights, and what adapters add to them: the parts that blocks are made of."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.model.passes.forward import Pass


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a product: scale * (b · (a · x))."""

    a: int
    b: int
    scale: float

    def added(self, g: Pass, y: int, x: int) -> int:
        """With y = weight · x."""
        return g.add(y, g.scale(g.low_rank(self.a, self.b, x), self.scale))

    def added_chosen(self, g: Pass, y: int, x: int, chosen: int) -> int:
        """With y of chosen matrices of a stack, as a and b are."""
        inner = g.matmul_chosen(self.a, x, chosen)
        return g.add(y, g.scale(g.matmul_chosen(self.b, inner, chosen), self.scale))

    def added_rows(self, g: Pass, y: int) -> int:
        """With y the embeddings of the tokens, whose rows of a are looked up."""
        rows = g.get_rows(self.a, g.tokens)
        return g.add(y, g.scale(g.separately(self.b, rows), self.scale))


@dataclass(frozen=True)
class Linear:
    """weight · x, what adapters add, + bias."""

    weight: int
    bias: int = 0
    updates: tuple[LowRank, ...] = ()
    routed: bool = False
    """Whether it is small and not quantised: then it is multiplied as `Pass.route` does."""

    def __call__(self, g: Pass, x: int) -> int:
        y = g.route(self.weight, x) if self.routed else g.matmul(self.weight, x)
        for update in self.updates:
            y = update.added(g, y, x)
        return g.add(y, self.bias) if self.bias else y


@dataclass(frozen=True)
class Stack:
    """Matrices one behind the other, of which each column is multiplied with some."""

    weight: int
    bias: int = 0
    """F32 [n_out, count]: a bias of each matrix; 0: there is none."""
    updates: tuple[LowRank, ...] = ()
    scale: int = 0
    """F32 [count]: a factor of each matrix; 0: there is none."""

    def __call__(self, g: Pass, x: int, chosen: int) -> int:
        y = g.matmul_chosen(self.weight, x, chosen)
        y = g.mul(y, self._scales(g, chosen)) if self.scale else y
        for update in self.updates:
            y = update.added_chosen(g, y, x, chosen)
        return g.add_chosen(y, self.bias, chosen) if self.bias else y

    def _scales(self, g: Pass, chosen: int) -> int:
        """f32 [1, n_used, n]: the factors of the matrices chosen."""
        count, n = g.describe(self.scale).ne[0], g.columns_of(chosen)
        each = g.repeated(g.reshape(self.scale, 1, count), 1, count, n, 1)
        return g.get_rows(each, chosen)


@dataclass(frozen=True)
class Router:
    """weight · x + bias: a small matrix that chooses, multiplied as `Pass.route` does."""

    weight: int
    bias: int = 0

    def __call__(self, g: Pass, x: int) -> int:
        y = g.route(self.weight, x)
        return g.add(y, self.bias) if self.bias else y
