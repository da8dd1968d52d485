"""`isthmus serve` as the child process of a replica.

The server is the same program as without Ray, on an event loop and threads of its own. It has a
cache folder that no other server on the machine uses, and ends in order once its parent has ended,
however that ends: it reads a pipe that closes then.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from isthmus.config import Environment
from isthmus.errors import SettingsError

_STOP_S = 15.0
"""Seconds within which a server that was told to stop has ended: more than its own grace."""


class ServerProcess:
    """See the module. Owns the process and its cache folder."""

    def __init__(self, settings: Mapping[str, Any], folder: str | None = None) -> None:
        """Starts a server by `ServerSettings` as a TOML file has them; returns once it listens.
        `folder` is where relative paths begin. SettingsError if it ends before."""
        self._lock: IO[str] | None = None
        settings = {**settings, "port": 0, "log_format": "json"}
        if "://" in str(settings.get("data", "")):
            settings["cache"], self._lock = _free_cache(settings)
        with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as file:
            file.write(as_toml(settings))
        self._config = Path(file.name)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "isthmus", "serve", "--until-eof", "--config", file.name],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder if folder and os.path.isdir(folder) else None,
            pass_fds=() if self._lock is None else (self._lock.fileno(),),
            text=True,
        )
        self._said: list[str] = []
        self._url = ""
        self._listens = threading.Event()
        threading.Thread(target=self._read, name="isthmus-replica-log", daemon=True).start()
        self._listens.wait()
        if not self._url:
            self.stop()
            raise SettingsError(f"the server did not start: {' '.join(self._said[-3:])}")

    @property
    def url(self) -> str:
        """Where the server listens."""
        return self._url

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends the server: what is answered goes on for some seconds, and its agents are released.
        A second call does nothing."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._lock is not None:
            self._lock.close()
        self._config.unlink(missing_ok=True)

    def _read(self) -> None:
        """Hands the server's log on, until it ends, and finds out where it listens."""
        assert self._process.stderr is not None
        with self._process.stderr as log:
            for line in log:
                sys.stderr.write(line)
                if self._listens.is_set():
                    continue
                self._said.append(line.strip())
                if url := _url_of(line):
                    sys.stderr.write(f"the replica's server is process {self.pid}\n")
                    self._url = url
                    self._listens.set()
        self._listens.set()


def _url_of(line: str) -> str:
    """Where a server listens, if a line of its log says that."""
    try:
        said = json.loads(line)
    except ValueError:
        return ""
    is_it = isinstance(said, dict) and said.get("event") == "listening"
    return str(said["url"]) if is_it else ""


def _free_cache(settings: Mapping[str, Any]) -> tuple[str, IO[str]]:
    """A cache folder for a URL that no other replica on this machine uses, and the lock that says
    so: the first one that is free, so that a replica finds what an earlier one has left."""
    given, data = settings.get("cache"), str(settings["data"])
    name = hashlib.sha256(data.encode()).hexdigest()[:16]
    base = Path(given) if given else Environment.read().cache / "agents" / f"{name}-replicas"
    base.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        lock = (base / f"{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            number += 1
            continue
        return str(base / str(number)), lock


def as_toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML; what is None is left out."""
    return "".join(
        f"{json.dumps(name)} = {_value(it)}\n" for name, it in settings.items() if it is not None
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(str(name))} = {_value(it)}" for name, it in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=True).replace("\x7f", "\\u007f")
    return json.dumps(value)
