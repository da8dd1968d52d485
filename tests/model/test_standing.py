"""A standing batch has the inputs of one that is written anew, whatever the sessions did before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from isthmus.config import DeviceSettings, ModelSettings
from isthmus.device import Device, open_device
from isthmus.errors import ContextFull, DeviceFailed
from isthmus.model import Model, Session
from isthmus.model.passes.batch import Batch
from isthmus.model.passes.joining import Joining
from isthmus.model.passes.mask import MASKED
from isthmus.model.passes.rows import Rows
from isthmus.model.probes.widths import Width
from isthmus.model.step import Step
from isthmus.native.loader import Library
from tests.model.test_architectures import N_CTX, several
from tests.tiny_gguf import TinyModel

N_SESSIONS, N_STEPS = 5, 300


@pytest.fixture(scope="module", params=["null", "cpu"])
def any_device(request: pytest.FixtureRequest, library: Library) -> Iterator[Device]:
    device = open_device(request.param, library, DeviceSettings(threads=1))
    yield device
    device.close()


def rows_of(model: Model, steps: list[Step]) -> Rows:
    rows = model.executor._batches._try_rows(steps)
    assert rows is not None
    return rows


def require_as_written_anew(model: Model, rows: Rows) -> None:
    """Compares what the last step computed from with a batch that is written for its rows."""
    executor = model.executor
    batches = executor._batches
    batch = batches._standing[batches._keys[next(it for it in rows.sessions if it)]].batch
    layout = next(it.layout for it in rows.sessions if it)
    joining = executor._batches.joining
    with Batch(model.device, model.hparams, layout, rows.shape, batch.n_ctx, joining) as anew:
        anew.write(rows)
        for name in ("tokens", "positions", "cache_rows", "logits_rows"):
            found, wanted = getattr(batch.inputs, name), getattr(anew.inputs, name)
            if name.endswith("rows"):  # nobody's are in each batch's own memory
                found, wanted = found[..., rows.live], wanted[..., rows.live]
            assert found.tobytes() == wanted.tobytes(), name
        require_nobody_in_own_memory(batch, rows)
        runs = rows.shape.runs
        for row, n_kv in enumerate(np.repeat(rows.n_kv(joining), runs)):
            if row not in rows.live:
                assert (batch.inputs.masks[:, row, :n_kv] == MASKED).all(), f"nobody's row {row}"
                continue
            found, wanted = batch.inputs.masks[:, row, :n_kv], anew.inputs.masks[:, row, :n_kv]
            assert found.tobytes() == wanted.tobytes(), f"the masks of row {row}"
            distance = rows.positions[row] - np.arange(n_kv)
            for mask, window in zip(found, batch.inputs.windows, strict=True):
                seen = (distance >= 0) & (distance < (window or N_CTX))
                assert np.array_equal(mask, np.where(seen, np.float16(0), MASKED))
        for name in ("ne", "nb", "data"):
            found, wanted = getattr(batch._planes, name), getattr(anew._planes, name)
            assert found.tobytes() == wanted.tobytes(), f"{name} of the planes"
        for name in ("ne", "nb"):
            found, wanted = getattr(batch._masks, name), getattr(anew._masks, name)
            assert found.tobytes() == wanted.tobytes(), f"{name} of the masks"


def require_nobody_in_own_memory(batch: Batch, rows: Rows) -> None:
    """What rows of nobody write lies in the batch's inputs, which no guest can reach."""
    nobody = np.setdiff1d(np.arange(rows.n), rows.live)
    inputs, base = batch.inputs, batch._everywhere.base
    caches = inputs.cache_rows[:, nobody] * batch._step + base
    logits = inputs.logits_rows[nobody] * 4 + base
    begin, end = inputs.idle_cache_row, inputs.buffer.base + inputs.buffer.nbytes
    assert ((caches >= begin) & (caches + batch._row_nbytes.max() <= logits.min(initial=end))).all()
    assert ((logits >= begin) & (logits + 4 * 300 <= end)).all()


def change_something(model: Model, chosen: list[Session], pool: list[Session]) -> None:
    """Lets a session come, go, lose tokens, be copied or take tokens by itself."""
    session = random.choice(pool)
    match random.choice(["join", "leave", "order", "truncate", "fork", "alone", "prompt"]):
        case "join" if session not in chosen:
            chosen.append(session)
        case "leave" if len(chosen) > 2:
            chosen.pop(random.randrange(len(chosen)))
        case "order":
            random.shuffle(chosen)
        case "truncate":
            session.truncate(max(0, session.n_tokens - random.choice([1, 3, 200])))
        case "fork":
            source = random.choice([it for it in pool if it is not session])
            session.copy_from(source, source.n_tokens)
        case "alone":
            model.decode(session, 7)
        case "prompt":
            model.prefill(session, [*range(random.choice([2, 40, 250]))])


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_inputs_are_those_of_a_batch_written_anew(
    name: str, join: bool, any_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(f"{name} {join}")
    advance, n_advanced = Batch.advance, 0

    def counted(batch: Batch, tokens: np.ndarray) -> None:
        nonlocal n_advanced
        n_advanced += 1
        advance(batch, tokens)

    monkeypatch.setattr(Batch, "advance", counted)
    path = TinyModel(name, n_layer=2).write(tmp_path / "m.gguf")
    with several(any_device, path, N_SESSIONS, ModelSettings(exact=False)) as (model, pool):
        joining = Joining(vector=False) if join else None
        model.executor.use(Width(1, 32), joining, single_steps=True)
        chosen = pool[:3]
        for _ in range(N_STEPS):
            if random.random() < 0.15:
                change_something(model, chosen, pool)
            for session in pool:
                if session.n_tokens > N_CTX - 300:
                    session.truncate(random.choice([0, 100, 255]))
            steps = [Step(it, [random.randrange(300)]) for it in chosen]
            rows = rows_of(model, steps)
            lengths = [it.n_tokens for it in chosen]
            model.executor.decode_batch(steps)
            require_as_written_anew(model, rows)
            assert [it.n_tokens for it in chosen] == [n + 1 for n in lengths]
            assert [it.tokens[-1] for it in chosen] == [step.tokens[0] for step in steps]
            assert all(it.has_logits for it in chosen)
    assert N_STEPS / 2 < n_advanced < N_STEPS


def test_each_of_several_groups_stands(
    device: Device, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More sessions than a pass has room for take turns, in groups of equal shape."""
    advanced: list[Batch] = []
    advance = Batch.advance

    def noted(batch: Batch, tokens: np.ndarray) -> None:
        advanced.append(batch)
        advance(batch, tokens)

    monkeypatch.setattr(Batch, "advance", noted)
    with several(device, tiny, 6) as (model, sessions):
        groups = [sessions[:2], sessions[2:4], sessions[4:]]

        def decode(group: list[Session]) -> None:
            steps = [Step(it, [7]) for it in group]
            rows = rows_of(model, steps)
            model.executor.decode_batch(steps)
            require_as_written_anew(model, rows)

        for _ in range(5):
            for group in groups:
                decode(group)
        assert (len(advanced), len({*advanced})) == (4 * 3, 3)
        decode([sessions[1], sessions[2]])  # two of the groups are no more
        for group in groups:
            decode(group)
        assert len(advanced) == 4 * 3 + 1
        assert len(model.executor._batches._cache.keys) == 3


def test_bits_are_those_of_each_alone(device: Device, tmp_path: Path) -> None:
    path = TinyModel("gemma3", quantisation="Q8_0").write(tmp_path / "q8.gguf")
    with several(device, path, 6) as (model, sessions):
        together, alone = sessions[:3], sessions[3:]
        for i, session in enumerate(sessions):
            model.prefill(session, [*range(20 + i % 3)])
        for step in range(300):  # across the 256th row of the cache, and past the window
            tokens = [(7 * step + i) % 300 for i in range(3)]
            pairs = [*zip(together, alone, tokens, strict=True)]
            model.executor.decode_batch([Step(it, [token]) for it, _, token in pairs])
            for one, other, token in pairs:
                model.decode(other, token)
                assert one.logits.tobytes() == other.logits.tobytes()


def test_a_step_that_fails_is_written_anew(
    device: Device, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with several(device, tiny, 2) as (model, sessions):
        steps = [Step(it, [5]) for it in sessions]
        for _ in range(3):
            model.executor.decode_batch(steps)
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise DeviceFailed("no power")

            patch.setattr(model.executor._backend, "compute", fail)
            with pytest.raises(DeviceFailed):
                model.executor.decode_batch(steps)
        assert [it.n_tokens for it in sessions] == [3, 3]
        assert not any(it.has_logits for it in sessions)
        rows = rows_of(model, steps)
        model.executor.decode_batch(steps)
        require_as_written_anew(model, rows)
        assert all(it.has_logits for it in sessions)


def test_room_ends_as_if_written_anew(device: Device, tiny: Path) -> None:
    with several(device, tiny, 2) as (model, sessions):
        model.prefill(sessions[0], [1] * (N_CTX - 3))
        steps = [Step(it, [5]) for it in sessions]
        for _ in range(3):
            model.executor.decode_batch(steps)
        with pytest.raises(ContextFull):
            model.executor.decode_batch(steps)
        assert [it.n_tokens for it in sessions] == [N_CTX, 3]
        assert all(it.has_logits for it in sessions)


def test_a_session_that_closes_is_forgotten(device: Device, tiny: Path) -> None:
    with several(device, tiny, 3) as (model, sessions):
        for _ in range(2):
            model.executor.decode_batch([Step(it, [5]) for it in sessions])
        sessions[1].close()
        assert not model.executor._batches._standing
        steps = [Step(sessions[0], [1]), Step(sessions[2], [2])]
        rows = rows_of(model, steps)
        model.executor.decode_batch(steps)
        require_as_written_anew(model, rows)


def test_steps_of_several_tokens_are_no_standing_batch(device: Device, tiny: Path) -> None:
    with several(device, tiny, 2) as (model, (one, other)):
        for tokens in ([1], [1, 2], [1], [1], [3, 4]):
            steps = [Step(one, tokens, one.base), Step(other, [9])]
            rows = rows_of(model, steps)
            model.executor.decode_batch(steps)
            require_as_written_anew(model, rows)
        assert one.tokens.tolist() == [1, 1, 2, 1, 1, 3, 4]
        assert other.tokens.tolist() == [9] * 5


def test_the_graph_of_all_sessions_outlives_steps_of_each(device: Device, tiny: Path) -> None:
    """As many sessions as graphs are kept, which decode one by one and then together, again and
    again: nothing is built any more once there is memory for all."""
    with several(device, tiny, 8, ModelSettings(width="many")) as (model, sessions):
        assert model.rows_at_once >= 8
        executor = model.executor
        executor.use(model.width, None, single_steps=False)
        for session in sessions:
            model.prefill(session, [1, 2, 3])

        def each_and_all() -> int:
            before = executor.counters.graphs_built
            for session in sessions:
                executor.decode_batch([Step(session, [4])])
            executor.decode_batch([Step(it, [5]) for it in sessions])
            return executor.counters.graphs_built - before

        assert each_and_all() == 9
        each_and_all()
        assert [each_and_all() for _ in range(3)] == [0, 0, 0]
