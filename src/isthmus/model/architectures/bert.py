"""The `bert` architecture: an encoder whose norms come last, and positions from a table.

A token's vector is the sum of those of its id, its place and its type, which is that of a first
sentence.
"""

from __future__ import annotations

from isthmus.model.blocks import Encoder, Part, PostNorm
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="BERT, MiniLM, BGE, E5, GTE and other sentence embeddings of its shape",
    features="embeddings: attention to both sides, position and type embeddings, GELU",
    rope=RopeKind.NEOX,
    encoder=True,
)


def load(file: Loader) -> Encoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.encoder(_block, with_positions=True)


def _block(b: BlockLoader) -> Part:
    return PostNorm(
        attention=b.attention(rotary=None),
        attn_norm=b.layer_norm("attn_output_norm"),
        feed_forward=b.plain(),
        ffn_norm=b.layer_norm("layer_output_norm"),
    )
