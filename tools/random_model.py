"""Writes a GGUF file with a known model's shape and random weights: for speed, not for words.

python tools/random_model.py llama-1b Q8_0 out.gguf
python tools/random_model.py gpt-oss-20b MXFP4 out.gguf --layers 8
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.tiny_gguf import _NEVER_QUANTISED, RECIPES, Recipe, TinyModel

_LLAMA = {"n_head": 32, "n_head_kv": 8, "n_vocab": 128256, "n_ctx": 131072}
_LLAMA_ROPE = {"rope.freq_base": 500000.0}
_PERIOD = {"qwen3.5-35b-a3b": 4, "gemma-4-26b-a4b": 6}
"""The layer of so many that is otherwise than those before it."""
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": _LLAMA
    | {"n_layer": 16, "n_embd": 2048, "n_ff": 8192, "head_dim": 64, "overrides": _LLAMA_ROPE},
    "llama-8b": _LLAMA
    | {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "head_dim": 128, "overrides": _LLAMA_ROPE}
    | {"tied": False},
    "smollm2": {"n_layer": 30, "n_embd": 576, "n_ff": 1536, "n_head": 9, "n_head_kv": 3}
    | {"head_dim": 64, "n_vocab": 49152, "n_ctx": 8192},
    "gpt-oss-20b": {
        "architecture": "gpt-oss",
        "n_layer": 24,
        "n_embd": 2880,
        "n_ff_expert": 2880,
        "n_head": 64,
        "n_head_kv": 8,
        "head_dim": 64,
        "n_vocab": 201088,
        "n_ctx": 131072,
        "tied": False,
        "overrides": {
            "expert_count": 32,
            "expert_used_count": 4,
            "attention.sliding_window": 128,
            "rope.scaling.original_context_length": 4096,
        },
    },
    "qwen3.5-35b-a3b": {
        "architecture": "qwen35moe",
        "n_layer": 40,
        "n_embd": 2048,
        "n_ff": 512,
        "n_ff_expert": 512,
        "n_head": 16,
        "n_head_kv": 2,
        "head_dim": 256,
        "n_vocab": 248320,
        "n_ctx": 262144,
        "tied": False,
        "overrides": {
            "expert_count": 256,
            "expert_used_count": 8,
            "expert_shared_feed_forward_length": 512,
            "full_attention_interval": 4,
            "ssm.state_size": 128,
            "ssm.group_count": 16,
            "ssm.time_step_rank": 32,
            "ssm.inner_size": 4096,
            "rope.dimension_count": 64,
            "rope.dimension_sections": [11, 11, 10, 0],
            "rope.freq_base": 10_000_000.0,
        },
    },
    "gemma-4-26b-a4b": {
        "architecture": "gemma4",
        "n_layer": 30,
        "n_embd": 2816,
        "n_ff": 2112,
        "n_ff_expert": 704,
        "n_head": 16,
        "n_head_kv": 8,
        "head_dim": 512,
        "n_vocab": 262144,
        "n_ctx": 262144,
        "overrides": {
            "expert_count": 128,
            "expert_used_count": 8,
            "attention.head_count": 16,
            "attention.key_length": 512,
            "attention.value_length": 512,
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "attention.sliding_window": 1024,
            "attention.shared_kv_layers": 0,
            "embedding_length_per_layer_input": 0,
            "feed_forward_length": 2112,
            "final_logit_softcapping": 30.0,
            "rope.dimension_count": 512,
            "rope.dimension_count_swa": 256,
        },
    },
}
"""As their config.json say: Meta's Llama 3.2 1B and 3.1 8B, Hugging Face's SmolLM2 135M, OpenAI's
gpt-oss, Qwen's 3.5 with experts, Google's Gemma 4 with experts."""
TYPES = ("Q8_0", "Q4_0", "F16", "MXFP4")
_SCALES = {"Q8_0": 74, "Q4_0": 4.6, "MXFP4": 2.9}
"""The deviation of the numbers that a block of random bytes stands for."""


@dataclass
class RandomModel(TinyModel):
    """A model of a shape, whose matrices are made quickly: of random bytes, and not of numbers."""

    period: int = 0
    """The layer of so many that has another block; 0: as the recipe says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        recipe = RECIPES[self.architecture]
        self._metadata = self._metadata | self.overrides
        if self.architecture == "gemma4":
            recipe = self._without_layers_of_its_own(recipe)
        if self.period:
            blocks = (recipe.block, next(iter(recipe.mixed.values())))
            others = [(i + 1) % self.period == 0 for i in range(self.n_layer)]
            self._blocks = [self._listed(blocks[other]) for other in others]

    def _without_layers_of_its_own(self, recipe: Recipe) -> Recipe:
        """Experts in every layer, no embeddings of each, and keys that are values in some."""
        whole = [(i + 1) % self.period == 0 for i in range(self.n_layer)]
        block = re.sub(r"(inp_gate|proj|post_norm):\S+ ", "", recipe.block)
        dims = tuple(512 if it else 256 for it in whole)
        kv = tuple(2 * 512 if it else 8 * 256 for it in whole)
        self._sizes = {"head": dims, "q": tuple(16 * it for it in dims), "kv": kv, "half": 256}
        self._only, self._outside = (
            {},
            self._listed("token_embd:embd,vocab output_norm:embd rope_freqs:half"),
        )
        self._metadata |= {
            "attention.head_count_kv": [2 if it else 8 for it in whole],
            "attention.sliding_window_pattern": [not it for it in whole],
        }
        return replace(recipe, block=block, mixed={0: re.sub(r"attn_v:\S+ ", "", block)})

    def _write(
        self,
        w: gguf.GGUFWriter,
        rng: np.random.Generator,
        name: str,
        shape: list[str],
        layer: int = 0,
    ) -> None:
        sizes = [self._size(it, layer) for it in shape]
        if len(sizes) == 1 or any(it in name for it in _NEVER_QUANTISED):
            super()._write(w, rng, name, shape, layer)
            return
        dtype = self.quantisation
        if dtype == "MXFP4" and "_exps" not in name:  # as the files do
            dtype = "Q8_0"
        made = _matrix(rng, dtype, math.prod(sizes[1:]), sizes[0]).reshape(*sizes[:0:-1], -1)
        w.add_tensor(f"{name}.weight", made, raw_dtype=GGMLQuantizationType[dtype])
        if self._has_bias(name, is_matrix=True):
            bias = rng.standard_normal(sizes[:0:-1]).astype(np.float32)
            w.add_tensor(f"{name}.bias", bias * np.float32(0.1))


def write(shape: str, dtype: str, path: Path, n_layer: int = 0) -> None:
    """Writes the file, with `n_layer` layers or all of them; the same bytes each time."""
    said = SHAPES[shape] | ({"n_layer": n_layer} if n_layer else {})
    RandomModel(**said, quantisation=dtype, period=_PERIOD.get(shape, 0)).write(path)


def _matrix(random: np.random.Generator, dtype: str, rows: int, columns: int) -> np.ndarray:
    deviation = columns**-0.5
    if dtype == "F16":
        return _halves(random, rows * columns, deviation).reshape(rows, columns)
    per_block, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    n = rows * columns // per_block
    blocks = np.frombuffer(bytearray(random.bytes(n * nbytes)), np.uint8).reshape(n, nbytes)
    if dtype == "MXFP4":
        blocks[:, 0] = 127 + round(math.log2(deviation / _SCALES[dtype]))
    else:
        scale = np.float16(deviation / _SCALES[dtype])
        blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    return np.asarray(blocks.reshape(rows, columns // per_block * nbytes))


def _halves(random: np.random.Generator, n: int, deviation: float) -> np.ndarray:
    """F16 of random sign and fraction, whose exponent is one of four: quickly made."""
    bits = np.frombuffer(random.bytes(2 * n), np.uint16) & 0x8FFF  # fraction, 2 of exponent, sign
    lowest = int(np.floor(np.log2(deviation))) - 2
    return np.asarray((bits + np.uint16(15 + lowest << 10)).view(np.float16))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("type", choices=TYPES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, default=0, help="only the first (default: all)")
    arguments = parser.parse_args()
    write(arguments.shape, arguments.type, arguments.path, arguments.layers)
