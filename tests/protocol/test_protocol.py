"""Every history of the protocol within some bounds, and what each of its rules is there for."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tests.protocol.explore import Found, explore
from tests.protocol.protocol import Protocol
from tests.protocol.states import Bounds, Rules, State, first, problem_of

TAKEOVERS = Bounds(messages=2, ends=1, losses=1)
GARBAGE = Bounds(messages=1, ends=1, collections=1)
LOSSES = Bounds(messages=1, losses=1, collections=1)
FORKS = Bounds(messages=0, ends=1, collections=1, forks=1, removals=1)
POISON = Bounds(messages=0, ends=2, poisonings=3)
FENCED_POISON = Bounds(messages=0, ends=2, poisonings=3, collections=1)
SHORT = {
    "takeovers": TAKEOVERS,
    "crashes": Bounds(messages=1, crashes=1, ends=1),
    "releases": Bounds(messages=2, losses=1, releases=1),
    "garbage": GARBAGE,
    "losses": LOSSES,
    "poison": POISON,
}
LONG = {
    "takeovers": Bounds(messages=2, ends=2, losses=1),
    "three nodes": Bounds(nodes=3, messages=1, ends=1, losses=1),
    "crashes": Bounds(messages=1, crashes=1, ends=1, releases=1),
    "garbage": Bounds(messages=1, ends=1, losses=1, collections=1),
    "forks": FORKS,
    "poison": Bounds(messages=1, ends=2, losses=1, poisonings=3),
    "fenced poison": FENCED_POISON,
}
MUTANTS = {
    "conditional": TAKEOVERS,
    "acquires": GARBAGE,
    "requires": FORKS,
    "fences_ended": GARBAGE,
    "fences_lost": LOSSES,
    "owns": GARBAGE,
    "lists_again": FORKS,
    "mourns": POISON,
    "mourns_fenced": FENCED_POISON,
    "quarantines": POISON,
}
"""Where it is seen that a rule is left out."""


def search(bounds: Bounds, rules: Rules | None = None) -> Found[State]:
    return explore(first(bounds), Protocol(rules).steps, problem_of)


def shown(found: Found[State]) -> str:
    return "\n".join([f"{found.problem} after", *found.trace])


@pytest.mark.parametrize("name", SHORT)
def test_no_history_loses_what_was_acknowledged(name: str) -> None:
    found = search(SHORT[name])
    print(f"{name}: {found.n_states} states")
    assert found.problem is None, shown(found)
    assert found.n_states > 1000


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_no_longer_history_does_either(name: str) -> None:
    found = search(LONG[name])
    print(f"{name}: {found.n_states} states")
    assert found.problem is None, shown(found)
    assert found.n_states > 30_000


@pytest.mark.parametrize("rule", [it.name for it in fields(Rules)])
def test_each_rule_is_needed(rule: str) -> None:
    found = search(MUTANTS[rule], replace(Rules(), **{rule: False}))
    print(f"without {rule}: {found.n_states} states, {shown(found)}")
    assert found.problem is not None
