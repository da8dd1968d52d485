"""The `gpt-oss` architecture: attention sinks, a window in every second layer, clamped experts.

Biases are everywhere but in the norms and the output; each layer's router takes the softmax over
the experts that it chose.
"""

from __future__ import annotations

from dataclasses import replace

from isthmus.device.graph import Graph
from isthmus.model.blocks import Decoder, Part, Rotary, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Gating, RopeKind

FAMILY = Family(
    models="gpt-oss 20B and 120B",
    features="sinks, a window in every second layer, YaRN, experts with biases, clamped SwiGLU",
    rope=RopeKind.NEOX,
    window_period=2,
)
_SLOPE, _LIMIT = 1.702, 7.0
"""The activation's, which no file says."""


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    file.metadata.integer("attention.sliding_window")  # without one, a layer would see nothing
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(
            scores=b.scores(windowed=b.windowed, sinks=b.sinks()),
            rotary=_rotary(b),
        ),
        ffn_norm=b.rms_norm("post_attention_norm"),
        feed_forward=b.experts(
            b.n_ff_expert, b.routing(Gating.CHOSEN, normalised=False), _activate
        ),
    )


def _rotary(b: BlockLoader) -> Rotary:
    rope = b.hparams.rope
    if b.windowed:
        rope = replace(rope, freq_base=b.metadata.number("rope.freq_base_swa", rope.freq_base))
    return Rotary(rope)


def _activate(g: Graph, gate: int, up: int) -> int:
    return g.clamped_swiglu(gate, up, _SLOPE, _LIMIT)
