"""Measures one device whole and writes what was seen: the receipt of a claim.

    python tools/receipt.py --device cuda:0 --ggml ggml-cuda --out benchmarks/results/h200

Runs verify and memory, and decode, prefill, agents and snapshot for each model, as `isthmus`
commands in processes of their own, and writes OUT.json with everything and OUT.md with a table for
each. Models are files, or shapes of tools/random_model.py such as llama-1b:Q8_0, which are made
first. `--questions` asks some of these only; answers are added to those that OUT.json has of the
same commit. What fails is written down too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parent
MODELS = (
    "llama-1b:Q8_0",
    "llama-1b:Q4_0",
    "llama-1b:F16",
    "llama-8b:Q8_0",
    "llama-8b:Q4_0",
    "llama-8b:F16",
)
QUESTIONS = {
    "decode": ["--sizes", "1024,8192"],
    "prefill": ["--sizes", "512,4096,8192"],
    "agents": ["--sizes", "1,8,16,32,64,128"],
    "agents, alone": ["--sizes", "1,4", "--width", "alone"],
    "agents, inexact": ["--sizes", "1,8,32,64", "--inexact"],
    "snapshot": ["--sizes", "1024,8192"],
}
ALL = ("verify", "memory", *dict.fromkeys(name.split(",")[0] for name in QUESTIONS))
SMALL = {"decode": "64", "prefill": "128", "agents": "1,2", "snapshot": "64"}
FIGURES = {
    "verify": ("nbytes", "holds", "pointer_identity", "bytes_copied", "ratio", "wrong", "checked"),
    "memory": (
        "mib",
        "ratio",
        "guest_gb_per_s",
        "plain_gb_per_s",
        "heap_gb_per_s",
        "move_to_device_ms",
        "first_touch_by_guest_ms",
    ),
    "decode": (
        "context",
        "ratio",
        "ours_tokens_per_s",
        "llama_cpp_tokens_per_s",
        "logits_relative_error",
        "equal_greedy_tokens",
        "bytes_copied",
    ),
    "prefill": (
        "tokens",
        "ratio",
        "ours_tokens_per_s",
        "llama_cpp_tokens_per_s",
        "logits_relative_error",
    ),
    "agents": ("agents", "ratio", "ours_tokens_per_s", "llama_cpp_tokens_per_s", "identical"),
    "agents, alone": ("agents", "ratio", "ours_tokens_per_s", "identical"),
    "agents, inexact": ("agents", "ratio", "ours_tokens_per_s", "identical"),
    "snapshot": (
        "tokens",
        "faster_than_prefill",
        "restore_to_next_token_ms",
        "prefill_again_ms",
        "save_ms",
        "first_fork_ms",
        "fork_ms",
        "identical",
    ),
}


def main() -> None:
    """Measures and writes."""
    arguments = _arguments()
    ggml = ["--ggml", arguments.ggml] if arguments.ggml else []
    sharing = ["--sharing", arguments.sharing] if arguments.sharing else []
    device = ["--device", arguments.device, *ggml, *sharing]
    at_sizes = dict(it.split("=") for it in arguments.sizes)
    sizes = "64KiB,1MiB" if arguments.small else "64KiB,1MiB,16MiB,64MiB,256MiB,1GiB"
    receipt = _begun(arguments.out, arguments.commit or _commit())
    receipt["commands"].append(" ".join(["python", *sys.argv]))
    receipt["devices"] = _isthmus(["devices", "--json", *ggml], arguments.timeout)
    if "verify" in arguments.questions:
        command = ["verify", "--json", "--sizes", sizes, *device]
        receipt["verify"] = _isthmus(command, arguments.timeout)
    _write(receipt, arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            path = _model(name, Path(folder))
            found = receipt["models"].setdefault(Path(name).stem, {})
            common = ["--json", "--repeats", str(arguments.repeats), "--model", str(path), *device]
            if "memory" in arguments.questions and "memory" not in receipt:
                mib = "16" if arguments.small else "256,1024"
                command = ["bench", "memory", "--sizes", mib, *common]
                receipt["memory"] = _isthmus(command, arguments.timeout)
            for question, options in QUESTIONS.items():
                bench = question.split(",")[0]
                at = at_sizes.get(question, SMALL[bench] if arguments.small else "")
                if bench not in arguments.questions or at == "none":
                    continue
                command = ["bench", bench, *options, *(["--sizes", at] if at else []), *common]
                found[question] = _isthmus(command, arguments.timeout)
                _write(receipt, arguments.out)
            if path.parent == Path(folder):
                path.unlink()
    print(arguments.out.with_suffix(".md").read_text())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--ggml")
    parser.add_argument("--sharing", help="as of isthmus (default: the best way that works)")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--questions", nargs="+", default=ALL, choices=ALL)
    parser.add_argument(
        "--sizes",
        nargs="*",
        default=(),
        metavar="QUESTION=LIST",
        help="other sizes, such as 'agents=1,8' or 'agents, inexact=none', which leaves it out",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="seconds, to try the script itself")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for each command")
    parser.add_argument("--commit", help="what is measured (default: what git says)")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _begun(out: Path, commit: str) -> dict[str, Any]:
    """What was measured of this commit on this machine before, or an empty receipt."""
    machine = {"system": platform.platform(), "processors": os.cpu_count()}
    with contextlib.suppress(FileNotFoundError):
        known: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
        if (known["commit"], known["machine"]) == (commit, machine):
            return known
    return {"commands": [], "commit": commit, "machine": machine, "models": {}}


def _isthmus(arguments: list[str], timeout: int) -> dict[str, Any]:
    """What a command prints as JSON; with `failed` where it ended badly."""
    start = time.monotonic()
    command = [sys.executable, "-m", "isthmus", *arguments]
    print("+ isthmus", *arguments, file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {timeout} s"}
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"failed": done.stderr.strip()[-2000:], "exit_code": done.returncode}
    if done.returncode != 0:
        report["failed"] = done.stderr.strip()[-2000:]
    return {**report, "seconds": time.monotonic() - start}


def _commit() -> str:
    command = ["git", "-C", str(TOOLS), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _model(name: str, folder: Path) -> Path:
    """A file, made now where `name` is a shape."""
    shape, _, dtype = name.partition(":")
    if not dtype:
        return Path(name)
    spec = importlib.util.spec_from_file_location("random_model", TOOLS / "random_model.py")
    assert spec is not None
    assert spec.loader is not None
    random_model = importlib.util.module_from_spec(spec)
    sys.modules["random_model"] = random_model
    spec.loader.exec_module(random_model)
    path = folder / f"{shape}-{dtype}.gguf"
    random_model.write(random_model.SHAPES[shape], dtype, path)
    return path


def _without_folders(text: str) -> str:
    """A text with the names of files alone: where they lay tells nobody else anything."""
    return re.sub(r'(?<=[ ="])/(?:[^ /"]+/)+', "", text)


def _write(receipt: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    text = _without_folders(json.dumps(receipt, indent=1))
    receipt = json.loads(text)
    out.with_suffix(".json").write_text(text + "\n")
    machine = receipt["machine"]
    lines = [*(f"`{command}`\n" for command in receipt["commands"])]
    lines.append(f"* commit {receipt['commit']}, {machine['system']}")
    lines.append(f"* {machine['processors']} processors")
    for it in receipt["devices"].get("devices", []):
        lines.append(f"* {it['name']}: {it['description']}, shares as {it['sharing']}")
        lines += [f"    * {it[name]}" for name in ("driver", "library") if it.get(name)]
    lines += sorted({f"* measured on {it}" for it in _ways(receipt)})
    for question, names in FIGURES.items():
        found = {model: it[question] for model, it in receipt["models"].items() if question in it}
        if question in receipt:
            found = {"": receipt[question]}
        if found:
            lines += ["", f"## {question}", "", *_table(names, found)]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _ways(receipt: dict[str, Any]) -> Iterator[str]:
    """How the devices that were measured shared memory."""
    reports = [receipt.get("verify"), receipt.get("memory")]
    for report in [
        *reports,
        *(it for model in receipt["models"].values() for it in model.values()),
    ]:
        if report and "sharing" in report:
            yield f"{report['device']}: {report['sharing']}, KV caches in {report['caches']} memory"


def _table(names: tuple[str, ...], found: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each result of each model, and what failed."""
    lines = [f"| model | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for model, report in found.items():
        for result in report.get("results", []):
            figures = " | ".join(_shown(result.get(name)) for name in names)
            lines.append(f"| {model} | {figures} |")
        if failed := report.get("failed"):
            lines.append(f"| {model} | {failed.splitlines()[-1]} |")
    return lines


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
