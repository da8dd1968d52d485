"""`isthmus build`: compile a guest of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from isthmus.cli.options import say
from isthmus.projects import build, open_project
from isthmus.projects.project import update_sdk
from isthmus.units import format_nbytes

HELP = "compile a guest that isthmus new began, and print the module's path"
EXAMPLES = """\
  isthmus build hello
  isthmus build --debug          (the folder that you are in; traps tell file and line)
  isthmus build hello --resumable   (its answers can be saved between two tokens)
  isthmus build hello --update-sdk"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_project_argument(parser)
    parser.add_argument(
        "--resumable",
        action="store_true",
        help="have answers saved, forked and evicted between two tokens; needs Binaryen's wasm-opt "
        "(npm install binaryen)",
    )
    parser.add_argument(
        "--update-sdk",
        action="store_true",
        help="first replace the SDK in the folder isthmus/ by the one of this Isthmus",
    )


def add_project_argument(parser: argparse.ArgumentParser) -> None:
    """What is compiled, and how."""
    parser.add_argument(
        "folder", nargs="?", default=".", metavar="DIR", help="the guest's folder (default: .)"
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="keep what a debugger needs, so that a trap tells file and line; larger and slower",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    project = open_project(Path(arguments.folder))
    if arguments.update_sdk:
        update_sdk(project)
    path = build(project, debug=arguments.debug, resumable=arguments.resumable)
    print(path)
    say(f"{format_nbytes(path.stat().st_size)}")
    return 0
