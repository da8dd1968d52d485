"""Work that signal handlers cannot interrupt."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from types import FrameType

import pytest

from isthmus.native import helper as module
from isthmus.native.helper import Helper
from tests.patience import PATIENCE_S

_RAISES_IN = (module.__file__, __file__)


@pytest.fixture
def helper() -> Helper:
    return Helper("test-helper")


class Interrupts:
    """Signals, one after another. While armed, the next one raises in the main thread."""

    def __init__(self) -> None:
        self.armed = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGUSR1, self._raise)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.armed = False
        self._ended.set()
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._before)

    def _run(self) -> None:
        while not self._ended.wait(0.0005):
            os.kill(os.getpid(), signal.SIGUSR1)

    def _raise(self, _: int, frame: FrameType | None) -> None:
        """In whatever runs but a callback of the collector's, which can only print an error."""
        if self.armed and frame is not None and frame.f_code.co_filename in _RAISES_IN:
            self.armed = False
            raise InterruptedError


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    with Interrupts() as interrupts:
        yield interrupts


def test_work_is_done_elsewhere(helper: Helper) -> None:
    assert helper.do(lambda: 7) == 7
    assert helper.do(threading.get_ident) not in (threading.get_ident(), 0)
    assert helper.do(threading.get_ident) == helper.do(threading.get_ident)
    with pytest.raises(KeyError):
        helper.do({}.popitem)


def test_what_is_interrupted_is_done_whole_and_once(helper: Helper, interrupts: Interrupts) -> None:
    begun: list[int] = []
    done: list[int] = []

    def work() -> None:
        begun.append(len(begun))
        time.sleep(0.001)
        done.append(len(done))

    n_interrupted, ends = 0, time.monotonic() + 1
    while time.monotonic() < ends:
        n_before = len(begun)
        try:
            interrupts.armed = True
            helper.do(work)
            interrupts.armed = False
        except InterruptedError:
            n_interrupted += 1
        assert len(begun) <= n_before + 1
        assert begun == done  # nothing is under way any more
    assert n_interrupted > 10


def test_a_handler_may_have_work_itself(helper: Helper) -> None:
    found: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: found.append(helper.do(lambda: 1)))
    try:
        helper.do(lambda: (os.kill(os.getpid(), signal.SIGUSR1), time.sleep(0.05)))
        deadline = time.monotonic() + PATIENCE_S
        while not found:
            assert time.monotonic() < deadline
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert found == [1]


def test_the_thread_ends_with_its_helper() -> None:
    helper = Helper("test-helper-that-ends")
    [thread] = [it for it in threading.enumerate() if it.name == "test-helper-that-ends"]
    gone = weakref.ref(helper)
    del helper
    thread.join(PATIENCE_S)
    assert gone() is None
    assert not thread.is_alive()


def test_what_a_job_holds_is_freed_after_it(helper: Helper) -> None:
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    helper.do(lambda held=held: None)  # type: ignore[misc]
    del held
    helper.do(int)
    assert gone() is None
