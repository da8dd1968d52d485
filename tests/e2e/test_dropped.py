"""A Runtime that nobody holds any more, and what a program that configures nothing sees of it."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path

from isthmus import Actor, Runtime
from tests.patience import eventually


def opened(tiny: Path) -> tuple[weakref.ref[Runtime], Actor]:
    runtime = Runtime(device="cpu", threads=1)
    models = {"default": runtime.load_model(tiny)}
    actor = runtime.spawn("chat", models=models, max_tokens=2)
    actor.send("Hello")
    return weakref.ref(runtime), actor


def dropped(tiny: Path) -> tuple[weakref.ref[Runtime], Actor]:
    """One that is dropped now, and said so."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found, actor = opened(tiny)
        gc.collect()
    assert ["dropped without close" in str(it.message) for it in said] == [True]
    return found, actor


def n_device_threads() -> int:
    return sum(it.name in ("isthmus cpu", "isthmus-watchdog") for it in threading.enumerate())


def test_it_is_closed_with_a_warning(tiny: Path) -> None:
    gc.collect()
    before = n_device_threads()
    found, actor = dropped(tiny)
    assert found() is None
    assert eventually(lambda: actor.state == "closed")
    assert eventually(lambda: n_device_threads() <= before)


def test_one_that_was_closed_warns_of_nothing(tiny: Path) -> None:
    with Runtime(device="null") as runtime:
        found = weakref.ref(runtime)
    del runtime
    gc.collect()
    assert found() is None


SILENT = """
import isthmus
assert isthmus.errors.Overloaded and isthmus.config.Limits
with isthmus.Runtime(device="null") as rt:
    try:
        rt.spawn("gemm").send("rows=x")
    except isthmus.IsthmusError as error:
        print(error)
"""


def test_nothing_is_said_on_stderr_that_an_exception_says() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SILENT], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()
    assert done.stderr == ""


MISTYPED = """
import isthmus, logging, sys
if "log" in sys.argv:
    logging.basicConfig(format="%(name)s: %(message)s")
with isthmus.Runtime(device="null") as rt:
    rt.spawn("chat", temprature=0.2)
"""


def test_an_option_that_the_guest_does_not_know_is_seen_without_any_setting() -> None:
    """Once: in the log of a program that has one, and otherwise as a warning of the line."""
    said = "chat knows no option temprature: did you mean temperature?"
    told = [
        subprocess.run(
            [sys.executable, "-c", MISTYPED, *words], capture_output=True, text=True, check=True
        ).stderr
        for words in ((), ("log",))
    ]
    assert told == [f"<string>:6: UserWarning: {said}\n", f"isthmus: {said}\n"]
