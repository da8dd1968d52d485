"""Schemas that clients send, and JSON Schema's own test suite: sampled, and validated by another
implementation. The long form says what it found."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus.errors import GrammarError
from tests.schemas.types_of_clients import ZOD, of_pydantic
from tests.schemas.walking import allows, exact, grammar_of, matcher_of, validator_of, walk

SUITE = "jsonschema==4.26.0"
DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
JUDGED_OTHERWISE = ("ecmascript-regex: ", "content: ")
"""Optional cases in which the validator's regular expressions are not ECMAScript's, and keywords
that are annotations since draft 2019-09."""
FROM_CLIENTS = list(of_pydantic())


def judged(name: str, schema: Any, n: int, found: Counter[str]) -> Any:
    """Samples a schema; counts what came of it. Returns its matcher; None if it is refused."""
    found["schemas"] += 1
    try:
        made = grammar_of(schema)
        matcher = matcher_of(made.lark)
    except GrammarError as error:
        found["refused" if "#" in str(error) else "refused without a place"] += 1
        return None
    found["warned" if made.warnings else "accepted"] += 1
    rng, validator = np.random.default_rng(7), validator_of(schema)
    for _ in range(n):
        text = walk(matcher, rng)
        if text is None:
            found["outputs without an end"] += 1
            continue
        found["outputs"] += 1
        try:
            wrong = list(validator.iter_errors(exact(text)))
        except Exception:  # references that the validator would fetch, patterns that it cannot read
            found["outputs not judged"] += 1
            continue
        if wrong and made.warnings:
            found["outputs that a warning explains"] += 1
        elif wrong and not name.startswith(JUDGED_OTHERWISE):
            found["wrong"] += 1
            print(f"wrong: {name}: {text[:200]}: {wrong[0].message[:200]}")
    return matcher if not made.warnings else None


@pytest.mark.parametrize(("name", "schema"), FROM_CLIENTS, ids=[name for name, _ in FROM_CLIENTS])
def test_schemas_of_pydantic(name: str, schema: Any) -> None:
    found: Counter[str] = Counter()
    judged(name, schema, 2, found)
    assert found["wrong"] == found["refused"] == 0, found
    assert found["outputs"]


@pytest.mark.long
def test_schemas_of_pydantic_at_length() -> None:
    found: Counter[str] = Counter()
    for name, schema in FROM_CLIENTS:
        judged(name, schema, 50, found)
    print(f"pydantic: {dict(found)}")
    assert found["wrong"] == found["refused"] == 0


@pytest.mark.long
def test_schemas_of_zod(tmp_path: Path) -> None:
    (tmp_path / "all.mjs").write_text(ZOD)
    subprocess.run(["npm", "install", "--silent", "zod@4"], cwd=tmp_path, check=True, timeout=300)
    done = subprocess.run(
        ["node", "all.mjs"], cwd=tmp_path, check=True, timeout=60, capture_output=True
    )
    found: Counter[str] = Counter()
    for name, schema in json.loads(done.stdout).items():
        if judged(name, schema, 50, found) is None:
            print(f"zod, refused or warned: {name}: {schema}")
    print(f"zod: {dict(found)}")
    assert found["wrong"] == 0


@pytest.mark.long
@pytest.mark.parametrize("draft", DRAFTS)
def test_json_schemas_own_suite(draft: str, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    for name, group in _groups(_suite(tmp_path) / draft):
        schema = group["schema"]
        if isinstance(schema, dict):
            schema = {"$schema": DRAFTS[draft], **schema}
        matcher = judged(name, schema, 50, found)
        for it in group["tests"] if matcher is not None else ():
            let = any(allows(matcher, text) for text in _texts(it["data"]))
            found["cases"] += 1
            found["valid, not written so"] += it["valid"] and not let
            if let and not it["valid"] and not name.startswith(JUDGED_OTHERWISE):
                found["wrong"] += 1
                print(f"wrong: {name}: {it['description']}: {it['data']}")
    print(f"{draft}: {dict(found)}")
    assert found["wrong"] == found["refused without a place"] == 0


def _suite(folder: Path) -> Path:
    """The suite that the validator's source distribution holds."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run(
        [*pip, "--no-binary", "jsonschema", "--dest", str(folder), SUITE], check=True, timeout=300
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return next(folder.glob("jsonschema-*/json/tests"))


def _groups(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.rglob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            yield f"{path.stem}: {group['description']}", group


def _texts(value: Any) -> Iterator[str]:
    """Ways to write a value: keys in any order."""
    for it in itertools.islice(_orders(value), 300):
        yield json.dumps(it, ensure_ascii=False)


def _orders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        members = [[(key, it) for it in _orders(inner)] for key, inner in value.items()]
        for chosen in itertools.product(*members):
            yield from map(dict, itertools.permutations(chosen))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*map(list, map(_orders, value))))
    else:
        yield value
