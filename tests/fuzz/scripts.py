"""Scripts in JavaScript: what they do ends with their message, in a typed error or an answer."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from isthmus import Limits, Runtime
from isthmus.config import Environment
from isthmus.errors import IsthmusError
from isthmus.runtime.scripts import QUICKJS
from tests.fuzz.surface import CAPACITY, MIB, Surface, halves
from tests.tiny_gguf import TinyLlama

_VALUES = (
    *("undefined", "null", "true", "-1", "0", "NaN", "Infinity", "2**31", "2**53", "1e308", "'x'"),
    *("'\\ud800'", "'\\0'", "'x'.repeat(1<<20)", "[]", "[1,2,3]", "[-1]", "[2**40]", "{}"),
    *("model", "session", "other", "new Proxy([], {})", "Symbol()", "10n**400n"),
    *(
        "() => {}",
        "new Array(1<<30)",
        "{length: 2**32}",
        "{valueOf() { session.close(); return 1 }}",
    ),
    *("{get length() { session.close(); return 3 }}", "{toString() { throw 1 }}", "globalThis"),
    *("[{role: 'user', content: 'x'}]", "[{role: {}, content: 'x'}]"),
    *("[{get role() { throw 2 }}]", "'<|im_start|>'.repeat(2000)"),
    "{addSpecial: true}",
)
_CALLS = (
    *("isthmus.emit({})", "isthmus.log({}, {})", "isthmus.option({}, {})", "isthmus.tool({}, {})"),
    *("isthmus.openModel({})", "model.chatTokens({})", "model.tokenize({}, {})", "model.isEnd({})"),
    *("model.detokenize({})", "model.openSession({})", "session.become({})", "session.decode({})"),
    *("session.keep({})", "session.sample({})", "session.logits({})", "session.copyFrom({})"),
    *("session.generate({})", "session.close()", "other.close()", "other.copyFrom(session)"),
    *("logits.fill({})", "logits[{}] = {}", "logits.subarray({}, {}).set({})", "eval({})"),
    *("logits = session.logits()", "logits.buffer.transfer({})", "new Uint8Array(logits.buffer)"),
    *("new Function({})()", "JSON.parse('['.repeat(200000))", "'a'.repeat(99999).match(/(a*)*b/)"),
    *("JSON.stringify({})", "structuredClone({})", "[].concat({}).sort({})", "({}).x.y"),
    *("globalThis.onMessage = {}", "isthmus.emit = {}", "delete isthmus.emit", "throw {}"),
    *("Array.prototype.push = {}", "Object.prototype.then = {}", "String.prototype.replace = {}"),
    *("new RegExp({})", "parseInt({})", "new Date({}).toString()", "Promise.reject({})"),
)
_ENDINGS = (
    *("return {};", "for (;;) {{}}", "for (;;) isthmus.emit('x'.repeat(65536));", ""),
    *(
        "const f = () => f() + f(); f();",
        "const a = []; for (;;) a.push(new Array(99999).fill(1));",
    ),
    *("let s = 'x'; for (;;) s += s;", "for (;;) isthmus.log('x');", "return session.generate();"),
)
_HEAD = """\
const model = isthmus.openModel();
const session = model.openSession(256), other = model.openSession(256);
session.become(model.tokenize("hello"));
let logits = session.logits();
"""


def script(*lines: str, end: str = "") -> Callable[[], bytes]:
    """A script with these lines, each of which may throw."""
    tried = [
        f"  try {{ {it}; }} catch (e) {{ isthmus.log(String(e).slice(0, 99)); }}" for it in lines
    ]
    text = "\n".join([_HEAD, "function onMessage(text) {", *tried, f"  {end}", "}"])
    return lambda: text.encode("utf-8", "replace")


class Fuzz(Surface):
    """Runs a script for two messages, forks it and saves it."""

    corpus: ClassVar = {
        "good": script("isthmus.emit('words')", end="return session.generate(4);"),
        "endless": script(end="for (;;) {}"),
        "logits-after-close": script("session.close()", "logits.fill(1)", "session.logits()"),
        "closed-while-it-is-read": script("session.become({get length() { session.close(); }})"),
        "grows-for-ever": script(end=_ENDINGS[5]),
        "no-script": lambda: b"\xff\xfe\x00(",
        "100000-brackets": lambda: b"[" * 100_000,
    }
    cpu_s = 30.0
    wall_s = 120.0
    memory_nbytes = 900 * MIB
    n_short = 6

    @staticmethod
    def is_ready() -> bool:
        return QUICKJS.path(Environment.read().cache).exists()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        known, cache = QUICKJS.path(Environment.read().cache), folder / "cache"
        (cache / "interpreters").mkdir(parents=True)
        shutil.copy(known, cache / "interpreters" / known.name)
        environment = Environment(cache=cache)
        self.runtime = Runtime(device="cpu", threads=1, environment=environment, capacity=CAPACITY)
        path = TinyLlama(with_tokenizer=True).write(folder / "tiny.gguf")
        self.model = self.runtime.load_model(path)

    def close(self) -> None:
        self.runtime.close()

    def make(self, rng: random.Random) -> bytes:
        def filled(text: str) -> str:
            while "{}" in text:
                text = text.replace("{}", rng.choice(_VALUES).replace("{}", "[{ }]"), 1)
            return text

        lines = [filled(rng.choice(_CALLS)) for _ in range(rng.choice([1, 2, 4, 8]))]
        end = rng.choice(_ENDINGS) if rng.random() < 0.3 else ""
        made = bytearray(script(*lines, end=filled(end.replace("{{}}", "{ }")))())
        if rng.random() < 0.1:
            made[rng.randrange(len(made))] = rng.randrange(256)
        return bytes(made)

    def run(self, data: bytes) -> str:
        path = self.folder / "agent.js"
        path.write_bytes(data)
        limits = Limits(memory_nbytes=128 * MIB, tokens=500, output_nbytes=8 * MIB, sessions=8)
        done = []
        given = {"models": {"default": self.model}, "tools": {"echo": bytes}}
        with self.runtime.spawn(path, seed=0, limits=limits, **given) as actor:  # type: ignore[arg-type]
            for _ in range(2):
                try:
                    actor.send("x", deadline_s=2)
                    done.append("answered")
                except IsthmusError as error:
                    done.append(type(error).__name__)
            for child in actor.fork(1):
                child.close()
            actor.snapshot(self.folder / "it.safetensors")
        return " ".join(done)

    def smaller(self, data: bytes) -> Iterator[bytes]:
        for lines in halves(data.split(b"\n")):
            yield b"\n".join(lines)
