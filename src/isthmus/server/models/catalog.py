"""Which models a server knows: files that somebody named, and files that lie in a folder.

A name is found in this order: names that were given, files of the folder by their names without
`.gguf`, aliases. A packaged model has the name by which `isthmus pull` knows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.download import PACKAGED
from isthmus.errors import SettingsError

_SUFFIX = ".gguf"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\Z")
"""The end of the name of a file that is a part of a model."""
_NO_UTF8 = re.compile("[\ud800-\udfff]")
"""What Python has for bytes of a file's name that are no characters."""
_PACKAGED_NAMES = {it.file_name: name for name, it in PACKAGED.items()}


@dataclass(frozen=True)
class Source:
    """A model's file, and the names under which it is served.

    Models with adapters over one file share its weights, so they come and leave together.
    """

    path: Path
    names: Mapping[str, tuple[tuple[str, float], ...]]
    """The adapters of the model of each name: paths and scales; none for the file as it is."""
    at_start: bool = False
    """Whether the model is loaded before the server listens, and stays."""

    @property
    def name(self) -> str:
        """The first of its names."""
        return next(iter(self.names))


@dataclass
class Catalog:
    """See the module. `folder` may be None, or not be there yet."""

    given: Sequence[Source] = ()
    folder: Path | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [name for source in self.given for name in source.names]
        twice = next((it for it in names if names.count(it) > 1), None)
        if twice is not None:
            raise SettingsError(f"two models have the name {twice!r}: give each another one")
        for alias, name in self.aliases.items():
            if alias in names:
                raise SettingsError(f"the alias {alias!r} is a model's name already")
            if name in self.aliases:
                raise SettingsError(f"the alias {alias!r} is of another alias, {name!r}")

    def add(self, source: Source) -> None:
        """Knows one more file, unless it or its name is known already."""
        known = self.sources()
        names = {name for it in known for name in it.names}
        if source.name not in names and not any(it.path == source.path for it in known):
            self.given = [*self.given, source]

    def sources(self) -> list[Source]:
        """All files that there are now: those that were given, then the folder's."""
        taken = {name for it in self.given for name in it.names}
        paths = self._given_paths()
        found = [
            Source(path, {name: ()})
            for name, path in _in_folder(self.folder)
            if name not in taken and path.resolve() not in paths
        ]
        return [*self.given, *found]

    def find(self, name: str) -> Source | None:
        """The file that has a name now; looks at no other file of the folder."""
        for it in self.given:
            if name in it.names:
                return it
        path = None if self.folder is None else _path_of(self.folder, name)
        if path is None or path.resolve() in self._given_paths():
            return None
        return Source(path, {name: ()})

    def _given_paths(self) -> set[Path]:
        return {it.path.resolve() for it in self.given}


def _in_folder(folder: Path | None) -> Iterable[tuple[str, Path]]:
    """Names and files of a folder, by name; parts of models that have several files are none."""
    if folder is None:
        return []
    try:
        paths = sorted(it for it in folder.iterdir() if _is_model(it))
    except OSError:
        return []
    return [(_PACKAGED_NAMES.get(it.name, it.stem), it) for it in paths]


def _path_of(folder: Path, name: str) -> Path | None:
    """The file of a folder that has a name; None if there is none."""
    file_name = PACKAGED[name].file_name if name in PACKAGED else f"{name}{_SUFFIX}"
    path = folder / file_name
    is_own = path.name == file_name and _PACKAGED_NAMES.get(file_name, name) == name
    try:
        return path if is_own and _is_model(path) else None
    except OSError:  # such as a name that is too long
        return None


def _is_model(path: Path) -> bool:
    """Whether a file can be named by requests: its name is UTF-8, and it is a whole model."""
    named = path.suffix == _SUFFIX and not _SHARD.search(path.stem)
    return named and not _NO_UTF8.search(path.name) and path.is_file()
