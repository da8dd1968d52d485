"""`isthmus chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from isthmus.actor import Actor
from isthmus.cli.options import (
    add_device_options,
    add_guest_options,
    add_model_options,
    fetched_model,
    limits,
    open_models,
    open_runtime,
    say,
)
from isthmus.config import Environment
from isthmus.errors import ActorClosed, Cancelled, ContextFull, GuestError

HELP = "talk with a model, through the bundled chat guest or one of your own"
EXAMPLES = """\
  isthmus chat
  isthmus chat --model model.gguf --system "You answer in one sentence."
  isthmus chat --model smollm2 --arg temperature=0 --arg n_ctx=4096

while it runs:
  Ctrl-C stops the answer, Ctrl-D or /exit ends the conversation, /new begins another"""
_HISTORY_LINES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("--guest", default="chat", metavar="GUEST", help="(default: chat)")
    parser.add_argument("--system", metavar="TEXT", help="how the model is to behave")
    add_model_options(parser)
    add_guest_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    if not arguments.model:
        arguments.model = [str(fetched_model("smollm2"))]
    guest_options = list(arguments.arg)
    if arguments.system:
        guest_options.append(f"system={arguments.system}")
    with open_runtime(arguments) as runtime, _history(Environment.read().cache / "history"):
        models = open_models(runtime, arguments)
        say(f"{next(iter(models.values())).name}. Ctrl-C stops an answer, Ctrl-D ends.")

        def spawn() -> Actor:
            return runtime.spawn(
                arguments.guest,
                models=models,
                args=guest_options,
                limits=limits(arguments),
                seed=arguments.seed,
            )

        actor = spawn()
        for message in _messages():
            if message == "/new":
                actor.close()
                actor = spawn()
            elif message:
                _answer(actor, message)
                if actor.state == "closed":
                    say("The conversation is over; a new one begins.")
                    actor = spawn()
    return 0


def _messages() -> Iterator[str]:
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


def _answer(actor: Actor, message: str) -> None:
    """Prints one answer as it comes; Ctrl-C stops the answer and not the program."""
    stream = actor.stream(message)
    try:
        with stream:
            for piece in stream:
                print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print(" [stopped]")
    except ContextFull as error:
        say(f"\n{error} (/new)")
    except (GuestError, Cancelled, ActorClosed) as error:
        say(f"\n{error}")


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
