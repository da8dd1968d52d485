"""Guests and models as a caller names them: by a name, a path, or the bytes themselves."""

from __future__ import annotations

import os
from functools import cache
from importlib import resources
from pathlib import Path

from isthmus.config import MAX_GUEST_NBYTES, Environment
from isthmus.download import fetched, hint, is_name
from isthmus.errors import GuestInvalid, ModelNotFound
from isthmus.model.scripted import is_scripted, scripted_file
from isthmus.paths import expanded
from isthmus.runtime.scripts import INTERPRETERS, interpreter_of
from isthmus.shards import SUFFIX
from isthmus.wasm.names import shown


def bundled_guests() -> dict[str, Path]:
    """The guests that come with Isthmus, by name."""
    folder = Path(str(resources.files("isthmus"))) / "guests"
    return {path.stem: path for path in sorted(folder.glob("*/*.wasm"))}


@cache
def bundled_modules() -> frozenset[bytes]:
    """The modules that come with Isthmus: they need not be compiled in a process of their own."""
    return frozenset(path.read_bytes() for path in bundled_guests().values())


_PROJECT_FILE = "isthmus.toml"
"""What the folder of a guest has that somebody writes; see `projects`, which is a floor above."""


def read_guest(guest: str | Path | bytes) -> tuple[bytes, str]:
    """A guest's bytes and its name. GuestInvalid if there is none.

    Of a file that is too large for a guest, only as many bytes are read as tell so.
    """
    if isinstance(guest, bytes):
        return guest, "guest"
    bundled = bundled_guests()
    if interpreter := interpreter_of(guest) or INTERPRETERS.get(str(guest)):
        return interpreter.read(Environment.read().cache), interpreter.name
    if isinstance(guest, str) and guest in bundled:
        return bundled[guest].read_bytes(), guest
    path = expanded(guest)
    try:
        with path.open("rb") as file:
            return file.read(MAX_GUEST_NBYTES + 1), shown(path.stem)
    except IsADirectoryError:
        raise GuestInvalid(f"{path} is a folder: {_instead_of(path)}") from None
    except FileNotFoundError:
        if path.suffix == ".wasm" and (path.parent / _PROJECT_FILE).exists():
            raise GuestInvalid(
                f"there is no {path} yet: isthmus build {path.parent} makes it"
            ) from None
        raise GuestInvalid(
            f"there is no guest {str(guest)!r}: neither a file nor one of the bundled guests "
            f"{', '.join(bundled)}"
        ) from None
    except OSError as error:
        raise GuestInvalid(f"cannot read {path}: {error.strerror}") from None


def _instead_of(folder: Path) -> str:
    """What to give, or to do, instead of naming a folder."""
    found = min(folder.glob("*.wasm"), default=None)
    if found is None and (folder / _PROJECT_FILE).exists():
        return f"isthmus build {folder} makes the guest in it"
    return f"give {found or 'the .wasm file in it'}"


def model_path(given: str | Path, cache: Path) -> Path:
    """The file of a model: a path, or the name of one that was pulled into the folder `cache`, or
    of a scripted one, which is made there.

    ModelNotFound if it was not pulled.
    """
    path = expanded(given)
    if not isinstance(given, str) or os.path.exists(path):
        return path
    if is_scripted(given):
        return scripted_file(given, cache / "scripted")
    if not is_name(given):
        if given.endswith(SUFFIX):
            return path  # whoever opens it tells what is missing, such as a shard
        raise ModelNotFound(f"there is no file {given}{hint(given)}")
    found = fetched(given, cache)
    if found is None:
        raise ModelNotFound(f"{given} was not fetched yet; run: isthmus pull {given}")
    return found
