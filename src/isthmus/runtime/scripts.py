"""Agents that are scripts: their sources, and the guest that runs them.

That guest, `js`, has the interpreter QuickJS-NG inside, which is not part of Isthmus. `isthmus pull
js` fetches the interpreter's source and compiles both, once: the module lies in the cache folder,
under a name that depends on all that it is made of (`projects/interpreter.py`).
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

from isthmus.download import Archive
from isthmus.errors import GuestInvalid
from isthmus.printable import printable
from isthmus.units import KIB

INTERPRETER = "js"
QUICKJS = Archive(
    package="quickjs-ng",
    version="0.17.0.2",
    sha256="43d2e48272208721a7aaea8e3f02d4b9318f12ef20cc4f5421b59d9a470706ef",
    nbytes=548_468,
)
"""The interpreter's source, under the MIT licence."""
MAX_SCRIPT_NBYTES = 512 * KIB
_SUFFIX = ".js"
_PARTS = ("js.c", "natives.h", "prelude.js", "isthmus.toml")


def is_script(guest: object) -> bool:
    """Whether a guest is named as a script, which the interpreter runs."""
    return isinstance(guest, str | Path) and Path(guest).suffix == _SUFFIX


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
    if len(source.encode()) > MAX_SCRIPT_NBYTES:
        raise GuestInvalid(f"{path} has more than {MAX_SCRIPT_NBYTES:,} bytes")
    return f"script={source}", f"script_name={printable(path.name)}"


def interpreter_folder() -> Path:
    """The sources of the guest that runs scripts, without the interpreter's."""
    return Path(str(resources.files("isthmus"))) / "guests" / INTERPRETER


def interpreter_path(cache: Path) -> Path:
    """Where the compiled guest lies in a cache folder, if it is there."""
    parts = [(interpreter_folder() / name).read_bytes() for name in _PARTS]
    digest = hashlib.sha256(b"\0".join([QUICKJS.sha256.encode(), *parts])).hexdigest()
    return cache / "interpreters" / f"{INTERPRETER}-{digest[:16]}.wasm"


def read_interpreter(cache: Path) -> bytes:
    """The guest that runs scripts. GuestInvalid, saying how to make it, if it is not there."""
    try:
        return interpreter_path(cache).read_bytes()
    except FileNotFoundError:
        raise GuestInvalid(
            "the guest that runs scripts is not here yet: isthmus pull js fetches the interpreter "
            "and compiles it, once"
        ) from None
    except OSError as error:
        raise GuestInvalid(f"cannot read {interpreter_path(cache)}: {error.strerror}") from None
