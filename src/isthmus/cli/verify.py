"""`isthmus verify`: the proof of zero copy."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from isthmus.benchmarks.record import describe_run
from isthmus.cli.options import add_device_options, open_runtime, say
from isthmus.cli.progress import progress_bar
from isthmus.cli.table import format_table
from isthmus.device import DeviceInfo
from isthmus.device.base import CACHES_IN
from isthmus.errors import SettingsError, VerificationFailed
from isthmus.native import metal
from isthmus.runtime import Runtime
from isthmus.units import KIB, format_nbytes
from isthmus.verification import SIZES, TABLE_HEADS, as_json, plot, prove_sizes, table_rows

HELP = "prove that guest, host and device work on the same bytes"
EXAMPLES = """\
  isthmus verify
  isthmus verify --json > verify.json
  isthmus verify --plot zero-copy.png
  isthmus verify --sizes 64KiB,1MiB,16MiB --repeats 9

exit code 1 if any claim does not hold"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("--json", action="store_true", help="print JSON with the raw samples")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw a picture (.png, .svg)")
    parser.add_argument(
        "--sizes", metavar="LIST", help="sizes to prove (default: 64KiB to 256MiB, times 4)"
    )
    parser.add_argument(
        "--repeats", type=int, default=21, metavar="N", help="samples of each size (default: 21)"
    )
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it. Raises SettingsError for options out of range, and VerificationFailed if a claim
    does not hold."""
    sizes = _sizes(arguments.sizes) if arguments.sizes else SIZES
    if arguments.repeats < 1:
        raise SettingsError(f"--repeats {arguments.repeats}: give 1 or more")
    if arguments.plot:
        _require_matplotlib()
    with open_runtime(arguments) as runtime:
        with progress_bar("verify", len(sizes)) as advance:
            proofs = prove_sizes(runtime, sizes, arguments.repeats, advance)
        if arguments.json:
            report = {**describe_run(runtime.device.info), "results": [as_json(p) for p in proofs]}
            print(json.dumps(report, indent=1))
        else:
            print(format_table(TABLE_HEADS, table_rows(proofs)))
            _say_how_it_shares(runtime.device.info)
            _say_what_metal_says(runtime)
    if arguments.plot:
        plot(proofs, arguments.plot)
        say(f"drawn to {arguments.plot}")
    failed = [format_nbytes(proof.nbytes) for proof in proofs if not proof.holds]
    if failed:
        raise VerificationFailed(f"a claim does not hold at {', '.join(failed)}")
    return 0


def _say_how_it_shares(info: DeviceInfo) -> None:
    say(f"{info.name} shares as {info.sharing}, with KV caches in {CACHES_IN[info.caches]}")
    for note in info.notes:
        say(f"{info.name}: {note}")


def _say_what_metal_says(runtime: Runtime) -> None:
    """On Metal: a second witness of the address, where PyObjC is installed."""
    if not runtime.device.name.startswith("metal"):
        return
    if not metal.is_installed():
        say("MTLBuffer.contents(): not compared; run: pip install 'isthmus[metal]'")
        return
    with runtime.spawn("gemm") as actor:
        base = actor.region.base
        found = metal.no_copy_contents(base, actor.region.nbytes)
    say(f"MTLBuffer.contents(): {found:#x}, guest's memory: {base:#x}")
    if found != base:
        raise VerificationFailed("Metal's buffer does not lie where the guest's memory does")


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_size(part.strip()) for part in text.split(","))


def _size(text: str) -> int:
    units = {"KiB": KIB, "MiB": KIB**2, "GiB": KIB**3}
    number, unit = text[:-3], text[-3:]
    if unit not in units or not number.isdecimal():
        raise SettingsError(f"--sizes: {text!r} is not a size such as 64KiB or 16MiB")
    nbytes = int(number) * units[unit]
    if not 4 * KIB <= nbytes <= 2 * units["GiB"]:
        raise SettingsError(f"--sizes: {text} is out of range; give 4KiB to 2GiB")
    return nbytes


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401, PLC0415 - an optional dependency
    except ImportError:
        raise SettingsError("for --plot run: pip install 'isthmus[plot]'") from None
