"""One call of a guest's function, from its begin to its end, as a coroutine.

`Call.run` resumes the guest's fiber, does what it wants, and resumes it again. It suspends itself
when a host function awaits something, and when the guest has used up its time slice. Whoever
drives it decides when it goes on, so one thread can run any number of guests.

========  =================================================================================
state     what holds
========  =================================================================================
begun     nothing of the guest has run
running   a thread is inside `run`'s coroutine
waiting   the coroutine is suspended; it may be driven on by another thread, or closed
closed    the fiber is gone, and the instance may be called again
========  =================================================================================

A call ends in one of these ways: a result; GuestTrapped; GuestExited; LimitExceeded, if the guest
is out of fuel; the very exception object that a host function raised, or `check`, or that was
thrown into the coroutine; or it is closed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, TypeAlias

import wasmtime

from isthmus.errors import GuestFault, GuestTrapped, IsthmusError, LimitExceeded
from isthmus.native import wasmtime_capi as capi
from isthmus.native.wasmtime_fiber import RENEWED_S, Fiber, Thread, Threads, require_room
from isthmus.wasm.guest import Guest
from isthmus.wasm.names import shown

if TYPE_CHECKING:
    from isthmus.wasm.instance import Instance

SLICE_S = 0.005
"""Seconds of a processor that a guest has before others may go on. Looked at after each host call,
and at each tick of the watchdog, which is 10 ms, in code that makes none. Time in which its thread
waits for a processor or for the interpreter does not count: on a busy machine every guest would
use up its slices."""

_TRAPS = {
    wasmtime.TrapCode.STACK_OVERFLOW: "stack overflow",
    wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS: "out-of-bounds memory access",
    wasmtime.TrapCode.TABLE_OUT_OF_BOUNDS: "out-of-bounds table access",
    wasmtime.TrapCode.INDIRECT_CALL_TO_NULL: "indirect call to null",
    wasmtime.TrapCode.BAD_SIGNATURE: "indirect call to a function of another type",
    wasmtime.TrapCode.INTEGER_OVERFLOW: "integer overflow",
    wasmtime.TrapCode.INTEGER_DIVISION_BY_ZERO: "integer division by zero",
    wasmtime.TrapCode.BAD_CONVERSION_TO_INTEGER: "conversion of a float that no integer is",
    wasmtime.TrapCode.UNREACHABLE: "unreachable",
}

_monotonic, _thread_time = time.monotonic, time.thread_time


class SliceOver:
    """What a Call awaits when its guest has used up its time slice.

    Awaiting it yields the object itself to whoever drives the coroutine, who sends None when the
    guest may go on.
    """

    def __await__(self) -> Generator[SliceOver, None, None]:
        yield self


SLICE_OVER = SliceOver()


class Call:
    """See the module. Made by `Instance.begin`; it keeps the instance alive."""

    def __init__(
        self, instance: Instance, fiber: Fiber, check: Callable[[], None], end: Callable[[], None]
    ) -> None:
        """`end` is called once, when the call ends. It must not refer to the instance."""
        self._instance = instance
        self._fiber = fiber
        self._check = check
        self._finalizer = weakref.finalize(self, end)
        self._finalizer.atexit = False  # a daemon thread may still be running the guest

    @property
    def closed(self) -> bool:
        """True once it has ended."""
        return not self._finalizer.alive

    async def run(self) -> int:  # noqa: PLR0912 - one function, since its loop runs for each token
        """Runs the function to its end: its signed i32 result, 0 if it has none.

        Awaited once; see the module for errors. What is thrown into it goes to the guest as an
        errno, if it has one and a host function was awaited.
        """
        fiber, instance = self._fiber, self._instance
        counters, handlers, host_calls = instance.counters, instance.handlers, instance.host_calls
        arguments, results, threads = host_calls.arguments, host_calls.results, host_calls.threads
        require_room()
        try:
            n_epochs = host_calls.n_epochs
            thread, slice_end, used_up = _new_slice(threads)
            while not fiber.resume(thread):
                waits = False
                if (number := fiber.wants) is None:
                    n_epochs = self._begin_epoch()
                else:
                    counters.host_calls += 1
                    try:
                        result = handlers[number](*arguments[number](fiber.words))
                        if type(result) is not int and not isinstance(result, int):
                            waits = True
                            result = await result
                        if word := results[number]:
                            fiber.words[word] = result
                        else:
                            host_calls.give(fiber.words, number, result)
                    except BaseException as error:
                        if not self._give_errno(number, error):
                            raise
                if waits:
                    if n_epochs != host_calls.n_epochs:  # none suspends it if all its calls wait
                        n_epochs = self._begin_epoch()
                    thread, slice_end, used_up = _new_slice(threads)
                elif _monotonic() >= slice_end:
                    thread, slice_end, used_up = await self._rest(thread, used_up)
            return self._result()
        finally:
            self.close()

    def close(self) -> None:
        """Ends the call where it is; the guest never goes on. A second call does nothing.

        Raises ActorBusy while a thread is running the guest.
        """
        self._fiber.require_idle()
        self._finalizer()

    def _begin_epoch(self) -> int:
        """Has `check` say whether the guest goes on. The number of the epoch, to its end."""
        n_epochs = self._instance.host_calls.n_epochs
        self._fiber.renew_epoch()
        self._check()
        return n_epochs

    async def _rest(self, thread: Thread, used_up: float) -> _Slice:
        """Lets others go on if the slice is used up; the rest of the slice, or a new one."""
        if (left := used_up - _thread_time()) > 0:
            return thread, _monotonic() + left, used_up
        await SLICE_OVER
        self._check()
        return _new_slice(self._instance.host_calls.threads)

    def _give_errno(self, number: int, error: BaseException) -> bool:
        """Gives the guest an error's errno. False if the error is not one for the guest."""
        instance = self._instance
        imported = instance.host_calls.imports[number]
        code = error.code if isinstance(error, GuestFault) else getattr(error, "errno", None)
        if not isinstance(error, IsthmusError) or code is None or not imported.signature.result:
            return False
        instance.counters.faults += 1
        instance.host_calls.give(self._fiber.words, number, imported.errno_of(code))
        return True

    def _result(self) -> int:
        failure = self._fiber.failure()
        if failure is None:
            return self._fiber.result
        guest = self._instance.guest
        if failure.code == wasmtime.TrapCode.OUT_OF_FUEL:
            allowed = f"{self._instance.fuel_allowed:,} instructions"
            raise LimitExceeded(f"{guest.name} ran out of fuel: it may run {allowed}", "fuel")
        raise trapped(guest, failure)


_Slice: TypeAlias = tuple[Thread, float, float]
"""The thread that has it, its earliest end on the clock, and its end on that of the thread's
processor time."""


def _new_slice(threads: Threads) -> _Slice:
    """A slice that begins now, on whatever thread that is: another one after each wait, maybe."""
    now, thread = _monotonic(), threads.this
    if now - thread.asked > RENEWED_S:
        thread.processor_s(now)
    return thread, now + SLICE_S, now - thread.waited_s + SLICE_S


def trapped(guest: Guest, failure: capi.Failure) -> GuestTrapped:
    """The error for a trap: what it is called, and where it happened."""
    known = _TRAPS.get(failure.code) if failure.code else None
    kind = known or shown((failure.message.strip().splitlines() or ["trap"])[-1].strip())
    backtrace = tuple(_place(guest, it) for it in failure.backtrace)
    where = f", in {backtrace[0]}" if backtrace else ""
    return GuestTrapped(f"{guest.name} trapped: {kind}{where}", backtrace)


def _place(guest: Guest, frame: capi.Frame) -> str:
    """A function's name, with the file and line where they are known."""
    name = guest.function_names.get(frame.function) or f"func[{frame.function}]"
    line = guest.lines.find(*frame)
    return f"{name} ({line})" if line else name
