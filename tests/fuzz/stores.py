"""Stores: one process saves, restores and collects while another damages what lies there.

An input is the seed of both, as text.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

from isthmus import Runtime
from isthmus.config import Environment
from isthmus.errors import IsthmusError
from isthmus.snapshot import Store
from tests.fuzz.surface import Surface
from tests.tiny_gguf import TinyLlama

_STEPS = 25


class Fuzz(Surface):
    """Uses a store beside a process that damages it, or one that collects it."""

    corpus: ClassVar = {
        "restore-beside-gc": lambda: b"gc",
        "restore-beside-gc-again": lambda: b"gc 2",
        "files-cut-short-under-their-mappings": lambda: b"112237209",
    }
    n_short = 2

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        environment = Environment(cache=folder / "cache")
        self.runtime = Runtime(device="cpu", threads=1, environment=environment)
        tiny = TinyLlama(with_tokenizer=True).write(folder / "tiny.gguf")
        self.n_stores = 0
        self.given = {"models": {"default": self.runtime.load_model(tiny)}}

    def close(self) -> None:
        self.runtime.close()

    def make(self, rng: random.Random) -> bytes:
        return b"%d" % rng.randrange(10**9)

    def run(self, data: bytes) -> str:
        self.n_stores += 1
        where = self.folder / f"store{self.n_stores}"
        Store(where)
        gently = data.startswith(b"gc")
        command = [sys.executable, "-m", "tests.fuzz.stores", str(where), data.decode()]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as hostile:
            try:
                assert hostile.stdout is not None
                assert hostile.stdout.readline() == b"ready\n"
                said = self._use(where, random.Random(data), gently=gently)
            finally:
                hostile.kill()
        shutil.rmtree(where, ignore_errors=True)
        return " ".join(f"{name} {n}" for name, n in sorted(said.items()))

    def _use(self, where: Path, rng: random.Random, *, gently: bool) -> Counter[str]:
        """Counts of what came of it. Beside a process that only collects, nothing fails."""
        said: Counter[str] = Counter()
        args = ["n_ctx=256"]
        with self.runtime.spawn("bench", args=args, seed=1, clock_ns=1, **self.given) as actor:
            answer = actor.send("prefill 20 3").text
            for step in range(_STEPS):
                actor.send("sequence 2")
                for name, job in (
                    ("save", lambda step=step: actor.snapshot(where, name=f"s{step % 5}")),
                    ("restore", lambda: self._restore(where, rng)),
                    ("gc", lambda: Store(where).gc()),
                ):
                    try:
                        job()
                        said[name] += 1
                    except IsthmusError as error:
                        if gently:
                            raise AssertionError(f"{name} beside gc") from error
                        said[type(error).__name__] += 1
            assert answer
        return said

    def _restore(self, where: Path, rng: random.Random) -> None:
        name = rng.choice(Store(where, create=False).names() or ["none"])
        with self.runtime.restore(where / name, **self.given) as again:
            again.send("sequence 2")


def harm(where: Path, rng: random.Random) -> None:
    """Does something to a file of the store, or beside it."""
    files = [it for it in where.rglob("*") if not it.is_dir()]
    if not files:
        return
    path = rng.choice(files)
    match rng.randrange(9):
        case 0:
            path.unlink()
        case 1:
            with path.open("r+b") as file:
                file.truncate(rng.choice([0, 8, path.stat().st_size // 2]))
        case 2 | 3:
            with path.open("r+b") as file:
                file.seek(rng.randrange(path.stat().st_size + 1))
                file.write(rng.randbytes(8))
        case 4:
            other = path.with_name(f".{path.name}.x")
            other.write_bytes(rng.randbytes(rng.choice([0, 8, 5000])))
            other.replace(path)
        case 5:
            rng.choice(files).replace(path)
        case 6:
            (path.parent / f"n{rng.randrange(99)}{path.suffix}").write_bytes(path.read_bytes())
        case 7:
            path.with_name(f"l{rng.randrange(99)}.safetensors").symlink_to(rng.choice(files))
        case _:
            kind = rng.choice([os.mkfifo, os.mkdir])
            kind(path.with_name(f"k{rng.randrange(99)}.pack.safetensors"))


def main(where: Path, seed: str) -> None:
    """The other process, until it is killed."""
    rng = random.Random(seed)
    print("ready", flush=True)
    while os.getppid() != 1:
        if seed.startswith("gc"):
            Store(where).gc()
        else:
            with contextlib.suppress(OSError):
                harm(where, rng)
            time.sleep(rng.choice([0.0, 0.01, 0.05]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
