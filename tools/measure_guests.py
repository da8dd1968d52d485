"""Measures what `hello` costs in each language: docs/guests.md has the table.

python tools/measure_guests.py     prints it; languages whose compiler is missing are left out
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from isthmus import Runtime
from isthmus.config import Environment
from isthmus.errors import ToolchainMissing
from isthmus.model import Model
from isthmus.projects import LANGUAGES, Project, build, new_project

N_TOKENS = 2000
REPEATS = 3


def compile_s(project: Project, folder: Path) -> float:
    """Seconds that loading takes at first, with an empty cache."""
    with Runtime(device="null", threads=1, environment=Environment(cache=folder)) as runtime:
        begin = time.perf_counter()
        runtime.load_guest(project.output)
        return time.perf_counter() - begin


def token_us(project: Project, runtime: Runtime, model: Model) -> float:
    """Microseconds of a token, the model's work aside: the least of a few runs."""
    args = {"max_tokens": N_TOKENS, "n_ctx": 4096, "temperature": 0}
    agent = runtime.spawn(project.output, models={"default": model}, args=args)
    times = []
    for _ in range(REPEATS):
        before = agent.usage.tokens_out
        begin = time.perf_counter()
        agent.send("go")
        n_tokens = agent.usage.tokens_out - before
        times.append((time.perf_counter() - begin) / max(n_tokens, 1))
    agent.close()
    return min(times) * 1e6


def main() -> int:
    print("| language | bytes | compiled at first use | a token |")
    print("| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name, Runtime(device="null", threads=1) as runtime:
        model = runtime.load_model("fake:" + " ".join(f"word{n}" for n in range(400)))
        for lang in LANGUAGES:
            folder = Path(name) / lang
            project = new_project(folder / "hello", lang, "hello")
            if len(sys.argv) > 1 and lang == "as":
                (project.folder / "node_modules").symlink_to(Path(sys.argv[1]).absolute())
            try:
                nbytes = build(project).stat().st_size
            except ToolchainMissing as error:
                print(f"{lang}: {error}", file=sys.stderr)
                continue
            first, each = compile_s(project, folder), token_us(project, runtime, model)
            print(f"| {lang} | {nbytes:,} | {first:.2f} s | {each:.1f} µs |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
