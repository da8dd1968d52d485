"""Hyperparameters: what a GGUF file says about a model's shape, judged before anything uses it.

Key names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#standardized-key-value-pairs
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from isthmus.errors import ModelFileError, ModelUnsupported
from isthmus.model.gguf import GgufFile

_LARGEST = {"block_count": 1024, "embedding_length": 1 << 20, "context_length": 1 << 24}


class RopeScaling(Enum):
    """How a model stretches its rotary positions beyond the length it was pretrained on."""

    NONE = "none"
    LINEAR = "linear"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclass(frozen=True)
class Rope:
    """Arguments of the rotary position embedding, as `ggml_rope_ext` takes them."""

    n_dims: int
    n_ctx_original: int
    freq_base: float
    freq_scale: float
    ext_factor: float
    attn_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0


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
    rms_epsilon: float
    rope: Rope

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
        """Factor of the products of queries and keys."""
        return 1.0 / math.sqrt(self.head_dim)


class Metadata:
    """Reads one architecture's keys and refuses values that mean nothing."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.path: Path = file.path
        self._values = file.metadata
        self._prefix = architecture

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`; the same for each layer where it is an array."""
        value = self._values.get(f"{self._prefix}.{name}", default)
        if isinstance(value, tuple):
            if len(set(value)) != 1:
                raise ModelUnsupported(
                    f"{self.path}: {self._prefix}.{name} differs from layer to layer, "
                    "which is not implemented"
                )
            value = value[0]
        if value is None:
            raise ModelFileError(f"{self.path} has no {self._prefix}.{name}")
        most = _LARGEST.get(name, 1 << 20)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ModelFileError(
                f"{self.path}: {self._prefix}.{name} is {value!r}; expected {least} to {most}"
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._values.get(f"{self._prefix}.{name}", default)
        if value is None:
            raise ModelFileError(f"{self.path} has no {self._prefix}.{name}")
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ModelFileError(f"{self.path}: {self._prefix}.{name} is {value!r}, not a number")
        return float(value)

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self._values.get(f"{self._prefix}.{name}", default)
        if not isinstance(value, str):
            raise ModelFileError(f"{self.path}: {self._prefix}.{name} is {value!r}, not text")
        return value

    def rope(self, head_dim: int, n_ctx_train: int) -> Rope:
        """The rotary embedding, scaled as libllama scales it."""
        name = self.text("rope.scaling.type", "linear")
        try:
            scaling = RopeScaling(name)
        except ValueError:
            known = ", ".join(kind.value for kind in RopeScaling)
            raise ModelUnsupported(
                f"{self.path}: rope scaling {name!r} is not known; known are {known}"
            ) from None
        factor = self.number("rope.scaling.factor", self.number("rope.scale_linear", 0.0))
        scale = 1.0 if factor == 0.0 or scaling is RopeScaling.NONE else 1.0 / factor
        ext_factor = 1.0 if scaling is RopeScaling.YARN else 0.0
        attn_factor = self.number("rope.scaling.attn_factor", 1.0)
        if ext_factor:
            attn_factor *= self._yarn_attention(scale)
        return Rope(
            n_dims=head_dim,
            n_ctx_original=self.integer("rope.scaling.original_context_length", n_ctx_train),
            freq_base=self.number("rope.freq_base", 10_000.0),
            freq_scale=scale,
            ext_factor=ext_factor,
            attn_factor=attn_factor,
        )

    def _yarn_attention(self, scale: float) -> float:
        """YaRN's factor on attention. ggml multiplies by 1 + 0.1 ln(1 / scale) itself, so that
        part is taken out here and only a model's own `yarn_log_multiplier` remains."""
        factor = 1.0 / scale

        def mscale(multiplier: float) -> float:
            return 1.0 if factor <= 1.0 else 0.1 * multiplier * math.log(factor) + 1.0

        log_multiplier = self.number("rope.scaling.yarn_log_multiplier", 0.0)
        wanted = mscale(1.0) / mscale(log_multiplier) if log_multiplier else mscale(1.0)
        return wanted / (1.0 + 0.1 * math.log(factor))


def read_hparams(file: GgufFile, architecture: str) -> Hparams:
    """The shape that a file's metadata gives; ModelFileError where it makes no sense."""
    metadata = Metadata(file, architecture)
    n_embd = metadata.integer("embedding_length")
    n_head = metadata.integer("attention.head_count")
    n_head_kv = metadata.integer("attention.head_count_kv", n_head)
    head_dim = metadata.integer("attention.key_length", max(1, n_embd // n_head))
    n_ctx_train = metadata.integer("context_length")
    _require_heads(metadata, n_head, n_head_kv, head_dim)
    return Hparams(
        architecture=architecture,
        n_layer=metadata.integer("block_count"),
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_ctx_train=n_ctx_train,
        rms_epsilon=metadata.number("attention.layer_norm_rms_epsilon"),
        rope=metadata.rope(head_dim, n_ctx_train),
    )


def _require_heads(metadata: Metadata, n_head: int, n_head_kv: int, head_dim: int) -> None:
    if n_head % n_head_kv:
        raise ModelFileError(
            f"{metadata.path}: {n_head} heads cannot share {n_head_kv} key and value heads"
        )
    value_length = metadata.integer("attention.value_length", head_dim)
    rope_dims = metadata.integer("rope.dimension_count", head_dim)
    if not head_dim == value_length == rope_dims:
        raise ModelUnsupported(
            f"{metadata.path}: key length {head_dim}, value length {value_length} and "
            f"{rope_dims} rotary dimensions differ, which this architecture does not have"
        )
    if head_dim % 2:
        raise ModelFileError(f"{metadata.path}: a head size of {head_dim} is odd")
