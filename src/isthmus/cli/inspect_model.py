"""`isthmus inspect-model`: what a model's file is, which way it is run, and what that lacks."""

from __future__ import annotations

import argparse
from typing import Any

from isthmus.cli.options import (
    MODEL_FORMS,
    add_device_options,
    add_way_options,
    open_model,
    open_runtime,
)
from isthmus.device import Device
from isthmus.model import Model
from isthmus.printable import printable, printable_json
from isthmus.units import format_nbytes

HELP = "show what a model is, which way it is run, and what it lacks"
EXAMPLES = """\
  isthmus inspect-model smollm2
  isthmus inspect-model ./Qwen3.5-4B-Q4_K_M.gguf --n-ctx 8192
  isthmus inspect-model ./model.gguf --graph adopted --json"""
_USUAL_N_CTX = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_FORMS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--n-ctx",
        type=int,
        metavar="N",
        help=f"tokens of the session whose memory is shown (default: {_USUAL_N_CTX}, or as many as "
        "the model takes)",
    )
    add_way_options(parser.add_argument_group("model"))
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    with open_runtime(arguments) as runtime:
        model = open_model(runtime, arguments, arguments.model)
        found = _describe(model, runtime.device, arguments.n_ctx)
    print(printable_json(found, indent=1) if arguments.json else "\n".join(_lines(found)))
    return 0


def _describe(model: Model, device: Device, n_ctx: int | None) -> dict[str, Any]:
    shape = model.hparams
    n_ctx = min(_USUAL_N_CTX, shape.n_ctx_train) if n_ctx is None else n_ctx
    return {
        "file": str(model.path),
        "name": model.name,
        "architecture": shape.architecture,
        "graph": model.graph or "Isthmus",
        "device": device.name,
        "n_layer": shape.n_layer,
        "n_embd": shape.n_embd,
        "n_vocab": model.n_vocab,
        "n_ctx_train": shape.n_ctx_train,
        "weights_nbytes": model.weights.nbytes,
        "generates": model.generates,
        "embeds": model.embeds,
        "has_tokenizer": model.has_tokenizer,
        "has_chat_template": model.has_chat_template,
        "session_n_ctx": n_ctx if model.generates else 0,
        "session_nbytes": model.layout(n_ctx).nbytes if model.generates else 0,
        "truncates": model.truncates,
        "lacks": list(model.lacks),
    }


def _lines(found: dict[str, Any]) -> list[str]:
    makes = [what for what, yes in (("text", "generates"), ("embeddings", "embeds")) if found[yes]]
    has = [what for what in ("tokenizer", "chat_template") if found[f"has_{what}"]]
    rows = {
        "file": found["file"],
        "name": found["name"],
        "graph": f"{found['architecture']}, by {found['graph']}, on {found['device']}",
        "shape": f"{found['n_layer']} layers, {found['n_embd']} wide, {found['n_vocab']} tokens, "
        f"{found['n_ctx_train']} tokens of context",
        "weights": format_nbytes(found["weights_nbytes"]),
        "makes": " and ".join(makes) or "nothing",
        "has": " and ".join(has).replace("_", " ") or "no tokenizer",
    }
    if found["generates"]:
        size = format_nbytes(found["session_nbytes"])
        rows["session"] = f"{size} for {found['session_n_ctx']} tokens"
    lines = [f"{name:<9}{printable(str(text))}" for name, text in rows.items()]
    return lines + [f"lacks    {it}" for it in found["lacks"]]
