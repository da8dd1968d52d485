"""The `dots1` architecture: `qwen3` with experts as `glm4moe` has them."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Gating, RopeKind

FAMILY = Family(
    models="dots.llm1",
    features="norms of q and k, sigmoid gates with biases, a shared expert, dense layers first",
    rope=RopeKind.NEOX,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(**b.head_norms()),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.gated()
        if b.leads
        else b.mixture(b.routing_said(b.metadata.gating(Gating.SIGMOID))),
    )
