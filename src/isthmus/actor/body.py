"""What of an actor takes memory: an instance of its guest, its pages, what the guest has opened.

An actor has one body at a time. It loses it when it is evicted or its last message is undone, and
gets another one, made from the frozen or saved state; nobody outside can tell the difference.

Memory is freed in the order in which it is used: sessions and graphs, the device's binding, the
instance, and last the Region.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

from isthmus.abi import MODULE
from isthmus.actor.ask import Aside
from isthmus.actor.beginning import Frozen, Spawned
from isthmus.actor.budget import Account
from isthmus.actor.host_api import Context, Granted, HostApi
from isthmus.actor.host_api.tool import is_inside
from isthmus.actor.message import Message
from isthmus.actor.nn import NnFunctions
from isthmus.actor.pages import Pages
from isthmus.actor.pauses import Pauses
from isthmus.actor.platform import Platform
from isthmus.actor.shares import Share
from isthmus.actor.snapshot import Restoration
from isthmus.actor.state import ActorState, Reopen, read_handles
from isthmus.actor.stdio import Stdio
from isthmus.actor.tensor_unit import Checker, Copies, TensorUnit
from isthmus.counters import Counters
from isthmus.errors import GuestExited, Overloaded, RegionError, SnapshotMismatch
from isthmus.memory import Region
from isthmus.model import Model, Session
from isthmus.model.checks import nothing
from isthmus.units import WASM_PAGE, align_up
from isthmus.wasm import (
    Engine,
    Guest,
    Handler,
    Instance,
    Wasi,
    read_globals,
    wasi_nn,
    write_globals,
)
from isthmus.wasm.guest import ON_MESSAGE, ON_OPTIONS, ON_REPLAY, START
from isthmus.wasm.memory_creator import MemoryRequest
from isthmus.wasm.wasi import at_end

_Result = TypeVar("_Result")


class Body:
    """See the module. Used by one thread at a time, except for `cut_off`."""

    def __init__(
        self,
        platform: Platform,
        guest: Guest,
        granted: Granted,
        beginning: Spawned | Frozen,
        counters: Counters,
        account: Account,
    ) -> None:
        """`account` is the actor's, which pays for the memory."""
        state = beginning.state
        self._platform = platform
        self._guest = guest
        self._granted = granted
        self._fuel, self._counters = granted.limits.fuel, counters
        self._args, self._argv = state.args, state.argv
        self._status: int | None = None  # that a command has exited with
        self._seed, self._account = state.seed, account
        self._refusal: Overloaded | None = None
        self.context = Context(granted, state.clock(), state.random(), counters)
        self.context.log_position = state.log_position
        self._stdio = Stdio(self.context)
        self._api = HostApi(self.context)
        self._nn = NnFunctions(self.context, self._write, platform.device.library.llama_version)
        self._nn.memory.grow = self._grow_memory
        with contextlib.ExitStack() as stack, platform.beginnings.taking(self):
            self._make(beginning, stack)
            self._stack = stack.pop_all()

    @property
    def message(self) -> Message:
        """The message that it handles, or handled last: at first that of its beginning."""
        return self.context.message

    @property
    def log_position(self) -> int:
        """How many records its guest has logged in all its life."""
        return self.context.log_position

    @property
    def in_own_tool(self) -> bool:
        """Whether the calling thread runs a tool for it."""
        return is_inside(self.context)

    @property
    def region(self) -> Region:
        """The guest's linear memory."""
        return self.instance.region

    @property
    def sessions(self) -> list[Session]:
        """Its open sessions, oldest first."""
        return self.context.handles.all(Session)

    async def handle(self, message: Message) -> int:
        """Runs the guest on one message; what on_message returns, or raises as `Call.run`.

        A command is run once; GuestExited if its status is not 0, once its answer is complete.
        """
        self.context.message = message
        if self._guest.is_command:
            await self._call(START, before=self.instance.entry_points())
            if self._status:
                raise GuestExited(self._status)
            return 0
        message.begun_at = time.monotonic()
        code = await self._call(ON_MESSAGE, len(message.data))
        if code == 0:
            await self._take_checkpoints(message)
        return code

    async def _take_checkpoints(self, message: Message) -> None:
        """Has sessions come back to here, of models that are set to do so after each message."""
        for session in self.sessions:
            if session.state_nbytes and Model.of(session).settings.message_checkpoints:
                await Aside(message, session.checkpoint)

    @property
    def is_watched(self) -> bool:
        """Whether somebody else holds its memory: a view, for instance."""
        return self.region.n_holds > 1 + len(self.sessions)

    def on_host(self) -> AbstractContextManager[None]:
        """While open, all that the sessions hold can be read in the linear memory."""
        rows = [row for session in self.sessions for row in session.rows(session.n_tokens)]
        return self.binding.on_host(rows)

    def cut_off(self) -> None:
        """Ends the guest's work while the body is made; from any thread."""
        message = self.context.message
        message.is_cut_off = True
        self._platform.loop.look_at(message)

    def state(self, n_messages: int) -> ActorState:
        """What it is now, but for the memory."""
        context = self.context
        return ActorState(
            args=self._args,
            globals=read_globals(self.instance),
            opened=read_handles(context.handles),
            last_handle=context.handles.last,
            seed=self._seed,
            n_random_blocks=context.random.n_blocks,
            clock_ns=context.clock.now_ns,
            log_position=context.log_position,
            n_messages=n_messages,
            nn=self._nn.save(),
            message=self.pauses.paused,
        )

    def close(self) -> None:
        """Gives everything back; RegionBusy while somebody looks at its memory, and a second call
        then tries again.
        """
        self._stack.close()
        self.instance.close()

    # ------------------------------------------------------------------ making it

    def _make(self, beginning: Spawned | Frozen, stack: contextlib.ExitStack) -> None:
        """Puts it together; what must be freed goes on the stack."""
        platform, context = self._platform, self.context
        how = beginning.restoration if isinstance(beginning, Frozen) else None
        replays = how is not None and bool(how.replayed)
        allowed_s, said_by = platform.beginnings.allowed(self._granted.limits, replays=replays)
        share = Share(self._granted.limits.weight)
        until = time.monotonic() + allowed_s
        context.message = Message(b"", self._guest.name, share, deadline_of=said_by)
        engine, guest = self._compiled()  # takes no time from the guest's own
        context.message.deadline = until
        self.instance = stack.enter_context(self._instantiate(engine, guest))
        self.pages = Pages(
            self.region, remappable=platform.device.remaps, freeze=platform.budget.freeze
        )
        if isinstance(beginning, Frozen):
            self._thaw_memory(beginning)
        self.binding = stack.enter_context(platform.device.bind(self.region))
        unit = self._tensor_unit(copy_tensors=beginning.copy_tensors or self.binding.copies)
        stack.callback(unit.close)
        stack.callback(self._api.close)
        self._api.attach(self.region, self.instance.memory, self.binding, unit, self._hold)
        paused = beginning.state.message
        self.pauses = Pauses(self.instance, context, self._grow_memory, paused)
        if isinstance(beginning, Frozen):
            with self.binding.thaw(beginning.source()):
                self._thaw_handles(beginning, beginning.restoration)
            self._tell_options(beginning)
        elif not self._guest.is_command:
            for name in self.instance.entry_points():
                self._run(self._call(name))

    async def _call(self, name: str, *args: int, before: Sequence[str] = ()) -> int:
        """Calls a function of the guest for the message, and others before it."""
        message = self.context.message
        if self._fuel is not None:
            had = message.inherited
            self.instance.fuel = max(self._fuel - (had.fuel if had else 0), 0)
        code = -1
        try:
            for each in before:
                await self._run_to_end(each)
            if self._status is None:
                code = await self.pauses.run(partial(self._run_to_end, name, *args))
            else:
                code = 0
            if code == 0 and not message.is_short:
                await Aside(message, message.seal)
            return code
        finally:
            self._stdio.flush()
            if code == 0:
                message.seal()
            else:
                message.forget_output()
            self.pauses.end()
            self._ended()

    async def _run_to_end(self, name: str, *args: int) -> int:
        """What a function of the guest returns; 0 if a command exits, with whatever status."""
        call = self.instance.begin(name, *args, check=self.context.message.check)
        try:
            return await call.run()
        except GuestExited as exited:
            if not self._guest.is_command:
                raise
            self._status = exited.status
            return 0
        finally:
            call.close()

    def _write(self, stream: int, data: bytes) -> None:
        """Takes what the guest writes to standard output (1) or standard error (2)."""
        (self._stdio.write if self._guest.is_command else self._api.log_stream)(stream, data)

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """The result of work that belongs to its beginning, once the loop has driven it."""
        message = self.context.message
        try:
            message.check()
        except BaseException:
            work.close()
            raise
        return self._platform.loop.run(message, work)

    def _ended(self) -> None:
        """The guest has returned, or was cut off: its output counts as memory no longer."""
        message = self.context.message
        self._api.end_message()
        self._account.give(message.held_nbytes)
        message.held_nbytes = 0
        if self._fuel is not None:
            message.fuel = self._fuel - self.instance.fuel

    def _compiled(self) -> tuple[Engine, Guest]:
        """The guest for the engine of its kind. It may have to be compiled: the code is kept, and
        the next try finds it.
        """
        engines = self._platform.engines
        if self._fuel is None:
            return engines.unmetered(self._guest), self._guest
        return engines.metered(self._guest, self.context.message.check)

    def _instantiate(self, engine: Engine, guest: Guest) -> Instance:
        context, is_command = self.context, self._guest.is_command
        wasi = Wasi(
            args=[self._guest.name, *((self._argv or ()) if is_command else self._args)],
            environ=self._args if is_command else (),
            clock=context.clock,
            random=context.random.draw,
            write=self._write,
            read=self._stdio.read if is_command else at_end,
        )
        return Instance(
            engine,
            guest,
            handlers=self._handlers(),
            wasi=wasi,
            memory=MemoryRequest(
                self._granted.limits.memory_nbytes, self._platform.device.reserve, self._admit
            ),
            counters=self._counters,
        )

    def _handlers(self) -> dict[str, dict[str, Handler]]:
        """The host functions by module. wasi-nn exists for 32-bit memories only."""
        found = {MODULE: self._api.functions()}
        return found if self._guest.is_64 else found | {wasi_nn.MODULE: self._nn.handlers()}

    def _admit(self, more_nbytes: int, limit_nbytes: int) -> None:
        """Asks the budget of all actors, and notes what is refused."""
        if limit_nbytes:
            self.context.message.reached("memory_nbytes", limit_nbytes)
            return
        self._take(more_nbytes)

    def _hold(self, nbytes: int) -> None:
        """Counts output until the message has ended; Overloaded."""
        self._take(nbytes)
        self.context.message.held_nbytes += nbytes

    def _take(self, nbytes: int) -> None:
        try:
            self._account.take(nbytes)
        except Overloaded as error:
            self._refusal = self.context.message.refusal = error
            raise

    def _tensor_unit(self, *, copy_tensors: bool) -> TensorUnit:
        memory, device = self.instance.memory, self._platform.device
        return TensorUnit(
            device,
            self._platform.backend,
            self.binding,
            Checker(memory, self.context.handles),
            self._counters,
            Copies(device, memory) if copy_tensors else None,
        )

    def _thaw_memory(self, frozen: Frozen) -> None:
        self._grow_to(frozen.image.nbytes)
        apart = frozen.caches_apart() if self._platform.device.caches is not None else []
        self._counters.bytes_restored += self.pages.load(frozen.image, frozen.chunks, apart)
        if frozen.verify is not None:
            frozen.verify(self.region.base)
        write_globals(self.instance, frozen.state.globals)

    def _thaw_handles(self, frozen: Frozen, how: Restoration | None) -> None:
        context = self.context
        reopen = Reopen(
            self._granted.models,
            self._granted.limits,
            self.region,
            self.binding,
            grow=self._grow_memory,
            prefill=lambda session, tokens: self._run(context.prefill(session, tokens)),
            check=context.message.check if how is not None else nothing,
            replay=how.replayed if how else frozenset(),
            drop=how.foreign if how else frozenset(),
        )
        reopen.fill(context.handles, frozen.state)
        self._nn.restore(frozen.state.nn, how.foreign if how else ())
        if how is not None and how.foreign:
            self._replay_in_guest(how)

    def _replay_in_guest(self, how: Restoration) -> None:
        """The guest's sessions are closed: tokens of one vocabulary mean nothing in another, and
        embeddings are no tokens."""
        if ON_REPLAY not in self._guest.functions:
            raise SnapshotMismatch(
                "the tokenizer is another, or a session holds a picture or a sound, which no token "
                f"stands for; and {self._guest.name} does not export {ON_REPLAY}, which opens its "
                "sessions anew",
                how.reasons,
            )
        code = self._run(self._call(ON_REPLAY))
        if code != 0:
            raise self.context.message.failure(-code)

    def _tell_options(self, frozen: Frozen) -> None:
        """Has a guest in the middle of an answer read other options, if it can."""
        differ = frozen.has_other_options and frozen.state.message is not None
        if differ and ON_OPTIONS in self._guest.functions:
            if self._fuel is not None:
                self.instance.fuel = self._fuel
            if code := self._run(self._run_to_end(ON_OPTIONS)):
                raise self.context.message.failure(-code)

    def _grow_memory(self, nbytes: int) -> int:
        begin = self.region.nbytes
        self._grow_to(align_up(begin + nbytes, WASM_PAGE))
        return begin

    def _grow_to(self, nbytes: int) -> None:
        """Grows the memory; Overloaded if the budget of all actors has too little left."""
        try:
            self.instance.grow_memory(nbytes)
        except RegionError:
            if self._refusal is not None:
                raise self._refusal from None
            raise
