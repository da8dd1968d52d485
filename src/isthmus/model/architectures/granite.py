"""The `granite` architecture: `llama` with factors on embedding, scores, residuals and logits."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.hparams import Family, RopeKind
from isthmus.model.loader import BlockLoader, Loader

FAMILY = Family(
    models="Granite 3, dense",
    features="factors on embedding, scores, residuals and logits",
    rope=RopeKind.NORMAL,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    metadata = file.metadata
    return file.decoder(
        _block,
        embedding_scale=metadata.number("embedding_scale", 0.0) or 1.0,
        logits_scale=1.0 / metadata.divisor("logit_scale"),
    )


def _block(b: BlockLoader) -> Part:
    rotated = b.metadata.flag("rope.scaling.finetuned", True)
    scale = b.metadata.number("attention.scale", 0.0) or b.heads.scale
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(scores=b.scores(scale=scale), rotary=b.rotary() if rotated else None),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=_experts(b) if b.hparams.n_expert else b.gated(),
        scale=b.metadata.number("residual_scale", 0.0) or 1.0,
    )


def _experts(b: BlockLoader) -> Part:
    scale = b.metadata.number("expert_weights_scale", 0.0) or 1.0
    n_ff_shared = b.metadata.integer("expert_shared_feed_forward_length", 0, least=0)
    return b.with_shared(b.experts(b.n_ff, b.routing(scale=scale)), n_ff_shared)
