from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from isthmus.errors import GuestTrapped
from isthmus.native.wasmtime_fiber import Threads
from isthmus.wasm import Engine, Guest, Instance
from tests.unit.asking_guest import GUEST, ask, asked_by, begun, result_of
from tests.unit.wasm_guest import spawn


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def guest(engine: Engine) -> Guest:
    return engine.compile(GUEST, "test guest", trusted=True)


@pytest.fixture
def instance(engine: Engine, guest: Guest) -> Iterator[Instance]:
    """Its host function awaits."""
    with spawn(engine, guest, {"session_close": ask}) as instance:
        yield instance


def test_a_dropped_call_leaves_the_instance_free(instance: Instance) -> None:
    call, running = begun(instance, "ask", 1)
    asked_by(running)
    del running
    assert call.closed
    call = instance.begin("ask", 1)
    del call
    assert instance.call("on_message", 1) == 1


def test_calls_that_are_garbage_with_their_instances_are_freed(
    engine: Engine, guest: Guest
) -> None:
    before, stores = engine.memory_creator.n_memories, []
    for is_suspended in (True, False) * 10:
        instance = spawn(engine, guest, {"session_close": ask})
        stores.append(weakref.ref(instance.store))
        call = instance.begin("ask", 1)
        running = call.run() if is_suspended else None
        if running:
            asked_by(running)
        instance.handlers.append([instance, call, running])  # type: ignore[arg-type]
    del instance, call, running
    gc.collect()
    assert [store() for store in stores] == [None] * 20
    assert engine.memory_creator.n_memories == before
    assert not engine.watchdog.calls


def test_a_guest_may_suspend_deep_in_its_own_stack(instance: Instance) -> None:
    _, running = begun(instance, "deep", 5_000)
    assert asked_by(running).number == 0
    assert result_of(running, 2) == 5_002
    with pytest.raises(GuestTrapped, match="stack overflow"):
        instance.call("deep", 10_000_000)


def test_host_functions_may_recurse_to_pythons_limit(engine: Engine, guest: Guest) -> None:
    def recurse(n: int) -> int:
        return recurse(n + 1)

    with spawn(engine, guest, {"session_close": recurse}) as instance:
        with pytest.raises(RecursionError):
            instance.call("ask", 1)
        assert instance.call("on_message", 1) == 1


def test_host_functions_may_recurse_deep_in_c(engine: Engine, guest: Guest) -> None:
    def parse(_n: int) -> int:
        with suppress(RecursionError):
            json.loads("[" * 100_000 + "]" * 100_000)
        return 6

    with spawn(engine, guest, {"session_close": parse}) as instance:
        assert instance.call("ask", 1) == 6


# ------------------------------------------------- what would end the process, in one of its own


PREAMBLE = """
import gc, json, os, signal, sys, threading
from isthmus.errors import *
from isthmus.wasm import *
from tests.unit.asking_guest import *
from tests.unit.wasm_guest import spawn
engine = Engine()
guest = engine.compile(GUEST, "test guest", trusted=True)
"""


def survives(text: str) -> str:
    """What a process of its own prints that runs `text`; it must end well."""
    code = PREAMBLE + textwrap.dedent(text)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, timeout=120
    )
    return done.stdout.strip()


def test_a_process_may_end_while_calls_are_open() -> None:
    assert (
        survives("""
        instances = [spawn(engine, guest, {"session_close": ask}) for _ in range(4)]
        calls = [begun(it, "ask", 1) for it in instances]
        for call, running in calls[:2]:
            asked_by(running)
        del calls[0], instances[2]
        print("end")
    """)
        == "end"
    )


def test_a_store_is_freed_after_its_call() -> None:
    assert (
        survives("""
        for is_begun in (True, False):
            instance = spawn(engine, guest, {"session_close": ask})
            call, running = begun(instance, "ask", 1)
            if is_begun:
                asked_by(running)
            instance._finalizer()
            try:
                running.send(5 if is_begun else None)
            except ActorClosed:
                print("closed")
            call.close()
    """)
        == "closed\nclosed"
    )


def test_a_call_near_pythons_recursion_limit_is_refused_or_runs() -> None:
    """An import's callback that Python could not enter would end the process."""
    assert (
        survives("""
        instance = spawn(engine, guest, {"session_close": lambda n: n})
        def down(n):
            return down(n - 1) if n else instance.call("sum", 3)
        outcomes = []
        def go():
            frame, depth = sys._getframe(), 0
            while frame:
                frame, depth = frame.f_back, depth + 1
            for room in range(80):
                try:
                    outcomes.append(down(sys.getrecursionlimit() - depth - room))
                except RecursionError:
                    outcomes.append(None)
        go()
        in_thread(go)
        assert instance.call("sum", 3) == 6
        print(set(outcomes) == {None, 6})
    """)
        == "True"
    )


def test_ctrl_c_ends_a_guest_of_the_main_thread_and_not_the_process() -> None:
    """A signal's handler that raises in an import's callback would end the process."""
    assert (
        survives("""
        instance = spawn(engine, guest, {"session_close": lambda n: n})
        n_interrupted = 0
        for name in ("sum", "spin") * 10:
            interrupt = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
            try:
                interrupt.start()
                instance.call(name, *[1 << 30] * (name == "sum"))
            except KeyboardInterrupt:
                n_interrupted += 1
        assert instance.call("sum", 3) == 6
        print(n_interrupted)
    """)
        == "20"
    )


def test_no_host_function_reaches_a_guests_own_stack() -> None:
    """From Python 3.14 on, deep recursion in C on a fiber would end the process."""
    assert (
        survives("""
        def parse(n):
            try:
                json.loads("[" * 1_000_000)
            except (RecursionError, ValueError):
                return 2
        async def parse_late(n):
            await Asked(n)
            return parse(n)
        def check():
            parse(0)
        instance = spawn(engine, guest, {"session_close": parse})
        print(instance.call("deep", 3_000, check=check))
        instance = spawn(engine, guest, {"session_close": parse_late})
        call, running = begun(instance, "deep", 3_000)
        asked_by(running)
        print(result_of(running, 1))
    """)
        == "3002\n3002"
    )


def test_what_the_main_thread_must_not_be_interrupted_in_is_done_elsewhere() -> None:
    threads, here = Threads(), threading.get_ident()
    assert threads.off_main(threading.get_ident) != here
    with ThreadPoolExecutor(1) as other:
        ident = other.submit(threading.get_ident).result()
        assert other.submit(threads.off_main, threading.get_ident).result() == ident
    with pytest.raises(KeyError):
        threads.off_main({}.popitem)


def test_a_forked_process_has_no_other_thread_for_that() -> None:
    threads = Threads()
    threads.off_main(int)
    pid = os.fork()
    if pid == 0:
        os._exit(threads.off_main(lambda: 7))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_ctrl_c_while_agents_are_made_and_freed_does_not_end_the_process() -> None:
    """wasmtime would take whatever lay there for the memory that Python did not give."""
    assert (
        survives("""
        import time
        n_interrupted, ends, armed = 0, time.monotonic() + 2, False
        def interrupt(*_):  # an interrupt outside of many() would end the test, not find a fault
            global armed
            if armed:
                armed = False
                raise KeyboardInterrupt
        signal.signal(signal.SIGINT, interrupt)
        def interrupting():
            while time.monotonic() < ends:
                time.sleep(0.002)
                os.kill(os.getpid(), signal.SIGINT)
        interrupts = threading.Thread(target=interrupting)
        def many():
            global armed
            armed = True
            while interrupts.is_alive():
                with spawn(engine, guest, {"session_close": lambda n: n}) as instance:
                    assert instance.call("sum", 3) == 6
        interrupts.start()
        while interrupts.is_alive():
            try:
                many()
            except BaseException:
                n_interrupted += 1
        armed = False
        print(n_interrupted > 0)
    """)
        == "True"
    )


def test_processor_time_is_at_most_a_millisecond_ahead() -> None:
    thread = Threads().this
    for i in range(200):
        before = time.thread_time()
        told = thread.processor_s(time.monotonic())
        assert before <= told <= time.thread_time() + 0.001
        time.sleep(0.0001 * (i % 5))
