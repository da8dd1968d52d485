"""A guest's call on a stack of its own, a fiber, which each host function suspends.

::

    driving thread's stack          fiber
    resume ─► wasmtime polls ─────► guest runs … calls an import
                                    └─► import_callback: notes which, and says "pending"
    False, `wants` is its number ◄──────┘
    `words` holds its arguments and takes its result
    resume ─────────────────────► goes on after the import … the guest's function returns
    True ◄──────────────────────────┘

Host functions run on the driving thread's stack, whose depth Python measures. On fibers run only
the two callbacks here, the guest's `memory.grow`, and the making of its memory.

wasmtime ends the process if

* a function that may reach an import is called in any way but this one;
* a store is closed before the future of its call is dropped, or a future is polled after that;
* an import's callback returns and has not filled its continuation.

So all calls are made here. A FiberStore owns the store and its open Fiber, which owns the future
and what wasmtime writes for it; the store is freed last.

An import's callback cannot fill its continuation if Python does not enter it, which has two causes:

* Python has recursed too deep. `require_room` raises before a call begins that would come to that.
* A signal handler raises first, as that of Ctrl-C does. Python runs those on the main thread alone,
  so whatever the main thread resumes is polled by another thread. That takes 30 µs for each step:
  run guests on other threads. Making, growing and freeing a memory calls back as well, see
  `Threads.off_main`.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import wasmtime

from isthmus.errors import ActorBusy, ActorClosed
from isthmus.native import wasmtime_capi as capi
from isthmus.native.helper import Helper

MAX_VALUES = 16
"""Values that an import has at most: its parameters and its result."""

_Result = TypeVar("_Result")

_poll = capi.function("wasmtime_call_future_poll", ctypes.c_bool)
_drop = capi.function("wasmtime_call_future_delete", None)
_call = capi.function("wasmtime_func_call_async")
_instantiate = capi.function("wasmtime_instance_pre_instantiate_async")
_set_deadline = capi.quick_function("wasmtime_context_set_epoch_deadline")

_Words = ctypes.c_uint32 * (capi.VALUE_WORDS * MAX_VALUES)
_CONTINUATION = struct.Struct("PPP")
_Continuation = ctypes.c_ubyte * capi.CONTINUATION_NBYTES
_ONE_TICK = ctypes.c_uint64(1)
_STRLEN = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
"""wasmtime asks a continuation, (env) -> bool, on the fiber whether the guest may go on. No Python
runs for that: the length of a text is 0 while the text is empty, and 1 if it has one character."""
_N_FRAMES, _N_C_CALLS = 12, 2
"""The depth of Python calls for which `require_room` looks, and how many of these go through C.
Both are more than `resume`, the callbacks and whatever closes a call need."""
RENEWED_S = 0.001
"""Seconds for which a thread takes it that it has had its processor, without asking the system."""
_POLLED = ctypes.c_void_p()
"""Stands for the future while a thread polls it."""


class Thread:
    """A thread that resumes fibers."""

    def __init__(self) -> None:
        self.fiber: Fiber | None = None
        """The one that it resumes now."""
        self.helper: Helper | None = None
        """Resumes fibers instead of the main thread; None for every other thread."""
        if threading.current_thread() is threading.main_thread():
            self.helper = Helper("isthmus-main-fiber")
        self.pid = os.getpid()
        self.asked = self.waited_s = 0.0
        """When it last asked for its processor time, and what it had waited for one until then."""

    def processor_s(self, now: float) -> float:
        """The processor time that it has had until `now`, on the clock of time.monotonic; too much
        by up to a millisecond, since the system takes 0.3 to 2 µs to tell."""
        if now - self.asked > RENEWED_S:
            self.asked, self.waited_s = now, now - time.thread_time()
        return now - self.waited_s


class Threads(threading.local):
    """What an engine's fibers and callbacks know of the thread that they run on."""

    def __init__(self) -> None:
        self.this = Thread()

    def off_main(self, work: Callable[[], _Result]) -> _Result:
        """What `work` returns or raises, done by another thread if this is the main one.

        For what must not be left half done, or calls back into Python, by a signal handler.
        """
        this = self.this
        # A forked process has no helper, and one that is ending stops all threads but this one.
        if this.helper is None or this.pid != os.getpid() or sys.is_finalizing():
            return work()
        return this.helper.do(work)


class FiberStore:
    """A store whose functions are called on fibers, one call at a time. See the module."""

    def __init__(self, store: wasmtime.Store, threads: Threads) -> None:
        """The store is owned from now on. `threads` are those of its engine's callbacks."""
        self.store = store
        self._threads = threads
        self._context = capi.context_of(store)
        self._fiber: Fiber | None = None

    def instantiate(self, pre: wasmtime.InstancePre) -> wasmtime.Instance | capi.Failure:
        """Makes the store's one instance; none of its code runs."""
        memory, trap, error = capi.InstanceMemory(), ctypes.c_void_p(), ctypes.c_void_p()
        future = ctypes.c_void_p(
            _instantiate(
                capi.address(pre.ptr()),
                self._context,
                memory.address,
                ctypes.byref(trap),
                ctypes.byref(error),
            )
        )
        try:
            while not _poll(future):
                pass
        finally:
            _drop(future)
        if error.value or trap.value:
            return capi.take_failure(error.value or 0, trap.value or 0)
        return memory.made()

    def begin(self, function: wasmtime.Func, args: Sequence[int], n_results: int) -> Fiber:
        """A call of a function of i32 values; it runs from the first `Fiber.resume` on.

        The call before it must have ended.
        """
        assert self._fiber is None, "another call is open"
        self._fiber = Fiber(self._threads, self._context, function, args, n_results)
        return self._fiber

    def end(self) -> None:
        """Ends the open call where it is, if one is open. Raises as `Fiber.end`."""
        if self._fiber is not None:
            self._fiber.end()
            self._fiber = None

    def close(self) -> None:
        """Ends the call and then frees the store. A second call does nothing."""
        self.end()
        self.store.close()


class Fiber:
    """One call. One thread at a time may use it, but not always the same one."""

    def __init__(
        self,
        threads: Threads,
        context: ctypes.c_void_p,
        function: wasmtime.Func,
        args: Sequence[int],
        n_results: int,
    ) -> None:
        """For FiberStore alone, which ends it before its store is freed."""
        self.wants: int | None = None
        """Number of the import that the suspended guest calls; None if its time slice is over."""
        self.words: Any = None
        """The import's values, [n_values * VALUE_WORDS] of uint32: arguments, then its result."""
        self.words_at = 0
        self.flag = bytearray(2)
        """The text of `_STRLEN`: its first byte is 1 if the guest may go on."""
        self.pending = _CONTINUATION.pack(_STRLEN, _address_of(self.flag), 0)
        """What a continuation is filled with."""
        self.continuation: Any = None
        self.continuation_at = 0
        self._threads = threads
        self._context = context
        values = (ctypes.c_uint32 * (capi.VALUE_WORDS * len(args)))()
        for i, value in enumerate(args):
            values[capi.VALUE_WORDS * i + capi.VALUE_AT] = value
        self._results = (ctypes.c_int32 * capi.VALUE_WORDS)()
        self._trap, self._error = ctypes.c_void_p(), ctypes.c_void_p()
        self._kept = (function, values)
        _set_deadline(context, _ONE_TICK)
        self._future: ctypes.c_void_p | None = ctypes.c_void_p(
            _call(
                context,
                capi.function_of(function),
                values,
                ctypes.c_size_t(len(args)),
                self._results,
                ctypes.c_size_t(n_results),
                ctypes.byref(self._trap),
                ctypes.byref(self._error),
            )
        )

    def resume(self, thread: Thread | None = None) -> bool:
        """Runs the guest until it is suspended, see `wants`, or until its function has ended.

        True if it has ended. What it wanted must have been given. `thread` is what the engine's
        Threads say of the calling one, if that is known. ActorClosed once it has ended.
        """
        if thread is None:
            thread = self._threads.this
        if thread.helper is not None:
            return self._threads.off_main(self.resume)
        future = self._future
        if future is None or future is _POLLED:
            raise ActorClosed("the guest's call was closed, so it cannot go on")
        self._future, self.wants = _POLLED, None  # nobody can drop it meanwhile
        self.flag[0] = 1
        thread.fiber = self
        try:
            has_ended: bool = _poll(future)
        finally:
            thread.fiber = None
            self._future = future
        if has_ended:
            self._drop()
        return has_ended

    def renew_epoch(self) -> None:
        """Has the guest suspended at the next epoch, and not at once if it missed some.

        That costs 0.2 µs, and a suspension which nobody needs 2 µs.
        """
        if self._future is not None:  # the store may be gone after the call
            _set_deadline(self._context, _ONE_TICK)

    @property
    def result(self) -> int:
        """What the function returned, signed; 0 if it has no result."""
        return self._results[capi.VALUE_AT]

    def failure(self) -> capi.Failure | None:
        """Why the call ended, if not by returning. Takes that: a second time it is None."""
        error, self._error.value = self._error.value, None
        trap, self._trap.value = self._trap.value, None
        return capi.take_failure(error or 0, trap or 0) if error or trap else None

    def require_idle(self) -> None:
        """Raises ActorBusy while a thread is inside `resume`."""
        if self._future is _POLLED:
            raise ActorBusy("the guest is running, so its call cannot be closed now")

    def end(self) -> None:
        """Ends the call where it is. A second call does nothing; ActorBusy while it runs."""
        self.require_idle()
        self._drop()
        self.failure()

    def _drop(self) -> None:
        future, self._future = self._future, None
        if future is not None:
            self.words, self.words_at = _Words(), 0  # wasmtime may free those that it shows
            _drop(future)

    def look_at_words(self, address: int) -> None:
        """Has `words` show the values at an address: it changes rarely from call to call."""
        self.words, self.words_at = _Words.from_address(address), address

    def look_at_continuation(self, address: int) -> None:
        """Has `continuation` show the one at an address: it changes rarely, too."""
        self.continuation = memoryview(_Continuation.from_address(address)).cast("B")
        self.continuation_at = address


def _address_of(data: bytearray) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(data))


def import_callback(threads: Threads, number: int) -> Any:
    """An IMPORT_CALLBACK that suspends its fiber, and says that it wants import `number`."""

    def on_import(
        _env: int,
        _caller: int,
        at: int,
        _n: int,
        _results: int,
        _n_results: int,
        _trap: int,
        to: int,
    ) -> None:
        fiber = threads.this.fiber
        if to != fiber.continuation_at:  # type: ignore[union-attr]
            fiber.look_at_continuation(to)  # type: ignore[union-attr]
        fiber.continuation[:] = fiber.pending  # type: ignore[union-attr]
        fiber.flag[0] = 0  # type: ignore[union-attr]
        if at != fiber.words_at:  # type: ignore[union-attr]
            fiber.look_at_words(at)  # type: ignore[union-attr]
        fiber.wants = number  # type: ignore[union-attr]

    return capi.IMPORT_CALLBACK(on_import)


def epoch_callback(threads: Threads) -> Any:
    """An EPOCH_CALLBACK that suspends the fiber which this thread resumes, at each new epoch."""

    def on_epoch(_context: int, _data: int, n_ticks: Any, action: Any) -> int:
        n_ticks[0] = 1
        if threads.this.fiber is not None:
            action[0] = capi.YIELD
        return 0

    return capi.EPOCH_CALLBACK(on_epoch)


def require_room() -> None:
    """Raises RecursionError unless Python can go as deep from here as it does around a fiber.

    `resume`, the callbacks and whatever closes a call need less. Call it before a call begins, at
    the depth from which it will be driven.
    """
    _deeper(_N_FRAMES)


def _deeper(n: int) -> int:
    """Goes `n` functions deep, the last of them by way of C."""
    if n > _N_C_CALLS:
        return _deeper(n - 1)
    return max((n - 1,), key=_deeper) if n else 0
