"""Models and adapters as the command line names them: `[NAME=]PATH`, `[NAME=]PATH[:SCALE]`.

A path may have `=`, `:` and spaces in it. What exists as a path, or can be fetched by its name, is
taken as such: first all of the text, then what comes after its first `=`, its second, and so on.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from isthmus.cli.progress import download_bars
from isthmus.config import Environment
from isthmus.download import fetched, hint, is_name, pull
from isthmus.errors import ModelNotFound, SettingsError
from isthmus.model.scripted import NAME, is_scripted, scripted_file
from isthmus.printable import printable
from isthmus.shards import first_file, model_name


def named_models(texts: list[str], default: str | None = "default") -> dict[str, str]:
    """Paths by name, from `[NAME=]PATH`. Models without a name get `default`, or with None what
    their file is called. Raises SettingsError for a name that is empty or used twice."""
    paths: dict[str, str] = {}
    for text in texts:
        name, path = _split(text)
        if name is None:
            name = default or usual_name(path)
        if not name or name in paths:
            raise SettingsError(f"--model {text}: the name {name!r} is empty or used twice")
        paths[name] = path
    return paths


def usual_name(path: str) -> str:
    """The name of a model that was given none: the one it is fetched by, or its file's."""
    if is_name(path) and not exists(path):
        return path
    if is_scripted(path) and not exists(path):
        return NAME
    return printable(model_name(first_file(expanded(path))))


def named_projectors(texts: list[str], models: Collection[str]) -> dict[str, Path]:
    """Projector files by the names of their models, from `[NAME=]FILE`. One without a name is the
    first model's. Raises SettingsError for a name that no model has, or that has a projector
    already."""
    found: dict[str, Path] = {}
    for text in texts:
        splits = ((name, path) for name, path in _splits(text) if name != "" and exists(path))
        name, path = next(splits, (None, text))
        if name is None:
            name = next(iter(models), "")
        if name not in models or name in found:
            raise SettingsError(
                f"--mmproj {text}: there is no model {name!r}, or it has a projector already; give "
                "[NAME=]FILE with the name of a --model"
            )
        found[name] = expanded(path)
    return found


def parse_lora(text: str) -> tuple[str, str, float]:
    """Name, path and scale of `[NAME=]PATH[:SCALE]`; "" for no name. Raises SettingsError if the
    name or the path is empty."""
    for name, rest in _splits(text):
        path, _, said = rest.rpartition(":")
        if name != "" and exists(rest):
            return name or "", rest, 1.0
        if name != "" and path and exists(path):
            return name or "", path, _scale(text, rest, said)
    name, equals, rest = text.rpartition("=")
    path, colon, said = rest.rpartition(":")
    if not colon:
        path, said = rest, "1"
    scale = _scale(text, rest, said)
    if (equals and not name) or not path:
        raise SettingsError(f"--lora {text}: the name or the path is empty")
    return name, path, scale


def model_path(text: str) -> Path:
    """The file that a user means: a path, or a model that was fetched by its name. Raises
    ModelNotFound if there is no such file, or it was not fetched yet."""
    if exists(text):
        return first_file(expanded(text))
    if is_scripted(text):
        return scripted_file(text, Environment.read().cache / "scripted")
    if not is_name(text):
        raise ModelNotFound(f"there is no file {text or repr(text)}{hint(text)}")
    found = fetched(text, Environment.read().cache)
    if found is None:
        raise ModelNotFound(f"{text} was not fetched yet; run: isthmus pull {text}")
    return found


def fetched_model(name: str) -> Path:
    """The file of a model by its name, fetched now if it is not there."""
    environment = Environment.read()
    with download_bars() as (say, watch):
        return fetched(name, environment.cache) or pull(name, environment, say, watch)


def _split(text: str) -> tuple[str | None, str]:
    """Name and path of `[NAME=]PATH`; None for no name. The path need not exist."""
    for name, path in _splits(text):
        if name != "" and (exists(path) or is_name(path) or is_scripted(path)):
            return name, path
    before, equals, path = text.partition("=")
    return (before, path) if equals else (None, text)


def _splits(text: str) -> Iterator[tuple[str | None, str]]:
    """All ways to take a text as a name and the rest; None for no name."""
    yield None, text
    for at, character in enumerate(text):
        if character == "=":
            yield text[:at], text[at + 1 :]


def _scale(text: str, rest: str, said: str) -> float:
    try:
        return float(said)
    except ValueError:
        raise SettingsError(
            f"--lora {text}: there is no file {rest}, and {said!r} is no scale; give "
            "[NAME=]PATH[:SCALE]"
        ) from None


def exists(path: str) -> bool:
    """Whether there is something at a path."""
    try:
        return bool(path) and expanded(path).exists()
    except OSError:  # such as for too long a name
        return False


def expanded(path: str) -> Path:
    """The path with `~` for a home; a user that there is not leaves it as it is."""
    return Path(os.path.expanduser(path))
