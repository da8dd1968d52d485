"""What a replica's models take, so that Ray places it on a node that has room for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from isthmus.config import Environment
from isthmus.download import fetched, is_name
from isthmus.errors import IsthmusError
from isthmus.shards import model_files


def weights_nbytes(settings: Mapping[str, Any], folder: str | None = None) -> int:
    """Bytes of the files of the models that a server by these settings has, as far as they are on
    this machine. `folder` is where relative paths begin."""
    paths = (_path_of(it, Path(folder or os.getcwd())) for it in _named(settings))
    found = {it for path in paths if path is not None for it in _files_of(path)}
    return sum(it.stat().st_size for it in found)


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    """Files or names of models, as `model` and `models` say them."""
    for text in settings.get("model", ()):
        name, equals, file = text.partition("=")
        yield file if equals else name
    for it in settings.get("models", {}).values():
        file = it.get("file") if isinstance(it, Mapping) else it
        if isinstance(file, str):
            yield file


def _path_of(text: str, folder: Path) -> Path | None:
    try:
        path = fetched(text, Environment.read().cache) if is_name(text) else None
        return path or folder / Path(text).expanduser()
    except IsthmusError:
        return None


def _files_of(path: Path) -> list[Path]:
    try:
        return [it.resolve() for it in model_files(path) if it.is_file()]
    except IsthmusError:
        return []
