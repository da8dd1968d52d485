"""The `minimax-m2` architecture: norms over all of q and k, experts chosen by a sigmoid."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Gating, RopeKind

FAMILY = Family(
    models="MiniMax M2 and M2.1",
    features="norms over all of q and k, partial rotary, sigmoid gates with biases",
    rope=RopeKind.NEOX,
    partial_rotary=True,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(qkv=b.normed_qkv()),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.experts(b.n_ff, b.routing(b.metadata.gating(Gating.SIGMOID))),
    )
