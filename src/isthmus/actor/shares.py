"""Fair shares of a queue: the tokens that each actor has had, divided by its weight.

Start-time fair queueing (Goyal et al. 1996): nobody starves, and twice the weight gets twice the
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol


class Share:
    """The account of one actor in every queue. The actor makes it, and its messages carry it."""

    __slots__ = ("used", "weight")

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.used: dict[Shares, float] = {}
        """Virtual time by queue: tokens divided by the weight. A prefilled token is many times
        cheaper than a decoded one, so each has a queue, and an account, of its own."""


class Served(Protocol):
    """An ask of so many tokens."""

    @property
    def share(self) -> Share:
        """The account of the actor that asks."""

    @property
    def n_tokens(self) -> int:
        """The tokens that it is charged for."""


class Shares:
    """The virtual time of one queue: that of whoever was served last."""

    def __init__(self) -> None:
        self._now = 0.0

    def of(self, share: Share) -> float:
        """The virtual time of an account. An actor that was away gets no credit for that time."""
        return max(share.used.get(self, 0.0), self._now)

    def serve(self, asks: Iterable[Served]) -> None:
        """Charges those who are served together for their tokens."""
        before, least = self._now, math.inf
        for ask in asks:
            share = ask.share
            accounts = share.used
            used = accounts.get(self, before)
            if used < before:  # noqa: PLR1730 - max and min take longer than all else here
                used = before
            if used < least:  # noqa: PLR1730
                least = used
            accounts[self] = used + ask.n_tokens / share.weight
        self._now = least

    def charge(self, share: Share, n_tokens: int) -> None:
        """Corrects what one was charged."""
        share.used[self] = self.of(share) + n_tokens / share.weight
