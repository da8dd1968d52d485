"""The `gemma3` architecture: five layers that see a window, with a rope of their own, to one.

As `gemma2`, with norms over each head of queries and keys instead of a soft cap on the scores.
"""

from __future__ import annotations

import math
from dataclasses import replace

from isthmus.device.graph import Graph
from isthmus.model.architectures.gemma2 import query_scale
from isthmus.model.blocks import Decoder, Part, Rotary, Sandwich
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="Gemma 3, text (270M to 27B)",
    features="norms on both sides and of q and k, a sliding window with its own rope base, GeGLU",
    rope=RopeKind.NEOX,
    window_period=6,
)
_N_LAYER_27B = 62
_WINDOW_FREQ_BASE = 10_000.0


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(
        _block,
        embedding_scale=math.sqrt(file.hparams.n_embd),
        scales_given=False,
        logits_soft_cap=file.metadata.number("final_logit_softcapping", 0.0),
    )


def _block(b: BlockLoader) -> Part:
    return Sandwich(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(
            q_scale=query_scale(b, _N_LAYER_27B),
            scores=b.scores(scale=1.0, windowed=b.windowed),
            rotary=_rotary(b),
            **b.head_norms(),
        ),
        attn_post_norm=b.rms_norm("post_attention_norm"),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.gated(Graph.geglu),
        ffn_post_norm=b.rms_norm("post_ffw_norm"),
    )


def _rotary(b: BlockLoader) -> Rotary:
    rope = b.hparams.rope
    if b.windowed:
        base = b.metadata.number("rope.freq_base_swa", _WINDOW_FREQ_BASE)
        rope = replace(rope, freq_base=base, freq_scale=1.0)
    return Rotary(rope)
