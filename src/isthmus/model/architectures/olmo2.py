"""The `olmo2` architecture: norms after attention and feed-forward network, and none before.

Queries and keys have norms over all heads together. OLMo 3 adds a window in three of four layers,
whose rope is never scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from isthmus.model.blocks import Attention, Decoder, Part, Rotary
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.passes.forward import Pass
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="OLMo 2 and 3",
    features="norms at the end, norms over all of q and k, OLMo 3's window and its own rope",
    rope=RopeKind.NEOX,
    window_period=4,
)


@dataclass(frozen=True)
class NormedLast:
    """x += norm(attention(x)), then x += norm(feed_forward(x))."""

    attention: Attention
    attn_norm: Part
    feed_forward: Part
    ffn_norm: Part

    def __call__(self, g: Pass, x: int) -> int:
        seen, x = g.outputs(self.attention.layer, self.attention(g, x), x)
        x = g.add(self.attn_norm(g, seen), x)
        return g.add(self.ffn_norm(g, self.feed_forward(g, x)), x)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return NormedLast(
        attention=b.attention(
            qkv=b.normed_qkv(), scores=b.scores(windowed=b.windowed), rotary=_rotary(b)
        ),
        attn_norm=b.rms_norm("post_attention_norm"),
        feed_forward=b.gated(),
        ffn_norm=b.rms_norm("post_ffw_norm"),
    )


def _rotary(b: BlockLoader) -> Rotary:
    rope = b.hparams.rope
    if b.windowed:
        rope = replace(rope, freq_scale=1.0, ext_factor=0.0, attn_factor=1.0)
    return Rotary(rope)
