"""The `lfm2moe` architecture: `lfm2` with experts in all blocks but the first ones."""

from __future__ import annotations

from isthmus.errors import ModelUnsupported
from isthmus.model.architectures.lfm2 import block, pass_over_heads, states
from isthmus.model.blocks import Decoder, Part
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Gating, RopeKind

FAMILY = Family(
    models="LFM2 and LFM2.5 with experts (8B-A1B, 24B-A2B)",
    features="as `lfm2`, with experts in all blocks but the first ones",
    rope=RopeKind.NEOX,
    states=states,
)

_SIGMOID = 2
"""How `expert_gating_func` says it."""


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    gating = file.metadata.integer("expert_gating_func", _SIGMOID)
    if gating != _SIGMOID:
        raise ModelUnsupported(
            f"{file.metadata.path}: expert_gating_func is {gating}; a sigmoid, {_SIGMOID}, is known"
        )
    pass_over_heads(file)
    return file.decoder(_block, norm_name="token_embd_norm")


def _block(b: BlockLoader) -> Part:
    dense = b.layer < b.metadata.integer("leading_dense_block_count", least=0)
    return block(b, b.gated() if dense else _experts(b))


def _experts(b: BlockLoader) -> Part:
    return b.experts(b.n_ff_expert, b.routing(Gating.SIGMOID))
