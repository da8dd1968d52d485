"""A file of settings in TOML."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from isthmus.errors import SettingsError
from isthmus.paths import expanded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(file: Path) -> dict[str, Any]:
    """What the file says. SettingsError, in one line, if it cannot be read or is not TOML."""
    try:
        with expanded(file).open("rb") as opened:
            return tomllib.load(opened)
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from None
    except RecursionError:
        raise SettingsError(f"{file} is not TOML: it is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and whole numbers of thousands of digits
        raise SettingsError(f"{file} is not TOML: {error}") from None
