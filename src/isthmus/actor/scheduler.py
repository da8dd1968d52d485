"""Who computes next: decode steps that wait at the same moment run as one batch, prefills in turns.

::

    actor's thread ── decode ───► queue of its model ──┐
    actor's thread ── decode ───► queue of its model ──┼─► one pass for all, at the device's thread
    actor's thread ── decode ───► queue of its model ──┘        ▲ in turns
    actor's thread ── prefill ──► one pass at a time ── parts ──┘

An actor blocks in its host call meanwhile. A batch begins as soon as everybody waits who was in the
last one, or after a moment; who was missing once is not waited for again until it comes. So nobody
waits for an actor that does something else. A step may be of several tokens of one session, which
are as many rows of the batch.

A prefill is computed in parts, about one layer of one chunk each. Between two jobs of some parts
whoever decodes gets a token, so a long prompt costs the others one job for each token, no chunk.
Where more prompts wait than actors decode, several are computed before the next token, up to half a
second, so that many decode together. Short prompts that wait are one pass. Where chunks end depends
on the request alone, never on who else is there.

Where more wait than fit, the one goes first that has used least for its weight (start-time fair
queueing, Goyal et al. 1996): nobody starves, and twice the weight gets twice the tokens.

Where batches would change bits (`Model.exact_batching`), each step runs alone, unless the model was
loaded with `exact=False`; a step of several tokens is then several steps. So do prompts
(`Model.exact_packing`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

from isthmus.actor.claimant import Claimant
from isthmus.actor.steps import MOST, Steps
from isthmus.actor.turns import Turns
from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.metrics import Metrics
from isthmus.model import Model, Session
from isthmus.model.batch import Step
from isthmus.units import HostAddr

__all__ = ["MOST", "Scheduler"]


class Scheduler:
    """See the module. One for each runtime; safe to use from several threads."""

    def __init__(self, device: Device, metrics: Metrics) -> None:
        self._device = device
        self._metrics = metrics
        self._lock = threading.Lock()
        self._queues: dict[Model, tuple[Steps, Turns]] = {}
        self.n_asked = 0
        """Steps and prompts that were asked for, about: threads count without a lock."""

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
        self.n_asked += 1
        turns = self._of(session.model)[1]
        session.model.prefill(session, tokens, claimant.check, partial(turns.run, claimant))

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
        turn = partial(self._of(model)[1].run, claimant)
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
        self.n_asked += 1
        model = step.session.model
        if claimant.model is not None and claimant.model is not model:
            self.leave(claimant, claimant.model)
        claimant.model = model
        self._of(model)[0].run(claimant, step)

    def _of(self, model: Model) -> tuple[Steps, Turns]:
        queues = self._queues.get(model)
        if queues is None:
            metrics = self._metrics.of_model(model.name)
            steps = Steps(model, self._device, metrics, self._metrics)
            with self._lock:
                queues = self._queues.setdefault(
                    model, (steps, Turns(model, metrics, self._metrics, steps))
                )
        return queues
