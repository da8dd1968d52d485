"""`isthmus restore`: bring an agent back, and go on."""

from __future__ import annotations

import argparse
import sys

from isthmus.actor import Stream
from isthmus.cli.options import open_runtime
from isthmus.cli.restoring import SNAPSHOT_HELP, add_restore_options, restore, target
from isthmus.cli.snapshot import tell
from isthmus.cli.tools import add_tool_options, open_tools

HELP = "bring an agent back from a snapshot, end its answer if it was in one, and send it messages"
EXAMPLES = """\
  isthmus restore ada.safetensors --message "What is my name?"
  isthmus restore agents/ada --message "Go on." --save agents/ada
  isthmus restore agents/ada --save ada.safetensors
  isthmus restore ada.safetensors --model other.gguf --require replayed < message.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("snapshot", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    parser.add_argument(
        "--message",
        action="append",
        default=[],
        metavar="TEXT",
        help="a message; repeat for more (default: one from standard input, or none with --save or "
        "after the rest of an answer)",
    )
    parser.add_argument("--save", metavar="PATH", help="save it afterwards: a file, or STORE/NAME")
    add_restore_options(parser)
    add_tool_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    place, name = target(arguments.save) if arguments.save else (None, None)
    messages = arguments.message
    with open_tools(arguments) as box, open_runtime(arguments) as runtime:
        actor = restore(runtime, arguments.snapshot, arguments, box.tools)
        if actor.is_paused:
            _print(actor.resume())
        elif not messages and place is None:
            messages = [sys.stdin.buffer.read()]
        for message in messages:
            _print(actor.stream(message))
        if place is not None:
            tell(actor.snapshot(place, name=name))
    return 0


def _print(stream: Stream) -> None:
    streamed = False
    with stream:
        for piece in stream:
            print(piece, end="", flush=True)
            streamed = True
    text = "" if streamed else stream.reply.text
    print(text, end="" if text.endswith("\n") else "\n")
