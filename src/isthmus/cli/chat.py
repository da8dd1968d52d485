"""`isthmus chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Mapping

from isthmus.actor import Actor
from isthmus.cli.naming import fetched_model
from isthmus.cli.options import (
    add_device_options,
    add_grammar_options,
    add_guest_options,
    add_image_option,
    add_key_option,
    add_model_options,
    guest_args,
    open_models,
    open_runtime,
    read_files,
    say,
    sized_guest,
)
from isthmus.cli.restoring import LEVELS, restore, target
from isthmus.cli.talk import Begin, Resumed, Talk
from isthmus.cli.tools import add_tool_options, open_tools, undoing
from isthmus.cli.typed import history, typed_messages
from isthmus.config import Environment
from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.snapshot.store import resolve
from isthmus.tools import Tool

HELP = "talk with a model, through the bundled chat guest or one of your own"
EXAMPLES = """\
  isthmus chat
  isthmus chat --model model.gguf --system "You answer in one sentence."
  isthmus chat --model smollm2 --arg temperature=0 --arg n_ctx=4096
  isthmus chat --resume ada.safetensors
  isthmus chat --model gemma.gguf --mmproj mmproj.gguf --image cat.png
  isthmus chat --model qwen.gguf --tool weather=weather:forecast --fetch '*.wikipedia.org'

while it runs:
  Ctrl-C stops the answer, Ctrl-D or /exit ends the conversation, /new begins another, /help lists
  what else there is: /system, /image, /save, /load, /fork, /back. Three quotes begin and end a
  message of several lines, a backslash at the end of a line goes on in the next. With --resume,
  Ctrl-Z leaves in the middle of an answer, and the next --resume goes on there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "--guest",
        default="chat",
        metavar="GUEST",
        help="a .wasm file, or a bundled guest (default: chat)",
    )
    parser.add_argument("--system", metavar="TEXT", help="how the model is to behave")
    parser.add_argument(
        "--resume",
        metavar="SNAPSHOT",
        help="go on with the conversation in this file or STORE/NAME, which is made if it is not "
        "there, and save it after each answer; Ctrl-Z leaves in the middle of one",
    )
    parser.add_argument(
        "--require",
        default="state-exact",
        choices=LEVELS,
        help="with --resume: refuse what is less exact (default: state-exact)",
    )
    add_image_option(parser)
    add_key_option(parser)
    add_model_options(parser)
    add_guest_options(parser)
    add_grammar_options(parser)
    add_tool_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    resumed = None
    if arguments.resume:
        place, name = target(arguments.resume)
        resumed = Resumed(resolve(arguments.resume), place, name)
    with (
        open_tools(arguments) as box,
        open_runtime(arguments) as runtime,
        history(Environment.read().cache / "history"),
    ):
        talk = Talk(runtime, arguments, _beginning(runtime, arguments, box.tools), resumed)
        talk.tools, talk.files = box.tools, read_files(arguments.image)
        is_there = resumed is not None and resumed.file.exists()
        talk.start(_resume(runtime, arguments, box.tools) if is_there else None)
        for text in () if talk.is_over else typed_messages():
            talk.hear(text)
            if talk.is_over:
                break
        talk.end()
    return 0


def _resume(runtime: Runtime, arguments: argparse.Namespace, tools: Mapping[str, Tool]) -> Actor:
    """The saved conversation, with the guest and the options that it began with."""
    given = {
        "--guest": arguments.guest != "chat",
        "--system": arguments.system,
        "--arg": arguments.arg,
        "--json-schema, --grammar or --regex": len(guest_args(arguments)) > len(arguments.arg),
        "--seed": arguments.seed is not None,
        "--deadline": arguments.deadline is not None,
        "--tokens": arguments.tokens is not None,
        "--fuel": arguments.fuel is not None,
        "--on-failure": arguments.on_failure != "keep",
    }
    ignored = [option for option, value in given.items() if value]
    if ignored:
        say(
            f"The conversation goes on as it began: {', '.join(ignored)} not used (/new begins one)"
        )
    arguments.verify = "full"
    return restore(runtime, arguments.resume, arguments, tools)


def _beginning(runtime: Runtime, arguments: argparse.Namespace, tools: Mapping[str, Tool]) -> Begin:
    """What begins a new conversation; its models are opened when they are first needed."""

    @functools.cache
    def models() -> dict[str, Model]:
        chosen = copy.copy(arguments)
        chosen.model = arguments.model or [str(fetched_model("smollm2"))]
        opened = open_models(runtime, chosen)
        say(f"{next(iter(opened.values())).name}. Ctrl-C stops an answer, /help lists more.")
        return opened

    def begin(system: str | None) -> Actor:
        if runtime.load_guest(arguments.guest).is_command:
            raise SettingsError(
                f"{arguments.guest} is a command and keeps no conversation between two messages: "
                f"talk with it by isthmus run {arguments.guest}, on its standard input"
            )
        options = guest_args(arguments) + ([f"system={system}"] if system else [])
        guest, allowed = sized_guest(arguments, models(), options)
        return runtime.spawn(
            guest,
            models=models(),
            tools=tools,
            args=options,
            limits=undoing(allowed, tools),
            seed=arguments.seed,
        )

    return begin
