"""The `nomic-bert` architecture: as `bert`, with rotated positions and a gated network."""

from __future__ import annotations

from isthmus.model.blocks import Encoder, Part, PostNorm
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="Nomic Embed 1 and 1.5",
    features="embeddings: as `bert` with rotary positions, fused q, k and v, SwiGLU",
    rope=RopeKind.NEOX,
    encoder=True,
)


def load(file: Loader) -> Encoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.encoder(_block)


def _block(b: BlockLoader) -> Part:
    return PostNorm(
        attention=b.attention(),
        attn_norm=b.layer_norm("attn_output_norm"),
        feed_forward=b.gated(),
        ffn_norm=b.layer_norm("layer_output_norm"),
    )
