"""Downloads of files whose length and SHA-256 are known; they go on where they were cut off.

1. What has come lies in HASH.part, and its entity tag in HASH.etag, in a folder of their own.
2. A request asks for the rest (`Range`), of that entity (`If-Range`). An answer with all of the
   file, or with another range than asked for, begins it anew.
3. The whole is compared with the SHA-256. If parts of several answers do not fit together, the
   file is fetched once more; if one answer does not fit, nothing is kept.

One process fetches a file at a time: it has a lock on HASH.part.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from isthmus.download.http import Client, Cut, Response, brief, number, reason_of, shown
from isthmus.errors import DownloadError
from isthmus.machine import sync_file
from isthmus.units import KIB, MIB

_ATTEMPTS = 5
"""Attempts in a row that bring next to nothing, until a transfer is given up."""
_MIN_NBYTES = 64 * KIB
"""What an attempt must bring beyond the most that was ever here, so that the ones before it are
forgotten: a server that has each second attempt begin anew is given up too."""
_WAIT_S = 1.0
"""Seconds before the second attempt in a row; twice as many before each further one."""
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True)
class Remote:
    """A file that is to be fetched."""

    url: str
    name: str
    """Its name for people."""
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Progress:
    """How much of a file has come."""

    name: str
    sha256: str
    done: int
    """Bytes that are here."""
    nbytes: int
    """Bytes of all of the file."""


Watch = Callable[[Progress], None]


class Transfer:
    """Downloads into a folder, which must be there. `watch` may raise, which ends one."""

    def __init__(self, client: Client, folder: Path, watch: Watch) -> None:
        self._client = client
        self._folder = folder
        self._watch = watch

    def missing_nbytes(self, remote: Remote) -> int:
        """Bytes that have yet to come."""
        try:
            return max(0, remote.nbytes - self._part(remote).stat().st_size)
        except OSError:
            return remote.nbytes

    def fetch(self, remote: Remote) -> Path:
        """The whole file, verified, which the caller moves away. Raises DownloadError, OSError."""
        path = self._part(remote)
        with path.open("ab") as file:
            _lock(file, path, remote)
            part = _Part(file, path)
            self._complete(remote, part)
            if not part.has(remote.sha256) and part.is_mixed:
                part.restart()
                self._complete(remote, part)
            if not part.has(remote.sha256):
                digest = part.digest
                part.remove()
                raise DownloadError(
                    f"{remote.name} has the checksum {digest} and not {remote.sha256}; thrown away"
                )
            sync_file(file.fileno())
            part.forget_tag()
        return path

    def _part(self, remote: Remote) -> Path:
        return self._folder / f"{remote.sha256}.part"

    def _complete(self, remote: Remote, part: _Part) -> None:
        """Asks until all has come."""
        failures, most = 0, part.nbytes
        while part.nbytes < remote.nbytes:
            try:
                self._go_on(remote, part)
            except Cut as cut:
                failures = 1 if part.nbytes >= most + _MIN_NBYTES else failures + 1
                most = max(most, part.nbytes)
                if failures >= _ATTEMPTS:
                    raise DownloadError(
                        f"cannot fetch {remote.name}: {cut}. {part.nbytes} of {remote.nbytes} "
                        "bytes are here; check the network, then try again, which goes on there"
                    ) from None
                time.sleep(_WAIT_S * 2 ** (failures - 1))

    def _go_on(self, remote: Remote, part: _Part) -> None:
        """One request for what is missing. Raises Cut, DownloadError."""
        headers = {"Accept-Encoding": "identity"}
        if part.nbytes:
            headers["Range"] = f"bytes={part.nbytes}-"
            if part.tag:
                headers["If-Range"] = part.tag
        try:
            response = self._client.open(remote.url, headers)
        except urllib.error.HTTPError as error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and part.nbytes:
                part.restart()
                raise Cut("the server does not have the rest of what had come") from None
            raise DownloadError(f"cannot fetch {remote.name}: {refusal(error)}") from None
        with response:
            self._require_fit(response, remote, part)
            part.begin(response.headers.get("ETag", ""))
            self._receive(response, remote, part)

    def _require_fit(self, response: Response, remote: Remote, part: _Part) -> None:
        """Sees to it that what comes goes on with what is here."""
        if response.status != http.client.PARTIAL_CONTENT:
            if part.nbytes:
                part.restart()
            nbytes = response.headers.get("Content-Length")
            if nbytes is not None and number(nbytes) != remote.nbytes:
                raise DownloadError(
                    f"{remote.name} should have {remote.nbytes} bytes, and the server sends "
                    f"{brief(nbytes)}: nothing was kept"
                )
            return
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        whole = str(remote.nbytes)
        if not found or number(found[1]) != part.nbytes or found[2] not in ("*", whole):
            part.restart()
            raise Cut("the server sent another range than it was asked for")

    def _receive(self, response: Response, remote: Remote, part: _Part) -> None:
        """Keeps what comes as it comes, so that `watch` can end a transfer that only drips."""
        while True:
            try:
                block = response.read1(MIB)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Cut(f"the connection broke: {reason_of(error)}") from None
            if not block:
                break
            if part.nbytes + len(block) > remote.nbytes:
                part.remove()
                raise DownloadError(
                    f"the server sends more than the {remote.nbytes} bytes of {remote.name}: "
                    "nothing was kept"
                )
            part.append(block)
            self._watch(Progress(remote.name, remote.sha256, part.nbytes, remote.nbytes))
        if part.nbytes < remote.nbytes:
            raise Cut("the connection ended early")


class _Part:
    """What has come of a file: its bytes, their hash, and the entity tag that they came with."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path, self._tag_path = file, path, path.with_suffix(".etag")
        self._answers = 0
        self._hash = hashlib.sha256()
        self.nbytes = 0
        with path.open("rb") as before:
            while block := before.read(MIB):
                self._count(block)
        self._was_there = self.nbytes > 0
        self.tag = self._tag_path.read_text("latin-1") if self._tag_path.is_file() else ""

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def is_mixed(self) -> bool:
        """Whether the bytes are of several answers, or of an earlier run."""
        return self._was_there or self._answers > 1

    def has(self, sha256: str) -> bool:
        return self.digest == sha256

    def begin(self, tag: str) -> None:
        """Notes that bytes of one more answer come. Weak tags do not tell bytes apart."""
        self._answers += 1
        if not self.nbytes and tag and not tag.startswith("W/"):
            self.tag = tag
            self._tag_path.write_text(tag, "latin-1")

    def append(self, block: bytes) -> None:
        self._file.write(block)
        self._file.flush()
        self._count(block)

    def restart(self) -> None:
        """Throws away what has come."""
        self._file.truncate(0)
        self._hash, self.nbytes, self._answers, self._was_there = hashlib.sha256(), 0, 0, False
        self.forget_tag()

    def forget_tag(self) -> None:
        self.tag = ""
        self._tag_path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Throws away the file too."""
        self.forget_tag()
        self._path.unlink(missing_ok=True)

    def _count(self, block: bytes) -> None:
        self._hash.update(block)
        self.nbytes += len(block)


def refusal(error: urllib.error.HTTPError) -> str:
    """What a status means to whoever wants the file."""
    if error.code in (401, 403):
        return (
            f"{shown(error.url)} answers {error.code}: there is no such repository, or it is "
            "private or gated; set HF_TOKEN to a token that may read it"
        )
    return f"{shown(error.url)} answers {error.code} {reason_of(error)}"


def _lock(file: IO[bytes], path: Path, remote: Remote) -> None:
    """Has this process be the only one that fetches a file. DownloadError if another one does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):  # another one has it, or moved it away just now
        mine = False
    if not mine:
        raise DownloadError(f"{remote.name} is being fetched already: wait until that has ended")
