"""What a GGUF file says about a model's shape, judged before anything uses it.

Key names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#standardized-key-value-pairs
"""

from __future__ import annotations

from pathlib import Path

from isthmus.errors import ModelFileError, ModelUnsupported
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.header import Value
from isthmus.model.shape.hparams import Gating, Pooling, Rope, RopeKind, RopeScaling, Window

_RMS = "layer_norm_rms"
_MAX_PAIRS = 1 << 16
_LARGEST = {"block_count": 1024, "embedding_length": 1 << 20, "context_length": 1 << 24}
_MAX_NUMBER = 1e30
"""Largest number that is taken from a file, and one by it the smallest: so that neither a quotient
nor what is made of it in f32 is infinite."""


class Metadata:
    """One architecture's keys, as the values that they stand for.

    Readers raise ModelFileError for a value that is missing or means nothing, and ModelUnsupported
    for one that means what is not computed here.
    """

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.path: Path = file.path
        self._values = file.metadata
        self._arrays = file.arrays
        self._prefix = architecture

    def integer(
        self, name: str, default: int | None = None, least: int = 1, *, but_zeros: bool = False
    ) -> int:
        """A whole number of at least `least`; the same for each layer where it is an array.

        `but_zeros`: an array may be 0 for layers that have nothing of the kind.
        """
        value = self._value(name, default)
        if isinstance(value, tuple):
            if but_zeros:
                value = tuple(it for it in value if it != 0)
            if len(set(value)) != 1:
                raise ModelUnsupported(
                    f"{self.path}: {self._prefix}.{name} differs from layer to layer, "
                    "which is not implemented for this architecture: leave it to libllama, by "
                    "graph='adopted' or --graph adopted"
                )
            value = value[0]
        return self._whole(name, value, least)

    def integers(self, name: str, default: int | None = None, least: int = 1) -> tuple[int, ...]:
        """A whole number of at least `least` for each layer that is computed: the elements of an
        array, or one number for all."""
        value = self._value(name, default)
        found = self._by_layer(name, value)
        return tuple(self._whole(name, it, least) for it in found)

    def integer_at(self, name: str, layer: int) -> int:
        """A positive whole number for one layer, whatever the file says of others."""
        return self._whole(name, self._by_layer(name, self._value(name))[layer], 1)

    def flags(self, name: str) -> tuple[bool, ...]:
        """True or false for each layer that is computed, as the file lists them."""
        value = self._value(name)
        if not isinstance(value, tuple):
            raise ModelFileError(
                f"{self.path}: {self._prefix}.{name} is {value!r}; expected a list with an element "
                "for each layer"
            )
        return tuple(bool(it) for it in self._by_layer(name, value))

    def _by_layer(self, name: str, value: Value | None) -> tuple[object, ...]:
        n_layer, n_all = self.n_layer(), self.integer("block_count")
        if not isinstance(value, tuple):
            return (value,) * n_layer
        if len(value) != n_all:
            raise ModelFileError(
                f"{self.path}: {self._prefix}.{name} is for {len(value)} layers of {n_all}"
            )
        return value[:n_layer]

    def _whole(self, name: str, value: object, least: int) -> int:
        if value is None:
            raise ModelFileError(f"{self.path} has no {self._prefix}.{name}")
        most = _LARGEST.get(name, 1 << 20)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ModelFileError(
                f"{self.path}: {self._prefix}.{name} is {value!r}; expected {least} to {most}"
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number that f32 can hold, 0 or of a usual magnitude."""
        value = self._value(name, default)
        if value is None:
            raise ModelFileError(f"{self.path} has no {self._prefix}.{name}")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (value == 0 or 1 / _MAX_NUMBER <= abs(value) <= _MAX_NUMBER)
        ):
            raise ModelFileError(
                f"{self.path}: {self._prefix}.{name} is {str(value)[:40]}, no number that a model "
                "has"
            )
        return float(value)

    def divisor(self, name: str) -> float:
        """A finite number other than 0."""
        value = self.number(name)
        if not value:
            raise ModelFileError(f"{self.path}: {self._prefix}.{name} is 0")
        return value

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise ModelFileError(f"{self.path}: {self._prefix}.{name} is {value!r}, not text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise ModelFileError(f"{self.path}: {self._prefix}.{name} is {value!r}, not a boolean")
        return value

    def n_layer(self) -> int:
        """Blocks that are computed; blocks that draft tokens come after them and are not."""
        n_draft = self.integer("nextn_predict_layers", 0, least=0)
        n_layer = self.integer("block_count") - n_draft
        if n_layer < 1:
            raise ModelFileError(f"{self.path}: {n_draft} drafting layers leave none to compute")
        return n_layer

    def axes(self) -> tuple[int, ...]:
        """Pairs of rotary dimensions for time, height, width and a further axis (M-RoPE).

        Empty if the file has none for time or none for height.
        """
        name = "rope.dimension_sections"
        value = self._value(name)
        if value is None:
            return ()
        found = value if isinstance(value, tuple) else (value,) * 4
        axes = tuple(it for it in found if isinstance(it, int) and 0 <= it <= _MAX_PAIRS)
        if not len(found) == len(axes) == 4:
            raise ModelFileError(
                f"{self.path}: {self._prefix}.{name} is {str(value)[:40]}; expected four whole "
                f"numbers, 0 to {_MAX_PAIRS}"
            )
        return axes if axes[0] and axes[1] else ()

    def norm_epsilon(self) -> float:
        """Of the RMS norms, or of the layer norms where the file says that it has those.

        Some files say both, which must be one: which of them counts depends on the architecture.
        """
        layer, rms = (self._value(f"attention.{it}_epsilon") for it in ("layer_norm", _RMS))
        if layer is not None and rms is not None and layer != rms:
            raise ModelUnsupported(
                f"{self.path}: attention.layer_norm_epsilon and attention.layer_norm_rms_epsilon "
                "differ, which is not implemented: leave it to libllama, by graph='adopted' or "
                "--graph adopted"
            )
        kind = _RMS if layer is None else "layer_norm"
        name = f"attention.{kind}_epsilon"
        epsilon = self.number(name)
        if not 0 <= epsilon <= 1:
            raise ModelFileError(
                f"{self.path}: {self._prefix}.{name} is {epsilon}; expected 0 to 1"
            )
        return epsilon

    def window(self, n_layer: int, *, period: int, default: int, everywhere: bool) -> Window | None:
        """The sliding window, and the layers that it is for; see `Family` for the arguments."""
        if everywhere:
            n_tokens = self.integer("attention.sliding_window", 0, least=0)
            return Window(n_tokens, (True,) * n_layer) if n_tokens else None
        if not period:
            return None
        n_tokens = self.integer("attention.sliding_window", default, least=0)
        if not n_tokens:
            return None
        pattern = self._value("attention.sliding_window_pattern")
        if isinstance(pattern, tuple):
            if len(pattern) != n_layer:
                raise ModelFileError(
                    f"{self.path}: attention.sliding_window_pattern is for {len(pattern)} layers "
                    f"of {n_layer}"
                )
            return Window(n_tokens, tuple(bool(each) for each in pattern))
        period = self.integer("attention.sliding_window_pattern", period)
        return Window(n_tokens, tuple(i % period < period - 1 for i in range(n_layer)))

    def has(self, name: str) -> bool:
        """Whether the file says anything of that name."""
        return self._value(name) is not None

    def pooling(self, *, encoder: bool) -> Pooling | None:
        """How embeddings are made; a decoder has them where its file says how."""
        value = self.integer("pooling_type", int(Pooling.NONE), least=0)
        if value not in set(Pooling):
            known = ", ".join(f"{it.value} ({it.name.lower()})" for it in Pooling)
            raise ModelUnsupported(
                f"{self.path}: pooling_type {value} is not implemented; known are {known}"
            )
        if self.flag("attention.causal", not encoder) == encoder:
            raise ModelUnsupported(
                f"{self.path}: attention.causal is not what this architecture has"
            )
        return Pooling(value) if value or encoder else None

    def n_scores(self, pooling: Pooling | None) -> int:
        """Scores of a reranker, one unless the file names more; 0 for other models."""
        labels = self._arrays.get(f"{self._prefix}.classifier.output_labels")
        return max(1, labels.count if labels else 1) if pooling is Pooling.RANK else 0

    def experts(self) -> tuple[int, int]:
        """How many experts a layer has, and how many of them a token takes; 0, 0 for none."""
        n_expert = self.integer("expert_count", 0, least=0)
        n_used = self.integer("expert_used_count", 0, least=min(n_expert, 1))
        if n_used > n_expert:
            raise ModelFileError(f"{self.path}: a token takes {n_used} of {n_expert} experts")
        return n_expert, n_used

    def expert_groups(self, n_expert: int, n_used: int) -> tuple[int, int]:
        """Groups of experts, and how many of them a token takes; 0, 0 for none."""
        n = self.integer("expert_group_count", 0, least=0)
        if not n_expert or n < 2:
            return 0, 0
        n_taken, size = self.integer("expert_group_used_count"), n_expert // n
        if n_expert % n or size < 2 or n_taken > n or n_used > n_taken * size:
            raise ModelFileError(
                f"{self.path}: a token takes {n_used} of {n_expert} experts from {n_taken} of {n} "
                "groups, which is not possible"
            )
        return n, n_taken

    def gating(self, usual: Gating) -> Gating:
        """How experts are weighted, `usual` if the file does not say it."""
        value = self.integer("expert_gating_func", 0, least=0)
        if value not in (0, *Gating):
            known = ", ".join(f"{it.value} ({it.name.lower()})" for it in Gating)
            raise ModelUnsupported(
                f"{self.path}: expert_gating_func {value} is not implemented; known are {known}"
            )
        return Gating(value) if value else usual

    def rope(self, kind: RopeKind, n_dims: int, n_ctx_train: int) -> Rope:
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
        return Rope(
            kind=kind,
            n_dims=n_dims,
            n_ctx_original=self.integer("rope.scaling.original_context_length", n_ctx_train),
            freq_base=self.number("rope.freq_base", 10_000.0),
            freq_scale=scale,
            ext_factor=ext_factor,
            attn_factor=self.number("rope.scaling.attn_factor", 1.0),
        )

    def _value(self, name: str, default: Value | None = None) -> Value | None:
        return self._values.get(f"{self._prefix}.{name}", default)
