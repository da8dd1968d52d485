"""`isthmus snapshot`: run a guest on messages, and save the agent."""

from __future__ import annotations

import argparse

from isthmus.cli.options import (
    add_device_options,
    add_guest_options,
    add_key_option,
    add_model_options,
    open_models,
    open_runtime,
    say,
    sized_guest,
)
from isthmus.cli.restoring import target
from isthmus.cli.tools import add_tool_options, open_tools, undoing
from isthmus.snapshot import Saved
from isthmus.units import format_nbytes

HELP = "run a guest on messages and save the agent, whole"
EXAMPLES = """\
  isthmus snapshot chat --model smollm2 --message "My name is Ada." --out ada.safetensors
  isthmus snapshot chat --model smollm2 --message "Hello" --out agents/ --name ada
  isthmus restore ada.safetensors --message "What is my name?" """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("guest", metavar="GUEST", help="a .wasm file, or a bundled guest")
    parser.add_argument(
        "--message", action="append", default=[], metavar="TEXT", help="a message; repeat for more"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help="a file, STORE/NAME, or a store: a folder, made where it ends with a slash",
    )
    parser.add_argument("--name", metavar="NAME", help="name of the snapshot in a store")
    add_key_option(parser)
    add_model_options(parser)
    add_guest_options(parser)
    add_tool_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    place, name = target(arguments.out, arguments.name)
    with open_tools(arguments) as box, open_runtime(arguments) as runtime:
        models = open_models(runtime, arguments)
        guest, allowed = sized_guest(arguments, models, arguments.arg)
        actor = runtime.spawn(
            guest,
            models=models,
            tools=box.tools,
            args=arguments.arg,
            limits=undoing(allowed, box.tools),
            seed=arguments.seed,
        )
        for message in arguments.message:
            print(actor.send(message).text)
        tell(actor.snapshot(place, name=name))
    return 0


def tell(saved: Saved) -> None:
    """Says what was written."""
    say(f"Saved {saved.path}: {format_nbytes(saved.nbytes_written)} written, id {saved.id[:16]}")
