"""`isthmus rerank`: documents in the order in which they answer a query."""

from __future__ import annotations

import argparse
import sys

from isthmus.cli.options import (
    add_device_options,
    add_model_options,
    open_models,
    open_runtime,
)
from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.printable import printable, printable_json

HELP = "put documents in the order in which they answer a query, by a reranker"
EXAMPLES = """\
  isthmus rerank --model reranker.gguf --query "What is an isthmus?" "A land bridge." "A cat."
  isthmus rerank --model reranker.gguf --query "land bridge" --top 3 < documents.txt
  isthmus rerank --model minilm.gguf --query "land bridge" --json < documents.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "document",
        nargs="*",
        metavar="DOCUMENT",
        help="a text; without any, each line of standard input",
    )
    parser.add_argument("--query", required=True, metavar="TEXT", help="what is looked for")
    parser.add_argument("--top", type=int, metavar="N", help="print the best N alone")
    parser.add_argument(
        "--json",
        action="store_true",
        help="an object for each document: its place, its score and the text (default: the score "
        "and the text)",
    )
    add_model_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Scores one document after the other, and prints them, the best first. Raises SettingsError
    without documents, and unless there is one model."""
    documents = arguments.document or _lines()
    if not documents:
        raise SettingsError("there is no document: give one, or lines on standard input")
    if arguments.top is not None and arguments.top < 1:
        raise SettingsError(f"--top {arguments.top}: give 1 or more")
    with open_runtime(arguments) as runtime:
        models = list(open_models(runtime, arguments).values())
        if len(models) != 1:
            raise SettingsError(f"rerank takes one --model, not {len(models)}")
        scores = _scores(models[0], arguments.query, documents)
    best = sorted(range(len(documents)), key=lambda it: -scores[it])[: arguments.top]
    for index in best:
        text, score = documents[index], scores[index]
        if arguments.json:
            print(printable_json({"index": index, "score": score, "text": text}))
        else:
            print(f"{score:9.4f}  {printable(text)}")
    return 0


def _scores(model: Model, query: str, documents: list[str]) -> list[float]:
    """A reranker's; of another model, the cosines of embeddings."""
    if model.ranks:
        return model.rank(query, documents)
    first, *others = model.embed([query, *documents])
    return [float(first @ it) for it in others]


def _lines() -> list[str]:
    if sys.stdin.isatty():
        print("Type a document on each line, then Ctrl-D:", file=sys.stderr)
    return [text for line in sys.stdin if (text := line.rstrip("\r\n"))]
