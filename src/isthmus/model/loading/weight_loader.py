"""Takes a file's weights by name, and checks that their shapes fit the metadata.

Names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py. A bias is added
wherever the file has one.
"""

from __future__ import annotations

from dataclasses import replace

from isthmus.model.blocks import (
    LayerNorm,
    RmsNorm,
)
from isthmus.model.blocks.products import Linear
from isthmus.model.files.weights import Weights
from isthmus.model.own.adapter import Adaptation
from isthmus.model.shape.hparams import Hparams
from isthmus.model.shape.metadata import Metadata


class WeightLoader:
    """What whole files and single blocks have alike: see `Loader` and `BlockLoader`."""

    def __init__(
        self,
        hparams: Hparams,
        metadata: Metadata,
        weights: Weights,
        adaptation: Adaptation | None = None,
    ) -> None:
        """`adaptation`: what is added to products with the weights."""
        self.hparams, self.metadata, self.weights = hparams, metadata, weights
        self.adaptation = adaptation or Adaptation()
        self._prefix = ""

    def linear(self, name: str, n_in: int, n_out: int) -> Linear:
        """A matrix, its bias if there is one, and what adapters add."""
        full = f"{self._prefix}{name}.weight"
        self.weights.adaptable.add(full)
        return Linear(
            self.weights.require(full, n_in, n_out),
            self.weights.optional(f"{self._prefix}{name}.bias", n_out),
            self.adaptation.updates(full),
        )

    def small(self, name: str, n_in: int, n_out: int) -> Linear:
        """As `linear`, of a matrix that is small, and in some files not quantised."""
        linear = self.linear(name, n_in, n_out)
        full = f"{self._prefix}{name}.weight"
        if self.weights.is_quantised(full):
            return linear
        self.weights.routers.add(full)
        return replace(linear, routed=True)

    def rms_norm(self, name: str, width: int | None = None) -> RmsNorm:
        """A norm over `width` elements, by default n_embd."""
        return RmsNorm(self.vector(f"{name}.weight", width))

    def layer_norm(self, name: str) -> LayerNorm:
        """A norm over n_embd elements, with its bias."""
        return LayerNorm(self.vector(f"{name}.weight"), self.vector(f"{name}.bias"))

    def vector(self, name: str, width: int | None = None) -> int:
        """A vector of `width` elements, by default n_embd."""
        return self.weights.require(f"{self._prefix}{name}", width or self.hparams.n_embd)

    def optional(self, name: str, width: int) -> int:
        """As `vector`, or 0 if the file has no such tensor."""
        return self.weights.optional(f"{self._prefix}{name}", width)
