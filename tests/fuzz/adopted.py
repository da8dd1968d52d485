"""Snapshots of models whose graphs are libllama's: what they say of its state is not believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from tests.fuzz import snapshots
from tests.fuzz.surface import Surface
from tests.tiny_gguf import TinyLlama, TinyModel


class Fuzz(snapshots.Fuzz):
    """Restores a snapshot of such a model, and has the actor talk, fork and be saved again."""

    corpus: ClassVar[Any] = {}
    n_short = 8

    def __init__(self, folder: Path) -> None:
        Surface.__init__(self, folder)
        self.runtime = snapshots._runtime(folder)
        plain = TinyLlama(with_tokenizer=True).write(folder / "tiny.gguf")
        states = TinyModel("lfm2", with_tokenizer=True).write(folder / "states.gguf")
        self.model, self.states = (
            self.runtime.load_model(it, graph="adopted") for it in (plain, states)
        )
        self.good, self.with_states = (
            snapshots._saved(self.runtime, model, folder / f"{name}.safetensors")
            for name, model in (("good", self.model), ("states", self.states))
        )
        self.other = self.runtime.load_model(plain, graph="own")
