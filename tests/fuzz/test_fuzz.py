"""The fuzzers: a corpus of past findings, a few seeds, and `make test-attacks` for minutes.

ATTACK_SECONDS and ATTACK_SEED say how long and from which seed on; ATTACK_SURFACES, by commas, on
what. `python -m tests.fuzz.driver SURFACE CASE` repeats one case.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz.driver import Child, Report, hunt
from tests.fuzz.surface import NAMES, surface_class

SECONDS = float(os.environ.get("ATTACK_SECONDS", "600"))
SEED = int(os.environ.get("ATTACK_SEED", time.time_ns() // 10**9))
READY = [it for it in NAMES if surface_class(it).is_ready()]
"""All but scripts, if their interpreter is not there: `isthmus pull js`."""
SURFACES = os.environ.get("ATTACK_SURFACES", ",".join(READY)).split(",")
TURN_S = min(15.0, SECONDS / len(SURFACES))
"""Seconds that one surface has before the next one's turn."""
CORPUS = [(name, case) for name in READY for case in surface_class(name).corpus]


@pytest.fixture(scope="module")
def child_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Child]]:
    """The child process of a surface; one at a time is there."""
    children: dict[str, Child] = {}

    def child(name: str) -> Child:
        if name not in children:
            while children:
                children.popitem()[1].close()
            children[name] = Child(name, tmp_path_factory.mktemp(name) / "child")
        return children[name]

    yield child
    while children:
        children.popitem()[1].close()


@pytest.mark.parametrize(("name", "case"), CORPUS, ids=[f"{it[0]}-{it[1]}" for it in CORPUS])
def test_corpus(name: str, case: str, child_of: Callable[[str], Child], tmp_path: Path) -> None:
    report = Report()
    hunt(child_of(name), [case], report)
    assert not report.findings, report.keep(tmp_path)


@pytest.mark.parametrize("name", READY)
def test_fixed_seeds(name: str, child_of: Callable[[str], Child], tmp_path: Path) -> None:
    report, child = Report(), child_of(name)
    hunt(child, map(str, range(child.kind.n_short)), report)
    assert not report.findings, report.keep(tmp_path)
    assert report.outcomes.total() == child.kind.n_short


@pytest.mark.long
@pytest.mark.attacks
def test_attacks(tmp_path: Path) -> None:
    print(f"\nATTACK_SEED={SEED}, {SECONDS:.0f} s")
    children = {name: Child(name, tmp_path / name) for name in SURFACES}
    reports = {name: Report() for name in SURFACES}
    seeds = {name: itertools.count(SEED) for name in SURFACES}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for name, child in children.items():
            hunt(child, _turn(seeds[name]), reports[name])
    found = []
    for name, report in reports.items():
        children[name].close()
        print(f"{name}: {report.outcomes.total()} cases: {dict(report.outcomes.most_common(12))}")
        found += [report.keep(tmp_path)] if report.findings else []
    assert not found, "\n\n".join(found)
    assert all(report.outcomes for report in reports.values())


def _turn(seeds: Iterator[int]) -> Iterator[str]:
    """The next seeds, as long as the turn lasts."""
    end = time.monotonic() + TURN_S
    while time.monotonic() < end:
        yield str(next(seeds))
