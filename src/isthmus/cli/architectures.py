"""`isthmus architectures`: what holds of each architecture that the library has."""

from __future__ import annotations

import argparse
import json
from contextlib import closing

from isthmus.benchmarks.record import describe_run
from isthmus.cli.options import say, words
from isthmus.cli.progress import progress_bar
from isthmus.cli.table import format_table
from isthmus.config import DeviceSettings, Environment
from isthmus.device import open_device
from isthmus.errors import VerificationFailed
from isthmus.native.loader import Library, open_library
from isthmus.survey.row import HEADS, Row, summary
from isthmus.survey.survey import require_names, survey

HELP = "try every architecture of the library on a tiny model, and show what holds"
EXAMPLES = """\
  isthmus architectures
  isthmus architectures --only qwen35,gemma4,gpt-oss
  isthmus architectures --json > architectures.json

way: own (a graph of ours), adopted (libllama's own graph over agents' memory), refused
exit code 1 if anything does not hold; takes some minutes without --only"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--only", metavar="NAME,…", help="architectures to try (default: all of the library)"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="D,…",
        help="devices to try, such as cpu,cuda (default: cpu)",
    )
    parser.add_argument("--ggml", metavar="PATH", help="a ggml library to use")


def run(arguments: argparse.Namespace) -> int:
    """Runs it. Raises VerificationFailed if something does not hold."""
    library = open_library(arguments.ggml or Environment.read().ggml)
    known = library.architectures()
    names = known if arguments.only is None else words("--only", arguments.only)
    require_names(library, names)
    devices = words("--device", arguments.device)
    for device in devices:
        open_device(device, library, DeviceSettings(threads=1)).close()
    with progress_bar("architectures", len(names)) as advance:
        rows = survey(library, names, devices, lambda _row: advance())
    if arguments.json:
        print(json.dumps(_report(library, devices[0], rows), indent=1))
    else:
        print(format_table(HEADS, [row.cells() for row in rows]))
        say(summary(rows))
    wrong = [row.name for row in rows if row.way != "refused" and not row.holds]
    if wrong:
        raise VerificationFailed(f"something does not hold of {', '.join(wrong)}")
    return 0


def _report(library: Library, device: str, rows: list[Row]) -> dict[str, object]:
    with closing(open_device(device, library, DeviceSettings(threads=1))) as opened:
        return {**describe_run(opened.info), "rows": [row.as_json() for row in rows]}
