"""The `lfm2` architecture: short convolutions in most layers, attention in the others."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Mixer, Part, Sequential
from isthmus.model.blocks.hybrid import Convolution, ShortConvolution
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind, State
from isthmus.model.shape.metadata import Metadata

_WIDTH = "shortconv.l_cache"
"""Tokens that a convolution sees."""


def states(metadata: Metadata) -> tuple[State, ...]:
    """The last products of each layer that has a convolution: one without heads for keys."""
    heads = metadata.integers("attention.head_count_kv", least=0)
    shape = metadata.integer(_WIDTH, least=2) - 1, metadata.integer("embedding_length")
    return tuple(State(layer, shape) for layer, n in enumerate(heads) if n == 0)


FAMILY = Family(
    models="LFM2 and LFM2.5, dense",
    features="short convolutions in most layers, norms of q and k in the others",
    rope=RopeKind.NEOX,
    window_everywhere=True,
    states=states,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    pass_over_heads(file)
    return file.decoder(lambda b: block(b, b.gated()), norm_name="token_embd_norm")


def pass_over_heads(file: Loader) -> None:
    """Takes no notice of what makes embeddings, which some files have beside what makes text."""
    file.weights.pass_over("dense_2.weight", "dense_2.bias")


def block(b: BlockLoader, feed_forward: Part) -> Part:
    """One block, whatever its feed-forward network is."""
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=_mixer(b),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=feed_forward,
    )


def _mixer(b: BlockLoader) -> Mixer:
    """The convolution of a block that has one, or its attention."""
    if not b.states:
        return b.attention(scores=b.scores(windowed=b.windowed), **b.head_norms())
    n_embd, (state,) = b.hparams.n_embd, b.states
    kernel = b.kernel("shortconv.conv.weight", b.metadata.integer(_WIDTH), n_embd)
    return ShortConvolution(
        layer=b.layer,
        inner=b.linear("shortconv.in_proj", n_embd, 3 * n_embd),
        convolution=Convolution(kernel, state),
        out=b.linear("shortconv.out_proj", n_embd, n_embd),
    )
