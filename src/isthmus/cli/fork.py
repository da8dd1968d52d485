"""`isthmus fork`: one agent, several ways to go on."""

from __future__ import annotations

import argparse

from isthmus.cli.options import open_runtime
from isthmus.cli.restoring import SNAPSHOT_HELP, add_restore_options, restore
from isthmus.cli.snapshot import tell
from isthmus.cli.tools import add_tool_options, open_tools
from isthmus.snapshot import Store

HELP = "send each message to a fork of an agent of its own"
EXAMPLES = """\
  isthmus fork ada.safetensors --message "Answer in French." --message "Answer in Greek."
  isthmus fork ada.safetensors --message "A?" --message "B?" --out branches/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("snapshot", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    parser.add_argument(
        "--message",
        action="append",
        required=True,
        metavar="TEXT",
        help="a message for a fork of its own; repeat for more",
    )
    parser.add_argument("--out", metavar="STORE", help="save the forks there, as fork-1, fork-2, …")
    add_restore_options(parser)
    add_tool_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    store = Store(arguments.out) if arguments.out else None
    with open_tools(arguments) as box, open_runtime(arguments) as runtime:
        actor = restore(runtime, arguments.snapshot, arguments, box.tools)
        children = actor.fork(len(arguments.message))
        for number, (child, message) in enumerate(zip(children, arguments.message, strict=True), 1):
            print(f"--- {number}: {message}")
            print(child.send(message).text)
            if store is not None:
                tell(child.snapshot(store, name=f"fork-{number}"))
    return 0
