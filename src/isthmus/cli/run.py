"""`isthmus run`: one guest, one message, its answer."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from isthmus.actor import Actor, Reply
from isthmus.actor.message import with_files
from isthmus.cli.options import (
    add_device_options,
    add_grammar_options,
    add_guest_options,
    add_image_option,
    add_model_options,
    guest_args,
    open_models,
    open_runtime,
    read_files,
    say,
    sized_guest,
)
from isthmus.errors import IsthmusError
from isthmus.printable import printable_json
from isthmus.runtime import Runtime

HELP = "run a guest on a message and print its answer"
EXAMPLES = """\
  isthmus run chat --model smollm2 --message "What is an isthmus?"
  isthmus run chat --model smollm2 --json-schema person.json --message "Invent a person."
  isthmus run chat --model gemma.gguf --mmproj mmproj.gguf --image cat.png --message "What is it?"
  isthmus run summarise --model smollm2 < article.txt
  isthmus run chat --model smollm2 --lora poet.gguf:0.8 --message "What is an isthmus?"
  isthmus run ./agent.wasm --model default=model.gguf --arg temperature=0.2 --deadline 30
  isthmus run speculate --model default=large.gguf --model draft=small.gguf --message "Hello"
  isthmus run gemm --message "rows=4096 k=64 n=64" --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "guest",
        metavar="GUEST",
        help="a .wasm file, or chat, summarise, speculate, embed, gemm, decode, bench (see "
        "--memory64)",
    )
    parser.add_argument("--message", metavar="TEXT", help="the message (default: standard input)")
    add_image_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    add_model_options(parser)
    add_guest_options(parser)
    add_grammar_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    with open_runtime(arguments) as runtime:
        runtime.load_guest(arguments.guest)  # before models are opened
        models, args = open_models(runtime, arguments), guest_args(arguments)
        guest, allowed = sized_guest(arguments, models, args)
        actor = runtime.spawn(guest, models=models, args=args, limits=allowed, seed=arguments.seed)
        pieces: list[str] = []
        try:
            with actor.stream(_message(arguments)) as stream:
                for piece in stream:
                    pieces.append(piece)
                    if not arguments.json:
                        print(piece, end="", flush=True)
            reply = stream.reply
        except IsthmusError as error:
            if arguments.json:
                _print_report(runtime, actor, "".join(pieces), failed=error)
            elif pieces:
                print(flush=True)  # the error is to begin a line
            raise
        if arguments.json:
            _print_report(runtime, actor, reply.text, reply)
        elif not pieces:
            _print_whole(reply)
        if not arguments.json and sys.stdout.isatty():
            print()
        for limit in reply.limits_reached:
            say(f"isthmus: the guest finished early: it reached its limit of {limit}")
    return 0


def _print_whole(reply: Reply) -> None:
    """Text for a terminal, and for anything else the bytes as the guest gave them."""
    if sys.stdout.isatty():
        print(reply.text, end="")
    else:
        sys.stdout.buffer.write(reply.data)


def _print_report(
    runtime: Runtime,
    actor: Actor,
    text: str,
    reply: Reply | None = None,
    failed: IsthmusError | None = None,
) -> None:
    report: dict[str, object] = {"reply": text, "seed": actor.seed}
    if reply is not None:
        report["n_tokens"], report["seconds"] = reply.n_tokens, reply.seconds
        report["limits_reached"] = reply.limits_reached
    if failed is not None:
        report["error"] = {"type": type(failed).__name__, "message": str(failed)}
    report["usage"] = asdict(actor.usage)
    report["counters"] = runtime.counters().snapshot()
    print(printable_json(report), flush=True)


def _message(arguments: argparse.Namespace) -> str | bytes:
    files = read_files(arguments.image)
    text = _text(arguments)
    return with_files(text, *files) if files else text


def _text(arguments: argparse.Namespace) -> str | bytes:
    if arguments.message is not None:
        return str(arguments.message)
    if sys.stdin.isatty():
        print("Type the message, then Ctrl-D:", file=sys.stderr)
    return sys.stdin.buffer.read()
