"""A device that computes nothing and fits every shape.

Graphs are built and placed as on the processor, and never run: logits stay as they were. It lets
everything above be tested at the speed of its own code, and shows what the kernels cost.
"""

from __future__ import annotations

from isthmus.config import DeviceSettings
from isthmus.device.base import Backend, Device
from isthmus.device.buffer import Binding
from isthmus.device.cpu import CpuDevice
from isthmus.native.loader import Library


def open_device(library: Library, settings: DeviceSettings, _index: int = 0) -> Device:
    """Opens the null device."""
    return NullDevice(library, settings)


class NullBackend(Backend):
    """Takes graphs and does not compute them."""

    def compute(self, graph: int, *_memories: Binding) -> None:
        assert graph
        self.device.counters.submissions += 1


class NullDevice(CpuDevice):
    """The processor without its kernels."""

    kind = "null"
    sharing = "none"

    def new_backend(self, deterministic: bool = False) -> Backend:
        return NullBackend(self, self._new_ggml_backend())
