"""Per-layer embeddings: what each layer is told of a token, beside what those before made of it.

A table has a row for each token, with a part for each layer; a product with the token's embedding
is added to it. After a layer, a gate decides how much of its part comes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from isthmus.model.blocks import Part
from isthmus.model.blocks.products import Linear
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.passes.forward import Pass
from isthmus.model.shape.hparams import inverse_sqrt
from isthmus.model.shape.metadata import Metadata


@dataclass(frozen=True)
class PerLayerInputs:
    """(norm(projection · x / sqrt(n_embd)) + table[token] * sqrt(width)) / sqrt(2)."""

    table: int
    """[width * n_layer, n_vocab]"""
    projection: Linear
    """[n_embd, width * n_layer]"""
    norm: Part
    """Over `width` elements."""
    width: int
    """Elements for each layer."""

    def __call__(self, g: Pass, x: int) -> int:
        """f32 [width, n, n_layer]"""
        shape = (self.width, g.hparams.n_layer, g.n)
        product = g.scale(self.projection(g, x), inverse_sqrt(g.hparams.n_embd))
        product = self.norm(g, g.reshape(product, *shape))
        looked_up = g.scale(g.get_rows(self.table, g.tokens), math.sqrt(self.width))
        both = g.add(product, g.reshape(looked_up, *shape))
        return g.copied(g.swap_1_2(g.scale(both, inverse_sqrt(2))))

    def part(self, g: Pass, whole: int, layer: int) -> int:
        """f32 [width, n]: one layer's, of the columns that come out of it."""
        _, column, plane, _ = g.describe(whole).nb
        part = g.view_2d(whole, (self.width, g.n), column, layer * plane)
        return g.outputs(layer, part)[0]


@dataclass(frozen=True)
class PerLayerUpdate:
    """x + norm(projection · (gelu(gate · x) * part))."""

    gate: Linear
    projection: Linear
    norm: Part

    def __call__(self, g: Pass, x: int, part: int) -> int:
        shown = g.mul(g.gelu(self.gate(g, x)), part)
        return g.add(x, self.norm(g, self.projection(g, shown)))


@dataclass(frozen=True)
class PerLayerTrunk:
    """Blocks, each of which is given its part of the inputs."""

    inputs: PerLayerInputs
    blocks: tuple[Callable[[Pass, int, int], int], ...]
    """(graph, x, part) -> x"""

    def __call__(self, g: Pass, x: int) -> int:
        whole = self.inputs(g, x)
        for layer, block in enumerate(self.blocks):
            x = block(g, x, self.inputs.part(g, whole, layer))
        return x


def per_layer_width(metadata: Metadata) -> int:
    """Elements for each layer; 0 if the model has no such embeddings."""
    return metadata.integer("embedding_length_per_layer_input", least=0)


def load_inputs(file: Loader, n_vocab: int) -> PerLayerInputs:
    """A file's inputs of all layers. Adapters change none of them."""
    h, width = file.hparams, per_layer_width(file.metadata)
    all_widths = width * h.n_layer
    return PerLayerInputs(
        file.weights.lookup("per_layer_token_embd.weight", all_widths, n_vocab),
        Linear(file.weights.require("per_layer_model_proj.weight", h.n_embd, all_widths)),
        file.rms_norm("per_layer_proj_norm", width),
        width,
    )


def load_update(b: BlockLoader) -> PerLayerUpdate:
    """What one layer does with its part."""
    n_embd, width = b.hparams.n_embd, per_layer_width(b.metadata)
    return PerLayerUpdate(
        gate=b.linear("inp_gate", n_embd, width),
        projection=b.linear("proj", width, n_embd),
        norm=b.rms_norm("post_norm"),
    )
