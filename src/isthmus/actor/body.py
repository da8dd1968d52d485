"""What of an actor takes memory: an instance of its guest, its pages, what the guest has opened.

An actor has one body at a time. It loses it when it is evicted or its last message is undone, and
gets another one, made from the frozen or saved state; nobody outside can tell the difference.

Memory is freed in the order in which it is used: sessions and graphs, the device's binding, the
instance, and last the Region. Nothing here copies tensor data: `counters.bytes_copied` stays 0.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

from isthmus.actor.beginning import Frozen, Home, Spawned
from isthmus.actor.budget import Account
from isthmus.actor.exchange import Exchange, failure
from isthmus.actor.host_api import Granted, HostApi, Tool
from isthmus.actor.interruptible import interruptibly
from isthmus.actor.pacing import Pace
from isthmus.actor.pages import Pages
from isthmus.actor.snapshot import Restoration
from isthmus.actor.state import ActorState, Reopen, read_handles
from isthmus.actor.tensor import Checker, Copies, TensorUnit
from isthmus.counters import Counters
from isthmus.errors import Cancelled, Overloaded, RegionError, SnapshotMismatch
from isthmus.memory import Region
from isthmus.model import Session
from isthmus.units import WASM_PAGE, align_up
from isthmus.wasm import Engine, Guest, Instance, Wasi, read_globals, write_globals
from isthmus.wasm.guest import ON_REPLAY
from isthmus.wasm.memory_creator import MemoryRequest


class Body:
    """See the module. Used by one thread at a time, except for `interrupt` and `cancel`."""

    def __init__(
        self,
        home: Home,
        guest: Guest,
        granted: Granted,
        beginning: Spawned | Frozen,
        counters: Counters,
        account: Account,
    ) -> None:
        """`account` is the actor's, which pays for the memory."""
        state = beginning.state
        self._home = home
        self._guest = guest
        self._granted = granted
        self._fuel = granted.limits.fuel
        self._counters = counters
        self._args = state.args
        self._seed = state.seed
        self._clock = state.clock()
        self._random = state.random()
        with contextlib.ExitStack() as stack:
            self._account = account
            self._refusal: Overloaded | None = None
            self.api = HostApi(
                replace(granted, tools={it: self._outside(t) for it, t in granted.tools.items()}),
                self._clock,
                self._random,
                counters,
                self._check,
                lambda: self.instance.deadline,
                home.scheduler,
            )
            self.api.log_position = state.log_position
            self._pace = Pace(home.pacer, lambda: self.api.exchange.n_tokens)
            stack.callback(self._pace.end)  # a guest that never begins pauses too
            with home.beginnings.taking(self):
                self._make(beginning, stack)
            self._stack = stack.pop_all()

    @property
    def region(self) -> Region:
        """The guest's linear memory."""
        return self.instance.region

    @property
    def sessions(self) -> list[Session]:
        """Its open sessions, oldest first."""
        return self.api.handles.all(Session)

    def handle(self, exchange: Exchange, deadline: float | None) -> int:
        """Runs the guest on one message; what on_message returns, or raises as `Instance.call`."""
        self.api.begin(exchange)
        self._pace.begin()
        self._refuel()
        try:
            return self.instance.call("on_message", len(exchange.message), deadline=deadline)
        finally:
            self._pace.end()
            self._ended()

    @property
    def is_watched(self) -> bool:
        """Whether somebody else holds its memory: a view, for instance."""
        return self.region.n_holds > 1 + len(self.sessions)

    def interrupt(self) -> None:
        """Has the running message look at once whether it is to end."""
        self.api.interrupt()

    def cancel(self) -> None:
        """Cuts the running message off."""
        self.instance.cancel()
        self.api.interrupt()

    def cut_off(self) -> None:
        """Ends what it runs, and what it waits for, though no message runs: while it is made."""
        self.api.exchange.cut_off = True
        self.api.interrupt()

    def state(self, n_messages: int) -> ActorState:
        """What it is now, but for the memory."""
        handles = self.api.handles
        return ActorState(
            args=self._args,
            globals=read_globals(self.instance),
            opened=read_handles(handles),
            last_handle=handles.last,
            seed=self._seed,
            n_random_blocks=self._random.n_blocks,
            clock_ns=self._clock.now_ns,
            log_position=self.api.log_position,
            n_messages=n_messages,
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
        home = self._home
        engine, guest = self._compiled()
        how = beginning.restoration if isinstance(beginning, Frozen) else None
        replays = how is not None and bool(how.replayed)
        self._made_until = home.beginnings.deadline(self._granted.limits, replays=replays)
        self.instance = stack.enter_context(self._instantiate(engine, guest))
        self.instance.pause = self._pace.tick
        self.instance.is_unwanted = lambda: self.api.exchange.is_unwanted
        self.pages = Pages(self.region, remappable=home.device.remaps, freeze=home.budget.freeze)
        if isinstance(beginning, Frozen):
            self._thaw_memory(beginning)
        self.binding = stack.enter_context(home.device.bind(self.region))
        unit = self._tensor_unit(copy_tensors=beginning.copy_tensors or self.binding.copies)
        stack.callback(unit.close)
        stack.callback(self.api.close)
        self.api.attach(self.region, self.instance.memory, self.binding, unit, self._hold)
        if isinstance(beginning, Spawned):
            interruptibly(self._initialize, self.cut_off)
        elif how := beginning.restoration:
            interruptibly(partial(self._thaw_handles, beginning, how), self.cut_off)
        else:
            self._thaw_handles(beginning, None)

    def _initialize(self) -> None:
        self._refuel()
        try:
            self.instance.initialize(self._made_until)
        finally:
            self._ended()

    def _ended(self) -> None:
        """The guest has returned, or was cut off: nobody need wait for its next token."""
        self.api.end()
        exchange = self.api.exchange
        self._account.give(exchange.held_nbytes)
        exchange.held_nbytes = 0
        if self._fuel is not None:
            exchange.fuel = self._fuel - self.instance.fuel

    def _check(self) -> None:
        self.instance.check()

    def _outside(self, tool: Tool) -> Tool:
        """A tool that takes nobody's place while it runs, so that it may ask other actors."""

        def call(args: bytes) -> bytes:
            with self._home.workers.aside():
                return tool(args)

        return call

    def _compiled(self) -> tuple[Engine, Guest]:
        """The guest for the engine of its kind. It may have to be compiled, which takes no time
        from the guest's own: the code is kept, and the next try finds it.
        """

        def check() -> None:
            if self.api.exchange.cut_off:
                raise Cancelled(f"{self._guest.name} was cut off while it was compiled")

        engines = self._home.engines
        if self._fuel is None:
            return engines.unmetered(self._guest), self._guest
        return engines.metered(self._guest, check)

    def _instantiate(self, engine: Engine, guest: Guest) -> Instance:
        wasi = Wasi(
            args=[self._guest.name, *self._args],
            clock_ns=self._clock.read,
            random=self._random.draw,
            log=self.api.write_stream,
        )
        return Instance(
            engine,
            guest,
            handlers=self.api.functions(),
            wasi=wasi,
            memory=MemoryRequest(
                self._granted.limits.memory_nbytes, self._home.device.reserve, self._admit
            ),
            counters=self._counters,
        )

    def _admit(self, more_nbytes: int, limit_nbytes: int) -> None:
        """Asks the budget of all actors, and notes what is refused."""
        if limit_nbytes:
            self.api.exchange.reached("memory_nbytes", limit_nbytes)
            return
        self._take(more_nbytes)

    def _hold(self, nbytes: int) -> None:
        """Counts output until the message has ended; Overloaded."""
        self._take(nbytes)
        self.api.exchange.held_nbytes += nbytes

    def _take(self, nbytes: int) -> None:
        try:
            self._account.take(nbytes)
        except Overloaded as error:
            self._refusal = self.api.exchange.refusal = error
            raise

    def _refuel(self) -> None:
        """Fills up for one message, where fuel is limited."""
        if self._fuel is not None:
            self.instance.fuel = self._fuel

    def _tensor_unit(self, *, copy_tensors: bool) -> TensorUnit:
        memory, device = self.instance.memory, self._home.device
        return TensorUnit(
            device,
            self._home.backend,
            self.binding,
            Checker(memory, self.api.handles),
            self._counters,
            Copies(device, memory) if copy_tensors else None,
        )

    def _thaw_memory(self, frozen: Frozen) -> None:
        self._grow_to(frozen.image.nbytes)
        self._counters.bytes_restored += self.pages.load(frozen.image, frozen.chunks)
        if frozen.verify is not None:
            frozen.verify(self.region.base)
        write_globals(self.instance, frozen.state.globals)

    def _thaw_handles(self, frozen: Frozen, how: Restoration | None) -> None:
        self.instance.deadline = self._made_until if how is not None else None
        reopen = Reopen(
            self._granted.models,
            self._granted.limits,
            self.region,
            self.binding,
            grow=self._grow_memory,
            prefill=self.api.replay,
            check=self._check,
            replay=how.replayed if how else frozenset(),
            drop=how.foreign if how else frozenset(),
        )
        reopen.fill(self.api.handles, frozen.state)
        if how is not None and how.foreign:
            self._replay_in_guest(how)

    def _replay_in_guest(self, how: Restoration) -> None:
        """The guest's sessions are closed: tokens of one vocabulary mean nothing in another."""
        if ON_REPLAY not in self._guest.functions:
            raise SnapshotMismatch(
                f"the tokenizer is another, and {self._guest.name} does not export {ON_REPLAY}, "
                "which opens its sessions anew",
                how.reasons,
            )
        self._refuel()
        try:
            code = self.instance.call(ON_REPLAY, deadline=self._made_until)
        finally:
            self._ended()
        if code != 0:
            raise failure(-code, self.api.exchange)

    def _grow_memory(self, nbytes: int) -> int:
        begin = self.region.nbytes
        self._grow_to(align_up(begin + nbytes, WASM_PAGE))
        return begin

    def _grow_to(self, nbytes: int) -> None:
        """Overloaded where the memory of all actors is what it would take too much of."""
        try:
            self.instance.grow_memory(nbytes)
        except RegionError:
            if self._refusal is not None:
                raise self._refusal from None
            raise
