"""The candidates that a device finds are the row's most probable tokens, after any pass."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from isthmus.config import DeviceSettings, ModelSettings
from isthmus.device import Device
from isthmus.device.buffer import Binding
from isthmus.device.copied import CopiedBinding
from isthmus.device.cpu import CpuDevice
from isthmus.device.graph import Graph
from isthmus.device.graph_allocator import GraphAllocator
from isthmus.errors import DeviceFailed
from isthmus.memory import Region
from isthmus.model import Session
from isthmus.model.jobs import finish
from isthmus.model.sampling.top import MAX_TOP, PAIR_NBYTES, TopFinder
from isthmus.model.step import Chunk, Step
from isthmus.native._ggml import GgmlType
from isthmus.native.loader import Library
from isthmus.units import MIB, GuestPtr
from tests.model.test_architectures import several
from tests.tiny_gguf import TinyModel

PLACE = GuestPtr(32 * MIB)
PAIR = np.dtype([("logit", np.float32), ("token", np.int32)])
INFINITY = np.float32(np.inf)


class FindingDevice(CpuDevice):
    """The processor, which finds candidates as a card does."""

    @property
    def finds_top(self) -> bool:
        return True


class CopyingDevice(CpuDevice):
    """The processor, which computes on copies of what guests have."""

    finds = True

    @property
    def finds_top(self) -> bool:
        return self.finds

    @property
    def everywhere(self) -> None:
        return None

    def bind(self, region: Region) -> Binding:
        return CopiedBinding(self.allocate, region, self.counters, 128 * MIB)


@pytest.fixture(scope="module")
def finding(library: Library) -> Iterator[Device]:
    device = FindingDevice(library, DeviceSettings(threads=2))
    yield device
    device.close()


def require_top(row: np.ndarray, found: np.ndarray) -> None:
    """Raises unless the candidates are those of the row, as `model/sampling/top.py` says."""
    tokens, logits = found["token"], found["logit"]
    assert len({*tokens.tolist()}) == len(found)
    assert row[tokens].tobytes() == logits.tobytes()
    assert (np.diff(logits[np.isfinite(logits)]) <= 0).all()
    surely = np.flatnonzero(row > logits[-1])
    assert {*surely.tolist()} <= {*tokens.tolist()}


def rows(kind: str, n_vocab: int, n: int) -> np.ndarray:
    """f32 [n][n_vocab], random logits of a kind."""
    numbers = np.random.default_rng(n_vocab + n).standard_normal((n, n_vocab), dtype=np.float32)
    if kind == "ties":
        return np.round(numbers)
    if kind == "equal":
        return np.zeros_like(numbers)
    if kind == "masked":
        numbers[:, 5:] = -INFINITY
    if kind == "infinite":
        numbers[:, 7] = INFINITY
    return numbers


@pytest.mark.parametrize("kind", ["random", "ties", "equal", "masked", "infinite"])
@pytest.mark.parametrize("n_vocab", [320, 333, 1024, 49_152])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 2), (3, 41), (2, MAX_TOP)])
def test_candidates_of_any_rows(finding: Device, kind: str, n_vocab: int, n: int, k: int) -> None:
    logits = rows(kind, n_vocab, n)
    with ExitStack() as stack:
        finder = TopFinder(finding, n_vocab)
        stack.callback(finder.close)
        graph = stack.enter_context(Graph(finding.library, 64))
        memory = stack.enter_context(GraphAllocator(finding.library, finding.buffer_type))
        backend = stack.enter_context(finding.new_backend())
        given = stack.enter_context(finding.allocate_inputs(logits.nbytes))
        given.stage[:] = logits.tobytes()
        tensor = graph.tensor(GgmlType.F32, n_vocab, n)
        given.place(tensor, given.base)
        wanted = stack.enter_context(finding.allocate_inputs(PAIR_NBYTES * k * n))
        found = finder.find(graph, tensor, n, k)
        wanted.place(found, wanted.base)
        graph.output(found)
        memory.allocate(graph)
        backend.compute(graph.pointer)
        pairs = np.frombuffer(bytes(wanted.stage), PAIR).reshape(n, k)
    for row, candidates in zip(logits, pairs, strict=True):
        require_top(row, candidates)


def candidates(session: Session) -> np.ndarray:
    """What lies at the session's place."""
    assert session.top is not None
    with session._region.view(session.top.ptr, session.top.nbytes) as view:
        return np.frombuffer(bytes(view.memory), PAIR)


def require_found(session: Session) -> None:
    require_top(session.logits, candidates(session))
    assert session.top is not None
    with session._region.view(session.top.ptr + session.top.nbytes, 4096) as view:
        assert not any(view.memory), "the device wrote behind the place"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("top")
    return TinyModel("gemma3", quantisation="Q8_0", n_vocab=2048).write(folder / "q8.gguf")


def test_after_prompts_of_one(finding: Device, path: Path) -> None:
    with several(finding, path, 1, ModelSettings(prefill_chunk=32)) as (model, (session,)):
        session.leave_top(20, PLACE)
        for n in (1, 2, 100, 32, 33, 100):
            model.prefill(session, [*range(n)])
            require_found(session)


def test_after_single_steps_across_cache_rows(finding: Device, path: Path) -> None:
    with several(finding, path, 2) as (model, (one, other)):
        one.leave_top(2, PLACE)
        other.leave_top(3, PLACE)
        for step in range(300):
            for session in (one, other) if step % 40 == 0 else (one,):
                model.decode(session, step)
                require_found(session)


def test_after_a_pass_over_several_prompts(finding: Device, path: Path) -> None:
    with several(finding, path, 4) as (model, sessions):
        for session, k in zip(sessions, (2, 0, 41, MAX_TOP), strict=True):
            session.leave_top(k, PLACE)
        tokens = [np.arange(3 + i, dtype=np.int32) for i in range(4)]
        chunks = [Chunk(it, ids, last=True) for it, ids in zip(sessions, tokens, strict=True)]
        finish(finding.compute_thread, model.executor.append(chunks))
        for session in (sessions[0], *sessions[2:]):
            require_found(session)
        with sessions[1]._region.view(PLACE, 4096) as view:
            assert not any(view.memory)


@pytest.mark.parametrize("join", [False, True])
def test_after_batches_of_any_company(finding: Device, path: Path, join: bool) -> None:
    """Sessions ask for other numbers of candidates, or none, and change their minds."""
    random.seed(join)
    with several(finding, path, 5, ModelSettings(exact=False)) as (model, sessions):
        model.executor.joins_sequences = join
        for step in range(120):
            if random.random() < 0.1:
                session = random.choice(sessions)
                session.leave_top(0, PLACE)
                with session._region.view(PLACE, PAIR_NBYTES * MAX_TOP) as view:
                    view.memory[:] = bytes(PAIR_NBYTES * MAX_TOP)
                session.leave_top(random.choice([0, 1, 2, 17, MAX_TOP]), PLACE)
            chosen = sessions if random.random() < 0.8 else random.sample(sessions, 3)
            steps = [Step(it, [(step + i) % 320]) for i, it in enumerate(chosen)]
            model.executor.decode_batch(steps)
            for session in chosen:
                if session.top is not None:
                    require_found(session)
                else:
                    with session._region.view(PLACE, PAIR_NBYTES * MAX_TOP) as view:
                        assert not any(view.memory)


def test_after_several_tokens_of_one(finding: Device, path: Path) -> None:
    with several(finding, path, 2) as (model, (one, other)):
        one.leave_top(10, PLACE)
        for tokens in ([1, 2, 3], [4], [5, 6, 7, 8]):
            logits = one.binding.memory.base + 40 * MIB  # type: ignore[union-attr]
            model.executor.decode_batch([Step(one, tokens, logits), Step(other, [9])])
            require_found(one)


def test_logits_are_those_without_candidates(finding: Device, path: Path) -> None:
    with several(finding, path, 4) as (model, sessions):
        asking, silent = sessions[:2], sessions[2:]
        for session in asking:
            session.leave_top(41, PLACE)
        for session in sessions:
            model.prefill(session, [*range(50)])
        for step in range(20):
            for pair in (asking, silent):
                model.executor.decode_batch([Step(it, [step]) for it in pair])
            for one, other in zip(asking, silent, strict=True):
                assert one.logits.tobytes() == other.logits.tobytes()


def test_a_copied_session_has_no_candidates_until_its_next_pass(
    finding: Device, path: Path
) -> None:
    with several(finding, path, 1) as (model, (origin,)):
        origin.leave_top(4, PLACE)
        model.prefill(origin, [1, 2, 3])
        layout = model.layout(256)
        region = origin._region
        other = model.open_session(region, origin.binding, GuestPtr(40 * MIB), layout)
        try:
            place = GuestPtr(PLACE + 4096)
            other.leave_top(4, place)
            model.decode(other, 7)
            assert candidates(other)["token"][0] >= 0
            other.copy_from(origin, 3)
            assert candidates(other)["token"][0] == -1
            assert other.logits.tobytes() == origin.logits.tobytes()
        finally:
            other.close()


def test_a_device_that_finds_none_says_so_before_its_first_pass(device: Device, path: Path) -> None:
    """As after a snapshot of another device, whose candidates lie there."""
    with several(device, path, 2) as (model, sessions):
        passes = (
            lambda: model.decode(sessions[0], 1),
            lambda: model.prefill(sessions[0], [1, 2]),
            lambda: model.executor.decode_batch([Step(it, [3]) for it in sessions]),
        )
        for each in passes:
            sessions[0].leave_top(2, PLACE)
            with sessions[0]._region.view(PLACE, 16) as view:
                view.memory[:] = np.array([(1.0, 5), (0.5, 6)], PAIR).tobytes()
            each()
            assert candidates(sessions[0])["token"][0] == -1


def test_candidates_are_fetched_from_a_copy(library: Library, path: Path) -> None:
    device = CopyingDevice(library, DeviceSettings(threads=2))
    with several(device, path, 1) as (model, (session,)):
        session.leave_top(20, PLACE)
        for tokens in ([1, 2, 3], [4], [5, 6]):
            model.prefill(session, tokens)
            require_found(session)
    device.close()


def test_none_are_fetched_if_none_were_found(library: Library, path: Path) -> None:
    """What the copy holds there is older than what the guest was told."""
    device = CopyingDevice(library, DeviceSettings(threads=2))
    device.finds = False
    with several(device, path, 1) as (model, (session,)):
        session.leave_top(2, PLACE)
        for tokens in ([1, 2, 3], [4]):
            model.prefill(session, tokens)
            assert candidates(session)["token"][0] == -1
    device.close()


def test_a_device_without_a_kernel_finds_none(
    finding: Device, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "refuses", lambda _graph: "POOL_2D")
    finder = TopFinder(finding, 2048)
    assert not finder.can_find
    finder.close()


def test_a_step_that_fails_finds_none_that_a_guest_could_take(
    finding: Device, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with several(finding, path, 1) as (model, (session,)):
        session.leave_top(2, PLACE)
        model.decode(session, 1)

        def fail(*_: object) -> None:
            raise DeviceFailed("no power")

        with monkeypatch.context() as patch:
            patch.setattr(model.executor._backend, "compute", fail)
            with pytest.raises(DeviceFailed):
                model.decode(session, 1)
        assert not session.has_logits
        model.decode(session, 1)
        require_found(session)


def test_beside_rows_of_nobody(finding: Device, tmp_path: Path) -> None:
    """In a class that fills steps and prompts, candidates are those of the session's own row."""
    path = TinyModel("llama", quantisation="F16", n_embd=256, n_vocab=2048).write(tmp_path / "f16")
    with several(finding, path, 3, ModelSettings(width="many")) as (model, sessions):
        assert model.executor._batches.width.least > 1
        for session, k in zip(sessions, (2, 0, 41), strict=True):
            session.leave_top(k, PLACE)
        model.prefill(sessions[0], [*range(40)])
        require_found(sessions[0])
        tokens = [np.arange(3 + i, dtype=np.int32) for i in range(3)]
        chunks = [Chunk(it, ids, last=True) for it, ids in zip(sessions, tokens, strict=True)]
        for chunk in chunks:
            finish(finding.compute_thread, model.executor.append([chunk]))
        for step in range(12):
            chosen = sessions if step % 3 else sessions[:1]
            model.executor.decode_batch([Step(it, [step]) for it in chosen])
            for session in chosen:
                if session.top is not None:
                    require_found(session)
