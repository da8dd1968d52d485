"""`isthmus run`: one guest, one message, its answer."""

from __future__ import annotations

import argparse
import json
import sys

from isthmus.cli.options import (
    add_device_options,
    add_guest_options,
    add_model_options,
    limits,
    open_models,
    open_runtime,
)

HELP = "run a guest on a message and print its answer"
EXAMPLES = """\
  isthmus run chat --model smollm2 --message "What is an isthmus?"
  isthmus run summarise --model smollm2 < article.txt
  isthmus run ./agent.wasm --model default=model.gguf --arg temperature=0.2 --deadline 30
  isthmus run gemm --message "rows=4096 k=64 n=64" --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "guest", metavar="GUEST", help="a .wasm file, or chat, summarise, gemm, bench"
    )
    parser.add_argument("--message", metavar="TEXT", help="the message (default: standard input)")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    add_model_options(parser)
    add_guest_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    with open_runtime(arguments) as runtime:
        guest = runtime.load_guest(arguments.guest)
        actor = runtime.spawn(
            guest,
            models=open_models(runtime, arguments),
            args=arguments.arg,
            limits=limits(arguments),
            seed=arguments.seed,
        )
        with actor.stream(_message(arguments)) as stream:
            streamed = False
            for piece in stream:
                if not arguments.json:
                    print(piece, end="", flush=True)
                    streamed = True
        reply = stream.reply
        if arguments.json:
            report = {
                "reply": reply.text,
                "n_tokens": reply.n_tokens,
                "seconds": reply.seconds,
                "seed": actor.seed,
                "counters": runtime.counters().snapshot(),
            }
            print(json.dumps(report, ensure_ascii=False))
        elif not streamed:
            sys.stdout.buffer.write(reply.data)
        if not arguments.json and sys.stdout.isatty():
            print()
    return 0


def _message(arguments: argparse.Namespace) -> str | bytes:
    if arguments.message is not None:
        return str(arguments.message)
    if sys.stdin.isatty():
        print("Type the message, then Ctrl-D:", file=sys.stderr)
    return sys.stdin.buffer.read()
