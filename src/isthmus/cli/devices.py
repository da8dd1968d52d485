"""`isthmus devices`: what can compute here, how it shares memory, and what is missing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from isthmus.cli.table import format_table
from isthmus.config import DeviceSettings, Environment
from isthmus.device import Device, DeviceInfo, device_kinds, open_device
from isthmus.device.base import CACHES_IN
from isthmus.errors import DeviceError
from isthmus.model.probes.width_probe import widths_of_types
from isthmus.native.loader import Library, open_library
from isthmus.units import format_nbytes

HELP = "list the compute devices and how each shares a guest's memory"
EXAMPLES = """\
  isthmus devices
  isthmus devices --json
  isthmus devices --ggml /opt/ggml-cuda/lib"""
_MAX = 64
"""Devices of one kind."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--ggml", metavar="PATH", help="a ggml library to use")


@dataclass(frozen=True)
class Found:
    """A device that opens."""

    info: DeviceInfo
    widths: dict[str, str]
    """By type of weights: the classes of steps within which no bit depends on other agents."""


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    library = open_library(arguments.ggml or Environment.read().ggml)
    found, missing = _look(library)
    if arguments.json:
        print(json.dumps(_report(library, found, missing), indent=2))
    else:
        _print(library, found, missing)
    return 0


def _look(library: Library) -> tuple[list[Found], dict[str, str]]:
    """Every device of every kind that opens; of the other kinds, why none does."""
    found, missing = [], {}
    for kind in device_kinds():
        for index in range(_MAX):
            try:
                device = open_device(f"{kind}:{index}", library, DeviceSettings())
            except DeviceError as error:
                if index == 0:
                    missing[kind] = str(error)
                break
            found.append(_examine(device))
            device.close()
    return found, missing


def _examine(device: Device) -> Found:
    with device.new_backend() as backend:
        widths = widths_of_types(device, backend) if device.sharing != "none" else {}
    return Found(device.info, {name: str(each) for name, each in widths.items()})


def _report(
    library: Library, found: Sequence[Found], missing: Mapping[str, str]
) -> dict[str, object]:
    return {
        "library": {
            "path": str(library.path),
            "source": library.source,
            "ggml": library.version,
            "llama_cpp": library.llama_version,
        },
        "devices": [{**asdict(it.info), "widths": it.widths} for it in found],
        "missing": dict(missing),
    }


def _print(library: Library, found: Sequence[Found], missing: Mapping[str, str]) -> None:
    heads = ("device", "shares", "KV caches in", "memory", "batches exactly", "hardware")
    rows = [
        (
            it.info.name,
            it.info.sharing,
            CACHES_IN[it.info.caches],
            format_nbytes(it.info.memory_nbytes),
            " ".join(name for name, each in it.widths.items() if "-" in each) or "no",
            it.info.description,
        )
        for it in found
    ]
    print(format_table(heads, rows) + "\n")
    for it in found:
        for note in it.info.notes:
            print(f"{it.info.name}: {note}")
    if features := found[0].info.features:
        print(f"cpu: kernels for {' '.join(features)}")
    print(f"ggml {library.version} with llama.cpp {library.llama_version} from {library.source}:")
    print(library.path)
    for reason in missing.values():
        print(f"\n{reason}")
