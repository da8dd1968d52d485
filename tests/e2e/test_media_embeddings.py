"""Embeddings of pictures and sounds: their bits are those of libmtmd and libllama."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from isthmus import Limits, Model, Runtime
from isthmus.abi import MediaKind
from isthmus.actor import Actor
from isthmus.actor.content import with_files
from isthmus.errors import IsthmusError, ModelUnsupported
from isthmus.model.media.medium import Bitmap
from isthmus.model.shape.hparams import Pooling
from isthmus.native._llama import Batch
from isthmus.native.loader import Library
from isthmus.native.mtmd import Mtmd, mtmd_of
from tests.e2e.test_media import bitmap_for, file_for
from tests.tiny_projector import KINDS, TEXTS, TinyProjector

N_CTX = 512
TEXT = "What is it?"
_HELPER = "mtmd_helper_eval_chunk_single"
Vector = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def load(
    shared: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Pooling], Model]:
    folder = tmp_path_factory.mktemp("embeddings")
    loaded: dict[tuple[str, Pooling], Model] = {}

    def find(kind: str, pooling: Pooling) -> Model:
        if (kind, pooling) not in loaded:
            recipe = replace(TEXTS[kind], overrides={"pooling_type": pooling.value})
            text = recipe.write(folder / f"{kind}-{pooling.name}.gguf")
            projector = TinyProjector(kind).write(folder / f"{kind}-mmproj.gguf")
            loaded[kind, pooling] = shared.load_model(text, mmproj=projector, graph="adopted")
        return loaded[kind, pooling]

    return find


def embedder(runtime: Runtime, model: Model, **how: object) -> Actor:
    args = {"output": "f32", "normalise": 0}
    return runtime.spawn("embed", models={"default": model}, args=args, **how)  # type: ignore[arg-type]


def embedded(actor: Actor, *files: bytes, text: str = TEXT) -> Vector:
    message = with_files(text, *files) if files else text
    return np.frombuffer(actor.send(message).data, np.float32)


def context_of(library: Library, model: int) -> int:
    """One that leaves the embedding of the last token."""
    params = library.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = N_CTX
    params.embeddings, params.pooling_type = True, Pooling.LAST
    params.n_threads = params.n_threads_batch = 2
    params.flash_attn_type = 1
    return int(library.llama_init_from_model(model, params))


def shown_by(mtmd: Mtmd, bitmap: Bitmap) -> int:
    """The library's own bitmap."""
    height, width = (*bitmap.data.shape, 1)[:2]
    return int(
        mtmd.mtmd_bitmap_init(width, height, bitmap.data.ctypes.data)
        if bitmap.kind is MediaKind.RGB
        else mtmd.mtmd_bitmap_init_from_audio(height, bitmap.data.ctypes.data)
    )


def libllama_says(model: Model, bitmap: Bitmap, projector: Path) -> Vector:
    """The embedding of what the guest embeds, by the library's own loop over the chunks."""
    library, mtmd = model.device.library, mtmd_of(model.device.library)
    signature = (
        ctypes.c_int32,
        [*[ctypes.c_void_p] * 3, *[ctypes.c_int32] * 3, ctypes.c_bool, ctypes.c_void_p],
    )
    helper = library.companion("libmtmd", {_HELPER: signature})[_HELPER]
    loaded = model._embedder._model  # type: ignore[attr-defined]
    context = context_of(library, loaded.handle)
    made = mtmd.mtmd_init_from_file(str(projector).encode(), loaded.handle, mtmd.parameters(2))
    shown = shown_by(mtmd, bitmap)
    chunks = mtmd.mtmd_input_chunks_init()
    marker, one = mtmd.marker(), (ctypes.c_void_p * 1)(shown)
    assert not mtmd.mtmd_tokenize(made, chunks, ctypes.addressof(marker), ctypes.addressof(one), 1)
    past = ctypes.c_int32(0)

    def tell(tokens: list[int]) -> None:
        ids, at = np.array(tokens, np.int32), np.arange(len(tokens), dtype=np.int32) + past.value
        batch = Batch(len(ids), ids.ctypes.data, None, at.ctypes.data, None, None, None)
        assert not library.llama_decode(context, batch)
        past.value += len(ids)

    ids = model.tokenizer.encode(TEXT, add_special=True)
    begins = bool(ids) and ids[0] == model.tokenizer.bos
    if begins:
        tell(ids[:1])
    for i in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, i)
        assert not helper(made, context, chunk, past.value, 0, N_CTX, False, ctypes.addressof(past))
    tell(ids[begins:])
    found = library.llama_get_embeddings_seq(context, 0)
    values = np.ctypeslib.as_array(
        (ctypes.c_float * model.hparams.n_embd).from_address(found)
    ).copy()
    mtmd.mtmd_input_chunks_free(chunks)
    mtmd.mtmd_bitmap_free(shown)
    mtmd.mtmd_free(made)
    library.llama_free(context)
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_libllamas(
    kind: str, shared: Runtime, load: Callable[[str, Pooling], Model]
) -> None:
    model, file = load(kind, Pooling.LAST), file_for(kind)
    projector = model._projector
    assert projector is not None
    with embedder(shared, model) as actor:
        found = embedded(actor, file)
        heard = bitmap_for(kind)
        if heard.kind is MediaKind.PCM:  # as a file with 16 bits of each sample has it
            samples = (heard.data * 30_000).astype(np.int16).astype(np.float32) * np.float32(2**-15)
            heard = Bitmap(MediaKind.PCM, samples)
        assert found.tobytes() == libllama_says(model, heard, projector.path).tobytes()
        alone = embedded(actor)
        assert (alone != found).any()
        assert np.array_equal(
            alone, model.embed([model.tokenizer.encode(TEXT)], normalised=False)[0]
        )
        assert embedded(actor, file).tobytes() == found.tobytes()
        assert (embedded(actor, file, text="") != found).any()
        (fork,) = actor.fork()
        with fork:
            assert embedded(fork, file).tobytes() == found.tobytes()


def test_files_that_are_none_lose_nothing(
    shared: Runtime, load: Callable[[str, Pooling], Model]
) -> None:
    model = load("gemma3", Pooling.LAST)
    file = file_for("gemma3")
    with embedder(shared, model) as actor:
        before = embedded(actor, file)
        for wrong in (b"nothing", file[:60], file_for("ultravox")):
            with pytest.raises(IsthmusError):
                embedded(actor, wrong)
        with pytest.raises(IsthmusError):
            actor.send(b"\0\xff\xff\xff\xff")
        for _ in range(6):  # each closes what it opened
            assert embedded(actor, file).tobytes() == before.tobytes()
        assert embedded(actor, file, file).tobytes() != before.tobytes()
        with pytest.raises(IsthmusError, match="media"):
            embedded(actor, *[file] * 5)
    few = Limits(tokens_in=8)
    with embedder(shared, model, limits=few) as actor, pytest.raises(IsthmusError, match="tokens"):
        embedded(actor, file, file)


def test_models_that_embed_text_alone(
    shared: Runtime, load: Callable[[str, Pooling], Model], tmp_path: Path
) -> None:
    pooled = load("gemma3", Pooling.MEAN)
    recipe = replace(TEXTS["gemma3"], overrides={"pooling_type": Pooling.LAST.value})
    text = recipe.write(tmp_path / "text.gguf")
    own = shared.load_model(text, mmproj=pooled._projector.path, graph="own")  # type: ignore[union-attr]
    for model, said in ((pooled, "pooling_type 3"), (own, "--graph adopted")):
        with embedder(shared, model) as actor:
            embedded(actor)
            with pytest.raises(IsthmusError, match=said):
                embedded(actor, file_for("gemma3"))
        with pytest.raises(ModelUnsupported, match=said):
            model.require_embeddable_parts([])
    shared.unload_model(own)
