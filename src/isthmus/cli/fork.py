"""`isthmus fork`: one agent, several ways to go on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from isthmus.actor import Actor, Stream
from isthmus.cli.options import open_runtime
from isthmus.cli.restoring import SNAPSHOT_HELP, add_restore_options, restore
from isthmus.cli.snapshot import tell
from isthmus.cli.tools import add_tool_options, open_tools
from isthmus.errors import SettingsError
from isthmus.snapshot import Store

HELP = "send each message to a fork of an agent of its own, or end an answer in several ways"
EXAMPLES = """\
  isthmus fork ada.safetensors --message "Answer in French." --message "Answer in Greek."
  isthmus fork ada.safetensors --message "A?" --message "B?" --out branches/
  isthmus fork half.safetensors --seed 1 --seed 2   (of an answer in whose middle it is)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("snapshot", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    parser.add_argument(
        "--message",
        action="append",
        default=[],
        metavar="TEXT",
        help="a message for a fork of its own; repeat for more",
    )
    parser.add_argument(
        "--seed",
        action="append",
        default=[],
        type=int,
        metavar="N",
        help="of an agent that is in the middle of an answer: the rest, sampled from this seed, in "
        "a fork of its own; repeat for more",
    )
    parser.add_argument("--out", metavar="STORE", help="save the forks there, as fork-1, fork-2, …")
    add_restore_options(parser)
    add_tool_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    store = Store(arguments.out) if arguments.out else None
    with open_tools(arguments) as box, open_runtime(arguments) as runtime:
        actor = restore(runtime, arguments.snapshot, arguments, box.tools)
        _require_fitting(actor, arguments)
        for number, (said, child, stream) in enumerate(_branches(actor, arguments), 1):
            print(f"--- {number}: {said}")
            with stream:
                for _ in stream:
                    pass
            print(stream.reply.text)
            if store is not None:
                tell(child.snapshot(store, name=f"fork-{number}"))
    return 0


def _require_fitting(actor: Actor, arguments: argparse.Namespace) -> None:
    """SettingsError unless there are seeds for the rest of an answer, or else messages."""
    if actor.is_paused and (arguments.message or not arguments.seed):
        raise SettingsError("it is in the middle of an answer: give --seed for each way to end it")
    if not actor.is_paused and (arguments.seed or not arguments.message):
        raise SettingsError("it is in the middle of no answer: give --message for each fork")


def _branches(actor: Actor, arguments: argparse.Namespace) -> Iterator[tuple[str, Actor, Stream]]:
    """What each fork is told, the fork, and its answer."""
    messages = arguments.message
    children = actor.fork(len(messages)) if messages else []
    for message, child in zip(messages, children, strict=True):
        yield message, child, child.stream(message)
    options = [it for it in actor.args if not it.startswith("seed=")]
    for seed in arguments.seed:
        (child,) = actor.fork(args=[*options, f"seed={seed}"])
        yield f"seed {seed}", child, child.resume()
