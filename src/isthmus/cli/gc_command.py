"""`isthmus gc`: remove snapshots of a store, and what nobody uses any more."""

from __future__ import annotations

import argparse

from isthmus.paths import expanded
from isthmus.snapshot import Store
from isthmus.units import format_nbytes

HELP = "remove chunks of a store that no snapshot uses"
EXAMPLES = """\
  isthmus gc agents/
  isthmus gc agents/ --delete monday --delete tuesday"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("store", metavar="STORE", help="the store's folder")
    parser.add_argument(
        "--delete", action="append", default=[], metavar="NAME", help="a snapshot to remove first"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    store = Store(expanded(arguments.store), create=False)
    for name in arguments.delete:
        store.delete(name)
    done = store.gc()
    print(
        f"{len(store.names())} snapshots left; {done.n_packs_removed} packs removed, "
        f"{done.n_packs_rewritten} written anew, {format_nbytes(done.nbytes_freed)} freed"
    )
    return 0
