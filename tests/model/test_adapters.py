"""LoRA adapters: logits equal to libllama's with the same ones, to the byte, however they come."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus.benchmarks.rival import Libllama
from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import ModelBusy, ModelFileError, ModelUnsupported, SettingsError
from isthmus.memory import Region
from isthmus.model import Model, Session, open_model
from isthmus.model.jobs import finish
from isthmus.model.own.adapter import MAX_ADAPTERS
from isthmus.model.step import Chunk, Step
from isthmus.units import GIB, MIB, GuestPtr
from tests.tiny_gguf import RECIPES, TinyLora, TinyModel

BASES = {it: TinyModel(it, quantisation="Q8_0") for it in RECIPES} | {
    "llama": TinyModel(tied=False, quantisation="Q8_0"),
    "fused llama": TinyModel(fused_qkv=True, biases=True, quantisation="Q8_0"),
}
APPLIED = {
    "deepseek2": (
        "attn_output ffn_down ffn_gate ffn_up token_embd ffn_down_exps ffn_gate_exps ffn_up_exps "
        "ffn_down_shexp ffn_gate_shexp ffn_up_shexp"
    ),
    "nemotron_h_moe": (
        "ssm_in ssm_out attn_q attn_k attn_v attn_output output ffn_down_exps ffn_up_exps "
        "ffn_down_shexp ffn_up_shexp"
    ),
}
"""What libllama changes, where it passes others over."""
N_CTX = 512
SETTINGS = ModelSettings(prefill_chunk=64)
_SPAN = 16 * MIB


@contextmanager
def sessions(device: Device, models: list[Model]) -> Iterator[list[Session]]:
    """One session of each model, in one memory."""
    with ExitStack() as stack:
        region = Region.reserve(1 * GIB, nbytes=256 * MIB)
        stack.callback(region.close)
        binding = device.bind(region)
        stack.callback(binding.close)
        opened = []
        for i, model in enumerate(models):
            layout = model.layout(N_CTX)
            opened.append(model.open_session(region, binding, GuestPtr(4096 + i * _SPAN), layout))
            stack.callback(opened[-1].close)
        yield opened


@contextmanager
def loaded(device: Device, path: Path, settings: ModelSettings = SETTINGS) -> Iterator[Model]:
    model = open_model(device, path, settings)
    try:
        yield model
    finally:
        for it in [*model._adapted]:
            it.close()
        model.close()


def random_tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 320, n).tolist()  # type: ignore[no-any-return]


def bits(session: Session) -> bytes:
    return session.logits.tobytes()


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("name", BASES)
def test_each_architecture_equals_libllama(
    name: str, kind: type, device: Device, tmp_path: Path
) -> None:
    base = BASES[name]
    path = base.write(tmp_path / "model.gguf")
    names = tuple(APPLIED.get(name, "").split())
    lora = TinyLora(base, names, kind=kind).write(tmp_path / "lora.gguf")
    with (
        loaded(device, path) as model,
        Libllama(device, path, N_CTX, SETTINGS) as rival,
    ):
        adapted = model.adapted({model.load_adapter(lora): 0.7})
        rival.adapt((lora, 0.7))
        with sessions(device, [adapted, model]) as (session, plain):
            prompt = random_tokens(90)
            adapted.prefill(session, prompt)
            model.prefill(plain, prompt)
            rival.prefill(prompt)
            assert bits(session) == rival.logits.tobytes()
            assert bits(session) != bits(plain)
            for token in random_tokens(6, seed=1):
                adapted.decode(session, token)
                rival.decode(token)
                assert bits(session) == rival.logits.tobytes()


def test_two_at_once_rank_1_no_alpha_and_scale_0(device: Device, tmp_path: Path) -> None:
    base = BASES["llama"]
    path = base.write(tmp_path / "model.gguf")
    one = TinyLora(base, ("attn_q", "ffn_down"), rank=1, alpha=0.0).write(tmp_path / "one.gguf")
    two = TinyLora(base, ("attn_v", "output"), rank=8, seed=2).write(tmp_path / "two.gguf")
    with loaded(device, path) as model, Libllama(device, path, N_CTX, SETTINGS) as rival:
        first, second = model.load_adapter(one), model.load_adapter(two)
        both = model.adapted({first: -0.3, second: 1.5})
        none = model.adapted({first: 0.0})
        rival.adapt((one, -0.3), (two, 1.5))
        with sessions(device, [both, none, model]) as (session, off, plain):
            prompt = random_tokens(20)
            for it in (session, off, plain):
                Model.of(it).prefill(it, prompt)
            rival.prefill(prompt)
            assert bits(session) == rival.logits.tobytes()
            assert bits(off) == bits(plain)


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2moe"])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_prompts_in_one_pass_have_the_bits_of_each_alone(
    name: str, kind: type, device: Device, tmp_path: Path
) -> None:
    """Behind the last attention a session has one column: adapters multiply it as if alone."""
    base = BASES[name]
    path = base.write(tmp_path / "model.gguf")
    lora = TinyLora(base, kind=kind, rank=16).write(tmp_path / "lora.gguf")
    with loaded(device, path) as model:
        adapted = model.adapted({model.load_adapter(lora): 1.0})
        assert adapted.exact_packing
        with sessions(device, [adapted] * 12) as both:
            for seed in range(4):
                prompts = [random_tokens(n, seed) for n in (2, 40, 60, 9, 31, 5)]
                chunks = [
                    Chunk(session, np.array(prompt, np.int32), last=True)
                    for session, prompt in zip(both[:6], prompts, strict=True)
                ]
                finish(adapted.device.compute_thread, adapted.executor.append(chunks))
                for session, prompt in zip(both[6:], prompts, strict=True):
                    adapted.prefill(session, prompt)
                assert [bits(it) for it in both[:6]] == [bits(it) for it in both[6:]]


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen3moe"])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_batch_has_the_bits_of_each_alone(
    name: str, kind: type, device: Device, tmp_path: Path
) -> None:
    base = BASES[name]
    path = base.write(tmp_path / "model.gguf")
    lora = TinyLora(base, kind=kind).write(tmp_path / "lora.gguf")
    with loaded(device, path) as model:
        adapted = model.adapted({model.load_adapter(lora): 1.0})
        if not adapted.batches:
            assert len(adapted.widths.classes) > 1
            pytest.skip("this library's products of several columns differ: steps run alone")
        with sessions(device, [adapted] * 6) as opened:
            alone, together = opened[:3], opened[3:]
            for i, (one, other) in enumerate(zip(alone, together, strict=True)):
                for it in (one, other):
                    adapted.prefill(it, random_tokens(20 + i, seed=i))
            for token in random_tokens(4, seed=9):
                for it in alone:
                    adapted.decode(it, token)
                adapted.executor.decode_batch([Step(it, [token]) for it in together])
                assert [bits(it) for it in alone] == [bits(it) for it in together]


def test_several_tokens_of_one_have_the_bits_of_single_steps(
    device: Device, tmp_path: Path
) -> None:
    base = BASES["llama"]
    path = base.write(tmp_path / "model.gguf")
    lora = TinyLora(base, rank=1).write(tmp_path / "lora.gguf")
    with loaded(device, path) as model:
        adapted = model.adapted({model.load_adapter(lora): 1.0})
        if not adapted.batches:
            pytest.skip("this library's products of several columns differ: steps run alone")
        with sessions(device, [adapted, adapted]) as (single, several):
            for it in (single, several):
                adapted.prefill(it, random_tokens(30))
            tokens = random_tokens(3, seed=3)
            for token in tokens:
                adapted.decode(single, token)
            places = several.base + several.layout.nbytes  # behind it, in the same memory
            adapted.executor.decode_batch([Step(several, tokens, places)])
            assert bits(single) == bits(several)


def test_as_many_as_there_may_be(device: Device, tmp_path: Path) -> None:
    base = TinyModel("qwen2moe", n_layer=1, quantisation="Q8_0")
    path = base.write(tmp_path / "model.gguf")
    lora = TinyLora(base).write(tmp_path / "lora.gguf")
    with loaded(device, path) as model:
        adapters = [model.load_adapter(lora) for _ in range(MAX_ADAPTERS + 1)]
        with pytest.raises(SettingsError, match=f"up to {MAX_ADAPTERS}"):
            model.adapted(dict.fromkeys(adapters, 1.0))
        adapted = model.adapted(dict.fromkeys(adapters[1:], 0.1))
        with sessions(device, [adapted] * 4) as opened:
            for it in opened:
                adapted.prefill(it, random_tokens(5))
            if adapted.executor.can_batch:
                adapted.executor.decode_batch([Step(it, [1]) for it in opened])
            assert len({bits(it) for it in opened}) == 1


def test_over_repacked_weights(device: Device, tmp_path: Path) -> None:
    base = TinyModel(n_embd=256, n_ff=512, quantisation="Q4_0")
    path = base.write(tmp_path / "model.gguf")
    lora = TinyLora(base).write(tmp_path / "lora.gguf")
    settings = ModelSettings(prefill_chunk=64, repack=True)
    with (
        loaded(device, path, settings) as model,
        Libllama(device, path, N_CTX, settings) as rival,
    ):
        adapted = model.adapted({model.load_adapter(lora): 1.0})
        rival.adapt((lora, 1.0))
        with sessions(device, [adapted]) as (session,):
            adapted.prefill(session, random_tokens(70))
            rival.prefill(random_tokens(70))
            assert bits(session) == rival.logits.tobytes()


def test_whether_cuts_are_exact_depends_on_the_adapter(device: Device, tmp_path: Path) -> None:
    base = TinyModel(tied=False, quantisation="Q8_0")
    lora = TinyLora(base, kind=np.float16, rank=32).write(tmp_path / "lora.gguf")
    with loaded(device, base.write(tmp_path / "model.gguf")) as model:
        adapted = model.adapted({model.load_adapter(lora): 1.0})
        with sessions(device, [adapted] * 2) as (whole, parts):
            tokens = random_tokens(60)
            adapted.prefill(whole, tokens)
            adapted.prefill(parts, tokens[:20])
            adapted.prefill(parts, tokens[20:])
            same = bits(whole) == bits(parts)
        assert same or not adapted.exact_cuts


def test_truncated_and_copied_sessions(device: Device, tmp_path: Path) -> None:
    base = BASES["llama"]
    path = base.write(tmp_path / "model.gguf")
    lora = TinyLora(base).write(tmp_path / "lora.gguf")
    with loaded(device, path) as model:
        adapted = model.adapted({model.load_adapter(lora): 1.0})
        with sessions(device, [adapted, adapted]) as (session, copy):
            adapted.prefill(session, random_tokens(40))
            copy.copy_from(session, 40)
            adapted.decode(session, 7)
            once = bits(session)
            session.truncate(40)
            adapted.decode(session, 7)
            adapted.decode(copy, 7)
            assert bits(session) == bits(copy) == once


# ---------------------------------------------------------------------- what is refused


Change = Callable[[dict[str, np.ndarray]], object]


def _without(name: str) -> Change:
    return lambda tensors: tensors.pop(name)


def _with(name: str, *shape: int, kind: type = np.float32) -> Change:
    return lambda tensors: tensors.update({name: np.zeros(shape, kind)})


Q = "blk.0.attn_q.weight"
REFUSED: dict[str, tuple[dict[str, object], Change | None, str]] = {
    "a model": ({"general.type": "model"}, None, "is not an adapter"),
    "another kind": ({"adapter.type": "dora"}, None, "only lora is known"),
    "another architecture": ({"general.architecture": "qwen2"}, None, "architecture 'qwen2'"),
    "alpha as text": ({"adapter.lora.alpha": "8"}, None, "it is a number"),
    "alpha of nan": ({"adapter.lora.alpha": float("nan")}, None, "which no adapter has"),
    "behind tokens": ({"adapter.alora.invocation_tokens": [1, 2]}, None, "aLoRA"),
    "half a pair": ({}, _without(f"{Q}.lora_b"), f"{Q}.lora_a and no {Q}.lora_b"),
    "a norm": ({}, _with("blk.0.attn_norm.weight", 64), "only pairs"),
    "a pair for a norm": (
        {},
        lambda it: (
            _with("output_norm.weight.lora_a", 4, 64)(it),
            _with("output_norm.weight.lora_b", 1, 4)(it),
        ),
        "cannot change here",
    ),
    "a weight that is not there": (
        {},
        lambda it: (_with("x.lora_a", 4, 64)(it), _with("x.lora_b", 64, 4)(it)),
        "the model does not have",
    ),
    "other ranks": ({}, _with(f"{Q}.lora_b", 128, 5), "would have [4, 128]"),
    "another width": ({}, _with(f"{Q}.lora_a", 4, 96), "would have [64, 4]"),
    "integers": ({}, _with(f"{Q}.lora_a", 4, 64, kind=np.int32), "not computed with"),
    "one dimension more": ({}, _with(f"{Q}.lora_a", 2, 4, 64), "would have [64, 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(name: str, device: Device, tmp_path: Path) -> None:
    metadata, change, said = REFUSED[name]
    base = TinyModel(tied=False)
    lora = TinyLora(base, ("attn_q",), metadata=metadata, change=change or (lambda it: None))
    with loaded(device, base.write(tmp_path / "model.gguf")) as model:
        with pytest.raises((ModelFileError, ModelUnsupported)) as caught:
            model.load_adapter(lora.write(tmp_path / "lora.gguf"))
        assert said in str(caught.value)


def test_a_table_that_makes_logits_as_well_is_refused(device: Device, tmp_path: Path) -> None:
    untied = TinyModel(tied=False)
    lora = TinyLora(untied, ("token_embd",)).write(tmp_path / "lora.gguf")
    with (
        loaded(device, TinyModel().write(tmp_path / "model.gguf")) as model,
        pytest.raises(ModelUnsupported, match="logits as well"),
    ):
        model.load_adapter(lora)


def test_truncated_files_and_wrong_uses(device: Device, tmp_path: Path) -> None:
    base = TinyModel()
    path = base.write(tmp_path / "model.gguf")
    lora = TinyLora(base).write(tmp_path / "lora.gguf")
    short = tmp_path / "short.gguf"
    short.write_bytes(lora.read_bytes()[:-4096])
    with loaded(device, path) as model, loaded(device, path) as other:
        with pytest.raises(ModelFileError):
            model.load_adapter(short)
        adapter = model.load_adapter(lora)
        with pytest.raises(SettingsError, match="was not loaded for"):
            other.adapted({adapter: 1.0})
        for scale in (float("nan"), float("inf"), 1e30):
            with pytest.raises(SettingsError, match="scale"):
                model.adapted({adapter: scale})
        adapted = model.adapted({adapter: 1.0})
        with pytest.raises(SettingsError, match="adapt its base"):
            adapted.adapted({adapter: 1.0})
        with pytest.raises(ModelBusy, match="with adapters"):
            model.close()
        with pytest.raises(ModelFileError, match="is an adapter"):
            open_model(device, lora, SETTINGS)


def test_its_hash_is_that_of_the_file_that_was_opened(device: Device, tmp_path: Path) -> None:
    base, lora = TinyModel(), tmp_path / "lora.gguf"
    with loaded(device, base.write(tmp_path / "model.gguf")) as model:
        adapter = model.load_adapter(TinyLora(base).write(lora))
        opened = hashlib.sha256(lora.read_bytes()).hexdigest()
        os.replace(TinyLora(base, seed=2).write(tmp_path / "other.gguf"), lora)
        assert adapter.sha256 == opened


@pytest.mark.parametrize("adapters", [{"lora.gguf": 1.0}, [1]])
def test_what_is_no_adapter_is_refused(adapters: Any, device: Device, tmp_path: Path) -> None:
    with (
        loaded(device, TinyModel().write(tmp_path / "model.gguf")) as model,
        pytest.raises(SettingsError, match="load_adapter"),
    ):
        model.adapted(adapters)


@pytest.mark.parametrize("scale", ["x", None, 10**400, float("nan"), float("inf")])
def test_scales_that_are_none(scale: Any, device: Device, tmp_path: Path) -> None:
    base = TinyModel()
    with loaded(device, base.write(tmp_path / "model.gguf")) as model:
        adapter = model.load_adapter(TinyLora(base).write(tmp_path / "lora.gguf"))
        with pytest.raises(SettingsError, match="scale"):
            model.adapted({adapter: scale})
