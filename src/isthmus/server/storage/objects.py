"""Whole objects under one URL, by obstore: the verbs that S3, Google's and Azure's share.

An object appears whole or not at all. Nothing is renamed or locked. Objects that change are written
on a condition: `create` only where there is none, `replace` only over the version that the caller
has seen. Everything that a backend raises becomes StorageError.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from isthmus.errors import SettingsError, StorageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Version: TypeAlias = "dict[str, str]"
"""What a store says about one write of an object: `e_tag`, `version` or both."""

_CLIENT = {"connect_timeout": "3s", "read_timeout": "20s", "timeout": "30s", "allow_http": True}
"""Limits of one HTTP request; a file is sent in requests of 5 MiB. Only an endpoint that is given
as http:// is used without TLS."""
_RETRY = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {
        "init_backoff": timedelta(milliseconds=50),
        "max_backoff": timedelta(seconds=1),
        "base": 2,
    },
}
_AT_A_TIME = 16
"""Objects that are fetched together."""
PART_NBYTES = 8 << 20
"""Bytes of one request for a large object: each request has the time of `_CLIENT`, and only so many
bytes are in memory."""
_PARTS_AT_A_TIME = 4
"""Parts of one object that are fetched together."""
_REFUSED = ("401 Unauthorized", "403 Forbidden")
"""What errors say of lists that a key may not read, which have no class of their own."""
_MAX_PARTS = 9000
"""Parts of one upload at most; S3 takes 10,000."""
_MIN_PART_NBYTES = 5 << 20
"""Bytes of one part of an upload; S3 takes no smaller ones."""


@dataclass(frozen=True)
class Found:
    """An object as it was read."""

    data: bytes
    version: Version


class Objects:
    """See the module. May be used by several threads."""

    def __init__(self, url: str) -> None:
        """Opens the store, which is not asked anything yet. SettingsError for a URL of none."""
        self.url = url.rstrip("/")
        if set(url) & set("*?[]"):
            raise SettingsError(f"{url}: an address of agents has no *, ?, [ or ]")
        self._store = open_store(url)

    def names(self, folder: str) -> list[str]:
        """The names of all objects in a folder."""
        return sorted(self.tags(folder))

    def tags(self, folder: str) -> dict[str, str]:
        """What changes whenever an object is written, by the names of a folder's objects."""
        with self._explained(folder, "listed"):
            listed = [it for page in self._store.list(folder) for it in page]
        named = {it["path"].removeprefix(f"{folder}/"): _tag(it) for it in listed}
        # What lies deeper belongs to another URL, which begins with this one.
        return {name: tag for name, tag in named.items() if "/" not in name}

    def find(self, name: str) -> Found | None:
        """An object and its version; None if there is none."""
        with self._explained(name, "read"):
            try:
                result = self._store.get(name)
            except FileNotFoundError:
                return None
            return Found(bytes(result.bytes()), _version(result.meta))

    def get(self, name: str) -> bytes | None:
        """All bytes of an object; None if there is none."""
        found = self.find(name)
        return found.data if found else None

    def fetch(self, name: str, folder: Path) -> bytes | mmap.mmap | None:
        """An object that may be larger than the memory, fetched in parts; None if there is none.
        Such a one is mapped from a file in a folder, where it has no name."""
        with self._explained(name, "read"):
            try:
                first = self._store.get(name, options={"range": (0, PART_NBYTES)})
            except FileNotFoundError:
                return None
            nbytes, begin = int(first.meta["size"]), bytes(first.bytes())
            if nbytes <= len(begin):
                return begin
            with tempfile.TemporaryFile(dir=folder) as file:
                os.pwrite(file.fileno(), begin, 0)
                self._fetch_rest(name, file.fileno(), len(begin), nbytes)
                return mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ)

    def _fetch_rest(self, name: str, fd: int, start: int, nbytes: int) -> None:
        """Writes all parts from `start` on to a file. What a store says of the size may be wrong,
        so nothing is begun before the parts before it have come whole."""

        def fetch_part(start: int) -> None:
            end = min(start + PART_NBYTES, nbytes)
            part = bytes(self._store.get_range(name, start=start, end=end))
            if os.pwrite(fd, part, start) != end - start:
                raise StorageError(f"{self.url}/{name} ends before the {nbytes} bytes that it has")

        at_once = PART_NBYTES * _PARTS_AT_A_TIME
        with ThreadPoolExecutor(_PARTS_AT_A_TIME) as pool:
            for begin in range(start, nbytes, at_once):
                end = min(begin + at_once, nbytes)
                list(pool.map(fetch_part, range(begin, end, PART_NBYTES)))

    def find_all(self, names: Iterable[str]) -> dict[str, Found]:
        """Objects by their names, without those that are not there."""
        wanted = list(names)
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            found = pool.map(self.find, wanted)
            return {name: it for name, it in zip(wanted, found, strict=True) if it is not None}

    def put(self, name: str, data: bytes | Path) -> None:
        """Makes an object of bytes or of a file, or replaces it: for what is always the same. What
        is large goes in parts."""
        with self._explained(name, "written"):
            nbytes = data.stat().st_size if isinstance(data, Path) else len(data)
            part = max(_MIN_PART_NBYTES, -(-nbytes // _MAX_PARTS))
            self._store.put(name, data, chunk_size=part)

    def create(self, name: str, data: bytes) -> Version | None:
        """Makes an object; None if there is another one of that name.

        Of several callers who try at the same time, one gets a version.
        """
        return self._put_if(name, data, "create")

    def replace(self, name: str, data: bytes, seen: Version) -> Version | None:
        """Replaces the version of an object that was `seen`; None if it is not there any more."""
        return self._put_if(name, data, seen)

    def delete(self, names: Iterable[str]) -> None:
        """Removes objects, if they are there."""
        wanted = list(names)
        with self._explained(wanted[0] if wanted else "", "deleted"):
            try:
                self._store.delete(wanted)
            except FileNotFoundError:  # some stores end there
                for name in wanted:
                    with contextlib.suppress(FileNotFoundError):
                        self._store.delete(name)

    def require_conditions(self, folder: str) -> None:
        """Tries in a folder whether the store refuses what it must, and shows at once what was
        written. SettingsError if it does not, StorageError if it cannot be used.

        Several stores that speak S3 ignore conditions in silence.
        """
        name = f"{folder}/probe-{secrets.token_hex(8)}"
        self.tags(folder)  # a list that is shown again would lack what comes now
        try:
            self._try(name)
            if self.get(name) != b"2" or name.rpartition("/")[2] not in self.tags(folder):
                raise _is_late(self.url)
        except BaseException:
            with contextlib.suppress(StorageError):
                self.delete([name])
            raise
        self.delete([name])

    def _try(self, name: str) -> None:
        """Leaves an object that is `2`. SettingsError if a condition was ignored."""
        first = self.create(name, b"1")
        if self.get(name) is None:
            raise _is_late(self.url)
        second = self.replace(name, b"2", first) if first else None
        kept = first and second and not self.create(name, b"3")
        if not kept or self.replace(name, b"4", first or {}) or self.get(name) in (b"3", b"4"):
            raise SettingsError(
                f"{self.url} does not honour conditional writes (If-None-Match and If-Match), "
                "so two servers could overwrite each other's agents: use a store that does, "
                "such as S3, or a local folder"
            )

    def _put_if(self, name: str, data: bytes, mode: Any) -> Version | None:
        from obstore.exceptions import AlreadyExistsError, PreconditionError  # noqa: PLC0415

        with self._explained(name, "written"):
            try:
                return _version(self._store.put(name, data, mode=mode))
            except (AlreadyExistsError, PreconditionError):
                found = self.find(name)
                # A request that was carried out and then repeated meets its own object.
                return found.version if found is not None and found.data == data else None

    @contextlib.contextmanager
    def _explained(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # of the backend's own, or built-in ones
            where = f"{self.url}/{name}"
            raise StorageError(f"{where} cannot be {what}: {_reason(error)}") from error


def _is_late(url: str) -> SettingsError:
    return SettingsError(
        f"{url} shows an older state after a write (it is eventually consistent), so servers would "
        "not see each other: use a store that shows each write at once, such as S3, or a local "
        "folder"
    )


def open_store(url: str) -> ObjectStore:
    """The store and the prefix in it that a URL names. SettingsError if there is no such."""
    try:
        from obstore import store  # noqa: PLC0415 - an optional dependency
        from obstore.exceptions import BaseError  # noqa: PLC0415
    except ImportError:
        raise SettingsError(f"for agents at {url} run: pip install 'isthmus[s3]'") from None
    scheme, _, rest = url.partition("://")
    if not rest.strip("/"):
        raise SettingsError(f"{url}: give a bucket and a prefix, such as s3://bucket/agents")
    if scheme not in ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss"):
        raise SettingsError(f"{url}: give an address that begins with s3://, gs:// or az://")
    how: Any = {"client_options": _CLIENT, "retry_config": _RETRY}
    try:
        return store.from_url(url, **how)
    except (BaseError, ValueError) as error:
        raise SettingsError(f"{url}: {_reason(error)}") from None


def _version(said: Any) -> Version:
    """Of what a store answers: a write's condition takes no fields that are empty."""
    return {key: said[key] for key in ("e_tag", "version") if said.get(key)}


def _tag(said: Any) -> str:
    """Of a listed object."""
    return f"{said.get('e_tag')} {said.get('last_modified')} {said.get('size')}"


def _reason(error: BaseException) -> str:
    """What a backend says in its first paragraph; the rest is for its developers."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError  # noqa: PLC0415

    said = " ".join(str(error).partition("\n\nDebug source:")[0].split()) or type(error).__name__
    is_refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if is_refused or any(it in said for it in _REFUSED):
        return f"the store's key may not do that (servers read, write, list and delete): {said}"
    return said
