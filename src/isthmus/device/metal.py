"""Metal on Apple Silicon: `newBufferWithBytesNoCopy` over guests' memory and over weight files.

Processor and GPU share one memory: the device sees the same bytes at the same addresses, and
nothing is uploaded. A Metal buffer covers whole pages of 16 KiB; a range larger than
`maxBufferLength` becomes several. A Binding holds its Region, so every buffer is freed before the
memory is unmapped.
"""

from __future__ import annotations

from isthmus.config import DeviceSettings
from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.device.finding import Kind
from isthmus.device.importing import ImportingDevice
from isthmus.memory import FileMapping
from isthmus.native.loader import Library


def open_device(library: Library, settings: DeviceSettings, index: int = 0) -> Device:
    """Opens the GPU. Raises DeviceUnavailable."""
    return MetalDevice(library, settings, index)


class MetalDevice(ImportingDevice):
    """See the module."""

    kind = Kind(
        name="metal",
        registry="MTL",
        driver="",
        install_library="the wheel of xllamacpp for macOS on arm64 has it",
        install_driver="virtual Macs often give their guests no GPU",
    )
    in_place = "same"

    def bind_file(self, file: FileMapping) -> Binding | None:
        if self.sharing == "copied":
            return None
        return Binding(self.import_memory, file, largest=self.largest_buffer)
