"""The `qwen35moe` architecture: `qwen35` with experts, and one more that every token takes."""

from __future__ import annotations

from isthmus.model.architectures.qwen35 import block, states
from isthmus.model.blocks import Decoder, Part
from isthmus.model.blocks.experts import SharedExpert
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="Qwen 3.5 to 3.8 with experts, without images",
    features="as `qwen35`, with experts and a shared expert with a gate",
    rope=RopeKind.NEOX,
    partial_rotary=True,
    states=states,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(lambda b: block(b, _experts(b)))


def _experts(b: BlockLoader) -> Part:
    return SharedExpert(
        others=b.experts(b.n_ff_expert),
        shared=b.gated(suffix="_shexp", n_ff=_n_ff_shared(b)),
        gate=b.router("ffn_gate_inp_shexp", b.hparams.n_embd, 1),
    )


def _n_ff_shared(b: BlockLoader) -> int:
    return b.metadata.integer("expert_shared_feed_forward_length", b.n_ff_expert)
