"""A guest's folder: what is in it, and how one begins.

::

    NAME/
      isthmus.toml     its language, what it does, its options
      isthmus/         the SDK of its language, as this Isthmus has it
      src/, …          its sources, from a template
      NAME.wasm        what `isthmus build` makes of them
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from isthmus.errors import ProjectError
from isthmus.runtime.scripts import INTERPRETERS, Interpreter
from isthmus.spelling import suggestion
from isthmus.wasm.card import GuestCard, GuestOption

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "isthmus.toml"
SDK = "isthmus"
"""The folder of a project that has its language's SDK."""
TEMPLATES = ("hello", "tool")
"""What a project begins with: a conversation, or an agent with a tool and state."""
RECIPES = (
    *("votes", "judge", "branches", "search", "contrastive", "watermark", "ngram"),
    *("plugin", "choice"),
)
"""Guests of docs/cookbook.md, which a project can begin with, too."""
SCRIPTS = ("agree",)
"""Those of them that are scripts, in JavaScript: nothing is built."""
SCRIPT_LANGUAGES = tuple(INTERPRETERS)
"""Languages of scripts: nothing is built."""
_SDKS = {"c": "c", "cpp": "c", "rust": "rust", "zig": "zig", "go": "go", "as": "as"}
LANGUAGES = tuple(_SDKS)
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_TOLD_NAME = re.compile(rb"\bNAME\b")


class ProjectFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of isthmus.toml."""

    name: str
    lang: str
    about: str = ""
    options: dict[str, Any] = {}


class OptionEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of its table of options."""

    help: str
    default: str | int | float = ""


@dataclass(frozen=True, slots=True)
class Project:
    """See the module."""

    folder: Path
    name: str
    lang: str
    card: GuestCard

    @property
    def output(self) -> Path:
        """The module that `build` makes."""
        return self.folder / f"{self.name}.wasm"


def open_project(folder: Path) -> Project:
    """The project in a folder. ProjectError, saying what is wrong with isthmus.toml."""
    folder = folder.absolute()
    path = folder / FILE
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ProjectError(f"{path} is no plain file")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        file = msgspec.convert(data, ProjectFile)
        entries = {name: msgspec.convert(it, OptionEntry) for name, it in file.options.items()}
    except (FileNotFoundError, NotADirectoryError):
        raise ProjectError(
            f"there is no {FILE} in {folder}: isthmus new NAME --lang LANG begins a project"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ProjectError(f"{path}: {error}") from None
    require_name(file.name)
    require_language(file.lang)
    options = tuple(GuestOption(name, it.help, str(it.default)) for name, it in entries.items())
    return Project(folder, file.name, file.lang, GuestCard(about=file.about, options=options))


def new_project(folder: Path, lang: str, template: str) -> Project:
    """Begins a project in a folder that is not there yet. ProjectError."""
    require_language(lang)
    templates = _package() / "templates"
    return _begun(folder, lang, templates / lang / template, templates / f"{template}.toml")


def new_from_recipe(folder: Path, recipe: str) -> Project:
    """Begins a project with a guest of the cookbook. ProjectError."""
    if recipe not in RECIPES:
        raise ProjectError(
            f"the cookbook has no {recipe!r}: it has {', '.join((*RECIPES, *SCRIPTS))}"
            f"{suggestion(recipe, RECIPES)}"
        )
    source = _package() / "templates" / "cookbook" / recipe
    lang = tomllib.loads((source / FILE).read_text(encoding="utf-8"))["lang"]
    return _begun(folder, lang, source, source / FILE)


def new_script(folder: Path, lang: str, template: str) -> Path:
    """Begins a folder with a script in one of SCRIPT_LANGUAGES. The script. ProjectError."""
    source = _package() / "templates" / lang / f"{template}.{lang}"
    return _begun_script(folder, INTERPRETERS[lang], source)


def new_script_from_recipe(folder: Path, recipe: str) -> Path:
    """Begins a folder with a script of the cookbook. The script. ProjectError."""
    source = _package() / "templates" / "cookbook" / recipe / f"{recipe}.js"
    return _begun_script(folder, INTERPRETERS["js"], source)


def _begun_script(folder: Path, interpreter: Interpreter, source: Path) -> Path:
    """A folder with a copy of a script, and of what describes to editors what it sees."""
    require_name(folder.name)
    script = folder / f"{folder.name}.{interpreter.name}"
    try:
        folder.mkdir(parents=True)
        shutil.copyfile(source, script)
        _tell_name(script, folder.name, interpreter.name)
        description = interpreter.description
        shutil.copyfile(interpreter.folder / description, folder / description)
    except FileExistsError:
        raise ProjectError(f"{folder} is there already: give another name") from None
    except OSError as error:
        raise ProjectError(f"cannot make {folder}: {error}") from None
    return script


def _begun(folder: Path, lang: str, sources: Path, file: Path) -> Project:
    """A project of copies: of sources, isthmus.toml and the SDK."""
    require_name(folder.name)
    if folder.exists():
        raise ProjectError(f"{folder} is there already: give another name, or remove it first")
    try:
        shutil.copytree(sources, folder)
        shutil.copyfile(file, folder / FILE)
        for path in folder.rglob("*"):
            if path.is_file():
                _tell_name(path, folder.name, lang)
        _copy_sdk(lang, folder)
    except OSError as error:
        raise ProjectError(f"cannot make {folder}: {error}") from None
    return open_project(folder)


def update_sdk(project: Project) -> None:
    """Puts this Isthmus's SDK in the place of the one that the project has. ProjectError."""
    try:
        shutil.rmtree(project.folder / SDK, ignore_errors=True)
        _copy_sdk(project.lang, project.folder)
    except OSError as error:
        raise ProjectError(f"cannot write {project.folder / SDK}: {error}") from None


def require_name(name: str) -> None:
    """ProjectError unless every language takes a name."""
    if not _NAME.fullmatch(name):
        raise ProjectError(
            f"{name!r} is no name for a guest: give lower-case letters, digits, - and _, a letter "
            "first, at most 64"
        )


def require_language(lang: str) -> None:
    """ProjectError unless there is an SDK for a language."""
    if lang not in LANGUAGES:
        raise ProjectError(
            f"there is no SDK for {lang!r}: give {', '.join(LANGUAGES)}"
            f"{suggestion(lang, LANGUAGES)}"
        )


def _package() -> Path:
    return Path(str(resources.files("isthmus")))


def sdk_folder(lang: str) -> Path:
    """The SDK of a language, as it comes with Isthmus."""
    return _package() / "sdk" / _SDKS[lang]


def _copy_sdk(lang: str, folder: Path) -> None:
    shutil.copytree(sdk_folder(lang), folder / SDK)


def _tell_name(path: Path, name: str, lang: str) -> None:
    """Writes the project's name and language where its template has NAME and LANG."""
    text = _TOLD_NAME.sub(name.encode(), path.read_bytes())
    path.write_bytes(text.replace(b'"LANG"', f'"{lang}"'.encode()))
