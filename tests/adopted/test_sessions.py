"""Sessions of libllama's own graph in memory of ours: the bits are those of plain libllama."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from isthmus.benchmarks.rival import Libllama
from isthmus.config import DeviceSettings, ModelSettings
from isthmus.device import Device, open_device
from isthmus.errors import (
    DeviceFailed,
    DeviceUnavailable,
    ModelUnsupported,
    SettingsError,
    TokenError,
)
from isthmus.memory import Region
from isthmus.model import Model, Session, open_model
from isthmus.model.adopted import executor
from isthmus.model.adopted.context import Context
from isthmus.model.adopted.layout import AdoptedLayout
from isthmus.model.adopted.model import AdoptedModel
from isthmus.model.step import Step
from isthmus.native.loader import Library
from isthmus.units import GIB, MIB, GuestPtr, HostAddr
from tests.adopted.conftest import DENSE, STATEFUL, hashes_for
from tests.tiny_gguf import TinyModel

N_CTX = 256
CHUNK = 48
SETTINGS = ModelSettings(prefill_chunk=CHUNK, graph="adopted")
PROMPT = [(7 * i + 3) % 300 for i in range(100)]
"""Chunks of 48, 48 and 4 tokens."""
NEXT = [11, 5, 200, 42]
EACH = pytest.mark.parametrize("name", [*DENSE, *STATEFUL])
OF_STATE = pytest.mark.parametrize("name", STATEFUL)
Files = Callable[[str], Path]


class Room:
    """Memory of a guest, with places for sessions."""

    def __init__(self, device: Device, stack: ExitStack) -> None:
        self.region = stack.enter_context(Region.reserve(GIB, nbytes=16 * MIB))
        self._binding = stack.enter_context(device.bind(self.region))
        self._stack = stack
        self._end = 4096

    def open(self, model: Model, n_ctx: int = N_CTX) -> Session:
        layout = model.layout(n_ctx)
        ptr = self.take(layout.nbytes)
        session = model.open_session(self.region, self._binding, ptr, layout)
        return self._stack.enter_context(closing(session))

    def resume(self, model: Model, like: Session, layout: object = None) -> Session:
        """A session over a copy of another one's bytes."""
        ptr = self.take(like.layout.nbytes)
        ctypes.memmove(self.region.address(ptr, 0), like.base, like.layout.nbytes)
        session = model.resume_session(
            self.region,
            self._binding,
            ptr,
            cast("AdoptedLayout", layout or like.layout),
            like.tokens,
            has_logits=like.has_logits,
            spans=like.spans,
        )
        return self._stack.enter_context(closing(session))

    def take(self, nbytes: int) -> GuestPtr:
        ptr, self._end = self._end, self._end + -(-nbytes // 4096) * 4096
        return GuestPtr(ptr)


@contextmanager
def opened(
    device: Device, path: Path, settings: ModelSettings = SETTINGS
) -> Iterator[tuple[AdoptedModel, Room]]:
    with ExitStack() as stack:
        model = stack.enter_context(closing(open_model(device, path, settings, hashes_for(path))))
        assert isinstance(model, AdoptedModel)
        yield model, Room(device, stack)


def logits_of(device: Device, path: Path) -> list[bytes]:
    """Those of plain libllama after the prompt, and after each of the next tokens."""
    with Libllama(device, path, N_CTX, SETTINGS) as rival:
        rival.prefill(PROMPT)
        found = [rival.logits.tobytes()]
        for token in NEXT:
            rival.decode(token)
            found.append(rival.logits.tobytes())
    return found


def go_on(model: Model, session: Session, tokens: list[int] = NEXT) -> list[bytes]:
    """The logits after each of some tokens."""
    found = []
    for token in tokens:
        model.decode(session, token)
        found.append(session.logits.tobytes())
    return found


@EACH
def test_the_bits_are_those_of_plain_libllama(name: str, device: Device, tiny_file: Files) -> None:
    path = tiny_file(name)
    expected = logits_of(device, path)
    with opened(device, path) as (model, room):
        session = room.open(model)
        model.prefill(session, PROMPT)
        assert session.logits.tobytes() == expected[0]
        assert go_on(model, session) == expected[1:]
        assert np.isfinite(session.logits).all()
        assert session.tokens.tolist() == PROMPT + NEXT
        assert model.counters.tokens_prefilled == len(PROMPT)
        assert model.counters.tokens_decoded == len(NEXT)


@EACH
def test_a_session_is_its_bytes_and_its_tokens(name: str, device: Device, tiny_file: Files) -> None:
    path = tiny_file(name)
    with opened(device, path) as (model, room):
        session = room.open(model)
        model.prefill(session, PROMPT)
        model.decode(session, NEXT[0])
        copy = room.resume(model, session)
        expected = go_on(model, session, NEXT[1:])
        assert go_on(model, copy, NEXT[1:]) == expected


@EACH
def test_making_positions_again_touches_no_byte(
    name: str, device: Device, tiny_file: Files
) -> None:
    with opened(device, tiny_file(name)) as (model, room):
        session = room.open(model)
        model.prefill(session, PROMPT)
        before = ctypes.string_at(session.base, session.layout.nbytes)
        layout = cast("AdoptedLayout", session.layout)
        with model.contexts.open(session.base, layout) as context:
            context.know(session.tokens)
        assert ctypes.string_at(session.base, session.layout.nbytes) == before


@EACH
def test_sessions_that_take_turns_do_not_see_each_other(
    name: str, device: Device, tiny_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a scratch; with room for two contexts, each third one is opened anew."""
    monkeypatch.setattr(executor, "_MAX_CONTEXTS", 2)
    prompts = [PROMPT[i : i + 60] for i in (0, 10, 20)]
    with opened(device, tiny_file(name)) as (model, room):
        alone = []
        for prompt in prompts:
            session = room.open(model)
            model.prefill(session, prompt)
            alone.append(go_on(model, session))
        sessions = [room.open(model) for _ in prompts]
        for session, prompt in zip(sessions, prompts, strict=True):
            model.prefill(session, prompt)
        for i, token in enumerate(NEXT):
            for session, expected in zip(sessions, alone, strict=True):
                assert go_on(model, session, [token]) == [expected[i]]


@pytest.mark.parametrize("name", DENSE)
def test_a_truncated_session_goes_on_as_if_nothing_had_been(
    name: str, device: Device, tiny_file: Files
) -> None:
    with opened(device, tiny_file(name)) as (model, room):
        assert model.truncates
        session = room.open(model)
        model.prefill(session, PROMPT)
        expected = go_on(model, session)
        session.truncate(len(PROMPT))
        assert not session.has_logits
        assert go_on(model, session) == expected
        session.truncate(CHUNK)
        model.prefill(session, PROMPT[CHUNK:])
        assert go_on(model, session) == expected


@OF_STATE
def test_a_state_takes_no_token_back(name: str, device: Device, tiny_file: Files) -> None:
    with opened(device, tiny_file(name)) as (model, room):
        assert not model.truncates
        assert any("taking tokens back" in it for it in model.lacks)
        session = room.open(model)
        model.prefill(session, PROMPT)
        with pytest.raises(ModelUnsupported, match="truncate to 0 and prefill again"):
            session.truncate(len(PROMPT) - 1)
        assert session.n_tokens == len(PROMPT)
        expected = go_on(model, session)
        layout = cast("AdoptedLayout", session.layout)
        for it in model.contexts.states:
            ctypes.memset(session.base + layout.offsets[it], 0xFF, layout.memories[it])  # all NaN
        session.truncate(0)
        model.prefill(session, PROMPT)
        assert go_on(model, session) == expected


@EACH
def test_a_prompt_that_fails_leaves_the_session_as_it_was(
    name: str, device: Device, tiny_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = Context._appended

    def failing(context: Context, n_tokens: int, status: int, with_logits: bool) -> None:
        appended(context, n_tokens, status, with_logits)
        if with_logits:
            raise DeviceFailed("out of order")

    with opened(device, tiny_file(name)) as (model, room):
        session = room.open(model)
        model.prefill(session, PROMPT)
        twin = room.resume(model, session)
        with monkeypatch.context() as patch:
            patch.setattr(Context, "_appended", failing)
            with pytest.raises(DeviceFailed, match="out of order"):
                model.prefill(session, PROMPT[:60])
        assert session.tokens.tolist() == PROMPT
        assert go_on(model, session) == go_on(model, twin)


@EACH
def test_others_decode_between_two_jobs(
    name: str, device: Device, tiny_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.model.jobs.JOB_S", 0.0)
    expected = logits_of(device, tiny_file(name))
    with opened(device, tiny_file(name)) as (model, room):
        prompted, decoding, alone = (room.open(model) for _ in range(3))
        for it in (decoding, alone):
            model.prefill(it, NEXT)

        def compute() -> int:
            n_jobs = 0
            for chunk in model.executor.chunks(prompted, PROMPT):
                for _ in model.executor.append([chunk]):
                    assert model.executor.is_prefilling
                    model.decode(decoding, n_jobs)
                    n_jobs += 1
            return n_jobs

        n_jobs = device.compute_thread.run(compute)
        assert n_jobs > 3 * model.hparams.n_layer
        assert [prompted.logits.tobytes(), *go_on(model, prompted)] == expected
        assert go_on(model, alone, list(range(n_jobs)))[-1] == decoding.logits.tobytes()


@EACH
def test_a_pass_can_be_given_up_between_two_jobs(
    name: str, device: Device, tiny_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.model.jobs.JOB_S", 0.0)
    with opened(device, tiny_file(name)) as (model, room):
        session = room.open(model)
        model.prefill(session, PROMPT)
        twin, before = room.resume(model, session), set(threading.enumerate())
        with session.restorable():
            jobs = model.executor.append(model.executor.chunks(session, PROMPT)[:1])

            def begin() -> None:
                for _ in range(3):
                    next(jobs)

            device.compute_thread.run(begin)
            assert (started := set(threading.enumerate()) - before)
            with pytest.raises(RuntimeError, match="cannot close while a pass"):
                session.close()
            device.compute_thread.run(jobs.close)
            session.roll_back(len(PROMPT))
        assert not any(thread.is_alive() for thread in started)
        assert not model.executor.is_prefilling
        assert go_on(model, session) == go_on(model, twin)


@EACH
def test_several_tokens_are_as_many_single_ones(
    name: str, device: Device, tiny_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none of them, if one fails."""
    with opened(device, tiny_file(name)) as (model, room):
        one, other, twin = (room.open(model) for _ in range(3))
        for it in (one, other, twin):
            model.prefill(it, PROMPT[:50])
        rows = (ctypes.c_float * (3 * model.n_vocab))()
        steps = [Step(one, NEXT, ctypes.addressof(rows)), Step(other, NEXT[:1])]
        expected = go_on(model, twin)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "copy_logits", failing_copy)
            with pytest.raises(DeviceFailed, match="no copy"):
                model.executor.decode_batch(steps)
        assert one.n_tokens == other.n_tokens == 50
        model.executor.decode_batch(steps)
        found = np.frombuffer(rows, np.float32).reshape(3, model.n_vocab)
        assert [*(it.tobytes() for it in found), one.logits.tobytes()] == expected
        assert other.logits.tobytes() == expected[0]


def failing_copy(_session: Session, _target: HostAddr) -> None:
    raise DeviceFailed("no copy")


@OF_STATE
def test_a_token_that_fails_spoils_a_state_until_it_is_emptied(
    name: str, device: Device, tiny_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise DeviceFailed("out of order")

    with opened(device, tiny_file(name)) as (model, room):
        session = room.open(model)
        model.prefill(session, PROMPT)
        with monkeypatch.context() as patch:
            patch.setattr(Context, "append_one", failing)
            with pytest.raises(DeviceFailed, match="out of order"):
                model.decode(session, 1)
        with pytest.raises(DeviceFailed, match="truncate it to 0"):
            model.decode(session, 1)
        with pytest.raises(ModelUnsupported):
            session.truncate(session.n_tokens)
        session.truncate(0)
        model.prefill(session, PROMPT)
        assert go_on(model, session) == logits_of(device, tiny_file(name))[1:]


@EACH
def test_a_copy_goes_on_as_its_source(name: str, device: Device, tiny_file: Files) -> None:
    with opened(device, tiny_file(name)) as (model, room):
        source, target = room.open(model), room.open(model)
        model.prefill(target, NEXT)
        model.prefill(source, PROMPT)
        target.copy_from(source, len(PROMPT))
        assert target.logits.tobytes() == source.logits.tobytes()
        assert go_on(model, target) == go_on(model, source)


def test_part_of_a_session_is_copied_if_it_can_be_taken_back(
    device: Device, tiny_file: Files
) -> None:
    for name in ("gemma3n", "falcon-h1"):
        with opened(device, tiny_file(name)) as (model, room):
            source, target, longer = room.open(model), room.open(model), room.open(model, 512)
            model.prefill(source, PROMPT)
            with pytest.raises(SettingsError, match="256 is not 512"):
                longer.copy_from(source, len(PROMPT))
            if not model.truncates:
                with pytest.raises(ModelUnsupported, match="copy all 100 tokens"):
                    target.copy_from(source, 50)
                continue
            target.copy_from(source, 50)
            source.truncate(50)
            assert go_on(model, target) == go_on(model, source)


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_each_type_of_cache_has_libllamas_bits(
    kv_type: str, device: Device, tiny_file: Files
) -> None:
    settings = replace(SETTINGS, kv_type=kv_type)
    with (
        opened(device, tiny_file("mimo2"), settings) as (model, room),
        Libllama(device, tiny_file("mimo2"), N_CTX, settings) as rival,
    ):
        session = room.open(model)
        model.prefill(session, PROMPT)
        rival.prefill(PROMPT)
        assert session.logits.tobytes() == rival.logits.tobytes()


def test_an_architecture_of_ours_can_be_left_to_libllama(device: Device, tmp_path: Path) -> None:
    path = TinyModel("gemma3", quantisation="Q8_0").write(tmp_path / "gemma3.gguf")
    expected = logits_of(device, path)
    for graph in ("own", "adopted", "auto"):
        settings = replace(SETTINGS, graph=graph)
        with ExitStack() as stack:
            model = stack.enter_context(
                closing(open_model(device, path, settings, hashes_for(path)))
            )
            assert isinstance(model, AdoptedModel) == (graph == "adopted")
            assert bool(model.graph) == bool(model.lacks) == (graph == "adopted")
            session = Room(device, stack).open(model)
            model.prefill(session, PROMPT)
            assert [session.logits.tobytes(), *go_on(model, session)] == expected


def test_what_is_asked_is_checked(device: Device, tiny_file: Files) -> None:
    with opened(device, tiny_file("falcon-h1")) as (model, room):
        session = room.open(model)
        with pytest.raises(TokenError):
            model.decode(session, model.n_vocab)
        with pytest.raises(SettingsError, match="n_ctx"):
            model.layout(model.hparams.n_ctx_train + 1)
        with pytest.raises(ModelUnsupported, match="merge the adapter"):
            model.load_adapter(Path("lora.gguf"))
        with pytest.raises(ModelUnsupported, match="merge the adapter"):
            model.adapted({})


def test_a_layout_of_another_model_is_refused(device: Device, tiny_file: Files) -> None:
    with opened(device, tiny_file("falcon-h1")) as (model, room):
        session = room.open(model)
        model.prefill(session, PROMPT)
        layout = cast("AdoptedLayout", session.layout)
        wrong: list[object] = [
            replace(layout, memories=layout.memories[:1]),
            replace(layout, memories=(layout.memories[0], layout.memories[1] + 32)),
            replace(layout, n_vocab=layout.n_vocab + 1),
            replace(layout, n_ctx=512),
            replace(layout, remainder=1),
        ]
        for it in wrong:
            with pytest.raises(SettingsError, match=r"layout|do not begin"):
                room.resume(model, session, it)


def test_only_the_cpu_adopts(library: Library, tiny_file: Files) -> None:
    null = open_device("null", library, DeviceSettings())
    with closing(null), pytest.raises(DeviceUnavailable, match="device='cpu'"):
        open_model(null, tiny_file("falcon-h1"), ModelSettings())


def test_settings_of_our_graphs_are_refused(device: Device, tiny_file: Files) -> None:
    with pytest.raises(SettingsError, match="graph='own'"):
        open_model(device, tiny_file("falcon-h1"), replace(SETTINGS, deterministic=True))
    with pytest.raises(ModelUnsupported, match="--graph adopted"):
        open_model(device, tiny_file("falcon-h1"), ModelSettings(graph="own"))
    with pytest.raises(SettingsError, match="auto, own, adopted"):
        ModelSettings(graph="theirs")


def test_logits_lie_where_the_guest_finds_them(device: Device, tiny_file: Files) -> None:
    """And nothing of the scratch does: two contexts over one span differ by nothing else."""
    with opened(device, tiny_file("gemma3n")) as (model, room):
        session = room.open(model)
        model.prefill(session, PROMPT)
        logits = np.frombuffer(ctypes.string_at(session.base, 4 * model.n_vocab), np.float32)
        assert (logits == session.logits).all()
        assert session.layout.nbytes < session.layout.kv_nbytes + 4 * model.n_vocab + 4 * 4096
        assert session.base == room.region.address(session.ptr, 0) == HostAddr(session.base)


@pytest.mark.parametrize("name", ["mimo2", "jamba"])
def test_a_guest_that_writes_into_its_own_memories_harms_nobody_else(
    name: str, device: Device, tiny_file: Files
) -> None:
    """Experts are chosen by what comes of them: infinities and NaN choose some as well."""
    random = np.random.default_rng(0)
    with opened(device, tiny_file(name)) as (model, room):
        hostile, other, twin = (room.open(model) for _ in range(3))
        for it in (hostile, other, twin):
            model.prefill(it, PROMPT[:50])
        expected = go_on(model, twin)
        nbytes = hostile.layout.nbytes
        for garbage in (b"\xff" * nbytes, random.bytes(nbytes), b"\x00\x7c" * (nbytes // 2)):
            ctypes.memmove(hostile.base, garbage, nbytes)
            model.decode(hostile, 1)
            model.prefill(hostile, PROMPT[:20])
        assert go_on(model, other) == expected
