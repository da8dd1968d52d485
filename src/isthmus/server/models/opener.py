"""Opens a model's file, with the adapters of each of its names."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from isthmus.config import ModelSettings
from isthmus.model import Adapter, Model
from isthmus.runtime import Runtime
from isthmus.server.models.catalog import Source


class Opener:
    """See the module. Its methods may take seconds, and be called from several threads."""

    def __init__(self, runtime: Runtime, settings: ModelSettings) -> None:
        self._runtime = runtime
        self.settings = settings

    def open(self, source: Source) -> dict[str, Model]:
        """The model of each name. Nothing is left open of what fails. Raises IsthmusError."""
        plain = (name for name, applied in source.names.items() if not applied)
        settings = {**asdict(self.settings), "mmproj": source.mmproj}
        model = self._runtime.load_model(source.path, label=next(plain, ""), **settings)
        try:
            paths = dict.fromkeys(path for applied in source.names.values() for path, _ in applied)
            adapters = {it: self._runtime.load_adapter(Path(it), model) for it in paths}
            return {
                name: self._named(name, model, adapters, it) for name, it in source.names.items()
            }
        except BaseException:
            self._runtime.unload_model(model)
            raise

    def _named(
        self,
        name: str,
        model: Model,
        adapters: dict[str, Adapter],
        applied: tuple[tuple[str, float], ...],
    ) -> Model:
        if not applied:
            return model
        scales = {adapters[path]: scale for path, scale in applied}
        return self._runtime.adapt(model, scales, label=name)
