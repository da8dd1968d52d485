"""`isthmus bench`: measurements against libllama and wasmtime-py."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from isthmus.benchmarks.agents import COUNTS as AGENT_COUNTS
from isthmus.benchmarks.agents import bench_agents, require_as_alone
from isthmus.benchmarks.hostcall import bench_hostcall
from isthmus.benchmarks.media import WIDTHS, bench_media
from isthmus.benchmarks.memory import SIZES as MEMORY_SIZES
from isthmus.benchmarks.memory import bench_memory
from isthmus.benchmarks.newcomer import bench_newcomer
from isthmus.benchmarks.perplexity import bench_perplexity, require_same_perplexity
from isthmus.benchmarks.record import Plan, Record
from isthmus.benchmarks.serve import CLIENTS, bench_serve
from isthmus.benchmarks.snapshot import CONTEXTS as SNAPSHOT_CONTEXTS
from isthmus.benchmarks.snapshot import bench_snapshot, require_same_token
from isthmus.benchmarks.speculate import DRAFTED, bench_speculate, require_same_tokens
from isthmus.benchmarks.store import AGENTS as STORE_AGENTS
from isthmus.benchmarks.store import bench_store, require_whole
from isthmus.benchmarks.tokens import CONTEXTS, bench_decode, bench_prefill, require_identical
from isthmus.benchmarks.ways import bench_ways, require_same_logits
from isthmus.cli.bench_host import add_host_options, host_report
from isthmus.cli.naming import fetched_model
from isthmus.cli.options import (
    add_device_options,
    add_model_options,
    open_models,
    open_runtime,
    whole_numbers,
)
from isthmus.cli.progress import progress_bar
from isthmus.cli.table import format_table
from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.runtime import Runtime

HELP = "measure decode, prefill, many agents, snapshots and more beside libllama, in one run"
EXAMPLES = """\
  isthmus bench decode
  isthmus bench prefill --json > prefill.json
  isthmus bench hostcall --repeats 15
  isthmus bench snapshot --json
  isthmus bench agents --json
  isthmus bench host --sizes 64 --steps-ms 5
  isthmus bench host --runaway
  isthmus bench store --sizes 100,10000
  isthmus bench memory --device cuda --sizes 256,1024
  isthmus bench media --repeats 3
  isthmus bench newcomer --repeats 1
  isthmus bench serve --repeats 3
  isthmus bench perplexity --text wiki.test.raw --n-ctx 512
  isthmus bench speculate --model default=large.gguf --model draft=small.gguf --sizes 2,4,8
  isthmus bench decode --model model.gguf --threads 8
  isthmus bench ways --device cpu --sizes 500

ratios are ours / theirs in tokens per second: more is better"""

_MAX_COLUMNS = 10
_HOST = "host"
"""The question that no model and no device answers, but a null device of its own."""
_OF_MANY = ("agents", "newcomer", "serve")
"""The questions about many agents, whose models are loaded for many."""
_BenchOne = Callable[[Runtime, Model, Plan, Callable[[], None]], Record]
_Bench = Callable[[Runtime, dict[str, Model], Plan, Callable[[], None]], Record]


def _of_one(measure: _BenchOne) -> _Bench:
    """A benchmark of the first of the models that were given."""
    return lambda runtime, models, *rest: measure(runtime, next(iter(models.values())), *rest)


BENCHMARKS: dict[str, tuple[_Bench, tuple[int, ...]]] = {
    "decode": (_of_one(bench_decode), CONTEXTS),
    "prefill": (_of_one(bench_prefill), CONTEXTS),
    "hostcall": (_of_one(bench_hostcall), ()),
    "snapshot": (_of_one(bench_snapshot), SNAPSHOT_CONTEXTS),
    "agents": (_of_one(bench_agents), AGENT_COUNTS),
    "store": (_of_one(bench_store), STORE_AGENTS),
    "memory": (_of_one(bench_memory), MEMORY_SIZES),
    "media": (_of_one(bench_media), WIDTHS),
    "newcomer": (_of_one(bench_newcomer), ()),
    "serve": (_of_one(bench_serve), CLIENTS),
    "perplexity": (_of_one(bench_perplexity), ()),
    "speculate": (bench_speculate, DRAFTED),
    "ways": (_of_one(bench_ways), CONTEXTS),
}


_CHECKS: dict[str, Callable[[Record], None]] = {
    "decode": require_identical,
    "prefill": require_identical,
    "snapshot": require_same_token,
    "agents": require_as_alone,
    "store": require_whole,
    "perplexity": require_same_perplexity,
    "speculate": require_same_tokens,
    "ways": require_same_logits,
}
"""What raises VerificationFailed for a report with a wrong answer, by question."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("question", choices=(*BENCHMARKS, _HOST), help="what to measure")
    parser.add_argument("--json", action="store_true", help="print JSON with the raw samples")
    parser.add_argument(
        "--repeats", type=int, default=7, metavar="N", help="samples of each (default: 7)"
    )
    parser.add_argument(
        "--sizes",
        metavar="LIST",
        help="one row for each: tokens of context (decode, prefill, snapshot, ways), agents "
        "(agents, host, store), clients (serve), MiB (memory), guessed tokens (speculate), or "
        "pixels of a picture's width (media), such as 512,2000",
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="the text for perplexity")
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture or a sound to decode in place of one that is made (media); repeatable",
    )
    parser.add_argument(
        "--n-ctx",
        type=int,
        default=512,
        metavar="N",
        help="tokens of each window of perplexity (default: 512)",
    )
    add_host_options(parser)
    add_model_options(parser)
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it. Raises SettingsError for a number of repeats below 1."""
    if arguments.repeats < 1:
        raise SettingsError(f"--repeats {arguments.repeats}: give 1 or more")
    report = host_report(arguments) if arguments.question == _HOST else _measured(arguments)
    print(json.dumps(report, indent=1) if arguments.json else _table(report))
    if check := _CHECKS.get(arguments.question):
        check(report)
    return 0


def _measured(arguments: argparse.Namespace) -> Record:
    """The report of a benchmark of models."""
    if not arguments.model:
        names = ("default", "draft") if arguments.question == "speculate" else ("default",)
        arguments.model = [f"{name}={fetched_model('smollm2')}" for name in names]
    if arguments.question in _OF_MANY:
        arguments.width = arguments.width or "many"
    measure, sizes = BENCHMARKS[arguments.question]
    sizes = whole_numbers("--sizes", arguments.sizes) if arguments.sizes else sizes
    images = tuple(arguments.image)
    plan = Plan(arguments.repeats, sizes, arguments.text, arguments.n_ctx, images)
    with open_runtime(arguments) as runtime:
        models = open_models(runtime, arguments)
        with progress_bar(arguments.question, _n_steps(arguments.question, plan)) as advance:
            return measure(runtime, models, plan, advance)


def _n_steps(question: str, plan: Plan) -> int | None:
    """How often a benchmark advances; None where that depends on the text."""
    return None if question == "perplexity" else max(1, len(plan.sizes)) * plan.repeats


def _table(report: Record) -> str:
    """One row for each result, or, where there are too many figures, one for each figure."""
    results = report["results"]
    names = dict.fromkeys(name for result in results for name in result)
    heads = [name for name in names if not name.startswith("samples_")]
    rows = [[_shown(result.get(name, "-")) for name in heads] for result in results]
    if len(heads) <= _MAX_COLUMNS:
        return format_table(heads, rows)
    turned = list(zip(heads, *rows, strict=True))
    return format_table(turned[0], turned[1:])


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
