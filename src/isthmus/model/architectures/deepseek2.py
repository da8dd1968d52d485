"""The `deepseek2` architecture: latent attention, and experts in groups beside one that all take.

The KV cache has keys alone, whose first elements are the values; with old files it has both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isthmus.errors import ModelFileError
from isthmus.model.blocks import Attention, Decoder, Part, Rotary, Sequential
from isthmus.model.blocks.latent import Chain, ExpandedQkv, Latent, LatentOut, LatentQkv
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape import yarn
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Gating, Heads, Rope, RopeKind
from isthmus.model.shape.metadata import Metadata

_GLM = ((154_880, 47), (154_880, 48))
"""Tokens and layers of GLM-4.7-Flash, whose files do not say how experts are weighted."""


def _heads(metadata: Metadata) -> tuple[Heads, ...]:
    n, n_layer = metadata.integer("attention.head_count"), metadata.n_layer()
    dim = metadata.integer("attention.key_length")
    value_dim = metadata.integer("attention.value_length")
    n_kv = metadata.integer("attention.head_count_kv", n)
    if not metadata.has("attention.key_length_mla"):
        _require(metadata, n_kv == n, f"{n} heads have {n_kv} keys; expected as many")
        return tuple(Heads(n, n, dim, value_dim, 2 * i, 2 * i + 1) for i in range(n_layer))
    rank = metadata.integer("attention.kv_lora_rank")
    n_rot = metadata.integer("rope.dimension_count")
    wanted = (1, rank + n_rot, rank)
    _require(
        metadata,
        (n_kv, dim, value_dim) == wanted,
        f"{n_kv} keys of {dim} and values of {value_dim} do not fit a latent of {rank} and {n_rot} "
        "rotary dimensions: expected 1, their sum, and the first",
    )
    return tuple(Heads(n, 1, dim, value_dim, i, i) for i in range(n_layer))


FAMILY = Family(
    models="DeepSeek V2 to V3.1 and R1, Kimi K2, GLM-4.7-Flash, Mistral Large 3",
    features="latent attention with a cache of keys alone, experts in groups, dense layers first",
    rope=RopeKind.NORMAL,
    partial_rotary=True,
    heads=_heads,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=_attention(b),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.gated() if b.leads else b.mixture(b.routing_said(_gating(b))),
    )


def _attention(b: BlockLoader) -> Attention:
    metadata, heads, n_latent = b.metadata, b.heads, b.metadata.integer("attention.kv_lora_rank")
    is_latent, n_rot = heads.keys == heads.values, b.hparams.rope.n_dims
    dim = metadata.integer("attention.key_length_mla") if is_latent else heads.dim
    n_value = metadata.integer("attention.value_length_mla") if is_latent else heads.value_dim
    _require(metadata, (n_plain := dim - n_rot) > 0, f"{n_rot} rotary dimensions of heads of {dim}")
    rope, scale = _rope(b, dim)
    source = Latent(
        q=_queries(b, heads.n * dim),
        kv=b.linear("attn_kv_a_mqa", b.hparams.n_embd, n_latent + n_rot),
        norm=b.rms_norm("attn_kv_a_norm", n_latent),
        rotary=Rotary(rope),
        n_head=heads.n,
        n_plain=n_plain,
        n_rot=n_rot,
        n_latent=n_latent,
    )
    out = b.linear("attn_output", heads.n * n_value, b.hparams.n_embd)
    common = {"rotary": None, "temperature": _temperature(b), "scores": b.scores(scale=scale)}
    if not is_latent:
        kv_b = b.linear("attn_kv_b", n_latent, heads.n * (n_plain + n_value))
        return b.attention(qkv=ExpandedQkv(source, kv_b, n_value), out=out, **common)
    k_b, v_b = b.per_head("attn_k_b", n_plain, n_latent), b.per_head("attn_v_b", n_latent, n_value)
    return b.attention(qkv=LatentQkv(source, k_b), out=LatentOut(v_b, out), **common)


def _queries(b: BlockLoader, width: int) -> Part:
    """One matrix, or two with a norm between them."""
    n_embd = b.hparams.n_embd
    if b.has("attn_q"):
        return b.linear("attn_q", n_embd, width)
    rank = b.metadata.integer("attention.q_lora_rank")
    norm = b.rms_norm("attn_q_a_norm", rank)
    return Chain((b.linear("attn_q_a", n_embd, rank), norm, b.linear("attn_q_b", rank, width)))


def _rope(b: BlockLoader, dim: int) -> tuple[Rope, float]:
    """The rope, and the factor of scores of heads of `dim`, which YaRN makes larger."""
    rope, factor = b.hparams.rope, yarn.stretch(b.hparams.rope)
    said = b.metadata.number("rope.scaling.yarn_log_multiplier", 0.0)
    share = float(np.float32(said) / np.float32(0.1))
    attn_factor = np.float32(rope.attn_factor)
    if rope.ext_factor and share:
        attn_factor *= np.float32(1) / yarn.length(factor, 1.0)
    longer = attn_factor * yarn.length(factor, 1.0) * yarn.length(factor, share)
    scale = longer * longer / np.sqrt(np.float32(dim))
    return replace(yarn.with_bounds(b.metadata, rope), attn_factor=float(attn_factor)), float(scale)


def _temperature(b: BlockLoader) -> int:
    scale = b.metadata.number("attention.temperature_scale", 0.0)
    return b.temperature(scale, b.metadata.integer("attention.temperature_length")) if scale else 0


def _gating(b: BlockLoader) -> Gating:
    info = b.weights.info("token_embd.weight")
    is_glm = info and (info.shape[-1], b.hparams.n_layer) in _GLM
    return b.metadata.gating(Gating.SIGMOID if is_glm else Gating.SOFTMAX)


def _require(metadata: Metadata, holds: bool, wrong: str) -> None:
    if not holds:
        raise ModelFileError(f"{metadata.path}: {wrong}")
