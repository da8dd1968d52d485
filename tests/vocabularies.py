"""GGUF files that have a vocabulary and nothing else, of each kind that libllama knows."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

_NAMES = """
default minicpm5 llama-bpe falcon3 lfm2 deepseek-llm deepseek-coder deepseek-v3 spark2_5
youtu falcon mpt starcoder gpt-2 modern-bert jais-2 gemma4 sarvam-moe roberta-bpe whitespace
refact command-r qwen2 qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat chatglm-bpe viking jais
tekken smollm codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b
megrez gpt-4o llama4 kanana2 talkie granite-embed-multi-97m tiny_aya superbpe trillion
granite-docling bailingmoe seed-coder hunyuan hunyuan-dense hy_v4 joyai-llm kimi-k2 ufakzeka
grok-2 afmoe laguna minimax-m2 solar-open mellum2
"""
PRE_TOKENIZERS = tuple(_NAMES.split())
"""Of byte-pair vocabularies: at least one name for each that the library tells apart."""
KINDS = ("gpt2", "llama", "bert", "t5")
"""`tokenizer.ggml.model`: BPE, SPM, WPM, UGM, RWKV."""
CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>", "<|im", "|>tail")
USER_DEFINED = ("<tool_call>", "\n\n\n", "<|channel|>")
_WORDS = ("the", "an", "cat", "land", "is", "th", "he", "in", "er", "ing")


@dataclass
class Vocabulary:
    """One kind of vocabulary; with merges or words, so that there is something to join."""

    kind: str = "gpt2"
    pre: str = "gpt-2"
    name: str = "tiny"
    control: tuple[str, ...] = CONTROL
    user_defined: tuple[str, ...] = USER_DEFINED
    without: tuple[str, ...] = ()
    """Tokens that it lacks."""

    def write(self, path: Path) -> Path:
        """Writes the file."""
        w = gguf.GGUFWriter(path, "llama")
        w.add_name(self.name)
        for key in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
            w.add_uint32(f"llama.{key}", 64)
        w.add_uint32("llama.attention.head_count", 2)
        w.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        w.add_tokenizer_model(self.kind)
        w.add_tokenizer_pre(self.pre)
        types = gguf.TokenType
        listed = [("<unk>", types.UNKNOWN), ("<s>", types.CONTROL)]
        listed += [(it, types.CONTROL) for it in self.control]
        listed += [(it, types.USER_DEFINED) for it in self.user_defined]
        listed += getattr(self, f"_{self.kind}")(w)
        listed = [it for it in listed if it[0] not in self.without]
        w.add_token_list([it for it, _ in listed])
        w.add_token_types([kind for _, kind in listed])
        w.add_token_scores([-float(n) for n in range(len(listed))])
        w.add_unk_token_id(0)
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_sep_token_id(2)
        w.add_tensor("token_embd.weight", np.zeros((1, 32), np.float32))
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        return path

    def _gpt2(self, w: gguf.GGUFWriter) -> list[tuple[str, gguf.TokenType]]:
        from gguf.vocab import bytes_to_unicode  # type: ignore[attr-defined]

        merges = ["t h", "th e", "Ġ the", "i n", "in g", "a n", "Ġ Ġ", "Ċ Ċ", "1 2", "! !"]
        merges += ["e r", "Ġ a", "é é"[:1] + " r", "x x", "xx xx", "A A", "AA AA"]
        raw = {"Ġ": "▁", "Ċ": "\n"} if self.pre in ("gemma4", "sarvam-moe") else {}
        if raw:
            merges = [it.translate(str.maketrans(raw)) for it in merges if "Ċ" not in it]
        w.add_token_merges(merges)
        texts = list(bytes_to_unicode().values())
        texts += [it for it in dict.fromkeys(m.replace(" ", "") for m in merges) if it not in texts]
        listed = [(it, gguf.TokenType.NORMAL) for it in texts]
        if raw:
            listed += [(f"<0x{n:02X}>", gguf.TokenType.BYTE) for n in range(256)]
            listed += [(it, gguf.TokenType.NORMAL) for it in ("▁", "\n") if it not in texts]
        return listed

    def _llama(self, _w: gguf.GGUFWriter) -> list[tuple[str, gguf.TokenType]]:
        listed = [(f"<0x{n:02X}>", gguf.TokenType.BYTE) for n in range(256)]
        texts = [*string.printable[:95].replace(" ", ""), "▁", "▁▁", "é", "日"]
        texts += [*_WORDS, *(f"▁{it}" for it in _WORDS), "</", "</s", "s>", "<|", "|>"]
        return listed + [(it, gguf.TokenType.NORMAL) for it in dict.fromkeys(texts)]

    def _bert(self, w: gguf.GGUFWriter) -> list[tuple[str, gguf.TokenType]]:
        w.add_token_type_count(2)
        letters = string.ascii_lowercase + string.digits + string.punctuation
        texts = [*(f"▁{it}" for it in (*letters, *_WORDS)), *letters, *_WORDS]
        return [(it, gguf.TokenType.NORMAL) for it in texts]

    def _t5(self, w: gguf.GGUFWriter) -> list[tuple[str, gguf.TokenType]]:
        return self._llama(w)[256:]
