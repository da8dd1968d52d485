"""LoRA adapters: good ones in which one thing lies, over one good model."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from isthmus import Limits, Runtime
from isthmus.config import Environment
from tests.fuzz.parts import STRING, Parts, damage, lie
from tests.fuzz.surface import Surface
from tests.tiny_gguf import TinyLora, TinyModel

BASE = TinyModel(n_layer=1, with_tokenizer=True)


def good(**changed: Any) -> bytes:
    """A good adapter's bytes."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        return TinyLora(BASE, **changed).write(Path(place) / "lora.gguf").read_bytes()


def _with(name: str, value: float) -> Callable[[dict[str, np.ndarray]], object]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        first = next(it for it in tensors if it.endswith(name))
        tensors[first] = np.full_like(tensors[first], value)

    return change


class Fuzz(Surface):
    """Loads an adapter, and has a guest prefill and decode with it."""

    corpus: ClassVar = {
        "alpha-nan": lambda: good(alpha=float("nan")),
        "alpha-huge": lambda: good(alpha=3e38),
        "rank-1": lambda: good(rank=1),
        "infinite": lambda: good(change=_with("lora_a", float("inf"))),
        "no-tensors": lambda: good(change=lambda it: it.clear()),
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        environment = Environment(cache=folder / "cache")
        self.runtime = Runtime(device="cpu", threads=1, environment=environment)
        self.model = self.runtime.load_model(BASE.write(folder / "base.gguf"))
        self.good = [good(), good(names=("attn_q", "ffn_down")), good(kind=np.float16)]

    def close(self) -> None:
        self.runtime.close()

    def make(self, rng: random.Random) -> bytes:
        raw = rng.choice(self.good)
        if rng.random() < 0.2:
            return damage(raw, rng)
        parts = Parts.read(raw)
        for _ in range(rng.choice([1, 1, 2])):
            lie(parts, rng)
        if rng.random() < 0.05:
            parts.put("general.architecture", STRING, b"llama\0")
        return parts.write()

    def run(self, data: bytes) -> str:
        path = self.folder / "lora.gguf"
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        adapter = self.runtime.load_adapter(path, self.model)
        adapted = self.runtime.adapt(self.model, {adapter: 1.0})
        limits = Limits(deadline_s=20)
        given: dict[str, Any] = {"models": {"default": adapted}, "args": ["n_ctx=256"]}
        with self.runtime.spawn("bench", limits=limits, seed=1, **given) as actor:
            actor.send("prefill 5 1")
            actor.send("sequence 3")
        return "decoded"
