"""Prompts: texts that are meant to hurt, for every pre-tokenizer that libllama knows."""

from __future__ import annotations

import ctypes
import json
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from isthmus import Limits, Model, Runtime
from isthmus.config import Environment
from isthmus.model.tokens.tokenizer import Tokenizer
from tests.fuzz.parts import ARRAY, STRING, Parts
from tests.fuzz.surface import Surface
from tests.tiny_gguf import TinyModel

_PRE_NAMES = """
a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell command-r dbrx
deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4
f2llmv2 falcon falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish
granite-docling granite-embed-multi-311m granite-embed-multi-97m grok-2 hunyuan hunyuan-dense
jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm
kanana2 kimi-k2 kormo lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2
midm-2.0 minerva-7b minicpm5 minimax-m2 mmbert modern-bert mpt olmo phi-2 pixtral poro-chat
qwen2 qwen35 refact roberta-bpe sarvam-moe seed-coder smaug-bpe smollm solar-open stablelm2
starcoder superbpe talkie tekken tiny_aya trillion ufakzeka viking whitespace youtu spark2_5
hy_v4 laguna
"""
PRE = tuple(_PRE_NAMES.split())
"""The names that the pinned libllama takes for `tokenizer.ggml.pre`."""
_RUNS = (
    *("a", "!", "Z", "é", "\u4e2d", "7", " ", "\n", "\t", "\u0300", "😀", "\0", "'s", "'"),
    *("\u200d", "\ufeff", "\u202e", "ß", "\u0e01", "\u1100", "-", "_", "\r\n", "A\u0301"),
)
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start", "[unused3]", "<0x0A>")
_LENGTHS = (1, 2, 7, 100, 1000, 5000, 30_000)


def prompt(text: str, pre: str = "gpt-2", kind: str = "gpt2", **more: Any) -> Callable[[], bytes]:
    """An input: a text for a vocabulary."""
    said = {"kind": kind, "pre": pre, "text": text, **more}
    return lambda: json.dumps(said).encode()


_COMPARED = 2000
"""Characters of a text that libllama itself survives in every vocabulary."""


class Fuzz(Surface):
    """Turns a text into tokens and back, and has a guest do it."""

    corpus: ClassVar = {
        **{
            f"{pre}-{name}": prompt(30_000 * run, pre)
            for pre in ("tekken", "gpt-4o", "deepseek-llm", "falcon", "default", "bloom", "llama4")
            for name, run in (("marks", "!"), ("letters", "a"))
        },
        "seed-coder-marks": prompt(30_000 * "!", "seed-coder"),
        "starts": prompt(50_000 * "<|im_start|>", special=True),
        "empty-messages": prompt("", messages=40_000),
        "surrogate": prompt("a\ud800b"),
        "zeros": prompt("\0" * 1000),
        "spm-letters": prompt("a" * 200_000, kind="llama"),
        "combining": prompt("a" + "\u0300" * 30_000, "tekken"),
        "spaces": prompt(" " * 200_000, "llama-bpe"),
        "digits": prompt("7" * 100_000, "deepseek-v3"),
        "wordpiece-letters": prompt("a" * 200_000, kind="bert"),
    }
    cpu_s = 20.0
    n_short = 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        environment = Environment(cache=folder / "cache")
        self.runtime = Runtime(device="null", threads=1, environment=environment)
        self.models: dict[tuple[str, str], Model] = {}
        self.bases: dict[str, bytes] = {}

    def close(self) -> None:
        self.runtime.close()

    def make(self, rng: random.Random) -> bytes:
        kind = rng.choice(["gpt2"] * 8 + ["llama", "bert"])
        pieces = []
        for _ in range(rng.choice([1, 1, 2, 3, 8])):
            match rng.randrange(5):
                case 0 | 1:
                    pieces.append(rng.choice(_RUNS) * rng.choice(_LENGTHS))
                case 2:
                    both = rng.choice(_RUNS) + rng.choice(_RUNS)
                    pieces.append(both * rng.choice(_LENGTHS))
                case 3:
                    pieces.append(rng.choice(_SPECIAL) * rng.choice(_LENGTHS[:-1]))
                case _:
                    letters = rng.choices(string.printable + "éß中😀\u0300", k=rng.randrange(400))
                    pieces.append("".join(letters))
        said = {
            "kind": kind,
            "pre": rng.choice(PRE),
            "text": "".join(pieces)[:400_000],
            "special": rng.random() < 0.4,
        }
        return json.dumps(said).encode()

    def run(self, data: bytes) -> str:
        said = json.loads(data)
        model = self._model(said["kind"], said["pre"])
        text, special = said["text"], said.get("special", False)
        if n := said.get("messages"):
            messages = [{"role": "user", "content": ""}] * n
            rendered = model.format_chat(messages, add_generation_prompt=True)
            model.tokenizer.encode(rendered, parse_special=True)
            return "messages"
        ids = model.tokenizer.encode(text, parse_special=special)
        if len(text) <= _COMPARED and "<" not in text and not special:
            assert ids == _plainly(model.tokenizer, text), "libllama itself has other tokens"
        limits = Limits(deadline_s=2.0, tokens_out=1)
        with self.runtime.spawn("chat", models={"default": model}, limits=limits) as actor:
            actor.send(text)
        return "answered"

    def smaller(self, data: bytes) -> Iterator[bytes]:
        said = json.loads(data)
        text = said["text"]
        size = len(text) // 2
        while size > len(text) // 64:
            for begin in range(0, len(text), size):
                yield json.dumps({**said, "text": text[:begin] + text[begin + size :]}).encode()
            size //= 2

    def _model(self, kind: str, pre: str) -> Model:
        """A model with that vocabulary; those that were used before stay open."""
        found = self.models.get((kind, pre))
        if found is None:
            path = self.folder / f"{kind}-{pre}.gguf"
            path.write_bytes(self._vocabulary(kind, pre))
            found = self.models[kind, pre] = self.runtime.load_model(path)
        return found

    def _vocabulary(self, kind: str, pre: str) -> bytes:
        base = "bert" if kind == "bert" else "llama"
        if base not in self.bases:
            path = self.folder / "base.gguf"
            TinyModel(base, n_layer=1, with_tokenizer=True).write(path)
            self.bases[base] = path.read_bytes()
        parts = Parts.read(self.bases[base])
        if kind == "gpt2":
            parts.put("tokenizer.ggml.pre", STRING, pre.encode())
        elif kind == "llama":
            parts.put("tokenizer.ggml.model", STRING, b"llama")
            parts.put("tokenizer.ggml.scores", ARRAY, (6, [0.0] * len(parts.tokens)))
            parts.tokens[3 : 3 + 256] = [f"<0x{i:02X}>".encode() for i in range(256)]
            kinds = parts.get("tokenizer.ggml.token_type").value[1]
            kinds[3 : 3 + 256] = [6] * 256
        return parts.write()


def _plainly(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text's token ids by libllama's own function."""
    data = text.encode()
    ids = (ctypes.c_int32 * (4 * len(data) + 16))()
    n = tokenizer._library.llama_tokenize(
        tokenizer._vocabulary, data, len(data), ids, len(ids), False, False
    )
    assert n >= 0
    return list(ids[:n])
