"""The folder of models in the cache: what was fetched, and where from.

* `models/FILE.gguf`: a model, or its shards, whole and verified
* `models/.sources/FILE.gguf.json`: the repository, revision and hashes that it came with
* `models/.pulls/`: what has come of downloads that were cut off; see `transfer`
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from isthmus.download.known import KNOWN, KnownModel, PackagedModel
from isthmus.download.names import HubName, is_name, parse
from isthmus.download.quants import PREFERRED, quant_of
from isthmus.download.transfer import Remote
from isthmus.errors import DownloadError
from isthmus.file_hash import FileHashes
from isthmus.shards import ShardName, model_name, models_in
from isthmus.units import MIB, format_nbytes

_SPARE_NBYTES = 256 * MIB
"""Bytes that stay free on the disk."""


class Origin(Struct, frozen=True):
    """Where a model came from; kept by the name of its first file."""

    repo: str
    commit: str
    path: str
    """The first file's path in the repository."""
    sha256: list[str]
    """Of each file."""


@dataclass(frozen=True, slots=True)
class Shelved:
    """A model of the folder."""

    name: str
    """What it is fetched by, or its file's name if it was put there by hand."""
    files: tuple[Path, ...]
    """One, or its shards, as far as they are there."""
    nbytes: int
    source: str
    """Where it came from, for people."""


class Shelf:
    """See the module. `cache` is the folder of all that Isthmus keeps."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "models"
        self.pulls = self.folder / ".pulls"
        self._origins = self.folder / ".sources"
        self._hashes = FileHashes(cache / "hashes")

    def find(self, text: str) -> Path | None:
        """The first file of a model by the name that it is fetched by; None if it is not here."""
        if text in KNOWN:
            path = self.folder / KNOWN[text].file_name
            return path if path.is_file() else None
        name = parse(text) if is_name(text) else None
        return self._of_repository(name) if isinstance(name, HubName) else None

    def models(self) -> list[Shelved]:
        """Every model of the folder, in order of names."""
        if not self.folder.is_dir():
            return []
        known = {it.file_name: it for it in KNOWN.values()}
        return [self._shelved(path, known.get(path.name)) for path in models_in(self.folder)]

    def remove(self, it: Shelved) -> None:
        """Removes a model's files, the first of them first, so that no half of it can be opened."""
        with self.writing():
            for path in it.files:
                path.unlink(missing_ok=True)
            (self._origins / f"{it.files[0].name}.json").unlink(missing_ok=True)

    def _shelved(self, path: Path, known: KnownModel | None) -> Shelved:
        shard, origin = ShardName.try_parse(path.name), self._origin(path.name)
        named = [path] if shard is None else [path.with_name(str(it)) for it in shard.all()]
        files = tuple(it for it in named if it.is_file())
        name, source = model_name(path), "a file that was put there"
        if origin is not None:
            name, source = f"hf:{origin.repo}/{origin.path}", f"the hub, {origin.commit[:12]}"
        if isinstance(known, PackagedModel):
            name, source = known.name, f"the package {known.package} {known.version}"
        elif known is not None and origin is not None and origin.repo == known.repo:
            name = known.name
        return Shelved(name, files, sum(it.stat().st_size for it in files), source)

    def has(self, remote: Remote) -> bool:
        """Whether a file is here, with these bytes."""
        path = self.folder / remote.name
        if not path.is_file() or path.stat().st_size != remote.nbytes:
            return False
        return self._hashes.sha256(path) == remote.sha256

    def require_place(self, remote: Remote, repo: str | None) -> None:
        """DownloadError if something else has the file's name, but for an earlier one of `repo`."""
        path = self.folder / remote.name
        if path.is_file() and not path.is_symlink():
            origin = self._origin(path.name)
            if repo is not None and origin is not None and origin.repo == repo:
                return
            raise DownloadError(
                f"{path} is another file of that name: move it away, or set ISTHMUS_CACHE to "
                "another folder, then try again"
            )
        if os.path.lexists(path):
            raise DownloadError(f"{path} exists and is no file: remove it, then try again")

    def require_space(self, nbytes: int) -> None:
        """DownloadError unless the disk has room for so many more bytes."""
        free = shutil.disk_usage(self.folder).free
        if free < nbytes + _SPARE_NBYTES:
            raise DownloadError(
                f"the disk of {self.folder} has {format_nbytes(free)} free, and "
                f"{format_nbytes(nbytes)} are to come, with {format_nbytes(_SPARE_NBYTES)} beside "
                "them: free some, or set ISTHMUS_CACHE to a folder on another disk"
            )

    def put(self, files: Sequence[tuple[Path, str]], origin: Origin | None = None) -> Path:
        """The first file's path, after all were moved to their names here. The first comes last, so
        that a model is not seen before it is whole. Raises DownloadError if somebody removed a file
        meanwhile."""
        if origin is not None:
            self._origins.mkdir(exist_ok=True)
            place = self._origins / f"{files[0][1]}.json"
            temporary = place.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(msgspec.json.encode(origin))
            os.replace(temporary, place)
        for path, name in reversed(files):
            with contextlib.suppress(FileNotFoundError):  # another process has moved the same file
                os.replace(path, self.folder / name)
        if not all((self.folder / name).is_file() for _, name in files):
            raise DownloadError(f"{files[0][1]} was removed while it was fetched: try again")
        return self.folder / files[0][1]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A block in which the folders are there, and errors of the disk are DownloadErrors that
        say what to do."""
        try:
            self.pulls.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DownloadError(
                    f"the disk of {self.folder} is full: free some of it, then try again, which "
                    "goes on where it was"
                ) from None
            raise DownloadError(
                f"cannot write to {self.folder}: {error.strerror}; set ISTHMUS_CACHE to another "
                "folder"
            ) from None

    def _of_repository(self, name: HubName) -> Path | None:
        """A file that came from a repository: the one, that of a quantisation, or the preferred."""
        found: dict[str, Path] = {}
        for path, origin in self._all():
            if origin.repo != name.repo:
                continue
            if origin.path == name.file:
                return path
            found[quant_of(model_name(path))] = path
        if name.file is not None:
            return None
        if name.quant is not None:
            return found.get(name.quant)
        usual = (found[it] for it in PREFERRED if it in found)
        return next(usual, next(iter(found.values()), None))

    def _all(self) -> Iterator[tuple[Path, Origin]]:
        for it in sorted(self._origins.glob("*.json")):
            path, origin = self.folder / it.name.removesuffix(".json"), self._origin(it.stem)
            if origin is not None and path.is_file():
                yield path, origin

    def _origin(self, file_name: str) -> Origin | None:
        try:
            data = (self._origins / f"{file_name}.json").read_bytes()
            return msgspec.json.decode(data, type=Origin)
        except (OSError, msgspec.MsgspecError):
            return None
