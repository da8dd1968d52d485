"""A guest steps its own sessions as rows of one pass, with the bits of single steps."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import wasmtime

from isthmus import Limits, Model, Runtime
from isthmus.abi import Errno
from isthmus.device.cpu import CpuDevice
from isthmus.errors import DeviceFailed
from isthmus.model.step import Step
from tests.attacks.proxy import Proxy, proxy_wat
from tests.tiny_gguf import TinyLlama

STEPS, FIRST = 8192, 1 << 18


@pytest.fixture(scope="module")
def wasm() -> bytes:
    return bytes(wasmtime.wat2wasm(proxy_wat()))


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module", params=["Q8_0", "F16"])
def model(
    shared: Runtime, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Model:
    """One whose steps are one pass, and one whose steps are not: its batches have other bits."""
    path = tmp_path_factory.mktemp("batch") / "m.gguf"
    loaded = shared.load_model(
        TinyLlama(quantisation=request.param, n_layer=1, n_embd=256).write(path)
    )
    assert loaded.batches == (request.param == "Q8_0")
    return loaded


class Branches:
    """A guest with sessions that have tokens, all of other lengths."""

    def __init__(self, proxy: Proxy, n: int) -> None:
        self.proxy = proxy
        model = proxy.open_model()
        nbytes = proxy.session_nbytes(model)
        self.handles = [proxy.open_session(model, FIRST + i * nbytes) for i in range(n)]
        assert min(self.handles) > 0
        for i, handle in enumerate(self.handles):
            proxy.write(64, struct.pack("<20i", *range(20)))
            assert proxy.call("prefill", handle, 64, 3 + i) == 0
        self.sessions = proxy.actor.sessions

    def step(self, pairs: Sequence[tuple[int, int]]) -> int:
        """Has the guest append (handle, token) each, in one call."""
        self.proxy.write(STEPS, b"".join(struct.pack("<Ii", *it) for it in pairs))
        return self.proxy.call("decode_batch", STEPS, len(pairs))

    def state(self) -> list[tuple[list[int], bytes, bool]]:
        return [
            (it.tokens.tolist(), it.logits.tobytes() if it.has_logits else b"", it.has_logits)
            for it in self.sessions
        ]


def branches(shared: Runtime, wasm: bytes, model: Model, n: int = 4, **options: object) -> Branches:
    limits = options.pop("limits", Limits(sessions=64))
    return Branches(Proxy(shared, wasm, model, limits=limits, **options), n)


def test_the_bits_of_single_steps(shared: Runtime, wasm: bytes, model: Model) -> None:
    together, alone = (branches(shared, wasm, model) for _ in range(2))
    for step in range(12):
        chosen = [i for i in range(4) if (step + i) % 5]  # others come and go
        tokens = [(17 * step + i) % 320 for i in chosen]
        pairs = [(together.handles[i], it) for i, it in zip(chosen, tokens, strict=True)]
        assert together.step(pairs[:: 1 if step % 2 else -1]) == 0
        for i, token in zip(chosen, tokens, strict=True):
            assert alone.proxy.call("decode", alone.handles[i], token) == 0
        assert together.state() == alone.state()
    assert together.proxy.actor.counters.bytes_copied == 0
    for each in (together, alone):
        each.proxy.actor.close()


def test_one_pass_if_that_is_exact(
    shared: Runtime, wasm: bytes, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    decode_batch = model.executor.decode_batch

    def counted(steps: Sequence[Step]) -> None:
        passes.append(len(steps))
        decode_batch(steps)

    many = branches(shared, wasm, model)
    monkeypatch.setattr(model.executor, "decode_batch", counted)
    assert many.step([(it, 5) for it in many.handles]) == 0
    assert passes == ([4] if model.batches else [1] * 4)
    many.proxy.actor.close()


def test_twenty_at_once(shared: Runtime, wasm: bytes, model: Model) -> None:
    many = branches(shared, wasm, model, 20)
    assert many.step([(it, 5) for it in many.handles]) == 0
    assert [it.n_tokens for it in many.sessions] == [4 + i for i in range(20)]
    many.proxy.actor.close()


@pytest.mark.parametrize(
    ("pairs", "code"),
    [
        ([(0, 5), (0, 6)], Errno.EINVAL),
        ([(0, 5), (1, 5), (0, 5)], Errno.EINVAL),
        ([(0, 5), (99, 5)], Errno.EBADF),
        ([(0, 5), (-1, 5)], Errno.EBADF),
        ([(0, 5), (1, 320)], Errno.ETOKEN),
        ([(0, 5), (1, -1)], Errno.ETOKEN),
    ],
)
def test_a_refused_call_changes_nothing(
    shared: Runtime, wasm: bytes, model: Model, pairs: list[tuple[int, int]], code: Errno
) -> None:
    many = branches(shared, wasm, model, 2)
    before = many.state()
    handles = {0: many.handles[0], 1: many.handles[1], 99: 1000, -1: 0xFFFF_FFFF}
    assert many.step([(handles[i], token) for i, token in pairs]) == -code
    assert many.state() == before
    many.proxy.actor.close()


def test_sessions_of_two_models(shared: Runtime, wasm: bytes, tmp_path: Path) -> None:
    models = {
        name: shared.load_model(TinyLlama(seed=i).write(tmp_path / name))
        for i, name in enumerate(("default", "other"))
    }
    proxy = Proxy(shared, wasm, models=models, limits=Limits(sessions=4))
    many = Branches(proxy, 1)
    other = proxy.open_session(proxy.open_model("other"), 3 << 20)
    assert other > 0
    assert many.step([(many.handles[0], 5), (other, 5)]) == -Errno.EINVAL
    proxy.actor.close()


def test_a_full_context(shared: Runtime, wasm: bytes, model: Model) -> None:
    many = branches(shared, wasm, model, 3)
    many.proxy.write(64, struct.pack("<253i", *[7] * 253))
    assert many.proxy.call("prefill", many.handles[0], 64, 253) == 0
    before = many.state()
    assert many.step([(it, 5) for it in reversed(many.handles)]) == -Errno.ECONTEXT
    assert many.state() == before
    many.proxy.actor.close()


def test_the_limit_of_tokens(shared: Runtime, wasm: bytes, model: Model) -> None:
    many = branches(shared, wasm, model, 3, limits=Limits(sessions=4, tokens_out=2))
    before = many.state()
    assert many.step([(it, 5) for it in many.handles]) == -Errno.ELIMIT
    assert many.state() == before
    assert many.step([(it, 5) for it in many.handles[:2]]) == 0
    many.proxy.actor.close()


def test_a_device_that_fails_takes_no_step(
    shared: Runtime, wasm: bytes, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = branches(shared, wasm, model, 3)
    compute, n = model.executor._backend.compute, 0

    def fails(graph: int, *memories: object) -> None:
        nonlocal n
        n += 1
        if model.batches or n == 3:
            raise DeviceFailed("no power")
        compute(graph, *memories)  # type: ignore[arg-type]

    lengths = [it.n_tokens for it in many.sessions]
    with monkeypatch.context() as patch:
        patch.setattr(model.executor._backend, "compute", fails)
        assert many.step([(it, 5) for it in many.handles]) == -Errno.EIO
    assert [it.n_tokens for it in many.sessions] == lengths
    assert not any(it.has_logits for it in many.sessions)
    assert many.step([(it, 5) for it in many.handles]) == 0
    many.proxy.actor.close()


@pytest.mark.parametrize("found", [False, True])
def test_branches_of_one_agent_are_those_of_its_forks(
    shared: Runtime, model: Model, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the SDK: beams that are sampled and stepped together say what each would say alone."""
    monkeypatch.setattr(CpuDevice, "finds_top", found)
    args = ["n_ctx=256", "temperature=0", "repeat_penalty=1.2", "ask=1"]
    limits = Limits(sessions=8)
    with shared.spawn(
        "bench", models={"default": model}, args=args, seed=1, limits=limits
    ) as actor:
        actor.send("prefill 20 3")
        assert (actor.sessions[0].top is not None) == found
        branches = actor.send("branch 4 12").text.split("\n")
        assert len({*branches}) == 4
        for fork, said in zip(actor.fork(4), branches, strict=True):
            first, rest = said.split(" ", 1)
            fork.send(f"tokens {first}")
            assert fork.send("sequence 11").text == rest
            fork.close()
        assert len(actor.sessions) == 1
