"""Writes docs/cli.md from the command line's own help, and what is between marks in docs/models.md,
docs/server.md and docs/commands.md from the code's own tables; `--check` compares instead."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
from pathlib import Path

from isthmus.download.quants import PREFERRED
from isthmus.model.architectures import architectures, family_of
from isthmus.model.forms.call_forms import CALLS
from isthmus.model.forms.thought_forms import THOUGHTS
from isthmus.model.schemas import keywords
from isthmus.native._ggml import GgmlType
from isthmus.survey.row import Row, summary
from isthmus.wasm import wasi_table

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SURVEY = ROOT / "benchmarks" / "results" / "architectures.json"
HEAD = """\
# Command line

Generated from the commands' own help by tools/generate_docs.py; do not edit.

Exit codes: 0 good; 1 the guest failed, or a proof did not hold; 2 anything that you can mend;
130 stopped by Ctrl-C. `isthmus run` of a command (docs/commands.md) exits with the command's own.
"""


def render_cli() -> str:
    """docs/cli.md."""
    os.environ["COLUMNS"] = "96"
    os.environ["NO_COLOR"] = "1"
    from isthmus.cli import COMMANDS, build_parser  # noqa: PLC0415 - reads COLUMNS

    parser = build_parser()
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    parts = [HEAD]
    for name in COMMANDS:
        help_text = actions[0].choices[name].format_help().rstrip()
        parts.append(f"\n## isthmus {name}\n\n```\n{help_text}\n```\n")
    return "".join(parts)


def render_models() -> str:
    """docs/models.md."""
    page = (DOCS / "models.md").read_text()
    tables = {
        "architectures": _architectures(),
        "survey": _survey(),
        "refused": _refused(),
        "weights": _weights(),
        "quants": _quants(),
        "calls": _calls(),
        "thoughts": _thoughts(),
    }
    for name, text in tables.items():
        page = _put(page, name, text)
    return page


def render_server() -> str:
    """docs/server.md."""
    # the server's rooms need an extra
    from isthmus.server.anthropic import fields as messages  # noqa: PLC0415
    from isthmus.server.http.support import as_markdown  # noqa: PLC0415
    from isthmus.server.llamacpp import fields as llamacpp  # noqa: PLC0415
    from isthmus.server.ollama import fields as ollama  # noqa: PLC0415
    from isthmus.server.openai import fields as openai  # noqa: PLC0415
    from isthmus.server.responses import fields as responses  # noqa: PLC0415

    page = (DOCS / "server.md").read_text()
    tables = {
        "openai": openai.TABLES,
        "responses": responses.TABLES,
        "messages": messages.TABLES,
        "ollama": ollama.TABLES,
        "llamacpp": llamacpp.TABLES,
        "rerank": llamacpp.RERANK_TABLES,
    }
    for name, each in tables.items():
        page = _put(page, name, as_markdown(each))
    return _put(page, "schemas", keywords.as_markdown())


def render_commands() -> str:
    """docs/commands.md."""
    rows = [("function", "what it does"), ("---", "---")]
    rows += [(f"`{it.name}`", it.does) for it in wasi_table.FUNCTIONS]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return _put((DOCS / "commands.md").read_text(), "wasi", table)


def _put(page: str, name: str, text: str) -> str:
    """The page with a text between the marks of that name."""
    marks = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end -->)", re.S)
    return marks.sub(lambda found: f"{found[1]}{text}{found[2]}", page)


def _architectures() -> str:
    rows = [("architecture", "models", "particular"), ("---", "---", "---")]
    for name in architectures():
        family = family_of(name)
        rows.append((f"`{name}`", family.models, family.features))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _survey() -> str:
    rows = [("architecture", "way", "models", "makes", "takes tokens back"), ("---",) * 5]
    for it in _surveyed():
        if it.way != "refused":
            name, way, makes, *_, truncate, _, models = it.cells()
            takes = {"exact": "yes"}.get(truncate, truncate)
            rows.append((f"`{name}`", way if it.holds else f"{way}, WRONG", models, makes, takes))
    library = json.loads(SURVEY.read_text())["versions"]["ggml"]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"With {library}, {summary(_surveyed())}.\n\n{table}"


def _refused() -> str:
    rows = [("architecture", "models", "why it is refused"), ("---",) * 3]
    for it in _surveyed():
        if it.way == "refused":
            rows.append((f"`{it.name}`", it.models, it.findings.problem.replace("|", "\\|")))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _surveyed() -> list[Row]:
    """The rows that `isthmus architectures` gave when it was last run for the record."""
    record = json.loads(SURVEY.read_text())
    return sorted((Row.from_json(it) for it in record["rows"]), key=lambda it: it.name)


def _calls() -> str:
    rows = [("form", "models", "a call"), ("---", "---", "---")]
    rows += [(f"`{it.name}`", it.models, _code(it.example)) for it in CALLS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _thoughts() -> str:
    rows = [("form", "models", "a thought"), ("---", "---", "---")]
    for it in THOUGHTS:
        written = f"{it.thought.begins} … {it.thought.ends}"
        rows.append((f"`{it.name}`", it.models, _code(written)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _code(text: str) -> str:
    """A text as code in a table, on one line."""
    fence = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    shown = text.replace("\n", " ↵ ").replace("|", "\\|")
    return f"{fence}{space}{shown}{space}{fence}"


def _weights() -> str:
    names = ", ".join(kind.name for kind in GgmlType if kind not in (GgmlType.I32, GgmlType.I64))
    return textwrap.fill(names, 100) + "\n"


def _quants() -> str:
    return textwrap.fill(", ".join(PREFERRED), 100, break_on_hyphens=False) + "\n"


PAGES = {
    "cli.md": render_cli,
    "models.md": render_models,
    "server.md": render_server,
    "commands.md": render_commands,
}


def main() -> int:
    """Writes or checks."""
    stale = 0
    for name, render in PAGES.items():
        target, page = DOCS / name, render()
        if "--check" not in sys.argv[1:]:
            target.write_text(page)
        # argparse lays help out a little differently from one Python to the next
        elif not target.is_file() or _words(target.read_text()) != _words(page):
            print(f"docs/{name} is stale; run: make docs", file=sys.stderr)
            stale = 1
    return stale


def _words(page: str) -> list[str]:
    return page.split()


if __name__ == "__main__":
    sys.exit(main())
