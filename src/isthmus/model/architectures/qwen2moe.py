"""The `qwen2moe` architecture: experts, and one more that every token takes."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.blocks.experts import SharedExpert
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="Qwen 1.5 and 2 with experts (A2.7B, 57B-A14B)",
    features="biases of q, k and v, experts, a shared expert with a gate",
    rope=RopeKind.NEOX,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    n_ff_shared = b.metadata.integer("expert_shared_feed_forward_length", b.n_ff)
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=SharedExpert(
            others=b.experts(b.n_ff_expert, b.routing(normalised=False)),
            shared=b.gated(suffix="_shexp", n_ff=n_ff_shared),
            gate=b.router("ffn_gate_inp_shexp", b.hparams.n_embd, 1),
            by_silu=True,
        ),
    )
