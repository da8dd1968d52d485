"""What each actor has had of a queue."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from isthmus.actor.shares import Share, Shares


def ask(share: Share, n_tokens: int = 1) -> Any:
    return SimpleNamespace(share=share, n_tokens=n_tokens)


@pytest.mark.parametrize(("weight", "n_tokens", "used"), [(1, 5, 5), (2, 5, 2.5), (0.5, 5, 10)])
def test_tokens_are_charged_by_weight(weight: float, n_tokens: int, used: float) -> None:
    share, shares = Share(weight), Shares()
    shares.serve([ask(share, n_tokens)])
    assert shares.of(share) == used


def test_shares_of_one_queue_are_not_those_of_another() -> None:
    share, (shares, others) = Share(), (Shares(), Shares())
    shares.charge(share, 600)
    assert (shares.of(share), others.of(share)) == (600, 0)


def test_a_newcomer_begins_at_what_was_served_last() -> None:
    shares, old, newcomer = Shares(), Share(), Share()
    for _ in range(10):
        shares.serve([ask(old)])
    assert shares.of(old) == 10
    assert shares.of(newcomer) == 9  # the virtual time at which the last one was served


def test_whoever_is_served_together_is_measured_by_the_least_of_them() -> None:
    shares, much, little = Shares(), Share(), Share()
    shares.charge(much, 100)
    shares.serve([ask(much), ask(little)])
    assert shares.of(Share()) == 0
    assert (shares.of(much), shares.of(little)) == (101, 1)


def test_several_asks_of_one_share_are_all_charged() -> None:
    shares, share = Shares(), Share()
    shares.serve([ask(share, 2), ask(share, 3)])
    assert shares.of(share) == 5


def test_what_was_charged_in_vain_is_given_back() -> None:
    shares, share = Shares(), Share(2.0)
    shares.serve([ask(share, 10)])
    shares.charge(share, -10)
    assert shares.of(share) == 0
