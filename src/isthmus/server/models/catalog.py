"""Which models a server knows: files that somebody named, and files that lie in a folder.

A name is found in this order: names that were given, models of the folder by their files' names
without `.gguf` and without a shard's number, aliases. A well-known model has the name by which
`isthmus pull` knows it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.download import KNOWN, KNOWN_FILES, fetched, is_name
from isthmus.errors import DownloadError, SettingsError
from isthmus.shards import MAX_SHARDS, SUFFIX, ShardName, model_name, models_in

_NO_UTF8 = re.compile("[\ud800-\udfff]")
"""What Python has for bytes of a file's name that are no characters."""


@dataclass(frozen=True)
class Source:
    """A model's file, or the first of its shards, and the names under which it is served.

    Models with adapters over one file share its weights, so they come and leave together.
    """

    path: Path
    names: Mapping[str, tuple[tuple[str, float], ...]]
    """The adapters of the model of each name: paths and scales; none for the file as it is."""
    at_start: bool = False
    """Whether the model is loaded before the server listens, and stays."""
    mmproj: Path | None = None
    """Its projector of pictures or sounds."""

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
        """Knows one more file, unless its name is known already. A file that is known by another
        name gets an alias."""
        known = self.sources()
        if any(source.name in it.names for it in known):
            return
        same = next((it for it in known if it.path == source.path), None)
        if same is None:
            self.given = [*self.given, source]
        else:
            self.aliases = {**self.aliases, source.name: same.name}

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

    def pulled_name(self, name: str) -> str:
        """The name of the folder's model that was pulled by this one; the same name if none was.

        It may be `hf:ORG/REPO` where the model is called as its file is.
        """
        if self.folder is None or not is_name(name):
            return name
        try:
            path = fetched(name, self.folder.parent)
        except DownloadError:  # no name after all
            return name
        return _name_of(path) if path is not None and path.parent == self.folder else name

    def _given_paths(self) -> set[Path]:
        return {it.path.resolve() for it in self.given}


def _in_folder(folder: Path | None) -> Iterable[tuple[str, Path]]:
    """Names and files of a folder's models, by name. Of two of one name a whole file comes first,
    which `_path_of` finds first too."""
    if folder is None:
        return []
    try:
        paths = [it for it in models_in(folder) if not _NO_UTF8.search(it.name)]
    except OSError:
        return []
    paths.sort(key=lambda it: (_name_of(it), ShardName.try_parse(it.name) is not None))
    found: dict[str, Path] = {}
    for it in paths:
        found.setdefault(_name_of(it), it)
    return found.items()


def _name_of(path: Path) -> str:
    """The name of a folder's model."""
    return KNOWN_FILES.get(path.name) or model_name(path)


def _path_of(folder: Path, name: str) -> Path | None:
    """The file of a folder that has a name; None if there is none. The folder is not listed."""
    if "/" in name or _NO_UTF8.search(name):
        return None
    for file_name in _file_names(name):
        if os.path.isfile(f"{folder}/{file_name}") and _name_of(folder / file_name) == name:
            return folder / file_name
    return None


def _file_names(name: str) -> Iterator[str]:
    """What the file of a model of that name may be called."""
    if name in KNOWN:
        yield KNOWN[name].file_name
        return
    yield f"{name}{SUFFIX}"
    for count in range(1, MAX_SHARDS + 1):
        yield f"{name}-00001-of-{count:05d}{SUFFIX}"
