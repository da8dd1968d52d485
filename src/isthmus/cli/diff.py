"""`isthmus diff`: what differs between two snapshots."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from isthmus.cli.options import add_key_option
from isthmus.cli.restoring import SNAPSHOT_HELP, open_named
from isthmus.printable import printable, printable_json
from isthmus.snapshot.report import Difference, diff, excerpt
from isthmus.units import format_nbytes

HELP = "show what differs between two snapshots: memory, globals, tokens"
EXAMPLES = """\
  isthmus diff before.safetensors after.safetensors
  isthmus diff agents/monday agents/tuesday --json

exits with 0 where they are the same agent and 1 where they differ"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("before", metavar="BEFORE", help=SNAPSHOT_HELP)
    parser.add_argument("after", metavar="AFTER", help=SNAPSHOT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON, texts whole")
    add_key_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    found = diff(open_named(arguments.before, arguments), open_named(arguments.after, arguments))
    if arguments.json:
        print(printable_json(asdict(found), indent=1))
    else:
        print("\n".join(map(printable, _lines(found))))
    return 0 if found.same else 1


def _lines(it: Difference) -> list[str]:
    if it.same:
        return ["the same agent"]
    changed = format_nbytes(it.nbytes_changed)
    lines = [f"memory     {it.n_chunks_changed} chunks of 16 KiB differ ({changed})"]
    lines += [f"  {n:6} in {name}" for name, n in it.places.items()]
    lines += [f"host       {change}" for change in (*it.globals, *it.records)]
    for session in it.sessions:
        lines.append(
            f"session {session.handle}  {session.n_common_tokens} tokens in common, then "
            f"{session.n_tokens_before - session.n_common_tokens} and "
            f"{session.n_tokens_after - session.n_common_tokens}"
        )
        lines += [f"  - {line}" for line in excerpt(session.text_before).splitlines()]
        lines += [f"  + {line}" for line in excerpt(session.text_after).splitlines()]
    return lines
