"""`isthmus restore`: bring an agent back, and go on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from isthmus.cli.options import open_runtime
from isthmus.cli.restoring import SNAPSHOT_HELP, add_restore_options, restore
from isthmus.cli.snapshot import tell

HELP = "bring an agent back from a snapshot, and send it messages"
EXAMPLES = """\
  isthmus restore ada.safetensors --message "What is my name?"
  isthmus restore agents/ada --message "Go on." --save agents/ada
  isthmus restore ada.safetensors --model other.gguf --require replayed < message.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("snapshot", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    parser.add_argument(
        "--message",
        action="append",
        default=[],
        metavar="TEXT",
        help="repeat for more (default: standard input)",
    )
    parser.add_argument("--save", metavar="PATH", help="save it afterwards: a file, or STORE/NAME")
    add_restore_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    with open_runtime(arguments) as runtime:
        actor = restore(runtime, arguments.snapshot, arguments)
        for message in arguments.message or [sys.stdin.buffer.read()]:
            with actor.stream(message) as stream:
                for piece in stream:
                    print(piece, end="", flush=True)
            if not stream.reply.text.endswith("\n"):
                print()
        if arguments.save:
            folder, name = split_target(arguments.save)
            tell(actor.snapshot(folder, name=name))
    return 0


def split_target(text: str) -> tuple[Path, str | None]:
    """A file to write and no name, or a store and the name of a snapshot in it."""
    path = Path(text).expanduser()
    is_store = (path.parent / "snapshots").is_dir() and path.suffix != ".safetensors"
    return (path.parent, path.name) if is_store else (path, None)
