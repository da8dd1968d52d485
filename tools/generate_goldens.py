"""Writes what Transformers makes of the templates in tests/templates; `--check` compares instead.

Needs the extra `oracle`, which has Transformers without a framework for tensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Writes or checks."""
    sys.path.insert(0, str(ROOT))
    from tests.templates import huggingface  # noqa: PLC0415 - of this repository

    found: dict[str, dict[str, str | None]] = {}
    for template, conversation, text in huggingface.render_all():
        found.setdefault(template, {})[conversation] = text
    page = json.dumps(found, ensure_ascii=False, indent=0) + "\n"
    if "--check" not in sys.argv[1:]:
        huggingface.GOLDENS.write_text(page)
    elif huggingface.GOLDENS.read_text() != page:
        print("tests/templates/goldens.json is stale; run: make goldens", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
