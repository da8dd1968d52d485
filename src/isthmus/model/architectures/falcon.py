"""The `falcon` architecture: attention and feed-forward network side by side."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.model.blocks import Attention, Decoder, Part
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.passes.forward import Pass
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="Falcon 7B, 40B and 180B",
    features="parallel attention, layer norms, fused q, k and v, GELU without a gate",
    rope=RopeKind.NEOX,
)


@dataclass(frozen=True)
class Parallel:
    """x += attention(attn_norm(x)) + feed_forward(ffn_norm(x))."""

    attn_norm: Part
    attention: Attention
    ffn_norm: Part
    feed_forward: Part

    def __call__(self, g: Pass, x: int) -> int:
        normed = self.ffn_norm(g, x)
        seen = self.attention(
            g, normed if self.attn_norm == self.ffn_norm else self.attn_norm(g, x)
        )
        seen, x, normed = g.outputs(self.attention.layer, seen, x, normed)
        return g.add(g.add(self.feed_forward(g, normed), seen), x)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block, Loader.layer_norm)


def _block(b: BlockLoader) -> Part:
    return Parallel(
        attn_norm=b.layer_norm("attn_norm_2" if b.has("attn_norm_2") else "attn_norm"),
        attention=b.attention(),
        ffn_norm=b.layer_norm("attn_norm"),
        feed_forward=b.plain(),
    )
