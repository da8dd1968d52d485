"""Makes embeddings of pictures and sounds by a projector file, which libmtmd reads and computes.

The processor computes it, in jobs of the device's thread between which agents decode, as libllama's
own graphs (`adopted.parted`). One pass is under way at a time.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Generator
from pathlib import Path

from isthmus.abi import MediaKind
from isthmus.device.base import Device
from isthmus.errors import (
    DeviceFailed,
    ModelError,
    ModelFileError,
    ModelUnsupported,
    SettingsError,
)
from isthmus.model.adopted.library_model import LibraryModel
from isthmus.model.adopted.parted import computed_in_jobs
from isthmus.model.jobs import Jobs
from isthmus.model.media.medium import Bitmap, Medium, Part
from isthmus.native.child import reason
from isthmus.native.mtmd import mtmd_of
from isthmus.native.owned import Owned
from isthmus.native.placing import placing_of
from isthmus.units import HostAddr

MAX_SIDE = 16_384
"""Pixels of the longer side of a picture."""
MAX_RATIO = 64
"""How many times longer it may be than the shorter one."""
MIN_S = 0.1
"""Seconds of the shortest sound."""


class Projector(Owned):
    """Owns libmtmd's context. Closed before the model that it is for."""

    def __init__(self, device: Device, path: Path, model: LibraryModel) -> None:
        """Raises ModelFileError, or ModelUnsupported if the projector is not for the model."""
        self._device, self.path, self._model = device, path, model
        self.nbytes = path.stat().st_size
        """Of its file."""
        self._mtmd = mtmd = mtmd_of(device.library)
        self._placing = placing_of(device.library)
        self._jobs = Jobs()
        self._lock = threading.Lock()
        """Held while a pass is under way."""
        parameters = mtmd.parameters(device.settings.n_threads)
        with (
            device.library.errors() as complaints,
            self._placing.open(lambda _number, _nbytes: None) as placed,
        ):
            handle = mtmd.mtmd_init_from_file(os.fsencode(path), model.handle, parameters)
        if not handle:
            raise _refusal(path, model, complaints)
        super().__init__(handle, mtmd.mtmd_free)
        self._backends = placed.backends

    @property
    def kinds(self) -> frozenset[MediaKind]:
        """What it takes."""
        takes = {
            MediaKind.RGB: self._mtmd.mtmd_support_vision(self.handle),
            MediaKind.PCM: self._mtmd.mtmd_support_audio(self.handle),
        }
        return frozenset(kind for kind, good in takes.items() if good)

    @property
    def rate(self) -> int:
        """Samples of a second of sound. ModelUnsupported if it takes none."""
        self.require(MediaKind.PCM)
        return int(self._mtmd.mtmd_get_audio_sample_rate(self.handle))

    def require(self, kind: MediaKind) -> None:
        """ModelUnsupported unless it takes that kind."""
        if kind not in self.kinds:
            what = "pictures" if kind is MediaKind.RGB else "sounds"
            raise ModelUnsupported(f"the projector {self.path} takes no {what}")

    def open(self, bitmap: Bitmap) -> Medium:
        """A medium of a bitmap, of which nothing is kept. On any thread.

        Raises SettingsError for one that it refuses, ModelUnsupported.
        """
        self.require(bitmap.kind)
        self._require_shape(bitmap)
        mtmd = self._mtmd
        handle = self._bitmap(bitmap)
        chunks = mtmd.mtmd_input_chunks_init()
        text, one = mtmd.marker(), (ctypes.c_void_p * 1)(handle)
        with self._device.library.errors() as complaints:
            status = mtmd.mtmd_tokenize(
                self.handle, chunks, ctypes.addressof(text), ctypes.addressof(one), 1
            )
        mtmd.mtmd_bitmap_free(handle)
        if status != 0:
            mtmd.mtmd_input_chunks_free(chunks)
            raise SettingsError(
                f"the projector {self.path.name} refuses it: "
                f"{reason(complaints, f'status {status}')}"
            )
        return Medium(mtmd, self.handle, chunks, self._model.row_width)

    @property
    def is_projecting(self) -> bool:
        """Whether a pass is under way, so that `jobs` has to wait."""
        return self._lock.locked()

    def jobs(self, part: Part, address: HostAddr) -> Generator[None, None, None]:
        """Jobs that compute a part of embeddings and leave it at `address`, f32 [n_rows, width].

        Only on the device's thread. Raises DeviceFailed, and RuntimeError if a pass is under way.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "a projector cannot begin while it is under way: wait until is_projecting is false"
            )
        try:
            status = yield from computed_in_jobs(
                self._device,
                self._placing,
                self._backends,
                self._jobs,
                part.n_rows,
                lambda: self._mtmd.mtmd_encode_chunk(self.handle, part.chunk),
            )
            found = self._mtmd.mtmd_get_output_embd(self.handle)
            if status != 0 or not found:
                raise DeviceFailed(f"the projector {self.path.name} failed with status {status}")
            ctypes.memmove(address, found, 4 * part.n_rows * part.width)
        finally:
            self._lock.release()

    def _require_shape(self, bitmap: Bitmap) -> None:
        if bitmap.kind is MediaKind.PCM:
            least = int(MIN_S * self.rate)
            if len(bitmap.data) < least:
                raise SettingsError(
                    f"the sound has {len(bitmap.data)} samples: give {least} or more"
                )
            return
        height, width = bitmap.data.shape[:2]
        short, long = sorted((height, width))
        if not 0 < long <= MAX_SIDE or long > MAX_RATIO * short:
            raise SettingsError(
                f"the picture has {width} by {height} pixels: give 1 to {MAX_SIDE} each way, and "
                f"no side more than {MAX_RATIO} times the other"
            )

    def _bitmap(self, bitmap: Bitmap) -> int:
        address = bitmap.data.ctypes.data
        if bitmap.kind is MediaKind.PCM:
            samples = bitmap.data.size
            return int(self._mtmd.mtmd_bitmap_init_from_audio(samples, address))
        height, width = bitmap.data.shape[:2]
        return int(self._mtmd.mtmd_bitmap_init(width, height, address))


def _refusal(path: Path, model: LibraryModel, complaints: list[str]) -> ModelError:
    said = reason(complaints, "it does not say why")
    kind = ModelUnsupported if "mismatch" in said else ModelFileError
    return kind(f"{path} is no projector that libmtmd opens for {model.path.name}: {said}")
