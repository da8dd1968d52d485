"""`isthmus show`: what a model or a snapshot is."""

from __future__ import annotations

import argparse
import importlib

from isthmus.snapshot.store import resolve

HELP = "show what a model or a snapshot is"
EXAMPLES = """\
  isthmus show smollm2
  isthmus show ada.safetensors
  isthmus show agents/ada --json

inspect-model and inspect are the same, with more options."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "what", metavar="WHAT", help="a model, as for run --model; a snapshot's file; or STORE/NAME"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    path = resolve(arguments.what)
    is_snapshot = path.suffix == ".safetensors" and path.is_file()
    name = "inspect_command" if is_snapshot else "inspect_model"
    module = importlib.import_module(f"isthmus.cli.{name}")
    parser = argparse.ArgumentParser(prog=arguments.parser.prog)
    module.add_arguments(parser)
    options = ["--json"] if arguments.json else []
    return int(module.run(parser.parse_args([*options, "--", arguments.what])))
