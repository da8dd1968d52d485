"""Passes of prefill: chunks, jobs between which others decode, and what an ended pass leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import ContextFull, ModelFileError, TokenError
from isthmus.model import Model, Session
from isthmus.model.jobs import finish
from isthmus.model.step import Chunk
from tests.model.test_architectures import several
from tests.model.test_exactness import random_tokens
from tests.tiny_gguf import TinyLlama

CHUNK = 16


@pytest.fixture
def opened(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Model, list[Session]]]:
    """A model whose jobs are a layer each, and four sessions."""
    monkeypatch.setattr("isthmus.model.jobs.JOB_S", 0.0)
    path = TinyLlama(quantisation="Q8_0").write(tmp_path / "q8.gguf")
    with several(device, path, 4, ModelSettings(prefill_chunk=CHUNK)) as (model, sessions):
        yield model, sessions


def chunks_of(model: Model, session: Session, n: int, seed: int = 0) -> list[Chunk]:
    return model.executor.chunks(session, random_tokens(n, model.n_vocab, seed=seed))


def on_device(model: Model, work: Callable[[], None]) -> None:
    model.device.compute_thread.run(work)


def test_chunks_are_cut_where_the_settings_say(opened: tuple[Model, list[Session]]) -> None:
    model, (session, *_) = opened
    for n, sizes in ((1, [1]), (CHUNK, [CHUNK]), (2 * CHUNK + 1, [CHUNK, CHUNK, 1])):
        chunks = chunks_of(model, session, n)
        assert [len(it.tokens) for it in chunks] == sizes
        assert [it.last for it in chunks] == [False] * (len(sizes) - 1) + [True]
    with pytest.raises(ContextFull):
        chunks_of(model, session, session.n_ctx + 1)
    assert session.n_tokens == 0
    assert not model.executor.is_prefilling


def test_others_decode_between_two_jobs(
    opened: tuple[Model, list[Session]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (one, other, decoding, alone) = opened
    prompt, first = random_tokens(3 * CHUNK, model.n_vocab), [1, 2, 3]
    for session in (decoding, alone):
        model.prefill(session, first)
    with monkeypatch.context() as patch:
        patch.setattr(type(model.device), "splits_graphs", False)
        model.prefill(other, prompt)
    prefilled, n_jobs = model.executor.counters.tokens_prefilled, 0

    def compute() -> None:
        nonlocal n_jobs
        for chunk in model.executor.chunks(one, prompt):
            for _ in model.executor.append([chunk]):
                assert model.executor.is_prefilling
                model.decode(decoding, n_jobs)
                n_jobs += 1
            assert one.has_logits == chunk.last

    on_device(model, compute)
    assert n_jobs >= 3 * model.hparams.n_layer
    assert not model.executor.is_prefilling
    assert model.executor.counters.tokens_prefilled == prefilled + len(prompt)
    for token in range(n_jobs):
        model.decode(alone, token)
    assert one.logits.tobytes() == other.logits.tobytes()
    assert decoding.logits.tobytes() == alone.logits.tobytes()
    assert one.tokens == other.tokens


def test_parts_are_as_large_as_the_pass_before_allows(
    opened: tuple[Model, list[Session]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (session, *_) = opened
    counters, found = model.device.counters, []
    for job_s in (3600.0, 3600.0, 0.0):
        monkeypatch.setattr("isthmus.model.jobs.JOB_S", job_s)
        submissions = counters.submissions
        model.prefill(session, random_tokens(CHUNK, model.n_vocab))
        found.append(counters.submissions - submissions)
    assert found == [model.hparams.n_layer + 1, 1, model.hparams.n_layer + 1]


@pytest.mark.parametrize("n_sessions", [1, 3])
def test_a_pass_that_is_closed_early_leaves_the_tokens(
    opened: tuple[Model, list[Session]], n_sessions: int
) -> None:
    model, sessions = opened
    together, alone = sessions[:n_sessions], sessions[-1]
    for session in sessions:
        model.prefill(session, [1, 2, 3])
    prompts = [random_tokens(9, model.n_vocab, seed=i) for i in range(n_sessions)]

    def chunks() -> list[Chunk]:
        pairs = zip(together, prompts, strict=True)
        return [chunk for it, prompt in pairs for chunk in model.executor.chunks(it, prompt)]

    def give_up() -> None:
        jobs = model.executor.append(chunks())
        next(jobs)
        jobs.close()

    on_device(model, give_up)
    assert not model.executor.is_prefilling
    assert [it.n_tokens for it in together] == [3] * n_sessions
    assert not any(it.has_logits for it in together)
    finish(model.device.compute_thread, model.executor.append(chunks()))
    for session, prompt in zip(together, prompts, strict=True):
        assert session.has_logits
        alone.truncate(3)
        model.prefill(alone, prompt)
        assert session.tokens == alone.tokens
        assert session.logits.tobytes() == alone.logits.tobytes()


def test_one_pass_at_a_time(opened: tuple[Model, list[Session]]) -> None:
    model, (one, other, *_) = opened

    def compute() -> None:
        executor = model.executor
        jobs = executor.append(chunks_of(model, one, 9))
        seen = [executor.is_prefilling]  # nothing is asked of it yet
        next(jobs)
        seen.append(executor.is_prefilling)
        assert seen == [False, True]
        with pytest.raises(RuntimeError, match="is_prefilling"):
            next(executor.append(chunks_of(model, other, 9)))
        with pytest.raises(RuntimeError, match="compute the rest"):
            model.prefill(other, [1, 2])
        with pytest.raises(RuntimeError, match="end the pass"):
            executor.forget(one)
        assert {*jobs} == {None}
        model.prefill(other, [1, 2])

    on_device(model, compute)
    assert (one.n_tokens, other.n_tokens) == (9, 2)


def test_an_error_in_a_later_chunk_takes_all_back(
    opened: tuple[Model, list[Session]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (session, *_) = opened
    model.prefill(session, [1, 2, 3])
    intact, asked = model._require_intact, 0

    def fail_in_the_second_chunk() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise ModelFileError("the file was changed")
        intact()

    monkeypatch.setattr(model.executor, "_require_intact", fail_in_the_second_chunk)
    with pytest.raises(ModelFileError):
        model.prefill(session, random_tokens(2 * CHUNK + 1, model.n_vocab))
    assert session.tokens.tolist() == [1, 2, 3]
    assert session.has_logits  # only a last chunk writes others
    assert not model.executor.is_prefilling
    with pytest.raises(TokenError, match=f"token {model.n_vocab} "):
        model.prefill(session, [1, model.n_vocab, 2])
    with pytest.raises(TokenError, match="token -1 "):
        model.require_tokens([0, -1])
    model.require_tokens([])
