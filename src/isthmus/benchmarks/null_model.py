"""A GGUF file whose model is only ever run on the null device: the shape of one, and no weights.

1. magic `GGUF`, version 3, number of tensors, number of metadata pairs
2. metadata pairs: key, type, value
3. tensor descriptions: name, shape, type, offset in the data section
4. padding to 32 bytes
5. the data section: zeros, which the file system need not store

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from pathlib import Path

from isthmus.native._ggml import GgmlType, GgufType
from isthmus.units import align_up

N_LAYER = 16
N_CTX = 1024
_N_EMBD = 32
_N_HEAD, _N_HEAD_KV, _HEAD_DIM = 2, 1, 32
_N_FF = 64
_ALIGNMENT = 32
_CONTROL, _NORMAL = 3, 1
"""Values of `llama_token_type`."""
_BLOCK = {
    "attn_norm": (_N_EMBD,),
    "attn_q": (_N_EMBD, _N_HEAD * _HEAD_DIM),
    "attn_k": (_N_EMBD, _N_HEAD_KV * _HEAD_DIM),
    "attn_v": (_N_EMBD, _N_HEAD_KV * _HEAD_DIM),
    "attn_output": (_N_HEAD * _HEAD_DIM, _N_EMBD),
    "ffn_norm": (_N_EMBD,),
    "ffn_gate": (_N_EMBD, _N_FF),
    "ffn_up": (_N_EMBD, _N_FF),
    "ffn_down": (_N_FF, _N_EMBD),
}
Value = int | float | str | list[int] | list[str]


def token_text(token: int) -> str:
    """The text of a token; token 0 ends the model's turn, and has none."""
    return f"w{token} "


def write_null_model(path: Path, n_vocab: int) -> Path:
    """Writes a `llama` of 16 layers, 32 wide, with a vocabulary of `n_vocab` tokens."""
    tensors = _tensors(n_vocab)
    metadata = _metadata(n_vocab)
    header = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))]
    header += [_string(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for name, shape in tensors.items():
        header.append(_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        header.append(struct.pack("<IQ", GgmlType.F32, offset))
        offset += align_up(4 * math.prod(shape), _ALIGNMENT)
    with path.open("wb") as file:
        file.writelines(header)
        file.truncate(align_up(file.tell(), _ALIGNMENT) + offset)
    return path


def _tensors(n_vocab: int) -> dict[str, tuple[int, ...]]:
    """The shapes by name, contiguous dimension first."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (_N_EMBD, n_vocab)}
    for layer in range(N_LAYER):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in _BLOCK.items()}
    shapes["output_norm"] = (_N_EMBD,)
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _metadata(n_vocab: int) -> dict[str, Value]:
    words = [token_text(token).replace(" ", "Ġ") for token in range(1, n_vocab)]
    return {
        "general.architecture": "llama",
        "general.name": "null",
        "llama.block_count": N_LAYER,
        "llama.context_length": N_CTX,
        "llama.embedding_length": _N_EMBD,
        "llama.feed_forward_length": _N_FF,
        "llama.attention.head_count": _N_HEAD,
        "llama.attention.head_count_kv": _N_HEAD_KV,
        "llama.attention.key_length": _HEAD_DIM,
        "llama.attention.value_length": _HEAD_DIM,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": _HEAD_DIM,
        "llama.vocab_size": n_vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<|end|>", *words],
        "tokenizer.ggml.token_type": [_CONTROL] + [_NORMAL] * (n_vocab - 1),
        "tokenizer.ggml.merges": ["w 1"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }


def _value(value: Value) -> bytes:
    """The type of a value, and the value."""
    if isinstance(value, list):
        strings = [it for it in value if isinstance(it, str)]
        numbers = [it for it in value if isinstance(it, int)]
        element = GgufType.STRING if strings else GgufType.INT32
        packed = _strings(strings) if strings else struct.pack(f"<{len(numbers)}i", *numbers)
        return struct.pack("<IIQ", GgufType.ARRAY, element, len(value)) + packed
    if isinstance(value, str):
        return struct.pack("<I", GgufType.STRING) + _string(value)
    if isinstance(value, float):
        return struct.pack("<If", GgufType.FLOAT32, value)
    return struct.pack("<II", GgufType.UINT32, value)


def _strings(texts: Iterable[str]) -> bytes:
    return b"".join(map(_string, texts))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
