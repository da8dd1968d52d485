"""Decode steps that wait at the same moment run as one batch; see `scheduler`."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import pairwise

from isthmus.actor.claimant import Claimant, Shares
from isthmus.device.base import Device
from isthmus.device.compute_thread import PATIENCE_S, Submission
from isthmus.errors import DeviceFailed
from isthmus.metrics import Metrics, ModelMetrics
from isthmus.model import Model
from isthmus.model.batch import Step
from isthmus.model.parts import JOB_S

MOST = 32
"""Tokens in one batch, and in one step of a session."""
_MOST_JOINED = 128
"""Tokens in one batch where attention of several sessions is one kernel."""
_MOST_UNMEASURED = 64
_LEAST_PATIENCE_S = 0.0005
_MOST_PATIENCE_S = 0.02
_PATIENCE = 0.5
"""Of the last step's time: how long a batch waits for those who decoded in it, from the last one
who came on."""
_MOST_PATIENCE = 1.5
"""Of the last step's time: how long it waits for all of them."""
_LONGEST_HOLD_S = 0.5
"""That those who decode wait while several prompts are computed."""
_SHORT_HOLD_S = 0.35
"""The same, where no prompt is left afterwards."""
_REST_HOLD_S = 1.5 * JOB_S
"""The same, where it is a single one: no small rest of it is left for another job."""


class Request:
    """One step of one session, and what became of it."""

    def __init__(self, claimant: Claimant, step: Step) -> None:
        self.claimant = claimant
        self.step = step
        self.n_tokens = len(step.tokens)
        self.since = time.perf_counter()
        self.error: BaseException | None = None
        self.taken = False
        """Whether it is in a batch: nothing ends it then but the batch."""
        self.done = False
        self.following: Request | None = None
        """The one of the same batch that this one wakes."""


class Steps:
    """The decode steps of one model. Everything in it is changed under `_lock`."""

    def __init__(self, model: Model, device: Device, metrics: ModelMetrics, all_: Metrics) -> None:
        self._model = model
        self._retried = all_.batches_retried
        self._thread = device.compute_thread
        self._metrics = metrics
        self._most = _MOST_JOINED if model.executor.joins_sequences else MOST
        self._lock = threading.Lock()
        self._waiting: list[Request] = []
        self._expected: set[Claimant] = set()
        """Those of the last batch, who may be about to come again."""
        self._missing: set[Claimant] = set()
        """Of these, who have not come."""
        self._n_waiting_tokens = 0
        self._wait_until = 0.0
        self._wait_at_most_until = 0.0
        self._submitted: Submission[None] | None = None
        self._submitted_at = 0.0
        self._held_until = 0.0
        """While prompts are computed, one behind the other."""
        self._served = True
        """Whether a batch was computed since they were."""
        self._patience_s = _LEAST_PATIENCE_S
        self._shares = Shares()
        self._alone: list[tuple[int, float]] = []
        """(tokens, seconds) of steps of which the metrics do not tell yet."""

    def run(self, claimant: Claimant, step: Step) -> None:
        """Returns when the step was computed; raises where the claimant's message is to end."""
        n_tokens = len(step.tokens)
        if not (self._thread.is_current and self._nobody_else(claimant, n_tokens)):
            self._queue(Request(claimant, step))
            return
        start = time.perf_counter()  # without queue, job and bell: half of the host's time
        try:
            self._model.executor.decode_batch([step])
        finally:
            end = time.perf_counter()
            with self._lock:
                self._expect({claimant}, start, end)
                self._alone.append((n_tokens, end - start))
                if len(self._alone) >= _MOST_UNMEASURED:
                    self._measure_alone()

    def _nobody_else(self, claimant: Claimant, n_tokens: int) -> bool:
        """Whether nobody but this one decodes; it is then charged for its tokens."""
        with self._lock:
            busy = self._submitted is not None or self._waiting
            held = time.perf_counter() < self._held_until
            if busy or held or not self._expected <= {claimant}:
                return False
            self._served = True
            self._shares.enter(claimant)
            self._shares.goes_first(claimant)
            self._shares.charge(claimant, n_tokens)
            return True

    def _queue(self, request: Request) -> None:
        """Puts the request in the queue and waits until it was computed, or is to end."""
        claimant = request.claimant
        self._enter(request)
        while not request.done:
            claimant.wait(self._watch(request), whatever=request.taken)
            if not request.done:
                self._check(request)
        if request.following is not None:
            request.following.claimant.interrupt()
        if request.error is not None:
            raise request.error

    def _enter(self, request: Request) -> None:
        """Puts the request in the queue."""
        claimant = request.claimant
        with self._lock:
            self._shares.enter(claimant)
            self._waiting.append(request)
            self._n_waiting_tokens += request.n_tokens
            if claimant in self._missing:  # and others may be close behind it
                self._missing.remove(claimant)
                until = min(request.since + self._patience_s, self._wait_at_most_until)
                self._wait_until = max(self._wait_until, until)
            self._submit_if_due()

    @property
    def n_decoding(self) -> int:
        """How many decode: they wait, or were in the last batch."""
        return max(len(self._waiting), len(self._expected))

    def _measure_alone(self) -> None:
        """Tells the metrics of steps without a batch, some at a time: between two tokens each
        takes as long as all else together. Under the lock."""
        for n_tokens, seconds in self._alone:
            self._measure(n_tokens, 0.0, seconds, (0.0,))
        self._alone.clear()

    def leave(self, claimant: Claimant) -> None:
        """Nobody need wait for it any longer."""
        with self._lock:
            self._measure_alone()
            self._expected.discard(claimant)
            self._missing.discard(claimant)
            self._submit_if_due()

    def expect(self, claimant: Claimant) -> None:
        """Its prompt is computed: the next batch waits for it as for those of the last one."""
        with self._lock:
            self._expected.add(claimant)
            self._missing.add(claimant)
            self._wait_until = max(self._wait_until, time.perf_counter() + self._patience_s)

    def hold(self, n_prompts: int, all_s: float | None = None) -> float:
        """A job of prefill begins, while so many prompts are not computed; seconds it may last.

        The more prompts there are for each of those who decode, the longer these wait, and the more
        of the prompts are computed meanwhile: a step of a few costs nearly as much as one of many.
        They get a step before they wait again. Where `all_s`, the seconds for all prompts, are not
        many, those are computed at once: one wait, and then steps of all, instead of several.
        """
        with self._lock:
            now = time.perf_counter()
            if now < self._held_until:
                return self._held_until - now
            ratio = n_prompts / max(1, self.n_decoding)
            seconds = min(max(JOB_S, JOB_S * ratio), _LONGEST_HOLD_S)
            most = _SHORT_HOLD_S if n_prompts > 1 else _REST_HOLD_S
            if all_s is not None and all_s <= most:
                seconds = max(seconds, all_s)
            if self._served or not self._waiting:
                self._held_until, self._served = now + seconds, False
            return seconds

    def let_go(self, *, early: bool = False) -> None:
        """A job of prefill has ended: a step is next if it was held for long enough, or `early`."""
        with self._lock:
            if early:
                self._held_until = 0.0
            self._submit_if_due()
            self._wake_first()

    def _watch(self, request: Request) -> float | None:
        """Seconds until this request's thread has something to do; None if others will ring.

        The first in the queue sees to it that a batch begins.
        """
        with self._lock:
            if request.done:
                return 0.0
            if not self._waiting or self._waiting[0] is not request:
                return None
            self._submit_if_due()
            submitted = self._submitted
            if submitted is None:
                until = min(self._wait_until, request.since + _LONGEST_HOLD_S)
                return max(until, self._held_until) - time.perf_counter()
            left = self._submitted_at + PATIENCE_S - time.perf_counter()
        if submitted.claimed:
            return None
        if left > 0:
            return left
        self._thread.rescue(submitted)
        return PATIENCE_S

    def _check(self, request: Request) -> None:
        """Leaves the queue where the message is to end; a token that is being computed is kept."""
        try:
            request.claimant.check()
        except BaseException:
            with self._lock:
                if request not in self._waiting:
                    return
                self._waiting.remove(request)
                self._n_waiting_tokens -= request.n_tokens
                self._expected.discard(request.claimant)
                self._submit_if_due()
                self._wake_first()
            raise

    def _submit_if_due(self) -> None:
        """Has the next batch computed if it is time. Under the lock."""
        if self._submitted is None and self._waiting and self._is_due():
            self._submitted_at = time.perf_counter()
            self._submitted = self._thread.submit(self._step)

    def _is_due(self) -> bool:
        """Whether everybody waits who is expected, or was waited for long enough; and no prompts
        come first."""
        now = time.perf_counter()
        if now < self._held_until:
            return False
        full = self._n_waiting_tokens >= self._most
        until = min(self._wait_until, self._waiting[0].since + _LONGEST_HOLD_S)
        return full or not self._missing or now >= until

    def _step(self) -> None:
        """Computes one batch, as a job of the device's thread."""
        start = time.perf_counter()
        batch = self._compute_next()
        end = time.perf_counter()
        with self._lock:
            self._submitted = None
            batch.sort(key=lambda request: not request.claimant.at_home)  # it is awake
            for request, following in pairwise(batch):
                request.following = following
            for request in batch:
                request.done = True
            self._served = self._served or bool(batch)
            self._expect({it.claimant for it in batch if it.error is None}, start, end)
        if batch:
            batch[0].claimant.interrupt()
            waits_s = [start - it.since for it in batch]
            self._measure(sum(it.n_tokens for it in batch), start, end, waits_s)

    def _expect(self, claimants: set[Claimant], start: float, end: float) -> None:
        """Waits a moment for those of a step that began and ended then. Under the lock."""
        patience = min(max(_PATIENCE * (end - start), _LEAST_PATIENCE_S), _MOST_PATIENCE_S)
        self._expected, self._patience_s = claimants, patience
        self._missing = claimants - {request.claimant for request in self._waiting}
        self._wait_until = end + patience
        self._wait_at_most_until = end + max(patience, _MOST_PATIENCE * (end - start))
        if self._waiting:
            self._submit_if_due()
            self._wake_first()

    def _compute_next(self) -> list[Request]:
        """Those that were in the batch. Whatever goes wrong, whoever waits hears of it."""
        try:
            if len(self._waiting) > 1 and not self._model.batches:
                self._most = 1
            with self._lock:
                batch = self._take()
        except BaseException as error:
            with self._lock:
                batch, self._waiting, self._n_waiting_tokens = self._waiting, [], 0
            for request in batch:
                request.error = error
            return batch
        if batch:
            self._compute(batch)
        return batch

    def _measure(self, n: int, start: float, end: float, waits_s: Sequence[float]) -> None:
        metrics = self._metrics
        metrics.decode.observe(end - start)
        metrics.batch_size.observe(n)
        for wait_s in waits_s:
            metrics.decode_wait.observe(wait_s)

    def _wake_first(self) -> None:
        """Has the first in the queue see to the next batch. Under the lock."""
        if self._waiting and self._submitted is None:
            self._waiting[0].claimant.interrupt()

    def _take(self) -> list[Request]:
        """The next batch: whoever has used least, and who can go with it. Under the lock."""
        if not self._waiting:
            return []
        shares = self._shares
        by_use = sorted(self._waiting, key=lambda request: shares.used(request.claimant))
        batch = self._that_fit(by_use)
        for request in batch:
            request.taken = True
        chosen = {*batch}
        self._waiting = [request for request in self._waiting if request not in chosen]
        self._n_waiting_tokens -= sum(request.n_tokens for request in batch)
        shares.goes_first(by_use[0].claimant)
        for request in batch:
            shares.charge(request.claimant, request.n_tokens)
        batch.sort(key=lambda request: request.claimant.number)  # rows keep their sessions
        return batch

    def _that_fit(self, by_use: list[Request]) -> list[Request]:
        """The first one, and of those that can go with it, as many in order as there is room for.

        Whoever does not fit keeps those behind it out, or it would wait for as long as they come.
        """
        key_of = self._model.executor.batch_key
        key, room, batch = key_of(by_use[0].step.session), self._most, by_use[:1]
        room -= by_use[0].n_tokens
        for request in by_use[1:]:
            if key_of(request.step.session) != key:
                continue
            room -= request.n_tokens
            if room < 0:
                break
            batch.append(request)
        return batch

    def _compute(self, batch: list[Request]) -> None:
        """A device that fails is asked again for each one, so that only the guilty fail."""
        try:
            self._model.executor.decode_batch([request.step for request in batch])
        except DeviceFailed as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            self._retried.inc()
            for request in batch:
                self._compute([request])
        except BaseException as error:
            for request in batch:
                request.error = error
