"""Tiny models of architectures that libllama alone knows, made by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from isthmus.file_hash import FileHashes
from isthmus.native.loader import Library
from isthmus.survey.tiny import tiny_model

DENSE = ("mimo2", "gemma3n")
"""Experts and sinks; windows, and caches that layers share."""
STATEFUL = ("qwen35", "mamba")
"""A state beside a KV cache, and a state alone. `isthmus architectures` tries all others."""


def hashes_for(path: Path) -> FileHashes:
    """What is known of a file: it is tried in a process of its own only once."""
    return FileHashes(path.parent / "hashes")


@pytest.fixture(scope="session")
def tiny_file(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of an architecture, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("adopted")

    def file(name: str) -> Path:
        path = folder / f"{name}.gguf"
        if not path.exists():
            path.write_bytes(tiny_model(library, name, seed=0))
        return path

    return file
