"""When a project's sources have changed: looked at, not told of, so that it works everywhere."""

from __future__ import annotations

from pathlib import Path

from isthmus.projects.project import Project

_NOT_SOURCES = ("target", "node_modules", "zig-out", ".zig-cache", ".git")


class Sources:
    """The files of a project that its module is made of, as they were when last looked at."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether a file came, went or was written since this was last asked."""
        before, self._seen = self._seen, self._look()
        return before != self._seen

    def _look(self) -> dict[Path, int]:
        return {path: stamp for path in self._files() if (stamp := _stamp(path))}

    def _files(self) -> list[Path]:
        folder, output = self._project.folder, self._project.output
        return [
            path
            for top in folder.iterdir()
            if top.name not in _NOT_SOURCES and not top.name.startswith(output.name)
            for path in ([top] if top.is_file() else top.rglob("*"))
        ]


def _stamp(path: Path) -> int:
    """When a file was written; 0 if it is gone, or a folder."""
    try:
        return path.stat().st_mtime_ns if path.is_file() else 0
    except OSError:
        return 0
