"""`isthmus rm`: remove models that were fetched, and snapshots."""

from __future__ import annotations

import argparse
from pathlib import Path

from isthmus.cli.options import say
from isthmus.config import Environment
from isthmus.download import Shelved, remove, shelved
from isthmus.errors import ModelNotFound
from isthmus.printable import printable
from isthmus.snapshot import Store, open_snapshot
from isthmus.snapshot.store import SNAPSHOTS_FOLDER, resolve
from isthmus.spelling import suggestion
from isthmus.units import format_nbytes

HELP = "remove models that were fetched, and snapshots"
EXAMPLES = """\
  isthmus rm llama3.2:1b
  isthmus rm agents/monday old.safetensors

Models are named as isthmus list shows them. Only files of the cache folder and snapshots are
removed; what a removed snapshot of a store shared with others stays, and isthmus gc frees the
rest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="a model that isthmus list shows, a snapshot's file, or STORE/NAME",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs it. Nothing is removed unless everything can be named."""
    cache = Environment.read().cache
    found = [_found(name, cache) for name in dict.fromkeys(arguments.names)]
    for it in found:
        if isinstance(it, Shelved):
            remove(it, cache)
            say(f"Removed {printable(it.name)}, {format_nbytes(it.nbytes)}")
        else:
            _remove_snapshot(it)
            say(f"Removed {it}")
    return 0


def _found(name: str, cache: Path) -> Shelved | Path:
    """A model by its name, or a snapshot's file. ModelNotFound, SnapshotError."""
    models = {it.name: it for it in shelved(cache)}
    if name in models:
        return models[name]
    path = resolve(name)
    if path.is_file():
        return open_snapshot(path).path  # what is no snapshot is not ours to remove
    meant = suggestion(name, models) or ": isthmus list shows the models that there are"
    raise ModelNotFound(f"there is no model or snapshot {name}{meant}")


def _remove_snapshot(path: Path) -> None:
    if path.parent.name == SNAPSHOTS_FOLDER:
        Store(path.parent.parent, create=False).delete(path.stem)
    else:
        path.unlink()
