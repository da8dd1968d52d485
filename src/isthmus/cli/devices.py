"""`isthmus devices`: what can compute here, and how it shares memory."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from isthmus.cli.table import format_table
from isthmus.config import DeviceSettings, Environment
from isthmus.device import device_kinds, open_device
from isthmus.errors import DeviceError
from isthmus.native.loader import open_library
from isthmus.units import format_nbytes

HELP = "list the compute devices and how each shares a guest's memory"
EXAMPLES = """\
  isthmus devices
  isthmus devices --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--ggml", metavar="PATH", help="a ggml library to use")


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    library = open_library(arguments.ggml or Environment.read().ggml)
    found = []
    for kind in device_kinds():
        try:
            device = open_device(kind, library, DeviceSettings())
        except DeviceError:
            continue
        found.append(device.info)
        device.close()
    if arguments.json:
        print(json.dumps([asdict(info) for info in found], indent=2))
        return 0
    rows = [
        (info.name, info.sharing, format_nbytes(info.memory_nbytes), str(info.threads),
         info.description, " ".join(info.features))
        for info in found
    ]  # fmt: skip
    print(format_table(("device", "shares", "memory", "threads", "hardware", "features"), rows))
    print(f"\n{found[0].library}: {library.path}")
    return 0
