"""Measures what `hello` costs in each language: docs/guests.md has the table.

python tools/measure_guests.py [LANG …]     prints it, of all languages or of these; those whose
                                            compiler or interpreter is missing are left out.
                                            --node-modules FOLDER has AssemblyScript's compiler

All times are the processor's, so that what else the machine does counts little. A token's is the
least of a few answers, for which all languages take turns. The last line compares Rust with C.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from isthmus import Runtime
from isthmus.actor.actor import Actor
from isthmus.config import Environment
from isthmus.errors import GuestInvalid, ToolchainMissing
from isthmus.model import Model
from isthmus.projects import LANGUAGES, SCRIPT_LANGUAGES, build, new_project, new_script
from isthmus.runtime.scripts import INTERPRETERS
from isthmus.runtime.sources import read_guest

N_TOKENS = 1000
REPEATS = 25


@dataclass
class Row:
    """One language's measurements."""

    lang: str
    guest: Path
    """The module, or the script."""
    nbytes: int
    compile_s: float
    """Seconds of all processors that loading takes at first, with an empty cache."""
    actor: Actor
    start_ms: float = 0.0
    """Milliseconds of the processor for the first message, beyond what a later one takes."""
    token_us: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        token = f"{min(self.token_us):.0f} µs"
        return (
            f"| {self.lang} | {self.nbytes:,} | {self.compile_s:.2f} s | "
            f"{self.start_ms:.1f} ms | {token} |"
        )


def made(lang: str, folder: Path, node_modules: Path | None) -> Path:
    """`hello` in a language. ToolchainMissing, GuestInvalid if it cannot be had here."""
    if lang in SCRIPT_LANGUAGES:
        INTERPRETERS[lang].read(Environment.read().cache)
        return new_script(folder / "hello", lang, "hello")
    project = new_project(folder / "hello", lang, "hello")
    if node_modules and lang == "as":
        (project.folder / "node_modules").symlink_to(node_modules)
    return build(project)


def compile_s(module: bytes, folder: Path) -> float:
    """Seconds of all processors that loading takes at first, with an empty cache; the compiler is a
    process of its own."""
    with Runtime(device="null", threads=1, environment=Environment(cache=folder)) as runtime:
        before = os.times()
        runtime.load_guest(module)
        return sum(os.times()[:4]) - sum(before[:4])


def answer_s(row: Row) -> tuple[float, int]:
    """Seconds of the processor that an answer takes, and how many tokens it has."""
    before = row.actor.usage.tokens_out
    begin = time.process_time()
    row.actor.send("go")
    return time.process_time() - begin, row.actor.usage.tokens_out - before


def open_row(lang: str, folder: Path, node_modules: Path | None, rt: Runtime, model: Model) -> Row:
    """A language's agent, before its first message."""
    guest = made(lang, folder, node_modules)
    module = read_guest(guest)[0]
    seconds = compile_s(module, folder / "cache")
    args: dict[str, object] = {"n_ctx": 8192, "temperature": 0}
    if lang not in SCRIPT_LANGUAGES:
        args["max_tokens"] = N_TOKENS
    actor = rt.spawn(guest, models={"default": model}, args=args)
    return Row(lang, guest, len(module), seconds, actor)


def main() -> int:
    every = (*LANGUAGES, *SCRIPT_LANGUAGES)
    parser = argparse.ArgumentParser()
    parser.add_argument("lang", nargs="*", choices=[*every, []], metavar="LANG")
    parser.add_argument("--node-modules", type=Path)
    given = parser.parse_args()
    modules = given.node_modules and given.node_modules.absolute()
    rows = []
    with tempfile.TemporaryDirectory() as name, Runtime(device="null", threads=1) as rt:
        model = rt.load_model("fake:" + " ".join(f"word{n}" for n in range(400)))
        for lang in given.lang or every:
            try:
                rows.append(open_row(lang, Path(name) / lang, modules, rt, model))
            except (ToolchainMissing, GuestInvalid) as error:
                print(f"{lang}: {error}", file=sys.stderr)
        for it in rows[:1]:  # what is imported and opened once is nobody's
            rt.spawn(it.guest, models={"default": model}).send("go")
        firsts = [answer_s(it) for it in rows]
        for _ in range(REPEATS):
            for row in rows:
                seconds, n_tokens = answer_s(row)
                row.token_us.append(seconds / max(n_tokens, 1) * 1e6)
        for row, (seconds, n_tokens) in zip(rows, firsts, strict=True):
            row.start_ms = max(0.0, seconds * 1e3 - min(row.token_us) * n_tokens / 1e3)
    print("| language | bytes | compiled at first use | first message | a token |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(row)
    print_ratio({it.lang: min(it.token_us) for it in rows})
    return 0


def print_ratio(token_us: dict[str, float]) -> None:
    """How much longer a token takes in the slower of C and Rust, if both were measured."""
    if {"c", "rust"} <= token_us.keys():
        both = token_us["c"], token_us["rust"]
        print(f"C and Rust are within {max(both) / min(both):.2f} times of each other")


if __name__ == "__main__":
    sys.exit(main())
