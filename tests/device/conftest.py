"""A CUDA driver without a card, for tests of the device that would use one."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.config import DeviceSettings
from isthmus.device import Device, cuda
from isthmus.native._ggml import DeviceType
from isthmus.native.cuda import Advice, Attribute, Cuda
from isthmus.native.loader import Library
from isthmus.units import GIB

MANAGED = {
    Attribute.MANAGED_MEMORY: 1,
    Attribute.CONCURRENT_MANAGED_ACCESS: 1,
    Attribute.CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM: 1,
}


class FakeDriver:
    """Compiled for each test session; its state is the process's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        for name in (
            "fake_advised",
            "fake_prefetched",
            "fake_copied_on_device",
            "fake_n_blocks",
            "fake_attached",
            "fake_registered",
            "fake_n_registered",
        ):
            getattr(self.library, name).restype = ctypes.c_size_t
        self.library.fake_set_free.argtypes = [ctypes.c_size_t]
        self.library.fake_attached.argtypes = [ctypes.c_uint64]
        self.library.fake_registered.argtypes = [ctypes.c_uint64]

    def set(self, attributes: dict[Attribute, int]) -> None:
        for attribute in Attribute:
            self.library.fake_set(attribute, attributes.get(attribute, 0))

    def set_free(self, nbytes: int) -> None:
        self.library.fake_set_free(nbytes)

    def advised(self, advice: Advice, where: int) -> int:
        return int(self.library.fake_advised(advice, where))

    def prefetched(self, where: int) -> int:
        return int(self.library.fake_prefetched(where))

    def attached(self, address: int) -> int:
        return int(self.library.fake_attached(address))

    @property
    def copied_on_device(self) -> int:
        return int(self.library.fake_copied_on_device())

    def is_registered(self, address: int) -> bool:
        return bool(self.library.fake_registered(address))

    @property
    def n_registered(self) -> int:
        """Ranges of the process's memory that are pinned now."""
        return int(self.library.fake_n_registered())

    @property
    def n_blocks(self) -> int:
        return int(self.library.fake_n_blocks())


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cuda") / "libcuda.so.1"
    source = Path(__file__).parent / "fake_cuda.c"
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-o"]
    subprocess.run([*command, str(target), str(source)], check=True)
    return target


@pytest.fixture
def driver(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver(compiled)
    fake.set(MANAGED)
    fake.set_free(64 * GIB)

    def open_fake(library: Library, settings: DeviceSettings, index: int = 0) -> Device:
        handle = library.ggml_backend_dev_by_type(DeviceType.CPU)
        return cuda.CudaDevice(library, settings, index, handle, Cuda(index, str(fake.path)))

    monkeypatch.setattr(cuda, "open_device", open_fake)
    return fake
