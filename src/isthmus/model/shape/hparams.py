"""Hyperparameters: the shape of a model; reading.py reads it from a file's metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from itertools import accumulate
from typing import Protocol

import numpy as np

from isthmus.units import align_up


class RopeScaling(Enum):
    """How a model stretches its rotary positions beyond the length it was pretrained on."""

    NONE = "none"
    LINEAR = "linear"
    YARN = "yarn"
    LONGROPE = "longrope"


class RopeKind(IntEnum):
    """Which elements of a head are turned together, as `ggml_rope_ext` numbers it."""

    NORMAL = 0
    """Neighbours."""
    NEOX = 2
    """Those half of the rotary dimensions apart."""


class Pooling(IntEnum):
    """How one embedding is made of those of all tokens, as `pooling_type` numbers it."""

    NONE = 0
    """It is not: each token has its own."""
    MEAN = 1
    CLS = 2
    """The first token's."""
    LAST = 3
    RANK = 4
    """Scores of a query and a document, made of the first token's or the last one's."""


class Gating(IntEnum):
    """How a router's products become weights, as `expert_gating_func` numbers it."""

    SOFTMAX = 1
    """The softmax over all experts."""
    SIGMOID = 2
    """The sigmoid of each."""
    CHOSEN = 3
    """The softmax over the experts taken."""


@dataclass(frozen=True)
class Heads:
    """The heads of one layer's attention, and the planes of the KV cache that it reads.

    A plane is a table with a row for each token. A layer that has no cache of its own reads the
    planes of an earlier one.
    """

    n: int
    """Queries of a token."""
    n_kv: int
    """Keys of a token, and as many values: queries share them."""
    dim: int
    """Elements of a query and of a key."""
    value_dim: int
    keys: int
    """The number of the plane of its keys."""
    values: int
    """That of its values; the same as `keys` if a value is the first elements of its key."""

    @property
    def n_embd_q(self) -> int:
        """Width of all queries together."""
        return self.n * self.dim

    @property
    def n_embd_k(self) -> int:
        """Width of all keys together."""
        return self.n_kv * self.dim

    @property
    def n_embd_v(self) -> int:
        """Width of all values together."""
        return self.n_kv * self.value_dim

    @property
    def n_embd_seen(self) -> int:
        """Width of attention's result: a value for each query."""
        return self.n * self.value_dim

    @property
    def scale(self) -> float:
        """The usual factor of the products of queries and keys."""
        return inverse_sqrt(self.dim)


@dataclass(frozen=True)
class Window:
    """Some layers see only the last tokens."""

    n_tokens: int
    """The token itself, and those before it that it sees."""
    layers: tuple[bool, ...]
    """Of each layer: whether the window is for it."""


@dataclass(frozen=True)
class State:
    """What a layer keeps of all tokens together, beside or instead of a KV cache: F32 [shape]."""

    layer: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What it takes, rounded up so that the next one is aligned."""
        return align_up(4 * math.prod(self.shape), STATE_ALIGNMENT)


@dataclass(frozen=True)
class Rope:
    """Arguments of the rotary position embedding, as `ggml_rope_ext` takes them."""

    kind: RopeKind
    n_dims: int
    n_ctx_original: int
    freq_base: float
    freq_scale: float
    ext_factor: float
    attn_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0


STATE_ALIGNMENT = 256
"""What every device wants of a tensor's place."""
_NODES_OF_ADAPTER = 128
"""More than the operations that an adapter adds to a layer."""


class Shape(Protocol):
    """What is known of every model, however it is computed."""

    @property
    def architecture(self) -> str:
        """`general.architecture` of its file."""

    @property
    def n_layer(self) -> int:
        """Blocks, one after the other."""

    @property
    def n_embd(self) -> int:
        """Elements of an embedding."""

    @property
    def n_ctx_train(self) -> int:
        """Tokens that it was trained for, at most."""

    @property
    def encoder(self) -> bool:
        """Whether each token sees all others: such models make embeddings, and no text."""

    @property
    def pooling(self) -> Pooling | None:
        """How it makes embeddings; None if it makes none."""

    @property
    def n_scores(self) -> int:
        """Scores of a reranker; 0 for other models."""

    @property
    def n_pooled(self) -> int:
        """Numbers of an embedding, or of a reranker's scores."""


@dataclass(frozen=True)
class Hparams:
    """The shape of a transformer, in the field's usual names."""

    architecture: str
    n_layer: int
    n_embd: int
    heads: Mapping[int, Heads]
    """By layer: those of each that attends."""
    n_ctx_train: int
    norm_epsilon: float
    """Added to variances by its norms, RMS or layer norms."""
    rope: Rope
    window: Window | None = None
    n_expert: int = 0
    """Feed-forward networks of each layer, of which each token takes `n_expert_used`; 0: one."""
    n_expert_used: int = 0
    expert_groups: tuple[int, int] = (0, 0)
    """Groups of experts in each layer, and how many of them a token takes; up to 1: none."""
    encoder: bool = False
    """See `Family`."""
    pooling: Pooling | None = None
    """How it makes embeddings; None where it makes none."""
    n_scores: int = 0
    """Scores of a reranker; 0 for other models."""
    n_adapters: int = 0
    """That add to its products."""
    states: tuple[State, ...] = ()
    """What layers keep of all tokens together, in the order of layers."""

    @property
    def n_pooled(self) -> int:
        """Numbers of an embedding, or of a reranker's scores."""
        return self.n_scores or self.n_embd

    @property
    def planes(self) -> tuple[int, ...]:
        """Elements in a row of each plane of the KV cache."""
        widths: dict[int, int] = {}
        for it in self.heads.values():
            widths[it.keys] = it.n_embd_k
            widths.setdefault(it.values, it.n_embd_v)
        return tuple(widths[plane] for plane in range(len(widths)))

    @property
    def has_plain_cache(self) -> bool:
        """Whether each layer that attends has a plane of keys and one of values, all of one
        width."""
        pairs = [(it.keys, it.values) for it in self.heads.values()]
        in_pairs = pairs == [(2 * i, 2 * i + 1) for i in range(len(pairs))]
        return in_pairs and len({*self.planes}) == 1

    @property
    def n_embd_seen(self) -> int:
        """Width of attention's result in the layer where it is widest."""
        return max(it.n_embd_seen for it in self.heads.values())

    @property
    def window_tokens(self) -> int | None:
        """Tokens that windowed layers see; None where no layer has a window."""
        return self.window.n_tokens if self.window else None

    @property
    def states_nbytes(self) -> int:
        """All states of one session together."""
        return sum(it.nbytes for it in self.states)

    @property
    def state_offsets(self) -> tuple[int, ...]:
        """Where each state begins among them, in bytes."""
        ends = accumulate((it.nbytes for it in self.states), initial=0)
        return tuple(ends)[: len(self.states)]

    @property
    def nodes_per_part(self) -> int:
        """More than the operations that a layer takes for each session of a pass."""
        return 48 if self.states else 12

    @property
    def nodes_per_layer(self) -> int:
        """More than the operations that a layer takes, attention of several sessions aside."""
        usual = 160 if self.states else 128
        return usual + 3 * self.n_expert_used + _NODES_OF_ADAPTER * self.n_adapters


def inverse_sqrt(n: int) -> float:
    """1 / sqrt(n) as libllama has it, which rounds to f32 twice: for n = 96 that is another bit."""
    return float(np.float32(1) / np.sqrt(np.float32(n)))
