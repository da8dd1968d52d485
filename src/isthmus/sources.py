"""Guests and models as a caller names them: by a name, a path, or the bytes themselves."""

from __future__ import annotations

import os
from functools import cache
from importlib import resources
from pathlib import Path

from isthmus.config import MAX_GUEST_NBYTES
from isthmus.download import fetched, hint, is_name
from isthmus.errors import GuestInvalid, ModelNotFound
from isthmus.model.scripted import is_scripted, scripted_file
from isthmus.shards import SUFFIX
from isthmus.units import KIB
from isthmus.wasm.names import shown

SCRIPT_SUFFIX = ".js"
INTERPRETER = "js"
"""The bundled guest that runs scripts."""
MOST_SCRIPT_NBYTES = 512 * KIB


def bundled_guests() -> dict[str, Path]:
    """The guests that come with Isthmus, by name."""
    folder = Path(str(resources.files("isthmus"))) / "guests"
    return {path.stem: path for path in sorted(folder.glob("*/*.wasm"))}


@cache
def bundled_modules() -> frozenset[bytes]:
    """The modules that come with Isthmus: they need not be compiled in a process of their own."""
    return frozenset(path.read_bytes() for path in bundled_guests().values())


def read_guest(guest: str | Path | bytes) -> tuple[bytes, str]:
    """A guest's bytes and its name. GuestInvalid if there is none.

    Of a file that is too large for a guest, only as many bytes are read as tell so.
    """
    if isinstance(guest, bytes):
        return guest, "guest"
    bundled = bundled_guests()
    if is_script(guest):
        return bundled[INTERPRETER].read_bytes(), INTERPRETER
    if isinstance(guest, str) and guest in bundled:
        return bundled[guest].read_bytes(), guest
    path = Path(guest).expanduser()
    try:
        with path.open("rb") as file:
            return file.read(MAX_GUEST_NBYTES + 1), shown(path.stem)
    except IsADirectoryError:
        raise GuestInvalid(f"{path} is a folder; give the .wasm file in it") from None
    except FileNotFoundError:
        raise GuestInvalid(
            f"there is no guest {str(guest)!r}: neither a file nor one of the bundled guests "
            f"{', '.join(bundled)}"
        ) from None
    except OSError as error:
        raise GuestInvalid(f"cannot read {path}: {error.strerror}") from None


def is_script(guest: object) -> bool:
    """Whether a guest is named as a script, which the bundled interpreter runs."""
    return isinstance(guest, str | Path) and Path(guest).suffix == SCRIPT_SUFFIX


def script_options(script: str | Path) -> tuple[str, ...]:
    """The options that give the interpreter a script. GuestInvalid if there is none."""
    path = Path(script).expanduser()
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise GuestInvalid(f"{path} is no script: it is not UTF-8") from None
    except OSError as error:
        raise GuestInvalid(f"cannot read {path}: {error.strerror}") from None
    if "\0" in source:
        raise GuestInvalid(f"{path} is no script: it has a NUL in it")
    if len(source.encode()) > MOST_SCRIPT_NBYTES:
        raise GuestInvalid(f"{path} has more than {MOST_SCRIPT_NBYTES:,} bytes")
    return f"script={source}", f"script_name={shown(path.name)}"


def model_path(given: str | Path, cache: Path) -> Path:
    """The file of a model: a path, or the name of one that was pulled into the folder `cache`, or
    of a scripted one, which is made there.

    ModelNotFound if it was not pulled.
    """
    path = Path(os.path.expanduser(given))
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
