"""The CUDA device without a card: a driver that gives ordinary memory, and the processor's kernels.

Everything but the speed is then as on a card: who supplies memory, where it is told to live, how
guests are bounded, and what is refused. Results on real cards lie in `benchmarks/results/`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

import isthmus.device
from isthmus import Actor, Limits, Model, Runtime
from isthmus.config import DeviceSettings
from isthmus.device import Device, cuda, open_device
from isthmus.device.base import Backend
from isthmus.errors import DeviceFailed, DeviceUnavailable, IsthmusError
from isthmus.native.cuda import Advice, Attribute
from isthmus.native.loader import Library
from isthmus.units import GIB, MIB, OS_PAGE, WASM_PAGE
from tests.device.conftest import MANAGED, FakeDriver
from tests.exact.digest import digest
from tests.tiny_gguf import TinyModel

ON_CPU, ON_DEVICE = 1, 0
DEVICE_S, PROCESSOR_S = 1, 2
"""`CU_MEM_ATTACH_GLOBAL` and `CU_MEM_ATTACH_HOST`."""


def device(library: Library, sharing: str | None = None) -> Device:
    return open_device("cuda", library, DeviceSettings(sharing=sharing))


@pytest.fixture
def runtime(driver: FakeDriver) -> Iterator[Runtime]:
    with Runtime(device="cuda") as runtime:
        yield runtime
    assert driver.n_blocks == 0


@pytest.fixture
def model(runtime: Runtime, tiny: Path) -> Model:
    return runtime.load_model(tiny)


def spawn(runtime: Runtime, model: Model, n_tokens: int = 24, **given: object) -> Actor:
    actor = runtime.spawn(
        "bench", models={"default": model}, args=["n_ctx=512"], seed=1, clock_ns=10**18, **given
    )
    actor.send(f"prefill {n_tokens} {n_tokens}")
    return actor


def guest(result: str) -> bytes:
    text = f"""(module (memory (export "memory") 1)
      (func (export "_initialize"))
      (func (export "on_message") (param i32) (result i32) {result}))"""
    return bytes(wasmtime.wat2wasm(text))


@pytest.mark.parametrize(
    ("attributes", "sharing", "n_notes"),
    [
        ({**MANAGED, Attribute.PAGEABLE_MEMORY_ACCESS: 1}, "same", 0),
        (MANAGED, "managed", 1),
        ({**MANAGED, Attribute.CONCURRENT_MANAGED_ACCESS: 0}, "registered", 3),
        ({Attribute.MANAGED_MEMORY: 1}, "lent", 3),
        ({}, "copied", 4),
    ],
)
def test_the_ladder(
    driver: FakeDriver,
    library: Library,
    tiny: Path,
    attributes: dict[Attribute, int],
    sharing: str,
    n_notes: int,
) -> None:
    driver.set(attributes)
    found = device(library)
    assert (found.info.sharing, len(found.info.notes)) == (sharing, n_notes)
    assert found.info.driver == "CUDA 13.0"
    found.close()
    with Runtime(device="cuda") as runtime, Runtime(device="cpu") as plain:
        answers = []
        for each in (runtime, plain):
            with spawn(each, each.load_model(tiny)) as actor, actor.fork(1)[0] as fork:
                answers += [it.send("sequence 20").text for it in (actor, fork)]
        assert len(set(answers)) == 1
        copied = runtime.device.counters.bytes_copied
        forks_copy = sharing in ("copied", "registered")
        assert copied > 0 if forks_copy else copied == 0


@pytest.mark.parametrize("sharing", ["managed", "registered", "lent", "copied"])
def test_embeddings_in_every_way(driver: FakeDriver, sharing: str, tmp_path: Path) -> None:
    file = TinyModel("bert", with_tokenizer=True).write(tmp_path / "bert.gguf")
    with Runtime(device="cuda", sharing=sharing) as runtime, Runtime(device="cpu") as plain:
        model = runtime.load_model(file)
        actor = runtime.spawn("embed", models={"default": model}, args={"output": "f32"})
        for text in ("the isthmus", "a cat sleeps"):
            (wanted,) = plain.load_model(file).embed([text])
            assert actor.send(text).data == wanted.tobytes() == model.embed([text])[0].tobytes()
        n_answers = 2 if sharing == "copied" else 0
        assert runtime.device.counters.bytes_copied == n_answers * 4 * model.hparams.n_embd


@pytest.mark.parametrize("sharing", ["managed", "registered", "lent", "copied"])
def test_a_way_can_be_forced(driver: FakeDriver, library: Library, sharing: str) -> None:
    found = device(library, sharing)
    assert found.info.sharing == sharing
    found.close()


def test_a_way_that_does_not_work_cannot_be_forced(driver: FakeDriver, library: Library) -> None:
    with pytest.raises(DeviceUnavailable, match="not same: the device does not read ordinary"):
        device(library, "same")


def test_lent_memory_is_the_device_s_while_a_submission_works_in_it(
    driver: FakeDriver, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of whoever does not take part stays the processor's, in batches as well."""
    with Runtime(device="cuda", sharing="lent") as runtime:
        model = runtime.load_model(tiny, exact=False)
        actors = [spawn(runtime, model) for _ in range(3)]
        bases = [actor.region.base for actor in actors]
        seen: list[list[int]] = []
        compute = Backend._timed

        def watched(self: Backend, graph: int) -> int:
            seen.append([driver.attached(base) for base in bases])
            return compute(self, graph)

        monkeypatch.setattr(Backend, "_timed", watched)
        actors[0].send("sequence 5")
        assert seen == [[DEVICE_S, PROCESSOR_S, PROCESSOR_S]] * 5
        streams = [actor.stream("sequence 30") for actor in actors[:2]]
        texts = ["".join(stream) or stream.reply.text for stream in streams]
        assert len(texts) == 2
        assert [DEVICE_S, DEVICE_S, PROCESSOR_S] in seen
        assert all(each[2] == PROCESSOR_S for each in seen)
        with runtime.spawn("gemm") as gemm:
            bases[2] = gemm.region.base
            gemm.send("rows=16 k=64 n=64")
            assert seen[-1] == [PROCESSOR_S, PROCESSOR_S, DEVICE_S]
        assert {driver.attached(base) for base in bases[:2]} == {PROCESSOR_S}
        for actor in actors:
            actor.close()
    assert driver.n_blocks == 0


def test_memory_is_one_address_and_lives_where_it_should(
    runtime: Runtime, model: Model, driver: FakeDriver
) -> None:
    before = driver.advised(Advice.SET_PREFERRED_LOCATION, ON_DEVICE)
    heap = driver.advised(Advice.SET_PREFERRED_LOCATION, ON_CPU)
    mapped = driver.advised(Advice.SET_ACCESSED_BY, ON_DEVICE)
    with spawn(runtime, model) as actor:
        session, region = actor.sessions[0], actor.region
        assert actor.binding.address(session.base) == session.base
        assert driver.advised(Advice.SET_PREFERRED_LOCATION, ON_CPU) - heap == region.nbytes
        assert driver.advised(Advice.SET_ACCESSED_BY, ON_DEVICE) - mapped == region.nbytes
        on_device = driver.advised(Advice.SET_PREFERRED_LOCATION, ON_DEVICE) - before
        assert session.layout.kv_nbytes - 2 * 4096 <= on_device <= session.layout.kv_nbytes
        assert runtime.device.counters.bytes_copied == 0


def test_new_memory_is_zero_though_the_driver_gives_it_undefined(runtime: Runtime) -> None:
    with runtime.spawn(guest("(i32.load (i32.const 256))")) as actor:
        assert actor.send("").text == ""  # another value than 0 is an errno


def test_snapshots_and_forks(
    runtime: Runtime, model: Model, driver: FakeDriver, tmp_path: Path
) -> None:
    with spawn(runtime, model) as actor:
        to_cpu = driver.prefetched(ON_CPU)
        saved = actor.snapshot(tmp_path / "a.safetensors")
        assert driver.prefetched(ON_CPU) > to_cpu  # read in one stream, not page by page
        with runtime.restore(saved, models={"default": model}) as again, actor.fork(1)[0] as fork:
            assert again.restored.level == "exact"
            assert digest(again) == digest(actor) == digest(fork)
            assert len({it.send("sequence 20").text for it in (actor, again, fork)}) == 1
            assert digest(again) == digest(actor) == digest(fork)


def test_the_device_copies_a_fork_s_kv_cache(
    runtime: Runtime, model: Model, driver: FakeDriver
) -> None:
    with spawn(runtime, model) as actor:
        copied, to_cpu = driver.copied_on_device, driver.prefetched(ON_CPU)
        kv_nbytes = actor.sessions[0].layout.kv_nbytes
        fork, other = actor.fork(2)
        assert 0 <= 2 * kv_nbytes - (driver.copied_on_device - copied) < 4 * 2 * OS_PAGE
        heap_nbytes = actor.region.nbytes - kv_nbytes + 2 * OS_PAGE
        assert driver.prefetched(ON_CPU) - to_cpu <= 2 * heap_nbytes
        assert digest(fork) == digest(actor) == digest(other)
        before = digest(actor)
        actor.send("sequence 5")
        assert digest(fork) == digest(other) == before  # what it was at the time
        assert fork.send("sequence 20").text == other.send("sequence 20").text
        with fork.fork()[0] as grandchild:
            assert digest(grandchild) == digest(fork)
        for child in (fork, other):
            child.close()


def test_a_large_guest_says_so(runtime: Runtime, driver: FakeDriver) -> None:
    with runtime.spawn(guest("(i32.const 0)")) as usual:
        assert usual.region.reserved_nbytes == cuda.REGION_NBYTES
    with runtime.spawn(guest("(i32.const 0)"), limits=Limits(memory_nbytes=3 * GIB)) as large:
        assert large.region.reserved_nbytes == 3 * GIB


@pytest.mark.parametrize(("head_dim", "refused"), [(64, True), (128, False)])
def test_a_soft_cap_without_kernels_is_refused_and_ends_nothing(
    runtime: Runtime, tmp_path: Path, head_dim: int, refused: bool
) -> None:
    """ggml says that it has kernels for all sizes of heads, and aborts the process."""
    file = TinyModel("gemma2", with_tokenizer=True, head_dim=head_dim).write(tmp_path / "x.gguf")
    model = runtime.load_model(file)
    if refused:
        with pytest.raises(IsthmusError):
            spawn(runtime, model)
    else:
        with spawn(runtime, model) as actor:
            assert len(actor.send("sequence 5").text.split()) == 5


def test_agents_run_in_one_batch(runtime: Runtime, tiny: Path) -> None:
    model = runtime.load_model(tiny, exact=False)
    actors = [spawn(runtime, model, 20 + n) for n in range(4)]
    submissions = runtime.device.counters.submissions
    streams = [actor.stream("sequence 50") for actor in actors]
    texts = ["".join(stream) or stream.reply.text for stream in streams]
    assert runtime.device.counters.submissions - submissions < 4 * 50
    for n, text in enumerate(texts):
        with spawn(runtime, model, 20 + n) as alone:
            assert alone.send("sequence 50").text.split()[:5] == text.split()[:5]


def test_an_access_out_of_bounds_traps(runtime: Runtime) -> None:
    with (
        runtime.spawn(guest("(i32.load (i32.const 65536))")) as actor,
        pytest.raises(IsthmusError, match="out-of-bounds"),
    ):
        actor.send("")


def test_no_more_is_asked_for_than_the_device_has(
    runtime: Runtime, model: Model, driver: FakeDriver
) -> None:
    driver.set_free(2 * GIB)  # one is left alone
    limits = Limits(memory_nbytes=600 * MIB)
    with spawn(runtime, model, limits=limits) as actor:
        with pytest.raises(DeviceFailed, match="left for guests' memory"):
            spawn(runtime, model, limits=limits)
        assert actor.send("sequence 5").text
    with spawn(runtime, model, limits=limits) as actor:  # given back
        assert actor.send("sequence 5").text


def test_a_guest_cannot_outgrow_its_region(
    runtime: Runtime, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "REGION_NBYTES", 2 * MIB)
    grow = "(i32.ne (memory.grow (i32.const 100)) (i32.const -1))"
    with runtime.spawn(guest(grow)) as actor:
        assert actor.send("").text == ""
        assert actor.region.nbytes == WASM_PAGE
    with runtime.spawn(guest(grow.replace("100", "31"))) as actor:
        with pytest.raises(IsthmusError):  # it grew, and so it returned 1
            actor.send("")
        assert actor.region.nbytes == 2 * MIB


def test_without_a_card_the_error_says_what_is_missing(library: Library) -> None:
    with pytest.raises(DeviceUnavailable) as error:
        isthmus.device.open_device("cuda", library, DeviceSettings())
    assert "was built without CUDA" in str(error.value)
    assert "libcuda.so.1" in str(error.value)


def test_a_forked_process_is_told() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], timeout=60, check=False)
    assert done.returncode == 7


FORKS = f"""
import os, sys
from isthmus import Runtime
from isthmus.errors import DeviceFailed
with Runtime(device="cpu") as runtime:
    guest = {guest("(i32.const 0)")!r}
    runtime.spawn(guest).send("")
    if (child := os.fork()) == 0:
        try:
            runtime.spawn(guest).send("")
        except DeviceFailed as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(2)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
