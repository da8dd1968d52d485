"""Agents that are scripts: their sources, and the guests that run them.

Those guests, `js` and `py`, have interpreters inside, which are not part of Isthmus. `isthmus pull
py` fetches the interpreter's source and compiles both, once: the module lies in the cache folder,
under a name that depends on all that it is made of (`projects/interpreter.py`).

A server keeps a script as a module that has nothing in it but the script: the header of a module
and one custom section, called `script`, with the script's name and source.
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
from isthmus.wasm import binary
from isthmus.wasm.binary import leb

MAX_SCRIPT_NBYTES = 512 * KIB
_HEADER = b"\0asm\1\0\0\0"
_SECTION = leb(6) + b"script"
_PACKAGE = Path(str(resources.files("isthmus")))


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
    makers: tuple[str, ...]
    """Modules of `projects` that know how the guest is compiled."""

    @property
    def folder(self) -> Path:
        """Our own sources of the guest, without the interpreter's."""
        return _PACKAGE / "guests" / self.name

    def parts(self, package: Path = _PACKAGE) -> list[Path]:
        """All files of the package that the compiled guest depends on: its own sources, headers of
        the SDK, and how it is compiled."""
        own = [it for it in (package / "guests" / self.name).rglob("*") if it.is_file()]
        aside = (self.description, "__pycache__")
        sources = [it for it in own if not {it.name, it.parent.name}.intersection(aside)]
        headers = (package / "sdk" / "c").glob("*.h")
        return sorted([*sources, *headers, *(package / "projects" / it for it in self.makers)])

    def path(self, cache: Path, package: Path = _PACKAGE) -> Path:
        """Where the compiled guest lies in a cache folder, if it is there."""
        digest = hashlib.sha256(self.source.sha256.encode())
        for part in self.parts(package):
            digest.update(hashlib.sha256(part.relative_to(package).as_posix().encode()).digest())
            digest.update(hashlib.sha256(part.read_bytes()).digest())
        return cache / "interpreters" / f"{self.name}-{digest.hexdigest()[:16]}.wasm"

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
    makers=("building.py", "interpreter.py", "quickjs.py"),
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
    makers=("building.py", "interpreter.py", "micropython.py", "unwinding.py"),
)
INTERPRETERS: Mapping[str, Interpreter] = {it.name: it for it in (QUICKJS, MICROPYTHON)}


def interpreter_of(guest: object) -> Interpreter | None:
    """What runs a guest that is named as a script, or None if it is none."""
    if not isinstance(guest, str | Path):
        return None
    return INTERPRETERS.get(Path(guest).suffix.removeprefix("."))


@dataclass(frozen=True)
class Script:
    """A script that was read and is one: UTF-8, without NUL, and not too long."""

    name: str
    """What errors call it, such as `agent.js`."""
    source: str

    @classmethod
    def read(cls, path: str | Path) -> Script:
        """The script in a file. GuestInvalid if there is none."""
        path = expanded(path)
        try:
            with path.open("rb") as file:
                contents = file.read(MAX_SCRIPT_NBYTES + 1)
        except OSError as error:
            raise GuestInvalid(f"cannot read {path}: {error.strerror}") from None
        return cls.of(path.name, contents)

    @classmethod
    def of(cls, name: str, contents: bytes) -> Script:
        """The script that has these contents. GuestInvalid if they are none."""
        name = printable(name)
        if len(contents) > MAX_SCRIPT_NBYTES:
            raise GuestInvalid(f"{name} has more than {MAX_SCRIPT_NBYTES:,} bytes")
        try:
            source = contents.decode()
        except UnicodeDecodeError:
            raise GuestInvalid(f"{name} is no script: it is not UTF-8") from None
        if "\0" in source:
            raise GuestInvalid(f"{name} is no script: it has a NUL in it")
        return cls(name, source)

    @classmethod
    def of_module(cls, wasm: bytes) -> Script | None:
        """The script that a module is, or None if it is any other module."""
        if not wasm.startswith(_HEADER + bytes([binary.CUSTOM])):
            return None
        try:
            [section] = binary.read_sections(wasm)
            name, _, source = section.contents(wasm).removeprefix(_SECTION).partition(b"\0")
            made = cls.of(name.decode(), source)
        except (IndexError, ValueError, GuestInvalid):
            return None
        return made if interpreter_of(made.name) and made.module == wasm else None

    @property
    def module(self) -> bytes:
        """A module that has nothing but the script in it."""
        contents = _SECTION + self.name.encode() + b"\0" + self.source.encode()
        return _HEADER + bytes([binary.CUSTOM]) + leb(len(contents)) + contents

    @property
    def interpreter(self) -> Interpreter:
        """What runs it."""
        return INTERPRETERS[Path(self.name).suffix.removeprefix(".")]

    @property
    def options(self) -> dict[str, str]:
        """The options that give it to its interpreter."""
        return {"script": self.source, "script_name": self.name}
