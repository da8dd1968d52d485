"""`isthmus receipt`: one device measured whole, in two files that can be sent."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from isthmus.benchmarks.receipt import FIGURES, Receipt
from isthmus.cli.naming import fetched_model, named_models
from isthmus.cli.options import MODEL_FORMS, add_device_options, say
from isthmus.errors import SettingsError, VerificationFailed

HELP = "measure a device whole, in about ten minutes, and write what was seen for others to read"
EXAMPLES = """\
  isthmus receipt
  isthmus receipt --device metal --out my-mac
  isthmus receipt --device cuda:0 --model llama-1b.gguf --sizes decode=1024,8192 --minutes 60
  isthmus receipt --quick --out try

OUT.json has raw samples, OUT.md the tables: attach both to an issue of the project. They hold no
names of users, machines or folders. The same command again adds to what OUT.json has.
exit code 1 if a question was not answered, or a claim does not hold"""

_USUAL = ("verify", "decode", "prefill", "agents", "snapshot")
_VERIFIED = {False: "64KiB,1MiB,16MiB,64MiB,256MiB", True: "64KiB,1MiB"}
"""Sizes of the proof, by `--quick`. A product of 128 x 128 has matrices of 64 KiB."""
_MIB = {False: "256", True: "16"}
_BENCHES = {
    "decode": ["--sizes", "1024"],
    "prefill": ["--sizes", "512,2048"],
    "agents": ["--sizes", "1,8,32"],
    "agents, alone": ["--sizes", "1,4", "--width", "alone"],
    "agents, few": ["--sizes", "1,8", "--width", "few"],
    "agents, inexact": ["--sizes", "1,8,32", "--inexact"],
    "snapshot": ["--sizes", "24,1024"],
}
_QUICK = {"decode": "64", "prefill": "128", "agents": "1,2", "snapshot": "24"}
_OPTIONS = ("device", "sharing", "caches", "threads", "ggml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("receipt"),
        metavar="NAME",
        help="writes NAME.json and NAME.md (default: receipt)",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the command")
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        metavar="N",
        help="what is not answered by then is left out (default: 10)",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help=f"{MODEL_FORMS} (default: smollm2); repeat for more",
    )
    parser.add_argument(
        "--questions",
        metavar="LIST",
        help=f"some of {'; '.join(FIGURES)}, with ; between them (default: {'; '.join(_USUAL)})",
    )
    parser.add_argument(
        "--sizes",
        action="append",
        default=[],
        metavar="QUESTION=LIST",
        help="other sizes for a question, such as decode=1024,8192; repeat for more",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="samples of each (default: 5)"
    )
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it. Raises SettingsError for options out of range, and VerificationFailed if a question
    was not answered, or an answer is wrong."""
    questions, sizes = _questions(arguments.questions), _sizes(arguments.sizes)
    if arguments.repeats < 1 or arguments.minutes <= 0:
        raise SettingsError("--repeats and --minutes: give more than 0")
    models = named_models(arguments.model or [f"smollm2={fetched_model('smollm2')}"], None)
    receipt = Receipt(arguments.out, arguments.minutes * 60)
    ggml = ["--ggml", arguments.ggml] if arguments.ggml else []
    _ask(receipt, receipt.record, "devices", ["devices", "--json", *ggml])
    common = ["--json", *_passed_on(arguments)]
    if "verify" in questions:
        at = sizes.get("verify", _VERIFIED[arguments.quick])
        _ask(receipt, receipt.record, "verify", ["verify", "--sizes", at, *common])
    common += ["--repeats", str(1 if arguments.quick else arguments.repeats)]
    for name, path in models.items():
        of_model = [*common, "--model", f"default={path}"]
        if "memory" in questions and "memory" not in receipt.record:
            at = sizes.get("memory", _MIB[arguments.quick])
            _ask(receipt, receipt.record, "memory", ["bench", "memory", "--sizes", at, *of_model])
        found = receipt.record["models"].setdefault(name, {})
        for question in (it for it in _BENCHES if it in questions):
            bench = question.partition(",")[0]
            at = sizes.get(question, _QUICK[bench] if arguments.quick else "")
            options = [*_BENCHES[question], *(["--sizes", at] if at else [])]
            _ask(receipt, found, question, ["bench", bench, *options, *of_model])
    print(receipt.markdown.read_text(), end="")
    say(f"written: {receipt.json}, {receipt.markdown}; attach both to an issue of the project")
    if failed := receipt.failures:
        raise VerificationFailed(
            f"not answered, or wrong: {', '.join(failed)}; the receipt says why"
        )
    return 0


def _ask(receipt: Receipt, place: dict[str, Any], question: str, command: list[str]) -> None:
    say(f"{question} …")
    failed = receipt.ask(place, question, command).get("failed")
    if failed:
        say(f"{question}: {failed}")


def _passed_on(arguments: argparse.Namespace) -> list[str]:
    """The device's options as they were given."""
    given = {name: getattr(arguments, name) for name in _OPTIONS}
    return [it for name, value in given.items() if value for it in (f"--{name}", str(value))]


def _questions(text: str | None) -> tuple[str, ...]:
    asked = tuple(it.strip() for it in text.split(";")) if text is not None else _USUAL
    if unknown := [it for it in asked if it not in FIGURES]:
        raise SettingsError(f"--questions: {unknown[0]!r} is none of {'; '.join(FIGURES)}")
    return asked


def _sizes(texts: list[str]) -> dict[str, str]:
    """Lists of sizes by question."""
    found = {}
    for text in texts:
        question, _, sizes = text.partition("=")
        if question not in FIGURES or not sizes:
            raise SettingsError(f"--sizes {text}: give a question and its sizes, decode=1024,8192")
        found[question] = sizes
    return found
