"""`isthmus run`: one guest, one message, its answer."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from isthmus.actor import Actor, Reply
from isthmus.actor.content import with_files
from isthmus.cli.command import (
    add_command_options,
    exit_status,
    preloaded,
    run_command,
    spawn_command,
    standard_input,
)
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
from isthmus.cli.tools import add_tool_options, open_tools, undoing
from isthmus.errors import GuestExited, GuestInvalid, IsthmusError, SettingsError
from isthmus.printable import printable, printable_json
from isthmus.runtime import Runtime
from isthmus.runtime.sources import read_guest
from isthmus.wasm.card import read_card

HELP = "run a guest on a message and print its answer"
EXAMPLES = """\
  isthmus run chat --model smollm2 --message "What is an isthmus?"
  isthmus run chat --model smollm2 --json-schema person.json --message "Invent a person."
  isthmus run chat --model gemma.gguf --mmproj mmproj.gguf --image cat.png --message "What is it?"
  isthmus run summarise --model smollm2 < article.txt
  isthmus run chat --model smollm2 --lora poet.gguf:0.8 --message "What is an isthmus?"
  isthmus run ./agent.wasm --model default=model.gguf --arg temperature=0.2 --deadline 30
  isthmus run speculate --model default=large.gguf --model draft=small.gguf --message "Hello"
  isthmus run chat --model "fake:a scripted answer" --message Hello
  isthmus run chat --help-guest
  isthmus run agent.py --model smollm2 --message "Hello"
  isthmus run chat --model smollm2 --tool "today=date -I" --arg tools=required --message "Hi"
  isthmus run gemm --message "rows=4096 k=64 n=64" --json
  sort names.txt | isthmus run ./count.wasm --env LANG=C -- --unique
  isthmus run llama-chat.wasm --model default=smollm2 -- default"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "guest",
        metavar="GUEST",
        help="a .wasm file, a .js or .py script, or chat, summarise, speculate, embed, gemm, "
        "decode, bench (see --memory64); a command, with _start, is run as a program in a shell",
    )
    parser.add_argument(
        "--message",
        metavar="TEXT",
        help="the message, a command's standard input (default: standard input)",
    )
    parser.add_argument(
        "--help-guest", action="store_true", help="list what the guest does and its options"
    )
    add_image_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    add_model_options(parser)
    add_guest_options(parser)
    add_command_options(parser)
    add_grammar_options(parser)
    add_tool_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it. Raises SettingsError for arguments of a command if the guest is none."""
    if arguments.help_guest:
        _print_card(arguments.guest)
        return 0
    arguments.model += preloaded(arguments.nn_preload)
    with open_tools(arguments) as box, open_runtime(arguments) as runtime:
        guest = runtime.load_guest(arguments.guest)  # before models are opened
        if guest.is_command:
            return _run_command(
                runtime, spawn_command(runtime, guest, arguments, box.tools), arguments
            )
        if arguments.argv or arguments.env:
            raise SettingsError(
                f"{guest.name} is no command: arguments after -- and --env are for guests with "
                "_start; give it options by --arg"
            )
        models, args = open_models(runtime, arguments), guest_args(arguments)
        name, allowed = sized_guest(arguments, models, args)
        actor = runtime.spawn(
            name,
            models=models,
            tools=box.tools,
            args=args,
            limits=undoing(allowed, box.tools),
            seed=arguments.seed,
        )
        _ask(runtime, actor, arguments)
    return 0


def _run_command(runtime: Runtime, actor: Actor, arguments: argparse.Namespace) -> int:
    """Runs a command; its exit status."""
    message = standard_input(arguments)
    if not arguments.json:
        return run_command(actor, message)
    try:
        reply = actor.send(message)
    except GuestExited as exited:
        _print_report(runtime, actor, exited.reply.text, exited.reply, failed=exited)
        return exit_status(exited)
    except IsthmusError as error:
        _print_report(runtime, actor, "", failed=error)
        raise
    _print_report(runtime, actor, reply.text, reply)
    return 0


def _ask(runtime: Runtime, actor: Actor, arguments: argparse.Namespace) -> None:
    """Sends the message, and prints the answer as it comes."""
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


def _print_card(guest: str) -> None:
    """What a guest says of itself. Nothing of it is compiled."""
    wasm, name = read_guest(guest)
    try:
        card = read_card(wasm)
    except GuestInvalid as error:
        raise GuestInvalid(f"{name} {error}") from None
    if card is None:
        raise GuestInvalid(
            f"{name} does not say what it takes: isthmus build writes that into a guest"
        )
    print(f"{name}: {card.about}" if card.about else name)
    rows = [(f"  --arg {it.name}=", it.help, it.default) for it in card.options]
    width = max((len(given) for given, _, _ in rows), default=0)
    for given, text, default in rows:
        usual = f" (default: {default})" if default else ""
        print(printable(f"{given:{width}}  {text}{usual}"))


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
        report["tool_calls"] = [asdict(it) for it in reply.tool_calls]
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
