"""Tiny GGUF files with random weights, made by the `gguf` package."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.tiny_vocabulary import SPECIAL, write_bytes, write_wordpiece

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Quantise = Callable[[np.ndarray, gguf.GGMLQuantizationType], np.ndarray]
FIRST_SPECIAL = len(SPECIAL) + 256
"""The id of the first of `TinyModel.more_special`."""


_SEPARATE = "attn_q:embd,q attn_k:embd,kv attn_v:embd,kv "
_FUSED = "attn_qkv:embd,qkv "
_NORMED = "attn_q_norm:head attn_k_norm:head "
_OUT = "attn_norm:embd attn_output:q,embd "
_GATED = "ffn_norm:embd ffn_gate:embd,ff ffn_up:embd,ff ffn_down:ff,embd "
_PLAIN = "ffn_up:embd,ff ffn_down:ff,embd "
_AROUND = "post_attention_norm:embd post_ffw_norm:embd "
_EXPERTS = (
    "ffn_norm:embd ffn_gate_inp:embd,experts ffn_gate_exps:embd,expert,experts "
    "ffn_up_exps:embd,expert,experts ffn_down_exps:expert,embd,experts "
)
_SHARED = (
    "ffn_gate_inp_shexp:embd ffn_gate_shexp:embd,ff ffn_up_shexp:embd,ff ffn_down_shexp:ff,embd "
)
_CONVOLVED = (
    "attn_norm:embd shortconv.conv:width,embd shortconv.in_proj:embd,embd3 "
    "shortconv.out_proj:embd,embd "
)
_NAMED_OTHERWISE = "token_embd:embd,vocab token_embd_norm:embd"
_PREFERRED = "exp_probs_b=bias:experts "
_SCANNED = (
    "attn_norm:embd ssm_in:embd,scanned ssm_conv1d:taps,channels ssm_conv1d=bias:channels "
    "ssm_dt=bias:vheads ssm_a=:one,vheads ssm_d=:one,vheads ssm_norm:grouped,groups "
    "ssm_out:inner,embd "
)
_DELTA = (
    "attn_norm:embd attn_qkv:embd,channels attn_gate:embd,inner ssm_conv1d:taps,channels "
    "ssm_dt=bias:vheads ssm_a=:vheads ssm_beta:embd,vheads ssm_alpha:embd,vheads ssm_norm:state "
    "ssm_out:inner,embd "
)
_GATED_ATTENTION = (
    "attn_norm:embd attn_q:embd,q2 attn_k:embd,kv attn_v:embd,kv attn_output:q,embd " + _NORMED
)
_AFTER_MIXING = _GATED.replace("ffn_norm", "post_attention_norm")
_MIXED_EXPERTS = (
    "post_attention_norm:embd ffn_gate_inp:embd,experts ffn_gate_up_exps:embd,expert2,experts "
    "ffn_down_exps:expert,embd,experts " + _SHARED
)
_SCANS = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 32,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 128,
}
_ALONE = "attn_norm:embd " + _PLAIN
_LATENT_EXPERTS = (
    "attn_norm:embd ffn_gate_inp:embd,experts exp_probs_b=bias:experts "
    "ffn_latent_down:embd,latent ffn_latent_up:latent,embd ffn_up_exps:latent,expert,experts "
    "ffn_down_exps:expert,latent,experts ffn_up_shexp:embd,ff ffn_down_shexp:ff,embd "
)
_NETS: dict[str, Any] = _SCANS | {
    "rope.dimension_count": 24,
    "rope.dimension_sections": [5, 4, 3, 0],
}
_ROUTED = {"expert_count": 8, "expert_used_count": 3}
_PER_LAYER = "inp_gate:embd,side proj:side,embd post_norm:embd "
_GEMMA4_EXPERTS = [
    "ffn_gate_inp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_inp.scale",
    "ffn_down_exps.scale",
    "pre_ffw_norm_2",
    "post_ffw_norm_1",
    "post_ffw_norm_2",
]
_LED = (
    _GATED
    + _EXPERTS.replace("ffn_norm:embd ", "")
    + ("ffn_gate_shexp:embd,shared ffn_up_shexp:embd,shared ffn_down_shexp:shared,embd ")
)
"""A dense layer first, then experts and a shared one."""
_LED_LAYERS = {
    name: (0,) if name in ("ffn_gate", "ffn_up", "ffn_down") else (1, 2)
    for name in [
        "ffn_gate",
        "ffn_up",
        "ffn_down",
        "ffn_gate_inp",
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
        "ffn_gate_up_exps",
        "ffn_gate_shexp",
        "ffn_up_shexp",
        "ffn_down_shexp",
        "exp_probs_b.bias",
    ]
}
_LATENT = (
    "attn_norm:embd attn_q_a:embd,rank attn_q_a_norm:rank attn_q_b:rank,wide "
    "attn_kv_a_mqa:embd,turned attn_kv_a_norm:latent attn_output:values,embd "
)
_SPLIT_GATES = "ffn_gate_exps:embd,expert,experts ffn_up_exps:embd,expert,experts "
_LATENT_REST = _LED.replace("shared", "expert") + "exp_probs_b.bias:experts"
_DEEPSEEK = _ROUTED | {
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 64,
    "rope.dimension_count": 32,
    "leading_dense_block_count": 1,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_group_count": 4,
    "expert_group_used_count": 2,
    "expert_weights_norm": True,
    "expert_weights_scale": 2.5,
}
_DEEPSEEK_SIZES: dict[str, int | tuple[int, ...]] = {
    "rank": 32,
    "wide": 256,
    "latent": 64,
    "turned": 96,
    "plain": 32,
    "value": 32,
    "values": 128,
    "both": 256,
}


@dataclass(frozen=True)
class Recipe:
    """One architecture: each block's tensors as `name:n_in,n_out`, and what its metadata says.

    A name ends in `.weight` in the file, or in what comes after a `=`.
    """

    block: str
    biased: str = ""
    """Tensors with a bias, in each block and outside; `all` for every one."""
    metadata: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)
    """Fields of TinyModel that this architecture wants otherwise."""
    outside: str = "token_embd:embd,vocab output_norm:embd"
    """Tensors that belong to no block."""
    mixed: dict[int, str] = field(default_factory=dict)
    """Blocks that have other tensors, by their numbers."""
    sizes: dict[str, int | tuple[int, ...]] = field(default_factory=dict)
    """What symbols of shapes stand for; of each layer, where they differ."""
    only: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The layers that have a tensor, where not all have it."""


RECIPES = {
    "llama": Recipe(_OUT + _SEPARATE + _GATED),
    "qwen2": Recipe(_OUT + _SEPARATE + _GATED, "attn_q attn_k attn_v", shape={"n_embd": 128}),
    "qwen3": Recipe(_OUT + _SEPARATE + _NORMED + _GATED),
    "qwen2moe": Recipe(
        _OUT + _SEPARATE + _EXPERTS + _SHARED,
        "attn_q attn_k attn_v",
        _ROUTED,
        {"n_embd": 128, "tied": False},
    ),
    "qwen3moe": Recipe(_OUT + _SEPARATE + _NORMED + _EXPERTS, "", _ROUTED),
    "gemma2": Recipe(
        _OUT + _SEPARATE + _AROUND + _GATED,
        metadata={
            "attention.sliding_window": 48,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": Recipe(
        _OUT + _SEPARATE + _NORMED + _AROUND + _GATED,
        metadata={
            "attention.sliding_window": 48,
            "attention.sliding_window_pattern": 3,
            "rope.freq_base": 1_000_000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        shape={"n_layer": 4},
    ),
    "phi3": Recipe(
        _OUT + _FUSED + "ffn_norm:embd ffn_up:embd,ff2 ffn_down:ff,embd",
        metadata={
            "rope.dimension_count": 24,
            "rope.scaling.original_context_length": 256,
            "rope.scaling.attn_factor": 1.2,
            "attention.sliding_window": 48,
        },
        shape={"n_embd": 128},
    ),
    "granite": Recipe(
        _OUT + _SEPARATE + _GATED,
        metadata={
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "logit_scale": 8.0,
            "attention.scale": 0.015625,
        },
    ),
    "gpt-oss": Recipe(
        _OUT
        + _SEPARATE
        + "attn_sinks:heads "
        + _EXPERTS.replace("ffn_norm", "post_attention_norm"),
        "attn_q attn_k attn_v attn_output ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps",
        _ROUTED
        | {
            "attention.sliding_window": 48,
            "rope.freq_base": 150_000.0,
            "rope.freq_base_swa": 20_000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 256,
        },
        {"tied": False},
    ),
    "smollm3": Recipe(_OUT + _SEPARATE + _GATED, shape={"n_layer": 5}),
    "olmo2": Recipe(
        "attn_output:q,embd attn_q_norm:q attn_k_norm:kv "
        + _SEPARATE
        + _AROUND
        + _GATED.replace("ffn_norm:embd ", ""),
        metadata={
            "attention.sliding_window": 48,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.attn_factor": 1.2,
            "rope.scaling.original_context_length": 256,
        },
        shape={"n_embd": 128, "n_layer": 5, "tied": False},
    ),
    "seed_oss": Recipe(
        _OUT + _SEPARATE + _GATED.replace("ffn_norm", "post_attention_norm"), "attn_q attn_k attn_v"
    ),
    "glm4": Recipe(
        _OUT + _SEPARATE + _AROUND + "ffn_norm:embd ffn_up:embd,ff2 ffn_down:ff,embd",
        "attn_q attn_k attn_v",
        {"rope.dimension_count": 16},
    ),
    "qwen3vl": Recipe(
        _OUT + _SEPARATE + _NORMED + _GATED,
        metadata={"rope.dimension_sections": [6, 5, 4, 0], "n_deepstack_layers": 1},
    ),
    "mistral3": Recipe(
        _OUT + _SEPARATE + _GATED,
        metadata={
            "attention.temperature_scale": 0.1,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 16.0,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.yarn_beta_fast": 24.0,
            "rope.scaling.yarn_beta_slow": 2.0,
            "rope.scaling.yarn_log_multiplier": 0.7,
        },
    ),
    "gemma4": Recipe(
        _OUT
        + _SEPARATE
        + _NORMED
        + _AROUND
        + _GATED
        + _PER_LAYER
        + _EXPERTS.replace("ffn_norm:embd ", "")
        + "layer_output_scale:one ffn_gate_inp.scale:embd ffn_down_exps.scale:experts "
        + "pre_ffw_norm_2:embd post_ffw_norm_1:embd post_ffw_norm_2:embd",
        metadata=_ROUTED
        | {
            "attention.head_count": [4, 4, 2, 2, 4],
            "attention.head_count_kv": [4, 2, 1, 2, 1],
            "attention.key_length": 64,
            "attention.value_length": 64,
            "attention.key_length_swa": 32,
            "attention.value_length_swa": 32,
            "attention.sliding_window": 48,
            "attention.sliding_window_pattern": [True, True, False, True, False],
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 32,
            "feed_forward_length": [96, 96, 64, 128, 128],
            "final_logit_softcapping": 3.0,
            "rope.dimension_count": 64,
            "rope.dimension_count_swa": 32,
            "rope.freq_base": 1_000_000.0,
            "rope.freq_base_swa": 10_000.0,
        },
        shape={"n_layer": 5},
        outside="token_embd:embd,vocab output_norm:embd rope_freqs:half "
        "per_layer_token_embd:sides,vocab per_layer_model_proj:embd,sides per_layer_proj_norm:side",
        sizes={
            "head": (32, 32, 64, 32, 64),
            "q": (128, 128, 128, 64, 256),
            "kv": (128, 64, 64, 64, 64),
            "ff": (96, 96, 64, 128, 128),
            "half": 32,
            "side": 32,
            "sides": 160,
        },
        only={"attn_k": (0, 1, 2), "attn_k_norm": (0, 1, 2), "attn_v": (0, 1)}
        | dict.fromkeys(_GEMMA4_EXPERTS, (1, 3)),
    ),
    "glm4moe": Recipe(
        _OUT
        + _SEPARATE
        + _NORMED
        + _LED.replace("ffn_norm", "post_attention_norm")
        + "exp_probs_b.bias:experts",
        "attn_q attn_k attn_v",
        _ROUTED
        | {
            "rope.dimension_count": 16,
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.5,
        },
        {"n_layer": 3, "tied": False},
        sizes={"shared": 128},
        only=_LED_LAYERS,
    ),
    "deepseek2": Recipe(
        _LATENT + "attn_k_b:plain,latent,heads attn_v_b:latent,value,heads " + _LATENT_REST,
        metadata=_DEEPSEEK
        | {
            "attention.head_count_kv": 1,
            "attention.key_length": 96,
            "attention.value_length": 64,
            "attention.key_length_mla": 64,
            "attention.value_length_mla": 32,
        },
        shape={"n_layer": 3, "tied": False},
        sizes=_DEEPSEEK_SIZES,
        only=_LED_LAYERS,
    ),
    "starcoder2": Recipe(
        _OUT + _SEPARATE + "ffn_norm:embd " + _PLAIN, "all", shape={"n_embd": 128}
    ),
    "falcon": Recipe(
        _OUT + _FUSED + "attn_norm_2:embd " + _PLAIN,
        "attn_norm attn_norm_2 output_norm",
        shape={"n_embd": 128},
    ),
    "granitehybrid": Recipe(
        _SCANNED + _GATED,
        mixed={2: _OUT + _SEPARATE + _GATED},
        metadata={
            "attention.head_count_kv": [0, 0, 2, 0],
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "logit_scale": 8.0,
            "attention.scale": 0.015625,
            "rope.scaling.finetuned": False,
        }
        | _SCANS,
        shape={"n_layer": 4},
    ),
    "nemotron_h": Recipe(
        _SCANNED,
        mixed={1: _ALONE, 3: _OUT + _SEPARATE, 4: _ALONE},
        metadata=_SCANS
        | {
            "attention.head_count_kv": [0, 0, 0, 2, 0],
            "feed_forward_length": [0, 96, 0, 0, 96],
            "attention.layer_norm_epsilon": 1e-5,
        },
        shape={"n_layer": 5, "tied": False},
    ),
    "nemotron_h_moe": Recipe(
        _SCANNED,
        mixed={1: _LATENT_EXPERTS, 2: _OUT + _SEPARATE, 3: _LATENT_EXPERTS},
        metadata=_SCANS
        | _ROUTED
        | {
            "attention.head_count_kv": [0, 0, 2, 0],
            "feed_forward_length": [0, 64, 0, 64],
            "attention.layer_norm_epsilon": 1e-5,
            "expert_shared_feed_forward_length": 96,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            "moe_latent_size": 32,
        },
        shape={"n_layer": 4, "tied": False},
        sizes={"latent": 32},
    ),
    "lfm2": Recipe(
        _CONVOLVED + _GATED,
        mixed={1: _OUT + _SEPARATE + _NORMED + _GATED, 3: _OUT + _SEPARATE + _NORMED + _GATED},
        metadata={"attention.head_count_kv": [0, 2, 0, 2, 0], "shortconv.l_cache": 3},
        shape={"n_layer": 5, "n_embd": 128},
        outside=_NAMED_OTHERWISE,
    ),
    "lfm2moe": Recipe(
        _CONVOLVED + _EXPERTS + _PREFERRED,
        mixed={0: _CONVOLVED + _GATED, 2: _OUT + _SEPARATE + _NORMED + _EXPERTS + _PREFERRED},
        metadata=_ROUTED
        | {
            "attention.head_count_kv": [0, 0, 2, 0],
            "shortconv.l_cache": 4,
            "leading_dense_block_count": 1,
            "expert_gating_func": 2,
        },
        shape={"n_layer": 4, "n_embd": 128},
        outside=_NAMED_OTHERWISE,
    ),
    "qwen35": Recipe(
        _DELTA + _AFTER_MIXING,
        mixed={2: _GATED_ATTENTION + _AFTER_MIXING},
        metadata=_NETS | {"full_attention_interval": 3},
        shape={"n_layer": 5, "tied": False},
    ),
    "qwen35moe": Recipe(
        _DELTA + _MIXED_EXPERTS,
        mixed={1: _GATED_ATTENTION + _MIXED_EXPERTS},
        metadata=_NETS
        | _ROUTED
        | {"full_attention_interval": 2, "expert_shared_feed_forward_length": 96},
        shape={"n_layer": 3, "n_embd": 128},
    ),
}
_SHARED_ONLY = "ffn_gate_shexp:embd,shared ffn_up_shexp:embd,shared ffn_down_shexp:shared,embd "
_WHOLE_NORMS = "attn_norm:embd attn_output:q,embd attn_q_norm:q attn_k_norm:kv "
COMBINED = {
    "granitemoe": Recipe(
        _OUT + _SEPARATE + re.sub(r"\bexpert\b", "ff", _EXPERTS) + _SHARED_ONLY,
        metadata=RECIPES["granite"].metadata | _ROUTED | {"expert_shared_feed_forward_length": 64},
        sizes={"shared": 64},
    ),
    "dots1": replace(
        RECIPES["glm4moe"],
        block=_OUT + _SEPARATE + _NORMED + _LED + "exp_probs_b.bias:experts",
        biased="",
        metadata=RECIPES["glm4moe"].metadata | {"rope.dimension_count": 32},
        shape={"n_layer": 3, "n_head_kv": 4, "tied": False},
    ),
    "qwen3vlmoe": replace(
        RECIPES["qwen3vl"],
        block=_OUT + _SEPARATE + _NORMED + _EXPERTS,
        metadata=RECIPES["qwen3vl"].metadata | _ROUTED,
    ),
    "bailingmoe": Recipe(
        _OUT + _SEPARATE + _EXPERTS + _SHARED_ONLY,
        metadata=_ROUTED | {"expert_shared_count": 1, "expert_weights_scale": 2.0},
        shape={"tied": False},
        sizes={"shared": 64},
    ),
    "ernie4_5": Recipe(_OUT + _SEPARATE + _GATED),
    "ernie4_5-moe": Recipe(
        _OUT + _SEPARATE + _LED + "exp_probs_b.bias:experts",
        metadata=_ROUTED
        | {
            "leading_dense_block_count": 1,
            "interleave_moe_layer_step": 1,
            "expert_shared_feed_forward_length": 64,
        },
        shape={"n_layer": 3},
        sizes={"shared": 64},
        only=_LED_LAYERS,
    ),
    "minimax-m2": Recipe(
        _WHOLE_NORMS
        + _SEPARATE
        + re.sub(r"\bexpert\b", "ff", _EXPERTS)
        + "exp_probs_b.bias:experts",
        metadata=_ROUTED
        | {
            "rope.dimension_count": 16,
            "expert_gating_func": 2,
            "expert_feed_forward_length": 96,
        },
        shape={"tied": False},
    ),
    "olmoe": Recipe(
        _WHOLE_NORMS + _SEPARATE + re.sub(r"\bexpert\b", "ff", _EXPERTS),
        metadata=_ROUTED,
        shape={"n_embd": 128, "n_head_kv": 4, "tied": False},
    ),
}
"""Architectures of which each part is in RECIPES already."""
VARIANTS = {
    "gemma4, dense": replace(
        RECIPES["gemma4"],
        block=re.sub(r"(inp_gate|proj|post_norm):\S+ ", "", RECIPES["gemma4"].block),
        metadata={
            key: value
            for key, value in RECIPES["gemma4"].metadata.items()
            if "shared" not in key and "expert" not in key
        }
        | {"embedding_length_per_layer_input": 0},
        outside="token_embd:embd,vocab output_norm:embd rope_freqs:half",
        only=dict.fromkeys((*_GEMMA4_EXPERTS, "layer_output_scale"), ()),
    ),
    "deepseek2, expanded": replace(
        RECIPES["deepseek2"],
        block=re.sub(r"attn_q_a\S* |attn_q_a_norm\S* ", "", _LATENT).replace(
            "attn_q_b:rank,wide", "attn_q:embd,wide"
        )
        + "attn_kv_b:latent,both "
        + _LATENT_REST.replace(_SPLIT_GATES, "ffn_gate_up_exps:embd,expert2,experts "),
        metadata=_DEEPSEEK
        | {
            "attention.head_count_kv": 4,
            "attention.key_length": 64,
            "attention.value_length": 32,
            "attention.q_lora_rank": 0,
            "expert_gating_func": 1,
            "expert_group_count": 0,
            "expert_weights_norm": False,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 40.0,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.yarn_log_multiplier": 0.0707,
            "attention.temperature_scale": 0.1,
            "attention.temperature_length": 32,
        },
    ),
}
"""Other files of the same architectures, by `TinyModel.variant`."""
_ENCODER_SHAPE = {"n_embd": 128, "n_head_kv": 4, "n_ctx": 600}
_AFTER = "attn_output:q,embd attn_output_norm:embd layer_output_norm:embd "
_ENCODED = "token_embd:embd,vocab token_embd_norm:embd token_types:embd,types "
ENCODERS = {
    "bert": Recipe(
        _AFTER + _SEPARATE + _PLAIN,
        "all",
        {"attention.causal": False, "pooling_type": 1},
        _ENCODER_SHAPE,
        _ENCODED + "position_embd:embd,ctx",
    ),
    "nomic-bert": Recipe(
        _AFTER + _FUSED + _GATED.replace("ffn_norm:embd ", ""),
        "token_embd_norm attn_output_norm layer_output_norm",
        {"attention.causal": False, "pooling_type": 1, "rope.freq_base": 1000.0},
        _ENCODER_SHAPE,
        _ENCODED,
    ),
}
_LAYER_NORMS = ("starcoder2", "falcon", *ENCODERS)
_NOT_ADAPTED = ("ffn_gate_inp", "shortconv.conv", "conv1d", "ssm_a=", "ssm_d", "ssm_norm")
_NEVER_QUANTISED = (*_NOT_ADAPTED, "token_types", "position_embd")


@dataclass
class TinyModel:
    """A model of one of the RECIPES; every field is a feature that its GGUF can say."""

    architecture: str = "llama"
    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 32
    n_ff: int = 96
    n_ff_expert: int = 64
    n_vocab: int = 320
    n_ctx: int = 1024
    tied: bool = True
    biases: bool = False
    fused_qkv: bool = False
    experts: bool = False
    quantisation: str = "F32"
    quantise: Quantise | None = None
    """For types that the `gguf` package cannot make: (rows, type) -> bytes."""
    rope_factors: bool = False
    rope_scaling: dict[str, object] = field(default_factory=dict)
    with_tokenizer: bool = False
    chat_template: str = ""
    """By default CHATML."""
    pre_tokenizer: str = "gpt-2"
    extra_tensors: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """Tensors of each block that are left out."""
    without_tokens: tuple[str, ...] = ()
    """Special tokens that a WordPiece does not name."""
    overrides: dict[str, Any] = field(default_factory=dict)
    more_special: tuple[str, ...] = ()
    """Control tokens after the bytes of a byte-pair vocabulary: the first is FIRST_SPECIAL."""
    token_ids: dict[str, int] = field(default_factory=dict)
    """`tokenizer.ggml.NAME_token_id` by that name."""
    adds_bos: bool | None = None
    n_scores: int = 0
    """Of a reranker: its classifier, which has no inner layer if there are several."""
    rerank_template: str = ""
    seed: int = 0
    variant: str = ""
    """The recipe that is not its architecture's: one of VARIANTS."""

    def __post_init__(self) -> None:
        known = RECIPES | COMBINED | ENCODERS | VARIANTS
        recipe = known.get(self.variant or self.architecture, RECIPES["llama"])
        self._sizes, self._only = recipe.sizes, recipe.only
        usual = {it.name: it.default for it in fields(self)}
        for name, value in recipe.shape.items():
            if getattr(self, name) == usual[name]:
                setattr(self, name, value)
        blocks = [recipe.mixed.get(i, recipe.block) for i in range(self.n_layer)]
        self._blocks = [self._tensors_of(block) for block in blocks]
        self._outside = self._listed(recipe.outside)
        self._biased = recipe.biased.split()
        self._metadata = recipe.metadata | (_ROUTED if self.experts else {})

    def _tensors_of(self, block: str) -> dict[str, list[str]]:
        if self.fused_qkv:
            block = block.replace(_SEPARATE, _FUSED)
        if self.experts:
            experts = re.sub(r"\bexpert\b", "ff", _EXPERTS)
            if "expert_shared_feed_forward_length" in self.overrides:
                experts += _SHARED.replace("ffn_gate_inp_shexp:embd ", "")
            block = block.replace(_GATED, experts)
        return self._listed(block)

    def _labels(self) -> dict[str, Any]:
        names = ["yes", "no", "maybe"][: self.n_scores]
        return {"classifier.output_labels": names} if self.n_scores > 1 else {}

    def _listed(self, text: str) -> dict[str, list[str]]:
        each = (it.split(":") for it in text.split())
        return {name: shape.split(",") for name, shape in each if name not in self.without}

    def write(self, path: Path) -> Path:
        """Writes the file."""
        writer = gguf.GGUFWriter(path, self.architecture)
        self._write_metadata(writer)
        if self.with_tokenizer:
            self._write_tokenizer(writer)
        else:
            writer.add_tokenizer_model("none")
        self._write_tensors(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def matrices(self) -> dict[str, list[int]]:
        """The shapes of those that adapters can change, by name."""
        outside = (
            {} if self.tied else {"token_embd": ["embd", "vocab"], "output": ["embd", "vocab"]}
        )
        blocks = {
            f"blk.{i}.{name}": [self._size(it, i) for it in shape]
            for i in range(self.n_layer)
            for name, shape in self._block_of(i).items()
            if len(shape) > 1 and not any(it in name for it in _NOT_ADAPTED)
        }
        shapes = {name: [self._size(it) for it in shape] for name, shape in outside.items()}
        return {f"{name}.weight": shape for name, shape in (shapes | blocks).items()}

    def _block_of(self, layer: int) -> dict[str, list[str]]:
        """The tensors of one block."""
        return {
            name: shape
            for name, shape in self._blocks[layer].items()
            if layer in self._only.get(name, range(self.n_layer))
        }

    def _write_metadata(self, w: gguf.GGUFWriter) -> None:
        kind = "layer_norm" if self.architecture in _LAYER_NORMS else "layer_norm_rms"
        values: dict[str, Any] = {
            "block_count": self.n_layer,
            "context_length": self.n_ctx,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_head,
            "attention.head_count_kv": self.n_head_kv,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "rope.dimension_count": self.head_dim,
            "rope.freq_base": 10_000.0,
            f"attention.{kind}_epsilon": 1e-5,
            "vocab_size": self.n_vocab,
        }
        shapes = [shape for block in self._blocks for shape in block.values()]
        if any("expert" in shape or "expert2" in shape for shape in shapes):
            values["expert_feed_forward_length"] = self.n_ff_expert
        values |= {f"rope.scaling.{key}": value for key, value in self.rope_scaling.items()}
        w.add_name("tiny")
        if self.n_scores:
            values |= {"pooling_type": 4} | self._labels()
            self._metadata.pop("pooling_type", None)
        if self.rerank_template:
            w.add_string("tokenizer.chat_template.rerank", self.rerank_template)
        for key, value in (values | self._metadata | self.overrides).items():
            _add(w, f"{self.architecture}.{key}", value)

    def _write_tokenizer(self, w: gguf.GGUFWriter) -> None:
        if self.architecture in ENCODERS:
            write_wordpiece(w, self.n_vocab, self.without_tokens)
            return
        write_bytes(w, self.n_vocab, self.pre_tokenizer, self.more_special)
        for name, token in self.token_ids.items():
            w.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
        if self.adds_bos is not None:
            w.add_add_bos_token(self.adds_bos)
        w.add_chat_template(self.chat_template or CHATML)

    def _write_tensors(self, w: gguf.GGUFWriter) -> None:
        rng = np.random.default_rng(self.seed)
        for name, shape in self._outside.items():
            self._write(w, rng, name, shape)
        if not self.tied:
            self._write(w, rng, "output", ["embd", "vocab"])
        self._write_rope_factors(w)
        for i in range(self.n_layer):
            for name, shape in self._block_of(i).items():
                self._write(w, rng, f"blk.{i}.{name}", shape, i)
        if self.n_scores == 1:
            self._write(w, rng, "cls", ["embd", "embd"])
        if self.n_scores:
            self._write(w, rng, "cls.output", ["embd", "scores"])
        for name in self.extra_tensors:
            w.add_tensor(name, np.zeros(32, dtype=np.float32))

    def _write(
        self,
        w: gguf.GGUFWriter,
        rng: np.random.Generator,
        name: str,
        shape: list[str],
        layer: int = 0,
    ) -> None:
        """One tensor and, where it has one, its bias."""
        sizes = [self._size(it, layer) for it in shape]
        values = rng.standard_normal(sizes[::-1]).astype(np.float32)
        full = name.replace("=", ".").rstrip(".") if "=" in name else f"{name}.weight"
        if full.endswith("ssm_a"):  # a state decays
            w.add_tensor(full, -abs(values))
        elif len(sizes) == 1:
            about = float(any(it in name for it in ("norm", "scale", "rope_freqs")))
            whole = name if name.endswith((".bias", ".scale")) else full
            w.add_tensor(whole, about + values * np.float32(0.1))
        else:
            self._add_matrix(w, full, values * np.float32(sizes[0] ** -0.5))
        if self._has_bias(name, is_matrix=len(sizes) > 1):
            bias = rng.standard_normal(sizes[:0:-1] or sizes).astype(np.float32)
            w.add_tensor(f"{name}.bias", bias * np.float32(0.1))

    def _has_bias(self, name: str, *, is_matrix: bool) -> bool:
        if name in ("token_embd", "token_types", "position_embd"):
            return False
        listed = name.rpartition(".")[2] in self._biased or "all" in self._biased
        return listed or (self.biases and is_matrix)

    def _add_matrix(self, w: gguf.GGUFWriter, name: str, values: np.ndarray) -> None:
        """Quantised, but for what no file quantises."""
        kind = gguf.GGMLQuantizationType[self.quantisation]
        if self.quantisation == "F32" or any(it in name for it in _NEVER_QUANTISED):
            w.add_tensor(name, values)
        elif self.quantise is not None:
            w.add_tensor(name, self.quantise(values, kind), raw_dtype=kind)
        else:
            w.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def _write_rope_factors(self, w: gguf.GGUFWriter) -> None:
        half = self._metadata.get("rope.dimension_count", self.head_dim) // 2
        if self.rope_factors:
            w.add_tensor("rope_freqs.weight", np.linspace(1.0, 8.0, half, dtype=np.float32))
        if self.rope_scaling.get("type") == "longrope" or self.architecture == "phi3":
            for length, top in (("short", 2.0), ("long", 9.0)):
                factors = np.linspace(1.0, top, half, dtype=np.float32)
                w.add_tensor(f"rope_factors_{length}.weight", factors)

    def _size(self, symbol: str, layer: int = 0) -> int:
        if symbol in self._sizes:
            size = self._sizes[symbol]
            return size[layer] if isinstance(size, tuple) else size
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        state = self._metadata.get("ssm.state_size", 0)
        n_values = self._metadata.get("ssm.time_step_rank", 0)
        inner, groups = (self._metadata.get(f"ssm.{it}", 0) for it in ("inner_size", "group_count"))
        return {
            "embd": self.n_embd,
            "ctx": self.n_ctx,
            "types": 2,
            "vocab": self.n_vocab,
            "head": self.head_dim,
            "heads": self.n_head,
            "q": q,
            "kv": kv,
            "qkv": q + 2 * kv,
            "ff": self.n_ff,
            "ff2": 2 * self.n_ff,
            "scores": self.n_scores,
            "expert": self.n_ff_expert,
            "expert2": 2 * self.n_ff_expert,
            "one": 1,
            "experts": self._metadata.get("expert_count", 0),
            "embd3": 3 * self.n_embd,
            "q2": 2 * q,
            "width": self._metadata.get("shortconv.l_cache", 0),
            "taps": self._metadata.get("ssm.conv_kernel", 0),
            "state": state,
            "vheads": n_values,
            "inner": inner,
            "channels": inner + 2 * groups * state,
            "scanned": 2 * inner + 2 * groups * state + n_values,
            "groups": groups,
            "grouped": inner // max(1, groups),
        }[symbol]


@dataclass
class TinyLora:
    """A LoRA adapter with random matrices for a TinyModel."""

    base: TinyModel
    names: tuple[str, ...] = ()
    """The matrices that it changes, as in a recipe; all but routers where none are named."""
    rank: int = 4
    alpha: float = 8.0
    kind: type = np.float32
    seed: int = 1
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the file says instead of what it should; None: nothing."""
    change: Callable[[dict[str, np.ndarray]], object] = lambda tensors: None

    def write(self, path: Path) -> Path:
        """Writes the file."""
        writer = gguf.GGUFWriter(path, self.base.architecture)
        said = {
            "general.type": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": float(self.alpha),
        }
        for key, value in (said | self.metadata).items():
            if value is not None:
                _add(writer, key, value)
        tensors = self.tensors()
        self.change(tensors)
        for name, values in tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def tensors(self) -> dict[str, np.ndarray]:
        """All of its matrices by name."""
        random, tensors = np.random.default_rng(self.seed), {}
        for name, shape in self.base.matrices().items():
            short = name.removesuffix(".weight").rpartition(".")[2]
            if short not in (self.names or {short}):
                continue
            n_in, n_out, *stack = shape
            a, b = ((n_in, self.rank, *stack), (self.rank, n_out, *stack))
            if short == "token_embd":
                a, b = ((self.rank, n_out), (self.rank, n_in))
            for suffix, sizes in (("lora_a", a), ("lora_b", b)):
                values = random.standard_normal(sizes[::-1]) * sizes[0] ** -0.5
                tensors[f"{name}.{suffix}"] = values.astype(self.kind)
        return tensors


TinyLlama = TinyModel
"""What most tests want: a `llama`."""


def _add(w: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, str):
        w.add_string(name, value)
    elif isinstance(value, bool):
        w.add_bool(name, value)
    elif isinstance(value, int):
        w.add_uint32(name, value)
    elif isinstance(value, list):
        w.add_array(name, value)
    else:
        w.add_float32(name, value)
