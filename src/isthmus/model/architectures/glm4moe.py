"""The `glm4moe` architecture: experts chosen by a sigmoid and a bias, beside one that all take.

Half of each head is rotated; some files have norms of queries and keys.
"""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Rotary, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Gating, RopeKind

FAMILY = Family(
    models="GLM-4.5 and 4.6, GLM-4.5V without images",
    features="sigmoid gates with biases, a shared expert, dense layers first, partial rotary",
    rope=RopeKind.NEOX,
    partial_rotary=True,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    norms = b.head_norms() if b.has("attn_q_norm") else {}
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(rotary=b.text_rotary() or Rotary(b.hparams.rope), **norms),
        ffn_norm=b.rms_norm("post_attention_norm"),
        feed_forward=b.gated()
        if b.leads
        else b.mixture(b.routing_said(b.metadata.gating(Gating.SIGMOID))),
    )
