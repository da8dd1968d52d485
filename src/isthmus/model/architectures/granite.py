"""The `granite` architecture: `llama` with factors on embedding, scores, residuals and logits."""

from __future__ import annotations

from typing import Any

from isthmus.model.blocks import Decoder, Mixer, Part, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind
from isthmus.model.shape.metadata import Metadata

FAMILY = Family(
    models="Granite 3, dense",
    features="factors on embedding, scores, residuals and logits",
    rope=RopeKind.NORMAL,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(lambda b: block(b, attention(b), feed_forward(b)), **scales(file.metadata))


def scales(metadata: Metadata) -> dict[str, Any]:
    """The factors of a whole model, as fields of `Decoder`."""
    return {
        "embedding_scale": metadata.number("embedding_scale", 0.0) or 1.0,
        "logits_scale": 1.0 / metadata.divisor("logit_scale"),
    }


def attention(b: BlockLoader) -> Mixer:
    """A block's attention."""
    rotated = b.metadata.flag("rope.scaling.finetuned", True)
    scale = b.metadata.number("attention.scale", 0.0) or b.heads.scale
    return b.attention(scores=b.scores(scale=scale), rotary=b.rotary() if rotated else None)


def block(b: BlockLoader, mixer: Mixer, feed_forward: Part) -> Part:
    """One block of such parts."""
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=mixer,
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=feed_forward,
        scale=b.metadata.number("residual_scale", 0.0) or 1.0,
    )


def feed_forward(b: BlockLoader) -> Part:
    """A block's network, or its experts if the file has some, perhaps with one for every token."""
    if not b.hparams.n_expert:
        return b.gated()
    scale = b.metadata.number("expert_weights_scale", 0.0) or 1.0
    n_ff_shared = b.metadata.integer("expert_shared_feed_forward_length", 0, least=0)
    return b.with_shared(b.experts(b.n_ff, b.routing(scale=scale)), n_ff_shared)
