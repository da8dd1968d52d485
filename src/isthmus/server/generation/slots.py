"""The agents that answer stateless requests, and which of them is asked next.

A request goes to the idle agent that has most of its prompt, or to a fork of it if that agent would
lose much that others may ask for again.

What an agent remembers of a prompt belongs to the owner who sent it: how many tokens were
remembered, and how fast the answer came, would tell anybody else what that prompt was. So only the
owner's own agents are compared with a prompt. An agent is never handed on to another owner: the one
that was used longest ago is closed, whatever it remembers, and a fresh one takes its place.

An owner keeps its last agent while there are spare ones, as many as others: what one owner floods
costs nobody else the agent that remembers its prompts.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """See the module. Used by one event loop. `spawn` makes an agent. There are `most`, or up to
    twice as many if owners would have none otherwise."""

    def __init__(self, spawn: Callable[[], Actor], most: int) -> None:
        self._spawn = spawn
        self._most = most
        self._idle: list[Slot] = []
        """The one used last at the end."""
        self._roots: OrderedDict[Owner, Slot] = OrderedDict()
        """Never asked: forks of an owner's root begin with what its prompts have in common. The
        one used last at the end."""
        self._making = asyncio.Lock()
        """Held while agents are made, forked and closed."""
        self._parent: Slot | None = None
        """An idle agent that is being forked, and is not to be taken."""
        self._n_of: Counter[Owner] = Counter()
        """Agents that are idle or in use, without the roots."""

    async def take(self, owner: Owner, prompt: np.ndarray, *, keeps: bool = False) -> Slot:
        """An agent for a prompt, to be put back. Raises what spawning an agent raises. If it
        `keeps` what it has, the prompt is not computed.

        An agent that is idle, and need not be forked, waits for no agent of others that is made.
        """
        slot = self._take_idle(owner, prompt)
        if slot is None:
            async with self._making:
                slot = self._take_idle(owner, prompt) or await self._fork_or_make(owner, prompt)
        slot.prompt = slot.prompt if keeps else prompt
        return slot

    async def put_back(self, slot: Slot) -> None:
        """Keeps an agent for the next request of its owner. Those that are too many are closed; an
        owner who has a single one waits for none of that."""
        if slot.actor.state == "closed":
            self._n_of[slot.owner] -= 1
            return
        self._idle.append(slot)
        if self._n_of[slot.owner] > 1 and self._surplus() is not None:
            async with self._making:
                await self._close_surplus()

    def _free(self, owner: Owner) -> list[Slot]:
        """The owner's agents that can be taken; forgets those that were cut off after they were put
        back, since their callers had left."""
        closed = [it for it in self._idle if it.actor.state == "closed"]
        for slot in closed:
            self._idle.remove(slot)
            self._n_of[slot.owner] -= 1
        able = (it for it in self._idle if it.owner == owner and it is not self._parent)
        return [it for it in able if it.actor.state != "running"]

    def _take_idle(self, owner: Owner, prompt: np.ndarray) -> Slot | None:
        """An idle agent for a prompt; None if one must be forked or made first."""
        free = self._free(owner)
        best = _best(free, prompt)
        if best is None or self._is_last(best, free, prompt) or self._loses(best, prompt):
            return None
        slot = best if best.n_common(prompt) else free[0]
        self._idle.remove(slot)
        return slot

    async def _fork_or_make(self, owner: Owner, prompt: np.ndarray) -> Slot:
        """What `take` gives if `_take_idle` gives nothing."""
        free = self._free(owner)
        best = _best(free, prompt)
        if best is not None and self._is_last(best, free, prompt):
            with self._forking(best):
                await self._plant(best)
        if best is None or best not in self._idle or self._loses(best, prompt):
            return await self._make(owner, prompt)
        self._idle.remove(best)
        return best

    @contextmanager
    def _forking(self, parent: Slot | None) -> Iterator[None]:
        """Keeps an agent from being taken or closed; to be used while `_making` is held."""
        self._parent = parent
        try:
            yield
        finally:
            self._parent = None

    def _loses(self, slot: Slot, prompt: np.ndarray) -> bool:
        """Whether an agent would forget much that a new one need not."""
        return self._n_of.total() < self._most and slot.n_common(prompt) < len(slot.prompt) / 2

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

    async def _make(self, owner: Owner, prompt: np.ndarray) -> Slot:
        """One more agent: a fork of the owner's that has most of the prompt, or a fresh one."""
        root, free = self._roots.get(owner), self._free(owner)
        if root is not None and root.actor.state != "closed":
            self._roots.move_to_end(owner)
            free = [root, *free]
        parent = _best(free, prompt)
        with self._forking(parent):
            self._n_of[owner] += 1
            try:
                await self._close_surplus()
                if parent is not None and parent.n_common(prompt) >= WORTH_A_FORK:
                    return await in_thread(partial(_fork, parent))
                return Slot(await in_thread(self._spawn), owner)
            except BaseException:
                self._n_of[owner] -= 1
                raise

    def _surplus(self) -> Slot | None:
        """An idle agent that is one too many: the one that was used longest ago of owners who have
        more than one, or of all owners if there are no spare ones left."""
        if (n := self._n_of.total()) <= self._most:
            return None
        for it in self._idle:
            is_spare = self._n_of[it.owner] == 1 and n <= 2 * self._most
            if not is_spare and it is not self._parent and it.actor.state != "running":
                return it
        return None

    async def _close_surplus(self) -> None:
        """Closes the agents that are too many. Nobody may fork one meanwhile."""
        while (slot := self._surplus()) is not None:
            self._idle.remove(slot)
            self._n_of[slot.owner] -= 1
            await asyncio.to_thread(slot.actor.close)


def _best(slots: list[Slot], prompt: np.ndarray) -> Slot | None:
    """The one that has most of the prompt; the first of several."""
    return max(slots, key=lambda slot: slot.n_common(prompt), default=None)


def n_common(prompt: np.ndarray, other: np.ndarray) -> int:
    """Tokens at the beginning that two prompts have in common."""
    n = min(len(prompt), len(other))
    differs = prompt[:n] != other[:n]
    return int(differs.argmax()) if differs.any() else n


def _fork(parent: Slot) -> Slot:
    return Slot(parent.actor.fork()[0], parent.owner)
