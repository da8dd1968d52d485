"""Every architecture against libllama on the same file: logits equal to the byte, in every way.

The weights are quantised, as people's are, so that steps of several sessions are one pass.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from isthmus import Runtime
from isthmus.benchmarks.rival import Libllama
from isthmus.config import KV_TYPES, ModelSettings
from isthmus.device import Device
from isthmus.errors import ModelFileError, ModelUnsupported
from isthmus.memory import Region
from isthmus.model import Model, Session, open_model
from isthmus.model.jobs import finish
from isthmus.model.own.session import own
from isthmus.model.passes.forward import Pass
from isthmus.model.step import Chunk, Step
from isthmus.native._ggml import GgmlType
from isthmus.native.loader import Library
from isthmus.units import GIB, MIB, GuestPtr
from tests.model.test_exactness import opened, random_tokens
from tests.tiny_gguf import COMBINED, RECIPES, TinyLlama, TinyModel

q8 = partial(TinyModel, quantisation="Q8_0")
CASES = {name: q8(name) for name in RECIPES | COMBINED} | {
    "llama, experts": q8(experts=True),
    "qwen3, fused": TinyModel("qwen3", fused_qkv=True, quantisation="Q8_0"),
    "gemma2, the scale of 27B": TinyModel("gemma2", n_layer=46, n_embd=96, quantisation="Q8_0"),
    "gemma3, no window": TinyModel(
        "gemma3", overrides={"attention.sliding_window": 0}, quantisation="Q8_0"
    ),
    "gemma3, layers listed": TinyModel(
        "gemma3",
        overrides={"attention.sliding_window_pattern": [False, True, True, False]},
        quantisation="Q8_0",
    ),
    "phi3, short": TinyModel(
        "phi3", overrides={"rope.scaling.original_context_length": 1024}, quantisation="Q8_0"
    ),
    "phi3, heads of 96": TinyModel("phi3", n_embd=384, head_dim=96, quantisation="Q8_0"),
    "granite, no rope": TinyModel(
        "granite", overrides={"rope.scaling.finetuned": False}, quantisation="Q8_0"
    ),
    "granitehybrid, experts": TinyModel("granitehybrid", experts=True, quantisation="Q8_0"),
    "granitehybrid, a shared expert": q8(
        "granitehybrid", experts=True, overrides={"expert_shared_feed_forward_length": 96}
    ),
    "nemotron_h_moe, no latent": q8(
        "nemotron_h_moe", n_embd=32, without=("ffn_latent_down", "ffn_latent_up")
    ),
    "falcon, one norm": TinyModel(
        "falcon", without=("attn_norm_2",), n_head_kv=1, quantisation="Q8_0"
    ),
    "gpt-oss, MXFP4": TinyModel("gpt-oss", quantisation="MXFP4"),
    "glm4, several axes": TinyModel(
        "glm4", overrides={"rope.dimension_sections": [3, 2, 2, 1]}, quantisation="Q8_0"
    ),
    "mistral3, plain": TinyModel(
        "mistral3",
        overrides={
            "attention.temperature_scale": 0.0,
            "rope.scaling.yarn_log_multiplier": 0.0,
            "rope.scaling.factor": 7.3,
        },
        quantisation="Q8_0",
    ),
    "mistral3, experts": TinyModel("mistral3", experts=True, quantisation="Q8_0"),
    "olmo2, no window": TinyModel(
        "olmo2", overrides={"attention.sliding_window": 0}, quantisation="Q8_0"
    ),
    "gemma4, dense": TinyModel("gemma4", variant="gemma4, dense", quantisation="Q8_0"),
    "glm4moe, several axes": TinyModel(
        "glm4moe",
        without=("attn_q_norm", "attn_k_norm"),
        overrides={"rope.dimension_sections": [3, 2, 2, 1], "expert_weights_norm": False},
        quantisation="Q8_0",
    ),
    "deepseek2, expanded": TinyModel(
        "deepseek2", variant="deepseek2, expanded", quantisation="Q8_0"
    ),
    "qwen3moe, groups": TinyModel(
        "qwen3moe",
        overrides={"expert_group_count": 4, "expert_group_used_count": 3},
        quantisation="Q8_0",
    ),
    "qwen3moe, one expert": TinyModel(
        "qwen3moe", overrides={"expert_used_count": 1}, quantisation="Q8_0"
    ),
}
N_CTX = 768
FAMILIES = pytest.mark.parametrize("name", RECIPES)
STATEFUL = [name for name, recipe in RECIPES.items() if recipe.mixed]
"""Those of which a session goes back to checkpoints only: see test_states.py."""
TRUNCATED = [name for name in RECIPES if name not in STATEFUL]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("architectures")
    return {name: case.write(folder / f"{name}.gguf") for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_chunked_prefill_and_200_greedy_tokens(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    settings = ModelSettings(prefill_chunk=128)
    with (
        opened(device, files[name], settings, N_CTX) as (model, session),
        Libllama(device, files[name], N_CTX, settings) as rival,
    ):
        prompt = random_tokens(400, model.n_vocab)  # 128, 128, 128, 16; a window moves eight times
        model.prefill(session, prompt)
        rival.prefill(prompt)
        assert 0.05 < session.logits.std() < 20
        for _ in range(200 if name in RECIPES else 20):  # the cache's rows pass 512 on the way
            assert session.logits.tobytes() == rival.logits.tobytes()
            token = int(np.argmax(rival.logits))
            model.decode(session, token)
            rival.decode(token)
        assert session.logits.tobytes() == rival.logits.tobytes()


@FAMILIES
@pytest.mark.parametrize("chunk", [48, 512])
def test_each_chunk_size_has_the_bits_of_libllama_with_the_same(
    name: str, chunk: int, device: Device, files: dict[str, Path]
) -> None:
    settings = ModelSettings(prefill_chunk=chunk)
    with (
        opened(device, files[name], settings, N_CTX) as (model, session),
        Libllama(device, files[name], N_CTX, settings) as rival,
    ):
        prompt = random_tokens(400, model.n_vocab)
        model.prefill(session, prompt)
        rival.prefill(prompt)
        assert session.logits.tobytes() == rival.logits.tobytes()


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma4", "gpt-oss", "olmo2"])
def test_a_window_has_the_bits_of_a_cache_that_keeps_no_more(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    settings = ModelSettings(prefill_chunk=128)
    with (
        opened(device, files[name], settings, N_CTX) as (model, session),
        Libllama(device, files[name], N_CTX, settings, swa_full=False) as rival,
    ):
        prompt = random_tokens(400, model.n_vocab)
        model.prefill(session, prompt)
        rival.prefill(prompt)
        for token in random_tokens(100, model.n_vocab, seed=1):
            assert session.logits.tobytes() == rival.logits.tobytes()
            model.decode(session, token)
            rival.decode(token)


@FAMILIES
def test_deterministic_bits_do_not_depend_on_the_chunk_size(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    results = []
    for chunk in (37, 512):
        settings = ModelSettings(deterministic=True, prefill_chunk=chunk)
        with opened(device, files[name], settings, N_CTX) as (model, session):
            model.prefill(session, random_tokens(150, model.n_vocab))
            model.decode(session, 3)
            results.append(session.logits.tobytes())
    assert results[0] == results[1]


@contextmanager
def several(
    device: Device, path: Path, n: int, settings: ModelSettings | None = None
) -> Iterator[tuple[Model, list[Session]]]:
    """A model and `n` sessions, each in a memory of its own."""
    with ExitStack() as stack:
        model = open_model(device, path, settings or ModelSettings())
        stack.callback(model.close)
        sessions = []
        for _ in range(n):
            region = Region.reserve(1 * GIB, nbytes=64 * MIB)
            stack.callback(region.close)
            binding = device.bind(region)
            stack.callback(binding.close)
            session = model.open_session(region, binding, GuestPtr(4096), model.layout(N_CTX))
            stack.callback(session.close)
            sessions.append(session)
        yield model, sessions


@pytest.mark.parametrize("name", [*RECIPES, "llama, experts"])
def test_a_batch_has_the_bits_of_each_alone(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    with several(device, files[name], 6) as (model, sessions):
        assert len(model.widths.classes) == 1
        together, alone = sessions[:3], sessions[3:]
        lengths = (20, 240, 100)  # before a window moves, at a step of the cache, and after
        for pair, length in zip(zip(together, alone, strict=True), lengths, strict=True):
            for session in pair:
                model.prefill(session, random_tokens(length, model.n_vocab, seed=length))
        for step in range(40):
            tokens = random_tokens(3, model.n_vocab, seed=step)
            for session, token in zip(alone, tokens, strict=True):
                model.decode(session, token)
            order = [(step + i) % 3 for i in range(3)] if step % 10 == 0 else [0, 1, 2]
            model.executor.decode_batch([Step(together[i], [tokens[i]]) for i in order])
            for one, other in zip(together, alone, strict=True):
                assert one.logits.tobytes() == other.logits.tobytes()


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2moe", "gpt-oss", "gemma4", "deepseek2"])
def test_sessions_at_equal_distances_are_attended_to_by_one_kernel(
    name: str, device: Device, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a card does it; in the deterministic mode each still has the bits that it has alone."""
    monkeypatch.setattr(type(device), "joins_sequences", True)
    settings = ModelSettings(exact=False, deterministic=True)
    places, lengths = (6, 1, 2, 3, 9, 12, 7), (20, 240, 100, 30, 200, 250, 90)
    with (
        Region.reserve(1 * GIB, nbytes=640 * MIB) as region,
        device.bind(region) as binding,
        closing(open_model(device, files[name], settings)) as model,
        ExitStack() as stack,
    ):
        sessions = []
        for place in (*places, *(20 + place for place in places)):
            ptr = GuestPtr(place * 16 * MIB)
            sessions.append(model.open_session(region, binding, ptr, model.layout(N_CTX)))
            stack.callback(sessions[-1].close)
        together, alone = sessions[: len(places)], sessions[len(places) :]
        for pair, length in zip(zip(together, alone, strict=True), lengths, strict=True):
            for session in pair:
                model.prefill(session, random_tokens(length, model.n_vocab, seed=length))
        for step in range(40):
            here = [0, 1, 2, 3, 4, 5, 6] if step % 9 else [3, 0, 5]
            tokens = random_tokens(len(places), model.n_vocab, seed=step)
            steps = [Step(together[i], [tokens[i]]) for i in here]
            model.executor.decode_batch(steps)
            for i in here:
                model.decode(alone[i], tokens[i])
                assert together[i].logits.tobytes() == alone[i].logits.tobytes()
        runs = {shape.runs for shape, *_ in model.executor._batches._cache.keys}
        assert runs == {(12,), (4,)}  # 1 to 12 without 4, 5, 8, 10, 11; and 3 to 12 without 9


def keys_and_values(session: Session) -> bytes:
    """Of the tokens that it holds, layer by layer."""
    rows = own(session).layout.rows(0, session.n_tokens)
    return b"".join(ctypes.string_at(session.base + at, nbytes) for at, nbytes in rows)


@pytest.mark.parametrize("name", [*TRUNCATED, "llama, experts"])
def test_many_tokens_at_once_have_the_bits_of_one_by_one(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    """Beside another session's, some of them taken back, over a step of the cache and a window."""
    with several(device, files[name], 3) as (model, (session, other, alone)):
        n_vocab, rows = model.n_vocab, np.zeros((31, model.n_vocab), np.float32)
        for each in (session, other, alone):
            model.prefill(each, random_tokens(30, n_vocab))
        for step in range(60):
            tokens = random_tokens(1 + step * 7 % 9, n_vocab, seed=step)
            steps = [Step(session, tokens, rows.ctypes.data), Step(other, [step])]
            model.executor.decode_batch(steps[: 1 + step % 2])
            for i, token in enumerate(tokens):
                model.decode(alone, token)
                here = rows[i] if i < len(tokens) - 1 else session.logits
                assert here.tobytes() == alone.logits.tobytes()
            assert keys_and_values(session) == keys_and_values(alone)
            if step % 3 == 0:
                for each in (session, alone):
                    each.truncate(each.n_tokens - len(tokens) // 2)
        assert session.n_tokens > 256


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncated_forked_and_restored_sessions(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    """Each goes on from the middle of the window's way as libllama does from there."""
    path = files[name]
    with (
        several(device, path, 3) as (model, (session, fork, spare)),
        Libllama(device, path, N_CTX, ModelSettings()) as rival,
    ):
        prompt = random_tokens(200, model.n_vocab)
        model.prefill(session, prompt)
        rival.prefill(prompt)
        for token in random_tokens(30, model.n_vocab, seed=1):
            model.decode(session, token)
            rival.decode(token)
        fork.copy_from(session, 210)
        session.truncate(210)
        rival.truncate(210)
        with resumed(model, session, spare) as restored:
            for token in random_tokens(70, model.n_vocab, seed=2):
                rival.decode(token)
                for each in (session, fork, restored):
                    model.decode(each, token)
                    assert each.logits.tobytes() == rival.logits.tobytes()


@contextmanager
def resumed(model: Model, source: Session, spare: Session) -> Iterator[Session]:
    """`source` again from a copy of its bytes: all that a snapshot keeps of a session."""
    ctypes.memmove(spare.base, source.base, source.layout.nbytes)
    place = (spare._region, spare.binding, spare.ptr, source.layout)
    spare.close()
    session = model.resume_session(*place, source.tokens.tolist(), has_logits=source.has_logits)
    try:
        yield session
    finally:
        session.close()


@pytest.mark.parametrize("name", ["gemma3", "qwen3moe", "falcon", "gpt-oss", "gemma4", "deepseek2"])
def test_an_agent_of_it_is_restored_and_forked_exactly(name: str, tmp_path: Path) -> None:
    path = TinyModel(name, quantisation="Q8_0", with_tokenizer=True).write(tmp_path / "x.gguf")
    with Runtime(device="cpu", threads=2) as runtime:
        model = runtime.load_model(path)
        actor = runtime.spawn("chat", models={"default": model}, seed=1, max_tokens=40)
        actor.send("A first message, longer than the window of forty-eight tokens that some see.")
        saved = actor.snapshot(tmp_path / "saved.safetensors")
        restored = runtime.restore(saved.path, models={"default": model})
        assert restored.restored is not None
        assert restored.restored.level == "exact"
        (fork,) = actor.fork(1)
        answers = {each.send("And another.").text for each in (actor, restored, fork)}
        assert len(answers) == 1
        caches = {
            bytes(
                (ctypes.c_ubyte * it.layout.kv_nbytes).from_address(it.base + it.layout.kv_offset)
            )
            for each in (actor, restored, fork)
            for it in each.body.sessions
        }
        assert len(caches) == 1


# ---------------------------------------------------------------------- the KV cache


@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "gemma3", "qwen3moe", "gpt-oss", "glm4moe", "deepseek2"]
)
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_every_kv_type(
    name: str,
    kv_type: str,
    device: Device,
    files: dict[str, Path],
) -> None:
    """f32 is within rounding: libllama makes f16 of such a cache before attention, we do not."""
    settings = ModelSettings(prefill_chunk=128, kv_type=kv_type)
    with (
        opened(device, files[name], settings, N_CTX) as (model, session),
        Libllama(device, files[name], N_CTX, settings) as rival,
    ):
        prompt = random_tokens(200, model.n_vocab)
        model.prefill(session, prompt)
        rival.prefill(prompt)
        for token in random_tokens(10, model.n_vocab, seed=1):
            model.decode(session, token)
            rival.decode(token)
            error = np.linalg.norm(session.logits - rival.logits) / np.linalg.norm(rival.logits)
            assert error == 0 if kv_type != "f32" else error < 0.05


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_quantised_cache_has_the_bits_of_libllama_without_rotation(
    kv_type: str, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    path = TinyModel(head_dim=64, quantisation="Q8_0").write(tmp_path / "x.gguf")
    settings = ModelSettings(kv_type=kv_type)
    with (
        opened(device, path, settings, N_CTX) as (model, session),
        Libllama(device, path, N_CTX, settings) as rival,
    ):
        prompt = random_tokens(100, model.n_vocab)
        model.prefill(session, prompt)
        rival.prefill(prompt)
        assert session.logits.tobytes() == rival.logits.tobytes()


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_kv_type_whose_blocks_do_not_fit_the_heads(
    kv_type: str, device: Device, tmp_path: Path
) -> None:
    path = TinyModel(head_dim=80).write(tmp_path / "x.gguf")
    with pytest.raises(ModelUnsupported, match=r"head size that is a multiple of 32.* has 80"):
        open_model(device, path, ModelSettings(kv_type=kv_type))


# ---------------------------------------------------------------------- the weights' types

UNKNOWN_TO_GGUF = {"I32", "I64"}
WEIGHT_TYPES = [
    it.name
    for it in GgmlType
    if it.name not in UNKNOWN_TO_GGUF and it.name in gguf.GGMLQuantizationType.__members__
]


SLOWLY_QUANTISED = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}
"""The library searches for their rows, which takes up to ten seconds: left to `make test-exact`."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(it, marks=pytest.mark.long) if it in SLOWLY_QUANTISED else it
        for it in WEIGHT_TYPES
    ],
)
def test_every_weight_type_equals_libllama(
    name: str, library: Library, device: Device, tmp_path: Path
) -> None:
    shape = {"n_layer": 1, "n_embd": 256, "n_head": 4, "head_dim": 64, "n_ff": 256, "n_vocab": 64}
    model = TinyModel(**shape, quantisation=name, quantise=quantise_by(library))
    path = model.write(tmp_path / "x.gguf")
    settings = ModelSettings(prefill_chunk=64)
    with (
        opened(device, path, settings, 256) as (model_, session),
        Libllama(device, path, 256, settings) as rival,
    ):
        prompt = random_tokens(100, model_.n_vocab)
        model_.prefill(session, prompt)
        rival.prefill(prompt)
        assert session.logits.tobytes() == rival.logits.tobytes()
        model_.decode(session, 5)
        rival.decode(5)
        assert session.logits.tobytes() == rival.logits.tobytes()
        assert np.isfinite(session.logits).all()
        assert session.logits.std() > 0


def quantise_by(library: Library):  # type: ignore[no-untyped-def]
    """The library's own quantiser: the `gguf` package has not all types."""
    chunk = ctypes.CDLL(str(library.path)).ggml_quantize_chunk
    chunk.restype, i64, pointer = ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p
    chunk.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]

    def quantise(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        values = np.ascontiguousarray(values, dtype=np.float32)
        n_rows, width = values.reshape(-1, values.shape[-1]).shape
        row_nbytes = library.ggml_row_size(int(kind), width)
        made = np.zeros((*values.shape[:-1], row_nbytes), dtype=np.uint8)
        importance = np.ones(width, dtype=np.float32)
        chunk(
            int(kind), values.ctypes.data, made.ctypes.data, 0, n_rows, width,
            importance.ctypes.data,
        )  # fmt: skip
        return made

    return quantise


@pytest.mark.parametrize("name", ["qwen3moe", "deepseek2"])
def test_repacked_experts_equal_libllama(name: str, device: Device, tmp_path: Path) -> None:
    path = TinyModel(name, n_embd=256, n_ff_expert=256, quantisation="Q4_0").write(
        tmp_path / "x.gguf"
    )
    settings = ModelSettings(repack=True, prefill_chunk=64)
    with (
        opened(device, path, settings) as (model, session),
        Libllama(device, path, 768, settings) as rival,
    ):
        prompt = random_tokens(100, model.n_vocab)
        model.prefill(session, prompt)
        rival.prefill(prompt)
        assert session.logits.tobytes() == rival.logits.tobytes()
        model.decode(session, 5)
        rival.decode(5)
        assert session.logits.tobytes() == rival.logits.tobytes()


# ---------------------------------------------------------------------- what is refused

REFUSED = {
    "more experts used than there are": (
        TinyModel("qwen3moe", overrides={"expert_used_count": 9}),
        ModelFileError,
        "takes 9 of 8 experts",
    ),
    "no expert used": (
        TinyModel("qwen3moe", overrides={"expert_used_count": 0}),
        ModelFileError,
        "expert_used_count is 0",
    ),
    "2^31 experts": (
        TinyModel("qwen3moe", overrides={"expert_count": 2**31}),
        ModelFileError,
        "expert_count is 2147483648; expected 0 to",
    ),
    "groups of which none is taken": (
        TinyModel("qwen3moe", overrides={"expert_group_count": 4}),
        ModelFileError,
        "no qwen3moe.expert_group_used_count",
    ),
    "groups with too few experts": (
        TinyModel("deepseek2", overrides={"expert_group_used_count": 1, "expert_used_count": 3}),
        ModelFileError,
        "takes 3 of 8 experts from 1 of 4 groups",
    ),
    "groups of different sizes": (
        TinyModel("deepseek2", overrides={"expert_group_count": 3}),
        ModelFileError,
        "of 3 groups, which is not possible",
    ),
    "a gate that nobody knows": (
        TinyModel("glm4moe", overrides={"expert_gating_func": 4}),
        ModelUnsupported,
        r"expert_gating_func 4 is not implemented; known are 1 \(softmax\), 2 \(sigmoid\)",
    ),
    "no experts after the dense layers": (
        TinyModel("glm4moe", overrides={"expert_count": 0, "expert_used_count": 0}),
        ModelUnsupported,
        "is not a mixture of experts",
    ),
    "heads for other layers": (
        TinyModel("gemma4", overrides={"attention.head_count": [4, 4, 2]}),
        ModelFileError,
        "attention.head_count is for 3 layers of 5",
    ),
    "a layer without heads": (
        TinyModel("gemma4", overrides={"attention.head_count": [4, 4, 0, 2, 4]}),
        ModelFileError,
        "attention.head_count is 0; expected 1",
    ),
    "heads that differ where they may not": (
        TinyModel("qwen3", overrides={"attention.head_count": [4, 2]}),
        ModelUnsupported,
        "head_count differs from layer to layer",
    ),
    "heads of a layer that cannot share": (
        TinyModel("gemma4", overrides={"attention.head_count_kv": [2, 2, 1, 3, 1]}),
        ModelFileError,
        "2 heads cannot share 3 key and value heads",
    ),
    "no pattern of windows": (
        TinyModel("gemma4", overrides={"attention.sliding_window_pattern": 2}),
        ModelFileError,
        "sliding_window_pattern is 2; expected a list with an element for each layer",
    ),
    "a window of nothing in some layers": (
        TinyModel("gemma4", overrides={"attention.sliding_window": 0}),
        ModelFileError,
        "sliding_window is 0; expected 1",
    ),
    "a cache shared with a layer of another kind": (
        TinyModel(
            "gemma4",
            overrides={"attention.sliding_window_pattern": [True, False, False, True, False]},
        ),
        ModelFileError,
        "layer 3 shares the cache of layer 1, which is of another shape or kind",
    ),
    "no cache of its own anywhere": (
        TinyModel("gemma4", overrides={"attention.shared_kv_layers": 5}),
        ModelFileError,
        "no layer of 5 has a cache of its own",
    ),
    "more rotated in a window than there is": (
        TinyModel("gemma4", overrides={"rope.dimension_count_swa": 48}),
        ModelUnsupported,
        "48 rotary dimensions of heads of 32",
    ),
    "a latent of another size": (
        TinyModel("deepseek2", overrides={"attention.key_length": 128}),
        ModelFileError,
        "1 keys of 128 and values of 64 do not fit a latent of 64 and 32",
    ),
    "nothing but rotary dimensions": (
        TinyModel("deepseek2", overrides={"attention.key_length_mla": 32}),
        ModelFileError,
        "32 rotary dimensions of heads of 32",
    ),
    "a temperature that never changes": (
        TinyModel(
            "deepseek2",
            overrides={"attention.temperature_scale": 0.1, "attention.temperature_length": 0},
        ),
        ModelFileError,
        "temperature_length is 0; expected 1",
    ),
    "experts without experts": (
        TinyModel("qwen3moe", overrides={"expert_count": 0, "expert_used_count": 0}),
        ModelUnsupported,
        "is not a mixture of experts",
    ),
    "a pattern for other layers": (
        TinyModel("gemma3", overrides={"attention.sliding_window_pattern": [True, False]}),
        ModelFileError,
        "for 2 layers of 4",
    ),
    "a part of each head rotated": (
        TinyModel("qwen2", overrides={"rope.dimension_count": 16}),
        ModelUnsupported,
        "16 rotary dimensions of heads of 32",
    ),
    "more rotated than there is": (
        TinyModel("phi3", overrides={"rope.dimension_count": 64}),
        ModelUnsupported,
        "64 rotary dimensions of heads of 32",
    ),
    "logits divided by 0": (
        TinyModel("granite", overrides={"logit_scale": 0.0}),
        ModelFileError,
        "logit_scale is 0",
    ),
    "a flag that is a number": (
        TinyModel("granite", overrides={"rope.scaling.finetuned": 2}),
        ModelFileError,
        "2, not a boolean",
    ),
    "a window of nothing": (
        TinyModel("gpt-oss", overrides={"attention.sliding_window": 0}),
        ModelFileError,
        "sliding_window is 0; expected 1",
    ),
    "sinks missing": (
        TinyModel("gpt-oss", without=("attn_sinks",)),
        ModelFileError,
        "no tensor blk.0.attn_sinks.weight",
    ),
    "no axes of positions": (
        TinyModel("qwen3vl", overrides={"rope.dimension_sections": [16, 0, 0, 0]}),
        ModelFileError,
        "no rope.dimension_sections for time and height",
    ),
    "three axes": (
        TinyModel("qwen3vl", overrides={"rope.dimension_sections": [6, 5, 5]}),
        ModelFileError,
        r"rope.dimension_sections is \(6, 5, 5\); expected four whole numbers",
    ),
    "no layers that compute": (
        TinyModel("glm4", overrides={"nextn_predict_layers": 2}),
        ModelFileError,
        "2 drafting layers leave none",
    ),
    "a norm missing": (
        TinyModel("gemma2", without=("post_ffw_norm",)),
        ModelFileError,
        "no tensor blk.0.post_ffw_norm.weight",
    ),
    "a norm too many": (
        TinyModel("qwen2", extra_tensors=("blk.0.attn_q_norm.weight",)),
        ModelUnsupported,
        "does not know, such as blk.0.attn_q_norm.weight",
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


def test_layers_that_draft_are_left_out(device: Device, tmp_path: Path) -> None:
    """A file of two layers, the last of which drafts, has the bits of one without that layer."""
    model = TinyModel(
        "glm4",
        n_layer=2,
        overrides={"nextn_predict_layers": 1},
        extra_tensors=("blk.1.nextn.enorm.weight",),
        quantisation="Q8_0",
    )
    shorter = replace(model, n_layer=1, overrides={}, extra_tensors=())
    logits = []
    for i, each in enumerate((model, shorter)):
        path = each.write(tmp_path / f"{i}.gguf")
        with opened(device, path, ModelSettings(), N_CTX) as (ours, session):
            assert ours.hparams.n_layer == 1
            ours.prefill(session, random_tokens(40, ours.n_vocab))
            logits.append(session.logits.tobytes())
    assert logits[0] == logits[1]


def test_biases_of_experts_that_are_not_f32_are_refused(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf.GGUFWriter.add_tensor

    def add_halved(writer: gguf.GGUFWriter, name: str, values: np.ndarray, **how: Any) -> None:
        is_bias = name.endswith("exps.bias")
        add(writer, name, values.astype(np.float16) if is_bias else values, **how)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add_halved)
    path = TinyModel("gpt-oss", quantisation="Q8_0").write(tmp_path / "x.gguf")
    with pytest.raises(ModelUnsupported, match=r"exps.bias is of type F16; only F32 is added"):
        open_model(device, path, ModelSettings())


@pytest.mark.parametrize("name", [*RECIPES, "llama, experts"])
def test_prompts_in_one_pass_have_the_bits_of_each_alone(
    name: str, device: Device, files: dict[str, Path]
) -> None:
    with several(device, files[name], 8) as (model, sessions):
        assert model.exact_packing
        together, alone = sessions[:4], sessions[4:]
        lengths = (2, 70, 31, 100)  # attention has a kernel for 64 and more
        rounds = [[random_tokens(n, model.n_vocab, seed=i + n) for n in lengths] for i in range(4)]
        for prompts in rounds:  # a window moves, and more rows of the cache are read
            pairs = [*zip(together, alone, prompts, strict=True)]
            for _, one, prompt in pairs:
                model.prefill(one, prompt)
            chunks = [Chunk(it, np.array(prompt, np.int32), last=True) for it, _, prompt in pairs]
            finish(model.device.compute_thread, model.executor.append(chunks))
            for one, other, prompt in pairs:
                assert one.tokens == other.tokens
                assert one.logits.tobytes() == other.logits.tobytes()
                for session in (one, other):
                    model.decode(session, prompt[0])
                assert one.logits.tobytes() == other.logits.tobytes()


def test_prompts_in_one_pass_near_each_alone_where_bits_change(
    device: Device, tmp_path: Path
) -> None:
    path = TinyLlama(quantisation="F16", n_embd=256, n_ff=512).write(tmp_path / "f16.gguf")
    with several(device, path, 6, ModelSettings(exact=False)) as (model, sessions):
        assert model.packs
        assert not model.exact_packing
        prompts = [random_tokens(n, model.n_vocab, seed=n) for n in (40, 80, 20)]
        chunks = [
            Chunk(session, np.array(prompt, np.int32), last=True)
            for session, prompt in zip(sessions[:3], prompts, strict=True)
        ]
        finish(model.device.compute_thread, model.executor.append(chunks))
        for one, other, prompt in zip(sessions[:3], sessions[3:], prompts, strict=True):
            model.prefill(other, prompt)
            assert np.allclose(one.logits, other.logits, atol=0.1)


@pytest.mark.parametrize("part", ["route", "separately"])
def test_what_is_not_quantised_is_multiplied_as_alone_behind_the_last_attention(
    part: str, device: Device, tmp_path: Path
) -> None:
    """By a model that is nothing else: what follows in others mostly rounds a last bit away."""
    path = TinyLlama(quantisation="F32", n_embd=256, n_ff=512, tied=False).write(
        tmp_path / "m.gguf"
    )
    with several(device, path, 12) as (model, sessions):
        embd, output = model.weights.used("token_embd.weight"), model.weights.used("output.weight")

        def build(graph: Pass) -> int:
            x = graph.select_outputs(graph.get_rows(embd, graph.tokens))
            return int(getattr(graph, part)(output, x))

        executor: Any = model.executor
        executor.builder.architecture = SimpleNamespace(hparams=model.hparams, build=build)
        prompts = [random_tokens(3 + i, model.n_vocab, seed=i) for i in range(6)]
        chunks = [
            Chunk(session, np.array(prompt, np.int32), last=True)
            for session, prompt in zip(sessions[:6], prompts, strict=True)
        ]
        finish(model.device.compute_thread, executor.append(chunks))
        for session, prompt in zip(sessions[6:], prompts, strict=True):
            model.prefill(session, prompt)
        for one, other in zip(sessions[:6], sessions[6:], strict=True):
            assert one.logits.std() > 0
            assert one.logits.tobytes() == other.logits.tobytes()
