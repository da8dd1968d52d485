"""What does a picture cost, decoded in the sandbox? Seconds, and the guest's linear memory.

Each file is decoded by a fresh agent of the guest `decode`. Without files it is a PNG that is made
here, of smooth colours with noise, whose pixels are compared with the answer.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from isthmus.benchmarks.record import Plan, Record, describe_run, take_turns
from isthmus.config import Limits
from isthmus.errors import SettingsError, VerificationFailed
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.units import MIB

WIDTHS = (3840,)
"""Pixels; a picture's height is nine sixteenths of it."""
_MEMORY_NBYTES = 1024 * MIB


def bench_media(
    runtime: Runtime, _model: Model, plan: Plan, progress: Callable[[], None]
) -> Record:
    """Seconds, processor time and MiB of each file, or of a picture of each width."""
    made = {} if plan.images else {f"png {it}": _picture(it) for it in plan.sizes}
    files = {name: _png(pixels) for name, pixels in made.items()}
    files |= {it.name: _read(it) for it in plan.images}
    heads: dict[str, str] = {}
    nbytes, cpu = dict[str, int](), dict[str, float]()

    def decode(name: str) -> float:
        limits = Limits(memory_nbytes=_MEMORY_NBYTES, output_nbytes=None)
        with runtime.spawn("decode", limits=limits) as actor:
            start, before = time.perf_counter(), time.process_time()
            reply = actor.send(files[name]).data
            busy = time.process_time() - before
            seconds = time.perf_counter() - start
            cpu[name] = min(busy, cpu.get(name, busy))
            nbytes[name] = actor.usage.memory_nbytes
        head, _, rest = reply.partition(b"\n")
        heads[name] = head.decode()
        if name in made and rest != made[name].tobytes():
            raise VerificationFailed(f"the guest decoded {name} to other pixels")
        return seconds

    runs: dict[str, Callable[[], float]] = {it: partial(decode, it) for it in files}
    samples = take_turns(runs, plan.repeats, progress)
    results = [
        {
            "file": name,
            "MiB": len(file) / MIB,
            "holds": heads[name],
            "seconds": min(samples[name]),
            "median_seconds": median(samples[name]),
            "cpu_seconds": cpu[name],
            "memory_MiB": nbytes[name] / MIB,
        }
        for name, file in files.items()
    ]
    return {**describe_run(runtime.device.info), "results": results, "samples_s": samples}


def _picture(width: int) -> np.ndarray:
    """u8 [height, width, 3]."""
    height = max(1, width * 9 // 16)
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / (50 + i) + y / 70 + i) for i in range(3)]
    noise = np.random.default_rng(0).integers(0, 20, (height, width))
    return np.stack([np.clip(it + noise, 0, 255) for it in waves], axis=-1).astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    """PNG (second edition): a signature, and chunks IHDR, IDAT, IEND; rows of filter 1 (Sub)."""
    height, width = pixels.shape[:2]
    rows = pixels.copy()
    rows[:, 1:] -= pixels[:, :-1]
    lines = np.concatenate([np.ones((height, 1), np.uint8), rows.reshape(height, -1)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(lines.tobytes(), 6), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read the file {path}: {error.strerror}") from None
