"""What decoders are made of whose layers keep states, beside other models' parts.

A state is rewritten at each token, so its operations run for each session by itself, in the order
of its tokens: `Pass.by_stretch`. All else takes the columns of all sessions at once. The order of
operations is libllama's (`src/models/lfm2.cpp`, `qwen35.cpp`, `graph-context-mamba.cpp`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isthmus.model.blocks import Attention, RmsNorm
from isthmus.model.blocks.products import Linear
from isthmus.model.passes.forward import Pass, Stretch
from isthmus.model.shape.hparams import Heads, inverse_sqrt

_FLOAT = 4


@dataclass(frozen=True)
class Convolution:
    """Each channel's last tokens, weighted: those of passes before are in the state."""

    kernel: int
    """F32 [width, n_channels]"""
    state: int
    """Number of the state, F32 [width - 1, n_channels]."""

    def __call__(self, g: Pass, x: int) -> int:
        """F32 [n_channels, n] from the same."""
        return g.by_stretch(x, lambda stretch: self._convolved(g, x, stretch))

    def _convolved(self, g: Pass, x: int, stretch: Stretch) -> int:
        state = stretch.states[self.state]
        n_before, n_channels = g.describe(state).ne[:2]
        columns = g.columns_at(x, stretch.first, stretch.n)
        seen = g.join_rows(state, g.transpose(columns))
        row = g.describe(seen).nb[1]
        last = g.view_2d(seen, (n_before, n_channels), row, _FLOAT * stretch.n)
        g.move_on(stretch, self.state, last)
        return g.convolve(seen, self.kernel)


@dataclass(frozen=True)
class ShortConvolution:
    """out · (c * convolution(b * x)), with b, c and x one below the other in one product."""

    layer: int
    inner: Linear
    convolution: Convolution
    out: Linear

    def __call__(self, g: Pass, x: int) -> int:
        whole, n_embd = self.inner(g, x), g.hparams.n_embd
        b, c, x = (g.rows_at(whole, n_embd, part * n_embd) for part in range(3))
        seen = self.convolution(g, g.mul(b, x))
        return self.out(g, g.mul(c, seen))


@dataclass(frozen=True)
class DeltaNet:
    """out · (norm(net) * silu(z · x)), where each head's state learns which value follows a key.

    Queries, keys and values are one below the other in a product, which is convolved.
    """

    layer: int
    qkv: Linear
    convolution: Convolution
    z: Linear
    alpha: Linear
    """How much a token has a state decay, before `dt` is added and softplus taken."""
    beta: Linear
    """How much a token moves it, before a sigmoid."""
    dt: int
    """F32 [n_head_v]"""
    a: int
    """F32 [n_head_v]: negative, what softplus is multiplied with."""
    norm: RmsNorm
    out: Linear
    state: int
    """Number of the state, F32 [head, head, n_head_v]."""
    n_head_k: int

    def __call__(self, g: Pass, x: int) -> int:
        q, k, v = self._heads(g, g.silu(self.convolution(g, self.qkv(g, x))))
        n_head_v = g.describe(v).ne[1]
        decay = g.mul(g.softplus(g.add(self.alpha(g, x), self.dt)), self.a)
        decay = g.reshape(decay, 1, n_head_v, g.n)
        beta = g.sigmoid(g.reshape(self.beta(g, x), 1, n_head_v, g.n))
        inputs = (q, k, v, decay, beta)
        net = g.by_stretch(v, lambda stretch: self._learned(g, inputs, stretch))
        z = g.reshape(self.z(g, x), g.describe(net).ne[0], n_head_v, g.n)
        gated = g.mul(self.norm(g, net), g.silu(z))
        return self.out(g, g.reshape(gated, g.describe(gated).ne[0] * n_head_v, g.n))

    def _heads(self, g: Pass, mixed: int) -> tuple[int, int, int]:
        """q and k [head, n_head_k, n], each of length 1; v [head, n_head_v, n]."""
        n_rows, head = g.describe(mixed).ne[0], g.describe(self.norm.weight).ne[0]
        n_key_rows, column = head * self.n_head_k, g.describe(mixed).nb[1]
        shape, strides = (head, self.n_head_k, g.n), (_FLOAT * head, column)
        q = g.view_3d(mixed, shape, strides, 0)
        k = g.view_3d(mixed, shape, strides, _FLOAT * n_key_rows)
        shape = (head, n_rows // head - 2 * self.n_head_k, g.n)
        v = g.view_3d(mixed, shape, strides, _FLOAT * 2 * n_key_rows)
        return self._unit(g, q), self._unit(g, k), v

    def _unit(self, g: Pass, x: int) -> int:
        """x divided by its length, by way of an RMS norm."""
        head = g.describe(x).ne[0]
        epsilon = float(np.float32(g.hparams.norm_epsilon) / np.float32(head))
        return g.scale(g.rms_norm(x, epsilon), inverse_sqrt(head))

    def _learned(self, g: Pass, inputs: tuple[int, ...], stretch: Stretch) -> int:
        """F32 [head, n_head_v, n] of one session, whose state moves on."""
        q, k, v, decay, beta = (g.columns_at(it, stretch.first, stretch.n) for it in inputs)
        state = stretch.states[self.state]
        result = g.gated_delta_net(q, k, v, decay, beta, state)
        head, _, n_head_v, _ = g.describe(state).ne
        row = _FLOAT * head
        after = row * n_head_v * stretch.n
        next_state = g.view_3d(result, (head, head, n_head_v), (row, row * head), after)
        g.move_on(stretch, self.state, next_state)
        return g.view_3d(result, (head, n_head_v, stretch.n), (row, row * n_head_v), 0)


@dataclass(frozen=True)
class Scan:
    """Numbers of a selective scan that belong to heads, and where its state is (Mamba 2)."""

    dt: int
    """F32 [n_head]: added before softplus is taken."""
    a: int
    """F32 [1, n_head]: negative, how fast a state decays."""
    d: int
    """F32 [1, n_head]: how much of x is added to the result."""
    state: int
    """Number of the state, F32 [d_state, head, n_head]."""
    n_group: int
    """Groups of heads, each with its own b and c."""
    which: int
    """I32 [1]: 0, by which the kernel finds its state among one."""

    def __call__(self, g: Pass, seen: int, dt: int) -> int:
        """F32 [head, n_head, n] from x, b and c, one below the other, and dt [n_head, n]."""
        n_state, head, n_head, _ = g.describe(g.stretches[0].states[self.state]).ne
        _, column, _, _ = g.describe(seen).nb
        x = g.view_3d(seen, (head, n_head, g.n), (_FLOAT * head, column), 0)
        shape, strides = (n_state, self.n_group, g.n), (_FLOAT * n_state, column)
        b = g.view_3d(seen, shape, strides, _FLOAT * head * n_head)
        c = g.view_3d(seen, shape, strides, _FLOAT * (head * n_head + n_state * self.n_group))
        inputs = (x, g.add(dt, self.dt), b, c)
        y = g.by_stretch(x, lambda stretch: self._scanned(g, inputs, stretch))
        return g.add(y, g.mul(x, self.d))

    def _scanned(self, g: Pass, inputs: tuple[int, ...], stretch: Stretch) -> int:
        """F32 [head, n_head, n] of one session, whose state moves on."""
        x, dt, b, c = (g.columns_at(it, stretch.first, stretch.n) for it in inputs)
        state = stretch.states[self.state]
        result = g.scan(state, x, dt, self.a, b, c, self.which)
        n_state, head, n_head, _ = g.describe(state).ne
        row, after = _FLOAT * n_state, _FLOAT * head * n_head * stretch.n
        next_state = g.view_3d(result, (n_state, head, n_head), (row, row * head), after)
        g.move_on(stretch, self.state, next_state)
        strides = (_FLOAT * head, _FLOAT * head * n_head)
        return g.view_3d(result, (head, n_head, stretch.n), strides, 0)


@dataclass(frozen=True)
class Mamba2:
    """out · norm(silu(z) * scan(silu(convolution(x, b, c)), dt)): all of them of one product."""

    layer: int
    inner: Linear
    """z, then x, b and c, then dt, one below the other."""
    convolution: Convolution
    bias: int
    """F32 [n_channels]: of the convolution."""
    scan: Scan
    norm: RmsNorm
    """Over each group of heads."""
    out: Linear

    def __call__(self, g: Pass, x: int) -> int:
        whole = self.inner(g, x)
        n_channels, n_head = g.describe(self.bias).ne[0], g.describe(self.scan.dt).ne[0]
        width = g.describe(whole).ne[0] - n_channels - n_head
        mixed = self.convolution(g, g.rows_at(whole, n_channels, width))
        seen = g.silu(g.add(mixed, self.bias))
        y = self.scan(g, seen, g.copied(g.rows_at(whole, n_head, width + n_channels)))
        z = g.copied(g.rows_at(whole, width, 0))
        gated = g.swiglu(z, g.reshape(y, width, g.n))
        normed = self.norm(g, g.reshape(gated, width // self.scan.n_group, self.scan.n_group, g.n))
        return self.out(g, g.reshape(normed, width, g.n))


@dataclass(frozen=True)
class DoubleQkv:
    """As `SeparateQkv`, where a gate follows each head's query in one product."""

    heads: Heads
    q: Linear
    k: Linear
    v: Linear

    def __call__(self, g: Pass, x: int) -> tuple[int, int, int]:
        """The queries are [2 * dim, n_head, n]: each has its gate after it."""
        whole = g.heads(self.q(g, x), self.heads.n)
        return whole, g.heads(self.k(g, x), self.heads.n_kv), self.v(g, x)


@dataclass(frozen=True)
class GatedAttention(Attention):
    """As `Attention`, with attention multiplied by the sigmoid of a gate before `out`.

    `qkv` is a `DoubleQkv`.
    """

    def __call__(self, g: Pass, x: int) -> int:
        whole, k, v = self.qkv(g, x)
        q, gate = self._half(g, whole, 0), self._half(g, whole, 1)
        q, k = self._prepare(g, q, self.q_norm), self._prepare(g, k, self.k_norm)
        seen = g.attend(q, k, v, self.scores)
        gate = g.reshape(g.copied(gate), self.scores.heads.n_embd_q, g.n)
        return self.out(g, g.mul(seen, g.sigmoid(gate)))

    def _half(self, g: Pass, whole: int, number: int) -> int:
        """[dim, n_head, n]: the queries, or the gates."""
        heads = self.scores.heads
        _, head, column, _ = g.describe(whole).nb
        shape, offset = (heads.dim, heads.n, g.n), number * _FLOAT * heads.dim
        return g.view_3d(whole, shape, (head, column), offset)
