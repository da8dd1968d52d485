"""`isthmus chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from isthmus.actor import Actor
from isthmus.actor.message import with_files
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
from isthmus.cli.snapshot import tell
from isthmus.cli.tools import add_tool_options, open_tools
from isthmus.config import Environment
from isthmus.errors import ActorClosed, Cancelled, ContextFull, GuestError, SettingsError
from isthmus.model import Model
from isthmus.printable import printable
from isthmus.runtime import Runtime
from isthmus.snapshot import open_snapshot
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
  Ctrl-C stops the answer, Ctrl-D or /exit ends the conversation, /new begins another,
  /image FILE takes a picture or a sound along with the next message"""
_HISTORY_LINES = 1000


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
        "there, and save it after each answer",
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
    place, name = target(arguments.resume) if arguments.resume else (None, None)
    with (
        open_tools(arguments) as box,
        open_runtime(arguments) as runtime,
        _history(Environment.read().cache / "history"),
    ):
        begin = _beginning(runtime, arguments, box.tools)
        file = resolve(arguments.resume) if arguments.resume else None
        is_there = file is not None and file.exists()
        actor = _resume(runtime, arguments, box.tools) if is_there else begin()
        for message in _with_files(typed_messages(), read_files(arguments.image)):
            if message == "/new":
                actor.close()
            elif message:
                print_answer(actor, message)
            if actor.state == "closed":
                say("A new conversation begins.")
                if file is not None:
                    _set_aside(file)
                actor = begin()
            elif message and place is not None:
                actor.snapshot(place, name=name)
        if place is not None and actor.n_messages:
            tell(actor.snapshot(place, name=name))
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


def _set_aside(file: Path) -> None:
    """Keeps the conversation that a new one would replace."""
    if file.exists():
        kept = file.with_name(f"{file.stem}-{open_snapshot(file).id[:8]}{file.suffix}")
        file.rename(kept)
        say(f"The one before is kept as {kept}")


def _beginning(
    runtime: Runtime, arguments: argparse.Namespace, tools: Mapping[str, Tool]
) -> Callable[[], Actor]:
    """What begins a new conversation; its models are opened when they are first needed."""
    options = guest_args(arguments)
    if arguments.system:
        options.append(f"system={arguments.system}")

    @functools.cache
    def models() -> dict[str, Model]:
        chosen = copy.copy(arguments)
        chosen.model = arguments.model or [str(fetched_model("smollm2"))]
        opened = open_models(runtime, chosen)
        say(f"{next(iter(opened.values())).name}. Ctrl-C stops an answer, Ctrl-D ends.")
        return opened

    def begin() -> Actor:
        if runtime.load_guest(arguments.guest).is_command:
            raise SettingsError(
                f"{arguments.guest} is a command and keeps no conversation between two messages: "
                f"talk with it by isthmus run {arguments.guest}, on its standard input"
            )
        guest, allowed = sized_guest(arguments, models(), options)
        return runtime.spawn(
            guest,
            models=models(),
            tools=tools,
            args=options,
            limits=allowed,
            seed=arguments.seed,
        )

    return begin


def typed_messages() -> Iterator[str]:
    """What the user types, until Ctrl-D or /exit."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            if prompt:
                print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit ends)")
            continue
        if line == "/exit":
            return
        yield line


def _with_files(messages: Iterator[str], files: list[bytes]) -> Iterator[str | bytes]:
    """The messages, each with the files that were named before it; `files` go with the first."""
    for message in messages:
        command, _, name = message.partition(" ")
        if command == "/image":
            try:
                files += read_files([name.strip()])
                say("It goes with the next message.")
            except SettingsError as error:
                say(f"{printable(str(error))} (/image FILE)")
        elif files and message and message != "/new":
            yield with_files(message, *files)
            files = []
        else:
            yield message


def print_answer(actor: Actor, message: str | bytes) -> None:
    """Prints one answer as it comes; Ctrl-C stops the answer and not the program."""
    stream = actor.stream(message)
    emitted = ""
    try:
        with stream:
            for piece in stream:
                print(piece, end="", flush=True)
                emitted += piece
        reply = stream.reply
        if reply.text != emitted:  # the guest's reply is in place of all that it emitted
            print(f"\n{reply.text}" if emitted else reply.text, end="")
        print()
        if reply.tool_calls:
            say(f"[{', '.join(it.name for it in reply.tool_calls)}]")
    except KeyboardInterrupt:
        print(" [stopped]")
    except ContextFull as error:
        say(f"\n{printable(str(error))} (/new)")
    except (GuestError, Cancelled, ActorClosed) as error:
        say(f"\n{printable(str(error))}")


@contextlib.contextmanager
def _history(path: Path) -> Iterator[None]:
    """Line editing, and what was typed in earlier conversations."""
    try:
        import readline  # noqa: PLC0415 - not everywhere
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
