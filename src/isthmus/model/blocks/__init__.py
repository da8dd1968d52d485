"""What decoders are made of. Architectures put these together; each says what it computes.

A part takes x of shape [n_in, n] and returns [n_out, n]: one column for each token. The order of
operations is libllama's (`src/llama-graph.cpp`), so that its bits come out.
"""

from isthmus.model.blocks.attention import (
    Attention,
    FusedQkv,
    NormedQkv,
    NormedValues,
    Rotary,
    SeparateQkv,
)
from isthmus.model.blocks.block import Mixer, PostNorm, Sandwich, Sequential, Single
from isthmus.model.blocks.decoder import Decoder
from isthmus.model.blocks.encoder import Encoder
from isthmus.model.blocks.feed_forward import FusedGated, Gated, Plain, squared_relu
from isthmus.model.blocks.part import LayerNorm, Part, Projection, RmsNorm

__all__ = [
    "Attention",
    "Decoder",
    "Encoder",
    "FusedGated",
    "FusedQkv",
    "Gated",
    "LayerNorm",
    "Mixer",
    "NormedQkv",
    "NormedValues",
    "Part",
    "Plain",
    "PostNorm",
    "Projection",
    "RmsNorm",
    "Rotary",
    "Sandwich",
    "SeparateQkv",
    "Sequential",
    "Single",
    "squared_relu",
]
