"""Measures one device whole and writes what was seen: the receipt of a claim.

    python tools/receipt.py --device cuda:0 --ggml ggml-cuda --out benchmarks/results/h200

Runs verify, decode, prefill, agents and snapshot for each model, as `isthmus` commands in processes
of their own, and writes OUT.json with everything and OUT.md with a table for each. Models are
files, or shapes of tools/random_model.py such as llama-1b:Q8_0, which are made first. What fails is
written down too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parent
MODELS = ("llama-1b:Q8_0", "llama-1b:Q4_0", "llama-1b:F16", "llama-8b:Q8_0", "llama-8b:Q4_0")
QUESTIONS = {
    "decode": "1024,8192",
    "prefill": "512,4096,8192",
    "agents": "1,2,4,8,16,32,64",
    "snapshot": "1024,8192",
}
SMALL = {"decode": "64", "prefill": "128", "agents": "1,2", "snapshot": "64"}
FIGURES = {
    "decode": ("context", "ratio", "ours_tokens_per_s", "equal_greedy_tokens"),
    "prefill": ("tokens", "ratio", "ours_tokens_per_s", "logits_relative_error"),
    "agents": ("agents", "ratio", "ours_tokens_per_s", "identical"),
    "snapshot": (
        "tokens",
        "faster_than_prefill",
        "restore_to_next_token_ms",
        "prefill_again_ms",
        "save_ms",
        "first_fork_ms",
    ),
}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--ggml")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="seconds, to try the script itself")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for each command")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = ["--device", arguments.device]
    device += ["--ggml", arguments.ggml] if arguments.ggml else []
    sizes = "64KiB,1MiB" if arguments.small else "64KiB,1MiB,16MiB,64MiB,256MiB,1GiB"
    receipt: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "devices": _isthmus(["devices", "--json", *device[2:]], arguments.timeout),
        "verify": _isthmus(["verify", "--json", "--sizes", sizes, *device], arguments.timeout),
        "models": {},
    }
    questions = SMALL if arguments.small else QUESTIONS
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            path = _model(model, Path(folder))
            found = receipt["models"][model] = {}
            for question, at in questions.items():
                options = ["--json", "--repeats", str(arguments.repeats), "--sizes", at]
                command = ["bench", question, *options, "--model", str(path), *device]
                found[question] = _isthmus(command, arguments.timeout)
                _write(receipt, arguments.out)
            if path.parent == Path(folder):
                path.unlink()
    print(arguments.out.with_suffix(".md").read_text())


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


def _write(receipt: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(receipt, indent=1) + "\n")
    lines = [f"`{receipt['command']}`", ""]
    for device in receipt["devices"].get("devices", []):
        lines.append(f"* {device['name']}: {device['description']}, {device['sharing']}")
    proofs = receipt["verify"].get("results", [])
    lines += ["", f"verify: {sum(proof['holds'] for proof in proofs)} of {len(proofs)} sizes hold."]
    for question, names in FIGURES.items():
        lines += ["", f"## {question}", "", f"| model | {' | '.join(names)} |"]
        lines.append("| --- " * (len(names) + 1) + "|")
        for model, found in receipt["models"].items():
            for result in found.get(question, {}).get("results", []):
                figures = " | ".join(_shown(result.get(name)) for name in names)
                lines.append(f"| {model} | {figures} |")
            if failed := found.get(question, {}).get("failed"):
                lines.append(f"| {model} | {failed.splitlines()[-1]} |")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
