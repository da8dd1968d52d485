"""What every report holds beside its figures."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import isthmus
from isthmus.config import Limits
from isthmus.device import DeviceInfo
from isthmus.model import Model
from isthmus.units import MIB, WASM_PAGE, align_up

Record = dict[str, Any]
_HEAP_NBYTES = 32 * MIB


@dataclass(frozen=True)
class Plan:
    """What a user may choose of a benchmark."""

    repeats: int
    sizes: tuple[int, ...]
    """Tokens of context, or numbers of agents; what they mean is the benchmark's business."""
    text: Path | None = None
    """What is predicted, where something is."""
    n_ctx: int = 512
    """Tokens of a window of the text."""
    images: tuple[Path, ...] = ()
    """Files of pictures and sounds."""


def describe_run(device: DeviceInfo) -> Record:
    """The command, the machine and the versions."""
    return {
        "command": " ".join(["isthmus", *sys.argv[1:]]),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": device.description,
            "processors": os.cpu_count(),
            "features": list(device.features),
        },
        "versions": {
            "isthmus": isthmus.__version__,
            "commit": commit(),
            "python": platform.python_version(),
            "wasmtime": version("wasmtime"),
            "numpy": version("numpy"),
            "ggml": device.library,
        },
        "device": device.name,
        "sharing": device.sharing,
        "caches": device.caches,
        "notes": list(device.notes),
        "threads": device.threads,
    }


def room_for(model: Model, n_ctx: int) -> Limits:
    """What a guest needs that holds one session of `n_ctx` tokens, and some heap.

    A device that supplies guests' memory sets aside as much as a guest may take.
    """
    return Limits(memory_nbytes=align_up(model.layout(n_ctx).nbytes + _HEAP_NBYTES, WASM_PAGE))


def take_turns(
    runs: dict[str, Callable[[], float]], repeats: int, progress: Callable[[], None]
) -> dict[str, list[float]]:
    """Runs each in turn, `repeats` times, the order reversed every time; seconds by name.

    A first turn warms up and is not counted.
    """
    for run in runs.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs) if turn % 2 else list(reversed(runs)):
            samples[name].append(runs[name]())
        progress()
    return samples


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median of the ratios turn by turn, which drifts less than the ratio of medians."""
    pairs = zip(numerator, denominator, strict=True)
    return statistics.median(a / b for a, b in pairs)


def commit() -> str:
    """The commit of the code, if it is a checkout; `unknown` otherwise."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
