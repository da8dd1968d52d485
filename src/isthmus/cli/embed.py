"""`isthmus embed`: texts as vectors, by the guest `embed` and a model that makes embeddings."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import numpy as np

from isthmus.actor.content import with_files
from isthmus.cli.options import (
    add_device_options,
    add_model_options,
    open_models,
    open_runtime,
    read_files,
)
from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.printable import printable_json
from isthmus.runtime import Runtime

HELP = "turn texts, pictures and sounds into embeddings, with a model that makes them"
EXAMPLES = """\
  isthmus embed --model minilm.gguf "A land bridge." "A cat."
  isthmus embed --model minilm.gguf < sentences.txt > vectors.jsonl
  isthmus embed --model qwen-vl-embedding.gguf --mmproj mmproj.gguf --graph adopted --image cat.png
  isthmus embed --model nomic.gguf --json "search_query: what is an isthmus?" """.rstrip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "text", nargs="*", metavar="TEXT", help="a text; without any, each line of standard input"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="an object for each: its place, the text or file, its tokens and the embedding "
        "(default: the embedding alone, an array on a line)",
    )
    parser.add_argument(
        "--unnormalised",
        action="store_true",
        help="embeddings as long as the model makes them (default: of length 1, so that the "
        "product of two is their cosine)",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture (PNG, JPEG, WebP) or a sound (WAV) that is embedded by itself, before the "
        "texts, for models with --mmproj; repeatable",
    )
    add_model_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Embeds one text after the other. Raises SettingsError unless there is one model."""
    with open_runtime(arguments) as runtime:
        models = list(open_models(runtime, arguments).values())
        if len(models) != 1:
            raise SettingsError(f"embed takes one --model, not {len(models)}")
        for index, (what, n_tokens, rows) in enumerate(_embed(runtime, models[0], arguments)):
            values = rows.tolist()
            if arguments.json:
                found = {"index": index, **what, "n_tokens": n_tokens, "embedding": values}
                print(printable_json(found), flush=True)
            else:
                print(json.dumps(values), flush=True)
    return 0


def _embed(
    runtime: Runtime, model: Model, arguments: argparse.Namespace
) -> Iterator[tuple[dict[str, str], int, np.ndarray]]:
    """What is embedded, its tokens, and its embedding."""
    files = read_files(arguments.image)
    args = {"output": "f32", "normalise": int(not arguments.unnormalised)}
    actor = runtime.spawn("embed", models={"default": model}, args=args)
    for name, file in zip(arguments.image, files, strict=True):
        reply = actor.send(with_files("", file))
        yield {"file": str(name)}, reply.n_tokens, model.embedding_of(reply.data)
    for text in arguments.text or (() if files else _lines()):
        reply = actor.send(text)
        yield {"text": text}, reply.n_tokens, model.embedding_of(reply.data)


def _lines() -> Iterator[str]:
    if sys.stdin.isatty():
        print("Type a text on each line, then Ctrl-D:", file=sys.stderr)
    for line in sys.stdin:
        if text := line.rstrip("\r\n"):
            yield text
