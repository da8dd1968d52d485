"""Whatever a guest passes, it gets a value or its errno, and nothing else happens.

Every function of abi/host.toml is called 2,500 times, and by `make test-attacks` 10,000 times, with
arguments that are meant to hurt: negative, past the end, wrapping, enormous, misaligned, freed,
another kind. Before each call, memory holds descriptors that are nearly good, so that not only
the first check is tried.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus import abi
from isthmus.abi import Dtype, Errno, Op
from isthmus.actor.message import Message
from isthmus.errors import Cancelled, DeadlineExceeded
from isthmus.model import Session
from isthmus.model.own import session as own_session
from isthmus.runtime import Runtime
from isthmus.units import WASM_PAGE
from tests.attacks.proxy import PAGES, Proxy, proxy_wat
from tests.tiny_gguf import TinyLlama
from tests.tiny_projector import TinyProjector

N_CALLS, MANY_CALLS = 2_500, 10_000
BATCH = 250
MEMORY_NBYTES = PAGES * 65_536
SESSION_A, SESSION_B = 1 << 20, 2 << 20
CANARY = 3 << 20
CANARY_BYTES = bytes(range(256)) * 16

NASTY = (
    0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 64, 255, 256, 257, 512, 1000, 4096, 65_535, 65_536,
    SESSION_A, SESSION_A + 4, SESSION_B, CANARY, MEMORY_NBYTES - 4, MEMORY_NBYTES - 1,
    MEMORY_NBYTES, MEMORY_NBYTES + 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_F000, 0xFFFF_FFFC,
    0xFFFF_FFFF,
)  # fmt: skip
WORDS = st.one_of(st.sampled_from(NASTY), st.integers(0, 0xFFFF_FFFF), st.integers(0, 8192))


@pytest.fixture(scope="module")
def wasm() -> bytes:
    return bytes(wasmtime.wat2wasm(proxy_wat()))


@pytest.fixture(scope="module")
def proxy(wasm: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """With a model that makes text and embeddings, and takes pictures."""
    folder = tmp_path_factory.mktemp("able")
    able = TinyLlama(with_tokenizer=True, overrides={"pooling_type": 3})
    path, projector = able.write(folder / "able.gguf"), TinyProjector().write(folder / "eyes.gguf")
    with Runtime(device="cpu", threads=1) as runtime:
        yield Proxy(runtime, wasm, runtime.load_model(path, mmproj=projector))


def prepare(proxy: Proxy) -> None:
    """Handles 1 to 4 of some kinds, a full set of nearly good structs, and canaries."""
    if not proxy.actor.sessions:
        model = proxy.open_model()
        proxy.open_session(model, SESSION_A)
        proxy.open_session(model, SESSION_B)
    proxy.write(CANARY, CANARY_BYTES)


def close_sessions(proxy: Proxy) -> None:
    """Whatever was opened before, and wherever."""
    opened = proxy.actor.body.context.handles
    for number in opened.numbers():
        if isinstance(opened.get(number, object), Session):
            assert proxy.call("session_close", number) == 0


def nearly_good(rng: random.Random) -> bytes:
    """8 KiB of structs: tensors, operations, messages, samplers and token ids, mixed."""
    parts = []
    for _ in range(64):
        ne = [rng.choice((1, 2, 32, 64, rng.choice(NASTY))) for _ in range(4)]
        data = rng.choice((8192, 16_384, 12_288, SESSION_A, rng.choice(NASTY)))
        parts.append(abi.TENSOR.pack(rng.choice((*Dtype, 99)), 0, data, 0, *ne))
    for _ in range(64):
        where = [rng.randrange(0, 64) * 32 + 512 for _ in range(3)]
        where[2] = rng.choice((0, where[2]))
        parts.append(
            abi.OPERATION.pack(
                rng.choice((*Op, 0, 77)), *where, rng.choice((0.0, 1e-5, -1.0)), 0, 0, 0
            )
        )
    parts.append(struct.pack("<1024i", *rng.choices((0, 5, 319, 320, -1), k=1024)))
    return b"".join(parts)


def argument(rng: random.Random, words: list[int], handles: list[int], kind: str) -> int:
    """Mostly a handle that is open where one is wanted, and now and then anything."""
    if kind == "handle" and rng.random() < 0.8:
        return rng.choice(handles)
    return rng.choice((rng.choice(words), rng.randrange(0, 8), rng.randrange(512, 2560)))


def anything(n_calls: int) -> settings:
    """Hypothesis' settings for so many calls."""
    checks = list(HealthCheck)
    return settings(deadline=None, max_examples=n_calls // BATCH, suppress_health_check=checks)


EACH_FUNCTION = pytest.mark.parametrize("function", abi.HOST_FUNCTIONS, ids=lambda f: f.name)


@EACH_FUNCTION
@anything(N_CALLS)
@given(data=st.data())
def test_any_arguments(function: abi.HostFunction, proxy: Proxy, data: st.DataObject) -> None:
    call_with_anything(function, proxy, data)


@pytest.mark.long
@pytest.mark.attacks
@EACH_FUNCTION
@anything(MANY_CALLS)
@given(data=st.data())
def test_any_arguments_many_times(
    function: abi.HostFunction, proxy: Proxy, data: st.DataObject
) -> None:
    call_with_anything(function, proxy, data)


def call_with_anything(function: abi.HostFunction, proxy: Proxy, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    words = data.draw(st.lists(WORDS, min_size=8, max_size=32))
    known = {-code for code in Errno}
    documented = {-code for code in function.errors}
    for _ in range(BATCH):
        prepare(proxy)
        proxy.write(512, nearly_good(rng) if rng.random() < 0.05 else b"")
        handles = proxy.actor.body.context.handles.numbers()
        arguments = [argument(rng, words, handles, param.type) for param in function.params]
        result = proxy.call(function.name, *arguments)
        assert result >= 0 or result in known, (arguments, result)
        assert result >= 0 or result in documented, (arguments, Errno(-result))
    assert proxy.actor.state == "idle"
    proxy.actor.region.address(0, MEMORY_NBYTES)  # type: ignore[arg-type]


def test_refused_calls_change_nothing(proxy: Proxy) -> None:
    """Memory and sessions are the same bytes after a thousand refused calls."""
    close_sessions(proxy)
    prepare(proxy)
    model, opened = proxy.open_model(), proxy.actor.body.context.handles
    session = proxy.actor.sessions[0]
    handle = next(n for n in opened.numbers() if opened.get(n, object) is session)
    proxy.write(512, struct.pack("<2i", 5, 6))
    proxy.write(2048, struct.pack("<2i", 5, 320))
    proxy.write(8192, struct.pack("<8i", handle, 5, handle, 6, model, 7, handle, 320))
    before = proxy.read(0, 1 << 16), list(session.tokens)
    for name, arguments in (
        ("prefill", (handle, MEMORY_NBYTES - 2, 4)),
        ("embed", (model, 4096, 1, 0, session.ptr + 64, 4096)),
        ("embed", (model, 4096, 1, 0, 16_384 + 4, 64)),
        ("embed", (model, 4096, 1, 0, MEMORY_NBYTES - 64, 17)),
        ("embed", (model, 4096, 1, 0, 16_384, 0x4000_0000)),
        ("embed", (model, MEMORY_NBYTES - 4, 2, 0, 16_384, 64)),
        ("embed", (model, 4096, 1025, 0, 16_384, 64)),
        ("embed", (model, 4096, 0, 0, 16_384, 64)),
        ("embed", (model, 4096, 1, 2, 16_384, 64)),
        ("decode", (handle, 320)),
        ("decode", (handle, 0xFFFF_FFFF)),
        ("decode_many", (handle, 512, 0, 4096)),
        ("decode_many", (handle, 512, 33, 4096)),
        ("decode_many", (handle, 512, 0xFFFF_FFFF, 4096)),
        ("decode_many", (handle, 513, 2, 4096)),
        ("decode_many", (handle, 512, 2, 4098)),
        ("decode_many", (handle, MEMORY_NBYTES - 4, 2, 4096)),
        ("decode_many", (handle, 512, 2, MEMORY_NBYTES - 4 * 320 + 4)),
        ("decode_many", (handle, 512, 2, 0xFFFF_FFFC)),
        ("decode_many", (handle, 512, 2, session.ptr - 4 * 319)),
        ("decode_many", (handle, 512, 2, SESSION_B)),
        ("decode_many", (handle, 2048, 2, 4096)),
        ("decode_batch", (8192, 0)),
        ("decode_batch", (8192, 33)),
        ("decode_batch", (8192, 0x8000_0000)),
        ("decode_batch", (8194, 1)),
        ("decode_batch", (MEMORY_NBYTES - 8, 2)),
        ("decode_batch", (0xFFFF_FFFC, 1)),
        ("decode_batch", (8192, 2)),  # the same session twice
        ("decode_batch", (8200, 2)),  # a session and a model
        ("decode_batch", (8216, 1)),  # no such token
        ("session_top_k", (model, 2, 4096)),
        ("session_top_k", (handle, 257, 4096)),
        ("session_top_k", (handle, 0x8000_0000, 4096)),
        ("session_top_k", (handle, 0xFFFF_FFFF, 4096)),
        ("session_top_k", (handle, 2, 4096 + 8)),
        ("session_top_k", (handle, 5, MEMORY_NBYTES - 32)),
        ("session_top_k", (handle, 256, 0xFFFF_FFE0)),
        ("session_top_k", (handle, 2, session.ptr)),
        ("session_top_k", (handle, 2, SESSION_B + 32)),
        ("session_top_k", (handle, 5, session.ptr - 32)),
        ("session_open", (model, 256, session.ptr + 4096, 1 << 20)),
        ("session_open", (model, 256, SESSION_A + 1, 1 << 20)),
        ("truncate", (handle, 1 << 30)),
        ("tokenize", (model, 0, 0xFFFF_FFFF, 0, 0, 0)),
        ("tokenize", (model, 0, 8, 0, 4096, 0x4000_0000)),
        ("compute", (512, 257)),
        ("random", (0, MEMORY_NBYTES + 1)),
        ("session_close", (99,)),
        ("session_close", (model,)),
        ("model_close", (handle,)),
    ):
        assert proxy.call(name, *arguments) < 0, name
    assert (proxy.read(0, 1 << 16), list(session.tokens)) == before


def test_no_session_opens_over_the_place_of_candidates(proxy: Proxy) -> None:
    close_sessions(proxy)
    model = proxy.open_model()
    session = proxy.open_session(model, SESSION_A)
    assert proxy.call("session_top_k", session, 4, SESSION_B + 4096) in (0, 1)
    assert proxy.open_session(model, SESSION_B) == -Errno.EBUSY
    assert proxy.call("session_top_k", session, 0, 0xFFFF_FFFF) == 0
    assert proxy.open_session(model, SESSION_B) > 0


def test_an_embedding_is_written_in_place(proxy: Proxy) -> None:
    prepare(proxy)
    model, room = proxy.open_model(), 16_384
    proxy.write(4096, struct.pack("<3i", 5, 6, 7))
    proxy.write(room, b"\xff" * 1024)
    assert proxy.call("embed", model, 4096, 3, 1, room, 63) == 64  # too little room
    assert proxy.read(room, 1024) == b"\xff" * 1024
    assert proxy.call("embed", model, 4096, 3, 1, room, 64) == 64
    values = struct.unpack("<64f", proxy.read(room, 256))
    assert abs(sum(it * it for it in values) - 1) < 1e-5
    assert proxy.read(room + 256, 768) == b"\xff" * 768
    assert proxy.actor.counters.bytes_copied == 0
    proxy.write(4096, struct.pack("<3i", 5, 320, 7))
    assert proxy.call("embed", model, 4096, 3, 1, room, 64) == -Errno.ETOKEN
    flags = abi.ModelInfo
    assert proxy.call("model_info", model, 4096) == 0
    info = flags(*abi.MODEL_INFO.unpack(proxy.read(4096, abi.MODEL_INFO.size)))
    wanted = abi.ModelFlag.SESSIONS | abi.ModelFlag.EMBED
    assert info.flags & (wanted | abi.ModelFlag.EMBED_TOKENS) == wanted


def test_handles_do_not_come_back(wasm: bytes, tiny: Path) -> None:
    with Runtime(device="null", threads=1) as runtime:
        proxy = Proxy(runtime, wasm, runtime.load_model(tiny))
        model = proxy.open_model()
        assert proxy.call("model_close", model) == 0
        assert proxy.call("model_close", model) == -Errno.EBADF
        assert proxy.open_model() > model


def test_handles_of_another_actor_mean_nothing(wasm: bytes, tiny: Path) -> None:
    with Runtime(device="null", threads=1) as runtime:
        model = runtime.load_model(tiny)
        first, second = Proxy(runtime, wasm, model), Proxy(runtime, wasm, model)
        handle = first.open_session(first.open_model(), SESSION_A)
        assert handle > 0
        assert second.call("decode", handle, 1) == -Errno.EBADF


def test_overlapping_sessions_and_results(proxy: Proxy) -> None:
    prepare(proxy)
    proxy.write(512, abi.TENSOR.pack(Dtype.F32, 0, 8192, 0, 8, 1, 1, 1))
    proxy.write(544, abi.TENSOR.pack(Dtype.F32, 0, proxy.actor.sessions[0].ptr + 64, 0, 8, 1, 1, 1))
    proxy.write(576, abi.OPERATION.pack(Op.SILU, 544, 512, 0, 0.0, 0, 0, 0))
    assert proxy.call("compute", 576, 1) == -Errno.EBUSY
    proxy.write(576, abi.OPERATION.pack(Op.SILU, 512, 512, 0, 0.0, 0, 0, 0))
    assert proxy.call("compute", 576, 1) == -Errno.EINVAL


@pytest.mark.parametrize("how", ["deadline", "cancelled"])
def test_code_without_loops_is_ended_between_host_calls(null_runtime: Runtime, how: str) -> None:
    """WebAssembly looks at the epoch in loops and at functions' begins, and here there are none."""
    n_calls = 400
    draws = "(drop (call $random (i32.const 0) (i32.const 1048576)))" * n_calls
    text = f"""(module (import "isthmus" "random" (func $random (param i32 i32) (result i32)))
      (memory (export "memory") 16)
      (func (export "on_message") (param i32) (result i32) {draws} (i32.const 0)))"""
    actor = null_runtime.spawn(bytes(wasmtime.wat2wasm(text)))
    if how == "deadline":
        with pytest.raises(DeadlineExceeded):
            actor.send("x", deadline_s=0.05)
    else:
        stream = actor.stream("x")
        while actor.counters.host_calls == 0:
            time.sleep(0.001)
        actor.cancel()
        with pytest.raises(Cancelled):
            list(stream)
    assert actor.counters.host_calls < n_calls


@pytest.mark.parametrize("what", ["fill", "copy", "init"])
def test_code_without_loops_is_ended_between_bulk_instructions(
    null_runtime: Runtime, what: str
) -> None:
    """Each of these touches 4 to 16 MiB. All of them together take long, and call nothing."""
    most = 256 * WASM_PAGE
    one = {
        "fill": f"(memory.fill (i32.const 0) (i32.const 7) (i32.const {most}))",
        "copy": f"(memory.copy (i32.const 0) (i32.const 1) (i32.const {most - 1}))",
        "init": "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 4194304))",
    }[what]
    text = f"""(module (memory (export "memory") 256) (data $d "{"x" * (4 << 20)}")
      (func (export "on_message") (param i32) (result i32) {one * 1500} (i32.const 0)))"""
    actor = null_runtime.spawn(bytes(wasmtime.wat2wasm(text)))
    whole_s = actor.send("x").seconds
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        actor.send("x", deadline_s=whole_s / 20)
    assert time.monotonic() - start < whole_s / 2


def test_copying_a_session_ends_with_its_message(
    wasm: bytes, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many gigabytes it is: between two parts of it the deadline counts."""
    with Runtime(device="cpu", threads=1) as runtime:
        proxy = Proxy(runtime, wasm, runtime.load_model(tiny))
        model = proxy.open_model()
        first, second = (proxy.open_session(model, it) for it in (SESSION_A, SESSION_B))
        proxy.write(4096, struct.pack("<8i", *range(1, 9)))
        assert proxy.call("prefill", first, 4096, 8) == 0
        source, target = proxy.actor.sessions
        looks: list[int] = []
        monkeypatch.setattr(own_session, "COPY_NBYTES", 64)
        monkeypatch.setattr(Message, "check", lambda message: looks.append(1))
        assert proxy.call("session_copy", second, first, 8) == 0
        assert len(looks) * 64 >= 8 * source.layout.token_nbytes
        assert target.tokens == source.tokens
        at, same = source.layout.rows(0, 8)[-1]
        assert proxy.read(SESSION_A + at, same) == proxy.read(SESSION_B + at, same)

        def ended() -> None:
            raise DeadlineExceeded("it did not finish in time")

        copy = Session.copy_from
        monkeypatch.setattr(Session, "copy_from", lambda to, it, n, _: copy(to, it, n, ended))
        with pytest.raises(DeadlineExceeded):
            proxy.call("session_copy", second, first, 2)
        assert target.n_tokens == 0
