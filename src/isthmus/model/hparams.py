"""Hyperparameters: the shape of a model; metadata.py reads it from a file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol

import numpy as np


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


@dataclass(frozen=True)
class Family:
    """What the files of one architecture have in common, and say nothing of.

    docs/models.md is written from it.
    """

    models: str
    """Those that call themselves so."""
    features: str
    """What is particular, in the field's words."""
    rope: RopeKind
    partial_rotary: bool = False
    """Whether only a part of each head may be rotated."""
    window_period: int = 0
    """Every so many layers one sees all tokens, the others a window; 0: there is no window."""
    window_default: int = 0
    """Tokens in the window where the file does not say; 0: then there is none."""
    encoder: bool = False
    """Whether each token sees all others: such models make embeddings, and no text."""


@dataclass(frozen=True)
class Window:
    """Some layers see only the last tokens."""

    n_tokens: int
    """The token itself, and those before it that it sees."""
    layers: tuple[bool, ...]
    """Of each layer: whether the window is for it."""


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
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ctx_train: int
    norm_epsilon: float
    """Added to variances by its norms, RMS or layer norms."""
    rope: Rope
    window: Window | None = None
    n_expert: int = 0
    """Feed-forward networks of each layer, of which each token takes `n_expert_used`; 0: one."""
    n_expert_used: int = 0
    encoder: bool = False
    """See `Family`."""
    pooling: Pooling | None = None
    """How it makes embeddings; None where it makes none."""
    n_scores: int = 0
    """Scores of a reranker; 0 for other models."""
    n_adapters: int = 0
    """That add to its products."""

    @property
    def n_pooled(self) -> int:
        """Numbers of an embedding, or of a reranker's scores."""
        return self.n_scores or self.n_embd

    @property
    def n_embd_q(self) -> int:
        """Width of all query heads together."""
        return self.n_head * self.head_dim

    @property
    def n_embd_kv(self) -> int:
        """Width of all key heads together; the same for values."""
        return self.n_head_kv * self.head_dim

    @property
    def kq_scale(self) -> float:
        """The usual factor of the products of queries and keys."""
        return inverse_sqrt(self.head_dim)

    @property
    def window_tokens(self) -> int | None:
        """Tokens that windowed layers see; None where no layer has a window."""
        return self.window.n_tokens if self.window else None

    @property
    def nodes_per_layer(self) -> int:
        """More than the operations that a layer takes, attention of several sessions aside."""
        return 64 + 3 * self.n_expert_used + _NODES_OF_ADAPTER * self.n_adapters


def inverse_sqrt(n: int) -> float:
    """1 / sqrt(n) as libllama has it, which rounds to f32 twice: for n = 96 that is another bit."""
    return float(np.float32(1) / np.sqrt(np.float32(n)))
