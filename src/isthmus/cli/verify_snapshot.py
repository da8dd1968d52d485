"""`isthmus verify-snapshot`: read all of a snapshot and compare it with its hashes."""

from __future__ import annotations

import argparse

from isthmus.cli.options import add_key_option
from isthmus.cli.restoring import SNAPSHOT_HELP, open_named
from isthmus.units import format_nbytes

HELP = "read all of a snapshot and compare it with its hashes and its signature"
EXAMPLES = """\
  isthmus verify-snapshot ada.safetensors
  isthmus verify-snapshot agents/* --key-file key

exits with 2 at the first that is not whole"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("snapshots", nargs="+", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    add_key_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    for text in arguments.snapshots:
        snapshot = open_named(text, arguments)
        snapshot.verify()
        signed = "signed" if snapshot.signed else "not signed"
        nbytes = format_nbytes(snapshot.file_nbytes)
        print(f"{snapshot.path}: whole, {nbytes}, {len(snapshot.chunks)} chunks, {signed}")
    return 0
