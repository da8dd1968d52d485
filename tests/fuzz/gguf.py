"""Model files: tiny good ones in which one thing lies."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

from isthmus import Limits, Model, Runtime
from isthmus.config import Environment
from isthmus.errors import IsthmusError
from tests.fuzz.parts import ARRAY, STRING, Pair, Parts, damage, lie
from tests.fuzz.surface import Surface
from tests.tiny_gguf import ENCODERS, RECIPES, TinyModel

TEXTS = ("hello world", "é😀\u0300", "", "<|im_start|>user", "\0", "aaaa" * 60, "  \n\t 12345")
KINDS = (*RECIPES, *ENCODERS)


def tiny(kind: str = "llama", folder: Path | None = None) -> bytes:
    """A good file of an architecture."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = TinyModel(kind, n_layer=4 if kind == "gemma3" else 1, with_tokenizer=True)
        return made.write(Path(place) / "tiny.gguf").read_bytes()


def changed(change: Callable[[Parts], object], kind: str = "llama") -> Callable[[], bytes]:
    """A good file in which `change` has changed something."""

    def made() -> bytes:
        parts = Parts.read(tiny(kind))
        change(parts)
        return parts.write()

    return made


def _empty_token(parts: Parts) -> None:
    parts.tokens[5], parts.tokens[6] = b"", b"[EMPTY_5]"


def _spm(parts: Parts, *, with_bytes: bool = False) -> None:
    """SentencePiece's kind, with no token for most bytes."""
    parts.put("tokenizer.ggml.model", STRING, b"llama")
    n = len(parts.tokens)
    parts.put("tokenizer.ggml.scores", ARRAY, (6, [0.0] * n))
    if with_bytes:
        parts.tokens[3 : 3 + 256] = [f"<0x{i:02X}>".encode() for i in range(256)]


def _one_token(parts: Parts) -> None:
    del parts.tokens[1:]
    parts.get("tokenizer.ggml.token_type").value = (5, [1])


def _template(source: str) -> Callable[[], bytes]:
    return changed(lambda it: it.put("tokenizer.chat_template", STRING, source.encode()))


def _rwkv(parts: Parts) -> None:
    """A vocabulary in which rwkv's search finds tokens of no length."""
    parts.put("tokenizer.ggml.model", STRING, b"rwkv")
    parts.tokens[4] = b""


def _nested_arrays(parts: Parts) -> None:
    parts.pairs.append(Pair(b"x", ARRAY, (ARRAY, [(ARRAY, [(ARRAY, [])])] * 100_000)))


def _merges(parts: Parts) -> None:
    parts.put("tokenizer.ggml.merges", ARRAY, (STRING, [b"", b" ", b"a", b"a b c", b"\xff \xff"]))


class Fuzz(Surface):
    """Loads a model, asks its tokenizer and template, and has guests run it."""

    corpus: ClassVar = {
        "empty-token": changed(_empty_token),
        "spm-without-bytes": changed(_spm),
        "spm-with-bytes": changed(lambda it: _spm(it, with_bytes=True)),
        "one-token": changed(_one_token),
        "rwkv": changed(_rwkv),
        "template-power": _template("{{ 9**(9**9) }}"),
        "template-width": _template('{{ "%999999999d" % 1 }}'),
        "template-loops": _template(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        ),
        "template-macro": _template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        "template-doubling": _template(
            "{% set x = namespace(s='ab') %}{% for i in range(60) %}"
            "{% set x.s = x.s ~ x.s %}{% endfor %}{{ x.s }}"
        ),
        "template-brackets": _template("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}"),
        "template-filter": _template("{{ ('a'*9999)|list|batch(1)|list|tojson|length }}"),
        "nested-arrays": changed(_nested_arrays),
        "odd-merges": changed(_merges),
    }
    n_short = 12

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        environment = Environment(cache=folder / "cache")
        self.runtime = Runtime(device="cpu", threads=1, environment=environment)
        self.bases: dict[str, bytes] = {}

    def close(self) -> None:
        self.runtime.close()

    def make(self, rng: random.Random) -> bytes:
        kind = rng.choice(KINDS if rng.random() < 0.4 else ("llama",))
        raw = self.bases.get(kind) or self.bases.setdefault(kind, tiny(kind, self.folder))
        if rng.random() < 0.15:
            return damage(raw, rng)
        parts = Parts.read(raw)
        if rng.random() < 0.2:
            _spm(parts, with_bytes=rng.random() < 0.8)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            lie(parts, rng)
        return parts.write()

    def run(self, data: bytes) -> str:
        path = self.folder / "model.gguf"
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        model = self.runtime.load_model(path)
        done = use(self.runtime, model)
        model.close()
        return done


def use(runtime: Runtime, model: Model) -> str:
    """What a model is good for: tokens, a template, and what guests do with it."""
    done: list[str] = []
    if model.has_tokenizer:
        for text in TEXTS:
            for special in (False, True):
                done.append(_outcome(partial(_to_tokens_and_back, model, text, special)))
    messages = [{"role": "user", "content": "é"}]
    done.append(_outcome(lambda: model.format_chat(messages, add_generation_prompt=True)))
    for guest, message in (("chat", "hello"), ("bench", "sequence 3"), ("embed", "é")):
        done.append(_outcome(partial(_tell, runtime, model, guest, message)))
    return " ".join(sorted(set(done)))


def _outcome(job: Callable[[], object]) -> str:
    """The name of the typed error that a job raises, or that it is done."""
    try:
        job()
    except IsthmusError as error:
        return type(error).__name__
    return "done"


def _to_tokens_and_back(model: Model, text: str, special: bool) -> None:
    ids = model.tokenizer.encode(text, add_special=special, parse_special=special)
    model.tokenizer.decode(ids, render_special=special)
    for it in ids:
        model.tokenizer.flags(it)


def _tell(runtime: Runtime, model: Model, guest: str, message: str) -> None:
    args = [] if guest == "embed" else ["n_ctx=256"]
    limits = Limits(deadline_s=20, tokens_out=3)
    given = {"models": {"default": model}, "args": args, "limits": limits, "seed": 1}
    with runtime.spawn(guest, **given) as actor:  # type: ignore[arg-type]
        if message.startswith("sequence"):
            actor.send("prefill 5 1")
        actor.send(message)
