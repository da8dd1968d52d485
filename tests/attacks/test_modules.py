"""WebAssembly modules that are made to end, stall or fool the process that loads them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from isthmus import Limits, Runtime
from isthmus.config import Environment
from isthmus.errors import ActorClosed, Cancelled, GuestInvalid, GuestTrapped, Overloaded
from isthmus.native import wasmtime_capi as capi
from isthmus.trial import Ending, Outcome
from isthmus.units import WASM_PAGE
from isthmus.wasm import Engine, compiling, layout_of, loading
from isthmus.wasm.bounds import Bound
from tests.attacks.hostile_modules import HOSTILE, endless_name, module, name, name_section
from tests.unit.wasm_guest import spawn, wasm

HANG_S = 300.0
"""No answer after so long is a hang, on whatever machine."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Runtime]:
    """A runtime on the null device that has compiled nothing yet."""
    environment = replace(Environment.read(), cache=tmp_path / "cache")
    with Runtime(device="null", threads=1, environment=environment) as runtime:
        yield runtime


# ------------------------------------------------------------------------------- types and bounds

_TYPES = """
import sys, wasmtime
sys.path[:0] = sys.argv[1:]
from isthmus.errors import GuestInvalid
from isthmus.wasm import Engine
from tests.unit.wasm_guest import spawn, wasm
LOADED = [
    '(func (export "f") (param v128))',
    '(func (export "f") (result v128 i32 f64) unreachable)',
    '(func (export "f") (param funcref i64) (result funcref) unreachable)',
    '(global (export "f") (mut v128) (v128.const i64x2 1 2))',
    '(global (export "f") funcref (ref.null func))',
    '(table (export "f") 1 funcref)',
]
REFUSED = [
    '(import "isthmus" "decode" (func (param v128)))',
    '(import "isthmus" "decode" (global v128))',
    '(import "isthmus" "decode" (table 1 funcref))',
    '(import "isthmus" "decode" (func (param funcref) (result v128 v128)))',
    '(func (export "f") (param externref))',
    '(tag (export "f"))',
    '(type $s (struct)) (func (export "f") (param (ref null $s)))',
    '(func (export "f") (param (ref null func)))(func (export "g") (param anyref))',
    '(func (export "on_replay") (result v128) unreachable)',
]
with Engine() as engine:
    for text in LOADED:
        spawn(engine, wasm(text)).close()
    for text in REFUSED:
        try:
            engine.compile(wasm(text), "guest", trusted=True)
        except GuestInvalid:
            continue
        sys.exit(f"not refused: {text}")
print("alive")
"""


def test_no_type_ends_the_process() -> None:
    """wasmtime's C API aborts if it is asked for some of these types, so a process of its own."""
    import isthmus

    source, root = Path(isthmus.__file__).parents[1], Path(__file__).parents[2]
    command = [sys.executable, "-c", _TYPES, str(source), str(root)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "alive\n"), ended.stderr[-2000:]


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_would_cost_too_much_is_refused_by_its_name(engine: Engine, kind: str) -> None:
    make, words = HOSTILE[kind]
    begin = time.monotonic()
    with pytest.raises(GuestInvalid) as caught:
        engine.compile(make(), "bomb")
    assert words in str(caught.value)
    assert str(caught.value).startswith("bomb ")
    assert time.monotonic() - begin < HANG_S


def test_a_module_that_compiles_for_long_is_given_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits_of = compiling._limits
    monkeypatch.setattr(compiling, "_limits", lambda n: replace(limits_of(n), cpu_s=1))
    sums = b"\0\x41\0" + b"\x41\1\x6a" * 2_000_000 + b"\x0b"
    with pytest.raises(GuestInvalid, match="more than 1 s of processor time"):
        engine.compile(module([sums]), "bomb")


def test_a_module_that_is_larger_than_a_snapshot_carries_is_refused(engine: Engine) -> None:
    with pytest.raises(GuestInvalid, match="134,217,729 bytes, and 134,217,728 are the most"):
        engine.compile(wasm() + bytes(Bound.NBYTES.most + 1 - len(wasm())), "guest")


def test_all_that_loads_can_be_saved(fresh: Runtime, tmp_path: Path) -> None:
    """As many globals as there may be, in a guest whose file has a name that nobody may show."""
    path = tmp_path / "a\n\x1b[31mb\udcff.wasm"
    path.write_bytes(module(globals_=[b"\x7f\1\x41\7\x0b"] * Bound.MUTABLE_GLOBALS.most))
    with fresh.spawn(path) as actor:
        assert actor.guest.name.isprintable()
        saved = actor.snapshot(tmp_path / "saved")
    with fresh.restore(saved) as actor:
        actor.send(b"")


@pytest.mark.parametrize("is_64", [False, True])
@pytest.mark.parametrize("guard_pages", [False, True])
@pytest.mark.parametrize("limits", ["0 0", "0 1", "0"])
def test_a_memory_of_no_pages_works(is_64: bool, guard_pages: bool, limits: str) -> None:
    kind, zero = ("i64", "i64.const 0") if is_64 else ("i32", "i32.const 0")
    wrap = "i32.wrap_i64" if is_64 else ""
    guest = wasm(
        f'(func (export "load") (result i32) {zero} i32.load8_u)',
        f'(func (export "grow") (result i32) {kind}.const 1 memory.grow {wrap})',
        memory=f'(memory (export "memory") {"i64" if is_64 else ""} {limits})',
    )
    with Engine(guard_pages=guard_pages, is_64=is_64) as engine, spawn(engine, guest) as instance:
        assert instance.region.nbytes == 0
        with pytest.raises(GuestTrapped, match="out-of-bounds"):
            instance.call("load")
        assert instance.call("grow") == (-1 if limits == "0 0" else 0)
        assert instance.region.nbytes == (0 if limits == "0 0" else WASM_PAGE)


def test_an_actor_without_memory_lives_and_is_saved(fresh: Runtime, tmp_path: Path) -> None:
    guest = wasm(
        memory='(memory (export "memory") 0 0)',
        on_message='(func (export "on_message") (param i32) (result i32) (i32.const 0))',
    )
    with fresh.spawn(guest) as actor:
        actor.send(b"")
        saved = actor.snapshot(tmp_path / "saved")
        actor.fork()[0].close()
    with fresh.restore(saved) as actor:
        actor.send(b"")


# ------------------------------------------------------------------------------- the loader


class Compiler:
    """Stands in for the compiler's process: counts, and waits if it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modules: list[bytes] = []
        self.go_on = threading.Event()
        self.began = threading.Event()
        self.go_on.set()
        self.fail: Callable[[], None] = lambda: None
        monkeypatch.setattr(loading, "compile_apart", self)

    def __call__(self, module: bytes, kind: Any, check: Callable[[], None]) -> bytes:
        self.modules.append(module)
        self.began.set()
        while not self.go_on.wait(0.01):
            check()
        self.fail()
        return compiling.compile_here(module, kind)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(monkeypatch)


def test_many_who_load_the_same_module_wait_for_one_compilation(
    engine: Engine, compiler: Compiler
) -> None:
    guest = wasm('(func (export "same"))')
    compiler.go_on.clear()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(engine.compile, guest, "guest") for _ in range(8)]
        assert compiler.began.wait(HANG_S)
        compiler.go_on.set()
        guests = {id(it.result()) for it in waiting}
    assert len(guests) == 1
    assert compiler.modules == [guest]


def test_a_refusal_is_remembered_for_a_while(
    engine: Engine, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = module(tables=[b"\x70\0\1"] * 10)
    for guest in ("one", "two", "three"):
        with pytest.raises(GuestInvalid, match=f"^{guest} has 10 tables"):
            engine.compile(bad, guest)
    assert compiler.modules == [bad]
    monkeypatch.setattr(loading, "_REFUSED_S", 0.0)
    with pytest.raises(GuestInvalid):
        engine.compile(bad, "one")
    assert compiler.modules == [bad, bad]


def test_refusals_do_not_pile_up() -> None:
    refusals = loading.Refusals()
    for i in range(1000):
        refusals.add(str(i), "is bad")
    assert refusals.get("999") == "is bad"
    assert refusals.get("0") == ""
    assert sum(bool(refusals.get(str(i))) for i in range(1000)) == loading._REFUSALS


def test_a_busy_machine_is_no_refusal(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = wasm('(func (export "busy"))')
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "try_out", lambda *_: Outcome(Ending.BUSY))
        with pytest.raises(Overloaded, match="too busy"):
            engine.compile(guest, "guest")
    assert engine.compile(guest, "guest").was_compiled


def test_those_who_wait_on_a_busy_machine_do_not_wait_in_turn(
    engine: Engine, compiler: Compiler
) -> None:
    def fail() -> None:
        raise Overloaded("too busy")

    guest = wasm('(func (export "in turn"))')
    compiler.go_on.clear()
    compiler.fail = fail
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(engine.compile, guest, "guest") for _ in range(4)]
        assert compiler.began.wait(HANG_S)
        while sum(it.running() for it in waiting) < 4:
            time.sleep(0.01)
        time.sleep(0.2)
        compiler.go_on.set()
        assert all(isinstance(it.exception(), Overloaded) for it in waiting)
    assert compiler.modules == [guest]


def test_nobody_waits_for_the_compilation_of_somebody_elses_guest(
    fresh: Runtime, compiler: Compiler
) -> None:
    """A guest with limited fuel is compiled when it is spawned."""
    slow, quick = wasm('(func (export "slow"))'), wasm('(func (export "quick"))')
    limits = Limits(fuel=1_000_000)
    loaded = fresh.load_guest(slow)
    with fresh.spawn(quick, limits=limits) as first, ThreadPoolExecutor(1) as threads:
        compiler.began.clear()
        compiler.go_on.clear()
        spawning = threads.submit(fresh.spawn, loaded, limits=limits)
        try:
            assert compiler.began.wait(HANG_S)
            fresh.spawn(quick, limits=limits).close()
            fresh.spawn(quick).close()
            first.fork()[0].close()
            assert not spawning.done()
        finally:
            compiler.go_on.set()
        spawning.result().close()


def test_a_runtime_that_closes_waits_for_no_compiler(fresh: Runtime, compiler: Compiler) -> None:
    """Neither for one that it started, nor for one that somebody else waits for."""
    loaded = fresh.load_guest(wasm('(func (export "late"))'))
    compiler.began.clear()
    compiler.go_on.clear()
    with ThreadPoolExecutor(3) as threads:
        limits = Limits(fuel=1_000_000)
        spawning = [threads.submit(fresh.spawn, loaded, limits=limits) for _ in range(3)]
        assert compiler.began.wait(HANG_S)
        try:
            fresh.close()
            assert not compiler.go_on.is_set()
            for it in spawning:
                assert isinstance(it.exception(HANG_S), Cancelled | ActorClosed)
        finally:
            compiler.go_on.set()


def test_guests_that_nobody_uses_are_forgotten(engine: Engine, compiler: Compiler) -> None:
    guests = [wasm(f'(func (export "many{i}"))') for i in range(loading._KEPT + 1)]
    held = engine.compile(guests[0], "guest")
    for guest in guests[1:]:
        engine.compile(guest, "guest")
    assert engine.compile(guests[0], "guest") is held
    del held
    assert engine.compile(guests[-1], "guest")
    assert compiler.modules == guests
    assert engine.compile(guests[0], "guest").was_compiled
    assert len(compiler.modules) == len(guests) + 1


# ------------------------------------------------------------------------------- instances


def test_a_spawn_looks_at_no_export_that_it_does_not_need(
    fresh: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at all of them takes a time that grows with their square."""
    looked: list[str] = []

    def counted(instance: Any, store: Any, export: str) -> Any:
        looked.append(export)
        return exported(instance, store, export)

    exported = capi.exported
    monkeypatch.setattr(capi, "exported", counted)
    monkeypatch.delattr(wasmtime.Instance, "exports")
    many = module(exports=[name(f"e{i}") + b"\0\0" for i in range(9_990)])
    with fresh.spawn(many) as actor:
        actor.send(b"")
        actor.fork()[0].close()
    assert set(looked) == {"memory", "on_message"}
    assert len(looked) < 10


def test_names_in_a_backtrace_are_short_and_printable(engine: Engine) -> None:
    names = ["", "x" * 1_000_000, "\x1b[31mred\n\u202efake: ok", endless_name(30)]
    bodies = [b"\0\0\x0b"] * 3
    exports = [name(f"f{i}") + b"\0" + bytes([i]) for i in range(1, 4)]
    guest = engine.compile(module(bodies, exports=exports, custom=[name_section(*names)]), "guest")
    with spawn(engine, guest) as instance:
        for i in range(1, 4):
            begin = time.process_time()
            # The export's type is (i32) -> i32.
            with pytest.raises(GuestTrapped, match="unreachable, in ") as caught:
                instance.call(f"f{i}", 0)
            assert time.process_time() - begin < HANG_S
            shown = str(caught.value)
            assert len(shown) < 300
            assert shown.isprintable()


def test_nobody_demangles_a_name(engine: Engine) -> None:
    """wasmtime did for each trap: 310 bytes took 14 s and 300 MB."""
    exports = [name("f") + b"\0\1"]

    def seconds(named: str) -> float:
        custom = [name_section("on_message", named)]
        guest = engine.compile(module([b"\0\0\x0b"], exports=exports, custom=custom), "guest")
        with spawn(engine, guest) as instance:
            begin = time.process_time()
            for _ in range(20):
                with pytest.raises(GuestTrapped):
                    instance.call("f", 0)
            return time.process_time() - begin

    seconds("warm")
    assert seconds(endless_name(30)) < 20 * max(seconds("plain"), 0.001)


@pytest.mark.parametrize(
    "custom",
    [
        name("name"),
        name("name") + b"\1",
        name("name") + b"\1\x7f\xff\xff\xff\xff\x0f",
        name("name") + b"\1\5\xff\xff\xff\xff\x0f",
        name("name") + b"\1\3\2\1\xff",
        b"\xff\xff\xff\xff\x0fname",
        name_section(*["f"] * 100_001),
    ],
)
def test_a_malformed_name_section_costs_names_alone(engine: Engine, custom: bytes) -> None:
    data = module([b"\0\0\x0b"], exports=[name("f") + b"\0\1"], custom=[custom])
    try:
        guest = engine.compile(data, "guest", trusted=True)
    except GuestInvalid:  # wasmtime wants a custom section to have a name at least
        assert not custom.startswith(b"\4name")
        return
    with spawn(engine, guest) as instance, pytest.raises(GuestTrapped, match=r"in func\[1\]$"):
        instance.call("f", 0)


def test_names_of_imports_and_exports_do_not_fill_or_fool_a_log(engine: Engine) -> None:
    odd = "\\1b[2J\\n" + "x" * 90_000
    for text in (
        "".join(f'(import "{odd}" "{i}" (func))' for i in range(40)),
        f'(func (export "isthmus:{odd}"))',
        f'(func (export "{odd}")) (func (export "{odd}"))',
    ):
        parts = [f"(import{it}" for it in text.split("(import")[1:]] or [text]
        with pytest.raises(GuestInvalid) as caught:
            engine.compile(wasm(*parts), "guest", trusted=True)
        assert len(str(caught.value)) < 2_000
        assert str(caught.value).isprintable()


def test_a_layout_of_no_module_is_refused() -> None:
    whole = wasm('(data (i32.const 8) "abc")', "(global (mut i32) (i32.const 64))")
    for n in range(9, len(whole)):
        try:
            layout_of(whole[:n])
        except GuestInvalid:
            continue
    with pytest.raises(GuestInvalid):
        layout_of(whole[:-1])
    with pytest.raises(GuestInvalid, match="sections"):
        layout_of(module(custom=[name("x")] * 100_000))
