"""The files of a model, by their names: one, or shards that lie beside each other.

A model is NAME.gguf, or NAME-00001-of-00004.gguf to NAME-00004-of-00004.gguf in one folder, as
`llama-gguf-split` writes them. Any shard names the whole model, and so does a folder that has no
other. What the shards say of themselves is compared in `model/files/split.py`.

A hub's cache has links: `snapshots/REVISION/NAME` leads to `blobs/HASH`. Shards lie beside the name
that has the form above: the one that was given, or else the first such name that its links lead to.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from isthmus.errors import ModelFileError, ModelNotFound

SUFFIX = ".gguf"
MAX_SHARDS = 256
"""Files that one model may have."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_MAX_LINKS = 40
"""Links that are followed for one name; Linux follows as many."""
_MAX_NAMED = 5
"""Names in an error."""


@dataclass(frozen=True)
class ShardName:
    """The name of one file of several: number 1 to `count`."""

    stem: str
    number: int
    count: int

    @staticmethod
    def try_parse(file_name: str) -> ShardName | None:
        """The parts of such a name; None for any other."""
        found = _SHARD.fullmatch(file_name)
        return ShardName(found[1], int(found[2]), int(found[3])) if found else None

    def __str__(self) -> str:
        return f"{self.stem}-{self.number:05d}-of-{self.count:05d}{SUFFIX}"

    def all(self) -> list[ShardName]:
        """The names of all files of the model, in order. ModelFileError if there are no such."""
        if not 1 <= self.number <= self.count <= MAX_SHARDS:
            raise ModelFileError(
                f"{self} would be shard {self.number} of {self.count}; a model has 1 to "
                f"{MAX_SHARDS}, and each is numbered within them"
            )
        return [replace(self, number=n) for n in range(1, self.count + 1)]


def model_files(path: Path) -> tuple[Path, ...]:
    """All files of the model that a path names, in order; the path itself for any other file.

    Raises ModelNotFound if shards are missing, or a folder does not have exactly one model;
    ModelFileError if a shard's number cannot be.
    """
    if os.path.isdir(path):
        path = _only_model(path)
    shard = _shard_of(path)
    if shard is None:
        return (path,)
    folder, name = shard
    files = tuple(folder / str(it) for it in name.all())
    missing = [it.name for it in files if not os.path.exists(it)]
    if len(missing) == len(files):
        raise ModelNotFound(f"there is no file {path}")
    if missing:
        more = " …" if len(missing) > _MAX_NAMED else ""
        raise ModelNotFound(
            f"{path} is one of {name.count} shards, of which {folder} lacks {len(missing)}: "
            f"{', '.join(missing[:_MAX_NAMED])}{more}. Fetch what is missing"
        )
    return files


def first_file(path: Path) -> Path:
    """The file that names a model: itself, or its first shard. Raises as `model_files`."""
    return model_files(path)[0]


def model_name(path: Path) -> str:
    """The name of a model by its file's: without `.gguf`, and without a shard's number."""
    shard = ShardName.try_parse(path.name)
    return shard.stem if shard else path.stem


def models_in(folder: Path) -> list[Path]:
    """The models of a folder by their first files, in order of names; shards of models whose first
    is missing are left out. Raises OSError."""
    files = sorted(it for it in folder.iterdir() if it.suffix == SUFFIX and it.is_file())
    shards = {it: ShardName.try_parse(it.name) for it in files}
    return [it for it, shard in shards.items() if shard is None or shard.number == 1]


def _only_model(folder: Path) -> Path:
    """The model of a folder that has one."""
    try:
        found = models_in(folder)
    except OSError as error:
        raise ModelNotFound(f"cannot read the folder {folder}: {error.strerror}") from None
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelNotFound(f"{folder} is a folder without a model; give a .gguf file")
    named = ", ".join(it.name for it in found[:_MAX_NAMED])
    more = " …" if len(found) > _MAX_NAMED else ""
    raise ModelNotFound(
        f"{folder} is a folder with {len(found)} models: give one of its files, {named}{more}"
    )


def _shard_of(path: Path) -> tuple[Path, ShardName] | None:
    """The folder and the name of a shard; None for a file whose names have no such form."""
    for _ in range(_MAX_LINKS):
        name = ShardName.try_parse(path.name)
        if name is not None:
            return path.parent, name
        try:
            path = path.parent / os.readlink(path)
        except (OSError, ValueError):  # no link, no file, or a zero byte in the name
            return None
    return None
