"""`isthmus new`: begin a guest of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from isthmus.cli.options import say
from isthmus.projects import (
    LANGUAGES,
    RECIPES,
    SCRIPT_LANGUAGES,
    SCRIPTS,
    TEMPLATES,
    new_from_recipe,
    new_project,
    new_script,
    new_script_from_recipe,
)

HELP = "begin a guest in a language of your choice"
EXAMPLES = """\
  isthmus new hello --lang rust
  isthmus new notes --lang c --template tool
  isthmus new helper --lang py
  isthmus new votes --cookbook votes
  isthmus build notes
  isthmus run notes/notes.wasm --model smollm2 --message "What is an isthmus?\""""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("name", metavar="NAME", help="the guest's name, or a path that ends in it")
    begin = parser.add_mutually_exclusive_group(required=True)
    begin.add_argument(
        "--lang",
        choices=(*LANGUAGES, *SCRIPT_LANGUAGES),
        help="c, cpp (C++), rust, zig, go, as (AssemblyScript), js (JavaScript) or py (Python)",
    )
    begin.add_argument(
        "--cookbook",
        choices=(*RECIPES, *SCRIPTS),
        metavar="RECIPE",
        help=f"a guest of docs/cookbook.md: {', '.join((*RECIPES, *SCRIPTS))}",
    )
    parser.add_argument(
        "--template",
        choices=TEMPLATES,
        default="hello",
        help="hello: talks with a model; tool: calls a tool and keeps state (default: hello)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    folder = Path(arguments.name)
    if arguments.cookbook in SCRIPTS:
        return _tell_of_script(new_script_from_recipe(folder, arguments.cookbook))
    if arguments.lang in SCRIPT_LANGUAGES:
        return _tell_of_script(new_script(folder, arguments.lang, arguments.template))
    if arguments.cookbook:
        project = new_from_recipe(folder, arguments.cookbook)
    else:
        project = new_project(folder, arguments.lang, arguments.template)
    print(project.folder)
    if project.lang == "as":
        say(f"npm install --prefix {project.folder} fetches its compiler")
    say(f"isthmus build {project.folder} compiles it")
    return 0


def _tell_of_script(script: Path) -> int:
    print(script.parent.absolute())
    lang = script.suffix.removeprefix(".")
    say(f"isthmus run {script} runs it, once isthmus pull {lang} has made the interpreter")
    return 0
