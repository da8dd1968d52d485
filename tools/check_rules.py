"""Checks house rules that no linter knows: short files, short functions, no import cycles.

`excesses.toml` lists what broke a rule before it was checked. An excess may shrink, never grow, and
there are no new ones. If one has shrunk or is gone, `--update` writes that down; it adds nothing.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 40
FOLDERS = ("src", "tools", "tests")
LIST = Path(__file__).with_name("excesses.toml")
_HEAD = """# What still breaks a house rule: `tools/check_rules.py --update` lets this list shrink.
"""

_GENERATED = re.compile("Generated .*by tools/")

Excesses = dict[str, dict[str, int]]
"""By rule and place: the number of lines, or of modules."""


def excesses_of(root: Path) -> Excesses:
    """Everything below a checkout's root that breaks a rule now."""
    files: dict[str, int] = {}
    functions: dict[str, int] = {}
    for path in sorted(it for folder in FOLDERS for it in (root / folder).rglob("*.py")):
        name, text = path.relative_to(root).as_posix(), path.read_text()
        if _GENERATED.search(text[:200]):
            continue
        if (n_lines := text.count("\n")) > MAX_FILE_LINES:
            files[name] = n_lines
        for function, n_lines in _functions(ast.parse(text)):
            if n_lines > MAX_FUNCTION_LINES:
                functions[f"{name}:{function}"] = n_lines
    return {"files": files, "functions": functions}


def _functions(tree: ast.AST, within: str = "") -> Iterator[tuple[str, int]]:
    """The qualified name of each function, and its number of lines."""
    for node in ast.iter_child_nodes(tree):
        name = within
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{within}.{node.name}".lstrip(".")
            if not isinstance(node, ast.ClassDef):
                yield name, (node.end_lineno or node.lineno) - node.lineno + 1
        yield from _functions(node, name)


def import_cycles() -> dict[str, int]:
    """Import cycles of the package, those for types alone included: the first module of each, and
    how many modules are in it."""
    graph = grimp.build_graph("isthmus", exclude_type_checking_imports=False)
    imports = {it: graph.find_modules_directly_imported_by(it) for it in graph.modules}
    return {min(cycle): len(cycle) for cycle in cycles(imports)}


def cycles(imports: Mapping[str, set[str]]) -> list[set[str]]:
    """The sets of modules that reach one another, each as large as it can be."""
    rest, found = dict(imports), []
    while True:
        try:
            TopologicalSorter(rest).prepare()
        except CycleError as error:
            start = error.args[1][0]
            cycle = _reached(rest, start) & _reached(_turned(rest), start)
            found.append(cycle)
            rest = {name: to - cycle for name, to in rest.items() if name not in cycle}
        else:
            return found


def _reached(imports: Mapping[str, set[str]], start: str) -> set[str]:
    reached, todo = {start}, [start]
    while todo:
        new = imports.get(todo.pop(), set()) - reached
        reached |= new
        todo += new
    return reached


def _turned(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    turned: dict[str, set[str]] = {name: set() for name in imports}
    for name, to in imports.items():
        for other in to:
            turned.setdefault(other, set()).add(name)
    return turned


def complaints(found: Excesses, listed: Excesses) -> list[str]:
    """A sentence about each excess that is new, has grown, or is smaller than its list says."""
    said = []
    for rule in sorted({*found, *listed}):
        now, before = found.get(rule, {}), listed.get(rule, {})
        for place in sorted({*now, *before}):
            n, allowed = now.get(place, 0), before.get(place, 0)
            if n > allowed:
                said.append(f"{rule}: {place} has {n}; allowed are {allowed or _most(rule)}")
            elif n < allowed:
                said.append(f"{rule}: {place} has shrunk from {allowed}: run with --update")
    return said


def _most(rule: str) -> int:
    return {"files": MAX_FILE_LINES, "functions": MAX_FUNCTION_LINES}.get(rule, 0)


def shrunk(found: Excesses, listed: Excesses) -> Excesses:
    """The list without what is no excess any more; nothing in it is larger than before."""
    return {
        rule: {place: min(n, now[place]) for place, n in places.items() if place in now}
        for rule, places in listed.items()
        if (now := found.get(rule))
    }


def as_toml(excesses: Excesses) -> str:
    """The text of the list."""
    tables = (
        f"\n[{rule}]\n" + "".join(f'"{place}" = {n}\n' for place, n in sorted(places.items()))
        for rule, places in sorted(excesses.items())
    )
    return _HEAD + "".join(tables)


def main() -> int:
    """An exit code: 1 if a rule is broken anew, or the list says more than is true."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="let the list of excesses shrink")
    options = parser.parse_args()
    found = {**excesses_of(Path(__file__).parents[1]), "cycles": import_cycles()}
    listed = tomllib.loads(LIST.read_text())
    if options.update:
        listed = shrunk(found, listed)
        LIST.write_text(as_toml(listed))
    said = complaints(found, listed)
    print(*said, sep="\n", end="\n" if said else "")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
