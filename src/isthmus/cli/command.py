"""A command under `isthmus run`: a guest with `_start`, as a program among others in a shell.

Standard input and output are streamed, byte for byte unless a terminal shows them; standard error
is the guest's own lines; the exit status is the guest's, 130 after Ctrl-C, and 141 if whoever read
the output has had enough.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from isthmus.actor import Actor
from isthmus.actor.content import Content
from isthmus.cli.options import guest_args, limits, open_models, say
from isthmus.cli.tools import undoing
from isthmus.errors import GuestExited, SettingsError
from isthmus.printable import printable
from isthmus.runtime import Runtime
from isthmus.tools import Tool
from isthmus.wasm import Guest

_TARGETS = ("CPU", "GPU", "TPU", "AUTO")
_BROKEN_PIPE = 128 + signal.SIGPIPE
_MAX_STATUS = 125
"""The largest exit status that a guest chooses; a shell means something by larger ones."""


def add_command_options(parser: argparse.ArgumentParser) -> None:
    """`--env` and `--nn-preload`."""
    group = parser.add_argument_group(
        "command", "for a guest with _start; what comes after -- are its arguments"
    )
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of its environment, which is empty otherwise; repeat for more",
    )
    group.add_argument(
        "--nn-preload",
        action="append",
        default=[],
        metavar="NAME:GGML:TARGET:PATH",
        help="as WasmEdge has it: the same as --model NAME=PATH; TARGET is CPU, GPU, TPU or AUTO, "
        "and makes no difference",
    )


def split_argv(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is for `isthmus run`, and after `--` what is for its guest; all else stays whole."""
    words = list(argv)
    if words[:1] != ["run"] or "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def preloaded(texts: Sequence[str]) -> list[str]:
    """NAME=PATH of each NAME:GGML:TARGET:PATH."""
    return [_preloaded(it) for it in texts]


def _preloaded(text: str) -> str:
    name, encoding, target, path = (*text.split(":", 3), "", "", "")[:4]
    if encoding.upper() != "GGML" or target.upper() not in _TARGETS or not (name and path):
        raise SettingsError(
            f"--nn-preload {text}: give NAME:GGML:TARGET:PATH, such as default:GGML:AUTO:model.gguf"
        )
    return f"{name}={path}"


def variables(texts: Sequence[str]) -> dict[str, str]:
    """The environment that `NAME=VALUE` make; the last one of a name counts. Raises SettingsError
    for a text of another form."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise SettingsError(f"--env {text}: give NAME=VALUE")
        found[name] = value
    return found


def spawn_command(
    runtime: Runtime, guest: Guest, arguments: argparse.Namespace, tools: Mapping[str, Tool]
) -> Actor:
    """The actor that the options ask for."""
    return runtime.spawn(
        guest,
        models=open_models(runtime, arguments),
        tools=tools,
        args=guest_args(arguments),
        argv=arguments.argv,
        environ=variables(arguments.env),
        limits=undoing(limits(arguments), tools),
        seed=arguments.seed,
    )


def run_command(actor: Actor, message: Content) -> int:
    """Streams one run of it; the exit status."""
    try:
        with _own_lines(), actor.stream(message, errors="surrogateescape") as stream:
            for piece in stream:
                _write(piece)
    except GuestExited as exited:
        return exit_status(exited)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    for limit in stream.reply.limits_reached:
        say(f"isthmus: the guest finished early: it reached its limit of {limit}")
    return 0


def exit_status(exited: GuestExited) -> int:
    """What the process exits with after its guest did."""
    return min(exited.status, _MAX_STATUS)


def standard_input(arguments: argparse.Namespace) -> Content:
    """What the guest reads: the option, or this process's own standard input."""
    if arguments.message is not None:
        return str(arguments.message)
    return b"" if sys.stdin is None else sys.stdin.buffer


def _write(piece: str) -> None:
    """Text for a terminal, and for anything else the bytes as the guest wrote them."""
    if sys.stdout.isatty():
        print(piece, end="", flush=True)
        return
    sys.stdout.buffer.write(piece.encode(errors="surrogateescape"))
    sys.stdout.buffer.flush()


class _Lines(logging.Handler):
    """Writes what a guest says to standard error, without saying who said it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        text = record.getMessage()
        print(printable(text) if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


@contextmanager
def _own_lines() -> Iterator[None]:
    """While open, the guest's log is its own lines on standard error."""
    log, lines = logging.getLogger("isthmus.guest"), _Lines()
    log.addHandler(lines)
    log.propagate = False
    try:
        yield
    finally:
        log.propagate = True
        log.removeHandler(lines)
