"""The `llama` architecture.

Each block, with x of shape [n_embd, n]::

    x += Wo · attention(rope(Wq · norm(x)), rope(Wk · norm(x)), Wv · norm(x))
    x += Wdown · (silu(Wgate · norm(x)) * (Wup · norm(x)))

or, where the file has experts, the same of several networks, weighted.
"""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="Llama 1 to 3.3, Mistral 7B, Mixtral, SmolLM 1 and 2, TinyLlama, Yi, DeepSeek-Coder 1",
    features="grouped heads, Llama 3 rope factors, linear, YaRN and LongRoPE scaling, experts",
    rope=RopeKind.NORMAL,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(rotary=b.rotary()),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.experts(b.n_ff) if b.hparams.n_expert else b.gated(),
    )
