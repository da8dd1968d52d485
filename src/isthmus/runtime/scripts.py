"""Agents that are scripts: their sources, and the guests that run them.

Those guests, `js` and `py`, have interpreters inside, which are not part of Isthmus. `isthmus pull
py` fetches the interpreter's source and compiles both, once: the module lies in the cache folder,
under a name that depends on all that it is made of (`projects/interpreter.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from isthmus.download import Archive, Remote
from isthmus.errors import GuestInvalid
from isthmus.paths import expanded
from isthmus.printable import printable
from isthmus.units import KIB

MAX_SCRIPT_NBYTES = 512 * KIB


@dataclass(frozen=True)
class Interpreter:
    """What runs the scripts of one language."""

    name: str
    """The guest's name, which is what scripts' names end in, too."""
    language: str
    software: str
    """The interpreter's name and version."""
    source: Archive | Remote
    """Its source, under the MIT licence."""
    description: str
    """The file that describes to editors what scripts see."""
    parts: tuple[str, ...]
    """Our own sources of the guest."""

    @property
    def folder(self) -> Path:
        """Our own sources of the guest, without the interpreter's."""
        return Path(str(resources.files("isthmus"))) / "guests" / self.name

    def path(self, cache: Path) -> Path:
        """Where the compiled guest lies in a cache folder, if it is there."""
        parts = [(self.folder / name).read_bytes() for name in self.parts]
        digest = hashlib.sha256(b"\0".join([self.source.sha256.encode(), *parts])).hexdigest()
        return cache / "interpreters" / f"{self.name}-{digest[:16]}.wasm"

    def read(self, cache: Path) -> bytes:
        """The compiled guest. GuestInvalid, saying how to make it, if it is not there."""
        path = self.path(cache)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise GuestInvalid(
                f"the guest that runs {self.language} is not here yet: isthmus pull {self.name} "
                "fetches the interpreter and compiles it, once"
            ) from None
        except OSError as error:
            raise GuestInvalid(f"cannot read {path}: {error.strerror}") from None


QUICKJS = Interpreter(
    name="js",
    language="JavaScript",
    software="QuickJS-NG 0.17.0",
    source=Archive(
        package="quickjs-ng",
        version="0.17.0.2",
        sha256="43d2e48272208721a7aaea8e3f02d4b9318f12ef20cc4f5421b59d9a470706ef",
        nbytes=548_468,
    ),
    description="isthmus.d.ts",
    parts=("js.c", "natives.h", "prelude.js", "isthmus.toml"),
)
MICROPYTHON = Interpreter(
    name="py",
    language="Python",
    software="MicroPython 1.25.0",
    source=Remote(
        url="https://deb.debian.org/debian/pool/main/m/micropython/"
        "micropython_1.25.0+ds.orig.tar.xz",
        name="MicroPython 1.25.0",
        nbytes=5_983_992,
        sha256="7b25be99a502f070b2de81dafc08da7051d992325d6e67daa9045a918fffdbea",
    ),
    description="isthmus.pyi",
    parts=(
        "py.c",
        "natives.h",
        "mpconfigport.h",
        "mphalport.h",
        "py/cstack.h",
        "prelude.py",
        "isthmus.toml",
    ),
)
INTERPRETERS: Mapping[str, Interpreter] = {it.name: it for it in (QUICKJS, MICROPYTHON)}


def interpreter_of(guest: object) -> Interpreter | None:
    """What runs a guest that is named as a script, or None if it is none."""
    if not isinstance(guest, str | Path):
        return None
    return INTERPRETERS.get(Path(guest).suffix.removeprefix("."))


def script_options(script: str | Path) -> tuple[str, ...]:
    """The options that give the interpreter a script. GuestInvalid if there is none."""
    path = expanded(script)
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
