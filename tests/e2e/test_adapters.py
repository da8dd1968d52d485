"""Agents on one base, each with adapters of its own: alone, together, saved and restored."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import wasmtime

from isthmus import Actor, Adapter, Model, Runtime
from isthmus.abi import Errno
from isthmus.cli.options import open_adapted
from isthmus.errors import IsthmusError, SettingsError, SnapshotMismatch
from isthmus.snapshot import open_snapshot
from tests.attacks.proxy import Proxy, proxy_wat
from tests.e2e.test_cli import complains, isthmus
from tests.exact.digest import digest
from tests.tiny_gguf import TinyLora, TinyModel

BASE = TinyModel(tied=False, quantisation="Q8_0", with_tokenizer=True)
WASM = bytes(wasmtime.wat2wasm(proxy_wat()))
BENCH = ["n_ctx=256"]
MESSAGES = ("prefill 20 1", "sequence 6")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "base": BASE.write(folder / "base.gguf"),
        "poet": TinyLora(BASE, alpha=32.0).write(folder / "poet.gguf"),
        "lawyer": TinyLora(BASE, alpha=32.0, seed=5).write(folder / "lawyer.gguf"),
    }


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def base(shared: Runtime, files: dict[str, Path]) -> Model:
    return shared.load_model(files["base"])


@pytest.fixture(scope="module")
def adapters(shared: Runtime, files: dict[str, Path], base: Model) -> dict[str, Adapter]:
    return {name: shared.load_adapter(files[name], base) for name in ("poet", "lawyer")}


@pytest.fixture(scope="module")
def models(shared: Runtime, base: Model, adapters: dict[str, Adapter]) -> dict[str, Model]:
    poet, lawyer = adapters.values()
    return {
        "base": base,
        "poet": shared.adapt(base, {poet: 1.0}),
        "lawyer": shared.adapt(base, {lawyer: 1.0}),
        "both": shared.adapt(base, {poet: 0.5, lawyer: 1.5}),
    }


def bench(runtime: Runtime, model: Model) -> Actor:
    return runtime.spawn("bench", models={"default": model}, args=BENCH, seed=1, clock_ns=0)


def say(actor: Actor) -> list[str]:
    return [actor.send(message).text for message in MESSAGES]


def test_each_says_its_own_alone_and_among_the_others(
    shared: Runtime, models: dict[str, Model]
) -> None:
    alone = {}
    for name, model in models.items():
        with bench(shared, model) as actor:
            alone[name] = (say(actor), digest(actor))
    names = [*models, *models, *models]
    actors = [bench(shared, models[name]) for name in names]
    with ThreadPoolExecutor(len(actors)) as threads:
        together = list(threads.map(say, actors))
    for name, actor, said in zip(names, actors, together, strict=True):
        assert (said, digest(actor)) == alone[name]
        actor.close()
    assert len({it["sessions"][0]["logits"] for _, it in alone.values()}) == len(models)


def test_the_weights_are_those_of_the_base(models: dict[str, Model]) -> None:
    assert all(it.weights is models["base"].weights for it in models.values())
    assert models["both"].name == "tiny+poet+lawyer"


def test_a_guest_opens_what_it_was_given_and_nothing_else(
    shared: Runtime, models: dict[str, Model]
) -> None:
    given = {name: models[name] for name in ("base", "poet")}
    proxy = Proxy(shared, WASM, models=given, tools={})
    base, poet = (proxy.open_model(name) for name in given)
    proxy.write(64, b"lawyer")
    assert proxy.call("model_open", 64, 6) == -Errno.ENOENT
    first, second = (proxy.open_session(it, at << 20) for it, at in ((base, 1), (poet, 2)))
    proxy.write(512, struct.pack("<3i", 1, 2, 3))
    assert proxy.call("prefill", first, 512, 3) == 0
    assert proxy.call("session_copy", second, first, 3) == -Errno.EINVAL  # another's cache
    assert proxy.call("prefill", second, 512, 3) == 0
    one, two = (it.logits.tobytes() for it in proxy.actor.sessions)
    assert one != two
    proxy.actor.close()


def test_forked_saved_and_restored(
    shared: Runtime, models: dict[str, Model], adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    actor = bench(shared, models["both"])
    say(actor)
    saved = actor.snapshot(tmp_path / "a.safetensors")
    manifest = open_snapshot(saved.path).manifest
    assert manifest.format_version == 3
    assert [(it.file_name, it.sha256, it.scale) for it in manifest.models[0].adapters] == [
        ("poet.gguf", adapters["poet"].sha256, 0.5),
        ("lawyer.gguf", adapters["lawyer"].sha256, 1.5),
    ]
    given = {"default": models["both"]}
    others = [actor.fork()[0], shared.restore(saved, models=given, require="exact")]
    actor.send("sequence 5")
    for other in others:
        other.send("sequence 5")
        assert digest(other)["sessions"] == digest(actor)["sessions"]
        other.close()
    actor.close()


def test_other_adapters_are_refused_or_prefilled_again(
    shared: Runtime, models: dict[str, Model], adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    with bench(shared, models["poet"]) as actor:
        say(actor)
        saved = actor.snapshot(tmp_path / "a.safetensors")
    half = shared.adapt(models["base"], {adapters["poet"]: 0.5})
    for other, said in (
        (models["base"], "poet.gguf .* by 1 then, no adapter now"),
        (models["lawyer"], "lawyer.gguf .* by 1 now"),
        (half, "by 0.5 now"),
    ):
        with pytest.raises(SnapshotMismatch) as caught:
            shared.restore(saved, models={"default": other})
        assert "replayed" in str(caught.value)
        assert any(re.search(said, reason) for reason in caught.value.reasons)
    with shared.restore(saved, models={"default": half}, require="replayed") as actor:
        assert actor.restored is not None
        assert actor.restored.level == "replayed"


def test_a_renamed_file_is_the_same(
    shared: Runtime, models: dict[str, Model], files: dict[str, Path], tmp_path: Path
) -> None:
    with bench(shared, models["poet"]) as actor:
        saved = actor.snapshot(tmp_path / "a.safetensors")
    copy = shutil.copy(files["poet"], tmp_path / "renamed.gguf")
    model = shared.adapt(models["base"], {shared.load_adapter(copy, models["base"]): 1.0})
    shared.restore(saved, models={"default": model}, require="exact").close()


def test_without_adapters_the_format_is_the_old_one(
    shared: Runtime, base: Model, tmp_path: Path
) -> None:
    with bench(shared, base) as actor:
        manifest = open_snapshot(actor.snapshot(tmp_path / "a.safetensors").path).manifest
    assert manifest.format_version == 2
    assert "adapters" not in json.loads(manifest.encode())["models"][0]


def test_what_lora_says(
    shared: Runtime, base: Model, files: dict[str, Path], tmp_path: Path
) -> None:
    poet, lawyer = files["poet"], files["lawyer"]
    colon = Path(shutil.copy(poet, tmp_path / "poet:2"))
    said = [f"a={poet}:0.5", f"{lawyer}:-1", f"a={lawyer}", str(colon)]
    made = open_adapted(shared, {"default": base, "other": base}, said)
    assert {
        name: [(it.adapter.path, it.scale) for it in model.adaptation.applied]
        for name, model in made.items()
    } == {"a": [(poet, 0.5), (lawyer, 1.0)], "default": [(lawyer, -1.0), (colon, 1.0)]}
    for wrong, reason in (
        (f"{poet}:big", "is no scale"),
        (f"{poet}:nan", "scale"),
        ("=x.gguf", "is empty"),
        (":1", "is empty"),
        (str(tmp_path / "none.gguf"), "there is no file"),
        (str(files["base"]), "is not an adapter"),
    ):
        with pytest.raises(IsthmusError, match=reason):
            open_adapted(shared, {"default": base}, [wrong])
    with pytest.raises(SettingsError, match="give --model too"):
        open_adapted(shared, {}, [str(poet)])


def test_saved_and_restored_on_the_command_line(files: dict[str, Path], tmp_path: Path) -> None:
    place = files["base"].parent / "a.safetensors"
    done = isthmus(
        "snapshot", "bench", "--out", place, "--model", files["base"],
        "--lora", f"{files['poet']}:0.5", "--arg", "n_ctx=256", "--message", "prefill 20 1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = isthmus("restore", place, "--message", "sequence 3")
    assert again.returncode == 0, again.stderr
    assert "exact" in again.stderr
    looked = isthmus("inspect", place)
    assert "adapter poet.gguf" in looked.stdout, looked.stderr
    assert "by 0.5" in looked.stdout
    report = json.loads(isthmus("inspect", place, "--json").stdout)
    assert report["models"][0]["adapters"][0]["scale"] == 0.5
    other = isthmus("restore", place, "--message", "sequence 3", "--lora", files["lawyer"])
    complains(other, 2, "would be replayed")
