"""The agents that answer stateless requests, and which of them is asked next.

A request goes to the idle agent that has most of its prompt, or to a fork of it if that agent would
lose much that others may ask for again.

What an agent remembers of a prompt belongs to the owner who sent it: how many tokens were
remembered, and how fast the answer came, would tell anybody else what that prompt was. So only the
owner's own agents are compared with a prompt. An agent is never handed on to another owner: the one
that was used longest ago is closed, whatever it remembers, and a fresh one takes its place.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import numpy as np

from isthmus.actor import Actor
from isthmus.errors import Overloaded
from isthmus.server.http.entry import in_thread
from isthmus.server.http.fair import Owner

WORTH_A_FORK = 8
"""Tokens in common that are computed in the time that a fork takes."""


class Slot:
    """An agent, and the prompt that it had last."""

    def __init__(self, actor: Actor, owner: Owner) -> None:
        self.actor = actor
        self.owner = owner
        self.prompt = np.empty(0, dtype=np.int64)

    def n_common(self, prompt: np.ndarray) -> int:
        """Tokens at the beginning that both prompts have."""
        return n_common(self.prompt, prompt)


class Slots:
    """See the module. Used by one event loop. `spawn` makes an agent; `most` may be idle."""

    def __init__(self, spawn: Callable[[], Actor], most: int) -> None:
        self._spawn = spawn
        self._most = most
        self._idle: list[Slot] = []
        """The one used last at the end."""
        self._roots: OrderedDict[Owner, Slot] = OrderedDict()
        """Never asked: forks of an owner's root begin with what its prompts have in common. The
        one used last at the end."""
        self._choosing = asyncio.Lock()
        """Held while an idle agent is taken or made: nobody takes one that is being forked."""
        self._n = 0
        """Agents that are idle or in use, without the roots."""

    async def take(self, owner: Owner, prompt: np.ndarray) -> Slot:
        """An agent for a prompt, to be put back. Raises what spawning an agent raises."""
        async with self._choosing:
            self._drop_closed()
            free = [it for it in self._idle if it.owner == owner and it.actor.state != "running"]
            best = max(free, key=lambda slot: slot.n_common(prompt), default=None)
            if best is not None and self._is_last(best, free, prompt):
                await self._plant(best)
            if best is None or self._loses(best, prompt):
                slot = await self._make(owner, prompt, free)
            else:
                slot = best if best.n_common(prompt) else free[0]
                self._idle.remove(slot)
        slot.prompt = prompt
        return slot

    async def put_back(self, slot: Slot) -> None:
        """Keeps an agent for the next request of its owner; one too many is closed."""
        if slot.actor.state == "closed":
            self._n -= 1
            return
        self._idle.append(slot)
        if self._n > self._most:
            async with self._choosing:
                await self._close_oldest()

    def _drop_closed(self) -> None:
        """Forgets agents that were cut off after they were put back: their callers had left."""
        left = [it for it in self._idle if it.actor.state != "closed"]
        self._n -= len(self._idle) - len(left)
        self._idle = left

    def _loses(self, slot: Slot, prompt: np.ndarray) -> bool:
        """Whether an agent would forget much that a new one need not."""
        return self._n < self._most and slot.n_common(prompt) < len(slot.prompt) / 2

    def _is_last(self, best: Slot, free: list[Slot], prompt: np.ndarray) -> bool:
        """Whether nobody idle has what this one has of the prompt, once it is asked."""
        n = best.n_common(prompt)
        others = [slot for slot in (*free, self._roots.get(best.owner)) if slot not in (None, best)]
        have = any(slot is not None and slot.n_common(prompt) >= n / 2 for slot in others)
        return n >= WORTH_A_FORK and not have and self._most > 1

    async def _plant(self, parent: Slot) -> None:
        """Keeps a fork of an agent for those who come while it is busy, if there is room for it."""
        try:
            root = await in_thread(partial(_fork, parent))
        except Overloaded:
            return
        root.prompt = parent.prompt
        old = [self._roots.pop(parent.owner, None)]
        self._roots[parent.owner] = root
        if len(self._roots) > self._most:
            old.append(self._roots.popitem(last=False)[1])
        for slot in old:
            if slot is not None:
                await asyncio.to_thread(slot.actor.close)

    async def _make(self, owner: Owner, prompt: np.ndarray, free: list[Slot]) -> Slot:
        """One more agent: a fork of the owner's that has most of the prompt, or a fresh one."""
        root = self._roots.get(owner)
        if root is not None and root.actor.state != "closed":
            self._roots.move_to_end(owner)
            free = [root, *free]
        parent = max(free, key=lambda slot: slot.n_common(prompt), default=None)
        if self._n >= self._most:
            await self._close_oldest(besides=parent)
        self._n += 1
        try:
            if parent is not None and parent.n_common(prompt) >= WORTH_A_FORK:
                return await in_thread(partial(_fork, parent))
            return Slot(await in_thread(self._spawn), owner)
        except BaseException:
            self._n -= 1
            raise

    async def _close_oldest(self, besides: Slot | None = None) -> None:
        """Closes the idle agent that was used longest ago, whosever it is. Nobody may choose one
        meanwhile."""
        able = (it for it in self._idle if it is not besides and it.actor.state != "running")
        oldest = next(able, None)
        if oldest is not None:
            self._idle.remove(oldest)
            self._n -= 1
            await asyncio.to_thread(oldest.actor.close)


def n_common(prompt: np.ndarray, other: np.ndarray) -> int:
    """Tokens at the beginning that two prompts have in common."""
    n = min(len(prompt), len(other))
    differs = prompt[:n] != other[:n]
    return int(differs.argmax()) if differs.any() else n


def _fork(parent: Slot) -> Slot:
    return Slot(parent.actor.fork()[0], parent.owner)
