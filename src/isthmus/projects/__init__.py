"""Guests as people write them: a folder with sources, `isthmus.toml` and the SDK of its language.

`project.py` reads and makes such folders, `toolchain.py` finds compilers, `building.py` compiles,
`watching.py` tells when sources have changed.
"""

from isthmus.projects.building import build
from isthmus.projects.project import (
    LANGUAGES,
    RECIPES,
    SCRIPT_LANGUAGES,
    SCRIPTS,
    TEMPLATES,
    Project,
    new_from_recipe,
    new_project,
    new_script,
    new_script_from_recipe,
    open_project,
)
from isthmus.projects.watching import Sources

__all__ = [
    "LANGUAGES",
    "RECIPES",
    "SCRIPTS",
    "SCRIPT_LANGUAGES",
    "TEMPLATES",
    "Project",
    "Sources",
    "build",
    "new_from_recipe",
    "new_project",
    "new_script",
    "new_script_from_recipe",
    "open_project",
]
