"""Checks that public functions say which errors they raise, and that these exist.

An error that a function raises by itself is named in its docstring, or in that of its class or
module, where one sentence speaks for several. A function without a docstring has that of its base.
Errors that come from deeper down are not asked for here.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_SAYS_IT_ITSELF = {"AssertionError", "NotImplementedError", "StopAsyncIteration", "StopIteration"}
"""Errors whose name is their whole meaning."""

_RAISES = re.compile(r"\b[Rr]aises ([^.;]*)", re.DOTALL)
_ERROR = re.compile(r"(?<![`.\w])[A-Z][a-z]+(?:[A-Z][a-z]+)+\b")

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def unsaid_in(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, qualified name and error of each public function that raises what no docstring of its
    names."""
    module = ast.parse(source)
    yield from _unsaid(module, "", ast.get_docstring(module) or "")


def _unsaid(node: ast.AST, within: str, said: str) -> Iterator[tuple[int, str, str]]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _Function | ast.ClassDef) or child.name.startswith("_"):
            continue
        doc = ast.get_docstring(child) or ""
        name = f"{within}{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _unsaid(child, f"{name}.", f"{said} {doc}")
        elif doc:
            for error in sorted(set(_raised(child)) - _SAYS_IT_ITSELF):
                if not re.search(rf"\b{error}s?\b", f"{said} {doc}"):
                    yield child.lineno, name, error


def _raised(node: ast.AST) -> Iterator[str]:
    """Names of the errors that a function's own statements raise."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _INNER):
            continue
        if isinstance(child, ast.Raise) and child.exc is not None:
            error = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
            name = ast.unparse(error).rpartition(".")[2]
            if name[0].isupper():
                yield name
        yield from _raised(child)


def named_in(source: str) -> Iterator[tuple[int, str]]:
    """Line of the docstring, and name, of each error that a docstring says is raised."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _Function | ast.ClassDef | ast.Module):
            for sentence in _RAISES.findall(ast.get_docstring(node) or ""):
                yield from ((node.body[0].lineno, it) for it in _ERROR.findall(sentence))


def classes_in(source: str) -> set[str]:
    """Names of all classes that are defined or imported."""
    nodes = list(ast.walk(ast.parse(source)))
    imported = {it.name for node in nodes if isinstance(node, ast.ImportFrom) for it in node.names}
    return imported | {it.name for it in nodes if isinstance(it, ast.ClassDef)}


def complaints(sources: Mapping[str, str]) -> list[str]:
    """What is wrong with the docstrings of files, by name."""
    known = set(dir(builtins)).union(*map(classes_in, sources.values()))
    return [
        *(
            f"{path}:{line}: {name} raises {error}, which its docstring does not say"
            for path, source in sources.items()
            for line, name, error in unsaid_in(source)
        ),
        *(
            f"{path}:{line}: the docstring says that {error} is raised, and there is no such error"
            for path, source in sources.items()
            for line, error in named_in(source)
            if error not in known
        ),
    ]


def main() -> int:
    """Prints what is wrong; 1 if something is."""
    paths = sorted(Path("src").rglob("*.py"))
    found = complaints({str(it): it.read_text() for it in paths})
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
