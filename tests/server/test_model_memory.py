"""What models are expected to take of the memory, and what they take."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from isthmus import Runtime
from isthmus.server.http.entry import Entry, begin
from isthmus.server.models.catalog import Catalog, Source
from isthmus.server.models.memory import ModelMemory
from isthmus.server.models.models import Models
from isthmus.server.settings import ServerSettings
from tests.tiny_projector import TEXTS, TinyProjector


def test_a_projector_is_counted(null_runtime: Runtime, tmp_path: Path) -> None:
    """Before it is loaded and after that; repacking copies the model's weights alone."""
    text = TEXTS["gemma3"].write(tmp_path / "text.gguf")
    projector = TinyProjector("gemma3").write(tmp_path / "mmproj.gguf")
    source = Source(text, {"text": ()}, mmproj=projector)
    models = Models(null_runtime, Catalog([source]), ServerSettings())
    asyncio.run(_count(null_runtime, models, projector.stat().st_size))


async def _count(runtime: Runtime, models: Models, nbytes: int) -> None:
    resident = models.files.known("text")
    card = models.files.read(resident)
    assert resident.nbytes == card.nbytes + nbytes
    memory = ModelMemory(runtime, ServerSettings(), repacks=True)
    assert memory.expected_nbytes(resident) == 2 * card.nbytes + nbytes
    try:
        entry = Entry("-", "POST", "/")
        begin(entry)
        with entry.working():
            await models.use("text")
        assert resident.nbytes == card.nbytes + nbytes
        assert memory.expected_nbytes(resident) == resident.nbytes
    finally:
        await models.close()


def test_a_projector_that_is_missing_takes_nothing(null_runtime: Runtime, tmp_path: Path) -> None:
    """Loading the model says that it is missing."""
    text = TEXTS["gemma3"].write(tmp_path / "text.gguf")
    source = Source(text, {"text": ()})
    files = Models(null_runtime, Catalog([source]), ServerSettings()).files
    alone = files.read(files.known("text"))
    source = replace(source, mmproj=tmp_path / "missing.gguf")
    files = Models(null_runtime, Catalog([source]), ServerSettings()).files
    assert files.read(files.known("text")) == alone
