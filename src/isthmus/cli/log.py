"""`isthmus log`: where a snapshot comes from."""

from __future__ import annotations

import argparse
from typing import Any

from isthmus.cli.inspect_command import when
from isthmus.cli.options import add_key_option
from isthmus.cli.restoring import SNAPSHOT_HELP, open_named
from isthmus.printable import printable, printable_json
from isthmus.snapshot.report import inspect, lineage

HELP = "show a snapshot's chain of parents, as far as they lie in the same folder"
EXAMPLES = """\
  isthmus log agents/ada
  isthmus log ada.safetensors --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("snapshot", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    rows: list[dict[str, Any]] = []
    for it in lineage(open_named(arguments.snapshot, arguments)):
        if isinstance(it, str):
            rows.append({"id": it, "path": None})
            continue
        seen = inspect(it)
        rows.append(
            {
                "id": seen.id,
                "path": seen.path,
                "created": when(seen.created_ns),
                "n_messages": seen.n_messages,
                "n_tokens": [session.n_tokens for session in seen.sessions],
            }
        )
    if arguments.json:
        print(printable_json(rows, indent=1))
        return 0
    for row in rows:
        if row["path"] is None:
            print(f"{str(row['id'])[:16]}  not in this folder")
        else:
            tokens = ", ".join(map(str, row["n_tokens"])) or "no"
            print(
                f"{str(row['id'])[:16]}  {row['created']}  {row['n_messages']} messages, "
                f"{tokens} tokens  {printable(str(row['path']))}"
            )
    return 0
