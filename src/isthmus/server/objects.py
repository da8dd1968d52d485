"""Whole objects under one URL, by fsspec: the few verbs that every object store has.

An object appears whole or not at all; nothing is renamed, locked or changed in place. Whatever a
backend raises becomes StorageError here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from isthmus.errors import SettingsError, StorageError

_S3 = {
    "config_kwargs": {
        "connect_timeout": 3,
        "read_timeout": 7,
        "retries": {"total_max_attempts": 2},
        "max_pool_connections": 64,
    }
}
"""About 20 seconds for one request at most: `Lease` relies on an end."""


class Objects:
    """See the module. May be used by several threads."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if set(url) & set("*?[]"):
            raise SettingsError(f"{url}: an address of agents has no *, ?, [ or ]")
        self._files, self._root = _open(url)

    def names(self, folder: str) -> list[str]:
        """What is in a folder."""
        with self._explained(folder):
            found = self._files.find(f"{self._root}/{folder}")
            return sorted(path.rpartition("/")[2] for path in found)

    def get(self, name: str) -> bytes | None:
        """All of an object; None where there is none."""
        with self._explained(name):
            try:
                return bytes(self._files.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def get_all(self, folder: str) -> dict[str, bytes]:
        """All objects of a folder by name."""
        paths = [f"{self._root}/{folder}/{name}" for name in self.names(folder)]
        with self._explained(folder):
            found = self._files.cat(paths) if paths else {}
            return {path.rpartition("/")[2]: bytes(data) for path, data in found.items()}

    def put(self, name: str, data: bytes) -> None:
        """Makes an object, or replaces it."""
        with self._explained(name):
            self._files.pipe_file(f"{self._root}/{name}", data)

    def put_file(self, name: str, path: Path) -> None:
        """Makes an object of a file."""
        with self._explained(name):
            self._files.put_file(str(path), f"{self._root}/{name}")

    def create(self, name: str, data: bytes) -> bool:
        """Makes an object unless there is one; of several who try, one is told True.

        So on S3 and Google's store; other backends of fsspec look first and write then.
        """
        with self._explained(name):
            try:
                self._files.pipe_file(f"{self._root}/{name}", data, mode="create")
            except FileExistsError:
                return self.get(name) == data  # a repeated request finds its own object
            return True

    def delete(self, names: Iterable[str]) -> None:
        """Removes objects, if they are there."""
        paths = [f"{self._root}/{name}" for name in names]
        if paths:
            with self._explained(""), contextlib.suppress(FileNotFoundError):
                self._files.rm(paths)

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # of the backend's own: there is no common base
            reason = str(error) or type(error).__name__
            raise StorageError(f"{self.url}/{name} cannot be used: {reason}") from error


def _open(url: str) -> tuple[Any, str]:
    """The file system and the path in it. SettingsError where there is no such."""
    try:
        import fsspec  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise SettingsError(f"for agents at {url} run: pip install 's3fs' (or gcsfs, …)") from None
    scheme = url.partition("://")[0]
    try:
        files, root = fsspec.core.url_to_fs(
            url, use_listings_cache=False, **(_S3 if scheme in ("s3", "s3a") else {})
        )
    except (ValueError, ImportError) as error:
        raise SettingsError(f"{url}: {error}") from None
    if not root.strip("/"):
        raise SettingsError(f"{url}: give a bucket and a prefix, such as s3://bucket/agents")
    if scheme in ("s3", "s3a"):
        files.retries = 1  # botocore repeats what can be repeated
    return files, root.rstrip("/")
