"""The models of a server: loaded when a request asks for one, gone when nobody needs it any more.

::

    use ──► loaded, and nobody waits ──────────────────► taken for the request
      │                                                      ▲
      └──► Line ──► room for it? ──► loading ──► loaded ─────┘
                        │
                        └── no: the least recently used that nobody uses is leaving; if all are
                            used, those who come queue as well, and one of them falls idle

A request has its models until it, and all that works for it, has ended (`http/entry.py`). While
some wait for room, others may take what is loaded for another while (`_patience_s`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from isthmus.config import ModelSettings
from isthmus.errors import DeviceFailed, IsthmusError, Overloaded, SettingsError
from isthmus.model import Model
from isthmus.printable import printable
from isthmus.runtime import Runtime
from isthmus.server.duration import FOREVER
from isthmus.server.http.entry import current
from isthmus.server.http.events import unless_left
from isthmus.server.http.log import tell
from isthmus.server.models.catalog import Catalog
from isthmus.server.models.files import ModelFiles, failed
from isthmus.server.models.line import Line, Ticket
from isthmus.server.models.memory import ModelMemory
from isthmus.server.models.opener import Opener
from isthmus.server.models.resident import Resident, Served, State
from isthmus.server.settings import ServerSettings
from isthmus.units import format_nbytes

_log = logging.getLogger("isthmus.server")
_T = TypeVar("_T")
_AT_A_TIME = 2
"""Models that are opened or closed at the same time."""
_MIN_PATIENCE_S, _LOADS = 1.0, 4
"""Seconds for which others take a loaded model while somebody waits for its room, or so many times
as long as loading took. Were it less, models would change places more than they answer."""
_AGAIN_S = 1.0
"""Seconds until a model that could not be closed is closed again."""


class Models:
    """See the module. Used by one event loop."""

    def __init__(
        self,
        runtime: Runtime,
        catalog: Catalog,
        settings: ServerSettings,
        computed: ModelSettings | None = None,
    ) -> None:
        """`computed` is how all models are."""
        computed = computed or ModelSettings()
        self.runtime = runtime
        self._opener = Opener(runtime, computed)
        self._settings = settings
        self._memory = ModelMemory(runtime, settings, repacks=computed.repack)
        self.files = ModelFiles(runtime, catalog, settings, computed, self._is_idle)
        self._line = Line(settings.waiting)
        self._threads = ThreadPoolExecutor(_AT_A_TIME, "isthmus-models")
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        """Set when a model may have to leave earlier than was known."""
        self.when_left: list[Callable[[], None]] = []
        """Called after a model has left: its agents are closed."""

    @property
    def limit_nbytes(self) -> int:
        """Bytes of weights that models may have together."""
        return self._memory.limit_nbytes

    # ------------------------------------------------------------------ using

    async def use(self, name: str, http: HttpRequest | None = None) -> Served:
        """A model in memory, for the current request until it has ended.

        A caller of `http`, whose body must have been read, who leaves ends the wait. Raises
        HttpError 404, and as `use_all`.
        """
        entry, real = current(), self.files.real_name(name)
        resident = self.files.get(real)
        if resident is not None and resident.state is State.LOADED and not self._line:
            entry.use(resident)
        else:
            waiting = self.use_all([name])
            await (waiting if http is None else unless_left(http, waiting))
            resident = self.files.known(real)
        entry.model = real
        return resident.served[real]

    async def use_all(self, names: Sequence[str]) -> list[Served]:
        """Models in memory, all of them at the same time, as `use`.

        Raises HttpError 404 if there is none of that name, 500 if it cannot be loaded, Overloaded
        if there is no room for it, or too many wait.
        """
        found, entry = [self.files.known(name) for name in names], current()
        missing = [it for it in dict.fromkeys(found) if not entry.uses(it)]
        for it in missing:
            await self.files.card(it)
        if missing:
            await self._wait_for(missing)
        return [it.served[self.files.real_name(n)] for it, n in zip(found, names, strict=True)]

    def keep_for(self, name: str, seconds: float) -> None:
        """Has a model stay for so long after each use, from now on; below 0 is for ever."""
        resident = self.files.known(name)
        resident.keep_alive_s = max(seconds, FOREVER)
        self._changed.set()
        self._is_idle(resident)

    async def unload(self, name: str) -> Resident:
        """Has a model leave as soon as nobody uses it; returns then or, if it is used, at once."""
        resident = self.files.known(name)
        resident.keep_alive_s = 0.0
        if resident.is_unused:
            await asyncio.shield(self._leave(resident, "asked"))
        return resident

    async def _wait_for(self, residents: list[Resident]) -> None:
        self._memory.require_possible(residents)
        loop, wait_s = asyncio.get_running_loop(), self._settings.deadline_s
        ticket = Ticket(residents, current().owner, loop.create_future())
        self._line.add(ticket)
        try:
            self._advance()
            await asyncio.wait_for(ticket.granted, wait_s)
            for it in residents:
                current().use(it)
        except asyncio.TimeoutError:
            raise Overloaded(self._why_late(ticket)) from None
        finally:
            self._line.remove(ticket)
            if ticket.is_granted:
                for it in residents:
                    it.give_back()
            self._advance()

    def _why_late(self, ticket: Ticket) -> str:
        said = f"the model {ticket.names} was not in memory after {self._settings.deadline_s:g} s"
        if any(it.state is State.LOADING for it in ticket.residents):
            return f"{said}: it is still being loaded; try again later"
        busy = ", ".join(it.name for it in self.files.all() if it.n_users)
        return f"{said}: there was no room, {busy or 'others'} were in use; try again later"

    def _is_idle(self, resident: Resident) -> None:
        """Nobody uses a model, perhaps."""
        if resident.keep_alive_s == 0 and resident.is_unused:
            self._leave(resident, "keep_alive")
        elif self._line:
            self._advance()

    # ------------------------------------------------------------------ who is next

    def _advance(self) -> None:
        """Serves those who wait, as far as can be."""
        waits_for_room = overdue = False
        for ticket in self._line:
            if all(it.state is State.LOADED for it in ticket.residents):
                if not overdue:
                    self._line.grant(ticket)
            elif not waits_for_room and not self._bring(ticket):
                waits_for_room = True
                overdue = time.monotonic() - ticket.since > _patience_s(ticket)

    def _bring(self, ticket: Ticket) -> bool:
        """Loads the models of a ticket; False if they must wait until there is room."""
        for it in ticket.residents:
            if it.state is State.LEAVING:
                return False
            if it.state is State.UNLOADED:
                if not self._memory.fits(it, self.files.all()):
                    self._make_room(it, ticket.residents)
                    return False
                it.state, it.error = State.LOADING, None
                it.keep_alive_s = self.files.keep_alive_s(it.source)
                self._start(self._load(it))
        return True

    def _make_room(self, resident: Resident, besides: Sequence[Resident]) -> None:
        """Has as many models leave as it takes, if nobody uses them."""
        while not self._memory.fits(resident, self.files.all(), once_left=True):
            victim = self._victim(besides)
            if victim is None:
                return
            self._leave(victim, "memory")

    def _victim(self, besides: Sequence[Resident]) -> Resident | None:
        """The model to leave next: those that are to stay come last."""
        able = [it for it in self.files.all() if it.is_unused and it not in besides]
        return min(able, key=lambda it: (it.keep_alive_s < 0, it.used), default=None)

    # ------------------------------------------------------------------ loading

    def load_at_start(self) -> None:
        """Loads the models that are there from the start, one after another, as far as they fit.

        Raises as `Opener.open`, and SettingsError for one that could never be loaded.
        """
        for resident in self.files.all():
            if not resident.source.at_start:
                continue
            self.files.read(resident)
            try:
                self._memory.require_possible([resident])
            except Overloaded as error:
                raise SettingsError(str(error)) from None
            if self._memory.fits(resident, self.files.all()):
                begun = time.monotonic()
                models = self._opener.open(resident.source)
                self._loaded(resident, models, time.monotonic() - begun)
            else:
                _log.warning("%s is loaded when it is asked for: no room", resident.name)

    async def _load(self, resident: Resident) -> None:
        begun = time.monotonic()
        try:
            models = await self._opened(resident)
        except Exception as error:
            self.files.note(resident, error)
            resident.state = State.UNLOADED
            self._line.fail(resident, lambda: failed(resident))
        else:
            self._loaded(resident, models, time.monotonic() - begun)
        self._changed.set()
        self._advance()
        self._is_idle(resident)  # those who wanted it may have left

    async def _opened(self, resident: Resident) -> Mapping[str, Model]:
        """The models of a file. Others leave if the device has no room for it."""
        await self._in_thread(partial(self.files.read, resident))
        while True:
            try:
                return await self._in_thread(partial(self._opener.open, resident.source))
            except DeviceFailed:
                victim = self._victim([resident])
                if victim is None:
                    raise
                await self._leave(victim, "memory")

    def _loaded(self, resident: Resident, models: Mapping[str, Model], seconds: float) -> None:
        n_ctx = resident.n_ctx
        resident.served = {name: Served(name, it, n_ctx) for name, it in models.items()}
        model, weights = resident.model, resident.model.weights
        resident.nbytes = weights.nbytes + weights.repacked_nbytes + model.projector_nbytes
        resident.load_s, resident.used = seconds, time.monotonic()
        resident.state = State.LOADED
        nbytes = format_nbytes(resident.nbytes)
        facts = {"seconds": round(seconds, 3), "nbytes": resident.nbytes}
        said = f"loaded {printable(resident.name)} in {seconds:.2f} s: {nbytes} of weights"
        tell("model_loaded", said, model=resident.name, **facts)

    # ------------------------------------------------------------------ leaving

    def _leave(self, resident: Resident, why: str) -> asyncio.Task[None]:
        """Has a model that nobody uses leave, with its agents."""
        resident.state = State.LEAVING
        return self._start(self._left(resident, why))

    async def _left(self, resident: Resident, why: str) -> None:
        begun = time.monotonic()
        try:
            await self._in_thread(partial(self.runtime.unload_model, resident.model))
        except IsthmusError as error:
            _log.error("%s cannot leave yet: %s", resident.name, error)
            resident.state, resident.stuck_until = State.LOADED, time.monotonic() + _AGAIN_S
            asyncio.get_running_loop().call_later(_AGAIN_S, self._is_idle, resident)
        else:
            resident.state, resident.served = State.UNLOADED, {}
            seconds = time.monotonic() - begun
            said = f"unloaded {printable(resident.name)} in {seconds:.2f} s ({why})"
            facts = {"seconds": round(seconds, 3), "why": why}
            tell("model_unloaded", said, model=resident.name, **facts)
        for it in self.when_left:
            it()
        self._advance()

    async def keep(self) -> None:
        """Has models leave that nobody used for long enough, until it is cancelled."""
        while True:
            self._changed.clear()
            now = time.monotonic()
            for it in self.files.all():
                if it.is_unused and it.expires is not None and it.expires <= now:
                    self._leave(it, "keep_alive")
            due = [it.expires for it in self.files.all() if it.expires is not None]
            wait_s = max(0.0, min(due) - now) if due else None
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_s)

    async def close(self) -> None:
        """Begins nothing any more, and waits for models that are being loaded or closed."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(partial(self._threads.shutdown, cancel_futures=True))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _patience_s(ticket: Ticket) -> float:
    return max(_MIN_PATIENCE_S, _LOADS * sum(it.load_s for it in ticket.residents))
