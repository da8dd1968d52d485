"""A graphics device: the same bytes as the guest's, or copies of them, and the same answers.

ISTHMUS_TEST_DEVICE says which, by default `vulkan`; ISTHMUS_TEST_SHARING and ISTHMUS_TEST_CACHES
force a way. `make test-vulkan` runs these on a driver in software, slow, and true to what a card's
driver does; `make test-gpu` on the card at hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wasmtime

from isthmus import Actor, Limits, Model, Runtime, Stream
from isthmus.benchmarks.rival import Libllama
from isthmus.errors import (
    DeviceFailed,
    DeviceUnavailable,
    IsthmusError,
    SettingsError,
    SnapshotMismatch,
)
from isthmus.memory import Region
from isthmus.model.jobs import finish
from isthmus.model.step import Chunk
from isthmus.units import GIB, KIB, MIB, WASM_PAGE, HostAddr
from isthmus.verification import prove_sizes
from tests.exact.digest import digest
from tests.tiny_gguf import ENCODERS, RECIPES, TinyLlama, TinyLora, TinyModel

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("ISTHMUS_TEST_DEVICE", "vulkan")
KIND = DEVICE.partition(":")[0]
SHARING = os.environ.get("ISTHMUS_TEST_SHARING")
CACHES = os.environ.get("ISTHMUS_TEST_CACHES", "auto")
IN_PLACE = {"vulkan": "imported", "cuda": "managed", "metal": "same"}
SUPPLIES = KIND == "cuda" and SHARING in (None, "managed")
"""Whether the device supplies guests' memory, where nothing better opens."""
FROM_LIBLLAMA = {"vulkan": 1e-4}
"""How far logits may be from libllama's: it fuses other operations there."""
EXPERTS_FROM_LIBLLAMA = ADAPTED_FROM_LIBLLAMA = {"cuda": 1e-5, **FROM_LIBLLAMA}
"""The same with several experts, gemma4's but in test_unfused.py, and with adapters."""
N_TOKENS = 24
HEAD_DIM = 64 if KIND == "cuda" else 32
"""The least for which CUDA has a kernel of attention."""
SOFT_CAP_HEAD_DIM = 128 if KIND == "cuda" else 32
"""The same for attention with a soft cap."""
WITH_STATE_SPACES = ("granitehybrid", "nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe")
"""The architectures whose recurrences Vulkan refuses, or, qwen35's, test_unfused.py has."""
WITH_EXPERTS = [
    name
    for name, it in RECIPES.items()
    if "expert_count" in it.metadata and name not in WITH_STATE_SPACES
]
REFUSED = {"vulkan": ["granitehybrid"], "cuda": ["deepseek2", "gemma4"]}.get(KIND, [])
"""Those for which the device has no kernel of attention or recurrence, at these sizes of heads."""
UNFUSED = {("vulkan", "gemma4"), *((KIND, name) for name in REFUSED)}
"""Not compared with libllama here: one is in test_unfused.py."""
imports = pytest.mark.skipif(SUPPLIES, reason="the device supplies guests' memory itself")
supplies = pytest.mark.skipif(not SUPPLIES, reason="the device imports guests' memory")


def open_runtime(caches: str = CACHES) -> Runtime:
    return Runtime(device=DEVICE, sharing=SHARING, caches=caches)


@pytest.fixture(scope="module")
def gpu() -> Iterator[Runtime]:
    with open_runtime() as runtime:
        yield runtime


@pytest.fixture(scope="module")
def cpu() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("q8") / "q8.gguf"
    return TinyLlama(with_tokenizer=True, quantisation="Q8_0", head_dim=HEAD_DIM).write(file)


@pytest.fixture(scope="module")
def model(gpu: Runtime, path: Path) -> Model:
    return gpu.load_model(path)


@pytest.fixture(scope="module")
def cpu_model(cpu: Runtime, path: Path) -> Model:
    return cpu.load_model(path)


def spawn(runtime: Runtime, model: Model, n_tokens: int = N_TOKENS) -> Actor:
    actor = runtime.spawn(
        "bench", models={"default": model}, args=["n_ctx=1024"], seed=1, clock_ns=10**18
    )
    actor.send(f"prefill {n_tokens} {n_tokens}")
    return actor


def logits(actor: Actor) -> np.ndarray:
    return actor.sessions[0].logits.copy()


def test_it_shares_in_place(gpu: Runtime) -> None:
    info = gpu.device.info
    assert info.name.startswith(KIND)
    assert info.sharing in (SHARING or IN_PLACE[KIND], "same")
    passed = [note for note in info.notes if note.startswith("not ")]
    assert SHARING is not None or all(note.startswith("not same: ") for note in passed)
    assert any("device's own memory" in note for note in info.notes) == (info.caches == "own")


@pytest.mark.parametrize("n_tokens", [1, 24, 300, 513])  # the last: a chunk, and a decoded token
def test_close_to_the_processor_and_without_copies(
    gpu: Runtime, model: Model, cpu: Runtime, cpu_model: Model, n_tokens: int
) -> None:
    """The processor rounds activations to 8 bits before it multiplies them with Q8_0 weights."""
    copied = gpu.device.counters.bytes_copied
    with spawn(gpu, model, n_tokens) as ours, spawn(cpu, cpu_model, n_tokens) as theirs:
        a, b = logits(ours), logits(theirs)
        assert np.linalg.norm(a - b) < 3e-2 * np.linalg.norm(b)
        assert ours.counters.bytes_copied == gpu.device.counters.bytes_copied - copied == 0


def tiny(name: str, folder: Path) -> Path:
    """An architecture's file with F32 weights, so that only the order of sums differs."""
    head_dim = max(HEAD_DIM, SOFT_CAP_HEAD_DIM) if name == "gemma2" else HEAD_DIM
    model = TinyModel(name, with_tokenizer=True, head_dim=head_dim)
    if name in ("qwen2moe", "lfm2moe"):  # libllama wants their heads no wider than this together
        n_kv = 64 // head_dim
        kept = {"attention.head_count_kv": [0, 0, n_kv, 0]} if name == "lfm2moe" else {}
        model = replace(model, n_head=128 // head_dim, n_head_kv=n_kv, overrides=kept)
    return model.write(folder / "x.gguf")


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if name not in {*WITH_EXPERTS, *WITH_STATE_SPACES}]
)
def test_every_architecture_is_close_to_the_processor(
    name: str, gpu: Runtime, cpu: Runtime, tmp_path: Path
) -> None:
    file, found = tiny(name, tmp_path), []
    for runtime in (gpu, cpu):
        model = runtime.load_model(file, prefill_chunk=64)
        with spawn(runtime, model, 150) as actor:
            rounds = [logits(actor)]
            for token in range(6):
                actor.send(f"tokens {token}")
            found.append([*rounds, logits(actor)])
        model.close()
    for a, b in zip(*found, strict=True):
        assert np.linalg.norm(a - b) < 1e-2 * np.linalg.norm(b)


@pytest.mark.parametrize("name", [it for it in WITH_EXPERTS if (KIND, it) not in UNFUSED])
def test_experts_give_the_logits_of_libllama(name: str, gpu: Runtime, tmp_path: Path) -> None:
    """On the same device: which experts a token has can turn on the last bit of a product.

    8 tokens at a time: of 64, this driver in software gives other logits from run to run, to
    libllama as well.
    """
    file = tiny(name, tmp_path)
    model = gpu.load_model(file, prefill_chunk=8)
    rival = Libllama(gpu.device, file, 1024, model.settings)
    with spawn(gpu, model, 150) as actor:
        error = largest_error(rival, actor)
    rival.close()
    model.close()
    assert error <= EXPERTS_FROM_LIBLLAMA.get(KIND, 0.0)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_adapters_give_the_logits_of_libllama(name: str, gpu: Runtime, tmp_path: Path) -> None:
    """With one adapter of F32, over the base's weights on the device."""
    base = TinyModel(name, with_tokenizer=True, head_dim=HEAD_DIM)
    file, added = base.write(tmp_path / "x.gguf"), TinyLora(base).write(tmp_path / "lora.gguf")
    plain = gpu.load_model(file)
    model = gpu.adapt(plain, {gpu.load_adapter(added, plain): 0.5})
    rival = Libllama(gpu.device, file, 1024, model.settings)
    rival.adapt((added, 0.5))
    with spawn(gpu, model) as actor, spawn(gpu, plain) as other:
        assert not np.allclose(logits(actor), logits(other), rtol=1e-3)
        error = largest_error(rival, actor)
    rival.close()
    model.close()
    plain.close()
    assert error <= ADAPTED_FROM_LIBLLAMA.get(KIND, 0.0)


def test_a_guest_with_64_bits_gets_the_same_logits(gpu: Runtime, model: Model) -> None:
    answers = []
    for guest in ("bench", "bench64"):
        with gpu.spawn(guest, models={"default": model}, args=["n_ctx=512"], seed=1) as actor:
            answers.append([actor.send(it).text for it in ("prefill 40 7", "hash 4")])
    assert answers[0] == answers[1]


@supplies
def test_a_session_above_4_gib(gpu: Runtime, model: Model) -> None:
    answers, copied = [], gpu.device.counters.bytes_copied
    for ahead in (0, 5 * GIB):
        options = ["n_ctx=512", f"ahead={ahead}"]
        limits = Limits(memory_nbytes=6 * GIB)
        with gpu.spawn(
            "bench64", models={"default": model}, args=options, seed=1, limits=limits
        ) as actor:
            answers.append([actor.send(it).text for it in ("prefill 40 7", "hash 4")])
            assert actor.sessions[0].ptr >= ahead
            assert actor.counters.bytes_copied == gpu.device.counters.bytes_copied - copied == 0
    assert answers[0] == answers[1]


def largest_error(rival: Libllama, actor: Actor) -> float:
    """Of the logits now and after each of some tokens."""
    tokens, error = actor.sessions[0].tokens.tolist(), 0.0
    for token in range(7):
        error = max(error, error_against(rival, tokens, actor))
        tokens = [token]
        actor.send(f"tokens {token}")
    return error


def error_against(rival: Libllama, tokens: list[int], actor: Actor) -> float:
    """How far the actor's logits are from libllama's, which gets the tokens that it lacks."""
    actor.device.compute_thread.run(lambda: rival.prefill(tokens))
    theirs = rival.logits
    return float(np.linalg.norm(logits(actor) - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("name", [*ENCODERS, "qwen3"])
def test_embeddings_are_close_to_the_processor_and_in_place(
    name: str, gpu: Runtime, cpu: Runtime, tmp_path: Path
) -> None:
    shape = {"head_dim": HEAD_DIM, "n_embd": 4 * HEAD_DIM}
    model = TinyModel(name, with_tokenizer=True, overrides={"pooling_type": 1}, **shape)
    file = model.write(tmp_path / "x.gguf")
    found, copied = [], gpu.device.counters.bytes_copied
    for runtime in (gpu, cpu):
        actor = runtime.spawn(
            "embed", models={"default": runtime.load_model(file)}, args={"output": "f32"}
        )
        answers = [actor.send("the isthmus " * n).data for n in (1, 40, 1)]
        assert answers[0] == answers[2]
        assert actor.counters.bytes_copied == gpu.device.counters.bytes_copied - copied == 0
        found.append(np.frombuffer(answers[0] + answers[1], np.float32))
        actor.close()
    assert np.linalg.norm(found[0] - found[1]) < 1e-2


def test_matrices_in_place(gpu: Runtime) -> None:
    for proof in prove_sizes(gpu, [64 * KIB, MIB], 3, lambda: None):
        assert proof.pointer_identity
        assert proof.bytes_copied == 0
        assert proof.wrong == 0 < proof.checked


@imports
def test_memory_that_grows_gets_further_segments(gpu: Runtime) -> None:
    device = gpu.device
    with Region.reserve(64 * WASM_PAGE, nbytes=2 * WASM_PAGE, remappable=False) as region:
        binding = device.bind(region)
        first = binding.address(region.base)
        assert binding.n_segments == 1
        region.grow(5 * WASM_PAGE)
        second = binding.address(HostAddr(region.base + 3 * WASM_PAGE))
        assert binding.n_segments == 2
        assert binding.address(HostAddr(region.base + 8)) == first + 8
        assert binding.address(HostAddr(region.base + 3 * WASM_PAGE + 8)) == second + 8
        binding.close()


def test_alone_as_among_others(gpu: Runtime, model: Model) -> None:
    with spawn(gpu, model) as alone:
        expected = alone.send("sequence 12").text
    actors = [spawn(gpu, model) for _ in range(3)]
    streams = [actor.stream("sequence 12") for actor in actors]
    for stream in streams:
        assert ("".join(stream) or stream.reply.text) == expected
    for actor in actors:
        actor.close()


def test_prompts_in_one_pass_are_close_to_each_alone(gpu: Runtime, tmp_path: Path) -> None:
    tiny = TinyLlama(with_tokenizer=True, quantisation="F32", head_dim=HEAD_DIM)
    model = gpu.load_model(tiny.write(tmp_path / "f32.gguf"), exact=False)
    if not model.packs:
        pytest.skip("this device computes sessions one by one")
    lengths = (2, 30, 70, 100)
    prompts = [np.arange(n, dtype=np.int32) % 300 for n in lengths]
    together, alone = ([spawn(gpu, model, 20) for _ in lengths] for _ in range(2))
    copied = gpu.device.counters.bytes_copied
    for _ in range(3):
        pairs = zip(together, prompts, strict=True)
        chunks = [Chunk(actor.sessions[0], prompt, last=True) for actor, prompt in pairs]
        finish(model.device.compute_thread, model.executor.append(chunks))
        for actor, prompt in zip(alone, prompts, strict=True):
            model.prefill(actor.sessions[0], prompt.tolist())
        for one, other in zip(together, alone, strict=True):
            assert np.abs(logits(one) - logits(other)).max() < 0.02 * logits(other).std()
            assert np.isfinite(logits(one)).all()
    assert gpu.device.counters.bytes_copied == copied
    for actor in (*together, *alone):
        actor.close()
    model.close()


def test_forked_and_restored_exactly(gpu: Runtime, model: Model, tmp_path: Path) -> None:
    with spawn(gpu, model) as actor, actor.fork(1)[0] as fork:
        saved = actor.snapshot(tmp_path / "a.safetensors")
        with gpu.restore(saved, models={"default": model}) as restored:
            assert restored.restored.level == "exact"
            assert digest(restored) == digest(actor) == digest(fork)
            answers = {it.send("sequence 12").text for it in (actor, fork, restored)}
            assert len(answers) == 1
            assert digest(restored) == digest(actor) == digest(fork)


def test_between_processor_and_gpu(
    gpu: Runtime, model: Model, cpu: Runtime, cpu_model: Model, tmp_path: Path
) -> None:
    with spawn(cpu, cpu_model) as actor:
        saved = actor.snapshot(tmp_path / "cpu.safetensors")
        with pytest.raises(SnapshotMismatch, match="device"):
            gpu.restore(saved, models={"default": model}, require="exact")
        with gpu.restore(saved, models={"default": model}) as moved:
            assert moved.restored.level == "state-exact"
            assert digest(moved) == digest(actor)
            back = moved.snapshot(tmp_path / "gpu.safetensors")
            with cpu.restore(back, models={"default": cpu_model}) as again:
                assert again.restored.level == "state-exact"
                assert digest(again) == digest(actor)
                assert again.send("sequence 12").text == actor.send("sequence 12").text
            assert len(moved.send("sequence 12").text.split()) > 0


def test_caches_in_the_device_s_own_memory_have_the_same_bits(path: Path, tmp_path: Path) -> None:
    """Alone, batched, forked, restored, copied and truncated; and what is copied is counted."""
    if SHARING not in (None, "registered") or KIND == "metal" or SUPPLIES:
        pytest.skip("this device has KV caches in guests' memory")
    found = []
    for caches in ("own", "guest"):
        with open_runtime(caches) as runtime:
            assert runtime.device.info.caches == caches
            model, counters = runtime.load_model(path), runtime.device.counters
            with spawn(runtime, model) as actor, spawn(runtime, model) as other:
                texts = ["".join(it) or it.reply.text for it in streams(actor, other, n=12)]
                assert counters.bytes_copied == 0
                saved = actor.snapshot(tmp_path / "a.safetensors")
                rows = actor.sessions[0].n_tokens * actor.sessions[0].layout.token_nbytes
                with (
                    actor.fork()[0] as fork,
                    runtime.restore(saved, models={"default": model}) as again,
                ):
                    assert counters.bytes_copied == (3 * rows if caches == "own" else 0)
                    digests = [digest(it) for it in (actor, fork, again)]
                    answers = [it.send("hash 5").text for it in (actor, fork, again)]
                    again.send("truncate 9")
                    again.send("tokens 3 1 4")
                    forgotten = [again.send("hash 5").text, fork.send("branch 3 4").text]
            found.append([*texts, *digests, *answers, *forgotten])
            assert digests[1:] == digests[:1] * 2
            assert answers[1:] == answers[:1] * 2
            assert runtime.device.caches is None or runtime.device.caches.taken_nbytes == 0
    assert found[0] == found[1]


def streams(*actors: Actor, n: int) -> list[Stream]:
    return [actor.stream(f"sequence {n}") for actor in actors]


def test_copies_give_the_same_bits_and_are_counted(gpu: Runtime, model: Model, path: Path) -> None:
    with spawn(gpu, model) as actor:
        expected = actor.send("sequence 12").text
        state = digest(actor)
    with Runtime(device=DEVICE, sharing="copied") as copying:
        assert copying.device.info.sharing == "copied"
        assert all(note.endswith("copied was asked for") for note in copying.device.info.notes)
        with spawn(copying, copying.load_model(path)) as actor:
            assert actor.send("sequence 12").text == expected
            assert digest(actor) == state
            [fork] = actor.fork(1)
            assert fork.send("sequence 5").text == actor.send("sequence 5").text
            fork.close()
        assert copying.device.counters.bytes_copied > 0
        for proof in prove_sizes(copying, [64 * KIB], 1, lambda: None):
            assert proof.wrong == 0
            assert proof.bytes_copied > 0


@supplies
def test_lent_memory_has_the_same_bits(gpu: Runtime, model: Model, path: Path) -> None:
    """As where both sides must not touch managed memory at the same time."""
    with spawn(gpu, model) as actor:
        expected, state = actor.send("sequence 12").text, digest(actor)
    with Runtime(device=DEVICE, sharing="lent") as lending:
        assert lending.device.info.sharing == "lent"
        with spawn(lending, lending.load_model(path)) as actor, actor.fork(1)[0] as fork:
            assert actor.send("sequence 12").text == fork.send("sequence 12").text == expected
            assert digest(actor) == digest(fork) == state
        assert lending.device.counters.bytes_copied == 0
        for proof in prove_sizes(lending, [64 * KIB], 1, lambda: None):
            assert proof.wrong == 0 < proof.checked


def test_the_device_sees_the_session_where_it_lies(gpu: Runtime, model: Model) -> None:
    with spawn(gpu, model) as actor:
        one = actor.sessions[0]
        region, binding = actor.region, actor.binding
        assert one.n_tokens == N_TOKENS
        assert binding.address(one.base) - binding.address(region.base) == one.ptr


def test_what_is_not_there(gpu: Runtime, path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=f"{KIND}:77; there is {KIND}:0"):
        Runtime(device=f"{KIND}:77")
    other = "imported" if KIND == "cuda" else "managed"
    with pytest.raises(SettingsError, match=f"cannot share as {other!r}: give .*copied"):
        Runtime(device=DEVICE, sharing=other)
    with pytest.raises(SettingsError, match="deterministic"):
        gpu.load_model(path, deterministic=True)


def test_two_runtimes_in_one_process(gpu: Runtime, model: Model, path: Path) -> None:
    with open_runtime() as second, spawn(second, second.load_model(path)) as actor:
        text = actor.send("sequence 6").text
    with spawn(gpu, model) as actor:
        assert actor.send("sequence 6").text == text


def test_guests_memory_limit_holds(gpu: Runtime, model: Model) -> None:
    limits = Limits(memory_nbytes=64 * WASM_PAGE, kv_nbytes=1)
    with (
        gpu.spawn("bench", models={"default": model}, args=["n_ctx=512"], limits=limits) as actor,
        pytest.raises(IsthmusError, match="kv_nbytes"),
    ):
        actor.send("prefill 3 3")


@pytest.mark.parametrize("n_tokens", [24, 700])
def test_the_logits_of_libllama(gpu: Runtime, model: Model, path: Path, n_tokens: int) -> None:
    """On the same device, from the same file: prefilled, and decoded 40 times."""
    with spawn(gpu, model, n_tokens) as actor:
        rival = Libllama(gpu.device, path, 1024, model.settings)
        tokens, error = actor.sessions[0].tokens.tolist(), 0.0
        for _ in range(41):
            error = max(error, error_against(rival, tokens, actor))
            tokens = [int(np.argmax(rival.logits))]
            actor.send(f"tokens {tokens[0]}")
        rival.close()
    assert error <= FROM_LIBLLAMA.get(KIND, 0.0)


@supplies
def test_an_access_out_of_bounds_traps(gpu: Runtime) -> None:
    text = """(module (memory (export "memory") 1) (func (export "_initialize"))
      (func (export "on_message") (param i32) (result i32) (i32.load (i32.const 65536))))"""
    with (
        gpu.spawn(bytes(wasmtime.wat2wasm(text))) as actor,
        pytest.raises(IsthmusError, match="out-of-bounds"),
    ):
        actor.send("")


@supplies
def test_what_the_device_has_no_room_for_is_refused(gpu: Runtime, model: Model) -> None:
    """All of its memory is taken by guests that ask for much; those that are there go on."""
    large = Limits(memory_nbytes=4 * GIB - 2 * WASM_PAGE)
    with spawn(gpu, model) as actor:
        others: list[Actor] = []
        with pytest.raises(DeviceFailed, match="left for guests' memory"):  # noqa: PT012
            for _ in range(1000):
                others.append(gpu.spawn("bench", models={"default": model}, limits=large))
        assert len(actor.send("sequence 6").text.split()) == 6
        for other in others:
            other.close()
    with spawn(gpu, model) as actor:
        assert len(actor.send("sequence 6").text.split()) == 6
