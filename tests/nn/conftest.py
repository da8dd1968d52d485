"""A tiny model that makes text and embeddings, and a guest that calls what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus.model import Model
from isthmus.runtime import Runtime
from tests.nn.guests import Nn, forwarding_guest
from tests.tiny_gguf import TinyLlama


@pytest.fixture(scope="package")
def runtime() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="package")
def able(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = TinyLlama(with_tokenizer=True, overrides={"pooling_type": 3})
    return tiny.write(tmp_path_factory.mktemp("able") / "able.gguf")


@pytest.fixture(scope="package")
def model(runtime: Runtime, able: Path) -> Model:
    return runtime.load_model(able)


@pytest.fixture(scope="package")
def wasm() -> bytes:
    return forwarding_guest()


@pytest.fixture
def nn(runtime: Runtime, model: Model, wasm: bytes) -> Iterator[Nn]:
    proxy = Nn(runtime, wasm, models={"default": model})
    with proxy.actor:
        yield proxy
