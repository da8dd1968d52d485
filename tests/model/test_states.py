"""Sessions of models that keep states: where they can go back to, and what a failed pass leaves."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from isthmus.benchmarks.rival import Libllama
from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import (
    DeviceFailed,
    ModelFileError,
    ModelUnsupported,
    SettingsError,
)
from isthmus.model import Model, Session, open_model
from isthmus.model.jobs import finish
from isthmus.model.own.stateful_session import StatefulSession
from isthmus.model.step import Chunk, Step
from tests.model.test_architectures import N_CTX, STATEFUL, resumed, several
from tests.model.test_exactness import random_tokens
from tests.tiny_gguf import TinyModel

EACH = pytest.mark.parametrize("name", STATEFUL)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("states")
    models = {name: TinyModel(name, quantisation="Q8_0") for name in STATEFUL}
    return {name: model.write(folder / f"{name}.gguf") for name, model in models.items()}


def go_on(model: Model, session: Session, n: int = 10) -> bytes:
    """The logits after each of some greedy tokens."""
    found = []
    for _ in range(n):
        model.decode(session, int(np.argmax(session.logits)))
        found.append(session.logits.tobytes())
    return b"".join(found)


@EACH
def test_a_session_goes_on_from_a_checkpoint_as_libllama_from_there(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    """So do a copy of the checkpoint, and what is restored of the session's bytes."""
    path = files[name]
    with (
        several(device, path, 4) as (model, (session, copy, spare, other)),
        Libllama(device, path, N_CTX, ModelSettings()) as rival,
    ):
        prompt, tokens = random_tokens(100, model.n_vocab), random_tokens(30, model.n_vocab, seed=1)
        model.prefill(session, prompt)
        rival.prefill(prompt)
        assert session.checkpoint()
        for token in random_tokens(20, model.n_vocab, seed=2):
            model.decode(session, token)
        copy.copy_from(session, 100)
        with resumed(model, session, spare) as restored:
            for each in (session, restored):
                each.truncate(100)
                assert not each.has_logits
            other.copy_from(session, 100)
            for token in tokens:
                rival.decode(token)
                for each in (session, copy, restored, other):
                    model.decode(each, token)
                    assert each.logits.tobytes() == rival.logits.tobytes()


@EACH
def test_many_tokens_at_once_have_the_bits_of_one_by_one(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    with several(device, files[name], 3) as (model, (session, other, alone)):
        n_vocab, rows = model.n_vocab, np.zeros((31, model.n_vocab), np.float32)
        for each in (session, other, alone):
            model.prefill(each, random_tokens(30, n_vocab))
        for step in range(12):
            tokens = random_tokens(1 + step * 7 % 9, n_vocab, seed=step)
            steps = [Step(session, tokens, rows.ctypes.data), Step(other, [step])]
            model.executor.decode_batch(steps[: 1 + step % 2])
            for i, token in enumerate(tokens):
                model.decode(alone, token)
                here = rows[i] if i < len(tokens) - 1 else session.logits
                assert here.tobytes() == alone.logits.tobytes()
        assert go_on(model, session) == go_on(model, alone)


@EACH
def test_steps_beside_others_change_no_state(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    """Of eight sessions, some take a step and others do not; one is emptied on the way."""
    with several(device, files[name], 10) as (model, sessions):
        together, alone = sessions[:8], sessions[8:]
        prompts = [random_tokens(9 + 5 * i, model.n_vocab, seed=i) for i in range(8)]
        for session, prompt in zip(together, prompts, strict=True):
            model.prefill(session, prompt)
        given: list[list[int]] = [[] for _ in together]
        for step in range(12):
            here = [i for i in range(8) if (step + i) % 3]
            tokens = random_tokens(8, model.n_vocab, seed=step)
            model.executor.decode_batch([Step(together[i], [tokens[i]]) for i in here])
            for i in here:
                given[i].append(tokens[i])
            if step == 5:
                together[2].truncate(0)
                model.prefill(together[2], prompts[2])
                given[2].clear()
        for i in (2, 7):
            model.prefill(alone[0], prompts[i])
            for token in given[i]:
                model.decode(alone[0], token)
            assert together[i].logits.tobytes() == alone[0].logits.tobytes()
            assert go_on(model, together[i], 3) == go_on(model, alone[0], 3)
            alone[0].truncate(0)


def test_what_can_be_reached(device: Device, files: dict[str, Path]) -> None:
    with several(device, files["lfm2"], 2) as (model, (session, other)):
        assert not model.truncates
        assert session.checkpoint()  # of no tokens: the states of that are zeros
        for n in (40, 30, 20):
            model.prefill(session, random_tokens(n, model.n_vocab))
            assert session.checkpoint()
            assert session.checkpoint()  # it is there already
        model.decode(session, 1)
        assert [session.reach(n) for n in (0, 69, 70, 89, 90, 91, 1 << 31)] == [
            *(0, 0, 70, 70, 90, 91, 91)
        ]  # the one of the fewest tokens was overwritten
        with pytest.raises(ModelUnsupported, match="truncate to one of 0, 70, 90, and take"):
            session.truncate(40)
        with pytest.raises(ModelUnsupported, match="91 tokens cannot be cut to 69"):
            other.copy_from(session, 69)
        with pytest.raises(SettingsError, match="cannot keep 92 of 91 tokens"):
            session.truncate(92)
        assert session.n_tokens == 91
        session.truncate(70)
        assert session.reach(90) == 70
        model.prefill(session, random_tokens(40, model.n_vocab))
        assert session.reach(109) == 70  # that of 90 was of other tokens
        session.truncate(0)
        assert session.reach(1000) == 0
        model.prefill(session, random_tokens(80, model.n_vocab))
        assert session.reach(79) == 0


def test_a_model_without_states_can_go_anywhere(device: Device, tmp_path: Path) -> None:
    with several(device, TinyModel().write(tmp_path / "x.gguf"), 1) as (model, (session,)):
        model.prefill(session, random_tokens(40, model.n_vocab))
        assert model.truncates
        assert session.checkpoint()
        assert [session.reach(n) for n in (0, 17, 40, 41)] == [0, 17, 40, 40]
        assert session.layout.kv_nbytes == session.layout.n_ctx * session.layout.token_nbytes


def test_memory_of_checkpoints_is_counted(device: Device, files: dict[str, Path]) -> None:
    sizes = []
    for n in (0, 1, 5):
        settings = ModelSettings(checkpoints=n)
        with several(device, files["qwen35"], 1, settings) as (model, (session,)):
            assert isinstance(session, StatefulSession)
            model.prefill(session, random_tokens(20, model.n_vocab))
            assert session.checkpoint() == (n > 0)
            sizes.append(session.layout.kv_nbytes)
            states = session.layout.states_nbytes
    for size, expected in zip(sizes, (0, states, 5 * states), strict=True):
        assert abs(size - sizes[0] - expected) < 512  # where they begin is rounded up
    for bad in (-1, 65, 1.5, True):
        with pytest.raises(SettingsError, match="checkpoints is"):
            ModelSettings(checkpoints=bad)  # type: ignore[arg-type]


@contextlib.contextmanager
def failing(device: Device, after: int) -> Iterator[None]:
    """Has passes fail once `after` of them are computed, in the middle of what they write."""
    kind = type(device.new_backend(deterministic=False))
    compute, left = kind.compute, [after]

    def fail(self, graph, *memories):  # type: ignore[no-untyped-def]
        compute(self, graph, *memories)
        left[0] -= 1
        if left[0] < 0:
            raise DeviceFailed("the device failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "compute", fail)
        yield


def test_a_prompt_that_fails_leaves_the_session_as_it_was(
    device: Device, files: dict[str, Path]
) -> None:
    settings = ModelSettings(prefill_chunk=32)
    with several(device, files["qwen35"], 2, settings) as (model, (session, twin)):
        for each in (session, twin):
            model.prefill(each, random_tokens(40, model.n_vocab))
        with failing(device, 1), pytest.raises(DeviceFailed, match="the device failed"):
            model.prefill(session, random_tokens(80, model.n_vocab, seed=1))
        assert session.n_tokens == 40
        for each in (session, twin):
            model.decode(each, 5)
        assert go_on(model, session) == go_on(model, twin)


def test_what_was_lost_stays_lost_in_a_copy_of_the_bytes(
    device: Device, files: dict[str, Path]
) -> None:
    with several(device, files["lfm2"], 2) as (model, (session, spare)):
        model.prefill(session, random_tokens(40, model.n_vocab))
        session.checkpoint()
        with failing(device, 0), pytest.raises(DeviceFailed, match="the device failed"):
            model.decode(session, 1)
        with resumed(model, session, spare) as restored:
            with pytest.raises(DeviceFailed, match="keeps a state that no pass"):
                model.decode(restored, 1)
            for each in (session, restored):
                each.truncate(40)
                model.decode(each, 1)
            assert restored.logits.tobytes() == session.logits.tobytes()


def test_a_chunk_that_is_given_up_leaves_no_state_behind(
    device: Device, files: dict[str, Path]
) -> None:
    """Closed between two of its jobs, when some layers have moved on and others have not."""
    with several(device, files["qwen35"], 1) as (model, (session,)):
        chunk = Chunk(session, np.arange(60, dtype=np.int32), last=True)
        device.compute_thread.run(lambda: _begin_and_close(model, chunk))
        with pytest.raises(DeviceFailed, match="truncate it to 0 or to a checkpoint"):
            model.decode(session, 1)
        session.truncate(0)
        finish(device.compute_thread, model.executor.append([chunk]))
        assert session.n_tokens == 60


def _begin_and_close(model: Model, chunk: Chunk) -> None:
    executor = model.executor
    jobs = executor.append([chunk])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isthmus.model.jobs.JOB_S", 0.0)
        next(jobs)
    jobs.close()


def test_a_step_that_fails_can_be_undone_by_a_checkpoint(
    device: Device, files: dict[str, Path]
) -> None:
    with several(device, files["lfm2moe"], 3) as (model, (session, other, twin)):
        for each in (session, other, twin):
            model.prefill(each, random_tokens(40, model.n_vocab))
        session.checkpoint()
        for steps in ([Step(session, [3])], [Step(session, [3]), Step(other, [4])]):
            with failing(device, 0), pytest.raises(DeviceFailed, match="the device failed"):
                model.executor.decode_batch(steps)
            assert session.reach(1000) == 40
            assert not session.has_logits
            with pytest.raises(DeviceFailed, match="keeps a state that no pass can make again"):
                model.decode(session, 3)
            assert not other.checkpoint() or not other.reach(0)
            session.truncate(40)
        with pytest.raises(DeviceFailed, match="keeps a state"):
            twin.copy_from(other, 40)
        for each in (session, twin):
            model.decode(each, 7)
        assert go_on(model, session) == go_on(model, twin)


@pytest.mark.parametrize("name", ["lfm2moe", "qwen35"])
def test_a_guest_that_writes_into_its_states_harms_nobody_else(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    """Nor the host: the lengths of checkpoints are read of its memory as well."""
    random = np.random.default_rng(0)
    with several(device, files[name], 3) as (model, (hostile, other, twin)):
        for each in (hostile, other, twin):
            model.prefill(each, random_tokens(50, model.n_vocab))
            each.checkpoint()
        nbytes = hostile.layout.nbytes
        for garbage in (
            b"\xff" * nbytes,
            random.bytes(nbytes),
            b"\x01\0\0\0\0\0\0\0" * (nbytes // 8),
        ):
            ctypes.memmove(hostile.base, garbage, nbytes)
            assert 0 <= hostile.reach(hostile.n_tokens - 1) < hostile.n_tokens
            steps = [Step(other, [2])]
            with contextlib.suppress(DeviceFailed):  # it says that it is lost
                hostile.require_ready(1)
                steps.append(Step(hostile, [1]))
            model.executor.decode_batch(steps)
            model.decode(twin, 2)
            hostile.checkpoint()
            hostile.truncate(hostile.reach(hostile.n_tokens - 1))
            model.prefill(hostile, random_tokens(20, model.n_vocab))
            assert other.logits.tobytes() == twin.logits.tobytes()
        assert go_on(model, other) == go_on(model, twin)


# ---------------------------------------------------------------------- what is refused

REFUSED = {
    "a convolution of one token": (
        TinyModel("lfm2", overrides={"shortconv.l_cache": 1}),
        ModelFileError,
        "shortconv.l_cache is 1; expected 2",
    ),
    "layers that are not listed": (
        TinyModel("lfm2", overrides={"attention.head_count_kv": [0, 2, 0]}),
        ModelFileError,
        "is for 3 layers of 5",
    ),
    "layers of two kinds of attention": (
        TinyModel("lfm2", overrides={"attention.head_count_kv": [0, 2, 0, 4, 0]}),
        ModelUnsupported,
        "head_count_kv differs from layer to layer",
    ),
    "no layer with attention": (
        TinyModel("qwen35", overrides={"full_attention_interval": 100}),
        ModelUnsupported,
        "no layer has attention",
    ),
    "no layer with attention, but networks": (
        TinyModel("nemotron_h", overrides={"attention.head_count_kv": [0] * 5}),
        ModelUnsupported,
        "no layer has attention",
    ),
    "two epsilons": (
        TinyModel("nemotron_h", overrides={"attention.layer_norm_epsilon": 1e-6}),
        ModelUnsupported,
        "layer_norm_rms_epsilon differ, which is not implemented: leave it to libllama",
    ),
    "widths by layer": (
        TinyModel("nemotron_h_moe", overrides={"expert_used_count": [0, 3, 0, 2]}),
        ModelUnsupported,
        "expert_used_count differs from layer to layer, .* leave it to libllama",
    ),
    "states that are too large": (
        TinyModel(
            "qwen35",
            overrides={
                "ssm.state_size": 1 << 18,
                "ssm.time_step_rank": 4,
                "ssm.inner_size": 1 << 20,
            },
        ),
        ModelFileError,
        "the states of a session would take",
    ),
    "heads that do not fit": (
        TinyModel("qwen35", overrides={"ssm.group_count": 3}),
        ModelFileError,
        "4 heads of 32 for values and 3 for keys do not make a delta net of 128",
    ),
    "heads that are not in groups": (
        TinyModel("granitehybrid", overrides={"ssm.time_step_rank": 3}),
        ModelFileError,
        "128 elements are not 3 heads in 2 groups",
    ),
    "embeddings": (
        TinyModel("qwen35", overrides={"pooling_type": 3}),
        ModelUnsupported,
        "makes embeddings and keeps states, which is not implemented",
    ),
    "experts chosen by a softmax": (
        TinyModel("lfm2moe", overrides={"expert_gating_func": 1}),
        ModelUnsupported,
        "expert_gating_func is 1; a sigmoid, 2, is known",
    ),
    "a kernel missing": (
        TinyModel("lfm2", without=("shortconv.conv",)),
        ModelFileError,
        "no tensor blk.0.shortconv.conv.weight",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_its_reason(
    name: str, device: Device, tmp_path: Path
) -> None:
    case, kind, reason = REFUSED[name]
    path = case.write(tmp_path / "x.gguf")
    with pytest.raises(kind, match=reason):
        open_model(device, path, ModelSettings())
