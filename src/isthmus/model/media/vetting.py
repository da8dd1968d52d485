"""Tries a projector file out, in a child process, before it is used here.

libmtmd relies on most numbers in such a file, and ends the process on much of what can be wrong.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from isthmus.abi import MediaKind
from isthmus.config import DeviceSettings, ModelSettings
from isthmus.device import open_device
from isthmus.errors import SettingsError
from isthmus.model.adopted.library_model import LibraryModel
from isthmus.model.files.gguf import GgufFile
from isthmus.model.media.medium import Bitmap, Part
from isthmus.model.media.projector import MAX_RATIO, MIN_S, Projector
from isthmus.native.loader import Library
from isthmus.units import HostAddr

Samples = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


def project(library: Library, file: GgufFile, projector: Path) -> None:
    """Opens the projector for a model, and has it do what guests can have it do.

    Raises ModelUnsupported, ModelFileError, DeviceFailed. What the library does not survive ends
    the process.
    """
    with ExitStack() as stack:
        device = open_device("cpu", library, DeviceSettings(threads=1))
        stack.callback(device.close)
        model = stack.enter_context(LibraryModel(library, file, ModelSettings()))
        _try_out(stack.enter_context(Projector(device, projector, model)))


def _try_out(projector: Projector) -> None:
    """Opens media of the shapes that a guest can give, and computes the smallest of each kind."""
    for kind in sorted(projector.kinds):
        for i, data in enumerate(_shapes(kind, projector)):
            with suppress(SettingsError), projector.open(Bitmap(kind, data)) as medium:
                for part in medium.parts if i == 0 else []:
                    _compute(projector, part)


def _compute(projector: Projector, part: Part) -> None:
    """Computes a part, whose rows are thrown away."""
    if part.ids is None:
        rows = np.zeros((part.n_rows, part.width), dtype=np.float32)
        for _ in projector.jobs(part, HostAddr(rows.ctypes.data)):
            pass


def _shapes(kind: MediaKind, projector: Projector) -> list[Samples]:
    if kind is MediaKind.PCM:
        rate = projector.rate
        sizes = (int(MIN_S * rate), rate, 30 * rate, 31 * rate + 7)
        return [np.linspace(-1, 1, n, dtype=np.float32) for n in sizes]
    sides = ((32, 32), (1, 1), (1, MAX_RATIO), (MAX_RATIO, 1), (7, 300), (2000, 1500))
    return [np.full((height, width, 3), 99, dtype=np.uint8) for height, width in sides]
