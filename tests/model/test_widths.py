"""Classes of width: agents share passes only where that changes no bit of any of them."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.device.buffer import Binding
from isthmus.device.cpu import CpuDevice
from isthmus.errors import ContextFull, DeviceFailed, SettingsError
from isthmus.file_hash import FileHashes
from isthmus.memory import Region
from isthmus.model import Model, Session, open_model
from isthmus.model.own.model import OwnModel
from isthmus.model.own.session import own
from isthmus.model.passes.batch import Batch
from isthmus.model.passes.forward import Scores
from isthmus.model.passes.joining import Joining
from isthmus.model.probes import exactness
from isthmus.model.probes.attention_probe import Kernel, _Probe, try_joining
from isthmus.model.probes.width_probe import matrices, widths_of
from isthmus.model.probes.widths import SINGLE, Width, Widths
from isthmus.model.step import Step
from isthmus.native._ggml import GgmlType, tensor_at
from isthmus.units import GIB, MIB, GuestPtr
from tests.model.test_architectures import several
from tests.tiny_gguf import TinyModel

N_VOCAB = 300
OF_A_CARD = Widths((Width(1, 4), Width(5, 8), Width(9, 128)))


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose products of one column have other bits than those of several."""
    path = TinyModel("llama", quantisation="F16", n_embd=256, n_ff=512)
    return path.write(tmp_path_factory.mktemp("widths") / "f16.gguf")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = TinyModel("gemma3", quantisation="Q8_0", n_layer=2)
    return path.write(tmp_path_factory.mktemp("widths") / "q8.gguf")


# ---------------------------------------------------------------------------------- names


def test_names_of_classes() -> None:
    assert str(OF_A_CARD) == "1-4, 5-8, 9-128"
    assert Widths.try_parse(str(OF_A_CARD)) == OF_A_CARD
    assert OF_A_CARD.named("alone") == Width(1, 4)
    assert OF_A_CARD.named("many") == OF_A_CARD.named("9-128") == Width(9, 128)
    assert OF_A_CARD.of(8) == Width(5, 8)
    assert OF_A_CARD.of(129) is None
    assert str(SINGLE) == "1"


def test_many_is_no_class_whose_rows_are_nobodys_as_a_rule() -> None:
    of_halves = Widths((SINGLE, Width(2, 16), Width(17, 32), Width(33, 64), Width(65, 128)))
    assert of_halves.many == Width(33, 64)
    assert Widths((SINGLE, Width(2, 32))).many == Width(2, 32)
    assert Widths().many == SINGLE


@pytest.mark.parametrize("text", ["", "2-4", "1-4, 4-8", "1-4,5-8", "4-1", "1-4, many", "1-99999"])
def test_what_names_no_classes(text: str) -> None:
    assert Widths.try_parse(text) is None


def test_common_classes_have_every_bound() -> None:
    other = Widths((Width(1, 16), Width(17, 64)))
    assert str(OF_A_CARD.common(other)) == "1-4, 5-8, 9-16, 17-64"
    assert OF_A_CARD.common(Widths()) == Widths()


@pytest.mark.parametrize("width", ["2-7", "33", "9-128"])
def test_a_class_that_the_model_has_not(width: str, device: Device, halves: Path) -> None:
    with pytest.raises(SettingsError, match=rf"{width}.* are 1, 2-32: give one of them"):
        open_model(device, halves, ModelSettings(width=width))


@pytest.mark.parametrize("width", ["", "most", "0-4", "-4", "1-", "1-4-5", 4])
def test_what_is_no_width(width: object) -> None:
    with pytest.raises(SettingsError, match="give alone, few, many, or a class"):
        ModelSettings(width=width)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------- probes


class Lying:
    """A backend whose products are changed by `lie` before anybody sees them."""

    def __init__(self, device: Device, lie: Callable[[np.ndarray], None]) -> None:
        self._device, self._lie = device, lie
        self._backend = device.new_backend()

    def compute(self, graph: int) -> None:
        library = self._device.library
        self._backend.compute(graph)
        struct = tensor_at(library.ggml_graph_node(graph, library.ggml_graph_n_nodes(graph) - 1))
        n, m = struct.ne[0] * struct.ne[1] // max(1, struct.ne[1]), struct.ne[1] * struct.ne[2]
        count = n * m * struct.ne[3]
        raw = (ctypes.c_float * count).from_address(struct.data)
        self._lie(np.frombuffer(raw, np.float32).reshape(m * struct.ne[3], n))

    def close(self) -> None:
        self._backend.close()


def by_count(columns: np.ndarray) -> None:
    columns += columns * np.float32(len(columns) > 5)


def by_place(columns: np.ndarray) -> None:
    columns[3:] *= np.float32(1.5)


def by_company(columns: np.ndarray) -> None:
    columns[:-1] += columns[-1] * np.float32(len(columns) > 8)


def at_random(columns: np.ndarray) -> None:
    columns *= np.random.default_rng().uniform(1, 2, columns.shape).astype(np.float32)


def by_nothing(columns: np.ndarray) -> None:
    columns[:] = np.frombuffer(b"\xff" * columns.nbytes, np.float32).reshape(columns.shape)


def in_numbers(columns: np.ndarray) -> None:
    columns[0] = np.nan


LIES = {
    by_count: "1-5, 6-32",
    by_place: "1",
    by_company: "1-8",
    at_random: "1",
    in_numbers: "1",
}


@pytest.fixture
def lying(device: Device) -> Iterator[Callable[..., Lying]]:
    made = []

    def make(lie: Callable[[np.ndarray], None]) -> Lying:
        made.append(Lying(device, lie))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.mark.parametrize("lie", LIES, ids=lambda it: it.__name__)
def test_no_lie_makes_agents_share_what_is_not_exact(
    lie: Callable[[np.ndarray], None],
    lying: Callable[..., Lying],
    device: Device,
    quantised: Path,
) -> None:
    with several(device, quantised, 0) as (model, _):
        found = widths_of(device, lying(lie), matrices(model.weights), 32)
        assert str(found) == LIES[lie]


def test_matrices_of_each_head_are_asked_about(
    lying: Callable[..., Lying], device: Device, tmp_path: Path
) -> None:
    """As a pass multiplies with them: each head with columns of its own."""
    path = TinyModel("deepseek2", quantisation="Q8_0").write(tmp_path / "latent.gguf")

    def by_head_and_count(columns: np.ndarray) -> None:
        columns[1::4] *= np.float32(1 + (len(columns) > 4 * 6))

    def by_nothing_else(_columns: np.ndarray) -> None:
        pass

    with several(device, path, 0) as (model, _):
        asked = [it for it in matrices(model.weights) if it.n_head]
        assert {(it.k, it.n, it.n_head) for it in asked} == {(32, 64, 4), (64, 32, 4)}
        assert str(widths_of(device, lying(by_nothing_else), asked, 32)) == "1-32"
        assert str(widths_of(device, lying(by_head_and_count), asked, 32)) == "1-6, 7-32"


def test_a_device_that_computes_nothing_is_told(
    lying: Callable[..., Lying], device: Device, quantised: Path
) -> None:
    with (
        several(device, quantised, 0) as (model, _),
        pytest.raises(DeviceFailed, match="unwritten"),
    ):
        widths_of(device, lying(by_nothing), matrices(model.weights), 32)


@pytest.mark.parametrize("width", ["alone", "many"])
def test_a_probe_that_fails_leaves_everybody_alone(
    width: str, device: Device, quantised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Widths:
        raise DeviceFailed("poisoned")

    monkeypatch.setattr(exactness, "widths_of", fail)
    with several(device, quantised, 2, ModelSettings(width=width)) as (model, sessions):
        assert model.widths == Widths()
        assert model.rows_at_once == 1
        assert not model.batches
        assert not model.packs
        model.executor.decode_batch([Step(it, [1]) for it in sessions])
        assert {shape.n for shape, *_ in model.executor._batches._cache.keys} <= {1}


def test_zeros_tell_nothing_so_another_matrix_is_asked(
    lying: Callable[..., Lying], device: Device, quantised: Path
) -> None:
    """Of two matrices of one shape, the first one asked is 0."""
    calls = 0

    def lie(columns: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls <= 3:
            columns[:] = 0
        else:
            by_count(columns)

    with several(device, quantised, 0) as (model, _):
        asked = [it for it in matrices(model.weights) if len(it.tensors) > 1][:1]
        assert str(widths_of(device, lying(lie), asked, 32)) == "1-5, 6-32"


def test_how_sessions_may_share_attention(
    lying: Callable[..., Lying], device: Device, quantised: Path
) -> None:
    """A device that cuts its work by the number of sequences, as CUDA's vector kernel does."""

    def cut(columns: np.ndarray) -> None:
        n = columns.size // heads.n_embd_q
        columns *= np.float32(1 + (n % 4) / 8)

    def by_neighbour(columns: np.ndarray) -> None:
        columns += columns.reshape(-1)[-1]

    with several(device, quantised, 0) as (model, _):
        heads = model.hparams.heads[0]
        kernels = [Kernel(GgmlType.F16, Scores(heads, 0.1))]
        joining = try_joining(device, lying(cut), kernels, 1000, 16)
        assert joining is not None
        assert joining.sizes == (4, 8, 12, 16)
        assert (joining.least_kv, joining.most_kv) == (1024, 1024)
        assert Joining.try_parse(str(joining)) == joining
        assert try_joining(device, lying(by_neighbour), kernels, 1000, 16) is None


def test_attention_with_sinks_is_asked_about(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind once, with the sinks of a layer, which change what the probe sees."""
    path = TinyModel("gpt-oss", quantisation="Q8_0").write(tmp_path / "sinks.gguf")
    asked: list[Kernel] = []
    monkeypatch.setattr(type(device), "joins_sequences", True)
    monkeypatch.setattr(exactness, "try_joining", lambda _d, _b, kernels, *_: asked.extend(kernels))
    with several(device, path, 0) as (model, _), closing(device.new_backend()) as backend:
        assert model._exactness.joining is None
        (kernel,) = asked
        assert kernel.scores.sinks
        without = replace(kernel, scores=replace(kernel.scores, sinks=0))
        results = set()
        for each in (kernel, without):
            with _Probe(device, backend, each, 256, 2) as probe:
                probe.show(200)
                results.add(probe.result(2, 256))
        assert len(results) == 2


def test_answers_are_kept_for_a_file(
    device: Device, quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    ask = exactness.widths_of

    def count(*given: object) -> Widths:
        nonlocal asked
        asked += 1
        return ask(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(exactness, "widths_of", count)
    monkeypatch.setattr("isthmus.file_hash._SETTLED_NS", 0)
    for _ in range(3):
        model = open_model(device, quantised, ModelSettings(width="many"), FileHashes(tmp_path))
        assert str(model.widths) == "1-32"
        model.close()
    assert asked == 1
    [kept] = tmp_path.glob("steps-*")
    kept.write_text("1-4, 3-99")  # nonsense is no answer
    open_model(device, quantised, ModelSettings(width="many"), FileHashes(tmp_path)).close()
    assert asked == 2


@pytest.mark.parametrize(
    ("question", "probe"), [("cuts", "cuts_exactly"), ("packing", "packs_exactly")]
)
def test_what_cuts_and_packs_change_is_kept_for_a_file(
    question: str,
    probe: str,
    device: Device,
    quantised: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    def count(*_given: object) -> bool:
        nonlocal asked
        asked += 1
        return False

    monkeypatch.setattr(exactness, probe, count)
    monkeypatch.setattr("isthmus.file_hash._SETTLED_NS", 0)
    for _ in range(3):
        with closing(open_model(device, quantised, ModelSettings(), FileHashes(tmp_path))) as model:
            assert getattr(model._exactness, question) is False
            assert getattr(model._exactness, question) is False
    assert asked == 1
    [kept] = (it for it in tmp_path.iterdir() if it.name.startswith(("cuts-", "packs-")))
    kept.write_text("perhaps")
    with closing(open_model(device, quantised, ModelSettings(), FileHashes(tmp_path))) as model:
        assert getattr(model._exactness, question) is False
    assert asked == 2


# ---------------------------------------------------------------------------------- bits


def script(session: Session, seed: int) -> Iterator[list[int]]:
    """What one agent decodes: tokens that depend on what it read, between prompts and cuts."""
    dice = random.Random(seed)
    model = Model.of(session)
    model.prefill(session, [dice.randrange(N_VOCAB) for _ in range(1 + 37 * seed % 250)])
    for _ in range(25):
        match dice.choice(["go on"] * 6 + ["cut", "prompt", "guess"]):
            case "cut":
                session.truncate(dice.randrange(session.n_tokens))
            case "prompt":
                n = dice.choice([1, 2, 12])
                model.prefill(session, [dice.randrange(N_VOCAB) for _ in range(n)])
            case "guess":
                yield [dice.randrange(N_VOCAB) for _ in range(dice.choice([2, 5, 31]))]
        if session.has_logits:
            yield [int(np.argmax(session.logits))]
        else:
            yield [dice.randrange(N_VOCAB)]


def hashes_of(model: Model, sessions: Sequence[Session], together: Callable[[int], int]) -> list:
    """Of all logits that each session had. `together`: of so many that wait, how many are taken."""
    rows = np.zeros((len(sessions), 31, model.n_vocab), np.float32)
    totals = [sha256() for _ in sessions]
    scripts = dict(enumerate(script(it, seed) for seed, it in enumerate(sessions)))
    waiting = {i: next(it) for i, it in scripts.items()}
    dice = random.Random(5)
    while waiting:
        taken = dice.sample(sorted(waiting), together(len(waiting)))
        steps = [Step(sessions[i], waiting[i], rows[i].ctypes.data) for i in taken]
        model.executor.decode_batch(steps)
        for i in taken:
            totals[i].update(rows[i, : len(waiting[i]) - 1].tobytes())
            totals[i].update(sessions[i].logits.tobytes())
            if (following := next(scripts[i], None)) is None:
                del waiting[i]
            else:
                waiting[i] = following
    return [it.hexdigest() for it in totals]


def require_same_in_any_company(model: Model, sessions: Sequence[Session]) -> None:
    solo = hashes_of(model, sessions, lambda _: 1)
    for session in sessions:
        session.truncate(0)
    dice = random.Random(6)
    assert hashes_of(model, sessions, lambda n: dice.randint(1, n)) == solo
    for session in sessions:
        session.truncate(0)
    assert hashes_of(model, sessions, lambda n: n) == solo


@pytest.mark.parametrize("width", ["many", "alone"])
def test_bits_in_a_class_do_not_depend_on_company(width: str, device: Device, halves: Path) -> None:
    with several(device, halves, 7, ModelSettings(width=width)) as (model, sessions):
        assert str(model.widths) == "1, 2-32"
        assert model.rows_at_once == (32 if width == "many" else 1)
        require_same_in_any_company(model, sessions)


def test_classes_have_other_bits(device: Device, halves: Path) -> None:
    logits = []
    for width in ("alone", "many"):
        with several(device, halves, 1, ModelSettings(width=width)) as (model, [session]):
            model.prefill(session, [1, 2, 3, 4, 5])
            model.decode(session, 6)
            logits.append(session.logits.copy())
    assert not np.array_equal(*logits)
    assert np.allclose(*logits, atol=0.1)


@pytest.mark.parametrize("joins", [False, True])
def test_every_pass_is_of_the_class(
    joins: bool, device: Device, quantised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that begins at 9, as on a card: fewer rows are filled up, more are several passes."""
    monkeypatch.setattr(exactness, "widths_of", lambda *_: Widths((Width(1, 4), Width(9, 20))))
    monkeypatch.setattr(CpuDevice, "joins_sequences", joins)
    joining = Joining((4, 8, 12, 16, 20), 256, 256)
    monkeypatch.setattr(exactness, "try_joining", lambda *_: joining)
    passes = []
    write = Batch.write

    def note(batch: Batch, rows: object) -> None:
        passes.append(batch.n)
        write(batch, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Batch, "write", note)
    with several(device, quantised, 12, ModelSettings(width="many")) as (model, sessions):
        assert (model.width, model.rows_at_once) == (Width(9, 20), 20)
        require_same_in_any_company(model, sessions)
        assert all(9 <= n <= 20 for n in passes)
        assert {9, 20} & {*passes}
        kinds = {n for shape, *_ in model.executor._batches._cache.keys for n in shape.runs}
        assert kinds <= ({1, *joining.sizes} if joins else {1})  # 1: longer than `most_kv`
        assert joins == bool(kinds - {1})


def test_rows_of_nobody_touch_no_guest(device: Device, halves: Path) -> None:
    with several(device, halves, 2, ModelSettings(width="2-32")) as (model, (session, other)):
        for each in (session, other):
            model.prefill(each, [*range(20)])
        region, layout = session._region, session.layout
        whole = np.frombuffer((ctypes.c_ubyte * region.nbytes).from_address(region.base), np.uint8)
        before, beside = whole.copy(), other.logits.copy()
        model.decode(session, 5)
        changed = np.flatnonzero(whole != before) + region.base - session.base
        mine = [range(4 * layout.n_vocab)]
        mine += [range(at, at + nbytes) for at, nbytes in own(session).layout.rows(20, 1)]
        assert changed.size
        assert all(any(at in part for part in mine) for at in changed.tolist())
        assert other.logits.tobytes() == beside.tobytes()


def test_a_step_that_fails_in_the_second_pass_leaves_all_as_they_were(
    device: Device, halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with several(device, halves, 5, ModelSettings(width="alone")) as (model, sessions):
        assert model.rows_at_once == 1
        for session in sessions:
            model.prefill(session, [1, 2, 3])
        compute, left = model.executor._backend.compute, 3

        def fail(*given: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise DeviceFailed("poisoned")
            compute(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(model.executor._backend, "compute", fail)
        with pytest.raises(DeviceFailed, match="poisoned"):
            model.executor.decode_batch([Step(it, [4]) for it in sessions])
        assert [it.tokens.tolist() for it in sessions] == [[1, 2, 3]] * 5
        assert not any(it.has_logits for it in sessions)


def test_a_context_that_is_full(device: Device, halves: Path) -> None:
    with several(device, halves, 1, ModelSettings(width="many")) as (model, [session]):
        model.prefill(session, [1] * session.n_ctx)
        with pytest.raises(ContextFull):
            model.decode(session, 1)


def test_a_batch_finds_memory_that_no_tensor_was_placed_in(device: Device, halves: Path) -> None:
    """On a device that addresses only what it was told of, as one that registers memory."""
    with (
        closing(open_model(device, halves, ModelSettings(width="many"))) as model,
        Region.reserve(1 * GIB, nbytes=64 * MIB) as region,
        Binding(device.import_memory, region, largest=1 * GIB) as binding,
    ):
        layout = model.layout(256)
        with closing(model.open_session(region, binding, GuestPtr(4096), layout)) as session:
            assert binding.n_segments == 1
            model.decode(session, 1)
            assert binding.n_segments == 1
            assert session.logits.any()


@pytest.mark.parametrize("width", ["many", "alone"])
def test_prompts_of_a_class_have_the_bits_of_each_alone(
    width: str, device: Device, halves: Path
) -> None:
    """Behind the last attention, each prompt is a row of the model's class."""
    lengths = (9, 2, 14, 5)
    with several(device, halves, 8, ModelSettings(width=width)) as (model, sessions):
        together, alone = sessions[:4], sessions[4:]
        if width == "alone":
            assert model.prompts_at_once == 1  # one row behind the last attention, or others' bits
            return
        assert {model.packing(n) for n in lengths} == {Width(2, 32)}
        assert model.packing(33) is None
        prompts = [[(7 * i + n) % N_VOCAB for i in range(n)] for n in lengths]
        for before in (3, 30):
            for session in sessions:
                session.truncate(0)
                model.prefill(session, [*range(before)])
            chunks = [
                model.executor.chunks(session, prompt)[0]
                for session, prompt in zip(together, prompts, strict=True)
            ]
            device.compute_thread.run(lambda chunks=chunks: [*model.executor.append(chunks)])
            for one, other, prompt in zip(together, alone, prompts, strict=True):
                model.prefill(other, prompt)
                assert one.tokens == other.tokens
                assert one.logits.tobytes() == other.logits.tobytes()
                model.decode(one, 7)
                model.decode(other, 7)
                assert one.logits.tobytes() == other.logits.tobytes()


def test_agents_of_models_with_experts_are_alone_on_a_card(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = TinyModel("qwen3moe", quantisation="Q8_0").write(tmp_path / "experts.gguf")
    with closing(open_model(device, path, ModelSettings())) as model:
        assert isinstance(model, OwnModel)
        assert model._exactness.widths != Widths() != model._exactness.prompt_widths
    with closing(open_model(device, path, ModelSettings())) as model:
        assert isinstance(model, OwnModel)
        monkeypatch.setattr(type(device), "has_own_memory", property(lambda _: True))
        assert model._exactness.widths == Widths() == model._exactness.prompt_widths
        assert not model.packs
        monkeypatch.undo()
