"""Writes docs/cli.md from the command line's own help; `--check` compares instead."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "cli.md"
HEAD = """\
# Command line

Generated from the commands' own help by tools/generate_docs.py; do not edit.

Exit codes: 0 good; 1 the guest failed, or a proof did not hold; 2 anything that you can mend;
130 stopped by Ctrl-C.
"""


def render() -> str:
    """The page."""
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


def main() -> int:
    """Writes or checks."""
    page = render()
    if "--check" in sys.argv[1:]:
        # argparse lays help out a little differently from one Python to the next
        same = TARGET.is_file() and _words(TARGET.read_text()) == _words(page)
        if not same:
            print(f"{TARGET.relative_to(ROOT)} is stale; run: make docs", file=sys.stderr)
        return 0 if same else 1
    TARGET.write_text(page)
    return 0


def _words(page: str) -> list[str]:
    return page.split()


if __name__ == "__main__":
    sys.exit(main())
