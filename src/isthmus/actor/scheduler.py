"""Who computes next: decode steps that wait at the same moment run as one batch, prefills in turns.

::

    actor's thread ── decode ───► queue of its model ──┐
    actor's thread ── decode ───► queue of its model ──┼─► one pass for all, at the device's thread
    actor's thread ── decode ───► queue of its model ──┘        ▲ in turns
    actor's thread ── prefill ──► one chunk at a time ── parts ─┘

An actor blocks in its host call meanwhile. A batch begins as soon as everybody waits who was in the
last one, or after a moment; who was missing once is not waited for again until it comes. So nobody
waits for an actor that does something else. A step may be of several tokens of one session, which
are as many rows of the batch.

A prefill is computed in parts, about one layer of one chunk each. Between two of them whoever
decodes gets a token, so a long prompt costs the others one part for each token, not one chunk.
Where chunks and parts end depends on the request alone, never on who else is there.

Where more wait than fit, the one goes first that has used least for its weight (start-time fair
queueing, Goyal et al. 1996): nobody starves, and twice the weight gets twice the tokens.

Where batches would change bits (`Model.exact_batching`), each step runs alone, unless the model was
loaded with `exact=False`; a step of several tokens is then several steps.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.device.compute_thread import PATIENCE_S, Bell, Submission
from isthmus.errors import DeviceFailed
from isthmus.metrics import Metrics, ModelMetrics
from isthmus.model import Model, Session
from isthmus.model.batch import Step
from isthmus.model.parts import JOB_S
from isthmus.units import HostAddr

MOST = 32
"""Tokens in one batch."""
_LEAST_PATIENCE_S = 0.0005
_MOST_PATIENCE_S = 0.02
_LONGEST_JOB_S = 0.5
_PATIENCE = 0.5
"""Of the last step's time: how long a batch waits for those who decoded in it."""


_MOST_UNMEASURED = 64
_numbers = itertools.count()


class Claimant:
    """An actor as the scheduler sees it. Used by the one thread that handles its message.

    `check` raises where the message is to end; `deadline` says when it will, on the clock of
    time.monotonic. `interrupt` may be called from any thread.
    """

    def __init__(
        self,
        device: Device,
        check: Callable[[], None],
        deadline: Callable[[], float | None],
        weight: float = 1.0,
    ) -> None:
        self.check = check
        self.number = next(_numbers)
        self.model: Model | None = None
        """The scheduler's: of its last decode step."""
        self._deadline = deadline
        self._weight = weight
        self._bell = Bell(device.compute_thread)

    def cost(self, n_tokens: int) -> float:
        """What so many tokens are to it: the larger its weight, the less."""
        return n_tokens / self._weight

    def interrupt(self) -> None:
        """Has it look whether its message is to end, or whether its turn has come."""
        self._bell.ring()

    def wait(self, at_most_s: float | None) -> None:
        """Until it is interrupted, its time is over, or its message's is."""
        deadline = self._deadline()
        if deadline is not None:
            left = max(deadline - time.monotonic(), 0.0)
            at_most_s = left if at_most_s is None else min(at_most_s, left)
        self._bell.wait(at_most_s)


class _Shares:
    """Who has used how much of one queue: tokens divided by weights, its virtual time.

    Each queue has its own: a prefilled token is many times cheaper than a decoded one, and nobody
    is to pay for it with the latter. Changed under the queue's lock.
    """

    def __init__(self) -> None:
        self._used: WeakKeyDictionary[Claimant, float] = WeakKeyDictionary()
        self._least = 0.0

    def enter(self, claimant: Claimant) -> None:
        """Whoever was away has no claim to what it did not use meanwhile."""
        self._used[claimant] = max(self._used.get(claimant, 0.0), self._least)

    def used(self, claimant: Claimant) -> float:
        """What it has had."""
        return self._used[claimant]

    def goes_first(self, claimant: Claimant) -> None:
        """Virtual time is that of whoever is served."""
        self._least = self._used[claimant]

    def charge(self, claimant: Claimant, n_tokens: int) -> None:
        """Notes what it was given."""
        self._used[claimant] += claimant.cost(n_tokens)


class _Request:
    """One step of one session, and what became of it."""

    def __init__(self, claimant: Claimant, step: Step) -> None:
        self.claimant = claimant
        self.step = step
        self.n_tokens = len(step.tokens)
        self.since = time.perf_counter()
        self.error: BaseException | None = None
        self.done = False


class _Steps:
    """The decode steps of one model. Everything in it is changed under `_lock`."""

    def __init__(self, model: Model, device: Device, metrics: ModelMetrics, all_: Metrics) -> None:
        self._model = model
        self._retried = all_.batches_retried
        self._thread = device.compute_thread
        self._metrics = metrics
        self._most = MOST
        self._lock = threading.Lock()
        self._waiting: list[_Request] = []
        self._expected: set[Claimant] = set()
        """Those of the last batch, who may be about to come again."""
        self._wait_until = 0.0
        self._submitted: Submission[None] | None = None
        self._submitted_at = 0.0
        self._shares = _Shares()
        self._alone: list[tuple[int, float]] = []
        """(tokens, seconds) of steps of which the metrics do not tell yet."""

    def run(self, claimant: Claimant, step: Step) -> None:
        """Returns when the step was computed; raises where the claimant's message is to end."""
        n_tokens = len(step.tokens)
        if not (self._thread.is_current and self._nobody_else(claimant, n_tokens)):
            self._queue(_Request(claimant, step))
            return
        start = time.perf_counter()  # without queue, job and bell: a quarter of the host's time
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
            if self._submitted is not None or self._waiting or not self._expected <= {claimant}:
                return False
            self._shares.enter(claimant)
            self._shares.goes_first(claimant)
            self._shares.charge(claimant, n_tokens)
            return True

    def _queue(self, request: _Request) -> None:
        """Puts the request in the queue and waits until it was computed, or is to end."""
        claimant = request.claimant
        with self._lock:
            self._shares.enter(claimant)
            self._waiting.append(request)
            self._submit_if_due()
        while not request.done:
            claimant.wait(self._watch(request))
            if not request.done:
                self._check(request)
        if request.error is not None:
            raise request.error

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
            self._submit_if_due()

    def _watch(self, request: _Request) -> float | None:
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
                return self._wait_until - time.perf_counter()
            left = self._submitted_at + PATIENCE_S - time.perf_counter()
        if submitted.claimed:
            return None
        if left > 0:
            return left
        self._thread.rescue(submitted)
        return PATIENCE_S

    def _check(self, request: _Request) -> None:
        """Leaves the queue where the message is to end; a token that is being computed is kept."""
        try:
            request.claimant.check()
        except BaseException:
            with self._lock:
                if request not in self._waiting:
                    return
                self._waiting.remove(request)
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
        """Whether everybody waits who is expected, or was waited for long enough."""
        here = {request.claimant for request in self._waiting}
        return (
            sum(it.n_tokens for it in self._waiting) >= self._most
            or self._expected <= here
            or time.perf_counter() >= self._wait_until
        )

    def _step(self) -> None:
        """Computes one batch, as a job of the device's thread."""
        start = time.perf_counter()
        batch = self._compute_next()
        end = time.perf_counter()
        with self._lock:
            self._submitted = None
            for request in batch:
                request.done = True
            self._expect({it.claimant for it in batch if it.error is None}, start, end)
        for request in batch:
            request.claimant.interrupt()
        if batch:
            waits_s = [start - it.since for it in batch]
            self._measure(sum(it.n_tokens for it in batch), start, end, waits_s)

    def _expect(self, claimants: set[Claimant], start: float, end: float) -> None:
        """Waits a moment for those of a step that began and ended then. Under the lock."""
        patience = min(max(_PATIENCE * (end - start), _LEAST_PATIENCE_S), _MOST_PATIENCE_S)
        self._expected, self._wait_until = claimants, end + patience
        if self._waiting:
            self._submit_if_due()
            self._wake_first()

    def _compute_next(self) -> list[_Request]:
        """Those that were in the batch. Whatever goes wrong, whoever waits hears of it."""
        try:
            if len(self._waiting) > 1 and not self._model.batches:
                self._most = 1
            with self._lock:
                batch = self._take()
        except BaseException as error:
            with self._lock:
                batch, self._waiting = self._waiting, []
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

    def _take(self) -> list[_Request]:
        """The next batch: whoever has used least, and who can go with it. Under the lock."""
        if not self._waiting:
            return []
        shares = self._shares
        by_use = sorted(self._waiting, key=lambda request: shares.used(request.claimant))
        batch = self._that_fit(by_use)
        self._waiting = [request for request in self._waiting if request not in batch]
        shares.goes_first(by_use[0].claimant)
        for request in batch:
            shares.charge(request.claimant, request.n_tokens)
        batch.sort(key=lambda request: request.claimant.number)  # rows keep their sessions
        return batch

    def _that_fit(self, by_use: list[_Request]) -> list[_Request]:
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

    def _compute(self, batch: list[_Request]) -> None:
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


class _Turns:
    """One chunk of prefill of one model at a time, whoever has used least first.

    Between two jobs of a chunk the others decode. The more prompts there are for each of them, the
    longer a job lasts: a step of a few costs nearly as much as one of many.
    """

    def __init__(self, metrics: ModelMetrics, steps: _Steps) -> None:
        self._metrics = metrics
        self._steps = steps
        self._lock = threading.Lock()
        self._waiting: list[Claimant] = []
        self._holder: Claimant | None = None
        self._shares = _Shares()

    @contextmanager
    def turn(self, claimant: Claimant, n_tokens: int) -> Iterator[Callable[[], float]]:
        """Waits for its turn, which lasts until the block ends; raises what its check raises.

        Gives what tells how many seconds the next job is to last.
        """
        since = time.perf_counter()
        self._enter(claimant)
        start = time.perf_counter()
        with self._lock:
            self._shares.charge(claimant, n_tokens)
        try:
            yield self._job_s
        finally:
            self._leave(claimant)
            self._metrics.prefill_wait.observe(start - since)
            self._metrics.prefill.observe(time.perf_counter() - start)

    def _job_s(self) -> float:
        n_prompts, n_decoding = 1 + len(self._waiting), max(1, self._steps.n_decoding)
        return min(max(JOB_S, JOB_S * n_prompts / n_decoding), _LONGEST_JOB_S)

    def _enter(self, claimant: Claimant) -> None:
        with self._lock:
            self._shares.enter(claimant)
            self._waiting.append(claimant)
            self._pass_on()
        try:
            while self._holder is not claimant:
                claimant.wait(None)
                claimant.check()
        except BaseException:
            self._leave(claimant)
            raise

    def _leave(self, claimant: Claimant) -> None:
        with self._lock:
            if self._holder is claimant:
                self._holder = None
            else:
                self._waiting.remove(claimant)
            self._pass_on()

    def _pass_on(self) -> None:
        """Under the lock."""
        if self._holder is None and self._waiting:
            self._holder = min(self._waiting, key=self._shares.used)
            self._waiting.remove(self._holder)
            self._shares.goes_first(self._holder)
            self._holder.interrupt()


class Scheduler:
    """See the module. One for each runtime; safe to use from several threads."""

    def __init__(self, device: Device, metrics: Metrics) -> None:
        self._device = device
        self._metrics = metrics
        self._lock = threading.Lock()
        self._queues: dict[Model, tuple[_Steps, _Turns]] = {}

    def claimant(
        self,
        check: Callable[[], None],
        deadline: Callable[[], float | None],
        weight: float = 1.0,
    ) -> Claimant:
        """For one actor; see `Claimant`."""
        return Claimant(self._device, check, deadline, weight)

    def decode(self, claimant: Claimant, session: Session, token: int) -> None:
        """Appends one token to a session, in a batch with whoever waits for the same model.

        Raises TokenError, ContextFull, DeviceFailed, and what the claimant's check raises while it
        waits; the session is then as it was.
        """
        session.model.require_token(token)
        session.require_room(1)
        self._decode(claimant, Step(session, [token]))

    def decode_many(
        self, claimant: Claimant, session: Session, tokens: Sequence[int], logits: HostAddr
    ) -> None:
        """Appends up to `MOST` tokens to a session, with the bits of as many single ones.

        The logits after each but the last go to `logits`, f32 [n_tokens - 1, n_vocab]. One pass
        where that is exact (`Model.batches`), else one for each. Raises as `decode` does.
        """
        model, n_before = session.model, session.n_tokens
        for token in tokens:
            model.require_token(token)
        session.require_room(len(tokens))
        if len(tokens) == 1 or model.batches:
            self._decode(claimant, Step(session, tokens, logits))
            return
        try:
            for i, token in enumerate(tokens):
                if i > 0:
                    session.copy_logits(HostAddr(logits + 4 * session.layout.n_vocab * (i - 1)))
                self._decode(claimant, Step(session, [token]))
        except BaseException:
            session.truncate(n_before)
            raise

    def prefill(self, claimant: Claimant, session: Session, tokens: Sequence[int]) -> None:
        """Appends tokens to a session, one chunk of the model's after another.

        Raises as `decode` does; the session's tokens are then what they were.
        """
        turns = self._of(session.model)[1]
        session.model.prefill(session, tokens, claimant.check, partial(turns.turn, claimant))

    def embed(
        self,
        claimant: Claimant,
        model: Model,
        tokens: Sequence[int],
        binding: Binding,
        address: HostAddr,
        *,
        normalised: bool,
    ) -> None:
        """Has an embedding computed to `address`, in the turns of the model's prefills.

        Raises as `Model.embed_into`, and what the claimant's check raises meanwhile.
        """
        turn = partial(self._of(model)[1].turn, claimant)
        check = claimant.check
        model.embed_into(tokens, binding, address, normalised=normalised, check=check, turn=turn)

    def leave(self, claimant: Claimant, model: Model) -> None:
        """Nobody need wait for this actor: its message ended, or it closes a session."""
        if model in self._queues:
            self._queues[model][0].leave(claimant)

    def forget(self, model: Model) -> None:
        """Keeps nothing of a model that is about to close."""
        with self._lock:
            self._queues.pop(model, None)

    def _decode(self, claimant: Claimant, step: Step) -> None:
        """One step; nobody need wait for whoever goes on with another model."""
        model = step.session.model
        if claimant.model is not None and claimant.model is not model:
            self.leave(claimant, claimant.model)
        claimant.model = model
        self._of(model)[0].run(claimant, step)

    def _of(self, model: Model) -> tuple[_Steps, _Turns]:
        queues = self._queues.get(model)
        if queues is None:
            metrics = self._metrics.of_model(model.name)
            steps = _Steps(model, self._device, metrics, self._metrics)
            with self._lock:
                queues = self._queues.setdefault(model, (steps, _Turns(metrics, steps)))
        return queues
