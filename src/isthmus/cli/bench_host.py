"""`isthmus bench host`: its own options, since it needs no model and always the null device."""

from __future__ import annotations

import argparse

from isthmus.benchmarks.host import (
    MAX_TOKENS,
    N_TOKENS,
    RUNAWAY_SIZES,
    SIZES,
    STEPS_MS,
    VOCABULARIES,
    HostPlan,
    bench_host,
    bench_runaway,
)
from isthmus.benchmarks.record import Record
from isthmus.cli.options import whole_numbers
from isthmus.cli.progress import progress_bar
from isthmus.errors import SettingsError

_MAX_STEP_MS = 1000
_MIN_VOCABULARY = 64
_MAX_VOCABULARY = 1 << 20
_MAX_AGENTS = 4000


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """The options that only `host` has."""
    group = parser.add_argument_group("host", "the null device, which sleeps for each step")
    group.add_argument(
        "--steps-ms", metavar="LIST", help="milliseconds of a step, such as 0,5 (default: 0,1,5)"
    )
    group.add_argument(
        "--vocabularies", metavar="LIST", help="tokens of a vocabulary (default: 49152,128256)"
    )
    group.add_argument(
        "--emit",
        action=argparse.BooleanOptionalAction,
        help="only with, or only without, the text of each token (default: both)",
    )
    group.add_argument(
        "--found",
        action=argparse.BooleanOptionalAction,
        help="only where the device finds the tokens, or only where guests do (default: both)",
    )
    group.add_argument(
        "--every",
        action="store_true",
        help="every combination, not only all sizes at the longest step, and all else at 64 agents",
    )
    group.add_argument(
        "--n-tokens",
        type=int,
        default=N_TOKENS,
        metavar="N",
        help=f"tokens of one message (default: {N_TOKENS})",
    )
    group.add_argument(
        "--runaway",
        action="store_true",
        help="instead: the time between two tokens, while another agent computes in an endless "
        "loop and while none does (default of --sizes: 64)",
    )


def host_report(arguments: argparse.Namespace) -> Record:
    """Runs the benchmark as the options say."""
    plan = _plan(arguments)
    measure = bench_runaway if arguments.runaway else bench_host
    n_runs = len(plan.sizes) * plan.repeats if arguments.runaway else plan.n_runs
    with progress_bar("host", n_runs) as advance:
        return measure(plan, advance)


def _plan(arguments: argparse.Namespace) -> HostPlan:
    usual = RUNAWAY_SIZES if arguments.runaway else SIZES
    sizes = whole_numbers("--sizes", arguments.sizes) if arguments.sizes else usual
    vocabularies = arguments.vocabularies and whole_numbers(
        "--vocabularies", arguments.vocabularies
    )
    plan = HostPlan(
        repeats=arguments.repeats,
        sizes=sizes,
        steps_ms=_steps_ms(arguments.steps_ms) if arguments.steps_ms else STEPS_MS,
        emits=(True, False) if arguments.emit is None else (arguments.emit,),
        vocabularies=vocabularies or VOCABULARIES,
        founds=(False, True) if arguments.found is None else (arguments.found,),
        every=arguments.every,
        n_tokens=arguments.n_tokens,
    )
    _require("--sizes", max(plan.sizes), 1, _MAX_AGENTS)
    _require("--n-tokens", plan.n_tokens, 2, MAX_TOKENS)
    for n_vocab in plan.vocabularies:
        _require("--vocabularies", n_vocab, _MIN_VOCABULARY, _MAX_VOCABULARY)
    return plan


def _steps_ms(text: str) -> tuple[float, ...]:
    try:
        steps = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(f"--steps-ms {text}: give milliseconds, such as 0,1,5") from None
    for step in steps:
        _require("--steps-ms", step, 0, _MAX_STEP_MS)
    return steps


def _require(option: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise SettingsError(f"{option} {value:g}: give {least} to {most}")
