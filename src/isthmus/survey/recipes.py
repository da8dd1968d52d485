"""What the library's loaders want to read in a file, for each architecture.

One table serves all: a loader takes the keys that it knows and ignores the others. The tables after
it hold what differs, for groups of architectures; later ones win. The library's sources say what is
needed: `load_arch_hparams` in `src/models/*.cpp`, and `tests/test-llama-archs.cpp`.

Keys lack the name of the architecture that stands before them in a file. A key that begins with a
slash is written as it is.
"""

from __future__ import annotations

import re


class I32(tuple[int, ...]):
    """An array of i32; other arrays of whole numbers are u32."""


class U64(tuple[int, ...]):
    """An array of u64."""


Array = tuple[bool, ...] | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
Value = bool | int | float | str | Array
"""What a key says; a whole number is u32, another number f32."""

_N_VOCAB = 320
_N_EMBD = 64
_N_HEAD = 2
_HEAD = _N_EMBD // _N_HEAD
_N_FF = 96

_COMMON: dict[str, Value] = {
    "vocab_size": _N_VOCAB,
    "context_length": 512,
    "embedding_length": _N_EMBD,
    "features_length": _N_EMBD,
    "block_count": 2,
    "leading_dense_block_count": 1,
    "feed_forward_length": _N_FF,
    "use_parallel_residual": False,
    "logit_scale": 1.0,
    "residual_scale": 1.5,
    "full_attention_interval": 2,
    "attention.head_count": _N_HEAD,
    "attention.head_count_kv": _N_HEAD,
    "attention.max_alibi_bias": 8.0,
    "attention.clamp_kqv": 1.0,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.group_norm_epsilon": 1e-5,
    "attention.group_norm_groups": 8,
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 32,
    "attention.relative_buckets_count": 8,
    "attention.sliding_window": 48,
    "attention.sliding_window_pattern": 2,
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 131_072,
    "attention.indexer.block_size": 4,
    "attention.indexer.kpool": 4,
    "attention.indexer.kpool_select_tail": True,
    "attention.indexer.local_blocks": 1,
    "rope.dimension_sections": (_HEAD // 4,) * 4,
    "posnet.embedding_length": _N_EMBD,
    "posnet.block_count": 2,
    "convnext.embedding_length": _N_EMBD,
    "convnext.block_count": 2,
    "ssm.inner_size": _N_EMBD,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 32,
    "ssm.time_step_rank": _N_HEAD,
    "ssm.group_count": 2,
    "kda.head_dim": 32,
    "kda.safe_gate": True,
    "kda.gate_lower_bound": -5.0,
    "wkv.head_size": _HEAD,
    "time_mix_extra_dim": 16,
    "time_decay_extra_dim": 16,
    "shortconv.l_cache": 3,
    "attn_res.block_size": 12,
    "activation.situ_beta": 4.0,
    "activation.situ_linear_beta": 25.0,
    "/xielu.alpha_n": 1.0,
    "/xielu.alpha_p": 1.0,
    "/xielu.beta": 1.0,
    "/xielu.eps": 1e-7,
}

_EXPERTS: dict[str, Value] = {
    "expert_feed_forward_length": _N_FF,
    "expert_shared_feed_forward_length": _N_FF // 2,
    "expert_latent_length": _N_FF,
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_group_scale": 1.0,
    "experts_per_group": 1,
    "interleave_moe_layer_step": 2,
}
_LATENT: dict[str, Value] = {
    "attention.head_count_kv": 1,
    "attention.key_length": 48,
    "attention.value_length": 32,
    "rope.dimension_count": 16,
    "attention.key_length_mla": 32,
    "attention.value_length_mla": 16,
}
"""Latent attention: the cache has rows of a latent, 32, and of what is rotated, 16."""
_HYPER: dict[str, Value] = {
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
    "hyper_connection.low_rank": 8,
    "hyper_connection.magnitude": 2.0,
}
_RANKS: dict[str, Value] = {
    "attention.decay_lora_rank": 16,
    "attention.iclr_lora_rank": 16,
    "attention.value_residual_mix_lora_rank": 16,
    "attention.gate_lora_rank": 16,
}
_GEMMA4: dict[str, Value] = {
    "block_count": 5,
    "embedding_length_per_layer_input": 16,
    "attention.shared_kv_layers": 0,
    "attention.key_length_swa": _HEAD,
    "attention.value_length_swa": _HEAD,
    "rope.freq_base_swa": 10_000.0,
    "attention.sliding_window_pattern": (True, True, True, True, False),
}
_TWO_LAYERS = "plamo2 jamba granitehybrid lfm2 lfm2moe kimi-linear bailingmoe3 kimi-k3"

_DIFFERENCES: tuple[tuple[str, dict[str, Value]], ...] = (
    (
        """
        afmoe arctic bailingmoe bailingmoe2 bailingmoe3 cohere2moe dbrx deepseek deepseek2
        deepseek2-ocr deepseek32 deepseek4 dots1 dots3note ernie4_5 ernie4_5-moe exaone-moe glm-dsa
        glm4moe glm5-next gpt-oss granitemoe grok grovemoe hunyuan-moe hy_v3 hy_v4 kimi-k3
        kimi-linear laguna lfm2moe llada-moe llama4 maple mellum mimo2 minimax-01 minimax-m2
        minimax-m3 mistral4 nemotron_h_moe olmoe paddleocr phimoe qwen2moe qwen35moe qwen3moe
        qwen3next qwen3vlmoe qwen4exp rnd1 smallthinker step35
        """,
        _EXPERTS,
    ),
    (
        "deepseek2 deepseek32 glm-dsa dots3note kimi-linear bailingmoe3 kimi-k3 glm5-next hy_v4 "
        "mistral4",
        _LATENT,
    ),
    (_TWO_LAYERS, {"attention.head_count": (2, 0), "attention.head_count_kv": (2, 0)}),
    ("kimi-linear bailingmoe3 kimi-k3 glm5-next", {"attention.head_count_kv": (1, 0)}),
    (
        "nemotron_h nemotron_h_moe",
        {
            "block_count": 3,
            "feed_forward_length": (0, 0, _N_FF),
            "attention.head_count": (2, 0, 2),
            "attention.head_count_kv": (2, 0, 2),
        },
    ),
    (
        "cohere2moe mimo2 step35 spark2_5 muse-glimmer granite_swa dots3note maple",
        {"attention.sliding_window_pattern": (0, 1)},
    ),
    (
        "bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3",
        {"/tokenizer.ggml.token_type_count": 2},
    ),
    (
        "bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3 modern-bert neo-bert eurobert "
        "gemma-embedding gemma-embedding2 llama-embed t5encoder",
        {"pooling_type": 1},
    ),
    ("bert nomic-bert", {"attention.causal": False}),
    ("llama4", {"block_count": 4}),
    ("mamba jamba granitehybrid", {"ssm.inner_size": 2 * _N_EMBD}),
    ("plamo2", {"ssm.group_count": 0}),
    ("rwkv6qwen2 arwkv7", {"token_shift_count": 1}),
    ("rwkv7 arwkv7", _RANKS),
    ("qwen4exp glm5-next hy_v4 deepseek4", _HYPER),
    (
        "hy_v4 deepseek4 maple",
        {"expert_weights_scale": 1.0, "expert_weights_norm": True, "swiglu_clamp_exp": 10.0},
    ),
    ("hy_v4 dots3note", {"attention.indexer.types": (1, 0)}),
    ("minimax-m3", {"attention.indexer.head_count": _N_HEAD}),
    ("plm", {"rope.dimension_count": 16}),
    ("gemma4 gemma4-assistant gemma-embedding2", _GEMMA4),
    ("gemma4-assistant", {"embedding_length_out": 32}),
    ("chameleon", {"embedding_length": 32, "vocab_size": 8200}),
    (
        "qwen3tts",
        {"vocab_size": 3072, "embedding_length": 32, "rope.dimension_sections": (4, 4, 4, 4)},
    ),
    (
        "hrm_text",
        {"block_count": 6, "hrm.layers_per_stack": 1, "hrm.h_cycles": 2, "hrm.l_cycles": 2},
    ),
    (
        "bailingmoe3",
        {
            "rope.dimension_sections": (2, 3, 3, 0),
            "swiglu_clamp_exp": (0.0, 4.0),
            "swiglu_clamp_shexp": (0.0, 5.0),
        },
    ),
    (
        "deepseek4",
        {
            "block_count": 4,
            "attention.head_count_kv": 1,
            "attention.key_length": _HEAD,
            "attention.value_length": _HEAD,
            "rope.dimension_count": _HEAD // 2,
            "attention.output_group_count": 2,
            "attention.output_lora_rank": 16,
            "attention.compress_ratios": (0, 0, 4, 128),
            "attention.compress_rope_freq_base": 160_000.0,
            "hash_layer_count": 0,
            "expert_gating_func": 4,
        },
    ),
    (
        "dots3note",
        {
            "attention.kv_lora_rank_swa": 32,
            "attention.key_length_swa": 48,
            "attention.value_length_swa": 32,
            "attention.key_length_mla_swa": 32,
            "attention.value_length_mla_swa": 16,
            "rope.freq_base_swa": 10_000.0,
        },
    ),
    (
        "glm5-next",
        {
            "attention.head_count": _N_HEAD,
            "attention.key_length": 32,
            "rope.dimension_count": 0,
            "attention.compress_ratios": (4, 4),
        },
    ),
    (
        "graniteswitch",
        {
            "adapters.count": 1,
            "adapters.lora_rank": 4,
            "adapters.token_ids_activate": I32([300]),
            "adapters.token_ids_substitute": I32([301]),
        },
    ),
    (
        "qwen4exp",
        {
            "attention.compress_ratios": (4, 4),
            "attention.indexer.key_length": _HEAD,
            "embedding_length_per_layer_input": _N_EMBD // 4,
            "ple.layers": (0,),
            "ple.ngram_size": 3,
            "ple.heads_per_ngram": 2,
            "ple.conv_kernel": 4,
            "ple.eos_token_id": 0,
            "ple.layer_multipliers": U64([1, 3, 5]),
            "ple.head_offsets": U64([it * _N_VOCAB for it in range(4)]),
            "ple.head_vocab_sizes": U64([_N_VOCAB] * 4),
        },
    ),
    (
        "clef",
        {"decision.block_count": 1, "decision.head_count": 2, "decision.routing_block_count": 1},
    ),
    ("dflash", {"target_layers": I32([0, 1]), "attention.sliding_window": 0}),
    (
        "eagle3",
        {"block_count": 1, "target_layers": I32([0, 1, 1]), "target_hidden_size": _N_EMBD},
    ),
)

_ABSENT = (r"\.(input_)?scale$", r"^cls\b")
"""Tensors that loaders take if they are there, and most files do not have: factors of quantised
weights, and the heads of classifiers."""
_ABSENT_FROM: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rwkv6qwen2", ("time_mix_first",)),
    ("bert nomic-bert", ("attn_[qk]_norm", "attn_norm_2")),
    ("nomic-bert", (r"ffn_\w+\.bias",)),
    ("ernie4_5 ernie4_5-moe bailingmoe", (r"attn_output\.bias",)),
)

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def has_tensor(architecture: str, name: str) -> bool:
    """Whether a tensor that the library asks for is in the file."""
    forms = (
        *_ABSENT,
        *(it for names, each in _ABSENT_FROM if architecture in names.split() for it in each),
    )
    return not any(re.search(form, name) for form in forms)


def metadata(architecture: str) -> dict[str, Value]:
    """All metadata of an architecture's tiny file, by key."""
    values = dict(_COMMON)
    for names, differences in _DIFFERENCES:
        if architecture in names.split():
            values |= differences
    n_vocab = values["vocab_size"]
    assert isinstance(n_vocab, int)
    said: dict[str, Value] = {
        key[1:] if key.startswith("/") else f"{architecture}.{key}": value
        for key, value in values.items()
    }
    head: dict[str, Value] = {"general.architecture": architecture, "general.name": "tiny"}
    return head | said | _vocabulary(n_vocab, rwkv=architecture in ("rwkv6", "rwkv7"))


def _vocabulary(n_tokens: int, *, rwkv: bool) -> dict[str, Value]:
    """Three control tokens and each byte: a byte-level BPE, or RWKV's kind."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    escaped = [repr(bytes([it]))[2:-1] for it in range(256)]
    tokens = [*special, *(escaped if rwkv else _byte_names())]
    tokens += [f"[unused{it}]" for it in range(n_tokens - len(tokens))]
    return {
        "tokenizer.ggml.model": "rwkv" if rwkv else "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tuple(tokens),
        "tokenizer.ggml.token_type": I32([3] * len(special) + [1] * (n_tokens - len(special))),
        "tokenizer.ggml.merges": (f"{tokens[67]} {tokens[68]}",),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": _CHAT_TEMPLATE,
    }


def _byte_names() -> list[str]:
    """The characters that stand for the bytes 0 to 255, as GPT-2 has them."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    hidden = [it for it in range(256) if it not in shown]
    names = {it: chr(it) for it in shown} | {it: chr(256 + n) for n, it in enumerate(hidden)}
    return [names[it] for it in range(256)]
