"""Prompts are computed one chunk at a time, short ones in one pass; see `scheduler`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

from isthmus.actor.claimant import Claimant, Shares
from isthmus.actor.steps import MOST, Steps
from isthmus.errors import ModelUnsupported
from isthmus.metrics import Metrics, ModelMetrics
from isthmus.model import Model
from isthmus.model.pack_probe import MOST as MOST_PACKED
from isthmus.model.parts import Chunk, Job

_log = logging.getLogger("isthmus")


class _Prompt:
    """A chunk of one session's prompt, or a text to embed, and what became of it."""

    def __init__(
        self,
        claimant: Claimant,
        n_tokens: int,
        alone: Callable[[Job], None],
        chunk: Chunk | None,
    ) -> None:
        self.claimant = claimant
        self.n_tokens = n_tokens
        self.alone = alone
        self.chunk = chunk
        """None where it is not to be computed with others, or no longer."""
        self.since = time.perf_counter()
        self.begun: float | None = None
        """When its pass began."""
        self.taken = False
        """Whether another's pass computes it: its session's memory is written meanwhile."""
        self.unwanted = False
        """Whether its message is to end, though it is taken."""
        self.done = False
        self.following: _Prompt | None = None
        """The one of the same pass that this one wakes."""


class _Unwanted(Exception):
    """A pass is given up, since one of its prompts is not wanted any longer."""


class Turns:
    """One pass of prefill of one model at a time, whoever has used least first.

    It is over one chunk, or over the last chunks of several prompts, `MOST_PACKED` tokens at most,
    where that changes no bit: the first of them computes it for those that wait. A pass that fails
    or that one of them leaves is given up, and each is computed by itself: nobody can have a chunk
    of others computed more than twice.

    Between two jobs of a pass the others decode, unless several short prompts come first.
    """

    def __init__(self, model: Model, metrics: ModelMetrics, all_: Metrics, steps: Steps) -> None:
        self._model = model
        self._retried = all_.batches_retried
        self._metrics = metrics
        self._steps = steps
        self._lock = threading.Lock()
        self._waiting: list[_Prompt] = []
        self._pass: list[_Prompt] = []
        """Those that are computed now; the first one's thread does it."""
        self._job_s = 0.0
        """What this pass's jobs took until now."""
        self._token_s: float | None = None
        """What a token of the last pass took."""
        self._shares = Shares()
        self._has_kernels = True
        """Whether the device could compute several prompts in one pass, so far as is known."""

    def run(
        self,
        claimant: Claimant,
        n_tokens: int,
        alone: Callable[[Job], None],
        chunk: Chunk | None = None,
        /,
    ) -> None:
        """Returns when the chunk was computed, by a call of `alone` or with others'; see `Turn`.

        Raises what `alone` raises, or, while it waits, the claimant's check.
        """
        prompt = _Prompt(claimant, n_tokens, alone, chunk)
        self._steps.leave(claimant)
        with self._lock:
            self._shares.enter(claimant)
            self._waiting.append(prompt)
            self._pass_on()
        try:
            while not prompt.done:
                if self._leads(prompt):
                    self._compute(prompt)
                else:
                    self._wait(prompt)
        finally:
            self._leave(prompt)

    def _leads(self, prompt: _Prompt) -> bool:
        """Whether it is this prompt's turn."""
        with self._lock:
            return self._pass[:1] == [prompt]

    def _wait(self, prompt: _Prompt) -> None:
        """Until something happened. Raises where the message is to end, but not while another's
        pass writes to its memory: that ends soon then."""
        prompt.claimant.wait(None, whatever=prompt.unwanted)
        try:
            prompt.claimant.check()
        except BaseException:
            with self._lock:
                if not prompt.taken and not prompt.done:
                    raise
                prompt.unwanted = True

    def _compute(self, prompt: _Prompt) -> None:
        """Its turn: one pass over it, and over those that can go along."""
        together = self._take_along(prompt)
        start, self._job_s = time.perf_counter(), 0.0
        for it in together:
            it.begun = start
        try:
            if len(together) == 1:
                prompt.alone(self._job)
            else:
                chunks = [it.chunk for it in together if it.chunk is not None]
                check = partial(_require_wanted, together)
                self._model.executor.append(chunks, check, self._job)
        except BaseException as error:
            if len(together) == 1:
                raise
            self._part(together, error)
        else:
            self._end(together)
        finally:
            self._metrics.prefill.observe(time.perf_counter() - start)

    def _take_along(self, prompt: _Prompt) -> list[_Prompt]:
        """The prompt whose turn it is, and as many others as fit, who has used least first."""
        packs = self._has_kernels and prompt.chunk is not None and bool(self._waiting)
        packs = packs and self._model.packs
        with self._lock:
            together = [prompt]
            if packs:
                together += self._that_fit(prompt)
            for it in together:
                self._shares.charge(it.claimant, it.n_tokens)
            for it in together[1:]:
                it.taken = True
                self._waiting.remove(it)
            self._pass = together
            return together

    def _that_fit(self, first: _Prompt) -> list[_Prompt]:
        """Those of the waiting that one pass can compute with the first one. Under the lock."""
        key_of, chunk = self._model.executor.batch_key, first.chunk
        assert chunk is not None
        room, key, chosen = MOST_PACKED - first.n_tokens, key_of(chunk.session), []
        for it in sorted(self._waiting, key=lambda it: self._shares.used(it.claimant)):
            if it.chunk is None or it.n_tokens > room or key_of(it.chunk.session) != key:
                continue
            chosen.append(it)
            room -= it.n_tokens
        return chosen[: MOST - 1]

    def _end(self, together: list[_Prompt]) -> None:
        """All of them are computed: each wakes the next one, once it has left itself."""
        self._token_s = self._job_s / sum(it.n_tokens for it in together)
        for it in together:
            self._steps.expect(it.claimant)
        for it, following in pairwise(together):
            it.following = following
        for it in together:
            it.done = True

    def _part(self, together: list[_Prompt], error: BaseException) -> None:
        """The pass failed: each is computed by itself. Whoever left pays for all of it."""
        if not isinstance(error, _Unwanted):
            _log.warning("a pass over %d prompts failed, each goes alone: %s", len(together), error)
            self._retried.inc()
        if isinstance(error, ModelUnsupported):
            self._has_kernels = False
        n_tokens = sum(it.n_tokens for it in together)
        with self._lock:
            self._pass = together[:1]
            self._waiting += together[1:]
            for it in together:
                owes = n_tokens if it.unwanted else 0
                self._shares.charge(it.claimant, owes - it.n_tokens)
                it.chunk, it.taken = None, False
        for it in together[1:]:
            it.claimant.interrupt()

    @contextmanager
    def _job(self) -> Iterator[float]:
        """One job of the pass under way; gives how many seconds it is to last."""
        start = time.perf_counter()
        yield self._steps.hold(len(self._pass) + len(self._waiting), self._left_s())
        self._job_s += time.perf_counter() - start
        self._steps.let_go()

    def _left_s(self) -> float | None:
        """About how long it takes until no prompt waits; None where nobody knows."""
        if self._token_s is None:
            return None
        with self._lock:
            n_tokens = sum(it.n_tokens for it in (*self._pass, *self._waiting))
        return max(n_tokens * self._token_s - self._job_s, 0.0)

    def _leave(self, prompt: _Prompt) -> None:
        with self._lock:
            if self._pass[:1] == [prompt]:
                self._pass = []
            elif prompt in self._waiting:
                self._waiting.remove(prompt)
            self._pass_on()
            last = not self._pass
        if last:
            self._steps.let_go(early=True)
        if prompt.begun is not None:
            self._metrics.prefill_wait.observe(prompt.begun - prompt.since)
        if prompt.following is not None:
            prompt.following.claimant.interrupt()

    def _pass_on(self) -> None:
        """Under the lock."""
        if not self._pass and self._waiting:
            first = min(self._waiting, key=lambda it: self._shares.used(it.claimant))
            self._waiting.remove(first)
            self._shares.goes_first(first.claimant)
            self._pass = [first]
            first.claimant.interrupt()


def _require_wanted(together: list[_Prompt]) -> None:
    """Called by the one that computes; raises where any of them is to end."""
    try:
        together[0].claimant.check()
    except BaseException:
        together[0].unwanted = True
    if any(it.unwanted for it in together):
        raise _Unwanted
