"""The Hugging Face hub: which files a repository has, and which of them are the wanted model.

* `GET /api/models/ORG/REPO/revision/REV?blobs=true` lists `siblings`: `rfilename`, and in `lfs` the
  file's `sha256` and `size`; `sha` is the commit.
* `GET /ORG/REPO/resolve/COMMIT/FILE` leads to the file's bytes.

https://huggingface.co/docs/hub/api; HF_ENDPOINT names another hub, HF_TOKEN whoever asks.
"""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from msgspec import Struct

from isthmus.config import Environment
from isthmus.download.http import Client, brief, decoded
from isthmus.download.names import HubName, is_plain
from isthmus.download.quants import PREFERRED, quant_of
from isthmus.download.transfer import Remote, refusal
from isthmus.errors import DownloadError
from isthmus.shards import SUFFIX, ShardName

_NO_MODELS = ("mmproj", "imatrix")
"""Words in the names of GGUF files that are parts of models, or data about them."""
_SHA256, _COMMIT = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")
_MAX_FILE_NBYTES = 1 << 44
_MAX_NAMED = 12
"""Files or quantisations in an error."""


class _Lfs(Struct):
    sha256: str
    size: int


class _Sibling(Struct):
    rfilename: str
    lfs: _Lfs | None = None


class _Listing(Struct):
    sha: str
    siblings: list[_Sibling]


@dataclass(frozen=True)
class HubFiles:
    """The files of one model of a repository, in order."""

    repo: str
    commit: str
    path: str
    """The first file's, inside the repository."""
    files: tuple[Remote, ...]


class Hub:
    """One hub, for whoever has the environment's token."""

    def __init__(self, environment: Environment) -> None:
        self._url = environment.hub_url.rstrip("/")
        token = environment.hub_token
        self.client = Client(self._url, f"Bearer {token}" if token else None)

    def find(self, name: HubName, revision: str = "main") -> HubFiles:
        """The files of the model that a name names at a revision: a branch, tag or commit.

        Raises Cut if the hub does not answer, DownloadError.
        """
        listing = self._listing(name, revision)
        if not _COMMIT.fullmatch(listing.sha):
            raise DownloadError(
                f"the hub says that {name.repo} is at the commit {brief(listing.sha)}"
            )
        chosen = choose(name, [it.rfilename for it in listing.siblings])
        by_name = {it.rfilename: it for it in listing.siblings}
        files = tuple(self._remote(name.repo, listing.sha, by_name[it]) for it in chosen)
        return HubFiles(name.repo, listing.sha, chosen[0], files)

    def _listing(self, name: HubName, revision: str) -> _Listing:
        url = f"{self._url}/api/models/{name.repo}/revision/{quote(revision, safe='')}?blobs=true"
        try:
            data, _, _ = self.client.read(url, {"Accept": "application/json"})
            return decoded(data, _Listing)
        except urllib.error.HTTPError as error:
            what = f"{name.repo} at the revision {revision}"
            raise DownloadError(f"the hub does not give {what}: {refusal(error)}") from None
        except DownloadError as error:
            raise DownloadError(f"the hub does not give {name}: {error}") from None

    def _remote(self, repo: str, commit: str, found: _Sibling) -> Remote:
        lfs = found.lfs
        if lfs is None or not _SHA256.fullmatch(lfs.sha256):
            raise DownloadError(
                f"the hub gives no SHA-256 for {found.rfilename} of {repo}, by which it could be "
                "verified: it is not fetched"
            )
        if not 0 < lfs.size <= _MAX_FILE_NBYTES:
            raise DownloadError(f"the hub says that {found.rfilename} has {brief(lfs.size)} bytes")
        url = f"{self._url}/{repo}/resolve/{commit}/{quote(found.rfilename)}"
        return Remote(url, PurePosixPath(found.rfilename).name, lfs.size, lfs.sha256)


def choose(name: HubName, files: Sequence[str]) -> list[str]:
    """The paths of the wanted model's files, in order. DownloadError."""
    models = _models(name, files)
    if name.file is not None:
        return _by_file(name, models)
    if not models:
        raise DownloadError(f"{name.repo} has no {SUFFIX} files: look for a repository of GGUF")
    by_quant: dict[str, list[list[str]]] = {}
    for it in models:
        by_quant.setdefault(_quant(it[0]), []).append(it)
    quant = name.quant or _preferred(by_quant)
    if quant is None or quant not in by_quant:
        known = _some([it for it in by_quant if it]) or _some([it[0] for it in models])
        wrong = f"none in {name.quant}" if name.quant else "none whose name says a usual type"
        raise DownloadError(f"{name.repo} has {wrong}; it has {known}")
    found = by_quant[quant]
    if len(found) > 1:
        raise DownloadError(
            f"{name.repo} has {len(found)} models{quant and f' in {quant}'}: give "
            f"hf:{name.repo}/FILE, one of "
            f"{_some([it[0] for it in found])}"
        )
    return _whole(name, found[0])


def _models(name: HubName, files: Sequence[str]) -> list[list[str]]:
    """The files of each model. A repository with a GGUF file that cannot be named here is refused
    whole; so is a model whose shards are not all there, once it is wanted."""
    found: dict[tuple[str, str, int], list[str]] = {}
    for it in sorted(files):
        if not it.endswith(SUFFIX):
            continue
        if not is_plain(it):
            raise DownloadError(
                f"{name.repo} has a file named {brief(it)!r}: nothing of it is fetched"
            )
        path = PurePosixPath(it)
        if any(word in path.name.lower() for word in _NO_MODELS):
            continue
        shard = ShardName.try_parse(path.name)
        key = (str(path.parent), shard.stem, shard.count) if shard else (it, "", 0)
        found.setdefault(key, []).append(it)
    return list(found.values())


def _by_file(name: HubName, models: list[list[str]]) -> list[str]:
    for files in models:
        if name.file in files:
            return _whole(name, files)
    known = _some([it[0] for it in models])
    raise DownloadError(f"{name.repo} has no file {name.file}; it has {known or 'no models'}")


def _whole(name: HubName, files: list[str]) -> list[str]:
    """The same files, if none of a split model is missing."""
    shard = ShardName.try_parse(PurePosixPath(files[0]).name)
    if shard is None:
        return files
    wanted = [str(it) for it in shard.all()]
    if wanted != [PurePosixPath(it).name for it in files]:
        raise DownloadError(f"{name.repo} lacks some of the {shard.count} shards of {files[0]}")
    return files


def _preferred(by_quant: dict[str, list[list[str]]]) -> str | None:
    """The quantisation to take if nobody says: the only one, or the first of `PREFERRED`."""
    if len(by_quant) == 1:
        return next(iter(by_quant))
    return next((it for it in PREFERRED if it in by_quant), None)


def _quant(file: str) -> str:
    name = PurePosixPath(file).name
    shard = ShardName.try_parse(name)
    return quant_of(shard.stem if shard else name.removesuffix(SUFFIX))


def _some(names: list[str]) -> str:
    more = " …" if len(names) > _MAX_NAMED else ""
    return ", ".join(map(brief, names[:_MAX_NAMED])) + more
