"""`isthmus map`: one guest over many inputs, which goes on where it was stopped."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from isthmus.cli.options import (
    add_device_options,
    add_grammar_options,
    add_guest_options,
    add_model_options,
    guest_args,
    open_models,
    open_runtime,
    say,
    sized_guest,
)
from isthmus.cli.progress import progress_bar
from isthmus.config import Capacity
from isthmus.errors import IsthmusError, SettingsError
from isthmus.mapping import Job, Mapped, Mapper
from isthmus.mapping.lines import Input, line_of, open_results, read_inputs, resume
from isthmus.paths import expanded

if TYPE_CHECKING:
    from isthmus.ray.mapping import RayMapper

HELP = "run a guest on each of many inputs, and write the outputs in order"
EXAMPLES = """\
  isthmus map summarise --model smollm2 --inputs articles.jsonl --output summaries.jsonl
  isthmus map chat --model smollm2 --inputs questions.jsonl --json-schema person.json
  isthmus map ./agent.wasm --model model.gguf --inputs lines.jsonl --output out.jsonl --parallel 64

Each line of the inputs is a JSON string, or an object {"input": "text", "id": …}. Each line of the
outputs is an object with index, id, output and n_tokens, or with an error. A job that was stopped
goes on if the same command is given again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("guest", metavar="GUEST", help="a guest, as for isthmus run")
    parser.add_argument("--inputs", required=True, metavar="FILE", help="JSON lines; - reads stdin")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the outputs go; what is there already is not computed again (default: "
        "standard output, from the beginning)",
    )
    parser.add_argument(
        "--parallel", type=int, default=8, metavar="N", help="inputs at a time (default: 8)"
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=2,
        metavar="N",
        help="further tries of an input that failed by no fault of its own, such as a deadline "
        "(default: 2)",
    )
    parser.add_argument(
        "--clock",
        type=int,
        default=0,
        metavar="S",
        help="where each agent's clock begins, in seconds since 1970 (default: 0)",
    )
    _add_ray_options(parser)
    add_model_options(parser)
    add_guest_options(parser)
    add_grammar_options(parser)
    add_device_options(parser)


def _add_ray_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="compute on this Ray cluster, whose nodes have the same files; auto for the one of "
        "this machine; local begins one here (needs isthmus[ray])",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="workers on the cluster (default: 1)"
    )
    parser.add_argument(
        "--worker-gpus", type=float, default=0, metavar="N", help="cards of each (default: 0)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs it. 1 if an input failed."""
    total = _count(arguments.inputs)
    with _opened(arguments.inputs) as lines, _some_mapper(arguments) as mapper:
        inputs = read_inputs(lines, arguments.inputs)
        n_done = n_failed = 0
        with contextlib.ExitStack() as stack:
            out: IO[bytes] = sys.stdout.buffer
            if arguments.output is not None:
                out = stack.enter_context(open_results(arguments.output))
                n_done, n_failed = resume(out, inputs, mapper.key)
            step = stack.enter_context(progress_bar("map", total))
            for _ in range(n_done):
                step()
            how = {"parallel": arguments.parallel, "retries": arguments.retries, "first": n_done}
            results = _with_inputs(inputs, partial(mapper.map, **how))
            n_new = 0
            try:
                for given, mapped in results:
                    out.write(line_of(mapped, given, mapper.key))
                    out.flush()
                    n_new += 1
                    n_failed += mapped.error is not None
                    step()
            except IsthmusError as error:
                raise _stopped(error, n_done + n_new, arguments.output) from error
    was = f", {n_done} of which were there" if n_done else ""
    say(f"isthmus: {n_done + n_new} inputs are done{was}; {n_failed} failed")
    return 1 if n_failed else 0


@contextlib.contextmanager
def open_mapper(arguments: argparse.Namespace) -> Iterator[Mapper]:
    """The guest and all that it is given."""
    capacity = Capacity(running=max(arguments.parallel, Capacity.running))
    with open_runtime(arguments, capacity) as runtime:
        runtime.load_guest(arguments.guest)  # before models are opened
        models, args = open_models(runtime, arguments), guest_args(arguments)
        name, limits = sized_guest(arguments, models, args)
        job = Job(name, models, args, limits, arguments.seed or 0, arguments.clock * 10**9)
        yield Mapper(runtime, job)


@contextlib.contextmanager
def _some_mapper(arguments: argparse.Namespace) -> Iterator[Mapper | RayMapper]:
    """Here, or on a Ray cluster."""
    if arguments.ray is None:
        with open_mapper(arguments) as mapper:
            yield mapper
        return
    from isthmus.ray.mapping import Workers, ray_mapper  # noqa: PLC0415
    from isthmus.ray.serving import connected  # noqa: PLC0415

    workers = Workers(arguments.workers, gpus=arguments.worker_gpus)
    arguments = argparse.Namespace(**{**vars(arguments), "parser": None})  # which nobody pickles
    with connected(arguments.ray), ray_mapper(partial(open_mapper, arguments), workers) as there:
        yield there


def _count(name: str) -> int | None:
    """How many inputs there are, each of which is one; None if they cannot be read twice."""
    if name == "-":
        return None
    with _opened(name) as lines:
        return sum(1 for _ in read_inputs(lines, name))


@contextlib.contextmanager
def _opened(name: str) -> Iterator[Iterable[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = expanded(name).open("rb")
    except OSError as error:
        raise SettingsError(f"cannot read the inputs {name}: {error.strerror}") from None
    with file:
        yield file


def _with_inputs(
    inputs: Iterator[Input], map_texts: Callable[[Iterator[str]], Iterator[Mapped]]
) -> Iterator[tuple[Input, Mapped]]:
    """Each result with its input: inputs are read ahead of the results."""
    read: list[Input] = []

    def texts() -> Iterator[str]:
        for it in inputs:
            read.append(it)
            yield it.input

    for mapped in map_texts(texts()):
        yield read.pop(0), mapped


def _stopped(error: IsthmusError, n_done: int, output: Path | None) -> IsthmusError:
    """The error, and how to go on."""
    again = "" if output is None else "; the same command goes on from there"
    return SettingsError(f"stopped after {n_done} inputs{again}: {error}")
