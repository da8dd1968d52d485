"""Whole objects under one URL, by obstore: the verbs that S3, Google's and Azure's share.

An object appears whole or not at all. Nothing is renamed or locked. Objects that change are written
on a condition: `create` only where there is none, `replace` only over the version that the caller
has seen. Everything that a backend raises becomes StorageError.
"""

from __future__ import annotations

import contextlib
import secrets
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
        with self._explained(folder):
            pages = self._store.list(folder)
            return sorted(it["path"].rpartition("/")[2] for page in pages for it in page)

    def tags(self, folder: str) -> dict[str, str]:
        """What changes whenever an object is written, by the names of a folder's objects."""
        with self._explained(folder):
            listed = [it for page in self._store.list(folder) for it in page]
            return {it["path"].rpartition("/")[2]: _tag(it) for it in listed}

    def find(self, name: str) -> Found | None:
        """An object and its version; None if there is none."""
        with self._explained(name):
            try:
                result = self._store.get(name)
            except FileNotFoundError:
                return None
            return Found(bytes(result.bytes()), _version(result.meta))

    def get(self, name: str) -> bytes | None:
        """All bytes of an object; None if there is none."""
        found = self.find(name)
        return found.data if found else None

    def find_all(self, names: Iterable[str]) -> dict[str, Found]:
        """Objects by their names, without those that are not there."""
        wanted = list(names)
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            found = pool.map(self.find, wanted)
            return {name: it for name, it in zip(wanted, found, strict=True) if it is not None}

    def put(self, name: str, data: bytes | Path) -> None:
        """Makes an object of bytes or of a file, or replaces it: for what is always the same."""
        with self._explained(name):
            self._store.put(name, data)

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
        with self._explained(""):
            try:
                self._store.delete(wanted)
            except FileNotFoundError:  # some stores end there
                for name in wanted:
                    with contextlib.suppress(FileNotFoundError):
                        self._store.delete(name)

    def require_conditions(self, folder: str) -> None:
        """Tries in a folder whether the store refuses what it must. SettingsError if it does not.

        Several stores that speak S3 ignore conditions in silence.
        """
        name = f"{folder}/probe-{secrets.token_hex(8)}"
        try:
            first = self.create(name, b"1")
            second = self.replace(name, b"2", first) if first else None
            kept = first and second and not self.create(name, b"3")
            if not kept or self.replace(name, b"4", first or {}) or self.get(name) != b"2":
                raise SettingsError(
                    f"{self.url} does not honour conditional writes (If-None-Match and If-Match), "
                    "so two servers could overwrite each other's agents: use a store that does, "
                    "such as S3, or a local folder"
                )
        finally:
            with contextlib.suppress(StorageError):
                self.delete([name])

    def _put_if(self, name: str, data: bytes, mode: Any) -> Version | None:
        from obstore.exceptions import AlreadyExistsError, PreconditionError  # noqa: PLC0415

        with self._explained(name):
            try:
                return _version(self._store.put(name, data, mode=mode))
            except (AlreadyExistsError, PreconditionError):
                found = self.find(name)
                # A request that was carried out and then repeated meets its own object.
                return found.version if found is not None and found.data == data else None

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # of the backend's own, or built-in ones
            where = f"{self.url}/{name}"
            raise StorageError(f"{where} cannot be used: {_reason(error)}") from error


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
    said = str(error).partition("\n\nDebug source:")[0]
    return " ".join(said.split()) or type(error).__name__
