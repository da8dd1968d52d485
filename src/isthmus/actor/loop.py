"""The loop that drives every agent, on the device's thread.

::

    take the mail ──► resume each message that has its answer, until it asks again or ends
         ▲                                   │
         └── deliver texts ◄── compute one step or job: `plan.py` says whose

A guest runs on a fiber, so a message that waits needs no thread. Its work is a coroutine: each
`await` of an `Ask` comes out here, and the answer goes in again. Nothing here waits, except for the
device:

* Work that may take long (tools, templates, files) is done by a pool's threads, which answer by
  mail.
* A guest that computes for longer than a time slice goes on in the slow lane, and asks by mail.
* Whoever sent a message gets all the text of one turn at once.

Other threads reach the loop by its mail only. All else belongs to the loop's thread.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from isthmus.actor.ask import Answer, Aside, Decode, Jobs, Prompt
from isthmus.actor.crew import Crew
from isthmus.actor.elsewhere import Elsewhere
from isthmus.actor.job_queue import JobQueue
from isthmus.actor.message import AGAIN_S, Message
from isthmus.actor.model_queue import ModelQueue
from isthmus.actor.places import Places
from isthmus.actor.ready import Ready
from isthmus.actor.timers import Timers
from isthmus.config import Capacity
from isthmus.device.compute_thread import ComputeThread
from isthmus.errors import ActorBusy, GuestFault, IsthmusError, Overloaded
from isthmus.metrics import Metrics
from isthmus.model import Model
from isthmus.wasm import SLICE_OVER

_log = logging.getLogger("isthmus")
_Result = TypeVar("_Result")
_BEGIN_S = 0.01
"""Seconds of one turn that go to beginning messages while other agents wait for a token."""
_OF_MODELS = (Decode, Prompt)
"""The asks that a model's queue answers."""
_RECENTLY_S = 0.3
"""Seconds after a step or a prompt for which agents count as asking for tokens."""


class Loop:
    """See the module. One for each runtime; its public methods may be called from any thread."""

    def __init__(
        self,
        thread: ComputeThread,
        capacity: Capacity,
        metrics: Metrics,
        refused: Callable[[str], None],
    ) -> None:
        """`refused` is called with the reason when a message is refused."""
        self._thread = thread
        self._metrics = metrics
        self._refused = refused
        self.places = Places(capacity, refused)
        self._mail: deque[Callable[[], None]] = deque()
        self._is_posted = False
        """Whether a turn is among the thread's jobs."""
        self._is_in_turn = False
        self._queues: dict[Model, ModelQueue] = {}
        self._crew = Crew(thread)
        self._ready = Ready(
            self._advance, lambda: any(it.has_light for it in self._queues.values())
        )
        self._jobs = JobQueue()
        self._timers = Timers()
        self._talking: list[Message] = []
        """Messages that have something to deliver."""
        self._elsewhere = Elsewhere(
            answered=lambda answer: self._post(partial(self._come_back, answer)),
            came_in=lambda *guest: self._post(partial(self._come_in, *guest)),
            said=lambda message: self._post(partial(self._talking.append, message)),
            decodes=self._is_computing,
        )
        self._computed_at = 0.0
        """When a model's queue had work last, on the clock of time.monotonic."""

    # ------------------------------------------------------------------ from any thread

    def send(self, message: Message) -> None:
        """Has a message driven as soon as there is a place for it.

        Raises Overloaded if too many wait, DeviceFailed in a forked process. After any other error,
        such as that of Ctrl-C, a message that `is_counted` is cut off by the loop.
        """
        self._thread.require_own_process()
        letter = partial(self._receive, message)
        try:
            self.places.enter(message)
            self._post(letter)
        except Exception:
            self.places.leave(message)
            raise
        except BaseException:  # it may be on its way or not
            message.is_cut_off = True
            self._post(letter)
            raise

    def run(self, message: Message, work: Coroutine[Any, Any, _Result]) -> _Result:
        """The result of `work`, once the loop has driven it for a message that needs no place.

        Used while an actor begins. Ctrl-C cuts the guest off, and raises KeyboardInterrupt when it
        has ended. ActorBusy on the loop's own thread.
        """
        results: list[_Result] = []
        errors: list[BaseException] = []
        done = threading.Event()

        async def guarded() -> None:
            try:
                results.append(await work)
            except BaseException as error:
                errors.append(error)
            done.set()

        message.work, message.begun = (whole := guarded()), False
        letter = partial(self._begin, message)
        try:
            self.require_elsewhere()
            self._post(letter)
            done.wait()
        except Exception:  # nobody will drive it
            message.begun = True
            whole.close()
            work.close()
            raise
        except BaseException:
            self._post(letter)  # it may be on its way or not
            while not done.wait(AGAIN_S):
                message.is_cut_off = True
                self.look_at(message)
            raise
        if errors:
            raise errors[0]
        return results[0]

    def look_at(self, message: Message) -> None:
        """Has the loop see at once whether a message is to end."""
        with contextlib.suppress(Exception):  # the device is closed: so is whatever waited for it
            self._post(partial(self._look_at, message))

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the loop's."""
        return self._thread.is_current

    def require_elsewhere(self) -> None:
        """Raises ActorBusy on the loop's thread, where a wait for an actor would never end."""
        if self.is_current:
            raise ActorBusy(
                "a deliver callback runs on the thread that drives all agents, so it cannot wait "
                "for one: hand over to another thread"
            )

    def forget(self, model: Model) -> None:
        """Keeps nothing of a model that is about to close."""
        self._thread.run(lambda: self._queues.pop(model, None))

    def _is_computing(self) -> bool:
        """Whether agents asked for tokens lately. Other threads read it without a lock."""
        return time.monotonic() - self._computed_at < _RECENTLY_S

    def _post(self, letter: Callable[[], None]) -> None:
        self._mail.append(letter)
        try:
            if not self._is_posted:
                self._is_posted = True
                self._thread.post(self._turn)
        except BaseException:  # Ctrl-C, for instance: whoever posts next must not rely on it
            self._is_posted = False
            raise

    # ------------------------------------------------------------------ one turn

    def _turn(self) -> None:
        self._is_posted = False
        if self._is_in_turn:  # a turn that waits for its crew goes on by itself
            return
        self._is_in_turn = True
        try:
            self._take_mail()
            self._ring()
            self._resume()
            self._compute()
            self._deliver()
        finally:
            self._is_in_turn = False
            self._go_on()

    def _go_on(self) -> None:
        """Has the thread run the next turn: at once, or when the next message's time is over."""
        if self._has_work():
            if not self._is_posted:
                self._is_posted = True
                self._thread.post(self._turn)
            return
        for queue in self._queues.values():
            queue.tell()
        self._thread.set_alarm(self._timers.first, self._turn)

    def _has_work(self) -> bool:
        if self._ready or self._jobs.has_work or self._mail or self.places.fresh or self._talking:
            return True
        return any(queue.has_work for queue in self._queues.values())

    def _take_mail(self) -> None:
        for _ in range(len(self._mail)):
            self._mail.popleft()()

    def _ring(self) -> None:
        """Looks at the messages whose time is over."""
        first = self._timers.first
        if first is not None and first <= (now := time.monotonic()):
            for message in self._timers.due(now):
                self._look_at(message)

    def _resume(self) -> None:
        self._ready.resume()
        until = time.monotonic() + _BEGIN_S
        fresh = self.places.fresh
        while fresh:
            self._begin(fresh.popleft())
            if time.monotonic() >= until and any(it.decodes for it in self._queues.values()):
                return

    def _compute(self) -> None:
        ready = self._ready
        for queue in tuple(self._queues.values()):
            if queue.has_work:
                ready.extend(queue.work())
                self._computed_at = time.monotonic()
        if self._jobs.has_work:
            ready.extend(self._jobs.work())

    def _deliver(self) -> None:
        talking, self._talking = self._talking, []
        for message in talking:
            try:
                if message.deliver():
                    self._talking.append(message)
            except BaseException:  # whatever it is: others are still to be told
                _log.exception("a deliver callback failed; its message is stopped")
                message.abandon()
                self._look_at(message)

    # ------------------------------------------------------------------ one message

    def _receive(self, message: Message) -> None:
        """Takes a message, unless it is taken already, or was given up by its sender."""
        if message.is_known or not message.is_counted:
            return
        message.is_known = True
        self._set_timer(message)
        self.places.receive(message)
        if message.stopping or message.is_cut_off:
            self._look_at(message)

    def _begin(self, message: Message) -> None:
        """Begins a message, unless it has begun already."""
        if not message.begun:
            message.begun = True
            if not message.is_known:  # its actor begins
                self._set_timer(message)
            self._advance([Answer(message)])

    def _set_timer(self, message: Message) -> None:
        self._timers.add(message, self.places.n_running + self.places.n_waiting)

    def _advance(self, answers: list[Answer]) -> None:
        """Resumes messages with what they waited for; each goes on until it asks or ends."""
        quick = [it for it in answers if not it.message.is_slow]
        if len(quick) < len(answers):
            for answer in [it for it in answers if it.message.is_slow]:
                self._go_on_slowly(answer)
        for answer, ask in zip(quick, self._crew.resume(quick), strict=True):
            self._take_in(answer.message, ask)

    def _take_in(self, message: Message, ask: Any) -> None:
        """Goes on with what a message that was resumed asks for; see `Message.resume`."""
        if isinstance(ask, _OF_MODELS):  # nearly always
            if message.pieces:
                self._talking.append(message)
            message.waits_for = ask
            queue = self._queues.get(ask.model)
            if queue is None:
                queue = self._queues[ask.model] = ModelQueue(ask.model, self._metrics)
            queue.add(ask)
        elif ask is None:
            self._ended(message)
        elif isinstance(ask, BaseException):
            self._failed(message, ask)
        else:
            self._take_ask(message, ask)

    def _take_ask(self, message: Message, ask: Any) -> None:
        """Passes an ask on that no model answers."""
        if message.pieces:
            self._talking.append(message)
        if ask is SLICE_OVER:
            message.is_slow = True
            self._go_on_slowly(Answer(message), n_slices=1)
            return
        message.waits_for = ask
        if isinstance(ask, Jobs):
            self._jobs.add(ask)
        else:
            self._go_aside(ask)

    def _failed(self, message: Message, error: BaseException) -> None:
        """Ends a message whose work raised, which is a fault of ours; its sender gets the error."""
        _log.error("a message ended with an error that nobody expected", exc_info=error)
        message.outcome = message.outcome or error
        self._ended(message)

    def _ended(self, message: Message) -> None:
        self._talking.append(message)
        if message.has_place:
            message.has_place = False
            self.places.give_up()

    def _look_at(self, message: Message) -> None:
        """Ends a message's wait if the message has to end."""
        if message.ended.is_set():
            return
        if not message.begun:
            if message.is_known:  # otherwise it is looked at once it is taken
                self._end_unbegun(message)
            return
        try:
            message.check_going_on()
        except BaseException as error:
            if message.abandoned_at is not None and isinstance(error, GuestFault):
                self._set_timer(message)  # its grace may be over before its deadline
            ask = message.waits_for
            if ask is not None and self._take_back(ask):
                self._ready.append(Answer(message, None, error))

    def _end_unbegun(self, message: Message) -> None:
        """Begins a message that has to end: its own work ends it."""
        try:
            message.require_begin()
        except IsthmusError:
            self.places.withdraw(message)
            self._begin(message)

    def _take_back(self, ask: Any) -> bool:
        """Takes an ask out of its queue; False if it is answered or cannot be taken out."""
        if isinstance(ask, _OF_MODELS):
            return self._queues[ask.model].remove(ask)
        return isinstance(ask, Jobs) and self._jobs.remove(ask)

    # ------------------------------------------------------------------ elsewhere

    def _go_aside(self, ask: Aside[Any]) -> None:
        """Has work done by another thread; while it may wait for agents, it takes no place."""
        message = ask.message
        message.gave_place = ask.blocks and message.has_place
        if message.gave_place:
            self.places.give_up()
        try:
            self._elsewhere.do(ask)
        except Overloaded as error:
            self._refused("threads")
            self._come_back(Answer(message, None, error))

    def _come_back(self, answer: Answer) -> None:
        if answer.message.gave_place:
            answer.message.gave_place = False
            self.places.take_again()
        self._ready.append(answer)

    def _go_on_slowly(self, answer: Answer, n_slices: int = 0) -> None:
        """Has a guest go on in the slow lane; see `Elsewhere.compute`."""
        try:
            self._elsewhere.compute(answer, n_slices)
        except Overloaded as why:
            self._refused("threads")
            answer.message.is_slow = False
            self._ready.append(Answer(answer.message, None, why))

    def _come_in(self, message: Message, ask: Any, is_slow: bool) -> None:
        message.is_slow = is_slow
        self._take_in(message, ask)
