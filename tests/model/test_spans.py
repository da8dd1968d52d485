"""Embeddings in place of tokens: the bits are those of tokens, and of libllama's own batches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from isthmus.benchmarks.rival import Libllama
from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import ContextFull, ModelUnsupported, SettingsError
from isthmus.file_hash import FileHashes
from isthmus.model import Model, Session, open_model
from isthmus.model.files import opening
from isthmus.model.spans import NO_TOKEN, Embeddings, Span, are_spans_of, cut_span, position_of
from isthmus.native._llama import Batch
from isthmus.trial import Ending, Outcome
from isthmus.units import HostAddr
from tests.adopted.conftest import hashes_for
from tests.adopted.test_sessions import Room
from tests.tiny_gguf import TinyModel

N_CTX, CHUNK = 256, 48
BEFORE, AFTER = [7, 12, 3], [5, 9, 200]
OWN = ("llama", "qwen3", "gemma2", "gemma3", "granite", "olmo2", "mistral3", "gpt-oss", "falcon")
ADOPTED = ("llama", "gemma3", "qwen3vl")
WAYS = [*((it, "own") for it in OWN), *((it, "adopted") for it in ADOPTED)]
EACH = pytest.mark.parametrize(("name", "graph"), WAYS)


@dataclass
class Opened:
    model: Model
    room: Room
    path: Path

    def rows(self, tokens: Sequence[int]) -> np.ndarray:
        """What the model's own table has for some tokens, as the model scales it."""
        table = next(it for it in GGUFReader(self.path).tensors if it.name == "token_embd.weight")
        found = np.zeros((len(tokens), self.model.row_width), dtype=np.float32)
        found[:, : table.data.shape[1]] = table.data[list(tokens)]
        if self.model.hparams.architecture == "gemma3":
            found *= np.float32(np.sqrt(table.data.shape[1]))
        return found

    def given(self, rows: np.ndarray, **more: object) -> Embeddings:
        """Rows in the guest's memory."""
        ptr = self.room.take(rows.nbytes)
        address = self.room.region.address(ptr, rows.nbytes)
        ctypes.memmove(address, rows.tobytes(), rows.nbytes)
        return replace(Embeddings(address, *rows.shape), **more)


@contextmanager
def opened(device: Device, path: Path, graph: str) -> Iterator[Opened]:
    settings = ModelSettings(prefill_chunk=CHUNK, graph=graph)
    with ExitStack() as stack:
        model = stack.enter_context(closing(open_model(device, path, settings, hashes_for(path))))
        yield Opened(model, Room(device, stack), path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("spans")

    def find(name: str) -> Path:
        path = folder / f"{name}.gguf"
        return path if path.exists() else TinyModel(name).write(path)

    return find


def random_rows(n: int, width: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, width)).astype(np.float32)


def libllama_logits(
    device: Device, path: Path, rows: np.ndarray, positions: np.ndarray | None, *, causal: bool
) -> list[bytes]:
    """libllama's own after BEFORE and the rows, and after each token of AFTER."""
    library, n = device.library, len(rows)
    with Libllama(device, path, N_CTX, ModelSettings(prefill_chunk=CHUNK)) as rival:
        rival.prefill(BEFORE)
        library.llama_set_causal_attn(rival.handle, causal)
        held = None if positions is None else np.ascontiguousarray(positions, dtype=np.int32)
        there = None if held is None else held.ctypes.data
        assert not library.llama_decode(
            rival.handle, Batch(n, None, rows.ctypes.data, there, None, None, None)
        )
        library.llama_set_causal_attn(rival.handle, True)
        found = [rival.logits.tobytes()]
        position = len(BEFORE) + n if held is None else int(held.max()) + 1
        for i, token in enumerate(AFTER):
            one = (ctypes.c_int32 * 2)(token, position + i)
            at = ctypes.addressof(one)
            assert not library.llama_decode(
                rival.handle, Batch(1, at, None, at + 4, None, None, None)
            )
            found.append(rival.logits.tobytes())
        return found


def ours(model: Model, session: Session, given: Embeddings) -> list[bytes]:
    model.prefill(session, BEFORE)
    model.prefill_embeddings(session, given)
    found = [session.logits.tobytes()]
    for token in AFTER:
        model.decode(session, token)
        found.append(session.logits.tobytes())
    return found


@EACH
def test_tokens_own_embeddings_have_the_bits_of_tokens(
    name: str, graph: str, device: Device, file: Callable[[str], Path]
) -> None:
    tokens = [(7 * i + 3) % 300 for i in range(100)]  # chunks of 48, 48 and 4
    with opened(device, file(name), graph) as it:
        if it.model.row_width != it.model.hparams.n_embd:
            pytest.skip("its rows have parts for several layers, of which tokens have one")
        expected, session = it.room.open(it.model), it.room.open(it.model)
        it.model.prefill(expected, BEFORE)
        it.model.prefill(expected, tokens)
        it.model.prefill(session, BEFORE)
        it.model.prefill_embeddings(session, it.given(it.rows(tokens)))
        assert session.logits.tobytes() == expected.logits.tobytes()
        assert session.tokens.tolist() == BEFORE + [NO_TOKEN] * 100
        it.model.decode(expected, 5)
        it.model.decode(session, 5)
        assert session.logits.tobytes() == expected.logits.tobytes()


@pytest.mark.parametrize("causal", [True, False])
@EACH
def test_the_logits_are_those_of_libllama(
    name: str, graph: str, causal: bool, device: Device, file: Callable[[str], Path]
) -> None:
    if (name, graph) == ("qwen3vl", "adopted"):
        pytest.skip("see the test of positions")
    with opened(device, file(name), graph) as it:
        rows = random_rows(40, it.model.row_width)
        found = ours(it.model, it.room.open(it.model), it.given(rows, causal=causal))
        assert found == libllama_logits(device, it.path, rows, None, causal=causal)


def grid(first: int, width: int, height: int) -> np.ndarray:
    """i32 [4, n]: where the parts of a picture are."""
    n = np.arange(width * height)
    zero = np.zeros_like(n)
    return np.stack([zero + first, first + n // width, first + n % width, zero]).astype(np.int32)


def test_positions_of_a_picture(device: Device, file: Callable[[str], Path]) -> None:
    axes = grid(len(BEFORE), 8, 5)
    with opened(device, file("qwen3vl"), "adopted") as it:
        rows = random_rows(40, it.model.row_width)
        assert it.model.has_axes
        assert it.model.row_width == 2 * it.model.hparams.n_embd
        session = it.room.open(it.model)
        found = ours(it.model, session, it.given(rows, positions=axes[:3]))
        assert found == libllama_logits(device, it.path, rows, axes, causal=True)
        assert session.next_position == len(BEFORE) + 8 + len(AFTER)


def test_a_session_goes_on_in_a_new_context(device: Device, file: Callable[[str], Path]) -> None:
    """Its bytes, tokens and spans are all that it is; after truncation too."""
    axes = grid(len(BEFORE), 8, 5)
    with opened(device, file("qwen3vl"), "adopted") as it:
        rows = random_rows(40, it.model.row_width)
        session = it.room.open(it.model)
        *_, expected = ours(it.model, session, it.given(rows, positions=axes[:3]))
        resumed = it.room.resume(it.model, session)
        assert resumed.spans == session.spans
        for each in (session, resumed):
            it.model.decode(each, 77)
        assert resumed.logits.tobytes() == session.logits.tobytes()
        copy = it.room.open(it.model)
        copy.copy_from(session, len(BEFORE) + 40)
        for each in (session, resumed, copy):
            each.truncate(len(BEFORE) + 40)
            for token in AFTER:
                it.model.decode(each, token)
            assert each.logits.tobytes() == expected


@pytest.mark.parametrize("graph", ["own", "adopted"])
def test_a_span_is_kept_whole(graph: str, device: Device, file: Callable[[str], Path]) -> None:
    with opened(device, file("llama"), graph) as it:
        session, other = it.room.open(it.model), it.room.open(it.model)
        ours(it.model, session, it.given(random_rows(8, it.model.row_width)))
        with pytest.raises(ModelUnsupported, match="inside a picture or sound"):
            session.truncate(len(BEFORE) + 4)
        with pytest.raises(ModelUnsupported, match="inside a picture or sound"):
            other.copy_from(session, len(BEFORE) + 4)
        assert session.n_tokens == len(BEFORE) + 8 + len(AFTER)
        session.truncate(len(BEFORE))
        assert session.spans == []


@pytest.mark.parametrize("graph", ["own", "adopted"])
def test_bad_embeddings(graph: str, device: Device, file: Callable[[str], Path]) -> None:
    with opened(device, file("llama"), graph) as it:
        model, session = it.model, it.room.open(it.model)
        model.prefill(session, BEFORE)
        good = it.given(random_rows(CHUNK + 1, model.row_width))
        bad: list[tuple[type[Exception], str, Embeddings]] = [
            (SettingsError, "no embeddings", replace(good, n_rows=0)),
            (SettingsError, "a row has 63 numbers", replace(good, width=63)),
            (ContextFull, "no room", replace(good, n_rows=N_CTX)),
            (ModelUnsupported, "prefill_chunk=49", replace(good, causal=False)),
            (ModelUnsupported, "M-RoPE", replace(good, positions=grid(3, 49, 1)[:3])),
        ]
        for kind, said, given in bad:
            with pytest.raises(kind, match=said):
                model.prefill_embeddings(session, given)
        assert session.tokens.tolist() == BEFORE
        assert session.has_logits
        model.prefill_embeddings(session, good)


def test_bad_positions(device: Device, file: Callable[[str], Path]) -> None:
    with opened(device, file("qwen3vl"), "adopted") as it:
        model, session = it.model, it.room.open(it.model)
        model.prefill(session, BEFORE)
        good = it.given(random_rows(8, model.row_width))
        bad: list[tuple[type[Exception], np.ndarray]] = [
            (SettingsError, grid(2, 8, 1)),
            (SettingsError, grid(3, 7, 1)),
            (SettingsError, grid(3, 8, 1)[[2, 1, 0]][:, ::-1]),
            (ContextFull, grid(N_CTX - 4, 8, 1)),
        ]
        for kind, axes in bad:
            given = replace(good, positions=np.ascontiguousarray(axes[:3]))
            with pytest.raises(kind):
                model.prefill_embeddings(session, given)
        assert session.tokens.tolist() == BEFORE


def test_own_graphs_leave_parts_for_several_layers_to_libllama(
    device: Device, file: Callable[[str], Path]
) -> None:
    with (
        opened(device, file("qwen3vl"), "own") as it,
        pytest.raises(ModelUnsupported, match="adopt"),
    ):
        _ = it.model.row_width


def test_an_architecture_that_does_not_survive_embeddings_takes_none(
    device: Device, file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(device, file("llama"), "adopted") as it:
        session, given = it.room.open(it.model), it.given(random_rows(4, 64))
        crashed = Outcome(Ending.CRASHED, said="x.cpp:1: no embeddings")
        monkeypatch.setattr(opening, "try_out", lambda *_: crashed)
        monkeypatch.setattr(it.model, "_hashes", FileHashes())
        with pytest.raises(ModelUnsupported, match="tokens alone"):
            it.model.prefill_embeddings(session, given)
        assert session.n_tokens == 0


# ---------------------------------------------------------------------- what a snapshot says

LIES = {
    "a token inside": ([1, 2, NO_TOKEN], [Span(1, 2, 3)]),
    "none where one is": ([1, NO_TOKEN, NO_TOKEN], [Span(1, 1, 2)]),
    "behind the tokens": ([1, NO_TOKEN], [Span(1, 2, 3)]),
    "empty": ([1, 2], [Span(1, 0, 1)]),
    "twice": ([NO_TOKEN, NO_TOKEN], [Span(0, 2, 2), Span(0, 2, 2)]),
    "a wrong end": ([1, NO_TOKEN], [Span(1, 1, 7)]),
    "short positions": ([1, NO_TOKEN], [Span(1, 1, 2, bytes(8))]),
    "positions before": ([1, NO_TOKEN], [Span(1, 1, 1, bytes(12))]),
    "positions behind": ([NO_TOKEN], [Span(0, 1, 65536, b"\xff\xff\0\0" * 3)]),
}


@pytest.mark.parametrize("lie", LIES)
def test_spans_that_cannot_be(lie: str) -> None:
    tokens, spans = LIES[lie]
    assert not are_spans_of(spans, tokens, N_CTX)


def test_spans_that_can_be() -> None:
    axes = grid(1, 2, 2)[:3]
    given = Embeddings(HostAddr(0), 4, 8, axes)
    span = Span.of(given, 1, 1)
    assert span == Span(1, 4, 3, axes.tobytes())
    assert are_spans_of([span, Span(6, 1, 5)], [9, *[NO_TOKEN] * 4, 3, NO_TOKEN], N_CTX)
    assert [position_of([span], row) for row in (0, 5, 6)] == [0, 3, 4]
    assert cut_span([span], 3) is span
    assert cut_span([span], 1) is cut_span([span], 5) is None
