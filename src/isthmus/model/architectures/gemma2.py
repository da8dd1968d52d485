"""The `gemma2` architecture.

Norms around attention and feed-forward network, soft caps on attention's scores and on the logits,
and every second layer sees a sliding window.
"""

from __future__ import annotations

import math

from isthmus.device.graph import Graph
from isthmus.model.blocks import Decoder, Part, Sandwich
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind, inverse_sqrt

FAMILY = Family(
    models="Gemma 2",
    features="norms on both sides, soft caps, a sliding window in every second layer, GeGLU",
    rope=RopeKind.NEOX,
    window_period=2,
    window_default=4096,
)
_N_LAYER_27B = 46


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(
        _block,
        embedding_scale=math.sqrt(file.hparams.n_embd),
        logits_soft_cap=file.metadata.number("final_logit_softcapping", 30.0),
    )


def _block(b: BlockLoader) -> Part:
    soft_cap = b.metadata.number("attn_logit_softcapping", 50.0)
    return Sandwich(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(
            q_scale=query_scale(b, _N_LAYER_27B),
            scores=b.scores(scale=1.0, soft_cap=soft_cap, windowed=b.windowed),
        ),
        attn_post_norm=b.rms_norm("post_attention_norm"),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.gated(Graph.geglu),
        ffn_post_norm=b.rms_norm("post_ffw_norm"),
    )


def query_scale(b: BlockLoader, n_layer_27b: int) -> float:
    """The factor of queries, which the largest model has of its own and no file says."""
    h, heads = b.hparams, b.heads
    return inverse_sqrt(h.n_embd // heads.n) if h.n_layer == n_layer_27b else heads.scale
