"""What messages ask of one model: the part of the loop that carries out what `plan` decides."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from itertools import chain
from operator import attrgetter

from isthmus.actor import plan
from isthmus.actor.ask import Answer, Decode, Prompt
from isthmus.actor.shares import Shares
from isthmus.errors import DeviceFailed, ModelUnsupported
from isthmus.metrics import Metrics
from isthmus.model import Model

_log = logging.getLogger("isthmus")
_answer, _key, _n_tokens, _steps = map(attrgetter, ("answer", "key", "n_tokens", "steps"))
"""Of a Decode: a step asks for them once for each token, and Python's own loops are slower."""
_UNTOLD_STEPS = 64
"""Steps that the metrics are told of at once: telling each would take as long as a token."""


class _Pass:
    """Prompts that are computed together now, and the jobs that are left."""

    def __init__(self, asks: list[Prompt], jobs: Generator[None, None, None]) -> None:
        self.asks = asks
        self.jobs = jobs
        self.seconds = 0.0
        """Seconds that its jobs have taken."""

    @property
    def n_tokens(self) -> int:
        return sum(ask.n_tokens for ask in self.asks)


class ModelQueue:
    """See the module. Only for the device's thread."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics.of_model(model.label)
        self._retried = metrics.batches_retried
        self._decodes: list[Decode] = []
        self._prompts: list[Prompt] = []
        self._pass: _Pass | None = None
        self._decode_shares, self._prompt_shares = Shares(), Shares()
        self._burst_left_s = 0.0
        """Seconds of prefill until the next step."""
        self._burst_is_whole = False
        """Whether it was made long enough for all prompts."""
        self._step_is_next = False
        self._n_decoding = 0
        """Sessions of the last step."""
        self._token_s: float | None = None
        """Seconds that a token of the last pass took."""
        self._has_kernels = True
        """False once a pass over several prompts failed for want of a kernel."""
        self._waits_since = 0.0
        self._untold: list[tuple[float, float, int]] = []
        """(seconds of waiting, seconds, tokens) of steps of which the metrics do not know yet."""

    @property
    def has_work(self) -> bool:
        """Whether anybody asks for anything."""
        return bool(self._decodes or self._prompts or self._pass)

    @property
    def decodes(self) -> bool:
        """Whether anybody asks for tokens."""
        return bool(self._decodes)

    @property
    def has_light(self) -> bool:
        """Whether anybody asks whose guest is not heavy; see `ready`."""
        asks = [*self._decodes, *self._prompts]
        return any(not ask.message.is_heavy for ask in asks)

    def add(self, ask: Decode | Prompt) -> None:
        """Takes an ask, which is answered by one of the next calls of `work`."""
        if isinstance(ask, Decode):
            if not self._decodes:
                self._waits_since = time.perf_counter()
            self._decodes.append(ask)
        else:
            self._prompts.append(ask)

    def remove(self, ask: Decode | Prompt) -> bool:
        """Takes back an ask whose message is to end; False if it was answered already.

        If its pass is under way, that is given up for all prompts in it. Each of the others is then
        computed alone, and the actor that left is charged for the whole pass. So nobody can have
        others' prompts computed more than twice.
        """
        if isinstance(ask, Decode):
            if ask not in self._decodes:
                return False
            self._decodes.remove(ask)
            return True
        if self._pass is not None and ask in self._pass.asks:
            n_tokens = self._pass.n_tokens
            self._give_up()
            self._prompt_shares.charge(ask.message.share, n_tokens)
        if ask not in self._prompts:
            return False
        self._prompts.remove(ask)
        return True

    def work(self) -> list[Answer]:
        """Computes one step, or one job of a prompt. Returns the answers that came of it."""
        try:
            return self._work()
        except BaseException as error:  # the model was closed, for instance: whoever waits hears it
            return self._fail_all(error)

    def tell(self) -> None:
        """Tells the metrics of all steps."""
        metrics = self._metrics
        for waited, seconds, n in self._untold:
            metrics.decode_wait.observe(waited)
            metrics.decode.observe(seconds)
            metrics.batch_size.observe(n)
        self._untold.clear()

    def _work(self) -> list[Answer]:
        prompts = bool(self._pass or self._prompts)
        if self._decodes and (self._step_is_next or not prompts):
            answers = self._step()
            self._step_is_next, self._burst_left_s = False, self._new_burst_s()
            return answers
        if not self._decodes:
            self._burst_left_s = self._new_burst_s()
        return self._job() if prompts else []

    def _fail_all(self, error: BaseException) -> list[Answer]:
        if self._pass is not None:
            self._give_up()
        asks = [*self._decodes, *self._prompts]
        self._decodes, self._prompts = [], []
        return [Answer(ask.message, None, error) for ask in asks]

    # ------------------------------------------------------------------ steps

    def _step(self) -> list[Answer]:
        start, since = time.perf_counter(), self._waits_since
        asks = self._next_batch()
        answers = self._compute(asks)
        end = time.perf_counter()
        self._waits_since = end
        self._n_decoding = len(asks)
        self._untold.append((start - since, end - start, sum(map(_n_tokens, asks))))
        if len(self._untold) >= _UNTOLD_STEPS:
            self.tell()
        return answers

    def _next_batch(self) -> list[Decode]:
        asks = self._decodes
        if len(asks) == 1:
            self._decode_shares.serve(asks)
            self._decodes = []
            return asks
        shares, most = self._decode_shares, self._model.rows_at_once
        chosen = plan.batch(asks, shares, most, _key)
        if len(chosen) == len(asks):
            self._decodes = []
        else:
            taken = {*chosen}
            self._decodes = [ask for ask in asks if ask not in taken]
        return chosen

    def _compute(self, asks: list[Decode]) -> list[Answer]:
        """Computes a step. If the device fails, each ask is tried alone: only the guilty fail."""
        try:
            self._model.executor.decode_batch([*chain.from_iterable(map(_steps, asks))])
        except DeviceFailed as error:
            if len(asks) == 1:
                return [Answer(asks[0].message, None, error)]
            self._retried.inc()
            return [answer for ask in asks for answer in self._compute([ask])]
        except BaseException as error:
            return [Answer(ask.message, None, error) for ask in asks]
        return [*map(_answer, asks)]

    # ------------------------------------------------------------------ prompts

    def _new_burst_s(self) -> float:
        under_way = self._pass
        n_prompts = len(self._prompts) + (len(under_way.asks) if under_way else 0)
        if not n_prompts:
            return 0.0
        n_decoding = max(len(self._decodes), self._n_decoding)
        left_s = self._left_s()
        seconds = plan.burst_s(n_prompts, n_decoding, left_s)
        self._burst_is_whole = seconds == left_s
        return seconds

    def _left_s(self) -> float | None:
        """Seconds, about, that all prompts still take; None until a pass has ended."""
        under_way = self._pass
        if self._token_s is None:
            return None
        n_tokens = sum(ask.n_tokens for ask in self._prompts)
        n_tokens += under_way.n_tokens if under_way else 0
        return n_tokens * self._token_s - (under_way.seconds if under_way else 0.0)

    def _job(self) -> list[Answer]:
        """One job of the pass under way, or of the next one."""
        under_way = self._pass
        if under_way is None:
            model = self._model  # somebody who is no agent may have it for itself
            if model.executor.is_prefilling or model.is_embedding or model.is_projecting:
                return []
            under_way = self._pass = self._next_pass()
        start = time.perf_counter()
        try:
            next(under_way.jobs)
            ended = False
        except StopIteration:
            ended = True
        except BaseException as error:
            return self._failed(under_way, error)
        seconds = time.perf_counter() - start
        under_way.seconds += seconds
        self._burst_left_s -= seconds
        next_s = 0.0 if self._burst_is_whole else seconds
        self._step_is_next = plan.burst_is_over(self._burst_left_s, next_s)
        return self._ended(under_way) if ended else []

    def _next_pass(self) -> _Pass:
        key_of, model = self._model.executor.batch_key, self._model
        asks = plan.pack(
            self._prompts,
            self._prompt_shares,
            lambda ask: key_of(ask.chunk.session) if ask.chunk else None,
            class_of=lambda ask: model.packing(ask.n_tokens) if self._has_kernels else None,
            most=lambda: model.prompts_at_once,
        )
        chunks = [ask.chunk for ask in asks if ask.chunk]
        jobs = asks[0].begin() if len(asks) == 1 else model.executor.append(chunks)
        taken, now = {*asks}, time.perf_counter()
        self._prompts = [ask for ask in self._prompts if ask not in taken]
        for ask in asks:
            self._metrics.prefill_wait.observe(now - ask.since)
        return _Pass(asks, jobs)

    def _ended(self, under_way: _Pass) -> list[Answer]:
        self._pass = None
        self._metrics.prefill.observe(under_way.seconds)
        self._token_s = under_way.seconds / under_way.n_tokens
        return [Answer(ask.message) for ask in under_way.asks]

    def _failed(self, under_way: _Pass, error: BaseException) -> list[Answer]:
        """Each prompt of a pass that failed is computed by itself, so that only the guilty fail."""
        if len(under_way.asks) == 1:
            self._pass = None
            return [Answer(under_way.asks[0].message, None, error)]
        n = len(under_way.asks)
        _log.warning("a pass over %d prompts failed, each goes alone: %s", n, error)
        self._retried.inc()
        self._has_kernels = self._has_kernels and not isinstance(error, ModelUnsupported)
        self._give_up()
        return []

    def _give_up(self) -> None:
        """Ends the pass under way; its prompts wait again, each for a pass of its own."""
        under_way, self._pass = self._pass, None
        assert under_way is not None
        under_way.jobs.close()
        for ask in under_way.asks:
            self._prompt_shares.charge(ask.message.share, -ask.n_tokens)
            ask.chunk = None
        self._prompts += under_way.asks
