"""The `nemotron_h_moe` architecture: `nemotron_h` with experts, and one that every token takes."""

from __future__ import annotations

from isthmus.model.architectures.nemotron_h import block, networks, states
from isthmus.model.blocks import Decoder, Part, squared_relu
from isthmus.model.blocks.experts import LatentExperts, SharedExpert
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Gating, RopeKind

FAMILY = Family(
    models="Nemotron 3 Nano and Super",
    features="as `nemotron_h`, with sigmoid gates, experts over a latent, and a shared expert",
    rope=RopeKind.NEOX,
    partial_rotary=True,
    states=states,
    networks=networks,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(lambda b: block(b, lambda: _experts(b)))


def _experts(b: BlockLoader) -> Part:
    m, n_embd, n_ff = b.metadata, b.hparams.n_embd, b.n_ff_expert
    n_seen = m.integer("moe_latent_size", 0, least=0) or n_embd
    experts = b.ungated_experts(n_seen, n_ff, b.routing_said(Gating.SIGMOID))
    others: Part = experts
    if b.has("ffn_latent_down"):
        down = b.linear("ffn_latent_down", n_embd, n_seen)
        others = LatentExperts(down, experts, b.linear("ffn_latent_up", n_seen, n_embd))
    n_ff_shared = m.integer("expert_shared_feed_forward_length")
    return SharedExpert(others, b.plain(squared_relu, "_shexp", n_ff_shared))
