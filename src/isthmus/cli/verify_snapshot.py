"""`isthmus verify-snapshot`: read all of a snapshot and compare it with its hashes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from isthmus.cli.options import add_key_option, say
from isthmus.cli.restoring import SNAPSHOT_HELP, open_named, signature
from isthmus.errors import SnapshotError
from isthmus.paths import expanded
from isthmus.printable import printable
from isthmus.snapshot import CHUNK_NBYTES, Store
from isthmus.units import format_nbytes

HELP = "read all of a snapshot and compare it with its hashes and its signature"
EXAMPLES = """\
  isthmus verify-snapshot ada.safetensors
  isthmus verify-snapshot agents/ --key-file key

a store stands for all that is in it; exits with 2 if one is not whole"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("snapshots", nargs="+", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    add_key_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    code = 0
    for text in _each(arguments.snapshots):
        try:
            snapshot = open_named(text, arguments)
            snapshot.verify()
        except SnapshotError as error:
            say(f"isthmus: {printable(str(error))}")
            code = error.exit_code
            continue
        nbytes = format_nbytes(len(snapshot.chunks) * CHUNK_NBYTES)
        signed = signature(snapshot.signed, arguments)
        print(f"{printable(str(snapshot.path))}: whole, {nbytes} of memory, {signed}")
    return code


def _each(texts: list[str]) -> Iterator[str]:
    """The snapshots that are meant, all of a store's where that is given."""
    for text in texts:
        if (expanded(text) / "snapshots").is_dir():
            store = Store(text, create=False)
            yield from (str(store.path(name)) for name in store.names())
        else:
            yield text
