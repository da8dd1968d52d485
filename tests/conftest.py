"""What tests share: the library, devices, tiny models, and the weights that `make test` fetches."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from isthmus.config import DeviceSettings, Environment
from isthmus.device import Device, open_device
from isthmus.download import fetched
from isthmus.native.loader import Library, open_library
from isthmus.runtime import Runtime
from tests.tiny_gguf import TinyLlama

pytest_plugins = ("isthmus.testing",)

settings.register_profile("isthmus", deadline=None)  # no test fails because a machine is busy
settings.load_profile("isthmus")


def pytest_sessionstart() -> None:
    """Has Ctrl-C reach tests and what they start, also if a shell in the background ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Has the garbage collector pass over what pytest itself holds.

    Hundreds of tests collect garbage to see what is left of an agent. With all modules and
    collected tests among it, each time takes a tenth of a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Has the hundreds of processes that tests start compile the sources once, and not each anew,
    also where the environment wants no bytecode beside the sources."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):
            patch.delenv("PYTHONDONTWRITEBYTECODE")
            patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("bytecode")))
        yield


@pytest.fixture(scope="session")
def library() -> Library:
    return open_library()


@pytest.fixture(scope="session")
def device(library: Library) -> Iterator[Device]:
    device = open_device("cpu", library, DeviceSettings(threads=2))
    yield device
    device.close()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    path = fetched("smollm2", Environment.read().cache)
    assert path is not None, "run: isthmus pull smollm2 (make test does)"
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a few hundred kilobytes with a vocabulary and a chat template."""
    return TinyLlama(with_tokenizer=True).write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture
def null_runtime() -> Iterator[Runtime]:
    with Runtime(device="null", threads=1) as runtime:
        yield runtime
