"""Which models `isthmus serve` has: those of its options, of its settings and of a folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.cli.naming import (
    expanded,
    fetched_model,
    model_path,
    named_models,
    named_projectors,
    parse_lora,
    usual_name,
)
from isthmus.config import Environment
from isthmus.errors import SettingsError

if TYPE_CHECKING:
    from isthmus.server.models.catalog import Catalog, Source
    from isthmus.server.settings import ServerSettings

_USUAL = "smollm2"
"""The model that is fetched and served if no other is named."""


def catalog_of(arguments: argparse.Namespace, settings: ServerSettings) -> Catalog:
    """The models that a server knows. Raises ModelNotFound, SettingsError, DownloadError."""
    from isthmus.server.models.catalog import Catalog, Source  # noqa: PLC0415 - optional

    texts, folder = list(arguments.model), settings.models_folder
    if not texts and not settings.models and folder is None:
        texts, folder = [f"{_USUAL}={fetched_model(_USUAL)}"], _cache_folder()
    if folder is not None and not folder.is_dir():
        wrong = "it is a file; --model takes one" if folder.is_file() else "there is no such folder"
        raise SettingsError(f"models_folder is {folder}: {wrong}")
    named = {
        name: Source(model_path(path), {name: ()}, at_start=True)
        for name, path in named_models(texts, default=None).items()
    }
    for name, said in settings.models.items():
        table = said if isinstance(said, dict) else {"file": said}
        if name in named:
            raise SettingsError(f"the model {name!r} is in the settings and among the options")
        path = model_path(str(table["file"]))
        mmproj = expanded(str(table["mmproj"])) if table.get("mmproj") else None
        named[name] = Source(path, {name: ()}, bool(table.get("load")), mmproj)
    for name, file in named_projectors(arguments.mmproj, named).items():
        named[name] = replace(named[name], mmproj=file)
    given = _adapted(named, arguments.lora)
    return Catalog(given, folder, {**settings.aliases, **aliases_of(arguments.alias)})


def _cache_folder() -> Path:
    """Where `isthmus pull` keeps models; made if it is not there yet."""
    folder = Environment.read().cache / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _adapted(named: dict[str, Source], texts: list[str]) -> list[Source]:
    """The files with the adapters that `[NAME=]PATH[:SCALE]` adds: to the model of that name, or
    to the first one, under a name of its own."""

    if texts and not named:
        raise SettingsError(f"--lora {texts[0]}: an adapter changes a model; give --model too")
    names = {name: dict(it.names) for name, it in named.items()}
    for text in texts:
        name, path, scale = parse_lora(text)
        name = name or usual_name(path)
        of = names[name] if name in names else next(iter(names.values()))
        of[name] = (*of.get(name, ()), (path, scale))
    return [replace(it, names=names[name]) for name, it in named.items()]


def aliases_of(texts: list[str]) -> dict[str, str]:
    """Models by alias, from `NAME=MODEL`. Raises SettingsError for a text of another form."""
    found = {}
    for text in texts:
        alias, _, name = text.partition("=")
        if not alias or not name:
            raise SettingsError(f"--alias {text}: give NAME=MODEL")
        found[alias] = name
    return found
