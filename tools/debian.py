"""Packages of a release of Debian, fetched for any architecture and unpacked without installing.

Needs `apt-get` and `dpkg`, of any system that has them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_SETTINGS = """\
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "-";
"""


@dataclass(frozen=True)
class Debian:
    """A release of Debian on an architecture, such as bookworm on arm64; lists lie in `folder`."""

    folder: Path
    release: str
    architecture: str

    def update(self) -> None:
        """Fetches the list of packages."""
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        source = f"deb http://deb.debian.org/debian {self.release} main\n"
        (self.folder / "sources.list").write_text(source)
        settings = _SETTINGS.format(folder=self.folder, architecture=self.architecture)
        (self.folder / "apt.conf").write_text(settings)
        self._apt("apt-get", "-qq", "update")

    def unpack_with_all_needed(self, *names: str, to: Path) -> None:
        """Unpacks these packages and whatever they depend on."""
        options = ("--yes", "--no-install-recommends", "--download-only")
        self._apt("apt-get", "-qq", "install", *options, *names)
        self._unpack(self.folder / "cache/archives", to)

    def unpack(self, name: str, to: Path) -> None:
        """Unpacks this package alone."""
        downloads = self.folder / "alone" / name
        downloads.mkdir(parents=True, exist_ok=True)
        self._apt("apt-get", "-qq", "download", name, cwd=downloads)
        self._unpack(downloads, to)

    def first_dependency(self, name: str) -> str:
        """Name of what a package without contents stands for, such as the newest kernel."""
        said = self._apt("apt-cache", "depends", name)
        found = re.search(r"Depends: (\S+)", said)
        return found[1] if found else sys.exit(f"{name} depends on nothing: {said}")

    def _unpack(self, downloads: Path, to: Path) -> None:
        to.mkdir(parents=True, exist_ok=True)
        for package in sorted(downloads.glob("*.deb")):
            run("dpkg", "-x", str(package), str(to))

    def _apt(self, *command: str, cwd: Path | None = None) -> str:
        return run(*command, cwd=cwd, APT_CONFIG=str(self.folder / "apt.conf"))


def run(*command: str, cwd: Path | None = None, **variables: str) -> str:
    """What a command prints; ends this process with the reason if the command fails."""
    environment = {**os.environ, "LC_ALL": "C", **variables}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        sys.exit(f"{' '.join(command[:4])} failed: {said[-2000:]}")
    return done.stdout
