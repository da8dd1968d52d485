"""A device that computes nothing and fits every shape.

Graphs are built and placed as on the processor, and never run: logits stay as they were. It lets
everything above be tested at the speed of its own code. `NullDevice.step_s` makes a submission last
as long as a real one, which shows what the host does with the time that kernels leave it.
"""

from __future__ import annotations

import time
from collections import deque

from isthmus.config import DeviceSettings
from isthmus.device.base import Backend, Device
from isthmus.device.buffer import Binding
from isthmus.device.cpu import CpuDevice
from isthmus.native.loader import Library

_MAX_TIMES = 4096
"""Submissions whose beginnings are kept: some 160 KiB of numbers."""


def open_device(library: Library, settings: DeviceSettings, _index: int = 0) -> Device:
    """Opens the null device."""
    return NullDevice(library, settings)


class NullDevice(CpuDevice):
    """The processor without its kernels."""

    kind = "null"
    sharing = "none"

    def __init__(self, library: Library, settings: DeviceSettings) -> None:
        super().__init__(library, settings)
        self.step_s = 0.0
        """Seconds that each submission sleeps, with the interpreter's lock released. Tests and
        benchmarks set it; the next submission takes notice."""
        self.began_ns: deque[int] = deque(maxlen=_MAX_TIMES)
        """When the last submissions began, on the clock of time.perf_counter_ns."""

    @property
    def joins_sequences(self) -> bool:
        return True  # there are no bits that could be others

    @property
    def finds_top(self) -> bool:
        return True  # as a card does; the candidates are those that somebody wrote there

    def new_backend(self, deterministic: bool = False) -> Backend:
        return NullBackend(self, self._new_ggml_backend())


class NullBackend(Backend):
    """Takes graphs and does not compute them."""

    device: NullDevice

    def compute(self, graph: int, *_memories: Binding) -> None:
        assert graph
        device = self.device
        start = time.perf_counter_ns()
        device.began_ns.append(start)
        if device.step_s:
            time.sleep(device.step_s)
        device.counters.kernel_ns += time.perf_counter_ns() - start
        device.counters.submissions += 1
