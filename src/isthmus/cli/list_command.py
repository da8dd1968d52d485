"""`isthmus list`: models that were fetched, snapshots of a folder, or what a server has."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from isthmus.cli.asking import add_server_key_option, ask, is_url
from isthmus.cli.inspect_command import when
from isthmus.cli.options import add_key_option, read_key, say
from isthmus.cli.table import format_table
from isthmus.config import Environment
from isthmus.download import shelved
from isthmus.errors import ModelNotFound, SnapshotError
from isthmus.paths import expanded
from isthmus.printable import printable, printable_json
from isthmus.snapshot import Store, open_snapshot
from isthmus.snapshot.report import inspect
from isthmus.snapshot.store import SNAPSHOTS_FOLDER
from isthmus.units import format_nbytes

HELP = "list models that were fetched, the snapshots of a folder, or what a server has"
EXAMPLES = """\
  isthmus list
  isthmus list agents/
  isthmus list http://127.0.0.1:8080
  isthmus list --json"""
_SERVER_STORE = "store"
"""The store in the data folder of a server."""
_Rows = list[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "where",
        nargs="?",
        metavar="FOLDER|URL",
        help="a store or a folder of snapshots, a server's data folder, or a server (default: the "
        "models of the cache)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_option(parser)
    add_server_key_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    where = arguments.where
    if where is None:
        _print(_fetched(), arguments.json, "No model was fetched yet; try: isthmus pull smollm2")
    elif is_url(where):
        models = ask(where, "/v1/models", arguments)["data"]
        agents = ask(where, "/v1/agents", arguments)["data"]
        if arguments.json:
            print(printable_json({"models": models, "agents": agents}, indent=1))
            return 0
        _print([{"model": it["id"]} for it in models], False, "The server has no model.")
        print()
        _print([_agent(it) for it in agents], False, "It has no agents.")
    else:
        rows = _snapshots(expanded(where), arguments)
        _print(rows, arguments.json, f"There are no snapshots in {where}")
    return 0


def _print(rows: _Rows, as_json: bool, none: str) -> None:
    if as_json:
        print(printable_json(rows, indent=1))
    elif rows:
        print(format_table([*rows[0]], [[_cell(*it) for it in row.items()] for row in rows]))
    else:
        say(none)


def _cell(name: str, value: object) -> str:
    if name == "size":
        return format_nbytes(int(str(value)))
    return printable(str(value))


def _fetched() -> _Rows:
    rows = []
    for it in shelved(Environment.read().cache):
        changed = it.files[0].stat().st_mtime_ns
        rows.append(
            {"model": it.name, "size": it.nbytes, "from": it.source, "fetched": when(changed)}
        )
    return rows


def _snapshots(folder: Path, arguments: argparse.Namespace) -> _Rows:
    """The snapshots of a store, or the files of a folder that are some."""
    if not folder.is_dir():
        raise ModelNotFound(f"there is no folder {folder}: give one, or the URL of a server")
    rows, key = [], read_key(arguments)
    for name, path in _files(folder):
        try:
            seen = inspect(open_snapshot(path, key))
        except SnapshotError as error:
            say(printable(str(error)))
            continue
        rows.append(
            {
                "snapshot": name,
                "guest": seen.guest,
                "messages": seen.n_messages,
                "tokens": sum(session.n_tokens for session in seen.sessions),
                "size": seen.file_nbytes,
                "made": when(seen.created_ns),
            }
        )
    return rows


def _files(folder: Path) -> Sequence[tuple[str, Path]]:
    """Snapshots by name: of a store, of a server's data folder, or files that lie in the folder."""
    stores = (folder, folder / _SERVER_STORE)
    found = next((it for it in stores if (it / SNAPSHOTS_FOLDER).is_dir()), None)
    if found is not None:
        store = Store(found, create=False)
        return [(name, store.path(name)) for name in store.names()]
    return [(path.name, path) for path in sorted(folder.glob("*.safetensors"))]


def _agent(it: dict[str, Any]) -> dict[str, Any]:
    made = datetime.fromtimestamp(float(it["created"]), timezone.utc)
    return {
        "agent": it["id"],
        "name": it["name"],
        "guest": it["guest"],
        "position": it["position"],
        "made": made.strftime("%Y-%m-%d %H:%M:%S UTC"),
    }
