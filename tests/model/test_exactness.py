"""The forward pass against libllama, the same library's own: logits equal to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from isthmus.benchmarks.rival import Libllama
from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.memory import Region
from isthmus.model import Model, Session, open_model
from isthmus.units import GIB, MIB, GuestPtr
from tests.tiny_gguf import TinyLlama

VARIANTS = {
    "tied": TinyLlama(),
    "untied": TinyLlama(tied=False),
    "no sharing of heads": TinyLlama(n_head_kv=4),
    "one key head": TinyLlama(n_head_kv=1),
    "head size 64": TinyLlama(head_dim=64),
    "head size 80": TinyLlama(head_dim=80),
    "biases": TinyLlama(biases=True),
    "fused qkv": TinyLlama(fused_qkv=True),
    "fused qkv with biases": TinyLlama(fused_qkv=True, biases=True),
    "Llama 3 rope factors": TinyLlama(rope_factors=True),
    "linear rope scaling": TinyLlama(rope_scaling={"type": "linear", "factor": 4.0}),
    "no rope scaling": TinyLlama(rope_scaling={"type": "none", "factor": 4.0}),
    "yarn": TinyLlama(rope_scaling={"type": "yarn", "factor": 4.0, "original_context_length": 256}),
    "longrope, long": TinyLlama(
        rope_scaling={"type": "longrope", "original_context_length": 256, "attn_factor": 1.2}
    ),
    "longrope, short": TinyLlama(
        rope_scaling={"type": "longrope", "original_context_length": 4096}
    ),
    "Q8_0": TinyLlama(quantisation="Q8_0"),
    "Q4_0": TinyLlama(quantisation="Q4_0"),
    "Q4_1": TinyLlama(quantisation="Q4_1"),
    "Q5_0": TinyLlama(quantisation="Q5_0"),
    "Q5_1": TinyLlama(quantisation="Q5_1"),
    "F16": TinyLlama(quantisation="F16"),
    "BF16": TinyLlama(quantisation="BF16"),
}


@contextmanager
def opened(
    device: Device, path: Path, settings: ModelSettings, n_ctx: int = 768
) -> Iterator[tuple[Model, Session]]:
    model = open_model(device, path, settings)
    region = Region.reserve(1 * GIB, nbytes=256 * MIB)
    binding = device.bind(region)
    session = model.open_session(region, binding, GuestPtr(4096), model.layout(n_ctx))
    try:
        yield model, session
    finally:
        session.close()
        binding.close()
        region.close()
        model.close()


def random_tokens(n: int, n_vocab: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, n_vocab, n).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_equals_libllama(name: str, device: Device, tmp_path: Path) -> None:
    path = VARIANTS[name].write(tmp_path / "model.gguf")
    settings = ModelSettings(prefill_chunk=128)
    with (
        opened(device, path, settings) as (model, session),
        Libllama(device, path, 768, settings) as rival,
    ):
        prompt = random_tokens(300, model.n_vocab)  # chunks of 128, 128 and 44; two steps of cache
        model.prefill(session, prompt)
        rival.prefill(prompt)
        assert session.logits.tobytes() == rival.logits.tobytes()
        for token in random_tokens(24, model.n_vocab, seed=1):
            model.decode(session, token)
            rival.decode(token)
            assert session.logits.tobytes() == rival.logits.tobytes()


def test_repacked_weights_are_used_and_equal_libllama(device: Device, tmp_path: Path) -> None:
    path = TinyLlama(n_embd=256, n_ff=512, quantisation="Q4_0").write(tmp_path / "model.gguf")
    settings = ModelSettings(repack=True)
    with (
        opened(device, path, settings) as (model, session),
        Libllama(device, path, 768, settings) as rival,
    ):
        if device.repack_buffer_type:
            assert model.weights.repacked_nbytes > 0
        prompt = random_tokens(70, model.n_vocab)
        model.prefill(session, prompt)
        rival.prefill(prompt)
        assert session.logits.tobytes() == rival.logits.tobytes()


@pytest.mark.model
def test_smollm2_equals_libllama(device: Device, smollm2: Path) -> None:
    settings = ModelSettings()
    with (
        opened(device, smollm2, settings, 1024) as (model, session),
        Libllama(device, smollm2, 1024, settings) as rival,
    ):
        prompt = random_tokens(600, model.n_vocab)
        model.prefill(session, prompt)
        rival.prefill(prompt)
        for _ in range(16):
            assert session.logits.tobytes() == rival.logits.tobytes()
            token = int(np.argmax(session.logits))
            model.decode(session, token)
            rival.decode(token)


def _logits_after(
    device: Device, path: Path, settings: ModelSettings, parts: list[list[int]]
) -> bytes:
    with opened(device, path, settings) as (model, session):
        for part in parts:
            model.prefill(session, part)
        return session.logits.tobytes()


def test_deterministic_mode_does_not_depend_on_how_tokens_arrive(
    device: Device, tmp_path: Path
) -> None:
    path = TinyLlama(quantisation="Q4_1", n_embd=256).write(tmp_path / "model.gguf")
    tokens = random_tokens(300, 320)
    whole = _logits_after(device, path, ModelSettings(deterministic=True), [tokens])
    small = ModelSettings(deterministic=True, prefill_chunk=37)
    assert _logits_after(device, path, small, [tokens]) == whole
    one_by_one = [[token] for token in tokens]
    assert _logits_after(device, path, ModelSettings(deterministic=True), one_by_one) == whole


def test_truncate_and_refill_gives_the_same_bytes(device: Device, tiny: Path) -> None:
    with opened(device, tiny, ModelSettings()) as (model, session):
        prompt = random_tokens(40, model.n_vocab)
        model.prefill(session, prompt)
        expected = session.logits.tobytes()
        for token in random_tokens(9, model.n_vocab, seed=2):
            model.decode(session, token)
        session.truncate(0)
        assert not session.has_logits
        model.prefill(session, prompt)
        assert session.logits.tobytes() == expected


@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
def test_other_cache_types_stay_near_f16(kv_type: str, device: Device, tiny: Path) -> None:
    tokens, results = random_tokens(60, 320), []
    for kind in ("f16", kv_type):
        with opened(device, tiny, ModelSettings(kv_type=kind)) as (model, session):
            model.prefill(session, tokens)
            model.decode(session, 7)
            results.append(session.logits.copy())
    error = np.linalg.norm(results[0] - results[1]) / np.linalg.norm(results[0])
    assert 0 < error < 0.02


def test_weights_are_not_copied(device: Device, smollm2: Path) -> None:
    """The mapped file is what the kernels read: no anonymous memory of that size appears."""
    before = _anonymous_nbytes()
    with opened(device, smollm2, ModelSettings(), 256) as (model, session):
        model.prefill(session, [1, 2, 3])
        grown = _anonymous_nbytes() - before
        assert model.weights.nbytes > 90 * MIB
        assert grown < 60 * MIB  # the vocabulary and activations


def _anonymous_nbytes() -> int:
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        pytest.skip("needs Linux's /proc")
    line = next(x for x in rollup.read_text().splitlines() if x.startswith("Anonymous:"))
    return int(line.split()[1]) * 1024
