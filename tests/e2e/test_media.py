"""Pictures and sounds through the ABI: the bits are those of libmtmd and libllama.

A guest is told by the test what to call. What it holds afterwards is forked, saved and restored.
"""

from __future__ import annotations

import ctypes
import io
import json
import struct
import wave
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wasmtime
from PIL import Image

from isthmus import Limits, Model, Runtime, abi
from isthmus.abi import Errno, MediaKind, PartKind, SpanFlag
from isthmus.actor.content import with_files
from isthmus.actor.host_api import HostApi
from isthmus.benchmarks.rival import Libllama
from isthmus.cli import main, talk
from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import (
    GuestError,
    IsthmusError,
    ModelFileError,
    ModelNotFound,
    ModelUnsupported,
    SnapshotInvalid,
    SnapshotMismatch,
)
from isthmus.model.media.medium import Bitmap
from isthmus.model.spans import Span
from isthmus.native._llama import Batch
from isthmus.native.mtmd import mtmd_of
from isthmus.snapshot import open_snapshot
from isthmus.snapshot.report import inspect
from tests.attacks.proxy import Proxy, proxy_wat
from tests.tiny_projector import KINDS, TEXTS, TinyProjector

N_CTX = 512
DATA, SESSION = 1 << 20, 2 << 20
PART, POSITIONS, ROWS = 4096, 8192, 16_384
BEFORE, AFTER = [70, 71, 72], [73, 74]
NEXT = [5, 200, 17]
EACH = pytest.mark.parametrize("kind", KINDS)
SEES = pytest.mark.parametrize("kind", ["gemma3", "qwen3vl"])


@dataclass
class Files:
    """A text model and its projector."""

    text: Path
    projector: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    folder = tmp_path_factory.mktemp("media")
    return {
        kind: Files(
            TEXTS[kind].write(folder / f"{kind}.gguf"),
            TinyProjector(kind).write(folder / f"{kind}-mmproj.gguf"),
        )
        for kind in KINDS
    }


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def load(shared: Runtime, files: dict[str, Files]) -> Callable[[str], Model]:
    loaded: dict[str, Model] = {}

    def find(kind: str) -> Model:
        if kind not in loaded:
            it = files[kind]
            loaded[kind] = shared.load_model(it.text, mmproj=it.projector)
        return loaded[kind]

    return find


@pytest.fixture(scope="module")
def wasm() -> bytes:
    return bytes(wasmtime.wat2wasm(proxy_wat()))


def bitmap_for(kind: str) -> Bitmap:
    random = np.random.default_rng(3)
    if kind == "ultravox":
        return Bitmap(MediaKind.PCM, random.uniform(-1, 1, 8000).astype(np.float32))
    return Bitmap(MediaKind.RGB, random.integers(0, 256, (61, 83, 3)).astype(np.uint8))


def libmtmd_says(device: Device, it: Files, bitmap: Bitmap) -> tuple[list[bytes], list[bytes]]:
    """(embeddings of each chunk, logits after the prompt and after each token of NEXT)."""
    mtmd = mtmd_of(device.library)
    helper = device.library.companion(
        "libmtmd",
        {
            "mtmd_helper_eval_chunk_single": (
                ctypes.c_int32,
                [*[ctypes.c_void_p] * 3, *[ctypes.c_int32] * 3, ctypes.c_bool, ctypes.c_void_p],
            )
        },
    )["mtmd_helper_eval_chunk_single"]
    settings = ModelSettings()
    with Libllama(device, it.text, N_CTX, settings) as rival:
        model = rival._model.handle
        projector = mtmd.mtmd_init_from_file(
            str(it.projector).encode(), model, mtmd.parameters(device.settings.n_threads)
        )
        height, width = (*bitmap.data.shape, 1)[:2]
        made = (
            mtmd.mtmd_bitmap_init(width, height, bitmap.data.ctypes.data)
            if bitmap.kind is MediaKind.RGB
            else mtmd.mtmd_bitmap_init_from_audio(height, bitmap.data.ctypes.data)
        )
        chunks = mtmd.mtmd_input_chunks_init()
        text, one = mtmd.marker(), (ctypes.c_void_p * 1)(made)
        assert not mtmd.mtmd_tokenize(
            projector, chunks, ctypes.addressof(text), ctypes.addressof(one), 1
        )
        rival.prefill(BEFORE)
        past = ctypes.c_int32(len(BEFORE))
        embeddings = []
        n_embd = device.library.llama_model_n_embd_inp(model)
        for i in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, i)
            n = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            place = ctypes.addressof(past)
            assert not helper(projector, rival.handle, chunk, past.value, 0, 512, False, place)
            if mtmd.mtmd_input_chunk_get_type(chunk):
                found = mtmd.mtmd_get_output_embd(projector)
                embeddings.append(ctypes.string_at(found, 4 * n * n_embd))
        logits = [after(rival, past, AFTER)]
        logits += [after(rival, past, [token]) for token in NEXT]
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(made)
        mtmd.mtmd_free(projector)
    return embeddings, logits


def after(rival: Libllama, past: ctypes.c_int32, tokens: list[int]) -> bytes:
    """libllama's logits after tokens at their positions."""
    n = len(tokens)
    ids, places = (
        (ctypes.c_int32 * n)(*tokens),
        (ctypes.c_int32 * n)(*range(past.value, past.value + n)),
    )
    batch = Batch(n, ctypes.addressof(ids), None, ctypes.addressof(places), None, None, None)
    assert not rival._library.llama_decode(rival.handle, batch)
    past.value += n
    return rival.logits.tobytes()


class Guest:
    """A guest with a session, which appends media."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.model = proxy.open_model()
        self.session = proxy.open_session(self.model, SESSION, N_CTX)
        assert self.session > 0

    def open(self, bitmap: Bitmap) -> int:
        self.proxy.write(DATA, bitmap.data.tobytes())
        height, width = (
            bitmap.data.shape[:2] if bitmap.kind is MediaKind.RGB else (1, bitmap.data.size)
        )
        return self.proxy.call("media_open", self.model, bitmap.kind, DATA, width, height)

    def info(self, medium: int, part: int) -> tuple[int, ...]:
        assert self.proxy.call("media_info", medium, part, PART) > part
        return abi.MEDIA_PART.unpack(self.proxy.read(PART, abi.MEDIA_PART.size))

    def tokens(self, tokens: list[int]) -> None:
        self.proxy.write(PART, struct.pack(f"<{len(tokens)}i", *tokens))
        assert self.proxy.call("prefill", self.session, PART, len(tokens)) == 0

    def embed(self, medium: int, part: int, count: int) -> bytes:
        found = self.proxy.call("media_embed", medium, part, ROWS, count, POSITIONS)
        assert found == count
        return self.proxy.read(ROWS, 4 * count)

    def append(self, bitmap: Bitmap) -> list[bytes]:
        """Its parts, with the tokens around it. The embeddings of those that have some."""
        medium, embeddings = self.open(bitmap), []
        assert medium > 0
        n_parts = self.proxy.call("media_info", medium, 0, PART)
        for number in range(n_parts):
            kind, n_rows, width, flags = self.info(medium, number)
            raw = self.embed(medium, number, n_rows * width)
            if kind == PartKind.TOKENS:
                self.tokens(list(struct.unpack(f"<{n_rows}i", raw)))
                continue
            embeddings.append(raw)
            given = (self.session, ROWS, n_rows, width, POSITIONS, flags)
            assert self.proxy.call("prefill_embeddings", *given) == 0
        assert self.proxy.call("media_close", medium) == 0
        return embeddings

    def logits(self) -> bytes:
        ptr = self.proxy.call("logits", self.session)
        return self.proxy.read(ptr, 4 * self.proxy.actor.sessions[0].layout.n_vocab)

    def decode(self, token: int) -> bytes:
        assert self.proxy.call("decode", self.session, token) == 0
        return self.logits()


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has media outlive a message: each call of the test is one."""
    monkeypatch.setattr(HostApi, "end_message", lambda _api: None)


def seen(shared: Runtime, wasm: bytes, model: Model, bitmap: Bitmap) -> tuple[Guest, list[bytes]]:
    """A guest that has seen a medium among tokens, and the embeddings of that."""
    guest = Guest(Proxy(shared, wasm, model))
    guest.tokens(BEFORE)
    embeddings = guest.append(bitmap)
    guest.tokens(AFTER)
    return guest, embeddings


@EACH
@pytest.mark.usefixtures("lasting")
def test_the_bits_are_those_of_libmtmd_and_libllama(
    kind: str,
    shared: Runtime,
    wasm: bytes,
    files: dict[str, Files],
    load: Callable[[str], Model],
) -> None:
    bitmap = bitmap_for(kind)
    embeddings, logits = libmtmd_says(shared.device, files[kind], bitmap)
    guest, found = seen(shared, wasm, load(kind), bitmap)
    assert found == embeddings
    assert [guest.logits(), *map(guest.decode, NEXT)] == logits
    guest.proxy.actor.close()


@EACH
@pytest.mark.usefixtures("lasting")
def test_forks_and_snapshots_go_on_exactly(
    kind: str, shared: Runtime, wasm: bytes, load: Callable[[str], Model], tmp_path: Path
) -> None:
    model = load(kind)
    guest, _ = seen(shared, wasm, model, bitmap_for(kind))
    actor = guest.proxy.actor
    fork = actor.fork()[0]
    path = tmp_path / "seen.safetensors"
    actor.snapshot(path)
    restored = shared.restore(path, models={"default": model}, tools={"echo": bytes})
    assert restored.restored is not None
    assert restored.restored.level == "exact"
    expected = [guest.decode(it) for it in NEXT]
    for it in (fork, restored):
        other = Guest.__new__(Guest)
        other.proxy, other.session = Proxy.of(it), guest.session
        assert [other.decode(token) for token in NEXT] == expected
        it.close()
    (session,) = inspect(open_snapshot(path)).sessions
    assert session.n_embedded == sum(it.n_rows for it in actor.sessions[0].spans) > 0
    assert session.n_tokens > session.n_embedded
    actor.close()


@pytest.mark.usefixtures("lasting")
def test_what_was_seen_is_not_replayed(
    shared: Runtime,
    wasm: bytes,
    files: dict[str, Files],
    load: Callable[[str], Model],
    tmp_path: Path,
) -> None:
    guest, _ = seen(shared, wasm, load("gemma3"), bitmap_for("gemma3"))
    path = tmp_path / "seen.safetensors"
    guest.proxy.actor.snapshot(path)
    guest.proxy.actor.close()
    other = shared.load_model(files["gemma3"].text, kv_type="f32")
    with pytest.raises(SnapshotMismatch, match="picture or a sound"):
        shared.restore(path, models={"default": other}, tools={"echo": bytes}, require="replayed")
    shared.unload_model(other)


LIES = {
    "a token that is none": [],
    "more rows than tokens": [Span(3, 400, 403)],
    "rows that are tokens": [Span(0, 6, 6)],
    "a position behind the context": [Span(3, 1, 99_999)],
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.usefixtures("lasting")
def test_a_snapshot_that_lies_about_what_was_seen(
    lie: str, shared: Runtime, wasm: bytes, load: Callable[[str], Model], tmp_path: Path
) -> None:
    model = load("gemma3")
    guest, _ = seen(shared, wasm, model, bitmap_for("gemma3"))
    guest.proxy.actor.sessions[0].spans[:] = LIES[lie]
    guest.proxy.actor.snapshot(tmp_path / "lie.safetensors")
    guest.proxy.actor.close()
    with pytest.raises(SnapshotInvalid):
        shared.restore(
            tmp_path / "lie.safetensors", models={"default": model}, tools={"echo": bytes}
        )


def test_limits_of_media_are_saved(shared: Runtime, wasm: bytes, tmp_path: Path) -> None:
    for limits, version in ((Limits(), 2), (Limits(media=2, media_seconds=5), 6)):
        proxy = Proxy(shared, wasm, limits=limits)
        proxy.actor.snapshot(tmp_path / "a.safetensors")
        proxy.actor.close()
        snapshot = open_snapshot(tmp_path / "a.safetensors")
        assert snapshot.manifest.format_version == version
        restored = shared.restore(tmp_path / "a.safetensors", tools={"echo": bytes})
        assert restored.limits.media == limits.media
        assert restored.limits.media_seconds == limits.media_seconds
        restored.close()


def test_a_medium_ends_with_its_message(
    shared: Runtime, wasm: bytes, load: Callable[[str], Model]
) -> None:
    guest = Guest(Proxy(shared, wasm, load("gemma3")))
    for _ in range(6):  # more than may be open at once
        medium = guest.open(bitmap_for("gemma3"))
        assert medium > 0
        assert guest.proxy.call("media_info", medium, 0, PART) == -Errno.EBADF
    guest.proxy.actor.close()


@pytest.mark.usefixtures("lasting")
def test_what_a_guest_may_not(shared: Runtime, wasm: bytes, load: Callable[[str], Model]) -> None:
    limits = Limits(media=1, media_pixels=6000, media_seconds=1)
    guest = Guest(Proxy(shared, wasm, load("gemma3"), limits=limits))
    opened, call = guest.open, guest.proxy.call
    picture, rgb = bitmap_for("gemma3"), MediaKind.RGB
    small = Bitmap(rgb, picture.data[:50, :50].copy())
    assert call("media_open", guest.model, 3, DATA, 4, 4) == -Errno.EINVAL
    assert call("media_open", guest.model, rgb, DATA, 0, 4) == -Errno.EINVAL
    assert call("media_open", guest.model, rgb, DATA, 83, 83) == -Errno.ELIMIT
    assert call("media_open", guest.model, rgb, DATA, 2**31, 2**31) == -Errno.ELIMIT
    assert call("media_open", guest.model, rgb, 2**32 - 4096, 50, 50) == -Errno.EFAULT
    assert call("media_open", guest.model, rgb, DATA, 1, 100) == -Errno.EINVAL  # too long
    assert call("media_open", guest.model, MediaKind.PCM, DATA, 16_000, 1) == -Errno.ENOTSUP
    assert call("media_rate", guest.model) == -Errno.ENOTSUP
    medium = opened(small)
    assert medium > 0
    assert opened(small) == -Errno.ELIMIT
    n_parts = call("media_info", medium, 0, PART)
    assert call("media_info", medium, n_parts, PART) == -Errno.EINVAL
    assert call("media_embed", medium, 1, ROWS, 3, POSITIONS) == 4 * 64  # too little room
    assert call("media_embed", medium, 1, ROWS + 4, 256, POSITIONS) == -Errno.EALIGN
    assert call("media_embed", medium, 1, SESSION, 256, POSITIONS) == -Errno.EBUSY
    assert call("prefill_embeddings", guest.session, ROWS, 4, 63, 0, 0) == -Errno.EINVAL
    assert call("prefill_embeddings", guest.session, ROWS, 0, 64, 0, 0) == -Errno.EINVAL
    assert call("prefill_embeddings", guest.session, ROWS, 4, 64, 0, 4) == -Errno.EINVAL
    assert call("prefill_embeddings", guest.session, ROWS, 600, 64, 0, 0) == -Errno.ECONTEXT
    assert call("prefill_embeddings", guest.session, SESSION, 4, 64, 0, 0) == -Errno.EBUSY
    placed = (guest.session, ROWS, 4, 64, POSITIONS, SpanFlag.PLACED)
    assert call("prefill_embeddings", *placed) == -Errno.ENOTSUP
    assert call("session_length", guest.session) == 0
    assert call("media_close", medium) == 0
    assert call("media_close", medium) == -Errno.EBADF
    guest.proxy.actor.close()


# ---------------------------------------------------------------------- projector files


def test_a_projector_for_another_model(
    shared: Runtime, files: dict[str, Files], tmp_path: Path
) -> None:
    wide = TinyProjector("gemma3", width=128).write(tmp_path / "wide.gguf")
    with pytest.raises(ModelUnsupported, match=r"n_embd = 128\); hint: "):
        shared.load_model(files["gemma3"].text, mmproj=wide)


def test_projector_files_that_are_none(
    shared: Runtime, files: dict[str, Files], tmp_path: Path
) -> None:
    text, good = files["gemma3"].text, files["gemma3"].projector.read_bytes()
    with pytest.raises(ModelNotFound, match="no projector file"):
        shared.load_model(text, mmproj=tmp_path / "missing.gguf")
    with pytest.raises(ModelFileError):
        shared.load_model(text, mmproj=text)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(good[: len(good) // 2])
    with pytest.raises(ModelFileError):
        shared.load_model(text, mmproj=cut)


def test_a_projector_that_ends_the_process(
    shared: Runtime, files: dict[str, Files], tmp_path: Path
) -> None:
    """It ends the one in which it is tried."""
    bad = TinyProjector("qwen3vl", without=("v.patch_embd.bias",)).write(tmp_path / "bad.gguf")
    with pytest.raises(ModelFileError, match="ended the process in which the library tried it"):
        shared.load_model(files["qwen3vl"].text, mmproj=bad)


def test_own_graphs_take_no_places(shared: Runtime, files: dict[str, Files]) -> None:
    it = files["qwen3vl"]
    with pytest.raises(ModelUnsupported, match="--graph adopted"):
        shared.load_model(it.text, mmproj=it.projector, graph="own")


def test_a_model_without_a_projector(shared: Runtime, wasm: bytes, files: dict[str, Files]) -> None:
    model = shared.load_model(files["gemma3"].text)
    guest = Guest(Proxy(shared, wasm, model))
    assert guest.open(bitmap_for("gemma3")) == -Errno.ENOTSUP
    assert guest.proxy.call("media_rate", guest.model) == -Errno.ENOTSUP
    shared.unload_model(model)


# ---------------------------------------------------------------------- bundled guests


def png_of(bitmap: Bitmap) -> bytes:
    file = io.BytesIO()
    Image.fromarray(bitmap.data).save(file, "PNG")
    return file.getvalue()


def wav_of(bitmap: Bitmap) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes((bitmap.data * 30_000).astype("<i2").tobytes())
    return file.getvalue()


def file_for(kind: str) -> bytes:
    return (wav_of if kind == "ultravox" else png_of)(bitmap_for(kind))


ARGS = ["n_ctx=512", "max_tokens=6", "temperature=0"]


@EACH
def test_chat_sees_and_goes_on(
    kind: str, shared: Runtime, load: Callable[[str], Model], tmp_path: Path
) -> None:
    """What it says depends on the picture; so does a fork, and one that was saved."""
    model = load(kind)
    actor = shared.spawn("chat", models={"default": model}, args=ARGS, seed=0)
    file = file_for(kind)
    first = actor.send(with_files("What is it?", file))
    seen = actor.sessions[0].spans
    assert sum(it.n_rows for it in seen) > 0
    path = tmp_path / "chat.safetensors"
    actor.snapshot(path)
    again = shared.restore(path, models={"default": model})
    fork = actor.fork()[0]
    answers = [it.send("And now?").text for it in (actor, fork, again)]
    assert len({*answers}) == 1
    assert all(it.sessions[0].spans == seen for it in (actor, fork, again))
    blind = shared.spawn("chat", models={"default": model}, args=ARGS, seed=0)
    blind.send("What is it?")
    assert blind.sessions[0].n_tokens < actor.sessions[0].n_tokens
    assert first.n_tokens > sum(it.n_rows for it in seen)
    for it in (actor, fork, again, blind):
        it.close()


def test_chat_keeps_files_and_replays_them(
    shared: Runtime, load: Callable[[str], Model], files: dict[str, Files], tmp_path: Path
) -> None:
    it, kind = files["gemma3"], "gemma3"
    actor = shared.spawn("chat", models={"default": load(kind)}, args=ARGS, seed=0)
    actor.send(with_files("What is it?", file_for(kind)))
    n_rows = sum(span.n_rows for span in actor.sessions[0].spans)
    path = tmp_path / "chat.safetensors"
    actor.snapshot(path)
    actor.close()
    other = shared.load_model(it.text, mmproj=it.projector, kv_type="f32")
    again = shared.restore(path, models={"default": other}, require="replayed")
    assert again.restored is not None
    assert again.restored.level == "replayed"
    again.send("And now?")
    assert sum(span.n_rows for span in again.sessions[0].spans) == n_rows
    again.close()
    shared.unload_model(other)


def test_by_the_command_line(
    files: dict[str, Files], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    it, picture = files["gemma3"], tmp_path / "p.png"
    picture.write_bytes(file_for("gemma3"))
    asked = ["run", "chat", "--model", str(it.text), "--device", "cpu", "--json", "--message", "x"]
    asked += ["--arg", "max_tokens=2", "--arg", "n_ctx=512"]
    sees = [*asked, "--mmproj", str(it.projector)]
    assert main([*sees, "--image", str(picture)]) == 0
    seen = json.loads(capsys.readouterr().out)["usage"]["tokens_in"]
    assert main(sees) == 0
    assert seen > json.loads(capsys.readouterr().out)["usage"]["tokens_in"]
    for options, said in (
        ((*asked, "--image", str(picture)), "loaded without a projector"),
        ((*sees, "--image", str(tmp_path / "none.png")), "cannot read the file"),
        ((*asked, "--mmproj", f"other={it.projector}"), "there is no model 'other'"),
    ):
        assert main(list(options)) == 2
        assert said in capsys.readouterr().err


def test_chat_of_the_terminal_takes_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (picture := tmp_path / "p.png").write_bytes(b"a picture")
    sent: list[str | bytes] = []
    monkeypatch.setattr(talk, "print_answer", lambda message, _: sent.append(message))
    told = {"state": "idle", "answer_so_far": None, "stream": lambda message: message}
    actor: Any = SimpleNamespace(close=lambda: None, **told)
    conversation = talk.Talk(None, Namespace(system=None), lambda _: actor, None)  # type: ignore[arg-type]
    conversation.start()
    conversation.files = [b"first"]
    for text in ("hello", f"/image {picture}", "/image nowhere.png", "look", "/new", "bye"):
        conversation.hear(text)
    assert sent == [with_files("hello", b"first"), with_files("look", b"a picture"), "bye"]


def test_chat_takes_a_bad_file_back(shared: Runtime, load: Callable[[str], Model]) -> None:
    actor = shared.spawn("chat", models={"default": load("gemma3")}, args=ARGS, seed=0)
    actor.send("Hello")
    n_tokens = actor.sessions[0].n_tokens
    for bad in (b"\x89PNG\r\n\x1a\n" + bytes(50), b"nothing", wav_of(bitmap_for("ultravox"))):
        with pytest.raises(IsthmusError):
            actor.send(with_files("What is it?", bad))
    for broken in (b"\0", b"\0\xff\xff\xff\xff", b"\0\4\0\0\0ab"):
        with pytest.raises(GuestError):
            actor.send(broken)
    assert actor.sessions[0].n_tokens == n_tokens
    actor.send(with_files("What is it?", file_for("gemma3")))
    actor.close()
