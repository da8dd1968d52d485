"""Metadata that depend on where a distribution is built: its URLs, and the README's links.

In a forge's workflow the environment says which repository that is. An index shows the README away
from its repository, so relative links and pictures become absolute there, at the commit that was
built. Anywhere else there are no URLs, and the README is as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s]+)")
_PICTURE = (".png", ".svg", ".jpg", ".gif")


class CustomMetadataHook(MetadataHookInterface):
    """Sets `urls` and `readme`, which pyproject.toml calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """See the module."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = repository_of(os.environ)
        if repository is not None:
            commit = os.environ.get("GITHUB_SHA", "main")
            text = with_absolute_links(text, repository, commit)
            metadata["urls"] = urls_of(repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def repository_of(environment: Mapping[str, str]) -> str | None:
    """The address of the repository; None outside of a forge's workflow."""
    name = environment.get("GITHUB_REPOSITORY")
    return f"{environment.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}" if name else None


def urls_of(repository: str) -> dict[str, str]:
    """What an index lists as links of the project."""
    files = f"{repository}/blob/main"
    return {
        "Repository": repository,
        "Documentation": f"{files}/docs/guide.md",
        "Changelog": f"{files}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def with_absolute_links(text: str, repository: str, commit: str) -> str:
    """Markdown whose relative links lead to a commit of the repository."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[1].endswith(_PICTURE) else "blob"
        return f"{repository}/{kind}/{commit}/{link[1]}"

    return _LINK.sub(absolute, text)
